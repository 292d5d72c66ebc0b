"""
Check the homeworks themselves: every mistake is caught and recognized, every right solution passes.

    python -m assignments.check           # all of them
    python -m assignments.check hw2 --matrix

For each exercise: the blank copy fails, the original passes, each alternative passes, each mistake fails and is
recognized as itself, results with different hints lie far apart, and grading takes under 5 s. Exit status 1 otherwise.
"""
import argparse
import shutil
import sys
import time
from pathlib import Path

from assignments import graft, recognize
from assignments.exercise import HOMEWORKS
from assignments.grade import Grader, grade_exercise

def check_exercise(grader, exercise):
    """(problems, Separation, seconds) of one exercise."""
    begin = time.perf_counter()
    key = grader.key(exercise)
    apart = recognize.separation(exercise.mistakes, key.reference, key.wrong, key.alternatives)
    problems = []
    if not apart.holds:
        problems.append(f"{apart.closest[0]!r} and {apart.closest[1]!r} are only {apart.apart:.1e} apart")
    def judged(result):
        return recognize.judge(exercise.mistakes, result, key.reference, key.wrong, key.alternatives, key.probes)
    for name, result in key.alternatives.items():
        if not judged(result).right:
            problems.append(f"the alternative {name!r} does not pass: {judged(result).facts or result[0].get('error')}")
    for name, result in key.wrong.items():
        found = judged(result)
        if found.right:
            problems.append(f"the mistake {name!r} is not caught")
        elif not found.mistake:
            problems.append(f"the mistake {name!r} is not recognized: {found.facts[0]}")
        elif exercise.mistakes[found.mistake].hint != exercise.mistakes[name].hint:
            problems.append(f"the mistake {name!r} is taken for {found.mistake!r}")
    return problems, apart, time.perf_counter() - begin

def check_submissions(grader, exercise, folder):
    """Problems of the way through files and worker: the original gets full points, the blank copy none."""
    problems = []
    (folder / exercise.file).parent.mkdir(parents=True, exist_ok=True)
    for name, text, points in (("original", exercise.source(), exercise.points),
                               ("blank", blank_of(exercise), 0)):
        (folder / exercise.file).write_text(text)
        begin = time.perf_counter()
        graded = grade_exercise(exercise, grader.key(exercise), folder, grader.worker, grader.base, grader.folder)
        if graded.points != points:
            problems.append(f"the {name} file gets {graded.points} points: {graded.says}")
        if (seconds := time.perf_counter() - begin) > 5:
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

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("homework", nargs="*", help="which homeworks; all of them if none is given")
    p.add_argument("--matrix", action="store_true", help="print the distances of all mistakes")
    p.add_argument("--seed", type=int, default=0, help="of the probes")
    return p.parse_args(argv)

def main(argv=None):
    args = get_args(argv)
    failed, mistakes, alternatives = 0, 0, 0
    for homework in args.homework or HOMEWORKS:
        with Grader(homework, args.seed) as grader:
            for exercise in grader.exercises:
                problems, apart, seconds = check_exercise(grader, exercise)
                work = Path(grader.folder) / "check"
                problems += check_submissions(grader, exercise, work)
                shutil.rmtree(work, ignore_errors=True)
                print(f"{exercise.number:6} {exercise.title[:40]:40} {len(exercise.mistakes):2d} mistakes "
                      f"{len(exercise.alternatives)} alternatives  apart {apart.apart:.0e}  noise {apart.noise:.0e}  "
                      f"{seconds:4.1f} s  {'FAILS' if problems else 'holds'}")
                print("".join(f"       {problem}\n" for problem in problems), end="")
                if args.matrix:
                    print_matrix(exercise, grader.key(exercise))
                failed += bool(problems)
                mistakes, alternatives = mistakes + len(exercise.mistakes), alternatives + len(exercise.alternatives)
    print(f"{mistakes} mistakes and {alternatives} alternatives; {failed} exercises fail")
    sys.exit(bool(failed))

if __name__ == "__main__":
    main()
