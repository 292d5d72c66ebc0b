"""
An exercise: the functions a student writes, the probes they are tried on, and the usual mistakes.

    for exercise in exercises("hw2"): print(exercise.number, exercise.title, exercise.targets)

One file of assignments/hwN is one exercise: hw2/e5_dpo.py is hw2.5. Its module-level names are the fields of Exercise;
docs/teaching.md explains them.
"""
import importlib
import inspect
import random
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from assignments import graft

ROOT = Path(__file__).resolve().parent.parent
PRELIMINARIES = "What is specified"    # the heading of a handout under which its variants stand
HOMEWORKS = sorted(path.name for path in (ROOT / "assignments").glob("hw*") if path.is_dir())

@dataclass(frozen=True)
class Mistake:
    """
    A usual mistake, made by edits of the project's own source.

    edits    ((right text, wrong text), ...): each right text stands exactly once in the function
    hint     what the student should look at. It never contains the answer.
    section  the heading of the handout that explains it
    test     a test of the project that fails with this mistake: "test_losses.py::test_x", or "" if there is none
    symptom  what somebody would see who uses the faulty code, for a bug hunt; "" keeps the mistake out of hunts
    """
    edits: tuple
    hint: str
    section: str
    test: str = ""
    symptom: str = ""

@dataclass(frozen=True)
class Exercise:
    """
    targets       ("losses.py:dpo", ...): file and qualified name of each function to write, all in one file
    points        for a right solution
    minutes       that a student needs, honestly
    probes        probes(rng) -> list of dicts: inputs as float64 arrays, numbers, strings, lists; rng is numpy's.
                  Optional keys: title; rows, a note for each row of the results; same_as, the index of a probe that
                  must give the same result, and differs_in, what differs.
    run           run(module, probe) -> dict of arrays. It and the functions that it calls itself, such as those of
                  drivers.py, are sent to the worker as text. It imports what it uses.
    mistakes      name -> Mistake
    alternatives  name -> source of the target that is written otherwise and right
    variants      name -> edits of code and docstring that specify the function otherwise (make.py --variant)
    hidden        texts that give the answer away: lines of docstrings and comments with one of them are left out
    removed       other functions that give the answer away, as targets: their bodies are left out too.
                  "losses.py:*" is every registered loss.
    shared        texts of the targets that other functions of the copy need too; no other may stand in the copy
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
    shared: tuple = ()
    variants: dict = field(default_factory=dict)
    variant: str = ""

    @property
    def file(self):
        """The file of all targets."""
        return self.targets[0].split(":")[0]

    @property
    def names(self):
        """The qualified names of the targets in that file."""
        return [target.split(":")[1] for target in self.targets]

    def driver(self):
        """The source of `run` and of the functions that it calls. Nothing else of the exercise reaches the worker."""
        called = [self.run.__globals__.get(name) for name in self.run.__code__.co_names]
        return "\n".join(map(inspect.getsource, [*filter(inspect.isfunction, called), self.run]))

    def source(self):
        """The text of the file: as the project has it, or specified otherwise by the chosen variant."""
        text = (ROOT / self.file).read_text()
        return graft.edited(text, self.names, self.variants[self.variant]) if self.variant else text

    def with_mistake(self, name):
        """The text of the file with one mistake in it."""
        return graft.edited(self.source(), self.names, self.mistakes[name].edits)

    def with_alternative(self, name):
        """The text of the file with one alternative. It may write some of the targets only."""
        source = self.alternatives[name]
        there = [target for target in self.names if graft.source_of(source, target)]
        return graft.graft(source, self.source(), there, name)

    def varied(self, name):
        """The exercise with a variant: the project's own body is a mistake now, and mistakes that do not apply go."""
        other = replace(self, variant=name)
        text = other.source()
        back = tuple((new, old) for old, new in self.variants[name])
        hint = "This is the project's own body. Your homework specifies something else."
        mistakes = {"the original": Mistake(back, hint, PRELIMINARIES)}
        mistakes |= {key: m for key, m in self.mistakes.items() if graft.applies(text, self.names, m.edits)}
        return replace(other, mistakes=mistakes, alternatives={})

def number_of(path):
    """The number of an exercise's file: 10 for e10_name.py."""
    return int(path.stem[1:].split("_")[0])

def load(homework, number, path):
    """The exercise of one file."""
    module = importlib.import_module(f"assignments.{homework}.{path.stem}")
    names = [name for f in fields(Exercise) for name in (f.name, f.name.upper()) if hasattr(module, name)]
    given = {name.lower(): getattr(module, name) for name in names}
    given["targets"] = tuple(given["targets"])
    title = module.__doc__.strip().splitlines()[0].rstrip(".")
    return Exercise(number=f"{homework}.{number}", title=title, **given)

def exercises(homework, variant=None):
    """
    All exercises of a homework in their order. With a seed as `variant`, each that has variants takes one of them.

    Raises SystemExit with the names that there are.
    """
    if homework not in HOMEWORKS:
        raise SystemExit(f"there is no homework {homework}; there are {', '.join(HOMEWORKS)}")
    files = sorted((ROOT / "assignments" / homework).glob("e[0-9]*.py"), key=number_of)
    found = [load(homework, number_of(path), path) for path in files]
    if variant is None:
        return found
    draw = random.Random(variant)
    return [e.varied(draw.choice(sorted(e.variants))) if e.variants else e for e in found]
