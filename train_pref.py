"""
Preference optimization: trains a policy on pairs of completions, with any loss of losses.py.

    python train_pref.py --loss dpo                 # toy; trains the SFT policy first if there is none
    python train_pref.py --loss dpop --adapter sequential --adapter_rank 64 --lr 2e-3
    python train_pref.py --loss dpo --rounds 4      # new pairs from the current policy in each quarter: rounds.py
    python train_pref.py --loss dpo --data hh --max_len 512 --lr 2e-6 --batch_size 8 --grad_accum 8

The reference is the model that training starts from. Its log-probs are computed once, before training (reference.py).
With --rounds, pairs are sampled again during training (rounds.py).
Writes out/<data>/<loss>, evaluates it, and draws its page. docs/recipes.md has more commands.
Read first: objective.py, rounds.py. Read next: measures.py
"""
import inspect
from contextlib import nullcontext

import torch

import adapters
import data
import eval
import loop
import page
import preferences
import quantize
import rounds
import train_sft
import unpaired
try:
    from losses import LOSSES, Pairs
except ValueError as e:    # a loss that cannot be registered; the message says how to write it
    raise SystemExit(f"error: {e}") from None
from model import fingerprint
from objective import preference_loss
from reference import add_reference, start_model
from support import cli, parallel, pref_flags, rundir, sources
from support.registry import try_out

def get_args(argv=None):
    """Parses the flags. A wrong one ends the script in one line."""
    p = cli.Parser(__doc__)
    cli.add_common_flags(p)
    pref_flags.add_adapter_flags(p, adapters.MODES, adapters.INITS, quantize.METHODS)
    cli.add_pair_flags(p)
    rounds.add_flags(p)
    p.add_argument("--n_show", type=cli.count, default=3, help="samples to print at the end (default: %(default)s)")
    pref_flags.add_loss_flags(p, LOSSES, taken=inspect.signature(loop.fit).parameters)
    p.set_defaults(batch_size=32, lr=1e-3, warmup_steps=10, max_steps=120, eval_every=30, adam_epsilon=None)
    args = p.parse_args(argv)
    if args.resume:
        args = cli.resume(p, args, argv, "train_pref.py", args.loss)
    start = args.init_from or train_sft.run_dir(args.data)
    with cli.bad_input():
        about = adapters.read_about(start)
    pref_flags.check_adapter_flags(p, args, start, about)
    pref_flags.check_loss_flags(p, args, LOSSES)
    cli.check_sampling_flags(p, args)
    cli.refuse(p, args, (("compile", not args.activation_checkpointing, "with --activation_checkpointing"),
                         ("compile", not args.quantize, "with --quantize")))
    rounds.check_flags(p, args)
    if args.adam_epsilon is None:
        args.adam_epsilon = 1e-3 if args.data == "toy" and not args.adapter else 1e-8
    return args

def prepare(args, hparams):
    """Loads model and rows, and creates the run directory. Returns what make_batches takes, but args and loss."""
    sources.check_source(args.data, args.data_dir, training=True, gaps=LOSSES[args.loss].needs_gap)
    rundir.check_out_dir(args.out_dir, args.resume)
    args.init_from = args.init_from or train_sft.policy_for(**cli.flags_of(args, train_sft.policy_for))
    device, autocast = cli.set_up(**cli.flags_of(args, cli.set_up))
    model, about = adapters.load_model(args.init_from, args.dropout, args.quantize, args.double_quant)
    model = model.to(device).eval()
    tokenizer = data.get_tokenizer(args.data, model.config.vocab_size)
    cli.check_fits(model, tokenizer, args.max_len, args.init_from)
    ours = fingerprint(model)
    base = ours if about or not args.quantize else quantize.exact_fingerprint(model)
    rows, ranked_by, facts, counted = preferences.load(model, ours, tokenizer, autocast, hparams,
                                                       **cli.flags_of(args, preferences.load))
    if args.adapter and not about:
        init = (args.adapter_init or "neurons") if args.adapter == "replace" else "random"
        adapters.add_adapters(model, args.adapter, args.adapter_rank or 16, init)
    out_dir = rundir.claim_run_dir(args, "train_pref.py", args.loss, hparams=hparams, reference_fingerprint=base,
                                   **facts)
    shown = " ".join(f"{k}={float(f'{v:.6g}') if type(v) is float else v}" for k, v in hparams.items())
    size = cli.parameter_counts(model) + (f" in {args.quantize}" if args.quantize else "")
    print(f"{args.loss} {shown}: {counted}; {size}; reference {args.init_from} -> {out_dir}")
    if args.adapter == "replace" and not about:
        print("adapter replace: policy and reference differ from the start, so the first KL is not 0")
    return model, about, base, rows, autocast, (tokenizer, ranked_by)

def make_batches(args, loss, model, about, base, rows, autocast, later):
    """
    {"train", "val": batches of pairs}, with the reference's log-probs in their rows.
    about: adapter.json of --init_from; base: the model's fingerprint; later: what later rounds are sampled with.
    """
    def batches_of(part):
        if loss.needs_kl:
            unpaired.mismatch(part, args.max_len)
        return data.Batches(part, args.batch_size, args.seed, args.share_prefix)

    def refer_later(part):    # in rounds after the first one, when the model has moved
        if args.sync_ref or new_adapter:
            add_reference(model, part, autocast, nullcontext if args.sync_ref else adapters.adapters_off)
        else:
            device = next(model.parameters()).device
            add_reference(start_model(args.init_from, base, device), part, autocast)

    batches = {split: batches_of(part) for split, part in rows.items()}
    # The reference is the model without its new adapter. An adapter that training starts from is part of it.
    new_adapter = bool(adapters.adapter_modules(model)) and not about
    if loss.needs_ref:
        for part in batches.values():
            add_reference(model, part, autocast, adapters.adapters_off if new_adapter else nullcontext)
    if args.rounds > 1:
        batches["train"] = rounds.Rounds(model, *later, batches["train"], batches_of,
                                         refer_later if loss.needs_ref else None, gaps=loss.needs_gap,
                                         **cli.flags_of(args, rounds.Rounds))
    return batches

def train(args):
    """The work of main, after the flags are parsed."""
    loss = LOSSES[args.loss]
    hparams = {name: getattr(args, name) for name in loss.hparams}
    def hparams_at(step):    # beta may move from update to update
        beta = loop.anneal(step, args.beta, args.beta_end, args.beta_schedule, args.max_steps)
        return hparams | {"beta": beta} if "beta" in hparams else hparams

    parallel.join(args.device)
    with cli.bad_input():
        for step in (1, args.max_steps):
            try_out(args.loss, hparams_at(step), Pairs)    # refuses a value out of its range now, not after an hour
        model, about, base, rows, autocast, later = prepare(args, hparams)
    batches = make_batches(args, loss, model, about, base, rows, autocast, later)
    model.activation_checkpointing = args.activation_checkpointing
    if args.compile:
        model.features = torch.compile(model.features, dynamic=True)

    def compute_loss(batch):
        # Validation always uses the hyperparameters of the last update, so that its losses can be compared.
        step = batch["step"] if model.training else args.max_steps
        return preference_loss(model, batch, loss, hparams_at(step), args.mean_logps, args.sft_weight or 0.0)

    save = model.save_pretrained
    if args.adapter:
        plain = (about["base"], about["base_fingerprint"]) if about else (args.init_from, base)    # without any adapter
        save = lambda folder: adapters.save_adapter(model, folder, *plain)
    result = loop.fit(model, compute_loss, batches["train"], batches["val"], save=save, autocast=autocast,
                      show=("rewards/accuracies", "rewards/margins"), go_on=cli.go_on(), **cli.flags_of(args, loop.fit))
    print()
    if parallel.leave():    # in the first process
        look = ["--run", args.out_dir, *cli.pass_on(args, "device", "dtype", "threads")]
        result |= eval.main([*look, "--show", str(args.n_show)], say=lambda line: None)
        page.main(look, say=lambda line: None)
    return result

def main(argv=None):
    """Returns fit's result and, in the first process, the content of eval.json."""
    args = get_args(argv)
    with cli.interruptible("train_pref.py", args, argv):
        return train(args)

if __name__ == "__main__":
    main()
