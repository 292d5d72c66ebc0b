"""
logps.py and support/fast_logps.py. The log-prob of a token is tested by hand, and in chunks against the plain way. That
of a completion is tested against a slow loop. That of a pair behind one prompt is tested against each completion behind
its own.
"""
import copy
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import data
import logps
from adapters import MODES, adapter_state_dict, adapters_off, add_adapters
from logps import batch_logps, completion_token_logps, plain_logps, sequence_logps
from logps import plain_token_logps as plain
from model import GPT, GPTConfig
from support import fast_logps
from support.fast_logps import distinct_rows, shared_layout, shared_logps, token_logps

# ---------------------------------------------------------------------------------------------------------------------
# the log-prob of a token

M, V, C = 23, 31, 6

def case(dtype=torch.float32, scale=1.0):
    """states (M, C), weight (V, C), targets (M,), and a gradient (M,) of the log-probs, of both signs."""
    g = torch.Generator().manual_seed(0)
    sizes = ((M, C), (V, C), (M,))
    states, weight, grad = (torch.randn(*size, generator=g, dtype=torch.float64).to(dtype) for size in sizes)
    return (scale * states).requires_grad_(), weight.requires_grad_(), torch.randint(V, (M,), generator=g), grad

def run(fn, states, weight, targets, grad):
    """(values, gradient of the states, of the weight)."""
    out = fn(states, weight, targets)
    return out.detach(), *torch.autograd.grad(out, (states, weight), grad.to(out.dtype))

def near(got, want, atol=1e-5, rtol=1e-5):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=rtol)

@pytest.mark.parametrize("fn", [plain, token_logps], ids=["plain", "fast"])
def test_a_token_logp_and_its_gradients_by_hand(fn):
    """
    On paper: logits log 3 and 0, so p = (3/4, 1/4) and d logp[0] / d logits = (1/4, -1/4). Without the one-hot term the
    gradient is (-3/4, -1/4).
    """
    states = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 2.0], [0.0, 4.0]], requires_grad=True)
    logp, = out = fn(states, weight, torch.tensor([0]))
    assert logp.item() == pytest.approx(math.log(3 / 4))
    out.sum().backward()
    assert states.grad.flatten().tolist() == pytest.approx([1 / 4, 2 / 4 - 4 / 4], abs=1e-6)    # w[0] / 4 - w[1] / 4
    assert weight.grad.flatten().tolist() == pytest.approx([math.log(3) / 4, 0, -math.log(3) / 4, 0], abs=1e-6)

PIECES = {
    "a row": 1,
    "a row and some": 2 * V - 1,
    "seven rows": 7 * V,
    "all but one": (M - 1) * V,
    "all": M * V,
    "far more": 2**24,
}
pieces = pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)

@pieces
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_token_logps_equal_log_softmax_and_gather_whatever_the_pieces(dtype, piece, monkeypatch):
    """A shorter last piece, or a weight gradient that keeps the last piece only, is still right for some sizes."""
    monkeypatch.setattr(fast_logps, "CHUNK", piece)
    got, want = run(token_logps, *case(dtype)), run(plain, *case(dtype))
    assert {x.dtype for x in got} == {dtype}
    near(got, want, *(1e-5, 1e-5) if dtype == torch.float32 else (1e-12, 1e-12))

@pieces
def test_gradients_equal_finite_differences(piece, monkeypatch):
    """A gradient written by hand may be wrong in one term; finite differences show it."""
    monkeypatch.setattr(fast_logps, "CHUNK", piece)
    states, weight, targets, _ = case(torch.float64)
    assert torch.autograd.gradcheck(lambda s, w: token_logps(s, w, targets), (states, weight))

@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
@pytest.mark.parametrize("dtype, atol", [    # atol: the last bit of numbers from 4 to 8
    (torch.bfloat16, 0.032),
    (torch.float16, 0.004)])
def test_under_autocast_logps_are_float32_of_the_products_that_autocast_makes(dtype, atol, inside, monkeypatch):
    """
    Autocast does not reach a backward pass written by hand: its products would be float32, or fail on mixed dtypes.
    """
    for piece in (1, 7 * V, M * V):
        monkeypatch.setattr(fast_logps, "CHUNK", piece)
        results = []
        for fn in (token_logps, plain):
            states, weight, targets, grad = case()
            with torch.autocast("cpu", dtype):
                out = fn(states, weight, targets)
                grads = inside and torch.autograd.grad(out, (states, weight), grad)
            results.append((out.detach(), *(grads or torch.autograd.grad(out, (states, weight), grad))))
        assert all(x.dtype == torch.float32 for x in results[0])
        near(*results, atol=atol)
        assert not torch.equal(results[0][0], plain(*case()[:3]))    # autocast was on

def test_logits_of_ten_thousand_do_not_overflow():
    """exp(1e4) is inf and inf / inf is NaN. The largest logit must be subtracted first, in the backward pass too."""
    states = torch.tensor([[1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    for target, want in enumerate([0.0, -1e4, -2e4]):
        logp, grad_states, grad_weight = run(token_logps, states, weight, torch.tensor([target]), torch.ones(1))
        assert logp.item() == want
        assert grad_states.item() == -target    # all of the mass is on token 0: w[target] - w[0]
        want_weight = [(1e4 if i == target else 0) - (1e4 if i == 0 else 0) for i in range(3)]
        assert grad_weight.flatten().tolist() == want_weight
    double = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in case(scale=1e4)]
    got, want = run(token_logps, *case(scale=1e4)), run(plain, *double)    # sums of products of 1e4 are rounded at 1e-3
    near(got, [x.float() for x in want], atol=2e-2, rtol=1e-3)

def test_a_row_does_not_depend_on_the_rows_beside_it():
    """A maximum or a sum over the piece instead of the row is right as long as rows are alike."""
    states, weight, targets, _ = case()
    spread = torch.logspace(-2, 2, M)[:, None]
    together = token_logps(states * spread, weight, targets)
    alone = torch.cat([token_logps(s[None], weight, t[None]) for s, t in zip(states * spread, targets)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)

class Watch(TorchDispatchMode):
    """(name, shape) of every tensor that an operation returns, in forward and backward."""
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        outs = out if isinstance(out, (tuple, list)) else [out]
        self.seen += [(func.overloadpacket.__name__, tuple(x.shape)) for x in outs if isinstance(x, torch.Tensor)]
        return out

@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_logits_than_a_piece_stand_in_memory(rows, dtype, monkeypatch):
    """
    One tensor of shape (M, V), for example in backward, costs as much memory as the plain way: 3.3 GB for 16,384
    tokens of GPT-2.
    """
    monkeypatch.setattr(fast_logps, "CHUNK", rows * V)
    largest = {}
    for fn in (token_logps, plain):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), Watch() as watch:
            run(fn, *case())
        largest[fn] = max(math.prod(shape) for _, shape in watch.seen)
    assert largest[plain] == M * V    # so it would be seen
    assert largest[token_logps] == max(rows * V, V * C, M * C)

@pytest.mark.parametrize("frozen", ["nothing", "the states", "the weight"])
def test_what_is_frozen_costs_no_product(frozen, monkeypatch):
    """Under an adapter the vocabulary is frozen. Its gradient would be a third of the work, and 154 MB for GPT-2."""
    monkeypatch.setattr(fast_logps, "CHUNK", 4 * V)
    states, weight, targets, grad = case()
    states.requires_grad_(frozen != "the states")
    weight.requires_grad_(frozen != "the weight")
    out = token_logps(states, weight, targets)
    with Watch() as watch:
        out.backward(grad)
    products = {shape for name, shape in watch.seen if "mm" in name or "linear" in name}
    want = {(4, V), (3, V)}    # 23 rows are five pieces of four and one of three
    if states.requires_grad:
        want |= {(4, C), (3, C)}
    if weight.requires_grad:
        want.add((V, C))
    assert products == want
    want = run(plain, *case())
    for x, g in zip((states, weight), want[1:], strict=True):
        assert x.grad is None if not x.requires_grad else torch.allclose(x.grad, g, atol=1e-5)

def test_the_fast_way_is_what_runs():
    """One line chooses: `logps.token_logps` is set there, and everything else reads it."""
    assert logps.token_logps is token_logps

def test_with_nothing_to_train_there_is_no_graph():
    """The reference and the evaluation need no gradient, so nothing may be kept for backward."""
    states, weight, targets, _ = case()
    with torch.no_grad():
        assert not token_logps(states, weight, targets).requires_grad
    assert not token_logps(states.detach(), weight.detach(), targets).requires_grad

# ---------------------------------------------------------------------------------------------------------------------
# the log-prob of a completion

@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=32, vocab_size=50, n_layer=2, n_head=2, n_embd=16)).eval()

SPANS = ((5, 9), (1, 20), (12, 13), (3, 18))    # first token of the completion, first token after it

@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    idx, mask = torch.randint(0, 50, (4, 20)), torch.zeros(4, 20, dtype=torch.bool)
    for i, (a, b) in enumerate(SPANS):
        mask[i, a:b] = True
    return idx, mask

def test_logps_of_a_uniform_model_are_the_length_times_log_v(tiny, batch):
    """
    On paper: equal logits give each token probability 1 / 50. A mean instead of the sum gives log V for every
    length.
    """
    flat = copy.deepcopy(tiny)
    flat.lm_head.weight.data.zero_()
    logps, lens = sequence_logps(flat, *batch)
    assert lens.tolist() == [b - a for a, b in SPANS]
    assert logps.tolist() == pytest.approx([-(b - a) * math.log(50) for a, b in SPANS], rel=1e-5)

def test_logps_equal_a_slow_double_loop(tiny, batch):
    """Without the shift, logits[:, t] would be read as the prediction of idx[:, t], which is the input itself."""
    idx, mask = batch
    with torch.no_grad():
        log_p = tiny(idx).log_softmax(-1)
        want = []
        for i, (a, b) in enumerate(SPANS):
            want.append(sum(log_p[i, t - 1, idx[i, t]].item() for t in range(a, b)))
        assert sequence_logps(tiny, idx, mask)[0].tolist() == pytest.approx(want, abs=1e-4)

def test_logps_do_not_see_what_stands_behind_a_completion(tiny, batch):
    """Padding that is counted or attended to changes the sum."""
    idx, mask = batch
    other = idx.clone()
    for i, (_, b) in enumerate(SPANS):
        other[i, b:] = 7
    assert torch.allclose(sequence_logps(tiny, other, mask)[0], sequence_logps(tiny, idx, mask)[0], atol=1e-5)

def test_logps_depend_on_the_prompt_but_do_not_count_it(tiny, batch):
    """A counted prompt adds its own log-prob. A prompt that is masked out of attention changes nothing."""
    idx, mask = batch
    longer = mask.clone()
    longer[0, 3:5] = True
    assert (sequence_logps(tiny, idx, longer)[0][0] < sequence_logps(tiny, idx, mask)[0][0] - 1).item()
    other = idx.clone()
    other[0, 1] = (other[0, 1] + 1) % 50
    assert not torch.allclose(sequence_logps(tiny, other, mask)[0][0], sequence_logps(tiny, idx, mask)[0][0], atol=1e-6)

def test_a_row_has_the_same_logps_in_any_batch(tiny, batch):
    """Rows must not leak into each other: a row has the same sum alone, in a batch, and in another order."""
    idx, mask = batch
    together, order = sequence_logps(tiny, idx, mask)[0], torch.tensor([2, 0, 3, 1])
    alone = torch.cat([sequence_logps(tiny, idx[i:i + 1], mask[i:i + 1])[0] for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(sequence_logps(tiny, idx[order], mask[order])[0], together[order], atol=1e-5)

def test_the_gradient_equals_that_of_the_whole_log_softmax(tiny, batch):
    """Logits are computed under the mask only. What is left out must have had no gradient."""
    idx, mask = batch
    grads = []
    for slow in (False, True):
        model = copy.deepcopy(tiny)
        if slow:
            per_token = model(idx)[:, :-1].log_softmax(-1).gather(2, idx[:, 1:, None]).squeeze(2)
            logps = (per_token * mask[:, 1:]).sum(1)
        else:
            logps = sequence_logps(model, idx, mask)[0]
        (logps * torch.tensor([1.0, -2.0, 0.5, 3.0])).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads))

@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_the_fast_way_equals_the_definition_in_value_and_gradient(dtype, tol, mode, monkeypatch):
    """Chunks, states under the mask only and a frozen head may each be almost right."""
    monkeypatch.setattr(fast_logps, "CHUNK", 7 * 50)    # several chunks
    idx, mask = torch.randint(50, (4, 16)), torch.zeros(4, 16, dtype=torch.bool)
    results = []
    for row, (a, b) in enumerate(((5, 9), (1, 16), (12, 13), (3, 14))):
        mask[row, a:b] = True
    m = strong(dtype) if mode is None else add_adapters(strong(dtype), mode, 3)
    for fn in (sequence_logps, plain_logps):
        m.zero_grad()
        values, lens = fn(m, idx, mask)
        values.backward(torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=dtype))
        results.append((values.detach(), lens, {n: p.grad for n, p in m.named_parameters() if p.requires_grad}))
    assert results[0][0].dtype == dtype
    same(*results, atol=5 * tol, rtol=tol)

@pytest.mark.parametrize("dtype, rtol", [(torch.bfloat16, 0.01), (torch.float16, 0.002)])
def test_under_autocast_both_ways_give_float32_of_the_same_products(dtype, rtol, tiny, batch):
    """A definition that forgets float() sums in bfloat16. A fast way that leaves autocast has other logits."""
    with torch.autocast("cpu", dtype), torch.no_grad():
        fast, slow = sequence_logps(tiny, *batch)[0], plain_logps(tiny, *batch)[0]
    assert fast.dtype == slow.dtype == torch.float32
    torch.testing.assert_close(fast, slow, atol=1e-3, rtol=rtol)

def test_the_plain_way_can_be_chosen_in_its_place(tiny, batch, monkeypatch):
    """A reader may set the one line that chooses to the plain function. Nothing else may depend on the fast one."""
    want = sequence_logps(tiny, *batch)
    monkeypatch.setattr(logps, "token_logps", plain)
    torch.testing.assert_close(sequence_logps(tiny, *batch), want, atol=1e-5, rtol=1e-5)

def test_log_probs_of_single_tokens_equal_a_slow_double_loop_and_add_up(tiny, batch):
    """
    One column too far to the left or right, the page of a run would color the wrong words. The prompt must stay 0.
    """
    idx, mask = batch
    with torch.no_grad():
        per_token, log_p = completion_token_logps(tiny, idx, mask), tiny(idx).log_softmax(-1)
    want = torch.zeros(4, 19)
    for i, (a, b) in enumerate(SPANS):
        for t in range(a, b):
            want[i, t - 1] = log_p[i, t - 1, idx[i, t]]
    assert per_token.shape == (4, 19)
    torch.testing.assert_close(per_token, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(per_token.sum(1), sequence_logps(tiny, idx, mask)[0]) and (per_token[~mask[:, 1:]] == 0).all()

def test_logps_are_float32_under_bfloat16_autocast(tiny, batch):
    """A sum of hundreds has two digits in bfloat16, so the difference of two such sums is noise."""
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        logps = sequence_logps(tiny, *batch)[0]
    assert logps.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(logps, sequence_logps(tiny, *batch)[0], rtol=0.01)

def test_the_first_column_never_counts(tiny):
    """No token precedes the first one, so nothing predicts it. Counting it would read the last token's logits."""
    idx, mask = torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.bool)
    later = mask.clone()
    later[0, 0] = False
    for a, b in zip(sequence_logps(tiny, idx, mask), sequence_logps(tiny, idx, later)):
        assert torch.equal(a, b)

# ---------------------------------------------------------------------------------------------------------------------
# equal rows

def test_rows_that_differ_in_the_mask_or_in_one_token_are_different_rows():
    """On paper: rows 0 and 3 are equal. Rows 0 and 1 have the same tokens, but the prompt of row 1 is longer."""
    idx = torch.tensor([[5, 6, 7], [5, 6, 7], [5, 6, 8], [5, 6, 7]])
    mask = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1]]).bool()
    rows, masks, place = distinct_rows(idx, mask)
    assert len(rows) == len(masks) == 3 and place[0] == place[3]
    assert torch.equal(rows[place], idx) and torch.equal(masks[place], mask) and masks.dtype == torch.bool

def test_without_a_gradient_each_sample_of_a_prompt_is_computed_once(monkeypatch):
    """Six pairs of four samples. Sums that go back to the wrong pairs have the right mean."""
    m = strong()
    samples = [[1, 2, 3], [4], [5, 6], [1, 2]]
    rows = [{"prompt": [7, 8], "chosen": a, "rejected": b} for i, a in enumerate(samples) for b in samples[:i]]
    batch, seen, features = data.collate(rows), [], m.features
    monkeypatch.setattr(m, "features", lambda idx, **more: seen.append(len(idx)) or features(idx, **more))
    want = batch_logps(m, batch)
    with torch.no_grad():
        got = batch_logps(m, batch)
    assert seen == [12, 4]    # in training each row has its own dropout
    torch.testing.assert_close(got[0], want[0].detach(), atol=1e-5, rtol=1e-5)
    assert torch.equal(got[1], want[1])

# ---------------------------------------------------------------------------------------------------------------------
# both completions of a pair behind one prompt

def strong(dtype=torch.float32, **sizes):
    """A model with large weights: a wrong position or a token seen by mistake shows in the first digits."""
    m = GPT(GPTConfig(**(dict(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=16) | sizes)))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in m.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3 + (1 if ".ln_" in name and name.endswith("weight") else 0))
    return m.to(dtype).eval()

def pair(n_prompt, n_chosen, n_rejected, seed=0):
    rng = random.Random(f"{n_prompt} {n_chosen} {n_rejected} {seed}")
    prompt, chosen, rejected = ([rng.randrange(50) for _ in range(n)] for n in (n_prompt, n_chosen, n_rejected))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

SAME = {"prompt": [7, 8, 9], "chosen": [1, 2, 3, 4], "rejected": [1, 2, 3, 4]}
PAIRS = {
    "ragged": [pair(3, 5, 2), pair(1, 1, 9), pair(6, 4, 4), pair(2, 7, 1), pair(8, 2, 8)],
    "random": [pair(*(random.Random(i).randrange(1, 9) for _ in range(3)), seed=i) for i in range(12)],
    "prompts of one token": [pair(1, n, 6 - n) for n in range(1, 6)],
    "completions of one token": [pair(n, 1, 1) for n in (1, 4, 15)],
    "chosen == rejected": [SAME, pair(2, 6, 3)],
    "a row alone": [pair(4, 3, 5)],
    "no padding": [pair(2, 4, 3), pair(3, 1, 5)],
    # as one row they do not fit into a block_size of 16
    "longer than block_size": [pair(4, 12, 12), pair(1, 15, 15), pair(15, 1, 1), pair(9, 7, 2), pair(2, 3, 14)],
}
pairs = pytest.mark.parametrize("rows", PAIRS.values(), ids=PAIRS)

def both_ways(m, rows, backward=True):
    """
    [(logps (2B,), lens (2B,), gradients of trainable parameters)], first with each completion behind its own prompt,
    then with both behind one.
    """
    apart, shared = data.collate(rows), data.collate(rows, share_prefix=True)
    results = []
    assert shared["idx"].numel() < apart["idx"].numel()
    for fn, second, batch in ((sequence_logps, "completion_mask", apart), (shared_logps, "segments", shared)):
        m.zero_grad()
        values, lens = fn(m, batch["idx"], batch[second])
        if backward:    # each completion with a weight of its own, as in a loss
            values.backward(torch.linspace(-1, 2, len(values)).to(values))
        results.append((values.detach(), lens, {n: p.grad for n, p in m.named_parameters() if p.requires_grad}))
    return results

def same(got, want, atol, rtol):
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0], atol=atol, rtol=rtol)
    assert got[2].keys() == want[2].keys() and got[2]
    for name, g in want[2].items():
        torch.testing.assert_close(got[2][name], g, atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}")

@pairs
@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_both_completions_behind_one_prompt_have_the_logps_and_gradients_of_each_behind_its_own(dtype, tol, rows):
    """
    With wrong positions, a first token predicted at the wrong place or one token seen by mistake, the numbers stay
    plausible.
    """
    apart, shared = both_ways(strong(dtype), rows)
    lens = [len(r[side]) for side in ("chosen", "rejected") for r in rows]
    assert shared[0].dtype == dtype and apart[1].tolist() == lens
    same(shared, apart, atol=5 * tol, rtol=tol)    # gradients are sums of a hundred terms of order 10

def test_the_layout_of_a_shared_prompt_is_the_example_of_its_docstring():
    """
    On paper: ab cd ef, and p q rs with padding. A rejected token's position continues from the prompt and skips the
    chosen.
    """
    positions, sees, before = shared_layout(torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 2, 2, 3, 3]]))
    assert positions.tolist() == [[0, 1, 2, 3, 2, 3], [0, 1, 1, 2, 0, 0]]
    assert before[0, 2:].tolist() == [1, 2, 1, 4] and before[1, 1:4].tolist() == [0, 0, 2]
    lines = shared_layout.__doc__.split("sees ")[-1].splitlines()[1:7]    # "a  x     ", then the second row
    for row, (start, tokens) in enumerate(((21, "abcdef"), (49, "pqrs.."))):
        shown = [[cell == "x" for cell in line.ljust(80)[start:start + 18:3]] for line in lines]
        assert [line[start - 3] for line in lines] == list(tokens)
        assert sees[row].tolist() == shown

def test_logps_by_one_prompt_equal_a_slow_double_loop():
    """Both ways may share an error, so this compares with the model itself, one text and one token at a time."""
    m, rows = strong(), PAIRS["ragged"]
    batch = data.collate(rows, share_prefix=True)
    want = []
    for side in ("chosen", "rejected"):
        for r in rows:
            log_p = m(torch.tensor([r["prompt"] + r[side]]))[0].log_softmax(-1)
            want.append(sum(log_p[len(r["prompt"]) - 1 + t, token].item() for t, token in enumerate(r[side])))
    assert shared_logps(m, batch["idx"], batch["segments"])[0].tolist() == pytest.approx(want, abs=1e-3, rel=1e-5)

def test_equal_completions_have_equal_logps():
    """The same tokens follow the same prompt. If a rejected token's position is its column, its log-probs differ."""
    batch = data.collate([SAME], share_prefix=True)
    chosen, rejected = shared_logps(strong(), batch["idx"], batch["segments"])[0]
    assert chosen.item() == pytest.approx(rejected.item(), abs=1e-5)

@pytest.mark.parametrize("mode", MODES)
def test_with_adapters_on_and_off_it_is_the_same_too(mode):
    """
    The policy has adapters on and the reference off. An adapter that acts on rows instead of tokens would tell the
    layouts apart.
    """
    plain_model, m, g = strong(), add_adapters(strong(), mode, 3), torch.Generator().manual_seed(7)
    for p in adapter_state_dict(m).values():
        p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    apart, shared = both_ways(m, PAIRS["ragged"])
    assert all(".mlp.down." in name or ".mlp.up." in name for name in shared[2])
    assert all(g is not None for g in shared[2].values())
    same(shared, apart, atol=5e-5, rtol=1e-5)
    with adapters_off(m), torch.no_grad():
        off = both_ways(m, PAIRS["ragged"], backward=False)[1]
        base = both_ways(plain_model, PAIRS["ragged"], backward=False)[0]
    torch.testing.assert_close(off[0], base[0], atol=1e-5, rtol=1e-5)
    assert (off[0] - shared[0]).abs().max() > 0.1

@pytest.mark.parametrize("dtype, rtol", [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_under_autocast_it_is_the_same_within_the_dtypes_digits(dtype, rtol):
    """A mask in another dtype than the states raises under autocast only. Sums must be float32 there."""
    m = strong()
    with torch.autocast("cpu", dtype):
        apart, shared = both_ways(m, PAIRS["ragged"], backward=False)
    exact = both_ways(m, PAIRS["ragged"], backward=False)[1][0]
    assert shared[0].dtype == torch.float32 and not torch.equal(shared[0], exact)
    for got in (apart[0], shared[0]):
        torch.testing.assert_close(got, exact, atol=rtol, rtol=rtol)

def watched(m, monkeypatch):
    """(embeddings, states) of the next forward pass: the embeddings as leaves, the states as results."""
    leaves, states, features = [], [], m.features
    def make_leaf(module, args, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]
    m.transformer.drop.register_forward_hook(make_leaf)
    monkeypatch.setattr(m, "features", lambda *args, **how: states.append(features(*args, **how)) or states[-1])
    return leaves, states

def test_a_token_sees_its_prompt_and_its_own_completion_so_far_and_nothing_else(monkeypatch):
    """
    Attention across completions, ahead or into the padding changes few digits of a sum. The gradient shows every
    pair of tokens.
    """
    m, rows = strong(), [pair(3, 4, 2), pair(1, 2, 5), pair(4, 1, 1)]
    batch = data.collate(rows, share_prefix=True)
    leaves, states = watched(m, monkeypatch)
    shared_logps(m, batch["idx"], batch["segments"])
    for b, row in enumerate(batch["segments"].tolist()):
        for t, segment in enumerate(row):
            if segment == 3:
                continue    # attention of the padding itself does not matter
            g, = torch.autograd.grad(states[0][b, t].square().sum(), leaves[0], retain_graph=True)
            seen = [[i, s] for i, s in g.abs().sum(-1).nonzero().tolist()]
            assert seen == [[b, s] for s in range(t + 1) if row[s] in (0, segment)], (b, t)

def test_a_completions_logp_has_no_gradient_from_the_other_one_or_the_padding(monkeypatch):
    """
    The states may be right and the wrong one be read: the chosen's last state predicts nothing, and not the first
    rejected token.
    """
    m, rows = strong(), PAIRS["ragged"]
    batch, B = data.collate(rows, share_prefix=True), len(rows)
    leaves, _ = watched(m, monkeypatch)
    values, _ = shared_logps(m, batch["idx"], batch["segments"])
    for k, value in enumerate(values):
        g, = torch.autograd.grad(value, leaves[0], retain_graph=True)
        row, side = rows[k % B], 1 + k // B
        inputs = [s for s, segment in enumerate(batch["segments"][k % B].tolist()) if segment in (0, side)]
        seen = g.abs().sum(-1).nonzero().tolist()
        assert seen == [[k % B, s] for s in inputs[:-1]], row    # the last token predicts nothing

def test_what_stands_under_the_padding_does_not_matter():
    """Padding is token 0, which is a valid token. A sum over it, or attention to it, gives a plausible number."""
    m, batch = strong(), data.collate(PAIRS["ragged"], share_prefix=True)
    wide = {"idx": F.pad(batch["idx"], (0, 3)), "segments": F.pad(batch["segments"], (0, 3), value=3)}
    want = shared_logps(m, batch["idx"], batch["segments"])
    for seed in (1, 2):
        junk = torch.randint(50, wide["idx"].shape, generator=torch.Generator().manual_seed(seed))
        got = shared_logps(m, torch.where(wide["segments"] == 3, junk, wide["idx"]), wide["segments"])
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)

def test_a_pair_has_the_same_logps_in_any_batch():
    """The mask belongs to one batch. If one row's lengths were used for all, the first row would still be right."""
    m, rows = strong(), PAIRS["ragged"]
    together = both_ways(m, rows, backward=False)[1][0].view(2, -1)
    for b, row in enumerate(rows):
        torch.testing.assert_close(both_ways(m, [row], backward=False)[1][0], together[:, b], atol=1e-5, rtol=1e-5)

def test_each_layout_goes_to_its_own_way():
    """Training calls batch_logps, which returns the chosen above the rejected in either layout."""
    m, rows = strong(), PAIRS["ragged"]
    for share_prefix, want in zip((False, True), both_ways(m, rows, backward=False), strict=True):
        values, lens = batch_logps(m, data.collate(rows, share_prefix))
        assert torch.equal(values, want[0]) and torch.equal(lens, want[1])
    singles = [{k: r[k] for k in ("prompt", "chosen")} for r in rows]
    torch.testing.assert_close(batch_logps(m, data.collate(singles))[0], values[:len(rows)], atol=1e-5, rtol=1e-5)
