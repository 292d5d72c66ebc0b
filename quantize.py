"""
The frozen base of an adapter run in 16, 8 or 4 bits a weight: bf16, int8 and nf4, written by hand.

    model = quantize.load("gpt2-xl", "nf4")                            # one matrix in float32 at a time
    codes, absmax = quantize_nf4(weight)                               # (m, n) -> 4 bits a weight, a scale for each 64
    weight = dequantize_nf4(codes, absmax, weight.shape)

    bf16   the weight rounded to bfloat16                              16 bits a weight
    int8   127 levels on both sides of 0, a scale for each row          8 bits and 32 a row
    nf4    16 quantiles of a normal distribution, a scale for each 64   4.5 bits, or 4.13 with double quantization

Only the four matrices of each block are quantized. Embeddings, tied head, LayerNorms and biases stay exact. Products
are computed in float32 or in autocast's dtype. nf4 is QLoRA's format: Dettmers et al. 2023, arXiv:2305.14314.
docs/models.md says what it saves and costs. Read first: model.py. Read next: adapters.py
"""
import functools

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import CONV1D, GPT, fingerprint
from support.checkpoint import digest_of
from support.cpu import linear, map_large

METHODS = ("bf16", "int8", "nf4")
BLOCK, DOUBLE_BLOCK = 64, 256    # weights that share a scale; scales that share a scale of their own

def absmax_of(groups):
    """The largest absolute value of each row: (N, n) -> (N, 1), and above 0, so that it can divide."""
    absmax = groups.abs().amax(1, keepdim=True)
    if not absmax.isfinite().all():
        raise ValueError("the weights hold NaN or an infinity, and cannot be quantized")
    return absmax.clamp(min=torch.finfo(absmax.dtype).tiny)

# ---------------------------------------------------------------------------------------------------------------------
# int8: w = code * scale, with scale = max |w| of the row / 127

def quantize_int8(weight):
    """weight (m, n) -> codes (m, n) int8 from -127 to 127, scales (m, 1). The error is at most scale / 2."""
    scales = absmax_of(weight) / 127                                       # (m, 1)
    return (weight / scales).round().clamp(-127, 127).to(torch.int8), scales

def dequantize_int8(codes, scales):
    """codes (m, n) int8, scales (m, 1) -> weight (m, n)."""
    return codes * scales

# ---------------------------------------------------------------------------------------------------------------------
# nf4: w = NF4[code] * absmax, with absmax = max |w| of 64 weights in a row

def normal_quantiles():
    """
    The 16 levels of nf4, ascending: quantiles of the standard normal distribution, divided by the largest.

    8 levels are positive, 7 are negative, and one is 0, so that a weight of 0 stays 0. The outermost quantile is
    0.9677083, as in bitsandbytes; the normal distribution has no largest value.
    """
    above = torch.special.ndtri(torch.linspace(0.9677083, 0.5, 9, dtype=torch.float64))[:-1]    # (8,)
    below = -torch.special.ndtri(torch.linspace(0.9677083, 0.5, 8, dtype=torch.float64))[:-1]   # (7,)
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values       # (16,)
    return (levels / levels.max()).float()

NF4 = normal_quantiles()
MIDDLES = (NF4[1:] + NF4[:-1]) / 2    # (15,): the nearest level changes here

def quantize_nf4(weight):
    """
    weight (m, n) -> codes (N * 32,) uint8, absmax (N, 1), for the N blocks of 64 weights, row after row.

    A byte holds two codes, the first in the upper 4 bits. If the number of weights is not a multiple of 64, zeros fill
    the last block. A block may begin in one row and end in the next.
    """
    blocks = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)              # (N, 64)
    absmax = absmax_of(blocks)                                                                  # (N, 1)
    codes = torch.bucketize(blocks / absmax, MIDDLES.to(weight.device), out_int32=True).byte()  # (N, 64), 0 to 15
    first, second = codes.view(-1, 2).unbind(1)                                                 # (N * 32,) each
    return first << 4 | second, absmax

def dequantize_nf4(codes, absmax, shape):
    """The definition: codes (N * 32,) uint8, absmax (N, 1) -> weight of a shape (m, n)."""
    codes = torch.stack([codes >> 4, codes & 15], 1).view(-1, BLOCK)                            # (N, 64), 0 to 15
    weight = NF4.to(codes.device)[codes.long()] * absmax                                        # (N, 64)
    return weight.flatten()[:shape.numel()].view(shape)

@functools.cache
def pair_table(device):
    """Both levels of every byte: (256, 2)."""
    byte = torch.arange(256)
    return torch.stack([NF4[byte >> 4], NF4[byte & 15]], 1).to(device)

def fast_dequantize_nf4(codes, absmax, shape):
    """dequantize_nf4 with one look-up for two weights. It has no (N, 64) integers."""
    blocks = F.embedding(codes.int(), pair_table(codes.device)).view(-1, BLOCK)                 # (N, 64)
    return blocks.mul_(absmax).flatten()[:shape.numel()].view(shape)

def quantize_scales(absmax):
    """
    Double quantization: absmax (N, 1) -> codes (M, 256) int8, scales (M, 1), mean (), for M blocks of 256 scales.

    All scales are positive, so their mean is subtracted first. QLoRA has 8-bit floats here; these are plain int8.
    """
    mean = absmax.double().mean().float()                                                       # ()
    centered = F.pad(absmax.flatten() - mean, (0, -absmax.numel() % DOUBLE_BLOCK))
    return *quantize_int8(centered.view(-1, DOUBLE_BLOCK)), mean

def dequantize_scales(codes, scales, mean, n):
    """The n scales of quantize_scales, (n, 1)."""
    return dequantize_int8(codes, scales).view(-1, 1)[:n] + mean

# ---------------------------------------------------------------------------------------------------------------------
# a layer

def pack(weight, method, double=False):
    """weight (m, n) float32 -> the tensors that hold it. double: nf4's scales are quantized too."""
    if method == "bf16":
        return [weight.bfloat16()]
    if method == "int8":
        return [*quantize_int8(weight)]
    codes, absmax = quantize_nf4(weight)
    return [codes, *(quantize_scales(absmax) if double else [absmax])]

def unpack(parts, method, shape):
    """The inverse of pack, but for rounding: weight (m, n) in float32."""
    if method == "bf16":
        return parts[0].float()
    if method == "int8":
        return dequantize_int8(*parts)
    codes, *scales = parts
    n_blocks = 2 * codes.numel() // BLOCK
    return fast_dequantize_nf4(codes, scales[0] if len(scales) == 1 else dequantize_scales(*scales, n_blocks), shape)

class QuantizedLinear(nn.Module):
    """Takes the place of a frozen nn.Linear: (..., n) -> (..., m). Its parameters are the codes, scales and bias."""
    def __init__(self, full, method, double=False):
        super().__init__()
        self.method, self.double, self.shape = method, double, full.weight.shape
        self.in_features, self.out_features, self.bias = full.in_features, full.out_features, full.bias
        frozen = [nn.Parameter(part, requires_grad=False) for part in pack(full.weight.detach(), method, double)]
        self.parts = nn.ParameterList(frozen)
        self.more_weights = self.shape.numel() - sum(part.numel() for part in frozen)    # cli.parameter_counts adds it

    @property
    def weight(self):
        """The dequantized matrix, (m, n) in float32. Every use computes it again."""
        return unpack([*self.parts], self.method, self.shape)

    def forward(self, x):
        return Product.apply(x, self)

class Product(torch.autograd.Function):
    """
    y = x @ weight.T + bias, and d x = g @ weight, where g is the gradient of y. weight and bias are frozen.

    backward dequantizes a second time. A matrix kept from forward would take the memory that quantization saves.
    """
    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer, ctx.dtype = layer, x.dtype
        return linear(x, layer.weight, layer.bias)                                 # (..., m), in autocast's dtype

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        weight = ctx.layer.weight.to(grad.dtype)                                   # (m, n), rounded as autocast does
        return linear(grad, weight.t()).to(ctx.dtype), None                        # (..., n)

# ---------------------------------------------------------------------------------------------------------------------
# a model

def quantize_block(owner, name, method, double):
    """Puts a QuantizedLinear in the place of owner.name, an nn.Linear."""
    setattr(owner, name, QuantizedLinear(getattr(owner, name), method, double))

def quantize_model(model, method, double=False):
    """Quantizes the matrices of all blocks of a GPT in place, freezes the model, and returns it."""
    model.requires_grad_(False).exact_fingerprint = fingerprint(model)
    for block in model.transformer.h:
        for owner, name in ((block.attn, "c_attn"), (block.attn, "c_proj"), (block.mlp, "c_fc"), (block.mlp, "c_proj")):
            quantize_block(owner, name, method, double)
    return model

def flags_of(model):
    """How a model was quantized, as adapter.json and the flags of train_pref.py say it; {} for an exact model."""
    found = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    return {"quantize": found[0].method, "double_quant": found[0].double} if found else {}

def flags_in(about):
    """Those of an adapter.json, a dict; {} if its base is exact. Raises ValueError if they make no sense."""
    method, double = about.get("quantize"), about.get("double_quant", False)
    if method not in (None, *METHODS) or type(double) is not bool or (double and method != "nf4"):
        raise ValueError(f"quantize {method!r}, double_quant {double!r}")
    return {"quantize": method, "double_quant": double} if method else {}

def exact_fingerprint(model):
    """The fingerprint of the weights that a quantized model without adapters was made from, or of a plain model's."""
    return getattr(model, "exact_fingerprint", None) or fingerprint(model)

def place(model, name, x, method, double):
    """Gives a model on the meta device the weight x of a name. A matrix of a block is quantized at once."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(x, requires_grad=False))
    in_block = name.endswith(CONV1D)
    if in_block:    # its bias is in place, as "bias" sorts before "weight"
        block, _, layer = owner.rpartition(".")
        quantize_block(model.get_submodule(block), layer, method, double)

def load(name_or_dir, method, double=False, dropout=0.0):
    """
    quantize_model(GPT.from_pretrained(name_or_dir, dropout), method, double), a tensor at a time.

    A safetensors file is never in memory as a whole, a .bin file is. model.exact_fingerprint is that of the exact
    weights, so it tells what an adapter stands on. Raises ValueError or OSError in one line.
    """
    map_large()    # after cpu.keep_memory: otherwise an update needs up to half as much memory again
    model, state = GPT.on_meta(name_or_dir, dropout)

    def placed():
        for name in sorted(model.state_dict()):    # the order of digest
            x = state["transformer.wte.weight" if name == "lm_head.weight" else name].float()
            in_block = name.endswith(CONV1D)
            x = x.T.contiguous() if in_block else x    # stored as (in, out): to_hf explains
            yield name, x
            if name != "lm_head.weight":
                place(model, name, x, method, double)

    model.exact_fingerprint = digest_of(placed())[:16]
    model.lm_head.weight = model.transformer.wte.weight
    return model
