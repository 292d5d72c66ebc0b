"""
accumulate_gradients: one gradient from several batches

The mean over all pairs of all batches, with the memory of one batch.
"""
from assignments.exercise import Mistake

TARGETS = ["loop.py:accumulate_gradients"]
POINTS, MINUTES = 6, 40

def probes(rng):
    """Batches of unequal size, one batch, a share of a larger update, an earlier gradient, and a generator."""
    def batches(*sizes):
        return [dict(x=rng.normal(0, 1, (n, 3)), y=rng.normal(0, 2, n), weight=int(n)) for n in sizes]
    tokens = batches(2, 3)
    tokens[0]["weight"], tokens[1]["weight"] = 17, 4
    grad = rng.normal(0, 1, 3)
    base = dict(start=rng.normal(0, 1, 3), grad=None, scale=1.0, generator=False)
    return [base | dict(title="three batches of 4, 1 and 2 pairs", batches=batches(4, 1, 2), total=7),
            base | dict(title="one batch", batches=batches(3), total=3),
            base | dict(title="weights that are tokens", batches=tokens, total=21),
            base | dict(title="a gradient from before, and another process with five pairs more", grad=grad, total=8,
                        batches=batches(1, 2)),
            base | dict(title="a scaled backward, and batches from a generator", batches=batches(3, 1), total=4,
                        scale=1024.0, generator=True)]

def run(module, probe):
    """The gradient, what is returned, and what `backward` was called with and when."""
    import torch
    w = torch.nn.Parameter(probe["start"].clone())
    w.grad = None if probe["grad"] is None else probe["grad"].clone()
    calls, computed, order = [], [], []
    def compute_loss(batch):
        errors = batch["x"] @ w - batch["y"]
        computed.append(len(batch["y"]))
        order.append(0)
        return (errors ** 2).mean(), {"largest": errors.detach().abs().max(), "step": 3.0}
    def backward(loss):
        calls.append(float(loss.detach()))
        order.append(1)
        (loss * probe["scale"]).backward()
    batches = (batch for batch in probe["batches"]) if probe["generator"] else probe["batches"]
    parts = module.accumulate_gradients(compute_loss, batches, probe["total"], backward=backward)
    found = dict(grad=w.grad.detach(), losses_given_to_backward=calls, order_of_calls=order)
    found["weights"] = [float(weight) for weight, _ in parts]
    for name in ("loss", "largest", "step"):
        found[f"metric_{name}"] = [float(torch.as_tensor(metrics.get(name, -1.0)).detach()) for _, metrics in parts]
    found["loss_has_no_graph"] = [not getattr(metrics.get("loss"), "requires_grad", False) for _, metrics in parts]
    return found

BACK, PART = 'backward(loss * (batch["weight"] / total))', \
    'parts.append((batch["weight"], {"loss": loss.detach(), **metrics}))'
MEAN, RESULT, MEMORY = "The mean over all pairs", "What it returns", "The memory of one batch"
BY_HAND = "test_loop.py::test_accumulated_gradients_by_hand"
UNION = "test_loop.py::test_accumulated_ragged_batches_give_the_gradient_of_their_union"
MEANS_HINT = "A pair in a batch of one, and a pair in a batch of four: which has more influence on your gradient?"
LISTED = ("parts = []", "parts, batches = [], list(batches)")
MISTAKES = {
    "the mean of the means, by len()": Mistake(((BACK, "backward(loss / len(batches))"),), MEANS_HINT, MEAN, UNION),
    "the mean of the means": Mistake((LISTED, (BACK, "backward(loss / len(batches))")), MEANS_HINT, MEAN, UNION,
        "An update of two batches, of 1 and 4 pairs, has another gradient than the same 5 pairs in one batch."),
    "the sum over pairs": Mistake(((BACK, 'backward(loss * batch["weight"])'),),
        "How does the size of your gradient change if there are twice as many pairs?", MEAN, BY_HAND,
        "Gradient norms grow with --batch_size, and every update is clipped."),
    "the sum of the means": Mistake(((BACK, "backward(loss)"),),
        "How does the size of your gradient change if the same pairs come in twice as many batches?", MEAN, BY_HAND,
        "With --grad_accum 4 the logged gradient norm is two to four times as large as with 1."),
    "the total of these batches": Mistake((LISTED, (BACK,
        'backward(loss * (batch["weight"] / sum(b["weight"] for b in batches)))')),
        "`total` may be more than the weights that you see. Who else has batches of this update?", MEAN, ""),
    "backward without the argument": Mistake(((BACK, '(loss * (batch["weight"] / total)).backward()'),),
        "What is the argument `backward` for? Look at how train_step calls you.", MEMORY,
        "test_loop.py::test_a_float16_run_finds_its_scale_and_learns",
        "With --dtype float16 on a GPU the logged gradient norm is thousands of times smaller than in float32."),
    "one backward pass at the end": Mistake((("parts = []", "parts, whole = [], 0"),
        (BACK, 'whole = whole + loss * (batch["weight"] / total)'),
        ("return parts", "backward(whole)\n    return parts")),
        "When is the graph of the first batch freed? How many graphs are in memory before your last line?", MEMORY, ""),
    "the last batch alone": Mistake(((BACK, 'last = loss * (batch["weight"] / total)'),
        ("return parts", "backward(last)\n    return parts")),
        "How often is `backward` called, and how many batches have a part in your gradient? Change a pair of the first "
        "batch.", MEAN, BY_HAND, "With --grad_accum 4 only every fourth batch changes the weights."),
    "the loss with its graph": Mistake(((PART, PART.replace("loss.detach()", "loss")),),
        "What does a returned loss hold on to, if it still has a gradient?", RESULT, BY_HAND),
    "the weighted loss is returned": Mistake(((f"{BACK}\n        {PART}",    # a variant asks for it
        f"{BACK}\n        {PART}".replace("loss.detach()", '(loss * (batch["weight"] / total)).detach()')),),
        "The caller averages the metrics with the weights that you return. What if that was done already?", RESULT,
        BY_HAND, "The logged training loss is smaller than the validation loss by about the factor --grad_accum."),
    "metrics left out": Mistake(((PART, PART.replace(", **metrics", "")),),
        "Which numbers does the caller log besides the loss?", RESULT, BY_HAND),
    "all weights 1": Mistake(((PART, PART.replace('(batch["weight"], {', "(1, {")),),
        "What does the caller need to average the metrics of unequal batches?", RESULT, BY_HAND),
}
ALTERNATIVES = {
    "the share first": '''
def accumulate_gradients(compute_loss, batches, total, backward=torch.Tensor.backward):
    results = []
    for batch in batches:
        share = batch["weight"] / total
        mean, logged = compute_loss(batch)
        backward(share * mean)
        logged = dict(logged)
        logged["loss"] = mean.detach()
        results.append((batch["weight"], logged))
    return results
''',
    "sums": '''
def accumulate_gradients(compute_loss, batches, total, backward=torch.Tensor.backward):
    def one(batch):
        loss, metrics = compute_loss(batch)
        backward(loss * batch["weight"] / total)
        return batch["weight"], metrics | {"loss": loss.detach()}
    return [one(batch) for batch in batches]
''',
}
HIDDEN = ("Each backward pass adds to .grad",)
VARIANTS = {
    "the sum over pairs": (
        (BACK, 'backward(loss * batch["weight"])'),
        ("the gradient of the mean loss over all pairs", "the gradient of the summed loss over all pairs"),
        ("L = sum_i weight_i / total * L_i ", "L = sum_i weight_i * L_i "),
        ("The mean of the L_i would count a pair of a small batch more. total: the sum of all weights.",
         "total, the sum of all weights, has no effect: the loss is not divided by it.")),
    "the parts of the loss": (
        (BACK, BACK + '\n        loss = loss * (batch["weight"] / total)'),
        ("Returns (weight, metrics) of each batch.",
         'Returns (weight, metrics) of each batch. The metric "loss" is its part of L, weight_i / total * L_i.')),
}
