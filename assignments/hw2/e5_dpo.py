"""
dpo: the loss of the main job

L = -log sigmoid(h), h = beta * (w - l), of a batch of pairs.
"""
import numpy as np

from assignments.drivers import pairs_of, values_and_gradients
from assignments.exercise import Mistake

TARGETS = ["losses.py:dpo"]
POINTS, MINUTES = 5, 30

def probes(rng):
    """Log-probs of usual size, a batch of one, and log-ratios so large that a careless loss overflows."""
    def pairs(B, scale):
        ref = -rng.uniform(5, 60, (2, B))
        ratios = rng.normal(0, scale, (2, B))
        ratios[0] = ratios[1] + rng.uniform(0.5, 2, B) * scale * (-1.0) ** np.arange(B)    # margins of both signs
        return dict(values=[*(ref + ratios), *ref], lens=[rng.integers(3, 20, B), rng.integers(3, 20, B)])
    return [dict(title="four pairs, beta 0.1", beta=0.1, **pairs(4, 6)),
            dict(title="three pairs, beta 2", beta=2.0, **pairs(3, 1)),
            dict(title="one pair", beta=0.5, **pairs(1, 3)),
            dict(title="log-ratios of thousands of nats", beta=0.5, **pairs(4, 4000))]

def run(module, probe):
    """Losses, logged rewards, and the gradient of the mean loss with respect to the policy's log-probs."""
    pairs = pairs_of(module, probe)
    return values_and_gradients(pairs, *module.dpo(pairs, beta=probe["beta"]))

BY_HAND = "test_losses.py::test_dpo_by_hand"
FAR = "test_losses.py::test_finite_in_float32_with_finite_gradients_far_out"
SHAPES = "test_losses.py::test_shapes_and_rewards_without_gradient"
LOSS, REWARD = "losses = -F.logsigmoid(h)", "return with_rewards(losses, beta, w, l)"
FORMULA, REWARDS, STABLE = "From log-probs to h", "What is logged", "Far from zero"
MISTAKES = {
    "the sign of the loss": Mistake(((LOSS, "losses = F.logsigmoid(h)"),),
        "Training minimizes the loss. Is your loss smaller when the policy prefers the chosen completion?", FORMULA,
        BY_HAND, "The loss is negative from the start, and the accuracy on validation pairs falls below a half."),
    "chosen and rejected swapped": Mistake(((LOSS, "losses = -F.logsigmoid(-h)"),),
        "Look at the sign of the margin: which completion should become more likely?", FORMULA,
        BY_HAND, "The loss falls as it should, but the accuracy on validation pairs falls below a half."),
    "beta left out": Mistake(((LOSS, "losses = -F.logsigmoid(h / beta)"),),
        "Try two values of beta on the same pairs. What should change?", FORMULA, BY_HAND,
        "Runs with different beta have the same loss at every step, and differ in their logged rewards only."),
    "beta outside of the sigmoid": Mistake(((LOSS, "losses = -beta * F.logsigmoid(h / beta)"),),
        "Where does beta stand in the formula: inside or outside of the logarithm?", FORMULA, BY_HAND,
        "Before the first update the loss is not log 2, but beta times log 2."),
    "beta divides": Mistake(((LOSS, "losses = -F.logsigmoid(h / beta ** 2)"),),
        "Does a larger beta make the margin h larger or smaller in the formula?", FORMULA, BY_HAND),
    "no reference": Mistake(
        ((LOSS, "losses = -F.logsigmoid(beta * (pairs.policy_chosen_logps - pairs.policy_rejected_logps))"),),
        "While the policy equals the reference, all pairs have the same loss. Have yours?", FORMULA, BY_HAND,
        "Before the first update all margins are 0, but the loss of a pair depends on which of its completions is "
        "longer."),
    "means over tokens": Mistake(
        ((LOSS, "losses = -F.logsigmoid(beta * (w / pairs.chosen_lens - l / pairs.rejected_lens))"),),
        "Are the log-probs of this loss sums over tokens or means?", FORMULA, BY_HAND),
    "1 - sigmoid instead of its logarithm": Mistake(((LOSS, "losses = 1 - h.sigmoid()"),),
        "The loss of a pair with h = 0 is log 2 = 0.693. What is yours?", FORMULA, BY_HAND),
    "sigmoid, then log": Mistake(((LOSS, "losses = -h.sigmoid().log()"),),
        "One probe has log-ratios of thousands of nats. What is sigmoid(-800) in floating point, and its logarithm?",
        STABLE, FAR, "A run on long completions with a large beta ends with a loss that is not finite."),
    "a clamp": Mistake(((LOSS, "losses = -F.logsigmoid(h.clamp(-20, 20))"),),
        "Look at the gradient of a pair that is far on the wrong side. Can it still move?", STABLE, FAR),
    "rewards with a gradient": Mistake(((REWARD, "return losses, beta * w, beta * l"),),
        "The rewards are only logged. May a gradient flow through them?", REWARDS, SHAPES),
    "rewards without beta": Mistake(((REWARD, "return losses, w.detach(), l.detach()"),),
        "What is the unit of a reward, and where does beta enter it?", REWARDS, BY_HAND),
    "the mean instead of one loss a pair": Mistake(((LOSS, "losses = -F.logsigmoid(h).mean()"),),
        "What shape does the docstring promise for the losses?", REWARDS, SHAPES),
}
ALTERNATIVES = {
    "softplus": '''
def dpo(pairs, *, beta=0.1):
    w = pairs.policy_chosen_logps - pairs.ref_chosen_logps
    l = pairs.policy_rejected_logps - pairs.ref_rejected_logps
    return F.softplus(-beta * (w - l)), (beta * w).detach(), (beta * l).detach()
''',
    "cross entropy of two rewards": '''
def dpo(pairs, *, beta=0.1):
    rewards = beta * torch.stack([pairs.chosen_logratios, pairs.rejected_logratios], 1)
    losses = F.cross_entropy(rewards, torch.zeros(len(rewards), dtype=torch.long), reduction="none")
    return losses, rewards[:, 0].detach(), rewards[:, 1].detach()
''',
    "a loop": '''
def dpo(pairs, *, beta=0.1):
    losses, chosen, rejected = [], [], []
    for i in range(len(pairs.chosen_lens)):
        w = pairs.policy_chosen_logps[i] - pairs.ref_chosen_logps[i]
        l = pairs.policy_rejected_logps[i] - pairs.ref_rejected_logps[i]
        losses.append(torch.logaddexp(torch.zeros_like(w), -beta * (w - l)))
        chosen.append(beta * w.detach())
        rejected.append(beta * l.detach())
    return torch.stack(losses), torch.stack(chosen), torch.stack(rejected)
''',
}
HIDDEN = ("gap^alpha e^-h", "log sigmoid(h)", "L = -log sigmoid", "L = -(1 - eps) log sigmoid")
REMOVED = ("losses.py:smoothed", "losses.py:*", "losses_free.py:*")
VARIANTS = {
    "a target margin": (
        ("w, l, h = log_ratios(pairs, beta)    # (B,)", "w, l, h = log_ratios(pairs, beta)\n    h = h - 0.5"),
        ("L = -log sigmoid(h),   h = beta * (w - l)", "L = -log sigmoid(h)\n        h = beta * (w - l) - 0.5"),
        ("The loss has no minimum where all pairs agree:",
         "A pair should reach the target margin of 0.5. While policy == reference, L = 0.974 for every beta.\n\n"
         "    The loss has no minimum where all pairs agree:")),
    "another link": (
        (LOSS, "losses = (1 - h).clamp(min=0) ** 2 / 2"),
        ("L = -log sigmoid(h),   h = beta * (w - l)", "L = max(0, 1 - h)^2 / 2,   h = beta * (w - l)"),
        ("The loss has no minimum where all pairs agree: for every beta, a larger margin is still better.",
         "The loss of a pair is 0 for h >= 1. While policy == reference, L = 0.5 for every beta.")),
}
