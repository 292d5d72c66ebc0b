"""
Unpaired completions: thumbs up and down instead of pairs, and the mismatched completions of KTO.

    python train_pref.py --loss kto --data thumbs.jsonl    # rows of prompt, completion and label

    labeled row     prompt, chosen, label                       one completion; label 1: desirable, 0: undesirable
    unpaired row    prompt, chosen, rejected_prompt, rejected   a desirable and an undesirable one, each with its prompt

A loss that looks at each completion by itself, such as kto and bco, does not need both behind one prompt. So `paired`
puts any desirable completion beside any undesirable one, and batches, Pairs and reference work as for pairs.
docs/data.md has the layout of the file. Read first: toy.py. Read next: data.py
"""
import random

LABELS = ("undesirable", "desirable")    # the meaning of the labels 0 and 1

def prompt_of(row, side):
    """The prompt of a side, chosen or rejected: tokens. In an unpaired row each side has its own."""
    return row.get("rejected_prompt", row["prompt"]) if side == "rejected" else row["prompt"]

def apart(rows):
    """The completions of B rows as 2B rows of one completion, each with its prompt: all chosen, then all rejected."""
    completions = []
    for side in ("chosen", "rejected"):
        completions += [{"prompt": prompt_of(row, side), "chosen": row[side]} for row in rows]
    return completions

def mismatch(rows, max_len):
    """
    Gives each row "mismatched", for KTO's estimate of the KL: a row of its prompt and a completion of another prompt,
    cut to max_len tokens together. Every second row gets a rejected completion. The policy learns to prefer the chosen
    ones, so the estimate would be too high from these alone. In unpaired rows both sides give prompts too.
    """
    for i, row in enumerate(rows):
        prompt = prompt_of(row, ("chosen", "rejected")[i // 2 % 2])
        side = ("chosen", "rejected")[i % 2]
        j = (i + len(rows) // 2) % len(rows)    # neighbors often have the same prompt
        for _ in rows[:1000]:                   # not all rows: if all have the same prompt, none will do
            if prompt_of(rows[j], side) != prompt:
                break
            j = (j + 1) % len(rows)
        row["mismatched"] = {"prompt": prompt, "chosen": rows[j][side][:max(1, max_len - len(prompt))]}

# ---------------------------------------------------------------------------------------------------------------------
# labeled rows -> unpaired rows

def counts(rows):
    """(n desirable, n undesirable) of labeled rows."""
    n = sum(row["label"] for row in rows)
    return n, len(rows) - n

def counted(rows):
    """These counts as text."""
    return "{:,} desirable and {:,} undesirable".format(*counts(rows))

def weigh(hparams, rows, weighting):
    """
    Sets the weights in hparams to those of labeled rows, so that the loss of unpaired rows, in which both groups count
    half, is the wanted mean. weighting: what desirable_weight and undesirable_weight, d and u here, multiply.

        groups         (d * mean of desirable losses + u * mean of undesirable losses) / 2
        completions    mean over all completions of d * loss or u * loss, as in TRL and HALOs

    With n and m completions, the second is the first with d * 2n / (n + m) and u * 2m / (n + m). KTO's authors advise
    a ratio d * n / (u * m) from 1 to 4/3 (arXiv:2402.01306). With `groups` and the default weights it is 1.
    """
    if weighting == "completions":
        for n, label in zip(counts(rows), ("desirable", "undesirable")):
            hparams[f"{label}_weight"] *= 2 * n / len(rows)

def repeated(rows, n, rng):
    """n rows in random order. Each row occurs equally often, or once more than others."""
    found = []
    while len(found) < n:
        found += rng.sample(rows, len(rows))
    return found[:n]

def paired(rows, seed):
    """Labeled rows -> unpaired rows. The larger group occurs once, and the smaller one is repeated to its size."""
    rng, n = random.Random(f"unpaired {seed}"), max(counts(rows))
    desirable, undesirable = ([row for row in rows if row["label"] == label] for label in (1, 0))
    found = []
    for w, l in zip(repeated(desirable, n, rng), repeated(undesirable, n, rng)):
        found.append(dict(prompt=w["prompt"], chosen=w["chosen"], rejected_prompt=l["prompt"], rejected=l["chosen"]))
    return found

def check(rows, data, name, losses, share_prefix):
    """Raises ValueError unless a loss of LOSSES can be trained on {"train", "val": labeled rows}. name: of the loss."""
    takers = " or ".join(f"--loss {other}" for other, loss in losses.items() if loss.unpaired)
    if not losses[name].unpaired:
        raise ValueError(f"{data} has completions with a label, and --loss {name} compares pairs: use {takers}")
    if share_prefix:
        raise ValueError(f"--share_prefix has no effect on {data}, which has no pairs behind one prompt")
    for split, part in rows.items():
        for n, label in zip(counts(part), reversed(LABELS)):
            if n == 0:
                raise ValueError(f"{data}: no {label} completion in the {split} split, which has {len(part):,} rows: "
                                 f"--loss {name} needs both labels; train_sft.py trains on desirable ones alone")

def as_pairs(rows, data, name, losses, hparams, *, weighting, seed, share_prefix):
    """
    ({"train", "val": rows} for Batches, a text that counts them). Pairs stay as they are, labeled rows are paired, and
    the weights in hparams are set by `weigh`. Raises ValueError if the loss cannot be trained on labeled rows.
    """
    if "label" not in rows["train"][0]:
        return rows, f"{len(rows['train']):,} training pairs, {len(rows['val']):,} validation pairs"
    check(rows, data, name, losses, share_prefix)
    weigh(hparams, rows["train"], weighting)
    return ({split: paired(part, seed) for split, part in rows.items()},
            f"{counted(rows['train'])} training completions, {counted(rows['val'])} validation completions")
