"""
The verdict on each of the reports' claims, computed from study/results/sweep.csv and curves.csv.

`python -m study.sweep --draw` calls `judge`, which writes claims.csv. table.py makes the tables of docs/study.md.

A comparison is the difference between two recipes, seed by seed, over the seeds in which both were measured. Both
recipes of a seed share the SFT policy and the pairs. The 95% interval over seeds is Student's.

- A comparison holds if the whole interval lies where the claim says. It does not hold if the interval lies on the
  other side. Otherwise it cannot be told apart.
- A claim holds if all its comparisons hold. It does not hold if one comparison does not.

"At k nats" means an interpolation between the two measured points of a method whose KLs enclose k. It is linear in the
square root of the KL, because reward against that root is nearly a straight line. "At its KL" compares one setting with
another method at the setting's own KL. Read next: pictures.py
"""
import math
from collections import defaultdict
from itertools import product

import numpy as np

from measures import rank_correlation
from study import places

CLAIMS = {
    "1": "DPO and hinge are less diverse than SFT, and hinge behaves like DPO",
    "2": "Reward falls and entropy rises from reverse KL over JSD and alpha-divergences to forward KL",
    "3": "IPO has more entropy and less reward the closer its beta is to 1",
    "4": "cDPO with label smoothing 0.15 keeps more diversity at little cost, and cdpo, robust and ipo beat dpo when a "
         "fifth of the labels is flipped",
    "5": "Annealing beta beats a constant beta of the same mean",
    "6": "The reward depends on the label of the prompt's review, and every method weakens this dependence",
    "7": "The methods have the same order of diversity with 4 and with 25 samples a prompt",
    "8": "The implicit reward of the chosen completions falls while the accuracy rises",
    "9": "Early stopping on the validation loss stops where the reward for its KL is best",
    "10": "The gap at which a loss stops pushing gives the order of ipo, hinge and cdpo along the frontier",
    "11": "DPO's frontier lies above those of best-of-n, Preferred-FT, unlikelihood and SLiC-HF",
    "12": "DPO moves farther from the reference with a smaller epsilon of AdamW (this claim is not from the reports)",
    "13": "DPO's frontier lies above PPO's, even when PPO is given the true reward (claimed by the DPO paper)",
    "14": "A learned reward is over-optimized: where it is highest, the true reward is no longer highest",
    "15": "PPO, RLOO and GRPO with a learned reward have a higher reward than DPO at equal KL",
    "16": "GRPO, Dr. GRPO and DAPO have a higher reward than RLOO at equal KL",
    "17": "Division by the group's standard deviation favors easy prompts: those of positive reviews",
    "18": "Pairs sampled anew from the policy in rounds give more reward at equal KL than offline pairs",
    "19": "Length regularization keeps DPO's reward at less length",
}
# the worst verdict among the comparisons of a claim -> the sentence that follows the claim; worst first
SENTENCES = {
    "does not hold": "The claim does not hold: at least one comparison contradicts it.",
    "cannot be told apart": "The claim is undecided: no comparison contradicts it, but an interval is too wide.",
    "holds": "The claim holds: every comparison agrees with it.",
}

def default_of(loss):
    """The name of the recipe that trains with a loss and its default hyperparameters."""
    swept = {"dpo": "dpo beta=0.1", "hinge": "hinge beta=0.2", "ipo": "ipo beta=0.1", "fdpo": "jsd beta=1",
             "slic": "slic delta=1.0", "unlikelihood": "unlikelihood alpha=0.1", "sft": "preferred_ft"}
    return swept.get(loss, f"default {loss}")

# Student's t, two-sided 95%, by the number of seeds. More than 30 seeds take the value of 30: at most 5% too wide.
T95 = defaultdict(lambda: 2.045, enumerate((
    12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045), 2))

class Sweep:
    """The numbers of a sweep. sweep("dpo beta=0.1", "reward") is an array (seeds,); NaN where nothing was measured."""
    def __init__(self, results):
        self.values, self.curves = defaultdict(dict), defaultdict(list)
        for r in places.read_csv(results / "sweep.csv"):
            self.values[r["recipe"], r["measure"]][int(r["seed"])] = float(r["mean"])
        for r in places.read_csv(results / "curves.csv"):
            key = r["recipe"], r["split"], r["metric"], int(r["seed"])
            self.curves[key].append((int(r["step"]), float(r["value"])))
        self.seeds = sorted({s for found in self.values.values() for s in found})
        self.recipes = list(dict.fromkeys(recipe for recipe, _ in self.values))

    def __call__(self, recipe, measure):
        found = self.values.get((recipe, measure), {})
        return np.array([found.get(s, math.nan) for s in self.seeds])

    def points(self, method):
        """The recipes of a method, without its rows at other temperatures or training steps."""
        return [r for r in self.recipes if r.split()[0] == method and " T=" not in r and " step-" not in r]

    def recipes_with(self, measure):
        """The recipes that have a measure, without the rows at other temperatures."""
        return [r for r in self.recipes if " T=" not in r and not np.isnan(self(r, measure)).all()]

    def checkpoints(self, name):
        """{step: recipe} of a run that kept its checkpoints, in the order of the steps."""
        found = {int(r.split(" step-")[1]): r for r in self.recipes if r.startswith(f"{name} step-")}
        return dict(sorted(found.items()))

    def at(self, method, nats, measure="reward", from_sft=True):
        """
        A measure (seeds,) of a method at a KL in nats, by interpolation. nats: a number, or one for each seed. NaN
        beyond the method's largest KL, and without from_sft below its smallest one.
        """
        names = ["sft", *self.points(method)] if from_sft else self.points(method)
        shape = len(names), len(self.seeds)    # there may be no names
        kl = np.array([self(r, "kl") for r in names]).reshape(shape)
        y = np.array([self(r, measure) for r in names]).reshape(shape)
        out = []
        for k, v, x in zip(kl.T, y.T, np.broadcast_to(nats, len(self.seeds))):
            there = ~np.isnan(k + v)    # a failed run has no point
            k, v = k[there], v[there]
            order = np.argsort(k)
            known = len(k) and k.min() <= x <= k.max()
            out.append(np.interp(x ** 0.5, k[order] ** 0.5, v[order]) if known else math.nan)
        return np.array(out)

    def beside(self, recipe, method, measure="reward"):
        """(seeds,): a recipe's measure minus that of a method at the recipe's own KL, between the method's settings."""
        return self(recipe, measure) - self.at(method, self(recipe, "kl"), measure, from_sft=False)

    def curve(self, recipe, metric, seed, split="val"):
        """(2, n): the steps and the values of a logged metric."""
        return np.array(self.curves[recipe, split, metric, seed]).reshape(-1, 2).T

# ---------------------------------------------------------------------------------------------------------------------
# The comparisons of each claim. A function yields (what is compared, its value for each seed, what the claim says).
# A claim says ("<", limit), (">", limit), or ("near", limit): an absolute value of at most limit. NOTHING: only shown.

BELOW_0, ABOVE_0, NOTHING = ("<", 0.0), (">", 0.0), ("", 0.0)
DPO, HINGE, SFT = "dpo beta=0.1", "hinge beta=0.2", "sft"

def trend(s, names, measure, nats=None):
    """(seeds,): rank correlation of a measure with the order of the names: recipes, or methods at a KL of `nats`."""
    found = np.array([s.at(n, nats, measure) if nats else s(n, measure) for n in names])    # (names, seeds)
    return np.array([rank_correlation(range(len(names)), column) for column in found.T])

def less_diverse(s):
    """Claim 1: the diversity of DPO and hinge against SFT's, and hinge against DPO at one KL."""
    for name in (DPO, HINGE):
        for measure in ("entropy", "pooled_25", "distinct_2"):
            yield f"{measure}, {name} - SFT", s(name, measure) - s(SFT, measure), BELOW_0
    yield "reward at 1.8 nats, hinge - dpo", s.at("hinge", 1.8) - s.at("dpo", 1.8), ("near", 0.03)
    entropy = s.at("hinge", 1.8, "entropy") - s.at("dpo", 1.8, "entropy")
    yield "entropy at 1.8 nats, hinge - dpo", entropy, ("near", 0.05)

def order_of_divergences(s):
    """Claim 2: the divergences in their order from reverse to forward KL."""
    methods = ("dpo", "jsd", "alpha0.3", "alpha0.5", "alpha0.7", "forward_kl")
    for beta in (0.1, 0.3, 1):
        names = [f"{m} beta={beta}" for m in methods if f"{m} beta={beta}" in s.recipes]
        yield f"rank correlation of reward with the order, beta {beta}", trend(s, names, "reward"), BELOW_0
        yield f"rank correlation of entropy with the order, beta {beta}", trend(s, names, "entropy"), ABOVE_0
    yield "rank correlation of reward with the order, at 0.9 nats", trend(s, methods, "reward", 0.9), BELOW_0
    yield "rank correlation of entropy with the order, at 0.9 nats", trend(s, methods, "entropy", 0.9), ABOVE_0

def beta_of_ipo(s):
    """Claim 3: IPO at beta 0.1 to 1."""
    betas = [f"ipo beta={b}" for b in (0.1, 0.3, 0.5, 1)]
    for measure, says in (("entropy", ABOVE_0), ("reward", BELOW_0)):
        yield f"{measure}, beta 1 - beta 0.1", s(betas[-1], measure) - s(betas[0], measure), says
        yield f"rank correlation of {measure} with beta", trend(s, betas, measure), says

def label_noise(s):
    """Claim 4: label smoothing on clean labels, and losses for noisy labels on flipped ones."""
    yield "entropy, cdpo - dpo at beta 0.1", s("cdpo beta=0.1", "entropy") - s(DPO, "entropy"), ABOVE_0
    yield "reward, cdpo - dpo at beta 0.1", s("cdpo beta=0.1", "reward") - s(DPO, "reward"), ("near", 0.03)
    yield "reward, dpo with noise - without", s("noisy_dpo", "reward") - s(DPO, "reward"), BELOW_0
    for other in ("cdpo", "robust", "ipo"):
        yield f"reward with noise, {other} - dpo", s(f"noisy_{other}", "reward") - s("noisy_dpo", "reward"), ABOVE_0
        yield f"KL with noise, {other} - dpo", s(f"noisy_{other}", "kl") - s("noisy_dpo", "kl"), NOTHING

def annealed_beta(s):
    """Claim 5: annealed against constant beta."""
    pairs = ("dpo_up", "dpo_mean", "DPO 0 to 1 - DPO 0.5"), ("ipo_down", "ipo_mean", "IPO 1 to 0.01 - IPO 0.505")
    for annealed, constant, what in pairs:
        yield f"reward, {what}", s(annealed, "reward") - s(constant, "reward"), ABOVE_0
        for measure in ("kl", "entropy"):
            yield f"{measure}, {what}", s(annealed, measure) - s(constant, measure), NOTHING
    for measure in ("reward", "kl", "entropy"):
        yield f"{measure}, DPO 0 to 1 - IPO 1 to 0.01", s("dpo_up", measure) - s("ipo_down", measure), NOTHING

def label_gap(s, name):
    """(seeds,): the reward on prompts of positive reviews minus that on prompts of negative reviews."""
    return s(name, "reward_positive") - s(name, "reward_negative")

def label_bias(s):
    """Claim 6: the label gap of SFT, and how each method changes it."""
    yield "reward of positive - negative prompts, SFT", label_gap(s, SFT), ABOVE_0
    for name in s.recipes_with("pooled_25"):
        if name != SFT:
            yield f"the same, {name} - SFT", label_gap(s, name) - label_gap(s, SFT), BELOW_0

def order_by_diversity(s):
    """Claim 7: the policies ranked by the pooled entropy of 4 and of 25 samples."""
    policies = s.recipes_with("pooled_25")
    few = np.array([s(r, "pooled_4") for r in policies]).T      # (seeds, policies)
    many = np.array([s(r, "pooled_25") for r in policies]).T    # (seeds, policies)
    found = np.array([rank_correlation(x, y) for x, y in zip(few, many)])
    yield f"rank correlation of pooled entropy at 4 and at 25, {len(policies)} policies", found, (">", 0.9)

def chosen_reward_falls(s):
    """Claim 8: the change of the validation metrics of DPO over training."""
    metrics = ("rewards/chosen", BELOW_0), ("rewards/rejected", BELOW_0), ("rewards/accuracies", ABOVE_0)
    for name in (DPO, "along_dpo"):
        for metric, says in metrics:
            found = [s.curve(name, metric, seed)[1] for seed in s.seeds]
            change = np.array([c[-1] - c[0] if len(c) else math.nan for c in found])
            yield f"{metric}, {name}, end - start", change, says

def stopping(s, name):
    """
    Compares the step of the lowest validation loss with the best steps of a long run. Yields comparisons.

    The best step is the one with the highest gain, which is (reward - reward of SFT) / sqrt(KL). The reward at the
    lowest loss is compared with the highest reward of the run.
    """
    found = defaultdict(list)
    for i, seed in enumerate(s.seeds):
        losses = dict(s.curve(name, "loss", seed).T) if s.curves.get((name, "val", "loss", seed)) else {}
        reward = {k: s(f"{name} step-{k:.0f}", "reward")[i] for k in losses}
        kl = {k: s(f"{name} step-{k:.0f}", "kl")[i] for k in losses}
        # steps that were measured, without the start, where the KL is 0
        steps = [k for k in losses if k and not math.isnan(reward[k] + kl[k])]
        if not steps:
            continue    # this seed has no such run
        gain = {k: (reward[k] - s("sft", "reward")[i]) / kl[k] ** 0.5 for k in steps}
        stop, best, top = min(steps, key=losses.get), max(steps, key=gain.get), max(steps, key=reward.get)
        found["step"].append(stop - best)
        found["gain"].append(gain[stop] / gain[best] - 1)
        found["reward"].append(reward[stop] - reward[top])
        found["kl"].append(kl[stop] - kl[best])
    yield f"step of the lowest loss - of the best gain per root of KL, {name}", np.array(found["step"]), ("near", 60)
    yield f"gain per root of KL there, as a share of the best, less 1, {name}", np.array(found["gain"]), ("near", 0.1)
    yield f"reward there - the highest of the run, {name}", np.array(found["reward"]), ("near", 0.03)
    yield f"KL there - at the best gain per root of KL, {name}", np.array(found["kl"]), NOTHING

def early_stopping(s):
    """Claim 9: where early stopping would have stopped two long runs."""
    for name in ("along_dpo", "along_ipo"):
        yield from stopping(s, name)

def stopping_gap(s):
    """Claim 10: the gap (log-ratio margin in nats) at which the loss stops pushing, against KL and reward."""
    gaps = {f"ipo beta={b}": 1 / (2 * b) for b in (0.1, 0.3, 0.5, 1)}
    gaps |= {f"hinge beta={b}": 1 / b for b in (0.2, 0.05, 0.5, 1)}
    gaps |= {f"cdpo beta={b}": math.log(0.85 / 0.15) / b for b in (0.1, 0.03, 0.3)}
    names = sorted(gaps, key=gaps.get)    # settings of equal gap stay in the order above and get different ranks
    for measure in ("kl", "reward"):
        found = trend(s, names, measure)
        yield f"rank correlation of {measure} with that gap, {len(names)} settings", found, (">", 0.5)

def dpo_against(s, others, says):
    """Compares the reward of DPO with that of each of others, (method, nats), at the same KL in nats."""
    for other, nats in others:
        yield f"reward at {nats} nats, dpo - {other}", s.at("dpo", nats) - s.at(other, nats), says

def above_other_methods(s):
    """Claim 11: DPO against other methods at the same KL."""
    claimed = ("best_of", 1), ("best_of", 1.8), ("preferred_ft", 0.2), ("unlikelihood", 0.2), ("slic", 1.8)
    yield from dpo_against(s, claimed, ABOVE_0)
    yield from dpo_against(s, (("ipo", 1), ("cdpo", 1.5)), NOTHING)

def adam_epsilon(s):
    """Claim 12: DPO at four values of AdamW's epsilon."""
    grid = [f"epsilon adam_epsilon={e}" for e in ("1e-8", "1e-5", "1e-4", "1e-3")]
    yield "rank correlation of KL with epsilon", trend(s, grid, "kl"), BELOW_0
    yield "rank correlation of reward with epsilon", trend(s, grid, "reward"), NOTHING
    for measure in ("kl", "reward", "length"):
        yield f"{measure}, 1e-8 - 1e-3", s(grid[0], measure) - s(grid[-1], measure), NOTHING

def above_ppo(s):
    """Claim 13: DPO against PPO and RLOO, with the learned and the true reward (_gt), at the same KL."""
    yield from dpo_against(s, product(("ppo", "rloo", "ppo_gt", "rloo_gt"), (1, 1.5, 1.9, 2.4)), ABOVE_0)

def overshoot(s, name):
    """(seeds,): along a run, the true reward at the highest learned reward, minus the highest true reward."""
    recipes = s.checkpoints(name).values()
    true = np.array([s(r, "reward") for r in recipes])      # (steps, seeds)
    learned = np.array([s(r, "proxy") for r in recipes])    # (steps, seeds)
    if not recipes:
        return np.full(len(s.seeds), math.nan)
    there = ~np.isnan(true + learned).any(0)                # (seeds,): those that have such a run
    return np.array([t[p.argmax()] - t.max() if ok else math.nan for t, p, ok in zip(true.T, learned.T, there)])

def over_optimization(s):
    """Claim 14: the true reward at the highest learned reward of each run."""
    for name in (*s.points("ppo"), *s.points("rloo"), "along_ppo", "along_dpo"):
        yield f"true reward where the learned one is highest - its highest, {name}", overshoot(s, name), ("<", -0.01)

def online_above_dpo(s):
    """Claim 15: online methods with the learned reward against DPO, each setting at its own KL."""
    for name, beta in product(("ppo", "rloo"), (1, 0.5)):
        yield f"reward at its KL, {name} beta={beta} - dpo", s.beside(f"{name} beta={beta}", "dpo"), ABOVE_0
    for beta in (0.5, 0.2):
        yield f"reward at its KL, grpo beta={beta} - dpo", s.beside(f"grpo beta={beta}", "dpo"), ABOVE_0

def above_rloo(s):
    """Claim 16: the relatives of GRPO against RLOO, with the KL in the loss and in the reward (_kr)."""
    for name in ("grpo beta=0.5", "grpo beta=0.2", "dr_grpo beta=0.5", "dapo beta=0.2", "grpo_kr beta=0.5",
                 "dr_grpo_kr beta=0.5"):
        yield f"reward at its KL, {name} - rloo", s.beside(name, "rloo"), ABOVE_0

def division_by_std(s):
    """Claim 17: GRPO divides by the group's standard deviation, Dr. GRPO does not. Both have the KL in the reward."""
    grpo, dr_grpo = "grpo_kr beta=0.5", "dr_grpo_kr beta=0.5"
    gap = label_gap(s, grpo) - label_gap(s, dr_grpo)
    yield "reward of positive - negative prompts, grpo_kr - dr_grpo_kr", gap, ABOVE_0
    for measure in ("reward", "kl"):
        yield f"{measure}, grpo_kr - dr_grpo_kr", s(grpo, measure) - s(dr_grpo, measure), NOTHING

def rounds_against_offline(s):
    """Claim 18: pairs of the policy's own, with the reference fixed or moved (sync), against offline pairs."""
    for name in ("rounds_dpo beta=3", "rounds_dpo beta=1", "rounds_dpo beta=0.3", "sync_dpo beta=3", "sync_dpo beta=1",
                 "rounds_ipo beta=0.1"):
        yield f"reward at its KL, {name} - dpo", s.beside(name, "dpo"), ABOVE_0
        yield f"whole sentences at its KL, {name} - dpo", s.beside(name, "dpo", "whole"), NOTHING

def length_regularization(s):
    """Claim 19: R-DPO with a weight of the length of 0.01 and 0.1 against DPO, both with beta 0.1."""
    for name in ("default rdpo", "rdpo alpha=0.1"):
        yield f"length, {name} - dpo", s(name, "length") - s(DPO, "length"), BELOW_0
        yield f"reward at its KL, {name} - dpo", s.beside(name, "dpo"), ("near", 0.03)
        yield f"kl, {name} - dpo", s(name, "kl") - s(DPO, "kl"), NOTHING

COMPARISONS = {
    "1": less_diverse, "2": order_of_divergences, "3": beta_of_ipo, "4": label_noise, "5": annealed_beta,
    "6": label_bias, "7": order_by_diversity, "8": chosen_reward_falls, "9": early_stopping, "10": stopping_gap,
    "11": above_other_methods, "12": adam_epsilon, "13": above_ppo, "14": over_optimization, "15": online_above_dpo,
    "16": above_rloo, "17": division_by_std, "18": rounds_against_offline, "19": length_regularization}
OF_SECOND = ("15", "16", "17", "18", "19")    # claims that are judged by the second sweep

# ---------------------------------------------------------------------------------------------------------------------
# From comparisons to verdicts

def interval(values):
    """(mean, low, high): Student's 95% interval over the seeds that have a value. All NaN if none has."""
    values = values[~np.isnan(values)]
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    half = T95[n] * float(np.std(values, ddof=1)) / n**0.5 if n > 1 else math.inf
    return mean, mean - half, mean + half

def verdict(low, high, says, limit):
    """
    "holds", "does not hold" or "cannot be told apart", for an interval and what a claim says of it.

    < and > are strict: a difference of exactly 0 in every seed is neither below 0 nor above 0.
    """
    holds = {"<": high < limit, ">": low > limit, "near": -limit <= low and high <= limit}[says]
    fails = {"<": low >= limit, ">": high <= limit, "near": high < -limit or low > limit}[says]
    if holds:
        return "holds"
    return "does not hold" if fails else "cannot be told apart"

def judge(results, out=None):
    """
    Writes claims.csv into `out` (default: beside sweep.csv and curves.csv): a row for each measured comparison. The
    claims OF_SECOND are judged by the second sweep's numbers, if the results have them.
    """
    rows, folder = [], places.second(results)
    first, second = Sweep(results), Sweep(folder if folder.exists() else results)
    for claim, comparisons in COMPARISONS.items():
        s = second if claim in OF_SECOND else first
        for what, values, (says, limit) in comparisons(s):
            mean, low, high = interval(values)
            n = np.count_nonzero(~np.isnan(values))
            if math.isnan(mean):    # a small sweep has not all recipes
                continue
            if "rank correlation" in what:    # lies in [-1, 1], which Student's interval does not know
                low, high = max(low, -1.0), min(high, 1.0)
            said = {"<": f"< {limit:g}", ">": f"> {limit:g}", "near": f"within {limit:g}", "": ""}[says]
            found = verdict(low, high, says, limit) if says else ""
            rows.append((claim, what, n, f"{mean:.4g}", f"{low:.4g}", f"{high:.4g}", said, found))
    head = ("claim", "what", "seeds", "mean", "low", "high", "says", "verdict")
    places.write_csv((out or results) / "claims.csv", head, rows)
