"""What the robustness table counts, on fewer trials: every outcome is one of the good ones."""
import os

import pytest

import robust

GOOD = {"read", "refused", "read with the same content", "went on to the same bytes", "it was done by then",
        "said so, and ended without a picture"}

@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path

@pytest.mark.slow
def test_damaged_files_are_refused_or_read(folder):
    """2,000 inputs: no traceback, no hang, no memory that the file does not have."""
    seen = list(robust.fuzz(2000, folder))
    assert not {x for x in seen if x[2] not in GOOD}
    for name in {x[1] for x in seen}:    # both happen for each, or the damage is not worth its name
        assert any(x[1:] == (name, "refused") for x in seen), name

def test_no_changed_byte_is_read_as_if_it_were_whole(folder):
    """What has a checksum."""
    seen = list(robust.changed_bytes(100, folder))
    assert not {x for x in seen if x[2] not in GOOD} and sum(x[2] == "refused" for x in seen) > 100

def test_the_fuzzer_sees_what_must_not_be(tmp_path):
    """Or it proves nothing."""
    def bad():
        raise KeyError("x")
    def silent():
        raise ValueError("")
    assert robust.outcome(bad).startswith("TRACEBACK") and robust.outcome(silent).startswith("REFUSED WITHOUT")
    assert robust.outcome(lambda: None) == "read" and robust.outcome(lambda: bytearray(2**30)) in ("read", "TAKES MUCH MEMORY")

@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(folder):
    """At twenty random moments, and at operations on files, by SIGKILL and by a full disk."""
    here = os.getcwd()
    seen = robust.stopped_runs(20, every=12)
    assert os.getcwd() == here and not {x for x in seen if x[2] not in GOOD}
    assert sum(x[2] == "went on to the same bytes" for x in seen if x[0] == "kill") > 20
    assert sum(x[2] == "went on to the same bytes" for x in seen if x[0] == "full") > 2
