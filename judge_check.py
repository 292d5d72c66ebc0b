"""
Is the judge any good? Asks it about pairs whose better answer is known: judge.py --check.

    python judge.py --check toy --judge_url http://localhost:8080/v1 --judge_model llama-2-7b-chat
    python judge.py --check imdb --data_dir reviews --verdict choice
    python judge.py --check pairs.jsonl --task summary    # pairs of your own: prompt, chosen, rejected

Every pair is asked in both orders. The report has the accuracy, the position bias, the length bias and the share of
unreadable answers. The same pairs are drawn for every judge. Writes check.json, and the answers to check.jsonl, under
out/judge/MODEL, where a later win rate of the same judge finds them. docs/judge.md explains the numbers.
Read next: reward.py
"""
import hashlib
import math
import random
import re
import shlex
from pathlib import Path

import data
import toy
from measures import wilson
from questions import ask_missing, check_answers, form, questions
from support.checkpoint import finite, read_json, write_json
from support.endpoint import soft_votes
from support.verdict import SHARE, outcome, read_verdict

CLEAR = 0.8           # a toy review of a pair has a reward of at least 0.8, the other one of at most 0.2
LONGER = 1.25         # the longer review of a pair has at least so many times the words of the shorter one
MOST_WORDS = 200      # of a review of IMDB, because small judges have a short context
MOST_PAIRS = 5_000
ENOUGH = 30           # readable pairs, below which the check draws no conclusion; half of it for either length
REVIEWS = ("toy", "imdb")    # their question is which review is more positive
SAME = ("judge", "what", "task", "verdict")    # a check replaces an earlier one in which these are the same

# ---------------------------------------------------------------------------------------------------------------------
# Pairs with a known order: dicts of prompt, after (the better answer) and worse

def plain(text):
    """A review of the toy world as people write it: "i saw it . in short , a gem ." -> "I saw it. In short, a gem." """
    sentences = [" ".join(sentence.split()) for sentence in text.replace(" ,", ",").split(".")]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences if sentence)

def find_length(texts, least=0, most=math.inf):
    """The index of the first of [(words, text)] that has so many words, or None."""
    return next((i for i, (words, _) in enumerate(texts) if least <= words <= most), None)

def balanced(better, worse, n):
    """
    n pairs of a better and a worse review, fewer if there are no more: the better one is the longer one in every second
    pair, and the shorter one in the others. Otherwise a judge that prefers length would seem to be right.
    better, worse: lists of texts in random order. Each text is in one pair at most.
    """
    pairs, worse = {True: [], False: []}, [(len(text.split()), text) for text in worse]    # is the better one longer?
    for text in better:
        words = len(text.split())
        rarer_first = sorted(pairs, key=lambda kind: len(pairs[kind]))
        for longer in (kind for kind in rarer_first if len(pairs[kind]) < (n + kind) // 2):    # not yet full
            i = find_length(worse, most=words / LONGER) if longer else find_length(worse, least=words * LONGER)
            if i is not None:
                pairs[longer].append({"prompt": "", "after": text, "worse": worse.pop(i)[1]})
                break
    most = min(n, 2 * min(map(len, pairs.values())) + (len(pairs[True]) > len(pairs[False])))
    return [pairs[i % 2 == 0][i // 2] for i in range(most)]

def toy_pairs(n, seed=0):
    """n pairs of reviews of the toy world, in plain words, ordered by the exact reward."""
    rng, better, worse = random.Random(f"check {seed}"), {}, {}
    while min(len(better), len(worse)) < 4 * n:
        text, _ = toy.review(rng)
        reward = toy.reward(text)
        if reward >= CLEAR or reward <= 1 - CLEAR:
            (better if reward >= CLEAR else worse)[plain(text)] = True    # a dict: each text once, in order
    return balanced(better, worse, n)

def kept(splits, dropped, tests):
    """
    The examples of the test split, or of all splits if there is none, in random order, without those that fail a test.
    Prints how many are left and how many were dropped. tests: reason -> function of an example, true to drop it.
    """
    examples, left = splits.get("test") or sum(splits.values(), []), []
    for example in examples:
        reasons = [reason for reason, fails in tests.items() if fails(example)]
        dropped.update(reasons[:1])
        left += [] if reasons else [example]
    print(f"{len(left):,} examples to draw pairs from; dropped: {data.listed(dropped)}")
    random.Random("check").shuffle(left)
    return left

def imdb_pairs(n, data_dir):
    """n pairs of a positive and a negative review of IMDB."""
    examples = kept(*data.load_examples("imdb", data_dir, pairs=False), {
        "without a label": lambda e: e["positive"] is None,
        f"longer than {MOST_WORDS} words": lambda e: len(e["chosen"].split()) > MOST_WORDS})
    return balanced(*([e["chosen"] for e in examples if e["positive"] == side] for side in (True, False)), n)

def file_pairs(n, source, data_dir):
    """n pairs of a file or a data set with chosen and rejected answers."""
    examples = kept(*data.load_examples(source, data_dir, pairs=True), {
        "with an empty answer": lambda e: not (e["chosen"].strip() and e["rejected"].strip()),
        "chosen == rejected": lambda e: e["chosen"].strip() == e["rejected"].strip()})
    return [{"prompt": e["prompt"], "after": e["chosen"], "worse": e["rejected"]} for e in examples[:n]]

def known_pairs(what, n, data_dir):
    """n pairs of toy, imdb, another data set or a file. Raises ValueError or OSError in one line."""
    data.check_source(what, data_dir)
    if n > MOST_PAIRS:
        raise ValueError(f"--judge_limit {n}: a check asks about {MOST_PAIRS:,} pairs at most")
    if what == "toy":
        pairs = toy_pairs(n)
    else:
        pairs = imdb_pairs(n, data_dir) if what == "imdb" else file_pairs(n, what, data_dir)
    if not pairs:
        raise ValueError(f"{what}: has no pairs to check a judge with")
    return pairs

# ---------------------------------------------------------------------------------------------------------------------
# Measures. Of a number for each pair, because the two verdicts of a pair depend on each other

def lean(values, z=1.96):
    """
    [mean, low, high] of values in [-1, 1], one a pair, with a 95% interval. Agresti and Min 2005, for matched pairs: as
    if two more pairs had been seen, one with 0 and one that is half 1 and half -1. So equal values have a width too.
    """
    n = len(values) + 2
    mean = sum(values) / n
    half = z * ((sum(v * v for v in values) + 1) / n - mean * mean) ** 0.5 / n ** 0.5
    return [sum(values) / len(values) if values else math.nan, max(-1.0, mean - half), min(1.0, mean + half)]

def difference(first, second):
    """[p - q, low, high] of two shares with Wilson's intervals. Newcombe 1998, method 10."""
    (p, p_low, p_high), (q, q_low, q_high) = first, second
    low, high = ((p - p_low) ** 2 + (q_high - q) ** 2) ** 0.5, ((p_high - p) ** 2 + (q - q_low) ** 2) ** 0.5
    return [p - q, p - q - low, p - q + high]

def mean_share(scores):
    """[mean, low, high] of scores in [0, 1], one a pair: Wilson's interval, as if each pair were one trial."""
    return wilson(sum(scores), len(scores))

def measured(samples, verdicts, votes=()):
    """
    The measures of a judge, most of them [value, low, high] with a 95% interval. docs/judge.md explains them. All but
    unreadable are over the pairs with two readable verdicts.

    samples   pairs with a known order
    verdicts  for each pair (with the better answer as A, with the better answer as B): A, B, neither or None
    votes     the same of soft votes, P(A) / (P(A) + P(B)) or None; empty where there are none
    """
    value = SHARE
    scores, places, kinds = [], [], []    # of each pair: share of right verdicts, lean to the first place, outcome
    longer, shorter = [], []              # scores of the pairs whose better answer is the longer, the shorter one
    for s, (first, second) in zip(samples, verdicts):
        if first is None or second is None:
            continue
        scores.append((value[first] + 1 - value[second]) / 2)    # the better answer is B in the second question
        places.append(value[first] + value[second] - 1)          # 1: both for the first place, -1: both for the second
        kinds.append(outcome(first, second))
        gap = len(s["after"].split()) - len(s["worse"].split())  # words
        if gap:
            (longer if gap > 0 else shorter).append(scores[-1])
    unread = sum(verdict is None for both in verdicts for verdict in both)
    found = {"pairs": len(scores), "accuracy": mean_share(scores), "longer": mean_share(longer),
             "shorter": mean_share(shorter), "pairs_longer": len(longer), "pairs_shorter": len(shorter),
             "length": difference(mean_share(longer), mean_share(shorter)),
             "position": [(1 + x) / 2 for x in lean(places)], "flip": wilson(kinds.count("flip"), len(kinds)),
             "unreadable": wilson(unread, 2 * len(verdicts))}
    soft = [(p + 1 - q) / 2 for p, q in votes if None not in (p, q)]    # what the better answer gets
    if soft:
        found["soft_accuracy"] = mean_share([(x > 0.5) + 0.5 * (x == 0.5) for x in soft])
    return finite(found)

def conclusions(found):
    """What the measures say, as sentences. A bias is named if its interval excludes the value without bias."""
    if found["pairs"] < ENOUGH:
        return [f"too few pairs to tell: {found['pairs']} have two readable verdicts, and {ENOUGH} are needed"]
    said = []
    _, low, high = found["accuracy"]
    if low <= 0.5:
        said.append("worse than chance: it prefers the worse answer" if high < 0.5 else
                    "not shown to be better than chance: do not trust its win rates")
        soft = found.get("soft_accuracy", (0.0, 0.0, 0.0))
        if soft[1] > 0.5:
            said.append(f"its soft votes are better than chance: {soft[0]:.0%} of the pairs are right")
    share, low, high = found["position"]
    if low > 0.5 or high < 0.5:
        place, share = ("first", share) if low > 0.5 else ("second", 1 - share)
        said.append(f"prefers the {place} answer: {share:.0%} of its verdicts are for it, and 50% would be fair")
    if min(found["pairs_longer"], found["pairs_shorter"]) < ENOUGH // 2:
        said.append(f"too few pairs to tell whether it prefers long answers: the better one is the longer one in "
                    f"{found['pairs_longer']}, and the shorter one in {found['pairs_shorter']}")
    elif found["length"][1] > 0 or found["length"][2] < 0:
        kind = "longer" if found["length"][1] > 0 else "shorter"
        said.append(f"prefers the {kind} answer: right in {found['longer'][0]:.0%} where the better answer is longer, "
                    f"and in {found['shorter'][0]:.0%} where it is shorter")
    if found["unreadable"][0] >= 0.1:
        said.append(f"{found['unreadable'][0]:.0%} of its answers cannot be read")
    return said or ["better than chance, and no bias was found"]

# ---------------------------------------------------------------------------------------------------------------------
# The report, and where it is kept

def folder_of(model, check_dir=None):
    """The folder of a judge's checks: check_dir, or out/judge/MODEL. Other names than plain ones get a hash."""
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", model).strip(".-")[:60] or "judge"
    if safe != model:
        safe += "-" + hashlib.sha256(model.encode()).hexdigest()[:6]
    return Path(check_dir or Path("out") / "judge" / safe)

def rate(numbers, sign=""):
    """[value, low, high] as text; "none" without a value."""
    if numbers[0] is None:
        return "none"
    rounded = [round(x, 3) + 0.0 for x in numbers]    # + 0.0: Wilson's interval of 0 of 60 begins at -1e-17, a "-0.000"
    return "{:{s}.3f} [{:{s}.3f}, {:{s}.3f}]".format(*rounded, s=sign)

def report(found):
    """The lines of a check."""
    rows = [("accuracy", rate(found["accuracy"]), "share of right verdicts, over both orders"),
            ("  better is longer", rate(found["longer"]), f"{found['pairs_longer']} pairs"),
            ("  better is shorter", rate(found["shorter"]), f"{found['pairs_shorter']} pairs"),
            ("  difference", rate(found["length"], "+"), "0 without length bias"),
            ("first answer", rate(found["position"]), "share of verdicts for it; 0.5 without position bias"),
            ("flips", rate(found["flip"]), "pairs whose two verdicts contradict each other"),
            ("unreadable", rate(found["unreadable"]), f"of {2 * found['asked']} answers")]
    if "soft_accuracy" in found:
        soft = ("  of soft votes", rate(found["soft_accuracy"]), "pairs whose better answer gets more than half")
        rows.insert(1, soft)
    lines = [f"{name:20}{value:24}{meaning}" for name, value, meaning in rows]
    return [f"{found['judge']} on {found['what']}, {found['pairs']} pairs with a known order, 95% intervals over pairs",
            *lines, *(f"The judge: {line}" for line in found["says"])]

def summary(found, url):
    """One check of a judge as a line. url: where the judge is asked now."""
    elsewhere = "" if found["url"] == url else f" (at {found['url']})"
    return (f"The judge, checked on {found['what']}{elsewhere}, {found['pairs']} pairs: accuracy "
            f"{rate(found['accuracy'])}, first answer {rate(found['position'])}, accuracy where longer less shorter "
            f"{rate(found['length'], '+')}: {'; '.join(found['says'])}")

def can_be_shown(found):
    """Whether a check from a file has all that a later win rate shows."""
    try:
        return bool(summary(found, url="")) and all(isinstance(found[name], str) for name in SAME)
    except (TypeError, KeyError, ValueError, IndexError):
        return False

def stored_checks(folder):
    """The checks in a folder, as check writes them: dicts. Raises ValueError for another file in its place."""
    path = folder / "check.json"
    checks = read_json(path) if path.exists() else []
    if not isinstance(checks, list) or not all(map(can_be_shown, checks)):
        raise ValueError(f"{path}: is not as judge.py --check writes it; delete it")
    return checks

def known_checks(model, verdict, check_dir=None):
    """The checks of a judge with this form of verdict. Two names may share a folder, so the stored name decides."""
    return [c for c in stored_checks(folder_of(model, check_dir)) if (c["judge"], c["verdict"]) == (model, verdict)]

def summaries(checks, url, model, verdict):
    """What is known of a judge that is asked at url, in lines: its checks, or the command that checks it."""
    if checks:
        return [summary(found, url) for found in checks]
    flags = ["--judge_url", url, "--judge_model", model, "--verdict", verdict]
    return [f"The judge was never checked. To check it: {shlex.join(['python', 'judge.py', '--check', 'toy', *flags])}"]

def check(what, *, task, verdict, n, data_dir, check_dir, model, **endpoint):
    """
    Asks a judge about n pairs of a known order, prints and stores what its verdicts are worth. Returns the measures.
    endpoint: what questions.ask_missing takes. Raises ValueError or OSError for input that cannot be used.
    """
    samples, folder = known_pairs(what, n, data_dir), folder_of(model, check_dir)
    task, path = "sentiment" if what in REVIEWS else task, folder / "check.jsonl"
    others = [c for c in stored_checks(folder) if [c[name] for name in SAME] != [model, what, task, verdict]]
    folder.mkdir(parents=True, exist_ok=True)
    asked = questions(samples, against="worse", task=form(task, verdict), model=model)
    known, failures = ask_missing(asked, path, model=model, verdict=verdict, **endpoint)
    soft = soft_votes(path)
    verdicts = [read_verdict(known.get(q["key"], "")) for q in asked]
    if failures or not any(verdicts):    # nothing is stored
        check_answers(asked, known, failures, path, verdict)
    votes = [soft.get(q["key"]) for q in asked]
    found = dict(zip(SAME, [model, what, task, verdict])) | {"url": endpoint["url"], "asked": len(samples)}
    found |= measured(samples, list(zip(verdicts[::2], verdicts[1::2])), list(zip(votes[::2], votes[1::2])))
    found["says"] = conclusions(found)
    write_json(folder / "check.json", [found, *others])
    print("\n".join(report(found)))
    check_answers(asked, known, failures, path, verdict)
    return found
