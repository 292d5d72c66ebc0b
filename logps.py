"""
The log-probability of a completion: log-softmax, gather, mask, sum.

    logps, lens = sequence_logps(model, idx, completion_mask)          # one sum for each row (N,)
    per_token = completion_token_logps(model, idx, completion_mask)    # one number for each token (N, T - 1)
    logps, lens = batch_logps(model, batch)                            # any layout of a batch; training calls this

`plain_logps` is the definition. The other functions give the same numbers in less time and memory.
All log-probs are in nats, and float32 under autocast. docs/speed.md says what the fast ways gain. Read next: losses.py
"""
import torch
import torch.nn.functional as F

from support import fast_logps
from support.fast_logps import distinct_rows, shared_logps

def plain_logps(model, idx, completion_mask):
    """
    log pi(completion | prompt), written as on a blackboard. sequence_logps has the same arguments and results.

    The model reads one token a column, and its output in a column is the prediction of the next column:

        column             0      1      2      3
        idx                the    plot   was    fine        "the plot" is the prompt, "was fine" the completion
        logits predict     plot   was    fine   -           logits[:, t] predicts idx[:, t + 1]
        completion_mask    0      0      1      1

    So the last column of the logits and the first columns of idx and of the mask are cut off. Then all three line up.
    """
    logits = model(idx)[:, :-1]                      # (N, T - 1, V)
    targets = idx[:, 1:]                             # (N, T - 1)
    mask = completion_mask[:, 1:]                    # (N, T - 1)
    logps = gather_logps(logits, targets)            # (N, T - 1)
    return (logps * mask).sum(1), mask.sum(1)        # (N,), (N,)

def gather_logps(logits, targets):
    """log softmax(logits)[target] in nats: logits (..., V), targets (...) -> (...), float32 (float64 stays)."""
    if logits.dtype != torch.float64:                # under autocast; bfloat16 keeps 3 digits, too few for a sum
        logits = logits.float()
    log_probs = logits.log_softmax(-1)               # (..., V)
    return log_probs.gather(-1, targets[..., None]).squeeze(-1)

def plain_token_logps(states, weight, targets):
    """The log-probs of tokens from the states before the head: states (M, C), weight (V, C), targets (M,) -> (M,)."""
    return gather_logps(F.linear(states, weight), targets)

# ---------------------------------------------------------------------------------------------------------------------
# the same numbers, faster

# This line chooses between the plain and the fast way. plain_token_logps works too, but keeps (M, V) tensors in memory.
token_logps = fast_logps.token_logps

def completion_token_logps(model, idx, completion_mask):
    """
    log pi(token | the tokens before it) of each completion token, in nats.

    idx              (N, T) prompt, completion, then padding of any kind
    completion_mask  (N, T) bool, true on the completion's tokens, EOS included
    returns          (N, T - 1): column t belongs to token idx[:, t + 1]; 0 outside the mask

    Only the states under the mask are multiplied by the head. With 50,257 tokens, this product costs more than all the
    blocks of a small GPT-2, and prompt and padding do not need it.
    """
    mask = completion_mask[:, 1:]                                    # (N, T - 1)
    # On a GPU, nonzero waits for all work queued before it. So it comes before the model and not after it.
    rows, columns = mask.nonzero(as_tuple=True)                      # (M,), (M,): M is the number of completion tokens
    states = model.features(idx)[rows, columns]                      # (M, C)
    targets = idx[rows, columns + 1]                                 # (M,): the states of column t predict column t + 1
    logps = token_logps(states, model.lm_head.weight, targets)       # (M,)
    return logps.new_zeros(mask.shape).masked_scatter(mask, logps)   # (N, T - 1)

def sequence_logps(model, idx, completion_mask):
    """
    log pi(completion | prompt), EOS included: (logps, lens). The arguments are those of completion_token_logps.

    logps  (N,) in nats, float32 under autocast: sums over the tokens under the mask
    lens   (N,) the numbers of tokens summed. Column 0 of the mask never counts, since nothing predicts it
    """
    per_token = completion_token_logps(model, idx, completion_mask)  # (N, T - 1)
    return per_token.sum(1), completion_mask[:, 1:].sum(1)           # (N,), (N,)

def batch_logps(model, batch):
    """
    (logps, lens) of a batch from data.collate: (N,) each for single completions. For pairs (2B,) each, all chosen, then
    all rejected. shared_logps computes a prompt once for both completions of a pair, with the same result.
    """
    if "segments" in batch:
        return shared_logps(model, batch["idx"], batch["segments"])
    idx, mask = batch["idx"], batch["completion_mask"]
    if torch.is_grad_enabled():                                      # in training, each row has its own dropout
        return sequence_logps(model, idx, mask)
    # Each of k samples of a prompt is in up to k - 1 pairs, and needs to be computed only once.
    idx, mask, place = distinct_rows(idx, mask)                      # (U, T), (U, T), (N,)
    logps, lens = sequence_logps(model, idx, mask)                   # (U,), (U,)
    return logps[place], lens[place]
