"""
The mutation tool: the mutants it makes, the text it leaves alone, and whether it tells killed mutants from
survivors.
"""
import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import mutate
from mutants import mutants

ROOT = Path(__file__).resolve().parent.parent

def changes(text):
    """{(old, new)} of the mutants of a file's text."""
    return {(m.old, m.new) for m in mutants("f.py", text)}

@pytest.mark.parametrize("line, new", [
    ("y = f(a, b, c)", ["y = f(b, a, c)", "y = f(a, c, b)"]),
    ("y = a + b", ["y = a - b", "y = (a)", "y = (b)"]),
    ("y = a * b", ["y = a / b", "y = (a)", "y = (b)"]),
    ("y = a < b", ["y = a <= b", "y = a > b"]),
    ("y = a == b", ["y = a != b"]),
    ("y = a not in b", ["y = a in b"]),
    ("y = a and b", ["y = a or b", "y = ((a))", "y = ((b))"]),
    ("y = not a", ["y = (a)"]),
    ("y = a['chosen']", ['y = a["rejected"]']),
    ("y = 0", ["y = 1"]),
    ("y = True", ["y = False"]),
    ("y = 0.5", ["y = 1.0"]),
    ("y = a.max()", ["y = a.min()"]),
    ("y += a", ["pass", "y -= a"]),
    ("f(a)", ["pass"]),
    ("y = a if b else c", ["y = a if True else c", "y = a if False else c"]),
    ("y = a[b:c]", ["y = a[b + 1:c]", "y = a[b:c + 1]"]),
    ("y = a[0]", ["y = a[-1]"]),
    ("y = a[-1]", ["y = a[0]"]),
])
def test_the_mutants_of_a_line(line, new):
    """A kind that makes no mutants, or text cut at the wrong place, would not show in a table of killed mutants."""
    assert {m[1] for m in changes(line)} == set(new)

def test_columns_are_counted_in_characters_and_not_in_bytes():
    """ast counts bytes. After a letter with an accent, the change would hit the wrong character."""
    assert changes("y = ('é', a < b)") == {("y = ('é', a < b)", f"y = ('é', a {op} b)") for op in ("<=", ">")}

def test_words_for_people_are_left_alone():
    """
    A changed message proves nothing about the code. A changed help text that no test reads would count as a
    survivor.
    """
    text = '''"""A docstring: 1 + 1."""
import a.b
def f(x: "train" = None) -> "val":
    """chosen"""
    p.add_argument(help="test" + x)
    p.error(f"{x + 1} before" + str(1 + 1))
    return f"after {x + 1}" + x
def g():
    raise ValueError("not " + str(1 + 1))
if __name__ == "__main__":
    f(1)
'''
    assert {m.new for m in mutants("f.py", text)} == {"pass"}
    left_alone = {'p.add_argument(help="test" + x)', 'p.error(f"{x + 1} before" + str(1 + 1))'}
    assert {m.old for m in mutants("f.py", text)} == left_alone

@pytest.mark.parametrize("file", mutate.FILES)
def test_a_mutant_differs_from_the_file_in_one_place(file):
    """Python must be able to parse every mutant, and the rest of the file must be unchanged."""
    text = (ROOT / file).read_text()
    found = mutants(file, text)
    if file != "objective.py":    # one short function
        assert len(found) > 40 and {m.kind for m in found} >= {"condition fixed", "arguments swapped", "constant"}
    for m in found:
        assert 0 <= m.start < m.end <= len(text) and text[m.start:m.end] != m.text and m.old != m.new
    for m in found[::25]:
        ast.parse(text[:m.start] + m.text + text[m.end:])

def test_listed_equivalents_are_still_in_the_code():
    """An entry whose text has changed excludes nothing, but a reader would believe that it does."""
    known = set()
    for file in mutate.FILES:
        known |= {(m.file, m.function, m.old, m.new) for m in mutants(file, (ROOT / file).read_text())}
    listed = mutate.equivalents()
    assert not listed.keys() - known
    assert all(len(reason) > 10 for reason in listed.values())

def test_one_survivor_in_ten_is_not_too_many():
    """The share is of the mutants that were tried. Uncovered and equivalent mutants must not make it smaller."""
    m = mutants("f.py", "y = a == b")[0]
    rows = lambda killed, survived: [(m, mutate.KILLED, "")] * killed + [(m, mutate.SURVIVED, "")] * survived
    assert not mutate.table(rows(9, 1))[1] and mutate.table(rows(8, 1))[1]
    assert mutate.table(rows(8, 1) + [(m, mutate.EQUIVALENT, "")] * 5 + [(m, mutate.UNCOVERED, "")] * 5)[1]
    assert mutate.table(rows(8, 1) + [(m, mutate.TIMED, "")])[0][1].split()[1:] == ["10", "8", "1", "1", "0", "0"]

def test_a_default_is_reached_by_tests_of_its_function_and_a_constant_by_uses_of_its_name():
    """Both lines run at import, before any test. Searched by these lines alone, no test would be found."""
    text = "LIMIT = 3\ndef f(a, b=2):\n    return a < LIMIT\n"
    found = {m.old: mutate.reached(m, {"f.py": text, "g.py": "x = 1\ny = f.LIMIT\n"}) for m in mutants("f.py", text)}
    assert found["LIMIT = 3"] == {("f.py", 1), ("f.py", 3), ("g.py", 2)}
    by_default = {tuple(lines) for old, lines in found.items() if "b=2" in old}
    assert by_default == {(("f.py", 3),)}

def test_tests_are_chosen_by_the_lines_that_they_and_their_fixtures_execute():
    """Only the first test that uses a shared fixture executes its lines. The other tests depend on them as well."""
    [m] = mutants("f.py", "def f(a, b): return a == b")
    rows = (
        ("slow", 5, {("f.py", 1)}, []),
        ("quick", 1, {("f.py", 1)}, []),
        ("other", 1, {("f.py", 2)}, []),
        ("by", 2, set(), ["made"]),
    )
    tests = {f"t.py::{name}": dict(seconds=seconds, lines=lines, fixtures=used) for name, seconds, lines, used in rows}
    fixtures = {"made": {"seconds": 1.0, "lines": {("f.py", 1)}}}
    assert mutate.chosen_tests(m, {}, tests, fixtures, 99) == (["t.py::quick", "t.py::by", "t.py::slow"], 9)
    assert mutate.chosen_tests(m, {}, tests, fixtures, 4)[0] == ["t.py::quick", "t.py::by"]
    assert mutate.chosen_tests(m, {}, tests, fixtures, 0)[0] == ["t.py::quick"]

TOY = """def clipped(x, low=0):
    if x < low:
        return low
    return x

def unused(x):
    return x + 1
"""
TOY_TEST = """import toy_module

def test_clipped():
    assert toy_module.clipped(-2) == 0 and toy_module.clipped(3) == 3
"""
PLAY = """import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import mutate, pytest, torch
here = Path(".").resolve()
quiet = lambda found, **_: found
for row in mutate.run(here, here / "out", ["toy_module.py"], ["test_toy_module.py"], None, 0, 1, 30, quiet):
    print(f"row: {{row[1]}}: {{row[0].old}} -> {{row[0].new}}")
"""

@pytest.mark.slow
def test_a_toy_module_with_a_toy_test(tmp_path):
    """The right mutants are killed, survive or are uncovered. A second run tries none of them again."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "toy_module.py").write_text(TOY)
    (tmp_path / "tests" / "test_toy_module.py").write_text(TOY_TEST)
    (tmp_path / "tests" / "conftest.py").write_text("")
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\npythonpath = ['.']\n")
    def play():
        script = PLAY.format(tests=str(ROOT / "tests"))
        return subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
                              env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    done = play()
    rows = [line.removeprefix("row: ") for line in done.stdout.splitlines() if line.startswith("row: ")]
    counts = Counter(row.split(":")[0] for row in rows)
    assert counts == {"killed": 4, "survived": 1, "uncovered": 4}, done.stdout + done.stderr
    assert "survived: if x < low: -> if x <= low:" in rows
    results = tmp_path / "out" / "results.csv"
    before = results.read_text()
    assert play().stdout == done.stdout and results.read_text() == before and before.count("\n") == 6
    (tmp_path / "tests" / "test_toy_module.py").write_text(TOY_TEST.replace("== 0", "<= 0"))
    assert "survived: def clipped(x, low=0):" not in play().stdout and results.read_text().count("\n") == 11
