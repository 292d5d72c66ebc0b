"""
GRPO, Dr. GRPO and DAPO step by step, and the KL estimators: by hand, against slow loops, and solved without sampling
on the exact world of study/online.py.
"""
import math
import re
from pathlib import Path

import pytest
import torch

from measures import KL_ESTIMATORS, k1, k2, k3
from rlhf import formulas, train_ppo
from study import bandit, online
from study.bandit import deterministic, f_optimum, rlhf_optimum
from study.online import climb, group_loss, group_optimum, policy_gradient

REF, REWARD = bandit.world()
POLICY = (REF + REWARD).log_softmax(1)    # not the reference, so that no KL is 0
GROUP = ("grpo", "dr_grpo", "dapo")

def completions(n=6, T=9, seed=0):
    """(logps, old_logps, ref_logps, advantages, mask) of n completions of 1 to 6 tokens."""
    g = torch.Generator().manual_seed(seed)
    starts, lens = torch.randint(0, 3, (n,), generator=g), torch.randint(1, 7, (n,), generator=g)
    t = torch.arange(T)
    mask = (t >= starts[:, None]) & (t < (starts + lens)[:, None])
    logps, old, ref = (torch.randn(n, T, generator=g) * 0.3 * mask for _ in range(3))
    return logps, old, ref, torch.randn(n, generator=g), mask

def gradient(fn, at):
    """The gradient of fn() -> () at a tensor."""
    at = at.detach().requires_grad_()
    return torch.autograd.grad(fn(at), at)[0]

# ---------------------------------------------------------------------------------------------------------------------
# the formulas, one step after the other

def test_group_advantages_by_hand():
    """
    The mean is over the prompt's own completions, not over the batch. The variance is divided by k, not by k - 1: with
    k = 2 the advantages are 1 and -1, not 0.71 and -0.71.
    """
    returns = torch.tensor([1.0, 2, 6, 10, 10, 13])
    assert formulas.group_advantages(returns, 3, std=False).tolist() == [-2, -1, 3, -1, -1, 2]
    first, second = math.sqrt((4 + 1 + 9) / 3), math.sqrt((1 + 1 + 4) / 3)
    want = [-2 / first, -1 / first, 3 / first, -1 / second, -1 / second, 2 / second]
    assert formulas.group_advantages(returns, 3, std=True).tolist() == pytest.approx(want, rel=2e-4)
    assert formulas.group_advantages(torch.tensor([3.0, 7.0]), 2, std=True).tolist() == pytest.approx([-1, 1], rel=1e-4)

def test_equal_returns_have_no_advantage():
    """Without the added 1e-4, equal returns give 0 / 0, and rounding noise becomes advantages of 1 and -1."""
    assert formulas.group_advantages(torch.full((4,), 0.7), 4, std=True).tolist() == [0, 0, 0, 0]
    noise = formulas.group_advantages(torch.tensor([1.0, 1.0 + 1e-6]), 2, std=True)
    assert noise.abs().max() < 0.01

def test_the_undivided_group_advantage_is_leave_one_out_times_a_constant():
    """The own return in the mean shrinks all advantages by (k - 1) / k. It does not change their direction."""
    returns = torch.randn(12, generator=torch.Generator().manual_seed(0))
    want = 0.75 * formulas.leave_one_out(returns, 4)
    assert torch.allclose(formulas.group_advantages(returns, 4, std=False), want, atol=1e-6)

@pytest.mark.parametrize("ratio, advantage, want", [
    (1.25, 2, -2.5), (1.5, 2, -2.56), (1.5, -2, 3.0), (0.5, 2, -1.0), (0.75, -2, 1.6), (0.9, -2, 1.8)])
def test_clip_higher_by_hand(ratio, advantage, want):
    """clip 0.2, clip_high 0.28. The upper bound holds for good completions, the lower one for bad ones."""
    loss = formulas.clipped_policy_loss(torch.tensor(ratio), torch.tensor(float(advantage)), 0.2, 0.28)
    assert loss.item() == pytest.approx(want)

def test_clipfrac_by_hand():
    """The share of ratios outside of both bounds."""
    assert formulas.clipfrac(torch.tensor([0.7, 0.85, 1.0, 1.25, 1.3]), 0.2, 0.28).tolist() == [1, 0, 0, 0, 1]

def test_token_weights_by_hand():
    """Two completions with 3 tokens and 1: what a token counts is where GRPO, DAPO and Dr. GRPO differ."""
    mask = torch.tensor([[True, True, True, False], [False, True, False, False]])
    third, half, sixth = pytest.approx(1 / 4), 1 / 2, pytest.approx(1 / 6)
    assert formulas.token_weights(mask, "tokens").tolist() == [[third] * 3 + [0], [0, third, 0, 0]]
    assert formulas.token_weights(mask, "completions").tolist() == [[sixth] * 3 + [0], [0, half, 0, 0]]
    assert formulas.token_weights(mask, "sums").tolist() == [[half] * 3 + [0], [0, half, 0, 0]]

@pytest.mark.parametrize("algo", GROUP)
def test_the_loss_against_a_slow_loop(algo):
    """Loss, metrics and gradient, one token at a time."""
    logps, old, _, advantages, mask = completions()
    mean, high = formulas.METHODS[algo].mean, 0.28 if algo == "dapo" else 0.2
    flags = {"old_logps": old, "advantages": advantages, "mask": mask, "clip": 0.2, "clip_high": high, "mean": mean}
    loss, logged = formulas.grpo_loss(logps, **flags)
    slow, grad, clips, n, n_tokens = 0.0, torch.zeros_like(logps), [], len(mask), int(mask.sum())
    for i in range(n):
        places = mask[i].nonzero().flatten().tolist()
        weight = {"grpo": 1 / len(places) / n, "dr_grpo": 1 / n, "dapo": 1 / n_tokens}[algo]
        for t in places:
            ratio, a = math.exp(logps[i, t] - old[i, t]), advantages[i].item()
            slow -= weight * min(ratio * a, max(0.8, min(1 + high, ratio)) * a)
            stopped = (ratio > 1 + high and a > 0) or (ratio < 0.8 and a < 0)
            grad[i, t] = 0 if stopped else -weight * a * ratio
            clips.append(ratio > 1 + high or ratio < 0.8)
    assert loss.item() == pytest.approx(slow, rel=1e-5) and 0 < sum(clips) < len(clips)
    assert logged["policy/clipfrac"].item() == pytest.approx(sum(clips) / len(clips))
    assert torch.allclose(gradient(lambda x: formulas.grpo_loss(x, **flags)[0], logps), grad, atol=1e-6)

def test_at_ratio_1_the_gradient_is_that_of_reinforce():
    """The ratio changes nothing at a rollout's first update: the gradient is that of -A log policy(y | x)."""
    logps, _, _, advantages, mask = completions()
    flags = {"old_logps": logps, "advantages": advantages, "mask": mask, "clip": 0.2, "clip_high": 0.2, "mean": "sums"}
    loss, logged = formulas.grpo_loss(logps, **flags)
    assert logged["policy/ratio"].item() == 1 and logged["policy/clipfrac"].item() == 0
    reinforce = gradient(lambda x: -(advantages * (x * mask).sum(1)).mean(), logps)
    assert torch.allclose(gradient(lambda x: formulas.grpo_loss(x, **flags)[0], logps), reinforce, atol=1e-7)

@pytest.mark.parametrize("mean", ["tokens", "completions", "sums"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_in_the_loss_against_a_slow_loop(mean, estimator):
    """The log-ratio is policy to reference. A penalty with the other sign would pull away from the reference."""
    logps, _, ref, _, mask = completions()
    slow, n_tokens = 0.0, int(mask.sum())
    for i in range(len(mask)):
        places = mask[i].nonzero().flatten().tolist()
        for t in places:
            x = (logps[i, t] - ref[i, t]).item()
            value = {"k1": x, "k2": x * x / 2, "k3": math.exp(-x) - 1 + x}[estimator]
            n_places = {"tokens": n_tokens, "completions": len(places) * len(mask), "sums": len(mask)}[mean]
            slow += value / n_places
    assert formulas.kl_loss(logps, ref, mask, mean, estimator).item() == pytest.approx(slow, rel=1e-5, abs=1e-7)

@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_in_the_rewards_by_hand(estimator):
    """One estimate per token, minus beta times it, and the score at the last token."""
    logps, ref = torch.tensor([[0.0, -1.0, -2.0]]), torch.tensor([[0.0, -1.5, -1.0]])
    mask = torch.tensor([[False, True, True]])
    found = formulas.token_rewards(torch.tensor([3.0]), logps, ref, mask, 0.1, estimator)[0].tolist()
    a, b = {"k1": (0.5, -1), "k2": (0.125, 0.5), "k3": (math.exp(-0.5) - 0.5, math.e - 2)}[estimator]
    assert found == pytest.approx([0, -0.1 * a, 3 - 0.1 * b])

# ---------------------------------------------------------------------------------------------------------------------
# which method takes which step

WORDS = {
    "baseline": {"values": "value head", "others": "mean of the others", "group": "mean of the group"},
    "std": {"rollout": "of the rollout", "group": "of the group", "no": "no"},
    "ratio, clip": {("token", None): "token, 0.2", ("completion", None): "completion, 0.2",
                    ("token", 0.28): "token, 0.2 and 0.28"},
    "mean": {"tokens": "all tokens", "completions": "each completion first", "sums": "sums of completions"},
    "kl": {"reward": "reward, k1", "loss": "loss, k3"},
}

def test_the_table_of_methods_is_that_of_the_code():
    """docs/rlhf.md shows the steps of each method. METHODS is what runs."""
    text = (Path(__file__).parent.parent / "docs" / "rlhf.md").read_text()
    rows = {}
    for line in text.splitlines():
        if found := re.match(r"\| `--algo (\w+)` \|(.*)\|$", line):
            rows[found[1]] = [cell.strip() for cell in found[2].split("|")]
    want = {}
    for name, method in formulas.METHODS.items():
        steps = vars(method) | {"ratio, clip": (method.ratio, method.clip_high)}
        want[name] = [words[steps[step]] for step, words in WORDS.items()]
    assert {name: cells[:-1] for name, cells in rows.items()} == want
    assert all("arxiv.org" in cells[-1] for cells in rows.values())

@pytest.mark.parametrize("flags, want", [
    ("--algo ppo", (0.5, "reward", "k1", 0.2, 1)),
    ("--algo rloo --true_reward", (0.05, "reward", "k1", 0.2, 4)),
    ("--algo rloo --kl loss", (0.5, "loss", "k3", 0.2, 4)),
    ("--algo grpo", (0.2, "loss", "k3", 0.2, 4)),
    ("--algo dapo --clip 0.1", (0.2, "loss", "k3", 0.28, 4)),
    ("--algo dr_grpo --clip 0.1", (0.5, "loss", "k3", 0.1, 4)),
    ("--algo grpo --kl reward", (0.5, "reward", "k1", 0.2, 4)),
    ("--algo grpo --kl reward --kl_estimator k3", (0.5, "reward", "k3", 0.2, 4)),
    ("--algo dapo --beta 0 --clip_high 0.5", (0, "loss", "k3", 0.5, 4))])
def test_the_defaults_of_a_method(flags, want):
    """
    A method's steps are its defaults. Each can be changed alone. beta has another unit where the rewards are divided by
    their std and the KL is not.
    """
    args = train_ppo.get_args(flags.split())
    assert (args.beta, args.kl, args.kl_estimator, args.clip_high, args.k) == want

# ---------------------------------------------------------------------------------------------------------------------
# the exact world: bias and optimum of each step

def group_gradient(policy, algo, ref=REF, reward=REWARD, **more):
    """The direction (X, A) in which a group method changes the logits, in expectation over all groups."""
    return -gradient(lambda logits: group_loss(logits, ref, reward, algo, **more), policy)

def test_the_expected_loss_against_a_slow_loop_over_groups():
    """Three answers with 1, 2 and 3 tokens in groups of 2: nine groups, each with its probability and advantages."""
    ref, reward, lens, k = REF[:1, :3].log_softmax(1), REWARD[:1, :3] * 1e3, [1, 2, 3], 2
    p = POLICY[0, :3].softmax(0)
    for algo in GROUP:
        slow = torch.zeros(3, dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                gap = (reward[0, i] - reward[0, j]).item()
                a = gap / 2 if algo == "dr_grpo" else math.copysign(1, gap) if gap else 0
                weights = {"grpo": (1 / lens[i] / k, 1 / lens[j] / k), "dr_grpo": (1 / k, 1 / k),
                           "dapo": [1 / (lens[i] + lens[j])] * 2}[algo]
                for answer, advantage, weight in ((i, a, weights[0]), (j, -a, weights[1])):
                    slow += p[i] * p[j] * weight * advantage * ((torch.arange(3) == answer).double() - p)
        found = group_gradient(POLICY[:1, :3], algo, ref, reward, k=k, lens=torch.tensor(lens))
        assert torch.allclose(found[0], slow, rtol=1e-5, atol=1e-6), algo

def test_the_mean_of_the_others_as_baseline_does_not_bias_the_gradient():
    """RLOO, over all groups of 3 answers: REINFORCE with the leave-one-out advantage has the exact gradient."""
    groups = torch.cartesian_prod(*[torch.arange(6)] * 3)                                             # (216, 3)
    found = torch.zeros_like(POLICY)
    for x in range(4):
        p_group = POLICY[x][groups].sum(1).exp()                                                      # (216,)
        advantages = formulas.leave_one_out(REWARD[x][groups].flatten(), 3).view(-1, 3)               # (216, 3)
        for answer in range(6):    # of the first of three, which are alike
            found[x, answer] = (p_group * advantages[:, 0] * (groups[:, 0] == answer)).sum()
    found -= POLICY.exp() * found.sum(1, keepdim=True)    # grad log policy(i) in logit j is (i == j) - policy(j)
    assert torch.allclose(found, policy_gradient(POLICY, REWARD), atol=1e-12)

@pytest.mark.parametrize("k", [2, 3])
def test_a_group_mean_as_baseline_does_not_bias_the_gradient(k):
    """Dr. GRPO's expected gradient is that of the expected reward, times (k - 1) / k."""
    want = (k - 1) / k * policy_gradient(POLICY, REWARD)
    assert torch.allclose(group_gradient(POLICY, "dr_grpo", k=k), want, atol=1e-7) and want.abs().max() > 0.05

@pytest.mark.parametrize("k, estimator, divergence", [
    (2, "k2", "reverse_kl"), (3, "k2", "reverse_kl"), (2, "k3", "forward_kl")])
def test_dr_grpo_ends_at_the_optimum_of_its_kl(k, estimator, divergence):
    """
    k2 in the loss: the RLHF optimum, but for beta * k / (k - 1), as the baseline shrinks the advantages and not the
    KL. k3 in the loss, as in the GRPO paper: the optimum of another objective, E[r] - beta KL(reference || policy).
    """
    found = group_optimum(REF, REWARD, "dr_grpo", k=k, beta=1.0, estimator=estimator)
    assert torch.allclose(found, f_optimum(REF, REWARD, k / (k - 1), divergence), atol=1e-6)
    assert not torch.allclose(found, rlhf_optimum(REF, REWARD, 1.0), atol=0.05)

def test_with_k1_in_the_reward_a_group_method_ends_at_the_rlhf_optimum():
    """The baseline then shrinks reward and KL alike, so beta is beta."""
    def direction(logits):
        return group_gradient(logits, "dr_grpo", reward=REWARD - 0.7 * (logits.log_softmax(1) - REF), k=2)
    assert torch.allclose(climb(REF, direction, 300, 0.3), rlhf_optimum(REF, REWARD, 0.7), atol=1e-6)

def test_grpo_in_groups_of_two_is_optimization_of_a_win_rate():
    """
    With k = 2 the advantages are 1 and -1, whatever the rewards: only their order counts. The optimum is that of IPO
    with beta / 2, with the policy itself as the opponent: ref * exp(2 P(better than the policy's answer) / beta) / Z.
    """
    found = group_optimum(REF, REWARD * 1e3, "grpo", k=2, beta=1.0, estimator="k2")
    want = bandit.ipo_optimum(REF, deterministic(REWARD), found.exp(), 0.5)
    assert torch.allclose(found, want, atol=1e-4) and bandit.kl(found, REF) > 0.1
    assert not torch.allclose(found, rlhf_optimum(REF, REWARD, 2.0), atol=0.05)

def test_in_groups_of_two_the_gradient_is_dpos_up_to_weights():
    """
    "GRPO with two completions is DPO" is true of the sums of Dr. GRPO: DPO weighs a pair by beta sigmoid(-h), Dr. GRPO
    by half its gap in reward, GRPO's division makes that 1. But GRPO takes a mean over each completion's own tokens: a
    short one then moves more than a long one, and the direction is another one, unless both have the same length.
    """
    beta, h, rewards = 0.1, 1.3, torch.tensor([0.9, 0.4])
    def gradients(lens):
        mask = torch.arange(5) < torch.tensor(lens)[:, None]    # (2, T): chosen, rejected
        logps = -torch.ones(2, 5) * mask
        def dpo(logps):    # the reference's log-probs are such that the margin is h
            margin = beta * (logps * mask * torch.tensor([[1.0], [-1.0]])).sum()
            return -torch.nn.functional.logsigmoid(margin - margin.detach() + h)
        def group(mean, std):
            advantages = formulas.group_advantages(rewards, 2, std=std)
            return lambda logps: formulas.grpo_loss(logps, old_logps=logps.detach(), advantages=advantages, mask=mask,
                                                    clip=0.2, mean=mean)[0]
        return [gradient(fn, logps) for fn in (dpo, group("sums", False), group("completions", True))]
    weight = beta / (1 + math.exp(h))
    dpo, dr_grpo, grpo = gradients([5, 2])
    assert torch.allclose(dpo / weight, dr_grpo / dr_grpo[1, 0]) and dpo[1, 0] > 0
    assert torch.allclose(grpo[1, :2] / grpo[0, :2], torch.full((2,), -5 / 2))    # not -1
    dpo, dr_grpo, grpo = gradients([3, 3])
    assert torch.allclose(dpo / weight, grpo / grpo[1, 0], atol=1e-3)    # the std has 1e-4 added

def test_the_division_by_std_forgets_the_unit_of_the_reward():
    """GRPO's optimum is the same for rewards ten times as large. Dr. GRPO's is farther from the reference."""
    ref, reward = REF[:, :4].log_softmax(1), REWARD[:, :4]
    kls = {"grpo": [], "dr_grpo": []}
    for algo in kls:
        for scale in (1, 10):
            found = group_optimum(ref, scale * reward, algo, k=3, beta=1.0, estimator="k2", steps=100)
            kls[algo].append(bandit.kl(found, ref))
    assert kls["grpo"][1] == pytest.approx(kls["grpo"][0], rel=0.02)
    assert kls["dr_grpo"][1] > 3 * kls["dr_grpo"][0]

def prompt_weight(share, algo, k):
    """The expected gradient of a prompt whose answers are right with probability `share`, relative to the exact one."""
    policy = torch.tensor([[share, 1 - share]], dtype=torch.float64).log()
    right = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    found = group_gradient(policy, algo, policy, right, k=k)
    return (found / policy_gradient(policy, right))[0, 0].item()

def test_the_division_by_std_favors_easy_and_hard_prompts_alike():
    """
    For rewards of 0 and 1 in groups of 8: a prompt that is solved in 2% or in 98% of the cases counts 1.4 times as much
    as one that is solved in half of them. Without the division all count the same. In groups of 2 they do so too.
    """
    weights = {share: prompt_weight(share, "grpo", 8) for share in (0.02, 0.1, 0.5, 0.9, 0.98)}
    assert weights[0.02] == pytest.approx(weights[0.98]) and weights[0.1] == pytest.approx(weights[0.9])
    assert weights[0.02] / weights[0.5] == pytest.approx(1.387, abs=0.002) and weights[0.1] > 1.2 * weights[0.5]
    n = range(9)    # by hand: E[sqrt(m (1 - m))] / (p (1 - p)), m the share of right answers in the group
    of_groups = [math.comb(8, i) * 0.1 ** i * 0.9 ** (8 - i) * math.sqrt(i / 8 * (1 - i / 8)) for i in n]
    assert weights[0.1] == pytest.approx(sum(of_groups) / 0.09, rel=1e-3)
    for share in (0.02, 0.5, 0.98):
        assert prompt_weight(share, "dr_grpo", 8) == pytest.approx(7 / 8)
        assert prompt_weight(share, "grpo", 2) == pytest.approx(1, rel=1e-3)

def test_only_sums_are_free_of_a_length_bias():
    """
    Two right answers and two wrong ones, of one token and of four, equally likely. With GRPO's mean the long wrong
    answer is punished less and the long right one is praised less. DAPO's mean has the same bias, but smaller.
    """
    ref = torch.full((1, 4), 0.25, dtype=torch.float64).log()
    right, lens = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([1, 4, 1, 4])
    long_to_short = {}
    for algo in GROUP:
        p = group_optimum(ref, right, algo, k=4, lens=lens, steps=10, lr=0.3)[0].exp()
        long_to_short[algo] = ((p[1] / p[0]).item(), (p[3] / p[2]).item())
    assert long_to_short["dr_grpo"] == pytest.approx((1, 1))
    assert long_to_short["grpo"][0] < 0.5 < long_to_short["dapo"][0] < 0.9
    assert long_to_short["grpo"][1] > 10 > 2.5 > long_to_short["dapo"][1] > 1.5

@pytest.mark.parametrize("high", [0.2, 0.28])
def test_a_rare_good_answer_grows_by_clip_high_in_one_rollout(high):
    """
    An answer of probability 0.01 with a positive advantage grows until its ratio is at the upper bound, and stops there
    however many updates follow. Clip-higher is for such answers: the bound of a likely one does not matter.
    """
    old = torch.tensor([0.01, 0.99]).log()
    flags = {"old_logps": old[:1, None], "advantages": torch.ones(1), "mask": torch.ones(1, 1, dtype=torch.bool),
             "clip": 0.2, "clip_high": high, "mean": "completions"}
    logits, shares = old, []
    for _ in range(60):
        loss = lambda x: formulas.grpo_loss(x.log_softmax(0)[:1, None], **flags)[0]
        logits = logits.detach() - 0.01 * gradient(loss, logits)
        shares.append(logits.softmax(0)[0].item())
    assert 1 + high < shares[-1] / 0.01 < 1.03 + high and shares[-1] == shares[-20]

# ---------------------------------------------------------------------------------------------------------------------
# KL estimators: value, variance and gradient, without sampling

def exact(policy, ref, estimate):
    """(mean, variance) of an estimate over the policy's answers, (X,) each. estimate: function of log-ratios."""
    values = estimate(policy - ref)
    mean = (policy.exp() * values).sum(1)
    return mean, (policy.exp() * values ** 2).sum(1) - mean ** 2

def true_kl(p, q):
    return (p.exp() * (p - q)).sum(1)

def inverted_k3(logratios):
    return logratios.exp() - 1 - logratios

def test_estimators_by_hand():
    """At a log-ratio of log 2, where exp(-l) is 1/2. k2 and k3 are 0 at equality only."""
    x = torch.tensor([math.log(2), -math.log(2), 0.0], dtype=torch.float64)
    assert k1(x).tolist() == pytest.approx([0.6931472, -0.6931472, 0])
    assert k2(x).tolist() == pytest.approx([0.2402265, 0.2402265, 0])
    assert k3(x).tolist() == pytest.approx([0.5 - 1 + 0.6931472, 2 - 1 - 0.6931472, 0])
    tiny = k3(torch.tensor([1e-3]))    # float32: exp(-x) - 1 + x would be 0 or 1.2e-7
    assert tiny.item() == pytest.approx(5e-7, rel=0.05)

def test_k1_and_k3_are_unbiased_and_k2_is_not():
    """By enumeration. k2's bias is small near the reference and grows with the distance."""
    want = true_kl(POLICY, REF)
    for name in ("k1", "k3"):
        assert torch.allclose(exact(POLICY, REF, KL_ESTIMATORS[name])[0], want, atol=1e-12), name
    bias = lambda p: ((exact(p, REF, k2)[0] - true_kl(p, REF)) / true_kl(p, REF)).abs()
    assert bias((REF + 0.05 * REWARD).log_softmax(1)).max() < 0.02 < 0.1 < bias(POLICY).max()

def test_k3_with_the_ratio_inverted_is_no_estimate():
    """It is never negative and 0 at equality, as k3 is, and close to it near the reference. Far away it is far off."""
    near = (REF + 0.05 * REWARD).log_softmax(1)
    assert torch.allclose(exact(near, REF, inverted_k3)[0], true_kl(near, REF), rtol=0.1)
    far = (REF + 2 * REWARD).log_softmax(1)
    share = exact(far, REF, inverted_k3)[0] / true_kl(far, REF)
    assert ((share - 1).abs() > 0.05).all() and share.max() > 2
    assert torch.allclose(exact(far, REF, k3)[0], true_kl(far, REF), atol=1e-12)

def test_the_variance_of_k3_is_low_near_the_reference_only():
    """
    Near the reference k2 and k3 have a hundredth of k1's variance. k3's has no bound: an answer that the policy hardly
    draws, and the reference does, gives exp(-l).
    """
    near = (REF + 0.1 * REWARD).log_softmax(1)
    variance = {name: exact(near, REF, estimate)[1] for name, estimate in KL_ESTIMATORS.items()}
    assert (variance["k3"] < variance["k1"] / 100).all() and (variance["k2"] < variance["k1"] / 100).all()
    far = REF.flip(1) * 2
    far = far.log_softmax(1)
    assert (exact(far, REF, k3)[1] > 10 * exact(far, REF, k1)[1]).any()

def kl_gradients():
    """The exact gradients in the logits of POLICY: of KL(policy || reference) and of KL(reference || policy)."""
    reverse = gradient(lambda x: true_kl(x.log_softmax(1), REF).sum(), POLICY)
    forward = gradient(lambda x: true_kl(REF, x.log_softmax(1)).sum(), POLICY)
    assert (reverse - forward).abs().max() > 0.1    # so that one is not taken for the other
    return reverse, forward

@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_which_gradient_an_estimator_has_in_the_loss(estimator):
    """An unbiased value does not give an unbiased gradient: k1's is 0, k3's is that of the other direction."""
    reverse, forward = kl_gradients()
    want = {"k1": 0 * reverse, "k2": reverse, "k3": forward}[estimator]
    assert torch.allclose(online.loss_gradient(POLICY, REF, KL_ESTIMATORS[estimator]), want, atol=1e-12)

@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_which_gradient_an_estimator_has_in_the_reward(estimator):
    """There k1's is right, and k3's is the difference of both directions: it lacks what k3's own derivative gives."""
    reverse, forward = kl_gradients()
    found = policy_gradient(POLICY, KL_ESTIMATORS[estimator](POLICY - REF))
    if estimator == "k2":
        assert min((found - x).abs().max() for x in (reverse, forward, reverse - forward, 0 * reverse)) > 0.05
    else:
        assert torch.allclose(found, {"k1": reverse, "k3": reverse - forward}[estimator], atol=1e-12)

def test_the_kl_in_the_loss_does_not_charge_a_token_for_the_tokens_after_it():
    """
    Two answers of two tokens, where the second depends on the first. With k2 in the loss the second token's gradient is
    that of the KL of whole answers. The first token's lacks the later KL that its choice leads to.
    """
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).log_softmax(-1)
    first, second, ref_first, ref_second = draw(2), draw(2, 2), draw(2), draw(2, 2)
    def tables(x, y):    # (4, 2): log-probs of both tokens of the answers 00, 01, 10, 11
        return torch.stack([x.repeat_interleave(2), y.flatten()], 1)
    def gradients(fn):
        logits = [first.clone().requires_grad_(), second.clone().requires_grad_()]
        return torch.autograd.grad(fn(tables(logits[0].log_softmax(0), logits[1].log_softmax(1))), logits)
    ref, p, mask = tables(ref_first, ref_second), tables(first, second).sum(1).exp(), torch.ones(1, 2, dtype=torch.bool)
    def in_loss(logps):
        return sum(p[i] * formulas.kl_loss(logps[i:i + 1], ref[i:i + 1], mask, "sums", "k2") for i in range(4))
    whole = gradients(lambda logps: (logps.sum(1).exp() * (logps - ref).sum(1)).sum())
    local = gradients(in_loss)
    assert torch.allclose(local[1], whole[1], atol=1e-12)
    later = (second.exp() * (second - ref_second)).sum(1)    # KL of the second token after each first one
    missing = first.exp() * (later - (first.exp() * later).sum())
    assert torch.allclose(whole[0] - local[0], missing, atol=1e-12) and missing.abs().max() > 0.01

def test_k2_and_k3_in_the_reward_lead_away_from_the_reference():
    """
    An answer that is rarer than in the reference costs more, so it becomes rarer still. With beta 1, k1 leads from the
    reference to the optimum. k2 and k3 lose an answer within 20 steps.
    """
    def end(estimate, steps):
        scores = lambda logits: REWARD - estimate(logits.log_softmax(1) - REF)
        return climb(REF, lambda logits: policy_gradient(logits, scores(logits)), steps, 0.1)
    assert torch.allclose(end(k1, 300), rlhf_optimum(REF, REWARD, 1.0), atol=1e-6)
    for estimate in (k2, k3):
        assert end(estimate, 10).min() < end(k1, 10).min() - 0.5
        assert not end(estimate, 20).min() > -100    # or NaN, after the log-prob was -inf
