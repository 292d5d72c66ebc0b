"""The scripts end to end on a small toy world: SFT, every loss, adapters, evaluation, resuming, run directories."""
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import adapters
import data
import sampling
import eval
import losses
import loop
import measures
import objective
import toy
import train_pref
import train_sft
from losses import LOSSES, sequence_logps
from model import GPT, fingerprint
from test_loop import log_rows

# eval.py hides Python's own eval
eval_expression = __builtins__["eval"] if isinstance(__builtins__, dict) else __builtins__.eval

QUICK = ["--batch_size", "16", "--max_steps", "4", "--eval_every", "2", "--n_prompts", "12", "--n_show", "0"]

def fewer(split, n, seed=0, real=toy.examples):
    """
    toy.examples with at most 2,000, 12 and 60 reviews a split. Otherwise validation would take most of a run's
    time.
    """
    most = {"train": 2000, "val": 12, "test": 60}
    return real(split, min(n, most[split]), seed)

@pytest.fixture(scope="module")
def world(tmp_path_factory, made_once):
    """A folder with an SFT policy in out/toy/sft. It was trained for a second, so it is bad, but its samples vary."""
    root = tmp_path_factory.mktemp("world")
    shutil.copytree(made_once("world", train_world), root, dirs_exist_ok=True)
    return root

def train_world(root):
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(toy, "examples", fewer)
        patch.setattr(loop, "plot_curves", lambda folder: None)
        train_sft.main(["--n_layer", "1", "--n_head", "2", "--n_embd", "32", "--max_steps", "60", "--batch_size", "32",
                        "--lr", "1e-2", "--warmup_steps", "20", "--weight_decay", "0.1", "--eval_every", "60"])

@pytest.fixture
def here(world, monkeypatch):
    """The world's folder as the current one, and its few reviews."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(toy, "examples", fewer)
    return world

def first_log(run, metric="loss", split="val"):
    return [value for _, *which, value in log_rows(run) if which == [split, metric]]

def pref(out_dir, *flags):
    """train_pref.main on a few prompts, without the long evaluation at the end and without the picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval, "main", lambda *args, **more: {})
        patch.setattr(loop, "plot_curves", lambda folder: None)
        return train_pref.main(["--out_dir", str(out_dir), *QUICK, *flags])

# ---------------------------------------------------------------------------------------------------------------------
# what a run trains

@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_through_the_command_line(here, tmp_path, name):
    """A loss that only its unit tests call may fail in the parser, in the batches or in the log."""
    pref(tmp_path / "run", "--loss", name)
    values = first_log(tmp_path / "run")
    assert len(values) == 3 and all(map(math.isfinite, values)) and values[-1] != values[0]
    if LOSSES[name].start:
        start = eval_expression(LOSSES[name].start, {"log": math.log}, LOSSES[name].hparams)
        assert values[0] == pytest.approx(start, rel=1e-3)    # kto's KL is an estimate of 0 and clamped there
        assert first_log(tmp_path / "run", "rewards/accuracies")[0] == 0.5

def test_the_first_loss_is_that_of_the_rows_by_a_slow_way(here, tmp_path):
    """
    slic has no fixed first value. Computed from the pairs' file, it shows that the named loss is trained on the
    right rows.
    """
    pref(tmp_path / "run", "--loss", "slic", "--delta", "2", "--reg", "0.3")
    facts, model = json.loads((tmp_path / "run" / "args.json").read_text()), GPT.from_pretrained("out/toy/sft")
    total, rows = 0.0, sampling.read_pairs(facts["pairs"])["val"]
    with torch.no_grad():
        for row in rows:
            sums = []
            for side in ("chosen", "rejected"):
                log_p = model(torch.tensor([row["prompt"] + row[side]]))[0].log_softmax(-1)    # (T, V)
                sums.append(sum(log_p[len(row["prompt"]) - 1 + t, token].item() for t, token in enumerate(row[side])))
            c, r = sums
            total += max(0.0, 2 - c + r) - 0.3 * c
    assert first_log(tmp_path / "run")[0] == pytest.approx(total / len(rows), rel=1e-4)

def test_beta_is_annealed_and_logged(here, tmp_path):
    """
    An update has the beta of its step. An evaluation has the last beta, because early stopping would otherwise
    choose weights by the schedule.
    """
    pref(tmp_path / "run", "--loss", "dpo", "--beta", "0", "--beta_end", "1")
    assert first_log(tmp_path / "run", "beta", "train") == [0.25, 0.5, 0.75, 1.0]
    assert first_log(tmp_path / "run", "beta") == [1.0, 1.0, 1.0]
    assert first_log(tmp_path / "run")[0] == pytest.approx(math.log(2), abs=1e-5)
    with pytest.raises(SystemExit):
        train_pref.get_args(["--loss", "orpo", "--beta_end", "1"])
    with pytest.raises(SystemExit):
        train_pref.get_args(["--beta_end", "0"])
    pref(tmp_path / "ipo", "--loss", "ipo", "--beta", "1", "--beta_end", "0.1")
    assert first_log(tmp_path / "ipo")[0] == pytest.approx(25, rel=1e-4)    # (0 - 1 / (2 beta))^2 at the last beta

def test_mean_logps_and_sft_weight_change_the_loss_as_they_say(here, tmp_path):
    """At the start DPO's part is log 2, for sums and for means. The rest is the weight times Preferred-FT's loss."""
    for name, flags in (("sft", ["--loss", "sft"]), ("rpo", ["--loss", "dpo", "--sft_weight", "0.5", "--mean_logps"])):
        pref(tmp_path / name, *flags)
    nll = first_log(tmp_path / "sft")[0]
    assert first_log(tmp_path / "rpo")[0] == pytest.approx(math.log(2) + 0.5 * nll, rel=1e-5)
    pref(tmp_path / "ipo", "--loss", "ipo", "--mean_logps", "--beta", "0.5", "--lr", "1e-2")
    assert first_log(tmp_path / "ipo")[0] == pytest.approx(1.0, rel=1e-5)
    # rewards are now means per token, so margins are a fraction of a nat
    assert abs(first_log(tmp_path / "ipo", "rewards/margins")[-1]) < 1

def test_kto_measures_the_kl_on_completions_of_other_prompts(here, tmp_path, monkeypatch):
    """
    On its own completions a trained policy looks far from the reference. The estimate must use completions of other
    prompts.
    """
    seen = []
    @losses.register(needs_ref=True, needs_kl=True)
    def spy(pairs, *, beta=0.1):
        if len(pairs.chosen_lens) > 2:    # the trial before a run has two pairs
            assert not pairs.kl_logratios.requires_grad and pairs.kl_logratios.shape == pairs.chosen_lens.shape
            seen.append(pairs.kl_logratios.abs().max().item())
        return losses.dpo(pairs, beta=beta)
    monkeypatch.setitem(LOSSES, "spy", LOSSES.pop("spy"))
    pref(tmp_path / "run", "--loss", "spy", "--lr", "1e-2", "--patience", "0")
    assert seen[0] < 1e-4 < seen[-1]

def test_the_reference_is_fixed_and_without_gradient(here, tmp_path, monkeypatch):
    """
    A reference that moves with the policy gives log 2 for ever. One with a gradient is trained in the wrong
    direction.
    """
    seen = {}
    @losses.register(needs_ref=True)
    def spy(pairs, *, beta=0.1):
        assert not pairs.ref_chosen_logps.requires_grad and not pairs.ref_rejected_logps.requires_grad
        for length, total in zip(pairs.chosen_lens.tolist(), pairs.ref_chosen_logps.tolist()):
            seen.setdefault(length, set()).add(total)
        return losses.dpo(pairs, beta=beta)
    monkeypatch.setitem(LOSSES, "spy", LOSSES.pop("spy"))
    pref(tmp_path / "run", "--loss", "spy", "--lr", "1e-2", "--patience", "0")
    facts = json.loads((tmp_path / "run" / "args.json").read_text())
    reference, want = GPT.from_pretrained("out/toy/sft"), set()
    for rows in sampling.read_pairs(facts["pairs"]).values():
        for batch in data.Batches(rows, 16):
            sums = sequence_logps(reference, batch["idx"], batch["completion_mask"])[0]
            want |= {round(x, 2) for x in sums.tolist()}
    del seen[1.0]    # the pairs of the trial before a run
    assert seen and all(min(abs(x - w) for w in want) < 0.02 for part in seen.values() for x in part)
    assert first_log(tmp_path / "run", "loss", "train")[-1] < math.log(2) - 0.01

def test_a_new_loss_is_one_function(here, tmp_path, monkeypatch, capsys):
    """
    Without any other edit it becomes a choice, gets flags with its defaults, trains, and refuses other losses'
    flags.
    """
    @losses.register(needs_ref=False)
    def mine(pairs, *, sharpness=2.0):
        """L = softplus(-sharpness * (c - r))"""
        gap = pairs.policy_chosen_logps - pairs.policy_rejected_logps
        return torch.nn.functional.softplus(-sharpness * gap), gap.detach(), 0 * gap.detach()
    monkeypatch.setitem(LOSSES, "mine", LOSSES.pop("mine"))
    pref(tmp_path / "run", "--loss", "mine", "--sharpness", "0.5")
    facts = json.loads((tmp_path / "run" / "args.json").read_text())
    assert facts["hparams"] == {"sharpness": 0.5} and len(first_log(tmp_path / "run")) == 3
    with pytest.raises(SystemExit) as stop:
        train_pref.get_args(["--loss", "mine", "--beta", "1"])
    assert stop.value.code == 2 and "--sharpness" in capsys.readouterr().err

def test_sft_counts_tokens_not_rows(here, tmp_path):
    """
    The validation loss is the mean over all completion tokens, without prompts. Here it is computed one review at a
    time.
    """
    model = GPT.from_pretrained("out/toy/sft")
    rows = data.make_rows(toy.examples("val", 512), toy.encoding(), 64)[0]
    total = count = 0
    with torch.no_grad():
        for row in rows:
            log_p = model(torch.tensor([row["prompt"] + row["chosen"]]))[0].log_softmax(-1)
            total -= sum(log_p[len(row["prompt"]) - 1 + t, token].item() for t, token in enumerate(row["chosen"]))
            count += len(row["chosen"])
    result = json.loads(Path("out/toy/sft/result.json").read_text())
    assert result["best_val_loss"] == pytest.approx(total / count, rel=1e-4)

# ---------------------------------------------------------------------------------------------------------------------
# a pair in one row, and other dtypes

def log_of(run):
    """{(step, split, metric): value}."""
    return {tuple(which): value for *which, value in log_rows(run)}

@pytest.mark.parametrize("flags", [
    ["--loss", "dpo"],
    ["--loss", "dpo", "--adapter", "parallel", "--adapter_rank", "4"],
    ["--loss", "kto", "--mean_logps", "--sft_weight", "0.5"],
], ids=["dpo", "adapter", "kto"])
def test_share_prefix_trains_the_same_run(here, tmp_path, flags):
    """
    The flag promises the same numbers. With chosen and rejected swapped, or a reference of the other layout, a run
    still trains.
    """
    logs = []
    for name, more in (("apart", []), ("shared", ["--share_prefix"])):    # one batch holds all the pairs
        pref(tmp_path / name, *flags, *more, "--batch_size", "512", "--lr", "1e-2", "--eval_every", "4")
        logs.append(log_of(tmp_path / name))
    apart, shared = logs
    assert apart.keys() == shared.keys() and (4, "train", "loss") in apart
    for key, value in apart.items():
        assert shared[key] == pytest.approx(value, abs=1e-4, rel=1e-4), key
    assert abs(apart[4, "train", "loss"] - apart[1, "train", "loss"]) > 0.001    # training has an effect
    if flags[1] == "dpo":
        assert shared[0, "val", "loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert shared[1, "train", "loss"] == pytest.approx(math.log(2), abs=1e-5)

def test_share_prefix_gives_every_batch_in_one_row_a_pair(here, tmp_path, monkeypatch):
    """If the flag were not passed to the batches, the run would cost twice as much, and no number would show it."""
    seen = []
    real = objective.batch_logps
    monkeypatch.setattr(objective, "batch_logps", lambda model, batch: seen.append(batch) or real(model, batch))
    pref(tmp_path / "run", "--loss", "dpo", "--share_prefix")
    assert len(seen) > 8
    for batch in seen:
        assert "segments" in batch and "completion_mask" not in batch and len(batch["idx"]) == batch["weight"]
    assert json.loads((tmp_path / "run" / "args.json").read_text())["args"]["share_prefix"] is True

@pytest.mark.parametrize("dtype, tol", [("bfloat16", 0.01), ("float16", 0.002)])
def test_a_run_in_16_bits_says_so_and_trains(here, tmp_path, capsys, dtype, tol):
    """
    Weights stay float32, in memory and in the file. The log equals that of a float32 run up to the dtype's
    precision.
    """
    flags = ["--loss", "dpo", "--lr", "1e-2", "--batch_size", "64", "--eval_every", "4"]    # one batch an epoch
    pref(tmp_path / "run", *flags, "--dtype", dtype)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("device ")]
    assert len(lines) == 1 and lines[0].startswith("device cpu") and lines[0].endswith(f", {dtype}")
    pref(tmp_path / "float32", *flags)
    log, want = log_of(tmp_path / "run"), log_of(tmp_path / "float32")
    assert log.keys() == want.keys() and log[0, "val", "loss"] == pytest.approx(math.log(2), abs=tol)
    assert log[1, "train", "logps/chosen"] == pytest.approx(want[1, "train", "logps/chosen"], rel=tol)
    assert log[1, "train", "logps/chosen"] != want[1, "train", "logps/chosen"]    # autocast was on
    assert log[4, "train", "loss"] == pytest.approx(want[4, "train", "loss"], abs=5 * tol)
    assert want[4, "train", "loss"] < math.log(2) - 0.01
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert all(p.dtype == torch.float32 for p in state["model"].values())
    assert bool(state["scaler"]) == (dtype == "float16")

# ---------------------------------------------------------------------------------------------------------------------
# adapters

@pytest.mark.parametrize("mode", adapters.MODES)
def test_adapter_runs_train_save_the_adapter_alone_and_load_again(here, tmp_path, mode):
    """An adapter run must not save the whole model, and its adapter must not load onto the wrong weights."""
    base = fingerprint(GPT.from_pretrained("out/toy/sft"))
    pref(tmp_path / "run", "--adapter", mode, "--adapter_rank", "4", "--lr", "1e-2")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert (tmp_path / "run" / "adapter.safetensors").stat().st_size < 4000
    start = first_log(tmp_path / "run")[0]
    assert (abs(start - math.log(2)) < 1e-5) == (mode != "replace")
    facts, policy, reference = eval.load_policy(tmp_path / "run", torch.device("cpu"))
    rows = sampling.read_pairs(facts["pairs"])["val"]
    no_autocast = torch.autocast("cpu", enabled=False)
    measured = measures.pair_measures(policy, lambda: eval.as_reference(policy, reference), rows, 16, no_autocast)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    margin = first_log(tmp_path / "run", "rewards/margins")[result["best_step"] // 2]
    assert 0.1 * measured["margin"].mean() == pytest.approx(margin, abs=1e-4)
    assert fingerprint(GPT.from_pretrained("out/toy/sft")) == base

def test_an_adapter_whose_base_has_changed_is_refused(here, tmp_path):
    """On other weights an adapter still gives plausible numbers, so only the error shows it."""
    base = GPT.from_pretrained("out/toy/sft")
    base.save_pretrained(tmp_path / "base")
    pref(tmp_path / "run", "--adapter", "parallel", "--init_from", str(tmp_path / "base"))
    base.transformer.ln_f.bias.data += 0.1
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="another model"):
        eval.load_policy(tmp_path / "run", torch.device("cpu"))

# ---------------------------------------------------------------------------------------------------------------------
# run directories

def test_the_same_command_twice_takes_the_next_free_name(here, monkeypatch):
    """Nothing is overwritten: out/toy/hinge and out/toy/hinge-2 each have their own picture."""
    monkeypatch.setattr(eval, "main", lambda *args, **more: {})
    for _ in range(2):
        train_pref.main(["--loss", "hinge", *QUICK])
    weights = [Path("out/toy") / d / "model.safetensors" for d in ("hinge", "hinge-2")]
    assert weights[0].read_bytes() == weights[1].read_bytes()    # the same seed gives the same bits
    assert all((w.parent / "curves.png").is_file() for w in weights)    # test_loop.py looks into one
    args = [json.loads((w.parent / "args.json").read_text()) for w in weights]
    assert args[0]["args"]["out_dir"] != args[1]["args"]["out_dir"] and args[0]["versions"]["torch"]
    assert args[0]["hparams"] == {"beta": 0.2} and args[0]["args"]["init_from"] == "out/toy/sft"

def test_the_pairs_are_sampled_once_for_all_losses(here, tmp_path, capsys):
    """The pairs are stored in the SFT run's folder. Another seed means other pairs."""
    for loss, seed in (("ipo", "3"), ("dpo", "3"), ("dpo", "4")):
        pref(tmp_path / f"{loss}{seed}", "--loss", loss, "--seed", seed)
    pairs = [json.loads((tmp_path / d / "args.json").read_text())["pairs"] for d in ("ipo3", "dpo3", "dpo4")]
    assert pairs[0] == pairs[1] != pairs[2] and all(Path(p).parent == Path("out/toy/sft") for p in pairs)
    assert "sampled before" in capsys.readouterr().out

@pytest.mark.slow
def test_without_an_sft_run_the_toy_world_trains_one_and_says_so(tmp_path, monkeypatch, capsys):
    """The main job needs no earlier run. An interrupted SFT run is finished first, and not used as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(toy, "examples", fewer)
    small = ["--n_layer", "1", "--n_embd", "32", "--max_steps", "60", "--batch_size", "32", "--lr", "1e-2"]
    calls = []
    real = train_sft.main
    def train(argv):
        calls.append(argv)
        return real(argv if "--resume" in argv else argv + small)
    monkeypatch.setattr(train_sft, "main", train)
    assert pref(tmp_path / "a", "--loss", "dpo")["step"] == 4
    assert len(calls) == 1 and "no SFT policy" in capsys.readouterr().out
    Path("out/toy/sft/result.json").unlink()
    pref(tmp_path / "b", "--loss", "dpo")
    assert len(calls) == 2 and "--resume" in calls[1]

def test_resume_goes_on_to_the_same_weights(here, tmp_path, monkeypatch):
    """The scripts, not only the loop: arguments, pairs, reference and adapters must be restored."""
    flags = ["--loss", "dpo", "--adapter", "sequential", "--lr", "1e-2", "--seed", "7", "--max_steps", "6"]
    pref(tmp_path / "whole", *flags)
    real, done = loop.train_step, []
    def cut(*args):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args)
    monkeypatch.setattr(loop, "train_step", cut)
    with pytest.raises(SystemExit) as stop:
        pref(tmp_path / "cut", *flags)
    assert stop.value.code == 130
    monkeypatch.setattr(loop, "train_step", real)
    monkeypatch.setattr(eval, "main", lambda *args, **more: {})
    train_pref.main(["--resume", "--out_dir", str(tmp_path / "cut")])
    for name in ("log.csv", "adapter.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()

# ---------------------------------------------------------------------------------------------------------------------
# evaluation

@pytest.mark.usefixtures("painted")
def test_eval_measures_a_run_and_its_reference(here, tmp_path, capsys):
    """eval.json has every number of the final table, with its interval, and the pictures are drawn."""
    pref(tmp_path / "run", "--loss", "dpo", "--lr", "1e-3", "--n_prompts", "60", "--max_steps", "12")
    result = eval.main(["--run", str(tmp_path / "run"), "--n_prompts", "40", "--show", "2"])
    out = capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "eval.json").read_text())
    keys = ("reward", "reward_positive", "win", "kl", "entropy", "completion_entropy", "pooled_4", "distinct_1",
            "distinct_2", "length", "eos", "accuracy")
    for side in ("before", "after"):
        for key in keys:
            mean, low, high = stored["measures"][side][key]
            assert low <= mean <= high
    assert stored["measures"]["before"]["kl"] == [0, 0, 0] and stored["measures"]["after"]["kl"][0] > 0
    assert result["measures"] == stored["measures"] and len(stored["samples"]) == 40
    assert out.count("prompt   ") == 2 and out.count("(reward ") == 4
    assert (tmp_path / "run" / "eval.png").stat().st_size > 10_000
    sample = stored["samples"][0]
    one = eval.main(["--run", str(tmp_path / "run"), "--n_prompts", "40", "--n_samples", "1", "--show", "0"])
    stored = json.loads((tmp_path / "run" / "eval.json").read_text())
    reward = sum(toy.reward(s["prompt"] + s["after"]) for s in stored["samples"]) / 40
    assert one["measures"]["after"]["reward"][0] == pytest.approx(reward)
    assert toy.split_of(sample["prompt"]) == "test"
    capsys.readouterr()
    eval.main(["--run", str(tmp_path / "run"), "--n_prompts", "4", "--n_samples", "1", "--show", "1", "--displacement"])
    moved = json.loads((tmp_path / "run" / "displacement.json").read_text())
    assert moved["prompts"] == 4 and moved["verdict"] in capsys.readouterr().out

def test_eval_of_an_sft_run_needs_no_reference(here, capsys):
    """A run from scratch has no reference: no column before, and no KL."""
    found = eval.main(["--run", "out/toy/sft", "--n_prompts", "20", "--show", "1"])["measures"]
    assert list(found) == ["after"] and "kl" not in found["after"] and 0 < found["after"]["reward"][0] < 1

def test_runs_side_by_side(here, tmp_path, capsys):
    """
    One table measures the shared reference once. Beside it: wins against another run, colder samples, the best of
    n.
    """
    for name, seed in (("a", "0"), ("b", "1")):
        pref(tmp_path / name, "--loss", "dpo", "--lr", "1e-3", "--max_steps", "6", "--seed", seed)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    flags = ["--n_prompts", "20", "--max_new_tokens", "20", "--show", "0"]
    alone = eval.main(["--run", b, *flags])
    capsys.readouterr()
    both = eval.main(["--run", a, b, "--against", a, "--temperature", "1", "0.5", "0", "--best_of", "5", *flags])
    out = capsys.readouterr().out
    assert list(both) == [a, b] and out.split("\n")[3].split() == ["out/toy/sft", a[-26:], b[-26:]]
    for key, value in alone["measures"]["after"].items():
        assert both[b]["measures"]["after"][key] == value or key in ("accuracy", "margin")    # on the first run's pairs
    assert both[a]["measures"]["before"] == both[b]["measures"]["before"]
    win_a, win_b = (both[run]["measures"]["after"]["win_other"][0] for run in (a, b))
    assert win_a == pytest.approx(0.5) != win_b
    assert both[a]["measures"]["before"]["win"][0] == pytest.approx(0.5)
    assert [row["temperature"] for row in both[a]["temperatures"]] == [0.5, 0]
    assert all(len(row["samples"]) == 20 for row in both[a]["temperatures"])
    colder = both[a]["temperatures"][0]["before"]    # the reference sampled colder is another policy
    assert colder["kl"][0] > 0 and colder["entropy"][0] < both[a]["measures"]["before"]["entropy"][0]
    best_of = both[a]["best_of"]
    assert [row["n"] for row in best_of] == [1, 2, 4]
    assert best_of[1]["kl"] == pytest.approx(math.log(2) - 0.5)
    assert out.count("best of") == 6 and out.count("temperature 0.5") == 4

def test_runs_on_other_data_do_not_stand_side_by_side(here, tmp_path, capsys):
    """With prompts of other lengths, one table of both would compare nothing."""
    pref(tmp_path / "a", "--loss", "dpo")
    pref(tmp_path / "b", "--loss", "dpo", "--max_len", "48")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for flags in (["--run", a, b], ["--run", a, "--against", b]):
        with pytest.raises(SystemExit):
            eval.main(flags)
        assert "--max_len 48" in capsys.readouterr().err

def test_labels_are_really_flipped(here, tmp_path, monkeypatch):
    """
    A share of the training and validation pairs is flipped, equal for all losses of a seed. eval.py's pairs stay
    right.
    """
    seen = {}
    def batches(rows, *args, **more):
        seen.setdefault("rows", []).append([(r["chosen"], r["rejected"]) for r in rows])
        return Batches(rows, *args, **more)
    Batches = data.Batches
    monkeypatch.setattr(data, "Batches", batches)
    for name, noise in (("clean", "0"), ("noisy", "0.25"), ("again", "0.25"), ("all", "1")):
        pref(tmp_path / name, "--loss", "dpo", "--label_noise", noise, "--max_steps", "1")
    clean, noisy, again, swapped = (seen["rows"][i:i + 2] for i in (0, 2, 4, 6))
    for part, others in zip(clean, noisy):
        flipped = sum(a != b for a, b in zip(part, others))
        assert flipped == round(0.25 * len(part)) and all(b in (a, a[::-1]) for a, b in zip(part, others))
    assert noisy == again and swapped == [[pair[::-1] for pair in part] for part in clean]
    with pytest.raises(SystemExit):
        pref(tmp_path / "wrong", "--loss", "dpo", "--label_noise", "1.5")

def test_labels_can_be_drawn(here, tmp_path):
    """With --labels bradley_terry some pairs prefer the sample of lower reward. Their rows are those of training."""
    gaps = {}
    for labels in ("best", "bradley_terry"):
        pref(tmp_path / labels, "--loss", "dpo", "--labels", labels, "--max_steps", "1")
        path = json.loads((tmp_path / labels / "args.json").read_text())["pairs"]
        rows = [json.loads(line) for line in open(path, encoding="utf-8")]
        gaps[labels] = [row["chosen"]["reward"] - row["rejected"]["reward"] for row in rows]
    assert min(gaps["best"]) > 0 >= min(gaps["bradley_terry"])

@pytest.mark.parametrize("flags", [[], ["--adapter", "sequential"]], ids=["full", "adapter"])
def test_the_weights_of_every_evaluation_can_be_kept(here, tmp_path, flags):
    """step-0 is the reference, the best is one of the steps, and eval.py accepts each as a run."""
    pref(tmp_path / "run", "--loss", "dpo", "--lr", "1e-3", "--max_steps", "4", "--eval_every", "2", "--keep_all",
         *flags)
    weights = "adapter.safetensors" if flags else "model.safetensors"
    kept = [(tmp_path / "run" / f"step-{k}" / weights).read_bytes() for k in (0, 2, 4)]
    assert len(set(kept)) == 3 and (tmp_path / "run" / weights).read_bytes() in kept
    short = ["--n_prompts", "16", "--n_samples", "2", "--max_new_tokens", "16", "--show", "0"]
    kl = []
    for k in (0, 2, 4):
        found = eval.main(["--run", str(tmp_path / "run" / f"step-{k}"), *short])
        kl.append(found["measures"]["after"]["kl"][0])
    assert kl[0] == 0 < kl[1] < kl[2]

def test_a_prompt_is_answered_by_reference_and_policy(here, tmp_path, capsys):
    """Answers are shown side by side, as many as --show says. Nothing is measured or written."""
    pref(tmp_path / "run", "--loss", "dpo")
    capsys.readouterr()
    eval.main(["--run", str(tmp_path / "run"), "--prompt", "i saw this film", "--show", "2"])
    out = capsys.readouterr().out
    labels = [line[:9].strip() for line in out.strip().split("\n")[1:]]
    assert labels == ["prompt", "before", "after", "", "prompt", "before", "after"]
    assert not (tmp_path / "run" / "eval.json").exists()
    with pytest.raises(SystemExit):
        eval.main(["--run", str(tmp_path / "run"), "--prompt", "film " * 100])
    assert "--prompt has 104 tokens" in capsys.readouterr().err

def test_eval_of_data_without_a_reward(here, tmp_path, monkeypatch, tokenizer):
    """Real pairs have no reward. All other measures are there, with accuracy and margin on held-out pairs."""
    monkeypatch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
    rows = [{"prompt": f"the plot {i} was", "chosen": " superb .", "rejected": " dull ."} for i in range(40)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval, "main", lambda *args, **more: {})
        train_pref.main(["--data", str(tmp_path / "mine.jsonl"), "--init_from", "out/toy/sft", "--max_len", "32",
                         "--batch_size", "8", "--max_steps", "10", "--eval_every", "5", "--lr", "1e-2",
                         "--out_dir", str(tmp_path / "run"), "--n_show", "0"])
    result = eval.main(["--run", str(tmp_path / "run"), "--max_new_tokens", "8"])
    assert "reward" not in result["measures"]["after"] and 1 <= result["pairs"] <= 12
    samples = json.loads((tmp_path / "run" / "eval.json").read_text())["samples"]
    assert {s["chosen"] for s in samples} == {" superb ."}    # a judge may compare with these
    after = result["measures"]["after"]
    assert after["accuracy"][0] == 1 and after["margin"][0] > 0.1

# ---------------------------------------------------------------------------------------------------------------------
# other libraries, compiling

def test_transformers_opens_a_run(here):
    """A run is a Hugging Face checkpoint and needs no export."""
    transformers = pytest.importorskip("transformers")
    idx = torch.tensor([[300, 301, 302, 303]])
    hf = transformers.AutoModelForCausalLM.from_pretrained("out/toy/sft").eval()
    with torch.no_grad():
        assert torch.allclose(hf(idx).logits, GPT.from_pretrained("out/toy/sft")(idx), atol=1e-4)

@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_a_plain_one(here, tmp_path):
    """--compile may reorder sums, but must not change the training."""
    for name, flags in (("plain", []), ("compiled", ["--compile"])):
        pref(tmp_path / name, "--loss", "dpo", *flags)
    assert first_log(tmp_path / "plain") == pytest.approx(first_log(tmp_path / "compiled"), abs=1e-4)

@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_main_job_aligns_the_policy(seed, main_sft, in_tmp):
    """The reward reaches 0.9 at a KL of at most 10 nats, in varied sentences of the grammar."""
    shutil.copytree(main_sft, "out/toy/sft")    # as if the job itself had trained it
    measures = train_pref.main(["--loss", "dpo", "--seed", str(seed), "--out_dir", str(seed)])["measures"]
    assert abs(measures["before"]["reward"][0] - 0.5) < 0.08
    assert measures["after"]["reward"][0] >= 0.9 and 0 < measures["after"]["kl"][0] <= 10
    samples = json.loads(Path(f"{seed}/eval.json").read_text())["samples"]
    known = []
    for sample in samples:
        for part in (sample["prompt"] + sample["after"]).split(".")[1:]:
            sentence = " ".join(part.split())
            if sentence:
                known.append(bool(toy.OPINION.fullmatch(sentence) or toy.SUMMARY.fullmatch(sentence)))
    assert sum(known) / len(known) > 0.85    # the SFT policy has 0.99; after DPO 0.89 to 0.99, depending on the seed
    assert len({x["after"] for x in samples}) > 0.95 * len(samples)
