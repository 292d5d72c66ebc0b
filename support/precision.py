"""
Device and mixed precision: what matrix products run on and in which dtype, and the loss scale of float16.

Weights, log-probs and the optimizer's moments are float32 in every case. docs/running.md explains --device and --dtype.
"""
import math

import torch

def find_device(name):
    """The torch.device of --device. `auto`: CUDA, else Apple's MPS, else the CPU. Raises ValueError if missing."""
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else name
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()    # some devices exist by name only
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise ValueError(f"--device {name}: {str(e).splitlines()[0]}") from None
    return device

def find_dtype(name, device):
    """The name of the dtype. `auto`: bfloat16 on GPUs that are fast in it, float16 on older ones, else float32."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "float32"
    # torch.cuda.is_bf16_supported() is also True for cards before Ampere, which emulate bfloat16 slowly.
    return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"

def loss_scaler(device, autocast=None):
    """
    The GradScaler of a run. It acts in float16 only, where small gradients would round to 0. It multiplies the loss by
    a large factor. If the gradient overflows, it skips the update and halves the factor.
    """
    # An autocast that is switched off has a dtype too. cli.set_up gives it float32.
    return torch.amp.GradScaler(device.type, enabled=getattr(autocast, "fast_dtype", None) == torch.float16)

def clip_gradients(optimizer, scaler, max_norm):
    """Undoes the loss scale and clips the gradient to max_norm (0: not at all). Returns the norm before that, ()."""
    scaler.unscale_(optimizer)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.nn.utils.clip_grad_norm_(trained, max_norm or math.inf)

def apply_update(optimizer, scaler):
    """One optimizer update. In float16, a gradient that is not finite is skipped and lowers the loss scale."""
    scaler.step(optimizer)
    scaler.update()
