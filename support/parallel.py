"""
Data-parallel training: torchrun --nproc_per_node=2 train_pref.py --loss dpo

Every process holds the whole model and takes every N-th row of each batch. DistributedDataParallel averages the
gradients, so updates and log are the same for any number of processes. Only the process of rank 0 writes and prints.
In a single process these functions have no effect. docs/reliability.md has more. Read next: data.py
"""
import os
import sys
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn as nn

# ---------------------------------------------------------------------------------------------------------------------
# processes

def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0

def world():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1

@contextmanager
def together():
    """Around every point where processes wait for each other: if one has stopped, the others end in one line."""
    try:
        yield
    except RuntimeError as e:
        words = ("peer", "onnection", "NCCL", "socket", "store", "Broken pipe")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and any(word in str(e) for word in words):
            raise SystemExit("another process of this run has stopped: its own message says why") from None
        raise

def wait():
    """Waits until all processes are here: before and after a task that one process does for all."""
    if world() > 1:
        with together():
            dist.barrier()

def join(device="auto"):
    """Connects to the other processes, if torchrun started this one. From here on only the process of rank 0 prints."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with together():
        # a day, because the other processes wait while the first one samples pairs
        dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(days=1))
    # Rank 0 holds the store through which processes connect. If it ended right away, the others would fail to connect.
    wait()
    if rank():
        sys.stdout = open(os.devnull, "w")

def leave():
    """
    Disconnects, and returns whether this process had rank 0. Without it gloo's threads sometimes abort a process at
    interpreter exit, after its work is done, and torchrun then stops the others.
    """
    first = rank() == 0
    if dist.is_initialized():
        dist.destroy_process_group()
    return first

# ---------------------------------------------------------------------------------------------------------------------
# numbers

def totals(numbers):
    """Each number of a list, summed over all processes: the same bits in each of them."""
    if world() == 1:
        return numbers
    x = torch.tensor(numbers, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    with together():
        dist.all_reduce(x)
    return x.tolist()

def mean(x, weight):
    """
    The mean over all processes of x (B,), which has no gradient: (). In a single process x itself, (B,).
    weight: that of the batch; a process with weight 0 holds a placeholder row and does not count.
    """
    if world() == 1:
        return x
    total, n = totals([x.sum().item() * bool(weight), len(x) * bool(weight)])
    return torch.full_like(x[0], total / n)

def averaged(parts):
    """Means over batches and processes. parts: (weight, metrics) of each batch; its weight is its pairs, or tokens."""
    names = list(parts[0][1])
    sums = [float(sum(weight * metrics[name] for weight, metrics in parts)) for name in names]
    *sums, total = totals([*sums, sum(weight for weight, _ in parts)])
    return {name: x / total for name, x in zip(names, sums)}

def shared_out(groups, width, compute):
    """
    [(item, its numbers), ...] for all items of some groups, in order. Each process computes every N-th item of a group.

    groups          lists of items
    compute(items)  the numbers of some items, a tensor (n, width). Not called without items
    """
    items, numbers = [], []
    for group in groups:
        table = torch.zeros(len(group), width)    # 0 where another process computes
        mine = group[rank()::world()]
        if mine:
            table[rank()::world()] = compute(mine).cpu()
        items += group
        numbers += table.flatten().tolist()
    numbers = totals(numbers)
    return [(item, numbers[i * width:(i + 1) * width]) for i, item in enumerate(items)]

# ---------------------------------------------------------------------------------------------------------------------
# gradients

class Step(nn.Module):
    """A model and its loss as one module, because DistributedDataParallel wraps a module's forward."""
    def __init__(self, model, compute_loss):
        super().__init__()
        self.model, self.compute_loss = model, compute_loss

    def forward(self, batch):
        return self.compute_loss(batch)

def shared(model, compute_loss):
    """compute_loss with gradients that are averaged over all processes in backward."""
    if world() == 1:
        return compute_loss
    with together():
        return nn.parallel.DistributedDataParallel(Step(model, compute_loss), gradient_as_bucket_view=True)

def sync_at_last(compute_loss, batches):
    """Yields the batches of one update. Processes exchange gradients at the last one only, not at each."""
    *before, last = batches
    shared_loss = isinstance(compute_loss, nn.parallel.DistributedDataParallel)
    with compute_loss.no_sync() if shared_loss else nullcontext():
        yield from before
    yield last

def total_weight(batches):
    """
    The number of pairs, or tokens, in an update, by which its loss is divided. "total" counts those of all processes.
    The sum is divided by the number of processes, because DistributedDataParallel averages gradients.
    """
    return sum(batch.get("total", batch["weight"]) for batch in batches) / world()
