"""
wilson: the interval of a share

It stays inside [0, 1], also for few trials and for shares of 0 and 1.
"""
from assignments.exercise import Mistake

TARGETS = ["measures.py:wilson"]
POINTS, MINUTES = 3, 25

def probes(rng):
    """Usual counts, one, none or all of few trials, one trial, many trials, other values of z, and no trials."""
    def counts(low, high):
        n = int(rng.integers(low, high))
        return int(rng.integers(1, n)), n
    k, n = counts(8, 20)
    many, all_of = counts(2000, 9000), int(rng.integers(5, 12))
    return [dict(title="some of a few trials", k=k, n=n, more=[]),
            dict(title="one of a few trials", k=1, n=all_of, more=[]),
            dict(title="none of a few trials", k=0, n=all_of, more=[]),
            dict(title="all of a few trials", k=all_of, n=all_of, more=[]),
            dict(title="one trial", k=1, n=1, more=[]),
            dict(title="thousands of trials", k=many[0], n=many[1], more=[]),
            dict(title="90%", k=k, n=n, more=[1.645]),
            dict(title="another z", k=k, n=n, more=[float(rng.uniform(0.5, 3))]),
            dict(title="no trials", k=0, n=0, more=[])]

def run(module, probe):
    """The three numbers."""
    import numpy as np
    return dict(interval=np.asarray(module.wilson(probe["k"], probe["n"], *probe["more"]), dtype="float64"))

NONE = 'return [float("nan"), 0.0, 1.0]'
D, HALF = "p, d = k / n, 1 + z * z / n", "half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5"
RETURN = "return [p, (p + z * z / (2 * n) - half) / d, (p + z * z / (2 * n) + half) / d]"
RETURN_CENTER = RETURN.replace("[p, ", "[(p + z * z / (2 * n)) / d, ")
SCORE, RETURNED = "Which shares are compatible with the data", "What is returned"
BY_HAND = "test_statistics.py::test_wilsons_interval_solves_its_equation"
QUADRATIC = "Put each of your ends p into the equation of the handout, |k/n - p| = z sqrt(p (1 - p) / n). Does it hold?"
MISTAKES = {
    "Wald's interval": Mistake(
        ((HALF, "half = z * (p * (1 - p) / n) ** 0.5"), (RETURN, "return [p, p - half, p + half]")),
        "Is the standard error in your equation that of the observed share, or that of the share which is tested?",
        SCORE, BY_HAND,
        "A side that wins none or all of the judge's comparisons has a win rate whose interval has no width."),
    "Wald's interval, clipped": Mistake(
        ((HALF, "half = z * (p * (1 - p) / n) ** 0.5"), (RETURN, "return [p, max(0.0, p - half), min(1.0, p + half)]")),
        "An interval that follows from the equation needs no clipping. What does yours say for 0 of 20?", SCORE,
        BY_HAND),
    "Agresti and Coull": Mistake(
        ((D, "p, d = (k + z * z / 2) / (n + z * z), 1"), (HALF, "half = z * (p * (1 - p) / (n + z * z)) ** 0.5"),
         (RETURN, "return [k / n, p - half, p + half]")),
        "The centers agree, but is your lower end for 0 of 10 negative? Wilson's never is.", SCORE, BY_HAND),
    "the root without its second term": Mistake(((HALF, "half = z * (p * (1 - p) / n) ** 0.5"),), QUADRATIC, SCORE,
        BY_HAND),
    "z^2 / (4 n) under the root": Mistake(((HALF, "half = z * (p * (1 - p) / n + z * z / (4 * n)) ** 0.5"),), QUADRATIC,
        SCORE, BY_HAND),
    "z^2 / n under the root": Mistake(((HALF, "half = z * ((p * (1 - p) + z * z / n) / n) ** 0.5"),), QUADRATIC, SCORE,
        BY_HAND),
    "not divided": Mistake(((D, "p, d = k / n, 1"),),
        "What is your upper end for 10 of 10? The equation is quadratic in p: which number stands before p^2?", SCORE,
        BY_HAND, "The judge's win rate can have an upper end above 1."),
    "only the center is divided": Mistake(
        ((RETURN, "return [p, (p + z * z / (2 * n)) / d - half, (p + z * z / (2 * n)) / d + half]"),),
        "What is your upper end for 10 of 10? The equation is quadratic in p: which number stands before p^2?", SCORE,
        BY_HAND),
    "around the share": Mistake(((RETURN, "return [p, p - half / d, p + half / d]"),),
        "The interval of 0 of 10 cannot go below 0. Where is the middle of yours?", RETURNED, BY_HAND,
        "A side that wins none of ten comparisons has a win rate whose interval reaches below 0."),
    "n - 1": Mistake(((HALF, "half = z * ((p * (1 - p) + z * z / (4 * n)) / max(1, n - 1)) ** 0.5"),),
        "Nothing is estimated before the test: the variance of a share p of n trials is known. What is it?", SCORE,
        BY_HAND),
    "the center for the share": Mistake(((RETURN, RETURN_CENTER),),
        "Which number does the docstring put first? Try 10 of 10.", RETURNED, BY_HAND,
        "A side that wins all of ten comparisons is reported with a win rate of 0.86."),
    "half-widths": Mistake(
        ((RETURN, "return [p, p - (p + z * z / (2 * n) - half) / d, (p + z * z / (2 * n) + half) / d - p]"),),
        "Do you return the ends of the interval, or their distances from the share?", RETURNED, BY_HAND),
    "z without effect": Mistake(((D, "z = 1.96\n    " + D),),
        "Compare two values of z. Which interval should be wider: that of 90% or that of 95%?", SCORE, BY_HAND),
    "division by zero": Mistake(((NONE, "return [0 / n, 0.0, 1.0]"),),
        "Call it with n = 0. The docstring has a line on it.", RETURNED, BY_HAND,
        "Evaluation ends with an error where every verdict of the judge was invalid."),
    "a share of 0 of no trials": Mistake(((NONE, "return [0.0, 0.0, 1.0]"),),
        "No trials say nothing of a share. Which number says that, by the docstring?", RETURNED, BY_HAND,
        "Where every verdict of the judge was invalid, the win rate is reported as 0."),
    "no interval of no trials": Mistake(((NONE, 'return [float("nan")] * 3'),),
        "Which shares are compatible with no data at all?", RETURNED, BY_HAND),
}
ALTERNATIVES = {
    "the roots of the quadratic": '''
def wilson(k, n, z=1.96):
    if n == 0:
        return [math.nan, 0.0, 1.0]
    a, b, c = n + z ** 2, -(2 * k + z ** 2), k ** 2 / n
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return [k / n, (-b - root) / (2 * a), (-b + root) / (2 * a)]
''',
    "a mean of the share and of one half": '''
def wilson(k, n, z=1.96):
    if not n:
        return [float("nan"), 0.0, 1.0]
    weight = n / (n + z * z)
    center = weight * (k / n) + (1 - weight) * 0.5
    square = weight * (k / n) * (1 - k / n) + (1 - weight) * 0.25
    half = z * math.sqrt(square / (n + z * z))
    return [k / n, center - half, center + half]
''',
    "bisection": '''
def wilson(k, n, z=1.96):
    if not n:
        return [math.nan, 0.0, 1.0]
    share, ends = k / n, []
    for outer in (0.0, 1.0):
        inner = share
        for _ in range(200):
            middle = (inner + outer) / 2
            fits = n * (share - middle) ** 2 <= z * z * middle * (1 - middle)
            inner, outer = (middle, outer) if fits else (inner, middle)
        ends.append(inner)
    return [share, *ends]
''',
}
HIDDEN = ()
REMOVED = ()
DOC = "[share, low, high]: the share k / n and its interval (Wilson 1927), 95% for z = 1.96. [NaN, 0, 1] if n is 0."
VARIANTS = {
    "the center for the share": (
        (RETURN, RETURN_CENTER),
        (NONE, "return [0.5, 0.0, 1.0]"),
        (DOC,
         "[center, low, high]: interval of k / n (Wilson 1927), its center, 95% for z = 1.96. [1/2, 0, 1] if n is 0.")),
    "percent": (
        (RETURN, "return [100 * p, 100 * (p + z * z / (2 * n) - half) / d, 100 * (p + z * z / (2 * n) + half) / d]"),
        (NONE, 'return [float("nan"), 0.0, 100.0]'),
        (DOC,
         "[share, low, high], percent: k / n, its interval (Wilson 1927), 95% for z = 1.96. [NaN, 0, 100] if n is 0.")),
}
