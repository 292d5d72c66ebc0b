"""
What samples are ranked and measured by, where data has no preferences of its own: the toy world's exact reward, or a reward model, which is
a run of rlhf/train_reward.py. Pairs are sampled and ranked in data.py.

Read next: train_pref.py
"""
import numpy as np
import torch

from support import cli, rundir
import data
import toy
from model import ScalarGPT, fingerprint

class Reward:
    """
    Token lists (prompt and completion) -> (n,): the toy world's exact P(positive), or what a run of rlhf.train_reward says: P(positive)
    too if it has learned IMDB's labels, else its scalar, in nats. name: a fingerprint of it. Raises ValueError for another run.
    """
    def __init__(self, run, tokenizer, max_len, device, batch_size, autocast):
        self.tokenizer, self.batch_size, self.autocast, self.model, self.name = tokenizer, batch_size, autocast, None, "toy"
        if run:
            facts = rundir.read_args(run)
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

def load_rewards(name, ranked, gold, tokenizer, max_len, device, batch_size, autocast):
    """
    {"reward", "proxy", "gold": a Reward} of a data set, as far as there is one.

    name    of the data set. The toy world has an exact reward, so the learned one is called proxy there.
    ranked  the reward model that the runs' pairs were ranked by, or None
    gold    another reward model, or None
    """
    load = lambda place: Reward(place, tokenizer, max_len, device, batch_size, autocast)
    rewards = {"reward": load(None)} if name == "toy" else {}    # None: the exact one
    if ranked:
        rewards["proxy" if name == "toy" else "reward"] = load(ranked)
    if gold:
        rewards["gold"] = load(gold)
    if len({r.name for r in rewards.values()}) < len(rewards):
        raise ValueError(f"--gold {gold} is the reward model that the run was trained on: it would only agree with itself")
    return rewards

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
