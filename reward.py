"""
What samples are ranked and measured by, where data has no preferences of its own: the toy world's exact reward, or a reward model, which is
a run of rlhf/train_reward.py. Pairs are sampled and ranked in data.py.

Read next: train_pref.py
"""
import re

import numpy as np
import torch

import cli
import data
import toy
from model import ScalarGPT, fingerprint

def add_flags(p):
    """Those of sampled pairs."""
    p.add_argument("--n_prompts", type=cli.positive,
                   help="toy, imdb: prompts to sample pairs for, 4 completions each (default: 600; imdb: 1200)")
    p.add_argument("--reward", help="toy, imdb: rank them by this run of rlhf.train_reward (default: toy's exact reward)")
    p.add_argument("--prompt_tokens", help="imdb: a prompt is so many tokens of a review, as 32 or 2-8 (default: 32)")

def check_flags(p, args):
    """Fills them in; refuses those that have no effect, and pairs of IMDB without a reward."""
    sampled, on, without = args.data in ("toy", "imdb"), f"on --data {args.data}", "without --data toy or imdb"
    cli.refuse(p, args, (("n_prompts", sampled, without), ("reward", sampled, without), ("prompt_tokens", args.data == "imdb", on),
                         ("max_prompt_len", not sampled, on), ("n_val", not sampled, on)))
    if args.data == "imdb" and not args.reward:
        p.error("--data imdb has no pairs: they are sampled and ranked; train a reward model by rlhf.train_reward and give it as --reward")
    args.n_prompts = args.n_prompts or {"toy": 600, "imdb": 1200}.get(args.data)
    check_prompt_tokens(p, args)

def check_prompt_tokens(p, args):
    """Fills in the default."""
    args.prompt_tokens = args.prompt_tokens or ("32" if args.data == "imdb" else None)
    span = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", args.prompt_tokens or "32")
    if not span or int(span[1]) > int(span[2] or span[1]):
        p.error(f"--prompt_tokens {args.prompt_tokens}: is a number of tokens, or a range of them, as 2-8")

class Reward:
    """
    Token lists (prompt and completion) -> (n,): the toy world's exact P(positive), or what a run of rlhf.train_reward says: P(positive)
    too if it has learned IMDB's labels, else its scalar, in nats. name: a fingerprint of it. Raises ValueError for another run.
    """
    def __init__(self, run, tokenizer, max_len, device, batch_size, autocast):
        self.tokenizer, self.batch_size, self.autocast, self.model, self.name = tokenizer, batch_size, autocast, None, "toy"
        if run:
            facts = cli.read_args(run)
            if facts["script"] != "rlhf/train_reward.py":
                raise ValueError(f"{run} is a run of {facts['script']}, not a reward model's, which is one of rlhf/train_reward.py")
            self.model, self.labels = ScalarGPT.from_pretrained(run).to(device).eval(), facts["args"]["data"] == "imdb"
            self.name = fingerprint(self.model)
            cli.check_fits(self.model, tokenizer, max_len, run)

    def __call__(self, texts):
        if self.model is None:
            return np.array([toy.reward(data.decode(self.tokenizer, t)) for t in texts])
        values = scores(self.model, texts, self.batch_size, self.autocast)
        return 1 / (1 + np.exp(-values)) if self.labels else values

@torch.no_grad()
def scores(model, texts, batch_size, autocast):
    """A ScalarGPT's verdict on token lists, (n,): the scalar at the last token."""
    device, order, out = next(model.parameters()).device, sorted(range(len(texts)), key=lambda i: len(texts[i])), np.zeros(len(texts))
    for at in range(0, len(order), batch_size):
        part = order[at:at + batch_size]
        idx = torch.nn.utils.rnn.pad_sequence([torch.tensor(texts[i]) for i in part], batch_first=True).to(device)    # (B, T)
        ends = torch.tensor([[len(texts[i]) - 1] for i in part], device=device)                                       # (B, 1)
        with autocast:
            out[part] = model(idx).float().gather(1, ends).squeeze(1).cpu().numpy()
    return out
