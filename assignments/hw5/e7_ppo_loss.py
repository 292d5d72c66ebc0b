"""
ppo_loss: policy loss, value loss, and what is logged

The ratio of each token, means over the tokens of the batch, and metrics without a gradient.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/formulas.py:ppo_loss"]
POINTS, MINUTES = 2, 30

def probes(rng):
    """Ragged completions, one and two clips, two value coefficients, one completion, numbers outside of the mask."""
    def batch(spans, T, clip, vf_coef, clip_high=None, **more):
        mask = np.zeros((len(spans), T), dtype=bool)
        for i, (start, end) in enumerate(spans):
            mask[i, start:end] = True
        old = -rng.uniform(0.2, 4, mask.shape)
        number = np.arange(mask.size).reshape(mask.shape)
        step = np.array([-0.9, 0.05, 0.7, -0.08])[number % 4]
        advantages, old_values, returns = rng.normal(0, 1, (3, *mask.shape))
        advantages = (np.abs(advantages) + 0.2) * np.where(number // 4 % 2, -1, 1)    # both signs at each step
        values = old_values + step * rng.uniform(0.8, 1.2, mask.shape)
        return dict(logps=old + step * rng.uniform(0.9, 1.1, mask.shape), values=values, old_logps=old,
                    old_values=old_values, advantages=advantages, returns=returns, mask=mask, clip=clip,
                    vf_coef=vf_coef, clip_high=clip_high, **more)
    spans = [(2, 5), (1, 2), (3, 9), (0, 4)]
    return [batch(spans, 9, 0.2, 0.1, title="four completions"),
            batch(spans, 10, 0.2, 0.7, 1.5, title="a larger upper clip"),
            batch([(1, 8)], 9, 0.1, 0.5, title="one completion")]

def run(module, probe):
    """The loss, all metrics, and the gradients with respect to log-probs and values."""
    import torch
    logps, values, mask = probe["logps"].requires_grad_(), probe["values"].requires_grad_(), probe["mask"]
    given = {name: probe[name] for name in ("old_logps", "old_values", "advantages", "returns", "clip", "vf_coef")}
    if probe["clip_high"] is not None:
        given["clip_high"] = probe["clip_high"]
    loss, metrics = module.ppo_loss(logps, values, mask=mask, **given)
    grads = torch.autograd.grad(loss.sum(), [logps, values], allow_unused=True)
    grads = [torch.zeros_like(logps) if grad is None else grad for grad in grads]
    found = dict(loss=loss, grad_logps=grads[0], grad_values=grads[1])
    for name in ("loss/policy", "loss/value", "val/error", "policy/ratio", "policy/approxkl", "policy/clipfrac"):
        found[name] = torch.as_tensor(metrics[name], dtype=torch.float64).detach()
        found["no_gradient_of_" + name] = [not getattr(metrics[name], "requires_grad", False)]
    # a number of tokens: a share in float32 has seven digits only
    found["policy/clipfrac"] = (found["policy/clipfrac"] * mask.sum()).round(decimals=4)
    return found

LOG, RATIO = "logratios = logps - old_logps", "ratio = logratios.exp()"
POLICY = "policy_loss = masked_mean(clipped_policy_loss(ratio, advantages, clip, clip_high), mask)"
VALUE = "value_loss = masked_mean(clipped_value_loss(values, old_values, returns, clip), mask)"
LOSS = "loss = policy_loss + vf_coef * value_loss"
FRAC = '"policy/clipfrac": masked_mean(clipfrac(ratio, clip, clip_high), mask)'
PARTS = '"loss/policy": policy_loss.detach(), "loss/value": value_loss.detach()'
ERROR = '"val/error": masked_mean((values.detach() - returns) ** 2, mask)'
LOGGED = '"policy/ratio": masked_mean(ratio, mask).detach()'
KL = '"policy/approxkl": masked_mean(logratios.detach() ** 2, mask) / 2'
OF_TOKEN, MEANS, BOTH, METRICS = ("The ratio of policy and old policy", "Means over tokens", "The two losses",
                                  "The metrics of ppo_loss")
BY_HAND = "test_ppo.py::test_the_ppo_loss_by_hand"
PADDING = "Add a column of padding to the batch. Does the loss change?"
LENGTHS = "Does a token of a short completion count as much as one of a long completion?"

def by_row(line):
    """The mean of completions' means of the losses that a line has under masked_mean."""
    losses = line.split("masked_mean(")[1].removesuffix(", mask)")
    return f"(({losses} * mask).sum(1) / mask.sum(1)).mean()"

def by_weights(line):
    """The same, with the weights of GRPO."""
    losses = line.split("masked_mean(")[1].removesuffix(", mask)")
    return f"(token_weights(mask, 'completions') * {losses}).sum()"

MISTAKES = {
    "the ratio upside down": Mistake(((LOG, "logratios = old_logps - logps"),),
        "Which policy is on top of the ratio? A token whose log-prob has risen has a ratio above 1.", OF_TOKEN, BY_HAND,
        "The reward of samples falls from the first update on, though the policy loss falls as it should."),
    "the logarithm of the ratio": Mistake(((RATIO, "ratio = logratios"),),
        "What is the ratio of a policy that has not moved?", OF_TOKEN, BY_HAND,
        "The logged policy/ratio of the first update of every rollout is 0."),
    "the logarithm and one": Mistake(((RATIO, "ratio = 1 + logratios"),),
        "Is your ratio exact for a log-ratio of 0.7, or only for a small one?", OF_TOKEN, BY_HAND),
    "the ratio of the completion": Mistake(((RATIO, "ratio = (logratios * mask).sum(1, keepdim=True).exp() * "
                                                    "torch.ones_like(logps)"),),
        "How many ratios does a completion of seven tokens have?", OF_TOKEN, BY_HAND,
        "All tokens of a completion leave the bounds of the clip together."),
    "a ratio without gradient": Mistake(((RATIO, "ratio = logratios.detach().exp()"),),
        "Through which tensor does the gradient reach the policy?", OF_TOKEN, BY_HAND,
        "PPO with --vf_coef 0: the gradient of the loss is 0."),
    "all columns are counted": Mistake(((POLICY, POLICY.replace("masked_mean(", "(").replace(", mask)", ".mean())")),
                                        (VALUE, VALUE.replace("masked_mean(", "(").replace(", mask)", ".mean())"))),
        PADDING, MEANS, BY_HAND),
    "the policy's columns are all counted": Mistake(
        ((POLICY, POLICY.replace("masked_mean(", "(").replace(", mask)", ".mean())")),), PADDING, MEANS, BY_HAND),
    "the mask, and the mean of all columns": Mistake(
        ((POLICY, POLICY.replace("masked_mean(", "(").replace(", mask)", " * mask).mean()")),), PADDING, MEANS,
        BY_HAND),
    "the values' columns are all counted": Mistake(
        ((VALUE, VALUE.replace("masked_mean(", "(").replace(", mask)", ".mean())")),), PADDING, MEANS, BY_HAND),
    "the mean of each completion first": Mistake(
        ((POLICY, "policy_loss = ((clipped_policy_loss(ratio, advantages, clip, clip_high) * mask).sum(1) / "
                  "mask.sum(1)).mean()"),),
        LENGTHS, MEANS, BY_HAND,
        "In PPO's policy loss, a token of a short completion counts more than one of a long completion."),
    "the mean of each completion first, by token_weights": Mistake(
        ((POLICY, f"policy_loss = {by_weights(POLICY)}"),), LENGTHS, MEANS, BY_HAND),
    "the mean of each completion first, in both losses": Mistake(
        ((POLICY, f"policy_loss = {by_row(POLICY)}"), (VALUE, f"value_loss = {by_row(VALUE)}")), LENGTHS, MEANS,
        BY_HAND),
    "the mean of each completion first, in both losses by token_weights": Mistake(
        ((POLICY, f"policy_loss = {by_weights(POLICY)}"), (VALUE, f"value_loss = {by_weights(VALUE)}")), LENGTHS,
        MEANS, BY_HAND),
    "the mean of each completion first, in the value loss": Mistake(
        ((VALUE, f"value_loss = {by_row(VALUE)}"),), LENGTHS, MEANS, BY_HAND),
    "the sum over tokens": Mistake(
        ((POLICY, "policy_loss = (clipped_policy_loss(ratio, advantages, clip, clip_high) * mask).sum()"),),
        "Give the batch twice. Does the loss change?", MEANS, BY_HAND),
    "without vf_coef": Mistake(((LOSS, "loss = policy_loss + value_loss"),),
        "Which of your lines uses `vf_coef`?", BOTH, BY_HAND,
        "PPO with --vf_coef 0 still trains the value head."),
    "vf_coef at the policy loss": Mistake(((LOSS, "loss = vf_coef * policy_loss + value_loss"),),
        "With vf_coef = 0 the values have no gradient. Have yours?", BOTH, BY_HAND,
        "PPO with --vf_coef 0: the values are trained, and the advantages have no effect."),
    "the value loss subtracted": Mistake(((LOSS, "loss = policy_loss - vf_coef * value_loss"),),
        "The loss is minimized. Do the values move towards the returns?", BOTH, BY_HAND,
        "The logged val/error grows in every run, and the more so the larger --vf_coef is."),
    "a weighted mean of both": Mistake(((LOSS, "loss = (1 - vf_coef) * policy_loss + vf_coef * value_loss"),),
        "Which weight has the policy loss, and does it depend on vf_coef?", BOTH, BY_HAND),
    "clip_high is not used": Mistake(((POLICY, POLICY.replace(", clip, clip_high)", ", clip)")),),
        "Which of your lines uses `clip_high`?", BOTH, "test_advantages.py::test_ppo_loss_uses_clip_high",
        "PPO with --clip_high 0.2 and with --clip_high 0.5 samples the same completions."),
    "clip_high is used nowhere": Mistake(((POLICY, POLICY.replace(", clip, clip_high)", ", clip)")),
                                          (FRAC, FRAC.replace("clip, clip_high)", "clip)"))),
        "Which of your lines uses `clip_high`?", BOTH, "test_advantages.py::test_ppo_loss_uses_clip_high"),
    "advantages as targets": Mistake(((VALUE, VALUE.replace("returns", "advantages")),),
        "What should a value predict? Which input has the unit of a value also where advantages are whitened?", BOTH,
        "test_advantages.py::test_values_learn_returns",
        "The mean of the values stays near 0, also if all scores are near 10."),
    "values as advantages": Mistake(((POLICY, POLICY.replace("advantages", "(returns - values)")),),
        "Which input has the advantages? They were computed once for the rollout, and are constants.", BOTH, BY_HAND),
    "metrics with a gradient": Mistake(((PARTS, '"loss/policy": policy_loss, "loss/value": value_loss'),),
        "The metrics are only logged. May a gradient flow through them?", METRICS,
        "test_advantages.py::test_metrics_have_no_gradient"),
    "a ratio with a gradient": Mistake(((LOGGED, '"policy/ratio": masked_mean(ratio, mask)'),),
        "The metrics are only logged. May a gradient flow through them?", METRICS,
        "test_advantages.py::test_metrics_have_no_gradient"),
    "the value loss with its weight": Mistake(((PARTS,
        '"loss/policy": policy_loss.detach(), "loss/value": vf_coef * value_loss.detach()'),),
        "Does the logged value loss depend on vf_coef? See the docstring.", METRICS, BY_HAND,
        "The logged loss/value is ten times smaller than half of the logged val/error while no value is clipped."),
    "the clipped error": Mistake(((ERROR, '"val/error": 2 * value_loss.detach()'),),
        "Is the error of the values clipped in the docstring?", METRICS, BY_HAND),
    "half of the error": Mistake(((ERROR, ERROR + " / 2"),),
        "Has the logged error a factor of one half? See the docstring.", METRICS, BY_HAND,
        "The logged val/error is equal to loss/value in the first update of a rollout."),
    "twice the KL": Mistake(((KL, KL.removesuffix(" / 2")),),
        "Has the logged KL a factor of one half? See the docstring.", METRICS, BY_HAND,
        "The logged policy/approxkl is near twice the KL that is computed from whole distributions."),
    "the KL with a sign": Mistake(((KL, '"policy/approxkl": -masked_mean(logratios.detach(), mask)'),),
        "Compare your estimate of the KL with the formula of the docstring, at a log-ratio of 0.7.", METRICS, BY_HAND),
    "k3 as the KL": Mistake(((KL, '"policy/approxkl": masked_mean(ratio - 1 - logratios, mask).detach()'),),
        "Compare your estimate of the KL with the formula of the docstring, at a log-ratio of 0.7.", METRICS, BY_HAND),
    "clipfrac of one bound": Mistake(((FRAC, FRAC.replace("clip, clip_high)", "clip)")),),
        "With a large clip_high, fewer ratios are outside. Is your policy/clipfrac lower?", METRICS,
        "test_advantages.py::test_ppo_loss_uses_clip_high"),
}
ALTERNATIVES = {
    "the tokens under the mask": '''
def ppo_loss(logps, values, *, old_logps, old_values, advantages, returns, mask, clip, vf_coef, clip_high=None):
    new, old, V, old_V = logps[mask], old_logps[mask], values[mask], old_values[mask]
    A, R = advantages[mask], returns[mask]
    ratio = torch.exp(new - old)
    policy_part = clipped_policy_loss(ratio, A, clip, clip_high).mean()
    value_part = clipped_value_loss(V, old_V, R, clip).mean()
    with torch.no_grad():
        metrics = {"loss/policy": policy_part.item(), "loss/value": value_part.item(),
                   "val/error": ((V - R) ** 2).mean(), "policy/ratio": ratio.mean(),
                   "policy/clipfrac": clipfrac(ratio, clip, clip_high).mean(),
                   "policy/approxkl": 0.5 * (new - old).square().mean()}
    return policy_part + value_part * vf_coef, metrics
''',
    "weights": '''
def ppo_loss(logps, values, *, old_logps, old_values, advantages, returns, mask, clip, vf_coef, clip_high=None):
    w = mask.double() / mask.sum()
    mean = lambda x: (x * w).sum()
    ratio = logps.exp() / old_logps.exp()
    losses = clipped_policy_loss(ratio, advantages, clip, clip_high)
    errors = clipped_value_loss(values, old_values, returns, clip)
    logged = {"policy/ratio": mean(ratio), "policy/clipfrac": mean(clipfrac(ratio, clip, clip_high)),
              "policy/approxkl": mean((logps - old_logps) ** 2 / 2), "val/error": mean((values - returns) ** 2),
              "loss/policy": mean(losses), "loss/value": mean(errors)}
    return mean(losses + vf_coef * errors), {name: value.detach() for name, value in logged.items()}
''',
}
HIDDEN = ("ratio_t     = exp(logps_t - old_logps_t)",)
REMOVED = ("rlhf/formulas.py:rloo_loss", "rlhf/formulas.py:grpo_loss")
FORMULA = "policy_loss = mean over tokens of clipped_policy_loss(ratio_t, advantage_t, clip, clip_high)"
VARIANTS = {
    "completions count the same": (
        (POLICY, "policy_loss = ((clipped_policy_loss(ratio, advantages, clip, clip_high) * mask).sum(1) / "
                 "mask.sum(1)).mean()"),
        (FORMULA, "policy_loss = mean over completions of the mean over a completion's tokens of\n"
                  "                      clipped_policy_loss(ratio_t, advantage_t, clip, clip_high)"),
        ("Means are over the tokens of the batch:", "Their means are over the tokens of the batch:")),
    "no clip of the values": (
        (VALUE, "value_loss = masked_mean((values - returns) ** 2, mask) / 2"),
        ("value_loss  = mean over tokens of clipped_value_loss(values_t, old_values_t, returns_t, clip)",
         "value_loss  = mean over tokens of (values_t - returns_t)^2 / 2, not clipped")),
}
