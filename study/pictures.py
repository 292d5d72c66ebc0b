"""
The study's pictures, drawn from its CSV files alone. Docs: docs/study.md, docs/rlhf.md, docs/metrics.md.

`python -m study.sweep --draw` draws those of sweep.csv and curves.csv into out/study; with --update into study/figures.
`python -m study.estimators` draws `estimators`.
A method has one color in all pictures. Points are means over seeds, and bars go from the lowest to the highest seed.
Read next: table.py
"""
import itertools
import warnings

import numpy as np

from study.claims import Sweep

# Okabe and Ito's and Paul Tol's colors, which color-blind readers can tell apart. Twelve losses need markers as well.
COLORS = {"sft": "#444444", "dpo": "#0072B2", "hinge": "#CC6677", "ipo": "#009E73", "cdpo": "#56B4E9",
          "jsd": "#AA4499", "alpha0.3": "#DDCC77", "alpha0.5": "#999933", "alpha0.7": "#117733",
          "forward_kl": "#E69F00", "slic": "#882255", "unlikelihood": "#999999", "preferred_ft": "#7A4B1E",
          "sequential": "#332288", "parallel": "#44AA99", "replace": "#BB5566",
          "ppo": "#D55E00", "ppo_gt": "#D55E00", "rloo": "#CC79A7", "rloo_gt": "#CC79A7"}
MARKERS = {"jsd": "^", "alpha0.3": "v", "alpha0.5": "s", "alpha0.7": "p", "forward_kl": "<", "slic": "s",
           "unlikelihood": "P", "preferred_ft": "D", "rloo": "s", "rloo_gt": "s"}    # all others: "o"
TRUE_REWARD = ("ppo_gt", "rloo_gt")    # a dashed line and hollow markers, in the color of the learned reward's line
NAMES = {"sft": "SFT", "dpo": "DPO", "ipo": "IPO", "cdpo": "cDPO", "jsd": "fdpo, Jensen-Shannon",
         "alpha0.3": "fdpo, alpha 0.3", "alpha0.5": "fdpo, alpha 0.5", "alpha0.7": "fdpo, alpha 0.7",
         "forward_kl": "fdpo, forward KL", "slic": "SLiC-HF", "preferred_ft": "SFT on the chosen",
         "ppo": "PPO, learned reward", "ppo_gt": "PPO, true reward", "rloo": "RLOO, learned reward",
         "rloo_gt": "RLOO, true reward"}
METHODS = ("dpo", "hinge", "ipo", "cdpo", "jsd", "alpha0.3", "alpha0.5", "alpha0.7", "forward_kl", "slic",
           "unlikelihood", "preferred_ft")
ONLINE = ("ppo", "rloo", "ppo_gt", "rloo_gt")
THIN = {"ms": 4, "lw": 1.2, "elinewidth": 0.8, "capsize": 1.5}
REWARD = "reward: P(positive review)"
KL = "KL to the SFT policy (nats a completion)"

def name_of(method):
    """The name of a method in legends."""
    return NAMES.get(method, method)

def label_of(recipe):
    """A recipe as the pictures name it: "dpo beta=0.1" is "DPO, beta 0.1"."""
    method, *settings = recipe.split()
    return ", ".join([name_of(method), *(setting.replace("=", " ") for setting in settings)])

def middle(values):
    """(mean, [[distance down to the smallest], [distance up to the largest]]) over seeds."""
    mean = np.nanmean(values)
    # rounding may put the mean of equal values just outside their range
    return mean, [[max(0, mean - np.nanmin(values))], [max(0, np.nanmax(values) - mean)]]

def means(s, recipes, measure):
    """The mean of a measure over seeds, a number for each recipe."""
    return [np.nanmean(s(r, measure)) for r in recipes]

def figure(rows, columns, width, height):
    """(figure, axes (rows, columns)), with grids."""
    from matplotlib.figure import Figure
    fig = Figure(figsize=(width, height), layout="tight")
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    return fig, axes

def points(ax, method, x, ys, line="-", x_ranges=None, color=None):
    """Points of a method: x are numbers, ys an array (seeds,) each. Bars are the ranges over seeds."""
    y, y_ranges = zip(*map(middle, ys))
    style = dict(THIN, marker=MARKERS.get(method, "o"), color=color or COLORS[method], ls=line or "none")
    if method in TRUE_REWARD:
        style.update(ls="--", mfc="white")
    drawn = ax.errorbar(x, y, xerr=x_ranges, yerr=np.hstack(y_ranges), label=name_of(method), **style)
    _, caps, bars = drawn.lines
    for part in (*caps, *bars):
        part.set_alpha(0.55)    # points and lines stay visible where bars cross them

def in_order(s, method, x, y="reward"):
    """The settings of a method for which y was measured, in the order of the mean of x."""
    found = [r for r in s.points(method) if not np.isnan(s(r, y)).all()]
    return sorted(found, key=lambda r: np.nanmean(s(r, x)))

def trace(ax, s, method, x, y, line="-", color=None):
    """The settings of a method as points, joined in the order of x, with bars both ways."""
    if names := in_order(s, method, x, y):
        x_ranges = np.hstack([middle(s(r, x))[1] for r in names])
        points(ax, method, means(s, names, x), [s(r, y) for r in names], line, x_ranges, color)

def note(ax, text, xy, offset, **style):
    """Writes text beside a point. offset: the distance (right, up) in points of 1/72 inch."""
    words = ax.annotate(text, xy, offset, textcoords="offset points", **{"fontsize": 10, **style})
    words.set_in_layout(False)    # otherwise the panel shrinks to make room for the text

def best_of(ax, s, label, named=False):
    """The best of n samples of the reference, without n = 1, as a dashed line; named: its label stands beside it."""
    best = [r for r in s.points("best_of") if np.nanmean(s(r, "kl")) > 0]
    if best:
        kl, reward = means(s, best, "kl"), means(s, best, "reward")
        ax.plot(kl, reward, "k--", lw=1.4, label=label)
        if named:
            at = len(best) // 2 - 1
            note(ax, label, (kl[at], reward[at]), (-10, 4), ha="right")

def root_axis(ax, high):
    """A KL axis from 0 to `high` nats in the root of the KL, along which rewards are nearly straight lines."""
    ax.set_xscale("function", functions=(lambda kl: np.sqrt(np.maximum(kl, 0)), np.square))
    ticks = [0, 0.1, 0.5, 1, 2, 3, 4, 6, 8, 10, 12, 15, 20]
    ax.set(xlim=(0, high), xticks=[k for k in ticks if k <= high])
    ax.xaxis.set_major_formatter(lambda value, position: f"{value:g}")

ENVELOPE = "upper envelope of all losses (concave hull)"
COLDER = "SFT at lower temperatures"

def slope(a, b):
    """Reward per root of KL from one (KL, reward) to another."""
    return (b[1] - a[1]) / (b[0] ** 0.5 - a[0] ** 0.5)

def envelope(pairs):
    """
    The upper envelope of (KL, reward) pairs, as a list of its corners. It is the concave hull over the root of the KL
    up to the highest reward, and constant from there on. No point and no line between two points lies above it.
    """
    corners = []
    for kl, reward in sorted(pairs):
        while corners and corners[-1][0] == kl:
            corners.pop()    # the higher of two points at one KL comes later
        # a corner below the line from the one before it to the new point is no corner
        while len(corners) > 1 and slope(corners[-2], (kl, reward)) >= slope(corners[-2], corners[-1]):
            corners.pop()
        corners.append((kl, reward))
    top = max(range(len(corners)), key=lambda i: corners[i][1])
    return [*corners[:top + 1], (corners[-1][0], corners[top][1])]

# The methods with a line of their own in the frontier: {method: (the setting beside which its name stands, in the order
# of the KL; its offset in points; its alignment)}
SHOWN = {"dpo": (-2, (0, 8), "right"), "ipo": (1, (-9, 6), "right"), "jsd": (-1, (-3, -18), "center"),
         "forward_kl": (-1, (8, -10), "left"), "slic": (0, (10, -9), "left"), "preferred_ft": (0, (9, -5), "left")}
OTHERS = "hinge, cDPO, fdpo with alpha, unlikelihood"
FARTHEST = 6    # nats, the right end of the KL axis

def frontier(s):
    """Reward against KL: losses over their settings, their envelope, best of n, and SFT at lower temperatures."""
    fig, [[ax]] = figure(1, 1, 8, 5.2)
    recipes = ["sft"]
    for method in METHODS:
        recipes += s.points(method)
    kl, reward = zip(*envelope(zip(means(s, recipes, "kl"), means(s, recipes, "reward"))))
    handles = ax.plot(kl, reward, "-", color="0.75", lw=7, alpha=0.6, zorder=0, label=ENVELOPE)
    others = [r for r in recipes if r != "sft" and r.split()[0] not in SHOWN]
    handles += ax.plot(means(s, others, "kl"), means(s, others, "reward"), "o", color="0.6", ms=4, label=OTHERS)
    for method in SHOWN:
        trace(ax, s, method, "kl", "reward")
        write_names(ax, s, method)
    best_of(ax, s, "best of 2 to 64 samples of SFT", named=True)
    colder(ax, s)
    root_axis(ax, FARTHEST)
    ax.legend(handles=handles, loc=(0.42, 0.19), fontsize=9)
    ax.set(xlabel=f"{KL}, root scale", ylabel=REWARD, ylim=(0.4, 1.03),
           title="Reward against KL. Bars: lowest to highest seed")
    return fig

def write_names(ax, s, method):
    """Writes a method's name beside its line in the frontier, and explains its points that stand out."""
    names, color = in_order(s, method, "kl"), COLORS[method]
    place, offset, side = SHOWN[method]
    if names:
        beside = names[np.clip(place, -len(names), len(names) - 1)]    # --quick has fewer settings
        xy = [np.nanmean(s(beside, measure)) for measure in ("kl", "reward")]
        note(ax, name_of(method), xy, offset, ha=side, color=color, weight="bold")
    explain(ax, s, names, color)

def explain(ax, s, recipes, color, up=10):
    """
    A note on each point beyond the right end of the axis, and on each with seeds that stayed at the SFT policy.

    up: where the notes of the first kind start, in points above the line.
    """
    for recipe in recipes:
        kl, reward = s(recipe, "kl"), s(recipe, "reward")
        mean, still = np.nanmean(kl), np.sum(kl < 0.01)
        if mean > FARTHEST:
            text = f"{label_of(recipe)}:\n{np.nanmean(reward):.2f} at {mean:.1f} nats \N{RIGHTWARDS ARROW}"
            note(ax, text, (FARTHEST, np.nanmean(reward)), (-4, up), ha="right", color=color, fontsize=9)
        elif still:
            text = f"{label_of(recipe)}: {still} of {np.sum(~np.isnan(kl))} seeds stayed at KL 0"
            note(ax, text, (mean, np.nanmean(reward)), (10, -16), color=color, fontsize=9)

def colder(ax, s):
    """The SFT policy at temperature 1 and below, as squares with their temperatures."""
    cold = [r for r in s.recipes if r.startswith("sft T=")]
    if not cold:
        return
    kl, reward = means(s, ["sft", *cold], "kl"), means(s, ["sft", *cold], "reward")
    ax.plot(kl, reward, "s-.", color=COLORS["sft"], ms=4, lw=1, label=COLDER)
    for recipe, x, y in zip(cold, kl[1:], reward[1:]):
        if x <= FARTHEST:
            note(ax, recipe.split("T=")[1], (x, y), (0, -14), ha="center", color=COLORS["sft"], fontsize=9)
    last = f" ({cold[-1].split('T=')[1]}: {reward[-1]:.2f} at {kl[-1]:.0f} nats \N{RIGHTWARDS ARROW})"
    note(ax, COLDER + (last if kl[-1] > FARTHEST else ""), (0, reward[0]), (8, -38), color=COLORS["sft"], fontsize=9)

def rlhf(s):
    """DPO and what it replaces: reward against KL, wins by temperature, learned and true reward along training."""
    fig, axes = figure(2, 2, 11, 9)
    for method in ("dpo", *ONLINE, "unlikelihood", "preferred_ft"):
        trace(axes[0][0], s, method, "kl", "reward")
    explain(axes[0][0], s, s.points("dpo"), COLORS["dpo"], up=-34)
    best_of(axes[0][0], s, "best of n samples of SFT")
    root_axis(axes[0][0], FARTHEST)
    axes[0][0].set(xlabel=f"{KL}, root scale", ylabel=REWARD, ylim=(0.45, 1.01), title="Reward against KL")
    by_temperature(axes[0][1], s, ("sft", "dpo", *ONLINE))
    axes[0][1].set_title("Wins by sampling temperature")
    for method, label in (("dpo", "DPO, beta 0.1"), ("ppo", "PPO, beta 0 (no KL penalty)")):
        style = {"color": COLORS[method], "lw": 0.9, "ms": 4, "alpha": 0.8}
        for step, true, learned in long_runs(s, f"along_{method}"):
            axes[1][0].plot(step, learned - learned[0], ".-", label=label, **style)
            axes[1][1].plot(step, true, ".-", **style)
            label = None    # one entry of the legend for all seeds
    axes[1][0].set(xlabel="update", ylabel="learned reward since the start (nats)",
                   title="Long runs: the learned reward, a line a seed")
    axes[1][1].set(xlabel="update", ylabel=f"true {REWARD}", title="The same runs: the true reward")
    return fig

def long_runs(s, name):
    """Yields (steps, true rewards, learned rewards) of a run that kept its checkpoints, for each seed."""
    if found := s.checkpoints(name):
        for i in range(len(s.seeds)):
            true, learned = (np.array([s(r, m)[i] for r in found.values()]) for m in ("reward", "proxy"))
            if not np.isnan(true).all():
                yield list(found), true, learned

def diversity(s):
    """Reward against entropy a token, as the reports draw it, and against the entropy of 25 samples."""
    fig, [[left, right]] = figure(1, 2, 11, 5.2)
    trace(left, s, "sft", "entropy", "reward", "")
    trace(right, s, "sft", "pooled_25", "reward", "")
    for method in METHODS:
        trace(left, s, method, "entropy", "reward", "")
        trace(right, s, method, "pooled_25", "reward", "")
    left.set(xlabel="entropy of the next token (nats)", ylabel=REWARD, title="Diversity by token: every setting")
    right.set(xlabel="entropy of all tokens of a prompt's 25 samples (nats)", ylabel=REWARD,
              title="Diversity by prompt: one setting a method")
    return fig

def label_bias(s):
    """Reward by the label of the prompt's review, before and after each method."""
    fig, [[ax]] = figure(1, 1, 8.5, 6)
    names = ["sft", *(r for r in s.recipes_with("pooled_25") if r.split()[0] in METHODS)]
    for i, (side, hatch) in enumerate((("negative", "//"), ("positive", ""))):
        for j, name in enumerate(names):
            mean, error = middle(s(name, f"reward_{side}"))
            ax.barh(j + 0.4 * i - 0.2, mean, 0.38, xerr=error, color=COLORS[name.split()[0]], hatch=hatch,
                    edgecolor="white", capsize=2, label=f"prompts of {side} reviews" if j == 0 else None)
    ax.set(yticks=range(len(names)), yticklabels=map(label_of, names), xlabel=REWARD, xlim=(0, 1))
    ax.set_title("Reward by the label of the review that the prompt was cut from", pad=28)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    ax.invert_yaxis()    # SFT at the top
    return fig

def lines(ax, s, recipe, metric, color, label, split="val", line="-"):
    """A metric over the updates, a line for each seed: a mean would hide the seed that breaks."""
    for seed in s.seeds:
        if (curve := s.curve(recipe, metric, seed, split)).size:
            ax.plot(*curve, line, color=color, lw=0.9, alpha=0.8, label=label)
            label = None

def training(s):
    """What DPO and IPO do to both completions of held-out pairs."""
    fig, [axes] = figure(1, 3, 11.5, 3.8)
    panels = ((("rewards/chosen", "rewards/rejected"), "Implicit rewards of held-out pairs", "beta x log-ratio (nats)"),
              (("logps/chosen", "logps/rejected"), "Log-probs of held-out pairs", "nats a completion"),
              (("rewards/accuracies",), "Accuracy on held-out pairs", "share of pairs"))
    for ax, (metrics, title, unit) in zip(axes, panels):
        for method in ("dpo", "ipo"):
            for metric, line in zip(metrics, ("-", "--")):
                label = f"{method.upper()}: {metric.split('/')[1]}" if len(metrics) > 1 else method.upper()
                lines(ax, s, f"{method} beta=0.1", metric, COLORS[method], label, line=line)
        ax.set(title=title, xlabel="update", ylabel=unit)
    return fig

SHIFT = 0.014    # sideways from one method's points to the next one's, in units of temperature

def temperature(s):
    """Wins against the SFT policy at temperature 1 over the sampling temperature."""
    fig, [[ax]] = figure(1, 1, 9, 6)
    by_temperature(ax, s, ("sft", *METHODS))
    ax.set_title("Wins against SFT by sampling temperature, one setting a method")
    return fig

def by_temperature(ax, s, methods):
    """Draws the win rate of each method's main setting over the sampling temperature, methods shifted sideways."""
    cold = {m: [r for r in s.recipes if r.split()[0] == m and " T=" in r] for m in methods}
    cold = {m: names for m, names in cold.items() if names}
    for i, (method, names) in enumerate(cold.items()):
        wins = {float(r.split("T=")[1]): s(r, "win") for r in names}
        wins[1.0] = s(names[0].split(" T=")[0], "win")
        heat = sorted(wins)
        shift = SHIFT * (i - (len(cold) - 1) / 2)    # otherwise all bars of a temperature lie on one line
        points(ax, method, [t + shift for t in heat], [wins[t] for t in heat])
        ax.set_xticks(heat)
    ax.axhline(0.5, color="0.4", lw=1, ls=":", label="as good as SFT at temperature 1")
    ax.set(xlabel="sampling temperature (points are shifted sideways)",
           ylabel="win rate against SFT at temperature 1", ylim=(0, 1.05))

def gain(s, recipe):
    """(seeds,): reward gained over SFT per root of the KL."""
    return (s(recipe, "reward") - s("sft", "reward")) / s(recipe, "kl") ** 0.5

def adapters(s):
    """DPOP with adapters of several ranks and without: reward, KL, and reward gained per root of KL."""
    fig, [axes] = figure(1, 3, 11.5, 3.8)
    for method in ("sequential", "parallel", "replace"):
        for ax, y in zip(axes, ("reward", "kl")):
            trace(ax, s, method, "trainable", y)
        names = sorted(s.points(method), key=lambda r: np.nanmean(s(r, "trainable")))
        if names:
            points(axes[2], method, means(s, names, "trainable"), [gain(s, r) for r in names])
    full = "default dpop"
    if s.points("sequential"):
        for ax, values in zip(axes, (s(full, "reward"), s(full, "kl"), gain(s, full))):
            mean, error = middle(values)
            ax.errorbar(np.nanmean(s(full, "trainable")), mean, yerr=error, fmt="D", color="black", ms=5, capsize=1.5,
                        label="no adapter: all trained")
    units = REWARD, KL, "reward gained over SFT / root of KL"
    for ax, unit, title in zip(axes, units, ("Reward", "KL", "Reward for its KL")):
        ax.set(xscale="log", xlabel="trained parameters", ylabel=unit, title=title)
    return fig

def watch(s):
    """Every logged metric in a healthy run, and in one that is pushed too far."""
    metrics = (("loss", "val"), ("rewards/accuracies", "val"), ("rewards/margins", "val"), ("rewards/chosen", "val"),
               ("rewards/rejected", "val"), ("logps/chosen", "val"), ("logps/rejected", "val"), ("grad_norm", "train"))
    fig, axes = figure(2, 4, 11.5, 6)
    legend = axes[0][1]    # the panel with room for it
    for ax, (metric, split) in zip(axes.flat, metrics):
        for recipe, color, label in (("dpo beta=0.3", COLORS["dpo"], "healthy: beta 0.3,\nlr 1e-3, epsilon 1e-3"),
                                     ("too_fast", "#CC3311", "unhealthy: beta 0.1,\nlr 3e-3, epsilon 1e-8")):
            lines(ax, s, recipe, metric, color, label if ax is legend else None, split)
        ax.set_title(f"{metric} ({'validation' if split == 'val' else 'training'})", fontsize=9)
        ax.set_yscale("log" if metric == "grad_norm" else "linear")
        ax.set_xlabel("update", fontsize=8)
    return fig

def along(s):
    """Long runs at a constant learning rate: validation loss, reward and KL over the updates."""
    fig, [axes] = figure(1, 3, 11.5, 3.8)
    for name in ("along_dpo", "along_ipo"):
        method = name.removeprefix("along_")
        for i in range(len(s.seeds)):
            long_run(axes, s, name, i, COLORS[method], method.upper() if i == 0 else None)
    units = "validation loss / loss at the start", REWARD, "KL to SFT (nats a completion)"
    titles = "Validation loss (star: lowest)", "Reward", "KL: linear to 1, then logarithmic"
    for ax, unit, title in zip(axes, units, titles):
        ax.set(xlabel="update", ylabel=unit, title=title)
    axes[2].set_yscale("symlog", linthresh=1)
    return fig

STAR = {"ms": 9, "mfc": "none", "mew": 1.2}    # hollow: stars at one place stay visible

def long_run(axes, s, name, i, color, label):
    """Draws one seed of a long run into the panels of loss, reward and KL."""
    losses = s.curve(name, "loss", s.seeds[i])    # (2, n): steps and values
    found = s.checkpoints(name)
    if not losses.size or not found:
        return
    relative = losses[1] / losses[1][0]
    lowest = relative.argmin()
    axes[0].plot(losses[0], relative, color=color, lw=1, label=label)
    axes[0].plot(losses[0][lowest], relative[lowest], "*", color=color, **STAR)
    stop = int(losses[0][lowest])
    for ax, measure in ((axes[1], "reward"), (axes[2], "kl")):
        values = {step: s(r, measure)[i] for step, r in found.items()}
        ax.plot(list(values), list(values.values()), color=color, lw=1, label=label)
        if stop in values:
            ax.plot(stop, values[stop], "*", color=color, **STAR)

PICTURES = (frontier, rlhf, diversity, label_bias, training, temperature, adapters, watch, along)

def colors_of(methods):
    """{method: color}: its color in all pictures, or for a loss without one a color that no other method here has."""
    own = {method: COLORS[method] for method in methods if method in COLORS}
    free = [c for c in dict.fromkeys(COLORS.values()) if c not in {*own.values(), COLORS["sft"]}]
    others = [method for method in methods if method not in own]
    return own | dict(zip(others, itertools.cycle(free)))

def draw_methods(s, methods, folder):
    """Draws frontier.png into a folder: the settings of a few methods and their upper envelopes, and SFT."""
    fig, [[ax]] = figure(1, 1, 8, 5.2)
    colors, farthest = colors_of(methods), 0.1
    for method in methods:
        trace(ax, s, method, "kl", "reward", line="", color=colors[method])
        if names := in_order(s, method, "kl"):
            x, y = zip(*envelope(zip(means(s, names, "kl"), means(s, names, "reward"))))
            ax.plot(x, y, "-", color=colors[method], lw=1.2)
        explain(ax, s, names, colors[method], up=-34)    # below the line: the frontier is at the top
        farthest = max([farthest, *means(s, names, "kl")])
    if "sft" in s.recipes:
        ax.plot(0, np.nanmean(s("sft", "reward")), "s", color=COLORS["sft"], ms=5, label=name_of("sft"))
    root_axis(ax, min(FARTHEST, 1.15 * farthest))
    ax.set(xlabel=f"{KL}, root scale", ylabel=REWARD, title="Reward against KL. Bars: lowest to highest seed")
    save(fig, folder / "frontier.png")

def save(fig, path):
    """Adds a legend to each panel that has none and has labels, and writes the picture."""
    for ax in fig.axes:
        if (names := ax.get_legend_handles_labels()[1]) and not ax.get_legend():
            ax.legend(fontsize=8, ncols=2 if len(names) > 6 else 1)
    fig.savefig(path, dpi=110)

def draw(results, figures):
    """Draws all pictures of the results in a folder into another. Skips a picture without data, as after --quick."""
    s = Sweep(results)
    for picture in PICTURES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)    # what was not measured has a mean of NaN: not drawn
            fig = picture(s)
        if any(ax.has_data() for ax in fig.axes):
            save(fig, figures / f"{picture.__name__}.png")

# ---------------------------------------------------------------------------------------------------------------------
# the KL estimators, from estimators.csv

# estimator -> (name, color, marker)
ESTIMATORS = {"k1": ("k1", "#0072B2", "o"), "k2": ("k2", "#E69F00", "s"), "k3": ("k3", "#009E73", "^"),
              "k3 inverted": ("k3 with the ratio inverted, a mistake", "#CC79A7", "v"),
              "vocabulary": ("KL over the whole vocabulary", "#444444", "D")}

def against_kl(ax, rows, column, over=None):
    """
    A column of estimators.csv against the KL, divided by column `over` if it is given. On the exact world a thick line
    is the mean over seeds, and thin lines are the seeds. On the toy world a point is a run.
    """
    for estimator, (name, color, marker) in ESTIMATORS.items():
        seeds, style = {}, {"color": color, "marker": marker, "ms": 4, "label": name}
        for row in rows:
            if row["estimator"] == estimator:
                value = float(row[column]) / (float(row[over]) if over else 1)
                seeds.setdefault(row["seed"], []).append((float(row["kl"]), value))
        if seeds and rows[0]["world"] == "exact":
            for of_seed in seeds.values():
                ax.plot(*zip(*of_seed), color=color, lw=0.6, alpha=0.4)
            ax.plot(*np.mean([*seeds.values()], 0).T, lw=1.6, **style)
        elif seeds:
            ax.plot(*zip(*itertools.chain(*seeds.values())), ls="none", alpha=0.8, **style)

def estimators(path, rows):
    """
    Mean and standard deviation of the estimators relative to the KL on both worlds, and the cosine of their expected
    gradients with the exact one on the exact world. rows: of estimators.csv, as texts.
    """
    fig, axes = figure(2, 3, 11, 6.6)
    exact, toy = ([row for row in rows if row["world"] == world and row["unit"] in ("answer", "completion")]
                  for world in ("exact", "toy"))
    for (mean, std, _), mine, world in zip(axes, (exact, toy), ("exact world", "toy world")):
        mean.axhline(1, color="#444444", lw=0.8)
        against_kl(mean, [row for row in mine if row["estimator"] != "vocabulary"], "mean", "kl")
        against_kl(std, mine, "std", "kl")
        mean.set_title(f"{world}: mean / KL (right: 1)", fontsize=10)
        std.set_title(f"{world}: standard deviation / KL", fontsize=10)
        ticks = [0.7, 1, 1.5, 2, 3, 5]
        mean.set(yscale="log", ylim=(0.6, 6), yticks=ticks, yticklabels=ticks)
        std.set(yscale="log", ylim=(0.15, 300))
    for ax, place in zip(axes[:, 2], ("reward", "loss")):
        against_kl(ax, exact, f"{place} cosine")
        ax.set_title(f"cosine with the right gradient: in the {place}", fontsize=10)
        ax.set(ylim=(-1.08, 1.08))
    for ax in axes.flat:
        ax.set(xscale="log", xlabel="KL to the reference, nats")
    for ax in axes[1, :2] if toy else ():
        ax.set(xticks=[0.2, 0.5, 1, 2, 5, 10, 20])
    for ax in axes.flat:
        ax.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
        ax.minorticks_off()
    handles = {name: line for ax in axes[::-1, 1] for line, name in zip(*ax.get_legend_handles_labels())}
    fig.set_layout_engine("constrained")
    fig.legend(handles.values(), handles, loc="outside upper center", ncols=5, fontsize=9)
    fig.savefig(path, dpi=110)
