"""The mutation tool: which mutants it makes, what it leaves alone, and that it tells a killed mutant from one that survives."""
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
    """A kind that makes nothing, or text that is cut at the wrong place, would not show in a table of killed mutants."""
    assert {m[1] for m in changes(line)} == set(new)

def test_columns_are_counted_in_characters_and_not_in_bytes():
    """ast counts bytes: after a letter with an accent, the change would land on the wrong character."""
    assert changes("y = ('é', a < b)") == {("y = ('é', a < b)", f"y = ('é', a {op} b)") for op in ("<=", ">")}

def test_words_for_people_are_left_alone():
    """A changed message proves nothing about the code, and a changed help text that no test reads would count as a survivor."""
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
    assert {m.old for m in mutants("f.py", text)} == {'p.add_argument(help="test" + x)', 'p.error(f"{x + 1} before" + str(1 + 1))'}

@pytest.mark.parametrize("file", mutate.FILES)
def test_a_mutant_differs_from_the_file_in_one_place(file):
    """Every mutant can be read by Python, and the file outside of the changed node is as it was."""
    text = (ROOT / file).read_text()
    found = mutants(file, text)
    assert len(found) > 40 and {m.kind for m in found} >= {"condition fixed", "arguments swapped", "constant"}
    for m in found:
        assert 0 <= m.start < m.end <= len(text) and text[m.start:m.end] != m.text and m.old != m.new
    for m in found[::25]:
        ast.parse(text[:m.start] + m.text + text[m.end:])

def test_listed_equivalents_are_still_in_the_code():
    """An entry whose text was changed hides nothing any more, but a reader would believe that it does."""
    known = {(m.file, m.function, m.old, m.new) for file in mutate.FILES for m in mutants(file, (ROOT / file).read_text())}
    listed = mutate.equivalents()
    assert not listed.keys() - known
    assert all(len(reason) > 10 for reason in listed.values())

def test_one_survivor_in_ten_is_not_too_many():
    """Of those that were tried: what no test executes, or what changes nothing, must not make the share smaller."""
    m = mutants("f.py", "y = a == b")[0]
    rows = lambda killed, survived: [(m, mutate.KILLED, "")] * killed + [(m, mutate.SURVIVED, "")] * survived
    assert not mutate.table(rows(9, 1))[1] and mutate.table(rows(8, 1))[1]
    assert mutate.table(rows(8, 1) + [(m, mutate.EQUIVALENT, "")] * 5 + [(m, mutate.UNCOVERED, "")] * 5)[1]
    assert mutate.table(rows(8, 1) + [(m, mutate.TIMED, "")])[0][1].split()[1:] == ["10", "8", "1", "1", "0", "0"]

def test_a_default_is_reached_by_tests_of_its_function_and_a_constant_by_uses_of_its_name():
    """Both lines run at import, before any test: by their own lines no test would be found."""
    text = "LIMIT = 3\ndef f(a, b=2):\n    return a < LIMIT\n"
    found = {m.old: mutate.reached(m, {"f.py": text, "g.py": "x = 1\ny = f.LIMIT\n"}) for m in mutants("f.py", text)}
    assert found["LIMIT = 3"] == {("f.py", 1), ("f.py", 3), ("g.py", 2)}
    assert {lines for old, lines in ((o, tuple(s)) for o, s in found.items()) if "b=2" in old} == {(("f.py", 3),)}

def test_tests_are_chosen_by_the_lines_that_they_and_their_fixtures_execute():
    """Only the first test that asks for a shared fixture executes its lines: the others depend on them as well."""
    [m] = mutants("f.py", "def f(a, b): return a == b")
    tests = {f"t.py::{name}": {"seconds": seconds, "lines": lines, "fixtures": used} for name, seconds, lines, used in (
        ("slow", 5, {("f.py", 1)}, []), ("quick", 1, {("f.py", 1)}, []), ("other", 1, {("f.py", 2)}, []), ("by", 2, set(), ["made"]))}
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
    """Killed, survived and uncovered for the right mutants; the second time nothing is tried again."""
    (tmp_path / "tests").mkdir()
    for name, text in (("toy_module.py", TOY), ("tests/test_toy_module.py", TOY_TEST), ("tests/conftest.py", ""),
                       ("pyproject.toml", "[tool.pytest.ini_options]\npythonpath = ['.']\n")):
        (tmp_path / name).write_text(text)
    def play():
        return subprocess.run([sys.executable, "-c", PLAY.format(tests=str(ROOT / "tests"))], cwd=tmp_path, capture_output=True,
                              text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    done = play()
    rows = [line.removeprefix("row: ") for line in done.stdout.splitlines() if line.startswith("row: ")]
    assert Counter(r.split(":")[0] for r in rows) == {"killed": 4, "survived": 1, "uncovered": 4}, done.stdout + done.stderr
    assert "survived: if x < low: -> if x <= low:" in rows
    results = tmp_path / "out" / "results.csv"
    before = results.read_text()
    assert play().stdout == done.stdout and results.read_text() == before and before.count("\n") == 6
    (tmp_path / "tests" / "test_toy_module.py").write_text(TOY_TEST.replace("== 0", "<= 0"))
    assert "survived: def clipped(x, low=0):" not in play().stdout and results.read_text().count("\n") == 11
