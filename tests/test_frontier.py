"""What is measured and compared, at its edges: distributions, KL estimates, verdicts of a judge, and frontiers."""
import math

import numpy as np
import pytest
import torch

import judge
import measures
from study import compare
from support import verdict

def test_a_probability_that_is_0_in_floating_point_has_no_nan():
    """The log-probs of such tokens are finite. 0 * log 0 is not, and log(0 + 1e-8) says 18 nats where 900 are true."""
    p, q = torch.tensor([[0.0, -900.0]]).double(), torch.tensor([[-900.0, 0.0]]).double()
    assert measures.entropy(p).tolist() == [0] and measures.kl(p, q).tolist() == [900] == measures.kl(q, p).tolist()

def test_k3_is_right_where_policy_and_reference_are_close():
    """
    There it is l^2 / 2. 1 - l has 16 digits, so with exp(-l) - 1 + l the square of 1e-12 is lost. Far away exp(-l) is 0
    and has no logarithm.
    """
    l = torch.tensor([1e-12, -3e-12, 1e-6], dtype=torch.float64)
    assert measures.k3(l).tolist() == pytest.approx((l ** 2 / 2).tolist(), rel=1e-3, abs=0)
    assert measures.k3(torch.tensor([900.0])).item() == 899

@pytest.mark.parametrize("name, slope", [("k1", lambda l: 1), ("k2", lambda l: l), ("k3", lambda l: 1 - math.exp(-l))])
def test_an_estimate_of_the_kl_can_be_differentiated(name, slope):
    """In the loss only its slope counts. An estimate that is detached for the log has none."""
    l = torch.tensor([-1.5, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    found, = torch.autograd.grad(measures.KL_ESTIMATORS[name](l).sum(), l)
    assert found.tolist() == pytest.approx([slope(x) for x in l.tolist()])

# ---------------------------------------------------------------------------------------------------------------------
# a judge's answers

@pytest.mark.parametrize("other", ["A", "B", "neither", None])
def test_a_pair_with_an_unreadable_verdict_is_invalid(other):
    """Whatever the other verdict says. A "neither" beside it is no tie: the judge was not understood."""
    assert verdict.outcome(None, other) == verdict.outcome(other, None) == "invalid"

def test_open_questions_are_counted_by_hand():
    """
    Four pairs: a win, one with an answer to one order only, one without any, and one with an answer that cannot be
    read. Pairs 2 and 3 are in no rate. An answer to a question about another text is no answer to these.
    """
    samples = [{"prompt": f"p{i}", "after": f"mine {i}", "before": f"the other {i}"} for i in range(4)]
    how = {"against": "before", "task": "dialogue", "model": "m"}
    keys = [q["key"] for q in judge.questions(samples, **how)]
    known = {keys[0]: "Better: A", keys[1]: "Better: B", keys[2]: "Better: A", "another": "Better: B"}
    known |= {keys[6]: "I cannot decide.", keys[7]: "Better: B"}
    found = judge.judged(samples, known, **how)
    assert (found["pairs"], found["unanswered"]) == (2, 3)
    shares = {name: rate[0] for name, rate in found["rates"].items()}
    assert shares == {"win": 1, "tie": 0, "lose": 0, "flip": 0, "invalid": 0.5}

# ---------------------------------------------------------------------------------------------------------------------
# two methods at equal KL

class Stand:
    """A study.claims.Sweep of {recipe: (KLs of the seeds, rewards of the seeds)}; NaN where a run failed."""
    def __init__(self, values):
        self.values = {recipe: dict(zip(("kl", "reward"), map(np.array, both))) for recipe, both in values.items()}
        self.seeds = list(range(len(next(iter(self.values.values()))["kl"])))

    def __call__(self, recipe, measure):
        return self.values[recipe][measure]

    def points(self, method):
        return [recipe for recipe in self.values if recipe.split()[0] == method]

def test_a_failed_run_takes_no_other_seed_along():
    """Seed 1 has lost the middle setting, seed 2 every run of one method. Seeds 0 and 1 keep lines of their own."""
    nan = math.nan
    s = Stand({"a beta=3": ([1.0, 1, nan], [0.5, 0.6, nan]), "a beta=2": ([4.0, nan, nan], [0.9, nan, nan]),
               "a beta=1": ([9.0, 9, nan], [1.0, 1.0, nan]),
               "b beta=3": ([1.0, 1, 1], [0.4, 0.5, 0.4]), "b beta=1": ([9.0, 9, 9], [0.8, 0.7, 0.8])})
    nats = np.array([1, 4, 9.0])
    found = compare.frontier(s, "a", nats)
    assert found[:2] == pytest.approx(np.array([[0.5, 0.9, 1.0], [0.6, 0.8, 1.0]])) and np.isnan(found[2]).all()
    kls, gaps = compare.differences(s, "a", "b", n=3)
    assert kls == pytest.approx(nats) and gaps == pytest.approx(np.array([[0.1, 0.1], [0.3, 0.2], [0.2, 0.3]]))

def test_lines_of_one_seed_that_cross_are_no_verdict():
    """One seed has no interval, so neither end of the range is sure."""
    s = Stand({"a beta=2": ([1.0], [0.6]), "a beta=1": ([4.0], [0.7]),
               "b beta=2": ([1.0], [0.4]), "b beta=1": ([4.0], [0.9])})
    row = compare.compare(s, "a", "b")
    assert row["verdict"] == "cannot be told apart" and row["near_mean"] > 0.1 and row["far_mean"] < -0.1

def test_one_setting_can_be_compared_at_its_own_kl():
    """A range of one KL is a range, if the setting has the same KL in every seed."""
    s = Stand({"a beta=1": ([4.0, 4], [0.7, 0.8]),
               "b beta=2": ([1.0, 1], [0.4, 0.5]), "b beta=1": ([9.0, 9], [0.8, 0.9])})
    row = compare.compare(s, "a", "b")
    assert row["verdict"] == "better" and row["mean"] == pytest.approx(0.1) and row["kl_low"] == row["kl_high"] == 4
