"""The statistics of an evaluation at their edges: intervals, ties, best of n, and the diversity of texts."""
import math

import numpy as np
import pytest
import torch

import measures

@pytest.mark.parametrize("k, n, z", [(3, 8, 1.96), (0, 12, 1.96), (9, 9, 1.645), (1, 1, 2.5), (481, 3000, 1.96)])
def test_wilsons_interval_solves_its_equation(k, n, z):
    """
    Each end is a share p from which k / n is z standard errors away, and p sets the error: |k/n - p| = z sqrt(p (1 - p)
    / n). Wald's interval takes the error of k / n, which is 0 for 0 of 12. The first number is the share, not the
    center. No trials leave everything open.
    """
    share, low, high = measures.wilson(k, n, z)
    assert share == k / n and 0 <= low + 1e-12 and low < share + 1e-12 and share < high + 1e-12 and high < 1 + 1e-12
    assert high - low > 0.01
    for end in (low, high):
        assert (share - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-12)
    assert measures.wilson(k, n) == measures.wilson(k, n, 1.96)
    none = measures.wilson(0, 0)
    assert math.isnan(none[0]) and none[1:] == [0, 1]

def test_the_bootstrap_equals_a_slow_loop_over_the_draws_that_it_names():
    """
    Skewed values have an interval that is not symmetric, so a normal approximation and the basic bootstrap differ. n
    and the seed have an effect, and each prompt can be drawn.
    """
    values, n, seed = [0.04, 0.1, 1.03, 0.2, 0.07, 0.51, 9.0], 311, 6
    means = sorted(sum(values[i] for i in row) / 7 for row in np.random.default_rng(seed).integers(0, 7, (n, 7)))
    def at(share):
        below = math.floor(share * (n - 1))
        return means[below] + (share * (n - 1) - below) * (means[below + 1] - means[below])
    assert measures.bootstrap(values, n, seed) == pytest.approx([sum(values) / 7, at(0.025), at(0.975)])
    many = np.random.default_rng(0).normal(0, 1, 30)
    assert measures.bootstrap(many) == measures.bootstrap(many, 2000, 0) != measures.bootstrap(many, 2000, 1)
    assert measures.bootstrap([0.3]) == pytest.approx([0.3] * 3)

def test_the_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    """On 40 values of an exponential distribution, 300 times: a bit less than 95%, as is known of few skewed values."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        _, low, high = measures.bootstrap(rng.exponential(1.0, 40), 300)
        covered += low <= 1 <= high
    assert 0.89 < covered / 300 < 0.96

def test_a_reward_that_is_higher_by_1e_9_wins():
    """Only equal rewards are a tie. np.isclose says that these are equal."""
    assert measures.wins(np.array([[1 + 1e-9, 1.0]]), np.array([[1.0, 1.0]])).tolist() == [0.75]

def test_ties_count_half_in_arrays_and_tensors():
    """A gap of 1e-9 is a win: only equal rewards tie. The logged accuracy is a tensor's mean, so a tensor stays one."""
    gap = [2.0, 1e-9, 0.0, -1e-9, -3.0]
    assert measures.ties_half(np.array(gap)).tolist() == [1, 1, 0.5, 0, 0]
    found = measures.ties_half(torch.tensor([gap, gap[::-1]], dtype=torch.float64))
    assert isinstance(found, torch.Tensor) and found.tolist() == [[1, 1, 0.5, 0, 0], [0, 0, 0.5, 1, 1]]

def test_best_of_n_leaves_its_rewards_as_they_are_and_knows_its_ends():
    """The same array is used for wins afterwards. The best of 1 is the mean, and the best of all is the maximum."""
    rewards = np.random.default_rng(1).normal(0, 1, (5, 64))
    before = rewards.copy()
    found = measures.best_of(rewards)
    assert np.array_equal(rewards, before) and list(found) == [1, 2, 4, 8, 16, 32, 64]
    assert found[1] == pytest.approx(rewards.mean(1)) and found[64] == pytest.approx(rewards.max(1))
    assert all((found[2 * n] > found[n]).all() for n in (1, 2, 4, 8, 16, 32))

def test_pooled_entropy_counts_each_token_as_often_as_it_is_there():
    """Of 7 7 7 8 and 7 the shares are 4/5 and 1/5. A sample that repeats a token is less diverse."""
    assert measures.pooled_entropy([[7, 7, 7, 8], [7]]) == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))

def test_pairs_of_tokens_have_an_order():
    """1 2 and 2 1 are different texts."""
    assert measures.distinct([[1, 2, 1, 2]], 2, budget=4).tolist() == [2 / 3]
