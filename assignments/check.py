"""
Check the homeworks themselves: every mistake is caught and recognized, every right solution passes.

    python -m assignments.check           # all of them
    python -m assignments.check hw2 --matrix

For each exercise: the blank copy fails, the original passes, each alternative passes, each mistake fails and is
recognized as itself, results with different hints lie far apart, and grading takes under 5 s. Exit status 1 otherwise.
"""
import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from assignments import graft, recognize
from assignments.exercise import HOMEWORKS
from assignments.grade import Grader, grade_exercise

def check_exercise(grader, exercise):
    """(problems, Separation, seconds, name of a mistake -> what was seen) of one exercise."""
    begin = time.perf_counter()
    key = grader.key(exercise)
    apart = key.apart
    problems = []
    if not apart.holds:
        problems.append(f"{apart.closest[0]!r} and {apart.closest[1]!r} are only {apart.apart:.1e} apart")
    for name, result in key.alternatives.items():
        if not (found := key.judge(result)).right:
            problems.append(f"the alternative {name!r} does not pass: {found.facts or found.mistake}")
    seen = {name: key.judge(result) for name, result in key.wrong.items()}
    says = {}
    for name, found in seen.items():
        same = found.mistake and exercise.mistakes[found.mistake].hint == exercise.mistakes[name].hint
        says[name] = "recognized" if same else "NOT CAUGHT" if found.right else "caught"
        if not same:
            problems.append(f"the mistake {name!r} is {says[name]}: {found.mistake or found.facts}")
    return problems, apart, time.perf_counter() - begin, says

def cpu_seconds(worker):
    """CPU time of all the worker's jobs so far. Wall time would depend on other programs."""
    if worker.process is None:
        worker.start()
    fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")

def check_submissions(grader, exercise, folder):
    """Problems of the way through files and worker: the original gets full points, the blank copy none."""
    problems = []
    (folder / exercise.file).parent.mkdir(parents=True, exist_ok=True)
    for name, text, points in (("original", exercise.source(), exercise.points),
                               ("blank", blank_of(exercise), 0)):
        (folder / exercise.file).write_text(text)
        key, begin = grader.key(exercise), cpu_seconds(grader.worker)
        graded = grade_exercise(exercise, key, folder, grader.worker, grader.base, grader.folder)
        if graded.points != points:
            problems.append(f"the {name} file gets {graded.points} points: {graded.says}")
        if (seconds := cpu_seconds(grader.worker) - begin) > 5:
            problems.append(f"grading the {name} file took {seconds:.0f} s")
    return problems

def blank_of(exercise):
    """The exercise's file as the student gets it."""
    text = exercise.source()
    for name in exercise.names:
        text = graft.blank(text, name, exercise.number, exercise.hidden)
    return text

def print_matrix(exercise, key):
    """The distances of all results, logarithms to base 10."""
    import math
    results = {"the reference": key.reference, **key.wrong}
    for i, (name, result) in enumerate(results.items()):
        gaps = [recognize.distance(result, other) for other in list(results.values())[:i]]
        cells = [" inf" if math.isinf(d) else f"{math.log10(d):4.0f}" if d else "   =" for d in gaps]
        print(f"    {i:2d} {name[:38]:38} {' '.join(cells)}")

HEAD = """# Mistakes that the grader knows

Each line is a usual mistake, which the grader was given as if a student had handed it in. It must get no points and be
recognized by what it computes. `python -m assignments.check --table docs/mistakes.md` makes this page: it shows what
was seen when that ran.
"""

def table_of(rows):
    """The page of docs/ from (exercise, name of a mistake, what was seen)."""
    lines, number = [HEAD], None
    for exercise, name, seen in rows:
        if exercise.number != number:
            number = exercise.number
            lines += ["", f"## {number} {exercise.title}", "", f"`{', '.join(exercise.targets)}`", "",
                      "| mistake | seen | section of the handout |", "|---|---|---|"]
        bar = "\\|"    # a bar would end the cell
        lines.append(f"| {name.replace('|', bar)} | {seen} | {exercise.mistakes[name].section} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("homework", nargs="*", help="which homeworks; all of them if none is given")
    p.add_argument("--matrix", action="store_true", help="print the distances of all mistakes")
    p.add_argument("--seed", type=int, default=0, help="of the inputs")
    p.add_argument("--table", help="write what was seen for each mistake to this file")
    return p.parse_args(argv)

def check_homework(grader, matrix):
    """Prints a line for each exercise. Returns (how many fail, rows of the table)."""
    failed, rows = 0, []
    for exercise in grader.exercises:
        problems, apart, seconds, seen = check_exercise(grader, exercise)
        work = Path(grader.folder) / "check"
        problems += check_submissions(grader, exercise, work)
        shutil.rmtree(work, ignore_errors=True)
        print(f"{exercise.number:6} {exercise.title[:40]:40} {len(exercise.mistakes):2d} mistakes "
              f"{len(exercise.alternatives)} alternatives  apart {apart.apart:.0e}  noise {apart.noise:.0e}  "
              f"{seconds:4.1f} s  {'FAILS' if problems else 'holds'}", flush=True)
        print("".join(f"       {problem}\n" for problem in problems), end="")
        if matrix:
            print_matrix(exercise, grader.key(exercise))
        failed += bool(problems)
        rows += [(exercise, name, seen[name]) for name in exercise.mistakes]
    return failed, rows

def main(argv=None):
    args = get_args(argv)
    failed, rows = 0, []
    for homework in args.homework or HOMEWORKS:
        with Grader(homework, args.seed) as grader:
            more, found = check_homework(grader, args.matrix)
        failed, rows = failed + more, rows + found
    known = sum(seen.startswith("recognized") for _, _, seen in rows)
    alternatives = sum(len(e.alternatives) for e in {e.number: e for e, _, _ in rows}.values())
    print(f"{len(rows)} mistakes, {known} of them recognized; {alternatives} alternatives; {failed} exercises fail")
    if args.table:
        Path(args.table).write_text(table_of(rows))
    sys.exit(bool(failed))

if __name__ == "__main__":
    main()
