"""The robustness trials in smaller numbers: every outcome must be one of the good ones."""
import os

import pytest

import robust

GOOD = {"read", "refused", "read with the same content", "went on to the same bytes", "it was done by then",
        "said so, and ended without a picture"}

@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

@pytest.mark.parametrize("n", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_read(folder, n):
    """A damaged input must cause no traceback, no hang and no use of more memory than the file justifies."""
    seen = list(robust.fuzz(n, folder))
    assert not {x for x in seen if x[2] not in GOOD}
    for name in {x[1] for x in seen}:    # some damaged files must be refused, or the damage is too small
        assert any(x[1:] == (name, "refused") for x in seen), name

def test_no_changed_byte_is_read_as_if_it_were_whole(folder):
    """These files have checksums, so that every change can be detected."""
    seen = list(robust.changed_bytes(100, folder))
    assert not {x for x in seen if x[2] not in GOOD} and sum(x[2] == "refused" for x in seen) > 100

def test_the_fuzzer_sees_what_must_not_be(tmp_path):
    """Otherwise a trial without bad outcomes would prove nothing."""
    def bad():
        raise KeyError("x")
    def silent():
        raise ValueError("")
    assert robust.outcome(bad).startswith("TRACEBACK") and robust.outcome(silent).startswith("REFUSED WITHOUT")
    assert robust.outcome(lambda: None) == "read"
    assert robust.outcome(lambda: bytearray(2**30)) in ("read", "TAKES MUCH MEMORY")

@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(folder):
    """Runs are stopped at twenty random moments and at file operations, by SIGKILL and by a full disk."""
    here = os.getcwd()
    seen = robust.stopped_runs(20, every=12)
    assert os.getcwd() == here and not {x for x in seen if x[2] not in GOOD}
    assert sum(x[2] == "went on to the same bytes" for x in seen if x[0] == "kill") > 20
    assert sum(x[2] == "went on to the same bytes" for x in seen if x[0] == "full") > 2
