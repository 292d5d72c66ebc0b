"""
gather_logps, completion_token_logps and sequence_logps: the log-probability of a completion

The shift by one, the mask, the sum over tokens, and log-softmax far from zero.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["logps.py:gather_logps", "logps.py:completion_token_logps", "logps.py:sequence_logps"]
POINTS, MINUTES = 9, 70

def probes(rng):
    """Ragged rows, the same rows with other padding, column 0 under the mask, one row, and large logits."""
    def batch(spans, T):
        mask = np.zeros((len(spans), T), dtype=bool)
        for i, (start, end) in enumerate(spans):
            mask[i, start:end] = True
        return rng.integers(0, 11, mask.shape), mask
    def logits(*shape, scale=3.0):
        return dict(logits=rng.normal(0, scale, (*shape, 11)), targets=rng.integers(0, 11, shape))
    idx, mask = batch([(2, 6), (1, 3), (4, 8), (3, 4)], 8)
    other = idx.copy()
    other[0, 6:], other[1, 3:], other[3, 4:] = (idx[0, 6:] + 5) % 11, (idx[1, 3:] + 2) % 11, (idx[3, 4:] + 7) % 11
    same = dict(logits(2, 3), mask=mask)
    first, first_mask = batch([(0, 4), (2, 5)], 5)
    one, one_mask = batch([(1, 6)], 6)
    notes = ["padding of two", "padding of five", "no padding", "a completion of one token"]
    return [dict(same, title="four rows", rows=notes, idx=idx),
            dict(same, title="four rows, other tokens behind the completions", rows=notes, idx=other, same_as=0,
                 differs_in="the tokens behind the completions"),
            dict(logits(5), title="a mask that begins in column 0", idx=first, mask=first_mask),
            dict(logits(1, 4, scale=2000.0), title="one row, and logits of thousands", idx=one, mask=one_mask)]

def run(module, probe):
    """Values and gradients of all three. A function that is not written yet leaves its arrays out."""
    import torch
    from model import GPT, GPTConfig
    found = {}
    logits = probe["logits"].requires_grad_()
    try:
        gathered = module.gather_logps(logits, probe["targets"])
        half = module.gather_logps(probe["logits"].detach().bfloat16(), probe["targets"])
        weight = torch.linspace(1, 2, gathered.numel(), dtype=gathered.dtype).view(gathered.shape)
        grad, = torch.autograd.grad((gathered * weight).sum(), logits)
        found.update(gathered=gathered, grad_logits=grad, gathered_of_bfloat16=(half.double() * 200).round())
        found["bfloat16_gives_float32"] = half.dtype == torch.float32
    except NotImplementedError:
        pass
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=2, n_embd=8)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    try:
        per_token = module.completion_token_logps(model, probe["idx"], probe["mask"])
        found["per_token"] = per_token
        logps, lens = module.sequence_logps(model, probe["idx"], probe["mask"])
        found.update(logps=logps, lens=lens)
        total = (logps * torch.linspace(1, 2, len(logps), dtype=logps.dtype)).sum()
        grads = torch.autograd.grad(total, list(model.parameters()), allow_unused=True) if total.requires_grad else []
        found["grad_norms"] = [0.0 if g is None else float(g.norm()) for g in grads]
    except NotImplementedError:
        if not found:
            raise
    return found

TARGET, MASKED = "idx[rows, columns + 1]", "mask = completion_mask[:, 1:]  "
STATES, FAST = "model.features(idx)[rows, columns]", "logps = token_logps(states, model.lm_head.weight, targets)"
SUM, LENS = "return per_token.sum(1), ", "completion_mask[:, 1:].sum(1)           #"
SOFTMAX, PICK = "log_probs = logits.log_softmax(-1)", "return log_probs.gather(-1, targets[..., None]).squeeze(-1)"
FLOAT = "if logits.dtype != torch.float64:                # under autocast"
SHIFT, MASK, ALL, ONE = "The shift by one", "The mask of a prediction", "From tokens to a completion", "One token"
SLOW, TOKENS = "test_logps.py::test_logps_equal_a_slow_double_loop", "test_logps.py::test_token_logps_equal_log_softmax"
TOKENS += "_and_gather_whatever_the_pieces"
PLAIN = (FAST, "logps = plain_token_logps(states, model.lm_head.weight, targets)")

def in_gather(name, edits, hint, test=TOKENS, symptom="", elsewhere=None):
    """
    A mistake of gather_logps: in a copy that calls it for each completion, and in one that uses the fast way.
    elsewhere: the test that sees the second, if it is another one.
    """
    return {name: Mistake((*edits, PLAIN), hint, ONE, test, symptom),
            f"{name}, and the fast way elsewhere": Mistake(edits, hint, ONE, test if elsewhere is None else elsewhere)}

MASK_HINT = "Whose prediction does column t of your result hold? Is the mask that you use that of the same token?"
COUNT_HINT = "What is counted in lens? Compare it with the number of numbers that you add up."
MISTAKES = {
    **in_gather("softmax over the wrong dimension", ((SOFTMAX, "log_probs = logits.log_softmax(0)"),),
        "exp() of which numbers should add up to 1? Check it for one position."),
    **in_gather("probabilities", ((SOFTMAX, "log_probs = logits.softmax(-1)"),),
        "May a log-probability be larger than 0?"),
    **in_gather("logits are not normalized", ((SOFTMAX, "log_probs = logits"),),
        "Add 5 to all logits of a position. Does your result change? Does the softmax?", symptom=
        "The loss of SFT falls below 0 and does not stop falling."),
    **in_gather("softmax, then log", ((SOFTMAX, "log_probs = logits.softmax(-1).log()"),),
        "One probe has logits of thousands. What is exp(-2000) in floating point, and its logarithm?",
        "test_logps.py::test_logits_of_ten_thousand_do_not_overflow"),
    **in_gather("always float32", ((FLOAT, FLOAT.replace("logits.dtype != torch.float64", "True")),),
        "Which dtype do you return for logits in float64? Read the docstring's last words.", ""),
    **in_gather("bfloat16 stays", ((FLOAT, FLOAT.replace("logits.dtype != torch.float64", "False")),),
        "How many digits has a number in bfloat16, and how many tokens do you add up?",
        "test_logps.py::test_logps_are_float32_under_bfloat16_autocast", elsewhere=""),
    **in_gather("the sign of a loss", ((PICK, PICK.replace("return ", "return -")),),
        "Is your function a log-probability or a loss? A log-probability is never above 0."),
    "the mask is not shifted": Mistake(((MASKED, "mask = completion_mask[:, :-1]  "),), MASK_HINT, MASK, SLOW,
        "The log-prob of a completion changes with the padding of its batch."),
    "mask and length are not shifted": Mistake(((MASKED, "mask = completion_mask[:, :-1]  "),
        (LENS, LENS.replace("[:, 1:]", "[:, :-1]"))), MASK_HINT, MASK, SLOW),
    "a token is its own target": Mistake(((TARGET, "idx[rows, columns]"),),
        "Take the text 'a b'. Which column's logits are a prediction of b?", SHIFT, SLOW,
        "The loss of SFT falls to almost 0, and the samples repeat one word."),
    "logits of the token's own column": Mistake(((STATES, "model.features(idx)[rows, columns + 1]"),),
        "A model that has read a token gives it which probability? Who may see the answer in your sum?", SHIFT, SLOW),
    "all tokens are counted": Mistake(((MASKED, "mask = torch.ones_like(completion_mask)[:, 1:]  "),),
        "Change the last token of a short row, behind its completion. Does the result change?", MASK,
        "test_logps.py::test_logps_do_not_see_what_stands_behind_a_completion"),
    "the last token is not counted": Mistake(((MASKED,
        "mask = completion_mask[:, 1:] & completion_mask.roll(-1, 1)[:, 1:]  "),
        ("EOS included: (logps, lens).", "EOS included: (logps, lens). ")),    # no mistake of a variant without EOS
        "Is EOS a token of the completion? Look at a completion of one token.", MASK, SLOW),
    "the mean over tokens": Mistake(((SUM, "return per_token.sum(1) / completion_mask[:, 1:].sum(1), "),),
        "The probability of a text is the product of its tokens' probabilities. What is its logarithm?", ALL, SLOW,
        "Before the first update of SFT from random weights, the loss is far below log V."),
    "the mean over columns": Mistake(((SUM, "return per_token.mean(1), "),),
        "Does your result depend on the width of the batch?", ALL, SLOW),
    "column 0 in the length": Mistake(((LENS, LENS.replace("[:, 1:]", "")),), COUNT_HINT, ALL,
        "test_logps.py::test_the_first_column_never_counts"),
    "no gradient to the blocks": Mistake(((STATES, "model.features(idx).detach()[rows, columns]"),),
        "Which parameters get a gradient from your result?", ALL,
        "test_logps.py::test_the_gradient_equals_that_of_the_whole_log_softmax"),
}
ALTERNATIVES = {
    "the definition": '''
def gather_logps(logits, targets):
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return -losses.view(targets.shape)

def completion_token_logps(model, idx, completion_mask):
    return gather_logps(model(idx)[:, :-1], idx[:, 1:]) * completion_mask[:, 1:]

def sequence_logps(model, idx, completion_mask):
    return completion_token_logps(model, idx, completion_mask).sum(dim=-1), completion_mask[:, 1:].long().sum(dim=-1)
''',
    "a double loop": '''
def gather_logps(logits, targets):
    logits = logits if logits.dtype == torch.float64 else logits.float()
    picked = (logits * F.one_hot(targets, logits.shape[-1])).sum(-1)
    return picked - logits.logsumexp(-1)

def completion_token_logps(model, idx, completion_mask):
    logits = model(idx)
    rows = []
    for i in range(idx.shape[0]):
        row = []
        for t in range(1, idx.shape[1]):
            logp = gather_logps(logits[i, t - 1], idx[i, t])
            row.append(logp if completion_mask[i, t] else torch.zeros_like(logp))
        rows.append(torch.stack(row))
    return torch.stack(rows)
''',
}
HIDDEN = ("are cut off. Then all three line up",)
REMOVED = ("logps.py:plain_logps", "support/fast_logps.py:shared_logps", "support/fast_logps.py:shared_layout")
LOG_2 = "0.6931471805599453    # log 2: from nats to bits"
WITHOUT_LAST = "completion_mask = completion_mask & F.pad(completion_mask[:, 1:], (0, 1))    # (N, T): without EOS"
NO_HEAD, SUMMED = "blocks of a small GPT-2, and prompt and padding do not need it.\n    \"\"\"\n", \
    "per_token = completion_token_logps(model, idx, completion_mask)  # (N, T - 1)\n"
SHARED = ("EOS included: (logps, lens).",)    # of a docstring
VARIANTS = {
    "the last token is left out": (
        ("0 outside the mask\n", "0 outside the mask, and 0 for the last token\n"
         "                     under the mask of each row, usually EOS: it is not counted\n"),
        (NO_HEAD, f"{NO_HEAD}    {WITHOUT_LAST}\n"),
        ("log pi(completion | prompt), EOS included: (logps, lens). The arguments",
         "log pi(completion | prompt) without the completion's last token: (logps, lens).\n    The arguments"),
        ("sums over the tokens under the mask\n", "sums over the tokens under the mask, less the last of each row\n"),
        ("the numbers of tokens summed. Column 0",
         "the numbers of tokens summed, without that last one.\n           Column 0"),
        (SUMMED, f"{SUMMED}    {WITHOUT_LAST}\n")),
    "bits": (
        ("log softmax(logits)[target] in nats:", "log2 softmax(logits)[target] in bits:"),
        (PICK, f"{PICK} / {LOG_2}"),
        ("of each completion token, in nats.", "of each completion token, in bits: logarithms with base 2."),
        (FAST, "logps = gather_logps(F.linear(states, model.lm_head.weight), targets)"),
        ("(N,) in nats, float32", "(N,) in bits, float32")),
}
