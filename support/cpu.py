"""
What a CPU needs to be fast: float32 products by oneDNN, and freed memory that is kept. On a GPU nothing here has an effect.

    y = linear(x, weight, bias)    # F.linear; the same numbers to the last bits
    keep_memory()                  # once, before training

Read next: model.py
"""
import ctypes
import functools

import torch
import torch.nn as nn
import torch.nn.functional as F

@functools.cache
def has_onednn():
    """Whether this PyTorch was built with oneDNN's product for dense float32, which torch.compile uses too."""
    try:
        product(torch.ones(1, 1), torch.ones(1, 1))
        return True
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        return False

def product(x, weight, bias=None):
    """x @ weight.T + bias by oneDNN: x (..., n), weight (m, n), bias (m,) -> (..., m). It has no gradient of its own."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

class OneDNNLinear(torch.autograd.Function):
    """y = x @ weight.T + bias, and its three gradients: g @ weight, g.T @ x, and the sum of g over rows."""
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x if weight.requires_grad else None, weight if x.requires_grad else None)    # what backward will need
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x, weight), rows = ctx.saved_tensors, grad.flatten(0, -2)
        return (product(grad, weight.t()) if ctx.needs_input_grad[0] else None,
                product(rows.t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None,
                rows.sum(0) if ctx.needs_input_grad[2] else None)

def linear(x, weight, bias=None):
    """
    F.linear: x (..., n), weight (m, n), bias (m,) or None -> (..., m). PyTorch gives a float32 product on a CPU to MKL, which leaves
    more than half of an AMD processor idle; oneDNN does not.
    """
    ours = x.is_cpu and x.dtype == torch.float32 and x.dim() > 1 and x.numel() > 0 and not torch.is_autocast_enabled("cpu")
    if not ours or torch.compiler.is_compiling() or not has_onednn():
        return F.linear(x, weight, bias)
    return OneDNNLinear.apply(x, weight, bias)

class Linear(nn.Linear):
    """nn.Linear by the function above."""
    def forward(self, x):
        return linear(x, self.weight, self.bias)

def keep_memory():
    """
    Has freed tensors kept for the next ones. By default glibc gives a large one back to the kernel at once, and gets the next one as
    zeroed pages, one fault each, which can take longer than the arithmetic; after a few updates no more are needed. Costs a tenth more
    memory, since what is kept is in pieces. Does nothing where the C library has no mallopt.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)     # M_MMAP_MAX: no block is a mapping of its own
        mallopt(-1, -1)    # M_TRIM_THRESHOLD: the heap is not cut back
    except (OSError, AttributeError, TypeError):
        pass
