"""
What runs have become: reward, KL, entropy, diversity, length, accuracy, win rate, beside their reference; samples; pictures.

    python eval.py --run out/toy/dpo
    python eval.py --run out/toy/dpo out/toy/ipo --n_prompts 512 --n_samples 25 --show 10
    python eval.py --run out/toy/dpo --against out/toy/ipo --temperature 1 0.75 0.5 0.25 0 --best_of 64
    python eval.py --run out/imdb/dpo --gold out/imdb/gold
    python eval.py --run out/hh/dpo --prompt "How do I keep basil alive?"
    python eval.py --run out/hh/dpo --chat

Measures are means over prompts of the data's held-out part and over their samples, drawn without truncation, with 95% bootstrap
intervals over prompts. "before" is the reference, "after" the run's best weights.

    reward     mean of r(prompt + completion), where the data has one: the toy world's is exact. Apart by the label of the whole review
               that the prompt is from: a prompt may leak it, and a policy may follow it
    gold       the same by another reward model (--gold), that nothing was trained on; proxy: on the toy world, by the learned one
    win        P(r > r of the reference's samples for the same prompt), ties half, over all pairs of samples
    kl         nats a completion: sum over its tokens of KL(policy(. | y<t) || reference(. | y<t)), over the whole vocabulary, on the
               policy's own samples. Unbiased, never negative, and less noisy than the mean of log-ratios, which is printed as a check
    entropy    of the next-token distribution on own samples, nats a token, and summed over a completion
    pooled     entropy, nats, of the tokens of a prompt's 4 (25) samples thrown together; from counts, so it grows with their number
    distinct   share of different tokens (pairs of neighbours) in 500 tokens of samples for different prompts: an equal budget for all
    accuracy   share of held-out pairs whose chosen completion has the larger log-ratio; margin: by how many nats, in the mean

A temperature other than 1 makes another policy: its KL and entropy are those of what is sampled from; the reference stays at 1.
Writes eval.json and eval.png into each run. Read first: measures.py
"""
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np

import adapters
import chat
from support import cli, rundir
import data
import sampling
import toy
from adapters import as_reference
from chat import answer, sample_lines
from support.checkpoint import write_json
from measures import HeldOut, best_of, bootstrap, measure, notes_on, pair_measures, sample, wins
from model import fingerprint
from reward import Reward
from support.sources import load_examples

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--run", required=True, nargs="+", help="folders of runs; several are shown side by side")
    p.add_argument("--against", help="another run, to count wins against")
    p.add_argument("--n_prompts", type=cli.positive, default=256, help="held-out prompts, if there are so many (default: %(default)s)")
    p.add_argument("--n_samples", type=cli.positive, default=4, help="completions of each prompt (default: %(default)s)")
    p.add_argument("--temperature", type=cli.temperature, nargs="+", default=[1],
                   help="of sampling; at those after the first, up to 4 samples and no table of their own (default: 1)")
    p.add_argument("--best_of", type=cli.positive, help="samples of the reference to choose the best of 1, 2, 4, ... from (default: none)")
    p.add_argument("--reward", help="a reward model, a run of rlhf.train_reward, to measure by (default: that of the run's pairs)")
    p.add_argument("--gold", help="another one, that nothing was trained on: what it says stands beside")
    p.add_argument("--data", help="measure on these prompts (default: those of the data that the run was trained on)")
    p.add_argument("--data_dir", help="folder with that data set's files, instead of the hub")
    p.add_argument("--prompt", help="only print what reference and policy answer to this, in the form of the run's prompts")
    p.add_argument("--chat", action="store_true", help="only answer questions from the terminal, by one run's policy")
    p.add_argument("--show", type=cli.count, default=3, help="samples to print (default: %(default)s)")
    p.add_argument("--max_new_tokens", type=cli.positive,
                   help="tokens of a sample at most (default: what 3 prompts in 4 leave room for, up to 128)")
    cli.add_device_flags(p)
    args = p.parse_args(argv)
    cli.refuse(p, args, (("chat", len(args.run) == 1 and args.prompt is None, "with several runs, or with --prompt"),))
    return args

# ---------------------------------------------------------------------------------------------------------------------
# the models

def load_policy(run, device):
    """
    (args.json, policy, reference) of a run. reference is the model that training started from, or None if it was from
    scratch. If training added an adapter, the reference is the policy itself, and as_reference turns the adapter off.
    """
    facts = rundir.read_args(run)
    source, load = facts["args"]["init_from"], lambda folder: adapters.load_model(folder)[0].to(device).eval()
    policy, about = adapters.load_model(run)
    policy = policy.to(device).eval()
    want = facts.get("reference_fingerprint", facts.get("init_fingerprint") if about else None)
    if about and want in (None, about["base_fingerprint"]):
        return facts, policy, policy
    reference = load(source) if source else None
    if reference is not None and want and fingerprint(reference) != want:
        raise ValueError(f"{source}, the reference of {run}, has changed since: its fingerprint is {fingerprint(reference)}, not {want}")
    return facts, policy, reference

def held_out(run, facts, policy, ranked, args, device, autocast, say):
    """
    The HeldOut of a run's data, or of args.data; ranked: the reward model to measure by. Raises ValueError if no prompt leaves room for
    an answer.
    """
    run_args, pairs, labels, chosen = facts["args"], None, None, None
    name, folder = (args.data, args.data_dir) if args.data else (run_args["data"], args.data_dir or run_args["data_dir"])
    tokenizer, room = data.get_tokenizer(name, policy.config.vocab_size), run_args["max_len"]
    cli.check_fits(policy, tokenizer, room, run)
    by = {"reward": None, "proxy": ranked, "gold": args.gold} if name == "toy" else {"reward": ranked, "gold": args.gold}
    rewards = {key: Reward(at, tokenizer, room, device, args.batch_size, autocast) for key, at in by.items()
               if at or (key == "reward" and name == "toy")}    # of the toy world the exact one is known
    if len({r.name for r in rewards.values()}) < len(rewards):
        raise ValueError(f"--gold {args.gold} is the reward that the run was trained by: it would only agree with itself")
    if name == run_args["data"] and "pairs" in facts:
        pairs = sampling.read_pairs(facts["pairs"], tokenizer.n_vocab)["val"]
    if name == "toy":
        examples = toy.examples("test", args.n_prompts, args.seed)
        prompts, labels = tokenizer.encode_ordinary_batch([e["prompt"] for e in examples]), [e["positive"] for e in examples]
    elif name == "imdb":
        prompts, labels = sampling.beginnings(folder, "test", tokenizer, run_args.get("prompt_tokens") or "32", args.n_prompts, args.seed)
    else:
        if name == "cnn_dailymail":    # which is for evaluation only: all of it
            examples = load_examples(name, folder, pairs=False)[0].get("test", [])
            rows, dropped = data.make_rows(examples, tokenizer, room, run_args["max_prompt_len"])
            say(f"data: {name}, {len(rows):,} articles; dropped: {', '.join(f'{n:,} {why}' for why, n in dropped.items()) or 'none'}")
            if not rows:
                raise ValueError(f"{name}: no article of the test split leaves room for an answer in the run's {room} tokens; train with "
                                 "--max_prompt_len")
        else:
            paired = "loss" in run_args
            rows = data.load_rows(name, folder, tokenizer, room, run_args["max_prompt_len"], paired, run_args.get("n_val"), say)["val"]
            pairs = rows if paired else None
        rows = {tuple(r["prompt"]): r for r in rows}.values()    # one of each prompt
        prompts, chosen = [r["prompt"] for r in rows], [r["chosen"] for r in rows]
    # unless told otherwise, as much as three prompts out of four leave room for
    max_new_tokens = args.max_new_tokens or min(128, room - int(np.percentile([len(p) for p in prompts], 75, method="higher")))
    fit = [i for i, p in enumerate(prompts) if len(p) + max_new_tokens <= room]
    if not fit:
        raise ValueError(f"--max_new_tokens {max_new_tokens}: no held-out prompt leaves so much room in the run's {room} tokens")
    if len(fit) < len(prompts):
        print(f"{len(prompts) - len(fit)} of {len(prompts)} prompts left out: with {max_new_tokens} new tokens they are more than {room}")
    fit = fit[:args.n_prompts]
    prompts, labels, chosen = (part and [part[i] for i in fit] for part in (prompts, labels, chosen))
    return HeldOut(tokenizer, prompts, labels, pairs, rewards, max_new_tokens, chosen)

# ---------------------------------------------------------------------------------------------------------------------
# one run

def first_texts(measured, held):
    return [data.decode(held.tokenizer, several[0]) for several in measured.answers]

def won(measured, other):
    """Wins against another Measured, by each reward."""
    return {"win" if key == "reward" else f"{key}_win": wins(r, other.rewards[key]) for key, r in measured.rewards.items()}

def intervals(values):
    return {key: bootstrap(v) for key, v in values.items()}

def evaluate(run, loaded, held, others, args, autocast, known):
    """
    What eval.json holds of one run; draws eval.png. loaded: load_policy's. others: the other run's rewards (n, k), or None. known:
    what was found of references before, by their fingerprint and temperature.
    """
    facts, policy, reference = loaded
    before, after = lambda: as_reference(policy, reference), lambda: nullcontext(policy)
    models, other = ({"after": after}, lambda: None) if reference is None else ({"before": before, "after": after}, before)
    base, found = next(iter(models)), {}

    def look(name, temperature, k):
        key = facts.get("reference_fingerprint", run), temperature
        if name == "after" or key not in known:
            with models[name]() as model:
                seen = measure(model, other, held, temperature, k, args.seed, args.batch_size, autocast)
            if name == "after":
                return seen
            known[key] = seen
        return known[key]

    for name in models:
        found[name] = look(name, args.temperature[0], args.n_samples)
        if reference is not None:
            found[name].values |= won(found[name], found["before"])
        if others is not None:
            found[name].values["win_other"] = wins(found[name].rewards["reward"], others)
    if held.pairs and reference is not None:
        found["after"].values |= pair_measures(policy, before, held.pairs, args.batch_size, autocast)
        n = len(held.pairs)
        found["before"].values |= {"accuracy": np.full(n, 0.5), "margin": np.zeros(n)}    # all ties, by definition
    result = {"prompts": len(held.prompts), "n_samples": args.n_samples, "pairs": len(held.pairs or []),
              "temperature": args.temperature[0], "measures": {name: intervals(f.values) for name, f in found.items()}}

    for temperature in args.temperature[1:]:
        row = {"temperature": temperature}
        for name in models:
            there = look(name, temperature, min(4, args.n_samples) if temperature else 1)    # at 0 all would be the same
            row[name] = intervals(there.values | won(there, found[base]))
        row["samples"] = first_texts(there, held)    # of the policy, which comes last
        result.setdefault("temperatures", []).append(row)
    if args.best_of:
        with models[base]() as model:
            rewards = sample(model, held, args.best_of, 1.0, args.seed, max(256, args.batch_size), autocast)[1]["reward"]
        result["best_of"] = [{"n": n, "kl": math.log(n) - (n - 1) / n, "reward": bootstrap(v)} for n, v in best_of(rewards).items()]
    texts = {name: first_texts(f, held) for name, f in found.items()}
    texts |= {"chosen": [data.decode(held.tokenizer, c) for c in held.chosen]} if held.chosen else {}
    samples = [{"prompt": data.decode(held.tokenizer, p)} | {name: t[i] for name, t in texts.items()} for i, p in enumerate(held.prompts)]
    for i, one in enumerate(samples if held.rewards else ()):
        one["rewards"] = {name: {key: round(float(r[i, 0]), 3) for key, r in f.rewards.items()} for name, f in found.items()}
    with cli.bad_input():
        write_json(Path(run) / "eval.json", result | {"samples": samples})
        draw(Path(run) / "eval.png", found)
    return result | {"samples": samples}

# ---------------------------------------------------------------------------------------------------------------------
# what is shown

ROWS = (("reward", "reward", ".3f"), ("reward_positive", "  of positive reviews' prompts", ".3f"),
        ("reward_negative", "  of negative reviews' prompts", ".3f"), ("win", "win rate against the reference", ".3f"),
        ("win_other", "win rate against the other run", ".3f"),
        ("gold", "reward by the gold model", ".3f"), ("gold_win", "  win rate by it", ".3f"),
        ("proxy", "reward by the learned model", ".3f"), ("proxy_win", "  win rate by it", ".3f"),
        ("kl", "KL to the reference, nats a completion", ".2f"),
        ("logratio", "  check: mean log-ratio", ".2f"), ("entropy", "entropy, nats a token", ".3f"),
        ("completion_entropy", "  nats a completion", ".2f"), ("pooled_4", "  of 4 samples' tokens, nats", ".3f"),
        ("pooled_25", "  of 25 samples' tokens, nats", ".3f"), ("distinct_1", "distinct tokens in 500", ".3f"),
        ("distinct_2", "distinct pairs of tokens in 500", ".3f"), ("length", "length, tokens", ".1f"), ("eos", "ends in EOS", ".3f"),
        ("accuracy", "accuracy on held-out pairs", ".3f"), ("margin", "  margin, nats", ".2f"))

def table(columns):
    """columns: name -> {measure: [mean, low, high]}."""
    cell = lambda v, f: f"{v[0]:{f}} [{v[1]:{f}}, {v[2]:{f}}]" if v else "-"
    lines = [f"{'':40}" + "".join(f"{name[-26:]:28}" for name in columns)]
    for key, label, f in ROWS:
        if any(key in c for c in columns.values()):
            lines.append(f"{label:40}" + "".join(f"{cell(c.get(key), f):28}" for c in columns.values()))
    return "\n".join(line.rstrip() for line in lines)

def more_tables(result):
    """The lines of the tables of temperatures and of best-of-n, where there are any."""
    lines, cell = [], lambda v, f: f"{v[0]:{f}} [{v[1]:{f}}, {v[2]:{f}}]"
    measures = (("reward", ".3f"), ("win", ".3f"), ("kl", ".2f"))
    for row in result.get("temperatures", ()):
        for name in (n for n in ("before", "after") if n in row):
            cells = "".join(f"  {k} {cell(row[name][k], f)}" for k, f in measures if k in row[name])
            lines.append(f"temperature {row['temperature']:<5} {name:7}{cells}")
    lines += [f"best of {r['n']:<3} of the reference, KL at most {r['kl']:.2f}   reward {cell(r['reward'], '.3f')}"
              for r in result.get("best_of", ())]
    return lines

def draw(path, found):
    """eval.png: the reward or the margins as histograms, KL and entropy over the position in the completion. found: name -> Measured."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(11, 3))
    colour, after = {"before": "C7", "after": "C0"}, found["after"].values
    if "reward" in after:
        edges = np.histogram_bin_edges([f.rewards["reward"] for f in found.values()], 20)
        for name, f in found.items():
            axes[0].hist(f.rewards["reward"].ravel(), bins=edges, alpha=0.6, color=colour[name], label=name)
        axes[0].set(title="reward", xlabel="reward of prompt and completion", ylabel="samples")
    elif "margin" in after:
        axes[0].hist(after["margin"], bins=30, color="C0")
        axes[0].axvline(0, color="k", lw=0.8)
        axes[0].set(title="held-out pairs", xlabel="margin of log-ratios (nats)", ylabel="pairs")
    for ax, key, title in ((axes[1], "kl", "KL to the reference"), (axes[2], "entropy", "entropy of the next token")):
        for name, f in found.items():
            if key in f.curves:
                ax.plot(np.arange(1, len(f.curves[key]) + 1), f.curves[key], color=colour[name], label=name)
        ax.set(title=title, xlabel="token of the completion", ylabel="nats")
    for ax in axes:
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)

def main(argv=None, say=print):
    """
    Returns what eval.json holds, without the samples; of several runs as {run: ...}. say: where the lines about device and data go;
    train_pref has said them.
    """
    args = get_args(argv)
    with cli.interruptible("eval.py", args, argv):
        return report(args, say)

def report(args, say):
    """All of main, of flags that are known."""
    others, known = None, {}
    with cli.bad_input():
        data_name = rundir.read_args(args.run[0])["args"].get("data")
        device, autocast = cli.set_up(**cli.flags_of(args, cli.set_up) | {"say": say, "data": data_name})
        runs = {run: load_policy(run, device) for run in (*args.run, *([args.against] if args.against else []))}
        if args.prompt is not None:
            return [answer(loaded, args.prompt, autocast, n_answers=args.show, max_new_tokens=args.max_new_tokens,
                           temperature=args.temperature[0], seed=args.seed) for loaded in runs.values()]
        if args.chat:
            facts, policy, _ = runs[args.run[0]]
            tokenizer = data.get_tokenizer(facts["args"]["data"], policy.config.vocab_size)
            with autocast:
                return chat.chat(policy, tokenizer, facts, args.max_new_tokens, args.temperature[0], args.seed)
        facts = runs[args.run[0]][0]
        for run, (theirs, *_) in runs.items():
            for flag, default in (("data", None), ("data_dir", None), ("max_len", None), ("max_prompt_len", None), ("prompt_tokens", "32")):
                one, other = (f["args"].get(flag) or default for f in (theirs, facts))
                if one != other:
                    raise ValueError(f"{run} has --{flag} {one}, and {args.run[0]} {other}: on other texts, they cannot stand side by side")
        learned = {r for f, *_ in runs.values() if (r := f["args"].get("reward"))}
        if len(learned) > 1 and not args.reward and facts["args"]["data"] != "toy":
            raise ValueError(f"the runs were trained by different rewards, {', '.join(sorted(learned))}: say by --reward which measures")
        ranked = args.reward or (learned.pop() if len(learned) == 1 else None)
        held = held_out(args.run[0], facts, runs[args.run[0]][1], ranked, args, device, autocast, say)
        if (args.best_of or args.against) and "reward" not in held.rewards:
            raise ValueError(f"--{'best_of' if args.best_of else 'against'} needs a reward, and {facts['args']['data']} has none: give a "
                             "--reward model")
    if args.against:
        batch_size, k = max(256, args.batch_size), args.n_samples
        others = sample(runs[args.against][1], held, k, args.temperature[0], args.seed, batch_size, autocast)[1]["reward"]
    results = {run: evaluate(run, runs[run], held, others, args, autocast, known) for run in args.run}

    columns = results[args.run[0]]["measures"]
    if len(results) > 1:
        columns = {name: part for run, r in results.items() for name, part in
                   ((runs[run][0]["args"]["init_from"], r["measures"].get("before")), (run, r["measures"]["after"])) if part}
    print(f"{', '.join(args.run)} on {len(held.prompts)} held-out prompts, {args.n_samples} samples each at temperature "
          f"{args.temperature[0]}; [95% interval]\n\n{table(columns)}\n")
    toy_texts, n_vocab = facts["args"]["data"] == "toy" and not args.max_new_tokens, held.tokenizer.n_vocab
    told = [f"note: {n}" for r in results.values() for n in notes_on(r, n_vocab, toy_texts)]
    for run, result in results.items():
        more, name = more_tables(result), f"{run}\n\n" if len(results) > 1 and (args.show or args.temperature[1:]) else ""
        print(name + "".join(line + "\n" for line in [*more, *[""][:len(more)]]), end="")
        for one in result.pop("samples")[:args.show]:
            print("\n".join(sample_lines(one)) + "\n")
    print(f"in {', '.join(args.run)}: eval.json (measures, all samples), eval.png and curves.png (pictures), log.csv")
    print("".join(line + "\n" for line in dict.fromkeys(told)), end="")
    return results if len(results) > 1 else results[args.run[0]]

if __name__ == "__main__":
    main()
