"""
A reward model: GPT-2 with a scalar at its end, from pairs (Bradley-Terry) or from labels.

    python -m rlhf.train_reward                                                    # toy: pairs from out/toy/sft, ranked by the true reward
    python -m rlhf.train_reward --data hh --init_from out/hh/sft --max_len 512 --lr 1e-5 --batch_size 8 --grad_accum 8
    python -m rlhf.train_reward --data imdb --init_from out/imdb/sft --half first --lr 3e-4    # and --half second, the gold one

    pairs   L = -log sigmoid(r(x, y_w) - r(x, y_l)), r the scalar at the last token      Bradley and Terry 1952; arXiv:2009.01325
    labels  L = -log sigmoid(+-r(y<=t)), in the mean over a text's tokens: what is scored later are beginnings of texts

r is in nats: a difference of 1 says odds of e : 1 for the better one. Only differences count for pairs, so r has no zero there.
Writes out/<data>/reward, with reward.json: accuracy and calibration on texts that it has not seen. Read first: train_pref.py
"""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from support import cli, parallel, rundir, sources
import data
import sampling
import loop
import measures
import reward
import toy
import train_sft
from support.checkpoint import write_json
from model import GPT, ScalarGPT, fingerprint

def get_args(argv=None):
    p = cli.Parser(__doc__)
    cli.add_common_flags(p)
    p.add_argument("--half", choices=("first", "second"), help="imdb: learn from this half of the labels alone (default: from all)")
    p.add_argument("--n_prompts", type=cli.positive, help="toy: prompts to sample training pairs for, 4 completions each (default: 1200)")
    p.set_defaults(lr=3e-3, warmup_steps=10, max_steps=300, eval_every=30)
    args = p.parse_args(argv)
    if args.resume:
        args = cli.resume(p, args, argv, "rlhf/train_reward.py", "reward")
    cli.refuse(p, args, (("half", args.data == "imdb", "without --data imdb"), ("n_prompts", args.data == "toy", "without --data toy"),
                         ("n_val", args.data != "toy", "on --data toy"), ("compile", False, "here"),
                         ("max_prompt_len", args.data not in ("toy", "imdb"), f"on --data {args.data}")))
    return args

# ---------------------------------------------------------------------------------------------------------------------
# the two losses

def last_place(mask):
    """mask (N, T) -> (N, 1): where the last token under it stands."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1, keepdim=True)

def last(values, mask):
    """values (N, T), mask (N, T) -> (N,): the value at the last token under the mask."""
    return values.gather(1, last_place(mask)).squeeze(1)

def pair_loss(model, batch):
    """Bradley-Terry on pairs, chosen on top of rejected: (), and what is logged."""
    chosen, rejected = last(model(batch["idx"]).float(), batch["completion_mask"]).chunk(2)    # (B,) each
    margins = chosen - rejected
    return -F.logsigmoid(margins).mean(), {"accuracy": measures.ties_half(margins).mean(), "margin": margins.detach().mean()}

def label_loss(model, batch):
    """The label at every token of a text, (), and the accuracy at its last one."""
    mask, scores = batch["completion_mask"], model(batch["idx"]).float()    # (N, T)
    sign = 2.0 * batch["label"][:, None] - 1                                # (N, 1): 1 or -1
    losses = -(F.logsigmoid(sign * scores) * mask).sum(1) / mask.sum(1)     # (N,)
    return losses.mean(), {"accuracy": measures.ties_half(last(sign * scores, mask)).mean()}

# ---------------------------------------------------------------------------------------------------------------------
# rows, and what was learned

def labelled(data_dir, tokenizer, max_len, half, n_val=None, say=print):
    """{"train", "val", "test"}: rows of IMDB with a label, of a half of the training texts or of all; test without what is in them."""
    splits, dropped = sources.load_examples("imdb", data_dir, pairs=False)
    splits = {split: [e for e in part if e["positive"] is not None] for split, part in splits.items()}
    known = {e["chosen"] for e in splits.get("train", ())}
    test = [e for e in splits.get("test", ()) if e["chosen"] not in known]
    dropped["of the test that are in training"] = len(splits.get("test", ())) - len(test)
    rows = {}
    for split, part in (("train", splits.get("train", [])), ("test", test)):
        rows[split], more = data.make_rows(part, tokenizer, max_len, labels=True)
        dropped += more
    rows = data.divide({"train": rows["train"]}, tokenizer.eot_token)[0] | {"test": rows["test"]}
    rows["val"] = data.subsample(rows["val"], n_val)
    if half:    # every second one: the file has all of one label first
        rows["train"] = rows["train"][half == "second"::2]
    n = {split: f"{len(part):,}" for split, part in rows.items()}
    reasons = ", ".join(f"{count:,} {why}" for why, count in dropped.items()) or "none"
    say(f"data: imdb, {n['train']} reviews with labels to train on, {n['val']} to validate, {n['test']} to test; dropped: {reasons}")
    if not all(rows.values()):
        raise ValueError("imdb: training, validation and test need labelled reviews each")
    return rows

def calibration(p, right, bins=10):
    """(error, rows): rows of (mean predicted probability, share that was right, how many); the error is their mean distance (ECE)."""
    place, rows = np.minimum((p * bins).astype(int), bins - 1), []
    for b in range(bins):
        if (place == b).any():
            rows.append((float(p[place == b].mean()), float(right[place == b].mean()), int((place == b).sum())))
    return sum(abs(x - y) * n for x, y, n in rows) / len(p), rows

def judge_pairs(model, rows, batch_size, autocast):
    """
    Accuracy and calibration of the predicted preference on pairs; each is turned by its place, or the chosen would always be first.
    And where the true rewards of both sides are known, their rank correlation with the scores, over all prompts.
    """
    chosen, rejected = (reward.scores(model, [r["prompt"] + r[s] for r in rows], batch_size, autocast) for s in ("chosen", "rejected"))
    gap, turned = chosen - rejected, np.arange(len(rows)) % 2 == 1
    error, table = calibration(1 / (1 + np.exp(-np.where(turned, -gap, gap))), ~turned)
    found = {"accuracy": measures.bootstrap(measures.ties_half(gap)), "calibration_error": error, "calibration": table, "n": len(rows)}
    if "rewards" in rows[0]:
        true = np.array([r["rewards"] for r in rows])    # (n, 2)
        found["agreement"] = measures.rank_correlation(true.flatten(), np.stack([chosen, rejected], 1).flatten())
    return found

def judge_labels(model, rows, batch_size, autocast):
    """Accuracy and calibration of P(positive) on labelled texts."""
    return judge_scores(reward.scores(model, [r["prompt"] + r["chosen"] for r in rows], batch_size, autocast), rows)

def judge_scores(scores, rows):
    """The same of anyone's log-odds, (n,)."""
    error, table = calibration(1 / (1 + np.exp(-scores)), np.array([r["label"] == 1 for r in rows]))
    return {"accuracy": measures.bootstrap(right(scores, rows)), "calibration_error": error, "calibration": table, "n": len(rows)}

def right(scores, rows):
    """(n,): 1 where the sign of the log-odds is the label's, 0 where it is not, half for a tie."""
    return measures.ties_half(np.where([r["label"] == 1 for r in rows], scores, -scores))

def main(argv=None):
    """Returns fit's result and what reward.json holds."""
    args = get_args(argv)
    with cli.interruptible("-m rlhf.train_reward", args, argv):
        return train(args)

def train(args):
    """All of main, of flags that are known."""
    parallel.join(args.device)
    with cli.bad_input():
        sources.check_source(args.data, args.data_dir, training=True)
        rundir.check_out_dir(args.out_dir, args.resume)
        args.init_from = args.init_from or train_sft.policy_for(**cli.flags_of(args, train_sft.policy_for))
        device, autocast = cli.set_up(**cli.flags_of(args, cli.set_up))
        model = ScalarGPT.from_pretrained(args.init_from, args.dropout).to(device)
        tokenizer = data.get_tokenizer(args.data, model.config.vocab_size)
        cli.check_fits(model, tokenizer, args.max_len, args.init_from)
        if args.data == "toy":
            policy = GPT.from_pretrained(args.init_from).to(device).eval()
            true = reward.Reward(None, tokenizer, args.max_len, device, args.batch_size, autocast)
            _, rows = sampling.sampled_pairs(policy, tokenizer, fingerprint(policy), true, data="toy", folder=args.init_from,
                                             n_prompts=args.n_prompts or 1200, max_len=args.max_len, seed=args.seed)
            rows["test"] = fresh_pairs(policy, tokenizer, args.max_len, args.seed)
        elif args.data == "imdb":
            rows = labelled(args.data_dir, tokenizer, args.max_len, args.half, args.n_val)
        else:
            rows = data.load_rows(args.data, args.data_dir, tokenizer, args.max_len, args.max_prompt_len, n_val=args.n_val)
        out_dir = rundir.claim_run_dir(args, "rlhf/train_reward.py", "reward", data_fingerprint=data.fingerprint(rows),
                                    init_fingerprint=fingerprint(model))
    compute = label_loss if args.data == "imdb" else pair_loss
    print(f"reward model with {sum(p.numel() for p in model.parameters()):,} parameters, from {args.init_from} -> {out_dir}")
    batches = {split: data.Batches(rows[split], args.batch_size, args.seed) for split in ("train", "val")}
    result = loop.fit(model, lambda batch: compute(model, batch), batches["train"], batches["val"], save=model.save_pretrained,
                      autocast=autocast, show=("accuracy",), go_on=cli.go_on(), **cli.flags_of(args, loop.fit))
    if not parallel.leave():
        return result
    best = ScalarGPT.from_pretrained(out_dir).to(device).eval()
    look = judge_labels if args.data == "imdb" else judge_pairs
    found = look(best, rows.get("test", rows["val"]), args.batch_size, autocast)
    write_json(Path(out_dir) / "reward.json", found)
    what = {"imdb": "test reviews", "toy": "fresh pairs"}.get(args.data, "validation pairs, which chose the weights too")
    accuracy = found["accuracy"]
    print(f"accuracy on {found['n']:,} {what}: {accuracy[0]:.3f} [{accuracy[1]:.3f}, {accuracy[2]:.3f}], calibration error "
          f"{found['calibration_error']:.3f}")
    if "agreement" in found:
        print(f"rank correlation with the true reward {found['agreement']:.3f}")
    for line in measures.notes(pairs=len(rows["val"]) if compute is pair_loss else None):
        print(f"note: {line}")
    return result | found

def fresh_pairs(policy, tokenizer, max_len, seed):
    """Pairs of fresh samples for test prompts, the better one by the true reward first, with those rewards; ties left out."""
    prompts = tokenizer.encode_ordinary_batch([e["prompt"] for e in toy.examples("test", 256, seed)])
    flat = sampling.sample_completions(policy, tokenizer, [p for p in prompts for _ in range(2)], max_len - toy.PROMPT_LEN, seed=seed + 1)
    rows = []
    for i, prompt in enumerate(prompts):
        drawn = [(toy.reward(tokenizer.decode(prompt) + data.decode(tokenizer, a)), a) for a in flat[2 * i:2 * i + 2]]
        rows += [{"prompt": prompt, "chosen": a, "rejected": b, "rewards": (r, s)}
                 for r, a in drawn for s, b in drawn if r > s]    # at most one
    return rows

if __name__ == "__main__":
    main()
