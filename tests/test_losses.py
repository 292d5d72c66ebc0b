"""Every loss by hand and against golden values, and properties of all entries of LOSSES."""
import json
import math
from pathlib import Path

import pytest
import torch

import losses
from losses import LOSSES, Pairs

GOLDEN = json.loads((Path(__file__).parent / "oracle" / "losses.json").read_text())
PUBLISHED = {row["loss"] for row in GOLDEN["rows"]}    # these must document a source and a start; a new loss need not

def pairs_of(c, r, c0, r0, n=(10.0,), m=(10.0,), dtype=torch.float64, gaps=None):
    """Pairs from lists. The policy's log-probs require gradients. gaps: of the rewards, 1.5 by default."""
    t = [torch.tensor(x, dtype=dtype) for x in (c, r, c0, r0, n, m)]
    t[0].requires_grad_()
    t[1].requires_grad_()
    return Pairs(*t, torch.zeros(len(c), dtype=dtype), torch.tensor(gaps or [1.5] * len(c), dtype=dtype))

def random_pairs(B=6, dtype=torch.float64, spread=5.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    c0, r0 = -40 - 20 * torch.rand(2, B, generator=g, dtype=torch.float64)
    w, l = spread * torch.randn(2, B, generator=g, dtype=torch.float64)
    n, m = torch.randint(5, 30, (2, B), generator=g).double()
    gaps = (0.2 + 3 * torch.rand(B, generator=g, dtype=torch.float64)).tolist()
    return pairs_of((c0 + w).tolist(), (r0 + l).tolist(), c0.tolist(), r0.tolist(), n.tolist(), m.tolist(), dtype, gaps)

def gradients(name, pairs, **hparams):
    logps = (pairs.policy_chosen_logps, pairs.policy_rejected_logps)
    out = LOSSES[name].fn(pairs, **hparams)[0]
    found = torch.autograd.grad(out.sum(), logps, allow_unused=True)
    return out.detach(), [torch.zeros_like(out) if g is None else g for g in found]

# ---------------------------------------------------------------------------------------------------------------------
# values

def test_dpo_by_hand():
    """beta 0.5 and log-ratios 3 and 1: h = 1, L = log(1 + 1/e) = 0.31326, rewards 1.5 and 0.5."""
    losses, chosen, rejected = LOSSES["dpo"].fn(pairs_of([-7.0], [-11.0], [-10.0], [-12.0]), beta=0.5)
    assert (losses.item(), chosen.item(), rejected.item()) == pytest.approx((math.log(1 + math.exp(-1)), 1.5, 0.5))

def test_the_reports_losses_by_hand():
    """With log-ratios 3 and 1 and beta 0.5, each value can be computed on paper: h = 1, gap 2 nats."""
    pairs = pairs_of([-7.0], [-11.0], [-10.0], [-12.0], [4.0], [5.0])
    of = lambda name, **hparams: LOSSES[name].fn(pairs, **hparams)[0].item()
    soft = lambda x: math.log1p(math.exp(-x))
    assert of("cdpo", beta=0.5, label_smoothing=0.25) == pytest.approx(0.75 * soft(1) + 0.25 * soft(-1))
    assert of("hinge", beta=0.5) == pytest.approx(0)
    assert of("hinge", beta=0.1) == pytest.approx(0.8)
    assert of("ipo", beta=0.5) == pytest.approx((2 - 1) ** 2)
    assert of("slic", delta=5.0, reg=0.1) == pytest.approx((5 + 7 - 11) + 0.7)
    assert of("sft") == pytest.approx(7 / 4)
    assert of("fdpo", beta=0.5, divergence="forward_kl") == pytest.approx(soft(0.5 * (math.exp(-1) - math.exp(-3))))
    assert of("fdpo", beta=0.5, divergence="jsd") == pytest.approx(soft(0.5 * (soft(1) - soft(3))))
    assert of("fdpo", beta=0.5, divergence="alpha", alpha=0.5) == pytest.approx(soft(math.exp(-0.5) - math.exp(-1.5)))
    assert of("fdpo", beta=0.5, divergence="reverse_kl") == pytest.approx(of("dpo", beta=0.5))

def test_lengths_offsets_and_calibration_by_hand():
    """
    The same pair, h = 1, of 4 and 5 tokens. Each sign can be wrong and still train: a length that earns reward, an
    offset that is given away, a target on the wrong side.
    """
    of = lambda name, gap=1.5, **hparams: LOSSES[name].fn(
        pairs_of([-7.0], [-11.0], [-10.0], [-12.0], [4.0], [5.0], gaps=[gap]), **hparams)[0].item()
    soft = lambda x: math.log1p(math.exp(-x))
    assert of("rdpo", beta=0.5, alpha=0.2) == pytest.approx(soft(1 - 0.2))    # one token shorter: 0.2 nats less
    assert of("odpo", math.e, beta=0.5, alpha=0.5) == pytest.approx(soft(1 - 0.5))
    assert of("odpo", 3.0, beta=0.5) == pytest.approx(math.log(1 + 3 * math.exp(-1)))
    assert of("odpo", 0.6, beta=0.5, alpha=0.5, scaling="linear") == pytest.approx(soft(1 - 0.3))
    assert of("cal_dpo", beta=0.5) == pytest.approx(soft(2) + (3 - 1) ** 2 + (1 + 1) ** 2)
    g = lambda x: 2 - 2 * math.exp(-x / 2)
    assert of("alphapo", beta=3.0, gamma_beta_ratio=0.2, alpha=0.5) == pytest.approx(
        soft(3 * (g(-7 / 4) - g(-11 / 5) - 0.2)))

@pytest.mark.parametrize("name, at_zero, hparams", [
    ("rdpo", "dpo", {"beta": 0.3}), ("odpo", "dpo", {"beta": 0.3}), ("odpo", "dpo", {"beta": 0.3, "scaling": "linear"}),
    ("alphapo", "simpo", {"beta": 1.5, "gamma_beta_ratio": 0.2})], ids=str)
def test_at_alpha_0_it_is_the_loss_that_it_extends(name, at_zero, hparams):
    """Users compare with the loss that is extended. An alpha that also scales the margin would make this unfair."""
    plain = {k: v for k, v in hparams.items() if k != "scaling"}
    (want, want_grads), (got, grads) = gradients(at_zero, random_pairs(), **plain), gradients(name, random_pairs(),
                                                                                               alpha=0.0, **hparams)
    assert torch.allclose(got, want) and all(map(torch.allclose, grads, want_grads))
    small, small_grads = gradients(name, random_pairs(), alpha=1e-6, **hparams)
    assert torch.allclose(small, want, atol=1e-4) and all(torch.allclose(a, b, atol=1e-4)
                                                          for a, b in zip(small_grads, want_grads))
    assert not torch.allclose(gradients(name, random_pairs(), alpha=0.5, **hparams)[0], want, atol=1e-2)

def test_a_shorter_chosen_completion_is_pushed_harder_by_rdpo():
    """Length is to cost reward. With the other sign the loss rewards longer answers, which is what it is to prevent."""
    short, long = (gradients("rdpo", pairs_of([-20.0], [-20.0], [-20.0], [-20.0], [n], [10.0]), alpha=0.1)[1][0].item()
                   for n in (5.0, 15.0))
    assert short < long < 0

def test_odpo_asks_more_of_a_larger_gap_and_almost_nothing_of_a_contradicted_label():
    """log of a negative gap is NaN, and one contradicted label would end a run."""
    push = lambda gap, **hparams: gradients("odpo", pairs_of([-20.0], [-20.0], [-20.0], [-20.0], gaps=[gap]),
                                            **hparams)[1][0].item()
    for scaling in ("log", "linear"):
        assert push(3.0, scaling=scaling) < push(0.5, scaling=scaling) < push(-1.0, scaling=scaling) < 0
    assert -1e-6 < push(-2.0) == push(0.0)
    assert push(-2.0, scaling="linear") == pytest.approx(-0.1 / (1 + math.exp(2)))

@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_cal_dpo_stops_slightly_beyond_its_targets(beta):
    """At w = -l = x with x = 1 / (2 beta) + sigmoid(-2 x) / 2, by fixed-point iteration: no gradient is left there."""
    x = 1 / (2 * beta)
    for _ in range(100):
        x = 1 / (2 * beta) + 1 / (1 + math.exp(2 * x)) / 2
    assert 1 / (2 * beta) < x < 1 / (2 * beta) + 0.25
    grads = gradients("cal_dpo", pairs_of([x - 20], [-x - 20], [-20.0], [-20.0]), beta=beta)[1]
    assert [g.item() for g in grads] == pytest.approx([0, 0], abs=1e-9)

@pytest.mark.parametrize("alpha", [0.25, -0.5])
def test_alphapos_reward_saturates_on_one_side(alpha):
    """Above 0 an unlikely completion has the steeper reward, below 0 a likely one. TRL's p^-alpha is the same power."""
    push = lambda mean: gradients("alphapo", pairs_of([10 * mean], [10 * mean], [-20.0], [-20.0]),
                                  alpha=alpha)[1][0].item()
    ratio = push(-4.0) / push(-1.0)
    assert ratio == pytest.approx(math.exp(3 * alpha))

golden = [row for row in GOLDEN["rows"] if row["loss"] in LOSSES]

@pytest.mark.parametrize("row", golden, ids=lambda r: f"{r['loss']}-{r['case'][:8]}")
def test_golden_values_and_gradients(row):
    """
    The formulas were written independently of losses.py, in float64, and checked against TRL where it has the loss.
    """
    case, hparams = GOLDEN["cases"][row["case"]], dict(row["hparams"])
    pairs = pairs_of(*(case[k] for k in ("c", "r", "c0", "r0", "n", "m")))
    if "kl" in hparams:
        pairs.kl_logratios = torch.full_like(pairs.chosen_lens, hparams.pop("kl"))
    pairs.reward_gaps = torch.tensor(row["gaps"]) if "gaps" in row else None
    values, (chosen, rejected) = gradients(row["loss"], pairs, **hparams)
    assert values.tolist() == pytest.approx(row["values"], rel=1e-6, abs=1e-9)
    assert chosen.tolist() == pytest.approx(row["grad_chosen"], rel=1e-6, abs=1e-9)
    assert rejected.tolist() == pytest.approx(row["grad_rejected"], rel=1e-6, abs=1e-9)

@pytest.mark.parametrize("divergence, f, constant, by_hand", [
    ("reverse_kl", lambda u: u * u.log(), 1, math.log(2)),
    ("forward_kl", lambda u: -u.log(), 0, -0.5),
    ("jsd", lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(), 0, math.log(4 / 3)),
    ("alpha", lambda u: (u**0.7 - 0.7 * u - 0.3) / (0.3 * -0.7), 0, (1 - 2**-0.3) / 0.3)])
def test_link_is_the_derivative_of_the_divergence(divergence, f, constant, by_hand):
    """
    The docstring's f is differentiated at u = pi / pi_ref. At u = 2 each value can be computed on paper. Constants
    cancel in the loss.
    """
    u = torch.tensor([0.1, 0.5, 2.0, 30.0], dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(f(u).sum(), u)
    found = losses.link(u.detach().log(), divergence, 0.3)
    assert found.tolist() == pytest.approx((slope - constant).tolist()) and found[2].item() == pytest.approx(by_hand)

def documented(expression, name):
    """The value of an expression of LOSSES, with the loss's default hyperparameters."""
    return eval(expression, {"log": math.log, "inf": math.inf}, LOSSES[name].hparams)

@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if loss.start])
def test_the_value_while_policy_equals_reference_is_the_documented_one(name):
    """It is the first number that a run prints. A wrong one means a wrong reference or another loss."""
    pairs = pairs_of([-30.0, -4.0], [-25.0, -9.0], [-30.0, -4.0], [-25.0, -9.0], [9.0, 2.0], [7.0, 3.0])
    pairs.kl_logratios = torch.zeros(2, dtype=torch.float64)
    assert LOSSES[name].fn(pairs)[0].tolist() == pytest.approx([documented(LOSSES[name].start, name)] * 2)

def test_every_published_loss_with_a_reference_documents_its_start():
    """
    With a reference the first value is a constant that can be checked. Without one it depends on the pair, and so it
    does with a term for lengths or rewards. A new loss may leave it out.
    """
    for name in PUBLISHED:
        constant = LOSSES[name].needs_ref and not LOSSES[name].needs_lens and not LOSSES[name].needs_gap
        assert bool(LOSSES[name].start) == constant, name
    assert all(loss.needs_ref for loss in LOSSES.values() if loss.start)

@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if loss.limit])
def test_the_gap_at_which_a_loss_stops_pushing_is_the_documented_one(name):
    """Readers choose beta by the documented gap, so a wrong one means a wrong beta."""
    gap = documented(LOSSES[name].limit, name)
    def push(gap):    # the derivative by the gap, when each side moves by half of it
        g_chosen, g_rejected = gradients(name, pairs_of([gap / 2 - 20.0], [-gap / 2 - 20.0], [-20.0], [-20.0]))[1]
        return (g_chosen - g_rejected).item()
    if gap == math.inf:
        assert all(push(x) < 0 for x in (0.0, 1.0, 10.0, 40.0))
    else:
        assert push(gap - 0.5) < 0 and push(gap + 0.5) >= 0

# ---------------------------------------------------------------------------------------------------------------------
# properties of every entry

DIVERGENCES = (("reverse_kl", 0.5), ("forward_kl", 0.5), ("alpha", 0.3), ("alpha", 1.0))
EVERY = [(name, {}) for name in LOSSES] + [("fdpo", {"divergence": d, "alpha": a}) for d, a in DIVERGENCES]
EVERY += [("odpo", {"scaling": "linear"}), ("alphapo", {"alpha": 1.0})]
hparams_id = lambda x: x if isinstance(x, str) else "-".join(map(str, x.values()))
every = pytest.mark.parametrize("name, hparams", EVERY, ids=hparams_id)

@every
def test_shapes_and_rewards_without_gradient(name, hparams):
    """A loss that reduces the batch, or logged rewards with a gradient, would be wrong in every average."""
    pairs = random_pairs()
    for out in LOSSES[name].fn(pairs, **hparams)[1:]:
        assert out.shape == (6,) and not out.requires_grad
    assert LOSSES[name].fn(pairs, **hparams)[0].shape == (6,)

@every
@pytest.mark.parametrize("w, l", [
    (1e4, -1e4), (-1e4, 1e4), (-1e4, -1e4), (1e4, 1e4), (-200.0, -280.0), (-280.0, -200.0)])
def test_finite_in_float32_with_finite_gradients_far_out(name, hparams, w, l):
    """A log sigmoid computed from sigmoid, or a bare exp(-x), is inf there, with a NaN gradient."""
    pairs = pairs_of([-1.5e4 + w], [-1.5e4 + l], [-1.5e4], [-1.5e4], dtype=torch.float32)
    value, grads = gradients(name, pairs, **hparams)
    assert value.isfinite().all() and all(g.isfinite().all() for g in grads)
    if w < l and not LOSSES[name].flat:    # flat by their papers' design: sigmoids of the reward, a clip, a KL
        assert any((g != 0).any() for g in grads), \
            "ordered wrongly, and nothing pulls it back; by design it is @register(flat=True)"

def test_flat_is_said_of_no_loss_that_has_a_gradient_everywhere():
    """If every loss were registered as flat, the test above would check nothing."""
    def push(name, l):
        pairs = pairs_of([-1.5e4 - l], [-1.5e4 + l], [-1.5e4], [-1.5e4], dtype=torch.float32)
        return gradients(name, pairs)[1]
    without_gradient = {name for name in PUBLISHED if not any(g.any() for g in push(name, 1e4))}
    assert without_gradient == {name for name in PUBLISHED if LOSSES[name].flat}

@every
def test_float32_agrees_with_float64(name, hparams):
    """Log-probs are sums of hundreds of nats. A formula that subtracts large numbers loses its digits in float32."""
    fn = LOSSES[name].fn
    single = random_pairs(dtype=torch.float32, spread=2.0)
    double = Pairs(*(getattr(single, f).detach().double() for f in vars(single)))    # the same rounded numbers
    assert torch.allclose(fn(single, **hparams)[0].double(), fn(double, **hparams)[0], rtol=1e-5, atol=1e-5)

@every
def test_permuting_the_batch_permutes_the_losses(name, hparams):
    """A mean or a sort over the batch inside a loss makes a pair's loss depend on the other pairs."""
    pairs, order = random_pairs(), torch.tensor([3, 1, 5, 0, 2, 4])
    moved = Pairs(*(getattr(pairs, f)[order] for f in vars(pairs)))
    before, after = LOSSES[name].fn(pairs, **hparams)[0], LOSSES[name].fn(moved, **hparams)[0]
    want = before if LOSSES[name].whole_batch else before[order]    # aot and aot_unpaired sort the batch
    assert torch.allclose(after, want)

@every
def test_needs_ref_is_true_exactly_when_the_reference_changes_the_answer(name, hparams):
    """A false needs_ref skips the reference's forward pass and trains without it."""
    pairs = random_pairs()
    other = Pairs(pairs.policy_chosen_logps, pairs.policy_rejected_logps,
                  pairs.ref_chosen_logps - 1, pairs.ref_rejected_logps + 2,
                  pairs.chosen_lens, pairs.rejected_lens, pairs.kl_logratios, pairs.reward_gaps)
    same = torch.allclose(LOSSES[name].fn(pairs, **hparams)[0], LOSSES[name].fn(other, **hparams)[0])
    assert same != LOSSES[name].needs_ref
    if not LOSSES[name].needs_ref:
        pairs.ref_chosen_logps = pairs.ref_rejected_logps = None
        LOSSES[name].fn(pairs, **hparams)

@every
def test_a_step_down_the_gradient_raises_the_chosen_against_the_rejected(name, hparams):
    """A flipped sign, or chosen and rejected swapped, trains the model to prefer the rejected completion."""
    g_chosen, g_rejected = gradients(name, pairs_of([-20.0], [-20.0], [-20.0], [-20.0]), **hparams)[1]
    assert g_chosen.item() < g_rejected.item()
    if name in PUBLISHED and name != "apo_down":    # apo_down pushes both down, the rejected one more
        assert g_chosen.item() < 0

def test_no_two_losses_have_the_same_gradients():
    """A name that is registered with another loss's function would go unnoticed in a run."""
    seen = {}
    for name in LOSSES:
        key = tuple(round(x, 6) for g in gradients(name, random_pairs())[1] for x in g.tolist())
        assert key not in seen, f"{name} is {seen[key]}"
        seen[key] = name

@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_docstrings_say_formula_source_and_every_hyperparameter(name):
    """
    Students look up a hyperparameter in the docstring. Without a line there they would not know its meaning or
    range.
    """
    doc = LOSSES[name].fn.__doc__
    assert "L = " in doc and ("arXiv:" in doc or "ericmitchell.ai" in doc)
    assert all(f"\n    {h} " in doc for h in LOSSES[name].hparams)

def test_robust_is_dpo_on_the_true_labels_in_the_mean_over_flipped_ones():
    """(1 - eps) L(h) + eps L(-h) = -log sigmoid(h) is the point of the method. With cdpo's sign it is lost."""
    true = pairs_of([-7.0], [-11.0], [-10.0], [-12.0])
    flipped = pairs_of([-11.0], [-7.0], [-12.0], [-10.0])
    robust = lambda pairs: LOSSES["robust"].fn(pairs, label_smoothing=0.2)[0]
    mean = 0.8 * robust(true) + 0.2 * robust(flipped)
    assert mean.item() == pytest.approx(LOSSES["dpo"].fn(true)[0].item())

def test_discopop_with_the_papers_tau_starts_on_the_wrong_side_of_a_hump():
    """This is why our default differs: at h = 0 the slope is positive below tau = 0.1, and nowhere from 0.12 on."""
    def slope(h, tau):
        pairs = pairs_of([10 * h - 20.0], [-20.0], [-20.0], [-20.0])
        return gradients("discopop", pairs, beta=0.1, tau=tau)[1][0].item()
    assert slope(0.0, 0.05) > 0 and slope(-0.2, 0.05) < 0 and slope(0.1, 0.05) < 0
    assert all(slope(h / 50, tau) < 0 for h in range(-100, 100) for tau in (0.12, 0.2))

def test_kto_takes_the_kl_without_gradient_and_not_below_0():
    """A negative estimate would reward leaving the reference. A gradient through the KL would be another algorithm."""
    values = []
    for kl in (-5.0, 0.0, 3.0):
        pairs = random_pairs()
        pairs.kl_logratios = torch.full((6,), kl, dtype=torch.float64, requires_grad=True)
        out = LOSSES["kto"].fn(pairs)[0]
        out.sum().backward()
        assert pairs.kl_logratios.grad is None
        values.append(out.detach())
    assert torch.equal(values[0], values[1]) and not torch.allclose(values[1], values[2])

def test_means_per_token_are_those_of_every_field():
    """Dividing the policy's sums but not the reference's gives log-ratios that depend on the length."""
    pairs = random_pairs()
    mean = pairs.per_token()
    assert torch.allclose(mean.chosen_logratios, pairs.chosen_logratios / pairs.chosen_lens)
    assert torch.allclose(mean.rejected_logratios, pairs.rejected_logratios / pairs.rejected_lens)
    for name in ("simpo", "alphapo", "orpo", "sft"):    # they take means already: the flag is refused
        assert LOSSES[name].per_token and torch.allclose(LOSSES[name].fn(mean)[0], LOSSES[name].fn(pairs)[0])
    assert sum(LOSSES[name].per_token for name in PUBLISHED) == 4
    assert torch.equal(mean.reward_gaps, pairs.reward_gaps)    # a reward belongs to a whole completion

def test_needs_gap_is_true_exactly_when_the_gaps_change_the_answer():
    """A false needs_gap trains without the rewards, a true one refuses data that would do."""
    for name, loss in LOSSES.items():
        pairs = random_pairs()
        before = loss.fn(pairs)[0]
        pairs.reward_gaps = 2 * pairs.reward_gaps
        assert torch.allclose(loss.fn(pairs)[0], before) != loss.needs_gap, name

@pytest.mark.parametrize("name, hparams", [
    ("dpo", {"beta": 0.0}),
    ("cdpo", {"label_smoothing": 0.5}),
    ("hinge", {"beta": -1.0}),
    ("ipo", {"beta": 0.0}),
    ("fdpo", {"divergence": "kl"}),
    ("fdpo", {"alpha": 0.0}),
    ("slic", {"delta": 0.0}),
    ("rdpo", {"alpha": -0.1}),
    ("odpo", {"alpha": -0.1}),
    ("odpo", {"scaling": "sqrt"}),
    ("cal_dpo", {"beta": 0.0}),
    ("alphapo", {"beta": 0.0}),
    ("alphapo", {"gamma_beta_ratio": -1.0})])
def test_a_hyperparameter_out_of_its_range_is_refused(name, hparams):
    """With beta = 0 the loss is constant, and training would do nothing without an error."""
    with pytest.raises(ValueError, match=next(iter(hparams))):
        LOSSES[name].fn(random_pairs(), **hparams)

def test_the_line_behind_the_exponential_goes_on_smoothly():
    """
    At the cap the tangent has the exponential's value and slope. A clamp has slope 0 and never corrects a badly
    wrong pair.
    """
    x = torch.tensor([29.999, 30.0, 30.001, 1e4], dtype=torch.float64, requires_grad=True)
    y = losses.exp_line(x)
    slope, = torch.autograd.grad(y.sum(), x)
    assert y[:3].tolist() == pytest.approx([math.exp(29.999), math.exp(30), math.exp(30.001)], rel=1e-5)
    assert slope.tolist() == pytest.approx([math.exp(29.999)] + [math.exp(30)] * 3, rel=1e-5)

def test_alpha_lies_between_reverse_and_forward_kl():
    """The paper's alpha: near 0 the reverse KL, at 1 the forward KL. TRL's alpha is mirrored."""
    grads = lambda **hparams: torch.stack(gradients("fdpo", random_pairs(spread=1.0), **hparams)[1])
    assert torch.allclose(grads(divergence="alpha", alpha=1e-6), grads(divergence="reverse_kl"), atol=1e-5)
    assert torch.allclose(grads(divergence="alpha", alpha=1.0), grads(divergence="forward_kl"), atol=1e-9)
