"""
The embedded world: tiny film reviews from a grammar, with an exact reward. No download, no end, fixed by a seed.

A review is an opening, a few opinions and a verdict. It has a hidden label. An opinion agrees with the label three times out of
four, the verdict nine times out of ten, and nothing else in the text depends on it:

    positive  i watched this film last night . the acting was superb . i found the plot not dull . in short , a gem .
    negative  we rented this movie at home . the music was rather charming . the ending felt awful . all in all , a bore .

So Bayes' rule can be done on paper. Before reading, the odds are 1 : 1. Each good opinion multiplies the odds of "positive" by
0.75 / 0.25 = 3, each bad one divides them by 3, and the verdict counts 0.9 / 0.1 = 9. "not" turns an adjective round.

    first review   3 * 3 * 9   = 81       reward = 81 / 82        = 0.988
    second review  3 / 3 / 9   = 1 / 9    reward = (1/9) / (10/9) = 0.100

A sentence that the grammar cannot make carries no evidence, so a policy gains nothing by writing good words in a heap.
Words are single tokens and stand apart from the punctuation: the prompt, the first dozen, is `text.split()[:12]`.
Read next: data.py
"""
import math
import random
import re
import zlib

import tiktoken

OPINION_AGREES, VERDICT_AGREES = 0.75, 0.9     # P(the opinion has the label's sign), P(the verdict has)
NEGATION, ADVERB = 0.15, 0.3                   # P("not"), P(an adverb): the same for both labels, so no evidence
OPINIONS = (2, 3, 4)                           # how many opinions a review has, all equally likely
PROMPT_LEN = 12                                # tokens

WHO = ("i", "we", "my wife", "my brother", "a friend", "our class")
SAW = ("saw", "watched", "rented", "caught")
WHAT = ("this film", "this movie", "this picture", "the sequel")
WHERE = ("last night", "at home", "on tv", "with friends", "in town", "yesterday", "on a plane", "by chance")
ASPECT = ("acting", "plot", "music", "script", "cast", "pacing", "ending", "dialogue", "humor", "direction", "editing", "story")
FRAME = ("the {} was", "the {} felt", "i found the {}", "to me the {} seemed")
HOW = ("very", "truly", "rather", "quite", "so")
GOOD = ("superb", "charming", "clever", "moving", "fresh", "brilliant", "lovely", "sharp", "gripping", "warm", "great", "fine")
BAD = ("dull", "awful", "clumsy", "boring", "stale", "weak", "silly", "flat", "painful", "cold", "poor", "messy")
VERDICT = ("in short , a", "all in all , a", "overall , a")
GEM = ("gem", "triumph", "delight", "treasure", "joy")
BORE = ("bore", "failure", "disaster", "waste", "mess")

# ---------------------------------------------------------------------------------------------------------------------
# the grammar: every choice goes through `rng.choice` and `rng.random`, so that a test can enumerate them

def opening(rng):
    return f"{rng.choice(WHO)} {rng.choice(SAW)} {rng.choice(WHAT)} {rng.choice(WHERE)} ."

def opinion(rng, positive):
    good = (rng.random() < OPINION_AGREES) == positive
    negated = rng.random() < NEGATION
    words = [rng.choice(FRAME).format(rng.choice(ASPECT))]
    words += ["not"] * negated
    words += [rng.choice(HOW)] if rng.random() < ADVERB else []
    words += [rng.choice(GOOD if good != negated else BAD), "."]      # "not dull" is a good opinion
    return " ".join(words)

def verdict(rng, positive):
    good = (rng.random() < VERDICT_AGREES) == positive
    return f"{rng.choice(VERDICT)} {rng.choice(GEM if good else BORE)} ."

def review(rng):
    """One review from a random.Random: (text, positive), the label being a fair coin's."""
    positive = rng.random() < 0.5
    middle = [opinion(rng, positive) for _ in range(rng.choice(OPINIONS))]
    return " ".join([opening(rng), *middle, verdict(rng, positive)]), positive

# ---------------------------------------------------------------------------------------------------------------------
# the exact reward

def any_of(words):
    return "(?:" + "|".join(words) + ")"

OPINION = re.compile(any_of(f.format(any_of(ASPECT)) for f in FRAME) + rf"( not)?(?: {any_of(HOW)})? ({any_of(GOOD + BAD)})")
SUMMARY = re.compile(rf"{any_of(VERDICT)} ({any_of(GEM + BORE)})")
OPENING = re.compile(" ".join(map(any_of, (WHO, SAW, WHAT, WHERE))))

def log_odds(text):
    """
    log P(positive | text) - log P(negative | text) under the grammar, in nats. Exact for every review and every beginning of one:
    in each sentence the word that tells comes last. Sentences outside the grammar count 0.
    """
    nats = 0.0
    for sentence in text.split("."):
        sentence = " ".join(sentence.split())
        if m := OPINION.fullmatch(sentence):
            good = (m[2] in GOOD) != bool(m[1])
            nats += (1 if good else -1) * math.log(OPINION_AGREES / (1 - OPINION_AGREES))
        elif m := SUMMARY.fullmatch(sentence):
            nats += (1 if m[1] in GEM else -1) * math.log(VERDICT_AGREES / (1 - VERDICT_AGREES))
    return nats

def reward(text):
    """P(positive | text), in (0, 1)."""
    return 1 / (1 + math.exp(-log_odds(text)))

def whole_sentences(text):
    """The share of a text's sentences that the grammar can make, 0 if it has none; one without its full stop is not whole."""
    *ended, rest = (" ".join(part.split()) for part in text.split("."))
    whole = sum(any(p.fullmatch(s) for p in (OPENING, OPINION, SUMMARY)) for s in ended)
    return whole / max(1, len(ended) + bool(rest))

# ---------------------------------------------------------------------------------------------------------------------
# the tokenizer and the splits

def encoding():
    """A tiktoken.Encoding with a token a word, single bytes for whatever else, and <|endoftext|> as the last id."""
    phrases = WHO + SAW + WHAT + WHERE + ASPECT + FRAME + HOW + GOOD + BAD + VERDICT + GEM + BORE + ("not", ".", ",")
    words = sorted({w for p in phrases for w in p.replace("{}", "").split()})
    starts = sorted({who.split()[0] for who in WHO})                    # a review's first word has no space before it
    tokens = [bytes([i]) for i in range(256)] + [(" " + w).encode() for w in words]
    tokens += [w.encode() for w in starts if len(w) > 1]                # "i" and "a" are there already, as bytes
    # tiktoken looks a whole piece up before it merges bytes, so a word needs no merges of its own
    return tiktoken.Encoding("nanopref_toy", pat_str=r" ?[a-z]+| ?[.,]|\s+|[^\sa-z.,]+",
                             mergeable_ranks={t: i for i, t in enumerate(tokens)}, special_tokens={"<|endoftext|>": len(tokens)})

def split_of(prompt):
    """train, val or test (8 : 1 : 1), decided by the prompt alone: so no prompt stands in two splits, whatever the seed."""
    return ("val", "test", *["train"] * 8)[zlib.crc32(prompt.encode()) % 10]

def examples(split, n, seed=0):
    """n reviews of a split, as dicts: prompt (12 words), chosen (the rest, with its leading space), positive (the label)."""
    rng, out = random.Random(f"{split} {seed}"), []
    while len(out) < n:
        text, positive = review(rng)
        words = text.split()
        prompt, rest = " ".join(words[:PROMPT_LEN]), " " + " ".join(words[PROMPT_LEN:])
        if split_of(prompt) == split:
            out.append({"prompt": prompt, "chosen": rest, "positive": positive})
    return out
