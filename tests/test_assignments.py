"""The course in a box: making a copy, running a student's code, recognizing mistakes, and attacks on the grader."""
import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assignments import check, grade, graft, hunt, make, platforms, recognize, wire
from assignments.exercise import HOMEWORKS, ROOT, Mistake, exercises
from assignments.grade import Grader, Worker, clean_copy, ignored, key_of

DPO = next(e for e in exercises("hw2") if e.targets == ("losses.py:dpo",))
RIGHT = "w, l, h = log_ratios(pairs, beta)\n    return with_rewards(F.softplus(-h), beta, w, l)"
BLANK = f"raise NotImplementedError({DPO.number!r})"

@pytest.fixture(scope="module")
def grader():
    """For dpo alone, so that each test grades one exercise."""
    with Grader("hw2", seed=5) as grader:
        grader.exercises = [DPO]
        yield grader

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """hw2 as a student gets it."""
    folder = tmp_path_factory.mktemp("hw2") / "copy"
    make.make("hw2", folder)
    return folder

@pytest.fixture
def submit(grader, copy, tmp_path):
    """submit(body, more): what is graded for a submission whose dpo has this body. `more` ends the file."""
    def graded(body, more=""):
        text = (copy / "losses.py").read_text()
        assert BLANK in text
        (tmp_path / "losses.py").write_text(text.replace(BLANK, body) + more)
        return grader.grade(tmp_path)[0]
    return graded

# ---------------------------------------------------------------------------------------------------------------------
# functions as text, arrays as bytes

SOURCE = '''import math

@cached
def f(x):
    """Doc.

    the answer is 2x
    """
    y = 2 * x    # twice
    return y

class A:
    def g(self): return 1

    def f(self):
        return 3
'''

def test_a_body_is_taken_out_and_the_rest_stays():
    """Decorator, signature and docstring are what the student works from. A method may have the same name."""
    blank = graft.blank(SOURCE, "f", "hw0.1", ("the answer",))
    assert '@cached\ndef f(x):\n    """Doc.\n\n    """\n    raise NotImplementedError(\'hw0.1\')\n' in blank
    assert blank.endswith(SOURCE[SOURCE.index("\nclass A"):]) and "2 * x" not in blank and "2x" not in blank
    method = graft.blank(SOURCE, "A.f", "hw0.2")
    assert "return 3" not in method and "return y" in method
    exec(compile(graft.blank(SOURCE, "A.g", "x").replace("@cached", ""), "", "exec"), {})

def test_a_hidden_line_leaves_no_blank_lines_behind():
    """Two blank lines, or one before the quotes, tell a student that something was taken out. Code stays as it is."""
    doc = '''def f(x):
    """
    One.

    the answer is 2x

    the answer is 2x too

    Two.

        the answer, as a table

    """
    text = 1    # the answer is code here

    return text

# the answer

def g(x):
    """
    Three.

    the answer at the end
    """
'''
    kept = make.without(doc, ("the answer",))
    assert kept == '''def f(x):
    """
    One.

    Two.
    """
    text = 1    # the answer is code here

    return text


def g(x):
    """
    Three.
    """
'''
    assert make.without(doc.replace("answer", "rest"), ("the answer",)) == doc.replace("answer", "rest")

def test_a_function_is_grafted_with_its_helpers_and_imports_only():
    """A helper that stays behind is a NameError; an edit elsewhere would give points for another exercise."""
    student = SOURCE.replace("2 * x", "twice(x)").replace("return 3", "return 4")
    student = student.replace("import math", "import math\nimport cmath")
    student += "\ndef twice(x):\n    return x + x + 0 * len(cmath.__name__)\n"
    text = graft.graft(student, SOURCE, ["f"], "f.py")
    space = {"cached": lambda f: f}
    exec(compile(text, "", "exec"), space)
    assert space["f"](4) == 8 and space["A"]().f() == 3
    assert graft.other_edits(student, SOURCE, ["f"]) == ["A"] and graft.other_edits(SOURCE, SOURCE, ["f"]) == []

def test_what_cannot_be_grafted_is_one_line():
    """A traceback of the grader's tells a student nothing."""
    cases = (("def f(x:\n", "line 1: not Python"), ("def g(): pass", "there is no function f"), ("\0", "not Python"))
    for text, words in cases:
        with pytest.raises(graft.Unreadable) as error:
            graft.graft(text, SOURCE, ["f"], "f.py")
        assert words in str(error.value) and "\n" not in str(error.value)

def test_messages_come_back_as_they_were():
    """Shapes, dtypes, infinities and empty arrays."""
    value = dict(a=[np.arange(6.0).reshape(2, 3), np.zeros((0, 2), "int64"), None, "x", 1.5, True],
                 b=dict(c=np.array([np.inf, np.nan]), array=np.array(True)))
    back = wire.unpack(wire.pack(value))
    both = ((value["a"][0], back["a"][0]), (value["a"][1], back["a"][1]), (value["b"]["c"], back["b"]["c"]))
    for left, right in both:
        assert left.dtype == right.dtype and left.shape == right.shape
        assert np.array_equal(left, right, equal_nan=True)
    assert back["a"][2:] == [None, "x", 1.5, True] and back["b"]["array"].shape == ()

def test_bytes_that_are_no_message_are_refused():
    """They come from hostile code. Only ValueError may leave unpack, and a false length must not take memory."""
    good, rng = wire.pack(dict(a=np.arange(4.0))), np.random.default_rng(0)
    array = wire.frame(b'{"array": 0}')
    for bad in (b"", b"x", good[:-1], wire.frame(b"["), array, wire.frame(b'{"dict": 3}'), b"\xff" * 40,
                array + wire.frame(b'["float64", [1000000000000]]') + wire.frame(b""),
                array + wire.frame(b'["object", [1]]') + wire.frame(b"12345678"), wire.frame(b"[" * 100_000)):
        with pytest.raises(ValueError):
            wire.unpack(bad)
    for _ in range(300):
        damaged = bytearray(good)
        damaged[rng.integers(len(good))] = rng.integers(256)
        try:
            wire.unpack(bytes(damaged))
        except ValueError:
            pass

def test_a_driver_has_what_run_calls_and_no_more():
    """A part that several exercises share would be a NameError in the worker; a mistake in the text would be a hint."""
    space = {}
    exec(DPO.driver(), space)
    assert {name for name in space if name != "__builtins__"} == {"pairs_of", "values_and_gradients", "run"}
    assert set(DPO.run.__code__.co_names) & space.keys() == {"pairs_of", "values_and_gradients"}

# ---------------------------------------------------------------------------------------------------------------------
# recognition

def results(*arrays):
    return [{"arrays": {"y": np.asarray(a, "float64")}, "changed": []} for a in arrays]

WANT = results([[1.0, 2.0], [3.0, 5.0], [7.0, 1.0]], [[2.0, 4.0]])
PROBES = [dict(title="first", rows=["short", "long", "no padding"]), dict(title="second")]

@pytest.mark.parametrize("found, fact", [
    (results([[-1.0, -2.0], [-3.0, -5.0], [-7.0, -1.0]], [[-2.0, -4.0]]),
     "`y` is the right answer times -1, everywhere"),
    (results([[1.5, 2.5], [3.5, 5.5], [7.5, 1.5]], [[2.5, 4.5]]), "`y` is the right answer plus 0.5, everywhere"),
    (results([[9.0, 2.0], [3.1, 5.0], [7.0, 1.0]], [[2.0, 4.0]]), "`y`: of 3 rows only row 2 (no padding) is right"),
    (results([[1.0, 2.0], [3.0, 5.0], [7.0, 1.0]], [[2.0, 9.0]]), "right on 'first'; wrong on 'second'"),
    (results([1.0, 2.0, 3.0], [2.0]), "`y` has the shape (3,), not (3, 2) on 'first'"),
    (results([[np.nan, 2.0], [3.0, 5.0], [7.0, 1.0]], [[2.0, 4.0]]),
     "`y` has 1 values of 6 that are nan or infinite on 'first'"),
    ([WANT[0] | {"changed": ["x"]}, WANT[1]], "changes its input `x` in place"),
    ([{"arrays": {}, "changed": []}, WANT[1]], "`y` is missing from the result on 'first'"),
    ([{"error": "ValueError: no"}, WANT[1]], "ValueError: no (on 1 of 2 probes, first on 'first')")])
def test_facts_are_true_of_the_result(found, fact):
    """A hint that is guessed sends a student in a wrong direction; a fact cannot."""
    judged = recognize.judge(found, WANT, {}, PROBES, 1e-9)
    assert not judged.right and not judged.mistake and fact in judged.facts

def test_an_invariance_that_does_not_hold_is_told():
    """What stands behind EOS is padding: the likeliest place of a mask that is shifted."""
    probes = [PROBES[1], dict(same_as=0, differs_in="what stands behind EOS")]
    want = results([1.0, 2.0], [1.0, 2.0])
    judged = recognize.judge(results([1.0, 3.0], [1.0, 4.0]), want, {}, probes, 1e-9)
    assert "the result changes with what stands behind EOS, and should not" in judged.facts

# ---------------------------------------------------------------------------------------------------------------------
# a student's copy

@pytest.mark.parametrize("homework", HOMEWORKS)
def test_no_copy_holds_an_answer(homework, tmp_path):
    """Each expression that a mistake breaks is an answer: it must stand nowhere in the copy, in code or in prose."""
    make.make(homework, tmp_path / "copy")
    files = [path for path in (tmp_path / "copy").rglob("*") if path.suffix in (".py", ".md")]
    text = {path: "".join(path.read_text().split()) for path in files}
    for exercise in exercises(homework):
        for name, mistake in exercise.mistakes.items():
            for right, _ in mistake.edits:
                answer = "".join(right.split())
                places = [str(path) for path, whole in text.items() if answer in whole]
                shared = right.strip() in exercise.shared or len(answer) < 12
                assert shared or not places, f"{exercise.number}, {name}: {right} stands in {places}"
    assert not [p for p in (tmp_path / "copy").rglob("*") if p.name in ("tests", "docs", ".git", "oracle")]

@pytest.mark.parametrize("homework", HOMEWORKS)
def test_every_hint_leads_to_a_section_of_the_handout(homework):
    """A hint that names a section which does not exist is a dead end."""
    handout = (ROOT / "assignments" / homework / "README.md").read_text()
    headings = {line.lstrip("# ").strip() for line in handout.splitlines() if line.startswith("#")}
    for exercise in exercises(homework):
        assert exercise.number in handout, exercise.number
        for name, mistake in exercise.mistakes.items():
            assert mistake.section in headings, (exercise.number, name, mistake.section)

# all of them run with -m "slow or planted"
ONE = [pytest.param(h, marks=pytest.mark.slow if h == "hw2" else pytest.mark.planted) for h in HOMEWORKS]

@pytest.mark.parametrize("homework", ONE)
def test_every_mistake_is_recognized_and_every_right_solution_passes(homework, capsys):
    """A hint for another mistake is worse than none, and a right solution without points is worse than both."""
    with pytest.raises(SystemExit) as end:
        check.main([homework, "--seed", "11"])
    printed = capsys.readouterr().out
    assert end.value.code == 0 and "; 0 exercises fail" in printed and "FAILS" not in printed, printed

def test_the_page_of_mistakes_is_that_of_the_exercises():
    """The page is stale after a mistake is added or renamed. `python -m assignments.check --table` writes it."""
    text = (ROOT / "docs" / "mistakes.md").read_text()
    seen = 0
    for homework in HOMEWORKS:
        for exercise in exercises(homework):
            part = text.split(f"## {exercise.number} ")[1].split("\n## ")[0]
            cells = {name.replace("|", "\\|"): mistake.section for name, mistake in exercise.mistakes.items()}
            rows = [f"| {name} | recognized | {section} |" for name, section in cells.items()]
            assert [line for line in part.splitlines() if line.startswith("| ")][1:] == rows, exercise.number
            seen += len(rows)
    assert seen >= 40

def test_a_right_solution_has_full_points_and_a_blank_one_none(submit):
    """Written otherwise than the project has it, with a helper of its own."""
    assert submit(RIGHT).points == DPO.points
    assert submit("return helper(pairs, beta)", f"\ndef helper(pairs, beta):\n    {RIGHT}\n").points == DPO.points
    blank = submit(BLANK)
    assert blank.points == 0 and blank.says == ["not written yet"]

def test_a_mistake_has_its_hint(submit):
    """And only that: no value of the right answer."""
    one = submit("w, l, h = log_ratios(pairs, beta)\n    return with_rewards(-F.logsigmoid(-h), beta, w, l)")
    assert one.points == 0 and one.mistake == "chosen and rejected swapped" and len(one.says) == 1
    assert DPO.mistakes[one.mistake].hint in one.says[0]

@pytest.mark.parametrize("body, more, whole", [
    (RIGHT + f"\n    {BLANK}", "", None),                                            # the stub's line left below
    (f"# {BLANK}\n    " + RIGHT, "", None),
    (RIGHT, "", lambda text: "\ufeff" + text),
    (RIGHT, "", lambda text: text.replace("\n", "\r\n")),
    (RIGHT, "", lambda text: text.replace("import math\n", "from __future__ import annotations\nimport math\n")),
    ("w, l, h = log_ratios(pairs, beta)\n    return with_rewards(np.log1p(1) * 0 + F.softplus(-h), beta, w, l)", "",
     lambda text: text.replace("import math\n", "import math, numpy as np\n")),
    (RIGHT + "    # a form feed \x0c and \u2028", "", None),
    ("return by_hand(pairs, beta)", f"\ntry:\n    import cmath\nexcept ImportError:\n    pass\n"
     f"\n@torch.no_grad()\ndef unused(): return cmath.pi\n\ndef by_hand(pairs, beta):\n    {RIGHT}\n", None),
], ids=["stub below", "stub in a comment", "BOM", "CRLF", "future", "numpy", "form feed", "try"])
def test_the_form_of_a_file_costs_no_points(grader, copy, tmp_path, body, more, whole):
    """A student cannot know why a right function has no points because of an import or an editor's sign."""
    text = (copy / "losses.py").read_text().replace(BLANK, body) + more
    (tmp_path / "losses.py").write_bytes((whole(text) if whole else text).encode())
    assert grader.grade(tmp_path)[0].points == DPO.points

def test_methods_are_grafted_with_new_methods_and_at_their_indentation():
    """A helper method that stays behind is an AttributeError."""
    helper = "        return self.three()\n\n    def three(self):\n        return 3"
    student = SOURCE.replace("        return 3", helper)
    for text in (student, student.replace("    ", "\t"), student.replace("    ", "  ")):
        space = {"cached": lambda f: f}
        exec(compile(graft.graft(text, SOURCE, ["A.f"], "f.py"), "", "exec"), space)
        assert space["A"]().f() == 3 and space["A"]().g() == 1

def test_an_unknown_mistake_has_facts(submit):
    """No hint is nearer to the truth than a wrong one."""
    one = submit("w, l, h = log_ratios(pairs, beta)\n    return with_rewards(1.5 * F.softplus(-h), beta, w, l)")
    assert not one.mistake and "the right answer times 1.5" in one.says[0]

def test_edits_outside_are_reported_and_have_no_effect(submit, tmp_path, copy):
    """Changing log_ratios would make dpo right by another exercise's function."""
    one = submit("return dpo_of(pairs, beta)", "\ndef log_ratios(pairs, beta):\n    return 1, 2, 3\n"
                 "\ndef dpo_of(pairs, beta):\n    " + RIGHT + "\n")
    assert one.points == DPO.points
    assert "log_ratios" in ignored([DPO], tmp_path)[0]

def test_a_variant_makes_the_public_answer_wrong():
    """The sources are public: another specification needs another body, and the original is recognized."""
    seen = 0
    for homework in HOMEWORKS:
        for exercise in exercises(homework):
            for name in exercise.variants:
                varied = exercise.varied(name)
                seen += 1
                assert varied.source() != exercise.source() and "the original" in varied.mistakes
                back = graft.edited(varied.source(), varied.names, varied.mistakes["the original"].edits)
                assert back == exercise.source()
    assert seen or HOMEWORKS == ["hw2"]

@pytest.mark.parametrize("homework", ONE)
def test_the_originals_body_is_recognized_in_every_variant(homework):
    """Copied from the public sources, it must have no points, and be told from a mistake."""
    with Grader(homework, seed=3) as grader:
        for exercise in grader.exercises:
            for name in exercise.variants:
                varied = exercise.varied(name)
                few = {"the original": varied.mistakes["the original"]}
                key = key_of(replace(varied, mistakes=few), grader.workers, grader.base, 3)
                assert key.judge(key.wrong["the original"]).mistake == "the original", (exercise.number, name)
                assert key.judge(key.reference).right and key.apart.holds

def test_a_mistake_that_a_variant_asks_for_is_none():
    """Left in, it would make the distance between right and wrong 0, and so the tolerance."""
    mistakes = {name: Mistake((), hint, "") for name, hint in (("a", "1"), ("b", "2"), ("c", "3"), ("d", "1"))}
    wrong = {"a": results([1.0]), "b": results([2.0]), "c": results([1.0]), "d": results([1.0])}
    assert list(recognize.distinct(mistakes, results([2.0]), wrong)) == ["a", "d"]

# ---------------------------------------------------------------------------------------------------------------------
# attacks: each costs its exercise and nothing else

def test_what_an_error_says_can_be_printed(submit):
    """Lone surrogates, line feeds and terminal codes would end the report or fake a line of it."""
    one = submit("raise ValueError('\\ud800\\x1b[31m hw2.5 5 of 5')")
    assert one.points == 0 and one.says[0].encode() and "\x1b" not in one.says[0]

HOSTILE = [
    ("def", "not Python"), ("exit(0)", "called exit()"), ("import os\n    os._exit(0)", "ended without a result"),
    ("import os\n    os.kill(os.getppid(), 9)\n    os._exit(0)", ""),
    ("import ctypes\n    ctypes.string_at(0)", "ended without a result"),
    ("return dpo(pairs, beta=beta)", "RecursionError"),
    ("import os\n    while True:\n        os.fork()", ""),
    ("x = []\n    while True:\n        x.append(torch.ones(1 << 27))", ""),
    ("print('x' * (1 << 30))\n    return pairs", ""),
    ("import urllib.request\n    urllib.request.urlopen('http://127.0.0.1:9')", "URLError"),
    ("open('/etc/nanopref-was-here', 'w')", "Error"),
    ("open('results.json', 'w')", "Error"),
    ("import os\n    os.write(1, b'x' * 100)\n    os.write(3, b'x' * 100)\n    return pairs", "Error"),
]

FEW = [pytest.param(*case, marks=[] if i < 3 else pytest.mark.slow) for i, case in enumerate(HOSTILE)]

@pytest.mark.parametrize("body, words", FEW, ids=lambda x: " ".join(x.split())[:40])
def test_code_that_misbehaves_costs_its_exercise(submit, body, words):
    """An endless loop, a crash, a fork bomb or a full disk must not end the grading of the rest."""
    one = submit(body)
    assert one.points == 0 and len(one.says) == 1 and words in one.says[0], one.says
    assert submit(RIGHT).points == DPO.points and not Path("/etc/nanopref-was-here").exists()

@pytest.mark.slow
def test_an_endless_loop_ends(submit, monkeypatch):
    """The child that it has left behind, in a session of its own, ends too."""
    monkeypatch.setattr(grade, "SECONDS", 4)
    one = submit("import os\n    if not os.fork():\n        os.setsid()\n    while True: pass")
    assert one.points == 0 and ("did not end" in one.says[0] or "ended without" in one.says[0])


@pytest.mark.parametrize("body", [
    # an object whose comparisons are always true
    "class Yes(torch.Tensor):\n        __eq__ = __le__ = __lt__ = lambda *_: True\n"
    "    x = torch.zeros(len(pairs.chosen_lens), dtype=torch.float64, requires_grad=True).as_subclass(Yes)\n"
    "    return x, x, x",
    # torch and the driver's helpers patched
    "import sys\n    torch.autograd.grad = lambda *a, **k: [torch.zeros(1)] * 2\n    torch.equal = lambda *a: True\n"
    "    import numpy\n    numpy.array_equal = lambda *a, **k: True\n    x = pairs.policy_chosen_logps\n"
    "    return x, x.detach(), x.detach()",
    # the frames of the caller, where a grader in the same process would have what is right
    "import sys\n    f = sys._getframe()\n    found = {}\n"
    "    while f:\n        found.update(f.f_locals)\n        f = f.f_back\n"
    "    assert not {'key', 'reference', 'mistakes'} & set(found)\n    raise ValueError(sorted(found))",
    # what the grader imports
    "import gc\n    names = {type(x).__name__ for x in gc.get_objects()}\n"
    "    assert not {'Exercise', 'Mistake', 'Key'} & names\n    raise ValueError",
    # an answer of the job before, in the memory of the process that was forked
    "import sys, os\n    f = sys._getframe()\n    found = []\n"
    "    while f:\n        found += [x for x in f.f_locals.values() if isinstance(x, bytes) and b'losses' in x]\n"
    "        f = f.f_back\n    assert all(b'driver' in x for x in found)\n    raise ValueError",
    # another process' memory
    "import os\n    open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
], ids=["comparisons", "patches", "frames", "objects", "answers", "memory"])
def test_code_that_cheats_gains_nothing(submit, body):
    """Expected values, points and hints exist only in the parent, which compares plain arrays."""
    one = submit(body)
    assert one.points == 0 and "AssertionError" not in one.says[0], one.says

@pytest.fixture(scope="module")
def namespaces():
    """Skips a test where the system does not allow a job its own view of the file system."""
    root = "" if os.getuid() == 0 else "--map-root-user"
    mounts = subprocess.run(f"unshare {root} --mount mount -t tmpfs none /tmp", shell=True, capture_output=True)
    if mounts.returncode or tuple(map(int, os.uname().release.split(".")[:2])) < (5, 12):
        pytest.skip("needs Linux 5.12 and mount namespaces")

def test_code_leaves_nothing_on_the_disk(submit, namespaces):
    """A file would be there for the next student's code, and many of them would fill the disk."""
    places = ("/tmp", "/var/tmp", "/dev/shm")
    write = f"for place in {places}:\n        open(place + '/nanopref-was-here', 'w').write('x')\n    "
    assert submit(write + RIGHT).points == DPO.points
    left = [path for place in places if (path := Path(place, "nanopref-was-here")).exists()]
    for path in left:
        path.unlink()
    assert not left
    assert "No space" in submit("for i in range(20):\n        open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))").says[0]
    read_only = "import os\n    assert os.statvfs('/').f_flag & os.ST_RDONLY\n    "
    assert submit(read_only + RIGHT).points == DPO.points

def test_code_cannot_undo_its_confinement(submit, namespaces):
    """As a user other than root, it has all capabilities in a new user namespace until they are given up."""
    undo = "assert libc.umount2(b'/tmp', 2) == libc.mount(None, b'/', None, 0x1020, None) == -1\n    "
    deeper = "libc.unshare(0x10020000)\n    "    # a user and a mount namespace below those of the job
    one = submit("import ctypes\n    libc = ctypes.CDLL(None)\n    " + undo + deeper + undo + RIGHT)
    assert one.points == DPO.points, one.says

def entry_of(code, python, monkeypatch):
    """What a worker that `python` starts returns for a function f with this code."""
    with tempfile.TemporaryDirectory() as tree:
        Path(tree).chmod(0o755)
        (Path(tree) / "late.py").write_text(f"def f():\n    {code}\n")
        (Path(tree) / "late.py").chmod(0o644)
        monkeypatch.setattr(sys, "executable", str(python))
        worker = Worker(tree)
        job = dict(tree=tree, file="late.py", driver="def run(module, probe): return {'y': module.f()}", probes=[{}],
                   seconds=60, source=None)
        try:
            return worker.run(job)[0]
        finally:
            worker.close()

@pytest.mark.slow
def test_a_private_environment_can_be_imported_from(tmp_path, monkeypatch, namespaces):
    """As root, the code is run as nobody, who may not enter /root: a first import of a library would be an error."""
    private = tmp_path / "private"
    venv.create(private, symlinks=True)
    [site] = private.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    (site / "rare_library").mkdir()
    (site / "rare_library" / "part.py").write_text("y = 3.0")
    private.chmod(0o700)
    python = private / "bin" / "python"
    entry = entry_of("from rare_library.part import y; import xml.dom.pulldom; return y", python, monkeypatch)
    assert entry.get("arrays") == {"y": 3.0}, entry

@pytest.mark.slow
@pytest.mark.parametrize("how, user", [("--bounding-set -sys_admin", 65534), ("--bounding-set -all", 0),
                                       ("--reuid=1000 --regid=1000 --clear-groups", 1000)],
                         ids=["a container", "no capabilities", "not root"])
def test_grading_works_with_fewer_privileges(how, user, tmp_path, monkeypatch):
    """What the system does not allow is left out. It must not end in an error that a student gets."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec setpriv {how} {sys.executable} "$@"\n')
    python.chmod(0o755)
    if os.getuid() or subprocess.run([python, "-c", "import torch"], cwd="/", capture_output=True).returncode:
        pytest.skip("needs root, setpriv, and a Python environment that the user may read")
    code = "import os; open('/tmp/x', 'w').close(); os.remove('/tmp/x'); return os.getuid()"
    entry = entry_of(code, python, monkeypatch)
    assert entry.get("arrays") == {"y": user}, entry

@pytest.mark.slow
def test_nothing_of_a_job_is_in_the_memory_of_the_next(tmp_path):
    """The reference and the mistakes run in the same worker. Their results would be the answer, or a guess at it."""
    search = """
import struct
def f():
    pattern, found = struct.pack("<d", 1234.5678) * 16, []
    for line in open("/proc/self/maps"):
        first, last = (int(x, 16) for x in line.split()[0].split("-"))
        if "rw-p" in line and last < 1 << 48:
            with open("/proc/self/mem", "rb", 0) as memory:
                memory.seek(first)
                found.append(memory.read(last - first).count(pattern))
    return [sum(found)]
"""
    fill = "import numpy\ndef f():\n    return numpy.full(5000, 1234.5678)\n"
    job = dict(tree=str(tmp_path), file="f.py", driver="def run(module, probe): return {'y': module.f()}",
               seconds=60, probes=[{}])
    worker = Worker(tmp_path)
    try:
        assert worker.run(job | dict(source=fill))[0]["arrays"]["y"].shape == (5000,)
        # ours, as a student's job may not read its own memory
        assert worker.run(job | dict(source=search))[0]["arrays"]["y"][0] <= 2    # the pattern itself
    finally:
        worker.close()

def test_another_system_is_one_line(tmp_path, monkeypatch):
    """A student's Mac has no /proc: without a check, every exercise would say that its process was killed."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit, match="on Linux only"):
        Worker(tmp_path).run(dict(probes=[]))

def test_a_copy_that_is_changed_at_once_runs_as_changed(tmp_path):
    """Bytecode is checked by second and size as a rule: a fault of the same length would not be in the copy."""
    folder = clean_copy(tmp_path / "copy")
    [bytecode] = (folder / "__pycache__").glob("losses.*.pyc")
    assert int.from_bytes(bytecode.read_bytes()[4:8], "little") == 0b11    # checked against the source's hash

def test_a_link_is_not_followed(grader, copy, tmp_path):
    """It would show the student any file that the grader can read."""
    (tmp_path / "losses.py").symlink_to(ROOT / "losses.py")
    assert "links are not followed" in grader.grade(tmp_path)[0].says[0]
    (tmp_path / "losses.py").unlink()
    assert "is missing" in grader.grade(tmp_path)[0].says[0]

def test_zips_are_unpacked_with_care(tmp_path):
    """A zip bomb, a path that climbs out, and a file that is no zip: one line each."""
    def packed(name, members):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members:
                archive.writestr(member, data)
        return tmp_path / name
    (tmp_path / "text.zip").write_text("hello")
    for path, words in ((packed("bomb.zip", [("a", b"0" * (50 << 20))]), "more than 20 MB"),
                        (packed("many.zip", [(f"{i}", b"") for i in range(3000)]), "more than 2000 files"),
                        (packed("out.zip", [("../../x.py", b"")]), "outside of the folder"),
                        (tmp_path / "text.zip", "not a zip")):
        (tmp_path / "to").mkdir(exist_ok=True)
        with pytest.raises(SystemExit, match=words):
            platforms.unpack(path, tmp_path / "to")
    assert not (tmp_path.parent / "x.py").exists()

# ---------------------------------------------------------------------------------------------------------------------
# platforms

def test_a_class_is_one_csv(grader, copy, tmp_path, capsys):
    """A submission that cannot be read has its row too."""
    folder = tmp_path / "in"
    (folder / "anna").mkdir(parents=True)
    (folder / "anna" / "losses.py").write_text((copy / "losses.py").read_text().replace(BLANK, RIGHT))
    with zipfile.ZipFile(folder / "bert.zip", "w") as archive:
        archive.write(folder / "anna" / "losses.py", "hw2/losses.py")
    (folder / "carl.zip").write_text("nothing")
    platforms.write_csv(grader, folder, tmp_path / "grades.csv")
    rows = [line.split(",") for line in (tmp_path / "grades.csv").read_text(encoding="utf-8-sig").splitlines()]
    assert [row[0] for row in rows] == ["submission", "anna", "bert.zip", "carl.zip"]
    assert [row[-2] for row in rows[1:]] == [str(DPO.points)] * 2 + ["0"] and "not a zip" in rows[3][-1]

def test_files_for_platforms(tmp_path):
    """Gradescope's zip has what the grader imports, and no test. The notebook has a graded cell for each exercise."""
    platforms.main(["gradescope", "hw2", "--out", str(tmp_path / "a.zip")])
    names = zipfile.ZipFile(tmp_path / "a.zip").namelist()
    shipped = {"setup.sh", "run_autograder", "losses.py", "assignments/worker.py", "assignments/hw2/e5_dpo.py"}
    assert shipped <= set(names)
    assert not [name for name in names if name.startswith("tests/") or name.endswith("answers.md")]
    platforms.main(["nbgrader", "hw2", "--out", str(tmp_path / "a.ipynb")])
    cells = json.loads((tmp_path / "a.ipynb").read_text())["cells"]
    graded = [c["metadata"].get("nbgrader", {}).get("points") for c in cells]
    assert [points for points in graded if points] == [e.points for e in exercises("hw2")]
    platforms.main(["classroom", "hw2", "--out", str(tmp_path / "a.yml"), "--commit", "abc", "--repository", "me/x"])
    assert 'ref: "abc"' in (tmp_path / "a.yml").read_text()

def test_the_report_of_gradescope_shows_everything(submit):
    """A hidden test that fails beside "all tests passed" is what students complain of."""
    found = platforms.gradescope_results([submit(RIGHT), submit(BLANK)], ["a line"])
    assert found["score"] == DPO.points and {t["visibility"] for t in found["tests"]} == {"visible"}
    assert found["tests"][1]["output"] == "not written yet"

# ---------------------------------------------------------------------------------------------------------------------
# bug hunts

HUNTED = """
import math, torch
from losses import LOSSES, Pairs
def test_dpo():
    values = [torch.tensor([x], dtype=torch.float64) for x in (-3.0, -8.0, -5.0, -6.0, 4.0, 7.0)]
    for beta in (0.1, 0.7):
        losses, chosen, rejected = LOSSES["dpo"].fn(Pairs(*values), beta=beta)
        assert abs(losses.item() - math.log(1 + math.exp(-beta * 4))) < 1e-9
        assert abs(chosen.item() - beta * 2) < 1e-9 and abs(rejected.item() + beta * 2) < 1e-9
"""

def test_each_student_hunts_other_faults(tmp_path):
    """The faults are drawn by the seed, one a function, and the student reads symptoms, not places."""
    drawn = {seed: [(e.number, name) for e, name in hunt.chosen("hw2", seed, 3)] for seed in range(4)}
    assert len({tuple(found) for found in drawn.values()}) > 2
    assert drawn[1] == [(e.number, name) for e, name in hunt.chosen("hw2", 1, 3)]
    assert all(len({number for number, _ in found}) == 3 for found in drawn.values())
    hunt.main(["hw2", "--seed", "1", "--out", str(tmp_path / "copy")])
    text = (tmp_path / "copy" / "HUNT.md").read_text()
    for exercise, name in hunt.chosen("hw2", 1, 3):
        assert exercise.mistakes[name].symptom in text and exercise.names[0] not in exercise.mistakes[name].symptom
        assert (tmp_path / "copy" / exercise.file).read_text() != (ROOT / exercise.file).read_text()

@pytest.mark.slow
def test_a_hunt_is_graded_by_what_the_tests_catch(tmp_path, monkeypatch):
    """Tests that fail on right code, or pass on the fault, are worth nothing."""
    monkeypatch.setattr(hunt, "chosen", lambda *args: [(DPO, "beta left out")])
    monkeypatch.setattr(hunt, "OTHERS", 2)
    (tmp_path / "found.json").write_text(json.dumps({"1": {"place": "losses.py:dpo", "cause": "h is not times beta"}}))
    (tmp_path / "test_hunt.py").write_text(HUNTED)
    assert hunt.grade("hw2", 0, 1, tmp_path)[-1] == "total  3 of 3 points, bonus 0.2"
    (tmp_path / "test_hunt.py").write_text("def test_all(): assert False")
    assert hunt.grade("hw2", 0, 1, tmp_path)[1:] == ["the tests fail on right code", "total  1 of 3 points"]
    (tmp_path / "found.json").write_text("[3]")
    (tmp_path / "test_hunt.py").write_text("def test_all(): pass")
    assert hunt.grade("hw2", 0, 1, tmp_path)[-1] == "total  0 of 3 points, bonus 0.0"
