"""
Mutation testing: plant simple mistakes in the code, one at a time, and see which of them no test notices.

    python -m tests.mutate                                # every mutant of the default files: hours
    python -m tests.mutate eval.py:120-180 --workers 1    # some lines of one file
    python -m tests.mutate measures.py --sample 40 --seed 1 --tests test_measures.py
    python -m tests.mutate reward.py --list

Writes out/mutate/results.csv. A mutant is tried with the fast tests that execute its lines, in a copy of the
project (see warm.py). It is not tried again until the code or its tests change. The exit status is 1 if more than
one mutant in ten survives in a file. tests/equivalent.csv lists mutants that change nothing.
See docs/tests.md. Read first: mutants.py

Why no library: cosmic-ray starts a pytest for each mutant, which is 5 to 8 seconds of imports here. mutmut forks
too, but it rewrites all functions into trampolines, mutates messages, and skips code outside functions. It has no
operators for swapped arguments or split names.
"""
import argparse
import csv
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("eval.py", "measures.py", "judge.py", "questions.py", "study/claims.py", "reward.py", "support/cli.py",
         "objective.py", "train_pref.py")
# these read the source, or start processes of their own
NOT_RUN = ("test_faults.py", "test_robust.py", "test_mutate.py")
# fixtures made once for all mutants that they do not execute; True: each process takes a copy
FIXTURES = {"sft_run": False, "world": True}
# packages that are imported before the forks, so far as tests use them
PACKAGES = {"torch", "numpy", "scipy", "matplotlib", "PIL", "safetensors", "tiktoken"}
COLUMNS = ("key", "file", "line", "function", "kind", "old", "new", "result", "test", "seconds")
KILLED, TIMED, SURVIVED, EQUIVALENT, UNCOVERED = "killed", "timed out", "survived", "equivalent", "uncovered"
RESULTS = (KILLED, TIMED, SURVIVED, EQUIVALENT, UNCOVERED)

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mutants import mutants    # noqa: E402
from warm import copied, end, forked, import_all, run_pytest, waited, write_source    # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------
# in the child: pytest with a plugin

class Plugin:
    """Runs the chosen tests in their order, records their lines and the first failure, and uses made fixtures."""
    def __init__(self, copy, chosen=None, files=(), made=None):
        self.chosen = chosen                                # the tests to run; None: all
        self.made = made or {}                              # {fixture: its folder}
        self.files = {str(copy / f): f for f in files}      # those whose lines are recorded
        self.seen, self.tests, self.fixtures = set(), {}, {}
        self.failed = None

    def traced(self, frame, event, arg):
        if frame.f_code.co_filename in self.files:
            self.line(frame, "line", arg)
            return self.line

    def line(self, frame, event, arg):
        if event == "line":
            self.seen.add((self.files[frame.f_code.co_filename], frame.f_lineno))
        return self.line

    def pytest_collection_modifyitems(self, items):
        if self.chosen is not None:
            place = {test: i for i, test in enumerate(self.chosen)}
            # a test's name may depend on the mutated code: one that is gone is no failure
            kept = [item for item in items if item.nodeid in place]
            items[:] = sorted(kept, key=lambda item: place[item.nodeid])

    def pytest_fixture_setup(self, fixturedef, request):
        if fixturedef.argname not in self.made:
            return None
        value = Path(self.made[fixturedef.argname])
        if FIXTURES[fixturedef.argname]:
            copy = request.getfixturevalue("tmp_path_factory").mktemp("made") / "copy"
            shutil.copytree(value, copy)
            value = copy
        fixturedef.cached_result = value, fixturedef.cache_key(request), None
        return value

    def pytest_runtest_logreport(self, report):
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report):
        if report.failed and self.failed is None:
            self.failed = f"import of {report.nodeid}"

def recorder(plugin):
    """The plugin's part that traces. Lines of a fixture that tests share count for each of these tests."""
    import pytest
    class Recorder:
        @pytest.hookimpl(wrapper=True)
        def pytest_fixture_setup(self, fixturedef, request):
            if fixturedef.scope == "function":
                return (yield)
            outer, plugin.seen = plugin.seen, set()
            begin = time.time()
            try:
                value = yield
                if fixturedef.argname in FIXTURES:
                    plugin.made_here = value
                return value
            finally:
                seconds = time.time() - begin
                plugin.fixtures[fixturedef.argname] = {"seconds": seconds, "lines": sorted(plugin.seen)}
                plugin.seen = outer

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item, nextitem):
            plugin.seen, plugin.failed = set(), None
            known = len(plugin.fixtures)
            begin = time.time()
            sys.settrace(plugin.traced)
            try:
                return (yield)
            finally:
                sys.settrace(None)
                seconds = time.time() - begin
                if plugin.failed is None:
                    plugin.tests[item.nodeid] = self.record(item, seconds, list(plugin.fixtures)[known:])

        def record(self, item, seconds, made):
            """What is stored of a test that passed. made: the shared fixtures that were set up during the test."""
            seconds -= sum(plugin.fixtures[name]["seconds"] for name in made)
            used = plugin.fixtures.keys() & {*item.fixturenames, *made}
            return {"seconds": max(seconds, 0.0), "lines": sorted(plugin.seen), "fixtures": sorted(used)}
    return Recorder()

def in_child(copy, temporary, argv, plugin, record, answer):
    """Runs pytest with the plugin in this process, a fork. Writes what it found to a file; returns the exit status."""
    plugins = [plugin, recorder(plugin)] if record else [plugin]
    code = run_pytest(copy, [*argv, f"--basetemp={temporary}"], f"{answer}.txt", plugins)
    found = {"code": int(code), "failed": plugin.failed, "made": str(getattr(plugin, "made_here", ""))}
    if record:
        modules = [name for name in sys.modules if name.split(".")[0] in PACKAGES]
        found |= {"tests": plugin.tests, "fixtures": plugin.fixtures, "modules": modules}
    Path(answer).write_text(json.dumps(found))
    return code

# ---------------------------------------------------------------------------------------------------------------------
# which tests execute which lines

def digest(*texts):
    """A short checksum of some texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]

def sources(root):
    """The texts of the project's code, without its tests."""
    texts = []
    for folder in (".", "support", "study", "rlhf"):
        texts += [path.read_text() for path in sorted((root / folder).glob("*.py"))]
    return texts

def trace(name, copy, work, files, path):
    """Runs a test file and writes to path which lines its tests and fixtures execute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    answer = work / "map.json"
    plugin = Plugin(copy, files=files)
    waited(lambda: in_child(copy, work / "tmp", [f"tests/{name}"], plugin, True, answer))
    for old in path.parent.glob(f"{name}-*"):
        old.unlink()
    answer.replace(path)

def recorded(root, work, out, test_files, files, bar):
    """
    ({test: seconds, lines, fixtures}, {fixture: seconds, lines}) of all test files.

    They are read from out/ where neither the test file nor the code has changed.
    """
    tests, fixtures = {}, {}
    code = digest(*sources(root), (root / "tests" / "conftest.py").read_text())
    copy = copied(root, work / "map")
    for name in bar(test_files, desc="which tests execute which lines", unit="file"):
        path = out / "map" / f"{name}-{digest(code, (root / 'tests' / name).read_text(), *files)}.json"
        if not path.exists():
            trace(name, copy, work, files, path)
        found = json.loads(path.read_text())
        import_all(found["modules"])    # some parts of packages only work as the tests imported them
        tests |= found["tests"]
        for key, value in found["fixtures"].items():
            fixtures.setdefault(key, value)
    for record in (*tests.values(), *fixtures.values()):
        record["lines"] = {tuple(at) for at in record["lines"]}
    return tests, fixtures

def reached(mutant, texts):
    """
    The lines {(file, line)} that a test must execute to notice a mutant: those of its statement.

    Outside of functions, they are the lines that use a name which the statement sets.
    """
    if not mutant.names:
        return {(mutant.file, line) for line in range(mutant.first, mutant.last + 1)}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, mutant.names))})\b")
    found = set()
    for file, text in texts.items():
        found |= {(file, i) for i, line in enumerate(text.split("\n"), 1) if pattern.search(line)}
    return found

def costs_of(mutant, texts, tests, fixtures):
    """{test: seconds} of the tests that execute a mutant's lines. A fixture that is made once for all costs nothing."""
    lines = reached(mutant, texts)
    costs = {}
    for name, test in tests.items():
        executed = test["lines"].union(*(fixtures[f]["lines"] for f in test["fixtures"]))
        if lines & executed:
            made_again = [f for f in test["fixtures"] if f not in FIXTURES or fixtures[f]["lines"] & lines]
            costs[name] = test["seconds"] + sum(fixtures[f]["seconds"] for f in made_again)
    return costs

def chosen_tests(mutant, texts, tests, fixtures, seconds):
    """
    The quickest tests that execute a mutant's lines and fit into the seconds: (their names, their seconds in all).

    At least one test is taken. Tests of one file stay together.
    """
    costs = costs_of(mutant, texts, tests, fixtures)
    kept, total = [], 0.0
    for name in sorted(costs, key=costs.get):
        total += costs[name]
        if kept and total > seconds:
            break
        kept.append(name)
    file_of = lambda name: name.split("::")[0]
    quickest = {}    # of each file
    for name in kept:
        quickest.setdefault(file_of(name), costs[name])
    order = lambda name: (quickest[file_of(name)], file_of(name), costs[name])
    return sorted(kept, key=order), sum(costs[name] for name in kept)

# ---------------------------------------------------------------------------------------------------------------------
# one mutant

def make_fixture(name, copy, work):
    """The folder of a fixture that is made once; the tests of conftest.py and test_runs.py know these."""
    text = f"from test_runs import world    # noqa: F401\ndef test_made({name}): pass\n"
    (copy / "tests" / f"test_make_{name}.py").write_text(text)
    answer = work / f"{name}.json"
    argv = [f"tests/test_make_{name}.py"]
    waited(lambda: in_child(copy, work / f"made-{name}", argv, Plugin(copy), True, answer))
    return json.loads(answer.read_text())["made"]

def start(mutant, text, copy, work, i, tests, made):
    """Starts the tests of a mutant in a copy of the project; returns the process's id."""
    write_source(copy / mutant.file, text[:mutant.start] + mutant.text + text[mutant.end:])
    temporary, answer = work / f"tmp-{i}", work / f"answer-{i}.json"
    shutil.rmtree(temporary, ignore_errors=True)
    answer.unlink(missing_ok=True)
    argv = ["-x", *dict.fromkeys(t.split("::")[0] for t in tests)]
    plugin = Plugin(copy, tests, made=made)
    return forked(lambda: in_child(copy, temporary, argv, plugin, False, answer))

def outcome(answer):
    """(killed or survived, the test that failed), as a child wrote. If it wrote nothing, the mutant has ended it."""
    if not answer.exists():
        return KILLED, "the process ended"
    found = json.loads(answer.read_text())
    if found["code"] in (0, 5):    # all passed, or none was collected
        return SURVIVED, ""
    return KILLED, found["failed"] or f"pytest's exit code {found['code']}"

def result_so_far(pid, begin, nominal, answer):
    """(result, test) of a mutant whose tests have ended, or have taken much too long; None while they run."""
    if os.waitpid(pid, os.WNOHANG)[0]:
        return outcome(answer)
    if time.time() - begin > 30 + 4 * nominal:
        end(pid)
        return TIMED, ""
    return None

def tried(jobs, texts, root, work, workers, made, fixtures):
    """Yields (job, result, test, seconds) for jobs (mutant, tests, nominal seconds, key), so many at a time."""
    copies = [copied(root, work / f"copy-{i}") for i in range(workers)]
    queue = list(reversed(jobs))
    running = {}    # worker -> (job, process id, begin)
    try:
        while queue or running:
            for i in range(workers):
                if i not in running and queue:
                    job = queue.pop()
                    mutant, tests, *_ = job
                    lines = reached(mutant, texts)
                    usable = {name: path for name, path in made.items() if not fixtures[name]["lines"] & lines}
                    pid = start(mutant, texts[mutant.file], copies[i], work, i, tests, usable)
                    running[i] = job, pid, time.time()
            time.sleep(0.02)
            for i, (job, pid, begin) in list(running.items()):
                mutant, _, nominal, _ = job
                if result := result_so_far(pid, begin, nominal, work / f"answer-{i}.json"):
                    write_source(copies[i] / mutant.file, texts[mutant.file])
                    del running[i]
                    yield job, *result, time.time() - begin
    finally:
        for _, pid, _ in running.values():
            end(pid)

# ---------------------------------------------------------------------------------------------------------------------
# what is known

def equivalents(path=ROOT / "tests" / "equivalent.csv"):
    """{(file, function, old, new): reason}"""
    with open(path, newline="") as f:
        return {(r["file"], r["function"], r["old"], r["new"]): r["reason"] for r in csv.DictReader(f)}

def known_results(path):
    """{(key, file, function, old, new, line): row} of what was tried before."""
    if not path.exists():
        return {}
    with open(path, newline="") as f:
        return {(r["key"], r["file"], r["function"], r["old"], r["new"], int(r["line"])): r for r in csv.DictReader(f)}

def table(rows):
    """(lines of the table, whether a file has more than one survivor in ten) of (mutant, result, test)."""
    counts = defaultdict(Counter)
    for mutant, result, _ in rows:
        counts[mutant.file][result] += 1
    lines = [f"{'file':20}{'mutants':>10}" + "".join(f"{name:>12}" for name in RESULTS)]
    bad = False
    for file, found in counts.items():
        lines.append(f"{file:20}{sum(found.values()):10}" + "".join(f"{found[name]:12}" for name in RESULTS))
        bad |= 10 * found[SURVIVED] > found[KILLED] + found[TIMED] + found[SURVIVED]
    return lines, bad

def described(m):
    """A mutant's place, as the tables and lists show it."""
    return f"{m.file}:{m.line} {m.function or 'module'} ({m.kind})"

def report(rows):
    """Prints the table and each mutant that no test sees; the exit status."""
    lines, bad = table(rows)
    print("\n".join(lines))
    for wanted in (SURVIVED, UNCOVERED, EQUIVALENT):
        for mutant, result, reason in rows:
            if result == wanted:
                because = f": {reason}" if reason else ""
                print(f"\n{result}: {described(mutant)}{because}\n    - {mutant.old}\n    + {mutant.new}")
    return int(bad)

# ---------------------------------------------------------------------------------------------------------------------
# all mutants

def selected(root, wanted):
    """(the mutants of files given as eval.py or eval.py:120-180, {file: its text})"""
    found, texts = [], {}
    for name in wanted:
        file, _, lines = name.partition(":")
        texts[file] = (root / file).read_text()
        first, _, last = lines.partition("-")
        for m in mutants(file, texts[file]):
            if not lines or int(first) <= m.line <= int(last or first):
                found.append(m)
    return found, texts

def planned(found, root, out, texts, tests, fixtures, seconds):
    """(rows of the mutants whose result is known or that no test executes, jobs of the others)."""
    known = known_results(out / "results.csv")
    code = digest(*sources(root))
    rows, jobs = [], []
    for m in found:
        picked, nominal = chosen_tests(m, texts, tests, fixtures, seconds)
        used = sorted({test.split("::")[0] for test in picked})
        key = digest(code, *sorted(picked), *((root / file).read_text() for file in used))
        if not picked:
            rows.append((m, UNCOVERED, ""))
        elif old := known.get((key, m.file, m.function, m.old, m.new, m.line)):
            rows.append((m, old["result"], old["test"]))
        else:
            jobs.append((m, picked, nominal, key))
    return rows, jobs

def results_of(trials, path):
    """Yields the row (mutant, result, test) of each trial, and appends it to results.csv first."""
    fresh = not path.exists()
    with open(path, "a", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        if fresh:
            writer.writerow(COLUMNS)
        for (m, _, _, key), result, test, took in trials:
            writer.writerow((key, m.file, m.line, m.function, m.kind, m.old, m.new, result, test, f"{took:.1f}"))
            f.flush()
            yield m, result, test

def run(root, out, files, tests, sample, seed, workers, seconds, bar):
    """The rows (mutant, result, test or reason) of the mutants of some files."""
    found, texts = selected(root, files)
    if sample:
        found = sorted(random.Random(seed).sample(found, min(sample, len(found))))
    path = root / "tests" / "equivalent.csv"
    reasons = equivalents(path) if path.exists() else {}
    change = lambda m: (m.file, m.function, m.old, m.new)
    rows = [(m, EQUIVALENT, reasons[change(m)]) for m in found if change(m) in reasons]
    left = [m for m in found if change(m) not in reasons]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mutate-") as work:
        work = Path(work)
        traced = [*dict.fromkeys((*texts, *(f for f in FILES if (root / f).exists())))]
        texts |= {file: (root / file).read_text() for file in traced}
        seen, fixtures = recorded(root, work, out, tests, traced, bar)
        known, jobs = planned(left, root, out, texts, seen, fixtures, seconds)
        rows += known
        needed = set()
        for _, picked, *_ in jobs:
            needed.update(*(seen[test]["fixtures"] for test in picked))
        made = {name: make_fixture(name, work / "map", work) for name in sorted(needed & FIXTURES.keys())}
        trials = tried(jobs, texts, root, work, workers, made, fixtures)
        try:
            for row in bar(results_of(trials, out / "results.csv"), desc="mutants", unit="mutant", total=len(jobs)):
                rows.append(row)
        except KeyboardInterrupt:
            trials.close()
            print(f"interrupted: {len(rows)} of {len(found)} mutants are known; the same command goes on from there")
    return sorted(rows)

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0], allow_abbrev=False)
    p.add_argument("files", nargs="*", default=FILES, metavar="FILE",
                   help=f"file.py, or file.py:120-180 (default: {' '.join(FILES)})")
    p.add_argument("--tests", nargs="+",
                   help="test files to try them with (default: all, without those that read the source)")
    p.add_argument("--sample", type=int, help="try so many mutants, drawn at random (default: all)")
    p.add_argument("--seed", type=int, default=0, help="seed of that draw (default: %(default)s)")
    p.add_argument("--workers", type=int, default=2, help="mutants at a time (default: %(default)s)")
    p.add_argument("--seconds", type=float, default=30,
                   help="seconds of tests for a mutant, the quickest first (default: %(default)s)")
    p.add_argument("--list", action="store_true", help="only list the mutants")
    return p.parse_args(argv)

def main(argv=None):
    args = get_args(argv)
    if args.list:
        for m in selected(ROOT, args.files)[0]:
            print(f"{described(m)}\n    - {m.old}\n    + {m.new}")
        return 0
    # as in tests/conftest.py, before torch is imported
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    import_all()
    from tqdm import tqdm
    tests = args.tests or [p.name for p in sorted((ROOT / "tests").glob("test_*.py")) if p.name not in NOT_RUN]
    out = ROOT / "out" / "mutate"
    rows = run(ROOT, out, args.files, tests, args.sample, args.seed, args.workers, args.seconds, tqdm)
    return report(rows)

if __name__ == "__main__":
    sys.exit(main())
