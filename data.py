"""
Text -> rows -> batches, for every data set; pairs by sampling and ranking.

    examples   dicts of text: prompt, chosen, rejected (rejected only for pairs)
    rows       dicts of token lists: prompt, chosen, rejected; a completion ends in EOS unless it was cut
    batches    dicts of tensors: idx (N, T), completion_mask (N, T), weight; for pairs N = 2B, chosen on top of rejected

Data sets: toy; hh (Anthropic's HH-RLHF, single-turn); or a path to .json, .jsonl, .jsonl.gz, .csv or .parquet with prompt, chosen,
rejected (strings or lists of messages), with instruction (and input) in the prompt's place, or with text. Read next: losses.py
"""
import csv
import gzip
import hashlib
import json
import os
import random
import re
import zlib
from collections import Counter
from pathlib import Path

import tiktoken
import torch

import toy

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet")
SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "dev": "val", "test": "test", "eval": "test"}

# ---------------------------------------------------------------------------------------------------------------------
# files -> records

def read_records(path):
    """Yields ("file, row n", dict) for each row of a file. Raises ValueError in one line that names file and row."""
    path, row = Path(path), 1
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet
            records = pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".csv":
            csv.field_size_limit(2**31 - 1)
            records = csv.DictReader(open(path, encoding="utf-8-sig", newline=""), strict=True)
        elif path.suffix == ".json":
            records = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(records, list):
                raise ValueError("expected one JSON array of objects; for an object a line, name the file .jsonl")
        else:
            # the file itself, not read().splitlines(): that would also cut at U+0085, which stands inside real reviews
            lines = (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="\n")
            records = (json.loads(line) if line.strip() else ... for line in lines)
        for record in records:
            if record is not ...:    # a blank line
                if not isinstance(record, dict):
                    raise ValueError(f"expected an object with named fields, got {short(record)}")
                if None in record:
                    raise ValueError(f"more fields than the header names: {short(record[None])} are too many; quote texts with commas")
                yield f"{path}, row {row}", record
            row += 1
    except (ValueError, EOFError, RecursionError, zlib.error, gzip.BadGzipFile, csv.Error) as e:
        kind = {UnicodeDecodeError: "not UTF-8, here or soon after: ", json.JSONDecodeError: "not valid JSON, perhaps cut short: ",
                EOFError: "gzip cut short: ", zlib.error: "damaged gzip: ", gzip.BadGzipFile: "damaged gzip: "}.get(type(e), "")
        raise ValueError(f"{path}{'' if path.suffix == '.json' and row == 1 else f', row {row}'}: {kind}{e}") from None

def short(value):
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."

# ---------------------------------------------------------------------------------------------------------------------
# records -> examples

ROLES = {"user": "Human", "human": "Human", "assistant": "Assistant", "gpt": "Assistant"}
ALPACA = ("Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
          "### Instruction:\n{}\n\n{}### Response:")    # Stanford Alpaca's template, github.com/tatsu-lab/stanford_alpaca

def text_of(record, field, where):
    if not isinstance(record.get(field), str):
        got = short(record[field]) if field in record else f"a row with {', '.join(map(str, record)) or 'nothing'}"
        raise ValueError(f"{where}, field {field!r}: expected text, got {got}")
    return record[field]

def render(messages, field, where):
    """Messages as one dialogue in HH's format, \\n\\nHuman: ...\\n\\nAssistant: ...; a system message stands first, as it is."""
    out = ""
    for m in messages:
        if not (isinstance(m, dict) and isinstance(m.get("content"), str) and m.get("role") in (*ROLES, "system")):
            raise ValueError(f"{where}, field {field!r}: expected messages of role (user, assistant, system) and content, got {short(m)}")
        out += m["content"] if m["role"] == "system" else f"\n\n{ROLES[m['role']]}: {m['content']}"
    return out

def split_answer(record, field, where):
    """(messages before the answer, the answer) of a list of messages; (None, the text) of a string."""
    value = record.get(field)
    if not isinstance(value, list):
        return None, text_of(record, field, where)
    if not render(value, field, where) or ROLES.get(value[-1]["role"]) != "Assistant":
        raise ValueError(f"{where}, field {field!r}: expected messages that end with the assistant's, got {short(value)}")
    return value[:-1], value[-1]["content"]

def example_of(record, where, pairs):
    """One row of a local file -> a dict with prompt, chosen and, if pairs, rejected; or the reason why it is dropped."""
    # supervised data calls its one answer completion, output or text
    sides = ("chosen", "rejected") if pairs else (next((f for f in ("chosen", "completion", "output", "text") if f in record), "chosen"),)
    befores, answers = zip(*(split_answer(record, side, where) for side in sides))
    messages, prompt = befores[0], record.get("prompt")
    if any(b != messages for b in befores):
        return "chosen and rejected have different prompts"
    if isinstance(prompt, list):
        messages = max(messages or [], prompt, key=len)    # the answers may repeat the prompt, or leave its system message out
    elif messages == []:
        messages = [{"role": "user", "content": text_of(record, "prompt", where)}]
    if messages:
        prompt = render(messages, "prompt", where) + "\n\nAssistant:"
        answers = [" " + a for a in answers]
    elif "prompt" in record:
        prompt = text_of(record, "prompt", where)
    elif "instruction" in record:
        given = f"### Input:\n{text_of(record, 'input', where)}\n\n" if record.get("input") else ""
        more = ", paired with an input that provides further context" if given else ""
        prompt = ALPACA.format(more, text_of(record, "instruction", where), given)
    elif sides == ("text",):
        prompt = ""
    else:
        raise ValueError(f"{where}, field 'prompt': missing, as is 'instruction'; the row has {', '.join(map(str, record))}")
    return {"prompt": prompt, **dict(zip(("chosen", "rejected"), answers))}

# only with the line break and the colon: the bare words occur inside answers
TURN = re.compile(r"\n\n(Human|Assistant):")

def hh_example(record, where, pairs):
    """
    Anthropic's HH-RLHF: each side is a whole dialogue in one string. Only single-turn ones are kept, as in the DPO paper's dialogue
    task. The two sides are parsed apart: cutting `rejected` at the length of chosen's prompt corrupts the rows where prompts differ.
    """
    out = {}
    for side in ("chosen", "rejected") if pairs else ("chosen",):
        start, *turns = TURN.split(text_of(record, side, where))
        if start or turns[::2] != ["Human", "Assistant"]:
            return "not single-turn"
        prompt = f"\n\nHuman:{turns[1]}\n\nAssistant:"
        if out.setdefault("prompt", prompt) != prompt:
            return "chosen and rejected have different prompts"
        out[side] = turns[3]
    return out

# name -> (the hub's name, function from a record to an example or to the reason why it is dropped)
HUB = {"hh": ("Anthropic/hh-rlhf", hh_example)}

def check_source(data, data_dir):
    """Raises ValueError, before anything is fetched, for a data set that there is not."""
    if data_dir and data not in HUB:
        raise ValueError(f"--data_dir has no effect on --data {data}: it goes with {', '.join(HUB)}")
    if data not in ("toy", *HUB) and not (data.endswith(SUFFIXES) and Path(data).is_file()):
        raise ValueError(f"{data}: no such file or data set; there are toy, {', '.join(HUB)}, and paths to {' '.join(SUFFIXES)} files")

def records_of(data, data_dir):
    """Yields (split, where, record) from a file, a folder, or the hub; a file's split is read off its name or its folder's."""
    if data not in HUB:
        for where, record in read_records(data):
            yield "train", where, record
    elif data_dir:
        files = sorted(f for f in Path(data_dir).rglob("*") if f.name.endswith(SUFFIXES))
        if not files:
            raise ValueError(f"{data_dir}: holds no file that ends in {', '.join(SUFFIXES)}")
        for file in files:
            words = re.split(r"[^a-z]+", str(file.relative_to(data_dir)).lower())
            split = next((SPLITS[w] for w in reversed(words) if w in SPLITS), "train")
            for where, record in read_records(file):
                yield split, where, record
    else:
        import datasets
        try:
            loaded = datasets.load_dataset(HUB[data][0])
        except Exception as e:    # the client raises a dozen kinds; for the user they are one
            raise ValueError(f"{data}: {HUB[data][0]} could not be had from the hub ({type(e).__name__}); offline, give its files with "
                             f"--data_dir, or set HF_HOME to a cache that holds it") from None
        for split, part in loaded.items():
            for row, record in enumerate(part, 1):
                yield SPLITS.get(split, "train"), f"{HUB[data][0]} {split}, row {row}", record

def load_examples(data, data_dir=None, pairs=True):
    """
    ({split: examples} as the source has them, a Counter of what was dropped and why). Raises ValueError or OSError in one line.

    data      toy, a name of HUB, or a path to a file
    data_dir  a folder with the files of a HUB data set, instead of the hub
    pairs     whether `rejected` is needed
    """
    check_source(data, data_dir)
    if data == "toy":
        return {"train": toy.examples("train", 20_000), "val": toy.examples("val", 512)}, Counter()
    splits, dropped = {}, Counter()
    for split, where, record in records_of(data, data_dir):
        example = (HUB[data][1] if data in HUB else example_of)(record, where, pairs)
        if isinstance(example, str):
            dropped[example] += 1
        else:
            splits.setdefault(split, []).append(example)
    return splits, dropped

# ---------------------------------------------------------------------------------------------------------------------
# examples -> rows

def get_tokenizer(data):
    """A tiktoken.Encoding: the toy world's own, else GPT-2's."""
    if data == "toy":
        return toy.encoding()
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as e:    # requests' errors, a hash that does not fit, a folder that cannot be written
        raise ValueError(f"GPT-2's BPE files could not be had ({type(e).__name__}); connect once, or set TIKTOKEN_CACHE_DIR to a folder "
                         "where tiktoken has left them") from None

def make_rows(examples, tokenizer, max_len, max_prompt_len=None):
    """
    (rows, a Counter of what was dropped and why). Prompt and completion are encoded apart, so that no merge spans the boundary.

    max_prompt_len  a longer prompt loses its beginning; None: prompts stay whole
    max_len         of prompt and completion together; a longer completion loses its end, and then has no EOS
    """
    sides = [s for s in ("chosen", "rejected") if examples and s in examples[0]]
    # encode_ordinary: a literal "<|endoftext|>" in a text stays text
    prompts, *completions = (tokenizer.encode_ordinary_batch([e[field] for e in examples]) for field in ["prompt", *sides])
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
            rows.append({"prompt": prompt, **dict(zip(sides, answers))})
    return rows, dropped

def divide(rows):
    """{split: rows} of a source -> {"train": rows, "val": rows}, disjoint by prompt, and how many validation rows that has cost."""
    key = lambda row: tuple(row["prompt"] if len(row["prompt"]) > 1 else row["chosen"])
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

def load_rows(data, data_dir, tokenizer, max_len, max_prompt_len=None, pairs=True):
    """{"train": rows, "val": rows}; prints, once, what was dropped and why. Raises ValueError or OSError in one line."""
    splits, dropped = load_examples(data, data_dir, pairs)
    made = {split: make_rows(examples, tokenizer, max_len, max_prompt_len) for split, examples in splits.items()}
    rows, shared = divide({split: part for split, (part, _) in made.items()})
    dropped = sum((more for _, more in made.values()), dropped + Counter({"with a prompt of training in validation": shared}))
    reasons = ", ".join(f"{n:,} {why}" for why, n in dropped.most_common()) or "none"
    if not rows["train"] or not rows["val"]:
        raise ValueError(f"{data}: training and validation need a prompt each, and {len(rows['train'] + rows['val'])} rows are left; "
                         f"dropped: {reasons}")
    print(f"data: {data}, {len(rows['train']):,} rows to train on, {len(rows['val']):,} to validate; dropped: {reasons}")
    return rows

# ---------------------------------------------------------------------------------------------------------------------
# rows -> batches

def collate(rows):
    """
    A batch of rows: idx (N, T) and completion_mask (N, T) bool, padded at the right. For pairs N = 2B: chosen on top of rejected,
    and, once they are known, ref_chosen_logps and ref_rejected_logps (B,). weight is what a mean is taken over: pairs, or tokens.
    """
    sides = [s for s in ("chosen", "rejected") if s in rows[0]]
    texts = [(r["prompt"], r[s]) for s in sides for r in rows]
    T = max(len(p) + len(c) for p, c in texts)
    idx = torch.zeros(len(texts), T, dtype=torch.long)
    mask = torch.zeros(len(texts), T, dtype=torch.bool)
    for i, (p, c) in enumerate(texts):
        idx[i, :len(p) + len(c)] = torch.tensor(p + c)
        mask[i, len(p):len(p) + len(c)] = True
    batch = {"idx": idx, "completion_mask": mask, "weight": len(rows) if len(sides) == 2 else int(mask.sum())}
    for key in ("ref_chosen_logps", "ref_rejected_logps"):
        if key in rows[0]:
            batch[key] = torch.tensor([r[key] for r in rows])
    return batch

class Batches:
    """
    batches[i] is the i-th batch of an endless shuffled stream, a function of (seed, i) alone: a run resumes at any i. Iterating
    gives one pass in a fixed order, for validation. Rows of like length go together, so that little is padding; within
    blocks of 16 batches only, so that an epoch is still shuffled. The last batch of an epoch may be smaller: nothing is left out.
    """
    def __init__(self, rows, batch_size, seed=0):
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, None
        self.lengths = [len(r["prompt"]) + max(len(r["chosen"]), len(r.get("rejected", ""))) for r in rows]

    def __len__(self):
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, i):
        epoch, position = divmod(i, len(self))
        if epoch != self.epoch:
            rng, order = random.Random(f"{self.seed} {epoch}"), list(range(len(self.rows)))
            rng.shuffle(order)
            block = 16 * self.batch_size
            order = [i for at in range(0, len(order), block) for i in sorted(order[at:at + block], key=self.lengths.__getitem__)]
            self.order = [order[at:at + self.batch_size] for at in range(0, len(order), self.batch_size)]
            rng.shuffle(self.order)
            self.epoch = epoch
        return collate([self.rows[j] for j in self.order[position]])

    def groups(self):
        """One pass in a fixed order, shortest first, as lists of rows."""
        order = sorted(range(len(self.rows)), key=self.lengths.__getitem__)
        for at in range(0, len(order), self.batch_size):
            yield [self.rows[j] for j in order[at:at + self.batch_size]]

    def __iter__(self):
        return map(collate, self.groups())

# ---------------------------------------------------------------------------------------------------------------------
# pairs by sampling and ranking

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

def decode(tokenizer, tokens):    # without the EOS
    return tokenizer.decode([t for t in tokens if t != tokenizer.eot_token])

def make_pairs(model, tokenizer, prompts, reward, folder, recipe, *, max_new_tokens, k=4, seed=0):
    """
    Preference pairs as the DPO paper makes them for IMDB: k completions a prompt from the SFT policy, ranked by a reward, and of their
    pairs all that differ in it. Returns the file, which stays in `folder`, the run they were sampled from, and is reused while the
    recipe is unchanged. prompts: {"train": texts, "val": texts}; reward: text -> float; recipe: what else the pairs depend on.
    """
    recipe = json.dumps([recipe, prompts, k, max_new_tokens, seed], sort_keys=True)
    path = Path(folder) / f"pairs-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}.jsonl"
    if path.exists():
        print(f"pairs: {path}, sampled before by the same recipe")
        return path
    with open(path.with_suffix(".tmp"), "w", encoding="utf-8") as f:
        for split, texts in prompts.items():
            tokens, n = tokenizer.encode_ordinary_batch(texts), 0
            answers = sample_completions(model, tokenizer, [t for t in tokens for _ in range(k)], max_new_tokens, seed=seed)
            for i, text in enumerate(texts):
                drawn = [{"text": decode(tokenizer, a), "tokens": a} for a in answers[i * k:i * k + k]]
                drawn = [d | {"reward": reward(text + d["text"])} for d in drawn]
                for chosen, rejected in ((a, b) for a in drawn for b in drawn if a["reward"] > b["reward"]):
                    row = {"split": split, "prompt": {"text": text, "tokens": tokens[i]}, "chosen": chosen, "rejected": rejected}
                    f.write(json.dumps(row) + "\n")
                    n += 1
            if not n:
                raise ValueError(f"no pairs: for none of {len(texts)} {split} prompts do two of {k} samples differ in reward; sample more "
                                 "prompts, or train the SFT policy longer")
            print(f"pairs: {len(texts):,} {split} prompts x {k} samples gave {n:,} pairs that differ in reward -> {path}")
    os.replace(path.with_suffix(".tmp"), path)
    return path

def read_pairs(path):
    """{"train": rows, "val": rows} of a file of make_pairs."""
    rows = {"train": [], "val": []}
    for _, record in read_records(path):
        # tokens, not text: a sample that was cut has no EOS, which text cannot say
        rows[record["split"]].append({side: record[side]["tokens"] for side in ("prompt", "chosen", "rejected")})
    return rows
