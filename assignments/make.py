"""
Make a student's copy of the project: the functions of a homework are taken out.

    python -m assignments.make hw2 --out ../hw2
    python -m assignments.make hw2 --out ../hw2-2027 --variant 7

The copy is the project's own code, without the bodies of the exercises' functions. Signature, docstring and shapes
stay; the body raises NotImplementedError with the exercise's number. Tests, documents and other functions that hold
an answer are left out. `--variant` changes what some functions are to do, so that the public bodies are wrong.
"""
import argparse
import io
import shutil
import tokenize
from pathlib import Path

from assignments import graft
from assignments.exercise import HOMEWORKS, ROOT, exercises

FILES = ("requirements.txt", "pyproject.toml", "LICENSE")
# hw3 works on the exact world of study/bandit.py, hw4 and hw5 also on that of study/online.py
ROOMS = {"hw3": ("support", "study"), "hw4": ("support", "study", "rlhf"), "hw5": ("support", "study", "rlhf")}
LEFT_OUT = ("__pycache__", "results", "figures")

def without(text, hidden):
    """
    The text without the comment and docstring lines that contain one of the hidden texts.

    A blank line above them goes too if a blank line or the end of the docstring follows.
    """
    prose = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            alone = token.line.strip().startswith(("#", '"', "'"))
            prose |= set(range(token.start[0], token.end[0] + 1)) if alone else set()
    keep, cut = [], False    # cut: the line above was left out
    for number, line in enumerate(text.splitlines(), 1):
        if number in prose and any(h in line for h in hidden):
            cut = True
            continue
        if cut and number in prose and line.strip() in ("", '"""') and keep and not keep[-1].strip():
            keep.pop()
        cut = cut and number in prose and not line.strip()
        keep.append(line)
    return "\n".join(keep) + "\n"

def taken_out(homework):
    """file -> its text in the student's copy, for all files with an exercise or a function that gives one away."""
    texts = {}
    for exercise in homework:
        text = texts.setdefault(exercise.file, (ROOT / exercise.file).read_text())
        if exercise.variant:
            texts[exercise.file] = graft.edited(text, exercise.names, exercise.variants[exercise.variant])
    targets = {target: exercise.number for exercise in homework for target in exercise.targets}
    for exercise in homework:
        for target in exercise.removed:
            file = target.split(":")[0]
            texts.setdefault(file, (ROOT / file).read_text())
            for name in graft.all_functions(texts[file], target):
                targets.setdefault(f"{file}:{name}", "not part of this homework")
    hidden = tuple(text for exercise in homework for text in exercise.hidden)
    for target, number in targets.items():
        file, name = target.split(":")
        texts[file] = graft.blank(texts[file], name, number)
    return {file: without(text, hidden) for file, text in texts.items()}

def make(homework, out, variant=None):
    """Writes the student's copy of a homework into the folder `out`, which must not exist. Returns the exercises."""
    out = Path(out)
    if out.exists():
        raise SystemExit(f"--out {out} exists already; give another folder")
    found = exercises(homework, variant)
    out.mkdir(parents=True)
    for path in sorted(ROOT.glob("*.py")):
        shutil.copy(path, out)
    for name in FILES:
        shutil.copy(ROOT / name, out)
    for room in ROOMS.get(homework, ("support",)):
        shutil.copytree(ROOT / room, out / room, ignore=shutil.ignore_patterns(*LEFT_OUT))
    hidden = tuple(text for exercise in found for text in exercise.hidden)
    for path in sorted(out.rglob("*.py")):
        path.write_text(without(path.read_text(), hidden))
    for file, text in taken_out(found).items():
        (out / file).write_text(text)
    handout = ROOT / "assignments" / homework / "README.md"
    if handout.exists():
        shutil.copy(handout, out / "README.md")
    return found

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("homework", choices=HOMEWORKS, help="the homework")
    p.add_argument("--out", required=True, help="the folder to make")
    p.add_argument("--variant", type=int, help="a seed: specify some functions otherwise than the public code")
    return p.parse_args(argv)

def main(argv=None):
    args = get_args(argv)
    found = make(args.homework, args.out, args.variant)
    for exercise in found:
        targets = ", ".join(exercise.targets)
        print(f"{exercise.number:6} {exercise.points:3d} points {exercise.minutes:4d} minutes  {targets}")
    points, hours = sum(e.points for e in found), sum(e.minutes for e in found) / 60
    print(f"{args.out}: {points} points, {hours:.1f} hours. Students begin with its README.md.")

if __name__ == "__main__":
    main()
