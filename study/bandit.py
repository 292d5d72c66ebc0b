"""
A world small enough to solve: what each loss optimizes, against what its paper says it does.

    python -m study.bandit              # writes out/bandit
    python -m study.bandit --update     # writes study/results and study/figures, which the README shows

A prompt has a handful of answers, a reference policy and a true reward; the policy is a table of logits. Everything can be enumerated:
the expected loss over all pairs, the best policy for every KL, and each method's distance from it. All in float64, in nats.

    pair weights   mu(i) mu(j), mu the policy that the answers were sampled from (the reference, unless coverage is partial)
    preferences    P(i beats j) = sigmoid(r_i - r_j) (Bradley-Terry), or 1 for the better one (deterministic)
    RLHF optimum   pi(i) proportional to ref(i) exp(r_i / beta)

Prints a table, writes bandit.csv and draws bandit.png. Read first: losses.py
"""
import csv
from pathlib import Path

import torch

from support import cli
from train_pref import LOSSES, Pairs    # which says in one line what is wrong with a new loss

ROOT = Path(__file__).resolve().parent
LEFT_OUT = tuple(n for n, loss in LOSSES.items() if loss.whole_batch)    # of a batch of samples: an expectation over all pairs has none

# ---------------------------------------------------------------------------------------------------------------------
# the world, and its solutions

def world(n_prompts=4, n_answers=6, seed=0):
    """(ref, reward): log-probs of the reference and true rewards, (X, A) each."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda scale: scale * torch.randn(n_prompts, n_answers, generator=g, dtype=torch.float64)
    return draw(1.0).log_softmax(1), draw(1.0)

def bradley_terry(reward):
    """P(i beats j), (X, A, A)."""
    return (reward[:, :, None] - reward[:, None, :]).sigmoid()

def deterministic(reward):
    """The same where the better answer always wins; an answer against itself is a coin."""
    return ((reward[:, :, None] - reward[:, None, :]).sign() + 1) / 2

def rlhf_optimum(ref, reward, beta):
    """log of ref * exp(r / beta) / Z: the policy of largest E[r] - beta KL(policy || ref). (X, A)"""
    return (ref + reward / beta).log_softmax(1)

def f_optimum(ref, reward, beta, divergence, alpha=0.5):
    """
    log of the policy of largest E[r] - beta D_f(policy || ref), by the KKT condition beta f'(u_i) = r_i - nu with u = pi / ref: nu by
    bisection, such that the policy sums to 1. It knows nothing of the loss: it inverts f', where the loss has f' itself.
    """
    inverse, top = {    # u for s = (r - nu) / beta, and the least upper bound of s
        "reverse_kl": (lambda s: s.exp(), torch.inf),                                 # f' = log u, constants go into nu
        "forward_kl": (lambda s: -1 / s, 0.0),                                        # f' = -1 / u
        "jsd": (lambda s: s.exp() / (2 - s.exp()), torch.tensor(2.0).log().item()),   # f' = log(2 u / (1 + u))
        "alpha": (lambda s: (1 - alpha * s) ** (-1 / alpha), 1 / alpha),              # f' = (1 - u^-alpha) / alpha
    }[divergence]
    total = lambda nu: (ref.exp() * inverse((reward - nu) / beta)).sum(1, keepdim=True)
    low = reward.max(1, keepdim=True).values - beta * min(top, 50.0)    # s at its bound for the best answer: the sum is too large
    high = low + 1
    while (total(high) > 1).any():
        high = torch.where(total(high) > 1, high + (high - low), high)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = torch.where(total(middle) > 1, middle, low), torch.where(total(middle) > 1, high, middle)
    return ref + inverse((reward - high) / beta).log()

def ipo_optimum(ref, preference, mu, beta):
    """log of ref * exp(P(i beats mu) / beta) / Z: IPO's closed form, with pairs drawn from mu. (X, A)"""
    return (ref + (preference * mu[:, None, :]).sum(2) / beta).log_softmax(1)

# ---------------------------------------------------------------------------------------------------------------------
# training: the expected loss over all pairs, minimized

def expected_loss(logits, ref, preference, weights, name, **hparams):
    """The loss's mean over all ordered pairs (chosen i, rejected j): weights (X, A, A) times P(i beats j), answers one token long."""
    X, A = ref.shape
    i, j = (k.reshape(-1) for k in torch.meshgrid(torch.arange(A), torch.arange(A), indexing="ij"))
    i, j = i[i != j], j[i != j]
    log_pi, ones = logits.log_softmax(1), torch.ones(X * len(i), dtype=ref.dtype)
    part = lambda table, k: table[:, k].reshape(-1)    # (X * pairs,)
    pairs = Pairs(part(log_pi, i), part(log_pi, j), part(ref, i), part(ref, j), ones, ones, 0 * ones)    # the KL's estimate is 0
    losses = LOSSES[name].fn(pairs, **hparams)[0]
    p = (weights * preference)[:, i, j].reshape(-1)
    return (p * losses).sum() / p.sum()

def train(ref, preference, weights, name, steps=400, start=None, **hparams):
    """log of the policy that minimizes the expected loss, from the reference on: L-BFGS, or Adam for losses with corners or no minimum."""
    logits = (ref if start is None else start).clone().requires_grad_()
    first = logits.detach().clone()
    loss = lambda: expected_loss(logits, ref, preference, weights, name, **hparams)
    if name not in ("hinge", "slic", "dpop", "chipo", "unlikelihood"):
        optimizer = torch.optim.LBFGS([logits], max_iter=steps, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")
        def closure():
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value
        optimizer.step(closure)
        if logits.isfinite().all():
            return logits.detach().log_softmax(1)
        logits.data.copy_(first)    # a loss without a minimum: a line search finds no end
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for step in range(5 * steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / (5 * steps))
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return logits.detach().log_softmax(1)

def descend(ref, preference, weights, name, steps, lr, **hparams):
    """Plain gradient descent from the reference, for what happens on the way: log of the policy after `steps`."""
    logits = ref.clone().requires_grad_()
    for _ in range(steps):
        grad, = torch.autograd.grad(expected_loss(logits, ref, preference, weights, name, **hparams), logits)
        logits.data -= lr * grad
    return logits.detach().log_softmax(1)

def reward_model(preference, weights, steps=400):
    """The Bradley-Terry rewards that maximize the likelihood of the preferences, (X, A), up to a constant a prompt."""
    X, A, _ = preference.shape
    flat = torch.zeros(X, A, dtype=preference.dtype)
    return train(flat, preference, weights, "dpo", steps, beta=1.0)    # with a flat reference, dpo is the likelihood itself

# ---------------------------------------------------------------------------------------------------------------------
# measures

def expected_reward(policy, reward):
    return (policy.exp() * reward).sum(1).mean().item()

def kl(policy, ref):
    return (policy.exp() * (policy - ref)).sum(1).mean().item()

def frontier(ref, reward, betas):
    """[(KL, expected reward)] of the RLHF optima."""
    return [(kl(p, ref), expected_reward(p, reward)) for p in (rlhf_optimum(ref, reward, b) for b in betas)]

def best_reward(ref, reward, nats):
    """The largest expected reward at a KL of at most `nats`: on the frontier, by bisection over log beta."""
    low, high = -7.0, 9.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(rlhf_optimum(ref, reward, 10.0 ** middle), ref) > nats else (low, middle)
    return expected_reward(rlhf_optimum(ref, reward, 10.0 ** high), reward)

# a beta on this world's scale, rewards of about 1 nat, not the toy world's; the rest are the defaults
SETTINGS = {"slic": {"reg": 0.5}, "orpo": {"lam": 1.0}, "simpo": {"beta": 1.0, "gamma_beta_ratio": 0.0}, "unlikelihood": {}, "sft": {}}

def rows(seed=0, beta=1.0):
    """A dict a loss: reward and KL with full and with partial coverage, distance to the frontier, mass on answers never seen."""
    ref, reward = world(seed=seed)
    preference, full = bradley_terry(reward), ref.exp()[:, :, None] * ref.exp()[:, None, :]
    seen = torch.arange(ref.shape[1]) < 3    # with partial coverage pairs are made of the first three answers alone
    partial = full * (seen[:, None] & seen[None, :])
    out = []
    for name in (n for n in LOSSES if n not in LEFT_OUT):
        hparams = SETTINGS.get(name, {"beta": beta} if "beta" in LOSSES[name].hparams else {})
        policy, half = (train(ref, preference, weights, name, 200, **hparams) for weights in (full, partial))
        got, nats = expected_reward(policy, reward), kl(policy, ref)
        out.append({"loss": name, "settings": " ".join(f"{k}={v}" for k, v in hparams.items()), "reward": got, "kl": nats,
                    "below the frontier": best_reward(ref, reward, nats) - got,
                    "unseen before": ref.exp()[:, ~seen].sum(1).mean().item(), "unseen after": half.exp()[:, ~seen].sum(1).mean().item()})
    return out

def draw(table, path, seed=0):
    """bandit.png: the frontier of RLHF optima, and where each loss ends."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    ref, reward = world(seed=seed)
    fig, ax = plt.subplots(figsize=(8, 5))
    ax.plot(*zip(*frontier(ref, reward, torch.logspace(-1.2, 2, 100).tolist())), color="0.6", label="RLHF optima, ref * exp(r / beta)")
    for k, row in enumerate(table):
        ax.plot(row["kl"], row["reward"], "os^"[k // 10], color=f"C{k % 10}", ms=6, label=row["loss"])
    ax.set(xlabel="KL to the reference (nats)", ylabel="expected reward", title="Bradley-Terry preferences, full coverage", xlim=(0, 1.2))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--seed", type=cli.seed, default=0, help="of the reference and the rewards (default: %(default)s)")
    p.add_argument("--beta", type=cli.above_zero, default=1.0, help="of every loss that has one (default: %(default)s)")
    p.add_argument("--threads", type=cli.positive, default=1, help="of the CPU; the last digits depend on it (default: %(default)s)")
    p.add_argument("--update", action="store_true", help="overwrite the files of the README, study/results and study/figures")
    return p.parse_args(argv)

def main(argv=None):
    args = get_args(argv)
    torch.set_num_threads(args.threads)
    with cli.interruptible("-m study.bandit", args, argv):
        show(rows(args.seed, args.beta), args.seed, args.update)

def show(table, seed, update=False):
    """Prints, writes and draws the table: into out/bandit, or, to update the project's own, into study/."""
    print(f"{'loss':14}{'reward':>8}{'KL':>9}{'below the frontier':>20}{'mass on unseen answers':>30}")
    for r in table:
        print(f"{r['loss']:14}{r['reward']:8.3f}{r['kl']:9.3f}{r['below the frontier']:20.4f}"
              f"{r['unseen before']:18.3f} -> {r['unseen after']:.3f}")
    results, figures = (ROOT / "results", ROOT / "figures") if update else (Path("out/bandit"),) * 2
    for folder in (results, figures):
        folder.mkdir(parents=True, exist_ok=True)
    with open(results / "bandit.csv", "w", newline="") as f:
        out = csv.DictWriter(f, list(table[0]), lineterminator="\n")
        out.writeheader()
        out.writerows({k: v if isinstance(v, str) else f"{v:.5g}" for k, v in r.items()} for r in table)
    draw(table, figures / "bandit.png", seed)
    print(f"written: {results / 'bandit.csv'}, {figures / 'bandit.png'}")

if __name__ == "__main__":
    main()
