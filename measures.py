"""
What is measured of a policy: functions of its samples, their rewards, and its distributions. Every measure is an array with a number a
prompt, so that its interval can be had by drawing prompts again.

Read next: eval.py, where each measure is explained
"""
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

import data
import sampling
import toy
from logps import sequence_logps

@dataclass
class HeldOut:
    """What is measured on: prompts as token lists, their labels (or None), pairs (or None), rewards by name: token lists -> (n,)."""
    tokenizer: object
    prompts: list
    labels: list
    pairs: list
    rewards: dict
    max_new_tokens: int
    chosen: list = None    # the data's own answers, token lists

@dataclass
class Measured:
    """values: {measure: (n,) a number a prompt}; curves: {kl, entropy, ...: means at each token of a completion}; answers: n lists of k
    token lists; rewards: {name: (n, k)}."""
    values: dict
    curves: dict
    answers: list
    rewards: dict

def bootstrap(values, n=2000, seed=0):
    """[mean, low, high]: the 95% percentile interval of the mean over resampled prompts."""
    values = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), (n, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return [float(values.mean()), float(low), float(high)]

def notes(*, val_loss=None, n_vocab=None, entropy=None, pairs=None, accuracy=None, same=None, whole=None):
    """
    Sentences about a run whose numbers mean little, by what is known of it.

    val_loss  SFT's best, nats a token            pairs  how many chose the best weights
    entropy   of own samples, nats a token        same   the share of samples that are the reference's, word for word
    whole     the share of sentences that the toy grammar can make
    """
    found = []
    if val_loss is not None and not val_loss < 0.98 * math.log(n_vocab):
        found.append(f"the best validation loss, {val_loss:.2f} nats a token, is about that of guessing among {n_vocab:,} tokens "
                     f"({math.log(n_vocab):.2f}): nothing was learned, so train longer or with another --lr")
    if entropy is not None and not entropy < 0.98 * math.log(n_vocab):
        found.append(f"the entropy of the samples, {entropy:.2f} nats a token, is about that of guessing among {n_vocab:,} tokens "
                     f"({math.log(n_vocab):.2f}): the policy cannot write yet, so train SFT longer before preferences")
    if pairs and pairs < 32:
        found.append(f"{pairs} validation pair{'s are' if pairs > 1 else ' is'} too few: which step was best, and the accuracy, are mostly "
                     "chance; have 32 at least")
    if accuracy is not None and same is not None and accuracy >= 0.95 and same >= 0.95:
        found.append(f"the accuracy is {accuracy:.3f}, yet {same:.0%} of the samples are the reference's, word for word: the policy has "
                     "hardly moved, so train longer or with a higher --lr")
    if whole is not None and whole < 0.5:
        found.append(f"only {whole:.0%} of the sampled sentences are whole ones of the toy grammar, and the reward counts no others: the "
                     "policy is broken, so train SFT longer, or preferences with a lower --lr or a larger --beta")
    return found

def notes_on(result, n_vocab, toy_texts):
    """The notes on what eval.json holds; toy_texts: whether its samples are of the toy world, and were given room to end."""
    samples, after = result["samples"], result["measures"]["after"]
    return notes(
        entropy=after["entropy"][0], n_vocab=n_vocab, pairs=result["pairs"], accuracy=after.get("accuracy", [None])[0],
        same=np.mean([s["before"] == s["after"] for s in samples]) if "before" in samples[0] else None,
        # from the sentence on that the policy has a part in
        whole=np.mean([toy.whole_sentences(s["prompt"].rpartition(".")[2] + s["after"]) for s in samples]) if toy_texts else None)

# ---------------------------------------------------------------------------------------------------------------------
# samples, and what can be read off them

def sample(model, held, k, temperature, seed, batch_size, autocast):
    """k completions of each prompt: (n lists of k token lists, their rewards {name: (n, k)})."""
    prompts = [p for p in held.prompts for _ in range(k)]
    with autocast:
        flat = sampling.sample_completions(model, held.tokenizer, prompts, held.max_new_tokens, temperature=temperature, seed=seed,
                                       batch_size=batch_size)
    rewards = {name: reward([p + a for p, a in zip(prompts, flat)]).reshape(-1, k) for name, reward in held.rewards.items()}
    return [flat[at:at + k] for at in range(0, len(flat), k)], rewards

def ties_half(gap):
    """1 where the gap is for the first, 0 where it is not, and half for a tie; of arrays and tensors."""
    return (gap > 0) + 0.5 * (gap == 0)

def wins(rewards, others):
    """P(r > r') for two samples of the same prompt, ties half, (n,), over all pairs of (n, k) and (n, k') rewards."""
    gap = rewards[:, :, None] - others[:, None, :]    # (n, k, k')
    return ties_half(gap).mean((1, 2))

def best_of(rewards):
    """{n: (prompts,)}, n = 1, 2, 4, ...: expected reward of the best of n samples, from (prompts, N) rewards: the mean over all choices."""
    ordered, total = np.sort(rewards, 1), rewards.shape[1]
    # of all choices of n, this share has the i-th smallest as its largest
    share = lambda n: np.array([math.comb(i, n - 1) / math.comb(total, n) for i in range(total)])
    return {n: ordered @ share(n) for n in (2**j for j in range(total.bit_length()))}

def ranks(values):
    """Ranks from 0 on, ties share their mean."""
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])

def rank_correlation(x, y):
    """Spearman's rank correlation: 1 if y rises with x throughout, -1 if it falls; NaN if some of them were not measured."""
    if len(x) < 2 or np.isnan(y).any():
        return math.nan
    with np.errstate(invalid="ignore"):    # NaN if one of them is the same throughout
        return float(np.corrcoef(ranks(np.asarray(x)), ranks(np.asarray(y)))[0, 1])

def pooled_entropy(samples):
    """Entropy in nats of the tokens of some completions thrown together, from their counts."""
    counts = np.array(list(Counter(t for tokens in samples for t in tokens).values()), dtype=float)
    p = counts / counts.sum()
    return -(p * np.log(p)).sum()

def distinct(completions, n, budget=500):
    """Share of different n-grams in each run of `budget` tokens: (pieces,), none if there are too few. N-grams end with a completion."""
    shares, grams, room = [], [], budget
    for tokens in completions:
        tokens = tokens[:room]
        grams, room = grams + list(zip(*(tokens[i:] for i in range(n)))), room - len(tokens)
        if room == 0:
            shares += [len(set(grams)) / len(grams)] if grams else []
            grams, room = [], budget
    return np.array(shares)

def text_measures(answers, rewards, held):
    """What can be read off completions and rewards alone, (n,) each; distinct: (pieces,) each."""
    eot, k = held.tokenizer.eot_token, len(answers[0])
    ends = np.array([[a[-1] == eot for a in several] for several in answers], dtype=float)    # (n, k)
    plain = [[[t for t in a if t != eot] for a in several] for several in answers]
    out = {"length": np.array([[len(a) for a in several] for several in answers]).mean(1), "eos": ends.mean(1)}
    out |= {f"pooled_{j}": np.array([pooled_entropy(several[:j]) for several in plain]) for j in (4, 25) if j <= k}
    for n in (1, 2):
        if len(shares := distinct([several[j] for j in range(k) for several in plain], n)):
            out[f"distinct_{n}"] = shares
    for name, values in rewards.items():
        out[name] = values.mean(1)
        for side, label in (("positive", True), ("negative", False)):
            if held.labels and label in held.labels:
                out[f"{name}_{side}"] = out[name][np.array(held.labels) == label]
    return out

# ---------------------------------------------------------------------------------------------------------------------
# what the distributions say

@torch.no_grad()
def token_measures(model, reference, batch, device, temperature=1.0):
    """
    Per token of the completions in a batch, (N, T - 1) each and 0 elsewhere: entropy of the model at a temperature, KL to the
    reference at 1 (a context manager that gives it, or None), and the log-ratio of the token that was drawn.
    """
    idx, mask = batch["idx"].to(device), batch["completion_mask"].to(device)[:, 1:]    # logits[:, t] predicts idx[:, t + 1]
    targets, out = idx[:, 1:][mask], {"entropy": []}                                   # (M,)
    states = model.features(idx)[:, :-1][mask]                                         # (M, C)
    if reference is not None:
        with reference as other:
            others, head = other.features(idx)[:, :-1][mask], other.lm_head            # (M, C)
    for at in range(0, len(states), 2048):    # in pieces: (M, V) of a whole batch would be gigabytes at 50,257 tokens
        part = slice(at, at + 2048)
        # at temperature 0 all the mass is on one token: 1e-6 does that in float32
        log_p = (model.lm_head(states[part]).float() / max(temperature, 1e-6)).log_softmax(-1)    # (<= 2048, V)
        out["entropy"].append(-(log_p.exp() * log_p).sum(-1))
        if reference is not None:
            difference = log_p - head(others[part]).float().log_softmax(-1)
            out.setdefault("kl", []).append((log_p.exp() * difference).sum(-1))
            out.setdefault("logratio", []).append(difference.gather(1, targets[part, None]).squeeze(1))
    return {k: torch.zeros(mask.shape, device=device).masked_scatter(mask, torch.cat(v)).cpu().numpy() for k, v in out.items()}

def model_measures(model, reference, answers, held, temperature, batch_size, autocast):
    """
    (kl, logratio, entropy: (n,) each; their means at each position of a completion). reference() is a context manager that
    gives the model for the KL, or None.
    """
    device, k = next(model.parameters()).device, len(answers[0])
    rows = [{"prompt": p, "chosen": a} for p, several in zip(held.prompts, answers) for a in several]
    lengths, sums, curves = np.array([len(r["chosen"]) for r in rows]), {}, {}
    for at, row in enumerate(rows):
        row["at"] = at
    for group in data.Batches(rows, batch_size).groups():
        with autocast:
            tokens = token_measures(model, reference(), data.collate(group), device, temperature)
        for i, row in enumerate(group):
            first, length = len(row["prompt"]) - 1, len(row["chosen"])
            for key, values in tokens.items():
                values = values[i, first:first + length]
                sums.setdefault(key, np.zeros(len(rows)))[row["at"]] = values.sum()
                curves.setdefault(key, np.zeros(held.max_new_tokens))[:length] += values
    sums |= {"completion_entropy": sums["entropy"], "entropy": sums["entropy"] / lengths}
    reached = np.array([(lengths > t).sum() for t in range(held.max_new_tokens)])    # completions that have a token there
    enough = reached >= max(1, len(rows) // 20)                                      # a mean over two or three would be noise
    return {key: v.reshape(-1, k).mean(1) for key, v in sums.items()}, {key: v[enough] / reached[enough] for key, v in curves.items()}

@torch.no_grad()
def pair_measures(policy, reference, rows, batch_size, autocast):
    """accuracy (ties half) and margin (nats) of the log-ratios on held-out pairs, (n,) each. reference: as for model_measures."""
    device, margins = next(policy.parameters()).device, []
    for batch in data.Batches(rows, batch_size):
        idx, mask = batch["idx"].to(device), batch["completion_mask"].to(device)
        with autocast:
            logps = sequence_logps(policy, idx, mask)[0]    # (2B,)
            with reference() as other:
                chosen, rejected = (logps - sequence_logps(other, idx, mask)[0]).chunk(2)    # (B,) log-ratios
        margins += (chosen - rejected).tolist()
    margins = np.array(margins)
    return {"accuracy": ties_half(margins), "margin": margins}

def measure(model, reference, held, temperature, k, seed, batch_size, autocast):
    """The Measured of k samples a prompt at a temperature. reference: as for model_measures."""
    answers, rewards = sample(model, held, k, temperature, seed, max(256, batch_size), autocast)
    values, curves = model_measures(model, reference, answers, held, temperature, batch_size, autocast)
    return Measured(values | text_measures(answers, rewards, held), curves, answers, rewards)

def wilson(k, n, z=1.96):
    """[share, low, high]: Wilson's 95% interval of k out of n (Wilson 1927)."""
    if not n:
        return [float("nan"), 0.0, 1.0]
    p, d = k / n, 1 + z * z / n
    half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return [p, (p + z * z / (2 * n) - half) / d, (p + z * z / (2 * n) + half) / d]
