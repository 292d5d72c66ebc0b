"""
What the tests share: no network, one thread, the toy world's tokenizer, and a small finished SFT run.
"""
import fcntl
import json
import os
from pathlib import Path

# before torch is imported; subprocesses take them over too
os.environ.setdefault("OMP_NUM_THREADS", "1")     # tensors here are tiny: a second thread costs more than it brings
os.environ.setdefault("HF_HUB_OFFLINE", "1")      # whatever asks for the network fails at once, here as in CI
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

from matplotlib.figure import Figure

import data
import toy
import train_sft

PAINT = Figure.savefig

@pytest.fixture(scope="session", autouse=True)
def sketched():
    """Figures are composed but not painted: painting one takes longer than a small run. Tests about a picture use `painted`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).write_bytes(b"a picture"))
        patch.setattr(Figure, "tight_layout", lambda figure: None)
        yield

@pytest.fixture
def painted(monkeypatch):
    """Pictures as users get them."""
    monkeypatch.setattr(Figure, "savefig", PAINT)

@pytest.fixture(scope="session")
def tokenizer():
    """The toy world's: any text goes through it, and it needs no files."""
    return toy.encoding()

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"    # real data sets, where there are some

@pytest.fixture
def gpt2(monkeypatch):
    """GPT-2's own tokenizer, from files."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(REAL / "tiktoken_cache"))
    return data.get_tokenizer("gpt2")

@pytest.fixture
def own_tokenizer(monkeypatch, tokenizer):
    """Local files are tokenized with the toy world's tokenizer instead of GPT-2's, which would have to be fetched."""
    monkeypatch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
    return tokenizer

@pytest.fixture(scope="session")
def main_sft(tmp_path_factory):
    """The main job's SFT policy, trained once for all of pytest-xdist's workers, which takes half a minute. Copy it before changing it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with open(shared / "main_sft.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)    # the other workers wait here until the first has trained it
        if not (shared / "main_sft" / "result.json").exists():
            train_sft.main(["--out_dir", str(shared / "main_sft")])
    return shared / "main_sft"

@pytest.fixture
def in_tmp(monkeypatch, tmp_path):
    """Runs go to ./out, so the test stands in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

TINY = ("--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--batch_size", "8", "--max_steps", "2", "--eval_every", "2")

@pytest.fixture(scope="session")
def sft_run(tmp_path_factory, tokenizer):
    """A finished SFT run of two updates on a local file: the toy world's vocabulary, 64 tokens long. Copy it before changing it."""
    root = tmp_path_factory.mktemp("sft")
    texts = [{"prompt": f"the plot {i}", "completion": f" was fine {i} ."} for i in range(20)]
    (root / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
        train_sft.main(["--data", str(root / "texts.jsonl"), "--out_dir", str(root / "run"), *TINY])
    return Path(root / "run")
