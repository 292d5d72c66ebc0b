"""
The online methods of rlhf/ on the exact world, without sampling: their expected gradients, and where they end.

    optimum = group_optimum(ref, reward, "grpo", k=4, beta=0.1)    # ref, reward (X, A): X prompts with A answers each

group_loss is the expectation of the loss over all groups of k answers. This file has no command and writes nothing.
docs/rlhf.md has the results, tests/test_grpo.py checks them. Read first: bandit.py
"""
import torch

from rlhf.formulas import METHODS, group_advantages, grpo_loss, kl_loss

def group_loss(logits, ref, reward, algo, *, k, beta=0.0, estimator="k3", lens=None):
    """
    The expected loss of "grpo", "dr_grpo" or "dapo" over all A^k groups of k answers that the policy can draw: sum over
    prompts of sum over groups of P(group) * loss(group). Only its gradient in logits counts, not its value: P(group)
    has none, as samples have none. The policy is the old policy, so ratios are 1.

    logits, ref, reward (X, A) -> (). lens (A,): tokens of each answer (default: 1). The first token of an answer is
    its choice. The others are certain: their log-probs are 0.
    """
    X, A = ref.shape
    lens = torch.ones(A, dtype=torch.long) if lens is None else lens
    groups = torch.cartesian_prod(*[torch.arange(A)] * k)                     # (G, k), G = A^k
    masks = torch.arange(int(lens.max())) < lens[groups][..., None]           # (G, k, T)
    tokens = lambda table: table[:, groups][..., None] * (torch.arange(masks.shape[2]) == 0)    # (X, A) -> (X, G, k, T)
    policy = tokens(logits.log_softmax(1))                                    # (X, G, k, T)
    p_group = policy.detach().sum((2, 3)).exp()                               # (X, G)
    advantages = group_advantages(reward[:, groups].flatten(), k, std=METHODS[algo].std == "group").view(X, -1, k)

    def loss_of(logps, ref_logps, advantages, mask):    # of one group: (k, T), (k, T), (k,), (k, T) -> ()
        loss, _ = grpo_loss(logps, old_logps=logps.detach(), advantages=advantages, mask=mask, clip=0.2,
                            clip_high=0.2, mean=METHODS[algo].mean)
        return loss + beta * kl_loss(logps, ref_logps, mask, METHODS[algo].mean, estimator)

    of_groups = torch.vmap(loss_of)                                 # over the groups of a prompt
    of_prompts = torch.vmap(of_groups, in_dims=(0, 0, 0, None))     # over prompts, which have the same groups
    return (p_group * of_prompts(policy, tokens(ref), advantages, masks)).sum()

def policy_gradient(logits, scores):
    """
    The gradient (X, A) of REINFORCE in logits: sum over answers i of policy(i) * scores_i * grad log policy(i).
    logits (X, A): any numbers, policy = softmax(logits). scores (X, A): constants, also where they depend on the
    policy, as a KL penalty in the reward does.
    """
    p = logits.softmax(1)
    return p * (scores - (p * scores).sum(1, keepdim=True))

def loss_gradient(logits, ref, estimate):
    """
    The gradient (X, A) in logits of a KL estimate in the loss: sum over i of policy(i) * grad k(log-ratio of i).
    logits (X, A): any numbers, policy = softmax(logits). ref (X, A): log-probs.
    estimate: k, a function of log-ratios, such as those of measures.KL_ESTIMATORS.
    """
    logits = logits.detach().requires_grad_()
    logps = logits.log_softmax(1)
    return torch.autograd.grad((logps.detach().exp() * estimate(logps - ref)).sum(), logits)[0]

def kl_gradient(logits, ref):
    """
    The exact gradient (X, A) in logits of KL(policy || ref), summed over prompts, by differentiation.
    logits (X, A): any numbers, policy = softmax(logits). ref (X, A): log-probs.
    """
    logits = logits.detach().requires_grad_()
    logps = logits.log_softmax(1)
    return torch.autograd.grad((logps.exp() * (logps - ref)).sum(), logits)[0]

def climb(start, gradient, steps, lr):
    """
    The policy (X, A) after `steps` of natural gradient ascent: for logits of a table, the gradient divided by policy.
    gradient: function of logits (X, A) -> (X, A), in the direction to go. It need not be that of any objective.
    """
    logits = start.detach()
    for _ in range(steps):
        logits = (logits + lr * gradient(logits) / logits.exp()).log_softmax(1)
    return logits

def group_optimum(ref, reward, algo, *, steps=300, lr=0.3, **more):
    """The policy (X, A) at which the expected gradient of a group method is 0. more: flags of group_loss."""
    def gradient(logits):
        logits = logits.detach().requires_grad_()
        return -torch.autograd.grad(group_loss(logits, ref, reward, algo, **more), logits)[0]
    return climb(ref, gradient, steps, lr)
