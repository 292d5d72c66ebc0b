"""
The layout of a run's page: its table, curves, pairs and samples as HTML. page.py fills it; html.py has the elements.

A view is one policy: a run's best weights, or those of one kept step. page.py explains the fields of views and pairs.
"""
import math
from itertools import accumulate

import numpy as np

from support import html
from support.html import escape, tag
from support.log import unit
from support.tables import ROWS, cell

EVIDENCE = math.log(9)    # nats: the true credit of a verdict of the toy world, the end of its scale of color

PANELS = (    # title, the metrics in it
    ("loss", ("loss",)), ("implicit rewards", ("rewards/chosen", "rewards/rejected")),
    ("accuracy", ("rewards/accuracies",)), ("log-probs", ("logps/chosen", "logps/rejected")),
    ("KL", ("objective/kl",)), ("reward of samples", ("objective/scores",)), ("entropy", ("policy/entropy",)))

SORTS = (("at", "as in the data"), ("margin", "margin, smallest first"), ("-margin", "margin, largest first"),
         ("chosen", "how far the chosen fell, most first"), ("-length", "how much longer the chosen is"),
         ("length", "how much longer the rejected is"))
MARKS = {"flipped": "label was flipped", "disagree": "margin and reward disagree", "agree": "margin and reward agree",
         "against": "margin below 0", "fell": "the chosen fell"}

# ---------------------------------------------------------------------------------------------------------------------
# one completion

def color_scale(views):
    """The end of the scale of color: of 97% of the views' implicit rewards the largest, up to 1, 2 or 5 times 10^k."""
    seen = [(view.beta, side) for view in views for pair in view.pairs for side in pair]
    seen += [(view.beta, side) for view in views for sample in view.samples for side in sample.values()]
    sizes = np.concatenate([np.zeros(1), *(np.abs(beta * side.logratios) for beta, side in seen)])
    end = np.percentile(sizes, 97) or 1.0
    unit_of_ten = 10.0 ** np.floor(np.log10(end))
    return next(m * unit_of_ten for m in (1, 2, 5, 10) if m * unit_of_ten >= 0.999 * end)

def note_of(seen, at, beta, total):
    """What is shown for token `at` of a completion. total: the log-ratio of the tokens up to it."""
    share = lambda logp: f"{logp:8.3f} nats ({math.exp(logp):.2g})"
    lines = [f"{seen.pieces[at].strip() or '(space)'}   token {at + 1} of {len(seen.pieces)}",
             f"policy    {share(seen.logps[at])}   likeliest: {seen.likeliest[at]}"]
    if seen.ref_logps is not None:
        ratio = seen.logps[at] - seen.ref_logps[at]
        lines += [f"reference {share(seen.ref_logps[at])}   likeliest: {seen.ref_likeliest[at]}",
                  f"log-ratio {ratio:+8.3f} nats, running sum {total:+.3f}; implicit reward {beta * ratio:+.3f}"]
    if seen.true_credit is not None:
        lines[-1] += f"; true credit {seen.true_credit[at]:+.2f} nats"
    return "\n".join(lines)

def reach(several):
    """(low, high): between them lie 0 and the running sums of some Seen. It is the scale of a card's small lines."""
    sums = [0.0, *(total for seen in several for total in accumulate(seen.logratios.tolist()))]
    return min(sums), max(sums)

def completion(name, seen, beta, scale, ends, reward=None):
    """
    A completion in color, and below it the running sum of its log-ratio with the numbers that it ends at.
    scale: of the colors; ends: reach of the card.
    """
    sums = list(accumulate(seen.logratios.tolist()))
    tokens = []
    for at, piece in enumerate(seen.pieces):
        classes = html.color(beta * seen.logratios[at], scale, "p", "n")
        if seen.true_credit is not None:
            classes += " " + html.color(seen.true_credit[at], EVIDENCE, "t", "f")
        tokens.append(html.token(piece, note_of(seen, at, beta, sums[at]), classes))
    facts = [f"log-ratio {sums[-1]:+.2f} nats"] if seen.ref_logps is not None else []
    facts += [f"log pi {seen.logps.sum():.2f}"] + ([f"reward {reward:.3f}"] if reward is not None else [])
    said = " ".join(tag("span", fact) for fact in facts)
    line = tag("div", html.sparkline(sums, *ends) + said, class_="facts", data_logratio=f"{sums[-1]:.6f}",
               data_logp=f"{seen.logps.sum():.6f}")
    return tag("p", "".join(tokens), class_="text", data_name=name) + line

def prompt(text):
    """The prompt above its completions."""
    return tag("p", escape(text.strip("\n")), class_="prompt")

# ---------------------------------------------------------------------------------------------------------------------
# cards

def place(view, views):
    """The attributes of a view's part of a card: its position on the slider, if its run has several views."""
    of_run = [v.step for v in views if v.run == view.run]
    if len(of_run) == 1:
        return {}
    steps = sorted({v.step for v in views})
    later = [step for step in of_run if step > view.step]
    first = 0 if view.step == of_run[0] else steps.index(view.step)
    return {"data_from": first, "data_to": steps.index(later[0]) - 1 if later else len(steps) - 1}

def title(view, views):
    """The heading of a view's part of a card: nothing if it is the only view."""
    if len(views) == 1:
        return ""
    return tag("h4", escape(f"{view.run}, step {view.step}") + (" (best)" if view.best else ""))

def last_view(views):
    """The last view of the first run, by which pairs are marked and sorted."""
    return [view for view in views if view.run == views[0].run][-1]

def marks(pair, chosen, rejected):
    """The marks of a pair, by which it can be filtered, under one view."""
    fell, margin = chosen.logratios.sum(), chosen.logratios.sum() - rejected.logratios.sum()
    found = {"flipped": pair.flipped, "fell": fell < 0, "against": margin < 0}
    if pair.rewards:
        gap = pair.rewards[0] - pair.rewards[1]
        found |= {"disagree": margin * gap < 0, "agree": margin * gap > 0}
    return [name for name, holds in found.items() if holds]

def pair_card(at, pair, text, views, scale):
    """A pair under all views. Its keys for sorting are those of the last view of the first run."""
    last = last_view(views)
    chosen, rejected = last.pairs[at]
    ends, parts = reach(side for view in views for side in view.pairs[at]), []
    for view in views:
        w, l = view.pairs[at]
        rewards = pair.rewards or (None, None)
        gap = w.logratios.sum() - l.logratios.sum()
        said = f"margin {view.beta * gap:+.3f} (beta times {gap:+.2f} nats)"
        if "disagree" in marks(pair, w, l):
            said += ": the policy moved toward the completion of lower reward"
        parts.append(tag("section", title(view, views) + completion("chosen", w, view.beta, scale, ends, rewards[0])
                         + completion("rejected", l, view.beta, scale, ends, rewards[1])
                         + tag("div", said, class_="facts"), **place(view, views)))
    said = marks(pair, chosen, rejected)
    head = tag("h3", f"pair {at + 1}" + (" <small>label was flipped</small>" if pair.flipped else ""))
    gap = chosen.logratios.sum() - rejected.logratios.sum()
    return tag("article", head + prompt(text) + tag("div", "".join(parts), class_="cols"), class_="pair", data_at=at,
               data_margin=f"{last.beta * gap:.6f}", data_chosen=f"{chosen.logratios.sum():.6f}",
               data_length=len(chosen.pieces) - len(rejected.pieces), data_marks=" ".join(said))

def sample_card(at, text, views, scale):
    """The samples of a prompt, before and after, under all views."""
    ends, parts = reach(seen for view in views for seen in view.samples[at].values()), []
    for view in views:
        texts = [completion(name, seen, view.beta, scale, ends, view.rewards[at].get(name))
                 for name, seen in view.samples[at].items()]
        parts.append(tag("section", title(view, views) + "".join(texts), **place(view, views)))
    return tag("article", prompt(text) + tag("div", "".join(parts), class_="cols"), class_="sample")

# ---------------------------------------------------------------------------------------------------------------------
# sections

COLORS = "implicit reward of a token, beta * (log pi - log pi_ref): blue if the policy gives it more than " \
         "the reference, orange if less"
NUMBERS = "Point at a token, or press Tab, for its numbers. The log-ratio of a completion is log pi - log " \
          "pi_ref, and the small line is its running sum. The margin of a pair is beta times the gap between " \
          "the log-ratios of chosen and rejected."
BARS = "The bar below a token is its true credit: the nats that it adds to the log-odds of a positive " \
       "review. A blue bar adds, an orange one takes away: 2.20 for a verdict such as gem or bore, 1.10 for " \
       "an opinion, nothing in a broken sentence. The reward counts the prompt too."

def colors(scale, on_toy):
    """The legend: what colors, bars and numbers mean."""
    notes = [NUMBERS, BARS] if on_toy else [NUMBERS]
    return tag("h2", "Colors") + html.legend(scale, COLORS) + "".join(tag("p", note, class_="dim") for note in notes)

def facts(view, args):
    """A line on a run. args: its flags."""
    words = [args.get("loss") or args.get("algo"), f"beta {view.beta:g}", f"seed {args['seed']}",
             f"weights of step {view.step} of {args['max_steps']}", f"reference {args['init_from'] or 'none'}"]
    return tag("p", escape(", ".join(word for word in words if word)), class_="dim")

def measures(columns, more):
    """The table of measures. columns: {name: {measure: [mean, low, high]}}; more: {label: {name: [r, low, high]}}."""
    rows = [(label.replace("  ", "\u2003"), form, {name: column.get(key) for name, column in columns.items()})
            for key, label, form in ROWS]
    rows += [(label, ".3f", found) for label, found in more.items()]
    lines = [tag("tr", "<th></th>" + "".join(tag("th", escape(name)) for name in columns))]
    for label, form, found in rows:
        if any(found.values()):
            cells = "".join(tag("td", cell(found.get(name), form)) for name in columns)
            lines.append(tag("tr", tag("th", escape(label)) + cells))
    return tag("div", tag("table", "".join(lines)), class_="wide")

def lines_of(metrics, logs):
    """The lines of a panel: (name, CSS classes, points). One run has a color a metric, several a color each."""
    lines, several = [], len(logs) > 1
    for number, (run, series) in enumerate(logs.items()):
        for place, metric in enumerate(metrics):
            words = ([run] if several else []) + ([metric.rpartition("/")[2]] if len(metrics) > 1 else [])
            color = (f"c{number % 6}" + (" dashed" if place else "")) if several else f"c{place}"
            for split in ("train", "val"):
                points = [(s, v) for s, v in series.get(metric, {}).get(split, ()) if math.isfinite(v)]
                lines.append((" ".join([*words, split]), f"{split} {color}", points))
    return lines

def curves(logs):
    """A figure for each panel that was logged. logs: {run: what read_log gives}."""
    figures = []
    for name, metrics in PANELS:
        # Losses of two runs may be of two kinds, so each has a figure of its own
        groups = [{run: series} for run, series in logs.items()] if name == "loss" else [logs]
        for group in groups:
            lines = lines_of(metrics, group)
            if any(points for *_, points in lines):
                of = f" of {next(iter(group))}" if len(group) < len(logs) else ""
                figures.append(html.curve(name + of, unit(metrics[0]), lines))
    if not figures:
        return ""
    about = tag("p", "Thin: training batches. Thick: validation. Move over a curve to read all of them at a step.",
                class_="dim")
    return tag("h2", "Curves") + about + tag("div", "".join(figures), class_="curves")

def chooser(name, label, options):
    """A select element with its label."""
    listed = "".join(tag("option", escape(text), value=value) for value, text in options)
    return tag("label", f"{label} " + tag("select", listed, id=name))

def slider(views):
    """The slider over the kept steps; "" if no run has kept any."""
    if not any(place(view, views) for view in views):
        return ""
    steps = sorted({view.step for view in views})
    names = " ".join(map(str, steps))
    control = f'<input type="range" id="step" min="0" max="{len(steps) - 1}" value="{len(steps) - 1}" ' \
              f'data-names="{names}" aria-label="step">'
    return f'<div class="controls" hidden><label>step <span id="step-name"></span> {control}</label></div>'

def pairs_section(pairs, texts, views, scale):
    """All pairs with their controls. texts: their prompts."""
    if not pairs:
        return ""
    last = last_view(views)
    there = {name for at, pair in enumerate(pairs) for name in marks(pair, *last.pairs[at])}
    filters = [("", "all"), *((name, text) for name, text in MARKS.items() if name in there)]
    bar = f'<div class="controls" hidden>{chooser("sort", "sort by", SORTS)}{chooser("filter", "show", filters)}' \
          '<span id="shown"></span></div>'
    cards = "".join(pair_card(at, pair, text, views, scale) for at, (pair, text) in enumerate(zip(pairs, texts)))
    return tag("section", tag("h2", f"{len(pairs)} held-out pairs") + bar + tag("div", cards))    # bar stays within it

def samples_section(texts, views, scale):
    """All samples. texts: their prompts."""
    if not texts:
        return ""
    cards = "".join(sample_card(at, text, views, scale) for at, text in enumerate(texts))
    said = "Before: a text of the reference. After: a text of the policy. Both models score both texts."
    return tag("section", tag("h2", f"Samples of {len(texts)} held-out prompts") + tag("p", said, class_="dim") + cards)
