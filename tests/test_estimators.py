"""study/estimators.py: exact numbers against slow loops, samples against exact numbers, and the stored results."""
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from model import GPT, GPTConfig
from sampling import sample_completions
from study import bandit, estimators, pictures, places

NAMES = ("k1", "k2", "k3", "k3 inverted")

# name -> (estimate, its derivative), functions of a log-ratio
BY_HAND = {"k1": (lambda l: l, lambda l: 1), "k2": (lambda l: l * l / 2, lambda l: l),
           "k3": (lambda l: math.exp(-l) - 1 + l, lambda l: 1 - math.exp(-l)),
           "k3 inverted": (lambda l: math.exp(l) - 1 - l, lambda l: math.exp(l) - 1)}

def named(rows):
    """Rows as dicts."""
    return [dict(zip(estimators.HEAD, row)) for row in rows]

def slow_gradients(p, q, name):
    """Lists (A,) of one prompt: the gradient of KL(p || q) in the logits of p, and an estimator's in both places."""
    estimate, slope = BY_HAND[name]
    A, found = len(p), []
    for weight in (lambda l: l, estimate, slope):    # d KL / d logit_j = sum over i of p_i l_i (i == j) - p_j
        gradient = [0.0] * A
        for i in range(A):
            for j in range(A):
                gradient[j] += p[i] * weight(math.log(p[i] / q[i])) * ((i == j) - p[j])
        found.append(gradient)
    return found

@pytest.mark.parametrize("name", NAMES)
def test_the_exact_numbers_against_a_slow_loop(name):
    """At every beta: KL, mean, standard deviation, and the cosine and error of both gradients."""
    found = [row for row in named(estimators.exact_rows(seeds=[1])) if row["estimator"] == name]
    ref, reward = bandit.world(seed=1)
    for beta, row in zip(estimators.BETAS, found):
        kl, first, second, gradients = 0.0, 0.0, 0.0, ([], [], [])
        for x in range(len(ref)):
            q = ref[x].exp().tolist()
            unnormalized = [q_i * math.exp(r / beta) for q_i, r in zip(q, reward[x].tolist())]
            p = [u / sum(unnormalized) for u in unnormalized]
            for p_i, q_i in zip(p, q):
                value = BY_HAND[name][0](math.log(p_i / q_i))
                kl += p_i * math.log(p_i / q_i) / len(ref)
                first += p_i * value / len(ref)
                second += p_i * value ** 2 / len(ref)
            for all_prompts, one in zip(gradients, slow_gradients(p, q, name)):
                all_prompts += one
        assert (row["kl"], row["mean"]) == pytest.approx((kl, first), rel=1e-9)
        assert row["std"] == pytest.approx(math.sqrt(second - first ** 2), rel=1e-6)
        exact, *others = map(np.array, gradients)
        for place, gradient in zip(("reward", "loss"), others):
            size = np.linalg.norm(gradient)
            cosine = gradient @ exact / size / np.linalg.norm(exact) if size > 1e-12 else 0
            off = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
            assert (row[f"{place} cosine"], row[f"{place} off"]) == pytest.approx((cosine, off), abs=2e-6, rel=1e-6)

def test_where_an_estimator_is_right():
    """Two of eight gradients are right: k1's in the reward and k2's in the loss. k1 and k3 have the right mean."""
    for row in named(estimators.exact_rows(seeds=range(3))):
        gap = abs(row["mean"] / row["kl"] - 1)
        right = {(place, row["estimator"]) for place in ("reward", "loss") if row[f"{place} off"] < 1e-6}
        assert right == {"k1": {("reward", "k1")}, "k2": {("loss", "k2")}}.get(row["estimator"], set())
        assert gap < 1e-9 if row["estimator"] in ("k1", "k3") else gap > 1e-4
        if row["estimator"] == "k1":
            assert (row["loss cosine"], row["loss off"]) == (0, 1)    # no gradient at all

def test_units_by_hand():
    """Two completions with two tokens and one. Their sums are in the order of their numbers, not of their tokens."""
    l, kls = np.array([1.0, -2.0, 0.5]), np.array([0.1, 0.2, 0.4])
    found = {(unit, name): (values.tolist(), kl.tolist())
             for unit, name, values, kl in estimators.units(np.array([1, 0, 1]), l, kls)}
    k3 = lambda l: math.exp(-l) - 1 + l
    assert found["token", "k3"] == (pytest.approx([k3(1), k3(-2), k3(0.5)]), kls.tolist())
    assert found["completion", "k3"] == (pytest.approx([k3(-2), k3(1) + k3(0.5)]), pytest.approx([0.2, 0.5]))
    assert found["whole", "k3"] == (pytest.approx([k3(-2), k3(1.5)]), pytest.approx([0.2, 0.5]))
    assert found["whole", "k3 inverted"][0] == pytest.approx([k3(2), k3(-1.5)])
    assert found["whole", "k1"] == found["completion", "k1"] == (pytest.approx([-2, 1.5]), pytest.approx([0.2, 0.5]))
    assert found["completion", "vocabulary"] == (pytest.approx([0.2, 0.5]), pytest.approx([0.2, 0.5]))
    assert len(found) == 3 * 4 + 2

# ---------------------------------------------------------------------------------------------------------------------
# samples

@pytest.fixture(scope="module")
def drawn(tokenizer):
    """(models, prompts, answers): 2,000 completions by a small GPT with random weights, 5 nats from its reference."""
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(block_size=16, vocab_size=tokenizer.n_vocab, n_layer=1, n_head=2, n_embd=16)).eval()
        model.transformer.wte.weight.data *= 12    # next-token distributions that differ by 0.9 nats
        models.append(model)
    prompts = [[i % 50, 7, i % 11][:1 + i % 3] for i in range(2000)]
    return models, prompts, sample_completions(models[0], tokenizer, prompts, 6, seed=3)

def test_sampled_tokens_against_a_slow_loop(drawn):
    """One completion at a time, without padding. The KL is the sum over the vocabulary."""
    models, prompts, answers = drawn
    prompts, answers = prompts[:300], answers[:300]
    numbers, logratios, kls = estimators.sampled_tokens(*models, prompts, answers, nullcontext())
    sums, slow = np.bincount(numbers, logratios), []
    for prompt, answer in zip(prompts, answers):
        with torch.no_grad():
            logps, ref_logps = (model(torch.tensor([prompt + answer]))[0].log_softmax(-1) for model in models)
        ratio = kl = 0.0
        for t, token in enumerate(answer, len(prompt) - 1):    # logits at t predict the token at t + 1
            ratio += (logps[t, token] - ref_logps[t, token]).item()
            kl += (logps[t].exp() * (logps[t] - ref_logps[t])).sum().item()
        slow.append((ratio, kl, len(answer)))
    found = zip(sums, np.bincount(numbers, kls), np.bincount(numbers))
    assert np.allclose(sorted(found), sorted(slow), atol=1e-3) and len(slow) == 300

def test_samples_agree_with_the_exact_kl_where_an_estimator_is_unbiased(drawn):
    """5 nats from the reference, k1 and k3 are within 3 standard errors. k2 is 40% too high, inverted k3 400%."""
    models, prompts, answers = drawn
    tokens, found = estimators.sampled_tokens(*models, prompts, answers, nullcontext()), {}
    for unit, name, values, kl in estimators.units(*tokens):
        if unit == "completion":
            gaps = values - kl
            found[name] = gaps.mean() / kl.mean(), abs(gaps.mean()) / (gaps.std() / len(gaps) ** 0.5 + 1e-12)
            assert kl.mean() > 5
    assert all(found[name][1] < 3 for name in ("k1", "k3"))
    assert found["k2"][0] > 0.4 and found["k3 inverted"][0] > 3
    assert found["k2"][1] > 10 and found["k3 inverted"][1] > 10

# ---------------------------------------------------------------------------------------------------------------------
# runs, and the stored results

@pytest.mark.slow
def test_runs_are_measured_and_drawn(paged, tmp_path, monkeypatch):
    """Runs of both scripts. An adapter is switched off for the reference. The error is that of mean - kl."""
    monkeypatch.chdir(paged)
    monkeypatch.setattr(estimators, "exact_rows", lambda: [])
    estimators.main(["--run", "dpo", "adapter", "ppo", "--n_prompts", "12", "--out", str(tmp_path)])
    rows = places.read_csv(tmp_path / "estimators.csv")
    assert list(rows[0]) == list(estimators.HEAD) and len(rows) == 3 * 14 and (tmp_path / "estimators.png").exists()
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    assert [policy.split()[0] for policy in policies] == ["loss=dpo", "algo=ppo"] and "beta=" in policies[1]
    for row in rows:
        assert (row["world"], row["seed"], row["error"] == "") == ("toy", "0", row["unit"] == "token")
        assert row["estimator"] != "vocabulary" or (row["mean"] == row["kl"] and float(row["error"] or 0) == 0)
        assert float(row["kl"]) > 1e-4    # the reference is another policy

@pytest.mark.slow
@pytest.mark.parametrize("run", ["hostile", "out/toy/sft"])
def test_a_run_without_reference_or_on_other_data_is_refused(run, paged, tmp_path, monkeypatch, capsys):
    """In one line that names the run."""
    monkeypatch.chdir(paged)
    monkeypatch.setattr(estimators, "exact_rows", lambda: [])
    with pytest.raises(SystemExit):
        estimators.main(["--run", run, "--out", str(tmp_path)])
    assert f"{run}: expected a run on the toy world" in capsys.readouterr().err

def test_the_picture_shows_the_files_numbers(tmp_path, monkeypatch):
    """Each panel its own column, as means over the seeds on the exact world. A run of the toy world is a point."""
    shown = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: shown.append(figure))
    rows = [dict(zip(estimators.HEAD, map(str, row))) for row in estimators.exact_rows(seeds=[0, 1])]
    toy = dict(rows[0], world="toy", unit="completion", kl="2.0", mean="3.0", std="5.0")
    pictures.estimators(tmp_path / "a.png", [*rows, toy, toy | {"unit": "token", "mean": "9.0"}])
    def line(ax, name):
        return next(line for line in ax.lines if line.get_label() == name).get_xydata()
    axes = np.reshape(shown[0].axes, (2, 3))
    for ax, column in ((axes[0, 0], "mean"), (axes[0, 1], "std"), (axes[0, 2], "reward cosine"),
                       (axes[1, 2], "loss cosine")):
        for name in ("k1", "k2", "k3"):
            want = []
            for beta in estimators.BETAS:
                mine = [row for row in rows if row["estimator"] == name and row["policy"] == f"beta={beta:g}"]
                unit = [1.0 if "cosine" in column else float(row["kl"]) for row in mine]
                ys = [float(row[column]) / one for row, one in zip(mine, unit)]
                want.append((np.mean([float(row["kl"]) for row in mine]), np.mean(ys)))
            assert len(mine) == 2 and np.allclose(line(ax, name), want), (column, name)
    assert line(axes[1, 0], "k1").tolist() == [[2.0, 1.5]] and line(axes[1, 1], "k1").tolist() == [[2.0, 2.5]]

STORED = places.read_csv(places.RESULTS / "estimators.csv")

def test_the_stored_numbers_of_the_exact_world_are_those_of_the_code():
    """They were computed once. A change of an estimator or of the world must change them."""
    stored = [row for row in STORED if row["world"] == "exact"]
    assert len(stored) == 5 * len(estimators.BETAS) * 4
    for row, now in zip(stored, named(estimators.exact_rows())):
        assert all(row[key] == str(now[key]) for key in ("policy", "seed", "estimator"))
        for key in estimators.HEAD[5:]:
            assert float(row[key]) == pytest.approx(now[key], rel=1e-4, abs=1e-5), (row, key)

def test_the_stored_gradients():
    """What docs/rlhf.md says about k2 and k3 next to the reference, and about k3 in the loss far from it."""
    of = lambda policy, name, column: [float(row[column]) for row in STORED
                                       if row["policy"] == policy and row["estimator"] == name]
    near = of("beta=10", "k2", "reward cosine") + of("beta=10", "k3", "reward cosine")
    assert (len(near), round(min(near), 2), round(max(near), 2)) == (10, -0.35, 0.81)
    off = [of(policy, "k3", "loss off") for policy in ("beta=10", "beta=0.3")]
    assert [(round(min(x), 2), round(max(x), 2)) for x in off] == [(0.04, 0.06), (0.61, 4.28)]

def test_the_stored_samples_of_the_toy_world():
    """What docs/rlhf.md says about the 30 runs: where each mean is right, and which estimator is the least noisy."""
    runs = {}    # (policy, seed) -> {estimator: its row}
    for row in STORED:
        if row["world"] == "toy" and row["unit"] == "completion":
            row = row | {key: float(row[key]) for key in ("kl", "mean", "std", "error")}
            row["share"], row["z"] = row["mean"] / row["kl"], (row["mean"] - row["kl"]) / max(row["error"], 1e-9)
            runs.setdefault((row["policy"], row["seed"]), {})[row["estimator"]] = row
    in_range = lambda low, high: [found for found in runs.values() if low < found["k1"]["kl"] < high]
    assert len(runs) == 30 and all(abs(found["k1"]["z"]) < 3 for found in runs.values())
    assert all(0.69 < found["k2"]["share"] < 0.96 and found["k2"]["z"] < -3 for found in in_range(0, 3))
    assert [round(found["k2"]["share"], 1) for found in in_range(10, 30)] == [4.9, 5.4]
    assert all(abs(found["k3"]["z"]) < 3 for found in in_range(0, 2.1))
    low = [found["k3"] for found in in_range(2.5, 7) if found["k3"]["share"] < 1]
    assert (len(low), len(in_range(2.5, 7))) == (8, 12)
    assert all(0.82 < k3["share"] < 0.945 and k3["z"] < -5 for k3 in low)
    noise = lambda found, one, other: found[one]["std"] / found[other]["std"]
    assert max(noise(found, "k3", "k1") for found in in_range(0, 0.7)) < 1
    assert 1.5 < min(noise(found, "k3", "k1") for found in in_range(0.8, 2.4))
    assert max(noise(found, "k3", "k1") for found in in_range(0.8, 2.4)) < 17.1
    assert all(noise(found, "vocabulary", name) < 1 for found in runs.values() for name in ("k1", "k2", "k3"))
