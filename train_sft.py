"""
Supervised fine-tuning (SFT): trains the policy that preference optimization starts from, which is also its reference.

    python train_sft.py                                                     # toy, from random weights: half a minute
    python train_sft.py --data hh --init_from gpt2 --max_len 512 --lr 2e-5 --batch_size 8 --grad_accum 8
    python train_sft.py --data my_texts.jsonl --n_layer 6 --n_embd 384 --n_head 6 --max_len 256

Where data has prompts, only completions are trained on: of pairs, the chosen ones. Of plain texts, every token is.
Writes out/<data>/sft. docs/recipes.md has commands for each data set. Read next: reference.py
"""
from pathlib import Path

import torch

import adapters
import chat
import data
import loop
import measures
from logps import sequence_logps
from model import GPT, GPTConfig, fingerprint
from support import cli, parallel, rundir, sources, tokenizers

def get_args(argv=None):
    """Parses the flags. A wrong one ends the script in one line."""
    p = cli.Parser(__doc__)
    cli.add_common_flags(p)
    p.add_argument("--n_layer", type=cli.positive, help="blocks of a model from random weights (default: 2)")
    p.add_argument("--n_head", type=cli.positive, help="attention heads of a model from random weights (default: 4)")
    p.add_argument("--n_embd", type=cli.positive, help="width of a model from random weights (default: 128)")
    p.add_argument("--bpe_vocab", type=cli.positive,
                   help="vocabulary of a small model from random weights: only the first tokens of GPT-2's 50,256. Its "
                   "embedding is smaller, and texts have more tokens (default: all)")
    p.add_argument("--bpe", choices=("bytes",),
                   help="one token for each byte, for a small model from random weights; needs no files "
                   "(default: GPT-2's BPE)")
    p.set_defaults(batch_size=24, lr=7e-3, warmup_steps=60, max_steps=300, eval_every=100)
    args = p.parse_args(argv)
    if args.resume:
        args = cli.resume(p, args, argv, "train_sft.py", "sft")
    for size in ("n_layer", "n_head", "n_embd", "bpe_vocab", "bpe"):
        cli.refuse(p, args, ((size, not args.init_from, "with --init_from, which has its own sizes"),))
    cli.refuse(p, args, (("compile", not args.activation_checkpointing, "with --activation_checkpointing"),
                         ("bpe_vocab", args.data != "toy", "on --data toy, which has its own words"),
                         ("bpe", args.data != "toy", "on --data toy, which has its own words"),
                         ("bpe_vocab", not args.bpe, "with --bpe bytes, which has a vocabulary of 256")))
    if args.bpe_vocab and args.bpe_vocab < 256:
        p.error(f"--bpe_vocab {args.bpe_vocab}: must be at least 256, the tokens of the single bytes")
    return args

def make_model(data_name, *, init_from, n_layer, n_head, n_embd, bpe, bpe_vocab, max_len, dropout):
    """
    (model to start from, its tokenizer, adapter.json if it is an adapter run). Arguments are flags of the same names.
    Raises ValueError if the model does not fit the data.
    """
    if init_from:
        model, about = adapters.load_model(init_from, dropout)
        tokenizer = data.get_tokenizer(data_name, model.config.vocab_size)
        cli.check_fits(model, tokenizer, max_len, init_from)
        return model, tokenizer, about
    n_vocab = None    # all of GPT-2's BPE, or toy's words
    if bpe:
        n_vocab = tokenizers.BYTES
    elif bpe_vocab:
        n_vocab = bpe_vocab + 1    # EOS is one more token
    tokenizer = data.get_tokenizer(data_name, n_vocab)
    config = GPTConfig(block_size=max_len, vocab_size=tokenizer.n_vocab, n_layer=n_layer or 2, n_head=n_head or 4,
                       n_embd=n_embd or 128, dropout=dropout)
    return GPT(config), tokenizer, None

def sft_loss(model, batch):
    """
    The mean negative log-prob of a batch's completion tokens, (), in nats. Its exponential is the perplexity.
    It is a mean over tokens, not rows, so that a long completion counts by its length. No other metrics.
    """
    logps, lens = sequence_logps(model, batch["idx"], batch["completion_mask"])    # (B,), (B,)
    return -logps.sum() / lens.sum(), {}

def main(argv=None):
    """Returns fit's result."""
    args = get_args(argv)
    with cli.interruptible("train_sft.py", args, argv):
        return train(args)

def train(args):
    """The work of main, after the flags are parsed."""
    parallel.join(args.device)
    with cli.bad_input():
        sources.check_source(args.data, args.data_dir, training=True)
        rundir.check_out_dir(args.out_dir, args.resume)
        device, autocast = cli.set_up(**cli.flags_of(args, cli.set_up))
        model, tokenizer, about = make_model(args.data, **cli.flags_of(args, make_model))
        model = model.to(device)
        rows = data.load_rows(args.data, args.data_dir, tokenizer, args.max_len, args.max_prompt_len, False, args.n_val)
        # With what args.json records, a resumed run can tell that data or weights have changed.
        made_from = {"data_fingerprint": data.fingerprint(rows),
                     "prompt_format": chat.prompt_format(rows["train"], tokenizer)}
        if args.init_from:
            made_from["init_fingerprint"] = fingerprint(model)
        out_dir = rundir.claim_run_dir(args, "train_sft.py", "sft", **made_from)

    print(f"SFT on {args.data}: {cli.parameter_counts(model)} -> {out_dir}")

    batches = {split: data.Batches(rows[split], args.batch_size, args.seed) for split in ("train", "val")}
    model.activation_checkpointing = args.activation_checkpointing
    if args.compile:
        model.features = torch.compile(model.features, dynamic=True)
    save = model.save_pretrained
    if about:
        save = lambda folder: adapters.save_adapter(model, folder, about["base"], about["base_fingerprint"])
    result = loop.fit(model, lambda batch: sft_loss(model, batch), batches["train"], batches["val"], save=save,
                      autocast=autocast, go_on=cli.go_on(), **cli.flags_of(args, loop.fit))
    for line in measures.notes(val_loss=result["best_val_loss"], n_vocab=tokenizer.n_vocab):
        print(f"note: {line}")
    return result

def run_dir(data):
    """Where the SFT run of a data set is, unless --out_dir says otherwise."""
    return Path("out") / rundir.data_name(data) / "sft"

def policy_for(data, *, device="auto", threads=None, max_len=None, dtype=None):
    """
    The folder of the finished SFT run on a data set. On toy it is trained, or resumed, if needed, with these flags.
    Raises ValueError if there is none on other data.
    """
    run = run_dir(data)
    finished, begun = (run / "result.json").exists(), (run / "args.json").exists()
    parallel.wait()    # until every process has looked
    # Files of the same name in two folders share a run directory, so the run's args.json is asked for its data.
    if data != "toy" and not (finished and rundir.read_args(run)["args"]["data"] == data):
        raise ValueError(f"there is no finished SFT run on {data} at {run}: train one with train_sft.py, or name a "
                         "model with --init_from")
    if not finished:
        print(f"no SFT policy at {run} yet: training it first\n")
        more = ["--resume"] if begun else cli.words(max_len=max_len, dtype=dtype)
        main(["--out_dir", str(run), *cli.words(device=device, threads=threads), *more])
        print()
    return str(run)

if __name__ == "__main__":
    main()
    parallel.leave()
