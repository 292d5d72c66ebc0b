"""What the documents say is so: commands parse, tables are the code's, sizes and imports are those of the design."""
import ast
import re
import shlex
from pathlib import Path

import pytest

import data
import eval
import judge
import mutate
import train_pref
import train_sft
import robust
from rlhf import train_ppo, train_reward
from study import bag, bandit, bench, real, sweep, table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PARSERS = {f"{m.__name__}.py": m.get_args for m in (data, judge, train_sft, train_pref, eval)}
PARSERS |= {m.__name__: m.get_args for m in (table, sweep, bandit, bench, real, bag, train_reward, train_ppo)}
PARSERS["tests.robust"] = robust.get_args
PARSERS["tests.mutate"] = mutate.get_args
CEILINGS = {"model.py": 360, "losses.py": 520, "data.py": 380, "train_sft.py": 150, "train_pref.py": 150, "loop.py": 250,
            "adapters.py": 160, "eval.py": 360, "measures.py": 200, "toy.py": 160, "cli.py": 240, "sources.py": 260, "judge.py": 160,
            "cpu.py": 80, "reward.py": 80, "logps.py": 120, "checkpoint.py": 190, "parallel.py": 100}
CORE = [ROOT / name for name in CEILINGS]

def commands():
    for path in [ROOT / "README.md", *CORE, *(ROOT / "study").glob("*.py"), *(ROOT / "rlhf").glob("*.py"),
                 ROOT / "tests" / "robust.py", ROOT / "tests" / "mutate.py", ROOT / "docs" / "tests.md"]:
        for line in path.read_text().splitlines():
            if m := re.match(r" {4}(?:pip .* && )?python (?:-m )?(\S+)(.*?)(?:  +#.*)?$", line):
                if m[1] in PARSERS:
                    yield pytest.param(m[1], m[2], id=f"{path.name}: {m[1]}{m[2]}"[:60])

@pytest.mark.parametrize("script, flags", commands())
def test_every_command_shown_parses(script, flags):
    """A README with options that do not exist is the first thing that a user meets."""
    PARSERS[script](shlex.split(flags))

@pytest.mark.parametrize("path", [*CORE, *(ROOT / "study").glob("*.py"), *(ROOT / "rlhf").glob("*.py")], ids=lambda path: path.name)
def test_nothing_from_a_file_is_ever_run(path):
    """No pickle, eval, exec or shell; torch.load, which can run what it reads, only as weights_only."""
    names = {"pickle", "marshal", "shelve", "dill", "joblib", "os.system", "os.popen", "exec", "compile", "__import__"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert not names & {getattr(node, "module", ""), *(a.name for a in node.names)}
        if isinstance(node, ast.Call):
            call, flags = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert call not in names | {"eval"} and "shell" not in flags and "trust_remote_code" not in flags
            assert not call.endswith("torch.load") or flags.get("weights_only") == "True"
            assert flags.get("allow_pickle", "False") == "False"

def test_there_are_commands_to_check():
    """If the pattern above stops matching, nothing is tested."""
    assert len(list(commands())) >= 12

def test_the_readme_tables_are_made_from_the_code_and_the_results():
    """A table edited by hand, or a default changed without it."""
    assert table.filled(README) == README

def test_every_loss_of_the_table_has_its_formula_and_source():
    """The regular expressions read docstrings: one written otherwise would give an empty cell."""
    from losses import LOSSES
    rows = table.losses_table().splitlines()[2:]
    assert len(rows) == len(LOSSES)
    for row in rows:
        name, formula, source = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:4])
        assert name.strip("`") in LOSSES and len(formula) > 5 and ("arXiv" in source or "ericmitchell" in source), row

@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_no_file_is_longer_than_can_be_read_at_a_sitting(path):
    """The ceiling is a fact about the design: what does not fit belongs into another room."""
    assert len(path.read_text().splitlines()) <= CEILINGS[path.name]

def test_imports_run_one_way():
    """A circle, or a core file that needs a side room, and the files can no longer be read in order."""
    order = ("cpu checkpoint parallel model logps losses toy adapters loop sources data measures cli reward train_sft eval judge "
             "train_pref").split()
    alone = {"cpu": set(), "checkpoint": set(), "parallel": set(), "model": {"cpu", "checkpoint"}, "logps": {"cpu"}, "losses": {"logps"},
             "toy": set(), "adapters": {"checkpoint"}, "loop": {"checkpoint", "parallel"}}
    rank = {name: i for i, name in enumerate(order)}
    for path in CORE:
        used = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add(node.module.split(".")[0])
        assert not used & {"study", "rlhf", "transformers", "trl", "peft"}, path.name
        later = {u for u in used & rank.keys() if rank[u] >= rank[path.stem]}
        assert not later, f"{path.name} imports {later}"
        more = used & rank.keys() - alone.get(path.stem, rank.keys())    # those files know nothing else of the project
        assert not more, f"{path.name} imports {more}"

@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_a_file_opens_with_what_it_is_and_public_functions_have_docstrings(path):
    """The first line is what a reader sees in the listing; main and get_args are the same everywhere."""
    tree = ast.parse(path.read_text())
    assert len(ast.get_docstring(tree).splitlines()[0]) > 30
    assert "TODO" not in path.read_text() and "FIXME" not in path.read_text()
    for node in tree.body:
        assert not isinstance(node, (ast.For, ast.While, ast.With)), f"{path.name} works at import"

def test_the_readme_names_every_core_file():
    """A file that is not in the reading order is not read."""
    assert all(f"`{path.name}`" in README for path in CORE)
