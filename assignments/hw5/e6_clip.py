"""
clipped_policy_loss, clipfrac and clipped_value_loss: PPO's two clips

Elementwise losses that stop pushing, and do so on one side only.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/formulas.py:clipped_policy_loss", "rlhf/formulas.py:clipfrac", "rlhf/formulas.py:clipped_value_loss"]
POINTS, MINUTES = 3, 40

def probes(rng):
    """Ratios on all sides of the bounds with advantages of both signs, one clip and two, shapes that broadcast."""
    def made(B, T, clip, clip_high, wide=True, **more):
        side = np.arange(B * T).reshape(B, T)    # far and just outside and inside of each bound in turn
        edges = np.array([(0.3, 0.6), (0.72, 0.78), (0.93, 0.98), (1.03, 1.07), (1.22, 1.28), (1.4, 4.2)])[side % 6]
        ratio = rng.uniform(edges[..., 0], edges[..., 1])
        advantages = rng.uniform(0.2, 2, (B, T)) * np.where(side // 6 % 2, -1, 1)
        old, step = rng.normal(0, 1, (B, T)), rng.uniform(0.01, 0.09, (B, T)) * (-1.0) ** side
        values = old + np.where(side % 3 == 1, step, step * rng.uniform(10, 20, (B, T)))
        returns = old + rng.uniform(0.15, 2, (B, T)) * np.where(side // 2 % 2, -1, 1)
        return dict(ratio=ratio, advantages=advantages if wide else advantages[:, :1], values=values, old_values=old,
                    returns=returns, clip=clip, clip_high=clip_high, **more)
    return [made(3, 8, 0.2, None, title="one clip"),
            made(3, 8, 0.2, 0.3, title="a larger upper clip"),
            made(6, 4, 0.12, None, wide=False, title="one advantage for each completion"),
            made(2, 6, 0.1, 0.0, title="an upper clip of 0"),
            made(1, 12, 0.25, None, title="one completion")]

def run(module, probe):
    """Losses and clipped ratios, and the gradients with respect to ratio and values."""
    import torch
    clips = [probe["clip"]] + ([] if probe["clip_high"] is None else [probe["clip_high"]])
    ratio, values = probe["ratio"].requires_grad_(), probe["values"].requires_grad_()
    policy = module.clipped_policy_loss(ratio, probe["advantages"], *clips)
    value = module.clipped_value_loss(values, probe["old_values"], probe["returns"], probe["clip"])
    grad_ratio, = torch.autograd.grad(policy.sum(), ratio, allow_unused=True)
    grad_values, = torch.autograd.grad(value.sum(), values, allow_unused=True)
    none = torch.zeros_like(ratio)
    return dict(policy=policy, value=value, outside=module.clipfrac(probe["ratio"].detach(), *clips).double(),
                grad_ratio=none if grad_ratio is None else grad_ratio,
                grad_values=none if grad_values is None else grad_values)

DEFAULT = "clip_high = clip if clip_high is None else clip_high"
POLICY = "return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip_high) * advantages)"
FRAC = "return ((ratio < 1 - clip) | (ratio > 1 + clip_high)).float()"
NEAR = "near = old_values + (values - old_values).clamp(-clip, clip)"
VALUE = "return torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2"
SMALLER, BOUNDS, HEAD = "The smaller of two", "Two bounds", "The step of the values"
BY_HAND = "test_ppo.py::test_the_clipped_policy_loss_by_hand"
HIGHER, SHARE = "test_grpo.py::test_clip_higher_by_hand", "test_grpo.py::test_clipfrac_by_hand"
OF_VALUES, ZERO = "test_ppo.py::test_the_clipped_value_loss_by_hand", "test_advantages.py::test_an_upper_clip_of_zero"
BACK = "Take ratio 0.5 and advantage 2: the policy moved the wrong way. Is there a gradient back?"
FAR = "Take ratio 1.5, advantage 2 and clip 0.2. Is the gradient 0?"
def policy(text):
    return ((POLICY, f"return {text}"),)
MISTAKES = {
    "the larger of two": Mistake(policy(
        "-torch.maximum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip_high) * advantages)"), FAR, SMALLER, BY_HAND,
        "Beyond its bound a ratio has a gradient that moves it farther, and none that moves it back."),
    "no clip": Mistake(policy("-ratio * advantages"), FAR, SMALLER, BY_HAND,
        "With --vf_coef 0, PPO with --clip 0.1 and with --clip 0.5 samples the same completions."),
    "the clipped one only": Mistake(policy("-ratio.clamp(1 - clip, 1 + clip_high) * advantages"), BACK, SMALLER,
        BY_HAND, "A token with a positive advantage whose probability has fallen by half has no gradient."),
    "the smaller ratio": Mistake(policy(
        "-torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip_high)) * advantages"),
        "Is the smaller of two numbers still the smaller one if both are multiplied by a negative advantage?", SMALLER,
        BY_HAND, "Tokens with a negative advantage go on falling in a rollout, far below 1 - clip."),
    "the sign of the loss": Mistake(policy(
        "torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip_high) * advantages)"),
        "Training minimizes the loss. Is yours smaller if the ratio of a good token is larger?", SMALLER, BY_HAND,
        "The reward of samples falls from the first update on."),
    "the minimum of the losses": Mistake(policy(
        "torch.minimum(-ratio * advantages, -ratio.clamp(1 - clip, 1 + clip_high) * advantages)"), FAR, SMALLER,
        BY_HAND),
    "the sign, twice": Mistake(policy(
        "-torch.minimum(-ratio * advantages, -ratio.clamp(1 - clip, 1 + clip_high) * advantages)"),
        "Training minimizes the loss. Is yours smaller if the ratio of a good token is larger?", SMALLER, BY_HAND),
    "the ratio upside down": Mistake(policy(
        "-torch.minimum(advantages / ratio, (1 / ratio).clamp(1 - clip, 1 + clip_high) * advantages)"),
        "At ratio 1.1 and advantage 2 the loss is -2.2. What is yours?", SMALLER, BY_HAND),
    "the mean": Mistake(policy(
        "-torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip_high) * advantages).mean()"),
        "What shape does the docstring promise?", SMALLER,
        "test_ppo.py::test_the_ppo_loss_by_hand"),
    "the gradient is kept at the bound": Mistake(policy(
        "-torch.minimum(ratio * advantages, (ratio + (ratio.clamp(1 - clip, 1 + clip_high) - ratio).detach()) * "
        "advantages)"), "The value is right. Is there a gradient beyond the bound?", SMALLER,
        "test_ppo.py::test_the_ppo_loss_by_hand"),
    "the upper bound only": Mistake(policy(
        "-torch.minimum(ratio * advantages, ratio.clamp(max=1 + clip_high) * advantages)"),
        "Take ratio 0.5 and advantage -2. Is the gradient 0?", BOUNDS, BY_HAND,
        "Tokens with a negative advantage go on falling in a rollout, far below 1 - clip."),
    "the lower bound only": Mistake(policy(
        "-torch.minimum(ratio * advantages, ratio.clamp(min=1 - clip) * advantages)"), FAR, BOUNDS, BY_HAND),
    "around 0": Mistake(policy(
        "-torch.minimum(ratio * advantages, ratio.clamp(-clip, clip_high) * advantages)"),
        "A policy that has not moved has the ratio 1. Is it inside of your bounds?", BOUNDS, BY_HAND,
        "PPO hardly learns: in the first update of a rollout no token with a positive advantage has a gradient."),
    "one bound for both sides": Mistake(policy(
        "-torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)"),
        "Which of your lines uses `clip_high`?", BOUNDS, HIGHER,
        "DAPO with --clip_high 0.28 and with --clip_high 0.2 samples the same completions."),
    "the upper bound for both sides": Mistake(policy(
        "-torch.minimum(ratio * advantages, ratio.clamp(1 - clip_high, 1 + clip_high) * advantages)"),
        "Does a larger `clip_high` change the loss of a token with ratio 0.75 and a negative advantage?", BOUNDS,
        HIGHER),
    "an upper clip of 0 is no clip": Mistake(
        ((f"{DEFAULT}\n    return -", "clip_high = clip_high or clip\n    return -"),),
        "Which values of clip_high mean that there is one clip only? Is 0 one of them?", BOUNDS, ZERO),
    "clipfrac of one bound": Mistake(((FRAC, "return ((ratio < 1 - clip) | (ratio > 1 + clip)).float()"),),
        "Compare the bounds of clipfrac with those of the loss.", BOUNDS, SHARE,
        "With --clip_high 0.28, a token with the ratio 1.25 is counted in policy/clipfrac."),
    "clipfrac above only": Mistake(((FRAC, "return (ratio > 1 + clip_high).float()"),),
        "Can a ratio leave its bounds downwards?", BOUNDS, SHARE),
    "clipfrac of what is inside": Mistake(((FRAC, "return ((ratio >= 1 - clip) & (ratio <= 1 + clip_high)).float()"),),
        "What is your clipfrac at ratio 1?", BOUNDS, SHARE,
        "The logged policy/clipfrac of the first update of every rollout is 1."),
    "the smaller error": Mistake(((VALUE, VALUE.replace("maximum", "minimum")),),
        "Old value 0, value -1, return 2, clip 0.2. Is there a gradient towards the return?", HEAD, OF_VALUES,
        "A value that moved the wrong way in the first epoch of a rollout is not corrected in the second."),
    "no clip of the values": Mistake(((VALUE, "return (values - returns) ** 2 / 2"),),
        "Old value 0, value 1, return 2, clip 0.2: the loss is 1.62. What is yours?", HEAD, OF_VALUES),
    "the clipped step only": Mistake(((VALUE, "return (near - returns) ** 2 / 2"),),
        "Old value 0, value -1, return 2, clip 0.2. Is there a gradient towards the return?", HEAD, OF_VALUES),
    "without the half": Mistake(((VALUE, VALUE.removesuffix(" / 2")),),
        "Compare with the word that the docstring begins with.", HEAD, OF_VALUES),
    "around the returns": Mistake(((NEAR, "near = returns + (values - returns).clamp(-clip, clip)"),),
        "Old value 0, value 1, return 2, clip 0.2: the loss is 1.62. What is yours?", HEAD, OF_VALUES),
    "clipped to a range around 0": Mistake(((NEAR, "near = values.clamp(-clip, clip)"),),
        "Which step is clipped? Take old value 5 and value 5.1.", HEAD,
        "test_advantages.py::test_values_are_clipped_around_the_old_ones"),
    "relative to the old value": Mistake(((NEAR,
        "near = old_values * (values / old_values).clamp(1 - clip, 1 + clip)"),),
        "What is the unit of `clip` for values? Take an old value of 0.", HEAD, OF_VALUES),
    "the absolute error": Mistake(
        ((VALUE, "return torch.maximum((values - returns).abs(), (near - returns).abs()) / 2"),),
        "Is the error squared in the docstring?", HEAD, OF_VALUES),
}
ALTERNATIVES = {
    "by cases": '''
def clipped_policy_loss(ratio, advantages, clip, clip_high=None):
    high = 1 + (clip if clip_high is None else clip_high)
    held = torch.where(advantages > 0, ratio.clamp(max=high), ratio.clamp(min=1 - clip))
    return -held * advantages

def clipfrac(ratio, clip, clip_high=None):
    high = 1 + (clip if clip_high is None else clip_high)
    return (ratio.clamp(1 - clip, high) != ratio) * 1.0

def clipped_value_loss(values, old_values, returns, clip):
    low, high = old_values - clip, old_values + clip
    near = torch.minimum(torch.maximum(values, low), high)
    worse = (near - returns).abs() > (values - returns).abs()
    return 0.5 * torch.where(worse, near - returns, values - returns).square()
''',
    "the larger loss": '''
def clipped_policy_loss(ratio, advantages, clip, clip_high=None):
    if clip_high is None:
        clip_high = clip
    one = -advantages * ratio
    two = -advantages * torch.clamp(ratio, 1.0 - clip, 1.0 + clip_high)
    return torch.max(one, two)

def clipfrac(ratio, clip, clip_high=None):
    if clip_high is None:
        clip_high = clip
    return torch.where(ratio < 1, 1 - ratio > clip, ratio - 1 > clip_high).to(ratio.dtype)

def clipped_value_loss(values, old_values, returns, clip):
    a = 0.5 * (returns - values).pow(2)
    b = 0.5 * (returns - old_values - torch.clamp(values - old_values, min=-clip, max=clip)).pow(2)
    return torch.stack([a, b]).amax(0)
''',
}
HIDDEN = ("L = -min(ratio * A, clip(", "L = max((V - R)^2", "V = values,   R = returns,   eps = clip")
MINUS = ("Minus PPO's clipped objective, elementwise: Schulman et al. 2017, arXiv:1707.06347, where clip_high is clip "
         "(None).")
VARIANTS = {
    "dual clip": (
        (POLICY, "objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip_high) * advantages)\n"
                 "    return -torch.where(advantages < 0, torch.maximum(objective, 3 * advantages), objective)"),
        (MINUS, f"{MINUS}\n    With dual clip, Ye et al. 2020, arXiv:1912.09729: where A < 0, the objective is at "
                "least 3 * A.\n    So the loss of such a token is at most -3 * A, and its gradient is 0 where the "
                "ratio is above 3.")),
    "symmetric in the logarithm": (
        (POLICY, "return -torch.minimum(ratio * advantages, ratio.clamp(1 / (1 + clip), 1 + clip_high) * advantages)"),
        (FRAC, "return ((ratio < 1 / (1 + clip)) | (ratio > 1 + clip_high)).float()"),
        (MINUS, f"{MINUS}\n    The lower bound of the ratio is 1 / (1 + clip) here, not 1 - clip, also in clipfrac.")),
}
