"""
The measures of a policy: functions of its samples, of their rewards, and of its next-token distributions.

A measure is an array with one number for each prompt. Its interval is found by resampling prompts (`bootstrap`).
This file has no command and writes nothing. docs/metrics.md explains the measures. Read next: displacement.py
"""
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch

import data
import sampling
import toy
from logps import batch_logps
from loop import to_device

@dataclass
class HeldOut:
    """The held-out data of an evaluation: n prompts, and what is known about them."""
    tokenizer: object
    prompts: list          # n token lists
    labels: list           # n bools, True for the prompt of a positive review; or None
    pairs: list            # rows of held-out pairs, for the accuracy; or None
    rewards: dict          # name -> function of N token lists that returns an array (N,)
    max_new_tokens: int    # tokens of a completion at most
    chosen: list = None    # the data set's own answers, n token lists, or None where it has only bad ones; or None
    toy: bool = False      # whether the texts are the toy world's: only then is `whole` measured

@dataclass
class Measured:
    """What one policy at one temperature is measured by: k completions of each of n prompts."""
    values: dict     # measure -> (n,), a number for each prompt
    curves: dict     # kl, entropy, logratio -> the mean at each position of a completion
    answers: list    # n lists of k token lists
    rewards: dict    # name -> (n, k)

# ---------------------------------------------------------------------------------------------------------------------
# Statistics

def bootstrap(values, n=2000, seed=0):
    """
    [mean, low, high] of values (prompts,): the mean, and its 95% percentile bootstrap interval.

    Row i of default_rng(seed).integers(0, prompts, (n, prompts)) are the prompts of resample i, drawn with replacement.
    low and high are the 2.5% and 97.5% percentiles of the resamples' means.
    """
    values = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), (n, len(values)))    # (n, prompts)
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return [float(values.mean()), float(low), float(high)]

def wilson(k, n, z=1.96):
    """[share, low, high]: the share k / n and its interval (Wilson 1927), 95% for z = 1.96. [NaN, 0, 1] if n is 0."""
    if not n:
        return [float("nan"), 0.0, 1.0]
    p, d = k / n, 1 + z * z / n
    half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return [p, (p + z * z / (2 * n) - half) / d, (p + z * z / (2 * n) + half) / d]

def ties_half(gap):
    """1 where a gap is positive, 0.5 where it is 0, 0 where it is negative. Arrays give arrays, tensors tensors."""
    return (gap > 0) + 0.5 * (gap == 0)

def ranks(values):
    """The ranks of an array (N,), from 0 on. Equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[place]    # the last rank of each value, less half of its group

def rank_correlation(x, y):
    """Spearman's rank correlation of x and y, (N,): 1 if y always rises with x, -1 if it always falls; or NaN."""
    if len(x) < 2 or np.isnan(y).any():
        return math.nan
    with np.errstate(invalid="ignore"):    # a constant x or y divides 0 by 0, which gives NaN
        return float(np.corrcoef(ranks(np.asarray(x)), ranks(np.asarray(y)))[0, 1])

def cluster_correlation(xs, ys, n=1000, seed=0):
    """
    [r, low, high]: Pearson's correlation of two lists of arrays that belong together, over all numbers, and its 95%
    bootstrap interval over arrays, whose numbers depend on each other. None if x or y is constant.
    """
    parts = np.array([[len(x), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()] for x, y in zip(xs, ys)])
    picks = np.random.default_rng(seed).integers(0, len(parts), (n, len(parts)))
    totals = np.concatenate([parts.sum(0)[None], parts[picks].sum(1)])    # (1 + n, 6): all arrays, then each resample
    count, x, y, xx, yy, xy = totals.T
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (count * xy - x * y) / np.sqrt((count * xx - x * x) * (count * yy - y * y))
    return None if np.isnan(r).any() else [float(r[0]), *np.percentile(r[1:], [2.5, 97.5]).tolist()]

# ---------------------------------------------------------------------------------------------------------------------
# Rewards

def wins(rewards, others):
    """
    The win rate P(r > r') for each prompt, (n,), over all pairs of samples. Ties count half.
    rewards: (n, k) of one policy's samples; others: (n, k') of another policy's samples for the same prompts.
    """
    gap = rewards[:, :, None] - others[:, None, :]    # (n, k, k')
    return ties_half(gap).mean((1, 2))

def best_of(rewards):
    """
    {n: (prompts,)} for n = 1, 2, 4, ... up to N: the expected reward of the best of n samples. rewards: (prompts, N).

    It is the exact mean over all choices of n out of N samples. The maximum of the first n would be noisier.
    """
    ordered, total = np.sort(rewards, 1), rewards.shape[1]
    found, n = {}, 1
    while n <= total:
        # The i-th smallest is the largest of a choice if the other n - 1 are among the i smaller ones
        shares = np.array([math.comb(i, n - 1) / math.comb(total, n) for i in range(total)])    # (N,)
        found[n] = ordered @ shares
        n *= 2
    return found

# ---------------------------------------------------------------------------------------------------------------------
# Texts

def pooled_entropy(samples):
    """Entropy in nats of the pooled tokens of several completions, from their frequencies. 0 if there are none."""
    counts = np.array(list(Counter(t for tokens in samples for t in tokens).values()), dtype=float)
    p = counts / counts.sum()
    return -(p * np.log(p)).sum()

def distinct(completions, n, budget=500):
    """
    The share of different n-grams in each piece of `budget` tokens: (pieces,), empty if there are fewer tokens.

    Longer texts repeat more, so policies are compared at an equal number of tokens. An n-gram does not span two
    completions. A completion that does not fit into the rest of the piece is cut, and its rest is dropped.
    """
    shares, grams, room = [], [], budget
    for tokens in completions:
        tokens = tokens[:room]
        grams += [tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1)]
        room -= len(tokens)
        if room == 0:
            if grams:
                shares.append(len(set(grams)) / len(grams))
            grams, room = [], budget
    return np.array(shares)

def whole_share(prompt, completion):
    """
    The share of a completion's sentences that the toy grammar can make, 0 to 1. prompt, completion: texts.

    A prompt may end within a sentence, which the completion ends. Its earlier sentences do not count.
    """
    begun = prompt.rpartition(".")[2]
    return toy.whole_sentences(begun + completion)

def whole(answers, held):
    """whole_share for each prompt, (n,): the mean over its k completions. answers: n lists of k token lists."""
    shares = []
    for prompt, several in zip(held.prompts, answers):
        text = data.decode(held.tokenizer, prompt)
        shares.append(np.mean([whole_share(text, data.decode(held.tokenizer, a)) for a in several]))
    return np.array(shares)

def text_measures(answers, rewards, held):
    """
    {measure: (n,)} of all measures that need completions and rewards only. distinct_1 and distinct_2 are (pieces,).

    answers  n lists of k token lists
    rewards  {name: (n, k)}
    """
    eot, k = held.tokenizer.eot_token, len(answers[0])
    ends = np.array([[a[-1] == eot for a in several] for several in answers], dtype=float)    # (n, k)
    plain = [[[t for t in a if t != eot] for a in several] for several in answers]            # without EOS
    out = {"length": np.array([[len(a) for a in several] for several in answers]).mean(1), "eos": ends.mean(1)}
    if held.toy:
        out["whole"] = whole(answers, held)
    for j in (4, 25):
        if j <= k:
            out[f"pooled_{j}"] = np.array([pooled_entropy(several[:j]) for several in plain])
    # The first samples of all prompts, then the second ones: neighbors belong to different prompts
    by_sample = [several[j] for j in range(k) for several in plain]
    for n in (1, 2):
        shares = distinct(by_sample, n)
        if len(shares):
            out[f"distinct_{n}"] = shares
    for name, values in rewards.items():
        out[name] = values.mean(1)
        for side, label in (("positive", True), ("negative", False)):
            if held.labels and label in held.labels:
                out[f"{name}_{side}"] = out[name][np.array(held.labels) == label]
    return out

# ---------------------------------------------------------------------------------------------------------------------
# Distributions

def entropy(log_p):
    """The entropy of distributions over the vocabulary: log-probs (M, V) -> (M,) nats."""
    return -(log_p.exp() * log_p).sum(-1)

def kl(log_p, log_q):
    """KL(p || q) of distributions over the vocabulary: log-probs (M, V) of each -> (M,) nats. Never negative."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)

def k1(logratios):
    """
    The log-ratio itself: unbiased, but negative on many samples, so its variance is high. logratios: any shape.

    k1, k2 and k3 estimate KL(p || q) from samples y of p: Schulman, joschu.net/blog/kl-approx.html, in its names.

        l = log p(y) - log q(y)         logratios
        k1 = l,   k2 = l^2 / 2,   k3 = exp(-l) - 1 + l        (the page has r = q(y) / p(y) = exp(-l))

    The mean estimates the value of the KL. Its gradient is another question, since p draws the samples. What each of
    them gives where it is subtracted from the reward, or is differentiated in the loss:

        value           in the reward, score * grad log p              in the loss, grad of the estimate
        k1 unbiased     grad KL(p || q), the right one                 0: only noise
        k2 biased       another one                                    grad KL(p || q), the right one
        k3 unbiased     grad KL(p || q) - grad KL(q || p)              grad KL(q || p), the other direction
    """
    return logratios

def k2(logratios):
    """Half the squared log-ratio: biased, never negative, low variance where p and q are close. See k1."""
    return logratios ** 2 / 2

def k3(logratios):
    """
    Unbiased and never negative. See k1.

    It is exp(-l) - 1 + l, where exp(-l) is q / p. With the ratio inverted, exp(l) - 1 - l is never negative either, but
    its mean is not the KL. The mean of exp(-l) - 1 is 0 on samples of p only.
    """
    return torch.expm1(-logratios) + logratios    # expm1(x) is exp(x) - 1 without its rounding at small x

KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}

@torch.no_grad()
def token_measures(model, reference, batch, device, temperature=1.0):
    """
    {measure: (N, T - 1)} for every token of the completions in a batch, 0 elsewhere.

        entropy   of the model's next-token distribution at the temperature, nats
        kl        of that distribution to the reference's, at temperature 1, nats
        logratio  log pi(token) - log pi_ref(token) of the token that was drawn

    reference  a context manager that gives the reference; or None, and then only the entropy is measured
    """
    idx = batch["idx"].to(device)                                                      # (N, T)
    mask = batch["completion_mask"].to(device)[:, 1:]    # (N, T - 1): logits[:, t] predicts idx[:, t + 1]
    targets = idx[:, 1:][mask]                                                         # (M,)
    states = model.features(idx)[:, :-1][mask]                                         # (M, C)
    with reference as other:
        if other is not None:
            others, head = other.features(idx)[:, :-1][mask], other.lm_head            # (M, C)
    out = defaultdict(list)    # measure -> its values, in pieces
    for at in range(0, len(states), 2048):    # (M, V) of a whole batch would be gigabytes at 50,257 tokens
        part = slice(at, at + 2048)
        # Temperature 0 puts all mass on one token. Dividing by 1e-6 does that in float32
        log_p = (model.lm_head(states[part]).float() / max(temperature, 1e-6)).log_softmax(-1)    # (<= 2048, V)
        out["entropy"].append(entropy(log_p))
        if other is not None:
            log_q = head(others[part]).float().log_softmax(-1)                                    # (<= 2048, V)
            out["kl"].append(kl(log_p, log_q))
            drawn = targets[part, None]                                                           # (<= 2048, 1)
            out["logratio"].append((log_p.gather(1, drawn) - log_q.gather(1, drawn)).squeeze(1))
    zeros = torch.zeros(mask.shape, device=device)                                                # (N, T - 1)
    return {key: zeros.masked_scatter(mask, torch.cat(pieces)).cpu().numpy() for key, pieces in out.items()}

def model_measures(model, reference, answers, held, temperature, batch_size, autocast):
    """
    Two dicts: {measure: (n,)} and {measure: mean at each position of a completion}.

        kl, logratio, completion_entropy   sums over a completion, nats, then means over a prompt's k completions
        entropy                            means over a completion's tokens, nats, then means over the k completions

    answers    n lists of k token lists, drawn at the temperature
    reference  a function that returns a context manager, which gives the reference or None
    """
    device, k = next(model.parameters()).device, len(answers[0])
    rows = []
    for prompt, several in zip(held.prompts, answers):
        for a in several:
            rows.append({"prompt": prompt, "chosen": a, "at": len(rows)})    # at: batches are in another order
    lengths = np.array([len(r["chosen"]) for r in rows])              # (n * k,)
    sums = defaultdict(lambda: np.zeros(len(rows)))                   # measure -> sum over each completion
    curves = defaultdict(lambda: np.zeros(held.max_new_tokens))       # measure -> sum at each position
    for group in data.Batches(rows, batch_size).groups():
        with autocast:
            tokens = token_measures(model, reference(), data.collate(group), device, temperature)
        for i, row in enumerate(group):
            # position len(prompt) - 1 predicts the completion's first token
            first, length = len(row["prompt"]) - 1, len(row["chosen"])
            for key, values in tokens.items():
                values = values[i, first:first + length]
                sums[key][row["at"]] = values.sum()
                curves[key][:length] += values
    sums |= {"completion_entropy": sums["entropy"], "entropy": sums["entropy"] / lengths}
    reached = np.array([(lengths > t).sum() for t in range(held.max_new_tokens)])    # completions with a token at t
    enough = reached >= max(1, len(rows) // 20)    # a mean over two or three completions would be noise
    means = {key: v.reshape(-1, k).mean(1) for key, v in sums.items()}
    return means, {key: v[enough] / reached[enough] for key, v in curves.items()}

@torch.no_grad()
def pair_measures(policy, reference, rows, batch_size, autocast):
    """
    {accuracy, margin} on held-out pairs, (pairs,) each. margin is the log-ratio of chosen minus that of rejected, nats.
    accuracy is 1 where the margin is positive, 0.5 for a tie, else 0. reference: as for model_measures.
    """
    device, margins = next(policy.parameters()).device, np.zeros(len(rows))
    batches = data.Batches([row | {"at": at} for at, row in enumerate(rows)], batch_size)
    for group in batches.groups():
        batch = to_device(data.collate(group), device)
        with autocast:
            logps = batch_logps(policy, batch)[0]    # (2B,), chosen on top of rejected
            with reference() as other:
                chosen, rejected = (logps - batch_logps(other, batch)[0]).chunk(2)    # (B,) log-ratios
        margins[[row["at"] for row in group]] = (chosen - rejected).cpu()
    margins = margins[np.argsort(batches.lengths, kind="stable")]    # shortest first, for the bootstrap's resamples
    return {"accuracy": ties_half(margins), "margin": margins}

# ---------------------------------------------------------------------------------------------------------------------
# All measures of a policy

def sample(model, held, k, temperature, seed, batch_size, autocast):
    """Draws k completions of each prompt: (n lists of k token lists, {name of a reward: (n, k)})."""
    prompts = [p for p in held.prompts for _ in range(k)]
    with autocast:
        flat = sampling.sample_completions(model, held.tokenizer, prompts, held.max_new_tokens,
                                           temperature=temperature, seed=seed, batch_size=batch_size)
    rewards = {}
    for name, reward in held.rewards.items():
        rewards[name] = reward([p + a for p, a in zip(prompts, flat)]).reshape(-1, k)
    return data.pieces(flat, k), rewards

def measure(model, reference, held, temperature, k, seed, batch_size, autocast):
    """The Measured of k samples of each prompt at a temperature. reference: as for model_measures."""
    # Generation keeps no graph for a gradient, so its batches can be larger
    answers, rewards = sample(model, held, k, temperature, seed, max(256, batch_size), autocast)
    values, curves = model_measures(model, reference, answers, held, temperature, batch_size, autocast)
    return Measured(values | text_measures(answers, rewards, held), curves, answers, rewards)

def won(measured, other):
    """{"win", "gold_win", ...: (n,)}: wins of a Measured against another one, by each reward."""
    found = {}
    for key, r in measured.rewards.items():
        found["win" if key == "reward" else f"{key}_win"] = wins(r, other.rewards[key])
    return found

def intervals(values):
    """{measure: [mean, low, high]} of {measure: (n,)}."""
    return {key: bootstrap(v) for key, v in values.items()}

def compared(found, others, on_pairs):
    """
    found, {"before", "after": Measured}, with wins against the reference and the measures on pairs as further values.

    others    rewards (n, k) of another run's samples, for wins against it; or None
    on_pairs  the policy's pair_measures, or {}. The reference against itself has only ties
    """
    out = {}
    for name in found:
        more = won(found[name], found["before"]) if "before" in found else {}
        if others is not None:
            more["win_other"] = wins(found[name].rewards["reward"], others)
        if on_pairs:
            n = len(on_pairs["margin"])
            ties = {"accuracy": np.full(n, 0.5), "margin": np.zeros(n)}
            more |= ties if name == "before" else on_pairs
        out[name] = replace(found[name], values=found[name].values | more)
    return out

def best_of_rows(rewards):
    """Rows of best-of-n for n = 1, 2, 4, ...: n, a bound of the KL in nats, and the reward. rewards: (prompts, N)."""
    return [{"n": n, "kl": math.log(n) - (n - 1) / n, "reward": bootstrap(v)} for n, v in best_of(rewards).items()]

# ---------------------------------------------------------------------------------------------------------------------
# Notes on runs whose numbers mean little

def notes(*, val_loss=None, n_vocab=None, entropy=None, pairs=None, accuracy=None, same=None, whole=None):
    """
    Sentences about a run whose numbers mean little, from the facts that are given. val_loss and entropy need n_vocab.
    Each sentence says what its fact is; same and whole are shares from 0 to 1.
    """
    found = []
    uniform = f"about that of guessing among {n_vocab:,} tokens ({math.log(n_vocab):.2f})" if n_vocab else ""
    if val_loss is not None and not val_loss < 0.98 * math.log(n_vocab):
        found.append(f"the best validation loss, {val_loss:.2f} nats per token, is {uniform}: nothing was learned; "
                     "train longer or with another --lr")
    if entropy is not None and not entropy < 0.98 * math.log(n_vocab):
        found.append(f"the entropy of the samples, {entropy:.2f} nats per token, is {uniform}: the policy cannot "
                     "write yet; train SFT longer before preferences")
    if pairs and pairs < 32:
        found.append(f"{pairs} validation pair{'s are' if pairs > 1 else ' is'} too few: the choice of the best step "
                     "and the accuracy are mostly chance; use at least 32")
    if accuracy is not None and same is not None and accuracy >= 0.95 and same >= 0.95:
        found.append(f"the accuracy is {accuracy:.3f}, but {same:.0%} of the samples equal the reference's word for "
                     "word: the policy has hardly changed; train longer or with a higher --lr")
    if whole is not None and whole < 0.5:
        found.append(f"only {whole:.0%} of the sampled sentences are whole sentences of the toy grammar, and the "
                     "reward counts no others: the policy is broken; train SFT longer, or train on preferences with a "
                     "lower --lr or a larger --beta")
    return found

def notes_on(result, n_vocab, may_end=True):
    """
    The notes on an evaluation. result: what eval.json holds.
    may_end: whether samples had room to end. If not, cut sentences say nothing about the policy.
    """
    samples, after = result["samples"], result["measures"]["after"]
    same = np.mean([s["before"] == s["after"] for s in samples]) if "before" in samples[0] else None
    return notes(entropy=after["entropy"][0], n_vocab=n_vocab, pairs=result["pairs"], same=same,
                 accuracy=after["accuracy"][0] if "accuracy" in after else None,
                 whole=after["whole"][0] if "whole" in after and may_end else None)
