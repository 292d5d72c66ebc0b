"""
What a biased judge does to a win rate: judges with a known bias on runs whose exact win rate is known.

    python -m study.judges --run out/toy/ipo --against out/toy/rdpo            # prints and writes into out/study
    python -m study.judges --run out/toy/ipo out/toy/ipo-1 --against out/toy/rdpo out/toy/rdpo-1 --update

The judges are functions, question -> answer, so no endpoint is asked. They read the questions of judge.py, and their
answers are counted by judge.py's functions: in one order, in both orders, and at equal length. Each run is compared
twice: with the other run's answers as they are, and with filler sentences behind them, which say nothing. Writes
judges.csv and judges_check.csv. docs/judge-bias.md shows them. Read first: judge_check.py, winrates.py
"""
import hashlib
import random
import re

import numpy as np

import judge_check
import toy
from arena import at_equal_length, contestants, meetings, pair_votes
from measures import ties_half
from questions import form, questions
from study import places
from support import cli
from support.rundir import read_args
from support.verdict import SHARE, outcome, read_verdict
from winrates import length_controlled

# ---------------------------------------------------------------------------------------------------------------------
# questions

def shown(text):
    """(prompt, answer A, answer B) of a question. The prompt is "" where only two reviews are shown."""
    prompt = re.search(r"<(?:message|text)>\n(.*?)\n</(?:message|text)>", text, re.S)
    sides = [re.search(rf"<(?:answer|review) {side}>\n(.*?)\n</", text, re.S) for side in "AB"]
    return (prompt[1] if prompt else "", *(side[1] for side in sides))

def one_letter(text):
    """Whether a question asks for one letter alone."""
    return "one letter" in text

def said(text, vote):
    """The answer to a question whose vote is A, B or neither, in the form that the question asks for."""
    if one_letter(text):
        return "AB"[share(text) < 0.5] if vote == "neither" else vote    # it has to choose, in either order by chance
    return f"They differ in detail.\n\nBetter: {vote}"

def share(text):
    """A number in [0, 1) from a hash of the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32

def larger(text, measure):
    """The answer of a judge that prefers the larger measure. measure: a function of a prompt and an answer."""
    prompt, *answers = shown(text)
    a, b = (measure(prompt, answer) for answer in answers)
    return said(text, "A" if a > b else "B" if b > a else "neither")

def log_odds(prompt, answer):
    """The toy world's exact log-odds of a review, in the grammar's spelling or in plain words."""
    return toy.log_odds(f"{prompt} {answer}".lower().replace(",", " ,"))

def evidence(prompt, answer):
    """log_odds without the last digits, which depend on the order of the sentences: reviews of equal evidence tie."""
    return round(log_odds(prompt, answer), 9)

# ---------------------------------------------------------------------------------------------------------------------
# judges

def honest(text, body=None):
    """Prefers the review that is more positive by the toy world's exact reward. It has no bias."""
    return larger(text, evidence)

def contrary(text, body=None):
    """Prefers the review that is less positive."""
    return larger(text, lambda prompt, answer: -evidence(prompt, answer))

def first(text, body=None):
    """Position bias: the answer that stands first, whatever it says."""
    return said(text, "A")

def second(text, body=None):
    """Position bias: the answer that stands second."""
    return said(text, "B")

def long(text, body=None):
    """Length bias: the answer with more words."""
    return larger(text, lambda prompt, answer: len(answer.split()))

def short(text, body=None):
    """Length bias: the answer with fewer words."""
    return larger(text, lambda prompt, answer: -len(answer.split()))

def sentiment(text, body=None):
    """Counts good words less bad words. It does not read "not", and the verdict counts no more than an opinion."""
    words = lambda answer: re.findall(r"[a-z]+", answer.lower())
    good, bad = {*toy.GOOD, *toy.GEM}, {*toy.BAD, *toy.BORE}
    return larger(text, lambda prompt, answer: sum((w in good) - (w in bad) for w in words(answer)))

def chance(text, body=None):
    """A or B by a hash of the question: no bias, and no skill."""
    return said(text, "AB"[share(f"chance {text}") < 0.5])

def unreadable(text, body=None):
    """Never a verdict, in either form."""
    return "Both" if one_letter(text) else "Both have their merits, and much can be said for each."

ALL = (honest, contrary, first, second, long, short, sentiment, chance, unreadable)
JUDGES = {judge.__name__: judge for judge in ALL}

def mixed(judge, other, portion):
    """A judge that answers as `other` on a portion (0 to 1) of the questions, chosen by a hash, and else as `judge`."""
    return lambda text, body=None: (other if share(f"mixed {text}") < portion else judge)(text, body)

# ---------------------------------------------------------------------------------------------------------------------
# the study

STUDIED = {"honest": honest, "first answer": first, "half honest, half first": mixed(honest, first, 0.5),
           "longer": long, "half honest, half longer": mixed(honest, long, 0.5), "sentiment words": sentiment}
HOW = {"against": "before", "task": form("sentiment", "text"), "model": "study"}
CHECK_PAIRS = 400
HEAD = ("answers", "seed", "judge", "exact", "one_order", "both", "both_low", "both_high", "equal", "equal_low",
        "equal_high", "gamma", "gamma_low", "gamma_high", "equal_words", "flips", "words", "other_words")
CHECK_HEAD = ("judge", "pairs", "accuracy", "position", "length", "says")

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--run", required=True, nargs="+", help="runs on the toy world with an eval.json, one a seed")
    p.add_argument("--against", required=True, nargs="+", help="as many other runs: each run's opponent, in order")
    args = places.parse(p, argv)
    if len(args.run) != len(args.against):
        p.error(f"--run names {len(args.run)} runs, and --against {len(args.against)}: each run needs one opponent")
    return args

def filled(answers, seed):
    """Answers with 0 to 3 first sentences of other reviews behind them, which say nothing about the film."""
    rng = random.Random(f"filler {seed}")
    return [answer.strip() + "".join(f" {toy.opening(rng)}" for _ in range(rng.randrange(4))) for answer in answers]

def exact(samples):
    """The win rate by the toy world's exact reward, with ties as half."""
    gaps = [evidence(s["prompt"], s["after"]) - evidence(s["prompt"], s["before"]) for s in samples]
    return float(ties_half(np.array(gaps)).mean())

def judged(samples, judge):
    """One judge on samples of two runs: the numbers of HEAD from one_order on, as a list."""
    asked = questions(samples, **HOW)
    known = {q["key"]: judge(q["text"]) for q in asked}
    verdicts = [read_verdict(known[q["key"]]) for q in asked]
    one_order = np.mean([SHARE[verdict] for verdict in verdicts[::2]])
    votes = pair_votes(samples, known, {}, **HOW)
    found = at_equal_length(samples, votes, HOW["against"])    # in characters
    words = np.array([[len(s[side].split()) for side in ("after", "before")] for s in samples])
    in_words = length_controlled(votes, words[:, 0] - words[:, 1])["win_rate"][0]
    flips = [outcome(*both) == "flip" for both in zip(verdicts[::2], verdicts[1::2])]
    return [float(one_order), *found["raw"], *found["win_rate"], *found["gamma"], in_words, float(np.mean(flips)),
            *words.mean(0).tolist()]

def compared(run, other):
    """Yields the rows of HEAD for two runs of one seed. Raises ValueError for runs that are not of the toy world."""
    facts = read_args(run)["args"]
    if facts["data"] != "toy" or read_args(other)["args"]["data"] != "toy":
        raise ValueError(f"{run}, {other}: expected two runs on the toy world")
    prompts, answers = contestants([run, other], None)
    fuller = {run: answers[run], other: filled(answers[other], facts["seed"])}
    for name, texts in (("as they are", answers), ("with filler", fuller)):
        [samples] = meetings(prompts, texts).values()
        for label, judge in STUDIED.items():
            yield name, facts["seed"], label, exact(samples), *judged(samples, judge)

def check_rows():
    """Yields the rows of CHECK_HEAD: what judge.py --check toy finds about each judge."""
    samples = judge_check.toy_pairs(CHECK_PAIRS)
    for label, judge in STUDIED.items():
        verdicts = [read_verdict(judge(q["text"])) for q in questions(samples, **HOW | {"against": "worse"})]
        found = judge_check.measured(samples, list(zip(verdicts[::2], verdicts[1::2])))
        yield (label, found["pairs"], *(found[key][0] for key in CHECK_HEAD[2:5]),
               "; ".join(judge_check.conclusions(found)))

def main(argv=None):
    args = get_args(argv)
    with cli.bad_input():
        rows = [row for both in zip(args.run, args.against) for row in compared(*both)]
        results, _ = places.folders(args.out, args.update)
        places.write_csv(results / "judges.csv", HEAD, rows)
        places.write_csv(results / "judges_check.csv", CHECK_HEAD, check_rows())
    for name, seed, label, right, one_order, both, *_ in rows:
        print(f"{name}, seed {seed}, {label}: exact {right:.3f}, one order {one_order:.3f}, both orders {both:.3f}")
    print(f"in {results}: judges.csv, judges_check.csv")

if __name__ == "__main__":
    main()
