"""
An exercise: the functions a student writes, the probes they are tried on, and the usual mistakes.

    for exercise in exercises("hw2"): print(exercise.number, exercise.title, exercise.targets)

One file of assignments/hwN is one exercise. Its module-level names are the fields of Exercise; docs/teaching.md shows
one from top to bottom. The file's place in the sorted listing is its number: the second file of hw2 is hw2.2.
"""
import importlib
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
HOMEWORKS = sorted(path.name for path in (ROOT / "assignments").glob("hw*") if path.is_dir())

@dataclass(frozen=True)
class Mistake:
    """
    A usual mistake, made by edits of the project's own source.

    edits    ((right text, wrong text), ...): each right text stands exactly once in the function
    hint     what the student should look at. It never contains the answer.
    section  the heading of the handout that explains it
    test     a test of the project that fails with this mistake: "test_losses.py::test_x", or "" if there is none
    """
    edits: tuple
    hint: str
    section: str
    test: str = ""

@dataclass(frozen=True)
class Exercise:
    """
    targets       ("losses.py:dpo", ...): file and qualified name of each function that the student writes, all in one file
    points        for a right solution
    minutes       that a student needs, honestly
    probes        probes(rng) -> list of dicts: inputs as float64 arrays, numbers, strings, lists; rng is a numpy Generator
    run           run(module, probe) -> dict of arrays. It runs in the worker: it is sent as text and imports what it uses.
    mistakes      name -> Mistake
    alternatives  name -> source of the target that is written otherwise and right
    variants      name -> (edits of the reference, of the sentence that specifies it): the function is specified otherwise
    hidden        texts of docstrings and comments that give the answer away: lines with one of them are left out of the copy
    removed       other functions that give the answer away, as targets: their bodies are left out of the copy too
    """
    number: str
    title: str
    targets: tuple
    points: int
    minutes: int
    probes: object
    run: object
    mistakes: dict
    alternatives: dict = field(default_factory=dict)
    hidden: tuple = ()
    removed: tuple = ()
    module: str = ""

    @property
    def file(self):
        """The file of all targets."""
        return self.targets[0].split(":")[0]

    @property
    def names(self):
        """The qualified names of the targets in that file."""
        return [target.split(":")[1] for target in self.targets]

    def driver(self):
        """The source of `run`, which the worker executes. So nothing else of the exercise's file is in the worker's memory."""
        return inspect.getsource(self.run)

    def source(self):
        """The text of the file as the project has it."""
        return (ROOT / self.file).read_text()

def load(homework, number, path):
    """The exercise of one file."""
    module = importlib.import_module(f"assignments.{homework}.{path.stem}")
    names = SimpleNamespace(**vars(module))
    optional = {"alternatives": "ALTERNATIVES", "hidden": "HIDDEN", "removed": "REMOVED"}
    more = {key: vars(module)[name] for key, name in optional.items() if hasattr(module, name)}
    return Exercise(f"{homework}.{number}", module.__doc__.strip().splitlines()[0].rstrip("."), tuple(names.TARGETS),
                    names.POINTS, names.MINUTES, names.probes, names.run, names.MISTAKES, **more, module=path.stem)

def exercises(homework):
    """All exercises of a homework in their order. Raises SystemExit with the names that there are."""
    if homework not in HOMEWORKS:
        raise SystemExit(f"there is no homework {homework}; there are {', '.join(HOMEWORKS)}")
    files = sorted((ROOT / "assignments" / homework).glob("e*.py"))
    return [load(homework, number, path) for number, path in enumerate(files, 1)]
