"""
Tests of support/cpu.py: oneDNN's matrix product equals PyTorch's in values and gradients, for all shapes of a model.

Also: when it is not used, and that freed memory is kept.
"""
import ctypes
import functools
import math
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from logps import sequence_logps
from model import GPT, GPTConfig
from support import cpu

onednn = pytest.mark.skipif(not cpu.has_onednn(), reason="this PyTorch has no oneDNN product")

def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

def run(fn, x, weight, bias=None, grad=None):
    """[y, gradients of x, weight and bias]; None where there is none. The given tensors do not change."""
    leaf = lambda t: t if t is None else t.detach().requires_grad_(t.requires_grad)    # keeps the strides
    leaves = [leaf(t) for t in (x, weight, bias)]
    y = fn(*leaves)
    if y.requires_grad:
        y.backward(random(*y.shape, seed=9).to(y) if grad is None else grad)
    return [y.detach()] + [t if t is None else t.grad for t in leaves]

def same(x, weight, bias=None, grad=None):
    """cpu.linear equals F.linear for these tensors."""
    ours, theirs = run(cpu.linear, x, weight, bias, grad), run(F.linear, x, weight, bias, grad)
    for got, want in zip(ours, theirs, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)

def trained(*shape, **how):
    return random(*shape, **how).requires_grad_()

# ---------------------------------------------------------------------------------------------------------------------
# the product

def test_the_product_and_its_three_gradients_by_hand():
    """On paper: y = x W^T + b with W = [[1, 2], [3, 4], [5, 6]]. A missing transposition gives another gradient."""
    x = torch.tensor([[1.0, 10.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 2.0], [3, 4], [5, 6]], requires_grad=True)
    bias = torch.tensor([100.0, 200, 300], requires_grad=True)
    y, *grads = run(cpu.linear, x, weight, bias, grad=torch.tensor([[1.0, 0.0, -1.0]]))
    assert y.tolist() == [[121, 243, 365]]
    assert [g.tolist() for g in grads] == [[[1 - 5, 2 - 6]], [[1, 10], [0, 0], [-1, -10]], [1, 0, -1]]

@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [(), (1,), (5,), (2, 3), (2, 1, 4), (0,), (0, 3), (2, 0)], ids=str)
def test_any_number_of_rows_in_any_shape(rows, bias):
    """One text, a batch, one token of a cached step, and no token at all if a mask is empty."""
    same(trained(*rows, 4), trained(7, 4, seed=1), trained(7, seed=2) if bias else None)

@pytest.mark.parametrize("n, m", [(1, 1), (1, 5), (5, 1), (4, 4), (33, 65)])
def test_widths_of_one_and_odd_ones(n, m):
    """The scalar head has one output. A square weight hides a forgotten transposition."""
    same(trained(2, 3, n), trained(m, n, seed=1), trained(m, seed=2))

@pytest.mark.parametrize("name, view", [
    pytest.param("x", lambda: random(3, 6, 4).transpose(0, 1), id="x transposed"),
    pytest.param("x", lambda: random(6, 3, 8)[..., ::2], id="x every second"),
    pytest.param("x", lambda: random(1, 1, 4).expand(6, 3, 4), id="x expanded"),
    pytest.param("weight", lambda: random(4, 7, seed=1).t(), id="weight transposed"),
    pytest.param("grad", lambda: torch.ones(()).expand(6, 3, 7), id="gradient expanded"),    # that of a sum
    pytest.param("grad", lambda: random(3, 6, 7, seed=3).transpose(0, 1), id="gradient transposed"),
    pytest.param("x", lambda: random(6, 4, 4)[:, :-1], id="all but the last token"),
])
def test_tensors_that_are_not_contiguous(name, view):
    """oneDNN reads memory by its own layout. A view read as if it were dense gives wrong numbers of the right shape."""
    tensors = {"x": random(6, 3, 4), "weight": random(7, 4, seed=1), "bias": random(7, seed=2)}
    tensors |= {"grad": random(6, 3, 7, seed=3), name: view()}
    for trained_on in ("x", "weight", "bias"):
        tensors[trained_on].requires_grad_()
    same(**tensors)

@pytest.mark.parametrize("trains", [(1, 0, 0), (0, 1, 1), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 0, 0)], ids=str)
def test_what_is_frozen_has_no_gradient_and_the_others_have_theirs(trains):
    """With an adapter the weights are frozen but their inputs are not. In the first layer it may be the reverse."""
    x, weight, bias = random(5, 4), random(7, 4, seed=1), random(7, seed=2)
    for tensor, yes in zip((x, weight, bias), trains):
        tensor.requires_grad_(bool(yes))
    same(x, weight, bias)
    assert cpu.linear(x, weight, bias).requires_grad == any(trains)
    with torch.no_grad():
        assert not cpu.linear(x, weight, bias).requires_grad

@onednn
@pytest.mark.parametrize("trains, kept", [((0, 1), 1), ((1, 0), 1), ((1, 1), 2), ((0, 0), 0)])
def test_only_what_backward_needs_is_kept(trains, kept):
    """Nothing needs the input of a frozen weight. If it were kept, an adapter run would take twice the memory."""
    saved = []
    x, weight = (t.requires_grad_(bool(yes)) for t, yes in zip((random(5, 4), random(7, 4)), trains))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        cpu.linear(x, weight, random(7))
    assert len(saved) == kept

def test_gradients_add_up_over_several_uses():
    """The tied embedding is used twice in a pass, and --grad_accum runs backward several times before a step."""
    grads = []
    for fn in (cpu.linear, F.linear):
        weight, x = trained(4, 4), random(3, 4, seed=1)
        for _ in range(2):
            fn(fn(x, weight).tanh(), weight).square().sum().backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-5)

def test_inf_and_nan_go_through():
    """A diverged run must show in the loss. If the product lost a NaN, training would go on."""
    y = cpu.linear(torch.tensor([[math.nan, 1.0], [math.inf, 1.0], [1.0, 1.0]]), torch.ones(3, 2))
    assert y[0].isnan().all() and y[1].isinf().all() and (y[2] == 2).all()

@pytest.mark.parametrize("weight, bias", [((7, 5), (7,)), ((7, 4), (6,))])
def test_shapes_that_do_not_fit_are_refused(weight, bias):
    """A library that trusts the given sizes would read beyond the end of the memory."""
    with pytest.raises(RuntimeError):
        cpu.linear(random(3, 4), random(*weight), random(*bias))

# ---------------------------------------------------------------------------------------------------------------------
# when it is taken, and when not

@onednn
def test_float32_on_a_cpu_is_given_to_onednn(monkeypatch):
    """If the condition were never true, all comparisons would pass, at half the speed."""
    calls, product = [], cpu.product
    monkeypatch.setattr(cpu, "product", lambda *args: calls.append(1) or product(*args))
    x, weight, bias = trained(3, 4), trained(7, 4), trained(7)
    cpu.linear(x, weight, bias).sum().backward()
    assert len(calls) == 3    # and so are both products of backward
    assert isinstance(cpu.Linear(4, 7)(x).grad_fn, type(cpu.linear(x, weight).grad_fn))

CASES = ("float64", "bfloat16", "bfloat16 autocast", "float16 autocast", "meta", "compiling", "no oneDNN")

@pytest.mark.parametrize("case", CASES)
def test_whatever_is_not_plain_float32_on_a_cpu_goes_the_ordinary_way(case, monkeypatch):
    """If autocast were ignored, a bfloat16 run would silently be a float32 run. In float64 oneDNN raises an error."""
    if case == "no oneDNN":
        monkeypatch.setattr(cpu, "has_onednn", lambda: False)
    if case == "compiling":    # torch.compile uses oneDNN by itself where that is faster, and fuses the rest
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    cpu.has_onednn()    # asked before the trap is set
    monkeypatch.setattr(cpu, "product", lambda *args: pytest.fail("it went to oneDNN"))
    low = getattr(torch, case.split()[0]) if "autocast" in case else None
    dtype = getattr(torch, case) if case in ("float64", "bfloat16") else torch.float32
    device = "meta" if case == "meta" else "cpu"
    x, weight, bias = (random(*shape).to(device, dtype) for shape in ((2, 3, 4), (7, 4), (7,)))
    results = []
    for fn in (cpu.linear, F.linear):
        with torch.autocast("cpu", low, enabled=low is not None):
            results.append(run(fn, *(t.requires_grad_() for t in (x, weight, bias))))
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        assert case == "meta" or torch.equal(got, want)
    assert results[0][0].dtype == (low or dtype)

@pytest.mark.parametrize("error", [RuntimeError, AttributeError, NotImplementedError, TypeError])
def test_a_pytorch_without_the_product_is_recognized(error, monkeypatch):
    """The operator is not public. It may be missing, have other arguments, or refuse the processor."""
    def refuse(*args):
        raise error("no")
    ask = cpu.has_onednn.__wrapped__    # without the cache
    monkeypatch.setattr(cpu, "product", refuse)
    assert ask() is False
    monkeypatch.setattr(cpu, "product", F.linear)
    assert ask() is True
    assert isinstance(cpu.has_onednn, functools._lru_cache_wrapper)    # asked once: the answer costs a product

def test_a_model_has_the_same_logits_and_gradients_with_it_and_without(monkeypatch):
    """Reference log-probs may be computed with it and the policy's without, so they must agree to the last digits."""
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
            samples = m.generate(idx, 8, temperature=0)
            results.append([m(idx), values.detach(), samples, *(p.grad for p in m.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)

# ---------------------------------------------------------------------------------------------------------------------
# memory

def test_keep_memory_sets_what_glibc_documents(monkeypatch):
    """malloc.h: M_TRIM_THRESHOLD is -1, M_MMAP_MAX is -4. mallopt accepts other numbers without an error."""
    calls = []
    library = SimpleNamespace(mallopt=lambda *args: calls.append(args))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    cpu.keep_memory()
    assert sorted(calls) == [(-4, 0), (-1, -1)]

@pytest.mark.parametrize("library", ["no library", "no mallopt", "no library without a name"])
def test_where_there_is_no_mallopt_nothing_happens(library, monkeypatch):
    """macOS and musl have no mallopt, and on Windows CDLL(None) is a TypeError. It only serves speed."""
    def load(name):
        if library == "no mallopt":
            return SimpleNamespace()
        raise OSError("not found") if library == "no library" else TypeError("expected str, not None")
    monkeypatch.setattr(ctypes, "CDLL", load)
    cpu.keep_memory()

glibc = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt")

@pytest.mark.skipif(not glibc, reason="not glibc")
def test_memory_that_was_freed_is_taken_again_without_asking_the_kernel():
    """By default every large tensor gets new pages, with one page fault each: 4,096 faults for 16 MB, every time."""
    import resource
    cpu.keep_memory()
    cpu.keep_memory()    # twice does no harm
    faults = []
    for i in range(16):    # the first tensors enlarge the heap
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        x = torch.full((2**22,), float(i))
        assert x.sum().item() == i * 2**22    # the memory can be used
        del x
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert max(faults[-4:]) < 1000
