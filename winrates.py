"""
Win rates at equal length, and strengths of several runs: two logistic regressions on the votes of a judge.

    length_controlled    the win rate of a run if both answers had the same length: Dubois et al. 2024, arXiv:2404.04475
    bradley_terry        one strength for each run, from all comparisons of two: Bradley and Terry 1952
    strengths            the same from the votes on each prompt, with intervals

A vote is 1 if the run wins, 0 if it loses and 0.5 for a tie. The vote of a judge that gives probabilities may be any
number between 0 and 1. This file has no command and writes nothing. docs/judge.md explains both numbers.
Read first: measures.py. Read next: judge.py
"""
import numpy as np
import torch

STEPS = 100    # of Newton's method, at most

def logistic(features, votes, weights, ridge):
    """
    Fits a logistic regression to soft votes, once for each row of weights. Returns the parameters w, (R, F).

        maximize over w   sum_i weight_i [v_i log p_i + (1 - v_i) log(1 - p_i)] - sum_f ridge_f w_f^2 / 2
        where             p_i = sigmoid(x_i . w)

    features  x, (N, F), float64 like all others
    votes     v, (R, N) or (N,), each in [0, 1]
    weights   (R, N)
    ridge     (F,), not negative. It keeps w finite where the votes alone do not.
    """
    w = torch.zeros(len(weights), features.shape[1], dtype=torch.float64)
    for _ in range(STEPS):
        p = torch.sigmoid(w @ features.T)                                              # (R, N)
        gradient = (weights * (votes - p)) @ features - ridge * w                      # (R, F)
        curvature = torch.einsum("rn,nf,ng->rfg", weights * p * (1 - p), features, features) + torch.diag(ridge)
        step = torch.linalg.solve(curvature, gradient)                                 # (R, F)
        w = w + step
        if step.abs().max() < 1e-9:
            return w
    raise ValueError(f"a logistic regression did not converge in {STEPS} steps")

def resampled(n_items, n, seed):
    """
    How often each item is drawn, (1 + n, n_items): once each in the first row, with replacement in the n others.
    The draws are those of measures.bootstrap.
    """
    picks = torch.from_numpy(np.random.default_rng(seed).integers(0, n_items, (n, n_items)))
    counts = torch.zeros(n, n_items, dtype=torch.float64).scatter_add_(1, picks, torch.ones(n, n_items).double())
    return torch.cat([torch.ones(1, n_items, dtype=torch.float64), counts])

def interval(values):
    """[value, low, high] of values (1 + n,): the first, and the 2.5% and 97.5% percentiles of the n others."""
    low, high = np.percentile(values[1:].numpy(), [2.5, 97.5])
    return [float(values[0]), float(low), float(high)]

# ---------------------------------------------------------------------------------------------------------------------
# Two runs

def length_controlled(votes, length_differences, n=1000, seed=0, ridge=0.1):
    """
    The win rate if both answers had the same length, and the effect of length: {"win_rate", "gamma"}, each
    [value, low, high] with a 95% bootstrap interval over pairs. [NaN, 0, 1] and [0, 0, 0] without pairs.

        P(win) = sigmoid(theta + gamma * tanh(d / std(d)))
        win_rate = sigmoid(theta), the prediction at d = 0

    votes               (N,), the run's vote in each pair, in [0, 1]; the mean over both orders
    length_differences  d (N,), characters of the run's answer minus those of the other, as in AlpacaEval 2. Their unit
                        cancels. If all d are equal, length cannot be told from quality: gamma = 0.
    ridge               on gamma: a prior of N(0, 1 / ridge). Without it gamma is infinite if the longer answer always
                        wins. The ridge on theta is 1e-6: theta is finite even if the run always wins.

    AlpacaEval 2 has a third term, the difficulty of the instruction. It is estimated from all models of a leaderboard
    on the same instructions, which two runs do not have, so it is left out. Its code also has an L1 penalty, chosen by
    cross-validation, and adds judgements of a brief and a verbose baseline at a weight of 0.2. The ridge replaces both.
    """
    v = torch.as_tensor(votes, dtype=torch.float64)
    d = torch.as_tensor(length_differences, dtype=torch.float64)
    if v.shape != d.shape or v.dim() != 1:
        raise ValueError(f"votes {tuple(v.shape)} and length differences {tuple(d.shape)} must both be (N,)")
    if not ((v >= 0) & (v <= 1)).all():
        raise ValueError("a vote must be between 0 and 1")
    if not len(v):
        return {"win_rate": [float("nan"), 0.0, 1.0], "gamma": [0.0, 0.0, 0.0]}
    std = d.std(correction=0)
    t = torch.tanh(d / std) if std > 0 else torch.zeros_like(d)
    features = torch.stack([torch.ones_like(t), t], 1)                                  # (N, 2)
    w = logistic(features, v, resampled(len(v), n, seed), torch.tensor([1e-6, ridge], dtype=torch.float64))
    return {"win_rate": interval(torch.sigmoid(w[:, 0])), "gamma": interval(w[:, 1])}

def effect_of_length(gamma):
    """What the interval of gamma, [value, low, high], says. It does not say why: longer answers may be better ones."""
    if gamma[1] > 0:
        return "longer answers win more often"
    return "shorter answers win more often" if gamma[2] < 0 else "no clear effect of length"

# ---------------------------------------------------------------------------------------------------------------------
# Many runs

def check_connected(games):
    """Raises ValueError if some runs were never compared with run 0, not even through others. games: (n, n) counts."""
    reached, before = torch.zeros(len(games), dtype=torch.bool), -1
    reached[0] = True
    while reached.sum() > before:
        before = int(reached.sum())
        reached |= (games[reached] > 0).any(0)
    if not reached.all():
        apart = ", ".join(str(i) for i in (~reached).nonzero().flatten().tolist())
        raise ValueError(f"runs {apart} were never compared with run 0, not even through other runs: their strengths "
                         "have no common scale")

def bradley_terry(wins, prior=0.5):
    """
    The strengths of n runs in nats, with mean 0: maximum likelihood. Same shape as wins without its last dimension.

        P(i beats j) = sigmoid(strength_i - strength_j)

    wins   (n, n) or (R, n, n): wins[i, j] is how often i beat j, with half a win for a tie. The diagonal is not read.
    prior  > 0, wins added to both sides of each pair, so that an unbeaten run has a finite strength. 0.5 is one tie.

    400 / log(10) = 174 points of Elo are one nat. Raises ValueError if there are fewer than two runs, or if some were
    never compared with the others.
    """
    wins = torch.as_tensor(wins, dtype=torch.float64)
    n = wins.shape[-1]
    if n < 2 or wins.shape[-2] != n:
        raise ValueError(f"wins must be (n, n) for at least 2 runs, not {tuple(wins.shape)}")
    if prior <= 0:
        raise ValueError(f"prior {prior} must be above 0: without it an unbeaten run has no finite strength")
    several = wins.reshape(-1, n, n)                                                    # (R, n, n)
    check_connected((several + several.mT).sum(0))
    i, j = torch.triu_indices(n, n, 1)                                                  # each pair of runs once
    won, lost = several[:, i, j] + prior, several[:, j, i] + prior                      # (R, pairs)
    # Strength differences are linear in the strengths. Run 0 is fixed at 0, since a constant for all changes nothing
    eye = torch.eye(n, dtype=torch.float64)
    features = (eye[i] - eye[j])[:, 1:]                                                 # (pairs, n - 1)
    found = logistic(features, won / (won + lost), won + lost, torch.zeros(n - 1, dtype=torch.float64))
    found = torch.cat([torch.zeros(len(several), 1, dtype=torch.float64), found], 1)    # (R, n)
    return (found - found.mean(1, keepdim=True)).reshape(wins.shape[:-1])

def strengths(votes, n=1000, seed=0, prior=0.5):
    """
    bradley_terry's strengths from the votes on each prompt, as a list of [strength, low, high].

    votes  (prompts, runs, runs): votes[p, i, j] is the vote for run i against run j, and 1 minus the vote for j against
           i. NaN where there is none.

    The intervals are 95% bootstrap intervals over prompts. All pairs of runs share the resampled prompts: an easy or an
    odd prompt is in all their comparisons, so the comparisons are not independent. Raises ValueError as bradley_terry.
    """
    votes = torch.as_tensor(votes, dtype=torch.float64)
    if not len(votes):
        raise ValueError("there are no votes: strengths need at least one prompt")
    counts = resampled(len(votes), n, seed)                                             # (1 + n, prompts)
    wins = torch.einsum("rp,pij->rij", counts, votes.nan_to_num(0.0))
    return [interval(column) for column in bradley_terry(wins, prior).T]
