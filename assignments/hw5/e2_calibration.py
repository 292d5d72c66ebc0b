"""
calibration and hits: whether a reward model's probabilities are right

Predictions in bins, mean prediction against share of hits, weighted by count.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/train_reward.py:calibration", "rlhf/train_reward.py:hits"]
POINTS, MINUTES = 3, 30

def probes(rng):
    """Many and few predictions, bins that stay empty, predictions on the edges of bins, 0 and 1, one prediction."""
    def made(p, bins, **more):
        p = np.asarray(p, dtype="float64")
        odds = np.round(rng.normal(0, 1, len(p)), 2) + np.where(rng.uniform(size=len(p)) < 0.5, 0.003, -0.003)
        odds[::4] = 0.0
        odds[1::5] = rng.uniform(0.1, 0.4, len(odds[1::5]))    # log-odds below 1/2 that are positive
        return dict(p=p, correct=rng.uniform(size=len(p)) < 0.2 + 0.5 * p, odds=odds, bins=bins, **more)
    few = np.concatenate([rng.uniform(0.02, 0.19, 3), rng.uniform(0.62, 0.78, 5), rng.uniform(0.92, 0.99, 2)])
    edges = np.concatenate([[0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.25, 0.5], rng.uniform(0, 1, 6)])
    confident = np.concatenate([rng.uniform(0.9, 1, 11), [1.0, 1.0, 0.0], rng.uniform(0.3, 0.5, 2)])
    found = [made(rng.uniform(0, 1, 61), 10, title="61 predictions, ten bins"),
             made(rng.uniform(0, 1, 40) ** 3, 7, title="40 predictions, most of them low, seven bins"),
             made(few, 5, title="bins that stay empty"),
             made(edges, 4, title="predictions on the edges of bins"),
             made(confident, 10, title="predictions near 1, and 1 itself"),
             made([rng.uniform(0.55, 0.95)], 10, title="one prediction")]
    found[2]["correct"][:3], found[2]["correct"][-2:] = True, False    # both errors are large, of opposite signs
    return found

def run(module, probe):
    """The error and the table of `calibration`, and what `hits` says of log-odds."""
    import numpy as np
    p, correct, odds = (probe[name].numpy() for name in ("p", "correct", "odds"))
    found = {"hits": np.asarray(module.hits(odds, correct), dtype="float64")}
    error, table = module.calibration(p, correct, probe["bins"])
    found.update(error=float(error), table=np.array([tuple(row) for row in table], dtype="float64"))
    return found

PLACE, TOP = "place = np.minimum((p * bins).astype(int), bins - 1)", "    # p = 1 belongs to the last bin"
FULL, INSIDE = "if inside.any():", "inside = place == b"
ROW = "table.append((float(p[inside].mean()), float(correct[inside].mean()), int(inside.sum())))"
ERROR = "error = sum(abs(predicted - share) * n for predicted, share, n in table) / len(p)"
HITS = "return measures.ties_half(np.where(happened, log_odds, -log_odds))"
BINS, MEAN, HIT = "Which bin", "The mean over bins", "A hit"
BY_HAND = "test_reward.py::test_calibration_by_hand"
TABLE = "test_advantages.py::test_calibration_of_unequal_bins"
ALL = "test_advantages.py::test_every_prediction_is_in_one_bin"
ODDS = "test_advantages.py::test_hits_by_hand"
SWAPPED = "test_reward.py::test_the_predicted_preference_is_not_always_for_the_first"
WEIGHT = "Take nine predictions in one bin and one in another. How much does each bin count?"
EVENT = "Take an event that did not happen, with log-odds of -3. Is this a hit?"
MISTAKES = {
    "p = 1 is in no bin": Mistake(((PLACE, "place = (p * bins).astype(int)"),),
        "Add up the counts of your table. Are all predictions in it?", BINS, ALL,
        "reward.json: the counts of the calibration table do not sum to n if the model is certain of some pairs."),
    "p = 1 in the first bin": Mistake(((PLACE, "place = (p * bins).astype(int) % bins"),),
        "In which bin is p = 1? Print the mean p of each bin.", BINS, ALL),
    "rounded to the nearest bin": Mistake(((PLACE, "place = np.minimum(np.rint(p * bins).astype(int), bins - 1)"),),
        "With ten bins, in which one is p = 0.07? Which values of p are in the first bin?", BINS, TABLE),
    "edges belong to the lower bin": Mistake(((PLACE, "place = np.maximum(np.ceil(p * bins).astype(int) - 1, 0)"),),
        "With four bins, in which one is p = 0.5? What does the docstring say of edges?", BINS, TABLE),
    "edges belong to the lower bin, and 0 to none": Mistake(
        ((PLACE, "place = np.ceil(p * bins).astype(int) - 1"),),
        "With four bins, in which one is p = 0.5? What does the docstring say of edges?", BINS, TABLE),
    "edges belong to both bins": Mistake(((INSIDE, "inside = (p >= b / bins) & (p <= (b + 1) / bins)"),),
        "Add up the counts of your table. Is any prediction in it twice?", BINS, TABLE),
    "always ten bins": Mistake(((PLACE, "bins = 10\n    place = np.minimum((p * bins).astype(int), bins - 1)"),),
        "Which of your lines uses `bins`?", BINS, TABLE),
    "bins of equal counts": Mistake(((PLACE, "place = p.argsort().argsort() * bins // len(p)"),),
        "Are the bins of equal width or of equal count? Which one can be empty?", BINS, TABLE,
        "reward.json: all rows of the calibration table have nearly the same count, also if most p are near 1."),
    "bins of the confidence": Mistake(
        ((PLACE, "p, correct = np.maximum(p, 1 - p), np.where(p < 0.5, ~correct, correct)\n"
                 "    place = np.minimum((p * bins).astype(int), bins - 1)"),),
        "Is an event with p = 0.1 in a low bin or in a high one? The bins cover all of [0, 1].", BINS, TABLE,
        "reward.json: no row of the calibration table has a mean p below one half."),
    "empty bins in the table": Mistake(((FULL, "if not inside.any():\n            table.append((0.0, 0.0, 0))\n"
                                               "        else:"),),
        "Which rows does the docstring promise? What is the mean of no numbers?", BINS, TABLE),
    "the middle of the bin": Mistake(((ROW, ROW.replace("float(p[inside].mean())", "(b + 0.5) / bins")),),
        "A model that says 0.9 ten times has a mean prediction of 0.9. What is the first column of your table?", MEAN,
        BY_HAND, "A model that always says 0.5 for a fair coin has a calibration error of 0.05."),
    "columns exchanged": Mistake(((ROW,
        "table.append((float(correct[inside].mean()), float(p[inside].mean()), int(inside.sum())))"),),
        "Compare the order of the columns with the docstring.", MEAN, BY_HAND),
    "counts of hits": Mistake(((ROW,
        "table.append((float(p[inside].mean()), float(correct[inside].mean()), int(correct[inside].sum())))"),),
        "Add up the counts of your table. Is the sum n?", MEAN, BY_HAND),
    "each bin counts the same": Mistake(((ERROR,
        "error = sum(abs(predicted - share) for predicted, share, n in table) / len(table)"),), WEIGHT, MEAN, TABLE,
        "One unusual pair, alone in its bin, can move the calibration error of 500 pairs by several hundredths."),
    "each bin counts the same, empty ones too": Mistake(((ERROR,
        "error = sum(abs(predicted - share) for predicted, share, n in table) / bins"),), WEIGHT, MEAN, BY_HAND),
    "signed differences": Mistake(((ERROR,
        "error = abs(sum((predicted - share) * n for predicted, share, n in table)) / len(p)"),),
        "One bin predicts too much, another too little. May they cancel each other?", MEAN, TABLE,
        "A model that is overconfident in both directions has a calibration error of nearly 0."),
    "signed differences, with their sign": Mistake(((ERROR,
        "error = sum((predicted - share) * n for predicted, share, n in table) / len(p)"),),
        "Can your error be negative?", MEAN, TABLE),
    "squared differences": Mistake(((ERROR,
        "error = sum((predicted - share) ** 2 * n for predicted, share, n in table) / len(p)"),),
        "A model that says 0.9 and is right half of the time is off by how much?", MEAN, BY_HAND),
    "the worst bin": Mistake(((ERROR, "error = max(abs(predicted - share) for predicted, share, n in table)"),),
        "Take nine good predictions in one bin and a bad one in another. Which error do you expect?", MEAN, TABLE),
    "the error of each prediction": Mistake(((ERROR, "error = float(np.abs(p - correct).mean())"),),
        "A fair coin that is always predicted with 0.5 is well calibrated. Is your error 0?", MEAN, BY_HAND),
    "not divided by n": Mistake(((ERROR, ERROR.removesuffix(" / len(p)")),),
        "Give every prediction twice. Does your error change?", MEAN, BY_HAND),
    "a tie is a hit": Mistake(((HITS, "return (np.where(happened, log_odds, -log_odds) >= 0) * 1.0"),),
        "What is the share of hits of a model whose log-odds are all 0?", HIT, ODDS,
        "reward.json of a model that is not trained says: accuracy 1."),
    "a tie is no hit": Mistake(((HITS, "return (np.where(happened, log_odds, -log_odds) > 0) * 1.0"),),
        "What is the share of hits of a model whose log-odds are all 0?", HIT, ODDS,
        "reward.json of a model that is not trained says: accuracy 0."),
    "a tie is a prediction": Mistake(((HITS, "return ((log_odds > 0) == happened) * 1.0"),),
        "What does a model predict whose log-odds are 0? What does the docstring give for it?", HIT, ODDS),
    "a tie is a prediction that it happened": Mistake(((HITS, "return ((log_odds >= 0) == happened) * 1.0"),),
        "What does a model predict whose log-odds are 0? What does the docstring give for it?", HIT, ODDS),
    "what happened is not used": Mistake(((HITS, "return measures.ties_half(log_odds)"),), EVENT, HIT, SWAPPED,
        "reward.json of a good reward model of pairs has an accuracy near 0.5."),
    "log-odds taken as probabilities": Mistake(((HITS,
        "return measures.ties_half(np.where(happened, log_odds - 0.5, 0.5 - log_odds))"),),
        "Which log-odds belong to a probability of one half?", HIT, ODDS),
    "the other way": Mistake(((HITS, "return measures.ties_half(np.where(happened, -log_odds, log_odds))"),), EVENT,
        HIT, SWAPPED),
}
ALTERNATIVES = {
    "a loop over predictions": '''
def calibration(p, correct, bins=10):
    held = {}
    for one, right in zip(p.tolist(), correct.tolist()):
        held.setdefault(min(int(one * bins), bins - 1), []).append((one, right))
    table, error = [], 0.0
    for b in sorted(held):
        n = len(held[b])
        predicted, share = sum(one for one, _ in held[b]) / n, sum(right for _, right in held[b]) / n
        table.append([predicted, share, n])
        error += n / len(p) * abs(predicted - share)
    return error, table

def hits(log_odds, happened):
    signed = log_odds * (2.0 * happened - 1)
    return (np.sign(signed) + 1) / 2
''',
    "counts of bins": '''
def calibration(p, correct, bins=10):
    which = np.clip(np.digitize(p, np.arange(1, bins) / bins), 0, bins - 1)
    n, sums = np.bincount(which, minlength=bins), np.bincount(which, weights=p, minlength=bins)
    right = np.bincount(which, weights=correct.astype(float), minlength=bins)
    error = np.abs(sums - right).sum() / n.sum()
    return error, [(sums[b] / n[b], right[b] / n[b], n[b]) for b in np.flatnonzero(n)]

def hits(log_odds, happened):
    found = np.full(len(log_odds), 0.5)
    found[(log_odds > 0) & happened], found[(log_odds < 0) & ~happened] = 1, 1
    found[(log_odds > 0) & ~happened], found[(log_odds < 0) & happened] = 0, 0
    return found
''',
}
WHOLE = "error = sum over bins of n_bin / n * |mean p in the bin - share of correct in the bin|"
EDGES = ("Bins have equal width on [0, 1]. A p on the edge\n    of two bins belongs to the upper one, and p = 1 to the "
         "last one.")
VARIANTS = {
    "the root of the mean square": (
        (ERROR, "error = (sum((predicted - share) ** 2 * n for predicted, share, n in table) / len(p)) ** 0.5"),
        (WHOLE, "error = root of the sum over bins of n_bin / n * (mean p in the bin - share of correct in the bin)^2"),
        ("Expected calibration error of predicted probabilities:",
         "Root mean squared calibration error of predictions:")),
    "equal counts": (
        (PLACE + TOP, "place = p.argsort(kind=\"stable\").argsort() * bins // len(p)"),
        (EDGES, "Bins have equal counts: in the order\n    of rising p, prediction i = 0, 1, ... is in the bin "
                "i * bins // n. Equal p stay in their order.")),
}
