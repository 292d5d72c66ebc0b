"""
causal_attention: the definition of attention

Scores, mask, softmax and the weighted sum of values, for a whole text and for one new token behind a cache.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["model.py:causal_attention"]
POINTS, MINUTES = 8, 75

def probes(rng):
    """A text, one new token, masks that allow later keys, and dropout where the weights can be read off the result."""
    def case(title, B, nh, T, S, hs, **more):
        shapes = [(B, nh, T, hs), (B, nh, S, hs), (B, nh, S, hs), (B, nh, T, hs)]
        tensors = [rng.normal(0, 1.5, shape) for shape in shapes]
        return dict(dict(title=title, tensors=tensors, mask=None, dropout=0.0), **more)
    blocks = np.arange(5)[:, None] // 3 == np.arange(5) // 3    # two texts in a row; a token sees later ones of its own
    ragged = np.arange(6) < np.array([2, 6, 4])[:, None]
    return [case("two rows of four tokens, no mask", 2, 3, 4, 4, 5),
            case("one token", 1, 1, 1, 1, 2),
            case("one new token behind a cache of five, no mask", 2, 2, 1, 6, 4),
            case("a mask that lets a token see a later one", 2, 2, 5, 5, 4, mask=blocks[None, None].copy()),
            case("one new token, prompts of three lengths", 3, 2, 1, 6, 4, mask=ragged[:, None, None].copy()),
            case("dropout 0.4", 2, 4, 32, 32, 64, dropout=0.4)]

def run(module, probe):
    """The result and its gradients. With dropout: facts about the weights, which values of 0 and 1 make visible."""
    import torch
    def refuse(*args, **kwargs):
        raise RuntimeError("this exercise is the definition: write scores, mask and softmax without PyTorch's kernel")
    torch.nn.functional.scaled_dot_product_attention = refuse
    q, k, v, cotangent = probe["tensors"]
    T, S = q.shape[2], k.shape[2]
    if probe["dropout"]:
        q, v = q * 0, torch.cat([torch.eye(S), torch.eye(S)], 1).double().expand(*v.shape[:2], S, 2 * S)
        y = module.causal_attention(q, k, v, probe["mask"], probe["dropout"])
        left, right = y.split(S, 3)    # two copies of the weights
        scaled = left * torch.arange(1, T + 1)[:, None]    # before dropout a weight of query t is 1 / (t + 1)
        scaled = scaled[..., torch.ones(T, S).tril().bool()]
        kept = scaled[scaled > 0]
        return dict(largest=scaled.max(), smallest_kept=kept.min() if len(kept) else 0.0,
                    share_dropped_is_right=[bool(((scaled == 0).double().mean() - probe["dropout"]).abs() < 0.06)],
                    a_key_is_dropped_for_the_whole_value=[torch.equal(left, right)])
    leaves = [x.requires_grad_() for x in (q, k, v)]
    y = module.causal_attention(*leaves, probe["mask"], probe["dropout"])
    grads = torch.autograd.grad(y, leaves, cotangent)
    return dict(y=y, grad_q=grads[0], grad_k=grads[1], grad_v=grads[2])

SCALE, MASK, FILL = "/ math.sqrt(q.shape[-1])", ".tril(S - T)", "scores.masked_fill(~mask, -math.inf)"
LAST, GIVEN = "return F.dropout(scores.softmax(-1), dropout) @ v", "    if mask is None:\n"
WEIGHTS, WHO_SEES, DROP = "Scores and weights", "Who sees whom", "Dropout of the weights"
TWO, EQUAL = "test_model.py::test_attention_by_hand", \
    "test_model.py::test_fast_attention_equals_the_definition_in_value_and_gradient"
DROPS = "test_model.py::test_attention_drops_weights_and_keeps_their_mean"
MISTAKES = {
    "softmax in float32": Mistake(
        ((LAST, LAST.replace("scores.softmax(-1)", "scores.float().softmax(-1).to(v.dtype)")),),
        "The grader's inputs are float64. Which dtype has each of your intermediate results?", WEIGHTS, ""),
    "no scale": Mistake(((SCALE, ""),),
        "Take q and k from a normal distribution with std 1. What is the std of your scores at hs = 4, and at hs = 64?",
        WEIGHTS, TWO),
    "hs for its root": Mistake(((SCALE, "/ q.shape[-1]"),),
        "By which number do you divide the scores at hs = 4? Compare it with the handout's example.", WEIGHTS, TWO),
    "the width of all heads": Mistake(((SCALE, "/ math.sqrt(q.shape[1] * q.shape[-1])"),),
        "Does your scale change with the number of heads? Each head is an attention of its own.", WEIGHTS, EQUAL),
    "times the scale": Mistake(((SCALE, "* math.sqrt(q.shape[-1])"),),
        "Do your scores grow or shrink when hs grows and everything else stays?", WEIGHTS, TWO),
    "softmax over the queries": Mistake(((LAST, "return F.dropout(scores.softmax(-2).nan_to_num(), dropout) @ v"),),
        "Sum your weights over the keys for one query. What should the sum be?", WEIGHTS, TWO),
    "mask after softmax": Mistake(
        ((FILL, "scores"), (LAST, "return F.dropout(scores.softmax(-1).masked_fill(~mask, 0), dropout) @ v")),
        "Sum the weights of the first query over the keys that it may see. Is the sum 1?", WHO_SEES, TWO),
    "a masked score of zero": Mistake(((FILL, "scores.masked_fill(~mask, 0.0)"),),
        "Print the weights of the first query. Which weight does a masked key have after the softmax?", WHO_SEES, TWO),
    "the mask turned around": Mistake(((FILL, "scores.masked_fill(mask, -math.inf)"),),
        "Read the docstring: does true in the mask mean that a key is seen or that it is hidden?", WHO_SEES, EQUAL),
    "a token does not see itself": Mistake(((MASK, ".tril(S - T - 1)"),),
        "Which keys does the first token of a text see? Print your mask for T = S = 3.", WHO_SEES, TWO),
    "the queries are the first tokens": Mistake(((MASK, ".tril()"),),
        "Print your mask for T = 1 and S = 3. Which keys should the newest token see?", WHO_SEES, EQUAL),
    "the future instead of the past": Mistake(((MASK, ".triu(S - T)"),),
        "Print your mask for T = S = 3. In which triangle should it be true, with queries as rows?", WHO_SEES, EQUAL),
    "no causal mask": Mistake(((MASK, ""),),
        "Change the last token of a text. Does the result for the first token change?", WHO_SEES, EQUAL),
    "the given mask is ignored": Mistake(((GIVEN, "    if True:\n"),),
        "Call the function with two different masks. Do the results differ?", WHO_SEES, EQUAL),
    "causal on top of the given mask": Mistake(
        ((FILL, "scores.masked_fill(~(mask & torch.ones_like(mask).tril(S - T)), -math.inf)"),),
        "If a mask is given, what does the docstring say decides whether a query sees a later key?", WHO_SEES, EQUAL),
    "no dropout": Mistake(((LAST, "return scores.softmax(-1) @ v"),),
        "Call the function twice with dropout 0.4. Are the two results equal?", DROP, DROPS),
    "dropout of the scores": Mistake(((LAST, "return F.dropout(scores, dropout).softmax(-1) @ v"),),
        "A score of 0 is not a weight of 0. What does dropout set to 0 in the docstring?", DROP, DROPS),
    "dropout of the result": Mistake(((LAST, "return F.dropout(scores.softmax(-1) @ v, dropout)"),),
        "When a weight is dropped, which numbers of the result change: one, or all hs numbers of a head?", DROP),
    "no rescaling of what is kept": Mistake(
        ((LAST, "return F.dropout(scores.softmax(-1), dropout) * (1 - dropout) @ v"),),
        "Average the results of many calls with dropout 0.4. Is it the result without dropout?", DROP, DROPS),
}
ALTERNATIVES = {
    "einsum, exponentials and a sum": '''
def causal_attention(q, k, v, mask=None, dropout=0.0):
    T, S, hs = q.shape[2], k.shape[2], q.shape[3]
    scores = torch.einsum("bhtd,bhsd->bhts", q * hs ** -0.5, k)
    if mask is None:
        mask = torch.arange(S)[None, :] <= torch.arange(S - T, S)[:, None]
    e = torch.where(mask, (scores - scores.amax(-1, keepdim=True)).exp(), torch.zeros_like(scores))
    att = e / e.sum(-1, keepdim=True)
    keep = (torch.rand_like(att) >= dropout).to(att.dtype) / (1 - dropout)
    return torch.einsum("bhts,bhsd->bhtd", att * keep, v)
''',
    "an additive mask": '''
def causal_attention(q, k, v, mask=None, dropout=0.0):
    T, S = q.size(-2), k.size(-2)
    bias = torch.zeros(T, S, dtype=q.dtype)
    if mask is None:
        bias = bias.masked_fill(torch.ones(T, S).triu(S - T + 1).bool(), float("-inf"))
    else:
        bias = bias.expand(mask.shape).masked_fill(mask.logical_not(), -1e30)
    att = torch.softmax(torch.matmul(q, k.mT) * (1.0 / math.sqrt(k.size(-1))) + bias, dim=-1)
    att = nn.functional.dropout(att, p=dropout, training=True)
    return torch.matmul(att, v)
''',
    "one query at a time": '''
def causal_attention(q, k, v, mask=None, dropout=0.0):
    T, S = q.shape[2], k.shape[2]
    rows = []
    for t in range(T):
        scores = (q[:, :, t:t + 1] * k).sum(-1) / k.shape[3] ** 0.5
        if mask is None:
            scores = scores[:, :, :S - T + t + 1]
            seen = v[:, :, :S - T + t + 1]
        else:
            scores, seen = scores.masked_fill(~mask[:, :, t], -math.inf), v
        rows.append((F.dropout(scores.softmax(2), dropout)[..., None] * seen).sum(2))
    return torch.stack(rows, 2)
''',
}
DOC, BODY = "softmax(q @ k.T / sqrt(hs)) @ v, where", "scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) "
VARIANTS = {
    "scores divided by hs": ((DOC, "softmax(q @ k.T / hs) @ v, where"),
                             (BODY, "scores = q @ k.transpose(-2, -1) / q.shape[-1] ")),
    "scores with a soft cap": ((DOC, "softmax(5 tanh(q @ k.T / (5 sqrt(hs)))) @ v,\n    where"),
                               (BODY, "scores = 5 * (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) / 5).tanh() ")),
}
