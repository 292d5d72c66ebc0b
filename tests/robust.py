"""
Robustness trials: killed runs, full disks, changed bytes and damaged input files. The outcomes are counted.

    python -m tests.robust                  # some minutes; writes study/results/robust.csv
    python -m tests.robust --kills 3 --bytes 20 --inputs 100

kill    A run is ended by SIGKILL, at a random moment or at an operation on files. It is resumed with --resume. Its log
        and weights are compared, byte for byte, with those of a run that was not stopped.
full    The disk is full when the run writes a file. Then there is room again, and the run is resumed.
byte    A byte of a file of a run is changed, or the file is cut short. Then the file is read.
fuzz    Everything that reads a file gets valid files, changed at random places. It must read them or end with a clear
        error, in time, without much memory.
"""
import argparse
import csv
import errno
import gzip
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

import adapters
import data
import eval
import judge_check
import sampling
import toy
import train_pref
import train_sft
from model import GPT, GPTConfig
from support import checkpoint, endpoint, rundir
from support.log import read_log
from support.optimizer import AdamW
from tests.processes import child, ended

RESULTS = Path(__file__).resolve().parent.parent / "study" / "results"
SFT = ("--n_layer 1 --n_head 2 --n_embd 32 --max_steps 60 --warmup_steps 5 --eval_every 20 --batch_size 16 "
       "--lr 1e-2").split()
DPO = ("--loss dpo --init_from sft --max_steps 24 --eval_every 6 --patience 0 --batch_size 8 --n_prompts 24 "
       "--n_show 0 --lr 1e-3 --dropout 0.1 --adapter sequential").split()

# ---------------------------------------------------------------------------------------------------------------------
# kills and full disks

def left_behind():
    """The files whose bytes must not depend on how often a run was stopped: {name: bytes}."""
    compared = lambda path: path.name in ("log.csv", "eval.json") or path.suffix == ".safetensors"
    return {path.name: path.read_bytes() for path in Path("run").iterdir() if compared(path)}

def at_call(k, act):
    """
    Calls act() before the k-th operation on files: a file is brought to the disk or renamed.

    Each operation adds a byte to ./operations. Evaluation, figures and examples are made small, to save time.
    """
    Path("operations").write_text("")
    def counting(real):
        def call(*args):
            with open("operations", "a") as f:
                f.write(".")
            if os.path.getsize("operations") == k:
                act()
            return real(*args)
        return call
    os.fsync, os.replace = counting(os.fsync), counting(os.replace)
    # the same files are written, in a fraction of the time
    evaluate, examples = eval.main, toy.examples
    eval.main = lambda argv, say: evaluate([*argv, "--n_prompts", "16"], say)
    Figure.savefig = lambda figure, path, **_: Path(path).write_bytes(b"a picture")
    most = {"train": 1000, "val": 20, "test": 20}
    toy.examples = lambda split, n, seed=0: examples(split, min(n, most[split]), seed)

def no_room():
    raise OSError(errno.ENOSPC, "No space left on device")

def drawn_trials(n, every, seconds, operations, rng):
    """The trials (what, where, operation): n kills at random moments, kills and full disks at operations on files."""
    trials = [("kill", f"after {rng.uniform(0, seconds):.2f} of {seconds:.2f} s", None) for _ in range(n)]
    for k in range(1, operations + 1, every):
        trials += [(what, f"at operation {k} on files", k) for what in ("kill", "full")]
    return trials

def start(main, argv, k=None, act=None):
    """The process id of a run that calls act() at its k-th operation on files."""
    return child(main, argv, "messages", lambda: at_call(k, act))

def stopped(main, argv, what, where, k):
    """Starts a run and stops it; (its exit status, what it printed)."""
    if k is None:
        pid = start(main, argv)
        time.sleep(float(where.split()[1]))
        os.kill(pid, signal.SIGKILL)
    elif what == "full":
        pid = start(main, argv, k, no_room)
    else:
        pid = start(main, argv, k, lambda: os.kill(os.getpid(), signal.SIGKILL))
    [code] = ended([pid])
    return code, Path("messages").read_text()

def after_stop(main, argv, what, printed, whole):
    """What is wrong with a stopped run and with the run that resumes it: a list, empty if nothing is."""
    wrong = []
    if "Traceback" in printed:
        wrong.append("a traceback")
    if what == "full" and "No space left" not in printed.strip().split("\n")[-1]:
        wrong.append("no clear line")
    begun = (Path("run") / "args.json").exists()    # else it was killed before it was a run
    [code] = ended([start(main, ["--resume", *argv] if begun else argv)])
    if code != 0:
        wrong.append(f"--resume failed: {Path('messages').read_text()[-300:]}")
    elif left_behind() != whole:
        wrong.append("another result")
    return wrong

def stops(main, argv, n, every=1, part=0, parts=1, seed=0):
    """
    Yields (what, where, what happened) for n kills at random moments, and kills and full disks at operations on files.

    every: 1 is each operation, 2 every second one. Of all trials, one part of so many parts is tried.
    """
    begin = time.time()
    assert ended([start(main, argv)]) == [0], Path("messages").read_text()
    seconds, whole, operations = time.time() - begin, left_behind(), os.path.getsize("operations")
    pairs = list(Path("sft").glob("pairs-*"))
    for what, where, k in drawn_trials(n, every, seconds, operations, random.Random(seed))[part::parts]:
        shutil.rmtree("run", ignore_errors=True)
        if k is None or k < 3:    # the first file is that of the pairs
            for path in pairs:
                path.unlink(missing_ok=True)
        code, printed = stopped(main, argv, what, where, k)
        if code != 0:
            wrong = after_stop(main, argv, what, printed, whole)
            yield what, where, "; ".join(wrong) or "went on to the same bytes"
        elif "No space left" in printed:
            yield what, where, "said so, and ended without a picture"
        else:
            yield what, where, "it was done by then"

def stopped_part(n, every, part, parts):
    """Stops SFT on the toy world, then DPO with adapters from it, in every way. DPO is stopped four times as often."""
    os.mkdir(f"part-{part}")
    os.chdir(f"part-{part}")
    seen = list(stops(train_sft.main, [*SFT, "--out_dir", "run"], -(-n // 4), 4 * every, part, parts))
    os.rename("run", "sft")
    return seen + list(stops(train_pref.main, [*DPO, "--out_dir", "run"], n, every, part, parts))

def stopped_runs(n, every=1, parts=2):
    """All parts at the same time, each in a folder of its own: one part leaves a second core idle."""
    with multiprocessing.get_context("fork").Pool(parts) as pool:
        return sum(pool.starmap(stopped_part, [(n, every, part, parts) for part in range(parts)]), [])

# ---------------------------------------------------------------------------------------------------------------------
# damaged files

def damaged(content, rng):
    """A valid file's bytes with bits flipped, a part cut, added or doubled, or an absurd number, or random bytes."""
    content, at = bytearray(content), rng.randrange(max(1, len(content)))
    match rng.randrange(7):
        case 0:
            for _ in range(rng.randint(1, 8)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        case 1:
            del content[at:]
        case 2:
            del content[at:at + rng.randint(1, 40)]
        case 3:
            content[at:at] = rng.randbytes(rng.randint(1, 40))
        case 4:
            content[at:at] = content[at:at + rng.randint(1, 200)]
        case 5:
            digits = [i for i, c in enumerate(content) if 48 <= c < 58] or [0]
            i = rng.choice(digits)
            absurd = (b"-1", b"1e999", b"99999999999999999999", b"null", b"NaN", b'"', b"\x00", b"[" * 3000)
            content[i:i + 1] = rng.choice(absurd)
        case _:
            content = rng.randbytes(rng.randint(0, 300))
    return bytes(content)

# a row of each data set as its hub has it; @ stands for the row's number
TURNS = [{"role": "user", "content": "what is @ ?"},
         {"role": "assistant", "content": "one more than the one before @ ."}]
HUB_ROWS = {
    "imdb": {"text": "A film .<br /><br />Number @ .", "label": 1},
    "hh": {side: f"\n\nHuman: what is @ ?\n\nAssistant: {side} @ ." for side in ("chosen", "rejected")},
    "ultrafeedback": {
        "prompt": "what is @ ?", "messages": TURNS, "chosen": TURNS, "score_chosen": 8.0, "score_rejected": 3.5,
        "rejected": [TURNS[0], {"role": "assistant", "content": "@"}],
    },
    "tldr": {
        "info": {"post": "I went @ times .", "title": "@", "subreddit": "a"}, "choice": 1,
        "summaries": [{"text": f" {word} times ."} for word in ("some", "@")],
    },
    "cnn_dailymail": {"article": "Much happened @ times .", "highlights": "It happened @ times .", "id": "@"},
}

def write_csv(path, rows):
    with open(path, "w", newline="") as f:
        out = csv.DictWriter(f, list(rows[0]))
        out.writeheader()
        out.writerows(rows)

def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)

def quiet(line):
    """In the place of print, for functions that say what they have read."""

def own_files(folder, tokenizer):
    """{name: (file, reader)} of pairs in every format that --data takes."""
    row = lambda i: {"prompt": f"the plot {i}", "chosen": f" was fine {i} .", "rejected": f" was dull {i} ."}
    rows = [row(i) for i in range(12)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    files = {kind: folder / f"rows.{kind}" for kind in ("jsonl", "json", "jsonl.gz", "csv", "parquet")}
    files["jsonl"].write_text(lines)
    files["json"].write_text(json.dumps(rows))
    files["jsonl.gz"].write_bytes(gzip.compress(lines.encode()))
    write_csv(files["csv"], rows)
    write_parquet(files["parquet"], rows)
    read = lambda path: data.load_rows(str(path), None, tokenizer, 64, say=quiet)
    return {kind: (path, partial(read, path)) for kind, path in files.items()}

def hub_files(folder, tokenizer):
    """{name: (file, reader)} of every data set's rows as its hub has them."""
    found = {}
    for name, record in HUB_ROWS.items():
        path = folder / name / "train.jsonl"
        path.parent.mkdir()
        path.write_text("".join(json.dumps(record).replace("@", str(i)) + "\n" for i in range(12)))
        pairs = "chosen" in record or name == "tldr"
        read = partial(data.load_rows, name, str(folder / name), tokenizer, 64, pairs=pairs, say=quiet)
        found[f"{name}'s rows"] = path, read
    return found

def model_files(folder, model):
    """{name: (file, reader)} of a model in folder a, and in folder b as PyTorch used to write it."""
    a, b = folder / "a", folder / "b"
    for path in (a, b):
        model.save_pretrained(path)
    torch.save(checkpoint.load_tensors(b / "model.safetensors"), b / "pytorch_model.bin")
    (b / "model.safetensors").unlink()
    return {"config.json": (a / "config.json", lambda: GPT.from_pretrained(a)),
            "model.safetensors": (a / "model.safetensors", lambda: GPT.from_pretrained(a)),
            "pytorch_model.bin": (b / "pytorch_model.bin", lambda: GPT.from_pretrained(b))}

def run_files(run, base, model, tokenizer):
    """{name: (file, reader)} of what a run with adapters on a base leaves behind. The model gets the adapters."""
    run.mkdir()
    adapters.add_adapters(model, "parallel", 2)
    adapters.save_adapter(model, run, "a", "0" * 16)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    checkpoint.save_state(run, model, optimizer, scaler, {"step": 3}, 0)
    checkpoint.write_json(run / "args.json", {"script": "train_pref.py", "args": {"data": "toy", "seed": 0}})
    rows = "".join(f"{i},train,loss,{1 / (i + 1)}\n" for i in range(20))
    (run / "log.csv").write_text("step,split,metric,value\n" + rows)
    pair = {side: {"text": "fine .", "tokens": [300, 301]} for side in ("prompt", "chosen", "rejected")}
    (run / "pairs.jsonl").write_text("".join(json.dumps({"split": s} | pair) + "\n" for s in ("train", "val")))

    def read_adapter():
        fingerprint = adapters.read_about(run)["base_fingerprint"]
        return adapters.load_adapter(GPT.from_pretrained(base), run, fingerprint)
    read = {"adapter.json": read_adapter,
            "adapter.safetensors": read_adapter,
            "state.pt": lambda: checkpoint.read_state(run / "state.pt"),
            "args.json": lambda: rundir.read_args(run),
            "log.csv": lambda: read_log(run / "log.csv"),
            "pairs.jsonl": lambda: sampling.read_pairs(run / "pairs.jsonl", tokenizer.n_vocab)}
    return {name: (run / name, reader) for name, reader in read.items()}

def readers(folder):
    """{name: (a valid file, a function that reads it)} for everything of nanoPref that takes a file from outside."""
    folder, tokenizer = Path(folder), toy.encoding()
    answers = folder / "judge.jsonl"
    answers.write_text("".join(json.dumps({"key": f"{i:064x}", "answer": "A", "p": 0.75}) + "\n" for i in range(9)))
    numbers = {"pairs": 100, "accuracy": [0.9, 0.8, 1.0], "position": [0.5, 0.4, 0.6], "length": [None, 0.1, 0.3]}
    names = {"judge": "m", "what": "toy", "task": "sentiment", "verdict": "text", "url": "u", "says": ["no bias"]}
    checkpoint.write_json(folder / "check.json", [names | numbers])
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=tokenizer.n_vocab, n_layer=1, n_head=2, n_embd=8))
    found = own_files(folder, tokenizer) | hub_files(folder, tokenizer)
    found["judge.jsonl"] = answers, lambda: (endpoint.known_answers(answers), endpoint.soft_votes(answers))
    found["check.json"] = folder / "check.json", lambda: judge_check.known_checks("m", "text", folder)
    found |= model_files(folder, model)
    return found | run_files(folder / "run", folder / "a", model, tokenizer)

def outcome(read):
    """How reading a file ends: "refused", "read", or a failure in capitals."""
    def too_long(*_):
        raise TimeoutError
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read()
        what = "read"
    except TimeoutError:
        what = "HANGS"
    except (ValueError, OSError, SystemExit) as e:
        what = "refused" if len(str(e).strip()) > 10 else f"REFUSED WITHOUT A REASON: {e!r}"
    except Exception as e:
        what = f"TRACEBACK: {type(e).__name__}: {e}"[:200]
    signal.alarm(0)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 500_000:    # KiB
        what = "TAKES MUCH MEMORY"
    return what

def fuzz(n, folder, seed=0):
    """Yields ("fuzz", file, what happened) for n damaged inputs; the files take turns."""
    found, rng = readers(folder), random.Random(seed)
    for path, read in found.values():
        assert outcome(read) == "read", path    # or nothing is tried
    contents = {name: path.read_bytes() for name, (path, _) in found.items()}
    for i in range(n):
        name = list(found)[i % len(found)]
        path, read = found[name]
        path.write_bytes(damaged(contents[name], rng))
        yield "fuzz", name, outcome(read)
        path.write_bytes(contents[name])

def changed_bytes(n, folder, seed=0):
    """Yields ("byte", file, what happened). No file with a checksum may be read with another content."""
    found, rng = readers(folder), random.Random(seed)
    def read(path):
        weights = checkpoint.read_state(path)["model"] if path.suffix == ".pt" else checkpoint.load_tensors(path)
        return checkpoint.digest(weights)
    for name in ("model.safetensors", "adapter.safetensors", "state.pt"):
        path = found[name][0]
        content, want = path.read_bytes(), read(path)
        for i in range(n):
            at = rng.randrange(len(content))
            end = b"" if i % 4 == 0 else bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1:]
            path.write_bytes(content[:at] + end)
            got = []
            what = outcome(lambda path=path, got=got: got.append(read(path)))
            if got:
                what = "read with the same content" if got == [want] else "READ WITH ANOTHER CONTENT"
            yield "byte", name, what
        path.write_bytes(content)

# ---------------------------------------------------------------------------------------------------------------------

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0], allow_abbrev=False)
    p.add_argument("--kills", type=int, default=20,
                   help="kills at random moments, in addition to those at operations on files (default: %(default)s)")
    p.add_argument("--bytes", type=int, default=300,
                   help="changes of each file with a checksum (default: %(default)s)")
    p.add_argument("--inputs", type=int, default=3000,
                   help="damaged files for the loaders (default: %(default)s)")
    return p.parse_args(argv)

def main(argv=None):
    args = get_args(argv)
    counts, here = Counter(), os.getcwd()
    kinds = {"after": "at a random moment", "at": "before an operation on files"}
    for trials in (lambda _: stopped_runs(args.kills),
                   lambda folder: changed_bytes(args.bytes, folder),
                   lambda folder: fuzz(args.inputs, folder)):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for what, where, happened in trials(folder):
                where = kinds.get(where.split()[0], where)
                counts[what, where, happened] += 1
            os.chdir(here)
    with open(RESULTS / "robust.csv", "w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(("what", "where", "happened", "times"))
        out.writerows((*key, n) for key, n in sorted(counts.items()))
    print((RESULTS / "robust.csv").read_text())

if __name__ == "__main__":
    main()
