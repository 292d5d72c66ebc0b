"""
What fits into memory: one DPO update by model size and method, measured where this machine can, computed elsewhere.

    python -m study.fits --models gpt2 gpt2-medium                      # all methods
    python -m study.fits --models gpt2-xl --methods nf4 --update        # one row of docs/speed.md's table

Each measurement is a fresh process that runs train_pref.py for one update: 8 pairs with the lengths of HH's, a batch of
one pair, gradient accumulation over 8 batches, and one pair for validation, before and after. Without evaluation by
samples and without the page. The weights are random, written layer by layer into a folder that is removed afterwards.
Writes out/study/fits.csv, or study/results/fits.csv with --update. A row that is measured again replaces the old one.

A method is full (all parameters are trained, float32) or what the frozen base of an adapter run is held in.
`predicted` is the formula of the memory. docs/speed.md explains it and has the table. Read first: jobs.py
"""
import json
import random
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import data
import eval
import page
import train_pref
from model import CONV1D, GPT, GPTConfig
from quantize import METHODS as QUANTIZED
from study import bench, jobs, places
from support import cli, weights
from support.checkpoint import write_json
from support.fast_logps import CHUNK

MODELS = {"gpt2": GPTConfig(),
          "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
          "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280),
          "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600)}
METHODS = ("full", "float32", *QUANTIZED)
CARDS = (4, 8, 16, 24)    # GB
RANK = 16                 # of the sequential adapters
PROMPT = 23                                          # HH's prompts have 23 tokens in the mean,
COMPLETIONS = (10, 17, 24, 32, 45, 63, 90, 131)      # and these are eighths of its completions' lengths
WORDS = " the and that with from this have they which were when what time would there people more some like other"

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--models", nargs="+", default=["gpt2"], choices=list(MODELS), help="(default: gpt2)")
    p.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="(default: all)")
    p.add_argument("--activation_checkpointing", action="store_true", help="measure with this flag of train_pref.py")
    p.add_argument("--scratch", help="folder for the random weights, 6.2 GB for gpt2-xl (default: the system's)")
    return places.parse(p, argv)

# ---------------------------------------------------------------------------------------------------------------------
# the formula

def parameters(config):
    """(parameters outside the blocks, parameters of the blocks' matrices, all other parameters of the blocks)."""
    C, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    outside = (config.vocab_size + config.block_size + 2) * C
    matrices = 4 * C * C + 2 * C * inner
    vectors = 9 * C + inner    # two LayerNorms, and the biases of the four matrices
    return outside, config.n_layer * matrices, config.n_layer * vectors

# bytes for each weight of a block's matrix; int8 also has a scale for each row, nf4 4 bytes for each 64 weights
BYTES = {"full": 16, "float32": 4, "bf16": 2, "int8": 1, "nf4": 0.5 + 4 / 64}
# float32 numbers that a block keeps for backward, for each token and unit of width. A frozen matrix keeps no input.
NUMBERS = {"full": 16, "adapters": 11}
LIBRARIES = 0.38e9    # bytes of a process that has imported everything and holds no model

def predicted(config, method, tokens, checkpointing=False):
    """
    Bytes of the process at the peak of one update: libraries + weights + activations + temporary tensors. The formula
    stands in docs/speed.md.

    method   one of METHODS: adapters of rank 16 but for "full"
    tokens   in one batch, padding included: 2 * T for one pair
    """
    C, L, V = config.n_embd, config.n_layer, config.vocab_size
    outside, matrices, vectors = parameters(config)
    if method == "full":    # weight, gradient and two moments, 4 bytes each
        state, numbers = 16 * (outside + matrices + vectors), NUMBERS["full"]
    else:                   # frozen weights have their own bytes only; an adapter is trained
        state = BYTES[method] * matrices + 4 * (outside + vectors) + 16 * L * (2 * C * RANK + C + RANK)
        numbers = NUMBERS["adapters"]
    input_, block = 4 * tokens * C, 4 * tokens * C * numbers
    activations = L * input_ + block if checkpointing else L * block
    # logits in two chunks, and the second gradient of the tied matrix, or a matrix of an MLP in float32, two times
    temporary = 2 * 4 * CHUNK + (4 * V * C if method == "full" else 2 * 16 * C * C)
    return LIBRARIES + state + activations + temporary

# ---------------------------------------------------------------------------------------------------------------------
# one measurement

def write_random(config, folder):
    """Writes a GPT-2 with random weights into a folder in Hugging Face's layout, one block at a time, in shards."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    with torch.device("meta"), weights.no_init():
        shapes = {name: x.shape for name, x in GPT(config).state_dict().items() if name != "lm_head.weight"}
    shards = {}
    for name in shapes:    # transformer.h.3.attn.c_attn.weight is in the shard of block 3
        shards.setdefault(name.split(".")[2] if ".h." in name else "rest", []).append(name)
    where = {}
    for shard, names in shards.items():
        file = f"model-{shard}.safetensors"
        state = {}
        for name in names:
            shape = shapes[name][::-1] if name.endswith(CONV1D) else shapes[name]
            ones = ".ln_" in name and name.endswith("weight")
            state[name] = torch.ones(shape) if ones else 0.02 * torch.randn(shape)
        save_file(state, folder / file)
        where |= dict.fromkeys(names, file)
    write_json(folder / "config.json", weights.hf_config(config, scalar=False))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})

def pairs(seed):
    """9 pairs of words, the last one as long as the others in the mean: dicts of prompt, chosen and rejected."""
    rng = random.Random(seed)
    text = lambda n: "".join(f" {rng.choice(WORDS.split())}" for _ in range(n))
    made = []
    for i, n in enumerate([*COMPLETIONS, 32]):
        made.append({"prompt": text(PROMPT), "chosen": text(n - 1), "rejected": text(COMPLETIONS[i - 3] - 1)})
    return made

def write_pairs(path, tokenizer):
    """Writes pairs of which train_pref.py holds out exactly one for validation. Returns the length of the longest."""
    for seed in range(1000):
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(seed)))
        rows = data.load_rows(str(path), None, tokenizer, 512, say=lambda line: None)
        if len(rows["val"]) == 1:
            return max(len(r["prompt"]) + max(len(r["chosen"]), len(r["rejected"])) for r in rows["train"])
    raise AssertionError("no seed of 1000 holds out one pair")

def fits(job):
    """A job in its own process: one update of train_pref.py. Returns {"seconds": ..., "peak": GB, "tokens": ...}."""
    eval.main = page.main = lambda *args, **more: {}
    folder, scratch = job["folder"], Path(job["scratch"])
    tokenizer = data.get_tokenizer("pairs", json.loads((Path(folder) / "config.json").read_text())["vocab_size"])
    longest = write_pairs(scratch / "pairs.jsonl", tokenizer)
    method = job["method"]
    flags = [] if method == "full" else ["--adapter", "sequential", "--adapter_rank", str(RANK)]
    flags += ["--quantize", method] if method in QUANTIZED else []
    flags += ["--activation_checkpointing"] if job["checkpointing"] else []
    start = time.perf_counter()
    flags += cli.words(data=scratch / "pairs.jsonl", init_from=folder, out_dir=scratch / "run", dtype="float32",
                       batch_size=1, grad_accum=8, max_steps=1, eval_every=1, warmup_steps=0, lr=1e-5,
                       max_len=job["max_len"])
    train_pref.main(flags)
    return {"seconds": time.perf_counter() - start, "peak": jobs.peak_gb(torch.device("cpu")), "tokens": 2 * longest}

# ---------------------------------------------------------------------------------------------------------------------
# rows and table

HEAD = ("machine", "model", "method", "checkpointing", "tokens", "peak_gb", "predicted_gb", "seconds")

def put(path, row):
    """Writes a row into a CSV file in place of the one of the same model, method and checkpointing."""
    key = lambda r: tuple(str(r[k]) for k in ("model", "method", "checkpointing"))
    old = places.read_csv(path) if path.exists() else []
    rows = [r for r in old if key(r) != key(row)] + [row]
    places.write_csv(path, HEAD, [[r[k] for k in HEAD] for r in rows])

def measured(name, method, checkpointing, scratch):
    """The row of a model and a method. The model's random weights are in scratch/NAME."""
    with tempfile.TemporaryDirectory(dir=scratch) as run:
        job = {"folder": f"{scratch}/{name}", "scratch": run, "method": method, "checkpointing": checkpointing,
               "max_len": 512}
        got = bench.in_process("fits", job)
    computed = predicted(MODELS[name], method, got["tokens"], checkpointing) / 1e9
    return {"machine": bench.machine(), "model": name, "method": method, "checkpointing": checkpointing,
            "tokens": got["tokens"], "peak_gb": got["peak"], "predicted_gb": computed, "seconds": got["seconds"]}

def fits_table(results=places.RESULTS):
    """By model and method: GB of an update, measured or computed, without and with activation checkpointing."""
    path = results / "fits.csv"
    found = {(r["model"], r["method"], r["checkpointing"]): r for r in (places.read_csv(path) if path.exists() else ())}
    tokens = 2 * (PROMPT + max(COMPLETIONS))
    lines = ["| model | parameters | method | GB | with `--activation_checkpointing` | fits into |",
             "|---|---|---|---|---|---|"]
    for name, config in MODELS.items():
        for method in METHODS:
            gb, cells = [], []
            for checkpointing in (False, True):
                row = found.get((name, method, str(checkpointing)))
                gb.append(float(row["peak_gb"]) if row else predicted(config, method, tokens, checkpointing) / 1e9)
                cells.append(f"{gb[-1]:.2f} {'measured' if row else 'computed'}")
            card = next((f"{card} GB" for card in CARDS if min(gb) <= card), f"more than {CARDS[-1]} GB")
            about = "full, float32" if method == "full" else f"adapters on {method}"
            size = f"{sum(parameters(config)) / 1e6:,.0f}M"
            lines.append(f"| {name} | {size} | {about} | {cells[0]} | {cells[1]} | {card} |")
    return "\n".join(lines)

def main(argv=None):
    args = get_args(argv)
    with cli.interruptible("-m study.fits", args, argv), tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        results, _ = places.folders(args.out, args.update)
        for name in args.models:
            write_random(MODELS[name], Path(scratch) / name)
            for method in args.methods:
                row = measured(name, method, args.activation_checkpointing, scratch)
                put(results / "fits.csv", row)
                print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()
                               if k != "machine"), flush=True)

if __name__ == "__main__":
    main()
