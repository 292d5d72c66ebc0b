"""
What a run has become: reward, KL, entropy, length, EOS share, accuracy, with intervals, beside its reference; samples; pictures.

    python eval.py --run out/toy/dpo
    python eval.py --run out/toy/dpo --n_prompts 1024 --show 10

Measures are means over prompts of the data's held-out part, on one completion a prompt, sampled at temperature 1 without truncation
(unless told otherwise), with 95% bootstrap intervals over prompts. "before" is the reference, "after" the run's best weights.

    reward     mean of r(prompt + completion), where the data has one: the toy world's is exact
    kl         nats a completion: sum over its tokens of KL(policy(. | y<t) || reference(. | y<t)), over the whole vocabulary, on the
               policy's own samples. Unbiased, never negative, and less noisy than the mean of log-ratios, which is printed as a check
    entropy    nats a token, of the next-token distribution on own samples
    accuracy   share of held-out pairs whose chosen completion has the larger log-ratio; margin: by how many nats, in the mean

Writes eval.json and eval.png into the run. Read first: train_pref.py
"""
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch

import adapters
import cli
import data
import toy
from checkpoint import write_json
from logps import sequence_logps
from model import GPT, fingerprint

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--run", required=True, help="the run's folder")
    p.add_argument("--n_prompts", type=cli.positive, default=256, help="held-out prompts, if there are so many (default: %(default)s)")
    p.add_argument("--temperature", type=float, default=1.0,
                   help="of sampling; KL and entropy are those of the model at 1 all the same (default: %(default)s)")
    p.add_argument("--show", type=int, default=3, help="samples to print (default: %(default)s)")
    p.add_argument("--max_new_tokens", type=cli.positive,
                   help="tokens of a sample at most (default: what 3 prompts in 4 leave room for, up to 128)")
    cli.add_device_flags(p)
    return p.parse_args(argv)

# ---------------------------------------------------------------------------------------------------------------------
# the models

def load_policy(run, device):
    """(policy, reference) of a run. reference is None if the run has none; for an adapter it is the policy with its adapters off."""
    facts = cli.read_args(run)
    about, source = adapters.read_about(run), facts["args"]["init_from"]
    if about:
        policy = GPT.from_pretrained(about["base"])
        policy = adapters.load_adapter(policy, run, fingerprint(policy)).to(device).eval()
        return facts, policy, policy
    policy = GPT.from_pretrained(run).to(device).eval()
    reference = GPT.from_pretrained(source).to(device).eval() if source else None
    want = facts.get("reference_fingerprint")
    if reference is not None and want and fingerprint(reference) != want:
        raise ValueError(f"{source}, the reference of {run}, has changed since: its fingerprint is {fingerprint(reference)}, not {want}")
    return facts, policy, reference

@contextmanager
def as_reference(policy, reference):
    with adapters.adapters_off(policy) if reference is policy else nullcontext():
        yield reference

def held_out(facts, args, say):
    """(tokenizer, prompts as token lists, held-out pairs or None, max_new_tokens) of the data that a run was trained on."""
    run_args, pairs = facts["args"], None
    tokenizer, room = data.get_tokenizer(run_args["data"]), run_args["max_len"]
    if run_args["data"] == "toy":
        prompts = tokenizer.encode_ordinary_batch([e["prompt"] for e in toy.examples("test", args.n_prompts, args.seed)])
        if "pairs" in facts:
            pairs = data.read_pairs(facts["pairs"], tokenizer.n_vocab)["val"]
    else:
        source = (run_args["data"], run_args["data_dir"], tokenizer, room, run_args["max_prompt_len"])
        rows = data.load_rows(*source, pairs="loss" in run_args, say=say)["val"]
        pairs = rows if "loss" in run_args else None
        prompts = list({tuple(r["prompt"]): r["prompt"] for r in rows}.values())
    # unless told otherwise, as much as three prompts out of four leave room for
    max_new_tokens = args.max_new_tokens or min(128, room - int(np.percentile([len(p) for p in prompts], 75, method="higher")))
    fit = [p for p in prompts if len(p) + max_new_tokens <= room]
    if not fit:
        raise ValueError(f"--max_new_tokens {max_new_tokens}: no held-out prompt leaves so much room in the run's {room} tokens")
    if len(fit) < len(prompts):
        print(f"{len(prompts) - len(fit)} of {len(prompts)} prompts left out: with {max_new_tokens} new tokens they are more than {room}")
    return tokenizer, fit[:args.n_prompts], pairs, max_new_tokens

# ---------------------------------------------------------------------------------------------------------------------
# the measures

def bootstrap(values, n=2000, seed=0):
    """[mean, low, high]: the 95% percentile interval of the mean over resampled prompts."""
    values = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), (n, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return [float(values.mean()), float(low), float(high)]

@torch.no_grad()
def token_measures(model, reference, batch, device):
    """
    Per token of the completions in a batch, (N, T - 1) each and 0 elsewhere: entropy of the model, KL to the reference (a context
    manager that gives it, or None), and the log-ratio of the token that was drawn.
    """
    idx, mask = batch["idx"].to(device), batch["completion_mask"].to(device)[:, 1:]    # logits[:, t] predicts idx[:, t + 1]
    targets, out = idx[:, 1:][mask], {"entropy": []}                                   # (M,)
    states = model.features(idx)[:, :-1][mask]                                         # (M, C)
    if reference is not None:
        with reference as other:
            others, head = other.features(idx)[:, :-1][mask], other.lm_head            # (M, C)
    for at in range(0, len(states), 2048):    # in pieces: (M, V) of a whole batch would be gigabytes at 50,257 tokens
        part = slice(at, at + 2048)
        log_p = model.lm_head(states[part]).float().log_softmax(-1)                    # (<= 2048, V)
        out["entropy"].append(-(log_p.exp() * log_p).sum(-1))
        if reference is not None:
            difference = log_p - head(others[part]).float().log_softmax(-1)
            out.setdefault("kl", []).append((log_p.exp() * difference).sum(-1))
            out.setdefault("logratio", []).append(difference.gather(1, targets[part, None]).squeeze(1))
    return {k: torch.zeros(mask.shape, device=device).masked_scatter(mask, torch.cat(v)).cpu().numpy() for k, v in out.items()}

def measure(model, reference, prompts, tokenizer, reward, args, max_new_tokens, autocast):
    """
    (measures, completions, curves): a dict of (n,) arrays with a number a prompt, token lists, and the mean KL and entropy at each
    position. prompts are token lists; reference() is a context manager that gives the model for the KL, or None.
    """
    device, n = next(model.parameters()).device, len(prompts)
    with autocast:
        answers = data.sample_completions(model, tokenizer, prompts, max_new_tokens, temperature=args.temperature, seed=args.seed,
                                          batch_size=args.batch_size)
    out = {"length": np.array([len(a) for a in answers], dtype=float),
           "eos": np.array([a[-1] == tokenizer.eot_token for a in answers], dtype=float)}
    if reward:
        out["reward"] = np.array([reward(tokenizer.decode(p) + data.decode(tokenizer, a)) for p, a in zip(prompts, answers)])
    rows, curves = [{"prompt": p, "chosen": a, "at": i} for i, (p, a) in enumerate(zip(prompts, answers))], {}
    for group in data.Batches(rows, args.batch_size).groups():
        with autocast:
            tokens = token_measures(model, reference(), data.collate(group), device)
        for i, row in enumerate(group):
            first, length = len(row["prompt"]) - 1, len(row["chosen"])
            for key, values in tokens.items():
                values = values[i, first:first + length]
                out.setdefault(key, np.zeros(n))[row["at"]] = values.sum()
                curves.setdefault(key, np.zeros(max_new_tokens))[:length] += values
    out["entropy"] = out["entropy"] / out["length"]
    reached = np.array([(out["length"] > t).sum() for t in range(max_new_tokens)])    # completions that have a token there
    enough = reached >= max(1, n // 20)                                              # a mean over two or three would be noise
    return out, answers, {k: v[enough] / reached[enough] for k, v in curves.items()}

@torch.no_grad()
def pair_measures(policy, reference, rows, batch_size, autocast):
    """accuracy (ties half) and margin (nats) of the log-ratios on held-out pairs, (n,) each."""
    device, margins = next(policy.parameters()).device, []
    for batch in data.Batches(rows, batch_size):
        idx, mask = batch["idx"].to(device), batch["completion_mask"].to(device)
        with autocast:
            logps = sequence_logps(policy, idx, mask)[0]    # (2B,)
            with as_reference(policy, reference) as ref:
                chosen, rejected = (logps - sequence_logps(ref, idx, mask)[0]).chunk(2)    # (B,) log-ratios
        margins += (chosen - rejected).tolist()
    margins = np.array(margins)
    return {"accuracy": (margins > 0) + 0.5 * (margins == 0), "margin": margins}

# ---------------------------------------------------------------------------------------------------------------------
# what is shown

ROWS = (("reward", "reward", ".3f"), ("kl", "KL to the reference, nats a completion", ".2f"),
        ("logratio", "  check: mean log-ratio", ".2f"), ("entropy", "entropy, nats a token", ".3f"),
        ("length", "length, tokens", ".1f"), ("eos", "ends in EOS", ".3f"),
        ("accuracy", "accuracy on held-out pairs", ".3f"), ("margin", "  margin, nats", ".2f"))

def table(columns):
    """columns: name -> {measure: [mean, low, high]}."""
    cell = lambda v, f: f"{v[0]:{f}} [{v[1]:{f}}, {v[2]:{f}}]" if v else "-"
    lines = [f"{'':40}" + "".join(f"{name:28}" for name in columns)]
    for key, label, f in ROWS:
        if any(key in c for c in columns.values()):
            lines.append(f"{label:40}" + "".join(f"{cell(c.get(key), f):28}" for c in columns.values()))
    return "\n".join(line.rstrip() for line in lines)

def sample_lines(sample, reward=None):
    """A prompt and its completions before and after, one under the other; reward: text -> float, where there is one."""
    lines = ["prompt   " + sample["prompt"].strip()]
    for name in (n for n in ("before", "after") if n in sample):
        lines.append(f"{name:9}{sample[name].strip()}" + (f"   (reward {reward(sample['prompt'] + sample[name]):.3f})" if reward else ""))
    return lines

def draw(path, raw, curves):
    """eval.png: the reward or the margins as histograms, KL and entropy over the position in the completion."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(11, 3))
    colour = {"before": "C7", "after": "C0"}
    if "reward" in raw["after"]:
        for name, part in raw.items():
            axes[0].hist(part["reward"], bins=np.linspace(0, 1, 21), alpha=0.6, color=colour[name], label=name)
        axes[0].set(title="reward of one sample a prompt", xlabel="P(positive | text)", ylabel="prompts")
    elif "margin" in raw["after"]:
        axes[0].hist(raw["after"]["margin"], bins=30, color="C0")
        axes[0].axvline(0, color="k", lw=0.8)
        axes[0].set(title="held-out pairs", xlabel="margin of log-ratios (nats)", ylabel="pairs")
    for ax, key, title in ((axes[1], "kl", "KL to the reference"), (axes[2], "entropy", "entropy of the next token")):
        for name, part in curves.items():
            if key in part:
                ax.plot(np.arange(1, len(part[key]) + 1), part[key], color=colour[name], label=name)
        ax.set(title=title, xlabel="token of the completion", ylabel="nats")
    for ax in axes:
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)

def main(argv=None, say=print):
    """Returns what eval.json holds, without the samples. say: where the lines about device and data go; train_pref has said them."""
    args = get_args(argv)
    with cli.bad_input():
        device, autocast = cli.set_up(args, say)
        facts, policy, reference = load_policy(args.run, device)
        tokenizer, prompts, pairs, max_new_tokens = held_out(facts, args, say)
    reward = toy.reward if facts["args"]["data"] == "toy" else None
    rest, raw, curves, answers = (prompts, tokenizer, reward, args, max_new_tokens, autocast), {}, {}, {}
    no_reference = lambda: None
    if reference is not None:
        with as_reference(policy, reference) as ref:
            raw["before"], answers["before"], curves["before"] = measure(ref, no_reference, *rest)
        raw["before"] |= {"kl": np.zeros(len(prompts)), "logratio": np.zeros(len(prompts))}    # by definition
    context = no_reference if reference is None else lambda: as_reference(policy, reference)
    raw["after"], answers["after"], curves["after"] = measure(policy, context, *rest)
    if pairs and reference is not None:
        raw["after"] |= pair_measures(policy, reference, pairs, args.batch_size, autocast)
        raw["before"] |= {"accuracy": np.full(len(pairs), 0.5), "margin": np.zeros(len(pairs))}    # all ties, by definition
    columns = {name: {k: bootstrap(v) for k, v in part.items()} for name, part in raw.items()}

    print(f"{args.run} on {len(prompts)} held-out prompts, temperature {args.temperature}; [95% interval]\n\n{table(columns)}\n")
    samples = [{"prompt": tokenizer.decode(p)} | {name: data.decode(tokenizer, a[i]) for name, a in answers.items()}
               for i, p in enumerate(prompts)]
    for sample in samples[:args.show]:
        print("\n".join(sample_lines(sample, reward)) + "\n")
    result = {"prompts": len(prompts), "pairs": len(pairs or []), "temperature": args.temperature, "measures": columns}
    with cli.bad_input():
        write_json(Path(args.run) / "eval.json", result | {"samples": samples})
        draw(Path(args.run) / "eval.png", raw, curves)
    print(f"in {args.run}: eval.json (measures, all samples), eval.png and curves.png (pictures), log.csv")
    return result

if __name__ == "__main__":
    main()
