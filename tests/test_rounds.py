"""
Training in rounds: what each round samples, from which policy and with which reference, and that a killed run resumes
to the same bytes.
"""
import itertools
import json
import math
import os
import random
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch

import adapters
import data
import eval
import loop
import rounds
import sampling
import toy
import train_pref
from model import GPT, fingerprint
from support import round_files
from test_loop import log_rows
from test_parallel import run as processes_run
from test_parallel import same
from test_runs import fewer, first_log, here, pref, world    # noqa: F401 (fixtures)
from tests.processes import child, ended

ROUNDS = "--max_steps 6 --rounds 3 --n_prompts 24 --eval_every 4 --patience 0 --lr 2e-3 --warmup_steps 0".split()
SFT = "out/toy/sft"
VARIANTS = {    # flags, whether the reference moves
    "full": ([], False),
    "full, synced": (["--sync_ref", "--grad_accum", "2"], True),
    "adapter": (["--adapter", "sequential", "--adapter_rank", "4"], False),
    "adapter, synced": (["--adapter", "sequential", "--adapter_rank", "4", "--sync_ref"], True),
    "adapter run": (["--init_from", "adapter"], False),
}

def weights_of(model):
    return {name: x.detach().clone() for name, x in model.state_dict().items()}

def watched(out, *flags):
    """
    A run in rounds, and what it did: `steps`, the weights before each update; `texts`, the tokens of its rows; `calls`,
    weights, prompts, answers, room and seed of each call of sample_completions.
    """
    steps, texts, calls, real_step, real_sample = [], [], [], loop.train_step, sampling.sample_completions
    def step(model, compute_loss, batches, *more):
        steps.append(weights_of(model))
        texts.append([tuple(row) for batch in batches for row in batch["idx"].tolist()])
        return real_step(model, compute_loss, batches, *more)
    def sample(model, tokenizer, prompts, room, **more):
        assert not model.training
        answers = real_sample(model, tokenizer, prompts, room, **more)
        calls.append(SimpleNamespace(weights=weights_of(model), prompts=prompts, answers=answers, room=room, **more))
        return answers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        patch.setattr(sampling, "sample_completions", sample)
        pref(out, "--loss", "dpo", *ROUNDS, *flags)
    return SimpleNamespace(out=out, steps=steps, texts=texts, calls=calls)

def pairs_of(run, number):
    """The records of the pairs of round 2 or later."""
    return [json.loads(line) for line in (run.out / f"pairs-round-{number}.jsonl").read_text().splitlines()]

def cases(found, fast):
    """Parameters of a test. All but the fast ones are slow."""
    return [pytest.param(*case, id=", ".join(case), marks=() if case in fast else pytest.mark.slow) for case in found]

@pytest.fixture(scope="module", params=cases([(name,) for name in VARIANTS], [("full",), ("adapter, synced",)]))
def made(request, world, tmp_path_factory):    # noqa: F811
    """(what `watched` gives, whether the reference moves, the model that training starts from) of each variant."""
    flags, synced = VARIANTS[request.param]
    root = tmp_path_factory.mktemp("rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        patch.setattr(toy, "examples", fewer)
        if "--init_from" in flags:
            pref(root / "adapter", "--loss", "dpo", "--adapter", "sequential", "--adapter_rank", "4", "--lr", "1e-2")
            flags = ["--init_from", str(root / "adapter")]
        start, _ = adapters.load_model(flags[1] if "--init_from" in flags else SFT)
        yield watched(root / "run", *flags), synced, start.eval()

def with_weights(weights):
    """A model that computes what a run with these weights did."""
    model = adapters.load_model(SFT)[0]
    if any(".mlp.down." in name for name in weights):
        adapters.add_adapters(model, "sequential", 4)
    model.load_state_dict(weights)
    return model.eval()

# ---------------------------------------------------------------------------------------------------------------------
# the pairs of a round

def test_the_pairs_of_a_round_come_from_the_policy_at_its_start(made, tokenizer):
    """Pairs of the start model, or of the round before, would train too, and the log would look as usual."""
    run, _, start = made
    later = run.calls[-2:]    # the calls before are of round 1 and of validation
    for number, call in enumerate(later, 2):
        policy = with_weights(run.steps[2 * (number - 1)])    # before the round's first update
        assert all(torch.equal(x, call.weights[name]) for name, x in policy.state_dict().items())
        again = sampling.sample_completions(policy, tokenizer, call.prompts, call.room, seed=call.seed)
        before = sampling.sample_completions(start, tokenizer, call.prompts, call.room, seed=call.seed)
        assert call.answers == again != before
        sampled = {(tuple(p), tuple(a)) for p, a in zip(call.prompts, call.answers)}
        found = {(tuple(r["prompt"]["tokens"]), tuple(r[side]["tokens"])) for r in pairs_of(run, number)
                 for side in ("chosen", "rejected")}
        assert found and found <= sampled

def test_each_round_trains_on_its_own_pairs_alone(made):
    """Two updates a round: each row of their batches must be a pair of the round, without the padding."""
    run, _, _ = made
    for number in (2, 3):
        mine = set()
        for r in pairs_of(run, number):
            mine |= {tuple(r["prompt"]["tokens"] + r[side]["tokens"]) for side in ("chosen", "rejected")}
        for rows in run.texts[2 * (number - 1):2 * number]:
            assert rows and all(any(row[:len(text)] == text and not any(row[len(text):]) for text in mine)
                                for row in rows), number

def test_each_round_has_other_prompts_and_other_noise(made, tokenizer):
    """Together they are the prompts of an offline run, each used in one round, so that both sample as often."""
    run, _, _ = made
    offline, room = sampling.prompts_for("toy", tokenizer, 24, max_len=64, seed=0)
    parts = [call.prompts for call in (run.calls[0], *run.calls[-2:])] if len(run.calls) == 4 else None
    if parts is None:    # the pairs of round 1 had been sampled by another run of the module
        rows = sampling.read_pairs(json.loads((run.out / "args.json").read_text())["pairs"])["train"]
        assert {tuple(r["prompt"]) for r in rows} <= {tuple(p) for p in offline["train"][:8]}
        parts = [[p for p in offline["train"][:8] for _ in range(4)], *(call.prompts for call in run.calls[-2:])]
    assert sum(parts, []) == [p for p in offline["train"] for _ in range(4)]
    assert all(call.room == room for call in run.calls)
    assert len({0, *(call.seed for call in run.calls[-2:])}) == 3    # round 1 has the run's own seed, 0

# ---------------------------------------------------------------------------------------------------------------------
# the reference of a round

def slow_logps(model, prompt, completion):
    """log pi(completion | prompt) in nats, one token after the other."""
    with torch.no_grad():
        log_p = model(torch.tensor([prompt + completion]))[0].log_softmax(-1)    # (T, V)
    return sum(log_p[len(prompt) - 1 + t, token].item() for t, token in enumerate(completion))

def test_the_reference_of_a_round_is_the_start_model_or_with_sync_ref_the_policy_at_its_start(made):
    """The reference's numbers are computed in the middle of training, when the model is neither of both any more."""
    run, synced, start = made
    for number in (2, 3):
        policy = with_weights(run.steps[2 * (number - 1)])
        mark = json.loads((run.out / f"round-{number}.json").read_text())
        assert len(mark["reference"]) == len(pairs_of(run, number)) and mark["policy"] == fingerprint(policy)
        gap = 0
        for record, logps in zip(pairs_of(run, number), mark["reference"]):
            for side in ("chosen", "rejected"):
                texts = record["prompt"]["tokens"], record[side]["tokens"]
                mine, other = slow_logps(start, *texts), slow_logps(policy, *texts)
                gap = max(gap, abs(mine - other))
                assert logps[f"ref_{side}_logps"] == pytest.approx(other if synced else mine, abs=1e-3)
        assert gap > 0.05    # so that the two could be told apart

def test_with_sync_ref_the_margin_is_0_at_the_first_update_of_a_round(made):
    """Policy and reference are then one model, as at the start of a run. With a fixed reference they are not."""
    run, synced, _ = made
    margins = first_log(run.out, "rewards/margins", "train")
    losses = first_log(run.out, "loss", "train")
    assert len(margins) == 6
    for first in (2, 4):
        assert (abs(margins[first]) < 1e-5) == synced
        assert (abs(losses[first] - math.log(2)) < 1e-5) == synced
        assert abs(margins[first + 1]) > 2e-5

def test_validation_and_evaluation_keep_the_start_model_as_their_reference(made):
    """The validation loss is then comparable over rounds, and the KL is that to the model before training."""
    run, _, start = made
    facts, best, found = eval.load_policy(run.out, "cpu")
    with adapters.as_reference(best, found) as before:
        rows = sampling.read_pairs(facts["pairs"])["val"]
        text = rows[0]["prompt"] + rows[0]["chosen"]
        assert torch.allclose(before(torch.tensor([text])), start(torch.tensor([text])), atol=1e-5)
    assert facts["reference_fingerprint"] == fingerprint(start) and "pairs-round" not in facts["pairs"]
    beta, margins, policy = 0.1, [], with_weights(run.steps[0])
    policy.load_state_dict(torch.load(run.out / "state.pt", weights_only=True)["model"], strict=False)    # the last
    for row in rows:
        h = [slow_logps(policy, row["prompt"], row[s]) - slow_logps(start, row["prompt"], row[s])
             for s in ("chosen", "rejected")]
        margins.append(beta * (h[0] - h[1]))
    assert first_log(run.out, "rewards/margins")[-1] == pytest.approx(sum(margins) / len(margins), abs=1e-4)

# ---------------------------------------------------------------------------------------------------------------------
# flags

def test_one_round_is_offline_training(here, tmp_path):    # noqa: F811
    """The default must be the run that was made before there were rounds: the same files and bytes."""
    pref(tmp_path / "plain", "--loss", "dpo")
    pref(tmp_path / "one", "--loss", "dpo", "--rounds", "1")
    for name in ("log.csv", "model.safetensors"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert {p.name for p in (tmp_path / "plain").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}
    assert not list((tmp_path / "one").glob("*round*"))

def test_the_first_round_is_an_offline_run_on_its_prompts(here, tmp_path):    # noqa: F811
    """Its updates equal those of a run with a third of the prompts. The learning rate's schedule is over all rounds."""
    pref(tmp_path / "rounds", "--loss", "dpo", *ROUNDS)
    pref(tmp_path / "offline", "--loss", "dpo", *ROUNDS, "--rounds", "1", "--n_prompts", "8")
    ours, theirs = ([row for row in log_rows(tmp_path / name) if row[0] <= 2] for name in ("rounds", "offline"))
    assert ours == theirs and len({row[0] for row in ours}) == 3
    rows = log_rows(tmp_path / "rounds")
    assert rows != log_rows(tmp_path / "offline")
    want = [loop.cosine_lr(step, 2e-3, 0.0, 0, 6) for step in range(6)]
    assert [value for *_, metric, value in rows if metric == "lr"] == pytest.approx(want, rel=1e-6)

def test_label_noise_and_drawn_labels_reach_later_rounds(here, tmp_path, monkeypatch):    # noqa: F811
    """They are properties of the labels, so a round without them would be another experiment."""
    real, seen = data.Batches, []
    monkeypatch.setattr(data, "Batches", lambda rows, *more: seen.append(rows) or real(rows, *more))
    pref(tmp_path / "noise", "--loss", "dpo", *ROUNDS, "--label_noise", "0.25")
    for number, rows in zip((2, 3), seen[-2:]):
        clean = sampling.read_pairs(tmp_path / "noise" / f"pairs-round-{number}.jsonl")["train"]
        turned = [row["chosen"] == pair["rejected"] and row["rejected"] == pair["chosen"]
                  for row, pair in zip(rows, clean, strict=True)]
        assert sum(turned) == round(len(clean) / 4) > 0
    pref(tmp_path / "drawn", "--loss", "dpo", *ROUNDS, "--labels", "bradley_terry")
    run = SimpleNamespace(out=tmp_path / "drawn")
    gaps = [r["chosen"]["reward"] - r["rejected"]["reward"] for number in (2, 3) for r in pairs_of(run, number)]
    assert min(gaps) <= 0    # best labels have no ties

@pytest.mark.parametrize("flags, words", [
    ("--sync_ref", "--sync_ref has no effect without --rounds 2 or more"),
    ("--rounds 4 --data hh", "--rounds 4 needs pairs that are sampled: --data toy or imdb"),
    ("--rounds 7", "--rounds 7: --max_steps 120 cannot be divided into equal rounds; 119 can"),
    ("--rounds 8 --n_prompts 12", "--rounds 8: --n_prompts 12 cannot be divided into equal rounds; 8 can"),
    ("--rounds 8 --n_prompts 5", "--rounds 8: --n_prompts 5 cannot be divided into equal rounds; 8 can"),
    ("--rounds 2 --sync_ref --loss simpo", "--sync_ref has no effect on --loss simpo, which has no reference"),
    ("--rounds 0", "argument --rounds: must be at least 1, not 0"),
])
def test_what_makes_no_sense_is_refused(capsys, flags, words):
    """A flag without effect, or rounds of unequal length, would be found out after the run."""
    with pytest.raises(SystemExit) as end:
        train_pref.get_args(flags.split())
    said = capsys.readouterr().err
    assert end.value.code == 2 and words in said and said.count("\n") == 1

def test_a_round_without_pairs_ends_the_run_in_one_line(here, tmp_path, monkeypatch):    # noqa: F811
    """A policy that has collapsed writes one text, and no two samples differ."""
    real = sampling.sample_completions
    def sample(model, tokenizer, prompts, room, **more):
        found = real(model, tokenizer, prompts, room, **more)
        return found if more["seed"] == 0 else [found[0]] * len(found)
    pref(tmp_path / "first", "--loss", "dpo", *ROUNDS)    # samples the pairs of round 1
    monkeypatch.setattr(sampling, "sample_completions", sample)
    monkeypatch.setattr(toy, "reward", lambda text: 0.5)
    with pytest.raises(SystemExit) as end:
        pref(tmp_path / "run", "--loss", "dpo", *ROUNDS)
    assert str(end.value).startswith("error: round 2: no pairs: ") and "\n" not in str(end.value)

def test_a_loss_without_a_reference_trains_in_rounds(here, tmp_path):    # noqa: F811
    """The mark of a round then has no log-probs, and still says that the round is complete."""
    pref(tmp_path / "run", "--loss", "simpo", *ROUNDS)
    mark = json.loads((tmp_path / "run" / "round-2.json").read_text())
    assert len(first_log(tmp_path / "run", "loss", "train")) == 6 and set(map(str, mark["reference"])) == {"{}"}

# ---------------------------------------------------------------------------------------------------------------------
# resuming

def kill(*args, **more):
    os.kill(os.getpid(), signal.SIGKILL)

def at_update(n, act):
    """Calls act() before update n."""
    def before():
        real, count = loop.train_step, []
        def step(*args):
            count.append(1)
            if len(count) == n:
                act()
            return real(*args)
        loop.train_step = step
    return before

def interrupt():
    raise KeyboardInterrupt

def while_sampling():
    real = sampling.sample_completions
    def sample(*args, **more):
        found = real(*args, **more)
        if more["seed"]:    # of a later round
            kill()
        return found
    sampling.sample_completions = sample

def before_sampling():
    sampling.write_pairs = kill

def before_the_mark():
    rounds.write_mark = kill

STOPS = {
    "within round 1": at_update(2, kill),
    "at the start of round 2": before_sampling,
    "while round 2 is sampled": while_sampling,
    "between pairs and mark": before_the_mark,
    "before the first update of round 2": at_update(3, kill),
    "within round 2": at_update(4, kill),
    "within round 3": at_update(6, kill),
    "Ctrl-C within round 2": at_update(4, interrupt),
    "Ctrl-C before round 3": at_update(5, interrupt),
    "Ctrl-C within round 3": at_update(6, interrupt),
}
CUT = ["--loss", "kto", *ROUNDS, "--dropout", "0.1", "--label_noise", "0.1"]

def stopped(out, before, *flags, codes=(-signal.SIGKILL, 130)):
    """A run in another process that ends early."""
    [code] = ended([child(lambda argv: pref(out, *argv), [*CUT, *flags], out.parent / f"{out.name}.txt", before)])
    assert code in codes, (out.parent / f"{out.name}.txt").read_text()

def resumed(out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval, "main", lambda *args, **more: {})
        patch.setattr(loop, "plot_curves", lambda folder: None)
        train_pref.main(["--resume", "--out_dir", str(out)])

def bytes_of(out):
    """The files whose bytes must not depend on a stop."""
    weights = "adapter.safetensors" if (out / "adapter.safetensors").exists() else "model.safetensors"
    names = ("log.csv", weights, *(f"{name}-{n}.json{x}" for n in (2, 3)
                                                for name, x in (("pairs-round", "l"), ("round", ""))))
    return {name: (out / name).read_bytes() for name in names}

@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):    # noqa: F811
    """
    {name: (flags, a run with them that was not stopped)}. Rounds begin at steps 2 and 4, states are written at steps 0,
    4 and 6. "adapter" trains the adapter of a run further.
    """
    root, runs = tmp_path_factory.mktemp("whole"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        patch.setattr(toy, "examples", fewer)
        pref(root / "start", "--loss", "dpo", "--adapter", "sequential", "--lr", "1e-2")
        further = ["--init_from", str(root / "start")]
        for name, flags in (("fixed", []), ("synced", ["--sync_ref"]), ("adapter", further)):
            pref(root / name, *CUT, *flags)
            runs[name] = flags, root / name
    return runs

CASES = [(name, "fixed") for name in STOPS]
CASES += [("before the first update of round 2", "synced"), ("within round 2", "synced")]
CASES += [("before the first update of round 2", "adapter"), ("Ctrl-C within round 3", "adapter")]

FAST = [("while round 2 is sampled", "fixed"), ("within round 2", "synced")]

@pytest.mark.parametrize("stop, name", cases(CASES, FAST))
def test_a_run_in_rounds_that_was_stopped_resumes_to_the_same_bytes(here, whole, tmp_path, stop, name):    # noqa: F811
    """
    The policy that sampled a round, and with sync_ref its reference, no longer exists after the round's first update.
    With dropout, a draw too many or too few would change all that follows.
    """
    flags, uninterrupted = whole[name]
    stopped(tmp_path / "run", STOPS[stop], *flags)
    resumed(tmp_path / "run")
    assert bytes_of(tmp_path / "run") == bytes_of(uninterrupted)

def test_pairs_of_other_weights_are_sampled_again(here, whole, tmp_path):    # noqa: F811
    """After a kill the updates before a round are made again, on another device perhaps not to the same weights."""
    stopped(tmp_path / "run", at_update(3, kill))
    pairs, mark = tmp_path / "run" / "pairs-round-2.jsonl", tmp_path / "run" / "round-2.json"
    pairs.write_text("".join(pairs.read_text().splitlines(keepends=True)[:-1]))
    content = json.loads(mark.read_text())
    about = {name: content[name] for name in ("round", "batches", "run")} | {"policy": "0" * 16}
    round_files.write_mark(mark, pairs, about, content["reference"][:-1])
    assert round_files.read_mark(mark, pairs, about) == content["reference"][:-1]    # intact, so only the weights tell
    resumed(tmp_path / "run")
    assert bytes_of(tmp_path / "run") == bytes_of(whole["fixed"][1])

OTHER = ["--seed", "1"]

DAMAGES = "other run", "pairs", "mark", "no mark", "no pairs", "half a mark"

@pytest.mark.parametrize("moment, damage", cases(itertools.product(("start", "within"), DAMAGES),
                                                 [("start", "other run"), ("within", "mark")]))
def test_files_that_are_not_those_of_the_round_are_never_used(here, whole, tmp_path, damage, moment):    # noqa: F811
    """At a round's start they are sampled again. Within the round its policy is lost, so the run ends in one line."""
    stop = at_update(3, kill) if moment == "start" else at_update(4, interrupt)
    stopped(tmp_path / "run", stop)
    pairs, mark = tmp_path / "run" / "pairs-round-2.jsonl", tmp_path / "run" / "round-2.json"
    if damage == "other run":
        stopped(tmp_path / "other", stop, *OTHER)
        for path in (pairs, mark):
            shutil.copy(tmp_path / "other" / path.name, path)
    elif damage in ("pairs", "mark"):
        path = pairs if damage == "pairs" else mark
        at = random.Random(0).choice([i for i, c in enumerate(path.read_bytes()) if chr(c) in "1234567"])
        text = bytearray(path.read_bytes())
        text[at] += 1    # another digit
        path.write_bytes(text)
    elif damage == "half a mark":
        mark.write_bytes(mark.read_bytes()[:100])
    else:
        (mark if damage == "no mark" else pairs).unlink()
    if moment == "start":
        resumed(tmp_path / "run")
        assert bytes_of(tmp_path / "run") == bytes_of(whole["fixed"][1])
        return
    with pytest.raises(SystemExit) as end:
        resumed(tmp_path / "run")
    assert str(end.value).startswith("error: round 2: ") and "start a new run" in str(end.value)
    assert "\n" not in str(end.value)

def test_the_length_of_a_run_in_rounds_may_not_change(here, tmp_path, capsys):    # noqa: F811
    """With more updates every round would begin elsewhere. Of other runs --max_steps may change."""
    stopped(tmp_path / "run", at_update(4, interrupt))
    with pytest.raises(SystemExit):
        train_pref.main(["--resume", "--out_dir", str(tmp_path / "run"), "--max_steps", "12"])
    assert "--resume: --max_steps was 6 in" in capsys.readouterr().err

def test_a_start_model_that_has_changed_is_not_the_reference(here, tmp_path, monkeypatch):    # noqa: F811
    """It is loaded again in each round, perhaps days after the run began."""
    shutil.copytree(SFT, tmp_path / "sft")
    real = sampling.write_pairs
    def write(path, model, *args, **more):
        real(path, model, *args, **more)
        if "round" in path.name:
            changed = GPT.from_pretrained(tmp_path / "sft")
            with torch.no_grad():
                changed.transformer.ln_f.weight[0] += 1e-3
            changed.save_pretrained(tmp_path / "sft")
    monkeypatch.setattr(sampling, "write_pairs", write)
    with pytest.raises(SystemExit, match="error: round 2: .*/sft, the reference, has changed since"):
        pref(tmp_path / "run", "--loss", "dpo", *ROUNDS, "--init_from", str(tmp_path / "sft"))

def test_the_identity_of_a_run_is_that_of_its_flags_data_and_weights(tmp_path):
    """Flags that may change on --resume must not change it, others must."""
    def identity(facts):
        (tmp_path / "args.json").write_text(json.dumps(facts))
        return round_files.run_id(tmp_path)
    args = {"lr": 1.0, "patience": 3, "resume": False}
    facts = {"script": "train_pref.py", "args": args, "data_fingerprint": "a", "reference_fingerprint": "b"}
    want = identity(facts)
    assert identity(facts | {"args": args | {"patience": 0, "resume": True}, "versions": {"torch": "9"}}) == want
    others = [{"args": args | {"lr": 2.0}}, {"data_fingerprint": "c"}, {"reference_fingerprint": "c"}]
    assert len({want, *(identity(facts | other) for other in others)}) == 4

# ---------------------------------------------------------------------------------------------------------------------
# several processes

@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--loss", "dpo"], ["--loss", "simpo"]], ids=lambda flags: flags[1])
def test_two_processes_are_one_run_in_rounds(here, tmp_path, flags):    # noqa: F811
    """The first process samples for both. Both must agree on the pairs, and wait for each other at the same places."""
    def once(rank):
        real = sampling.write_pairs
        def write(*args, **more):
            assert rank == 0
            return real(*args, **more)
        sampling.write_pairs = write
    more = [*flags, "--max_steps", "6", "--rounds", "2"]
    one, two = (processes_run(n, tmp_path / str(n), *more, before=once) for n in (1, 2))
    same(two, one)
    mine, theirs = ((tmp_path / str(n) / "pairs-round-2.jsonl").read_bytes() for n in (1, 2))
    assert mine == theirs
