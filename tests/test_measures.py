"""Each measure against a value by hand, a slow loop, or a world small enough to enumerate."""
import itertools
import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import adapters
import data
import measures
import toy
from losses import sequence_logps
from model import GPT, GPTConfig
from support import tables

EOS = 3

@pytest.fixture(scope="module")
def worlds():
    """Two policies p and q, and a batch of every completion of at most three tokens, V = 4: (p, q, batch)."""
    torch.manual_seed(3)
    p, q = (GPT(GPTConfig(block_size=8, vocab_size=4, n_layer=1, n_head=1, n_embd=8)).eval() for _ in range(2))
    for m in (p, q):
        m.lm_head.weight.data *= 12
    ends = []
    for n in (1, 2, 3):
        for s in itertools.product(range(4), repeat=n):
            if EOS not in s[:-1] and (n == 3 or s[-1] == EOS):
                ends.append(s)
    return p, q, data.collate([{"prompt": [0, 1], "chosen": list(s)} for s in ends])

def exact(model, batch, temperature=1.0):
    """Log-probs (N,) of whole completions under the model at a temperature."""
    with torch.no_grad():
        if temperature == 1:
            return sequence_logps(model, batch["idx"], batch["completion_mask"])[0]
        log_p = (model(batch["idx"]).double() / temperature).log_softmax(-1)[:, :-1]
        return (log_p.gather(2, batch["idx"][:, 1:, None]).squeeze(2) * batch["completion_mask"][:, 1:]).sum(1)

# ---------------------------------------------------------------------------------------------------------------------
# KL and entropy

@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_the_kl_is_exact_on_a_model_small_enough_to_enumerate(worlds, temperature):
    """
    Over all completions, weighted by their probability, the per-token sums add up to KL(p || q): the estimator is
    unbiased. Swapped arguments, a mean over positions, a forgotten EOS, or p at 1 with samples at 0.5 give another
    number.
    """
    p, q, batch = worlds
    log_p, log_q = exact(p, batch, temperature), exact(q, batch)
    found = measures.token_measures(p, nullcontext(q), batch, torch.device("cpu"), temperature)
    weights = log_p.exp().double().numpy()
    assert weights.sum() == pytest.approx(1, abs=1e-4)
    kl = (log_p.exp() * (log_p - log_q)).sum().item()
    assert (weights * found["kl"].sum(1)).sum() == pytest.approx(kl, rel=1e-3) and kl > 0.1
    assert found["logratio"].sum(1) == pytest.approx((log_p - log_q).numpy(), abs=1e-3)
    entropy = -(log_p.exp() * log_p).sum().item()
    assert (weights * found["entropy"].sum(1)).sum() == pytest.approx(entropy, rel=1e-3)

def test_the_kl_on_samples_is_the_exact_one_within_its_error(worlds):
    """The same through the sampler. A sampler at another temperature, or one that loses EOS, fails here."""
    p, q, batch = worlds
    tokenizer = SimpleNamespace(eot_token=EOS, decode=str)
    held = measures.HeldOut(tokenizer, [[0, 1]] * 50, None, None, {}, 3)
    for temperature in (1.0, 0.5):
        log_p, log_q = exact(p, batch, temperature), exact(q, batch)
        kl = (log_p.exp() * (log_p - log_q)).sum().item()
        found = measures.measure(p, lambda: nullcontext(q), held, temperature, 40, 0, 64, nullcontext())
        values = found.values["kl"]
        assert values.min() >= 0 and abs(values.mean() - kl) < 4 * values.std() / 50 ** 0.5
        # the mean of log-ratios is noisier, as docs/metrics.md says
        assert found.values["logratio"].std() > values.std()

def test_at_temperature_0_there_is_no_entropy_and_the_kl_is_the_references_surprise(worlds):
    """All mass is on the likeliest token. Using 1e-6 instead of 0 must neither overflow nor give NaN."""
    p, q, _ = worlds
    held = measures.HeldOut(SimpleNamespace(eot_token=EOS, decode=str), [[0, 1], [1, 2]], None, None, {}, 3)
    found = measures.measure(p, lambda: nullcontext(q), held, 0.0, 1, 0, 8, nullcontext())
    assert found.values["entropy"] == pytest.approx([0, 0], abs=1e-5)
    batch = data.collate([{"prompt": prompt, "chosen": a[0]} for prompt, a in zip(held.prompts, found.answers)])
    assert found.values["kl"] == pytest.approx(-exact(q, batch).numpy(), rel=1e-4)

def test_a_model_is_at_no_distance_from_itself(worlds):
    """In the reference's own column the KL is exactly 0, with and without adapters that are off."""
    p, _, batch = worlds
    assert not measures.token_measures(p, nullcontext(p), batch, torch.device("cpu"))["kl"].any()
    torch.manual_seed(0)
    base = GPT(GPTConfig(block_size=8, vocab_size=4, n_layer=1, n_head=1, n_embd=8))
    model = adapters.add_adapters(base, "parallel", 2).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    with adapters.adapters_off(model):
        assert not measures.token_measures(model, adapters.adapters_off(model), batch, torch.device("cpu"))["kl"].any()
    assert measures.token_measures(model, adapters.adapters_off(model), batch, torch.device("cpu"))["kl"].any()

def test_entropy_and_kl_by_hand():
    """
    Over the whole vocabulary, in nats. KL(p || q) is not KL(q || p): here 0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75)
    = 0.1438.
    """
    p = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    q = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log()
    assert measures.entropy(p).tolist() == pytest.approx([math.log(2), 0.25 * math.log(4) + 0.75 * math.log(4 / 3)])
    assert measures.kl(p, q).tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0], abs=1e-7)
    assert measures.kl(q, p)[0].item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert measures.entropy(torch.full((3, 50), -math.log(50))).tolist() == pytest.approx([math.log(50)] * 3)

# ---------------------------------------------------------------------------------------------------------------------
# rewards

def test_best_of_n_against_all_choices():
    """The mean over every choice of n samples, by a slow loop. A maximum over the first n would be noisier."""
    rewards = np.random.default_rng(0).random((3, 8))
    found = measures.best_of(rewards)
    assert list(found) == [1, 2, 4, 8]
    for n, values in found.items():
        slow = [np.mean([max(row[list(pick)]) for pick in itertools.combinations(range(8), n)]) for row in rewards]
        assert values == pytest.approx(slow)
    assert list(measures.best_of(rewards[:, :6])) == [1, 2, 4]    # no best of 8 from 6

def test_wins_by_hand():
    """Ties count half. Each sample meets every sample of the other policy for the same prompt, and no others."""
    a, b = np.array([[1.0, 0.5], [0.0, 0.0]]), np.array([[0.5, 0.0], [1.0, 1.0]])
    assert measures.wins(a, b).tolist() == [(1 + 1 + 0.5 + 1) / 4, 0]
    assert measures.wins(a, a) == pytest.approx(0.5)
    assert measures.wins(a, b) + measures.wins(b, a) == pytest.approx(1)

# ---------------------------------------------------------------------------------------------------------------------
# diversity

def test_pooled_entropy_by_hand():
    """Tokens of all samples are pooled: 2 of one kind and 2 of another give log 2. EOS does not count as a word."""
    assert measures.pooled_entropy([[7, 7], [8, 8]]) == pytest.approx(math.log(2))
    assert measures.pooled_entropy([[7], [7]]) == 0 and measures.pooled_entropy([[], []]) == 0
    assert measures.pooled_entropy([[1, 2, 3, 4]]) == pytest.approx(math.log(4))

def test_distinct_by_hand():
    """All policies get the same budget of words. Longer texts repeat more, so short answers would look diverse."""
    assert measures.distinct([[1, 2, 1], [2, 2, 9, 9]], 1, budget=5).tolist() == [2 / 5]
    # (1 2) (2 1) | (2 1): no pair across the border of two completions
    assert measures.distinct([[1, 2, 1], [2, 1, 9]], 2, budget=5).tolist() == [2 / 3]
    # when a piece ends inside a completion, the rest of that completion is dropped
    assert measures.distinct([[1, 2]] * 10, 1, budget=5).tolist() == [2 / 5] * 3
    assert len(measures.distinct([[1, 2]], 1, budget=5)) == 0    # too little text gives no number, not an unfair one

@pytest.mark.parametrize("prompt, completion, share", [
    ("i saw this film at home . the plot", " was dull . overall , a gem .", 1),
    ("i saw this film at home . the plot", " plot plot . overall , a gem .", 0.5),    # without the prompt's opening
    ("i saw this film at home .", " overall , a gem . the plot", 0.5),                # the last sentence is unfinished
    ("i saw this film", " at home .", 1),
    ("i saw this film at home .", "", 0)])
def test_whole_share_by_hand(prompt, completion, share):
    """If the prompt's own sentences counted, a policy that writes nonsense would have every second sentence right."""
    assert measures.whole_share(prompt, completion) == share

def test_whole_is_the_mean_over_a_prompts_samples_and_of_the_toy_world_alone():
    """One number per prompt, so that the interval is over prompts. Other texts have no grammar and no such measure."""
    tokenizer = toy.encoding()
    prompt = tokenizer.encode_ordinary("i saw this film at home . the plot")
    good, bad = (tokenizer.encode_ordinary(text) + [tokenizer.eot_token] for text in (" was dull .", " plot plot ."))
    held = measures.HeldOut(tokenizer, [prompt, prompt], None, None, {}, 9, toy=True)
    assert measures.text_measures([[good, bad], [good, good]], {}, held)["whole"].tolist() == [0.5, 1]
    held.toy = False
    assert "whole" not in measures.text_measures([[good, bad], [good, good]], {}, held)

def test_text_measures_by_hand():
    """EOS counts in the length, as in the log-probs, and nowhere else. Rewards are grouped by the prompt's label."""
    held = measures.HeldOut(SimpleNamespace(eot_token=EOS), [[0], [0], [0]], [True, False, True], None, {}, 4)
    answers = [[[5, 5, EOS], [5, 6]], [[EOS], [7, EOS]], [[8, EOS], [8, EOS]]]
    found = measures.text_measures(answers, {"reward": np.array([[1.0, 0.0], [0.2, 0.4], [1.0, 1.0]])}, held)
    assert found["length"].tolist() == [2.5, 1.5, 2] and found["eos"].tolist() == [0.5, 1, 1]
    assert found["reward"] == pytest.approx([0.5, 0.3, 1]) and found["reward_negative"] == pytest.approx([0.3])
    assert found["reward_positive"] == pytest.approx([0.5, 1]) and "pooled_4" not in found and "distinct_1" not in found
    held.labels = None
    assert "reward_positive" not in measures.text_measures(answers, {"reward": np.ones((3, 2))}, held)
    assert "reward" not in measures.text_measures(answers, {}, held)
    many = measures.text_measures([[[5, EOS]] * 25] * 30, {}, held)    # one word each: no pairs of words
    assert set(many) == {"length", "eos", "pooled_4", "pooled_25", "distinct_1"}
    assert not many["pooled_4"].any() and not many["pooled_25"].any() and many["distinct_1"].tolist() == [1 / 500]

def test_diversity_is_that_of_the_words_without_the_end_token():
    """
    Every completion has the end token. If it counted, all policies would look alike. In this test the completions'
    words differ.
    """
    held = measures.HeldOut(SimpleNamespace(eot_token=EOS), [[0]] * 250, [True] * 250, None, {}, 4)
    answers = [[[5, 6, EOS], [5, 7, EOS], [5, 6], [5, 7, EOS]]] * 250
    found = measures.text_measures(answers, {"reward": np.ones((250, 4))}, held)
    assert found["pooled_4"] == pytest.approx(1.5 * math.log(2)) and "pooled_25" not in found    # shares 1/2, 1/4, 1/4
    # the first samples of all prompts come first: the first piece is 250 times "5 6", and each piece is of one column
    assert found["distinct_1"].tolist() == [2 / 500] * 4 and found["distinct_2"].tolist() == [1 / 250] * 4
    assert found["reward_positive"].tolist() == [1] * 250
    assert "reward_negative" not in found    # no prompt has that label

def test_without_a_reference_only_the_entropy_is_measured(worlds):
    """An SFT run has no reference. A KL of it would be to some other model."""
    p, q, batch = worlds
    alone = measures.token_measures(p, nullcontext(None), batch, torch.device("cpu"))
    both = measures.token_measures(p, nullcontext(q), batch, torch.device("cpu"))
    assert set(alone) == {"entropy"} and set(both) == {"entropy", "kl", "logratio"}
    assert alone["entropy"].tolist() == both["entropy"].tolist()

def test_a_curve_is_the_mean_over_completions_that_have_a_token_there(worlds):
    """
    Divided by all completions, every curve falls to 0. A position that fewer than one in twenty reach would be
    noise.
    """
    p, q, _ = worlds
    held = measures.HeldOut(SimpleNamespace(eot_token=EOS), [[0, 1]] * 20, None, None, {}, 4)
    def curves(answers):
        values, found = measures.model_measures(p, lambda: nullcontext(q), answers, held, 1.0, 7, nullcontext())
        assert all(len(v) == len(answers) for v in values.values())
        return values, found
    two, three = [0, EOS], [0, 1, EOS]
    values, found = curves([[[EOS], [EOS]]] * 19 + [[two, three]])    # of 40: 2 have a second token, 1 has a third
    assert {len(c) for c in found.values()} == {2} and found["kl"].shape == (2,)
    # after the prompt there is one state: its entropy is that of every completion's first token
    assert found["entropy"][0] == pytest.approx(values["entropy"][0], rel=1e-5)
    alone = curves([[two]])[1]
    assert {len(c) for c in alone.values()} == {2}    # no mean over no completion
    for key in ("entropy", "kl", "logratio"):
        assert found[key][1] == pytest.approx((alone[key][1] + curves([[three]])[1][key][1]) / 2, rel=1e-4, abs=1e-6)
    # sums over completions, then means over a prompt's samples
    single = [curves([[a]])[0] for a in (two, three)]
    assert values["kl"][-1] == pytest.approx(np.mean([s["kl"][0] for s in single]), rel=1e-4)
    sums = [s["entropy"][0] * n for s, n in zip(single, (2, 3))]
    assert values["completion_entropy"][-1] == pytest.approx(np.mean(sums), rel=1e-4)

def test_the_samples_of_a_prompt_differ_and_stay_with_their_prompt(worlds):
    """k samples are k draws. Sampling sorts by length, and undoing that wrongly would mix up the prompts."""
    p = worlds[0]
    tokenizer = SimpleNamespace(eot_token=EOS, decode=lambda tokens: " ".join(map(str, tokens)))
    first_digit = lambda texts: np.array([float(t[0]) for t in texts])
    held = measures.HeldOut(tokenizer, [[0], [1, 1, 1], [2, 2]], None, None, {"reward": first_digit}, 4)
    answers, rewards = measures.sample(p, held, 20, 1.0, 0, 7, nullcontext())
    assert [len(a) for a in answers] == [20] * 3 and all(len({tuple(x) for x in a}) > 3 for a in answers)
    assert rewards["reward"].tolist() == [[0.0] * 20, [1.0] * 20, [2.0] * 20]

def test_the_bootstrap_interval_covers_the_mean_of_a_known_distribution():
    """Quantiles of the values instead of the resampled means would make the interval sqrt(n) times too wide."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).numpy()
    mean, low, high = measures.bootstrap(values)
    assert low < mean < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)

# ---------------------------------------------------------------------------------------------------------------------
# tables and pictures

def test_columns_of_several_runs_are_named_after_runs_and_references():
    """Two runs with one reference share its column. A single run keeps the names before and after."""
    one, two = {"before": 1, "after": 2}, {"before": 1, "after": 3}
    assert tables.name_columns({"a": one}, {"a": "sft"}) == one
    both = tables.name_columns({"a": one, "b": two}, {"a": "sft", "b": "sft"})
    assert list(both.items()) == [("sft", 1), ("a", 2), ("b", 3)]
    assert tables.name_columns({"a": {"after": 2}, "b": two}, {"a": None, "b": "sft"}) == {"a": 2, "sft": 1, "b": 3}

@pytest.mark.usefixtures("painted")
@pytest.mark.parametrize("rewards", [True, False])
def test_several_runs_are_drawn_in_one_picture_that_each_run_gets(rewards, tmp_path):
    """With a picture for each run, on its own axes, two runs cannot be compared."""
    rng = np.random.default_rng(0)
    def one():
        curves = {"kl": rng.random(5), "entropy": rng.random(4)}
        margin = rng.standard_normal(9)
        drawn = {"reward": rng.random((9, 2))} if rewards else {}
        return measures.Measured({"margin": margin}, curves, [], drawn)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    tables.draw(paths, {"sft": one(), "a": one(), "b": one()}, {"sft"})
    assert paths[0].read_bytes() == paths[1].read_bytes() and paths[0].stat().st_size > 10_000
