"""
How fast, in how much memory, beside what.

    python -m study.bench                       # every part on three sizes of model, float32 and bfloat16
    python -m study.bench --vs trl              # DPO beside TRL's DPOTrainer, GPT-2 124M (pip install -r requirements-dev.txt)
    python -m study.bench --vs transformers     # generation beside transformers' generate
    python -m study.bench --growth              # time and memory of an update against batch, completion length and vocabulary

Each measurement is a process of its own, on an idle machine one after the other, in turns where two are compared; it goes once through its
batches to warm up, and then again by the clock. Weights are random, which no time depends on; so are the tokens, unless --data and
--data_dir name real pairs. Writes study/results/bench_*.csv; the tables and the picture come from there (python -m study.table).

operations   those really done, counted by torch's FlopCounterMode in one more pass: padding, logits made twice, and all
rate         operations a second; its share is of the fastest product of two 4096 x 4096 matrices seen in that process, same dtype
peak         largest resident memory of the process in GB, libraries included; on a GPU the most that was allocated
"""
import argparse
import csv
import functools
import itertools
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import adapters
from support import cli, cpu, rundir
import data
import loop
import train_pref
import train_sft
from losses import LOSSES
from model import GPT, GPTConfig
from reference import add_reference

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = {"toy": GPTConfig(64, 356, 2, 4, 128), "10M": GPTConfig(256, 356, 6, 6, 384), "gpt2": GPTConfig()}
LENGTHS = {"toy": (12, 8, 32), "10M": (32, 16, 128), "gpt2": (46, 4, 28)}    # prompt, and a completion's fewest and most tokens

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--vs", choices=("trl", "transformers"), help="measure beside another library")
    p.add_argument("--growth", action="store_true", help="measure how the cost grows")
    p.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="(default: all)")
    p.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="(default: %(default)s)")
    p.add_argument("--data", help="real pairs for GPT-2, as for train_pref.py (default: made up, of like length)")
    p.add_argument("--data_dir", help="folder with the data set's files")
    p.add_argument("--batch_size", type=cli.positive, default=8, help="pairs in an update of GPT-2 (default: %(default)s)")
    p.add_argument("--updates", type=cli.positive, default=6, help="by the clock, in each process (default: %(default)s)")
    p.add_argument("--rounds", type=cli.positive, default=3, help="of a comparison (default: %(default)s)")
    p.add_argument("--job", help=argparse.SUPPRESS)    # one measurement, JSON: what the other processes are started with
    return p.parse_args(argv)

# ---------------------------------------------------------------------------------------------------------------------
# one measurement, in its own process

def rows_of(job):
    """Rows of tokens, enough for job["updates"] batches."""
    n = job["batch_size"] * job["updates"]
    if job.get("data"):
        tokenizer = data.get_tokenizer(job["data"])
        return data.load_rows(job["data"], job["data_dir"], tokenizer, 512, say=lambda line: None)["train"][:n]
    rng, (prompt, low, high) = random.Random(0), job["lengths"]
    some = lambda k: [rng.randrange(job["config"]["vocab_size"]) for _ in range(k)]
    return [{"prompt": some(rng.randint(prompt // 2, prompt * 3 // 2)), "chosen": some(rng.randint(low, high)),
             "rejected": some(rng.randint(low, high))} for _ in range(n)]

def peak_gb(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9

def product_rate(device, dtype):
    """Operations a second of the fastest way at hand to multiply two large matrices."""
    a, b = (torch.randn(4096, 4096, device=device).to(dtype) for _ in "ab")
    seconds = [clocked(functools.partial(product, a, b), device) for product in (cpu.linear, F.linear) for _ in range(4)]
    return 2 * 4096**3 / min(seconds)

def clocked(work, device):
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start

def counter():
    """A FlopCounterMode that knows oneDNN's product and the CPU's attention too: two operations a multiplication and addition."""
    cost = lambda x, weight, *rest, out_shape=None, **k: 2 * torch.Size(x).numel() * weight[0]
    ops = {torch.ops.mkldnn._linear_pointwise: cost} if cpu.has_onednn() else {}
    attention = lambda times: lambda q, k, *rest, out_shape=None, **kw: times * 2 * q[0] * q[1] * q[2] * k[2] * q[3]
    ops[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] = attention(2)              # scores, values
    backward = attention(5)                                                                     # scores again, and four gradients
    ops[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward] = lambda grad, *rest, **k: backward(*rest, **k)
    return FlopCounterMode(display=False, custom_mapping=ops)

def ours(job):
    """Runs job["what"]: sft, reference, dpo or generate. Gives {"seconds": a step, "pairs": in it, ...}."""
    device, autocast = cli.set_up(seed=0, device="auto", dtype=job["dtype"], say=lambda line: None)
    model = GPT.from_pretrained(job["folder"]) if "folder" in job else GPT(GPTConfig(**job["config"]))
    model.to(device)
    if job.get("adapter"):
        adapters.add_adapters(model, job["adapter"], 64, "neurons" if job["adapter"] == "replace" else "random")
    if job["what"] == "generate":
        prompts, new = torch.randint(job["config"]["vocab_size"], (job["batch_size"], job["prompt"]), device=device), job["new"]
        def work():
            with autocast:
                model.generate(prompts, new)
        seconds = [clocked(work, device) for _ in range(1 + job["updates"])][1:]
        return {"seconds": seconds, "tokens": job["batch_size"] * new, "peak": peak_gb(device)}
    rows = rows_of(job)
    batches = data.Batches(rows, job["batch_size"], share_prefix=job.get("share_prefix", False))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
    if job["what"] == "sft":
        batches = data.Batches([{k: r[k] for k in ("prompt", "chosen")} for r in rows], job["batch_size"])
        compute_loss = lambda batch: train_sft.sft_loss(model, batch)
    else:
        compute_loss = lambda batch: train_pref.preference_loss(model, batch, LOSSES["dpo"], {"beta": 0.1})
    off = adapters.adapters_off if job.get("adapter") else nullcontext
    reference = lambda: add_reference(model, batches, autocast, off)
    def updates():
        for i in range(len(batches)):
            seconds.append(clocked(lambda i=i: loop.train_step(model, compute_loss, [batches[i]], optimizer, 1.0, autocast), device))
    out, seconds = {}, []
    if job["what"] != "sft":
        reference()
        out["reference_seconds"] = clocked(reference, device) / len(batches)    # a batch's share
    if job["what"] == "reference":
        work, seconds = reference, [out["reference_seconds"]]
    else:
        work = updates
        if job.get("compile"):
            model.features = torch.compile(model.features, dynamic=True)
        updates()
        seconds.clear()
        updates()
    timed, out["peak"], count = list(seconds), peak_gb(device), counter()
    if not job.get("compile"):    # counted afterwards, since to count takes memory too
        with count:
            work()
        out["operations"] = count.get_total_flops() / len(batches)
    sides = 1 if job["what"] == "sft" else 2
    tokens = sum(sides * len(r["prompt"]) + len(r["chosen"]) + (sides - 1) * len(r["rejected"]) for r in rows) / len(batches)
    return out | {"seconds": timed, "pairs": len(rows) / len(batches), "tokens": tokens,
                  "product_rate": product_rate(device, getattr(torch, job["dtype"]))}

def one_loss(job):
    """The DPO loss of the first batch, policy and reference different: ours, and TRL's of the same."""
    policy, reference = (GPT.from_pretrained(job[k]) for k in ("folder", "other"))
    batches = data.Batches(rows_of(job), job["batch_size"])
    none = torch.autocast("cpu", enabled=False)
    add_reference(reference, batches, none)
    mine = train_pref.preference_loss(policy, next(iter(batches)), LOSSES["dpo"], {"beta": 0.1})[0].item()
    trainer = trl_trainer(job, list(next(iter(batches.groups()))), reference=job["other"])
    batch = next(iter(trainer.get_train_dataloader()))
    return {"ours": mine, "trl": trainer.compute_loss(trainer.model, batch).item()}

def trl_trainer(job, rows, reference=None, callbacks=()):
    """TRL's DPOTrainer on the same weights and on rows of tokens, which it would have made of text, in their order."""
    try:
        from datasets import Dataset
        from tokenizers import Tokenizer, models
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
        from trl import DPOConfig, DPOTrainer
    except ImportError as e:
        raise SystemExit(f"--vs trl needs {e.name}: pip install -r requirements-dev.txt") from None
    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *rest):
            return dataset
    load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = DPOConfig(
        output_dir=job["scratch"], per_device_train_batch_size=job["batch_size"], learning_rate=1e-6, num_train_epochs=2, beta=0.1,
        bf16=job["dtype"] == "bfloat16", gradient_checkpointing=job.get("checkpointing", False), save_strategy="no", report_to=[],
        precompute_ref_log_probs=job.get("reference") == "precomputed", train_sampling_strategy="sequential", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=False)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>")), eos_token="<eos>")
    rows = [{f"{k}_ids": r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]
    return Trainer(model=load(job["folder"]), ref_model=load(reference) if reference else None, args=config, processing_class=words,
                   train_dataset=Dataset.from_list(rows), callbacks=list(callbacks))

def trl(job):
    """The same updates by TRL: batches[i] of ours are its batches, twice through, the second time by the clock."""
    from transformers import TrainerCallback
    torch.manual_seed(0)
    batches, ends = data.Batches(rows_of(job), job["batch_size"]), []
    batches[0]
    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            ends.append(time.perf_counter())
    trainer = trl_trainer(job, [batches.rows[i] for part in batches.order for i in part], callbacks=[Clock()])
    trainer.train()
    return {"seconds": [b - a for a, b in zip(ends, ends[1:])][len(batches) - 1:], "pairs": len(batches.rows) / len(batches),
            "peak": peak_gb(trainer.accelerator.device)}

def transformers(job):
    """The same generation by transformers."""
    from transformers import AutoModelForCausalLM
    torch.manual_seed(0)
    dtype = getattr(torch, job["dtype"])
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=dtype).eval()
    idx = torch.randint(job["config"]["vocab_size"], (job["batch_size"], job["prompt"]))
    work = lambda: model.generate(idx, attention_mask=torch.ones_like(idx), do_sample=True, top_k=0, max_new_tokens=job["new"],
                                  min_new_tokens=job["new"], pad_token_id=0)
    seconds = [clocked(work, idx.device) for _ in range(1 + job["updates"])][1:]
    return {"seconds": seconds, "tokens": job["batch_size"] * job["new"], "peak": peak_gb(idx.device)}

# ---------------------------------------------------------------------------------------------------------------------
# many measurements

def measured(kind, job):
    """What a fresh process gives for a job."""
    done = subprocess.run([sys.executable, "-m", "study.bench", "--job", json.dumps(job | {"kind": kind})], capture_output=True, text=True,
                          env=os.environ | {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}, cwd=RESULTS.parent.parent)
    if done.returncode:
        raise SystemExit(f"{kind} {job.get('what', '')} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])

def machine():
    """What it was measured on, in one line: the processor or card, not the host's name."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    about = dict(line.replace("\t", "").split(": ", 1) for line in info.split("\n\n")[0].splitlines() if ": " in line)
    name = about.get("model name", platform.processor())    # a cloud's name for it may hide the generation, which its family tells
    generation = f" (family {about['cpu family']}, model {about['model']})" if "cpu family" in about and "model" in about else ""
    return f"{name}{generation}, {torch.get_num_threads()} threads, torch {torch.__version__}"

def job_for(name, args, **more):
    job = {"config": vars(MODELS[name]), "lengths": LENGTHS[name], "batch_size": args.batch_size if name == "gpt2" else 64,
           "updates": args.updates}
    return job | ({"data": args.data, "data_dir": args.data_dir} if args.data and name == "gpt2" else {}) | more

def parts(args, scratch):
    """Every part on its own: yields rows."""
    whats = [("sft", {}), ("reference", {}), ("dpo", {}), ("dpo", {"share_prefix": True})]
    whats += [("dpo", {"share_prefix": True, "adapter": mode}) for mode in adapters.MODES]
    whats += [("dpo", {"share_prefix": True, "compile": True}), ("generate", {"prompt": 12, "new": 32, "batch_size": 256})]
    for name, dtype, (what, more) in itertools.product(args.models, args.dtypes, whats):
        if what == "generate" and name == "gpt2":
            more = more | {"prompt": 32, "new": 64, "batch_size": 16}
        got = measured("ours", job_for(name, args, what=what, dtype=dtype, **more))
        step = statistics.mean(got["seconds"])
        options = " ".join(k if v is True else v for k, v in more.items() if k in ("share_prefix", "adapter", "compile"))
        share = got["operations"] / step / got["product_rate"] if "operations" in got else ""
        yield {"model": name, "dtype": dtype, "what": what, "options": options, "seconds": step,
               "pairs_s": got.get("pairs", 0) / step or "", "tokens_s": got["tokens"] / step, "share": share,
               "product_gflops": got.get("product_rate", 0) / 1e9 or "", "peak_gb": got["peak"]}

def folders(scratch):
    """Two GPT-2s in Hugging Face's layout with random weights."""
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        GPT(MODELS["gpt2"]).save_pretrained(Path(scratch) / name)
    return {"folder": f"{scratch}/a", "other": f"{scratch}/b", "scratch": f"{scratch}/run"}

def against_trl(args, scratch):
    """DPO updates, ours and TRL's in turns: yields rows, each of a round, with its ratios."""
    places = folders(scratch)
    check = measured("one_loss", job_for("gpt2", args, dtype="float32", **places))
    print(f"the loss of the same batch: {check['ours']:.6f} here, {check['trl']:.6f} in TRL", flush=True)
    if abs(check["ours"] - check["trl"]) > 1e-4:
        raise SystemExit("the losses differ: there is nothing to compare")
    for dtype, round_ in itertools.product(args.dtypes, range(args.rounds)):
        got = {layout: measured("ours", job_for("gpt2", args, what="dpo", dtype=dtype, share_prefix=layout == "shared", **places))
               for layout in ("plain", "shared")}
        # TRL's default recomputes activations in backward, which costs time and saves memory: seen once, beside the plain way
        for reference, checkpointing in itertools.product(("online", "precomputed"), (False, True) if round_ == 0 else (False,)):
            other = measured("trl", job_for("gpt2", args, dtype=dtype, reference=reference, checkpointing=checkpointing, **places))
            for layout, mine in got.items():
                step = statistics.mean(mine["seconds"])
                # computed once for each pair, before training: that is what an online reference does in one epoch
                seconds, trl_seconds = step + (mine["reference_seconds"] if reference == "online" else 0), statistics.mean(other["seconds"])
                yield {"data": Path(args.data or "made up").name, "dtype": dtype, "reference": reference, "layout": layout,
                       "round": round_, "trl_checkpointing": checkpointing, "seconds": seconds, "trl_seconds": trl_seconds,
                       "speed_ratio": trl_seconds / seconds, "peak_gb": mine["peak"], "trl_peak_gb": other["peak"],
                       "memory_ratio": mine["peak"] / other["peak"], "share": mine["operations"] / step / mine["product_rate"],
                       "product_gflops": mine["product_rate"] / 1e9}

def against_transformers(args, scratch):
    """Generation, ours and transformers' in turns: yields rows."""
    places = folders(scratch)
    for dtype, round_ in itertools.product(args.dtypes, range(args.rounds)):
        job = job_for("gpt2", args, what="generate", dtype=dtype, prompt=32, new=64, **places) | {"batch_size": 16}
        mine, other = measured("ours", job), measured("transformers", job)
        a, b = statistics.mean(mine["seconds"]), statistics.mean(other["seconds"])
        yield {"dtype": dtype, "round": round_, "tokens_s": mine["tokens"] / a, "transformers_tokens_s": other["tokens"] / b,
               "speed_ratio": b / a, "peak_gb": mine["peak"], "transformers_peak_gb": other["peak"]}

def growth(args, scratch):
    """One thing at a time around 8 pairs, completions of 32 tokens, GPT-2's vocabulary, on 4 layers of GPT-2's width: yields rows."""
    base = {"batch": 8, "completion": 32, "vocabulary": 50257}
    for axis, values in (("batch", (1, 2, 4, 8, 16, 32)), ("completion", (16, 32, 64, 128, 256, 448)),
                         ("vocabulary", (512, 8192, 25000, 50257, 100000))):
        for value in values:
            at = base | {axis: value}
            config = vars(GPTConfig(n_layer=4, vocab_size=at["vocabulary"]))
            got = measured("ours", {"what": "dpo", "dtype": "float32", "config": config, "updates": 3, "batch_size": at["batch"],
                                    "lengths": (32, at["completion"], at["completion"])})
            yield {"axis": axis, **at, "seconds": statistics.median(got["seconds"]), "tokens": got["tokens"],
                   "operations": got["operations"], "parameters": 4 * 12 * 768**2 + (at["vocabulary"] + 1024) * 768, "peak_gb": got["peak"]}

def main(argv=None):
    args = get_args(argv)
    with cli.interruptible("-m study.bench", args, argv):
        work(args)

def work(args):
    """Measures, and writes a row as soon as it has one."""
    if args.job:
        job = json.loads(args.job)
        print(json.dumps({"ours": ours, "trl": trl, "transformers": transformers, "one_loss": one_loss}[job["kind"]](job)))
        return
    data_name = rundir.data_name(args.data or "made-up").split("-")[0]
    name, rows = {"trl": (f"trl_{data_name}", against_trl), "transformers": ("transformers", against_transformers)}.get(
        args.vs, ("growth", growth) if args.growth else ("parts", parts))
    RESULTS.mkdir(exist_ok=True)
    about = {"machine": machine()}
    # a row is written as soon as it is measured
    with tempfile.TemporaryDirectory() as scratch, open(RESULTS / f"bench_{name}.csv", "w", newline="") as f:
        for i, row in enumerate(rows(args, scratch)):
            row = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in (about | row).items()}
            out = csv.DictWriter(f, list(row), lineterminator="\n")
            out.writeheader() if i == 0 else None
            out.writerow(row)
            f.flush()
            print(" ".join(f"{k}={v}" for k, v in row.items() if k != "machine"), flush=True)
    print(f"-> {f.name}")

if __name__ == "__main__":
    main()
