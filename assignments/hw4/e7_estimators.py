"""
k1, k2 and k3: three estimates of a KL from one sample

Functions of the log-ratio of a sample, with values and slopes that are right also close to zero.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["measures.py:k1", "measures.py:k2", "measures.py:k3"]
POINTS, MINUTES = 3, 30

def probes(rng):
    """Log-ratios of usual size in several shapes, zero among them, far out, and next to zero."""
    far = np.array([-12.0, -5.0, 4.0, 30.0, 900.0]) + rng.uniform(-1, 1, 5)
    near = np.array([-3.0, -1.0, 1.0, 2.0, 5.0]) * 1e-12 * rng.uniform(1, 1.2, 5)
    return [dict(title="a matrix", logratios=rng.normal(0, 1.5, (3, 4))),
            dict(title="zero and both signs", logratios=np.array([0.0, 0.5, -0.5]) * rng.uniform(1, 2, 3)),
            dict(title="three dimensions", logratios=rng.normal(0, 0.5, (2, 1, 3))),
            dict(title="far from zero", logratios=far),
            dict(title="log-ratios of 1e-12", logratios=near)]

def run(module, probe):
    """Values and slopes; next to zero only the value of each estimate, divided by the size of the log-ratio."""
    import torch
    l, found = probe["logratios"].requires_grad_(), {}
    weight = torch.linspace(1, 2, l.numel(), dtype=l.dtype).view(l.shape)
    near = float(l.detach().abs().max()) < 1e-9
    for name in ("k1", "k2", "k3"):
        value = getattr(module, name)(l)
        if near:
            found[name] = value / l.abs()
            continue
        found[name] = value
        total = (value * weight).sum()
        slope = torch.autograd.grad(total, l, allow_unused=True)[0] if total.requires_grad else None
        found[f"gradient of {name}"] = torch.zeros_like(l) if slope is None else slope
    return found

K1, K2 = 'the other direction\n    """\n    return logratios', "return logratios ** 2 / 2"
K3 = "return torch.expm1(-logratios) + logratios    # expm1(x) is exp(x) - 1 without its rounding at small x"

def first(statement):
    """An edit of k1, whose last line is not the only one of its kind."""
    return K1, K1.replace("return logratios", statement)

RATIO, SHAPES, SMALL = "From Schulman's ratio to the log-ratio", "What an estimate returns", "Close to zero"
EXACT = "test_estimators.py::test_the_exact_numbers_against_a_slow_loop"
CLOSE, GRADIENT = (f"test_frontier.py::test_{name}" for name in
                   ("k3_is_right_where_policy_and_reference_are_close", "an_estimate_of_the_kl_can_be_differentiated"))
INVERTED = "Is r = q / p the exponential of l or of -l? Take p = 0.5 and q = 0.25 on paper."
HALF = "Take the worked example: how does your k2 or k3 compare with l^2 / 2 where l is small?"
SIGN = "The samples are p's. Which sign has the mean of log p - log q over them?"
LINEAR = "Take both samples of the worked example. What is the mean of your k3 over them, with their probabilities?"
ROUNDED = "Try l = 1e-12. Near zero k3 is nearly l^2 / 2. Is yours? How many digits has 1 - 1e-12 left for it?"
DETACHED = "An estimate may stand in a loss. Has each of yours the slope of its formula?"
CLAMPED = "Is the mean of your estimate still the KL far from the reference? What have you cut off?"
REDUCED = "How many numbers do you return for a matrix of log-ratios?"
SHAPE = "What shape does an estimate have?"
PLACE = "Only the sum over samples of a right estimate is positive. Which of the three may be negative?"
MISTAKES = {
    "k1 of the other ratio": Mistake((first("return -logratios"),), SIGN, RATIO, EXACT,
        "A run of PPO with a KL penalty moves away from the reference faster the larger beta is."),
    "the ratio as k1": Mistake((first("return logratios.exp()"),),
        "What is k1 where p and q agree? What is a KL there?", RATIO, EXACT),
    "the size of k1": Mistake((first("return logratios.abs()"),), PLACE, RATIO, EXACT,
        "Close to the reference the mean of k1 is many times the KL."),
    "k1 without negative values": Mistake((first("return logratios.clamp(min=0)"),), PLACE, RATIO, EXACT),
    "k2 without its half": Mistake(((K2, "return logratios ** 2"),), HALF, RATIO, EXACT,
        "With k2 in the loss, a run ends where one with twice its beta should."),
    "half of the log-ratio": Mistake(((K2, "return logratios / 2"),),
        "May k2 be negative? What is squared?", RATIO, EXACT),
    "k2 of the ratio": Mistake(((K2, "return (logratios.exp() - 1) ** 2 / 2"),),
        "Is it the ratio or its logarithm that is squared in k2?", RATIO, EXACT),
    "k2 of Schulman's ratio": Mistake(((K2, "return ((-logratios).exp() - 1) ** 2 / 2"),),
        "Is it the ratio or its logarithm that is squared in k2?", RATIO, EXACT),
    "k3 of the other ratio": Mistake(((K3, "return torch.expm1(logratios) - logratios"),), INVERTED, RATIO, EXACT,
        "With k3 in the loss, answers that are likelier than in the reference are punished exponentially. The logged "
        "estimate far from the reference is several times the KL."),
    "k3 of the other ratio, from exponentials": Mistake(((K3, "return logratios.exp() - 1 - logratios"),), INVERTED,
        RATIO, EXACT),
    "k3 of the other ratio, with its logarithm": Mistake(
        ((K3, "r = logratios.exp()\n    return (r - 1) - r.log()"),), INVERTED, RATIO, EXACT),
    "all of the other ratio": Mistake((first("return -logratios"), (K3, "return torch.expm1(logratios) - logratios")),
        INVERTED, RATIO, EXACT),
    "one exponential of the other ratio": Mistake(((K3, "return torch.expm1(logratios) + logratios"),), INVERTED, RATIO,
        EXACT),
    "the sign of the logarithm": Mistake(((K3, "return torch.expm1(-logratios) - logratios"),),
        "May k3 be negative? Draw it from l = -1 to l = 1. Where is it smallest?", RATIO, EXACT),
    "k3 without the log-ratio": Mistake(((K3, "return torch.expm1(-logratios)"),), LINEAR, RATIO, EXACT),
    "k3 without the 1": Mistake(((K3, "return torch.exp(-logratios) + logratios"),),
        "What is k3 where p and q agree? What is a KL there?", RATIO, EXACT,
        "While policy and reference are the same, the logged KL of a run with k3 is 1 nat a token."),
    "half of k3": Mistake(((K3, "return (torch.expm1(-logratios) + logratios) / 2"),), HALF, RATIO, EXACT),
    "k3 times the ratio": Mistake(((K3, "return logratios.exp() * logratios - torch.expm1(logratios)"),),
        "Who draws the samples, p or q? Does your estimate weigh them a second time?", RATIO, EXACT),
    "a difference of exponentials": Mistake(((K3, "return (-logratios).exp() - 1 + logratios"),), ROUNDED, SMALL,
        CLOSE),
    "the 1 at the end": Mistake(((K3, "return (-logratios).exp() + logratios - 1"),), ROUNDED, SMALL, CLOSE),
    "the log-ratio less 1": Mistake(((K3, "return (-logratios).exp() + (logratios - 1)"),), ROUNDED, SMALL, CLOSE),
    "r - 1 - log r": Mistake(((K3, "r = (-logratios).exp()\n    return r - 1 - r.log()"),),
        "What is your k3 at l = 900? What is the ratio there in floating point, and its logarithm?", SMALL, CLOSE),
    "1 divided by the ratio": Mistake(((K3, "return 1 / logratios.exp() - 1 + logratios"),), ROUNDED, SMALL, CLOSE),
    "k3 is clamped": Mistake(((K3, "return (torch.expm1(-logratios) + logratios).clamp(max=10)"),), CLAMPED, SMALL,
        EXACT),
    "both are clamped": Mistake(((K3, "x = (-logratios).clamp(-20, 20)\n    return (x.exp() - x - 1).clamp(-10, 10)"),),
        CLAMPED, SMALL, EXACT),
    "the log-ratio is clamped": Mistake(
        ((K3, "logratios = logratios.clamp(-10, 10)\n    return torch.expm1(-logratios) + logratios"),), CLAMPED,
        SMALL),
    "the log-ratio is clamped at 20": Mistake(
        ((K3, "logratios = logratios.clamp(-20, 20)\n    return torch.expm1(-logratios) + logratios"),), CLAMPED,
        SMALL),
    "the ratio is detached": Mistake(((K3, "return torch.expm1(-logratios).detach() + logratios"),), DETACHED, SHAPES,
        GRADIENT, "With k3 in the loss, the expected gradient of the KL is 0, as with k1."),
    "k3 is detached": Mistake(((K3, "return (torch.expm1(-logratios) + logratios).detach()"),), DETACHED, SHAPES,
        GRADIENT),
    "k2 is detached": Mistake(((K2, "return logratios.detach() ** 2 / 2"),), DETACHED, SHAPES, GRADIENT),
    "all are detached": Mistake((first("return logratios.detach()"), (K2, "return logratios.detach() ** 2 / 2"),
        (K3, "return (torch.expm1(-logratios) + logratios).detach()")), DETACHED, SHAPES, GRADIENT),
    "means": Mistake((first("return logratios.mean()"), (K2, "return (logratios ** 2 / 2).mean()"),
        (K3, "return (torch.expm1(-logratios) + logratios).mean()")), REDUCED, SHAPES, EXACT),
    "k1 is averaged": Mistake((first("return logratios.mean()"),), SHAPE, SHAPES, EXACT),
    "k2 is averaged": Mistake(((K2, "return (logratios ** 2 / 2).mean()"),), SHAPE, SHAPES, EXACT),
    "k3 is averaged": Mistake(((K3, "return (torch.expm1(-logratios) + logratios).mean()"),), SHAPE, SHAPES, EXACT),
    "sums over the last dimension": Mistake((first("return logratios.sum(-1)"),
        (K2, "return (logratios ** 2 / 2).sum(-1)"), (K3, "return (torch.expm1(-logratios) + logratios).sum(-1)")),
        REDUCED, SHAPES, EXACT),
}
ALTERNATIVES = {
    "products": '''
def k1(logratios):
    return logratios.clone()

def k2(logratios):
    return 0.5 * logratios * logratios

def k3(logratios):
    return logratios + (-1.0 * logratios).expm1()
''',
    "a hyperbolic sine": '''
def k1(logratios):
    return 1.0 * logratios

def k2(logratios):
    return torch.square(logratios) / 2

def k3(logratios):
    half = logratios / 2
    return logratios - 2 * (-half).exp() * torch.sinh(half)
''',
    "a series near zero": '''
def k1(logratios):
    return logratios + 0.0

def k2(logratios):
    return (logratios * 0.5 ** 0.5).pow(2)

def k3(logratios):
    near = logratios.abs() < 1e-4
    l = torch.where(near, torch.zeros_like(logratios), logratios)
    series = logratios ** 2 / 2 * (1 - logratios / 3 * (1 - logratios / 4 * (1 - logratios / 5)))
    return torch.where(near, series, torch.exp(-l) - 1 + l)
''',
}
HIDDEN = ("k1 = l,   k2 = l^2 / 2,   k3 = exp(-l) - 1 + l", "It is exp(-l) - 1 + l, where exp(-l)",
          "its mean is not the KL. The mean of exp(-l)",
          "The mean estimates the value of the KL. Its gradient", "them gives where it is subtracted from",
          "value           in the reward, score", "k1 unbiased     grad KL", "k2 biased       another one",
          "k3 unbiased     grad KL")
MEANING, FIRST = "l = log p(y) - log q(y)         logratios", "The log-ratio itself: unbiased"
VARIANTS = {
    "the logarithm of Schulman's ratio": (
        (FIRST, "The estimate with one logarithm: unbiased"),
        (MEANING, "logratios = log q(y) - log p(y)"),
        first("return -logratios"),
        (K3, "return torch.expm1(logratios) - logratios")),
    "at most 10 nats": (
        ("Unbiased and never negative. See k1.\n", "Never negative, and at most 10 nats: larger values are 10 nats. "
         "Unbiased without that. See k1.\n"),
        (K3, "return (torch.expm1(-logratios) + logratios).clamp(max=10)")),
}
