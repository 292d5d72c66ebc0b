"""The reward model: its two losses by hand, its evaluation, and that it learns the preference in its data."""
import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from support import cli
import data
import eval
import reward
import toy
import train_pref
from model import GPT, GPTConfig, ScalarGPT, fingerprint
from rlhf import train_reward
from test_data import write_jsonl
from test_runs import here, world    # noqa: F401 (fixtures)

def fixed(values):
    """A model that returns given scalars."""
    return lambda idx: torch.tensor(values)

def test_the_score_is_that_of_the_last_token():
    """At the padding after it, or at the last column, noise would decide about a short answer."""
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert train_reward.at_last_token(torch.tensor([[1., 2, 3, 4], [5, 6, 7, 8]]), mask).tolist() == [3, 8]

def test_the_pair_loss_by_hand():
    """-log sigmoid(1) and -log sigmoid(-2): the chosen rows come before the rejected ones."""
    batch = {"idx": None, "completion_mask": torch.tensor([[0, 1]] * 4, dtype=torch.bool)}
    loss, logged = train_reward.pair_loss(fixed([[9., 2], [9, 0], [9, 1], [9, 2]]), batch)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2)
    assert logged["accuracy"] == 0.5 and logged["margin"] == pytest.approx(-0.5)

def test_the_label_loss_by_hand():
    """
    The mean over a text's tokens, then over texts, so that a long one counts no more. The accuracy is the last
    token's.
    """
    mask = torch.tensor([[0, 1, 1], [0, 1, 0]], dtype=torch.bool)
    batch = {"idx": None, "completion_mask": mask, "label": torch.tensor([1, 0])}
    loss, logged = train_reward.label_loss(fixed([[9., 1, -2], [9, -1, 9]]), batch)
    nll = lambda x: math.log(1 + math.exp(-x))
    assert loss.item() == pytest.approx(((nll(1) + nll(-2)) / 2 + nll(1)) / 2) and logged["accuracy"] == 0.5

def test_the_sigmoid_by_hand():
    """Log-odds of log 3 are 3 : 1. With the other sign every reward of reviews would be P(negative)."""
    assert reward.sigmoid(np.array([math.log(3), 0.0, -math.log(3)])) == pytest.approx([0.75, 0.5, 0.25])

def test_a_fresh_head_says_log_2_for_all(tokenizer):
    """The head starts at zero, so that no completion is preferred."""
    model = ScalarGPT(GPTConfig(block_size=16, vocab_size=tokenizer.n_vocab, n_layer=1, n_head=1, n_embd=8))
    batch = data.collate([{"prompt": [1], "chosen": [2, 3], "rejected": [4]}])
    assert train_reward.pair_loss(model, batch)[0].item() == pytest.approx(math.log(2))

def test_scores_do_not_depend_on_their_batch(tokenizer):
    """Scores must not change with padding, order or batch size. Each is the scalar at a text's last token."""
    torch.manual_seed(0)
    model = ScalarGPT(GPTConfig(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=16)).eval()
    torch.nn.init.normal_(model.score.weight)
    texts = [[1, 2, 3, 4, 5], [6], [7, 8, 9], [3, 1]]
    one = [model(torch.tensor([t]))[0, -1].item() for t in texts]
    for size in (1, 3, 8):
        assert reward.scores(model, texts, size, nullcontext()) == pytest.approx(np.array(one), abs=1e-5)

def test_calibration_by_hand():
    """A model that says 0.9 and is right half the time is off by 0.4. One that says 0.5 is off by 0."""
    error, rows = train_reward.calibration(np.array([0.9] * 10), np.arange(10) % 2 == 0)
    assert error == pytest.approx(0.4) and rows == [(pytest.approx(0.9), 0.5, 10)]
    assert train_reward.calibration(np.array([0.5] * 10), np.arange(10) % 2 == 0)[0] == 0
    # 1 belongs to the last bin
    assert train_reward.calibration(np.array([1.0, 0.0]), np.array([True, False]))[0] == 0

def test_the_predicted_preference_is_not_always_for_the_first(monkeypatch):
    """With the chosen always first, an overconfident model looks well calibrated. So half of the pairs are swapped."""
    rows = [{"prompt": [0], "chosen": [1], "rejected": [2]}] * 10
    scores = lambda model, texts, *rest: np.array([3.0 if t[1] == 1 else 0.0 for t in texts])
    monkeypatch.setattr(reward, "scores", scores)
    found = train_reward.evaluate_pairs(None, rows, 4, nullcontext())
    assert found["accuracy"][0] == 1 and [n for *_, n in found["calibration"]] == [5, 5]
    assert found["calibration_error"] == pytest.approx(1 - 1 / (1 + math.exp(-3))) and "agreement" not in found
    for rewards, order in (((0.9, 0.1), 1), ((0.1, 0.9), -1)):    # agreement is by rank, not by size
        found = train_reward.evaluate_pairs(None, [r | {"rewards": rewards} for r in rows], 4, nullcontext())
        assert found["agreement"] == pytest.approx(order)

def test_labelled_reviews(tmp_path, tokenizer, capsys):
    """
    Unlabelled reviews are left out, test reviews that are in training too are dropped, and the halves share no
    review.
    """
    make = lambda n, tag: [{"text": f"{tag} {i}", "label": i % 2} for i in range(n)]
    write_jsonl(tmp_path / "train.jsonl", make(60, "a"))
    write_jsonl(tmp_path / "unsup.jsonl", [{"text": "b", "label": -1}])
    write_jsonl(tmp_path / "test.jsonl", make(10, "c") + [{"text": "a 3", "label": 1}])
    whole = train_reward.load_labeled_reviews(str(tmp_path), tokenizer, 64, None)
    assert len(whole["test"]) == 10 and "1 test reviews that are in training too" in capsys.readouterr().out
    texts = lambda rows: {data.decode(tokenizer, r["chosen"]) for r in rows}
    load = lambda half: train_reward.load_labeled_reviews(str(tmp_path), tokenizer, 64, half)["train"]
    first, second = texts(load("first")), texts(load("second"))
    assert not first & second and first | second == texts(whole["train"])
    assert all(r["label"] == int(data.decode(tokenizer, r["chosen"]).split()[1]) % 2 for r in whole["train"])
    batch = data.collate(whole["train"][:3])
    assert batch["label"].tolist() == [r["label"] for r in whole["train"][:3]] and batch["weight"] == 3

@pytest.mark.slow
def test_a_reward_model_learns_a_preference(here, tmp_path, monkeypatch, capsys):    # noqa: F811
    """It learns to prefer longer answers, measured on fresh samples. The result is a normal run and can score texts."""
    monkeypatch.setattr(toy, "reward", lambda text: len(text.split()) / 100)
    flags = ["--n_prompts", "150", "--max_steps", "60", "--lr", "1e-2"]
    found = train_reward.main(["--out_dir", str(tmp_path / "reward"), *flags])
    assert found["accuracy"][0] > 0.8 and found["n"] > 50
    assert found["best_val_loss"] < 0.6 and found["agreement"] > 0.6
    assert json.loads((tmp_path / "reward" / "reward.json").read_text())["accuracy"] == found["accuracy"]
    model = ScalarGPT.from_pretrained(tmp_path / "reward")
    assert model.score.weight.abs().max() > 0 and GPT.from_pretrained(tmp_path / "reward")
    assert "step     0  val loss 0.6931  accuracy 0.500" in capsys.readouterr().out

def review(i, what, word):
    return f"{i:03d} the {what} was {word} , {word} ."

def test_fresh_pairs_are_of_test_prompts(here, tokenizer):    # noqa: F811
    """Accuracy on prompts of training would include memorization. The better completion comes first in a pair."""
    policy = GPT.from_pretrained("out/toy/sft").eval()
    rows = train_reward.fresh_pairs(policy, tokenizer, 64, 0)
    assert rows and {toy.split_of(tokenizer.decode(r["prompt"])) for r in rows} == {"test"}
    true = lambda r, side: toy.reward(tokenizer.decode(r["prompt"]) + data.decode(tokenizer, r[side]))
    assert all(true(r, "chosen") > true(r, "rejected") for r in rows)
    assert all(r["rewards"] == (true(r, "chosen"), true(r, "rejected")) for r in rows)

@pytest.fixture(scope="module")
def two_judges(tmp_path_factory, tokenizer, sft_run):
    """
    (folder, results) of two reward models of short reviews, one trained on either half. The folder has `imdb` and
    `sft` too.
    """
    root = tmp_path_factory.mktemp("judges")
    for split, what, n in (("train", "plot", 900), ("test", "cast", 400)):
        labels = np.random.default_rng(0).integers(0, 2, n).tolist()
        rows = [{"text": review(i, what, ("dull", "superb")[k]), "label": k} for i, k in enumerate(labels)]
        write_jsonl(root / "imdb" / f"{split}.jsonl", rows)
    shutil.copytree(sft_run, root / "sft")
    flags = ["--data", "imdb", "--data_dir", "imdb", "--init_from", "sft", "--max_steps", "80", "--eval_every", "40",
             "--batch_size", "16", "--lr", "1e-2", "--max_len", "64"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
        train = lambda half: train_reward.main([*flags, "--out_dir", half, "--half", half])
        return root, {half: train(half) for half in ("first", "second")}

@pytest.fixture
def judges(two_judges, tmp_path, own_tokenizer, monkeypatch):
    """The results of the two reward models, with a copy of their folder as the current one."""
    root, results = two_judges
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return results

def test_a_reward_model_of_reviews_ranks_pairs_and_another_measures(judges, tokenizer, capsys):
    """IMDB's pipeline: labels, pairs by sampling and ranking, training, and the result's rewards by either model."""
    for found in judges.values():
        assert found["accuracy"][0] > 0.95 and found["n"] == 400
    says = reward.Reward("first", tokenizer, 64, "cpu", 8, nullcontext())
    texts = tokenizer.encode_ordinary_batch([review(3, "cast", word) for word in ("superb", "dull")])
    good, bad = says([[tokenizer.eot_token, *t] for t in texts])
    assert 0 < bad < 0.2 and 0.8 < good < 1
    train_pref.main(["--data", "imdb", "--data_dir", "imdb", "--init_from", "sft", "--reward", "first",
                     "--prompt_tokens", "5-6", "--max_len", "24", "--n_prompts", "24", "--max_steps", "4",
                     "--eval_every", "4", "--out_dir", "dpo"])
    said = capsys.readouterr().out
    assert "reward by the gold" not in said
    assert "of positive reviews" in said and "win rate against the reference" in said
    found = eval.main(["--run", "dpo", "--gold", "second", "--n_prompts", "16", "--n_samples", "2"])["measures"]
    assert {"reward", "gold", "win", "gold_win", "gold_positive"} <= set(found["after"])
    assert found["before"]["gold_win"][0] == 0.5
    assert found["after"]["gold"] != found["after"]["reward"]
    assert "reward by the gold model" in (said := capsys.readouterr().out) and ", gold 0." in said
    for flags in (["--gold", "first"], ["--reward", "second", "--gold", "second"]):
        with pytest.raises(SystemExit):
            eval.main(["--run", "dpo", *flags])
        assert "agree with itself" in capsys.readouterr().err
    about = json.loads(Path("dpo/args.json").read_text())
    shutil.copytree("dpo", "other")
    Path("other/args.json").write_text(json.dumps(about | {"args": about["args"] | {"reward": "second"}}))
    with pytest.raises(SystemExit):
        eval.main(["--run", "dpo", "other"])
    assert "different rewards, first, second" in capsys.readouterr().err
    stored = json.loads(Path("dpo/eval.json").read_text())
    one = stored["samples"][0]
    text = [tokenizer.eot_token, *tokenizer.encode_ordinary(one["prompt"] + one["after"])]
    assert all("cast" in s["prompt"] for s in stored["samples"])    # training reviews are about the plot
    assert stored["prompts"] == 16 and 0 < one["rewards"]["after"]["reward"] < 1 and len(text) > 3

def test_a_run_that_is_no_reward_model_is_refused(judges, capsys):
    """Also refused: a reward model of other tokens, and sampled pairs of reviews without any reward model."""
    base = ["--data", "imdb", "--data_dir", "imdb", "--init_from", "sft", "--max_len", "24", "--out_dir", "x"]
    cases = (
        (["--reward", "sft"], "not a reward model's"),
        ([], "--reward"),
        (["--reward", "none"], "none"),
        (["--reward", "first", "--prompt_tokens", "8-"], "--prompt_tokens"),
        (["--reward", "first", "--max_len", "65"], "--max_len 65"),
    )
    for flags, words in cases:
        with pytest.raises(SystemExit) as end:
            train_pref.main([*base, *flags])
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.count("\n") == 1 and words in said, said
    assert not Path("x").exists()

@pytest.mark.parametrize("flags, words", [
    (["--half", "first"], ["--half", "imdb"]),
    (["--data", "imdb", "--n_prompts", "5"], ["--n_prompts"]),
    (["--data", "cnn_dailymail"], ["evaluation only"])])
def test_what_has_no_effect_is_refused(flags, words, capsys, in_tmp):
    """The error is one line that names the flag."""
    with pytest.raises(SystemExit):
        train_reward.main(flags)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(w in said for w in words)

def test_a_reward_run_goes_on(here, tmp_path, capsys):    # noqa: F811
    """--resume works as for every script, and the printed command really starts this one."""
    # the learning rate is constant, so that it does not depend on --max_steps
    flags = ["--n_prompts", "60", "--batch_size", "16", "--eval_every", "4", "--min_lr", "1e-3"]
    train_reward.main(["--out_dir", str(tmp_path / "whole"), *flags, "--max_steps", "8"])
    train_reward.main(["--out_dir", str(tmp_path / "cut"), *flags, "--max_steps", "4"])
    train_reward.main(["--resume", "--out_dir", str(tmp_path / "cut"), "--max_steps", "8"])
    for name in ("model.safetensors", "log.csv", "reward.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    args = SimpleNamespace(out_dir=str(tmp_path / "cut"))
    with cli.interruptible("-m rlhf.train_reward", args, []):
        assert cli.go_on().startswith("python -m rlhf.train_reward --resume --out_dir ")

@pytest.mark.parametrize("text, good", [
    ("32", True), ("2-8", True), ("8-8", True),
    ("8-2", False), ("0", False), ("0-3", False), ("8-", False), ("-8", False), ("08", False), ("x", False)])
def test_prompt_tokens_are_a_number_or_a_range_that_rises(text, good, capsys):
    """A falling range contains no length, and the error would come from inside the sampling of prompts."""
    args = SimpleNamespace(data="imdb", prompt_tokens=text)
    if good:
        cli.check_prompt_tokens(cli.Parser(""), args)
        assert args.prompt_tokens == text
    else:
        with pytest.raises(SystemExit):
            cli.check_prompt_tokens(cli.Parser(""), args)
        assert f"--prompt_tokens {text}" in capsys.readouterr().err

def test_prompt_tokens_have_a_default_on_imdb_only():
    """With a default for other data too, the flag would be stored with runs where it has no effect."""
    for name, want in (("imdb", "32"), ("toy", None), ("hh", None)):
        args = SimpleNamespace(data=name, prompt_tokens=None)
        cli.check_prompt_tokens(cli.Parser(""), args)
        assert args.prompt_tokens == want

@pytest.mark.parametrize("given, words", [
    (dict(data="hh", n_prompts=5), "--n_prompts"),
    (dict(data="hh", reward="r"), "--reward"),
    (dict(data="hh", labels="best"), "--labels"),
    (dict(data="toy", prompt_tokens="8"), "--prompt_tokens"),
    (dict(data="toy", max_prompt_len=9), "--max_prompt_len"),
    (dict(data="imdb", reward="r", n_val=9), "--n_val"),
    (dict(data="imdb"), "train a reward model"),
    (dict(data="toy", n_prompts=5, reward="r", labels="best"), ""),
    (dict(data="imdb", n_prompts=5, reward="r", prompt_tokens="8"), ""),
    (dict(data="hh", max_prompt_len=9, n_val=9), "")])
def test_flags_of_sampled_pairs_hold_where_pairs_are_sampled(given, words, capsys):
    """
    Each flag is tried on data where it works and on data where it does not. An inverted condition refuses the wrong
    ones.
    """
    p = cli.Parser("")
    flags = ("n_prompts", "reward", "labels", "prompt_tokens", "max_prompt_len", "n_val")
    for flag in flags:
        p.add_argument(f"--{flag}")
    args = SimpleNamespace(**(dict.fromkeys(flags) | given))
    if not words:
        cli.check_sampling_flags(p, args)
        return
    with pytest.raises(SystemExit):
        cli.check_sampling_flags(p, args)
    assert words in capsys.readouterr().err

def test_the_toy_worlds_reward_is_its_exact_one(tokenizer):
    """It is compared by name and by value, text by text. Its probabilities need no sigmoid."""
    exact = reward.Reward(None, tokenizer, 64, "cpu", 8, nullcontext())
    examples = toy.examples("test", 4, 0)
    texts = tokenizer.encode_ordinary_batch([e["prompt"] for e in examples])
    assert exact.name == "toy" and exact.model is None
    assert exact([[*t, tokenizer.eot_token] for t in texts]).tolist() == [toy.reward(e["prompt"]) for e in examples]

def test_a_reward_in_nats_is_the_log_odds_of_a_probability(tokenizer):
    """Labels that are drawn from probabilities in place of nats would hardly differ from a coin's."""
    exact = reward.Reward(None, tokenizer, 64, "cpu", 8, nullcontext())
    for text in ("i saw this film . the plot was dull . overall , a gem .", "the plot was fine . the cast was fine ."):
        assert exact.nats(toy.reward(text)) == pytest.approx(toy.log_odds(text), abs=1e-9)
    assert exact.nats(1.0) == pytest.approx(27.63, abs=0.01) and exact.nats(0.0) == pytest.approx(-27.63, abs=0.01)
    exact.model, exact.labels = object(), True       # a model of IMDB's labels gives probabilities
    assert exact.nats(0.5) == 0
    exact.labels = False                             # a model of pairs gives nats
    assert exact.nats(0.5) == 0.5

@pytest.mark.parametrize("name", ["imdb", "toy"])
def test_a_models_reward_is_a_probability_only_if_it_has_learned_labels(name, tmp_path, tokenizer):
    """
    The scalar of a model of pairs is known only up to a constant, so its sigmoid means nothing. The sigmoid of a label
    model is P(positive).
    """
    torch.manual_seed(0)
    model = ScalarGPT(GPTConfig(block_size=16, vocab_size=tokenizer.n_vocab, n_layer=1, n_head=1, n_embd=8)).eval()
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path)
    (tmp_path / "args.json").write_text(json.dumps({"script": "rlhf/train_reward.py", "args": {"data": name}}))
    texts = [[1, 2, 3], [4], [300, 301]]
    raw = reward.scores(model, texts, 8, nullcontext())
    found = reward.Reward(str(tmp_path), tokenizer, 16, "cpu", 2, nullcontext())
    assert found(texts) == pytest.approx(1 / (1 + np.exp(-raw)) if name == "imdb" else raw, abs=1e-5)
    assert found.name == fingerprint(model) and len(set(raw.round(3))) == 3
    with pytest.raises(ValueError):
        reward.Reward(str(tmp_path), tokenizer, 17, "cpu", 2, nullcontext())    # longer than the model's block_size
    (tmp_path / "args.json").write_text(json.dumps({"script": "train_sft.py", "args": {"data": name}}))
    with pytest.raises(ValueError, match="is a run of train_sft.py, not a reward model's"):
        reward.Reward(str(tmp_path), tokenizer, 16, "cpu", 2, nullcontext())
