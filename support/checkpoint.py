"""
Files that a kill, a full disk or a damaged byte cannot take along: what a run leaves behind, and how it goes on from there.

    with replacing(path) as part: ...    # written beside, then renamed: `path` is the old file or the new one, never half of one
    save_state(...), load_state(...)     # state.pt, and state.old.pt, the one before

Read next: loop.py
"""
import csv
import hashlib
import json
import math
import os
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

# ---------------------------------------------------------------------------------------------------------------------
# files

@contextmanager
def replacing(path):
    """A name to write to, which takes the place of `path` once all is on the disk. Raises OSError, one line; the old file then stays."""
    part = Path(f"{path}.{os.getpid()}.tmp")
    try:
        yield part
        with open(part, "rb+") as f:
            os.fsync(f.fileno())    # else a power cut may leave the new name with nothing under it
        os.replace(part, path)
    except (OSError, RuntimeError, SafetensorError) as e:    # torch and safetensors have errors of their own for a full disk
        raise OSError(f"{path} could not be written ({e}): make room, or choose another place; what was there is still there") from None
    finally:
        with suppress(OSError):
            part.unlink()    # on a full disk half a file takes the room of the next

def finite(content):
    """The same with None in the place of NaN and infinities, which are no JSON."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content

def write_json(path, content):
    with replacing(path) as part:
        part.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n")

def read_json(path):
    """The content of a JSON file. Raises ValueError in one line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: is not valid JSON ({e})") from None

def digest(state):
    """The SHA-256 of a dict of tensors, in hex."""
    h = hashlib.sha256()
    for name, x in sorted(state.items()):
        h.update(name.encode())
        h.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()

def save_tensors(state, path):
    """Writes a safetensors file with its own checksum in it."""
    state = {name: x.detach().contiguous() for name, x in state.items()}
    with replacing(path) as part:
        save_file(state, part, metadata={"format": "pt", "sha256": digest(state)})
        with open(part, "rb+") as f:    # safetensors writes the two in any order: the same weights would not be the same bytes
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            f.seek(8)
            f.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))

def load_tensors(path):
    """name -> tensor, on the CPU. Raises ValueError if the file is damaged: every bit counts if save_tensors wrote it."""
    try:
        with safe_open(path, "pt") as f:
            state, checksum = {name: f.get_tensor(name) for name in f.keys()}, (f.metadata() or {}).get("sha256")
        if checksum and checksum != digest(state):
            raise ValueError("checksum")
        return state
    except Exception as e:    # a damaged file can raise nearly anything
        raise ValueError(f"{path}: damaged or cut short ({type(e).__name__}): fetch or copy it again") from None

# ---------------------------------------------------------------------------------------------------------------------
# the state of a run

def kept(model):
    """What of a model a state holds: what is trained, and buffers."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad} | dict(model.named_buffers())

def save_state(out_dir, model, optimizer, scaler, counters, log_bytes):
    """Writes all that the next updates depend on. counters: a dict of plain numbers, strings and lists."""
    state = {"model": kept(model), "optimizer": optimizer.state_dict(),
             "scaler": scaler.state_dict(), "counters": counters, "log_bytes": log_bytes, "rng": torch.get_rng_state(),
             "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    with replacing(out_dir / "state.pt") as part:
        torch.save(state, part)
        if (out_dir / "state.pt").exists():
            os.replace(out_dir / "state.pt", out_dir / "state.old.pt")

def read_state(path):
    """The content of a state file. Raises ValueError if one bit of it is not as it was written."""
    try:
        if bad := zipfile.ZipFile(path).testzip():    # torch writes checksums, and does not look at them
            raise ValueError(f"{bad} is not as it was written")
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: state[key] for key in ("model", "optimizer", "scaler", "counters", "log_bytes", "rng", "cuda_rng")}
    except Exception as e:    # a damaged file can raise nearly anything
        raise ValueError(f"{path}: damaged or cut short ({type(e).__name__})") from None

def load_state(out_dir, model, optimizer, scaler, say=print):
    """
    Puts the newest whole state in place and returns its counters; None if the run was killed before its first. Cuts the log back
    to it, since those updates will be made again. Raises SystemExit in one line if nothing can be gone on from.
    """
    found = [p for p in (out_dir / "state.pt", out_dir / "state.old.pt") if p.exists()]
    for i, path in enumerate(found):
        try:
            state = read_state(path)
            break
        except ValueError as e:
            if path == found[-1]:
                raise SystemExit(f"{e}: there is no whole state to resume from; start a new run. {best(out_dir)}") from None
            say(f"{e}; going on from {found[i + 1]}, the one before")
    else:
        cut_log(out_dir / "log.csv", 0, say)
        return None
    try:
        with torch.no_grad():
            for name, p in kept(model).items():
                p.copy_(state["model"][name])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    except (RuntimeError, KeyError, ValueError) as e:
        raise SystemExit(f"{path}: is the state of another model ({type(e).__name__}): start a new run") from None
    torch.set_rng_state(state["rng"])
    if torch.cuda.is_available() and state["cuda_rng"]:
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    cut_log(out_dir / "log.csv", state["log_bytes"], say)
    return state["counters"]

def best(out_dir):
    weights = [p for p in (out_dir / "model.safetensors", out_dir / "adapter.safetensors") if p.exists()]
    return f"The best weights are in {weights[0]}." if weights else ""

def cut_log(path, size, say):
    """Takes off the rows after a state. A log that is shorter than the state says has lost rows: that is said, and the run goes on."""
    there = path.stat().st_size if path.exists() else 0
    if there > size:
        os.truncate(path, size)
    elif there < size:
        if there:
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)    # or half a row would run into the next one
        say(f"{path}: {size - there:,} of the {size:,} bytes written before are missing: its curves will have a gap")

# ---------------------------------------------------------------------------------------------------------------------
# the log and its picture

def read_log(path):
    """log.csv -> metric -> split -> (step, value) pairs. Raises ValueError with the row that is not one."""
    series = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as f:
        for n, row in enumerate(csv.DictReader(f), 2):
            try:
                series.setdefault(row["metric"], {}).setdefault(row["split"], []).append((int(row["step"]), float(row["value"])))
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path}, line {n}: expected step,split,metric,value, not {str(list(row.values()))[:60]}") from None
    return series

def plot_curves(out_dir):
    """curves.png from log.csv: a panel a metric, training thin, validation with dots."""
    from matplotlib.figure import Figure
    series = read_log(Path(out_dir) / "log.csv")
    columns, height = min(4, len(series)), -(-len(series) // 4)
    fig = Figure(figsize=(3.2 * columns, 2.4 * height), layout="tight")
    axes = fig.subplots(height, columns, squeeze=False)
    for ax in axes.flat[len(series):]:
        ax.axis("off")
    for ax, (metric, splits) in zip(axes.flat, series.items()):
        for split, points in sorted(splits.items()):
            ax.plot(*zip(*points), "C1o-" if split == "val" else "C0-", label=split, lw=0.8, ms=3)
        ax.set_title(metric + (" (nats)" if metric.startswith("logps") else ""), fontsize=9)
        ax.set_xlabel("update", fontsize=8)
        ax.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7)
    with replacing(Path(out_dir) / "curves.png") as part:
        fig.savefig(part, dpi=110, format="png")
