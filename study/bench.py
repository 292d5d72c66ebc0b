"""
The benchmark: time and memory of each part of the work, and of other libraries doing the same work.

    python -m study.bench                       # every part, on three sizes of model, float32 and bfloat16
    python -m study.bench --vs trl              # DPO beside TRL's DPOTrainer (pip install -r requirements-dev.txt)
    python -m study.bench --vs trl --resume     # go on where it was stopped
    python -m study.bench --vs transformers     # generation beside transformers' generate
    python -m study.bench --growth              # an update against batch, completion length and vocabulary

Writes out/study/bench_*.csv, or study/results/bench_*.csv with --update. docs/speed.md shows those as tables.

Each job is a process of its own. It runs its batches once to warm up and once more under the clock. Compared programs
take turns. Weights are random, because no time depends on them. Tokens are random too, unless --data names real pairs.

The machine should do nothing else meanwhile. Its matrix rate is therefore measured before and after each job. If the
two rates differ by more than a tenth, the job is repeated, at most twice. If they never agree, the column at_rest says
"no". A disturbance that lasts from before the first measurement until after the last one is not noticed.

operations   multiplications and additions that were executed, counted by torch's FlopCounterMode in one more pass;
             padding and recomputed logits are included
matrix rate  operations a second of the product of two 4096 x 4096 matrices in the job's dtype, the larger of both rates
share        operations a second of the job, divided by the matrix rate
peak         largest resident memory of the process in GB, with libraries; on a GPU, the largest allocated memory
"""
import csv
import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import adapters
from model import GPT, GPTConfig
from study import jobs, places
from support import cli, rundir

MODELS = {"toy": GPTConfig(64, 356, 2, 4, 128), "10M": GPTConfig(256, 356, 6, 6, 384), "gpt2": GPTConfig()}
LENGTHS = {"toy": (12, 8, 32), "10M": (32, 16, 128), "gpt2": (46, 4, 28)}    # prompt; shortest and longest completion
REFERENCES = ("online", "precomputed")
TRIES = 3           # rounds of a job, at most
TOLERANCE = 0.1     # the two matrix rates of an undisturbed round differ by no more, as a share of the larger

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--vs", choices=("trl", "transformers"), help="measure beside another library")
    p.add_argument("--growth", action="store_true", help="measure how the cost of an update grows")
    p.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="(default: all)")
    p.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="(default: %(default)s)")
    p.add_argument("--data", help="real pairs for GPT-2, as for train_pref.py (default: random tokens)")
    p.add_argument("--data_dir", help="folder with the data set's files")
    p.add_argument("--batch_size", type=cli.positive, default=8, help="pairs in GPT-2's update (default: %(default)s)")
    p.add_argument("--updates", type=cli.positive, default=6, help="timed updates of a job (default: %(default)s)")
    p.add_argument("--rounds", type=cli.positive, default=3, help="rounds of a comparison (default: %(default)s)")
    p.add_argument("--references", nargs="+", choices=REFERENCES,
                   help="when TRL runs the reference: at every update, or before training (default: both)")
    p.add_argument("--resume", action="store_true", help="keep the rows of the file and measure only those it lacks")
    args = places.parse(p, argv)
    cli.refuse(p, args, (("references", args.vs == "trl", "without --vs trl"),
                         ("resume", args.vs == "trl", "without --vs trl")))
    return args

def in_process(kind, job):
    """What a fresh process returns for a job. Raises SystemExit with the end of its stderr if it fails."""
    command = [sys.executable, "-m", "study.jobs", json.dumps(job | {"kind": kind})]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet, cwd=places.ROOT)
    if done.returncode:
        raise SystemExit(f"{kind} {job.get('what', '')} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])

def agree(before, after):
    """Whether two matrix rates are those of one undisturbed machine: they differ by at most a tenth of the larger."""
    return max(before, after) - min(before, after) <= TOLERANCE * max(before, after)

def undisturbed(work, rate):
    """
    work() between two measurements of the matrix rate, repeated until both rates agree, at most TRIES times.

    work  () -> a dict of numbers
    rate  () -> the machine's matrix rate now, operations a second

    Returns the dict with product_rate, the larger rate, and at_rest, "yes" or "no". If the rates never agree, the dict
    is that of the round whose rates are closest, and a line is printed.
    """
    rounds = []
    for i in range(TRIES):
        before = rate()
        found = work()
        after = rate()
        rounds.append((min(before, after) / max(before, after), before, after, found))
        if agree(before, after):
            break
        print(f"disturbed: the matrix rate was {before / 1e9:.0f} GFLOP/s before the job and {after / 1e9:.0f} after it"
              f" (round {i + 1} of {TRIES})", flush=True)
    _, before, after, found = max(rounds, key=lambda r: r[0])
    rest = agree(before, after)
    if not rest:
        print(f"the machine never came to rest in {TRIES} rounds: at_rest is \"no\" in the results", flush=True)
    return found | {"product_rate": max(before, after), "at_rest": "yes" if rest else "no"}

def measured(kind, job):
    """What a fresh process returns for a job, with the matrix rate around it, and whether the machine was at rest."""
    device, _ = jobs.set_up(job["dtype"])
    rate = functools.partial(jobs.product_rate, device, getattr(torch, job["dtype"]))
    return undisturbed(lambda: in_process(kind, job), rate)

def rest_of(*found):
    """at_rest of a row that is made from the results of several jobs: "yes" if it was in all of them."""
    return "yes" if all(result["at_rest"] == "yes" for result in found) else "no"

def machine():
    """The processor or graphics card in one line, without the name of the host."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = info.split("\n\n")[0].splitlines()    # those of the first core
    about = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    name = about.get("model name", platform.processor())
    if "cpu family" in about and "model" in about:    # a cloud's name for a processor may hide its generation
        name += f" (family {about['cpu family']}, model {about['model']})"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"

def job_for(name, *, batch_size, updates, data, data_dir, **more):
    """A job on the model of a name. batch_size and data are GPT-2's; the smaller models have 64 random pairs."""
    job = {"config": vars(MODELS[name]), "lengths": LENGTHS[name], "batch_size": 64, "updates": updates}
    if name == "gpt2":
        job["batch_size"] = batch_size
        if data:
            job |= {"data": data, "data_dir": data_dir}
    return job | more

def part_jobs(name, dtype, new_job):
    """One job for each part of the work on one model."""
    shared = {"what": "dpo", "share_prefix": True}
    whats = [{"what": "sft"}, {"what": "reference"}, {"what": "dpo"}, shared]
    whats += [shared | {"adapter": mode} for mode in adapters.MODES]
    whats += [shared | {"checkpointing": True}, shared | {"compile": True}]
    sizes = (32, 64, 16) if name == "gpt2" else (12, 32, 256)
    whats += [{"what": "generate"} | dict(zip(("prompt", "new", "batch_size"), sizes))]
    return [new_job(name, dtype=dtype) | what for what in whats]

PART_OPTIONS = ("share_prefix", "adapter", "checkpointing", "compile")

def parts(new_job, models, dtypes):
    """Measures every part of the work by itself. Yields rows of bench_parts.csv."""
    for name, dtype in itertools.product(models, dtypes):
        for job in part_jobs(name, dtype, new_job):
            got = measured("ours", job)
            step = statistics.mean(got["seconds"])
            options = [k if job[k] is True else job[k] for k in PART_OPTIONS if k in job]
            counted = "operations" in got
            yield {"model": name, "dtype": dtype, "what": job["what"], "options": " ".join(options), "seconds": step,
                   "pairs_s": got.get("pairs", 0) / step or "", "tokens_s": got["tokens"] / step,
                   "share": got["operations"] / step / got["product_rate"] if counted else "",
                   "product_gflops": got["product_rate"] / 1e9, "peak_gb": got["peak"], "at_rest": got["at_rest"]}

def gpt2_folders(scratch):
    """Writes two GPT-2s with random weights in Hugging Face's layout, and returns their folders as part of a job."""
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        GPT(MODELS["gpt2"]).save_pretrained(Path(scratch) / name)
    return {"folder": f"{scratch}/a", "other": f"{scratch}/b", "scratch": f"{scratch}/run"}

TRL_KEY = ("data", "dtype", "reference", "trl_checkpointing", "checkpointing", "layout", "round")

def against_trl(new_job, dtypes, rounds, references, scratch, about_data, done=()):
    """
    DPO updates, ours and TRL's in turns, without activation checkpointing, then with it in both. Yields rows of
    bench_trl_*.csv, several for each round. done: rows of an earlier call, which are not measured again.
    """
    base = functools.partial(new_job, "gpt2", **gpt2_folders(scratch))
    check = in_process("one_loss", base(dtype="float32"))
    print(f"the loss of the same batch: {check['ours']:.6f} here, {check['trl']:.6f} in TRL", flush=True)
    if abs(check["ours"] - check["trl"]) > 1e-4:
        raise SystemExit("the two losses differ, so their times cannot be compared")
    there = {tuple(row[k] for k in TRL_KEY) for row in done}
    for dtype, round_, checkpointing in itertools.product(dtypes, range(rounds), (False, True)):
        wanted = {}    # reference -> the first columns of its rows that are not there yet
        for reference, layout in itertools.product(references, ("plain", "shared")):
            where = dict(zip(TRL_KEY, (about_data, dtype, reference, checkpointing, checkpointing, layout, round_)))
            if tuple(map(str, where.values())) not in there:
                wanted.setdefault(reference, []).append(where)
        mine = {}
        for layout in ("plain", "shared") if wanted else ():
            mine[layout] = measured("ours", base(what="dpo", dtype=dtype, share_prefix=layout == "shared",
                                                 checkpointing=checkpointing))
        for reference, rows in wanted.items():
            other = measured("trl", base(dtype=dtype, reference=reference, checkpointing=checkpointing))
            for where in rows:
                yield where | beside_trl(mine[where["layout"]], other, reference)

def beside_trl(mine, other, reference):
    """Seconds, memory and their ratios of one comparison."""
    step, trl_seconds = statistics.mean(mine["seconds"]), statistics.mean(other["seconds"])
    # nanoPref computes the reference once for each pair before training: an online reference does so in one epoch
    seconds = step + (mine["reference_seconds"] if reference == "online" else 0)
    return {"seconds": seconds, "trl_seconds": trl_seconds, "speed_ratio": trl_seconds / seconds,
            "peak_gb": mine["peak"], "trl_peak_gb": other["peak"], "memory_ratio": mine["peak"] / other["peak"],
            "share": mine["operations"] / step / mine["product_rate"], "product_gflops": mine["product_rate"] / 1e9,
            "at_rest": rest_of(mine, other)}

def against_transformers(new_job, dtypes, rounds, scratch):
    """Generation, ours and transformers' in turns. Yields a row of bench_transformers.csv for each round."""
    folders = gpt2_folders(scratch)
    for dtype, round_ in itertools.product(dtypes, range(rounds)):
        job = new_job("gpt2", what="generate", dtype=dtype, prompt=32, new=64, **folders) | {"batch_size": 16}
        mine, other = measured("ours", job), measured("transformers", job)
        a, b = statistics.mean(mine["seconds"]), statistics.mean(other["seconds"])
        yield {"dtype": dtype, "round": round_, "tokens_s": mine["tokens"] / a,
               "transformers_tokens_s": other["tokens"] / b, "speed_ratio": b / a, "peak_gb": mine["peak"],
               "transformers_peak_gb": other["peak"], "at_rest": rest_of(mine, other)}

def growth():
    """
    A DPO update of 8 pairs, completions of 32 tokens and GPT-2's vocabulary, on 4 layers of GPT-2's width. One of the
    three varies at a time. Yields rows.
    """
    base = {"batch": 8, "completion": 32, "vocabulary": 50257}
    axes = {"batch": (1, 2, 4, 8, 16, 32), "completion": (16, 32, 64, 128, 256, 448),
            "vocabulary": (512, 8192, 25000, 50257, 100000)}
    for axis, values in axes.items():
        for value in values:
            at = base | {axis: value}
            config = vars(GPTConfig(n_layer=4, vocab_size=at["vocabulary"]))
            got = measured("ours", {"what": "dpo", "dtype": "float32", "config": config, "updates": 3,
                                    "batch_size": at["batch"], "lengths": (32, at["completion"], at["completion"])})
            yield {"axis": axis, **at, "seconds": statistics.median(got["seconds"]), "tokens": got["tokens"],
                   "operations": got["operations"], "parameters": 4 * 12 * 768**2 + (at["vocabulary"] + 1024) * 768,
                   "peak_gb": got["peak"], "at_rest": got["at_rest"]}

def write(path, rows, done=()):
    """
    Writes and prints each row as soon as it is measured, so that a failure loses no earlier row. done: rows that are
    in the file already.
    """
    about = {"machine": machine()}
    with open(path, "w", newline="") as f:
        out = None
        for n, row in enumerate(itertools.chain(done, rows)):
            row = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in (about | row).items()}
            if out is None:
                out = csv.DictWriter(f, list(row), lineterminator="\n")
                out.writeheader()
            out.writerow(row)
            f.flush()
            if n >= len(done):
                print(" ".join(f"{k}={v}" for k, v in row.items() if k != "machine"), flush=True)
    print(f"-> {path}")

def main(argv=None):
    args = get_args(argv)
    with cli.interruptible("-m study.bench", args, argv), tempfile.TemporaryDirectory() as scratch:
        results, _ = places.folders(args.out, args.update)
        path = results / f"bench_{name_of(args)}.csv"
        done = earlier(path, args.resume)
        write(path, chosen(args, scratch, done), done)

def earlier(path, resume):
    """The rows of a file of results that --resume keeps. Those of another machine are refused in one line."""
    rows = places.read_csv(path) if resume and path.exists() else []
    if any(row["machine"] != machine() for row in rows):
        raise SystemExit(f"{path}: holds rows of another machine ({rows[0]['machine']}); leave out --resume")
    return rows

def name_of(args):
    """The name of the results of the measurement that the flags ask for: bench_NAME.csv."""
    if args.vs == "trl":
        return "trl_" + rundir.data_name(args.data or "made-up").split("-")[0]
    return args.vs or ("growth" if args.growth else "parts")

def chosen(args, scratch, done):
    """The rows of that measurement, from a generator. done: the rows of an earlier, interrupted one."""
    new_job = functools.partial(job_for, batch_size=args.batch_size, updates=args.updates, data=args.data,
                                data_dir=args.data_dir)
    if args.vs == "trl":
        about_data = Path(args.data or "made up").name
        return against_trl(new_job, args.dtypes, args.rounds, args.references or REFERENCES, scratch, about_data, done)
    if args.vs == "transformers":
        return against_transformers(new_job, args.dtypes, args.rounds, scratch)
    return growth() if args.growth else parts(new_job, args.models, args.dtypes)

if __name__ == "__main__":
    main()
