"""
Preference pairs by sampling from a policy and ranking the samples by a reward.

    path, rows = sampled_pairs(model, tokenizer, fingerprint(model), reward, data="toy", folder="out/toy/sft", max_len=64)

The pairs stay in a file in the folder of the policy that they were sampled from. docs/data.md explains them.
Read first: model.py, data.py. Read next: logps.py
"""
import hashlib
import json
import random
import zlib
from pathlib import Path

import torch

import toy
from data import decode
from support import parallel
from support.checkpoint import replacing
from support.sources import load_examples, read_records

@torch.no_grad()
def sample_completions(model, tokenizer, prompts, max_new_tokens, *, temperature=1.0, seed=0, batch_size=256):
    """Completions, token lists with EOS unless cut, for prompts (token lists); sorted by length for speed, given in their order."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    order, out = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [None] * len(prompts)
    for at in range(0, len(order), batch_size):
        part = order[at:at + batch_size]
        lens = torch.tensor([len(prompts[i]) for i in part])
        idx = torch.nn.utils.rnn.pad_sequence([torch.tensor(prompts[i]) for i in part], batch_first=True)
        new = model.generate(idx.to(device), max_new_tokens, temperature=temperature, eos=tokenizer.eot_token, lens=lens,
                             generator=generator)
        for i, tokens in zip(part, new[:, idx.shape[1]:].tolist()):
            end = tokens.index(tokenizer.eot_token) + 1 if tokenizer.eot_token in tokens else len(tokens)
            out[i] = tokens[:end]
    return out

def make_pairs(model, tokenizer, prompts, reward, folder, recipe, *, max_new_tokens, k=4, seed=0):
    """
    Preference pairs as the DPO paper makes them for IMDB: k completions a prompt from the SFT policy, ranked by a reward, and of their
    pairs all that differ in it. Returns the file, which stays in `folder`, the run they were sampled from, and is reused while the
    recipe is unchanged. prompts: {"train", "val"}: token lists; reward: token lists -> (n,); recipe: what else the pairs depend on.
    """
    recipe = json.dumps([recipe, prompts, k, max_new_tokens, seed], sort_keys=True)
    path = Path(folder) / f"pairs-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}.jsonl"
    if parallel.rank() or path.exists():    # the first process samples for all
        print(f"pairs: {path}, sampled before by the same recipe")
        parallel.wait()
        return path
    with replacing(path) as part, open(part, "w", encoding="utf-8") as f:
        for split, tokens in prompts.items():
            repeated, n = [t for t in tokens for _ in range(k)], 0
            answers = sample_completions(model, tokenizer, repeated, max_new_tokens, seed=seed)
            rewards = reward([p + a for p, a in zip(repeated, answers)])
            for i, prompt in enumerate(tokens):
                drawn = [{"text": decode(tokenizer, answers[j]), "tokens": answers[j], "reward": float(rewards[j])}
                         for j in range(i * k, i * k + k)]
                for chosen, rejected in ((a, b) for a in drawn for b in drawn if a["reward"] > b["reward"]):
                    row = {"split": split, "prompt": {"text": decode(tokenizer, prompt), "tokens": prompt}, "chosen": chosen,
                           "rejected": rejected}
                    f.write(json.dumps(row) + "\n")
                    n += 1
            if not n:
                raise ValueError(f"no pairs: for none of {len(tokens)} {split} prompts do two of {k} samples differ in reward; sample more "
                                 "prompts, or train the SFT policy longer")
            print(f"pairs: {len(tokens):,} {split} prompts x {k} samples gave {n:,} pairs that differ in reward -> {path}")
    parallel.wait()
    return path

def beginnings(data_dir, split, tokenizer, spans, n, seed=0):
    """
    The first tokens of n reviews of IMDB, behind an EOS as in SFT, and whether each review is positive: two lists, the prompts all
    different. spans: how many tokens, "32" or "2-8". The test reviews are without those that are in training too; and since short
    beginnings repeat, one in ten, by its hash, is a test prompt only, the others training prompts only.
    """
    splits, _ = load_examples("imdb", data_dir, pairs=False)
    known, rng = {e["chosen"] for e in splits.get("train", ())} if split != "train" else (), random.Random(f"{split} {seed}")
    examples, found = [e for e in splits.get(split, ()) if e["chosen"] not in known], {}
    rng.shuffle(examples)    # the files have all of one label first
    low, _, high = spans.partition("-")
    for e in examples:
        length = rng.randint(int(low), int(high or low))
        tokens = tokenizer.encode_ordinary(e["chosen"])
        prompt = (tokenizer.eot_token, *tokens[:length])
        if len(tokens) > length and (zlib.crc32(str(prompt).encode()) % 10 == 0) == (split == "test"):
            found.setdefault(prompt, e["positive"])
        if len(found) == n:
            break
    if not found:
        raise ValueError(f"imdb: no {split} review has more than {spans} tokens")
    return [list(p) for p in found], list(found.values())

def prompts_for(data, tokenizer, n_train, n_val=100, *, max_len, seed=0, data_dir=None, prompt_tokens=None):
    """
    ({"train", "val"}: prompts to sample for, the tokens that they leave for a completion), for toy and imdb. No prompt is in both.

    max_len        of prompt and completion together, in tokens
    prompt_tokens  imdb: tokens of a review that make a prompt, as "32" or "2-8"
    """
    if data == "toy":
        prompts = {split: tokenizer.encode_ordinary_batch([e["prompt"] for e in toy.examples(split, n, seed)])
                   for split, n in (("train", n_train), ("val", n_val))}
    else:
        found, _ = beginnings(data_dir, "train", tokenizer, prompt_tokens, n_train + n_val, seed)
        held = max(1, len(found) * n_val // (n_train + n_val))
        prompts = {"train": found[held:], "val": found[:held]}
    length = max(len(p) for part in prompts.values() for p in part)
    if max_len <= length:
        raise ValueError(f"--max_len {max_len} leaves no room for a completion behind the {length} tokens of a prompt")
    return prompts, max_len - length

def sampled_pairs(model, tokenizer, weights, reward, *, data, folder, n_prompts, max_len, seed=0, data_dir=None, prompt_tokens=None):
    """
    (file, {"train", "val"}: rows) of pairs sampled from a model and ranked by a Reward, for toy and imdb. No prompt is in both.

    weights  the model's fingerprint: pairs of other weights are not used again
    folder   the model's run, where the file stays. The other arguments are those of prompts_for
    """
    prompts, room = prompts_for(data, tokenizer, n_prompts, max_len=max_len, seed=seed, data_dir=data_dir, prompt_tokens=prompt_tokens)
    path = make_pairs(model, tokenizer, prompts, reward, folder, {"weights": weights, "reward": reward.name},
                      max_new_tokens=room, seed=seed)
    return str(path), read_pairs(path, tokenizer.n_vocab)

def read_pairs(path, n_vocab=float("inf")):
    """{"train": rows, "val": rows} of a file of make_pairs. Raises ValueError with the row that is not one."""
    rows = {"train": [], "val": []}
    for where, record in read_records(path):
        try:
            # tokens, not text: a sample that was cut has no EOS, which text cannot say
            row = {side: record[side]["tokens"] for side in ("prompt", "chosen", "rejected")}
            assert all(type(t) is int and 0 <= t < n_vocab for tokens in row.values() for t in tokens) and all(row.values())
            rows[record["split"]].append(row)
        except (KeyError, TypeError, AssertionError):
            raise ValueError(f"{where}: is not a pair of token lists as they were sampled; delete the file, and it is made again") from None
    return rows
