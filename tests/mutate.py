"""
Mutation testing: plant simple mistakes in the code, one at a time, and see which of them no test notices.

    python -m tests.mutate                                # every mutant of the default files: hours
    python -m tests.mutate eval.py:120-180 --workers 1    # some lines of one file
    python -m tests.mutate measures.py --sample 40 --seed 1 --tests test_measures.py
    python -m tests.mutate reward.py --list

A mutant is tried with those fast tests that execute its lines. They run in a forked process, in a copy of the project, in a process
that has imported torch before. Results go to out/mutate/results.csv; a mutant is not tried again until the code or its tests change.
Exit status 1: in some file more than one mutant in ten survives. tests/equivalent.csv lists mutants that change nothing.
See docs/tests.md. Read first: mutants.py

Why no library: cosmic-ray starts a pytest, 5 to 8 seconds of imports here, for each mutant; mutmut forks too, but it rewrites all
functions into trampolines, mutates messages, skips code outside functions, and has no operators for swapped arguments or split names.
"""
import argparse
import csv
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("eval.py", "measures.py", "judge.py", "study/claims.py", "reward.py", "support/cli.py", "train_pref.py")
NOT_RUN = ("test_faults.py", "test_robust.py", "test_mutate.py")    # they read the source, or start processes of their own
FIXTURES = {"sft_run": False, "world": True}    # made once for all mutants that they do not execute; True: each process takes a copy
WARM = {"torch", "numpy", "scipy", "matplotlib", "PIL", "safetensors", "tiktoken"}    # imported before the forks, so far as tests use them
COLUMNS = ("key", "file", "line", "function", "kind", "old", "new", "result", "test", "seconds")
KILLED, TIMED, SURVIVED, EQUIVALENT, UNCOVERED = "killed", "timed out", "survived", "equivalent", "uncovered"

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mutants import mutants    # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------
# in the child: pytest with a plugin

class Plugin:
    """Runs the chosen tests in their order, records what they execute, and takes finished fixtures where it has them."""
    def __init__(self, copy, chosen=None, files=(), made=None):
        self.chosen, self.made = chosen, made or {}
        self.files = {str(copy / f): f for f in files}
        self.seen, self.tests, self.fixtures, self.failed = set(), {}, {}, None

    def traced(self, frame, event, arg):
        if frame.f_code.co_filename in self.files:
            self.line(frame, "line", arg)
            return self.line

    def line(self, frame, event, arg):
        if event == "line":
            self.seen.add((self.files[frame.f_code.co_filename], frame.f_lineno))
        return self.line

    def pytest_collection_modifyitems(self, items):
        if self.chosen is not None:    # names may depend on the mutated code: one that is gone is no failure
            place = {test: i for i, test in enumerate(self.chosen)}
            items[:] = sorted((i for i in items if i.nodeid in place), key=lambda i: place[i.nodeid])

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
            outer, plugin.seen, begin = plugin.seen, set(), time.time()
            try:
                value = yield
                if fixturedef.argname in FIXTURES:
                    plugin.made_here = value
                return value
            finally:
                plugin.fixtures[fixturedef.argname] = {"seconds": time.time() - begin, "lines": sorted(plugin.seen)}
                plugin.seen = outer

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item, nextitem):
            plugin.seen, plugin.failed, before, begin = set(), None, len(plugin.fixtures), time.time()
            sys.settrace(plugin.traced)
            try:
                return (yield)
            finally:
                sys.settrace(None)
                fixtures = set(item.fixturenames) | set(list(plugin.fixtures)[before:])
                seconds = time.time() - begin - sum(f["seconds"] for f in list(plugin.fixtures.values())[before:])
                if plugin.failed is None:
                    plugin.tests[item.nodeid] = {"seconds": max(seconds, 0.0), "lines": sorted(plugin.seen),
                                                 "fixtures": sorted(fixtures & plugin.fixtures.keys())}
    return Recorder()

def in_child(copy, temporary, argv, plugin, record, answer):
    """pytest in this process, a fork of one that has imported none of the project; what it found goes to a file, answer."""
    import pytest
    os.setsid()
    messages = os.open(f"{answer}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(messages, 1), os.dup2(messages, 2)
    os.chdir(copy)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    here = {str(ROOT), str(ROOT / "tests"), ""}
    sys.path[:] = [p for p in sys.path if p not in here]
    for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "mutants")]:
        del sys.modules[name]
    code = pytest.main([*argv, "-q", "-p", "no:cacheprovider", "-n", "0", "--rootdir", str(copy), "-c", "pyproject.toml",
                        f"--basetemp={temporary}"], plugins=[plugin] + ([recorder(plugin)] if record else []))
    found = {"code": int(code), "failed": plugin.failed, "made": str(getattr(plugin, "made_here", ""))}
    if record:
        outside = [n for n in sys.modules if n.split(".")[0] in WARM]
        found |= {"tests": plugin.tests, "fixtures": plugin.fixtures, "modules": outside}
    Path(answer).write_text(json.dumps(found))

def forked(call):
    """The process number of a child that makes a call and ends."""
    sys.stdout.flush(), sys.stderr.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)    # the parent ends it
        call()
        status = 0
    finally:
        os._exit(status)

def waited(call):
    """Makes a call in a child, and waits for its end."""
    pid = forked(call)
    try:
        os.waitpid(pid, 0)
    except KeyboardInterrupt:
        end(pid)
        raise

def warm(names):
    """Imports what a child had imported; some parts of packages only work as they were imported there."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            pass

def end(pid):
    """Kills a child that may have made itself the leader of a group."""
    for kill, number in ((os.killpg, pid), (os.kill, pid)):
        try:
            kill(number, signal.SIGKILL)
        except ProcessLookupError:
            pass
    os.waitpid(pid, 0)

# ---------------------------------------------------------------------------------------------------------------------
# which tests execute which lines

def digest(*texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]

def sources(root):
    folders = (".", "support", "study", "rlhf")
    return [(str(p.relative_to(root)), p.read_text()) for folder in folders for p in sorted((root / folder).glob("*.py"))]

def copied(root, copy):
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".git", "out", "__pycache__", ".*_cache", "venv", ".venv"))
    import compileall
    compileall.compile_dir(copy, quiet=2)
    return copy

def recorded(root, work, out, test_files, files, bar):
    """({test: seconds, lines, fixtures}, {fixture: seconds, lines}) of each test file, from out/ where neither it nor the code changed."""
    tests, fixtures, code = {}, {}, digest(*(text for _, text in sources(root)), (root / "tests" / "conftest.py").read_text())
    copy = copied(root, work / "map")
    for name in bar(test_files, desc="which tests execute which lines", unit="file"):
        path = out / "map" / f"{name}-{digest(code, (root / 'tests' / name).read_text(), *files)}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            answer = work / "map.json"
            waited(lambda name=name, answer=answer: in_child(copy, work / "tmp", [f"tests/{name}"], Plugin(copy, files=files), True,
                                                             answer))
            for old in path.parent.glob(f"{name}-*"):
                old.unlink()
            answer.replace(path)
        found = json.loads(path.read_text())
        tests |= found["tests"]
        warm(found["modules"])
        fixtures |= {key: fixtures.get(key) or value for key, value in found["fixtures"].items()}
    for record in (*tests.values(), *fixtures.values()):
        record["lines"] = {tuple(at) for at in record["lines"]}
    return tests, fixtures

def reached(mutant, texts):
    """{(file, line)} that show that a mutant has an effect: its statement, or what uses a name that is set outside of functions."""
    if not mutant.names:
        return {(mutant.file, line) for line in range(mutant.first, mutant.last + 1)}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, mutant.names))})\b")
    return {(file, i) for file, text in texts.items() for i, line in enumerate(text.split("\n"), 1) if pattern.search(line)}

def chosen_tests(mutant, texts, tests, fixtures, seconds):
    """The tests that execute a mutant's lines: quickest first, those of a file together, for so many seconds at most."""
    lines, costs = reached(mutant, texts), {}
    by_line = lambda name: tests[name]["lines"].union(*(fixtures[f]["lines"] for f in tests[name]["fixtures"]))
    for name in tests:
        if lines & by_line(name):
            slow = [f for f in tests[name]["fixtures"] if f not in FIXTURES or fixtures[f]["lines"] & lines]
            costs[name] = tests[name]["seconds"] + sum(fixtures[f]["seconds"] for f in slow)
    kept, total = [], 0.0
    for name in sorted(costs, key=costs.get):
        total += costs[name]
        if kept and total > seconds:
            break
        kept.append(name)
    first = {}
    for name in kept:
        first.setdefault(name.split("::")[0], costs[name])
    return sorted(kept, key=lambda n: (first[n.split("::")[0]], n.split("::")[0], costs[n])), sum(costs[n] for n in kept)

# ---------------------------------------------------------------------------------------------------------------------
# one mutant

def make_fixture(name, copy, work):
    """The folder of a fixture that is made once; the tests of conftest.py and test_runs.py know these."""
    (copy / "tests" / f"test_make_{name}.py").write_text(f"from test_runs import world    # noqa: F401\ndef test_made({name}): pass\n")
    answer = work / f"{name}.json"
    argv = [f"tests/test_make_{name}.py"]
    waited(lambda: in_child(copy, work / f"made-{name}", argv, Plugin(copy), True, answer))
    return json.loads(answer.read_text())["made"]

def start(mutant, text, copy, work, i, tests, made):
    """Starts the tests of a mutant in a copy of the project; returns the process's number."""
    path = copy / mutant.file
    path.write_text(text[:mutant.start] + mutant.text + text[mutant.end:])
    for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        stale.unlink()
    shutil.rmtree(work / f"tmp-{i}", ignore_errors=True)
    (work / f"answer-{i}.json").unlink(missing_ok=True)
    argv = ["-x", *dict.fromkeys(t.split("::")[0] for t in tests)]
    return forked(lambda: in_child(copy, work / f"tmp-{i}", argv, Plugin(copy, tests, made=made), False, work / f"answer-{i}.json"))

def outcome(answer):
    """(killed or survived, the test that saw it) from what a child wrote; a child that wrote nothing was ended by the mutant."""
    if not answer.exists():
        return KILLED, "the process ended"
    found = json.loads(answer.read_text())
    return (SURVIVED, "") if found["code"] in (0, 5) else (KILLED, found["failed"] or f"pytest's exit code {found['code']}")

def tried(jobs, texts, root, work, workers, made, fixtures):
    """Yields (job, result, test, seconds) for jobs (mutant, tests, nominal seconds), so many at a time."""
    copies = [copied(root, work / f"copy-{i}") for i in range(workers)]
    running, queue = {}, list(reversed(jobs))
    try:
        while queue or running:
            for i in range(workers):
                if i not in running and queue:
                    job = queue.pop()
                    lines = reached(job[0], texts)
                    usable = {f: p for f, p in made.items() if not fixtures[f]["lines"] & lines}
                    pid = start(job[0], texts[job[0].file], copies[i], work, i, job[1], usable)
                    running[i] = job, pid, time.time()
            time.sleep(0.02)
            for i, (job, pid, begin) in list(running.items()):
                seconds = time.time() - begin
                result = None
                if os.waitpid(pid, os.WNOHANG)[0]:
                    result = outcome(work / f"answer-{i}.json")
                elif seconds > 30 + 4 * job[2]:
                    end(pid)
                    result = TIMED, ""
                if result:
                    (copies[i] / job[0].file).write_text(texts[job[0].file])
                    del running[i]
                    yield job, *result, seconds
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
    names = (KILLED, TIMED, SURVIVED, EQUIVALENT, UNCOVERED)
    lines, bad = [f"{'file':20}{'mutants':>10}" + "".join(f"{n:>12}" for n in names)], False
    for file, found in counts.items():
        lines.append(f"{file:20}{sum(found.values()):10}" + "".join(f"{found[n]:12}" for n in names))
        bad |= 10 * found[SURVIVED] > found[KILLED] + found[TIMED] + found[SURVIVED]
    return lines, bad

def report(rows):
    """Prints the table and each mutant that no test sees; the exit status."""
    lines, bad = table(rows)
    print("\n".join(lines))
    for wanted in (SURVIVED, UNCOVERED, EQUIVALENT):
        for mutant, result, reason in rows:
            if result == wanted:
                print(f"\n{result}: {mutant.file}:{mutant.line} {mutant.function or 'module'} ({mutant.kind})"
                      + (f": {reason}" if reason else "") + f"\n    - {mutant.old}\n    + {mutant.new}")
    return int(bad)

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

def run(root, out, files, tests, sample, seed, workers, seconds, bar):
    """The rows (mutant, result, test or reason) of the mutants of some files."""
    found, texts = selected(root, files)
    listed = equivalents(root / "tests" / "equivalent.csv") if (root / "tests" / "equivalent.csv").exists() else {}
    if sample:
        found = sorted(random.Random(seed).sample(found, min(sample, len(found))))
    rows, jobs, before = [], [], known_results(out / "results.csv")
    for m in found:
        if reason := listed.get((m.file, m.function, m.old, m.new)):
            rows.append((m, EQUIVALENT, reason))
    found = [m for m in found if (m.file, m.function, m.old, m.new) not in listed]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mutate-") as work:
        work = Path(work)
        traced = [*dict.fromkeys((*texts, *(f for f in FILES if (root / f).exists())))]
        everything = texts | {f: (root / f).read_text() for f in traced}
        seen, fixtures = recorded(root, work, out, tests, traced, bar)
        code = digest(*(text for _, text in sources(root)))
        for m in found:
            picked, nominal = chosen_tests(m, everything, seen, fixtures, seconds)
            used = {t.split("::")[0] for t in picked}
            key = digest(code, *sorted(picked), *((root / t).read_text() for t in sorted(used)))
            if not picked:
                rows.append((m, UNCOVERED, ""))
            elif old := before.get((key, m.file, m.function, m.old, m.new, m.line)):
                rows.append((m, old["result"], old["test"]))
            else:
                jobs.append((m, picked, nominal, key))
        needed = {f for _, picked, *_ in jobs for t in picked for f in seen[t]["fixtures"] if f in FIXTURES}
        made = {f: make_fixture(f, work / "map", work) for f in sorted(needed)}
        fresh = not (out / "results.csv").exists()
        with open(out / "results.csv", "a", newline="") as f:
            writer = csv.writer(f, lineterminator="\n")
            if fresh:
                writer.writerow(COLUMNS)
            trials = tried(jobs, everything, root, work, workers, made, fixtures)
            try:
                for (m, _, _, key), result, test, took in bar(trials, desc="mutants", unit="mutant", total=len(jobs)):
                    rows.append((m, result, test))
                    writer.writerow((key, m.file, m.line, m.function, m.kind, m.old, m.new, result, test, f"{took:.1f}"))
                    f.flush()
            except KeyboardInterrupt:
                trials.close()
                print(f"interrupted: {len(rows)} of {len(found)} mutants are known; the same command goes on from there")
    return sorted(rows)

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0], allow_abbrev=False)
    p.add_argument("files", nargs="*", default=FILES, metavar="FILE", help=f"file.py, or file.py:120-180 (default: {' '.join(FILES)})")
    p.add_argument("--tests", nargs="+", help="test files to try them with (default: all, without those that read the source)")
    p.add_argument("--sample", type=int, help="try so many mutants, drawn at random (default: all)")
    p.add_argument("--seed", type=int, default=0, help="of that draw (default: %(default)s)")
    p.add_argument("--workers", type=int, default=2, help="mutants at a time (default: %(default)s)")
    p.add_argument("--seconds", type=float, default=30, help="of tests a mutant, the quickest first (default: %(default)s)")
    p.add_argument("--list", action="store_true", help="only list the mutants")
    return p.parse_args(argv)

def main(argv=None):
    args = get_args(argv)
    if args.list:
        for m in selected(ROOT, args.files)[0]:
            print(f"{m.file}:{m.line} {m.function or 'module'} ({m.kind})\n    - {m.old}\n    + {m.new}")
        return 0
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}    # as tests/conftest.py, before torch
    import matplotlib.figure    # noqa: F401 (what takes long to import is imported once, here)
    import numpy    # noqa: F401
    import pytest    # noqa: F401
    import tiktoken    # noqa: F401
    import torch.nn.utils.rnn    # noqa: F401
    from safetensors import torch as _    # noqa: F401
    from tqdm import tqdm
    tests = args.tests or [p.name for p in sorted((ROOT / "tests").glob("test_*.py")) if p.name not in NOT_RUN]
    rows = run(ROOT, ROOT / "out" / "mutate", args.files, tests, args.sample, args.seed, args.workers, args.seconds, tqdm)
    return report(rows)

if __name__ == "__main__":
    sys.exit(main())
