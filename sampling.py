"""
Preference pairs by sampling: completions of the policy itself, ranked by a reward.

    path, rows = sampled_pairs(model, tokenizer, fingerprint(model), reward, data="toy", folder=run, ...)

The DPO paper makes its pairs for IMDB in this way (Rafailov 2023, arXiv:2305.18290):

    for each prompt x:
        sample k completions y_1, ..., y_k from the SFT policy      sample_completions
        give each one the reward r(x, y_i)                          reward.py
        for each two with r(x, y_i) > r(x, y_j):                    all_pairs
            y_i is chosen, y_j is rejected

make_pairs writes the pairs to pairs-<hash of the recipe>.jsonl in the folder of the policy's run. A later run with the
same recipe reads this file. See docs/data.md. Read first: model.py, data.py. Read next: logps.py
"""
import hashlib
import json
import math
import random
from pathlib import Path

import torch

import toy
from data import decode, pad, pieces
from support import parallel
from support.checkpoint import replacing
from support.sources import beginnings, read_records

@torch.no_grad()
def sample_completions(model, tokenizer, prompts, max_new_tokens, *, temperature=1.0, seed=0, batch_size=256):
    """
    One sampled completion per prompt, in the order of the prompts. Prompts and completions are token lists. A
    completion ends in EOS, unless it was cut at max_new_tokens. `seed` fixes the samples.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    # Prompts of similar length share a batch, so that it has little padding
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions = [None] * len(prompts)
    for numbers in pieces(order, batch_size):
        idx, lens = pad([prompts[i] for i in numbers])    # (B, T), (B,)
        out = model.generate(idx.to(device), max_new_tokens, temperature=temperature, eos=tokenizer.eot_token,
                             lens=lens, generator=generator)    # (B, T + new tokens)
        for i, tokens in zip(numbers, out[:, idx.shape[1]:].tolist()):
            if tokenizer.eot_token in tokens:
                tokens = tokens[:tokens.index(tokenizer.eot_token) + 1]    # padding follows the first EOS
            completions[i] = tokens    # in the place of its prompt, so the caller can pair them by position
    return completions

def all_pairs(samples):
    """Yields (chosen, rejected) for each two samples of a prompt whose rewards differ: of k at most k (k - 1) / 2."""
    for chosen in samples:
        for rejected in samples:
            if chosen["reward"] > rejected["reward"]:    # a tie says nothing, so it makes no pair
                yield chosen, rejected

def drawn_pairs(samples, nats, rng):
    """
    Yields (chosen, rejected) for each two samples of a prompt, with labels that are drawn, as Bradley and Terry (1952)
    describe annotators:

        P(a is chosen over b) = sigmoid(nats(r_a) - nats(r_b))

    nats: a function from a reward to nats; rng: a random.Random. Equal samples make no pair. DPO's loss assumes labels
    like these (Rafailov 2023, arXiv:2305.18290).
    """
    for i, a in enumerate(samples):
        for b in samples[:i]:
            if a["tokens"] != b["tokens"]:
                gap = nats(a["reward"]) - nats(b["reward"])
                p = 0.5 + 0.5 * math.tanh(gap / 2)    # the sigmoid, without overflow
                yield (a, b) if rng.random() < p else (b, a)

def ranked_samples(model, tokenizer, prompts, reward, max_new_tokens, k, seed):
    """Yields (prompt, its k samples) for each prompt. A sample is a dict: text, tokens and reward of a completion."""
    # One call samples the k completions of all n prompts, which fills its batches
    repeated = []
    for prompt in prompts:
        repeated += [prompt] * k
    completions = sample_completions(model, tokenizer, repeated, max_new_tokens, seed=seed)
    rewards = reward([prompt + tokens for prompt, tokens in zip(repeated, completions)])    # (n * k,)
    samples = [{"text": decode(tokenizer, tokens), "tokens": tokens, "reward": float(r)}
               for tokens, r in zip(completions, rewards)]
    yield from zip(prompts, pieces(samples, k))

def write_pairs(path, model, tokenizer, prompts, reward, *, max_new_tokens, k=4, seed=0, nats=None):
    """
    Samples k completions of each prompt of {split: prompts} and writes all pairs that differ in reward. With `nats`, it
    writes all pairs, with labels by drawn_pairs. reward: a function, n lists of prompt and completion -> rewards (n,).
    """
    rng = random.Random(f"labels {seed}")
    # A temporary file, renamed when it is complete: an interrupted run leaves no half-written pairs
    with replacing(path) as part, open(part, "w", encoding="utf-8") as f:
        for split, asked in prompts.items():
            n = 0
            for prompt, samples in ranked_samples(model, tokenizer, asked, reward, max_new_tokens, k, seed):
                record = {"split": split, "prompt": {"text": decode(tokenizer, prompt), "tokens": prompt}}
                for chosen, rejected in drawn_pairs(samples, nats, rng) if nats else all_pairs(samples):
                    f.write(json.dumps(record | {"chosen": chosen, "rejected": rejected}) + "\n")
                    n += 1
            if n == 0:
                raise ValueError(f"no pairs: for none of {len(asked)} {split} prompts do two of {k} samples differ in "
                                 "reward; sample more prompts, or train the SFT policy longer")
            kind = "with drawn labels" if nats else "of unequal reward"
            print(f"pairs: {len(asked):,} {split} prompts x {k} samples gave {n:,} pairs {kind} -> {path}")

def make_pairs(model, tokenizer, prompts, reward, folder, recipe, *, max_new_tokens, k=4, seed=0, nats=None):
    """
    write_pairs into `folder`, the model's run, unless it has a file of the same recipe. Returns the file's path.
    recipe: what else the pairs depend on.
    """
    recipe = json.dumps([recipe, prompts, k, max_new_tokens, seed], sort_keys=True)
    path = Path(folder) / f"pairs-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}.jsonl"
    if parallel.rank() or path.exists():    # with several processes the first one samples for all
        print(f"pairs: {path}, sampled before with the same recipe")
    else:
        write_pairs(path, model, tokenizer, prompts, reward, max_new_tokens=max_new_tokens, k=k, seed=seed, nats=nats)
    parallel.wait()
    return path

def read_pairs(path, n_vocab=float("inf"), gaps=False):
    """{"train": rows, "val": rows} of a file of make_pairs. Raises ValueError with the first row that is not a pair."""
    rows = {"train": [], "val": []}
    for where, record in read_records(path):
        try:
            # Tokens, not text: the text of a sample does not say whether it ended in EOS or was cut
            row = {field: record[field]["tokens"] for field in ("prompt", "chosen", "rejected")}
            for tokens in row.values():
                assert tokens and all(type(t) is int and 0 <= t < n_vocab for t in tokens)
            row |= {"gap": record["chosen"]["reward"] - record["rejected"]["reward"]} if gaps else {}
            rows[record["split"]].append(row)
        except (KeyError, TypeError, AssertionError):
            raise ValueError(f"{where}: is no pair of sampled token lists; delete the file to sample again") from None
    return rows

def prompts_for(data, tokenizer, n_train, n_val=100, *, max_len, seed=0, data_dir=None, prompt_tokens=None):
    """
    ({"train": prompts, "val": prompts}, the tokens that max_len leaves for a completion), for toy and imdb. No prompt
    is in both splits. prompt_tokens: for imdb, how many tokens of a review make a prompt, as "32" or "2-8".
    """
    if data == "toy":
        prompts = {}
        for split, n in (("train", n_train), ("val", n_val)):
            prompts[split] = tokenizer.encode_ordinary_batch([e["prompt"] for e in toy.examples(split, n, seed)])
    else:
        found, _ = beginnings(data_dir, "train", tokenizer, prompt_tokens, n_train + n_val, seed)
        n_held_out = max(1, len(found) * n_val // (n_train + n_val))    # in proportion, if fewer were found
        prompts = {"train": found[n_held_out:], "val": found[:n_held_out]}
    longest = max(map(len, prompts["train"] + prompts["val"]))
    if max_len <= longest:
        raise ValueError(f"--max_len {max_len} leaves no room for a completion behind the {longest} tokens of a prompt")
    return prompts, max_len - longest

def sampled_pairs(model, tokenizer, model_fingerprint, reward, *, data, folder, n_prompts, max_len, seed=0,
                  data_dir=None, prompt_tokens=None, labels=None, rounds=1, gaps=False):
    """
    (path, {"train": rows, "val": rows}) of pairs that a model samples and a reward.Reward ranks, for toy and imdb.
    labels: "bradley_terry" draws them, otherwise the better sample is chosen. rounds: of so many equal parts of the
    prompts the first is used. gaps: whether rows get `gap`. The model's fingerprint is a part of the recipe.
    """
    prompts, room = prompts_for(data, tokenizer, n_prompts, max_len=max_len, seed=seed, data_dir=data_dir,
                                prompt_tokens=prompt_tokens)
    prompts["train"] = prompts["train"][:len(prompts["train"]) // rounds]
    drawn = labels == "bradley_terry"
    recipe = {"weights": model_fingerprint, "reward": reward.name} | ({"labels": labels} if drawn else {})
    path = make_pairs(model, tokenizer, prompts, reward, folder, recipe, max_new_tokens=room, seed=seed,
                      nats=reward.nats if drawn else None)
    return str(path), read_pairs(path, tokenizer.n_vocab, gaps)
