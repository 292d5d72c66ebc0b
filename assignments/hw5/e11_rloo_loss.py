"""
rloo_loss: the loss of completions as wholes

One ratio and one advantage for each completion.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/formulas.py:rloo_loss"]
POINTS, MINUTES = 3, 25

def probes(rng):
    """Ratios of completions on every side of the bounds, with advantages of both signs; one completion; no step."""
    def batch(spans, T, title, clip=0.2, clip_high=None, scale=0.15):
        B = len(spans)
        mask = np.array([[start <= t < end for t in range(T)] for start, end in spans])
        old = -rng.uniform(0.5, 3, (B, T)) * mask
        sums = np.array([0.6, 0.5, -0.6, -0.5, 0.1, -0.1])[:B] + rng.uniform(-0.05, 0.05, B)    # log-ratios
        steps = rng.normal(0, scale, (B, T)) * mask
        steps += (scale > 0) * mask * ((sums - steps.sum(1)) / mask.sum(1))[:, None]
        advantages = rng.uniform(0.4, 2, B) * (-1.0) ** np.arange(B)
        return dict(title=title, logps=old + steps, old_logps=old, advantages=advantages, mask=mask, clip=clip,
                    clip_high=clip_high)
    six = [(1, 5), (2, 3), (0, 6), (4, 7), (0, 2), (1, 4)]
    return [batch(six, 7, "six completions"),
            batch(six, 8, "clip 0.1 and clip_high 0.7", clip=0.1, clip_high=0.7),
            batch([(2, 5)], 6, "one completion", clip=0.9, clip_high=0.9),
            batch([(0, 3), (1, 3), (0, 1)], 3, "at the old policy", scale=0.0, clip_high=0.2)]

def run(module, probe):
    """The loss, its gradients, and the logged numbers."""
    import torch
    torch.set_default_dtype(torch.float64)
    table, graph = probe["logps"].requires_grad_(), torch.zeros_like(probe["advantages"]).requires_grad_()
    logps = table * probe["mask"]    # 0 outside the mask, whatever the table's entry
    from_logps = 0.1 * (logps.sum(1) - logps.sum(1).detach())    # 0, with a gradient
    advantages = probe["advantages"] + graph + from_logps
    loss, metrics = module.rloo_loss(logps, old_logps=probe["old_logps"], advantages=advantages, mask=probe["mask"],
                                     clip=probe["clip"], clip_high=probe["clip_high"])
    grads = torch.autograd.grad(loss + 0 * table.sum() + 0 * graph.sum(), [table, graph])
    logged = {name: torch.as_tensor(metrics.get(f"policy/{name}", -1.0)).detach().double()
              for name in ("clipfrac", "ratio", "approxkl")}
    logged["clipfrac"] = (logged["clipfrac"] * 6000).round() / 6000    # float32 or float64
    return dict(loss=loss, grad=grads[0], grad_advantages=grads[1], **logged,
                metrics_have_no_graph=[not getattr(x, "requires_grad", False) for x in metrics.values()])

LOGRATIOS, RATIO = "logratios = logps - old_logps", "ratio = logratios.sum(1).exp()"
LOSS = "loss = clipped_policy_loss(ratio, advantages.detach(), clip, clip_high).mean()"
KL = "masked_mean(logratios.detach() ** 2, mask) / 2"
HIGH = "(clip if clip_high is None else clip_high)"
A = "advantages.detach()"
WHOLE, MEAN, CLIPPED, CONSTANT = "The ratio of a completion", "The mean over completions", "The smaller of two", \
    "One advantage each"
BY_HAND = "test_ppo.py::test_the_rloo_loss_by_hand"
CONSTANTS = "test_steps.py::test_advantages_are_constants"
CLIPS = "test_steps.py::test_rloo_clips_completions_by_hand"
DRAWN = "Draw the loss of a completion against its ratio, for advantages 1 and -1. Where is it flat?"

def by_token(mean):
    """The edit that has the loss of GRPO: a ratio for each token."""
    losses = f"clipped_policy_loss(logratios.exp(), {A}[:, None], clip, clip_high)"
    return ((LOSS, f"loss = (token_weights(mask, {mean!r}) * {losses}).sum()"),)

MISTAKES = {
    "a ratio for each token": Mistake(by_token("sums"),
        "How many ratios has a completion of five tokens? Two ratios of 0.7 and 1.5: is anything clipped?", WHOLE,
        BY_HAND, "--algo rloo clips single tokens, as --algo dr_grpo does."),
    "a ratio for each token, and the mean over tokens": Mistake(by_token("tokens"),
        "How many ratios has a completion of five tokens? Does a long completion count more than a short one?", WHOLE,
        BY_HAND),
    "the mean ratio of its tokens": Mistake(((RATIO, "ratio = (logratios.sum(1) / mask.sum(1)).exp()"),),
        "The probability of a text is the product of its tokens' probabilities. What is the ratio of two products?",
        WHOLE, BY_HAND),
    "the mean of its tokens' ratios": Mistake(((RATIO, "ratio = (logratios.exp() * mask).sum(1) / mask.sum(1)"),),
        "The probability of a text is the product of its tokens' probabilities. What is the ratio of two products?",
        WHOLE, BY_HAND),
    "one ratio for the batch": Mistake(((RATIO, "ratio = masked_mean(logratios.exp(), mask)"),),
        "What is the shape of your ratio? Change one completion: does the loss of the others change?", WHOLE, BY_HAND),
    "the mean over columns": Mistake(((RATIO, "ratio = logratios.mean(1).exp()"),),
        "Change the width of the batch by a column of padding. Does your ratio change?", WHOLE, BY_HAND),
    "the sum of the ratios": Mistake(((RATIO, "ratio = (logratios.exp() * mask).sum(1)"),),
        "What is the ratio of a completion while the policy is the old policy?", WHOLE, BY_HAND),
    "the inverted ratio": Mistake(((LOGRATIOS, "logratios = old_logps - logps"),),
        "A completion with a positive advantage should become likelier. What sign has the gradient in `logps`?", WHOLE,
        BY_HAND, "With --algo rloo the reward falls from the first rollout on. PPO and GRPO learn."),
    "the log-prob for the ratio": Mistake(((LOSS, f"loss = -({A} * logps.sum(1)).mean()"),),
        "The paper has this loss, and one update per rollout. Does yours use old_logps and clip?", WHOLE, BY_HAND,
        "--clip has no effect on the loss of --algo rloo."),
    "the ratio has no gradient": Mistake(((RATIO, "ratio = logratios.sum(1).exp().detach()"),),
        "Print `loss.requires_grad`, and the gradient in `logps`.", WHOLE, BY_HAND),
    "the sum over completions": Mistake(((LOSS, LOSS.replace(".mean()", ".sum()")),),
        "Take twice as many completions. Should the loss of a batch become twice as large?", MEAN, BY_HAND,
        "With --algo rloo the gradient norm grows with --batch_size."),
    "divided by the number of tokens": Mistake(((LOSS, LOSS.replace(".mean()", ".sum() / mask.sum()")),),
        "Make all completions twice as long, with the same sums. Should the loss be half as large?", MEAN, BY_HAND,
        "With --algo rloo the loss of a batch is about a twentieth of the mean of its completions' losses."),
    "the sign of the loss": Mistake(((LOSS, LOSS.replace("loss = ", "loss = -")),),
        "Training minimizes the loss. Is yours smaller when the ratio of a good completion rises?", MEAN, BY_HAND),
    "max for min": Mistake(
        ((LOSS, f"loss = -torch.maximum(ratio * {A}, ratio.clamp(1 - clip, 1 + {HIGH}) * {A}).mean()"),), DRAWN,
        CLIPPED, CLIPS),
    "clamped without the min": Mistake(((LOSS, f"loss = -(ratio.clamp(1 - clip, 1 + {HIGH}) * {A}).mean()"),),
        "A bad completion has become likelier, with a ratio of 1.5. Has it a gradient, so that it can go back?",
        CLIPPED, CLIPS),
    "no clip": Mistake(((LOSS, f"loss = -(ratio * {A}).mean()"),),
        "Try clip = 0.01. Does your loss change?", CLIPPED, CLIPS),
    "clipped above only": Mistake(
        ((LOSS, f"loss = -torch.minimum(ratio * {A}, ratio.clamp(max=1 + {HIGH}) * {A}).mean()"),), DRAWN, CLIPPED,
        CLIPS),
    "clip_high is ignored": Mistake(((LOSS, LOSS.replace(", clip_high)", ")")),),
        "Try clip_high = 0.5. Does your loss change?", CLIPPED, CLIPS),
    "advantages with a gradient": Mistake(((LOSS, LOSS.replace("advantages.detach()", "advantages")),),
        "Which inputs may get a gradient from the loss? Try advantages that were computed from logps.", CONSTANT,
        CONSTANTS),
    "approxkl of completions": Mistake(((KL, "(logratios.detach().sum(1) ** 2).mean() / 2"),),
        "The loss is right. Is `policy/approxkl` a number of tokens or of completions?",
        "What is logged of completions", BY_HAND),
}
ALTERNATIVES = {
    "a loop": '''
def rloo_loss(logps, *, old_logps, advantages, mask, clip, clip_high=None):
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    losses, ratios, outside = [], [], 0
    for i in range(len(mask)):
        ratio = torch.ones(())
        for t in mask[i].nonzero().flatten().tolist():
            ratio = ratio * torch.exp(logps[i, t] - old_logps[i, t])
        a, r = advantages[i].item(), ratio.item()
        stopped = (a > 0 and r > high) or (a < 0 and r < low)
        losses.append(torch.tensor(-min(max(r, low), high) * a) if stopped else -ratio * a)
        ratios.append(r)
        outside += not low <= r <= high
    loss = sum(losses) / len(losses)
    return loss, {"policy/clipfrac": torch.tensor(outside / len(losses)), "policy/ratio": torch.tensor(ratios).mean(),
                  "policy/approxkl": ((logps - old_logps).detach()[mask] ** 2).mean() / 2}
''',
    "the sums first": '''
def rloo_loss(logps, *, old_logps, advantages, mask, clip, clip_high=None):
    upper = clip if clip_high is None else clip_high
    new, old = (logps * mask).sum(-1), (old_logps * mask).sum(-1)
    ratio, adv = torch.exp(new - old), advantages.detach()
    loss = torch.max(-adv * ratio, -adv * torch.clamp(ratio, 1 - clip, 1 + upper)).mean()
    with torch.no_grad():
        clipped = torch.logical_or(ratio < 1 - clip, ratio > 1 + upper)
        square = ((logps - old_logps) ** 2 * mask).sum() / mask.sum()
    return loss, {"policy/clipfrac": clipped.double().mean(), "policy/ratio": ratio.detach().mean(),
                  "policy/approxkl": 0.5 * square}
''',
}
HIDDEN = ("ratio_i = exp(sum over t of", "L       = mean over completions of clipped_policy_loss(ratio_i")
REMOVED = ()
VARIANTS = {
    "the paper's loss": (
        (LOSS, f"loss = -({A} * logps.sum(1)).mean()"),
        ("L       = mean over completions of clipped_policy_loss(ratio_i, advantage_i, clip, clip_high)",
         "L       = mean over completions of -advantage_i * log policy(y_i | x)"),
        ("The paper has -advantage_i * log policy(y_i | x) and one update per rollout. Here a rollout is used for "
         "several\n    updates, so the ratio of the completion corrects for the older policy. At ratio 1 both have the "
         "same gradient.",
         "This is the paper's loss, for one update per rollout. old_logps, clip and clip_high are used for the\n"
         "    metrics only: the ratio of a completion is that of its whole probability.")),
}
