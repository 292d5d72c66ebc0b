"""
pooled_entropy and distinct: how much samples repeat

The entropy of the tokens of several samples, and distinct n-grams at an equal budget of tokens.
"""
from assignments.exercise import Mistake

TARGETS = ["measures.py:pooled_entropy", "measures.py:distinct"]
POINTS, MINUTES = 4, 40

def probes(rng):
    """Short and long completions, empty ones, one token each, budgets that are met, cut or never reached."""
    def texts(n, low, high, kinds):
        return [rng.integers(0, kinds, rng.integers(low, high)).tolist() for _ in range(n)]
    return [dict(title="single tokens, pieces that end inside completions", texts=texts(20, 3, 8, 6), n=1, budget=12),
            dict(title="pairs, pieces that end inside completions", texts=texts(24, 3, 9, 3), n=2, budget=17),
            dict(title="triples", texts=texts(16, 4, 12, 2), n=3, budget=25),
            dict(title="pieces that end with a completion", texts=texts(9, 4, 5, 4), n=2, budget=8),
            dict(title="empty completions between others", texts=[[], *texts(6, 2, 6, 4), [], *texts(6, 2, 6, 4)], n=2,
                 budget=9),
            dict(title="one token each: no pairs", texts=texts(10, 1, 2, 3), n=2, budget=4),
            dict(title="one token each, then longer ones", texts=[*texts(4, 1, 2, 3), *texts(4, 4, 5, 3)], n=2,
                 budget=4),
            dict(title="a completion longer than two budgets", texts=[*texts(2, 3, 4, 3), *texts(1, 19, 20, 4),
                                                                      *texts(3, 5, 6, 3)], n=1, budget=7),
            dict(title="less text than the budget", texts=texts(3, 2, 5, 4), n=1, budget=40),
            dict(title="the usual budget", texts=texts(90, 5, 30, 60), n=2, budget=None),
            dict(title="one token", texts=[[int(rng.integers(1, 9))]], n=1, budget=1),
            dict(title="nothing", texts=[[], []], n=1, budget=3)]

def run(module, probe):
    """Both measures, as far as they are written."""
    import numpy as np
    found, texts = {}, probe["texts"]
    try:
        found["entropy"] = np.asarray(module.pooled_entropy(texts), dtype="float64")
    except NotImplementedError:
        pass
    try:
        more = {} if probe["budget"] is None else dict(budget=probe["budget"])
        found["distinct"] = np.asarray(module.distinct(texts, probe["n"], **more), dtype="float64")
    except NotImplementedError:
        if not found:
            raise
    return found

COUNTS = "counts = np.array(list(Counter(t for tokens in samples for t in tokens).values()), dtype=float)"
P, ENTROPY = "p = counts / counts.sum()", "return -(p * np.log(p)).sum()"
GRAMS = "grams += [tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1)]"
CUT, ROOM, FULL = "tokens = tokens[:room]", "room -= len(tokens)", "if room == 0:"
SHARE, FORGET, SOME = "shares.append(len(set(grams)) / len(grams))", "grams, room = [], budget\n    ", "if grams:\n"
LOOP, RETURN, BEGIN = "for tokens in completions:", "return np.array(shares)", "shares, grams, room = [], [], budget"
QUEUE = ("queue = list(completions)\n    while queue:\n        tokens = queue.pop(0)\n"
         "        queue[:0] = [tokens[room:]] if len(tokens) > room else []")
POOL, GRAM, PIECE = "Pooled tokens", "An n-gram", "An equal budget"
POOLED, DISTINCT = "test_measures.py::test_pooled_entropy_by_hand", "test_measures.py::test_distinct_by_hand"
DOCSTRING = "A completion does not fit into the rest of a piece: what does the docstring say of its rest?"
UNIFORM = "Two samples, 7 7 7 8 and 7: which probability does token 7 have in your sum?"
MISTAKES = {
    "the mean of the samples' entropies": Mistake(
        ((COUNTS, "counts = np.ones(1)"), (ENTROPY, "return np.mean([-sum(tokens.count(t) / len(tokens) * np.log("
          "tokens.count(t) / len(tokens)) for t in set(tokens)) for tokens in samples])")),
        "Four samples of one word each, all different: is there no diversity?", POOL, POOLED,
        "The entropy of the pooled tokens of samples of one word is 0, although the samples differ."),
    "in how many samples a token is": Mistake(
        ((COUNTS, COUNTS.replace("for t in tokens)", "for t in set(tokens))")),), UNIFORM, POOL,
        "test_statistics.py::test_pooled_entropy_counts_each_token_as_often_as_it_is_there"),
    "each different token the same": Mistake(
        ((COUNTS, "counts = np.ones(len({t for tokens in samples for t in tokens}))"),), UNIFORM, POOL,
        "test_statistics.py::test_pooled_entropy_counts_each_token_as_often_as_it_is_there",
        "Evaluation's entropy of 4 samples' tokens is the logarithm of a whole number on every prompt."),
    "whole samples are counted": Mistake(
        ((COUNTS, "counts = np.array(list(Counter(map(tuple, samples)).values()), dtype=float)"),),
        "Of what is the distribution: of tokens or of whole samples?", POOL, POOLED),
    "divided by the number of samples": Mistake(((P, "p = counts / len(samples)"),),
        "Do your probabilities sum to 1?", POOL, POOLED),
    "bits": Mistake(((ENTROPY, "return -(p * np.log2(p)).sum()"),),
        "Two tokens that are equally frequent: what is the entropy in nats?", POOL, POOLED,
        "A policy that writes two words equally often has a pooled entropy of 1 nat."),
    "the sign": Mistake(((ENTROPY, "return (p * np.log(p)).sum()"),),
        "May an entropy be negative?", POOL, POOLED),
    "perplexity": Mistake(((ENTROPY, "return np.exp(-(p * np.log(p)).sum())"),),
        "Which number do you get for a single token: 0 or 1?", POOL, POOLED),
    "divided by its maximum": Mistake(
        ((ENTROPY, "return -(p * np.log(p)).sum() / max(np.log(max(len(p), 1)), 1e-12)"),),
        "Four different tokens: is the entropy 1, or more?", POOL, POOLED),
    "log of counts": Mistake(((ENTROPY, "return -(p * np.log(counts)).sum()"),),
        "May an entropy be negative? Of which numbers do you take the logarithm?", POOL, POOLED),
    "Miller and Madow": Mistake(
        ((ENTROPY, "return -(p * np.log(p)).sum() + (len(p) - 1) / (2 * max(counts.sum(), 1))"),),
        "Is yours the entropy of the frequencies, or an estimate of another distribution's entropy?", POOL, POOLED),
    "not a number of no tokens": Mistake(((ENTROPY, "return -(p * np.log(p)).sum() if len(p) else math.nan"),),
        "What does the docstring say of samples without tokens?", POOL, POOLED,
        "A prompt whose samples are all empty makes the pooled entropy of the whole evaluation nan."),
    "n-grams across completions": Mistake(
        ((BEGIN, f"{BEGIN}\n    line, first = [], 0"),
         (GRAMS, "line += tokens\n        grams = [tuple(line[i:i + n]) for i in range(first, len(line) - n + 1)]"),
         (FORGET, "line, grams, room = [], [], budget\n    ")),
        "Two completions, 1 2 and 3 4: which pairs are there?", GRAM, DISTINCT,
        "If every sample has a single word, evaluation reports a share of distinct pairs. There are no pairs."),
    "the last n-gram is missing": Mistake(((GRAMS, GRAMS.replace(" - n + 1", " - n")),),
        "How many pairs has a text of three tokens, and how many single tokens?", GRAM, DISTINCT),
    "shorter n-grams at the end": Mistake(((GRAMS, GRAMS.replace("len(tokens) - n + 1", "len(tokens)")),),
        "How many tokens has your last n-gram of a text?", GRAM, DISTINCT),
    "without regard to order": Mistake(((GRAMS, GRAMS.replace("tuple(", "frozenset(")),),
        "Are 1 2 and 2 1 the same pair?", GRAM, "test_statistics.py::test_pairs_of_tokens_have_an_order"),
    "n-grams that do not overlap": Mistake(((GRAMS, GRAMS.replace("- n + 1)", "- n + 1, 0 + n)")),),
        "How many pairs has a text of three tokens: one or two?", GRAM, DISTINCT),
    "divided by the tokens": Mistake(((SHARE, "shares.append(len(set(grams)) / budget)"),),
        "If all pairs of a piece are different, is your share 1?", GRAM, DISTINCT,
        "The share of distinct pairs falls as completions become shorter, even where no pair occurs twice."),
    "a number, not a share": Mistake(((SHARE, "shares.append(len(set(grams)))"),),
        "May a share exceed 1?", GRAM, DISTINCT),
    "those that occur once": Mistake(
        ((SHARE, "shares.append(sum(c == 1 for c in Counter(grams).values()) / len(grams))"),),
        "The texts 1 and 1: how many different tokens do they have?", GRAM, DISTINCT),
    "the mean of each completion's share": Mistake(
        ((SHARE, "shares.append(len(set(grams)) / len(grams))"),
         (LOOP, "return np.array([len({tuple(t[i:i + n]) for i in range(len(t) - n + 1)}) / (len(t) - n + 1)\n"
                "                     for t in completions if len(t) >= n])\n    " + LOOP)),
        "Ten equal completions of different words: is the share 1 or a tenth?", PIECE, DISTINCT,
        "The share of distinct tokens in 500 is no lower for a policy that writes the same text for every prompt."),
    "all text is one piece": Mistake(
        ((ROOM, "room -= 0"),
         (CUT, "tokens = tokens[:]"), (RETURN, "return np.array([len(set(grams)) / len(grams)] if grams else [])")),
        "What does your share do if you draw ten times as many samples of one policy? See the docstring's last lines.",
        PIECE, DISTINCT),
    "no completion is cut": Mistake(((CUT, "room = max(room, len(tokens))"),),
        "How many tokens has each of your pieces? All must have the budget.", PIECE, DISTINCT),
    "the rest begins the next piece": Mistake(((LOOP, QUEUE), (CUT, "tokens = tokens[:room] ")), DOCSTRING, PIECE,
        DISTINCT),
    "one long text": Mistake(
        ((LOOP, "flat = [t for tokens in completions for t in tokens]\n    "
          "for tokens in [flat[i:i + budget] for i in range(0, len(flat), budget)]:"),),
        "Completions 1 2 and 3 4 5, n = 2, budget 4: which pairs has the first piece, and where is the 5?", GRAM,
        DISTINCT),
    "a completion that does not fit is left out": Mistake(
        ((CUT, "tokens = tokens if len(tokens) <= room else []"),), DOCSTRING, PIECE, DISTINCT),
    "the last piece is not full": Mistake(
        ((RETURN, "if grams:\n        shares.append(len(set(grams)) / len(grams))\n    return np.array(shares)"),),
        "How many tokens has your last piece? With fewer tokens than the budget, what does the docstring want?", PIECE,
        DISTINCT,
        "With fewer than 500 tokens of samples, evaluation reports a share of distinct tokens. It should report none."),
    "pieces grow": Mistake(((FORGET, "room = budget\n    "),),
        "What do you begin a new piece with? Equal pieces must have equal shares.", PIECE, DISTINCT,
        "The more samples are drawn, the lower is the share of distinct tokens in 500, for one and the same policy."),
    "a piece without n-grams": Mistake(((SOME, "if True:\n"),),
        "A piece of completions of one token has no pairs. Which share of them is different?", PIECE,
        "test_measures.py::test_text_measures_by_hand",
        "Evaluation ends with a ZeroDivisionError if the completions have a single word each."),
    "a share of 0 of no n-grams": Mistake(
        ((SHARE, "shares.append(len(set(grams)) / max(1, len(grams)))"), (SOME, "if True:\n")),
        "A piece of completions of one token has no pairs. Which share of them is different?", PIECE,
        "test_measures.py::test_text_measures_by_hand"),
    "one number": Mistake(((RETURN, "return np.mean(shares)"),),
        "Of what are intervals computed later? The docstring gives a shape.", PIECE, DISTINCT),
}
ALTERNATIVES = {
    "loops": '''
def pooled_entropy(samples):
    seen, total = {}, 0
    for tokens in samples:
        for t in tokens:
            seen[t] = seen.get(t, 0) + 1
            total += 1
    if total == 0:
        return 0.0
    return math.log(total) - sum(count * math.log(count) for count in seen.values()) / total

def distinct(completions, n, budget=500):
    out, different, number, used = [], set(), 0, 0
    for completion in completions:
        kept = []
        for token in completion:
            if used < budget:
                kept.append(token)
                used += 1
        for end in range(n, len(kept) + 1):
            different.add(" ".join(map(str, kept[end - n:end])))
            number += 1
        if used == budget:
            if number:
                out.append(len(different) / number)
            different, number, used = set(), 0, 0
    return np.array(out)
''',
    "numpy and torch": '''
def pooled_entropy(samples):
    tokens = np.concatenate([np.asarray(s, dtype=int) for s in samples])
    _, counts = np.unique(tokens, return_counts=True)
    return torch.special.entr(torch.tensor(counts / len(tokens))).sum().item() if len(tokens) else 0.0

def distinct(completions, n, budget=500):
    pieces, piece = [], []
    for tokens in completions:
        have = sum(map(len, piece))
        piece.append(list(tokens)[:budget - have])
        if have + len(piece[-1]) >= budget:
            pieces.append(piece)
            piece = []
    counted = [Counter(gram for text in p for gram in zip(*(text[j:] for j in range(n)))) for p in pieces]
    return np.array([len(c) / c.total() for c in counted if c])
''',
}
HIDDEN = ()
REMOVED = ()
SHARED = ("return np.array(shares)",)    # of `whole`, too
VARIANTS = {
    "bits": (
        (ENTROPY, "return -(p * np.log2(p)).sum()"),
        ("Entropy in nats of the pooled tokens", "Entropy in bits of the pooled tokens")),
    "the rest begins the next piece": (
        (LOOP, QUEUE), (CUT, "tokens = tokens[:room] "),
        ("of the piece is cut, and its rest is dropped.", "of the piece is cut, and its rest begins the next one.")),
}
