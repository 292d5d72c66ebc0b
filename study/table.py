"""
The README's tables, made from the code and from runs.

    python -m study.table --run --losses dpo cdpo hinge ipo     # trains what is not there yet, three seeds each, then as below
    python -m study.table                                       # writes the tables into README.md from LOSSES and study/results

Runs go to out/study/<loss>-<seed>, all from the one SFT policy in out/toy/sft; a seed is that of the sampled pairs and of their order.
What was measured, on the same prompts for all, goes to study/results/losses.csv, the picture of the first to study/figures.
"""
import argparse
import csv
import inspect
import json
import re
import shutil
from pathlib import Path

import eval
import toy
from losses import LOSSES

ROOT = Path(__file__).resolve().parent.parent
RESULTS, FIGURES = ROOT / "study" / "results", ROOT / "study" / "figures"
MEASURES = {"reward": ("reward", ".3f"), "kl": ("KL, nats", ".2f"), "entropy": ("entropy, nats a token", ".3f"),
            "length": ("length, tokens", ".1f"), "accuracy": ("accuracy", ".3f")}

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0], allow_abbrev=False)
    p.add_argument("--run", action="store_true", help="train what is not there yet")
    p.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES), help="which (default: all)")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(default: %(default)s)")
    return p.parse_args(argv)

def run(names, seeds):
    """Trains and measures on the toy world with the defaults; writes study/results/losses.csv from all that is under out/study."""
    import train_pref
    for name in names:
        for seed in seeds:
            folder = Path("out/study") / f"{name}-{seed}"
            if not (folder / "eval.json").exists():
                shutil.rmtree(folder, ignore_errors=True)    # begun and not finished
                train_pref.main(["--loss", name, "--seed", str(seed), "--out_dir", str(folder), "--n_show", "1"])
    rows = []
    for path in sorted(Path("out/study").glob("*/eval.json")):
        name, seed = path.parent.name.rsplit("-", 1)
        measures = json.loads(path.read_text())["measures"]
        rows += [("sft", seed, k, *measures["before"][k]) for k in MEASURES] if name == names[0] else []
        rows += [(f"--loss {name}", seed, k, *measures["after"][k]) for k in MEASURES]
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / "losses.csv", "w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(("policy", "seed", "measure", "mean", "low", "high"))
        out.writerows((*row[:3], *(f"{x:.5g}" for x in row[3:])) for row in rows)
    FIGURES.mkdir(exist_ok=True)
    first = Path(f"out/study/{names[0]}-{seeds[0]}")
    shutil.copy(first / "eval.png", FIGURES / "main_job.png")
    stored = json.loads((first / "eval.json").read_text())
    (RESULTS / "main_job.json").write_text(json.dumps(stored | {"samples": stored["samples"][:3]}, indent=1) + "\n")

def example():
    """What the main job prints at its end."""
    stored = json.loads((RESULTS / "main_job.json").read_text())
    lines = eval.table(stored["measures"]).split("\n")
    for sample in stored["samples"]:
        lines += ["", *eval.sample_lines(sample, toy.reward)]
    return "\n".join(["```", *lines, "```"])

def results_table():
    """Markdown: a row a policy, mean and range over seeds."""
    cells = {}
    with open(RESULTS / "losses.csv", newline="") as f:
        for row in csv.DictReader(f):
            cells.setdefault(row["policy"], {}).setdefault(row["measure"], []).append(float(row["mean"]))
    lines = ["| policy | " + " | ".join(label for label, _ in MEASURES.values()) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for policy in sorted(cells, key=lambda p: (p != "sft", list(LOSSES).index(p.split()[-1]))):
        shown = []
        for key, (_, form) in MEASURES.items():
            values = cells[policy][key]
            shown.append(f"{sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}})")
        lines.append(f"| `{policy}` | " + " | ".join(shown) + " |")
    return "\n".join(lines)

def bandit_table():
    """Markdown of study/results/bandit.csv."""
    lines = ["| loss | settings | reward | KL, nats | below the frontier | mass on answers never seen |", "|---" * 6 + "|"]
    with open(RESULTS / "bandit.csv", newline="") as f:
        for r in csv.DictReader(f):
            shown = (f"{float(r[k]):{form}}" for k, form in (("reward", ".3f"), ("kl", ".3f"), ("below the frontier", ".4f")))
            unseen = f"{float(r['unseen before']):.2f} to {float(r['unseen after']):.2f}"
            lines.append(f"| `{r['loss']}` | {r['settings'] or 'defaults'} | " + " | ".join(shown) + f" | {unseen} |")
    return "\n".join(lines)

def losses_table():
    """Markdown: a row a loss, read off LOSSES and the docstrings."""
    heads = ("loss", "per pair", "source", "reference", "hyperparameters", "at the start", "stops at a gap of", "in TRL 1.16")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, loss in LOSSES.items():
        doc = inspect.getdoc(loss.fn)
        formula = re.search(r"L = (.*?)(?:,   |\n)", doc + "\n")[1].replace("|", "\\|")    # a bare one ends the cell
        source = re.search(r"arXiv:\d{4}\.\d{5}|ericmitchell\.ai/\S+?\.pdf", doc)[0]
        hparams = ", ".join(f"`{k}` {v}" for k, v in loss.hparams.items()) or "none"
        start, limit = (f"`{x}`" if x and x != "inf" else {"inf": "never", "": ""}[x] for x in (loss.start, loss.limit))
        cells = (f"`{name}`", f"`{formula}`", source, "yes" if loss.needs_ref else "no", hparams, start, limit, loss.trl)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

def filled(text):
    """README text with what stands between its markers made anew."""
    for name, table in (("example", example), ("results", results_table), ("bandit", bandit_table), ("losses", losses_table)):
        begin, end = f"<!-- {name}: made by study/table.py -->\n", f"\n<!-- end of {name} -->"
        assert begin in text and end in text, f"README.md has no markers for {name}"
        text = text[:text.index(begin) + len(begin)] + table() + text[text.index(end):]
    return text

def main(argv=None):
    args = get_args(argv)
    if args.run:
        run(args.losses, args.seeds)
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
    print(f"tables written into {readme.name}")

if __name__ == "__main__":
    main()
