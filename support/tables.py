"""
Tables and pictures of an evaluation: what eval.py prints, and its eval.png.

A column is a policy. {name: {measure: [mean, low, high]}} is printed, {name: Measured} is drawn. docs/metrics.md
defines the measures.
"""
from itertools import cycle

import numpy as np

# ---------------------------------------------------------------------------------------------------------------------
# Tables

ROWS = (    # measure, its label, its format
    ("reward", "reward", ".3f"), ("reward_positive", "  of positive reviews' prompts", ".3f"),
    ("reward_negative", "  of negative reviews' prompts", ".3f"), ("win", "win rate against the reference", ".3f"),
    ("win_other", "win rate against the other run", ".3f"),
    ("gold", "reward by the gold model", ".3f"), ("gold_win", "  win rate by it", ".3f"),
    ("proxy", "reward by the learned model", ".3f"), ("proxy_win", "  win rate by it", ".3f"),
    ("kl", "KL to the reference, nats a completion", ".2f"), ("logratio", "  check: mean log-ratio", ".2f"),
    ("entropy", "entropy, nats a token", ".3f"), ("completion_entropy", "  nats a completion", ".2f"),
    ("pooled_4", "  of 4 samples' tokens, nats", ".3f"), ("pooled_25", "  of 25 samples' tokens, nats", ".3f"),
    ("distinct_1", "distinct tokens in 500", ".3f"), ("distinct_2", "distinct pairs of tokens in 500", ".3f"),
    ("length", "length, tokens", ".1f"), ("eos", "ends in EOS", ".3f"), ("whole", "whole sentences", ".3f"),
    ("accuracy", "accuracy on held-out pairs", ".3f"), ("margin", "  margin, nats", ".2f"))

DISPLACEMENT = (    # the same for displacement.py
    ("chosen", "change of log pi(chosen), nats", "+.2f"), ("rejected", "change of log pi(rejected), nats", "+.2f"),
    ("chosen_fell", "pairs whose chosen fell", ".3f"), ("both_fell", "pairs of which both fell", ".3f"),
    ("p_chosen", "probability of chosen", ".1e"), ("p_rejected", "probability of rejected", ".1e"),
    ("better", "samples better than both", ".3f"), ("between", "samples between them", ".3f"),
    ("worse", "samples worse than both", ".3f"),
    ("by_ches", "rank correlation with CHES", "+.2f"), ("by_ches_mean", "  with CHES by length", "+.2f"),
    ("by_length", "  with the length of chosen", "+.2f"), ("by_reward", "  with the reward of chosen", "+.2f"))

def cell(value, form):
    """A [mean, low, high] as text, "-" for None."""
    return f"{value[0]:{form}} [{value[1]:{form}}, {value[2]:{form}}]" if value else "-"

def table(columns, rows=ROWS):
    """A table as text, by default the main one. columns: {name: {measure: [mean, low, high]}}."""
    lines = [f"{'':40}" + "".join(f"{name[-26:]:28}" for name in columns)]
    for key, label, form in rows:
        if any(key in column for column in columns.values()):
            lines.append(f"{label:40}" + "".join(f"{cell(column.get(key), form):28}" for column in columns.values()))
    return "\n".join(line.rstrip() for line in lines)

def more_tables(result):
    """The lines of the tables of temperatures and of best-of-n, if there are any. result: what eval.json holds."""
    lines = []
    for row in result.get("temperatures", ()):
        for name in ("before", "after"):
            if name in row:
                shown = (("reward", ".3f"), ("win", ".3f"), ("kl", ".2f"))
                cells = [f"  {key} {cell(row[name][key], form)}" for key, form in shown if key in row[name]]
                lines.append(f"temperature {row['temperature']:<5} {name:7}{''.join(cells)}")
    for row in result.get("best_of", ()):
        lines.append(f"best of {row['n']:<3} of the reference, KL at most {row['kl']:.2f}   "
                     f"reward {cell(row['reward'], '.3f')}")
    return lines

def example_lines(one):
    """Lines of text: a prompt, its pair, and what gained most. one: an example of displacement.py."""
    lines = ["prompt   " + one["prompt"].strip()]
    for name, e in (("chosen", one["chosen"]), ("rejected", one["rejected"]), *(("gained", e) for e in one["gained"])):
        reward = "" if e["reward"] is None else f"   (reward {e['reward']:.3f})"
        lines.append(f"{name:9}{e['before']:.2f} -> {e['after']:.2f} nats: {e['text'].strip()}{reward}")
    return lines

def verdict_on(before, after):
    """A sentence on displacement, from {measure: [mean, low, high]} of reference and policy."""
    change = after["chosen"]
    said = "displacement" if change[2] < 0 else "no displacement on average"
    said += f": log pi(chosen) changed by {change[0]:+.2f} nats, and {after['chosen_fell'][0]:.0%} of the chosen fell"
    if "better" in after:
        now, was = ([column[key][0] for key in ("better", "worse")] for column in (after, before))
        said += f"; {now[0]:.0%} of the samples are better than both (before: {was[0]:.0%}), {now[1]:.0%} worse " \
                f"(before: {was[1]:.0%})"
    return said

def name_columns(by_run, references):
    """
    {name: column} for all runs, in the order of the table.

    by_run      {run: {"before", "after": column}}. One run keeps these two names. Of several runs, "after" is named
                after the run, and "before" after its reference, so that a shared reference is one column.
    references  {run: name of its reference}
    """
    if len(by_run) == 1:
        return next(iter(by_run.values()))
    named = {}
    for run, columns in by_run.items():
        if "before" in columns:
            named[references[run]] = columns["before"]
        named[run] = columns["after"]
    return named

# ---------------------------------------------------------------------------------------------------------------------
# Pictures

def draw(paths, columns, grey):
    """
    Draws one picture of all columns, and saves it to each of paths.

    Left: a histogram of the rewards, or of the margins on held-out pairs if there is no reward. Middle and right: KL
    and entropy at each position of a completion.

    columns  {name: Measured}
    grey     names of the references. Every other column has a color of its own, the same in all three parts.
    """
    from matplotlib.figure import Figure    # here, because it takes a second to import
    fig = Figure(figsize=(11, 3))
    axes = fig.subplots(1, 3)
    colored = cycle(f"C{i}" for i in range(10) if i != 7)    # C7 is grey
    colors = {name: "C7" if name in grey else next(colored) for name in columns}
    draw_histogram(axes[0], columns, colors)
    for ax, key, title in ((axes[1], "kl", "KL to the reference"), (axes[2], "entropy", "entropy of the next token")):
        for name, found in columns.items():
            if key in found.curves:
                curve = found.curves[key]
                ax.plot(np.arange(1, len(curve) + 1), curve, color=colors[name], label=name)
        ax.set(title=title, xlabel="token of the completion", ylabel="nats")
    for ax in axes:
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)
    fig.tight_layout()
    for path in paths:
        fig.savefig(path, dpi=110)

def draw_histogram(ax, columns, colors):
    """Histograms of the rewards of each Measured, or else of the margins. Up to two are filled; more are outlines."""
    rewards = {name: f.rewards["reward"].ravel() for name, f in columns.items() if "reward" in f.rewards}
    margins = {name: f.values["margin"] for name, f in columns.items() if f.values.get("margin", np.zeros(1)).any()}
    shown = rewards or margins
    if not shown:
        return
    edges = np.histogram_bin_edges(np.concatenate(list(shown.values())), 20 if rewards else 30)
    for name, values in shown.items():
        style = dict(alpha=0.6) if len(shown) <= 2 else dict(histtype="step", lw=1.5)
        ax.hist(values, bins=edges, color=colors[name], label=name, **style)
    if rewards:
        ax.set(title="reward", xlabel="reward of prompt and completion", ylabel="samples")
    else:
        ax.axvline(0, color="k", lw=0.8)
        ax.set(title="held-out pairs", xlabel="margin of log-ratios (nats)", ylabel="pairs")
