"""
mean_words and judged: win rates from a judge's answers

Shares with intervals, what is in their denominators, and the words of winners and losers.
"""
from assignments.exercise import Mistake

TARGETS = ["judge.py:mean_words", "judge.py:judged"]
POINTS, MINUTES = 3, 40
SAID = ["Short.\nBetter: A", "**Better: B**", "Both say the same.\nBetter: neither", "I cannot decide."]

def probes(rng):
    """All outcomes and open questions, a judge that says A, equal answers, one pair, and nothing that is readable."""
    words = "a good plain long film with much rain and no end".split()
    def text(n):
        gaps = rng.choice([" ", "  ", "\n"], n)
        return "".join(f"{words[rng.integers(len(words))]}{gap}" for gap in gaps)
    def sample(mine, before, chosen):
        return dict(prompt=text(3), after=text(mine), before=text(before), chosen=text(chosen))
    def probe(title, samples, said, against="before", other=()):
        return dict(title=title, samples=samples, said=said, against=against, other=list(other))
    every = [(i, j) for i in (0, 1, 2, 3, -1) for j in (0, 1, 2, 3, -1)]    # -1: no answer yet
    every += [(0, 1)] * 5 + [(1, 0)] * 2 + [(0, 0), (1, 1), (2, 0), (-1, 0)]
    drawn = [every[i] for i in rng.permutation(len(every))]
    samples = [sample(*rng.integers(1, 9, 3)) for _ in drawn]
    few = [sample(*rng.integers(2, 7, 3)) for _ in range(4)]
    equal = [dict(s, after=s["before"]) for s in few[:2]]
    return [probe("all outcomes, open questions", samples, [list(pair) for pair in drawn], other=["Better: A", "?"]),
            probe("all outcomes against the chosen answers", samples, [list(pair) for pair in drawn], "chosen"),
            probe("a judge that always says A", few, [[0, 0]] * 4),
            probe("one sample twice, and equal answers", few[:1] * 2 + equal, [[0, 1], [0, 1], [2, 2], [0, 0]]),
            probe("the same, not all answered", few[:1] * 2 + equal, [[-1, 1], [-1, 1], [-1, -1], [0, 0]]),
            probe("one win", few[:1], [[0, 1]]),
            probe("nothing readable", few, [[3, 3], [3, 0], [1, 3], [-1, 0]]),
            probe("no answers", few[:2], [[-1, -1], [-1, 2]])]

def run(module, probe):
    """The result of judged as arrays, and mean_words on the outcomes that the verdicts have. -1 stands for None."""
    said = ["Short.\nBetter: A", "**Better: B**", "Both say the same.\nBetter: neither", "I cannot decide."]
    how = dict(against=probe["against"], task="dialogue", model="a judge")
    keys = [q["key"] for q in module.questions(probe["samples"], **how)]
    flat = [one for pair in probe["said"] for one in pair]
    known = {key: said[one] for key, one in zip(keys, flat) if one >= 0}
    known |= {f"another question {i}": text for i, text in enumerate(probe["other"])}
    found = module.judged(probe["samples"], known, **how)
    rates = {f"rate: {name}": [-1.0 if x is None else x for x in rate] for name, rate in found["rates"].items()}
    counts = {name: found[name] for name in ("pairs", "unanswered")}
    same = {"judge and against": [found["judge"] == "a judge", found["against"] == probe["against"]]}
    outcomes = ["win", "lose", "tie", "flip", "invalid"]
    pairs = [(s, outcomes[i % 5]) for i, s in enumerate(probe["samples"])]
    words = {"words": found["words"], "mean_words": module.mean_words(pairs, probe["against"]),
             "mean_words of none": module.mean_words([], probe["against"])}
    flat = {f"{name}, {side}": both.get(side, -1.0) for name, both in words.items() for side in ("winners", "losers")}
    return rates | counts | same | flat

KEYS, FIRST = 'keys = [q["key"] for q in questions(samples, against=against, task=task, model=model)]', "keys[::2]"
ANSWERED = "if first in verdicts and second in verdicts:"
BOTH = "for s, first, second in zip(samples, keys[::2], keys[1::2]):    # the questions in both orders"
TIES, READABLE = 'counts["tie"] += counts["flip"]', 'readable = len(pairs) - counts["invalid"]'
TOTALS = 'totals = {"win": readable, "tie": readable, "lose": readable, "flip": readable, "invalid": len(pairs)}'
OPEN, RATES = "sum(key not in known for key in keys)", "rates = finite({name: wilson(counts[name], n) for name, n in "
DECIDED = 'if result in ("win", "lose"):'
LENGTHS = 'mine, other = len(s["after"].split()), len(s[against].split())'
WON = 'words["winners"].append(mine if result == "win" else other)'
LOST = 'words["losers"].append(other if result == "win" else mine)'
MEANS = "return {side: sum(counts) / len(counts) for side, counts in words.items() if counts}"
APPENDED = "pairs.append((s, outcome(verdicts[first], verdicts[second])))"

def totals(**changed):
    """An edit: other denominators of some rates."""
    names = {"win": "readable", "tie": "readable", "lose": "readable", "flip": "readable", "invalid": "len(pairs)"}
    return TOTALS, "totals = {" + ", ".join(f'"{name}": {n}' for name, n in (names | changed).items()) + "}"

SHARES, QUESTIONS, LENGTH = "Shares of what", "Two questions for each pair", "Words of winners and losers"
COUNTED = "test_judge_modes.py::test_a_flip_is_a_tie_and_an_invalid_pair_leaves_the_others"
FAIR = "test_judge_modes.py::test_a_fair_judge_by_hand"
KNOWN = "test_frontier.py::test_open_questions_are_counted_by_hand"
DENOMINATOR = "Add up your rates of win, tie and lose. Should they be 1?"
INVALID = "Add a pair that the judge does not understand. Which of your rates change, and which may?"
A_FLIP = "Let a judge always say A. What are its rates of ties and of flips in your result?"
TURNED = "Which two entries of the list of questions belong to one pair? Print the names of the first four."
UNSEEN = "Leave one question without an answer. How does each number of your result change?"
COUNT = "What is counted in `unanswered`: pairs, questions, or different texts?"
SIDES = "Take one pair that the run loses. Whose words are added to which of the two lists?"
WHO_COUNTS = "Add a tie between two very long answers. Do your mean words change?"
UNITS = "What is a word of an answer? Does an answer have more words if it ends with a space?"
EMPTY = "No pair is decided. What does the docstring want then?"
WIDTH = "Compare your interval for 1 of 1 with that of `wilson`."
MISTAKES = {
    "invalid pairs in the denominator": Mistake((totals(win="len(pairs)", tie="len(pairs)", lose="len(pairs)",
        flip="len(pairs)"),), INVALID, SHARES, COUNTED,
        "A judge that is hard to read lowers the win rate of every run, and the loss rate too."),
    "invalid as a share of the readable": Mistake((totals(invalid="readable"),), INVALID, SHARES, COUNTED,
        "One of four pairs cannot be read, and the rate of invalid pairs is 1/3."),
    "flips leave the denominator": Mistake(((READABLE, f'{READABLE} - counts["flip"]'),), DENOMINATOR, SHARES, COUNTED),
    "ties leave the denominator": Mistake(
        (totals(win='(counts["win"] + counts["lose"])', lose='(counts["win"] + counts["lose"])'),), DENOMINATOR, SHARES,
        COUNTED, "Win rate and loss rate add up to 1, also if half of the pairs are ties."),
    "ties leave the denominator of wins": Mistake(
        (totals(win='(counts["win"] + counts["lose"])'),), DENOMINATOR, SHARES, COUNTED),
    "unanswered pairs in the denominator": Mistake((totals(win="len(samples)", tie="len(samples)", lose="len(samples)",
        flip="len(samples)", invalid="len(samples)"),), UNSEEN, SHARES, KNOWN,
        "The win rate of an unfinished judging is too low. It rises while answers arrive."),
    "a flip is no tie": Mistake(((TIES, "pass"),), A_FLIP, SHARES, COUNTED,
        "Win, tie and lose add up to less than 1 with a judge that prefers what stands first."),
    "a flip is half a win": Mistake(
        ((TIES, 'counts["win"] += counts["flip"] / 2\n    counts["lose"] += counts["flip"] / 2'),), A_FLIP, SHARES,
        COUNTED),
    "a tie is half a win": Mistake(
        ((TIES, f'{TIES}\n    counts["win"] += counts["tie"] / 2\n    counts["lose"] += counts["tie"] / 2'),),
        DENOMINATOR, SHARES, COUNTED, "Win and loss rates add up to 1, and there are ties besides."),
    "the first question alone": Mistake(((APPENDED, 'pairs.append((s, {"A": "win", "B": "lose", "neither": "tie", '
        'None: "invalid"}[verdicts[first]]))'),), "Let a judge always say A. Is your win rate 1?", QUESTIONS, COUNTED),
    "Wald's interval": Mistake(((RATES, "wald = lambda k, n: [k / n, k / n - 1.96 * (k / n * (1 - k / n) / n) ** 0.5, "
        "k / n + 1.96 * (k / n * (1 - k / n) / n) ** 0.5] if n else [math.nan, 0.0, 1.0]\n    "
        + RATES.replace("wilson", "wald")), (BOTH, f"import math\n    {BOTH}")), WIDTH, SHARES, COUNTED),
    "the two orders are exchanged": Mistake(((BOTH, "for s, first, second in zip(samples, keys[1::2], keys[::2]):"),),
        TURNED, QUESTIONS, FAIR, "A run that is better than its reference loses nearly all of its decided pairs."),
    "all first questions, then all second": Mistake(
        ((BOTH, "for s, first, second in zip(samples, keys[:len(samples)], keys[len(samples):]):"),), TURNED, QUESTIONS,
        FAIR, "A judge that never contradicts itself is reported to flip on many pairs."),
    "the questions of the other answers": Mistake(
        ((KEYS, KEYS.replace("against=against", 'against="before"')),),
        "Judge against the chosen answers. Which questions does your function ask for?", QUESTIONS, FAIR,
        "With --against chosen, every question counts as unanswered, after all were asked."),
    "an unanswered question is unreadable": Mistake(((ANSWERED, "if True:"),
        (APPENDED, "pairs.append((s, outcome(verdicts.get(first), verdicts.get(second))))")), UNSEEN, QUESTIONS, KNOWN,
        "While answers still arrive, the rate of invalid pairs is high. It falls when they are there."),
    "one answer is enough": Mistake(((ANSWERED, "if first in verdicts or second in verdicts:"),
        (APPENDED, "pairs.append((s, outcome(verdicts.get(first), verdicts.get(second))))")), UNSEEN, QUESTIONS, KNOWN),
    "unreadable answers are left out": Mistake(
        ((ANSWERED, "if verdicts.get(first) is not None and verdicts.get(second) is not None:"),),
        "Is an answer without a verdict an answer? Which rate tells how many there are?", QUESTIONS, COUNTED,
        "The rate of invalid pairs is 0 for a judge that says nothing readable."),
    "unanswered pairs are counted": Mistake(((OPEN, "len(samples) - len(pairs)"),), COUNT, QUESTIONS, KNOWN),
    "unanswered texts are counted": Mistake(((OPEN, "len(set(keys) - known.keys())"),), COUNT, QUESTIONS),
    "questions less answers": Mistake(((OPEN, "len(keys) - len(known)"),),
        "May `known` hold answers to questions about other samples?", QUESTIONS, KNOWN,
        "After the same run was judged at two temperatures, `unanswered` is negative."),
    "questions less verdicts": Mistake(((OPEN, "len(keys) - len(verdicts)"),), COUNT, QUESTIONS),
    "unreadable is unanswered": Mistake(((OPEN, "sum(verdicts.get(key) is None for key in keys)"),),
        "Is an answer without a verdict an answer? Which rate tells how many there are?", QUESTIONS, KNOWN),
    "all samples as pairs": Mistake((('"pairs": len(pairs)', '"pairs": len(samples)'),), UNSEEN, QUESTIONS, KNOWN),
    "readable pairs as pairs": Mistake((('"pairs": len(pairs)', '"pairs": readable'),), INVALID, QUESTIONS,
        "test_judge.py::test_unreadable_verdicts_are_counted_and_not_dropped"),
    "the run's words as the winner's": Mistake(((WON, 'words["winners"].append(mine)'),
        (LOST, 'words["losers"].append(other)')), SIDES, LENGTH, FAIR,
        "Words of winners and losers are the same for a judge and for one that says the opposite."),
    "winners and losers are exchanged": Mistake(((WON, WON.replace('"winners"', '"losers"')),
        (LOST, LOST.replace('"losers"', '"winners"'))), SIDES, LENGTH, FAIR,
        "A judge that always takes the longer answer is reported to prefer short ones."),
    "the longer answer wins": Mistake(((WON, 'words["winners"].append(max(mine, other))'),
        (LOST, 'words["losers"].append(min(mine, other))')), SIDES, LENGTH, FAIR),
    "ties count": Mistake(((DECIDED, 'if result != "invalid":'),), WHO_COUNTS, LENGTH, FAIR),
    "all pairs count": Mistake(((DECIDED, "if result:"),), WHO_COUNTS, LENGTH, FAIR),
    "divided by all pairs": Mistake(((MEANS, MEANS.replace("len(counts)", "len(pairs)")),), WHO_COUNTS, LENGTH, FAIR),
    "sums of words": Mistake(((MEANS, MEANS.replace(" / len(counts)", "")),),
        "The same pairs twice: should the mean words change?", LENGTH, FAIR),
    "characters": Mistake(((LENGTHS, 'mine, other = len(s["after"]), len(s[against])'),), UNITS, LENGTH, FAIR),
    "spaces": Mistake(((LENGTHS, 'mine, other = len(s["after"].split(" ")), len(s[against].split(" "))'),), UNITS,
        LENGTH),
    "words of the reference's answer": Mistake(((LENGTHS, LENGTHS.replace("s[against]", 's["before"]')),),
        "Judge against the chosen answers. Whose words do you count?", LENGTH, FAIR,
        "With --against chosen, the words of winners and losers belong to an answer that the judge did not see."),
    "0 words of nobody": Mistake(((MEANS, "return {side: sum(counts) / max(len(counts), 1) for side, counts in "
        "words.items()}"),), EMPTY, LENGTH, "test_judge_modes.py::test_a_judge_that_always_says_a_only_flips"),
}
ALTERNATIVES = {
    "lists": '''
def mean_words(pairs, against):
    won, lost = [], []
    for sample, result in pairs:
        mine, other = (len(sample[name].split()) for name in ("after", against))
        if result == "win":
            won.append(mine)
            lost.append(other)
        elif result == "lose":
            won.append(other)
            lost.append(mine)
    return {"winners": sum(won) / len(won), "losers": sum(lost) / len(lost)} if won else {}

def judged(samples, known, *, against, task, model):
    asked = questions(samples, against=against, task=task, model=model)
    pairs, open_questions = [], 0
    for i, sample in enumerate(samples):
        both = [known.get(q["key"]) for q in asked[2 * i:2 * i + 2]]
        open_questions += both.count(None)
        if None not in both:
            pairs.append((sample, outcome(*map(read_verdict, both))))
    results = [result for _, result in pairs]
    n = sum(result != "invalid" for result in results)
    counts = {"win": results.count("win"), "tie": results.count("tie") + results.count("flip"),
              "lose": results.count("lose"), "flip": results.count("flip")}
    rates = {name: wilson(k, n) for name, k in counts.items()}
    rates["invalid"] = wilson(results.count("invalid"), len(results))
    rates = {name: [None if x != x else x for x in rate] for name, rate in rates.items()}
    return {"judge": model, "against": against, "pairs": len(results), "words": mean_words(pairs, against),
            "unanswered": open_questions, "rates": rates}
''',
    "arrays": '''
def mean_words(pairs, against):
    import numpy as np
    decided = [(s, result) for s, result in pairs if result in {"win", "lose"}]
    if not decided:
        return {}
    words = np.array([[len(s["after"].split()), len(s[against].split())] for s, _ in decided], dtype=float)
    won = np.array([result == "win" for _, result in decided])
    winners = np.where(won, words[:, 0], words[:, 1])
    return {"winners": float(winners.mean()), "losers": float((words.sum(1) - winners).mean())}

def judged(samples, known, *, against, task, model):
    keys = [q["key"] for q in questions(samples, against=against, task=task, model=model)]
    pairs, missing = [], 0
    while keys:
        first, second, *keys = keys
        missing += (first not in known) + (second not in known)
        sample = samples[-1 - len(keys) // 2]
        if first in known and second in known:
            pairs.append((sample, outcome(read_verdict(known[first]), read_verdict(known[second]))))
    found = Counter(dict(win=0, tie=0, lose=0, flip=0, invalid=0))
    for _, result in pairs:
        found[result] += 1
        if result == "flip":
            found["tie"] += 1
    readable = found["win"] + found["tie"] + found["lose"]
    rates = {name: wilson(k, len(pairs) if name == "invalid" else readable) for name, k in found.items()}
    return dict(judge=model, against=against, pairs=len(pairs), words=mean_words(pairs, against), unanswered=missing,
                rates=finite(rates))
''',
}
HIDDEN = ()
VARIANTS = {
    "a flip is no tie": (
        ("A\n           flip counts as a tie too. The", "A\n           flip does not count as a tie. The"),
        (TIES, "pass")),
    "shares of decided pairs": (
        ("win, tie, lose and flip are shares of the pairs whose verdicts can be read, invalid of all answered pairs. A",
         "win and lose are shares of the pairs that are won or lost, tie and flip of the pairs whose verdicts can be\n"
         "           read, invalid of all answered pairs. A"),
        totals(win='counts["win"] + counts["lose"]', lose='counts["win"] + counts["lose"]')),
}
