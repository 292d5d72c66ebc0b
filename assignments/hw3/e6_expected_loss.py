"""
expected_loss: the mean loss over every pair of a world

All ordered pairs of different answers, each with its probability.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["study/bandit.py:expected_loss"]
POINTS, MINUTES = 6, 40

def probes(rng):
    """Full and partial coverage, counts instead of probabilities, two answers, losses with and without a reference."""
    def world(X, A, name, hparams, title, counts=False, partial=False):
        logits, ref, reward = rng.normal(0, 1.5, (3, X, A))
        ref = ref - np.log(np.exp(ref).sum(1, keepdims=True))
        preference = 1 / (1 + np.exp(reward[:, None, :] - reward[:, :, None]))
        if counts:
            preference = np.floor(8 * preference) + rng.integers(1, 4, (X, A, A))
        weights = np.exp(ref[:, :, None] + ref[:, None, :]) * rng.uniform(0.5, 1.5, (X, 1, 1))
        weights = weights * rng.uniform(0.7, 1.3, (X, A, A))    # not symmetric: which index is the winner?
        if partial:
            weights[:, -1] = weights[:, :, -1] = 0
        return dict(title=title, logits=logits, ref=ref, preference=preference, weights=weights, name=name,
                    hparams=hparams)
    return [world(2, 3, "dpo", dict(beta=0.7), "dpo, two prompts, three answers"),
            world(3, 4, "ipo", dict(beta=0.5), "ipo, three prompts, four answers"),
            world(1, 2, "dpo", dict(beta=1.0), "one prompt, two answers"),
            world(2, 4, "bco", dict(beta=0.6), "bco, the last answer never seen", partial=True),
            world(2, 3, "cpo", dict(beta=0.6), "cpo, numbers of wins instead of probabilities", counts=True),
            world(2, 3, "sft", {}, "sft")]

def run(module, probe):
    """The loss and its gradient with respect to the logits."""
    import torch
    logits = probe["logits"].requires_grad_()
    loss = module.expected_loss(logits, probe["ref"], probe["preference"], probe["weights"], probe["name"],
                                **probe["hparams"])
    grad, = torch.autograd.grad(loss, logits)
    return dict(loss=loss, grad=grad)

SKIP, SOFT = "(~torch.eye(A, dtype=torch.bool))", "policy = logits.log_softmax(1)"
P, MEAN = "p = (weights * preference)[:, i, j].reshape(-1)", "return (p * losses).sum() / p.sum()"
CHOSEN = "chosen = lambda table: table[:, i].reshape(-1)"
REJECTED = "rejected = lambda table: table[:, j].reshape(-1)"
PROMPTS = "p, losses = p.reshape(X, -1), losses.reshape(X, -1)\n    return ((p * losses).sum(1) / p.sum(1)).mean()"
PAIRS, WEIGHTS, LOGITS = "Which pairs there are", "The weight of a pair", "Logits are not log-probs"
WINNER = "P(i beats j): which index is the chosen answer, and which entry of the table has its probability?"
OPTIMUM = "test_bandit.py::test_dpo_reaches_the_rlhf_optimum"
PARTIAL = "test_bandit.py::test_with_partial_coverage_mass_moves_to_answers_never_seen"
MISTAKES = {
    "an answer against itself": Mistake(((SKIP, "torch.ones(A, A, dtype=torch.bool)"),),
        "How many pairs do you have for three answers? What does the docstring say of i and j?", PAIRS,
        "", "On the exact world the expected dpo loss is too near to log 2, though dpo ends at the right policy."),
    "each pair in one order only": Mistake(((SKIP, "torch.ones(A, A, dtype=torch.bool).triu(1)"),),
        "How many pairs do you have for three answers? Can the worse answer be the chosen one?", PAIRS, OPTIMUM),
    "the loser as chosen": Mistake(((P, "p = (weights * preference)[:, j, i].reshape(-1)"),), WINNER, PAIRS, OPTIMUM,
        "On the exact world dpo, ipo and sft end at policies with a lower reward than the reference."),
    "chosen and rejected exchanged": Mistake(
        ((CHOSEN, "chosen = lambda table: table[:, j].reshape(-1)"),
         (REJECTED, "rejected = lambda table: table[:, i].reshape(-1)")), WINNER, PAIRS, OPTIMUM),
    "the preference transposed": Mistake(
        ((P, "p = (weights * preference.transpose(1, 2))[:, i, j].reshape(-1)"),), WINNER, PAIRS, OPTIMUM),
    "pairs and weights in another order": Mistake(((P, "p = (weights * preference)[:, i, j].T.reshape(-1)"),),
        "The losses and the weights are flat. Is entry k the same pair of the same prompt in both?", WEIGHTS, OPTIMUM),
    "no weights": Mistake(((P, "p = preference[:, i, j].reshape(-1)"),),
        "Which of your lines uses `weights`? A pair that is never seen must have no effect.", WEIGHTS, PARTIAL,
        "On the exact world, training on pairs of the first three answers gives the same policy as training on all."),
    "no preferences": Mistake(((P, "p = weights[:, i, j].reshape(-1)"),),
        "Which of your lines uses `preference`? Exchange the rewards of two answers: the loss must change.", WEIGHTS,
        OPTIMUM),
    "weights and preference added": Mistake(((P, "p = (weights + preference)[:, i, j].reshape(-1)"),),
        "A pair that is never drawn has weight 0, whoever would win. Has it in yours?", WEIGHTS, PARTIAL),
    "divided by the number of pairs": Mistake(((MEAN, "return (p * losses).mean()"),),
        "Take a loss that is 1 for each pair. Is your mean 1?", WEIGHTS),
    "a sum": Mistake(((MEAN, "return (p * losses).sum()"),),
        "Take weights that are twice as large. Should the mean loss change?", WEIGHTS),
    "a mean of the prompts' means": Mistake(
        ((MEAN, PROMPTS),),
        "Is one mean taken over the pairs of all prompts, or a mean of means? They differ where prompts have "
        "different weights.", WEIGHTS),
    "logits used as log-probs": Mistake(((SOFT, "policy = logits"),),
        "Add 3 to all logits of a prompt: the policy is the same. Is your loss, for cpo and sft?", LOGITS, "",
        "On the exact world the expected losses of sft and cpo fall below 0 and go on falling. Those of dpo and ipo "
        "are right."),
    "normalized over prompts": Mistake(((SOFT, "policy = logits.log_softmax(0)"),),
        "Over which dimension of (X, A) do the probabilities of a policy sum to 1?", LOGITS, OPTIMUM),
    "probabilities": Mistake(((SOFT, "policy = logits.softmax(1)"),),
        "Does a loss take probabilities or their logarithms?", LOGITS, OPTIMUM),
}
ALTERNATIVES = {
    "a triple loop": '''
def expected_loss(logits, ref, preference, weights, name, **hparams):
    policy, total, weight = logits - logits.logsumexp(1, keepdim=True), 0.0, 0.0
    one = torch.ones(1, dtype=ref.dtype)
    for x in range(ref.shape[0]):
        for i in range(ref.shape[1]):
            for j in range(ref.shape[1]):
                if i != j:
                    pairs = Pairs(policy[x, i:i + 1], policy[x, j:j + 1], ref[x, i:i + 1], ref[x, j:j + 1], one, one)
                    p = weights[x, i, j] * preference[x, i, j]
                    total = total + p * LOSSES[name].fn(pairs, **hparams)[0][0]
                    weight = weight + p
    return total / weight
''',
    "the full square with a zero diagonal": '''
def expected_loss(logits, ref, preference, weights, name, **hparams):
    X, A = ref.shape
    policy = F.log_softmax(logits, dim=-1)
    rows = lambda t: t[:, :, None].expand(X, A, A).reshape(-1)
    columns = lambda t: t[:, None, :].expand(X, A, A).reshape(-1)
    ones = torch.ones(X * A * A, dtype=ref.dtype)
    pairs = Pairs(rows(policy), columns(policy), rows(ref), columns(ref), ones, ones, 0 * ones)
    losses = LOSSES[name].fn(pairs, **hparams)[0]
    p = (weights * preference * (1 - torch.eye(A, dtype=ref.dtype))).reshape(-1)
    return (p / p.sum()) @ losses

import torch.nn.functional as F
''',
}
HIDDEN = ()
REMOVED = ()
VARIANTS = {
    "prompts count the same": (
        (MEAN, PROMPTS),
        ("Mean loss () over all ordered pairs", "Mean over prompts of the mean loss () over all ordered pairs")),
}
