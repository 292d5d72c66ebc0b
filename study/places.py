"""
Where a study writes, and its CSV files. Docs: docs/study.md.

A script writes into a folder of the user's own. With --update, it overwrites the results and figures of the project,
which the documents show. Read next: bandit.py
"""
import csv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS, FIGURES = ROOT / "study" / "results", ROOT / "study" / "figures"

def parse(p, argv):
    """Adds --out and --update to a parser, and parses. Each of the two names the folder to write into: not both."""
    p.add_argument("--out", help="folder for the results and figures (default: out/study)")
    p.add_argument("--update", action="store_true",
                   help="overwrite the project's own study/results and study/figures, which the documents show")
    args = p.parse_args(argv)
    if args.out and args.update:
        p.error("--update writes into study/results and study/figures: leave out --out")
    return args

def folders(out, update):
    """(folder of the results, folder of the figures). Creates them. out: both folders (default: out/study)."""
    results, figures = (RESULTS, FIGURES) if update else (Path(out or "out/study"),) * 2
    for folder in (results, figures):
        folder.mkdir(parents=True, exist_ok=True)
    return results, figures

def read_csv(path):
    """The rows of a CSV file with a head, as dicts of texts."""
    with open(path, newline="") as f:
        return list(csv.DictReader(f))

def write_csv(path, head, rows):
    """Writes a CSV file: floats with five significant digits, all other values as they are."""
    with open(path, "w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(head)
        out.writerows([f"{x:.5g}" if isinstance(x, float) else x for x in row] for row in rows)

def second(results):
    """The folder of the second sweep's numbers within a folder of results."""
    return results / "second"
