"""The toy world: the reward against Bayes' rule, by enumeration and by simulation, the tokenizer, and the splits."""
import itertools
import math
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import pytest

import toy

# ---------------------------------------------------------------------------------------------------------------------
# every outcome of the grammar, with its probability

class Draw:
    """The result of Branches.random. The grammar only asks `draw < p`, which is a branch: true with probability p."""
    def __init__(self, branches):
        self.branches = branches

    def __lt__(self, p):
        return self.branches.take([(True, p), (False, 1 - p)])

class Branches:
    """
    Replaces random.Random. It follows `path`, then always takes the first branch, and records the branches not
    taken.
    """
    def __init__(self, path):
        self.path, self.taken, self.p, self.others = path, (), 1.0, []

    def take(self, options):
        if len(self.taken) < len(self.path):
            i = self.path[len(self.taken)]
        else:
            i = 0
            self.others += [(*self.taken, j) for j in range(1, len(options))]
        self.taken += (i,)
        self.p *= options[i][1]
        return options[i][0]

    def random(self):
        return Draw(self)

    def choice(self, options):
        return self.take([(option, 1 / len(options)) for option in options])

def outcomes(grammar):
    """{outcome: probability} over everything that grammar(rng) can produce."""
    table, todo = defaultdict(float), [()]
    while todo:
        rng = Branches(todo.pop())
        table[grammar(rng)] += rng.p
        todo += rng.others
    return table

def of_beginnings(table):
    """{text: probability that an outcome begins with it}, for every beginning in whole words."""
    out = defaultdict(float)
    for text, p in table.items():
        words = text.split()
        for n in range(len(words) + 1):
            out[" ".join(words[:n])] += p
    return out

def misread(given):
    """The texts whose log_odds are not those of Bayes' rule, from given[label][text] = P(text | label)."""
    right = {text: math.log(p / given[False][text]) for text, p in given[True].items()}
    wrong = {}
    for text, nats in right.items():
        found = toy.log_odds(text)
        if not math.isclose(found, nats, abs_tol=1e-9):
            wrong[text] = found, nats
    return wrong

@pytest.fixture(scope="module")
def opinions():
    return {label: outcomes(partial(toy.opinion, positive=label)) for label in (True, False)}

@pytest.fixture(scope="module")
def verdicts():
    return {label: outcomes(partial(toy.verdict, positive=label)) for label in (True, False)}

@pytest.mark.parametrize("kind", ["opinions", "verdicts"])
def test_log_odds_of_every_sentence_is_bayes_by_brute_force(kind, request):
    """
    The reward parses text with its own regular expressions. Anything that they misread shows against the generator.
    """
    given = request.getfixturevalue(kind)
    assert sum(given[True].values()) == pytest.approx(1) and given[True].keys() == given[False].keys()
    assert len(given[True]) == {"opinions": 13824, "verdicts": 30}[kind]
    assert not misread(given)

@pytest.mark.parametrize("kind", ["opinions", "verdicts"])
def test_log_odds_of_every_beginning_of_a_sentence_is_bayes_by_brute_force(kind, request):
    """
    A sample may end anywhere. A word that tells counts before its full stop, and "the plot was not" tells nothing
    yet.
    """
    given = {label: of_beginnings(table) for label, table in request.getfixturevalue(kind).items()}
    assert not misread(given)

def test_reward_of_whole_reviews_and_their_beginnings_is_bayes_by_brute_force(monkeypatch):
    """
    Evidence could leak through the number of opinions or the opening. With fewer words and one or two opinions, all
    reviews can be enumerated.
    """
    fewer = dict(WHO=("i",), SAW=("saw",), WHAT=("this film",), WHERE=("yesterday",), ASPECT=("plot",),
                 FRAME=toy.FRAME[1:3], HOW=("very",), GOOD=toy.GOOD[:1], BAD=toy.BAD[:1],
                 VERDICT=toy.VERDICT[:1], GEM=toy.GEM[:1], BORE=toy.BORE[:1], OPINIONS=(1, 2))
    for name, words in fewer.items():
        monkeypatch.setattr(toy, name, words)
    joint = outcomes(toy.review)
    assert sum(joint.values()) == pytest.approx(1)
    given = {}
    for label in (True, False):
        given[label] = of_beginnings({text: p for (text, positive), p in joint.items() if positive == label})
    assert len(given[True]) > 1000
    for text, p in given[True].items():
        assert toy.reward(text) == pytest.approx(p / (p + given[False][text]), abs=1e-9), text

def test_among_reviews_of_equal_log_odds_the_share_of_positives_is_the_reward():
    """A reward of 0.9 must mean nine positives in ten. A label that is not a fair coin would shift every group."""
    rng, buckets = random.Random(1), defaultdict(list)
    for _ in range(20_000):
        text, positive = toy.review(rng)
        buckets[round(toy.log_odds(text), 6)].append(positive)
    big = {nats: labels for nats, labels in buckets.items() if len(labels) >= 100}
    assert len(big) >= 8
    for nats, labels in big.items():
        p = 1 / (1 + math.exp(-nats))
        assert abs(sum(labels) / len(labels) - p) <= 4 * math.sqrt(p * (1 - p) / len(labels)), (nats, len(labels))

def test_the_two_reviews_of_the_docstring_have_the_rewards_computed_there():
    """By hand: odds of 3 * 3 * 9 = 81 to 1, and of 3 / 3 / 9 = 1 to 9."""
    first = "i watched this film last night . the acting was superb . i found the plot not dull . in short , a gem ."
    second = "we rented this movie at home . the music was rather charming . the ending felt awful . overall , a bore ."
    assert toy.reward(first) == pytest.approx(81 / 82, rel=1e-12)
    assert toy.reward(second) == pytest.approx(0.1, rel=1e-12)
    assert toy.reward("") == 0.5

@pytest.mark.parametrize("good,bad", [
    ("to me the cast seemed fresh .", "to me the cast seemed not fresh ."),
    ("i found the story not quite stale .", "i found the story quite stale .")])
def test_not_turns_an_opinion_round(good, bad):
    """A bag of words reads "not dull" as bad. The odds are three to one either way."""
    assert toy.log_odds(good) == pytest.approx(math.log(3))
    assert toy.log_odds(bad) == pytest.approx(-math.log(3))

@pytest.mark.parametrize("text", [
    "superb superb superb .", "gem .", "a gem .", "gem gem gem", "superb", "the acting superb .", "acting was superb .",
    "the acting was superb superb .", "the acting was superb gem .", "the acting was not not superb .",
    "the acting was very very superb .", "the acting was very not superb .", "the acting was gem .",
    "in short , a superb .", "in short a gem .", "the acting was superb , a gem .", "so the acting was superb .",
    "the film was superb .", "the acting was superbly .", "The acting was superb .",
    "the acting was superb the plot was fresh .", "the acting was . superb ."])
def test_a_sentence_that_the_grammar_cannot_make_carries_no_evidence(text):
    """
    With re.search instead of fullmatch, a policy is rewarded for lists of good words and learns that in a few
    updates.
    """
    assert toy.log_odds(text) == 0

def test_a_broken_sentence_leaves_the_evidence_of_the_others():
    """One bad sentence must not change the evidence of the others, before it or after it."""
    text = "the acting was superb . the plot plot fresh . the cast felt weak . overall , a joy ."
    assert toy.log_odds(text) == pytest.approx(math.log(3 / 3 * 9))

# ---------------------------------------------------------------------------------------------------------------------
# the tokenizer

def test_a_review_has_a_token_a_word(tokenizer):
    """
    If one word were split into bytes, the prompt of 12 tokens would not be 12 words, and lengths would tell the
    label.
    """
    rng = random.Random(2)
    for _ in range(2000):
        text, _ = toy.review(rng)
        tokens = tokenizer.encode_ordinary(text)
        assert len(tokens) == len(text.split()), text
        assert tokenizer.decode(tokens) == text

@pytest.mark.parametrize("text", [
    "", " ", "\n\n", "a", "  two  spaces ", "\ttabs\r\nand\0nul", "ABC xyz123 , . ,.", "the acting wass superbb",
    "\u4f60\u597d", "e\u0301", "\U0001f600\u200d", "a\x85b\u2028c\u00a0d", "<|endoftext|>", " not.not ,not",
    "\x1c\x0b"])
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    """The pattern must match every character, because tiktoken silently skips text without a match."""
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text

def test_random_unicode_comes_back_from_its_tokens(tokenizer):
    """Bytes of one character may be merged with those of the next, and only whole runs decode."""
    rng = random.Random(3)
    for _ in range(500):
        points = []
        for _ in range(rng.randrange(40)):
            points.append(rng.randrange(0x110000) if rng.random() < 0.3 else rng.randrange(0x250))
        text = "".join(chr(c) for c in points if not 0xD800 <= c < 0xE000)
        assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text

def test_end_of_text_is_the_last_id_and_no_text_gives_it(tokenizer):
    """The model's vocabulary has n_vocab rows. A gap below the last id would be a row that is never trained."""
    assert tokenizer.eot_token == tokenizer.n_vocab - 1
    assert tokenizer.eot_token not in tokenizer.encode_ordinary("a <|endoftext|> b")
    ids = sorted(tokenizer.encode_single_token(b) for b in tokenizer.token_byte_values())
    assert ids == list(range(tokenizer.n_vocab - 1))

# ---------------------------------------------------------------------------------------------------------------------
# the splits

def test_no_prompt_stands_in_two_splits_whatever_the_seed():
    """Splitting by position would work for one seed, but pairs, SFT and evaluation draw with different seeds."""
    prompts = {}
    for split in ("train", "val", "test"):
        prompts[split] = {e["prompt"] for seed in range(3) for e in toy.examples(split, 300, seed)}
    for a, b in itertools.combinations(prompts, 2):
        assert prompts[a] and not prompts[a] & prompts[b], (a, b)

def test_a_seed_fixes_the_examples_and_another_gives_others():
    """If the seed were ignored, five runs of a study would be one."""
    assert toy.examples("train", 50, 1) == toy.examples("train", 50, 1)
    ours, theirs = ([e["prompt"] + e["chosen"] for e in toy.examples("train", 50, seed)] for seed in (1, 2))
    assert len(set(ours) & set(theirs)) < 5
    assert toy.examples("val", 5) == toy.examples("val", 5, 0)

def test_splits_and_examples_are_the_same_in_every_process():
    """hash() of a string changes in every process. A split by it would move training prompts into the test set."""
    code = "import toy; print([(e['prompt'], e['chosen'], e['positive']) for e in toy.examples('val', 20, 5)])"
    here = str([(e["prompt"], e["chosen"], e["positive"]) for e in toy.examples("val", 20, 5)])
    there = subprocess.run([sys.executable, "-c", code], cwd=Path(toy.__file__).parent, capture_output=True, text=True,
                           env=os.environ | {"PYTHONHASHSEED": "7"})
    assert there.stdout.strip() == here, there.stderr

def test_prompt_is_12_tokens_and_with_the_completion_a_whole_review(tokenizer):
    """The completion begins with the space. Without it, the two halves would be tokenized to other words."""
    for e in toy.examples("train", 300):
        assert len(tokenizer.encode_ordinary(e["prompt"])) == toy.PROMPT_LEN == 12
        text = e["prompt"] + e["chosen"]
        assert e["chosen"].startswith(" ") and text == " ".join(text.split()) and text.endswith(" .")
        apart = tokenizer.encode_ordinary(e["prompt"]) + tokenizer.encode_ordinary(e["chosen"])
        assert apart == tokenizer.encode_ordinary(text)

def test_label_of_an_example_is_that_of_its_review():
    """Only this test would see an inverted label. Evaluation by label would swap its two columns."""
    examples = toy.examples("test", 1000)
    positives = [toy.reward(e["prompt"] + e["chosen"]) for e in examples if e["positive"]]
    negatives = [toy.reward(e["prompt"] + e["chosen"]) for e in examples if not e["positive"]]
    assert 400 < len(positives) < 600
    assert sum(positives) / len(positives) > 0.8 and sum(negatives) / len(negatives) < 0.2

def test_prompts_leak_the_label_sometimes_and_not_always():
    """IMDB's prompts do the same. Evaluation by the prompt's own log-odds needs both kinds of prompts."""
    odds = [toy.log_odds(e["prompt"]) for e in toy.examples("train", 1000)]
    signs = Counter((nats > 0) - (nats < 0) for nats in odds)
    assert min(signs[1], signs[0], signs[-1]) > 50
