"""
Grade a submission: points, and hints that are proven.

    python -m assignments.grade hw2 --submission ../hw2-anna
    python -m assignments.grade hw2 --submission ../hw2-anna --json results.json --seed 7

Each exercise is graded alone: in a clean copy of the project, only its functions are the student's. The copy runs in a
worker process that knows no expected value (worker.py). docs/teaching.md is the teacher's page.
"""
import argparse
import ast
import compileall
import contextlib
import json
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from assignments import graft, recognize, wire
from assignments.exercise import HOMEWORKS, ROOT, exercises

ROOMS = ("support", "rlhf", "study")
SOURCE_BYTES = 1 << 20    # of one submitted file
DEPTH = 4    # how many folders may be wrapped around the files of a submission
SECONDS, OUR_SECONDS = 30, 120    # for an exercise of a student, and for one of our own variants

class Worker:
    """The process of worker.py. run(job) returns one entry for each probe. It is started again if it dies."""
    def __init__(self, tree):
        self.tree, self.process = tree, None

    def start(self):
        if sys.platform != "linux":
            raise SystemExit("the grader runs students' code on Linux only; on another system use a container")
        env = {"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(ROOT / "assignments" / "worker.py"), str(self.tree)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env=env)

    def run(self, job):
        if self.process is None or self.process.poll() is not None:
            self.start()
        try:
            self.process.stdin.write(wire.frame(wire.pack(job)))
            self.process.stdin.flush()
            entries = wire.unpack(wire.read(self.process.stdout))
        except (OSError, ValueError):
            entries = None
        if not well_formed(entries, len(job["probes"])):
            self.close()
            return [{"error": "the process that ran the code was killed"}] * len(job["probes"])
        for entry in entries:
            if "error" in entry:
                entry["error"] = printable(entry["error"])
            else:
                entry["changed"] = [printable(name) for name in entry["changed"]]
        return entries

    def close(self):
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.process.kill()
            self.process.wait()
            self.process = None

def printable(text):
    """At most 400 signs that a terminal can show: the text may come from hostile code."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:400])

def well_formed(entries, n):
    """Whether entries are n results as worker.py gives them. They may come from hostile code."""
    def is_entry(entry):
        if not isinstance(entry, dict):
            return False
        if set(entry) == {"error"}:
            return isinstance(entry["error"], str)
        if set(entry) != {"arrays", "changed"}:
            return False
        arrays, changed = entry["arrays"], entry["changed"]
        return (isinstance(arrays, dict) and all(isinstance(x, np.ndarray) for x in arrays.values())
                and isinstance(changed, list) and all(isinstance(x, str) for x in changed))
    return isinstance(entries, list) and len(entries) == n and all(map(is_entry, entries))

# ---------------------------------------------------------------------------------------------------------------------
# what is right, and what each mistake gives

def clean_copy(folder):
    """The project's own sources, in a folder that any user may read."""
    folder.mkdir(parents=True)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for room in ROOMS:
        (folder / room).mkdir()
        for path in (ROOT / room).glob("*.py"):
            shutil.copy(path, folder / room)
    # by hash: a file that is written anew within a second, with the same size, would else run as it was
    compileall.compile_dir(folder, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder

@dataclass
class Key:
    """The probes of an exercise and what the reference, the mistakes and the alternatives make of them."""
    probes: list
    reference: list
    wrong: dict
    alternatives: dict
    apart: recognize.Separation

    def judge(self, student):
        """Judged for a student's result."""
        return recognize.judge(student, self.reference, self.wrong, self.probes, self.apart.tolerance)

def run_all(jobs, workers):
    """The entries of each job, shared among the workers."""
    n = len(workers)
    with ThreadPoolExecutor(n) as pool:
        parts = list(pool.map(lambda i: [workers[i].run(job) for job in jobs[i::n]], range(n)))
    return [parts[i % n][i // n] for i in range(len(jobs))]

def key_of(exercise, workers, tree, seed):
    """The Key of an exercise. It exists in this process only."""
    probes = exercise.probes(np.random.default_rng([seed, *exercise.number.encode()]))
    texts = {"the reference": exercise.source()}
    texts |= {name: exercise.with_mistake(name) for name in exercise.mistakes}
    texts |= {name: exercise.with_alternative(name) for name in exercise.alternatives}
    job = dict(tree=str(tree), file=exercise.file, driver=exercise.driver(), probes=probes, seconds=OUR_SECONDS)
    results = dict(zip(texts, run_all([job | {"source": text} for text in texts.values()], workers)))
    reference = results.pop("the reference")
    broken = [entry["error"] for entry in reference if "error" in entry]
    assert not broken, f"{exercise.number}: the reference fails: {broken[0]}"
    wrong = {name: results[name] for name in exercise.mistakes}
    if exercise.variant:
        wrong = recognize.distinct(exercise.mistakes, reference, wrong)
    alternatives = {name: results[name] for name in exercise.alternatives}
    apart = recognize.separation(exercise.mistakes, reference, wrong, alternatives)
    return Key(probes, reference, wrong, alternatives, apart)

# ---------------------------------------------------------------------------------------------------------------------
# a submission

@dataclass
class Graded:
    """One exercise of one submission."""
    number: str
    title: str
    points: int
    max_points: int
    says: list = field(default_factory=list)
    mistake: str = ""

def home(submission, files):
    """
    (folder, others): the folder of a submission that holds most of the homework's files, and others with as many.

    Archives wrap the files in folders, so folders are searched down to DEPTH levels. Links are not followed. Raises
    graft.Unreadable with one line if no folder holds any of the files.
    """
    found, submission = [], Path(submission)
    for here, folders, _ in os.walk(submission):
        depth = len(Path(here).relative_to(submission).parts)
        kept = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        folders[:] = kept if depth < DEPTH else []
        if have := sum(os.path.lexists(Path(here) / file) for file in files):
            found.append((-have, depth, here))
    if not found:
        inside = sorted(path.name for path in submission.iterdir() if not path.name.startswith((".", "__MACOSX")))
        what = f"it has {', '.join(inside[:5])}{', ...' if len(inside) > 5 else ''}" if inside else "it is empty"
        raise graft.Unreadable(f"the files {', '.join(files)} are all missing; {what}")
    found.sort()
    return Path(found[0][2]), [Path(here) for have, _, here in found[1:] if have == found[0][0]]

def also(others, submission):
    """One line if other folders of a submission have the homework's files too, else none."""
    names = [printable(str(path.relative_to(submission))) for path in others]
    return [f"not graded, though the same files are there: {', '.join(names)}"] if names else []

def submitted_text(submission, file):
    """The text of a submitted file. Raises graft.Unreadable with one line: missing, a link, too large, not text."""
    path = Path(submission) / file
    inside = path.resolve().is_relative_to(Path(submission).resolve())
    if not path.exists() and not path.is_symlink():
        raise graft.Unreadable(f"{file} is missing")
    if path.is_symlink() or not inside or not path.is_file():
        raise graft.Unreadable(f"{file} is not a file of its own; links are not followed")
    if path.stat().st_size > SOURCE_BYTES:
        raise graft.Unreadable(f"{file} has more than {SOURCE_BYTES >> 10} KB")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[:e.start].count(b"\n") + 1
        raise graft.Unreadable(f"{file}, line {line}: not UTF-8 text. Save the file with the encoding UTF-8") from None
    except OSError as e:
        raise graft.Unreadable(f"{file} cannot be read: {e.strerror}") from None

def is_blank(text, names):
    """Whether the functions still raise NotImplementedError only."""
    def body(name):
        statements = graft.find(graft.tree_of(text), name).body
        return statements[1:] if graft.is_docstring(statements) else statements
    return all(len(body(name)) == 1 and "raise NotImplementedError(" in ast.unparse(body(name)[0]) for name in names)

def grade_exercise(exercise, key, submission, worker, base, folder):
    """Graded for one exercise: the student's functions in a clean copy, run by the worker, judged by the key."""
    graded = Graded(exercise.number, exercise.title, 0, exercise.points)
    try:
        text = submitted_text(submission, exercise.file)
        grafted = graft.graft(text, exercise.source(), exercise.names, exercise.file)
    except graft.Unreadable as e:
        graded.says = [str(e)]
        return graded
    if is_blank(text, exercise.names):
        graded.says = ["not written yet"]
        return graded
    tree = folder / exercise.number
    shutil.copytree(base, tree)
    (tree / exercise.file).write_text(grafted)
    job = dict(tree=str(tree), file=exercise.file, driver=exercise.driver(), probes=key.probes, seconds=SECONDS,
               source=None)
    student = worker.run(job)
    shutil.rmtree(tree)
    judged = key.judge(student)
    graded.points = exercise.points if judged.right else 0
    graded.mistake, graded.says = judged.mistake, judged.facts
    if judged.mistake:
        mistake = exercise.mistakes[judged.mistake]
        graded.says = [f"{mistake.hint} (handout: {mistake.section})"]
    return graded

def ignored(homework, submission):
    """One line for each file in which the student changed more than the functions of the homework."""
    lines = []
    for file in sorted({exercise.file for exercise in homework}):
        names = [name for exercise in homework if exercise.file == file for name in exercise.names]
        text = (ROOT / file).read_text()
        removed = {name for e in homework for target in e.removed for name in graft.all_functions(text, target)}
        try:
            found = graft.other_edits(submitted_text(submission, file), text, names)
        except (graft.Unreadable, AssertionError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if other := [name for name in found if name not in removed]:
            lines.append(f"{file}: changes outside of the exercises are not graded: {', '.join(other)}")
    return lines

def other_variant(homework, submission, variant):
    """One line if docstrings show that the copy was made with another --variant than it is graded with, else none."""
    found = []
    for exercise in homework:
        try:
            tree = graft.tree_of(submitted_text(submission, exercise.file))
            docs = [ast.get_docstring(graft.find(tree, name)) or "" for name in exercise.names]
        except (graft.Unreadable, AttributeError, TypeError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if docs_fit(exercise, docs):
            continue
        if any(docs_fit(replace(exercise, variant=name), docs) for name in ("", *exercise.variants)):
            found.append(exercise.number)
    graded = "without --variant" if variant is None else f"with --variant {variant}"
    return [f"graded {graded}, but the docstrings of {', '.join(found)} are of a copy made otherwise"] if found else []

def docs_fit(exercise, docs):
    """Whether each line of the submitted docstrings stands in the exercise's own. make.py leaves some lines out."""
    tree = graft.tree_of(exercise.source())
    whole = [ast.get_docstring(graft.find(tree, name)) or "" for name in exercise.names]
    lines = lambda doc: {line.strip() for line in doc.splitlines() if line.strip()}
    return all(lines(doc) <= lines(own) for doc, own in zip(docs, whole))

class Grader:
    """A homework's keys for one seed, and the worker. grade(submission) -> list of Graded."""
    def __init__(self, homework, seed, variant=None):
        self.exercises, self.seed, self.keys = exercises(homework, variant), seed, {}
        self.variant = variant
        self.folder = Path(tempfile.mkdtemp(prefix="grade-"))
        self.folder.chmod(0o755)
        self.base = clean_copy(self.folder / "clean")
        # a second one for our own variants, on a core of its own
        self.workers = [Worker(self.base) for _ in range(min(2, os.cpu_count() or 1))]

    @property
    def worker(self):
        """The one that runs students' code."""
        return self.workers[0]

    def key(self, exercise):
        if exercise.number not in self.keys:
            self.keys[exercise.number] = key_of(exercise, self.workers, self.base, self.seed)
        return self.keys[exercise.number]

    @property
    def files(self):
        """The files with exercises."""
        return sorted({exercise.file for exercise in self.exercises})

    def remarks(self, submission):
        """Lines about the submission as a whole."""
        return [*other_variant(self.exercises, submission, self.variant), *ignored(self.exercises, submission)]

    def grade(self, submission):
        work = Path(tempfile.mkdtemp(dir=self.folder))
        work.chmod(0o755)
        try:
            return [grade_exercise(e, self.key(e), submission, self.worker, self.base, work) for e in self.exercises]
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def close(self):
        for worker in self.workers:
            worker.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

# ---------------------------------------------------------------------------------------------------------------------
# the report

def report(graded, lines=()):
    """The text that a student reads."""
    out = []
    for one in graded:
        mark = "right" if one.points else "not yet"
        out.append(f"{one.number:6} {one.points:3d} of {one.max_points:2d}  {mark:8} {one.title}")
        out += [f"         {line}" for line in one.says]
    out += [*lines, f"total  {sum(g.points for g in graded)} of {sum(g.max_points for g in graded)} points"]
    return "\n".join(out)

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("homework", choices=HOMEWORKS, help="the homework")
    p.add_argument("--submission", required=True, help="the folder that the student handed in")
    p.add_argument("--json", help="write the results to this file too")
    p.add_argument("--seed", type=int, default=0, help="of the inputs: another seed gives others of the same kind")
    p.add_argument("--variant", type=int, help="the seed that the homework was made with")
    return p.parse_args(argv)

def need_folder(flag, path):
    """Raises SystemExit with one line if there is no such folder."""
    if not Path(path).is_dir():
        what = "is a file, not a folder" if Path(path).exists() else "there is no such folder"
        raise SystemExit(f"{flag} {path}: {what}")

def need_writable(flag, path):
    """Raises SystemExit with one line, before minutes of work, if a file cannot be written there."""
    folder = Path(path).resolve().parent
    if Path(path).is_dir() or not folder.is_dir():
        what = "is a folder; give a file" if Path(path).is_dir() else f"there is no folder {folder}"
        raise SystemExit(f"{flag} {path}: {what}")

def main(argv=None):
    args = get_args(argv)
    need_folder("--submission", args.submission)
    if args.json:
        need_writable("--json", args.json)
    with Grader(args.homework, args.seed, args.variant) as grader:
        try:
            folder, others = home(args.submission, grader.files)
        except graft.Unreadable as e:
            raise SystemExit(f"--submission {args.submission}: {printable(str(e))}") from None
        graded = grader.grade(folder)
        lines = [*also(others, args.submission), *grader.remarks(folder), f"graded with --seed {args.seed}"]
        print(report(graded, lines))
    if args.json:
        Path(args.json).write_text(json.dumps([asdict(g) for g in graded], indent=1) + "\n")
    return graded

if __name__ == "__main__":
    main()
