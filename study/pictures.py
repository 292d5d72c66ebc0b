"""
The study's pictures, drawn from study/results/sweep.csv and curves.csv alone. One colour a method everywhere. Read first: claims.py
"""
import warnings

import numpy as np

from study.claims import Sweep

COLOURS = {"sft": "#444444", "dpo": "#1f77b4", "hinge": "#ff7f0e", "ipo": "#2ca02c", "cdpo": "#17becf", "jsd": "#9467bd",
           "alpha0.3": "#c49c94", "alpha0.5": "#8c564b", "alpha0.7": "#bd8f13", "forward_kl": "#d62728", "slic": "#e377c2",
           "unlikelihood": "#7f7f7f", "preferred_ft": "#bcbd22", "sequential": "#1f77b4", "parallel": "#ff7f0e", "replace": "#2ca02c",
           "best_of": "black", "ppo": "#000080", "ppo_gt": "#006400", "rloo": "#ff7f0e", "rloo_gt": "#d62728"}
THIN = {"ms": 4, "lw": 1.2, "elinewidth": 0.6, "capsize": 1.5}
METHODS = ("dpo", "hinge", "ipo", "cdpo", "jsd", "alpha0.3", "alpha0.5", "alpha0.7", "forward_kl", "slic", "unlikelihood", "preferred_ft")
ONLINE = ("ppo", "rloo", "ppo_gt", "rloo_gt")

def middle(values):
    """(mean, distance down to the smallest, up to the largest) over seeds."""
    mean = np.nanmean(values)
    return mean, [[max(0, mean - np.nanmin(values))], [max(0, np.nanmax(values) - mean)]]    # rounding may put the mean outside

def figure(rows, columns, width=10.0, height=3.4):
    from matplotlib.figure import Figure
    fig = Figure(figsize=(width, height), layout="tight")
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    return fig, axes

def trace(ax, s, method, x, y, line="-"):
    """A method's points, its knob from end to end, with the range over seeds both ways."""
    names = sorted(s.points(method), key=lambda r: np.nanmean(s(r, x)))
    names = [r for r in names if not np.isnan(s(r, y)).all()]
    if names:
        (mx, ex), (my, ey) = (zip(*(middle(s(r, m)) for r in names)) for m in (x, y))
        ax.errorbar(mx, my, xerr=np.hstack(ex), yerr=np.hstack(ey), fmt="o" + line, color=COLOURS[method], label=method, **THIN)

def best_of(ax, s, label):
    """The reference's best of n, without n = 1."""
    best = [r for r in s.points("best_of") if np.nanmean(s(r, "kl")) > 0]
    if best:
        ax.plot([np.nanmean(s(r, "kl")) for r in best], [np.nanmean(s(r, "reward")) for r in best], "k--", lw=1.2, label=label)

def frontier(s):
    """Reward against KL: all methods over their knobs, their envelope, best of n, and the SFT policy at lower temperatures."""
    fig, [[ax]] = figure(1, 1, 9, 5)
    for method in METHODS:
        trace(ax, s, method, "kl", "reward")
    points = sorted((np.nanmean(s(r, "kl")), np.nanmean(s(r, "reward"))) for m in METHODS for r in s.points(m))
    if points:
        kl, reward = np.array(points).T
        ax.plot(kl, np.maximum.accumulate(reward), "-", color="0.75", lw=5, alpha=0.6, zorder=0, label="envelope of all")
    best_of(ax, s, "best of 2 to 64")
    cold = [r for r in s.recipes if r.startswith("sft T=")]
    if cold:
        ax.plot([np.nanmean(s(r, "kl")) for r in cold], [np.nanmean(s(r, "reward")) for r in cold], "s:", color="0.4", ms=4,
                label="SFT at T = 0.75 to 0")
    ax.axhline(np.nanmean(s("sft", "reward")), color="0.4", lw=0.8, ls=":")
    ax.set(xscale="log", xlabel="KL to the SFT policy (nats a completion)", ylabel="reward, P(positive)")
    return fig

def rlhf(s):
    """DPO and what it replaces: reward against KL, also along training; the learned reward against the true one; wins by temperature."""
    fig, [axes] = figure(1, 3, 15, 4.6)
    for method in ("dpo", *ONLINE, "unlikelihood", "preferred_ft"):
        trace(axes[0], s, method, "kl", "reward")
    best_of(axes[0], s, "best of n")
    for name in ("along_dpo", "along_ppo", *(r for method in ONLINE for r in s.points(method))):
        steps, method = [r for r in s.recipes if r.startswith(f"{name} step-")], name.split()[0].removeprefix("along_")
        for i in range(len(s.seeds) if steps else 0):
            kl, true, learned = (np.array([s(r, m)[i] for r in steps]) for m in ("kl", "reward", "proxy"))
            axes[0].plot(kl[kl > 0], true[kl > 0], ".-", color=COLOURS[method], lw=0.4, ms=2, alpha=0.4)
            if name.startswith("along_"):
                label = {"dpo": "dpo beta=0.1", "ppo": "ppo beta=0"}[method] if i == 0 else None
                axes[1].plot(learned, true, ".-", color=COLOURS[method], lw=0.8, ms=4, alpha=0.8, label=label)
    by_temperature(axes[2], s, ("sft", "dpo", *ONLINE))
    axes[0].set(xscale="log", xlabel="KL to the SFT policy (nats a completion)", ylabel="reward, P(positive)", xlim=(0.2, 10),
                ylim=(0.65, 1))
    axes[1].set(xlabel="learned reward (nats, zero anywhere)", ylabel="true reward, P(positive)", title="along long runs")
    return fig

def diversity(s):
    """Reward against entropy, as the reports draw it, and against the entropy of 25 samples."""
    fig, [axes] = figure(1, 2, 11, 4.2)
    for ax, measure, label in ((axes[0], "entropy", "entropy of the next token (nats)"),
                               (axes[1], "pooled_25", "entropy of a prompt's 25 samples thrown together (nats)")):
        for method in ("sft", *METHODS):
            trace(ax, s, method, measure, "reward", "" if measure == "pooled_25" or method == "sft" else "-")
        ax.set(xlabel=label, ylabel="reward, P(positive)")
    return fig

def label_bias(s):
    """Reward by the label of the prompt's review, before and after each method."""
    fig, [[ax]] = figure(1, 1, 9, 3.6)
    names = ["sft", *(r for r in s.recipes_with("pooled_25") if r.split()[0] in METHODS)]
    for i, (side, hatch) in enumerate((("negative", "//"), ("positive", ""))):
        for j, name in enumerate(names):
            mean, error = middle(s(name, f"reward_{side}"))
            ax.bar(j + 0.4 * i - 0.2, mean, 0.38, yerr=error, color=COLOURS[name.split()[0]], hatch=hatch, edgecolor="white", capsize=2,
                   label=f"prompts of {side} reviews" if j == 0 else None)
    ax.set(xticks=range(len(names)), ylabel="reward, P(positive)", ylim=(0, 1.15))
    ax.set_xticklabels([n.replace(" ", "\n") for n in names], fontsize=7)
    return fig

def lines(ax, s, recipe, metric, colour, label, split="val", line="-"):
    """A metric over updates, a line a seed: their mean would hide the one that breaks."""
    for seed in s.seeds:
        if (curve := s.curve(recipe, metric, seed, split)).size:
            ax.plot(*curve, line, color=colour, lw=0.9, alpha=0.8, label=label)
            label = None

def training(s):
    """What DPO and IPO do to either side of held-out pairs."""
    fig, [axes] = figure(1, 3, 12, 3.6)
    for ax, metrics, title, unit in ((axes[0], ("rewards/chosen", "rewards/rejected"), "implicit rewards", "beta x log-ratio (nats)"),
                                     (axes[1], ("logps/chosen", "logps/rejected"), "log-probs", "nats a completion"),
                                     (axes[2], ("rewards/accuracies",), "accuracy", "share of pairs")):
        for method in ("dpo", "ipo"):
            for metric, line in zip(metrics, ("-", "--")):
                lines(ax, s, f"{method} beta=0.1", metric, COLOURS[method], f"{method}: {metric.split('/')[1]}", line=line)
        ax.set(title=title, xlabel="update", ylabel=unit)
    return fig

def temperature(s):
    """Wins against the SFT policy at temperature 1, by the reward, over the temperature of sampling."""
    fig, [[ax]] = figure(1, 1, 7.5, 4.2)
    by_temperature(ax, s, ("sft", *METHODS))
    return fig

def by_temperature(ax, s, methods):
    for method in methods:
        names = [r for r in s.recipes if r.split()[0] == method and " T=" in r]
        if names:
            at = {float(r.split("T=")[1]): middle(s(r, "win")) for r in names}
            at[1.0] = middle(s(names[0].split(" T=")[0], "win"))
            heat = sorted(at)
            ax.errorbar(heat, [at[t][0] for t in heat], yerr=np.hstack([at[t][1] for t in heat]), fmt="o-",
                        color=COLOURS[method], label=method, **THIN)
    ax.axhline(0.5, color="0.4", lw=0.8, ls=":")
    ax.set(xlabel="temperature of sampling", ylabel="win rate against SFT at 1, by the reward")

def adapters(s):
    """DPOP with adapters of several ranks, and without: reward, KL, and reward gained per root of KL, against what is trained."""
    fig, [axes] = figure(1, 3, 12, 3.6)
    for method in ("sequential", "parallel", "replace"):
        for ax, y in zip(axes, ("reward", "kl")):
            trace(ax, s, method, "trainable", y)
        names = sorted(s.points(method), key=lambda r: np.nanmean(s(r, "trainable")))
        if names:
            gain, error = zip(*(middle((s(r, "reward") - s("sft", "reward")) / s(r, "kl") ** 0.5) for r in names))
            axes[2].errorbar([np.nanmean(s(r, "trainable")) for r in names], gain, yerr=np.hstack(error), fmt="o-",
                             color=COLOURS[method], label=method, **THIN)
    full = "default dpop"
    gain = (s(full, "reward") - s("sft", "reward")) / s(full, "kl") ** 0.5
    for ax, values in zip(axes, (s(full, "reward"), s(full, "kl"), gain) if s.points("sequential") else ()):
        mean, error = middle(values)
        ax.errorbar(np.nanmean(s(full, "trainable")), mean, yerr=error, fmt="D", color="black", ms=5, capsize=1.5, label="full")
    for ax, label in zip(axes, ("reward, P(positive)", "KL (nats a completion)", "reward gained per root of KL")):
        ax.set(xscale="log", xlabel="parameters trained", ylabel=label)
    return fig

def watch(s):
    """Every logged metric as it should look, and as it looks when the policy is pushed too far."""
    metrics = (("loss", "val"), ("rewards/accuracies", "val"), ("rewards/margins", "val"), ("rewards/chosen", "val"),
               ("rewards/rejected", "val"), ("logps/chosen", "val"), ("logps/rejected", "val"), ("grad_norm", "train"))
    fig, axes = figure(2, 4, 12, 5.4)
    for ax, (metric, split) in zip(axes.flat, metrics):
        for recipe, colour, label in (("dpo beta=0.3", "#1f77b4", "healthy: beta 0.3, lr 1e-3, epsilon 1e-3"),
                                      ("too_fast", "#d62728", "unhealthy: beta 0.1, lr 3e-3, epsilon 1e-8")):
            lines(ax, s, recipe, metric, colour, label if ax is axes.flat[0] else None, split)
        ax.set_title(f"{metric} ({split})", fontsize=9)
        ax.set_yscale("log" if metric == "grad_norm" else "linear")
        ax.set_xlabel("update", fontsize=8)
    return fig

def along(s):
    """Long runs at a constant learning rate: validation loss, reward and KL over the updates."""
    fig, [axes] = figure(1, 3, 12, 3.6)
    for name in ("along_dpo", "along_ipo"):
        colour = COLOURS[name[6:]]
        for i, seed in enumerate(s.seeds):
            losses = s.curve(name, "loss", seed)
            steps = sorted(int(r.split("step-")[1]) for r in s.recipes if r.startswith(f"{name} step-"))
            if not losses.size or not steps:
                continue
            relative = losses[1] / losses[1][0]
            label = name[6:] if i == 0 else None
            axes[0].plot(losses[0], relative, color=colour, lw=1, label=label)
            axes[0].plot(losses[0][relative.argmin()], relative.min(), "*", color=colour, ms=9)
            for ax, measure in ((axes[1], "reward"), (axes[2], "kl")):
                values = [s(f"{name} step-{k}", measure)[i] for k in steps]
                ax.plot(steps, values, color=colour, lw=1, label=label)
                stop = int(losses[0][relative.argmin()])
                if stop in steps:
                    ax.plot(stop, values[steps.index(stop)], "*", color=colour, ms=9)
    for ax, label in zip(axes, ("validation loss, of that at the start", "reward, P(positive)", "KL (nats a completion)")):
        ax.set(xlabel="update", ylabel=label)
    axes[2].set_yscale("symlog", linthresh=1)
    return fig

PICTURES = (frontier, rlhf, diversity, label_bias, training, temperature, adapters, watch, along)

def draw(results, figures):
    """Draws all of them into a folder."""
    s = Sweep(results)
    for picture in PICTURES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)    # the mean of what was not tried is NaN, and is not drawn
            fig = picture(s)
        for ax in fig.axes:
            if names := ax.get_legend_handles_labels()[1]:
                ax.legend(fontsize=7, ncols=1 + (len(names) > 6))
        if any(ax.has_data() for ax in fig.axes):    # a small sweep has no adapters, say
            fig.savefig(figures / f"{picture.__name__}.png", dpi=110)
