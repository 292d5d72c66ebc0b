"""What is measured and compared, at its edges: distributions, KL estimates, verdicts of a judge, and frontiers."""
import math

import pytest
import torch

import judge
import measures

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

def test_open_questions_are_counted_by_hand():
    """
    Three pairs: a win, one with an answer to one order only, one without any. They leave all rates. An answer to a
    question about another text is no answer to these.
    """
    samples = [{"prompt": f"p{i}", "after": f"mine {i}", "before": f"the other {i}"} for i in range(3)]
    how = {"against": "before", "task": "dialogue", "model": "m"}
    keys = [q["key"] for q in judge.questions(samples, **how)]
    known = {keys[0]: "Better: A", keys[1]: "Better: B", keys[2]: "Better: A", "another": "Better: B"}
    found = judge.judged(samples, known, **how)
    assert (found["pairs"], found["unanswered"]) == (1, 3)
    shares = {name: rate[0] for name, rate in found["rates"].items()}
    assert shares == {"win": 1, "tie": 0, "lose": 0, "flip": 0, "invalid": 0}
