"""
leave_one_out and group_advantages: what a completion is compared with

Two baselines from the k completions of a prompt, and the division by the group's standard deviation.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/formulas.py:leave_one_out", "rlhf/formulas.py:group_advantages"]
POINTS, MINUTES = 4, 35

def probes(rng):
    """Groups of several sizes; equal returns; rewards of 0 and 1; returns that hardly differ; a large offset."""
    def groups(n, k, title, scale=1.0, offset=0.0):
        return dict(title=title, returns=offset + scale * rng.normal(0, 1, n * k) + np.repeat(rng.normal(0, 2, n), k),
                    k=k)
    equal = groups(3, 3, "three groups of three, one of them with equal returns")
    equal["returns"][3:6] = 1.5
    share = groups(2, 4, "returns of 0 and 1")
    share["returns"] = np.array([1.0, 0, 0, 1, 0, 1, 0, 0])
    return [groups(2, 3, "two groups of three"), groups(3, 2, "three groups of two"),
            groups(1, 4, "one group of four"), equal, share,
            groups(2, 4, "returns that differ by a thousandth", scale=1e-3),
            groups(3, 5, "returns near 100", offset=100.0)]

def run(module, probe):
    """The advantages of both functions, with and without the division."""
    returns, k = probe["returns"], probe["k"]
    return dict(leave_one_out=module.leave_one_out(returns, k),
                divided=module.group_advantages(returns, k, std=True),
                undivided=module.group_advantages(returns, k, std=False))

GROUPED = "grouped = returns.view(-1, k)                                             # (B / k, k)\n    "
OTHERS = "others = (grouped.sum(1, keepdim=True) - grouped) / (k - 1)               # (B / k, k)"
LEAVE = "return (grouped - others).view(-1)"
CENTER = "advantages = grouped - grouped.mean(1, keepdim=True)                      # (B / k, k)"
DIVIDE = "advantages = advantages / (grouped.std(1, correction=0, keepdim=True) + 1e-4)"
IF, RETURN = "    if std:\n", "return advantages.view(-1)"
ROWS, OWN, DEVIATION = "Which returns are one group", "The own return", "The standard deviation of a group"
EQUAL = "Groups of equal returns"
BY_HAND, GROUP = "test_ppo.py::test_leave_one_out_by_hand", "test_grpo.py::test_group_advantages_by_hand"
TIES = "test_grpo.py::test_equal_returns_have_no_advantage"
ROWS_HINT = "The k completions of a prompt stand next to each other. Which entries of `returns` are the first row of " \
    "your table?"
BATCH_HINT = "Add 5 to the returns of one prompt. Whose advantages may change?"
MISTAKES = {
    "the own return in the baseline": Mistake(((OTHERS, "others = grouped.mean(1, keepdim=True)"),),
        "Raise one return by 1. By how much should its own advantage rise?", OWN, BY_HAND,
        "With --algo rloo --k 2 the advantages of a prompt's two completions are half of their difference in return. "
        "They should be the whole difference."),
    "the sum of the others, divided by k": Mistake(
        ((OTHERS, "others = (grouped.sum(1, keepdim=True) - grouped) / k"),),
        "Take equal returns. Which advantage should each completion have, and which has it in yours?", OWN, BY_HAND,
        "With --algo rloo a prompt whose completions all have the return 1 has positive advantages."),
    "the others of the whole batch": Mistake(
        ((OTHERS, "others = (grouped.sum() - grouped) / (grouped.numel() - 1)"),), BATCH_HINT, ROWS, BY_HAND),
    "sums over prompts": Mistake(((OTHERS, "others = (grouped.sum(0, keepdim=True) - grouped) / (k - 1)"),),
        "In a table with one row for each prompt: over which dimension is the sum taken?", ROWS, BY_HAND),
    "rloo: every n-th completion": Mistake(
        ((GROUPED + OTHERS,
          "grouped = returns.view(k, -1)\n    others = (grouped.sum(0, keepdim=True) - grouped) / (k - 1)"),),
        ROWS_HINT, ROWS, BY_HAND),
    "baseline minus return": Mistake(((LEAVE, "return (others - grouped).view(-1)"),),
        "Is the advantage of the best completion of a prompt positive?", OWN, BY_HAND,
        "With --algo rloo the reward falls from the first rollout on. PPO and GRPO learn."),
    "returns are changed in place": Mistake(((LEAVE, "grouped -= others\n    return grouped.view(-1)"),),
        "Print `returns` before and after the call. A view shares its memory.", ROWS, ""),
    "divided by k - 1": Mistake(((DIVIDE, DIVIDE.replace("correction=0", "correction=1")),),
        "With two completions the divided advantages are 1 and -1. What are yours?", DEVIATION, GROUP,
        "With --algo grpo --k 2 the advantages are 0.71 and -0.71 in every group."),
    "the variance": Mistake(((DIVIDE, DIVIDE.replace("grouped.std(", "grouped.var(")),),
        "Multiply all returns by 10. What should change?", DEVIATION, GROUP,
        "With --algo grpo the advantages become smaller when the reward is multiplied by 10."),
    "the std of the batch": Mistake(((DIVIDE, "advantages = advantages / (returns.std(correction=0) + 1e-4)"),),
        BATCH_HINT, DEVIATION, GROUP,
        "With --algo grpo a prompt whose completions differ little in reward has smaller advantages than the others."),
    "the std of the batch's advantages": Mistake(
        ((DIVIDE, "advantages = advantages / (advantages.std(correction=0) + 1e-4)"),), BATCH_HINT, DEVIATION, GROUP),
    "the std of the batch, by n - 1": Mistake(((DIVIDE, "advantages = advantages / (returns.std() + 1e-4)"),),
        BATCH_HINT, DEVIATION, GROUP),
    "the std of the batch's advantages, by n - 1": Mistake(
        ((DIVIDE, "advantages = advantages / (advantages.std() + 1e-4)"),), BATCH_HINT, DEVIATION, GROUP),
    "mean and std of the batch": Mistake(((CENTER, "advantages = grouped - grouped.mean()"),
        (DIVIDE, "advantages = advantages / (returns.std() + 1e-4)")), BATCH_HINT, ROWS, GROUP),
    "the mean of the batch": Mistake(((CENTER, "advantages = grouped - grouped.mean()"),), BATCH_HINT, ROWS, GROUP),
    "grpo: every n-th completion": Mistake(
        ((GROUPED + CENTER, "grouped = returns.view(k, -1).T\n    " + CENTER),
         (RETURN, "return advantages.T.reshape(-1)")),
        ROWS_HINT, ROWS, GROUP, "With --algo grpo the advantages of the completions of a prompt do not sum to 0."),
    "the mean of the others in the group's advantage": Mistake(
        ((CENTER, "advantages = grouped - (grouped.sum(1, keepdim=True) - grouped) / (k - 1)"),),
        "Which completions are in the mean of `group_advantages`? Compare the two docstrings.", OWN, GROUP),
    "divided before the mean is taken": Mistake(
        ((CENTER, "advantages = grouped"),
         (DIVIDE, "advantages = grouped / (grouped.std(1, correction=0, keepdim=True) + 1e-4)"),
         (RETURN, "return (advantages - grouped.mean(1, keepdim=True)).view(-1)")),
        "Do the divided advantages of a group sum to 0?", DEVIATION, GROUP),
    "never divided": Mistake(((IF, "    if False:\n"),),
        "What is the argument `std` for? Compare both settings on the same returns.", DEVIATION, GROUP,
        "--algo grpo and --algo dr_grpo have the same advantages."),
    "always divided": Mistake(((IF, "    if True:\n"),),
        "What is the argument `std` for? Compare both settings on the same returns.", DEVIATION, GROUP),
    "nothing is added to the std": Mistake(((DIVIDE, DIVIDE.replace(" + 1e-4", "")),),
        "What is 0 / 0? Look at a group whose completions all have the same return.", EQUAL, TIES,
        "With --algo grpo a group of equal rewards has advantages that are nan, and the run stops."),
    "1e-8": Mistake(((DIVIDE, DIVIDE.replace("1e-4", "1e-8")),),
        "How much is added to the std? Look at returns that differ by a thousandth.", EQUAL, TIES),
    "1e-4 inside of the root": Mistake(
        ((DIVIDE, "advantages = advantages / (grouped.var(1, correction=0, keepdim=True) + 1e-4).sqrt()"),),
        "Is the number added to the standard deviation or to the variance? Look at returns that differ by a "
        "thousandth.", EQUAL, ""),
}
ALTERNATIVES = {
    "loops": '''
def leave_one_out(returns, k):
    advantages = []
    for i in range(len(returns)):
        first = i - i % k
        others = [returns[j] for j in range(first, first + k) if j != i]
        advantages.append(returns[i] - sum(others) / len(others))
    return torch.stack(advantages)

def group_advantages(returns, k, std):
    advantages = []
    for group in returns.split(k):
        mean = sum(group) / k
        variance = sum((r - mean) ** 2 for r in group) / k
        advantages += [(r - mean) / (variance.sqrt() + 1e-4 if std else 1) for r in group]
    return torch.stack(advantages)
''',
    "a matrix, and repeated means": '''
def leave_one_out(returns, k):
    others = (1 - torch.eye(k, dtype=returns.dtype)) / (k - 1)
    return (returns.reshape(-1, k) @ (torch.eye(k, dtype=returns.dtype) - others)).reshape(-1)

def group_advantages(returns, k, std):
    means = returns.reshape(-1, k).mean(1).repeat_interleave(k)
    centered = returns - means
    if not std:
        return centered
    spread = (centered ** 2).reshape(-1, k).mean(1).sqrt().repeat_interleave(k)
    return centered / (1e-4 + spread)
''',
    "a multiple of the difference to the mean": '''
def leave_one_out(returns, k):
    table = returns.unflatten(0, (-1, k))
    return ((table - table.mean(-1, keepdim=True)) * k / (k - 1)).flatten()

def group_advantages(returns, k, std):
    table = returns.unflatten(0, (-1, k))
    deviation, mean = torch.std_mean(table, -1, correction=0, keepdim=True)
    scale = deviation + 1e-4 if std else torch.ones_like(deviation)
    return ((table - mean) / scale).flatten()
''',
}
HIDDEN = ("advantage_i = returns_i - (sum over j", "the same direction, not a bias",
          "The mean has the completion's own return in it. So the undivided advantage is")
REMOVED = ()
VARIANTS = {
    "TRL's std": (
        ("correction=0", "correction=1"),
        ("std(group)^2 = mean over j of (returns_j - mean)^2",
         "std(group)^2 = sum over j of (returns_j - mean)^2 / (k - 1)"),
        ("TRL divides by the root of sum / (k - 1) instead. Like TRL,", "TRL has the same std. Like TRL,")),
}
