"""
The comparison of a few losses over one hyperparameter each: reward at equal KL, seed by seed, and the verdict.

    python -m study.sweep --methods exo dpo ipo --grid beta 0.05 0.1 0.3 1

study/sweep.py calls this file with --methods. The first method, here exo, is compared with each of the others.
docs/new-loss.md walks through an example.

A method's frontier is the upper envelope of its settings, for each seed by itself (pictures.py): a setting that has a
lower reward at a larger KL than another one of the same method does not count against the method. Two frontiers are
compared over the range of KLs inside every seed's range of both methods. The difference is the mean over that
range, evenly over the root of the KL. Both runs of a seed share the SFT policy and the pairs.
"""
import hashlib
import math
from pathlib import Path

import numpy as np
import torch

import train_pref
from losses import LOSSES, Pairs
from study import claims, pictures, places
from support import cli
from support.checkpoint import read_json, write_json
from support.registry import try_out

# ---------------------------------------------------------------------------------------------------------------------
# The flags

def add_flags(p):
    """--methods and the flags that need it."""
    p.add_argument("--methods", nargs="+", metavar="LOSS",
                   help="compare only these losses of losses.py, the first with each of the others, into out/methods")
    p.add_argument("--grid", nargs="+", action="append", metavar="NAME [VALUE ...]",
                   help="with --methods: a hyperparameter and its values; LOSS.NAME is the grid of one loss alone")
    p.add_argument("--max_steps", type=cli.positive, help="with --methods: updates of each run (default: 140)")

def check_flags(p, args):
    """Refuses flags of --methods without it, flags that have no effect with it, and losses that do not exist."""
    for flag in ("grid", "max_steps"):
        cli.refuse(p, args, [(flag, args.methods, "without --methods")])
    if not args.methods:
        return
    cli.refuse(p, args, (
        ("quick", False, "with --methods; give fewer values or seeds, or --max_steps"),
        ("draw", False, "with --methods; the same command again runs nothing that is finished, and draws"),
        ("update", False, "with --methods; the project's own results are those of the whole sweep")))
    for method in args.methods:
        if method not in LOSSES:
            p.error(f"--methods {method}: there is no loss of this name; write it into losses.py under @register "
                    f"(docs/new-loss.md), or choose from {', '.join(LOSSES)}")
        if args.methods.count(method) > 1:
            p.error(f"--methods: {method} is given twice")

def grids_of(p, args):
    """{method: (hyperparameter, its values as texts)} from --methods and --grid. Refuses a grid that does not fit."""
    given = {}    # method -> its grid; "" -> the grid of all methods without their own
    for name, *values in args.grid or ():
        method, _, knob = name.rpartition(".")
        if method in given:
            p.error(f"--grid {name}: {method or 'the grid of all methods'} has the grid {given[method][0]} already")
        if method and method not in args.methods:
            p.error(f"--grid {name}: {method} is not one of --methods {' '.join(args.methods)}")
        given[method] = knob, values
    grids = {method: given.get(method, given.get("")) for method in args.methods}
    for method, grid in grids.items():
        check_grid(p, method, *(grid or ("", [])))
    if "" in given and given.keys() >= grids.keys():
        p.error(f"--grid {given[''][0]} has no effect: each method has a grid of its own")
    return grids

def check_grid(p, method, knob, values):
    """Refuses a grid over a hyperparameter that the loss does not take or that has no range, and unusable values."""
    loss, about = LOSSES[method], f"--grid {knob}"
    takes = ", ".join(loss.hparams) or "no hyperparameter, so it has no frontier"
    if not knob:
        p.error(f"--methods needs a --grid for {method}, as in --grid beta 0.05 0.1 0.3 1; {method} takes {takes}")
    if knob not in loss.hparams:
        own = f"; --grid {method}.NAME VALUE ... is a grid for {method} alone" if loss.hparams else ""
        p.error(f"{about}: {method} takes {takes}{own}")
    if loss.flag_types[knob] is bool or knob == "T":
        why = "is on or off" if loss.flag_types[knob] is bool else "is the results' name of a sampling temperature"
        p.error(f"{about}: {knob} of {method} {why}, and cannot be a grid")
    if not values:
        p.error(f"{about}: give at least one value, as in {about} {loss.hparams[knob]}")
    parsed = []
    for text in values:
        if not text or set(text) & set(" /\\\t\n"):    # a value is part of the name of a folder
            p.error(f"{about}: a value must not be empty or contain spaces and slashes: {text!r}")
        parsed.append(hyperparameters(p, method, knob, text)[knob])
        if parsed.count(parsed[-1]) > 1:
            p.error(f"{about}: the value {text} is given twice")

def hyperparameters(p, method, knob, text):
    """{name: value}: all hyperparameters of a setting. Refuses a value of a wrong type or out of its range."""
    args = train_pref.get_args(["--loss", method, f"--{knob}", text])
    hparams = {name: getattr(args, name) for name in LOSSES[method].hparams}
    try:
        try_out(method, hparams, Pairs)
    except ValueError as e:
        p.error(f"--grid {knob} {text}: {e}")
    return hparams

def settings(p, args):
    """{recipe: (flags, method, hyperparameters)}: "mine beta=1": ("--loss mine --beta 1", "mine", {"beta": 1.0})."""
    steps = f" --max_steps {args.max_steps}" if args.max_steps else ""
    found = {}
    for method, (knob, values) in grids_of(p, args).items():
        for text in values:
            flags = f"--loss {method} --{knob} {text}{steps}"
            found[f"{method} {knob}={text}"] = flags, method, hyperparameters(p, method, knob, text)
    return found

# ---------------------------------------------------------------------------------------------------------------------
# A loss that has changed since its runs

def fingerprint(method, hparams):
    """A text that changes with the values or gradients of a loss: those on 64 made-up pairs, to four digits."""
    rng = torch.Generator().manual_seed(0)
    def random(low, high):
        return low + (high - low) * torch.rand(64, generator=rng)
    policy = [random(-60, -1).requires_grad_() for _ in range(2)]    # chosen, rejected: (64,) nats
    reference = [logps.detach() + random(-12, 12) for logps in policy]
    lens = [random(1, 40).round() for _ in range(2)]
    pairs = Pairs(*policy, *reference, *lens, kl_logratios=random(-3, 3), reward_gaps=random(-1, 3))
    losses, *rewards = LOSSES[method].fn(pairs, **hparams)
    slopes = torch.autograd.grad(losses.sum(), policy, allow_unused=True)
    numbers = [x for part in (losses, *rewards, *slopes) if part is not None for x in part.tolist()]
    return hashlib.sha256(" ".join(f"{x:.4g}" for x in numbers).encode()).hexdigest()[:16]

def forget_changed(root, found):
    """
    Lets the runs of each setting be repeated whose loss has changed since, and says so.

    root   the folder of --out; losses.json in it holds the fingerprint of each setting
    found  settings()
    Raises ValueError if the folder holds another kind of sweep.
    """
    path = Path(root) / "losses.json"
    if (Path(root) / "sweep.csv").exists() and not path.exists():
        raise ValueError(f"{root} holds a sweep that was made without --methods: choose another folder with --out")
    before = read_json(path) if path.exists() else {}
    now = {recipe: fingerprint(method, hparams) for recipe, (_, method, hparams) in found.items()}
    changed = []
    for recipe in now:
        done = list((Path(root) / "runs").glob(f"{recipe.replace(' ', '-')}-[0-9]*/done"))
        if done and before.get(recipe) != now[recipe]:
            changed.append(recipe)
            for mark in done:
                mark.unlink()
    write_json(path, before | now)
    if changed:
        print(f"changed in losses.py since their runs, which are repeated: {', '.join(changed)}")

# ---------------------------------------------------------------------------------------------------------------------
# Reward at equal KL

def reach(s, method):
    """(smallest, largest) KL in nats of a method's settings, (seeds,) each; NaN for a seed without any."""
    kl = np.array([s(r, "kl") + 0 * s(r, "reward") for r in s.points(method)])    # (settings, seeds)
    none = np.full(len(s.seeds), math.nan)
    return (np.fmin.reduce(kl), np.fmax.reduce(kl)) if len(kl) else (none, none)    # fmin and fmax leave out NaN

def overlap(s, first, other):
    """
    (low, high, seeds): the range of KLs in nats inside every seed's range of both methods, and the seeds that count.

    seeds  (seeds,) bools: those with a run of both methods. Other seeds do not count.
    """
    (a_low, a_high), (b_low, b_high) = reach(s, first), reach(s, other)
    seeds = ~np.isnan(a_low + b_low)
    low = np.maximum(a_low, b_low)[seeds].max(initial=0)
    high = np.minimum(a_high, b_high)[seeds].min(initial=math.inf)
    return low, high, seeds

def frontier(s, method, nats):
    """(seeds, n): the reward of a method at KLs (n,) in nats, on the envelope of each seed; NaN without any setting."""
    found = []
    kl, reward = (np.array([s(r, measure) for r in s.points(method)]).T for measure in ("kl", "reward"))
    for pairs in (list(zip(*columns)) for columns in zip(kl, reward)):
        pairs = [pair for pair in pairs if not np.isnan(pair).any()]    # a failed run has no point
        x, y = np.array(pictures.envelope(pairs)).T if pairs else (np.zeros(1), np.full(1, math.nan))
        found.append(np.interp(nats ** 0.5, x ** 0.5, y))    # reward over the root of the KL is nearly a straight line
    return np.array(found)

def differences(s, first, other, n=9):
    """(KLs (n,), reward of the first method minus that of the other (n, seeds)), where both were measured."""
    low, high, seeds = overlap(s, first, other)
    nats = np.linspace(low ** 0.5, high ** 0.5, n) ** 2
    nats = nats.clip(low, high)    # the square of a root may be outside by a rounding error
    return nats, (frontier(s, first, nats) - frontier(s, other, nats))[seeds].T

VERDICTS = {1: "better", -1: "worse", 0: "cannot be told apart"}

def compare(s, first, other):
    """
    The row of verdicts.csv for two methods, as a dict. `seeds` is the number of seeds that count.

    Every row has the keys `first` to `kl_high` of HEAD. A row with intervals has all of HEAD. The verdict is "better"
    or "worse" if the whole interval of the mean difference is above or below 0. It is "depends on the KL", whatever the
    mean is, if the interval at one end of the range is above 0 and that at the other end is below 0.
    """
    low, high, seeds = overlap(s, first, other)
    row = {"first": first, "other": other, "verdict": "no overlap", "seeds": int(seeds.sum()),
           "kl_low": float(low), "kl_high": float(high)}
    if not seeds.any() or low > high:
        return row
    nats, found = differences(s, first, other)    # (n,), (n, seeds)
    for end, values in (("", found.mean(0)), ("near_", found[0]), ("far_", found[-1])):
        row |= zip((f"{end}mean", f"{end}low", f"{end}high"), claims.interval(values))
    crossing = side(row, "near_") * side(row, "far_") < 0
    row["verdict"] = "depends on the KL" if crossing else VERDICTS[side(row)]
    return row

def side(row, end=""):
    """1 if the interval of a row is above 0, -1 if it is below, 0 if it contains 0."""
    if claims.verdict(row[f"{end}low"], row[f"{end}high"], *claims.ABOVE_0) == "holds":
        return 1
    return -1 if claims.verdict(row[f"{end}low"], row[f"{end}high"], *claims.BELOW_0) == "holds" else 0

# ---------------------------------------------------------------------------------------------------------------------
# The verdict in words

def sentence(s, row):
    """The verdict on two methods in one sentence."""
    first, other, n = row["first"], row["other"], row["seeds"]
    if row["verdict"] == "no overlap":
        return cannot_compare(s, row)
    at = f"at equal KL, from {row['kl_low']:.2f} to {row['kl_high']:.2f} nats"
    if n == 1:
        return (f"{first} and {other} cannot be told apart by one seed: {at}, the reward of {first} is "
                f"{amount(row['mean'])}, without an interval; give at least two --seeds.")
    if row["verdict"] == "depends on the KL":
        return (f"Whether {first} is better than {other} depends on the KL: the reward of {first} is "
                f"{in_words(row, 'near_')} at {row['kl_low']:.2f} nats and {in_words(row, 'far_')} at "
                f"{row['kl_high']:.2f} nats, {n} seeds.")
    head = f"{first} is {row['verdict']} than {other}"
    if row["verdict"] == "cannot be told apart":
        head = f"{first} and {other} cannot be told apart"
    return f"{head}: {at}, the reward of {first} is {in_words(row)}, {n} seeds{farther(s, row)}."

def amount(difference):
    """A difference of rewards in words."""
    return f"{abs(difference):.3f} {'lower' if difference < 0 else 'higher'}"

def in_words(row, end=""):
    """A difference of rewards in words, with its interval."""
    low, high = row[f"{end}low"], row[f"{end}high"]
    return f"{amount(row[f'{end}mean'])} (95% interval of the difference: {low:+.3f} to {high:+.3f})"

def best(s, method):
    """(reward, KL in nats) of the method's setting with the highest reward, means over seeds."""
    return max((float(np.nanmean(s(r, "reward"))), float(np.nanmean(s(r, "kl")))) for r in measured(s, method))

def measured(s, method):
    """The settings of a method of which a seed was measured."""
    return [r for r in s.points(method) if not np.isnan(s(r, "reward") + s(r, "kl")).all()]

def farther(s, row):
    """What a higher reward of the first method is worth that is not better at equal KL: it is only farther away."""
    (reward, kl), (other_reward, other_kl) = best(s, row["first"]), best(s, row["other"])
    if row["verdict"] == "better" or reward <= other_reward or kl <= other_kl:
        return ""
    return (f"; the highest reward of {row['first']}, {reward:.3f} against {other_reward:.3f}, is only farther from "
            f"the reference, at {kl:.2f} against {other_kl:.2f} nats")

def cannot_compare(s, row):
    """The sentence for two methods without a common range of KL, with what to try."""
    first, other = row["first"], row["other"]
    if not row["seeds"]:
        return f"{first} and {other} cannot be compared: no seed has finished runs of both."
    ranges = []
    for method in (first, other):
        kl = [np.nanmean(s(r, "kl")) for r in measured(s, method)]
        ranges.append(f"{method} has {min(kl):.2f} to {max(kl):.2f} nats")
    nearer = min(first, other, key=lambda m: np.nanmin(reach(s, m)[1]))       # its largest KL is too small
    beyond = max(first, other, key=lambda m: np.nanmax(reach(s, m)[0]))       # its smallest KL is too large
    tries = [beside(s, nearer, max), beside(s, beyond, min)]
    if nearer == beyond:
        tries = [f"more values for {nearer}, on both sides of those that it has"]
    return (f"{first} and {other} cannot be compared at equal KL, because their settings do not overlap in KL in every "
            f"seed ({' and '.join(ranges)}, means over seeds); try {' or '.join(tries)}.")

def beside(s, method, extreme):
    """Where to add values for a method, so that its largest (extreme: max) or smallest (min) KL moves outward."""
    recipes = measured(s, method)
    texts = {r: r.split("=", 1)[1] for r in recipes}
    end = extreme(recipes, key=lambda r: np.nanmean(s(r, "kl")))
    knob, where = end.split()[1].split("=")[0], "other than"
    try:
        values = {r: float(text) for r, text in texts.items()}
    except ValueError:    # words have no order
        values = {}
    if len(values) > 1 and values[end] in (min(values.values()), max(values.values())):
        where = "below" if values[end] == min(values.values()) else "above"
    return f"a {knob} {where} {texts[end]} for {method}"

HEAD = ("first", "other", "verdict", "seeds", "kl_low", "kl_high", "mean", "low", "high",
        "near_mean", "near_low", "near_high", "far_mean", "far_low", "far_high")

def judge(results, methods):
    """Writes verdicts.csv beside sweep.csv. Returns the sentences: the first method against each of the others."""
    s = claims.Sweep(results)
    rows = [compare(s, methods[0], other) for other in methods[1:]]
    places.write_csv(results / "verdicts.csv", HEAD, [[row.get(key, "") for key in HEAD] for row in rows])
    return [sentence(s, row) for row in rows]
