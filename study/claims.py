"""
What the sweep says of each claim of the reports, and the study's pictures; all from study/results/sweep.csv and curves.csv.

A comparison is a difference between two recipes, seed by seed: the seeds share SFT policy and pairs. Its 95% interval is Student's over
seeds. It holds if the whole interval lies where the claim says, does not hold if it lies on the other side, and else cannot be told
apart. A claim holds if all its comparisons do, and does not if one does not. "At k nats" is read off a method's points, between the two
that enclose k: rewards in a line over the root of the KL, along which frontiers are straightest. Read first: sweep.py
"""
import csv
import math
from collections import defaultdict

import numpy as np

from measures import rank_correlation

CLAIMS = {
    "1": "DPO and hinge lose diversity against SFT; hinge is close to DPO",
    "2": "From reverse KL over JSD and alpha to forward KL the reward falls and the entropy rises",
    "3": "IPO: the closer beta is to 1, the higher the entropy and the lower the reward",
    "4": "cDPO with 0.15 keeps more diversity at little cost; with a fifth of the labels flipped cdpo, robust and ipo beat dpo",
    "5": "Annealing beats a constant beta of the same mean",
    "6": "The reward depends on the label of the prompt's review, and each method makes that less",
    "7": "From 4 to 25 samples a prompt the order of the methods by diversity stays",
    "8": "The implicit reward of the chosen answers falls while the accuracy rises",
    "9": "Early stopping on the validation loss stops where reward per KL is best",
    "10": "The gap at which a loss stops pushing orders ipo, hinge and cdpo along the frontier",
    "11": "DPO's frontier lies above those of best-of-n, Preferred-FT, unlikelihood and SLiC-HF",
    "12": "Not of the reports: the smaller AdamW's epsilon, the farther DPO goes from the reference",
    "13": "DPO's frontier lies above PPO's, even of PPO with the true reward (the DPO paper)",
    "14": "A learned reward is over-optimised: where it is highest, the true one is no longer",
}
def default_of(loss):
    """The recipe that trains with a loss and nothing but defaults."""
    swept = {"dpo": "dpo beta=0.1", "hinge": "hinge beta=0.2", "ipo": "ipo beta=0.1", "fdpo": "jsd beta=1", "slic": "slic delta=1.0",
             "unlikelihood": "unlikelihood alpha=0.1", "sft": "preferred_ft"}
    return swept.get(loss, f"default {loss}")

# Student's t, two-sided, by the number of seeds; for more than 30 that of 30, which is at most 5% too wide
T95 = defaultdict(lambda: 2.045, enumerate((
    12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093,
    2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045), 2))

class Sweep:
    """sweep("dpo beta=0.1", "reward") is an array with a number a seed; NaN where there is none."""
    def __init__(self, results):
        self.values, self.curves = defaultdict(dict), defaultdict(list)
        with open(results / "sweep.csv", newline="") as f:
            for r in csv.DictReader(f):
                self.values[r["recipe"], r["measure"]][int(r["seed"])] = float(r["mean"])
        with open(results / "curves.csv", newline="") as f:
            for r in csv.DictReader(f):
                self.curves[r["recipe"], r["split"], r["metric"], int(r["seed"])].append((int(r["step"]), float(r["value"])))
        self.seeds = sorted({s for found in self.values.values() for s in found})
        self.recipes = list(dict.fromkeys(recipe for recipe, _ in self.values))

    def __call__(self, recipe, measure):
        found = self.values.get((recipe, measure), {})
        return np.array([found.get(s, math.nan) for s in self.seeds])

    def points(self, method):
        """The recipes of a method, without those at other temperatures or steps."""
        return [r for r in self.recipes if r.split()[0] == method and " T=" not in r and " step-" not in r]

    def recipes_with(self, measure):
        """The recipes that have been measured so, without those at other temperatures."""
        return [r for r in self.recipes if " T=" not in r and not np.isnan(self(r, measure)).all()]

    def at(self, method, nats, measure="reward"):
        """A measure of a method at a KL, by interpolation between measured points; NaN beyond its farthest one."""
        out, names = [], ["sft", *self.points(method)]
        kl, y = (np.array([self(r, m) for r in names]) for m in ("kl", measure))    # (recipes, seeds)
        for k, v in zip(kl.T, y.T):
            there = ~np.isnan(k + v)    # a run that failed is no point
            k, v = k[there], v[there]
            order = np.argsort(k)
            out.append(np.interp(nats ** 0.5, k[order] ** 0.5, v[order]) if k.max(initial=0) >= nats else math.nan)
        return np.array(out)

    def curve(self, recipe, metric, seed, split="val"):
        return np.array(self.curves[recipe, split, metric, seed]).reshape(-1, 2).T    # steps, values

def comparisons(s):
    """
    Yields (claim, what is compared, number a seed, what the claim says of it): ("<", limit), (">", limit), ("near" 0 within, limit), or
    ("", 0), of which it says nothing.
    """
    less, more, open_ = ("<", 0.0), (">", 0.0), ("", 0.0)
    dpo, hinge, sft = "dpo beta=0.1", "hinge beta=0.2", "sft"
    gap = lambda name: s(name, "reward_positive") - s(name, "reward_negative")
    def trend(names, measure, nats=None):
        """The rank correlation of a measure with the order of the names, a seed."""
        found = np.array([s.at(n, nats, measure) if nats else s(n, measure) for n in names])    # (names, seeds)
        return np.array([rank_correlation(range(len(names)), column) for column in found.T])

    for name in (dpo, hinge):
        for measure in ("entropy", "pooled_25", "distinct_2"):
            yield "1", f"{measure}, {name} - SFT", s(name, measure) - s(sft, measure), less
    yield "1", "reward at 1.8 nats, hinge - dpo", s.at("hinge", 1.8) - s.at("dpo", 1.8), ("near", 0.03)
    yield "1", "entropy at 1.8 nats, hinge - dpo", s.at("hinge", 1.8, "entropy") - s.at("dpo", 1.8, "entropy"), ("near", 0.05)

    line = ("dpo", "jsd", "alpha0.3", "alpha0.5", "alpha0.7", "forward_kl")
    for beta in (0.1, 0.3, 1):
        names = [name for m in line if (name := f"{m} beta={beta}") in s.recipes]
        yield "2", f"rank correlation of reward with the order, beta {beta}", trend(names, "reward"), less
        yield "2", f"rank correlation of entropy with the order, beta {beta}", trend(names, "entropy"), more
    yield "2", "rank correlation of reward with the order, at 0.9 nats", trend(line, "reward", 0.9), less
    yield "2", "rank correlation of entropy with the order, at 0.9 nats", trend(line, "entropy", 0.9), more

    betas = [f"ipo beta={b}" for b in (0.1, 0.3, 0.5, 1)]
    for measure, says in (("entropy", more), ("reward", less)):
        yield "3", f"{measure}, beta 1 - beta 0.1", s(betas[-1], measure) - s(betas[0], measure), says
        yield "3", f"rank correlation of {measure} with beta", trend(betas, measure), says

    yield "4", "entropy, cdpo - dpo at beta 0.1", s("cdpo beta=0.1", "entropy") - s(dpo, "entropy"), more
    yield "4", "reward, cdpo - dpo at beta 0.1", s("cdpo beta=0.1", "reward") - s(dpo, "reward"), ("near", 0.03)
    yield "4", "reward, dpo with noise - without", s("noisy_dpo", "reward") - s(dpo, "reward"), less
    for other in ("cdpo", "robust", "ipo"):
        yield "4", f"reward with noise, {other} - dpo", s(f"noisy_{other}", "reward") - s("noisy_dpo", "reward"), more
        yield "4", f"KL with noise, {other} - dpo", s(f"noisy_{other}", "kl") - s("noisy_dpo", "kl"), open_

    for a, b, what in (("dpo_up", "dpo_mean", "DPO 0 to 1 - DPO 0.5"), ("ipo_down", "ipo_mean", "IPO 1 to 0.01 - IPO 0.505")):
        yield "5", f"reward, {what}", s(a, "reward") - s(b, "reward"), more
        for measure in ("kl", "entropy"):
            yield "5", f"{measure}, {what}", s(a, measure) - s(b, measure), open_
    for measure in ("reward", "kl", "entropy"):
        yield "5", f"{measure}, DPO 0 to 1 - IPO 1 to 0.01", s("dpo_up", measure) - s("ipo_down", measure), open_

    yield "6", "reward of positive - negative prompts, SFT", gap(sft), more
    main = s.recipes_with("pooled_25")
    for name in (r for r in main if r != sft):
        yield "6", f"the same, {name} - SFT", gap(name) - gap(sft), less

    few, many = (np.array([s(r, measure) for r in main]).T for measure in ("pooled_4", "pooled_25"))    # (seeds, policies)
    found = np.array([rank_correlation(x, y) for x, y in zip(few, many)])
    yield "7", f"rank correlation of pooled entropy at 4 and at 25, {len(main)} policies", found, (">", 0.9)

    for name in (dpo, "along_dpo"):
        for metric, says in (("rewards/chosen", less), ("rewards/rejected", less), ("rewards/accuracies", more)):
            found = [s.curve(name, metric, seed)[1] for seed in s.seeds]
            yield "8", f"{metric}, {name}, end - start", np.array([c[-1] - c[0] if len(c) else math.nan for c in found]), says

    for name in ("along_dpo", "along_ipo"):
        yield from (("9", f"{what}, {name}", values, says) for what, values, says in stopping(s, name))

    limits = {f"ipo beta={b}": 1 / (2 * b) for b in (0.1, 0.3, 0.5, 1)} | {f"hinge beta={b}": 1 / b for b in (0.2, 0.05, 0.5, 1)}
    limits |= {f"cdpo beta={b}": math.log(0.85 / 0.15) / b for b in (0.1, 0.03, 0.3)}
    for measure in ("kl", "reward"):
        by_limit = trend(sorted(limits, key=limits.get), measure)
        yield "10", f"rank correlation of {measure} with that gap, {len(limits)} settings", by_limit, (">", 0.5)

    others = ("best_of", 1), ("best_of", 1.8), ("preferred_ft", 0.2), ("unlikelihood", 0.2), ("slic", 1.8), ("ipo", 1), ("cdpo", 1.5)
    for other, nats in others:
        says = open_ if other in ("ipo", "cdpo") else more
        yield "11", f"reward at {nats} nats, dpo - {other}", s.at("dpo", nats) - s.at(other, nats), says

    grid = [f"epsilon adam_epsilon={e}" for e in ("1e-8", "1e-5", "1e-4", "1e-3")]
    yield "12", "rank correlation of KL with epsilon", trend(grid, "kl"), less
    yield "12", "rank correlation of reward with epsilon", trend(grid, "reward"), open_
    for measure in ("kl", "reward", "length"):
        yield "12", f"{measure}, 1e-8 - 1e-3", s(grid[0], measure) - s(grid[-1], measure), open_

    for other in ("ppo", "rloo", "ppo_gt", "rloo_gt"):
        for nats in (1, 1.5, 1.9, 2.4):
            yield "13", f"reward at {nats} nats, dpo - {other}", s.at("dpo", nats) - s.at(other, nats), more
    for name in (*s.points("ppo"), *s.points("rloo"), "along_ppo", "along_dpo"):
        yield "14", f"true reward where the learned one is highest - its highest, {name}", overshoot(s, name), ("<", -0.01)

def overshoot(s, name):
    """Of the points along a run, a number a seed: the true reward at the highest learned one, less the highest true one."""
    steps = [r for r in s.recipes if r.startswith(f"{name} step-")]
    true, learned = (np.array([s(r, measure) for r in steps]).reshape(-1, len(s.seeds)) for measure in ("reward", "proxy"))
    if not steps or np.isnan(learned).any():
        return np.full(len(s.seeds), math.nan)
    return np.array([t[p.argmax()] - t.max() for t, p in zip(true.T, learned.T)])

def stopping(s, name):
    """Where the lowest validation loss of a long run lies, against its best reward and its best gain of reward per root of KL."""
    found = defaultdict(list)
    for i, seed in enumerate(s.seeds):
        losses = dict(s.curve(name, "loss", seed).T) if s.curves.get((name, "val", "loss", seed)) else {}
        reward, kl = ({k: s(f"{name} step-{k:.0f}", m)[i] for k in losses} for m in ("reward", "kl"))
        steps = [k for k in losses if k and not math.isnan(reward[k] + kl[k])]    # those that were measured
        if not steps:
            return
        gain = {k: (reward[k] - s("sft", "reward")[i]) / kl[k] ** 0.5 for k in steps}
        stop, best, top = min(steps, key=losses.get), max(steps, key=gain.get), max(steps, key=reward.get)
        found["step"].append(stop - best)
        found["gain"].append(gain[stop] / gain[best] - 1)
        found["reward"].append(reward[stop] - reward[top])
        found["kl"].append(kl[stop] - kl[best])
    yield "step of the lowest loss - of the best gain per root of KL", np.array(found["step"]), ("near", 60)
    yield "gain per root of KL there, as a share of the best, less 1", np.array(found["gain"]), ("near", 0.1)
    yield "reward there - the highest of the run", np.array(found["reward"]), ("near", 0.03)
    yield "KL there - at the best gain per root of KL", np.array(found["kl"]), ("", 0.0)

def interval(values):
    """(mean, low, high): Student's 95% interval over seeds; NaN if a seed has no value."""
    n, mean = len(values), float(np.mean(values)) if len(values) else math.nan
    half = T95[n] * float(np.std(values, ddof=1)) / n**0.5 if n > 1 else math.inf
    return mean, mean - half, mean + half

def verdict(low, high, says, limit):
    """holds, does not hold, or cannot be told apart. < and > are strict: a difference of exactly 0 in every seed is neither."""
    holds = {"<": high < limit, ">": low > limit, "near": -limit <= low and high <= limit}[says]
    fails = {"<": low >= limit, ">": high <= limit, "near": high < -limit or low > limit}[says]
    return "holds" if holds else "does not hold" if fails else "cannot be told apart"

def judge(results):
    """claims.csv: every comparison with its verdict. What the sweep does not hold is left out."""
    with open(results / "claims.csv", "w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(("claim", "what", "mean", "low", "high", "says", "verdict"))
        for claim, what, values, (says, limit) in comparisons(Sweep(results)):
            mean, low, high = interval(values)
            low, high = (max(low, -1.0), min(high, 1.0)) if "rank correlation" in what else (low, high)
            said = {"<": f"< {limit:g}", ">": f"> {limit:g}", "near": f"within {limit:g}", "": ""}[says]
            if not math.isnan(mean):
                out.writerow((claim, what, *(f"{x:.4g}" for x in (mean, low, high)), said, verdict(low, high, says, limit) if says else ""))

def claims_table(results):
    """Markdown: a table for each claim under its verdict, with a row for each comparison."""
    with open(results / "claims.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    lines = []
    for claim, text in CLAIMS.items():
        if parts := [r for r in rows if r["claim"] == claim]:
            found = [r["verdict"] for r in parts]
            whole = next((v for v in ("does not hold", "cannot be told apart", "holds") if v in found), "not measured")
            lines += [f"**{claim}. {text}: {whole}**", ""]
            lines += ["| compared | mean | 95% interval | the claim says | verdict |", "|---|---|---|---|---|"]
            for r in parts:
                mean, low, high = (f"{float(r[key]):.3g}" for key in ("mean", "low", "high"))
                lines.append(f"| {r['what']} | {mean} | {low} to {high} | {r['says'] or '-'} | {r['verdict'] or '-'} |")
            lines.append("")
    return "\n".join(lines[:-1])
