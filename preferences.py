"""
The rows that preference training starts with: sampled and ranked pairs, pairs of a data set, or thumbs up and down.

    rows, ranked_by, facts, counted = preferences.load(model, ..., loss="dpo", data="toy", ...)

train_pref.py calls this file. rounds.py samples the pairs of later rounds. docs/data.md lists the data that is read.
Read first: sampling.py, unpaired.py. Read next: objective.py
"""
import chat
import data as data_sets
import reward as rewards
import sampling
import unpaired
from losses import LOSSES

def load(model, base, tokenizer, autocast, hparams, *, loss, data, data_dir, init_from, n_prompts, n_val,
         max_len, max_prompt_len, prompt_tokens, reward, labels, label_noise, rounds, weighting, share_prefix,
         batch_size, seed):
    """
    (rows, ranked_by, facts, counted) for a policy and a loss of LOSSES:

    rows       {"train": rows, "val": rows}
    ranked_by  the reward.Reward of sampled pairs, or None
    facts      what args.json keeps of the data
    counted    the numbers of rows, as text

    base is the fingerprint of the model, and hparams is of the loss: its weights are set to those that unpaired.weigh
    gives. The arguments after the * are flags. Raises ValueError or OSError in one line.
    """
    gaps, facts, ranked_by = LOSSES[loss].needs_gap, {}, None
    if data in ("toy", "imdb"):
        device = next(model.parameters()).device
        ranked_by = rewards.Reward(reward, tokenizer, max_len, device, batch_size, autocast)
        facts["pairs"], rows = sampling.sampled_pairs(
            model, tokenizer, base, ranked_by, data=data, folder=init_from, n_prompts=n_prompts,
            max_len=max_len, seed=seed, data_dir=data_dir, prompt_tokens=prompt_tokens, labels=labels, rounds=rounds,
            gaps=gaps)
    else:
        rows = data_sets.load_rows(data, data_dir, tokenizer, max_len, max_prompt_len, n_val=n_val, gaps=gaps,
                                   labeled=True)
    swapped = sum(data_sets.flip_labels(part, label_noise, seed) for part in rows.values())
    facts |= {"data_fingerprint": data_sets.fingerprint(rows),
              "prompt_format": chat.prompt_format(rows["train"], tokenizer)}
    rows, counted = unpaired.as_pairs(rows, data, loss, LOSSES, hparams, weighting=weighting, seed=seed,
                                      share_prefix=share_prefix)
    counted += f" (round 1 of {rounds})" if rounds > 1 else ""
    counted += f" ({swapped:,} of both swapped)" if swapped else ""
    return rows, ranked_by, facts, counted
