"""
Preference optimization: one loop for every loss in losses.py.

    python train_pref.py --loss dpo                                         # the toy world; trains the SFT policy if there is none yet
    python train_pref.py --loss dpop --adapter sequential --adapter_rank 64 --lr 2e-3
    python train_pref.py --loss dpo --data hh --init_from out/hh/sft --max_len 512 --lr 5e-6 --batch_size 8 --grad_accum 8

The reference is the model that training starts from. Its log-probs are computed once, before the first update, and kept with the
rows, so no second model is in memory. Writes out/<data>/<loss>, and ends with what changed. Read first: losses.py, loop.py, train_sft.py
"""
import inspect
import os
from contextlib import nullcontext

import torch

import adapters
import chat
from support import cli, parallel, rundir, sources
import data
import sampling
import eval
import loop
import reward
import train_sft
from logps import batch_logps, sequence_logps
try:
    from losses import LOSSES, Pairs, try_out
except ValueError as e:    # from register: one line that says how to write the loss, and no traceback
    raise SystemExit(f"error: {e}") from None
from model import fingerprint

def get_args(argv=None):
    p = cli.Parser(__doc__)
    cli.add_common_flags(p)
    p.add_argument("--adapter", choices=adapters.MODES, help="train an adapter in every block, freeze the rest (default: train everything)")
    p.add_argument("--adapter_rank", type=cli.positive, help="hidden units of an adapter (default: 16)")
    p.add_argument("--adapter_init", choices=adapters.INITS, help="for replace: random, or the MLP's best neurons (default: neurons)")
    p.add_argument("--share_prefix", action="store_true", help="a pair's prompt once, for both completions: the same numbers, fewer tokens")
    p.add_argument("--label_noise", type=cli.not_negative, default=0.0,
                   help="share of pairs, in training and validation, whose labels are swapped")
    cli.add_sampling_flags(p)
    p.add_argument("--n_show", type=cli.count, default=3, help="samples to print at the end (default: %(default)s)")
    cli.add_loss_flags(p, LOSSES, taken=inspect.signature(loop.fit).parameters)
    p.set_defaults(batch_size=32, lr=1e-3, warmup_steps=10, max_steps=120, eval_every=30, adam_epsilon=None)
    args = p.parse_args(argv)
    if args.resume:
        args = cli.resume(p, args, argv, "train_pref.py", args.loss)
    start = args.init_from or train_sft.run_dir(args)
    with cli.bad_input():
        about = adapters.read_about(start)
    cli.take_adapter(p, args, start, about)
    if args.adam_epsilon is None:
        args.adam_epsilon = 1e-3 if args.data == "toy" and not args.adapter else 1e-8
    cli.resolve_loss_flags(p, args, LOSSES)
    cli.check_sampling_flags(p, args)
    cli.refuse(p, args, (("adapter_rank", args.adapter, "without --adapter"),
                         ("adapter_init", args.adapter == "replace", "without --adapter replace")))
    return args

@torch.no_grad()
def add_reference(model, batches, autocast, off=nullcontext):
    """Puts the reference's summed log-probs, nats, into every row. off: a context in which model is the reference."""
    device = next(model.parameters()).device
    names = ("ref_chosen_logps", "ref_rejected_logps", "ref_kl_logps")[:3 if "mismatched" in batches.rows[0] else 2]
    groups, found = list(batches.groups()), []
    for rows in groups:
        mine, table = rows[parallel.rank()::parallel.world()], torch.zeros(len(rows), len(names))    # other processes fill in the rest
        if mine:
            batch = loop.to_device(batches.collate(mine), device)
            with autocast, off(model):
                logps = list(batch_logps(model, batch)[0].chunk(2))    # chosen, rejected: (B,) each
                if len(names) == 3:
                    logps.append(sequence_logps(model, batch["kl_idx"], batch["kl_mask"])[0])    # (B,)
            table[parallel.rank()::parallel.world()] = torch.stack(logps, 1).cpu()
        found += table.flatten().tolist()
    found = iter(parallel.totals(found))
    for row in (row for rows in groups for row in rows):
        row.update(zip(names, found))

def preference_loss(model, batch, loss, hparams, mean_logps=False, sft_weight=0.0):
    """The mean loss of a batch of pairs, (), and what is logged. loss: an entry of LOSSES; hparams: its hyperparameters at this update."""
    logps, lens = batch_logps(model, batch)    # (2B,), chosen on top of rejected
    (chosen, rejected), (chosen_lens, rejected_lens) = logps.chunk(2), lens.chunk(2)    # (B,) each
    pairs = Pairs(chosen, rejected, batch.get("ref_chosen_logps"), batch.get("ref_rejected_logps"), chosen_lens, rejected_lens)
    if loss.needs_kl:
        with torch.no_grad():
            kl_logps, kl_lens = sequence_logps(model, batch["kl_idx"], batch["kl_mask"])    # (B,)
        pairs.kl_logratios = parallel.mean((kl_logps - batch["ref_kl_logps"]) / (kl_lens if mean_logps else 1), batch["weight"])
    pairs = pairs.per_token() if mean_logps else pairs
    losses, chosen_rewards, rejected_rewards = loss.fn(pairs, **hparams)    # (B,) each
    losses = losses - sft_weight * chosen / chosen_lens if sft_weight else losses
    margins = chosen_rewards - rejected_rewards
    return losses.mean(), {
        "rewards/chosen": chosen_rewards.mean(), "rewards/rejected": rejected_rewards.mean(), "rewards/margins": margins.mean(),
        "rewards/accuracies": ((margins > 0).float() + 0.5 * (margins == 0).float()).mean(),    # a tie counts half
        "logps/chosen": chosen.detach().mean(), "logps/rejected": rejected.detach().mean(),
        **({"beta": hparams["beta"]} if "beta" in hparams else {})}

def main(argv=None):
    args = get_args(argv)
    with cli.interruptible("train_pref.py", args, argv):
        return train(args)

def train(args):
    """Returns fit's result and, in the first process, what eval.json holds."""
    loss, hparams = LOSSES[args.loss], {h: getattr(args, h) for h in LOSSES[args.loss].hparams}
    if loss.whole_batch and int(os.environ.get("WORLD_SIZE", 1)) > 1:    # before the processes meet, as each of them knows it
        with cli.bad_input():
            raise ValueError(f"--loss {args.loss} sorts all pairs of a batch, which no process has by itself: run it in one process")
    parallel.join(args.device)

    def hparams_at(step):
        """The hyperparameters of an update, where beta may be annealed; validation has the last throughout, or losses could not compare."""
        beta = loop.anneal(step, args.beta, args.beta_end, args.beta_schedule, args.max_steps)
        return hparams | {"beta": beta} if "beta" in hparams else hparams

    with cli.bad_input():
        for step in (1, args.max_steps):
            try_out(args.loss, hparams_at(step))    # a hyperparameter out of its range shows here, not after an hour
        sources.check_source(args.data, args.data_dir, training=True)
        rundir.check_out_dir(args)
        args.init_from = args.init_from or train_sft.policy_for(args)
        device, autocast = cli.set_up(args)
        model, start = adapters.load_model(args.init_from, args.dropout)    # start: adapter.json of an adapter run
        model = model.to(device).eval()
        tokenizer = data.get_tokenizer(args.data, model.config.vocab_size)
        cli.check_fits(model, tokenizer, args.max_len, args.init_from)
        base, pairs = fingerprint(model), {}
        if args.data in ("toy", "imdb"):
            ranked_by = reward.Reward(args.reward, tokenizer, args.max_len, device, args.batch_size, autocast)
            pairs["pairs"], rows = sampling.sampled_pairs(
                model, tokenizer, base, ranked_by, data=args.data, folder=args.init_from, n_prompts=args.n_prompts,
                max_len=args.max_len, seed=args.seed, data_dir=args.data_dir, prompt_tokens=args.prompt_tokens)
        else:
            rows = data.load_rows(args.data, args.data_dir, tokenizer, args.max_len, args.max_prompt_len, n_val=args.n_val)
        flipped = sum(data.flip_labels(part, args.label_noise, args.seed) for part in rows.values())
        if args.adapter and not start:
            init = (args.adapter_init or "neurons") if args.adapter == "replace" else "random"
            adapters.add_adapters(model, args.adapter, args.adapter_rank or 16, init)
        out_dir = rundir.claim_run_dir(args, "train_pref.py", args.loss, hparams=hparams, reference_fingerprint=base,
                                    data_fingerprint=data.fingerprint(rows),
                                    prompt_format=chat.prompt_format(rows["train"], tokenizer), **pairs)
    trained, frozen = (sum(p.numel() for p in model.parameters() if p.requires_grad == yes) for yes in (True, False))
    print(f"{args.loss} {' '.join(f'{k}={v}' for k, v in hparams.items())} on {len(rows['train']):,} pairs, {len(rows['val']):,} for "
          f"validation{f' ({flipped:,} of all swapped)' if flipped else ''}; {trained:,} parameters train, {frozen:,} are frozen; the "
          f"reference is {args.init_from} -> {out_dir}")
    if args.adapter == "replace" and not start:
        print("adapter replace: policy and reference differ from the start, so the first loss and KL are not those of policy == reference")
    for part in rows.values() if loss.needs_kl else ():
        data.mismatch(part, args.max_len)
    batches = {split: data.Batches(rows[split], args.batch_size, args.seed, args.share_prefix) for split in ("train", "val")}
    # what training starts from: the adapter of an adapter run is part of it, a new one is not
    off = adapters.adapters_off if adapters.adapter_modules(model) and not start else nullcontext
    for part in batches.values() if loss.needs_ref else ():
        add_reference(model, part, autocast, off)
    if args.compile:
        model.features = torch.compile(model.features, dynamic=True)

    def compute_loss(batch):
        step = batch["step"] if model.training else args.max_steps
        return preference_loss(model, batch, loss, hparams_at(step), args.mean_logps, args.sft_weight or 0.0)

    root = (start["base"], start["base_fingerprint"]) if start else (args.init_from, base)    # without any adapter
    save = (lambda folder: adapters.save_adapter(model, folder, *root)) if args.adapter else model.save_pretrained
    result = loop.fit(model, compute_loss, batches["train"], batches["val"], save=save, autocast=autocast,
                      show=("rewards/accuracies", "rewards/margins"), go_on=cli.go_on(), **cli.flags_of(args, loop.fit))
    print()
    look = ["--run", str(out_dir), "--show", str(args.n_show), *cli.pass_on(args, "device", "dtype", "threads")]
    return result | (eval.main(look, say=lambda line: None) if parallel.leave() else {})

if __name__ == "__main__":
    main()
