"""
The study: the claims of the field's reports, measured on the toy world, whose reward is exact, with error bars.

    python -m study.sweep            # every recipe, three seeds: an hour and a half on 2 cores
    python -m study.sweep --quick    # a few recipes, two seeds, about five minutes; writes to out/quick alone
    python -m study.sweep --draw     # the figures and the README's tables again, from study/results alone

A seed is that of a whole pipeline: the SFT policy, the pairs sampled from it, their order. Runs go to out/study, `jobs` at a time with one
thread each; what is done already is skipped, so that a sweep that was killed loses the runs in progress. Writes study/results/sweep.csv
(all measures), curves.csv (some of the logs), claims.csv (the verdicts), study/figures and the tables of README.md.
"""
import argparse
import contextlib
import csv
import json
import multiprocessing
import shutil
from pathlib import Path

from tqdm import tqdm

import eval
import train_pref
import train_sft
from study import claims, pictures, table

def grid(method, flags, knob, values):
    return {f"{method} {knob}={v}": f"{flags} --{knob} {v}" for v in values}

NOISE, ADAPTED = "--label_noise 0.2", "--loss dpo --lr 2e-3 --adapter"
ALONG = "--keep_all --patience 0 --max_steps 480 --eval_every 40 --min_lr 6e-4"    # lr 6e-4 throughout

# method and its setting -> flags of train_pref.py, for sft of train_sft.py; all others start from the sft of their seed
RECIPES = (
    {"sft": ""} | grid("dpo", "--loss dpo", "beta", (0.1, 0.03, 0.3, 1, 5, 20)) | grid("hinge", "--loss hinge", "beta", (0.2, 0.05, 0.5, 1))
    | grid("ipo", "--loss ipo", "beta", (0.1, 0.3, 0.5, 1)) | grid("cdpo", "--loss cdpo --label_smoothing 0.15", "beta", (0.1, 0.03, 0.3))
    | grid("jsd", "--loss fdpo --divergence jsd", "beta", (0.3, 1))
    | grid("alpha0.3", "--loss fdpo --divergence alpha --alpha 0.3", "beta", (0.3,))
    | grid("alpha0.5", "--loss fdpo --divergence alpha --alpha 0.5", "beta", (0.3, 1))
    | grid("alpha0.7", "--loss fdpo --divergence alpha --alpha 0.7", "beta", (0.3,))
    | grid("forward_kl", "--loss fdpo --divergence forward_kl", "beta", (0.3, 1))
    | grid("slic", "--loss slic", "delta", (1.0, 5.0)) | grid("unlikelihood", "--loss unlikelihood", "alpha", (0.1, 0.3))
    | {"preferred_ft": "--loss sft", "dpo_up": "--loss dpo --beta 0 --beta_end 1", "ipo_down": "--loss ipo --beta 1 --beta_end 0.01",
       "dpo_mean": "--loss dpo --beta 0.5", "ipo_mean": "--loss ipo --beta 0.505",
       "noisy_dpo": f"--loss dpo {NOISE}", "noisy_cdpo": f"--loss cdpo --label_smoothing 0.2 {NOISE}",
       "noisy_robust": f"--loss robust --label_smoothing 0.2 {NOISE}", "noisy_ipo": f"--loss ipo {NOISE}"}
    | grid("sequential", f"{ADAPTED} sequential", "adapter_rank", (16, 4, 64, 256))
    | grid("parallel", f"{ADAPTED} parallel", "adapter_rank", (16, 4, 256))
    | grid("replace", f"{ADAPTED} replace", "adapter_rank", (256, 64))
    | {"along_dpo": f"--loss dpo {ALONG}", "along_ipo": f"--loss ipo {ALONG}", "too_fast": "--loss dpo --lr 3e-3 --patience 0"})

# one setting of each method: more samples a prompt, other temperatures
MAIN = ("dpo beta=0.1", "hinge beta=0.2", "ipo beta=0.1", "cdpo beta=0.1", "jsd beta=0.3", "alpha0.5 beta=0.3", "forward_kl beta=0.3",
        "slic delta=1.0", "unlikelihood alpha=0.1", "preferred_ft")
MEASURE = "--n_samples 25 --temperature 1 0.75 0.5 0.25 0 --show 0 --best_of 64"
QUICK_MEASURE = "--n_samples 25 --n_prompts 128 --temperature 1 0.5 0 --show 0 --best_of 16"
QUICK = ("sft", "dpo beta=0.1", "hinge beta=0.2", "ipo beta=0.1", "ipo beta=1", "preferred_ft")
CURVES = ("dpo beta=0.1", "dpo beta=0.3", "ipo beta=0.1", "preferred_ft", "noisy_dpo", "along_dpo", "along_ipo", "too_fast")

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0], allow_abbrev=False)
    p.add_argument("--quick", action="store_true", help="a few recipes, into out/quick; the README stays as it is")
    p.add_argument("--draw", action="store_true", help="only draw and write what study/results gives")
    p.add_argument("--seeds", nargs="+", type=int, help="(default: 0 1 2; with --quick 0 1)")
    p.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="runs at a time (default: one a core, %(default)s here)")
    return p.parse_args(argv)

# ---------------------------------------------------------------------------------------------------------------------
# runs: each in a process with one thread

def place(root, recipe, seed):
    return Path(root) / "runs" / f"{recipe.replace(' ', '-')}-{seed}"

def train(root, recipe, seed, flags):
    """One run, its table and its curves; none if the same has been done."""
    folder = place(root, recipe, seed)
    mark = folder / "done"
    if mark.exists() and mark.read_text() == flags:
        return
    shutil.rmtree(folder, ignore_errors=True)    # begun and not finished, or with other flags
    if recipe == "sft":
        train_sft.main([*flags.split(), "--seed", str(seed), "--out_dir", str(folder)])
    else:
        train_pref.main([*flags.split(), "--seed", str(seed), "--out_dir", str(folder), "--init_from", str(place(root, "sft", seed)),
                         "--n_show", "0"])
        for step in sorted(folder.glob("step-*")):
            eval.main(["--run", str(step), "--n_samples", "1", "--show", "0"])
    mark.write_text(flags)

def measure(root, recipes, seed, flags=MEASURE):
    """The main runs of a seed side by side: more samples, other temperatures, best of n."""
    runs = [place(root, r, seed) for r in recipes]
    mark = runs[0] / "measured"
    if mark.exists() and mark.read_text() == f"{recipes} {flags}":
        return
    eval.main(["--run", str(runs[0]), *flags.split()])
    if runs[1:]:
        eval.main(["--run", *map(str, runs[1:]), *flags.split("--best_of")[0].split()])    # the reference's is known by now
    mark.write_text(f"{recipes} {flags}")

def one_thread():
    import torch
    torch.set_num_threads(1)

def quietly(task):
    """Runs a (job, *its arguments) with what it prints in a file. Returns the reason if it did not end well."""
    job, *args = task
    log = Path(args[0]) / "logs" / ("-".join(map(str, args[1:3])).replace(" ", "-")[:60] + ".txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
        try:
            job(*args)
        except (Exception, SystemExit) as e:
            return f"{args[1:3]}: {e!r}; see {log}"

def run(root, recipes, seeds, jobs, flags=MEASURE):
    """All of them, `jobs` at a time. A run that fails is told, and does not stop the others. Returns what failed."""
    sft, first, *others = recipes    # the first samples the pairs of its seed, which the others share
    phases = ([(train, root, r, s, recipes[r]) for r in part for s in seeds] for part in ([sft], [first], others))
    phases = [*phases, [(measure, root, main, s, flags) for s in seeds if (main := [r for r in MAIN if r in recipes])]]
    failed = []
    # a new process every few runs: freed memory that is kept is in pieces, and a process of many runs ends up with gigabytes of them
    with multiprocessing.get_context("spawn").Pool(jobs, one_thread, maxtasksperchild=4) as pool:
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
        rows.extend((recipe, seed, key, *value) for key, value in measures.items())
    for recipe in (r for r in recipes if r != "sft"):
        for seed in seeds:
            folder = place(root, recipe, seed)
            if not (folder / "done").exists():
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
            if (folder / "adapter.json").exists() or recipe == first:
                add(recipe, seed, {"trainable": [trainable(folder)] * 3})
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
    from checkpoint import load_tensors
    path = next(p for p in (folder / "adapter.safetensors", folder / "model.safetensors") if p.exists())
    return sum(t.numel() for t in load_tensors(path).values())

def main(argv=None):
    args = get_args(argv)
    root, results, figures = (Path("out/quick"),) * 3 if args.quick else (Path("out/study"), table.RESULTS, table.FIGURES)
    recipes = {r: RECIPES[r] for r in QUICK} if args.quick else RECIPES
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
