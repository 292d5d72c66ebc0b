"""Tests of assignments/walkthrough.ipynb: its form, its stored outputs, the numbers in its text, a run of all cells."""
import ast
import base64
import importlib
import inspect
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval
import losses
import sampling
import toy
import train_pref
import train_sft
from model import GPT, GPTConfig
from support.cli import flags_of
from warm import copied

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "assignments" / "walkthrough.ipynb"
CELLS = json.loads(BOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
TEXT = " ".join(" ".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown").split())
OURS = {path.stem for path in ROOT.glob("*.py")} | {"support"}
IDS = [cell["id"] for cell in CODE]

def source(cell):
    return "".join(cell["source"])

def cell_with(text):
    """The one code cell that contains a text."""
    found = [cell for cell in CODE if text in source(cell)]
    assert len(found) == 1, f"{text} is in {len(found)} cells"
    return found[0]

def printed(cell):
    """What a cell has printed, as it is stored."""
    return "".join("".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream")

# ---------------------------------------------------------------------------------------------------------------------
# the form

def test_it_is_a_notebook_of_format_4():
    """Jupyter refuses a cell without its fields. VS Code and git tools refuse two cells with one id."""
    book = json.loads(BOOK.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4 and book["nbformat_minor"] >= 5
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in CELLS]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", one) for one in ids)
    for cell in CELLS:
        fields = {"cell_type", "id", "metadata", "source"}
        fields |= {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == fields and cell["cell_type"] in ("code", "markdown")
        assert all(isinstance(line, str) for line in cell["source"])

def test_a_few_sentences_stand_before_every_cell():
    """Code without a word is no explanation. STYLE: 30 words a sentence at most."""
    for before, cell in zip([None, *CELLS], CELLS):
        if cell["cell_type"] == "code":
            assert before["cell_type"] == "markdown", cell["id"]
            prose = " ".join(line for line in source(before).splitlines() if not line.startswith("#"))
            sentences = [len(one.split()) for one in re.split(r"[.!?:] ", prose)]
            assert 1 < len(sentences) <= 12 and max(sentences) <= 30, (before["id"], sentences)

FORBIDDEN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.While, ast.If, ast.Match, ast.Assert,
             ast.IfExp, ast.Global)

@pytest.mark.parametrize("cell", CODE, ids=IDS)
def test_a_cell_is_short_and_holds_no_logic(cell):
    """What a cell does itself is not what the scripts do. Only the first cell searches, and only the last one tries."""
    lines = [line for line in source(cell).splitlines() if line.strip()]
    assert len(lines) <= 10 and max(map(len, lines)) <= 120
    for node in ast.walk(ast.parse(source(cell))):
        assert not isinstance(node, FORBIDDEN), ast.unparse(node)
        assert not isinstance(node, ast.Try) or cell is CODE[-1], ast.unparse(node)
        assert not isinstance(node, ast.comprehension) or not node.ifs or cell is CODE[0], ast.unparse(node)
        if isinstance(node, ast.For):
            for step in node.body:
                assert isinstance(step, ast.Expr) and isinstance(step.value, ast.Call), ast.unparse(step)
                assert ast.unparse(step.value.func) == "print", ast.unparse(step)

def known_names(trees):
    """Names of the notebook that stand for something of the project: {name: the module, function or class}."""
    names = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            names |= {a.name: importlib.import_module(a.name) for a in node.names if a.name.split(".")[0] in OURS}
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OURS:
            module = importlib.import_module(node.module)
            for a in node.names:
                assert hasattr(module, a.name), f"{node.module} has no {a.name}"
                names[a.name] = getattr(module, a.name)
    return names

def test_every_function_of_the_project_exists_and_takes_these_arguments():
    """A function may be renamed, or get another argument, and nobody opens the notebook for months."""
    trees, called = [ast.parse(source(cell)) for cell in CODE], set()
    names = known_names(trees)
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and inspect.ismodule(module := names.get(ast.unparse(node.value))):
            assert hasattr(module, node.attr), f"{module.__name__} has no {node.attr}"
        if isinstance(node, ast.Call):
            module, _, name = ast.unparse(node.func).rpartition(".")
            function = getattr(names.get(module), name, None) if module else names.get(name)
            if function is not None:
                called.add(ast.unparse(node.func))
                if not any(isinstance(a, ast.Starred) for a in node.args):
                    inspect.signature(function).bind(*node.args, **{k.arg: k.value for k in node.keywords})
    steps = {"toy.examples", "toy.reward", "data.make_rows", "data.collate", "GPT", "train_sft.policy_for", "page.main",
             "sample_completions", "ranked_samples", "sampled_pairs", "completion_token_logps", "sequence_logps",
             "add_reference", "preference_loss", "train_pref.main", "eval.main", "page.true_credit"}
    assert not steps - called, "a step of the main job is missing"

@pytest.mark.parametrize("where", [".", "assignments", "out/walkthrough"])
def test_the_first_cell_finds_the_project(where, tmp_path, monkeypatch):
    """Jupyter starts in the notebook's folder, VS Code also in the project's. Run again, it is in out/walkthrough."""
    root = tmp_path.resolve() / "project"
    (root / where).mkdir(parents=True)
    (root / "train_pref.py").touch()
    monkeypatch.chdir(root / where)
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(source(CODE[0]), {})
    assert Path.cwd() == root / "out" / "walkthrough" and sys.path[0] == str(root)

# ---------------------------------------------------------------------------------------------------------------------
# the stored outputs

def test_the_stored_outputs_are_those_of_one_run_in_order():
    """Cells that are run twice or out of order show numbers that a reader does not get."""
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert all(cell["outputs"] for cell in CODE[1:])
    kinds = {out["output_type"] for cell in CODE for out in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}    # no errors
    streams = {out["name"] for cell in CODE for out in cell["outputs"] if out["output_type"] == "stream"}
    assert streams == {"stdout"}    # warnings and progress bars go to stderr

def test_the_stored_outputs_say_nothing_about_the_machine():
    """A path, a warning, a progress bar or a duration of one machine looks wrong on every other one."""
    found = [(cell["id"], out) for cell in CODE for out in cell["outputs"]]
    for where, out in found:
        shown = out.get("text", []) + [line for kind, v in out.get("data", {}).items() if "text" in kind for line in v]
        for bad in (r"(^|[\s\"'=(])(/|~/|[A-Z]:\\)\w+", r"Warning", r"it/s", r"\d%\|", r"\d s\b", r"\bseconds\b"):
            assert not re.search(bad, "".join(shown)), (where, bad, shown)

def test_the_pictures_are_small():
    """Git keeps every version of a picture for ever."""
    shown = [out.get("data", {}) for cell in CODE for out in cell["outputs"]]
    pictures = [one["image/png"] for one in shown if "image/png" in one]
    assert len(pictures) == sum(source(cell).count("plt.show()") for cell in CODE) >= 7
    assert all(base64.b64decode(picture)[:8] == b"\x89PNG\r\n\x1a\n" for picture in pictures)
    assert BOOK.stat().st_size < 400_000

# ---------------------------------------------------------------------------------------------------------------------
# the numbers in the text

def default(function, name):
    """The default of a function's argument."""
    return inspect.signature(function).parameters[name].default

def n_parameters(config):
    """The number of parameters of a GPT, which needs no memory for this."""
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(config).parameters())

def slope_of_dpo(h):
    """The derivative of DPO's loss at h."""
    h, zero = torch.tensor([h], requires_grad=True), torch.zeros(1)
    loss = losses.dpo(losses.Pairs(h, zero, zero, zero, zero, zero), beta=1.0)[0].sum()
    return torch.autograd.grad(loss, h)[0].item()

def job():
    """The main job's flags."""
    return train_pref.get_args(["--loss", "dpo"])

AGREES, VERDICT = toy.OPINION_AGREES, toy.VERDICT_AGREES
FACTS = [    # words of the text with their numbers, and these numbers computed from the code
    (r"(two) to (four) opinions", lambda: (min(toy.OPINIONS), max(toy.OPINIONS))),
    (r"first (twelve) words are the prompt", lambda: (toy.PROMPT_LEN,)),
    (r"good opinion multiplies the odds by (\d)", lambda: (AGREES / (1 - AGREES),)),
    (r"a verdict does the same with (\d)", lambda: (VERDICT / (1 - VERDICT),)),
    (r"model of (\d+) million parameters", lambda: (round(n_parameters(GPTConfig()) / 1e6),)),
    (r"guesses among (\d+) tokens has a loss of log \d+ = (\d+\.\d+)",
     lambda: (toy.encoding().n_vocab, math.log(toy.encoding().n_vocab))),
    (r"samples (four) completions", lambda: (default(sampling.make_pairs, "k"),)),
    (r"for (\d+) prompts to train on and (\d+) to validate",
     lambda: (job().n_prompts, default(sampling.prompts_for, "n_val"))),
    (r"loss is log 2 = (\d+\.\d+)", lambda: (math.log(2),)),
    (r"At h = 0 the slope is (-1/2)", lambda: (slope_of_dpo(0.0),)),
    (r"makes (\d+) updates with (\d+) pairs each", lambda: (job().max_steps, job().batch_size)),
    (r"completions of (\d+) prompts that no training", lambda: (eval.get_args(["--run", "x"]).n_prompts,)),
]
WORDS = {"two": 2, "four": 4, "twelve": 12, "-1/2": -0.5}

@pytest.mark.parametrize("words, computed", FACTS, ids=[words[:30] for words, _ in FACTS])
def test_a_number_of_the_text_is_the_code_s(words, computed):
    """A default is changed, and the text still has the old one."""
    stated = [WORDS[word] if word in WORDS else float(word) for word in re.search(words, TEXT).groups()]
    assert stated == pytest.approx(computed(), rel=1e-3)

def test_the_model_of_the_text_is_the_one_that_sft_trains():
    """The cell makes it from numbers of its own."""
    names = {"tokenizer": toy.encoding(), "torch": torch}
    exec(source(cell_with("GPTConfig(block_size")), names)
    args = train_sft.get_args([])
    model, *_ = train_sft.make_model("toy", **flags_of(args, train_sft.make_model))
    assert names["config"] == model.config
    stated = re.search(r"(\d+) blocks of width (\d+)", TEXT)
    assert (int(stated[1]), int(stated[2])) == (model.config.n_layer, model.config.n_embd)

def test_the_slope_of_dpo_in_the_text():
    """-sigmoid(-h): close to -1 for a pair in the wrong order, close to 0 but never 0 for a large margin."""
    assert "DPO's slope is -sigmoid(-h)" in TEXT
    for h in (-4.0, -1.0, 0.0, 2.0, 8.0):
        assert slope_of_dpo(h) == pytest.approx(-1 / (1 + math.exp(h)), rel=1e-5)

def row(label, text):
    """The means of both columns in a row of a printed table."""
    m = re.search(rf"^{label} +([\d.]+) \[.*?\] +([\d.]+) \[", text, re.M)
    return float(m[1]), float(m[2])

def check_printed(shown):
    """Claims of the text about printed numbers. shown: {id of a cell: what it has printed}."""
    look = lambda text: shown[cell_with(text)["id"]]
    about, above = map(float, re.search(r"reward rises from about (\d\.\d+) to above (\d\.\d+)", TEXT).groups())
    before, after = row("reward", look('print(table(result["measures"]))'))
    assert before == pytest.approx(about, abs=0.05) and after > above >= 0.9
    kl = row("KL to the reference, nats a completion", look('print(table(result["measures"]))'))
    assert kl[0] == 0 and 1 < kl[1] < 10
    assert "loss 0.6931\n" in look("preference_loss(")
    assert "less KL and a somewhat lower reward" in TEXT
    rewards, kls = (row(label, look("flags = ")) for label in ("reward", "KL to the reference, nats a completion"))
    assert rewards[0] == after and kls[0] == kl[1]    # the main job's column
    assert kls[1] < kls[0] and 0.85 < rewards[1] < rewards[0]

def test_the_stored_outputs_agree_with_the_text():
    """The text is corrected by hand after a change, or forgotten."""
    check_printed({cell["id"]: printed(cell) for cell in CODE})
    assert "In the stored picture, one word is wrong. `poor`" in TEXT
    assert re.search(r"chosen .* not poor ", printed(cell_with('pairs["val"][')))

# ---------------------------------------------------------------------------------------------------------------------
# all cells

RUNNER = """
import contextlib, io, json, sys, time
names, shown = {"__name__": "__main__"}, {}
cells = [cell for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
def run(cell):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    return printed.getvalue()
for cell in cells:
    shown[cell["id"]] = run(cell)
seconds = time.process_time()
again = [run(cell) for cell in cells[:5]]    # up to the SFT policy: the folder is another one now
word = names["texts"][0].index(" poor") if " poor" in names["texts"][0] else None
poor = word is not None and [float(names["moved"][0, names["mask"][0, 1:]][word]), float(names["credit"][0][word])]
json.dump({"shown": shown, "seconds": seconds, "path": names["path"], "steps": names["steps"], "poor": poor},
          open(sys.argv[2], "w"))
"""

@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(what RUNNER found, the folder out/walkthrough) of a fresh process in a copy of the project, in assignments/."""
    root = copied(ROOT, tmp_path_factory.mktemp("walkthrough") / "project")
    folder = root / "out" / "walkthrough"
    for name in ("dpo", "mine"):    # what an earlier run has left
        (folder / "out" / "toy" / name).mkdir(parents=True)
        (folder / "out" / "toy" / name / "left.txt").touch()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, "-c", RUNNER, BOOK.name, root / "found.json"], cwd=root / "assignments",
                          env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "found.json").read_text()), folder

@pytest.mark.slow
def test_all_cells_run_in_order_in_a_fresh_process_and_the_text_is_true(ran):
    """A student runs them from nothing, or after an earlier run. One process, since the run takes minutes."""
    found, folder = ran
    check_printed(found["shown"])
    check_the_runs(folder / "out" / "toy", found["steps"])
    if found["poor"] and printed(cell_with('pairs["val"][')).splitlines()[-2:] == \
            found["shown"][cell_with('pairs["val"][')["id"]].splitlines()[-2:]:    # the pair of the stored picture
        moved, credit = found["poor"]
        assert moved < 0 < credit
    for cell in CODE[1:4]:    # before the first training nothing depends on the processor
        assert found["shown"][cell["id"]] == printed(cell)
    text = (folder / found["path"]).read_text()    # it ends at the page of the run
    assert found["path"] == "out/toy/dpo/page.html" and "<h1>out/toy/dpo</h1>" in text
    assert f"../out/walkthrough/{found['path']}" in json.dumps(CODE[-1]["outputs"])
    # "less than five minutes on one CPU core": CPU time, because other programs may use the machine
    assert "less than five minutes on one CPU core" in TEXT and found["seconds"] < 300

def last(log, metric):
    """The last validation value of a metric in a log.csv."""
    values = [line.rsplit(",", 1)[1] for line in log.read_text().splitlines() if f",val,{metric}," in line]
    return float(values[-1])

def check_the_runs(runs, steps):
    """Claims of the text about the runs' files."""
    stated = float(re.search(r"At the end, the loss is about (\d\.\d+)", TEXT)[1])
    assert json.loads((runs / "sft" / "result.json").read_text())["best_val_loss"] == pytest.approx(stated, abs=0.05)
    assert len(list((runs / "sft").glob("pairs-*.jsonl"))) == 1    # the main job has used the pairs of the notebook
    assert not list(runs.glob("*/left.txt")) and sorted(p.name for p in runs.iterdir()) == ["dpo", "mine", "sft"]
    assert (runs / "sft" / "log.csv").read_text().count(",val,loss,") == 4    # trained once: the second time it is used
    assert "Here both rewards fall, the rejected one further" in TEXT
    log = runs / "dpo" / "log.csv"
    assert last(log, "rewards/rejected") < last(log, "rewards/chosen") < 0 < last(log, "rewards/margins")
    assert last(log, "loss") < math.log(2)
    assert "The first updates gain most of the reward for a small KL" in TEXT
    along = [json.loads((runs / "dpo" / f"step-{n}" / "eval.json").read_text())["measures"]["after"] for n in steps]
    assert steps[0] == 0 and len(steps) >= 4 and along[0]["kl"][0] < 1e-4
    gained = [one["reward"][0] - along[0]["reward"][0] for one in along]
    assert gained[1] > 0.5 * gained[-1] and along[1]["kl"][0] < 0.5 * along[-1]["kl"][0]
