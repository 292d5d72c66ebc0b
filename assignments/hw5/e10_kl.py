"""
kl_loss and adaptive_beta: the KL penalty in the loss, and its weight

The mean of a KL estimate over tokens, and a beta that follows a target.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/formulas.py:kl_loss", "rlhf/formulas.py:adaptive_beta"]
POINTS, MINUTES = 3, 30

def probes(rng):
    """Ragged completions near the reference and far from it; KLs on both sides of their target, near and far."""
    def batch(spans, T, title, scale):
        mask = np.array([[start <= t < end for t in range(T)] for start, end in spans])
        ref = -rng.uniform(0.5, 3, mask.shape) * mask
        target = rng.uniform(1, 6)
        kls = target * np.array([1, 1 + rng.uniform(0.05, 0.15), 1 - rng.uniform(0.05, 0.15), 3, 0.4, 0])
        return dict(title=title, logps=ref + scale * rng.normal(0, 1, mask.shape) * mask, ref_logps=ref, mask=mask,
                    beta=float(rng.uniform(0.1, 1)), kls=kls.tolist(), target=float(target),
                    samples=int(rng.integers(100, 600)), horizon=int(rng.integers(1000, 9000)))
    return [batch([(1, 5), (2, 3), (0, 6), (4, 7)], 7, "four completions", 0.5),
            batch([(0, 2), (1, 4)], 5, "near the reference", 0.05),
            batch([(0, 4), (2, 3), (1, 4)], 4, "far from the reference", 1.5),
            batch([(1, 4)], 6, "one completion", 0.5)]

def run(module, probe):
    """The KL and its gradient for each mean and estimator, and the next betas."""
    import torch
    torch.set_default_dtype(torch.float64)
    found = {}
    try:
        for mean in ("tokens", "completions", "sums"):
            for estimator in ("k1", "k2", "k3"):
                logps = probe["logps"].clone().requires_grad_()
                value = module.kl_loss(logps, probe["ref_logps"], probe["mask"], mean, estimator)
                found[f"{mean}_{estimator}"] = value
                found[f"grad_{mean}_{estimator}"], = torch.autograd.grad(value + 0 * logps.sum(), logps)
    except NotImplementedError:
        pass
    try:
        more = (probe["target"], probe["samples"])
        found["next_beta"] = [float(module.adaptive_beta(probe["beta"], kl, *more, probe["horizon"]))
                              for kl in probe["kls"]]
        found["next_beta_default_horizon"] = float(module.adaptive_beta(probe["beta"], probe["kls"][3], *more))
    except NotImplementedError:
        if not found:
            raise
    return found

KL = "(token_weights(mask, mean) * KL_ESTIMATORS[estimator](logps - ref_logps)).sum()"
ERROR, NEXT = "error = max(-0.2, min(0.2, kl / target_kl - 1))", "return beta * (1 + error * samples / horizon)"
PENALTY, RULE = "The mean of the penalty", "The rule of beta"
LOOP, BETA = "test_grpo.py::test_the_kl_in_the_loss_against_a_slow_loop", "test_ppo.py::test_the_adapted_coefficient"
BACK = "test_steps.py::test_the_kl_in_the_loss_pulls_back_to_the_reference"
DIRECTION = "The KL is too large. Should beta rise or fall?"
MISTAKES = {
    "from the reference to the policy": Mistake(((KL, KL.replace("logps - ref_logps", "ref_logps - logps")),),
        "Which of the two has drawn the samples? k1's mean over them must not be negative.", PENALTY, LOOP,
        "With --algo grpo --kl_estimator k3 a token that the policy likes far more than the reference does has a "
        "penalty of about e to its log-ratio."),
    "the sign of the penalty": Mistake(((KL, f"-{KL}"),),
        "Training minimizes the loss. Does a policy far from its reference have a larger loss?", PENALTY, LOOP,
        "With --algo grpo a larger beta leads to a larger KL."),
    "always k1": Mistake(((KL, KL.replace("KL_ESTIMATORS[estimator](logps - ref_logps)", "(logps - ref_logps)")),),
        "Is your penalty different for the three estimators?", PENALTY, LOOP,
        "With --algo grpo --kl_estimator k3 the KL ends far above its usual value, and farther with --beta 1 than with "
        "0.2."),
    "always k3": Mistake(((KL, KL.replace("[estimator]", '["k3"]')),),
        "Is your penalty different for the three estimators?", PENALTY, LOOP),
    "k2 and k3 exchanged": Mistake(
        ((KL, KL.replace("[estimator]", '[{"k2": "k3", "k3": "k2"}.get(estimator, estimator)]')),),
        "Which of k2 and k3 is the square? Is yours?", PENALTY, LOOP),
    "no gradient": Mistake(((KL, f"{KL}.detach()"),),
        "Print `requires_grad` of your penalty. What does a constant in a loss change?", PENALTY, BACK,
        "With --algo grpo beta has no effect at all on the policy, though `loss/kl` is logged."),
    "the mean over all places": Mistake(((KL, "KL_ESTIMATORS[estimator](logps - ref_logps).mean()"),),
        "Change the width of the batch by a column of padding. Does your penalty change?", PENALTY, LOOP),
    "always the mean over tokens": Mistake(((KL, "masked_mean(KL_ESTIMATORS[estimator](logps - ref_logps), mask)"),),
        "What is the argument `mean` for? Compare your penalty for its three values.", PENALTY, LOOP,
        "With --algo dr_grpo `loss/kl` is smaller than it should be, by the mean number of tokens of a completion."),
    "an estimate for each completion": Mistake(((KL, "KL_ESTIMATORS[estimator]((logps - ref_logps).sum(1)).mean()"),),
        "Is the estimator applied to tokens or to completions? Change one token: at how many does your gradient "
        "change?", PENALTY, LOOP),
    "the error is not clipped": Mistake(((ERROR, "error = kl / target_kl - 1"),),
        "What is your next beta if the KL is a hundred times its target?", RULE, BETA,
        "With --target_kl and a rollout of 256, one KL of 30 times the target makes beta almost 5 times as large."),
    "clipped above only": Mistake(((ERROR, "error = min(0.2, kl / target_kl - 1)"),),
        "What is your next beta if the KL is 0?", RULE, BETA),
    "clipped after the product": Mistake(
        ((ERROR, "error = kl / target_kl - 1"),
         (NEXT, "return beta * (1 + max(-0.2, min(0.2, error * samples / horizon)))")),
        "Which number lies between -0.2 and 0.2: the error, or the change of beta?", RULE, BETA),
    "beta falls where it should rise": Mistake(((NEXT, "return beta * (1 - error * samples / horizon)"),),
        DIRECTION, RULE, BETA, "With --target_kl beta falls after each rollout whose KL is above the target."),
    "target / kl": Mistake(((ERROR, "error = max(-0.2, min(0.2, target_kl / max(kl, 1e-9) - 1))"),),
        "For which KL is your error positive, and what does beta do then?", RULE, BETA),
    "the difference in nats": Mistake(((ERROR, "error = max(-0.2, min(0.2, kl - target_kl))"),),
        "The KL is 10 percent above its target. Should the error depend on the target's size?", RULE, BETA),
    "samples and horizon are not used": Mistake(((NEXT, "return beta * (1 + error)"),),
        "After how many completions may beta have changed by a fifth? Compare two sizes of a rollout.", RULE, BETA),
    "added, not multiplied": Mistake(((NEXT, "return beta + error * samples / horizon"),),
        "Can your beta become negative?", RULE, BETA),
}
ALTERNATIVES = {
    "loops": '''
def kl_loss(logps, ref_logps, mask, mean, estimator):
    total, weights = 0.0, token_weights(mask, mean)
    for i, t in mask.nonzero().tolist():
        total = total + weights[i, t] * KL_ESTIMATORS[estimator](logps[i, t] - ref_logps[i, t])
    return total

def adaptive_beta(beta, kl, target_kl, samples, horizon=2000):
    error = (kl - target_kl) / target_kl
    if error > 0.2:
        error = 0.2
    if error < -0.2:
        error = -0.2
    return beta + beta * error * samples / horizon
''',
    "the three formulas, and numpy": '''
def kl_loss(logps, ref_logps, mask, mean, estimator):
    x = torch.where(mask, logps - ref_logps, 0.0)
    k = {"k1": lambda: x, "k2": lambda: 0.5 * x.square(), "k3": lambda: torch.expm1(-x) + x}[estimator]() * mask
    if mean == "tokens":
        return k.sum() / mask.sum()
    if mean == "completions":
        return (k.sum(-1) / mask.sum(-1)).mean()
    return k.sum(-1).mean()

def adaptive_beta(beta, kl, target_kl, samples, horizon=2000):
    return beta * float(1 + np.clip(kl / target_kl - 1, -0.2, 0.2) * samples / horizon)

import numpy as np
''',
}
HIDDEN = ("L = sum over i, t of token_weights_{i,t} * k(",)
REMOVED = ()
VARIANTS = {
    "by at most a half": (
        (ERROR, "error = max(-0.5, min(0.5, kl / target_kl - 1))"),
        ("error     = clip(kl / target_kl - 1, -0.2, 0.2)", "error     = clip(kl / target_kl - 1, -0.5, 0.5)"),
        ("in which beta changes by at most a fifth", "in which beta changes by at most a half")),
    "halfway": (
        (NEXT, "return beta * (1 + error * samples / horizon / 2)"),
        ("next beta = beta * (1 + error * samples / horizon)",
         "next beta = beta * (1 + error * samples / (2 * horizon))"),
        ("in which beta changes by at most a fifth", "in which beta changes by at most a tenth")),
}
