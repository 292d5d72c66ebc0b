"""
reference_logps: the reference's log-probs, a row a pair

Which rows of a batch belong to one pair, and what stands in which column.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["reference.py:reference_logps"]
POINTS, MINUTES = 3, 20

def probes(rng):
    """Three pairs, two pairs (as many as columns), one pair, and a batch with a third column."""
    def texts(spans, T=7):
        mask = np.zeros((len(spans), T), dtype=bool)
        for i, (start, end) in enumerate(spans):
            mask[i, start:end] = True
        return dict(idx=rng.integers(0, 9, mask.shape), completion_mask=mask)
    def with_kl(batch, spans):
        kl = texts(spans, 6)
        return batch | dict(kl_idx=kl["idx"], kl_mask=kl["completion_mask"])
    three = [(2, 5), (1, 4), (3, 7), (2, 7), (1, 2), (3, 6)]
    two = [(1, 5), (2, 4), (1, 3), (2, 7)]
    return [dict(title="three pairs", rows=["the first pair", "the second pair", "the third pair"], batch=texts(three)),
            dict(title="two pairs", batch=texts(two)),
            dict(title="one pair", batch=texts([(2, 6), (2, 4)])),
            dict(title="three pairs with completions of other prompts",
                 batch=with_kl(texts(three), [(2, 6), (1, 3), (3, 4)]))]

def run(module, probe):
    """The numbers, that they have no gradient, and that the model is as it was."""
    import torch
    from model import GPT, GPTConfig
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=8, vocab_size=9, n_layer=1, n_head=2, n_embd=8)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    found = module.reference_logps(model, probe["batch"])
    trainable = all(p.requires_grad and p.grad is None for p in model.parameters())
    return dict(logps=found, no_gradient=not found.requires_grad, model_unchanged=trainable and not model.training)

LOGPS, HALVES, STACK = "logps, _ = batch_logps(model, batch)", "columns = list(logps.chunk(2))", \
    "return torch.stack(columns, 1)"
KL = "columns.append(kl_logps)"
SECTION = "A row for each pair"
LOGGED = "test_by_hand.py::test_every_validation_of_log_csv[file]"
PAIR_HINT = "Draw a batch of three pairs. In which rows stand the chosen and the rejected completion of pair 1?"
SHAPE_HINT = "One row of the result is one pair. Test with a batch of three pairs: two pairs and two columns hide it."
MISTAKES = {
    "columns swapped": Mistake(((HALVES, HALVES + "[::-1]"),),
        "Which half of the batch holds the chosen completions, and which column is theirs?", SECTION, LOGGED,
        "Before the first update, policy and reference are the same model, but the validation loss is not log 2."),
    "every second row": Mistake(((HALVES, "columns = [logps[0::2], logps[1::2]]"),), PAIR_HINT, SECTION, LOGGED,
        "Before the first update the rewards are not 0. With --batch_size 1 they are."),
    "view in the place of a transposition": Mistake(((STACK, "return torch.cat(columns).view(-1, len(columns))"),),
        PAIR_HINT, SECTION, LOGGED),
    "a row for each column": Mistake(((STACK, "return torch.stack(columns)"),), SHAPE_HINT, SECTION, LOGGED),
    "all in one column": Mistake(((STACK, "return torch.cat(columns)[:, None]"),), SHAPE_HINT, SECTION, LOGGED),
    "means over tokens": Mistake(((LOGPS, "logps, lens = batch_logps(model, batch)\n    logps = logps / lens"),),
        "Is the policy's number that this is subtracted from a sum or a mean?", SECTION, LOGGED),
    "no third column": Mistake(((KL, "pass"),),
        "The docstring names a batch that gives three columns.", SECTION, ""),
    "the third column first": Mistake(((KL, "columns.insert(0, kl_logps)"),),
        "Which column is that of the completions of other prompts? Read the docstring.", SECTION, ""),
    "dropout": Mistake(((LOGPS, "model.train()\n    logps, _ = batch_logps(model, batch)"),),
        "In which mode is the model behind your function, and in which was it before?", SECTION, ""),
}
ALTERNATIVES = {
    "by rows": '''
def reference_logps(model, batch):
    logps = batch_logps(model, batch)[0]
    B = len(logps) // 2
    found = torch.cat([logps[:B, None], logps[B:, None]], dim=1)
    if "kl_idx" not in batch:
        return found
    kl = sequence_logps(model, batch["kl_idx"], batch["kl_mask"])[0]
    return torch.cat([found, kl[:, None]], dim=1)
''',
    "reshape": '''
def reference_logps(model, batch):
    rows = batch_logps(model, batch)[0].reshape(2, -1)
    if "kl_mask" in batch:
        rows = torch.vstack([rows, sequence_logps(model, batch["kl_idx"], batch["kl_mask"])[0]])
    return rows.T.contiguous()
''',
}
VARIANTS = {
    "rejected in the first column": (
        (HALVES, HALVES + "[::-1]"),
        ("(B, 2), for chosen and rejected.", "(B, 2), for rejected and chosen.")),
    "means over tokens": (
        (LOGPS, "logps, lens = batch_logps(model, batch)\n    logps = logps / lens"),
        ("kl_logps, _ =", "kl_logps, kl_lens ="),
        ('batch["kl_mask"])    # (B,)\n', 'batch["kl_mask"])\n        kl_logps = kl_logps / kl_lens    # (B,)\n'),
        ("Summed log-probs in nats of a batch of B pairs under the reference: (B, 2)",
         "Log-probs in nats of a batch of B pairs under the reference, divided by the number of tokens summed: (B, 2)"),
        ("for chosen and rejected. In a batch for\n    KTO (B, 3): the third column is of",
         "for\n    chosen and rejected. In a batch for KTO (B, 3): the third column, divided likewise, is of\n   ")),
}
