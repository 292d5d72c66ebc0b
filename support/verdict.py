"""
Verdicts of an LLM judge: find "Better: A" in an answer, read the letter A or B with its log-probs, and combine the
verdicts of both orders.

docs/judge.md lists the forms that are read. judge.py uses it.
"""
import math
import re

from support.endpoint import after_thinking, choice_in, first_token

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
# An answer that is one choice and nothing else: "A", "**B**", "Answer A."
ALONE = re.compile(rf"{CHOICE}{MARKS}[.:]?{MARKS}")
# A or B as the first word: "A", "B A B A", "A because", but not "A+", "A's" and "A good answer"
REASON = r"(?:is|because|since|as|over|by|due|for)\b"
FIRST = re.compile(rf"\s*{MARKS}{WORDS}(A|B)\b(?![+]|['’.-]\w|[ \t]+(?!{REASON})[a-z])")

def read_verdict(answer):
    """
    A, B or neither: the answer itself if it is one of these, or from the last line with a verdict. None without one, or
    if that line has two different ones.
    """
    text = after_thinking(answer)
    if alone := ALONE.fullmatch(text):
        return alone[1] if alone[1] in "AB" else "neither"
    found = [(text.count("\n", 0, m.end()), m[1] or m[2]) for m in VERDICTS.finditer(text)]    # (line, choice)
    last = {choice if choice in "AB" else "neither" for line, choice in found if line == found[-1][0]}
    return last.pop() if len(last) == 1 else None

def soft_vote(tokens):
    """
    P(A) / (P(A) + P(B)) from {token: log-prob in nats} of one position. None if neither A nor B is among the tokens.
    Marks and spaces around a letter do not count: " A", "A" and "**A" are three tokens of one vote.
    """
    logps = {"A": [], "B": []}
    for token, logp in tokens.items():
        if letter := re.fullmatch(rf"\s*{MARKS}([AB]){MARKS}\s*", token):
            logps[letter[1]].append(logp)
    most = max(logps["A"] + logps["B"], default=-math.inf)
    if most == -math.inf:
        return None
    a, b = (sum(math.exp(logp - most) for logp in logps[letter]) for letter in "AB")    # relative: exp(-9999) is 0
    return a / (a + b)

def first_letter(text):
    """A or B if it is the first word of a text, else None."""
    found = FIRST.match(text)
    return found[1] if found else None

def vote_in(reply):
    """
    The vote in a reply to a question that asks for one letter: {"answer": A, B, neither or other text, "p": soft vote}.
    p is P(A) / (P(A) + P(B)) by the log-probs of the first token. Without them there is no p, and the first word is the
    vote. Raises ValueError if the reply says nothing.
    """
    choice = choice_in(reply)
    text, p = after_thinking(choice.message.content or ""), soft_vote(first_token(choice))
    if p is not None:
        return {"answer": "A" if p > 0.5 else "B" if p < 0.5 else "neither", "p": p}
    if not text:
        raise ValueError("the answer is empty: a model that thinks before it answers needs --verdict text")
    return {"answer": first_letter(text) or text}

SHARE = {"A": 1.0, "neither": 0.5, "B": 0.0}    # verdict -> what it gives to A

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
