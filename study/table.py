"""
Fill the tables of README.md and docs/ from LOSSES and study/results.

    python -m study.table                                   # every table of every document
    python -m study.table --update                          # also study/figures/growth.png
    python -m study.table --update --example out/toy/dpo    # first take the README's example from a run of the main job

A table stands between `<!-- NAME: made by study/table.py -->` and `<!-- end of NAME -->`. Without --update nothing in
study/ is written, and the documents change only if LOSSES or study/results have changed. tests/test_docs.py fails until
they are filled. docs/study.md explains the results.
"""
import inspect
import json
import re
import shutil
import statistics
from pathlib import Path

import numpy as np

import adapters
import eval
import judge_check
from study import claims, fits, pictures, places
from study.places import FIGURES, RESULTS, ROOT
from support import cli
from support.tables import ROWS
from train_pref import LOSSES    # not from losses: train_pref reports an error in a new loss in one line

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# measure -> (head of its column, format of its numbers)
HEADS = {"reward": ("reward", ".3f"), "kl": ("KL, nats", ".2f"), "win": ("wins against SFT", ".3f"),
         "entropy": ("entropy, nats a token", ".3f"), "whole": ("whole sentences", ".3f"),
         "pooled_25": ("of 25 samples", ".3f"),
         "distinct_2": ("distinct pairs", ".3f"), "length": ("length, tokens", ".1f"), "accuracy": ("accuracy", ".3f"),
         "calibration_error": ("calibration error", ".3f"),
         "agreement": ("rank correlation with the true reward", ".3f"),
         "seconds": ("seconds of training", ".0f"), "samples": ("samples", ",.0f")}
OPTIONS = {"share_prefix": "--share_prefix", "compile": "--compile", "checkpointing": "--activation_checkpointing",
           **{m: f"--adapter {m}" for m in adapters.MODES}}

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--update", action="store_true", help="also draw study/figures/growth.png again")
    p.add_argument("--example", help="take the README's example and first picture from this run; needs --update")
    args = p.parse_args(argv)
    if args.example and not args.update:
        p.error("--example overwrites files of study/results and study/figures: give --update too")
    return args

def keep_example(run):
    """Copies the measures, the first samples and the picture of a run of the main job into study/."""
    shutil.copy(Path(run) / "eval.png", FIGURES / "main_job.png")
    stored = json.loads((Path(run) / "eval.json").read_text())
    (RESULTS / "main_job.json").write_text(json.dumps(stored | {"samples": stored["samples"][:3]}, indent=1) + "\n")

SHORT_EXAMPLE = ("reward", "win", "kl", "entropy", "distinct_2", "length", "whole", "accuracy")

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
    return example([key for key, _, _ in ROWS], 3)

def markdown(heads, rows):
    """A table: the names of its columns, and rows of cells. A | within a cell is escaped, as it would end the cell."""
    lines = []
    for cells in (heads, *rows):
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])

def number(text):
    """A cell of a CSV file as a float if it is one."""
    try:
        return float(text)
    except ValueError:
        return text

def read(name, folder=None):
    """Yields the rows of all files of a folder (default: study/results) that match a pattern, numbers as floats."""
    for path in sorted((folder or RESULTS).glob(name)):
        for row in places.read_csv(path):
            yield {k: number(v) for k, v in row.items()}

def grouped(rows, *keys):
    """{values of the keys: the rows that have them}, in the order of the first row of each."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    return groups

def median(rows, key, form, spread=False):
    """The median over rounds as text: one disturbed round does not move it. spread: see mean."""
    return mean(rows, key, form, spread, statistics.median)

def mean(rows, key, form, spread=False, middle=lambda values: sum(values) / len(values)):
    """The mean over seeds as text. With spread also their range in brackets, if they differ."""
    values = [row[key] for row in rows]
    shown = f"{middle(values):{form}}"
    if spread and min(values) < max(values):
        shown += f" ({min(values):{form}} to {max(values):{form}})"
    return shown

def cells_of(groups, run, heads, missing):
    """
    A mean over seeds with its range for each measure of a run.

    groups   {(*run, measure): rows}
    heads    {measure: (head of its column, format)}
    missing  the cell of a measure that the run does not have
    """
    cells = []
    for measure, (_, form) in heads.items():
        found = groups.get((*run, measure))
        cells.append(mean(found, "mean", form, spread=True) if found else missing)
    return cells

def sweep_table(recipes, measures, first="method", folder=None):
    """A row for each {label: recipe}, with the columns of the measures, from sweep.csv of a folder."""
    groups = grouped(read("sweep.csv", folder), "recipe", "measure")
    heads = {measure: HEADS[measure] for measure in measures}
    rows = [[label, *cells_of(groups, (recipe,), heads, "-")] for label, recipe in recipes.items()]
    return markdown([first, *(label for label, _ in heads.values())], rows)

def quoted(names):
    """{label: recipe}, where the label is the recipe itself, as code."""
    return {f"`{name}`": name for name in names}

def results_table():
    """A row for each loss with its default hyperparameters."""
    recipes = {"`sft`": "sft"} | {f"`--loss {name}`": claims.default_of(name) for name in LOSSES}
    return sweep_table(recipes, ("reward", "kl", "entropy", "length", "accuracy"), "policy")

def methods_table():
    """One setting of each method, measured with 25 samples a prompt."""
    measures = ("reward", "win", "kl", "length", "entropy", "pooled_25")
    return sweep_table(quoted(claims.Sweep(RESULTS).recipes_with("pooled_25")), measures)

def front_table():
    """The README's few methods, each at one setting."""
    recipes = {"SFT": "sft", "`--loss dpo`": "dpo beta=0.1", "`--loss ipo`": "ipo beta=0.1",
               "`--loss fdpo` (JSD)": "jsd beta=0.3", "PPO, learned reward": "ppo beta=0.5",
               "RLOO, learned reward": "rloo beta=0.5", "best of 16, exact reward": "best_of n=16"}
    return sweep_table(recipes, ("reward", "kl", "win", "entropy"))

def rlhf_table():
    """DPO and the methods it replaces, at every setting."""
    s = claims.Sweep(RESULTS)
    recipes = []
    for method in ("sft", "dpo", "ppo", "rloo", "ppo_gt", "rloo_gt", "best_of", "preferred_ft", "unlikelihood"):
        recipes += s.points(method)
    return sweep_table(quoted(recipes), ("reward", "kl", "win", "length", "seconds", "samples"))

def grpo_table():
    """The online methods with the learned reward, from the second sweep."""
    return second_table(("sft", "ppo", "rloo", "grpo", "dr_grpo", "dapo", "grpo_kr", "dr_grpo_kr"))

def rounds_table():
    """Offline pairs beside rounds, and length regularization, from the second sweep."""
    return second_table(("sft", "dpo", "rounds_dpo", "sync_dpo", "ipo", "rounds_ipo", "default rdpo", "rdpo"))

def second_table(methods):
    """A row for each setting of some methods of the second sweep, or for one recipe."""
    s, recipes = claims.Sweep(places.second(RESULTS)), []
    for method in methods:
        recipes += [method] if method in s.recipes else s.points(method)
    return sweep_table(quoted(recipes), ("reward", "kl", "whole", "length", "entropy"), folder=places.second(RESULTS))

def judge_table():
    """The quality of the toy world's reward models."""
    measures = ("accuracy", "calibration_error", "agreement", "seconds")
    return sweep_table({"trained on the pairs that DPO has": "reward"}, measures, "reward model")

def small_judge_table():
    """What judge.py --check says of SmolLM2-135M, a row for each server and kind of pairs, with 95% intervals."""
    heads = {"accuracy": "accuracy", "soft_accuracy": "of soft votes", "position": "first answer", "flip": "flips",
             "length": "longer less shorter"}
    rows = []
    for found in json.loads((RESULTS / "small_judge.json").read_text()):
        cells = [judge_check.rate(found[m], "+" if m == "length" else "") if m in found else "" for m in heads]
        rows.append([found["server"], f"{found['pairs']} of `{found['what']}`", *cells])
    return markdown(["server", "pairs", *heads.values()], rows)

def epsilon_table():
    """DPO by AdamW's epsilon, each seed by itself: a mean would hide that one seed's policy collapses."""
    s = claims.Sweep(RESULTS)
    rows = []
    for recipe in s.points("epsilon"):
        kl, reward = (values[~np.isnan(values)] for values in (s(recipe, "kl"), s(recipe, "reward")))
        kl, reward = ", ".join(f"{x:.1f}" for x in kl), ", ".join(f"{x:.2f}" for x in reward)
        rows.append([recipe.split("=")[1], kl, reward])
    return markdown(["`--adam_epsilon`", "KL, nats, by seed", "reward, by seed"], rows)

def models_table():
    """The SFT policies and reward models of real text, with 95% intervals over texts."""
    groups = grouped(read("real.csv"), "data", "run", "measure")
    heads = {"perplexity": ("perplexity a token", ".1f"), "accuracy": ("accuracy", ".3f"),
             "calibration_error": ("calibration error", ".3f"), "seconds": ("minutes of training", ".1f")}
    def cell(data, run, measure, form):
        if (data, run, measure) not in groups:
            return ""
        row, unit = groups[data, run, measure][0], 60 if measure == "seconds" else 1
        mean, low, high = (f"{row[key] / unit:{form}}" for key in ("mean", "low", "high"))
        return f"{mean} [{low}, {high}]" if row["low"] < row["high"] else mean
    rows = []
    for data, run, measure in groups:
        if measure == "seconds" and (data, run, "kl") not in groups:    # a run with a KL is a preference run
            rows.append([data, f"`{run}`", *(cell(data, run, m, form) for m, (_, form) in heads.items())])
    return markdown(["data", "model", *(label for label, _ in heads.values())], rows)

def real_table():
    """The preference runs on real text and the SFT policies that they start from: means over seeds, with ranges."""
    groups = grouped(read("real.csv"), "data", "run", "measure")
    heads = {"reward": ("by the reward model", ".3f"), "gold": ("by the gold model", ".3f"),
             "gold_win": ("wins by gold", ".3f"), "kl": ("KL, nats", ".2f"),
             "entropy": ("entropy, nats a token", ".2f"), "accuracy": ("accuracy", ".3f")}
    rows = {}    # by their cells: several runs mostly start from one policy on the same prompts, which is shown once
    for data, run in dict.fromkeys((d, r) for d, r, m in groups if m == "kl"):
        cells = cells_of(groups, (data, run), heads, "")
        rows.setdefault(tuple(cells), [f"{data} `{run}`", *cells])
    return markdown(["run", *(label for label, _ in heads.values())], rows.values())

def real_samples():
    """Samples of the policies of real text, each beside one of the SFT policy."""
    lines = ["```"]
    for name, found in json.loads((RESULTS / "real_samples.json").read_text()).items():
        for sample in found[:2]:
            lines += [f"--- {name}", *eval.sample_lines(sample), ""]
    return "\n".join([*lines[:-1], "```"])

def bandit_table():
    """Each loss on the exact bandit: its reward, its KL, and its distance from the frontier."""
    heads = ["loss", "settings", "reward", "KL, nats", "below the frontier", "mass on answers never seen"]
    rows = []
    for r in read("bandit.csv"):
        unseen = f"{r['unseen before']:.2f} to {r['unseen after']:.2f}"
        rows.append([f"`{r['loss']}`", r["settings"] or "defaults", f"{r['reward']:.3f}", f"{r['kl']:.3f}",
                     f"{r['below the frontier']:.4f}", unseen])
    return markdown(heads, rows)

def losses_table():
    """A row for each loss, from LOSSES and the docstrings. A formula or source that a docstring lacks is left empty."""
    rows = []
    for name, loss in LOSSES.items():
        doc = inspect.getdoc(loss.fn) or ""
        formula = re.search(r"L = (.*?)(?:,   |\n)", doc + "\n")
        formula = f"`{formula[1]}`" if formula else ""
        source = re.search(r"arXiv:\d{4}\.\d{5}|ericmitchell\.ai/\S+?\.pdf", doc)
        hparams = ", ".join(f"`{k}` {v}" for k, v in loss.hparams.items()) or "none"
        rows.append((f"`{name}`", formula, source[0] if source else "", "yes" if loss.needs_ref else "no", hparams))
    return markdown(("loss", "per pair", "source", "reference", "hyperparameters"), rows)

BEHAVIOR = {"inf": "never", "": ""}    # all other starts and limits are formulas

def behavior_table():
    """Where each loss starts, where it stops pushing, and its name in TRL."""
    rows = []
    for name, loss in LOSSES.items():
        start, limit = (BEHAVIOR.get(x, f"`{x}`") for x in (loss.start, loss.limit))
        rows.append((f"`{name}`", start, limit, loss.trl))
    return markdown(("loss", "value while policy == reference", "stops pushing at a gap of", "in TRL 1.16"), rows)

def front_losses():
    """All losses as names that link to their row."""
    return ", ".join(f"[{name}](docs/losses.md)" for name in LOSSES)

def trl_table():
    """DPO updates beside TRL's: "ours / TRL's" where a cell has two numbers."""
    heads = ["pairs", "TRL runs the reference", "prompt here", "seconds an update", "times as fast", "GB",
             "of the matrix rate"]
    lines, keys = [], ("data", "dtype", "processor", "reference", "trl_checkpointing", "checkpointing", "layout")
    # the first rows, of the newer processor, have no family and no column "checkpointing"
    ages = {"(family 25, model 17)": ", older", "(family 25, model 1)": ", oldest"}
    measured = []
    for row in read("bench_trl_*.csv"):
        age = next((name for family, name in ages.items() if family in row["machine"]), "")
        measured.append({"checkpointing": "False", "processor": age} | row)
    for (data, dtype, processor, reference, theirs, ours, layout), rows in grouped(measured, *keys).items():
        seconds = f"{median(rows, 'seconds', '.2f')} / {median(rows, 'trl_seconds', '.2f')}"
        gb = f"{median(rows, 'peak_gb', '.2f')} / {median(rows, 'trl_peak_gb', '.2f')}"
        when = reference + {"FalseFalse": "", "TrueFalse": ", TRL recomputing", "TrueTrue": ", both recomputing"}[
            theirs + ours]
        prompt = {"plain": "twice", "shared": "once"}[layout]
        lines.append([f"{data.split('-')[0]}, {dtype}{processor}", when, prompt, seconds,
                      median(rows, "speed_ratio", ".1f", spread=True),
                      f"{gb} = {median(rows, 'memory_ratio', '.2f')}", median(rows, "share", ".0%")])
    return markdown(heads, lines)

def parts_table():
    """Every part of the work on GPT-2, and the parts without options on the smaller models."""
    heads = ["model", "part", "seconds a step", "pairs a second", "tokens a second", "of the matrix rate", "GB"]
    rows = []
    for r in read("bench_parts*.csv"):
        if r["model"] == "gpt2" or r["options"] in ("", "share_prefix"):
            part = " ".join((r["what"], *(OPTIONS.get(o, o) for o in r["options"].split())))
            pairs, share = (f"{r[k]:{form}}" if r[k] else "" for k, form in (("pairs_s", ".1f"), ("share", ".0%")))
            rows.append([f"{r['model']}, {r['dtype']}", f"`{part}`", f"{r['seconds']:.2f}", pairs,
                         f"{r['tokens_s']:,.0f}", share, f"{r['peak_gb']:.2f}"])
    return markdown(heads, rows)

def generation_table():
    """Generation beside transformers'."""
    heads = ["dtype", "tokens a second", "transformers'", "times as fast", "GB", "transformers'"]
    lines = []
    for (dtype,), rows in grouped(read("bench_transformers.csv"), "dtype").items():
        lines.append([dtype, median(rows, "tokens_s", ".0f"), median(rows, "transformers_tokens_s", ".0f"),
                      median(rows, "speed_ratio", ".2f", spread=True), median(rows, "peak_gb", ".2f"),
                      median(rows, "transformers_peak_gb", ".2f")])
    return markdown(heads, lines)

def robust_table():
    """What was done to runs and files, and what happened."""
    heads = {"kill": "a run is killed", "full": "the disk is full", "byte": "a changed byte, or cut short",
             "fuzz": "a damaged file"}
    return markdown(["tried", "where", "happened", "times"], (
        [heads[r["what"]], r["where"], r["happened"], f"{r['times']:,.0f}"] for r in read("robust.csv")))

def growth_model():
    """
    (rows, theory) of bench_growth.csv, where theory has "seconds" and "peak_gb", an array (rows,) each.

        seconds = operations / rate + parameters * b
        bytes   = 16 parameters + tokens * c + vocabulary * d + libraries

    The 16 bytes are a parameter's weight, gradient and two moments. The vocabulary has its own term because the tied
    matrix gets a gradient from both ends. rate, b, c, d and libraries are fitted to all rows at once, by least squares
    of the relative error.
    """
    rows = list(read("bench_growth.csv"))
    def fitted(columns, y):
        columns, y = np.array(columns).T, np.array(y)
        return columns @ np.linalg.lstsq(columns / y[:, None], np.ones(len(y)), rcond=None)[0]
    keys = "operations", "parameters", "tokens", "vocabulary"
    ops, params, tokens, words = (np.array([r[k] for r in rows]) for k in keys)
    memory = 16e-9 * params
    rest = fitted([tokens, words, np.ones(len(rows))], [r["peak_gb"] for r in rows] - memory)
    return rows, {"seconds": fitted([ops / 1e9, params / 1e6], [r["seconds"] for r in rows]), "peak_gb": memory + rest}

def growth_table():
    """The cost of an update, measured and in theory."""
    found, theory = growth_model()
    heads = ["pairs x completion tokens", "vocabulary", "billion operations", "seconds an update", "in theory",
             "GB", "in theory"]
    rows = []
    for r, seconds, gb in zip(found, theory["seconds"], theory["peak_gb"]):
        size = f"{r['batch']:.0f} x {r['completion']:.0f}"
        rows.append([size, f"{r['vocabulary']:,.0f}", f"{r['operations'] / 1e9:,.0f}", f"{r['seconds']:.2f}",
                     f"{seconds:.2f}", f"{r['peak_gb']:.2f}", f"{gb:.2f}"])
    return markdown(heads, rows)

def draw_growth(path):
    """Draws seconds and GB against batch, completion length and vocabulary, measured and in theory."""
    rows, theory = growth_model()
    fig, axes = pictures.figure(2, 3, 10, 5.4)
    labels = {"batch": "pairs in an update", "completion": "tokens of a completion",
              "vocabulary": "tokens of the vocabulary"}
    for column, (axis, label) in enumerate(labels.items()):
        picks = [i for i, r in enumerate(rows) if r["axis"] == axis]
        x = [rows[i][axis] for i in picks]
        for row, (key, unit) in enumerate((("seconds", "seconds an update"), ("peak_gb", "peak memory (GB)"))):
            ax = axes[row][column]
            ax.plot(x, [rows[i][key] for i in picks], "o", color="#0072B2", label="measured")
            ax.plot(x, theory[key][picks], "-", color="#D55E00", label="theory, fitted to all points")
            ax.set(xlabel=label, ylabel=unit, ylim=(0, None), xlim=(0, None))
            ax.locator_params(axis="x", nbins=5)
    axes[0][0].legend(fontsize=8)
    fig.suptitle("Cost of one DPO update: 4 layers of GPT-2's width, float32, CPU", fontsize=11)
    fig.savefig(path, dpi=110)

def claims_table(results=RESULTS):
    """Each claim with its verdict as a sentence, then a table with a row for each comparison."""
    parts, groups = [], grouped(places.read_csv(results / "claims.csv"), "claim")
    for claim, text in claims.CLAIMS.items():
        if rows := groups.get((claim,)):
            verdicts = [r["verdict"] for r in rows]
            sentences = [sentence for verdict, sentence in claims.SENTENCES.items() if verdict in verdicts]
            whole = sentences[0] if sentences else "The claim was not measured."    # the first is the worst
            parts += [f"**{claim}. {text}.** {whole}", comparisons_table(rows)]
    return "\n\n".join(parts)

def comparisons_table(rows):
    """A row for each comparison of a claim, from rows of claims.csv."""
    lines = []
    for r in rows:
        mean, low, high = (f"{float(r[key]):.3g}" for key in ("mean", "low", "high"))
        lines.append([r["what"], r["seeds"], mean, f"{low} to {high}", r["says"] or "-", r["verdict"] or "-"])
    return markdown(["compared", "seeds", "mean", "95% interval", "the claim says", "verdict"], lines)

def beta_table(results=RESULTS):
    """KL and reward of DPO at each beta, on both worlds and both kinds of labels: means over seeds."""
    rows = places.read_csv(results / "beta.csv")
    rows = [row | {key: float(row[key]) for key in ("beta", "reward", "kl")} for row in rows]
    found = grouped(rows, "world", "labels", "beta")
    columns = [("exact", "optimum"), ("exact", "bradley_terry"), ("exact", "best"),
               ("toy", "bradley_terry"), ("toy", "best")]
    lines = []
    for beta in sorted({row["beta"] for row in rows}):
        cells = []
        for column in columns:
            there = found.get((*column, beta))
            cells.append(f"{mean(there, 'kl', '.2f')}, {mean(there, 'reward', '.3f')}" if there else "-")
        lines.append([f"{beta:g}", *cells])
    heads = ["beta", "RLHF optimum"]
    heads += [f"{world} world, {labels}" for world in ("exact", "toy") for labels in ("drawn labels", "better one")]
    return markdown(heads, lines)

def method_rows(path, shown, spread=False):
    """
    A row for each method of a CSV file with method, seed, measure and value: means over seeds, with spread also ranges.
    "reference" is the model that the others started from. shown: (measure, head of its column, format).
    """
    lines = []
    for (method,), rows in grouped(places.read_csv(path), "method").items():
        values = grouped([row | {"value": float(row["value"])} for row in rows], "measure")
        cells = [mean(values[(measure,)], "value", form, spread) if (measure,) in values else "-"
                 for measure, _, form in shown]
        if set(cells) != {"-"}:
            lines.append([method if method == "reference" else f"`{method}`", *cells])
    return markdown(["`--loss`", *(head for _, head, _ in shown)], lines)

def credit_rows(shown, results):
    """A row for each method of credit.csv."""
    return method_rows(results / "credit.csv", shown)

def credit_table(results=RESULTS):
    """How far chosen and rejected completions move, beside reward and KL."""
    good, bad = "chosen, reward at least 0.5", "chosen, reward below 0.5"
    return credit_rows((("reward", "reward", ".3f"), ("kl", "KL, nats", ".2f"), ("chosen", "chosen", "+.1f"),
                        ("rejected", "rejected", "+.1f"), ("chosen, reward >= 0.5", good, "+.1f"),
                        ("chosen, reward < 0.5", bad, "+.1f")), results)

def words_table(results=RESULTS):
    """How far words of each kind move, and the correlation of both credits."""
    kinds = (("bad", "dull"), ("not bad", "not dull"), ("gem", "gem"), ("bore", "bore"))
    shown = [(measure, head, "+.2f") for measure, head in kinds]
    return credit_rows([*shown, ("correlation", "correlation of implicit and true credit", ".2f")], results)

# estimator -> its name in the table
ESTIMATORS = {"k1": "`k1`: l", "k2": "`k2`: l^2 / 2", "k3": "`k3`: exp(-l) - 1 + l",
              "k3 inverted": "inverted: exp(l) - 1 - l", "vocabulary": "whole vocabulary"}

def estimators_table(results=RESULTS):
    """The KL estimators near the reference, farther and far from it: three means over seeds in a cell."""
    groups = grouped(places.read_csv(results / "estimators.csv"), "policy", "unit", "estimator")
    exact = [(f"beta={beta}", "answer") for beta in ("10", "1", "0.3")]
    toy = [(f"loss=dpo labels=bradley_terry beta={beta}", "completion") for beta in ("3.0", "0.3", "0.03")]
    columns = [(exact, "mean", "kl"), (exact, "std", "kl"), (exact, "reward cosine", None),
               (exact, "loss cosine", None), (toy, "mean", "kl"), (toy, "std", "kl")]
    def cell(policies, estimator, column, over, form=".2f"):
        """A column of each policy, divided by another one."""
        found = [groups.get((*policy, estimator)) for policy in policies]
        means = [np.mean([float(r[column]) / float(r[over] if over else 1) for r in rows]) for rows in found if rows]
        return ", ".join(f"{x:{form if abs(x) < 10 else ',.0f'}}" for x in means) or "-"
    lines = [["KL, nats", *(cell(policies, "k1", "kl", None, ".2g") for policies, _, _ in columns)]]
    for estimator, label in ESTIMATORS.items():
        lines.append([label, *(cell(policies, estimator, column, over) for policies, column, over in columns)])
    heads = ["exact world: mean / KL", "std / KL", "cosine in the reward", "cosine in the loss",
             "toy world: mean / KL", "std / KL"]
    return markdown(["estimator", *heads], lines)

def displacement_table(results=RESULTS):
    """How far the completions of pairs moved, and what the policy writes."""
    return method_rows(results / "displacement.csv", (
        ("chosen", "chosen, nats", "+.2f"), ("chosen_fell", "chosen fell", ".2f"),
        ("better", "better than both", ".2f"), ("worse", "worse than both", ".2f"),
        ("whole", "whole sentences", ".2f"), ("gained", "log pi of the top gain", ".1f")))

def ches_table(results=RESULTS):
    """Rank correlations with the change of log pi(chosen), with their range over seeds."""
    return method_rows(results / "displacement.csv", (
        ("by_ches", "CHES", "+.2f"), ("by_ches_mean", "CHES, length-normalized", "+.2f"),
        ("by_length", "length of chosen", "+.2f"), ("by_reward", "reward of chosen", "+.2f")), spread=True)

def judge_bias_table(results=RESULTS):
    """Win rates by judges with a known bias, with their range over seeds, in both orders and at equal length."""
    groups = grouped(read("judges.csv", results), "answers", "judge")
    cell = lambda rows, key: mean(rows, key, ".2f", spread=True)
    shown = [("as they are", "one_order"), ("as they are", "both"), ("as they are", "equal"), ("with filler", "both"),
             ("with filler", "equal")]
    judges = dict.fromkeys(judge for _, judge in groups)
    lines = [["exact reward", *("-" if key == "equal" else cell(groups[answers, "honest"], "exact")
                                for answers, key in shown)]]
    for judge in judges:
        lines.append([judge, *(cell(groups[answers, judge], key) for answers, key in shown)])
    return markdown(["judge", "one order", "both orders", "at equal length", "with filler: both orders",
                     "with filler: at equal length"], lines)

def judge_check_table(results=RESULTS):
    """What judge.py --check toy says about judges with a known bias."""
    lines = []
    for row in read("judges_check.csv", results):
        numbers = [f"{row['accuracy']:.2f}", f"{row['position']:.2f}", f"{row['length']:+.2f}"]
        lines.append([row["judge"], *numbers, row["says"]])
    return markdown(["judge", "accuracy", "first answer", "longer less shorter", "what the check says"], lines)

def quantized_table(results=RESULTS):
    """What a quantized base costs before and after training: means over seeds with their range. No empty columns."""
    groups = grouped([row | {"value": float(row["value"])} for row in places.read_csv(results / "quantized.csv")],
                     "method", "data", "measure")
    shown = [("toy", "perplexity", "perplexity", ".3f"), ("toy", "base kl", "base KL, nats", ".1e"),
             ("toy", "reward", "reward after training", ".3f"), ("toy", "kl", "KL after training, nats", ".2f"),
             ("imdb", "perplexity", "reviews: perplexity", ".2f"), ("imdb", "base kl", "reviews: base KL", ".1e")]
    shown = [column for column in shown if any(column[:2] == key[1:] for key in groups)]
    lines = []
    for method in dict.fromkeys(method for method, *_ in groups):
        found = [(groups.get((method, data, measure)), form) for data, measure, _, form in shown]
        lines.append([method, *(mean(rows, "value", form, spread=True) if rows else "-" for rows, form in found)])
    return markdown(["base", *(head for *_, head, _ in shown)], lines)

TABLES = {
    "example": example, "whole example": whole_example, "front": front_table, "loss names": front_losses,
    "results": results_table, "bandit": bandit_table, "losses": losses_table, "behavior": behavior_table,
    "trl": trl_table, "fits": fits.fits_table, "parts": parts_table, "generation": generation_table,
    "growth": growth_table,
    "robust": robust_table, "methods": methods_table, "epsilon": epsilon_table, "rlhf": rlhf_table,
    "judge": judge_table, "grpo": grpo_table, "rounds": rounds_table, "models": models_table, "real": real_table,
    "samples": real_samples, "claims": claims_table, "credit": credit_table, "words": words_table, "beta": beta_table,
    "estimators": estimators_table, "displacement": displacement_table, "ches": ches_table,
    "judge bias": judge_bias_table, "judge check": judge_check_table, "small judge": small_judge_table,
    "quantized": quantized_table}

def filled(text):
    """A document's text with every table between markers made again. Raises KeyError for an unknown table."""
    marked = re.compile(r"<!-- ([\w ]+): made by study/table\.py -->\n.*?<!-- end of \1 -->", re.S)
    def table(found):
        name = found[1]
        return f"<!-- {name}: made by study/table.py -->\n{TABLES[name]()}\n<!-- end of {name} -->"
    return marked.sub(table, text)

def fill_documents():
    """Fills the tables of all documents from LOSSES and study/results."""
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text()))
    print(f"tables written into {', '.join(path.name for path in DOCUMENTS)}")

def main(argv=None):
    args = get_args(argv)
    if args.example:
        keep_example(args.example)
    if args.update:
        draw_growth(FIGURES / "growth.png")
    fill_documents()

if __name__ == "__main__":
    main()
