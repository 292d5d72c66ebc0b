"""
outcome: what two verdicts of a judge say together

A judge was asked about one pair twice, in both orders.
"""
from assignments.exercise import Mistake

TARGETS = ["support/verdict.py:outcome"]
POINTS, MINUTES = 2, 15

def probes(rng):
    """All 16 pairs of verdicts: those for each first verdict together, in an order that is drawn."""
    verdicts = ["A", "B", "neither", None]
    found = []
    for first in verdicts:
        seconds = [verdicts[i] for i in rng.permutation(4)]
        rows = [f"first {first or 'unreadable'}, second {second or 'unreadable'}" for second in seconds]
        found.append(dict(title=f"first verdict: {first or 'unreadable'}", rows=rows, first=first, seconds=seconds))
    return found

def run(module, probe):
    """For each outcome, which of the pairs have it."""
    found = [module.outcome(probe["first"], second) for second in probe["seconds"]]
    names = ["win", "lose", "tie", "flip", "invalid"]
    counted = {name: [int(one == name) for one in found] for name in names}
    return counted | {"a word that is no outcome": [int(one not in names) for one in found]}

UNREAD = 'if first is None or second is None:\n        return "invalid"\n'
VOTES = 'votes = {"A": 1, "B": -1, "neither": 0}[first], {"A": -1, "B": 1, "neither": 0}[second]    # 1: for the run'
FLIP = 'if votes[0] * votes[1] < 0:\n        return "flip"'
SUM = 'return {2: "win", -2: "lose"}.get(sum(votes), "tie")'
ONE = 'return {2: "win", 1: "win", -1: "lose", -2: "lose"}.get(sum(votes), "tie")'
ORDERS, CONTRARY, READ = "Which answer was A", "Two verdicts that disagree", "A verdict that cannot be read"
BY_HAND = "test_judge.py::test_outcomes_by_hand"
TURNED = "The run's answer is A in the first question. What is it in the second? Whom does A name there?"
PLACE = "Take a judge that always says A, without reading. Which outcome has each pair in your function?"
FOR_RUN = "Whose win is meant: that of the run, or that of the answer that is called A or B?"
BOTH = "How many verdicts must be for the run? What if the other one is neither?"
DIFFER = "Which two verdicts contradict each other? Does neither contradict A?"
UNREADABLE = "What do you know of a pair if one of its two verdicts cannot be read?"
DECIDES = "One verdict cannot be read. May the other decide?"
AS_TIE = "Did the judge say that the answers are equal, or was the judge not understood?"
MISTAKES = {
    "the first verdict alone": Mistake(((SUM, 'return {1: "win", -1: "lose"}.get(votes[0], "tie")'),
        (FLIP, "")), PLACE, CONTRARY, BY_HAND,
        "A judge that always says A gives every run a win rate of 1."),
    "the second verdict alone": Mistake(((SUM, 'return {1: "win", -1: "lose"}.get(votes[1], "tie")'),
        (FLIP, "")), PLACE, CONTRARY, BY_HAND),
    "the first verdict without a flip": Mistake(((SUM, 'return {1: "win", -1: "lose"}.get(votes[0], "tie")'),), BOTH,
        CONTRARY, BY_HAND),
    "the second verdict is not turned": Mistake(((VOTES, VOTES.replace('{"A": -1, "B": 1, ', '{"A": 1, "B": -1, ')),),
        TURNED, ORDERS, BY_HAND,
        "A judge that always says A gives every run a win rate of 1, and a fair judge gives flips and ties only."),
    "the first verdict is turned": Mistake(((VOTES, VOTES.replace('{"A": 1, "B": -1, ', '{"A": -1, "B": 1, ')),),
        TURNED, ORDERS, BY_HAND),
    "the run is B first": Mistake(
        ((VOTES, 'votes = {"A": -1, "B": 1, "neither": 0}[first], {"A": 1, "B": -1, "neither": 0}[second]'),), FOR_RUN,
        ORDERS, BY_HAND, "A run that is better than its reference loses nearly all of its decided pairs."),
    "win and lose are exchanged": Mistake(((SUM, 'return {-2: "win", 2: "lose"}.get(sum(votes), "tie")'),), FOR_RUN,
        ORDERS, BY_HAND),
    "a flip is a tie": Mistake(((FLIP, ""),),
        "Can you tell from the outcome that a judge only looks at the place of an answer?", CONTRARY, BY_HAND,
        "The rate of flips is 0 for every judge, also for one that always says A."),
    "equal verdicts are a flip": Mistake(((FLIP, 'if first == second:\n        return "flip"'),),
        "Both verdicts may be the same word and agree with each other. Which word?", CONTRARY, BY_HAND,
        "A judge that says neither every time is reported to contradict itself on all pairs."),
    "different votes are a flip": Mistake(((FLIP, 'if votes[0] != votes[1]:\n        return "flip"'),), DIFFER,
        CONTRARY, BY_HAND),
    "the verdicts differ": Mistake(((FLIP, 'if first != second:\n        return "flip"'),), DIFFER, CONTRARY, BY_HAND),
    "one vote is enough": Mistake(((SUM, ONE),), BOTH, CONTRARY, BY_HAND,
        "A judge that says A in the first order and neither in the second gives the run a win rate of 1."),
    "the sign of the sum, a flip too": Mistake(((SUM, ONE), (FLIP, "")), BOTH, CONTRARY, BY_HAND),
    "not both against the run is a win": Mistake(
        ((SUM, 'return {2: "win", -2: "lose"}.get(sum(votes), "win" if sum(votes) > 0 else "tie")'),), BOTH, CONTRARY,
        BY_HAND),
    "not for the run is a loss": Mistake(((SUM, 'return {2: "win", 0: "tie"}.get(sum(votes), "lose")'),), BOTH,
        CONTRARY, BY_HAND),
    "neither is invalid": Mistake(
        ((UNREAD, UNREAD.replace("second is None", 'second is None or "neither" in (first, second)')),),
        "Is neither a verdict? Did the judge answer the question?", READ, BY_HAND),
    "unreadable is neither": Mistake(
        ((UNREAD, 'first, second = first or "neither", second or "neither"\n'),), AS_TIE, READ, BY_HAND,
        "A judge whose answers have no verdict gives a tie rate of 1 and no invalid pair."),
    "unreadable is a tie": Mistake(((UNREAD, UNREAD.replace('"invalid"', '"tie"')),), AS_TIE, READ, BY_HAND),
    "invalid only without both": Mistake(
        ((UNREAD, 'if first is None and second is None:\n        return "invalid"\n'
          '    first, second = first or "neither", second or "neither"\n'),), UNREADABLE, READ, BY_HAND),
    "neither decides": Mistake(
        ((UNREAD, 'if "neither" in (first, second):\n        return "tie"\n    ' + UNREAD),), DECIDES, READ,
        "test_frontier.py::test_a_pair_with_an_unreadable_verdict_is_invalid"),
    "the other verdict decides": Mistake(
        ((UNREAD, 'if first is None and second is None:\n        return "invalid"\n    if first is None:\n        '
          'return {"A": "lose", "B": "win", "neither": "tie"}[second]\n    if second is None:\n        '
          'return {"A": "win", "B": "lose", "neither": "tie"}[first]\n'),), UNREADABLE, READ, BY_HAND,
        "A judge whose verdicts on the swapped order can never be read has no invalid pair. Its win rate is that of "
        "the first order."),
    "only the first is looked at": Mistake(
        ((UNREAD, 'if first is None:\n        return "invalid"\n    second = second or "neither"\n'),), UNREADABLE,
        READ, BY_HAND),
}
ALTERNATIVES = {
    "a table": '''
def outcome(first, second):
    if None in (first, second):
        return "invalid"
    table = {("A", "B"): "win", ("B", "A"): "lose", ("A", "A"): "flip", ("B", "B"): "flip"}
    return table.get((first, second), "tie")
''',
    "questions in order": '''
def outcome(first, second):
    if not (first and second):
        return "invalid"
    if first == "neither" or second == "neither":
        return "tie"
    if first == second:
        return "flip"
    return "win" if first == "A" else "lose"
''',
    "sets": '''
def outcome(first, second):
    turned = {"A": "B", "B": "A"}.get(second, second)
    said = {first, turned}
    if None in said:
        return "invalid"
    if said == {"A", "B"}:
        return "flip"
    return {"A": "win", "B": "lose"}[said.pop()] if len(said) == 1 and "neither" not in said else "tie"
''',
}
HIDDEN = ()
VARIANTS = {
    "one vote and neither decides": (
        ('tie: one of them or both are "neither". invalid',
         'tie: both are "neither"; with one "neither" the\n    other verdict decides. invalid'),
        (SUM, ONE)),
    "the run is B first": (
        ("first   the verdict with the run's answer as A", "first   the verdict with the run's answer as B"),
        ("second  the verdict with the run's answer as B", "second  the verdict with the run's answer as A"),
        (VOTES, 'votes = {"A": -1, "B": 1, "neither": 0}[first], {"A": 1, "B": -1, "neither": 0}[second]')),
}
