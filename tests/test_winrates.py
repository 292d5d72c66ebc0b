"""Win rates at equal length and Bradley-Terry strengths: by hand, against other methods, planted values, coverage."""
import itertools
import math

import numpy as np
import pytest

from winrates import bradley_terry, effect_of_length, length_controlled, strengths

sigmoid = lambda x: 1 / (1 + np.exp(-x))

def judged(n, theta, gamma, *, mean=20.0, seed=0):
    """Votes of a judge with these parameters, and length differences of n pairs, whose mean is not 0."""
    rng = np.random.default_rng(seed)
    d = rng.normal(mean, 40.0, n).round()
    return (rng.random(n) < sigmoid(theta + gamma * np.tanh(d / d.std()))).astype(float), d

# ---------------------------------------------------------------------------------------------------------------------
# Win rate at equal length

def test_length_controlled_by_hand():
    """
    Two lengths only, d = +-5, so tanh(d / std) = +-tanh(1). The run wins 3 of 4 longer pairs and 1 of 4 shorter ones,
    or 3 of 4 and 2 of 4. Two parameters fit two shares exactly: theta is the mean of the two log-odds.
    """
    d = [5] * 4 + [-5] * 4
    for shorter, log_odds in (([1, 0, 0, 0], -math.log(3)), ([1, 1, 0, 0], 0.0)):
        found = length_controlled([1, 1, 1, 0, *shorter], d, ridge=1e-6)
        assert found["win_rate"][0] == pytest.approx(sigmoid((math.log(3) + log_odds) / 2), abs=1e-6)
        assert found["gamma"][0] == pytest.approx((math.log(3) - log_odds) / 2 / math.tanh(1), abs=1e-4)

def test_equal_length_is_not_mean_length():
    """
    The judge only looks at length and the run is longer by 20 characters on average. Its raw win rate is far above one
    half. A prediction at the mean length would repeat that. At equal length nothing is left.
    """
    votes, d = judged(4000, 0.0, 3.0)
    low, high = length_controlled(votes, d, n=200)["win_rate"][1:]
    assert votes.mean() > 0.6 and low < 0.5 < high < 0.53

def test_length_controlled_equals_a_general_optimizer():
    """The same objective, votes of 0.5 and between included, minimized by scipy without our derivatives."""
    optimize = pytest.importorskip("scipy.optimize")
    votes, d = judged(60, 0.4, -1.2)
    votes[::5], votes[1::7] = 0.5, 0.8
    t = np.tanh(d / d.std())
    def objective(w):
        p = sigmoid(w[0] + w[1] * t)
        return -(votes * np.log(p) + (1 - votes) * np.log(1 - p)).sum() + 0.1 * w[1] ** 2 / 2 + 1e-6 * w[0] ** 2 / 2
    theta, gamma = optimize.minimize(objective, [0.0, 0.0], tol=1e-10).x
    found = length_controlled(votes, d)
    assert found["win_rate"][0] == pytest.approx(sigmoid(theta), abs=1e-5)
    assert found["gamma"][0] == pytest.approx(gamma, abs=1e-4)

def test_a_tie_is_half_a_win_and_half_a_loss():
    """Ties as losses would lower every win rate: 10 ties count as 5 wins and 5 losses at the same lengths."""
    d = [3, -3] * 10
    ties, halves = [0.5] * 20, [1, 1, 0, 0] * 5
    for found in (length_controlled(votes, d) for votes in (ties, halves)):
        assert found["win_rate"][0] == pytest.approx(0.5) and found["gamma"][0] == pytest.approx(0.0, abs=1e-9)

@pytest.mark.parametrize("theta, gamma", [(0.6, 1.5), (-0.4, -1.0), (0.0, 0.0)])
def test_planted_parameters_are_found(theta, gamma):
    """Over 20 seeds the mean error is small against the spread, so no sign and no factor is wrong."""
    found = []
    for seed in range(20):
        votes, d = judged(500, theta, gamma, seed=seed)
        one = length_controlled(votes, d, n=2)
        rate = one["win_rate"][0]
        found.append((math.log(rate / (1 - rate)), one["gamma"][0]))
    assert np.mean(found, 0) == pytest.approx([theta, gamma], abs=0.1)

def test_the_interval_covers_the_planted_win_rate():
    """95 in 100 intervals should. 80 simulated judges give 76 on average, and fewer than 70 once in 300 times."""
    covered = 0
    for seed in range(80):
        votes, d = judged(150, 0.5, 1.0, seed=seed)
        _, low, high = length_controlled(votes, d, n=300)["win_rate"]
        covered += low < sigmoid(0.5) < high
    assert covered >= 70

def test_swapped_sides_swap_the_win_rate():
    """Judged from the other run's side, the win rate is 1 minus this one, and the judge's taste is the same."""
    votes, d = judged(80, 0.5, 1.0)
    one, other = length_controlled(votes, d), length_controlled(1 - votes, -d)
    assert other["win_rate"] == pytest.approx([1 - one["win_rate"][k] for k in (0, 2, 1)])
    assert other["gamma"] == pytest.approx(one["gamma"])

def test_neither_the_order_of_pairs_nor_the_unit_of_length_matters():
    """Characters or pages: d is divided by its standard deviation."""
    votes, d = judged(80, 0.5, 1.0)
    one = length_controlled(votes, d)
    for other in (length_controlled(votes[::-1].copy(), d[::-1].copy()), length_controlled(votes, d / 3000)):
        assert [other[k][0] for k in other] == pytest.approx([one[k][0] for k in one])

@pytest.mark.parametrize("votes, d, rate", [
    ([1.0] * 9, range(9), 1.0),                               # always wins
    ([0.0] * 9, range(9), 0.0),
    ([0.5] * 9, range(9), 0.5),                               # only ties
    ([1.0, 1, 0, 1], [7, 7, 7, 7], 0.75),                     # length cannot be told from quality
    ([1.0, 1, 0, 1], [0, 0, 0, 0], 0.75),
    ([1.0], [3], 1.0),                                        # one pair
    ([0, 0, 0, 0.5, 1, 1, 1], range(-3, 4), 0.5),             # the longer always wins: gamma has no maximum
], ids=["wins", "losses", "ties", "equal differences", "equal lengths", "one pair", "separable"])
def test_extreme_votes_stay_finite(votes, d, rate):
    """Plain logistic regression ends in infinity or in a singular matrix on each of these."""
    found = length_controlled(votes, d)
    assert found["win_rate"][0] == pytest.approx(rate, abs=1e-4)
    assert all(math.isfinite(x) for values in found.values() for x in values) and abs(found["gamma"][0]) < 20

def test_no_pairs_give_no_win_rate():
    """As wilson has it: NaN, and an interval from 0 to 1."""
    rate, low, high = length_controlled([], [])["win_rate"]
    assert math.isnan(rate) and (low, high) == (0, 1)

@pytest.mark.parametrize("votes, d", [([1.5], [1]), ([math.nan], [1]), ([1, 0], [1]), ([[1.0]], [[1.0]])])
def test_votes_that_cannot_be_are_refused(votes, d):
    """A vote of NaN would make every number NaN."""
    with pytest.raises(ValueError, match="vote"):
        length_controlled(votes, d)

def test_the_effect_of_length_in_words():
    """Only an interval on one side of 0 is an effect."""
    assert effect_of_length([1.0, 0.2, 2.0]) == "longer answers win more often"
    assert effect_of_length([-1.0, -2.0, -0.2]) == "shorter answers win more often"
    for unclear in ([1.0, -0.1, 2.0], [-1.0, -2.0, 0.1]):
        assert effect_of_length(unclear) == "no clear effect of length"
    votes, d = judged(500, 0.3, 1.5)
    assert effect_of_length(length_controlled(votes, d)["gamma"]) == "longer answers win more often"

@pytest.mark.parametrize("seed", range(3))
def test_newtons_method_converges_on_uneven_votes(seed):
    """Newton's method may overshoot where p is near 0 or 1. From 0 it does not, on 100 uneven problems a seed."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        n = int(rng.integers(3, 12))
        d = rng.standard_cauchy(n) * 100
        found = length_controlled(d > np.median(d), d, n=50)
        wins = np.floor(10 ** rng.uniform(-1, 4, (n, n)))
        assert math.isfinite(found["gamma"][0]) and bradley_terry(wins).isfinite().all()

# ---------------------------------------------------------------------------------------------------------------------
# Strengths

def minorize(wins, prior):
    """Bradley-Terry by Hunter's MM algorithm (2004), in double loops: another method with the same maximum."""
    n = len(wins)
    w = [[wins[i][j] + prior if i != j else 0.0 for j in range(n)] for i in range(n)]
    p = [1.0] * n
    for _ in range(20000):
        new = []
        for i in range(n):
            games = sum((w[i][j] + w[j][i]) / (p[i] + p[j]) for j in range(n) if j != i)
            new.append(sum(w[i]) / games)
        scale = math.exp(sum(map(math.log, new)) / n)
        p = [x / scale for x in new]
    return [math.log(x) for x in p]

def test_two_runs_by_hand():
    """The difference of two strengths is the log-odds of the win rate, with half a win more on each side."""
    found = bradley_terry([[0, 7], [3, 0]])
    assert found.tolist() == pytest.approx([math.log(7.5 / 3.5) / 2, -math.log(7.5 / 3.5) / 2])

def test_three_runs_by_hand():
    """With win odds of 2 between neighbors and 4 between the ends, the strengths log 2, 0, -log 2 fit exactly."""
    a, b, c = 15.0, 15.0, 15.0    # games of each pair, prior included
    wins = [[0, a * 2 / 3, b * 4 / 5], [a / 3, 0, c * 2 / 3], [b / 5, c / 3, 0]]
    wins = [[x - 0.5 if i != j else 0 for j, x in enumerate(row)] for i, row in enumerate(wins)]
    assert bradley_terry(wins).tolist() == pytest.approx([math.log(2), 0, -math.log(2)], abs=1e-8)

def test_strengths_equal_those_of_another_algorithm():
    """Inconsistent results of four runs, one of them unbeaten and one pair not compared at all."""
    wins = [[0, 9, 12, 5], [0, 0, 7, 3], [0, 6.5, 0, 0], [0, 4, 0, 0]]
    for prior in (0.5, 2.0):
        assert bradley_terry(wins, prior).tolist() == pytest.approx(minorize(wins, prior), abs=1e-6)

def test_more_wins_make_a_run_stronger_and_the_mean_is_0():
    """If wins and losses were exchanged, the ranking would be upside down and still look like one."""
    found = bradley_terry([[0, 8, 9], [2, 0, 7], [1, 3, 0]]).tolist()
    assert found == sorted(found, reverse=True) and sum(found) == pytest.approx(0, abs=1e-9) and found[0] > 0.5

def test_the_order_of_runs_does_not_matter():
    """Run 0 is fixed at 0 while the strengths are fitted. This must leave no trace."""
    wins = np.array([[0, 8, 9, 1], [2, 0, 7, 5], [1, 3, 0, 2], [9, 5, 8, 0]])
    first = bradley_terry(wins)
    for order in itertools.permutations(range(4)):
        order = list(order)
        assert bradley_terry(wins[np.ix_(order, order)]).tolist() == pytest.approx(first[order].tolist(), abs=1e-8)
    assert bradley_terry(wins.T).tolist() == pytest.approx((-first).tolist(), abs=1e-8)

def test_an_unbeaten_run_is_finite():
    """Maximum likelihood has no maximum there. 256 wins of 256 are log-odds of log(256.5 / 0.5)."""
    first, second = bradley_terry([[0, 256], [0, 0]]).tolist()
    assert first - second == pytest.approx(math.log(513))
    with pytest.raises(ValueError, match="prior"):
        bradley_terry([[0, 256], [0, 0]], prior=0)

def test_runs_that_were_never_compared_are_refused():
    """0 and 1 met, 2 and 3 met: nothing says how the pairs compare. A chain of comparisons is enough."""
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[2, 3] = 4
    with pytest.raises(ValueError, match="runs 2, 3 were never compared with run 0"):
        bradley_terry(wins)
    wins[3, 1] = 1
    assert bradley_terry(wins).isfinite().all()
    for bad in (np.zeros((1, 1)), np.zeros((2, 3)), np.zeros((0, 0))):
        with pytest.raises(ValueError, match="at least 2 runs"):
            bradley_terry(bad)

def compared(n_prompts, true, seed, spread=0.0):
    """Votes (prompts, n, n) between runs of known strengths. spread: of what a run gains or loses on a prompt."""
    rng = np.random.default_rng(seed)
    n = len(true)
    here = np.array(true) + spread * rng.normal(size=(n_prompts, n))
    upper = np.triu(rng.random((n_prompts, n, n)) < sigmoid(here[:, :, None] - here[:, None]), 1)
    return upper + np.tril(1 - upper.swapaxes(1, 2), -1)

def test_strengths_from_votes_by_hand():
    """Three prompts, two runs: a win, a tie and an unreadable answer are 1.5 wins and 0.5 losses."""
    votes = np.full((3, 2, 2), np.nan)
    votes[0, 0, 1], votes[0, 1, 0] = 1, 0
    votes[1, 0, 1] = votes[1, 1, 0] = 0.5
    found = strengths(votes)
    assert found[0][0] == pytest.approx(math.log(2.0 / 1.0) / 2) and found[1][0] == pytest.approx(-found[0][0])

def test_the_intervals_of_strengths_cover_the_planted_ones():
    """Three runs and 60 simulations: 171 of 180 intervals on average."""
    true, covered = [0.8, 0.1, -0.9], 0
    for seed in range(60):
        found = strengths(compared(200, true, seed), n=300)
        covered += sum(low < value < high for value, (_, low, high) in zip(true, found))
    assert 160 <= covered

def test_prompts_are_resampled_and_not_answers():
    """
    Where a prompt decides all comparisons of a run at once, the strength of the run is as uncertain as the number of
    prompts says. Resampled answer by answer, 3 comparisons would count as independent and narrow the interval.
    """
    rng = np.random.default_rng(0)
    votes = np.full((40, 4, 4), 0.5)
    good = (rng.random(40) < 0.6).astype(float)    # run 0 beats all others on these prompts, and loses on the rest
    votes[:, 0, 1:], votes[:, 1:, 0] = good[:, None], 1 - good[:, None]
    _, low, high = strengths(votes)[0]
    # The log-odds of run 0 against the others have the standard error of 40 votes. Its strength is 3/4 of them
    p = good.mean()
    error = 0.75 / math.sqrt(40 * p * (1 - p))
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.2)

def test_a_seed_gives_the_same_interval():
    """The interval is random, so it must be fixed by the seed to be compared."""
    votes = compared(50, [0.5, 0.0, -0.5], 0)
    assert strengths(votes) == strengths(votes) != strengths(votes, seed=1)
    votes, d = judged(50, 0.5, 1.0)
    assert length_controlled(votes, d) == length_controlled(votes, d) != length_controlled(votes, d, seed=1)
