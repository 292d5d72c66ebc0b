"""
best_of: the expected reward of the best of n samples

Exact over all choices of n out of N samples.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["measures.py:best_of"]
POINTS, MINUTES = 4, 40

def probes(rng):
    """A power of two, other numbers of samples, one sample, ties, skewed rewards, and too many choices for a loop."""
    ties = rng.integers(0, 3, (3, 8)) / 2
    ties[0] = 0.5
    return [dict(title="eight samples", rewards=rng.normal(0, 1, (3, 8))),
            dict(title="six samples", rewards=rng.normal(2, 1, (2, 6))),
            dict(title="one sample", rewards=rng.normal(0, 1, (4, 1))),
            dict(title="two samples of one prompt", rewards=rng.normal(0, 1, (1, 2))),
            dict(title="ties", rewards=ties),
            dict(title="eleven skewed rewards", rewards=-rng.exponential(3.0, (5, 11))),
            dict(title="64 samples", rewards=np.sort(rng.normal(0, 1, (2, 64)) ** 3, 1)[:, ::-1])]

def run(module, probe):
    """The values of n, in their order, and a row of expected rewards for each."""
    import numpy as np
    found = module.best_of(probe["rewards"].numpy())
    return dict(n=[int(n) for n in found],
                **{f"best_of_{n}": np.asarray(values, dtype="float64") for n, values in found.items()})

SORT, SHARES = "np.sort(rewards, 1)", "math.comb(i, n - 1) / math.comb(total, n)"
WHILE, EXPECT, GROW, ONE = "while n <= total:", "found[n] = ordered @ shares", "n *= 2", "found, n = {}, 1"
LARGEST, RETURNED = "How often a sample is the best of a choice", "What is returned"
SLOW = "test_measures.py::test_best_of_n_against_all_choices"
SUM = "Sum your weights of the samples for one n. Is the sum 1? Take rewards that are all 0.7."
NOT_ALL = "Shuffle the samples of a prompt. Does your result change? How many choices of n out of N did you look at?"
MISTAKES = {
    "the best of the first n": Mistake(((EXPECT, "found[n] = rewards[:, :n].max(1)"),), NOT_ALL, LARGEST, SLOW,
        "With 64 samples a prompt, the reward of the best of 1 has a much wider interval than the mean reward of the "
        "64 samples. The best of 64 is right."),
    "the best of each group of n": Mistake(
        ((EXPECT, "m = total // n\n        found[n] = rewards[:, :m * n].reshape(-1, m, n).max(2).mean(1)"),), NOT_ALL,
        LARGEST, SLOW),
    "drawn with replacement": Mistake(((SHARES, "(((i + 1) / total) ** n - (i / total) ** n)"),),
        "Can your choice have the same sample twice? Look at n = N: there is only one choice.", LARGEST, SLOW,
        "The best of 64 out of 64 samples has a lower reward than the best of these samples."),
    "one smaller sample too many": Mistake(((SHARES, "math.comb(i + 1, n - 1) / math.comb(total, n)"),), SUM, LARGEST,
        SLOW),
    "n others": Mistake(((SHARES, "math.comb(i, n) / math.comb(total, n)"),), SUM, LARGEST, SLOW,
        "The reward of the best of 1 out of 64 samples is far above the mean of these samples."),
    "n - 1 out of N": Mistake(((SHARES, "math.comb(i, n - 1) / math.comb(total, n - 1)"),), SUM, LARGEST, SLOW),
    "out of N - 1": Mistake(((SHARES, "math.comb(i, n - 1) / math.comb(max(total - 1, n - 1), n - 1)"),), SUM, LARGEST,
        SLOW),
    "weights that fall": Mistake(((SHARES, "math.comb(total - 1 - i, n - 1) / math.comb(total, n)"),),
        "Does your expected reward rise or fall with n? Which sample should have the largest weight?", LARGEST, SLOW,
        "Best-of-n falls in reward as n grows."),
    "not sorted": Mistake(((SORT, "rewards"),),
        "Shuffle the samples of a prompt. Should the best of n change?", LARGEST, SLOW),
    "a quantile": Mistake(((EXPECT, "found[n] = np.quantile(rewards, n / (n + 1), axis=1)"),),
        "Test n = 1 and n = N: which simple numbers of the samples must come out?", LARGEST, SLOW),
    "the mean of the n best": Mistake(((EXPECT, "found[n] = ordered[:, -n:].mean(1)"),),
        "Test n = 1 and n = N: which simple numbers of the samples must come out?", LARGEST, SLOW),
    "without n = N": Mistake(((WHILE, "while n < total:"),),
        "Which n do you have for 8 samples, and for one?", RETURNED, SLOW,
        "With 64 samples a prompt, the curve of best-of-n ends at 32."),
    "beyond N": Mistake(((WHILE, "while n < 2 * total:"),),
        "Which n do you have for 6 samples? Can 8 be chosen from 6?", RETURNED, SLOW),
    "N at the end": Mistake(((GROW, "n = 2 * n if 2 * n <= total or n == total else total"),),
        "Which n do you have for 6 samples? Which of them does the docstring list?", RETURNED, SLOW),
    "every n": Mistake(((GROW, "n += 1"),),
        "Which n does the docstring list?", RETURNED, SLOW),
    "from 2 on": Mistake(((ONE, "found, n = {}, 2"),),
        "Which n does the docstring list? What is the best of one sample?", RETURNED, SLOW),
    "the mean over prompts": Mistake(((EXPECT, "found[n] = (ordered @ shares).mean()"),),
        "Of what are intervals computed later? The docstring gives a shape.", RETURNED, SLOW),
    "samples of all prompts together": Mistake(((SORT, "np.sort(rewards.ravel()).reshape(rewards.shape)"),),
        "Change the rewards of the first prompt only. Do the results of other prompts change?", RETURNED, SLOW),
    "sorted over prompts": Mistake(((SORT, "np.sort(rewards, 0)"),),
        "Along which axis of (prompts, N) do the samples of a prompt lie?", RETURNED, SLOW),
    "the input is sorted": Mistake(((SORT, "(rewards.sort(1), rewards)[1]"),),
        "Print `rewards` before and after the call. The same array is used afterwards, for the wins.", RETURNED, "test_"
        "statistics.py::test_best_of_n_leaves_its_rewards_as_they_are_and_knows_its_ends"),
}
ALTERNATIVES = {
    "a product of ratios": '''
def best_of(rewards):
    N, out, n = rewards.shape[1], {}, 1
    falling = -np.sort(-rewards, axis=1)
    while n <= N:
        values, weight = np.zeros(len(rewards)), n / N
        for rank in range(N - n + 1):
            values = values + weight * falling[:, rank]
            if rank < N - n:
                weight = weight * (N - n - rank) / (N - 1 - rank)
        out[n] = values
        n = 2 * n
    return out
''',
    "differences of P(max <= x)": '''
def best_of(rewards):
    prompts, N = rewards.shape
    sizes = [2 ** j for j in range(N.bit_length())]
    ordered, out = torch.sort(torch.as_tensor(rewards.copy()), dim=1).values, {}
    for n in sizes:
        below = [0.0]
        for i in range(1, N + 1):
            p = 1.0
            for j in range(n):
                p *= max(0, i - j) / (N - j)
            below.append(p)
        weights = torch.tensor(below, dtype=torch.float64).diff()
        out[n] = (ordered * weights).sum(1).numpy()
    return out
''',
    "log-gamma": '''
def best_of(rewards):
    N = rewards.shape[1]
    log_comb = lambda a, b: math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)
    out = {}
    for power in range(20):
        n = 2 ** power
        if n > N:
            break
        w = np.array([math.exp(log_comb(i, n - 1) - log_comb(N, n)) if i >= n - 1 else 0.0 for i in range(N)])
        out[n] = np.array([float((w * sorted(row)).sum()) for row in rewards])
    return out
''',
}
HIDDEN = ()
REMOVED = ()
VARIANTS = {
    "every n": (
        (GROW, "n += 1"),
        ("for n = 1, 2, 4, ... up to N:", "for every n = 1, 2, 3, ... up to N:")),
    "the worst of n": (
        (SORT, "np.sort(rewards, 1)[:, ::-1]"),
        ("the expected reward of the best of n samples.", "the expected reward of the worst of n samples."),
        ("The maximum of the first n would be noisier.", "The minimum of the first n would be noisier.")),
}
