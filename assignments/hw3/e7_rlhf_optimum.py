"""
rlhf_optimum: the best policy for a reward and a KL penalty

The maximum of E[r] - beta KL, in closed form and in logarithms.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["study/bandit.py:rlhf_optimum"]
POINTS, MINUTES = 3, 20

def probes(rng):
    """A small world, one answer, equal rewards, and a beta so small that exp(r / beta) overflows."""
    def world(X, A, beta, title, equal=False):
        ref, reward = rng.normal(0, 1, (2, X, A))
        ref -= np.log(np.exp(ref).sum(1, keepdims=True))
        return dict(title=title, ref=ref, reward=0 * reward + 0.7 if equal else reward, beta=beta)
    return [world(3, 4, 0.5, "three prompts, beta 0.5"), world(1, 5, 3.0, "one prompt, beta 3"),
            world(2, 1, 0.5, "one answer"), world(2, 3, 0.5, "equal rewards", equal=True),
            world(2, 4, 1e-4, "beta 1e-4")]

def run(module, probe):
    """The policy, and the sum of its probabilities."""
    policy = module.rlhf_optimum(probe["ref"], probe["reward"], probe["beta"])
    return dict(policy=policy, sums=policy.exp().sum(1))

BODY, TILT, FORM = "return (ref + reward / beta).log_softmax(1)", "The best policy at a KL", "Policies are log-probs"
CLOSED = "test_bandit.py::test_the_kkt_solver_agrees_with_the_closed_form_and_beats_its_neighbours"
MISTAKES = {
    "beta multiplies": Mistake(((BODY, "return (ref + reward * beta).log_softmax(1)"),),
        "Where does the policy go for a very large beta: to the reference or to the best answer?", TILT, CLOSED,
        "On the exact world the KL of the RLHF optimum rises with beta."),
    "beta left out": Mistake(((BODY, "return (ref + reward).log_softmax(1)"),),
        "Compare your policies for two values of beta.", TILT, CLOSED),
    "no reference": Mistake(((BODY, "return (reward / beta).log_softmax(1)"),),
        "Which policy should come out if all rewards are equal?", TILT, CLOSED,
        "With equal rewards for all answers the RLHF optimum of the exact world has a KL above 0."),
    "the reference tempered too": Mistake(((BODY, "return ((ref + reward) / beta).log_softmax(1)"),),
        "Which policy should come out if all rewards are equal? Try beta 0.5.", TILT, CLOSED),
    "the worst answers": Mistake(((BODY, "return (ref - reward / beta).log_softmax(1)"),),
        "For a small beta, which answer should have nearly all probability?", TILT, CLOSED),
    "not normalized": Mistake(((BODY, "return ref + reward / beta"),),
        "Do the probabilities of each prompt sum to 1?", FORM, CLOSED),
    "normalized over prompts": Mistake(((BODY, "return (ref + reward / beta).log_softmax(0)"),),
        "Over which dimension of (X, A) must the probabilities sum to 1?", FORM, CLOSED),
    "normalized over everything": Mistake(
        ((BODY, "return (ref + reward / beta).flatten().log_softmax(0).reshape(ref.shape)"),),
        "Is Z one number, or one number for each prompt?", FORM, CLOSED),
    "probabilities": Mistake(((BODY, "return (ref + reward / beta).softmax(1)"),),
        "What does this file mean by a policy: probabilities or their logarithms?", FORM, CLOSED),
    "exp overflows": Mistake(
        ((BODY, "p = ref.exp() * (reward / beta).exp()\n    return (p / p.sum(1, keepdim=True)).log()"),),
        "best_reward calls this with beta = 1e-7. What is exp(r / beta) there?", FORM,
        "test_bandit.py::test_best_reward_inverts_the_frontier"),
    "the reference changed in place": Mistake(((BODY, "ref += reward / beta\n    return ref.log_softmax(1)"),),
        "Look at the value of `ref` after the call.", FORM),
}
ALTERNATIVES = {
    "minus logsumexp": '''
def rlhf_optimum(ref, reward, beta):
    scores = ref + reward / beta
    return scores - scores.logsumexp(1, keepdim=True)
''',
    "exp after a shift": '''
def rlhf_optimum(ref, reward, beta):
    scores = reward / beta + ref
    top = scores.max(dim=1, keepdim=True).values
    return scores - top - (scores - top).exp().sum(1, keepdim=True).log()
''',
    "prompt by prompt": '''
def rlhf_optimum(ref, reward, beta):
    return torch.stack([torch.log_softmax((beta * a + b) / beta, 0) for a, b in zip(ref, reward)])
''',
}
HIDDEN = ("proportional to ref(i) exp(r_i", "ref * exp(r / beta) / Z")
REMOVED = ()
DOC = "The policy ref * exp(r / beta) / Z, which maximizes E[r] - beta KL(policy || ref). All (X, A)."
VARIANTS = {
    "a KL in bits": (
        (DOC, "The policy that maximizes E[r] - beta KL(policy || ref), the KL in bits: 1 bit is log 2 nats. All "
              "(X, A)."),
        (BODY, "return (ref + reward / (beta * 0.6931471805599453)).log_softmax(1)")),
    "half of the KL": (
        (DOC, "The policy that maximizes E[r] - beta / 2 * KL(policy || ref), the KL in nats. All (X, A)."),
        (BODY, "return (ref + 2 * reward / beta).log_softmax(1)")),
}
