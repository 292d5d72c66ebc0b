"""
Where a study writes: a folder of the user's own, or, with --update, the results and figures that the documents show.

Read next: bandit.py
"""
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS, FIGURES = ROOT / "study" / "results", ROOT / "study" / "figures"

def add_flags(p, out="out/study"):
    """Adds --out and --update to a parser."""
    p.add_argument("--out", help=f"folder for the results and figures (default: {out})")
    p.add_argument("--update", action="store_true",
                   help="overwrite the project's own study/results and study/figures, which the documents show")

def check_flags(p, args):
    """Refuses --out together with --update: each names the folder to write into."""
    if args.out and args.update:
        p.error("--update writes into study/results and study/figures: leave out --out")

def folders(out, update, default="out/study"):
    """(folder of the results, folder of the figures). Creates them."""
    results, figures = (RESULTS, FIGURES) if update else (Path(out or default),) * 2
    for folder in (results, figures):
        folder.mkdir(parents=True, exist_ok=True)
    return results, figures
