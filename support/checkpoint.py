"""
Crash-safe files: atomic writes, checksums, and the training state that `--resume` reads.

    with replacing(path) as part: ...    # an atomic write: path is the old file or the new one, never half of one
    state.save(...), state.load(...)     # a TrainingState in state.pt; the state before it is in state.old.pt

docs/reliability.md says what was tested. Read next: loop.py
"""
import hashlib
import json
import math
import os
import time
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from support import parallel

# ---------------------------------------------------------------------------------------------------------------------
# files

@contextmanager
def replacing(path):
    """
    Atomic write: gives a temporary name to write to, and renames it to `path` when all bytes are on the disk.
    If that fails, the old file stays. A full disk raises OSError in one line.
    """
    part = Path(f"{path}.{os.getpid()}.tmp")
    try:
        yield part
        with open(part, "rb+") as f:
            os.fsync(f.fileno())    # without it, a power failure can leave an empty file under the new name
        os.replace(part, path)
    except (OSError, RuntimeError, SafetensorError) as e:    # torch and safetensors have their own for a full disk
        raise OSError(f"{path} could not be written ({e}): free some disk space or choose another folder; "
                      "the old file, if any, is unchanged") from None
    finally:
        with suppress(OSError):
            part.unlink()    # half a file would take the space that the next one needs

def finite(content):
    """The same content with None for NaN and infinities, which JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content

def write_json(path, content):
    """Writes a JSON file atomically."""
    with replacing(path) as part:
        part.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n")

def read_json(path):
    """The content of a JSON file. Raises ValueError, in one line, if it is not valid JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: is not valid JSON ({e})") from None

def digest(state):
    """The SHA-256 of a dict of tensors, in hex. It covers names and bytes, not the order of the dict."""
    return digest_of(sorted(state.items()))

def digest_of(named):
    """digest of (name, tensor) pairs in the order of the names. They may come from a generator, one at a time."""
    h = hashlib.sha256()
    for name, x in named:
        h.update(name.encode())
        h.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()

def save_tensors(state, path):
    """Writes a safetensors file that contains its own checksum. The same tensors give the same bytes."""
    state = {name: x.detach().contiguous() for name, x in state.items()}
    with replacing(path) as part:
        save_file(state, part, metadata={"format": "pt", "sha256": digest(state)})
        # safetensors writes the two metadata entries in random order. Sort them, so that equal weights are equal files.
        with open(part, "rb+") as f:
            size = int.from_bytes(f.read(8), "little")    # of the header, which is JSON padded with blanks
            header = json.loads(f.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            f.seek(8)
            f.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))

def damaged(path, error):
    """The ValueError for a safetensors file that cannot be read."""
    return ValueError(f"{path}: damaged or cut short ({type(error).__name__}): download or copy it again")

def load_tensors(path):
    """name -> tensor, on the CPU. Raises ValueError if the file is damaged: save_tensors stored a checksum in it."""
    try:
        with safe_open(path, "pt") as f:
            state = {name: f.get_tensor(name) for name in f.keys()}
            checksum = (f.metadata() or {}).get("sha256")
        if checksum and checksum != digest(state):
            raise ValueError("checksum")
        return state
    except Exception as e:    # a damaged file can raise nearly any error
        raise damaged(path, e) from None

class StoredTensor:
    """A tensor in a safetensors file, which is read when it is needed. rows: how many of its rows count; None: all."""
    def __init__(self, path, name, shape, rows=None):
        self.path, self.name, self.rows = path, name, rows
        self.shape = torch.Size(shape if rows is None else [min(rows, shape[0]), *shape[1:]])

    def __getitem__(self, rows):
        assert isinstance(rows, slice) and rows.start is None and rows.step is None, f"{rows} is not [:n]"
        return StoredTensor(self.path, self.name, self.shape, rows.stop)

    def read(self):
        """The tensor, as a view of the mapped file. The pages that it touches count as memory until it is deleted."""
        try:
            with safe_open(self.path, "pt") as f:    # opened anew: a file that stays open keeps all pages mapped
                return f.get_tensor(self.name)[:self.rows] if self.rows else f.get_tensor(self.name)
        except Exception as e:
            raise damaged(self.path, e) from None

    def float(self):
        """A copy in float32."""
        return self.read().to(torch.float32, copy=True)

def stored_tensors(path):
    """load_tensors, but name -> StoredTensor: the checksum is compared one tensor at a time."""
    try:
        with safe_open(path, "pt") as f:
            state = {name: StoredTensor(path, name, f.get_slice(name).get_shape()) for name in f.keys()}
            checksum = (f.metadata() or {}).get("sha256")
        if checksum and checksum != digest_of((name, state[name].read()) for name in sorted(state)):
            raise ValueError("checksum")
        return state
    except Exception as e:    # a damaged file can raise nearly any error
        raise damaged(path, e) from None

class InTurn(dict):
    """name -> tensor or StoredTensor. items() gives tensors, each read when its turn comes: one in memory at a time."""
    def items(self):
        for name, x in super().items():
            yield name, x.read() if isinstance(x, StoredTensor) else x

# ---------------------------------------------------------------------------------------------------------------------
# the training state of a run

def kept(model):
    """The part of a model that state.pt holds: trained parameters and buffers. The base's file has the frozen ones."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad} | dict(model.named_buffers())

def save_state(out_dir, model, optimizer, scaler, counters, log_bytes):
    """
    Writes state.pt: everything that the next updates depend on. The state before it becomes state.old.pt.
    counters: a dict of plain numbers, strings and lists; log_bytes: the size of log.csv now.
    """
    state = {"model": kept(model), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
             "counters": counters, "log_bytes": log_bytes, "rng": torch.get_rng_state(),
             "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    with replacing(out_dir / "state.pt") as part:
        torch.save(state, part)
        if (out_dir / "state.pt").exists():
            os.replace(out_dir / "state.pt", out_dir / "state.old.pt")

def read_state(path):
    """The content of a state file. Raises ValueError if one bit of it has changed."""
    try:
        if bad := zipfile.ZipFile(path).testzip():    # torch.save writes checksums, but torch.load does not verify them
            raise ValueError(f"{bad} has changed")
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: state[key] for key in ("model", "optimizer", "scaler", "counters", "log_bytes", "rng", "cuda_rng")}
    except Exception as e:    # a damaged file can raise nearly any error
        raise ValueError(f"{path}: damaged or cut short ({type(e).__name__})") from None

def newest_state(out_dir):
    """
    (path, content) of state.pt, or of state.old.pt if state.pt is damaged; None if there is neither.
    Raises SystemExit in one line if all that exist are damaged.
    """
    error = None
    for path in filter(Path.exists, (out_dir / "state.pt", out_dir / "state.old.pt")):
        if error:
            print(f"{error}; resuming from {path}, the state before it")
        try:
            return path, read_state(path)
        except ValueError as e:
            error = e
    if error:
        weights = list(filter(Path.exists, (out_dir / "model.safetensors", out_dir / "adapter.safetensors")))
        best = f"The best weights are in {weights[0]}." if weights else ""
        raise SystemExit(f"{error}: there is no intact state to resume from; start a new run. {best}")
    return None

def cut_log(path, size):
    """Removes the rows that were written after a state. If rows from before it are missing, says so and continues."""
    there = path.stat().st_size if path.exists() else 0
    if there > size:
        os.truncate(path, size)
    elif there < size:
        if there:
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)    # half a row would run into the next one
        print(f"{path}: {size - there:,} of the {size:,} bytes before the state are missing: the curves will have a "
              "gap")

@dataclass
class TrainingState:
    """Everything that changes during a run. state.pt holds it, so that a resumed run equals an uninterrupted one."""
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    stopper: object                                # EarlyStopping
    step: int = 0                                  # updates so far
    evaluated: bool = False                        # whether the weights of this step have been evaluated
    skipped: list = field(default_factory=list)    # numbers of the skipped updates
    losses: list = field(default_factory=list)     # training losses of the last 50 updates
    seconds: float = 0.0                           # training time before this process, if the run is resumed
    started: float = field(default_factory=lambda: time.time())

    def elapsed(self):
        """Seconds of training, in all processes that the run has been resumed in."""
        return self.seconds + time.time() - self.started

    def save(self, out_dir, log):
        """Writes state.pt, in the first process. log: a Log, which is written to the disk first."""
        log.file.flush()
        stopper = {"best": self.stopper.best, "best_step": self.stopper.best_step, "bad": self.stopper.bad}
        counters = {"step": self.step, "evaluated": self.evaluated, "skipped": self.skipped, "losses": self.losses,
                    "seconds": self.elapsed(), "stopper": stopper}
        if parallel.rank() == 0:
            save_state(out_dir, self.model, self.optimizer, self.scaler, counters, log.file.tell())

    def load(self, out_dir):
        """
        Reads the newest intact state, and sets the random generators. Cuts the log back to the state, because later
        updates are made again: all of it, if the run ended before its first state. Raises SystemExit in one line if no
        state can be used.
        """
        log = out_dir / "log.csv"
        found = newest_state(out_dir)
        if found is None:
            cut_log(log, 0)
            return
        path, state = found
        try:
            with torch.no_grad():
                for name, p in kept(self.model).items():
                    p.copy_(state["model"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, KeyError, ValueError) as e:
            raise SystemExit(f"{path}: is the state of another model ({type(e).__name__}): start a new run") from None
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        vars(self.stopper).update(state["counters"].pop("stopper"))    # all but patience, a flag that may change
        vars(self).update(state["counters"])
        cut_log(log, state["log_bytes"])
