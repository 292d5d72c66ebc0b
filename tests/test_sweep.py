"""The study: its comparisons, sweeps that are interrupted and resumed, and pictures that are drawn from its files."""
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

import eval
import measures
from losses import LOSSES
from study import claims, pictures, places, sweep, table

HEADS = {"sweep.csv": "recipe,seed,measure,mean,low,high\n", "curves.csv": "recipe,seed,step,split,metric,value\n"}

def results(folder, rows=(), curves=()):
    for name, lines in (("sweep.csv", [(*row, row[-1], row[-1]) for row in rows]), ("curves.csv", curves)):
        (folder / name).write_text(HEADS[name] + "".join(",".join(map(str, line)) + "\n" for line in lines))
    return folder

# ---------------------------------------------------------------------------------------------------------------------
# verdicts

def test_verdicts_by_hand():
    """A mean on the right side is not enough. The whole interval must be there."""
    verdict = claims.verdict
    assert verdict(0.1, 0.3, ">", 0) == "holds" and verdict(-0.1, 0.3, ">", 0) == "cannot be told apart"
    assert verdict(-0.3, -0.1, ">", 0) == "does not hold" and verdict(-0.3, -0.1, "<", 0) == "holds"
    assert verdict(-0.02, 0.01, "near", 0.03) == "holds"
    assert verdict(-0.02, 0.05, "near", 0.03) == "cannot be told apart"
    assert claims.verdict(0.04, 0.05, "near", 0.03) == "does not hold"

def test_the_interval_is_students():
    """
    With three seeds, 1.96 standard errors cover 81%. For 95%, Student's t with two degrees of freedom gives 4.303.
    """
    mean, low, high = claims.interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2 and high - mean == pytest.approx(4.303 / 3**0.5) and mean - low == pytest.approx(high - mean)
    assert math.isinf(claims.interval(np.array([1.0]))[2])    # one seed says nothing
    rng, inside = np.random.default_rng(0), 0
    for _ in range(2000):
        _, low, high = claims.interval(rng.normal(size=3))
        inside += low <= 0 <= high
    assert 0.93 < inside / 2000 < 0.97

def test_rank_correlation_by_hand():
    """Ties share a rank. Any rise counts, also one that is no straight line."""
    order = measures.rank_correlation
    assert order([0, 1, 2, 3], [0, 1, 10, 1000]) == pytest.approx(1)
    assert order([0, 1, 2], [3, 2, 1]) == pytest.approx(-1)
    assert measures.ranks(np.array([5.0, 1.0, 5.0])).tolist() == [1.5, 0, 1.5]
    assert math.isnan(order([0, 1, 2], [0, math.nan, 2]))    # a missing value has no rank
    assert order([0, 1, 2, 3], [1, 0, 3, 2]) == pytest.approx(0.6)    # 1 - 6 * 4 / (4 * 15)

def test_a_measure_at_a_kl_is_read_off_between_two_points(tmp_path):
    """By reward alone, settings with a larger KL look better. Methods are compared at equal KL."""
    rows = [("sft", 0, "reward", 0.5), ("sft", 0, "kl", 0)]
    for beta, kl, reward in ((1, 1, 0.6), (2, 4, 0.9)):
        rows += [(f"dpo beta={beta}", 0, "reward", reward), (f"dpo beta={beta}", 0, "kl", kl)]
    for other in ("dpo_up", "dpo beta=1 T=0.5"):
        rows += [(other, 0, "reward", 0.1), (other, 0, "kl", 2)]
    s = claims.Sweep(results(tmp_path, rows))
    assert s.points("dpo") == ["dpo beta=1", "dpo beta=2"]
    assert s.at("dpo", 2.25) == pytest.approx([0.75])    # half way between the roots 1 and 2
    assert s.at("dpo", 0.25) == pytest.approx([0.55])    # between the SFT policy and the first point
    assert np.isnan(s.at("dpo", 5)).all()                # no value beyond the last point

def run_numbers(recipe, seed, found, rng):
    """(rows, curves) of one recipe and seed of world()."""
    rows, curves = [], []
    main = recipe in (*sweep.MAIN, "sft")
    for key, value in found.items():
        if main or not key.startswith("pooled"):
            rows.append((recipe, seed, key, value))
    if main:
        rows += [(f"{recipe} T={t}", seed, key, found[key]) for t in (0.5, 0) for key in ("win", "kl", "reward")]
    if recipe in sweep.CURVES:
        metrics = ("loss", "grad_norm", "logps/chosen", "logps/rejected",
                   "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")
        for step, split, metric in itertools.product(range(0, 481, 40), ("val", "train"), metrics):
            curves.append((recipe, seed, step, split, metric, 1 + (step - 200) ** 2 / 1e5 + 0.01 * rng.normal()))
    later = ()
    if recipe.startswith("along") and recipe in sweep.CURVES:
        later = itertools.product(range(40, 481, 40), {"reward": 1 / 600, "kl": 0.01, "proxy": 0.1}.items())
    if recipe.startswith("ppo "):    # over-optimization: the learned reward rises, the true one falls
        later = itertools.product((40, 80), {"reward": -1e-3, "kl": 0.01, "proxy": 1}.items())
    rows += [(f"{recipe} step-{step}", seed, key, step * slope) for step, (key, slope) in later]
    return rows, curves

def world(folder, seeds=(0, 1, 2)):
    """A sweep in which every claim's recipes exist: reward and KL by formula, with a little noise."""
    rng, rows, curves = np.random.default_rng(0), [], []
    keys = ("entropy", "length", "proxy", "pooled_4", "pooled_25", "distinct_2", "reward_positive", "reward_negative",
            "win", "trainable", "whole")
    for i, recipe in enumerate(sweep.RECIPES | sweep.SECOND):
        for seed in seeds:
            kl = 0 if recipe == "sft" else 0.3 * (i % 12) + 0.2
            found = {"kl": kl, "reward": 0.5 + 0.2 * kl**0.5} | {k: 1 + 0.1 * i + 0.01 * rng.normal() for k in keys}
            more_rows, more_curves = run_numbers(recipe, seed, found, rng)
            rows += more_rows
            curves += more_curves
    for n, seed in itertools.product((1, 2, 64), seeds):
        rows += [(f"best_of n={n}", seed, "kl", math.log(n)), (f"best_of n={n}", seed, "reward", 0.5 + n / 200)]
    return results(folder, rows, curves)

def test_every_claim_gets_a_verdict(tmp_path):
    """The verdicts need the two files only, not the runs."""
    claims.judge(world(tmp_path))
    text = table.claims_table(tmp_path)
    assert "highest, ppo beta=0.2 | 3 | -0.04 | -0.04 to -0.04 | < -0.01 | holds |" in text
    assert "highest, along_dpo | 3 | 0 | 0 to 0 |" in text
    assert len(claims.CLAIMS) == 19 and all(f"**{n}. " in text for n in claims.CLAIMS) and text.count("**") == 38

@pytest.mark.slow
@pytest.mark.usefixtures("painted")
def test_every_picture_is_drawn(tmp_path):
    """Pictures need the same two files only, so that a figure can be drawn again without the runs."""
    claims.judge(world(tmp_path))
    pictures.draw(tmp_path, tmp_path)
    for picture in pictures.PICTURES:
        assert (tmp_path / f"{picture.__name__}.png").stat().st_size > 10_000

def test_a_claim_is_judged_by_its_worst_comparison(tmp_path):
    """If two of three comparisons hold, the claim does not hold."""
    lines = [
        "claim,what,seeds,mean,low,high,says,verdict",
        "1,a,3,1,0.5,1.5,> 0,holds",
        "1,b,3,1,-1,3,> 0,cannot be told apart",
        "2,a,3,1,0.5,1.5,> 0,holds",
        "2,b,3,-1,-2,-0.5,> 0,does not hold",
        "3,a,3,1,0.5,1.5,> 0,holds",
        "3,b,3,1,0.5,1.5,,",
    ]
    (tmp_path / "claims.csv").write_text("\n".join(lines) + "\n")
    table_lines = table.claims_table(tmp_path).split("\n")
    verdicts = [line.split("** ")[1] for line in table_lines if line.startswith("**")]
    assert verdicts == [claims.SENTENCES[v] for v in ("cannot be told apart", "does not hold", "holds")]
    words = ("undecided", "does not hold: at least one", "holds: every")
    assert all(word in verdict for word, verdict in zip(words, verdicts))

def test_what_a_small_sweep_does_not_hold_is_left_out(tmp_path):
    """--quick has neither noise nor adapters. It gets no verdict on them, and their pictures do not fail."""
    rows = []
    for recipe, kl in (("sft", 0), ("dpo beta=0.1", 2)):
        for seed in (0, 1):
            for measure, value in (("kl", kl), ("reward", 0.5 + kl / 5), ("entropy", 1 - kl / 10)):
                rows.append((recipe, seed, measure, value + 0.01 * seed))
    claims.judge(results(tmp_path, rows))
    assert "4. cDPO" not in table.claims_table(tmp_path) and "1. DPO" in table.claims_table(tmp_path)
    pictures.draw(tmp_path, tmp_path)
    assert (tmp_path / "frontier.png").exists() and not (tmp_path / "adapters.png").exists()

# ---------------------------------------------------------------------------------------------------------------------
# the runs

TINY = "--max_steps 3 --eval_every 3 --batch_size 8 --lr 1e-3"
RECIPES = {
    "sft": "--n_layer 1 --n_head 2 --n_embd 32 --max_steps 40 --warmup_steps 5 --eval_every 40 --lr 1e-2",
    "dpo beta=0.1": f"--loss dpo --beta 0.1 {TINY} --n_prompts 24",
    "reward": f"{TINY} --n_prompts 24",
    "along_dpo": f"--loss dpo {TINY} --n_prompts 24 --keep_all",
    "ppo beta=0.1": "--max_steps 4 --eval_every 4 --batch_size 8 --rollout 16 --n_prompts 16 --keep_all",
}

@pytest.mark.slow
def test_a_sweep_runs_skips_what_is_done_and_goes_on(tmp_path, monkeypatch):
    """After a kill only unfinished runs are repeated. A recipe whose flags have changed is run again."""
    monkeypatch.chdir(tmp_path)
    real = eval.main
    monkeypatch.setattr(eval, "main", lambda argv, **more: real([*argv, "--n_prompts", "16"], **more))
    def all_of_them(recipes):
        for recipe, flags in recipes.items():
            assert sweep.quietly((sweep.train, "root", recipe, 0, flags)) is None
    all_of_them(RECIPES)
    run = sweep.place("root", "dpo beta=0.1", 0)
    args = json.loads((run / "args.json").read_text())["args"]
    assert args["init_from"] == str(sweep.place("root", "sft", 0)) and args["max_steps"] == 3
    assert (run / "done").read_text().startswith(sweep.SHORT)
    before = os.stat(run / "eval.json").st_mtime_ns
    unfinished = sweep.place("root", "along_dpo", 0) / "done"
    unfinished.unlink()    # as if it had been killed
    all_of_them(RECIPES)
    assert os.stat(run / "eval.json").st_mtime_ns == before and unfinished.exists()
    all_of_them(RECIPES | {"dpo beta=0.1": RECIPES["dpo beta=0.1"] + " --share_prefix"})
    assert os.stat(run / "eval.json").st_mtime_ns > before
    flags = sweep.QUICK_MEASURE.replace("16", "64")
    assert sweep.quietly((sweep.measure, "root", ["dpo beta=0.1"], 0, flags)) is None
    measured = os.stat(run / "eval.json").st_mtime_ns
    assert sweep.quietly((sweep.measure, "root", ["dpo beta=0.1", "along_dpo"], 0, flags)) is None
    other = json.loads((sweep.place("root", "along_dpo", 0) / "eval.json").read_text())
    assert os.stat(run / "eval.json").st_mtime_ns == measured and other["n_samples"] == 25    # only the new method
    sweep.collect("root", RECIPES, [0, 1], tmp_path)    # a seed whose runs failed is left out
    s = claims.Sweep(tmp_path)
    assert s.seeds == [0] and s("sft", "kl") == 0 and s("along_dpo step-3", "kl") >= 0
    assert s("dpo beta=0.1 T=0.5", "reward") > 0
    assert s("best_of n=64", "reward") > s("best_of n=1", "reward")
    assert s("dpo beta=0.1", "pooled_25") > s("dpo beta=0.1", "pooled_4")
    assert s("dpo beta=0.1", "samples") == 4 * 24 and s("ppo beta=0.1", "samples") == 16    # 2 epochs of 2 minibatches
    assert 0 <= s("reward", "accuracy") <= 1 and -1 <= s("reward", "agreement") <= 1
    assert not np.isnan([s("ppo beta=0.1 step-4", m) for m in ("kl", "reward", "proxy")]).any()
    assert not np.isnan(s("along_dpo step-3", "proxy"))
    assert s("dpo beta=0.1", "trainable") == 26_208 and s.curve("along_dpo", "loss", 0).shape == (2, 2)

def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    """One wrong flag in a sweep of hours must not stop the other runs, and must be reported."""
    monkeypatch.chdir(tmp_path)
    said = sweep.quietly((sweep.train, "root", "dpo beta=0.1", 0, "--loss dpo --no_such_flag"))
    assert "SystemExit" in said
    assert "no_such_flag" in next((tmp_path / "root" / "logs").iterdir()).read_text()
    assert not sweep.place("root", "dpo beta=0.1", 0).exists()

@pytest.mark.slow
def test_a_sweep_in_processes(tmp_path, monkeypatch):
    """Two runs at a time, each in its own process, and the SFT policies before the runs that start from them."""
    monkeypatch.chdir(tmp_path)
    recipes = {recipe: RECIPES[recipe] for recipe in ("sft", "dpo beta=0.1")}
    assert sweep.run("root", recipes, [0, 1], 2) == []
    assert len(list((tmp_path / "root" / "runs").glob("*/done"))) == 4
    assert len(sweep.run("root", {"sft": RECIPES["sft"], "dpo": "--loss none"}, [0, 1], 2)) == 2

def test_a_sweep_overwrites_the_projects_results_only_with_update(tmp_path, monkeypatch):
    """A user who draws the study again, or sweeps other seeds, must not change the documents by accident."""
    stored, mine = tmp_path / "study" / "results", tmp_path / "out" / "study"
    stored.mkdir(parents=True)
    world(stored)
    contents = lambda folder: {p.name: p.read_bytes() for p in folder.iterdir()}
    before = contents(stored)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "RESULTS", stored)
    monkeypatch.setattr(places, "FIGURES", tmp_path / "study" / "figures")
    monkeypatch.setattr(pictures, "draw", lambda results, figures: (figures / "a.png").write_text(str(results)))
    filled = []
    monkeypatch.setattr(table, "fill_documents", lambda: filled.append(1))
    sweep.main(["--draw"])
    assert contents(stored) == before and not filled and not (tmp_path / "study/figures").exists()
    assert (mine / "claims.csv").exists() and (mine / "a.png").read_text() == str(stored)
    monkeypatch.setattr(sweep, "run", lambda *rest: [])
    monkeypatch.setattr(sweep, "collect", lambda root, recipes, seeds, results: world(results))
    sweep.main(["--out", "elsewhere"])
    assert contents(stored) == before and (tmp_path / "elsewhere/sweep.csv").exists() and not filled
    sweep.main(["--draw", "--out", "elsewhere"])
    assert (tmp_path / "elsewhere/a.png").read_text() == "elsewhere"
    sweep.main(["--update"])
    assert (stored / "claims.csv").exists() and (tmp_path / "study/figures/a.png").exists() and filled == [1]
    for wrong in (["--update", "--quick"], ["--update", "--out", "x"]):
        with pytest.raises(SystemExit):
            sweep.get_args(wrong)

def test_the_second_sweep_judges_its_own_claims(tmp_path, monkeypatch, capsys):
    """
    Its seeds have other SFT policies than the first sweep's, so the two may not be mixed in one difference. Five seeds
    are for some of its methods only.
    """
    stored, ran = tmp_path / "study" / "results", []
    stored.mkdir(parents=True)
    world(stored)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "RESULTS", stored)
    monkeypatch.setattr(table, "fill_documents", lambda: None)
    monkeypatch.setattr(sweep, "run", lambda root, recipes, seeds, *rest, **more: ran.append((recipes, seeds)) or [])
    def collect(root, recipes, seeds, folder):    # every reward is 1
        assert recipes == sweep.SECOND and tuple(seeds) in ((0, 1, 2, 3, 4), (7,))
        rows = [(r, s, m, x) for r in recipes for s in seeds for m, x in (("kl", 3 * (r != "sft")), ("reward", 1))]
        results(folder, rows)
    monkeypatch.setattr(sweep, "collect", collect)
    sweep.main(["--second", "--update"])
    assert [seeds for _, seeds in ran] == [(0, 1, 2), (3, 4)]
    assert list(ran[1][0]) == list(sweep.OPEN) and list(sweep.OPEN)[:2] == list(sweep.SECOND)[:2]
    assert ran[0][0] == sweep.SECOND
    rows = {(r["claim"], r["what"]): r for r in places.read_csv(stored / "claims.csv")}
    row = rows["15", "reward at its KL, rloo beta=1 - dpo"]
    assert (row["seeds"], float(row["mean"]), row["verdict"]) == ("5", 0, "does not hold")
    assert float(rows["13", "reward at 1.9 nats, dpo - rloo"]["mean"]) != 0    # of the first sweep
    sweep.main(["--second", "--seeds", "7", "--out", "mine"])
    assert (tmp_path / "mine/second/sweep.csv").exists() and "**15. " in capsys.readouterr().out
    for flag in (["--quick"], ["--draw"], ["--methods", "dpo", "--grid", "beta", "1"]):
        with pytest.raises(SystemExit):
            sweep.get_args(["--second", *flag])

def test_a_folder_without_results_cannot_be_drawn(tmp_path, monkeypatch):
    """A typo in --out ended in a traceback."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        sweep.main(["--draw", "--out", "nowhere"])
    assert end.value.code == "error: --draw: nowhere holds no sweep.csv; leave --draw out to run the sweep"

def test_a_table_takes_an_example_only_with_update():
    """The example overwrites files of study/results that the README shows."""
    assert table.get_args(["--update", "--example", "run"]).example == "run"
    with pytest.raises(SystemExit):
        table.get_args(["--example", "run"])

def test_the_recipes_can_be_parsed():
    """A sweep must not fail at its last recipe, after hours."""
    import train_pref
    import train_sft
    from rlhf import train_ppo, train_reward
    online = ("ppo", "ppo_gt", "rloo", "rloo_gt", "along_ppo", "grpo", "dr_grpo", "dapo", "grpo_kr", "dr_grpo_kr")
    others = {"sft": train_sft, "reward": train_reward} | dict.fromkeys(online, train_ppo)
    for recipe, flags in [*sweep.RECIPES.items(), *sweep.SECOND.items()]:
        method = recipe.split()[0]
        assert sweep.script_of(recipe) is others.get(method, train_pref), recipe
        sweep.script_of(recipe).get_args(flags.split())
    for name in LOSSES:    # the table's defaults are those of the script
        recipe = sweep.RECIPES[claims.default_of(name)].split()
        assert train_pref.get_args(recipe) == train_pref.get_args(["--loss", name]), name
    assert {*sweep.MAIN, *sweep.QUICK, *sweep.CURVES} <= {*sweep.RECIPES}

def test_the_verdicts_are_those_of_the_results(tmp_path):
    """claims.csv depends on both sweeps' sweep.csv and curves.csv, and on nothing else."""
    places.second(tmp_path).mkdir()
    for folder, name in itertools.product((Path(), places.second(Path())), ("sweep.csv", "curves.csv")):
        (tmp_path / folder / name).write_text((table.RESULTS / folder / name).read_text())
    claims.judge(tmp_path)
    assert (tmp_path / "claims.csv").read_text() == (table.RESULTS / "claims.csv").read_text()
