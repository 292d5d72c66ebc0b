"""
at_last_token and pair_loss: the Bradley-Terry loss of a reward model

The score at the last token of each completion, and the loss of chosen and rejected halves of a batch.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/train_reward.py:at_last_token", "rlhf/train_reward.py:pair_loss"]
POINTS, MINUTES = 3, 30

def probes(rng):
    """Prompts and padding of unequal length, ties, one pair, scores in bfloat16, and margins of a thousand nats."""
    def batch(spans, T, scale=2.0, tied=False, dtype="float32"):
        mask = np.zeros((len(spans), T), dtype=bool)
        for i, (start, end) in enumerate(spans):
            mask[i, start:end] = True
        scores = rng.normal(0, scale, mask.shape)
        if tied:    # the last tokens of pair 0 and of pair 1 have equal scores
            half = len(spans) // 2
            for i in range(2):
                scores[half + i, spans[half + i][1] - 1] = scores[i, spans[i][1] - 1]
        return dict(scores=scores, mask=mask, dtype=dtype)
    notes = ["a prompt of two tokens", "a completion of one token", "no padding", "no prompt"]
    spans = [(2, 5), (1, 2), (3, 7), (0, 4), (2, 6), (1, 4), (3, 5), (1, 7)]
    far = batch([(1, 3), (0, 2), (1, 4), (0, 3)], 5, 1.0)
    far["scores"][:2] += np.array([[1000.0], [-2000.0]]) * rng.uniform(1, 1.3, (2, 1))
    return [dict(batch(spans, 8), title="four pairs", rows=notes),
            dict(batch(spans, 8, tied=True), title="two of four pairs tied"),
            dict(batch([(1, 4), (2, 3)], 5), title="one pair"),
            dict(batch([(1, 4), (2, 6), (0, 3), (1, 2), (2, 5), (0, 6)], 7, dtype="bfloat16"),
                 title="a model that gives bfloat16"),
            dict(far, title="margins of a thousand nats")]

def run(module, probe):
    """The value at the last tokens, loss, metrics, and the gradient of the loss with respect to all scores."""
    import torch
    found = {"last": module.at_last_token(probe["scores"], probe["mask"])}
    scores = probe["scores"].to(getattr(torch, probe["dtype"])).requires_grad_()
    batch = {"idx": torch.zeros(probe["mask"].shape, dtype=torch.long), "completion_mask": probe["mask"]}
    loss, metrics = module.pair_loss(lambda idx: scores, batch)
    grad, = torch.autograd.grad(loss.sum(), scores)
    if scores.dtype == torch.float32:    # in bfloat16 the last bit of a gradient is a matter of luck
        found["grad"] = grad
    margin = metrics["margin"]
    found.update(loss=loss, margin=torch.as_tensor(margin).double(),
                 accuracy=torch.as_tensor(metrics["accuracy"]).double(), is_float32=loss.dtype == torch.float32,
                 margin_carries_no_gradient=not getattr(margin, "requires_grad", False))
    return found

LAST = "return values.gather(1, last_place(mask)).squeeze(1)"
SCORES = 'scores = model(batch["idx"]).float()'
HALVES = 'at_last_token(scores, batch["completion_mask"]).chunk(2)'
MARGINS, RANKED = "margins = chosen - rejected", "measures.ties_half(margins).mean()"
LOGGED, LOSS = '"margin": margins.detach().mean()', "return -F.logsigmoid(margins).mean(), metrics"
WHERE, PAIRS, METRICS = "Which score counts", "Chosen and rejected", "The metrics of a pair loss"
STABLE = "Margins of a thousand nats"
SCORE = "test_reward.py::test_the_score_is_that_of_the_last_token"
BY_HAND = "test_reward.py::test_the_pair_loss_by_hand"
FAR, TIES = "test_advantages.py::test_the_pair_loss_far_from_zero", "test_advantages.py::test_a_tie_counts_half"
PADDING = "Change the scores behind the last token of a short row. Does your value for this row change?"
SHORT = "Take a mask with one True, in column 2 of 5. Which column does your line read?"
MISTAKES = {
    "the last column": Mistake(((LAST, "return values[:, -1]"),), PADDING, WHERE, SCORE,
        "The loss of a pair changes if a longer completion is put into its batch."),
    "as many columns as tokens": Mistake(
        ((LAST, "return values.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)"),),
        "The mask begins behind the prompt. Is the number of completion tokens the place of the last one?", WHERE,
        SCORE, "If the prompt is longer than both completions, the loss of a pair does not depend on what they say."),
    "the first token": Mistake(((LAST, "return values.gather(1, mask.int().argmax(1, keepdim=True)).squeeze(1)"),),
        "Which token of a completion has seen all of it?", WHERE, SCORE,
        "The loss of a pair is log 2 if both completions begin with the same token, after any training."),
    "one token before the last": Mistake(((LAST,
        "return values.gather(1, (last_place(mask) - 1).clamp(min=0)).squeeze(1)"),), SHORT, WHERE, SCORE),
    "one token behind the last": Mistake(((LAST,
        "return values.gather(1, (last_place(mask) + 1).clamp(max=mask.shape[1] - 1)).squeeze(1)"),), SHORT, WHERE,
        SCORE),
    "the mean over the completion": Mistake(((LAST, "return (values * mask).sum(1) / mask.sum(1)"),),
        "How many of the scores of a completion may have an influence on the result?", WHERE, SCORE),
    "the sum over the completion": Mistake(((LAST, "return (values * mask).sum(1)"),),
        "How many of the scores of a completion may have an influence on the result?", WHERE, SCORE),
    "the largest score": Mistake(((LAST, 'return values.masked_fill(~mask, -float("inf")).amax(1)'),),
        "Is the last token the one with the largest score? Try a completion whose first score is the largest.", WHERE,
        "test_advantages.py::test_the_score_need_not_be_the_largest"),
    "pairs next to each other": Mistake(((f"chosen, rejected = {HALVES}",
        'both = at_last_token(scores, batch["completion_mask"])\n    chosen, rejected = both[::2], both[1::2]'),),
        "The batch has B pairs in 2B rows. In which row is the rejected completion of row 0?", PAIRS, BY_HAND,
        "The validation loss stays near log 2 and the accuracy near a half, with every learning rate."),
    "the rejected half on top": Mistake(((f"chosen, rejected = {HALVES}", f"rejected, chosen = {HALVES}"),),
        "Which half of the batch has the chosen completions? Check the sign of the logged margin by hand.", PAIRS,
        BY_HAND, "The training log has a high accuracy, but that of reward.json is far below a half."),
    "the sign of the margin in the loss": Mistake(((LOSS, "return -F.logsigmoid(-margins).mean(), metrics"),),
        "Is your loss smaller if the chosen completion has the higher score?", PAIRS, BY_HAND,
        "The loss falls and the logged accuracy falls with it, far below a half."),
    "the sign of the loss": Mistake(((LOSS, "return F.logsigmoid(margins).mean(), metrics"),),
        "Training minimizes the loss. What is the largest value that yours can have?", PAIRS, BY_HAND,
        "The loss is negative from the start and falls without bound."),
    "the sum over pairs": Mistake(((LOSS, "return -F.logsigmoid(margins).sum(), metrics"),),
        "With all scores 0 the loss is log 2, for every number of pairs. Is yours?", PAIRS, BY_HAND,
        "Before the first update the loss is not log 2. It grows with --batch_size."),
    "the mean before the logarithm": Mistake(((LOSS, "return -F.logsigmoid(margins.mean()), metrics"),),
        "Take two pairs with margins 10 and -10. What is the loss of each, and what is the loss of the batch?", PAIRS,
        BY_HAND),
    "a probability, not its logarithm": Mistake(((LOSS, "return (-margins).sigmoid().mean(), metrics"),),
        "With all scores 0 the loss is log 2 = 0.693. What is yours?", PAIRS, BY_HAND),
    "the hinge": Mistake(((LOSS, "return (1 - margins).clamp(min=0).mean(), metrics"),),
        "The docstring names the loss. Which probability is its logarithm taken of?", PAIRS, BY_HAND),
    "sigmoid, then log": Mistake(((LOSS, "return -margins.sigmoid().log().mean(), metrics"),),
        "What is sigmoid(-1000) in floating point, and its logarithm?", STABLE, FAR,
        "The loss of a batch is infinite if one of its pairs has the margin -200."),
    "a clamp": Mistake(((LOSS, "return -F.logsigmoid(margins.clamp(-20, 20)).mean(), metrics"),),
        "Look at the gradient of a pair with the margin -1000. Can it still move?", STABLE, FAR),
    "a small number in the logarithm": Mistake(((LOSS, "return -(margins.sigmoid() + 1e-8).log().mean(), metrics"),),
        "Look at the loss and the gradient of a pair with the margin -1000. What should the loss be?", STABLE, FAR),
    "the precision of the model": Mistake(((SCORES, 'scores = model(batch["idx"])'),),
        "Under autocast a model returns bfloat16, which has three digits. In which precision is your loss?", STABLE,
        "test_advantages.py::test_the_pair_loss_is_float32"),
    "a tie is a hit": Mistake(((RANKED, "(margins >= 0).float().mean()"),),
        "What is your accuracy if all scores are equal?", METRICS, TIES,
        "Before the first update the logged accuracy is 1."),
    "a tie is no hit": Mistake(((RANKED, "(margins > 0).float().mean()"),),
        "What is your accuracy if all scores are equal?", METRICS, TIES,
        "Before the first update the logged accuracy is 0."),
    "a margin with a gradient": Mistake(((LOGGED, '"margin": margins.mean()'),),
        "The metrics are only logged. May a gradient flow through them?", METRICS,
        "test_advantages.py::test_metrics_have_no_gradient"),
}
ALTERNATIVES = {
    "softplus in float64": '''
def at_last_token(values, mask):
    T = mask.shape[1]
    last = T - 1 - mask.flip(1).int().argmax(1)
    return values[range(len(values)), last]

def pair_loss(model, batch):
    found = at_last_token(model(batch["idx"]), batch["completion_mask"]).double()
    B = len(found) // 2
    gap = found[:B] - found[B:]
    ranked = ((gap > 0).double() + (gap >= 0).double()) / 2
    loss = F.softplus(-gap).mean()
    return loss.float(), {"accuracy": ranked.mean(), "margin": gap.mean().item()}
''',
    "a loop": '''
def at_last_token(values, mask):
    columns = [max(t for t, inside in enumerate(row) if inside) for row in mask.tolist()]
    return values[range(len(values)), columns]

def pair_loss(model, batch):
    r = at_last_token(model(batch["idx"]), batch["completion_mask"]).float()
    n = len(r) // 2
    total, right, margin = 0.0, 0.0, 0.0
    for i in range(n):
        m = r[i] - r[n + i]
        total = total - F.logsigmoid(m) / n
        right += (1.0 if m > 0 else 0.5 if m == 0 else 0.0) / n
        margin += m.item() / n
    return total, {"accuracy": right, "margin": margin}
''',
    "cross entropy": '''
def at_last_token(values, mask):
    later = mask.long().flip(1).cumsum(1).flip(1)
    return (values * (mask & (later == 1))).sum(1)

def pair_loss(model, batch):
    scores = at_last_token(model(batch["idx"]).float(), batch["completion_mask"])
    two = scores.view(2, -1).T
    loss = F.cross_entropy(two, two.new_zeros(len(two)).long())
    margins = (two[:, 0] - two[:, 1]).detach()
    return loss, {"accuracy": (margins.sign() / 2 + 0.5).mean(), "margin": margins.mean()}
''',
}
REMOVED = ("rlhf/train_reward.py:label_loss",)
SHARED = (RANKED,)    # objective.py logs the accuracy of pairs
DOC = "the Bradley-Terry loss -log sigmoid(r(x, chosen) - r(x, rejected)), in nats."
VARIANTS = {
    "a target margin": (
        (LOSS, "return -F.logsigmoid(margins - 0.5).mean(), metrics"),
        (DOC, "-log sigmoid(r(x, chosen) - r(x, rejected) - 0.5), in nats: a pair\n    should reach a margin of 0.5.")),
    "scores near zero": (
        (LOSS, "return -F.logsigmoid(margins).mean() + 0.01 * ((chosen + rejected) ** 2).mean(), metrics"),
        (DOC, "the Bradley-Terry loss -log sigmoid(r(x, chosen) - r(x, rejected)), in nats,\n    plus 0.01 times the "
              "mean of (r(x, chosen) + r(x, rejected))^2 over pairs, so that the scores stay near zero.")),
}
