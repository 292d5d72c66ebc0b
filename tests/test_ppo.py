"""PPO, RLOO and GRPO: formulas against a slow loop or by hand, the optimum of a solvable world, and whole runs."""
import json
import math
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn

import data
import loop
import sampling
from model import GPT
from reward import Reward
from rlhf import formulas, train_ppo
from study import bandit
from support import cli
from test_loop import log_rows
from test_runs import here, world    # noqa: F401 (fixtures)

def made(n=5, T=9, seed=0):
    """
    (rewards, values, mask) of completions of unequal length after prompts of unequal length. Outside the mask,
    numbers are random.
    """
    g = torch.Generator().manual_seed(seed)
    starts, lens = torch.randint(0, 3, (n,), generator=g), torch.randint(1, 6, (n,), generator=g)
    t = torch.arange(T)
    mask = torch.stack([(t >= start) & (t < start + length) for start, length in zip(starts, lens)])
    return torch.randn(n, T, generator=g), torch.randn(n, T, generator=g), mask

# ---------------------------------------------------------------------------------------------------------------------
# the formulas

def test_gae_against_its_sum():
    """
    A_t is the sum of discounted deltas over the tokens of its own completion. Tokens of a prompt and tokens after
    the end have no reward.
    """
    rewards, values, mask = made()
    found, gamma, lam = formulas.gae(rewards, values, mask, 0.9, 0.7), 0.9, 0.7
    for i in range(len(mask)):
        places = mask[i].nonzero().flatten().tolist()
        for at, t in enumerate(places):
            value_of = lambda j, i=i, places=places: values[i, j].item() if j in places else 0.0
            deltas = [rewards[i, s].item() + gamma * value_of(s + 1) - value_of(s) for s in places[at:]]
            want = sum((gamma * lam) ** k * d for k, d in enumerate(deltas))
            assert found[i, t].item() == pytest.approx(want, abs=1e-5)
    assert not found[~mask].any()

def test_gae_with_lambda_1_is_the_return_less_the_value():
    """The other extreme, lambda = 0, is TD(0)."""
    rewards, values, mask = made(seed=1)
    whole, one = (formulas.gae(rewards, values, mask, 1.0, lam) for lam in (1.0, 0.0))
    returns = (rewards * mask).flip(1).cumsum(1).flip(1)
    assert torch.allclose(whole[mask], (returns - values)[mask], atol=1e-5)
    following = torch.cat([(values * mask)[:, 1:], torch.zeros(len(mask), 1)], 1)
    assert torch.allclose(one[mask], (rewards + following - values)[mask], atol=1e-6)

def test_token_rewards_by_hand():
    """Every token of the completion has its share of the KL, and the last one the score. All other tokens have 0."""
    logps, ref, mask = made(seed=2)
    scores = torch.arange(5.0) + 10
    found = formulas.token_rewards(scores, logps, ref, mask, 0.3)
    for i in range(5):
        places = mask[i].nonzero().flatten().tolist()
        for t in range(mask.shape[1]):
            want = -0.3 * (logps[i, t] - ref[i, t]).item() * (t in places) + scores[i].item() * (t == places[-1])
            assert found[i, t].item() == pytest.approx(want, abs=1e-5)
    # the sum is the objective: r - beta log(policy / reference)
    assert torch.allclose(found.sum(1), scores - 0.3 * ((logps - ref) * mask).sum(1), atol=1e-5)

def test_whitening_is_over_completion_tokens():
    """Zeros of the padding in the mean would shift every advantage."""
    x, _, mask = made(seed=3)
    white = formulas.whiten(5 * x + 3, mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[mask].var(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert not white[~mask].any()
    assert torch.allclose(white[mask], (x[mask] - x[mask].mean()) / x[mask].std(correction=0), atol=1e-4)

def test_leave_one_out_by_hand():
    """A sample's baseline is the mean of the others. With its own reward in the mean, it would be biased."""
    found = formulas.leave_one_out(torch.tensor([1.0, 2, 6, 0, 0, 3]), 3)
    assert found.tolist() == [1 - 4, 2 - 3.5, 6 - 1.5, -1.5, -1.5, 3]

@pytest.mark.parametrize("ratio, advantage, want", [
    (1.5, 2, -2.4), (1.5, -2, 3.0), (0.5, 2, -1.0), (0.5, -2, 1.6), (1.1, 2, -2.2)])
def test_the_clipped_policy_loss_by_hand(ratio, advantage, want):
    """The loss is clipped only where a larger ratio change would lower it, and not on the way back."""
    loss = formulas.clipped_policy_loss(torch.tensor(ratio), torch.tensor(float(advantage)), 0.2, 0.2)
    assert loss.item() == pytest.approx(want)

def test_the_clipped_value_loss_by_hand():
    """The larger of the two errors counts, so that clipping never makes a step away from the return look good."""
    def loss(v, old, r):
        return formulas.clipped_value_loss(torch.tensor(v), torch.tensor(old), torch.tensor(r), 0.2).item()
    assert loss(1.0, 0.0, 2.0) == pytest.approx((0.2 - 2) ** 2 / 2)
    assert loss(-1.0, 0.0, 2.0) == pytest.approx(9 / 2)
    assert loss(0.1, 0.0, 2.0) == pytest.approx(1.9**2 / 2)

def test_the_adapted_coefficient():
    """It rises above the target and falls below it, by at most a fifth in 2,000 samples."""
    beta = formulas.adaptive_beta
    assert beta(0.1, 6.0, 5.0, 200) == pytest.approx(0.1 * (1 + 0.2 * 0.1)) == beta(0.1, 50.0, 5.0, 200)
    assert beta(0.1, 0.0, 5.0, 200) == pytest.approx(0.1 * (1 - 0.2 * 0.1))
    assert beta(0.1, 5.5, 5.0, 2000) == pytest.approx(0.1 * 1.1)

def test_advantages_and_returns_by_hand():
    """
    PPO's return is the advantage plus the old value. RLOO's is that of the whole completion, with the other one as
    baseline.
    """
    rewards, values = torch.tensor([[0.0, 1.0], [0.0, 3.0]]), torch.tensor([[0.5, 0.2], [0.0, 0.0]])
    mask = torch.ones(2, 2, dtype=torch.bool)
    def found(algo):
        batch = {"rewards": rewards, "old_values": values, "mask": mask, "logged": {}}
        train_ppo.add_advantages([batch], algo=algo, k=2, gamma=0.5, lam=0.4)
        return batch["advantages"], batch["returns"], batch["logged"]["returns/mean"].item()
    advantages = formulas.gae(rewards, values, mask, 0.5, 0.4)
    whitened, returns, mean = found("ppo")
    assert torch.equal(whitened, formulas.whiten(advantages, mask))
    assert mean == pytest.approx((0.1 + 0.16 + 1 + 0.6 + 3) / 4)
    assert advantages[0].tolist() == pytest.approx([0.5 * 0.2 - 0.5 + 0.5 * 0.4 * 0.8, 0.8])
    assert returns[0].tolist() == pytest.approx([0.1 + 0.16, 1.0])
    assert returns[1].tolist() == pytest.approx([0.2 * 3, 3.0])
    advantages, returns, mean = found("rloo")
    assert advantages.tolist() == [-2, 2] and returns.tolist() == [1, 3] and mean == 2

def two_completions():
    """
    (log-probs, old log-probs, mask): ratios 1.5 and 1 in the first completion, 0.5 in the second, which has one
    token.
    """
    logps = torch.tensor([[1.5, 1.0], [0.5, 1.0]]).log().requires_grad_()
    return logps, torch.zeros(2, 2), torch.tensor([[True, True], [True, False]])

def test_the_ppo_loss_by_hand():
    """Means are over tokens, not over completions or padding."""
    logps, old, mask = two_completions()
    values = torch.tensor([[1.0, 0.0], [0.1, 0.0]], requires_grad=True)
    advantages = torch.tensor([[2.0, 1.0], [2.0, 9.0]])
    returns = advantages.clone()
    loss, logged = formulas.ppo_loss(logps, values, old_logps=old, old_values=torch.zeros(2, 2),
                                     advantages=advantages, returns=returns, mask=mask, clip=0.2, clip_high=0.2,
                                     vf_coef=0.5)
    policy_loss, value_loss = -(1.2 * 2 + 1 + 0.5 * 2) / 3, (1.8**2 + 1 + 1.9**2) / 2 / 3
    assert loss.item() == pytest.approx(policy_loss + 0.5 * value_loss)
    want = {
        "loss/policy": policy_loss,
        "loss/value": value_loss,
        "val/error": (1 + 1 + 1.9**2) / 3,
        "policy/clipfrac": 2 / 3,
        "policy/ratio": 1,
        "policy/approxkl": (math.log(1.5) ** 2 + math.log(0.5) ** 2) / 6,
    }
    assert {k: v.item() for k, v in logged.items()} == pytest.approx(want)
    loss.backward()    # beyond the clip the gradient is 0, elsewhere -A ratio / 3
    assert logps.grad[mask].tolist() == pytest.approx([0, -1 / 3, -1 / 3])
    assert values.grad[mask].tolist() == pytest.approx([0, -0.5 / 3, -0.5 * 1.9 / 3])

def test_the_rloo_loss_by_hand():
    """
    The ratio is that of the completion, 1.5 * 1 and 0.5. The mean is over completions. At ratio 1 the gradient is
    REINFORCE's.
    """
    logps, old, mask = two_completions()
    flags = {"old_logps": old, "advantages": torch.tensor([-2.0, 3.0]), "mask": mask, "clip": 0.2, "clip_high": 0.2}
    loss, logged = formulas.rloo_loss(logps, **flags)
    assert loss.item() == pytest.approx((1.5 * 2 - 0.5 * 3) / 2)
    want = {"policy/clipfrac": 1, "policy/ratio": 1, "policy/approxkl": (math.log(1.5) ** 2 + math.log(0.5) ** 2) / 6}
    assert {k: v.item() for k, v in logged.items()} == pytest.approx(want)
    same = torch.zeros(2, 2, requires_grad=True)
    formulas.rloo_loss(same, **flags)[0].backward()
    assert same.grad.tolist() == [[1, 1], [-1.5, -1.5]]    # of -mean_i A_i log policy(y_i)

# ---------------------------------------------------------------------------------------------------------------------
# a solvable world

class Table(nn.Module):
    """A policy of one-token answers to one-token prompts, with the parts of a GPT that PPO uses."""
    def __init__(self, log_p):
        super().__init__()
        self.features, self.lm_head = nn.Embedding.from_pretrained(log_p.float(), freeze=False), nn.Identity()
        self.config = SimpleNamespace(n_embd=log_p.shape[1])

    def generate(self, idx, max_new_tokens, *, generator, **_):
        return torch.cat([idx, torch.multinomial(self.features(idx[:, -1]).softmax(1), 1, generator=generator)], 1)

@pytest.mark.parametrize("algo, estimator", [
    ("ppo", None), pytest.param("rloo", None, marks=pytest.mark.slow), ("dr_grpo", "k2"),
    pytest.param("dr_grpo", "k3", marks=pytest.mark.slow)], ids=["ppo", "rloo", "dr_grpo k2", "dr_grpo k3"])
def test_the_optimum_is_the_tilted_reference(algo, estimator):
    """
    With the true reward and a fixed beta PPO and RLOO end at ref * exp(r / beta) / Z, far from their start. Dr. GRPO
    with k2 in the loss does too, with beta * k / (k - 1) for beta, as its baseline contains the own reward. With k3
    it ends at the optimum of the forward KL.
    """
    torch.manual_seed(0)
    ref, reward = bandit.world()    # (4, 6)
    table, base = (torch.cat([ref, torch.zeros(2, 6)]) for _ in range(2))    # answers are tokens too
    agent, reference = train_ppo.Agent(Table(table), 1.0), train_ppo.Agent(Table(base), 0.0)
    tokenizer = SimpleNamespace(eot_token=-1, decode=str)
    judge = lambda texts: np.array([reward[x, y].item() for x, y in texts])
    rollouts = train_ppo.Rollouts(agent, reference, tokenizer, [[x] for x in range(4)] * 256, judge, 1, algo=algo,
                                  rollout=1024, batch_size=256, k=1 if algo == "ppo" else 4, epochs=2, gamma=1.0,
                                  lam=0.95, eos_penalty=0.0, target_kl=None, kl="loss" if estimator else "reward",
                                  kl_estimator=estimator or "k1", seed=0, autocast=nullcontext())
    optimizer, steps = torch.optim.Adam(agent.parameters(), lr=0.05), 240
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - i / steps)
        optimizer.zero_grad()
        train_ppo.compute_loss(agent, rollouts[i], algo=algo, clip=0.2, clip_high=0.2, vf_coef=0.0, kl=rollouts.kl,
                               kl_estimator=rollouts.kl_estimator)[0].backward()
        optimizer.step()
    found = agent.policy.features.weight[:4].detach().double().log_softmax(1)
    divergence = "forward_kl" if estimator == "k3" else "reverse_kl"
    want = bandit.f_optimum(ref, reward, 4 / 3 if estimator else 1.0, divergence)
    distance = lambda p: (p.exp() * (p - want)).sum(1)
    assert distance(found).max() < 0.003 < 0.03 < distance(ref).min()

# ---------------------------------------------------------------------------------------------------------------------
# runs

FLAGS = "--true_reward --rollout 32 --batch_size 16 --max_steps 8 --eval_every 4 " \
        "--n_show 0 --n_prompts 64 --lr 3e-3".split()

@pytest.fixture
def rollouts(here, tokenizer, request):    # noqa: F811
    """Rollouts of the policy in out/toy/sft, and their args. A test's parameter adds flags."""
    args = train_ppo.get_args([*FLAGS, *getattr(request, "param", [])])
    policy, reference = (GPT.from_pretrained("out/toy/sft").eval() for _ in range(2))
    prompts, room = sampling.prompts_for(args.data, tokenizer, 64, 8, max_len=args.max_len, seed=args.seed)
    reward = Reward(None, tokenizer, 64, "cpu", 16, nullcontext())
    agents = train_ppo.Agent(policy, args.beta), train_ppo.Agent(reference, 0.0)
    flags = cli.flags_of(args, train_ppo.Rollouts)
    return train_ppo.Rollouts(*agents, tokenizer, prompts["train"], reward, room, autocast=nullcontext(), **flags), args

def loss_of(batches, batch, args):
    return train_ppo.compute_loss(batches.agent, batch, **cli.flags_of(args, train_ppo.compute_loss))

@pytest.mark.parametrize("rollouts", [["--algo", name] for name in formulas.METHODS], indirect=True,
                         ids=lambda flags: flags[1])
def test_at_the_first_minibatch_the_ratio_is_exactly_1(rollouts):
    """
    Log-probs of an older policy, of other rows or with dropout would give another ratio. At later minibatches it
    changes.
    """
    batches, args = rollouts
    optimizer = torch.optim.AdamW(batches.agent.parameters(), lr=3e-3)
    for i in range(8):    # two batches of samples, two epochs of two minibatches each
        loss, metrics = loss_of(batches, batches[i], args)
        first = i % 4 == 0
        assert (metrics["policy/ratio"].item() == 1.0 and metrics["policy/approxkl"].item() == 0.0) == first, i
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

def test_a_minibatch_holds_what_its_samples_say(rollouts):
    """
    Scores go to the last token. Values start at zero, so a return is the sum of rewards discounted by lambda only.
    """
    import toy
    batches, args = rollouts
    batch = batches[0]
    mask, idx = batch["mask"], batch["idx"]
    assert not batch["old_values"].any() and mask.any(1).all()
    with torch.no_grad():
        logps = batches.agent(idx, mask)[0]
    want = torch.gather(batches.agent.policy(idx).log_softmax(-1)[:, :-1], 2, idx[:, 1:, None]).squeeze(2) * mask
    assert torch.allclose(logps, want, atol=1e-5) and torch.equal(logps, batch["old_logps"])
    for row in range(len(idx)):
        last = mask[row].nonzero().max().item()
        tokens = idx[row, :last + 2].tolist()
        score = toy.reward(data.decode(batches.tokenizer, tokens)) - (tokens[-1] != batches.tokenizer.eot_token)
        # policy and reference are still equal, so that the KL is 0
        assert batch["returns"][row, last].item() == pytest.approx(score, abs=1e-5)

@pytest.mark.parametrize("rollouts", [["--gamma", "0.9", "--lam", "0.7", "--beta", "0.3"]], indirect=True)
def test_values_are_of_what_stands_before_a_token(rollouts):
    """
    With a head that is not 0 and a policy that has changed: old values, returns and the loss, computed the slow
    way.
    """
    batches, args = rollouts
    torch.manual_seed(1)
    torch.nn.init.normal_(batches.agent.head.weight)
    batches.agent.policy.transformer.ln_f.bias.data += 0.3 * torch.randn(32)
    batch = batches[0]
    idx, mask = batch["idx"], batch["mask"]
    with torch.no_grad():
        values = (batches.agent.policy.features(idx)[:, :-1] @ batches.agent.head.weight.T).squeeze(-1) * mask
        log_p = [torch.gather(m.policy(idx).log_softmax(-1)[:, :-1], 2, idx[:, 1:, None]).squeeze(2)
                 for m in (batches.agent, batches.reference)]
    assert torch.allclose(values, batch["old_values"], atol=1e-5) and values.any()
    import toy
    for row in range(len(idx)):
        places = mask[row].nonzero().flatten().tolist()
        tokens = idx[row, :places[-1] + 2].tolist()
        rewards = {t: -0.3 * (log_p[0] - log_p[1])[row, t].item() for t in places}
        ended = tokens[-1] == batches.tokenizer.eot_token
        rewards[places[-1]] += toy.reward(data.decode(batches.tokenizer, tokens)) - (not ended)
        value = lambda t, row=row, places=places: values[row, t].item() if t in places else 0.0
        advantage = 0.0
        for t in reversed(places):
            advantage = rewards[t] + 0.9 * value(t + 1) - value(t) + 0.9 * 0.7 * advantage
            assert batch["returns"][row, t].item() == pytest.approx(advantage + value(t), abs=1e-4)
    optimizer = torch.optim.AdamW(batches.agent.parameters(), lr=3e-3)
    errors = []
    for _ in range(12):    # on one minibatch the value loss must fall
        loss, metrics = loss_of(batches, batch, args)
        errors.append(metrics["val/error"].item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert errors[-1] < 0.8 * errors[0]

@pytest.mark.parametrize("rollouts", [["--algo", "rloo", "--beta", "0.3"]], indirect=True)
def test_rloo_takes_completions_as_wholes(rollouts):
    """
    RLOO sums over tokens. The four samples of a prompt must be adjacent, or the baseline is that of another prompt.
    """
    batches, args = rollouts
    batches.agent.policy.transformer.ln_f.bias.data += 0.1
    batch = batches[0]
    assert torch.allclose(batch["returns"], batch["rewards"].sum(1)) and batch["advantages"].shape == (16,)
    assert (batch["rewards"] != 0).sum() > 100    # the KL's share at every token
    first = [row[:4].tolist() for row in batch["idx"]]
    for at in range(0, 16, 4):
        length = min(int(batch["mask"][i].nonzero().min()) + 1 for i in range(at, at + 4))
        assert len({tuple(batch["idx"][i, :length].tolist()) for i in range(at, at + 4)}) == 1
    assert len({tuple(f) for f in first}) > 1
    batches.agent.policy.transformer.ln_f.bias.data -= 0.05
    with torch.no_grad():
        logps = batches.agent(batch["idx"], batch["mask"])[0]
    _, metrics = loss_of(batches, batch, args)
    ratio = (logps - batch["old_logps"]).sum(1).exp()
    mean = ratio.mean().item()
    assert metrics["policy/ratio"].item() == pytest.approx(mean, rel=1e-4) and abs(mean - 1) > 1e-3
    assert metrics["policy/clipfrac"].item() == pytest.approx(((ratio - 1).abs() > 0.2).float().mean().item())

def test_advantages_are_whitened_over_the_whole_batch(rollouts):
    """The mean of one minibatch is noise, and subtracting it would act as a noisy baseline."""
    batches, _ = rollouts
    parts = [batches[i] for i in range(2)]
    values = torch.cat([p["advantages"][p["mask"]] for p in parts])
    assert values.mean().item() == pytest.approx(0, abs=1e-5)
    assert values.var(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert abs(parts[0]["advantages"][parts[0]["mask"]].mean().item()) > 1e-4

def test_the_value_head_does_not_hinder_the_policy_at_the_start(rollouts):
    """The head starts at zero, so its gradient does not reach the trunk at the start."""
    batches, args = rollouts
    loss_of(batches, batches[0], args)[0].backward()
    with_values = {n: p.grad.clone() for n, p in batches.agent.policy.named_parameters()}
    batches.agent.zero_grad()
    args.vf_coef = 0.0
    loss_of(batches, batches[0], args)[0].backward()
    for name, p in batches.agent.policy.named_parameters():
        assert torch.allclose(p.grad, with_values[name], atol=1e-7), name

@pytest.mark.parametrize("algo", ["ppo", pytest.param("rloo", marks=pytest.mark.slow)])
def test_a_run_has_what_every_run_has(here, tmp_path, algo, capsys):    # noqa: F811
    """The log has the usual names, the final table measures the reward, and the run can be evaluated again."""
    found = train_ppo.main([*FLAGS, "--algo", algo, "--out_dir", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "win rate against the reference" in said
    assert found["step"] == 8 and found["measures"]["after"]["reward"]
    logged = {metric for _, split, metric, _ in log_rows(tmp_path / "run") if split == "train"}
    names = {"objective/kl", "objective/scores", "policy/clipfrac", "policy/approxkl", "policy/ratio", "policy/entropy",
             "returns/mean"}
    assert names | ({"val/error"} if algo == "ppo" else set()) <= logged
    assert GPT.from_pretrained(tmp_path / "run")
    seen = {}
    for step, split, metric, value in log_rows(tmp_path / "run"):
        if split == "val":
            seen.setdefault(step, {})[metric] = value
    assert list(seen) == [0, 4, 8] and seen[0]["objective/kl"] == 0 < seen[8]["objective/kl"]
    for at in seen.values():    # the loss is minus the objective
        want = at["objective/scores"] - (1 - at["objective/eos"]) - 0.05 * at["objective/kl"]
        assert at["loss"] == pytest.approx(-want, abs=1e-5) == -at["objective/total"]

@pytest.mark.parametrize("algo", ["ppo", "grpo", *(pytest.param(name, marks=pytest.mark.slow)
                                                   for name in ("rloo", "dr_grpo", "dapo"))])
def test_a_run_goes_on_to_the_same_bytes(here, tmp_path, algo, monkeypatch):    # noqa: F811
    """A run stopped at the end of a rollout needs nothing of it to resume."""
    monkeypatch.setattr(train_ppo.eval, "main", lambda *args, **more: {})
    # with --target_kl beta is adapted, and must be part of the state
    flags = [*FLAGS, "--algo", algo, "--min_lr", "3e-3", "--target_kl", "0.1"]
    train_ppo.main([*flags, "--out_dir", str(tmp_path / "whole"), "--max_steps", "12"])
    train_ppo.main([*flags, "--out_dir", str(tmp_path / "cut"), "--max_steps", "8"])
    train_ppo.main(["--resume", "--out_dir", str(tmp_path / "cut"), "--max_steps", "12"])
    betas = {v for _, _, metric, v in log_rows(tmp_path / "whole") if metric == "objective/beta"}
    assert len(betas) >= 3
    assert (tmp_path / "cut" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert weights[0] == weights[1]

def test_a_run_interrupted_within_a_rollout_adapts_beta_once(here, tmp_path, monkeypatch):    # noqa: F811
    """
    beta is a function of completed rollouts. If it were adapted when a rollout is sampled, it would be adapted
    again when the rollout is sampled again.
    """
    real, steps = loop.train_step, []
    def step(*args, **more):
        steps.append(1)
        if len(steps) == 6:    # the second of the four updates of the second rollout
            signal.raise_signal(signal.SIGINT)
        return real(*args, **more)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop, "train_step", step)
        train_ppo.main([*FLAGS, "--target_kl", "0.1", "--max_steps", "12", "--out_dir", str(tmp_path / "run")])
    assert len(steps) == 6
    train_ppo.main(["--resume", "--out_dir", str(tmp_path / "run")])
    rows = [row for row in log_rows(tmp_path / "run") if row[1] == "train"]
    betas = {step: value for step, _, metric, value in rows if metric == "objective/beta"}
    kls = {step: value for step, _, metric, value in rows if metric == "objective/kl"}
    first = formulas.adaptive_beta(0.05, 0.0, 0.1, 32)
    assert [betas[i] for i in range(1, 9)] == pytest.approx([0.05] * 4 + [first] * 4)
    assert kls[6] != kls[7]    # sampled again, from the policy after update 6
    assert [betas[i] for i in range(9, 13)] == pytest.approx([formulas.adaptive_beta(first, kls[8], 0.1, 32)] * 4)

@pytest.mark.slow
def test_a_learned_reward_is_trained_if_there_is_none_and_the_true_one_is_measured(
        here, tmp_path, monkeypatch):    # noqa: F811
    """Both the proxy reward and the true one are measured. Over-optimization is the difference between them."""
    from rlhf import train_reward
    monkeypatch.chdir(here)
    real = train_reward.main
    short = ["--n_prompts", "40", "--max_steps", "4", "--eval_every", "4"]
    monkeypatch.setattr(train_reward, "main", lambda argv: real([*argv, *short]))
    flags = [f for f in FLAGS if f != "--true_reward"]
    train_ppo.main([*flags, "--out_dir", str(tmp_path / "run"), "--target_kl", "2"])
    assert Path("out/toy/reward/result.json").exists()
    measures = json.loads((tmp_path / "run" / "eval.json").read_text())["measures"]["after"]
    assert {"reward", "proxy", "win", "proxy_win"} <= set(measures) and measures["reward"] != measures["proxy"]
    rows = log_rows(tmp_path / "run")
    betas = [v for _, split, metric, v in rows if metric == "objective/beta" and split == "train"]
    assert betas[0] == pytest.approx(0.5)    # the default for a learned reward is larger
    assert betas[-1] < betas[0]    # the KL is below its target

@pytest.mark.parametrize("flags, words", [
    (["--data", "hh"], "toy and imdb"),
    (["--algo", "rloo", "--k", "1"], "--k 1"),
    (["--rollout", "100"], "--rollout 100"),
    (["--eval_every", "7"], "--eval_every 7"),
    (["--true_reward", "--reward", "x"], "--reward"),
    (["--dropout", "0.1"], "--dropout"),
    (["--prompt_tokens", "3"], "--prompt_tokens"),
    (["--data", "imdb", "--true_reward"], "--true_reward"),
    (["--data", "imdb", "--prompt_tokens", "8-2"], "--prompt_tokens 8-2"),
    (["--algo", "rloo", "--lam", "0.9"], "--lam has no effect on --algo rloo"),
    (["--algo", "grpo", "--gamma", "0"], "--gamma has no effect on --algo grpo"),
    (["--algo", "dapo", "--vf_coef", "0.1"], "--vf_coef has no effect on --algo dapo"),
    (["--algo", "dr_grpo", "--k", "1"], "--k 1: dr_grpo"),
    (["--algo", "dapo", "--clip", "0.3"], "--clip_high 0.28 must be at least --clip 0.3"),
    (["--algo", "grpo", "--kl_estimator", "k1"], "--kl_estimator k1 has no effect in the loss"),
    (["--kl", "loss", "--kl_estimator", "k1"], "--kl_estimator k1 has no effect in the loss"),
    (["--beta", "0", "--kl_estimator", "k2"], "--kl_estimator has no effect with --beta 0"),
    (["--algo", "grpo", "--beta", "0", "--kl", "reward"], "--kl has no effect with --beta 0"),
    (["--kl_estimator", "k4"], "k4"),
    (["--max_steps", "100"], "--max_steps"),
    (["--lam", "95"], "--lam"),
    (["--beta", "0", "--target_kl", "5"], "--target_kl"),
    (["--target_kl", "0"], "--target_kl"),
    (["--compile"], "--compile")])
def test_what_makes_no_sense_is_refused(flags, words, capsys, monkeypatch):
    """The error is one line, and comes before anything is trained."""
    monkeypatch.setattr(train_ppo, "train", lambda args: pytest.fail("it was not refused"))
    with pytest.raises(SystemExit) as end:
        train_ppo.main(flags)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and words in said

@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "rloo"])
def test_the_true_reward_is_learned(main_sft, tmp_path, algo):
    """
    The reward rises from about 0.5 to at least 0.9, at a KL of at most 15 nats, in two thirds of the default's
    updates.
    """
    flags = ["--init_from", str(main_sft), "--out_dir", str(tmp_path / "run"), "--max_steps", "160", "--n_show", "0"]
    found = train_ppo.main(["--true_reward", "--algo", algo, *flags])["measures"]
    assert found["before"]["reward"][0] < 0.55 and found["after"]["reward"][0] >= 0.9 and found["after"]["kl"][0] < 15
    assert math.isfinite(found["after"]["entropy"][0]) and found["after"]["eos"][0] > 0.95
