"""
Numbers that each student computes for a seed of their own, and their grading.

    python -m assignments.hw3.numbers --seed 17 --grade ../hw3-anna/numbers.json

It prints right or not right for each number and never its value. hwN/numbers.py has the numbers of a homework: a
function numbers(seed) -> {name: value}. The handout says what each name means. The tolerance is 0.1 percent.
"""
import argparse
import json
import math
from pathlib import Path

TOLERANCE, BYTES = 1e-3, 1 << 16    # relative; of the file

def read(path):
    """The dict of a submitted file. Raises SystemExit with one line if it is none."""
    path = Path(path)
    if not path.is_file() or path.is_symlink() or path.stat().st_size > BYTES:
        raise SystemExit(f"--grade {path}: no such file, a link, or more than {BYTES >> 10} KB")
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise SystemExit(f"--grade {path}: not a JSON file") from None
    if not isinstance(found, dict):
        raise SystemExit(f'--grade {path}: it must hold {{"name": number, ...}}')
    return found

def is_right(found, want):
    """Whether a submitted value is a number within the tolerance."""
    return type(found) in (int, float) and abs(found) < 1e9 and math.isclose(found, want, rel_tol=TOLERANCE)

def get_args(doc, argv=None):
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, required=True, help="the student's seed")
    p.add_argument("--grade", required=True, help="the student's numbers.json")
    return p.parse_args(argv)

def main(numbers, doc, argv=None):
    """Prints the report of a homework: numbers, its function; doc, the docstring of its file."""
    args = get_args(doc, argv)
    found = read(args.grade)
    graded = {name: is_right(found.get(name), want) for name, want in numbers(args.seed).items()}
    for name, right in graded.items():
        print(f"{name:20} {'right' if right else 'not right'}")
    print(f"{sum(graded.values())} of {len(graded)} are right")
