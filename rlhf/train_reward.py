"""
A reward model: GPT-2 with a scalar head, trained on preference pairs (Bradley-Terry) or on labels.

    python -m rlhf.train_reward    # toy: pairs sampled from out/toy/sft and ranked by the exact reward
    python -m rlhf.train_reward --data hh --init_from out/hh/sft --max_len 512 --lr 1e-5 --batch_size 8 --grad_accum 8
    python -m rlhf.train_reward --data imdb --init_from out/imdb/sft --half first --lr 3e-4

Pairs   L = -log sigmoid(r(x, y_w) - r(x, y_l)),   r(x, y) = scalar at the last token of y.
        Bradley and Terry 1952; for language models Stiennon et al. 2020, arXiv:2009.01325
Labels  L = mean over the tokens of a text of -log sigmoid(+r) if it is positive, -log sigmoid(-r) if it is negative,
        r = scalar at the token. Every token has the label, because the model later scores the beginnings of reviews

r is in nats. A difference of 1 nat means odds of e : 1 for the better completion. Pairs determine only differences:
adding a constant to r changes nothing. With labels, sigmoid(r) is P(positive).

On imdb, train a second model with --half second. It measures policies that were trained with the first one.
Writes out/<data>/reward. Its reward.json has accuracy and calibration on held-out texts. docs/rlhf.md has the results.
Read first: train_pref.py, reward.py. Read next: rlhf/formulas.py
"""
from pathlib import Path

import numpy as np
import torch.nn.functional as F

import data
import loop
import measures
import reward
import sampling
import toy
import train_sft
from model import GPT, ScalarGPT, fingerprint
from rlhf.formulas import last_place
from support import cli, parallel, rundir, sources
from support.checkpoint import write_json

def get_args(argv=None):
    p = cli.Parser(__doc__)
    cli.add_common_flags(p)
    p.add_argument("--half", choices=("first", "second"),
                   help="imdb: train on this half of the labels (default: on all of them)")
    p.add_argument("--n_prompts", type=cli.positive,
                   help="toy: prompts to sample training pairs for, 4 completions each (default: 1200)")
    p.set_defaults(lr=3e-3, warmup_steps=10, max_steps=300, eval_every=30)
    args = p.parse_args(argv)
    if args.resume:
        args = cli.resume(p, args, argv, "rlhf/train_reward.py", "reward")
    cli.refuse(p, args, (("half", args.data == "imdb", "without --data imdb"),
                         ("n_prompts", args.data == "toy", "without --data toy"),
                         ("n_val", args.data != "toy", "on --data toy"),
                         ("compile", False, "here"),
                         ("max_prompt_len", args.data not in ("toy", "imdb"), f"on --data {args.data}")))
    return args

# ---------------------------------------------------------------------------------------------------------------------
# the two losses

def at_last_token(values, mask):
    """The value at the last token under the mask of each row. values, mask (N, T) -> (N,)."""
    return values.gather(1, last_place(mask)).squeeze(1)

def pair_loss(model, batch):
    """
    (loss (), metrics) of B pairs: the Bradley-Terry loss -log sigmoid(r(x, chosen) - r(x, rejected)), in nats.
    A batch has the B chosen completions on top of the B rejected ones: idx, completion_mask (2B, T). The score r of a
    completion is the model's scalar at its last token: model(idx) -> (2B, T). Its precision here is float32.

    The metrics have no gradient. accuracy: the share of pairs whose chosen completion has the higher score, a tie
    counts half. margin: the mean of the differences, in nats.
    """
    scores = model(batch["idx"]).float()                                           # (2B, T)
    chosen, rejected = at_last_token(scores, batch["completion_mask"]).chunk(2)    # (B,) each
    margins = chosen - rejected
    metrics = {"accuracy": measures.ties_half(margins).mean(), "margin": margins.detach().mean()}
    return -F.logsigmoid(margins).mean(), metrics

def label_loss(model, batch):
    """
    (loss (), metrics) of N labeled texts: -log P(label) in nats, the mean over a text's tokens, then over texts.
    The accuracy is that of the last token. idx, completion_mask (N, T); label (N,): 1 positive, 0 negative.
    """
    mask, scores = batch["completion_mask"], model(batch["idx"]).float()                     # (N, T) each
    sign = 2.0 * batch["label"][:, None] - 1                                                 # (N, 1): 1 or -1
    losses = -(F.logsigmoid(sign * scores) * mask).sum(1) / mask.sum(1)                      # (N,)
    return losses.mean(), {"accuracy": measures.ties_half(at_last_token(sign * scores, mask)).mean()}

# ---------------------------------------------------------------------------------------------------------------------
# rows

def load_labeled_reviews(data_dir, tokenizer, max_len, half, n_val=None, say=print):
    """
    {"train", "val", "test"}: rows of IMDB reviews that have a label. Test reviews that are in the training file are
    dropped. Prints the counts. Raises ValueError if a split is empty.

    half   "first", "second" or None: train on this half of the training reviews, or on all of them. Halves are disjoint
    n_val  at most so many validation rows (default: all)
    """
    # keep reviews with a label; drop test reviews that are also training reviews
    splits, dropped = sources.load_examples("imdb", data_dir, pairs=False)
    labeled = {split: [e for e in splits.get(split, ()) if e["positive"] is not None] for split in ("train", "test")}
    known = {e["chosen"] for e in labeled["train"]}
    fresh = [e for e in labeled["test"] if e["chosen"] not in known]
    dropped["test reviews that are in training too"] = len(labeled["test"]) - len(fresh)

    # tokenize, and split validation off training
    made = {}
    for split, examples in (("train", labeled["train"]), ("test", fresh)):
        made[split], more = data.make_rows(examples, tokenizer, max_len, labels=True)
        dropped += more
    rows = data.divide({"train": made["train"]}, tokenizer.eot_token)[0] | {"test": made["test"]}
    rows["val"] = data.subsample(rows["val"], n_val)
    if half:    # every second row and not a contiguous half: the file is sorted by label
        start = 1 if half == "second" else 0
        rows["train"] = rows["train"][start::2]

    reasons = ", ".join(f"{count:,} {why}" for why, count in dropped.items()) or "none"
    say(f"data: imdb, labeled reviews: {len(rows['train']):,} training, {len(rows['val']):,} validation, "
        f"{len(rows['test']):,} test; dropped: {reasons}")
    if not all(rows.values()):
        raise ValueError("imdb: training, validation and test each need labeled reviews, and one of them has none")
    return rows

def fresh_pairs(policy, tokenizer, max_len, seed):
    """
    Test pairs of the toy world: two new samples of the policy for each test prompt, the one of higher exact reward as
    chosen. Prompts whose two samples have equal rewards are left out. Each row also has "rewards": those of
    chosen and rejected.
    """
    prompts = tokenizer.encode_ordinary_batch([e["prompt"] for e in toy.examples("test", 256, seed)])
    repeated = [prompts[i // 2] for i in range(2 * len(prompts))]    # every prompt twice
    completions = sampling.sample_completions(policy, tokenizer, repeated, max_len - toy.PROMPT_LEN, seed=seed + 1)
    rows = []
    for prompt, *both in zip(prompts, completions[::2], completions[1::2]):
        scored = [(toy.reward(tokenizer.decode(prompt) + data.decode(tokenizer, c)), c) for c in both]
        (low, rejected), (high, chosen) = sorted(scored)
        if low < high:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "rewards": (high, low)})
    return rows

# ---------------------------------------------------------------------------------------------------------------------
# evaluation

def calibration(p, correct, bins=10):
    """
    Expected calibration error of predicted probabilities: Naeini et al. 2015, Guo et al. 2017, arXiv:1706.04599.

        error = sum over bins of n_bin / n * |mean p in the bin - share of correct in the bin|

    p (n,), correct (n,) bool: whether the predicted event happened. Bins have equal width on [0, 1]. A p on the edge
    of two bins belongs to the upper one, and p = 1 to the last one.
    Returns (error, table), table a list of (mean p, share correct, count), one for each bin that is not empty, from
    low p to high p.
    """
    place = np.minimum((p * bins).astype(int), bins - 1)    # p = 1 belongs to the last bin
    table = []
    for b in range(bins):
        inside = place == b
        if inside.any():
            table.append((float(p[inside].mean()), float(correct[inside].mean()), int(inside.sum())))
    error = sum(abs(predicted - share) * n for predicted, share, n in table) / len(p)
    return error, table

def hits(log_odds, happened):
    """(n,): 1 where the sign of the log-odds (n,) is that of the event (n,) bool, 0 where it is not, 1/2 at 0 nats."""
    return measures.ties_half(np.where(happened, log_odds, -log_odds))

def evaluate_log_odds(log_odds, happened):
    """
    What reward.json holds, for predictions of any model: accuracy with its 95% interval, calibration, and n.
    log_odds (n,): of an event, in nats; happened (n,) bool: whether it did.
    """
    error, table = calibration(reward.sigmoid(log_odds), happened)
    return {"accuracy": measures.bootstrap(hits(log_odds, happened)), "calibration_error": error,
            "calibration": table, "n": len(happened)}

def evaluate_pairs(model, rows, batch_size, autocast):
    """
    What reward.json holds for pairs. If rows have the true rewards, it also has "agreement": the rank correlation of
    scores and true rewards over all completions.
    """
    chosen, rejected = (reward.scores(model, [r["prompt"] + r[side] for r in rows], batch_size, autocast)
                        for side in ("chosen", "rejected"))                                    # (n,) each
    margins = chosen - rejected
    # Predict "the first one is better". The chosen one must be second in half of the pairs: if it were always first,
    # the answer would always be yes, and an overconfident model would look calibrated.
    swapped = np.arange(len(rows)) % 2 == 1
    found = evaluate_log_odds(np.where(swapped, -margins, margins), ~swapped)
    if "rewards" in rows[0]:
        true = np.array([r["rewards"] for r in rows])                                          # (n, 2)
        found["agreement"] = measures.rank_correlation(true.flatten(), np.stack([chosen, rejected], 1).flatten())
    return found

def evaluate_labels(model, rows, batch_size, autocast):
    """What reward.json holds for labeled texts: the score of a text is the log-odds that it is positive."""
    texts = [r["prompt"] + r["chosen"] for r in rows]
    return evaluate_log_odds(reward.scores(model, texts, batch_size, autocast), positive(rows))

def positive(rows):
    """(n,) bool: whether the label of a row is positive."""
    return np.array([r["label"] == 1 for r in rows])

def print_evaluation(found, texts):
    """Prints the content of reward.json. texts: what it was measured on, in words."""
    accuracy, low, high = found["accuracy"]
    print(f"accuracy on {found['n']:,} {texts}: {accuracy:.3f} [{low:.3f}, {high:.3f}], calibration error "
          f"{found['calibration_error']:.3f}")
    if "agreement" in found:
        print(f"rank correlation with the true reward {found['agreement']:.3f}")

# ---------------------------------------------------------------------------------------------------------------------
# training

def main(argv=None):
    """Trains and evaluates. Returns the results of loop.fit and the content of reward.json."""
    args = get_args(argv)
    with cli.interruptible("-m rlhf.train_reward", args, argv):
        return train(args)

def train(args):
    """Everything after the flags are checked: load, train, evaluate."""
    parallel.join(args.device)
    with cli.bad_input():
        sources.check_source(args.data, args.data_dir, training=True)
        rundir.check_out_dir(args.out_dir, args.resume)
        args.init_from = args.init_from or train_sft.policy_for(**cli.flags_of(args, train_sft.policy_for))
        device, autocast = cli.set_up(**cli.flags_of(args, cli.set_up))
        model = ScalarGPT.from_pretrained(args.init_from, args.dropout).to(device)
        model.activation_checkpointing = args.activation_checkpointing
        tokenizer = data.get_tokenizer(args.data, model.config.vocab_size)
        cli.check_fits(model, tokenizer, args.max_len, args.init_from)
        if args.data == "toy":
            policy = GPT.from_pretrained(args.init_from).to(device).eval()
            true = reward.Reward(None, tokenizer, args.max_len, device, args.batch_size, autocast)
            _, rows = sampling.sampled_pairs(policy, tokenizer, fingerprint(policy), true, data="toy",
                                             folder=args.init_from, n_prompts=args.n_prompts or 1200,
                                             max_len=args.max_len, seed=args.seed)
            rows["test"] = fresh_pairs(policy, tokenizer, args.max_len, args.seed)
        elif args.data == "imdb":
            rows = load_labeled_reviews(args.data_dir, tokenizer, args.max_len, args.half, args.n_val)
        else:
            rows = data.load_rows(args.data, args.data_dir, tokenizer, args.max_len, args.max_prompt_len,
                                  n_val=args.n_val)
        out_dir = rundir.claim_run_dir(args, "rlhf/train_reward.py", "reward", data_fingerprint=data.fingerprint(rows),
                                       init_fingerprint=fingerprint(model))

    compute_loss, evaluate = (label_loss, evaluate_labels) if args.data == "imdb" else (pair_loss, evaluate_pairs)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"reward model with {n_parameters:,} parameters, from {args.init_from} -> {out_dir}")
    batches = {split: data.Batches(rows[split], args.batch_size, args.seed) for split in ("train", "val")}
    result = loop.fit(model, lambda batch: compute_loss(model, batch), batches["train"], batches["val"],
                      save=model.save_pretrained, autocast=autocast, show=("accuracy",), go_on=cli.go_on(),
                      **cli.flags_of(args, loop.fit))
    if not parallel.leave():    # only the first process evaluates
        return result

    best = ScalarGPT.from_pretrained(out_dir).to(device).eval()
    found = evaluate(best, rows.get("test", rows["val"]), args.batch_size, autocast)
    write_json(Path(out_dir) / "reward.json", found)
    texts = {"imdb": "test reviews", "toy": "fresh pairs"}
    print_evaluation(found, texts.get(args.data, "validation pairs, which early stopping used too"))
    for line in measures.notes(pairs=len(rows["val"]) if compute_loss is pair_loss else None):
        print(f"note: {line}")
    return result | found

if __name__ == "__main__":
    main()
