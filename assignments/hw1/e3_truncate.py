"""
truncate: top-k and top-p

Which tokens stay when the distribution is cut before sampling.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["model.py:truncate"]
POINTS, MINUTES = 8, 80

def probes(rng):
    """Three rows with no ties, then ties, a top_k above V, both cuts, and a sum that is reached exactly."""
    def rows(B, V):
        p = np.stack([rng.permutation(np.array([0.42, 0.26, 0.14, 0.09, 0.05, 0.03, 0.01])[:V]) for _ in range(B)])
        return np.log(p) + rng.normal(0, 1, (B, 1))    # a constant added to a row changes no probability
    ties = np.array([[2.0, 1.0, 1.0, 0.0, 1.0], [0.0, 0.5, 3.0, 3.0, -1.0]])
    equal = np.repeat(rng.normal(0, 1, (2, 1)), 8, 1)
    table = [("top_k 3", rows(3, 7), 3, None), ("top_k 2, ties at the second place", ties, 2, None),
             ("top_k 99 of 7 tokens", rows(2, 7), 99, None), ("top_p 0.75", rows(3, 7), None, 0.75),
             ("top_p 0.1, below the largest probability", rows(2, 7), None, 0.1), ("top_p 1", rows(2, 7), None, 1.0),
             ("top_k 3 and top_p 0.7", rows(3, 7), 3, 0.7), ("neither", rows(1, 7), None, None)]
    found = [dict(title=title, logits=logits, top_k=k, top_p=p, count=0) for title, logits, k, p in table]
    return [*found, dict(title="top_p 0.5 of eight equal tokens: how many stay", logits=equal, top_k=None, top_p=0.5,
                         count=1)]

def run(module, probe):
    """The logits; of tied tokens their number, as the docstring does not say which of them stay."""
    import torch
    found = module.truncate(probe["logits"], probe["top_k"], probe["top_p"])
    if probe["count"]:
        return dict(n_kept=torch.isfinite(found).sum(-1))
    return dict(logits=found)

KTH = "logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]"
LESS = "logits = logits.masked_fill(logits < kth, -math.inf)"
ORDER, BEFORE = "logits.softmax(-1).sort(descending=True)", "mass_before = probs.cumsum(-1) - probs"
OUTSIDE, BACK = "outside = mass_before >= top_p", "outside.scatter(1, order, outside)"
CUT, IF_K = "logits = logits.masked_fill(outside, -math.inf)", "    if top_k is not None:\n"
K, P, BOTH = "Top-k", "Top-p", "Both, and the result"
BY_HAND = "test_model.py::test_truncation_by_hand"
SETS = "test_model.py::test_top_p_allows_the_smallest_set_that_reaches_it"
K_SETS = "test_model.py::test_top_k_allows_the_k_likeliest_tokens"
MISTAKES = {
    "the k-th is cut": Mistake(((LESS, LESS.replace("<", "<=")),),
        "Count the tokens that stay at top_k = 1.", K, K_SETS),
    "one more than k": Mistake(((KTH, "logits.topk(min(top_k + 1, logits.shape[-1])).values[:, -1:]"),),
        "Count the tokens that stay at top_k = 1.", K, K_SETS),
    "k beyond the vocabulary": Mistake(((KTH, "logits.topk(top_k).values[:, -1:]"),),
        "Call the function with top_k = 99 on seven tokens.", K, K_SETS),
    "exactly k": Mistake(((LESS, "best = logits.topk(min(top_k, logits.shape[-1])).indices\n        logits = "
                           "torch.full_like(logits, -math.inf).scatter(1, best, logits.gather(1, best))"),),
        "Read what the docstring says of logits that equal the k-th. How many tokens stay on a row with ties?", K),
    "one threshold for the batch": Mistake(((KTH, "logits.topk(min(top_k, logits.shape[-1])).values[:, -1].max()"),),
        "Add 5 to all logits of one row. Do the same tokens stay in the other rows?", K),
    "the smallest k": Mistake(((LESS, LESS.replace("<", ">")),),
        "Does the likeliest token stay at top_k = 3?", K, K_SETS),
    "the crossing token is cut": Mistake(
        ((BEFORE, "mass_before = probs.cumsum(-1)"), (OUTSIDE, "outside = mass_before > top_p")),
        "Which tokens stay if top_p is below the largest probability? Do yours reach top_p in sum?", P, SETS),
    "the crossing token is cut, but not the first": Mistake(
        ((OUTSIDE, "outside = probs.cumsum(-1) > top_p\n        outside[:, 0] = False"),),
        "Sum the probabilities of the tokens that stay. Is the sum at least top_p in every row?", P, SETS),
    "one token more": Mistake(((BEFORE, "mass_before = probs.cumsum(-1) - probs - probs.roll(1, -1)"),),
        "Take away the least likely token that stays. Do the others still reach top_p in sum?", P, SETS),
    "more when reached exactly": Mistake(((OUTSIDE, "outside = mass_before > top_p"),),
        "Take four equal logits and top_p = 0.5. How many tokens reach 0.5 in sum, and how many stay?", P,
        "test_model.py::test_top_p_that_is_reached_exactly_needs_no_further_token"),
    "not back in order": Mistake(((BACK, "outside"),),
        "Shuffle the vocabulary of a row. Do the same tokens stay? In which order is your mask?", P, SETS),
    "gathered back by the sorting order": Mistake(((BACK, "outside.gather(1, order)"),),
        "order[i] is the token at place i. Which token does place i of your mask belong to at the end?", P, SETS),
    "the least likely first": Mistake(((ORDER, "logits.softmax(-1).sort()"),),
        "Print the sorted probabilities. Which token comes first?", P, SETS),
    "a sum over the batch": Mistake(((BEFORE, "mass_before = probs.cumsum(0) - probs"),),
        "Print the running sums of one row. Does the last one equal 1?", P, SETS),
    "each probability against top_p": Mistake(((OUTSIDE, "outside = probs < top_p"),),
        "Is top_p compared with the probability of one token or with a sum?", P, SETS),
    "logits taken for probabilities": Mistake(((ORDER, "logits.sort(descending=True)"),),
        "Print what you sum up. Is it between 0 and 1?", P, SETS),
    "top_p before top_k": Mistake(
        ((IF_K, "    original = logits\n" + IF_K), (ORDER, "original.softmax(-1).sort(descending=True)")),
        "With top_k = 3 and top_p = 0.7: of which distribution are the probabilities that you sum up?", BOTH,
        "test_model.py::test_top_p_counts_what_top_k_has_left"),
    "zero for -inf": Mistake(((CUT, CUT.replace("-math.inf", "0.0")), (LESS, LESS.replace("-math.inf", "0.0"))),
        "Take the softmax of your result. Which probability does a token have that was cut?", BOTH, BY_HAND),
    "a change in place": Mistake(((LESS, "logits.masked_fill_(logits < kth, -math.inf)"),),
        "Print the logits that you passed in, before and after the call.", BOTH),
    "log-probs for logits": Mistake(((CUT, CUT + "\n    logits = logits.log_softmax(-1)"),),
        "Compare the logits that stay with those that you passed in.", BOTH, BY_HAND),
}
ALTERNATIVES = {
    "a loop over rows and tokens": '''
def truncate(logits, top_k=None, top_p=None):
    rows = []
    for row in logits.tolist():
        if top_k is not None:
            kth = sorted(row, reverse=True)[:top_k][-1]
            row = [x if x >= kth else -math.inf for x in row]
        if top_p is not None and top_p < 1:
            top = max(row)
            total = sum(math.exp(x - top) for x in row)
            mass, keep = 0.0, set()
            for i in sorted(range(len(row)), key=lambda i: -row[i]):
                if mass >= top_p:
                    break
                keep.add(i)
                mass += math.exp(row[i] - top) / total
            row = [x if i in keep else -math.inf for i, x in enumerate(row)]
        rows.append(row)
    return torch.tensor(rows, dtype=logits.dtype)
''',
    "a shifted cumulative sum": '''
def truncate(logits, top_k=None, top_p=None):
    logits = logits.clone()
    if top_k:
        values = logits.sort(dim=1, descending=True).values
        logits[logits < values[:, min(top_k, logits.size(1)) - 1, None]] = -float("inf")
    if top_p is not None and top_p < 1.0:
        values, places = torch.sort(logits, descending=True, dim=-1)
        reached = values.softmax(dim=-1).cumsum(dim=-1) >= top_p
        cut = torch.zeros_like(reached)
        cut[:, 1:] = reached[:, :-1]
        mask = torch.zeros_like(cut)
        mask.scatter_(1, places, cut)
        logits[mask] = -float("inf")
    return logits
''',
    "the inverse of the sorting order": '''
def truncate(logits, top_k=None, top_p=None):
    if top_k is not None and top_k < logits.shape[1]:
        kth = -(-logits).kthvalue(top_k, dim=1, keepdim=True).values
        logits = torch.where(logits >= kth, logits, -math.inf)
    if top_p is not None and top_p < 1:
        order = logits.argsort(1, descending=True)
        p = logits.softmax(1).gather(1, order)
        inside = torch.cat([torch.zeros_like(p[:, :1]), p.cumsum(1)[:, :-1]], 1) < top_p
        logits = torch.where(inside.gather(1, order.argsort(1)), logits, -math.inf)
    return logits
''',
}
DOC = "keep the smallest set of tokens whose probabilities reach top_p in sum (nucleus sampling). If top_k is given"
VARIANTS = {
    "tokens near the likeliest": (
        (DOC, "keep the tokens whose probability is at least top_p times the largest (min-p). If top_k is given"),
        (ORDER, "logits.softmax(dim=-1).sort(descending=True)"), (BEFORE, "largest = probs[:, :1]"),
        (OUTSIDE, "outside = probs < top_p * largest")),
    "the largest set below top_p": (
        (DOC, "keep the likeliest tokens while their sum is at most top_p, and always the first. If top_k is given"),
        (BEFORE, "mass_with = probs.cumsum(-1)"),
        (OUTSIDE, "outside = mass_with > top_p\n        outside[:, 0] = False")),
}
