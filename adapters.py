"""
The adapter that replaces GPT-2's MLP: a small trained part in every block, around a frozen model.

    add_adapters(model, "sequential", 16)      # or parallel, replace
    with adapters_off(model): ...              # the frozen base, which is the reference for free

    sequential   y = mlp(x); y + up(gelu(down(y)))    a bottleneck behind the MLP: Houlsby et al. 2019, arXiv:1902.00751
    parallel     mlp(x) + up(gelu(down(x)))           beside it: He et al. 2022, arXiv:2110.04366
    replace      up(gelu(down(x)))                    a smaller MLP in its place

`up` starts at zero in the first two, so the policy *is* the reference at step 0. In `replace` it cannot, and they differ from the start.
"""
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from support.checkpoint import load_tensors, read_json, save_tensors, write_json
from model import GPT, fingerprint

MODES = ("sequential", "parallel", "replace")
INITS = ("random", "neurons")

class AdaptedMLP(nn.Module):
    """Stands where `block.mlp` stood, and keeps it, frozen, as `base`: (B, T, C) -> (B, T, C)."""
    def __init__(self, mlp, mode, rank, init):
        super().__init__()
        C, like = mlp.c_fc.in_features, dict(device=mlp.c_fc.weight.device, dtype=mlp.c_fc.weight.dtype)
        self.base, self.mode, self.on = mlp, mode, True
        self.down, self.up = nn.Linear(C, rank, **like), nn.Linear(rank, C, **like)
        for p in (self.down.weight, self.up.weight):
            nn.init.normal_(p, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if mode != "replace":
            nn.init.zeros_(self.up.weight)
        elif init == "neurons":
            self.copy_neurons(rank)

    @torch.no_grad()
    def copy_neurons(self, rank):
        """Starts from the base's own neurons: those that read and write most, by the product of the norms of their two weight vectors."""
        w_in, w_out = self.base.c_fc.weight, self.base.c_proj.weight           # (n_inner, C), (C, n_inner)
        keep = (w_in.norm(dim=1) * w_out.norm(dim=0)).topk(rank).indices       # (rank,)
        self.down.weight.copy_(w_in[keep])
        self.down.bias.copy_(self.base.c_fc.bias[keep])
        self.up.weight.copy_(w_out[:, keep])
        self.up.bias.copy_(self.base.c_proj.bias)

    def forward(self, x):
        if not self.on:
            return self.base(x)
        bottleneck = lambda z: self.up(F.gelu(self.down(z), approximate="tanh"))
        if self.mode == "replace":
            return bottleneck(x)
        y = self.base(x)
        return y + bottleneck(y if self.mode == "sequential" else x)

# ---------------------------------------------------------------------------------------------------------------------
# on and off

def adapted(model):
    return [m for m in model.modules() if isinstance(m, AdaptedMLP)]

def add_adapters(model, mode, rank, init="random"):
    """
    Puts an adapter of `rank` hidden units into every block, freezes everything else, and returns the model.

    init, for mode replace alone: random, or neurons, the base's own that matter most. Raises ValueError for a rank that does not fit.
    """
    if mode not in MODES or init not in INITS:
        raise ValueError(f"the adapter is one of {', '.join(MODES)} with init one of {', '.join(INITS)}, not {mode} with {init}")
    if init != "random" and mode != "replace":
        raise ValueError(f"init {init} goes with the adapter replace; {mode} starts at zero")
    n_inner = model.transformer.h[0].mlp.c_fc.out_features
    if rank < 1 or (mode == "replace" and rank > n_inner):
        raise ValueError(f"rank must be at least 1, and for replace at most the {n_inner} units of the MLP, not {rank}")
    model.requires_grad_(False)
    for block in model.transformer.h:
        block.mlp = AdaptedMLP(block.mlp, mode, rank, init).train(model.training)
        block.mlp.base.requires_grad_(False)
    return model

@contextmanager
def adapters_off(model):
    """Inside it the model computes what it computed before add_adapters."""
    parts = adapted(model)
    assert parts, "the model has no adapters to turn off"
    before = [part.on for part in parts]
    for part in parts:
        part.on = False
    try:
        yield model
    finally:
        for part, on in zip(parts, before):
            part.on = on

@contextmanager
def as_reference(policy, reference):
    """Inside it the reference that it gives computes: another model, or the policy itself with its adapters off."""
    with adapters_off(policy) if reference is policy else nullcontext():
        yield reference

# ---------------------------------------------------------------------------------------------------------------------
# in and out: the adapter alone, and what it stands on

def adapter_state_dict(model):
    """The adapters' own weights, name -> tensor, without the base's."""
    return {k: v for k, v in model.state_dict().items() if ".mlp.down." in k or ".mlp.up." in k}

def save_adapter(model, folder, base, base_fingerprint):
    """Writes adapter.safetensors and adapter.json. base: where the frozen model came from; its fingerprint guards against another."""
    part, folder = adapted(model)[0], Path(folder)
    about = dict(mode=part.mode, rank=part.down.out_features, base=str(base), base_fingerprint=base_fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "adapter.json", about)
    save_tensors(adapter_state_dict(model), folder / "adapter.safetensors")

def read_about(folder):
    """adapter.json of a run, or None if it is not an adapter run."""
    path = Path(folder) / "adapter.json"
    if not path.exists():
        return None
    about = read_json(path)
    try:
        about = {key: about[key] for key in ("mode", "rank", "base", "base_fingerprint")}
        if about["mode"] not in MODES or type(about["rank"]) is not int or not 1 <= about["rank"] <= 10**6:
            raise ValueError(f"mode {about['mode']!r}, rank {about['rank']!r}")
        return about
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path}: damaged ({type(e).__name__}: {e})") from None

def load_adapter(model, folder, model_fingerprint):
    """Adds the adapter of a run to the base that it was trained on. Raises ValueError if `model` is another one."""
    about, path = read_about(folder), Path(folder) / "adapter.safetensors"
    if about is None:
        raise ValueError(f"{folder}: holds no adapter.json")
    if about["base_fingerprint"] != model_fingerprint:
        raise ValueError(f"{folder}: the adapter was trained on {about['base']} with fingerprint {about['base_fingerprint']}, but the base "
                         f"given has {model_fingerprint}: it is another model, or was trained further")
    add_adapters(model, about["mode"], about["rank"])
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    state = load_tensors(path)
    try:
        model.load_state_dict(model.state_dict() | state)
        assert state.keys() == adapter_state_dict(model).keys()
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"{path}: damaged, or not this model's adapter ({type(e).__name__})") from None
    return model

def load_model(name_or_dir, dropout=0.0):
    """
    (model, about): a plain model and None, or an adapter run's base with its adapter, and the content of adapter.json.
    The base in it is always a plain model. Raises ValueError or OSError in one line.
    """
    about = read_about(name_or_dir)
    model = GPT.from_pretrained(about["base"] if about else name_or_dir, dropout)
    return (load_adapter(model, name_or_dir, fingerprint(model)) if about else model), about
