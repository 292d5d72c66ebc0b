"""
Verdicts of an LLM judge: find "Better: A" in an answer, and combine the verdicts of both orders.

docs/judge.md lists the forms that are read. judge.py uses it.
"""
import re

from support.endpoint import after_thinking

# The parts of a verdict, as regular expressions. Marks around a choice: **A**, "A", [[A]], \boxed{A}
MARKS = r"[ \t*_`\"'“”‘’()\[\]<>{}$\\~-]*"
# Words in front of a choice: Answer B
WORDS = rf"(?:(?i:answer|summary|response|option|boxed|text){MARKS})*"
# A choice. A lowercase "a" is an article, so A and B must be capitals
CHOICE = rf"{MARKS}{WORDS}(A|B|(?i:neither|tie))\b"
# What must not follow A or B on the line: "A+", "A's", "A/B", "A & B", and a word, since "A full reply" is an article.
# Words that give a reason may follow: "A because ..."
ENDS = r"(?![+]|['’.-]\w|[ \t]*[/|&][ \t]*[AB]\b|[ \t]+(?!(?i:is|because|since|as|over|by|due|for)\b)\w)"
# A verdict begins with one of these words: "Better", "The better answer", "Verdict"
KEYWORD = r"\b(?i:better|verdict|winner)\b(?: (?i:answer|summary|response|one)\b)?"
# "Better: A", "The better answer is A"
SAME_LINE = rf"{MARKS}(?:(?i:is\b){MARKS}:?|:){CHOICE}(?:(?<![AB])|{ENDS})"
# The choice alone on the next line
NEXT_LINE = rf"[^\w\n]*\n\s*{CHOICE}[^\w\n]*$"
VERDICTS = re.compile(rf"{KEYWORD}(?:{SAME_LINE}|{NEXT_LINE})", re.M)

def read_verdict(answer):
    """A, B or neither, from the last line with a verdict. None without one, or if that line has two different ones."""
    text = after_thinking(answer)
    found = [(text.count("\n", 0, m.end()), m[1] or m[2]) for m in VERDICTS.finditer(text)]    # (line, choice)
    last = {choice if choice in "AB" else "neither" for line, choice in found if line == found[-1][0]}
    return last.pop() if len(last) == 1 else None

def outcome(first, second):
    """
    win, tie, lose, flip or invalid for the run, from two verdicts: A, B, neither or None (unreadable) each.

    first   the verdict with the run's answer as A
    second  the verdict with the run's answer as B
    flip: the verdicts contradict each other. tie: one of them or both are "neither". invalid: one or both are None.
    """
    if first is None or second is None:
        return "invalid"
    votes = {"A": 1, "B": -1, "neither": 0}[first], {"A": -1, "B": 1, "neither": 0}[second]    # 1: for the run
    if votes[0] * votes[1] < 0:
        return "flip"
    return {2: "win", -2: "lose"}.get(sum(votes), "tie")
