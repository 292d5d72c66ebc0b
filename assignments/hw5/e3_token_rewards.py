"""
last_place and token_rewards: where the score and the KL penalty go

A penalty at every token of the completion, the score at its last one, nothing elsewhere.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/formulas.py:last_place", "rlhf/formulas.py:token_rewards"]
POINTS, MINUTES = 3, 35

def probes(rng):
    """All estimators, numbers or zeros in prompts and padding, one row, one token, no penalty."""
    def batch(spans, T, beta, estimator="k1", zeros=False, **more):
        mask = np.zeros((len(spans), T), dtype=bool)
        for i, (start, end) in enumerate(spans):
            mask[i, start:end] = True
        logps = -rng.uniform(0.1, 4, mask.shape)
        ref = logps - rng.normal(0.1, 0.7, mask.shape)
        if zeros:
            logps, ref = logps * mask, ref * mask
        scores = rng.normal(0, 2, len(spans))
        return dict(scores=scores, logps=logps, ref_logps=ref, mask=mask, beta=beta, estimator=estimator, **more)
    notes = ["a prompt of two tokens", "a completion of one token", "no padding", "no prompt"]
    spans = [(2, 5), (1, 2), (4, 7), (0, 4)]
    beta = lambda: rng.uniform(0.05, 0.6)
    return [batch(spans, 7, beta(), title="four completions, k1", rows=notes),
            batch(spans, 8, beta(), "k2", title="four completions, k2", rows=notes),
            batch(spans, 7, beta(), "k3", title="four completions, k3", rows=notes),
            batch([(1, 4)], 6, beta(), title="one completion"),
            batch([(0, 1), (0, 1)], 1, beta(), title="one token and no prompt"),
            batch([(2, 4), (1, 3), (1, 4)], 6, 0.0, title="no penalty"),
            batch(spans, 7, beta(), zeros=True, title="zeros outside of the mask")]

def run(module, probe):
    """The places of the last tokens, and the rewards."""
    import torch
    place = module.last_place(probe["mask"])
    more = [] if probe["estimator"] == "k1" else [probe["estimator"]]    # k1 is the default
    rewards = module.token_rewards(*(probe[name] for name in ("scores", "logps", "ref_logps", "mask", "beta")), *more)
    return dict(place=place, place_is_int64=place.dtype == torch.int64, rewards=rewards)

LAST = "return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1, keepdim=True)"
KL = "rewards = -beta * KL_ESTIMATORS[estimator](logps - ref_logps) * mask"
ADD = "return rewards.scatter_add(1, last_place(mask), scores[:, None])"
PLACE, SCORE, PENALTY = "The last token", "The score", "The penalty"
BY_HAND = "test_ppo.py::test_token_rewards_by_hand"
OF_K = "test_grpo.py::test_the_kl_in_the_rewards_by_hand"
EMPTY = "Is the sum of a row's rewards the objective of this completion? Compare with the docstring."
TOO_FAR = "Print the rewards of a short row. In which column does the mask end, and where is the score?"
NAMED = "rewards = -beta * KL_ESTIMATORS[{}]({}) * mask"
MISTAKES = {
    "the last column": Mistake(((LAST, "return torch.full((len(mask), 1), mask.shape[1] - 1, device=mask.device)"),),
        TOO_FAR, PLACE, BY_HAND,
        "PPO learns nothing from the score of a completion if another one of its minibatch is longer."),
    "as many as tokens": Mistake(((LAST, "return mask.sum(1, keepdim=True) - 1"),),
        "Is the number of completion tokens the place of the last one, if there is a prompt?", PLACE, BY_HAND),
    "the first token": Mistake(((LAST, "return mask.int().argmax(1, keepdim=True)"),),
        "argmax gives the first of equal values. Which True of the row do you want?", PLACE, BY_HAND,
        "PPO with --beta 0: only the first token of a completion has an advantage that depends on its score."),
    "the token behind the last": Mistake(((LAST,
        "return ((mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1, keepdim=True) + 1).clamp("
        "max=mask.shape[1] - 1)"),), TOO_FAR, PLACE, BY_HAND),
    "the token before the last": Mistake(((LAST,
        "return ((mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1, keepdim=True) - 1).clamp(min=0)"),),
        "Which token completes the text that was scored? EOS belongs to the completion.", PLACE, BY_HAND),
    "one axis too few": Mistake(((LAST, "return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)"),
                                 (ADD, "return rewards.scatter_add(1, last_place(mask)[:, None], scores[:, None])")),
        "What shape does the docstring promise for the places?", PLACE,
        "test_advantages.py::test_the_score_need_not_be_the_largest"),
    "the score in the last column": Mistake(((ADD, "rewards[:, -1] += scores\n    return rewards"),), TOO_FAR, SCORE,
        BY_HAND),
    "the score in the last column, masked afterwards": Mistake(
        ((ADD, "rewards[:, -1] += scores\n    return rewards * mask"),),
        "Add up the rewards of a row with padding, with beta = 0. Is the sum the score of the row?", SCORE, BY_HAND,
        "PPO learns nothing from the score of a completion if another one of its minibatch is longer."),
    "the score replaces the penalty": Mistake(((ADD,
        "return rewards.scatter(1, last_place(mask), scores[:, None])"),),
        "Is there a penalty at the last token too? Add up the rewards of a completion of one token.", SCORE, BY_HAND,
        "With --algo rloo the return of a completion of one token does not depend on --beta."),
    "the score at every token": Mistake(((ADD, "return rewards + scores[:, None] * mask"),), EMPTY, SCORE, BY_HAND,
        "The logged returns/mean of --algo rloo --true_reward is many times objective/scores."),
    "the score in every column": Mistake(((ADD, "return rewards + scores[:, None]"),),
        "How many rewards of a row are not 0? How many should there be with beta = 0?", SCORE, BY_HAND),
    "the score, spread evenly": Mistake(((ADD,
        "return rewards + scores[:, None] * mask / mask.sum(1, keepdim=True)"),),
        "The sum is right. Which token has the score in the docstring?", SCORE, BY_HAND),
    "no score": Mistake(((ADD, "return rewards"),), "Which of your lines uses `scores`?", SCORE, BY_HAND),
    "the sign of the penalty": Mistake(((KL, KL.replace("= -beta", "= beta")),),
        "A token that the policy likes more than the reference does: should its reward rise or fall?", PENALTY, BY_HAND,
        "The larger --beta is, the larger is the KL to the reference after training."),
    "without beta": Mistake(((KL, KL.replace("-beta * ", "-")),),
        "Which of your lines uses `beta`? There is a run without penalty.", PENALTY, BY_HAND,
        "PPO with --beta 0.01 and with --beta 1 samples the same completions."),
    "without the mask": Mistake(((KL, KL.removesuffix(" * mask")),),
        "Which rewards of a prompt's tokens and of padding are not 0?", PENALTY, BY_HAND),
    "only at the last token": Mistake(((KL, f"{KL}\n    at = torch.zeros_like(rewards)\n    rewards = at.scatter(1, "
                                           "last_place(mask), rewards.gather(1, last_place(mask)))"),),
        "At how many tokens of a completion is there a penalty?", PENALTY, BY_HAND),
    "all of it at the last token": Mistake(((KL, f"{KL}\n    at = torch.zeros_like(rewards)\n    rewards = at.scatter("
                                                "1, last_place(mask), rewards.sum(1, keepdim=True))"),),
        "The sum is right. Which token has which part of the penalty in the docstring?", PENALTY, BY_HAND),
    "the mean of the penalty": Mistake(((KL, f"{KL} / mask.sum(1, keepdim=True)"),),
        "Is the penalty of a completion the sum over its tokens or the mean?", PENALTY, BY_HAND,
        "The return of RLOO is not score - beta * log-ratio, unless a completion has one token."),
    "always k1": Mistake(((KL, NAMED.format('"k1"', "logps - ref_logps")),),
        "Which of your lines uses `estimator`?", PENALTY, OF_K,
        "Runs with --kl_estimator k1 and k3 in the reward write the same log."),
    "the log-ratio the wrong way around": Mistake(((KL, NAMED.format("estimator", "ref_logps - logps")),),
        "k2 is even, k3 is not. Which difference do the functions of measures.py take?", PENALTY, OF_K),
    "probabilities instead of their logarithms": Mistake(((KL,
        NAMED.format("estimator", "logps.exp() - ref_logps.exp()")),),
        "What do the estimators of measures.py take: a ratio, its logarithm, or a difference of probabilities?",
        PENALTY, BY_HAND),
    "the ratio instead of its logarithm": Mistake(((KL, NAMED.format("estimator", "(logps - ref_logps).exp()")),),
        "What do the estimators of measures.py take: a ratio, its logarithm, or a difference of probabilities?",
        PENALTY, BY_HAND),
    "log-probs changed in place": Mistake(((KL, NAMED.format("estimator", "logps.sub_(ref_logps)")),),
        "Which of your lines ends with an underscore or assigns to an input? The old log-probs are needed later.",
        PENALTY, "test_advantages.py::test_inputs_are_not_changed"),
}
ALTERNATIVES = {
    "a double loop": '''
def last_place(mask):
    return torch.tensor([[max(t for t, inside in enumerate(row) if inside)] for row in mask.tolist()])

def token_rewards(scores, logps, ref_logps, mask, beta, estimator="k1"):
    rewards = torch.zeros_like(logps)
    for i, row in enumerate(mask.tolist()):
        for t, inside in enumerate(row):
            if inside:
                rewards[i, t] = -beta * KL_ESTIMATORS[estimator](logps[i, t] - ref_logps[i, t])
        rewards[i, last_place(mask)[i]] += scores[i]
    return rewards
''',
    "counted from the right": '''
def last_place(mask):
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1).unsqueeze(1)

def token_rewards(scores, logps, ref_logps, mask, beta, estimator="k1"):
    penalty = torch.where(mask, KL_ESTIMATORS[estimator](logps - ref_logps), 0.0)
    columns = torch.arange(mask.shape[1], device=mask.device)
    at_end = columns[None, :] == last_place(mask)
    return at_end * scores[:, None] - beta * penalty
''',
    "the number of True so far": '''
def last_place(mask):
    return mask.long().cumsum(1).argmax(dim=1)[:, None]

def token_rewards(scores, logps, ref_logps, mask, beta, estimator="k1"):
    rewards = (KL_ESTIMATORS[estimator](logps - ref_logps) * -beta).masked_fill(~mask, 0)
    rewards[torch.arange(len(scores)), last_place(mask)[:, 0]] += scores
    return rewards
''',
}
HIDDEN = ("rewards_t = -beta * k(logps_t - ref_logps_t),",)
AT_EVERY = "a KL penalty at every token, and the score of the completion at its last token."
SUM_OF_ALL = ("With k1, the rewards of a completion sum to score - beta * log(policy(y | x) / reference(y | x)). "
              "The mean of this\n    sum is the objective, E[score] - beta * KL(policy || reference). With k2 or k3 "
              "its gradient is another one.")
VARIANTS = {
    "no penalty at the last token": (
        (KL, f"{KL}\n    rewards = rewards.scatter(1, last_place(mask), 0.0)"),
        (AT_EVERY, "a KL penalty at every token but the last one, and the score of\n    the completion, without a "
                   "penalty, at the last token."),
        (SUM_OF_ALL, "With k1, the rewards of a completion sum to score - beta * (log-ratio of all its tokens but the "
                     "last one).")),
    "the score is spread": (
        (ADD, "return rewards + scores[:, None] * mask / mask.sum(1, keepdim=True)"),
        (AT_EVERY, "a KL penalty at every token, and an equal part of the\n    completion's score at every token: the "
                   "score divided by the number of tokens.")),
}
