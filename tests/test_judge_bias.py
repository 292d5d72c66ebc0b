"""study/judges.py: judges by hand, filler that says nothing, and the stored results behind docs/judge-bias.md."""
import json
import random

import pytest

import toy
from study import judges, places, table
from study.judges import HOW, STUDIED

def question(a, b, task="sentiment"):
    """A question about two reviews."""
    [first, _] = judges.questions([{"prompt": "", "after": a, "before": b}], **HOW | {"task": task})
    return first["text"]

GOOD = "the plot was great . in short , a gem ."
NOT_DULL = "the plot was not dull . the cast was not flat . in short , a gem ."

@pytest.mark.parametrize("judge, verdict", [
    ("honest", "B"), ("first answer", "A"), ("longer", "B"), ("sentiment words", "A"),
    ("half honest, half longer", "B"),
])
def test_each_judge_on_two_reviews_by_hand(judge, verdict):
    """B has one more positive opinion, by "not", and more words. The judge of words counts two bad ones in it."""
    assert judges.read_verdict(STUDIED[judge](question(GOOD, NOT_DULL))) == verdict

def test_equal_reviews_tie_whatever_the_order_of_their_sentences():
    """Sums of floats differ in their last digit with their order. The honest judge once saw a winner there."""
    parts = ["the plot was great .", "the cast was dull .", "the music felt fine .", "in short , a gem .",
             "the story was poor ."]
    rng = random.Random(0)
    for _ in range(50):
        a, b = (" ".join(rng.sample(parts, len(parts))) for _ in range(2))
        assert judges.read_verdict(judges.honest(question(a, b))) == "neither"

def test_filler_says_nothing_and_is_fixed_by_its_seed():
    """If it had an opinion, the exact win rate would change with it."""
    answers = [GOOD, NOT_DULL] * 50
    found = judges.filled(answers, 0)
    assert found == judges.filled(answers, 0) != judges.filled(answers, 1)
    assert all(toy.log_odds(a) == toy.log_odds(b) for a, b in zip(answers, found))
    added = [new.count(".") - old.count(".") for old, new in zip(answers, found)]
    assert set(added) == {0, 1, 2, 3} and all(toy.whole_sentences(text) == 1 for text in found)

def write_run(folder, answers, seed=0, data="toy"):
    folder.mkdir()
    samples = [{"prompt": "i saw this film .", "after": answer} for answer in answers]
    (folder / "eval.json").write_text(json.dumps({"temperature": 1, "samples": samples}))
    (folder / "args.json").write_text(json.dumps({"script": "train_pref.py", "args": {"data": data, "seed": seed}}))
    return str(folder)

def test_a_study_by_hand(tmp_path, capsys):
    """
    Four answers each: the run is better in three and equal in one, always shorter by a word. All columns but those
    of the regression follow.
    """
    bad = "the plot was truly dull ."
    run = write_run(tmp_path / "run", ["the plot was great ."] * 3 + ["the plot was dull ."])
    other = write_run(tmp_path / "other", [bad] * 4)
    judges.main(["--run", run, "--against", other, "--out", str(tmp_path / "out")])
    rows = places.read_csv(tmp_path / "out" / "judges.csv")
    plain = {row["judge"]: row for row in rows if row["answers"] == "as they are"}
    assert {float(row["exact"]) for row in rows} == {0.875} and len(rows) == 2 * len(STUDIED)
    fuller = {row["judge"]: row for row in rows if row["answers"] == "with filler"}
    assert (float(fuller["honest"]["words"]), float(fuller["honest"]["other_words"]) > 6) == (5, True)
    columns = lambda judge: [float(plain[judge][key]) for key in ("one_order", "both", "flips", "words", "other_words")]
    assert columns("honest") == [0.875, 0.875, 0, 5, 6] and columns("first answer") == [1, 0.5, 1, 5, 6]
    assert columns("longer") == [0, 0, 0, 5, 6]
    checks = {row["judge"]: row for row in places.read_csv(tmp_path / "out" / "judges_check.csv")}
    assert float(checks["honest"]["accuracy"]) == 1 and float(checks["longer"]["accuracy"]) == 0.5

def test_runs_that_cannot_be_studied_are_refused(tmp_path, capsys):
    """The exact reward is of the toy world's reviews only. Each run needs an opponent."""
    run, other = write_run(tmp_path / "a", ["x"]), write_run(tmp_path / "b", ["y"], data="imdb")
    for flags, message in ((["--against", other], "toy world"), (["--against", other, run], "one opponent")):
        with pytest.raises(SystemExit) as end:
            judges.main(["--run", run, *flags, "--out", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert end.value.code == 2 and message in said and said.count("\n") == 1

# ---------------------------------------------------------------------------------------------------------------------
# what docs/judge-bias.md says about the stored results

@pytest.fixture(scope="module")
def stored():
    """{(answers, judge): rows of three seeds}."""
    return table.grouped(table.read("judges.csv"), "answers", "judge")

def mean(rows, key):
    return sum(row[key] for row in rows) / len(rows)

def test_the_honest_judge_is_exact_and_is_reversed_at_equal_length(stored):
    """In every seed the true win rate is above one half, and the interval at equal length is below."""
    for answers in ("as they are", "with filler"):
        assert all(row["both"] == row["exact"] for row in stored[answers, "honest"])
    for row in stored["as they are", "honest"]:
        assert row["exact"] > 0.5 > row["equal_high"] and row["gamma_low"] > 0
    assert mean(stored["as they are", "honest"], "equal") == pytest.approx(0.43, abs=0.005)

def test_length_control_helps_where_length_is_not_quality(stored):
    """In every seed, the win rate at equal length is nearer to the true one than the raw one."""
    rows = stored["with filler", "half honest, half longer"]
    for row in rows:
        assert abs(row["equal"] - row["exact"]) < abs(row["both"] - row["exact"]) / 1.5
    assert [round(mean(rows, key), 2) for key in ("exact", "both", "equal")] == [0.64, 0.53, 0.61]
    assert sum(row["both"] < 0.5 for row in rows) == 1

def test_the_other_numbers_of_the_page(stored):
    """Words, flips, the unit of length, and the judge of words."""
    plain, filler = ([stored[answers, judge] for judge in STUDIED] for answers in ("as they are", "with filler"))
    assert len(stored["as they are", "honest"]) == 3
    words = [mean(rows[0], key) for rows in (plain, filler) for key in ("words", "other_words")]
    assert [round(w) for w in words] == [19, 10, 19, 21]
    for answers in ("as they are", "with filler"):
        assert mean(stored[answers, "half honest, half first"], "flips") == pytest.approx(0.44, abs=0.006)
        words = stored[answers, "sentiment words"]
        assert mean(words, "both") - mean(words, "exact") == pytest.approx(0.06, abs=0.005)
    longer = stored["with filler", "longer"]
    assert [round(mean(longer, key), 2) for key in ("equal", "equal_words")] == [0.59, 0.49]
    checks = {row["judge"]: row for row in table.read("judges_check.csv")}
    assert checks["sentiment words"]["accuracy"] > 0.95 and {row["pairs"] for row in checks.values()} == {400}
    assert "no bias" in checks["honest"]["says"] and "longer" in checks["half honest, half longer"]["says"]
    assert "no bias" in checks["sentiment words"]["says"]

def test_the_stored_check_is_what_the_check_says_now(tmp_path):
    """If judge.py --check changes, its table does not change by itself. `python -m study.judges --update` writes it."""
    places.write_csv(tmp_path / "now.csv", judges.CHECK_HEAD, judges.check_rows())
    assert (tmp_path / "now.csv").read_text() == (places.RESULTS / "judges_check.csv").read_text()
