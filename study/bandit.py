"""
An exact world: the optimum of every loss, compared with the best policies for its KL to the reference.

    python -m study.bandit              # writes bandit.csv and bandit.png into out/bandit
    python -m study.bandit --update     # overwrites study/results and study/figures, which docs/losses.md shows

The world has X prompts with A answers each, a reference policy and a true reward. The policy is a table of logits.
Because the answers are few, everything can be enumerated: the expected loss over all pairs, the policy with the highest
reward at every KL, and the distance of each loss from it. Numbers are float64. Log-probs, KL and rewards are in nats.

    pair weights   mu(i) mu(j),   mu = policy that the answers are sampled from: the reference with full coverage
    preferences    P(i beats j) = sigmoid(r_i - r_j) (Bradley-Terry), or 1 for the better answer (deterministic)
    RLHF optimum   policy(i) proportional to ref(i) exp(r_i / beta): highest E[r] - beta KL(policy || ref)

Policies are log-probs (X, A). docs/losses.md discusses the results. Read first: losses.py
"""
import torch

from study import places
from support import cli
from train_pref import LOSSES, Pairs    # not from losses: train_pref reports an error in a new loss in one line

# ---------------------------------------------------------------------------------------------------------------------
# the world and its optimal policies

def world(n_prompts=4, n_answers=6, seed=0):
    """(ref, reward): log-probs of a random reference, and random true rewards, (X, A) each."""
    g = torch.Generator().manual_seed(seed)
    ref = torch.randn(n_prompts, n_answers, generator=g, dtype=torch.float64).log_softmax(1)
    reward = torch.randn(n_prompts, n_answers, generator=g, dtype=torch.float64)
    return ref, reward

def bradley_terry(reward):
    """P(i beats j) = sigmoid(r_i - r_j). reward (X, A) -> (X, A, A)."""
    return (reward[:, :, None] - reward[:, None, :]).sigmoid()

def deterministic(reward):
    """P(i beats j) where the better answer always wins, and 1/2 for equal ones. reward (X, A) -> (X, A, A)."""
    return ((reward[:, :, None] - reward[:, None, :]).sign() + 1) / 2

def rlhf_optimum(ref, reward, beta):
    """The policy ref * exp(r / beta) / Z, which maximizes E[r] - beta KL(policy || ref). All (X, A)."""
    return (ref + reward / beta).log_softmax(1)

def f_optimum(ref, reward, beta, divergence, alpha=0.5):
    """
    The policy that maximizes E[r] - beta D_f(policy || ref), from the KKT condition. ref, reward (X, A) -> (X, A).

        beta f'(u_i) = r_i - nu,   u = policy / ref

    nu is found by bisection, such that the policy sums to 1. The loss uses f'. This function
    uses its inverse, so that the two are independent.

    divergence  "reverse_kl", "forward_kl", "jsd" or "alpha" (with alpha in (0, 1))
    """
    # divergence -> (u as a function of s = (r - nu) / beta, the least upper bound of s)
    inverse, bound = {
        "reverse_kl": (lambda s: s.exp(), torch.inf),                                 # f' = log u, constants go into nu
        "forward_kl": (lambda s: -1 / s, 0.0),                                        # f' = -1 / u
        "jsd": (lambda s: s.exp() / (2 - s.exp()), torch.tensor(2.0).log().item()),   # f' = log(2 u / (1 + u))
        "alpha": (lambda s: (1 - alpha * s) ** (-1 / alpha), 1 / alpha),              # f' = (1 - u^-alpha) / alpha
    }[divergence]
    total = lambda nu: (ref.exp() * inverse((reward - nu) / beta)).sum(1, keepdim=True)    # (X, 1)

    # total falls as nu rises. At low, s is at its bound for the best answer, so total is above 1. Raise high until
    # total is below 1, then bisect.
    low = reward.max(1, keepdim=True).values - beta * min(bound, 50.0)
    high = low + 1
    while (total(high) > 1).any():
        high = torch.where(total(high) > 1, high + (high - low), high)
    for _ in range(200):
        middle = (low + high) / 2
        too_low = total(middle) > 1
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return ref + inverse((reward - high) / beta).log()

def ipo_optimum(ref, preference, mu, beta):
    """
    IPO's optimum in closed form, ref * exp(P(i beats mu) / beta) / Z: Azar et al. 2023, arXiv:2310.12036.
    ref (X, A), preference (X, A, A), mu (X, A): probabilities of the policy that the answers are drawn from -> (X, A).
    """
    return (ref + (preference * mu[:, None, :]).sum(2) / beta).log_softmax(1)

# ---------------------------------------------------------------------------------------------------------------------
# training: minimize the expected loss over all pairs

def chosen_gaps(preference):
    """r_i - r_j in nats, for odpo: the logit of P(i beats j), at most 13.8. preference (X, A, A) -> (X, A, A)."""
    return (preference / (preference + preference.transpose(1, 2))).logit(1e-6)    # numbers of wins are shares then

def expected_loss(logits, ref, preference, weights, name, **hparams):
    """
    Mean loss () over all ordered pairs (chosen i, rejected j), i != j, each weighted by weights * P(i beats j).
    logits, ref (X, A); preference, weights (X, A, A). Every answer has one token.
    """
    X, A = ref.shape
    i, j = (~torch.eye(A, dtype=torch.bool)).nonzero(as_tuple=True)  # all i != j, the same for every prompt
    policy = logits.log_softmax(1)                                   # (X, A)
    chosen = lambda table: table[:, i].reshape(-1)                   # (X, A) -> (X * A * (A - 1),)
    rejected = lambda table: table[:, j].reshape(-1)
    ones = torch.ones(X * len(i), dtype=ref.dtype)
    no_kl = 0 * ones    # the KL estimate that KTO takes from the other pairs of a batch
    pairs = Pairs(chosen(policy), rejected(policy), chosen(ref), rejected(ref), ones, ones, no_kl,
                  chosen_gaps(preference)[:, i, j].reshape(-1))
    losses = LOSSES[name].fn(pairs, **hparams)[0]
    p = (weights * preference)[:, i, j].reshape(-1)
    return (p * losses).sum() / p.sum()

# losses with corners, or without a minimum, which L-BFGS cannot minimize
BY_ADAM = ("hinge", "slic", "dpop", "chipo", "unlikelihood")

def train(ref, preference, weights, name, steps=400, start=None, **hparams):
    """
    The policy (X, A) that minimizes the expected loss, starting at `start` (default: the reference).
    By L-BFGS. By Adam for the losses of BY_ADAM, and where L-BFGS ends at infinity because the loss has no minimum.
    """
    first = (ref if start is None else start).detach().clone()
    logits = first.clone().requires_grad_()
    loss = lambda: expected_loss(logits, ref, preference, weights, name, **hparams)
    if name not in BY_ADAM:
        minimize_by_lbfgs(loss, logits, steps)
        if logits.isfinite().all():
            return logits.detach().log_softmax(1)
        logits.data.copy_(first)
    minimize_by_adam(loss, logits, 5 * steps)
    return logits.detach().log_softmax(1)

def minimize_by_lbfgs(loss, logits, steps):
    """Changes logits in place: at most `steps` iterations of L-BFGS with a line search. loss() -> ()."""
    optimizer = torch.optim.LBFGS([logits], max_iter=steps, tolerance_grad=1e-12, tolerance_change=0,
                                  line_search_fn="strong_wolfe")
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value
    optimizer.step(closure)

def minimize_by_adam(loss, logits, steps, lr=0.05):
    """Changes logits in place: `steps` updates of Adam with a learning rate that falls linearly to 0. loss() -> ()."""
    optimizer = torch.optim.Adam([logits], lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

def descend(ref, preference, weights, name, steps, lr, **hparams):
    """The policy (X, A) after `steps` of gradient descent from the reference. It shows the path to the optimum."""
    logits = ref.clone().requires_grad_()
    for _ in range(steps):
        grad, = torch.autograd.grad(expected_loss(logits, ref, preference, weights, name, **hparams), logits)
        logits.data -= lr * grad
    return logits.detach().log_softmax(1)

def reward_model(preference, weights, steps=400):
    """The Bradley-Terry rewards (X, A) that maximize the likelihood of the preferences, up to a constant per prompt."""
    X, A, _ = preference.shape
    uniform = torch.zeros(X, A, dtype=preference.dtype)
    # with a uniform reference and beta 1, the DPO loss is this negative log-likelihood
    return train(uniform, preference, weights, "dpo", steps, beta=1.0)

# ---------------------------------------------------------------------------------------------------------------------
# measures

def expected_reward(policy, reward):
    """Mean over prompts of E[r] under the policy. policy, reward (X, A) -> float."""
    return (policy.exp() * reward).sum(1).mean().item()

def kl(policy, ref):
    """Mean over prompts of KL(policy || ref) in nats. policy, ref (X, A) -> float."""
    return (policy.exp() * (policy - ref)).sum(1).mean().item()

def frontier(ref, reward, betas):
    """[(KL, expected reward)] of the RLHF optimum for each beta: the highest reward that is possible at this KL."""
    optima = [rlhf_optimum(ref, reward, beta) for beta in betas]
    return [(kl(policy, ref), expected_reward(policy, reward)) for policy in optima]

def best_reward(ref, reward, nats):
    """The highest expected reward at a KL of at most `nats`: a point of the frontier, by bisection over log10(beta)."""
    low, high = -7.0, 9.0
    for _ in range(100):
        middle = (low + high) / 2
        if kl(rlhf_optimum(ref, reward, 10.0 ** middle), ref) > nats:
            low = middle
        else:
            high = middle
    return expected_reward(rlhf_optimum(ref, reward, 10.0 ** high), reward)

# ---------------------------------------------------------------------------------------------------------------------
# table and figure

# hyperparameters for this world, whose rewards are about 1 nat apart; every other loss has --beta and its defaults
SETTINGS = {"slic": {"reg": 0.5}, "orpo": {"lam": 1.0}, "simpo": {"beta": 1.0, "gamma_beta_ratio": 0.0},
            "alphapo": {"beta": 1.0, "gamma_beta_ratio": 0.0}, "odpo": {"beta": 1.0, "scaling": "linear"},
            "unlikelihood": {}, "sft": {}}

def rows(seed=0, beta=1.0):
    """
    One dict per loss, trained on Bradley-Terry preferences.

    reward, kl             of the policy that is trained with full coverage, that is, on all pairs of answers
    below the frontier     best reward at this KL minus reward
    unseen before, after   probability of the last three answers: by the reference, and by the policy that is trained
                           with partial coverage, that is, on pairs of the first three answers only
    """
    ref, reward = world(seed=seed)
    preference = bradley_terry(reward)                                       # (X, A, A)
    full = ref.exp()[:, :, None] * ref.exp()[:, None, :]                     # (X, A, A)
    seen = torch.arange(ref.shape[1]) < 3                                    # (A,)
    partial = full * (seen[:, None] & seen[None, :])                         # (X, A, A)
    table = []
    for name, loss in LOSSES.items():
        if loss.whole_batch:    # it has no expectation over single pairs
            continue
        usual = {"beta": beta} if "beta" in loss.hparams else {}
        hparams = SETTINGS.get(name, usual)
        policy = train(ref, preference, full, name, 200, **hparams)
        policy_partial = train(ref, preference, partial, name, 200, **hparams)
        got, nats = expected_reward(policy, reward), kl(policy, ref)
        table.append({"loss": name, "settings": " ".join(f"{k}={v}" for k, v in hparams.items()),
                      "reward": got, "kl": nats, "below the frontier": best_reward(ref, reward, nats) - got,
                      "unseen before": ref.exp()[:, ~seen].sum(1).mean().item(),
                      "unseen after": policy_partial.exp()[:, ~seen].sum(1).mean().item()})
    return table

def picture(table, seed=0):
    """
    The figure of bandit.png: a panel per loss, with the frontier, the loss's own point in red and all others in gray.
    Several losses end at the same point: in a single panel they would hide each other.

    table: rows with "loss", "reward", "kl" and "below the frontier", as numbers or text; seed: of the world.
    """
    from matplotlib.figure import Figure
    ref, reward = world(seed=seed)
    # (distance below the frontier, loss, KL, reward), the losses nearest to the frontier first
    points = sorted((float(r["below the frontier"]), r["loss"], float(r["kl"]), float(r["reward"])) for r in table)
    widest = 1.05 * max(1.15, *(point[2] for point in points))
    optima = frontier(ref, reward, torch.logspace(-1.2, 2, 100).tolist())
    optima = [(x, y) for x, y in optima if x <= widest]

    n_columns = 6
    n_rows = (len(points) + n_columns - 1) // n_columns
    fig = Figure(figsize=(11, 1.55 * n_rows + 1.3))
    axes = fig.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(points):]:
        ax.axis("off")
    for ax, (below, name, x, y) in zip(axes.flat, points):
        ax.plot(*zip(*optima), color="0.6", lw=1)
        ax.plot([point[2] for point in points], [point[3] for point in points], "o", color="0.82", ms=3)
        ax.plot(x, y, "o", color="C3", ms=5)
        ax.set_title(f"{name}: {max(below, 0):.3f} below", fontsize=9)
        ax.set_xlim(-0.04, widest)
        ax.tick_params(labelsize=8, labelbottom=True)
        ax.grid(alpha=0.3)
    fig.suptitle("The policy that each loss ends at: red point. Other losses: gray points\n"
                 "Line: highest reward possible at each KL. Titles: nats of reward below the line. "
                 "Bradley-Terry preferences, all pairs", fontsize=10)
    fig.supxlabel("KL to the reference, in nats", fontsize=10)
    fig.supylabel("expected true reward, in nats", fontsize=10)
    fig.tight_layout()
    return fig

def show(table, seed, update=False):
    """Prints, writes and draws the table: into out/bandit, or with update into study/results and study/figures."""
    print(f"{'loss':14}{'reward':>8}{'KL':>9}{'below the frontier':>20}{'mass on unseen answers':>30}")
    for r in table:
        print(f"{r['loss']:14}{r['reward']:8.3f}{r['kl']:9.3f}{r['below the frontier']:20.4f}"
              f"{r['unseen before']:18.3f} -> {r['unseen after']:.3f}")
    results, figures = places.folders("out/bandit", update)
    places.write_csv(results / "bandit.csv", list(table[0]), [row.values() for row in table])
    picture(places.read_csv(results / "bandit.csv"), seed).savefig(figures / "bandit.png", dpi=110)
    print(f"written: {results / 'bandit.csv'}, {figures / 'bandit.png'}")

# ---------------------------------------------------------------------------------------------------------------------
# script

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--seed", type=cli.seed, default=0, help="seed of reference and rewards (default: %(default)s)")
    p.add_argument("--beta", type=cli.above_zero, default=1.0,
                   help="beta of the losses that have one (default: %(default)s)")
    p.add_argument("--threads", type=cli.positive, default=1,
                   help="CPU threads; the last digits depend on their number (default: %(default)s)")
    p.add_argument("--update", action="store_true",
                   help="overwrite the project's own files in study/results and study/figures")
    return p.parse_args(argv)

def main(argv=None):
    """Trains every loss, prints the table, and writes bandit.csv and bandit.png."""
    args = get_args(argv)
    torch.set_num_threads(args.threads)
    with cli.interruptible("-m study.bandit", args, argv):
        show(rows(args.seed, args.beta), args.seed, args.update)

if __name__ == "__main__":
    main()
