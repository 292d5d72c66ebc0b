"""
The one training loop: cosine schedule, early stopping, checkpoints, log. SFT, reward models and preference training differ in one
closure of a few lines, compute_loss(batch) -> (loss, dict of floats).

A run directory (out/<data>/<name>) holds args.json, config.json + model.safetensors (the best weights by validation loss; for adapters
adapter.json + adapter.safetensors), log.csv, curves.png, state.pt (the last weights, to resume from) and, when finished, result.json.
"""
import csv
import json
import math
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

# ---------------------------------------------------------------------------------------------------------------------
# one step

def cosine_lr(step, lr, min_lr, warmup_steps, max_steps):
    """The learning rate of update `step` (from 0): a line from 0 to lr over warmup_steps, then half a cosine down to min_lr."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

def anneal(step, start, end, schedule, max_steps):
    """A hyperparameter at update `step` (from 1): from start on to end, which it has at update max_steps. At 0 it is that of update 1."""
    if end is None or schedule == "constant":
        return start
    done = max(1, step) / max_steps
    return start + (end - start) * (0.5 - 0.5 * math.cos(math.pi * done) if schedule == "cosine" else done)

class EarlyStopping:
    """Keeps the best validation loss; `stop` once `patience` evaluations in a row were no better (patience 0: never)."""
    def __init__(self, patience):
        self.patience, self.best, self.best_step, self.bad = patience, math.inf, None, 0

    def update(self, value, step):
        """Whether this is the best so far."""
        better = value < self.best
        if better:
            self.best, self.best_step = value, step
        self.bad = 0 if better else self.bad + 1
        return better

    @property
    def stop(self):
        return 0 < self.patience <= self.bad

def averaged(parts):
    """Means of (weight, dict of numbers) over all of them: a batch counts by its pairs, or tokens."""
    total = sum(w for w, _ in parts)
    return {k: float(sum(w * m[k] for w, m in parts)) / total for k in parts[0][1]}

def to_device(batch, device):
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

def train_step(model, compute_loss, batches, optimizer, grad_clip=1.0, autocast=None, scaler=None):
    """
    One update from a list of batches (gradient accumulation): the gradient is that of the mean over all their pairs, or tokens, not
    of the mean of the batches' means, which weighs a short batch's tokens more. Returns the metrics; raises FloatingPointError.
    scaler: for float16, whose small gradients would be 0. It multiplies the loss, and leaves out an update where that was too much.
    """
    model.train()
    device = next(model.parameters()).device
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    total, parts = sum(b["weight"] for b in batches), []
    optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        with autocast or torch.autocast(device.type, enabled=False):
            loss, metrics = compute_loss(to_device(batch, device))
        scaler.scale(loss * (batch["weight"] / total)).backward()
        parts.append((batch["weight"], {"loss": loss.detach(), **metrics}))
    scaler.unscale_(optimizer)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, grad_clip or math.inf)
    metrics = averaged(parts) | {"grad_norm": norm.item()}    # the one place where a GPU is waited for: all is under way by now
    if not (math.isfinite(metrics["loss"]) and (math.isfinite(metrics["grad_norm"]) or scaler.is_enabled())):
        raise FloatingPointError(f"loss {metrics['loss']}, gradient norm {metrics['grad_norm']}")
    scaler.step(optimizer)
    scaler.update()
    return metrics

@torch.no_grad()
def evaluate(model, compute_loss, batches, autocast=None, check=lambda: None):
    """Mean loss and metrics over all the batches, dropout off. check is called before each batch."""
    was_training, device, parts = model.training, next(model.parameters()).device, []
    model.eval()
    for batch in batches:
        check()
        with autocast or torch.autocast(device.type, enabled=False):
            loss, metrics = compute_loss(to_device(batch, device))
        parts.append((batch["weight"], {"loss": loss, **metrics}))
    model.train(was_training)
    return averaged(parts)

# ---------------------------------------------------------------------------------------------------------------------
# the loop

def fit(model, compute_loss, train_batches, val_batches, *, out_dir, save, max_steps, eval_every, lr, min_lr=0.0, warmup_steps=0,
        grad_accum=1, grad_clip=1.0, weight_decay=0.0, patience=0, autocast=None, resume=False, show=(), go_on="run it with --resume"):
    """
    Trains the parameters that require a gradient, and returns {"step", "best_step", "best_val_loss", "seconds"}.

    train_batches[i]   the i-th batch of an endless stream, a dict; update n takes the batches from n * grad_accum on. Each is given
                       to compute_loss with "step", the number of its update from 1 on (in validation: of updates made)
    val_batches        any iterable that can be gone through again; evaluated before the first update and every eval_every
    save(out_dir)      writes the weights; called whenever the validation loss is the best so far
    show               metrics to print beside the validation loss; go_on: what to tell the user to type after an interruption

    Ctrl-C or SIGTERM saves the last finished update and exits. A loss or gradient that is not finite stops the run in one line.
    """
    out_dir, start, device = Path(out_dir), time.time(), next(model.parameters()).device
    decay = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    other = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]    # biases and layer norms do not decay
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}],
                                  lr=lr, betas=(0.9, 0.95), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=getattr(autocast, "fast_dtype", None) == torch.float16)
    stopper, step, evaluated, seconds = EarlyStopping(patience), 0, False, 0.0
    if resume:
        step, evaluated, seconds = load_state(out_dir, model, optimizer, scaler, stopper)
    log = open(out_dir / "log.csv", "a", newline="")
    if log.tell() == 0:
        log.write("step,split,metric,value\n")
    bar = tqdm(total=max_steps, initial=step, disable=None, leave=False)

    def checkpoint():
        log.flush()
        save_state(out_dir, model, optimizer, scaler, stopper, step, evaluated, seconds + time.time() - start, log.tell())

    def note(split, metrics):
        csv.writer(log, lineterminator="\n").writerows((step, split, k, f"{v:.8g}") for k, v in metrics.items())

    try:
        with interrupts() as check:
            while True:
                if (step % eval_every == 0 or step == max_steps) and not evaluated:
                    metrics = evaluate(model, compute_loss, ({**b, "step": step} for b in val_batches), autocast, check)
                    note("val", metrics)
                    better, evaluated = stopper.update(metrics["loss"], step), True
                    if better:
                        save(out_dir)
                    checkpoint()
                    line = "  ".join(f"{k} {metrics[k]:.3f}" for k in show)
                    bar.write(f"step {step:5d}  val loss {metrics['loss']:.4f}  {line}{'' if better else '  (not the best)'}")
                if step >= max_steps or stopper.stop:
                    break
                for group in optimizer.param_groups:
                    group["lr"] = cosine_lr(step, lr, min_lr, warmup_steps, max_steps)
                batches = []
                for i in range(step * grad_accum, (step + 1) * grad_accum):
                    check()
                    batches.append({**train_batches[i], "step": step + 1})
                metrics = train_step(model, compute_loss, batches, optimizer, grad_clip, autocast, scaler)
                step, evaluated = step + 1, False
                note("train", metrics | {"lr": optimizer.param_groups[0]["lr"]})
                bar.update()
    except FloatingPointError as e:
        raise SystemExit(f"step {step}, batches {step * grad_accum} to {(step + 1) * grad_accum - 1} of the stream: {e}. The weights of "
                         f"step {stopper.best_step} are in {out_dir}. Try a lower --lr, more --warmup_steps or --dtype float32.") from None
    except KeyboardInterrupt:
        checkpoint()
        print(f"\ninterrupted after {step} updates; all is saved in {out_dir}. To go on: {go_on}", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        bar.close()
        log.close()
    seconds = round(seconds + time.time() - start, 1)
    result = {"step": step, "best_step": stopper.best_step, "best_val_loss": stopper.best, "seconds": seconds}
    if stopper.stop:
        print(f"early stopping at step {step}: {patience} evaluations without a better validation loss")
    print(f"{step} updates in {seconds} s; best validation loss {stopper.best:.4f} at step {stopper.best_step}")
    plot_curves(out_dir)
    write_json(out_dir / "result.json", result)
    return result

@contextmanager
def interrupts():
    """Inside it Ctrl-C and SIGTERM wait for check(), which raises KeyboardInterrupt: so no update is cut in half."""
    asked, old = [], {}
    def check():
        if asked:
            raise KeyboardInterrupt
    try:
        old = {s: signal.signal(s, lambda *_: asked.append(1)) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        pass    # not the main thread: Python's own handling stays
    try:
        yield check
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)

# ---------------------------------------------------------------------------------------------------------------------
# what a run leaves behind

def write_json(path, content):
    Path(f"{path}.tmp").write_text(json.dumps(content, indent=2) + "\n")
    os.replace(f"{path}.tmp", path)

def save_state(out_dir, model, optimizer, scaler, stopper, step, evaluated, seconds, log_bytes):
    state = {"model": {n: p for n, p in model.named_parameters() if p.requires_grad}, "optimizer": optimizer.state_dict(),
             "scaler": scaler.state_dict(), "stopper": {k: v for k, v in vars(stopper).items() if k != "patience"}, "step": step,
             "evaluated": evaluated, "seconds": seconds, "log_bytes": log_bytes, "rng": torch.get_rng_state(),
             "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    torch.save(state, out_dir / "state.tmp")
    os.replace(out_dir / "state.tmp", out_dir / "state.pt")

def load_state(out_dir, model, optimizer, scaler, stopper):
    try:
        state = torch.load(out_dir / "state.pt", map_location="cpu", weights_only=True)
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.data.copy_(state["model"][name])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    except (RuntimeError, KeyError, ValueError, OSError, EOFError) as e:
        raise SystemExit(f"{out_dir / 'state.pt'}: cannot be resumed from ({type(e).__name__}): start a new run") from None
    vars(stopper).update(state["stopper"])
    torch.set_rng_state(state["rng"])
    if torch.cuda.is_available() and state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    os.truncate(out_dir / "log.csv", state["log_bytes"])    # rows of updates that will be made again
    return state["step"], state["evaluated"], state["seconds"]

def plot_curves(out_dir):
    """curves.png from log.csv: a panel a metric, training thin, validation with dots."""
    from matplotlib.figure import Figure
    series = {}
    with open(Path(out_dir) / "log.csv", newline="") as f:
        for row in csv.DictReader(f):
            series.setdefault(row["metric"], {}).setdefault(row["split"], []).append((int(row["step"]), float(row["value"])))
    columns, height = min(4, len(series)), -(-len(series) // 4)
    fig = Figure(figsize=(3.2 * columns, 2.4 * height), layout="tight")
    axes = fig.subplots(height, columns, squeeze=False)
    for ax in axes.flat[len(series):]:
        ax.axis("off")
    for ax, (metric, splits) in zip(axes.flat, series.items()):
        for split, points in sorted(splits.items()):
            ax.plot(*zip(*points), "C1o-" if split == "val" else "C0-", label=split, lw=0.8, ms=3)
        ax.set_title(metric + (" (nats)" if metric.startswith("logps") else ""), fontsize=9)
        ax.set_xlabel("update", fontsize=8)
        ax.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7)
    fig.savefig(Path(out_dir) / "curves.png", dpi=110)
