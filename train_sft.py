"""
Supervised fine-tuning: the policy that preference optimization starts from, and its reference.

    python train_sft.py                                                     # the toy world, from scratch, half a minute
    python train_sft.py --data hh --init_from gpt2 --max_len 512 --lr 2e-5 --batch_size 8 --grad_accum 8
    python train_sft.py --data my_texts.jsonl --n_layer 6 --n_embd 384 --n_head 6 --max_len 256

Data with a prompt trains on the completion alone (of pairs, the chosen one); data with only a text trains on all of it.
Writes out/<data>/sft. Read first: model.py, data.py, loop.py. Read next: train_pref.py
"""
from pathlib import Path

import torch

import adapters
from support import cli, parallel, rundir, sources, tokenizers
import chat
import data
import loop
import measures
from logps import sequence_logps
from model import GPT, GPTConfig, fingerprint

def get_args(argv=None):
    p = cli.Parser(__doc__)
    cli.add_common_flags(p)
    p.add_argument("--n_layer", type=cli.positive, help="blocks of a model from scratch (default: 2)")
    p.add_argument("--n_head", type=cli.positive, help="attention heads of a model from scratch (default: 4)")
    p.add_argument("--n_embd", type=cli.positive, help="width of a model from scratch (default: 128)")
    p.add_argument("--bpe_vocab", type=cli.positive, help="of GPT-2's 50,256 byte pairs the first so many, for a small model from scratch: "
                   "a smaller matrix, more tokens (default: all)")
    p.add_argument("--bpe", choices=("bytes",), help="a token a byte, for a small model from scratch; needs no BPE "
                   "files (default: GPT-2's BPE)")
    p.set_defaults(batch_size=24, lr=7e-3, warmup_steps=60, max_steps=300, eval_every=100)
    args = p.parse_args(argv)
    if args.resume:
        args = cli.resume(p, args, argv, "train_sft.py", "sft")
    sizes = [f for f in ("n_layer", "n_head", "n_embd", "bpe_vocab", "bpe") if getattr(args, f)]
    if args.init_from and sizes:
        p.error(f"--{sizes[0]} has no effect with --init_from, which brings its own sizes")
    cli.refuse(p, args, (("bpe_vocab", args.data != "toy", "on --data toy, which has its own words"),
                         ("bpe", args.data != "toy", "on --data toy, which has its own words"),
                         ("bpe_vocab", not args.bpe, "with --bpe bytes, which is a vocabulary of 256")))
    if args.bpe_vocab and args.bpe_vocab < 256:
        p.error(f"--bpe_vocab {args.bpe_vocab}: the first 256 are the bytes, which any text may need")
    return args

def make_model(args):
    """(model to start from, its tokenizer, adapter.json if it is an adapter run), with what does not fit refused."""
    if not args.init_from:
        n_vocab = tokenizers.BYTES if args.bpe else args.bpe_vocab and args.bpe_vocab + 1    # and EOS
        tokenizer = data.get_tokenizer(args.data, n_vocab)
        return GPT(GPTConfig(block_size=args.max_len, vocab_size=tokenizer.n_vocab, n_layer=args.n_layer or 2, n_head=args.n_head or 4,
                             n_embd=args.n_embd or 128, dropout=args.dropout)), tokenizer, None
    model, about = adapters.load_model(args.init_from, args.dropout)
    tokenizer = data.get_tokenizer(args.data, model.config.vocab_size)
    cli.check_fits(model, tokenizer, args.max_len, args.init_from)
    return model, tokenizer, about

def sft_loss(model, batch):
    """The mean negative log-prob of a batch's completion tokens, () in nats; its exponential is the perplexity. Nothing else is logged."""
    logps, lens = sequence_logps(model, batch["idx"], batch["completion_mask"])    # (B,), (B,)
    return -logps.sum() / lens.sum(), {}    # a mean over tokens, so that long completions count by their length

def main(argv=None):
    args = get_args(argv)
    with cli.interruptible("train_sft.py", args, argv):
        return train(args)

def train(args):
    """Returns fit's result."""
    parallel.join(args.device)
    with cli.bad_input():
        sources.check_source(args.data, args.data_dir, training=True)
        rundir.check_out_dir(args)
        device, autocast = cli.set_up(args)
        model, tokenizer, about = make_model(args)
        model = model.to(device)
        rows = data.load_rows(args.data, args.data_dir, tokenizer, args.max_len, args.max_prompt_len, False, args.n_val)
        start = {"init_fingerprint": fingerprint(model)} if args.init_from else {}
        out_dir = rundir.claim_run_dir(args, "train_sft.py", "sft", data_fingerprint=data.fingerprint(rows),
                                    prompt_format=chat.prompt_format(rows["train"], tokenizer), **start)
    n = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"SFT of a GPT with {n:,} parameters on {args.data} -> {out_dir}"
          + (f"; of them {trained:,} train, those of the adapter" if about else ""))
    if args.compile:
        model.features = torch.compile(model.features, dynamic=True)

    batches = {split: data.Batches(rows[split], args.batch_size, args.seed) for split in ("train", "val")}
    save = model.save_pretrained
    if about:
        save = lambda folder: adapters.save_adapter(model, folder, about["base"], about["base_fingerprint"])
    result = loop.fit(model, lambda batch: sft_loss(model, batch), batches["train"], batches["val"], save=save,
                      autocast=autocast, go_on=cli.go_on(), **cli.flags_of(args, loop.fit))
    for line in measures.notes(val_loss=result["best_val_loss"], n_vocab=tokenizer.n_vocab):
        print(f"note: {line}")
    return result

def run_dir(args):
    return Path("out") / rundir.data_name(args.data) / "sft"

def policy_for(args):
    """The SFT run that preference training starts from; on the toy world it is made, or finished, if need be."""
    run = run_dir(args)
    there, begun = (run / "result.json").exists(), (run / "args.json").exists()
    parallel.wait()    # until all have looked
    if args.data != "toy" and not (there and rundir.read_args(run)["args"]["data"] == args.data):
        raise ValueError(f"there is no finished SFT run on {args.data} at {run}: train one with train_sft.py, or use --init_from")
    if not there:
        print(f"no SFT policy at {run} yet: training it first\n")
        going_on = ["--resume"] if begun else cli.pass_on(args, "max_len", "dtype")
        main(["--out_dir", str(run), *cli.pass_on(args, "device", "threads"), *going_on])
        print()
    return str(run)

if __name__ == "__main__":
    main()
    parallel.leave()
