"""
Several runs judged against each other: every two of them on the same held-out prompts, and one strength for each run.

    python judge.py --arena out/toy/dpo out/toy/ipo out/toy/simpo --judge_url http://localhost:8080/v1

The answers are the samples in each run's eval.json. Two answers to a prompt are shown in both orders, and a tie is half
a win for each. judge.py has the flags. Writes arena.json into --arena_dir, and each answer into arena.jsonl there as it
arrives, so that a fourth run costs only its own comparisons. docs/judge.md explains the numbers.
Read first: questions.py, winrates.py. Read next: judge.py
"""
from itertools import combinations
from pathlib import Path

import numpy as np

from judge_check import rate
from measures import bootstrap
from questions import ask_missing, check_answers, endpoint_of, form, questions, read_evaluation
from support import cli
from support.checkpoint import finite, write_json
from support.endpoint import soft_votes
from support.verdict import outcome, read_verdict
from winrates import effect_of_length, length_controlled, strengths

VOTES = {"win": 1.0, "tie": 0.5, "flip": 0.5, "lose": 0.0, "invalid": None}    # outcome -> vote for the run

# ---------------------------------------------------------------------------------------------------------------------
# Two runs

def pair_votes(samples, known, soft, **how):
    """
    The judge's vote for the run in each pair, 0 to 1; None where an answer is missing or cannot be read.

    known  {key: answer}
    soft   {key: P(A) / (P(A) + P(B))}. If both orders have one, the vote is the mean probability of the run's answer
    how    against, task and model, as questions takes them
    """
    keys, votes = [q["key"] for q in questions(samples, **how)], []
    for first, second in zip(keys[::2], keys[1::2]):    # the run's answer is A in the first, B in the second
        if first in soft and second in soft:
            votes.append((soft[first] + 1 - soft[second]) / 2)
        else:
            votes.append(VOTES[outcome(*(read_verdict(known.get(key, "")) for key in (first, second)))])
    return votes

def at_equal_length(samples, votes, against):
    """
    {"raw", "win_rate", "gamma"}, [value, low, high] each: the mean vote, and length_controlled's win rate at equal
    length. samples, votes: as in pair_votes. None for the numbers of no votes.
    """
    kept = [(vote, len(s["after"].strip()) - len(s[against].strip())) for s, vote in zip(samples, votes)
            if vote is not None]
    votes, differences = zip(*kept) if kept else ((), ())
    raw = bootstrap(votes) if kept else [None, 0.0, 1.0]
    return finite({"raw": raw, **length_controlled(votes, differences)})

def in_words(found):
    """at_equal_length's result in one line."""
    value, low, high = found["gamma"]
    return (f"wins {rate(found['raw'])}, ties as half; {rate(found['win_rate'])} at equal length "
            f"({effect_of_length(found['gamma'])}: gamma {value:.2f} [{low:.2f}, {high:.2f}])")

# ---------------------------------------------------------------------------------------------------------------------
# Many runs

def contestants(runs, limit):
    """
    (prompts, {run: its answer to each prompt}) from the eval.json of each run, for `limit` prompts at most. Raises
    ValueError for fewer than two runs, for the same run twice, and for samples at other prompts or temperatures.
    """
    if len(runs) < 2 or len({Path(run).resolve() for run in runs}) < len(runs):
        raise ValueError("--arena needs two different runs or more, each once")
    found = {run: read_evaluation(run) for run in runs}
    prompts = {run: [s["prompt"] for s in e["samples"]][:limit] for run, e in found.items()}
    for run in runs:
        one, first = found[run], found[runs[0]]
        if one["temperature"] != first["temperature"]:
            raise ValueError(f"{run} was sampled at temperature {one['temperature']}, and {runs[0]} at "
                             f"{first['temperature']}: run eval.py again")
        if prompts[run] != prompts[runs[0]]:
            raise ValueError(f"{run} and {runs[0]} have answers to different prompts in eval.json: evaluate both in "
                             "one command, python eval.py --run ...")
    if not prompts[runs[0]]:
        raise ValueError(f"{runs[0]}: eval.json has no samples")
    return prompts[runs[0]], {run: [s["after"] for s in found[run]["samples"]][:limit] for run in runs}

def meetings(prompts, answers):
    """{(run, other): samples} of every two runs, as judge.py has them: the other's answer is "before"."""
    rows = {}
    for one, other in combinations(answers, 2):
        rows[one, other] = [{"prompt": prompt, "after": mine, "before": theirs}
                            for prompt, mine, theirs in zip(prompts, answers[one], answers[other])]
    return rows

def results(met, votes, known, **how):
    """
    {"strengths": {run: [strength, low, high]}, strongest first, "meetings": a dict for each two runs}.

    met    meetings' result
    votes  {(run, other): pair_votes' result}
    """
    runs = list(dict.fromkeys(run for both in met for run in both))
    table = np.full((len(next(iter(votes.values()))), len(runs), len(runs)), np.nan)    # (prompts, runs, runs)
    rows = []
    for (one, other), cast in votes.items():
        i, j, column = runs.index(one), runs.index(other), np.array(cast, dtype=float)    # None becomes NaN
        table[:, i, j], table[:, j, i] = column, 1 - column
        keys = [q["key"] for q in questions(met[one, other], **how)]
        outcomes = [outcome(*(read_verdict(known[key]) for key in both)) for both in zip(keys[::2], keys[1::2])]
        counts = {name: outcomes.count(name) for name in VOTES}
        rows.append({"runs": [one, other], "pairs": len(cast), **counts,
                     **at_equal_length(met[one, other], cast, how["against"])})
    found = dict(zip(runs, strengths(table)))
    return {"strengths": dict(sorted(found.items(), key=lambda item: -item[1][0])), "meetings": rows}

def show(result):
    """Prints the ranking, then a line for each two runs."""
    width = max(len(run) for run in result["strengths"])
    print(f"{'run':{width}}  strength in nats, of mean 0")
    for run, (value, low, high) in result["strengths"].items():
        print(f"{run:{width}}  {value:+.3f} [{low:+.3f}, {high:+.3f}]")
    for row in result["meetings"]:
        print(f"{' against '.join(row['runs'])}: {in_words(row)}; {row['pairs']} pairs, {row['tie']} ties, "
              f"{row['flip']} flips, {row['invalid']} unreadable")

def arena(args, checks, about_judge):
    """
    Asks what is not known yet, prints and writes the results. Returns what arena.json holds. checks: those of the
    judge; about_judge: what they say, in lines.
    """
    how = {"against": "before", "task": form(args.task, args.verdict), "model": args.judge_model}
    folder = Path(args.arena_dir or "out/judge")
    path = folder / "arena.jsonl"
    with cli.bad_input():
        met = meetings(*contestants(args.arena, args.judge_limit))
        asked = [q for samples in met.values() for q in questions(samples, **how)]
        folder.mkdir(parents=True, exist_ok=True)
        known, failures = ask_missing(asked, path, **endpoint_of(args))
        soft = soft_votes(path) if args.verdict == "choice" else {}
        check_answers(asked, known, failures, path, args.verdict)    # a ranking needs all answers
        votes = {both: pair_votes(samples, known, soft, **how) for both, samples in met.items()}
        about = {"judge": args.judge_model, "verdict": args.verdict, "checks": checks}
        result = about | results(met, votes, known, **how)
        write_json(folder / "arena.json", result)
    show(result)
    print("\n".join(about_judge))
    print(f"in {folder}: arena.json, arena.jsonl")
    return result
