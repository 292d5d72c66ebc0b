"""
Tests of whole runs, recomputed by hand: a toy run, one on reviews with two reward models, one on a file of pairs.

Every number of eval.json, of the printed tables and of log.csv is compared with by_hand.py. A correct function gives a
wrong number if it gets the wrong rows or the wrong model, or is called in the wrong order.
"""
import io
import json
import math
import random
import re
import shutil
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import by_hand
import data
import eval
import loop
import sampling
import toy
import train_pref
import train_sft
from by_hand import EOS, TOKENIZER, words
from model import GPT, ScalarGPT
from rlhf import train_reward

RUNS = ("toy", "imdb", "file")
TRAINED = {
    "toy": dict(run="a", lr=0.003, min_lr=0.001, warmup=4, steps=5, beta=0.1, beta_end=1.0, batch=100, decay=0.1),
    "imdb": dict(run="reviews", lr=0.002, min_lr=0.0, warmup=0, steps=3, beta=0.2, beta_end=0.2, batch=32, decay=0.0),
    "file": dict(run="pairs", lr=0.01, min_lr=0.0, warmup=2, steps=4, beta=0.1, beta_end=0.1, batch=24, decay=0.0),
}
ACCUM = {"toy": 1, "imdb": 1, "file": 2}
NOISE = {"toy": 0.0, "imdb": 0.0, "file": 0.1}

# ---------------------------------------------------------------------------------------------------------------------
# the runs

def write(path, rows):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))

@contextmanager
def said():
    """A list that gets the printed text when the block ends."""
    with redirect_stdout(io.StringIO()) as out:
        texts = []
        yield texts
    texts.append(out.getvalue())

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The current folder of this module's tests, with `sft`, a policy that writes reviews. No pictures are drawn."""
    root = tmp_path_factory.mktemp("by_hand")
    by_hand.load.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(data, "get_tokenizer", lambda *args: TOKENIZER)
        patch.setattr(loop, "plot_curves", lambda folder: None)
        patch.setattr(eval, "draw", lambda *args: None)
        patch.setattr(sampling.prompts_for, "__defaults__", (12,))    # validation prompts, in place of 100: for speed
        rng, texts = random.Random(5), []
        for i in range(400):
            review = toy.review(rng)[0].split()
            if i % 2:    # every second review has a prompt of 12 words
                texts.append({"prompt": " ".join(review[:12]), "completion": " " + " ".join(review[12:])})
            else:
                texts.append({"prompt": "", "completion": " ".join(review)})
        write("texts.jsonl", texts)
        train_sft.main("--data texts.jsonl --out_dir sft --n_layer 1 --n_head 2 --n_embd 32 --batch_size 24 --lr 1e-2 "
                       "--max_steps 70 --eval_every 70 --warmup_steps 10 --max_len 48".split())
        yield root

def flags_of(name):
    """The flags of a run of DPO that keeps the weights of every step.

    With a large epsilon the updates of AdamW can be recomputed: they depend less on the last bits of a gradient.
    """
    t = TRAINED[name]
    annealed = ("--beta_end", t["beta_end"]) if t["beta_end"] != t["beta"] else ()
    flags = (
        "--init_from", "sft", "--out_dir", t["run"], "--lr", t["lr"], "--min_lr", t["min_lr"],
        "--warmup_steps", t["warmup"], "--max_steps", t["steps"], "--beta", t["beta"], *annealed,
        "--batch_size", t["batch"], "--grad_accum", ACCUM[name], "--label_noise", NOISE[name],
        "--weight_decay", t["decay"], "--adam_epsilon", "1e-3", "--keep_all", "--eval_every", "1", "--patience", "0",
    )
    return [str(flag) for flag in flags]

def about(prompts, max_new_tokens, **more):
    """The rows and flags of a measurement, as by_hand.evaluation takes them. Names are those of docs/metrics.md."""
    rest = dict(reference="sft", labels=None, rewards={}, pairs=[], n_samples=4, temperatures=[1], against=None,
                best_of=None, chosen=None, toy=False)
    return SimpleNamespace(prompts=prompts, max_new_tokens=max_new_tokens, **(rest | more))

def pairs_file(run):
    return json.loads((Path(run) / "args.json").read_text())["pairs"]

def says(reward, labels):
    """The reward of a run of rlhf.train_reward, as a function of texts."""
    return lambda texts: by_hand.scalars(reward, texts, labels)

@pytest.fixture(scope="module")
def toy_run(world):
    """Runs a and b on the same pairs. A random reward of the last token ranks the pairs, as it is easily learned."""
    for seed, name in enumerate(("proxy", "gold")):
        torch.manual_seed(seed)
        model = ScalarGPT.from_pretrained("sft")
        torch.nn.init.normal_(model.score.weight, std=0.3)
        model.save_pretrained(name)
        write(f"{name}/args.json", [{"script": "rlhf/train_reward.py", "args": {"data": "toy"}}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval, "main", lambda *args, **more: {})    # it would measure 256 prompts
        more = ["--n_prompts", "40", "--max_len", "32", "--reward", "proxy"]
        result = train_pref.main([*flags_of("toy"), *more])
        train_pref.main(["--init_from", "sft", "--out_dir", "b", "--lr", "1e-3", "--max_steps", "4", "--eval_every",
                         "2", *more])
    return result

@pytest.fixture(scope="module")
def toy_seen(toy_run):
    """a and b in one table, against b, at three temperatures, with the best of 5 and two learned rewards."""
    with said() as texts:
        returned = eval.main("--run a b --against b --temperature 1 0.5 0 --best_of 5 --gold gold --n_prompts 12 "
                             "--n_samples 5 --show 2".split())
    examples = toy.examples("test", 12)
    rewards = {
        "reward": lambda texts: [toy.reward(words(t)) for t in texts],
        "proxy": says("proxy", False),
        "gold": says("gold", False),
    }
    prompts = [TOKENIZER.encode_ordinary(e["prompt"]) for e in examples]
    pairs = by_hand.sampled_rows(pairs_file("a"), "val")
    held = about(prompts, 32 - 12, labels=[e["positive"] for e in examples], rewards=rewards, n_samples=5, pairs=pairs,
                 temperatures=[1, 0.5, 0], against="b", best_of=5, toy=True)
    return finished(["a", "b"], held, texts[0], returned)

def finished(runs, held, text, returned):
    """A measurement: what was printed, returned and stored in eval.json, and what by_hand.py needs to recompute it."""
    stored = {run: json.loads((Path(run) / "eval.json").read_text()) for run in runs}
    return SimpleNamespace(runs=runs, held=held, text=text, returned=returned, stored=stored, wanted={})

def reviews(n, seed):
    rng = random.Random(seed)
    made = sorted((toy.review(rng) for _ in range(n)), key=lambda m: m[1])    # all of one label first
    return [{"text": text, "label": int(positive)} for text, positive in made]

@pytest.fixture(scope="module")
def imdb_run(world):
    """A run on made-up reviews. A reward model of half of the labels ranks its pairs and measures it at the end."""
    train = reviews(160, 1)
    write("imdb/train.jsonl", train)
    write("imdb/test.jsonl", [*reviews(220, 2), *reviews(3, 2), *train[:30]])    # some repeat, some are in training too
    for half in ("first", "second"):
        train_reward.main(f"--data imdb --data_dir imdb --init_from sft --half {half} --out_dir {half} --max_steps 20 "
                          "--eval_every 10 --batch_size 16 --lr 3e-3 --max_len 48".split())
    with said() as texts:
        more = "--data imdb --data_dir imdb --reward first --prompt_tokens 4-9 --n_prompts 40 --max_len 32 --n_show 1"
        result = train_pref.main([*flags_of("imdb"), *more.split()])
    shutil.copytree("reviews", "reviews-end")    # the measures at the end of training
    return result, texts[0]

@pytest.fixture(scope="module")
def imdb_seen(imdb_run):
    """The run measured again: with the other half's reward model, 3 samples, and greedy samples."""
    with said() as texts:
        returned = eval.main("--run reviews --gold second --n_samples 3 --temperature 0.7 0 --show 1".split())
    return finished(["reviews"], reviews_held("second", [0.7, 0], 3), texts[0], returned)

def room_for(prompts, max_len):
    """The tokens of a completion: max_len without the third quartile of the prompts' lengths."""
    return max_len - sorted(map(len, prompts))[math.ceil(0.75 * (len(prompts) - 1))]

def reviews_held(gold, temperatures, n_samples):
    """The measurement of the run on reviews."""
    train, test = (by_hand.records(f"imdb/{split}.jsonl") for split in ("train", "test"))
    found = by_hand.review_prompts(train, test, 4, 9, 256)
    room = room_for([p for p, _ in found], 32)
    prompts, labels = zip(*((p, positive) for p, positive in found if len(p) + room <= 32))
    rewards = {"reward": says("first", True)}
    if gold:
        rewards["gold"] = says(gold, True)
    pairs = by_hand.sampled_rows(pairs_file("reviews"), "val")
    return about(prompts, room, labels=labels, rewards=rewards, pairs=pairs, n_samples=n_samples,
                 temperatures=temperatures)

def pair_rows():
    """Pairs with prompts of 2 to 21 tokens, some of them two or three times, and three pairs that must be dropped."""
    rng, rows = random.Random(9), []
    one = lambda good: f" the {rng.choice(toy.ASPECT)} was {rng.choice((toy.BAD, toy.GOOD)[good][:2])} ."
    say = lambda good: "".join(one(good) for _ in range(rng.choice((1, 1, 2))))
    for _ in range(150):
        prompt = " ".join(toy.review(rng)[0].split()[:rng.choice((2, 3, 5, 8, 13, 21))])
        for _ in range(rng.choice((1, 1, 2, 3))):
            rows.append({"prompt": prompt, "chosen": say(True), "rejected": say(False)})
    same = " the plot was fine ."
    rows.append({"prompt": "i", "chosen": same, "rejected": same})
    rows.append({"prompt": "i", "chosen": same, "rejected": " "})
    rows.append({"prompt": "i saw this film ." * 10, "chosen": same, "rejected": same + same})
    return rows

@pytest.fixture(scope="module")
def file_run(world):
    """A run on a file of pairs with a tenth of the labels swapped. At its end it is measured on the right labels."""
    write("pairs.jsonl", pair_rows())
    with said() as texts:
        result = train_pref.main([*flags_of("file"), "--data", "pairs.jsonl", "--max_len", "28", "--n_show", "2"])
    shutil.copytree("pairs", "pairs-end")
    return result, texts[0]

@pytest.fixture(scope="module")
def file_seen(file_run):
    """The run measured again, with samples too short for an EOS."""
    with said() as texts:
        returned = eval.main(["--run", "pairs", "--max_new_tokens", "3", "--n_prompts", "7", "--show", "9"])
    return finished(["pairs"], file_held(3, 7), texts[0], returned)

def file_held(room, n_prompts):
    """The measurement of the run on a file."""
    rows, answers = by_hand.file_rows("pairs.jsonl", 28)["val"], {}
    for row in rows:
        answers[tuple(row["prompt"])] = row["chosen"]    # one of each prompt
    room = room or room_for(answers, 28)
    prompts = [list(p) for p in answers if len(p) + room <= 28][:n_prompts]
    return about(prompts, room, pairs=rows, chosen=[answers[tuple(p)] for p in prompts])

@pytest.fixture(scope="module", params=RUNS)
def seen(request):
    """A measurement of each kind of run."""
    return request.getfixturevalue(f"{request.param}_seen")

def wanted(seen, run):
    """The content that eval.json must have, recomputed once."""
    if run not in seen.wanted:
        seen.wanted[run] = by_hand.evaluation(run, seen.held)
    return seen.wanted[run]

def same(found, want, where=""):
    """Asserts that two trees of dicts, lists and numbers are equal, numbers to 4 digits."""
    if isinstance(want, dict):
        assert found.keys() == want.keys(), where
    if isinstance(want, (dict, list)):
        assert len(found) == len(want), where
        for key in want if isinstance(want, dict) else range(len(want)):
            same(found[key], want[key], f"{where} {key}")
    else:
        close = found == want or not isinstance(want, str) and found == pytest.approx(want, rel=1e-4, abs=2e-5)
        assert close, f"{where}: {found}, by hand {want}"

# ---------------------------------------------------------------------------------------------------------------------
# eval.json

@pytest.mark.parametrize("part", ["measures", "temperatures", "best_of"])
def test_every_number_of_eval_json(seen, part):
    """A measure may be in the wrong column, on the wrong rows, or have the interval of another measure."""
    for run in seen.runs:
        want = wanted(seen, run)
        assert (part in seen.stored[run]) == (part in want)
        same(seen.stored[run].get(part), want.get(part), run)

def test_the_samples_and_their_rewards_are_those_measured(seen):
    """Samples of another draw, or rewards of another prompt, would not be those of the table."""
    for run in seen.runs:
        found, want = seen.stored[run]["samples"], wanted(seen, run)["samples"]
        for one in want:
            for rewards in one.get("rewards", {}).values():
                rewards.update({key: round(value, 3) for key, value in rewards.items()})
        assert len(found) == len(want) == len(seen.held.prompts)
        for one, other in zip(found, want):
            assert one.keys() == other.keys() and all(one[k] == other[k] for k in other if k != "rewards")
            assert one.get("rewards", {}).keys() == other.get("rewards", {}).keys()
            for side, rewards in other.get("rewards", {}).items():
                assert one["rewards"][side] == pytest.approx(rewards, abs=1.1e-3)

def test_the_counts_are_those_of_the_rows(seen):
    """A count taken from a flag is what was asked for. There may be fewer rows."""
    held = seen.held
    for run in seen.runs:
        found = {k: v for k, v in seen.stored[run].items() if not isinstance(v, (dict, list))}
        assert found == {"prompts": len(held.prompts), "pairs": len(held.pairs), "n_samples": held.n_samples,
                         "temperature": held.temperatures[0]}
        assert len(seen.held.prompts) >= 4 and len(seen.held.pairs) >= 8

def test_what_is_returned_is_what_is_stored(seen):
    """train_pref.py and the study's sweep use the returned numbers, while people read the file."""
    for run in seen.runs:
        returned = seen.returned if len(seen.runs) == 1 else seen.returned[run]
        assert returned == {key: value for key, value in seen.stored[run].items() if key != "samples"}

# ---------------------------------------------------------------------------------------------------------------------
# the printed tables

def near(found, want, digits, where):
    """Asserts that a printed number is the wanted one, rounded."""
    assert found == pytest.approx(want, abs=0.51 * 10 ** -digits + 1e-4), where

def test_the_printed_table_has_the_right_number_beside_the_right_label(seen):
    """Labels and keys are separate in the code, so two rows may be swapped, and so may the columns of several runs."""
    title, names, rows = by_hand.printed_table(seen.text)
    first = wanted(seen, seen.runs[0])["measures"]
    columns = [first["before"], *(wanted(seen, run)["measures"]["after"] for run in seen.runs)]
    assert names == (["before", "after"] if len(seen.runs) == 1 else [seen.held.reference, *seen.runs])
    held = seen.held
    assert title == (f"{', '.join(seen.runs)} on {len(held.prompts)} held-out prompts, {held.n_samples} samples each "
                     f"at temperature {held.temperatures[0]}; [95% interval]")
    printed = {by_hand.LABELS[label][0] for label in rows}
    known = {key for column in columns for key in column}
    assert printed == {key for key in known if not re.fullmatch("(gold|proxy)_(positive|negative)", key)}
    for label, cells in rows.items():
        key, digits = by_hand.LABELS[label]
        for cell, column in zip(cells, columns, strict=True):
            assert (cell is None) == (key not in column)
            for x, y in zip(cell or (), column.get(key, ())):
                near(x, y, digits, f"{label}: {cell}, by hand {column.get(key)}")

def blocks(seen):
    """{run: its text below the printed table}."""
    text = seen.text.split("[95% interval]")[1].split("\n\n", 2)[2].rsplit("\n\nin ", 1)[0]
    if len(seen.runs) == 1:
        return {seen.runs[0]: text}
    parts = re.split(r"^(\S+)\n\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))

def test_the_printed_lines_of_temperatures_and_best_of_n(seen):
    """These lines belong to one run each and have fewer digits than the file."""
    assert list(blocks(seen)) == seen.runs
    for run, text in blocks(seen).items():
        rows = wanted(seen, run).get("temperatures", ())
        found = {(row["temperature"], side): row[side] for row in rows for side in ("before", "after")}
        lines = re.findall(r"^temperature (\S+) +(before|after) +(.*)$", text, re.M)
        assert [(float(t), side) for t, side, _ in lines] == [*found]
        for temperature, side, cells in lines:
            cells = dict(re.findall(r"(\w+) (\S+ \[\S+, \S+\])", cells))
            want = found[float(temperature), side]
            assert cells.keys() == {"reward", "win", "kl"} & want.keys()
            for key, cell in cells.items():
                for x, y in zip(by_hand.numbers(cell), want[key]):
                    near(x, y, 2 if key == "kl" else 3, f"{temperature} {side} {key}")
        best = re.findall(r"^best of (\d+) +of the reference, KL at most (\S+) +reward (.*)$", text, re.M)
        for (n, kl, cell), row in zip(best, wanted(seen, run).get("best_of", ()), strict=True):
            assert int(n) == row["n"]
            near(float(kl), row["kl"], 2, "KL")
            for x, y in zip(by_hand.numbers(cell), row["reward"]):
                near(x, y, 3, "best of")

def test_the_printed_samples_are_the_first_of_the_file(seen):
    """The number is that of --show. Each sample must have its own rewards, the reference's before the policy's."""
    n = {"a": 2, "reviews": 1, "pairs": len(seen.held.prompts)}[seen.runs[0]]
    for run, text in blocks(seen).items():
        lines = [line for line in text.split("\n") if re.match("prompt   |before   |after    ", line)]
        wants = [(one, side) for one in wanted(seen, run)["samples"][:n] for side in ("prompt", "before", "after")]
        for line, (one, side) in zip(lines, wants, strict=True):
            assert line.startswith(f"{side:9}{one[side].strip()}")
            rewards = re.findall(r"(\w+) ([\d.-]+)[,)]", line.rpartition("   (")[2]) if "(" in line else ()
            want = one["rewards"][side] if side != "prompt" and "rewards" in one else {}
            assert {key: float(x) for key, x in rewards} == pytest.approx(want, abs=1.1e-3)

# ---------------------------------------------------------------------------------------------------------------------
# which rows

def test_toy_prompts_are_of_the_test_split(toy_seen):
    """Training prompts would measure memory. Validation prompts were used to select the weights."""
    prompts = [one["prompt"] for one in toy_seen.stored["a"]["samples"]]
    assert {toy.split_of(p) for p in prompts} == {"test"}
    assert prompts == [e["prompt"] for e in toy.examples("test", 12, 0)]
    trained = {r["prompt"]["text"]: r["split"] for r in by_hand.records(pairs_file("a"))}
    assert set(trained.values()) == {"train", "val"} and not trained.keys() & set(prompts)
    assert all(toy.split_of(prompt) == split for prompt, split in trained.items())

@pytest.mark.parametrize("run, reward, labels", [("a", "proxy", False), ("reviews", "first", True)])
def test_pairs_are_ranked_by_the_reward_of_prompt_and_completion(toy_run, imdb_run, run, reward, labels):
    """The reward of the completion alone, or of another model, gives another order."""
    rows, found = by_hand.records(pairs_file(run)), {}
    for side in ("chosen", "rejected"):
        found[side] = by_hand.scalars(reward, [r["prompt"]["tokens"] + r[side]["tokens"] for r in rows], labels)
        assert [r[side]["reward"] for r in rows] == pytest.approx(found[side], abs=1e-5)
    assert all(x > y for x, y in zip(found["chosen"], found["rejected"]) if abs(x - y) > 1e-5)

def test_review_prompts_are_of_test_reviews_that_training_does_not_hold(imdb_seen):
    """Beginnings of reviews repeat, and some reviews are in both files."""
    prompts = {one["prompt"] for one in imdb_seen.stored["reviews"]["samples"]}
    paired = {r["prompt"]["text"] for r in by_hand.records(pairs_file("reviews"))}
    assert len(prompts) == len(imdb_seen.held.prompts) and not prompts & paired
    assert {p[0] for p in imdb_seen.held.prompts} == {EOS} and len({len(p) for p in imdb_seen.held.prompts}) > 2
    assert all(any(r["text"].startswith(p) for r in by_hand.records("imdb/test.jsonl")) for p in prompts)

def test_prompts_of_a_file_are_its_validation_rows_once_each(file_seen):
    """A prompt with three pairs would count three times, and its pairs might be in both splits."""
    rows = by_hand.file_rows("pairs.jsonl", 28)
    trained, kept = ({words(r["prompt"]) for r in rows[split]} for split in ("train", "val"))
    prompts = [one["prompt"] for one in file_seen.stored["pairs"]["samples"]]
    assert len(set(prompts)) == len(prompts) == 7 and set(prompts) <= kept and not kept & trained
    assert len(rows["val"]) > len(kept) > 7    # some prompts stand there twice
    assert len({len(p) for p in file_seen.held.prompts}) > 2

def test_samples_that_hit_max_new_tokens_have_no_eos(file_seen):
    """A cut sample has not ended. Its length is that of the cut, not one token more for an EOS."""
    for side, column in file_seen.stored["pairs"]["measures"].items():
        model = by_hand.load({"before": "sft", "after": "pairs"}[side])
        samples = sum(by_hand.drawn(model, file_seen.held, 4, 1), [])
        lengths, ends = [len(tokens) for tokens in samples], [tokens[-1] == EOS for tokens in samples]
        assert max(lengths) == 3 and 0 <= sum(ends) < 28 / 4
        assert column["length"][0] == pytest.approx(by_hand.mean(lengths))
        assert column["eos"][0] == pytest.approx(by_hand.mean(ends))

def test_greedy_samples_are_the_likeliest_tokens(toy_seen):
    """At temperature 0 there is one sample per prompt, by the policy, and each token must have the largest logit."""
    found = toy_seen.stored["a"]["temperatures"][1]
    policy = by_hand.load("a")
    for prompt, text in zip(toy_seen.held.prompts, found["samples"], strict=True):
        tokens = TOKENIZER.encode_ordinary(text)
        tokens += [EOS] * (len(tokens) < toy_seen.held.max_new_tokens)
        with torch.no_grad():
            log_p = by_hand.log_probs(policy, [prompt], [tokens])[0]
        assert all(log_p[t].max() - log_p[t, token] < 1e-4 for t, token in enumerate(tokens))

# ---------------------------------------------------------------------------------------------------------------------
# the measurement at the end of training

@pytest.mark.parametrize("name", ["imdb", "file"])
def test_the_table_at_the_end_of_training_is_that_of_the_best_weights(name, request):
    """train_pref.py calls eval.py itself, with the run's own rows, reward model, reference and saved weights."""
    result, text = request.getfixturevalue(f"{name}_run")
    held = reviews_held(None, [1], 4) if name == "imdb" else file_held(None, 256)
    run = TRAINED[name]["run"]
    stored, want = json.loads((Path(f"{run}-end") / "eval.json").read_text()), by_hand.evaluation(run, held)
    same(stored["measures"], want["measures"])
    assert result["measures"] == stored["measures"] and result["pairs"] == len(held.pairs)
    assert [s["after"] for s in stored["samples"]] == [s["after"] for s in want["samples"]]
    names, rows = by_hand.printed_table(text)[1:]
    assert names == ["before", "after"]
    for cell, side in zip(rows["accuracy on held-out pairs"], names):
        near(cell[0], want["measures"][side]["accuracy"][0], 3, side)

# ---------------------------------------------------------------------------------------------------------------------
# training: log.csv and the weights

def trained_rows(name):
    """The rows that a run trains and validates on."""
    if name == "file":
        rows = by_hand.file_rows("pairs.jsonl", 28)
    else:
        rows = {split: by_hand.sampled_rows(pairs_file(TRAINED[name]["run"]), split) for split in ("train", "val")}
    return {split: by_hand.flipped(part, NOISE[name]) for split, part in rows.items()}

def beta_at(t, update):
    """Beta of update 1, 2, ...: a line from beta to beta_end, which the last update has."""
    return t["beta"] + (t["beta_end"] - t["beta"]) * update / t["steps"]

def lr_at(t, update):
    """The learning rate of update 1, 2, ...: a line over the warmup, then half a cosine."""
    if update <= t["warmup"]:
        return t["lr"] * update / t["warmup"]
    done = (update - 1 - t["warmup"]) / (t["steps"] - t["warmup"])
    return t["min_lr"] + (t["lr"] - t["min_lr"]) * (1 + math.cos(math.pi * done)) / 2

def check_logged(found, want, where):
    """Asserts that a step's row of the log is as wanted, where the accuracy may lie in a range."""
    assert found.keys() == want.keys(), where
    for key, value in want.items():
        if key == "rewards/accuracies":
            assert value[0] - 1e-6 <= found[key] <= value[1] + 1e-6, where
        else:
            assert found[key] == pytest.approx(value, rel=2e-4, abs=2e-5), f"{where} {key}"

@pytest.fixture(scope="module", params=RUNS)
def name(request):
    request.getfixturevalue(f"{request.param}_run")
    return request.param

def test_every_validation_of_log_csv(name):
    """It must use validation rows, the last beta and the weights of its step, and no row of a training batch."""
    t = TRAINED[name]
    rows, log = trained_rows(name)["val"], by_hand.read_log(t["run"])
    assert [step for step, split in log if split == "val"] == [*range(t["steps"] + 1)]
    for step in range(t["steps"] + 1):
        with torch.no_grad():
            loss, found = by_hand.dpo(by_hand.load(f"{t['run']}/step-{step}"), by_hand.load("sft"), rows, t["beta_end"])
        check_logged(log[step, "val"], by_hand.logged(loss, found, t["beta_end"]), f"step {step}")
    assert log[0, "val"]["rewards/accuracies"] == 0.5    # all ties
    assert log[0, "val"]["loss"] == pytest.approx(math.log(2), abs=1e-5)

def test_every_update_of_log_csv_and_its_weights(name):
    """Each update has its own rows of the shuffled stream, its own beta and its own learning rate."""
    t = TRAINED[name]
    rows, log = trained_rows(name)["train"], by_hand.read_log(t["run"])
    model = GPT.from_pretrained("sft")
    optimizer = by_hand.AdamW(model, 1e-3, t["decay"])
    assert [step for step, split in log if split == "train"] == [*range(1, t["steps"] + 1)]
    for update in range(1, t["steps"] + 1):
        batch = []
        for i in range((update - 1) * ACCUM[name], update * ACCUM[name]):
            batch += by_hand.batch_rows(rows, t["batch"], i)
        loss, found = by_hand.dpo(model, by_hand.load("sft"), batch, beta_at(t, update))
        loss.backward()
        more = {"lr": lr_at(t, update), "grad_norm": optimizer.step(lr_at(t, update))}
        check_logged(log[update, "train"], by_hand.logged(loss, found, beta_at(t, update)) | more, f"update {update}")
        saved = GPT.from_pretrained(f"{t['run']}/step-{update}").state_dict()
        for key, p in model.state_dict().items():
            assert torch.allclose(saved[key], p, rtol=1e-3, atol=2e-4), f"update {update}: {key}"
        model.load_state_dict(saved)    # so that rounding errors do not add up

def test_the_saved_weights_are_those_of_the_lowest_validation_loss(name):
    """When training ends, the last weights are in memory. Step 0 must be the reference itself."""
    t = TRAINED[name]
    log = by_hand.read_log(t["run"])
    losses = [log[step, "val"]["loss"] for step in range(t["steps"] + 1)]
    best = losses.index(min(losses))
    result = json.loads((Path(t["run"]) / "result.json").read_text())
    del result["seconds"]
    lowest = pytest.approx(min(losses))
    assert result == {"step": t["steps"], "best_step": best, "skipped": 0, "best_val_loss": lowest}
    folders = t["run"], f"{t['run']}/step-{best}", "sft", f"{t['run']}/step-0"
    weights = [GPT.from_pretrained(folder).state_dict() for folder in folders]
    for one, other in (weights[:2], weights[2:]):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert best > 0 and (name != "toy" or best < t["steps"])    # else the best, first and last weights are the same
