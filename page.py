"""
The page of a run: its curves, pairs and samples in one file, with the tokens that the loss moved in color.

    python page.py --run out/toy/dpo                 # writes out/toy/dpo/page.html
    python page.py --run out/toy/dpo out/toy/ipo     # side by side, in the first run's folder

A token's color is its implicit reward, beta * (log pi - log pi_ref). On the toy world the bar below a token is its true
credit: the log-odds that it adds to the text under the grammar. With --keep_all, a slider shows the policy along
training. The file opens without a server or a network. docs/page.md says how to read it. Read next: questions.py
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import adapters
import data
import eval
import toy
from adapters import as_reference
from loop import anneal, to_device
from measures import cluster_correlation, notes_on
from sampling import sample_completions
from support import cli, html, layout, rundir, tables
from support.checkpoint import replacing
from support.html import escape, tag
from support.log import read_log
from support.tokenizers import pieces_of

try:
    from losses import LOSSES
except ValueError as e:    # a loss that cannot be registered; the message says how to write it
    raise SystemExit(f"error: {e}") from None

MOST_STEPS = 12    # of a run with --keep_all

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--run", required=True, nargs="+", help="folders of runs; several are shown side by side")
    p.add_argument("--out", help="the file to write (default: page.html in the first run's folder)")
    p.add_argument("--n_pairs", type=cli.count, default=64, help="held-out pairs to show (default: %(default)s)")
    p.add_argument("--n_samples", type=cli.count, default=32, help="prompts to show samples of (default: %(default)s)")
    p.add_argument("--data_dir", help="folder with the data set's files, instead of the hub")
    cli.add_device_flags(p)
    return p.parse_args(argv)

# ---------------------------------------------------------------------------------------------------------------------
# What models say of a completion

@dataclass
class Seen:
    """A completion of n tokens, as a policy and its reference see it."""
    pieces: list                     # n texts, one for each token
    logps: np.ndarray                # (n,) log pi(token | the tokens before it), nats
    likeliest: list                  # n texts: the five likeliest tokens and their probabilities
    ref_logps: np.ndarray            # the same by the reference, or None
    ref_likeliest: list
    true_credit: np.ndarray          # (n,) the nats that a token adds to toy.log_odds; None on other data

    @property
    def logratios(self):
        """log pi - log pi_ref of each token, (n,) nats; 0 without a reference."""
        return np.zeros(len(self.logps)) if self.ref_logps is None else self.logps - self.ref_logps

@torch.no_grad()
def read_tokens(model, texts, tokenizer, batch_size, autocast):
    """
    What a model says of each token of N completions: N pairs of logps (n,), in nats, and the likeliest tokens, n texts.
    texts: N pairs of token lists, a prompt and its completion.
    """
    rows = [{"prompt": prompt, "chosen": completion, "at": at} for at, (prompt, completion) in enumerate(texts)]
    found, device = [None] * len(rows), next(model.parameters()).device
    for group in data.Batches(rows, batch_size).groups():
        batch = to_device(data.collate(group), device)
        mask = batch["completion_mask"][:, 1:]                         # (N, T - 1): logits[:, t] predicts idx[:, t + 1]
        targets = batch["idx"][:, 1:][mask]                            # (M,)
        logps, likeliest = [], []
        with autocast:
            states = model.features(batch["idx"])[:, :-1][mask]        # (M, C)
            for at in range(0, len(states), 512):                      # (M, V) would be gigabytes at 50,257 tokens
                log_p = model.lm_head(states[at:at + 512]).float().log_softmax(-1)                   # (<= 512, V)
                logps += log_p.gather(-1, targets[at:at + 512, None]).squeeze(-1).tolist()
                shares, tokens = log_p.exp().topk(min(5, log_p.shape[-1]))                           # (<= 512, 5) each
                likeliest += [five_likeliest(tokenizer, *five) for five in zip(shares.tolist(), tokens.tolist())]
        at = 0
        for row in group:
            end = at + len(row["chosen"])
            found[row["at"]] = np.array(logps[at:end]), likeliest[at:end]
            at = end
    return found

def five_likeliest(tokenizer, shares, tokens):
    """The likeliest tokens and their probabilities in one line: "fine 0.52  good 0.2"."""
    names = [pieces_of(tokenizer, [token])[0].strip() or "(white space)" for token in tokens]
    return "  ".join(f"{name} {share:.2g}" for name, share in zip(names, shares))

def true_credit(tokenizer, prompt, completion):
    """The change of toy.log_odds with each token of a completion, (n,) nats. They add up to that of the completion."""
    odds = [toy.log_odds(data.decode(tokenizer, prompt + completion[:n])) for n in range(len(completion) + 1)]
    return np.diff(odds)

def see(policy, before, texts, held, batch_size, autocast):
    """A list of N Seen. before: a function that returns a context manager, which gives the reference or None."""
    ours = read_tokens(policy, texts, held.tokenizer, batch_size, autocast)
    with before() as reference:
        theirs = [(None, None)] * len(texts)
        if reference is not None:
            theirs = read_tokens(reference, texts, held.tokenizer, batch_size, autocast)
    seen = []
    for (prompt, completion), our, their in zip(texts, ours, theirs):
        credit = true_credit(held.tokenizer, prompt, completion) if held.toy else None
        seen.append(Seen(pieces_of(held.tokenizer, completion), *our, *their, credit))
    return seen

# ---------------------------------------------------------------------------------------------------------------------
# Runs

@dataclass
class Pair:
    """A held-out pair as training saw it."""
    prompt: list
    chosen: list
    rejected: list
    flipped: bool          # whether --label_noise swapped it
    rewards: tuple = ()    # of chosen and rejected, if there is a reward

@dataclass
class View:
    """One policy on the page: a run's best weights, or those of one step of a run with --keep_all."""
    run: str
    step: int
    best: bool
    beta: float         # of the implicit reward
    pairs: list         # (chosen, rejected), a Seen each, for each Pair
    samples: list       # {"before", "after": Seen} for each prompt
    rewards: list       # {"before", "after": reward} for each prompt, or {}

def implicit_beta(facts):
    """The beta of a run's implicit rewards at its last update. 1, a scale in nats, if there is none."""
    args, loss = facts["args"], facts["args"].get("loss")
    if args.get("beta") is None or (loss in LOSSES and not LOSSES[loss].needs_ref):
        return 1.0
    beta = anneal(args["max_steps"], args["beta"], args.get("beta_end"), args.get("beta_schedule"), args["max_steps"])
    return beta or 1.0

def held_out_pairs(facts, held, n):
    """n Pairs, spread evenly over the held-out pairs, with labels swapped as training swapped them."""
    rows = [dict(row) for row in held.pairs or ()]
    before = [row["chosen"] for row in rows]
    data.flip_labels(rows, facts["args"].get("label_noise") or 0.0, facts["args"]["seed"])
    pairs = [Pair(row["prompt"], row["chosen"], row["rejected"], row["chosen"] is not chosen)
             for row, chosen in zip(rows, before)]
    if len(pairs) > n:
        pairs = [pairs[len(pairs) * i // n] for i in range(n)]
    if "reward" in held.rewards and pairs:
        texts = [pair.prompt + side for pair in pairs for side in (pair.chosen, pair.rejected)]
        for pair, both in zip(pairs, held.rewards["reward"](texts).reshape(-1, 2)):
            pair.rewards = tuple(both.tolist())
    return pairs

def kept_steps(run, best_step):
    """The steps that --keep_all has kept, at most MOST_STEPS of them: the first, the last, the best, some between."""
    steps = sorted(int(path.name[5:]) for path in Path(run).glob("step-*") if path.name[5:].isdecimal())
    if len(steps) <= MOST_STEPS:
        return steps
    places = np.linspace(0, len(steps) - 1, MOST_STEPS - 1).round().astype(int)
    return sorted({steps[i] for i in places} | ({best_step} & set(steps)))

def samples_of(result, tokenizer, n, block_size):
    """
    {"prompt", "before", "after": tokens} of the first n samples in an eval.json. One from before this page existed has
    the texts only: their tokens are computed from them, without EOS. What the model has no room for is cut off.
    """
    found = []
    for record in result["samples"][:n]:
        names = [name for name in ("prompt", "before", "after") if name in record]
        if "tokens" in record:
            sample = {name: [int(token) for token in record["tokens"][name].split()] for name in names}
        else:
            sample = {name: tokenizer.encode_ordinary(record[name]) for name in names}
        room = max(1, block_size - len(sample["prompt"]))
        found.append({name: tokens[:room if name != "prompt" else None] or [tokenizer.eot_token]
                      for name, tokens in sample.items()})
        if max(map(max, found[-1].values())) >= tokenizer.n_vocab:
            raise ValueError("a sample has tokens that the model does not have")
    return found

def views_of(run, loaded, held, pairs, result, n_samples, *, seed, batch_size, autocast):
    """The Views of a run: one for each kept step, or only that of its best weights."""
    facts, policy, reference = loaded
    before = lambda: as_reference(policy, reference)
    device, beta = next(policy.parameters()).device, implicit_beta(facts)
    best_step = rundir.step_of(run, facts)
    try:
        drawn = samples_of(result, held.tokenizer, n_samples, policy.config.block_size)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise ValueError(f"{Path(run) / 'eval.json'}: damaged ({e}): evaluate the run again") from None
    rewards = [{name: r.get("reward") for name, r in record.get("rewards", {}).items()}
               for record in result["samples"][:n_samples]]
    sides = [(pair.prompt, side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    views = []
    for step in kept_steps(run, best_step) or [best_step]:
        best, model, these, theirs = step == best_step, policy, drawn, rewards
        if not best:    # its own weights and its own samples
            model = adapters.load_model(str(Path(run) / f"step-{step}"))[0].to(device).eval()
            these, theirs = sampled_by(model, drawn, rewards, held, seed, autocast)
        names = [name for name in ("before", "after") if these and name in these[0]]
        texts = [(sample["prompt"], sample[name]) for sample in these for name in names]
        seen = see(model, before, sides + texts, held, batch_size, autocast)
        of_pairs = list(zip(seen[:len(sides):2], seen[1:len(sides):2]))
        of_samples = [dict(zip(names, several)) for several in data.pieces(seen[len(sides):], max(1, len(names)))]
        views.append(View(run, step, best, beta, of_pairs, of_samples, theirs))
    return views

def sampled_by(model, drawn, rewards, held, seed, autocast):
    """The same prompts with samples of another model: (samples, rewards), in the form of those that are given."""
    prompts = [sample["prompt"] for sample in drawn]
    with autocast:
        new = sample_completions(model, held.tokenizer, prompts, held.max_new_tokens, seed=seed)
    samples = [sample | {"after": tokens} for sample, tokens in zip(drawn, new)]
    if "reward" not in held.rewards or not new:
        return samples, rewards
    values = held.rewards["reward"]([prompt + tokens for prompt, tokens in zip(prompts, new)]).tolist()
    return samples, [one | {"after": value} for one, value in zip(rewards, values)]

# ---------------------------------------------------------------------------------------------------------------------
# What the page says

def credit_correlation(view):
    """[r, low, high] of implicit and true credit over all tokens of the pairs. None where there is no true credit."""
    sides = [side for pair in view.pairs for side in pair]
    if not sides or sides[0].true_credit is None:
        return None
    implicit = [np.concatenate([side.logratios for side in pair]) for pair in view.pairs]
    true = [np.concatenate([side.true_credit for side in pair]) for pair in view.pairs]
    return cluster_correlation(implicit, true)

def moved(before, after):
    """"rose from 0.5 to 0.9", or fell or hardly changed, for two [mean, low, high]: their intervals decide."""
    word = "rose from" if after[1] > before[2] else "fell from" if after[2] < before[1] else "hardly changed:"
    return f"{word} {before[0]:.3f} to {after[0]:.3f}"

def verdict(view, result, n_vocab):
    """Sentences on a run: what changed, at what cost, and what to look at."""
    before, after = result["measures"].get("before"), result["measures"]["after"]
    parts = []
    if "reward" in after:
        parts.append(f"the reward {moved(before['reward'], after['reward'])}" if before and "reward" in before
                     else f"the reward is {after['reward'][0]:.3f}")
    elif "accuracy" in after:
        parts.append(f"the policy prefers the chosen completion in {after['accuracy'][0]:.0%} of held-out pairs")
    if "kl" in after:
        parts.append(f"the KL to the reference is {after['kl'][0]:.2f} nats a completion")
    if "whole" in after:
        was = f" ({before['whole'][0]:.0%} before)" if before else ""
        parts.append(f"{after['whole'][0]:.0%} of the sentences are whole{was}")
    first = ", ".join(parts) or "there is no reward to measure"
    sentences = [first[0].upper() + first[1:] + "."]
    if view.pairs:
        w, l = (np.mean([pair[side].logratios.sum() for pair in view.pairs]) for side in (0, 1))
        sentences.append(f"In the pairs below, log pi(chosen) changed by {w:+.2f} nats on average, log pi(rejected) by "
                         f"{l:+.2f}.")
        fell = sum(pair[0].logratios.sum() < 0 for pair in view.pairs)
        if w < 0:
            sentences.append(f"{fell} of {len(view.pairs)} chosen ones fell. That is usual: most losses only ask that "
                             "the gap grows. Sort by how far the chosen fell to see where.")
    notes = notes_on(result, n_vocab, "whole" in after)
    return " ".join(sentences + [f"Look at this first: {note}." for note in notes])

# ---------------------------------------------------------------------------------------------------------------------
# The page

def compose(runs, results, views, pairs, held, logs):
    """The page as HTML. runs: {run: load_policy's}; results: {run: its eval.json}; views: the Views of all runs."""
    best = {}
    for view in views:
        if view.best or view.run not in best:
            best[view.run] = view
    references = {run: loaded[0]["args"]["init_from"] for run, loaded in runs.items()}
    columns = tables.name_columns({run: result["measures"] for run, result in results.items()}, references)
    agreement = {run: credit_correlation(view) for run, view in best.items()}
    if len(runs) == 1:
        agreement = {"after": agreement[next(iter(runs))]}
    names, scale = ", ".join(runs), layout.color_scale(best.values())
    told = [tag("p", (f"<strong>{escape(run)}</strong>: " if len(runs) > 1 else "")
                + escape(verdict(best[run], results[run], held.tokenizer.n_vocab)), class_="verdict")
            + layout.facts(best[run], runs[run][0]["args"]) for run in runs]
    made = list(dict.fromkeys(line for run in runs for line in rundir.commands(run)))
    first = results[next(iter(runs))]
    prompts = [data.decode(held.tokenizer, pair.prompt) for pair in pairs]
    asked = [record["prompt"] for record in first["samples"][:len(views[0].samples)]]
    return html.document(names, "\n".join([
        tag("h1", escape(names)), *told,
        layout.measures(columns, {"correlation of implicit and true credit, tokens": agreement}),
        tag("p", f"Means and 95% intervals over {first['prompts']} held-out prompts, {first['n_samples']} samples each",
            class_="dim"),
        "<details><summary>The commands that made this</summary>" + tag("pre", escape("\n".join(made))) + "</details>",
        layout.curves(logs), layout.colors(scale, held.toy), layout.slider(views),
        layout.pairs_section(pairs, prompts, views, scale), layout.samples_section(asked, views, scale)]))

# ---------------------------------------------------------------------------------------------------------------------
# The command

def main(argv=None, say=print):
    """Writes the page and returns its path. say: prints the lines about device and data, as in eval.py."""
    args = get_args(argv)
    with cli.interruptible("page.py", args, argv), cli.bad_input():
        return write_page(args, say)

def write_page(args, say):
    """Loads the runs, reads their tokens, and writes the file."""
    first = args.run[0]
    path = Path(args.out or Path(first) / "page.html")
    if args.out and (path.is_dir() or not path.parent.is_dir()):
        problem = "is a folder" if path.is_dir() else f"no such folder: {path.parent}"
        raise ValueError(f"--out {path}: {problem}")
    facts = {run: [rundir.read_args(run)] for run in args.run}
    eval.check_same_texts(facts, first)
    results = rundir.read_evals(args.run, args.n_samples)
    on = facts[first][0]["args"].get("data")
    device, autocast = cli.set_up(**cli.flags_of(args, cli.set_up) | {"say": say, "data": on})
    runs = {run: eval.load_policy(run, device) for run in args.run}
    ranked = eval.ranking_reward(runs, None, on == "toy")
    look = eval.get_args(["--run", *args.run, *cli.pass_on(args, "data_dir", "batch_size")])
    held = eval.load_held_out(look, *runs[first][:2], ranked, device, autocast, say)
    pairs = held_out_pairs(runs[first][0], held, args.n_pairs)
    logs = {run: read_log(rundir.args_path(run).parent / "log.csv") for run in args.run}
    views = []
    for run in args.run:
        views += views_of(run, runs[run], held, pairs, results[run], args.n_samples, seed=args.seed,
                          batch_size=args.batch_size, autocast=autocast)
    text = compose(runs, results, views, pairs, held, logs)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace")
    print(f"{path}: the page of {', '.join(args.run)}; open it in a browser ({len(text) / 1e6:.1f} MB)")
    return str(path)

if __name__ == "__main__":
    main()
