"""
overlap, frontier, differences and compare: is A better than B at equal KL?

The range of KL that two methods share, their frontiers seed by seed, and a verdict with an interval over seeds.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = [f"study/compare.py:{name}" for name in ("overlap", "frontier", "differences", "compare")]
POINTS, MINUTES = 5, 90

def probes(rng):
    """Better, worse, not to be told apart, crossing, failed runs, a method without a common range, one setting each."""
    def method(kls, height, seeds, slope=0.2, noise=0.003, curve=0.0, shifts=0.0):
        kl = np.sort(np.array(kls))[:, None] * rng.uniform(0.97, 1.03, (len(kls), seeds))
        root = kl ** 0.5
        reward = height + slope * root + curve * root ** 2 + rng.normal(0, noise, kl.shape) + shifts
        order = rng.permutation(len(kls))
        return dict(kl=kl[order], reward=reward[order])
    def probe(title, first, other, n=9):
        base = rng.normal(0, 0.05, first["reward"].shape[1])    # the SFT policy of a seed
        for one in (first, other):
            one["reward"] = one["reward"] + base
        low = max(np.nanmax(np.fmin.reduce(one["kl"])) for one in (first, other) if not np.isnan(one["kl"]).all())
        high = min(np.nanmin(np.fmax.reduce(one["kl"])) for one in (first, other) if not np.isnan(one["kl"]).all())
        nats = rng.uniform(low, high, 4) if low <= high else np.zeros(0)
        return dict(title=title, first=first, other=other, nats=nats, n=n)
    def failed(one, runs):
        """Runs (place in the order of the KL, seed) get no numbers."""
        places = one["kl"].argsort(0)
        for place, seed in runs:
            one["kl"][places[place, seed], seed] = one["reward"][places[place, seed], seed] = np.nan
        return one
    wide, far = [0.2, 0.9, 2.5, 5.0], [0.6, 1.4, 4.0, 9.0]
    dominated = method([0.5, 1.5, 4.0, 6.0, 9.0], 0.4, 4)
    rows = np.arange(5), dominated["kl"].argsort(0)
    dominated["reward"][rows[1][1], range(4)] -= 0.15     # a bad setting within the range
    dominated["reward"][rows[1][4], range(4)] -= 0.4      # over-optimized at the end
    lost = failed(method(far, 0.41, 5), [(1, 1), (1, 2), (2, 2), *((i, 4) for i in range(4))])
    single = method([2.0], 0.45, 3)
    single["kl"][:] = rng.uniform(1.8, 2.2)
    return [probe("better", method(wide, 0.45, 4), method(far, 0.4, 4)),
            probe("worse, with the highest reward", method(far, 0.37, 3), method(wide, 0.42, 3), n=5),
            probe("near to each other", method(wide, 0.4, 3, noise=0.02), method(far, 0.402, 3, noise=0.02)),
            probe("crossing", method(far, 0.5, 4, slope=0.05), method(wide, 0.25, 4, slope=0.25)),
            probe("sure at large KLs only", method(far, 0.26, 3, slope=0.4, shifts=np.array([0.03, -0.03, 0.0])),
                  method(wide, 0.41, 3, slope=0.2)),
            probe("settings that others dominate", dominated, method(wide, 0.37, 4, curve=-0.01)),
            probe("failed runs", lost, method(wide, 0.39, 5)),
            probe("no common range", method([4.0, 6.0], 0.5, 3), method([0.5, 1.0], 0.4, 3)),
            probe("one setting with one KL", single, method(wide, 0.4, 3), n=3),
            probe("one seed", method(far, 0.5, 1, slope=0.05), method(wide, 0.25, 1, slope=0.25)),
            probe("a method without runs", failed(method([1.0, 2.0], 0.4, 2), [(0, 0), (1, 0), (0, 1), (1, 1)]),
                  method(wide, 0.4, 2))]

def run(module, probe):
    """
    All four functions on a stand-in of claims.Sweep with two methods, and the row of `compare` as numbers. What has no
    meaning without a common range is left out.
    """
    import numpy as np
    class Sweep:
        def __init__(self):
            self.values = {}
            for method in ("first", "other"):
                for i, (kl, reward) in enumerate(zip(*(probe[method][name].numpy() for name in ("kl", "reward")))):
                    self.values[f"{method} beta={i}"] = {"kl": kl, "reward": reward}
            self.recipes = list(self.values)
            self.seeds = list(range(probe["first"]["kl"].shape[1]))
        def __call__(self, recipe, measure):
            return self.values[recipe][measure].copy()
        def points(self, method):
            return [recipe for recipe in self.recipes if recipe.split()[0] == method]
    s, nats = Sweep(), probe["nats"].numpy()
    low, high, seeds = module.overlap(s, "first", "other")
    row = module.compare(s, "first", "other")
    verdicts = ["better", "worse", "cannot be told apart", "depends on the KL", "no overlap"]
    found = {"seeds": seeds, "verdict": [int(row["verdict"] == verdict) for verdict in verdicts],
             "compare: seeds": int(row["seeds"]), "compare: names": [row["first"] == "first", row["other"] == "other"]}
    if not np.any(np.asarray(seeds)):
        return found
    found |= {"range": [float(low), float(high)], "compare: range": [float(row["kl_low"]), float(row["kl_high"])]}
    keys = [f"{end}{of}" for end in ("", "near_", "far_") for of in ("mean", "low", "high")]
    found |= {f"compare: {key}": float(row[key]) for key in keys if key in row}
    if len(nats):
        for method in ("first", "other"):
            found[f"frontier of {method}"] = module.frontier(s, method, nats)
    if low <= high:
        found["KLs"], found["differences"] = module.differences(s, "first", "other", n=probe["n"])
    return found

SEEDS = "seeds = ~np.isnan(a_low + b_low)"
LOW = "low = np.maximum(a_low, b_low)[seeds].max(initial=0)"
HIGH = "high = np.minimum(a_high, b_high)[seeds].min(initial=math.inf)"
DROP = "pairs = [pair for pair in pairs if not np.isnan(pair).any()]    # a failed run has no point"
CORNERS = "x, y = np.array(pictures.envelope(pairs)).T if pairs else (np.zeros(1), np.full(1, math.nan))"
READ = "found.append(np.interp(nats ** 0.5, x ** 0.5, y))    # reward over the root of the KL is nearly a straight line"
GRID = "nats = np.linspace(low ** 0.5, high ** 0.5, n) ** 2"
MINUS = "return nats, (frontier(s, first, nats) - frontier(s, other, nats))[seeds].T"
NONE = "if not seeds.any() or low > high:"
FOUND = "nats, found = differences(s, first, other)    # (n,), (n, seeds)"
ENDS = 'for end, values in (("", found.mean(0)), ("near_", found[0]), ("far_", found[-1])):'
ROW = 'row |= zip((f"{end}mean", f"{end}low", f"{end}high"), claims.interval(values))'
CROSSING = 'crossing = side(row, "near_") * side(row, "far_") < 0'
VERDICT = 'row["verdict"] = "depends on the KL" if crossing else VERDICTS[side(row)]'
# Wrong texts of several lines
OWN_RANGE = """ends = reach(s, other)
    own = np.linspace(np.nanmax(ends[0]) ** 0.5, np.nanmin(ends[1]) ** 0.5, n) ** 2
    return nats, (frontier(s, first, nats) - frontier(s, other, own))[seeds].T"""
HIGHEST = """tables = [np.array([s(r, "reward") for r in s.points(m)])[:, seeds] for m in (first, other)]
    best = np.fmax.reduce(tables[0]) - np.fmax.reduce(tables[1])
    return nats, np.repeat(best[None], n, 0)"""
TWO_INTERVALS = """at = {"": slice(None), "near_": slice(0, 1), "far_": slice(-1, None)}[end]
        two = [claims.interval(frontier(s, m, nats)[seeds].T[at].mean(0)) for m in (first, other)]
        gap, half = two[0][0] - two[1][0], sum((high - mean) ** 2 for mean, _, high in two) ** 0.5
        row |= zip((f"{end}mean", f"{end}low", f"{end}high"), (gap, gap - half, gap + half))"""
NORMAL = """half = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else math.inf
        mean = values.mean()
        row |= zip((f"{end}mean", f"{end}low", f"{end}high"), (mean, mean - half, mean + half))"""
RANGE, LINES, EQUAL, UNIT, SAID = ("The common range", "The envelope of a seed", "Differences at equal KL",
                                   "Seeds are the unit", "The verdict")
tests = {name: f"test_compare.py::test_{text}" for name, text in {
    "range": "the_range_is_what_every_seed_has", "root": "differences_are_read_off_at_one_kl_over_its_root",
    "envelope": "a_setting_that_another_one_dominates_does_not_count", "better": "a_better_loss_by_hand",
    "apart": "two_losses_that_cannot_be_told_apart", "crossing": "a_loss_that_is_better_near_and_worse_far_away",
    "none": "frontiers_without_a_common_kl_cannot_be_compared", "lost": "a_seed_without_runs_of_one_loss_is_left_out",
    "worse": "a_worse_loss_that_is_only_farther"}.items()}
tests |= {name: f"test_frontier.py::test_{text}" for name, text in {
    "failed": "a_failed_run_takes_no_other_seed_along", "crossed": "lines_of_one_seed_that_cross_are_no_verdict",
    "single": "one_setting_can_be_compared_at_its_own_kl"}.items()}
MEASURED = "Was every KL of your range measured for both methods in every seed? Print the ranges of each seed."
RUNS = "A seed has runs of one method only. What can it tell about a difference?"
HULL = "Take the settings of the worked example. Which of them does no reasonable user choose?"
ROOT = "The rewards of the worked example lie on a line. Over which axis?"
OWN = "The seeds start from other SFT policies. At which KL does your frontier of one seed come from another seed?"
LOST = "A failed run is NaN in both arrays. Which points has its seed then?"
EVEN = "Print the KLs of the worked example and their roots. Which of them are evenly spaced?"
SIGN = "Which method is the first? What sign should the difference have if it is better?"
SAME_KL = "Print the KL at which each of the two rewards of a difference was read off."
SHAPE = "Which dimension holds the KLs, and which the seeds? Read the docstring again."
N = "How many independent numbers are there: seeds, settings, or KLs? Give the function 90 KLs instead of 9."
PAIRED = "Both runs of a seed share the SFT policy and the pairs. Does the spread of that policy widen your interval?"
ALONE = "How sure is the sign of your mean? What does the docstring ask of the interval?"
ENDS_HINT = "One method may be better at a small KL and worse at a large one. What is the mean then?"
SURE = "Is the difference at each end of the range sure? What does the docstring compare, means or intervals?"
FAR = "Which end of the range is the near one?"
MISTAKES = {
    "the union of the ranges": Mistake(
        ((LOW, LOW.replace("np.maximum", "np.minimum").replace(".max(initial=0)", ".min(initial=math.inf)")),
         (HIGH, HIGH.replace("np.minimum", "np.maximum").replace(".min(initial=math.inf)", ".max(initial=0)"))),
        MEASURED, RANGE, tests["range"],
        "Two losses without a common KL get a verdict. The compared range holds KLs that one of them never had."),
    "what any seed has": Mistake(((LOW, LOW.replace(".max(initial=0)", ".min(initial=math.inf)")),
        (HIGH, HIGH.replace(".min(initial=math.inf)", ".max(initial=0)"))), MEASURED, RANGE, tests["range"]),
    "means over seeds": Mistake(((LOW, LOW.replace(".max(initial=0)", ".mean()")),
        (HIGH, HIGH.replace(".min(initial=math.inf)", ".mean()"))), MEASURED, RANGE, tests["range"],
        "The compared range of two losses begins below the smallest KL of a seed."),
    "from 0 on": Mistake(((LOW, "low = np.float64(0.0)"),), MEASURED, RANGE, tests["range"],
        "The compared range begins at 0 nats, where no run was."),
    "seeds of either method": Mistake(((SEEDS, "seeds = ~np.isnan(a_low) | ~np.isnan(b_low)"),), RUNS, RANGE,
        tests["lost"]),
    "no envelope": Mistake(((CORNERS, CORNERS.replace("pictures.envelope(pairs)", "sorted(pairs)")),), HULL, LINES,
        tests["envelope"], "A loss looks worse after one bad value of its hyperparameter was added to its grid."),
    "the best setting so far": Mistake(
        ((READ, "found.append(np.array([max((r for k, r in pairs if k <= at), default=math.nan) for at in nats]))"),),
        "Does the reward of your frontier jump? Is a KL between two settings out of reach?", LINES, tests["root"]),
    "the nearest setting": Mistake(
        ((READ, "found.append(y[np.abs(x[None] - nats[:, None]).argmin(1)])"),),
        "Does the reward of your frontier jump? Is a KL between two settings out of reach?", LINES, tests["root"]),
    "straight over the KL": Mistake(((READ, "found.append(np.interp(nats, x, y))"),), ROOT, LINES, tests["root"],
        "Two losses with all settings on one line, reward over the root of the KL, get a difference that is not 0 if "
        "their settings have other KLs."),
    "one frontier of all seeds": Mistake(
        ((DROP, f"pairs = [pair for pair in zip(kl.ravel(), reward.ravel())]\n        {DROP}"),), OWN, LINES,
        tests["failed"],
        "The differences of two losses are the same number in every seed, and their interval has no width."),
    "failed runs are zeros": Mistake(((DROP, "pairs = [tuple(np.nan_to_num(pair)) for pair in pairs]"),), LOST, LINES,
        tests["failed"]),
    "evenly over the KL": Mistake(((GRID, "nats = np.linspace(low, high, n)"),), EVEN, EQUAL, tests["range"],
        "The verdict on two losses counts the far half of the compared range for more than half."),
    "the roots themselves": Mistake(((GRID, "nats = np.linspace(low ** 0.5, high ** 0.5, n)"),), EVEN, EQUAL,
        tests["range"]),
    "without the ends": Mistake(((GRID, "nats = np.linspace(low ** 0.5, high ** 0.5, n + 2)[1:-1] ** 2"),),
        "Are the ends of the range among your KLs?", EQUAL, tests["range"]),
    "the other minus the first": Mistake(
        ((MINUS, "return nats, (frontier(s, other, nats) - frontier(s, first, nats))[seeds].T"),), SIGN, EQUAL,
        tests["better"], "study.sweep says that the first loss is worse where its line is above the other one."),
    "all seeds in the differences": Mistake(((MINUS, MINUS.replace("[seeds]", "")),), RUNS, EQUAL, tests["failed"]),
    "seeds in rows": Mistake(((MINUS, MINUS.replace("[seeds].T", "[seeds]")),), SHAPE, EQUAL, tests["range"]),
    "each at its own KL": Mistake(((MINUS, OWN_RANGE),), SAME_KL, EQUAL,
        tests["worse"], "Of two losses on the same line the one with the larger KLs gets the verdict 'better'."),
    "the highest rewards": Mistake(((MINUS, HIGHEST),), SAME_KL, EQUAL, tests["worse"],
        "A loss is better than itself with another grid, one that goes to larger KLs."),
    "two intervals": Mistake(((ROW, TWO_INTERVALS),), PAIRED, UNIT, tests["better"],
        "Two losses differ by 0.02 in each of three seeds, and study.sweep cannot tell them apart."),
    "KLs are the unit": Mistake(((ENDS, ENDS.replace("found.mean(0)", "found.mean(1)")),), N, UNIT, tests["apart"],
        "The interval of a difference does not get narrower when seeds are added."),
    "every number is a unit": Mistake(((ENDS, ENDS.replace("found.mean(0)", "found.ravel()")),), N, UNIT,
        tests["apart"], "With three seeds, the interval of a difference is as narrow as with thirty."),
    "the normal distribution": Mistake(((ROW, NORMAL),),
        "How wide is the interval of three seeds? The file imports a module that knows Student's t.", UNIT,
        tests["apart"]),
    "the mean alone": Mistake(
        ((CROSSING, "crossing = False"), (VERDICT, 'row["verdict"] = "better" if row["mean"] > 0 else "worse"')), ALONE,
        SAID, tests["apart"],
        "Two seeds' noise is enough for a verdict: no comparison ever says 'cannot be told apart'."),
    "the means, with a crossing": Mistake(
        ((VERDICT, 'row["verdict"] = "depends on the KL" if crossing else "better" if row["mean"] > 0 else "worse"'),),
        ALONE, SAID, tests["apart"]),
    "better at both ends": Mistake(
        ((VERDICT, 'row["verdict"] = "depends on the KL" if crossing else VERDICTS[side(row) if side(row, "near_") == '
          'side(row, "far_") else 0]'),),
        "Which interval does the docstring ask for: that of an end, or that of the mean difference?", SAID),
    "no crossing": Mistake(((CROSSING, "crossing = False"),), ENDS_HINT, SAID, tests["crossing"],
        "One loss is far better at small KLs and far worse at large ones. study.sweep cannot tell them apart."),
    "a crossing of the means": Mistake(((CROSSING, 'crossing = row["near_mean"] * row["far_mean"] < 0'),), SURE, SAID,
        tests["crossed"]),
    "either end": Mistake(((CROSSING, 'crossing = side(row, "near_") != side(row, "far_")'),), SURE, SAID),
    "near and far are exchanged": Mistake(((ENDS, 'for end, values in (("", found.mean(0)), ("near_", found[-1]), '
        '("far_", found[0])):'),), FAR, SAID, tests["crossing"],
        "study.sweep says that a loss is better at small KLs. The picture shows it below the other one there."),
    "a verdict without a common range": Mistake(((NONE, "if not seeds.any():"),),
        "Two methods have no KL in common. What can be said of them at equal KL?", SAID, tests["none"]),
    "one KL is no range": Mistake(((NONE, "if not seeds.any() or low >= high:"),),
        "One method has one setting. Can it be compared at the KL of that setting?", SAID, tests["single"]),
    "all seeds are counted": Mistake((('"seeds": int(seeds.sum())', '"seeds": len(seeds)'),), RUNS, SAID,
        tests["lost"]),
}
ALTERNATIVES = {
    "lines between all points": '''
def overlap(s, first, other):
    lows, highs = zip(reach(s, first), reach(s, other))
    seeds = np.array([not math.isnan(a) and not math.isnan(b) for a, b in zip(*lows)])
    low = max([x for pair in lows for x, there in zip(pair, seeds) if there], default=0.0)
    high = min([x for pair in highs for x, there in zip(pair, seeds) if there], default=math.inf)
    return low, high, seeds

def frontier(s, method, nats):
    """The highest reward at each KL among points, and lines between two of them, that reach at most this KL."""
    out = np.full((len(s.seeds), len(nats)), math.nan)
    for i in range(len(s.seeds)):
        points = [(s(r, "kl")[i] ** 0.5, s(r, "reward")[i]) for r in s.points(method)]
        points = [p for p in points if not math.isnan(p[0] + p[1])]
        for j, x in enumerate(np.sqrt(nats)):
            heights = [y for at, y in points if at <= x + 1e-12]
            for a, ya in points:
                heights += [ya + (yb - ya) * (x - a) / (b - a) for b, yb in points if a <= x <= b and a < b]
            if heights:
                out[i, j] = max(heights)
    return out

def differences(s, first, other, n=9):
    low, high, seeds = overlap(s, first, other)
    roots = [low ** 0.5 + (high ** 0.5 - low ** 0.5) * i / (n - 1) for i in range(n)]
    nats = np.array([min(max(root * root, low), high) for root in roots])
    columns = [a - b for a, b, there in zip(frontier(s, first, nats), frontier(s, other, nats), seeds) if there]
    return nats, np.stack(columns, 1)
''',
    "a row, written out": '''
def compare(s, first, other):
    low, high, seeds = overlap(s, first, other)
    row = dict(first=first, other=other, seeds=np.count_nonzero(seeds), kl_low=low, kl_high=high)
    if np.count_nonzero(seeds) == 0 or high < low:
        return row | {"verdict": "no overlap"}
    found = differences(s, first, other)[1].T    # (seeds, n)
    row["mean"], row["low"], row["high"] = claims.interval(np.average(found, axis=1))
    row["near_mean"], row["near_low"], row["near_high"] = claims.interval(found[:, 0])
    row["far_mean"], row["far_low"], row["far_high"] = claims.interval(found[:, -1])
    near_better, near_worse = row["near_low"] > 0, row["near_high"] < 0
    far_better, far_worse = row["far_low"] > 0, row["far_high"] < 0
    if (near_better and far_worse) or (near_worse and far_better):
        verdict = "depends on the KL"
    elif row["low"] > 0:
        verdict = "better"
    else:
        verdict = "worse" if row["high"] < 0 else "cannot be told apart"
    return row | {"verdict": verdict}
''',
    "Student's interval by hand": '''
def compare(s, first, other):
    low, high, seeds = overlap(s, first, other)
    n = sum(map(bool, seeds))
    row = {"first": first, "other": other, "seeds": n, "kl_low": low, "kl_high": high, "verdict": "no overlap"}
    if n == 0 or low > high:
        return row
    _, found = differences(s, first, other)
    signs = {}
    for end, values in {"": sum(found) / len(found), "near_": found[0], "far_": found[-1]}.items():
        mean = sum(values) / n
        half = math.inf
        if n > 1:
            half = claims.T95[n] * (sum((v - mean) ** 2 for v in values) / (n - 1) / n) ** 0.5
        row[f"{end}mean"], row[f"{end}low"], row[f"{end}high"] = mean, mean - half, mean + half
        signs[end] = int(mean - half > 0) - int(mean + half < 0)
    if {signs["near_"], signs["far_"]} == {1, -1}:
        row["verdict"] = "depends on the KL"
    else:
        row["verdict"] = {1: "better", 0: "cannot be told apart", -1: "worse"}[signs[""]]
    return row
''',
}
HIDDEN = ()
VARIANTS = {
    "evenly over the KL": (
        ("(KLs (n,), reward", "(KLs (n,), evenly spaced in nats and not in their roots, reward"),
        (GRID, "nats = np.linspace(low, high, n)")),
    "sure at both ends": (
        ("of the mean difference is above or below 0. It is",
         "of the mean difference is above or below\n    0, and those at both ends of the range too. It is"),
        (VERDICT, 'one = side(row) if side(row) == side(row, "near_") == side(row, "far_") else 0\n    '
         'row["verdict"] = "depends on the KL" if crossing else VERDICTS[one]')),
}
