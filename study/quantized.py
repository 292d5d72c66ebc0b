"""
What a quantized base costs: runs with an adapter on an exact and on a quantized base, and the weights alone.

    python train_pref.py --loss dpop --adapter sequential --adapter_rank 64 --lr 2e-3 --quantize nf4 --seed 0
    python -m study.quantized --run out/toy/dpop --base out/toy/sft

--run takes evaluated adapter runs of the toy world, which differ in --seed and --quantize. --base takes models without
adapters: each is quantized by every method and compared with itself. Writes quantized.csv into out/study, or into
study/results with --update. docs/models.md shows it. Read first: quantize.py
"""
import math
from contextlib import nullcontext
from pathlib import Path

import torch

import data
import eval
import measures
import quantize
from model import GPT
from study import places
from support import cli, rundir
from train_sft import sft_loss

HEAD = ("data", "method", "seed", "measure", "value")
KINDS = {"exact": (None, False), "bf16": ("bf16", False), "int8": ("int8", False), "nf4": ("nf4", False),
         "nf4 double": ("nf4", True)}

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--run", nargs="+", default=[], help="evaluated runs of train_pref.py with --adapter")
    p.add_argument("--base", nargs="+", default=[], help="runs of train_sft.py on toy or imdb")
    p.add_argument("--data_dir", help="folder with the files of imdb, instead of the hub")
    p.add_argument("--n_prompts", type=cli.positive, default=256, help="held-out prompts of a base (default: 256)")
    args = places.parse(p, argv)
    if not args.run and not args.base:
        p.error("nothing to measure: give --run or --base")
    return args

def run_rows(run):
    """Rows of an evaluated adapter run: the reward before and after training, and the KL to its own reference."""
    args, evaluated = rundir.read_args(run)["args"], rundir.read_eval(run)["measures"]
    if not args.get("adapter"):
        raise ValueError(f"{run}: expected a run with --adapter")
    kind = (args.get("quantize"), bool(args.get("double_quant")))
    method = next(name for name, other in KINDS.items() if other == kind)
    found = {"reward before": evaluated["before"]["reward"]}
    found |= {name: evaluated["after"][name] for name in ("reward", "kl", "whole") if name in evaluated["after"]}
    return [(args["data"], method, args["seed"], name, float(value[0])) for name, value in found.items()]

@torch.no_grad()
def nll(model, rows):
    """The mean negative log-prob of the rows' completion tokens, in nats."""
    total, n = 0.0, 0
    for batch in data.Batches(rows, 16):
        tokens = batch["completion_mask"].sum().item()
        total, n = total + sft_loss(model, batch)[0].item() * tokens, n + tokens
    return total / n

def base_rows(base, data_dir, n_prompts):
    """
    Rows of a base: of each method the perplexity on validation texts, and the KL of the quantized model to the exact
    one, in nats a completion, on one sample of the quantized model for each held-out prompt.
    """
    facts, exact, rows = rundir.read_args(base), GPT.from_pretrained(base).eval(), []
    args = facts["args"]
    tokenizer = data.get_tokenizer(args["data"], exact.config.vocab_size)
    folder = data_dir if args["data"] == "imdb" else None
    val = data.load_rows(args["data"], folder, tokenizer, args["max_len"], args["max_prompt_len"], False,
                         args["n_val"])["val"]
    held = eval.held_out(facts, tokenizer, {}, name=args["data"], folder=folder, n_prompts=n_prompts,
                         max_new_tokens=None, seed=0, say=print)
    for name, (method, double) in KINDS.items():
        model = quantize.load(base, method, double).eval() if method else exact
        found = {"perplexity": math.exp(nll(model, val))}
        if method:
            measured = measures.measure(model, lambda: nullcontext(exact), held, 1.0, 1, 0, 32, nullcontext())
            found["base kl"] = float(measured.values["kl"].mean())
        rows += [(args["data"], name, args["seed"], key, value) for key, value in found.items()]
        print(base, name, *(f"{key} {value:.4g}" for key, value in found.items()))
    return rows

def main(argv=None):
    args = get_args(argv)
    with cli.bad_input():
        rows = [row for run in args.run for row in run_rows(run)]
        for base in args.base:
            rows += base_rows(base, args.data_dir, args.n_prompts)
        results, _ = places.folders(args.out, args.update)
        places.write_csv(Path(results) / "quantized.csv", HEAD, rows)
    print(f"{results / 'quantized.csv'}: {len(args.run)} runs, {len(args.base)} bases")

if __name__ == "__main__":
    main()
