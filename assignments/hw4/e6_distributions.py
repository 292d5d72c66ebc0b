"""
entropy and kl: two measures of next-token distributions

Sums over the vocabulary, from log-probs.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["measures.py:entropy", "measures.py:kl"]
POINTS, MINUTES = 3, 20

def probes(rng):
    """Several sizes, as many distributions as tokens, one distribution, and distributions with tiny probabilities."""
    def pair(title, M, V, scale=2.0, **more):
        logits = rng.normal(0, scale, (2, M, V))
        logits -= logits.max(-1, keepdims=True)
        log_p, log_q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return dict(title=title, log_p=log_p, log_q=log_q, **more)
    wide = pair("log-probs of hundreds below zero", 3, 4, 400.0)
    same = pair("p close to q", 2, 6)
    log_q = same["log_p"] + rng.normal(0, 0.05, (2, 6))
    same["log_q"] = log_q - np.log(np.exp(log_q).sum(-1, keepdims=True))
    return [pair("three distributions over five tokens", 3, 5), pair("as many distributions as tokens", 4, 4),
            pair("one distribution over two tokens", 1, 2), pair("40 tokens", 2, 40), wide, same]

def run(module, probe):
    """Both measures."""
    return dict(entropy=module.entropy(probe["log_p"]), kl=module.kl(probe["log_p"], probe["log_q"]))

ENTROPY, KL = "return -(log_p.exp() * log_p).sum(-1)", "return (log_p.exp() * (log_p - log_q)).sum(-1)"
WAYS, SUMS, LOGS = "Which distribution weighs", "A sum over the vocabulary", "Log-probs, in nats"
BY_HAND = "test_measures.py::test_entropy_and_kl_by_hand"
P = "log_p.exp()"
DIRECTION = "Which of the two distributions draws the tokens? Exchange p and q in your worked example on paper."
SIGN = "May an entropy or a KL be negative? Try a distribution over two tokens."
MEAN = "A uniform distribution over V tokens has the entropy log V. Has yours, for V = 5 and for V = 50?"
AXIS = "How many numbers do you return for M distributions over V tokens?"
BASE = "What is the entropy of a fair coin in nats? What is yours?"
INPUT = "Are log_p probabilities or their logarithms? May a probability be negative?"
TINY = "A token may have a probability of e^-900. What is that in floating point, and what is its logarithm?"
TERMS = "Is each term of the sum never negative, or only the sum? Look at the terms of your worked example."
CUT = "Do you cut off small probabilities?"
FINITE = "test_frontier.py::test_a_probability_that_is_0_in_floating_point_has_no_nan"
MISTAKES = {
    "KL(q || p)": Mistake(((KL, "return (log_q.exp() * (log_q - log_p)).sum(-1)"),), DIRECTION, WAYS, BY_HAND,
        "At temperature 0 eval.py reports a KL to the reference of millions of nats, though the log-ratios of "
        "the same file are a few nats."),
    "q weighs": Mistake(((KL, "return (log_q.exp() * (log_p - log_q)).sum(-1)"),), DIRECTION, WAYS, BY_HAND),
    "the sign of the KL": Mistake(((KL, "return (log_p.exp() * (log_q - log_p)).sum(-1)"),), SIGN, WAYS, BY_HAND,
        "eval.py reports a negative KL for every policy that differs from its reference."),
    "the sign of the entropy": Mistake(((ENTROPY, "return (log_p.exp() * log_p).sum(-1)"),), SIGN, WAYS, BY_HAND),
    "cross entropy": Mistake(((KL, "return -(log_p.exp() * log_q).sum(-1)"),),
        "What is the KL of a distribution to itself? What is yours?", WAYS, BY_HAND,
        "The KL of a policy to itself is not 0. It is the policy's entropy."),
    "both directions": Mistake(((KL, "return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)"),),
        "Exchange p and q: does your result change? Should it?", WAYS, BY_HAND),
    "the mean of two directions": Mistake(
        ((KL, "return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1) / 2"),),
        "Exchange p and q: does your result change? Should it?", WAYS, BY_HAND),
    "absolute values": Mistake(((KL, f"return ({P} * (log_p - log_q).abs()).sum(-1)"),), TERMS, WAYS, BY_HAND,
        "The KL of a policy is larger than its mean log-ratio, by many standard errors."),
    "negative terms are left out": Mistake(((KL, f"return ({P} * (log_p - log_q).clamp(min=0)).sum(-1)"),), TERMS, WAYS,
        BY_HAND),
    "the mean entropy over tokens": Mistake(((ENTROPY, f"return -({P} * log_p).mean(-1)"),), MEAN, SUMS, BY_HAND,
        "The entropy of uniform next-token probabilities falls when the vocabulary grows."),
    "the mean KL over tokens": Mistake(((KL, f"return ({P} * (log_p - log_q)).mean(-1)"),), MEAN, SUMS, BY_HAND),
    "both means over tokens": Mistake(
        ((ENTROPY, f"return -({P} * log_p).mean(-1)"), (KL, f"return ({P} * (log_p - log_q)).mean(-1)")), MEAN, SUMS,
        BY_HAND),
    "no weights": Mistake(((KL, "return (log_p - log_q).sum(-1)"),),
        "Which tokens count more in a mean over the tokens that p draws?", SUMS, BY_HAND),
    "sums over distributions": Mistake(
        ((ENTROPY, f"return -({P} * log_p).sum(0)"), (KL, f"return ({P} * (log_p - log_q)).sum(0)")), AXIS, SUMS,
        BY_HAND),
    "one number": Mistake(
        ((ENTROPY, f"return -({P} * log_p).sum(-1).mean()"), (KL, f"return ({P} * (log_p - log_q)).sum(-1).mean()")),
        AXIS, SUMS, BY_HAND),
    "one number for the KL": Mistake(((KL, f"return ({P} * (log_p - log_q)).sum(-1).mean()"),), AXIS, SUMS, BY_HAND),
    "the sum of everything": Mistake(
        ((ENTROPY, f"return -({P} * log_p).sum()"), (KL, f"return ({P} * (log_p - log_q)).sum()")), AXIS, SUMS,
        BY_HAND),
    "the entropy in bits": Mistake(((ENTROPY, f"{ENTROPY} / 0.6931471805599453"),), BASE, LOGS, BY_HAND,
        "Uniform next-token probabilities over 50,257 tokens have an entropy of 15.6."),
    "the KL in bits": Mistake(((KL, f"{KL} / 0.6931471805599453"),), BASE, LOGS, BY_HAND),
    "both in bits": Mistake(
        ((ENTROPY, f"{ENTROPY} / 0.6931471805599453"), (KL, f"{KL} / 0.6931471805599453")), BASE, LOGS, BY_HAND),
    "log-probs as probabilities": Mistake(
        ((ENTROPY, "return -(log_p * log_p.log()).sum(-1)"), (KL, "return (log_p * (log_p / log_q).log()).sum(-1)")),
        INPUT, LOGS, BY_HAND),
    "log-probs as weights": Mistake(
        ((ENTROPY, "return -(log_p * log_p).sum(-1)"), (KL, "return (log_p * (log_p - log_q)).sum(-1)")),
        INPUT, LOGS, BY_HAND),
    "the logarithm of the probabilities": Mistake(
        ((ENTROPY, "p = log_p.exp()\n    return -(p * p.log()).sum(-1)"),
         (KL, "p, q = log_p.exp(), log_q.exp()\n    return (p * (p / q).log()).sum(-1)")), TINY, LOGS,
        FINITE),
    "the difference of two logarithms": Mistake(
        ((ENTROPY, "p = log_p.exp()\n    return -(p * p.log()).sum(-1)"),
         (KL, "p, q = log_p.exp(), log_q.exp()\n    return (p * (p.log() - q.log())).sum(-1)")), TINY, LOGS,
        FINITE),
    "a small number in the logarithm": Mistake(
        ((ENTROPY, "p = log_p.exp()\n    return -(p * (p + 1e-8).log()).sum(-1)"),
         (KL, "p, q = log_p.exp(), log_q.exp()\n    return (p * ((p + 1e-8) / (q + 1e-8)).log()).sum(-1)")),
        "How large is your KL at most, however small q is? What did you add to a probability?", LOGS,
        FINITE,
        "The KL of a next-token distribution is never above 18.5 nats, also where log-ratios are in the hundreds."),
}
for cut in (-30, -100):
    MISTAKES[f"log q is at least {cut}"] = Mistake(((KL, f"return ({P} * (log_p - log_q.clamp(min={cut}))).sum(-1)"),),
        CUT, LOGS, FINITE)
    both = f"log_p, log_q = log_p.clamp(min={cut}), log_q.clamp(min={cut})\n    "
    MISTAKES[f"both logarithms of the KL are at least {cut}"] = Mistake(((KL, both + KL),), CUT, LOGS, FINITE)
    MISTAKES[f"all logarithms are at least {cut}"] = Mistake(
        ((KL, both + KL), (ENTROPY, f"log_p = log_p.clamp(min={cut})\n    {ENTROPY}")), CUT, LOGS, FINITE)
for cut in ("1e-8", "1e-10", "1e-12"):
    MISTAKES[f"probabilities are at least {cut}"] = Mistake(
        ((KL, f"p, q = log_p.exp().clamp(min={cut}), log_q.exp().clamp(min={cut})\n"
          "    return (p * (p / q).log()).sum(-1)"),), CUT, LOGS, FINITE)
ALTERNATIVES = {
    "a double loop": '''
def entropy(log_p):
    rows = []
    for row in log_p:
        total = torch.zeros((), dtype=log_p.dtype)
        for value in row:
            total = total - value * value.exp()
        rows.append(total)
    return torch.stack(rows)

def kl(log_p, log_q):
    rows = []
    for row, other in zip(log_p, log_q):
        total = torch.zeros((), dtype=log_p.dtype)
        for value, ref in zip(row, other):
            total = total + value.exp() * (value - ref)
        rows.append(total)
    return torch.stack(rows)
''',
    "PyTorch's functions": '''
def entropy(log_p):
    return torch.distributions.Categorical(logits=log_p).entropy()

def kl(log_p, log_q):
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)
''',
    "products of vectors": '''
def entropy(log_p):
    return -torch.einsum("mv,mv->m", log_p.exp(), log_p)

def kl(log_p, log_q):
    crossed = -torch.einsum("mv,mv->m", log_p.exp(), log_q)
    return crossed - entropy(log_p)
''',
}
HIDDEN = ()
VARIANTS = {
    "bits": (
        ("(M, V) -> (M,) nats.", "(M, V) -> (M,) bits."),
        (ENTROPY, f"{ENTROPY} / 0.6931471805599453"),
        ("of each -> (M,) nats. Never negative.", "of each -> (M,) bits. Never negative."),
        (KL, f"{KL} / 0.6931471805599453")),
    "the other direction": (
        ("KL(p || q) of", "KL(q || p), the mean under q, of"),
        (KL, "return (log_q.exp() * (log_q - log_p)).sum(-1)")),
}
