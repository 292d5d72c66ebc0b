"""
gae: generalized advantage estimation

A recursion from the last token to the first, over completions of unequal length.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/formulas.py:gae"]
POINTS, MINUTES = 4, 40

def probes(rng):
    """Ragged completions with numbers outside of the mask, both limits of lam, gamma below 1, one token, one row."""
    def batch(spans, T, gamma, lam, like=None, **more):
        mask = np.zeros((len(spans), T), dtype=bool)
        for i, (start, end) in enumerate(spans):
            mask[i, start:end] = True
        rewards, values = rng.normal(0, 1, (2, *mask.shape))
        if like:    # the same numbers under the mask
            rewards, values = np.where(mask, like["rewards"], rewards), np.where(mask, like["values"], values)
        return dict(rewards=rewards, values=values, mask=mask, gamma=gamma, lam=lam, **more)
    notes = ["a prompt of two tokens", "a completion of one token", "no padding", "no prompt", "no prompt, no padding"]
    spans = [(2, 5), (1, 2), (3, 8), (0, 4), (0, 8)]
    gamma, lam = rng.uniform(0.8, 0.95), rng.uniform(0.4, 0.7)
    first = batch(spans, 8, gamma, lam, title="five completions", rows=notes)
    other = batch(spans, 8, gamma, lam, first, title="other numbers outside of the mask", rows=notes, same_as=0,
                  differs_in="rewards and values of prompts and padding")
    return [first, other,
            batch(spans, 8, 1.0, 0.95, title="gamma 1, lam 0.95", rows=notes),
            batch([(1, 6), (2, 5)], 7, gamma, 0.0, title="lam 0"),
            batch([(1, 6), (2, 5)], 7, gamma, 1.0, title="lam 1"),
            batch([(0, 4), (1, 4)], 4, 0.0, lam, title="gamma 0"),
            batch([(0, 1)], 1, gamma, lam, title="one token")]

def run(module, probe):
    """The advantages."""
    return dict(advantages=module.gae(*(probe[name] for name in ("rewards", "values", "mask", "gamma", "lam"))))

START, LOOP = "advantage, next_value = 0.0, 0.0", "for t in reversed(range(rewards.shape[1])):"
ZEROS, DELTA = "advantages = torch.zeros_like(rewards)", "delta = rewards[:, t] + gamma * next_value - values[:, t]"
NEXT = "next_value = values[:, t] * mask[:, t]"
STEP, STORE = "advantage = (delta + gamma * lam * advantage) * mask[:, t]", "advantages[:, t] = advantage"
END = f"{STORE}\n    return advantages"
BACK, NEIGHBOR, BEHIND, LIMITS = ("From the last token to the first", "The next value", "Behind the last token",
                                  "Gamma and lambda")
SUM, ONE = "test_ppo.py::test_gae_against_its_sum", "test_ppo.py::test_gae_with_lambda_1_is_the_return_less_the_value"
PADDING = "Change the values of the padding. Does your result change?"
ZERO = "With lam = 0 the advantage is delta. With gamma = 0 it is the reward less the value. Check both."
CARRIED = ("advantage, next_value = torch.zeros(()), torch.zeros(())\n"
           "    for i, t in ((i, t) for i in range(len(rewards)) for t in reversed(range(rewards.shape[1]))):\n"
           "        if mask[i, t]:\n"
           "            nearest = values[i, t + 1] * mask[i, t + 1] if t + 1 < rewards.shape[1] else 0.0\n"
           "            advantage = rewards[i, t] + gamma * nearest - values[i, t] + gamma * lam * advantage\n"
           "            advantages[i, t] = advantage\n"
           "    return advantages\n    advantage, next_value = 0.0, 0.0")
MISTAKES = {
    "from the first token to the last": Mistake(((LOOP, "for t in range(rewards.shape[1]):"),),
        "Does the advantage of a token depend on what comes after it or on what came before?", BACK, SUM,
        "The advantage of the first token does not depend on the score, which comes at the last one."),
    "one step only": Mistake(((STEP, "advantage = delta * mask[:, t]"),),
        "Which of your lines uses `lam`? How far does the score at the last token reach?", BACK, SUM,
        "PPO with --lam 0 and with --lam 1 writes the same log."),
    "carried from row to row": Mistake(((START, CARRIED),),
        "Exchange two completions of the batch. Does the advantage of a completion change?", BACK, SUM,
        "The advantages of a completion change with the order of the completions in the batch."),
    "discounted from the first column": Mistake(((STEP, "advantage = ((gamma * lam) ** t * delta + advantage) * "
                                                        "mask[:, t]"),),
        "From which token on do the powers of gamma * lam count? Put a prompt before the completion.", BACK, SUM),
    "columns in the order of the loop": Mistake(((STORE, "advantages[:, rewards.shape[1] - 1 - t] = advantage"),),
        "Are the zeros of your result where the mask is False?", BACK, SUM),
    "delta discounted too": Mistake(((STEP, "advantage = gamma * lam * (delta + advantage) * mask[:, t]"),),
        "What is the advantage of a completion of one token?", BACK, SUM),
    "rewards changed in place": Mistake(((ZEROS, "advantages = rewards"),),
        "Which tensor do your lines write to? The rewards of a rollout are needed later.", BACK,
        "test_advantages.py::test_inputs_are_not_changed"),
    "the value of the padding": Mistake(((NEXT, "next_value = values[:, t]"),), PADDING, BEHIND, SUM),
    "advantages of the padding": Mistake(((STEP, "advantage = delta + gamma * lam * advantage"),
                                          (STORE, "advantages[:, t] = advantage * mask[:, t]")), PADDING, BEHIND, SUM),
    "the padding, with a mask at the end": Mistake(((STEP, "advantage = delta + gamma * lam * advantage"),
        (NEXT, "next_value = values[:, t]"), (STORE, "advantages[:, t] = advantage * mask[:, t]")), PADDING, BEHIND,
        SUM),
    "the next value, rolled around": Mistake(((START, "advantage, next_value = 0.0, values[:, 0] * mask[:, 0]"),),
        "Take a row without prompt and padding. What stands behind its last column?", BEHIND,
        "test_advantages.py::test_gae_without_padding_by_hand"),
    "no mask at all": Mistake(((STEP, "advantage = delta + gamma * lam * advantage"),
                               (NEXT, "next_value = values[:, t]")),
        "Which entries of your result should be 0?", BEHIND, SUM),
    "prompt and padding left in": Mistake(((START, "rewards, values = rewards * mask, values * mask\n"
                                                  "    advantage, next_value = 0.0, 0.0"),
                                           (STEP, "advantage = delta + gamma * lam * advantage")),
        "Which entries of your result should be 0? What is the next value of the token before the first one?", BEHIND,
        SUM),
    "the last value once more": Mistake(((START, "advantage, next_value = 0.0, values[:, -1]"),
        (NEXT, "next_value = torch.where(mask[:, t] | (t == 0), values[:, t], values[:, t - 1])")),
        "What is the value behind the last token of a completion? Take one token with reward 1 and value 0.4.", BEHIND,
        SUM, "The return of a completion's last token, advantage plus value, is not its reward."),
    "the mask of the next token": Mistake(((STEP,
        "advantage = (delta + gamma * lam * advantage) * (mask[:, t + 1] if t + 1 < mask.shape[1] else mask[:, t])"),),
        "Has the last token of a completion an advantage? Look at the row whose completion has one token.", BEHIND,
        SUM),
    "its own value": Mistake(((DELTA, "delta = rewards[:, t] + gamma * values[:, t] - values[:, t]"),),
        "Which token's value stands behind gamma in delta?", NEIGHBOR, SUM),
    "the value before": Mistake(((DELTA,
        "delta = rewards[:, t] + gamma * values[:, t] * mask[:, t] - (values[:, t - 1] * mask[:, t - 1] if t else "
        "0.0)"),), "Which two values does delta compare, and which comes first in time?", NEIGHBOR, SUM),
    "no value subtracted": Mistake(((DELTA, "delta = rewards[:, t] + gamma * next_value"),),
        "What is the advantage of a token with reward 1 and value 1 at the end of a completion?", NEIGHBOR, SUM),
    "values exchanged": Mistake(((DELTA, "delta = rewards[:, t] + values[:, t] - gamma * next_value"),),
        "Rewards are 0, and the value rises from one token to the next. Was the token good or bad?", NEIGHBOR, SUM,
        "With --lam 0 and --beta 0, a token behind which the value rises has a negative advantage."),
    "no next value": Mistake(((DELTA, "delta = rewards[:, t] - values[:, t]"),), ZERO, NEIGHBOR, ONE),
    "returns instead of advantages": Mistake(((END, f"{STORE}\n    return (advantages + values) * mask"),),
        "What does the docstring call the sum of advantage and value? Which of the two do you return?", NEIGHBOR, SUM,
        "With --lam 1, the advantages of a rollout do not depend on the value head."),
    "no gamma in delta": Mistake(((DELTA, "delta = rewards[:, t] + next_value - values[:, t]"),), ZERO, LIMITS, SUM),
    "lam in the place of gamma": Mistake(((DELTA, "delta = rewards[:, t] + lam * next_value - values[:, t]"),),
        "Call your function with gamma and lam by name. With gamma = 1 and lam = 0, has the next value a weight?",
        LIMITS, ONE, "With --lam 0, the advantage of a token does not depend on the value of the next one."),
    "gamma lam in delta": Mistake(((DELTA, "delta = rewards[:, t] + gamma * lam * next_value - values[:, t]"),), ZERO,
        LIMITS, ONE),
    "no lam": Mistake(((STEP, "advantage = (delta + gamma * advantage) * mask[:, t]"),), ZERO, LIMITS, ONE,
        "PPO with --lam 0 and with --lam 1 writes the same log."),
    "no gamma in the recursion": Mistake(((STEP, "advantage = (delta + lam * advantage) * mask[:, t]"),), ZERO, LIMITS,
        SUM),
    "the complement of lam": Mistake(((STEP, "advantage = (delta + gamma * (1 - lam) * advantage) * mask[:, t]"),),
        "At lam = 1 the advantage is the return less the value. Is yours at lam = 0?", LIMITS, ONE),
}
ALTERNATIVES = {
    "the sum, as a matrix": '''
def gae(rewards, values, mask, gamma, lam):
    T = rewards.shape[1]
    inside = (values * mask)
    following = torch.cat([inside[:, 1:], inside.new_zeros(len(inside), 1)], dim=1)
    delta = (rewards + gamma * following - values) * mask
    powers = torch.zeros(T, T, dtype=rewards.dtype)
    for t in range(T):
        for s in range(t, T):
            powers[s, t] = (gamma * lam) ** (s - t)
    return (delta @ powers) * mask
''',
    "row by row": '''
def gae(rewards, values, mask, gamma, lam):
    out = torch.zeros_like(rewards)
    for i in range(len(rewards)):
        places = [t for t in range(rewards.shape[1]) if mask[i, t]]
        running, after = 0.0, 0.0
        for t in places[::-1]:
            running = rewards[i, t] - values[i, t] + gamma * after + gamma * lam * running
            after = values[i, t]
            out[i, t] = running
    return out
''',
    "returns of lambda": '''
def gae(rewards, values, mask, gamma, lam):
    target, V, columns = torch.zeros(len(rewards), dtype=rewards.dtype), values * mask, []
    for t in range(rewards.shape[1] - 1, -1, -1):
        after = V[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(target)
        target = torch.where(mask[:, t], rewards[:, t] + gamma * ((1 - lam) * after + lam * target), 0.0)
        columns.insert(0, target - V[:, t])
    return torch.stack(columns, 1) * mask
''',
}
CALLED = "Generalized advantage estimation, not whitened:"
VARIANTS = {
    "a completion that was cut off": (
        (START, "advantage, next_value = 0.0, values.gather(1, last_place(mask)).squeeze(1)"),
        (NEXT, "next_value = torch.where(mask[:, t], values[:, t], next_value)"),
        ("After the last token of a completion, values\n    and advantages count as 0.",
         "After the last token of a completion, the\n    value counts as that of its last token, because the "
         "completion was cut off, and advantages count as 0.")),
    "the targets of the values": (
        (END, f"{STORE}\n    return (advantages + values) * mask"),
        (CALLED, "The targets of the value head, advantage plus value, with the advantage of generalized\n    "
                 "advantage estimation:"),
        ("rewards, values, mask (B, T) -> advantages (B, T), 0 outside the mask.",
         "rewards, values, mask (B, T) -> advantage_t + values_t, (B, T), 0 outside the mask.")),
}
