"""
Adapters that replace GPT-2's MLPs: a small trained part in every block of a frozen model.

    add_adapters(model, "sequential", 16)      # or parallel, replace
    with adapters_off(model): ...              # the frozen base: the reference, without a second model in memory

    sequential   y = mlp(x); y + up(gelu(down(y)))    a bottleneck after the MLP: Houlsby et al. 2019, arXiv:1902.00751
    parallel     mlp(x) + up(gelu(down(x)))           a bottleneck beside it: He et al. 2022, arXiv:2110.04366
    replace      up(gelu(down(x)))                    a smaller MLP in its place

In the first two, `up` starts at zero, so the policy is the reference at step 0. In `replace` it is not. docs/models.md
describes adapter runs. Read next: toy.py
"""
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import quantize
from model import GPT
from support.checkpoint import load_tensors, read_json, save_tensors, write_json

MODES = ("sequential", "parallel", "replace")
INITS = ("random", "neurons")

@torch.no_grad()
def init_adapter(down, up, mlp, mode, init):
    """
    Sets the initial weights of an adapter: down (nn.Linear, C -> rank), up (nn.Linear, rank -> C).

    sequential, parallel       down normal with std 0.02, up and biases zero: the adapter adds 0 until its first update
    replace, init "random"     both normal with std 0.02, biases zero
    replace, init "neurons"    a copy of the `rank` most important neurons of mlp, the MLP that is replaced
    """
    nn.init.normal_(down.weight, std=0.02)
    nn.init.normal_(up.weight, std=0.02)
    nn.init.zeros_(down.bias)
    nn.init.zeros_(up.bias)
    if mode != "replace":
        nn.init.zeros_(up.weight)
    elif init == "neurons":
        copy_neurons(down, up, mlp)

def copy_neurons(down, up, mlp):
    """Copies the most important neurons of mlp: those whose input and output weights have the largest norms."""
    w_in, w_out = mlp.c_fc.weight, mlp.c_proj.weight                   # (n_inner, C), (C, n_inner)
    importance = w_in.norm(dim=1) * w_out.norm(dim=0)                  # (n_inner,)
    best = importance.topk(down.out_features).indices                  # (rank,)
    down.weight.copy_(w_in[best])
    down.bias.copy_(mlp.c_fc.bias[best])
    up.weight.copy_(w_out[:, best])
    up.bias.copy_(mlp.c_proj.bias)

class AdaptedMLP(nn.Module):
    """Takes the place of `block.mlp`, and keeps it, frozen, as `base`: (B, T, C) -> (B, T, C)."""
    def __init__(self, mlp, mode, rank, init):
        super().__init__()
        C, weight = mlp.c_fc.in_features, mlp.c_fc.weight
        self.base, self.mode, self.on = mlp, mode, True
        self.down = nn.Linear(C, rank, device=weight.device, dtype=weight.dtype)
        self.up = nn.Linear(rank, C, device=weight.device, dtype=weight.dtype)
        init_adapter(self.down, self.up, mlp, mode, init)

    def bottleneck(self, x):
        """The trained part: (B, T, C) -> (B, T, rank) -> (B, T, C)."""
        return self.up(F.gelu(self.down(x), approximate="tanh"))

    def forward(self, x):
        if not self.on:
            return self.base(x)
        if self.mode == "replace":
            return self.bottleneck(x)
        y = self.base(x)
        return y + self.bottleneck(y if self.mode == "sequential" else x)

# ---------------------------------------------------------------------------------------------------------------------
# on and off

def adapter_modules(model):
    """The AdaptedMLP of every block, in order; an empty list for a plain model."""
    return [module for module in model.modules() if isinstance(module, AdaptedMLP)]

def add_adapters(model, mode, rank, init="random"):
    """
    Puts an adapter with `rank` hidden units into every block, freezes all other weights, and returns the model.

    mode is one of MODES, init one of INITS; init_adapter explains both. Raises ValueError if the arguments do not fit.
    """
    if mode not in MODES or init not in INITS:
        raise ValueError(f"the adapter must be one of {', '.join(MODES)} with init one of {', '.join(INITS)}, "
                         f"not {mode} with {init}")
    if init != "random" and mode != "replace":
        raise ValueError(f"init {init} is for the adapter replace only; {mode} starts at zero")
    n_inner = model.transformer.h[0].mlp.c_fc.out_features
    if rank < 1 or (mode == "replace" and rank > n_inner):
        raise ValueError(f"rank must be at least 1, and for replace at most the {n_inner} units of the MLP, not {rank}")
    model.requires_grad_(False)
    for block in model.transformer.h:
        block.mlp = AdaptedMLP(block.mlp, mode, rank, init).train(model.training)
    return model

@contextmanager
def adapters_off(model):
    """Inside this context, the model computes what it computed before add_adapters."""
    modules = adapter_modules(model)
    assert modules, "the model has no adapters to turn off"
    were_on = modules[0].on    # contexts may be nested: the end of the inner one must not turn the adapters on
    for module in modules:
        module.on = False
    try:
        yield model
    finally:
        for module in modules:
            module.on = were_on

def as_reference(policy, reference):
    """A context that gives the reference: another model, or the policy itself with its adapters off."""
    return adapters_off(policy) if reference is policy else nullcontext(reference)

# ---------------------------------------------------------------------------------------------------------------------
# files: the adapter alone, and where its base is

def adapter_state_dict(model):
    """The weights of the adapters, name -> tensor, without those of the base."""
    return {name: x for name, x in model.state_dict().items() if ".mlp.down." in name or ".mlp.up." in name}

def save_adapter(model, folder, base, base_fingerprint):
    """Writes adapter.safetensors and adapter.json. base is the folder or hub name of the model before add_adapters."""
    module, folder = adapter_modules(model)[0], Path(folder)
    about = dict(mode=module.mode, rank=module.down.out_features, base=str(base), base_fingerprint=base_fingerprint,
                 **quantize.flags_of(model))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "adapter.json", about)
    save_tensors(adapter_state_dict(model), folder / "adapter.safetensors")

def read_about(folder):
    """The content of a run's adapter.json as a dict, or None if there is no such file. Raises ValueError if damaged."""
    path = Path(folder) / "adapter.json"
    if not path.exists():
        return None
    about = read_json(path)
    try:
        flags = quantize.flags_in(about)
        about = {key: about[key] for key in ("mode", "rank", "base", "base_fingerprint")} | flags
        if about["mode"] not in MODES or type(about["rank"]) is not int or not 1 <= about["rank"] <= 10**6:
            raise ValueError(f"mode {about['mode']!r}, rank {about['rank']!r}")
        return about
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: damaged ({type(e).__name__}: {e})") from None

def load_adapter(model, folder, model_fingerprint):
    """Adds the adapter of a run to the base on which it was trained. Raises ValueError if `model` is another base."""
    about, path = read_about(folder), Path(folder) / "adapter.safetensors"
    if about is None:
        raise ValueError(f"{folder}: holds no adapter.json")
    if about["base_fingerprint"] != model_fingerprint:
        raise ValueError(f"{folder}: the adapter's base, {about['base']}, has fingerprint {about['base_fingerprint']}; "
                         f"this base has {model_fingerprint}: it is another model, or was trained further")
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    add_adapters(model, about["mode"], about["rank"])
    state, expected = load_tensors(path), adapter_state_dict(model)
    if {name: x.shape for name, x in state.items()} != {name: x.shape for name, x in expected.items()}:
        raise ValueError(f"{path}: damaged, or not this model's adapter")
    model.load_state_dict(state, strict=False)    # the base has its weights already
    return model

def load_model(name_or_dir, dropout=0.0, method=None, double=False):
    """
    (model, about) of a name on the hub, a folder or a run. Raises ValueError or OSError in one line. For an adapter
    run, the model is its base, quantized as adapter.json says, with its adapter, and about is the content of that
    file. Otherwise about is None, and method and double say how to quantize the model.
    """
    about, name = read_about(name_or_dir), name_or_dir
    if about:
        name, method, double = about["base"], about.get("quantize"), about.get("double_quant", False)
    base = quantize.load(name, method, double, dropout) if method else GPT.from_pretrained(name, dropout)
    return (load_adapter(base, name_or_dir, quantize.exact_fingerprint(base)) if about else base), about
