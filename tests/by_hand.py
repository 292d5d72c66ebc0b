"""
A run recomputed by slow, plain code: every number of eval.json, of the printed tables and of log.csv.

test_by_hand.py compares runs with it. It calls nothing of eval.py, measures.py, train_pref.py, reward.py, logps.py or
losses.py, and takes no batch from data.py. It shares with the project the model's forward pass (on rows of one shape,
so without padding), the sampler, and the toy world's grammar and tokenizer.
"""
import csv
import itertools
import json
import math
import random
import re
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch

import sampling
import toy
from model import GPT, ScalarGPT

TOKENIZER = toy.encoding()
EOS = TOKENIZER.eot_token

def words(tokens):
    """The text of some tokens, without the EOS."""
    return TOKENIZER.decode([t for t in tokens if t != EOS])

def mean(values):
    return sum(values) / len(values)

# ---------------------------------------------------------------------------------------------------------------------
# models

@cache
def load(folder, kind=GPT):
    return kind.from_pretrained(folder).eval()

def alike(shapes):
    """Lists of indices that have the same shape, so that no row needs padding."""
    groups = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    return list(groups.values())

def log_probs(model, prompts, completions, temperature=1.0):
    """log pi(. | prompt, y<t) at every token of each completion: a list of (len(completion), V)."""
    out = [None] * len(prompts)
    for places in alike((len(p), len(c)) for p, c in zip(prompts, completions)):
        start = len(prompts[places[0]]) - 1    # logits[t] predicts token t + 1
        idx = torch.tensor([prompts[i] + completions[i] for i in places])
        logits = model(idx)[:, start:-1]
        for i, log_p in zip(places, (logits / temperature).log_softmax(-1)):
            out[i] = log_p
    return out

def logps(model, rows, side):
    """log pi(completion | prompt) of one side of every pair, a list of () in nats."""
    completions = [row[side] for row in rows]
    found = log_probs(model, [row["prompt"] for row in rows], completions)
    return [log_p[range(len(c)), c].sum() for log_p, c in zip(found, completions)]

@torch.no_grad()
def scalars(folder, texts, labels):
    """The outputs of a run of rlhf.train_reward at the last tokens of texts. labels: as probabilities."""
    model = load(folder, ScalarGPT)
    out = [None] * len(texts)
    for places in alike(map(len, texts)):
        values = model(torch.tensor([texts[i] for i in places]))[:, -1].tolist()
        for i, value in zip(places, values):
            out[i] = 1 / (1 + math.exp(-value)) if labels else value
    return out

# ---------------------------------------------------------------------------------------------------------------------
# statistics

@cache
def resampled(n):
    """2,000 times n indices below n, by NumPy's default generator with seed 0."""
    return np.random.default_rng(0).integers(0, n, (2000, n)).tolist()

def percentile(ordered, share):
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])

def interval(values):
    """[mean, low, high] of a list: the percentile bootstrap, 2.5% to 97.5% of the means of 2,000 resamples."""
    values = [float(v) for v in values]
    means = sorted(sum(map(values.__getitem__, places)) / len(values) for places in resampled(len(values)))
    return [mean(values), percentile(means, 0.025), percentile(means, 0.975)]

def beats(x, y):
    return 1.0 if x > y else 0.5 if x == y else 0.0

def win(mine, others):
    """P(r > r'), ties half, over all pairs of samples of one prompt."""
    return mean([beats(x, y) for x in mine for y in others])

def best_of(rewards, n):
    """The largest reward among n of the samples, in the mean over every choice of n."""
    return mean([max(chosen) for chosen in itertools.combinations(rewards, n)])

def pooled(completions):
    """The entropy, in nats, of all tokens of some completions together, EOS left out."""
    tokens = [t for c in completions for t in c if t != EOS]
    shares = [tokens.count(t) / len(tokens) for t in set(tokens)]
    return -sum(p * math.log(p) for p in shares)

def distinct(completions, n, budget=500):
    """Shares of distinct n-grams in each full block of 500 tokens. A completion at a block's end loses its rest."""
    shares, grams, used = [], [], 0
    for tokens in completions:
        tokens = tokens[:budget - used]
        grams += [tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1)]
        used += len(tokens)
        if used == budget:
            shares.append(len(set(grams)) / len(grams))
            grams, used = [], 0
    return shares

# ---------------------------------------------------------------------------------------------------------------------
# eval.json

def drawn(model, held, k, temperature):
    """k samples of each prompt, by the sampler that makes the run's."""
    prompts = repeated(held.prompts, k)
    flat = sampling.sample_completions(model, TOKENIZER, prompts, held.max_new_tokens, temperature=temperature, seed=0)
    return grouped(flat, k)

def repeated(prompts, k):
    """Every prompt k times, one copy after the other."""
    return [prompt for prompt in prompts for _ in range(k)]

def grouped(flat, k):
    """A list cut into lists of k."""
    return [flat[at:at + k] for at in range(0, len(flat), k)]

def judged(held, answers):
    """{reward: for each prompt a list of its samples' rewards}, of prompt and completion together."""
    k, flat = len(answers[0]), sum(answers, [])
    texts = [prompt + answer for prompt, answer in zip(repeated(held.prompts, k), flat)]
    return {name: grouped(fn(texts), k) for name, fn in held.rewards.items()}

@torch.no_grad()
def distributions(model, reference, prompts, completions, temperature):
    """
    (entropies, KLs, log-ratios) at every token, for each completion.

    The reference stays at temperature 1. At temperature 0 the model's whole probability is on the token taken.
    """
    mine = log_probs(model, prompts, completions, temperature or 1)
    theirs = log_probs(reference, prompts, completions)
    out = []
    for log_p, log_q, c in zip(mine, theirs, completions):
        taken = range(len(c)), c
        if temperature == 0:
            out.append(([0.0] * len(c), (-log_q[taken]).tolist(), (-log_q[taken]).tolist()))
        else:
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)    # over the whole vocabulary
            entropy = -(log_p.exp() * log_p).sum(-1)
            out.append((entropy.tolist(), kl.tolist(), (log_p - log_q)[taken].tolist()))
    return out

def measured(model, reference, held, answers, rewards, temperature):
    """{measure: a value for each prompt, or for distinct_1 and distinct_2 for each block of 500 tokens}."""
    out = {name: [] for name in ("kl", "logratio", "entropy", "completion_entropy", "length", "eos")}
    k, flat = len(answers[0]), sum(answers, [])
    all_found = grouped(distributions(model, reference, repeated(held.prompts, k), flat, temperature), k)
    for i, (several, found) in enumerate(zip(answers, all_found)):
        out["kl"].append(mean([sum(kl) for _, kl, _ in found]))
        out["logratio"].append(mean([sum(ratios) for _, _, ratios in found]))
        out["entropy"].append(mean([mean(h) for h, _, _ in found]))    # of a completion's tokens, then of completions
        out["completion_entropy"].append(mean([sum(h) for h, _, _ in found]))
        out["length"].append(mean([len(a) for a in several]))
        out["eos"].append(mean([a[-1] == EOS for a in several]))
        if held.toy:
            out.setdefault("whole", []).append(mean([whole(held.prompts[i], a) for a in several]))
    for j in (4, 25):
        if j <= k:
            out[f"pooled_{j}"] = [pooled(several[:j]) for several in answers]
    # the first samples of all prompts, then the second ones: neighbors are of different prompts
    in_order = []
    for j in range(k):
        in_order += [[t for t in several[j] if t != EOS] for several in answers]
    for n in (1, 2):
        if shares := distinct(in_order, n):
            out[f"distinct_{n}"] = shares
    for name, values in rewards.items():
        out[name] = [mean(several) for several in values]
        for side, label in (("positive", True), ("negative", False)):
            part = [v for v, is_positive in zip(out[name], held.labels or ()) if is_positive == label]
            if part:
                out[f"{name}_{side}"] = part
    return out

def phrases(*parts):
    """Every way of joining one word of each part by spaces."""
    return {" ".join(words) for words in itertools.product(*parts)}

@cache
def sentences():
    """Every sentence that the toy grammar can make, without its full stop."""
    frames = [frame.format(aspect) for frame in toy.FRAME for aspect in toy.ASPECT]
    adjectives = toy.GOOD + toy.BAD
    opinions = phrases(frames, adjectives) | phrases(frames, toy.HOW, adjectives)
    opinions |= phrases(frames, ["not"], adjectives) | phrases(frames, ["not"], toy.HOW, adjectives)
    return opinions | phrases(toy.WHO, toy.SAW, toy.WHAT, toy.WHERE) | phrases(toy.VERDICT, toy.GEM + toy.BORE)

def whole(prompt, completion):
    """The share of whole sentences in a completion. Its first sentence begins in the prompt."""
    text = words(prompt)
    *ended, rest = (text[text.rfind(".") + 1:] + words(completion)).split(".")
    right = [" ".join(sentence.split()) in sentences() for sentence in ended]
    right += [False] if rest.strip() else []    # it has no full stop
    return mean(right) if right else 0.0

def wins(rewards, others):
    """{win, gold_win, ...: a value for each prompt}."""
    label = lambda name: "win" if name == "reward" else f"{name}_win"
    return {label(name): [win(x, y) for x, y in zip(rewards[name], others[name])] for name in rewards}

@torch.no_grad()
def margins(policy, reference, pairs):
    """log-ratio of the chosen - log-ratio of the rejected, nats, for each pair, shortest first."""
    pairs = sorted(pairs, key=length)    # the order of the values decides what a resample holds
    w, l = (logps(policy, pairs, side) for side in ("chosen", "rejected"))
    ref_w, ref_l = (logps(reference, pairs, side) for side in ("chosen", "rejected"))
    return [((a - c) - (b - d)).item() for a, b, c, d in zip(w, l, ref_w, ref_l)]

def length(row):
    """The tokens of a pair's longer row."""
    return len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"]))

def intervals(values):
    return {name: interval(v) for name, v in values.items()}

def main_column(name, policy, reference, held, seen):
    """{measure: values} of a column of the main table. seen: {column: (answers, rewards)}, before and after."""
    model = {"before": reference, "after": policy}[name]
    values = measured(model, reference, held, *seen[name], held.temperatures[0])
    values |= wins(seen[name][1], seen["before"][1])
    if held.against:
        other = judged(held, drawn(load(held.against), held, held.n_samples, held.temperatures[0]))["reward"]
        values["win_other"] = [win(x, y) for x, y in zip(seen[name][1]["reward"], other)]
    if held.pairs:
        gaps = margins(policy, reference, held.pairs) if name == "after" else [0.0] * len(held.pairs)
        values |= {"accuracy": [beats(m, 0) for m in gaps], "margin": gaps}
    return values

def temperature_row(temperature, models, held, seen):
    """The row of a temperature in the table of temperatures. Wins are against the reference of the main table."""
    row = {"temperature": temperature}
    k = min(4, held.n_samples) if temperature else 1
    for name, model in models.items():
        answers = drawn(model, held, k, temperature)
        rewards = judged(held, answers)
        values = measured(model, models["before"], held, answers, rewards, temperature)
        row[name] = intervals(values | wins(rewards, seen["before"][1]))
        row["samples"] = [words(several[0]) for several in answers]    # the policy comes last
    return row

def best_rows(reference, held):
    """The table of best-of-n of the reference."""
    rewards = judged(held, drawn(reference, held, held.best_of, 1.0))["reward"]
    rows = []
    for n in (1, 2, 4, 8, 16, 32, 64):
        if n <= held.best_of:
            values = [best_of(r, n) for r in rewards]
            rows.append({"n": n, "kl": math.log(n) - 1 + 1 / n, "reward": interval(values)})
    return rows

def evaluation(run, held):
    """All that eval.json must hold of a run, recomputed. held: see `about` in test_by_hand.py."""
    policy, reference = load(run), load(held.reference)
    models, seen = {"before": reference, "after": policy}, {}
    for name, model in models.items():
        answers = drawn(model, held, held.n_samples, held.temperatures[0])
        seen[name] = answers, judged(held, answers)
    out = {"prompts": len(held.prompts), "pairs": len(held.pairs), "n_samples": held.n_samples,
           "temperature": held.temperatures[0],
           "measures": {name: intervals(main_column(name, policy, reference, held, seen)) for name in models},
           "samples": [shown(held, seen, i) for i in range(len(held.prompts))]}
    if held.temperatures[1:]:
        out["temperatures"] = [temperature_row(t, models, held, seen) for t in held.temperatures[1:]]
    return out | ({"best_of": best_rows(reference, held)} if held.best_of else {})

def shown(held, seen, i):
    """The first sample of a prompt before and after, with its rewards."""
    out = {"prompt": words(held.prompts[i]), "tokens": {"prompt": " ".join(str(t) for t in held.prompts[i])}}
    for name, (answers, _) in seen.items():
        out[name] = words(answers[i][0])
        out["tokens"][name] = " ".join(str(t) for t in answers[i][0])
    if held.chosen:
        out["chosen"] = words(held.chosen[i])
    if held.rewards:
        first = lambda rewards: {key: values[i][0] for key, values in rewards.items()}
        out["rewards"] = {name: first(rewards) for name, (_, rewards) in seen.items()}
    return out

# ---------------------------------------------------------------------------------------------------------------------
# what is printed

LABELS = {    # label -> (measure, digits)
    "reward": ("reward", 3),
    "of positive reviews' prompts": ("reward_positive", 3),
    "of negative reviews' prompts": ("reward_negative", 3),
    "win rate against the reference": ("win", 3),
    "win rate against the other run": ("win_other", 3),
    "reward by the gold model": ("gold", 3),
    "reward by the gold model, win rate by it": ("gold_win", 3),
    "reward by the learned model": ("proxy", 3),
    "reward by the learned model, win rate by it": ("proxy_win", 3),
    "KL to the reference, nats a completion": ("kl", 2),
    "check: mean log-ratio": ("logratio", 2),
    "entropy, nats a token": ("entropy", 3),
    "nats a completion": ("completion_entropy", 2),
    "of 4 samples' tokens, nats": ("pooled_4", 3),
    "of 25 samples' tokens, nats": ("pooled_25", 3),
    "distinct tokens in 500": ("distinct_1", 3),
    "distinct pairs of tokens in 500": ("distinct_2", 3),
    "length, tokens": ("length", 1),
    "ends in EOS": ("eos", 3),
    "whole sentences": ("whole", 3),
    "accuracy on held-out pairs": ("accuracy", 3),
    "margin, nats": ("margin", 2),
}

def numbers(cell):
    """'0.512 [0.433, 0.590]' -> [0.512, 0.433, 0.590]; '-' -> None."""
    found = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cell)
    assert found or cell in ("", "-"), cell
    return [float(x) for x in found.groups()] if found else None

def printed_table(text):
    """(title, names of the columns, {label: a list of three numbers for each column}) of the table of eval.main."""
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if line.endswith("; [95% interval]"))
    end = lines.index("", at + 2)
    names = lines[at + 2].split()
    rows, over = {}, ""    # over: the last label that is not indented
    for line in lines[at + 3:end]:
        label = line[:40].strip()
        if not line.startswith(" "):
            over = label
        if label == "win rate by it":
            label = f"{over}, {label}"
        assert label not in rows, label
        rows[label] = [numbers(line[40 + 28 * i:68 + 28 * i].strip()) for i in range(len(names))]
    return lines[at], names, rows

# ---------------------------------------------------------------------------------------------------------------------
# rows

def records(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]

def sampled_rows(path, split):
    """The pairs of a split of a file of sampled pairs."""
    rows = [r for r in records(path) if r["split"] == split]
    return [{side: r[side]["tokens"] for side in ("prompt", "chosen", "rejected")} for r in rows]

def file_rows(path, max_len):
    """{"train", "val"} of a file of pairs, cut to max_len with the EOS. Empty and equal completions are dropped."""
    rows, encode = [], TOKENIZER.encode_ordinary
    for r in records(path):
        prompt = encode(r["prompt"])
        chosen, rejected = ((encode(r[side]) + [EOS])[:max_len - len(prompt)] for side in ("chosen", "rejected"))
        if r["chosen"].strip() and r["rejected"].strip() and len(prompt) < max_len and chosen != rejected:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    held = lambda row: zlib.crc32(str(tuple(row["prompt"])).encode()) % 1000 < 100    # one prompt in ten, by its hash
    return {"train": [r for r in rows if not held(r)], "val": [r for r in rows if held(r)]}

def flipped(rows, share):
    """Some rows with a share of the labels swapped, seed 0."""
    wrong = random.Random("labels 0").sample(range(len(rows)), round(share * len(rows)))
    return [r | {"chosen": r["rejected"], "rejected": r["chosen"]} if i in wrong else r for i, r in enumerate(rows)]

def review_prompts(train, test, low, high, n):
    """[(prompt, label)] of test reviews not in training: an EOS and low to high tokens. One in ten, by its hash."""
    rng = random.Random("test 0")
    known, texts = {r["text"] for r in train}, {}
    for r in test:
        if r["text"] not in known:
            texts.setdefault(r["text"], r["label"] == 1)
    reviews, found = list(texts.items()), {}
    rng.shuffle(reviews)
    for text, positive in reviews:
        length, tokens = rng.randint(low, high), TOKENIZER.encode_ordinary(text)
        prompt = (EOS, *tokens[:length])
        if len(tokens) > length and zlib.crc32(str(prompt).encode()) % 10 == 0:
            found.setdefault(prompt, positive)
    return [(list(p), positive) for p, positive in found.items()][:n]

# ---------------------------------------------------------------------------------------------------------------------
# log.csv, and the weights

def batch_rows(rows, batch_size, i):
    """The i-th batch of the endless shuffled stream, seed 0. Rows are sorted by length in blocks of 16 batches."""
    epoch, at = divmod(i, math.ceil(len(rows) / batch_size))
    rng = random.Random(f"0 {epoch}")
    shuffled = list(range(len(rows)))
    rng.shuffle(shuffled)
    order = []
    for block in grouped(shuffled, 16 * batch_size):
        order += sorted(block, key=lambda j: length(rows[j]))
    batches = grouped(order, batch_size)
    rng.shuffle(batches)
    return [rows[j] for j in batches[at]]

def dpo(policy, reference, rows, beta):
    """(loss (), {metric: a number for each pair}) of DPO. The loss is the mean over the pairs."""
    w, l = (torch.stack(logps(policy, rows, side)) for side in ("chosen", "rejected"))    # (B,) each
    with torch.no_grad():
        ref_w, ref_l = (torch.stack(logps(reference, rows, side)) for side in ("chosen", "rejected"))
    loss = -(1 / (1 + torch.exp(-beta * ((w - ref_w) - (l - ref_l))))).log().sum() / len(rows)
    found = {"chosen": beta * (w - ref_w), "rejected": beta * (l - ref_l), "logps/chosen": w, "logps/rejected": l}
    return loss, {name: values.tolist() for name, values in found.items()}

def logged(loss, found, beta):
    """The row of log.csv of an update or a validation. The accuracy is a range, as a margin may be too near to 0."""
    gaps = [c - r for c, r in zip(found["chosen"], found["rejected"])]
    return {
        "loss": loss.item(),
        "beta": beta,
        "logps/chosen": mean(found["logps/chosen"]),
        "logps/rejected": mean(found["logps/rejected"]),
        "rewards/chosen": mean(found["chosen"]),
        "rewards/rejected": mean(found["rejected"]),
        "rewards/margins": mean(gaps),
        "rewards/accuracies": (mean([g > 1e-5 for g in gaps]), mean([g > -1e-5 for g in gaps])),
    }

def read_log(run):
    """{(step, split): {metric: value}}."""
    out = {}
    for row in csv.DictReader(open(Path(run) / "log.csv", newline="")):
        metrics = out.setdefault((int(row["step"]), row["split"]), {})
        assert row["metric"] not in metrics
        metrics[row["metric"]] = float(row["value"])
    return out

class AdamW:
    """AdamW (Loshchilov and Hutter 2019) on plain tensors, gradients clipped to a norm of 1; only matrices decay."""
    def __init__(self, model, epsilon, weight_decay):
        self.params = list(model.parameters())
        self.epsilon, self.weight_decay = epsilon, weight_decay
        self.t = 0
        self.m, self.v = ([torch.zeros_like(p) for p in self.params] for _ in range(2))

    @torch.no_grad()
    def step(self, lr):
        """One update; returns the gradient's norm before it was clipped."""
        norm = math.sqrt(sum((p.grad ** 2).sum().item() for p in self.params))
        self.t += 1
        for p, m, v in zip(self.params, self.m, self.v):
            g = p.grad / max(1.0, norm)
            m.copy_(0.9 * m + 0.1 * g)
            v.copy_(0.95 * v + 0.05 * g ** 2)
            p.mul_(1 - lr * self.weight_decay * (p.dim() == 2))
            p -= lr * (m / (1 - 0.9 ** self.t)) / ((v / (1 - 0.95 ** self.t)).sqrt() + self.epsilon)
            p.grad = None
        return norm
