"""
The losses without a reference: they see the policy's own log-probs alone.

    python train_pref.py --loss simpo --beta 2

Form and symbols are those of losses.py, which imports this file:

    c, r    the policy's log-probs of the chosen and the rejected completion: sums over tokens, (B,) nats
    n, m    lengths of the chosen and the rejected completion, tokens

Nothing in these losses keeps the policy near its start, except the learning rate and the NLL that some of them contain.
docs/losses.md compares the losses. Read first: losses.py. Read next: loop.py
"""
import torch
import torch.nn.functional as F

from support.registry import exp_line, need, register, with_rewards

@register(needs_ref=False)
def slic(pairs, *, delta=1.0, reg=0.1):
    """
    SLiC-HF: Zhao et al. 2023, arXiv:2305.10425, with the chosen completion as the target of the regularization.

        L = max(0, delta - c + r) - reg c

    delta  > 0. Margin in nats between the two summed log-probs at which the calibration term stops.
    reg    >= 0. Weight of the cross-entropy. Nothing else keeps the policy near its start.

    Unlike hinge it compares log-probs, not log-ratios: the lengths of a pair decide whether it starts out right or
    wrong. The logged rewards are c and r.
    """
    need(delta > 0 and reg >= 0, f"delta must be > 0 and reg >= 0, not {delta} and {reg}")
    c, r = pairs.policy_chosen_logps, pairs.policy_rejected_logps    # (B,)
    losses = F.relu(delta - c + r) - reg * c                         # (B,)
    return with_rewards(losses, 1.0, c, r)

@register(needs_ref=False, per_token=True, trl="CPOTrainer with simpo")
def simpo(pairs, *, beta=2.0, gamma_beta_ratio=0.1):
    """
    Simple Preference Optimization: Meng et al. 2024, arXiv:2405.14734.

        L = -log sigmoid(beta * (c / n - r / m - gamma_beta_ratio))

    beta              > 0. It scales means per token, so it is about 1 to 10, not 0.1.
    gamma_beta_ratio  >= 0. Margin in nats per token to reach: the paper's gamma / beta. The default is a tenth of a
                      token's entropy.

    Unlike in dpo, only a small learning rate keeps the policy near its start.
    """
    need(beta > 0, f"beta must be > 0, not {beta}")
    need(gamma_beta_ratio >= 0, f"gamma_beta_ratio must be >= 0, not {gamma_beta_ratio}")
    mean_c, mean_r = pairs.mean_logps()                                     # (B,) c / n, r / m
    losses = -F.logsigmoid(beta * (mean_c - mean_r - gamma_beta_ratio))    # (B,)
    return with_rewards(losses, beta, mean_c, mean_r)

def power_reward(x, alpha):
    """(1 - p^-alpha) / alpha of p = e^x, for log-probs x (B,); at alpha = 0 its limit, x."""
    if alpha == 0:
        return x
    return (1 - exp_line(-alpha * x)) / alpha    # p^-alpha alone overflows float32 at -alpha x = 89

@register(needs_ref=False, per_token=True, trl="CPOTrainer with alphapo")
def alphapo(pairs, *, beta=2.0, gamma_beta_ratio=0.1, alpha=0.25):
    """
    AlphaPO, SimPO with a reward of another shape: Gupta et al. 2025, arXiv:2501.03884.

        L = -log sigmoid(beta * (g(c / n) - g(r / m) - gamma_beta_ratio)),   g(x) = (1 - e^(-alpha x)) / alpha

    beta              > 0, as in simpo.
    gamma_beta_ratio  >= 0. Margin to reach, in the units of g.
    alpha             At 0 the loss is simpo. Above 0 the reward of an unlikely completion falls faster than its
                      log-prob. Below 0 it falls more slowly, and has almost no gradient far out.

    Unlike in simpo, for alpha > 0 a change of an unlikely completion counts more than the same change of a likely one.
    Where e^(-alpha x) exceeds e^30, g is a straight line, because it would overflow further out.
    """
    need(beta > 0, f"beta must be > 0, not {beta}")
    need(gamma_beta_ratio >= 0, f"gamma_beta_ratio must be >= 0, not {gamma_beta_ratio}")
    mean_c, mean_r = pairs.mean_logps()                                    # (B,) c / n, r / m
    g_c, g_r = power_reward(mean_c, alpha), power_reward(mean_r, alpha)    # (B,)
    losses = -F.logsigmoid(beta * (g_c - g_r - gamma_beta_ratio))          # (B,)
    return with_rewards(losses, beta, g_c, g_r)

@register(needs_ref=False, has_nll=True, trl="CPOTrainer with sigmoid")
def cpo(pairs, *, beta=0.1, nll_weight=1.0):
    """
    Contrastive Preference Optimization: Xu et al. 2024, arXiv:2401.08417.

        L = -log sigmoid(beta * (c - r)) - nll_weight c / n

    beta        > 0, as in dpo.
    nll_weight  >= 0. Weight of the chosen completion's NLL per token, which replaces the reference.

    This is dpo with a uniform reference, which cancels, plus the NLL.
    """
    need(beta > 0 and nll_weight >= 0, f"beta must be > 0 and nll_weight >= 0, not {beta} and {nll_weight}")
    c, r = pairs.policy_chosen_logps, pairs.policy_rejected_logps    # (B,)
    mean_c, _ = pairs.mean_logps()                                    # (B,) c / n
    losses = -F.logsigmoid(beta * (c - r)) - nll_weight * mean_c     # (B,)
    return with_rewards(losses, beta, c, r)

def log_odds(x):
    """log(p / (1 - p)) of p = e^x, for log-probs x (B,): x - log(1 - e^x)."""
    # -expm1(x), not 1 - e^x: the difference is 0 in float32 for a mean log-prob above -6e-8
    return x - (-torch.expm1(x.clamp(max=-1e-6))).log()

@register(needs_ref=False, per_token=True, has_nll=True, trl="ORPOTrainer")
def orpo(pairs, *, lam=0.1):
    """
    Odds Ratio Preference Optimization: Hong et al. 2024, arXiv:2403.07691.

        L = -c / n - lam * log sigmoid(log odds(c / n) - log odds(r / m)),   log odds(x) = x - log(1 - e^x)

    lam  >= 0. Weight of the odds ratio beside the NLL.

    Unlike dpo it is supervised fine-tuning with a small preference term. It does not start from an SFT policy.
    """
    need(lam >= 0, f"lam must be >= 0, not {lam}")
    mean_c, mean_r = pairs.mean_logps()                                            # (B,) c / n, r / m
    losses = -mean_c - lam * F.logsigmoid(log_odds(mean_c) - log_odds(mean_r))    # (B,)
    return with_rewards(losses, 1.0, mean_c, mean_r)

@register(needs_ref=False)
def unlikelihood(pairs, *, alpha=0.1):
    """
    Unlikelihood, a baseline of the DPO paper (arXiv:2305.18290).

        L = -c + alpha r

    alpha  in [0, 1]. Weight of the term that pushes the rejected completion down.

    Unlike dpo it never stops: the log-probs of rejected completions fall without bound, and the policy collapses.
    """
    need(0 <= alpha <= 1, f"alpha must be in [0, 1], not {alpha}")
    c, r = pairs.policy_chosen_logps, pairs.policy_rejected_logps    # (B,)
    losses = -c + alpha * r                                          # (B,)
    return with_rewards(losses, 1.0, c, r)

@register(needs_ref=False, per_token=True, has_nll=True, trl="sft: the mean over all tokens of the batch")
def sft(pairs):
    """
    Preferred-FT, a baseline of the DPO paper (arXiv:2305.18290): supervised fine-tuning on the chosen completions.

        L = -c / n

    Unlike dpo it ignores the rejected completion. The logged rewards are log-probs per token.
    """
    mean_c, mean_r = pairs.mean_logps()    # (B,) c / n, r / m
    losses = -mean_c                      # (B,)
    return with_rewards(losses, 1.0, mean_c, mean_r)
