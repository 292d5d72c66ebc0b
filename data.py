"""
Text -> rows -> batches, for every data set; pairs by sampling and ranking.

    python data.py --data hh                                # what becomes of a data set: counts, lengths, three rows
    python data.py --data imdb --data_dir reviews --show 1

    examples   dicts of text: prompt, chosen, rejected (rejected only for pairs), from sources.py
    rows       dicts of token lists: prompt, chosen, rejected; a completion ends in EOS unless it was cut
    batches    dicts of tensors: idx (N, T), completion_mask (N, T), weight; for pairs N = 2B, chosen on top of rejected

Read next: losses.py
"""
import argparse
import functools
import hashlib
import random
import zlib
from collections import Counter

import torch

from support import parallel, sources, tokenizers
import toy
from support.sources import PAIRLESS, check_source

def get_tokenizer(data, n_vocab=None):
    """
    The tokenizer of a data set and of a model with n_vocab tokens: the toy world's own, GPT-2's BPE (also for n_vocab None), or the
    first of GPT-2's tokens. Raises ValueError in one line if GPT-2's files are missing.
    """
    if data == "toy":
        return toy.encoding()
    # a model of the toy world does not fit other data: cli.check_fits says so once it has seen GPT-2's size
    return tokenizers.text_tokenizer(None if n_vocab == toy.encoding().n_vocab else n_vocab)

def load_examples(data, data_dir=None, pairs=True, say=print):
    """({split: examples}, a Counter of what was dropped and why), from the toy world, the hub, a folder or a file."""
    if data == "toy":
        return {"train": toy.examples("train", 20_000), "val": toy.examples("val", 512)}, Counter()
    return sources.load_examples(data, data_dir, pairs, say)

# ---------------------------------------------------------------------------------------------------------------------
# examples -> rows

def make_rows(examples, tokenizer, max_len, max_prompt_len=None, labels=False):
    """
    (rows, a Counter of what was dropped and why). Prompt and completion are encoded apart, so that no merge spans the boundary.

    max_prompt_len  a longer prompt loses its beginning; None: prompts stay whole
    max_len         of prompt and completion together; a longer completion loses its end, and then has no EOS
    labels          whether rows keep their example's label, 1 for positive
    """
    sides = [s for s in ("chosen", "rejected") if examples and s in examples[0]]
    encode = lambda side: tokenizers.encode(tokenizer, [e[side] for e in examples], f"field {side!r}")
    prompts, *completions = map(encode, ["prompt", *sides])
    rows, dropped = [], Counter()
    for example, prompt, *answers in zip(examples, prompts, *completions):
        # GPT-2 has no BOS: a text without a prompt starts behind an EOS, so that its first token is predicted too
        prompt = (prompt[-max_prompt_len:] if max_prompt_len else prompt) or [tokenizer.eot_token]
        room = max_len - len(prompt)
        answers = [(a + [tokenizer.eot_token])[:max(room, 0)] for a in answers]
        if not all(example[s].strip() for s in sides):
            dropped["empty completion"] += 1
        elif room < 1:
            dropped[f"prompt leaves no room in max_len = {max_len} tokens"] += 1
        elif len(answers) == 2 and answers[0] == answers[1]:
            dropped["chosen == rejected"] += 1
        else:
            label = {"label": int(example["positive"])} if labels else {}
            rows.append({"prompt": prompt, **dict(zip(sides, answers)), **label})
    return rows, dropped

def divide(rows, eot):
    """
    {split: rows} of a source -> {"train": rows, "val": rows}, disjoint by prompt, and how many validation rows that has cost.
    eot is the token that texts without a prompt start behind: these are disjoint by their text.
    """
    key = lambda row: tuple(row["prompt"] if row["prompt"] != [eot] else row["chosen"])
    if not rows.get("train"):    # a sample of a data set may hold its test files alone
        rows = {"train": [r for part in rows.values() for r in part]}
    if not rows.get("val"):
        # one prompt in ten, each by its own hash: so SFT and preference training hold out the same ones, whatever else they drop
        place = {p: zlib.crc32(str(p).encode()) % 1000 for p in map(key, rows["train"])}
        limit = min(max(100, min(place.values(), default=0) + 1), max(place.values(), default=0))    # and at least one on each side
        return {s: [r for r in rows["train"] if (place[key(r)] < limit) == held] for s, held in (("train", False), ("val", True))}, 0
    known = {key(r) for r in rows["train"]}
    val = [r for r in rows["val"] if key(r) not in known]
    return {"train": rows["train"], "val": val}, len(rows["val"]) - len(val)

def some(rows, n):
    """n of the rows, drawn once for ever; all, if n is None or they are fewer."""
    return random.Random(0).sample(rows, n) if n and n < len(rows) else rows

def load_rows(data, data_dir, tokenizer, max_len, max_prompt_len=None, pairs=True, n_val=None, say=print):
    """{"train": rows, "val": rows, at most n_val}; says what was dropped and why. Raises ValueError or OSError in one line."""
    splits, dropped = load_examples(data, data_dir, pairs, say)
    if "train" in splits:
        splits.pop("test", None)    # never for training; a sample of a data set may hold nothing else
    made = {split: make_rows(examples, tokenizer, max_len, max_prompt_len) for split, examples in splits.items()}
    rows, shared = divide({split: part for split, (part, _) in made.items()}, tokenizer.eot_token)
    dropped = sum((more for _, more in made.values()), dropped + Counter({"with a prompt of training in validation": shared}))
    reasons = ", ".join(f"{n:,} {why}" for why, n in dropped.most_common()) or "none"
    if not rows["train"] or not rows["val"]:
        raise ValueError(f"{data}: training and validation need a prompt each, and {len(rows['train'] + rows['val'])} rows are left; "
                         f"dropped: {reasons}")
    kept = some(rows["val"], n_val)
    of = f" of {len(rows['val']):,}" if len(kept) < len(rows["val"]) else ""
    say(f"data: {data}, {len(rows['train']):,} rows to train on, {len(kept):,}{of} to validate; dropped: {reasons}")
    return rows | {"val": kept}

def fingerprint(rows):
    """16 hex digits of the SHA-256 of all rows: whether a run goes on with the data it began with."""
    h = hashlib.sha256()
    for row in (row for split in ("train", "val") for row in rows[split]):
        h.update(repr([row[k] for k in ("prompt", "chosen", "rejected", "label") if k in row]).encode())
    return h.hexdigest()[:16]

def decode(tokenizer, tokens):
    """Tokens -> text, without the EOS."""
    return tokenizer.decode([t for t in tokens if t != tokenizer.eot_token])

# ---------------------------------------------------------------------------------------------------------------------
# rows -> batches

def weight_of(row):
    """What a row counts for in a mean: a pair, or a text with a label, is one; of other texts every token of the completion is."""
    return 1 if "rejected" in row or "label" in row else len(row["chosen"])

def collate(rows, share_prefix=False):
    """
    A batch of rows: idx (N, T) and completion_mask (N, T) bool, padded at the right. For pairs N = 2B: chosen on top of rejected,
    and, once they are known, ref_chosen_logps and ref_rejected_logps (B,). weight is what a mean is taken over: pairs, or tokens.

    share_prefix  pairs stand in one row, prompt, chosen, rejected: idx (B, T), and segments (B, T) in the mask's place, 0 1 2, padding 3
    """
    sides = [s for s in ("chosen", "rejected") if s in rows[0]]
    texts = [(r["prompt"], *(r[s] for s in part)) for part in ([sides] if share_prefix else zip(sides)) for r in rows]
    T = max(sum(map(len, parts)) for parts in texts)
    idx, segments = torch.zeros(len(texts), T, dtype=torch.long), torch.full((len(texts), T), 3)
    for i, parts in enumerate(texts):
        n = sum(map(len, parts))
        idx[i, :n] = torch.tensor(sum(parts, []))
        segments[i, :n] = torch.tensor([k for k, part in enumerate(parts) for _ in part])
    mask = segments == 1
    batch = {"idx": idx, "weight": sum(map(weight_of, rows))}
    batch |= {"segments": segments} if share_prefix else {"completion_mask": mask}
    for key in ("label", "ref_chosen_logps", "ref_rejected_logps", "ref_kl_logps"):
        if key in rows[0]:
            batch[key] = torch.tensor([r[key] for r in rows])
    if "mismatched" in rows[0]:
        kl = collate([{"prompt": r["prompt"], "chosen": r["mismatched"]} for r in rows])    # B more rows
        batch |= {"kl_idx": kl["idx"], "kl_mask": kl["completion_mask"]}
    return batch

def mismatch(rows, max_len):
    """Gives every row a completion of another prompt, for the KL of KTO: the next row's chosen one, cut to the room there is."""
    for i, row in enumerate(rows):
        others = (rows[(i + j) % len(rows)] for j in range(1, len(rows)))
        other = next((r for r in others if r["prompt"] != row["prompt"]), row)
        row["mismatched"] = other["chosen"][:max(1, max_len - len(row["prompt"]))]

def flip_labels(rows, share, seed):
    """Swaps chosen and rejected in a share of the pairs, drawn by the seed: labels that are wrong. Returns how many."""
    if not 0 <= share <= 1:
        raise ValueError(f"--label_noise {share}: is a share of the pairs, from 0 to 1")
    wrong = random.Random(f"labels {seed}").sample(rows, round(share * len(rows)))
    for row in wrong:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return len(wrong)

class Batches:
    """
    batches[i] is the i-th batch of an endless shuffled stream, a function of (seed, i) alone: a run resumes at any i. Iterating
    gives one pass in a fixed order, for validation. Rows of like length go together, so that little is padding; within
    blocks of 16 batches only, so that an epoch is still shuffled. The last batch of an epoch may be smaller: nothing is left out.
    Of N processes each gets every N-th row of a batch, with the weight of the whole batch as its total; where there are fewer rows
    than processes, some get a row that weighs nothing.
    """
    def __init__(self, rows, batch_size, seed=0, share_prefix=False):
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, None
        self.collate = functools.partial(collate, share_prefix=share_prefix)
        together = sum if share_prefix else max
        self.lengths = [len(r["prompt"]) + together((len(r["chosen"]), len(r.get("rejected", "")))) for r in rows]

    def __len__(self):
        return -(-len(self.rows) // self.batch_size)

    def numbers(self, i):
        """Which rows batch i holds."""
        epoch, position = divmod(i, len(self))
        if epoch != self.epoch:
            rng, order = random.Random(f"{self.seed} {epoch}"), list(range(len(self.rows)))
            rng.shuffle(order)
            block = 16 * self.batch_size
            order = [i for at in range(0, len(order), block) for i in sorted(order[at:at + block], key=self.lengths.__getitem__)]
            self.order = [order[at:at + self.batch_size] for at in range(0, len(order), self.batch_size)]
            rng.shuffle(self.order)
            self.epoch = epoch
        return self.order[position]

    def share(self, rows):
        mine, weight = rows[parallel.rank()::parallel.world()], sum(map(weight_of, rows))
        return self.collate(mine or rows[:1]) | {"total": weight} | ({} if mine else {"weight": 0})

    def __getitem__(self, i):
        return self.share([self.rows[j] for j in self.numbers(i)])

    def one_by_one(self, i):
        """The rows of batch i, each with its number as a batch of its own."""
        return ((j, self.collate([self.rows[j]])) for j in self.numbers(i))

    def groups(self):
        """One pass in a fixed order, shortest first, as lists of rows."""
        order = sorted(range(len(self.rows)), key=self.lengths.__getitem__)
        for at in range(0, len(order), self.batch_size):
            yield [self.rows[j] for j in order[at:at + self.batch_size]]

    def __iter__(self):
        return map(self.share, self.groups())

# ---------------------------------------------------------------------------------------------------------------------
# a look at a data set

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0], allow_abbrev=False)
    p.error = lambda message: p.exit(2, f"{p.prog}: error: {message} (--help lists the flags)\n")    # as cli.Parser, which comes later
    p.add_argument("--data", default="toy", help="a data set or a path, as for train_sft.py (default: %(default)s)")
    p.add_argument("--data_dir", help="folder with the data set's files, instead of the hub")
    p.add_argument("--bpe", choices=("bytes",), help="a token a byte; needs no BPE files (default: GPT-2's BPE)")
    p.add_argument("--texts", action="store_true", help="as SFT takes it, one completion a row, where there are pairs too")
    p.add_argument("--max_prompt_len", type=int, help="tokens; a longer prompt loses its beginning (default: no cut)")
    p.add_argument("--max_len", type=int, default=1024, help="tokens of prompt and completion together (default: %(default)s)")
    p.add_argument("--show", type=int, default=3, help="rows to print (default: %(default)s)")
    args = p.parse_args(argv)
    fine = min(args.max_len, args.show + 1, 1 if args.max_prompt_len is None else args.max_prompt_len) > 0
    return args if fine else p.error("--max_len and --max_prompt_len must be at least 1, --show at least 0")

def histogram(lengths, width=50):
    """Lines: how many are at most 16, 32, 64, ... long, and longer than the one before."""
    bins = Counter(max(4, (n - 1).bit_length()) for n in lengths)
    line = lambda b: f"  <= {2**b:6,}  {bins[b]:8,}  {'#' * -(-bins[b] * width // max(bins.values()))}"
    return [line(b) for b in range(min(bins), max(bins) + 1)] if bins else []

def main(argv=None):
    args = get_args(argv)
    try:
        look(args)
    except KeyboardInterrupt:
        argparse.ArgumentParser().exit(130, "\ninterrupted; nothing was written: type the same command again\n")

def look(args):
    try:
        check_source(args.data, args.data_dir)
        if args.bpe and args.data == "toy":
            raise ValueError("--bpe has no effect on --data toy, which has its own words")
        tokenizer = get_tokenizer(args.data, args.bpe and tokenizers.BYTES)
        splits, dropped = load_examples(args.data, args.data_dir, args.data not in ("toy", *PAIRLESS) and not args.texts)
    except (ValueError, OSError) as e:
        argparse.ArgumentParser().exit(2, f"error: {' '.join(str(e).split())}\n")
    print(f"{args.data}: dropped as it was read: {', '.join(f'{n:,} {why}' for why, n in dropped.most_common()) or 'none'}")
    for split, examples in splits.items():
        rows, dropped = make_rows(examples, tokenizer, args.max_len, args.max_prompt_len)
        sides = [s for s in ("chosen", "rejected") if rows and s in rows[0]]
        cut = sum(any(r[s][-1] != tokenizer.eot_token for s in sides) for r in rows)
        print(f"\n{split}: {len(rows):,} of {len(examples):,} rows kept, {cut:,} of them cut at {args.max_len} tokens; dropped: "
              f"{', '.join(f'{n:,} {why}' for why, n in dropped.most_common()) or 'none'}\ntokens of prompt and longest completion:")
        print("\n".join(histogram([len(r["prompt"]) + max(len(r[s]) for s in sides) for r in rows])))
        for row in rows[:args.show]:
            print("\n" + "\n".join(f"{side:8} ({len(row[side])} tokens)  {decode(tokenizer, row[side])!r}" for side in ("prompt", *sides)))

if __name__ == "__main__":
    main()
