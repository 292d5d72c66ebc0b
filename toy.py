"""
The toy world: tiny film reviews from a grammar, with an exact reward. Endless data, no download, fixed by a seed.

A review is an opening, two to four opinions and a verdict. It has a hidden label, positive or negative. An opinion
agrees with the label three times out of four, the verdict nine times out of ten. Nothing else depends on the label:

    positive  i watched this film last night . the acting was superb . i found the plot not dull . in short , a gem .
    negative  we rented this movie at home . the music was rather charming . the ending felt awful . overall , a bore .

The reward of a text is the exact probability of the label, P(positive | text). Bayes' rule gives it:

    P(positive | text)     P(text | positive)     P(positive)
    ------------------  =  ------------------  *  -----------
    P(negative | text)     P(text | negative)     P(negative)

The label is a fair coin, so the last factor is 1. Given the label, sentences are independent, so the first factor is a
product over them: 0.75 / 0.25 = 3 for a good opinion and 1/3 for a bad one, 0.9 / 0.1 = 9 for a good verdict and 1/9
for a bad one, 1 for all else. "not" turns an opinion into its opposite. With these odds, reward = odds / (1 + odds):

    first review   3 * 3 * 9    = 81     reward = 81 / 82        = 0.988
    second review  3 / 3 / 9    = 1/9    reward = (1/9) / (10/9) = 0.100

A sentence that the grammar cannot make counts as no evidence, so a policy gains nothing from a list of good words. Each
word is one token, and a punctuation mark is a word. The prompt is the first dozen of them: `text.split()[:12]`.
See docs/data.md. Read next: data.py
"""
import math
import random
import re
import zlib

import tiktoken

OPINION_AGREES, VERDICT_AGREES = 0.75, 0.9     # P(an opinion agrees with the label), P(the verdict agrees with it)
NEGATION, ADVERB = 0.15, 0.3                   # P("not"), P(an adverb): equal for both labels, so they are no evidence
OPINIONS = (2, 3, 4)                           # numbers of opinions in a review, all equally likely
PROMPT_LEN = 12                                # tokens

WHO = ("i", "we", "my wife", "my brother", "a friend", "our class")
SAW = ("saw", "watched", "rented", "caught")
WHAT = ("this film", "this movie", "this picture", "the sequel")
WHERE = ("last night", "at home", "on tv", "with friends", "in town", "yesterday", "on a plane", "by chance")
ASPECT = ("acting", "plot", "music", "script", "cast", "pacing", "ending", "dialogue", "humor", "direction", "editing",
          "story")
FRAME = ("the {} was", "the {} felt", "i found the {}", "to me the {} seemed")
HOW = ("very", "truly", "rather", "quite", "so")
GOOD = ("superb", "charming", "clever", "moving", "fresh", "brilliant", "lovely", "sharp", "gripping", "warm", "great",
        "fine")
BAD = ("dull", "awful", "clumsy", "boring", "stale", "weak", "silly", "flat", "painful", "cold", "poor", "messy")
VERDICT = ("in short , a", "all in all , a", "overall , a")
GEM = ("gem", "triumph", "delight", "treasure", "joy")
BORE = ("bore", "failure", "disaster", "waste", "mess")

# ---------------------------------------------------------------------------------------------------------------------
# the grammar: every choice uses `rng.choice` or `rng.random`, so a test can enumerate all reviews

def opening(rng):
    """A first sentence, which says nothing about the label: "my wife saw this film at home ." """
    return f"{rng.choice(WHO)} {rng.choice(SAW)} {rng.choice(WHAT)} {rng.choice(WHERE)} ."

def opinion(rng, positive):
    """A sentence that agrees with the label three times out of four: "the plot was not very dull ." """
    agrees = rng.random() < OPINION_AGREES
    good = agrees == positive    # good if it agrees with a positive label or disagrees with a negative one
    negated = rng.random() < NEGATION
    words = [rng.choice(FRAME).format(rng.choice(ASPECT))]
    if negated:
        words.append("not")
    if rng.random() < ADVERB:
        words.append(rng.choice(HOW))
    adjectives = GOOD if good != negated else BAD    # "not dull" is a good opinion
    words += [rng.choice(adjectives), "."]
    return " ".join(words)

def verdict(rng, positive):
    """The last sentence, which agrees with the label nine times out of ten: "in short , a gem ." """
    agrees = rng.random() < VERDICT_AGREES
    good = agrees == positive
    return f"{rng.choice(VERDICT)} {rng.choice(GEM if good else BORE)} ."

def review(rng):
    """One review: (text, positive). rng is a random.Random."""
    positive = rng.random() < 0.5    # the label: a fair coin
    middle = [opinion(rng, positive) for _ in range(rng.choice(OPINIONS))]
    return " ".join([opening(rng), *middle, verdict(rng, positive)]), positive

# ---------------------------------------------------------------------------------------------------------------------
# the exact reward

def any_of(words):
    """A regular expression that matches any of the words."""
    return "(?:" + "|".join(words) + ")"

# The three kinds of sentences without their full stop. In OPINION, group 1 is "not" or None and group 2 the adjective
FRAMED_ASPECT = any_of(frame.format(any_of(ASPECT)) for frame in FRAME)
OPENING = re.compile(" ".join(map(any_of, (WHO, SAW, WHAT, WHERE))))
OPINION = re.compile(rf"{FRAMED_ASPECT}( not)?(?: {any_of(HOW)})? ({any_of(GOOD + BAD)})")
SUMMARY = re.compile(rf"{any_of(VERDICT)} ({any_of(GEM + BORE)})")

def log_odds(text):
    """
    log P(positive | text) - log P(negative | text) under the grammar, in nats: the sum of the logs of its factors.

    It is exact for each review and each beginning of one. A cut sentence counts if it has its last word, because this
    word alone depends on the label. A sentence outside the grammar counts 0.
    """
    nats = 0.0
    for sentence in text.split("."):
        sentence = " ".join(sentence.split())
        if m := OPINION.fullmatch(sentence):
            good = (m[2] in GOOD) != bool(m[1])    # "not" turns it into its opposite
            nats += (1 if good else -1) * math.log(OPINION_AGREES / (1 - OPINION_AGREES))    # log 3 = 1.10
        elif m := SUMMARY.fullmatch(sentence):
            nats += (1 if m[1] in GEM else -1) * math.log(VERDICT_AGREES / (1 - VERDICT_AGREES))    # log 9 = 2.20
    return nats

def reward(text):
    """P(positive | text), in (0, 1): the sigmoid of the log-odds, which is odds / (1 + odds)."""
    return 1 / (1 + math.exp(-log_odds(text)))

def whole_sentences(text):
    """
    The share of a text's sentences that the grammar can make, from 0 to 1; 0 for an empty text. It shows when a policy
    writes broken sentences: the reward does not, because they count 0 there. A last sentence without its full stop was
    cut. It counts as a sentence, but not as a whole one.
    """
    *ended, rest = (" ".join(part.split()) for part in text.split("."))
    whole = 0
    for sentence in ended:
        whole += any(kind.fullmatch(sentence) for kind in (OPENING, OPINION, SUMMARY))
    n_sentences = len(ended) + bool(rest)
    return whole / max(1, n_sentences)

# ---------------------------------------------------------------------------------------------------------------------
# the tokenizer and the splits

def encoding():
    """
    The tokenizer, a tiktoken.Encoding: 256 single bytes for any text, one token per word of the grammar, and
    <|endoftext|> as the last id.
    """
    phrases = WHO + SAW + WHAT + WHERE + ASPECT + FRAME + HOW + GOOD + BAD + VERDICT + GEM + BORE + ("not", ".", ",")
    words = sorted(set(" ".join(phrases).replace("{}", "").split()))
    starts = sorted({who.split()[0] for who in WHO})               # a review's first word has no space before it
    tokens = [bytes([i]) for i in range(256)]
    tokens += [(" " + word).encode() for word in words]            # as in GPT-2's BPE, a word includes its space
    tokens += [word.encode() for word in starts if len(word) > 1]  # "i" and "a" are among the bytes
    # tiktoken looks up a whole word before it merges bytes, so words need no merges
    return tiktoken.Encoding("nanopref_toy", pat_str=r" ?[a-z]+| ?[.,]|\s+|[^\sa-z.,]+",
                             mergeable_ranks={token: i for i, token in enumerate(tokens)},
                             special_tokens={"<|endoftext|>": len(tokens)})

def split_of(prompt):
    """"train", "val" or "test" (8 : 1 : 1). A hash of the prompt decides: no prompt is in two splits."""
    bucket = zlib.crc32(prompt.encode()) % 10
    return {0: "val", 1: "test"}.get(bucket, "train")

def examples(split, n, seed=0):
    """n reviews of a split: dicts of prompt (12 words), chosen (the rest, with its leading space), positive."""
    rng, found = random.Random(f"{split} {seed}"), []
    while len(found) < n:
        text, positive = review(rng)
        words = text.split()
        prompt = " ".join(words[:PROMPT_LEN])
        if split_of(prompt) == split:
            found.append({"prompt": prompt, "chosen": " " + " ".join(words[PROMPT_LEN:]), "positive": positive})
    return found
