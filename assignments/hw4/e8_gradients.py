"""
policy_gradient, loss_gradient and kl_gradient: expected gradients on a table

What a score, an estimate in the loss, and the KL itself do to the logits of a policy, without sampling.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["study/online.py:policy_gradient", "study/online.py:loss_gradient", "study/online.py:kl_gradient"]
POINTS, MINUTES = 4, 45

def probes(rng):
    """Logits that are not log-probs, in several shapes; equal scores; a policy that is sure of one answer."""
    def table(title, X, A, scale=1.0, **more):
        logits = rng.normal(0, scale, (X, A)) + rng.normal(0, 1, (X, 1)) + 0.7
        ref = rng.normal(0, 1, (X, A))
        ref = ref - np.log(np.exp(ref).sum(1, keepdims=True))
        return dict(title=title, logits=logits, ref=ref, scores=rng.normal(0.5, 1, (X, A)), **more)
    equal = table("equal scores", 3, 2)
    equal["scores"] = np.repeat(rng.normal(1, 0.5, (3, 1)), 2, 1)
    sure = table("logits of hundreds", 2, 4)
    sure["logits"][:, 0] += 300
    return [table("three prompts, four answers", 3, 4), table("as many prompts as answers", 3, 3),
            table("one prompt, two answers", 1, 2), table("two prompts, seven answers", 2, 7, 1.5), equal, sure]

def run(module, probe):
    """All three gradients, the second one of four estimates that the probe brings."""
    import torch
    logits, ref = probe["logits"], probe["ref"]
    estimates = {"l": lambda l: l, "l^2 / 2": lambda l: l * l / 2,
                 "exp(-0.1 l) - 1 + 0.1 l": lambda l: torch.expm1(-0.1 * l) + 0.1 * l,
                 "sin(l) + 1": lambda l: l.sin() + 1}
    found = {f"loss_gradient for k(l) = {name}": module.loss_gradient(logits, ref, k) for name, k in estimates.items()}
    found["policy_gradient"] = module.policy_gradient(logits, probe["scores"])
    return found | {"kl_gradient": module.kl_gradient(logits, ref)}

P, POLICY = "p = logits.softmax(1)", "return p * (scores - (p * scores).sum(1, keepdim=True))"
LOSS = "return torch.autograd.grad((logps.detach().exp() * estimate(logps - ref)).sum(), logits)[0]"
KL = "return torch.autograd.grad((logps.exp() * (logps - ref)).sum(), logits)[0]"

def loss(sum_of, by="logits", after=""):
    """An edit of loss_gradient: another sum that is differentiated."""
    return LOSS, f"return torch.autograd.grad({sum_of}, {by})[0]{after}"

def exact(sum_of, by="logits", after=""):
    """An edit of kl_gradient."""
    return KL, f"return torch.autograd.grad({sum_of}, {by})[0]{after}"

SCORE, SAMPLES = "From a score to the logits", "Samples carry no gradient"
LOGITS, PROMPTS = "Logits are the parameters", "Each prompt by itself"
UNBIASED = "test_grpo.py::test_the_mean_of_the_others_as_baseline_does_not_bias_the_gradient"
IN_LOSS = "test_grpo.py::test_which_gradient_an_estimator_has_in_the_loss"
IN_REWARD = "test_grpo.py::test_which_gradient_an_estimator_has_in_the_reward"
OF_KL = "test_estimators.py::test_the_exact_numbers_against_a_slow_loop"
BASE = "Give all answers of a prompt the same score. May that change the policy? What does your gradient sum to?"
OTHER_LOGITS = "Raise one logit: the probabilities of all other answers change too. Where are they in your gradient?"
LIFTED = "Add 3 to all logits of a prompt: the policy is the same. Is your gradient?"
DIRECTION = "Let one answer have the highest score. Which sign should the gradient of its logit have?"
DRAWN = "The samples are drawn before the loss is differentiated. Which factor of your sum is then a number?"
WEIGHTS = "Who draws the answers over which the expectation is taken? How often is each of them drawn?"
RATIO = "What is a log-ratio here: of the policy to the reference, or the other way round?"
SUMMED = "Compute the gradient of one prompt alone. Is it the row of that prompt in the table of several?"
AXIS = "Over which dimension of (X, A) do the probabilities of a policy sum to 1?"
WHICH = "Of the two directions of the KL, which has its mean under the policy?"
MISTAKES = {
    "no baseline": Mistake(((POLICY, "return p * scores"),), BASE, SCORE, UNBIASED,
        "A score of 5 for every answer moves the policy towards the answers that are likely already."),
    "no baseline in the score and the KL": Mistake(((POLICY, "return p * scores"), exact(
        "(logps.detach().exp() * (logps - ref).detach() * logps).sum()", "logps")), BASE, SCORE, UNBIASED),
    "a plain mean as the baseline": Mistake(((POLICY, "return p * (scores - scores.mean(1, keepdim=True))"),), BASE,
        SCORE, UNBIASED),
    "the baseline of all prompts": Mistake(((POLICY, "return p * (scores - (p * scores).sum() / len(p))"),), BASE,
        SCORE, UNBIASED),
    "the baseline is a sum over prompts": Mistake(((POLICY, "return p * (scores - (p * scores).sum())"),), BASE, SCORE,
        UNBIASED),
    "the score is not weighted": Mistake(((POLICY, "return scores - (p * scores).sum(1, keepdim=True)"),), WEIGHTS,
        SCORE, UNBIASED,
        "On the exact world, gradient ascent on the reward raises rare answers as fast as common ones."),
    "the policy twice": Mistake(((POLICY, "return p * (p * scores - (p * p * scores).sum(1, keepdim=True))"),), WEIGHTS,
        SCORE, UNBIASED),
    "descent": Mistake(((POLICY, "return p * ((p * scores).sum(1, keepdim=True) - scores)"),), DIRECTION, SCORE,
        UNBIASED, "On the exact world, natural gradient ascent on the reward ends at the worst answer of each prompt."),
    "the sum of a score": Mistake(((POLICY, "return scores.sum(1, keepdim=True) * p - p * scores"),), DIRECTION, SCORE,
        UNBIASED),
    "exponentials of logits as probabilities": Mistake(((P, "p = logits.exp()"),), LIFTED, LOGITS, "",
        "With logits that are not normalized, the gradient of REINFORCE does not sum to 0 over the answers."),
    "logits as probabilities": Mistake(((P, "p = logits"),), LIFTED, LOGITS, UNBIASED),
    "normalized over prompts": Mistake(((P, "p = logits.softmax(0)"),), AXIS, PROMPTS, UNBIASED),
    "a mean over prompts": Mistake(((POLICY, f"{POLICY} / len(p)"),), SUMMED, PROMPTS, UNBIASED),
    "a mean over answers": Mistake(((POLICY, f"{POLICY} / p.numel()"),), SUMMED, PROMPTS, UNBIASED),
    "the samples carry a gradient": Mistake((loss("(logps.exp() * estimate(logps - ref)).sum()"),), DRAWN, SAMPLES,
        IN_LOSS, "The table of study.estimators says that k1 in the loss has the exact gradient of the KL."),
    "the estimate is a number": Mistake((loss("(logps.exp() * estimate((logps - ref).detach())).sum()"),), DRAWN,
        SAMPLES, IN_LOSS, "On the exact world, an estimate in the loss has the same gradient as in the reward."),
    "not weighted by the policy": Mistake((loss("estimate(logps - ref).sum()"),), WEIGHTS, SAMPLES, IN_LOSS),
    "a mean over the table": Mistake((loss("estimate(logps - ref).mean()"),), WEIGHTS, SAMPLES, IN_LOSS),
    "the reference draws": Mistake((loss("(ref.exp() * estimate(logps - ref)).sum()"),), WEIGHTS, SAMPLES, IN_LOSS,
        "k2 in the loss of a policy far from its reference has not the gradient of the KL."),
    "the other log-ratio": Mistake((loss("(logps.detach().exp() * estimate(ref - logps)).sum()"),), RATIO, SAMPLES,
        IN_LOSS, "In the table of study.estimators, k3 and k3 inverted have exchanged their gradients in the loss."),
    "a ratio": Mistake((loss("(logps.detach().exp() * estimate(logps.exp() / ref.exp())).sum()"),), RATIO, SAMPLES,
        IN_LOSS),
    "logits as log-probs": Mistake((loss("(logps.detach().exp() * estimate(logits - ref)).sum()"),), LIFTED, LOGITS,
        IN_LOSS),
    "exponentials of logits as weights": Mistake((loss("(logits.detach().exp() * estimate(logps - ref)).sum()"),),
        LIFTED, LOGITS),
    "the gradient in the log-probs": Mistake((loss("(logps.detach().exp() * estimate(logps - ref)).sum()", "logps"),),
        OTHER_LOGITS, LOGITS, IN_LOSS),
    "the loss is a mean over prompts": Mistake(
        (loss("(logps.detach().exp() * estimate(logps - ref)).sum(1).mean()"),), SUMMED, PROMPTS, IN_LOSS),
    "the loss is a mean over answers": Mistake(
        (loss("(logps.detach().exp() * estimate(logps - ref)).mean()"),), SUMMED, PROMPTS, IN_LOSS),
    "ascent on the estimate": Mistake((loss("(logps.detach().exp() * -estimate(logps - ref)).sum()"),),
        "Is the gradient of the estimate wanted, or the direction of an update?", SAMPLES, IN_LOSS),
    "the other direction": Mistake((exact("(ref.exp() * (ref - logps)).sum()"),), WHICH, SAMPLES, OF_KL,
        "In the table of study.estimators, k3 in the loss is right and k2 is wrong."),
    "the policy of the KL is detached": Mistake((exact("(logps.detach().exp() * (logps - ref)).sum()"),),
        "The KL has the policy in two places. Do both move with the logits?", SAMPLES, OF_KL),
    "the log-ratio of the KL is detached": Mistake(
        (exact("(logps.exp() * (logps - ref)).sum()", after=" - logps.detach().exp()"),),
        "Does the gradient of your KL sum to 0 over the answers of a prompt? Why must it?", SAMPLES, OF_KL),
    "k2 in the place of the KL": Mistake((exact("(logps.exp() * (logps - ref) ** 2 / 2).sum()"),),
        "Is your objective the KL itself? What is it where the policy is far from the reference?", SAMPLES, OF_KL),
    "the loss without a softmax": Mistake((loss("(logits.detach().exp() * estimate(logits - ref)).sum()"),), LIFTED,
        LOGITS, IN_LOSS),
    "the KL without a softmax": Mistake((exact("(logits.exp() * (logits - ref)).sum()"),), LIFTED, LOGITS, OF_KL),
    "no softmax": Mistake((loss("(logits.detach().exp() * estimate(logits - ref)).sum()"),
        exact("(logits.exp() * (logits - ref)).sum()")), LIFTED, LOGITS, IN_LOSS),
    "logits in the KL": Mistake((exact("(logps.exp() * (logits - ref)).sum()"),), LIFTED, LOGITS, OF_KL),
    "the gradient of the KL in the log-probs": Mistake((exact("(logps.exp() * (logps - ref)).sum()", "logps"),),
        OTHER_LOGITS, LOGITS, OF_KL),
    "the KL without what it sums to": Mistake((exact("(logps.detach().exp() * (logps - ref).detach() * logps).sum()",
        "logps"),), OTHER_LOGITS, LOGITS, OF_KL),
    "the KL is a mean over prompts": Mistake((exact("(logps.exp() * (logps - ref)).sum(1).mean()"),), SUMMED, PROMPTS,
        OF_KL),
    "the KL is a mean over answers": Mistake((exact("(logps.exp() * (logps - ref)).mean()"),), SUMMED, PROMPTS, OF_KL),
    "the sign of the KL": Mistake((exact("(logps.exp() * (ref - logps)).sum()"),),
        "Is the gradient of the KL wanted, or the direction of an update?", SAMPLES, OF_KL),
    "all three are means over prompts": Mistake(
        ((POLICY, f"{POLICY} / len(p)"), loss("(logps.detach().exp() * estimate(logps - ref)).sum(1).mean()"),
         exact("(logps.exp() * (logps - ref)).sum(1).mean()")), SUMMED, PROMPTS, UNBIASED),
}
ALTERNATIVES = {
    "by differentiation and by hand": '''
def policy_gradient(logits, scores):
    logits = logits.detach().clone().requires_grad_()
    (logits.softmax(1) * scores.detach()).sum().backward()
    return logits.grad

def loss_gradient(logits, ref, estimate):
    logps = logits.log_softmax(1).detach().requires_grad_()
    slope, = torch.autograd.grad(estimate(logps - ref).sum(), logps)    # (X, A): k' of each log-ratio
    p = logps.detach().exp()
    return p * (slope - (p * slope).sum(1, keepdim=True))

def kl_gradient(logits, ref):
    p = logits.softmax(1)
    l = logits.log_softmax(1) - ref
    return p * l - p * (p * l).sum(1, keepdim=True)
''',
    "REINFORCE and loops": '''
def policy_gradient(logits, scores):
    logits = logits.detach().requires_grad_()
    logps = torch.log_softmax(logits, dim=-1)
    objective = torch.exp(logps).detach() * scores.detach() * logps
    return torch.autograd.grad(objective.sum(), logits)[0]

def loss_gradient(logits, ref, estimate):
    rows = []
    for row, other in zip(logits, ref):
        row = row.detach().clone().requires_grad_()
        p = torch.softmax(row, 0).detach()
        total = torch.zeros((), dtype=row.dtype)
        for i in range(len(row)):
            total = total + p[i] * estimate((row - torch.logsumexp(row, 0) - other)[i])
        rows.append(torch.autograd.grad(total, row)[0])
    return torch.stack(rows)

def kl_gradient(logits, ref):
    return policy_gradient(logits, logits.log_softmax(1) - ref)
''',
    "with Jacobians": '''
def policy_gradient(logits, scores):
    p = logits.softmax(1)
    jacobian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]    # (X, A, A)
    return (jacobian @ scores[:, :, None]).squeeze(2)

def loss_gradient(logits, ref, estimate):
    p = logits.softmax(1)
    with torch.enable_grad():
        l = (logits.log_softmax(1) - ref).detach().requires_grad_()
        estimate(l).sum().backward()
    return policy_gradient(logits, l.grad)

def kl_gradient(logits, ref):
    free = logits.detach().clone().requires_grad_()
    total = torch.nn.functional.kl_div(ref, free.log_softmax(1), reduction="sum", log_target=True)
    return torch.autograd.grad(total, free)[0]
''',
}
HIDDEN = ()
VARIANTS = {
    "means over prompts": (
        ("The gradient (X, A) of REINFORCE in logits:", "The gradient (X, A) of REINFORCE in logits, divided by X:"),
        (POLICY, f"{POLICY} / len(p)"),
        ("of a KL estimate in the loss:", "of a KL estimate in the loss, divided by X:"),
        loss("(logps.detach().exp() * estimate(logps - ref)).sum(1).mean()"),
        ("KL(policy || ref), summed over prompts", "KL(policy || ref), its mean over prompts"),
        exact("(logps.exp() * (logps - ref)).sum(1).mean()")),
    "the other direction": (
        ("KL(policy || ref), summed", "KL(ref || policy), summed"),
        exact("(ref.exp() * (ref - logps)).sum()")),
}
