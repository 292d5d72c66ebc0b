"""
Where a loss puts its credit: implicit and true credit of the words in all held-out pairs, for runs on the toy world.

    python -m study.credit --run out/toy/dpo out/toy/ipo out/toy/dpop --update

Runs of one loss with other seeds are rows of one method. Writes credit.csv into out/study, or into study/results with
--update. docs/page.md shows it as a table. Read first: page.py
"""
import numpy as np

import eval
import page
import toy
from study import places
from support import cli, rundir

HEAD = ("method", "seed", "measure", "value")

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--run", nargs="+", required=True, help="folders of preference runs on the toy world")
    return places.parse(p, argv)

def kinds(seen):
    """For each token of a Seen the kind of its word: good, bad, not good, not bad, gem, bore or other."""
    words = [piece.strip() for piece in seen.pieces]
    found = []
    for at, word in enumerate(words):
        negated = "not" in words[max(0, at - 2):at]    # "not dull" or "not very dull"
        if word in toy.GOOD + toy.BAD:
            found.append(("not " if negated else "") + ("good" if word in toy.GOOD else "bad"))
        else:
            found.append("gem" if word in toy.GEM else "bore" if word in toy.BORE else "other")
    return found

def measured(pairs, view):
    """{measure: a number} of a run: sums of log-ratios in nats a completion, and means of them a word of each kind."""
    chosen, rejected = (np.array([pair[side].logratios.sum() for pair in view.pairs]) for side in (0, 1))    # (pairs,)
    good = np.array([pair.rewards[0] >= 0.5 for pair in pairs])
    found = {"chosen": chosen.mean(), "rejected": rejected.mean(), "chosen, reward >= 0.5": chosen[good].mean(),
             "chosen, reward < 0.5": chosen[~good].mean(), "correlation": page.credit_correlation(view)[0]}
    sides = [side for pair in view.pairs for side in pair]
    ratios, kind = np.concatenate([s.logratios for s in sides]), np.array([k for s in sides for k in kinds(s)])
    return found | {name: ratios[kind == name].mean() for name in ("good", "bad", "not good", "not bad", "gem", "bore")}

def rows_of(run):
    """The rows of a run: (method, seed, measure, value). Raises ValueError for a run on other data."""
    device, autocast = cli.set_up(seed=0, device="cpu", dtype="auto", data="toy", say=lambda line: None)
    loaded = eval.load_policy(run, device)
    args = loaded[0]["args"]
    if args["data"] != "toy" or "loss" not in args:
        raise ValueError(f"{run}: expected a run of train_pref.py on the toy world, where the true credit is known")
    look = eval.get_args(["--run", run])
    held = eval.load_held_out(look, *loaded[:2], None, device, autocast, lambda line: None)
    pairs, result = page.held_out_pairs(loaded[0], held, len(held.pairs)), rundir.read_eval(run)
    view = page.views_of(run, loaded, held, pairs, result, 0, seed=0, batch_size=64, autocast=autocast)[-1]
    method = args["loss"] + (f" --adapter {args['adapter']}" if args["adapter"] else "")
    after = {name: result["measures"]["after"][name][0] for name in ("reward", "kl", "whole")}
    return [(method, args["seed"], name, float(value)) for name, value in (after | measured(pairs, view)).items()]

def main(argv=None):
    args = get_args(argv)
    with cli.bad_input():
        rows = [row for run in args.run for row in rows_of(run)]
        results, _ = places.folders(args.out, args.update)
        places.write_csv(results / "credit.csv", HEAD, rows)
    print(f"{results / 'credit.csv'}: {len(args.run)} runs")

if __name__ == "__main__":
    main()
