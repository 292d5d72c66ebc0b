"""
The objective of preference optimization: from a batch of pairs to its mean loss and the metrics that are logged.

    loss, metrics = preference_loss(model, batch, LOSSES["dpo"], {"beta": 0.1})

docs/metrics.md explains the metrics. Read first: logps.py, losses.py, reference.py. Read next: train_pref.py
"""
import measures
from logps import batch_logps
from losses import Pairs
from reference import kl_logratios

def preference_loss(model, batch, loss, hparams, mean_logps=False, sft_weight=0.0):
    """
    The mean loss of a batch of B pairs, (), and the metrics to log.
    loss: an entry of LOSSES; hparams: its hyperparameters at this update; mean_logps, sft_weight: the flags.
    """
    # One forward pass gives log pi(y | x) of all completions: B chosen ones on top of B rejected ones.
    logps, lens = batch_logps(model, batch)                # (2B,), (2B,): nats, tokens
    chosen, rejected = logps.chunk(2)                      # (B,), (B,)
    chosen_lens, rejected_lens = lens.chunk(2)             # (B,), (B,)
    # The reference's log-probs were computed before training and are part of the batch.
    ref_chosen, ref_rejected = batch.get("ref_chosen_logps"), batch.get("ref_rejected_logps")    # (B,), (B,)
    pairs = Pairs(chosen, rejected, ref_chosen, ref_rejected, chosen_lens, rejected_lens,
                  reward_gaps=batch.get("gap"))
    if loss.needs_kl:
        pairs.kl_logratios = kl_logratios(model, batch, mean_logps)    # (B,)
    if mean_logps:
        pairs = pairs.per_token()
    # Everything that distinguishes DPO from IPO, KTO, SimPO, ... is in this one function.
    losses, chosen_rewards, rejected_rewards = loss.fn(pairs, **hparams)    # (B,) each
    if sft_weight:
        losses = losses - sft_weight * chosen / chosen_lens
    margins = chosen_rewards - rejected_rewards            # (B,)
    metrics = {"rewards/chosen": chosen_rewards.mean(), "rewards/rejected": rejected_rewards.mean(),
               "rewards/margins": margins.mean(), "rewards/accuracies": measures.ties_half(margins).mean(),
               "logps/chosen": chosen.detach().mean(), "logps/rejected": rejected.detach().mean()}
    return losses.mean(), metrics | ({"beta": hparams["beta"]} if "beta" in hparams else {})
