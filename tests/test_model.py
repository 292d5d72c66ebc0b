"""
model.py against stored transformers values, transformers itself, slow loops and values by hand: the forward pass,
generation, sampling, saving and loading, and every way in which a model folder can be wrong.
"""
import json
import math
import os
import shutil
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import model as model_py
from adapters import add_adapters
from model import (GPT, GPTConfig, ScalarGPT, causal_attention, fast_attention, fingerprint, from_hf, plain_generate,
                   sample, to_hf, truncate)

ORACLE = Path(__file__).parent / "oracle"
TINY, TINY_HUB = ORACLE / "gpt2_tiny", ORACLE / "gpt2_tiny_hub"
EXPECTED = json.loads((TINY / "expected.json").read_text())

# ---------------------------------------------------------------------------------------------------------------------
# helpers

def near(got, want):
    """Equal up to the last bits, which may depend on the memory addresses of the weights."""
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)

def tiny(cls=GPT, seed=0, **sizes):
    """
    A model with large weights, so that no term of the forward pass is lost in rounding. Biases and norms are random
    too.
    """
    m = cls(GPTConfig(**(dict(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=16) | sizes)))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in m.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3 + (1 if ".ln_" in name and name.endswith("weight") else 0))
    return m.eval()

def tokens(*shape, seed=1, vocab_size=50):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))

def slow_greedy(m, prompt, n):
    """The argmax of a whole forward pass for every token: a list, and its n next tokens."""
    row = list(prompt)
    for _ in range(n):
        row.append(m(torch.tensor([row]))[0, -1].argmax().item())
    return row[len(prompt):]

def changed(folder, drop=(), **config):
    """Our tiny model in `folder`, with other entries in its config.json."""
    tiny().save_pretrained(folder)
    c = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in c.items() if k not in drop}))
    return folder

def rewritten(folder, change):
    """Our tiny model in `folder`, after change(state) on the tensors of its model.safetensors."""
    tiny().save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder

def refused(name_or_dir, *words, cls=GPT):
    """from_pretrained raises a ValueError of one line that contains every one of the words."""
    with pytest.raises(ValueError) as e:
        cls.from_pretrained(name_or_dir)
    assert "\n" not in str(e.value)
    for word in words:
        assert str(word) in str(e.value)

# ---------------------------------------------------------------------------------------------------------------------
# the forward pass

@pytest.mark.parametrize("layout", ["model.safetensors", "pytorch_model.bin", "hub"])
def test_logits_equal_those_of_transformers_for_every_layout(layout, tmp_path):
    """
    Exact GELU, an untransposed Conv1D or another epsilon all give plausible logits. The hub's names lack
    `transformer.`.
    """
    folder = TINY_HUB
    if layout != "hub":
        folder = tmp_path
        for name in ("config.json", layout):
            shutil.copy(TINY / name, folder / name)
    m = GPT.from_pretrained(folder).eval()
    want = torch.tensor(EXPECTED["logits"])
    assert want.std() > 0.05
    torch.testing.assert_close(m(torch.tensor(EXPECTED["idx"])), want, atol=2e-6, rtol=0)

def test_greedy_generation_equals_that_of_transformers():
    """A cache that is off by one position still writes fluent text."""
    m, prompt = GPT.from_pretrained(TINY), torch.tensor([EXPECTED["greedy_prompt"]])
    out = m.generate(prompt, len(EXPECTED["greedy"]) - prompt.shape[1], temperature=0)
    assert out[0].tolist() == EXPECTED["greedy"]

def test_gelu_is_the_tanh_form():
    """nn.GELU() is the exact form by default. On small weights the two differ by less than a loose tolerance."""
    mlp, x = tiny().transformer.h[0].mlp, torch.randn(3, 16)
    z = x @ mlp.c_fc.weight.T + mlp.c_fc.bias
    gelu = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z ** 3)))
    by_hand = gelu @ mlp.c_proj.weight.T + mlp.c_proj.bias
    torch.testing.assert_close(mlp(x), by_hand, atol=1e-5, rtol=0)

def test_attention_equals_a_double_loop():
    """
    Heads split in the wrong order, a missing 1/sqrt(hs) and a leaking mask all still give softmax weights that sum
    to 1.
    """
    m = tiny(n_head=4)
    attn, x = m.transformer.h[0].attn, torch.randn(1, 5, 16)
    q, k, v = attn.c_attn(x)[0].split(16, dim=1)    # (T, C)
    y = torch.zeros(5, 16)
    for t in range(5):
        for head in range(4):
            part = slice(4 * head, 4 * head + 4)
            weights = torch.stack([q[t, part] @ k[s, part] / math.sqrt(4) for s in range(t + 1)]).softmax(0)
            y[t, part] = sum(weights[s] * v[s, part] for s in range(t + 1))
    torch.testing.assert_close(attn(x, 0)[0], attn.c_proj(y), atol=1e-5, rtol=0)

MASKS = {"causal": None, "one query": None, "a mask for each row": (3, 1, 5, 5), "one query, ragged": (3, 1, 1, 5)}

@pytest.mark.parametrize("low", [None, torch.bfloat16], ids=["", "autocast"])
@pytest.mark.parametrize("dtype, tol", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("case", MASKS)
def test_fast_attention_equals_the_definition_in_value_and_gradient(case, dtype, tol, low):
    """The kernel's is_causal starts at the first key, so one query after a cache would see the first token only."""
    g, T = torch.Generator().manual_seed(0), 1 if "one query" in case else 5
    q, k, v, grad = (torch.randn(3, 2, n, 4, generator=g, dtype=dtype) for n in (T, 5, 5, T))
    mask = MASKS[case] and torch.rand(MASKS[case], generator=g) < 0.5
    if mask is not None:
        mask[..., 0] = True    # every query sees something
    results = []
    for fn in (fast_attention, causal_attention):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        with torch.autocast("cpu", low or torch.bfloat16, enabled=low is not None):
            y = fn(*leaves, mask)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))])
    if low:
        tol = 0.05
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast.to(dtype), slow.to(dtype), atol=tol, rtol=tol)

def test_attention_by_hand():
    """On paper: hs = 4, so scores are halved. The second query has scores 0 and log 4, and weights 1/5 and 4/5."""
    q, k = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    q[0, 0, 1, 0], k[0, 0, 1, 0] = 2.0, math.log(4)
    v = torch.tensor([[[[1.0, 0, 0, 0], [0, 10.0, 0, 0]]]])
    for fn in (causal_attention, fast_attention):
        assert fn(q, k, v)[0, 0, 0].tolist() == [1, 0, 0, 0]    # the first query sees the first key only
        assert fn(q, k, v)[0, 0, 1].tolist() == pytest.approx([1 / 5, 8, 0, 0])

@pytest.mark.parametrize("fn", [causal_attention, fast_attention])
def test_attention_drops_weights_and_keeps_their_mean(fn):
    """Dropout of the scores instead of the weights, or without the factor 1 / (1 - p), changes the mean."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 5, 4).expand(20000, 1, 5, 4) for _ in range(3))
    dropped, want = fn(q, k, v, None, 0.3), fn(q[:1], k[:1], v[:1])
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), want[0], atol=0.03, rtol=0)

def test_the_definition_of_attention_can_be_chosen_in_its_place(monkeypatch):
    """A reader may set the one line that chooses to the definition. Training and the cache must work with it."""
    m, idx = tiny(), tokens(3, 6)
    want, out = m(idx), m.generate(idx, 6, temperature=0, lens=[6, 2, 4])
    monkeypatch.setattr(model_py, "attention", causal_attention)
    near(m(idx), want)
    assert torch.equal(m.generate(idx, 6, temperature=0, lens=[6, 2, 4]), out)

def test_a_token_sees_itself_and_its_past_and_nothing_else():
    """
    A forgotten causal mask lowers the training loss. Only the gradient shows it: d logits[t] / d embedding[s > t]
    must be 0.
    """
    m, T, leaf = tiny(), 6, []
    def make_leaf(module, args, output):
        leaf.append(output.detach().requires_grad_())
        return leaf[-1]
    m.transformer.drop.register_forward_hook(make_leaf)
    logits = m(tokens(1, T))
    for t in range(T):
        g, = torch.autograd.grad(logits[0, t].square().sum(), leaf[-1], retain_graph=True)
        assert g[0, t + 1:].abs().sum() == 0
        assert (g[0, :t + 1].abs().sum(-1) > 0).all()

def test_rows_of_a_batch_do_not_see_each_other():
    """A view in the wrong order mixes rows, and every shape still fits."""
    m, idx = tiny(), tokens(3, 7)
    torch.testing.assert_close(m(idx), torch.cat([m(row[None]) for row in idx]), atol=1e-5, rtol=0)

def test_features_times_the_head_are_the_logits():
    """The losses take features and multiply them by lm_head only where needed, so features must include ln_f."""
    m, idx = tiny(), tokens(2, 5)
    assert m.features(idx).shape == (2, 5, 16)
    near(m.features(idx) @ m.transformer.wte.weight.T, m(idx))

def test_positions_and_mask_are_by_default_those_of_one_text():
    """On one text, an inverted mask, a mask given beside is_causal, or ignored positions go unnoticed."""
    m, idx = tiny(), tokens(2, 7)
    causal = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7)
    near(m.features(idx, positions=torch.arange(7).expand(2, 7), mask=causal), m.features(idx))
    behind_three = torch.cat([tokens(2, 3), idx], dim=1)    # three more tokens in front that the text does not see
    unseen = torch.ones(10, 10, dtype=torch.bool).tril().expand(2, 1, 10, 10) & (torch.arange(10) >= 3)
    unseen = unseen | torch.eye(10, dtype=torch.bool)
    near(m.features(idx, positions=torch.arange(3, 10).expand(2, 7), mask=causal),
         m.features(behind_three, mask=unseen)[:, 3:])
    assert not torch.allclose(m.features(idx, mask=torch.ones_like(causal)), m.features(idx), atol=0.01)

def test_a_row_of_several_texts_may_be_longer_than_block_size():
    """Each text and its positions fit. Only a row that is a single text is refused."""
    m, idx = tiny(), tokens(1, 32)
    apart = torch.block_diag(*[torch.ones(16, 16).tril()] * 2).bool()[None, None]
    packed = m.features(idx, positions=torch.arange(16).repeat(2)[None], mask=apart)
    near(packed, m.features(idx.view(2, 16)).view(1, 32, 16))
    with pytest.raises(ValueError, match="32 tokens .* block_size = 16"):
        m.features(idx)

def test_n_inner_is_honoured_and_none_is_four_times_n_embd():
    """
    GPT-2's config says null, which does not mean zero. A model with another width must keep it when saved and
    loaded.
    """
    assert tiny().transformer.h[0].mlp.c_fc.weight.shape == (64, 16)
    assert tiny(n_inner=24).transformer.h[1].mlp.c_proj.weight.shape == (16, 24)

def test_n_inner_goes_through_the_folder(tmp_path):
    """A config.json without n_inner would be opened with 4 * n_embd, or not at all."""
    m, idx = tiny(n_inner=24), tokens(2, 5)
    m.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path).eval()
    assert again.config == m.config and fingerprint(again) == fingerprint(m)
    near(again(idx), m(idx))

def test_the_default_config_has_gpt2s_124439808_parameters():
    """Counting the tied head twice gives 163 million. A missing bias gives a few thousand less."""
    with torch.device("meta"):
        m = GPT(GPTConfig())
    assert sum({id(p): p.numel() for p in m.parameters()}.values()) == 124_439_808
    assert all(p.dtype == torch.float32 for p in m.parameters())

def test_weights_start_at_std_002_and_the_outputs_of_the_residual_branches_smaller():
    """nn.Linear's default start is 10 times wider here, and depth must shrink c_proj by sqrt(2 * n_layer)."""
    torch.manual_seed(0)
    for name, p in GPT(GPTConfig(block_size=64, vocab_size=50, n_layer=8, n_head=2, n_embd=32)).named_parameters():
        if p.dim() == 2:
            want = 0.02 / math.sqrt(16) if "c_proj" in name else 0.02
            assert abs(p.std() / want - 1) < 0.1, name
            assert abs(p.mean()) < 0.15 * want, name
        else:
            assert torch.equal(p, torch.zeros_like(p) if name.endswith("bias") else torch.ones_like(p)), name

def test_a_text_longer_than_block_size_is_refused_and_one_that_fits_exactly_is_not():
    """The embedding's IndexError would name no remedy. A check with `>=` would lose the last position."""
    m = tiny()
    assert m(tokens(1, 16)).shape == (1, 16, 50)
    with pytest.raises(ValueError, match="17 tokens .* block_size = 16"):
        m.features(tokens(1, 17))

def test_bf16_autocast_stays_near_the_fp32_logits():
    """A mask or a cache in the wrong dtype raises under autocast only. The test also checks that autocast was on."""
    m, idx = tiny(), tokens(2, 9)
    want = m(idx)
    with torch.autocast("cpu", torch.bfloat16):
        got, out = m(idx), m.generate(idx, 4, temperature=0, lens=[9, 4])
    assert got.dtype == torch.bfloat16 and out.shape == (2, 13)
    assert 0 < (got.float() - want).abs().max() < 0.05 * want.abs().max()

# ---------------------------------------------------------------------------------------------------------------------
# dropout

def test_dropout_is_off_in_eval():
    """scaled_dot_product_attention does not know about model.eval(). Its dropout_p must be set to 0 by hand."""
    m, plain, idx = tiny(dropout=0.5), tiny(), tokens(2, 8)
    assert torch.equal(m(idx), plain(idx))

@pytest.mark.parametrize("where", ["drop", "attention", "resid", "mlp"])
def test_dropout_is_on_in_train_at_each_of_its_four_places(where):
    """If one place is forgotten, the other three hide it."""
    m, idx = tiny(dropout=0.5).train(), tokens(2, 8)
    m.transformer.drop.p = 0.5 if where == "drop" else 0.0
    for block in m.transformer.h:
        block.attn.dropout = 0.5 if where == "attention" else 0.0
        block.attn.resid_dropout.p = 0.5 if where == "resid" else 0.0
        block.mlp.dropout.p = 0.5 if where == "mlp" else 0.0
    assert not torch.equal(m(idx), m(idx))

@pytest.mark.parametrize("training", [True, False])
def test_generate_turns_dropout_off_and_gives_the_mode_back(training):
    """A sample between two training steps would come from a noisy model, or leave the training without dropout."""
    m, idx = tiny(dropout=0.5).train(training), tokens(2, 6)
    out = m.generate(idx, 8, temperature=0)
    assert all(part.training is training for part in m.modules())
    assert torch.equal(out, tiny().generate(idx, 8, temperature=0))

def test_generate_gives_the_mode_back_when_it_is_interrupted(monkeypatch):
    """
    After Ctrl-C in a notebook during a long sample, the training cell would run without dropout and print no error.
    """
    def interrupt(*args):
        raise KeyboardInterrupt
    m = tiny().train()
    monkeypatch.setattr(model_py, "sample", interrupt)
    with pytest.raises(KeyboardInterrupt):
        m.generate(tokens(1, 3), 2)
    assert m.training

# ---------------------------------------------------------------------------------------------------------------------
# generation

def test_generation_with_the_cache_equals_the_whole_forward_pass_at_every_step(monkeypatch):
    """
    A position off by one, an unwritten column or one column too many in view: greedy tokens may survive that, the
    logits do not.
    """
    m, idx, seen = tiny(), tokens(2, 5), []
    def keep(logits, *rest):
        seen.append(logits)
        return sample(logits, *rest)
    monkeypatch.setattr(model_py, "sample", keep)
    out = m.generate(idx, 11, temperature=0)
    assert torch.equal(out[:, :5], idx) and len(seen) == 11
    torch.testing.assert_close(torch.stack(seen, dim=1), m(out)[:, 4:15], atol=1e-5, rtol=0)
    for row, prompt in zip(out.tolist(), idx.tolist(), strict=True):
        assert row[5:] == slow_greedy(m, prompt, 11)
        assert len(set(row[5:])) > 2

@pytest.mark.parametrize("how", [{"temperature": 0}, {}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}], ids=str)
def test_generation_with_the_cache_equals_generation_without(how):
    """The definition is a few lines long. With the same generator both must draw the same tokens, one by one."""
    m, idx, outs = tiny(seed=3), tokens(4, 5), []
    for generate in (m.generate, lambda *args, **how: plain_generate(m, *args, **how)):
        outs.append(generate(idx, 11, generator=torch.Generator().manual_seed(4), **how))
    assert torch.equal(*outs) and outs[0].shape == (4, 16)
    assert torch.equal(plain_generate(m, idx, 0), idx)

def test_generation_without_the_cache_by_hand():
    """Greedy tokens are the argmax of the last column, and no random number is drawn."""
    m, before = tiny(seed=3), torch.get_rng_state()
    out = plain_generate(m, tokens(2, 5), 6, temperature=0)
    assert torch.equal(torch.get_rng_state(), before)
    for row in out.tolist():
        assert row[5:] == slow_greedy(m, row[:5], 6)

@pytest.mark.parametrize("width", [7, 10])
def test_a_ragged_batch_gives_the_tokens_of_its_rows_one_by_one_whatever_the_padding(width, monkeypatch):
    """Padding is on the right, under the columns of the new tokens. One column too many in the mask reads it."""
    m, lens, outs, seen = tiny(seed=3), [3, 7, 1, 5], [], []
    def keep(logits, *rest):
        seen.append(logits)
        return sample(logits, *rest)
    monkeypatch.setattr(model_py, "sample", keep)
    prompts = [tokens(n, seed=n).tolist() for n in lens]
    for seed in (1, 2):
        idx = tokens(4, width, seed=seed)
        for b, prompt in enumerate(prompts):
            idx[b, :len(prompt)] = torch.tensor(prompt)
        out = m.generate(idx, 9, temperature=0, lens=lens if seed == 1 else torch.tensor(lens))
        assert torch.equal(out[:, :width], idx)
        outs.append(out[:, width:].tolist())
    assert outs[0] == outs[1] == [slow_greedy(m, prompt, 9) for prompt in prompts]
    for n in range(9):    # the logits are the same too
        for b, prompt in enumerate(prompts):
            want = m(torch.tensor([prompt + outs[0][b][:n]]))[0, -1]
            torch.testing.assert_close(seen[n][b], want, atol=1e-5, rtol=0)
            torch.testing.assert_close(seen[9 + n][b], want, atol=1e-5, rtol=0)

def scripted(m, monkeypatch, table):
    """
    Row b of a batch draws table[n][b] as its n-th token. Returns a list that grows by the number of rows at every
    step.
    """
    steps, features = [], m.features
    monkeypatch.setattr(torch, "rand", lambda n, B, **how: torch.arange(B).expand(n, B))    # a row draws its own number
    def from_table(logits, temperature, k, p, rows):
        return torch.tensor(table[len(steps) - 1])[rows]
    monkeypatch.setattr(model_py, "sample", from_table)
    def counted(idx, cache):
        states = features(idx, cache)
        assert {len(x) for part in (cache.k, cache.v) for x in part.values()} == {len(idx)}
        steps.append(len(idx))
        return states
    monkeypatch.setattr(m, "features", counted)
    return steps

def test_a_row_that_drew_eos_is_filled_with_it_and_generation_stops_when_all_have(monkeypatch):
    """An EOS in the prompt does not end a row. An EOS drawn as the first token does."""
    m = tiny()
    scripted(m, monkeypatch, [[5, 1, 9], [9, 2, 3], [3, 9, 4], [4, 4, 4]])
    out = m.generate(torch.tensor([[9, 8], [9, 9], [1, 2]]), 10, eos=9)
    assert out.tolist() == [[9, 8, 5, 9, 9], [9, 9, 1, 2, 9], [1, 2, 9, 9, 9]]

NEVER = 99
ENDS = {
    "a quarter at once": [3, 0, 3, 3, 0, 3, 3, 4],
    "less than a quarter": [5, 5, 1, 5, 5, 5, 5, 5],
    "one by one": [3, 0, 7, 2, 6, 1, 5, 4],
    "all but one": [1, 1, 1, 1, 1, 7, 1, 1],
    "all but one that never ends": [0] * 7 + [NEVER],
    "all at once": [2] * 8,
    "none": [NEVER] * 8,
    "a row alone": [3],
    "of two": [4, 1],
}

@pytest.mark.parametrize("eos", [9, 0])
@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_a_finished_row_is_dropped_and_stays_filled_with_eos_in_its_own_place(ends, eos, monkeypatch):
    """
    A token stored by its row's place among the active rows lands in another row. A finished row that is still
    active keeps drawing tokens.
    """
    m, B = tiny(), len(ends)
    table = []
    for n in range(9):    # a row that is still active after its end draws 10 + b
        table.append([eos if end == n else 10 + b for b, end in enumerate(ends)])
    steps = scripted(m, monkeypatch, table)
    idx = tokens(B, 4)
    out = m.generate(idx, 9, eos=eos)
    last = min(max(ends) + 1, 9)
    assert torch.equal(out[:, :4], idx)
    for b, end in enumerate(ends):
        assert out[b, 4:].tolist() == [10 + b if n < end else eos for n in range(last)]
    assert len(steps) == last and steps[0] == B
    for n, rows in enumerate(steps[1:], 1):    # the model runs on the active rows, and on less than a third more
        active = sum(end >= n for end in ends)
        assert active <= rows and 3 * rows < 4 * active

def test_a_dropped_row_takes_no_time(monkeypatch):
    """If the cache or the model keeps finished rows, every row costs as much time as the longest one."""
    m = tiny()
    steps = scripted(m, monkeypatch, [[9 if n in (b, 8) else 1 for b in range(8)] for n in range(9)])
    m.generate(tokens(8, 4), 9, eos=9)
    # one row ends at every step; with 7 of 8 or 5 of 6 active, none is dropped yet
    assert steps == [8, 8, 6, 6, 4, 3, 2, 1]

def test_with_eos_a_batch_equals_its_rows_one_by_one():
    """The batch continues while one row has no EOS. Finished rows must stay finished, and the others unchanged."""
    m, idx, lens = tiny(seed=3), tokens(4, 6), [6, 2, 4, 5]
    alone = [slow_greedy(m, row[:n].tolist(), 9) for row, n in zip(idx, lens, strict=True)]
    eos = alone[0][3]
    out = m.generate(idx, 9, temperature=0, eos=eos, lens=lens)[:, 6:].tolist()
    ends = [row.index(eos) + 1 if eos in row else 9 for row in alone]
    assert len(set(ends)) > 1
    n = max(ends)
    assert out == [(row[:end] + [eos] * 9)[:n] for row, end in zip(alone, ends, strict=True)]

def slow_sampled(m, prompt, draws, **how):
    """sample() on a whole forward pass for every token: a list, n draws, and the n next tokens."""
    row = list(prompt)
    for u in draws:
        logits = m(torch.tensor([row]))[:, -1]
        row.append(sample(logits, how.get("temperature", 1.0), how.get("top_k"), how.get("top_p"), u[None]).item())
    return row[len(prompt):]

@pytest.mark.parametrize("lens", [None, [6, 2, 4, 5, 1, 6, 3, 2]], ids=["level", "ragged"])
@pytest.mark.parametrize("how", [{}, {"temperature": 0}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}],
                         ids=["all", "greedy", "top_k", "top_p"])
def test_rows_that_go_on_draw_what_they_would_have_drawn_had_nobody_finished(how, lens):
    """
    With fewer draws once a row is gone, a cache cut at the wrong rows, or lens left uncut, every token is still
    likely.
    """
    m, idx, g = tiny(seed=3), tokens(8, 6), lambda: torch.Generator().manual_seed(4)
    free = m.generate(idx, 10, lens=lens, generator=g(), **how)[:, 6:].tolist()    # without EOS no row is ever dropped
    draws = torch.rand(10, 8, generator=g())
    for b, prompt in enumerate(idx.tolist()):
        assert free[b] == slow_sampled(m, prompt[:lens[b] if lens else 6], draws[:, b], **how)
    widths = set()
    for eos in sorted({t for row in free for t in row}):    # each drawn token takes the role of EOS once
        ends = [row.index(eos) + 1 if eos in row else 10 for row in free]
        out = m.generate(idx, 10, lens=lens, eos=eos, generator=g(), **how)[:, 6:].tolist()
        assert out == [(row[:end] + [eos] * 10)[:max(ends)] for row, end in zip(free, ends, strict=True)], eos
        widths.add(tuple(sorted(ends)))
    assert len(widths) > 3    # several different orders of finishing

def test_without_eos_generation_does_not_stop(monkeypatch):
    """A test `if eos` would read token 0 as no EOS. Without EOS no token may end a row."""
    monkeypatch.setattr(model_py, "sample", lambda logits, *rest: torch.zeros(len(logits), dtype=torch.long))
    m = tiny()
    assert m.generate(torch.tensor([[3], [4]]), 4).tolist() == [[3, 0, 0, 0, 0], [4, 0, 0, 0, 0]]
    assert m.generate(torch.tensor([[3], [4]]), 4, eos=0).tolist() == [[3, 0], [4, 0]]

def test_no_new_tokens_gives_the_prompt_back():
    """torch.cat of an empty list raises an error."""
    idx = tokens(2, 16)
    assert torch.equal(tiny().generate(idx, 0), idx)
    assert torch.equal(tiny().generate(idx, 0, lens=[3, 16], eos=1, temperature=0), idx)

def test_generation_that_fills_block_size_exactly_is_allowed():
    """
    Prompt and new tokens have 16 positions here, and `>=` would allow 15. Only the longest prompt counts, not the
    padded width.
    """
    m, idx = tiny(), tokens(1, 6)
    assert m.generate(idx, 10, temperature=0)[0, 6:].tolist() == slow_greedy(m, idx[0].tolist(), 10)
    assert m.generate(tokens(1, 20), 10, temperature=0, lens=[6]).shape == (1, 30)

@pytest.mark.parametrize("T, new, lens", [(6, 11, None), (17, 0, None), (10, 8, [9, 4])])
def test_generation_beyond_block_size_is_refused_before_the_first_token(T, new, lens, monkeypatch):
    """An error after a minute of generation costs a minute. A silent cut would cost the result."""
    m = tiny()
    monkeypatch.setattr(m, "features", lambda *args: pytest.fail("it has begun to generate"))
    with pytest.raises(ValueError, match="block_size = 16"):
        m.generate(tokens(2, T), new, lens=lens)

@pytest.mark.parametrize("name, value", [
    ("lens", [0, 3]), ("lens", [3, 7]), ("lens", [3]), ("lens", [3, 3, 3]), ("lens", [[3, 3]]), ("temperature", -0.1),
    ("top_k", 0), ("top_k", -1), ("top_p", 0), ("top_p", 1.1), ("top_p", -0.5), ("top_p", math.nan)])
def test_arguments_out_of_range_are_refused_in_one_line(name, value):
    """lens = 0 would read column -1, which is padding. top_p = 0 would keep no token at all."""
    with pytest.raises(ValueError) as e:
        tiny().generate(tokens(2, 6), 2, **{name: value})
    assert "\n" not in str(e.value) and name in str(e.value)

# ---------------------------------------------------------------------------------------------------------------------
# sampling

P = torch.tensor([0.10, 0.40, 0.05, 0.30, 0.15])    # by size: 1, 3, 4, 0, 2
UNDER_ONE = 1 - 2 ** -24    # the largest number that torch.rand can draw

def draws(logits, n=4000, *, temperature=1.0, top_k=None, top_p=None):
    """
    n tokens from one row of logits, by n draws spread evenly over [0, 1), which gives each token's share up to 1 /
    n.
    """
    return sample(logits.expand(n, -1), temperature, top_k, top_p, (torch.arange(n) + 0.5) / n)

def frequencies(drawn, V):
    return torch.bincount(drawn, minlength=V) / len(drawn)

@pytest.mark.parametrize("top_k, allowed", [
    (1, {1}),
    (2, {1, 3}),
    (4, {0, 1, 3, 4}),
    (5, {0, 1, 2, 3, 4}),
    (99, {0, 1, 2, 3, 4})])
def test_top_k_allows_the_k_likeliest_tokens(top_k, allowed):
    """Masking with `<=` loses the k-th token. torch.topk raises if k is larger than the vocabulary."""
    assert set(draws(P.log(), top_k=top_k).tolist()) == allowed

@pytest.mark.parametrize("top_p, allowed", [
    (0.01, {1}),
    (0.39, {1}),
    (0.41, {1, 3}),
    (0.69, {1, 3}),
    (0.71, {1, 3, 4}),
    (0.86, {0, 1, 3, 4}),
    (0.96, {0, 1, 2, 3, 4}),
    (1.0, {0, 1, 2, 3, 4})])
def test_top_p_allows_the_smallest_set_that_reaches_it(top_p, allowed):
    """
    The token that crosses top_p belongs to the set. Without it, a top_p below the largest probability leaves no
    token.
    """
    assert set(draws(P.log(), top_p=top_p).tolist()) == allowed

def test_top_p_that_is_reached_exactly_needs_no_further_token():
    """With four tokens of exactly 1/4, two make half of the mass. `>` instead of `>=` would keep three."""
    assert len(set(draws(torch.zeros(4), top_p=0.5).tolist())) == 2

def test_top_p_of_one_cuts_nothing():
    """In fp32 the sum reaches 1 before the last token, and thousands of GPT-2's rare tokens would be dropped."""
    for seed in range(4):    # the effect depends on how the sum is rounded
        logits = 3 * torch.randn(50257, generator=torch.Generator().manual_seed(seed))
        logits = logits.sort().values    # the rarest tokens come first
        ends = logits.double().softmax(0).cumsum(0)[:50]
        middles = (ends + torch.cat([torch.zeros(1), ends[:-1]])) / 2
        assert ends[-1] < 1e-7
        assert sample(logits.expand(50, -1), 1.0, None, 1.0, middles.float()).tolist() == list(range(50))

def test_truncation_by_hand():
    """On paper: of 0.1, 0.4, 0.05, 0.3, 0.15, top_k = 2 and top_p = 0.5 keep two and leave their logits unchanged."""
    logits, kept = P.log()[None], torch.tensor([[False, True, False, True, False]])
    for how in ({"top_k": 2}, {"top_p": 0.5}, {"top_k": 2, "top_p": 0.99}):
        assert torch.equal(truncate(logits, **how), logits.masked_fill(~kept, -math.inf))
    assert truncate(logits) is logits and truncate(logits, top_k=9, top_p=1.0).equal(logits)

def test_top_p_and_top_k_are_taken_row_by_row():
    """Scattering the sorted mask back along the wrong dimension is right only when rows are equal."""
    rows, u = torch.stack([P, P.flip(0)]).log().repeat(500, 1), (torch.arange(500) + 0.5) / 500
    for kwargs in (dict(top_k=2, top_p=None), dict(top_k=None, top_p=0.6)):
        drawn = sample(rows, 1.0, draws=u.repeat_interleave(2), **kwargs)
        assert frequencies(drawn[::2], 5).tolist() == pytest.approx([0, 4 / 7, 0, 3 / 7, 0], abs=0.01)
        assert frequencies(drawn[1::2], 5).tolist() == pytest.approx([0, 3 / 7, 0, 4 / 7, 0], abs=0.01)
    one_peak = torch.tensor([[9.0, 0, 0, 0, 0], [0, 0, 0, 0, 9.0]])
    for u in (0.0, 0.5, UNDER_ONE):
        assert sample(one_peak, 1.0, None, 0.5, torch.full((2,), u)).tolist() == [0, 4]

def test_top_p_counts_what_top_k_has_left():
    """
    As in transformers: after top_k = 2 leaves 0.4 and 0.3, the first has a share of 0.57 and reaches top_p = 0.5.
    Counted in the whole distribution it would not.
    """
    assert set(draws(P.log(), top_k=2, top_p=0.5).tolist()) == {1}

def test_top_p_counts_after_the_temperature():
    """At temperature 2 the largest probability is 0.29, not 0.40. Cutting before the temperature gives another set."""
    assert set(draws(P.log(), top_p=0.35).tolist()) == {1}
    assert set(draws(P.log(), top_p=0.35, temperature=2.0).tolist()) == {1, 3}

def test_sampled_frequencies_follow_the_softmax():
    """If logits were used as probabilities, or softmax ran over the wrong dimension, tokens would still be in range."""
    logits = torch.tensor([1.0, -1.0, 0.5, 2.0])
    assert (frequencies(draws(logits), 4) - logits.softmax(0)).abs().max() < 0.001
    u = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    drawn = sample(logits.expand(20000, -1), 1.0, None, None, u)
    assert (frequencies(drawn, 4) - logits.softmax(0)).abs().max() < 0.015

def test_a_draw_falls_into_the_token_whose_share_of_the_unit_interval_holds_it():
    """
    On paper: shares of a quarter each, which include their left end. One token too early or too late shifts the
    distribution.
    """
    below = lambda x: torch.nextafter(torch.tensor(x), torch.tensor(0.0)).item()
    cases = ((0.0, 0), (below(0.25), 0),
             (0.25, 1), (below(0.5), 1),
             (0.5, 2), (below(0.75), 2),
             (0.75, 3), (UNDER_ONE, 3))
    for u, token in cases:
        assert sample(torch.zeros(1, 4), 1.0, None, None, torch.tensor([u])).item() == token, u
    each_row_its_own = torch.tensor([0.9, 0.1, 0.6])
    assert sample(torch.zeros(3, 4), 1.0, None, None, each_row_its_own).tolist() == [3, 0, 2]

@pytest.mark.parametrize("cut", ["-inf", "top_k", "top_p"])
def test_a_token_without_probability_is_never_taken_not_even_first_or_last_or_on_a_boundary(cut):
    """
    A draw of exactly 0 or on a boundary lies inside no token's share. Searched from the wrong side, it gives an
    empty token.
    """
    logits = torch.tensor([[-math.inf if cut == "-inf" else -4.0] * 7])
    logits[0, [1, 4]] = 3.0
    how = {"-inf": (None, None), "top_k": (2, None), "top_p": (None, 0.9)}[cut]
    half = torch.tensor(0.5)
    for u, token in ((0.0, 1), (torch.nextafter(half, torch.tensor(0.0)), 1), (half, 4), (UNDER_ONE, 4)):
        assert sample(logits, 1.0, *how, torch.tensor([u])).item() == token, u
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 2000, generator=g).mul(3)
    many = logits.masked_fill(torch.rand(300, 2000, generator=g) < 0.5, -math.inf)
    many[:, [0, 1, -2, -1]] = -math.inf    # here the rounded sum of the probabilities is more or less than 1
    total = many.softmax(-1).cumsum(-1)[:, -1]
    assert (total < 1).any() and (total > 1).any()
    for u in (0.0, 2 ** -24, 0.5, 1 - 2 ** -23, UNDER_ONE):
        drawn = sample(many, 1.0, None, None, torch.full((300,), u))
        assert many.gather(1, drawn[:, None]).isfinite().all(), u

@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_raises_the_probabilities_to_its_inverse(temperature):
    """Multiplying by the temperature swaps hot and cold, which does not show at temperature 1."""
    want = P ** (1 / temperature)
    got = frequencies(draws(P.log(), temperature=temperature), 5)
    assert (got - want / want.sum()).abs().max() < 0.001

def test_top_k_keeps_the_ratios_of_what_it_keeps():
    """After the cut, 0.4 and 0.3 become 4/7 and 3/7, not a half each."""
    want = torch.tensor([0, 4 / 7, 0, 3 / 7, 0])
    assert (frequencies(draws(P.log(), top_k=2), 5) - want).abs().max() < 0.001

def test_temperature_zero_is_the_argmax_and_needs_no_random_numbers():
    """Division by zero gives NaN. A greedy evaluation must not change the random state that training draws from."""
    m, before = tiny(), torch.get_rng_state()
    assert sample(P.log()[None], 0, None, None, None).tolist() == [1]
    m.generate(tokens(2, 3), 4, temperature=0)
    assert torch.equal(torch.get_rng_state(), before)

def test_top_k_of_one_equals_greedy():
    """Both give the most likely token, one with a draw and one without."""
    m, idx = tiny(), tokens(3, 4)
    assert torch.equal(m.generate(idx, 8, top_k=1), m.generate(idx, 8, temperature=0))

def test_a_generator_of_its_own_makes_sampling_reproducible_and_leaves_the_global_state_alone():
    """With the global state, a sample printed during training would change the rest of the training."""
    m, idx = tiny(), tokens(3, 4)
    outs = []
    for seed, global_seed in ((7, 1), (7, 2), (8, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        outs.append(m.generate(idx, 8, generator=torch.Generator().manual_seed(seed)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])

def test_without_a_generator_the_global_seed_decides():
    """Otherwise --seed would not affect the samples."""
    m, idx = tiny(), tokens(3, 4)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(m.generate(idx, 8))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])

def test_generated_tokens_follow_the_models_distribution():
    """A first token from the wrong column does not show in one sample. 4000 samples show it."""
    m = tiny(seed=5)
    prompt = tokens(1, 4)
    out = m.generate(prompt.expand(4000, 4), 1, generator=torch.Generator().manual_seed(0))
    want = m(prompt)[0, -1].softmax(0)
    assert (frequencies(out[:, 4], 50) - want).abs().max() < 0.02
    assert want.max() > 0.08

# ---------------------------------------------------------------------------------------------------------------------
# saving and loading

def test_save_and_load_give_the_same_model_bit_for_bit(tmp_path):
    """After a forgotten transposition, square matrices keep their shape. Only the values show it."""
    m, idx = tiny(), tokens(2, 9)
    m.save_pretrained(tmp_path / "a" / "b")
    again = GPT.from_pretrained(tmp_path / "a" / "b").eval()
    assert again.config == m.config
    assert again.state_dict().keys() == m.state_dict().keys()
    assert all(torch.equal(v, m.state_dict()[k]) for k, v in again.state_dict().items())
    near(again(idx), m(idx))
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["config.json", "model.safetensors"]

def test_what_is_written_is_what_transformers_wrote(tmp_path):
    """
    With a transposition forgotten both ways our own round trip is perfect, and the file is useless to other
    programs.
    """
    GPT.from_pretrained(TINY).save_pretrained(tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(TINY / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)

def test_hugging_faces_layout_by_hand():
    """The four Conv1D matrices are transposed and the embeddings are not. The head is loaded from the embedding."""
    ours = tiny().state_dict()
    theirs = to_hf(ours)
    assert theirs.keys() == ours.keys() - {"lm_head.weight"} and len(theirs) == 4 + 12 * 2
    for name, x in theirs.items():
        turned = any(part in name for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        assert torch.equal(x, ours[name].t() if turned else ours[name]), name
    back = from_hf({name: x.double() for name, x in theirs.items()})
    assert back.keys() == ours.keys() and back["lm_head.weight"] is back["transformer.wte.weight"]
    for name, x in back.items():
        assert torch.equal(x, ours[name]) and x.dtype == torch.float32 and x.is_contiguous(), name
    same_dtype = from_hf(theirs)
    assert all(same_dtype[name].data_ptr() != x.data_ptr() for name, x in theirs.items())    # copies, not views

def test_saving_over_the_folder_it_came_from_keeps_every_change(tmp_path):
    """Loaded tensors may be views of the mapped file. Writing to that file while reading from it would corrupt both."""
    tiny().save_pretrained(tmp_path)
    m, idx = GPT.from_pretrained(tmp_path).eval(), tokens(1, 5)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.01)
    want = m(idx)
    m.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path).eval()
    assert torch.equal(m(idx), want) and fingerprint(again) == fingerprint(m)
    near(again(idx), want)

@pytest.mark.parametrize("n_inner", [None, 24])
def test_transformers_opens_what_we_write_and_gives_the_same_logits(n_inner, tmp_path):
    """With a wrong activation in config.json, or a missing or extra name, transformers only warns."""
    transformers = pytest.importorskip("transformers")
    m, idx = tiny(n_inner=n_inner), tokens(2, 9)
    m.save_pretrained(tmp_path)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert theirs.config.eos_token_id == 49
    torch.testing.assert_close(m(idx), theirs.eval()(idx).logits, atol=1e-5, rtol=0)

def test_transformers_opens_our_scalar_model_and_gives_the_same_score(tmp_path):
    """
    transformers reads the score at the last token that is not padding. For that it needs num_labels and
    pad_token_id.
    """
    transformers = pytest.importorskip("transformers")
    m, idx = tiny(ScalarGPT), tokens(3, 9, vocab_size=49)
    idx[1, 6:], idx[2, 2:] = 49, 49
    m.save_pretrained(tmp_path)
    theirs, info = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and theirs.config.num_labels == 1
    scores = theirs.eval()(idx).logits[:, 0]
    assert scores.std() > 0.1
    torch.testing.assert_close(m(idx)[torch.arange(3), torch.tensor([8, 5, 1])], scores, atol=1e-5, rtol=0)

def test_a_scalar_model_comes_back_with_its_score(tmp_path):
    """A head that is reset at loading gives rewards of 0, and nothing else looks wrong."""
    m, idx = tiny(ScalarGPT), tokens(2, 9)
    m.save_pretrained(tmp_path)
    again = ScalarGPT.from_pretrained(tmp_path).eval()
    assert m(idx).shape == (2, 9) and m(idx).abs().min() > 0
    assert torch.equal(again.score.weight, m.score.weight) and fingerprint(again) == fingerprint(m)
    near(again(idx), m(idx))

def test_a_fresh_scalar_model_from_a_language_model_says_zero(tmp_path):
    """The first value must be 0: a random head would give the first advantages a direction."""
    lm, idx = tiny(), tokens(2, 9)
    lm.save_pretrained(tmp_path)
    m = ScalarGPT.from_pretrained(tmp_path).eval()
    assert torch.equal(m(idx), torch.zeros(2, 9))
    near(m.features(idx), lm.features(idx))
    assert torch.equal(ScalarGPT(lm.config)(idx), torch.zeros(2, 9))
    assert all(p.requires_grad for p in m.parameters())

def test_a_language_model_opens_a_scalar_models_folder(tmp_path):
    """The trunk is the same. `score.weight` is the only extra name that is no error."""
    m, idx = tiny(ScalarGPT), tokens(2, 9)
    m.save_pretrained(tmp_path)
    near(GPT.from_pretrained(tmp_path).eval().features(idx), m.features(idx))

def test_the_head_is_tied_after_loading():
    """Assigning tensors at loading breaks the tie. The head would train separately, and be lost at saving."""
    m = GPT.from_pretrained(TINY)
    assert m.lm_head.weight is m.transformer.wte.weight
    assert [name for name, p in m.named_parameters() if p.shape == (160, 32)] == ["transformer.wte.weight"]
    assert all(p.requires_grad for p in m.parameters())

def test_the_gradient_of_the_tied_weight_is_the_sum_of_both_ways():
    """If the gradient is detached on one side or counted twice, the training loss still falls."""
    m, idx = GPT.from_pretrained(TINY), torch.tensor(EXPECTED["idx"])
    loss = lambda logits: F.cross_entropy(logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten())
    loss(m(idx)).backward()
    both, m.transformer.wte.weight.grad = m.transformer.wte.weight.grad, None
    head = m.transformer.wte.weight.detach().clone().requires_grad_()
    loss(m.features(idx) @ head.T).backward()
    assert m.transformer.wte.weight.grad.abs().max() > 1e-4 and head.grad.abs().max() > 1e-4
    torch.testing.assert_close(both, m.transformer.wte.weight.grad + head.grad, atol=1e-7, rtol=1e-4)

def test_the_dropout_of_the_file_is_not_taken_over_unless_asked(tmp_path):
    """The hub's GPT-2 has 0.1. In a policy it would add noise to every log-ratio against the reference."""
    folder, idx = changed(tmp_path, attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1), tokens(2, 9)
    m = GPT.from_pretrained(folder).train()
    assert m.config.dropout == 0 and torch.equal(m(idx), m(idx))
    m = GPT.from_pretrained(folder, dropout=0.1).train()
    assert m.config.dropout == 0.1 and not torch.equal(m(idx), m(idx))

def test_weights_in_fp16_are_loaded_as_fp32(tmp_path):
    """fp16 in half of the layers would raise at the first matmul, or train in fp16."""
    folder = rewritten(tmp_path, lambda state: state.update({k: v.half() for k, v in state.items()}))
    m, want = GPT.from_pretrained(folder), tiny().state_dict()
    assert all(v.dtype == torch.float32 and torch.equal(v, want[k].half().float()) for k, v in m.state_dict().items())

def test_a_model_with_adapters_is_not_saved_as_a_plain_gpt2(tmp_path):
    """The adapters would be left out, and the file would open without an error as the base model."""
    m = add_adapters(tiny(), "parallel", 2)
    with pytest.raises(ValueError, match="adapter_state_dict"):
        m.save_pretrained(tmp_path / "run")
    assert not (tmp_path / "run").exists()

def test_the_fingerprint_changes_with_one_weight_and_not_with_saving_and_loading(tmp_path):
    """
    The fingerprint protects adapters and stored log-probs from another base. A rounded sum would miss a small
    change.
    """
    m = tiny()
    before = fingerprint(m)
    assert len(before) == 16 and set(before) <= set("0123456789abcdef")
    m.save_pretrained(tmp_path)
    assert fingerprint(m.train()) == fingerprint(GPT.from_pretrained(tmp_path)) == before
    with torch.no_grad():
        w = m.transformer.h[1].mlp.c_proj.bias
        w[3] = torch.nextafter(w[3], torch.tensor(9.0))
    assert fingerprint(m) != before

# ---------------------------------------------------------------------------------------------------------------------
# wrong folders: the error is one line that names the file

def test_a_folder_that_is_not_there_is_refused_without_asking_the_hub(monkeypatch, tmp_path):
    """A typing error in a path must cause neither a download nor a traceback about repository names."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: pytest.fail("it asked the hub"))
    refused(tmp_path / "sft", tmp_path / "sft", "gpt2-medium")
    refused("gpt-2", "gpt-2", "gpt2-medium")

def test_a_folder_without_a_config_is_refused(tmp_path):
    """A guess of GPT-2 small's sizes would end in a shape error far from the cause."""
    tiny().save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    refused(tmp_path, tmp_path / "config.json")

def test_a_folder_without_weights_is_refused(tmp_path):
    """A run killed before its first evaluation leaves such a folder. Random weights would be the worst answer."""
    tiny().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, tmp_path, "model.safetensors", "pytorch_model.bin")

@pytest.mark.parametrize("text", ['{"model_type": "gpt2",', "", "[1, 2]", "null", "\x00\x01"])
def test_a_damaged_config_is_refused(text, tmp_path):
    """A list is valid JSON, but calling .get on it is an AttributeError."""
    tiny().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, tmp_path / "config.json")

def test_a_config_that_is_not_text_is_refused(tmp_path):
    """Someone may copy weights over the config by mistake."""
    tiny().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x80" * 10)
    refused(tmp_path, tmp_path / "config.json")

@pytest.mark.parametrize("key, value", [
    ("model_type", "llama"),
    ("activation_function", "relu"),
    ("activation_function", "gelu"),
    ("layer_norm_epsilon", 1e-6),
    ("scale_attn_weights", False),
    ("scale_attn_by_inverse_layer_idx", True),
    ("add_cross_attention", True),
    ("tie_word_embeddings", False)])
def test_what_this_model_would_compute_differently_is_refused_by_name(key, value, tmp_path):
    """All of these load without a shape error and give other logits."""
    refused(changed(tmp_path, **{key: value}), tmp_path / "config.json", key, repr(value))

@pytest.mark.parametrize("key", ["n_positions", "vocab_size", "n_layer", "n_head", "n_embd", "model_type"])
def test_a_config_that_lacks_an_entry_is_refused_by_name(key, tmp_path):
    """A default would be the size of another model."""
    refused(changed(tmp_path, drop=[key]), tmp_path / "config.json", key)

@pytest.mark.parametrize("key, value", [
    ("n_layer", 0), ("n_layer", -2), ("n_head", 2.0), ("vocab_size", "50"), ("n_embd", None), ("n_layer", True),
    ("n_inner", -64), ("n_inner", 64.5)])
def test_a_size_that_is_not_a_positive_integer_is_refused_by_name(key, value, tmp_path):
    """PyTorch's own errors for these come from three different places, and True is an int in Python."""
    refused(changed(tmp_path, **{key: value}), tmp_path / "config.json", key, repr(value))

def test_n_embd_that_is_not_a_multiple_of_n_head_is_refused(tmp_path):
    """No weight depends on n_head, so the file loads and the first forward pass fails."""
    refused(changed(tmp_path, n_head=3), tmp_path / "config.json", "n_embd = 16", "n_head = 3")

@pytest.mark.parametrize("key, value", [
    ("n_layer", 3), ("n_layer", 1), ("n_embd", 32), ("vocab_size", 51), ("n_positions", 17), ("n_inner", 32)])
def test_a_config_that_does_not_fit_the_weights_is_refused(key, value, tmp_path):
    """A model with fewer layers than the file would run and give some answer."""
    refused(changed(tmp_path, **{key: value}), tmp_path / "model.safetensors")

@pytest.mark.parametrize("key, value", [
    ("vocab_size", 10 ** 12), ("n_layer", 10 ** 9), ("n_positions", 10 ** 12), ("n_inner", 10 ** 12),
    ("n_embd", 10 ** 12), ("vocab_size", 10 ** 30)])
def test_absurd_sizes_are_refused_at_once_and_without_memory(key, value, tmp_path, monkeypatch):
    """Building the model before the check would use all memory, and sizes may overflow before they are compared."""
    block, left = model_py.Block, iter(range(100))
    def limited(config):
        return block(config) if next(left, None) is not None else pytest.fail("it builds them all")
    monkeypatch.setattr(model_py, "Block", limited)
    began = time.process_time()    # the time of this process only, so that a busy machine does not matter
    refused(changed(tmp_path, **{key: value}), tmp_path)
    assert time.process_time() - began < 5

@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_safetensors_file_that_was_cut_short_is_refused(part, tmp_path):
    """After a copy that ran out of disk space the header is complete and the tensors are not."""
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    os.truncate(path, int(part * path.stat().st_size))
    refused(tmp_path, path)

def as_bin(folder, extra=(), **kwargs):
    """Our tiny model in `folder` with a pytorch_model.bin, whose path is returned. `extra` is added to its contents."""
    tiny().save_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors") | dict(extra), folder / "pytorch_model.bin", **kwargs)
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"

@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_bin_file_that_was_cut_short_is_refused(part, zipped, tmp_path):
    """
    torch raises different exceptions depending on where the file was cut. Old files are no zip archives and raise
    others.
    """
    path = as_bin(tmp_path, _use_new_zipfile_serialization=zipped)
    assert fingerprint(GPT.from_pretrained(tmp_path)) == fingerprint(tiny())
    os.truncate(path, int(part * path.stat().st_size))
    refused(tmp_path, path)

class Touch:
    """Unpickling an object of this class without protection creates a file."""
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")

def test_a_bin_file_with_code_in_it_is_refused_and_nothing_is_run(tmp_path):
    """A pickle can call any function while it is read, so torch.load needs weights_only=True."""
    path = as_bin(tmp_path, {"extra": Touch(tmp_path / "was here")})
    refused(tmp_path, path)
    assert not (tmp_path / "was here").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "was here").exists()      # the file did contain code that runs

@pytest.mark.parametrize("extra", [{"extra": print}, {"extra": Path}, {"epoch": 3}, {"model": {}}, {0: torch.ones(1)}],
                         ids=["function", "class", "number", "dict", "nameless"])
def test_a_bin_file_with_something_else_than_named_tensors_is_refused(extra, tmp_path):
    """A training checkpoint (model, optimizer, epoch) does not hold a model's weights only."""
    refused(tmp_path, as_bin(tmp_path, extra))

def test_a_bin_file_that_was_saved_on_a_gpu_is_loaded_on_the_cpu(tmp_path, monkeypatch):
    """torch.load wants each tensor back on the device that the file names. Most machines of students have none."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        as_bin(tmp_path, {})
    m, want = GPT.from_pretrained(tmp_path), tiny().state_dict()
    assert all(v.device.type == "cpu" and torch.equal(v, want[k]) for k, v in m.state_dict().items())

def test_a_bin_file_that_holds_a_list_is_refused(tmp_path):
    """A list has no .items()."""
    path = as_bin(tmp_path)
    torch.save([torch.ones(2)], path)
    refused(tmp_path, path)

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"

@pytest.mark.parametrize("junk", [LFS_POINTER, b"<!doctype html>\n<html>\n"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_or_a_web_page_in_the_place_of_weights_is_refused(name, junk, tmp_path):
    """git without LFS leaves a pointer file, and a login page is saved as HTML."""
    tiny().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(junk)
    refused(tmp_path, tmp_path / name)

def test_a_name_that_is_not_gpt2s_is_refused_by_name(tmp_path):
    """If extra weights were ignored, a fine-tuned variant would load as plain GPT-2."""
    refused(rewritten(tmp_path, lambda state: state.update({"transformer.h.1.attn.lora.weight": torch.ones(2)})),
            tmp_path / "model.safetensors", "transformer.h.1.attn.lora.weight")

def test_a_name_that_is_missing_is_refused_by_name(tmp_path):
    """If one bias kept its random start, the change would be too small to notice."""
    refused(rewritten(tmp_path, lambda state: state.pop("transformer.h.1.mlp.c_fc.bias")),
            tmp_path / "model.safetensors", "transformer.h.1.mlp.c_fc.bias", "missing")

def test_a_shape_that_does_not_fit_is_refused_by_name(tmp_path):
    """Saving our state_dict with safetensors gives a Linear's (out, in) where a Conv1D's (in, out) belongs."""
    key = "transformer.h.0.attn.c_attn.weight"
    refused(rewritten(tmp_path, lambda state: state.update({key: state[key].t().contiguous()})),
            tmp_path / "model.safetensors", key, "(48, 16)", "(16, 48)")

def test_the_masks_that_old_files_store_are_no_error(tmp_path):
    """`attn.bias` is a causal mask and not a bias. The hub's gpt2 has twelve of them."""
    extra = {f"transformer.h.{i}.attn.{name}": torch.ones(1) for i in range(2) for name in ("bias", "masked_bias")}
    folder = rewritten(tmp_path, lambda state: state.update(extra))
    assert fingerprint(GPT.from_pretrained(folder)) == fingerprint(tiny())

# ---------------------------------------------------------------------------------------------------------------------
# the hub

def test_a_hub_name_is_asked_for_under_openai_community(monkeypatch, tmp_path):
    """The bare `gpt2` is a redirect. The repository has 5 GB in six formats, of which two files are needed."""
    asked = []
    def download(repo, allow_patterns):
        asked.append((repo, sorted(allow_patterns)))
        return str(TINY_HUB)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    m = GPT.from_pretrained("gpt2").eval()
    assert asked == [("openai-community/gpt2", ["config.json", "model.safetensors"])]
    torch.testing.assert_close(m(torch.tensor(EXPECTED["idx"])), torch.tensor(EXPECTED["logits"]), atol=2e-6, rtol=0)

def test_offline_the_error_is_one_line_with_the_remedy(monkeypatch, tmp_path):
    """The client's own error is a page of traceback, and its type changes between versions."""
    def download(*args, **kwargs):
        raise OSError("no route\nto host\n")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    refused("gpt2-medium", "gpt2-medium", "HF_HOME", "model.safetensors")
