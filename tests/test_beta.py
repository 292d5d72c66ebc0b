"""study/beta.py: DPO's theorem on the exact world, and how runs are collected."""
import json

import pytest

from study import beta

@pytest.fixture(scope="module")
def rows():
    return beta.exact_rows(seeds=[0])

def of(rows, labels, column):
    """A column of the rows with these labels, in the order of beta."""
    return [row[column] for row in rows if row[1] == labels]

def test_with_drawn_labels_dpo_ends_at_the_rlhf_optimum(rows):
    """The theorem of the DPO paper, at every beta. With the better answer always chosen it does not apply."""
    for column in (4, 5):
        assert of(rows, "bradley_terry", column) == pytest.approx(of(rows, "optimum", column), abs=1e-4)
        assert of(rows, "best", column) != pytest.approx(of(rows, "optimum", column), abs=0.1)

def test_a_larger_beta_keeps_the_policy_closer_only_if_labels_are_drawn(rows):
    """Which way beta goes is what everyone gets backwards: the KL falls, and so does the reward."""
    for column in (4, 5):
        values = of(rows, "bradley_terry", column)
        assert values == sorted(values, reverse=True) and values[0] - values[-1] > 0.5
    best = of(rows, "best", 5)[:4]    # up to beta 1: all mass is on the best answer
    assert max(best) - min(best) < 0.01 and min(best) > max(of(rows, "bradley_terry", 5)) - 1e-3

def stored(folder, **flags):
    """A finished run with these flags."""
    folder.mkdir()
    args = {"data": "toy", "loss": "dpo", "labels": None, "beta": 0.3, "seed": 2} | flags
    (folder / "args.json").write_text(json.dumps({"script": "train_pref.py", "args": args}))
    measures = {"after": {"reward": [0.9, 0.8, 1.0], "kl": [2.0, 1.0, 3.0]}}
    samples = [{"prompt": "a", "after": "b"}]
    (folder / "eval.json").write_text(json.dumps(
        {"prompts": 1, "n_samples": 1, "measures": measures, "samples": samples}))
    return str(folder)

def test_runs_are_collected_drawn_and_refused_if_they_are_of_another_kind(tmp_path, capsys, monkeypatch):
    """An old run has no --labels: its labels were the best."""
    monkeypatch.setattr(beta, "exact_rows", lambda: [("exact", "optimum", 0.3, 0, 0.5, 1.0)])
    runs = [stored(tmp_path / "a"), stored(tmp_path / "b", labels="bradley_terry", beta=1.0)]
    beta.main(["--run", *runs, "--out", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "beta.csv").read_text().splitlines()
    assert lines == ["world,labels,beta,seed,reward,kl", "exact,optimum,0.3,0,0.5,1", "toy,best,0.3,2,0.9,2",
                     "toy,bradley_terry,1,2,0.9,2"]
    assert (tmp_path / "out" / "beta.png").exists()
    for flags in ({"loss": "ipo"}, {"data": "hh"}):
        with pytest.raises(SystemExit):
            beta.main(["--run", stored(tmp_path / f"c{len(str(flags))}", **flags), "--out", str(tmp_path / "out")])
        assert "expected a run of --loss dpo on the toy world" in capsys.readouterr().err
