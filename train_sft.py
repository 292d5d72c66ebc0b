"""
Supervised fine-tuning: the policy that preference optimization starts from, and its reference.

    python train_sft.py                                                     # the toy world, from scratch, half a minute
    python train_sft.py --data hh --init_from gpt2 --max_len 512 --lr 2e-5 --batch_size 8 --grad_accum 8
    python train_sft.py --data my_texts.jsonl --n_layer 6 --n_embd 384 --n_head 6 --max_len 256

Data with a prompt trains on the completion alone (of pairs, the chosen one); data with only a text trains on all of it.
Writes out/<data>/sft. Read first: model.py, data.py, loop.py. Read next: train_pref.py
"""
import torch

import cli
import data
import loop
import sources
from logps import sequence_logps
from model import GPT, GPTConfig

def get_args(argv=None):
    p = cli.Parser(__doc__)
    cli.add_common_flags(p)
    p.add_argument("--n_layer", type=cli.positive, help="blocks of a model from scratch (default: 2)")
    p.add_argument("--n_head", type=cli.positive, help="attention heads of a model from scratch (default: 4)")
    p.add_argument("--n_embd", type=cli.positive, help="width of a model from scratch (default: 128)")
    p.set_defaults(batch_size=24, lr=7e-3, warmup_steps=60, max_steps=600, eval_every=100)
    args = p.parse_args(argv)
    if args.resume:
        args = cli.resume(p, args, argv, "train_sft.py", "sft")
    sizes = [f for f in ("n_layer", "n_head", "n_embd") if getattr(args, f)]
    if args.init_from and sizes:
        p.error(f"--{sizes[0]} has no effect with --init_from, which brings its own sizes")
    return args

def make_model(args, tokenizer):
    """The model to start from, with what does not fit refused."""
    if not args.init_from:
        return GPT(GPTConfig(block_size=args.max_len, vocab_size=tokenizer.n_vocab, n_layer=args.n_layer or 2, n_head=args.n_head or 4,
                             n_embd=args.n_embd or 128, dropout=args.dropout))
    model = GPT.from_pretrained(args.init_from, args.dropout)
    cli.check_fits(model, tokenizer, args.max_len, args.init_from)
    return model

def sft_loss(model, batch):
    """The mean negative log-prob of a batch's completion tokens, () in nats, and what is logged."""
    logps, lens = sequence_logps(model, batch["idx"], batch["completion_mask"])    # (B,), (B,)
    loss = -logps.sum() / lens.sum()    # a mean over tokens, so that long completions count by their length
    return loss, {"perplexity": loss.detach().exp()}

def main(argv=None):
    args = get_args(argv)
    with cli.bad_input():
        sources.check_source(args.data, args.data_dir)
        cli.check_out_dir(args)
        device, autocast = cli.set_up(args)
        tokenizer = data.get_tokenizer(args.data)
        model = make_model(args, tokenizer).to(device)
        rows = data.load_rows(args.data, args.data_dir, tokenizer, args.max_len, args.max_prompt_len, pairs=False)
        out_dir = cli.claim_run_dir(args, "train_sft.py", "sft")
    n = sum(p.numel() for p in model.parameters())
    print(f"SFT of a GPT with {n:,} parameters on {args.data} -> {out_dir}")
    if args.compile:
        model.features = torch.compile(model.features, dynamic=True)

    batches = {split: data.Batches(rows[split], args.batch_size, args.seed) for split in ("train", "val")}
    return loop.fit(model, lambda batch: sft_loss(model, batch), batches["train"], batches["val"], save=model.save_pretrained,
                    autocast=autocast, show=("perplexity",), go_on=cli.go_on("train_sft.py", args), **cli.fit_flags(args))

if __name__ == "__main__":
    main()
