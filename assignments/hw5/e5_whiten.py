"""
masked_mean and whiten: means over the tokens of completions

Mean 0 and variance 1 over the places under the mask, zeros elsewhere.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/formulas.py:masked_mean", "rlhf/formulas.py:whiten"]
POINTS, MINUTES = 2, 20

def probes(rng):
    """Rows of unequal length, numbers and zeros outside of the mask, a flat vector, hardly any spread, one place."""
    def made(mask, loc=0.0, scale=1.0, zeros=False, **more):
        x = rng.normal(loc, scale, mask.shape)
        return dict(x=x * mask if zeros else x, mask=mask, **more)
    def rows(spans, T):
        mask = np.zeros((len(spans), T), dtype=bool)
        for i, (start, end) in enumerate(spans):
            mask[i, start:end] = True
        return mask
    ragged, flat = rows([(2, 5), (1, 2), (0, 7)], 8), rng.uniform(size=17) < 0.6
    flat[:3] = True, False, True
    places = [f"place {i} of a flat vector" for i in range(17)]
    notes = ["a completion of three tokens", "a completion of one token", "no prompt"]
    return [made(ragged, 2.0, 3.0, title="three completions", rows=notes),
            made(ragged, 2.0, 3.0, True, title="three completions, zeros outside of the mask",
                 rows=notes),
            made(flat, -1.0, title="a flat vector of 17 places", rows=places),
            made(ragged, 0.0, 5e-5, title="hardly any spread"),
            dict(x=np.full((2, 3), 1.5), mask=rows([(0, 2), (1, 3)], 3), title="equal numbers"),
            made(rows([(1, 2)], 3), 4.0, title="one place under the mask")]

def run(module, probe):
    """The mean, and the whitened numbers."""
    return dict(mean=module.masked_mean(probe["x"], probe["mask"]), white=module.whiten(probe["x"], probe["mask"]))

MEAN, CENTER = "return (x * mask).sum() / mask.sum()", "mean = masked_mean(x, mask)"
OWN = (("mean = masked_mean(x, mask)", "mean = x[mask].mean()"),
       ("masked_mean((x - mean) ** 2, mask)", "((x - mean)[mask] ** 2).mean()"))    # whiten without masked_mean
WHITE = "return (x - mean) * (masked_mean((x - mean) ** 2, mask) + 1e-8).rsqrt() * mask"
COUNT, VARIANCE, ZERO = "Which places count", "The variance", "Outside of the mask"
BY_HAND = "test_ppo.py::test_whitening_is_over_completion_tokens"
ONE, EQUAL = "test_advantages.py::test_the_masked_mean_by_hand", "test_advantages.py::test_whitening_by_hand"
UNBIASED_HINT = "By what does the docstring or the handout divide the sum of squares: n or n - 1? What does your " \
    "divisor become with one place under the mask?"
ROWS = "Does a completion of one token count as much as one of seven? Should it, by the docstring?"
PADDING = "Add a column of padding to the batch. Does your mean change?"
MISTAKES = {
    "all places are counted": Mistake(((MEAN, "return (x * mask).sum() / mask.numel()"),), PADDING, COUNT, ONE,
        "The logged policy/ratio of a rollout's first update is below 1, and the lower the more padding there is."),
    "all places are counted, in masked_mean only": Mistake(
        ((MEAN, "return (x * mask).sum() / mask.numel()"), *OWN), PADDING, COUNT, ONE),
    "all places are summed": Mistake(((MEAN, "return x.sum() / mask.sum()"),),
        "Change a number outside of the mask. Does your mean change?", COUNT, ONE),
    "the mask is not used": Mistake(((MEAN, "return x.mean()"),), PADDING, COUNT, ONE),
    "divided by the number of rows": Mistake(((MEAN, "return (x * mask).sum() / len(x)"),),
        "By how many numbers do you divide? Compare with the number of places under the mask.", COUNT, ONE),
    "divided by the number of rows, in masked_mean only": Mistake(
        ((MEAN, "return (x * mask).sum() / len(x)"), *OWN),
        "By how many numbers do you divide? Compare with the number of places under the mask.", COUNT, ONE),
    "the mean of the rows' means": Mistake(((MEAN,
        "return (x * mask).sum(-1).div(mask.sum(-1).clamp(min=1)).mean()"),),
        ROWS, COUNT, ONE,
        "In PPO's loss, a token of a short completion counts more than one of a long completion."),
    "the mean of the rows' means, in masked_mean only": Mistake(
        ((MEAN, "return (x * mask).sum(-1).div(mask.sum(-1).clamp(min=1)).mean()"), *OWN), ROWS, COUNT, ONE),
    "a mean for each row": Mistake(((CENTER, "mean = (x * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)"
                                             ".clamp(min=1)"),),
        "How many means does the rollout have: one, or one for each completion?", COUNT, BY_HAND,
        "The whitened advantages (B, T) of a batch have the mean 0 in every row."),
    "the mean of all places": Mistake(((CENTER, "mean = x.mean()"),),
        "Of which places is the mean of your result 0?", COUNT, BY_HAND),
    "the spread of all places": Mistake(((WHITE,
        "return (x - mean) * (((x - mean) ** 2).mean() + 1e-8).rsqrt() * mask"),),
        "Add a column of padding to the batch. Does your variance change?", VARIANCE, BY_HAND,
        "Whitened advantages have another standard deviation than 1, and it depends on the padding."),
    "the spread under the mask, divided by all places": Mistake(((WHITE,
        "return (x - mean) * ((((x - mean) * mask) ** 2).mean() + 1e-8).rsqrt() * mask"),),
        "Add a column of padding to the batch. Does your variance change?", VARIANCE, EQUAL),
    "n - 1": Mistake(((WHITE, "return (x - mean) * (((x - mean) ** 2 * mask).sum() / (mask.sum() - 1).clamp(min=1) + "
                              "1e-8).rsqrt() * mask"),),
        UNBIASED_HINT, VARIANCE, EQUAL),
    "n - 1, which may be 0": Mistake(((WHITE, "return (x - mean) * (((x - mean) ** 2 * mask).sum() / (mask.sum() - 1) "
                                              "+ 1e-8).rsqrt() * mask"),),
        UNBIASED_HINT, VARIANCE, EQUAL),
    "n - 1, by var() of the places": Mistake(((WHITE,
        "return torch.where(mask, (x - mean) / (x[mask].var() + 1e-8).sqrt(), 0.0)"),), UNBIASED_HINT, VARIANCE, EQUAL),
    "n - 1, by std() of the places": Mistake(((WHITE,
        "return torch.where(mask, (x - mean) / (x[mask].std() + 1e-8), 0.0)"),), UNBIASED_HINT, VARIANCE, EQUAL),
    "n - 1, by std() of the places, times the mask": Mistake(((WHITE,
        "return (x - mean) / (x[mask].std() + 1e-8) * mask"),), UNBIASED_HINT, VARIANCE, EQUAL),
    "the second moment": Mistake(((WHITE, "return (x - mean) * (masked_mean(x ** 2, mask) + 1e-8).rsqrt() * mask"),),
        "Add 100 to all numbers. Does the result change?", VARIANCE, BY_HAND,
        "If all advantages of a rollout are near 10, the whitened ones are all near 0."),
    "divided by the variance": Mistake(((WHITE,
        "return (x - mean) / (masked_mean((x - mean) ** 2, mask) + 1e-8) * mask"),),
        "Multiply all numbers by 10. Does the result change?", VARIANCE, BY_HAND,
        "A reward in other units, ten times as large, gives whitened advantages that are ten times smaller."),
    "not divided": Mistake(((WHITE, "return (x - mean) * mask"),),
        "Multiply all numbers by 10. Does the result change?", VARIANCE, BY_HAND),
    "the small number outside of the root": Mistake(((WHITE,
        "return (x - mean) / (masked_mean((x - mean) ** 2, mask).sqrt() + 1e-8) * mask"),),
        "Is the 1e-8 added to the variance or to its root? One probe has a spread of 5e-5.", VARIANCE, EQUAL),
    "without the small number": Mistake(((WHITE,
        "return (x - mean) * masked_mean((x - mean) ** 2, mask).rsqrt() * mask"),),
        "What is your result if all numbers are equal?", VARIANCE, EQUAL,
        "A rollout whose advantages are all equal has a loss of nan."),
    "a spread of at least 1e-8": Mistake(((WHITE,
        "return (x - mean) * masked_mean((x - mean) ** 2, mask).clamp(min=1e-8).rsqrt() * mask"),),
        "Is the 1e-8 added to the variance, or is it a lower limit? One probe has a spread of 5e-5.", VARIANCE, EQUAL),
    "not centered": Mistake(((WHITE, "return x * (masked_mean((x - mean) ** 2, mask) + 1e-8).rsqrt() * mask"),),
        "What is the mean of your result?", VARIANCE, BY_HAND,
        "If all advantages of a rollout are positive, they are still all positive when they are whitened."),
    "the mean added again": Mistake(((WHITE,
        "return ((x - mean) * (masked_mean((x - mean) ** 2, mask) + 1e-8).rsqrt() + mean) * mask"),),
        "What is the mean of your result?", VARIANCE, BY_HAND),
    "numbers outside of the mask": Mistake(((WHITE, WHITE.removesuffix(" * mask")),),
        "Which entries of your result should be 0?", ZERO, BY_HAND),
}
ALTERNATIVES = {
    "the places under the mask": '''
def masked_mean(x, mask):
    return x[mask].mean()

def whiten(x, mask):
    inside = x[mask]
    out = torch.zeros_like(x)
    out[mask] = (inside - inside.mean()) / (inside.var(correction=0) + 1e-8).sqrt()
    return out
''',
    "sums": '''
def masked_mean(x, mask):
    weights = mask.to(x.dtype) / mask.sum()
    return (weights * x).sum()

def whiten(x, mask):
    centered = torch.where(mask, x - masked_mean(x, mask), 0.0)
    std = torch.sqrt((centered * centered).sum() / int(mask.sum()) + 1e-8)
    return centered / std
''',
    "a loop": '''
def masked_mean(x, mask):
    total, n = 0.0, 0
    for value, inside in zip(x.flatten(), mask.flatten()):
        if inside:
            total, n = total + value, n + 1
    return total / n

def whiten(x, mask):
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    return ((x - mean) / (variance + 1e-8) ** 0.5).masked_fill(~mask, 0)
''',
}
HIDDEN = ("mean = sum(x * mask)", "mean     = masked_mean(x, mask)", "variance = masked_mean((x - mean)^2",
          "whitened = (x - mean) / sqrt")
SPEC = "x with mean 0 and variance 1 over the places where mask is True, and 0 elsewhere."
UNBIASED = ("(((x - mean) ** 2 * mask).sum() / (mask.sum() - 1).clamp(min=1) + 1e-8)",
            "(masked_mean((x - mean) ** 2, mask) + 1e-8)")
VARIANTS = {
    "the mean is kept": (
        (WHITE, WHITE.replace("return (x - mean) *", "return (mean + (x - mean) *").replace(" * mask", ") * mask")),
        (SPEC, "x scaled to variance 1 over the places where mask is True, and 0 elsewhere. The mean is kept:\n    the "
               "distance to it is scaled, and it is added again."),
        ("whitened = (x - mean) / sqrt(variance + 1e-8)", "scaled   = mean + (x - mean) / sqrt(variance + 1e-8)")),
    "the unbiased variance": (
        (WHITE, WHITE.replace(UNBIASED[1], UNBIASED[0])),
        (SPEC, SPEC + "\n    The variance is the unbiased one: the sum of squares is divided by n - 1, or by "
         "1 if n = 1."),
        ("variance = masked_mean((x - mean)^2, mask)", "variance = sum((x - mean)^2 * mask) / max(sum(mask) - 1, 1)")),
}
