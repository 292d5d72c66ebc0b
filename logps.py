"""
The log-prob of a completion, gathered by hand: from a model's states, in pieces, with the prompt of a pair once or twice.

    logps, lens = sequence_logps(model, idx, completion_mask)    # (N, T) -> (N,): each row a prompt and one completion
    logps, lens = shared_logps(model, idx, segments)             # (B, T) -> (2B,): each row a prompt and both completions of a pair

Both give the same numbers: sums over a completion's tokens, EOS included, in nats, float32 whatever the autocast.
Read first: model.py. Read next: losses.py
"""
import torch

from support.cpu import linear    # F.linear, faster in float32 on a CPU

PIECE = 2**23    # logits that stand in memory at once, 32 MB of float32

class TokenLogps(torch.autograd.Function):
    """
    log softmax(states @ weight.T)[target]: states (M, C), weight (V, C), targets (M,) -> (M,) float32 (float64 if the states are).

    The plain way keeps (M, V) logits, and about as much again twice, until backward is through: at 50,257 tokens more than the model.
    Here they are made a few rows at a time, and once more in backward, since d logp / d logits = onehot(target) - softmax(logits)
    needs nothing else. That is 8 M C V operations in place of 6, and no slower, because memory that is not asked for costs nothing.
    """
    @staticmethod
    def forward(ctx, states, weight, targets):
        logps, norms, ctx.rows = [], [], max(1, PIECE // len(weight))
        for s, t in zip(states.split(ctx.rows), targets[:, None].split(ctx.rows)):
            logits = linear(s, weight)                                    # (rows, V), in the autocast's dtype
            ctx.dtype = logits.dtype
            logits = logits if logits.dtype == torch.float64 else logits.float()    # bf16 would keep 3 digits of a sum of hundreds
            top = logits.amax(1, keepdim=True)                            # subtracted, so that no exp overflows
            picked = logits.sub_(top).gather(1, t)                        # (rows, 1)
            norm = logits.exp_().sum(1, keepdim=True).log()               # (rows, 1)
            logps.append(picked - norm)
            norms.append(norm + top)
        ctx.save_for_backward(states, weight, targets, torch.cat(norms))
        return torch.cat(logps).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        states, weight, targets, norms = ctx.saved_tensors
        s, w = states.to(ctx.dtype), weight.to(ctx.dtype)                 # autocast does not reach backward
        grad_states, grad_weight = torch.zeros_like(s), None
        for at in range(0, len(s), ctx.rows):
            part = slice(at, at + ctx.rows)
            g, logits = grad[part, None], linear(s[part], w)              # (rows, 1), (rows, V)
            probs = logits.to(norms.dtype).sub_(norms[part]).exp_()
            d = probs.mul_(-g).scatter_add_(1, targets[part, None], g).to(ctx.dtype)    # (onehot - softmax) * g
            if ctx.needs_input_grad[0]:
                grad_states[part] = d @ w                                 # (rows, C)
            if ctx.needs_input_grad[1]:                                   # not where the base is frozen
                more = (d.t() @ s[part]).to(weight.dtype)                 # (V, C), added up in float32
                grad_weight = more if grad_weight is None else grad_weight.add_(more)
        return grad_states.to(states.dtype), grad_weight, None

def sequence_logps(model, idx, completion_mask):
    """
    log pi(completion | prompt), summed over the tokens under the mask, EOS included.

    idx              (N, T) prompt, completion, then padding of any kind
    completion_mask  (N, T) bool, true on the completion's tokens. Column 0 has nothing before it and never counts.
    returns          logps (N,) in nats, fp32 whatever the autocast; lens (N,) how many tokens were summed

    The vocabulary is paid for only under the mask: at 50,257 tokens it costs more than the trunk of a small GPT-2.
    """
    mask = completion_mask[:, 1:]                                  # (N, T - 1): logits[:, t] predicts idx[:, t + 1]
    rows, at = mask.nonzero(as_tuple=True)                         # (M,), M = all completion tokens. Here, since a GPU is waited for
    states, targets = model.features(idx)[rows, at], idx[rows, at + 1]       # (M, C), (M,)
    token_logps = TokenLogps.apply(states, model.lm_head.weight, targets)    # (M,)
    per_position = token_logps.new_zeros(mask.shape).masked_scatter(mask, token_logps)    # (N, T - 1)
    return per_position.sum(1), mask.sum(1)

def shared_logps(model, idx, segments):
    """
    The same for both completions of a pair, behind a prompt that stands in memory, and is computed, once.

    idx       (B, T) prompt, chosen, rejected, padding
    segments  (B, T) 0 on the prompt (at least one token), 1 on the chosen, 2 on the rejected, 3 on padding
    returns   logps (2B,), lens (2B,), chosen on top of rejected, as sequence_logps would have them

    A token sees what it would see if its completion stood alone: a rejected token looks past the chosen ones, has the position that
    it would have without them, and the first one is predicted, like the first chosen one, at the prompt's last token.
    """
    B, T = idx.shape
    column, chosen, rejected = torch.arange(T, device=idx.device), segments == 1, segments == 2
    n_prompt, n_chosen = (segments == 0).sum(1, keepdim=True), chosen.sum(1, keepdim=True)    # (B, 1)
    positions = (column - n_chosen * rejected).masked_fill(segments == 3, 0)                 # (B, T)
    sees = (column <= column[:, None]) & ~(rejected[:, :, None] & chosen[:, None])           # (B, T, T): query, key
    before = column - 1 - n_chosen * (rejected & (column == n_prompt + n_chosen))            # (B, T): where a token is predicted
    sides = chosen | rejected
    rows, at = sides.nonzero(as_tuple=True)                                                  # (M,)
    states = model.features(idx, positions=positions, mask=sees[:, None])                    # (B, T, C)
    token_logps = TokenLogps.apply(states[rows, before[rows, at]], model.lm_head.weight, idx[rows, at])    # (M,)
    per_position = token_logps.new_zeros(B, T).masked_scatter(sides, token_logps)            # (B, T)
    sums = [(per_position * side).sum(1) for side in (chosen, rejected)]
    return torch.cat(sums), torch.cat([chosen.sum(1), rejected.sum(1)])

def batch_logps(model, batch):
    """(logps (2B,), lens (2B,)) of a batch of pairs in either layout; of single completions (N,) each."""
    if "segments" in batch:
        return shared_logps(model, batch["idx"], batch["segments"])
    return sequence_logps(model, batch["idx"], batch["completion_mask"])
