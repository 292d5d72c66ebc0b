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
import contextlib
import json
import random
import shutil
import tempfile
from pathlib import Path

from assignments import graft
from assignments.exercise import HOMEWORKS, exercises
from assignments.grade import Worker, clean_copy

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

class Copies:
    """Clean copies with the tests of a submission, which run in a worker, as the code of a homework does."""
    def __init__(self, work):
        self.work = Path(work)
        self.work.chmod(0o755)    # the worker may run them as nobody
        self.base = clean_copy(self.work / "clean")
        self.worker = Worker(self.base)
        self.use("def test_nothing(): pass")
        if not self.on():
            raise SystemExit("pytest does not run in the grader's worker: can any user read this Python environment?")

    def use(self, tests):
        """Takes the text of a file of tests."""
        path = self.base / "test_hunt.py"
        path.write_text(tests)
        path.chmod(0o644)

    def on(self, exercise=None, text=""):
        """Whether the tests pass with this text of the exercise's file."""
        tree = self.work / "copy"
        shutil.copytree(self.base, tree)
        if exercise is not None:
            (tree / exercise.file).write_text(text)
        job = dict(tree=str(tree), file="test_hunt.py", driver=DRIVER, probes=[{}], seconds=SECONDS, source=None)
        [entry] = self.worker.run(job)
        shutil.rmtree(tree)
        status = entry.get("arrays", {}).get("status")
        return status is not None and not status.any()

    def close(self):
        self.worker.close()

def fair(copies, drawn):
    """Whether the tests pass on the right code, and on everything that is right and written otherwise."""
    if not copies.on():
        return False
    for exercise, _ in drawn:
        for name in exercise.alternatives:
            if not copies.on(exercise, exercise.with_alternative(name)):
                return False
    return True

def catches(copies, drawn):
    """(planted faults, other mistakes) on which the tests fail."""
    caught = others = 0
    for exercise, fault in drawn:
        more = [name for name in exercise.mistakes if name != fault]
        for name in [fault, *more[::max(1, len(more) // OTHERS)][:OTHERS]]:
            seen = not copies.on(exercise, exercise.with_mistake(name))
            caught += seen and name == fault
            others += seen and name != fault
    return caught, others

def grade(homework, seed, n, submission):
    """The report of a submission, line by line."""
    submission, drawn, points, lines = Path(submission), chosen(homework, seed, n), 0, []
    places, tests = read_found(submission), submission / "test_hunt.py"
    for number, (exercise, _) in enumerate(drawn, 1):
        right = places.get(str(number)) in exercise.targets
        points += right
        lines.append(f"fault {number}: the place is {'right' if right else 'not right'}")
    if not tests.is_file() or tests.is_symlink():
        return [*lines, "test_hunt.py is missing", f"total  {points} of {3 * n} points"]
    with tempfile.TemporaryDirectory() as work, contextlib.closing(Copies(work)) as copies:
        copies.use(tests.read_text(errors="replace"))
        if not fair(copies, drawn):
            return [*lines, "the tests fail on right code", f"total  {points} of {3 * n} points"]
        caught, others = catches(copies, drawn)
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
