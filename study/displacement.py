"""
Where the probability went: the measures of likelihood displacement of several runs, for the documents.

    python eval.py --run out/toy/dpo out/toy/dpop --displacement
    python -m study.displacement --run out/toy/dpo out/toy/dpop --update

Runs of one loss with other seeds are rows of one method. Reads the eval.json and displacement.json of each run, and
writes displacement.csv into out/study, or into study/results with --update. docs/page.md shows it as tables.
Read first: displacement.py
"""
from pathlib import Path

import numpy as np

from study import places
from support import cli, rundir
from support.checkpoint import read_json

HEAD = ("method", "seed", "measure", "value")

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--run", nargs="+", required=True, help="runs of train_pref.py, evaluated with --displacement")
    return places.parse(p, argv)

def rows_of(run):
    """The rows of a run: (method, seed, measure, value). Raises ValueError if there is no displacement.json."""
    args, path = rundir.read_args(run)["args"], Path(run) / "displacement.json"
    if not path.exists():
        raise ValueError(f"{path}: no such file; it is written by python eval.py --run {run} --displacement")
    evaluated = rundir.read_eval(run)["measures"]
    try:
        stored = read_json(path)
        measured = stored["measures"]
        gained = [one["gained"][0]["after"] for one in stored["examples"] if one["gained"]]
        adapter = f" --adapter {args['adapter']} --adapter_rank {args['adapter_rank']}" if args.get("adapter") else ""
        method, rows = args["loss"] + adapter, []
        for name, column in (("before", "reference"), ("after", method)):
            found = {key: evaluated[name][key] for key in ("reward", "kl", "whole") if key in evaluated[name]}
            found |= {key: value for key, value in measured[name].items() if value}
            rows += [(column, args["seed"], key, float(value[0])) for key, value in found.items()]
        if gained:    # log pi of the completion that gained the most, of the prompt in the middle
            rows.append((method, args["seed"], "gained", float(np.median(gained))))
    except (KeyError, TypeError, IndexError, AttributeError):
        raise ValueError(f"{path}: damaged: evaluate the run again, with --displacement") from None
    return rows

def main(argv=None):
    args = get_args(argv)
    with cli.bad_input():
        rows = dict.fromkeys(row for run in args.run for row in rows_of(run))    # runs of a seed share a reference
        results, _ = places.folders(args.out, args.update)
        places.write_csv(results / "displacement.csv", HEAD, rows)
    print(f"{results / 'displacement.csv'}: {len(args.run)} runs")

if __name__ == "__main__":
    main()
