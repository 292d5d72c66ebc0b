"""Tests of the documents and the design: commands parse, tables match the code, files have their size and imports."""
import ast
import re
import shlex
from pathlib import Path

import pytest

import data
import eval
import judge
import mutate
import page
import robust
import train_pref
import train_sft
from assignments import check, figures, grade, hunt, make, platforms
from losses import LOSSES
from rlhf import train_ppo, train_reward
from test_losses import PUBLISHED
from study import (bag, bandit, bench, beta, credit, displacement, estimators, fits, judges, quantized, real, sweep,
                   table)

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))
PARSERS = {f"{m.__name__}.py": m.get_args for m in (data, judge, train_sft, train_pref, eval, page)}
PARSERS |= {m.__name__: m.get_args for m in (table, sweep, bandit, bench, beta, credit, displacement, estimators, real)}
PARSERS |= {m.__name__: m.get_args for m in (bag, fits, judges, quantized, train_reward, train_ppo)}
PARSERS |= {m.__name__: m.get_args for m in (check, figures, grade, hunt, make, platforms)}
PARSERS["tests.robust"] = robust.get_args
PARSERS["tests.mutate"] = mutate.get_args
CEILINGS = {    # file -> the most lines that it may have
    "model.py": 380, "losses.py": 580, "losses_free.py": 200, "data.py": 380, "train_sft.py": 160, "train_pref.py": 170,
    "loop.py": 290, "adapters.py": 180, "eval.py": 360, "measures.py": 415, "toy.py": 170, "sampling.py": 170,
    "judge.py": 210, "page.py": 340, "reward.py": 90, "reference.py": 60, "objective.py": 60, "rounds.py": 130,
    "logps.py": 100, "chat.py": 200, "unpaired.py": 120, "preferences.py": 80,
    "displacement.py": 210, "questions.py": 140, "judge_check.py": 290, "winrates.py": 165, "arena.py": 180,
    "quantize.py": 230,
}
CEILINGS |= {str(path.relative_to(ROOT)): 400 for path in (ROOT / "support").glob("*.py")}
CORE = [ROOT / name for name in CEILINGS]
ROOMS = [*(ROOT / "study").glob("*.py"), *(ROOT / "rlhf").glob("*.py")]
TOOLS = [ROOT / "tests" / "robust.py", ROOT / "tests" / "mutate.py", *(ROOT / "assignments").glob("*.py")]

def commands():
    """(script, flags) of every command in the documents and in the docstrings of scripts."""
    for path in [ROOT / "README.md", *PAGES, *CORE, *ROOMS, *TOOLS]:
        for line in path.read_text().splitlines():
            m = re.match(r" {4}(?:pip .* && )?python (?:-m )?(\S+)(.*?)(?:  +#.*)?$", line)
            if m and m[1] in PARSERS:
                yield pytest.param(m[1], m[2], id=f"{path.name}: {m[1]}{m[2]}"[:60])

@pytest.mark.parametrize("script, flags", commands())
def test_every_command_shown_parses(script, flags):
    """A flag may be renamed in the code only. The README's commands are the first that a user tries."""
    PARSERS[script](shlex.split(flags))

@pytest.mark.parametrize("path", [*CORE, *ROOMS], ids=lambda path: path.name)
def test_nothing_from_a_file_is_ever_run(path):
    """torch.load can run code from a file unless weights_only is set. No pickle, eval, exec or shell is used either."""
    names = {"pickle", "marshal", "shelve", "dill", "joblib", "os.system", "os.popen", "exec", "compile", "__import__"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert not names & {getattr(node, "module", ""), *(a.name for a in node.names)}
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            flags = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert call not in names | {"eval"} and "shell" not in flags and "trust_remote_code" not in flags
            assert not call.endswith("torch.load") or flags.get("weights_only") == "True"
            assert flags.get("allow_pickle", "False") == "False"

def test_there_are_commands_to_check():
    """If the pattern above no longer matched, the test above would check nothing."""
    assert len(list(commands())) >= 12

@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_tables_are_made_from_the_code_and_the_results(path):
    """A table may be edited by hand, or a default changed without its table. `python -m study.table` writes them."""
    message = f"{path.name} is not what `python -m study.table` writes; run it"
    assert table.filled(path.read_text()) == path.read_text(), message

def test_every_table_stands_in_one_document():
    """A table in no document is dead code. A table in two documents is one fact in two places."""
    shown = re.findall(r"<!-- ([\w ]+): made by", "".join(path.read_text() for path in [ROOT / "README.md", *PAGES]))
    assert sorted(shown) == sorted(table.TABLES)

def test_the_readme_is_a_front_page():
    """It once grew to 15,000 words, and nobody read it."""
    rows = [line for line in README.splitlines() if line.startswith("|")]
    assert len(README.split()) <= 2200 and len(rows) <= 25 and README.count("![") <= 4

@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_can_be_found_and_read(path):
    """Nobody finds a page without a link in the README. Tables of more than 7 columns do not fit a screen."""
    text = path.read_text()
    assert f"(docs/{path.name})" in README and text.startswith("# ")
    assert all(len(re.findall(r"(?<!\\)\|", line)) <= 8 for line in text.splitlines() if line.startswith("|"))

@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_links_and_pictures_lead_somewhere(path):
    """When a file is renamed, links to it are easily forgotten."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target

def test_every_published_loss_of_the_table_has_its_formula_and_source():
    """Regular expressions read the docstrings. One in another form would give an empty cell. New losses are exempt."""
    rows = table.losses_table().splitlines()[2:]
    assert len(rows) == len(LOSSES) and {row.count("|") - row.count("\\|") for row in rows} == {6}
    for row in rows:
        name, formula, source = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:4])
        assert name.strip("`") in LOSSES
        has_both = len(formula) > 5 and ("arXiv" in source or "ericmitchell" in source)
        assert name.strip("`") not in PUBLISHED or has_both, row

@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_no_file_is_longer_than_can_be_read_at_a_sitting(path):
    """Files grow line by line. Code that does not fit belongs in another file."""
    assert len(path.read_text().splitlines()) <= CEILINGS[str(path.relative_to(ROOT))]

FOLDERS = (".", "support", "rlhf", "study", "assignments")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]

@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_function_is_longer_than_a_screen(path):
    """A loop of 100 lines cannot be read step by step or used as an exercise."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 50, f"{path.name}: {node.name}"

@pytest.mark.parametrize("path", [p for p in CORE if p.parent == ROOT], ids=lambda p: p.name)
def test_a_core_file_names_its_page_and_what_to_read_next(path):
    """A reader of one file must find the explanation and the next file."""
    doc = ast.get_docstring(ast.parse(path.read_text()))
    page = re.search(r"docs/[a-z-]+\.md", doc)
    assert page and (ROOT / page[0]).is_file(), doc
    for name in re.findall(r"Read (?:first|next): ([^\n]*)", doc):
        assert all((ROOT / file).is_file() for file in re.findall(r"[\w/]+\.(?:py|md)", name)), name

def imported(path):
    """The modules of the project that a file imports: model, support.cli, ..."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            of_support = {f"support.{a.name}" for a in node.names}
            names |= of_support if node.module == "support" else {node.module}
    return names

def test_imports_run_one_way():
    """With a circular import, or a core file that needs a side room, the files cannot be read in order."""
    order = ("model quantize adapters toy unpaired data sampling logps losses_free losses loop reference rounds "
             "measures winrates objective reward chat preferences train_sft displacement eval questions judge_check "
             "arena judge train_pref").split()
    alone = {"model": set(), "quantize": {"model"}, "adapters": {"model", "quantize"}, "toy": set(), "logps": set(),
             "losses_free": set(), "losses": {"logps", "losses_free"}, "loop": set(), "unpaired": set()}
    for path in (ROOT / f"{name}.py" for name in order):
        used = {name.split(".")[0] for name in imported(path)}
        assert not used & {"study", "rlhf", "transformers", "trl", "peft"}, path.name
        later = {name for name in order[order.index(path.stem):] if name in used}
        assert not later, f"{path.name} imports {later}"
        more = used & set(order) - alone.get(path.stem, set(order))    # these files import nothing else of the root
        assert not more, f"{path.name} imports {more}"

def test_support_imports_nothing_of_the_root():
    """A reader should be able to skip support/, which is impossible if it uses core files."""
    for path in (ROOT / "support").glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & {p.stem for p in ROOT.glob("*.py")}, path.name

@pytest.mark.parametrize("path", CORE, ids=lambda p: p.name)
def test_a_file_opens_with_what_it_is_and_public_functions_have_docstrings(path):
    """The first line of a file is shown in listings, so it must say what the file is."""
    tree = ast.parse(path.read_text())
    assert len(ast.get_docstring(tree).splitlines()[0]) > 30
    assert "TODO" not in path.read_text() and "FIXME" not in path.read_text()
    for node in tree.body:
        assert not isinstance(node, (ast.For, ast.While, ast.With)), f"{path.name} works at import"

def test_the_readme_names_every_core_file():
    """Nobody reads a file that is not in the reading order."""
    assert all(path.name in README for path in CORE if path.parent == ROOT)
