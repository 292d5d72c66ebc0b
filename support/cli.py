"""What every script shares: the flags that mean the same everywhere, run directories, and errors in one line."""
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

from support import cpu, parallel, tokenizers
from support.registry import number
from support.rundir import is_free, is_run, read_args, run_dirs

class Parser(argparse.ArgumentParser):
    """argparse, but a wrong flag is answered with one line instead of the whole usage; flags are never guessed from a beginning."""
    def __init__(self, doc):
        super().__init__(description=doc.strip().split("\n")[0], epilog="The commands stand at the top of the file.", allow_abbrev=False)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")

    def parse_args(self, args=None, namespace=None):
        """Refuses what no flag can mean: NaN and infinity, which no comparison finds later, and nothing, as of a shell variable not set."""
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
    """What a user can get wrong ends in one line on stderr and exit status 2, not in a traceback."""
    try:
        yield
    except (ValueError, OSError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        raise SystemExit(2) from None

RUNNING = []    # (script, its args, its argv) of each main that runs, a caller before those that it calls

@contextmanager
def interruptible(script, args, argv=None):
    """Around a main's work: Ctrl-C ends in one line with the command that goes on, and exit status 130, not in a traceback."""
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
    The command that goes on with what was typed: --resume once that has a run, else the same again. What a script calls another
    for, such as the SFT policy, is finished by it.
    """
    script, args, argv = RUNNING[0]
    out_dir = getattr(args, "out_dir", None)
    begun = out_dir and (Path(out_dir) / "args.json").is_file()
    return shlex.join(["python", *script.split(), *(["--resume", "--out_dir", os.path.relpath(out_dir)] if begun else map(str, argv))])

# ---------------------------------------------------------------------------------------------------------------------
# flags

def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value

def count(text):
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {value}")
    return value

def not_negative(text):
    """A finite number; a whole one is an int unless it is written otherwise."""
    value = int(text) if text.strip().isdecimal() and len(text) < 20 else float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number, at least 0, not {text}")
    return value

def above_zero(text):
    if not (value := not_negative(text)):
        raise argparse.ArgumentTypeError("must be larger than 0")
    return value

def temperature(text):
    if 0 < (value := not_negative(text)) < 1e-3:
        raise argparse.ArgumentTypeError("is 0, for the likeliest token always, or at least 0.001, below which logits overflow")
    return value

def seed(text):
    value = int(text)
    if not 0 <= value < 2**63 - 1:    # what torch takes; some draws have the seed's successor
        raise argparse.ArgumentTypeError(f"must be from 0 to 2^63 - 2, not {value}")
    return value

def add_device_flags(p):
    p.add_argument("--seed", type=seed, default=0, help="of weights, order and samples (default: %(default)s)")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes a GPU if there is one (default: %(default)s)")
    p.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
                   help="of the matrix products; weights stay float32. auto: bfloat16 on a GPU, float16 on older ones, else float32")
    p.add_argument("--batch_size", type=positive, default=64, help="rows, or pairs, in one forward pass (default: %(default)s)")
    p.add_argument("--threads", type=positive, help="of the CPU; sums depend on it (default: 1 on toy, where a second one makes nothing "
                   "faster and a seed is to give the same numbers everywhere; else PyTorch's choice)")

def add_common_flags(p):
    p.add_argument("--data", default="toy", help="toy, imdb, hh, ultrafeedback, tldr, or a path to .json .jsonl .jsonl.gz .csv .parquet "
                   "(default: %(default)s)")
    p.add_argument("--data_dir", help="folder with the data set's files, instead of the hub")
    p.add_argument("--init_from", help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, a folder in Hugging Face's layout, or a run")
    p.add_argument("--out_dir", help="where the run goes (default: the next free name under out/DATA)")
    add_device_flags(p)
    p.add_argument("--grad_accum", type=positive, default=1, help="batches in one update (default: %(default)s)")
    p.add_argument("--lr", type=not_negative, help="learning rate at its highest (default: %(default)s)")
    p.add_argument("--min_lr", type=not_negative, default=0.0, help="learning rate at the end of the cosine (default: %(default)s)")
    p.add_argument("--warmup_steps", type=count, help="updates in which the learning rate rises in a line (default: %(default)s)")
    p.add_argument("--max_steps", type=positive, help="updates in all (default: %(default)s)")
    p.add_argument("--eval_every", type=positive, help="updates between evaluations on the validation rows (default: %(default)s)")
    p.add_argument("--patience", type=count, default=3, help="evaluations without a better one to stop (default: %(default)s)")
    p.add_argument("--weight_decay", type=not_negative, default=0.0, help="AdamW's, on matrices only (default: %(default)s)")
    p.add_argument("--adam_epsilon", type=above_zero, default=1e-8, help="AdamW's (default: 1e-8; 1e-3 for preferences and PPO on toy)")
    p.add_argument("--grad_clip", type=not_negative, default=1.0, help="largest norm of the gradient; 0: any (default: %(default)s)")
    p.add_argument("--on_nonfinite", default="stop", choices=("stop", "skip"),
                   help="what to do about an update whose loss or gradient is not finite, or a loss that is a spike (default: %(default)s)")
    p.add_argument("--dropout", type=not_negative, default=0.0, help="while training; adds noise to every log-ratio (default: %(default)s)")
    p.add_argument("--max_prompt_len", type=positive, help="tokens; a longer prompt loses its beginning (default: no cut)")
    p.add_argument("--max_len", type=positive, default=64,
                   help="tokens of prompt and completion together; a longer completion loses its end (default: %(default)s)")
    p.add_argument("--n_val", type=positive, help="validation rows at most, always the same of them (default: all)")
    p.add_argument("--keep_all", action="store_true", help="keep the weights of each evaluation, in OUT_DIR/step-N, a run for eval.py")
    p.add_argument("--compile", action="store_true", help="torch.compile the trunk; a minute to start, pays on long runs")
    p.add_argument("--resume", action="store_true", help="go on with the run in --out_dir, or else the newest of this name")

def add_loss_flags(p, losses, taken):
    """
    --loss, what goes with all losses, and every hyperparameter of any of losses, which is LOSSES. Called last, so that it sees all names.
    taken: further names that a hyperparameter cannot have.
    """
    p.add_argument("--loss", default="dpo", choices=list(losses), help="see losses.py (default: %(default)s)")
    p.add_argument("--beta_end", type=float, help="beta at the last update, where it goes, and at evaluations (default: beta stays)")
    p.add_argument("--beta_schedule", choices=("linear", "cosine", "constant"), help="how it goes there (default: linear)")
    p.add_argument("--mean_logps", action="store_true", help="log-probs per token in place of sums")
    p.add_argument("--sft_weight", type=not_negative, help="adds the chosen's NLL per token, times this, as RPO does (default: 0)")
    for name in dict.fromkeys(h for loss in losses.values() for h in loss.hparams):
        takers = {k: loss.hparams[name] for k, loss in losses.items() if name in loss.hparams}
        kind = flag_type(p, name, {k: losses[k].flag_types[name] for k in takers})
        about = "for " + ", ".join(f"{k} (default: {v})" for k, v in takers.items())
        try:
            if name in taken:
                raise argparse.ArgumentError(None, name)
            p.add_argument(f"--{name}", help=about.replace("%", "%%"),
                           **({"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}))
        except argparse.ArgumentError:
            p.error(f"loss {' and '.join(takers)}: the hyperparameter {name} has a name that is taken; rename it in losses.py")

def add_sampling_flags(p):
    """Flags of pairs that are sampled and ranked."""
    p.add_argument("--n_prompts", type=positive,
                   help="toy, imdb: prompts to sample pairs for, 4 completions each (default: 600; imdb: 1200)")
    p.add_argument("--reward", help="toy, imdb: rank them by this run of rlhf.train_reward (default: toy's exact reward)")
    p.add_argument("--prompt_tokens", help="imdb: a prompt is so many tokens of a review, as 32 or 2-8 (default: 32)")

def check_sampling_flags(p, args):
    """Fills in their defaults; refuses those that have no effect, and pairs of IMDB without a reward."""
    sampled, on, without = args.data in ("toy", "imdb"), f"on --data {args.data}", "without --data toy or imdb"
    refuse(p, args, (("n_prompts", sampled, without), ("reward", sampled, without), ("prompt_tokens", args.data == "imdb", on),
                         ("max_prompt_len", not sampled, on), ("n_val", not sampled, on)))
    if args.data == "imdb" and not args.reward:
        p.error("--data imdb has no pairs: they are sampled and ranked; train a reward model by rlhf.train_reward and give it as --reward")
    args.n_prompts = args.n_prompts or {"toy": 600, "imdb": 1200}.get(args.data)
    check_prompt_tokens(p, args)

def check_prompt_tokens(p, args):
    """Sets args.prompt_tokens to its default if it is missing."""
    args.prompt_tokens = args.prompt_tokens or ("32" if args.data == "imdb" else None)
    span = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", args.prompt_tokens or "32")
    if not span or int(span[1]) > int(span[2] or span[1]):
        p.error(f"--prompt_tokens {args.prompt_tokens}: is a number of tokens, or a range of them, as 2-8")

def flag_type(p, name, kinds):
    """One type for a hyperparameter that several losses take; kinds: {loss: its type}. Where one is a float, whole numbers are too."""
    if len(found := set(kinds.values())) == 1:
        return found.pop()
    if found <= {int, number, float}:
        return float if float in found else number
    examples = {kind.__name__: loss for loss, kind in kinds.items()}
    p.error(f"--{name} has two types: " + ", ".join(f"{kind} for {loss}" for kind, loss in examples.items())
            + "; a flag has one, so rename the hyperparameter in losses.py")

def resolve_loss_flags(p, args, losses):
    """Fills the chosen loss's hyperparameters with its defaults; refuses flags that mean nothing to it."""
    loss, name = losses[args.loss], args.loss
    taken = ", ".join(f"--{h}" for h in loss.hparams) or "no hyperparameter"
    others = {h for other in losses.values() for h in other.hparams} - loss.hparams.keys()
    for h in sorted(others):
        if getattr(args, h) is not None:    # 0 and --no-... too, which refuse takes for not given
            p.error(f"--{h} has no effect on --loss {name}, which takes {taken}")
    refuse(p, args, (("mean_logps", not loss.per_token, f"on --loss {name}, which takes means per token already"),
                     ("sft_weight", not loss.has_nll, f"on --loss {name}, which has the chosen's NLL in it already"),
                     ("beta_end", "beta" in loss.hparams, f"on --loss {name}, which has no beta"),
                     ("beta_schedule", args.beta_end is not None, "without --beta_end")))
    if args.beta_end == 0:
        p.error("--beta_end 0: evaluations are at the last beta, and at 0 all policies have one loss; take a small one")
    for h, default in loss.hparams.items():
        setattr(args, h, default if getattr(args, h) is None else getattr(args, h))

def refuse(p, args, rules):
    """Each rule is (flag, whether it has an effect, why it has none)."""
    for flag, effective, why in rules:
        if getattr(args, flag) not in (None, False) and not effective:
            p.error(f"--{flag} has no effect {why}")

def take_adapter(p, args, start, about):
    """
    If the start is an adapter run, sets --adapter and --adapter_rank to its own, and refuses flags that differ.
    about: what adapters.read_about says of the start.
    """
    for flag, own in (("adapter", about["mode"]), ("adapter_rank", about["rank"])) if about else ():
        if getattr(args, flag) not in (None, own):
            p.error(f"--{flag} {getattr(args, flag)}: {start} is an adapter run "
                    f"({about['mode']}, rank {about['rank']}), and its adapter is trained further; leave the flag out")
        setattr(args, flag, own)
    refuse(p, args, (("adapter_init", not about, "on an adapter run, whose adapter is trained further"),))

# may change when a run goes on
FREE = ("max_steps", "eval_every", "patience", "on_nonfinite", "keep_all", "device", "threads", "compile", "resume",
        "out_dir", "n_show")

def resume(p, args, argv, script, name):
    """
    The arguments of the run that --resume goes on with: at --out_dir, or the newest of its name. Refuses, by name, a flag that would
    make it another run, and says which others have changed. A run that was killed before its first state begins again.
    """
    out_dir = Path(args.out_dir) if args.out_dir else next((d for d in reversed(run_dirs(args, name)) if (d / "args.json").exists()), None)
    if out_dir is None or is_free(out_dir):
        p.error(f"--resume: {out_dir or f'no run of {name}'} holds no state.pt, nor anything else of a run; leave --resume out to begin it")
    with bad_input():
        facts = read_args(out_dir)
    saved = facts["args"]
    if facts["script"] != script:
        p.error(f"--resume: {out_dir} is a run of {facts['script']}, not of {script}")
    p.set_defaults(**saved)
    again = p.parse_args(argv)
    for key, value in ((k, v) for k, v in saved.items() if k not in ("resume", "out_dir") and getattr(again, k, v) != v):
        if key not in FREE:
            p.error(f"--resume: --{key} was {value} in {out_dir}; leave it out, or start a new run")
        print(f"--resume: --{key} was {value}, and is {getattr(again, key)} from here on")
    again.out_dir = str(out_dir)
    return again

def flags_of(args, fn):
    """The flags that a function takes, by its parameters' names."""
    return {name: getattr(args, name) for name in inspect.signature(fn).parameters if name in args}

def pass_on(args, *flags):
    """The flags of these names that have been given, for the main of another script."""
    return [word for flag in flags if getattr(args, flag) is not None for word in (f"--{flag}", str(getattr(args, flag)))]

def set_up(args, say=print, data=None):
    """
    Seeds torch, sets its threads; returns (device, autocast) and says them in one line. data: what the run is on, if args do not say.
    Raises ValueError for a device that is not there.
    """
    torch.manual_seed(args.seed)
    if threads := getattr(args, "threads", None) or (1 if (data or getattr(args, "data", None)) == "toy" else None):
        torch.set_num_threads(threads)
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise ValueError(f"--device {name}: {str(e).splitlines()[0]}") from None
    dtype, cuda = args.dtype, device.type == "cuda"
    if dtype == "auto":    # not is_bf16_supported(), which counts what a card older than Ampere only emulates, slowly
        dtype = "float32" if not cuda else "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    if device.type == "cpu":
        cpu.keep_memory()
    n = torch.get_num_threads()
    say(f"device {device} ({torch.cuda.get_device_name(device) if cuda else f'{n} threads' if n > 1 else '1 thread'}), {dtype}"
        + (f", {parallel.world()} processes" if parallel.world() > 1 else ""))
    return device, torch.autocast(device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32")

def check_fits(model, tokenizer, max_len, name):
    """Raises ValueError if a model has another vocabulary than the data, or is too short for it."""
    if model.config.vocab_size != tokenizer.n_vocab:
        raise ValueError(f"{name} has a vocabulary of {model.config.vocab_size:,} tokens, but the data's tokenizer, {tokenizer.name}, has "
                         f"{tokenizer.n_vocab:,}: it was made for other data")
    if model.config.block_size < max_len:
        raise ValueError(f"--max_len {max_len} is more than the {model.config.block_size} tokens that {name} can take")
    if not is_run(name) and tokenizer.name != "nanopref_toy":    # its size has been compared
        tokenizers.check_own(name, tokenizer)
