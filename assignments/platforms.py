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
import lzma
import re
import secrets
import stat
import tempfile
import time
import traceback
import zipfile
import zlib
from pathlib import Path

from assignments import graft
from assignments.exercise import HOMEWORKS, ROOT, exercises
from assignments.grade import Grader, also, home, need_folder, need_writable, report, submitted_text

ZIP_BYTES, ZIP_FILES = 20 << 20, 2000    # of an unpacked submission
SHIPPED = ("*.py", "support/*.py", "rlhf/*.py", "study/*.py", "assignments/*.py", "requirements.txt")

# ---------------------------------------------------------------------------------------------------------------------
# what was handed in

def unpack(path, folder):
    """
    Extracts a submitted zip. Raises SystemExit, with one line, for a zip bomb, a link or a path outside of the folder.

    The sizes that a zip file declares may be wrong, so bytes are counted while they are read. Old Windows programs
    separate folders by a backslash.
    """
    left = ZIP_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.filename.endswith(("/", "\\"))]
            if len(members) > ZIP_FILES:
                raise SystemExit(f"{path.name}: more than {ZIP_FILES} files")
            for member in members:
                target = (folder / member.filename.replace("\\", "/")).resolve()
                if not target.is_relative_to(folder.resolve()) or stat.S_ISLNK(member.external_attr >> 16):
                    raise SystemExit(f"{path.name}: {member.filename} is a link or lies outside of the folder")
                with archive.open(member) as stream:
                    data = stream.read(left + 1)
                left -= len(data)
                if left < 0:
                    raise SystemExit(f"{path.name}: more than {ZIP_BYTES >> 20} MB when unpacked")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, OSError, EOFError,
            ValueError) as e:
        raise SystemExit(f"{path.name}: not a zip file that can be read: {' '.join(str(e).split())[:100]}") from None

def is_zip(path):
    """Whether a path is a file whose name ends in .zip. Its content is checked by unpack."""
    return path.suffix.lower() == ".zip" and path.is_file() and not path.is_symlink()

def opened(path, scratch, files):
    """
    (folder with the files of the homework, lines) of a folder, a zip, or a folder with one zip in it.

    Raises SystemExit or graft.Unreadable, with one line, if there is none. Zips are unpacked into `scratch`.
    """
    if path.is_symlink():
        raise SystemExit(f"{path.name}: a link; links are not followed")
    if not path.is_dir() and not is_zip(path):
        raise SystemExit(f"{path.name}: neither a folder nor a .zip. Put its files into a folder, or ask for a .zip")
    if path.is_dir():
        try:
            folder, others = home(path, files)
            return folder, also(others, path)
        except graft.Unreadable:
            inside = [inner for inner in path.iterdir() if is_zip(inner)]
            if len(inside) != 1:    # one zip: learning platforms wrap each student's upload in a folder
                raise
            path = inside[0]
    unpack(path, scratch)
    folder, others = home(scratch, files)
    return folder, also(others, scratch)

def public(homework, folder):
    """One line that names the exercises whose code is the project's own, or none. Comments are not compared."""
    found = []
    for exercise in homework:
        try:
            ours, theirs = (ROOT / exercise.file).read_text(), submitted_text(folder, exercise.file)
            bodies = [[graft.stripped(graft.find(graft.tree_of(text), name)) for name in exercise.names]
                      for text in (ours, theirs)]
        except (graft.Unreadable, AttributeError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        found += [exercise.number] if bodies[0] == bodies[1] else []
    which = "all exercises" if len(found) == len(homework) else ", ".join(found)
    return [f"the same code as the public project: {which}"] if found else []

def grade_one(grader, path, for_teacher=False):
    """(list of Graded, lines) of what one student handed in. If it cannot be read: no points and one line."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder, lines = opened(path, Path(scratch), grader.files)
        except (SystemExit, graft.Unreadable) as e:
            return [], [str(e)]
        lines += grader.remarks(folder) + (public(grader.exercises, folder) if for_teacher else [])
        return grader.grade(folder), lines

# ---------------------------------------------------------------------------------------------------------------------
# a class

def shown(text):
    """The text with signs that cannot be shown, such as a line feed, as escapes: two names stay different."""
    return "".join(s if s.isprintable() else s.encode("unicode_escape").decode() for s in text[:2000])

def for_spreadsheet(text):
    """
    The text as a cell that no spreadsheet runs as a formula: a quote stands before the sign that begins one.

    In some countries a spreadsheet splits cells at a semicolon, so a formula may begin behind one too.
    """
    text = re.sub(r";(?=[\s\"]*[=+\-@])", ";'", text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "'")) else text

def name_of(path):
    """The first cell of a submission's row. No two names in a folder give the same."""
    return for_spreadsheet(shown(path.name.replace("\\", "\\\\")))

def remarks_of(graded, lines):
    """All that is said, as one cell. Exercises with the same line share it."""
    numbers = {}
    for one in graded:
        for line in one.says:
            numbers.setdefault(line, []).append(one.number)
    said = [f"{', '.join(found)}: {line}" for line, found in numbers.items()]
    return " | ".join(map(shown, [*said, *lines]))

def row_of(grader, path):
    """The cells of one submission. If the grader itself fails, the row says so, and the class goes on."""
    try:
        graded, lines = grade_one(grader, path, for_teacher=True)
    except Exception as e:
        place = traceback.extract_tb(e.__traceback__)[-1]
        what = f"{type(e).__name__}: {' '.join(str(e).split())[:200]} ({Path(place.filename).name}:{place.lineno})"
        graded, lines = [], [f"THE GRADER FAILED, grade this one by hand: {what}"]
        for worker in grader.workers:    # an answer that nobody read would be taken for the next one
            worker.close()
    points = {one.number: one.points for one in graded}
    each = [points.get(exercise.number, 0) for exercise in grader.exercises]
    return [name_of(path), *each, sum(each), for_spreadsheet(remarks_of(graded, lines))]

def rows_of(out, head):
    """The complete rows of a CSV that an earlier call began. Raises SystemExit if it is of something else."""
    try:
        lines = Path(out).read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except ValueError:
        lines = []
    rows = list(csv.reader(line for line in lines if line.endswith("\n")))
    if rows[:1] != [head]:
        raise SystemExit(f"--out {out}: not a CSV of this homework; give another file")
    return rows[1:]

def write_csv(grader, submissions, out, resume=False):
    """One row for each submission: name, points of each exercise, total, what was said. Each row is written at once."""
    head = ["submission", *(exercise.number for exercise in grader.exercises), "total", "remarks"]
    rows = rows_of(out, head) if resume and Path(out).exists() else []
    paths = sorted(p for p in Path(submissions).iterdir()
                   if not p.name.startswith((".", "__MACOSX")) and p.resolve() != Path(out).resolve())
    there = {row[0] for row in rows}
    left = [path for path in paths if name_of(path) not in there]
    for exercise in grader.exercises if left else ():
        grader.key(exercise)    # a grader that does not work here ends here, not in each row
    with open(out, "w", newline="", encoding="utf-8-sig") as f:    # without the sign, Excel takes UTF-8 for Latin-1
        writer = csv.writer(f)
        writer.writerows([head, *rows])
        for path in left:
            begin = time.monotonic()
            row = row_of(grader, path)
            writer.writerow(row)
            f.flush()
            print(f"{row[0]}: {row[-2]} points, {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{out}: {len(rows) + len(left)} submissions; graded with --seed {grader.seed}")

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
apt-get update
apt-get install -y python3 python3-venv
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install {torch}
/autograder/venv/bin/pip install -r /autograder/source/requirements.txt
"""
RUN = """#!/usr/bin/env bash
cd /autograder/source
/autograder/venv/bin/python -m assignments.platforms results {homework}{variant} \\
    --submission /autograder/submission --out /autograder/results/results.json
"""

def cpu_torch():
    """What to install before the requirements: their torch as a build without CUDA, which is ten times smaller."""
    [torch] = [line for line in (ROOT / "requirements.txt").read_text().split() if line.startswith("torch==")]
    return f"{torch} --index-url https://download.pytorch.org/whl/cpu"

def shipped(homework):
    """The files that a grader needs: the project's sources and the homework, without documents and tests."""
    patterns = [*SHIPPED, f"assignments/{homework}/*.py"]
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})

def write_gradescope(homework, out, variant):
    """A zip to upload as the autograder."""
    extra = "" if variant is None else f" --variant {variant}"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (("setup.sh", SETUP.format(torch=cpu_torch())),
                           ("run_autograder", RUN.format(homework=homework, variant=extra))):
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o755 << 16
            archive.writestr(info, text)
        for path in shipped(homework):
            archive.write(path, path.relative_to(ROOT))
    print(f"{out}: upload it as the autograder of a programming assignment; {sum_of(homework)} autograder points; "
          "base image Ubuntu 22.04 or later; container of 2 CPUs and 3 GB")

def sum_of(homework):
    """All points of a homework's code."""
    return sum(exercise.points for exercise in exercises(homework))

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
        with: {{repository: "{repository}", ref: "{commit}", path: grader}}
      - uses: actions/setup-python@v5
        with: {{python-version: "3.11"}}
      - run: pip install {torch}
      - run: pip install -r grader/requirements.txt
      - run: cd grader && python -m assignments.grade {homework} --submission ../submission --seed $RANDOM{variant}
"""

def write_classroom(homework, out, repository, commit, variant):
    """A workflow that grades with the teacher's checkout at one commit: a student's edits of it have no effect."""
    extra = "" if variant is None else f" --variant {variant}"
    text = WORKFLOW.format(homework=homework, repository=repository, commit=commit, variant=extra,
                           torch=cpu_torch())
    Path(out).write_text(text)
    print(f"{out}: put it into .github/workflows of the template repository, beside the students' files")

START = """import json, os, secrets, subprocess, sys, tempfile
grader = os.environ.get("NANOPREF", {root!r})
assert os.path.isdir(grader), f"{{grader}} is not here: set the variable NANOPREF to the folder of a clone of nanoPref"
with tempfile.NamedTemporaryFile(suffix=".json") as found:
    command = [sys.executable, "-m", "assignments.grade", {homework!r}, "--submission", os.getcwd(),
               "--json", found.name, "--seed", str(secrets.randbelow(2 ** 31)){variant}]
    ran = subprocess.run(command, cwd=grader, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    graded = {{one["number"]: one for one in json.load(found)}}
print(ran.stdout)"""
CHECK = """one = graded[{number!r}]
assert one["points"], "\\n".join(one["says"])"""
CONFIG = """
c.Autograde.exclude_overwriting = {{{homework!r}: {files}}}
c.ExecutePreprocessor.timeout = 900
"""

def cell(kind, source, grade_id=None, points=None):
    """A cell of a notebook. With grade_id it is locked: nbgrader restores it. With points it is an autograded test."""
    about = {}
    if grade_id:
        graded = {} if points is None else dict(points=points)
        about = {"nbgrader": dict(grade=bool(graded), locked=True, solution=False, task=False, grade_id=grade_id,
                                  cell_type=kind, schema_version=3, **graded)}
    found = dict(cell_type=kind, id=grade_id or secrets.token_hex(4), metadata=about, source=source)
    return found | (dict(outputs=[], execution_count=None) if kind == "code" else {})

def write_nbgrader(homework, out, variant):
    """
    A thin notebook: the students' files are beside it, and one locked cell grades one exercise.

    A process of its own grades, in the folder of the grader: a module of the student's there would be imported first.
    """
    extra = "" if variant is None else f', "--variant", "{variant}"'
    about = f"# {homework}\nWrite the functions in the files beside this notebook. README.md is the handout."
    start = START.format(root=str(ROOT), homework=homework, variant=extra)
    cells = [cell("markdown", about), cell("code", start, f"{homework}-start")]
    found = exercises(homework, variant)
    for exercise in found:
        grade_id = exercise.number.replace(".", "-")    # nbgrader allows no dot
        cells.append(cell("code", CHECK.format(number=exercise.number), grade_id, exercise.points))
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
    Path(out).write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5), indent=1) + "\n")
    files = sorted({exercise.file for exercise in found})
    print(f"{out}: {len(found)} graded cells. nbgrader_config.py needs these lines, or nbgrader grades blank files:")
    print(CONFIG.format(homework=Path(out).resolve().parent.name, files=files).strip())

# ---------------------------------------------------------------------------------------------------------------------

ONLY = dict(submissions=["csv"], resume=["csv"], submission=["results"], repository=["classroom"],
            commit=["classroom"], seed=["csv", "results"])    # flags that the other platforms have no use for

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("platform", choices=["csv", "gradescope", "classroom", "nbgrader", "results"], help="what to write")
    p.add_argument("homework", choices=HOMEWORKS, help="the homework")
    p.add_argument("--out", required=True, help="the file to write")
    p.add_argument("--submissions", help="csv: a folder with one folder or .zip for each student")
    p.add_argument("--resume", action="store_true", help="csv: keep the rows of --out and grade the others")
    p.add_argument("--submission", help="results: the folder of one student")
    p.add_argument("--repository", help="classroom: where the grader is, as OWNER/REPOSITORY")
    p.add_argument("--commit", help="classroom: the commit to grade with; main if not given")
    p.add_argument("--variant", type=int, help="the seed that the homework was made with")
    p.add_argument("--seed", type=int, help="of the inputs; drawn if not given")
    args = p.parse_args(argv)
    for platform, flag in (("csv", "submissions"), ("results", "submission")):
        if args.platform == platform and getattr(args, flag) is None:
            p.error(f"{platform} needs --{flag}, a folder with what was handed in")
    if args.platform == "classroom" and args.repository is None:
        p.error("classroom needs --repository, where the grader is, as OWNER/REPOSITORY")
    for flag, platforms in ONLY.items():
        if getattr(args, flag) not in (None, False) and args.platform not in platforms:
            p.error(f"--{flag} is for {' and '.join(platforms)} only")
    return args

def main(argv=None):
    args = get_args(argv)
    for flag in ("submissions", "submission"):
        if (folder := getattr(args, flag)) is not None:
            need_folder(f"--{flag}", folder)
    need_writable("--out", args.out)
    if args.platform == "csv" and Path(args.out).exists() and not args.resume:
        raise SystemExit(f"--out {args.out} exists already; give another file, or --resume to grade what is not in it")
    if args.platform == "gradescope":
        return write_gradescope(args.homework, args.out, args.variant)
    if args.platform == "classroom":
        return write_classroom(args.homework, args.out, args.repository, args.commit or "main", args.variant)
    if args.platform == "nbgrader":
        return write_nbgrader(args.homework, args.out, args.variant)
    seed = secrets.randbelow(2 ** 31) if args.seed is None else args.seed
    with Grader(args.homework, seed, args.variant) as grader:
        if args.platform == "csv":
            return write_csv(grader, args.submissions, args.out, args.resume)
        graded, lines = grade_one(grader, Path(args.submission))
    lines = [*lines, f"graded with --seed {seed}"]
    Path(args.out).write_text(json.dumps(gradescope_results(graded, lines), indent=1) + "\n")
    print(report(graded, lines))

if __name__ == "__main__":
    main()
