"""
Run directories: out/<data>/<name>, their args.json, and the next free name. See docs/running.md
"""
import importlib.metadata
import shlex
import sys
from itertools import count, takewhile
from pathlib import Path

import torch

from support import parallel
from support.checkpoint import read_json, write_json

def data_name(data):
    """The folder name of a data set: its name, or that of its file without the suffixes."""
    return Path(data).name.split(".")[0]

def run_names(data, name):
    """Yields the run directories that a name can have: out/toy/dpo, out/toy/dpo-2, out/toy/dpo-3, ..."""
    for n in count(1):
        yield Path("out") / data_name(data) / (name if n == 1 else f"{name}-{n}")

def run_dirs(data, name):
    """The existing runs of a name, in their order."""
    return list(takewhile(Path.exists, run_names(data, name)))

def is_free(out_dir):
    """Whether a run may be written there: nothing exists, or only temporary files of a killed process."""
    return not out_dir.exists() or (out_dir.is_dir() and all(p.suffix == ".tmp" for p in out_dir.iterdir()))

def check_out_dir(out_dir, resume):
    """Raises ValueError if something is at --out_dir already: a new run never overwrites anything."""
    if out_dir and not resume and not is_free(Path(out_dir)):
        raise ValueError(f"--out_dir {out_dir}: already exists; resume it with --resume, choose another, or delete it")

def claim_run_dir(args, script, name, **facts):
    """
    Creates args.out_dir, by default the next free name, and writes args.json: all that is needed to repeat the run.
    facts: what else the run was made from, such as fingerprints of data and weights. Returns args.out_dir.
    Raises ValueError if the run that is resumed was made from something else.
    """
    check_out_dir(args.out_dir, args.resume)
    if not args.out_dir:
        args.out_dir = str(next(folder for folder in run_names(args.data, name) if not folder.exists()))
    path = Path(args.out_dir) / "args.json"
    before = read_args(path.parent) if args.resume and path.exists() else {}
    parallel.wait()    # until every process has looked for a free name
    for key, value in facts.items():
        if before.get(key, value) != value:
            raise ValueError(f"--resume: {path} says {key} {before[key]}, but it is {value} now: data or weights have "
                             "changed since")
    packages = ("torch", "tiktoken", "numpy", "safetensors")
    versions = {package: importlib.metadata.version(package) for package in packages}
    versions |= {"python": sys.version.split()[0], "threads": torch.get_num_threads(), "processes": parallel.world()}
    for key, value in before.get("versions", {}).items():
        if versions.get(key) != value:
            print(f"--resume: {key} was {value}, and is {versions.get(key)} from here on: the last digits may differ")
    if parallel.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"script": script, "args": vars(args), **facts, "versions": versions})
    parallel.wait()
    return args.out_dir

def args_path(run):
    """The args.json of a run, or of the run that contains a folder step-N."""
    run = Path(run)
    return (run.parent if run.name.startswith("step-") else run) / "args.json"

def is_run(folder):
    """Whether a folder is a run of nanoPref, by its args.json."""
    path = args_path(folder)
    facts = read_json(path) if path.is_file() else None
    return isinstance(facts, dict) and "script" in facts

def read_args(run):
    """The content of a run's args.json. Raises ValueError if the folder is not a run or the file is damaged."""
    path = args_path(run)
    if not path.is_file():
        raise ValueError(f"{path}: no such file: {run} is not a run")
    facts = read_json(path)
    try:
        return facts | {"args": dict(facts["args"]), "script": facts["script"]}
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path}: damaged ({type(e).__name__}: {e})") from None

def command_of(facts):
    """The command that repeats a run, with every flag but --resume, which would continue it."""
    script = facts["script"].removesuffix(".py")
    words = ["python", facts["script"]] if "/" not in script else ["python", "-m", script.replace("/", ".")]
    for flag, value in facts["args"].items():
        if flag == "resume":
            continue
        if value is True:
            words.append(f"--{flag}")
        elif value is not None and value is not False:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)

def commands(run):
    """The commands of a run and of the runs that it was made from, the earliest first."""
    facts, found = read_args(run), []
    for flag in ("init_from", "reward"):
        source = facts["args"].get(flag)
        if source and is_run(source):
            found += commands(source)
    return list(dict.fromkeys([*found, command_of(facts)]))

# ---------------------------------------------------------------------------------------------------------------------
# what page.py reads

def step_of(run, facts):
    """The step of a run's weights: its best one, or that of its folder step-N."""
    path = Path(run) / "result.json"
    if Path(run).name.startswith("step-"):
        return int(Path(run).name[5:])
    if not path.exists():    # an unfinished run
        return facts["args"].get("max_steps", 0)
    result = read_json(path)
    if "best_step" not in result:
        raise ValueError(f"{path}: damaged: it has no best_step")
    return result["best_step"]

def read_eval(run):
    """The eval.json of a run. Raises ValueError if there is none, if it is damaged, and if the run has no policy."""
    path = Path(run) / "eval.json"
    if read_args(run)["script"] == "rlhf/train_reward.py":
        raise ValueError(f"{run} is a reward model, and a page shows a policy: give a run that was trained with it")
    if not path.exists():
        raise ValueError(f"{path}: no such file: evaluate the run first, with python eval.py --run {run}")
    result = read_json(path)
    try:
        complete = result["prompts"] and result["n_samples"] and result["measures"]["after"] and result["samples"]
        complete = complete and all("prompt" in record and "after" in record for record in result["samples"])
    except (KeyError, TypeError):
        complete = False
    if not complete:
        raise ValueError(f"{path}: damaged: evaluate the run again, with python eval.py --run {run}")
    for column in result["measures"].values():
        for key in [key for key, interval in column.items() if None in interval]:    # NaN is None in JSON
            del column[key]
    return result

def read_evals(runs, n):
    """{run: its eval.json}. Raises ValueError unless the first n samples of all runs have the same prompts."""
    results = {run: read_eval(run) for run in runs}
    prompts = {run: [record["prompt"] for record in result["samples"][:n]] for run, result in results.items()}
    for run in runs:
        if prompts[run] != prompts[runs[0]]:
            raise ValueError(f"{run} was evaluated on other prompts than {runs[0]}: evaluate the runs together, with "
                             f"python eval.py --run {' '.join(runs)}")
    return results
