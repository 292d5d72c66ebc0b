"""
The sweep: each method of the reports over its hyperparameter, on the toy world with its exact reward, several seeds.

    python -m study.sweep             # every recipe, three seeds: about three hours on 2 cores
    python -m study.sweep --second    # what three seeds left open, rounds, GRPO: five seeds, about an hour
    python -m study.sweep --quick     # a few recipes, two seeds: about five minutes, into out/quick
    python -m study.sweep --draw      # run nothing: draw study/results again, into out/study
    python -m study.sweep --update    # as the first, and write study/results, study/figures and the documents' tables
    python -m study.sweep --methods exo dpo --grid beta 0.05 0.1 0.3 1    # only these losses, into out/methods

Writes sweep.csv (all measures), curves.csv (some logs), claims.csv (the verdicts) and the figures: see docs/study.md.
With --methods: verdicts.csv (is the first loss better at equal KL?) and frontier.png: see docs/new-loss.md, compare.py.

A seed is that of a whole pipeline: the SFT policy, the pairs sampled from it, and their order. Runs go to
out/study/runs, `--jobs` at a time with one thread each. Finished runs are skipped, so an interrupted sweep loses only
the runs in progress. Read next: claims.py
"""
import contextlib
import csv
import json
import multiprocessing
import os
import shutil
from pathlib import Path

from tqdm import tqdm

import eval
import train_pref
import train_sft
from losses import LOSSES
from rlhf import train_ppo, train_reward
from study import claims, compare, pictures, places, table
from support import cli
from support.checkpoint import load_tensors

def grid(method, flags, knob, values):
    """{recipe: flags}: a method at each value of one flag."""
    return {f"{method} {knob}={v}": f"{flags} --{knob} {v}" for v in values}

def adapted(mode, ranks):
    """
    {recipe: flags}: DPOP with an adapter of each rank.

    DPO alone would make the chosen completion unlikely too, because the frozen embedding has words of opposite verdicts
    close together. DPOP has a term against that. An adapter's output is a sum over its hidden units. The learning rate
    falls with the root of the rank, so that the steps of all ranks are equally large.
    """
    flags = f"--loss dpop --max_steps 240 --eval_every 40 --adapter {mode}"
    return {f"{mode} adapter_rank={r}": f"{flags} --adapter_rank {r} --lr {1.6e-2 / r**0.5:.1e}" for r in ranks}

# flags of every preference run, before the recipe's own: fixed here, whatever the scripts' defaults become
SHORT = "--max_steps 140 --eval_every 20 --batch_size 64 --n_prompts 1200"
NOISE = "--label_noise 0.2"
ROUNDS = "--rounds 4 --eval_every 140"    # no evaluation between: the last weights are kept, as without rounds
SKIP = "--on_nonfinite skip"    # with exp(-log-ratio), in a divergence or in k3, one pair may have a loss of 50
ALONG = "--keep_all --patience 0 --max_steps 480 --eval_every 40 --min_lr 1e-3"    # lr 1e-3 throughout

# Recipe, "method setting" -> flags of train_pref.py (for sft of train_sft.py). All others start from the SFT of their
# seed. The order is that of the results: the first recipe after sft samples the pairs of its seed.
ALPHA = "--loss fdpo --divergence alpha --alpha"
RECIPES = (
    {"sft": "--max_steps 600"}
    | grid("dpo", "--loss dpo", "beta", (0.1, 0.03, 0.05, 0.3, 1, 5, 20))
    | grid("dpo", "--loss dpo", "max_steps", (180, 240, 360))
    | grid("hinge", "--loss hinge", "beta", (0.2, 0.05, 0.5, 1))
    | {claims.default_of(name): f"--loss {name}" for name in LOSSES if name not in ("dpo", "hinge")}
    | grid("ipo", "--loss ipo", "beta", (0.1, 0.3, 0.5, 1))
    | grid("cdpo", "--loss cdpo --label_smoothing 0.15", "beta", (0.1, 0.03, 0.3))
    | grid("jsd", "--loss fdpo --divergence jsd", "beta", (0.1, 0.3, 1))
    | grid("alpha0.3", f"{ALPHA} 0.3 {SKIP}", "beta", (0.3, 1))
    | grid("alpha0.5", f"{ALPHA} 0.5 {SKIP}", "beta", (0.1, 0.3, 1))
    | grid("alpha0.7", f"{ALPHA} 0.7 {SKIP}", "beta", (0.3, 1))
    | grid("forward_kl", f"--loss fdpo --divergence forward_kl {SKIP}", "beta", (0.1, 0.3, 1))
    | grid("slic", "--loss slic", "delta", (1.0, 5.0))
    | grid("unlikelihood", "--loss unlikelihood", "alpha", (0.1, 0.3))
    | {"preferred_ft": "--loss sft",
       "dpo_up": "--loss dpo --beta 0 --beta_end 1", "ipo_down": "--loss ipo --beta 1 --beta_end 0.01",
       "dpo_mean": "--loss dpo --beta 0.5", "ipo_mean": "--loss ipo --beta 0.505",
       "noisy_dpo": f"--loss dpo {NOISE}", "noisy_cdpo": f"--loss cdpo --label_smoothing 0.2 {NOISE}",
       "noisy_robust": f"--loss robust --label_smoothing 0.2 {NOISE}", "noisy_ipo": f"--loss ipo {NOISE}"}
    | adapted("sequential", (16, 4, 64, 256))
    | adapted("parallel", (16, 4, 64, 256))
    | adapted("replace", (256, 64))
    | {"along_dpo": f"--loss dpo {ALONG}", "along_ipo": f"--loss ipo {ALONG}",
       "too_fast": "--loss dpo --lr 3e-3 --adam_epsilon 1e-8 --patience 0",
       "displaced": "--loss dpo --max_steps 420 --eval_every 60 --adapter sequential --adapter_rank 16 --lr 4e-4"}
    | grid("epsilon", "--loss dpo --lr 6e-4", "adam_epsilon", ("1e-8", "1e-5", "1e-4", "1e-3"))
    # What DPO replaces: a reward model trained on the same pairs, then PPO or RLOO (flags of train_ppo.py).
    # _gt: with the true reward.
    | {"reward": ""}
    | grid("ppo", "--keep_all", "beta", (0.5, 0.1, 0.2, 1))
    | grid("rloo", "--algo rloo --keep_all", "beta", (0.5, 0.2, 1))
    | grid("ppo_gt", "--true_reward --keep_all", "beta", (0.05, 0.02, 0.1, 0.2))
    | grid("rloo_gt", "--true_reward --algo rloo --keep_all", "beta", (0.05, 0.02, 0.1))
    | {"along_ppo": "--beta 0 --keep_all --max_steps 480 --min_lr 3e-3"})    # beta 0: no penalty for the KL

# The second sweep, in the same form, with SFT policies, pairs and reward models of its own.
SECOND = (
    {recipe: RECIPES[recipe] for recipe in ("sft", "dpo beta=0.1", "reward")}
    | grid("dpo", "--loss dpo", "beta", (1, 5))
    | grid("dpo", "--loss dpo", "max_steps", (180, 240))
    | grid("ipo", "--loss ipo", "beta", (0.1,))
    | {"default rdpo": "--loss rdpo"}
    | grid("rdpo", "--loss rdpo", "alpha", (0.1,))
    | grid("rounds_dpo", f"--loss dpo {ROUNDS}", "beta", (0.3, 1, 3))
    | grid("sync_dpo", f"--loss dpo {ROUNDS} --sync_ref", "beta", (1, 3))
    | grid("rounds_ipo", f"--loss ipo {ROUNDS}", "beta", (0.1, 0.3))
    | grid("ppo", SKIP, "beta", (0.5, 1))
    | grid("rloo", f"--algo rloo {SKIP}", "beta", (0.5, 0.2, 1))
    # GRPO and its relatives have the KL in the loss, as in their papers. _kr: in the reward, as in RLOO
    | grid("grpo", f"--algo grpo {SKIP}", "beta", (0.2, 0.5))
    | grid("dr_grpo", f"--algo dr_grpo {SKIP}", "beta", (0.5,))
    | grid("dapo", f"--algo dapo {SKIP}", "beta", (0.2,))
    | grid("grpo_kr", f"--algo grpo --kl reward {SKIP}", "beta", (0.5,))
    | grid("dr_grpo_kr", f"--algo dr_grpo --kl reward {SKIP}", "beta", (0.5,)))
# five seeds for the methods whose order three seeds left open, three for the others
SEEDS, MORE_SEEDS = (0, 1, 2), (3, 4)
OPEN = ("sft", "dpo beta=0.1", "reward", "dpo beta=1", "dpo beta=5", "dpo max_steps=180", "ppo beta=0.5", "ppo beta=1",
        "rloo beta=0.5", "rloo beta=0.2", "rloo beta=1", "grpo beta=0.2")

# one setting of each method, measured with more samples a prompt and at other temperatures
MAIN = ("dpo beta=0.1", "hinge beta=0.2", "ipo beta=0.1", "cdpo beta=0.1", "jsd beta=0.3", "alpha0.5 beta=0.3",
        "forward_kl beta=0.3", "slic delta=1.0", "unlikelihood alpha=0.1", "preferred_ft", "ppo beta=0.5",
        "rloo beta=0.5", "ppo_gt beta=0.05", "rloo_gt beta=0.05")
MEASURE = "--n_samples 25 --temperature 1 0.75 0.5 0.25 0 --show 0 --best_of 64"
QUICK_MEASURE = "--n_samples 25 --n_prompts 128 --temperature 1 0.5 0 --show 0 --best_of 16"
QUICK = ("sft", "dpo beta=0.1", "hinge beta=0.2", "ipo beta=0.1", "ipo beta=1", "preferred_ft")
CURVES = ("dpo beta=0.1", "dpo beta=0.3", "ipo beta=0.1", "preferred_ft", "noisy_dpo", "along_dpo", "along_ipo",
          "too_fast")

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--quick", action="store_true", help="run a few recipes with two seeds, into out/quick")
    p.add_argument("--second", action="store_true", help="run the second sweep, into out/second")
    p.add_argument("--draw", action="store_true",
                   help="run nothing; draw again from study/results, or from the folder of --quick or --out")
    p.add_argument("--seeds", nargs="+", type=cli.seed,
                   help="(default: 0 1 2; with --second 0 to 4 for some methods; with --quick 0 1)")
    p.add_argument("--jobs", type=cli.positive, default=multiprocessing.cpu_count(),
                   help="runs at a time, each with one thread (default: one a core, %(default)s here)")
    compare.add_flags(p)
    args = places.parse(p, argv)
    if args.update and args.quick:
        p.error("--update needs the whole sweep: leave out --quick")
    for flag in ("quick", "draw", "methods"):
        if args.second and getattr(args, flag):
            p.error(f"--{flag} has no effect with --second")
    if args.seeds and len(set(args.seeds)) < len(args.seeds):
        p.error("--seeds: a seed is given twice, and its runs would be made twice in one folder")
    compare.check_flags(p, args)
    args.settings = compare.settings(p, args) if args.methods else None
    return args

# ---------------------------------------------------------------------------------------------------------------------
# Runs, each in a process with one thread

def place(root, recipe, seed):
    """The run directory of a recipe and a seed."""
    return Path(root) / "runs" / f"{recipe.replace(' ', '-')}-{seed}"

def script_of(recipe):
    """The module that runs a recipe and whose flags it has."""
    method = recipe.split()[0].removeprefix("along_")
    if method.startswith(("ppo", "rloo", "grpo", "dr_grpo", "dapo")):
        return train_ppo
    return {"sft": train_sft, "reward": train_reward}.get(method, train_pref)

def train(root, recipe, seed, flags):
    """One run, and the evaluation of each checkpoint that it keeps. Does nothing if it is done with the same flags."""
    script = train_pref if "--loss " in flags else script_of(recipe)    # a user's loss may have the name of a script
    folder, reward = place(root, recipe, seed), place(root, "reward", seed)
    learned, mark = (reward / "done").exists(), folder / "done"
    flags = f"{SHORT} {flags}" if script is train_pref else flags    # argparse takes the last of a repeated flag
    if mark.exists() and mark.read_text() == flags:
        return
    shutil.rmtree(folder, ignore_errors=True)    # unfinished, or with other flags
    argv = [*flags.split(), "--seed", str(seed), "--out_dir", str(folder)]
    if recipe != "sft":
        argv += ["--init_from", str(place(root, "sft", seed))]
    if script is train_ppo and "--true_reward" not in flags:
        argv += ["--reward", str(reward)]
    if script in (train_pref, train_ppo):
        argv += ["--n_show", "0"]
    script.main(argv)
    for step in sorted(folder.glob("step-*")):
        by_learned = ["--reward", str(reward)] if learned else []
        eval.main(["--run", str(step), "--n_samples", "1", "--show", "0", *by_learned])
    mark.write_text(flags)

def measure(root, recipes, seed, flags=MEASURE):
    """Evaluates the main runs of a seed: more samples, other temperatures, best of n. Skips what has been measured."""
    first, *others = (place(root, r, seed) for r in recipes)
    # best of n is a property of the reference alone, so it is measured with the first run only
    for runs, how in (([first], flags), (others, flags.split("--best_of")[0])):
        missing = [r for r in runs if not (r / "measured").exists() or (r / "measured").read_text() != how]
        if missing:
            eval.main(["--run", *map(str, missing), *how.split()])
        for r in missing:
            (r / "measured").write_text(how)

def alone():
    """Prepares a worker: one thread, and its own session, so that Ctrl-C reaches only the parent, which ends it."""
    import torch
    torch.set_num_threads(1)
    if hasattr(os, "setsid"):
        os.setsid()

def quietly(task):
    """
    Runs a task with its output in a log file. Returns None, or the reason why it failed.
    task: (train, root, recipe, seed, flags) or (measure, root, recipes, seed, flags)
    """
    job, root, what, seed, _ = task
    name = what if job is train else "measured"
    log = Path(root) / "logs" / f"{name}-{seed}.txt".replace(" ", "-")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
        try:
            job(*task[1:])
        except (Exception, SystemExit) as e:
            if getattr(e, "code", None) == 130:    # Ctrl-C: start no further task
                os._exit(130)
            return f"{[what, seed]}: {e!r}; see {log}"

def phases_of(root, recipes, seeds, flags):
    """
    Lists of tasks. A list starts after the one before it has ended; the tasks of a list are independent.
    flags: those of measure for the recipes of MAIN, or None to leave it out.
    """
    sft, first, *others = recipes
    learned = [r for r in others if r == "reward"]
    others = [r for r in others if r != "reward"]
    phases = []
    for part in ([sft], [first], learned, others):    # the first samples the pairs of its seed, which all others share
        phases.append([(train, root, r, seed, recipes[r]) for r in part for seed in seeds])
    main = [r for r in MAIN if r in recipes]
    if main and flags:
        phases.append([(measure, root, main, seed, flags) for seed in seeds])
    return phases

def run(root, recipes, seeds, jobs, flags=MEASURE):
    """
    Runs all recipes and seeds, `jobs` at a time. A failed run stops no other. Returns the failures' reasons.
    flags: those of the last phase, which measures the recipes of MAIN; None: without that phase.
    """
    phases = phases_of(root, recipes, seeds, flags)
    failed = []
    # A new process every few runs: the memory that a process frees is fragmented, and it would come to hold gigabytes.
    with multiprocessing.get_context("spawn").Pool(jobs, alone, maxtasksperchild=4) as pool:
        with tqdm(total=sum(map(len, phases)), unit="run") as bar:
            for phase in phases:
                for reason in pool.imap_unordered(quietly, phase):
                    if reason:
                        failed.append(reason)
                    bar.update()
    return failed

# ---------------------------------------------------------------------------------------------------------------------
# From run directories to sweep.csv and curves.csv

def collect(root, recipes, seeds, results):
    """Writes sweep.csv, a row for each recipe, seed and measure, and curves.csv, some of the runs' logs."""
    rows, curves = [], []
    _, first, *_ = recipes
    for recipe in recipes:
        for seed in seeds:
            folder = place(root, recipe, seed)
            if recipe != "sft" and (folder / "done").exists():
                rows += run_rows(folder, recipe, seed, recipe == first)
                if recipe in CURVES:
                    curves += curve_rows(folder, recipe, seed)
    places.write_csv(results / "sweep.csv", ("recipe", "seed", "measure", "mean", "low", "high"), rows)
    places.write_csv(results / "curves.csv", ("recipe", "seed", "step", "split", "metric", "value"), curves)

def measure_rows(recipe, seed, measures):
    """(recipe, seed, measure, mean, low, high) for each of {measure: (mean, low, high) or one exact number}."""
    rows = []
    for key, value in measures.items():
        values = value if isinstance(value, list) else [value] * 3
        rows.append((recipe, seed, key, *("nan" if v is None else v for v in values)))
    return rows

def run_rows(folder, recipe, seed, is_first):
    """The rows of one run. Its first run of a seed also has the rows of the SFT policy, which is its reference."""
    result = json.loads((folder / "result.json").read_text())
    rows = measure_rows(recipe, seed, {key: result[key] for key in ("seconds", "skipped")})
    if recipe == "reward":
        found = json.loads((folder / "reward.json").read_text())
        keys = ("accuracy", "calibration_error", "agreement")
        return rows + measure_rows(recipe, seed, {key: found[key] for key in keys})
    steps = sorted(folder.glob("step-*/eval.json"), key=lambda p: int(p.parent.name[5:]))
    for path in (folder / "eval.json", *steps):
        name = recipe if path.parent == folder else f"{recipe} {path.parent.name}"
        rows += eval_rows(json.loads(path.read_text()), recipe, name, seed, is_first)
    numbers = {"trainable": trainable(folder), "samples": samples(folder, result["step"])}
    return rows + measure_rows(recipe, seed, numbers)

def eval_rows(found, recipe, name, seed, is_first):
    """The rows of one eval.json. Temperatures and best of n are recipes of their own."""
    rows = measure_rows(name, seed, found["measures"]["after"])
    if is_first:
        rows += measure_rows("sft", seed, found["measures"]["before"])
        for best in found.get("best_of", ()):
            rows += measure_rows(f"best_of n={best['n']}", seed, {"kl": best["kl"], "reward": best["reward"]})
    for row in found.get("temperatures", ()):
        rows += measure_rows(f"{recipe} T={row['temperature']}", seed, row["after"])
        if is_first:
            rows += measure_rows(f"sft T={row['temperature']}", seed, row["before"])
    return rows

def curve_rows(folder, recipe, seed):
    """(recipe, seed, step, split, metric, value): a run's validation log, and its training loss and gradient norm."""
    with open(folder / "log.csv", newline="") as f:
        log = [row for row in csv.reader(f) if row[0] != "step"]
    return [(recipe, seed, *row) for row in log if row[1] == "val" or row[2] in ("grad_norm", "loss")]

def trainable(folder):
    """How many parameters a run trained: those in its best weights."""
    path = next(p for p in (folder / "adapter.safetensors", folder / "model.safetensors") if p.exists())
    return sum(t.numel() for t in load_tensors(path).values())

def samples(folder, step):
    """How many completions were sampled: PPO's during training, or those that the pairs were made from."""
    args = json.loads((folder / "args.json").read_text())["args"]
    if "epochs" in args:
        return step * args["batch_size"] // args["epochs"]
    return 4 * (args["n_prompts"] or 1200)

# ---------------------------------------------------------------------------------------------------------------------

def main(argv=None):
    args = get_args(argv)
    with cli.interruptible("-m study.sweep", args, argv):
        if args.methods:
            compare_methods(args)
        else:
            work(args)

def compare_methods(args):
    """Runs what is missing of --methods and --grid. Writes the results; prints their table and the verdicts."""
    root = args.out or "out/methods"
    results, figures = places.folders(root, update=False)
    with cli.bad_input():
        compare.forget_changed(root, args.settings)
    recipes = {"sft": RECIPES["sft"]} | {recipe: flags for recipe, (flags, *_) in args.settings.items()}
    seeds = args.seeds or SEEDS
    failed = run(root, recipes, seeds, args.jobs, flags=None)
    collect(root, recipes, seeds, results)
    s = claims.Sweep(results)
    if s.recipes:
        pictures.draw_methods(s, args.methods, figures)
        names = table.quoted(["sft", *args.settings])
        print(table.sweep_table(names, ("reward", "kl", "win", "entropy", "length"), folder=results))
        print("", *compare.judge(results, args.methods), sep="\n")
        print(f"written: {results}/sweep.csv, verdicts.csv and frontier.png")
    end_with(failed)

def end_with(failed):
    """Ends the script with the reasons of failed runs, if there are any."""
    if failed:
        raise SystemExit("\n".join(["some runs failed:", *failed]))

def work(args):
    """Runs the missing runs, then writes results, verdicts, figures and, with --update, the documents' tables."""
    if args.second:
        return second(args)
    root = args.out or ("out/quick" if args.quick else "out/study")
    results, figures = places.folders(root, args.update)
    recipes, seeds, flags = RECIPES, args.seeds or SEEDS, MEASURE
    if args.quick:
        recipes = {r: RECIPES[r] if r == "sft" else f"{RECIPES[r]} --max_steps 90" for r in QUICK}
        seeds, flags = args.seeds or [0, 1], QUICK_MEASURE

    stored, failed = results, []    # stored: the folder of the numbers that are drawn
    if not args.draw:
        failed = run(root, recipes, seeds, args.jobs, flags)
        collect(root, recipes, seeds, results)
    elif not (args.quick or args.out):
        stored = places.RESULTS
    if not (stored / "sweep.csv").exists():
        raise SystemExit(f"error: --draw: {stored} holds no sweep.csv; leave --draw out to run the sweep")
    claims.judge(stored, results)
    pictures.draw(stored, figures)
    if args.update:
        table.fill_documents()
    else:
        print(table.claims_table(results))
    print(f"written: {results}/claims.csv and the figures in {figures}")
    end_with(failed)

def second(args):
    """The second sweep: its missing runs, its sweep.csv in a folder of the results, and the verdicts on its claims."""
    root, seeds, more = args.out or "out/second", args.seeds or SEEDS, () if args.seeds else MORE_SEEDS
    results, _ = places.folders(root, args.update)
    failed = run(root, SECOND, seeds, args.jobs, flags=None)
    if more:
        failed += run(root, {r: SECOND[r] for r in OPEN}, more, args.jobs, flags=None)
    folder = places.second(results)
    folder.mkdir(exist_ok=True)
    collect(root, SECOND, (*seeds, *more), folder)
    claims.judge(places.RESULTS if args.update else folder, results)
    if args.update:
        table.fill_documents()
    else:
        print(table.claims_table(results))
    print(f"written: {folder}/sweep.csv and {results}/claims.csv")
    end_with(failed)

if __name__ == "__main__":
    main()
