"""Rewards, advantages and losses of rlhf/ at the places where usual mistakes differ: edges, ties, limits, gradients."""
import math

import numpy as np
import pytest
import torch

from rlhf import formulas, train_reward

def pair_loss(scores, dtype=torch.float32):
    """(loss, metrics, scores) of pairs whose completions are one token. scores: chosen ones, then rejected ones."""
    scores = torch.tensor(scores, dtype=dtype)[:, None].requires_grad_()    # (2B, 1)
    batch = {"idx": None, "completion_mask": torch.ones(scores.shape, dtype=torch.bool)}
    return *train_reward.pair_loss(lambda idx: scores, batch), scores

def test_the_pair_loss_far_from_zero():
    """A sigmoid before its logarithm is infinite there, and a clamp takes away the gradient."""
    loss, _, scores = pair_loss([-1000.0, 1000.0, 0.0, 0.0])
    loss.backward()
    assert loss.item() == 500 and scores.grad.flatten().tolist() == [-0.5, 0, 0.5, 0]

def test_the_score_need_not_be_the_largest():
    """The last token has seen the whole text, whatever the scores before it are. Its place has an axis of its own."""
    mask = torch.tensor([[False, True, True, False], [True, False, False, False]])
    scores = torch.tensor([[9.0, 5.0, 3.0, 8.0], [2.0, 4.0, 6.0, 8.0]])
    assert train_reward.at_last_token(scores, mask).tolist() == [3, 2]
    assert formulas.last_place(mask).tolist() == [[2], [0]]

def test_a_tie_counts_half():
    """A new head gives 0 to all completions: it knows nothing, so its accuracy is a half."""
    assert pair_loss([0.0, 2.0, 0.0, 1.0])[1]["accuracy"] == 0.75

def test_the_pair_loss_is_float32():
    """Under autocast scores are bfloat16, which has three digits: the loss is not computed in it."""
    loss, metrics, _ = pair_loss([3.0, 1.0], torch.bfloat16)
    assert loss.dtype == metrics["margin"].dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2)), abs=1e-6)

def ppo_loss(**changed):
    """(loss, metrics, values) of two completions, of two tokens and of one, with a ratio of 1.4 at the first token."""
    logps, values = torch.tensor([[1.4, 1.0], [1.0, 9.0]]).log().requires_grad_(), torch.zeros(2, 2, requires_grad=True)
    given = {"old_logps": torch.zeros(2, 2), "old_values": torch.zeros(2, 2), "advantages": torch.ones(2, 2),
             "returns": torch.full((2, 2), 10.0), "mask": torch.tensor([[True, True], [True, False]]), "clip": 0.2,
             "vf_coef": 0.5}
    return *formulas.ppo_loss(logps, values, **given | changed), values

def test_metrics_have_no_gradient():
    """They are kept until the next line of the log, and a gradient would keep the whole graph in memory."""
    for metrics in (pair_loss([1.0, 0.0])[1], ppo_loss()[1]):
        assert metrics and not any(torch.as_tensor(value).requires_grad for value in metrics.values())

def test_calibration_of_unequal_bins():
    """Bins weigh by their counts, an edge belongs to the upper bin, and errors of two bins do not cancel."""
    p = np.array([0.02, 0.12, 0.16, 0.25, 0.5, 0.9])    # the first three are in the first of four bins
    correct = np.array([True, True, False, False, False, True])
    error, table = train_reward.calibration(p, correct, bins=4)
    rows = [(0.1, 2 / 3, 3), (0.25, 0, 1), (0.5, 0, 1), (0.9, 1, 1)]
    assert [row == pytest.approx(want) for row, want in zip(table, rows, strict=True)] == [True] * 4
    assert error == pytest.approx((3 * (2 / 3 - 0.1) + 0.25 + 0.5 + 0.1) / 6)
    assert [n for *_, n in train_reward.calibration(p, correct)[1]] == [1, 2, 1, 1, 1]    # of ten bins, five are empty
    assert [n for *_, n in train_reward.calibration(np.array([0.07, 0.12]), correct[:2])[1]] == [1, 1]

def test_every_prediction_is_in_one_bin():
    """1 is no number below 1: a last bin without it drops the pairs of which a model is certain."""
    table = train_reward.calibration(np.array([1.0, 0.0, 0.97]), np.array([True, False, False]))[1]
    assert table == [(0, 0, 1), (pytest.approx(0.985), 0.5, 2)]

def test_hits_by_hand():
    """Log-odds of 0.3 are a prediction of what happened, though they are below one half. 0 is no prediction."""
    log_odds, happened = np.array([0.3, 0.3, -2.0, -2.0, 0.0, 0.0]), np.array([True, False] * 3)
    assert train_reward.hits(log_odds, happened).tolist() == [1, 0, 0, 1, 0.5, 0.5]

def test_inputs_are_not_changed():
    """Rewards and log-probs of a rollout are needed again, for returns and in every epoch."""
    given = [torch.arange(6.0).view(2, 3) / 7, torch.arange(6.0).view(2, 3) / 9]
    kept, mask = [x.clone() for x in given], torch.tensor([[True, True, False], [False, True, True]])
    formulas.gae(*given, mask, 0.9, 0.7)
    formulas.token_rewards(torch.ones(2), *given, mask, 0.3)
    formulas.whiten(given[0], mask)
    assert all(torch.equal(x, old) for x, old in zip(given, kept))

def test_gae_without_padding_by_hand():
    """Behind the last column there is nothing: not the first one, as after torch.roll."""
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]])
    found = formulas.gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), 1.0, 0.5)
    assert found.tolist() == [[0.25 - 0.5 + 0.5 * 0.75, 0.75]]

def test_the_masked_mean_by_hand():
    """The mean of three tokens: not of six places, and not of the two rows' means, 3 and 7."""
    x, mask = torch.tensor([[2.0, 4.0, 99.0], [7.0, 99.0, 99.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    assert formulas.masked_mean(x, mask).item() == pytest.approx(13 / 3)

def test_whitening_by_hand():
    """The variance of 1 and 3 is 1, with n below the sum of squares. 1e-8 is added to the variance, not to its root."""
    mask = torch.tensor([True, False, True])
    assert formulas.whiten(torch.tensor([1.0, 50.0, 3.0]), mask).tolist() == pytest.approx([-1, 0, 1])
    assert formulas.whiten(torch.full((3,), 1.5), mask).tolist() == [0, 0, 0]
    tiny = torch.tensor([0.0, 0.0, 2e-4], dtype=torch.float64)    # a variance of 1e-8
    assert formulas.whiten(tiny, mask).tolist() == pytest.approx([-(0.5**0.5), 0, 0.5**0.5])

def test_an_upper_clip_of_zero():
    """0 is a bound, None is not: `clip_high or clip` takes one for the other."""
    ratio, one = torch.tensor([1.1, 0.9]), torch.ones(2)
    assert formulas.clipped_policy_loss(ratio, one, 0.2, 0.0).tolist() == pytest.approx([-1, -0.9])
    assert formulas.clipfrac(ratio, 0.2, 0.0).tolist() == [1, 0] and formulas.clipfrac(ratio, 0.2).tolist() == [0, 0]

def test_values_are_clipped_around_the_old_ones():
    """Not around 0 or the return: the step from 5 to 5.1 is within a clip of 0.2, that from 5 to 6 is not."""
    values, old, returns = torch.tensor([5.1, 6.0]), torch.tensor([5.0, 5.0]), torch.tensor([7.0, 7.0])
    assert formulas.clipped_value_loss(values, old, returns, 0.2).tolist() == pytest.approx([1.9**2 / 2, 1.8**2 / 2])

def test_ppo_loss_uses_clip_high():
    """A ratio of 1.4 is outside of 1.2 and inside of 1.5, for the loss and for the logged share."""
    for clip_high, ratio, share in ((None, 1.2, 1 / 3), (0.5, 1.4, 0)):
        metrics = ppo_loss(clip_high=clip_high)[1]
        assert metrics["loss/policy"].item() == pytest.approx(-(ratio + 1 + 1) / 3)
        assert metrics["policy/clipfrac"].item() == pytest.approx(share)

def test_values_learn_returns():
    """Advantages are whitened, so as targets they would lose the unit and the mean of the rewards."""
    loss, _, values = ppo_loss()
    loss.backward()
    assert values.grad.flatten().tolist() == pytest.approx([-10 / 6, -10 / 6, -10 / 6, 0])    # vf_coef (V - R) / 3
