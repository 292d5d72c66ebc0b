"""
The pipelines on real text, from SFT over reward models to preferences and evaluation, each step a command of nanoPref.

    python -m study.real --data imdb --data_dir reviews    # two and a half hours on 2 CPU cores
    python -m study.real --data hh --data_dir hh-rlhf      # a quarter of an hour; needs the SFT policy of the reviews
    python -m study.real --collect                         # run nothing; collect the results of finished runs

Runs go to out/real/<data>. Finished runs are skipped, and interrupted ones are resumed. Writes out/study/real.csv,
real_samples.json and real_imdb.png, or with --update the project's own in study/. docs/real-text.md shows them.

A seed is that of the sampled pairs and their order. All seeds share the SFT policy and the reward models.
Read next: bag.py
"""
import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import chat
import data
import eval
import train_pref
import train_sft
from reward import Reward
from rlhf import train_reward
from study import bag, places
from support import cli

ROOT = Path("out/real")
SEEDS = (0, 1, 2)
SMALL = "--n_layer 4 --n_head 4 --n_embd 256 --bpe_vocab 8192"
LONG = "--max_len 256 --lr 2e-3 --batch_size 32 --warmup_steps 100 --weight_decay 0.1 --max_steps 2000 --eval_every 250"
LABELS = ("--init_from {root}/imdb/sft --max_len 256 --lr 3e-4 --batch_size 32 --max_steps 500 --eval_every 100 "
          "--n_val 500")
PAIRS = ("--init_from {root}/imdb/sft --reward {root}/imdb/reward --max_len 96 --batch_size 32 --lr 1e-4 "
         "--max_steps 100 --eval_every 20")
TURNS = "--init_from {root}/hh/sft --max_len 256 --batch_size 16 --max_steps 120 --eval_every 20"
DIALOGUES = ("--init_from {root}/imdb/sft --max_len 256 --lr 5e-4 --batch_size 16 --max_steps 300 "
             "--eval_every 25")

# data set -> name of a run -> (script, flags), in their order; {root} stands for the folder of all runs
STEPS = {
    "imdb": {
        "sft": (train_sft, f"{SMALL} {LONG} --n_val 500"),
        "reward": (train_reward, f"{LABELS} --half first"),
        "gold": (train_reward, f"{LABELS} --half second"),
        "bag-256": (bag, "--half first --max_len 256"),
        "bag": (bag, "--half first"),
        "bag-all": (bag, ""),
        "dpo": (train_pref, f"{PAIRS} --loss dpo"),
        "ipo": (train_pref, f"{PAIRS} --loss ipo"),
        "jsd": (train_pref, f"{PAIRS} --loss fdpo --divergence jsd --beta 0.3"),
        "dpo-short": (train_pref, f"{PAIRS} --loss dpo --prompt_tokens 2-8")},
    "hh": {
        "sft": (train_sft, DIALOGUES),
        "reward": (train_reward, f"{TURNS} --lr 1e-4"),
        "dpo": (train_pref, f"{TURNS} --loss dpo --lr 1e-4 --adapter sequential --adapter_rank 64"),
        "dpo-full": (train_pref, f"{TURNS} --loss dpo --lr 5e-5")}}
# our own prompts for the samples, so that no text of the data sets is copied
PROMPTS = {"imdb": ("I saw this film last night with my brother, and", "The worst thing about it is"),
           "hh": ("\n\nHuman: How do I keep basil alive?\n\nAssistant:",
                  "\n\nHuman: What is a good present for my mother?\n\nAssistant:")}
MEASURES = ("reward", "gold", "win", "gold_win", "kl", "entropy", "length", "distinct_2", "accuracy", "margin",
            "reward_positive", "reward_negative")

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--data", choices=list(STEPS), nargs="+", default=list(STEPS), help="data sets (default: all)")
    p.add_argument("--data_dir", help="folder with the files of one data set, instead of the hub")
    p.add_argument("--dtype", default="bfloat16", help="precision of the matrix products (default: %(default)s)")
    p.add_argument("--collect", action="store_true", help="run nothing; collect the results of finished runs")
    args = places.parse(p, argv)
    if args.data_dir and len(args.data) > 1:
        p.error("--data_dir goes with one --data")
    return args

# ---------------------------------------------------------------------------------------------------------------------
# The runs

def runs(corpus):
    """Yields (name, seed, script, flags, folder) of each run of a pipeline. Only preference runs have several seeds."""
    for name, (script, flags) in STEPS[corpus].items():
        if script is train_pref:
            for seed in SEEDS:
                yield name, seed, script, flags, ROOT / corpus / f"{name}-{seed}"
        else:
            yield name, 0, script, flags, ROOT / corpus / name

def run(corpus, seed, script, flags, folder, *, dtype, data_dir):
    """One run and its evaluation. Skips what is done, and resumes what was interrupted."""
    if (folder / "done").exists():
        return
    argv = flags.replace("{root}", str(ROOT)).split()
    argv += ["--data", corpus, "--out_dir", str(folder), "--seed", str(seed)]
    if script is not bag:
        argv += ["--dtype", dtype]
    if data_dir:
        argv += ["--data_dir", data_dir]
    last = "reward.json" if script is train_reward else "result.json"    # the file that a script writes at its end
    if not (folder / last).exists():
        more = ["--resume"] if (folder / "args.json").exists() else []
        more += ["--n_show", "0"] if script is train_pref else []
        script.main(argv + more)
    if script is train_pref:
        gold = ROOT / corpus / "gold"
        by_gold = ["--gold", str(gold)] if gold.exists() else []
        eval.main(["--run", str(folder), "--dtype", dtype, "--show", "3", *by_gold])
    (folder / "done").write_text(" ".join(argv))

# ---------------------------------------------------------------------------------------------------------------------
# From run directories to real.csv and real_samples.json

def own_samples(corpus, folder):
    """
    Completions of PROMPTS by a run and by its reference, in the format of eval.json's samples.

    Drawn at temperature 0.7: at 1, where the measures are taken, so small a model makes up many words.
    """
    facts, policy, reference = eval.load_policy(folder, "cpu")
    tokenizer, max_len = data.get_tokenizer(corpus, policy.config.vocab_size), facts["args"]["max_len"]
    prompts = tokenizer.encode_ordinary_batch(PROMPTS[corpus])
    samples = [{"prompt": p, "rewards": {}} for p in PROMPTS[corpus]]
    rewards = {}
    if corpus == "imdb":
        for key in ("reward", "gold"):
            rewards[key] = Reward(ROOT / corpus / key, tokenizer, max_len, "cpu", 32, nullcontext())
    room = min(64, max_len - max(map(len, prompts)))
    for when, answers in chat.answers(policy, reference, tokenizer, prompts, room, temperature=0.7, seed=0).items():
        for sample, prompt, answer in zip(samples, prompts, answers):
            sample[when] = data.decode(tokenizer, answer)
            scores = {key: float(score([prompt + answer])[0]) for key, score in rewards.items()}
            sample["rewards"][when] = {key: round(x, 3) for key, x in scores.items()}
    return samples

def run_rows(corpus, name, seed, script, folder):
    """(data, run, seed, measure, mean, low, high): the rows of one finished run, and of its reference as "before"."""
    result = json.loads((folder / "result.json").read_text())
    found, before = {"seconds": [result["seconds"]] * 3}, {}
    if script is train_sft:
        found["perplexity"] = [math.exp(result["best_val_loss"])] * 3
    elif script is train_pref:
        measures = json.loads((folder / "eval.json").read_text())["measures"]
        found |= {m: measures["after"][m] for m in MEASURES if m in measures["after"]}
        before = {m: v for m, v in measures["before"].items() if m in MEASURES}
    else:
        judged = json.loads((folder / "reward.json").read_text())
        found |= {"accuracy": judged["accuracy"], "calibration_error": [judged["calibration_error"]] * 3}
    rows = [(corpus, f"before {name}", seed, m, *v) for m, v in before.items()]
    return rows + [(corpus, name, seed, m, *v) for m, v in found.items()]

def kept(results, here):
    """(rows of real.csv, samples) of the data sets that have no runs on this machine, from earlier results."""
    if not (results / "real.csv").exists():
        return [], {}
    rows = [row.values() for row in places.read_csv(results / "real.csv") if row["data"] not in here]
    samples = json.loads((results / "real_samples.json").read_text())
    return rows, {k: v for k, v in samples.items() if k.split()[0] not in here}

def collect(results, figures):
    """Writes real.csv and, of the preference runs of seed 0, real_samples.json and DPO's picture."""
    here = [c for c in STEPS if (ROOT / c / "sft" / "done").exists()]
    rows, samples = kept(results, here)
    for corpus in STEPS:
        for name, seed, script, _, folder in runs(corpus):
            if not (folder / "done").exists():
                continue
            rows += run_rows(corpus, name, seed, script, folder)
            if script is train_pref and seed == 0:
                samples[f"{corpus} {name}"] = own_samples(corpus, folder)
                if (corpus, name) == ("imdb", "dpo"):
                    shutil.copy(folder / "eval.png", figures / "real_imdb.png")
    places.write_csv(results / "real.csv", ("data", "run", "seed", "measure", "mean", "low", "high"), rows)
    (results / "real_samples.json").write_text(json.dumps(samples, indent=1) + "\n")
    print(f"written: {results / 'real.csv'}, {results / 'real_samples.json'}")

def main(argv=None):
    args = get_args(argv)
    with cli.interruptible("-m study.real", args, argv):
        for corpus in [] if args.collect else args.data:
            for _, seed, script, flags, folder in runs(corpus):
                run(corpus, seed, script, flags, folder, dtype=args.dtype, data_dir=args.data_dir)
        collect(*places.folders(args.out, args.update))

if __name__ == "__main__":
    main()
