"""
hinge: the loss that leaves a pair alone

Linear below a margin of 1, zero from there on.
"""
import numpy as np

from assignments.drivers import pairs_of, refusals, values_and_gradients
from assignments.exercise import Mistake

TARGETS = ["losses.py:hinge"]
POINTS, MINUTES = 3, 15

def probes(rng):
    """Pairs on both sides of the corner, a batch of one, and log-ratios of thousands of nats."""
    def pairs(margins, beta):
        B, ref = len(margins), -rng.uniform(5, 60, (2, len(margins)))
        l = rng.normal(0, 3, B)
        w = l + np.array(margins) * rng.uniform(0.8, 1.1, B) / beta
        return dict(beta=beta, values=[ref[0] + w, ref[1] + l, *ref],
                    lens=[rng.integers(3, 20, B), rng.integers(3, 20, B)])
    notes = ["far on the wrong side", "on the wrong side", "right, but below the corner", "beyond the corner",
             "far beyond the corner"]
    return [dict(title="five pairs, beta 0.2", rows=notes, **pairs([-4, -0.5, 0.5, 1.5, 6], 0.2)),
            dict(title="five pairs, beta 2", rows=notes, **pairs([-3, -0.4, 0.6, 1.7, 5], 2.0)),
            dict(title="one pair", **pairs([0.3], 0.5)),
            dict(title="log-ratios of thousands of nats", **pairs([-1500, 1500, -40], 0.3))]

def run(module, probe):
    """Losses, rewards, gradients of the mean loss, and which values of beta are refused."""
    pairs = pairs_of(module, probe)
    found = values_and_gradients(pairs, *module.hinge(pairs, beta=probe["beta"]))
    return dict(found, refused=refusals(lambda beta: module.hinge(pairs, beta=beta), [(0.0,), (-0.5,)]))

LOSS, CORNER, LOGGED = "losses = F.relu(1 - h)", "Where a loss stops pushing", "What is logged"
FACE, STOP = "test_losses.py::test_the_reports_losses_by_hand", "test_bandit.py::test_hinge_stops_at_its_margin"
MISTAKES = {
    "the sign of the margin": Mistake(((LOSS, "losses = F.relu(1 + h)"),),
        "Which completion becomes more likely by a step down your loss?", CORNER, FACE),
    "zero below the corner": Mistake(((LOSS, "losses = F.relu(h - 1)"),),
        "Which pairs have a gradient: those below the corner or those beyond it?", CORNER, FACE),
    "no margin": Mistake(((LOSS, "losses = F.relu(-h)"),),
        "What is your loss while policy and reference are equal? The decorator above the function has its value.",
        CORNER, FACE, "A hinge run has a validation loss of 0 before its first update. No later one is lower, so the "
        "saved policy is the reference."),
    "beta left out": Mistake(((LOSS, "losses = F.relu(1 - (w - l))"),),
        "At which gap w - l, in nats, does your loss become zero? Try beta 0.1 and beta 1.", CORNER, FACE,
        "The flag --beta has no effect on how far a hinge run goes: each pair is left alone from a gap of 1 nat on."),
    "beta as the margin": Mistake(((LOSS, "losses = F.relu(beta - (w - l))"),),
        "Does a larger beta move the corner to a larger or a smaller gap w - l?", CORNER, FACE),
    "a slope of 1 per nat": Mistake(((LOSS, "losses = F.relu(1 / beta - (w - l))"),),
        "The corner is right. Compare the loss at the reference for two values of beta.", CORNER,
        "test_losses.py::test_golden_values_and_gradients"),
    "squared": Mistake(((LOSS, "losses = F.relu(1 - h) ** 2"),),
        "How does the gradient change between a pair just below the corner and one far below it?", CORNER,
        "test_losses.py::test_golden_values_and_gradients",
        "With hinge a few pairs that are far on the wrong side dominate every update."),
    "a rounded corner": Mistake(((LOSS, "losses = F.softplus(1 - h)"),),
        "Is the loss of a pair beyond the corner small, or is it zero?", CORNER, FACE),
    "log-probs instead of log-ratios": Mistake(
        ((LOSS, "losses = F.relu(1 - beta * (pairs.policy_chosen_logps - pairs.policy_rejected_logps))"),),
        "While policy and reference are equal, every pair has the same loss. Has it in yours?", CORNER,
        "test_losses.py::test_needs_ref_is_true_exactly_when_the_reference_changes_the_answer"),
    "means over tokens": Mistake(
        ((LOSS, "losses = F.relu(1 - beta * (w / pairs.chosen_lens - l / pairs.rejected_lens))"),),
        "Are log-ratios sums over tokens or means?", CORNER, "test_losses.py::test_golden_values_and_gradients"),
    "rewards with a gradient": Mistake(((LOSS, "return F.relu(1 - h), beta * w, beta * l"),),
        "The rewards are only logged. May a gradient flow through them?", LOGGED,
        "test_losses.py::test_shapes_and_rewards_without_gradient"),
    "the mean instead of one loss a pair": Mistake(((LOSS, "losses = F.relu(1 - h).mean()"),),
        "What shape do the losses of a batch have?", LOGGED,
        "test_losses.py::test_shapes_and_rewards_without_gradient"),
}
ALTERNATIVES = {
    "clamp": '''
def hinge(pairs, *, beta=0.2):
    need(beta > 0, "beta")
    w, l = pairs.chosen_logratios, pairs.rejected_logratios
    return (1 - beta * (w - l)).clamp(min=0), beta * w.detach(), beta * l.detach()
''',
    "where": '''
def hinge(pairs, *, beta=0.2):
    w, l, h = log_ratios(pairs, beta)
    losses = torch.where(h < 1, 1 - h, torch.zeros_like(h))
    return with_rewards(losses, beta, w, l)
''',
    "a loop": '''
def hinge(pairs, *, beta=0.2):
    w, l, h = log_ratios(pairs, beta)
    losses = torch.stack([1 - x if x < 1 else 0 * x for x in h])
    return losses, (beta * w).detach(), (beta * l).detach()
''',
}
HIDDEN = ("L = max(0, 1 - h)", "max(0, delta - c + r)")
REMOVED = ("losses_free.py:slic", "losses.py:dpop")
FORMULA = "L = max(0, 1 - h)"
VARIANTS = {
    "squared": (
        (LOSS, "losses = F.relu(1 - h) ** 2"),
        (FORMULA, "L = d^2,   d = the amount by which h is below 1, and 0 where it is not below"),
        ("it pushes every pair below the gap equally hard, and no", "it pushes a pair in proportion to d, and no")),
    "per nat": (
        (LOSS, "losses = F.relu(1 / beta - (w - l))"),
        (FORMULA, "L = the nats by which the gap w - l is below 1 / beta, and 0 where it is not below")),
}
