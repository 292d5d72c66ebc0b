"""
The formulas of PPO, RLOO, GRPO, Dr. GRPO and DAPO as pure functions of tensors: rewards, advantages and losses.

All of them are REINFORCE (Williams 1992), minimize -A_i * log policy(y_i | x), with steps added to it:

    1. baseline   A is the reward minus a baseline. gae: values of a value head. leave_one_out: mean of the prompt's
                  other completions. group_advantages: mean of all completions of the prompt
    2. std        A is divided by its standard deviation: over the rollout (whiten), or over the group
    3. ratio      policy / old policy in place of log policy, so that a rollout serves several updates. Of a token, or
                  of the whole completion
    4. clip       no gradient beyond 1 - clip and 1 + clip (clipped_policy_loss). Clip-higher: beyond 1 + clip_high
    5. mean       of the losses of tokens (token_weights): over all tokens, of each completion first, or of sums
    6. KL         to the reference: subtracted from the rewards (token_rewards), or added to the loss (kl_loss)

METHODS says which method takes which steps.

Symbols and shapes, the same in all functions:

    B, T             completions in a batch, tokens that are predicted. T includes the tokens of prompts and padding
    mask    (B, T)   bool: True where the predicted token belongs to the completion, EOS included
    logps   (B, T)   log policy(y_t | x, y_<t) in nats; old_logps: by the policy that sampled y; ref_logps: reference
    values  (B, T)   V_t, the expected sum of discounted rewards from token t on. old_values: at the time of sampling
    rewards (B, T)   in the unit of the reward function; advantages, returns and values have the same unit

logps and values must be 0 outside the mask. docs/rlhf.md compares the methods.
Read first: rlhf/train_reward.py. Read next: rlhf/train_ppo.py
"""
from dataclasses import dataclass

import torch

from measures import KL_ESTIMATORS

@dataclass(frozen=True)
class Method:
    """The steps of a method, in the words of the docstring above. docs/rlhf.md has them as a table."""
    baseline: str      # values, others, group
    std: str           # rollout, group, no
    ratio: str         # token, completion
    clip_high: float   # the default; None: as clip, whose default is 0.2
    mean: str          # tokens, completions, sums
    kl: str            # the default: reward (with k1) or loss (with k3), see measures.KL_ESTIMATORS

METHODS = {
    "ppo":     Method("values", "rollout", "token",      None, "tokens",      "reward"),
    "rloo":    Method("others", "no",      "completion", None, "sums",        "reward"),
    "grpo":    Method("group",  "group",   "token",      None, "completions", "loss"),
    "dr_grpo": Method("group",  "no",      "token",      None, "sums",        "loss"),
    "dapo":    Method("group",  "group",   "token",      0.28, "tokens",      "loss"),
}

# ---------------------------------------------------------------------------------------------------------------------
# small parts

def masked_mean(x, mask):
    """
    Mean of x over the places where mask is True. x, mask: any shape, the same -> ().

        mean = sum(x * mask) / sum(mask)
    """
    return (x * mask).sum() / mask.sum()

def last_place(mask):
    """Index of the last True of each row. mask (B, T) -> (B, 1), int64. A row needs at least one True."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1, keepdim=True)

def whiten(x, mask):
    """
    x with mean 0 and variance 1 over the places where mask is True, and 0 elsewhere. x, mask: any shape, the same.

        mean     = masked_mean(x, mask)
        variance = masked_mean((x - mean)^2, mask)
        whitened = (x - mean) / sqrt(variance + 1e-8)
    """
    mean = masked_mean(x, mask)
    return (x - mean) * (masked_mean((x - mean) ** 2, mask) + 1e-8).rsqrt() * mask

# ---------------------------------------------------------------------------------------------------------------------
# rewards, with the KL penalty in them

def token_rewards(scores, logps, ref_logps, mask, beta, estimator="k1"):
    """
    Rewards of tokens: a KL penalty at every token, and the score of the completion at its last token.
    Ziegler et al. 2019, arXiv:1909.08593, which has k1.

        rewards_t = -beta * k(logps_t - ref_logps_t),   plus the score where t is the last token

    scores (B,); logps, ref_logps, mask (B, T) -> rewards (B, T), 0 outside the mask. beta: rewards per nat, >= 0.
    estimator: k, one of measures.KL_ESTIMATORS.

    With k1, the rewards of a completion sum to score - beta * log(policy(y | x) / reference(y | x)). The mean of this
    sum is the objective, E[score] - beta * KL(policy || reference). With k2 or k3 its gradient is another one.
    """
    rewards = -beta * KL_ESTIMATORS[estimator](logps - ref_logps) * mask
    return rewards.scatter_add(1, last_place(mask), scores[:, None])

def adaptive_beta(beta, kl, target_kl, samples, horizon=2000):
    """
    The beta of the next rollout: larger if the KL was above its target, smaller if it was below.
    Ziegler et al. 2019, arXiv:1909.08593.

        error     = clip(kl / target_kl - 1, -0.2, 0.2)
        next beta = beta * (1 + error * samples / horizon)

    kl, target_kl  mean KL to the reference in the rollout, and its target > 0: nats per completion
    samples        completions in the rollout
    horizon        completions in which beta changes by at most a fifth. The paper's code has 10,000, for millions of
                   completions. Runs here have thousands, so the default is smaller.
    """
    error = max(-0.2, min(0.2, kl / target_kl - 1))
    return beta * (1 + error * samples / horizon)

# ---------------------------------------------------------------------------------------------------------------------
# advantages

def gae(rewards, values, mask, gamma, lam):
    """
    Generalized advantage estimation, not whitened: Schulman et al. 2016, arXiv:1506.02438.

        delta_t     = rewards_t + gamma * values_{t+1} - values_t
        advantage_t = delta_t + gamma * lam * advantage_{t+1}  =  sum over l >= 0 of (gamma * lam)^l * delta_{t+l}

    rewards, values, mask (B, T) -> advantages (B, T), 0 outside the mask. After the last token of a completion, values
    and advantages count as 0.

    gamma  in [0, 1]: discount per token. 1 for a score that comes at the end
    lam    in [0, 1]. 0 trusts the next value: less variance, more bias. 1 trusts only rewards: return minus value
    """
    advantages = torch.zeros_like(rewards)
    advantage, next_value = 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):    # from the last token to the first
        delta = rewards[:, t] + gamma * next_value - values[:, t]              # (B,)
        advantage = (delta + gamma * lam * advantage) * mask[:, t]             # (B,)
        next_value = values[:, t] * mask[:, t]                                 # (B,)
        advantages[:, t] = advantage
    return advantages

def leave_one_out(returns, k):
    """
    The advantages of RLOO: the return of a completion minus the mean return of its prompt's other k - 1 completions.
    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024, arXiv:2402.14740.

        advantage_i = returns_i - (sum over j != i of returns_j) / (k - 1)

    returns (B,), with the k completions of a prompt next to each other -> advantages (B,). k >= 2 and B is a multiple
    of k. The baseline excludes the completion's own return: a baseline that depends on y biases the gradient.
    """
    grouped = returns.view(-1, k)                                             # (B / k, k)
    others = (grouped.sum(1, keepdim=True) - grouped) / (k - 1)               # (B / k, k)
    return (grouped - others).view(-1)                                        # (B,)

def group_advantages(returns, k, std):
    """
    The advantages of GRPO: the return minus the mean of its prompt's k returns, divided by their standard deviation.
    Shao et al. 2024, arXiv:2402.03300. Without the division: Dr. GRPO, Liu et al. 2025, arXiv:2503.20783.

        advantage_i = (returns_i - mean(group)) / std(group),   std(group)^2 = mean over j of (returns_j - mean)^2

    returns (B,), with the k completions of a prompt next to each other -> advantages (B,). k >= 2 and B is a multiple
    of k. std: whether to divide.

    The mean has the completion's own return in it. So the undivided advantage is (k - 1) / k times leave_one_out's:
    the same direction, not a bias.
    The division makes the advantages of every prompt equally large, however much or little its completions differ.
    TRL divides by the root of sum / (k - 1) instead. Like TRL, and unlike the paper, 1e-4 is added to the std: in a
    group of equal returns it is 0, or rounding noise.
    """
    grouped = returns.view(-1, k)                                             # (B / k, k)
    advantages = grouped - grouped.mean(1, keepdim=True)                      # (B / k, k)
    if std:
        advantages = advantages / (grouped.std(1, correction=0, keepdim=True) + 1e-4)
    return advantages.view(-1)                                                # (B,)

# ---------------------------------------------------------------------------------------------------------------------
# losses

def clipped_policy_loss(ratio, advantages, clip, clip_high=None):
    """
    Minus PPO's clipped objective, elementwise: Schulman et al. 2017, arXiv:1707.06347, where clip_high is clip (None).
    With a larger clip_high it is DAPO's clip-higher: Yu et al. 2025, arXiv:2503.14476.

        L = -min(ratio * A, clip(ratio, 1 - clip, 1 + clip_high) * A)
        ratio = policy / old policy,   A = advantages

    ratio, advantages: of shapes that broadcast. Once the ratio is beyond its bound in the direction that A asks for,
    the gradient is 0. In the other direction it is not: a step that went wrong can be taken back.
    """
    clip_high = clip if clip_high is None else clip_high
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip_high) * advantages)

def clipfrac(ratio, clip, clip_high=None):
    """1 where a ratio is outside the bounds of clipped_policy_loss, else 0. Its mean is logged. Any shape."""
    clip_high = clip if clip_high is None else clip_high
    return ((ratio < 1 - clip) | (ratio > 1 + clip_high)).float()

def token_weights(mask, mean):
    """
    What the loss of a token counts in the loss of a batch: mask (B, T) -> weights (B, T), 0 outside the mask.

        tokens        1 / all tokens of the batch                      PPO, DAPO: every token counts the same
        completions   1 / (B * tokens of its completion)               GRPO: every completion counts the same
        sums          1 / B                                            RLOO, Dr. GRPO: a completion counts as its sum

    With "completions", a token of a long completion counts less than one of a short completion: bad completions are
    punished less if they are long. Dr. GRPO removes this. DAPO's formula has the tokens of a prompt's group.
    Here, as in its code in verl, they are those of the minibatch. Dr. GRPO's code divides the sums by a constant. Its
    formula and this function do not.
    """
    if mean == "tokens":
        return mask / mask.sum()
    if mean == "completions":
        return mask / mask.sum(1, keepdim=True) / len(mask)
    return mask / len(mask)

def kl_loss(logps, ref_logps, mask, mean, estimator):
    """
    A KL to the reference for the loss. It has the same mean over tokens as the policy loss. (B, T) -> ().
    GRPO has it with k3: Shao et al. 2024, arXiv:2402.03300.

        L = sum over i, t of token_weights_{i,t} * k(logps_{i,t} - ref_logps_{i,t})

    mean: as token_weights. estimator: k, one of measures.KL_ESTIMATORS, of each token.

    Its gradient is that of the next token's distribution alone: a token is not charged for the KL of the tokens after
    it, as it is with the KL in the rewards. Dr. GRPO and DAPO have no KL, which is --beta 0.
    """
    return (token_weights(mask, mean) * KL_ESTIMATORS[estimator](logps - ref_logps)).sum()

def clipped_value_loss(values, old_values, returns, clip):
    """
    Half the squared error of the values or of their clipped step, whichever is larger. Elementwise, (B, T) -> (B, T).

        L = max((V - R)^2, (old V + clip(V - old V, -eps, eps) - R)^2) / 2
        V = values,   R = returns,   eps = clip

    The PPO paper does not have this clipping; its authors' code, OpenAI baselines, does. clip has the unit of rewards.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2

def ppo_loss(logps, values, *, old_logps, old_values, advantages, returns, mask, clip, vf_coef, clip_high=None):
    """
    The loss of PPO on a minibatch: Schulman et al. 2017, arXiv:1707.06347, without its entropy bonus.

        ratio_t     = exp(logps_t - old_logps_t)
        policy_loss = mean over tokens of clipped_policy_loss(ratio_t, advantage_t, clip, clip_high)
        value_loss  = mean over tokens of clipped_value_loss(values_t, old_values_t, returns_t, clip)
        L           = policy_loss + vf_coef * value_loss

    All tensors (B, T). Only logps and values have a gradient. Returns (loss (), metrics to log), metrics without a
    gradient. Means are over the tokens of the batch:

        loss/policy, loss/value   the two losses, before vf_coef
        val/error                 mean squared error of the values, not clipped
        policy/ratio              mean ratio
        policy/clipfrac           share of ratios outside the bounds of the clip
        policy/approxkl           mean((logps - old_logps)^2) / 2: an estimate of KL(old policy || policy) in nats per
                                  token
    """
    logratios = logps - old_logps                                                                        # (B, T)
    ratio = logratios.exp()                                                                              # (B, T)
    policy_loss = masked_mean(clipped_policy_loss(ratio, advantages, clip, clip_high), mask)
    value_loss = masked_mean(clipped_value_loss(values, old_values, returns, clip), mask)
    loss = policy_loss + vf_coef * value_loss
    return loss, {"policy/clipfrac": masked_mean(clipfrac(ratio, clip, clip_high), mask),
                  "loss/policy": policy_loss.detach(), "loss/value": value_loss.detach(),
                  "val/error": masked_mean((values.detach() - returns) ** 2, mask),
                  "policy/ratio": masked_mean(ratio, mask).detach(),
                  "policy/approxkl": masked_mean(logratios.detach() ** 2, mask) / 2}

def rloo_loss(logps, *, old_logps, advantages, mask, clip, clip_high=None):
    """
    The loss of RLOO on a minibatch: Ahmadian et al. 2024, arXiv:2402.14740.

        ratio_i = exp(sum over t of (logps_{i,t} - old_logps_{i,t}))
        L       = mean over completions of clipped_policy_loss(ratio_i, advantage_i, clip, clip_high)

    logps, old_logps, mask (B, T); advantages (B,). Only logps gets a gradient: advantages are constants, also if they
    have a graph. Returns (loss (), metrics to log).

    The paper has -advantage_i * log policy(y_i | x) and one update per rollout. Here a rollout is used for several
    updates, so the ratio of the completion corrects for the older policy. At ratio 1 both have the same gradient.
    """
    logratios = logps - old_logps                                                                        # (B, T)
    ratio = logratios.sum(1).exp()                                                                       # (B,)
    loss = clipped_policy_loss(ratio, advantages.detach(), clip, clip_high).mean()
    return loss, {"policy/clipfrac": clipfrac(ratio, clip, clip_high).mean(),
                  "policy/ratio": ratio.detach().mean(),
                  "policy/approxkl": masked_mean(logratios.detach() ** 2, mask) / 2}

def grpo_loss(logps, *, old_logps, advantages, mask, clip, mean, clip_high=None):
    """
    The loss of GRPO, Dr. GRPO and DAPO on a minibatch, without its KL: arXiv:2402.03300, 2503.20783 and 2503.14476.

        ratio_{i,t} = exp(logps_{i,t} - old_logps_{i,t})
        L           = sum over i, t of token_weights_{i,t} * clipped_policy_loss(ratio_{i,t}, advantage_i, ...)

    logps, old_logps, mask (B, T); advantages (B,), the same for all tokens of a completion. mean: as token_weights.
    Only logps gets a gradient: advantages are constants, also if they have a graph. Returns (loss (), metrics to log).

    DAPO also samples prompts again whose completions all have one reward, and penalizes overlong completions. This
    is not done here: rewards of the toy world are real numbers, and --eos_penalty is for completions without an end.
    """
    logratios = logps - old_logps                                                                        # (B, T)
    ratio = logratios.exp()                                                                              # (B, T)
    losses = clipped_policy_loss(ratio, advantages[:, None].detach(), clip, clip_high)                   # (B, T)
    loss = (token_weights(mask, mean) * losses).sum()
    return loss, {"policy/clipfrac": masked_mean(clipfrac(ratio, clip, clip_high), mask),
                  "policy/ratio": masked_mean(ratio, mask).detach(),
                  "policy/approxkl": masked_mean(logratios.detach() ** 2, mask) / 2}
