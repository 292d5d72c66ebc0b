"""
The usual mistakes, planted one at a time in a copy of the project: each must make some test fail. A fault that no test sees means a
missing test. A plant whose line is no longer in the code fails too, so that this list keeps up with it.
"""
import compileall
import importlib
import shutil
from pathlib import Path

import pytest
from warm import Warm

ROOT = Path(__file__).resolve().parent.parent

# name -> (file, right text, wrong text, the tests that must fail), from the modules of tests/planted
FAULTS = {f"{path.stem}: {name}": fault for path in sorted((ROOT / "tests" / "planted").glob("*.py"))
          for name, fault in importlib.import_module(f"planted.{path.stem}").FAULTS.items()}

@pytest.mark.parametrize("name", FAULTS)
def test_the_line_that_is_to_be_broken_is_still_there(name):
    """A fault that can no longer be planted is seen by no test, and only the slow ones would say so."""
    file, right, wrong, tests = FAULTS[name]
    assert right in (ROOT / file).read_text() and right != wrong and (ROOT / "tests" / tests.split("::")[0]).is_file()

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the project to plant faults in, one after the other."""
    folder = tmp_path_factory.mktemp("faults") / "copy"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "out", "__pycache__", ".*_cache", "venv", ".venv"))
    compileall.compile_dir(folder, quiet=2)
    return folder

@pytest.fixture(scope="module")
def warm():
    process = Warm()
    yield process
    process.close()

def write_source(path, text):
    """Writes a Python file and removes its bytecode, which would stay valid if the new file had the same second and size as the old one."""
    path.write_text(text)
    for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        stale.unlink()

# every sixth is among the slow tests; docs/tests.md has the command for all of them
OFTEN = {name for i, name in enumerate(FAULTS) if i % 6 == 0}

@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in OFTEN else pytest.mark.planted) for n in FAULTS])
def test_a_planted_fault_is_seen(name, copy, warm):
    """The suite is worth what it catches: these are the mistakes that implementations of these losses were found with."""
    file, right, wrong, tests = FAULTS[name]
    path, text = copy / file, (ROOT / file).read_text()
    assert right in text, f"{file} no longer has the line that is to be broken: {right}"
    write_source(path, text.replace(right, wrong))
    try:
        status, said = warm.run(copy, ["-x", f"tests/{tests}"])
    finally:
        write_source(path, text)
    assert status == 1 and " failed" in said, f"no test has seen it: {said[-600:]}"
