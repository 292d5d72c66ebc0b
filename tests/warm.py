"""
A process that has imported torch and pytest, but nothing of the project, and runs tests of a copy of the project in forks of itself.

A fork starts where a fresh `python -m pytest` is after ten seconds of imports. Used by test_faults.py.
"""
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

# torch._dynamo is imported by the first optimizer, matplotlib's backend by the first figure
IMPORTED = ("torch", "numpy", "pytest", "tiktoken", "safetensors.torch", "matplotlib.figure", "matplotlib.backends.backend_agg",
            "torch.utils.flop_counter", "torch._dynamo", "torch.distributed", "tqdm", "openai")
# the fast tests in one process, without the plugins that a fork would import and does not use
OPTIONS = ("-q", "-o", "addopts=", "-m", "not slow and not planted", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:anyio")

class Warm:
    """Warm().run(copy, argv): the exit status of pytest with OPTIONS and argv, and what it printed."""
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        cwd="/")

    def run(self, copy, argv):
        print(json.dumps([str(copy), argv]), file=self.process.stdin, flush=True)
        status = int(self.process.stdout.readline())
        return status, (Path(copy) / "said.txt").read_text()

    def close(self):
        self.process.stdin.close()
        self.process.wait()

def in_child(copy, argv):
    """pytest with argv in the copy; the process ends with its exit status."""
    os.chdir(copy)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(said, 1), os.dup2(said, 2)
    sys.path[0] = copy    # in the place of this file's folder
    import pytest
    status = 3
    try:
        status = int(pytest.main([*OPTIONS, *argv]))
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)

def serve():
    for name in IMPORTED:
        with suppress(ImportError):    # openai is optional
            __import__(name)
    for line in sys.stdin:
        copy, argv = json.loads(line)
        pid = os.fork()
        if not pid:
            in_child(copy, argv)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

if __name__ == "__main__":
    serve()
