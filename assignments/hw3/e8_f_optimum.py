"""
f_optimum: the best policy for any divergence, by its KKT conditions

The inverse of f', and a multiplier for each prompt that makes the policy sum to 1.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["study/bandit.py:f_optimum"]
POINTS, MINUTES = 8, 75

def probes(rng):
    """Every divergence; small and large beta, with the multiplier near its bound or far from it; one answer; ties."""
    def world(X, A, beta, divergence, alpha=0.5, spread=1.0, title=""):
        ref, reward = rng.normal(0, 1, (2, X, A))
        ref -= np.log(np.exp(ref).sum(1, keepdims=True))
        return dict(title=title or f"{divergence}, beta {beta}", ref=ref, reward=spread * reward, beta=beta,
                    divergence=divergence, alpha=alpha)
    tie = world(2, 3, 0.6, "jsd", title="equal rewards")
    tie["reward"] = 0 * tie["reward"] - 1.3
    return [world(2, 4, 0.5, "reverse_kl"), world(2, 4, 0.7, "forward_kl"), world(3, 3, 0.7, "jsd"),
            world(2, 4, 0.5, "alpha", 0.3, title="alpha 0.3"), world(2, 4, 0.8, "alpha", 0.7, title="alpha 0.7"),
            world(2, 3, 0.05, "jsd", title="jsd, beta 0.05"), world(2, 3, 4.0, "alpha", 0.5, title="alpha 0.5, beta 4"),
            world(2, 3, 3.0, "forward_kl", spread=20.0, title="forward_kl, rewards 20 nats apart"),
            world(2, 1, 0.5, "forward_kl", title="one answer"), tie]

def run(module, probe):
    """The policy, and the sum of its probabilities."""
    policy = module.f_optimum(probe["ref"], probe["reward"], probe["beta"], probe["divergence"], alpha=probe["alpha"])
    return dict(policy=policy, sums=policy.exp().sum(1))

REVERSE, FORWARD = "(lambda s: s.exp(), torch.inf)", "(lambda s: -1 / s, 0.0)"
JSD, ALPHA = "s.exp() / (2 - s.exp())", "(lambda s: (1 - alpha * s) ** (-1 / alpha), 1 / alpha)"
TOTAL = "(ref.exp() * inverse((reward - nu) / beta)).sum(1, keepdim=True)"
LOW, DOUBLE, STEPS = "beta * min(bound, 50.0)", "while (total(high) > 1).any():", "for _ in range(200):"
RETURN = "return ref + inverse((reward - high) / beta).log()"
KKT, INVERSE, SOLVE = "The KKT conditions", "The inverse of f'", "Finding nu"
NEIGHBORS = "test_bandit.py::test_the_kkt_solver_agrees_with_the_closed_form_and_beats_its_neighbours"
TEST = "test_bandit.py::test_fdpo_reaches_its_own_divergences_optimum"
WHOLE = "Which expression of nu is to be 1: a sum of u, of policy, or of something else?"
MISTAKES = {
    "normalized instead of solved": Mistake(
        ((STEPS, "for _ in range(0):"),
         (RETURN, "return (ref + inverse((reward - high) / beta).log()).log_softmax(1)")),
        "A policy that is divided by its sum has other ratios u = policy / ref. Put it into the KKT condition: is "
        "r - beta f'(u) the same number for all answers of a prompt?", KKT, TEST),
    "one nu for all prompts": Mistake(
        ((TOTAL, TOTAL + ".mean(0, keepdim=True)"),
         ("reward.max(1, keepdim=True).values", "reward.max().reshape(1, 1)")),
        "How many constraints are there: one, or one for each prompt?", KKT, TEST),
    "beta left out": Mistake(
        ((TOTAL, "(ref.exp() * inverse(reward - nu)).sum(1, keepdim=True)"), (LOW, "min(bound, 50.0)"),
         (RETURN, "return ref + inverse(reward - high).log()")),
        "Compare your policies for two values of beta.", KKT, TEST),
    "beta multiplies": Mistake(
        ((TOTAL, "(ref.exp() * inverse((reward - nu) * beta)).sum(1, keepdim=True)"), (LOW, "min(bound, 50.0) / beta"),
         (RETURN, "return ref + inverse((reward - high) * beta).log()")),
        "Solve the KKT condition for f'(u) on paper. On which side does beta stand?", KKT, TEST,
        "A larger beta moves the optimum of f-DPO's objective away from the reference."),
    "u sums to 1": Mistake(((TOTAL, "inverse((reward - nu) / beta).sum(1, keepdim=True)"),), WHOLE, KKT, TEST,
        "The probabilities of the optimum of f-DPO's objective sum to less than 1, for every divergence."),
    "without the reference": Mistake(((RETURN, "return inverse((reward - high) / beta).log()"),),
        "Do you return the logarithm of u or that of the policy?", KKT, TEST),
    "probabilities": Mistake(((RETURN, "return ref.exp() * inverse((reward - high) / beta)"),),
        "What does this file mean by a policy: probabilities or their logarithms?", KKT, TEST),
    "the worst answers": Mistake(
        ((TOTAL, "(ref.exp() * inverse((-reward - nu) / beta)).sum(1, keepdim=True)"),
         ("low = reward.max", "low = (-reward).max"), (RETURN, "return ref + inverse((-reward - high) / beta).log()")),
        "Which answers have the larger u: those with a high or with a low reward?", KKT, TEST),
    "forward and reverse exchanged": Mistake(((REVERSE, "(lambda s: 1 * s.exp(), None)"), (FORWARD, REVERSE),
                                              ("(lambda s: 1 * s.exp(), None)", FORWARD)),
        "For which divergence must the result be that of rlhf_optimum?", INVERSE, NEIGHBORS),
    "f' of jsd, not inverted": Mistake(((JSD, "(2 * s.exp() / (1 + s.exp()))"),),
        "Put your u back into f' of jsd: is the result s again?", INVERSE, TEST,
        "For jsd, and only for jsd, f-DPO does not train to the optimum that the exact world computes."),
    "jsd without its 2": Mistake(((JSD, "s.exp() / (1 + s.exp())"),),
        "Put your u back into f' of jsd, for s = 0 and for a very negative s. What is the largest s that f' can have?",
        INVERSE, TEST),
    "TRL's alpha": Mistake(((ALPHA, "(lambda s: (1 - (1 - alpha) * s) ** (-1 / (1 - alpha)), 1 / (1 - alpha))"),),
        "Towards which KL divergence does alpha near 0 go in `link`, and in your function?", INVERSE, TEST),
    "no root for alpha": Mistake(((ALPHA, "(lambda s: 1 / (1 - alpha * s), 1 / alpha)"),),
        "Put your u back into f' of alpha: is the result s again? Try alpha 0.5 and s = 1.", INVERSE, TEST),
    "exp(s) for every divergence": Mistake(
        (("}[divergence]", '}["reverse_kl"]'),),
        "Do your policies differ between the divergences?", INVERSE, TEST),
    "no search for the upper end": Mistake(((DOUBLE, "while False:"),),
        "Do the probabilities sum to 1 on every probe? Bisection needs a nu on each side of the solution. Look at "
        "rewards that are 20 nats apart.", SOLVE),
    "the wrong half": Mistake((("too_low = total(middle) > 1", "too_low = total(middle) < 1"),),
        "Does the sum rise or fall with nu? Which half holds the solution when the sum is above 1?", SOLVE, TEST),
    "20 steps": Mistake(((STEPS, "for _ in range(20):"),),
        "How near is the sum of the probabilities to 1? Each step of a bisection gives one binary digit.", SOLVE),
}
ALTERNATIVES = {
    "jsd without the constant of f'": '''
def f_optimum(ref, reward, beta, divergence, alpha=0.5):
    def inverse(s):
        if divergence == "reverse_kl":
            return s.exp()
        if divergence == "forward_kl":
            return -1 / s
        if divergence == "jsd":
            return 1 / torch.expm1(-s)
        return (1 - alpha * s).pow(-1 / alpha)
    bound = {"reverse_kl": 40.0, "forward_kl": 0.0, "jsd": 0.0, "alpha": 1 / alpha}[divergence]
    policies = []
    for p, r in zip(ref.exp(), reward):
        low = r.max() - beta * bound
        size = torch.ones((), dtype=r.dtype)
        while (p * inverse((r - low - size) / beta)).sum() > 1:
            size = 2 * size
        high = low + size
        for _ in range(300):
            nu = (low + high) / 2
            if (p * inverse((r - nu) / beta)).sum() > 1:
                low = nu
            else:
                high = nu
        policies.append((p * inverse((r - high) / beta)).log())
    return torch.stack(policies)
''',
    "a bracket from both ends": '''
def f_optimum(ref, reward, beta, divergence, alpha=0.5):
    log_u = {"reverse_kl": lambda s: s, "forward_kl": lambda s: -(-s).log(),
             "jsd": lambda s: s - math.log(2) - (-torch.expm1(s - math.log(2))).log(),
             "alpha": lambda s: -(1 - alpha * s).log() / alpha}[divergence]
    value_at_1 = {"reverse_kl": 0.0, "forward_kl": -1.0, "jsd": 0.0, "alpha": 0.0}[divergence]
    bound = {"reverse_kl": math.inf, "forward_kl": 0.0, "jsd": math.log(2), "alpha": 1 / alpha}[divergence]
    best = reward.max(1, keepdim=True).values
    lowest = torch.maximum(reward.min(1, keepdim=True).values - beta * value_at_1, best - beta * bound)
    highest = best - beta * value_at_1    # there every u is at most 1
    for _ in range(200):
        nu = (lowest + highest) / 2
        above = (ref + log_u((reward - nu) / beta)).logsumexp(1, keepdim=True) > 0
        lowest, highest = torch.where(above, nu, lowest), torch.where(above, highest, nu)
    return ref + log_u((reward - highest) / beta)

import math
''',
}
HIDDEN = ("beta f'(u_i) = r_i - nu", "nu is found by bisection", "uses its inverse, so that")
REMOVED = ()
VARIANTS = {
    "TRL's alpha": (
        (ALPHA, "(lambda s: (1 - (1 - alpha) * s) ** (-1 / (1 - alpha)), 1 / (1 - alpha))"),
        ('or "alpha" (with alpha in (0, 1))', 'or "alpha" (alpha in (0, 1); its f has a = 1 - alpha)')),
}
