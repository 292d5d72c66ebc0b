"""Files that survive: written beside and renamed, checksums, the state before the last, full disks."""
import errno
import os
import random
import shutil
import subprocess

import pytest
import torch

from support import checkpoint
import loop
from test_loop import Line, Stream, fit, log_rows

def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    """Whatever stops the writing, and nothing is left beside it."""
    path = tmp_path / "x.json"
    checkpoint.write_json(path, {"a": 1})
    for error in (KeyboardInterrupt, ValueError("no pairs"), OSError(errno.ENOSPC, "No space left"), RuntimeError("iostream error")):
        with pytest.raises((KeyboardInterrupt, ValueError, OSError)) as stop, checkpoint.replacing(path) as part:
            part.write_text("half")
            raise error
        assert path.read_text() == '{\n  "a": 1\n}\n' and os.listdir(tmp_path) == ["x.json"]
        if isinstance(error, (OSError, RuntimeError)):
            assert stop.type is OSError and str(path) in str(stop.value) and "\n" not in str(stop.value)

def test_a_name_that_cannot_be_taken_is_one_line(tmp_path):
    """A folder of that name, a parent that is a file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "folder", tmp_path / "file" / "x.json"):
        with pytest.raises(OSError, match="could not be written"):
            checkpoint.write_json(path, {})

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_every_bit_of_the_weights_is_checked(tmp_path, dtype):
    """safetensors itself reads a changed weight as if it were one."""
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
        else:    # a byte that means nothing
            assert at != len(content) - 1 and checkpoint.digest(got) == checkpoint.digest(state)

def test_the_same_weights_are_the_same_bytes(tmp_path):
    """safetensors writes its metadata in a random order; and names need not be ASCII."""
    for i in range(12):
        checkpoint.save_tensors({"ä": torch.ones(3), "b.ü": torch.zeros(2, 2)}, tmp_path / str(i))
    assert len({(tmp_path / str(i)).read_bytes() for i in range(12)}) == 1
    assert checkpoint.load_tensors(tmp_path / "0")["ä"].tolist() == [1, 1, 1]

def test_files_from_elsewhere_need_no_checksum(tmp_path):
    """The hub's have none."""
    from safetensors.torch import save_file
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.equal(checkpoint.load_tensors(tmp_path / "x.safetensors")["a"], torch.ones(2))

def test_the_digest_sees_names_values_and_order_alone():
    """Not the strides, nor the order in which they were put in."""
    a, b = torch.randn(3, 4), torch.randn(2)
    same = {"b": b.clone(), "a": a.t().contiguous().t()}
    assert checkpoint.digest({"a": a, "b": b}) == checkpoint.digest(same)
    assert len({checkpoint.digest(s) for s in ({"a": a}, {"b": a}, {"a": a + 1}, {"a": a, "b": b})}) == 4

# ---------------------------------------------------------------------------------------------------------------------
# going on

@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, damage, capsys):
    """And the result is still that of a run that was not stopped."""
    whole, model, again = Line(0.3), Line(0.3), Line(0.3)
    torch.manual_seed(1)
    fit(whole, tmp_path / "whole")
    torch.manual_seed(1)
    fit(model, tmp_path / "run")
    state = tmp_path / "run" / "state.pt"
    content = bytearray(state.read_bytes())
    content[content.find(b"data/0") + 64] ^= 16
    state.unlink() if damage == "gone" else state.write_bytes(content if damage == "bit" else content[:len(content) // 2])
    torch.manual_seed(99)
    result = fit(again, tmp_path / "run", resume=True)
    assert result["step"] == 12 and torch.equal(again.a, whole.a)
    assert (tmp_path / "run" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()
    if damage != "gone":
        line = next(x for x in capsys.readouterr().out.splitlines() if "state.old.pt" in x)
        assert "damaged" in line and str(state) in line

def test_no_bit_of_a_state_can_change_unseen(tmp_path):
    """torch.load reads a changed weight as if it were one."""
    model = Line()
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoint.save_state(tmp_path, model, optimizer, torch.amp.GradScaler("cpu", enabled=False), {"step": 1}, 0)
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
    """Its log may have rows already."""
    fit(Line(), tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "log.csv").write_text("step,split,metric,value\n0,val,loss,1\n0,va")
    fit(Line(), tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()

def test_a_log_that_has_lost_rows_is_said_and_the_run_goes_on(tmp_path, capsys):
    """A state of 12 updates is worth more than their rows; half a row must not run into the next."""
    fit(Line(), tmp_path, max_steps=8)
    log = tmp_path / "log.csv"
    log.write_bytes(log.read_bytes()[:100])
    fit(Line(), tmp_path, resume=True)
    assert "log.csv" in (out := capsys.readouterr().out) and "missing" in out
    assert {step for step, *_ in log_rows(tmp_path)} >= {9, 12}

def test_a_damaged_log_does_not_cost_the_result(tmp_path, capsys):
    """Only the picture is missing, and why is said."""
    fit(Line(), tmp_path, max_steps=8)
    log = tmp_path / "log.csv"
    log.write_bytes(log.read_bytes().replace(b"loss", b"\xff\n\x00,", 1))
    os.remove(tmp_path / "result.json")
    fit(Line(), tmp_path, resume=True, max_steps=12)
    assert "curves.png was not drawn" in (out := capsys.readouterr().out) and "log.csv, line" in out
    assert (tmp_path / "result.json").exists()

@pytest.mark.parametrize("k", range(1, 6))
def test_a_full_disk_ends_in_one_line_and_costs_no_more_than_an_evaluation(tmp_path, monkeypatch, k):
    """At the k-th file that is brought to it; then there is room again, and the run ends as if nothing had been."""
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
            assert "No space left" in (text := str(stop.value)) and "python x.py --resume" in text and "\n" not in text
        else:
            with pytest.raises((OSError, SystemExit)):    # result.json
                fit(cut, tmp_path / "cut")
    assert not [p for p in os.listdir(tmp_path / "cut") if p.endswith(".tmp")]
    fit(again, tmp_path / "cut", resume=True)
    assert torch.equal(again.a, whole.a) and (tmp_path / "cut" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()

@pytest.mark.parametrize("size", ["8k", "12k", "16k", "24k"])
def test_a_disk_that_is_really_full(tmp_path, size):
    """A small file system of its own, where one may be mounted; then it is made larger, and the run goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)],
                                                       capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        whole, again = Line(), Line()
        fit(whole, tmp_path / "whole")
        with pytest.raises(SystemExit) as stop:
            fit(Line(), disk / "run", go_on="python x.py --resume")
        assert "could not be written" in (text := str(stop.value)) and "python x.py --resume" in text and "\n" not in text
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        fit(again, disk / "run", resume=True)
        assert torch.equal(again.a, whole.a) and (disk / "run" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)    # pytest still holds the error, and it the log

# ---------------------------------------------------------------------------------------------------------------------
# numbers that are not

class Rows(Stream):
    """A stream that can tell its rows apart, one of them poisoned."""
    def __init__(self, bad, value):
        self.bad, self.value = bad, value

    def __getitem__(self, i):
        batch = super().__getitem__(i)
        if self.bad // 4 == i:
            batch["y"][self.bad % 4 % len(batch["y"])] = self.value
        return batch

    def one_by_one(self, i):
        batch = self[i]
        return ((4 * i + j, {"x": batch["x"][j:j + 1], "y": batch["y"][j:j + 1], "weight": 1}) for j in range(len(batch["x"])))

@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_an_update_that_would_do_harm_is_skipped_and_counted(tmp_path, value, capsys):
    """With its number and the row at fault; the weights are those of a run without it, but for the schedule."""
    model = Line()
    result = fit(model, tmp_path, train=Rows(4 * 30 + 1, value), max_steps=40, eval_every=20, on_nonfinite="skip")
    out = capsys.readouterr().out
    assert result["skipped"] == 1 and model.a.isfinite().all() and abs(model.a.item() - 3) < 2
    line = next(x for x in out.splitlines() if "update 31" in x)
    assert f"rows {4 * 30 + 1}" in line and "skipped (1 so far)" in line and "1 updates were skipped" in out
    assert [(s, v) for s, split, k, v in log_rows(tmp_path) if k == "skipped"] == [(31, 1.0)]

@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_by_default_the_run_stops_there_with_the_row(tmp_path, value):
    """A NaN in the data has a reason, which the user should see."""
    with pytest.raises(SystemExit) as stop:
        fit(Line(), tmp_path, train=Rows(4 * 30 + 1, value), max_steps=40, eval_every=20)
    assert "update 31" in str(stop.value) and f"rows {4 * 30 + 1}. " in str(stop.value) and "--on_nonfinite" in str(stop.value)

def test_skipping_ends_when_every_update_is_skipped(tmp_path):
    """A model that is ruined must not run to the end of the night."""
    model = Line()
    def ruined(batch):
        return (model.a.sum() * (float("nan") if model.training else 1.0), {})
    with pytest.raises(SystemExit, match="update 10.*the tenth in a row"):
        fit(model, tmp_path, compute_loss=ruined, max_steps=40, on_nonfinite="skip")

def test_a_resumed_run_remembers_what_it_skipped_and_what_is_usual(tmp_path):
    """Else a spike just after going on would be taken."""
    train = dict(train=Rows(4 * 30 + 1, 1e6), on_nonfinite="skip", eval_every=10)
    whole, cut, again = Line(), Line(), Line()
    fit(whole, tmp_path / "whole", max_steps=60, **train)
    class Stop(Rows):
        def __getitem__(self, i):
            if i == 29:    # the update of this batch is made, then the run stops, and the next has the spike
                os.kill(os.getpid(), 2)
            return super().__getitem__(i)
    with pytest.raises(SystemExit):
        fit(cut, tmp_path / "cut", max_steps=60, **(train | {"train": Stop(4 * 30 + 1, 1e6)}))
    result = fit(again, tmp_path / "cut", max_steps=60, resume=True, **train)
    assert result["skipped"] == 1 and torch.equal(again.a, whole.a)
    assert (tmp_path / "cut" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()

def test_what_losses_usually_do_is_no_spike():
    """Noise, a slow rise, a long tail, a loss that is mostly 0."""
    rng = random.Random(0)
    for draw in (lambda i: rng.gauss(0.7, 0.2), lambda i: 0.01 * i, lambda i: rng.expovariate(1.0), lambda i: 2.5 * (rng.random() < 0.05)):
        seen = [draw(i) for i in range(2000)]
        assert all(x <= loop.spike_limit(seen[max(0, i - 50):i]) for i, x in enumerate(seen))
    assert loop.spike_limit([0.7] * 19) == float("inf") and loop.spike_limit([0.7] * 20) < 12
