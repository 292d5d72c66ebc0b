"""
The pipelines on real text, end to end, every step one of nanoPref's commands: SFT, reward models, preferences, evaluation.

    python -m study.real --data imdb --data_dir reviews    # two and a half hours on 2 CPU cores
    python -m study.real --data hh --data_dir hh-rlhf      # a quarter of an hour, from the SFT policy of the reviews, which has to be there
    python -m study.real --collect                         # only study/results/real.csv, from the runs that are there

Runs go to out/real/<data>. What is finished is skipped, and what was stopped goes on. A seed is that of the sampled pairs and their order;
all seeds share the SFT policy and the reward models. Read first: train_pref.py, rlhf/train_reward.py
"""
import csv
import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import chat
from support import cli
import data
import eval
import train_pref
import train_sft
from reward import Reward
from rlhf import train_reward
from study import bag
from study.table import FIGURES, RESULTS

ROOT = Path("out/real")
SEEDS = (0, 1, 2)
SMALL = "--n_layer 4 --n_head 4 --n_embd 256 --bpe_vocab 8192"
LABELS = "--init_from {root}/imdb/sft --max_len 256 --lr 3e-4 --batch_size 32 --max_steps 500 --eval_every 100 --n_val 500"
PAIRS = "--init_from {root}/imdb/sft --reward {root}/imdb/reward --max_len 96 --batch_size 32 --lr 1e-4 --max_steps 100 --eval_every 20"
TURNS = "--init_from {root}/hh/sft --max_len 256 --batch_size 16 --max_steps 120 --eval_every 20"

# data -> name of a run -> (script, flags); {root} is the folder of all runs
STEPS = {
    "imdb": {"sft": (train_sft, f"{SMALL} --max_len 256 --lr 2e-3 --batch_size 32 --warmup_steps 100 --weight_decay 0.1 --max_steps 2000 "
                     "--eval_every 250 --n_val 500"),
             "reward": (train_reward, f"{LABELS} --half first"), "gold": (train_reward, f"{LABELS} --half second"),
             "bag-256": (bag, "--half first --max_len 256"), "bag": (bag, "--half first"), "bag-all": (bag, ""),
             "dpo": (train_pref, f"{PAIRS} --loss dpo"), "ipo": (train_pref, f"{PAIRS} --loss ipo"),
             "jsd": (train_pref, f"{PAIRS} --loss fdpo --divergence jsd --beta 0.3"),
             "dpo-short": (train_pref, f"{PAIRS} --loss dpo --prompt_tokens 2-8")},
    "hh": {"sft": (train_sft, "--init_from {root}/imdb/sft --max_len 256 --lr 5e-4 --batch_size 16 --max_steps 300 --eval_every 25"),
           "reward": (train_reward, f"{TURNS} --lr 1e-4"),
           "dpo": (train_pref, f"{TURNS} --loss dpo --lr 1e-4 --adapter sequential --adapter_rank 64"),
           "dpo-full": (train_pref, f"{TURNS} --loss dpo --lr 5e-5")}}
PROMPTS = {"imdb": ("I saw this film last night with my brother, and", "The worst thing about it is"),
           "hh": ("\n\nHuman: How do I keep basil alive?\n\nAssistant:", "\n\nHuman: What is a good present for my mother?\n\nAssistant:")}
MEASURES = ("reward", "gold", "win", "gold_win", "kl", "entropy", "length", "distinct_2", "accuracy", "margin",
            "reward_positive", "reward_negative")

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--data", choices=list(STEPS), nargs="+", default=list(STEPS), help="(default: all)")
    p.add_argument("--data_dir", help="folder with its files, instead of the hub")
    p.add_argument("--dtype", default="bfloat16", help="of the matrix products (default: %(default)s)")
    p.add_argument("--collect", action="store_true", help="train nothing")
    args = p.parse_args(argv)
    if args.data_dir and len(args.data) > 1:
        p.error("--data_dir goes with one --data")
    return args

def runs(corpus):
    """(name, seed, script, flags, folder) of each run of a pipeline, in their order; preferences have several seeds."""
    for name, (script, flags) in STEPS[corpus].items():
        for seed in SEEDS if script is train_pref else (0,):
            yield name, seed, script, flags, ROOT / corpus / (f"{name}-{seed}" if script is train_pref else name)

def run(corpus, seed, script, flags, folder, args):
    """One step, or what is left of it."""
    if (folder / "done").exists():
        return
    argv = [*flags.replace("{root}", str(ROOT)).split(), "--data", corpus, "--out_dir", str(folder), "--seed", str(seed)]
    argv += [*(["--dtype", args.dtype] if script is not bag else []), *(["--data_dir", args.data_dir] if args.data_dir else [])]
    if not (folder / ("reward.json" if script is train_reward else "result.json")).exists():
        begun = (folder / "args.json").exists()
        script.main(argv + ["--resume"] * begun + (["--n_show", "0"] if script is train_pref else []))
    if script is train_pref:
        gold = ["--gold", str(ROOT / corpus / "gold")] if (ROOT / corpus / "gold").exists() else []
        eval.main(["--run", str(folder), "--dtype", args.dtype, "--show", "3", *gold])
    (folder / "done").write_text(" ".join(argv))

def own_samples(name, folder):
    """
    What a run and its reference answer to PROMPTS, as eval.json has samples: prompts of our own, so that nobody's text is copied. The
    measures are taken at temperature 1; these are drawn at 0.7, since so small a model makes up words at 1.
    """
    facts, policy, reference = eval.load_policy(folder, "cpu")
    tokenizer, max_len = data.get_tokenizer(name, policy.config.vocab_size), facts["args"]["max_len"]
    prompts, samples = tokenizer.encode_ordinary_batch(PROMPTS[name]), [{"prompt": p, "rewards": {}} for p in PROMPTS[name]]
    by = {key: Reward(ROOT / name / key, tokenizer, max_len, "cpu", 32, nullcontext()) for key in ("reward", "gold") if name == "imdb"}
    room = min(64, max_len - max(map(len, prompts)))
    for when, answers in chat.answers(policy, reference, tokenizer, prompts, room, temperature=0.7, seed=0).items():
        for sample, prompt, answer in zip(samples, prompts, answers):
            sample[when] = data.decode(tokenizer, answer)
            sample["rewards"][when] = {key: round(float(r([prompt + answer])[0]), 3) for key, r in by.items()}
    return samples

def collect():
    """real.csv: a row for each run, seed and measure; of each preference run of seed 0 some samples, and DPO's picture."""
    here = [c for c in STEPS if (ROOT / c / "sft" / "done").exists()]
    rows, samples, path = [], {}, RESULTS / "real.csv"
    if path.exists():    # what is known of other data sets stays
        with open(path, newline="") as f:
            rows = [row for row in list(csv.reader(f))[1:] if row[0] not in here]
        samples = {k: v for k, v in json.loads((RESULTS / "real_samples.json").read_text()).items() if k.split()[0] not in here}
    for corpus in STEPS:
        for name, seed, script, _, folder in runs(corpus):
            if not (folder / "done").exists():
                continue
            result = json.loads((folder / "result.json").read_text())
            found = {"seconds": [result["seconds"]] * 3}
            if script is train_sft:
                found["perplexity"] = [math.exp(result["best_val_loss"])] * 3
            elif script is not train_pref:
                reward = json.loads((folder / "reward.json").read_text())
                found |= {"accuracy": reward["accuracy"], "calibration_error": [reward["calibration_error"]] * 3}
            else:
                stored = json.loads((folder / "eval.json").read_text())
                found |= {m: stored["measures"]["after"][m] for m in MEASURES if m in stored["measures"]["after"]}
                rows += [(corpus, f"before {name}", seed, m, *v) for m, v in stored["measures"]["before"].items() if m in MEASURES]
                if seed == 0:
                    samples[f"{corpus} {name}"] = own_samples(corpus, folder)
                    if (corpus, name) == ("imdb", "dpo"):
                        shutil.copy(folder / "eval.png", FIGURES / "real_imdb.png")
            rows += [(corpus, name, seed, m, *v) for m, v in found.items()]
    with open(path, "w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(("data", "run", "seed", "measure", "mean", "low", "high"))
        out.writerows([f"{x:.5g}" if isinstance(x, float) else x for x in row] for row in rows)
    (RESULTS / "real_samples.json").write_text(json.dumps(samples, indent=1) + "\n")

def main(argv=None):
    args = get_args(argv)
    with cli.interruptible("-m study.real", args, argv):
        for corpus in args.data if not args.collect else ():
            for _, seed, script, flags, folder in runs(corpus):
                run(corpus, seed, script, flags, folder, args)
        collect()

if __name__ == "__main__":
    main()
