"""
The four numbers of hw5, of seeded tensors and of the exact world with the student's seed.

    python -m assignments.hw5.numbers --seed 17 --grade ../hw5-anna/numbers.json
"""
import torch

from assignments import seeded
from rlhf.formulas import gae, group_advantages, grpo_loss
from study import bandit, online

def numbers(seed):
    """name -> value, for the student's seed. The handout says what each name means."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    rewards, values, old, steps, returns = draw(1, 6), draw(1, 6), draw(8, 5), draw(8, 5), draw(8)
    advantages = gae(rewards, values, torch.ones(1, 6, dtype=torch.bool), gamma=0.95, lam=0.9)

    # completions of 1, 2, 3, 4, 5, 1, 2 and 3 tokens, two prompts with four each
    mask = torch.arange(5) <= torch.arange(8)[:, None] % 5
    old = -old.abs() * mask
    logps = (old + 0.3 * steps * mask).requires_grad_()
    loss, _ = grpo_loss(logps, old_logps=old, advantages=group_advantages(returns, 4, std=True), mask=mask, clip=0.2,
                        clip_high=0.28, mean="completions")
    gradient, = torch.autograd.grad(loss, logps)

    ref, reward = bandit.world(seed=seed)
    nats = bandit.kl(online.group_optimum(ref, reward, "grpo", k=3, beta=0.5, estimator="k2"), ref)
    return {"gae_size": advantages.abs().sum().item(), "grpo_gradient": gradient.norm().item(),
            "grpo_kl": nats, "same_kl_beta": beta_of(ref, reward, nats)}

def beta_of(ref, reward, nats):
    """The beta whose RLHF optimum has a KL of `nats` to the reference, by bisection of its logarithm."""
    low, high = -7.0, 9.0
    for _ in range(100):
        middle = (low + high) / 2
        near = bandit.kl(bandit.rlhf_optimum(ref, reward, 10.0 ** middle), ref) <= nats
        low, high = (low, middle) if near else (middle, high)
    return 10.0 ** high

if __name__ == "__main__":
    seeded.main(numbers, __doc__)
