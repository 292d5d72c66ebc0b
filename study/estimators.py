"""
The KL estimators k1, k2 and k3: mean, standard deviation and gradient, beside the exact numbers.

    python -m study.estimators                                # the exact world alone, in seconds
    python -m study.estimators --run out/beta/* --update      # with runs on the toy world

On the exact world, numbers are sums over all answers. On the toy world they are measured on the policy's own samples,
beside the KL over the whole vocabulary at every position. Writes estimators.csv and estimators.png into out/study, or
into study/ with --update. docs/rlhf.md shows them. Read first: measures.py, online.py
"""
import numpy as np
import torch

import data
import eval
from adapters import as_reference
from measures import KL_ESTIMATORS, k3, sample, token_measures
from study import bandit, online, pictures, places
from support import cli

BETAS = (30.0, 10.0, 3.0, 1.0, 0.5, 0.3, 0.2)    # of the RLHF optima that are measured on the exact world
ESTIMATORS = KL_ESTIMATORS | {"k3 inverted": lambda logratios: k3(-logratios)}    # a mistake; it is never negative too
HEAD = ("world", "policy", "seed", "unit", "estimator", "kl", "mean", "std", "error",
        "reward cosine", "reward off", "loss cosine", "loss off")

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--run", nargs="+", default=[], help="runs of train_pref.py or rlhf.train_ppo on the toy world")
    p.add_argument("--n_prompts", type=cli.positive, default=4096, help="held-out prompts, with one sample each")
    return places.parse(p, argv)

def moments(p, values):
    """(mean, standard deviation) of a value for one answer to a random prompt. p, values (X, A): p sums to 1 over A."""
    mean = (p * values).sum(1).mean()
    return mean.item(), (p * (values - mean) ** 2).sum(1).mean().sqrt().item()

def compared(found, exact):
    """(cosine, relative error) of an expected gradient and the exact one, (X, A) each. The cosine of a 0 is 0."""
    cosine = torch.cosine_similarity(found.flatten(), exact.flatten(), 0)
    return round(cosine.item(), 6), round(((found - exact).norm() / exact.norm()).item(), 6)    # without float noise

def exact_rows(seeds=range(5)):
    """Yields rows of the exact world: each estimator for an answer of an RLHF optimum, its gradient in both places."""
    for seed in seeds:
        ref, reward = bandit.world(seed=seed)
        for beta in BETAS:
            policy = bandit.rlhf_optimum(ref, reward, beta)
            exact, kl = online.kl_gradient(policy, ref), bandit.kl(policy, ref)
            for name, estimate in ESTIMATORS.items():
                values = estimate(policy - ref)    # (X, A)
                in_reward, in_loss = online.policy_gradient(policy, values), online.loss_gradient(policy, ref, estimate)
                yield ("exact", f"beta={beta:g}", seed, "answer", name, kl, *moments(policy.exp(), values), 0.0,
                       *compared(in_reward, exact), *compared(in_loss, exact))

def sampled_tokens(policy, reference, prompts, answers, autocast):
    """
    Three arrays (M,) over all tokens of an answer to each prompt: the number of the answer, the log-ratio of the token,
    and the KL of the next-token distributions at its place, in nats. prompts, answers: n token lists each.
    """
    rows = [{"prompt": prompt, "chosen": answer} for prompt, answer in zip(prompts, answers)]
    found, n = [], 0
    for group in data.Batches(rows, 256).groups():
        batch = data.collate(group)
        with autocast:
            tokens = token_measures(policy, as_reference(policy, reference), batch, "cpu")
        mask = batch["completion_mask"][:, 1:].numpy()    # (N, T - 1), as in token_measures
        found.append((n + mask.nonzero()[0], *(tokens[key][mask].astype(float) for key in ("logratio", "kl"))))
        n += len(group)
    return [np.concatenate(pieces) for pieces in zip(*found)]

def units(numbers, logratios, kls):
    """
    Yields (unit, estimator, values, exact KLs) of sampled_tokens' arrays. Units, for a completion of log-ratios l_t:
    token, k(l_t); completion, the sum over t of k(l_t), as in rlhf/; whole, k(sum over t of l_t).
    """
    sums, kl = (np.bincount(numbers, values) for values in (logratios, kls))    # (completions,)
    for name, estimate in ESTIMATORS.items():
        tokens, whole = (estimate(torch.from_numpy(values)).numpy() for values in (logratios, sums))
        yield "token", name, tokens, kls
        yield "completion", name, np.bincount(numbers, tokens), kl
        yield "whole", name, whole, kl
    yield from (("token", "vocabulary", kls, kls), ("completion", "vocabulary", kl, kl))

def toy_rows(run, n_prompts):
    """Yields rows of a run. error: of mean minus kl. Raises ValueError for other data, or without a reference."""
    device, autocast = cli.set_up(seed=0, device="cpu", dtype="auto", data="toy", say=lambda line: None)
    facts, policy, reference = eval.load_policy(run, device)
    args = facts["args"]
    if args["data"] != "toy" or reference is None:
        raise ValueError(f"{run}: expected a run on the toy world that started from another run, its reference")
    look = eval.get_args(["--run", run, "--n_prompts", str(n_prompts)])
    facts.pop("pairs", None)    # the file of the pairs is not needed
    held = eval.load_held_out(look, facts, policy, None, device, autocast, lambda line: None)
    answers = [one for [one] in sample(policy, held, 1, 1.0, args["seed"], 256, autocast)[0]]
    name = " ".join(f"{key}={args[key]}" for key in ("loss", "algo", "labels", "beta") if args.get(key) is not None)
    for unit, estimator, values, kl in units(*sampled_tokens(policy, reference, held.prompts, answers, autocast)):
        error = np.std(values - kl) / len(values) ** 0.5 if unit != "token" else ""    # tokens are not independent
        yield "toy", name, args["seed"], unit, estimator, kl.mean(), values.mean(), values.std(), error, "", "", "", ""

def main(argv=None):
    args = get_args(argv)
    with cli.bad_input():
        rows = [*exact_rows(), *(row for run in args.run for row in toy_rows(run, args.n_prompts))]
        results, figures = places.folders(args.out, args.update)
        places.write_csv(results / "estimators.csv", HEAD, rows)
        pictures.estimators(figures / "estimators.png", places.read_csv(results / "estimators.csv"))
    print(f"{results / 'estimators.csv'}, {figures / 'estimators.png'}")

if __name__ == "__main__":
    main()
