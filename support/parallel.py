"""
Many processes, one run: torchrun --nproc_per_node=2 train_pref.py --loss dpo. Every process holds the whole model and takes every N-th row
of each batch, so a batch, an update and the log are the same for any N; DistributedDataParallel sums the gradients. Only the
process of rank 0 writes and prints. Without torchrun nothing here has an effect.

Read next: data.py
"""
import os
import sys
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn as nn

@contextmanager
def together():
    """Where processes wait for one another: if one of them has gone, the others end in one line, which leaves it to that one to say why."""
    try:
        yield
    except RuntimeError as e:
        raise explained(e) from None

def join(device="auto"):
    """Meets the other processes, if torchrun has started this one; a process other than the first prints nothing from here on."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        if gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        with together():
            dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(days=1))    # while the first one samples, the others wait
        wait()    # the first one holds the store by which they meet: should it end at once, by a user's error, the others would fail there
        if rank():
            sys.stdout = open(os.devnull, "w")

def leave():
    """
    Whether this process was the first one; ends what join began. Left to the interpreter's own end, gloo's threads now and then abort
    a process whose work is done, and torchrun then stops the others.
    """
    first = rank() == 0
    if dist.is_initialized():
        dist.destroy_process_group()
    return first

def rank():
    return dist.get_rank() if dist.is_initialized() else 0

def world():
    return dist.get_world_size() if dist.is_initialized() else 1

def wait():
    """Until all processes are here: before and after what one of them does for all."""
    if world() > 1:
        with together():
            dist.barrier()

def totals(numbers):
    """Each of a list of numbers, summed over all processes; the same bits on each."""
    if world() == 1:
        return numbers
    x = torch.tensor(numbers, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    with together():
        dist.all_reduce(x)
    return x.tolist()

def mean(x, weight):
    """Of a tensor (B,) without gradient, over all processes: () unless there is one alone, which keeps x. weight: 0 leaves this one out."""
    if world() == 1:
        return x
    total, n = totals([x.sum().item() * bool(weight), len(x) * bool(weight)])
    return torch.full_like(x[0], total / n)

def explained(error):
    """The error itself; of one that only says that another process has gone, a line that says so."""
    words = ("peer", "onnection", "NCCL", "socket", "store", "Broken pipe")
    gone = int(os.environ.get("WORLD_SIZE", 1)) > 1 and any(word in str(error) for word in words)
    return SystemExit("another process of this run has stopped: its own message says why") if gone else error

class Step(nn.Module):
    """A model and its loss as one module: DistributedDataParallel acts on what goes through a forward."""
    def __init__(self, model, compute_loss):
        super().__init__()
        self.model, self.compute_loss = model, compute_loss

    def forward(self, batch):
        return self.compute_loss(batch)

def shared(model, compute_loss):
    """compute_loss, whose backward leaves the mean of all processes' gradients in the model."""
    if world() == 1:
        return compute_loss
    with together():
        return nn.parallel.DistributedDataParallel(Step(model, compute_loss), gradient_as_bucket_view=True)

def alone(compute_loss):
    """Inside it backward adds to this process's gradients only: for all but the last batch of an update."""
    return compute_loss.no_sync() if isinstance(compute_loss, nn.Module) else nullcontext()
