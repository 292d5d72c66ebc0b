"""
Speed on a CPU: float32 products by oneDNN, and freed memory that is reused. On a GPU, nothing here has an effect.

    y = linear(x, weight, bias)    # F.linear, equal up to rounding
    keep_memory()                  # once, before training

docs/speed.md has the measurements. Read next: model.py
"""
import ctypes
import functools
from contextlib import suppress

import torch
import torch.nn as nn
import torch.nn.functional as F

# ---------------------------------------------------------------------------------------------------------------------
# products

def linear(x, weight, bias=None):
    """
    F.linear: x (..., n), weight (m, n), bias (m,) or None -> (..., m).

    F.linear is the definition, and is used for everything except float32 on a CPU. There, PyTorch calls MKL, which uses
    less than half of an AMD processor's speed. oneDNN uses all of it. Value and gradients are equal up to rounding.
    """
    plain_float32 = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    has_rows = x.dim() > 1 and x.numel() > 0
    # torch.compile chooses oneDNN by itself where it is faster
    if not plain_float32 or not has_rows or torch.compiler.is_compiling() or not has_onednn():
        return F.linear(x, weight, bias)
    return OneDNNLinear.apply(x, weight, bias)

class Linear(nn.Linear):
    """nn.Linear by the function `linear`."""
    def forward(self, x):
        return linear(x, self.weight, self.bias)

class OneDNNLinear(torch.autograd.Function):
    """
    y = x @ weight.T + bias with its gradients, where g (rows, m) is the gradient of y:

        d x = g @ weight        d weight = g.T @ x        d bias = the sum of g over the rows
    """
    @staticmethod
    def forward(ctx, x, weight, bias):
        # only what backward needs: the input of a frozen weight is not kept in memory
        ctx.save_for_backward(x if weight.requires_grad else None, weight if x.requires_grad else None)
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)                                         # (rows, m)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = product(grad, weight.t())                             # (..., n)
        if ctx.needs_input_grad[1]:
            grad_weight = product(rows.t(), x.flatten(0, -2).t())          # (m, n)
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)                                        # (m,)
        return grad_x, grad_weight, grad_bias

def product(x, weight, bias=None):
    """x @ weight.T + bias by oneDNN: x (..., n), weight (m, n), bias (m,) -> (..., m). It has no gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

@functools.cache
def has_onednn():
    """Whether this PyTorch has oneDNN's product of dense float32 tensors. It is not part of the public API."""
    try:
        product(torch.ones(1, 1), torch.ones(1, 1))
        return True
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False

# ---------------------------------------------------------------------------------------------------------------------
# memory

def keep_memory():
    """
    Makes glibc keep the memory of freed tensors for the next ones.

    By default, glibc returns a large block to the kernel at once. The next tensor then gets new pages, and the kernel
    fills each of them with zeros, which can take longer than the arithmetic. Kept memory is fragmented, so the process
    needs about 10% more. Nothing happens if the C library has no mallopt.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)     # M_MMAP_MAX: no block has a mapping of its own
        mallopt(-1, -1)    # M_TRIM_THRESHOLD: the heap does not shrink

def map_large():
    """
    Gives tensors of 4 MB and more mappings of their own again, which end when they are freed: for a quantized base.

    Its dequantized matrices are as large as that and live for one product. In kept memory, small tensors that live
    longer settle where a matrix was, and the next matrix needs new memory.
    """
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**22)    # M_MMAP_THRESHOLD
        mallopt(-4, 2**16)    # M_MMAP_MAX: the default
