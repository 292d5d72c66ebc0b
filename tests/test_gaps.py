"""
Reward gaps, from the rewards of sampled pairs and from the score columns of files to odpo's loss.
"""
import csv
import json
import math
import shutil

import pytest
import torch

import data
import losses
import sampling
import train_pref
from losses import LOSSES
from support import sources
from support.scores import gap_of
from test_data import write_jsonl
from test_runs import first_log, here, pref, world    # noqa: F401 - here and world are fixtures

# ---------------------------------------------------------------------------------------------------------------------
# a row of a file

@pytest.mark.parametrize("record, gap", [
    ({"chosen_score": 8, "rejected_score": 3.5}, 4.5),
    ({"score_chosen": 7.0, "score_rejected": 9.0}, -2.0),    # UltraFeedback has pairs whose chosen answer has less
    ({"chosen_score": "1e1", "rejected_score": " 4 "}, 6.0),    # a .csv holds text
    ({"chosen_score": 1, "rejected_score": 0, "score_chosen": 9, "score_rejected": 2}, 1.0)])
def test_the_gap_is_the_score_of_chosen_minus_that_of_rejected(record, gap):
    """Each of the two pairs of columns is read, numbers and text alike. With the sign wrong, odpo helps the worse."""
    assert gap_of(record, "here") == gap

@pytest.mark.parametrize("record, field, words", [
    ({"chosen_score": None, "rejected_score": 1}, "chosen_score", "got null"),
    ({"chosen_score": 1, "rejected_score": "good"}, "rejected_score", 'got "good"'),
    ({"score_chosen": 1, "score_rejected": math.nan}, "score_rejected", "expected a number"),
    ({"chosen_score": math.inf, "rejected_score": 1}, "chosen_score", "expected a number"),
    ({"chosen_score": True, "rejected_score": 1}, "chosen_score", "got true"),
    ({"chosen_score": [3], "rejected_score": 1}, "chosen_score", "got [3]"),
    ({"chosen_score": 1}, "rejected_score", "missing"),
    ({"score_rejected": 1}, "score_chosen", "missing"),
    ({"prompt": "a", "chosen": "b"}, "chosen_score", "missing")], ids=str)
def test_a_score_that_is_no_number_is_named(record, field, words):
    """NaN in one row would make the loss of its batch NaN, and a missing score taken for 0 would turn a pair round."""
    with pytest.raises(ValueError) as e:
        gap_of(record, "pairs.jsonl, row 7")
    assert str(e.value).startswith(f"pairs.jsonl, row 7, field {field!r}: ") and words in str(e.value)
    assert "\n" not in str(e.value)

SCORED = [{"prompt": f"the plot {i}", "chosen": f" was fine {i}", "rejected": " was dull",
           "chosen_score": 5 + i / 4, "rejected_score": 4} for i in range(24)]

def test_a_file_has_gaps_only_where_they_are_asked_for(tmp_path, tokenizer):
    """A run of dpo on a file with an empty score would otherwise end with an error about a column it does not read."""
    broken = [*SCORED[:3], SCORED[3] | {"chosen_score": None}]
    path = str(tmp_path / "pairs.jsonl")
    write_jsonl(tmp_path / "pairs.jsonl", broken)
    splits, _ = sources.load_examples(path)
    assert [set(example) for example in splits["train"]] == [{"prompt", "chosen", "rejected"}] * 4
    with pytest.raises(ValueError, match=r"row 4, field 'chosen_score': expected a number"):
        sources.load_examples(path, gaps=True)
    write_jsonl(tmp_path / "good.jsonl", SCORED)
    rows = data.load_rows(str(tmp_path / "good.jsonl"), None, tokenizer, 48, gaps=True, say=lambda line: None)
    assert sorted(row["gap"] for part in rows.values() for row in part) == [1 + i / 4 for i in range(24)]
    assert data.collate(rows["train"][:3])["gap"].tolist() == [row["gap"] for row in rows["train"][:3]]

def test_a_csv_has_gaps_too(tmp_path):
    """Every cell of a .csv is text."""
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(SCORED[0]))
        writer.writeheader()
        writer.writerows(SCORED)
    splits, _ = sources.load_examples(str(tmp_path / "pairs.csv"), gaps=True)
    assert [example["gap"] for example in splits["train"]] == [1 + i / 4 for i in range(24)]

def test_ultrafeedbacks_scores_are_read(tmp_path):
    """The hub's columns, with messages on both sides. A tie is a gap of 0, not a missing one."""
    messages = lambda answer: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    row = {"prompt": "Hi", "chosen": messages("Yes."), "rejected": messages("No.")}
    scores = [{"score_chosen": 8.5, "score_rejected": 2}, {"score_chosen": 4, "score_rejected": 4}]
    write_jsonl(tmp_path / "train_prefs.jsonl", [row | two for two in scores])
    splits, _ = sources.load_examples("ultrafeedback", str(tmp_path), gaps=True)
    assert [example["gap"] for example in splits["train"]] == [6.5, 0.0]

# ---------------------------------------------------------------------------------------------------------------------
# rows and batches

def rows_of(gaps):
    return [{"prompt": [1, i], "chosen": [2, 3], "rejected": [4], "gap": gap} for i, gap in enumerate(gaps)]

def test_the_fingerprint_covers_the_gap():
    """--resume compares it. Scores that changed since the run began would continue it with another loss."""
    first, same, other = ({"train": rows_of([1.0, x]), "val": []} for x in (2.0, 2.0, 2.5))
    assert data.fingerprint(first) == data.fingerprint(same) != data.fingerprint(other)
    plain = {"train": [{k: v for k, v in row.items() if k != "gap"} for row in first["train"]], "val": []}
    assert data.fingerprint(plain) != data.fingerprint(first)

def test_a_flipped_label_turns_the_gap_round():
    """The rewards stay with their completions, so a pair with a wrong label has a negative gap, as a drawn one has."""
    rows = rows_of([1.0, 2.0, 3.0, 4.0])
    assert data.flip_labels(rows, 0.5, seed=0) == 2
    for row, gap in zip(rows, (1.0, 2.0, 3.0, 4.0)):
        assert row["gap"] == (gap if row["chosen"] == [2, 3] else -gap)
    assert sum(row["gap"] < 0 for row in rows) == 2
    without = [{"prompt": [1], "chosen": [2], "rejected": [3]}]
    data.flip_labels(without, 1.0, seed=0)
    assert "gap" not in without[0]

def test_both_layouts_of_a_batch_hold_the_gaps():
    """--share_prefix makes other tensors of the same rows."""
    for share_prefix in (False, True):
        assert data.collate(rows_of([1.5, -2.0]), share_prefix)["gap"].tolist() == [1.5, -2.0]
    assert "gap" not in data.collate([{"prompt": [1], "chosen": [2], "rejected": [3]}])

# ---------------------------------------------------------------------------------------------------------------------
# runs

@pytest.fixture
def spy(monkeypatch):
    """A loss that keeps the lengths and gaps of each pair that it sees, {(chosen_len, rejected_len, gap)}."""
    seen = set()
    @losses.register(needs_ref=False, needs_gap=True)
    def spied(pairs):
        columns = (pairs.chosen_lens, pairs.rejected_lens, pairs.reward_gaps)
        seen.update(zip(*(x.tolist() for x in columns)))
        return losses.slic(pairs)
    monkeypatch.setitem(LOSSES, "spied", LOSSES.pop("spied"))
    return seen

@pytest.mark.parametrize("noise", ["0", "0.25"])
def test_the_gaps_of_a_run_are_those_of_its_pairs(here, tmp_path, spy, noise):    # noqa: F811
    """Computed from the rewards in the pairs' file. Gaps of another row, or of all 1, would still train."""
    pref(tmp_path / "run", "--loss", "spied", "--label_noise", noise, "--max_steps", "8", "--eval_every", "4")
    facts, want = json.loads((tmp_path / "run" / "args.json").read_text()), set()
    for line in open(facts["pairs"]):
        record = json.loads(line)
        n, m = (len(record[side]["tokens"]) for side in ("chosen", "rejected"))
        gap = torch.tensor(record["chosen"]["reward"] - record["rejected"]["reward"]).item()
        want |= {(n, m, gap), (m, n, -gap)} if noise != "0" else {(n, m, gap)}
    found = spy - {(1.0, 1.0, 1.0)}    # the pairs of the trial before a run
    assert found and found <= want and (noise != "0") == any(gap < 0 for _, _, gap in found)

def test_odpos_first_loss_on_the_toy_world_by_hand(here, tmp_path):    # noqa: F811
    """While policy == reference, h = 0 and L = log(1 + gap^alpha): the mean over the validation pairs."""
    pref(tmp_path / "run", "--loss", "odpo", "--alpha", "0.5")
    facts = json.loads((tmp_path / "run" / "args.json").read_text())
    rows = sampling.read_pairs(facts["pairs"], gaps=True)["val"]
    assert all(row["gap"] > 0 for row in rows)
    want = sum(math.log(1 + math.sqrt(row["gap"])) for row in rows) / len(rows)
    assert first_log(tmp_path / "run")[0] == pytest.approx(want, rel=1e-5)

@pytest.fixture
def folder(in_tmp, own_tokenizer, sft_run):
    """A folder with an SFT run, `sft`, and a file of pairs with scores, `scored.jsonl`."""
    shutil.copytree(sft_run, "sft")
    write_jsonl(in_tmp / "scored.jsonl", SCORED)
    return in_tmp

SHORT = ("--init_from", "sft", "--max_steps", "2", "--eval_every", "2", "--batch_size", "8", "--n_show", "0")

def test_odpo_on_a_file_with_scores(folder):
    """The first loss by hand, with gaps of 1, 1.25, ... in the file's units. --mean_logps leaves them as they are."""
    for name, more in (("sums", ()), ("means", ("--mean_logps", "--share_prefix"))):
        train_pref.main(["--data", "scored.jsonl", "--loss", "odpo", "--scaling", "linear", "--alpha", "0.3",
                         "--n_val", "9", "--out_dir", name, *SHORT, *more])
        rows = data.load_rows("scored.jsonl", None, data.get_tokenizer("scored.jsonl"), 64, n_val=9, gaps=True,
                              say=lambda line: None)["val"]
        want = sum(math.log1p(math.exp(0.3 * row["gap"])) for row in rows) / len(rows)
        assert first_log(folder / name)[0] == pytest.approx(want, rel=1e-5)

@pytest.mark.parametrize("given, words", [
    ("plain.jsonl", ("plain.jsonl, row 1, field 'chosen_score': missing", "chosen_score and rejected_score", "dpo")),
    ("hole.jsonl", ("hole.jsonl, row 2, field 'rejected_score': expected a number", "got null")),
    ("hh", ("hh: its pairs have no rewards", "--data toy, imdb", "dpo")),
    ("tldr", ("tldr: its pairs have no rewards",))])
def test_data_without_rewards_end_odpo_in_one_line(folder, capsys, given, words):
    """Before training, and for a data set of the hub before it is downloaded."""
    scores = ("chosen_score", "rejected_score")
    write_jsonl(folder / "plain.jsonl", [{k: v for k, v in row.items() if k not in scores} for row in SCORED])
    write_jsonl(folder / "hole.jsonl", [SCORED[0], SCORED[1] | {"rejected_score": None}, *SCORED[2:]])
    with pytest.raises(SystemExit) as end:
        train_pref.main(["--data", given, "--loss", "odpo", "--out_dir", "run", *SHORT])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and all(word in err for word in words), err
    assert not (folder / "run").exists()

def test_mean_logps_is_refused_where_lengths_count(capsys):
    """With means per token every completion counts as one token, so rdpo would be dpo and --alpha without an effect."""
    with pytest.raises(SystemExit):
        train_pref.get_args(["--loss", "rdpo", "--mean_logps"])
    err = capsys.readouterr().err
    assert "--mean_logps has no effect on --loss rdpo" in err and err.count("\n") == 1
