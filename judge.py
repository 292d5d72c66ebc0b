"""
An LLM as the judge: which of two answers is better? It works with any OpenAI-compatible endpoint, local or hosted.

    python judge.py --run out/hh/dpo --judge_url http://localhost:8080/v1 --judge_model llama-2-7b-chat
    python judge.py --run out/hh/dpo --against chosen --judge_limit 100 --judge_workers 8
    python judge.py --run out/tldr/dpo --task summary --temperature 0 0.25 0.5 0.75 1    # temperatures given to eval.py
    python judge.py --check toy --verdict choice    # is the judge any good? See judge_check.py
    python judge.py --arena out/hh/dpo out/hh/ipo out/hh/kto    # runs against each other, as arena.py says

Compares the samples in the run's eval.json with the reference's samples, or with the data set's chosen answers. Judges
prefer the answer that stands first, so every pair is asked in both orders. docs/judge.md says how verdicts are counted.
Writes RUN/judge.json, and each answer to RUN/judge.jsonl as it arrives, so that no question is asked twice.
Read next: judge_check.py
"""
from collections import Counter
from pathlib import Path

import arena
import judge_check
from measures import bootstrap, wilson
from questions import ASK, VERDICT, ask_missing, check_answers, endpoint_of, form, questions, read_evaluation
from support import cli, sources
from support.checkpoint import finite, write_json
from support.endpoint import soft_votes
from support.verdict import SHARE, outcome, read_verdict

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--run", help="a run with an eval.json")
    p.add_argument("--arena", nargs="+", help="runs to judge against each other; writes into --arena_dir")
    p.add_argument("--check", metavar="WHAT", help="instead of a run, check the judge on pairs whose better answer is "
                   "known: toy, imdb, another data set, or a file with prompt, chosen and rejected")
    p.add_argument("--data_dir", help="with --check: folder with the data set's files, instead of the hub")
    p.add_argument("--check_dir", help="folder of the judge's checks (default: out/judge/MODEL)")
    p.add_argument("--arena_dir", help="folder of arena.json and its answers (default: out/judge)")
    p.add_argument("--against", choices=("before", "chosen"),
                   help="the reference's samples, or the data set's chosen answers (default: before)")
    p.add_argument("--task", choices=list(ASK), help="what is judged (default: dialogue)")
    p.add_argument("--verdict", default="text", choices=list(VERDICT),
                   help="text: a reason and a verdict. choice: one letter, for small models (default: %(default)s)")
    p.add_argument("--temperature", type=float, nargs="+",
                   help="judge eval.py's samples at these temperatures (default: its first)")
    p.add_argument("--judge_url", default="http://localhost:8080/v1", help="URL of the endpoint (default: %(default)s)")
    p.add_argument("--judge_model", default="default", help="name of the model at the endpoint (default: %(default)s)")
    p.add_argument("--judge_key", default="OPENAI_API_KEY",
                   help="NAME of the environment variable with the API key (default: %(default)s)")
    p.add_argument("--judge_workers", type=cli.positive, default=4, help="questions at a time (default: %(default)s)")
    p.add_argument("--judge_limit", type=cli.positive, help="pairs to judge at most (default: all; with --check 100)")
    p.add_argument("--judge_timeout", type=cli.above_zero, default=120.0,
                   help="seconds for a question, including its retries (default: %(default)s)")
    p.add_argument("--judge_max_tokens", type=cli.positive,
                   help="tokens of an answer at most; a reasoning model needs about 1,000 (default: 2048)")
    p.add_argument("--judge_price", type=cli.not_negative, nargs=2, metavar=("IN", "OUT"),
                   help="dollars per million tokens, for the estimate")
    args = p.parse_args(argv)
    check_flags(p, args)
    return args

def check_flags(p, args):
    """Refuses flags that have no effect, and sets the defaults of those that depend on others."""
    if not (args.run or args.arena or args.check):
        p.error("name a --run, or several with --arena, or --check the judge")
    alone = "check" if args.check else "arena" if args.arena else None
    names = [name for name in ("run", "arena", "against", "temperature") if alone and name != alone]
    cli.refuse(p, args, [*((name, False, f"with --{alone}") for name in names),
        ("arena_dir", args.arena, "without --arena: results go into the run's folder"),
        ("data_dir", args.check in sources.HUB, "without --check and the name of a data set"),
        ("task", args.check not in judge_check.REVIEWS, f"with --check {args.check}, which asks about sentiment"),
        ("judge_max_tokens", args.verdict == "text", "with --verdict choice: it asks for one token")])
    args.against, args.task = args.against or "before", args.task or "dialogue"
    args.judge_limit = args.judge_limit or (100 if args.check else None)
    args.judge_max_tokens = args.judge_max_tokens or {"text": 2048, "choice": 1}[args.verdict]

# ---------------------------------------------------------------------------------------------------------------------
# Samples

def samples_at(found, temperature, *, against, limit, run):
    """
    The samples of an eval.json at a temperature, `limit` at most: dicts whose "after" is the run's answer there.
    Raises ValueError if there are none at this temperature, or no answers to judge against.
    """
    texts = {found["temperature"]: [s["after"] for s in found["samples"]]}
    texts |= {row["temperature"]: row["samples"] for row in found.get("temperatures", ())}
    if temperature not in texts:
        raise ValueError(f"{run}: eval.json has no samples at temperature {temperature}: run eval.py with "
                         "--temperature")
    samples = [s | {"after": text} for s, text in zip(found["samples"], texts[temperature])][:limit]
    if not samples:
        raise ValueError(f"{run}: eval.json has no samples: run eval.py again")
    if not all(against in s for s in samples):
        raise ValueError(f"{run}: eval.json has no answers of {against!r} to judge against")
    return samples

# ---------------------------------------------------------------------------------------------------------------------
# Results

def mean_words(pairs, against):
    """{"winners", "losers": mean words} of the decided pairs, {} without any. pairs: [(sample, outcome)]."""
    words = {"winners": [], "losers": []}
    for s, result in pairs:
        if result in ("win", "lose"):
            mine, other = len(s["after"].split()), len(s[against].split())
            words["winners"].append(mine if result == "win" else other)
            words["losers"].append(other if result == "win" else mine)
    return {side: sum(counts) / len(counts) for side, counts in words.items() if counts}

def judged(samples, known, *, against, task, model):
    """
    The results for samples: rates with Wilson's intervals, words of winners and losers, and counts, as a dict.

    known  {key: answer}. A pair with an unanswered question is left out. "unanswered" is the number of such questions.
    rates  win, tie, lose and flip are shares of the pairs whose verdicts can be read, invalid of all answered pairs. A
           flip counts as a tie too. The share of no pairs is None.
    """
    keys = [q["key"] for q in questions(samples, against=against, task=task, model=model)]
    verdicts = {key: read_verdict(known[key]) for key in keys if key in known}
    pairs = []    # (sample, outcome)
    for s, first, second in zip(samples, keys[::2], keys[1::2]):    # the questions in both orders
        if first in verdicts and second in verdicts:
            pairs.append((s, outcome(verdicts[first], verdicts[second])))
    counts = Counter(result for _, result in pairs)
    counts["tie"] += counts["flip"]
    readable = len(pairs) - counts["invalid"]
    totals = {"win": readable, "tie": readable, "lose": readable, "flip": readable, "invalid": len(pairs)}
    rates = finite({name: wilson(counts[name], n) for name, n in totals.items()})
    return {"judge": model, "against": against, "pairs": len(pairs), "words": mean_words(pairs, against),
            "unanswered": sum(key not in known for key in keys), "rates": rates}

def soft_share(samples, votes, known, **how):
    """
    {"soft": [mean, low, high], "logprobs": how many answers came with log-probs}. soft is the probability that the
    judge gives to the run's answer: the mean of both orders, with a bootstrap interval over pairs, or None.

    votes  {key: P(A) / (P(A) + P(B))}. A verdict without one counts 1 for its letter, and 0.5 for neither
    """
    keys = [q["key"] for q in questions(samples, **how)]
    p = [votes.get(key, SHARE.get(read_verdict(known.get(key, "")))) for key in keys]    # P(A), or None
    both = [(first + 1 - second) / 2 for first, second in zip(p[::2], p[1::2]) if None not in (first, second)]
    return {"soft": bootstrap(both) if both else None, "logprobs": sum(key in votes for key in keys)}

def show(rows):
    """Prints a line of rates and words for each temperature. rows: judged's, with a temperature."""
    rate = judge_check.rate
    print(f"{'temperature':12}" + "".join(f"{name:22}" for name in rows[0]["rates"]) + "words of winners, losers")
    for row in rows:
        cells = "".join(f"{rate(r):22}" for r in row["rates"].values())
        print(f"{row['temperature']:<12g}{cells}{', '.join(f'{w:.1f}' for w in row['words'].values()) or '-'}")
    for row in rows:
        print(f"temperature {row['temperature']:g}: the run {arena.in_words(row['equal_length'])}")
        if row.get("soft"):
            print(f"temperature {row['temperature']:g}: the judge gives the run a probability of {rate(row['soft'])} "
                  f"(mean of both orders; {row['logprobs']} of {2 * row['pairs']} answers came with log-probs)")

def main(argv=None):
    """
    Returns what judge.json holds: the results at the first temperature, and those at each under "temperatures". With
    --check, returns the measures of the judge.
    """
    args = get_args(argv)
    with cli.interruptible("judge.py", args, argv):
        if args.check:
            with cli.bad_input():
                return judge_check.check(args.check, task=args.task, n=args.judge_limit, data_dir=args.data_dir,
                                         check_dir=args.check_dir, **endpoint_of(args))
        with cli.bad_input():
            checks = judge_check.known_checks(args.judge_model, args.verdict, args.check_dir)
        about = judge_check.summaries(checks, args.judge_url, args.judge_model, args.verdict)
        return arena.arena(args, checks, about) if args.arena else judge(args, checks, about)

def judge(args, checks, about_judge):
    """
    Asks what is not known yet, prints and writes the results. Returns as main does. checks: those of the judge;
    about_judge: what they say, in lines.
    """
    how = {"against": args.against, "task": form(args.task, args.verdict), "model": args.judge_model}
    path = Path(args.run) / "judge.jsonl"
    with cli.bad_input():
        found = read_evaluation(args.run)
        at, asked = {}, []    # temperature -> samples; the questions about all of them
        for t in dict.fromkeys(args.temperature or [found["temperature"]]):    # each once
            at[t] = samples_at(found, t, against=args.against, limit=args.judge_limit, run=args.run)
            asked += questions(at[t], **how)
        known, failures = ask_missing(asked, path, **endpoint_of(args))
        votes = soft_votes(path)
    rows = [{"temperature": t} | judged(samples, known, **how) for t, samples in at.items()]
    for row in rows:
        samples = at[row["temperature"]]
        cast = arena.pair_votes(samples, known, votes if args.verdict == "choice" else {}, **how)
        row["equal_length"] = arena.at_equal_length(samples, cast, args.against)
    if args.verdict == "choice":
        rows = [row | soft_share(at[row["temperature"]], votes, known, **how) for row in rows]
    result = rows[0] | {"verdict": args.verdict, "checks": checks, "temperatures": rows}
    write_json(Path(args.run) / "judge.json", result)
    if any(row["rates"]["win"][0] is not None for row in rows):
        show(rows)
        print("\n".join(about_judge))
    check_answers(asked, known, failures, path, args.verdict)
    return result

if __name__ == "__main__":
    main()
