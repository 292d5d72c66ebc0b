"""
The training loop: cosine schedule, gradient accumulation, early stopping, checkpoints and log.

    result = fit(model, compute_loss, train_batches, val_batches, out_dir="out/toy/dpo", save=model.save_pretrained,
                 max_steps=120, eval_every=30, lr=1e-3)

SFT, reward models, preference training and PPO differ in one function: compute_loss(batch) -> (loss, dict of floats).

fit writes to a run directory: log.csv, curves.png, the best weights by validation loss, and state.pt, which --resume
reads. A finished run has a result.json. docs/running.md explains how to stop and resume a run. Read next: train_sft.py
"""
import math
import sys
from pathlib import Path

import torch

from support import parallel, precision
from support.checkpoint import TrainingState, write_json
from support.log import Log, plot_curves
from support.optimizer import AdamW    # torch.optim.AdamW, which takes a second to start
from support.signals import interrupts, one_line_errors

# ---------------------------------------------------------------------------------------------------------------------
# Schedules and stopping

def cosine_lr(step, lr, min_lr, warmup_steps, max_steps):
    """The learning rate of update `step`, from 0: linear warmup to lr in warmup_steps, then half a cosine to min_lr."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

def anneal(step, start, end, schedule, max_steps):
    """A hyperparameter at update `step`, from 1: from start to end, reached at max_steps. Step 0 counts as step 1."""
    if end is None or schedule == "constant":
        return start
    progress = max(1, step) / max_steps
    if schedule == "cosine":
        progress = 0.5 - 0.5 * math.cos(math.pi * progress)
    return start + (end - start) * progress

class EarlyStopping:
    """The best validation loss. `stop`: whether the last `patience` evaluations were all not better (0: never)."""
    def __init__(self, patience):
        self.patience, self.best, self.best_step, self.bad = patience, math.inf, None, 0

    def update(self, value, step):
        """Takes the validation loss of a step. Returns whether it is the best so far."""
        better = value < self.best
        if better:
            self.best, self.best_step = value, step
        self.bad = 0 if better else self.bad + 1
        return better

    @property
    def stop(self):
        """Whether training should stop."""
        return 0 < self.patience <= self.bad

def spike_limit(losses):
    """The largest loss that is not a spike: above the last losses by 10 times their range, and by 10 at least."""
    if len(losses) < 20:    # too few to know what is normal
        return math.inf
    return max(losses) + 10 * max(1.0, max(losses) - min(losses))

# ---------------------------------------------------------------------------------------------------------------------
# One update, one evaluation

def to_device(batch, device):
    """The batch with its tensors on a device."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

def forward(compute_loss, batch, device, autocast=None):
    """(loss, metrics) of a batch, on a device and in the dtype of autocast (None: float32)."""
    with autocast or torch.autocast(device.type, enabled=False):
        return compute_loss(to_device(batch, device))

def make_optimizer(model, lr, weight_decay, adam_epsilon):
    """AdamW for the parameters that require a gradient. Weight decay acts on matrices, not on biases and norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2]
    vectors = [p for p in trained if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=adam_epsilon, fused=True)

def accumulate_gradients(compute_loss, batches, total, backward=torch.Tensor.backward):
    """
    Adds to each parameter's .grad the gradient of the mean loss over all pairs (or tokens) of several batches:

        L = sum_i weight_i / total * L_i      L_i is the mean over the weight_i pairs (or tokens) of batch i

    The mean of the L_i would count a pair of a small batch more. total: the sum of all weights.
    Returns (weight, metrics) of each batch.
    """
    parts = []
    for batch in batches:
        loss, metrics = compute_loss(batch)
        # Each backward pass adds to .grad and frees its graph: memory is that of one batch.
        backward(loss * (batch["weight"] / total))
        parts.append((batch["weight"], {"loss": loss.detach(), **metrics}))
    return parts

def train_step(model, compute_loss, batches, optimizer, grad_clip=1.0, autocast=None, scaler=None, max_loss=math.inf):
    """
    One optimizer update from a list of batches. Returns their mean metrics, and grad_norm, the norm before clipping.

    scaler    the loss scale of float16: see support/precision.py
    Raises FloatingPointError, with the weights unchanged, if loss or gradient is not finite or the loss over max_loss.
    """
    model.train()
    device = next(model.parameters()).device
    scaler = scaler or precision.loss_scaler(device)

    # The gradient of the mean loss over all batches, and its norm.
    optimizer.zero_grad(set_to_none=True)
    parts = accumulate_gradients(lambda batch: forward(compute_loss, batch, device, autocast),
                                 parallel.sync_at_last(compute_loss, batches), parallel.total_weight(batches),
                                 backward=lambda loss: scaler.scale(loss).backward())
    norm = precision.clip_gradients(optimizer, scaler, grad_clip)

    # Reading numbers makes the CPU wait for the GPU. It happens once an update, after all work has been queued.
    metrics = parallel.averaged(parts) | {"grad_norm": norm.item()}
    bad_loss = not math.isfinite(metrics["loss"]) or metrics["loss"] > max_loss
    bad_gradient = not math.isfinite(metrics["grad_norm"]) and not scaler.is_enabled()    # a scaler skips it
    if bad_loss or bad_gradient:
        scaler.update()    # without it the scaler refuses to unscale the next update
        raise FloatingPointError(f"loss {metrics['loss']:.6g}, gradient norm {metrics['grad_norm']:.6g}")
    precision.apply_update(optimizer, scaler)
    return metrics

@torch.no_grad()
def evaluate(model, compute_loss, batches, autocast=None, check=lambda: None):
    """The loss and the metrics, averaged over all batches, without dropout. check() is called before each batch."""
    was_training, device, parts = model.training, next(model.parameters()).device, []
    model.eval()
    for batch in batches:
        check()
        loss, metrics = forward(compute_loss, batch, device, autocast)
        parts.append((batch["weight"], {"loss": loss, **metrics}))
    model.train(was_training)
    return parallel.averaged(parts)

# ---------------------------------------------------------------------------------------------------------------------
# The steps of the loop

def keep_best(state, log, metrics, *, out_dir, save, keep_all, show):
    """Logs an evaluation, saves the weights if they are the best so far (with keep_all always), and writes state.pt."""
    log.write(state.step, "val", metrics)
    better = state.stopper.update(metrics["loss"], state.step)
    state.evaluated = True
    state.optimizer.zero_grad()    # saving copies weights; the gradients of the last update would take memory beside it
    if parallel.rank() == 0 and better:
        save(out_dir)
    if parallel.rank() == 0 and keep_all:
        save(out_dir / f"step-{state.step}")
    state.save(out_dir, log)
    shown = "".join(f"  {name} {metrics[name]:.3f}" for name in show)
    log.say(f"step {state.step:5d}  val loss {metrics['loss']:.4f}{shown}" + ("" if better else "  (not the best)"))

@torch.no_grad()
def rows_at_fault(compute_loss, stream, numbers, max_loss, device, autocast):
    """
    The rows of some batches whose loss, computed for each row alone, is not finite or over max_loss: " in rows 3, 7".
    All rows if no row is so alone. "" if the stream cannot give single rows.
    """
    if not hasattr(stream, "one_by_one"):
        return ""
    rows, bad = [], []
    for i in numbers:
        for row, batch in stream.one_by_one(i):
            loss = forward(compute_loss, {**batch, "step": 1}, device, autocast)[0].item()
            rows.append(row)
            if not (math.isfinite(loss) and loss <= max_loss):
                bad.append(row)
    found = bad or rows
    return " in rows " + ", ".join(map(str, found[:20])) + (", ..." if len(found) > 20 else "")

def skip_or_stop(state, log, problem, on_nonfinite, out_dir):
    """Skips an update: returns the metrics to log. Ends the run if on_nonfinite is "stop", or at the tenth in a row."""
    problem = f"step {state.step}, update {state.step + 1}: {problem}"
    previous_nine = list(range(state.step - 8, state.step + 1))
    if on_nonfinite == "stop" or state.skipped[-9:] == previous_nine:
        tenth = ", the tenth in a row" if on_nonfinite == "skip" else ""
        best_step = state.stopper.best_step
        kept = "No weights are" if best_step is None else f"The weights of step {best_step} are"
        raise SystemExit(f"{problem}{tenth}. {kept} in {out_dir}. Try a lower --lr, more --warmup_steps, "
                         "--dtype float32 or --on_nonfinite skip") from None
    state.skipped = [*state.skipped, state.step + 1]
    log.say(f"{problem}: skipped ({len(state.skipped)} so far)")
    return {"skipped": len(state.skipped)}

def save_and_exit(state, log, out_dir, go_on):
    """Ends an interrupted run: writes state.pt and prints the command that resumes it."""
    state.save(out_dir, log)
    if parallel.rank() == 0:
        print(f"\ninterrupted after {state.step} updates; all of them are saved in {out_dir}. To resume: {go_on}",
              file=sys.stderr)
    raise SystemExit(130) from None

def finish(state, out_dir, go_on):
    """Writes result.json, prints the result and draws curves.png. Returns the content of result.json."""
    stopper, skipped = state.stopper, len(state.skipped)
    if stopper.best_step is None:
        raise SystemExit(f"the validation loss was not finite at any evaluation: no weights are in {out_dir}. "
                         "Try a lower --lr, more --warmup_steps or --dtype float32")
    seconds = round(state.elapsed(), 1)
    result = {"step": state.step, "best_step": stopper.best_step, "best_val_loss": stopper.best, "skipped": skipped,
              "seconds": seconds}
    with one_line_errors(go_on):
        if parallel.rank() == 0:
            write_json(out_dir / "result.json", result)
    if stopper.stop:
        print(f"early stopping at step {state.step}: {stopper.patience} evaluations without a better validation loss")
    print(f"{state.step} updates in {seconds} s; best validation loss {stopper.best:.4f} at step {stopper.best_step}"
          + (f"; {skipped} updates were skipped" if skipped else ""))
    if parallel.rank() == 0:
        plot_curves(out_dir)
    return result

# ---------------------------------------------------------------------------------------------------------------------
# The loop

def fit(model, compute_loss, train_batches, val_batches, *, out_dir, save, max_steps, eval_every, lr, min_lr=0.0,
        warmup_steps=0, grad_accum=1, grad_clip=1.0, weight_decay=0.0, adam_epsilon=1e-8, patience=0,
        on_nonfinite="stop", keep_all=False, autocast=None, resume=False, show=(), go_on="run it with --resume"):
    """
    Trains the parameters that require a gradient. Returns {"step", "best_step", "best_val_loss", "skipped", "seconds"}.

    train_batches[i]   batch i of an endless stream, a dict. compute_loss also gets "step" in it, its update, from 1
    val_batches        an iterable of batches. Here "step" is the number of updates so far
    save(folder)       writes the weights: to out_dir if they are the best so far; with keep_all also to out_dir/step-N
    on_nonfinite       for a loss or gradient that is not finite, or a spike: "skip" that update or "stop" the run
    show, go_on        metrics to print at evaluations; the command to print that resumes the run
    """
    out_dir, device = Path(out_dir), next(model.parameters()).device
    optimizer = make_optimizer(model, lr, weight_decay, adam_epsilon)
    scaler = precision.loss_scaler(device, autocast)
    state = TrainingState(model, optimizer, scaler, EarlyStopping(patience))
    if resume:
        state.load(out_dir)
    shared_loss = parallel.shared(model, compute_loss)
    log = Log(out_dir, state.step, max_steps)
    stop = lambda: save_and_exit(state, log, out_dir, go_on)
    with one_line_errors(go_on), log, interrupts(stop) as check:
        while True:
            # Evaluate before the first update, every eval_every updates, and after the last. A resumed run may have it.
            if (state.step % eval_every == 0 or state.step == max_steps) and not state.evaluated:
                batches = ({**batch, "step": state.step} for batch in val_batches)
                metrics = evaluate(model, compute_loss, batches, autocast, check)
                keep_best(state, log, metrics, out_dir=out_dir, save=save, keep_all=keep_all, show=show)
            # Stop after the last update, or when `patience` evaluations in a row have not been better.
            if state.step >= max_steps or state.stopper.stop:
                break
            # The learning rate rises during warmup and then follows a cosine.
            for group in optimizer.param_groups:
                group["lr"] = cosine_lr(state.step, lr, min_lr, warmup_steps, max_steps)
            # Each update takes the next grad_accum batches of the stream. An interrupted run ends before it takes them.
            check()
            numbers = range(state.step * grad_accum, (state.step + 1) * grad_accum)
            batches = [{**train_batches[i], "step": state.step + 1} for i in numbers]
            # Forward, backward, optimizer. A loss that is a spike is treated as one that is not finite.
            max_loss = spike_limit(state.losses)
            try:
                metrics = train_step(model, shared_loss, batches, optimizer, grad_clip, autocast, scaler, max_loss)
                state.losses = [*state.losses, metrics["loss"]][-50:]
            except FloatingPointError as e:
                rows = rows_at_fault(compute_loss, train_batches, numbers, max_loss, device, autocast)
                metrics = skip_or_stop(state, log, f"{e}{rows}", on_nonfinite, out_dir)
            state.step, state.evaluated = state.step + 1, False
            log.write(state.step, "train", metrics | {"lr": optimizer.param_groups[0]["lr"]})
            log.bar.update()
    return finish(state, out_dir, go_on)
