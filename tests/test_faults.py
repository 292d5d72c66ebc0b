"""
Planted faults: the usual mistakes, each planted in a copy of the project, where it must make a test fail.

A fault that no test sees means a missing test. A fault whose line is no longer in the code fails too, so the list
stays up to date.
"""
import importlib
from pathlib import Path

import pytest
from warm import Warm, copied, write_source

from assignments.exercise import HOMEWORKS, exercises

ROOT = Path(__file__).resolve().parent.parent

# name -> (file, right text, wrong text, the tests that must fail), from the modules of tests/planted
PLANTED = {}
for path in sorted((ROOT / "tests" / "planted").glob("*.py")):
    for name, fault in importlib.import_module(f"planted.{path.stem}").FAULTS.items():
        PLANTED[f"{path.stem}: {name}"] = fault

# name -> (exercise, name of its mistake): students' mistakes that a test of the project must see too
MISTAKES = {}
for homework in HOMEWORKS:
    for exercise in exercises(homework):
        for name, mistake in exercise.mistakes.items():
            if mistake.test:
                MISTAKES[f"{exercise.number}: {name}"] = (exercise, name)

# every twentieth is among the slow tests; docs/tests.md has the command for all of them
NAMES = [*PLANTED, *MISTAKES]
MARKED = [pytest.param(name, marks=pytest.mark.planted if i % 20 else pytest.mark.slow) for i, name in enumerate(NAMES)]

def broken(name):
    """(file, its text with the fault in it, the tests that must fail)."""
    if name in PLANTED:
        file, right, wrong, tests = PLANTED[name]
        text = (ROOT / file).read_text()
        assert right in text, f"{file} no longer has the line that is to be broken: {right}"
        return file, text.replace(right, wrong), tests
    exercise, mistake = MISTAKES[name]
    return exercise.file, exercise.with_mistake(mistake), exercise.mistakes[mistake].test

@pytest.mark.parametrize("name", NAMES)
def test_the_line_that_is_to_be_broken_is_still_there(name):
    """A fault that can no longer be planted is seen by no test, and only the slow ones would say so."""
    file, text, tests = broken(name)
    assert text != (ROOT / file).read_text() and (ROOT / "tests" / tests.split("::")[0]).is_file()

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the project to plant faults in, one after the other."""
    return copied(ROOT, tmp_path_factory.mktemp("faults") / "copy")

@pytest.fixture(scope="module")
def warm():
    process = Warm()
    yield process
    process.close()

@pytest.mark.parametrize("name", MARKED)
def test_a_planted_fault_is_seen(name, copy, warm):
    """The tests are worth what they catch: these mistakes were found in real implementations of the losses."""
    file, text, tests = broken(name)
    write_source(copy / file, text)
    in_browser = tests.startswith("test_browser.py")
    marks = ["-m", "not planted"] if in_browser or "::" in tests else []    # a test that is named may be a slow one
    try:
        status, printed = warm.run(copy, ["-x", *marks, f"tests/{tests}"])
    finally:
        write_source(copy / file, (ROOT / file).read_text())
    if in_browser and status == 0 and "1 skipped" in printed:
        pytest.skip("there is no browser here")
    # a fixture that trains a run may fail before its test
    seen = " failed" in printed or "ERROR at setup of" in printed
    assert status == 1 and seen, f"no test has seen it: {printed[-600:]}"
