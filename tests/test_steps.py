"""
Steps of GRPO that are written from nothing, as students and published code write them: twelve wrong ones, which the
grader must refuse and recognize, and four right ones, which it must accept.

Each is the full text of an exercise's functions. None is made from the edits of the exercises.
"""
import numpy as np
import pytest
import torch

from assignments.exercise import exercises
from assignments.grade import Grader, grade_exercise
from rlhf import formulas

# ---------------------------------------------------------------------------------------------------------------------
# parts that are right

LEAVE_ONE_OUT = '''
def leave_one_out(returns, k):
    rows = returns.reshape(-1, k)
    total = rows.sum(dim=1).unsqueeze(1)
    baseline = (total - rows) / (k - 1)
    return (rows - baseline).reshape(-1)
'''

TOKEN_WEIGHTS = '''
def token_weights(mask, mean):
    m = mask.to(torch.get_default_dtype())
    if mean == "tokens":
        return m / m.sum()
    if mean == "completions":
        return m / m.sum(dim=1, keepdim=True) / m.shape[0]
    return m / m.shape[0]
'''

METRICS = '''
    with torch.no_grad():
        metrics = {"policy/clipfrac": masked_mean(clipfrac(ratio, clip, clip_high), mask),
                   "policy/ratio": masked_mean(ratio, mask),
                   "policy/approxkl": 0.5 * masked_mean((logps - old_logps) ** 2, mask)}
    return loss, metrics
'''

HEAD = '''
def grpo_loss(logps, *, old_logps, advantages, mask, clip, mean, clip_high=None):
    upper = clip if clip_high is None else clip_high
'''

def grpo(body):
    """A submission of hw5.9 whose loss has this body, between the head and the metrics."""
    return TOKEN_WEIGHTS + HEAD + body + METRICS

# ---------------------------------------------------------------------------------------------------------------------
# twelve wrong steps: name -> (exercise, name of the mistake, text)

WRONG = {}

WRONG["no mask"] = ("hw5.9", "no mask", grpo('''
    ratio = (logps - old_logps).exp()
    a = advantages.detach().unsqueeze(1)
    per_token = torch.min(ratio * a, ratio.clamp(1 - clip, 1 + upper) * a)
    loss = -per_token.mean()
'''))

WRONG["no accumulation of gradients"] = ("hw2.6", "the last batch alone", '''
def accumulate_gradients(compute_loss, batches, total, backward=torch.Tensor.backward):
    results = []
    for batch in batches:
        loss, metrics = compute_loss(batch)
        share = batch["weight"] / total
        results.append((batch["weight"], dict(metrics, loss=loss.detach())))
    backward(share * loss)
    return results
''')

WRONG["all zeros"] = ("hw5.9", "all zeros", grpo('''
    ratio = torch.exp(logps - old_logps)
    loss = torch.zeros((), dtype=logps.dtype, requires_grad=True)
'''))

WRONG["max for min"] = ("hw5.9", "max for min", grpo('''
    ratio = torch.exp(logps - old_logps)
    adv = advantages.detach()[:, None]
    unclipped = -adv * ratio
    clipped = -adv * torch.clamp(ratio, 1 - clip, 1 + upper)
    loss = (torch.min(unclipped, clipped) * token_weights(mask, mean)).sum()
'''))

WRONG["no clip"] = ("hw5.9", "no clip", grpo('''
    ratio = torch.exp(logps - old_logps)
    objective = ratio * advantages.detach().view(-1, 1)
    loss = -torch.sum(objective * token_weights(mask, mean))
'''))

WRONG["inverted ratio"] = ("hw5.9", "the inverted ratio", grpo('''
    ratio = torch.exp(old_logps - logps)
    a = advantages.detach()[:, None]
    surrogate = torch.minimum(a * ratio, a * ratio.clip(1 - clip, 1 + upper))
    loss = -(token_weights(mask, mean) * surrogate).sum()
'''))

WRONG["token mean for completion mean"] = ("hw5.9", "the mean over tokens for that of completions", '''
def token_weights(mask, mean):
    m = mask.to(torch.get_default_dtype())
    return m / len(m) if mean == "sums" else m / m.sum()
''' + HEAD + '''
    ratio = torch.exp(logps - old_logps)
    a = advantages.detach()[:, None]
    surrogate = torch.min(a * ratio, a * ratio.clamp(min=1 - clip, max=1 + upper))
    loss = -(surrogate * token_weights(mask, mean)).sum()
''' + METRICS)

WRONG["one-sided clip"] = ("hw5.9", "clipped above only", grpo('''
    ratio = torch.exp(logps - old_logps)
    a = advantages.detach().reshape(-1, 1)
    capped = torch.where(ratio > 1 + upper, torch.full_like(ratio, 1 + upper), ratio)
    loss = -(torch.min(a * ratio, a * capped) * token_weights(mask, mean)).sum()
'''))

WRONG["std of the batch"] = ("hw5.8", "the std of the batch, by n - 1", LEAVE_ONE_OUT + '''
def group_advantages(returns, k, std):
    means = returns.reshape(-1, k).mean(dim=1).repeat_interleave(k)
    advantages = returns - means
    if std:
        advantages = advantages / (returns.std() + 1e-4)
    return advantages
''')

WRONG["advantage not detached"] = ("hw5.9", "advantages with a gradient", grpo('''
    ratio = torch.exp(logps - old_logps)
    a = advantages.unsqueeze(-1).expand_as(ratio)
    surrogate = torch.min(a * ratio, a * torch.clamp(ratio, 1 - clip, 1 + upper))
    loss = -(surrogate * token_weights(mask, mean)).sum()
'''))

ADVANTAGES = '''
def add_advantages(minibatches, *, algo, k, gamma, lam):
    for batch in minibatches:
        if algo == "ppo":
            advantages = gae(batch["rewards"], batch["old_values"], batch["mask"], gamma, lam)
            returns = advantages + batch["old_values"]
            mean = masked_mean(returns, batch["mask"])
        else:
            returns = batch["rewards"].sum(dim=1)
            mean = returns.mean()
            if algo == "rloo":
                advantages = leave_one_out(returns, k)
            else:
                advantages = group_advantages(returns, k, std=algo in ("grpo", "dapo"))
        batch["advantages"], batch["returns"] = advantages, returns
        batch["logged"] = {**batch["logged"], "returns/mean": mean}
    if algo == "ppo":
        whiten_rollout(minibatches)
'''

STEP = '''
def compute_loss(agent, batch, *, algo, clip, clip_high, vf_coef, kl, kl_estimator):
    logged = dict(batch["logged"])
    if "idx" not in batch:
        return torch.tensor(-logged["objective/total"]), logged
    mask = batch["mask"]
    logps, values, entropies = agent(batch["idx"], mask)
    common = dict(old_logps=batch["old_logps"], advantages=batch["advantages"], mask=mask, clip=clip,
                  clip_high=clip_high)
    mean = METHODS[algo].mean
    if algo == "ppo":
        loss, metrics = ppo_loss(logps, values, old_values=batch["old_values"], returns=batch["returns"],
                                 vf_coef=vf_coef, **common)
    elif algo == "rloo":
        loss, metrics = rloo_loss(logps, **common)
    else:
        loss, metrics = grpo_loss(logps, mean=mean, **common)
    if kl == "loss":
        distance = kl_loss(logps, batch["ref_logps"], mask, mean, kl_estimator)
        loss = loss SIGN logged["objective/beta"] * distance
        metrics["loss/kl"] = distance.detach()
    metrics["policy/entropy"] = masked_mean(entropies, mask)
    return loss, {**logged, **metrics}
'''

WRONG["KL sign"] = ("hw5.12", "the sign of the penalty", ADVANTAGES + STEP.replace("SIGN", "-"))

WRONG["reward behind EOS"] = ("hw5.3", "the last column", '''
def last_place(mask):
    B, T = mask.shape
    return torch.full((B, 1), T - 1, dtype=torch.long)

def token_rewards(scores, logps, ref_logps, mask, beta, estimator="k1"):
    rewards = torch.zeros_like(logps)
    rewards[mask] = -beta * KL_ESTIMATORS[estimator](logps[mask] - ref_logps[mask])
    rewards[torch.arange(len(scores)), last_place(mask).squeeze(1)] += scores
    return rewards
''')

# ---------------------------------------------------------------------------------------------------------------------
# four right steps: name -> {exercise: text}

RIGHT = {}

RIGHT["the loss of a token, then its mean"] = {
    "hw5.8": LEAVE_ONE_OUT + '''
def group_advantages(returns, k, std):
    mean = returns.view(-1, k).mean(dim=1).repeat_interleave(k, dim=0)
    deviation = returns.view(-1, k).std(dim=1, unbiased=False).repeat_interleave(k, dim=0)
    advantages = returns - mean
    return advantages / (deviation + 1e-4) if std else advantages
''',
    "hw5.9": grpo('''
    ratio = torch.exp(logps - old_logps)
    a = advantages.detach().unsqueeze(1)
    per_token = -torch.min(ratio * a, torch.clamp(ratio, 1 - clip, 1 + upper) * a)
    if mean == "completions":
        loss = ((per_token * mask).sum(-1) / mask.sum(-1)).mean()
    elif mean == "tokens":
        loss = (per_token * mask).sum() / mask.sum()
    else:
        loss = (per_token * mask).sum(-1).mean()
''')}

RIGHT["loops over completions"] = {
    "hw5.8": '''
def leave_one_out(returns, k):
    result = torch.empty_like(returns)
    for start in range(0, len(returns), k):
        for i in range(start, start + k):
            others = torch.cat([returns[start:i], returns[i + 1:start + k]])
            result[i] = returns[i] - others.mean()
    return result

def group_advantages(returns, k, std):
    parts = []
    for group in torch.split(returns, k):
        centered = group - group.mean()
        if std:
            centered = centered / ((centered * centered).mean().sqrt() + 1e-4)
        parts.append(centered)
    return torch.cat(parts)
''',
    "hw5.9": '''
def token_weights(mask, mean):
    rows = []
    for row in mask:
        share = {"tokens": mask.sum(), "completions": row.sum() * len(mask), "sums": torch.tensor(len(mask))}[mean]
        rows.append(row.to(torch.get_default_dtype()) / share)
    return torch.stack(rows)
''' + HEAD + '''
    loss, weights = torch.zeros((), dtype=logps.dtype), token_weights(mask, mean)
    ratio = (logps - old_logps).exp()
    for i, inside in enumerate(mask):
        r, a = ratio[i][inside], float(advantages[i])
        best = r.clamp(max=1 + upper) if a > 0 else r.clamp(min=1 - clip)
        loss = loss - a * (best * weights[i][inside]).sum()
''' + METRICS}

RIGHT["masks of what is stopped"] = {
    "hw5.9": grpo('''
    delta = logps - old_logps
    ratio, a = delta.exp(), advantages.detach()[:, None]
    stopped = torch.logical_or((a > 0) & (ratio > 1 + upper), (a < 0) & (ratio < 1 - clip))
    free = torch.where(stopped, ratio.detach().clamp(1 - clip, 1 + upper), ratio)
    loss = -torch.einsum("bt,bt,bt->", token_weights(mask, mean), a.expand_as(free), free)
'''),
    "hw5.10": '''
def kl_loss(logps, ref_logps, mask, mean, estimator):
    delta = logps - ref_logps
    if estimator == "k1":
        values = delta
    elif estimator == "k2":
        values = delta.pow(2) / 2
    else:
        values = torch.exp(ref_logps - logps) - (ref_logps - logps) - 1
    return torch.sum(values * token_weights(mask, mean))

def adaptive_beta(beta, kl, target_kl, samples, horizon=2000):
    relative = (kl - target_kl) / target_kl
    relative = min(max(relative, -0.2), 0.2)
    return (1 + relative * samples / horizon) * beta
'''}

RIGHT["a whole step"] = {"hw5.12": ADVANTAGES + STEP.replace("SIGN", "+")}

# ---------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """graded(number, text): what the grader says of an exercise whose functions are this text."""
    graders, found = {}, {e.number: e for homework in ("hw2", "hw5") for e in exercises(homework)}
    def grade(number, text):
        homework, exercise = number.split(".")[0], found[number]
        if homework not in graders:
            graders[homework] = Grader(homework, seed=5)
        grader, folder = graders[homework], tmp_path_factory.mktemp("step")
        (folder / exercise.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / exercise.file).write_text("import torch\n" + text)
        return grade_exercise(exercise, grader.key(exercise), folder, grader.worker, grader.base, grader.folder)
    yield grade
    for grader in graders.values():
        grader.close()

@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_step_has_no_points_and_is_recognized(graded, name):
    """A faulty step often trains: the reward rises, and nothing but the grader tells the student."""
    number, mistake, text = WRONG[name]
    one = graded(number, text)
    assert one.points == 0 and one.mistake == mistake, one.says

@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_step_written_otherwise_has_full_points(graded, name):
    """Published code looks different from this project's, and is right."""
    for number, text in RIGHT[name].items():
        one = graded(number, text)
        assert one.points == one.max_points, (number, one.says)

def test_there_are_twelve_wrong_steps_and_four_right_ones():
    """Each wrong one is of its own kind."""
    assert len(WRONG) == 12 and len({mistake for _, mistake, _ in WRONG.values()}) == 12 and len(RIGHT) == 4

@pytest.mark.parametrize("loss", ["grpo", "rloo"])
def test_advantages_are_constants(loss):
    """With a graph, for example of a KL in the rewards, they would add a gradient that no formula has."""
    rng = np.random.default_rng(0)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    old = torch.from_numpy(rng.normal(size=(2, 3))) * mask
    logps = (old + 0.1 * mask).requires_grad_()
    flags = {"old_logps": old, "mask": mask, "clip": 0.2}
    def gradient(advantages):
        if loss == "grpo":
            value, _ = formulas.grpo_loss(logps, advantages=advantages, mean="completions", **flags)
        else:
            value, _ = formulas.rloo_loss(logps, advantages=advantages, **flags)
        return torch.autograd.grad(value, logps)[0]
    constant = torch.tensor([2.0, -1.0], dtype=torch.float64)
    assert torch.equal(gradient(constant), gradient(constant + (logps - logps.detach()).sum(1)))
    assert gradient(constant).abs().max() > 0.1

@pytest.mark.parametrize("advantage, log_ratio, want, slope", [
    (1.0, 0.5, -1.3, 0.0), (1.0, -0.5, -np.exp(-0.5), -np.exp(-0.5)), (-1.0, -0.5, 0.8, 0.0),
    (-1.0, 0.5, np.exp(0.5), np.exp(0.5))])
def test_rloo_clips_completions_by_hand(advantage, log_ratio, want, slope):
    """
    Two tokens with half of the log-ratio each, clip 0.2 and clip_high 0.3. A good completion stops above, a bad one
    below, and neither on the way back.
    """
    logps = torch.full((1, 2), log_ratio / 2, dtype=torch.float64, requires_grad=True)
    loss, _ = formulas.rloo_loss(logps, old_logps=torch.zeros(1, 2), advantages=torch.tensor([advantage]),
                                 mask=torch.ones(1, 2, dtype=torch.bool), clip=0.2, clip_high=0.3)
    grad, = torch.autograd.grad(loss, logps)
    assert loss.item() == pytest.approx(want) and grad.tolist() == [pytest.approx([slope, slope])]

def test_the_kl_in_the_loss_pulls_back_to_the_reference():
    """A constant in the loss would be logged as a penalty and hold nothing back."""
    ref = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    logps, mask = (ref + torch.tensor([[0.4, -0.4]])).requires_grad_(), torch.ones(1, 2, dtype=torch.bool)
    for estimator in ("k2", "k3"):
        grad, = torch.autograd.grad(formulas.kl_loss(logps, ref, mask, "sums", estimator), logps)
        assert grad[0, 0] > 0 > grad[0, 1], estimator
