"""
The usual mistakes, planted one at a time in a copy of the project: each must make some test fail. A fault that no test sees means a
missing test. A plant whose line is no longer in the code fails too, so that this list keeps up with it.
"""
import importlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# name -> (file, right text, wrong text, the tests that must fail), from the modules of tests/planted
FAULTS = {f"{path.stem}: {name}": fault for path in sorted((ROOT / "tests" / "planted").glob("*.py"))
          for name, fault in importlib.import_module(f"planted.{path.stem}").FAULTS.items()}

@pytest.mark.parametrize("name", FAULTS)
def test_the_line_that_is_to_be_broken_is_still_there(name):
    """A fault that can no longer be planted is seen by no test, and only the slow ones would say so."""
    file, right, wrong, tests = FAULTS[name]
    assert right in (ROOT / file).read_text() and right != wrong and (ROOT / "tests" / tests.split("::")[0]).is_file()

def tried(name, copy):
    """Plants a fault in a copy of the project, and runs the tests that are to see it."""
    file, right, wrong, tests = FAULTS[name]
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "out", "__pycache__", ".*_cache", "venv", ".venv"))
    text = (copy / file).read_text()
    assert right in text, f"{file} no longer has the line that is to be broken: {right}"
    (copy / file).write_text(text.replace(right, wrong))
    return subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{tests}"], cwd=copy,
                          capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})

@pytest.fixture(scope="module")
def trials(request, tmp_path_factory):
    """{fault: its trial}, as many at a time as there are cores: each is a process with one thread."""
    root = tmp_path_factory.mktemp("faults")
    names = [n for item in request.session.items if (n := getattr(item, "callspec", None) and item.callspec.params.get("name")) in FAULTS
             and item.originalname == "test_a_planted_fault_is_seen"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(tried, name, root / str(i)) for i, name in enumerate(names)}

@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name, trials):
    """The suite is worth what it catches: these are the mistakes that implementations of these losses were found with."""
    done = trials[name].result()
    assert done.returncode == 1 and " failed" in done.stdout, f"no test has seen it: {done.stdout[-300:]}{done.stderr[-300:]}"
