"""The seeded numbers of the homeworks: graded to 0.1 percent, without ever showing a value."""
import importlib
import json

import pytest

from assignments import seeded
from assignments.exercise import HOMEWORKS, ROOT

OF = [h for h in HOMEWORKS if (ROOT / "assignments" / h / "numbers.py").exists()]

def numbers_of(homework):
    return importlib.import_module(f"assignments.{homework}.numbers").numbers

@pytest.mark.parametrize("homework", OF)
def test_each_seed_has_its_own_numbers_and_rounded_ones_are_right(homework):
    """A neighbor's numbers must not pass; five digits must. The handout says what each number is."""
    mine, other = numbers_of(homework)(17), numbers_of(homework)(18)
    assert all(seeded.is_right(float(f"{x:.5g}"), x) for x in mine.values())
    assert not any(seeded.is_right(other[name], x) or seeded.is_right(1.002 * x, x) for name, x in mine.items())
    handout = (ROOT / "assignments" / homework / "README.md").read_text()
    assert all(f"| `{name}` |" in handout for name in mine) and numbers_of(homework)(17) == mine

@pytest.mark.parametrize("bad", ["0.5", True, None, [1], float("nan"), float("inf"), 10 ** 400])
def test_what_is_no_number_is_not_right(bad):
    """JSON holds texts, NaN and integers of any length. One of them must not end the grading of a class."""
    assert not seeded.is_right(bad, 0.5)

@pytest.mark.parametrize("homework", OF)
def test_the_report_shows_no_value(homework, tmp_path, capsys):
    """A student may see it."""
    want = numbers_of(homework)(17)
    wrong = min(want)
    (tmp_path / "numbers.json").write_text(json.dumps({**want, wrong: want[wrong] + 1}))
    seeded.main(numbers_of(homework), None, ["--seed", "17", "--grade", str(tmp_path / "numbers.json")])
    text = capsys.readouterr().out
    assert text.count("not right") == 1 and f"{len(want) - 1} of {len(want)}" in text
    assert not any(f"{x:.3g}" in text for x in want.values())

@pytest.mark.parametrize("text", ["", "[1]", "{", "x" * (1 << 17)])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, text):
    """No traceback."""
    (tmp_path / "numbers.json").write_text(text)
    with pytest.raises(SystemExit) as error:
        seeded.read(tmp_path / "numbers.json")
    assert "\n" not in str(error.value)
