"""
ipo_optimum: where IPO ends, without training

The same tilt as the RLHF optimum's, with the probability to win in the place of the reward.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["study/bandit.py:ipo_optimum"]
POINTS, MINUTES = 3, 30

def probes(rng):
    """Bradley-Terry and deterministic preferences, a mu that is not the reference, two answers, a small beta."""
    def world(X, A, beta, title, always=False):
        ref, reward, mu = rng.normal(0, 1, (3, X, A))
        ref -= np.log(np.exp(ref).sum(1, keepdims=True))
        mu = np.exp(mu) / np.exp(mu).sum(1, keepdims=True)
        margin = reward[:, :, None] - reward[:, None, :]
        preference = (np.sign(margin) + 1) / 2 if always else 1 / (1 + np.exp(-margin))
        return dict(title=title, ref=ref, preference=preference, mu=mu, beta=beta)
    return [world(2, 4, 0.5, "two prompts, Bradley-Terry"), world(3, 3, 1.5, "the better answer always wins", True),
            world(1, 2, 0.2, "one prompt, two answers"), world(2, 5, 1e-4, "beta 1e-4")]

def run(module, probe):
    """The policy, and the sum of its probabilities."""
    policy = module.ipo_optimum(probe["ref"], probe["preference"], probe["mu"], probe["beta"])
    return dict(policy=policy, sums=policy.exp().sum(1))

TILT, END = "(preference * mu[:, None, :]).sum(2)", ".sum(2) / beta).log_softmax(1)"
WIN, FORM, THREE = "The optimum of IPO", "Policies are log-probs", "test_bandit.py::test_ipo_on_three_arms_by_hand"
CLOSED = "test_bandit.py::test_ipo_reaches_its_closed_form"
MISTAKES = {
    "the probability to lose": Mistake(((TILT, "(preference * mu[:, :, None]).sum(1)"),),
        "In P(i beats mu), over which index does the mean go: the winner's or the loser's?", WIN, THREE),
    "mu of the wrong answer": Mistake(((TILT, "(preference * mu[:, :, None]).sum(2)"),),
        "mu is the probability of the opponent. Whose probability do you multiply with?", WIN, CLOSED),
    "mu left out": Mistake(((TILT, "preference.sum(2)"),),
        "What is the largest value that P(i beats mu) can have? And yours?", WIN, THREE),
    "every opponent counts the same": Mistake(((TILT, "preference.mean(2)"),),
        "Change mu: your policy must change.", WIN, CLOSED),
    "the logit of the probability": Mistake(((TILT, "(preference * mu[:, None, :]).sum(2).logit()"),),
        "Which number of an answer stands in the exponent? Put those of the handout's three answers in.", WIN, THREE,
        "With Bradley-Terry preferences IPO's optimum in closed form lies four to five times as far from the "
        "reference, in log-ratios, as the policy that IPO is trained to."),
    "never against itself": Mistake(
        ((TILT, "(preference * mu[:, None, :] * (1 - torch.eye(ref.shape[1], dtype=ref.dtype))).sum(2)"),),
        "mu draws all answers, also i itself. What is P(i beats i)?", WIN, CLOSED,
        "To answers with a large mu, IPO's optimum in closed form gives less probability than the policy that IPO is "
        "trained to."),
    "a target of its own": Mistake(((TILT, "(preference * mu[:, None, :]).sum(2) / 2"),),
        "Train ipo on a world of two answers and compare: at which gap of the log-ratios do both end?", WIN, THREE),
    "beta multiplies": Mistake(((END, ".sum(2) * beta).log_softmax(1)"),),
        "Where does the policy go for a very large beta?", WIN, CLOSED,
        "In closed form IPO's optimum is the farther from the reference the larger beta is."),
    "no reference": Mistake((("(ref + (preference", "(0 * ref + (preference"),),
        "Which policy should come out if every pair is a coin's toss?", WIN, CLOSED),
    "not normalized": Mistake(((END, ".sum(2) / beta)"),),
        "Do the probabilities of each prompt sum to 1?", FORM, CLOSED),
    "normalized over prompts": Mistake(((END, ".sum(2) / beta).log_softmax(0)"),),
        "Over which dimension of (X, A) must the probabilities sum to 1?", FORM, CLOSED),
    "probabilities": Mistake(((END, ".sum(2) / beta).softmax(1)"),),
        "What does this file mean by a policy: probabilities or their logarithms?", FORM, CLOSED),
}
ALTERNATIVES = {
    "einsum": '''
def ipo_optimum(ref, preference, mu, beta):
    scores = ref + torch.einsum("xij,xj->xi", preference, mu) / beta
    return scores - torch.logsumexp(scores, dim=1, keepdim=True)
''',
    "through rlhf_optimum": '''
def ipo_optimum(ref, preference, mu, beta):
    return rlhf_optimum(ref, (preference @ mu[:, :, None])[:, :, 0], beta)
''',
    "less a half": '''
def ipo_optimum(ref, preference, mu, beta):
    rows = []
    for x in range(len(ref)):
        wins = torch.stack([((preference[x, i] - 0.5) * mu[x]).sum() for i in range(ref.shape[1])])
        rows.append(torch.log_softmax(ref[x] + wins / beta, 0))
    return torch.stack(rows)
''',
}
HIDDEN = ("ref * exp(P(i beats mu) / beta) / Z",)
REMOVED = ()
DOC = "IPO's optimum in closed form, ref * exp(P(i beats mu) / beta) / Z: Azar et al. 2023, arXiv:2310.12036."
VARIANTS = {
    "a target of 1 / beta": (
        (DOC, "The optimum of IPO (Azar et al. 2023, arXiv:2310.12036) with a target of 1 / beta: the policy with the\n"
              "    least mean square of w - l - 1 / beta over all pairs that mu draws, whatever target `ipo` has."),
        (TILT, "2 * (preference * mu[:, None, :]).sum(2)")),
    "the square of the probability": (
        (DOC, "The policy with the best E[Psi(P(i beats j))] - beta KL(policy || ref), i drawn from the policy and j "
              "from mu.\n    Here Psi(p) = p^2; with Psi(p) = p it would be IPO's optimum. Azar et al. 2023, "
              "arXiv:2310.12036."),
        (TILT, "(preference ** 2 * mu[:, None, :]).sum(2)")),
}
