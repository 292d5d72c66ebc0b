"""
Where text comes from: files, folders and the hub -> examples, dicts of text with prompt, chosen and, for pairs, rejected.

Data sets: toy; imdb (film reviews with labels); hh (Anthropic's HH-RLHF, single-turn); ultrafeedback (instructions); tldr (summaries of
Reddit posts); cnn_dailymail (news, for evaluation only); or a path to .json, .jsonl, .jsonl.gz, .csv or .parquet with prompt, chosen,
rejected (strings or lists of messages), or the other layouts of messages.py. Read next: data.py
"""
import csv
import gzip
import json
import math
import re
import zlib
from collections import Counter
from pathlib import Path

from support.tokenizers import check_text
from support.messages import DIFFERENT, TURN, Remarks, example_of, short, text_of

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet")
LINE = 2**26
SPLITS = {"train": "train", "unsup": "train", "unsupervised": "train",
          "val": "val", "validation": "val", "valid": "val", "dev": "val", "test": "test", "eval": "test"}

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
            file = (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="\n")
            lines = (whole(line) for line in iter(lambda: file.readline(LINE), ""))
            records = (json.loads(line) if line.strip() else ... for line in lines)
        for record in records:
            if record is not ...:    # a blank line
                if not isinstance(record, dict):
                    raise ValueError(f"expected an object with named fields, got {short(record)}")
                if None in record:
                    raise ValueError(f"more fields than the header names: {short(record[None])} are too many; quote texts with commas")
                yield f"{path}, row {row}", record
            row += 1
    except (ValueError, EOFError, RecursionError, MemoryError, zlib.error, gzip.BadGzipFile, csv.Error) as e:
        kind = {UnicodeDecodeError: "not UTF-8, here or soon after: ", json.JSONDecodeError: "not valid JSON, perhaps cut short: ",
                EOFError: "gzip cut short: ", zlib.error: "damaged gzip: ", gzip.BadGzipFile: "damaged gzip: "}.get(type(e), "")
        raise ValueError(f"{path}{'' if path.suffix == '.json' and row == 1 else f', row {row}'}: {kind}{e}") from None

def whole(line):
    if len(line) == LINE:    # a few bytes of gzip can say as much as any memory holds
        raise ValueError(f"a line of more than {LINE:,} characters")
    return line

# ---------------------------------------------------------------------------------------------------------------------
# records -> examples

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
            return DIFFERENT
        out[side] = turns[3]
    return out

def imdb_example(record, where, pairs):
    """
    Film reviews (Maas et al. 2011), without a prompt: the review is what is learned. positive: its label, None where it has none. Its
    pairs are made: sampled, and ranked by a reward model.
    """
    if pairs:
        raise ValueError("imdb: has labels and no pairs; pairs are made from it by sampling, with a reward model")
    label = int(record["label"]) if str(record.get("label")) in ("0", "1", "-1") else None
    if label is None:
        raise ValueError(f"{where}, field 'label': expected 1, 0 or -1, got {short(record.get('label'))}")
    text = BREAK.sub("\n", text_of(record, "text", where)).strip()
    return {"prompt": "", "chosen": text, "positive": None if label < 0 else label == 1}

BREAK = re.compile(r"\s*(?:<br\s*/?>\s*)+")    # in 59% of the reviews

def ultrafeedback_example(record, where, pairs):
    """Messages on both sides. The column prompt repeats the first of them, and is not read."""
    return example_of({name: value for name, value in record.items() if name != "prompt"}, where, pairs)

def field_of(record, field, kind, where):
    if not isinstance(record.get(field), kind):
        raise ValueError(f"{where}, field {field!r}: expected {kind.__name__}, got {short(record.get(field))}")
    return record[field]

def tldr_example(record, where, pairs):
    """
    Comparisons of two summaries of a Reddit post (Stiennon et al. 2020, arXiv:2009.01325), the post laid out as there. The same files
    hold news articles, which are left out: cnn_dailymail is what they are for.
    """
    info = field_of(record, "info", dict, where)
    if not info.get("post"):
        return "not a Reddit post"
    if not record.get("summaries"):
        return "not a comparison"    # of the same files, ratings of single summaries
    summaries = field_of(record, "summaries", list, where)
    if len(summaries) != 2 or record.get("choice") not in (0, 1):
        raise ValueError(f"{where}: expected two summaries and a choice of 0 or 1, got {len(summaries)} and {short(record.get('choice'))}")
    texts = [text_of(s if isinstance(s, dict) else {}, "text", f"{where}, summary {i + 1}") for i, s in enumerate(summaries)]
    subreddit, title, post = (text_of(info, field, where) for field in ("subreddit", "title", "post"))
    chosen, rejected = texts if record["choice"] == 0 else texts[::-1]
    prompt = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
    return {"prompt": prompt, "chosen": chosen, **({"rejected": rejected} if pairs else {})}

def cnn_example(record, where, pairs):
    """News articles and their highlights (Hermann et al. 2015), asked for a summary as tldr does: out of its distribution."""
    if pairs:
        raise ValueError("cnn_dailymail: is for evaluation only, and has no pairs")
    highlights = " ".join(text_of(record, "highlights", where).split())
    return {"prompt": f"{text_of(record, 'article', where).strip()}\n\nTL;DR:", "chosen": " " + highlights}

PAIRLESS, DIALOGUES = ("imdb", "cnn_dailymail"), ("hh", "ultrafeedback")

# name -> (what datasets.load_dataset takes, function from a record to an example or to the reason why it is dropped)
HUB = {"imdb": ({"path": "stanfordnlp/imdb"}, imdb_example), "hh": ({"path": "Anthropic/hh-rlhf"}, hh_example),
       "ultrafeedback": ({"path": "HuggingFaceH4/ultrafeedback_binarized"}, ultrafeedback_example),
       # a data set with a loading script, which `datasets` no longer runs: the hub's own conversion of it
       "tldr": ({"path": "openai/summarize_from_feedback", "name": "comparisons", "revision": "refs/convert/parquet"}, tldr_example),
       "cnn_dailymail": ({"path": "abisee/cnn_dailymail", "name": "3.0.0"}, cnn_example)}

def check_source(data, data_dir, training=False):
    """Raises ValueError, before anything is fetched, for a data set that there is not, or that is not for training."""
    if training and data == "cnn_dailymail":
        raise ValueError("cnn_dailymail: is for evaluation only; train on tldr")
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
            loaded = datasets.load_dataset(**HUB[data][0])
        except Exception as e:    # the client raises a dozen kinds; for the user they are one
            raise ValueError(f"{data}: {HUB[data][0]['path']} could not be had from the hub ({type(e).__name__}); offline, give its files "
                             f"with --data_dir, or set HF_HOME to a cache that holds it") from None
        for split, part in loaded.items():
            if not split.endswith(("_sft", "_gen")):    # UltraFeedback's other splits: the same rows, for other uses
                for row, record in enumerate(part, 1):
                    yield SPLITS.get(split.split("_")[0], "train"), f"{HUB[data][0]['path']} {split}, row {row}", record

def load_examples(data, data_dir=None, pairs=True, say=print):
    """
    ({split: examples} as the source has them, a Counter of what was dropped and why). Raises ValueError or OSError in one line.

    data      a name of HUB, or a path to a file
    data_dir  a folder with the files of a HUB data set, instead of the hub
    pairs     whether `rejected` is needed
    say       where a line goes about what the texts hold that is not used, or not as one might think
    """
    check_source(data, data_dir)
    splits, dropped, seen, remarks = {}, Counter(), set(), Remarks(pairs)
    for split, where, record in records_of(data, data_dir):
        example = (HUB[data][1] if data in HUB else example_of)(record, where, pairs)
        if data == "imdb":    # some reviews stand there twice
            key = hash((split, example["chosen"]))
            example = "the same text again" if key in seen else example
            seen.add(key)
        if isinstance(example, str):
            dropped[example] += 1
        else:
            for field in (f for f in example if isinstance(example[f], str)):
                check_text(example[field], f"{where}, field {field!r}")
            splits.setdefault(split, []).append(example)
            remarks.note(split, example, *(() if data in HUB else (record, where)))
    if n := remarks.drop_unwanted(splits):
        dropped["labelled false"] = n
    for line in remarks.lines():
        say(f"data: {data}, {line}")
    return splits, dropped

# ---------------------------------------------------------------------------------------------------------------------
# counts -> text

def listed(dropped):
    """A Counter of reasons as text, the most frequent first, as in "6 chosen == rejected"; "none" if it is empty."""
    return ", ".join(f"{n:,} {reason}" for reason, n in dropped.most_common()) or "none"

def histogram(lengths, width=50):
    """Lines of text: how many lengths are at most 16, at most 32, at most 64, ... Each length counts once."""
    if not lengths:
        return []
    bins = Counter(max(4, (n - 1).bit_length()) for n in lengths)    # bin b holds the lengths up to 2**b
    lines = []
    for b in range(min(bins), max(bins) + 1):
        bar = "#" * math.ceil(bins[b] * width / max(bins.values()))
        lines.append(f"  <= {2**b:6,}  {bins[b]:8,}  {bar}")
    return lines
