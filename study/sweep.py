"""
The study: the claims of the field's reports, measured on the toy world, whose reward is exact, with error bars.

    python -m study.sweep            # every recipe, three seeds: about three hours on 2 cores
    python -m study.sweep --quick    # a few recipes, two seeds, about five minutes; writes to out/quick alone
    python -m study.sweep --draw     # the figures and the README's tables again, from study/results alone

A seed is that of a whole pipeline: the SFT policy, the pairs sampled from it, their order. Runs go to out/study, `jobs` at a time with one
thread each; what is done already is skipped, so that a sweep that was killed loses the runs in progress. Writes study/results/sweep.csv
(all measures), curves.csv (some of the logs), claims.csv (the verdicts), study/figures and the tables of README.md.
"""
import contextlib
import csv
import json
import multiprocessing
import os
import shutil
from pathlib import Path

from tqdm import tqdm

from support import cli
import eval
import train_pref
import train_sft
from losses import LOSSES
from rlhf import train_ppo, train_reward
from study import claims, pictures, table

def grid(method, flags, knob, values):
    return {f"{method} {knob}={v}": f"{flags} --{knob} {v}" for v in values}

def adapted(mode, ranks):
    """
    DPOP, whose term holds the chosen up: with DPO alone a frozen embedding, where words of opposite verdicts lie close, loses both. The
    learning rate makes steps of one size whatever the rank: what an adapter adds is a sum over its hidden units.
    """
    flags = f"--loss dpop --max_steps 240 --eval_every 40 --adapter {mode}"
    return {f"{mode} adapter_rank={r}": f"{flags} --adapter_rank {r} --lr {1.6e-2 / r**0.5:.1e}" for r in ranks}

# for all that do not say otherwise, whatever the defaults of train_pref.py and train_sft.py become
SHORT = "--max_steps 140 --eval_every 20 --batch_size 64 --n_prompts 1200"
NOISE = "--label_noise 0.2"
SKIP = "--on_nonfinite skip"    # divergences with exp(-log-ratio): a single pair may have a loss of 50
ALONG = "--keep_all --patience 0 --max_steps 480 --eval_every 40 --min_lr 1e-3"    # lr 1e-3 throughout

# method and its setting -> flags of train_pref.py, for sft of train_sft.py; all others start from the sft of their seed
RECIPES = (
    {"sft": "--max_steps 600"} | grid("dpo", "--loss dpo", "beta", (0.1, 0.03, 0.05, 0.3, 1, 5, 20))
    | grid("dpo", "--loss dpo", "max_steps", (180, 240, 360)) | grid("hinge", "--loss hinge", "beta", (0.2, 0.05, 0.5, 1))
    | {claims.default_of(name): f"--loss {name}" for name in LOSSES if name not in ("dpo", "hinge")}
    | grid("ipo", "--loss ipo", "beta", (0.1, 0.3, 0.5, 1)) | grid("cdpo", "--loss cdpo --label_smoothing 0.15", "beta", (0.1, 0.03, 0.3))
    | grid("jsd", "--loss fdpo --divergence jsd", "beta", (0.1, 0.3, 1))
    | grid("alpha0.3", f"--loss fdpo --divergence alpha --alpha 0.3 {SKIP}", "beta", (0.3, 1))
    | grid("alpha0.5", f"--loss fdpo --divergence alpha --alpha 0.5 {SKIP}", "beta", (0.1, 0.3, 1))
    | grid("alpha0.7", f"--loss fdpo --divergence alpha --alpha 0.7 {SKIP}", "beta", (0.3, 1))
    | grid("forward_kl", f"--loss fdpo --divergence forward_kl {SKIP}", "beta", (0.1, 0.3, 1))
    | grid("slic", "--loss slic", "delta", (1.0, 5.0)) | grid("unlikelihood", "--loss unlikelihood", "alpha", (0.1, 0.3))
    | {"preferred_ft": "--loss sft", "dpo_up": "--loss dpo --beta 0 --beta_end 1", "ipo_down": "--loss ipo --beta 1 --beta_end 0.01",
       "dpo_mean": "--loss dpo --beta 0.5", "ipo_mean": "--loss ipo --beta 0.505",
       "noisy_dpo": f"--loss dpo {NOISE}", "noisy_cdpo": f"--loss cdpo --label_smoothing 0.2 {NOISE}",
       "noisy_robust": f"--loss robust --label_smoothing 0.2 {NOISE}", "noisy_ipo": f"--loss ipo {NOISE}"}
    | adapted("sequential", (16, 4, 64, 256)) | adapted("parallel", (16, 4, 64, 256)) | adapted("replace", (256, 64))
    | {"along_dpo": f"--loss dpo {ALONG}", "along_ipo": f"--loss ipo {ALONG}",
       "too_fast": "--loss dpo --lr 3e-3 --adam_epsilon 1e-8 --patience 0",
       "displaced": "--loss dpo --max_steps 420 --eval_every 60 --adapter sequential --adapter_rank 16 --lr 4e-4"}
    | grid("epsilon", "--loss dpo --lr 6e-4", "adam_epsilon", ("1e-8", "1e-5", "1e-4", "1e-3"))
    # what DPO replaces: a reward model from the same pairs, and PPO by it; PPO and RLOO by the true reward
    | {"reward": ""} | grid("ppo", "--keep_all", "beta", (0.5, 0.1, 0.2, 1)) | grid("rloo", "--algo rloo --keep_all", "beta", (0.5, 0.2, 1))
    | grid("ppo_gt", "--true_reward --keep_all", "beta", (0.05, 0.02, 0.1, 0.2))
    | grid("rloo_gt", "--true_reward --algo rloo --keep_all", "beta", (0.05, 0.02, 0.1))
    | {"along_ppo": "--beta 0 --keep_all --max_steps 480 --min_lr 3e-3"})    # nothing holds it back

# one setting of each method: more samples a prompt, other temperatures
MAIN = ("dpo beta=0.1", "hinge beta=0.2", "ipo beta=0.1", "cdpo beta=0.1", "jsd beta=0.3", "alpha0.5 beta=0.3", "forward_kl beta=0.3",
        "slic delta=1.0", "unlikelihood alpha=0.1", "preferred_ft", "ppo beta=0.5", "rloo beta=0.5", "ppo_gt beta=0.05",
        "rloo_gt beta=0.05")
MEASURE = "--n_samples 25 --temperature 1 0.75 0.5 0.25 0 --show 0 --best_of 64"
QUICK_MEASURE = "--n_samples 25 --n_prompts 128 --temperature 1 0.5 0 --show 0 --best_of 16"
QUICK = ("sft", "dpo beta=0.1", "hinge beta=0.2", "ipo beta=0.1", "ipo beta=1", "preferred_ft")
CURVES = ("dpo beta=0.1", "dpo beta=0.3", "ipo beta=0.1", "preferred_ft", "noisy_dpo", "along_dpo", "along_ipo", "too_fast")

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--quick", action="store_true", help="a few recipes, into out/quick; the README stays as it is")
    p.add_argument("--draw", action="store_true", help="only draw and write what study/results gives")
    p.add_argument("--seeds", nargs="+", type=cli.seed, help="(default: 0 1 2; with --quick 0 1)")
    p.add_argument("--jobs", type=cli.positive, default=multiprocessing.cpu_count(),
                   help="runs at a time (default: one a core, %(default)s here)")
    return p.parse_args(argv)

# ---------------------------------------------------------------------------------------------------------------------
# runs: each in a process with one thread

def place(root, recipe, seed):
    return Path(root) / "runs" / f"{recipe.replace(' ', '-')}-{seed}"

def script_of(recipe):
    """The module whose flags a recipe has."""
    method = recipe.split()[0].removeprefix("along_")
    return {"sft": train_sft, "reward": train_reward}.get(method, train_ppo if method.startswith(("ppo", "rloo")) else train_pref)

def train(root, recipe, seed, flags):
    """One run, its table and its curves; none if the same has been done."""
    script, folder, reward = script_of(recipe), place(root, recipe, seed), place(root, "reward", seed)
    learned, mark = (reward / "done").exists(), folder / "done"
    flags = f"{SHORT} {flags}" if script is train_pref else flags    # a recipe's own comes after it, and counts
    if mark.exists() and mark.read_text() == flags:
        return
    shutil.rmtree(folder, ignore_errors=True)    # begun and not finished, or with other flags
    argv = [*flags.split(), "--seed", str(seed), "--out_dir", str(folder)]
    argv += ["--init_from", str(place(root, "sft", seed))] if recipe != "sft" else []
    argv += ["--reward", str(reward)] if script is train_ppo and "--true_reward" not in flags else []
    script.main(argv + (["--n_show", "0"] if script in (train_pref, train_ppo) else []))
    for step in sorted(folder.glob("step-*")):
        eval.main(["--run", str(step), "--n_samples", "1", "--show", "0", *(["--reward", str(reward)] if learned else [])])
    mark.write_text(flags)

def measure(root, recipes, seed, flags=MEASURE):
    """The main runs of a seed side by side: more samples, other temperatures, best of n. Those that have been are left as they are."""
    first, *others = (place(root, r, seed) for r in recipes)
    for runs, how in (([first], flags), (others, flags.split("--best_of")[0])):    # the reference's best is known by then
        runs = [r for r in runs if not (mark := r / "measured").exists() or mark.read_text() != how]
        if runs:
            eval.main(["--run", *map(str, runs), *how.split()])
        for r in runs:
            (r / "measured").write_text(how)

def alone():
    """For a worker: one thread; and Ctrl-C is the first process's, which ends its workers itself."""
    import torch
    torch.set_num_threads(1)
    if hasattr(os, "setsid"):
        os.setsid()

def quietly(task):
    """Runs a (job, *its arguments) with what it prints in a file. Returns the reason if it did not end well."""
    job, *args = task
    log = Path(args[0]) / "logs" / f"{args[1] if job is train else 'measured'}-{args[2]}.txt".replace(" ", "-")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
        try:
            job(*args)
        except (Exception, SystemExit) as e:
            if getattr(e, "code", None) == 130:    # the sweep is being ended: no further task
                os._exit(130)
            return f"{args[1:3]}: {e!r}; see {log}"

def run(root, recipes, seeds, jobs, flags=MEASURE):
    """All of them, `jobs` at a time. A run that fails is told, and does not stop the others. Returns what failed."""
    sft, first, *others = recipes    # the first samples the pairs of its seed, which the others share
    learned = [r for r in others if r == "reward"]
    parts = [sft], [first], learned, [r for r in others if r not in learned]
    phases = ([(train, root, r, s, recipes[r]) for r in part for s in seeds] for part in parts)
    phases = [*phases, [(measure, root, main, s, flags) for s in seeds if (main := [r for r in MAIN if r in recipes])]]
    failed = []
    # a new process every few runs: freed memory that is kept is in pieces, and a process of many runs ends up with gigabytes of them
    with multiprocessing.get_context("spawn").Pool(jobs, alone, maxtasksperchild=4) as pool:
        with tqdm(total=sum(map(len, phases)), unit="run") as bar:
            for reason in (r for phase in phases for r in pool.imap_unordered(quietly, phase)):
                failed += [reason] if reason else []
                bar.update()
    return failed

# ---------------------------------------------------------------------------------------------------------------------
# what was found

def collect(root, recipes, seeds, results):
    """sweep.csv: a row for each recipe, seed and measure; best-of-n, temperatures and steps as recipes of their own. curves.csv: logs."""
    rows, curves, (_, first, *_) = [], [], recipes
    def add(recipe, seed, measures):
        rows.extend((recipe, seed, key, *("nan" if v is None else v for v in value)) for key, value in measures.items())
    for recipe in (r for r in recipes if r != "sft"):
        for seed in seeds:
            folder = place(root, recipe, seed)
            if not (folder / "done").exists():
                continue
            result = json.loads((folder / "result.json").read_text())
            add(recipe, seed, {key: [result[key]] * 3 for key in ("seconds", "skipped")})
            if recipe == "reward":
                found = json.loads((folder / "reward.json").read_text())
                add(recipe, seed, {"accuracy": found["accuracy"]} | {key: [found[key]] * 3 for key in ("calibration_error", "agreement")})
                continue
            for path in (folder / "eval.json", *sorted(folder.glob("step-*/eval.json"), key=lambda p: int(p.parent.name[5:]))):
                found = json.loads(path.read_text())
                add(recipe if path.parent == folder else f"{recipe} {path.parent.name}", seed, found["measures"]["after"])
                if recipe == first:
                    add("sft", seed, found["measures"]["before"])
                    for best in found.get("best_of", ()):
                        add(f"best_of n={best['n']}", seed, {"kl": [best["kl"]] * 3, "reward": best["reward"]})
                for row in found.get("temperatures", ()):
                    add(f"{recipe} T={row['temperature']}", seed, row["after"])
                    if recipe == first:
                        add(f"sft T={row['temperature']}", seed, row["before"])
            add(recipe, seed, {"trainable": [trainable(folder)] * 3, "samples": [samples(folder, result["step"])] * 3})
            if recipe in CURVES:
                with open(folder / "log.csv", newline="") as f:
                    curves += [(recipe, seed, *row) for row in csv.reader(f) if row[0] != "step" and (row[1] == "val" or row[2] in
                               ("grad_norm", "loss"))]
    for name, head, lines in (("sweep.csv", ("recipe", "seed", "measure", "mean", "low", "high"), rows),
                              ("curves.csv", ("recipe", "seed", "step", "split", "metric", "value"), curves)):
        with open(results / name, "w", newline="") as f:
            out = csv.writer(f, lineterminator="\n")
            out.writerow(head)
            out.writerows([f"{x:.5g}" if isinstance(x, float) else x for x in line] for line in lines)

def trainable(folder):
    """How many parameters a run trained: those that its best weights hold."""
    from support.checkpoint import load_tensors
    path = next(p for p in (folder / "adapter.safetensors", folder / "model.safetensors") if p.exists())
    return sum(t.numel() for t in load_tensors(path).values())

def samples(folder, step):
    """How many completions it took: PPO's on its way, or those of which the pairs were made."""
    args = json.loads((folder / "args.json").read_text())["args"]
    return step * args["batch_size"] // args["epochs"] if "epochs" in args else 4 * (args["n_prompts"] or 1200)

def main(argv=None):
    args = get_args(argv)
    with cli.interruptible("-m study.sweep", args, argv):
        work(args)

def work(args):
    """Runs what is not there yet, and writes what was found."""
    root, results, figures = (Path("out/quick"),) * 3 if args.quick else (Path("out/study"), table.RESULTS, table.FIGURES)
    recipes = {r: RECIPES[r] if r == "sft" else f"{RECIPES[r]} --max_steps 90" for r in QUICK} if args.quick else RECIPES
    failed = []
    if not args.draw:
        seeds = args.seeds or ([0, 1] if args.quick else [0, 1, 2])
        failed = run(root, recipes, seeds, args.jobs, QUICK_MEASURE if args.quick else MEASURE)
        collect(root, recipes, seeds, results)
    claims.judge(results)
    pictures.draw(results, figures)
    if args.quick:
        print(claims.claims_table(results))
    else:
        table.main([])
    if failed:
        raise SystemExit("\n".join(["not all runs ended well:", *failed]))

if __name__ == "__main__":
    main()
