"""
The process that runs a student's code: it receives inputs and returns arrays, and knows nothing of what is right.

    python worker.py TREE    (started by grade.py; speaks the messages of wire.py on stdin and stdout)

It imports torch, and what the project in TREE imports, once. A fork of it reads a job and runs the student's code in
another fork, which is confined (confine.py). The first of them watches memory and time from outside, kills everything
that the job started, and writes the answer. A job is

    tree     the folder of a clean copy of the project with the student's functions
    file     the file of the functions
    driver   the source of `run(module, probe)`
    probes   a list of inputs
    seconds  how long the job may take
    source   None: import the file from the tree. A text: execute it in the place of the file (our own variants only)

and the answer a list with one entry for each probe: {"arrays": {name: array}, "changed": [inputs changed in place]}
or {"error": one line}.
"""
import contextlib
import gc
import importlib
import os
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path

import confine
import numpy as np
import torch
import torch._dynamo    # imported by the first optimizer, which takes seconds: here once
import wire

BYTES, SUBREAPER = 3 << 30, 36
# sys.path begins with the folder of this file; shared libraries may lie in `lib`
LIBRARIES = [path for path in (*sys.path[1:], f"{sys.base_prefix}/lib") if Path(path).is_dir()]

# ---------------------------------------------------------------------------------------------------------------------
# in the fork: run the code

def to_torch(value):
    """Arrays of a probe become tensors, wherever they stand."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: to_torch(x) for key, x in value.items()}
    return [to_torch(x) for x in value] if isinstance(value, list) else value

def to_array(value):
    """A tensor, number or list of numbers as an array that wire.py can carry."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        value = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        value = value.int() if value.dtype in (torch.int8, torch.int16, torch.uint8) else value
        return value.numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fibu":
        raise TypeError(f"the result is a {type(value).__name__}, not numbers")
    return array.astype({"f": "float64", "i": "int64", "u": "int64", "b": "bool"}[array.dtype.kind])

def changed(before, after, name=""):
    """The names of tensors that differ from what they were."""
    if isinstance(before, torch.Tensor):
        if not isinstance(after, torch.Tensor):
            return [name]
        same = before.shape == after.shape and bool(((before == after) | (before.isnan() & after.isnan())).all())
        return [] if same else [name]
    if not isinstance(before, (dict, list)):
        return []
    if type(after) is not type(before) or len(after) != len(before):
        return [name]
    items, found = before.items() if isinstance(before, dict) else enumerate(before), []
    for key, value in items:
        inner = f"{name}.{key}" if name else str(key)
        found += changed(value, after[key], inner) if isinstance(before, list) or key in after else [inner]
    return found

def one_line(error, file):
    """What went wrong and, if it can be told, in which line of the student's file."""
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(file)]
    where = f" (at: {lines[-1]})" if lines and lines[-1] else ""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, SystemExit):
        return f"the code called exit(){where}"
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"

def run_probe(run, module, probe, file):
    """One probe: {"arrays", "changed"} or {"error"}. Anything that the code raises is an error, exit() too."""
    try:
        given, before = to_torch(probe), to_torch(probe)
        torch.manual_seed(0)
        arrays = {str(name): to_array(value) for name, value in run(module, given).items()}
        return {"arrays": arrays, "changed": changed(before, given)}
    except BaseException as error:    # noqa: B902
        return {"error": one_line(error, file)}

def load(job):
    """The module with the student's functions: from the tree, or from a text in its place."""
    name = job["file"].removesuffix(".py").replace("/", ".")
    if job["source"] is None:
        return importlib.import_module(name)
    module = type(sys)(name)
    module.__file__ = str(Path(job["tree"]) / job["file"])
    sys.modules[name] = module
    exec(compile(job["source"], job["file"], "exec"), module.__dict__)
    return module

def run_job(job):
    """One entry for each probe."""
    os.chdir(job["tree"])
    sys.path[:] = [job["tree"], *sys.path[1:]]
    space = {}
    exec(compile(job["driver"], "driver", "exec"), space)
    module = load(job)
    return [run_probe(space["run"], module, probe, job["file"]) for probe in job["probes"]]

def in_fork(job, pipe):
    """The life of the fork. It writes its results to the pipe and ends."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):    # what the code prints is thrown away: a gigabyte of it would fill the grader
            os.dup2(null, number)
        os.closerange(3, pipe), os.closerange(pipe + 1, 1024)    # the grader's own pipes
        os.environ.clear()
        os.environ.update(HOME=job["tree"], OMP_NUM_THREADS="1", MPLBACKEND="Agg", HF_HUB_OFFLINE="1")
        sys.dont_write_bytecode = True
        if job["source"] is None:
            confine.confine(job["seconds"], BYTES, [job["tree"], *LIBRARIES])
        data = wire.pack(run_job(job))
    except BaseException as error:    # noqa: B902
        data = wire.pack([{"error": one_line(error, job["file"])}] * len(job["probes"]))
    with open(pipe, "wb") as out:
        out.write(data)
    os._exit(0)

# ---------------------------------------------------------------------------------------------------------------------
# outside of it: watch and kill

def processes():
    """pid -> (parent, resident bytes) of all processes."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            after_name = (path / "stat").read_text().rpartition(")")[2].split()
            found[int(path.name)] = int(after_name[1]), int(after_name[21]) * resource.getpagesize()
    return found

def descendants():
    """pid -> resident bytes of all that this process started, directly or not: a subreaper inherits orphans."""
    table, mine = processes(), {os.getpid()}
    while more := {pid for pid, (parent, _) in table.items() if parent in mine} - mine:
        mine |= more
    return {pid: table[pid][1] for pid in mine - {os.getpid()}}

def kill_all():
    """Kills what the job started, until nothing of it is left."""
    for _ in range(200):
        alive = descendants()
        for pid in alive:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not alive:
            return
        time.sleep(0.01)

def watch(pipe, seconds):
    """The bytes that the job writes, or a line that says which limit it broke."""
    end, data = time.monotonic() + seconds, bytearray()
    while True:
        if select.select([pipe], [], [], 0.1)[0]:
            part = os.read(pipe, 1 << 20)
            if not part:
                return bytes(data), None
            data += part
            if len(data) > wire.LIMIT:
                return None, f"returned more than {wire.LIMIT >> 20} MB"
            if time.monotonic() < end:
                continue
        alive = descendants()
        if time.monotonic() > end:
            return None, f"did not end within {seconds} s"
        if sum(alive.values()) > 2 * BYTES:
            return None, f"took more than {BYTES >> 30} GB of memory"
        if len(alive) > confine.PROCESSES:
            return None, f"started more than {confine.PROCESSES} processes"

def handle(job):
    """Runs a job in a fork: bytes of the answer."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        in_fork(job, write)
    os.close(write)
    data, broken = watch(read, job["seconds"])
    os.close(read)
    kill_all()
    if not broken and data:
        with contextlib.suppress(ValueError):
            wire.unpack(data)
            return data
    line = broken or "the process ended without a result (a crash, exit(), or a limit on CPU time or memory)"
    return wire.pack([{"error": line}] * len(job["probes"]))

def preload(tree):
    """
    Imports the standard library, and what the project's files import, without keeping the project itself.

    A job then starts at once. As nobody it may not be able to read a module later, where confine.py cannot help.
    """
    skipped = {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "lib2to3", "ensurepip", "venv"}
    library = [name for name in sorted(sys.stdlib_module_names - skipped) if not name.startswith("_")]
    files = [path.relative_to(tree).with_suffix("").parts for path in sorted(Path(tree).rglob("*.py"))]
    sys.path.insert(0, tree)
    for name in ["__future__", "encodings.idna", *library, *map(".".join, files)]:
        with contextlib.suppress(BaseException):    # noqa: B902
            importlib.import_module(name)
    sys.path.pop(0)
    project = {parts[0] for parts in files}
    for name in [name for name in sys.modules if name.split(".")[0] in project]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()    # a collection in a fork would write to, and so copy, every page

def serve():
    """
    A process for each job reads it and answers. The next one is no fork of it, so nothing of a job is in its memory.

    It ends if one of them fails, or finds no more jobs: the grader then starts another worker.
    """
    torch.set_num_threads(1)
    preload(sys.argv[1])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while pid := os.fork():
        if os.waitpid(pid, 0)[1]:
            return
    if not (data := wire.read(sys.stdin.buffer)):
        os._exit(1)
    confine.libc.prctl(SUBREAPER, 1, 0, 0, 0)
    answers.write(wire.frame(handle(wire.unpack(data))))
    answers.flush()
    os._exit(0)

if __name__ == "__main__":
    serve()
