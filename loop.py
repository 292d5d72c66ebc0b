"""
The one training loop: cosine schedule, early stopping, checkpoints, log. SFT, reward models, preference training and PPO differ in one
closure of a few lines, compute_loss(batch) -> (loss, dict of floats).

A run directory (out/<data>/<name>) holds args.json, config.json + model.safetensors (the best weights by validation loss; for adapters
adapter.json + adapter.safetensors), log.csv, curves.png, state.pt (the last weights, to resume from) and, when finished, result.json.
"""
import csv
import math
import os
import signal
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from tqdm import tqdm

from support import parallel
from support.checkpoint import load_state, plot_curves, save_state, write_json

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
    """Means of (weight, dict of numbers) over all of them, in all processes: a batch counts by its pairs, or tokens."""
    names = list(parts[0][1])
    *sums, weight = parallel.totals([float(sum(w * m[k] for w, m in parts)) for k in names] + [sum(w for w, _ in parts)])
    return {k: x / weight for k, x in zip(names, sums)}

def to_device(batch, device):
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

def train_step(model, compute_loss, batches, optimizer, grad_clip=1.0, autocast=None, scaler=None, limit=math.inf):
    """
    One update from a list of batches (gradient accumulation): the gradient is that of the mean over all their pairs, or tokens, not
    of the mean of the batches' means, which weighs a short batch's tokens more. Returns the metrics.

    scaler  for float16, whose small gradients would be 0. It multiplies the loss, and leaves out an update where that was too much
    limit   the largest loss to make an update from. Raises FloatingPointError, and leaves the weights alone, if the loss is over it,
            or loss or gradient is not finite
    """
    model.train()
    device = next(model.parameters()).device
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    total, parts = sum(b.get("total", b["weight"]) for b in batches) / parallel.world(), []    # DDP takes the mean over processes
    optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        with parallel.alone(compute_loss) if batch is not batches[-1] else nullcontext():
            with autocast or torch.autocast(device.type, enabled=False):
                loss, metrics = compute_loss(to_device(batch, device))
            scaler.scale(loss * (batch["weight"] / total)).backward()
        parts.append((batch["weight"], {"loss": loss.detach(), **metrics}))
    scaler.unscale_(optimizer)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, grad_clip or math.inf)
    metrics = averaged(parts) | {"grad_norm": norm.item()}    # the one place where a GPU is waited for: all is under way by now
    if not (metrics["loss"] <= limit and math.isfinite(metrics["loss"]) and (math.isfinite(metrics["grad_norm"]) or scaler.is_enabled())):
        scaler.update()    # or the next update could not unscale
        raise FloatingPointError(f"loss {metrics['loss']:.6g}, gradient norm {metrics['grad_norm']:.6g}")
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

def spike_limit(losses):
    """The loss over which an update would do harm: far above the largest of the last ones, by 10 times what they vary, or 10."""
    return max(losses) + 10 * max(1.0, max(losses) - min(losses)) if len(losses) >= 20 else math.inf

@torch.no_grad()
def at_fault(compute_loss, stream, numbers, limit, device, autocast):
    """The rows of some batches whose loss, alone, is not finite or over the limit; all of them if it takes several together."""
    rows, bad = [], []
    for row, batch in (pair for i in numbers for pair in getattr(stream, "one_by_one", lambda i: ())(i)):
        with autocast or torch.autocast(device.type, enabled=False):
            loss = compute_loss(to_device({**batch, "step": 1}, device))[0].item()
        rows.append(row)
        bad += [] if math.isfinite(loss) and loss <= limit else [row]
    return ", ".join(map(str, (bad or rows)[:20])) + (", ..." if len(bad or rows) > 20 else "")

# ---------------------------------------------------------------------------------------------------------------------
# the loop

def fit(model, compute_loss, train_batches, val_batches, *, out_dir, save, max_steps, eval_every, lr, min_lr=0.0, warmup_steps=0,
        grad_accum=1, grad_clip=1.0, weight_decay=0.0, adam_epsilon=1e-8, patience=0, on_nonfinite="stop", keep_all=False,
        autocast=None, resume=False, show=(), go_on="run it with --resume"):
    """
    Trains the parameters that require a gradient, and returns {"step", "best_step", "best_val_loss", "skipped", "seconds"}.

    train_batches[i]   the i-th batch of an endless stream, a dict; update n takes the batches from n * grad_accum on. Each is given
                       to compute_loss with "step", the number of its update from 1 on (in validation: of updates made)
    val_batches        any iterable that can be gone through again; evaluated before the first update and every eval_every
    save(folder)       writes the weights: to out_dir when the validation loss is the best so far; with keep_all to out_dir/step-N always
    on_nonfinite       "skip" leaves out an update whose loss or gradient is not finite, or whose loss is a spike; "stop" ends the run
    show               metrics to print beside the validation loss; go_on: what to tell the user to type after an interruption

    Ctrl-C or SIGTERM saves the last finished update and exits. What can go wrong with numbers and disks stops the run in one line.
    """
    out_dir, start, device, first = Path(out_dir), time.time(), next(model.parameters()).device, parallel.rank() == 0
    decay = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    other = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]    # biases and layer norms do not decay
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}],
                                  lr=lr, betas=(0.9, 0.95), eps=adam_epsilon, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=getattr(autocast, "fast_dtype", None) == torch.float16)
    stopper, step, evaluated, skipped, losses, seconds = EarlyStopping(patience), 0, False, [], [], 0.0
    if resume and (counters := load_state(out_dir, model, optimizer, scaler)):
        step, evaluated, skipped, losses, seconds = (counters[k] for k in ("step", "evaluated", "skipped", "losses", "seconds"))
        vars(stopper).update(counters["stopper"])
    shared_loss = parallel.shared(model, compute_loss)
    log = open(out_dir / "log.csv" if first else os.devnull, "a", newline="")
    if log.tell() == 0:
        log.write("step,split,metric,value\n")
    bar = tqdm(total=max_steps, initial=step, disable=None if first else True, leave=False)

    def checkpoint():
        log.flush()
        counters = {"step": step, "evaluated": evaluated, "skipped": skipped, "losses": losses, "seconds": seconds + time.time() - start,
                    "stopper": {k: v for k, v in vars(stopper).items() if k != "patience"}}
        if first:
            save_state(out_dir, model, optimizer, scaler, counters, log.tell())

    def note(split, metrics):
        csv.writer(log, lineterminator="\n").writerows((step, split, k, f"{v:.8g}") for k, v in metrics.items())

    def interrupted():
        checkpoint()
        if first:
            print(f"\ninterrupted after {step} updates; all is saved in {out_dir}. To go on: {go_on}", file=sys.stderr)
        raise SystemExit(130) from None

    try:
        with interrupts(interrupted) as check:
            while True:
                if (step % eval_every == 0 or step == max_steps) and not evaluated:
                    metrics = evaluate(model, compute_loss, ({**b, "step": step} for b in val_batches), autocast, check)
                    note("val", metrics)
                    better, evaluated = stopper.update(metrics["loss"], step), True
                    for folder in [out_dir] * better + [out_dir / f"step-{step}"] * keep_all if first else ():
                        save(folder)
                    checkpoint()
                    line = "".join(f"  {k} {metrics[k]:.3f}" for k in show) + ("" if better else "  (not the best)")
                    bar.write(f"step {step:5d}  val loss {metrics['loss']:.4f}{line}")
                if step >= max_steps or stopper.stop:
                    break
                for group in optimizer.param_groups:
                    group["lr"] = cosine_lr(step, lr, min_lr, warmup_steps, max_steps)
                numbers, batches, limit = range(step * grad_accum, (step + 1) * grad_accum), [], spike_limit(losses)
                for i in numbers:
                    check()
                    batches.append({**train_batches[i], "step": step + 1})
                try:
                    metrics = train_step(model, shared_loss, batches, optimizer, grad_clip, autocast, scaler, limit)
                    losses = [*losses, metrics["loss"]][-50:]
                except FloatingPointError as e:
                    rows = at_fault(compute_loss, train_batches, numbers, limit, device, autocast)
                    what = f"step {step}, update {step + 1}: {e}" + (f" in rows {rows}" if rows else "")
                    if on_nonfinite == "stop" or skipped[-9:] == list(range(step - 8, step + 1)):
                        tenth = ", the tenth in a row" if on_nonfinite == "skip" else ""
                        kept = f"The weights of step {stopper.best_step} are" if stopper.best_step is not None else "No weights are"
                        raise SystemExit(f"{what}{tenth}. {kept} in {out_dir}. Try a lower --lr, more "
                                         "--warmup_steps, --dtype float32 or --on_nonfinite skip") from None
                    skipped, metrics = [*skipped, step + 1], {"skipped": len(skipped) + 1}
                    bar.write(f"{what}: skipped ({len(skipped)} so far)")
                step, evaluated = step + 1, False
                note("train", metrics | {"lr": optimizer.param_groups[0]["lr"]})
                bar.update()
        if stopper.best_step is None:
            raise SystemExit(f"the validation loss was not finite at any evaluation: no weights are in {out_dir}. Try a lower --lr, more "
                             "--warmup_steps or --dtype float32")
        seconds = round(seconds + time.time() - start, 1)
        result = {"step": step, "best_step": stopper.best_step, "best_val_loss": stopper.best, "skipped": len(skipped), "seconds": seconds}
        if first:
            write_json(out_dir / "result.json", result)
    except RuntimeError as e:
        raise parallel.explained(e) from None
    except OSError as e:
        raise SystemExit(f"{e}. To go on from the last whole state: {go_on}") from None
    finally:
        bar.close()
        with suppress(OSError):    # a full disk has been said by now
            log.close()
    if stopper.stop:
        print(f"early stopping at step {step}: {patience} evaluations without a better validation loss")
    print(f"{step} updates in {seconds} s; best validation loss {stopper.best:.4f} at step {stopper.best_step}"
          + (f"; {len(skipped)} updates were skipped" if skipped else ""))
    if first:
        try:
            plot_curves(out_dir)
        except (OSError, ValueError) as e:
            print(f"curves.png was not drawn: {e}")
    return result

@contextmanager
def interrupts(then):
    """Inside it Ctrl-C and SIGTERM wait for check(), and then() is called: so no update is cut in half."""
    asked, old = [], {}
    def check():
        if any(parallel.totals([len(asked)])):    # one process may be told earlier than another
            raise KeyboardInterrupt
    try:
        old = {s: signal.signal(s, lambda *_: asked.append(1)) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        pass    # not the main thread: Python's own handling stays
    try:
        yield check
    except KeyboardInterrupt:
        then()
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
