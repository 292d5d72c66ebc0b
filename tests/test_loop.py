"""
The training loop: schedule, early stopping, gradient accumulation, saved files, and resuming after an interruption.
"""
import csv
import json
import math
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import loop
from support import cli, log, parallel
from support.optimizer import AdamW

class Line(torch.nn.Module):
    """y = a x + b, with dropout before it. Dropout has no effect in evaluation."""
    def __init__(self, dropout=0.0):
        super().__init__()
        self.a, self.b = torch.nn.Parameter(torch.tensor([[0.5]])), torch.nn.Parameter(torch.zeros(1))
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(x) @ self.a + self.b

class Stream:
    """An endless stream of batches of 1 to 4 points of y = 3 x - 1, a function of the index."""
    def __getitem__(self, i):
        x = torch.randn(1 + i % 4, 1, generator=torch.Generator().manual_seed(i))
        return {"x": x, "y": 3 * x - 1, "weight": len(x)}

VAL = [Stream()[1000], Stream()[1001]]

def squared_error(model):
    def compute_loss(batch):
        loss = (model(batch["x"]) - batch["y"]).pow(2).mean()
        return loss, {"error": loss.detach().sqrt()}
    return compute_loss

def fit(model, out_dir, save=lambda folder: None, compute_loss=None, train=None, val=VAL, **flags):
    flags = dict(max_steps=12, eval_every=4, lr=0.05) | flags
    out_dir.mkdir(exist_ok=True)
    compute_loss = compute_loss or squared_error(model)
    return loop.fit(model, compute_loss, train or Stream(), val, out_dir=out_dir, save=save, **flags)

def log_rows(run):
    """(step, split, metric, value) of each line of a run's log, in file order."""
    with open(Path(run) / "log.csv", newline="") as f:
        return [(int(r["step"]), r["split"], r["metric"], float(r["value"])) for r in csv.DictReader(f)]

# ---------------------------------------------------------------------------------------------------------------------
# schedule and stopping

def test_cosine_lr_by_hand():
    """A warmup that starts at 0 wastes the first update. A cosine counted from step 0 is too low after the warmup."""
    lr = [loop.cosine_lr(step, 1.0, 0.1, 4, 12) for step in range(13)]
    assert lr[:4] == [0.25, 0.5, 0.75, 1.0]
    assert lr[4] == 1.0 and lr[8] == pytest.approx(0.55) and lr[12] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(lr[3:], lr[4:]))
    assert loop.cosine_lr(0, 1.0, 0.0, 0, 1) == 1.0

def test_annealing_by_hand():
    """
    Update 1 is the first and max_steps the last, where the value is the end's. Step 0 is validation before any
    update.
    """
    line = [loop.anneal(step, 0.0, 1.0, "linear", 4) for step in range(5)]
    assert line == [0.25, 0.25, 0.5, 0.75, 1.0]    # never exactly 0, where dpo would have no gradient
    assert loop.anneal(2, 1.0, 0.01, "cosine", 4) == pytest.approx(0.505)
    assert loop.anneal(4, 1.0, 0.01, "cosine", 4) == pytest.approx(0.01)
    assert loop.anneal(1, 1.0, 0.0, "cosine", 4) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert loop.anneal(3, 0.7, None, None, 4) == 0.7 and loop.anneal(3, 0.7, 0.1, "constant", 4) == 0.7
    assert loop.anneal(2, 0.0, 1.0, None, 4) == 0.5    # linear unless told otherwise

def test_compute_loss_is_told_the_number_of_the_update(tmp_path):
    """A schedule that counts calls instead is wrong with gradient accumulation and after a resumed run."""
    model, seen = Line(), {"train": [], "val": []}
    def compute_loss(batch):
        seen["train" if model.training else "val"].append(batch["step"])
        return squared_error(model)(batch)
    fit(model, tmp_path, compute_loss=compute_loss, max_steps=3, eval_every=2, grad_accum=2)
    assert seen["train"] == [1, 1, 2, 2, 3, 3] and seen["val"] == [0, 0, 2, 2, 3, 3]

def test_early_stopping_counts_evaluations_in_a_row():
    """A counter that is not reset by a better value stops a run that still improves now and then."""
    stopper = loop.EarlyStopping(2)
    seen = [(stopper.update(v, i), stopper.stop) for i, v in enumerate([3.0, 2.0, 2.5, 1.0, 1.0, 1.5])]
    assert seen == [(True, False), (True, False), (False, False), (True, False), (False, False), (False, True)]
    assert (stopper.best, stopper.best_step) == (1.0, 3)
    never = loop.EarlyStopping(0)
    assert not any(never.update(1.0, i) and never.stop for i in range(9)) and not never.stop

def test_patience_stops_the_run_and_says_so(tmp_path, capsys):
    """At learning rate 0 nothing improves. The run ends two evaluations after the first."""
    result = fit(Line(), tmp_path, lr=0.0, patience=2, max_steps=100)
    assert result["step"] == 8 and result["best_step"] == 0
    assert "early stopping at step 8" in capsys.readouterr().out

# ---------------------------------------------------------------------------------------------------------------------
# one update

def test_accumulated_ragged_batches_give_the_gradient_of_their_union():
    """A mean of batch means gives a point of a small batch more weight: with 1 and 4 points, four times as much."""
    small, large = Stream()[0], Stream()[3]
    union = {"x": torch.cat([small["x"], large["x"]]), "y": torch.cat([small["y"], large["y"]]), "weight": 5}
    grads = []
    for batches in ([small, large], [union]):
        model = Line()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        metrics = loop.train_step(model, squared_error(model), batches, optimizer, grad_clip=0)
        grads.append([model.a.grad.item(), model.b.grad.item(), metrics["loss"]])
    assert grads[0] == pytest.approx(grads[1], rel=1e-5, abs=1e-6)

def test_accumulated_gradients_by_hand():
    """
    Batches of 1, 1 and 2 pairs have the losses a, 2a and 5a. The gradient of the mean over pairs is
    (1 + 2 + 2 * 5) / 4. A mean over batches would give (1 + 2 + 5) / 3.
    """
    a = torch.nn.Parameter(torch.tensor(1.0))
    compute_loss = lambda batch: (batch["slope"] * a, {"slope": batch["slope"]})
    batches = [{"slope": slope, "weight": weight} for slope, weight in ((1.0, 1), (2.0, 1), (5.0, 2))]
    parts = loop.accumulate_gradients(compute_loss, batches, total=4)
    assert a.grad.item() == 13 / 4
    found = [(weight, m["slope"], m["loss"].item()) for weight, m in parts]
    assert found == [(1, 1.0, 1.0), (1, 2.0, 2.0), (2, 5.0, 5.0)]
    assert not any(m["loss"].requires_grad for _, m in parts)    # or every graph would stay in memory
    assert parallel.averaged(parts) == {"loss": 13 / 4, "slope": 13 / 4}

def test_matrices_decay_and_vectors_do_not():
    """The groups go by a parameter's dimensions. Frozen parameters are in neither."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1))
    model[2].requires_grad_(False)
    matrices, vectors = loop.make_optimizer(model, lr=0.1, weight_decay=0.5, adam_epsilon=1e-6).param_groups
    assert [p.shape for p in matrices["params"]] == [(3, 2)] and [p.shape for p in vectors["params"]] == [(3,)] * 3
    assert (matrices["weight_decay"], vectors["weight_decay"], vectors["eps"]) == (0.5, 0.0, 1e-6)

def test_the_optimizer_is_adamw_to_the_bit_and_does_not_import_the_compiler(monkeypatch):
    """torch._dynamo takes longer to import than many a test runs. PyTorch's own AdamW imports it in every step."""
    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    how = dict(lr=0.1, weight_decay=0.5, betas=(0.9, 0.95), eps=1e-3, fused=True)
    states = []
    for kind, model in zip((torch.optim.AdamW, AdamW), models):
        if kind is AdamW:    # from here on, `import torch._dynamo` raises
            monkeypatch.setitem(sys.modules, "torch._dynamo", None)
        optimizer = kind(model.parameters(), **how)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
            again = kind(model.parameters(), **how)
            again.load_state_dict(optimizer.state_dict())
            optimizer = again
        states.append([*model.parameters(), optimizer.state_dict()])
    assert all(torch.equal(a, b) for a, b in zip(states[0][:2], states[1][:2]))
    assert states[0][2]["param_groups"] == states[1][2]["param_groups"]
    assert all(torch.equal(x, states[1][2]["state"][i][key]) for i, part in states[0][2]["state"].items()
               for key, x in part.items())

def test_evaluate_weighs_batches_by_their_size():
    """The last, smaller batch must count less in the validation loss than the others."""
    model, whole = Line(), {k: torch.cat([b[k] for b in VAL]) for k in ("x", "y")}
    want = (model(whole["x"]) - whole["y"]).pow(2).mean().item()
    assert loop.evaluate(model, squared_error(model), VAL)["loss"] == pytest.approx(want, rel=1e-6)

def test_dropout_is_on_in_training_and_off_in_evaluation():
    """With dropout on, the validation loss is noise and early stopping stops by chance."""
    model = Line(dropout=0.5)
    losses = {loop.evaluate(model.train(), squared_error(model), VAL)["loss"] for _ in range(5)}
    assert len(losses) == 1 and model.training
    optimizer = torch.optim.SGD(model.eval().parameters(), lr=0.0)
    assert len({loop.train_step(model, squared_error(model), [Stream()[3]], optimizer)["loss"] for _ in range(9)}) > 1

def test_grad_norm_is_the_norm_before_clipping_and_0_does_not_clip():
    """Logged after clipping, the norm would read 1.0 for ever. Taken as a limit, 0 would freeze the model."""
    for clip in (0.0, 1e-3):
        model = Line()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        metrics = loop.train_step(model, squared_error(model), [Stream()[3]], optimizer, clip)
        moved = ((model.a - 0.5) ** 2 + model.b ** 2).sum().sqrt().item()
        assert metrics["grad_norm"] > 0.1 and moved == pytest.approx(clip or metrics["grad_norm"], rel=1e-3)

# ---------------------------------------------------------------------------------------------------------------------
# float16: a scaled loss

def scaled(scale=1024.0):
    return torch.amp.GradScaler("cpu", init_scale=scale)

def overflowing(model, yes=(True,)):
    """The gradient is infinite in those updates where `yes` says so."""
    left = list(yes)
    model.a.register_hook(lambda g: g * math.inf if left and left.pop(0) else g)
    return model

def test_an_overflow_leaves_out_the_update_and_halves_the_scale():
    """An overflow from a large scale is no divergence. Stopping there ends most float16 runs at their first update."""
    model = overflowing(Line())
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5, fused=True), scaled()
    step = lambda: loop.train_step(model, squared_error(model), [Stream()[3]], optimizer, 1.0, None, scaler)
    metrics = step()
    assert not math.isfinite(metrics["grad_norm"]) and math.isfinite(metrics["loss"])
    assert (model.a.item(), model.b.item()) == (0.5, 0.0)    # weight decay has not moved them either
    assert scaler.get_scale() == 512
    assert all(not state[key].any() for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq", "step"))
    assert math.isfinite(step()["grad_norm"]) and model.a.item() != 0.5 and scaler.get_scale() == 512

def test_without_a_scaler_the_same_gradient_stops_the_run():
    """In float32 and bfloat16 nothing was scaled, so an infinite gradient means divergence."""
    for scaler in (None, torch.amp.GradScaler("cpu", enabled=False)):
        model = overflowing(Line())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        with pytest.raises(FloatingPointError, match="gradient norm"):
            loop.train_step(model, squared_error(model), [Stream()[3]], optimizer, 1.0, None, scaler)
        assert model.a.item() == 0.5

def test_a_loss_that_is_not_finite_stops_a_scaled_run_too():
    """The scale does not cause a NaN loss. Left to the scaler, such a run would skip every update to its end."""
    model, scaler = Line(), scaled()
    nan = lambda batch: (squared_error(model)(batch)[0] * math.nan, {})
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with pytest.raises(FloatingPointError, match="loss nan"):
        loop.train_step(model, nan, [Stream()[3]], optimizer, 1.0, None, scaler)
    assert model.a.item() == 0.5

@pytest.mark.parametrize("clip", [0.0, 1e-3, 1.0])
def test_the_scale_is_undone_before_the_norm_is_taken_and_clipped(clip):
    """
    Clipped at 1.0 while it is 1024 times too large, every gradient is cut to a thousandth. The log would show the scale
    instead of the norm.
    """
    results = []
    for scaler in (None, scaled(), scaled(8.0)):    # powers of two: the numbers are the same to the bit
        model = Line()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        batches = [Stream()[1], Stream()[3]]
        metrics = loop.train_step(model, squared_error(model), batches, optimizer, clip, None, scaler)
        results.append((metrics, model.a.item(), model.b.item()))
    assert results[0] == results[1] == results[2]
    moved = math.hypot(results[0][1] - 0.5, results[0][2])
    assert results[0][0]["grad_norm"] > 1 and moved == pytest.approx(clip or results[0][0]["grad_norm"], rel=1e-3)

HALF = dict(autocast=torch.autocast("cpu", torch.float16))

@pytest.mark.usefixtures("painted")
def test_a_float16_run_finds_its_scale_and_learns(tmp_path):
    """
    The scale starts at 65,536, which is too large for gradients of order 1. The first updates only search for a
    scale.
    """
    model = Line()
    result = fit(model, tmp_path, max_steps=40, eval_every=10, **HALF)
    norms = [v for _, _, metric, v in log_rows(tmp_path) if metric == "grad_norm"]
    skipped = sum(not math.isfinite(v) for v in norms)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert result["step"] == len(norms) == 40 and skipped and state["scaler"]["scale"] == 2.0 ** (16 - skipped)
    assert {int(s["step"]) for s in state["optimizer"]["state"].values()} == {40 - skipped}
    assert result["best_step"] == 40 and model.a.item() > 1
    assert (tmp_path / "curves.png").exists()    # the plot skips infinite points

def test_a_float16_run_resumed_equals_one_not_stopped(tmp_path):
    """A scale that restarts at 65,536 skips updates that the uninterrupted run made."""
    whole, cut, again = Line(), Line(), Line()
    flags = dict(max_steps=16, eval_every=8, patience=9, **HALF)
    fit(whole, tmp_path / "whole", **flags)
    class Interrupting(Stream):
        def __getitem__(self, i):
            if i == 9:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(i)
    with pytest.raises(SystemExit):
        fit(cut, tmp_path / "cut", train=Interrupting(), **flags)
    assert torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["scaler"]["scale"] < 2 ** 16
    fit(again, tmp_path / "cut", resume=True, **flags)
    assert torch.equal(again.a, whole.a) and torch.equal(again.b, whole.b)
    assert (tmp_path / "cut" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()
    states = [torch.load(tmp_path / d / "state.pt", weights_only=True)["scaler"] for d in ("whole", "cut")]
    assert states[0] == states[1]

@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_only_a_float16_run_is_scaled(dtype, tmp_path):
    """
    An autocast that is off still has a dtype, float16 on a GPU. A scaler in a float32 run skips the updates that should
    have stopped it.
    """
    default = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)    # as it is for CUDA
    try:
        _, autocast = cli.set_up(seed=0, device="cpu", dtype=dtype)
    finally:
        torch.set_autocast_dtype("cpu", default)
    fit(Line(), tmp_path, autocast=autocast, max_steps=4)
    assert bool(torch.load(tmp_path / "state.pt", weights_only=True)["scaler"]) == (dtype == "float16")

# ---------------------------------------------------------------------------------------------------------------------
# the run

def test_it_evaluates_before_the_first_update_and_at_the_end(tmp_path):
    """Without the first number there is nothing to compare with. For dpo it is log 2."""
    model = Line()
    before = loop.evaluate(model, squared_error(model), VAL)["loss"]
    fit(model, tmp_path, max_steps=10)
    log = log_rows(tmp_path)
    assert log[0][:3] == (0, "val", "loss") and log[0][3] == pytest.approx(before, rel=1e-6)
    assert [s for s, split, metric, _ in log if (split, metric) == ("val", "loss")] == [0, 4, 8, 10]
    assert [s for s, split, metric, _ in log if (split, metric) == ("train", "lr")] == list(range(1, 11))

def test_the_best_weights_are_kept_not_the_last(tmp_path):
    """The last weights may be the worst: here training moves away from the validation targets."""
    model, saved = Line(), []
    away = lambda batch: (((model(batch["x"]) - batch["y"] * batch["sign"]).pow(2).mean()), {})
    train = [{**Stream()[3], "sign": 1 if i < 6 else -1} for i in range(20)]
    result = fit(model, tmp_path, save=lambda folder: saved.append(model.a.item()), compute_loss=away, train=train,
                 val=[{**b, "sign": 1} for b in VAL], max_steps=20, eval_every=2, lr=0.1)
    assert 0 < result["best_step"] < 20 and len(saved) == 1 + result["best_step"] // 2
    assert abs(saved[-1] - 3) < abs(model.a.item() - 3)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["model"]["a"].item() == model.a.item()

def test_frozen_parameters_stay_frozen(tmp_path):
    """If the optimizer holds a parameter without a gradient, weight decay moves it."""
    model = Line()
    model.a.requires_grad_(False)
    fit(model, tmp_path, weight_decay=0.5)
    assert model.a.item() == 0.5 and model.b.item() != 0

def test_weight_decay_leaves_biases_alone(tmp_path):
    """On a bias or a layer norm, decay pulls towards a wrong function and not towards a simpler one."""
    model, still = Line(), lambda batch: (0.0 * (model.a.sum() + model.b.sum()), {})
    model.b.data.fill_(1.0)
    fit(model, tmp_path, compute_loss=still, weight_decay=0.5)
    assert model.b.item() == 1.0 and model.a.item() < 0.5

def test_a_run_resumed_equals_a_run_not_stopped(tmp_path):
    """
    Optimizer moments, schedule, position, dropout's random state, early stopping and log: a forgotten one shows
    here.
    """
    whole, cut = Line(dropout=0.3), Line(dropout=0.3)
    torch.manual_seed(5)
    fit(whole, tmp_path / "whole", grad_accum=2, patience=9)

    class Interrupting(Stream):
        def __getitem__(self, i):
            if i == 13:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(i)
    torch.manual_seed(5)
    with pytest.raises(SystemExit) as stop:
        fit(cut, tmp_path / "cut", train=Interrupting(), grad_accum=2, patience=9)
    assert stop.value.code == 130
    torch.manual_seed(99)
    again = Line(dropout=0.3)
    fit(again, tmp_path / "cut", grad_accum=2, patience=9, resume=True)
    assert torch.equal(again.a, whole.a) and torch.equal(again.b, whole.b)
    assert (tmp_path / "cut" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()
    results = [json.loads((tmp_path / d / "result.json").read_text()) for d in ("whole", "cut")]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}

def test_an_interruption_says_how_to_go_on(tmp_path, capsys):
    """A scheduler sends SIGTERM. The last finished update is saved, and the command to resume is printed."""
    class Interrupting(Stream):
        def __getitem__(self, i):
            if i == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(i)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        fit(Line(), tmp_path, train=Interrupting(), go_on="python x.py --resume")
    assert "after 6 updates" in (err := capsys.readouterr().err) and "python x.py --resume" in err
    assert torch.load(tmp_path / "state.pt", weights_only=True)["counters"]["step"] == 6
    assert signal.getsignal(signal.SIGTERM) == before and not (tmp_path / "result.json").exists()

@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_with_one_line(tmp_path, what):
    """One update with a NaN destroys every weight. The weights must still be those of the step before."""
    model = Line()
    def compute_loss(batch):
        loss, metrics = squared_error(model)(batch)
        if model.training and batch["weight"] == 3:
            loss = loss * float("nan") if what == "loss" else loss + (model.a - model.a.detach()).abs().sqrt().sum()
        return loss, metrics
    with pytest.raises(SystemExit) as stop:
        fit(model, tmp_path, compute_loss=compute_loss)
    assert "step 2" in str(stop.value) and "--lr" in str(stop.value) and "\n" not in str(stop.value)
    assert model.a.isfinite().all()

def test_a_damaged_state_is_refused_in_one_line(tmp_path):
    """Half a checkpoint must not be read as a whole one."""
    fit(Line(), tmp_path, max_steps=4)
    (tmp_path / "state.old.pt").unlink()
    state = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(state[:len(state) // 2])
    with pytest.raises(SystemExit, match="state.pt") as stop:
        fit(Line(), tmp_path, resume=True)
    assert "\n" not in str(stop.value)

@pytest.mark.usefixtures("painted")
def test_the_curves_are_drawn_from_the_log(tmp_path):
    """A PNG with every metric. The picture must not need the run in memory."""
    fit(Line(), tmp_path)
    (tmp_path / "curves.png").unlink()
    loop.plot_curves(tmp_path)
    picture = tmp_path / "curves.png"
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 10_000

def test_a_constant_has_no_panel_and_no_cell_is_empty(tmp_path):
    """
    A constant beta, or a learning rate of 0, shows nothing. Nine panels in rows of four would leave three cells
    empty.
    """
    series = {"loss": {"train": [(1, 0.7), (2, 0.6)]},
              "beta": {"train": [(1, 0.1), (2, 0.1)], "val": [(0, 0.1)]},
              "grad_norm": {"train": [(1, math.inf), (2, 1.0), (3, 1.0)]},
              "accuracy": {"train": [(1, 0.5)], "val": [(0, 0.6)]}}
    assert log.varying(series) == ["loss", "accuracy"] and log.varying({"lr": {"train": [(1, 0.0)]}}) == ["lr"]
    assert [log.row_sizes(n) for n in (1, 4, 5, 7, 9, 10)] == [[1], [4], [3, 2], [4, 3], [3, 3, 3], [4, 3, 3]]
    units = [log.unit(m) for m in ("rewards/margins", "rewards/accuracies", "logps/chosen", "loss")]
    assert units == ["beta x nats", "share of pairs", "nats per completion", ""]

def test_a_picture_that_cannot_be_drawn_does_not_end_a_run(tmp_path, capsys):
    """The run is finished and its weights are saved, so only the picture may be missing."""
    (tmp_path / "log.csv").write_text("step,split,metric,value\n")
    log.plot_curves(tmp_path)
    assert "curves.png was not drawn" in capsys.readouterr().out and not (tmp_path / "curves.png").exists()
