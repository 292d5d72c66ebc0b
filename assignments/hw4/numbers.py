"""
The six numbers of hw4, of the exact world and of arrays that are drawn with the student's seed.

    python -m assignments.hw4.numbers --seed 17 --grade ../hw4-anna/numbers.json
"""
import numpy as np

from assignments import seeded
from measures import KL_ESTIMATORS, best_of, bootstrap, wilson
from study import bandit, online

def estimator_numbers(policy, ref):
    """(the mean of k2 divided by the KL, the relative error of k3's gradient in the loss). policy, ref (X, A)."""
    k2_mean = (policy.exp() * KL_ESTIMATORS["k2"](policy - ref)).sum(1).mean().item()
    exact = online.kl_gradient(policy, ref)
    found = online.loss_gradient(policy, ref, KL_ESTIMATORS["k3"])
    return k2_mean / bandit.kl(policy, ref), ((found - exact).norm() / exact.norm()).item()

def judged_rate(policy, ref, reward):
    """The expected share of wins in both orders. The judge takes the better answer, in 30% of questions the first."""
    p = policy.exp()[:, :, None] * ref.exp()[:, None, :]                  # (X, A, A): the run's answer, the reference's
    better = (reward[:, :, None] > reward[:, None, :]).to(p.dtype)
    return 0.7 * (p * better).sum((1, 2)).mean().item()

def numbers(seed):
    """name -> value. The handout says what each name means."""
    ref, reward = bandit.world(seed=seed)
    policy = bandit.rlhf_optimum(ref, reward, 0.5)
    k2_share, k3_off = estimator_numbers(policy, ref)
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(0, 1, (5, 16)) + 2, rng.exponential(1, 40)
    return {"k2_share": k2_share, "k3_gradient_off": k3_off, "best_of_4": best_of(rewards)[4].mean().item(),
            "bootstrap_high": bootstrap(values)[2], "wilson_low": wilson(60 + seed % 97, 200)[1],
            "win_rate": judged_rate(policy, ref, reward)}

if __name__ == "__main__":
    seeded.main(numbers, __doc__)
