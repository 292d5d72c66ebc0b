"""A class as it is handed in: archives of all kinds, names of all kinds, and submissions that could stop the rest."""
import csv
import json
import os
import re
import zipfile
from pathlib import Path

import pytest

from assignments import grade, graft, make, platforms
from assignments.exercise import exercises
from assignments.grade import other_variant

E = exercises("hw2")
FILES = sorted({e.file for e in E})
POINTS = {e.number: e.points for e in E}
DPO = next(e for e in E if e.targets == ("losses.py:dpo",))

@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    """hw2 as a student gets it."""
    folder = tmp_path_factory.mktemp("class") / "hw2"
    make.make("hw2", folder)
    return folder

def solved(blank, pick=lambda e: e.source()):
    """file -> text of a submission whose functions are those of pick(exercise)."""
    texts = {file: (blank / file).read_text() for file in FILES}
    for e in E:
        for name in e.names:
            texts[e.file] = graft.put(texts[e.file], name, graft.source_of(pick(e), name))
    return texts

def write(folder, texts):
    folder.mkdir(parents=True)
    for file, text in texts.items():
        (folder / file).write_text(text)

def zipped(path, texts, folder="", separator="/"):
    """A zip as a program writes it that puts this separator behind the folder."""
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in texts.items():
            info = zipfile.ZipInfo(file)
            info.filename = info.orig_filename = f"{folder}{separator}{file}" if folder else file
            archive.writestr(info, text)

def with_dpo(texts, body):
    """The texts with another body of dpo."""
    head = "def dpo(pairs, *, beta=0.1):\n    "
    return texts | {"losses.py": graft.put(texts["losses.py"], "dpo", head + body)}

def table(path):
    with open(path, newline="", encoding="utf-8-sig") as f:
        head, *rows = csv.reader(f)
    return {row[0]: dict(zip(head[1:], row[1:])) for row in rows}

# ---------------------------------------------------------------------------------------------------------------------
# what was handed in

@pytest.mark.parametrize("name, folder, separator", [
    ("a b ü.zip", "", "/"), ("wrapped.ZIP", "hw2/my copy", "/"), ("windows.zip", "hw2", "\\")])
def test_the_files_of_a_zip_are_found(tmp_path, name, folder, separator):
    """Each of these was eight lines "is missing" for a right solution."""
    zipped(tmp_path / name, {"data.py": "x = 1\n"} | {f"__MACOSX/._{f}": "" for f in FILES}, folder, separator)
    (tmp_path / "scratch").mkdir()
    found, lines = platforms.opened(tmp_path / name, tmp_path / "scratch", FILES)
    assert (found / "data.py").read_text() == "x = 1\n" and lines == []

def test_an_upload_in_a_folder_and_a_second_copy(tmp_path):
    """Learning platforms wrap each upload in a folder. Which of two copies is graded must be said."""
    write(tmp_path / "anna", {"answers.pdf": ""})
    zipped(tmp_path / "anna" / "hw2.zip", {"data.py": ""})
    (tmp_path / "scratch").mkdir()
    assert platforms.opened(tmp_path / "anna", tmp_path / "scratch", FILES) == (tmp_path / "scratch", [])
    write(tmp_path / "two" / "hw2", {"data.py": "", "loop.py": ""})
    write(tmp_path / "two" / "old" / "hw2", {"data.py": "", "loop.py": ""})
    folder, lines = platforms.opened(tmp_path / "two", tmp_path, FILES)
    assert folder == tmp_path / "two" / "hw2" and "old/hw2" in lines[0]

def test_what_cannot_be_opened_has_one_line(tmp_path):
    """An entry that is left out in silence is a student without a grade."""
    (tmp_path / "a.rar").write_text("")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "other", {"main.py": ""})
    (tmp_path / "link").symlink_to(tmp_path / "other")
    zipped(tmp_path / "damaged.zip", {"data.py": "x" * 100})
    damaged = (tmp_path / "damaged.zip").read_bytes().replace(b"xxxx", b"xyxy")
    (tmp_path / "damaged.zip").write_bytes(damaged)
    for name, words in (("a.rar", "neither a folder nor a .zip"), ("empty", "it is empty"), ("link", "not followed"),
                        ("other", "all missing; it has main.py"), ("damaged.zip", "not a zip file that can be read")):
        with pytest.raises((SystemExit, graft.Unreadable), match=words):
            platforms.opened(tmp_path / name, tmp_path, FILES)

def test_a_file_that_is_not_utf8_names_its_line(tmp_path):
    """Without the line a student looks for a sign that an editor shows as usual."""
    (tmp_path / "data.py").write_bytes(b"x = 1\n# Gr\xfc\xdfe\n")
    with pytest.raises(graft.Unreadable, match="data.py, line 2: not UTF-8"):
        grade.submitted_text(tmp_path, "data.py")

def test_a_copy_of_another_variant_is_told(blank, tmp_path):
    """A class that is graded without its --variant has no points, and hints that lead nowhere."""
    make.make("hw2", tmp_path / "varied", variant=7)
    assert other_variant(E, blank, None) == [] and other_variant(exercises("hw2", 7), tmp_path / "varied", 7) == []
    [line] = other_variant(E, tmp_path / "varied", None)
    assert line.startswith("graded without --variant, but") and "hw2.8" in line
    [line] = other_variant(exercises("hw2", 7), blank, 7)
    assert line.startswith("graded with --variant 7, but")

# ---------------------------------------------------------------------------------------------------------------------
# the table

def test_no_cell_is_a_formula_and_no_two_names_are_one():
    """A spreadsheet runs "=cmd|..." when the teacher opens the file."""
    assert platforms.for_spreadsheet("=cmd|' /C calc'!A0") == "'=cmd|' /C calc'!A0"
    assert all(platforms.for_spreadsheet(sign + "1")[0] == "'" for sign in "=+-@")
    assert platforms.for_spreadsheet('x; "=1"') == "x;' \"=1\"" and platforms.for_spreadsheet("x; y - 1") == "x; y - 1"
    assert len({platforms.name_of(Path(name)) for name in ("a\nb", "a\\nb", "a\\\nb", "=a", "'=a", "a")}) == 6
    assert platforms.shown("a\nb") == "a\\nb" and platforms.shown("ü \udcef").encode() == "ü \\udcef".encode()

class Breaks:
    """A grader that fails on one submission."""
    exercises, files, seed = [DPO], FILES, 0

    def __init__(self):
        self.workers, self.seen = [self], []

    def close(self):
        self.seen.append("closed")

    def key(self, exercise):
        pass

    def remarks(self, folder):
        return []

    def grade(self, folder):
        self.seen.append(folder.name)
        if folder.name == "bert":
            raise OSError("no space\nleft")
        return [grade.Graded(DPO.number, DPO.title, 5, 5)]

def test_a_failure_costs_its_row_and_a_class_is_resumed(tmp_path, capsys):
    """A crash at submission 17 of 30 must cost neither the 16 before nor the 13 after it."""
    for name in ("anna", "bert", "carl"):
        write(tmp_path / "in" / name, {"losses.py": ""})
    grader, out = Breaks(), tmp_path / "in" / "grades.csv"
    platforms.write_csv(grader, tmp_path / "in", out)
    found = table(out)
    assert [found[name]["total"] for name in ("anna", "bert", "carl")] == ["5", "0", "5"] and len(found) == 3
    said = found["bert"]["remarks"]
    assert "THE GRADER FAILED" in said and "no space left (test_platforms.py:" in said
    assert grader.seen == ["anna", "bert", "closed", "carl"]
    lines = out.read_text(encoding="utf-8-sig").splitlines()
    out.write_text("\n".join([*lines[:2], "bert,0"]))    # killed while it wrote
    platforms.write_csv(grader, tmp_path / "in", out, resume=True)
    assert grader.seen[4:] == ["bert", "closed", "carl"] and table(out) == found
    out.write_text("something else\n")
    with pytest.raises(SystemExit, match="not a CSV of this homework"):
        platforms.write_csv(grader, tmp_path / "in", out, resume=True)

@pytest.mark.slow
def test_a_class_from_folder_to_table(blank, tmp_path, capsys, monkeypatch):
    """Eight that were handed in, through main. Each mistake costs its exercise, and nothing else."""
    few = [e for e in E if e.file in ("losses.py", "loop.py")]    # half of the homework takes half of the time
    monkeypatch.setattr(grade, "exercises", lambda homework, variant: few)
    right, into = solved(blank), tmp_path / "in"
    write(into / "right", right)
    zipped(into / "right.zip", solved(blank, lambda e: e.with_alternative(min(e.alternatives))), "hw2", "\\")
    write(into / "mistakes", solved(blank, lambda e: e.with_mistake(min(e.mistakes))))
    write(into / "=blank", {file: (blank / file).read_text() for file in FILES})
    write(into / "syntax", with_dpo(right, "return (1"))
    write(into / "exit\n", with_dpo(right, "exit()"))
    write(into / os.fsdecode(b"formula-\xef"), with_dpo(right, "raise ValueError('=1+1')"))
    (into / "alone.py").write_text(right["losses.py"])
    platforms.main(["csv", "hw2", "--submissions", str(into), "--out", str(tmp_path / "grades.csv")])
    found = table(tmp_path / "grades.csv")
    whole, rest = str(sum(e.points for e in few)), str(sum(e.points for e in few) - DPO.points)
    totals = {"right": whole, "right.zip": whole, "mistakes": "0", "'=blank": "0", "syntax": rest, "exit\\n": rest,
              "formula-\\udcef": rest, "alone.py": "0"}
    assert {name: row["total"] for name, row in found.items()} == totals
    assert found["right"]["remarks"] == "the same code as the public project: all exercises"
    assert found["right.zip"]["remarks"] == ""
    assert found["'=blank"]["remarks"] == f"{', '.join(e.number for e in few)}: not written yet"
    hints = found["mistakes"]["remarks"].split(" | ")
    assert len(hints) == len(few) and all("(handout: " in hint for hint in hints)
    for name, words in (("syntax", "not Python"), ("exit\\n", "called exit()"),
                        ("formula-\\udcef", "ValueError: =1+1")):
        assert words in found[name]["remarks"] and found[name][DPO.number] == "0"

def test_wrong_calls_have_one_line(tmp_path, capsys):
    """A traceback, or minutes of grading before "no such folder", is no answer to a typing error."""
    (tmp_path / "file").write_text("")
    (tmp_path / "there.csv").write_text("")
    here, out, file = str(tmp_path), str(tmp_path / "x.csv"), str(tmp_path / "file")
    csv_of = lambda folder, out: platforms.main(["csv", "hw2", "--submissions", folder, "--out", out])
    for call, words in ((lambda: csv_of(here + "/none", out), "there is no such folder"),
                        (lambda: csv_of(file, out), "is a file, not a folder"),
                        (lambda: csv_of(here, here + "/none/x.csv"), "there is no folder"),
                        (lambda: csv_of(here, here), "is a folder; give a file"),
                        (lambda: csv_of(here, str(tmp_path / "there.csv")), "exists already"),
                        (lambda: grade.main(["hw2", "--submission", file]), "is a file, not a folder"),
                        (lambda: grade.main(["hw2", "--submission", here]), "are all missing; it has file, there.csv")):
        with pytest.raises(SystemExit) as end:
            call()
        assert words in str(end.value) and "\n" not in str(end.value)
    for argv, words in ((["csv", "hw9", "--out", out], "hw9"), (["classroom", "hw2", "--out", out], "--repository"),
                        (["csv", "hw2", "--out", out], "--submissions"),
                        (["nbgrader", "hw2", "--out", out, "--resume"], "--resume is for csv only")):
        with pytest.raises(SystemExit):
            platforms.main(argv)
        assert words in capsys.readouterr().err.splitlines()[-1]

# ---------------------------------------------------------------------------------------------------------------------
# platforms

def test_nbgrader_accepts_the_notebook_and_keeps_the_students_files(tmp_path, capsys):
    """A grade_id with a dot does not validate. By default nbgrader puts the blank files over those handed in."""
    platforms.main(["nbgrader", "hw2", "--out", str(tmp_path / "hw2.ipynb"), "--variant", "7"])
    printed = capsys.readouterr().out
    cells = [c for c in json.loads((tmp_path / "hw2.ipynb").read_text())["cells"] if c["metadata"]]
    about = [c["metadata"]["nbgrader"] for c in cells]
    assert all(re.fullmatch(r"[a-zA-Z0-9_\-]+", x["grade_id"]) and x["locked"] for x in about)
    assert [x.get("points") for x in about] == [None, *POINTS.values()] and not about[0]["grade"]
    assert f"exclude_overwriting = {{{tmp_path.name!r}: {FILES}}}" in printed and "timeout = 900" in printed
    for c in cells:
        compile(c["source"], "cell", "exec")
    assert '"--variant", "7"' in cells[0]["source"]

def test_pip_takes_torch_without_cuda(tmp_path):
    """The default on Linux is a build of gigabytes for a GPU that these machines do not have."""
    platforms.main(["gradescope", "hw2", "--out", str(tmp_path / "a.zip")])
    setup = zipfile.ZipFile(tmp_path / "a.zip").read("setup.sh").decode()
    pinned = re.search(r"torch==\S+", Path(grade.ROOT / "requirements.txt").read_text())[0]
    assert setup.index(f"{pinned} --index-url https://download.pytorch.org/whl/cpu") < setup.index("requirements.txt")
