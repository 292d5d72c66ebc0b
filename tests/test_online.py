"""
Online methods: what successive rollouts draw, how their scores and validation are computed, and a run's log
recomputed by slow plain code.
"""
import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import sampling
import eval
import loop
import toy
from model import GPT, GPTConfig, ScalarGPT
from reward import Reward
from rlhf import train_ppo
from support import cli
from test_loop import log_rows

MAX_LEN, N_VAL = 24, 12    # prompts have 12 tokens, so completions at most 12

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """
    Folders "policy" and "reward" with random weights: a policy that ends a completion at about one token in six, and a
    reward model whose scores differ.
    """
    root = tmp_path_factory.mktemp("online")
    config = GPTConfig(block_size=64, vocab_size=toy.encoding().n_vocab, n_layer=1, n_head=2, n_embd=16)
    torch.manual_seed(0)
    policy, judge = GPT(config), ScalarGPT(config)
    with torch.no_grad():
        for p in (*policy.parameters(), *judge.parameters()):
            p += 0.1 * torch.randn_like(p)
        policy.transformer.ln_f.bias += 0.5
        policy.transformer.wte.weight[-1] = 0.5    # the logit of <|endoftext|> grows by 16 * 0.5 * 0.5
        judge.score.weight += torch.randn(1, 16)
    policy.save_pretrained(root / "policy")
    judge.save_pretrained(root / "reward")
    args = {"script": "rlhf/train_reward.py", "args": {"data": "toy"}}
    (root / "reward" / "args.json").write_text(json.dumps(args))
    return root

def flags_of(made, *more):
    return ["--init_from", str(made / "policy"), "--reward", str(made / "reward"), "--max_len", str(MAX_LEN),
            "--batch_size", "4", "--rollout", "8", "--n_prompts", "16", "--max_steps", "12", "--eval_every", "4",
            "--n_show", "0", "--lr", "1e-2", "--warmup_steps", "0", "--adam_epsilon", "1e-8", *more]

def rollouts(made, tokenizer, *more):
    """The Rollouts of a run, and its prompts."""
    args = train_ppo.get_args(flags_of(made, *more))
    agent, reference = (train_ppo.Agent(GPT.from_pretrained(made / "policy").eval(), beta) for beta in (args.beta, 0.0))
    prompts, room = sampling.prompts_for(args.data, tokenizer, args.n_prompts, N_VAL,
                                         max_len=args.max_len, seed=args.seed)
    reward = Reward(args.reward, tokenizer, MAX_LEN, "cpu", 4, nullcontext())
    flags = cli.flags_of(args, train_ppo.Rollouts)
    batches = train_ppo.Rollouts(agent, reference, tokenizer, prompts["train"], reward, room, autocast=nullcontext(),
                                 **flags)
    return batches, prompts

@pytest.fixture
def drawn(monkeypatch):
    """(prompts, answers, seed) of every call of sampling.sample_completions."""
    real, calls = sampling.sample_completions, []
    def sample(model, tokenizer, prompts, max_new_tokens, **more):
        answers = real(model, tokenizer, prompts, max_new_tokens, **more)
        calls.append((prompts, answers, more["seed"]))
        return answers
    monkeypatch.setattr(sampling, "sample_completions", sample)
    return calls

# ---------------------------------------------------------------------------------------------------------------------
# prompts and samples

@pytest.mark.parametrize("algo, k", [("ppo", 1), ("ppo", 2), ("rloo", 2)])
def test_rollouts_draw_other_prompts_and_other_noise(made, tokenizer, drawn, algo, k):
    """If the prompts were drawn only once, a run would train on 8 of thousands, and every curve would look normal."""
    batches, prompts = rollouts(made, tokenizer, "--algo", algo, "--k", str(k))
    per = 2 * 2    # minibatches, epochs
    for i in range(6 * per):
        batches[i]
    asked = [[tuple(p) for p in call[0]] for call in drawn]
    assert len(drawn) == 6
    assert all(len(a) == 8 and len(set(a)) == 8 // k for a in asked)    # a rollout has each of its prompts k times
    assert all(a == [p for p in a[::k] for _ in range(k)] for a in asked)    # the k samples of a prompt are adjacent
    assert len({frozenset(a) for a in asked}) == 6 and len({call[2] for call in drawn}) == 6
    assert set().union(*asked) <= {tuple(p) for p in prompts["train"]} and len(set().union(*asked)) > 8
    assert not {tuple(p) for p in prompts["train"]} & {tuple(p) for p in prompts["val"]}

def test_two_completions_of_a_prompt_differ(made, tokenizer, drawn):
    """
    With one noise for all k samples they are equal: RLOO's baseline is the sample's own reward, and every advantage
    is 0.
    """
    batches, _ = rollouts(made, tokenizer, "--algo", "rloo", "--k", "4")
    batch = batches[0]
    answers = [tuple(a) for a in drawn[0][1]]
    assert all(len(set(answers[at:at + 4])) > 1 for at in (0, 4))
    assert (batch["advantages"] != 0).all()

def test_the_same_prompts_are_answered_otherwise_at_another_number(made, tokenizer, drawn):
    """
    The seed of a rollout's samples depends on its number. With the run's seed alone, all rollouts would have the
    same noise.
    """
    batches, _ = rollouts(made, tokenizer)
    batches.prompts = batches.prompts[:1] * 8    # one prompt, so that only the noise can differ
    for i in (0, 4, 8, 4):
        batches[i]
    first, second, third, again = [answers for _, answers, _ in drawn]
    assert first != second != third != first
    assert again == second    # resuming needs the same samples for the same number

def test_other_seeds_draw_other_rollouts(made, tokenizer, drawn):
    """Three seeds of a study with the same prompts and noise would be one seed three times."""
    for seed in ("0", "1"):
        batches, _ = rollouts(made, tokenizer, "--seed", seed)
        batches.prompts = [[i] for i in range(300, 316)]
        batches[0]
    assert drawn[0][0] != drawn[1][0] and drawn[0][2] != drawn[1][2]

def test_every_completion_is_learned_from_once_an_epoch(made, tokenizer):
    """One minibatch twice and another never gives the same number of updates. Each epoch has its own order."""
    flags = "--epochs 4 --batch_size 2 --eval_every 16 --max_steps 64".split()
    batches, _ = rollouts(made, tokenizer, *flags)
    orders = set()
    for number in range(4):
        for epoch in range(4):
            parts = [id(batches[(number * 4 + epoch) * 4 + j]) for j in range(4)]
            assert sorted(parts) == sorted(map(id, batches.minibatches)), (number, epoch)
            numbers = list(map(id, batches.minibatches))
            orders.add(tuple(numbers.index(part) for part in parts))
    assert len(orders) > 4

def test_scores_are_the_reward_models_of_prompt_and_completion(made, tokenizer, drawn):
    """
    A reward model gives a score to the completion alone, at a padded place or before EOS too. Here: one unpadded
    text at a time.
    """
    batches, _ = rollouts(made, tokenizer, "--eos_penalty", "0.7")
    judge = ScalarGPT.from_pretrained(made / "reward").eval()
    batch = {}
    for part in (batches[0], batches[1]):
        for i, row in enumerate(part["idx"]):
            batch[tuple(row.tolist())] = part["returns"][i][part["mask"][i]]
    prompts, answers, _ = drawn[0]
    assert len({len(a) for a in answers}) > 2    # so that there is padding
    for prompt, answer in zip(prompts, answers):
        text = prompt + answer
        with torch.no_grad():
            score = judge(torch.tensor([text]))[0, -1].item()
        padded = lambda row, text=text: list(row[:len(text)]) == text and not any(row[len(text):])
        [returns] = [r for row, r in batch.items() if padded(row)]
        want = score - 0.7 * (answer[-1] != tokenizer.eot_token)    # values are 0, policy and reference are equal
        assert returns[-1].item() == pytest.approx(want, abs=1e-5) and len(returns) == len(answer)

def test_the_adapted_beta_is_that_of_the_next_rewards(made, tokenizer, drawn):
    """A beta that is adapted and logged controls nothing if the rewards keep the first one."""
    batches, _ = rollouts(made, tokenizer, "--beta", "0.3", "--target_kl", "0.5", "--gamma", "1", "--lam", "1")
    with torch.no_grad():
        batches.agent.policy.transformer.ln_f.bias += 0.3 * torch.randn(16)    # away from the reference
    want = 0.3
    for number in range(3):
        parts = [batches[number * 4 + j] for j in range(4)][:2]    # beta is adapted when a rollout is complete
        logged = parts[0]["logged"]
        assert logged["objective/beta"] == pytest.approx(want)
        kls = []
        for part in parts:
            with torch.no_grad():
                logps, ref_logps = (a(part["idx"], part["mask"])[0] for a in (batches.agent, batches.reference))
            kls += (logps - ref_logps).sum(1).tolist()
            inner = part["mask"].clone()
            for row in inner:    # without each completion's last token, which has the score too
                row[row.nonzero().max()] = False
            assert torch.allclose(part["rewards"][inner], -want * (logps - ref_logps)[inner], atol=1e-5)
        assert logged["objective/kl"] == pytest.approx(sum(kls) / 8, rel=1e-4)    # nats per completion, not per token
        error = max(-0.2, min(0.2, sum(kls) / 8 / 0.5 - 1))
        want *= 1 + error * 8 / 2000
    assert want != 0.3

def test_validation_is_comparable_over_time(made, tokenizer, drawn):
    """
    If prompts, noise or beta changed between evaluations, early stopping would choose the luckiest one, not the
    best.
    """
    batches, prompts = rollouts(made, tokenizer, "--beta", "0.3", "--target_kl", "0.5")
    held = train_ppo.HeldOut(batches, prompts["val"], 0.3)
    first = next(iter(held))["logged"]
    for i in range(5):    # a whole rollout in between adapts beta
        batches[i]
    assert batches.agent.beta.item() != pytest.approx(0.3)
    second = next(iter(held))["logged"]
    assert first == second and second["objective/beta"] == 0.3    # the policy is unchanged, so every bit must be equal
    assert drawn[0][0] == drawn[3][0] == prompts["val"] and drawn[0][2] == drawn[3][2]
    with torch.no_grad():
        batches.agent.policy.transformer.ln_f.bias += 0.3 * torch.randn(16)
    moved = next(iter(held))
    loss, metrics = train_ppo.compute_loss(batches.agent, moved, algo="ppo", clip=0.2, clip_high=0.2, vf_coef=0.1,
                                           kl="reward", kl_estimator="k1")
    want = metrics["objective/scores"] - (1 - metrics["objective/eos"]) - 0.3 * metrics["objective/kl"]
    assert loss.item() == pytest.approx(-want, rel=1e-5) and metrics["objective/kl"] != first["objective/kl"]

# ---------------------------------------------------------------------------------------------------------------------
# a run's log by hand: weights and samples are kept during the run, and every number is computed again one row at a time

class Kept:
    """Weights before each update and at each evaluation, samples, and minibatches in training order."""
    def __init__(self):
        self.before, self.batches, self.samples, self.val = [], [], {"train": [], "val": []}, []

@pytest.fixture(scope="module", params=["ppo", "rloo", "grpo", "dr_grpo", "dapo"])
def kept(request, made, tmp_path_factory):
    """(algo, run directory, args, what was kept) of three rollouts with two minibatches and two epochs each."""
    keep, out = Kept(), tmp_path_factory.mktemp(request.param) / "run"
    more = {
        "ppo": "--gamma 0.9 --lam 0.8 --vf_coef 0.5 --target_kl 0.2 --k 2",
        "rloo": "--algo rloo --k 2",
        "grpo": "--algo grpo --k 4 --kl_estimator k2",
        "dr_grpo": "--algo dr_grpo --k 2 --kl reward --kl_estimator k3",
        "dapo": "--algo dapo --k 4 --target_kl 0.2",
    }[request.param].split()
    flags = flags_of(made, *more, "--beta", "0.3", "--clip", "0.1", "--eos_penalty", "0.5", "--out_dir", str(out))
    with pytest.MonkeyPatch.context() as patch:
        real_prompts, real_sample, real_step = sampling.prompts_for, sampling.sample_completions, loop.train_step
        def fewer_prompts(name, tokenizer, n, n_val, **more):
            return real_prompts(name, tokenizer, n, N_VAL, **more)
        patch.setattr(sampling, "prompts_for", fewer_prompts)
        def sample(model, tokenizer, prompts, room, **more):
            answers = real_sample(model, tokenizer, prompts, room, **more)
            split = "val" if len(prompts) == N_VAL else "train"
            keep.samples[split].append([(list(p), list(a)) for p, a in zip(prompts, answers)])
            if split == "val":
                keep.val.append({k: x.clone() for k, x in model.state_dict().items()})
            return answers
        def step(model, compute_loss, batches, *args):
            keep.before.append({k: x.clone() for k, x in model.state_dict().items()})
            keep.batches.append(batches[0]["idx"].tolist())
            return real_step(model, compute_loss, batches, *args)
        patch.setattr(sampling, "sample_completions", sample)
        patch.setattr(loop, "train_step", step)
        patch.setattr(loop, "plot_curves", lambda folder: None)
        patch.setattr(eval, "main", lambda *args, **more: {})
        train_ppo.main(flags)
    return request.param, out, train_ppo.get_args(flags), keep

def slow_row(policy, head, prompt, answer):
    """(log-probs, values, entropies) of the tokens of one completion, as lists, by a forward pass of this row alone."""
    logps, values, entropies = [], [], []
    with torch.no_grad():
        states = policy.features(torch.tensor([prompt + answer]))[0]
        for t, token in enumerate(answer):
            state = states[len(prompt) - 1 + t]    # the state that predicts the token
            logits = (policy.transformer.wte.weight @ state).double().tolist()
            top = max(logits)
            norm = top + math.log(sum(math.exp(x - top) for x in logits))
            logps.append(logits[token] - norm)
            entropies.append(-sum(math.exp(x - norm) * (x - norm) for x in logits))
            values.append(float(head @ state))
    return logps, values, entropies

def slow_rows(made, weights, rows):
    """slow_row of every row with the weights of an Agent, or of the policy alone."""
    policy, head = GPT.from_pretrained(made / "policy").eval(), torch.zeros(16)
    if weights and "head.weight" in weights:
        head = weights["head.weight"][0]
        weights = {k.removeprefix("policy."): v for k, v in weights.items() if k.startswith("policy.")}
    if weights:
        policy.load_state_dict(weights)
    return [slow_row(policy, head, p, a) for p, a in rows]

def slow_scores(made, rows):
    judge = ScalarGPT.from_pretrained(made / "reward").eval()
    with torch.no_grad():
        return [judge(torch.tensor([p + a]))[0, -1].item() for p, a in rows]

def slow_objective(made, tokenizer, weights, rows, beta):
    """The log's numbers of these samples, and each row's slow_row, KL terms and judged score."""
    now, ref, scores = slow_rows(made, weights, rows), slow_rows(made, None, rows), slow_scores(made, rows)
    ended = [a[-1] == tokenizer.eot_token for _, a in rows]
    kls = [[x - y for x, y in zip(n[0], r[0])] for n, r in zip(now, ref)]
    judged = [s - 0.5 * (not e) for s, e in zip(scores, ended)]
    kl = np.mean([sum(k) for k in kls])
    objective = {
        "objective/kl": kl,
        "objective/scores": np.mean(scores),
        "objective/eos": np.mean(ended),
        "objective/beta": beta,
        "objective/total": np.mean(judged) - beta * kl,
    }
    return now, kls, judged, objective

def logged(out, split, step):
    return {metric: value for s, which, metric, value in log_rows(out) if (s, which) == (step, split)}

def test_the_validation_of_a_run_by_hand(kept, made, tokenizer):
    """
    The KL is in nats per completion, the score has no penalty, and the loss is minus the objective with the first
    beta.
    """
    algo, out, args, keep = kept
    assert len(keep.val) == 4
    for i in range(4):
        _, _, _, want = slow_objective(made, tokenizer, keep.val[i], keep.samples["val"][i], 0.3)
        want["loss"] = -want["objective/total"]
        assert logged(out, "val", 4 * i) == pytest.approx(want, rel=2e-4, abs=2e-5), i
        assert [p for p, _ in keep.samples["val"][i]] == [p for p, _ in keep.samples["val"][0]]
    assert abs(logged(out, "val", 12)["objective/kl"]) > 1e-3    # of 12 samples, so it may be negative

def slow_advantages(algo, rows, old, kls, judged, beta):
    """
    ([advantages per token, or one per completion], [returns, in the same way]) with gamma 0.9, lambda 0.8, groups
    of 2, or of 4 for grpo and dapo, which have no KL in the rewards. dr_grpo has k3 in them.
    """
    rewards = []
    for k, score in zip(kls, judged):
        rewards.append([-beta * (math.exp(-x) - 1 + x if algo == "dr_grpo" else x) for x in k])
        rewards[-1][-1] += score
    if algo in ("grpo", "dapo"):
        return slow_group(judged, 4, True), judged
    if algo == "dr_grpo":
        totals = [sum(r) for r in rewards]
        return slow_group(totals, 2, False), totals
    if algo == "rloo":
        totals = [sum(r) for r in rewards]
        return [x - totals[i + 1 if i % 2 == 0 else i - 1] for i, x in enumerate(totals)], totals
    advantages, returns = [], []
    for r, (_, values, _) in zip(rewards, old):
        deltas = [r[t] + 0.9 * (values[t + 1] if t + 1 < len(r) else 0.0) - values[t] for t in range(len(r))]
        advantages.append([sum((0.9 * 0.8) ** j * d for j, d in enumerate(deltas[t:])) for t in range(len(r))])
        returns.append([a + v for a, v in zip(advantages[-1], values)])
    flat = [a for row in advantages for a in row]    # of the whole rollout, completion tokens only
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in flat) / len(flat))
    return [[(a - mean) / deviation for a in row] for row in advantages], returns

def slow_group(totals, k, divide):
    """Each completion's total minus the mean of its group of k, divided by the group's standard deviation."""
    advantages = []
    for i, x in enumerate(totals):
        group = totals[i // k * k:i // k * k + k]
        mean = sum(group) / k
        deviation = math.sqrt(sum((y - mean) ** 2 for y in group) / k)
        advantages.append((x - mean) / (deviation + 1e-4 if divide else 1))
    return advantages

def clipped(ratio, advantage, high=0.1):
    return -min(ratio * advantage, max(0.9, min(1 + high, ratio)) * advantage)

def slow_group_update(algo, now, old, ref, advantages, returns, beta):
    """The log's numbers of one update of a group method: sums over tokens, one completion after the other."""
    high, n_tokens, n = 0.28 if algo == "dapo" else 0.1, sum(len(row[0]) for row in now), len(now)
    loss, penalty, ratios = 0.0, 0.0, []
    for row, before, base, advantage in zip(now, old, ref, advantages):
        weight = {"grpo": 1 / (n * len(row[0])), "dr_grpo": 1 / n, "dapo": 1 / n_tokens}[algo]
        for x, y, z in zip(row[0], before[0], base[0]):
            ratios.append(math.exp(x - y))
            loss += weight * clipped(ratios[-1], advantage, high)
            penalty += weight * ((x - z) ** 2 / 2 if algo == "grpo" else math.exp(z - x) - 1 - (z - x))
    found = {"policy/ratio": np.mean(ratios), "policy/clipfrac": np.mean([not 0.9 <= r <= 1 + high for r in ratios]),
             "returns/mean": np.mean(returns), "loss": loss}
    if algo != "dr_grpo":    # its KL is in the rewards
        found |= {"loss/kl": penalty, "loss": loss + beta * penalty}
    return found

def slow_update(algo, now, old, ref, advantages, returns, beta):
    """The log's numbers of one update, from its rows: clip 0.1, vf_coef 0.5."""
    logratios = [[x - y for x, y in zip(n[0], o[0])] for n, o in zip(now, old)]
    tokens = [x for row in logratios for x in row]
    found = {"policy/approxkl": np.mean([x * x for x in tokens]) / 2,
             "policy/entropy": np.mean([e for n in now for e in n[2]])}
    if algo in ("grpo", "dr_grpo", "dapo"):
        return found | slow_group_update(algo, now, old, ref, advantages, returns, beta)
    if algo == "rloo":
        ratios, gains = [math.exp(sum(row)) for row in logratios], advantages
        found["loss"] = np.mean([clipped(r, a) for r, a in zip(ratios, gains)])
        found["returns/mean"] = np.mean(returns)
    else:
        ratios, gains = [math.exp(x) for x in tokens], [a for row in advantages for a in row]
        errors, value_losses = [], []
        for n, o, target in zip(now, old, returns):
            for v, before, goal in zip(n[1], o[1], target):
                errors.append((v - goal) ** 2)
                near = before + max(-0.1, min(0.1, v - before))
                value_losses.append(max(errors[-1], (near - goal) ** 2) / 2)
        policy_loss = np.mean([clipped(r, a) for r, a in zip(ratios, gains)])
        value_loss = np.mean(value_losses)
        found |= {"loss/policy": policy_loss, "loss/value": value_loss, "val/error": np.mean(errors),
                  "loss": policy_loss + 0.5 * value_loss, "returns/mean": np.mean([x for row in returns for x in row])}
    found["policy/ratio"] = np.mean(ratios)
    found["policy/clipfrac"] = np.mean([abs(r - 1) > 0.1 for r in ratios])
    return found

def test_the_updates_of_a_run_by_hand(kept, made, tokenizer):
    """
    Every number that log.csv has of the updates of three rollouts, from the weights before each, without
    train_ppo.py.
    """
    algo, out, args, keep = kept
    beta, clips, betas = 0.3, [], []
    assert len(keep.before) == 12 and len(keep.samples["train"]) == 3
    for number in range(3):
        rows = keep.samples["train"][number]
        old, kls, judged, objective = slow_objective(made, tokenizer, keep.before[4 * number], rows, beta)
        advantages, returns = slow_advantages(algo, rows, old, kls, judged, beta)
        for j in range(4):
            update = 4 * number + j
            minibatch = keep.batches[update]    # padded texts
            halves = []
            for at in (0, 4):
                texts = [p + a for p, a in rows[at:at + 4]]
                if [row[:len(text)] for row, text in zip(minibatch, texts)] == texts:
                    halves.append(slice(at, at + 4))
            [part] = halves
            now, ref = slow_rows(made, keep.before[update], rows[part]), slow_rows(made, None, rows[part])
            want = objective | slow_update(algo, now, old[part], ref, advantages[part], returns[part], beta)
            found = logged(out, "train", update + 1)
            assert set(found) == set(want) | {"grad_norm", "lr"}
            assert {k: found[k] for k in want} == pytest.approx(want, rel=5e-4, abs=5e-5), (number, j)
            first = {"policy/ratio": 1.0, "policy/clipfrac": 0.0, "policy/approxkl": 0.0}
            # exactly so at a rollout's first update, and never after it
            assert ({k: found[k] for k in first} == first) == (j == 0)
            clips.append(found["policy/clipfrac"])
        betas.append(beta)
        if algo in ("ppo", "dapo"):    # adapted after the rollout, for the next one
            beta *= 1 + max(-0.2, min(0.2, objective["objective/kl"] / 0.2 - 1)) * 8 / 2000
    assert max(clips) > 0 and (len(set(betas)) == 3) == (algo in ("ppo", "dapo"))

def test_a_run_trains_on_training_prompts_and_validates_on_others(kept, tokenizer):
    """Prompts of training would show memorization. toy.split_of gives the split of a prompt."""
    _, _, _, keep = kept
    for split, samples in keep.samples.items():
        assert {toy.split_of(tokenizer.decode(prompt)) for rows in samples for prompt, _ in rows} == {split}

def test_the_entropy_is_in_nats_a_token(kept, made, tokenizer):
    """
    A sum over the completion would be ten times as large. A mean that includes the padding's zeros would be too
    small.
    """
    _, out, _, keep = kept
    found = [logged(out, "train", k)["policy/entropy"] for k in range(1, 13)]
    vocabulary = tokenizer.n_vocab
    assert 0.3 * math.log(vocabulary) < min(found) and max(found) < math.log(vocabulary)
    uniform = train_ppo.Agent(GPT.from_pretrained(made / "policy").eval(), 0.1)
    torch.nn.init.zeros_(uniform.policy.transformer.wte.weight)    # every token equally likely
    idx = torch.zeros(2, 6, dtype=torch.long)
    mask = torch.tensor([[False, True, True, False, False], [False, True, True, True, True]])
    entropies = uniform(idx, mask)[2]
    assert torch.allclose(entropies, math.log(vocabulary) * mask, atol=1e-5)
    assert train_ppo.masked_mean(entropies, mask).item() == pytest.approx(math.log(vocabulary), rel=1e-6)
