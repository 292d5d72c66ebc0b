"""Tests of support/checkpoint.py and of resuming: atomic writes, checksums, damaged files, full disks, bad updates."""
import errno
import os
import random
import shutil
import subprocess

import pytest
import torch

import loop
from support import checkpoint
from test_loop import Line, Stream, fit, log_rows

def same_log(run, other):
    """Whether two runs have the same log, byte for byte."""
    return (run / "log.csv").read_bytes() == (other / "log.csv").read_bytes()

def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    """Any error may stop the writing. It must not leave half a file or a temporary file."""
    path = tmp_path / "x.json"
    checkpoint.write_json(path, {"a": 1})
    full, broken = OSError(errno.ENOSPC, "No space left"), RuntimeError("iostream error")
    for error in (KeyboardInterrupt, ValueError("no pairs"), full, broken):
        with pytest.raises((KeyboardInterrupt, ValueError, OSError)) as stop, checkpoint.replacing(path) as part:
            part.write_text("half")
            raise error
        assert path.read_text() == '{\n  "a": 1\n}\n' and os.listdir(tmp_path) == ["x.json"]
        if isinstance(error, (OSError, RuntimeError)):
            assert stop.type is OSError and str(path) in str(stop.value) and "\n" not in str(stop.value)

def test_a_name_that_cannot_be_taken_is_one_line(tmp_path):
    """The path may be a folder, or its parent a file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "folder", tmp_path / "file" / "x.json"):
        with pytest.raises(OSError, match="could not be written"):
            checkpoint.write_json(path, {})

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_every_bit_of_the_weights_is_checked(tmp_path, dtype):
    """safetensors itself loads a changed weight without an error."""
    state = {"a": torch.arange(12).reshape(3, 4).to(dtype), "b": torch.ones(()).to(dtype)}
    path, rng = tmp_path / "x.safetensors", random.Random(0)
    checkpoint.save_tensors(state, path)
    content = path.read_bytes()
    assert all(torch.equal(v, state[k]) for k, v in checkpoint.load_tensors(path).items())
    for at in [len(content) - 1, *(rng.randrange(len(content)) for _ in range(100))]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1:])
        try:
            got = checkpoint.load_tensors(path)
        except ValueError as e:
            assert "damaged" in str(e) and "\n" not in str(e)
        else:    # a byte without a meaning
            assert at != len(content) - 1 and checkpoint.digest(got) == checkpoint.digest(state)

def test_the_same_weights_are_the_same_bytes(tmp_path):
    """safetensors writes its metadata in a random order, and names need not be ASCII."""
    for i in range(12):
        checkpoint.save_tensors({"ä": torch.ones(3), "b.ü": torch.zeros(2, 2)}, tmp_path / str(i))
    assert len({(tmp_path / str(i)).read_bytes() for i in range(12)}) == 1
    assert checkpoint.load_tensors(tmp_path / "0")["ä"].tolist() == [1, 1, 1]

def test_files_from_elsewhere_need_no_checksum(tmp_path):
    """Files of the hub have no checksum of ours."""
    from safetensors.torch import save_file
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.equal(checkpoint.load_tensors(tmp_path / "x.safetensors")["a"], torch.ones(2))

def test_the_digest_sees_names_values_and_order_alone():
    """Strides and the order of insertion must not change it, as loading does not preserve them."""
    a, b = torch.randn(3, 4), torch.randn(2)
    same = {"b": b.clone(), "a": a.t().contiguous().t()}
    assert checkpoint.digest({"a": a, "b": b}) == checkpoint.digest(same)
    assert len({checkpoint.digest(s) for s in ({"a": a}, {"b": a}, {"a": a + 1}, {"a": a, "b": b})}) == 4

# ---------------------------------------------------------------------------------------------------------------------
# resuming

@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, damage, capsys):
    """The result must still be that of a run that was not stopped."""
    whole, model, again = Line(0.3), Line(0.3), Line(0.3)
    torch.manual_seed(1)
    fit(whole, tmp_path / "whole")
    torch.manual_seed(1)
    fit(model, tmp_path / "run")
    state = tmp_path / "run" / "state.pt"
    content = bytearray(state.read_bytes())
    content[content.find(b"data/0") + 64] ^= 16
    if damage == "gone":
        state.unlink()
    else:
        state.write_bytes(content if damage == "bit" else content[:len(content) // 2])
    torch.manual_seed(99)
    result = fit(again, tmp_path / "run", resume=True)
    assert result["step"] == 12 and torch.equal(again.a, whole.a)
    assert same_log(tmp_path / "run", tmp_path / "whole")
    if damage != "gone":
        line = next(x for x in capsys.readouterr().out.splitlines() if "state.old.pt" in x)
        assert "damaged" in line and str(state) in line

def test_no_bit_of_a_state_can_change_unseen(tmp_path):
    """torch.load loads a changed weight without an error."""
    model = Line()
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    checkpoint.save_state(tmp_path, model, optimizer, scaler, {"step": 1}, 0)
    path, rng, refused = tmp_path / "state.pt", random.Random(0), 0
    content, want = path.read_bytes(), checkpoint.read_state(path)
    for _ in range(150):
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1:])
        try:
            got = checkpoint.read_state(path)
        except ValueError as e:
            assert "state.pt: damaged" in str(e)
            refused += 1
        else:
            assert str(got) == str(want)
    assert refused > 50

def test_a_run_killed_before_its_first_state_begins_again(tmp_path):
    """Its log may already have rows, which must not stay."""
    fit(Line(), tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "log.csv").write_text("step,split,metric,value\n0,val,loss,1\n0,va")
    fit(Line(), tmp_path / "cut", resume=True)
    assert same_log(tmp_path / "cut", tmp_path / "whole")

def test_a_log_that_has_lost_rows_is_said_and_the_run_goes_on(tmp_path, capsys):
    """The state is worth more than the rows of its updates. Half a row must not be joined with the next one."""
    fit(Line(), tmp_path, max_steps=8)
    log = tmp_path / "log.csv"
    log.write_bytes(log.read_bytes()[:100])
    fit(Line(), tmp_path, resume=True)
    out = capsys.readouterr().out
    assert "log.csv" in out and "missing" in out
    assert {step for step, *_ in log_rows(tmp_path)} >= {9, 12}

def test_a_damaged_log_does_not_cost_the_result(tmp_path, capsys):
    """Only the picture may be missing, and a message must give the reason."""
    fit(Line(), tmp_path, max_steps=8)
    log = tmp_path / "log.csv"
    log.write_bytes(log.read_bytes().replace(b"loss", b"\xff\n\x00,", 1))
    os.remove(tmp_path / "result.json")
    fit(Line(), tmp_path, resume=True, max_steps=12)
    out = capsys.readouterr().out
    assert "curves.png was not drawn" in out and "log.csv, line" in out
    assert (tmp_path / "result.json").exists()

@pytest.mark.parametrize("k", range(1, 6))
def test_a_full_disk_ends_in_one_line_and_costs_no_more_than_an_evaluation(tmp_path, monkeypatch, k):
    """The disk is full at the k-th write. With room again, the resumed run must end like one that was not stopped."""
    whole, cut, again = Line(), Line(), Line()
    fit(whole, tmp_path / "whole")
    real, calls = os.fsync, []
    def full(fd):
        calls.append(fd)
        if len(calls) == k:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        if k < 5:
            with pytest.raises(SystemExit) as stop:
                fit(cut, tmp_path / "cut", go_on="python x.py --resume")
            text = str(stop.value)
            assert "No space left" in text and "python x.py --resume" in text and "\n" not in text
        else:
            with pytest.raises((OSError, SystemExit)):    # result.json
                fit(cut, tmp_path / "cut")
    assert not [p for p in os.listdir(tmp_path / "cut") if p.endswith(".tmp")]
    fit(again, tmp_path / "cut", resume=True)
    assert torch.equal(again.a, whole.a) and same_log(tmp_path / "cut", tmp_path / "whole")

@pytest.mark.parametrize("size", ["8k", "12k", "16k", "24k"])
def test_a_disk_that_is_really_full(tmp_path, size):
    """A real file system may fail outside of os.fsync. A small one is mounted, then enlarged to resume the run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        whole, again = Line(), Line()
        fit(whole, tmp_path / "whole")
        with pytest.raises(SystemExit) as stop:
            fit(Line(), disk / "run", go_on="python x.py --resume")
        text = str(stop.value)
        assert "could not be written" in text and "python x.py --resume" in text and "\n" not in text
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        fit(again, disk / "run", resume=True)
        assert torch.equal(again.a, whole.a) and same_log(disk / "run", tmp_path / "whole")
    finally:
        # -l: pytest still holds the error, which holds the open log
        subprocess.run(["umount", "-l", str(disk)], check=True)

# ---------------------------------------------------------------------------------------------------------------------
# NaN, infinity and spikes

class Rows(Stream):
    """A stream with one bad row, which knows the numbers of its rows."""
    def __init__(self, bad, value):
        self.bad, self.value = bad, value

    def __getitem__(self, i):
        batch = super().__getitem__(i)
        if self.bad // 4 == i:
            batch["y"][self.bad % 4 % len(batch["y"])] = self.value
        return batch

    def one_by_one(self, i):
        batch = self[i]
        for j in range(len(batch["x"])):
            yield 4 * i + j, {"x": batch["x"][j:j + 1], "y": batch["y"][j:j + 1], "weight": 1}

@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_an_update_that_would_do_harm_is_skipped_and_counted(tmp_path, value, capsys):
    """The message must name the update and the row. The weights must not be damaged by them."""
    model = Line()
    result = fit(model, tmp_path, train=Rows(4 * 30 + 1, value), max_steps=40, eval_every=20, on_nonfinite="skip")
    out = capsys.readouterr().out
    assert result["skipped"] == 1 and model.a.isfinite().all() and abs(model.a.item() - 3) < 2
    line = next(x for x in out.splitlines() if "update 31" in x)
    assert f"rows {4 * 30 + 1}" in line and "skipped (1 so far)" in line and "1 updates were skipped" in out
    assert [(s, v) for s, split, k, v in log_rows(tmp_path) if k == "skipped"] == [(31, 1.0)]

@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_by_default_the_run_stops_there_with_the_row(tmp_path, value):
    """A NaN in the data has a cause, which the user should find."""
    with pytest.raises(SystemExit) as stop:
        fit(Line(), tmp_path, train=Rows(4 * 30 + 1, value), max_steps=40, eval_every=20)
    text = str(stop.value)
    assert "update 31" in text and f"rows {4 * 30 + 1}. " in text and "--on_nonfinite" in text

def test_skipping_ends_when_every_update_is_skipped(tmp_path):
    """A run whose weights are NaN must not go on until the end of the night."""
    model = Line()
    def ruined(batch):
        return (model.a.sum() * (float("nan") if model.training else 1.0), {})
    with pytest.raises(SystemExit, match="update 10.*the tenth in a row"):
        fit(model, tmp_path, compute_loss=ruined, max_steps=40, on_nonfinite="skip")

def test_a_resumed_run_remembers_what_it_skipped_and_what_is_usual(tmp_path):
    """Without the memory, a spike just after the start would be trained on."""
    train = dict(train=Rows(4 * 30 + 1, 1e6), on_nonfinite="skip", eval_every=10)
    whole, cut, again = Line(), Line(), Line()
    fit(whole, tmp_path / "whole", max_steps=60, **train)
    class Stop(Rows):
        def __getitem__(self, i):
            if i == 29:    # the run stops after the update of this batch; the next batch has the spike
                os.kill(os.getpid(), 2)
            return super().__getitem__(i)
    with pytest.raises(SystemExit):
        fit(cut, tmp_path / "cut", max_steps=60, **(train | {"train": Stop(4 * 30 + 1, 1e6)}))
    result = fit(again, tmp_path / "cut", max_steps=60, resume=True, **train)
    assert result["skipped"] == 1 and torch.equal(again.a, whole.a)
    assert same_log(tmp_path / "cut", tmp_path / "whole")

def test_what_losses_usually_do_is_no_spike():
    """Noise, a slow rise, a long tail, and a loss that is mostly 0 must not count as spikes."""
    rng = random.Random(0)
    noise = lambda i: rng.gauss(0.7, 0.2)
    rise = lambda i: 0.01 * i
    long_tail = lambda i: rng.expovariate(1.0)
    mostly_0 = lambda i: 2.5 * (rng.random() < 0.05)
    for draw in (noise, rise, long_tail, mostly_0):
        seen = [draw(i) for i in range(2000)]
        assert all(x <= loop.spike_limit(seen[max(0, i - 50):i]) for i, x in enumerate(seen))
    assert loop.spike_limit([0.7] * 19) == float("inf") and loop.spike_limit([0.7] * 20) < 12
