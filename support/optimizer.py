"""
torch.optim.AdamW that starts a second sooner, because it does not import PyTorch's compiler.

    optimizer = AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)    # as torch.optim.AdamW

The updates and the state are the same bits. Read next: loop.py
"""
import inspect

import torch

def unwrapped(name):
    """
    A method of torch.optim.AdamW as it is written. PyTorch wraps some of them, so that torch.compile leaves them out.
    Each wrapper imports torch._dynamo, which takes a second. No optimizer is compiled here.
    """
    return inspect.unwrap(getattr(torch.optim.AdamW, name))

class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW, with the same arguments, outside torch.compile."""
    add_param_group = unwrapped("add_param_group")
    zero_grad = unwrapped("zero_grad")
    state_dict = unwrapped("state_dict")
    load_state_dict = unwrapped("load_state_dict")
    step = torch.no_grad()(unwrapped("step"))
