"""
Grade a whole class, or hand the grader to a platform. One result model, four writers.

    python -m assignments.platforms csv hw2 --submissions ../handed-in --out grades.csv
    python -m assignments.platforms gradescope hw2 --out autograder.zip
    python -m assignments.platforms classroom hw2 --out classroom.yml --repository OWNER/REPOSITORY --commit SHA
    python -m assignments.platforms nbgrader hw2 --out hw2.ipynb

`csv` grades each folder and each .zip of --submissions. The other three write what the platform needs. On all of them
the student sees every line of the report: no test is hidden, but each grading draws its own inputs.
"""
import argparse
import csv
import json
import secrets
import stat
import tempfile
import zipfile
from pathlib import Path

from assignments.exercise import HOMEWORKS, ROOT, exercises
from assignments.grade import Grader, ignored, report

ZIP_BYTES, ZIP_FILES = 20 << 20, 2000    # of an unpacked submission
SHIPPED = ("*.py", "support/*.py", "rlhf/*.py", "study/*.py", "assignments/*.py", "requirements.txt")

# ---------------------------------------------------------------------------------------------------------------------
# a class

def unpack(path, folder):
    """
    Extracts a submitted zip. Raises SystemExit, with one line, for a zip bomb, a link or a path outside of the folder.

    The sizes that a zip file declares may be wrong, so bytes are counted while they are read.
    """
    left = ZIP_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            if len(members) > ZIP_FILES:
                raise SystemExit(f"{path.name}: more than {ZIP_FILES} files")
            for member in members:
                target = (folder / member.filename).resolve()
                if not target.is_relative_to(folder.resolve()) or stat.S_ISLNK(member.external_attr >> 16):
                    raise SystemExit(f"{path.name}: {member.filename} is a link or lies outside of the folder")
                with archive.open(member) as stream:
                    data = stream.read(left + 1)
                left -= len(data)
                if left < 0:
                    raise SystemExit(f"{path.name}: more than {ZIP_BYTES >> 20} MB when unpacked")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError) as e:
        raise SystemExit(f"{path.name}: not a zip file that can be read: {' '.join(str(e).split())[:100]}") from None

def root_of(folder):
    """The folder itself, or the only folder in it: many zips hold one folder."""
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and not inside[0].is_symlink() else folder

def grade_one(grader, path):
    """(list of Graded, lines) of a folder or zip. A submission that cannot be read has no points and one line."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if path.is_file():
            try:
                unpack(path, folder)
            except SystemExit as e:
                return [], [str(e)]
            path = root_of(folder)
        graded = grader.grade(root_of(path))
        return graded, ignored(grader.exercises, root_of(path))

def write_csv(grader, submissions, out):
    """One row for each submission: name, points of each exercise, total, what was said."""
    paths = sorted(p for p in Path(submissions).iterdir() if (p.is_dir() and not p.is_symlink()) or p.suffix == ".zip")
    numbers = [exercise.number for exercise in grader.exercises]
    with open(out, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["submission", *numbers, "total", "remarks"])
        for path in paths:
            graded, lines = grade_one(grader, path)
            points = {one.number: one.points for one in graded}
            remarks = [f"{one.number}: {line}" for one in graded for line in one.says] + lines
            each = [points.get(number, 0) for number in numbers]
            writer.writerow([path.stem, *each, sum(each), " | ".join(remarks)])
            f.flush()
            print(f"{path.name}: {sum(points.values())} points")
    print(f"{out}: {len(paths)} submissions")

# ---------------------------------------------------------------------------------------------------------------------
# Gradescope

def gradescope_results(graded, lines):
    """The results.json of Gradescope: one visible test for each exercise."""
    tests = [dict(name=f"{one.number} {one.title}", score=one.points, max_score=one.max_points,
                  output="\n".join(one.says) or "right", visibility="visible") for one in graded]
    return dict(score=sum(one.points for one in graded), output="\n".join(lines), tests=tests,
                stdout_visibility="visible")

SETUP = """#!/usr/bin/env bash
set -e
cd /autograder/source
pip install -r requirements.txt
"""
RUN = """#!/usr/bin/env bash
cd /autograder/source
python3 -m assignments.platforms results {homework}{variant} \\
    --submission /autograder/submission --out /autograder/results/results.json
"""

def shipped(homework):
    """The files that a grader needs: the project's sources and the homework, without documents and tests."""
    patterns = [*SHIPPED, f"assignments/{homework}/*.py"]
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})

def write_gradescope(homework, out, variant):
    """A zip to upload as the autograder."""
    extra = "" if variant is None else f" --variant {variant}"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (("setup.sh", SETUP), ("run_autograder", RUN.format(homework=homework, variant=extra))):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o755 << 16
            archive.writestr(info, text)
        for path in shipped(homework):
            archive.write(path, path.relative_to(ROOT))
    print(f"{out}: upload it as the autograder of a programming assignment; use a container with Python 3.10 or later")

# ---------------------------------------------------------------------------------------------------------------------
# GitHub Classroom, nbgrader

WORKFLOW = """name: grade
on: [push]
permissions: {{contents: read}}
jobs:
  grade:
    runs-on: ubuntu-latest
    timeout-minutes: 20
    steps:
      - uses: actions/checkout@v4
        with: {{path: submission}}
      - uses: actions/checkout@v4
        with: {{repository: {repository}, ref: {commit}, path: grader}}
      - uses: actions/setup-python@v5
        with: {{python-version: "3.11"}}
      - run: pip install -r grader/requirements.txt
      - run: cd grader && python -m assignments.grade {homework} --submission ../submission{variant}
"""

def write_classroom(homework, out, repository, commit, variant):
    """A workflow that grades with the teacher's checkout at one commit: a student's edits of it have no effect."""
    extra = "" if variant is None else f" --variant {variant}"
    text = WORKFLOW.format(homework=homework, repository=repository, commit=commit, variant=extra)
    Path(out).write_text(text)
    print(f"{out}: put it into .github/workflows of the template repository, beside the students' files")

def cell(kind, source, grade_id=None, points=0):
    """A cell of a notebook. With grade_id it is an autograded test of nbgrader."""
    about = {}
    if grade_id:
        about = {"nbgrader": dict(grade=True, locked=True, solution=False, task=False, grade_id=grade_id, points=points,
                                  cell_type=kind, schema_version=3)}
    found = dict(cell_type=kind, id=(grade_id or secrets.token_hex(4)).replace(".", "-"), metadata=about, source=source)
    return found | (dict(outputs=[], execution_count=None) if kind == "code" else {})

def write_nbgrader(homework, out, variant):
    """A thin notebook: the students' files are beside it, and one locked cell grades one exercise."""
    start = f"from assignments.grade import Grader\ngrader = Grader({homework!r}, seed=0, variant={variant})\n" \
            "graded = {one.number: one for one in grader.grade('.')}"
    about = f"# {homework}\nWrite the functions in the files beside this notebook. README.md is the handout."
    cells = [cell("markdown", about), cell("code", start)]
    for exercise in exercises(homework, variant):
        check = f"one = graded[{exercise.number!r}]\nassert one.points, '\\n'.join(one.says)"
        cells.append(cell("code", check, exercise.number, exercise.points))
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
    Path(out).write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5), indent=1) + "\n")
    print(f"{out}: {len(cells) - 2} graded cells; the grader must be importable where it runs")

# ---------------------------------------------------------------------------------------------------------------------

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("platform", choices=["csv", "gradescope", "classroom", "nbgrader", "results"], help="what to write")
    p.add_argument("homework", choices=HOMEWORKS, help="the homework")
    p.add_argument("--out", required=True, help="the file to write")
    p.add_argument("--submissions", help="csv: a folder with one folder or .zip for each student")
    p.add_argument("--submission", help="results: the folder of one student")
    p.add_argument("--repository", default="OWNER/REPOSITORY", help="classroom: where the grader is")
    p.add_argument("--commit", default="main", help="classroom: the commit to grade with")
    p.add_argument("--variant", type=int, help="the seed that the homework was made with")
    p.add_argument("--seed", type=int, help="of the inputs; drawn if not given")
    args = p.parse_args(argv)
    for platform, flag in (("csv", "submissions"), ("results", "submission")):
        if args.platform == platform and getattr(args, flag) is None:
            p.error(f"{platform} needs --{flag}, a folder with what was handed in")
    return args

def main(argv=None):
    args = get_args(argv)
    for folder in (args.submissions, args.submission):
        if folder is not None and not Path(folder).is_dir():
            raise SystemExit(f"{folder}: there is no such folder")
    if args.platform == "gradescope":
        return write_gradescope(args.homework, args.out, args.variant)
    if args.platform == "classroom":
        return write_classroom(args.homework, args.out, args.repository, args.commit, args.variant)
    if args.platform == "nbgrader":
        return write_nbgrader(args.homework, args.out, args.variant)
    seed = secrets.randbelow(2 ** 31) if args.seed is None else args.seed
    with Grader(args.homework, seed, args.variant) as grader:
        if args.platform == "csv":
            return write_csv(grader, args.submissions, args.out)
        graded, lines = grade_one(grader, Path(args.submission))
    lines = [*lines, f"graded with --seed {seed}"]
    Path(args.out).write_text(json.dumps(gradescope_results(graded, lines), indent=1) + "\n")
    print(report(graded, lines))

if __name__ == "__main__":
    main()
