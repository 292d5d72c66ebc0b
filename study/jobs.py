"""
The benchmark's jobs: one measurement each, in a process of its own.

    python -m study.jobs '{"kind": "ours", "what": "dpo", ...}'    # how bench.py starts one; prints its numbers as JSON

A job is a dict that says what to measure. Its result is a dict of numbers. The first pass through the batches warms up,
and the second is timed. docs/speed.md has the results. Read next: bench.py
"""
import functools
import json
import random
import resource
import sys
import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import adapters
import data
import loop
import objective
import train_sft
from losses import LOSSES
from model import GPT, GPTConfig
from reference import add_reference
from support import cli, cpu

def rows_of(job):
    """Rows of tokens, enough for job["updates"] batches: real ones, or random tokens of random lengths."""
    n = job["batch_size"] * job["updates"]
    if job.get("data"):
        tokenizer = data.get_tokenizer(job["data"])
        return data.load_rows(job["data"], job["data_dir"], tokenizer, 512, say=lambda line: None)["train"][:n]
    rng = random.Random(0)
    prompt, low, high = job["lengths"]
    spans = {"prompt": (prompt // 2, prompt * 3 // 2), "chosen": (low, high), "rejected": (low, high)}
    def tokens(fewest, most):
        return [rng.randrange(job["config"]["vocab_size"]) for _ in range(rng.randint(fewest, most))]
    return [{part: tokens(*span) for part, span in spans.items()} for _ in range(n)]

def peak_gb(device):
    """The largest memory of this process so far in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024    # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

def clocked(work, device):
    """Seconds that work() takes."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start

def generation_times(job, generate, device):
    """Times generate(), which gives job["new"] tokens to each of job["batch_size"] prompts. The first call warms up."""
    seconds = [clocked(generate, device) for _ in range(1 + job["updates"])][1:]
    return {"seconds": seconds, "tokens": job["batch_size"] * job["new"], "peak": peak_gb(device)}

def product_rate(device, dtype):
    """Operations a second of the fastest available product of two large matrices: the best of four runs each."""
    a, b = (torch.randn(4096, 4096, device=device).to(dtype) for _ in "ab")
    seconds = []
    for multiply in (cpu.linear, F.linear):
        seconds += [clocked(lambda m=multiply: m(a, b), device) for _ in range(4)]
    return 2 * 4096**3 / min(seconds)

def counter():
    """A FlopCounterMode that also knows oneDNN's product and the CPU's attention: 2 operations a multiply-add."""
    def product(x, weight, *rest, out_shape=None, **options):
        return 2 * torch.Size(x).numel() * weight[0]
    def attention(products, q, k):
        return products * 2 * q[0] * q[1] * q[2] * k[2] * q[3]
    def forward(q, k, *rest, out_shape=None, **options):
        return attention(2, q, k)    # the scores and the weighted values
    def backward(grad, q, k, *rest, out_shape=None, **options):
        return attention(5, q, k)    # the scores again, and four gradients
    ops = {torch.ops.mkldnn._linear_pointwise: product} if cpu.has_onednn() else {}
    ops[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] = forward
    ops[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward] = backward
    return FlopCounterMode(display=False, custom_mapping=ops)

def ours(job):
    """One part of nanoPref, job["what"]: sft, reference, dpo or generate. Returns {"seconds": [of each step], ...}."""
    device, autocast = set_up(job["dtype"])
    model = GPT.from_pretrained(job["folder"]) if "folder" in job else GPT(GPTConfig(**job["config"]))
    model.to(device)
    model.activation_checkpointing = job.get("checkpointing", False)
    if mode := job.get("adapter"):
        adapters.add_adapters(model, mode, 64, "neurons" if mode == "replace" else "random")
    if job["what"] != "generate":
        return training(job, model, device, autocast)
    prompts = torch.randint(job["config"]["vocab_size"], (job["batch_size"], job["prompt"]), device=device)
    def generate():
        with autocast:
            model.generate(prompts, job["new"])
    return generation_times(job, generate, device)

def set_up(dtype):
    """(device, autocast) of a measurement, silently."""
    return cli.set_up(seed=0, device="auto", dtype=dtype, say=lambda line: None)

def training(job, model, device, autocast):
    """Times the reference's log-probs and the updates of SFT or DPO, then counts operations. Numbers are per batch."""
    rows, out = rows_of(job), {}
    batches = batches_of(job, rows)
    off = adapters.adapters_off if job.get("adapter") else nullcontext
    def reference():
        add_reference(model, batches, autocast, off)
    updates = updates_of(job, model, batches, device, autocast)

    # SFT has no reference. DPO needs its log-probs before the first update.
    if job["what"] != "sft":
        reference()    # warm-up
        out["reference_seconds"] = clocked(reference, device) / len(batches)
    if job["what"] == "reference":
        work, out["seconds"] = reference, [out["reference_seconds"]]
    else:
        if job.get("compile"):
            model.features = torch.compile(model.features, dynamic=True)
        updates()    # warm-up
        work, out["seconds"] = updates, updates()

    # One more pass counts the operations. The peak is read first, because the count needs memory too.
    out["peak"] = peak_gb(device)
    if not job.get("compile"):    # the counter does not see into compiled code
        with (count := counter()):
            work()
        out["operations"] = count.get_total_flops() / len(batches)
    return out | {"pairs": len(rows) / len(batches), "tokens": tokens_of(job, rows) / len(batches)}

def batches_of(job, rows):
    """The batches of a job. SFT trains on the chosen completions alone."""
    if job["what"] == "sft":
        return data.Batches([{k: r[k] for k in ("prompt", "chosen")} for r in rows], job["batch_size"])
    return data.Batches(rows, job["batch_size"], share_prefix=job.get("share_prefix", False))

def updates_of(job, model, batches, device, autocast):
    """A function that makes one update with each batch and returns the seconds of each."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
    def compute_loss(batch):
        if job["what"] == "sft":
            return train_sft.sft_loss(model, batch)
        return objective.preference_loss(model, batch, LOSSES["dpo"], {"beta": 0.1})
    def update(i):
        loop.train_step(model, compute_loss, [batches[i]], optimizer, 1.0, autocast)
    return lambda: [clocked(functools.partial(update, i), device) for i in range(len(batches))]

def tokens_of(job, rows):
    """Tokens of all rows. A pair's prompt counts twice in either layout, so that both have the same tokens."""
    if job["what"] == "sft":
        return sum(len(r["prompt"]) + len(r["chosen"]) for r in rows)
    return sum(2 * len(r["prompt"]) + len(r["chosen"]) + len(r["rejected"]) for r in rows)

def one_loss(job):
    """The DPO loss of the first batch, with a policy unlike the reference: ours, and TRL's."""
    policy, reference = (GPT.from_pretrained(job[k]) for k in ("folder", "other"))
    batches = data.Batches(rows_of(job), job["batch_size"])
    none = torch.autocast("cpu", enabled=False)
    add_reference(reference, batches, none)
    mine = objective.preference_loss(policy, next(iter(batches)), LOSSES["dpo"], {"beta": 0.1})[0].item()
    trainer = trl_trainer(job, list(next(iter(batches.groups()))), reference=job["other"])
    batch = next(iter(trainer.get_train_dataloader()))
    return {"ours": mine, "trl": trainer.compute_loss(trainer.model, batch).item()}

def trl_trainer(job, rows, reference=None, callbacks=()):
    """TRL's DPOTrainer with the same weights, on rows of tokens in their order instead of on text."""
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
    def load(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = DPOConfig(
        output_dir=job["scratch"], per_device_train_batch_size=job["batch_size"], learning_rate=1e-6, beta=0.1,
        num_train_epochs=2, bf16=job["dtype"] == "bfloat16", gradient_checkpointing=job.get("checkpointing", False),
        save_strategy="no", report_to=[], precompute_ref_log_probs=job.get("reference") == "precomputed",
        train_sampling_strategy="sequential", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False)
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0}, unk_token="<eos>"))    # never used: rows are tokens
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    rows = [{f"{k}_ids": r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]
    return Trainer(model=load(job["folder"]), ref_model=load(reference) if reference else None, args=config,
                   processing_class=words, train_dataset=Dataset.from_list(rows), callbacks=list(callbacks))

def trl(job):
    """The same updates by TRL, in the same batches. TRL trains for two epochs, and the second one is timed."""
    from transformers import TrainerCallback
    torch.manual_seed(0)
    batches, ends = data.Batches(rows_of(job), job["batch_size"]), []
    batches[0]    # fixes the order
    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            ends.append(time.perf_counter())
    rows = []
    for part in batches.order:
        rows += [batches.rows[i] for i in part]
    trainer = trl_trainer(job, rows, callbacks=[Clock()])
    trainer.train()
    seconds = [b - a for a, b in zip(ends, ends[1:])]
    return {"seconds": seconds[len(batches) - 1:], "pairs": len(batches.rows) / len(batches),
            "peak": peak_gb(trainer.accelerator.device)}

def transformers(job):
    """The same generation by transformers."""
    from transformers import AutoModelForCausalLM
    torch.manual_seed(0)
    dtype = getattr(torch, job["dtype"])
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=dtype).eval()
    idx = torch.randint(job["config"]["vocab_size"], (job["batch_size"], job["prompt"]))
    def generate():
        model.generate(idx, attention_mask=torch.ones_like(idx), do_sample=True, top_k=0, max_new_tokens=job["new"],
                       min_new_tokens=job["new"], pad_token_id=0)
    return generation_times(job, generate, idx.device)

def fits(job):
    """One update of train_pref.py on a model of any size: study/fits.py, which imports this file."""
    from study.fits import fits
    return fits(job)

KINDS = {"ours": ours, "trl": trl, "transformers": transformers, "one_loss": one_loss, "fits": fits}

def main(argv=None):
    job = json.loads((argv or sys.argv[1:])[0])
    print(json.dumps(KINDS[job["kind"]](job)))

if __name__ == "__main__":
    main()
