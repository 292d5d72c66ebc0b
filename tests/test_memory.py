"""Tests of memory: activation checkpointing, loading, and what fits into a card (study/fits.py)."""
import json
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import adapters
import data
import eval
import loop
import model as model_file
import toy
import train_pref
import train_sft
from losses import LOSSES
from model import GPT, GPTConfig, ScalarGPT
from objective import preference_loss
from reference import add_reference
from quantize import METHODS as QUANTIZED, pack
from rlhf import train_ppo, train_reward
from study import bench, fits, places
from support import checkpoint

SIZES = dict(block_size=32, vocab_size=40, n_layer=3, n_head=2, n_embd=16)
EXAMPLES = toy.examples
OFF = torch.autocast("cpu", enabled=False)

def made(mode=None, dropout=0.0):
    """A small GPT-2 in training mode, with adapters whose output is not 0 if mode names a kind."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, dropout=dropout))
    if mode:
        adapters.add_adapters(model, mode, 4)
        for module in adapters.adapter_modules(model):
            torch.nn.init.normal_(module.up.weight, std=0.1)
    return model.train()

def batch_of(model, share_prefix=False):
    """A batch of 4 pairs of different lengths, with the log-probs of a reference."""
    numbers = torch.Generator().manual_seed(1)
    tokens = lambda n: torch.randint(39, (n,), generator=numbers).tolist()
    rows = [{"prompt": tokens(4 + i), "chosen": tokens(3 + i), "rejected": tokens(5)} for i in range(4)]
    batches = data.Batches(rows, 4, share_prefix=share_prefix)
    add_reference(GPT(GPTConfig(**SIZES)), batches, OFF)
    return batches[0]

def update(checkpointing, mode=None, dropout=0.0, share_prefix=False, autocast=OFF):
    """The gradients of a DPO loss, the loss, and the state of the random generator after backward."""
    model = made(mode, dropout)
    batch = batch_of(model, share_prefix)
    model.activation_checkpointing = checkpointing
    torch.manual_seed(2)
    with autocast:
        loss, _ = preference_loss(model, batch, LOSSES["dpo"], {"beta": 0.1})
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return grads, loss.detach(), torch.get_rng_state()

@pytest.mark.parametrize("share_prefix", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("mode", [None, *adapters.MODES])
def test_checkpointing_changes_no_bit_of_loss_and_gradients(mode, dropout, share_prefix):
    """
    The second pass through a block may draw other dropout. With a frozen base, the input of the first block has no
    gradient, and a checkpoint that looks at its inputs only would leave out the adapter of that block.
    """
    (grads, *rest), (plain, *plain_rest) = (update(on, mode, dropout, share_prefix) for on in (True, False))
    assert grads.keys() == plain.keys() and all(torch.equal(grads[name], plain[name]) for name in plain)
    assert all(torch.equal(a, b) for a, b in zip(rest, plain_rest))
    assert any(p.abs().max() > 0 for name, p in grads.items() if ".h.0." in name)

@pytest.mark.parametrize("mode", [None, "sequential"])
def test_checkpointing_changes_no_bit_under_autocast(mode):
    """Backward runs outside the autocast. A block that is computed again there would be in float32."""
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    (grads, loss, _), (plain, plain_loss, _) = (update(on, mode, 0.3, autocast=autocast) for on in (True, False))
    assert torch.equal(loss, plain_loss) and all(torch.equal(grads[name], plain[name]) for name in plain)
    assert not torch.equal(plain_loss, update(False, mode, 0.3)[1])    # the products were in bfloat16

def kept_for_backward(model, idx):
    """Bytes of all tensors but parameters that a forward pass keeps, each storage once."""
    seen, own = {}, {p.data_ptr() for p in model.parameters()}
    def pack(x):
        if x.data_ptr() not in own:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(), x    # x: else its place is used again
        return x
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.features(idx)
    return sum(size for size, _ in seen.values())

@pytest.mark.parametrize("mode", [None, *adapters.MODES])
def test_checkpointing_keeps_one_input_a_block(mode):
    """A flag that is read in the wrong place gives the same numbers and saves nothing."""
    model, idx = made(mode), torch.arange(24).view(2, 12)
    plain = kept_for_backward(model, idx)
    model.activation_checkpointing = True
    checkpointed = kept_for_backward(model, idx)
    state = idx.numel() * SIZES["n_embd"] * 4    # bytes of (B, T, C)
    # the inputs of 3 blocks, and of the last LayerNorm with its means and stds; idx and positions are integers
    assert 3 * state <= checkpointed <= 5 * state < plain / 3

def count_blocks(monkeypatch):
    """A list that gets an entry for each checkpointed block."""
    calls, real = [], model_file.checkpoint
    monkeypatch.setattr(model_file, "checkpoint", lambda *args, **more: calls.append(1) or real(*args, **more))
    return calls

def test_nothing_is_checkpointed_without_a_gradient(monkeypatch):
    """Evaluation and generation keep no activations, and each checkpoint would read the random state."""
    calls, model, idx = count_blocks(monkeypatch), made(), torch.arange(8).view(2, 4)
    model.activation_checkpointing = True
    before = torch.get_rng_state()
    with torch.no_grad():
        model(idx)
        loop.evaluate(model, lambda batch: (model(batch["idx"]).mean(), {}), [{"idx": idx, "weight": 2}])
    model.generate(idx, 3, temperature=0)
    assert calls == [] and torch.equal(torch.get_rng_state(), before)
    model(idx).sum().backward()
    assert len(calls) == SIZES["n_layer"]

class Operations(TorchDispatchMode):
    """Inside it, the names of all operations on tensors are collected."""
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))

def test_loading_draws_no_random_numbers(tmp_path):
    """For its first normal_ on the meta device, PyTorch imports 800 modules: a second, and 80 MB that stay."""
    made().save_pretrained(tmp_path)
    with Operations() as loading:
        loaded = GPT.from_pretrained(tmp_path)
    with Operations() as new:
        GPT(GPTConfig(**SIZES))
    assert "normal_" in new.names and "normal_" not in loading.names
    assert all(torch.equal(a, b) for a, b in zip(made().state_dict().values(), loaded.state_dict().values()))

def test_loading_holds_one_tensor_of_the_file_at_a_time(tmp_path, monkeypatch):
    """All tensors of a mapped file beside their copies would be twice the model's memory."""
    made().save_pretrained(tmp_path)
    alive, most, real = [], [0], checkpoint.StoredTensor.read
    def read(self):
        x = real(self)
        alive[:] = [ref for ref in alive if ref() is not None] + [weakref.ref(x)]
        most[0] = max(most[0], len(alive))
        return x
    monkeypatch.setattr(checkpoint.StoredTensor, "read", read)
    GPT.from_pretrained(tmp_path)
    assert most[0] == 2    # the next one is read before the last is dropped

def test_gradients_are_gone_when_weights_are_saved(tmp_path, monkeypatch):
    """Matrices are transposed for the file, a copy of all of them. Gradients beside it would raise the peak."""
    monkeypatch.setattr(loop, "plot_curves", lambda folder: None)
    model, seen = made(), []
    batch = batch_of(model) | {"weight": 4}
    loop.fit(model, lambda b: preference_loss(model, b, LOSSES["dpo"], {"beta": 0.1}), [batch] * 2, [batch],
             save=lambda folder: seen.append([p.grad for p in model.parameters()]), out_dir=tmp_path, max_steps=2,
             eval_every=1, lr=1e-3)
    assert len(seen) > 1 and all(grad is None for grads in seen for grad in grads)

# ---------------------------------------------------------------------------------------------------------------------
# the flag

@pytest.fixture
def run(sft_run, tokenizer, tmp_path, monkeypatch):
    """Runs train_pref.py for some updates on pairs with dropout, and returns the weights after the last one."""
    lines = [{"prompt": f"the plot {i}", "chosen": f" was superb {i} .", "rejected": " was dull ."} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
    monkeypatch.setattr(loop, "plot_curves", lambda folder: None)
    monkeypatch.setattr(eval, "main", lambda *args, **more: {})
    def go(name, *flags):
        train_pref.main(["--data", str(tmp_path / "pairs.jsonl"), "--init_from", str(sft_run), "--batch_size", "4",
                         "--dropout", "0.2", "--out_dir", str(tmp_path / name), "--eval_every", "1", *flags])
        return torch.load(tmp_path / name / "state.pt", weights_only=True)["model"]
    return go

def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

def test_a_run_resumed_with_or_without_checkpointing_has_the_same_weights(run, monkeypatch, tmp_path):
    """The flag may change on --resume only because no bit of the run depends on it."""
    calls = count_blocks(monkeypatch)
    plain = [run("plain", "--max_steps", "2"), run("plain", "--max_steps", "4", "--resume")]
    assert calls == []
    on = run("mixed", "--max_steps", "2", "--activation_checkpointing")
    assert len(calls) == 2 * GPT.from_pretrained(tmp_path / "mixed").config.n_layer
    assert same(on, plain[0])
    run("other", "--max_steps", "2")
    assert same(run("other", "--max_steps", "4", "--resume", "--activation_checkpointing"), plain[1])
    names = [(tmp_path / name / "config.json").read_bytes() for name in ("plain", "mixed")]
    assert names[0] == names[1]    # it is no property of the model

@pytest.mark.parametrize("script", [train_sft, train_pref])
def test_a_checkpointed_block_is_not_compiled_so_both_flags_are_refused(script, capsys):
    """torch.compile gives up the whole model without a word when it meets a checkpoint."""
    with pytest.raises(SystemExit) as end:
        script.get_args(["--activation_checkpointing", "--compile"])
    assert end.value.code == 2
    assert "error: --compile has no effect with --activation_checkpointing" in capsys.readouterr().err
    assert script.get_args(["--compile"]).compile

class Reached(Exception):
    """Raised where training would begin."""

@pytest.mark.parametrize("script, flags", [
    (train_sft, ["--n_layer", "1", "--n_head", "2", "--n_embd", "16"]),
    (train_reward, ["--n_prompts", "8"]),
    (train_ppo, ["--true_reward", "--rollout", "64", "--batch_size", "16"]),
])
def test_every_script_that_trains_sets_it(script, flags, sft_run, tmp_path, monkeypatch):
    """A script that parses the flag and forgets it would need the memory of a run without it."""
    def fit(model, *args, **more):
        raise Reached([m.activation_checkpointing for m in model.modules() if isinstance(m, (GPT, ScalarGPT))])
    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(toy, "examples", lambda split, n, seed=0: EXAMPLES(split, min(n, 64), seed))
    start = [] if script is train_sft else ["--init_from", str(sft_run)]
    with pytest.raises(Reached) as reached:
        script.main(["--out_dir", str(tmp_path / "run"), *start, *flags, "--activation_checkpointing"])
    assert reached.value.args[0] == [True]

# ---------------------------------------------------------------------------------------------------------------------
# what fits: the formula, the random models, the rows

def test_parameters_of_the_formula_are_those_of_the_model():
    """The formula is used for models that are too large to build here."""
    for more in ({}, {"n_inner": 24}):
        config = GPTConfig(**SIZES | more)
        model = GPT(config)
        matrices = sum(p.numel() for block in model.transformer.h for p in block.parameters() if p.dim() == 2)
        outside, in_matrices, vectors = fits.parameters(config)
        assert in_matrices == matrices and outside + in_matrices + vectors == sum(p.numel() for p in model.parameters())
    sizes = {name: sum(fits.parameters(config)) for name, config in fits.MODELS.items()}
    assert sizes == {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080,
                     "gpt2-xl": 1_557_611_200}    # as published

@pytest.mark.parametrize("method", ["full", "adapters"])
def test_numbers_a_block_keeps_for_backward(method):
    """The formula's 16 and 11, by what autograd keeps in three blocks minus what it keeps in one."""
    kept = {}
    for n_layer in (2, 4):
        model = GPT(GPTConfig(64, 40, n_layer, 4, 256)).train()
        if method == "adapters":
            adapters.add_adapters(model, "sequential", fits.RANK)
        kept[n_layer] = kept_for_backward(model, torch.arange(80).view(2, 40) % 40)
    assert (kept[4] - kept[2]) / 2 / (4 * 80 * 256) == pytest.approx(fits.NUMBERS[method], rel=0.03)

@pytest.mark.parametrize("method", QUANTIZED)
def test_bytes_of_a_weight_are_those_of_quantize(method):
    """A formula with 4 bits for nf4 forgets its scales, an eighth more."""
    parts = pack(torch.randn(256, 256), method)
    size = sum(part.numel() * part.element_size() for part in parts) / 256**2
    rows = 4 / 256 if method == "int8" else 0    # one scale for each row, which the formula leaves out
    assert size == pytest.approx(fits.BYTES[method] + rows, rel=1e-6)

ROWS = places.read_csv(places.RESULTS / "fits.csv") if (places.RESULTS / "fits.csv").exists() else []

@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['model']} {r['method']} {r['checkpointing']}")
def test_the_formula_is_within_15_percent_of_what_was_measured(row):
    """The table's computed cells are worth what the formula is."""
    checkpointing = row["checkpointing"] == "True"
    computed = fits.predicted(fits.MODELS[row["model"]], row["method"], int(row["tokens"]), checkpointing)
    assert computed / 1e9 == pytest.approx(float(row["peak_gb"]), rel=0.15)

def test_the_random_model_can_be_loaded_and_has_gpt2s_statistics(tmp_path):
    """It is written in shards, one block at a time, so names and shapes are written by hand."""
    config = GPTConfig(**SIZES)
    fits.write_random(config, tmp_path / "m")
    model = GPT.from_pretrained(tmp_path / "m")
    assert model.config == config and torch.equal(model.transformer.ln_f.weight, torch.ones(SIZES["n_embd"]))
    assert 0.015 < model.transformer.h[1].mlp.c_fc.weight.std() < 0.025
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == SIZES["n_layer"] + 1

def test_a_row_replaces_the_one_of_the_same_measurement(tmp_path):
    """Each row takes minutes, so a call for one row must keep the others."""
    row = dict.fromkeys(fits.HEAD, "x") | {"model": "gpt2", "method": "nf4", "checkpointing": False, "peak_gb": 1.0}
    fits.put(tmp_path / "fits.csv", row)
    fits.put(tmp_path / "fits.csv", row | {"method": "full", "peak_gb": 3.0})
    fits.put(tmp_path / "fits.csv", row | {"peak_gb": 2.0})
    rows = places.read_csv(tmp_path / "fits.csv")
    assert [(r["method"], float(r["peak_gb"])) for r in rows] == [("full", 3), ("nf4", 2)]
    table = fits.fits_table(tmp_path).splitlines()
    line = next(line for line in table if line.startswith("| gpt2 | 124M | adapters on nf4"))
    assert "| 2.00 measured |" in line and "computed |" in line and line.endswith("| 4 GB |")
    assert len(table) == 2 + 4 * 5 and sum("measured" in line for line in table) == 2

@pytest.mark.slow
def test_one_update_is_measured_by_the_real_script(tmp_path):
    """A job that patches too much would measure something else: here the run's files are those of train_pref.py."""
    try:
        data.get_tokenizer("pairs", 50257)
    except ValueError:
        pytest.skip("GPT-2's tokenizer is not there, and there is no network")
    fits.write_random(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=256), tmp_path / "m")
    job = {"folder": str(tmp_path / "m"), "scratch": str(tmp_path), "method": "nf4", "checkpointing": True,
           "max_len": 256}
    got = bench.in_process("fits", job)
    args = json.loads((tmp_path / "run" / "args.json").read_text())["args"]
    assert args["quantize"] == "nf4" and args["activation_checkpointing"] and args["grad_accum"] == 8
    assert (tmp_path / "run" / "result.json").exists() and 0.2 < got["peak"] < 1 and got["tokens"] == 308
