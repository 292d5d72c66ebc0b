"""
Examples -> rows -> batches: from the text of a data set to the tensors that a model is trained on.

    python data.py --data hh                                # print the counts, the lengths and three rows of a data set
    python data.py --data imdb --data_dir reviews --show 1

    examples   dicts of text: prompt, chosen and, for pairs, rejected. toy.py or support/sources.py provides them
    rows       dicts of token lists with the same keys. A completion ends in EOS unless it was cut
    batches    dicts of tensors: idx (N, T), completion_mask (N, T), weight. For pairs N = 2B, chosen on top of rejected

The command writes nothing. See docs/data.md. Read first: toy.py. Read next: sampling.py
"""
import functools
import hashlib
import math
import random
import zlib
from collections import Counter
from itertools import chain

import torch

import toy
import unpaired
from support import cli, parallel, sources, tokenizers
from support.sources import PAIRLESS, check_source, histogram, listed

SIDES = ("chosen", "rejected")    # the completions of an example; texts for SFT have the first one only

def get_tokenizer(data, n_vocab=None):
    """
    The tiktoken.Encoding of a data set, for a model with n_vocab tokens. The toy world has its own. Other data uses
    GPT-2's BPE, or for a smaller n_vocab its first tokens. Raises ValueError in one line if GPT-2's files are missing.
    """
    if data == "toy":
        return toy.encoding()
    # A toy model does not fit other data. It gets GPT-2's BPE here, and cli.check_fits then reports the mismatch.
    return tokenizers.text_tokenizer(None if n_vocab == toy.encoding().n_vocab else n_vocab)

def load_examples(data, data_dir=None, pairs=True, say=print, gaps=False, labeled=False):
    """({split: examples}, a Counter of why examples were dropped), from the toy world, the hub, a folder or a file."""
    if data == "toy":
        return {"train": toy.examples("train", 20_000), "val": toy.examples("val", 512)}, Counter()
    return sources.load_examples(data, data_dir, pairs, say, gaps, labeled)

# ---------------------------------------------------------------------------------------------------------------------
# examples -> rows

def encode_row(example, tokens, eot, max_len, max_prompt_len=None):
    """
    One example -> its row of token lists, or a string: the reason why the example is dropped.

    example         text: prompt, chosen and, for pairs, rejected
    tokens          the same texts as token lists, without EOS (eot)
    max_len         tokens of prompt and completion together. A longer completion loses its end, and has no EOS then
    max_prompt_len  tokens. A longer prompt loses its beginning, as questions stand at the end. None: prompts stay whole
    """
    sides = [side for side in SIDES if side in tokens]
    if any(not example[side].strip() for side in sides):
        return "empty completion"
    prompt = tokens["prompt"] or [eot]    # GPT-2 has no BOS token. Behind an EOS, a text's first token is predicted too
    if max_prompt_len:
        prompt = prompt[-max_prompt_len:]
    room = max_len - len(prompt)
    if room < 1:
        return f"prompt leaves no room in max_len = {max_len} tokens"
    row = {"prompt": prompt}
    for side in sides:
        row[side] = (tokens[side] + [eot])[:room]    # both completions of a pair are cut at the same length
    if row["chosen"] == row.get("rejected"):
        return "chosen == rejected"
    return row

def make_rows(examples, tokenizer, max_len, max_prompt_len=None, labels=False):
    """
    Examples -> (rows, a Counter of why examples were dropped). encode_row explains max_len and max_prompt_len.
    labels: whether a row gets its review's label, 1 for positive and 0 for negative. An example with `desirable` gives
    a row with the label 1 (thumbs up) or 0 (thumbs down).
    """
    fields = [field for field in ("prompt", *SIDES) if examples and field in examples[0]]
    encoded = {}
    for field in fields:    # prompt and completion are encoded separately, so no token spans their boundary
        encoded[field] = tokenizers.encode(tokenizer, [example[field] for example in examples], f"field {field!r}")
    rows, dropped = [], Counter()
    for i, example in enumerate(examples):
        tokens = {field: encoded[field][i] for field in fields}
        row = encode_row(example, tokens, tokenizer.eot_token, max_len, max_prompt_len)
        if isinstance(row, str):
            dropped[row] += 1
            continue
        if labels or "desirable" in example:
            row["label"] = int(example["positive" if labels else "desirable"])
        row |= {"gap": example["gap"]} if "gap" in example else {}    # of the answers' rewards
        rows.append(row)
    return rows, dropped

def decode(tokenizer, tokens):
    """Tokens -> text, without EOS."""
    return tokenizer.decode([t for t in tokens if t != tokenizer.eot_token])

# ---------------------------------------------------------------------------------------------------------------------
# training and validation rows

def prompt_key(row, eot):
    """The tokens that may stand in one split only: the prompt, or the text itself if it has no prompt."""
    return tuple(row["chosen"] if row["prompt"] == [eot] else row["prompt"])

def hold_out(rows, eot):
    """
    Rows -> (training rows, validation rows). About one prompt in ten is held out for validation, with all of its rows.
    A hash of the prompt decides, not its position: SFT and preference training then hold out the same prompts, although
    they drop different rows. Each part gets at least one prompt if there are two, and if possible one of each label.
    """
    buckets, groups = [zlib.crc32(str(prompt_key(row, eot)).encode()) % 1000 for row in rows], {}
    for row, bucket in zip(rows, buckets):
        groups.setdefault(row.get("label"), []).append(bucket)
    limit = max([100, *(min(group) + 1 for group in groups.values())])    # the first 100 of 1,000 buckets, or more
    limit = min([limit, *(max(group) for group in groups.values())])      # fewer if training would have no prompt
    train = [row for row, bucket in zip(rows, buckets) if bucket >= limit]
    val = [row for row, bucket in zip(rows, buckets) if bucket < limit]
    return train, val

def divide(rows, eot):
    """
    {split: rows} of a source -> ({"train": rows, "val": rows}, n). No prompt is in both parts: n validation rows were
    removed because training has their prompt. A source without validation rows gets them from hold_out.
    """
    if not rows.get("train"):    # a sample of a data set may hold its test files alone
        rows = {"train": sum(rows.values(), [])}
    train, val = rows["train"], rows.get("val")
    if not val:
        train, val = hold_out(train, eot)
    known = {prompt_key(row, eot) for row in train}
    kept = [row for row in val if prompt_key(row, eot) not in known]
    return {"train": train, "val": kept}, len(val) - len(kept)

def subsample(rows, n):
    """n of the rows, the same ones in every call; all rows if n is None or there are fewer."""
    return random.Random(0).sample(rows, n) if n and n < len(rows) else rows

def load_rows(data, data_dir, tokenizer, max_len, max_prompt_len=None, pairs=True, n_val=None, say=print, gaps=False,
              labeled=False):
    """
    {"train": rows, "val": at most n_val rows} of a data set. Prints how many rows there are, how many were dropped, and
    why. Raises ValueError or OSError in one line.
    """
    splits, dropped = load_examples(data, data_dir, pairs, say, gaps, labeled)
    if "train" in splits:
        splits.pop("test", None)    # never for training; but a sample of a data set may hold nothing else
    rows = {}
    for split, examples in splits.items():
        rows[split], more = make_rows(examples, tokenizer, max_len, max_prompt_len)
        dropped += more
    rows, n_shared = divide(rows, tokenizer.eot_token)
    dropped += Counter({"with a prompt of training in validation": n_shared})
    train, val = rows["train"], rows["val"]
    if not train or not val:
        raise ValueError(f"{data}: training and validation need at least one prompt each, and {len(train + val)} rows "
                         f"are left; dropped: {listed(dropped)}")
    kept = subsample(val, n_val)
    of_all = f" of {len(val):,}" if len(kept) < len(val) else ""
    say(f"data: {data}, {len(train):,} rows to train on, {len(kept):,}{of_all} to validate; dropped: {listed(dropped)}")
    return {"train": train, "val": kept}

def fingerprint(rows):
    """16 hex digits of the SHA-256 of {"train": rows, "val": rows}. --resume compares it with the run's own."""
    digest = hashlib.sha256()
    for row in rows["train"] + rows["val"]:
        content = [row[field] for field in ("prompt", *SIDES, "label", "gap") if field in row]
        digest.update(repr(content).encode())
    return digest.hexdigest()[:16]

def flip_labels(rows, share, seed):
    """Label noise: swaps chosen and rejected, or the label, in a random share of the rows. Returns their number."""
    if not 0 <= share <= 1:
        raise ValueError(f"--label_noise {share}: expected a share of the pairs, from 0 to 1")
    flipped = random.Random(f"labels {seed}").sample(rows, round(share * len(rows)))
    for row in flipped:
        if "label" in row:
            row["label"] = 1 - row["label"]
            continue
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        row |= {"gap": -row["gap"]} if "gap" in row else {}    # rewards stay with their completions
    return len(flipped)

# ---------------------------------------------------------------------------------------------------------------------
# rows -> batches

def pad(lists, value=0):
    """
    N lists of numbers -> a tensor (N, T) and their lengths (N,), both int64. T is the longest length. `value` fills the
    rest at the right. This needs no attention mask: GPT-2 is causal, so no token of a text sees the padding behind it.
    """
    lens = torch.tensor([len(numbers) for numbers in lists])
    idx = torch.full((len(lists), max(map(len, lists))), value)
    for i, numbers in enumerate(lists):
        idx[i, :len(numbers)] = torch.tensor(numbers, dtype=torch.long)
    return idx, lens

def one_row_a_completion(rows, sides):
    """
    Each completion in a row of its own, behind its prompt: idx (N, T), completion_mask (N, T) bool. N = 2B for pairs:

        prompt 1 | chosen 1
        prompt 2 | chosen 2        all chosen completions on top, so that chunk(2) separates the sides
        prompt 1 | rejected 1
        prompt 2 | rejected 2
    """
    texts, starts = [], []    # starts: where each completion begins
    for side in sides:
        texts += [row["prompt"] + row[side] for row in rows]
        starts += [len(row["prompt"]) for row in rows]
    idx, ends = pad(texts)                                          # (N, T), (N,)
    starts = torch.tensor(starts)                                   # (N,)
    position = torch.arange(idx.shape[1])                           # (T,)
    # False on the prompt, True on the completion with its EOS, False on the padding
    mask = (position >= starts[:, None]) & (position < ends[:, None])    # (N, T)
    return {"idx": idx, "completion_mask": mask}

def one_row_a_pair(rows):
    """
    Both completions in one row, behind a prompt that is computed once: idx (B, T) and segments (B, T).

        prompt 1 | chosen 1 | rejected 1        segments: 0 on the prompt, 1 on chosen, 2 on rejected, 3 on the padding
    """
    texts, segments = [], []
    for row in rows:
        prompt, chosen, rejected = row["prompt"], row["chosen"], row.get("rejected", [])
        texts.append(prompt + chosen + rejected)
        segments.append([0] * len(prompt) + [1] * len(chosen) + [2] * len(rejected))
    return {"idx": pad(texts)[0], "segments": pad(segments, value=3)[0]}

def weight_of(row):
    """How much a row counts in a mean: 1 for a pair or a labelled text, else the number of its completion's tokens."""
    return 1 if "rejected" in row or "label" in row else len(row["chosen"])

def collate(rows, share_prefix=False):
    """
    B rows -> a batch, a dict of tensors:

        idx, completion_mask   (N, T)  one_row_a_completion: N = 2B for pairs, B for texts
        idx, segments          (B, T)  one_row_a_pair, if share_prefix
        weight                         a number: the sum of weight_of, by which the batch's loss is divided
        label, gap, ref_...    (B,)    where the rows have them
        kl_idx, kl_mask        (B, T') the mismatched completions, where the rows have them
    """
    sides = [side for side in SIDES if side in rows[0]]
    if "rejected_prompt" in rows[0]:    # each completion behind its own prompt
        batch = one_row_a_completion(unpaired.apart(rows), ["chosen"])
    else:
        batch = one_row_a_pair(rows) if share_prefix else one_row_a_completion(rows, sides)
    batch["weight"] = sum(map(weight_of, rows))
    for field in ("label", "gap", "ref_chosen_logps", "ref_rejected_logps", "ref_kl_logps"):
        if field in rows[0]:
            batch[field] = torch.tensor([row[field] for row in rows])
    if "mismatched" in rows[0]:
        kl = one_row_a_completion([row["mismatched"] for row in rows], ["chosen"])
        batch["kl_idx"], batch["kl_mask"] = kl["idx"], kl["completion_mask"]
    return batch

def width_of(row, share_prefix=False):
    """The tokens that a row takes in a batch: its longest text, or in one row a pair all of its parts."""
    if share_prefix:
        return len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"])
    return max(len(unpaired.prompt_of(row, side)) + len(row[side]) for side in SIDES if side in row)

def pieces(items, size):
    """A list in pieces of `size` items. The last piece may be smaller."""
    return [items[start:start + size] for start in range(0, len(items), size)]

class Batches:
    """
    batches[i] is batch i of an endless shuffled stream. It depends on (seed, i) alone, so a run can resume at any i. An
    epoch of len(batches) batches holds every row once. `for batch in batches` is one pass in a fixed order, for
    validation. Rows of similar length go together, so that a batch has little padding.
    """
    def __init__(self, rows, batch_size, seed=0, share_prefix=False):
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.collate = functools.partial(collate, share_prefix=share_prefix)
        self.lengths = [width_of(row, share_prefix) for row in rows]
        self.epoch, self.order = None, None    # the epoch that was shuffled last, and its batches

    def __len__(self):
        return math.ceil(len(self.rows) / self.batch_size)

    def shuffled(self, epoch):
        """The batches of an epoch, as lists of row numbers."""
        rng = random.Random(f"{self.seed} {epoch}")
        numbers = list(range(len(self.rows)))
        rng.shuffle(numbers)
        # Within blocks of 16 batches: with all rows sorted, a batch would hold nearly the same rows in every epoch
        by_length = []
        for block in pieces(numbers, 16 * self.batch_size):
            by_length += sorted(block, key=self.lengths.__getitem__)
        batches = pieces(by_length, self.batch_size)
        rng.shuffle(batches)
        return batches

    def numbers(self, i):
        """The numbers of the rows in batch i."""
        epoch, position = divmod(i, len(self))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.shuffled(epoch)
        return self.order[position]

    def share(self, rows):
        """The rows of a batch -> the batch of every N-th row, for one of N processes; "total" is the weight of all."""
        total = sum(map(weight_of, rows))
        mine = rows[parallel.rank()::parallel.world()]
        if mine:
            return self.collate(mine) | {"total": total}
        # Fewer rows than processes: this one computes a row of weight 0, because all processes take part in each step
        return self.collate(rows[:1]) | {"weight": 0, "total": total}

    def __getitem__(self, i):
        return self.share([self.rows[number] for number in self.numbers(i)])

    def one_by_one(self, i):
        """The rows of batch i, as pairs of a row's number and a batch of this row alone."""
        return ((number, self.collate([self.rows[number]])) for number in self.numbers(i))

    def groups(self):
        """Yields the batches of one pass in a fixed order, shortest rows first, as lists of rows."""
        # The pairs of a prompt stay together: they share completions, which logps.batch_logps computes once in a batch
        of_prompt = {}    # prompt -> the numbers of its rows
        for number, row in enumerate(self.rows):
            of_prompt.setdefault(tuple(row["prompt"]) if "rejected" in row else number, []).append(number)
        by_length = sorted(of_prompt.values(), key=lambda numbers: max(self.lengths[number] for number in numbers))
        for numbers in pieces(list(chain.from_iterable(by_length)), self.batch_size):
            yield [self.rows[number] for number in numbers]

    def __iter__(self):
        return map(self.share, self.groups())

# ---------------------------------------------------------------------------------------------------------------------
# a look at a data set

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--data", default="toy", help="a data set or a path, as for train_sft.py (default: %(default)s)")
    p.add_argument("--data_dir", help="folder with the data set's files, instead of the hub")
    p.add_argument("--bpe", choices=("bytes",), help="one token per byte; needs no BPE files (default: GPT-2's BPE)")
    p.add_argument("--texts", action="store_true", help="rows for SFT: one completion each, also of a file of pairs")
    p.add_argument("--max_prompt_len", type=cli.positive,
                   help="tokens; a longer prompt loses its beginning (default: no cut)")
    p.add_argument("--max_len", type=cli.positive, default=1024,
                   help="tokens of prompt and completion (default: %(default)s)")
    p.add_argument("--show", type=cli.count, default=3, help="rows to print (default: %(default)s)")
    return p.parse_args(argv)

def print_rows(split, examples, tokenizer, max_len, max_prompt_len, n_shown):
    """Prints how many examples of a split are kept, cut and dropped, how long they are, and n_shown rows."""
    rows, dropped = make_rows(examples, tokenizer, max_len, max_prompt_len)
    n_cut = sum(any(row[side][-1] != tokenizer.eot_token for side in SIDES if side in row) for row in rows)
    labels = f" ({unpaired.counted(rows)})" if rows and "label" in rows[0] else ""
    print(f"\n{split}: {len(rows):,} of {len(examples):,} rows kept{labels}, {n_cut:,} of them cut at {max_len} "
          f"tokens; dropped: {listed(dropped)}")
    print("tokens of prompt and longest completion:", *histogram([width_of(row) for row in rows]), sep="\n")
    for row in rows[:n_shown]:
        print()
        for field, value in row.items():
            text = "" if field == "label" else f"({len(value)} tokens)  {decode(tokenizer, value)!r}"
            print(f"{field:8} {text or unpaired.LABELS[value]}")

def main(argv=None):
    args = get_args(argv)
    with cli.interruptible("data.py", args, argv), cli.bad_input():
        check_source(args.data, args.data_dir)
        if args.bpe and args.data == "toy":
            raise ValueError("--bpe has no effect on --data toy, which has a tokenizer of its own")
        tokenizer = get_tokenizer(args.data, tokenizers.BYTES if args.bpe else None)
        pairs = args.data not in ("toy", *PAIRLESS) and not args.texts
        splits, dropped = load_examples(args.data, args.data_dir, pairs, labeled=True)
        print(f"{args.data}: dropped while reading: {listed(dropped)}")
        for split, examples in splits.items():
            print_rows(split, examples, tokenizer, args.max_len, args.max_prompt_len, args.show)

if __name__ == "__main__":
    main()
