"""
What a run survives: it is killed, its disk fills up, its files are damaged, and nonsense is given to every loader; what happened is
written down.

    python -m tests.robust                  # some minutes; writes study/results/robust.csv
    python -m tests.robust --kills 3 --bytes 20 --inputs 100

kill    a run is ended by SIGKILL, at a moment drawn at random or at one of its operations on files, gone on with by --resume, and its
        log and weights are compared, byte for byte, with those of a run that was not stopped
full    each time that the run brings a file to the disk, there is no room for it; then there is, and it goes on
byte    a byte of a file of a run is changed, or the file is cut short, and it is read again
fuzz    valid files, changed at random places, for everything that reads a file: a clean error or an answer, in time, without much memory
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
from pathlib import Path

import torch
import torch._dynamo    # imported by every optimizer, which takes seconds: here once for all children
from matplotlib.figure import Figure

import adapters
from support import checkpoint, rundir
import data
import sampling
import eval
import judge
import toy
import train_pref
import train_sft
from model import GPT, GPTConfig
from tests.processes import child, ended

RESULTS = Path(__file__).resolve().parent.parent / "study" / "results"
SFT = "--n_layer 1 --n_head 2 --n_embd 32 --max_steps 60 --warmup_steps 5 --eval_every 20 --batch_size 16 --lr 1e-2".split()
DPO = ("--loss dpo --init_from sft --max_steps 24 --eval_every 6 --patience 0 --batch_size 8 --n_prompts 24 --n_show 0 --lr 1e-3 "
       "--dropout 0.1 --adapter sequential").split()

# ---------------------------------------------------------------------------------------------------------------------
# kills and full disks

def left_behind():
    """The bytes that must not depend on how often a run was stopped."""
    return {p.name: p.read_bytes() for p in Path("run").iterdir() if p.name in ("log.csv", "eval.json") or p.suffix == ".safetensors"}

def at_call(k, act):
    """Before the k-th time that a file is brought to the disk, or renamed, act() is called. Each time leaves a mark in ./operations."""
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
    evaluate = eval.main
    # the same files are written, in a fraction of the time
    eval.main = lambda argv, say: evaluate([*argv, "--n_prompts", "16"], say)
    Figure.savefig = lambda figure, path, **_: Path(path).write_bytes(b"a picture")
    examples, most = toy.examples, {"train": 1000, "val": 20, "test": 20}
    toy.examples = lambda split, n, seed=0: examples(split, min(n, most[split]), seed)

def no_room():
    raise OSError(errno.ENOSPC, "No space left on device")

def stops(main, argv, n, every=1, part=0, parts=1, seed=0):
    """
    Yields (what, where, what happened) for n kills at random moments, and for each, or every second, third ... operation on files a
    kill and a full disk; of all these, one part.
    """
    def start(argv, k=None, act=None):
        return child(main, argv, "messages", lambda: at_call(k, act))
    begin = time.time()
    assert ended([start(argv)]) == [0], Path("messages").read_text()
    seconds, whole, operations = time.time() - begin, left_behind(), os.path.getsize("operations")
    pairs, rng = list(Path("sft").glob("pairs-*")), random.Random(seed)
    trials = [("kill", f"after {rng.uniform(0, seconds):.2f} of {seconds:.2f} s", None) for _ in range(n)]
    trials += [(what, f"at operation {k} on files", k) for k in range(1, operations + 1, every) for what in ("kill", "full")]
    for what, where, k in trials[part::parts]:
        shutil.rmtree("run", ignore_errors=True)
        if k is None or k < 3:    # the first file is that of the pairs
            for path in pairs:
                path.unlink(missing_ok=True)
        if k is None:
            pid = start(argv)
            time.sleep(float(where.split()[1]))
            os.kill(pid, signal.SIGKILL)
        else:
            act = no_room if what == "full" else lambda: os.kill(os.getpid(), signal.SIGKILL)
            pid = start(argv, k, act)
        [code], text = ended([pid]), Path("messages").read_text()
        if code == 0:
            yield what, where, "said so, and ended without a picture" if "No space left" in text else "it was done by then"
            continue
        outcome = ["Traceback" in text and "a traceback"]
        outcome += [what == "full" and "No space left" not in text.strip().split("\n")[-1] and "no clear line"]
        begun = (Path("run") / "args.json").exists()    # or killed before it was a run
        [again] = ended([start(["--resume", *argv] if begun else argv)])
        outcome += [again != 0 and f"--resume failed: {Path('messages').read_text()[-300:]}"]
        outcome += [again == 0 and left_behind() != whole and "another result"]
        yield what, where, "; ".join(o for o in outcome if o) or "went on to the same bytes"

def stopped_part(n, every, part, parts):
    """SFT on the toy world, then DPO with adapters from it: each is stopped in every way, DPO four times as often."""
    os.mkdir(f"part-{part}")
    os.chdir(f"part-{part}")
    seen = list(stops(train_sft.main, [*SFT, "--out_dir", "run"], -(-n // 4), 4 * every, part, parts))
    os.rename("run", "sft")
    return seen + list(stops(train_pref.main, [*DPO, "--out_dir", "run"], n, every, part, parts))

def stopped_runs(n, every=1, parts=2):
    """All parts side by side, each in a folder of its own, since one leaves a second core idle."""
    with multiprocessing.get_context("fork").Pool(parts) as pool:
        return sum(pool.starmap(stopped_part, [(n, every, part, parts) for part in range(parts)]), [])

# ---------------------------------------------------------------------------------------------------------------------
# damaged files

def damaged(content, rng):
    """A valid file's bytes, changed: a few bits, a part cut out, put in or doubled, numbers made absurd, or all of it random."""
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
            content[i:i + 1] = rng.choice((b"-1", b"1e999", b"99999999999999999999", b"null", b"NaN", b'"', b"\x00", b"[" * 3000))
        case _:
            content = rng.randbytes(rng.randint(0, 300))
    return bytes(content)

# a row of each data set as its hub has it; @ stands for the row's number
TURNS = [{"role": "user", "content": "what is @ ?"}, {"role": "assistant", "content": "one more than the one before @ ."}]
HUB_ROWS = {"imdb": {"text": "A film .<br /><br />Number @ .", "label": 1},
            "hh": {side: f"\n\nHuman: what is @ ?\n\nAssistant: {side} @ ." for side in ("chosen", "rejected")},
            "ultrafeedback": {"prompt": "what is @ ?", "messages": TURNS, "chosen": TURNS, "score_chosen": 8.0, "score_rejected": 3.5,
                              "rejected": [TURNS[0], {"role": "assistant", "content": "@"}]},
            "tldr": {"info": {"post": "I went @ times .", "title": "@", "subreddit": "a"}, "choice": 1,
                     "summaries": [{"text": f" {word} times ."} for word in ("some", "@")]},
            "cnn_dailymail": {"article": "Much happened @ times .", "highlights": "It happened @ times .", "id": "@"}}

def readers(folder):
    """{name: (a valid file, a function that reads it)} for everything of nanoPref that takes a file from outside."""
    rows = [{"prompt": f"the plot {i}", "chosen": f" was fine {i} .", "rejected": f" was dull {i} ."} for i in range(12)]
    folder, tokenizer, found = Path(folder), toy.encoding(), {}
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    writers = {"jsonl": lambda p: p.write_text(lines), "json": lambda p: p.write_text(json.dumps(rows)),
               "jsonl.gz": lambda p: p.write_bytes(gzip.compress(lines.encode()))}
    def write_csv(path):
        with open(path, "w", newline="") as f:
            out = csv.DictWriter(f, list(rows[0]))
            out.writeheader()
            out.writerows(rows)
    def write_parquet(path):
        import pyarrow
        import pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    for kind, write in (writers | {"csv": write_csv, "parquet": write_parquet}).items():
        path = folder / f"rows.{kind}"
        write(path)
        found[kind] = path, lambda path=path: data.load_rows(str(path), None, tokenizer, 64, say=lambda line: None)
    for name, record in HUB_ROWS.items():
        path = folder / name / "train.jsonl"
        path.parent.mkdir()
        path.write_text("".join(json.dumps(record).replace("@", str(i)) + "\n" for i in range(12)))
        found[f"{name}'s rows"] = path, lambda name=name, pairs="chosen" in record or name == "tldr": data.load_rows(
            name, str(folder / name), tokenizer, 64, pairs=pairs, say=lambda line: None)
    (folder / "judge.jsonl").write_text("".join(json.dumps({"key": f"{i:064x}", "answer": "Verdict: A"}) + "\n" for i in range(9)))
    found["judge.jsonl"] = folder / "judge.jsonl", lambda: judge.known_answers(folder / "judge.jsonl")
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=tokenizer.n_vocab, n_layer=1, n_head=2, n_embd=8))
    for name in ("a", "b"):
        model.save_pretrained(folder / name)
    torch.save(checkpoint.load_tensors(folder / "b" / "model.safetensors"), folder / "b" / "pytorch_model.bin")
    (folder / "b" / "model.safetensors").unlink()
    found["config.json"] = folder / "a" / "config.json", lambda: GPT.from_pretrained(folder / "a")
    found["model.safetensors"] = folder / "a" / "model.safetensors", lambda: GPT.from_pretrained(folder / "a")
    found["pytorch_model.bin"] = folder / "b" / "pytorch_model.bin", lambda: GPT.from_pretrained(folder / "b")
    run = folder / "run"
    adapted = lambda: adapters.load_adapter(GPT.from_pretrained(folder / "a"), run, adapters.read_about(run)["base_fingerprint"])
    run.mkdir()
    adapters.add_adapters(model, "parallel", 2)
    adapters.save_adapter(model, run, "a", "0" * 16)
    found["adapter.json"], found["adapter.safetensors"] = (run / "adapter.json", adapted), (run / "adapter.safetensors", adapted)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    checkpoint.save_state(run, model, optimizer, torch.amp.GradScaler("cpu", enabled=False), {"step": 3}, 0)
    found["state.pt"] = run / "state.pt", lambda: checkpoint.read_state(run / "state.pt")
    checkpoint.write_json(run / "args.json", {"script": "train_pref.py", "args": {"data": "toy", "seed": 0}})
    found["args.json"] = run / "args.json", lambda: rundir.read_args(run)
    (run / "log.csv").write_text("step,split,metric,value\n" + "".join(f"{i},train,loss,{1 / (i + 1)}\n" for i in range(20)))
    found["log.csv"] = run / "log.csv", lambda: checkpoint.read_log(run / "log.csv")
    pair = {side: {"text": "fine .", "tokens": [300, 301]} for side in ("prompt", "chosen", "rejected")}
    (run / "pairs.jsonl").write_text("".join(json.dumps({"split": s} | pair) + "\n" for s in ("train", "val")))
    found["pairs.jsonl"] = run / "pairs.jsonl", lambda: sampling.read_pairs(run / "pairs.jsonl", tokenizer.n_vocab)
    return found

def outcome(read):
    """What reading a file comes to: "refused", "read", or the kind of what must not happen."""
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
    """Yields ("fuzz", file, what happened) for n inputs, the files in turn."""
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
    """Yields ("byte", file, what happened): of files with a checksum none may be read with another content."""
    found, rng = readers(folder), random.Random(seed)
    def read(path):
        return checkpoint.digest(checkpoint.read_state(path)["model"] if path.suffix == ".pt" else checkpoint.load_tensors(path))
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
    p.add_argument("--kills", type=int, default=20, help="at random moments, beside those at operations on files (default: %(default)s)")
    p.add_argument("--bytes", type=int, default=300, help="changes of each file with a checksum (default: %(default)s)")
    p.add_argument("--inputs", type=int, default=3000, help="damaged files for the loaders (default: %(default)s)")
    return p.parse_args(argv)

def main(argv=None):
    args = get_args(argv)
    counts, here = Counter(), os.getcwd()
    for trials in (lambda _: stopped_runs(args.kills), lambda folder: changed_bytes(args.bytes, folder),
                   lambda folder: fuzz(args.inputs, folder)):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for what, where, happened in trials(folder):
                kinds = {"after": "at a random moment", "at": "before an operation on files"}
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
