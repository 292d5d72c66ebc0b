"""Tests of study/bandit.py: in an exact world each loss reaches its paper's optimum, computed without the loss."""
import math

import pytest
import torch

from losses import LOSSES, Pairs
from study import bandit, places
from study.bandit import bradley_terry, deterministic, kl, rlhf_optimum, train

REF, REWARD = bandit.world()
FULL = REF.exp()[:, :, None] * REF.exp()[:, None, :]

def two_answers(ref=(0.5, 0.5)):
    """(reference, preference, weights) of one prompt with two answers. The first is always preferred."""
    ref = torch.tensor([ref], dtype=torch.float64).log()
    preference = deterministic(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    return ref, preference, torch.ones(1, 2, 2, dtype=torch.float64)

def gap(policy, ref, i=0, j=1):
    """The log-ratio of answer i - that of answer j, nats."""
    return ((policy - ref)[0, i] - (policy - ref)[0, j]).item()

# ---------------------------------------------------------------------------------------------------------------------
# Bradley-Terry preferences, full coverage

@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
def test_dpo_reaches_the_rlhf_optimum(beta):
    """The theorem of the DPO paper: the policy is ref * exp(r / beta) / Z, although no reward is fitted."""
    policy = train(REF, bradley_terry(REWARD), FULL, "dpo", beta=beta)
    assert torch.allclose(policy, rlhf_optimum(REF, REWARD, beta), atol=1e-5)
    assert not torch.allclose(policy, rlhf_optimum(REF, REWARD, beta * 1.1), atol=1e-3)

@pytest.mark.parametrize("divergence, alpha", [
    ("reverse_kl", 0.5),
    ("forward_kl", 0.5),
    ("jsd", 0.5),
    ("alpha", 0.3),
    ("alpha", 0.7),
])
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_fdpo_reaches_its_own_divergences_optimum(divergence, alpha, beta):
    """A wrong sign or scale of f' gives another optimum, not a worse fit. bandit.f_optimum solves the KKT condition."""
    policy = train(REF, bradley_terry(REWARD), FULL, "fdpo", beta=beta, divergence=divergence, alpha=alpha)
    want = bandit.f_optimum(REF, REWARD, beta, divergence, alpha)
    assert torch.allclose(want.exp().sum(1), torch.ones(4, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(policy, want, atol=1e-4)
    if divergence != "reverse_kl":
        assert not torch.allclose(policy, rlhf_optimum(REF, REWARD, beta), atol=1e-2)

def test_the_kkt_solver_agrees_with_the_closed_form_and_beats_its_neighbours():
    """A wrong solver may agree with a wrong loss. The reverse KL has a closed form; the others must beat neighbors."""
    assert torch.allclose(bandit.f_optimum(REF, REWARD, 0.7, "reverse_kl"), rlhf_optimum(REF, REWARD, 0.7), atol=1e-9)
    f = {"forward_kl": lambda u: -u.log(), "jsd": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log()}
    g = torch.Generator().manual_seed(1)
    for divergence, value in f.items():
        def objective(p, f=value):
            return (p.exp() * REWARD).sum(1) - 0.7 * (REF.exp() * f((p - REF).exp())).sum(1)
        best = bandit.f_optimum(REF, REWARD, 0.7, divergence)
        for _ in range(20):
            other = (best + 0.05 * torch.randn(best.shape, generator=g, dtype=torch.float64)).log_softmax(1)
            assert (objective(other) < objective(best)).all()

@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_ipo_reaches_its_closed_form(beta):
    """pi is proportional to ref * exp(P(beats mu) / beta): with the preference itself, not with its logit."""
    policy = train(REF, bradley_terry(REWARD), FULL, "ipo", beta=beta)
    assert torch.allclose(policy, bandit.ipo_optimum(REF, bradley_terry(REWARD), REF.exp(), beta), atol=1e-5)

def test_ipo_on_three_arms_by_hand():
    """
    Always a > b > c, all drawn equally often: P(beats mu) = 5/6, 1/2, 1/6, where an arm against itself is a coin toss.

    So the log-ratios are 1 / (3 beta) apart. With beta = 1 the policy is softmax(1/3, 0, -1/3). DPO puts all mass on a.
    """
    ref = torch.full((1, 3), 1 / 3, dtype=torch.float64).log()
    uniform = torch.ones(1, 3, 3, dtype=torch.float64)
    order = deterministic(torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64))
    policy = train(ref, order, uniform, "ipo", beta=1.0)
    want = torch.tensor([[1 / 3, 0.0, -1 / 3]], dtype=torch.float64).log_softmax(1)
    assert torch.allclose(policy, want, atol=1e-6)
    assert torch.allclose(policy, bandit.ipo_optimum(ref, order, ref.exp(), 1.0), atol=1e-6)
    assert train(ref, order, uniform, "dpo", beta=1.0).exp()[0, 0] > 0.999

def test_a_reward_model_and_the_exact_tilt_give_dpos_policy():
    """Both pipelines have one optimum, also on noisy counts. PPO differs from DPO in optimization, not in its goal."""
    g = torch.Generator().manual_seed(2)
    # one win at least, so that the likelihood has a maximum
    wins = torch.poisson(8 * bradley_terry(REWARD), generator=g) + 1
    for beta in (0.5, 2.0):
        rewards = bandit.reward_model(wins, torch.ones_like(wins))
        policy = train(REF, wins, torch.ones_like(wins), "dpo", beta=beta)
        assert torch.allclose(rlhf_optimum(REF, rewards, beta), policy, atol=1e-4)
    centered = lambda r: r - r.mean(1, keepdim=True)
    assert not torch.allclose(centered(rewards), centered(REWARD), atol=0.05)

def test_robust_recovers_the_clean_optimum_from_flipped_labels():
    """Each label is flipped with probability 0.2. This pulls dpo towards the reference, but not robust."""
    clean = bradley_terry(REWARD)
    flipped = 0.8 * clean + 0.2 * (1 - clean)
    policy = train(REF, flipped, FULL, "robust", beta=1.0, label_smoothing=0.2)
    assert torch.allclose(policy, rlhf_optimum(REF, REWARD, 1.0), atol=1e-4)
    assert kl(train(REF, flipped, FULL, "dpo", beta=1.0), REF) < 0.6 * kl(policy, REF)

@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_odpo_with_a_linear_offset_ends_at_dpos_optimum_for_a_smaller_beta(beta, alpha):
    """
    On Bradley-Terry labels the offset is alpha times the reward difference of a pair, in both of its orders, so the
    policy fits a difference that is 1 + alpha times as large. With the offset's other sign it would fit a smaller one.
    """
    policy = train(REF, bradley_terry(REWARD), FULL, "odpo", beta=beta, alpha=alpha, scaling="linear")
    assert torch.allclose(policy, rlhf_optimum(REF, REWARD, beta / (1 + alpha)), atol=1e-4)

def test_odpo_with_a_log_offset_weights_each_pair_by_its_gap():
    """
    L = log(1 + gap^alpha e^-h), and contradicted labels have almost no weight. So the better answer always wins, and
    the KL grows beyond that of the linear offset.
    """
    log, linear = (train(REF, bradley_terry(REWARD), FULL, "odpo", 50, beta=1.0, scaling=scaling)
                   for scaling in ("log", "linear"))
    assert kl(log, REF) > 1.5 * kl(linear, REF)
    assert (log.argmax(1) == REWARD.argmax(1)).all()

@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_rdpo_reaches_the_optimum_of_the_reward_minus_alpha_for_each_token(alpha):
    """The paper's derivation. With the sign of the length term wrong, the optimum would pay for each token."""
    lens = torch.tensor([3.0, 9.0, 1.0, 20.0, 6.0, 12.0], dtype=torch.float64)    # of the six answers, tokens
    i, j = (~torch.eye(6, dtype=torch.bool)).nonzero(as_tuple=True)
    p, logits = (FULL * bradley_terry(REWARD))[:, i, j], REF.clone().requires_grad_()    # (X, pairs), (X, A)
    def loss():
        policy = logits.log_softmax(1)
        columns = [x.reshape(-1) for x in (policy[:, i], policy[:, j], REF[:, i], REF[:, j])]
        lengths = [lens[side].repeat(4) for side in (i, j)]
        return (p.reshape(-1) * LOSSES["rdpo"].fn(Pairs(*columns, *lengths), beta=0.8, alpha=alpha)[0]).sum()
    bandit.minimize_by_lbfgs(loss, logits, 400)
    want = rlhf_optimum(REF, REWARD - alpha * lens, 0.8)
    assert torch.allclose(logits.detach().log_softmax(1), want, atol=1e-4)

@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_alphapo_is_at_the_optimum_of_an_f_divergence_to_the_uniform_policy(alpha):
    """
    Its reward is fdpo's alpha link with a uniform reference: g(p) = A^alpha link(log(p A)) + constant, so beta counts
    A^alpha times. The optimum is solved from the KKT conditions. With alpha's sign wrong it would be another one.
    """
    policy = train(REF, bradley_terry(REWARD), FULL, "alphapo", beta=2.0, gamma_beta_ratio=0.0, alpha=alpha)
    uniform = torch.full_like(REF, -math.log(6))
    f = "forward_kl" if alpha == 1 else "alpha"
    assert torch.allclose(policy, bandit.f_optimum(uniform, REWARD, 2.0 * 6**alpha, f, alpha), atol=1e-4)

# ---------------------------------------------------------------------------------------------------------------------
# deterministic preferences

@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_cal_dpo_stops_where_a_search_finds_its_minimum(beta):
    """Two equally likely answers, the first always preferred: e^w + e^l = 2, so one number is left to search over."""
    ref, preference, weights = two_answers()
    w = torch.linspace(0.001, 0.693, 200_000, dtype=torch.float64)    # below log 2, where l is -infinity
    l, target = (2 - w.exp()).log(), 1 / (2 * beta)
    values = torch.nn.functional.softplus(l - w) + (w - target) ** 2 + (l + target) ** 2
    best = values.argmin()
    policy = train(ref, preference, weights, "cal_dpo", beta=beta)
    assert gap(policy, ref) == pytest.approx((w - l)[best].item(), abs=1e-3)
    assert gap(policy, ref) < 5 < gap(train(ref, preference, weights, "dpo", beta=beta), ref)

@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_cdpo_and_exo_stop_where_they_should(beta):
    """At h = log((1 - eps) / eps), although the reference prefers the rejected answer."""
    ref, preference, weights = two_answers((0.2, 0.8))
    for name in ("cdpo", "exo"):
        policy = train(ref, preference, weights, name, beta=beta, label_smoothing=0.1)
        assert gap(policy, ref) == pytest.approx(math.log(9) / beta, abs=1e-4)

def test_hinge_stops_at_its_margin():
    """At 1 / beta, up to one step: its gradient is constant before the margin and 0 beyond it."""
    ref, preference, weights = two_answers()
    policy = bandit.descend(ref, preference, weights, "hinge", 1000, 0.05, beta=0.5)
    assert 2.0 <= gap(policy, ref) < 2.06

@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_dpos_kl_grows_without_end_whatever_beta_and_ipo_stays(beta):
    """The IPO paper's claim: if one answer always wins, the KL penalty of DPO has no effect, whatever beta is."""
    ref, preference, weights = two_answers((0.1, 0.9))
    odds = []
    for steps in (100, 1000, 10_000):
        policy = bandit.descend(ref, preference, weights, "dpo", steps, 1 / beta ** 2, beta=beta)
        odds.append(gap(policy, ref))
    assert odds[1] > odds[0] + 1.5 / beta and odds[2] > odds[1] + 1.5 / beta
    assert gap(train(ref, preference, weights, "ipo", beta=beta), ref) == pytest.approx(1 / (2 * beta), abs=1e-5)

# ---------------------------------------------------------------------------------------------------------------------
# partial coverage, the table

def test_with_partial_coverage_mass_moves_to_answers_never_seen():
    """A likely loser falls by as many nats as an unlikely winner rises. Its mass goes to every answer, seen or not."""
    ref = torch.tensor([[0.05, 0.60, 0.35]], dtype=torch.float64).log()
    reward = torch.tensor([[2.0, -2.0, -9.0]], dtype=torch.float64)    # the answer never seen is the worst
    seen = torch.zeros(1, 3, 3, dtype=torch.float64)
    seen[0, :2, :2] = 1
    policy = train(ref, bradley_terry(reward), seen, "dpo", beta=1.0)
    assert gap(policy, ref) == pytest.approx(4.0, abs=1e-4)
    # by hand: 0.05 e^2 = 0.369, 0.60 e^-2 = 0.081, 0.35, of 0.801 in all
    assert policy.exp()[0, 2].item() == pytest.approx(0.437, abs=1e-3)
    # the RLHF optimum knows the reward and puts almost nothing there
    assert rlhf_optimum(ref, reward, 1.0).exp()[0, 2].item() < 1e-3

@pytest.mark.slow
def test_no_method_is_above_the_frontier_and_dpo_is_on_it():
    """A point above it means that the frontier, or a measure, is wrong."""
    table = {row["loss"]: row for row in bandit.rows()}
    assert all(row["below the frontier"] > -1e-4 for row in table.values())
    assert table["dpo"]["below the frontier"] < 1e-4 < table["hinge"]["below the frontier"]
    assert set(table) == {name for name, loss in LOSSES.items() if not loss.whole_batch}

def test_best_reward_inverts_the_frontier():
    """The distances to the frontier are measured from it."""
    for nats, reward in bandit.frontier(REF, REWARD, [0.3, 1.0, 3.0]):
        assert bandit.best_reward(REF, REWARD, nats) == pytest.approx(reward, abs=1e-6)

def test_no_point_of_the_picture_is_hidden():
    """kto and apo_zero end at the same point. In one panel one would cover the other; axes may cut points off."""
    pytest.importorskip("matplotlib")
    table = places.read_csv(places.RESULTS / "bandit.csv")
    table.append({"loss": "mine", "settings": "", "reward": "0.9", "kl": "3.5", "below the frontier": "0.3"})
    fig = bandit.picture(table)
    panels = {ax.get_title().split(":")[0]: ax for ax in fig.axes if ax.get_title()}
    assert set(panels) == {row["loss"] for row in table}
    for row in table:
        ax = panels[row["loss"]]
        [x], [y] = ax.lines[-1].get_data()    # drawn last, so above the others
        assert (x, y) == (float(row["kl"]), float(row["reward"]))
        assert ax.get_xlim()[0] < x < ax.get_xlim()[1] and ax.get_ylim()[0] < y < ax.get_ylim()[1]
