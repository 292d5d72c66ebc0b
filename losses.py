"""
Every preference loss in explicit tensor code: the log-prob of a completion, the Pairs, the losses, the LOSSES table.

A loss sees log-probs only, no model: fn(pairs, *, hyperparameters) -> (losses, chosen_rewards, rejected_rewards), each (B,).
With w and l for the log-ratios of the chosen (winning) and the rejected (losing) completion,

    w = log pi(y_w | x) - log pi_ref(y_w | x)        pairs.chosen_logratios      (B,) nats
    l = log pi(y_l | x) - log pi_ref(y_l | x)        pairs.rejected_logratios    (B,) nats
    h = beta * (w - l)                               what most losses push up

A new loss is one function under `@register`: the command line's choices, flags and help, the README's table and the tests read
LOSSES. The rewards are for the log: they carry no gradient. Read next: loop.py
"""
import inspect
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# ---------------------------------------------------------------------------------------------------------------------
# the log-prob of a completion

def sequence_logps(model, idx, completion_mask):
    """
    log pi(completion | prompt), summed over the tokens under the mask, EOS included.

    idx              (N, T) prompt, completion, then padding of any kind
    completion_mask  (N, T) bool, true on the completion's tokens. Column 0 has nothing before it and never counts.
    returns          logps (N,) in nats, fp32 whatever the autocast; lens (N,) how many tokens were summed

    The vocabulary is paid for only under the mask: at 50,257 tokens it costs more than the trunk of a small GPT-2.
    """
    mask = completion_mask[:, 1:]                                  # (N, T - 1): logits[:, t] predicts idx[:, t + 1]
    states = model.features(idx)[:, :-1][mask]                     # (M, C), M = all completion tokens
    logits = model.lm_head(states)                                 # (M, V)
    logits = logits.float() if logits.dtype != torch.float64 else logits    # bf16 would keep 3 digits of a sum of hundreds
    targets = idx[:, 1:][mask]                                     # (M,)
    token_logps = logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(-1)    # (M,)
    per_position = token_logps.new_zeros(mask.shape).masked_scatter(mask, token_logps)    # (N, T - 1)
    return per_position.sum(1), mask.sum(1)

# ---------------------------------------------------------------------------------------------------------------------
# what a loss is given, and where it is found

@dataclass
class Pairs:
    """Summed log-probs in nats and lengths in tokens, each (B,). A loss with needs_ref=False does not look at the reference's."""
    policy_chosen_logps: torch.Tensor
    policy_rejected_logps: torch.Tensor
    ref_chosen_logps: torch.Tensor
    ref_rejected_logps: torch.Tensor
    chosen_lens: torch.Tensor
    rejected_lens: torch.Tensor
    kl_logratios: torch.Tensor | None = None    # log-ratios of completions beside the wrong prompts, for losses that estimate the KL

    @property
    def chosen_logratios(self):
        return self.policy_chosen_logps - self.ref_chosen_logps

    @property
    def rejected_logratios(self):
        return self.policy_rejected_logps - self.ref_rejected_logps

@dataclass
class Loss:
    fn: object        # (pairs, **hparams) -> (losses, chosen_rewards, rejected_rewards)
    needs_ref: bool   # whether the reference's log-probs change the answer
    hparams: dict     # name -> default, read off the function's signature

LOSSES = {}

def register(*, needs_ref):
    def into_table(fn):
        hparams = {p.name: p.default for p in inspect.signature(fn).parameters.values() if p.kind is p.KEYWORD_ONLY}
        LOSSES[fn.__name__] = Loss(fn, needs_ref, hparams)
        return fn
    return into_table

def need(ok, message):
    if not ok:
        raise ValueError(message)

def with_rewards(losses, beta, chosen, rejected):
    return losses, (beta * chosen).detach(), (beta * rejected).detach()

# ---------------------------------------------------------------------------------------------------------------------
# on the margin h: the Bradley-Terry family

@register(needs_ref=True)
def dpo(pairs, *, beta=0.1):
    """
    Direct Preference Optimization: Rafailov et al. 2023, arXiv:2305.18290, Eq. 7.

        h = beta * (chosen_logratios - rejected_logratios)
        L = -log sigmoid(h)

    beta   > 0. The strength of the KL penalty that the loss stands for: small beta lets the policy move far from the reference.

    While policy == reference, L = log 2 for every beta. h has no limit: a pair is never separated enough.
    """
    need(beta > 0, f"beta must be > 0, not {beta}")
    w, l = pairs.chosen_logratios, pairs.rejected_logratios    # (B,)
    h = beta * (w - l)                                         # (B,)
    # logsigmoid(h), not sigmoid(h).log(): at h = -110 the second is -inf with a NaN gradient in fp32
    return with_rewards(-F.logsigmoid(h), beta, w, l)

@register(needs_ref=True)
def cdpo(pairs, *, beta=0.1, label_smoothing=0.1):
    """
    Conservative DPO: Mitchell 2023, ericmitchell.ai/cdpo.pdf.

        L = -(1 - eps) log sigmoid(h) - eps log sigmoid(-h)

    beta             > 0, as in dpo.
    label_smoothing  eps in [0, 0.5): assumed probability that a pair is labelled backwards.

    Unlike dpo it stops pushing at h = log((1 - eps) / eps). While policy == reference, L = log 2 for every beta and eps.
    """
    need(beta > 0, f"beta must be > 0, not {beta}")
    need(0 <= label_smoothing < 0.5, f"label_smoothing must be in [0, 0.5), not {label_smoothing}")
    w, l = pairs.chosen_logratios, pairs.rejected_logratios    # (B,)
    h = beta * (w - l)                                         # (B,)
    losses = -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True)
def hinge(pairs, *, beta=0.1):
    """
    Hinge on DPO's margin: Liu et al. 2023 (RSO), arXiv:2309.06657, where it is SLiC with log-ratios for log-probs.

        L = max(0, 1 - h)

    beta   > 0. 1 / beta is the gap in nats between the log-ratios at which a pair is left alone.

    Unlike dpo it stops pushing at h = 1, and every pair below pushes equally hard. While policy == reference, L = 1. Reports that
    say "SLiC" often mean this one; `slic` is SLiC-HF as its own paper has it.
    """
    need(beta > 0, f"beta must be > 0, not {beta}")
    w, l = pairs.chosen_logratios, pairs.rejected_logratios    # (B,)
    h = beta * (w - l)                                         # (B,)
    return with_rewards(F.relu(1 - h), beta, w, l)

@register(needs_ref=True)
def ipo(pairs, *, beta=0.1):
    """
    Identity Preference Optimization: Azar et al. 2023, arXiv:2310.12036, Eq. 17; their tau is beta here.

        L = (chosen_logratios - rejected_logratios - 1 / (2 beta))^2

    beta   > 0. 1 / (2 beta) is the gap in nats at which a pair stands still: large beta keeps the policy near the reference.

    Unlike dpo it pulls back a pair that is too far apart. The log-ratios are sums over tokens, as in the paper; TRL's `ipo` takes
    means per token, so that the same beta means another distance there. While policy == reference, L = 1 / (4 beta^2).
    """
    need(beta > 0, f"beta must be > 0, not {beta}")
    w, l = pairs.chosen_logratios, pairs.rejected_logratios    # (B,)
    return with_rewards((w - l - 1 / (2 * beta)) ** 2, beta, w, l)

def exp_line(x, cap=30.0):
    """e^x up to x = cap, then on along its tangent: finite in fp32 at x = 1e4, and with a gradient that does not vanish."""
    below = x.clamp(max=cap)
    return below.exp() * (1 + (x - below))

@register(needs_ref=True)
def fdpo(pairs, *, beta=0.1, divergence="jsd", alpha=0.5):
    """
    f-DPO, DPO with another divergence than the reverse KL: Wang et al. 2023, arXiv:2309.16240.

        L = -log sigmoid(beta * (g(w) - g(l))),   g = f'(pi / pi_ref) as a function of the log-ratio x, constants dropped

        reverse_kl   g = x                          this is dpo
        forward_kl   g = -e^-x
        jsd          g = log 2 + log sigmoid(x)
        alpha        g = (1 - e^(-alpha x)) / alpha

    beta        > 0, as in dpo; the divergences have scales of their own, so equal betas are not equal strengths.
    divergence  reverse_kl, forward_kl, jsd or alpha.
    alpha       in (0, 1], for divergence alpha alone: near 0 it is the reverse KL, at 1 the forward KL.

    Unlike dpo, a completion that the policy has nearly given up costs more and more: with forward_kl so steeply that at beta 0.1 a
    few pairs throw the policy off, and 0.001 or less is called for. TRL's alpha is 1 - alpha of the paper (and of this function).
    Where e^-x would overflow, from x = -30 / alpha on, g goes on as a straight line, so that a pair in the wrong order keeps a
    gradient. While policy == reference, L = log 2.
    """
    links = {
        "reverse_kl": lambda x: x,
        "forward_kl": lambda x: -exp_line(-x),
        "jsd": lambda x: math.log(2) + F.logsigmoid(x),
        "alpha": lambda x: (1 - exp_line(-alpha * x)) / alpha,
    }
    need(beta > 0, f"beta must be > 0, not {beta}")
    need(divergence in links, f"divergence must be one of {', '.join(links)}, not {divergence}")
    need(0 < alpha <= 1, f"alpha must be in (0, 1], not {alpha}")
    w, l = pairs.chosen_logratios, pairs.rejected_logratios    # (B,)
    g = links[divergence]
    return with_rewards(-F.logsigmoid(beta * (g(w) - g(l))), beta, g(w), g(l))

# ---------------------------------------------------------------------------------------------------------------------
# without a reference

@register(needs_ref=False)
def slic(pairs, *, delta=1.0, reg=0.1):
    """
    SLiC-HF: Zhao et al. 2023, arXiv:2305.10425, with the chosen completion as the target of the regularisation.

        L = max(0, delta - log pi(y_w | x) + log pi(y_l | x)) - reg * log pi(y_w | x)

    delta  > 0. The margin in nats between the two summed log-probs at which the calibration stops.
    reg    >= 0. Weight of the cross-entropy, the only thing that keeps the policy near where it started.

    Unlike dpo it compares log-probs, not log-ratios: a pair starts out right or wrong by its length and its commonness. The value
    at the start depends on the pair. The rewards in the log are the log-probs.
    """
    need(delta > 0 and reg >= 0, f"delta must be > 0 and reg >= 0, not {delta} and {reg}")
    c, r = pairs.policy_chosen_logps, pairs.policy_rejected_logps    # (B,)
    return with_rewards(F.relu(delta - c + r) - reg * c, 1.0, c, r)

@register(needs_ref=False)
def sft(pairs):
    """
    Preferred-FT, a baseline of the DPO paper (arXiv:2305.18290): supervised fine-tuning on the chosen completions.

        L = -log pi(y_w | x) / length of y_w

    Unlike dpo it never looks at the rejected one. The rewards in the log are log-probs per token.
    """
    c, r = pairs.policy_chosen_logps / pairs.chosen_lens, pairs.policy_rejected_logps / pairs.rejected_lens    # (B,)
    return with_rewards(-c, 1.0, c, r)
