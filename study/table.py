"""
Fill the tables of README.md and docs/ from LOSSES and study/results.

    python -m study.table                          # every table of every document
    python -m study.table --example out/toy/dpo    # first take the README's example from a run of the main job

A table stands between `<!-- NAME: made by study/table.py -->` and `<!-- end of NAME -->`.
"""
import argparse
import csv
import inspect
import json
import re
import shutil
from pathlib import Path

import numpy as np

import adapters
import eval
from train_pref import LOSSES    # which says in one line what is wrong with a new loss
from study import claims

ROOT = Path(__file__).resolve().parent.parent
RESULTS, FIGURES = ROOT / "study" / "results", ROOT / "study" / "figures"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEADS = {"reward": ("reward", ".3f"), "kl": ("KL, nats", ".2f"), "win": ("wins against SFT", ".3f"),
         "entropy": ("entropy, nats a token", ".3f"), "pooled_25": ("of 25 samples", ".3f"), "distinct_2": ("distinct pairs", ".3f"),
         "length": ("length, tokens", ".1f"), "accuracy": ("accuracy", ".3f"),
         "calibration_error": ("calibration error", ".3f"), "agreement": ("rank correlation with the true reward", ".3f"),
         "seconds": ("seconds of training", ".0f"), "samples": ("samples", ",.0f")}
OPTIONS = {"share_prefix": "--share_prefix", "compile": "--compile", **{m: f"--adapter {m}" for m in adapters.MODES}}

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0], allow_abbrev=False)
    p.add_argument("--example", help="take the README's example and first picture from this run of the main job")
    return p.parse_args(argv)

def keep_example(run):
    shutil.copy(Path(run) / "eval.png", FIGURES / "main_job.png")
    stored = json.loads((Path(run) / "eval.json").read_text())
    (RESULTS / "main_job.json").write_text(json.dumps(stored | {"samples": stored["samples"][:3]}, indent=1) + "\n")

SHORT_EXAMPLE = ("reward", "win", "kl", "entropy", "distinct_2", "length", "eos", "accuracy")

def example(keep=SHORT_EXAMPLE, n_samples=2):
    """The end of the main job's output: the rows of some measures, and some samples."""
    stored = json.loads((RESULTS / "main_job.json").read_text())
    columns = {name: {k: v for k, v in column.items() if k in keep} for name, column in stored["measures"].items()}
    lines = eval.table(columns).split("\n")
    for sample in stored["samples"][:n_samples]:
        lines += ["", *eval.sample_lines(sample)]
    return "\n".join(["```", *lines, "```"])

def whole_example():
    """All that the main job prints at its end."""
    return example([key for key, _, _ in eval.ROWS], 3)

def markdown(heads, rows):
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *("| " + " | ".join(row) + " |" for row in rows)])

def read(name):
    """Rows of the files of study/results that fit a name or pattern, numbers as numbers."""
    def number(text):
        try:
            return float(text)
        except ValueError:
            return text
    for path in sorted(RESULTS.glob(name)):
        with open(path, newline="") as f:
            yield from ({k: number(v) for k, v in row.items()} for row in csv.DictReader(f))

def grouped(rows, *keys):
    """{values of the keys: rows that have them}, in the order of their first."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    return groups

def mean(rows, key, form, spread=False):
    """The mean over seeds or rounds, and in brackets the range if they differ."""
    values = [row[key] for row in rows]
    shown = f"{sum(values) / len(values):{form}}"
    return f"{shown} ({min(values):{form}} to {max(values):{form}})" if spread and min(values) < max(values) else shown

def sweep_table(recipes, heads, first="method"):
    """A row a {label: recipe}: means over seeds and their ranges, "-" where a recipe has no such measure."""
    groups = grouped(read("sweep.csv"), "recipe", "measure")
    cell = lambda rows, form: mean(rows, "mean", form, True) if rows else "-"
    return markdown([first, *(label for label, _ in heads.values())], (
        [label, *(cell(groups.get((recipe, m)), form) for m, (_, form) in heads.items())] for label, recipe in recipes.items()))

def quoted(names):
    return {f"`{name}`": name for name in names}

def results_table():
    """A row a loss with its defaults."""
    heads = {m: HEADS[m] for m in ("reward", "kl", "entropy", "length", "accuracy")}
    recipes = {"`sft`": "sft"} | {f"`--loss {name}`": claims.default_of(name) for name in LOSSES}
    return sweep_table(recipes, heads, "policy")

def methods_table():
    """One setting of each method, with 25 samples a prompt."""
    heads = {m: HEADS[m] for m in ("reward", "win", "kl", "length", "entropy", "pooled_25")}
    return sweep_table(quoted(claims.Sweep(RESULTS).recipes_with("pooled_25")), heads)

def front_table():
    """The README's few methods, each at one setting."""
    recipes = {"SFT": "sft", "`--loss dpo`": "dpo beta=0.1", "`--loss ipo`": "ipo beta=0.1", "`--loss fdpo` (JSD)": "jsd beta=0.3",
               "PPO, learned reward": "ppo beta=0.5", "RLOO, learned reward": "rloo beta=0.5", "best of 16, exact reward": "best_of n=16"}
    return sweep_table(recipes, {m: HEADS[m] for m in ("reward", "kl", "win", "entropy")})

def rlhf_table():
    """DPO and what it replaces, every setting."""
    s, methods = claims.Sweep(RESULTS), ("sft", "dpo", "ppo", "rloo", "ppo_gt", "rloo_gt", "best_of", "preferred_ft", "unlikelihood")
    recipes = [r for m in methods for r in s.points(m)]
    heads = {m: HEADS[m] for m in ("reward", "kl", "win", "length", "seconds", "samples")}
    return sweep_table(quoted(recipes), heads)

def judge_table():
    """How good the toy world's reward models are."""
    heads = {m: HEADS[m] for m in ("accuracy", "calibration_error", "agreement", "seconds")}
    return sweep_table({"trained on the pairs that DPO has": "reward"}, heads, "reward model")

def epsilon_table():
    """DPO by AdamW's epsilon, each seed by itself, as their mean would hide the one that breaks."""
    s = claims.Sweep(RESULTS)
    each = lambda recipe, measure, form: ", ".join(f"{value:{form}}" for value in s(recipe, measure))
    return markdown(["`--adam_epsilon`", "KL, nats, by seed", "reward, by seed"], (
        [r.split("=")[1], each(r, "kl", ".1f"), each(r, "reward", ".2f")] for r in s.points("epsilon")))

def models_table():
    """What real text's SFT policies and reward models have learned, with 95% intervals over texts."""
    groups = grouped(read("real.csv"), "data", "run", "measure")
    heads = {"perplexity": ("perplexity a token", ".1f"), "accuracy": ("accuracy", ".3f"),
             "calibration_error": ("calibration error", ".3f"), "seconds": ("minutes of training", ".1f")}
    def cell(data, run, measure, form):
        row, unit = groups.get((data, run, measure), [None])[0], 60 if measure == "seconds" else 1
        if row is None:
            return ""
        return f"{row['mean'] / unit:{form}}" + (f" [{row['low']:{form}}, {row['high']:{form}}]" if row["low"] < row["high"] else "")
    learners = [(d, r) for d, r, m in groups if m == "seconds" and (d, r, "kl") not in groups]
    return markdown(["data", "model", *(label for label, _ in heads.values())], (
        [data, f"`{run}`", *(cell(data, run, m, form) for m, (_, form) in heads.items())] for data, run in learners))

def real_table():
    """Preferences on real text, means over seeds and ranges, and the SFT policies that they begin from."""
    groups = grouped(read("real.csv"), "data", "run", "measure")
    heads = {"reward": ("by the reward model", ".3f"), "gold": ("by the gold model", ".3f"), "gold_win": ("wins by gold", ".3f"),
             "kl": ("KL, nats", ".2f"), "entropy": ("entropy, nats a token", ".2f"), "accuracy": ("accuracy", ".3f")}
    cell = lambda rows, form: mean(rows, "mean", form, True) if rows else ""
    lines = {}    # by their cells, since the policy before one run is most often that before the next, on the same prompts
    for data, run in dict.fromkeys((d, r) for d, r, m in groups if m == "kl"):
        cells = tuple(cell(groups.get((data, run, m)), form) for m, (_, form) in heads.items())
        lines.setdefault(cells, [f"{data} `{run}`", *cells])
    return markdown(["run", *(label for label, _ in heads.values())], lines.values())

def real_samples():
    """Some of what the policies of real text write, beside the SFT policy."""
    lines = ["```"]
    for name, samples in json.loads((RESULTS / "real_samples.json").read_text()).items():
        for sample in samples[:2]:
            lines += [f"--- {name}", *eval.sample_lines(sample), ""]
    return "\n".join([*lines[:-1], "```"])

def bandit_table():
    heads = ["loss", "settings", "reward", "KL, nats", "below the frontier", "mass on answers never seen"]
    return markdown(heads, ([f"`{r['loss']}`", r["settings"] or "defaults", f"{r['reward']:.3f}", f"{r['kl']:.3f}",
                             f"{r['below the frontier']:.4f}", f"{r['unseen before']:.2f} to {r['unseen after']:.2f}"]
                            for r in read("bandit.csv")))

def escaped(cell):
    return cell.replace("|", "\\|")    # a bare one ends the cell

def losses_table():
    """A row a loss, read off LOSSES and the docstrings; a formula or source that a docstring does not have is left empty."""
    rows = []
    for name, loss in LOSSES.items():
        doc = inspect.getdoc(loss.fn) or ""
        formula = re.search(r"L = (.*?)(?:,   |\n)", doc + "\n")
        formula = f"`{formula[1]}`" if formula else ""
        source = re.search(r"arXiv:\d{4}\.\d{5}|ericmitchell\.ai/\S+?\.pdf", doc)
        hparams = ", ".join(f"`{k}` {v}" for k, v in loss.hparams.items()) or "none"
        rows.append((f"`{name}`", formula, source[0] if source else "", "yes" if loss.needs_ref else "no", hparams))
    heads = ("loss", "per pair", "source", "reference", "hyperparameters")
    return markdown(heads, [list(map(escaped, row)) for row in rows])

def behavior_table():
    """Where each loss starts, where it stops pushing, and what TRL calls it."""
    rows = []
    for name, loss in LOSSES.items():
        start, limit = (f"`{x}`" if x and x != "inf" else {"inf": "never", "": ""}[x] for x in (loss.start, loss.limit))
        rows.append((f"`{name}`", start, limit, loss.trl))
    heads = ("loss", "value while policy == reference", "stops pushing at a gap of", "in TRL 1.16")
    return markdown(heads, [list(map(escaped, row)) for row in rows])

def front_losses():
    """All losses as names that link to their row."""
    return ", ".join(f"[{name}](docs/losses.md)" for name in LOSSES)

def trl_table():
    """DPO updates beside TRL's: ours / TRL's where a cell has two numbers."""
    heads = ["pairs", "TRL runs the reference", "prompt here", "seconds an update", "times as fast", "GB", "of the matrix rate"]
    lines, keys = [], ("data", "dtype", "reference", "trl_checkpointing", "layout")
    for (data, dtype, reference, checkpointing, layout), rows in grouped(read("bench_trl_*.csv"), *keys).items():
        seconds, gb = (f"{mean(rows, k, '.2f')} / {mean(rows, f'trl_{k}', '.2f')}" for k in ("seconds", "peak_gb"))
        lines.append([f"{data.split('-')[0]}, {dtype}", reference + (", recomputing" if checkpointing == "True" else ""),
                      {"plain": "twice", "shared": "once"}[layout], seconds, mean(rows, "speed_ratio", ".1f", True),
                      f"{gb} = {mean(rows, 'memory_ratio', '.2f')}", mean(rows, "share", ".0%")])
    return markdown(heads, lines)

def parts_table():
    """Every part of the work on GPT-2's sizes, and some of it on smaller ones."""
    return markdown(["model", "part", "seconds a step", "pairs a second", "tokens a second", "of the matrix rate", "GB"], (
        [f"{r['model']}, {r['dtype']}", f"`{' '.join((r['what'], *(OPTIONS.get(o, o) for o in r['options'].split())))}`",
         f"{r['seconds']:.2f}",
         f"{r['pairs_s']:.1f}" if r["pairs_s"] else "", f"{r['tokens_s']:,.0f}", f"{r['share']:.0%}" if r["share"] else "",
         f"{r['peak_gb']:.2f}"]
        for r in read("bench_parts*.csv") if r["model"] == "gpt2" or r["options"] in ("", "share_prefix")))

def generation_table():
    """Generation beside transformers'."""
    return markdown(["dtype", "tokens a second", "transformers'", "times as fast", "GB", "transformers'"], (
        [dtype, mean(rows, "tokens_s", ".0f"), mean(rows, "transformers_tokens_s", ".0f"), mean(rows, "speed_ratio", ".2f", True),
         mean(rows, "peak_gb", ".2f"), mean(rows, "transformers_peak_gb", ".2f")]
        for (dtype,), rows in grouped(read("bench_transformers.csv"), "dtype").items()))

def robust_table():
    """What was tried on runs and files, and what happened."""
    heads = {"kill": "a run is killed", "full": "the disk is full", "byte": "a changed byte, or cut short", "fuzz": "a damaged file"}
    return markdown(["tried", "where", "happened", "times"], (
        [heads[r["what"]], r["where"], r["happened"], f"{r['times']:,.0f}"] for r in read("robust.csv")))

def growth_model():
    """
    (rows, theory) of bench_growth.csv. In theory an update costs its operations and, for the optimizer, its parameters:
    seconds = operations / rate + parameters * b, and bytes = 16 parameters (weight, gradient, two moments) + tokens * c +
    vocabulary * d (the tied matrix has a gradient from either end) + libraries. What theory leaves open, rate, b, c, d and the
    libraries' share, is fitted to all points at once, each weighted by its own size.
    """
    rows = list(read("bench_growth.csv"))
    def fitted(columns, y):
        columns, y = np.array(columns).T, np.array(y)
        return columns @ np.linalg.lstsq(columns / y[:, None], np.ones(len(y)), rcond=None)[0]
    ops, params, tokens, words = (np.array([r[k] for r in rows]) for k in ("operations", "parameters", "tokens", "vocabulary"))
    memory = 16e-9 * params
    rest = fitted([tokens, words, np.ones(len(rows))], [r["peak_gb"] for r in rows] - memory)
    return rows, {"seconds": fitted([ops / 1e9, params / 1e6], [r["seconds"] for r in rows]), "peak_gb": memory + rest}

def growth_table():
    """What an update costs, measured and in theory."""
    rows, theory = growth_model()
    heads = ["pairs x completion tokens", "vocabulary", "billion operations", "seconds an update", "in theory", "GB", "in theory"]
    return markdown(heads, (
        [f"{r['batch']:.0f} x {r['completion']:.0f}", f"{r['vocabulary']:,.0f}", f"{r['operations'] / 1e9:,.0f}", f"{r['seconds']:.2f}",
         f"{s:.2f}", f"{r['peak_gb']:.2f}", f"{gb:.2f}"] for r, s, gb in zip(rows, theory["seconds"], theory["peak_gb"])))

def draw_growth():
    """study/figures/growth.png: seconds and GB against batch, completion length and vocabulary, measured and in theory."""
    from matplotlib.figure import Figure
    rows, theory = growth_model()
    fig = Figure(figsize=(10, 5), layout="tight")
    axes = fig.subplots(2, 3)
    for column, (axis, label) in enumerate({"batch": "pairs", "completion": "tokens of a completion", "vocabulary": "vocabulary"}.items()):
        picks = [i for i, r in enumerate(rows) if r["axis"] == axis]
        x = [rows[i][axis] for i in picks]
        for ax, key, title in ((axes[0][column], "seconds", "seconds an update"), (axes[1][column], "peak_gb", "GB at the most")):
            ax.plot(x, [rows[i][key] for i in picks], "o", color="C0", label="measured")
            ax.plot(x, theory[key][picks], "-", color="C1", label="in theory")
            ax.set(xlabel=label, ylabel=title, ylim=(0, None), xlim=(0, None))
            ax.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    fig.savefig(FIGURES / "growth.png", dpi=110)

TABLES = {"example": example, "whole example": whole_example, "front": front_table, "loss names": front_losses,
          "results": results_table, "bandit": bandit_table, "losses": losses_table, "behavior": behavior_table, "trl": trl_table,
          "parts": parts_table, "generation": generation_table, "growth": growth_table, "robust": robust_table,
          "methods": methods_table, "epsilon": epsilon_table, "rlhf": rlhf_table, "judge": judge_table, "models": models_table,
          "real": real_table, "samples": real_samples, "claims": lambda: claims.claims_table(RESULTS)}

def filled(text):
    """A document's text with every table between markers made anew. Raises KeyError for a marker of no table."""
    marked = re.compile(r"<!-- ([\w ]+): made by study/table\.py -->\n.*?<!-- end of \1 -->", re.S)
    return marked.sub(lambda m: f"<!-- {m[1]}: made by study/table.py -->\n{TABLES[m[1]]()}\n<!-- end of {m[1]} -->", text)

def main(argv=None):
    args = get_args(argv)
    if args.example:
        keep_example(args.example)
    draw_growth()
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text()))
    print(f"tables written into {', '.join(path.name for path in DOCUMENTS)}")

if __name__ == "__main__":
    main()
