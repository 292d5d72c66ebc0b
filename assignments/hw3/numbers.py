"""
The four numbers of hw3, of the exact world with the student's seed.

    python -m assignments.hw3.numbers --seed 17 --grade ../hw3-anna/numbers.json
"""
from assignments import seeded
from study import bandit

def numbers(seed):
    """name -> value, for bandit.world(seed=seed). The handout says what each name means."""
    ref, reward = bandit.world(seed=seed)
    weights = ref.exp()[:, :, None] * ref.exp()[:, None, :]
    best = bandit.rlhf_optimum(ref, reward, 1.0)
    smallest = bandit.expected_loss(best, ref, bandit.bradley_terry(reward), weights, "dpo", beta=1.0)
    return {"optimum_kl": bandit.kl(bandit.rlhf_optimum(ref, reward, 0.5), ref),
            "best_reward_1_nat": bandit.best_reward(ref, reward, 1.0),
            "smallest_dpo_loss": smallest.item(),
            "jsd_kl": bandit.kl(bandit.f_optimum(ref, reward, 0.5, "jsd"), ref)}

if __name__ == "__main__":
    seeded.main(numbers, __doc__)
