"""
Tests of adapters.py: formulas by hand, step 0 equals the base, only the adapter is trained, adapters off, saved files.
"""
import copy
import json
import math
import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from adapters import (
    MODES,
    adapter_modules,
    adapter_state_dict,
    adapters_off,
    add_adapters,
    init_adapter,
    load_adapter,
    read_about,
    save_adapter,
)
from model import GPT, GPTConfig, fingerprint

# ---------------------------------------------------------------------------------------------------------------------
# helpers

C, RANK, N_LAYER, N_INNER = 16, 3, 2, 64

def near(got, want):
    """Equal up to the last bits, which may depend on where in memory the weights are."""
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)

def tiny(seed=0, dropout=0.0):
    """A model whose weights, biases and norms are all random and large enough to be seen in the logits."""
    m = GPT(GPTConfig(block_size=16, vocab_size=50, n_layer=N_LAYER, n_head=2, n_embd=C, dropout=dropout))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in m.named_parameters():
            is_scale = ".ln_" in name and name.endswith("weight")
            p.copy_(torch.randn(p.shape, generator=g) * 0.3 + (1 if is_scale else 0))
    return m.eval()

def moved(m, seed=7):
    """The adapters of m as if they had been trained: all their weights at random."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter_state_dict(m).values():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return m

def tokens(*shape, seed=1):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))

def gelu(z):
    """GPT-2's, written out."""
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z ** 3)))

def slow_greedy(m, prompt, n):
    """Greedy decoding by a whole forward pass for every token."""
    row = list(prompt)
    for _ in range(n):
        row.append(m(torch.tensor([row]))[0, -1].argmax().item())
    return row

def loss_of(m, idx):
    return F.cross_entropy(m(idx)[:, :-1].flatten(0, 1), idx[:, 1:].flatten())

def one_line(e, *words):
    """The ValueError has no line break and every one of the words."""
    assert "\n" not in str(e.value)
    for word in words:
        assert str(word) in str(e.value)

# ---------------------------------------------------------------------------------------------------------------------
# what an adapter computes

@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_at_step_0_the_policy_is_the_base_bit_for_bit(mode):
    """Only then is the first DPO loss log 2 and the first KL exactly 0. An `up` that starts near zero comes close."""
    base, idx = tiny(), tokens(2, 9)
    assert torch.equal(add_adapters(copy.deepcopy(base), mode, RANK)(idx), base(idx))

@pytest.mark.parametrize("init", ["random", "neurons"])
def test_with_replace_policy_and_base_differ_from_the_start(init):
    """If the base's MLP still ran, alone or beside the replacement, it would look like a very good start."""
    base, idx = tiny(), tokens(2, 9)
    m = add_adapters(copy.deepcopy(base), "replace", RANK, init)
    assert (m(idx) - base(idx)).abs().max() > 0.1

@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_its_formula_by_hand(mode):
    """Sequential reads the MLP's output, parallel reads its input. While `up` is zero, the two give the same logits."""
    m = moved(add_adapters(tiny(), mode, RANK))
    part, x = m.transformer.h[1].mlp, torch.randn(2, 5, C, generator=torch.Generator().manual_seed(2))
    apply = lambda layer, z: z @ layer.weight.T + layer.bias
    mlp = lambda z: apply(part.base.c_proj, gelu(apply(part.base.c_fc, z)))
    bottleneck = lambda z: apply(part.up, gelu(apply(part.down, z)))
    want = {"sequential": mlp(x) + bottleneck(mlp(x)), "parallel": mlp(x) + bottleneck(x), "replace": bottleneck(x)}
    torch.testing.assert_close(part(x), want[mode], atol=1e-5, rtol=0)
    assert all((want[mode] - other).abs().max() > 0.1 for name, other in want.items() if name != mode)

@pytest.mark.parametrize("mode", MODES)
def test_an_adapter_starts_with_normal_weights_and_up_at_zero_unless_it_replaces(mode):
    """If both were zero, there would be no gradient. If both were random, a mode that adds would change step 0."""
    torch.manual_seed(0)
    down, up = torch.nn.Linear(C, 200), torch.nn.Linear(200, C)
    init_adapter(down, up, tiny().transformer.h[0].mlp, mode, "random")
    assert down.weight.std().item() == pytest.approx(0.02, rel=0.1) and abs(down.weight.mean().item()) < 0.002
    assert not down.bias.any() and not up.bias.any()
    assert up.weight.std().item() == pytest.approx(0.02 if mode == "replace" else 0, rel=0.1)

def test_replace_with_every_neuron_of_the_base_is_the_base():
    """Rows of c_proj instead of its columns, or a lost bias, give a start that is only somewhat worse."""
    base, idx = tiny(), tokens(2, 9)
    m = add_adapters(copy.deepcopy(base), "replace", N_INNER, "neurons")
    torch.testing.assert_close(m(idx), base(idx), atol=2e-5, rtol=0)

def test_neurons_are_those_with_the_largest_product_of_norms():
    """Unit 0 has the largest input weights, unit 1 the largest output weights, units 5 and 2 the largest product."""
    m = tiny()
    reads, writes = torch.ones(N_INNER) * 0.1, torch.ones(N_INNER) * 0.1
    reads[0], writes[0] = 9.0, 0.01       # product 0.09
    reads[1], writes[1] = 0.01, 9.0       # 0.09
    reads[2], writes[2] = 1.0, 2.0        # 2
    reads[5], writes[5] = 3.0, 1.0        # 3
    mlp = m.transformer.h[0].mlp
    with torch.no_grad():
        mlp.c_fc.weight.copy_(F.normalize(mlp.c_fc.weight, dim=1) * reads[:, None])
        mlp.c_proj.weight.copy_(F.normalize(mlp.c_proj.weight, dim=0) * writes)
    part = add_adapters(m, "replace", 2, "neurons").transformer.h[0].mlp
    order = [5, 2] if torch.equal(part.down.weight[0], mlp.c_fc.weight[5]) else [2, 5]
    assert torch.equal(part.down.weight, mlp.c_fc.weight[order]) and torch.equal(part.down.bias, mlp.c_fc.bias[order])
    assert torch.equal(part.up.weight, mlp.c_proj.weight[:, order]) and torch.equal(part.up.bias, mlp.c_proj.bias)

def test_the_copied_neurons_are_copies():
    """If they were views of the base's weights, training the policy would change the reference."""
    m, idx = add_adapters(tiny(), "replace", N_INNER, "neurons"), tokens(2, 9)
    want = tiny()(idx)
    moved(m)
    with adapters_off(m):
        assert torch.equal(m(idx), want)

# ---------------------------------------------------------------------------------------------------------------------
# what is trained

@pytest.mark.parametrize("mode", MODES)
def test_the_trainable_parameters_are_as_many_as_the_formula_says(mode):
    """Two matrices and two biases a block, and nothing else: not the norms, not the tied head."""
    m = add_adapters(tiny(), mode, RANK)
    trained = {name: p.numel() for name, p in m.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == N_LAYER * (2 * C * RANK + RANK + C)
    assert trained.keys() == adapter_state_dict(m).keys()

@pytest.mark.parametrize("mode", MODES)
def test_after_optimizer_steps_every_adapter_weight_has_moved_and_no_other(mode):
    """AdamW decays even a weight with a gradient of zero. Only one without a gradient stays the same."""
    m, idx = add_adapters(tiny(), mode, RANK).train(), tokens(4, 9)
    before = {name: p.clone() for name, p in m.named_parameters()}
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(2):    # in the first step up is zero, and so is the gradient of down
        loss_of(m, idx).backward()
        optimizer.step()
    for name, p in m.named_parameters():
        if ".down." in name or ".up." in name:
            assert p.grad.abs().max() > 0 and not torch.equal(p, before[name]), name
        else:
            assert p.grad is None and torch.equal(p, before[name]), name

@pytest.mark.parametrize("mode", MODES)
def test_training_the_adapter_lowers_the_loss_and_leaves_the_base_as_it_was(mode):
    """Policy and reference are one object. If the reference changed too, the KL would stay small and mean nothing."""
    base, idx = tiny(), tokens(4, 9)
    m = add_adapters(copy.deepcopy(base), mode, RANK)
    optimizer = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=0.01)
    first = loss_of(m, idx).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(m, idx).backward()
        optimizer.step()
    assert loss_of(m, idx).item() < first - 0.05
    with adapters_off(m):
        assert torch.equal(m(idx), base(idx))

@pytest.mark.parametrize("training", [True, False])
def test_the_mode_and_the_precision_of_the_model_are_kept(training):
    """New modules start in train mode and in fp32. Dropout would be on in evaluation, or the first call would fail."""
    m = add_adapters(tiny(dropout=0.5).bfloat16().train(training), "parallel", RANK)
    assert all(part.training is training for part in m.modules())
    assert all(p.dtype == torch.bfloat16 for p in m.parameters())

def test_add_adapters_gives_the_model_itself_back():
    """If it were a copy, the caller's optimizer would train weights that nobody uses."""
    m = tiny()
    assert add_adapters(m, "parallel", RANK) is m and len(adapter_modules(m)) == N_LAYER

# ---------------------------------------------------------------------------------------------------------------------
# off and on

@pytest.mark.parametrize("mode", MODES)
def test_with_adapters_off_the_model_is_the_base_bit_for_bit_and_then_itself_again(mode):
    """A reference that is nearly the base gives log-ratios that are nearly right, and no error."""
    base, idx = tiny(), tokens(2, 9)
    m = moved(add_adapters(copy.deepcopy(base), mode, RANK))
    policy = m(idx)
    assert (policy - base(idx)).abs().max() > 0.1
    with adapters_off(m) as reference:
        assert torch.equal(reference(idx), base(idx)) and torch.equal(m(idx), base(idx))
        assert torch.equal(m.generate(idx, 5, temperature=0), base.generate(idx, 5, temperature=0))
    assert torch.equal(m(idx), policy)

def test_adapters_come_back_on_after_an_exception():
    """A batch that does not fit into memory may be caught and skipped. Then the policy would become the reference."""
    m, idx = moved(add_adapters(tiny(), "sequential", RANK)), tokens(2, 9)
    policy = m(idx)
    with pytest.raises(RuntimeError, match="out of memory"), adapters_off(m):
        raise RuntimeError("out of memory")
    assert torch.equal(m(idx), policy)

def test_inside_nested_adapters_off_they_stay_off_until_the_outermost_ends():
    """The inner block ends first. If it turned them on, the outer block would go on with the policy as reference."""
    base, idx = tiny(), tokens(2, 9)
    m = moved(add_adapters(copy.deepcopy(base), "sequential", RANK))
    policy = m(idx)
    with adapters_off(m):
        with adapters_off(m):
            assert torch.equal(m(idx), base(idx))
        assert torch.equal(m(idx), base(idx))
    assert torch.equal(m(idx), policy)

def test_adapters_off_of_a_plain_model_is_refused():
    """Without adapters the reference would be the policy, with a loss that stays at log 2."""
    with pytest.raises(AssertionError, match="no adapters"), adapters_off(tiny()):
        pass

def test_no_gradient_goes_through_the_reference():
    """With the adapters off every parameter is frozen, so the logits must have no graph."""
    m = add_adapters(tiny(), "parallel", RANK)
    assert m(tokens(1, 4)).requires_grad
    with adapters_off(m):
        assert not m(tokens(1, 4)).requires_grad

# ---------------------------------------------------------------------------------------------------------------------
# generation

@pytest.mark.parametrize("mode", MODES)
def test_generation_with_adapters_equals_the_slow_way_also_in_a_ragged_batch(mode):
    """The cached path sees one token at a time. An adapter that mixed positions would be wrong only there."""
    m, idx, lens = moved(add_adapters(tiny(), mode, RANK)), tokens(3, 6), [6, 2, 4]
    out = m.generate(idx, 8, temperature=0, lens=lens)[:, 6:].tolist()
    assert out == [slow_greedy(m, row[:n].tolist(), 8)[n:] for row, n in zip(idx, lens, strict=True)]

# ---------------------------------------------------------------------------------------------------------------------
# arguments that are wrong

@pytest.mark.parametrize("mode, rank, init, word", [
    ("serial", RANK, "random", "sequential, parallel, replace"),
    ("replace", RANK, "svd", "random, neurons"),
    ("sequential", RANK, "neurons", "replace"),
    ("parallel", RANK, "neurons", "replace"),
    ("sequential", 0, "random", "rank"),
    ("parallel", -1, "random", "rank"),
    ("replace", 0, "neurons", "rank"),
    ("replace", N_INNER + 1, "neurons", "64"),
    ("replace", N_INNER + 1, "random", "64"),
])
def test_a_mode_an_init_or_a_rank_that_does_not_fit_is_refused_and_the_model_left_alone(mode, rank, init, word):
    """nn.Linear accepts rank 0. An ignored init is a flag without effect. A half-adapted model fails much later."""
    m = tiny()
    with pytest.raises(ValueError) as e:
        add_adapters(m, mode, rank, init)
    one_line(e, word)
    assert not adapter_modules(m) and all(p.requires_grad for p in m.parameters())

def test_a_rank_above_the_mlps_width_is_allowed_where_it_only_adds():
    """Only with replace is the rank limited, since a larger one would be more than the MLP that it replaces."""
    assert adapter_modules(add_adapters(tiny(), "parallel", N_INNER + 1))[0].down.weight.shape == (N_INNER + 1, C)
    assert adapter_modules(add_adapters(tiny(), "replace", N_INNER))[0].down.weight.shape == (N_INNER, C)

# ---------------------------------------------------------------------------------------------------------------------
# in and out

def saved(folder, mode="sequential", init="random"):
    """A trained adapter in folder, and its model."""
    m = tiny()
    base = fingerprint(m)
    moved(add_adapters(m, mode, RANK, init))
    save_adapter(m, folder, "out/toy/sft", base)
    return m

def test_adapter_state_dict_holds_down_and_up_of_every_block_and_nothing_else():
    """The frozen base's c_fc belongs to the same `mlp`. With it the file would be as large as the model."""
    want = set()
    for i in range(N_LAYER):
        for part in ("down.weight", "down.bias", "up.weight", "up.bias"):
            want.add(f"transformer.h.{i}.mlp.{part}")
    assert adapter_state_dict(add_adapters(tiny(), "replace", RANK)).keys() == want
    assert adapter_state_dict(tiny()) == {}

@pytest.mark.parametrize("mode, init", [
    ("sequential", "random"),
    ("parallel", "random"),
    ("replace", "random"),
    ("replace", "neurons"),
])
def test_a_saved_adapter_on_another_instance_of_its_base_gives_the_same_logits(mode, init, tmp_path):
    """An adapter with another mode, or one left at its initial weights, would load without an error too."""
    m, idx, other = saved(tmp_path, mode, init), tokens(2, 9), tiny()
    again = load_adapter(other, tmp_path, fingerprint(other))
    assert again is other and torch.equal(again(idx), m(idx))
    with adapters_off(again):
        assert torch.equal(again(idx), tiny()(idx))

def test_an_adapter_goes_with_a_base_that_was_saved_and_loaded(tmp_path):
    """The usual case: another process opens the run and loads the base from its folder."""
    tiny().save_pretrained(tmp_path / "base")
    m, idx, base = saved(tmp_path), tokens(2, 9), GPT.from_pretrained(tmp_path / "base").eval()
    near(load_adapter(base, tmp_path, fingerprint(base))(idx), m(idx))

def test_the_files_hold_the_adapter_alone_and_what_it_stands_on(tmp_path):
    """An adapter must take a few percent of the model's size. A leftover .tmp would be uploaded with the run."""
    m = saved(tmp_path, "parallel")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter.json", "adapter.safetensors"]
    state = load_file(tmp_path / "adapter.safetensors")
    assert state.keys() == adapter_state_dict(m).keys()
    assert sum(v.numel() for v in state.values()) == N_LAYER * (2 * C * RANK + RANK + C)
    about = dict(mode="parallel", rank=RANK, base="out/toy/sft", base_fingerprint=fingerprint(tiny()))
    assert json.loads((tmp_path / "adapter.json").read_text()) == about == read_about(tmp_path)

def test_a_folder_without_an_adapter_has_none(tmp_path):
    """eval.py asks this for every run, to know how to open it."""
    assert read_about(tmp_path) is None

def test_an_adapter_on_another_base_is_refused_with_both_fingerprints_and_the_model_left_alone(tmp_path):
    """Every shape fits a base that was trained further, and the completions are only somewhat worse."""
    saved(tmp_path)
    other = tiny(seed=1)
    with pytest.raises(ValueError) as e:
        load_adapter(other, tmp_path, fingerprint(other))
    one_line(e, tmp_path, fingerprint(tiny()), fingerprint(other), "out/toy/sft")
    assert not adapter_modules(other)

def not_loaded(folder, *words):
    """load_adapter onto the right base raises a ValueError of one line with every one of the words."""
    m = tiny()
    with pytest.raises(ValueError) as e:
        load_adapter(m, folder, fingerprint(m))
    one_line(e, *words)

@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_adapter_weights_that_were_cut_short_are_refused(part, tmp_path):
    """The part that could be loaded must not be used as the adapter."""
    saved(tmp_path)
    path = tmp_path / "adapter.safetensors"
    os.truncate(path, int(part * path.stat().st_size))
    not_loaded(tmp_path, path)

def test_adapter_weights_that_are_missing_are_refused(tmp_path):
    """The run still has a mode and a rank. It would load as an untrained adapter, which is the base itself."""
    saved(tmp_path)
    (tmp_path / "adapter.safetensors").unlink()
    not_loaded(tmp_path, tmp_path / "adapter.safetensors")

KEY = "transformer.h.0.mlp.up.weight"

@pytest.mark.parametrize("change", [
    pytest.param(lambda state: state.pop(KEY), id="missing"),
    pytest.param(lambda state: state.update({"transformer.h.2.mlp.up.bias": torch.ones(C)}), id="extra"),
    pytest.param(lambda state: state.update({KEY: torch.ones(C, RANK + 1)}), id="shape"),
    pytest.param(lambda state: state.update({"transformer.ln_f.bias": torch.ones(C)}), id="of the base"),
    pytest.param(lambda state: state.clear(), id="empty"),
])
def test_weights_that_are_not_this_adapters_are_refused(change, tmp_path):
    """A missing block would silently keep its initial weights. A weight of the base would change the reference."""
    saved(tmp_path)
    path = tmp_path / "adapter.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    not_loaded(tmp_path, path)

@pytest.mark.parametrize("text", [
    '{"mode": "parallel",',
    "",
    "[1]",
    "null",
    "{}",
    '{"mode": "parallel", "rank": 3, "base": "x"}',
])
def test_an_adapter_json_that_is_damaged_is_refused(text, tmp_path):
    """It may have been cut short by a copy, or edited by hand."""
    saved(tmp_path)
    (tmp_path / "adapter.json").write_text(text)
    not_loaded(tmp_path, tmp_path / "adapter.json")
    with pytest.raises(ValueError) as e:
        read_about(tmp_path)
    one_line(e, tmp_path / "adapter.json")

def test_an_adapter_json_that_is_not_text_is_refused(tmp_path):
    """Bytes that are not UTF-8 raise an error of their own when they are read, before any parsing."""
    saved(tmp_path)
    (tmp_path / "adapter.json").write_bytes(b"\xff\xfe\x80")
    not_loaded(tmp_path, tmp_path / "adapter.json")

def test_an_adapter_json_that_is_missing_is_refused(tmp_path):
    """Somebody copied the weights alone. They do not tell the mode: sequential and parallel have the same shapes."""
    saved(tmp_path)
    (tmp_path / "adapter.json").unlink()
    not_loaded(tmp_path, tmp_path, "adapter.json")

@pytest.mark.parametrize("key, value", [
    ("mode", "lora"),
    ("mode", None),
    ("rank", "3"),
    ("rank", None),
    ("rank", 3.5),
    ("rank", 0),
    ("rank", RANK + 1),
    ("rank", 10 ** 30),
])
def test_an_adapter_json_with_a_wrong_entry_is_refused_with_its_folder(key, value, tmp_path):
    """These are valid JSON. They would fail later, in a comparison or inside nn.Linear, without the file's name."""
    saved(tmp_path)
    path = tmp_path / "adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    not_loaded(tmp_path, tmp_path)
