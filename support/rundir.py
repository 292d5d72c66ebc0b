"""
Run directories: out/<data>/<name>, their args.json, and the next free name. See docs/running.md
"""
import importlib.metadata
import sys
from pathlib import Path

import torch

from support import parallel
from support.checkpoint import read_json, write_json

def data_name(data):
    return Path(data).name.split(".")[0]

def run_dirs(args, name):
    """The runs of this name that are there: out/toy/dpo, out/toy/dpo-2, ... in their order."""
    root, found = Path("out") / data_name(args.data), []
    while (d := root / (name if not found else f"{name}-{len(found) + 1}")).exists():
        found.append(d)
    return found

def is_free(out_dir):
    """Whether nothing is there, but for what a kill in the midst of writing may have left."""
    return not out_dir.exists() or (out_dir.is_dir() and all(p.suffix == ".tmp" for p in out_dir.iterdir()))

def check_out_dir(args):
    """Raises ValueError if something stands where the run is to go: nothing is written over."""
    if args.out_dir and not args.resume and not is_free(Path(args.out_dir)):
        raise ValueError(f"--out_dir {args.out_dir}: something is there already; go on with it by --resume, choose another, or delete it")

def claim_run_dir(args, script, name, **facts):
    """
    Makes args.out_dir, or the next free name, and writes args.json, what it takes to repeat the run. facts: what else it was made
    from; raises ValueError if a run that is resumed was made from something else.
    """
    check_out_dir(args)
    if not args.out_dir:
        n = len(run_dirs(args, name)) + 1
        args.out_dir = str(Path("out") / data_name(args.data) / (name if n == 1 else f"{name}-{n}"))
    path = Path(args.out_dir) / "args.json"
    before = read_args(path.parent) if args.resume and path.exists() else {}
    parallel.wait()    # until all have looked
    for key, value in facts.items():
        if before.get(key, value) != value:
            raise ValueError(f"--resume: {path} says {key} {before[key]}, but it is {value} now: data or weights have changed since")
    versions = {package: importlib.metadata.version(package) for package in ("torch", "tiktoken", "numpy", "safetensors")}
    versions |= {"python": sys.version.split()[0], "threads": torch.get_num_threads(), "processes": parallel.world()}
    for key, value in before.get("versions", {}).items():
        if versions.get(key) != value:
            print(f"--resume: {key} was {value}, and is {versions.get(key)} from here on: the last bits may differ")
    if parallel.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"script": script, "args": vars(args), **facts, "versions": versions})
    parallel.wait()
    return args.out_dir

def args_path(run):
    """args.json of a run, or of the one that a folder step-N is in."""
    return (Path(run).parent if Path(run).name.startswith("step-") else Path(run)) / "args.json"

def is_run(folder):
    """Whether a folder is a run of ours, by its args.json."""
    path = args_path(folder)
    return path.is_file() and isinstance(facts := read_json(path), dict) and "script" in facts

def read_args(run):
    """The content of args.json."""
    path = args_path(run)
    if not path.is_file():
        raise ValueError(f"{path}: no such file: {run} is not a run")
    facts = read_json(path)
    try:
        return facts | {"args": dict(facts["args"]), "script": facts["script"]}
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path}: damaged ({type(e).__name__}: {e})") from None
