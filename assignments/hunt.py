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
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from assignments import graft
from assignments.exercise import HOMEWORKS, exercises
from assignments.grade import clean_copy

SECONDS, BYTES = 60, 6 << 30    # of one run of the student's tests
OTHERS = 4                      # mistakes of each function, besides the planted one, that count for the bonus

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

def limits():
    """Set in the process that runs the student's tests."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

def passes(tests, folder):
    """Whether the tests pass in a copy. They run in a process of their own, with limits and an empty environment."""
    shutil.copy(tests, folder / "test_hunt.py")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "test_hunt.py"]
    env = {"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    process = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, preexec_fn=limits)
    try:
        return process.wait(timeout=SECONDS) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()

def read_found(folder):
    """number -> place, from found.json; {} if it cannot be read."""
    try:
        found = json.loads((folder / "found.json").read_text())
        return {str(number): str(entry.get("place", "")) for number, entry in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}

class Copies:
    """Clean copies for the tests of a submission. on(exercise, text): whether they pass with that text of its file."""
    def __init__(self, tests, work):
        self.tests, self.work = tests, Path(work)
        self.base = clean_copy(self.work / "clean")

    def on(self, exercise=None, text=""):
        folder = Path(tempfile.mkdtemp(dir=self.work)) / "copy"
        shutil.copytree(self.base, folder)
        if exercise is not None:
            (folder / exercise.file).write_text(text)
        return passes(self.tests, folder)

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
    with tempfile.TemporaryDirectory() as work:
        copies = Copies(tests, work)
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
