"""
cpu.py: oneDNN's product against PyTorch's own in values and gradients, for every shape that a model meets; when it is not taken; and
freed memory that is kept.
"""
import ctypes
import functools
import math
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from support import cpu
from logps import sequence_logps
from model import GPT, GPTConfig

onednn = pytest.mark.skipif(not cpu.has_onednn(), reason="this PyTorch has no oneDNN product")

def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

def run(fn, x, weight, bias=None, grad=None):
    """[y, gradient of x, of weight, of bias], None where there is none; the given tensors are not touched."""
    leaves = [t if t is None else t.detach().requires_grad_(t.requires_grad) for t in (x, weight, bias)]    # strides and all
    y = fn(*leaves)
    if y.requires_grad:
        y.backward(random(*y.shape, seed=9).to(y) if grad is None else grad)
    return [y.detach()] + [t if t is None else t.grad for t in leaves]

def same(x, weight, bias=None, grad=None):
    """linear is F.linear, for these."""
    for got, want in zip(run(cpu.linear, x, weight, bias, grad), run(F.linear, x, weight, bias, grad), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)

def trained(*shape, **how):
    return random(*shape, **how).requires_grad_()

# ---------------------------------------------------------------------------------------------------------------------
# the product

def test_the_product_and_its_three_gradients_by_hand():
    """On paper: y = x W^T + b with W = [[1, 2], [3, 4], [5, 6]]. A gradient without the transposition fits in shape if W is square."""
    x, weight, bias = torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0, 2.0], [3, 4], [5, 6]]), torch.tensor([100.0, 200, 300])
    y, *grads = run(cpu.linear, *(t.requires_grad_() for t in (x, weight, bias)), grad=torch.tensor([[1.0, 0.0, -1.0]]))
    assert y.tolist() == [[121, 243, 365]]
    assert [g.tolist() for g in grads] == [[[1 - 5, 2 - 6]], [[1, 10], [0, 0], [-1, -10]], [1, 0, -1]]

@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [(), (1,), (5,), (2, 3), (2, 1, 4), (0,), (0, 3), (2, 0)], ids=str)
def test_any_number_of_rows_in_any_shape(rows, bias):
    """One text, a batch of them, the one token of a cached step; and no token at all, where a mask is empty."""
    same(trained(*rows, 4), trained(7, 4, seed=1), trained(7, seed=2) if bias else None)

@pytest.mark.parametrize("n, m", [(1, 1), (1, 5), (5, 1), (4, 4), (33, 65)])
def test_widths_of_one_and_odd_ones(n, m):
    """The scalar head has one output; a square weight hides a forgotten transposition."""
    same(trained(2, 3, n), trained(m, n, seed=1), trained(m, seed=2))

@pytest.mark.parametrize("layout", ["x transposed", "x every second", "x expanded", "weight transposed", "gradient expanded",
                                    "gradient transposed", "all but the last token"])
def test_tensors_that_are_not_contiguous(layout):
    """oneDNN reads memory by a layout of its own: a view taken for dense gives numbers of the right shape and size."""
    x, weight, bias, grad = random(6, 3, 4), random(7, 4, seed=1), random(7, seed=2), random(6, 3, 7, seed=3)
    if layout == "x transposed":
        x, grad = random(3, 6, 4).transpose(0, 1), grad
    elif layout == "x every second":
        x = random(6, 3, 8)[..., ::2]
    elif layout == "x expanded":
        x = random(1, 1, 4).expand(6, 3, 4)
    elif layout == "weight transposed":
        weight = random(4, 7, seed=1).t()
    elif layout == "gradient expanded":
        grad = torch.ones(()).expand(6, 3, 7)    # that of a sum
    elif layout == "gradient transposed":
        grad = random(3, 6, 7, seed=3).transpose(0, 1)
    else:
        x = random(6, 4, 4)[:, :-1]
    same(x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), grad)

@pytest.mark.parametrize("trains", [(1, 0, 0), (0, 1, 1), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 0, 0)], ids=str)
def test_what_is_frozen_has_no_gradient_and_the_others_have_theirs(trains):
    """Under an adapter the weights are frozen and their inputs are not; in the first layer of an SFT model it may be the other way."""
    x, weight, bias = (t.requires_grad_(bool(yes)) for t, yes in zip((random(5, 4), random(7, 4, seed=1), random(7, seed=2)), trains))
    same(x, weight, bias)
    assert cpu.linear(x, weight, bias).requires_grad == any(trains)
    with torch.no_grad():
        assert not cpu.linear(x, weight, bias).requires_grad

@onednn
@pytest.mark.parametrize("trains, kept", [((0, 1), 1), ((1, 0), 1), ((1, 1), 2), ((0, 0), 0)])
def test_only_what_backward_needs_is_kept(trains, kept):
    """The input of a frozen weight is needed by nobody: kept all the same it doubles what an adapter run holds in memory."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        cpu.linear(*(t.requires_grad_(bool(yes)) for t, yes in zip((random(5, 4), random(7, 4)), trains)), random(7))
    assert len(saved) == kept

def test_gradients_add_up_over_several_uses():
    """The tied vocabulary is used at both ends, and accumulation runs backward several times before a step."""
    grads = []
    for fn in (cpu.linear, F.linear):
        weight, x = trained(4, 4), random(3, 4, seed=1)
        for _ in range(2):
            fn(fn(x, weight).tanh(), weight).square().sum().backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-5)

def test_inf_and_nan_go_through():
    """A diverged run must show in the loss: arithmetic that swallows a NaN would train on."""
    y = cpu.linear(torch.tensor([[math.nan, 1.0], [math.inf, 1.0], [1.0, 1.0]]), torch.ones(3, 2))
    assert y[0].isnan().all() and y[1].isinf().all() and (y[2] == 2).all()

@pytest.mark.parametrize("weight, bias", [((7, 5), (7,)), ((7, 4), (6,))])
def test_shapes_that_do_not_fit_are_refused(weight, bias):
    """A library that reads memory by sizes alone would read beyond the end."""
    with pytest.raises(RuntimeError):
        cpu.linear(random(3, 4), random(*weight), random(*bias))

# ---------------------------------------------------------------------------------------------------------------------
# when it is taken, and when not

@onednn
def test_float32_on_a_cpu_is_given_to_onednn(monkeypatch):
    """A condition that is never true costs half of the speed and fails no comparison."""
    calls, product = [], cpu.product
    monkeypatch.setattr(cpu, "product", lambda *args: calls.append(1) or product(*args))
    x, weight, bias = trained(3, 4), trained(7, 4), trained(7)
    cpu.linear(x, weight, bias).sum().backward()
    assert len(calls) == 3    # and so are both products of backward
    assert isinstance(cpu.Linear(4, 7)(x).grad_fn, type(cpu.linear(x, weight).grad_fn))

@pytest.mark.parametrize("case", ["float64", "bfloat16", "bfloat16 autocast", "float16 autocast", "meta", "compiling", "no oneDNN"])
def test_whatever_is_not_plain_float32_on_a_cpu_goes_the_ordinary_way(case, monkeypatch):
    """Past autocast a bf16 run would be a float32 one that says it is not; in float64 oneDNN raises."""
    if case == "no oneDNN":
        monkeypatch.setattr(cpu, "has_onednn", lambda: False)
    if case == "compiling":    # torch.compile takes oneDNN by itself where that is faster, and fuses what is around
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    cpu.has_onednn()    # asked before the trap is set
    monkeypatch.setattr(cpu, "product", lambda *args: pytest.fail("it went to oneDNN"))
    dtype = getattr(torch, case, torch.float32) if "autocast" not in case else torch.float32
    x, weight, bias = (random(*shape).to("meta" if case == "meta" else "cpu", dtype) for shape in ((2, 3, 4), (7, 4), (7,)))
    low = getattr(torch, case.split()[0]) if "autocast" in case else None
    results = []
    for fn in (cpu.linear, F.linear):
        with torch.autocast("cpu", low, enabled=low is not None):
            results.append(run(fn, *(t.requires_grad_() for t in (x, weight, bias))))
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape and (case == "meta" or torch.equal(got, want))
    assert results[0][0].dtype == (low or dtype)

@pytest.mark.parametrize("error", [RuntimeError, AttributeError, NotImplementedError, TypeError])
def test_a_pytorch_without_the_product_is_recognized(error, monkeypatch):
    """The operator is no public one: it may be missing, have other arguments, or refuse the processor."""
    def refuse(*args):
        raise error("no")
    ask = cpu.has_onednn.__wrapped__    # what is behind the cache
    monkeypatch.setattr(cpu, "product", refuse)
    assert ask() is False
    monkeypatch.setattr(cpu, "product", F.linear)
    assert ask() is True
    assert isinstance(cpu.has_onednn, functools._lru_cache_wrapper)    # asked once: the answer costs a product

def test_a_model_has_the_same_logits_and_gradients_with_it_and_without(monkeypatch):
    """The same numbers to the last bits is the promise: reference log-probs may be made by one and the policy's by the other."""
    torch.manual_seed(0)
    m = GPT(GPTConfig(block_size=32, vocab_size=50, n_layer=2, n_head=2, n_embd=16))
    for p in m.parameters():
        p.data += 0.2 * torch.randn_like(p)
    idx, mask = torch.randint(50, (3, 12)), torch.arange(12).expand(3, 12) >= 5
    results = []
    for has in (cpu.has_onednn(), False):
        monkeypatch.setattr(cpu, "has_onednn", lambda has=has: has)
        m.zero_grad()
        values = sequence_logps(m, idx, mask)[0]
        (values * torch.tensor([1.0, -0.5, 0.2])).sum().backward()
        with torch.no_grad():
            results.append([m(idx), values.detach(), m.generate(idx, 8, temperature=0), *(p.grad for p in m.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)

# ---------------------------------------------------------------------------------------------------------------------
# memory

def test_keep_memory_sets_what_glibc_documents(monkeypatch):
    """malloc.h: M_TRIM_THRESHOLD is -1, M_MMAP_MAX is -4. Another number sets another thing, and mallopt does not complain."""
    calls = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *args: calls.append(args)))
    cpu.keep_memory()
    assert sorted(calls) == [(-4, 0), (-1, -1)]

@pytest.mark.parametrize("library", ["no library", "no mallopt", "no library without a name"])
def test_where_there_is_no_mallopt_nothing_happens(library, monkeypatch):
    """macOS and musl have none, and on Windows CDLL(None) is a TypeError: it is a wish for speed, not a condition."""
    def load(name):
        if library == "no mallopt":
            return SimpleNamespace()
        raise OSError("not found") if library == "no library" else TypeError("expected str, not None")
    monkeypatch.setattr(ctypes, "CDLL", load)
    cpu.keep_memory()

@pytest.mark.skipif(not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_memory_that_was_freed_is_taken_again_without_asking_the_kernel():
    """By default every large tensor is new pages, one fault each: 4,096 faults for 16 MB, again and again."""
    import resource
    cpu.keep_memory()
    cpu.keep_memory()    # twice does no harm
    faults = []
    for i in range(16):    # the first ones find their place in the heap
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        x = torch.full((2**22,), float(i))
        assert x.sum().item() == i * 2**22    # and it is memory like any other
        del x
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert max(faults[-4:]) < 1000
