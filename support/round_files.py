"""
The files of a round of training: its pairs, and a mark that the round is complete, with the reference's log-probs.

    write_mark(mark, pairs, about, reference)       # last, after the file of the pairs
    reference = read_mark(mark, pairs, about)       # None unless both files are intact and of this round of this run

rounds.py says what a round is. docs/reliability.md says when a resumed run reads these files.
"""
import hashlib
import json

from support import cli, rundir
from support.checkpoint import read_json, write_json

def run_id(out_dir):
    """A hash of what makes a run another run: flags, data and initial weights, as its args.json has them."""
    facts = rundir.read_args(out_dir)
    flags = {name: value for name, value in facts["args"].items() if name not in cli.FREE}
    content = [flags, facts["data_fingerprint"], facts["reference_fingerprint"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

def checksum(pairs, content):
    """The SHA-256 of the file of a round's pairs together with the content of its mark, in hex."""
    return hashlib.sha256(pairs.read_bytes() + json.dumps(content, sort_keys=True).encode()).hexdigest()

def write_mark(mark, pairs, about, reference):
    """Writes a mark. about: what the round is, a dict; reference: a dict of numbers a pair. Both can be JSON."""
    content = about | {"reference": reference}
    write_json(mark, content | {"sha256": checksum(pairs, content)})

def read_mark(mark, pairs, about):
    """The reference of a mark. None unless mark and pairs are intact and the mark says what `about` says."""
    try:
        content = read_json(mark)
        intact = content.pop("sha256") == checksum(pairs, content)
        return content["reference"] if intact and content.items() >= about.items() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):    # what a damaged file can raise
        return None
