"""
ipo: the loss with a target

A square around a gap in nats that beta sets.
"""
import numpy as np

from assignments.drivers import pairs_of, refusals, values_and_gradients
from assignments.exercise import Mistake

TARGETS = ["losses.py:ipo"]
POINTS, MINUTES = 4, 20

def probes(rng):
    """Gaps on both sides of the target, a batch of one, and far away."""
    def pairs(B, scale, beta):
        ref = -rng.uniform(5, 60, (2, B))
        ratios = rng.normal(0, scale, (2, B))
        ratios[0] = ratios[1] + rng.uniform(0.5, 2, B) * scale * (-1.0) ** np.arange(B)
        return dict(beta=beta, values=[*(ref + ratios), *ref], lens=[rng.integers(3, 20, B), rng.integers(3, 20, B)])
    return [dict(title="four pairs, beta 0.1", **pairs(4, 8, 0.1)),
            dict(title="three pairs, beta 2", **pairs(3, 1, 2.0)),
            dict(title="one pair", **pairs(1, 2, 0.5)),
            dict(title="log-ratios of thousands of nats", **pairs(4, 3000, 0.4))]

def run(module, probe):
    """Losses, rewards, gradients of the mean loss, and which values of beta are refused."""
    pairs = pairs_of(module, probe)
    found = values_and_gradients(pairs, *module.ipo(pairs, beta=probe["beta"]))
    return dict(found, refused=refusals(lambda beta: module.ipo(pairs, beta=beta), [(0.0,), (-0.5,)]))

LOSS, TARGET, LOGGED = "losses = (w - l - 1 / (2 * beta)) ** 2", "The target of IPO", "What is logged"
HAND, ARMS = "test_losses.py::test_the_reports_losses_by_hand", "test_bandit.py::test_ipo_on_three_arms_by_hand"
GOLDEN = "test_losses.py::test_golden_values_and_gradients"
NATS = "For beta = 1, find the gap w - l at which your loss is smallest. The docstring has its value."
SIGN = "Is the gap at which your loss is smallest positive? Which completion does a step down your loss favor?"
MISTAKES = {
    "a target of 1 / beta": Mistake((("1 / (2 * beta)", "1 / beta"),), NATS, TARGET, ARMS,
        "On the exact world IPO ends twice as far from the reference, in log-ratios, as its optimum in closed form."),
    "a target of beta / 2": Mistake((("1 / (2 * beta)", "1 / 2 * beta"),),
        "Does a larger beta keep your policy nearer to the reference or move it away? Watch the order of operations.",
        TARGET, HAND, "IPO with beta 0.1 hardly moves the policy, and with beta 10 it runs away."),
    "the sign of the target": Mistake(((LOSS, "losses = (w - l + 1 / (2 * beta)) ** 2"),),
        SIGN, TARGET, HAND),
    "chosen and rejected swapped": Mistake(((LOSS, "losses = (l - w - 1 / (2 * beta)) ** 2"),),
        SIGN, TARGET, HAND),
    "h instead of the gap": Mistake(((LOSS, "losses = (beta * (w - l) - 1 / (2 * beta)) ** 2"),),
        "Target and gap must have the same unit. Which of them is in nats in yours?", TARGET, HAND),
    "times beta squared": Mistake(((LOSS, "losses = (beta * (w - l) - 0.5) ** 2"),),
        "The target is right. What is the loss while policy and reference are equal? The decorator has its value.",
        TARGET, GOLDEN),
    "a half in front": Mistake(((") ** 2", ") ** 2 / 2"),),
        "The target is right. Compare the value at the reference with that of the decorator, for two values of beta.",
        TARGET, GOLDEN),
    "the absolute value": Mistake((("losses = (", "losses = abs("), (") ** 2", ")")),
        "How does the gradient depend on the distance from the target?", TARGET, GOLDEN),
    "no pull back": Mistake(((LOSS, "losses = F.relu(1 / (2 * beta) - (w - l)) ** 2"),),
        "What does this loss do with a pair whose gap is too large? Read the docstring again.", TARGET, GOLDEN,
        "Pairs whose gap is beyond IPO's target stay there: the loss is 0 for them."),
    "no reference": Mistake(
        ((LOSS, "losses = (pairs.policy_chosen_logps - pairs.policy_rejected_logps - 1 / (2 * beta)) ** 2"),),
        "While policy and reference are equal, every pair has the same loss. Has it in yours?", TARGET, GOLDEN),
    "means over tokens": Mistake(
        ((LOSS, "losses = (w / pairs.chosen_lens - l / pairs.rejected_lens - 1 / (2 * beta)) ** 2"),),
        "Are the log-ratios sums over tokens or means? The docstring says which version this is.", TARGET, GOLDEN),
    "rewards with a gradient": Mistake(((") ** 2", ") ** 2\n    return losses, beta * w, beta * l"),),
        "The rewards are only logged. May a gradient flow through them?", LOGGED,
        "test_losses.py::test_shapes_and_rewards_without_gradient"),
    "the mean instead of one loss a pair": Mistake(((") ** 2", ") ** 2\n    losses = losses.mean()"),),
        "What shape do the losses of a batch have?", LOGGED,
        "test_losses.py::test_shapes_and_rewards_without_gradient"),
}
ALTERNATIVES = {
    "mse_loss": '''
def ipo(pairs, *, beta=0.1):
    w, l, h = log_ratios(pairs, beta)
    losses = F.mse_loss(w - l, torch.full_like(w, 0.5 / beta), reduction="none")
    return with_rewards(losses, beta, w, l)
''',
    "multiplied out": '''
def ipo(pairs, *, beta=0.1):
    w, l, _ = log_ratios(pairs, beta)
    gap = w - l
    return gap * gap - gap / beta + 0.25 / beta ** 2, beta * w.detach(), beta * l.detach()
''',
    "through h": '''
def ipo(pairs, *, beta=0.1):
    w, l, h = log_ratios(pairs, beta)
    return with_rewards(((h - 0.5) / beta).square(), beta, w, l)
''',
}
HIDDEN = ("1 / (2 beta))^2",)
REMOVED = ("losses.py:sppo", "losses.py:cal_dpo")
VARIANTS = {
    "a target of 1 / beta": (
        (LOSS, "losses = (w - l - 1 / beta) ** 2"),
        ("L = (w - l - 1 / (2 beta))^2", "L is a square around the target, in nats squared"),
        ("aims at a gap w - l of 1 / (2 beta) nats", "aims at a gap w - l of 1 / beta nats")),
    "free of units": (
        (LOSS, "losses = (beta * (w - l) - 0.5) ** 2"),
        ("L = (w - l - 1 / (2 beta))^2", "L is a square in h. It is 1/4 while policy and reference are equal")),
}
