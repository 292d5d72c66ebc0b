"""
RLHF's last step, which DPO replaces: the policy samples, a reward judges, and the policy's gradient goes where the reward is.

    python -m rlhf.train_ppo                         # the toy world, rewards from out/toy/reward, which is trained if there is none yet
    python -m rlhf.train_ppo --true_reward           # PPO-GT: by the toy world's exact reward
    python -m rlhf.train_ppo --algo rloo --true_reward

    objective         E[r(x, y)] - beta KL(policy || reference), whose optimum is reference * exp(r / beta) / Z         arXiv:1909.08593
    reward of token t -beta (log policy(y_t) - log reference(y_t)), and at the last one r(x, y), less a penalty if that is not EOS
    policy gradient   grad J = E[sum_t A_t grad log policy(y_t | x, y_<t)]: any baseline that does not see y_t leaves it unbiased
    advantage (GAE)   A_t = sum_l (gamma lam)^l delta_{t+l},  delta_t = r_t + gamma V_{t+1} - V_t                       arXiv:1506.02438
    PPO-clip          L = -mean_t min(ratio_t A_t, clip(ratio_t, 1 - eps, 1 + eps) A_t), ratio = policy / old      arXiv:1707.06347
    values            L = mean_t max((V - R)^2, (old V + clip(V - old V, -eps, eps) - R)^2) / 2,  R = A + old V
    RLOO              L = -mean_i (R_i - mean of the other k - 1 samples of its prompt) log policy(y_i), R_i all rewards of its tokens,
                      here with PPO's clipped ratio of whole completions; no value head                                arXiv:2402.14740

The value head stands on the policy's trunk and starts at zero. A batch of samples is divided into minibatches once, and each epoch goes
through them in another order, so that at the first the ratio is exactly 1. Writes out/<data>/<algo>, a run as any other; its validation
loss is minus the objective on held-out prompts. After Ctrl-C the batch in progress is sampled again. Read first: train_reward.py, loop.py
"""
import os
import random
from pathlib import Path

import torch
import torch.nn as nn

import chat
from support import cli, rundir, sources
import data
import sampling
import eval
import loop
import train_sft
from model import GPT, fingerprint
from reward import Reward
from rlhf import train_reward

def get_args(argv=None):
    p = cli.Parser(__doc__)
    cli.add_common_flags(p)
    p.add_argument("--algo", default="ppo", choices=("ppo", "rloo"), help="(default: %(default)s)")
    p.add_argument("--reward", help="a run of rlhf.train_reward (default: out/DATA/reward)")
    p.add_argument("--true_reward", action="store_true", help="toy: the exact reward in place of a learned one")
    p.add_argument("--prompt_tokens", help="imdb: a prompt is so many tokens of a review, as 32 or 2-8 (default: 32)")
    p.add_argument("--n_prompts", type=cli.positive, default=4096, help="training prompts (default: %(default)s)")
    p.add_argument("--rollout", type=cli.positive, default=256, help="completions between two samplings (default: %(default)s)")
    p.add_argument("--k", type=cli.positive, help="completions of a prompt in a batch (default: 1 for ppo, 4 for rloo)")
    p.add_argument("--epochs", type=cli.positive, default=2, help="times that each completion is learned from (default: %(default)s)")
    p.add_argument("--beta", type=cli.not_negative, help="weight of the KL, in rewards a nat (default: 0.05; 0.5 by toy's learned reward, "
                   "which is in nats and not a probability)")
    p.add_argument("--target_kl", type=cli.not_negative, help="nats a completion, to which beta is adapted (default: beta stays)")
    p.add_argument("--clip", type=cli.not_negative, default=0.2, help="eps, of ratios and values (default: %(default)s)")
    p.add_argument("--gamma", type=cli.not_negative, help="for ppo: discount a token (default: 1)")
    p.add_argument("--lam", type=cli.not_negative, help="for ppo: lambda of GAE (default: 0.95)")
    p.add_argument("--vf_coef", type=cli.not_negative, help="for ppo: weight of the value loss (default: 0.1)")
    p.add_argument("--eos_penalty", type=cli.not_negative, help="reward lost without an EOS at the end (default: 1; on imdb 0, as few "
                   "reviews end within a completion)")
    p.add_argument("--n_show", type=cli.count, default=3, help="samples to print at the end (default: %(default)s)")
    p.set_defaults(lr=3e-3, warmup_steps=10, max_steps=240, eval_every=40, patience=0, adam_epsilon=None)
    args = p.parse_args(argv)
    if args.resume:
        args = cli.resume(p, args, argv, "rlhf/train_ppo.py", args.algo)
    cli.refuse(p, args, (("prompt_tokens", args.data == "imdb", "without --data imdb"),
                         ("true_reward", args.data == "toy", "without --data toy"),
                         ("reward", not args.true_reward, "with --true_reward"), ("dropout", False, "here: ratios would be noise"),
                         ("n_val", False, "here"), ("max_prompt_len", False, "here"), ("grad_accum", args.grad_accum == 1, "here"),
                         ("compile", False, "here"), *((f, args.algo == "ppo", "on --algo rloo") for f in ("gamma", "lam", "vf_coef"))))
    own = {"k": 1, "gamma": 1.0, "lam": 0.95, "vf_coef": 0.1} if args.algo == "ppo" else {"k": 4}
    toy = args.data == "toy"
    own |= {"beta": 0.5 if toy and not args.true_reward else 0.05, "eos_penalty": 1.0 if toy else 0.0,
            "adam_epsilon": 1e-3 if toy else 1e-8}
    for flag, default in own.items():
        setattr(args, flag, default if getattr(args, flag) is None else getattr(args, flag))
    updates = max(1, args.rollout // args.batch_size * args.epochs)
    for ok, why in ((int(os.environ.get("WORLD_SIZE", 1)) == 1, "runs in one process, without torchrun"),
                    (args.data in ("toy", "imdb"), f"--data {args.data}: there is toy and imdb"),
                    (args.algo == "ppo" or args.k > 1, "--k 1: rloo compares a completion with others of its prompt"),
                    (args.rollout % args.k == 0 and args.rollout % args.batch_size == 0 and args.batch_size % args.k == 0,
                     f"--rollout {args.rollout} must be a multiple of --batch_size {args.batch_size}, and that of --k {args.k}"),
                    (args.eval_every % updates == 0 == args.max_steps % updates, f"--eval_every {args.eval_every} and --max_steps "
                     f"{args.max_steps} must be multiples of {updates}, the updates from one batch of samples"),
                    ((args.gamma or 0) <= 1 and (args.lam or 0) <= 1, "--gamma and --lam are from 0 to 1"),
                    (args.target_kl is None or args.target_kl * args.beta > 0, "--target_kl adapts a --beta, both larger than 0")):
        if not ok:
            p.error(why)
    cli.check_prompt_tokens(p, args)
    return args

# ---------------------------------------------------------------------------------------------------------------------
# the formulas; a mask is True where a completion's token is predicted

def masked_mean(x, mask):
    return (x * mask).sum() / mask.sum()

def token_rewards(scores, logps, ref_logps, mask, beta):
    """(N, T): the KL's share at every token, and scores (N,) at each completion's last one."""
    rewards = -beta * (logps - ref_logps) * mask
    return rewards.scatter_add(1, train_reward.last_place(mask), scores[:, None])

def gae(rewards, values, mask, gamma, lam):
    """Advantages (N, T), from the last token to the first: behind the last one there is no value."""
    advantages, following, value_after = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * value_after - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        advantages[:, t], value_after = following, values[:, t] * mask[:, t]
    return advantages

def whiten(x, mask):
    """Mean 0 and variance 1 over the tokens under the mask, 0 elsewhere."""
    mean = masked_mean(x, mask)
    return (x - mean) * (masked_mean((x - mean) ** 2, mask) + 1e-8).rsqrt() * mask

def leave_one_out(rewards, k):
    """Rewards (N,), k of each prompt one after the other -> (N,): each less the mean of the prompt's others."""
    grouped = rewards.view(-1, k)
    return (grouped - (grouped.sum(1, keepdim=True) - grouped) / (k - 1)).view(-1)

def clipped_policy_loss(ratio, advantages, eps):
    """Minus PPO's objective, elementwise: nothing is to be gained beyond 1 +- eps."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - eps, 1 + eps) * advantages)

def clipped_value_loss(values, old, returns, eps):
    """Half the squared error, elementwise, of the value or of its clipped step from the old one, whichever is worse."""
    return torch.maximum((values - returns) ** 2, (old + (values - old).clamp(-eps, eps) - returns) ** 2) / 2

def adapted(beta, kl, target, samples, horizon=2000):
    """
    The controller of arXiv:1909.08593: beta grows while the KL is over its target, by at most a fifth in `horizon` samples. The
    paper's code has 10,000, for runs of millions of samples; here they are thousands.
    """
    return beta * (1 + max(-0.2, min(0.2, kl / target - 1)) * samples / horizon)

# ---------------------------------------------------------------------------------------------------------------------
# the policy with its values, and what it samples

class Agent(nn.Module):
    """A policy, a value head on its trunk, and beta, which may be adapted and must outlive an interruption."""
    def __init__(self, policy, beta):
        super().__init__()
        self.policy, self.head = policy, nn.Linear(policy.config.n_embd, 1, bias=False)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("beta", torch.tensor(beta))

    def forward(self, idx, mask):
        """idx (N, T), mask (N, T - 1) -> log-probs, values and entropies of idx[:, 1:], (N, T - 1) each, 0 outside the mask."""
        states = self.policy.features(idx)[:, :-1][mask]                          # (M, C)
        log_p = self.policy.lm_head(states).float().log_softmax(-1)               # (M, V)
        p = log_p.detach()    # the entropy is logged, and not learned from
        found = (log_p.gather(1, idx[:, 1:][mask][:, None]).squeeze(1), self.head(states).float().squeeze(1), -(p.exp() * p).sum(1))
        return [torch.zeros(mask.shape, device=idx.device).masked_scatter(mask, x) for x in found]

class Rollouts:
    """batches[i] for loop.fit: minibatches of samples of the policy as it is, sampled anew when all epochs over the last ones are done."""
    def __init__(self, agent, reference, tokenizer, prompts, reward, room, args, autocast):
        self.agent, self.reference, self.tokenizer, self.reward, self.room = agent, reference, tokenizer, reward, room
        self.prompts, self.args, self.autocast, self.number = prompts, args, autocast, None
        self.per_epoch = args.rollout // args.batch_size

    @torch.no_grad()
    def judged(self, prompts, beta, seed):
        """Completions of prompts, as minibatches with the rewards of their tokens, and what is logged of them."""
        args, agent = self.args, self.agent
        with self.autocast:
            answers = sampling.sample_completions(agent.policy, self.tokenizer, prompts, self.room, seed=seed)
        scores = torch.as_tensor(self.reward([p + a for p, a in zip(prompts, answers)]), dtype=torch.float32)
        ended = torch.tensor([a[-1] == self.tokenizer.eot_token for a in answers])
        judged = scores - args.eos_penalty * ~ended    # (N,)
        rows, device, parts, kls = [{"prompt": p, "chosen": a} for p, a in zip(prompts, answers)], agent.beta.device, [], []
        for at in range(0, len(rows), args.batch_size):
            part = slice(at, at + args.batch_size)
            batch = data.collate(rows[part])
            idx, mask = batch["idx"].to(device), batch["completion_mask"][:, 1:].to(device)    # (n, T), (n, T - 1)
            with self.autocast:
                logps, values, _ = agent(idx, mask)
                ref_logps = self.reference(idx, mask)[0]
            kls.append((logps - ref_logps).sum(1))    # both are 0 outside the mask
            parts.append({"idx": idx, "mask": mask, "old_logps": logps, "old_values": values, "weight": len(idx),
                          "rewards": token_rewards(judged[part].to(device), logps, ref_logps, mask, beta)})
        kl = torch.cat(kls).mean().item()
        return parts, {"objective/kl": kl, "objective/scores": scores.mean().item(), "objective/eos": ended.float().mean().item(),
                       "objective/beta": beta, "objective/total": judged.mean().item() - beta * kl}

    def sample(self, number):
        """The number-th batch of samples, as minibatches with advantages and returns, and what is logged of it."""
        args, rng = self.args, random.Random(f"rollout {self.args.seed} {number}")
        prompts = [p for p in rng.sample(self.prompts, args.rollout // args.k) for _ in range(args.k)]
        parts, logged = self.judged(prompts, self.agent.beta.item(), rng.randrange(2**31))
        for part in parts:
            if args.algo == "rloo":
                part["returns"] = part["rewards"].sum(1)    # (n,)
                part["advantages"], mean = leave_one_out(part["returns"], args.k), part["returns"].mean()
            else:
                part["advantages"] = gae(part["rewards"], part["old_values"], part["mask"], args.gamma, args.lam)    # (n, T - 1)
                part["returns"] = part["advantages"] + part["old_values"]
                mean = masked_mean(part["returns"], part["mask"])
            part["logged"] = logged | {"returns/mean": mean}
        if args.algo == "ppo":    # over the whole batch: a minibatch's own mean would be noise
            joined = lambda key: torch.cat([p[key].flatten() for p in parts])
            white = whiten(joined("advantages"), joined("mask")).split([p["mask"].numel() for p in parts])
            for part, w in zip(parts, white):
                part["advantages"] = w.view_as(part["mask"])
        if args.target_kl:
            self.agent.beta.fill_(adapted(self.agent.beta.item(), logged["objective/kl"], args.target_kl, args.rollout))
        return parts

    def __getitem__(self, i):
        number, place = divmod(i, self.per_epoch * self.args.epochs)
        if number != self.number:
            self.parts, self.number = self.sample(number), number
        epoch, place = divmod(place, self.per_epoch)
        order = random.Random(f"epoch {self.args.seed} {number} {epoch}").sample(range(self.per_epoch), self.per_epoch)
        return self.parts[order[place]]

class HeldOut:
    """
    For loop.fit's validation: one batch, which holds the objective on held-out prompts, with the same draws and the beta of the start
    every time, so that evaluations can be compared.
    """
    def __init__(self, rollouts, prompts):
        self.rollouts, self.prompts = rollouts, prompts

    def __iter__(self):
        yield {"weight": len(self.prompts), "logged": self.rollouts.judged(self.prompts, self.rollouts.args.beta, seed=0)[1]}

def ppo_loss(agent, batch, args):
    """(loss, metrics) of a minibatch of Rollouts; of HeldOut's batch minus the objective."""
    if "idx" not in batch:
        return torch.tensor(-batch["logged"]["objective/total"]), batch["logged"]
    mask, old = batch["mask"], batch["old_logps"]
    logps, values, entropy = agent(batch["idx"], mask)
    logratio = logps - old    # 0 outside the mask
    if args.algo == "rloo":
        ratio = logratio.sum(1).exp()    # (n,)
        loss = clipped_policy_loss(ratio, batch["advantages"], args.clip).mean()
        more = {"policy/clipfrac": ((ratio - 1).abs() > args.clip).float().mean()}
    else:
        ratio = logratio.exp()    # (n, T - 1)
        policy_loss = masked_mean(clipped_policy_loss(ratio, batch["advantages"], args.clip), mask)
        value_loss = masked_mean(clipped_value_loss(values, batch["old_values"], batch["returns"], args.clip), mask)
        loss = policy_loss + args.vf_coef * value_loss
        more = {"policy/clipfrac": masked_mean(((ratio - 1).abs() > args.clip).float(), mask), "loss/policy": policy_loss.detach(),
                "loss/value": value_loss.detach(), "val/error": masked_mean((values.detach() - batch["returns"]) ** 2, mask)}
        ratio = masked_mean(ratio, mask)
    return loss, batch["logged"] | more | {
        "policy/ratio": ratio.detach().mean(), "policy/approxkl": masked_mean(logratio.detach() ** 2, mask) / 2,
        "policy/entropy": masked_mean(entropy, mask)}

def main(argv=None):
    """Returns fit's result and what eval.json holds."""
    args = get_args(argv)
    with cli.interruptible("-m rlhf.train_ppo", args, argv):
        return train(args)

def train(args):
    """All of main, of flags that are known."""
    with cli.bad_input():
        sources.check_source(args.data, args.data_dir, training=True)
        rundir.check_out_dir(args.out_dir, args.resume)
        args.init_from = args.init_from or train_sft.policy_for(**cli.flags_of(args, train_sft.policy_for))
        if not args.true_reward:
            args.reward = args.reward or reward_for(args)
        device, autocast = cli.set_up(**cli.flags_of(args, cli.set_up))
        policy, reference = (GPT.from_pretrained(args.init_from).to(device).eval() for _ in range(2))
        tokenizer = data.get_tokenizer(args.data, policy.config.vocab_size)
        cli.check_fits(policy, tokenizer, args.max_len, args.init_from)
        reward = Reward(args.reward, tokenizer, args.max_len, device, args.batch_size, autocast)
        prompts, room = sampling.prompts_for(args.data, tokenizer, args.n_prompts, n_val=256, max_len=args.max_len, seed=args.seed,
                                             data_dir=args.data_dir, prompt_tokens=args.prompt_tokens)
        if len(prompts["train"]) * args.k < args.rollout:
            raise ValueError(f"{len(prompts['train'])} prompts x {args.k} are fewer than --rollout {args.rollout}")
        asking = [{"prompt": q} for q in prompts["train"]]
        asked = data.fingerprint({split: [{"prompt": q} for q in part] for split, part in prompts.items()})
        out_dir = rundir.claim_run_dir(args, "rlhf/train_ppo.py", args.algo, reference_fingerprint=fingerprint(reference),
                                       reward=reward.name, data_fingerprint=asked, prompt_format=chat.prompt_format(asking, tokenizer))
    agent, reference = Agent(policy, args.beta).to(device), Agent(reference, 0.0).to(device)
    rollouts = Rollouts(agent, reference, tokenizer, prompts["train"], reward, room, args, autocast)
    print(f"{args.algo} by {args.reward or 'the true reward'}, beta {args.beta}: {args.rollout} samples every "
          f"{rollouts.per_epoch * args.epochs} updates, for {len(prompts['train']):,} prompts, {len(prompts['val']):,} for validation; the "
          f"reference is {args.init_from} -> {out_dir}")
    result = loop.fit(agent, lambda batch: ppo_loss(agent, batch, args), rollouts, HeldOut(rollouts, prompts["val"]),
                      save=agent.policy.save_pretrained, autocast=autocast, show=("objective/scores", "objective/kl"),
                      go_on=cli.go_on(), **cli.flags_of(args, loop.fit))
    print()
    look = ["--run", str(out_dir), "--show", str(args.n_show), *cli.pass_on(args, "device", "dtype", "threads")]
    return result | eval.main(look, say=lambda line: None)

def reward_for(args):
    """The reward model of a data set; on the toy world it is trained if there is none yet."""
    run = Path("out") / rundir.data_name(args.data) / "reward"
    if not (run / "result.json").exists():
        if args.data != "toy":
            raise ValueError(f"there is no finished reward model at {run}: train one with rlhf.train_reward, or use --reward")
        print(f"no reward model at {run} yet: training it first\n")
        going_on = ["--resume"] if (run / "args.json").exists() else cli.pass_on(args, "max_len", "init_from")
        train_reward.main(["--out_dir", str(run), *cli.pass_on(args, "device", "dtype", "threads"), *going_on])
        print()
    return str(run)

if __name__ == "__main__":
    main()
