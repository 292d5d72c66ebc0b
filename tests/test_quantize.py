"""
Tests of quantize.py: values by hand, errors against their theory, gradients, loading a tensor at a time, and runs whose
base is quantized.
"""
import functools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from safetensors.torch import save_file

import adapters
import eval as evaluation
import loop
import quantize
import train_pref
import train_sft
from model import GPT, GPTConfig, fingerprint, to_hf
from study import quantized
from support import checkpoint, cli
from support.precision import loss_scaler
from test_loop import log_rows

KINDS = {"bf16": ("bf16", False), "int8": ("int8", False), "nf4": ("nf4", False), "nf4 double": ("nf4", True)}
kinds = pytest.mark.parametrize("method, double", KINDS.values(), ids=KINDS)

# the table of NF4 in bitsandbytes, as its functional.py and its kernels publish it
PUBLISHED = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
             -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
             0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]

def normal(*shape, std=1.0, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std

def rounded(weight, method, double=False):
    """A weight after quantization and back."""
    return quantize.unpack(quantize.pack(weight, method, double), method, weight.shape)

# ---------------------------------------------------------------------------------------------------------------------
# values by hand

def test_int8_by_hand():
    """The scale is that of a row, and its largest weight gets the code 127 or -127, not 128."""
    weight = torch.tensor([[1.0, -2.54, 0.5], [0.0, 0.0, 0.0], [12.7, 0.04, -0.06]])
    codes, scales = quantize.quantize_int8(weight)
    assert codes.tolist() == [[50, -127, 25], [0, 0, 0], [127, 0, -1]] and codes.dtype == torch.int8
    assert scales[[0, 2], 0].tolist() == pytest.approx([0.02, 0.1])
    want = [[1.0, -2.54, 0.5], [0.0, 0.0, 0.0], [12.7, 0.0, -0.1]]
    assert quantize.dequantize_int8(codes, scales).tolist() == [pytest.approx(row) for row in want]

def test_the_levels_of_nf4_are_those_of_bitsandbytes():
    """The paper's text leaves the outermost quantile open. This table is what other 4-bit models are made with."""
    assert quantize.NF4.tolist() == pytest.approx(PUBLISHED, abs=1e-6)
    assert quantize.NF4[7] == 0 and quantize.NF4.dtype == torch.float32

def test_nf4_by_hand():
    """Two codes a byte, the first in the upper half. A negative absmax weight has the code 0, a positive one 15."""
    weight = torch.zeros(2, 64)
    weight[0, :6] = torch.tensor([-2.0, 1.4459, 0.0, 0.07, -0.1, 2.0])    # 1.4459 / 2 is level 14
    weight[1, 0] = -0.5                                                    # the second row has its own scale
    codes, absmax = quantize.quantize_nf4(weight)
    assert absmax.tolist() == [[2.0], [0.5]]
    assert codes.shape == (64,) and codes.dtype == torch.uint8
    assert codes[:4].tolist() == [0 << 4 | 14, 7 << 4 | 7, 6 << 4 | 15, 7 << 4 | 7]
    assert codes[32:34].tolist() == [0 << 4 | 7, 7 << 4 | 7]
    back = quantize.dequantize_nf4(codes, absmax, weight.shape)
    assert back[0, :6].tolist() == pytest.approx([2 * PUBLISHED[i] for i in (0, 14, 7, 7, 6, 15)], abs=1e-6)
    assert back[1, 0] == -0.5 and not back[1, 1:].any()

def slow_nf4(weight):
    """nf4 one weight after the other, with Python's numbers."""
    flat = weight.flatten().tolist()
    result = []
    for start in range(0, len(flat), 64):
        block = flat[start:start + 64]
        absmax = max(abs(w) for w in block)
        for w in block:
            result.append(absmax * min(quantize.NF4.tolist(), key=lambda level: abs(w / absmax - level)))
    return torch.tensor(result).view(weight.shape)

SHAPES = [(2, 64), (5, 13), (3, 100), (1, 1), (7, 96)]

@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nf4_equals_a_slow_double_loop(shape):
    """A block may end in the next row, and the last one may be short. Blocks along columns hold other weights."""
    weight = normal(*shape)
    assert torch.allclose(rounded(weight, "nf4"), slow_nf4(weight), atol=1e-6)

@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_equals_a_slow_double_loop(shape):
    """One scale for the whole matrix, or one for a column, gives a larger error that no run would show."""
    weight, rows = normal(*shape), []
    for row in weight.tolist():
        scale = max(abs(w) for w in row) / 127
        rows.append([scale * round(w / scale) for w in row])
    assert torch.allclose(rounded(weight, "int8"), torch.tensor(rows), atol=1e-6)

@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fast_look_up_equals_the_definition(shape):
    """The table of pairs could have the two halves of a byte swapped."""
    codes, absmax = quantize.quantize_nf4(normal(*shape))
    shape = torch.Size(shape)
    fast = quantize.fast_dequantize_nf4(codes, absmax, shape)
    assert torch.equal(fast, quantize.dequantize_nf4(codes, absmax, shape)) and fast.shape == shape

@kinds
def test_quantizing_twice_changes_nothing_more(method, double):
    """The largest weight of a block or row is exact, so the scale stays, and every level is its own nearest."""
    weight = rounded(normal(9, 50), method, double)
    again = rounded(weight, method, double)
    assert torch.allclose(again, weight, atol=0.02 if double else 1e-6)
    assert again.dtype == torch.float32 and again.shape == (9, 50)

@pytest.mark.parametrize("method", ["int8", "nf4"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(method, value):
    """Their codes would be plausible numbers, so the damage would no longer show."""
    weight = normal(4, 64)
    weight[2, 3] = value
    with pytest.raises(ValueError, match="NaN or an infinity"):
        quantize.pack(weight, method)

# ---------------------------------------------------------------------------------------------------------------------
# errors against their theory

def test_the_error_of_int8_is_a_twelfth_of_its_squared_step():
    """Rounding to a uniform grid leaves an error that is uniform in +-step / 2. Its variance is step^2 / 12."""
    weight = normal(512, 1024)
    step = weight.abs().amax(1, keepdim=True) / 127
    error = rounded(weight, "int8") - weight
    theory = (step ** 2).mean().item() / 12
    assert (error ** 2).mean().item() == pytest.approx(theory, rel=0.005)    # sampling: 0.9 / sqrt(512 * 1024) = 0.1%
    assert (error.abs() <= step / 2 * 1.0001).all()

def nf4_error():
    """
    The expected squared error of a weight from N(0, 1) in nf4, by integration over a, the absmax of 64 of them:

        63/64 * integral of p(a) * E[(x - a * level(x / a))^2 given |x| < a] da,   P(absmax < a) = (2 Phi(a) - 1)^64

    The weight that has the absmax is exact.
    """
    pdf = lambda x: torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    a = torch.linspace(0.8, 6, 500, dtype=torch.float64)                             # (A,)
    inside = torch.erf(a / math.sqrt(2))                                             # (A,) P(|x| < a)
    density = 64 * inside ** 63 * 2 * pdf(a)                                         # (A,)
    u = (torch.arange(8000, dtype=torch.float64) + 0.5) / 4000 - 1                   # (U,) x / a
    levels = torch.tensor(PUBLISHED, dtype=torch.float64)
    squared = (u[:, None] - levels).abs().amin(1) ** 2                               # (U,)
    given_a = (pdf(a[:, None] * u) * squared).sum(1) / 4000 * a ** 3 / inside        # (A,)
    assert torch.trapezoid(density, a) == pytest.approx(1, abs=1e-6)
    return 63 / 64 * torch.trapezoid(density * given_a, a).item()

def test_the_error_of_nf4_is_that_of_16_intervals_of_a_normal_distribution():
    """A wrong absmax or a table in another order gives an error of another size, and still a model that writes."""
    theory = nf4_error()
    error = rounded(normal(1024, 1024), "nf4") - normal(1024, 1024)
    assert 0.0084 < theory < 0.0085    # docs/models.md names it
    assert (error ** 2).mean().item() == pytest.approx(theory, rel=0.005)

def test_double_quantization_rounds_the_scales_by_at_most_half_a_step():
    """With the mean subtracted, 127 levels span the spread of the scales and not their size."""
    absmax = normal(600, 64).abs().amax(1, keepdim=True)                             # (600, 1): 2 1/3 blocks
    codes, scales, mean = quantize.quantize_scales(absmax)
    assert codes.shape == (3, 256) and codes.dtype == torch.int8 and scales.shape == (3, 1)
    assert mean.item() == pytest.approx(absmax.mean().item(), rel=1e-6)
    error = (quantize.dequantize_scales(codes, scales, mean, 600) - absmax).abs().flatten()
    step = (absmax - mean).flatten()[:256].abs().max() / 127
    assert error[:256].max() <= step / 2 * 1.001 and step < absmax[:256].max() / 127 / 2
    errors = [(rounded(normal(256, 256), "nf4", double) - normal(256, 256)).pow(2).mean() for double in (False, True)]
    assert errors[0] < errors[1] < 1.01 * errors[0] or errors[1] == pytest.approx(errors[0], rel=0.01)

def test_bf16_is_the_weight_rounded_to_8_bits_of_mantissa():
    """float16 has more digits and a smaller range. The relative error of bfloat16 is at most 2^-9."""
    weight = normal(100, 100) * 1e-6    # float16 cannot hold these
    error = (rounded(weight, "bf16") - weight).abs() / weight.abs()
    assert 2 ** -10 < error.max() <= 2 ** -8 and torch.equal(rounded(weight, "bf16"), weight.bfloat16().float())

BITS = {"bf16": 16, "int8": 8 + 32 / 1024, "nf4": 4.5, "nf4 double": 4 + 8 / 64 + 32 / (64 * 256)}

@pytest.mark.parametrize("kind", BITS)
def test_the_bits_a_weight_are_those_that_the_docstring_says(kind):
    """4-bit codes in a byte each, or float64 scales, would give the same numbers."""
    parts = quantize.pack(normal(512, 1024), *KINDS[kind])
    size = sum(part.numel() * part.element_size() for part in parts)
    assert 8 * size / 512 / 1024 == pytest.approx(BITS[kind], rel=1e-4)

# ---------------------------------------------------------------------------------------------------------------------
# the layer

def layer_and_plain(method, double, bias=True):
    """A QuantizedLinear and the nn.Linear of its dequantized weight, 20 -> 12."""
    torch.manual_seed(0)
    full = nn.Linear(20, 12, bias).requires_grad_(False)
    layer, plain = quantize.QuantizedLinear(full, method, double), nn.Linear(20, 12, bias).requires_grad_(False)
    plain.load_state_dict({"weight": rounded(full.weight, method, double)} | ({"bias": full.bias} if bias else {}))
    return layer, plain

@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_value_and_gradient_are_those_of_the_dequantized_matrix(method, double, dtype):
    """
    Autocast rounds x and the float32 matrix once. A matrix dequantized in another dtype is rounded twice, and backward,
    which runs outside autocast, could meet two dtypes.
    """
    layer, plain = layer_and_plain(method, double)
    x, results = normal(2, 5, 20).requires_grad_(), []
    for module in (layer, plain):
        with torch.autocast("cpu", dtype=dtype if dtype != torch.float32 else torch.bfloat16,
                            enabled=dtype != torch.float32):
            y = module(x)
        grad, = torch.autograd.grad(y, x, normal(2, 5, 12, seed=1).to(y.dtype))
        results.append((y, grad))
    (y, grad), (want_y, want_grad) = results
    assert y.dtype == want_y.dtype == dtype and grad.dtype == torch.float32 and grad.abs().max() > 0.1
    digits = 1e-6 if dtype == torch.float32 else 0
    assert torch.allclose(y, want_y, atol=digits, rtol=0) and torch.allclose(grad, want_grad, atol=digits, rtol=0)
    assert all(p.grad is None and not p.requires_grad for p in layer.parameters())

def test_nothing_of_the_size_of_the_matrix_is_kept_for_backward(monkeypatch):
    """A float matrix that waits for backward in every layer would take all the memory that quantization saves."""
    layer, _ = layer_and_plain("nf4", False)
    calls, kept = [], []
    real = quantize.unpack
    monkeypatch.setattr(quantize, "unpack", lambda *args: calls.append(1) or real(*args))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        y = layer(normal(3, 20).requires_grad_())
    assert len(calls) == 1
    y.sum().backward()
    assert len(calls) == 2 and not kept

# ---------------------------------------------------------------------------------------------------------------------
# a model

TINY = GPTConfig(block_size=32, vocab_size=60, n_layer=2, n_head=2, n_embd=20)

def tiny():
    torch.manual_seed(0)
    model = GPT(TINY)
    with torch.no_grad():
        for p in model.parameters():    # biases and LayerNorms too
            p.add_(normal(*p.shape, std=0.02, seed=p.numel()))
    return model

@pytest.fixture
def folder(tmp_path):
    tiny().save_pretrained(tmp_path / "base")
    return tmp_path / "base"

IDX = torch.arange(9)[None] * 5

@kinds
def test_four_matrices_of_each_block_are_quantized_and_nothing_else(method, double):
    """The tied embedding is the output layer as well; the table in docs/models.md is for the matrices of blocks."""
    model, exact = quantize.quantize_model(tiny(), method, double), tiny()
    names = [name for name, module in model.named_modules() if isinstance(module, quantize.QuantizedLinear)]
    assert len(names) == 8 and all(name.endswith(("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")) for name in names)
    for name, x in exact.state_dict().items():
        if name.removesuffix(".weight") in names:
            assert torch.equal(model.get_submodule(name.removesuffix(".weight")).weight, rounded(x, method, double))
        else:
            assert torch.equal(model.state_dict()[name], x), name
    assert not any(p.requires_grad for p in model.parameters())
    assert 0 < (model(IDX) - exact(IDX)).abs().max() < 0.5
    assert cli.parameter_counts(model).endswith(f"{sum(p.numel() for p in exact.parameters()):,} frozen")

def sharded(folder):
    """The same weights in two shards."""
    state = checkpoint.load_tensors(folder / "model.safetensors")
    names, index = sorted(state), {}
    for part, held in enumerate((names[::2], names[1::2])):
        save_file({name: state[name].contiguous() for name in held}, folder / f"part-{part}.safetensors")
        index |= dict.fromkeys(held, f"part-{part}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "model.safetensors").unlink()

def as_bin(folder):
    torch.save(checkpoint.load_tensors(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

def as_hub(folder):
    """The hub's old layout: no prefix, causal masks, and a head beside the embedding."""
    state = to_hf(tiny().state_dict())
    state = {name.removeprefix("transformer."): x.contiguous() for name, x in state.items()}
    state |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32) for i in range(2)}
    save_file(state | {"lm_head.weight": state["wte.weight"].clone()}, folder / "model.safetensors")

LAYOUTS = {"one file": lambda folder: None, "shards": sharded, "bin": as_bin, "hub": as_hub}

@pytest.mark.parametrize("layout", LAYOUTS)
@kinds
def test_loading_a_tensor_at_a_time_gives_the_same_model(folder, method, double, layout):
    """Names, transposed matrices and fingerprints come by another way than in from_pretrained."""
    exact = fingerprint(GPT.from_pretrained(folder))
    LAYOUTS[layout](folder)
    want, got = quantize.quantize_model(tiny(), method, double), quantize.load(folder, method, double)
    state, other = want.state_dict(), got.state_dict()
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    assert torch.equal(got(IDX), want(IDX)) and got.lm_head.weight is got.transformer.wte.weight
    assert quantize.exact_fingerprint(got) == quantize.exact_fingerprint(want) == exact != fingerprint(got)
    assert got.training == GPT(TINY).training and quantize.load(folder, method, dropout=0.25).config.dropout == 0.25

def test_rows_after_gpt2s_vocabulary_are_cut_here_too(tmp_path):
    """A file that is read a tensor at a time gives rows of its embedding by another way."""
    torch.manual_seed(0)
    GPT(GPTConfig(block_size=8, vocab_size=50304, n_layer=1, n_head=1, n_embd=4)).save_pretrained(tmp_path)
    got, want = quantize.load(tmp_path, "nf4"), GPT.from_pretrained(tmp_path)
    assert got.transformer.wte.weight.shape == (50257, 4) and got.exact_fingerprint == fingerprint(want)

def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

def one_bit(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)

def another_head(folder):
    state = {name: x.contiguous() for name, x in to_hf(tiny().state_dict()).items()}
    save_file(state | {"lm_head.weight": state["transformer.wte.weight"] + 1}, folder / "model.safetensors")

def a_layer_less(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 3}))

def smaller(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_inner": 60}))

@pytest.mark.parametrize("damage, word", [(cut_short, "damaged"), (one_bit, "damaged"), (another_head, "differs"),
                                          (a_layer_less, "layers"), (smaller, "shape")])
def test_a_damaged_folder_is_refused_in_the_same_words(folder, damage, word):
    """A reader that leaves out the checks of from_pretrained would quantize what is there."""
    damage(folder)
    messages = []
    for load in (GPT.from_pretrained, lambda folder: quantize.load(folder, "nf4")):
        with pytest.raises(ValueError) as refused:
            load(folder)
        messages.append(str(refused.value))
    assert messages[0] == messages[1] and word in messages[0] and "\n" not in messages[0]

# not ru_maxrss, which a process inherits from the one that has started it
PEAK = """
import re, sys
import torch, quantize
from model import GPT
from support.cpu import keep_memory
size = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
keep_memory()
before = size("VmHWM")
model = GPT.from_pretrained(sys.argv[1]) if sys.argv[2] == "exact" else quantize.load(sys.argv[1], sys.argv[2])
print(size("VmHWM") - before)
x = torch.ones(2**24)    # 67 MB
used = size("VmRSS")
del x
print(used - size("VmRSS"))
"""

@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_peak_of_memory_is_far_below_the_size_of_the_file(tmp_path):
    """A file that stays mapped, or a state_dict in float32, would need the memory that a small card does not have."""
    GPT(GPTConfig(block_size=64, vocab_size=1000, n_layer=16, n_head=8, n_embd=640)).save_pretrained(tmp_path)
    size, peaks, returned = (tmp_path / "model.safetensors").stat().st_size, {}, {}
    for method in ("exact", "nf4"):
        command = [sys.executable, "-c", PEAK, str(tmp_path), method]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(quantize.__file__).parent)
        peak, returned[method] = map(int, run.stdout.split())
        peaks[method] = peak / size
    assert size > 3e8 and peaks["exact"] > 1 and peaks["nf4"] < 0.4, peaks    # measured: 1.4 and 0.26 to 0.29
    assert returned["exact"] < 1e7 and returned["nf4"] > 6e7, returned    # a freed matrix makes room for other tensors

# ---------------------------------------------------------------------------------------------------------------------
# runs

PAIRS = [{"prompt": f"the plot {i}", "chosen": f" was fine {i} .", "rejected": " was dull ."} for i in range(24)]
FLAGS = ("--data", "mine.jsonl", "--max_steps", "4", "--eval_every", "2", "--batch_size", "8", "--warmup_steps", "0",
         "--lr", "1e-2", "--patience", "0", "--n_show", "0")

def pref(out_dir, start, *flags):
    train_pref.main(["--init_from", str(start), "--out_dir", str(out_dir), *FLAGS, *flags])

ADAPTED = ("--adapter", "sequential", "--adapter_rank", "3", "--quantize")

@pytest.fixture
def here(tmp_path, monkeypatch, sft_run, own_tokenizer):
    """A folder with an SFT run in `sft` and pairs in mine.jsonl. Runs do not evaluate themselves."""
    monkeypatch.setattr(evaluation, "main", lambda *args, **more: {})
    monkeypatch.setattr(train_pref.page, "main", lambda *args, **more: None)
    monkeypatch.setattr(loop, "plot_curves", lambda folder: None)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sft_run, "sft")
    Path("mine.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))

@pytest.fixture
def trained(monkeypatch):
    """The models that runs have trained, as they were at their last update."""
    found, real = [], loop.fit
    @functools.wraps(real)
    def fit(model, *args, **more):
        found.append(model)
        return real(model, *args, **more)
    monkeypatch.setattr(loop, "fit", fit)
    return found

def first_loss(run):
    return next(value for _, split, metric, value in log_rows(Path(run)) if (split, metric) == ("val", "loss"))

PROMPT = torch.arange(12)[None] + 300

@torch.no_grad()
def logits(model):
    return model.eval()(PROMPT)

@pytest.mark.parametrize("mode", adapters.MODES)
def test_the_quantized_base_is_policy_and_reference(here, trained, mode):
    """With the exact weights as reference, the first loss is not log 2, and the KL contains the quantization error."""
    pref("run", "sft", "--adapter", mode, "--quantize", "nf4")
    _, policy, reference = evaluation.load_policy("run", torch.device("cpu"))
    assert reference is policy
    with evaluation.as_reference(policy, reference) as base:
        assert torch.equal(logits(base), logits(quantize.load("sft", "nf4")))
    assert (logits(base) - logits(GPT.from_pretrained("sft"))).abs().max() > 1e-4
    assert (abs(first_loss("run") - math.log(2)) < 1e-5) == (mode != "replace")

@kinds
def test_a_run_is_loaded_with_the_logits_that_it_had(here, trained, method, double):
    """adapter.json has to say how the base was quantized. On the exact base, or in other bits, the logits differ."""
    pref("run", "sft", *ADAPTED, method, *(["--double_quant"] if double else []), "--keep_all")
    before = quantize.load("sft", method, double).state_dict()
    after = trained[0].state_dict()
    codes = [name for name in before if ".parts." in name]
    for name in codes:
        assert torch.equal(before[name], after[name.replace(".mlp.c_", ".mlp.base.c_")]), name
    assert len(codes) == 4 * {"bf16": 1, "int8": 2, "nf4": 4 if double else 2}[method]
    model, about = adapters.load_model("run/step-4")
    assert torch.equal(logits(model), logits(trained[0]))
    exact = fingerprint(GPT.from_pretrained("sft"))
    assert about == dict(mode="sequential", rank=3, base="sft", base_fingerprint=exact, quantize=method,
                         double_quant=double)
    state = torch.load("run/state.pt", weights_only=True)["model"]
    assert sorted(state) == sorted(adapters.adapter_state_dict(model))    # no codes
    assert json.loads(Path("run/args.json").read_text())["reference_fingerprint"] == about["base_fingerprint"]

def test_an_adapter_file_from_before_quantization_is_an_exact_base(here):
    """Its adapter.json has no such entries."""
    pref("run", "sft", "--adapter", "sequential")
    about = json.loads(Path("run/adapter.json").read_text())
    assert about.keys() == {"mode", "rank", "base", "base_fingerprint"} == adapters.read_about("run").keys()
    assert not quantize.flags_of(adapters.load_model("run")[0])

@pytest.mark.parametrize("entries", [{"quantize": "nf5"}, {"quantize": "int8", "double_quant": True},
                                     {"quantize": "nf4", "double_quant": "yes"}, {"double_quant": True}], ids=str)
def test_an_adapter_file_with_another_method_is_refused(here, entries):
    """A method of a later version, or a damaged file, would otherwise load another base."""
    pref("run", "sft", *ADAPTED, "nf4")
    about = json.loads(Path("run/adapter.json").read_text()) | {"double_quant": False} | entries
    about = about if "quantize" in entries else {k: v for k, v in about.items() if k != "quantize"}
    Path("run/adapter.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="adapter.json: damaged"):
        adapters.load_model("run")

def test_a_run_on_another_base_is_refused(here):
    """Codes of other weights can be the same. The fingerprint is that of the exact weights, so it sees every change."""
    pref("run", "sft", *ADAPTED, "nf4")
    base = GPT.from_pretrained("sft")
    with torch.no_grad():
        base.transformer.h[0].mlp.c_fc.weight[0, 0] *= 1.0001
    base.save_pretrained("sft")
    with pytest.raises(ValueError, match="another model"):
        adapters.load_model("run")

def test_an_adapter_run_goes_on_with_its_own_method(here, capsys):
    """The second run's reference is the first run, on the same codes. SFT goes on with them as well."""
    pref("one", "sft", *ADAPTED, "nf4", "--double_quant")
    pref("two", "one")
    args = json.loads(Path("two/args.json").read_text())["args"]
    assert (args["quantize"], args["double_quant"]) == ("nf4", True)
    assert first_loss("two") == pytest.approx(math.log(2), abs=1e-5)
    _, policy, reference = evaluation.load_policy("two", torch.device("cpu"))
    assert torch.equal(logits(reference), logits(adapters.load_model("one")[0]))
    assert adapters.read_about("two") == adapters.read_about("one")
    texts = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
    Path("texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    train_sft.main(["--data", "texts.jsonl", "--init_from", "one", "--out_dir", "more", "--max_steps", "2"])
    assert adapters.read_about("more") == adapters.read_about("one")

def test_a_run_that_was_killed_resumes_to_the_same_bytes(here, monkeypatch):
    """The base is quantized again. The state holds the adapter alone."""
    flags = (*ADAPTED, "nf4", "--double_quant", "--seed", "3")
    pref("whole", "sft", *flags)
    real, calls = train_pref.preference_loss, []
    def killed(*args):
        calls.append(1)
        if len(calls) > 4:    # two evaluations and two updates
            raise RuntimeError("killed")
        return real(*args)
    monkeypatch.setattr(train_pref, "preference_loss", killed)
    with pytest.raises(RuntimeError, match="killed"):
        pref("parts", "sft", *flags)
    monkeypatch.setattr(train_pref, "preference_loss", real)
    assert Path("parts/state.pt").exists() and not Path("parts/result.json").exists()
    train_pref.main(["--resume", "--out_dir", "parts"])
    for name in ("log.csv", "adapter.safetensors", "adapter.json"):
        assert Path("parts", name).read_bytes() == Path("whole", name).read_bytes(), name

def test_sampled_pairs_are_those_of_the_quantized_policy(here, monkeypatch):
    """Pairs of the exact policy have another file. Otherwise the first run's pairs would be taken for the second."""
    seen = []
    monkeypatch.setattr(train_pref.preferences, "load", lambda model, base, *a, **k: seen.append(base) or 1 / 0)
    for flags in (("--adapter", "sequential"), (*ADAPTED, "nf4"), (*ADAPTED, "int8")):
        with pytest.raises(ZeroDivisionError):
            pref("run", "sft", *flags)
    assert len(set(seen)) == 3 and seen[0] == fingerprint(GPT.from_pretrained("sft"))

@pytest.mark.parametrize("start, flags, words", [
    ("sft", ("--quantize", "nf4"), "--quantize has no effect without --adapter"),
    ("sft", ("--adapter", "sequential", "--double_quant"), "--double_quant has no effect without --quantize nf4"),
    ("sft", (*ADAPTED, "int8", "--compile"), "--compile has no effect with --quantize"),
    ("sft", (*ADAPTED, "int8", "--double_quant"), "--double_quant has no effect without --quantize nf4"),
    ("one", ("--quantize", "int8"), "--quantize int8: one is an adapter run whose base is nf4 without double"),
    ("one", ("--double_quant",), "--double_quant: one is an adapter run whose base is nf4 without double"),
    ("plain", ("--quantize", "nf4"), "--quantize nf4: plain is an adapter run whose base is not quantized"),
], ids=str)
def test_flags_without_effect_or_against_the_start_are_refused(here, capsys, start, flags, words):
    """If they were ignored, args.json would describe another base than the run has."""
    if start != "sft":
        pref("one", "sft", *ADAPTED, "nf4")
        pref("plain", "sft", "--adapter", "sequential")
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        pref("x", start, *flags)
    said = capsys.readouterr().err
    assert end.value.code == 2 and words in said and said.count("\n") == 1 and not Path("x").exists()

@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_runs_under_autocast_start_at_log_2_too(here, dtype):
    """float16 scales the loss, and the gradient reaches the adapters through the quantized layers."""
    assert loss_scaler(torch.device("cpu")) is not None
    pref("run", "sft", *ADAPTED, "nf4", "--dtype", dtype)
    values = [value for _, split, metric, value in log_rows(Path("run")) if (split, metric) == ("val", "loss")]
    assert values[0] == pytest.approx(math.log(2), abs=1e-5) and values[-1] < values[0] - 0.001

# ---------------------------------------------------------------------------------------------------------------------
# what it costs: study/quantized.py

def test_the_study_measures_each_method_against_the_exact_base(sft_run, own_tokenizer):
    """The exact model must have its own perplexity and no KL, and 4 bits a KL above that of 16 and 8."""
    rows = quantized.base_rows(str(sft_run), None, 6)
    found = {(method, measure): value for _, method, _, measure, value in rows}
    result = json.loads((sft_run / "result.json").read_text())
    assert found["exact", "perplexity"] == pytest.approx(math.exp(result["best_val_loss"]), rel=1e-4)
    assert ("exact", "base kl") not in found and len(rows) == 9
    assert max(abs(found["bf16", "base kl"]), abs(found["int8", "base kl"])) < 1e-5 < found["nf4", "base kl"]

def test_the_study_reads_runs_and_refuses_others(tmp_path):
    """A run without an adapter has no frozen base. An old run has no such flags, and its base is exact."""
    measures = {"before": {"reward": [0.5, 0, 1]}, "after": {"reward": [0.9, 0, 1], "kl": [2.0, 0, 3]}}
    stored = {"prompts": 1, "n_samples": 1, "measures": measures, "samples": [{"prompt": "a", "after": "b"}]}
    for name, flags in (("old", {"adapter": "parallel"}), ("plain", {"adapter": None}),
                        ("double", {"adapter": "parallel", "quantize": "nf4", "double_quant": True})):
        (tmp_path / name).mkdir()
        about = {"script": "train_pref.py", "args": {"data": "toy", "seed": 4} | flags}
        (tmp_path / name / "args.json").write_text(json.dumps(about))
        (tmp_path / name / "eval.json").write_text(json.dumps(stored))
    assert quantized.run_rows(tmp_path / "old") == [("toy", "exact", 4, "reward before", 0.5),
                                                    ("toy", "exact", 4, "reward", 0.9), ("toy", "exact", 4, "kl", 2.0)]
    assert {row[1] for row in quantized.run_rows(tmp_path / "double")} == {"nf4 double"}
    with pytest.raises(ValueError, match="with --adapter"):
        quantized.run_rows(tmp_path / "plain")
