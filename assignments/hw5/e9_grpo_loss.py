"""
token_weights and grpo_loss: from the losses of tokens to the loss of a batch

The three means, the ratio of a token, its clipping, and the advantage of a completion.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/formulas.py:token_weights", "rlhf/formulas.py:grpo_loss"]
POINTS, MINUTES = 5, 50

def probes(rng):
    """Ragged completions, ratios on every side of the bounds, as many tokens as completions, one completion."""
    def batch(spans, T, title, clip=0.2, clip_high=None, scale=0.3, rows=()):
        B = len(spans)
        mask = np.array([[start <= t < end for t in range(T)] for start, end in spans])
        logps = -rng.uniform(0.5, 3, (B, T)) * mask
        steps = scale * rng.normal(0, 1, (B, T))
        # a token far below and one far above the bounds, with advantages of both signs
        for i, (start, end) in enumerate(spans):
            if end - start > 2:
                steps[i, start], steps[i, end - 1] = -rng.uniform(0.5, 0.9), rng.uniform(0.5, 0.9)
        advantages = rng.uniform(0.4, 2, B) * (-1.0) ** np.arange(B)
        return dict(title=title, logps=logps, old_logps=logps - steps * mask, advantages=advantages, mask=mask,
                    clip=clip, clip_high=clip_high, rows=list(rows))
    notes = ["four tokens", "one token", "six tokens", "three tokens, no padding"]
    return [batch([(1, 5), (2, 3), (0, 6), (4, 7)], 7, "four completions", rows=notes),
            batch([(0, 3), (1, 5), (2, 5)], 5, "clip 0.2 and clip_high 0.28", clip_high=0.28),
            batch([(0, 3), (0, 2), (1, 3)], 3, "three completions, three columns", clip=0.1, clip_high=0.1),
            batch([(2, 6)], 8, "one completion", clip=0.3, clip_high=0.4),
            batch([(0, 4), (1, 5)], 6, "at the old policy", scale=0.0, clip_high=0.2) |
            dict(old_logps=None)]

def run(module, probe):
    """Weights, and for each mean the loss, its gradients and the logged numbers."""
    import torch
    torch.set_default_dtype(torch.float64)    # a mask divided by a number is float64 then
    found, mask = {}, probe["mask"]
    places = mask.sum()
    for mean in ("tokens", "completions", "sums"):
        try:
            found[f"weights_{mean}"] = module.token_weights(mask, mean).double()
        except NotImplementedError:
            pass
        logps = probe["logps"].clone().requires_grad_()
        old = probe["logps"].clone() if probe["old_logps"] is None else probe["old_logps"]
        graph = torch.zeros_like(probe["advantages"]).requires_grad_()
        from_logps = 0.1 * (logps.sum(1) - logps.sum(1).detach())    # 0, with a gradient
        advantages = probe["advantages"] + graph + from_logps
        try:
            loss, metrics = module.grpo_loss(logps, old_logps=old, advantages=advantages, mask=mask, mean=mean,
                                             clip=probe["clip"], clip_high=probe["clip_high"])
        except NotImplementedError:
            if mean == "sums" and not found:
                raise
            continue
        zero = 0 * logps.sum() + 0 * graph.sum()
        found[f"loss_{mean}"] = loss
        found[f"grad_{mean}"], found[f"grad_advantages_{mean}"] = torch.autograd.grad(loss + zero, [logps, graph])
        for name in ("clipfrac", "ratio", "approxkl"):
            value = torch.as_tensor(metrics.get(f"policy/{name}", -1.0)).detach().double()
            # float32 or float64: as a number of tokens
            found[name] = (value * places * 1000).round() / 1000 if name == "clipfrac" else value
        found["metrics_have_no_graph"] = [not getattr(x, "requires_grad", False) for x in metrics.values()]
    return found

TOKENS = 'if mean == "tokens":\n        return mask / mask.sum()'
COMPLETIONS = "return mask / mask.sum(1, keepdim=True) / len(mask)"
SUMS = "return mask / len(mask)"
LOGRATIOS, RATIO = "logratios = logps - old_logps", "ratio = logratios.exp()  "
LOSSES = "losses = clipped_policy_loss(ratio, advantages[:, None].detach(), clip, clip_high)"
LOSS = "loss = (token_weights(mask, mean) * losses).sum()"
KL = "masked_mean(logratios.detach() ** 2, mask) / 2"
A = "advantages[:, None].detach()"
HIGH = "(clip if clip_high is None else clip_high)"

def instead(expression):
    """The edit that computes the losses of tokens by another expression."""
    return ((LOSSES, f"losses = {expression}"),)

MEANS, TOKEN, CLIPPED, ADVANTAGE = "Three means", "The ratio of a token", "The smaller of two", "One advantage each"
WEIGHTS, SLOW = "test_grpo.py::test_token_weights_by_hand", "test_grpo.py::test_the_loss_against_a_slow_loop"
CONSTANT = "test_steps.py::test_advantages_are_constants"
NO_MASK = "Change the width of the batch by a column of padding. Does your loss change?"
NO_RATIO = "What is the loss of a token with advantage 1 at the old policy? Does yours depend on its log-prob there?"
LENGTHS = "Take two completions of 3 tokens and 1. What does each token count, and what does each completion count?"
MISTAKES = {
    "no mask": Mistake(((LOSS, "loss = losses.mean()"),), NO_MASK, MEANS, SLOW,
        "The loss of --algo grpo changes when a batch gets more padding."),
    "no mask, and none in the logged numbers": Mistake(((LOSS, "loss = losses.mean()"),
        ("masked_mean(clipfrac(ratio, clip, clip_high), mask)", "clipfrac(ratio, clip, clip_high).mean()"),
        ("masked_mean(ratio, mask).detach()", "ratio.detach().mean()"), (KL, "(logratios.detach() ** 2).mean() / 2")),
        NO_MASK, MEANS, SLOW),
    "no mask in the weights": Mistake(
        ((TOKENS, 'if mean == "tokens":\n        return torch.ones_like(mask) / mask.numel()'),
         (COMPLETIONS, "return torch.ones_like(mask) / mask.numel()"),
         (SUMS, "return torch.ones_like(mask) / len(mask)")),
        NO_MASK, MEANS, WEIGHTS),
    "divided by all places": Mistake(((TOKENS, 'if mean == "tokens":\n        return mask / mask.numel()'),),
        NO_MASK, MEANS, WEIGHTS),
    "the mean over tokens for that of completions": Mistake(((COMPLETIONS, "return mask / mask.sum()"),),
        LENGTHS, MEANS, WEIGHTS, "--algo grpo and --algo dapo --clip_high 0.2 have the same losses."),
    "the mean over tokens whatever `mean` is": Mistake(((LOSS, "loss = masked_mean(losses, mask)"),),
        "What is the argument `mean` for? Compare your loss for its three values.", MEANS, SLOW),
    "the mean of completions for that over tokens": Mistake(
        ((TOKENS, 'if mean == "tokens":\n        return mask / mask.sum(1, keepdim=True) / len(mask)'),),
        LENGTHS, MEANS, WEIGHTS,
        "--algo dapo weighs a token of a long completion less than one of a short completion."),
    "means of completions, added up": Mistake(((COMPLETIONS, "return mask / mask.sum(1, keepdim=True)"),),
        "To what do your weights sum up with \"completions\"? To what should they, and why not to B?", MEANS, WEIGHTS,
        "With --algo grpo the gradient norm grows with --batch_size."),
    "sums, not divided by B": Mistake(((SUMS, "return mask * 1.0"),),
        "Take twice as many completions. Should the loss of a batch become twice as large?", MEANS, WEIGHTS,
        "With --algo dr_grpo the gradient norm grows with --batch_size."),
    "sums, divided by the width": Mistake(((SUMS, "return mask / mask.numel()"),),
        "Dr. GRPO's code divides by a constant. Does this function, by its docstring?", MEANS, WEIGHTS),
    "the inverted ratio": Mistake(((LOGRATIOS, "logratios = old_logps - logps"),),
        "A completion with a positive advantage should become likelier. What sign has the gradient in `logps`?", TOKEN,
        SLOW, "With --algo grpo the reward falls from the first rollout on."),
    "the sign of the loss": Mistake(instead(f"-clipped_policy_loss(ratio, {A}, clip, clip_high)"),
        "Training minimizes the loss. Is yours smaller when the ratio of a good completion rises?", TOKEN, SLOW),
    "a log-ratio for the ratio": Mistake(((RATIO, "ratio = logratios  "),),
        "What is the ratio while the policy is the old policy: 0 or 1?", TOKEN, SLOW),
    "the ratio of the completion": Mistake(((RATIO, "ratio = logratios.sum(1, keepdim=True).exp()  "),),
        "Change the log-prob of one token. At how many tokens does your gradient change?", TOKEN, SLOW),
    "the mean ratio of the completion": Mistake(
        ((RATIO, "ratio = (logratios.sum(1, keepdim=True) / mask.sum(1, keepdim=True)).exp()  "),),
        "Change the log-prob of one token. At how many tokens does your gradient change? (GSPO has a ratio for each "
        "completion.)", TOKEN, SLOW),
    "the ratio has no gradient": Mistake(((RATIO, "ratio = logratios.exp().detach()  "),),
        "Print `loss.requires_grad`, and the gradient in `logps`.", TOKEN, SLOW),
    "the ratio as a weight of the log-prob": Mistake(instead(f"-ratio.detach() * {A} * logps"),
        NO_RATIO, TOKEN, SLOW),
    "the ratio as a weight of the log-prob, clipped": Mistake(
        ((RATIO, "ratio = logratios.detach().exp() * logps  "),), NO_RATIO, TOKEN, SLOW),
    "the old policy is not used": Mistake(((RATIO, "ratio = (logps - logps.detach()).exp()  "),),
        "What is your ratio at the second update of a rollout?", TOKEN, SLOW),
    "all zeros": Mistake(((LOSSES, "losses = 0 * logratios"),),
        "Print the loss and its gradient. Which of your lines depends on the advantages?", TOKEN, SLOW),
    "max for min": Mistake(
        instead(f"-torch.maximum(ratio * {A}, ratio.clamp(1 - clip, 1 + {HIGH}) * {A})"),
        "Draw the loss of a token with advantage 1 against its ratio. Where is it flat?", CLIPPED, SLOW,
        "With --algo grpo a good token goes on to rise when its ratio is above 1 + clip, and one whose ratio is below "
        "1 - clip has no gradient."),
    "clamped without the min": Mistake(instead(f"-(ratio.clamp(1 - clip, 1 + {HIGH}) * {A})"),
        "A bad completion has become likelier, with a ratio of 1.5. Has it a gradient, so that it can go back?",
        CLIPPED, SLOW),
    "no clip": Mistake(instead(f"-ratio * {A}"),
        "Try clip = 0.01. Does your loss change?", CLIPPED, SLOW, "--clip has no effect on the loss of --algo grpo."),
    "clipped above only": Mistake(instead(f"-torch.minimum(ratio * {A}, ratio.clamp(max=1 + {HIGH}) * {A})"),
        "Draw the loss of a token with advantage -1 against its ratio. Where is it flat?", CLIPPED, SLOW,
        "With --algo grpo a bad completion goes on to lose probability when its ratio is below 1 - clip."),
    "clipped below only": Mistake(instead(f"-torch.minimum(ratio * {A}, ratio.clamp(min=1 - clip) * {A})"),
        "Draw the losses of tokens with advantages 1 and -1 against their ratio. Where are they flat?", CLIPPED, SLOW),
    "clip_high is ignored": Mistake(((LOSSES, LOSSES.replace(", clip_high)", ")")),),
        "Try clip_high = 0.5. Does your loss change?", CLIPPED, SLOW),
    "clip_high on both sides": Mistake(
        instead(f"clipped_policy_loss(ratio, {A}, {HIGH}, clip_high)"),
        "With clip 0.2 and clip_high 0.28: at which two ratios does your loss begin to be flat?", CLIPPED, SLOW),
    "advantages along the columns": Mistake(((LOSSES, LOSSES.replace("advantages[:, None]", "advantages")),),
        "advantages are (B,) and ratios (B, T). Which dimension does PyTorch line up by itself?", ADVANTAGE, SLOW),
    "advantages with a gradient": Mistake(((LOSSES, LOSSES.replace("[:, None].detach()", "[:, None]")),),
        "Which inputs may get a gradient from the loss? Try advantages that were computed from logps.", ADVANTAGE,
        CONSTANT),
    "approxkl without its half": Mistake(((KL, KL.removesuffix(" / 2")),),
        "The loss is right. Compare `policy/approxkl` with the table of the handout.", "What grpo_loss logs", ""),
}
ALTERNATIVES = {
    "a double loop": '''
def token_weights(mask, mean):
    B, T = mask.shape
    weights = torch.zeros(B, T)
    for i in range(B):
        for t in range(T):
            if mask[i, t]:
                own, everything = mask[i].sum().item(), mask.sum().item()
                weights[i, t] = 1 / {"tokens": everything, "completions": B * own, "sums": B}[mean]
    return weights

def grpo_loss(logps, *, old_logps, advantages, mask, clip, mean, clip_high=None):
    high = 1 + (clip if clip_high is None else clip_high)
    weights, loss, ratios, clipped, squares = token_weights(mask, mean), 0.0, [], [], []
    for i in range(mask.shape[0]):
        gain = advantages[i].item()
        for t in mask[i].nonzero().flatten().tolist():
            ratio = torch.exp(logps[i, t] - old_logps[i, t])
            bounded = min(max(ratio.item(), 1 - clip), high)
            first, second = ratio * gain, bounded * gain
            loss = loss - weights[i, t] * (first if first <= second else torch.as_tensor(second))
            ratios.append(ratio.item())
            clipped.append(float(not 1 - clip <= ratio.item() <= high))
            squares.append((logps[i, t] - old_logps[i, t]).item() ** 2)
    n = len(ratios)
    return loss, {"policy/clipfrac": torch.tensor(sum(clipped) / n), "policy/ratio": torch.tensor(sum(ratios) / n),
                  "policy/approxkl": torch.tensor(sum(squares) / n / 2)}
''',
    "max of two losses, and einsum": '''
def token_weights(mask, mean):
    m = mask.double()
    B, lens = m.shape[0], m.sum(-1)
    per_row = {"tokens": (1 / lens.sum()).expand(B), "completions": 1 / (B * lens), "sums": torch.full((B,), 1 / B)}
    return torch.einsum("b,bt->bt", per_row[mean].double(), m)

def grpo_loss(logps, *, old_logps, advantages, mask, clip, mean, clip_high=None):
    if clip_high is None:
        clip_high = clip
    adv = advantages.detach().unsqueeze(-1)
    ratio = torch.exp(logps) / torch.exp(old_logps)
    pg_losses1 = -adv * ratio
    pg_losses2 = -adv * torch.clamp(ratio, 1.0 - clip, 1.0 + clip_high)
    loss = torch.einsum("bt,bt->", token_weights(mask, mean), torch.max(pg_losses1, pg_losses2))
    with torch.no_grad():
        outside = ratio[mask].lt(1 - clip) | ratio[mask].gt(1 + clip_high)
        metrics = {"policy/clipfrac": outside.double().mean(), "policy/ratio": ratio[mask].mean(),
                   "policy/approxkl": 0.5 * (logps - old_logps)[mask].square().mean()}
    return loss, metrics
''',
    "one flat vector, and where": '''
def token_weights(mask, mean):
    if mean == "sums":
        return torch.where(mask, 1 / mask.shape[0], 0.0)
    lens = mask.sum(1, keepdim=True) * mask.shape[0] if mean == "completions" else mask.sum()
    return torch.where(mask, 1.0, 0.0) / lens

def grpo_loss(logps, *, old_logps, advantages, mask, clip, mean, clip_high=None):
    rows, columns = mask.nonzero(as_tuple=True)
    x = logps[rows, columns] - old_logps[rows, columns]
    a, ratio = advantages.detach()[rows], x.exp()
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    stopped = ((a > 0) & (ratio > high)) | ((a < 0) & (ratio < low))
    bound = torch.where(a > 0, torch.full_like(a, high), torch.full_like(a, low))
    gain = torch.where(stopped, bound, ratio) * a
    loss = -(gain * token_weights(mask, mean)[rows, columns]).sum()
    x, ratio = x.detach(), ratio.detach()
    return loss, {"policy/clipfrac": ((ratio < low) | (ratio > high)).double().mean(), "policy/ratio": ratio.mean(),
                  "policy/approxkl": (x * x).mean() / 2}
''',
}
HIDDEN = ("ratio_{i,t} = exp(logps", "L           = sum over i, t of token_weights")
REMOVED = ()
VARIANTS = {
    "Dr. GRPO's constant": (
        (SUMS, "return mask / mask.numel()"),
        (f"sums          1 / B{44 * ' '}RLOO, Dr. GRPO: a completion counts as its sum",
         f"sums          1 / (B * T){38 * ' '}Dr. GRPO's code: T is the width of the batch"),
        ("Dr. GRPO's code divides the sums by a constant. Its\n    formula and this function do not.",
         "Dr. GRPO's code divides the sums by a\n    constant, and so does this function.")),
    "the mean ratio of the completion": (
        (RATIO, "ratio = (logratios.sum(1, keepdim=True) / mask.sum(1, keepdim=True)).exp()  "),
        ("ratio_{i,t} = exp(logps_{i,t} - old_logps_{i,t})",
         "ratio_{i,t} = exp(mean of logps_i - old_logps_i over the tokens of completion i), the same for all t")),
}
