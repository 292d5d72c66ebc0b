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

# torch is not imported here: pytest-xdist's main process reads this file before it starts the workers.

@pytest.fixture(scope="session", autouse=True)
def sketched():
    """Figures are composed but not painted, which takes longer than a small run. Tests of a picture use `painted`."""
    from matplotlib.figure import Figure
    with pytest.MonkeyPatch.context() as patch:
        paint = Figure.savefig
        patch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).write_bytes(b"a picture"))
        patch.setattr(Figure, "tight_layout", lambda figure: None)
        yield paint

@pytest.fixture
def painted(monkeypatch, sketched):
    """Pictures as users get them."""
    from matplotlib.figure import Figure
    monkeypatch.setattr(Figure, "savefig", sketched)

@pytest.fixture(scope="session", autouse=True)
def unflushed():
    """os.fsync does nothing: it matters only at a power failure, and a busy disk makes every checkpoint wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield

@pytest.fixture(scope="session")
def tokenizer():
    """The toy world's tokenizer. It encodes any text and needs no files."""
    import toy
    return toy.encoding()

@pytest.fixture(scope="session", autouse=True)
def pageless():
    """No script writes a page at its end: many tests leave out the evaluation that it shows. Gives page.main."""
    import page
    with pytest.MonkeyPatch.context() as patch:
        real = page.main
        patch.setattr(page, "main", lambda argv=None, say=print: None)
        yield real

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"    # real data sets, where there are some

@pytest.fixture
def gpt2(monkeypatch):
    """GPT-2's own tokenizer, from files."""
    import data
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(REAL / "tiktoken_cache"))
    return data.get_tokenizer("gpt2")

@pytest.fixture
def own_tokenizer(monkeypatch, tokenizer):
    """Local files are tokenized with the toy world's tokenizer instead of GPT-2's, which would have to be fetched."""
    monkeypatch.setattr("data.get_tokenizer", lambda *args: tokenizer)
    return tokenizer

@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make): a folder that make(folder) fills once for all workers. Copy it before changing it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    def folder_of(name, make):
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)    # the other workers wait here until the first has made it
            if not (shared / f"{name}.made").exists():
                make(shared / name)
                (shared / f"{name}.made").touch()
        return shared / name
    return folder_of

@pytest.fixture(scope="session")
def main_sft(made_once):
    """The main job's SFT policy, which takes half a minute to train. Copy it before changing it."""
    import train_sft
    return made_once("main_sft", lambda folder: train_sft.main(["--out_dir", str(folder)]))

@pytest.fixture(scope="session")
def paged(made_once):
    """A folder with evaluated runs of every kind that a page can show, see pages.make_runs. Copy one to change it."""
    import pages
    return made_once("paged", pages.make_runs)

@pytest.fixture
def in_tmp(monkeypatch, tmp_path):
    """Runs go to ./out, so the test stands in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

TINY = "--n_layer 1 --n_head 2 --n_embd 16 --batch_size 8 --max_steps 2 --eval_every 2".split()

@pytest.fixture(scope="session")
def sft_run(tmp_path_factory, tokenizer):
    """An SFT run of two updates on a local file: the toy world's vocabulary, 64 tokens. Copy it before changing it."""
    import train_sft
    root = tmp_path_factory.mktemp("sft")
    texts = [{"prompt": f"the plot {i}", "completion": f" was fine {i} ."} for i in range(20)]
    (root / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.get_tokenizer", lambda *args: tokenizer)
        train_sft.main(["--data", str(root / "texts.jsonl"), "--out_dir", str(root / "run"), *TINY])
    return Path(root / "run")
