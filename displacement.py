"""
Likelihood displacement: how far the completions of held-out pairs moved, and where their probability went.

    python eval.py --run out/toy/dpo --displacement     # also prints this, and writes out/toy/dpo/displacement.json

DPO asks that the rejected completion loses more probability than the chosen one, so both may lose. Razin et al. 2024
(arXiv:2410.08847) call this displacement. They predict it from the reference's states by a score, CHES. docs/metrics.md
defines all measures. Read first: measures.py. Read next: eval.py
"""
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import data
from adapters import as_reference
from logps import sequence_logps
from measures import rank_correlation, sample
from support import cli
from support.checkpoint import write_json
from support.tables import DISPLACEMENT, example_lines, name_columns, table, verdict_on

# ---------------------------------------------------------------------------------------------------------------------
# What the models say of pairs

def sum_states(states, completion_mask):
    """
    The sum of the states that predict a completion's tokens: states (N, T, C), completion_mask (N, T) -> (N, C), (N,).
    The state of column t predicts column t + 1. So the prompt's last state is in the sum, and that of EOS is not.
    """
    predicts = completion_mask[:, 1:]                                          # (N, T - 1)
    return (states[:, :-1] * predicts[..., None]).sum(1), predicts.sum(1)      # (N, C), (N,): how many states

def ches(chosen, rejected):
    """
    The centered hidden embedding similarity of B pairs, (B,): Razin et al. 2024, arXiv:2410.08847, Definition 2.

        CHES = <s_w, s_l> - |s_w|^2        s_w, s_l: the sum_states of chosen and rejected, (B, C) each

    The larger it is, the further the chosen completion should fall. Means of states give the length-normalized variant.
    """
    return (chosen * rejected).sum(-1) - (chosen * chosen).sum(-1)

@torch.no_grad()
def pair_ches(reference, pairs, batch_size, autocast):
    """The CHES of each pair, and its length-normalized variant: an array (2, pairs)."""
    device, found = next(reference.parameters()).device, np.zeros((2, len(pairs)))
    for group in data.Batches([row | {"at": at} for at, row in enumerate(pairs)], batch_size).groups():
        batch = data.collate(group)                                            # chosen on top of rejected
        with autocast:
            states = reference.features(batch["idx"].to(device)).float()       # (2B, T, C)
        sums, lens = sum_states(states, batch["completion_mask"].to(device))   # (2B, C), (2B,)
        for kind, s in enumerate((sums, sums / lens[:, None])):
            found[kind, [row["at"] for row in group]] = ches(*s.chunk(2)).cpu().numpy()
    return found

@torch.no_grad()
def completion_logps(model, texts, batch_size, autocast):
    """log pi(completion | prompt) in nats: an array (N,). texts: N prompts with their completions, token lists."""
    device, found = next(model.parameters()).device, np.zeros(len(texts))
    rows = [{"prompt": prompt, "chosen": completion, "at": at} for at, (prompt, completion) in enumerate(texts)]
    for group in data.Batches(rows, batch_size).groups():
        batch = data.collate(group)
        with autocast:
            logps, _ = sequence_logps(model, batch["idx"].to(device), batch["completion_mask"].to(device))
        found[[row["at"] for row in group]] = logps.cpu().numpy()
    return found

# ---------------------------------------------------------------------------------------------------------------------
# How far pairs moved, and where to

def interval(statistic, prompts, n=1000, seed=0):
    """
    [value, low, high] of statistic(row numbers), with its 95% bootstrap interval; None if it is not defined.

    prompts: (rows,) the number of each row's prompt, from 0 on. Pairs of one prompt share completions, so a resample
    draws prompts, each with all of its pairs.
    """
    members = [np.flatnonzero(prompts == number) for number in range(prompts.max() + 1)]
    value, rng = statistic(np.arange(len(prompts))), np.random.default_rng(seed)
    picks = rng.integers(0, len(members), (n, len(members)))
    draws = [statistic(np.concatenate([members[number] for number in pick])) for pick in picks]
    return None if np.isnan(value) else [float(value), *np.nanpercentile(draws, [2.5, 97.5]).tolist()]

def means(values, prompts):
    """{measure: [mean, low, high]} of {measure: (rows,)}."""
    return {key: interval(lambda at, v=v: v[at].mean(), prompts) for key, v in values.items()}

def movement(before, after):
    """{measure: (pairs,)}: log-ratios in nats, and what fell. before, after: log-probs (2, pairs), chosen on top."""
    chosen, rejected = after - before
    return {"chosen": chosen, "rejected": rejected, "chosen_fell": chosen < 0,
            "both_fell": (chosen < 0) & (rejected < 0)}

def destination(samples, pairs):
    """
    {"better", "between", "worse": (pairs,)}: the shares of a policy's own samples with a higher reward than both
    completions of a pair, with one between, with a lower one. They estimate the policy's probability of such texts.
    samples: rewards (pairs, k) of samples of each pair's prompt; pairs: rewards (2, pairs) of chosen and rejected.
    """
    # Equal rewards may differ in the last digit, if their terms were added in another order
    better = (samples > pairs.max(0)[:, None] + 1e-9).mean(1)
    worse = (samples < pairs.min(0)[:, None] - 1e-9).mean(1)
    return {"better": better, "between": 1 - better - worse, "worse": worse}

def most_gained(before, after, n):
    """The numbers of the n completions that gained the most probability, most first. before, after: log-probs (N,)."""
    gain = np.exp(after) - np.exp(before)    # sorted by ratio, the first would be texts that are hardly ever sampled
    return [int(i) for i in np.argsort(-gain, kind="stable")[:n] if gain[i] > 0]

def example(pair, candidates, policy, before, held, batch_size, autocast):
    """
    A pair and the three candidates that gained the most: texts, log-probs before and after training, rewards.
    candidates: completions of its prompt. One that was cut has the probability of all texts that begin with it.
    """
    others = sorted(set(map(tuple, candidates)) - {tuple(pair[side]) for side in data.SIDES})
    completions = [pair["chosen"], pair["rejected"], *map(list, others)]
    texts = [(pair["prompt"], completion) for completion in completions]
    with before() as reference:
        old = completion_logps(reference, texts, batch_size, autocast)
    new = completion_logps(policy, texts, batch_size, autocast)
    rewards = [None] * len(texts)
    if "reward" in held.rewards:
        rewards = held.rewards["reward"]([prompt + completion for prompt, completion in texts]).tolist()
    entries = [{"text": data.decode(held.tokenizer, c), "before": b, "after": a, "reward": r}
               for c, b, a, r in zip(completions, old.tolist(), new.tolist(), rewards)]
    gained = [entries[2 + i] for i in most_gained(old[2:], new[2:], 3)]
    return {"prompt": data.decode(held.tokenizer, pair["prompt"]), "chosen": entries[0], "rejected": entries[1],
            "gained": gained}

# ---------------------------------------------------------------------------------------------------------------------
# Runs

def paired(held, runs, n_prompts):
    """
    A HeldOut with the pairs that are measured, and their prompts: the first n_prompts that leave room for a sample.
    runs: {run: load_policy's}. Raises ValueError if there are no such pairs, or if a run has no reference.
    """
    first = next(iter(runs))
    max_len, room = runs[first][0]["args"]["max_len"], held.max_new_tokens
    if not held.pairs:
        raise ValueError(f"--displacement: {first} has no held-out pairs; it needs a run of train_pref.py")
    for run, (_, _, reference) in runs.items():
        if reference is None:
            raise ValueError(f"--displacement: {run} started from random weights, so it has no reference")
    prompts = [tuple(pair["prompt"]) for pair in held.pairs if len(pair["prompt"]) + room <= max_len]
    prompts = list(dict.fromkeys(prompts))[:n_prompts]    # each once
    if not prompts:
        raise ValueError(f"--displacement: no prompt of a held-out pair leaves room for {room} new tokens in the run's "
                         f"{max_len}; give a smaller --max_new_tokens")
    kept = set(prompts)
    pairs = [pair for pair in held.pairs if tuple(pair["prompt"]) in kept]
    return replace(held, prompts=[list(prompt) for prompt in prompts], pairs=pairs)

def correlations(scores, pairs, rewards, change, at):
    """{measure: [r, low, high]}: rank correlations of the pairs' CHES, length and reward with the chosen's change."""
    by = {"ches": scores[0], "ches_mean": scores[1], "length": np.array([len(pair["chosen"]) for pair in pairs])}
    if rewards is not None:
        by["reward"] = rewards[0]
    return {f"by_{key}": interval(lambda rows, x=x: rank_correlation(x[rows], change[rows]), at)
            for key, x in by.items()}

def measured(policy, before, held, *, n_samples, seed, batch_size, autocast):
    """What displacement.json holds, for held = paired(...). before: a function that gives the reference's context."""
    how = {"batch_size": batch_size, "autocast": autocast}
    numbers = {tuple(prompt): number for number, prompt in enumerate(held.prompts)}
    at = np.array([numbers[tuple(pair["prompt"])] for pair in held.pairs])                  # (pairs,)
    texts = [(pair["prompt"], pair[side]) for side in data.SIDES for pair in held.pairs]    # all chosen on top
    rewards = None
    if "reward" in held.rewards:
        rewards = held.rewards["reward"]([prompt + tokens for prompt, tokens in texts]).reshape(2, -1)
    logps, columns, candidates = {}, {}, [[] for _ in held.prompts]
    for name, context in (("before", before), ("after", lambda: nullcontext(policy))):
        with context() as model:
            logps[name] = completion_logps(model, texts, **how).reshape(2, -1)
            answers, drawn = sample(model, held, n_samples, 1.0, seed, **how)
            greedy, _ = sample(model, held, 1, 0, seed, **how)
        values = dict(zip(("p_chosen", "p_rejected"), np.exp(logps[name])))
        if rewards is not None:
            values |= destination(drawn["reward"][at], rewards)
        columns[name] = means(values, at)
        candidates = [old + new + one for old, new, one in zip(candidates, answers, greedy)]
    with before() as reference:
        scores = pair_ches(reference, held.pairs, **how)
    moved = movement(logps["before"], logps["after"])
    columns["after"] |= means(moved, at) | correlations(scores, held.pairs, rewards, moved["chosen"], at)
    firsts = [held.pairs[i] for i in np.unique(at, return_index=True)[1]]    # the first pair of each prompt
    shown = [example(pair, several, policy, before, held, **how) for pair, several in zip(firsts, candidates)]
    return {"pairs": len(at), "prompts": len(numbers), "measures": columns, "verdict": verdict_on(**columns),
            "examples": shown}

def report(runs, held, n_show, **how):
    """Measures runs, prints the table, n_show examples and a sentence of each, and writes their displacement.json."""
    results = {}
    for run, (_, policy, reference) in runs.items():
        results[run] = measured(policy, lambda p=policy, r=reference: as_reference(p, r), held, **how)
        with cli.bad_input():
            write_json(Path(run) / "displacement.json", results[run])
    references = {run: facts["args"]["init_from"] for run, (facts, _, _) in runs.items()}
    columns = name_columns({run: result["measures"] for run, result in results.items()}, references)
    print(f"\nlikelihood displacement on {len(held.pairs)} pairs of {len(held.prompts)} prompts; [95% interval]\n\n"
          f"{table(columns, DISPLACEMENT)}\n")
    for run, result in results.items():
        for one in result["examples"][:n_show]:
            print("\n".join(example_lines(one)) + "\n")
        print(f"{run}: {result['verdict']}")
