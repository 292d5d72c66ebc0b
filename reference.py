"""
The reference's log-probs, computed once before training and kept in the rows, so that no second model is in memory.

    add_reference(model, batches, autocast)    # before training starts, the model is its own reference

docs/speed.md says what this saves. Read first: logps.py, data.py. Read next: objective.py
"""
from contextlib import nullcontext

import torch

import loop
from adapters import load_model
from logps import batch_logps, sequence_logps
from model import fingerprint
from support import parallel

@torch.no_grad()
def reference_logps(model, batch):
    """
    Summed log-probs in nats of a batch of B pairs under the reference: (B, 2), for chosen and rejected. In a batch for
    KTO (B, 3): the third column is of completions of other prompts, from which KTO estimates the KL.
    """
    logps, _ = batch_logps(model, batch)                     # (2B,): chosen on top of rejected
    columns = list(logps.chunk(2))                           # (B,) each
    if "kl_idx" in batch:
        kl_logps, _ = sequence_logps(model, batch["kl_idx"], batch["kl_mask"])    # (B,)
        columns.append(kl_logps)
    return torch.stack(columns, 1)

def add_reference(model, batches, autocast, off=nullcontext):
    """
    Writes ref_chosen_logps and ref_rejected_logps (for KTO also ref_kl_logps) into every row of a data.Batches.
    off(model): a context manager in which the model is the reference, such as adapters.adapters_off.
    """
    device = next(model.parameters()).device
    names = ["ref_chosen_logps", "ref_rejected_logps"]
    if "mismatched" in batches.rows[0]:
        names.append("ref_kl_logps")

    def compute(rows):
        batch = loop.to_device(batches.collate(rows), device)
        with autocast, off(model):
            return reference_logps(model, batch)

    for row, numbers in parallel.shared_out(batches.groups(), len(names), compute):
        row.update(zip(names, numbers))

def start_model(init_from, want, device, of=""):
    """The model that training started from. Raises ValueError if its fingerprint is not `want`; None: any will do."""
    model = load_model(init_from)[0].to(device).eval()
    if want and (found := fingerprint(model)) != want:
        raise ValueError(f"{init_from}, the reference{of}, has changed since: its fingerprint is {found}, not {want}")
    return model

@torch.no_grad()
def kl_logratios(model, batch, mean_logps):
    """KTO's estimate of the KL: log-ratios of completions of other prompts, (B,), or their mean in every entry."""
    logps, lens = sequence_logps(model, batch["kl_idx"], batch["kl_mask"])    # (B,), (B,)
    return parallel.mean((logps - batch["ref_kl_logps"]) / (lens if mean_logps else 1), batch["weight"])
