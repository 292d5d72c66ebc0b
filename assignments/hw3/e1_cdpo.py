"""
cdpo: dpo for labels that are sometimes wrong

The expectation of dpo's loss where each label is wrong with probability eps, and its range of eps.
"""
import numpy as np

from assignments.drivers import pairs_of, refusals, values_and_gradients
from assignments.exercise import Mistake

TARGETS = ["losses.py:smoothed", "losses.py:cdpo"]
POINTS, MINUTES = 4, 30

def probes(rng):
    """Margins of both signs, a batch of one, eps = 0, and log-ratios so large that a careless loss overflows."""
    def pairs(B, scale):
        ref = -rng.uniform(5, 60, (2, B))
        ratios = rng.normal(0, scale, (2, B))
        ratios[0] = ratios[1] + rng.uniform(0.5, 2, B) * scale * (-1.0) ** np.arange(B)    # margins of both signs
        return dict(values=[*(ref + ratios), *ref], lens=[rng.integers(3, 20, B), rng.integers(3, 20, B)])
    return [dict(title="four pairs, beta 0.1, eps 0.1", beta=0.1, eps=0.1, **pairs(4, 6)),
            dict(title="three pairs, beta 2, eps 0.3", beta=2.0, eps=0.3, **pairs(3, 1)),
            dict(title="one pair, eps 0: dpo", beta=0.5, eps=0.0, **pairs(1, 3)),
            dict(title="log-ratios of thousands of nats", beta=0.5, eps=0.2, **pairs(4, 4000))]

def run(module, probe):
    """Losses, rewards, gradients of the mean loss, `smoothed` by itself, and which hyperparameters are refused."""
    import torch
    pairs, call = pairs_of(module, probe), lambda beta, eps: module.cdpo(pairs, beta=beta, label_smoothing=eps)
    found = values_and_gradients(pairs, *call(probe["beta"], probe["eps"]))
    refused = refusals(call, [(0.0, 0.1), (-1.0, 0.1), (0.1, 0.5), (0.1, -0.1)])
    h = torch.tensor([-300.0, -2.0, 0.0, 1.0, 300.0], dtype=torch.float64)
    return dict(found, refused=refused, smoothed=module.smoothed(h, probe["eps"]))

CALL = "losses = smoothed(h, label_smoothing)"
BOTH = "-(1 - eps) * F.logsigmoid(h) - eps * F.logsigmoid(-h)"
RANGE = 'need(0 <= eps < 0.5, f"label_smoothing must be in [0, 0.5), not {eps}")'
LABELS, FAR, LOGGED, REFUSED = "Wrong labels", "Far from zero", "What is logged", "What is refused"
MISTAKES = {
    "the other sign of the second term": Mistake(((BOTH, "-(1 - eps) * F.logsigmoid(h) + eps * F.logsigmoid(-h)"),),
        "Plot your loss for h from -10 to 10 with eps = 0.3. Where is its minimum, and where should it be?", LABELS,
        "test_losses.py::test_golden_values_and_gradients"),
    "the second term left out": Mistake(((BOTH, "-(1 - eps) * F.logsigmoid(h)"),),
        "A label is wrong with probability eps. What is the loss of a pair whose label is wrong?", LABELS,
        "test_losses.py::test_golden_values_and_gradients"),
    "eps and 1 - eps exchanged": Mistake(((BOTH, "-eps * F.logsigmoid(h) - (1 - eps) * F.logsigmoid(-h)"),),
        "With eps = 0 the loss must be dpo. Is yours?", LABELS, "test_losses.py::test_golden_values_and_gradients",
        "A run with cdpo learns to prefer the rejected completions: its accuracy on validation pairs falls below a "
        "half, with label_smoothing 0.1 and with 0.4."),
    "the logarithm of the mean": Mistake(
        ((BOTH, "-((1 - eps) * h.sigmoid() + eps * (-h).sigmoid()).log()"),),
        "Is the mean over both labels taken of two losses or of two probabilities? They differ.", LABELS,
        "test_losses.py::test_golden_values_and_gradients",
        "cdpo behaves as if it knew no label noise: its margins grow without end on clean pairs. Pairs far on the "
        "wrong side, however, have no gradient."),
    "half of eps": Mistake(
        ((BOTH, "-(1 - eps / 2) * F.logsigmoid(h) - eps / 2 * F.logsigmoid(-h)"),),
        "At which h does the gradient of your loss vanish for eps = 0.2? Compare it with the docstring's value.",
        LABELS, "test_losses.py::test_golden_values_and_gradients",
        "With cdpo, beta 1 and label_smoothing 0.1 the margin h of a pair that always wins settles at 2.94, not 2.20."),
    "eps is ignored": Mistake(((CALL, "losses = smoothed(h, 0.0)"),),
        "Compare the losses of the same pairs at eps = 0 and eps = 0.3.", LABELS,
        "test_losses.py::test_the_reports_losses_by_hand"),
    "beta outside of the loss": Mistake(((CALL, "losses = beta * smoothed(w - l, label_smoothing)"),),
        "While policy and reference are equal, the loss is log 2 for every beta. Is yours?", LABELS,
        "test_losses.py::test_the_reports_losses_by_hand"),
    "sigmoid, then log": Mistake(
        ((BOTH, "-(1 - eps) * h.sigmoid().log() - eps * (-h).sigmoid().log()"),),
        "Try h = -800 and h = 800. Are loss and gradient finite?", FAR,
        "test_losses.py::test_finite_in_float32_with_finite_gradients_far_out"),
    "a clamp": Mistake(((CALL, "losses = smoothed(h.clamp(-20, 20), label_smoothing)"),),
        "Look at the gradient of a pair with a margin of 1000 on the wrong side. Can it still move?", FAR),
    "rewards with a gradient": Mistake(((CALL, "return smoothed(h, label_smoothing), beta * w, beta * l"),),
        "The rewards are only logged. May a gradient flow through them?", LOGGED,
        "test_losses.py::test_shapes_and_rewards_without_gradient"),
    "the mean instead of one loss a pair": Mistake(((CALL, "losses = smoothed(h, label_smoothing).mean()"),),
        "What shape do the losses of a batch have?", LOGGED,
        "test_losses.py::test_shapes_and_rewards_without_gradient"),
    "every eps is accepted": Mistake(((RANGE, "pass"),),
        "What happens with label_smoothing = 0.5 or -0.1? What does the docstring promise?", REFUSED,
        "test_losses.py::test_a_hyperparameter_out_of_its_range_is_refused"),
}
ALTERNATIVES = {
    "softplus": '''
def smoothed(h, eps):
    if eps < 0 or eps >= 0.5:
        raise ValueError("label_smoothing")
    return F.softplus(-h) + eps * h

def cdpo(pairs, *, beta=0.1, label_smoothing=0.1):
    if beta <= 0:
        raise ValueError("beta")
    w, l = pairs.chosen_logratios, pairs.rejected_logratios
    return smoothed(beta * (w - l), label_smoothing), beta * w.detach(), beta * l.detach()
''',
    "binary cross entropy with soft targets": '''
def smoothed(h, eps):
    need(0 <= eps < 0.5, "label_smoothing")
    return F.binary_cross_entropy_with_logits(h, torch.full_like(h, 1 - eps), reduction="none")
''',
    "two calls of dpo": '''
def cdpo(pairs, *, beta=0.1, label_smoothing=0.1):
    need(0 <= label_smoothing < 0.5, "label_smoothing")
    swapped = Pairs(pairs.policy_rejected_logps, pairs.policy_chosen_logps, pairs.ref_rejected_logps,
                    pairs.ref_chosen_logps, pairs.rejected_lens, pairs.chosen_lens)
    right, chosen, rejected = dpo(pairs, beta=beta)
    return (1 - label_smoothing) * right + label_smoothing * dpo(swapped, beta=beta)[0], chosen, rejected
''',
}
HIDDEN = ("eps) log sigmoid(", "eps / 2) log sigmoid(", " " * 55 + "batch")
REMOVED = ("losses.py:robust",)
VARIANTS = {
    "labels by a coin": (
        (BOTH, "-(1 - eps / 2) * F.logsigmoid(h) - eps / 2 * F.logsigmoid(-h)"),
        ("L = -(1 - eps) log sigmoid(h) - eps log sigmoid(-h)",
         "L = -(1 - eps / 2) log sigmoid(h) - eps / 2 log sigmoid(-h)"),
        ("assumed probability that a pair is labeled backwards.",
         "assumed share of pairs that were labeled by a fair coin: half of them are right."),
        ("pushing at sigmoid(h) = 1 - eps,", "pushing at sigmoid(h) = 1 - eps / 2,")),
}
