"""
The four numbers of hw3, which each student computes for a seed of their own, and their grading.

    python -m assignments.hw3.numbers --seed 17 --grade ../hw3-anna/numbers.json

It prints right or not right for each number and never its value. The tolerance is 0.1 percent.
"""
import argparse
import json
import math
from pathlib import Path

from study import bandit

TOLERANCE, BYTES = 1e-3, 1 << 16    # relative; of the file

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

def read(path):
    """The dict of a submitted file. Raises SystemExit with one line if it is none."""
    path = Path(path)
    if not path.is_file() or path.is_symlink() or path.stat().st_size > BYTES:
        raise SystemExit(f"--grade {path}: no such file, a link, or more than {BYTES >> 10} KB")
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise SystemExit(f"--grade {path}: not a JSON file") from None
    if not isinstance(found, dict):
        raise SystemExit(f'--grade {path}: it must hold {{"name": number, ...}}')
    return found

def is_right(found, want):
    """Whether a submitted value is a number within the tolerance."""
    return type(found) in (int, float) and abs(found) < 1e9 and math.isclose(found, want, rel_tol=TOLERANCE)

def grade(seed, found):
    """name -> whether it is right."""
    return {name: is_right(found.get(name), want) for name, want in numbers(seed).items()}

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, required=True, help="the student's seed")
    p.add_argument("--grade", required=True, help="the student's numbers.json")
    return p.parse_args(argv)

def main(argv=None):
    args = get_args(argv)
    graded = grade(args.seed, read(args.grade))
    for name, right in graded.items():
        print(f"{name:20} {'right' if right else 'not right'}")
    print(f"{sum(graded.values())} of {len(graded)} are right")

if __name__ == "__main__":
    main()
