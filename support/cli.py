"""
Command-line flags that mean the same in every script, errors in one line, and the command that resumes a run.

docs/running.md explains how scripts run, stop and resume.
"""
import argparse
import inspect
import math
import os
import re
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from support import cpu, parallel, precision, tokenizers
from support.rundir import is_free, is_run, read_args, run_dirs

class Parser(argparse.ArgumentParser):
    """argparse with errors in one line instead of the whole usage, and without abbreviated flags."""
    def __init__(self, doc):
        summary = doc.strip().split("\n")[0]
        super().__init__(description=summary, epilog="The file begins with example commands.", allow_abbrev=False)

    def add_argument(self, *names, **options):
        """Also adds "(default: ...)" to the help of a flag that has a default, unless the help says it already."""
        has_default = options.get("default") not in (None, argparse.SUPPRESS)
        if has_default and "(default" not in options.setdefault("help", ""):
            options["help"] += " (default: %(default)s)"
        return super().add_argument(*names, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")

    def parse_args(self, args=None, namespace=None):
        """Also refuses NaN and infinity, which pass later checks, and empty values, as from an unset shell variable."""
        found = super().parse_args(args, namespace)
        for flag, value in vars(found).items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, float) and not math.isfinite(one):
                    self.error(f"argument --{flag}: must be a finite number, not {one}")
                if isinstance(one, str) and not one.strip() and flag != "prompt":
                    self.error(f"argument --{flag}: is empty")
        return found

@contextmanager
def bad_input():
    """Inside it, a ValueError or OSError is the user's mistake: one line on stderr and exit status 2, no traceback."""
    try:
        yield
    except (ValueError, OSError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        raise SystemExit(2) from None

RUNNING = []    # (script, its args, its argv) of each main that runs: a caller comes before the scripts that it calls

@contextmanager
def interruptible(script, args, argv=None):
    """Around a script's work: Ctrl-C prints one line with the command that resumes it. The exit status is 130."""
    RUNNING.append((script, args, sys.argv[1:] if argv is None else argv))
    try:
        yield
    except KeyboardInterrupt:
        if parallel.rank() == 0:
            print(f"\ninterrupted. To resume: {go_on()}", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        RUNNING.pop()

def go_on():
    """
    The command that resumes the script that the user typed: with --resume if its run directory exists, else the same
    command again. It also completes scripts that this one called, for example the SFT run of train_pref.py.
    """
    script, args, argv = RUNNING[0]
    out_dir = getattr(args, "out_dir", None)
    if out_dir and (Path(out_dir) / "args.json").is_file():
        argv = ["--resume", "--out_dir", os.path.relpath(out_dir)]
    return shlex.join(["python", *script.split(), *map(str, argv)])

# ---------------------------------------------------------------------------------------------------------------------
# types of flags

def count(text, least=0):
    """An int of at least 0."""
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
    return value

def positive(text):
    """An int of at least 1."""
    return count(text, least=1)

def not_negative(text):
    """A finite number of at least 0. A whole number without a point or exponent is an int."""
    value = int(text) if text.strip().isdecimal() and len(text) < 20 else float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number, at least 0, not {text}")
    return value

def above_zero(text):
    """A finite number larger than 0."""
    if not (value := not_negative(text)):
        raise argparse.ArgumentTypeError("must be larger than 0")
    return value

def temperature(text):
    """A sampling temperature: 0 or at least 0.001."""
    if 0 < (value := not_negative(text)) < 1e-3:
        raise argparse.ArgumentTypeError("must be 0 (greedy) or at least 0.001, below which logits overflow")
    return value

def seed(text):
    """A seed that torch accepts. 2^63 - 1 is left out, because some draws use the seed plus 1."""
    value = int(text)
    if not 0 <= value < 2**63 - 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2^63 - 2, not {value}")
    return value

# ---------------------------------------------------------------------------------------------------------------------
# flags that several scripts share

def add_device_flags(p):
    """Flags of every script that runs a model."""
    p.add_argument("--seed", type=seed, default=0, help="random seed of initial weights, batch order and samples")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto uses a GPU if there is one")
    p.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
                   help="dtype of matrix products; weights stay float32. auto: bfloat16 on a GPU, float16 on an older "
                   "one, float32 elsewhere")
    p.add_argument("--batch_size", type=positive, default=64,
                   help="rows, or pairs, in one forward pass; memory grows with it")
    p.add_argument("--threads", type=positive,
                   help="CPU threads; the last digits depend on it (default: 1 on toy, so that a seed gives the same "
                   "numbers on every machine; PyTorch's choice on other data)")

def add_common_flags(p):
    """Flags of every script that trains. Each script sets the defaults of those whose help says %(default)s."""
    p.add_argument("--data", default="toy",
                   help="toy, imdb, hh, ultrafeedback, tldr, kto_mix, or the path of a .json, .jsonl, .jsonl.gz, "
                   ".csv or .parquet file")
    p.add_argument("--data_dir", help="folder with the files of the data set (default: download from the hub)")
    p.add_argument("--init_from", help="model to start from: gpt2, gpt2-medium, gpt2-large, gpt2-xl, a folder in "
                   "Hugging Face's layout, or a run")
    p.add_argument("--out_dir", help="run directory (default: the next free name under out/DATA)")
    add_device_flags(p)
    p.add_argument("--grad_accum", type=positive, default=1, help="batches in one update; costs no memory")
    p.add_argument("--lr", type=not_negative, help="learning rate after warmup (default: %(default)s)")
    p.add_argument("--min_lr", type=not_negative, default=0.0, help="learning rate at the end of the cosine schedule")
    p.add_argument("--warmup_steps", type=count,
                   help="updates in which the learning rate rises linearly (default: %(default)s)")
    p.add_argument("--max_steps", type=positive, help="number of updates (default: %(default)s)")
    p.add_argument("--eval_every", type=positive,
                   help="updates between evaluations on the validation rows (default: %(default)s)")
    p.add_argument("--patience", type=count, default=3,
                   help="early stopping after this many evaluations in a row that are not better; 0: never")
    p.add_argument("--weight_decay", type=not_negative, default=0.0, help="AdamW's weight decay, of matrices only")
    p.add_argument("--adam_epsilon", type=above_zero, default=1e-8,
                   help="AdamW's epsilon; a larger one makes updates smaller where gradients are small (default: 1e-8; "
                   "1e-3 for preferences and PPO on toy)")
    p.add_argument("--grad_clip", type=not_negative, default=1.0,
                   help="largest norm of the gradient; a larger one is scaled down to it; 0: no clipping")
    p.add_argument("--on_nonfinite", default="stop", choices=("stop", "skip"),
                   help="stop the run, or skip the update, if loss or gradient is not finite or the loss is a spike")
    p.add_argument("--dropout", type=not_negative, default=0.0,
                   help="dropout probability in training; it adds noise to log-ratios")
    p.add_argument("--max_prompt_len", type=positive,
                   help="largest prompt in tokens; a longer one loses its beginning (default: no limit)")
    p.add_argument("--max_len", type=positive, default=64,
                   help="largest prompt plus completion in tokens; a longer completion loses its end")
    p.add_argument("--n_val", type=positive, help="number of validation rows, always the same ones (default: all)")
    p.add_argument("--keep_all", action="store_true",
                   help="keep the weights of every evaluation in OUT_DIR/step-N, which eval.py can open")
    p.add_argument("--compile", action="store_true",
                   help="torch.compile the model: a minute to start, faster updates on a GPU; not with "
                   "--activation_checkpointing or --quantize")
    p.add_argument("--activation_checkpointing", action="store_true",
                   help="keep only the input of each block for the backward pass, which computes the block again: the "
                   "same numbers, less memory, about a third more time")
    p.add_argument("--resume", action="store_true",
                   help="resume the run in --out_dir, or the newest run of this name if --out_dir is not given")

def add_pair_flags(p):
    """Flags of preference pairs, and of sampling and ranking them where data has none."""
    p.add_argument("--share_prefix", action="store_true",
                   help="compute the prompt of a pair once for both completions: the same numbers in less time")
    p.add_argument("--label_noise", type=not_negative, default=0.0, help="share of wrong labels, in validation too")
    p.add_argument("--weighting", choices=("groups", "completions"),
                   help="data with labels, kto: both weights are those of a group's mean loss, or of each completion's "
                   "(default: groups; completions if a weight is given)")
    p.add_argument("--labels", choices=("best", "bradley_terry"),
                   help="toy, imdb: choose the sample of higher reward, or draw the label: P(a over b) is the sigmoid "
                   "of their rewards' difference in nats (default: best)")
    p.add_argument("--n_prompts", type=positive,
                   help="toy, imdb: number of prompts, with 4 sampled completions each (default: 600; imdb: 1200)")
    p.add_argument("--reward", help="toy, imdb: reward model that ranks the samples, a run of rlhf.train_reward "
                   "(default: toy's exact reward)")
    p.add_argument("--prompt_tokens",
                   help="imdb: tokens of a review that make the prompt, a number or a range as 2-8 (default: 32)")

# ---------------------------------------------------------------------------------------------------------------------
# what flags mean together

def refuse(p, args, rules):
    """Refuses flags that have no effect. Each rule is (flag, whether it has an effect, why it has none)."""
    for flag, effective, why in rules:
        if getattr(args, flag) not in (None, False) and not effective:
            p.error(f"--{flag} has no effect {why}")

def check_sampling_flags(p, args):
    """Sets the defaults of sampled pairs. Refuses their flags on other data, and IMDB without a reward model."""
    sampled, on, without = args.data in ("toy", "imdb"), f"on --data {args.data}", "without --data toy or imdb"
    refuse(p, args, (("n_prompts", sampled, without), ("reward", sampled, without), ("labels", sampled, without),
                     ("prompt_tokens", args.data == "imdb", on), ("max_prompt_len", not sampled, on),
                     ("n_val", not sampled, on)))
    if args.data == "imdb" and not args.reward:
        p.error("--data imdb has no pairs, so they are sampled and ranked; train a reward model with "
                "rlhf.train_reward and name it with --reward")
    args.n_prompts = args.n_prompts or {"toy": 600, "imdb": 1200}.get(args.data)
    check_prompt_tokens(p, args)

def check_prompt_tokens(p, args):
    """Sets args.prompt_tokens to its default if it is missing. Refuses what is not a number or a rising range."""
    args.prompt_tokens = args.prompt_tokens or ("32" if args.data == "imdb" else None)
    span = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", args.prompt_tokens or "32")
    if not span or int(span[1]) > int(span[2] or span[1]):
        p.error(f"--prompt_tokens {args.prompt_tokens}: must be a number of tokens, or a range as 2-8")

# flags that may change when a run is resumed
FREE = ("max_steps", "eval_every", "patience", "on_nonfinite", "keep_all", "device", "threads", "compile",
        "activation_checkpointing", "resume", "out_dir", "n_show")

def resume(p, args, argv, script, name):
    """
    The arguments of the run that --resume continues: that in --out_dir, or the newest of its name. Flags that may
    change are taken from argv and printed. Another changed flag is refused by name: it would make another run.
    """
    begun = [d for d in run_dirs(args.data, name) if (d / "args.json").exists()]
    out_dir = Path(args.out_dir) if args.out_dir else (begun or [None])[-1]
    if out_dir is None or is_free(out_dir):
        p.error(f"--resume: {out_dir or f'no run of {name}'} holds no state.pt or other file of a run; "
                "leave --resume out to start it")
    with bad_input():
        facts = read_args(out_dir)
    saved = facts["args"]
    if facts["script"] != script:
        p.error(f"--resume: {out_dir} is a run of {facts['script']}, not of {script}")
    p.set_defaults(**saved)
    again = p.parse_args(argv)
    for key, value in saved.items():
        if key in ("resume", "out_dir") or getattr(again, key, value) == value:
            continue
        if key not in FREE or (key == "max_steps" and saved.get("rounds", 1) > 1):    # it sets where rounds begin
            p.error(f"--resume: --{key} was {value} in {out_dir}; leave it out, or start a new run")
        print(f"--resume: --{key} was {value}, and is {getattr(again, key)} from here on")
    again.out_dir = str(out_dir)
    return again

def flags_of(args, fn):
    """The flags with the names of a function's parameters, as keyword arguments for it."""
    return {name: getattr(args, name) for name in inspect.signature(fn).parameters if name in args}

def words(**flags):
    """Flags as words of a command line, without those that are None: words(lr=1) is ["--lr", "1"]."""
    found = []
    for flag, value in flags.items():
        if value is not None:
            found += [f"--{flag}", str(value)]
    return found

def pass_on(args, *names):
    """The flags of these names as words of a command line, for the main of another script."""
    return words(**{name: getattr(args, name) for name in names})

# ---------------------------------------------------------------------------------------------------------------------
# before a model runs

def set_up(*, seed, device, dtype, threads=None, data=None, say=print):
    """
    Seeds torch and sets its threads. Returns (device, autocast) and prints them in one line with say.
    data: what the run is on; the toy world takes one thread. Raises ValueError for a device that is missing.
    """
    torch.manual_seed(seed)
    threads = threads or (1 if data == "toy" else None)
    if threads:
        torch.set_num_threads(threads)
    device = precision.find_device(device)
    dtype = precision.find_dtype(dtype, device)
    if device.type == "cpu":
        cpu.keep_memory()
    n = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{n} thread{'s' if n > 1 else ''}"
    processes = f", {parallel.world()} processes" if parallel.world() > 1 else ""
    say(f"device {device} ({name}), {dtype}{processes}")
    return device, torch.autocast(device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32")

def parameter_counts(model):
    """How many parameters of a model are trained, and how many are frozen, in words."""
    trained, frozen = (sum(p.numel() for p in model.parameters() if p.requires_grad == yes) for yes in (True, False))
    frozen += sum(getattr(module, "more_weights", 0) for module in model.modules())    # quantized: two in a byte
    return f"{trained:,} trained parameters" + (f", {frozen:,} frozen" if frozen else "")

def check_fits(model, tokenizer, max_len, name):
    """Raises ValueError if the model has another vocabulary than the tokenizer, or fewer positions than max_len."""
    if model.config.vocab_size != tokenizer.n_vocab:
        raise ValueError(f"{name} has a vocabulary of {model.config.vocab_size:,} tokens, but the data's tokenizer, "
                         f"{tokenizer.name}, has {tokenizer.n_vocab:,}: the model was made for other data")
    if model.config.block_size < max_len:
        raise ValueError(f"--max_len {max_len} is more than the {model.config.block_size} tokens that {name} can take")
    if not is_run(name) and tokenizer.name != "nanopref_toy":    # of toy's tokenizer, the size says enough
        tokenizers.check_own(name, tokenizer)
