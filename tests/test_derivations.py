"""
Tests of docs/derivations.md: every step of the theory, by the project's own functions, and the page against the code.

Most of them stand in the exact world of study/bandit.py, where a sum over all answers replaces sampling. One prompt has
answers i with log-probs `logits.log_softmax(1)`, reference `REF` and reward `REWARD`, (X, A) each.
"""
import ast
import math
import re
from pathlib import Path

import pytest
import torch

from loop import EarlyStopping
from losses import LOSSES, Pairs, link, log_ratios
from rlhf import formulas, train_reward
from study import bandit, online
from study.bandit import bradley_terry, deterministic, expected_loss, ipo_optimum, rlhf_optimum

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "derivations.md").read_text()
REF, REWARD = bandit.world()
POLICY = (REF + 1.5 * REWARD.flip(1)).log_softmax(1)          # neither the reference nor an optimum
FULL = REF.exp()[:, :, None] * REF.exp()[:, None, :]          # pairs of the reference's answers, (X, A, A)
DIFFERENCES = REWARD[:, :, None] - REWARD[:, None, :]         # r_i - r_j, (X, A, A)
I, J = (~torch.eye(6, dtype=torch.bool)).nonzero(as_tuple=True)    # all i != j of six answers

def random_logits(n=1, seed=0):
    """n random tables of logits like REF's."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(REF.shape, generator=g, dtype=torch.float64) for _ in range(n)]

def gradient(fn, at):
    """The gradient of fn, a function of one tensor -> (), at a tensor."""
    at = at.detach().clone().requires_grad_()
    return torch.autograd.grad(fn(at), at)[0]

def pairs_of(w, l, **more):
    """Pairs with these log-ratios, numbers or tensors (B,): the reference's log-probs are -3 and -4."""
    w, l = torch.as_tensor(w, dtype=torch.float64).reshape(-1), torch.as_tensor(l, dtype=torch.float64).reshape(-1)
    ones = torch.ones_like(w)
    return Pairs(w - 3, l - 4, -3 * ones, -4 * ones, ones, ones, **more)

def loss_at(gap, name, **hparams):
    """The losses (B,) of pairs whose gaps w - l are these. It depends on the gap alone, so one half goes to each."""
    return LOSSES[name].fn(pairs_of(0.5 * gap, -0.5 * gap), **hparams)[0]

def between(table):
    """table_i - table_j for all pairs: (X, A) -> (X, A, A)."""
    return table[:, :, None] - table[:, None, :]

# ---------------------------------------------------------------------------------------------------------------------
# one objective, one optimum

@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_the_objective_is_a_constant_minus_a_kl_to_the_optimum(beta):
    """
    That the optimum is ref * exp(r / beta) / Z is often shown by setting a derivative to 0, which finds a minimum too.
    With the KL the other way round, or beta in the wrong place, the identity fails for every policy but the optimum.
    """
    best = rlhf_optimum(REF, REWARD, beta)
    log_z = (REF + REWARD / beta).logsumexp(1)                                                  # (X,)
    for policy in (x.log_softmax(1) for x in random_logits(5)):
        p = policy.exp()
        objective = (p * REWARD).sum(1) - beta * (p * (policy - REF)).sum(1)                    # (X,)
        to_the_optimum = (p * (policy - best)).sum(1)                                           # KL(policy || best)
        assert torch.allclose(objective, beta * log_z - beta * to_the_optimum, atol=1e-10)
        assert (to_the_optimum > 0.01).all()

def test_a_reward_model_learns_differences_and_nothing_else():
    """
    A reward model's absolute values have no meaning: a constant per prompt changes no loss. The slope in a margin is
    sigmoid(margin) - P, so that the minimum is at the true difference, and not at infinity as for a label of 1.
    """
    mask = torch.tensor([[False, True]]).repeat(2, 1)
    def mean_loss(scores, chosen, rejected):    # of one pair, scores (A,), by the project's function
        batch = {"idx": torch.tensor([[0, chosen], [0, rejected]]), "completion_mask": mask}
        return train_reward.pair_loss(lambda idx: scores[idx], batch)[0]
    for x, scores in enumerate((REWARD, REWARD + 5, POLICY)):                                   # prompts 0, 1, 2
        preference = bradley_terry(REWARD)[x]
        def over_pairs(s, p=preference):
            return sum(p[i, j] * mean_loss(s, i, j) for i, j in zip(I.tolist(), J.tolist()))
        margins = scores[x][:, None] - scores[x][None, :]
        want = (margins.sigmoid() - preference).sum(1)
        assert torch.allclose(gradient(over_pairs, scores[x]), want, atol=1e-5)
        assert (want.abs().max() < 1e-9) == (x < 2)
        assert torch.allclose(over_pairs(scores[x]), over_pairs(scores[x] - 7), atol=1e-4)

@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_the_normalizer_cancels_in_dpo(beta):
    """
    The implicit reward beta * log-ratio is not the reward: it lacks beta log Z, another number for each prompt. Only
    the margin of a pair is right. A plus sign in the margin would double log Z instead of canceling it.
    """
    best, log_z = rlhf_optimum(REF, REWARD, beta), (REF + REWARD / beta).logsumexp(1)
    columns = [x.reshape(-1) for x in (best[:, I], best[:, J], REF[:, I], REF[:, J])]
    pairs = Pairs(*columns, *[torch.ones(len(columns[0]))] * 2)
    differences = DIFFERENCES[:, I, J].reshape(-1)
    assert torch.allclose(log_ratios(pairs, beta)[2], differences, atol=1e-10)
    losses, chosen_rewards, _ = LOSSES["dpo"].fn(pairs, beta=beta)
    assert torch.allclose(losses, -torch.nn.functional.logsigmoid(differences), atol=1e-10)
    missing = REWARD[:, I].reshape(-1) - chosen_rewards
    assert torch.allclose(missing, (beta * log_z).repeat_interleave(len(I))) and log_z.std() > 0.1
    loss = lambda logits: expected_loss(logits, REF, bradley_terry(REWARD), FULL, "dpo", beta=beta)
    assert gradient(loss, best).abs().max() < 1e-10 < 1e-3 < gradient(loss, REF).abs().max()
    assert all(loss(x) > loss(best) for x in random_logits(5))

@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_gradient_of_dpo_is_a_weight_times_a_difference(beta):
    """
    Beta stands in front of the gradient as well as in h. And the softmax's terms cancel: the logits of all other
    answers do not move, so that their probability changes by normalization alone.
    """
    one_pair = torch.zeros(4, 6, 6, dtype=torch.float64)
    one_pair[2, 1, 4] = 1                                                                       # prompt 2: 1 beats 4
    found = gradient(lambda x: expected_loss(x, REF, one_pair, torch.ones_like(FULL), "dpo", beta=beta), POLICY)
    gap = (POLICY - REF)[2, 1] - (POLICY - REF)[2, 4]
    want = torch.zeros_like(REF)
    want[2, 1], want[2, 4] = -beta * torch.sigmoid(-beta * gap), beta * torch.sigmoid(-beta * gap)
    assert torch.allclose(found, want, atol=1e-12)

# ---------------------------------------------------------------------------------------------------------------------
# other divergences

def best_of_two(f, beta, gap):
    """The log-ratios (2,) of the policy with the highest E[r] - beta D_f, by search; r = (gap, 0), ref = (1/2, 1/2)."""
    z = torch.cat([torch.linspace(-20, 20, 400_001, dtype=torch.float64), torch.tensor([math.inf])])
    u = 2 * torch.stack([z.sigmoid(), (-z).sigmoid()])                                          # (2, N)
    return u[:, (u[0] / 2 * gap - beta * f(u).mean(0)).argmax()].log()

def test_a_finite_slope_at_0_leaves_answers_out():
    """
    Any f-divergence looks possible in DPO. With chi-squared, f'(0) = -1: the best policy drops an answer, and a margin
    is at most 2 beta, whatever the rewards. chipo adds u log u, and then the margin is the difference of the rewards.
    """
    beta, chi_squared = 1.0, lambda u: (u - 1) ** 2 / 2
    w, l = best_of_two(chi_squared, beta, 1.5).tolist()
    assert beta * (math.exp(w) - math.exp(l)) == pytest.approx(1.5, abs=1e-3)    # f' = u - 1 still works
    gap = 3.0
    w, l = best_of_two(chi_squared, beta, gap).tolist()
    nu = gap - beta * (math.exp(w) - 1)
    assert l == -math.inf and beta * math.exp(w) == pytest.approx(2 * beta) and 0 <= nu - beta
    mixed = best_of_two(lambda u: chi_squared(u) + torch.xlogy(u, u), beta, gap)
    assert mixed.isfinite().all()
    _, chosen_rewards, rejected_rewards = LOSSES["chipo"].fn(pairs_of(*mixed), beta=beta)
    assert (chosen_rewards - rejected_rewards).item() == pytest.approx(gap, abs=1e-3)
    for divergence in ("reverse_kl", "forward_kl", "jsd", "alpha"):
        slopes = link(torch.tensor([-10.0, -100, -1e4, -1e8]), divergence, 0.5)
        assert (slopes.diff() < -80).all(), divergence    # f' has no lower bound as u falls to 0

F = {    # divergence, alpha -> f(u), written down apart from the code
    ("reverse_kl", 0.5): lambda u: u * u.log(),
    ("forward_kl", 0.5): lambda u: -u.log(),
    ("jsd", 0.5): lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    ("alpha", 0.3): lambda u: (u ** 0.7 - 0.7 * u - 0.3) / (0.3 * -0.7),
}

@pytest.mark.parametrize("divergence, alpha", F)
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_nu_and_constants_cancel_between_two_completions(divergence, alpha, beta):
    """
    A link with a wrong sign or scale still gives a loss that falls. The right one is the derivative of f, up to a
    constant, and turns the log-ratios of the best policy into rewards minus nu, which differs between prompts.
    """
    x = torch.linspace(-4, 3, 50, dtype=torch.float64)
    slope = gradient(lambda u: F[divergence, alpha](u).sum(), x.exp())
    assert (slope - link(x, divergence, alpha)).std() < 1e-12
    best = bandit.f_optimum(REF, REWARD, beta, divergence, alpha)
    assert torch.allclose(best.exp().sum(1), torch.ones(4, dtype=torch.float64))
    implicit = beta * link(best - REF, divergence, alpha)                                       # (X, A)
    assert torch.allclose(between(implicit), DIFFERENCES, atol=1e-7)
    nu = REWARD - implicit
    assert nu.std(1).max() < 1e-7 < 0.01 < nu.mean(1).std()
    if divergence == "reverse_kl":
        assert torch.allclose(nu.mean(1), beta * (REF + REWARD / beta).logsumexp(1), atol=1e-7)
    loss = lambda logits: expected_loss(logits, REF, bradley_terry(REWARD), FULL, "fdpo", beta=beta,
                                        divergence=divergence, alpha=alpha)
    assert gradient(loss, best).abs().max() < 1e-8 and all(loss(x) > loss(best) for x in random_logits(3))

# ---------------------------------------------------------------------------------------------------------------------
# where a pair rests

RESTS = {    # loss -> h at rest, as a function of P, the share of labels for the first completion
    "dpo": lambda p: math.log(p / (1 - p)),
    "cdpo": lambda p: math.log((0.9 * p + 0.1 * (1 - p)) / (0.1 * p + 0.9 * (1 - p))),
    "robust": lambda p: math.log((p - 0.1) / (0.9 - p)),
    "hinge": lambda p: 1.0,
    "ipo": lambda p: p - 0.5,
}

@pytest.mark.parametrize("name", RESTS)
@pytest.mark.parametrize("p", [0.6, 0.75, 0.85])
def test_where_a_pair_rests_if_a_share_p_of_its_labels_agrees(name, p):
    """
    The usual table of losses shows one label. Drawn labels pull both ways, and only the balance decides. The hinge
    ignores by how much an answer is better, ipo measures it by P and not by logit P, and robust goes beyond dpo.
    """
    beta = 0.4
    hparams = {"beta": beta} | ({"label_smoothing": 0.1} if name in ("cdpo", "robust") else {})
    gap = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    both = p * loss_at(gap, name, **hparams) + (1 - p) * loss_at(-gap, name, **hparams)
    assert beta * gap[both.argmin()].item() == pytest.approx(RESTS[name](p), abs=1e-3)

@pytest.mark.parametrize("eps", [0.05, 0.3])
def test_cdpo_is_dpo_with_wrong_labels_and_robust_undoes_them(eps):
    """
    The two differ in one sign, and do the opposite: cdpo adds the noise to the loss of clean labels, robust removes it
    from the loss of noisy ones. The one in the other's place counts the noise twice.
    """
    gap = torch.linspace(-30, 30, 61, dtype=torch.float64)
    dpo = lambda gap: loss_at(gap, "dpo", beta=0.3)
    cdpo = lambda gap: loss_at(gap, "cdpo", beta=0.3, label_smoothing=eps)
    robust = lambda gap: loss_at(gap, "robust", beta=0.3, label_smoothing=eps)
    assert torch.allclose(cdpo(gap), (1 - eps) * dpo(gap) + eps * dpo(-gap), atol=1e-12)
    assert torch.allclose((1 - eps) * robust(gap) + eps * robust(-gap), dpo(gap), atol=1e-12)

@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_ipos_optimum_has_the_win_rate_for_its_reward(beta):
    """
    The targets of the pairs contradict each other, so no pair rests at its own. The least squares solution is the
    optimum of step 1 with another reward, a probability: it stays finite where the better answer always wins.
    """
    for preference in (bradley_terry(REWARD), deterministic(REWARD)):
        best = ipo_optimum(REF, preference, REF.exp(), beta)
        win_rate = (preference * REF.exp()[:, None, :]).sum(2)                                  # (X, A) against REF
        assert torch.allclose(best, rlhf_optimum(REF, win_rate, beta), atol=1e-12)
        loss = lambda logits, p=preference: expected_loss(logits, REF, p, FULL, "ipo", beta=beta)
        assert gradient(loss, best).abs().max() < 1e-9 / beta ** 2
        assert all(loss(x) > loss(best) for x in random_logits(3))
        gaps = between(best - REF)
        assert gaps.max() < 1 / beta and (gaps - (preference - 0.5) / beta).abs().max() > 0.05

@pytest.mark.parametrize("share, rises", [(0.7, True), (0.55, False), (0.2, False)])
def test_kto_is_linear_in_the_sigmoid_and_has_no_resting_point(share, rises):
    """
    It looks like a logistic loss, which would rest where the sigmoid is the share of good labels. It is linear in the
    sigmoid, so a completion rises or falls without end. What decides is the weighted majority: here weights 1 and 1.5.
    """
    beta, kl = 0.5, torch.full((9,), 0.8, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-3.2, 4.8, 9, dtype=torch.float64, requires_grad=True)    # kl is the one in the middle
    # both sides of a pair are the same completion, once with each label
    losses = LOSSES["kto"].fn(pairs_of(x, x, kl_logratios=kl), beta=beta, desirable_weight=2 * share,
                              undesirable_weight=2 * (1 - share) * 1.5)[0]
    v = torch.sigmoid(beta * (x - 0.8))
    assert torch.allclose(losses, share * (1 - v) + (1 - share) * 1.5 * v)
    slopes, of_kl = torch.autograd.grad(losses.sum(), (x, kl), allow_unused=True)
    assert torch.allclose(slopes, beta * v * (1 - v) * ((1 - share) * 1.5 - share)) and of_kl is None
    assert ((slopes < 0) == rises).all() and slopes.abs().argmax() == 4

def test_a_policy_rests_under_kto_where_completions_compete():
    """
    Both completions are pushed up, 7 * 4 > 3 and 3 * 4 > 7, and one of them ends below the reference: their
    probabilities sum to 1. Without this competition both would rise without end.
    """
    ref = torch.zeros(1, 2, dtype=torch.float64).log_softmax(1)
    preference = torch.tensor([[[0.5, 0.7], [0.3, 0.5]]], dtype=torch.float64)
    weights = torch.ones(1, 2, 2, dtype=torch.float64)
    how = dict(beta=1.0, desirable_weight=4.0, undesirable_weight=1.0)
    policy = bandit.train(ref, preference, weights, "kto", **how)
    slope = gradient(lambda z: bandit.expected_loss(z, ref, preference, weights, "kto", **how), policy)
    x = (policy - ref)[0]
    assert slope.abs().max() < 1e-6 and 0.5 < x[0] < 0.6 and -1.5 < x[1] < -1.4

# ---------------------------------------------------------------------------------------------------------------------
# what beta and early stopping do

@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_beta_scales_the_target_and_the_gradient(beta):
    """
    Beta is taken for the strength of a penalty alone. In dpo and hinge a larger beta also pushes harder at the start,
    in proportion; in ipo it pushes less hard.
    """
    gap = torch.linspace(-3, 3, 13, dtype=torch.float64)
    assert torch.allclose(loss_at(gap, "dpo", beta=beta), loss_at(beta * gap, "dpo", beta=1.0))
    slope = lambda name: gradient(lambda gap: loss_at(gap, name, beta=beta).sum(), torch.zeros(1, dtype=torch.float64))
    assert slope("dpo").item() == pytest.approx(-beta / 2) and slope("hinge").item() == pytest.approx(-beta)
    assert slope("ipo").item() == pytest.approx(-1 / beta)

TIME = 6.0    # of gradient descent: steps times learning rate

def gap_after(beta, steps=120):
    """The gap of a prompt with two answers after gradient descent on dpo, where the first always wins."""
    ref = torch.tensor([[0.3, 0.7]], dtype=torch.float64).log()
    label = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    policy = bandit.descend(ref, label, torch.ones_like(label), "dpo", steps, TIME / steps, beta=beta)
    return between(policy - ref)[0, 0, 1].item()

def test_after_a_finite_time_the_gap_is_largest_for_the_beta_that_has_reached_h_2():
    """
    "A larger beta stays closer" is true of the optimum. A pair with one label has none: while h is below 2, a larger
    beta goes farther. Which side a run is on depends on its learning rate and its number of updates.
    """
    betas = [math.sqrt((h + math.exp(h) - 1) / 2 / TIME) for h in (0.5, 1.0, 2.0, 3.0, 4.0)]
    gaps = [gap_after(beta) for beta in betas]
    assert [beta * gap for beta, gap in zip(betas, gaps)] == pytest.approx([0.5, 1.0, 2.0, 3.0, 4.0], rel=0.01)
    assert gaps[0] < gaps[1] < gaps[2] > gaps[3] > gaps[4]

@pytest.mark.parametrize("share", [0.6, 0.9, 1.0])
def test_early_stopping_keeps_the_gap_that_the_validation_labels_ask_for(share):
    """
    Training on one label never ends. The validation loss of pairs with drawn labels is lowest at h = logit(P), which is
    the resting point of dpo on such labels. Where all validation labels agree, it falls to the end of training.
    """
    beta, stopper, gap, gaps = 0.5, EarlyStopping(patience=5), torch.zeros(1, dtype=torch.float64), []
    for step in range(200):
        value = share * loss_at(gap, "dpo", beta=beta) + (1 - share) * loss_at(-gap, "dpo", beta=beta)
        stopper.update(value.item(), step)
        gaps.append(gap.item())
        if stopper.stop:
            break
        gap = gap - 0.4 * gradient(lambda gap: loss_at(gap, "dpo", beta=beta).sum(), gap)
    if share == 1:
        assert stopper.best_step == 199 and not stopper.stop
    else:
        assert stopper.stop and beta * gaps[stopper.best_step] == pytest.approx(RESTS["dpo"](share), abs=0.05)
        assert gaps[-1] > gaps[stopper.best_step]

# ---------------------------------------------------------------------------------------------------------------------
# policy gradients

def grad_logps(logits):
    """d log policy(i) / d logits(j) of each prompt, by autograd: (X, A, A)."""
    one = lambda row: torch.autograd.functional.jacobian(lambda z: z.log_softmax(0), row)
    return torch.stack([one(row) for row in logits])

def test_a_baseline_changes_no_expected_gradient():
    """
    A baseline of the prompt is free. One that depends on the answer is not: half of the answer's own reward as its
    baseline halves the gradient.
    """
    p, jacobian = POLICY.exp(), grad_logps(POLICY)
    mean = lambda scores: torch.einsum("xi,xi,xij->xj", p, scores, jacobian)    # E[score * grad log policy]
    exact = gradient(lambda logits: (logits.softmax(1) * REWARD).sum(), POLICY)
    baseline = torch.tensor([[3.0], [-1.0], [0.0], [10.0]], dtype=torch.float64)
    for scores in (REWARD, REWARD - baseline):
        assert torch.allclose(mean(scores), exact, atol=1e-12)
        assert torch.allclose(online.policy_gradient(POLICY, scores), exact, atol=1e-12)
    assert torch.allclose(mean(REWARD - 0.5 * REWARD), exact / 2, atol=1e-12) and exact.abs().max() > 0.05

@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_with_the_kl_in_the_reward_the_optimum_is_where_all_scores_are_equal(beta):
    """
    The penalty depends on the policy, and one would differentiate it too. That term has mean 0. At the optimum of step
    1 each answer has the score beta log Z: no advantage is left, sampled or not.
    """
    mask = torch.tensor([[False, True, True, False], [True, True, True, True]])
    logps, ref_logps = (x * mask for x in torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0)))
    sums = formulas.token_rewards(torch.tensor([2.0, -1.0]), logps, ref_logps, mask, beta).sum(1)
    assert torch.allclose(sums, torch.tensor([2.0, -1.0]) - beta * (logps - ref_logps).sum(1), atol=1e-5)
    one = torch.ones(6, 1, dtype=torch.bool)    # answers of one token
    scores = lambda policy: torch.stack([
        formulas.token_rewards(REWARD[x], policy[x][:, None], REF[x][:, None], one, beta)[:, 0] for x in range(4)])
    exact = gradient(lambda z: (z.softmax(1) * (REWARD - beta * (z.log_softmax(1) - REF))).sum(), POLICY)
    assert torch.allclose(online.policy_gradient(POLICY, scores(POLICY)), exact, atol=1e-12)
    log_z = (REF + REWARD / beta).logsumexp(1, keepdim=True)
    assert torch.allclose(scores(rlhf_optimum(REF, REWARD, beta)), (beta * log_z).expand(4, 6), atol=1e-10)

def test_the_ratio_corrects_for_the_old_policy_and_the_clip_stops_it():
    """
    The minimum stops only the side that the advantage asks for. With a maximum, or a clip alone, a step that went wrong
    would keep its gradient of 0. The clipped objective never exceeds the unclipped one.
    """
    old, scores = POLICY, REWARD - REWARD.mean(1, keepdim=True)
    on_old = lambda z: (old.exp() * (z.log_softmax(1) - old).exp() * scores).sum()
    for z in (old, *random_logits(2)):
        assert torch.allclose(gradient(on_old, z), online.policy_gradient(z, scores), atol=1e-12)
    clipped = lambda z: -(old.exp() * formulas.clipped_policy_loss((z.log_softmax(1) - old).exp(), scores, 0.2)).sum()
    assert torch.allclose(gradient(clipped, old), gradient(on_old, old), atol=1e-12)
    ratio = torch.tensor([0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 2.0], dtype=torch.float64)
    slope = lambda a: gradient(lambda r: -formulas.clipped_policy_loss(r, torch.tensor(a), 0.2).sum(), ratio)
    assert slope(2.0).tolist() == [2, 2, 2, 2, 2, 0, 0] and slope(-2.0).tolist() == [0, 0, -2, -2, -2, -2, -2]
    for a in (2.0, -2.0):
        assert (-formulas.clipped_policy_loss(ratio, torch.tensor(a), 0.2) <= ratio * a + 1e-12).all()

@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_gae_is_a_sum_of_errors_and_unbiased_if_the_values_are_exact(lam):
    """
    The recursion runs backwards and is easily one token off. Lambda moves nothing in expectation if the values are
    exact: it weighs their errors against the noise of later rewards.
    """
    g, gamma = torch.Generator().manual_seed(1), 0.9
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    rewards, values = draw(2, 6) * mask, draw(2, 6) * mask
    found = formulas.gae(rewards, values, mask, gamma, lam)
    for b, n in enumerate((6, 3)):
        following = [*values[b, 1:n].tolist(), 0.0]
        errors = [rewards[b, t].item() + gamma * following[t] - values[b, t].item() for t in range(n)]
        want = [sum((gamma * lam) ** (s - t) * errors[s] for s in range(t, n)) for t in range(n)]
        assert found[b].tolist() == pytest.approx(want + [0] * (6 - n))
        if lam == 1:
            returns = [sum(gamma ** (s - t) * rewards[b, s].item() for s in range(t, n)) for t in range(n)]
            assert found[b, :n].tolist() == pytest.approx([returns[t] - values[b, t].item() for t in range(n)])
    # all nine answers of two tokens: the first by p (3,), the second by q (3, 3) given the first
    p, q, first, second = draw(3).softmax(0), draw(3, 3).softmax(1), draw(3), draw(3, 3)
    later = (q * second).sum(1)                                                                 # (3,) V after a token
    value = (p * (first + later)).sum()                                                         # V of the prompt
    rewards = torch.stack([first[:, None].expand(3, 3), second], -1).view(9, 2)
    values = torch.stack([value.expand(9), later.repeat_interleave(3)], 1)
    advantages = formulas.gae(rewards, values, torch.ones(9, 2, dtype=torch.bool), 1.0, lam)[:, 0].view(3, 3)
    assert torch.allclose((q * advantages).sum(1), first + later - value, atol=1e-12)

def test_a_group_mean_shrinks_advantages_and_the_std_forgets_their_unit():
    """
    The mean holds the completion's own return, which a baseline must not. It costs a factor (k - 1) / k and no bias.
    After the division, rewards ten times as large give the same update.
    """
    returns = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in (2, 3, 4):
        found = formulas.group_advantages(returns, k, std=False)
        assert torch.allclose(found, (k - 1) / k * formulas.leave_one_out(returns, k), atol=1e-12)
        divided = formulas.group_advantages(returns, k, std=True)
        assert torch.allclose(formulas.group_advantages(10 * returns - 3, k, std=True), divided, atol=1e-2)
        deviations = divided.view(-1, k).std(1, correction=0)
        assert torch.allclose(deviations, torch.ones_like(deviations), atol=1e-2)
    descent = -gradient(lambda logits: online.group_loss(logits, REF, REWARD, "dr_grpo", k=3), POLICY)
    assert torch.allclose(descent, 2 / 3 * online.policy_gradient(POLICY, REWARD), atol=1e-6)

def test_the_kl_in_the_loss_has_the_gradient_of_its_slope():
    """
    A good estimate of the KL need not have its gradient: k1 is unbiased and has none, k3 has that of the KL the other
    way round. Only k2, the biased one, has the gradient of KL(policy || reference).
    """
    one = torch.ones(1, 1, dtype=torch.bool)
    def mean_kl_loss(logits, estimator):
        logps = logits.log_softmax(1)
        values = [[formulas.kl_loss(x.view(1, 1), y.view(1, 1), one, "sums", estimator) for x, y in zip(*rows)]
                  for rows in zip(logps, REF)]
        return (logps.detach().exp() * torch.stack([torch.stack(row) for row in values])).sum()
    reverse = online.kl_gradient(POLICY, REF)
    forward = gradient(lambda z: (REF.exp() * (REF - z.log_softmax(1))).sum(), POLICY)
    for estimator, want in (("k1", 0 * reverse), ("k2", reverse), ("k3", forward)):
        assert torch.allclose(gradient(lambda z, e=estimator: mean_kl_loss(z, e), POLICY), want, atol=1e-12), estimator
    assert (reverse - forward).abs().max() > 0.1

def test_grpo_in_pairs_starts_in_the_direction_of_dpo():
    """
    "GRPO is DPO" holds for the expected gradient of the first update alone: two completions of one length, drawn from
    the reference, the better one chosen. Later DPO weighs a pair by sigmoid(-h), and the two directions differ.
    """
    beta, n, unit = 1.5, 3, 1e4    # rewards so large that the 1e-4 added to the std does not count
    better = deterministic(REWARD)                                                              # (X, A, A)
    def gradients(policy):         # of the sum over prompts, for pairs that the policy draws
        pairs = policy.exp()[:, :, None] * policy.exp()[:, None, :]                             # (X, A, A)
        # expected_loss is a mean over the orders i, j where i is better. Each drawn pair is one, or its mirror image
        drawn = 2 * (pairs * better)[:, I, J].sum()
        dpo = gradient(lambda z: drawn * expected_loss(z, REF, better, pairs, "dpo", beta=beta), policy)
        lens = torch.full((6,), n)
        return dpo, gradient(lambda z: online.group_loss(z, REF, unit * REWARD, "grpo", k=2, lens=lens), policy)
    dpo, grpo = gradients(REF)
    assert torch.allclose(dpo, beta * n * grpo, atol=1e-6) and dpo.abs().max() > 0.05
    wins = (better * REF.exp()[:, None, :]).sum(2)                                              # (X, A)
    assert torch.allclose(-n * grpo, 2 * online.policy_gradient(REF, wins), atol=1e-6)
    cosine = [torch.nn.functional.cosine_similarity(*(x.flatten() for x in gradients(policy)), dim=0)
              for policy in (REF, POLICY)]
    assert cosine[0] > 1 - 1e-9 and cosine[1] < 0.98

# ---------------------------------------------------------------------------------------------------------------------
# the page

def defined(path):
    """The names of functions and classes at the top of a file."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}

def test_the_page_names_what_exists_and_each_test_of_this_file():
    """A renamed function leaves a page that points nowhere. A step without code or test is an opinion."""
    steps = re.split(r"^## ", PAGE, flags=re.M)[1:]
    numbered = [step for step in steps if re.match(r"\d", step)]
    assert [int(step.split(".")[0]) for step in numbered] == list(range(1, len(numbered) + 1)) and len(numbered) >= 15
    named = set()
    for step in numbered:
        [(code, checks)] = re.findall(r"^In the code: (.*?)\.\sChecked\sby\s(.*?)\.$", step, flags=re.M | re.S)
        places, tests = re.findall(r"`([\w/]+\.py):(\w+)`", code), re.findall(r"`test_derivations\.py::(\w+)`", checks)
        lines = [line for line in step.splitlines() if line.startswith("    ")]
        assert places and tests and 3 <= len(lines) <= 8, step
        named |= set(tests)
    for file, name in re.findall(r"`([\w/]+\.py):(\w+)`", PAGE):
        assert name in defined(ROOT / file), f"{file} has no {name}"
    here = {name for name in defined(Path(__file__)) if name.startswith("test_")}
    assert set(re.findall(r"`test_derivations\.py::(\w+)`", PAGE)) == here
    assert here - named == {"test_the_page_names_what_exists_and_each_test_of_this_file"}
    for file, place in re.findall(r"\]\((\w+\.md)#([\w-]+)\)", PAGE):
        headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / file).read_text(), flags=re.M)
        places = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
        assert place in places, f"{file}#{place}"
    assert len(PAGE.split()) <= 3000 and "$" not in PAGE and "\\" not in PAGE
