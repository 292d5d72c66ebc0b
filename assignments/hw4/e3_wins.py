"""
ties_half and wins: who wins, and how often

A win rate for each prompt over all pairs of samples; a tie is half a win.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["measures.py:ties_half", "measures.py:wins"]
POINTS, MINUTES = 4, 25

def probes(rng):
    """Many ties, other numbers of samples on each side, skewed rewards, one sample, one prompt, very small gaps."""
    few = lambda *shape: rng.integers(0, 4, shape) / 4
    def of(title, rewards, others, *gaps):
        return dict(title=title, rewards=rewards, others=others, gaps=rng.permutation([*gaps, 0.0, 1.5, -0.3]))
    shift = rng.uniform(-0.5, 0.5)
    tied = few(3, 1).repeat(4, 1)
    skewed = np.array([[0.0, 0.0, 3.0], [0.0, 2.0, 2.0]]) + rng.uniform(0, 0.2, (2, 3))    # mean and best differ
    return [of("three prompts, four samples each, many ties", few(3, 4), few(3, 4), 0.0, -2.0),
            of("four samples against three", few(2, 4), few(2, 3), 1e-9),
            of("two samples against five", rng.normal(shift, 1, (4, 2)), rng.normal(0, 1, (4, 5)), -1e-9),
            of("one very good sample, one very bad sample", skewed, skewed[::-1].copy(), 0.2),
            of("one sample each", few(5, 1), few(5, 1), 3.0),
            of("one prompt", few(1, 6), few(1, 6), -40.0, 0.0),
            of("rewards that differ by 1e-9", tied + 1e-9 * rng.permuted([[1, 1, -1, 0]] * 3, axis=1), tied, 1e-9),
            of("nothing but ties", few(2, 1).repeat(3, 1), 0 * few(2, 3) + 0.5, 0.0, 0.0)]

def run(module, probe):
    """ties_half of an array, of a tensor and of a square of gaps, and the win rates, as far as they are written."""
    import numpy as np
    import torch
    found, gaps = {}, probe["gaps"]
    try:
        square = gaps.numpy()[:, None] - gaps.numpy()
        of_tensor = module.ties_half(gaps)
        found |= {"ties_half of an array": np.asarray(module.ties_half(gaps.numpy()), dtype="float64"),
                  "ties_half of a square of gaps": np.asarray(module.ties_half(square), dtype="float64"),
                  "ties_half of a tensor": np.asarray(of_tensor, dtype="float64"),
                  "a tensor gives a tensor": isinstance(of_tensor, torch.Tensor)}
    except NotImplementedError:
        pass
    try:
        wins = module.wins(probe["rewards"].numpy(), probe["others"].numpy())
        found["wins"] = np.asarray(wins, dtype="float64")
    except NotImplementedError:
        if not found:
            raise
    return found

HALF, MEAN = "return (gap > 0) + 0.5 * (gap == 0)", "return ties_half(gap).mean((1, 2))"
GAP = "gap = rewards[:, :, None] - others[:, None, :]"
TIE, PAIRS, PROMPT = "A tie", "Every sample meets every sample", "A number for each prompt"
BY_HAND = "test_measures.py::test_wins_by_hand"
TIES = "test_statistics.py::test_ties_count_half_in_arrays_and_tensors"
TIED = "Compare a policy with itself: each prompt's win rate must be 1/2. What do you get where all rewards are equal?"
SMALL = "Is a gap of 1e-9 a tie?"
MEET = "With 4 samples against 3, how many pairs does a prompt have? Which pairs does yours have?"
MISTAKES = {
    "a tie is a loss": Mistake(((HALF, "return (gap > 0) + 0.0 * (gap == 0)"),), TIED, TIE, BY_HAND,
        "At the start of training, while policy and reference are equal, the logged accuracy is 0."),
    "a tie is a loss in the win rate": Mistake(((MEAN, "return (gap > 0).mean((1, 2))"),), TIED, TIE, BY_HAND,
        "The win rate of the reference against its own samples is below 0.5. The logged accuracy is right."),
    "a tie is a win": Mistake(((HALF, "return (gap > 0) + 1.0 * (gap == 0)"),), TIED, TIE, BY_HAND,
        "At the start of training, while policy and reference are equal, the logged accuracy is 1."),
    "a tie is a win in the win rate": Mistake(((MEAN, "return (gap >= 0).mean((1, 2))"),), TIED, TIE, BY_HAND),
    "ties are left out": Mistake(
        ((MEAN, "return (gap > 0).sum((1, 2)) / np.maximum(1, (gap != 0).sum((1, 2)))"),),
        "What is your win rate over ten pairs, of which one is won and nine are ties?", TIE, BY_HAND),
    "a sign": Mistake(((HALF, "return 1.0 * (gap > 0) - 1.0 * (gap < 0)"),),
        "Which values can the result of `ties_half` have? Which does the docstring name?", TIE, BY_HAND,
        "The logged accuracy of training starts at 0, and may be negative."),
    "the probability of a preference": Mistake(((HALF, "return 1 / (1 + 2.718281828459045 ** -gap)"),),
        "Does the size of a gap matter, or only its sign? Multiply all rewards by 10.", TIE, BY_HAND),
    "arrays for tensors": Mistake(((HALF, "return np.asarray(gap > 0) + 0.5 * np.asarray(gap == 0)"),),
        "Which type has your result for a tensor? Training runs on GPUs too.", TIE, TIES),
    "small gaps are ties": Mistake(((HALF, "return (gap > 1e-6) + 0.5 * (abs(gap) <= 1e-6)"),), SMALL, TIE, TIES),
    "small gaps are ties, in arrays": Mistake(
        ((HALF, "return np.where(np.isclose(gap, 0), 0.5, np.asarray(gap) > 0)"),), SMALL, TIE, TIES),
    "small gaps are ties in the win rate": Mistake(
        ((MEAN, "return np.where(np.isclose(gap, 0), 0.5, gap > 0).mean((1, 2))"),), SMALL, TIE,
        "test_statistics.py::test_a_reward_that_is_higher_by_1e_9_wins"),
    "losses are counted": Mistake(((HALF, "return (gap < 0) + 0.5 * (gap == 0)"),),
        "Give the first policy higher rewards on every prompt. Is its win rate 1?", TIE, BY_HAND),
    "losses are counted in the win rate": Mistake(((GAP, "gap = others[:, None, :] - rewards[:, :, None]"),),
        "Give the first policy higher rewards on every prompt. Is its win rate 1?", PAIRS, BY_HAND,
        "A trained policy has a much higher reward than its reference and a win rate near 0."),
    "a sample meets the one of its own number": Mistake(
        ((GAP, "gap = rewards - others"), (MEAN, "return ties_half(gap).mean(1)")), MEET, PAIRS, BY_HAND),
    "as many samples as both have": Mistake(
        ((GAP, "k = min(rewards.shape[1], others.shape[1])\n    gap = rewards[:, :k] - others[:, :k]"),
         (MEAN, "return ties_half(gap).mean(1)")), MEET, PAIRS, BY_HAND,
        "With 25 samples on each side, the win rate of every prompt is a multiple of 1/50. There are 625 pairs."),
    "only the first of the others": Mistake(
        ((GAP, "gap = rewards[:, :, None] - others[:, None, :1]"),), MEET, PAIRS, BY_HAND),
    "means are compared": Mistake(
        ((GAP, "gap = rewards.mean(1) - others.mean(1)"), (MEAN, "return ties_half(gap)")),
        "Two policies with the same mean reward: must each win half of the pairs? Try 0 0 3 against 1 1 1.",
        PAIRS, BY_HAND, "On many prompts the win rate is exactly 0 or 1, also of policies that are almost equal."),
    "the best samples are compared": Mistake(
        ((GAP, "gap = rewards.max(1) - others.max(1)"), (MEAN, "return ties_half(gap)")),
        "Which of your samples meets which? A policy with one very good sample does not win every pair.", PAIRS,
        BY_HAND),
    "samples of other prompts": Mistake(
        ((GAP, "gap = rewards[:, :, None] - others.reshape(1, 1, -1)"),),
        "Change the rewards of the first prompt only. Do the win rates of the other prompts change?", PROMPT, BY_HAND),
    "one number": Mistake(((MEAN, "return ties_half(gap).mean()"),),
        "Of what are intervals computed later? The docstring gives a shape.", PROMPT, BY_HAND),
    "a number for each sample": Mistake(((MEAN, "return ties_half(gap).mean(2)"),),
        "Which axes are left? The docstring gives a shape.", PROMPT, BY_HAND),
    "a number for each sample of the other": Mistake(((MEAN, "return ties_half(gap).mean(1)"),),
        "Which axes are left? The docstring gives a shape.", PROMPT, BY_HAND),
    "sums": Mistake(((MEAN, "return ties_half(gap).sum((1, 2))"),),
        "May a win rate exceed 1? Draw twice as many samples: should it double?", PROMPT, BY_HAND),
}
ALTERNATIVES = {
    "a triple loop": '''
def ties_half(gap):
    wins = gap > 0
    return (wins * 2.0 + (gap == 0)) / 2

def wins(rewards, others):
    rates = []
    for mine, theirs in zip(rewards, others):
        points = 0.0
        for r in mine:
            for other in theirs:
                points += 1.0 if r > other else 0.5 if r == other else 0.0
        rates.append(points / (len(mine) * len(theirs)))
    return np.array(rates)
''',
    "sign": '''
def ties_half(gap):
    return (1 + (torch.sign(gap) if isinstance(gap, torch.Tensor) else np.sign(gap))) / 2

def wins(rewards, others):
    signs = np.stack([np.sign(rewards - column[:, None]).mean(1) for column in others.T])
    return 0.5 + signs.mean(0) / 2
''',
    "positions in the sorted rewards": '''
def ties_half(gap):
    return ((gap > 0).astype(float) + (gap >= 0)) / 2 if isinstance(gap, np.ndarray) else (1 + gap.sign()) / 2

def wins(rewards, others):
    out = np.zeros(len(rewards))
    for i, (mine, theirs) in enumerate(zip(rewards, np.sort(others, 1))):
        below, not_above = np.searchsorted(theirs, mine, "left"), np.searchsorted(theirs, mine, "right")
        out[i] = (below + not_above).sum() / (2 * mine.size * theirs.size)
    return out
''',
}
HIDDEN = ()
REMOVED = ()
VARIANTS = {
    "wins less losses": (
        (HALF, "return 1.0 * (gap > 0) - 1.0 * (gap < 0)"),
        ("1 where a gap is positive, 0.5 where it is 0, 0 where it is negative.",
         "1 where a gap is positive, 0 where it is 0, -1 where it is negative."),
        ("The win rate P(r > r') for each prompt, (n,), over all pairs of samples. Ties count half.",
         "Wins less losses, P(r > r') - P(r < r'), for each prompt, (n,), over all pairs of samples.")),
    "a number for each sample": (
        (MEAN, "return ties_half(gap).mean(2)"),
        ("The win rate P(r > r') for each prompt, (n,), over all pairs of samples. Ties count half.",
         "The win rate P(r > r') of each sample, (n, k), over all samples of the other policy. Ties count half.")),
}
