"""
Pytest in a copy of the project, in a fork of a process that has imported PyTorch but nothing of the project.

A fork starts where a fresh `python -m pytest` is after ten seconds of imports. test_faults.py and mutate.py use it.
See docs/tests.md.
"""
import compileall
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# torch._dynamo is imported by the first optimizer of PyTorch's, matplotlib's backend by the first figure
IMPORTED = (
    "torch", "numpy", "pytest", "tiktoken", "safetensors.torch", "matplotlib.figure", "matplotlib.backends.backend_agg",
    "torch.utils.flop_counter", "torch._dynamo", "torch.distributed", "tqdm", "openai",
)
# the fast tests in one process, without the plugins that a fork would import and does not use
OPTIONS = (
    "-q", "-o", "addopts=", "-m", "not slow and not planted",
    "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:anyio",
)

# ---------------------------------------------------------------------------------------------------------------------
# the copy

def copied(root, copy):
    """Copies the project, without results and caches, and compiles it; returns the copy's folder."""
    left_out = shutil.ignore_patterns(".git", "out", "__pycache__", ".*_cache", "venv", ".venv")
    shutil.copytree(root, copy, ignore=left_out)
    compileall.compile_dir(copy, quiet=2)
    return copy

def write_source(path, text):
    """Writes a Python file and removes its bytecode, which stays valid if the new file has the same second and size."""
    path.write_text(text)
    for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        stale.unlink()

# ---------------------------------------------------------------------------------------------------------------------
# the processes

def import_all(names=IMPORTED):
    """Imports modules before a fork, so that its children need not. A module that is missing or fails is skipped."""
    for name in names:
        with suppress(Exception):
            __import__(name)

def forked(call):
    """The id of a new child process. It ends with the exit status that call() returns, or with 3 if call() raises."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    status = 3
    try:
        os.setsid()    # Ctrl-C reaches the parent alone, which then ends the child and what the child has started
        status = int(call())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

def waited(call):
    """The exit status of a child process that makes a call."""
    pid = forked(call)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except KeyboardInterrupt:
        end(pid)
        raise

def end(pid):
    """Kills a child process, and its process group if it has made one by now."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

def run_pytest(copy, argv, messages, plugins=()):
    """Runs pytest with OPTIONS and argv in the copy, in this process, a fork. Its output goes to a file."""
    import pytest
    os.chdir(copy)
    printed = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    # modules must come from the copy: not from here, and not from before the fork
    originals = (str(ROOT), str(ROOT / "tests"), "")
    sys.path[:] = [str(copy), *(p for p in sys.path if p not in originals)]
    for name in list(sys.modules):
        if name.split(".")[0] in ("tests", "mutants", "warm"):
            del sys.modules[name]
    return pytest.main([*OPTIONS, *argv], plugins=list(plugins))

class Warm:
    """A process that has imported IMPORTED and runs tests in forks of itself."""
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, cwd="/")

    def run(self, copy, argv):
        """(pytest's exit status, what it printed) with argv in a copy of the project."""
        print(json.dumps([str(copy), argv]), file=self.process.stdin, flush=True)
        status = int(self.process.stdout.readline())
        return status, (Path(copy) / "messages.txt").read_text()

    def close(self):
        self.process.stdin.close()
        self.process.wait()

def serve():
    """The process of Warm: reads [copy, argv] from each line, and answers with pytest's exit status."""
    import_all()
    for line in sys.stdin:
        copy, argv = json.loads(line)
        print(waited(lambda copy=copy, argv=argv: run_pytest(copy, argv, "messages.txt")), flush=True)

if __name__ == "__main__":
    serve()
