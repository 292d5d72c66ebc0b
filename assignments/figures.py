"""
Twelve figures for lectures, drawn from the project's own functions and from the numbers in study/results.

    python -m assignments.figures                                         # all, as SVG and PNG, into out/figures
    python -m assignments.figures --out ../figures --only clip gae --format png

Writes NAME.svg and NAME.png, 16:9. Existing files are overwritten. Each figure is a function below, and its docstring
says what a lecturer should point at. docs/teaching.md lists the figures. Read first: drawing.py
"""
from pathlib import Path

import numpy as np
import torch

from assignments.drawing import (BLUE, GRAY, GREEN, ORANGE, PINK, RED, STYLE, best_of_points, bold, curves, judged_rate,
                                 loss_over_margin, mean_and_range, panels, plain, rows_of, save, stored, sweep,
                                 with_slope)
from losses import link
from rlhf.formulas import clipped_policy_loss, gae
from study import bandit, beta, estimators, pictures, places
from support import cli

# ---------------------------------------------------------------------------------------------------------------------
# losses

def losses(fig):
    """
    A loss stops pushing where its gradient crosses 0: hinge at 1, cdpo at log 4, ipo at 1/2. Beyond it cdpo and ipo
    pull the margin back. dpo and robust push at every margin.
    """
    left, right = panels(fig, ("Loss of a pair, beta = 1", "margin h (nats)", "loss"),
                         ("Its gradient", "margin h (nats)", "d loss / d h"))
    for name, color, line, hparams in (
            ("dpo", BLUE, "-", {}), ("hinge", PINK, "-", {}), ("ipo", GRAY, "-.", {}),
            ("cdpo", ORANGE, "-", {"label_smoothing": 0.2}), ("robust", GREEN, "--", {"label_smoothing": 0.2})):
        h, loss, slope = with_slope(loss_over_margin(name, beta=1.0, **hparams), -4, 4)
        left.plot(h, loss, line, color=color, label=f"{name}{', smoothing 0.2' if hparams else ''}")
        right.plot(h, slope, line, color=color)
    left.set(ylim=(-1.5, 5.5))
    right.axhline(0, color="black", lw=2, ls=":")
    right.text(-3.9, 0.1, "pulls the margin back")
    right.text(-3.9, -0.2, "pushes the margin up")
    right.set(ylim=(-2, 1))
    fig.legend(loc="outside upper center", ncols=5)

def links(fig):
    """
    With jsd no completion can earn more than log 2. The cost of a completion that becomes less likely grows linearly
    with reverse_kl, which is DPO, and exponentially with alpha and forward_kl.
    """
    x_label = "log-ratio x = log(pi / pi_ref) (nats)"
    left, right = panels(fig, ("Reward of a completion, beta = 1", x_label, "link(x) (nats)"),
                         ("Slope of the link", x_label, "d link / d x, log scale"))
    for divergence, alpha, color, line in (("reverse_kl", 1, BLUE, "-"), ("jsd", 1, GREEN, "--"),
                                           ("alpha", 0.3, PINK, ":"), ("alpha", 0.7, ORANGE, "-."),
                                           ("forward_kl", 1, RED, "-")):
        x, y, slope = with_slope(lambda x, d=divergence, a=alpha: link(x, d, a), -4, 4)
        label = {"reverse_kl": "reverse_kl (DPO)", "alpha": f"alpha {alpha}"}.get(divergence, divergence)
        left.plot(x, y, line, color=color, label=label)
        right.plot(x, slope, line, color=color)
    left.set(ylim=(-8, 4))
    left.legend(loc="lower right")
    right.set(yscale="log")
    plain(right.yaxis)

def beta_of_dpo(fig):
    """
    With a larger beta the gradient vanishes at a smaller margin. If labels are drawn by Bradley and Terry's model, the
    KL at the end falls with beta, as the RLHF optimum's does. If the better answer always wins, it hardly falls.
    """
    gap = "margin w - l (nats)"
    left, middle, right = panels(fig, ("DPO's loss", gap, "loss (nats)"), ("Its gradient", gap, "d loss / d(w - l)"),
                                 ("DPO's end: exact world", "beta, log scale", "KL to the reference (nats), log scale"))
    for value, color, line in ((0.1, BLUE, "-"), (0.3, ORANGE, "--"), (1.0, GREEN, "-.")):
        x, y, slope = with_slope(loss_over_margin("dpo", beta=value), -10, 20)
        left.plot(x, y, line, color=color, label=f"beta {value:g}")
        middle.plot(x, slope, line, color=color)
    left.set(ylim=(0, 3))
    left.legend()
    values, worlds = np.geomspace(0.03, 10, 60), [bandit.world(seed=seed) for seed in range(5)]
    optima = [[bandit.kl(bandit.rlhf_optimum(*world, value), world[0]) for world in worlds] for value in values]
    right.plot(values, np.mean(optima, 1), color=GRAY, label="RLHF optimum")
    for labels, marker, color, name in (("best", "s--", RED, "better always wins"),
                                        ("bradley_terry", "o", BLUE, "drawn labels")):
        ends = [rows_of("beta.csv", "kl", world="exact", labels=labels, beta=f"{value:g}") for value in beta.BETAS]
        mean_and_range(right, beta.BETAS, ends, fmt=marker, color=color, label=name)
    right.set(xscale="log", yscale="log")
    plain(right.xaxis, right.yaxis)
    right.legend(loc="lower left", title="5 worlds: mean and range", title_fontsize=14, alignment="left")

def displacement(fig):
    """
    At the end both completions of a held-out pair are less likely than at the start. The margin grows because the
    rejected one falls faster. dpop and cal_dpo have terms against the fall of the chosen one.
    """
    change = "change of log-prob, held-out pairs (nats)"
    left, right = panels(fig, ("During training: means of 3 seeds", "update", change),
                         ("After training. Whiskers: range of 3 seeds", "loss", change), sharey=True)
    s = sweep()
    for recipe, color, name in (("dpo beta=0.1", BLUE, "dpo"), ("ipo beta=0.1", GREEN, "ipo")):
        for side, line in (("chosen", "-"), ("rejected", "--")):
            steps, logps = curves(s, recipe, f"logps/{side}")
            left.plot(steps, (logps - logps[:, :1]).mean(0), line, color=color, label=f"{name}, {side}")
    left.legend(loc="lower left")
    methods = ("dpo", "ipo", "dpop", "cal_dpo")
    for side, color, shift in (("chosen", BLUE, -0.2), ("rejected", ORANGE, 0.2)):
        values = [rows_of("displacement.csv", "value", method=method, measure=side) for method in methods]
        means, ranges = zip(*map(pictures.middle, values))
        right.bar(np.arange(len(methods)) + shift, means, 0.4, yerr=np.hstack(ranges), color=color, label=side,
                  capsize=5, error_kw={"lw": 2})
    right.set_xticks(range(len(methods)), methods)
    right.legend(loc="lower right")
    for ax in (left, right):
        ax.axhline(0, color="black", lw=2, ls=":")
        ax.set(ylim=(-9.8, 0.6))

# ---------------------------------------------------------------------------------------------------------------------
# results of the study

def frontier(fig):
    """
    Compare methods at equal KL, along a vertical line. A method is a line, because its hyperparameter moves it along
    the frontier: a comparison of two single points says little.
    """
    [ax] = panels(fig, ("Toy world. A point: one setting. Bars: lowest to highest of 3 seeds",
                        f"{pictures.KL}, root scale", pictures.REWARD))
    s = sweep("rloo beta=0.5", "ppo beta=0.5", "dpo beta=0.1", "ipo beta=0.1", "preferred_ft", "best_of n=2")
    for method in ("rloo", "ppo", "dpo", "ipo", "preferred_ft"):
        pictures.trace(ax, s, method, "kl", "reward")
        pictures.explain(ax, s, s.points(method), pictures.COLORS[method], up=-40)
    pictures.best_of(ax, s, "best of 2 to 64 samples of SFT")
    pictures.root_axis(ax, pictures.FARTHEST)
    ax.set(ylim=(0.45, 1.02))
    bold(fig)
    ax.legend(loc="lower right")

def length(fig):
    """
    Left: more reward need not mean longer text. rdpo, DPO with a length penalty, is far shorter at about DPO's reward.
    Right: from update 0 to 480 DPO's text grows from 20 to about 30 tokens, IPO's to 22.
    """
    left, right = panels(fig, ("Settings. Bars: range of 3 to 5 seeds", "length (tokens)", pictures.REWARD),
                         ("Long runs: a line a seed", "update", "length (tokens)"))
    s = sweep("sft", "dpo beta=0.1", "rdpo alpha=0.1", "ppo beta=0.5", "rloo beta=0.5", folder="second")
    for method, color in (("sft", None), ("dpo", None), ("rdpo", PINK), ("ppo", None), ("rloo", GREEN)):
        pictures.trace(left, s, method, "length", "reward", line="", color=color)
    left.set(ylim=(0.3, 1.02))
    s = sweep("along_dpo step-0", "along_ipo step-0")
    for name, color, line in (("along_dpo", BLUE, "-"), ("along_ipo", GREEN, "--")):
        steps = s.checkpoints(name)
        lengths = np.array([s(recipe, "length") for recipe in steps.values()])    # (steps, seeds)
        right.plot([*steps], lengths, line, color=color, label=[name[-3:].upper(), *[None] * (len(s.seeds) - 1)])
    bold(fig)
    left.legend(loc="lower left")
    right.legend()

def kl_estimators(fig):
    """
    k1 is negative where q is larger than p; k2 and k3 never are. The means of k1 and k3 are right, k2's is not. k3
    varies little near the reference and extremely far from it. With the ratio inverted its mean is wrong.
    """
    left, middle, right = panels(fig, ("Estimate of one sample", "log-ratio log(p / q) (nats)", "estimate (nats)"),
                                 ("Exact world: mean", "KL (nats), log scale", "mean / KL, log scale"),
                                 ("Exact world: spread", "KL (nats), log scale",
                                  "standard deviation / KL, log scale"))
    for name, estimate in estimators.ESTIMATORS.items():
        label, color, _ = pictures.ESTIMATORS[name]
        x, y, _ = with_slope(estimate, -2.5, 2.5)
        left.plot(x, y, "--" if name == "k3 inverted" else "-", color=color, label=label)
    left.set(ylim=(-2.5, 8))
    rows_of("estimators.csv", "kl", "mean", "std", world="exact")    # stops at a damaged file
    exact = [row for row in places.read_csv(stored("estimators.csv")) if row["world"] == "exact"]
    for ax, column in ((middle, "mean"), (right, "std")):
        pictures.against_kl(ax, exact, column, "kl")
        ax.set(xscale="log", yscale="log")
        plain(ax.xaxis, ax.yaxis)
    middle.set(ylim=(0.6, 6), yticks=[0.7, 1, 1.5, 2, 3, 5])
    middle.text(4e-4, 0.88, "k1 and k3")
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    bold(fig)

def best_of_n(fig):
    """
    Each doubling of n adds less reward, and at most log 2 nats to the bound of the KL. On the toy world best-of-n is
    above DPO and RLOO beyond 0.5 nats. On the exact world it is a little below the optimum, with a KL below the bound.
    """
    left, middle, right = panels(fig, ("Toy world, means of 3 seeds", "samples n, log scale", pictures.REWARD),
                                 ("Toy world. Bars: 3 seeds", "KL (nats), root scale", pictures.REWARD),
                                 ("Exact world", "KL (nats)", "reward (nats)"))
    s = sweep("best_of n=1", "dpo beta=0.1", "rloo beta=0.5")
    rewards = {int(recipe.split("=")[1]): s(recipe, "reward") for recipe in s.points("best_of")}
    mean_and_range(left, [*rewards], [*rewards.values()], fmt="o-", color="black")
    left.set_xscale("log", base=2)
    plain(left.xaxis)
    pictures.best_of(middle, s, "best of n: KL bound")
    for method in ("dpo", "rloo"):
        pictures.trace(middle, s, method, "kl", "reward")
    pictures.root_axis(middle, 4)
    middle.set(ylim=(0.25, 1.02))
    optima = bandit.frontier(*bandit.world(), torch.logspace(-2, 2, 200, dtype=torch.float64).tolist())
    right.plot(*zip(*optima), color=GRAY, label="RLHF optimum")
    reward, kl, bound = zip(*best_of_points().values())
    right.plot(bound, reward, "s", color=ORANGE, mfc="white", mew=2.5, label="best of n: KL bound")
    right.plot(kl, reward, "o", color=BLUE, label="best of n: exact KL")
    right.set(ylim=(-0.25, 1.4))
    bold(fig)
    for ax in (middle, right):
        ax.legend(loc="lower right")

def early_stopping(fig):
    """
    The star is the lowest validation loss, where early stopping ends. DPO's loss still falls at update 480, where it
    has paid more than 8 nats of KL since update 120 for at most 0.06 of reward. IPO's KL stays near 2 nats.
    """
    axes = panels(fig, ("Validation loss (star: lowest)", "update", "loss / loss at the start"),
                  ("Reward", "update", pictures.REWARD), ("KL, log scale above 1", "update", "KL to SFT (nats)"))
    s = sweep("along_dpo step-0", "along_ipo step-0")
    for name, color in (("along_dpo", BLUE), ("along_ipo", GREEN)):
        curves(s, name, "loss")    # stops if it was not logged
        for i in range(len(s.seeds)):
            pictures.long_run(axes, s, name, i, color, None if i else name[-3:].upper() + ", a line a seed")
    axes[2].set_yscale("symlog", linthresh=1)
    plain(axes[2].yaxis)
    bold(fig)
    axes[0].legend()

# ---------------------------------------------------------------------------------------------------------------------
# RLHF and judges

EXAMPLE = (0.5, 0.5, 0.4, 0.2, 0.6, 0.7, 0.7, 0.9)    # the value before each token of a completion whose score is 1

def advantages(fig):
    """
    Lambda decides how far an advantage looks ahead. With lambda 0 credit is where the value changes: token 4 gets most
    of it, token 3 gets blame. With lambda 1 it is the score minus the value, so tokens 1 to 3 get credit as well.
    """
    left, right = panels(fig, ("Weights of TD errors, gamma 1", "tokens ahead l", "weight of the TD error at t + l"),
                         ("One completion, score 1 at its end", "token t", "advantage, value (units of the score)"))
    impulses, nothing = torch.eye(21), torch.zeros(21, 21)    # row l: the only TD error is 1, at token l
    for lam, color, marker in ((0.0, RED, "s"), (0.5, PINK, "v"), (0.9, ORANGE, "^"), (0.95, GREEN, "D"),
                               (1.0, BLUE, "o")):
        weights = gae(impulses, nothing, nothing == 0, gamma=1.0, lam=lam)[:, 0]
        left.plot(weights.numpy(), color=color, marker=marker, ms=6, label=f"lambda {lam:g}")
    left.set_xticks(range(0, 21, 5))
    left.legend(loc="upper right", bbox_to_anchor=(1, 0.94), ncols=2)
    values, rewards = torch.tensor([EXAMPLE]), torch.eye(len(EXAMPLE))[-1:]    # (1, T): the score is at the last token
    tokens = np.arange(1, len(EXAMPLE) + 1)
    right.step(tokens, EXAMPLE, where="mid", color=GRAY, ls=":", label="value before the token")
    for lam, color, marker in ((0.0, RED, "s"), (0.9, ORANGE, "^"), (1.0, BLUE, "o")):
        right.plot(tokens, gae(rewards, values, values > 0, gamma=1.0, lam=lam)[0].numpy(), color=color, marker=marker,
                   label=f"lambda {lam:g}")
    right.set(ylim=(-0.7, 1))
    right.legend(loc="lower right")

def clip(fig):
    """
    The gradient is 0 where the ratio is beyond its bound in the direction that the advantage asks for. On the other
    side it is not: a step that went wrong can be taken back. Clip-higher moves the upper bound only.
    """
    x_label = "ratio pi / pi_old"
    axes = panels(fig, *((f"Objective, A = {sign}1", x_label, "objective") for sign in "+-"),
                  *((f"Its gradient, A = {sign}1", x_label, "d objective / d ratio") for sign in "+-"), rows=2)
    for above, below, advantage in zip(axes[:2], axes[2:], (1.0, -1.0)):
        for high, color, line, label in ((None, BLUE, "-", "clip 0.2"),
                                         (0.28, ORANGE, "--", "clip 0.2, clip_high 0.28")):
            objective = lambda r, a=advantage, h=high: -clipped_policy_loss(r, a, 0.2, h)
            x, y, slope = with_slope(objective, 0.0, 2.0, 2000)    # no point is exactly at a bound
            above.plot(x, y, line, color=color, label=label)
            below.plot(x, slope, line, color=color)
        for ax in (above, below):
            ax.set_xticks([0, 0.5, 0.8, 1, 1.2, 1.5, 2])
            plain(ax.xaxis)
    axes[0].legend(loc="lower right")

def judge_bias(fig):
    """
    A position bias moves the rate up or down by where the run stands. Asked in both orders, the judge names the right
    winner again, with a rate nearer to 1/2. A length bias is the same in both orders, so asking twice does not help.
    """
    labels = "true win rate", "win rate under the judge, ties half"
    axes = panels(fig, ("Position bias", *labels), ("Length bias", *labels), sharey=True)
    true = np.linspace(0, 1, 101)
    for ax, kind in zip(axes, ("position", "length")):
        ax.plot(true, true, ":", color=GRAY, label="judge without bias")
        for orders, color, line, label in (("A", RED, "-", "one order, the run first"),
                                           ("B", ORANGE, "-.", "one order, the run second"),
                                           ("both", BLUE, "--", "both orders")):
            if kind == "position" or orders != "B":    # a length bias does not depend on the place
                ax.plot(true, [judged_rate(p, 0.3, kind, orders) for p in true], line, color=color,
                        label=label if kind == "position" else label.split(",")[0])
        ax.legend(loc="upper left")
    axes[0].text(1, 0.02, "30% of the verdicts name the first\nanswer, whichever is better", ha="right")
    axes[1].text(1, 0.02, "30% name the longer answer, which\nis the run's in 80% of the pairs", ha="right")

# ---------------------------------------------------------------------------------------------------------------------
# script

# name -> (function, what the figure shows and where its data is from)
FIGURES = {
    "losses": (losses, "losses and their gradients over the margin, from losses.py"),
    "links": (links, "links of the f-divergences and their slopes over the log-ratio, from losses.py"),
    "beta": (beta_of_dpo, "beta in DPO's loss and gradient, and the KL at the end, from losses.py and beta.csv"),
    "displacement": (displacement, "log-probs of chosen and rejected, from curves.csv and displacement.csv"),
    "frontier": (frontier, "reward against KL of the main methods, from sweep.csv"),
    "length": (length, "reward against length, and length along long runs, from second/sweep.csv and sweep.csv"),
    "estimators": (kl_estimators, "the KL estimators k1, k2 and k3, from measures.py and estimators.csv"),
    "gae": (advantages, "GAE's weights of future TD errors, and an example, from rlhf/formulas.py"),
    "clip": (clip, "PPO's clipped objective and its gradient, with clip-higher, from rlhf/formulas.py"),
    "best_of_n": (best_of_n, "reward of best-of-n against n and KL, from sweep.csv and measures.py"),
    "judge_bias": (judge_bias, "win rates under a judge with a bias, one order and both, from support/verdict.py"),
    "early_stopping": (early_stopping, "validation loss, reward and KL along long runs, from curves.csv and sweep.csv"),
}

def compose(name):
    """The Figure of a name, not painted yet. Raises ValueError if a file that it needs is missing or damaged."""
    import matplotlib    # here, because it takes a second to import
    from matplotlib.figure import Figure
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(12.8, 7.2))
        FIGURES[name][0](fig)
    return fig

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--out", default="out/figures", help="folder to write into; existing files are overwritten")
    p.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES), metavar="NAME",
                   help=f"figures to draw (default: {' '.join(FIGURES)})")
    p.add_argument("--format", nargs="+", choices=("svg", "png"), default=["svg", "png"],
                   help="file formats (default: both)")
    return p.parse_args(argv)

def main(argv=None):
    args = get_args(argv)
    with cli.bad_input():
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(args.only):
            fig = compose(name)
            paths = [out / f"{name}.{form}" for form in dict.fromkeys(args.format)]
            replaced = " (overwritten)" if any(path.exists() for path in paths) else ""
            for path in paths:
                save(fig, path)
            print(f"{', '.join(map(str, paths))}{replaced}: shows {FIGURES[name][1]}.")

if __name__ == "__main__":
    main()
