"""
The reward that ranks and measures samples: exact on the toy world, a reward model on other data.

    reward = Reward(None, tokenizer, max_len, device, batch_size, autocast)                # toy.reward
    reward = Reward("out/imdb/reward", tokenizer, max_len, device, batch_size, autocast)   # a run of rlhf.train_reward
    rewards = reward([prompt + completion for ...])                                        # token lists -> (n,)

sampling.py ranks samples by it, eval.py and rlhf/train_ppo.py measure policies with it. See docs/rlhf.md.
Read first: toy.py, sampling.py. Read next: rlhf/train_reward.py
"""
import math

import numpy as np
import torch

import data
import toy
from model import ScalarGPT, fingerprint
from support import cli, rundir

def sigmoid(x):
    """The probability that belongs to log-odds x in nats, an array of any shape."""
    return 1 / (1 + np.exp(-x))

class Reward:
    """
    A function from n token lists, prompt and completion together, to their rewards, an array (n,).

        no run                           P(positive | text) of the toy world, exact
        a reward model, IMDB's labels    P(positive | text), as the model estimates it: the sigmoid of its scalar
        a reward model, pairs            the scalar, in nats: only differences for one prompt count

    name: a fingerprint of the reward. Raises ValueError unless `run` is a reward model that fits tokenizer and max_len.
    """
    def __init__(self, run, tokenizer, max_len, device, batch_size, autocast):
        self.tokenizer, self.batch_size, self.autocast = tokenizer, batch_size, autocast
        self.model, self.name = None, "toy"
        if run:
            facts = rundir.read_args(run)
            if facts["script"] != "rlhf/train_reward.py":
                raise ValueError(f"{run} is a run of {facts['script']}, not a reward model's: expected a run of "
                                 "rlhf/train_reward.py")
            self.model = ScalarGPT.from_pretrained(run).to(device).eval()
            self.labels = facts["args"]["data"] == "imdb"    # whether it has learned labels, not pairs
            self.name = fingerprint(self.model)
            cli.check_fits(self.model, tokenizer, max_len, run)

    def __call__(self, texts):
        if self.model is None:
            return np.array([toy.reward(data.decode(self.tokenizer, tokens)) for tokens in texts])
        values = scores(self.model, texts, self.batch_size, self.autocast)
        return sigmoid(values) if self.labels else values

    def nats(self, reward):
        """A reward in nats: the log-odds of a probability, at most 27.6 either way; a scalar as it is."""
        if self.model is not None and not self.labels:
            return reward
        p = min(max(reward, 1e-12), 1 - 1e-12)
        return math.log(p / (1 - p))

def load_rewards(name, ranked, gold, tokenizer, max_len, device, batch_size, autocast):
    """
    {"reward", "proxy", "gold": a Reward} of a data set, as far as there is one. proxy: a learned one beside toy's exact
    one. ranked: the reward model that the runs' pairs were ranked by, or None; gold: another one, or None.
    """
    load = lambda run: Reward(run, tokenizer, max_len, device, batch_size, autocast)
    rewards = {"reward": load(None)} if name == "toy" else {}    # None: the exact one
    if ranked:
        rewards["proxy" if name == "toy" else "reward"] = load(ranked)
    if gold:
        rewards["gold"] = load(gold)
    if len({r.name for r in rewards.values()}) < len(rewards):
        raise ValueError(f"--gold {gold} is the reward model that the run was trained on: it would only agree with "
                         "itself")
    return rewards

@torch.no_grad()
def scores(model, texts, batch_size, autocast):
    """The scalars of a ScalarGPT for n token lists, an array (n,): at the last token, which sees all of the text."""
    device = next(model.parameters()).device
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))    # texts of similar length share a batch
    out = np.zeros(len(texts))
    for numbers in data.pieces(order, batch_size):
        idx, lens = data.pad([texts[i] for i in numbers])             # (B, T), (B,)
        ends = (lens - 1)[:, None].to(device)                         # (B, 1): the place of the last token
        with autocast:
            values = model(idx.to(device))                            # (B, T)
        out[numbers] = values.float().gather(1, ends).squeeze(1).cpu().numpy()
    return out
