"""
Preference optimization: trains a policy on pairs of completions, with any loss of losses.py.

    python train_pref.py --loss dpo                 # toy; trains the SFT policy first if there is none
    python train_pref.py --loss dpop --adapter sequential --adapter_rank 64 --lr 2e-3
    python train_pref.py --loss dpo --data hh --max_len 512 --lr 2e-6 --batch_size 8 --grad_accum 8

The reference is the model that training starts from. Its log-probs are computed once, before training (reference.py).
Writes out/<data>/<loss>, evaluates it, and draws its page. docs/recipes.md has more commands.
Read first: objective.py. Read next: measures.py
"""
import inspect
from contextlib import nullcontext

import torch

import adapters
import chat
import data
import eval
import loop
import page
import reward
import sampling
import train_sft
import unpaired
try:
    from losses import LOSSES, Pairs
except ValueError as e:    # a loss that cannot be registered; the message says how to write it
    raise SystemExit(f"error: {e}") from None
from model import fingerprint
from objective import preference_loss
from reference import add_reference
from support import cli, parallel, rundir, sources
from support.registry import try_out

def get_args(argv=None):
    """Parses the flags. A wrong one ends the script in one line."""
    p = cli.Parser(__doc__)
    cli.add_common_flags(p)
    cli.add_adapter_flags(p, adapters.MODES, adapters.INITS)
    cli.add_pair_flags(p)
    p.add_argument("--n_show", type=cli.count, default=3, help="samples to print at the end (default: %(default)s)")
    cli.add_loss_flags(p, LOSSES, taken=inspect.signature(loop.fit).parameters)
    p.set_defaults(batch_size=32, lr=1e-3, warmup_steps=10, max_steps=120, eval_every=30, adam_epsilon=None)
    args = p.parse_args(argv)
    if args.resume:
        args = cli.resume(p, args, argv, "train_pref.py", args.loss)
    start = args.init_from or train_sft.run_dir(args.data)
    with cli.bad_input():
        about = adapters.read_about(start)
    cli.check_adapter_flags(p, args, start, about)
    cli.check_loss_flags(p, args, LOSSES)
    cli.check_sampling_flags(p, args)
    if args.adam_epsilon is None:
        args.adam_epsilon = 1e-3 if args.data == "toy" and not args.adapter else 1e-8
    return args

def prepare(args, hparams):
    """
    Loads model and rows, and creates the run directory. about: adapter.json of --init_from; base: a fingerprint.
    hparams: of the loss. Its weights are set to those that unpaired.weigh gives.
    """
    sources.check_source(args.data, args.data_dir, training=True)
    rundir.check_out_dir(args.out_dir, args.resume)
    args.init_from = args.init_from or train_sft.policy_for(**cli.flags_of(args, train_sft.policy_for))
    device, autocast = cli.set_up(**cli.flags_of(args, cli.set_up))
    model, about = adapters.load_model(args.init_from, args.dropout)
    model = model.to(device).eval()
    tokenizer = data.get_tokenizer(args.data, model.config.vocab_size)
    cli.check_fits(model, tokenizer, args.max_len, args.init_from)
    base, sampled = fingerprint(model), {}    # sampled: the file of the pairs, for args.json
    if args.data in ("toy", "imdb"):
        ranked_by = reward.Reward(args.reward, tokenizer, args.max_len, device, args.batch_size, autocast)
        sampled["pairs"], rows = sampling.sampled_pairs(
            model, tokenizer, base, ranked_by, data=args.data, folder=args.init_from, n_prompts=args.n_prompts,
            max_len=args.max_len, seed=args.seed, data_dir=args.data_dir, prompt_tokens=args.prompt_tokens,
            labels=args.labels)
    else:
        rows = data.load_rows(args.data, args.data_dir, tokenizer, args.max_len, args.max_prompt_len, n_val=args.n_val,
                              labeled=True)
    swapped = sum(data.flip_labels(part, args.label_noise, args.seed) for part in rows.values())
    made_from = {"data_fingerprint": data.fingerprint(rows),
                 "prompt_format": chat.prompt_format(rows["train"], tokenizer), **sampled}
    rows, counted = unpaired.as_pairs(rows, args.data, args.loss, LOSSES, hparams, weighting=args.weighting,
                                      seed=args.seed, share_prefix=args.share_prefix)
    if args.adapter and not about:
        init = (args.adapter_init or "neurons") if args.adapter == "replace" else "random"
        adapters.add_adapters(model, args.adapter, args.adapter_rank or 16, init)
    out_dir = rundir.claim_run_dir(args, "train_pref.py", args.loss, hparams=hparams, reference_fingerprint=base,
                                   **made_from)
    shown = " ".join(f"{k}={float(f'{v:.6g}') if type(v) is float else v}" for k, v in hparams.items())
    print(f"{args.loss} {shown}: {counted}{f' ({swapped:,} of both swapped)' if swapped else ''}; "
          f"{cli.parameter_counts(model)}; reference {args.init_from} -> {out_dir}")
    if args.adapter == "replace" and not about:
        print("adapter replace: policy and reference differ from the start, so the first KL is not 0")
    return model, about, base, rows, autocast

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
        model, about, base, rows, autocast = prepare(args, hparams)

    # Batches of pairs. Their rows get the reference's log-probs once, here.
    if loss.needs_kl:
        for part in rows.values():
            unpaired.mismatch(part, args.max_len)
    batches = {split: data.Batches(part, args.batch_size, args.seed, args.share_prefix) for split, part in rows.items()}
    if loss.needs_ref:
        # The reference is the model without its new adapter. An adapter that training starts from is part of it.
        off = adapters.adapters_off if adapters.adapter_modules(model) and not about else nullcontext
        for part in batches.values():
            add_reference(model, part, autocast, off)
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
