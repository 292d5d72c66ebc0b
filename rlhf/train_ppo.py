"""
PPO, RLOO and GRPO: train a policy on its own samples, with a reward and a KL penalty to the reference.

    python -m rlhf.train_ppo                  # the toy world, reward model out/toy/reward (trained first if missing)
    python -m rlhf.train_ppo --true_reward    # PPO-GT: the toy world's exact reward
    python -m rlhf.train_ppo --algo rloo --true_reward
    python -m rlhf.train_ppo --algo grpo      # or dr_grpo, dapo; rlhf/formulas.py says what their steps are

The objective is E[r(x, y)] - beta KL(policy || reference). Its optimum is reference * exp(r / beta) / Z
(arXiv:1909.08593).
DPO has the same optimum, but needs neither a reward model nor samples during training.

Here, training repeats five steps:

    1. sample      completions of training prompts from the current policy: a rollout
    2. score       every completion with the reward
    3. rewards     of tokens: a KL penalty at every token (PPO, RLOO), and the score at the last one
    4. advantages  PPO: GAE, with a value head. RLOO: return minus the mean return of the prompt's other completions.
                   GRPO: return minus the mean return of all of the prompt's completions, divided by their std
    5. update      several epochs over the rollout's minibatches, with a clipped loss (GRPO: plus a KL to the reference)

The policy gradient is E[sum_t A_t grad log policy(y_t | x, y_<t)]. A baseline in A_t leaves it unbiased if it does not
depend on y_t. The value head is a linear layer on the policy's last hidden states. It starts at zero. A rollout is
divided into minibatches once, and every epoch visits them in a new order. A minibatch keeps its padding and so its
rounding: in the rollout's first update the ratio of policy to old policy is exactly 1.

Writes the run directory out/<data>/<algo>. The validation loss is minus the objective on held-out prompts. A run that
was interrupted within a rollout samples this rollout again when it is resumed. docs/rlhf.md has the results.
Read first: rlhf/train_reward.py, rlhf/formulas.py, loop.py
"""
import os
import random
from pathlib import Path

import torch
import torch.nn as nn

import chat
import data
import eval
import loop
import page
import sampling
import train_sft
from measures import KL_ESTIMATORS, entropy
from model import GPT, fingerprint
from reward import Reward
from rlhf import train_reward
from rlhf.formulas import (
    METHODS, adaptive_beta, gae, group_advantages, grpo_loss, kl_loss, leave_one_out, masked_mean, ppo_loss, rloo_loss,
    token_rewards, whiten)
from support import cli, rundir, sources

# ---------------------------------------------------------------------------------------------------------------------
# flags

def get_args(argv=None):
    p = cli.Parser(__doc__)
    cli.add_common_flags(p)
    add_flags(p)
    args = p.parse_args(argv)
    if args.resume:
        args = cli.resume(p, args, argv, "rlhf/train_ppo.py", args.algo)
    refuse_flags_without_effect(p, args)
    fill_in_defaults(args)
    check_flags(p, args)
    cli.check_prompt_tokens(p, args)
    return args

def add_flags(p):
    """The flags of this script, and its defaults of the common ones."""
    p.add_argument("--algo", default="ppo", choices=tuple(METHODS),
                   help="ppo: value head, an advantage per token; others: one per completion (default: %(default)s)")
    p.add_argument("--reward", help="reward model, a run of rlhf.train_reward (default: out/DATA/reward)")
    p.add_argument("--true_reward", action="store_true", help="toy: use the exact reward instead of a reward model")
    p.add_argument("--prompt_tokens", help="imdb: tokens of a review that form a prompt, 32 or 2-8 (default: 32)")
    p.add_argument("--n_prompts", type=cli.positive, default=4096, help="training prompts (default: %(default)s)")
    p.add_argument("--rollout", type=cli.positive, default=256, help="completions in a rollout (default: %(default)s)")
    p.add_argument("--k", type=cli.positive, help="completions per prompt in a rollout (default: ppo 1, others 4)")
    p.add_argument("--epochs", type=cli.positive, default=2, help="passes over each rollout (default: %(default)s)")
    p.add_argument("--beta", type=cli.not_negative, help="weight of the KL penalty, in rewards per nat (default: 0.05; "
                   "0.5 for the learned reward of toy, which is in nats and not a probability). grpo, dapo with the KL "
                   "in the loss: in stds of a prompt's rewards per nat (default: 0.2)")
    p.add_argument("--kl", choices=("reward", "loss"), help="where the KL penalty is (default: ppo, rloo reward; "
                   "others loss)")
    p.add_argument("--kl_estimator", choices=tuple(KL_ESTIMATORS), help="estimator of the KL penalty; the gradient is "
                   "that of the KL with k1 in the reward and with k2 in the loss (default: reward k1, loss k3)")
    p.add_argument("--target_kl", type=cli.not_negative, help="KL in nats per completion; beta is adapted after each "
                   "rollout to reach it (default: beta is constant)")
    p.add_argument("--clip", type=cli.not_negative, default=0.2, help="eps of ratios and values (default: %(default)s)")
    p.add_argument("--clip_high", type=cli.not_negative, help="upper eps of ratios (default: --clip; dapo: 0.28)")
    p.add_argument("--gamma", type=cli.not_negative, help="ppo: discount per token (default: 1)")
    p.add_argument("--lam", type=cli.not_negative, help="ppo: lambda of GAE (default: 0.95)")
    p.add_argument("--vf_coef", type=cli.not_negative, help="ppo: weight of the value loss (default: 0.1)")
    p.add_argument("--eos_penalty", type=cli.not_negative, help="subtracted from the score of a completion without "
                   "EOS at its end (default: 1; 0 on imdb, where few reviews end within a completion)")
    p.add_argument("--n_show", type=cli.count, default=3, help="samples to print at the end (default: %(default)s)")
    p.set_defaults(lr=3e-3, warmup_steps=10, max_steps=240, eval_every=40, patience=0, adam_epsilon=None)

def refuse_flags_without_effect(p, args):
    """Exits in one line if a flag was given that does nothing here. A resumed run has the defaults as flags."""
    cli.refuse(p, args, (("prompt_tokens", args.data == "imdb", "without --data imdb"),
                         ("true_reward", args.data == "toy", "without --data toy"),
                         ("reward", not args.true_reward, "with --true_reward"),
                         ("dropout", False, "here: it would add noise to every ratio"),
                         ("n_val", False, "here"),
                         ("max_prompt_len", False, "here"),
                         ("grad_accum", args.grad_accum == 1, "here"),
                         ("compile", False, "here"),
                         ("kl", args.resume or args.beta != 0, "with --beta 0"),
                         ("kl_estimator", args.resume or args.beta != 0, "with --beta 0")))
    for flag in ("gamma", "lam", "vf_coef"):
        if args.algo != "ppo" and getattr(args, flag) is not None:    # cli.refuse would let 0 pass
            p.error(f"--{flag} has no effect on --algo {args.algo}, which has no value head")

def fill_in_defaults(args):
    """Sets the flags whose defaults depend on --algo, --data and the reward."""
    toy, method = args.data == "toy", METHODS[args.algo]
    defaults = {"k": 1, "gamma": 1.0, "lam": 0.95, "vf_coef": 0.1} if args.algo == "ppo" else {"k": 4}
    defaults["beta"] = 0.5 if toy and not args.true_reward else 0.05
    defaults["kl"] = method.kl
    in_loss = (args.kl or method.kl) == "loss"
    defaults["kl_estimator"] = "k3" if in_loss else "k1"
    if in_loss and method.std == "group":
        # The rewards are divided by their std and this KL is not. With the paper's 0.04 toy's policy goes too far.
        defaults["beta"] = 0.2
    defaults["clip_high"] = method.clip_high or args.clip
    defaults["eos_penalty"] = 1.0 if toy else 0.0
    defaults["adam_epsilon"] = 1e-3 if toy else 1e-8
    for flag, default in defaults.items():
        if getattr(args, flag) is None:
            setattr(args, flag, default)

def check_flags(p, args):
    """Exits in one line if the flags contradict each other."""
    updates = max(1, args.rollout // args.batch_size * args.epochs)
    divides = args.rollout % args.k == 0 and args.rollout % args.batch_size == 0 and args.batch_size % args.k == 0
    whole = args.eval_every % updates == 0 and args.max_steps % updates == 0
    in_range = (args.gamma or 0) <= 1 and (args.lam or 0) <= 1
    for ok, problem in (
            (int(os.environ.get("WORLD_SIZE", 1)) == 1, "it runs in one process; start it without torchrun"),
            (args.data in ("toy", "imdb"), f"--data {args.data}: only toy and imdb are supported"),
            (args.algo == "ppo" or args.k > 1,
             f"--k 1: {args.algo} compares several completions of a prompt; use at least 2"),
            (args.clip_high >= args.clip, f"--clip_high {args.clip_high} must be at least --clip {args.clip}"),
            (args.kl == "reward" or args.kl_estimator != "k1" or args.beta == 0,
             "--kl_estimator k1 has no effect in the loss, where its expected gradient is 0; use k2 or k3"),
            (divides, f"--rollout {args.rollout} must be a multiple of --batch_size {args.batch_size}, and "
                      f"--batch_size must be a multiple of --k {args.k}"),
            (whole, f"--eval_every {args.eval_every} and --max_steps {args.max_steps} must be multiples of {updates}, "
                    "the number of updates per rollout"),
            (in_range, "--gamma and --lam must be from 0 to 1"),
            (args.target_kl is None or args.target_kl * args.beta > 0,
             "--target_kl adapts --beta, and both must be larger than 0")):
        if not ok:
            p.error(problem)

# ---------------------------------------------------------------------------------------------------------------------
# the policy and its values

class Agent(nn.Module):
    """
    A policy, a value head on its last hidden states, and beta, the weight of the KL penalty.
    beta is a buffer: --target_kl changes it, so it is part of the training state that --resume reads.
    """
    def __init__(self, policy, beta):
        super().__init__()
        self.policy, self.head = policy, nn.Linear(policy.config.n_embd, 1, bias=False)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("beta", torch.tensor(beta))

    def forward(self, idx, mask):
        """
        idx (B, T + 1), mask (B, T) -> log-probs, values and entropies of the tokens idx[:, 1:], (B, T) each, 0 outside
        the mask. Log-probs and entropies are in nats. mask[:, t] belongs to the token idx[:, t + 1].
        """
        # hidden state t predicts token t + 1; only the M states before completion tokens go through the vocabulary
        states = self.policy.features(idx)[:, :-1][mask]                          # (M, C)
        log_p = self.policy.lm_head(states).float().log_softmax(-1)               # (M, V)
        logps = log_p.gather(1, idx[:, 1:][mask][:, None]).squeeze(1)             # (M,)
        values = self.head(states).float().squeeze(1)                             # (M,)
        entropies = entropy(log_p.detach())    # (M,), logged and not trained on
        zeros = torch.zeros(mask.shape, device=idx.device)                        # (B, T)
        return [zeros.masked_scatter(mask, x) for x in (logps, values, entropies)]

# ---------------------------------------------------------------------------------------------------------------------
# rollouts

class Rollouts:
    """
    The stream of minibatches for loop.fit: rollouts[i] is the minibatch of update i. The current policy samples a new
    rollout when all epochs over the last one are done.

    prompts   token lists to draw from
    score     function: token lists (prompt and completion) -> scores (n,), as a Reward
    room      tokens that a completion may have at most
    rollout   completions in a rollout, k per prompt, in minibatches of batch_size. Each is used in `epochs` updates
    """
    def __init__(self, agent, reference, tokenizer, prompts, score, room, *, algo, rollout, batch_size, k, epochs,
                 gamma, lam, eos_penalty, target_kl, kl, kl_estimator, seed, autocast):
        self.agent, self.reference, self.tokenizer, self.autocast = agent, reference, tokenizer, autocast
        self.prompts, self.score, self.room, self.seed = prompts, score, room, seed
        self.rollout, self.batch_size, self.k, self.epochs = rollout, batch_size, k, epochs
        self.algo, self.gamma, self.lam = algo, gamma, lam
        self.eos_penalty, self.target_kl, self.kl, self.kl_estimator = eos_penalty, target_kl, kl, kl_estimator
        self.per_epoch = rollout // batch_size    # minibatches
        self.updates = self.per_epoch * epochs    # updates from one rollout
        self.number = None                        # which rollout is in self.minibatches; None: none yet

    def __getitem__(self, i):
        # Update i belongs to rollout i // updates. Sample this rollout when its first minibatch is asked for.
        number, update = divmod(i, self.updates)
        if number != self.number:
            self.minibatches, self.objective = self.sample_rollout(number)
            self.number = number

        # The last minibatch completes the rollout, whose KL then sets the beta of the next one. Not earlier: a run that
        # is interrupted within a rollout samples it again, and would adapt a saved beta for the second time.
        if self.target_kl and update == self.updates - 1:
            beta, kl = self.objective["objective/beta"], self.objective["objective/kl"]
            self.agent.beta.fill_(adaptive_beta(beta, kl, self.target_kl, self.rollout))

        # Every epoch visits the minibatches in its own order, a function of seed, rollout and epoch.
        epoch, place = divmod(update, self.per_epoch)
        order = random.Random(f"epoch {self.seed} {number} {epoch}").sample(range(self.per_epoch), self.per_epoch)
        return self.minibatches[order[place]]

    def sample_rollout(self, number):
        """(minibatches with advantages and returns, objective) of rollout `number`, sampled from the current policy."""
        # Draw the prompts. Prompts and noise depend on seed and number alone, so that a resumed run draws the same.
        rng = random.Random(f"rollout {self.seed} {number}")
        distinct = rng.sample(self.prompts, self.rollout // self.k)
        prompts = []
        for prompt in distinct:
            prompts += [prompt] * self.k    # RLOO and GRPO need the k completions of a prompt next to each other

        # Sample and score. The rewards of tokens contain the KL penalty, with the current beta.
        minibatches, objective = self.sample_and_score(prompts, self.agent.beta.item(), seed=rng.randrange(2**31))

        # Advantages are computed once, with the values and log-probs of the policy that sampled.
        add_advantages(minibatches, algo=self.algo, k=self.k, gamma=self.gamma, lam=self.lam)
        return minibatches, objective

    @torch.no_grad()
    def sample_and_score(self, prompts, beta, seed):
        """Samples one completion per prompt: (minibatches with the rewards of tokens, objective and its parts)."""
        with self.autocast:
            completions = sampling.sample_completions(self.agent.policy, self.tokenizer, prompts, self.room, seed=seed)

        # A score is of prompt and completion together. A completion that was cut before EOS loses eos_penalty.
        texts = [prompt + completion for prompt, completion in zip(prompts, completions)]
        scores = torch.as_tensor(self.score(texts), dtype=torch.float32)                                  # (N,)
        ended = torch.tensor([completion[-1] == self.tokenizer.eot_token for completion in completions])  # (N,)
        penalized = scores - self.eos_penalty * ~ended                                                    # (N,)

        minibatches, logratios = [], []
        for at in range(0, len(prompts), self.batch_size):
            part = slice(at, at + self.batch_size)
            batch, sums = self.make_minibatch(prompts[part], completions[part], penalized[part], beta)
            minibatches.append(batch)
            logratios.append(sums)

        # E[log policy(y | x) - log reference(y | x)] over the policy's own samples is the KL, in nats per completion.
        kl = torch.cat(logratios).mean().item()
        objective = {"objective/kl": kl, "objective/scores": scores.mean().item(),
                     "objective/eos": ended.float().mean().item(), "objective/beta": beta,
                     "objective/total": penalized.mean().item() - beta * kl}
        for batch in minibatches:
            batch["logged"] = objective
        return minibatches, objective

    def make_minibatch(self, prompts, completions, scores, beta):
        """(minibatch with old log-probs, old values and rewards, log-ratios to the reference per completion (B,))."""
        rows = [{"prompt": prompt, "chosen": completion} for prompt, completion in zip(prompts, completions)]
        batch, device = data.collate(rows), self.agent.beta.device
        idx, mask = batch["idx"].to(device), batch["completion_mask"][:, 1:].to(device)    # (B, T + 1), (B, T)
        with self.autocast:
            logps, values, _ = self.agent(idx, mask)                                       # (B, T) each
            ref_logps, _, _ = self.reference(idx, mask)
        in_reward = beta if self.kl == "reward" else 0.0    # if not, the KL is in the loss
        rewards = token_rewards(scores.to(device), logps, ref_logps, mask, in_reward, self.kl_estimator)    # (B, T)
        minibatch = {"idx": idx, "mask": mask, "weight": len(idx), "old_logps": logps, "old_values": values,
                     "ref_logps": ref_logps, "rewards": rewards}
        return minibatch, (logps - ref_logps).sum(1)    # both are 0 outside the mask

def add_advantages(minibatches, *, algo, k, gamma, lam):
    """
    Adds "advantages" and "returns" to each minibatch of a rollout, and the mean return to what is logged.

    ppo     a number for each token, (B, T): GAE. The returns are the targets of the value head
    others  a number for each completion, (B,). Its return is the sum of its rewards

    Returns keep the unit of the rewards. Advantages are centered and divided as METHODS says. All minibatches share one
    dict of logged numbers; "returns/mean" is each minibatch's own.
    """
    method = METHODS[algo]
    for batch in minibatches:
        rewards, values, mask = batch["rewards"], batch["old_values"], batch["mask"]           # (B, T) each
        if method.baseline == "values":    # one number per token; the returns are the targets of the value head
            advantages = gae(rewards, values, mask, gamma=gamma, lam=lam)                      # (B, T)
            returns = advantages + values                                                      # (B, T)
            mean = masked_mean(returns, mask)
        else:    # one number per completion: its rewards sum to the score, minus beta * log-ratio if that is in them
            returns = rewards.sum(1)                                                           # (B,)
            mean = returns.mean()
            if method.baseline == "others":
                advantages = leave_one_out(returns, k)                                         # (B,)
            else:
                advantages = group_advantages(returns, k, std=method.std == "group")           # (B,)
        batch.update(advantages=advantages, returns=returns, logged=batch["logged"] | {"returns/mean": mean})

    # The returns were computed first: they keep the unit of the rewards, and only the advantages are whitened.
    if method.std == "rollout":
        whiten_rollout(minibatches)

def whiten_rollout(minibatches):
    """Whitens the advantages over all tokens of a rollout. The mean of one minibatch would be a noisy baseline."""
    # Minibatches are padded to different lengths, so join them as flat vectors and split them again.
    advantages = torch.cat([batch["advantages"].flatten() for batch in minibatches])
    mask = torch.cat([batch["mask"].flatten() for batch in minibatches])
    parts = whiten(advantages, mask).split([batch["mask"].numel() for batch in minibatches])
    for batch, part in zip(minibatches, parts):
        batch["advantages"] = part.view_as(batch["mask"])

class HeldOut:
    """
    The validation batches for loop.fit: a single one, which holds the objective on held-out prompts. All evaluations
    use the same noise and the same beta, that of the start, so that they can be compared.
    """
    def __init__(self, rollouts, prompts, beta):
        self.rollouts, self.prompts, self.beta = rollouts, prompts, beta

    def __iter__(self):
        _, objective = self.rollouts.sample_and_score(self.prompts, self.beta, seed=0)
        yield {"weight": len(self.prompts), "logged": objective}

# ---------------------------------------------------------------------------------------------------------------------
# training

def compute_loss(agent, batch, *, algo, clip, clip_high, vf_coef, kl, kl_estimator):
    """
    (loss (), metrics) of a minibatch of Rollouts. The loss of HeldOut's batch, without "idx", is minus the objective.

    agent   function of (idx, mask) -> log-probs, values and entropies of the current policy, (B, T) each
    batch   of make_minibatch and add_advantages. batch["logged"]["objective/beta"] is the beta of its rollout
    kl      "loss": the KL to the reference is added to the loss. "reward": it is in the rewards already

    METHODS says which loss a method has. The metrics are those logged for the rollout, those of the loss, "loss/kl" if
    the KL is in the loss, and the mean entropy of a token.
    """
    if "idx" not in batch:    # from HeldOut, which has computed the objective already
        return torch.tensor(-batch["logged"]["objective/total"]), batch["logged"]

    # Log-probs by the current policy, of the tokens that the old policy sampled at the start of the rollout. Their
    # ratio to the old log-probs says how far the policy has moved since. Advantages and returns are constants.
    mask, method = batch["mask"], METHODS[algo]
    logps, values, entropies = agent(batch["idx"], mask)    # (B, T) each
    shared = {"old_logps": batch["old_logps"], "advantages": batch["advantages"], "mask": mask, "clip": clip,
              "clip_high": clip_high}
    if method.baseline == "values":
        loss, metrics = ppo_loss(logps, values, old_values=batch["old_values"], returns=batch["returns"],
                                 vf_coef=vf_coef, **shared)
    elif method.ratio == "completion":
        loss, metrics = rloo_loss(logps, **shared)
    else:
        loss, metrics = grpo_loss(logps, mean=method.mean, **shared)

    # The beta is that of the rollout, also if --target_kl has adapted it for the next one already.
    if kl == "loss":
        penalty = kl_loss(logps, batch["ref_logps"], mask, method.mean, kl_estimator)
        loss = loss + batch["logged"]["objective/beta"] * penalty
        metrics["loss/kl"] = penalty.detach()
    return loss, batch["logged"] | metrics | {"policy/entropy": masked_mean(entropies, mask)}

def main(argv=None):
    """Trains and evaluates. Returns the results of loop.fit and the content of eval.json."""
    args = get_args(argv)
    with cli.interruptible("-m rlhf.train_ppo", args, argv):
        return train(args)

def train(args):
    """Everything after the flags are checked: load, train, evaluate."""
    with cli.bad_input():
        sources.check_source(args.data, args.data_dir, training=True)
        rundir.check_out_dir(args.out_dir, args.resume)
        args.init_from = args.init_from or train_sft.policy_for(**cli.flags_of(args, train_sft.policy_for))
        if not args.true_reward:
            args.reward = args.reward or reward_model_for(**cli.flags_of(args, reward_model_for))
        device, autocast = cli.set_up(**cli.flags_of(args, cli.set_up))
        # the policy starts as a copy of the reference
        policy, reference = (GPT.from_pretrained(args.init_from).to(device).eval() for _ in range(2))
        tokenizer = data.get_tokenizer(args.data, policy.config.vocab_size)
        cli.check_fits(policy, tokenizer, args.max_len, args.init_from)
        reward = Reward(args.reward, tokenizer, args.max_len, device, args.batch_size, autocast)
        prompts, room = sampling.prompts_for(args.data, tokenizer, args.n_prompts, n_val=256, max_len=args.max_len,
                                             seed=args.seed, data_dir=args.data_dir, prompt_tokens=args.prompt_tokens)
        if len(prompts["train"]) * args.k < args.rollout:
            raise ValueError(f"{len(prompts['train'])} prompts x {args.k} completions are fewer than --rollout "
                             f"{args.rollout}: lower --rollout or raise --n_prompts")
        rows = {split: [{"prompt": prompt} for prompt in part] for split, part in prompts.items()}
        out_dir = rundir.claim_run_dir(
            args, "rlhf/train_ppo.py", args.algo, reference_fingerprint=fingerprint(reference), reward=reward.name,
            data_fingerprint=data.fingerprint(rows), prompt_format=chat.prompt_format(rows["train"], tokenizer))

    policy.activation_checkpointing = args.activation_checkpointing
    agent, reference = Agent(policy, args.beta).to(device), Agent(reference, 0.0).to(device)
    rollouts = Rollouts(agent, reference, tokenizer, prompts["train"], reward, room, autocast=autocast,
                        **cli.flags_of(args, Rollouts))
    print(f"{args.algo} with {args.reward or 'the true reward'}, beta {args.beta}: {args.rollout} completions every "
          f"{rollouts.updates} updates, {len(prompts['train']):,} training prompts, {len(prompts['val']):,} validation "
          f"prompts; the reference is {args.init_from} -> {out_dir}")
    loss_flags = cli.flags_of(args, compute_loss)
    result = loop.fit(agent, lambda batch: compute_loss(agent, batch, **loss_flags), rollouts,
                      HeldOut(rollouts, prompts["val"], args.beta), save=policy.save_pretrained, autocast=autocast,
                      show=("objective/scores", "objective/kl"), go_on=cli.go_on(), **cli.flags_of(args, loop.fit))
    print()
    look = ["--run", str(out_dir), *cli.pass_on(args, "device", "dtype", "threads")]
    result |= eval.main([*look, "--show", str(args.n_show)], say=lambda line: None)
    page.main(look, say=lambda line: None)
    return result

def reward_model_for(data, *, device, dtype, threads, max_len, init_from):
    """
    The folder of the reward model of a data set. On toy it is trained, or resumed, if needed, with these flags.
    Raises ValueError if there is none on other data.
    """
    run = Path("out") / rundir.data_name(data) / "reward"
    if (run / "result.json").exists():
        return str(run)
    if data != "toy":
        raise ValueError(f"there is no finished reward model at {run}: train one with rlhf.train_reward, or use "
                         "--reward")
    print(f"there is no finished reward model at {run}: training it first\n")
    more = ["--resume"] if (run / "args.json").exists() else cli.words(max_len=max_len, init_from=init_from)
    train_reward.main([*cli.words(out_dir=run, device=device, dtype=dtype, threads=threads), *more])
    print()
    return str(run)

if __name__ == "__main__":
    main()
