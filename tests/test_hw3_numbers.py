"""The seeded numbers of hw3: graded to 0.1 percent, without ever showing a value."""
import json

import pytest

from assignments.hw3 import numbers

def test_each_seed_has_its_own_numbers_and_rounded_ones_are_right():
    """A neighbor's numbers must not pass; five digits must."""
    mine, other = numbers.numbers(17), numbers.numbers(18)
    assert all(numbers.grade(17, {name: float(f"{x:.5g}") for name, x in mine.items()}).values())
    assert not any(numbers.grade(17, other).values())
    assert not any(numbers.grade(17, {name: 1.002 * x for name, x in mine.items()}).values())

@pytest.mark.parametrize("bad", ["0.5", True, None, [1], float("nan"), float("inf"), 10 ** 400])
def test_what_is_no_number_is_not_right(bad):
    """JSON holds texts, NaN and integers of any length. One of them must not end the grading of a class."""
    assert not numbers.is_right(bad, 0.5)

def test_the_report_shows_no_value(tmp_path, capsys):
    """A student may see it."""
    want = numbers.numbers(17)
    (tmp_path / "numbers.json").write_text(json.dumps({**want, "jsd_kl": 0.1}))
    numbers.main(["--seed", "17", "--grade", str(tmp_path / "numbers.json")])
    text = capsys.readouterr().out
    assert text.count("not right") == 1 and "3 of 4" in text
    assert not any(f"{x:.3g}" in text for x in want.values())

@pytest.mark.parametrize("text", ["", "[1]", "{", "x" * (1 << 17)])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, text):
    """No traceback."""
    (tmp_path / "numbers.json").write_text(text)
    with pytest.raises(SystemExit) as error:
        numbers.read(tmp_path / "numbers.json")
    assert "\n" not in str(error.value)
