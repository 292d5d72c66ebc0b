"""
Flags of train_pref.py alone: the loss with its hyperparameters, and adapters; and which of them fit together.

docs/running.md explains how scripts run, stop and resume. Read next: train_pref.py
"""
import argparse
import os
from itertools import chain

from support.cli import not_negative, positive, refuse
from support.registry import number

# ---------------------------------------------------------------------------------------------------------------------
# adapters

def add_adapter_flags(p, modes, inits, methods):
    """Flags of preference training with adapters. modes, inits: what adapters.py offers; methods: quantize.py."""
    p.add_argument("--adapter", choices=modes,
                   help="train a small adapter in every block and freeze the rest (default: train all parameters)")
    p.add_argument("--adapter_rank", type=positive, help="hidden units of each adapter (default: 16)")
    p.add_argument("--adapter_init", choices=inits,
                   help="for replace: initial weights, random or the MLP's most important neurons (default: neurons)")
    p.add_argument("--quantize", choices=methods,
                   help="with --adapter: hold the frozen matrices in 16, 8 or 4 bits a weight (default: 32)")
    p.add_argument("--double_quant", action="store_true",
                   help="with --quantize nf4: hold its scales in 8 bits too, 4.13 bits a weight in place of 4.5")

def check_adapter_flags(p, args, start, about):
    """
    Refuses adapter flags that have no effect. If the model to start from is an adapter run, its adapter is trained
    further: --adapter and --adapter_rank are set to its own. start: that model; about: its adapter.json, or None.
    """
    if about:
        for flag, own in (("adapter", about["mode"]), ("adapter_rank", about["rank"])):
            if getattr(args, flag) not in (None, own):
                p.error(f"--{flag} {getattr(args, flag)}: {start} is an adapter run ({about['mode']}, rank "
                        f"{about['rank']}), and its adapter is trained further; leave the flag out")
            setattr(args, flag, own)
        check_same_base(p, args, start, about)
    refuse(p, args, (("adapter_init", not about, "on an adapter run, whose adapter is trained further"),
                     ("adapter_rank", args.adapter, "without --adapter"),
                     ("adapter_init", args.adapter == "replace", "without --adapter replace"),
                     ("quantize", args.adapter, "without --adapter: only a frozen base can be quantized"),
                     ("double_quant", args.quantize == "nf4", "without --quantize nf4")))

def check_same_base(p, args, start, about):
    """Sets --quantize and --double_quant to those of an adapter run. Refuses others: its adapter fits its base only."""
    method, double = about.get("quantize"), about.get("double_quant", False)
    other_method = args.quantize not in (None, method)
    if other_method or args.double_quant > double:
        asked = f"--quantize {args.quantize}" if other_method else "--double_quant"
        base = f"{method} {'with' if double else 'without'} double quantization" if method else "not quantized"
        p.error(f"{asked}: {start} is an adapter run whose base is {base}, and its adapter is trained further on it; "
                "leave the flag out")
    args.quantize, args.double_quant = method, double

# ---------------------------------------------------------------------------------------------------------------------
# losses

def add_loss_flags(p, losses, taken):
    """
    --loss, the flags of all losses, and each hyperparameter of any loss. Call it last: no hyperparameter may have the
    name of another flag. losses: the LOSSES table; taken: more names that a hyperparameter may not have.
    """
    p.add_argument("--loss", default="dpo", choices=list(losses), help="a loss of losses.py")
    p.add_argument("--beta_end", type=float,
                   help="beta at the last update and at evaluations (default: beta stays constant)")
    p.add_argument("--beta_schedule", choices=("linear", "cosine", "constant"),
                   help="path from --beta to --beta_end (default: linear)")
    p.add_argument("--mean_logps", action="store_true",
                   help="use the mean log-prob of a completion's tokens in place of the sum")
    p.add_argument("--sft_weight", type=not_negative,
                   help="adds this times the NLL per token of the chosen completion to the loss, as RPO (default: 0)")
    for name in hparam_names(losses):
        takers = {k: loss.hparams[name] for k, loss in losses.items() if name in loss.hparams}
        kind = common_type(p, name, {k: losses[k].flag_types[name] for k in takers})
        about = "for " + ", ".join(f"{k} (default: {v})" for k, v in takers.items())
        action = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        try:
            if name in taken:
                raise argparse.ArgumentError(None, name)
            p.add_argument(f"--{name}", help=about.replace("%", "%%"), **action)
        except argparse.ArgumentError:
            p.error(f"loss {' and '.join(takers)}: the hyperparameter {name} has a name that is taken; "
                    "rename it in losses.py")

def hparam_names(losses):
    """The hyperparameters of all losses, each once."""
    return list(dict.fromkeys(chain.from_iterable(loss.hparams for loss in losses.values())))

def common_type(p, name, kinds):
    """The type of a hyperparameter that several losses take: float if one of them takes floats. kinds: loss -> type."""
    if len(found := set(kinds.values())) == 1:
        return found.pop()
    if found <= {int, number, float}:
        return float if float in found else number
    examples = {kind.__name__: loss for loss, kind in kinds.items()}
    p.error(f"--{name} has two types: " + ", ".join(f"{kind} for {loss}" for kind, loss in examples.items())
            + "; a flag has one type, so rename the hyperparameter in losses.py")

def check_loss_flags(p, args, losses):
    """Sets the chosen loss's hyperparameters to their defaults. Refuses flags that have no effect on this loss."""
    loss, name = losses[args.loss], args.loss
    takes = ", ".join(f"--{h}" for h in loss.hparams) or "no hyperparameter"
    others = set(hparam_names(losses)) - loss.hparams.keys()
    for h in sorted(others):
        if getattr(args, h) is not None:    # refuse() would let 0 and --no-... pass
            p.error(f"--{h} has no effect on --loss {name}, which takes {takes}")
    if has_weights := "desirable_weight" in loss.hparams:
        default = "groups" if args.desirable_weight is None is args.undesirable_weight else "completions"
        args.weighting = args.weighting or default
    on = f"on --loss {name}, which"
    refuse(p, args, (("mean_logps", not loss.per_token, f"{on} takes means per token already"),
                     ("mean_logps", not loss.needs_lens, f"{on} compares sums, with a term for the lengths"),
                     ("sync_ref", loss.needs_ref, f"{on} has no reference"),
                     ("sft_weight", not loss.has_nll, f"{on} contains the NLL of the chosen completion already"),
                     ("weighting", has_weights, f"{on} has no weights"),
                     ("beta_end", "beta" in loss.hparams, f"{on} has no beta"),
                     ("beta_schedule", args.beta_end is not None, "without --beta_end")))
    if args.beta_end == 0:
        p.error("--beta_end 0: evaluations use the last beta, and at 0 all policies have one loss; use a small one")
    if loss.whole_batch and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        p.error(f"--loss {name} sorts all pairs of a batch, but a process of torchrun has only some: run it without")
    for h, default in loss.hparams.items():
        setattr(args, h, default if getattr(args, h) is None else getattr(args, h))
