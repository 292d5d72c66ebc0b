"""
A bug hunt: a copy of the project with planted faults, a symptom in words for each, and the grading of what is found.

    python -m assignments.hunt hw2 --seed 3 --out ../hunt-anna              # the student's copy, with HUNT.md
    python -m assignments.hunt hw2 --seed 3 --grade ../hunt-anna

The student writes found.json, {"1": {"place": "losses.py:dpo", "cause": "..."}}, and test_hunt.py, tests that pytest
runs in the folder. Machine-graded for each fault: 1 point for the place, and 2 for tests that pass on the right code
and on its alternatives and fail on the fault. The teacher reads the cause. Catching mistakes that were not planted
gives a bonus of a tenth of a point each.
"""
import argparse
import json
import random
import shutil
from pathlib import Path

from assignments import graft
from assignments.exercise import HOMEWORKS, exercises
from assignments.grade import Grader, clean_copy, submitted_text

SECONDS = 60    # for one run of the student's tests
OTHERS = 4      # mistakes of each function, besides the planted one, that count for the bonus

def chosen(homework, seed, n):
    """n (exercise, name of a mistake) with a symptom, each in another function, drawn by the seed."""
    found = [(e, name) for e in exercises(homework) for name, mistake in e.mistakes.items() if mistake.symptom]
    random.Random(seed).shuffle(found)
    one_each = {exercise.number: (exercise, name) for exercise, name in reversed(found)}
    drawn = [pair for pair in found if pair in one_each.values()][:n]
    if len(drawn) < n:
        raise SystemExit(f"{homework} has symptoms for {len(drawn)} functions; ask for fewer than {n} faults")
    return drawn

def plant(folder, exercise, name):
    """Plants one fault in a copy."""
    path = folder / exercise.file
    path.write_text(graft.edited(path.read_text(), exercise.names, exercise.mistakes[name].edits))

def write_copy(homework, seed, n, out):
    """The student's copy with n faults and HUNT.md."""
    if Path(out).exists():
        raise SystemExit(f"--out {out} exists already; give another folder")
    folder, drawn = clean_copy(Path(out)), chosen(homework, seed, n)
    lines = [f"# Bug hunt\n\n{n} functions of this copy are wrong. What somebody saw:\n"]
    for number, (exercise, name) in enumerate(drawn, 1):
        plant(folder, exercise, name)
        lines.append(f"{number}. {exercise.mistakes[name].symptom}")
    (folder / "HUNT.md").write_text("\n".join(lines) + TASK)
    print(f"{out}: {n} faults planted; students begin with HUNT.md")

TASK = """

Hand in `found.json` and `test_hunt.py`, in this folder. found.json has an entry for each number:

    {"1": {"place": "file.py:function", "cause": "one sentence: what the code does, and what it should do"}}

test_hunt.py holds pytest tests with fixed seeds. They must pass on the right code, however it is written, and fail on
each fault. `python -m pytest test_hunt.py` runs them here, where some of them should fail.
"""

def read_found(folder):
    """number -> place, from found.json; {} if it cannot be read."""
    try:
        found = json.loads((folder / "found.json").read_text())
        return {str(number): str(entry.get("place", "")) for number, entry in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}

DRIVER = """
def run(module, probe):
    import os
    import pytest
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return {"status": int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "test_hunt.py"]))}
"""

def passes(grader, tests, exercise=None, text=""):
    """Whether tests, given as text, pass in a clean copy with this text of the exercise's file. A worker runs them."""
    tree = grader.folder / "hunt"
    shutil.copytree(grader.base, tree)
    (tree / "test_hunt.py").write_text(tests)
    (tree / "test_hunt.py").chmod(0o644)
    if exercise is not None:
        (tree / exercise.file).write_text(text)
    job = dict(tree=str(tree), file="test_hunt.py", driver=DRIVER, probes=[{}], seconds=SECONDS, source=None)
    [entry] = grader.worker.run(job)
    shutil.rmtree(tree)
    status = entry.get("arrays", {}).get("status")
    return status is not None and not status.any()

def fair(grader, tests, drawn):
    """Whether the tests pass on the right code, and on everything that is right and written otherwise."""
    right = [(e, e.with_alternative(name)) for e, _ in drawn for name in e.alternatives]
    return all(passes(grader, tests, *one) for one in [(), *right])

def catches(grader, tests, drawn):
    """(planted faults, other mistakes) on which the tests fail."""
    caught = others = 0
    for exercise, fault in drawn:
        more = [name for name in exercise.mistakes if name != fault]
        for name in [fault, *more[::max(1, len(more) // OTHERS)][:OTHERS]]:
            seen = not passes(grader, tests, exercise, exercise.with_mistake(name))
            caught += seen and name == fault
            others += seen and name != fault
    return caught, others

def grade(homework, seed, n, submission):
    """The report of a submission, line by line."""
    submission, drawn, points, lines = Path(submission), chosen(homework, seed, n), 0, []
    places = read_found(submission)
    for number, (exercise, _) in enumerate(drawn, 1):
        right = places.get(str(number)) in exercise.targets
        points += right
        lines.append(f"fault {number}: the place is {'right' if right else 'not right'}")
    try:
        tests = submitted_text(submission, "test_hunt.py")
    except graft.Unreadable as e:
        return [*lines, str(e), f"total  {points} of {3 * n} points"]
    with Grader(homework, seed) as grader:
        if not passes(grader, "def test_nothing(): pass"):
            raise SystemExit("pytest does not run in the grader's worker: can any user read this Python environment?")
        if not fair(grader, tests, drawn):
            return [*lines, "the tests fail on right code", f"total  {points} of {3 * n} points"]
        caught, others = catches(grader, tests, drawn)
    lines.append(f"the tests catch {caught} of {n} planted faults, and {others} other mistakes")
    return [*lines, f"total  {points + 2 * caught} of {3 * n} points, bonus {others / 10:.1f}"]

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("homework", choices=HOMEWORKS, help="the homework whose mistakes are planted")
    p.add_argument("--seed", type=int, required=True, help="which faults: another seed for each student")
    p.add_argument("--n", type=int, default=3, help="how many faults")
    p.add_argument("--out", help="the folder to make")
    p.add_argument("--grade", help="the folder that was handed in")
    args = p.parse_args(argv)
    if (args.out is None) == (args.grade is None):
        p.error("give --out or --grade")
    return args

def main(argv=None):
    args = get_args(argv)
    if args.out:
        return write_copy(args.homework, args.seed, args.n, args.out)
    print("\n".join(grade(args.homework, args.seed, args.n, args.grade)))

if __name__ == "__main__":
    main()
