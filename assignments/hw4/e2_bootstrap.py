"""
bootstrap: how far a mean over prompts can be off

Resamples of the prompts, and the percentiles of their means.
"""
from assignments.exercise import Mistake

TARGETS = ["measures.py:bootstrap"]
POINTS, MINUTES = 5, 35

def probes(rng):
    """Skewed values, few of them, one, a list of truth values, equal values, other numbers of resamples and seeds."""
    seed = lambda: int(rng.integers(1, 1000))
    return [dict(title="forty prompts, 2,000 resamples", values=rng.exponential(2.0, 40), more={}),
            dict(title="another seed", values=rng.exponential(1.0, 23), more=dict(seed=seed())),
            dict(title="300 resamples", values=rng.normal(-3, 1, 31) ** 3, more=dict(n=300, seed=seed())),
            dict(title="20 resamples", values=rng.exponential(1.0, 15), more=dict(n=20, seed=seed())),
            dict(title="three prompts", values=rng.exponential(1.0, 3), more=dict(n=101, seed=seed())),
            dict(title="one prompt", values=rng.normal(2, 1, 1), more=dict(n=50, seed=seed())),
            dict(title="a list of truth values", values=(rng.random(60) < 0.2).tolist(), more=dict(seed=seed())),
            dict(title="equal values", values=0 * rng.normal(0, 1, 6) + 0.7, more=dict(n=40, seed=seed()))]

def run(module, probe):
    """The three numbers."""
    import numpy as np
    values = probe["values"] if isinstance(probe["values"], list) else probe["values"].numpy()
    return dict(interval=np.asarray(module.bootstrap(values, **probe["more"]), dtype="float64"))

PICKS = "np.random.default_rng(seed).integers(0, len(values), (n, len(values)))"
PERCENTILE = "np.percentile(values[picks].mean(1), [2.5, 97.5])"
RETURN = "return [float(values.mean()), float(low), float(high)]"
ERROR = "1.96 * values.std(ddof=min(1, len(values) - 1)) / len(values) ** 0.5"
RESAMPLE, DRAWS, PERCENTILES = "A resample", "The draws", "The percentiles"
SLOW = "test_statistics.py::test_the_bootstrap_equals_a_slow_loop_over_the_draws_that_it_names"
WIDTH = "test_measures.py::test_the_bootstrap_interval_covers_the_mean_of_a_known_distribution"
FORMULA = "Take skewed values, such as 0, 0, 0, 0, 9. Is your interval symmetric around the mean? Is the docstring's?"
ORDER = "Your interval is about right, but its draws are others. Which call does the docstring name, with which shape?"
SPREAD = "Is it the spread of the values or that of the means? Take 100 times as many prompts: which of them shrinks?"
MISTAKES = {
    "percentiles of the values": Mistake(((PERCENTILE, "np.percentile(values, [2.5, 97.5])"),), SPREAD, RESAMPLE, WIDTH,
        "Evaluation on four times as many prompts gives intervals of the same width."),
    "percentiles of single draws": Mistake(((PERCENTILE, "np.percentile(values[picks], [2.5, 97.5])"),), SPREAD,
        RESAMPLE, WIDTH),
    "without replacement": Mistake(
        ((PICKS, "np.random.default_rng(seed).permuted(np.tile(np.arange(len(values)), (n, 1)), axis=1)"),),
        "How many different means do your resamples have? Can a prompt be in a resample twice?", RESAMPLE, SLOW,
        "Every interval of the evaluation has the width 0."),
    "n prompts in a resample": Mistake(((PICKS, "np.random.default_rng(seed).integers(0, len(values), (n, n))"),),
        "How many prompts has a resample? Would a resample of a million prompts show how far yours can be off?",
        RESAMPLE, SLOW),
    "the mean over resamples": Mistake(((PERCENTILE, "np.percentile(values[picks].mean(0), [2.5, 97.5])"),),
        "How many means do you take percentiles of: n, or one for each prompt?", RESAMPLE, SLOW,
        "On 256 prompts, intervals are about a third as wide as they should be. On 2,000 prompts they are right."),
    "medians of the resamples": Mistake(((PERCENTILE, "np.percentile(np.median(values[picks], 1), [2.5, 97.5])"),),
        "Of which statistic is the interval? It should be the one that is reported.", RESAMPLE, SLOW),
    "the median is reported": Mistake(((RETURN, "return [float(np.median(values)), float(low), float(high)]"),),
        "What does the docstring report first? Compare with a mean on paper.", RESAMPLE, SLOW,
        "On prompts with a skewed reward, the reported reward is not the mean of the samples' rewards."),
    "the mean of the resamples' means": Mistake(
        ((RETURN, "return [float(values[picks].mean()), float(low), float(high)]"),),
        "Does the first number change with the seed? Should it?", RESAMPLE, SLOW),
    "1.96 standard errors by a formula": Mistake(
        ((PERCENTILE, f"values.mean() - {ERROR}, values.mean() + {ERROR}"),), FORMULA, PERCENTILES, SLOW),
    "1.96 standard errors, biased": Mistake(
        ((PERCENTILE, "values.mean() + np.array([-1.96, 1.96]) * values.std() / len(values) ** 0.5"),), FORMULA,
        PERCENTILES, SLOW),
    "1.96 standard deviations of the means": Mistake(
        ((PERCENTILE, "values.mean() + np.array([-1.96, 1.96]) * values[picks].mean(1).std()"),), FORMULA, PERCENTILES,
        SLOW),
    "1.96 standard deviations of the means, n - 1": Mistake(
        ((PERCENTILE, "values.mean() + np.array([-1.96, 1.96]) * values[picks].mean(1).std(ddof=1)"),), FORMULA,
        PERCENTILES, SLOW),
    "the next mean in their order": Mistake(
        ((PERCENTILE, "np.sort(values[picks].mean(1))[[int(0.025 * n), int(0.975 * n)]]"),),
        "Of 41 means in their order, the 2.5% percentile is at place 1 of 0 to 40. Where is it among n means?",
        PERCENTILES, SLOW),
    "5% and 95%": Mistake(((PERCENTILE, "np.percentile(values[picks].mean(1), [5, 95])"),),
        "Which share of the means lies between your ends? Count them.", PERCENTILES, SLOW,
        "Of 100 evaluations of one policy on other prompts, about ten have an interval without the true mean."),
    "percentiles as shares": Mistake(((PERCENTILE, "np.percentile(values[picks].mean(1), [0.025, 0.975])"),),
        "Which share of the means lies between your ends? Count them. np.percentile and np.quantile count differently.",
        PERCENTILES, SLOW, "In the tables of evaluations, the upper end of every interval lies below the mean."),
    "the least and the largest mean": Mistake(((PERCENTILE, "np.percentile(values[picks].mean(1), [0, 100])"),),
        "Which share of the means lies between your ends? Does your interval grow with n?", PERCENTILES, SLOW),
    "the basic bootstrap": Mistake(
        ((RETURN, "return [float(values.mean()), float(2 * values.mean() - high), float(2 * values.mean() - low)]"),),
        "With values such as 0, 0, 0, 0, 9, which end should be nearer to the mean?", PERCENTILES, SLOW),
    "distances from the mean": Mistake(
        ((RETURN, "return [float(values.mean()), float(values.mean() - low), float(high - values.mean())]"),),
        "Do you return the ends of the interval, or their distances from the mean?", PERCENTILES, SLOW),
    "the seed has no effect": Mistake(((PICKS, PICKS.replace("(seed)", "(0)")),),
        "Call it twice with two seeds. Do the ends differ?", DRAWS, SLOW),
    "the draws transposed": Mistake(
        ((PICKS, "np.random.default_rng(seed).integers(0, len(values), (len(values), n)).T"),), ORDER, DRAWS, SLOW),
    "the old generator": Mistake(
        ((PICKS, "np.random.RandomState(seed).randint(0, len(values), (n, len(values)))"),), ORDER, DRAWS, SLOW),
    "2,000 resamples, whatever n is": Mistake(((PICKS, PICKS.replace("(n, ", "(2000, ")),),
        "Which of your lines uses n?", DRAWS, SLOW),
    "the last prompt is never drawn": Mistake(
        ((PICKS, PICKS.replace("len(values), (n", "max(1, len(values) - 1), (n")),),
        "Which numbers does `integers` draw? Is its upper end one of them?", DRAWS, SLOW),
}
ALTERNATIVES = {
    "a loop over resamples": '''
def bootstrap(values, n=2000, seed=0):
    values, rng, means = [float(v) for v in values], np.random.default_rng(seed), []
    for _ in range(n):
        means.append(sum(values[i] for i in rng.integers(0, len(values), len(values))) / len(values))
    means.sort()
    def percentile(share):
        at = share * (n - 1)
        below = int(at)
        return means[below] + (at - below) * (means[min(below + 1, n - 1)] - means[below])
    return [sum(values) / len(values), percentile(0.025), percentile(0.975)]
''',
    "choice": '''
def bootstrap(values, n=2000, seed=0):
    values = np.array(values, dtype=float)
    resamples = np.random.default_rng(seed).choice(values, size=(n, len(values)), replace=True)
    return [values.mean().item(), *np.quantile(resamples.mean(axis=1), (0.025, 0.975)).tolist()]
''',
    "counts of each prompt, torch": '''
def bootstrap(values, n=2000, seed=0):
    values = torch.as_tensor(np.asarray(values, dtype=np.float64))
    drawn = torch.from_numpy(np.random.default_rng(seed).integers(0, len(values), (n, len(values))))
    counts = torch.zeros(n, len(values), dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())
    means = counts @ values / len(values)
    ends = torch.quantile(means, torch.tensor([0.025, 0.975]).double())
    return [values.mean().item(), *ends.tolist()]
''',
}
HIDDEN = ()
REMOVED = ("measures.py:cluster_correlation", "displacement.py:interval")
VARIANTS = {
    "90%": (
        (PERCENTILE, "np.percentile(values[picks].mean(1), [5, 95])"),
        ("its 95% percentile bootstrap interval", "its 90% percentile bootstrap interval"),
        ("the 2.5% and 97.5% percentiles", "the 5% and 95% percentiles")),
    "the basic bootstrap": (
        (RETURN, "return [float(values.mean()), float(2 * values.mean() - high), float(2 * values.mean() - low)]"),
        ("its 95% percentile bootstrap interval", "its 95% basic bootstrap interval"),
        ("low and high are the 2.5% and 97.5% percentiles of the resamples' means.",
         "low and high are 2 mean - q and 2 mean - p, for the 2.5% and 97.5% percentiles p and q of the resamples'\n"
         "    means.")),
}
