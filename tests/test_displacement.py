"""Likelihood displacement (displacement.py): its measures by hand and against slow loops, and its command."""
import contextlib
import io
import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pages import standing_in

import adapters
import displacement
import eval
import measures
import sampling
from model import GPT, GPTConfig
from study import displacement as collected
from study import places
from support import rundir, tables

SETTINGS = {"batch_size": 2, "autocast": nullcontext()}
# Prompts and completions of different lengths, so that a batch has padding on both sides of a pair
PAIRS = [{"prompt": [1, 2], "chosen": [3, 4, 5, 9], "rejected": [6, 9]},
         {"prompt": [1, 2], "chosen": [3, 9], "rejected": [7, 7, 7, 9]},
         {"prompt": [8, 2, 4, 1], "chosen": [5, 9], "rejected": [9]}]

@pytest.fixture(scope="module")
def models():
    """A reference and a policy with large weights, so that their states and log-probs differ."""
    torch.manual_seed(0)
    both = [GPT(GPTConfig(block_size=16, vocab_size=10, n_layer=1, n_head=2, n_embd=8)).eval() for _ in range(2)]
    for model in both:
        for x in model.parameters():
            x.data += 0.3 * torch.randn_like(x)
    return both

def slow_logp(model, prompt, completion):
    """log pi(completion | prompt): a product of conditional probabilities, one forward pass a token."""
    total, text = 0.0, list(prompt)
    for token in completion:
        with torch.no_grad():
            logits = model(torch.tensor([text]))[0, -1].tolist()
        total += logits[token] - math.log(sum(math.exp(x) for x in logits))
        text.append(token)
    return total

def slow_sum(model, prompt, completion):
    """The sum of the states that predict a completion, number by number, one forward pass a token."""
    total, text = [0.0] * model.config.n_embd, list(prompt)
    for token in completion:
        with torch.no_grad():
            state = model.features(torch.tensor([text]))[0, -1].tolist()
        total = [a + b for a, b in zip(total, state)]
        text.append(token)
    return total

def slow_ches(model, pair, by_length):
    w, l = (slow_sum(model, pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
    if by_length:
        w, l = [x / len(pair["chosen"]) for x in w], [x / len(pair["rejected"]) for x in l]
    return sum(a * b for a, b in zip(w, l)) - sum(a * a for a in w)

# ---------------------------------------------------------------------------------------------------------------------
# CHES and log-probs

def test_ches_of_two_tokens_by_hand():
    """
    Prompt of two tokens, completions of two. The states of columns 1 and 2 predict them. Those of columns 0 and 3 count
    nothing: 100 in the sum would be seen at once.
    """
    states = torch.tensor([[[100.0, 0], [1, 0], [0, 2], [0, 100]], [[100, 0], [1, 0], [3, -1], [0, 100]]])
    mask = torch.tensor([[False, False, True, True]] * 2)
    sums, lens = displacement.sum_states(states, mask)
    assert sums.tolist() == [[1, 2], [4, -1]] and lens.tolist() == [2, 2]
    assert displacement.ches(sums[:1], sums[1:]).tolist() == [(1 * 4 + 2 * -1) - (1 * 1 + 2 * 2)]    # 2 - 5
    assert displacement.ches(sums[1:], sums[:1]).tolist() == [(1 * 4 + 2 * -1) - (4 * 4 + 1 * 1)]    # 2 - 17
    means = sums / lens[:, None]
    assert displacement.ches(means[:1], means[1:]).tolist() == [-3 / 4]

def test_ches_of_a_model_equals_a_slow_double_loop(models):
    """Padding, the side of the square, the tokens whose states count, and the division by each side's own length."""
    found = displacement.pair_ches(models[0], PAIRS, **SETTINGS)
    for by_length in (0, 1):
        slow = [slow_ches(models[0], pair, by_length) for pair in PAIRS]
        assert found[by_length] == pytest.approx(slow, rel=1e-4) and min(map(abs, slow)) > 0.01

def test_log_probs_of_texts_equal_a_slow_loop_in_the_order_that_was_asked(models):
    """Batches go by length: a result without its place would belong to another completion."""
    texts = [(pair["prompt"], pair[side]) for side in ("chosen", "rejected") for pair in PAIRS]
    found = displacement.completion_logps(models[0], texts, **SETTINGS)
    assert found == pytest.approx([slow_logp(models[0], *text) for text in texts], abs=1e-4)
    assert len(set(found.round(3))) == len(texts)

# ---------------------------------------------------------------------------------------------------------------------
# shares, gains, intervals

def test_log_ratios_and_what_fell_by_hand():
    """A completion that has not moved has not fallen. "both" is about the same pair, not about two shares."""
    found = displacement.movement(np.array([[-3.0, -3, -3, -3], [-5, -5, -5, -5]]),
                                  np.array([[-4.0, -2, -5, -3], [-7, -9, -4, -6]]))
    assert found["chosen"].tolist() == [-1, 1, -2, 0] and found["rejected"].tolist() == [-2, -4, 1, -1]
    assert found["chosen_fell"].tolist() == [True, False, True, False]
    assert found["both_fell"].tolist() == [True, False, False, False]

def test_samples_are_compared_with_the_better_and_the_worse_of_a_pair():
    """Equal rewards whose last digits differ are equal, and drawn labels may have the better answer as rejected."""
    samples = np.array([[0.9, 0.1, 0.5, 0.75 + 1e-15], [0.9, 0.1, 0.25 - 1e-15, 0.2]])
    found = displacement.destination(samples, np.array([[0.75, 0.25], [0.25, 0.75]]))
    assert found["better"].tolist() == [0.25, 0.25] and found["worse"].tolist() == [0.25, 0.5]
    assert found["between"].tolist() == [0.5, 0.25]

def test_gains_are_sorted_by_probability_and_not_by_ratio():
    """By ratio or log-ratio a text that nobody ever samples comes first. What fell is no gain."""
    before, after = np.log([0.1, 1e-9, 0.4, 0.2]), np.log([0.3, 1e-3, 0.1, 0.25])
    assert displacement.most_gained(before, after, 3) == [0, 3, 1]
    assert displacement.most_gained(before, after, 2) == [0, 3]
    assert displacement.most_gained(after, before, 3) == [2]

def test_an_interval_resamples_prompts_with_all_of_their_pairs():
    """Pairs of one prompt share completions. Resampled one by one, copies of a pair would make the interval narrow."""
    values = np.random.default_rng(1).normal(size=40)
    alone = displacement.interval(lambda at: values[at].mean(), np.arange(40))
    copied = displacement.interval(lambda at: values.repeat(25)[at].mean(), np.arange(40).repeat(25))
    assert copied == pytest.approx(alone) and alone[0] == pytest.approx(values.mean())
    assert alone[1] < alone[0] < alone[2]
    close = measures.bootstrap(values)    # the house's own bootstrap, with other draws
    assert alone[1:] == pytest.approx(close[1:], abs=0.15 * (close[2] - close[1]))
    assert displacement.interval(lambda at: math.nan, np.arange(40)) is None

def test_ranks_equal_a_slow_loop_with_ties():
    """Equal values share a rank, or the correlation would depend on the order of the pairs."""
    values = np.random.default_rng(0).integers(0, 6, 30).astype(float)
    slow = [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]
    assert measures.ranks(values).tolist() == slow

# ---------------------------------------------------------------------------------------------------------------------
# a whole run

@pytest.fixture(scope="module")
def held():
    """Six pairs of three prompts with a random reward of the tokens."""
    rows = PAIRS + [{"prompt": [5, 5, 5], "chosen": [n, 9], "rejected": [n, n, 9]} for n in (1, 2, 3)]
    reward = lambda texts: np.array([math.sin(sum(i * t for i, t in enumerate(text))) for text in texts])
    names = SimpleNamespace(eot_token=9, decode=lambda tokens: " ".join(map(str, tokens)))
    return measures.HeldOut(names, [[1, 2], [8, 2, 4, 1], [5, 5, 5]], None, rows, {"reward": reward}, 6)

@pytest.mark.parametrize("adapted", [False, True])
def test_a_runs_measures_equal_slow_ones(models, held, adapted, monkeypatch):
    """Reference and policy are easily swapped. With an adapter they are one model, and CHES is of the adapter off."""
    monkeypatch.setattr("data.decode", lambda tokenizer, tokens: tokenizer.decode(tokens))
    reference, policy = models
    if adapted:
        policy = GPT(reference.config).eval()
        policy.load_state_dict(reference.state_dict())
        adapters.add_adapters(policy, "sequential", 4)
        for x in adapters.adapter_state_dict(policy).values():
            x += 0.5 * torch.randn_like(x)
    before = lambda: adapters.as_reference(policy, policy if adapted else reference)
    found = displacement.measured(policy, before, held, n_samples=3, seed=0, **SETTINGS)
    change = {side: [slow_logp(policy, p["prompt"], p[side]) - slow_logp(reference, p["prompt"], p[side])
                     for p in held.pairs] for side in ("chosen", "rejected")}
    after = found["measures"]["after"]
    for side, values in change.items():
        assert after[side][0] == pytest.approx(np.mean(values), abs=1e-4) and abs(after[side][0]) > 0.05
    assert after["chosen_fell"][0] == pytest.approx(np.mean(np.array(change["chosen"]) < 0))
    assert after["both_fell"][0] == pytest.approx(np.mean(np.max([*change.values()], 0) < 0))
    for name, model in (("before", reference), ("after", policy)):
        p = [math.exp(slow_logp(model, row["prompt"], row["rejected"])) for row in held.pairs]
        assert found["measures"][name]["p_rejected"][0] == pytest.approx(np.mean(p), rel=1e-3)
        shares = [found["measures"][name][key][0] for key in ("better", "between", "worse")]
        assert sum(shares) == pytest.approx(1) and shares == pytest.approx(slow_shares(model, held), abs=1e-9)
    for by_length, name in enumerate(("by_ches", "by_ches_mean")):
        scores = np.array([slow_ches(reference, row, by_length) for row in held.pairs])
        assert after[name][0] == pytest.approx(measures.rank_correlation(scores, np.array(change["chosen"])))
    check_examples(found["examples"], reference, policy, held)

def check_examples(examples, reference, policy, held):
    """A prompt's first pair, and other completions of it that gained, with their own log-probs and rewards."""
    pairs = [next(row for row in held.pairs if row["prompt"] == prompt) for prompt in held.prompts]
    assert len(examples) == len(pairs) and any(one["gained"] for one in examples)
    for one, pair in zip(examples, pairs):
        gains = []
        for entry in (one["chosen"], one["rejected"], *one["gained"]):
            tokens = [int(token) for token in entry["text"].split()]
            before, after = (slow_logp(model, pair["prompt"], tokens) for model in (reference, policy))
            assert (entry["before"], entry["after"]) == pytest.approx((before, after), abs=1e-4)
            assert entry["reward"] == pytest.approx(held.rewards["reward"]([pair["prompt"] + tokens])[0])
            gains.append(math.exp(after) - math.exp(before))
        assert [one[side]["text"] for side in ("chosen", "rejected")] == [
            " ".join(map(str, pair[side])) for side in ("chosen", "rejected")]
        assert not {e["text"] for e in one["gained"]} & {one["chosen"]["text"], one["rejected"]["text"]}
        assert gains[2:] == sorted(gains[2:], reverse=True) and all(gain > 0 for gain in gains[2:])

def slow_shares(model, held):
    """Shares of 3 samples that are better than both, between, worse than both, as means over pairs."""
    prompts = [prompt for prompt in held.prompts for _ in range(3)]
    drawn = sampling.sample_completions(model, held.tokenizer, prompts, 6, seed=0, batch_size=2)
    reward, counts = (lambda text: held.rewards["reward"]([text])[0]), [0, 0, 0]
    for pair in held.pairs:
        w, l = (reward(pair["prompt"] + pair[side]) for side in ("chosen", "rejected"))
        for prompt, tokens in zip(prompts, drawn):
            if prompt == pair["prompt"]:
                r = reward(prompt + tokens)
                counts[0 if r > max(w, l) else 2 if r < min(w, l) else 1] += 1
    return [n / (3 * len(held.pairs)) for n in counts]

def test_only_prompts_with_room_are_measured_at_most_as_many_as_asked_for(models, held):
    """A prompt without room for a sample would stop the model, and a run without pairs has nothing to measure."""
    loaded = lambda max_len, reference=models[0]: {"a": ({"args": {"max_len": max_len}}, models[1], reference)}
    all_of_them = displacement.paired(held, loaded(16), 10)
    assert all_of_them.pairs == held.pairs and all_of_them.prompts == held.prompts
    assert displacement.paired(held, loaded(9), 10).prompts == [[1, 2], [5, 5, 5]]    # 4 + 6 > 9
    assert displacement.paired(held, loaded(16), 1).pairs == held.pairs[:2]
    for runs, pairs, words in ((loaded(7), held.pairs, "smaller --max_new_tokens"), (loaded(16), [], "train_pref.py"),
                               (loaded(16, None), held.pairs, "random weights")):
        with pytest.raises(ValueError, match=words):
            displacement.paired(measures.replace(held, pairs=pairs), runs, 10)

# ---------------------------------------------------------------------------------------------------------------------
# the command

FEW = ["--displacement", "--n_prompts", "6", "--n_samples", "2", "--show", "1"]
SEVERAL = ("dpo", "simpo", "adapter")

def evaluated(runs):
    """(what eval.py prints of displacement, the displacement.json of each run)."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        eval.main(["--run", *runs, *FEW])
    files = [json.loads((Path(run) / "displacement.json").read_text()) for run in runs]
    return printed.getvalue().split("likelihood displacement on ")[1], files

@pytest.fixture(scope="module")
def copy(paged, tmp_path_factory):
    """A copy of the small runs, to evaluate them again."""
    return shutil.copytree(paged, tmp_path_factory.mktemp("displacement") / "runs")

@pytest.fixture(scope="module")
def side_by_side(copy):
    """evaluated(SEVERAL) in that folder."""
    with standing_in(copy):
        return evaluated(SEVERAL)

def check_output(runs, heads, printed, files):
    """Every run has its column, an example, and its sentence."""
    assert {(f["pairs"], f["prompts"]) for f in files} == {(files[0]["pairs"], 6)} and files[0]["pairs"] >= 6
    assert printed.splitlines()[2].split() == heads and printed.count("prompt   ") == len(runs)
    for run, f in zip(runs, files):
        after = f["measures"]["after"]
        assert f"{run}: {f['verdict']}" in printed and f"{after['chosen'][0]:+.2f} nats" in f["verdict"]
        assert f"{after['chosen'][0]:+.2f} [{after['chosen'][1]:+.2f}, {after['chosen'][2]:+.2f}]" in printed
        assert set(after) - set(f["measures"]["before"]) == {
            "chosen", "rejected", "chosen_fell", "both_fell", "by_ches", "by_ches_mean", "by_length", "by_reward"}
        one = f["examples"][0]
        assert f"chosen   {one['chosen']['before']:.2f} -> {one['chosen']['after']:.2f} nats: " in printed

@pytest.mark.slow
def test_runs_side_by_side_are_measured_on_the_same_pairs(side_by_side):
    """A reference that they share is one column. An adapter's reference has its adapter off."""
    printed, files = side_by_side
    check_output(SEVERAL, ["out/toy/sft", *SEVERAL], printed, files)
    assert files[0]["measures"]["before"] == files[2]["measures"]["before"]

@pytest.mark.slow
def test_one_run_has_a_column_before_and_after(copy, side_by_side):
    """Alone it has the same numbers as beside others."""
    with standing_in(copy):
        printed, files = evaluated(["adapter"])
    check_output(["adapter"], ["before", "after"], printed, files)
    assert files[0] == side_by_side[1][2]

@pytest.mark.parametrize("change, want", [
    ([-1.2, -1.5, -0.9], "displacement: log pi(chosen) changed by -1.20 nats, and 61% of the chosen fell"),
    ([-0.1, -0.3, 0.1], "no displacement on average: log pi(chosen) changed by -0.10 nats, and 61% of the chosen fell"),
])
def test_the_sentence_needs_an_interval_below_zero(change, want):
    """A mean just below 0 is noise."""
    after = {"chosen": change, "chosen_fell": [0.61, 0.5, 0.7]}
    assert tables.verdict_on({}, after) == want
    shares = {"better": [0.24, 0, 1], "worse": [0.3, 0, 1]}, {"better": [0.7, 0, 1], "worse": [0.02, 0, 1]}
    assert tables.verdict_on(shares[0], after | shares[1]) == (
        f"{want}; 70% of the samples are better than both (before: 24%), 2% worse (before: 30%)")

@pytest.mark.slow
def test_pairs_of_a_file_have_no_reward(copy, capsys):
    """Without a reward nothing can be said about better and worse texts, and the rest is still measured."""
    with standing_in(copy):
        eval.main(["--run", "hostile", *FEW])
        found = json.loads(Path("hostile/displacement.json").read_text())
    assert "better" not in found["measures"]["after"] and "by_reward" not in found["measures"]["after"]
    assert "change of log pi(chosen)" in capsys.readouterr().out and found["examples"][0]["chosen"]["reward"] is None

@pytest.mark.slow
def test_log_ratios_are_sums_whatever_the_run_was_trained_on(copy, side_by_side):
    """A run with --mean_logps has a loss of means. A completion's probability is still its sum."""
    with standing_in(copy):
        shutil.copytree("dpo", "means")
        facts = json.loads(Path("means/args.json").read_text())
        facts["args"]["mean_logps"] = True
        Path("means/args.json").write_text(json.dumps(facts))
        assert evaluated(["means"])[1][0] == side_by_side[1][0]

@pytest.mark.slow
@pytest.mark.parametrize("argv, words", [
    (["--run", "ppo"], ["ppo has no held-out pairs", "train_pref.py"]),
    (["--run", "out/toy/sft"], ["out/toy/sft has no held-out pairs"]),
    (["--run", "dpo", "out/toy/sft"], ["out/toy/sft started from random weights"]),
    (["--run", "dpo", "--chat"], ["--displacement has no effect with --chat"]),
    (["--run", "dpo", "--prompt", "a"], ["--displacement has no effect with --chat or --prompt"])], ids=str)
def test_what_has_no_pairs_is_refused_in_one_line_before_anything_is_measured(copy, capsys, argv, words, monkeypatch):
    """The refusal comes before minutes of sampling."""
    monkeypatch.setattr(eval, "evaluate", None)
    with standing_in(copy), pytest.raises(SystemExit) as end:
        eval.main([*argv, "--displacement"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and all(word in err for word in words), err

# ---------------------------------------------------------------------------------------------------------------------
# the study

@pytest.mark.slow
def test_the_study_collects_runs_and_names_what_is_missing(copy, side_by_side, capsys, tmp_path):
    """Runs of one seed share a reference, whose rows come once. An undefined correlation has no row."""
    out = ["--out", str(tmp_path / "out")]
    for run in ("dpo", "adapter", "kept", "ppo"):
        shutil.copytree(copy / run, tmp_path / run)
    dpo, _, adapted = side_by_side[1]
    changed = dpo["measures"] | {"after": dpo["measures"]["after"] | {"by_ches": None}}
    (tmp_path / "dpo" / "displacement.json").write_text(json.dumps(dpo | {"measures": changed}))
    (tmp_path / "kept" / "displacement.json").write_text('{"measures": {"before": 1}, "examples": []}')
    with standing_in(tmp_path):
        collected.main(["--run", "dpo", "adapter", *out])
        rows = [tuple(row.values()) for row in places.read_csv(tmp_path / "out" / "displacement.csv")]
        kl = rundir.read_eval("adapter")["measures"]["after"]["kl"][0]
        for run, words in (("none", "none"), ("ppo", "eval.py --run ppo --displacement"), ("kept", "damaged")):
            with pytest.raises(SystemExit):
                collected.main(["--run", run, *out])
            assert words in capsys.readouterr().err
    values, name = {row[:3]: float(row[3]) for row in rows}, "dpo --adapter parallel --adapter_rank "
    adapter = next(row[0] for row in rows if row[0].startswith(name))
    assert len(rows) == len(set(rows)) and {row[0] for row in rows} == {"reference", "dpo", adapter}
    assert values[adapter, "0", "kl"] == pytest.approx(kl, rel=1e-4)
    before, after = (adapted["measures"][column] for column in ("before", "after"))
    assert values[adapter, "0", "by_ches"] == pytest.approx(after["by_ches"][0], rel=1e-4)
    assert values["reference", "0", "better"] == pytest.approx(before["better"][0], rel=1e-4)
    tops = [one["gained"][0]["after"] for one in adapted["examples"] if one["gained"]]
    assert values[adapter, "0", "gained"] == pytest.approx(np.median(tops), rel=1e-4) and len(tops) > 1
    assert ("dpo", "0", "by_ches") not in values and ("reference", "0", "chosen") not in values
