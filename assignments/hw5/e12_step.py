"""
add_advantages and compute_loss: a step of PPO, RLOO, GRPO, Dr. GRPO and DAPO

From the rewards of a rollout to the loss of its minibatches: which advantage, which loss, and where the KL is.
"""
import numpy as np

from assignments.exercise import Mistake

TARGETS = ["rlhf/train_ppo.py:add_advantages", "rlhf/train_ppo.py:compute_loss"]
POINTS, MINUTES = 5, 75

def probes(rng):
    """A rollout of two minibatches with different widths for each method, and the KL in both places."""
    def minibatch(number, T, scale, first):
        starts, lens = rng.integers(0, 2, 4), rng.integers(1, T - 1, 4)
        lens[0] = T - starts[0]
        mask = (np.arange(T) >= starts[:, None]) & (np.arange(T) < (starts + lens)[:, None])
        draw = lambda s: s * rng.normal(0, 1, mask.shape) * mask
        logps = -rng.uniform(0.5, 3, mask.shape) * mask
        old = logps + draw(0.2)
        if first:    # the log-ratio of each first token: between two clips
            old[range(4), starts] = logps[range(4), starts] - first
        idx = rng.integers(5, 50, (4, T + 1))
        idx[0, 0] = number
        return dict(idx=idx, mask=mask, weight=4, old_logps=old, ref_logps=logps + draw(0.5),
                    old_values=draw(1.0), rewards=scale * draw(1.0) + scale * mask, logps=logps, values=draw(1.0),
                    entropies=np.abs(draw(1.0)))
    def rollout(title, algo, kl, estimator="k3", clip_high=0.2, first=0.0):
        return dict(title=title, algo=algo, kl=kl, estimator=estimator, clip_high=clip_high, clip=0.2, k=2,
                    gamma=float(rng.uniform(0.8, 0.95)), lam=float(rng.uniform(0.6, 0.9)),
                    vf_coef=float(rng.uniform(0.2, 0.8)), beta=float(rng.uniform(0.3, 0.6)),
                    other_beta=float(rng.uniform(0.7, 0.9)), total=float(rng.uniform(1, 2)),
                    minibatches=[minibatch(0, 5, 1.0, first), minibatch(1, 7, 3.0, first)])
    return [rollout("ppo", "ppo", "reward", "k1"), rollout("rloo", "rloo", "reward", "k1"),
            rollout("grpo", "grpo", "loss"), rollout("dr_grpo", "dr_grpo", "loss", "k2"),
            rollout("dapo", "dapo", "loss", clip_high=0.5, first=0.3), rollout("ppo, KL in the loss", "ppo", "loss"),
            rollout("rloo, KL in the loss", "rloo", "loss", "k2"), rollout("grpo, KL in the reward", "grpo", "reward")]

def run(module, probe):
    """Advantages, returns, losses, gradients in log-probs and values, and logged numbers of each minibatch."""
    import torch
    torch.set_default_dtype(torch.float64)
    class Agent:    # tables in the place of a model; idx says which
        beta = torch.tensor(probe["other_beta"])    # adapted already for the next rollout
        def __call__(self, idx, mask):
            table = probe["minibatches"][int(idx[0, 0])]
            assert torch.equal(mask, table["mask"]), "the mask is not that of the minibatch"
            return [table[name] * mask for name in ("logps", "values", "entropies")]
    logged = {"objective/beta": probe["beta"], "objective/kl": 1.5, "objective/total": probe["total"]}
    own = ("idx", "mask", "weight", "old_logps", "ref_logps", "old_values", "rewards")
    batches = [{name: batch[name] for name in own} | {"logged": logged} for batch in probe["minibatches"]]
    found, method = {}, {name: probe[name] for name in ("algo", "k", "gamma", "lam")}
    shapes_differ = lambda: probe["algo"] == "ppo" and any(
        batch["returns"].shape != batch["mask"].shape for batch in batches if "returns" in batch)
    try:
        module.add_advantages(batches, **method)
        if shapes_differ():
            return {"returns_0": batches[0]["returns"]}    # no loss can be computed from them
        for i, batch in enumerate(batches):
            found |= {f"advantages_{i}": batch["advantages"], f"returns_{i}": batch["returns"],
                      f"mean_return_{i}": torch.as_tensor(batch["logged"].get("returns/mean", -1.0)).double()}
    except NotImplementedError:    # so that compute_loss can be seen alone
        for batch in batches:
            shape = batch["mask"].shape if probe["algo"] == "ppo" else batch["mask"].shape[:1]
            batch |= {"advantages": torch.linspace(-1, 1, shape.numel()).view(shape), "returns": torch.ones(shape)}
    except RuntimeError:    # the mean of such returns over tokens
        if shapes_differ():
            return {"returns_0": batches[0]["returns"]}
        raise
    flags = {name: probe[name] for name in ("algo", "clip", "clip_high", "vf_coef", "kl")}
    flags["kl_estimator"] = probe["estimator"]
    try:
        for i, batch in enumerate(batches):
            tables = [probe["minibatches"][i][name].requires_grad_() for name in ("logps", "values")]
            loss, metrics = module.compute_loss(Agent(), batch, **flags)
            found[f"loss_{i}"] = loss
            with_all = loss + sum(0 * table.sum() for table in tables)
            found[f"grad_logps_{i}"], found[f"grad_values_{i}"] = torch.autograd.grad(with_all, tables)
            for name in ("policy/entropy", "loss/kl", "policy/ratio", "objective/kl"):
                found[f"{name}_{i}"] = torch.as_tensor(metrics.get(name, -1.0)).detach().double()
            found[f"metrics_have_no_graph_{i}"] = not any(getattr(x, "requires_grad", False) for x in metrics.values())
        held_out, metrics = module.compute_loss(Agent(), {"weight": 4, "logged": logged}, **flags)
        found |= {"held_out": held_out, "held_out_kl": metrics["objective/kl"]}
    except NotImplementedError:
        if "returns_0" not in found:
            raise
    return found

WHITEN, TARGET, SUM = "whiten_rollout(minibatches)", "returns = advantages + values", "returns = rewards.sum(1)"
LOGGED = 'batch.update(advantages=advantages, returns=returns, logged=batch["logged"] | {"returns/mean": mean})'
OTHERS, DIVIDES = 'if method.baseline == "others":', 'std=method.std == "group")'
PENALTY = 'penalty = kl_loss(logps, batch["ref_logps"], mask, method.mean, kl_estimator)'
ADDED, IN_LOSS = 'loss = loss + batch["logged"]["objective/beta"] * penalty', 'if kl == "loss":'
OLD, ADVANTAGES = '"old_logps": batch["old_logps"]', '"advantages": batch["advantages"]'
MEAN, WHOLE = "grpo_loss(logps, mean=method.mean, **shared)", 'elif method.ratio == "completion":'
GAE = "gae(rewards, values, mask, gamma=gamma, lam=lam)"
ROLLOUT, RETURN, METHOD, PLACE = "Whitening a rollout", "What a return is", "Background", "Where the KL is"
OLD_POLICY, LOG = "Background", "What a step logs"
BY_HAND, WHOLE_BATCH = "test_ppo.py::test_advantages_and_returns_by_hand", \
    "test_ppo.py::test_advantages_are_whitened_over_the_whole_batch"
UPDATES = "test_online.py::test_the_updates_of_a_run_by_hand"
NOISE = "Join the advantages of all minibatches. Are mean and variance over the tokens of completions 0 and 1? And " \
    "those of one minibatch?"
UNIT = "What should the value head predict, and in which unit? Multiply all rewards and values by 10 and look at the " \
    "returns."
BY_MINIBATCH = 'for batch in minibatches:\n            batch["advantages"] = whiten(batch["advantages"], batch["mask"])'
MISTAKES = {
    "whitened by minibatch": Mistake(((WHITEN, BY_MINIBATCH),), NOISE, ROLLOUT, WHOLE_BATCH,
        "With --algo ppo each minibatch has advantages with mean 0 and variance 1, also one whose completions are all "
        "better than those of the other minibatches."),
    "not whitened": Mistake(((WHITEN, "pass"),),
        "Multiply all rewards and values by 10. Do PPO's advantages change?", ROLLOUT, WHOLE_BATCH,
        "With --algo ppo the advantages grow with the unit of the reward."),
    "returns of whitened advantages": Mistake(((WHITEN, WHITEN + '\n        for batch in minibatches:\n'
        '            batch["returns"] = batch["advantages"] + batch["old_values"]\n'
        '            mean = masked_mean(batch["returns"], batch["mask"])\n'
        '            batch["logged"] = batch["logged"] | {"returns/mean": mean}'),),
        UNIT, RETURN, UPDATES,
        "With --algo ppo returns/mean stays near 0, though objective/scores is far from 0."),
    "a minibatch is whitened before its returns": Mistake((
        (TARGET, "advantages = whiten(advantages, mask)\n            returns = advantages + values"), (WHITEN, "pass")),
        UNIT, RETURN, UPDATES),
    "returns of whitened advantages, logged before": Mistake(((WHITEN, WHITEN + '\n        for batch in minibatches:\n'
        '            batch["returns"] = batch["advantages"] + batch["old_values"]'),), UNIT, RETURN, UPDATES),
    "ppo's return is the sum of the rewards": Mistake(
        ((TARGET, "returns = rewards.sum(1)"), ("mean = masked_mean(returns, mask)", "mean = returns.mean()")),
        "Print the shape of the returns, for ppo and for rloo. In PPO returns are (B, T): a target for each value.",
        RETURN, BY_HAND),
    "the return is the advantage": Mistake(((TARGET, "returns = advantages"),),
        "With lam = 1 and gamma = 1, which number is advantage plus value?", RETURN, BY_HAND),
    "values are subtracted": Mistake(((TARGET, "returns = advantages - values"),),
        "With lam = 1 and gamma = 1, which number is advantage plus value?", RETURN, BY_HAND),
    "the mean reward of a token": Mistake(((SUM, "returns = rewards.sum(1) / mask.sum(1)"),),
        "A score comes at the last token only. Should a long completion with the same score have a smaller return?",
        RETURN, UPDATES, "With --algo rloo a long completion has a smaller return than a short one of the same score."),
    "the last reward only": Mistake(
        ((SUM, "last = (mask * torch.arange(mask.shape[1])).argmax(1, keepdim=True)\n"
               "            returns = rewards.gather(1, last).squeeze(1)"),),
        "Where are the KL penalties of the tokens before the last one?", RETURN, UPDATES,
        "With --algo rloo the KL penalty of the last token is the only one that counts."),
    "gamma and lam exchanged": Mistake(((GAE, "gae(rewards, values, mask, gamma=lam, lam=gamma)"),),
        "Which of the two numbers discounts rewards? Try lam = 0.", RETURN, BY_HAND),
    "the two baselines exchanged": Mistake(((OTHERS, 'if method.baseline == "group":'),),
        "Print METHODS. Which method has which baseline?", METHOD, BY_HAND),
    "every group is divided by its std": Mistake(((DIVIDES, "std=True)"),),
        "Which of grpo, dr_grpo and dapo divide? Compare their advantages on the same rewards.", METHOD, UPDATES,
        "--algo dr_grpo has advantages of about 1, whatever the unit of the reward is."),
    "no group is divided by its std": Mistake(((DIVIDES, "std=False)"),),
        "Which of grpo, dr_grpo and dapo divide? Compare their advantages on the same rewards.", METHOD, UPDATES),
    "the mean of grpo for all": Mistake(((MEAN, 'grpo_loss(logps, mean="completions", **shared)'),),
        "Print METHODS. In what do grpo, dr_grpo and dapo differ, and where does your loss differ?", METHOD, UPDATES,
        "--algo dapo weighs a token of a long completion less than one of a short completion."),
    "the mean of grpo for dapo": Mistake(
        (('mask, method = batch["mask"], METHODS[algo]',
          'mask, method = batch["mask"], METHODS["grpo" if algo == "dapo" else algo]'),),
        "Print METHODS. In what do grpo, dr_grpo and dapo differ, and where does your loss differ?", METHOD, UPDATES),
    "rloo's loss for dr_grpo": Mistake(((WHOLE, 'elif method.mean == "sums":'),),
        "Print METHODS. Which methods have a ratio for each completion?", METHOD, UPDATES,
        "--algo dr_grpo clips completions as wholes, as --algo rloo does."),
    "clip_high is not passed on": Mistake((('"clip_high": clip_high}', '"clip_high": clip}'),),
        "Try clip_high = 0.5 with dapo. Does the loss change?", METHOD, UPDATES,
        "--clip_high has no effect on any method."),
    "vf_coef is not used": Mistake((("vf_coef=vf_coef, **shared", "vf_coef=1.0, **shared"),),
        "Try vf_coef = 0 with ppo. Is the gradient in the values 0?", METHOD, UPDATES),
    "the sign of the penalty": Mistake(((ADDED, ADDED.replace("loss + ", "loss - ")),),
        "Training minimizes the loss. Does a policy far from its reference have a larger loss?", PLACE, UPDATES,
        "With --algo grpo a larger --beta leads to a larger KL."),
    "the KL in both places": Mistake(((IN_LOSS, "if True:"),),
        "With kl = \"reward\" the KL is in the rewards already. Compare your loss for both settings.", PLACE, UPDATES,
        "With --algo rloo loss/kl is logged and added to the loss, though the KL is in its rewards."),
    "no KL in the loss": Mistake(((IN_LOSS, "if False:"),),
        "Try two values of beta with kl = \"loss\". Does your loss change?", PLACE, UPDATES,
        "--beta has no effect on the policy that --algo grpo trains."),
    "beta of the next rollout": Mistake(((ADDED, "loss = loss + agent.beta * penalty"),),
        "--target_kl changes agent.beta while the last minibatch of a rollout is drawn. Which beta had the rollout?",
        PLACE, "", "With --target_kl the last update of each rollout has another beta in its loss than the others."),
    "beta left out": Mistake(((ADDED, "loss = loss + penalty"),),
        "Try two values of beta with kl = \"loss\". Does your loss change?", PLACE, UPDATES),
    "the KL to the old policy": Mistake(((PENALTY, PENALTY.replace("ref_logps", "old_logps")),),
        "Which policy should hold the trained one back for the whole run: that of the last rollout?", PLACE, UPDATES,
        "With --algo grpo loss/kl is 0 at the first update of every rollout."),
    "from the reference to the policy": Mistake(
        ((PENALTY, PENALTY.replace('logps, batch["ref_logps"]', 'batch["ref_logps"], logps')),),
        "Which of the two has drawn the samples? Compare the order of kl_loss's arguments.", PLACE, UPDATES),
    "always k3": Mistake(((PENALTY, PENALTY.replace("kl_estimator", '"k3"')),),
        "Is your penalty different for k2 and k3?", PLACE, UPDATES),
    "the KL's mean over tokens for all": Mistake(((PENALTY, PENALTY.replace("method.mean", '"tokens"')),),
        "Policy loss and penalty of a token should have the same weight. Have they, with dr_grpo?", PLACE, UPDATES),
    "the ratio is always 1": Mistake(((OLD, '"old_logps": logps.detach()'),),
        "Which policy has drawn the samples? What is policy/ratio at the second update of a rollout?", OLD_POLICY,
        UPDATES, "policy/clipfrac is 0 at every update, whatever --clip is."),
    "advantages by the current values": Mistake(((ADVANTAGES,
        '"advantages": batch["returns"] - values if method.baseline == "values" else batch["advantages"]'),),
        "Are advantages constants of the rollout, or do they change with each update? Which gradient does the policy "
        "loss give to the value head?", OLD_POLICY, UPDATES),
    "old values by the current policy": Mistake((('old_values=batch["old_values"]', "old_values=values.detach()"),),
        "The step of a value is clipped. From which value does the step begin?", OLD_POLICY, UPDATES),
    "one dict for all minibatches": Mistake(((LOGGED, 'batch["logged"]["returns/mean"] = mean\n'
        '        batch.update(advantages=advantages, returns=returns)'),),
        "Print `returns/mean` of each minibatch. All minibatches of a rollout share the dict batch[\"logged\"].", LOG,
        UPDATES, "returns/mean in the log is the same number at all updates of a rollout."),
    "the mean return of all places": Mistake((("mean = masked_mean(returns, mask)", "mean = returns.mean()"),),
        "Does the logged mean of the returns change with the padding?", LOG, UPDATES),
    "the entropy of all places": Mistake((("masked_mean(entropies, mask)", "entropies.mean()"),),
        "Does the logged entropy change with the padding?", LOG, UPDATES,
        "The logged entropy is far below that of the same policy in eval.py."),
    "the held-out objective, not minus it": Mistake(
        ((('torch.tensor(-batch["logged"]["objective/total"])'), 'torch.tensor(batch["logged"]["objective/total"])'),),
        "The best weights are those with the smallest validation loss. Is the best policy the one with the smallest "
        "objective?", LOG, "", "The weights that are kept are those of the worst evaluation."),
    "the penalty is logged with its graph": Mistake(
        (('metrics["loss/kl"] = penalty.detach()', 'metrics["loss/kl"] = penalty'),),
        "Print `requires_grad` of each metric. What does a logged number hold on to?", LOG, ""),
}
ALTERNATIVES = {
    "by the names of the methods": '''
def add_advantages(minibatches, *, algo, k, gamma, lam):
    if algo == "ppo":
        raw = [gae(b["rewards"], b["old_values"], b["mask"], gamma, lam) for b in minibatches]
        flat = torch.cat([a[b["mask"]] for a, b in zip(raw, minibatches)])
        mean, deviation = flat.mean(), (flat.var(correction=0) + 1e-8).sqrt()
        for a, b in zip(raw, minibatches):
            b["returns"] = a + b["old_values"]
            b["advantages"] = torch.where(b["mask"], (a - mean) / deviation, 0.0)
            b["logged"] = {**b["logged"], "returns/mean": b["returns"][b["mask"]].mean()}
        return
    for b in minibatches:
        returns = b["rewards"].sum(-1)
        advantages = leave_one_out(returns, k) if algo == "rloo" else group_advantages(returns, k, algo != "dr_grpo")
        b["returns"], b["advantages"] = returns, advantages
        b["logged"] = {**b["logged"], "returns/mean": sum(returns) / len(returns)}

def compute_loss(agent, batch, *, algo, clip, clip_high, vf_coef, kl, kl_estimator):
    logged = dict(batch["logged"])
    if batch.get("idx") is None:
        return -torch.tensor(float(logged["objective/total"])), logged
    logps, values, entropies = agent(batch["idx"], batch["mask"])
    old, advantages, mask = batch["old_logps"], batch["advantages"], batch["mask"]
    mean = {"ppo": "tokens", "dapo": "tokens", "grpo": "completions"}.get(algo, "sums")
    if algo == "ppo":
        loss, metrics = ppo_loss(logps, values, old_logps=old, old_values=batch["old_values"], advantages=advantages,
                                 returns=batch["returns"], mask=mask, clip=clip, clip_high=clip_high, vf_coef=vf_coef)
    elif algo == "rloo":
        loss, metrics = rloo_loss(logps, old_logps=old, advantages=advantages, mask=mask, clip=clip,
                                  clip_high=clip_high)
    else:
        loss, metrics = grpo_loss(logps, old_logps=old, advantages=advantages, mask=mask, clip=clip, mean=mean,
                                  clip_high=clip_high)
    logged.update(metrics)
    if kl != "reward":
        logged["loss/kl"] = kl_loss(logps, batch["ref_logps"], mask, mean, kl_estimator).detach()
        loss = loss + logged["objective/beta"] * kl_loss(logps, batch["ref_logps"], mask, mean, kl_estimator)
    logged["policy/entropy"] = entropies[mask].mean()
    return loss, logged
''',
    "without the losses of formulas.py": '''
def add_advantages(minibatches, *, algo, k, gamma, lam):
    per_token = METHODS[algo].baseline == "values"
    for b in minibatches:
        if per_token:
            advantages, later, value = [], 0.0, 0.0
            for t in range(b["mask"].shape[1] - 1, -1, -1):
                inside = b["mask"][:, t].double()
                later = inside * (b["rewards"][:, t] + gamma * value - b["old_values"][:, t] + gamma * lam * later)
                value = inside * b["old_values"][:, t]
                advantages.insert(0, later)
            b["advantages"] = torch.stack(advantages, 1)
            b["returns"] = b["advantages"] + b["old_values"]
            mean = (b["returns"] * b["mask"]).sum() / b["mask"].sum()
        else:
            b["returns"] = (b["rewards"] * b["mask"]).sum(1)
            table = b["returns"].reshape(-1, k)
            centered = table - table.mean(1, keepdim=True)
            if algo == "rloo":
                centered = centered * k / (k - 1)
            if algo in ("grpo", "dapo"):
                centered = centered / (1e-4 + (centered ** 2).mean(1, keepdim=True).sqrt())
            b["advantages"], mean = centered.flatten(), b["returns"].mean()
        b["logged"] = dict(b["logged"])
        b["logged"]["returns/mean"] = mean
    if per_token:
        whiten_rollout(minibatches)

def compute_loss(agent, batch, *, algo, clip, clip_high, vf_coef, kl, kl_estimator):
    logged = batch["logged"]
    if "idx" not in batch:
        return torch.tensor(-logged["objective/total"]), logged
    mask, a = batch["mask"], batch["advantages"]
    logps, values, entropies = agent(batch["idx"], mask)
    steps = logps - batch["old_logps"]
    if algo == "rloo":
        ratio = steps.sum(1).exp()
    else:
        ratio, a = steps.exp(), a if algo == "ppo" else a[:, None].expand(mask.shape)
    losses = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip_high))
    lens = mask.sum(1, keepdim=True)
    weights = {"ppo": mask / lens.sum(), "dapo": mask / lens.sum(), "grpo": mask / lens / len(mask)}.get(
        algo, mask / len(mask))
    loss = losses.mean() if algo == "rloo" else (weights * losses).sum()
    if algo == "ppo":
        near = batch["old_values"] + (values - batch["old_values"]).clamp(-clip, clip)
        errors = torch.maximum((values - batch["returns"]) ** 2, (near - batch["returns"]) ** 2)
        loss = loss + vf_coef * 0.5 * (errors * mask).sum() / mask.sum()
    inside = torch.ones_like(ratio) if algo == "rloo" else mask
    metrics = {"policy/ratio": ((ratio * inside).sum() / inside.sum()).detach()}
    if kl == "loss":
        x = logps - batch["ref_logps"]
        penalty = ({"k1": x, "k2": x ** 2 / 2, "k3": torch.exp(-x) - 1 + x}[kl_estimator] * weights).sum()
        loss, metrics["loss/kl"] = loss + logged["objective/beta"] * penalty, penalty.detach()
    metrics["policy/entropy"] = (entropies * mask).sum() / mask.sum()
    return loss, {**logged, **metrics}
''',
}
HIDDEN = ("DPO has the same optimum",)
REMOVED = ()
SHARED = (WHITEN,)    # the head of its def
VARIANTS = {
    "whitened by minibatch": (
        (WHITEN, BY_MINIBATCH),
        ("Advantages are centered and divided as METHODS says. All minibatches",
         "PPO's advantages are whitened over each minibatch alone. All minibatches")),
    "beta of the agent": (
        (ADDED, "loss = loss + agent.beta * penalty"),
        ('batch["logged"]["objective/beta"] is the beta of its rollout', "A KL in the loss has the weight agent.beta")),
}
