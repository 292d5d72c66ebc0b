"""
Evaluate runs on held-out prompts, against their reference: reward, win rate, KL, entropy, diversity, accuracy.

    python eval.py --run out/toy/dpo
    python eval.py --run out/toy/dpo out/toy/ipo --n_prompts 512 --n_samples 25 --show 10
    python eval.py --run out/toy/dpo --against out/toy/ipo --temperature 1 0.75 0.5 0.25 0 --best_of 64
    python eval.py --run out/imdb/dpo --gold out/imdb/gold
    python eval.py --run out/toy/dpo out/toy/dpop --displacement
    python eval.py --run out/hh/dpo --prompt "How do I keep basil alive?"
    python eval.py --run out/hh/dpo --chat

Prints a table and some samples. "before" is the reference, "after" is the run's best weights. A measure is a mean over
held-out prompts and over their samples, which are drawn without truncation. Its 95% bootstrap interval is over prompts.

A temperature other than 1 defines another policy. Its KL and entropy are those of the distribution that is sampled. The
reference's distribution in the KL stays at temperature 1.

Writes eval.json (all measures and samples) into each run's folder, and eval.png, one picture of all runs, into each as
well. docs/metrics.md defines every measure. Read next: page.py
"""
from contextlib import nullcontext
from pathlib import Path

import numpy as np

import adapters
import chat
import data
import displacement
import sampling
import toy
from adapters import as_reference
from chat import answer, sample_lines
from measures import HeldOut, best_of_rows, compared, intervals, measure, notes_on, pair_measures, sample, won
from reference import start_model
from reward import load_rewards
from support import cli, rundir
from support.checkpoint import write_json
from support.sources import beginnings, load_examples
from support.tables import draw, more_tables, name_columns, table

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--run", required=True, nargs="+", help="folders of runs; several are shown side by side")
    p.add_argument("--against", help="another run, to count wins against")
    p.add_argument("--n_prompts", type=cli.positive, default=256, help="held-out prompts (default: %(default)s)")
    p.add_argument("--n_samples", type=cli.positive, default=4, help="completions per prompt (default: %(default)s)")
    p.add_argument("--temperature", type=cli.temperature, nargs="+", default=[1],
                   help="sampling temperatures; after the first, at most 4 samples and a short table (default: 1)")
    p.add_argument("--best_of", type=cli.positive,
                   help="samples of the reference from which to take the best of 1, 2, 4, ... (default: none)")
    p.add_argument("--reward", help="reward model, a run of rlhf.train_reward (default: that of the run's pairs)")
    p.add_argument("--gold", help="a second reward model, which no run was trained on; shown beside the first")
    p.add_argument("--data", help="take the prompts from this data set (default: the one that the run was trained on)")
    p.add_argument("--data_dir", help="folder with that data set's files, instead of the hub")
    p.add_argument("--prompt", help="only print the answers of reference and policy to this prompt")
    p.add_argument("--chat", action="store_true", help="only chat with one run's policy on the terminal")
    p.add_argument("--displacement", action="store_true", help="also show where the probability of held-out pairs went")
    p.add_argument("--show", type=cli.count, default=3, help="samples to print (default: %(default)s)")
    p.add_argument("--max_new_tokens", type=cli.positive,
                   help="tokens per sample at most (default: what 3 of 4 prompts leave room for, up to 128)")
    cli.add_device_flags(p)
    args = p.parse_args(argv)
    cli.refuse(p, args, (("chat", len(args.run) == 1 and args.prompt is None, "with several runs, or with --prompt"),
                         ("displacement", not args.chat and args.prompt is None, "with --chat or --prompt")))
    return args

# ---------------------------------------------------------------------------------------------------------------------
# Models

def load_policy(run, device):
    """
    (facts, policy, reference) of a run: the contents of args.json, and two models.

    reference is the model that training started from, or None if training started from random weights. If training
    added an adapter, it is the policy itself, and as_reference turns the adapter off. Raises ValueError if the
    reference has changed since.
    """
    facts = rundir.read_args(run)
    source = facts["args"]["init_from"]
    policy, about = adapters.load_model(run)
    policy = policy.to(device).eval()
    # The fingerprint of the model that training started from. It is the adapter's base if training added the adapter.
    want = facts.get("reference_fingerprint", facts.get("init_fingerprint") if about else None)
    if about and want in (None, about["base_fingerprint"]):
        return facts, policy, policy
    reference = start_model(source, want, device, f" of {run}") if source else None
    return facts, policy, reference

def check_same_texts(runs, first):
    """Raises ValueError unless all runs have the data flags of the first. runs: {run: load_policy's}."""
    facts = runs[first][0]
    defaults = {"data": None, "data_dir": None, "max_len": None, "max_prompt_len": None, "prompt_tokens": "32"}
    for run, (theirs, *_) in runs.items():
        for flag, default in defaults.items():
            one, other = theirs["args"].get(flag) or default, facts["args"].get(flag) or default
            if one != other:
                raise ValueError(f"{run} has --{flag} {one}, and {first} has {other}: evaluate runs on "
                                 "different texts one by one")

def ranking_reward(runs, given, on_toy):
    """The reward model to measure by: the given one, or else the one that all runs' pairs were ranked by; or None."""
    learned = sorted({facts["args"]["reward"] for facts, *_ in runs.values() if facts["args"].get("reward")})
    if len(learned) > 1 and not given and not on_toy:
        raise ValueError(f"the runs were trained on different rewards, {', '.join(learned)}: choose one with --reward")
    return given or (learned[0] if len(learned) == 1 else None)

# ---------------------------------------------------------------------------------------------------------------------
# Held-out data

def held_out_rows(name, folder, facts, tokenizer, say):
    """(rows, pairs) of a data set with prompts and answers. pairs: the rows if they are pairs, else None."""
    args = facts["args"]
    if name != "cnn_dailymail":
        rows = data.load_rows(name, folder, tokenizer, args["max_len"], args["max_prompt_len"],
                              "loss" in args, args.get("n_val"), say, labeled=True)["val"]
        return rows, rows if "rejected" in rows[0] else None
    examples = load_examples(name, folder, pairs=False)[0].get("test", [])    # no run trains on it
    rows, dropped = data.make_rows(examples, tokenizer, args["max_len"], args["max_prompt_len"])
    counts = ", ".join(f"{n:,} {why}" for why, n in dropped.items()) or "none"
    say(f"data: {name}, {len(rows):,} articles; dropped: {counts}")
    if not rows:
        raise ValueError(f"{name}: no article of the test split leaves room for an answer in the run's "
                         f"{args['max_len']} tokens; train with --max_prompt_len")
    return rows, None

def held_out(facts, tokenizer, rewards, *, name, folder, n_prompts, max_new_tokens, seed, say):
    """
    The HeldOut of a data set for a run.

    facts           the run's args.json
    rewards         {name: Reward}
    name, folder    of the data set; folder is None for the hub
    max_new_tokens  tokens per completion at most. None: what three of four prompts leave room for, up to 128

    Prompts that leave less room in the run's max_len are dropped, and counted. Raises ValueError if none is left.
    """
    max_len, pairs, labels, chosen = facts["args"]["max_len"], None, None, None
    if name == facts["args"]["data"] and "pairs" in facts:
        pairs = sampling.read_pairs(facts["pairs"], tokenizer.n_vocab)["val"]
    if name == "toy":
        examples = toy.examples("test", n_prompts, seed)
        prompts = tokenizer.encode_ordinary_batch([e["prompt"] for e in examples])
        labels = [e["positive"] for e in examples]
    elif name == "imdb":
        span = facts["args"].get("prompt_tokens") or "32"
        prompts, labels = beginnings(folder, "test", tokenizer, span, n_prompts, seed)
    else:
        rows, pairs = held_out_rows(name, folder, facts, tokenizer, say)
        wanted = {tuple(r["prompt"]): r["chosen"] for r in rows if r.get("label", 1)}    # not what is undesirable
        rows = {tuple(r["prompt"]): r for r in rows}.values()    # each prompt once
        prompts, chosen = [r["prompt"] for r in rows], [wanted.get(tuple(r["prompt"])) for r in rows]
    usual = int(np.percentile([len(p) for p in prompts], 75, method="higher"))    # three of four are not longer
    max_new_tokens = max_new_tokens or min(128, max_len - usual)
    fit = [i for i, p in enumerate(prompts) if len(p) + max_new_tokens <= max_len]
    if not fit:
        raise ValueError(f"--max_new_tokens {max_new_tokens}: no held-out prompt leaves so much room in the run's "
                         f"{max_len} tokens")
    if len(fit) < len(prompts):
        print(f"{len(prompts) - len(fit)} of {len(prompts)} prompts are dropped: with {max_new_tokens} new tokens "
              f"they are longer than {max_len}")
    fit = fit[:n_prompts]
    kept = lambda column: column and [column[i] for i in fit]    # None stays None
    return HeldOut(tokenizer, kept(prompts), kept(labels), pairs, rewards, max_new_tokens, kept(chosen), name == "toy")

def load_held_out(args, facts, policy, ranked, device, autocast, say):
    """The HeldOut that the flags ask for, of the first run's data unless --data names others."""
    run_args = facts["args"]
    name, folder = run_args["data"], args.data_dir or run_args["data_dir"]
    if args.data:
        name, folder = args.data, args.data_dir
    tokenizer = data.get_tokenizer(name, policy.config.vocab_size)
    cli.check_fits(policy, tokenizer, run_args["max_len"], args.run[0])
    rewards = load_rewards(name, ranked, args.gold, tokenizer, run_args["max_len"], device, args.batch_size, autocast)
    held = held_out(facts, tokenizer, rewards, name=name, folder=folder, n_prompts=args.n_prompts,
                    max_new_tokens=args.max_new_tokens, seed=args.seed, say=say)
    if (args.best_of or args.against) and "reward" not in rewards:
        raise ValueError(f"--{'best_of' if args.best_of else 'against'} needs a reward, and {run_args['data']} has "
                         "none: give a reward model with --reward")
    return held

# ---------------------------------------------------------------------------------------------------------------------
# One run

def first_texts(measured, held):
    """The text of each prompt's first completion."""
    return [data.decode(held.tokenizer, several[0]) for several in measured.answers]

def temperature_rows(look, models, base, held, temperatures, n_samples):
    """
    A row for each further temperature: measures of each model, and the first sample of each prompt by the policy.

    look  a function of (name, temperature, k) that returns the Measured
    base  the Measured at the first temperature that wins are counted against
    """
    rows = []
    for temperature in temperatures:
        row, k = {"temperature": temperature}, min(4, n_samples) if temperature else 1    # at 0 all samples are equal
        for name in models:
            there = look(name, temperature, k)
            row[name] = intervals(there.values | won(there, base))
        row["samples"] = first_texts(there, held)    # of the policy, which is the last of models
        rows.append(row)
    return rows

def sample_records(found, held):
    """For each prompt its text, the first completion of each Measured, the data's own answer, and the rewards."""
    texts = {name: first_texts(measured, held) for name, measured in found.items()}
    if held.chosen:
        texts["chosen"] = [c and data.decode(held.tokenizer, c) for c in held.chosen]    # None stays None
    records, listed = [], lambda tokens: " ".join(map(str, tokens))
    for i, prompt in enumerate(held.prompts):
        record = {"prompt": data.decode(held.tokenizer, prompt)}
        record |= {name: several[i] for name, several in texts.items() if several[i] is not None}
        first = {"prompt": prompt} | {name: measured.answers[i][0] for name, measured in found.items()}
        record["tokens"] = {name: listed(tokens) for name, tokens in first.items()}    # page.py reads them
        if held.rewards:
            record["rewards"] = {}
            for name, measured in found.items():
                record["rewards"][name] = {key: round(float(r[i, 0]), 3) for key, r in measured.rewards.items()}
        records.append(record)
    return records

def evaluate(run, loaded, held, others, known, *, temperatures, n_samples, best_of_n, seed, batch_size, autocast):
    """
    Measures one run and writes its eval.json. Returns (what eval.json holds, {"before", "after": Measured}).

    loaded        load_policy's (facts, policy, reference). Without a reference there is no "before".
    others        rewards (n, k) of another run's samples, or None
    known         {(reference, temperature): Measured}: filled here, so that runs with one reference measure it once
    temperatures  the first is that of the main table
    best_of_n     samples of the reference per prompt, for best-of-n; or None
    """
    facts, policy, reference = loaded
    before = lambda: as_reference(policy, reference)    # a context manager: an adapter is off inside it only
    models = {"before": before, "after": lambda: nullcontext(policy)}
    if reference is None:
        del models["before"]
    base = next(iter(models))

    def look(name, temperature, k):
        key = facts.get("reference_fingerprint", run), temperature
        if name == "before" and key in known:
            return known[key]
        with models[name]() as model:
            seen = measure(model, before, held, temperature, k, seed, batch_size, autocast)
        if name == "before":
            known[key] = seen
        return seen

    found = {name: look(name, temperatures[0], n_samples) for name in models}
    on_pairs = {}
    if held.pairs and reference is not None:
        on_pairs = pair_measures(policy, before, held.pairs, batch_size, autocast)
    found = compared(found, others, on_pairs)
    result = {"prompts": len(held.prompts), "n_samples": n_samples, "pairs": len(held.pairs or []),
              "temperature": temperatures[0], "measures": {name: intervals(f.values) for name, f in found.items()}}
    if temperatures[1:]:
        result["temperatures"] = temperature_rows(look, models, found[base], held, temperatures[1:], n_samples)
    if best_of_n:
        with models[base]() as model:
            rewards = sample(model, held, best_of_n, 1.0, seed, max(256, batch_size), autocast)[1]["reward"]
        result["best_of"] = best_of_rows(rewards)
    result["samples"] = sample_records(found, held)
    with cli.bad_input():
        write_json(Path(run) / "eval.json", result)
    return result, found

def print_results(results, columns, n_show, may_end, n_vocab):
    """
    Prints the tables, n_show samples of each run, and notes on runs whose numbers mean little.

    results  {run: what eval.json holds}
    columns  {name: {measure: [mean, low, high]}} of the main table
    may_end  whether samples had room to end
    """
    first, notes = next(iter(results.values())), {}    # notes: a dict, so that each is printed once
    print(f"{', '.join(results)} on {first['prompts']} held-out prompts, {first['n_samples']} samples each at "
          f"temperature {first['temperature']}; [95% interval]\n\n{table(columns)}\n")
    for run, result in results.items():
        lines = more_tables(result)
        if len(results) > 1 and (n_show or "temperatures" in result):
            print(f"{run}\n")
        if lines:
            print("\n".join(lines) + "\n")
        for one in result["samples"][:n_show]:
            print("\n".join(sample_lines(one)) + "\n")
        notes |= dict.fromkeys(notes_on(result, n_vocab, may_end))
    print(f"in {', '.join(results)}: eval.json (measures, all samples), eval.png and curves.png (pictures), log.csv")
    for note in notes:
        print(f"note: {note}")

# ---------------------------------------------------------------------------------------------------------------------
# The command

def main(argv=None, say=print):
    """
    Returns what eval.json holds, without the samples; for several runs {run: the same}.
    say: prints the lines about device and data. After training they are known, so the train scripts pass a silent one.
    """
    args = get_args(argv)
    with cli.interruptible("eval.py", args, argv):
        return report(args, say)

def report(args, say):
    """Loads the runs and the held-out data, measures each run, prints and draws the results. Returns as main does."""
    with cli.bad_input():
        first = args.run[0]
        trained_on = rundir.read_args(first)["args"].get("data")
        device, autocast = cli.set_up(**cli.flags_of(args, cli.set_up) | {"say": say, "data": trained_on})
        wanted = args.run + ([args.against] if args.against else [])
        runs = {run: load_policy(run, device) for run in wanted}
        if args.prompt is not None:
            return [answer(loaded, args.prompt, autocast, n_answers=args.show, max_new_tokens=args.max_new_tokens,
                           temperature=args.temperature[0], seed=args.seed) for loaded in runs.values()]
        facts, policy, _ = runs[first]
        if args.chat:
            tokenizer = data.get_tokenizer(facts["args"]["data"], policy.config.vocab_size)
            with autocast:
                return chat.chat(policy, tokenizer, facts, args.max_new_tokens, args.temperature[0], args.seed)
        check_same_texts(runs, first)
        ranked = ranking_reward(runs, args.reward, facts["args"]["data"] == "toy")
        held = load_held_out(args, facts, policy, ranked, device, autocast, say)
        shown = {run: runs[run] for run in args.run}
        pairs = displacement.paired(held, shown, args.n_prompts) if args.displacement else None
    others = None
    if args.against:
        others = sample(runs[args.against][1], held, args.n_samples, args.temperature[0], args.seed,
                        max(256, args.batch_size), autocast)[1]["reward"]
    known, results, found = {}, {}, {}
    how = {"n_samples": args.n_samples, "seed": args.seed, "batch_size": args.batch_size, "autocast": autocast}
    for run in args.run:
        results[run], found[run] = evaluate(run, runs[run], held, others, known, temperatures=args.temperature,
                                            best_of_n=args.best_of, **how)
    references = {run: runs[run][0]["args"]["init_from"] for run in args.run}
    with cli.bad_input():
        grey = {"before"} if len(results) == 1 else set(references.values()) - set(results)
        draw([Path(run) / "eval.png" for run in results], name_columns(found, references), grey)
    columns = name_columns({run: result["measures"] for run, result in results.items()}, references)
    print_results(results, columns, args.show, held.toy and not args.max_new_tokens, held.tokenizer.n_vocab)
    if pairs:
        displacement.report(shown, pairs, args.show, **how)
    for result in results.values():
        del result["samples"]
    return results if len(results) > 1 else results[first]

if __name__ == "__main__":
    main()
