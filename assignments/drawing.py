"""
What the figures for lectures share: stored results, computed curves, and panels that can be read from afar.

It has no command. figures.py draws with it. Docs: docs/teaching.md. Read next: figures.py
"""
import functools
import math

import numpy as np
import torch

from losses import LOSSES, Pairs
from measures import best_of
from study import bandit, pictures, places
from study.claims import Sweep
from support.verdict import outcome

# Okabe and Ito's colors, which color-blind readers can tell apart. Lines also differ in their dashes or markers.
BLUE, ORANGE, GREEN, PINK, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#444444"
STYLE = {"font.size": 16, "axes.titlesize": 17, "axes.labelsize": 16, "xtick.labelsize": 14, "ytick.labelsize": 14,
         "legend.fontsize": 14, "legend.frameon": False, "lines.linewidth": 2.5, "lines.markersize": 8,
         "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
         "figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.1,
         "svg.hashsalt": "nanoPref"}    # with a fixed salt and no date, an SVG has the same bytes each time

# ---------------------------------------------------------------------------------------------------------------------
# stored results

def stored(name):
    """The path of a file of study/results. Raises ValueError if it is missing."""
    path = places.RESULTS / name
    if not path.is_file():
        raise ValueError(f"{path}: no such file, and the figure is drawn from it; restore it from the repository")
    return path

def rows_of(name, *columns, **wanted):
    """
    The rows of a CSV file of study/results with these texts in their columns: an array (rows, columns) of numbers.
    Raises ValueError if the file is missing or has no such row, or if a row has no numbers there.
    """
    rows = [row for row in places.read_csv(stored(name)) if all(row.get(key) == text for key, text in wanted.items())]
    if not rows:
        raise ValueError(f"{stored(name)}: no row with {', '.join(wanted.values())}; restore it from the repository")
    try:
        return np.array([[float(row[column]) for column in columns] for row in rows])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{stored(name)}: damaged: expected numbers in {', '.join(columns)}") from None

read_sweep = functools.cache(Sweep)    # five figures need it, and reading takes as long as drawing

def sweep(*recipes, folder="."):
    """
    The Sweep of a folder of study/results. Raises ValueError if sweep.csv or curves.csv is missing or damaged, or has
    no reward of one of these recipes.
    """
    path, _ = stored(f"{folder}/sweep.csv"), stored(f"{folder}/curves.csv")
    try:
        s = read_sweep(path.parent)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: damaged, or curves.csv beside it is; restore both from the repository") from None
    for recipe in recipes:
        if np.isnan(s(recipe, "reward")).all():
            raise ValueError(f"{path}: no reward of {recipe!r}; restore it from the repository")
    return s

def curves(s, recipe, metric):
    """(steps (n,), values (seeds, n)) of a validation metric. Raises ValueError if it was not logged."""
    found = [s.curve(recipe, metric, seed) for seed in s.seeds]    # (2, n) each
    if not all(curve.size and curve.shape == found[0].shape for curve in found):
        raise ValueError(f"study/results: curves.csv lacks {metric} of {recipe!r}; restore it from the repository")
    return found[0][0], np.array([curve[1] for curve in found])

# ---------------------------------------------------------------------------------------------------------------------
# curves and numbers that are computed

def with_slope(function, low, high, n=401):
    """(x, function(x), its derivative), float64 arrays (n,). function: elementwise, of a tensor (n,)."""
    x = torch.linspace(low, high, n, dtype=torch.float64, requires_grad=True)
    y = function(x)
    return x.detach().numpy(), y.detach().numpy(), torch.autograd.grad(y.sum(), x)[0].numpy()

def loss_over_margin(name, **hparams):
    """The loss of a pair as a function of w - l in nats: the chosen completion has log-ratio w - l, the rejected 0."""
    zero = torch.zeros(1, dtype=torch.float64)
    return lambda gap: LOSSES[name].fn(Pairs(gap, zero, zero, zero, zero + 1, zero + 1), **hparams)[0]

def best_of_points(n_samples=1024, largest=64, seed=0):
    """
    {n: (reward, KL, bound of the KL)} of best-of-n on the exact world, in nats, for n = 1, 2, 4, ... up to `largest`.

    The reward is measures.best_of of samples that the reference draws for each prompt. The KL is the exact one of the
    best of n answers to the reference, and its bound is log n - (n - 1) / n.
    """
    ref, reward = bandit.world()    # (X, A)
    drawn = torch.multinomial(ref.exp(), n_samples, True, generator=torch.Generator().manual_seed(seed))
    order = reward.argsort(1)
    p = ref.exp().gather(1, order)                             # (X, A), from the worst answer to the best
    up_to, found = p.cumsum(1).clamp(max=1), {}
    for n, rewards in best_of(reward.gather(1, drawn).numpy()).items():
        if n <= largest:
            best = up_to ** n - (up_to - p).clamp(min=0) ** n      # P(the best of n is this answer)
            kl = torch.special.xlogy(best, best / p).sum(1).mean().item()
            found[n] = rewards.mean(), kl, math.log(n) - (n - 1) / n
    return found

def judged_rate(true_rate, bias, kind, orders, longer=0.8):
    """
    The run's win rate under a judge with a bias, ties counted half: an exact sum over all cases, without sampling.

    true_rate  share of the pairs in which the run's answer is better
    bias       share of the verdicts that are biased. All others name the better answer
    kind       what a biased verdict names. position: the answer that stands first, as A. length: the longer answer,
               which is the run's in a share `longer` of the pairs, whether it is better or not
    orders     A or B: every pair is asked once, with the run's answer there. both: both orders, combined by outcome
    """
    rate, points = 0.0, {"win": 1.0, "tie": 0.5, "flip": 0.5, "lose": 0.0}
    for better, is_longer in ((True, True), (True, False), (False, True), (False, False)):
        share = (true_rate if better else 1 - true_rate) * (longer if is_longer else 1 - longer)
        p_a = {}    # where the run's answer stands -> P(the verdict is A)
        for place in "AB":
            named = True if kind == "position" else is_longer == (place == "A")
            p_a[place] = bias * named + (1 - bias) * (better == (place == "A"))
        for first, p_first in (("A", p_a["A"]), ("B", 1 - p_a["A"])):
            for second, p_second in (("A", p_a["B"]), ("B", 1 - p_a["B"])):
                won = {"A": first == "A", "B": second == "B", "both": points[outcome(first, second)]}
                rate += share * p_first * p_second * won[orders]
    return rate

# ---------------------------------------------------------------------------------------------------------------------
# panels and files

def panels(fig, *labels, rows=1, **options):
    """The axes, row by row. Each has labels: (title, x label, y label). options: of fig.subplots."""
    fig.set_layout_engine("constrained")
    axes = list(fig.subplots(rows, len(labels) // rows, squeeze=False, **options).flat)
    for ax, (title, x, y) in zip(axes, labels):
        ax.set(title=title, xlabel=x, ylabel=y)
    return axes

def plain(*axes):
    """Writes ticks as plain numbers, 0.1 and not 10^-1. axes: ax.xaxis or ax.yaxis."""
    for axis in axes:
        axis.set_major_formatter(lambda value, position: f"{value:g}")

def mean_and_range(ax, x, ys, **style):
    """A line of means over seeds, with bars from the lowest to the highest. ys: an array (seeds,) for each x."""
    means, ranges = zip(*map(pictures.middle, ys))
    ax.errorbar(x, means, np.hstack(ranges), **{"capsize": 4, **style})

def bold(fig):
    """Makes what study/pictures.py has drawn readable from the back row, and removes its faint lines of seeds."""
    for ax in fig.axes:
        for line in list(ax.lines):
            if line.get_linewidth() < 1:
                line.remove()
        for line in ax.lines:
            line.set(linewidth=2.5, markersize=17 if line.get_marker() == "*" else 8)
        for bars in ax.collections:
            bars.set_linewidth(2)
        for text in ax.texts:
            text.set_fontsize(14)
        ax.minorticks_off()

def save(fig, path):
    """Writes a figure to a path that ends in .svg or .png (1,920 x 1,080). Two calls write the same bytes."""
    import matplotlib    # here, because it takes a second to import
    with matplotlib.rc_context(STYLE):
        fig.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
