"""The study's verdicts and pictures, recomputed from artificial sweep.csv and curves.csv files with known answers."""
import csv
import math
import random
import statistics
import warnings

import matplotlib.colors
import numpy as np
import pytest

from losses import LOSSES
from study import claims, pictures, sweep, table
from test_sweep import results

T3 = 4.303    # Student's t for three seeds

def made(folder, values, curves=None):
    """
    Claims of a sweep {recipe: {measure: [one number per seed, None for a missing one]}} and of curves
    {(recipe, split, metric): [points of each seed]}. The folder gets the sweep's files.
    """
    rows, lines = [], []
    for recipe, found in values.items():
        for measure, xs in found.items():
            rows += [(recipe, seed, measure, x) for seed, x in enumerate(xs) if x is not None]
    for (recipe, split, metric), seeds in (curves or {}).items():
        for seed, points in enumerate(seeds):
            lines += [(recipe, seed, step, split, metric, x) for step, x in points]
    return results(folder, rows, lines)

def judged(folder):
    """{(claim, comparison): (mean, low, high, what the claim says, verdict)} from the claims.csv of a sweep."""
    claims.judge(folder)
    with open(folder / "claims.csv", newline="") as f:
        return {(r["claim"], r["what"]): (float(r["mean"]), float(r["low"]), float(r["high"]), r["says"], r["verdict"])
                for r in csv.DictReader(f)}

# ---------------------------------------------------------------------------------------------------------------------
# interval and verdict

@pytest.mark.parametrize("values, mean, half", [
    ([1, 3], 2, 12.71), ([0, 0, 2, 2], 1, 3.182 * (4 / 3) ** 0.5 / 2), ([5, 5, 5], 5, 0)])
def test_an_interval_by_hand(values, mean, half):
    """
    The standard deviation divides by n - 1. numpy's default divides by n, which makes three seeds look 18% too
    certain.
    """
    assert claims.interval(np.array(values, dtype=float)) == pytest.approx((mean, mean - half, mean + half))

def test_an_interval_of_missing_seeds():
    """One seed has no spread, so its interval is infinite. A missing seed is no seed: it narrows no interval."""
    assert claims.interval(np.array([0.3])) == claims.interval(np.array([math.nan, 0.3])) == (0.3, -math.inf, math.inf)
    assert claims.interval(np.array([0.3, math.nan, 0.2])) == claims.interval(np.array([0.3, 0.2]))
    assert math.isnan(claims.interval(np.array([]))[0]) and math.isnan(claims.interval(np.array([math.nan]))[0])

def test_students_t_is_scipys():
    """
    The table is by the number of seeds, one more than the degrees of freedom. Shifted by one it is still plausible.
    """
    stats = pytest.importorskip("scipy.stats")
    for n in range(2, 31):
        assert claims.T95[n] == pytest.approx(stats.t.ppf(0.975, n - 1), abs=6e-4 if n > 2 else 5e-3), n

@pytest.mark.parametrize("n", [9, 30, 31, 60])
def test_many_seeds_have_an_interval(n):
    """
    A sweep of hours must not end in a KeyError because it has more seeds than the table. The interval is never too
    narrow.
    """
    values = np.arange(n, dtype=float)
    mean, low, high = claims.interval(values)
    error = statistics.stdev(values) / n ** 0.5
    assert mean == (n - 1) / 2 and 1.96 * error < high - mean < (2.05 if n >= 30 else 2.31) * error

@pytest.mark.parametrize("low, high, says, limit, want", [
    (-2, -1, "<", 0, "holds"),
    (-2, 1, "<", 0, "cannot be told apart"),
    (1, 2, "<", 0, "does not hold"),
    (-2, 0, "<", 0, "cannot be told apart"),
    (0, 1, "<", 0, "does not hold"),
    (0, 0, "<", 0, "does not hold"),
    (1, 2, ">", 0, "holds"),
    (-2, 1, ">", 0, "cannot be told apart"),
    (-2, -1, ">", 0, "does not hold"),
    (0, 2, ">", 0, "cannot be told apart"),
    (-1, 0, ">", 0, "does not hold"),
    (0, 0, ">", 0, "does not hold"),
    (-0.03, -0.02, "<", -0.01, "holds"),
    (-0.03, 0, "<", -0.01, "cannot be told apart"),
    (0.6, 0.8, ">", 0.5, "holds"),
    (0.6, 0.8, ">", 0.9, "does not hold"),
    (-math.inf, math.inf, "<", 0, "cannot be told apart"),
    (-1, 1, "near", 2, "holds"),
    (-2, 2, "near", 2, "holds"),
    (-3, 1, "near", 2, "cannot be told apart"),
    (-1, 3, "near", 2, "cannot be told apart"),
    (-3, 3, "near", 2, "cannot be told apart"),
    (2.1, 3, "near", 2, "does not hold"),
    (-3, -2.1, "near", 2, "does not hold"),
    (-3, -2, "near", 2, "cannot be told apart"),
    (2, 3, "near", 2, "cannot be told apart")])
def test_verdicts_at_and_beside_their_limits(low, high, says, limit, want):
    """
    < and > are strict, so that a difference of exactly 0 in all seeds holds for neither. "within" includes both
    limits.
    """
    assert claims.verdict(low, high, says, limit) == want

# ---------------------------------------------------------------------------------------------------------------------
# the kinds of comparison, by hand

def test_a_difference_is_taken_seed_by_seed(tmp_path):
    """The seeds share an SFT policy. Unpaired, their common part would hide a difference that every seed shows."""
    found = judged(made(tmp_path, {
        "sft": {"entropy": [1.0, 2.0, 3.0]},
        "dpo beta=0.1": {"entropy": [0.9, 1.8, 2.9]},
        "hinge beta=0.2": {"entropy": [1.1, 1.9, 3.3]}}))
    mean, low, high, says, verdict = found["1", "entropy, dpo beta=0.1 - SFT"]    # -0.1, -0.2, -0.1
    half = T3 * (1 / 300) ** 0.5 / 3 ** 0.5
    assert (mean, low, high) == pytest.approx((-0.4 / 3, -0.4 / 3 - half, -0.4 / 3 + half), rel=1e-3)
    assert low < high < 0.011 and (says, verdict) == ("< 0", "cannot be told apart")
    assert found["1", "entropy, hinge beta=0.2 - SFT"][0] == pytest.approx(0.1, rel=1e-3)

def test_a_difference_is_over_the_seeds_that_both_have(tmp_path):
    """
    Some methods have five seeds and others three. Means over each recipe's own seeds would compare one seed's pipeline
    with another's. The number of seeds is shown, so that a run that failed can be seen.
    """
    values = {"sft": {"entropy": [1.0, 2.0, 3.0], "distinct_2": [1.0, 1.0, 1.0], "pooled_25": [1.0, None, None]},
              "dpo beta=0.1": {"entropy": [0.9, None, 2.8], "distinct_2": [0.5, 0.5, 0.4],
                               "pooled_25": [None, 1.0, None]}}
    found = judged(made(tmp_path, values))
    assert found["1", "entropy, dpo beta=0.1 - SFT"][0] == pytest.approx(-0.15)
    assert found["1", "distinct_2, dpo beta=0.1 - SFT"][0] == pytest.approx(-1.6 / 3, rel=1e-3)
    assert len(found) == 2    # no seed has both values of pooled_25
    with open(tmp_path / "claims.csv", newline="") as f:
        assert [row["seeds"] for row in csv.DictReader(f)] == ["2", "3"]

def test_a_rank_correlation_needs_all_of_its_values(tmp_path):
    """A NaN that is ranked like a number would give a seed without all runs a correlation."""
    values = {f"ipo beta={b}": {"reward": [x, x, x]} for b, x in (("0.1", 0.9), ("0.3", 0.8), ("0.5", 0.7), ("1", 0.6))}
    values["ipo beta=0.3"]["reward"] = [0.95, 0.8, None]
    found = judged(made(tmp_path, values))
    assert found["3", "rank correlation of reward with beta"][0] == pytest.approx(-0.9)    # -0.8 and -1

def test_a_frontier_is_read_off_over_the_root_of_the_kl(tmp_path):
    """
    On a line over the KL itself, a concave frontier is read too low. Points must be ordered by KL, not as in the
    file.
    """
    values = {"sft": {"kl": [0.0] * 3, "reward": [0.5] * 3, "entropy": [1.0] * 3},
              "dpo beta=1": {"kl": [4.0, 9.0, 4.0], "reward": [0.9, 0.9, 0.8], "entropy": [0.6] * 3},
              "dpo beta=2": {"kl": [1.0, 1.0, 0.25], "reward": [0.7, 0.6, 0.6], "entropy": [0.8] * 3}}
    s = claims.Sweep(made(tmp_path, values))
    # by seed, at root 1.5: between roots 1 and 2, 1 and 3, 0.5 and 2
    assert s.at("dpo", 2.25) == pytest.approx([0.8, 0.675, 0.6 + 0.2 * 2 / 3])
    assert s.at("dpo", 2.25, "entropy") == pytest.approx([0.7, 0.75, 0.8 - 0.2 * 2 / 3])
    assert s.at("dpo", 4) == pytest.approx([0.9, 0.75, 0.8])
    assert np.isnan(s.at("dpo", 4.01)).tolist() == [True, False, True]
    assert np.isnan(s.at("no_such_method", 1)).all()

def test_a_setting_is_compared_at_its_own_kl(tmp_path):
    """
    Between the settings of the other method, seed by seed. From the SFT policy, at 0 nats, a line to the first setting
    would lie far below the frontier, so there is no comparison below it.
    """
    values = {"sft": {"kl": [0.0] * 4, "reward": [0.5] * 4},
              "dpo beta=1": {"kl": [1.0] * 4, "reward": [0.8] * 4},
              "dpo beta=0.1": {"kl": [4.0] * 4, "reward": [0.9] * 4},
              "rloo beta=1": {"kl": [2.25, 1.0, 0.9, 4.1], "reward": [0.95, 0.7, 0.9, 0.9]}}
    s = claims.Sweep(made(tmp_path, values))
    assert s.beside("rloo beta=1", "dpo")[:2] == pytest.approx([0.1, -0.1])
    assert np.isnan(s.beside("rloo beta=1", "dpo")[2:]).all() and s.at("dpo", 0.25)[0] == pytest.approx(0.65)

def test_a_point_that_was_not_measured_is_no_point(tmp_path):
    """A missing KL read as 0, or a missing reward, would break the line between the neighboring points."""
    values = {"sft": {"kl": [0.0, 0.0], "reward": [0.5, 0.5]},
              "dpo beta=1": {"kl": [None, 1.0], "reward": [None, 0.7]},
              "dpo beta=2": {"kl": [2.25, 2.25], "reward": [None, 0.8]},
              "dpo beta=3": {"kl": [4.0, 4.0], "reward": [0.9, 0.9]}}
    s = claims.Sweep(made(tmp_path, values))
    assert s.at("dpo", 1) == pytest.approx([0.7, 0.7])
    assert s.at("dpo", 2.25) == pytest.approx([0.8, 0.8])
    assert np.isnan(s.at("dpo", 5)).all()

def test_a_rank_correlation_and_its_interval_by_hand(tmp_path):
    """
    Spearman's correlation is in [-1, 1], which Student's interval ignores. Two seeds fall throughout, and one has two
    neighbors swapped.
    """
    rewards = {"0.1": [0.9, 0.9, 0.8], "0.3": [0.8, 0.7, 0.9], "0.5": [0.7, 0.6, 0.7], "1": [0.6, 0.5, 0.6]}
    found = judged(made(tmp_path, {f"ipo beta={b}": {"reward": xs, "entropy": xs[::-1]} for b, xs in rewards.items()}))
    mean = -2.8 / 3    # -1, -1 and 6 * 2 / (4 * 15) - 1 = -0.8
    half = T3 * statistics.stdev([-1, -1, -0.8]) / 3 ** 0.5
    low, high = -1, pytest.approx(mean + half, rel=1e-3)
    want = (pytest.approx(mean, rel=1e-3), low, high, "< 0", "holds")
    assert found["3", "rank correlation of reward with beta"] == want
    assert found["3", "rank correlation of entropy with beta"][-2:] == ("> 0", "does not hold")
    assert mean - half < -1
    assert found["3", "reward, beta 1 - beta 0.1"][0] == pytest.approx((-0.3 - 0.4 - 0.2) / 3, rel=1e-3)

def test_the_rank_correlation_of_diversity_is_clipped_above(tmp_path):
    """Between 4 and 25 samples. The correlation is over the policies of a seed, not over the seeds of a policy."""
    found = judged(made(tmp_path, {
        "sft": {"pooled_4": [1, 1, 1], "pooled_25": [10, 10, 20]},
        "dpo beta=0.1": {"pooled_4": [2, 2, 2], "pooled_25": [20, 20, 10]},
        "ipo beta=0.1": {"pooled_4": [3, 3, 3], "pooled_25": [30, 30, 30]},
        "slic delta=1.0": {"pooled_4": [4, 4, 4], "pooled_25": [40, 40, 40]}}))
    mean, low, high, says, verdict = found["7", "rank correlation of pooled entropy at 4 and at 25, 4 policies"]
    assert mean == pytest.approx(2.8 / 3, rel=1e-3) and high == 1 and low < 0.9
    assert (says, verdict) == ("> 0.9", "cannot be told apart")

def test_the_label_gap_by_hand(tmp_path):
    """
    Reward on positive minus negative prompts. A method's gap minus the SFT policy's is below 0 if its gap is
    smaller.
    """
    gaps = {"sft": ([0.6, 0.6, 0.6], [0.5, 0.4, 0.5]), "dpo beta=0.1": ([0.95, 0.95, 0.95], [0.9, 0.85, 0.9])}
    values = {r: {"reward_positive": p, "reward_negative": n, "pooled_25": [1, 1, 1]} for r, (p, n) in gaps.items()}
    found = judged(made(tmp_path, values))
    assert found["6", "reward of positive - negative prompts, SFT"][0] == pytest.approx(0.4 / 3, rel=1e-3)
    mean, low, high, says, verdict = found["6", "the same, dpo beta=0.1 - SFT"]    # -0.05, -0.1, -0.05
    assert mean == pytest.approx(-0.2 / 3, rel=1e-3) and says == "< 0"
    assert ("6", "the same, sft - SFT") not in found

def test_a_curve_is_its_end_less_its_start_on_validation(tmp_path):
    """
    The highest point would be another number, and so would the training curve, which has the same name in the log.
    """
    points = lambda *ys: [(20 * i, y) for i, y in enumerate(ys)]
    curves = {
        ("dpo beta=0.1", "train", "rewards/chosen"): [points(0, 9, 9)] * 3,
        ("dpo beta=0.1", "val", "rewards/chosen"): [points(0.5, 3, -1), points(0, 3, -2), points(0, 3, -1.5)],
        ("dpo beta=0.1", "val", "rewards/accuracies"): [points(0.5, 0.9, 0.8), points(0.5, 0.9, 0.8), points()]}
    found = judged(made(tmp_path, {"sft": {"kl": [0, 0, 0]}}, curves))
    mean, low, high, says, verdict = found["8", "rewards/chosen, dpo beta=0.1, end - start"]
    assert mean == pytest.approx(-5 / 3, rel=1e-3) and (says, verdict) == ("< 0", "holds")
    assert found["8", "rewards/accuracies, dpo beta=0.1, end - start"][0] == pytest.approx(0.3)    # of two seeds

def along(name, reward, kl, losses, proxy=None, seeds=3):
    """
    (values, curves) of a run at steps 0, 40, 80, ..., equal in all seeds. Step 0 is the SFT policy, with the lowest
    loss of all.
    """
    measures = {"reward": reward, "kl": kl}
    values = {f"{name} step-0": {"reward": [0.5] * seeds, "kl": [0] * seeds}}
    if proxy:
        measures["proxy"] = proxy
        values[f"{name} step-0"]["proxy"] = [-1] * seeds
    for i in range(len(reward)):
        values[f"{name} step-{40 * i + 40}"] = {m: [xs[i]] * seeds for m, xs in measures.items()}
    points = [(40 * i, x) for i, x in enumerate((min(losses) - 1, *losses))]
    return values, {(name, "val", "loss"): [points] * seeds}

def test_stopping_by_hand(tmp_path):
    """
    The loss is lowest at 80, the gain per root of KL highest at 40, the reward highest at 120. Step 0 has no KL and no
    gain.
    """
    values, curves = along("along_dpo", [0.6, 0.65, 0.7], [0.04, 0.25, 1.0], [0.6, 0.5, 0.7])    # gains 0.5, 0.3, 0.2
    found = judged(made(tmp_path, values | {"sft": {"reward": [0.5] * 3}}, curves))
    stop = {}
    for (claim, what), row in found.items():
        if claim == "9":
            stop[what.split(",")[0]] = (*(round(x, 4) for x in row[:3]), *row[3:])
    assert stop == {"step of the lowest loss - of the best gain per root of KL": (40, 40, 40, "within 60", "holds"),
                    "gain per root of KL there": (-0.4, -0.4, -0.4, "within 0.1", "does not hold"),
                    "reward there - the highest of the run": (-0.05, -0.05, -0.05, "within 0.03", "does not hold"),
                    "KL there - at the best gain per root of KL": (0.21, 0.21, 0.21, "", "")}

def test_stopping_passes_over_a_step_that_was_not_measured(tmp_path):
    """To Python's max, a NaN that comes first is the largest value. The best gain would be there."""
    values, curves = along("along_ipo", [0.9, 0.65, 0.7], [0.04, 0.25, 1.0], [0.4, 0.5, 0.7])
    values["along_ipo step-40"] = {"reward": [None, 0.6, 0.6], "kl": [None, 0.04, 0.04]}
    found = judged(made(tmp_path, values | {"sft": {"reward": [0.5] * 3}}, curves))
    step = found["9", "step of the lowest loss - of the best gain per root of KL, along_ipo"]
    assert step[:3] == (0, 0, 0)    # 80 and 80, 40 and 40, 40 and 40

def test_overshoot_by_hand(tmp_path):
    """
    The true reward where the learned one is highest, minus the highest true reward. At the lowest learned reward it
    would be 0.1 off here.
    """
    values = along("ppo beta=0.5", [0.7, 0.6, 0.8], [1, 2, 3], [1, 1, 1], [1.0, 3.0, 2.0])[0]
    values |= along("rloo beta=0.5", [0.7, 0.8, 0.6], [1, 2, 3], [1, 1, 1], [1.0, 3.0, 2.0])[0]
    values |= along("rloo beta=1", [0.7, 0.8, 0.6], [1, 2, 3], [1, 1, 1])[0]    # no learned reward
    values |= {name: {"kl": [1] * 3, "reward": [0.6] * 3} for name in ("ppo beta=0.5", "rloo beta=0.5", "rloo beta=1")}
    what = "true reward where the learned one is highest - its highest, "
    rows = judged(made(tmp_path, values))
    found = {w.removeprefix(what): row for (claim, w), row in rows.items() if claim == "14"}
    assert found == {"ppo beta=0.5": (-0.2, -0.2, -0.2, "< -0.01", "holds"),
                     "rloo beta=0.5": (0, 0, 0, "< -0.01", "does not hold")}

def test_best_of_n_is_a_frontier_like_any_other(tmp_path):
    """
    dpo - best_of at 1 nat. Best of n has a KL of log n - (n - 1) / n nats, and is measured at one temperature only.
    """
    values = {"sft": {"kl": [0] * 3, "reward": [0.5] * 3},
              "best_of n=1": {"kl": [0] * 3, "reward": [0.5] * 3},
              "best_of n=64": {"kl": [4.0] * 3, "reward": [0.9] * 3},
              "dpo beta=0.1": {"kl": [2.25] * 3, "reward": [0.8, 0.83, 0.86]},
              "dpo beta=0.1 T=0.5": {"kl": [1.0] * 3, "reward": [0.1] * 3}}
    found = judged(made(tmp_path, values))
    assert found["11", "reward at 1 nats, dpo - best_of"][0] == pytest.approx((0 + 0.02 + 0.04) / 3, rel=1e-3)
    assert found["11", "reward at 1 nats, dpo - best_of"][3:] == ("> 0", "cannot be told apart")

def test_the_grid_of_epsilon_is_in_its_order(tmp_path):
    """From 1e-8 upwards the KL falls. The two ends of the grid are compared."""
    grid = {"1e-8": [9.0, 8.0, 7.0], "1e-5": [6.0, 6.0, 6.0], "1e-4": [5.0, 5.0, 5.0], "1e-3": [1.0, 2.0, 3.0]}
    found = judged(made(tmp_path, {f"epsilon adam_epsilon={e}": {"kl": xs} for e, xs in grid.items()}))
    assert found["12", "rank correlation of KL with epsilon"] == (-1, -1, -1, "< 0", "holds")
    half = T3 * statistics.stdev([8, 6, 4]) / 3 ** 0.5
    low, high = pytest.approx(6 - half, rel=1e-3), pytest.approx(6 + half, rel=1e-3)
    assert found["12", "kl, 1e-8 - 1e-3"] == (6, low, high, "", "")

def test_the_gap_at_which_a_loss_stops_orders_the_settings(tmp_path):
    """
    The gap is 1 / (2 beta) for ipo, 1 / beta for hinge and log(0.85 / 0.15) / beta for cdpo: from 0.5 to 57.8 nats.
    """
    order = ("ipo beta=1", "ipo beta=0.5", "hinge beta=1", "ipo beta=0.3", "hinge beta=0.5", "ipo beta=0.1",
             "hinge beta=0.2", "cdpo beta=0.3", "cdpo beta=0.1", "hinge beta=0.05", "cdpo beta=0.03")
    values = {recipe: {"kl": [i, i, i], "reward": [-i, -i, i]} for i, recipe in enumerate(order)}
    found = judged(made(tmp_path, values))
    assert found["10", "rank correlation of kl with that gap, 11 settings"] == (1, 1, 1, "> 0.5", "holds")
    assert found["10", "rank correlation of reward with that gap, 11 settings"][0] == pytest.approx(-1 / 3, rel=1e-3)

# ---------------------------------------------------------------------------------------------------------------------
# every comparison, computed again in a slow way

MEASURES = ("reward", "kl", "entropy", "length", "proxy", "pooled_4", "pooled_25", "distinct_2", "reward_positive",
            "reward_negative", "win", "trainable", "whole")
CURVES = ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected",
          "rewards/margins", "grad_norm")

def random_sweep(folder, n_seeds=3):
    """
    Random numbers for every recipe, with a large part that is common to all recipes. Returns {(recipe, measure): [one
    number per seed]} and the curves.
    """
    rng, values, curves = random.Random(1), {}, {}
    shared = {m: [rng.uniform(0, 3) for _ in range(n_seeds)] for m in MEASURES}
    names = [*(sweep.RECIPES | sweep.SECOND), *(f"best_of n={n}" for n in (1, 2, 64))]
    names += [f"{r} T={t}" for r in ("sft", *sweep.MAIN) for t in (0.5, 0)]
    names += [f"{r} step-{k}" for r in sweep.RECIPES if r.startswith(("ppo ", "rloo ", "along")) for k in (40, 80, 120)]
    far = set()    # methods that have a point beyond all the KLs of the comparisons
    for r in names:
        measured = [m for m in MEASURES if not m.startswith("pooled") or r in (*sweep.MAIN, "sft")]
        values[r] = {m: [1 + x + rng.random() for x in shared[m]] for m in measured}
        method = r.split()[0]
        if r == "sft":
            values[r]["kl"] = [0.0] * n_seeds
        else:
            values[r]["kl"] = [rng.uniform(0.1 if method in far else 3, 6) for _ in range(n_seeds)]
        far.add(method)
        values[r] = {m: [float(f"{x:.5g}") for x in xs] for m, xs in values[r].items()}
    for r in sweep.CURVES:
        for split in ("val", "train"):
            for metric in CURVES:
                curves[r, split, metric] = [[(k, rng.random()) for k in (0, 40, 80, 120)] for _ in range(n_seeds)]
    made(folder, values, curves)
    return {(r, m): xs for r, found in values.items() for m, xs in found.items()}, curves

def settings(v, method):
    """Recipes of a method at temperature 1 and at the end of training."""
    return [r for r, m in v if m == "kl" and r.split()[0] == method and " T=" not in r and " step-" not in r]

def slow_at(v, method, nats, measure="reward"):
    """One number per seed, from the two points whose KLs enclose nats."""
    out, names = [], ["sft", *settings(v, method)]
    for seed in range(len(v["sft", "kl"])):
        points = sorted((math.sqrt(v[r, "kl"][seed]), v[r, measure][seed]) for r in names if (r, measure) in v)
        pairs = zip(points, points[1:])
        (x0, y0), (x1, y1) = next((a, b) for a, b in pairs if a[0] <= math.sqrt(nats) <= b[0] and b[0] > 0)
        out.append(y0 + (y1 - y0) * (math.sqrt(nats) - x0) / (x1 - x0))
    return out

def slow_beside(v, recipe, method, measure="reward"):
    """One number per seed: a recipe's value minus that of a method between the two settings that enclose its KL."""
    out = []
    for seed, kl in enumerate(v[recipe, "kl"]):
        points = sorted((math.sqrt(v[r, "kl"][seed]), v[r, measure][seed]) for r in settings(v, method))
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            if x0 <= math.sqrt(kl) <= x1:
                out.append(v[recipe, measure][seed] - y0 - (y1 - y0) * (math.sqrt(kl) - x0) / (x1 - x0))
    return out

def slow_ranks(columns):
    """Spearman's correlation of a list of values (without ties) with their order, for each seed."""
    out = []
    for column in zip(*columns):
        n, rank = len(column), {x: i for i, x in enumerate(sorted(column))}
        out.append(1 - 6 * sum((i - rank[x]) ** 2 for i, x in enumerate(column)) / (n * (n * n - 1)))
    return out

def minus(a, b):
    return [x - y for x, y in zip(a, b)]

def differences():
    """
    (claim, name in the table, what the claim says, recipe, recipe to subtract, measures) of comparisons of two
    recipes.
    """
    dpo, hinge = "dpo beta=0.1", "hinge beta=0.2"
    yield "1", "{}, dpo beta=0.1 - SFT", "< 0", dpo, "sft", ("entropy", "pooled_25", "distinct_2")
    yield "1", "{}, hinge beta=0.2 - SFT", "< 0", hinge, "sft", ("entropy", "pooled_25", "distinct_2")
    yield "3", "{}, beta 1 - beta 0.1", "> 0", "ipo beta=1", "ipo beta=0.1", ("entropy",)
    yield "3", "{}, beta 1 - beta 0.1", "< 0", "ipo beta=1", "ipo beta=0.1", ("reward",)
    yield "4", "{}, cdpo - dpo at beta 0.1", "> 0", "cdpo beta=0.1", dpo, ("entropy",)
    yield "4", "{}, cdpo - dpo at beta 0.1", "within 0.03", "cdpo beta=0.1", dpo, ("reward",)
    yield "4", "{}, dpo with noise - without", "< 0", "noisy_dpo", dpo, ("reward",)
    for other in ("cdpo", "robust", "ipo"):
        yield "4", "{} with noise, " + f"{other} - dpo", "> 0", f"noisy_{other}", "noisy_dpo", ("reward",)
        yield "4", "KL with noise, " + f"{other} - dpo", "", f"noisy_{other}", "noisy_dpo", ("kl",)
    for up, flat, what in (("dpo_up", "dpo_mean", "DPO 0 to 1 - DPO 0.5"),
                           ("ipo_down", "ipo_mean", "IPO 1 to 0.01 - IPO 0.505")):
        yield "5", "{}, " + what, "> 0", up, flat, ("reward",)
        yield "5", "{}, " + what, "", up, flat, ("kl", "entropy")
    yield "5", "{}, DPO 0 to 1 - IPO 1 to 0.01", "", "dpo_up", "ipo_down", ("reward", "kl", "entropy")
    small, large = "epsilon adam_epsilon=1e-8", "epsilon adam_epsilon=1e-3"
    yield "12", "{}, 1e-8 - 1e-3", "", small, large, ("kl", "reward", "length")

def slow_comparisons(v, curves):
    """{(claim, comparison): (one number per seed, what the claim says)} of all claims except 9, 10 and 14."""
    found = {}
    for claim, what, says, a, b, ms in differences():
        found |= {(claim, what.format(m)): (minus(v[a, m], v[b, m]), says) for m in ms}
    for measure, limit in (("reward", 0.03), ("entropy", 0.05)):
        difference = minus(slow_at(v, "hinge", 1.8, measure), slow_at(v, "dpo", 1.8, measure))
        found["1", f"{measure} at 1.8 nats, hinge - dpo"] = difference, f"within {limit}"
    line = ("dpo", "jsd", "alpha0.3", "alpha0.5", "alpha0.7", "forward_kl")
    for measure, says in (("reward", "< 0"), ("entropy", "> 0")):
        for beta in (0.1, 0.3, 1):
            names = [f"{m} beta={beta}" for m in line if beta != 0.1 or m not in ("alpha0.3", "alpha0.7")]
            at_beta = slow_ranks([v[r, measure] for r in names])
            found["2", f"rank correlation of {measure} with the order, beta {beta}"] = at_beta, says
        at = slow_ranks([slow_at(v, m, 0.9, measure) for m in line])
        found["2", f"rank correlation of {measure} with the order, at 0.9 nats"] = at, says
        ipo = slow_ranks([v[f"ipo beta={b}", measure] for b in (0.1, 0.3, 0.5, 1)])
        found["3", f"rank correlation of {measure} with beta"] = ipo, {"reward": "< 0", "entropy": "> 0"}[measure]
    gap = {r: minus(v[r, "reward_positive"], v[r, "reward_negative"]) for r in ("sft", *sweep.MAIN)}
    found["6", "reward of positive - negative prompts, SFT"] = gap["sft"], "> 0"
    found |= {("6", f"the same, {r} - SFT"): (minus(gap[r], gap["sft"]), "< 0") for r in sweep.MAIN}
    main = ["sft", *sweep.MAIN]
    pooled = []
    for seed in range(3):
        order = sorted(main, key=lambda r, seed=seed: v[r, "pooled_4"][seed])
        pooled += slow_ranks([[v[r, "pooled_25"][seed]] for r in order])
    found["7", f"rank correlation of pooled entropy at 4 and at 25, {len(main)} policies"] = pooled, "> 0.9"
    for r in ("dpo beta=0.1", "along_dpo"):
        for metric, says in (("rewards/chosen", "< 0"), ("rewards/rejected", "< 0"), ("rewards/accuracies", "> 0")):
            found["8", f"{metric}, {r}, end - start"] = [c[-1][1] - c[0][1] for c in curves[r, "val", metric]], says
    others = {"best_of": (1, 1.8), "preferred_ft": (0.2,), "unlikelihood": (0.2,), "slic": (1.8,), "ipo": (1,),
              "cdpo": (1.5,)}
    for other, at in others.items():
        for nats in at:
            difference = minus(slow_at(v, "dpo", nats), slow_at(v, other, nats))
            found["11", f"reward at {nats} nats, dpo - {other}"] = difference, "" if other in ("ipo", "cdpo") else "> 0"
    grid = [f"epsilon adam_epsilon={e}" for e in ("1e-8", "1e-5", "1e-4", "1e-3")]
    found["12", "rank correlation of KL with epsilon"] = slow_ranks([v[r, "kl"] for r in grid]), "< 0"
    found["12", "rank correlation of reward with epsilon"] = slow_ranks([v[r, "reward"] for r in grid]), ""
    for other in ("ppo", "rloo", "ppo_gt", "rloo_gt"):
        for nats in (1, 1.5, 1.9, 2.4):
            difference = minus(slow_at(v, "dpo", nats), slow_at(v, other, nats))
            found["13", f"reward at {nats} nats, dpo - {other}"] = difference, "> 0"
    for r in ("ppo beta=1", "ppo beta=0.5", "rloo beta=1", "rloo beta=0.5", "grpo beta=0.5", "grpo beta=0.2"):
        found["15", f"reward at its KL, {r} - dpo"] = slow_beside(v, r, "dpo"), "> 0"
    for r in ("grpo beta=0.5", "grpo beta=0.2", "dr_grpo beta=0.5", "dapo beta=0.2", "grpo_kr beta=0.5",
              "dr_grpo_kr beta=0.5"):
        found["16", f"reward at its KL, {r} - rloo"] = slow_beside(v, r, "rloo"), "> 0"
    a, b = "grpo_kr beta=0.5", "dr_grpo_kr beta=0.5"
    gaps = (minus(v[r, "reward_positive"], v[r, "reward_negative"]) for r in (a, b))
    found["17", "reward of positive - negative prompts, grpo_kr - dr_grpo_kr"] = minus(*gaps), "> 0"
    found |= {("17", f"{m}, grpo_kr - dr_grpo_kr"): (minus(v[a, m], v[b, m]), "") for m in ("reward", "kl")}
    for r in ("rounds_dpo beta=3", "rounds_dpo beta=1", "rounds_dpo beta=0.3", "sync_dpo beta=3", "sync_dpo beta=1",
              "rounds_ipo beta=0.1"):
        found["18", f"reward at its KL, {r} - dpo"] = slow_beside(v, r, "dpo"), "> 0"
        found["18", f"whole sentences at its KL, {r} - dpo"] = slow_beside(v, r, "dpo", "whole"), ""
    for r in ("default rdpo", "rdpo alpha=0.1"):
        found["19", f"reward at its KL, {r} - dpo"] = slow_beside(v, r, "dpo"), "within 0.03"
        for measure, says in (("length", "< 0"), ("kl", "")):
            found["19", f"{measure}, {r} - dpo"] = minus(v[r, measure], v["dpo beta=0.1", measure]), says
    return found

@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """(folder, values, curves) of a random sweep. Tests only read it."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, *random_sweep(folder)

def test_every_comparison_by_a_slow_way(drawn):
    """Recipes, measures, direction, claim number and limit of each row of claims.csv, on numbers that all differ."""
    folder, v, curves = drawn
    found, want = judged(folder), {k: x for k, x in slow_comparisons(v, curves).items() if x[0]}
    assert sum(len(values) < 3 for values, _ in want.values()) < 15    # KLs that no two settings enclose
    assert {k for k in found if k[0] not in ("9", "10", "14")} == want.keys()    # those have tests of their own
    assert sum(k[0] == "9" for k in found) == 8 and sum(k[0] == "14" for k in found) == 9
    for key, (values, says) in want.items():
        mean, n = statistics.fmean(values), len(values)
        half = {2: 12.71, 3: T3}[n] * statistics.stdev(values) / n ** 0.5 if n > 1 else math.inf
        low, high = mean - half, mean + half
        if "rank correlation" in key[1]:
            low, high = max(-1, low), min(1, high)
        assert found[key][:3] == pytest.approx((mean, low, high), rel=2e-3, abs=2e-3), key
        assert found[key][3] == says, key
        sign, limit = says.split() if says else ("", 0)
        inside = {"<": high < float(limit), ">": low > float(limit), "within": max(abs(low), abs(high)) <= float(limit)}
        outside = {"<": low >= float(limit), ">": high <= float(limit),
                   "within": high < -float(limit) or low > float(limit)}
        verdict = "holds" if inside.get(sign) else "does not hold" if outside.get(sign) else "cannot be told apart"
        assert found[key][4] == (verdict if says else ""), key

@pytest.mark.parametrize("verdicts, want", [
    (["holds", "holds"], "holds"),
    (["holds", "cannot be told apart"], "cannot be told apart"),
    (["cannot be told apart", "does not hold", "holds"], "does not hold"),
    (["does not hold", "cannot be told apart"], "does not hold"),
    (["holds", ""], "holds"),
    (["", ""], "not measured")])
def test_a_claims_whole_verdict(tmp_path, verdicts, want):
    """One comparison that does not hold decides, wherever it is. Comparisons without a limit decide nothing."""
    lines = [f"7,w{i},3,1,0.5,1.5,{'> 0' if v else ''},{v}" for i, v in enumerate(verdicts)]
    lines.append("8,other,3,-1,-2,-0.5,> 0,does not hold")
    (tmp_path / "claims.csv").write_text("\n".join(["claim,what,seeds,mean,low,high,says,verdict", *lines]))
    part = next(part for part in table.claims_table(tmp_path).split("\n\n**") if "w1" in part)
    sentence = claims.SENTENCES.get(want, "The claim was not measured.")
    assert f"7. {claims.CLAIMS['7']}.** {sentence}\n" in part and part.count("**") <= 2
    assert "| w1 | 3 | 1 | 0.5 to 1.5 |" in part and "other" not in part
    head = ["| compared | seeds | mean | 95% interval | the claim says | verdict |", "|---|---|---|---|---|---|"]
    assert part.split("\n")[2:4] == head

def test_recipes_at_other_temperatures_are_not_among_those_measured(tmp_path):
    """Colder samples of a policy are less diverse, and would count as one more method, with low diversity."""
    made(tmp_path, {"sft": {"pooled_25": [1, 1]}, "dpo beta=0.1": {"pooled_25": [2, None]},
                    "dpo T=0.5": {"pooled_25": [3, 3]}, "ipo beta=0.1": {"reward": [1, 1]}})
    assert claims.Sweep(tmp_path).recipes_with("pooled_25") == ["sft", "dpo beta=0.1"]

# ---------------------------------------------------------------------------------------------------------------------
# the pictures

def bars_of(container):
    """
    {(x, y): (left, right, down, up)}: the points of an errorbar with both kinds of bars, and the ends of the bars.
    """
    line, _, bars = container.lines
    ends = [[np.array(segment)[:, axis] for segment in part.get_segments()] for axis, part in enumerate(bars)]
    return {xy: (*ends[0][i], *ends[1][i]) for i, xy in enumerate(zip(*map(list, line.get_data())))}

def check_trace(ax, v, method, x, y):
    """
    Checks that an errorbar with the method's name and color has one point per recipe: means over seeds, and bars
    from the lowest to the highest seed.
    """
    [container] = [c for c in ax.containers if c.get_label() == pictures.name_of(method)]
    names = sorted((r for r in settings(v, method) if (r, y) in v), key=lambda r: statistics.fmean(v[r, x]))
    points = bars_of(container)
    assert len(points) == len(names) > 0 and container.lines[0].get_color() == pictures.COLORS[method]
    for name, (xy, ends) in zip(names, points.items()):
        assert xy == pytest.approx((statistics.fmean(v[name, x]), statistics.fmean(v[name, y]))), name
        assert ends == pytest.approx((min(v[name, x]), max(v[name, x]), min(v[name, y]), max(v[name, y]))), name

def labelled_line(ax, label):
    [line] = [li for li in ax.get_lines() if li.get_label() == label]
    return line.get_data()

def slow_envelope(points):
    """
    Corners of the concave hull over the root of the KL. From the first point, follow the steepest line to the next.
    """
    top = max(points, key=lambda p: (p[1], -p[0]))
    corners = [max((p for p in points if p[0] == points[0][0]), key=lambda p: p[1])]
    while corners[-1] != top:
        at = corners[-1]
        later = [p for p in points if p[0] > at[0]]
        corners.append(max(later, key=lambda p: ((p[1] - at[1]) / (p[0] ** 0.5 - at[0] ** 0.5), p[0])))
    return [*corners, (points[-1][0], top[1])]

def test_no_point_and_no_line_between_two_points_lies_above_the_envelope():
    """An envelope that joined each point with the next once lay below lines that cross it."""
    corners = pictures.envelope([(4, 0.8), (0, 0.5), (1, 0.7), (2.25, 0.7), (9, 0.75), (0, 0.4)])
    assert corners == [(0, 0.5), (1, 0.7), (4, 0.8), (9, 0.8)]    # 0.7 at 2.25 is below the line from 0.7 to 0.8
    rng = random.Random(0)
    for _ in range(50):
        points = [(rng.uniform(0, 9), rng.random()) for _ in range(12)]
        found = pictures.envelope(points)
        assert found == slow_envelope(sorted(points))
        x, y = np.array(found).T
        for a in points:
            for b in points:
                between = math.sqrt(a[0]) * 0.3 + math.sqrt(b[0]) * 0.7, a[1] * 0.3 + b[1] * 0.7
                assert between[1] <= np.interp(between[0], x ** 0.5, y) + 1e-9

def test_the_frontier_shows_the_files_numbers(drawn):
    """KL across and reward up, each method under its own name. The spread is the range over seeds, around the mean."""
    folder, v, _ = drawn
    [ax] = pictures.frontier(claims.Sweep(folder)).axes
    for method in pictures.SHOWN:
        check_trace(ax, v, method, "kl", "reward")
    assert {c.get_label() for c in ax.containers} == set(map(pictures.name_of, pictures.SHOWN))
    mean = lambda r, m: statistics.fmean(v[r, m])
    others = [r for method in {*pictures.METHODS} - {*pictures.SHOWN} for r in settings(v, method)]
    want = sorted((mean(r, "kl"), mean(r, "reward")) for r in others)
    assert sorted(zip(*labelled_line(ax, pictures.OTHERS))) == [pytest.approx(xy) for xy in want]
    assert "KL" in ax.get_xlabel() and "reward" in ax.get_ylabel()
    x, y = labelled_line(ax, pictures.ENVELOPE)
    points = sorted((mean(r, "kl"), mean(r, "reward")) for method in ("sft", *pictures.METHODS)
                    for r in settings(v, method))
    assert list(zip(x, y)) == [pytest.approx(corner) for corner in slow_envelope(points)]
    for label, names in (("best of 2 to 64 samples of SFT", ["best_of n=1", "best_of n=2", "best_of n=64"]),
                         (pictures.COLDER, ["sft", "sft T=0.5", "sft T=0"])):
        x, y = labelled_line(ax, label)
        assert x == pytest.approx([mean(r, "kl") for r in names])
        assert y == pytest.approx([mean(r, "reward") for r in names])

def test_the_frontier_explains_the_points_that_stand_out(tmp_path):
    """A line that leaves the axis and a bar down to KL 0 look like faults of the picture."""
    made(tmp_path, {"sft": {"kl": [0, 0], "reward": [0.5, 0.5]},
                    "sft T=0": {"kl": [20, 40], "reward": [0.3, 0.3]},
                    "dpo beta=20": {"kl": [0, 0.2], "reward": [0.5, 0.7]},
                    "dpo beta=1": {"kl": [1, 1], "reward": [0.9, 0.9]},
                    "dpo max_steps=360": {"kl": [9, 16], "reward": [0.94, 0.96]}})
    texts = [t.get_text() for t in pictures.frontier(claims.Sweep(tmp_path)).axes[0].texts]
    assert "DPO, beta 20: 1 of 2 seeds stayed at KL 0" in texts and "DPO" in texts
    assert "DPO, max_steps 360:\n0.95 at 12.5 nats \N{RIGHTWARDS ARROW}" in texts
    assert f"{pictures.COLDER} (0: 0.30 at 30 nats \N{RIGHTWARDS ARROW})" in texts and len(texts) == 4
    # few settings, as after --quick
    made(tmp_path, {"sft": {"kl": [0], "reward": [0.5]}, "dpo beta=1": {"kl": [1], "reward": [0.9]}})
    assert [t.get_text() for t in pictures.frontier(claims.Sweep(tmp_path)).axes[0].texts] == ["DPO"]

def test_other_pictures_show_the_measures_that_their_axes_name(drawn):
    """Two panels drawn by one loop differ in a column's name. With the wrong name a panel is drawn too."""
    folder, v, _ = drawn
    s = claims.Sweep(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)    # the mean of missing values
        left, right = pictures.diversity(s).axes
    check_trace(left, v, "ipo", "entropy", "reward")
    [points] = [c.lines[0].get_data() for c in right.containers if c.get_label() == "hinge"]
    [point] = [xy for xy in zip(*points) if not math.isnan(xy[0])]    # one setting has 25 samples per prompt
    assert point == pytest.approx([statistics.fmean(v["hinge beta=0.2", m]) for m in ("pooled_25", "reward")])
    by_adapter = pictures.adapters(s).axes
    for ax, measure in zip(by_adapter, ("reward", "kl")):
        check_trace(ax, v, "parallel", "trainable", measure)
        [full] = [c for c in ax.containers if c.get_label() == "no adapter: all trained"]
        point = next(iter(zip(*full.lines[0].get_data())))
        assert point == pytest.approx([statistics.fmean(v["default dpop", m]) for m in ("trainable", measure)])
    gains = []
    for n in sorted(s.points("replace"), key=lambda n: statistics.fmean(v[n, "trainable"])):
        seeds = zip(v[n, "reward"], v["sft", "reward"], v[n, "kl"])
        gains.append([(reward - before) / kl ** 0.5 for reward, before, kl in seeds])
    [container] = [c for c in by_adapter[2].containers if c.get_label() == "replace"]
    assert container.lines[0].get_ydata() == pytest.approx([statistics.fmean(g) for g in gains])

def test_bars_by_label_stand_beside_their_method(drawn):
    """Each method has two bars: negative prompts above, hatched, and positive prompts below."""
    folder, v, _ = drawn
    [ax] = pictures.label_bias(claims.Sweep(folder)).axes
    recipe = {pictures.label_of(r): r for r, _ in v}
    names = [recipe[t.get_text()] for t in ax.get_yticklabels()]
    assert names[0] == "sft" and "dpo beta=0.1" in names
    assert pictures.label_of("jsd beta=0.3") == "fdpo, Jensen-Shannon, beta 0.3"
    for bar in ax.patches:
        place = round(bar.get_y() + bar.get_height() / 2 + (0.2 if bar.get_hatch() else -0.2))
        side = "negative" if bar.get_hatch() else "positive"
        assert bar.get_width() == pytest.approx(statistics.fmean(v[names[place], f"reward_{side}"]))
        color = pictures.COLORS[names[place].split()[0]]
        assert bar.get_facecolor() == pytest.approx(matplotlib.colors.to_rgba(color))
    assert len(ax.patches) == 2 * len(names)

def test_curves_are_those_of_the_log(drawn):
    """One line per seed from validation: chosen solid and rejected dashed."""
    folder, v, curves = drawn
    axes = pictures.training(claims.Sweep(folder)).axes
    metrics = (("rewards/chosen", "rewards/rejected"), ("logps/chosen", "logps/rejected"), ("rewards/accuracies",))
    for ax, pair in zip(axes, metrics):
        drawn_lines = [(li.get_color(), li.get_linestyle(), tuple(np.round(li.get_ydata(), 9)))
                       for li in ax.get_lines()]
        want = []
        for m in ("dpo", "ipo"):
            for metric, style in zip(pair, ("-", "--")):
                for points in curves[f"{m} beta=0.1", "val", metric]:
                    want.append((pictures.COLORS[m], style, tuple(round(y, 9) for _, y in points)))
        assert drawn_lines == want
    watch = pictures.watch(claims.Sweep(folder)).axes
    want = []
    for r in ("dpo beta=0.3", "too_fast"):
        want += [pytest.approx([y for _, y in points]) for points in curves[r, "train", "grad_norm"]]
    assert [li.get_ydata().tolist() for li in watch[-1].get_lines()] == want

def test_long_runs_and_temperatures_are_drawn_from_their_own_rows(drawn):
    """The star is at the lowest validation loss. The learned reward starts at 0. Temperature 1 is the recipe itself."""
    folder, v, curves = drawn
    s = claims.Sweep(folder)
    first, *others = pictures.along(s).axes
    for name, color in (("along_dpo", pictures.COLORS["dpo"]), ("along_ipo", pictures.COLORS["ipo"])):
        stars = [li.get_data() for li in first.get_lines() if li.get_marker() == "*" and li.get_color() == color]
        for (x, y), points in zip(stars, curves[name, "val", "loss"]):
            step, loss = min(points, key=lambda p: p[1])
            assert (x[0], y[0]) == pytest.approx((step, loss / points[0][1]))
        for ax, measure in zip(others, ("reward", "kl")):
            lines = [li for li in ax.get_lines() if li.get_marker() != "*" and li.get_color() == color]
            want = [[v[f"{name} step-{k}", measure][seed] for k in (40, 80, 120)] for seed in range(3)]
            assert [list(li.get_ydata()) for li in lines] == [pytest.approx(xs) for xs in want]
    _, heat, learned, true = pictures.rlhf(s).axes
    for ax, measure in ((learned, "proxy"), (true, "reward")):
        lines = [li.get_data() for li in ax.get_lines() if li.get_color() == pictures.COLORS["ppo"]]
        want = [[v[f"along_ppo step-{k}", measure][seed] for k in (40, 80, 120)] for seed in range(3)]
        if measure == "proxy":    # the seeds' learned rewards differ by a constant without meaning
            want = [[x - xs[0] for x in xs] for xs in want]
        assert [list(x) for x, _ in lines] == [[40, 80, 120]] * 3
        assert [list(y) for _, y in lines] == [pytest.approx(w) for w in want]
    cold = pictures.temperature(s).axes[0]
    for ax, names in ((heat, ("sft", "ppo beta=0.5")), (cold, ("sft", "dpo beta=0.1", "slic delta=1.0"))):
        for name in names:
            [container] = [c for c in ax.containers if c.get_label() == pictures.name_of(name.split()[0])]
            x, y = container.lines[0].get_data()
            middle = (len(ax.containers) - 1) / 2
            shift = (list(ax.containers).index(container) - middle) * pictures.SHIFT    # centered on the temperature
            assert abs(shift) < 0.1 and list(x) == pytest.approx([shift, 0.5 + shift, 1 + shift])
            wins = [statistics.fmean(v[r, "win"]) for r in (f"{name} T=0", f"{name} T=0.5", name)]
            assert list(y) == pytest.approx(wins)

def test_every_default_has_a_recipe():
    """A misspelled recipe makes its comparisons NaN, and those are left out without an error."""
    names = {r for _, _, _, a, b, _ in differences() for r in (a, b)}
    assert names <= {*sweep.RECIPES} and {claims.default_of(name) for name in LOSSES} <= {*sweep.RECIPES}
