"""
Which way does beta go? Reward and KL of DPO against beta, on labels that are drawn and on labels that are always right.

    python -m study.beta                                # the exact world alone, in seconds
    python -m study.beta --run out/beta/* --update      # with runs of train_pref.py on the toy world

With drawn labels (Bradley and Terry's), DPO ends at the RLHF optimum ref * exp(r / beta) / Z, so a larger beta keeps
the policy closer to the reference. If the better answer always wins, no margin is ever enough: the loss has no minimum,
and the end depends on the optimizer. Writes beta.csv and beta.png into out/study, or into study/ with --update.
docs/study.md shows them. Read first: bandit.py
"""
import numpy as np

from study import bandit, places
from support import cli, rundir

BETAS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
HEAD = ("world", "labels", "beta", "seed", "reward", "kl")
LABELS = {"optimum": "RLHF optimum, closed form", "bradley_terry": "DPO, drawn labels", "best": "DPO, better one"}

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--run", nargs="+", default=[], help="runs of --loss dpo on the toy world")
    return places.parse(p, argv)

def exact_rows(seeds=range(5)):
    """Rows of the exact world: the RLHF optimum, and DPO trained on both kinds of labels (reward and KL in nats)."""
    rows = []
    for seed in seeds:
        ref, reward = bandit.world(seed=seed)
        weights = ref.exp()[:, :, None] * ref.exp()[:, None, :]    # pairs of the reference's own answers
        for beta in BETAS:
            policies = {"optimum": bandit.rlhf_optimum(ref, reward, beta)}
            for labels, preference in (("bradley_terry", bandit.bradley_terry(reward)),
                                       ("best", bandit.deterministic(reward))):
                policies[labels] = bandit.train(ref, preference, weights, "dpo", beta=beta)
            for labels, policy in policies.items():
                rows.append(("exact", labels, beta, seed, bandit.expected_reward(policy, reward),
                             bandit.kl(policy, ref)))
    return rows

def toy_rows(runs):
    """Rows of runs of train_pref.py. Raises ValueError for one that is not DPO on the toy world, or not evaluated."""
    rows = []
    for run in runs:
        args, after = rundir.read_args(run)["args"], rundir.read_eval(run)["measures"]["after"]
        if args["data"] != "toy" or args.get("loss") != "dpo":
            raise ValueError(f"{run}: expected a run of --loss dpo on the toy world")
        labels = args.get("labels") or "best"
        rows.append(("toy", labels, args["beta"], args["seed"], after["reward"][0], after["kl"][0]))
    return rows

def draw(path, rows):
    """KL and reward against beta, a row of panels for each world. Lines are means over seeds, bars their range."""
    from matplotlib.figure import Figure    # here, because it takes a second to import
    worlds = list(dict.fromkeys(row[0] for row in rows))
    fig = Figure(figsize=(9, 3.2 * len(worlds)), layout="constrained")
    axes = fig.subplots(len(worlds), 2, squeeze=False)
    for world, (left, right) in zip(worlds, axes):
        for labels, style in (("optimum", "k"), ("bradley_terry", "C0o"), ("best", "C1s")):
            for ax, column in ((left, 5), (right, 4)):
                mine = [row for row in rows if row[:2] == (world, labels)]
                betas = sorted({row[2] for row in mine})
                several = [[row[column] for row in mine if row[2] == beta] for beta in betas]
                if betas:
                    means = np.array([np.mean(values) for values in several])
                    bars = [means - [min(v) for v in several], [max(v) for v in several] - means]
                    ax.errorbar(betas, means, bars, fmt=style, label=LABELS[labels], capsize=2, ms=4,
                                ls="-" if labels == "optimum" else ":")
        name = "exact world" if world == "exact" else "toy world"
        left.set(xscale="log", yscale="log", xlabel="beta", ylabel="KL to the reference, nats", title=f"{name}: KL")
        right.set(xscale="log", xlabel="beta", ylabel="reward", title=f"{name}: reward")
        left.legend(fontsize=8)
        for ax in (left, right):
            ax.grid(alpha=0.3)
    fig.savefig(path, dpi=110)

def main(argv=None):
    args = get_args(argv)
    with cli.bad_input():
        rows = exact_rows() + toy_rows(args.run)
        results, figures = places.folders(args.out, args.update)
        places.write_csv(results / "beta.csv", HEAD, rows)
        draw(figures / "beta.png", rows)
    print(f"{results / 'beta.csv'}, {figures / 'beta.png'}")

if __name__ == "__main__":
    main()
