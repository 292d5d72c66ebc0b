"""
link: how a divergence turns a log-ratio into a reward

f' at u = e^x for four divergences, without overflow.
"""
import numpy as np

from assignments.drivers import refusals
from assignments.exercise import Mistake

TARGETS = ["losses.py:link"]
POINTS, MINUTES = 6, 45

def probes(rng):
    """Each divergence near zero, and those with an exponential or a logarithm far out."""
    near = lambda: np.sort(rng.uniform(-3, 3, 6))
    far = lambda: np.array([-900.0, -120.0, -101.5, 35.0, 900.0]) + rng.uniform(-1, 1, 5)
    return [dict(title="reverse_kl", x=near(), divergence="reverse_kl", alpha=0.5),
            dict(title="forward_kl", x=near(), divergence="forward_kl", alpha=0.5),
            dict(title="jsd", x=near(), divergence="jsd", alpha=0.5),
            dict(title="alpha 0.3", x=near(), divergence="alpha", alpha=0.3),
            dict(title="alpha 0.8", x=near(), divergence="alpha", alpha=0.8),
            dict(title="forward_kl, hundreds of nats", x=far(), divergence="forward_kl", alpha=0.5),
            dict(title="jsd, hundreds of nats", x=far(), divergence="jsd", alpha=0.5),
            dict(title="alpha 0.9, hundreds of nats", x=far(), divergence="alpha", alpha=0.9)]

def run(module, probe):
    """Values, their derivative, the value at x = 0, and what is refused."""
    import torch
    x, divergence, alpha = probe["x"].requires_grad_(), probe["divergence"], probe["alpha"]
    value = module.link(x, divergence, alpha)
    slope, = torch.autograd.grad(value.sum(), x)
    zeros = torch.zeros(1, dtype=torch.float64)
    refused = refusals(lambda *more: module.link(zeros, *more),
                       [("kl", 0.5), ("alpha", 0.0), ("alpha", 1.0), ("alpha", 1.2), ("jsd", -1.0)])
    return dict(value=value, slope=slope, at_zero=module.link(zeros, divergence, alpha), refused=refused)

IF_REVERSE, IF_FORWARD = 'if divergence == "reverse_kl"', 'if divergence == "forward_kl"'
REVERSE, FORWARD = f"{IF_REVERSE}:\n        return x", "return -exp_line(-x)"
JSD, ALPHA = "return math.log(2) + F.logsigmoid(x)", "return (1 - exp_line(-alpha * x)) / alpha"
NAMES = 'need(divergence in divergences, f"divergence must be one of {\', \'.join(divergences)}, not {divergence}")'
RANGE = 'need(0 < alpha <= 1, f"alpha must be in (0, 1], not {alpha}")'
DERIVE, FAR, REFUSED = "From f to its link", "Far from zero", "What is refused"
SLOPE = "test_losses.py::test_link_is_the_derivative_of_the_divergence"
BY_HAND = "test_losses.py::test_the_reports_losses_by_hand"
FINITE = "test_losses.py::test_finite_in_float32_with_finite_gradients_far_out"
MISTAKES = {
    "u instead of its logarithm": Mistake(((REVERSE, f"{IF_REVERSE}:\n        return exp_line(x)"),),
        "For reverse_kl, f-DPO must be dpo. Compare the losses of both.", DERIVE, BY_HAND),
    "the constant of reverse_kl": Mistake(((REVERSE, f"{IF_REVERSE}:\n        return x + 1"),),
        "Compare the values at x = 0 with the table of the handout. Which constants are left out?", DERIVE, SLOPE),
    "the constant of jsd": Mistake(((JSD, "return F.logsigmoid(x)"),),
        "Compare the values at x = 0 with the table of the handout. Is jsd as the others?", DERIVE, SLOPE),
    "the constant of alpha": Mistake(((ALPHA, "return -exp_line(-alpha * x) / alpha"),),
        "What is the value for a small alpha, such as 1e-6? It should be near to that of reverse_kl.", DERIVE, SLOPE),
    "the sign of forward_kl": Mistake(((FORWARD, "return exp_line(-x)"),),
        "f is convex, so f' rises with u. Does your value rise with x for each divergence?", DERIVE, BY_HAND,
        "f-DPO with forward_kl lowers the log-probs of chosen completions more than those of rejected ones, though the "
        "logged accuracy rises. The other divergences are fine."),
    "the wrong way in u": Mistake(((FORWARD, "return -exp_line(x)"),),
        "f is convex, so f' rises with u. Does your value rise with x for each divergence?", DERIVE, BY_HAND),
    "forward and reverse exchanged": Mistake(
        ((IF_REVERSE, 'if divergence == "other"'), (IF_FORWARD, IF_REVERSE), ('if divergence == "other"', IF_FORWARD)),
        "Which of the two KL divergences is that of dpo: the mean under the policy or under the reference?", DERIVE,
        BY_HAND),
    "jsd with -x": Mistake(((JSD, "return math.log(2) + F.logsigmoid(-x)"),),
        "Where should jsd be bounded: for u near 0 or for large u?", DERIVE, FINITE,
        "f-DPO with jsd, its default, makes the chosen completions less likely, though the logged accuracy rises."),
    "half of jsd": Mistake(((JSD, "return (math.log(2) + F.logsigmoid(x)) / 2"),),
        "Is there a factor in front of this f, such as the 1/2 of the usual Jensen-Shannon divergence?", DERIVE, SLOPE),
    "TRL's alpha": Mistake(((ALPHA, "return (1 - exp_line(-(1 - alpha) * x)) / max(1 - alpha, 1e-9)"),),
        "Towards which KL divergence does alpha near 0 go, and towards which alpha = 1?", DERIVE,
        "test_losses.py::test_alpha_lies_between_reverse_and_forward_kl",
        "On the exact world f-DPO with divergence alpha ends near the optimum of the reverse KL at alpha 0.9, and near "
        "that of the forward KL at 0.1."),
    "alpha, not divided": Mistake(((ALPHA, "return 1 - exp_line(-alpha * x)"),),
        "The derivative of f' at u = 1 is f''(1), and the same for every alpha. Is yours?", DERIVE, SLOPE,
        "On the exact world f-DPO with divergence alpha 0.1 and beta 1 goes far beyond its optimum. With beta 10 it "
        "ends there."),
    "the sign in alpha's exponent": Mistake(((ALPHA, "return (exp_line(alpha * x) - 1) / alpha"),),
        "Is alpha's value bounded for large x or for very negative x? Compare with f' on paper, at u = 4.", DERIVE,
        SLOPE),
    "e^-x overflows": Mistake(((FORWARD, "return -(-x).exp()"),),
        "Try x = -900 with forward_kl. The file has a function for this, above the losses.", FAR, FINITE),
    "a clamp": Mistake(((FORWARD, "return -(-x).clamp(max=30.0).exp()"),),
        "Look at the gradient at x = -100 with forward_kl. Can such a pair still move?", FAR, FINITE,
        "With forward_kl, completions that the policy has all but given up never come back: their gradient is 0."),
    "e^(-a x) overflows": Mistake(((ALPHA, "return (1 - (-alpha * x).exp()) / alpha"),),
        "Try x = -900 with alpha = 0.9. The file has a function for this, above the losses.", FAR, FINITE),
    "u, then its logarithm": Mistake(((JSD, "return (2 * x.exp() / (1 + x.exp())).log()"),),
        "Try jsd at x = 900 and x = -900: is u = e^x still a number?", FAR, FINITE),
    "every alpha is accepted": Mistake(((RANGE, "pass"),),
        "What happens with alpha = 0, and with alpha = 1.2? What does the docstring promise?", REFUSED,
        "test_losses.py::test_a_hyperparameter_out_of_its_range_is_refused"),
    "every name is accepted": Mistake(((NAMES, "pass"),),
        "What happens with a divergence that is not one of the four?", REFUSED,
        "test_losses.py::test_a_hyperparameter_out_of_its_range_is_refused"),
}
ALTERNATIVES = {
    "a table": '''
def link(x, divergence, alpha):
    if not 0 < alpha <= 1:
        raise ValueError("alpha")
    table = {"reverse_kl": lambda: 1.0 * x, "forward_kl": lambda: -exp_line(-x),
             "jsd": lambda: math.log(2) - F.softplus(-x), "alpha": lambda: 1 / alpha - exp_line(-alpha * x) / alpha}
    if divergence not in table:
        raise ValueError("divergence")
    return table[divergence]()
''',
    "logaddexp": '''
def link(x, divergence, alpha):
    need(divergence in ("reverse_kl", "forward_kl", "jsd", "alpha"), "divergence")
    need(0 < alpha <= 1, "alpha")
    match divergence:
        case "reverse_kl":
            return x.clone()
        case "forward_kl":
            return exp_line(-x).neg()
        case "jsd":
            return math.log(2) + x - torch.logaddexp(x, torch.zeros_like(x))
    return (1 - exp_line(-x * alpha)) * (1 / alpha)
''',
}
HIDDEN = ("divergence   f(u) ", "reverse_kl   u log u", "forward_kl   -log u", "log(2 u / (u + 1))", "(1 - u^-a) / a",
          "e^-x alone overflows", "(1 - e^(-alpha x)) / alpha", "Where e^(-alpha x) exceeds", "(1 - p^-alpha) / alpha",
          "p^-alpha alone overflows")
REMOVED = ("losses_free.py:power_reward",)
VARIANTS = {
    "TRL's alpha": (
        (RANGE, 'need(0 <= alpha < 1, f"alpha must be in [0, 1), not {alpha}")'),
        (ALPHA, "return (1 - exp_line(-(1 - alpha) * x)) / (1 - alpha)"),
        ("a is alpha. For a -> 0", "a is 1 - alpha. For a -> 0"),
        ("in (0, 1], used by divergence alpha only", "in [0, 1), used by divergence alpha only, where a = 1 - alpha")),
    "zero at the reference": (
        (FORWARD, "return 1 - exp_line(-x)"),
        ("without its constant terms: how", "less f'(1), so that link(0) = 0 for each divergence: how")),
}
