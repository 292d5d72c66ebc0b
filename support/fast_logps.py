"""
Fast log-probs: log-softmax in chunks of rows, equal rows computed once, and pairs whose prompt is computed once.

    logps = token_logps(states, weight, targets)        # as plain_token_logps of logps.py: (M, C), (V, C), (M,) -> (M,)
    idx, mask, place = distinct_rows(idx, mask)         # each row of a batch once: (U, T), (U, T), (N,)
    logps, lens = shared_logps(model, idx, segments)    # as sequence_logps of logps.py, two completions a row

Values and gradients are those of the plain ways up to rounding. logps.py chooses between them.
docs/speed.md has the measurements. Read next: logps.py
"""
import torch

from support.cpu import linear    # F.linear, faster in float32 on a CPU

CHUNK = 2**23    # numbers in a chunk of logits: 32 MB in float32

# ---------------------------------------------------------------------------------------------------------------------
# log-softmax in chunks

def token_logps(states, weight, targets):
    """log softmax(states @ weight.T)[target] in nats: states (M, C), weight (V, C), targets (M,) -> (M,)."""
    return TokenLogps.apply(states, weight, targets)

class TokenLogps(torch.autograd.Function):
    """
    token_logps with a gradient written by hand. The values are float32, or float64 if the states are.

    The plain way keeps the (M, V) logits until backward, and about two more tensors of that size. For V = 50,257 they
    take more memory than the model. Here, logits exist for a few rows at a time. Backward computes them again, because

        d logp / d logits = onehot(target) - softmax(logits)

    needs nothing else. This costs 8 M C V operations instead of 6. It is not slower, since it moves less memory.
    """
    @staticmethod
    def forward(ctx, states, weight, targets):
        ctx.rows = max(1, CHUNK // len(weight))                      # rows in a chunk
        logps, norms = [], []
        for chunk, target in zip(states.split(ctx.rows), targets[:, None].split(ctx.rows)):
            logits = linear(chunk, weight)                           # (rows, V), in the dtype of the autocast
            ctx.dtype = logits.dtype
            if logits.dtype != torch.float64:                        # bfloat16 keeps 3 digits, too few for a sum
                logits = logits.float()
            top = logits.amax(1, keepdim=True)                       # (rows, 1), subtracted: exp must not overflow
            picked = logits.sub_(top).gather(1, target)              # (rows, 1)
            norm = logits.exp_().sum(1, keepdim=True).log()          # (rows, 1)
            logps.append(picked - norm)
            norms.append(norm + top)                                 # log sum exp of the logits
        ctx.save_for_backward(states, weight, targets, torch.cat(norms))
        return torch.cat(logps).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        states, weight, targets, norms = ctx.saved_tensors
        s, w = states.to(ctx.dtype), weight.to(ctx.dtype)            # autocast does not reach backward
        grad_states, grad_weight = torch.zeros_like(s), None
        for start in range(0, len(s), ctx.rows):
            part = slice(start, start + ctx.rows)
            logits = linear(s[part], w)                              # (rows, V)
            probs = logits.to(norms.dtype).sub_(norms[part]).exp_()  # (rows, V)
            g = grad[part, None]                                     # (rows, 1)
            grad_logits = probs.mul_(-g).scatter_add_(1, targets[part, None], g)    # (onehot - softmax) * g
            grad_logits = grad_logits.to(ctx.dtype)
            if ctx.needs_input_grad[0]:
                grad_states[part] = grad_logits @ w                  # (rows, C)
            if ctx.needs_input_grad[1]:                              # false if the head is frozen
                grad_weight = add_product(grad_weight, grad_logits.t(), s[part], weight.dtype)    # (V, C)
        return grad_states.to(states.dtype), grad_weight, None

def add_product(total, a, b, dtype):
    """total + a @ b in a dtype, or a @ b if total is None. In one dtype nothing of the size of total is allocated."""
    if total is None:
        return (a @ b).to(dtype)
    if a.dtype == total.dtype:
        return total.addmm_(a, b)
    return total.add_((a @ b).to(dtype))    # under autocast: products in bfloat16, their sum in float32

# ---------------------------------------------------------------------------------------------------------------------
# equal rows

def distinct_rows(idx, completion_mask):
    """
    The U different rows of a batch: idx (U, T), completion_mask (U, T), and place (N,): row n is row place[n] of these.
    Sorted by tokens; in the order of the batch if all N rows differ.
    """
    N, device = len(idx), idx.device
    both = torch.cat([idx, completion_mask], 1).cpu()                # (N, 2T): not every device sorts rows
    rows, place = both.unique(dim=0, return_inverse=True)            # (U, 2T), (N,)
    if len(rows) == N:
        return idx, completion_mask, torch.arange(N, device=device)
    idx, completion_mask = rows.to(device).chunk(2, 1)
    return idx, completion_mask.bool(), place.to(device)

# ---------------------------------------------------------------------------------------------------------------------
# a pair behind one prompt

PROMPT, CHOSEN, REJECTED, PADDING = range(4)    # the values of `segments`

def shared_logps(model, idx, segments):
    """
    log pi(completion | prompt) for both completions of a pair. The prompt is stored and computed once.

    idx       (B, T) prompt, chosen, rejected, padding
    segments  (B, T) 0 on the prompt (at least one token), 1 on the chosen, 2 on the rejected completion, 3 on padding
    returns   logps (2B,) in nats, lens (2B,): all chosen, then all rejected, as sequence_logps gives them

    The completions do not see each other. shared_layout explains how, with an example.
    """
    chosen, rejected = segments == CHOSEN, segments == REJECTED
    completions = chosen | rejected
    positions, sees, before = shared_layout(segments)
    # On a GPU, nonzero waits for all work queued before it. So it comes before the model and not after it.
    rows, columns = completions.nonzero(as_tuple=True)                                  # (M,), (M,)
    predicting = before[rows, columns]                                                  # (M,)
    states = model.features(idx, positions=positions, mask=sees[:, None])               # (B, T, C)
    states, targets = states[rows, predicting], idx[rows, columns]                      # (M, C), (M,)
    logps = token_logps(states, model.lm_head.weight, targets)                          # (M,)
    per_token = logps.new_zeros(idx.shape).masked_scatter(completions, logps)           # (B, T)
    chosen_logps = (per_token * chosen).sum(1)                                          # (B,)
    rejected_logps = (per_token * rejected).sum(1)                                      # (B,)
    lens = torch.cat([chosen.sum(1), rejected.sum(1)])
    return torch.cat([chosen_logps, rejected_logps]), lens

def shared_layout(segments):
    """
    Positions, attention mask and prediction columns of rows that hold a prompt and two completions.

    segments   (B, T), see shared_logps
    positions  (B, T) the position embedding of a token
    sees       (B, T, T) bool, true where the query (first T) may see the key (second T)
    before     (B, T) the column whose state predicts a token; only the completions' columns are used

    An example with B = 2. The first row has the prompt "a b", chosen "c d" and rejected "e f". The second row has the
    prompt "p", chosen "q", rejected "r s" and two columns of padding.

        column       0  1  2  3  4  5            0  1  2  3  4  5
        token        a  b  c  d  e  f            p  q  r  s  .  .
        segments     0  0  1  1  2  2            0  1  2  2  3  3
        positions    0  1  2  3  2  3            0  1  1  2  0  0        rejected tokens count on from the prompt
        before       -  -  1  2  1  4            -  0  0  2  -  -        e, like c, is predicted by b; r, like q, by p

        sees         a  b  c  d  e  f            p  q  r  s  .  .
                  a  x                        p  x
                  b  x  x                     q  x  x
                  c  x  x  x                  r  x     x
                  d  x  x  x  x               s  x     x  x
                  e  x  x        x            .  x  x  x  x  x           nothing reads what padding sees
                  f  x  x        x  x         .  x  x  x  x  x  x

    So each completion token has the inputs that it would have if its completion stood alone behind the prompt.
    """
    column = torch.arange(segments.shape[1], device=segments.device)                    # (T,)
    chosen, rejected = segments == CHOSEN, segments == REJECTED                         # (B, T)
    n_prompt = (segments == PROMPT).sum(1, keepdim=True)                                # (B, 1)
    n_chosen = chosen.sum(1, keepdim=True)                                              # (B, 1)

    # the rejected completion follows the prompt, so its positions leave out the chosen tokens
    positions = (column - n_chosen * rejected).masked_fill(segments == PADDING, 0)

    causal = column <= column[:, None]                                                  # (T, T)
    rejected_to_chosen = rejected[:, :, None] & chosen[:, None]                         # (B, T, T)
    sees = causal & ~rejected_to_chosen

    # each token is predicted one column earlier, but the first rejected token at the end of the prompt
    first_rejected = rejected & (column == n_prompt + n_chosen)
    before = column - 1 - n_chosen * first_rejected
    return positions, sees, before
