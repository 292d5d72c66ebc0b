"""The sweep of a user's own loss: --methods and --grid, reward at equal KL by hand, and the verdict in words."""
import csv
import json
import math

import numpy as np
import pytest

import eval
import losses
import train_pref
from losses import LOSSES, register
from study import claims, compare, pictures, sweep
from test_new_loss import answer, as_before    # noqa: F401 - as_before removes the losses that a test registers
from test_sweep import RECIPES, TINY, results

METHODS = ("mine", "dpo")
BETAS = ("1", "0.3", "0.1")    # from a small to a large KL

def sweep_of(folder, methods):
    """A Sweep of {method: {beta: (KLs of the seeds, rewards of the seeds)}}; None where a run failed."""
    rows = [("sft", seed, measure, value) for seed in range(3) for measure, value in (("kl", 0), ("reward", 0.5))]
    for method, settings in methods.items():
        for beta, columns in settings.items():
            for measure, values in zip(("kl", "reward"), columns):
                found = [(f"{method} beta={beta}", seed, measure, x) for seed, x in enumerate(values) if x is not None]
                rows += found
    return claims.Sweep(results(folder, rows))

def frontier(kls, height, betas=BETAS, shifts=(0.0, 0.1, -0.1)):
    """Settings on the line reward = height + 0.2 * root of KL, where each seed's line is shifted by its SFT policy."""
    return {beta: ([kl] * len(shifts), [height + 0.2 * kl ** 0.5 + shift for shift in shifts])
            for beta, kl in zip(betas, kls)}

def told(folder, methods):
    """(row of verdicts.csv, sentence) of the first method against the second."""
    s = sweep_of(folder, methods)
    row = compare.compare(s, *methods)
    return row, compare.sentence(s, row)

# ---------------------------------------------------------------------------------------------------------------------
# the verdict

def test_a_better_loss_by_hand(tmp_path):
    """
    The seeds differ by 0.1, the losses by 0.02 in each seed. The loss with the larger KLs has the higher rewards, but
    the other one is better.
    """
    row, text = told(tmp_path, {"mine": frontier((0.25, 1, 4), 0.52), "dpo": frontier((1, 4, 9), 0.5)})
    assert row["verdict"] == "better" and row["seeds"] == 3
    assert [row[k] for k in ("kl_low", "kl_high", "mean", "low", "high")] == pytest.approx([1, 4, 0.02, 0.02, 0.02])
    assert text == ("mine is better than dpo: at equal KL, from 1.00 to 4.00 nats, the reward of mine is 0.020 higher "
                    "(95% interval of the difference: +0.020 to +0.020), 3 seeds.")

def test_a_worse_loss_that_is_only_farther(tmp_path):
    """Its highest reward is above DPO's, so a table without KL would call it better."""
    row, text = told(tmp_path, {"mine": frontier((1, 4, 9), 0.48), "dpo": frontier((0.25, 1, 4), 0.5)})
    assert row["verdict"] == "worse" and row["mean"] == pytest.approx(-0.02)
    assert text.startswith("mine is worse than dpo: ") and "the reward of mine is 0.020 lower" in text
    assert text.endswith("; the highest reward of mine, 1.080 against 0.900, is only farther from the reference, at "
                         "9.00 against 4.00 nats.")

def test_two_losses_that_cannot_be_told_apart(tmp_path):
    """The seeds disagree on the sign: +0.02, -0.02 and +0.01. The interval is that of three differences."""
    mine = frontier((1, 4), 0.5, shifts=(0.02, 0.08, -0.09))
    row, text = told(tmp_path, {"mine": mine, "dpo": frontier((1, 4), 0.5)})
    half = 4.303 * np.std([0.02, -0.02, 0.01], ddof=1) / 3 ** 0.5
    assert row["verdict"] == "cannot be told apart"
    assert [row["mean"], row["low"], row["high"]] == pytest.approx([0.01 / 3, 0.01 / 3 - half, 0.01 / 3 + half])
    assert text.startswith("mine and dpo cannot be told apart: at equal KL, from 1.00 to 4.00 nats")
    assert "only" not in text    # the highest reward is not farther from the reference

def test_a_loss_that_is_not_better_but_only_farther(tmp_path):
    """The question behind every new loss with a higher reward. Both lines are the same, and one is longer."""
    mine = frontier((1, 4, 9), 0.5, shifts=(0.02, 0.08, -0.09))
    row, text = told(tmp_path, {"mine": mine, "dpo": frontier((1, 4), 0.5)})
    assert row["verdict"] == "cannot be told apart"
    assert "is only farther from the reference, at 9.00 against 4.00" in text

def test_a_loss_that_is_better_near_and_worse_far_away(tmp_path):
    """The mean over the range is near 0, which would hide two clear differences."""
    mine = {beta: ([kl] * 3, [0.9 + s, 0.9 + 2 * s, 0.9 - s]) for beta, kl, s in (("1", 1, 0.001), ("0.1", 4, 0.002))}
    row, text = told(tmp_path, {"mine": mine, "dpo": frontier((1, 4), 0.6, ("1", "0.1"), (0, 0, 0))})
    assert row["verdict"] == "depends on the KL" and abs(row["mean"]) < 0.01
    assert "is 0.101 higher" in text and "at 1.00 nats and 0.098 lower" in text and "at 4.00 nats, 3 seeds" in text

def test_frontiers_without_a_common_kl_cannot_be_compared(tmp_path):
    """A line from the SFT policy to the first setting would pretend an overlap. The remedy names the right ends."""
    row, text = told(tmp_path, {"mine": frontier((4, 6, 9), 0.5), "dpo": frontier((0.2, 1, 2), 0.5)})
    assert row["verdict"] == "no overlap" and "mean" not in row
    assert text == ("mine and dpo cannot be compared at equal KL, because their settings do not overlap in KL in "
                    "every seed (mine has 4.00 to 9.00 nats and dpo has 0.20 to 2.00 nats, means over seeds); try a "
                    "beta below 0.1 for dpo or a beta above 1 for mine.")

def test_one_setting_each_is_no_frontier(tmp_path):
    """Its KL differs between seeds, so there is no KL that all seeds have."""
    row, text = told(tmp_path, {"mine": {"1": ([1, 1.1, 1.2], [0.7] * 3)}, "dpo": frontier((0.5, 1, 2), 0.5)})
    assert row["verdict"] == "no overlap" and "try more values for mine, on both sides" in text

def test_words_have_no_larger_and_smaller_values(tmp_path):
    """A grid over a word, such as a divergence, has no direction in which the KL grows."""
    mine, dpo = frontier((4, 6), 0.5, ("jsd", "alpha")), frontier((1, 2), 0.5)
    assert "or a beta other than jsd for mine." in told(tmp_path, {"mine": mine, "dpo": dpo})[1]

def test_one_seed_has_no_interval(tmp_path):
    """Its infinite interval would be printed as inf."""
    mine, dpo = (frontier((1, 4), height, shifts=(0,)) for height in (0.6, 0.5))
    row, text = told(tmp_path, {"mine": mine, "dpo": dpo})
    assert row["verdict"] == "cannot be told apart" and "inf" not in text
    assert "by one seed" in text and "0.100 higher, without an interval; give at least two --seeds" in text

def test_a_seed_without_runs_of_one_loss_is_left_out(tmp_path):
    """With the mean of the other seeds in its place, one seed's SFT policy would be compared with another's."""
    mine = {beta: (kls, [rewards[0], None, rewards[2]]) for beta, (kls, rewards) in frontier((1, 4), 0.52).items()}
    row, text = told(tmp_path, {"mine": mine, "dpo": frontier((1, 4), 0.5)})
    assert row["verdict"] == "better" and row["mean"] == pytest.approx(0.02) and ", 2 seeds" in text
    dpo = {beta: (kls, [None, rewards[1], None]) for beta, (kls, rewards) in frontier((1, 4), 0.5).items()}
    assert "no seed has finished runs of both" in told(tmp_path, {"mine": mine, "dpo": dpo})[1]

def test_the_range_is_what_every_seed_has(tmp_path):
    """Beyond a seed's farthest setting there is nothing to interpolate, and the mean would be NaN."""
    mine = {"1": ([0.25, 1, 0.5], [0.6, 0.7, 0.65]), "0.1": ([9, 4, 7], [1.1, 0.9, 1.0])}
    dpo = {"1": ([0.5, 0.7, 2], [0.6] * 3), "0.1": ([5, 6, 3.1], [0.9] * 3)}
    s = sweep_of(tmp_path, {"mine": mine, "dpo": dpo})
    low, high, seeds = compare.overlap(s, *METHODS)
    nats, found = compare.differences(s, *METHODS)
    assert (low, high) == (2, 3.1) and seeds.all() and found.shape == (9, 3) and not np.isnan(found).any()
    assert nats[0] == pytest.approx(2) and nats[-1] == 3.1
    assert nats[4] == pytest.approx(((2 ** 0.5 + 3.1 ** 0.5) / 2) ** 2)    # in the middle of the roots

def test_differences_are_read_off_at_one_kl_over_its_root(tmp_path):
    """At equal beta, or at equal reward, other settings would be compared. Both lines are straight over the root."""
    mine = {"1": ([0.0, 0.0], [0.5, 0.6]), "0.1": ([4, 16], [0.9, 1.0])}
    dpo = {"1": ([0.0, 0.0], [0.5, 0.6]), "0.1": ([4, 4], [0.7, 0.7])}
    _, found = compare.differences(sweep_of(tmp_path, {"mine": mine, "dpo": dpo}), *METHODS, n=3)
    # at roots 0, 1 and 2: mine has 0.5 + 0.2 root and 0.6 + 0.1 root, dpo 0.5 + 0.1 root and 0.6 + 0.05 root
    assert found == pytest.approx(np.array([[0, 0], [0.1, 0.05], [0.2, 0.1]]))

def test_a_setting_that_another_one_dominates_does_not_count(tmp_path):
    """
    A beta that is too small has a larger KL and a lower reward. A line through all settings would pass through it, and
    the loss whose bad setting lies within the compared range would look worse.
    """
    good = {"1": ([1] * 3, [0.7] * 3), "0.1": ([4] * 3, [0.9] * 3)}
    bad = {"0.01": ([2.25] * 3, [0.6] * 3), "0.001": ([9] * 3, [0.5] * 3)}
    s = sweep_of(tmp_path, {"mine": good, "dpo": good | bad})
    found = compare.frontier(s, "dpo", np.array([1, 2.25, 4, 9.0]))
    assert found == pytest.approx(np.array([[0.7, 0.8, 0.9, 0.9]] * 3))
    row = compare.compare(s, *METHODS)
    assert (row["mean"], row["kl_high"], row["verdict"]) == (pytest.approx(0), 4, "cannot be told apart")

# ---------------------------------------------------------------------------------------------------------------------
# flags

def mine(pairs, *, beta=0.1, margin=0.5, flip=True, kind="a", T=1.0):
    losses.need(margin >= 0, f"margin must be >= 0, not {margin}")
    return answer(pairs, beta + margin)

@pytest.mark.parametrize("argv, words", [
    ("--methods none dpo --grid beta 1", ["there is no loss of this name", "docs/new-loss.md", "dpo, cdpo"]),
    ("--methods dpo dpo --grid beta 1", ["dpo is given twice"]),
    ("--methods mine dpo", ["--methods needs a --grid for mine", "takes beta, margin"]),
    ("--methods mine dpo --grid margin 1", ["--grid margin: dpo takes beta;"]),
    ("--methods mine slic --grid beta 1", ["slic takes delta", "--grid slic.NAME"]),
    ("--methods mine sft --grid beta 1", ["sft takes no hyperparameter"]),
    ("--methods mine dpo --grid beta", ["--grid beta: give at least one value, as in --grid beta 0.1"]),
    ("--methods mine dpo --grid beta x", ["--beta", "'x'"]),
    ("--methods mine dpo --grid beta nan", ["--beta", "finite"]),
    ("--methods mine dpo --grid beta 1 0", ["--grid beta 0: beta must be > 0"]),
    ("--methods mine dpo --grid beta 1 --grid mine.margin -1", ["--grid margin -1: margin must be >= 0"]),
    ("--methods mine dpo --grid beta 1 1.0", ["the value 1.0 is given twice"]),
    ("--methods mine --grid kind a/b", ["slashes"]),
    ("--methods mine --grid flip 1", ["flip of mine is on or off"]),
    ("--methods mine --grid T 1", ["sampling temperature"]),
    ("--methods mine dpo --grid beta 1 --grid beta 2", ["has the grid beta already"]),
    ("--methods mine dpo --grid beta 1 --grid ipo.beta 2", ["ipo is not one of --methods mine dpo"]),
    ("--methods mine --grid beta 1 --grid mine.margin 2", ["--grid beta has no effect"]),
    ("--methods mine dpo --grid beta 1 --quick", ["--quick has no effect with --methods"]),
    ("--methods mine dpo --grid beta 1 --draw", ["--draw has no effect with --methods; the same command again"]),
    ("--methods mine dpo --grid beta 1 --update", ["--update has no effect with --methods"]),
    ("--methods mine dpo --grid beta 1 --max_steps 0", ["--max_steps"]),
    ("--methods mine dpo --grid beta 1 --seeds 0 1 0", ["--seeds: a seed is given twice"]),
    ("--grid beta 1", ["--grid has no effect without --methods"]),
    ("--max_steps 9", ["--max_steps has no effect without --methods"]),
])
def test_wrong_flags_end_in_one_line_before_a_run_begins(argv, words, capsys):
    """A wrong value of the last setting would otherwise show after all other runs."""
    register(needs_ref=False)(mine)
    with pytest.raises(SystemExit) as end:
        sweep.get_args(argv.split())
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and all(word in err for word in words), err

def test_every_method_gets_its_grid():
    """The shared grid, its own one, and the defaults of what is not in a grid."""
    register(needs_ref=False)(mine)
    flags = "--methods mine dpo slic --grid beta 0.3 1 --grid slic.delta 5 --max_steps 9"
    assert sweep.get_args(flags.split()).settings == {
        f"mine beta={b}": (f"--loss mine --beta {b} --max_steps 9", "mine",
                           {"beta": float(b), "margin": 0.5, "flip": True, "kind": "a", "T": 1.0}) for b in ("0.3", "1")
    } | {f"dpo beta={b}": (f"--loss dpo --beta {b} --max_steps 9", "dpo", {"beta": float(b)}) for b in ("0.3", "1")
    } | {"slic delta=5": ("--loss slic --delta 5 --max_steps 9", "slic", {**LOSSES["slic"].hparams, "delta": 5.0})}

# ---------------------------------------------------------------------------------------------------------------------
# a loss that is changed between two sweeps

def test_a_fingerprint_changes_with_what_a_loss_computes_and_with_nothing_else():
    """The text of the function would miss a helper that it calls. Values alone would miss a gradient."""
    plain = compare.fingerprint("dpo", {"beta": 0.1})
    assert plain == compare.fingerprint("dpo", {"beta": 0.1}) != compare.fingerprint("dpo", {"beta": 0.11})
    register(needs_ref=True)(lambda_named("mine", lambda pairs, *, beta=0.1: losses.dpo(pairs, beta=beta)))
    assert compare.fingerprint("mine", {"beta": 0.1}) == plain
    def same_values(pairs, *, beta=0.1):
        found, *rewards = losses.dpo(pairs, beta=beta)
        return found.detach() + 0.5 * (found - found.detach()), *rewards
    LOSSES["mine"].fn = same_values
    assert compare.fingerprint("mine", {"beta": 0.1}) != plain

def lambda_named(name, fn):
    fn.__name__ = name
    return fn

@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_fingerprint(name):
    """The sweep takes any loss. One that reads other fields of the pairs must not end in a traceback."""
    assert len(compare.fingerprint(name, LOSSES[name].hparams)) == 16

def test_runs_of_a_changed_loss_are_repeated_and_no_others(tmp_path, capsys):
    """The flags stay the same, so the runs of an older version of the loss would be taken for the new one's."""
    found = {f"{m} beta={b}": ("", m, {"beta": b}) for m in ("dpo", "ipo") for b in (1.0, 10.0)}
    marks = {}
    for recipe in found:
        marks[recipe] = sweep.place(tmp_path, recipe, 0) / "done"
        marks[recipe].parent.mkdir(parents=True)
        marks[recipe].touch()
    compare.forget_changed(tmp_path, found)    # of these runs nothing is known
    assert not any(mark.exists() for mark in marks.values())
    assert "repeated: dpo beta=1.0, dpo beta=10.0, ipo" in capsys.readouterr().out
    for mark in marks.values():
        mark.touch()
    compare.forget_changed(tmp_path, found)
    assert all(mark.exists() for mark in marks.values()) and not capsys.readouterr().out
    compare.forget_changed(tmp_path, found | {"dpo beta=1.0": ("", "ipo", {"beta": 1.0})})
    assert [recipe for recipe, mark in marks.items() if not mark.exists()] == ["dpo beta=1.0"]

def test_the_folder_of_another_sweep_is_refused(tmp_path, capsys, monkeypatch):
    """Its runs have the same names and other flags. They would be deleted after hours of work."""
    (tmp_path / "sweep.csv").touch()
    monkeypatch.setattr(sweep, "run", lambda *args, **more: pytest.fail("the runs have begun"))
    with pytest.raises(SystemExit) as end:
        sweep.main(["--methods", "dpo", "ipo", "--grid", "beta", "1", "--out", str(tmp_path)])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and "choose another folder" in err

# ---------------------------------------------------------------------------------------------------------------------
# the path from the command to the verdict

def in_this_process(root, recipes, seeds, jobs, flags):
    """sweep.run without processes, which do not know the losses that a test registers."""
    assert flags is None
    tasks = [task for phase in sweep.phases_of(root, recipes, seeds, flags) for task in phase]
    return [reason for reason in map(sweep.quietly, tasks) if reason]

def made_up(job, root, recipe, seed, flags):
    """Writes the files of a run in no time: KL by beta, reward by KL, higher for mine."""
    folder = sweep.place(root, recipe, seed)
    folder.mkdir(parents=True)
    (folder / "done").write_text(flags)
    if recipe != "sft":
        kl = 1 / float(recipe.split("=")[1])
        reward = 0.5 + 0.1 * kl ** 0.5 + 0.03 * recipe.startswith("mine") + 0.1 * seed
        found = {"before": {"reward": 0.5, "kl": 0.0}, "after": {"reward": reward, "kl": kl, "win": 0.6}}
        (folder / "eval.json").write_text(json.dumps({"measures": found}))
        (folder / "result.json").write_text(json.dumps({"seconds": 1, "skipped": 0, "step": 1}))

def commanded(monkeypatch, tmp_path, argv):
    """Runs the command with made-up runs. Returns the runs that it made."""
    monkeypatch.chdir(tmp_path)
    made = []
    def run(root, recipes, seeds, jobs, flags):
        for phase in sweep.phases_of(root, recipes, seeds, flags):
            for task in phase:
                if not (sweep.place(root, *task[2:4]) / "done").exists():
                    made_up(*task)
                    made.append(task[2:4])
        return []
    monkeypatch.setattr(sweep, "run", run)
    monkeypatch.setattr(sweep, "trainable", lambda folder: 1)
    monkeypatch.setattr(sweep, "samples", lambda folder, step: 1)
    sweep.main(argv.split())
    return made

def test_table_picture_and_verdicts_of_a_command(tmp_path, monkeypatch, capsys):
    """A loss of the user has no color and no name in the pictures. The table is of this folder, not of the project."""
    register(needs_ref=False)(mine)
    argv = "--methods mine dpo ipo --grid beta 0.25 1 --seeds 3 5 --out here"
    drawn = []
    monkeypatch.setattr(pictures, "save", lambda fig, path: drawn.append((fig.axes[0], path.name)))
    assert len(commanded(monkeypatch, tmp_path, argv)) == 2 * 7
    out = capsys.readouterr().out
    # 0.5 + 0.1 * 2 + 0.03, and 0.3 and 0.5 for the seeds 3 and 5
    assert "| `mine beta=0.25` | 1.130 (1.030 to 1.230) | 4.00 | 0.600 |" in out
    assert out.index("| `sft` | 0.500 |") < out.index("| `mine beta=0.25` |") < out.index("| `dpo beta=1` |")
    for other in ("dpo", "ipo"):
        assert f"mine is better than {other}: at equal KL, from 1.00 to 4.00 nats, the reward of mine is 0.030" in out
    with open("here/verdicts.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["first"], r["other"], r["verdict"], r["seeds"]) for r in rows] == [
        ("mine", "dpo", "better", "2"), ("mine", "ipo", "better", "2")]
    [(ax, name)] = drawn
    lines = {c.get_label(): c.lines[0] for c in ax.containers}
    envelopes = [line.get_ydata() for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3]
    assert np.array(envelopes) == pytest.approx(np.array([[1.03, 1.13, 1.13], [1.0, 1.1, 1.1], [1.0, 1.1, 1.1]]))
    assert name == "frontier.png" and [*lines] == ["mine", "DPO", "IPO"]
    assert len({line.get_color() for line in lines.values()}) == 3
    x, y = lines["mine"].get_data()
    assert x == pytest.approx([1, 4]) and y == pytest.approx([1.03, 1.13])

def test_the_same_command_again_runs_only_what_is_missing(tmp_path, monkeypatch, capsys):
    """An interrupted sweep goes on, and one more seed or value costs only its own runs."""
    register(needs_ref=False)(mine)
    argv = "--methods mine dpo --grid beta 0.25 1 --seeds 0 1"
    assert len(commanded(monkeypatch, tmp_path, argv)) == 10
    first = capsys.readouterr().out
    lost = sweep.place("out/methods", "mine beta=1", 1)
    for path in lost.iterdir():
        path.unlink()
    lost.rmdir()    # as if the sweep had been interrupted before it
    assert commanded(monkeypatch, tmp_path, argv) == [("mine beta=1", 1)]
    assert capsys.readouterr().out == first
    assert commanded(monkeypatch, tmp_path, argv.replace("1 --", "1 5 --")) == [
        ("mine beta=5", 0), ("mine beta=5", 1), ("dpo beta=5", 0), ("dpo beta=5", 1)]

def test_ctrl_c_prints_the_same_command(monkeypatch, tmp_path, capsys):
    """The line must hold the grid and the seeds, or the sweep would not go on but begin another one."""
    monkeypatch.chdir(tmp_path)
    def interrupted(*args, **more):
        raise KeyboardInterrupt
    monkeypatch.setattr(sweep, "run", interrupted)
    argv = "--methods dpo ipo --grid beta 0.3 1 --seeds 0 1 --out here"
    with pytest.raises(SystemExit) as end:
        sweep.main(argv.split())
    assert end.value.code == 130 and f"To resume: python -m study.sweep {argv}\n" in capsys.readouterr().err

def test_failed_runs_are_told_and_the_others_are_compared(monkeypatch, tmp_path, capsys):
    """One run that diverges must not cost the verdict, and a sweep in which all fail must not end in a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "run", lambda *args, **more: ["['dpo beta=1', 0]: ValueError('nan')"])
    with pytest.raises(SystemExit) as end:
        sweep.main("--methods dpo ipo --grid beta 0.3 1".split())
    assert "some runs failed:\n['dpo beta=1', 0]" in str(end.value)

def test_main_settings_of_the_study_are_not_measured_longer(tmp_path):
    """dpo beta=0.1 is a main setting of the study, for which the study samples at other temperatures."""
    recipes = {"sft": "", "dpo beta=0.1": "", "dpo beta=1": ""}
    assert [len(phase) for phase in sweep.phases_of(tmp_path, recipes, [0, 1], None)] == [2, 2, 0, 2]
    assert [len(phase) for phase in sweep.phases_of(tmp_path, recipes, [0, 1], "x")] == [2, 2, 0, 2, 2]

@pytest.mark.usefixtures("painted")
def test_the_picture_of_many_losses_is_painted(tmp_path):
    """Losses share a color only when there are more of them than colors. A collapsed setting has a note."""
    names = list(LOSSES)
    colors = pictures.colors_of(names[:12])
    assert len(set(colors.values())) == 12 and colors["dpo"] == pictures.COLORS["dpo"]
    assert [*pictures.colors_of(names)] and set(pictures.colors_of(names)) == set(names)
    s = sweep_of(tmp_path, {"mine": frontier((0.5, 2, 300), 0.5), "kto": frontier((0, 1, 2), 0.4)})
    pictures.draw_methods(s, ("mine", "kto"), tmp_path)
    assert (tmp_path / "frontier.png").stat().st_size > 10_000

@pytest.mark.parametrize("name", ["ppo_mine", "rloo", "along_mine", "reward_mine"])
def test_a_loss_with_the_name_of_a_script_is_trained_by_train_pref(name, tmp_path, monkeypatch):
    """The study finds the script of a recipe by its name. PPO's script would refuse --loss."""
    register(needs_ref=False)(lambda_named(name, mine_of_three))
    ran = []
    monkeypatch.setattr(train_pref, "main", ran.append)
    [(recipe, (flags, *_))] = sweep.get_args(["--methods", name, "--grid", "beta", "1"]).settings.items()
    sweep.place(tmp_path, recipe, 4).mkdir(parents=True)
    monkeypatch.setattr(sweep.shutil, "rmtree", lambda *args, **more: None)
    sweep.train(tmp_path, recipe, 4, flags)
    [argv] = ran
    assert argv[-2:] == ["--n_show", "0"] and f"--loss {name} --beta 1 --seed 4" in " ".join(argv)

@pytest.mark.slow
def test_a_new_loss_from_register_to_its_verdict(tmp_path, monkeypatch, capsys):
    """Real runs of three updates, of a loss whose name is that of a script of the study."""
    register(needs_ref=False)(lambda_named("ppo_mine", mine_of_three))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "run", in_this_process)
    real = eval.main
    monkeypatch.setattr(eval, "main", lambda argv, **more: real([*argv, "--n_prompts", "16"], **more))
    monkeypatch.setattr(sweep, "SHORT", f"{TINY} --n_prompts 24")
    monkeypatch.setitem(sweep.RECIPES, "sft", RECIPES["sft"])
    sweep.main("--methods ppo_mine dpo --grid beta 0.1 1 --seeds 0 1 --max_steps 3".split())
    out = capsys.readouterr().out
    s = claims.Sweep(tmp_path / "out/methods")
    assert s.points("ppo_mine") == ["ppo_mine beta=0.1", "ppo_mine beta=1"] and s.seeds == [0, 1]
    recipes = (*s.points("ppo_mine"), *s.points("dpo"))
    kl, reward = (np.array([s(recipe, measure) for recipe in recipes]) for measure in ("kl", "reward"))    # (4, 2)
    # a run whose validation loss never fell keeps the SFT policy, at a KL of 0
    assert (kl >= 0).all() and (kl > 0).any() and ((reward > 0) & (reward < 1)).all()
    assert "ppo_mine and dpo c" in out or "ppo_mine is" in out or "Whether ppo_mine" in out
    facts = json.loads((sweep.place("out/methods", "ppo_mine beta=1", 1) / "args.json").read_text())
    assert facts["args"]["loss"] == "ppo_mine" and facts["args"]["beta"] == 1 and facts["args"]["seed"] == 1
    assert facts["args"]["max_steps"] == 3 and math.isclose(facts["hparams"]["beta"], 1)

def mine_of_three(pairs, *, beta=0.1):
    return answer(pairs, beta)
