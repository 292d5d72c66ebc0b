"""
--resume: the flags that may change, the refusal of changed data and weights, and early stopping after any
interruption.
"""
import argparse
import functools
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from support import checkpoint, cli, rundir
import data
import sampling
import loop
import toy
import train_pref
import train_sft
from model import GPT, GPTConfig, ScalarGPT
from rlhf import train_ppo, train_reward
from test_loop import log_rows

SCRIPTS = {
    "train_sft.py": (train_sft, "sft"),
    "train_pref.py": (train_pref, "dpo"),
    "rlhf/train_reward.py": (train_reward, "reward"),
    "rlhf/train_ppo.py": (train_ppo, "ppo"),
}
# the length of a run, its evaluations, what it saves and prints, and its device; any other flag makes another run
MAY_CHANGE = {"max_steps", "eval_every", "patience", "on_nonfinite", "keep_all", "device", "threads", "compile",
              "activation_checkpointing", "resume", "out_dir", "n_show"}

# ---------------------------------------------------------------------------------------------------------------------
# flags: every action of every parser, so that a new flag is tested too

class Stopped(Exception):
    """Holds the arguments of a call."""

def stopping(function):
    """A function with the signature of another that only reports the call."""
    @functools.wraps(function)
    def stop(*args, **kwargs):
        raise Stopped(args, kwargs)
    return stop

def actions_of(module):
    """The flags of a script: argparse's actions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.Parser, "parse_args", stopping(cli.Parser.parse_args))
        with pytest.raises(Stopped) as stop:
            module.get_args([])
    [parser, _], _ = stop.value.args
    return [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]

def words(action, value):
    """The command-line words that give a flag a valid value other than `value`, or none if there is no other."""
    flag = action.option_strings[0]
    if action.nargs == 0:
        return [] if value else [flag]
    if action.choices:
        return [flag, str(next(c for c in action.choices if c != value))]
    for text in ("480", "240", "0.375", "elsewhere"):    # the numbers are multiples of every part of a PPO batch
        try:
            if (action.type or str)(text) != value and (action.type is not None or text == "elsewhere"):
                return [flag, text]
        except (ValueError, argparse.ArgumentTypeError):
            pass

def begun(folder, name):
    """Creates a run directory that holds args.json only, by the script's own code, and returns its arguments."""
    module, run = SCRIPTS[name]
    args = module.get_args(["--out_dir", str(folder)])
    args.init_from = "out/toy/sft"
    rundir.claim_run_dir(args, name, run)
    return args

def cases(may_change):
    for name, (module, _) in SCRIPTS.items():
        plain = module.get_args([])
        for action in actions_of(module):
            if (action.dest in MAY_CHANGE) == may_change and action.dest not in ("resume", "out_dir"):
                yield pytest.param(name, action, id=f"{name} --{action.dest}")
        assert {a.dest for a in actions_of(module)} == set(vars(plain))

@pytest.mark.parametrize("name, action", cases(may_change=False))
def test_a_changed_flag_is_refused_by_name(tmp_path, capsys, name, action):
    """
    A run with one learning rate in its first half and another in its second is neither, and its log does not show
    it.
    """
    args = begun(tmp_path / "run", name)
    before = (tmp_path / "run" / "args.json").read_bytes()
    value = getattr(args, action.dest)
    with pytest.raises(SystemExit) as end:
        SCRIPTS[name][0].get_args(["--resume", "--out_dir", str(tmp_path / "run"), *words(action, value)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and f"--resume: --{action.dest} was {value} in" in said
    assert (tmp_path / "run" / "args.json").read_bytes() == before

@pytest.mark.parametrize("name, action", cases(may_change=True))
def test_a_flag_that_may_change_is_taken_and_said(tmp_path, capsys, name, action):
    """The run stays the same when it is longer, evaluated more often or moved, and the output names the change."""
    args, (module, _) = begun(tmp_path / "run", name), SCRIPTS[name]
    value, argv = getattr(args, action.dest), words(action, getattr(args, action.dest))
    try:
        module.get_args(argv)
    except SystemExit:
        # --compile has no effect there, and is refused without --resume too
        assert action.dest == "compile" and name.startswith("rlhf")
        return
    capsys.readouterr()
    again = module.get_args(["--resume", "--out_dir", str(tmp_path / "run"), *argv])
    new, said = getattr(again, action.dest), capsys.readouterr().out
    assert new != value and said == f"--resume: --{action.dest} was {value}, and is {new} from here on\n"
    others = lambda args: {k: v for k, v in vars(args).items() if k not in (action.dest, "resume")}
    assert others(again) == others(args)

@pytest.mark.parametrize("name", SCRIPTS)
def test_the_same_flags_may_be_given_again(tmp_path, name):
    """
    Users repeat their first command. Equal values are no change, and defaults are those of the run, not of the
    script.
    """
    module, run = SCRIPTS[name]
    argv = ["--seed", "3", "--lr", "0.002", "--max_len", "48", "--out_dir", str(tmp_path / "run")]
    first = module.get_args(argv)
    rundir.claim_run_dir(first, name, run)
    for flags in ([*argv, "--resume"], ["--resume", "--out_dir", str(tmp_path / "run")]):
        again = module.get_args(flags)
        assert vars(again) | {"resume": False} == vars(first) and again.resume

# ---------------------------------------------------------------------------------------------------------------------
# the data and weights of a run

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with small files and models of random weights: texts.jsonl, pairs.jsonl, policy, reward."""
    root, tokenizer = tmp_path_factory.mktemp("made"), toy.encoding()
    prompts = [f"the plot {i}" for i in range(30)]
    torch.manual_seed(0)
    config = GPTConfig(block_size=64, vocab_size=tokenizer.n_vocab, n_layer=1, n_head=2, n_embd=16)
    GPT(config).save_pretrained(root / "policy")
    judge = ScalarGPT(config)
    torch.nn.init.normal_(judge.score.weight)
    judge.save_pretrained(root / "reward")
    about = {"script": "rlhf/train_reward.py", "args": {"data": "toy"}}
    (root / "reward" / "args.json").write_text(json.dumps(about))
    texts = [{"prompt": p, "completion": f" was fine {i} ."} for i, p in enumerate(prompts)]
    pairs = [{"prompt": p, "chosen": f" was fine {i} .", "rejected": " was dull ."} for i, p in enumerate(prompts)]
    for name, rows in (("texts", texts), ("pairs", pairs)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return root

def reworded(path):
    """Changes one word of one row."""
    def change(folder):
        [file] = folder.glob(path)
        text = file.read_text()
        file.write_text(text.replace("fine 17", "fine 71", 1))
        assert file.read_text() != text
    return change

def swapped(path):
    """Swaps the labels of the last pair, in the format of a file of sampled pairs."""
    def change(folder):
        [file] = folder.glob(path)
        *lines, last = file.read_text().splitlines()
        row = json.loads(last)
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        file.write_text("\n".join([*lines, json.dumps(row)]) + "\n")
    return change

def moved(name, cls=GPT):
    """Changes one weight of a model by a thousandth."""
    def change(folder):
        model = cls.from_pretrained(folder / name)
        with torch.no_grad():
            (model.score if cls is ScalarGPT else model.transformer.ln_f).weight.view(-1)[3] += 1e-3
        model.save_pretrained(folder / name)
    return change

TINY = "--batch_size 8 --max_len 24 --max_steps 4 --eval_every 4 --init_from policy --out_dir run --device cpu".split()
SAMPLED = [*TINY, "--reward", "reward", "--n_prompts", "8"]
PPO = [*SAMPLED, "--rollout", "8"]
TEXTS, PAIRS = ["--data", "texts.jsonl", *TINY], ["--data", "pairs.jsonl", *TINY]
CHANGES = {    # script, its flags, the change before --resume, and the fact that the refusal names
    "texts of SFT": (train_sft, TEXTS, reworded("texts.jsonl"), "data_fingerprint"),
    "start of SFT": (train_sft, TEXTS, moved("policy"), "init_fingerprint"),
    "pairs": (train_pref, PAIRS, reworded("pairs.jsonl"), "data_fingerprint"),
    "labels of pairs": (train_pref, PAIRS, swapped("pairs.jsonl"), "data_fingerprint"),
    "reference": (train_pref, PAIRS, moved("policy"), "reference_fingerprint"),
    "reference of an adapter":
        (train_pref, ["--adapter", "parallel", *PAIRS], moved("policy"), "reference_fingerprint"),
    "sampled pairs": (train_pref, SAMPLED, swapped("policy/pairs-*.jsonl"), "data_fingerprint"),
    "reward that ranked": (train_pref, SAMPLED, moved("reward", ScalarGPT), "pairs"),
    "pairs of a reward model": (train_reward, PAIRS, swapped("pairs.jsonl"), "data_fingerprint"),
    "start of a reward model": (train_reward, PAIRS, moved("policy"), "init_fingerprint"),
    "reward of PPO": (train_ppo, PPO, moved("reward", ScalarGPT), "reward"),
    "reference of PPO": (train_ppo, PPO, moved("policy"), "reference_fingerprint"),
    "prompts of PPO": (train_ppo, PPO, "prompts", "data_fingerprint"),
}

@pytest.mark.parametrize("name", CHANGES)
def test_a_run_whose_material_has_changed_is_refused(made, tmp_path, monkeypatch, capsys, own_tokenizer, name):
    """Flags and paths are the same. Only a fingerprint shows that the second half would use other data or weights."""
    module, flags, change, word = CHANGES[name]
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(loop, "fit", stopping(loop.fit))
    real = sampling.prompts_for
    few = lambda name, tokenizer, n, n_val=8, **more: real(name, tokenizer, n, 8, **more)    # for validation
    monkeypatch.setattr(sampling, "prompts_for", few)
    with pytest.raises(Stopped):
        module.main(flags)
    before = Path("run/args.json").read_bytes()
    with pytest.raises(Stopped) as reached:    # without a change the run resumes
        module.main(["--resume", "--out_dir", "run"])
    assert reached.value.args[1]["resume"] is True
    facts = json.loads(before)
    assert {**json.loads(Path("run/args.json").read_bytes()), "args": {**facts["args"], "resume": False}} == facts
    if change == "prompts":
        changed_prompts = lambda *args, **more: (few(*args, **more)[0] | {"val": [[1]]}, 12)
        monkeypatch.setattr(sampling, "prompts_for", changed_prompts)
    else:
        change(Path())
    stored = Path("run/args.json").read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        module.main(["--resume", "--out_dir", "run"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and f" says {word} " in said and "changed since" in said
    assert Path("run/args.json").read_bytes() == stored

def test_the_label_of_a_text_is_part_of_the_data():
    """A reward model learns from the label, so reviews with swapped labels are other data with the same words."""
    rows = [{"prompt": [1], "chosen": [2, 3], "label": 1.0}]
    turned = [{**rows[0], "label": 0.0}]
    assert data.fingerprint({"train": rows, "val": rows}) != data.fingerprint({"train": rows, "val": turned})

# ---------------------------------------------------------------------------------------------------------------------
# early stopping: given validation losses, and an evaluation every other update

EVERY = 2

class Scripted(torch.nn.Module):
    """A weight that every update changes, and validation losses from a list."""
    def __init__(self, losses, nan_at=None):
        super().__init__()
        self.w, self.losses, self.nan_at, self.evaluated = torch.nn.Parameter(torch.zeros(1)), losses, nan_at, []

    def compute_loss(self, batch):
        if not self.training:
            self.evaluated.append(batch["step"])
            return torch.tensor(self.losses[batch["step"] // EVERY]), {}
        loss = ((self.w - batch["target"]) ** 2).sum()
        return loss * (float("nan") if batch["step"] == self.nan_at else 1.0), {}

class Targets:
    """
    An endless stream. A signal comes in update `cut`, which is still finished. Each update moves the clock by 10 s.
    """
    def __init__(self, cut=None, clock=None):
        self.cut, self.clock = cut, clock

    def __getitem__(self, i):
        if i + 1 == self.cut:
            os.kill(os.getpid(), signal.SIGINT)
        if self.clock:
            self.clock[0] += 10
        return {"target": 1.0 + i % 3, "weight": 1}

class Validation:
    """Two batches. A signal comes within evaluation number `cut` (from 0), or at the end of number `after`."""
    def __init__(self, cut=None, after=None):
        self.cut, self.after, self.n = cut, after, -1

    def __iter__(self):
        self.n += 1
        for part in range(2):
            if part == 1 and self.n == self.cut:
                os.kill(os.getpid(), signal.SIGINT)
            yield {"weight": 1}
        if self.n == self.after:
            os.kill(os.getpid(), signal.SIGINT)

def run(folder, losses, cut=None, cut_val=None, after=None, clock=None, nan_at=None, **flags):
    """(fit's result, or None if it was interrupted; the model; steps whose weights were saved as the best)."""
    folder.mkdir(exist_ok=True)
    model, saved = Scripted(losses, nan_at), []
    def save(where):
        where.mkdir(exist_ok=True)
        (where / "weights.txt").write_text(repr(model.w.item()))
        saved.append(where.name)
    flags = dict(max_steps=2 * len(losses) - 2, eval_every=EVERY, lr=0.1, on_nonfinite="skip") | flags
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot_curves", lambda folder: None)
        if clock:
            patch.setattr(checkpoint, "time", SimpleNamespace(time=lambda: clock[0]))
        try:
            result = loop.fit(model, model.compute_loss, Targets(cut, clock), Validation(cut_val, after),
                              out_dir=folder, save=save, **flags)
        except SystemExit as e:
            assert e.code == 130, e
            result = None
    return result, model, saved

def counters(folder):
    """The counters of a saved state, without the seconds."""
    state = torch.load(folder / "state.pt", weights_only=True)
    return {k: v for k, v in state["counters"].items() if k != "seconds"}

def same_run(one, other):
    """Two run directories are equal, except for the seconds."""
    for name in ("log.csv", "weights.txt"):
        assert (one / name).read_text() == (other / name).read_text(), name
    assert counters(one) == counters(other)
    results = [json.loads((folder / "result.json").read_text()) | {"seconds": 0} for folder in (one, other)]
    assert results[0] == results[1]

WORSE = [3.0, 1.0, 2.0, 1.5, 1.2, 0.5, 0.4]    # best at step 2; patience 3 stops at step 8, before the 0.5

@pytest.mark.parametrize("cut", range(1, 9))
def test_a_run_cut_anywhere_stops_where_the_whole_one_does(tmp_path, cut):
    """Without the best value, the best step or the count of bad evaluations, it stops later or saves worse weights."""
    whole, _, saved = run(tmp_path / "whole", WORSE, patience=3, nan_at=4)
    assert (whole["step"], whole["best_step"], whole["best_val_loss"], whole["skipped"]) == (8, 2, 1.0, 1)
    assert len(saved) == 2
    first = run(tmp_path / "cut", WORSE, cut=cut, patience=3, nan_at=4)
    assert first[0] is None and counters(tmp_path / "cut")["step"] == cut
    again, model, saved_again = run(tmp_path / "cut", WORSE, resume=True, patience=3, nan_at=4)
    assert len(first[2]) + len(saved_again) == 2
    assert (saved_again == []) == (cut > 2)    # the best weights are not overwritten
    assert sorted(first[1].evaluated + model.evaluated) == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]    # two batches, each once
    same_run(tmp_path / "whole", tmp_path / "cut")

@pytest.mark.parametrize("cut, bad", [(3, 0), (4, 0), (5, 1), (6, 1), (7, 2), (8, 2)])
def test_patience_goes_on_running(tmp_path, cut, bad):
    """Patience counts evaluations in a row, and an interruption does not reset it."""
    run(tmp_path / "cut", WORSE, cut=cut, patience=3)
    assert counters(tmp_path / "cut")["stopper"] == {"best": 1.0, "best_step": 2, "bad": bad}
    result, model, saved = run(tmp_path / "cut", WORSE, resume=True, patience=3)
    assert result["step"] == 8 and saved == [] and len(set(model.evaluated)) == 3 - bad

def test_a_cut_right_after_an_evaluation_does_not_repeat_it(tmp_path):
    """Otherwise its rows would be in the log twice, and its loss would count as a second bad one."""
    run(tmp_path / "whole", WORSE, patience=3)
    run(tmp_path / "cut", WORSE, after=2, patience=3)
    assert counters(tmp_path / "cut")["evaluated"] and counters(tmp_path / "cut")["step"] == 4
    _, model, _ = run(tmp_path / "cut", WORSE, resume=True, patience=3)
    assert 4 not in model.evaluated
    rows = log_rows(tmp_path / "cut")
    assert [s for s, split, metric, _ in rows if (split, metric) == ("val", "loss")] == [0, 2, 4, 6, 8]
    assert len({row[:3] for row in rows}) == len(rows)
    same_run(tmp_path / "whole", tmp_path / "cut")

@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4])
def test_a_cut_within_an_evaluation_repeats_all_of_it(tmp_path, cut):
    """The mean over half of the validation batches is not the validation loss."""
    run(tmp_path / "whole", WORSE, patience=3)
    result, first, saved = run(tmp_path / "cut", WORSE, cut_val=cut, patience=3)
    assert result is None and not counters(tmp_path / "cut")["evaluated"]
    assert counters(tmp_path / "cut")["step"] == 2 * cut
    run(tmp_path / "cut", WORSE, resume=True, patience=3)
    same_run(tmp_path / "whole", tmp_path / "cut")

@pytest.mark.parametrize("k", range(5))
def test_a_kill_between_the_best_weights_and_the_state_is_made_good(tmp_path, monkeypatch, k):
    """
    The saved weights are then newer than the state. The updates between them are repeated and give the same
    weights.
    """
    run(tmp_path / "whole", WORSE, patience=3, keep_all=True)
    real, calls = checkpoint.save_state, []
    def killed(*args):
        calls.append(args)
        if len(calls) == k + 1:
            raise SystemExit(130)
        real(*args)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", killed)
        run(tmp_path / "cut", WORSE, patience=3, keep_all=True)
    run(tmp_path / "cut", WORSE, resume=True, patience=3, keep_all=True)
    same_run(tmp_path / "whole", tmp_path / "cut")
    for step in (0, 2, 4, 6, 8):
        same = [(tmp_path / run / f"step-{step}" / "weights.txt").read_text() for run in ("whole", "cut")]
        assert same[0] == same[1]

@pytest.mark.parametrize("losses, patience", [(WORSE, 3), (WORSE[:4], 0)], ids=["stopped early", "at its last step"])
def test_resuming_a_finished_run_changes_nothing(tmp_path, losses, patience):
    """
    The last weights may be worse than the best. They must not be saved as the best, evaluated, or trained further.
    """
    first, _, _ = run(tmp_path / "run", losses, patience=patience)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.name != "result.json"}
    for _ in range(2):
        result, model, saved = run(tmp_path / "run", losses, resume=True, patience=patience)
        assert saved == model.evaluated == [] and result | {"seconds": 0} == first | {"seconds": 0}
        assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.name != "result.json"} == before

def test_more_patience_lets_a_stopped_run_go_on(tmp_path):
    """--patience may change. The count continues, and a better loss is still found."""
    run(tmp_path / "run", WORSE, patience=2)
    assert counters(tmp_path / "run")["step"] == 6 and counters(tmp_path / "run")["stopper"]["bad"] == 2
    result, _, saved = run(tmp_path / "run", WORSE, resume=True, patience=4)
    assert result["best_step"] == result["step"] == 12
    assert result["best_val_loss"] == pytest.approx(0.4) and len(saved) == 2
    last = torch.load(tmp_path / "run" / "state.pt")["model"]["w"].item()
    assert (tmp_path / "run" / "weights.txt").read_text() == repr(last)

def test_more_steps_go_on_from_the_last_weights_and_the_best_value(tmp_path):
    """The best of the first part stays the best until a better one is found. Its last evaluation is not repeated."""
    run(tmp_path / "run", [3.0, 1.0, 2.0], patience=0)
    result, model, saved = run(tmp_path / "run", [3.0, 1.0, 2.0, 1.5, 0.9, 2.0], resume=True, patience=0)
    assert sorted(set(model.evaluated)) == [6, 8, 10] and len(saved) == 1
    assert (result["step"], result["best_step"]) == (10, 8) and result["best_val_loss"] == pytest.approx(0.9)

def test_the_losses_and_the_skipped_updates_survive(tmp_path):
    """The last 50 losses define a spike. Ten skipped updates in a row end a run, across interruptions too."""
    flags = dict(max_steps=70, eval_every=70, patience=0)
    losses = [1.0] * 36
    run(tmp_path / "whole", losses, nan_at=60, **flags)
    run(tmp_path / "cut", losses, nan_at=60, cut=61, **flags)
    half = counters(tmp_path / "cut")
    assert half["skipped"] == [60] and len(half["losses"]) == 50 and half["step"] == 61
    result, _, _ = run(tmp_path / "cut", losses, nan_at=60, resume=True, **flags)
    assert result["skipped"] == 1
    same_run(tmp_path / "whole", tmp_path / "cut")

def test_the_seconds_of_all_parts_are_added_up(tmp_path):
    """Otherwise a study's table of costs would show the last part only."""
    clock = [1000.0]
    run(tmp_path / "cut", WORSE, cut=5, patience=3, clock=clock)
    clock[0] += 5000    # the time between the two parts does not count
    result, _, _ = run(tmp_path / "cut", WORSE, resume=True, patience=3, clock=clock)
    assert result["seconds"] == 50 + 30
    again, _, _ = run(tmp_path / "cut", WORSE, resume=True, patience=3, clock=clock)
    assert again["seconds"] == 80
