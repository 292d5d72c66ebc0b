"""
The sources of examples: files, folders and the hub -> dicts of text with prompt, chosen and, for pairs, rejected.

The data sets are imdb (film reviews with labels), hh (Anthropic's HH-RLHF, single-turn), ultrafeedback (instructions),
tldr (summaries of Reddit posts), kto_mix (answers with thumbs up or down) and cnn_dailymail (news, for evaluation
only). A path to a .json, .jsonl, .jsonl.gz, .csv or .parquet file works too; messages.py reads its layouts. See
docs/data.md. Read next: data.py
"""
import csv
import gzip
import json
import math
import random
import re
import zlib
from collections import Counter
from pathlib import Path

from support.messages import DIFFERENT, TURN, Remarks, example_of, labeled_example, pairs_or_labels, short, text_of
from support.scores import check_scored, gap_of
from support.tokenizers import check_text

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet")
LONGEST_LINE = 2**26    # characters. A few bytes of gzip can be a line that does not fit into memory
BLANK = object()        # stands for a blank line, which is counted and not read
SPLITS = {"train": "train", "unsup": "train", "unsupervised": "train",
          "val": "val", "validation": "val", "valid": "val", "dev": "val", "test": "test", "eval": "test"}

# ---------------------------------------------------------------------------------------------------------------------
# files -> records. A reader: a path -> an iterable of the file's rows

def parquet_records(path):
    import pyarrow.parquet
    return pyarrow.parquet.read_table(path).to_pylist()

def csv_records(path):
    csv.field_size_limit(2**31 - 1)
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, strict=True)

def json_records(path):
    records = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(records, list):
        raise ValueError("expected one JSON array of objects; for one object per line, name the file .jsonl")
    return records

def jsonl_records(path):
    # readline on the file, not read().splitlines(): this also splits at U+0085, which real reviews contain
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8-sig", newline="\n") as file:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise ValueError(f"a line of more than {LONGEST_LINE:,} characters")
            yield json.loads(line) if line.strip() else BLANK

READERS = {".parquet": parquet_records, ".csv": csv_records, ".json": json_records}    # all others: jsonl_records
CAUSES = {UnicodeDecodeError: "not UTF-8, here or soon after: ", EOFError: "gzip cut short: ",
          json.JSONDecodeError: "not valid JSON, perhaps cut short: ",
          zlib.error: "damaged gzip: ", gzip.BadGzipFile: "damaged gzip: "}

def read_records(path):
    """Yields ("file, row n", dict) for each row of a file. Raises ValueError in one line that names file and row."""
    path, row = Path(path), 1
    try:
        for record in READERS.get(path.suffix, jsonl_records)(path):
            if record is not BLANK:
                if not isinstance(record, dict):
                    raise ValueError(f"expected an object with named fields, got {short(record)}")
                if None in record:    # where csv puts what is behind the last column
                    raise ValueError(f"more fields than the header names: {short(record[None])} are too many; "
                                     "quote texts with commas")
                yield f"{path}, row {row}", record
            row += 1
    except (ValueError, EOFError, RecursionError, MemoryError, zlib.error, gzip.BadGzipFile, csv.Error) as e:
        place = "" if path.suffix == ".json" and row == 1 else f", row {row}"    # an array is parsed as a whole
        raise ValueError(f"{path}{place}: {CAUSES.get(type(e), '')}{e}") from None

# ---------------------------------------------------------------------------------------------------------------------
# records of each data set -> examples, or the reason why a record is dropped

def hh_example(record, where, pairs):
    """
    Anthropic's HH-RLHF: each side is a whole dialogue in one string. Only single-turn dialogues are kept, as in the DPO
    paper. Both sides are parsed: in some rows the prompts differ, and cutting at the length of one corrupts the other.
    """
    example = {}
    for side in ("chosen", "rejected") if pairs else ("chosen",):
        start, *turns = TURN.split(text_of(record, side, where))
        if start or turns[::2] != ["Human", "Assistant"]:
            return "not single-turn"
        _, question, _, answer = turns
        prompt = f"\n\nHuman:{question}\n\nAssistant:"
        if example.setdefault("prompt", prompt) != prompt:
            return DIFFERENT
        example[side] = answer
    return example

BREAK = re.compile(r"\s*(?:<br\s*/?>\s*)+")    # in 59% of the reviews
SENTIMENTS = {"1": True, "0": False, "-1": None}

def imdb_example(record, where, pairs):
    """Film reviews (Maas et al. 2011), without a prompt: SFT learns them. positive: the label, or None without one."""
    if pairs:
        raise ValueError("imdb: has labels and no pairs; sampling makes pairs from it, with a reward model")
    label = str(record.get("label"))
    if label not in SENTIMENTS:
        raise ValueError(f"{where}, field 'label': expected 1, 0 or -1, got {short(record.get('label'))}")
    text = BREAK.sub("\n", text_of(record, "text", where)).strip()
    return {"prompt": "", "chosen": text, "positive": SENTIMENTS[label]}

def ultrafeedback_example(record, where, pairs):
    """Messages on both sides. The column prompt repeats the first message and is not read."""
    return example_of({name: value for name, value in record.items() if name != "prompt"}, where, pairs)

def field_of(record, field, kind, where):
    """The value of a field, which must be of a type. Raises ValueError otherwise."""
    if not isinstance(record.get(field), kind):
        raise ValueError(f"{where}, field {field!r}: expected {kind.__name__}, got {short(record.get(field))}")
    return record[field]

def tldr_example(record, where, pairs):
    """
    Comparisons of two summaries of a Reddit post, with their authors' prompt (Stiennon et al. 2020, arXiv:2009.01325).
    The files also hold news articles and ratings of single summaries, which are dropped.
    """
    info = field_of(record, "info", dict, where)
    if not info.get("post"):
        return "not a Reddit post"
    if not record.get("summaries"):
        return "not a comparison"
    summaries, choice = field_of(record, "summaries", list, where), record.get("choice")
    if len(summaries) != 2 or choice not in (0, 1):
        raise ValueError(f"{where}: expected two summaries and a choice of 0 or 1, got {len(summaries)} and "
                         f"{short(choice)}")
    texts = []
    for i, summary in enumerate(summaries, 1):
        texts.append(text_of(summary if isinstance(summary, dict) else {}, "text", f"{where}, summary {i}"))
    subreddit, title, post = (text_of(info, field, where) for field in ("subreddit", "title", "post"))
    prompt = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
    chosen, rejected = texts if choice == 0 else texts[::-1]
    return {"prompt": prompt, "chosen": chosen} | ({"rejected": rejected} if pairs else {})

def cnn_example(record, where, pairs):
    """News articles and their highlights (Hermann et al. 2015), with the end of TL;DR's prompt."""
    if pairs:
        raise ValueError("cnn_dailymail: is for evaluation only, and has no pairs")
    highlights = " ".join(text_of(record, "highlights", where).split())
    return {"prompt": f"{text_of(record, 'article', where).strip()}\n\nTL;DR:", "chosen": " " + highlights}

def kto_mix_example(record, where, pairs):
    """Messages with a label. For SFT, undesirable answers are dropped."""
    example = labeled_example(record, where)
    if not pairs and isinstance(example, dict) and not example.pop("desirable"):
        return "labelled false"
    return example

PAIRLESS, DIALOGUES = ("imdb", "cnn_dailymail"), ("hh", "ultrafeedback", "kto_mix")

# name -> (the arguments of datasets.load_dataset, the function from a record to an example)
HUB = {"imdb": ({"path": "stanfordnlp/imdb"}, imdb_example), "hh": ({"path": "Anthropic/hh-rlhf"}, hh_example),
       "ultrafeedback": ({"path": "HuggingFaceH4/ultrafeedback_binarized"}, ultrafeedback_example),
       # The hub's own conversion: `datasets` no longer runs the loading script of this data set
       "tldr": ({"path": "openai/summarize_from_feedback", "name": "comparisons", "revision": "refs/convert/parquet"},
                tldr_example),
       "kto_mix": ({"path": "trl-lib/kto-mix-14k"}, kto_mix_example),
       "cnn_dailymail": ({"path": "abisee/cnn_dailymail", "name": "3.0.0"}, cnn_example)}

# ---------------------------------------------------------------------------------------------------------------------
# a source -> examples

def check_source(data, data_dir, training=False, gaps=False):
    """
    Raises ValueError, before anything is downloaded, for an unknown data set, one that is not for training, or with
    gaps one without rewards.
    """
    if training and data == "cnn_dailymail":
        raise ValueError("cnn_dailymail: is for evaluation only; train on tldr")
    if gaps:
        check_scored(data)
    if data_dir and data not in HUB:
        raise ValueError(f"--data_dir has no effect on --data {data}: it is for {', '.join(HUB)}")
    if data not in ("toy", *HUB) and not (data.endswith(SUFFIXES) and Path(data).is_file()):
        raise ValueError(f"{data}: no such file or data set; there are toy, {', '.join(HUB)}, and paths to "
                         f"{' '.join(SUFFIXES)} files")

def folder_records(folder):
    """Yields (split, where, record) of a folder's files. The last word of a file's path that names a split decides."""
    files = sorted(file for file in Path(folder).rglob("*") if file.name.endswith(SUFFIXES))
    if not files:
        raise ValueError(f"{folder}: has no file that ends in {', '.join(SUFFIXES)}")
    for file in files:
        words = re.split(r"[^a-z]+", str(file.relative_to(folder)).lower())
        named = [SPLITS[word] for word in words if word in SPLITS]
        split = named[-1] if named else "train"
        for where, record in read_records(file):
            yield split, where, record

def hub_records(data):
    """Yields (split, where, record) of a data set of the hub. Raises ValueError if it cannot be loaded."""
    import datasets
    place = HUB[data][0]
    try:
        splits = datasets.load_dataset(**place)
    except Exception as e:    # a dozen types, which mean the same to the user
        raise ValueError(f"{data}: {place['path']} could not be loaded from the hub ({type(e).__name__}); offline, "
                         "give its files with --data_dir, or set HF_HOME to a cache that holds it") from None
    for split, records in splits.items():
        if split.endswith(("_sft", "_gen")):    # UltraFeedback's rows again, for other uses
            continue
        for row, record in enumerate(records, 1):
            yield SPLITS.get(split.split("_")[0], "train"), f"{place['path']} {split}, row {row}", record

def load_examples(data, data_dir=None, pairs=True, say=print, gaps=False, labeled=False):
    """
    ({split: examples}, a Counter of why examples were dropped). Raises ValueError or OSError in one line.

    data      a name of HUB, or a path to a file
    data_dir  a folder with the files of a data set of HUB, instead of the hub
    pairs     whether examples need `rejected`
    say       prints a line about text that is not used, or that may not be meant to be learned
    gaps      whether examples need `gap`, the difference of their answers' rewards
    labeled   whether a file may hold completions with a label instead of pairs. These examples have `desirable`
    """
    check_source(data, data_dir, gaps=gaps)
    if data == "kto_mix" and pairs and not labeled:
        raise ValueError("kto_mix: has labels and no pairs; it is for train_pref.py --loss kto or bco")
    if data in HUB:
        make, records = HUB[data][1], folder_records(data_dir) if data_dir else hub_records(data)
    else:
        make = pairs_or_labels() if labeled else example_of
        records = (("train", where, record) for where, record in read_records(data))
    splits, dropped, seen, remarks = {}, Counter(), set(), Remarks(pairs)
    for split, where, record in records:
        example = make(record, where, pairs)
        if data == "imdb":    # some reviews occur twice
            key = hash((split, example["chosen"]))
            example = "the same text again" if key in seen else example
            seen.add(key)
        if isinstance(example, str):
            dropped[example] += 1
            continue
        if gaps:
            example["gap"] = gap_of(record, where)
        for field, value in example.items():
            if isinstance(value, str):
                check_text(value, f"{where}, field {field!r}")
        splits.setdefault(split, []).append(example)
        remarks.note(split, example, None if data in HUB else record, where)
    dropped += Counter({"labelled false": remarks.drop_unwanted(splits)})    # += does not add a count of 0
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

# ---------------------------------------------------------------------------------------------------------------------
# prompts from reviews

def beginnings(data_dir, split, tokenizer, spans, n, seed=0):
    """
    Prompts from at most n reviews of IMDB: (prompts, all different; whether each review is positive). A prompt is an
    EOS, as in SFT, and the first tokens of a review. spans is how many tokens, as "32" or "2-8".
    Different reviews may begin with the same words, so a hash of the prompt decides its split: one in ten is for test.
    """
    splits, _ = load_examples("imdb", data_dir, pairs=False)
    known = {e["chosen"] for e in splits.get("train", ())} if split != "train" else ()    # some reviews are in both
    reviews = [e for e in splits.get(split, ()) if e["chosen"] not in known]
    rng = random.Random(f"{split} {seed}")
    rng.shuffle(reviews)    # the files hold all reviews of one label first
    shortest, _, longest = spans.partition("-")
    found = {}    # prompt -> whether its first review is positive
    for review in reviews:
        length = rng.randint(int(shortest), int(longest or shortest))
        tokens = tokenizer.encode_ordinary(review["chosen"])
        prompt = (tokenizer.eot_token, *tokens[:length])
        is_test = zlib.crc32(str(prompt).encode()) % 10 == 0
        if len(tokens) > length and is_test == (split == "test"):
            found.setdefault(prompt, review["positive"])
        if len(found) == n:
            break
    if not found:
        raise ValueError(f"imdb: no {split} review has more than {spans} tokens")
    return [list(prompt) for prompt in found], list(found.values())
