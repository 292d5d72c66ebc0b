"""
Running a script: threads, Ctrl-C at any moment, flags with impossible values, and notes on runs whose numbers mean
little.
"""
import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from support import cli, parallel, rundir
import data
import sampling
import eval as evaluation
import judge
import loop
import measures
import objective
import reference
import toy
import train_pref
import train_sft
from rlhf import train_ppo, train_reward
from study import bag, bandit, bench, real, sweep
from test_loop import Line, fit
from test_parallel import start
from tests.processes import ended

ROOT = Path(__file__).resolve().parents[1]
GOOD = [{"prompt": f"the plot {i}", "chosen": f" was fine {i}", "rejected": " was dull"} for i in range(20)]
QUICK = ["--max_steps", "2", "--eval_every", "2", "--batch_size", "8", "--warmup_steps", "0"]
PREF = ["--data", "good.jsonl", "--init_from", "sft", *QUICK, "--n_show", "0"]
PPO = "--true_reward --rollout 8 --batch_size 8 --max_steps 2 --eval_every 2 --n_prompts 8 --n_show 0".split()

@pytest.fixture
def here(in_tmp, own_tokenizer, sft_run, monkeypatch):
    """
    A folder with pairs, and a run that is the toy world's policy too. No pictures, which take longer than the rest.
    """
    shutil.copytree(sft_run, "sft")
    shutil.copytree(sft_run, "out/toy/sft")
    Path("good.jsonl").write_text("".join(json.dumps(r) + "\n" for r in GOOD))
    monkeypatch.setattr(loop, "plot_curves", lambda folder: None)
    monkeypatch.setattr(evaluation, "draw", lambda *args: None)
    return in_tmp

# ---------------------------------------------------------------------------------------------------------------------
# threads

@pytest.fixture
def two_threads():
    """PyTorch's own choice on two cores."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)

@pytest.mark.parametrize("flags, threads", [
    ({"data": "toy"}, 1), ({"data": "toy", "threads": 2}, 2), ({"data": "hh"}, 2), ({"data": "hh", "threads": 1}, 1),
    ({}, 2)], ids=str)
def test_the_toy_world_takes_one_thread_unless_told_otherwise(two_threads, flags, threads):
    """With the machine's own number of threads, the numbers of a seed would depend on the machine."""
    said = []
    cli.set_up(seed=0, device="cpu", dtype="float32", **flags, say=said.append)
    assert torch.get_num_threads() == threads
    assert said == [f"device cpu ({'1 thread' if threads == 1 else '2 threads'}), float32"]

@pytest.mark.parametrize("threads", [None, "2"])
def test_the_threads_are_those_of_all_scripts_that_a_script_calls(here, monkeypatch, threads):
    """An SFT policy trained with other threads is another policy, and measures with other threads are other numbers."""
    calls, flag = [], ["--threads", threads] if threads else []
    monkeypatch.setattr(evaluation, "main", lambda argv, say=None: calls.append(argv) or {})
    train_pref.main([*PREF, *flag])
    shutil.rmtree("out/toy/sft")
    monkeypatch.setattr(train_sft, "main", calls.append)
    start = train_ppo.get_args(["--init_from", "sft", *flag])
    train_sft.policy_for(**cli.flags_of(start, train_sft.policy_for))
    monkeypatch.setattr(train_reward, "main", calls.append)
    with pytest.raises(SystemExit):    # no reward model was trained
        train_ppo.main(["--init_from", "sft", *flag])
    assert len(calls) == 3
    for argv in calls:
        given = argv[argv.index("--threads"):][:2] if "--threads" in argv else []
        assert given == flag

def test_a_toy_run_is_evaluated_on_one_thread(here, two_threads):
    """eval.py's own --data is usually empty. Its data are those in the run's args.json."""
    args = json.loads(Path("out/toy/sft/args.json").read_text())
    Path("out/toy/sft/args.json").write_text(json.dumps(args | {"args": args["args"] | {"data": "toy"}}))
    evaluation.main(["--run", "out/toy/sft", "--n_prompts", "2", "--n_samples", "1", "--show", "0"])
    assert torch.get_num_threads() == 1

def test_the_bandit_takes_one_thread(two_threads, monkeypatch):
    """Its table is in the documents, to the last digit."""
    seen = []
    monkeypatch.setattr(bandit, "rows", lambda *args: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(bandit, "show", lambda *args: None)
    bandit.main([])
    bandit.main(["--threads", "2"])
    assert seen == [1, 2]

def test_a_run_may_go_on_with_other_threads_and_says_so(here, capsys):
    """As with another device, only the last bits differ."""
    assert train_sft.get_args(["--resume", "--out_dir", "sft", "--threads", "2"]).threads == 2
    assert "--threads was None, and is 2" in capsys.readouterr().out

@pytest.mark.slow
def test_a_seed_gives_the_same_bytes_whatever_the_environment_says(in_tmp):
    """This starts a new process, because PyTorch reads the variable at its start."""
    tiny = "--n_layer 1 --n_embd 32 --max_steps 4 --eval_every 4".split()
    command, logs = [sys.executable, str(ROOT / "train_sft.py"), *tiny], []
    for name, threads in (("unset", {}), ("two", {"OMP_NUM_THREADS": "2"}), ("one", {"OMP_NUM_THREADS": "1"})):
        env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | threads
        done = subprocess.run([*command, "--out_dir", name], env=env, capture_output=True, text=True)
        assert done.returncode == 0 and "device cpu (1 thread), float32" in done.stdout, done.stderr
        logs.append(Path(name, "log.csv").read_bytes())
    assert len(set(logs)) == 1

# ---------------------------------------------------------------------------------------------------------------------
# Ctrl-C

def ctrl_c(*args, **more):
    raise KeyboardInterrupt

RESUME = "python train_pref.py --resume --out_dir out/good/dpo"
REAL = ["--data", "imdb", "--data_dir", "x"]
AGAIN = "python -m rlhf.train_ppo --resume --out_dir out/toy/ppo"
REWARD = ["--data", "good.jsonl", "--init_from", "sft"]
MOMENTS = {    # the script, its flags, the function that Ctrl-C interrupts, and a part of the printed command
    "sft, data are read": (
        train_sft.main, ["--data", "good.jsonl", *QUICK], (data, "load_rows"),
        "python train_sft.py --data good.jsonl --max_steps 2"),
    "dpo, data are read": (
        train_pref.main, PREF, (data, "load_rows"), "python train_pref.py --data good.jsonl --init_from sft"),
    "dpo, pairs are sampled": (
        train_pref.main, ["--n_prompts", "2"], (sampling, "sample_completions"), "python train_pref.py --n_prompts 2"),
    "dpo, sft's data are read": (
        train_pref.main, ["--loss", "ipo"], (data, "load_rows"), "python train_pref.py --loss ipo"),
    "dpo, the reference's log-probs": (train_pref.main, PREF, (reference, "batch_logps"), RESUME),
    "dpo, validation": (train_pref.main, PREF, (loop, "evaluate"), RESUME),
    "dpo, the curves": (train_pref.main, PREF, (loop, "plot_curves"), RESUME),
    "dpo, samples at the end": (train_pref.main, PREF, (evaluation, "measure"), RESUME),
    "dpo, pairs at the end": (train_pref.main, PREF, (evaluation, "pair_measures"), RESUME),
    "eval, the model is loaded": (
        evaluation.main, ["--run", "sft"], (evaluation, "load_policy"), "python eval.py --run sft"),
    "eval, samples": (
        evaluation.main, ["--run", "sft", "--show", "1"], (evaluation, "measure"), "python eval.py --run sft --show 1"),
    "reward, data are read": (
        train_reward.main, REWARD, (data, "load_rows"),
        "python -m rlhf.train_reward --data good.jsonl --init_from sft"),
    "reward, it is judged": (
        train_reward.main, [*REWARD, *QUICK], (train_reward, "evaluate_pairs"),
        "python -m rlhf.train_reward --resume --out_dir out/good/reward"),
    "ppo, its reward's pairs": (
        train_ppo.main, ["--n_prompts", "512"], (sampling, "sample_completions"),
        "python -m rlhf.train_ppo --n_prompts 512"),
    "ppo, it samples": (train_ppo.main, PPO, (sampling, "sample_completions"), AGAIN),
    "ppo, its reward judges": (train_ppo.main, PPO, (toy, "reward"), AGAIN),
    "data": (data.main, ["--data", "good.jsonl"], (data, "make_rows"), "python data.py --data good.jsonl"),
    "bandit": (bandit.main, ["--seed", "3"], (bandit, "train"), "python -m study.bandit --seed 3"),
    "bag": (bag.main, ["--half", "first"], (bag, "load_labeled_reviews"), "python -m study.bag --half first"),
    "real": (real.main, REAL, (data, "load_rows"), "python -m study.real --data imdb --data_dir x"),
    "sweep": (sweep.main, ["--quick"], (sweep, "run"), "python -m study.sweep --quick"),
    "bench": (bench.main, ["--growth"], (bench, "measured"), "python -m study.bench --growth"),
}

@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_is_one_line_with_the_command_that_goes_on(here, capsys, monkeypatch, moment):
    """A traceback looks like a bug. The printed command must neither be refused nor start the run again from zero."""
    main, argv, (module, name), command = MOMENTS[moment]
    if moment == "dpo, sft's data are read":
        shutil.rmtree("out/toy/sft")
    if main is real.main:
        monkeypatch.setattr(data, "get_tokenizer", lambda *args: toy.encoding())
    monkeypatch.setattr(module, name, ctrl_c)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as end:    # or pytest itself would be interrupted
        main(argv)
    err = capsys.readouterr().err
    assert end.type is SystemExit and end.value.code == 130 and "Traceback" not in err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and "interrupted" in lines[0] and command in lines[0], err
    assert not cli.RUNNING

def test_the_command_that_is_given_goes_on_to_the_same_run(here, capsys, monkeypatch):
    """The run stops before its first saved state. Repeating the first command would start a second run."""
    with monkeypatch.context() as patch:
        patch.setattr(reference, "batch_logps", ctrl_c)
        with pytest.raises(SystemExit):
            train_pref.main(PREF)
    command = capsys.readouterr().err.split("To resume: python train_pref.py ")[1].split()
    assert train_pref.main(command)["step"] == 2
    assert [p.name for p in Path("out/good").iterdir()] == ["dpo"] and Path("out/good/dpo/eval.json").is_file()

def test_only_ctrl_c_is_made_a_line(here, monkeypatch):
    """A ValueError in training is a bug, and its traceback shows the place."""
    def broken(*args):
        raise ValueError("a bug")
    monkeypatch.setattr(objective, "batch_logps", broken)
    with pytest.raises(ValueError, match="a bug"):
        train_pref.main(PREF)
    assert not cli.RUNNING

def test_a_sweeps_worker_takes_no_other_run_after_an_interruption(tmp_path, monkeypatch):
    """The pool waits for its workers, so a worker that takes the next run delays the end by that run."""
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    def job(root, *args):
        raise SystemExit(130)
    sweep.quietly((job, tmp_path, "dpo", 0, {}))
    assert ends == [130]

@pytest.mark.slow
def test_ctrl_c_from_the_shell(here):
    """A real signal to a process, in training and in the evaluation after it: status 130 and no traceback."""
    flags = ["--init_from", "sft", "--max_steps", "2", "--eval_every", "2", "--batch_size", "4"]
    tiny = f"""
import sys, time; sys.path.insert(0, {str(ROOT)!r})
import data, toy, train_pref, eval
data.get_tokenizer = lambda *args: toy.encoding()
real = {{}}
def slow(*args, **more):
    print("now", flush=True)
    found = real[0](*args, **more)
    time.sleep(2)    # so that a fast machine is not done before the signal
    return found
module = {{"reference": (train_pref, "add_reference"), "samples": (eval, "measure")}}[sys.argv[1]]
real[0] = getattr(*module)
setattr(*module, slow)
train_pref.main(["--data", "good.jsonl", *{flags!r}, "--out_dir", sys.argv[1]])
"""
    rows = [row | {"prompt": f"{row['prompt']} {i}"} for i in range(100) for row in GOOD]
    Path("good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for moment in ("reference", "samples"):
        process = subprocess.Popen([sys.executable, "-c", tiny, moment], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.stdout.readline().strip() != "now":
            pass
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=120)[1]
        assert process.returncode == 130 and "Traceback" not in err
        assert f"--resume --out_dir {moment}" in err, err

# ---------------------------------------------------------------------------------------------------------------------
# flags

SCRIPTS = {    # module, the flags that it requires
    "train_sft": (train_sft, []),
    "train_pref": (train_pref, []),
    "eval": (evaluation, ["--run", "sft"]),
    "data": (data, []),
    "judge": (judge, ["--run", "sft"]),
    "train_ppo": (train_ppo, []),
    "train_reward": (train_reward, []),
    "bandit": (bandit, []),
    "bag": (bag, []),
    "bench": (bench, []),
    "real": (real, []),
    "sweep": (sweep, []),
}
NASTY = ("nan", "-nan", "inf", "-inf", "1e999", "-1", "0", "1e3", "2.5", "9" * 30, "9" * 400, "x", "", "  ")

def options(module, argv):
    """The flags of a script that take a value."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        real = argparse.ArgumentParser.parse_known_args
        patch.setattr(argparse.ArgumentParser, "parse_known_args", lambda p, *args: found.append(p) or real(p, *args))
        module.get_args(argv)
    return [a.option_strings[-1] for a in found[0]._actions if a.option_strings and a.nargs != 0]

def numbers(values):
    """The floats among the values and inside lists of values."""
    found = []
    for value in values:
        found += value if isinstance(value, list) else [value]
    return [x for x in found if isinstance(x, float)]

@pytest.mark.parametrize("script", SCRIPTS)
def test_no_flag_takes_nonsense_in_silence_nor_with_a_traceback(script, capsys, in_tmp):
    """
    NaN passes every comparison, an empty shell variable looks like a missing flag, and 400 digits overflow a float.
    """
    module, needed = SCRIPTS[script]
    flags, plain = options(module, needed), vars(module.get_args(needed))
    assert len(flags) > 1
    for flag in flags:
        for value in NASTY:
            try:
                args = vars(module.get_args([*needed, f"{flag}={value}"]))
            except SystemExit as end:
                err = capsys.readouterr().err
                assert end.code == 2 and err.count("\n") == 1 and "error: " in err, (flag, value, err)
            else:
                assert all(map(math.isfinite, numbers(args.values()))), (flag, value)
                assert value.strip() or flag == "--prompt" or module in (data, judge), (flag, value)
                old, new = plain[flag[2:]], args[flag[2:]]
                assert not (type(old) is int and type(new) is float) or flag in ("--lr", "--temperature"), (flag, value)

@pytest.mark.parametrize("text, value", [("0", 0), ("3", 3), ("0.5", 0.5), ("1e3", 1000.0), (" 7", 7)])
def test_a_whole_number_stays_one(text, value):
    """--temperature 1 is printed and looked up as 1, and a number of steps must be an int."""
    assert cli.not_negative(text) == value and type(cli.not_negative(text)) is type(value)
    with pytest.raises(ValueError):
        cli.count("2.5")

@pytest.mark.parametrize("flags, word", [
    (["--warmup_steps", "2.5"], "--warmup_steps"),
    (["--patience", "1.5"], "--patience"),
    (["--adam_epsilon", "0"], "--adam_epsilon"),
    (["--seed", str(2**63)], "--seed"),
    (["--data", ""], "--data"),
    (["--beta", "inf"], "beta"),
    (["--lr", "nan"], "--lr"),
    (["--label_noise", "nan"], "--label_noise"),
    (["--label_noise", "1.5"], "--label_noise"),
    (["--dropout", "1.5"], "dropout"),
    (["--threads", "0"], "--threads"),
    (["--out_dir", "good.jsonl"], "good.jsonl"),
    (["--out_dir", "good.jsonl/run"], "good.jsonl")])
def test_what_cannot_be_meant_is_refused_in_one_line(here, capsys, flags, word):
    """Among them are a fractional warmup, 0 / 0 in AdamW, and a run's folder inside a file."""
    with pytest.raises(SystemExit) as end:
        train_pref.main([*PREF, *flags])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and word in err
    assert not Path("out/good").exists()

@pytest.mark.parametrize("temperature", ["1e-9", "1e-300"])
def test_a_temperature_at_which_logits_overflow_is_refused(temperature, capsys):
    """Infinity minus infinity is NaN, and sampling from NaN gives an invalid token."""
    with pytest.raises(SystemExit) as end:
        evaluation.get_args(["--run", "x", "--temperature", "1", temperature])
    assert end.value.code == 2 and "--temperature" in capsys.readouterr().err

def test_a_run_shorter_than_its_first_evaluation_is_evaluated_at_both_ends(here, monkeypatch):
    """With --eval_every larger than --max_steps, only the reference's weights would be saved."""
    monkeypatch.setattr(evaluation, "main", lambda *args, **more: {})
    train_pref.main([*PREF, "--max_steps", "1", "--eval_every", "1000", "--lr", "1e-2"])
    log = Path("out/good/dpo/log.csv").read_text()
    assert "0,val,loss," in log and "1,val,loss," in log

def test_weights_that_were_never_kept_are_not_spoken_of(tmp_path):
    """If the first validation loss is NaN, no weights were saved, and the message must not name a step None."""
    model = Line()
    nan = lambda batch: ((model(batch["x"]) * math.nan).mean(), {})
    with pytest.raises(SystemExit) as stop:
        fit(model, tmp_path / "a", compute_loss=nan)
    assert "No weights are in" in str(stop.value) and "None" not in str(stop.value)
    def later(batch):
        loss = (model(batch["x"]) - batch["y"]).pow(2).mean()
        return loss * (1 if model.training else math.nan), {}
    with pytest.raises(SystemExit) as stop:
        fit(model, tmp_path / "b", compute_loss=later, max_steps=2, eval_every=2)
    assert "no weights" in str(stop.value) and "\n" not in str(stop.value)
    assert not (tmp_path / "b" / "result.json").exists()    # this file marks a finished run

# ---------------------------------------------------------------------------------------------------------------------
# notes

@pytest.mark.parametrize("facts, word", [
    ({"val_loss": 10.8, "n_vocab": 50257}, "guessing"),
    ({"val_loss": 10.5, "n_vocab": 50257}, None),
    ({"val_loss": 5.9, "n_vocab": 373}, "guessing"),
    ({"val_loss": 1.15, "n_vocab": 373}, None),
    ({"entropy": 10.8, "n_vocab": 50257}, "guessing"),
    ({"entropy": 10.5, "n_vocab": 50257}, None),
    ({"pairs": 31}, "31 validation pairs are"),
    ({"pairs": 1}, "1 validation pair is"),
    ({"pairs": 32}, None),
    ({"pairs": 0}, None),
    ({"accuracy": 1.0, "same": 0.99}, "word for word"),
    ({"accuracy": 1.0, "same": 0.5}, None),
    ({"accuracy": 0.6, "same": 1.0}, None),
    ({"accuracy": 1.0}, None),
    ({"whole": 0.3}, "broken"),
    ({"whole": 0.89}, None),
    ({}, None)], ids=str)
def test_a_note_is_made_when_it_is_due_and_not_otherwise(facts, word):
    """Nobody reads a note that every run has. Without a note, a meaningless result is believed."""
    found = measures.notes(**facts)
    assert len(found) == bool(word) and all(word in sentence and "\n" not in sentence for sentence in found)

OPENING, OPINION, END = "my wife saw this film at home .", " the plot was not so dull .", " in short , a gem ."

@pytest.mark.parametrize("text, share", [
    (OPENING + OPINION + END, 1),
    (OPENING, 1),
    (OPINION + " plot plot .", 0.5),
    (OPINION + " the plot", 0.5),
    (" gem gem .", 0),
    ("", 0),
    (OPENING.replace("saw", "plot") + END, 0.5)])
def test_whole_sentences_by_hand(text, share):
    """Openings count as sentences. An unfinished sentence is not whole."""
    assert toy.whole_sentences(text) == share

def test_every_review_of_the_grammar_is_whole():
    """Otherwise good policies would get the note too."""
    assert all(toy.whole_sentences(e["prompt"] + e["chosen"]) == 1 for e in toy.examples("train", 200))

def result(n, after, before=None, **more):
    samples = [{"prompt": OPENING + " the plot", "after": text} for text in after]
    for sample, text in zip(samples, before or []):
        sample["before"] = text
    shares = [measures.whole_share(s["prompt"], s["after"]) for s in samples]
    share = [sum(shares) / len(shares)] * 3
    after = {"entropy": [1.1, 1.0, 1.2], "whole": share} | more
    return {"samples": samples, "pairs": n, "measures": {"after": after}}

def test_the_notes_on_samples_see_what_the_policy_wrote():
    """The prompt's opening must not count: with it, a policy that writes nonsense has every second sentence right."""
    good, bad = " was dull ." + END, " plot plot gem gem the the"
    assert not measures.notes_on(result(50, [good, good]), 373, True)
    assert "broken" in measures.notes_on(result(50, [bad, bad]), 373, True)[0]
    assert not measures.notes_on(result(50, [bad, bad]), 373, False)
    still = measures.notes_on(result(50, [good, good], [good, good], accuracy=[1.0, 1.0, 1.0]), 373, True)
    assert len(still) == 1 and "word for word" in still[0]
    assert not measures.notes_on(result(50, [good, good], [good, bad], accuracy=[1.0, 1.0, 1.0]), 373, True)

def test_the_notes_are_the_last_lines_of_a_run(here, capsys):
    """At the end of the output, users see them."""
    train_pref.main(PREF)
    last = capsys.readouterr().out.splitlines()[-2:]
    assert all(line.startswith("note: ") for line in last)
    assert "validation pair" in last[0] and "word for word" in last[1]
    train_sft.main(["--data", "good.jsonl", *QUICK, "--lr", "0"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("note: ") and "guessing" in last

# ---------------------------------------------------------------------------------------------------------------------
# several processes

def test_an_error_of_the_users_ends_every_process_with_its_line(here, tmp_path):
    """The first process that sees the error also runs the store through which the others connect."""
    for _ in range(3):
        codes = ended(start(2, [*PREF, "--data", "gone.jsonl"], folder=tmp_path))
        said = [(tmp_path / f"rank-{r}").read_text() for r in (0, 1)]
        assert codes == [2, 2], said
        assert all("gone.jsonl: no such file" in text and "Traceback" not in text for text in said), said

def test_who_waits_for_a_process_that_has_gone_says_so_in_one_line(here, tmp_path):
    """Four hundred lines of gloo's traceback would hide the one line that explains the error."""
    def damaged(rank):
        if rank == 0:
            def fail(*args, **more):
                raise ValueError("the pairs are damaged")
            rundir.claim_run_dir = fail
    codes = ended(start(2, PREF, before=damaged, folder=tmp_path))
    first, second = ((tmp_path / f"rank-{r}").read_text() for r in (0, 1))
    assert codes == [2, 1] and "the pairs are damaged" in first
    assert "another process of this run has stopped" in second and "Traceback" not in second, second

def test_an_error_that_is_no_others_is_raised_as_it_is(monkeypatch):
    """If it were reported as another process's fault, users would look for the bug in the wrong place."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="shape"), parallel.together():
        raise RuntimeError("shape mismatch")
    with pytest.raises(SystemExit, match="another process"), parallel.together():
        raise RuntimeError("Connection closed by peer")

# ---------------------------------------------------------------------------------------------------------------------
# shared parts of the scripts

def test_the_help_of_a_flag_says_its_default_once(capsys):
    """The default may be set after the flag, for one script; a flag whose help explains its default says no other."""
    p = cli.Parser("A script.")
    p.add_argument("--steps", type=int, default=3, help="updates")
    p.add_argument("--rank", type=int, default=0, help="hidden units (default: the script's)")
    p.add_argument("--name", help="a name")
    p.add_argument("--fast", action="store_true", help="is fast")
    p.set_defaults(steps=7)
    with pytest.raises(SystemExit):
        p.parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "updates (default: 7)" in shown and "hidden units (default: the script's)" in shown
    assert shown.count("(default") == 2

def test_help_opens_with_the_first_line_of_the_script(capsys):
    """The last line of a docstring names the next file to read and does not describe the script."""
    assert cli.Parser("What it is.\n\nMore of it.\nRead next: x.py\n").description == "What it is."

def test_the_same_command_again_is_the_one_that_was_given(tmp_path, monkeypatch):
    """A script that another script calls has its own arguments. Those of the terminal belong to the caller."""
    monkeypatch.setattr(sys, "argv", ["other.py", "--of", "another"])
    args = SimpleNamespace(out_dir=str(tmp_path / "none"))
    with cli.interruptible("train_sft.py", args, ["--lr", "1", "a b"]):
        assert cli.go_on() == "python train_sft.py --lr 1 'a b'"
    with cli.interruptible("train_sft.py", args):
        assert cli.go_on() == "python train_sft.py --of another"

def test_a_folder_with_what_a_kill_left_is_free(tmp_path):
    """A run killed while it wrote its first file leaves a temporary file. The name must stay free."""
    assert rundir.is_free(tmp_path) and rundir.is_free(tmp_path / "none")
    (tmp_path / "args.json.12.tmp").write_text("{")
    assert rundir.is_free(tmp_path)
    (tmp_path / "args.json").write_text("{}")
    assert not rundir.is_free(tmp_path) and not rundir.is_free(tmp_path / "args.json")
