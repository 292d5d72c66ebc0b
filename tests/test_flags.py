"""Every flag reaches what it names, and every default is what the help says: by its effect on a tiny run, with the numbers by hand."""
import itertools
import json
import math
import types
from contextlib import nullcontext

import pytest
import torch
import torch.nn as nn

import adapters
import data
import eval
import loop
import measures
import toy
import train_pref
import train_sft
from losses import LOSSES, Pairs, register, sequence_logps
from model import GPT, GPTConfig
from rlhf import train_ppo, train_reward
from support import cli
from test_loop import log_rows

BATCHES = data.Batches

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with 60 pairs and 60 texts in the toy world's words; each has a prompt and answers of its own, of different lengths."""
    root = tmp_path_factory.mktemp("flags")
    words = ["the plot was superb", "the cast was dull", "i saw this film", "the music was fine", "a waste of time"]
    line = lambda i, n: " ".join(words[(i + j) % 5] for j in range(n))
    rows = [{"prompt": f"{i} {line(i, 1 + i % 3)}", "chosen": f" {line(i, 1 + i % 2)} .", "rejected": f" {line(i + 2, 1)} {i} ."}
            for i in range(60)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "texts.jsonl").write_text("".join(json.dumps({"prompt": r["prompt"], "completion": r["chosen"]}) + "\n" for r in rows))
    return root

@pytest.fixture
def run(world, sft_run, tokenizer, tmp_path, monkeypatch):
    """Runs a script's main for two updates; returns its folder, result, rows and log, {(split, metric): values}."""
    count = itertools.count()
    monkeypatch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
    monkeypatch.setattr(loop, "plot_curves", lambda folder: None)
    monkeypatch.setattr(eval, "main", lambda *args, **more: {})
    def go(*flags, main=train_pref.main):
        out, seen = tmp_path / f"run{next(count)}", []
        monkeypatch.setattr(data, "Batches", lambda rows, *args, **more: seen.append(rows) or BATCHES(rows, *args, **more))
        from_scratch = main is train_sft.main
        start = ["--data", str(world / ("texts.jsonl" if from_scratch else "pairs.jsonl"))]
        start += [] if from_scratch else ["--init_from", str(sft_run)]
        found = main([*start, "--out_dir", str(out), "--batch_size", "4", "--max_steps", "2",
                      "--eval_every", "1", "--warmup_steps", "0", "--patience", "0", *flags])
        log = {}
        for _, split, metric, value in log_rows(out):
            log.setdefault((split, metric), []).append(value)
        return types.SimpleNamespace(out=out, result=found, rows=dict(zip(("train", "val"), seen)), log=log)
    return go

SFT = dict(main=train_sft.main)
SMALL = ("--n_layer", "1", "--n_head", "2", "--n_embd", "16")

def state(made):
    """The last weights of a run, by name."""
    return torch.load(made.out / "state.pt", weights_only=True)["model"]

@pytest.fixture
def new_loss():
    """Registers losses that are gone behind the test."""
    before = dict(LOSSES)
    yield register(needs_ref=False)
    LOSSES.clear()
    LOSSES.update(before)

# ---------------------------------------------------------------------------------------------------------------------
# --dropout

def test_dropout_reaches_every_dropout_and_the_attention(sft_run):
    """Attention has no module for it: a fused kernel takes the number, and it is easily left at 0."""
    idx = torch.arange(12)[None] + 300
    def effect(part):
        """Whether a model changes between two passes in training when this part of it alone drops out."""
        model = GPT.from_pretrained(sft_run, 0.5).train()
        parts = [m for m in model.modules() if isinstance(m, nn.Dropout) or isinstance(getattr(m, "dropout", None), float)]
        for i, module in enumerate(parts):
            if i != part:
                setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.0)
        return not torch.equal(model(idx), model(idx))
    with torch.no_grad():
        assert [effect(part) for part in range(5)] == [True, True, True, True, False]    # embedding, attention and behind it, MLP; none
        model = GPT.from_pretrained(sft_run, 0.5).eval()
        assert torch.equal(model(idx), model(idx)) and torch.equal(model(idx), GPT.from_pretrained(sft_run).eval()(idx))

def test_dropout_of_a_run_is_on_in_updates_and_off_in_reference_and_evaluation(run):
    """Noise in the reference's log-probs stays in every log-ratio of the run; noise in evaluation chooses the weights by chance."""
    plain, noisy = (run("--lr", "0", "--beta", "1", "--dropout", p) for p in ("0", "0.5"))
    for split in ("train", "val"):
        for key in ("ref_chosen_logps", "ref_rejected_logps"):
            assert [r[key] for r in plain.rows[split]] == [r[key] for r in noisy.rows[split]]
    assert noisy.log["val", "loss"] == plain.log["val", "loss"] == pytest.approx([math.log(2)] * 3, abs=1e-5)
    assert plain.log["train", "loss"] == pytest.approx([math.log(2)] * 2, abs=1e-5)
    assert all(abs(x - math.log(2)) > 1e-3 for x in noisy.log["train", "loss"])

def test_dropout_of_supervised_training_from_scratch(run):
    """The model is made there, not loaded, so the number goes another way."""
    plain, noisy = (run(*SMALL, "--lr", "0", "--dropout", p, **SFT) for p in ("0", "0.5"))
    assert plain.log["val", "loss"] == noisy.log["val", "loss"] and plain.log["train", "loss"] != noisy.log["train", "loss"]

# ---------------------------------------------------------------------------------------------------------------------
# the optimizer

def test_weight_decay_shrinks_matrices_by_lr_times_it_and_nothing_else(run, sft_run, new_loss):
    """With a gradient of 0 an update is the decay alone: matrices times 1 - lr * weight_decay, biases and norms as they were."""
    @new_loss
    def still(pairs):
        zero = 0 * (pairs.policy_chosen_logps + pairs.policy_rejected_logps)
        return zero, zero.detach(), zero.detach()
    before = GPT.from_pretrained(sft_run).state_dict()
    for flags, factor in ((("--weight_decay", "0.5"), 0.95), ((), 1.0)):
        after = state(run("--loss", "still", "--lr", "0.1", "--max_steps", "1", *flags))
        assert {p.dim() for p in after.values()} == {1, 2}
        for name, p in after.items():
            assert torch.allclose(p, before[name] * (factor if p.dim() == 2 else 1), atol=1e-7), name

def moved(made, before):
    """How far all weights have moved, a norm."""
    return math.sqrt(sum((p.double() - before[name].double()).pow(2).sum().item() for name, p in state(made).items()))

def test_lr_adam_epsilon_and_grad_clip_by_hand(run, sft_run):
    """
    The first update of AdamW is lr * g / (|g| + epsilon) in every weight. With an epsilon far above every gradient that is lr / epsilon
    times g, clipped: its norm is lr / epsilon * min(clip, the norm that is logged).
    """
    before, flags = GPT.from_pretrained(sft_run).state_dict(), ("--loss", "sft", "--max_steps", "1", "--eval_every", "1")
    free = run(*flags, "--lr", "100", "--adam_epsilon", "1000", "--grad_clip", "0")
    norm, = free.log["train", "grad_norm"]
    assert norm > 0.2 and moved(free, before) == pytest.approx(0.1 * norm, rel=0.01)
    for more, want in ((("--lr", "200", "--adam_epsilon", "1000", "--grad_clip", "0.1"), 0.02),
                       (("--lr", "100", "--adam_epsilon", "2000", "--grad_clip", "0.1"), 0.005),
                       (("--lr", "100", "--adam_epsilon", "1000"), 0.1 * min(norm, 1.0))):    # clipped at 1 unless told otherwise
        made = run(*flags, *more)
        assert made.log["train", "grad_norm"] == [norm] and moved(made, before) == pytest.approx(want, rel=0.01)

@pytest.mark.parametrize("main", [train_pref.main, train_sft.main], ids=["pref", "sft"])
def test_lr_min_lr_and_warmup_steps_by_hand(run, main):
    """Half a cosine from lr to min_lr behind a line of warmup_steps that does not begin at 0; max_steps is where it would reach min_lr."""
    flags = ("--lr", "1e-3", "--min_lr", "2e-4", "--warmup_steps", "2", "--max_steps", "6", "--eval_every", "6")
    made = run(*flags, *(SMALL if main is train_sft.main else ()), main=main)
    half = 4e-4    # (lr - min_lr) / 2
    cosine = [2e-4 + half * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert made.log["train", "lr"] == pytest.approx([5e-4, 1e-3, *cosine], rel=1e-6)

def test_grad_accum_takes_so_many_batches_for_one_update(run):
    """The first update of two batches is logged as the mean over both; with lr 0 the same batches can be seen one by one."""
    flags = ("--loss", "slic", "--lr", "0", "--batch_size", "3")
    one, two = run(*flags, "--max_steps", "4"), run(*flags, "--grad_accum", "2")
    losses = one.log["train", "loss"]
    assert len(set(losses)) == 4
    assert two.log["train", "loss"] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-5)

@pytest.mark.parametrize("get_args, argv, epsilon", [
    (train_pref.get_args, [], 1e-3), (train_pref.get_args, ["--adapter", "parallel"], 1e-8), (train_pref.get_args, ["--data", "hh"], 1e-8),
    (train_pref.get_args, ["--adam_epsilon", "1e-5"], 1e-5), (train_pref.get_args, ["--data", "hh", "--adam_epsilon", "1e-5"], 1e-5),
    (train_sft.get_args, [], 1e-8), (train_sft.get_args, ["--data", "hh"], 1e-8), (train_reward.get_args, [], 1e-8),
    (train_ppo.get_args, [], 1e-3), (train_ppo.get_args, ["--data", "imdb"], 1e-8), (train_ppo.get_args, ["--adam_epsilon", "1e-5"], 1e-5)],
    ids=lambda x: " ".join(x) if isinstance(x, list) else getattr(x, "__module__", ""))
def test_the_default_of_adam_epsilon(get_args, argv, epsilon):
    """It decides how far DPO goes from the reference: 1e-3 for preferences and PPO on the toy world, and nowhere else."""
    assert get_args(argv).adam_epsilon == epsilon

def test_patience_counts_evaluations_and_0_never_stops(run):
    """With lr 0 no evaluation is better than the first."""
    flags = ("--lr", "0", "--max_steps", "5")
    assert run(*flags, "--patience", "2").result["step"] == 2 and run(*flags, "--patience", "0").result["step"] == 5
    assert train_pref.get_args([]).patience == 3

def test_on_nonfinite_stops_or_skips(run, new_loss, capsys):
    """A run of hours that ends at one bad batch, or one that trains on through NaN: which of them is the flag's to say."""
    @new_loss
    def broken(pairs):
        update = next(updates) if torch.is_grad_enabled() and len(pairs.chosen_lens) == 4 else 0    # not in evaluation, nor the trial
        losses = pairs.policy_chosen_logps * (math.nan if update == 1 else -1)
        return losses, losses.detach(), losses.detach()
    updates = itertools.count()
    made = run("--loss", "broken", "--max_steps", "3", "--eval_every", "3", "--on_nonfinite", "skip")
    assert made.result["skipped"] == 1 and made.result["step"] == 3 and made.log["train", "skipped"] == [1]
    updates = itertools.count()
    with pytest.raises(SystemExit) as end:
        run("--loss", "broken", "--max_steps", "3", "--eval_every", "3")
    assert "step 1, update 2" in str(end.value.code) and "--on_nonfinite skip" in str(end.value.code)

# ---------------------------------------------------------------------------------------------------------------------
# rows and batches

def test_max_prompt_len_takes_the_beginning_and_max_len_the_end(run, tokenizer):
    """The other way round the question is lost and the answer kept, and no number shows it."""
    whole, cut = run(), run("--max_prompt_len", "4", "--max_len", "8")
    tokens = {tuple(r["prompt"]): r for part in whole.rows.values() for r in part}
    assert max(len(p) for p in tokens) > 6
    for row in (r for part in cut.rows.values() for r in part):
        full = next(r for p, r in tokens.items() if list(p[-4:]) == row["prompt"] and r["chosen"][:len(row["chosen"])] == row["chosen"])
        assert len(row["prompt"]) == 4 and row["rejected"] == full["rejected"][:4] and row["chosen"] == full["chosen"][:4]
    assert any(row["chosen"][-1] != tokenizer.eot_token for row in cut.rows["train"])

@pytest.mark.parametrize("main", [train_pref.main, train_sft.main, train_reward.main], ids=["pref", "sft", "reward"])
def test_n_val_keeps_so_many_validation_rows_always_the_same(run, main):
    """Other rows each time and no two runs could be compared; taken off training, it would change what is learned."""
    more = SMALL if main is train_sft.main else ()
    whole, some, again = (run(*more, *flags, main=main) for flags in ((), ("--n_val", "2"), ("--n_val", "2", "--seed", "1")))
    prompts = lambda made, split: [r["prompt"] for r in made.rows[split]]
    assert len(whole.rows["val"]) > 2 == len(some.rows["val"]) and prompts(some, "val") == prompts(again, "val")
    assert all(p in prompts(whole, "val") for p in prompts(some, "val")) and prompts(some, "train") == prompts(whole, "train")

def test_label_noise_swaps_its_share_of_training_and_validation(run):
    """Flipped in training alone, the validation loss would choose the weights by labels that no one has."""
    clean, noisy = run(), run("--label_noise", "0.25")
    for split in ("train", "val"):
        sides = [[(r["chosen"], r["rejected"]) for r in made.rows[split]] for made in (clean, noisy)]
        assert sum(a != b for a, b in zip(*sides)) == round(0.25 * len(sides[0])) > 0
        assert all(b in (a, a[::-1]) for a, b in zip(*sides))

def test_batch_size_pairs_stand_in_a_batch(run, new_loss):
    """Also in evaluation, where a larger one would need more memory than training."""
    sizes = {True: set(), False: set()}
    @new_loss
    def counted(pairs):
        sizes[torch.is_grad_enabled()].add(len(pairs.chosen_lens))
        losses = -pairs.policy_chosen_logps
        return losses, losses.detach(), losses.detach()
    rows = run("--loss", "counted", "--batch_size", "5").rows
    last = {split: len(rows[split]) % 5 for split in rows}    # of an epoch
    assert {5} <= sizes[True] <= {5, last["train"], 2} and sizes[False] == {5, last["val"]}    # 2: the pairs with which a loss is tried

def test_seed_is_that_of_weights_and_order(run):
    """The same seed gives the same bits; another one another order, and from scratch other weights."""
    a, b, c = (run("--seed", seed, "--loss", "slic").log for seed in ("0", "0", "1"))
    assert a == b and a["val", "loss"][0] == c["val", "loss"][0] and a["train", "loss"] != c["train", "loss"]
    a, b, c = (run(*SMALL, "--seed", seed, **SFT).log["val", "loss"][0] for seed in ("0", "0", "1"))
    assert a == b != c

def test_share_prefix_puts_a_pair_in_one_row(run, monkeypatch):
    """Without an effect the numbers are the same: only the rows show it."""
    rows = []
    real = GPT.features
    monkeypatch.setattr(GPT, "features", lambda self, idx, *args, **more: rows.append(len(idx)) or real(self, idx, *args, **more))
    apart = run("--loss", "slic", "--lr", "0").log
    n = sorted(set(rows))
    rows.clear()
    shared = run("--loss", "slic", "--lr", "0", "--share_prefix").log
    assert n[-1] == 8 and sorted(set(rows)) == [k // 2 for k in n]
    assert shared["val", "loss"] == pytest.approx(apart["val", "loss"], rel=1e-5)

def test_n_prompts_are_sampled_for(run, capsys):
    """Its default is 1,200, four completions each; on a large model that is most of the time of a run."""
    run("--data", "toy", "--n_prompts", "9", "--max_len", "16", "--label_noise", "0")
    assert "pairs: 9 train prompts x 4 samples" in capsys.readouterr().out

def test_n_show_samples_are_shown(run, monkeypatch):
    """It is handed on to eval.py, by another name."""
    seen = []
    monkeypatch.setattr(eval, "main", lambda argv, **more: seen.append(eval.get_args(argv).show) or {})
    run("--n_show", "7")
    run()
    assert seen == [7, 3]

# ---------------------------------------------------------------------------------------------------------------------
# what goes with every loss

def first_by_hand(made, model, formula):
    """The mean over validation pairs of a formula of (c, r, n, m): summed log-probs and lengths, each pair by itself."""
    values = []
    for row in made.rows["val"]:
        batch = data.collate([row])
        with torch.no_grad():
            (c, r), (n, m) = (x.tolist() for x in sequence_logps(model, batch["idx"], batch["completion_mask"]))
        values.append(formula(c, r, n, m))
    return sum(values) / len(values)

def test_mean_logps_and_sft_weight_by_hand(run, sft_run):
    """The weight is of the chosen's NLL per token, added: with a minus the run unlearns its chosen answers, and the margins look well."""
    model = GPT.from_pretrained(sft_run).eval()
    flags = ("--loss", "slic", "--delta", "2", "--reg", "0", "--lr", "0", "--max_steps", "1")
    for more, formula in (((), lambda c, r, n, m: max(0, 2 - c + r)), (("--mean_logps",), lambda c, r, n, m: max(0, 2 - c / n + r / m)),
                          (("--sft_weight", "3"), lambda c, r, n, m: max(0, 2 - c + r) - 3 * c / n)):
        made = run(*flags, *more)
        assert made.log["val", "loss"][0] == pytest.approx(first_by_hand(made, model, formula), rel=1e-4), more

@pytest.mark.parametrize("schedule, betas", [
    ((), [0.85, 0.7, 0.55, 0.4]), (("--beta_schedule", "linear"), [0.85, 0.7, 0.55, 0.4]), (("--beta_schedule", "constant"), [1.0] * 4),
    (("--beta_schedule", "cosine"), [1 - 0.6 * (0.5 - 0.5 * math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)])], ids=str)
def test_beta_end_and_beta_schedule_by_hand(run, schedule, betas):
    """Logged for each update, the last of them at beta_end; evaluations are at the last one throughout."""
    log = run("--loss", "ipo", "--beta", "1", "--beta_end", "0.4", *schedule, "--max_steps", "4", "--eval_every", "4", "--lr", "0").log
    assert log["train", "beta"] == pytest.approx(betas) and log["val", "beta"] == pytest.approx([betas[-1]] * 2)
    assert log["train", "loss"] == pytest.approx([1 / (4 * b * b) for b in betas], rel=1e-4)    # the loss had it too

def test_keep_all_keeps_the_weights_of_every_evaluation(run):
    """Without it only the best are there."""
    flags = ("--max_steps", "4", "--eval_every", "2")
    assert sorted(p.name for p in run(*flags, "--keep_all").out.glob("step-*")) == ["step-0", "step-2", "step-4"]
    assert not list(run(*flags).out.glob("step-*"))

# ---------------------------------------------------------------------------------------------------------------------
# adapters

def test_the_defaults_of_adapter_rank_and_adapter_init(run, sft_run):
    """16 hidden units; replace begins with the MLP's best neurons, as at random there is no language left to prefer anything in."""
    flags = ("--adapter", "replace", "--lr", "0", "--max_steps", "1", "--keep_all")
    base = GPT.from_pretrained(sft_run)
    def start(*more):
        folder = run(*flags, *more).out / "step-0"
        return json.loads((folder / "adapter.json").read_text())["rank"], adapters.load_tensors(folder / "adapter.safetensors")
    rank, found = start()
    best = adapters.adapter_state_dict(adapters.add_adapters(GPT.from_pretrained(sft_run), "replace", 16, "neurons"))
    assert rank == 16 and all(torch.equal(found[k], best[k]) for k in best) and found.keys() == best.keys()
    rank, found = start("--adapter_init", "random", "--adapter_rank", "3")
    key = "transformer.h.0.mlp.down.weight"
    rows = base.transformer.h[0].mlp.c_fc.weight
    assert rank == 3 and found[key].shape == (3, 16) and not (found[key][:, None] == rows).all(-1).any()

@pytest.mark.parametrize("mode", adapters.MODES)
def test_the_state_of_an_adapter_run_holds_no_frozen_weights(run, mode):
    """GPT-2's 500 MB at every evaluation, and as much again for moments of weights that never move."""
    made = run("--adapter", mode, "--adapter_rank", "2")
    found = torch.load(made.out / "state.pt", weights_only=True)
    names = [f"transformer.h.0.mlp.{part}.{kind}" for part in ("down", "up") for kind in ("weight", "bias")]
    assert sorted(found["model"]) == sorted(names) and sum(p.numel() for p in found["model"].values()) == 16 * 2 * 2 + 2 + 16
    moments = [v for s in found["optimizer"]["state"].values() for k, v in s.items() if k.startswith("exp_avg")]
    assert sum(p.numel() for p in moments) == 2 * (16 * 2 * 2 + 2 + 16)
    assert (made.out / "state.pt").stat().st_size < 40_000 < (run().out / "state.pt").stat().st_size

@pytest.mark.parametrize("mode, calls", [("replace", 0), ("parallel", 1), ("sequential", 1)])
def test_replace_does_not_compute_the_old_mlp(sft_run, mode, calls):
    """That is what it is for: an adapter that is added to the old output, or computes it for nothing, saves nothing."""
    model, seen = adapters.add_adapters(GPT.from_pretrained(sft_run), mode, 4), []
    for part in adapters.adapter_modules(model):
        part.base.c_fc.register_forward_hook(lambda *args: seen.append(1))
    idx = torch.arange(12)[None] + 300
    model.train()(idx).sum().backward()
    model.generate(idx[:, :4], 1)
    assert len(seen) == 2 * calls
    with adapters.adapters_off(model):
        model(idx)
    assert len(seen) == 2 * calls + 1

# ---------------------------------------------------------------------------------------------------------------------
# the other scripts

def test_the_sizes_of_a_model_from_scratch(run):
    """Swapped, heads and layers still make a model that trains."""
    made = run("--n_layer", "3", "--n_head", "2", "--n_embd", "24", "--max_len", "48", **SFT)
    config = GPT.from_pretrained(made.out).config
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (3, 2, 24, 48)
    assert GPT.from_pretrained(made.out).transformer.wpe.weight.shape == (48, 24)

def test_bpe_vocab_counts_byte_pairs_without_eos(monkeypatch):
    """The matrix has one row more: without it EOS takes the place of the last byte pair."""
    asked = []
    monkeypatch.setattr(data, "get_tokenizer", lambda *args: asked.append(args) or types.SimpleNamespace(n_vocab=args[1] or 50257))
    def made(*flags):
        args = train_sft.get_args(["--data", "my.jsonl", *SMALL, *flags])
        return train_sft.make_model(args.data, **cli.flags_of(args, train_sft.make_model))[0]
    model = made("--bpe_vocab", "300")
    assert asked == [("my.jsonl", 301)] and model.lm_head.weight.shape == (301, 16)
    assert made().lm_head.weight.shape == (50257, 16)

def test_the_halves_of_a_reward_models_reviews(run, tmp_path):
    """The gold model must have learned from other reviews than the one that it is to find out."""
    (tmp_path / "imdb").mkdir()
    for split, n in (("train", 60), ("test", 6)):
        rows = [{"text": f"{split} {i} was {'superb' if i % 2 else 'dull'} .", "label": i % 2} for i in range(n)]
        (tmp_path / "imdb" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--data", "imdb", "--data_dir", str(tmp_path / "imdb"), "--max_steps", "1")
    whole, first, second = ({tuple(r["chosen"]) for r in run(*flags, *more, main=train_reward.main).rows["train"]}
                            for more in ((), ("--half", "first"), ("--half", "second")))
    assert not first & second and first | second == whole and abs(len(first) - len(second)) <= 1

@pytest.fixture(scope="module")
def measured(sft_run, tokenizer, tmp_path_factory):
    """eval.py of the SFT run on the toy world's prompts: flags -> (measures, samples, Measured)."""
    folder, examples = tmp_path_factory.mktemp("eval") / "run", toy.examples
    def go(*flags):
        folder.mkdir(exist_ok=True)
        for path in sft_run.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
            patch.setattr(eval, "draw", lambda paths, columns, grey: seen.append(columns))
            patch.setattr(toy, "examples", lambda split, n, seed=0: examples(split, n))    # the same prompts whatever --seed
            eval.main(["--run", str(folder), "--data", "toy", "--show", "0", "--n_prompts", "5", "--max_new_tokens", "6", *flags])
        stored = json.loads((folder / "eval.json").read_text())
        return stored["measures"]["after"], stored["samples"], seen[0]["after"]
    return go

def test_the_flags_of_eval(measured):
    """Each of them changes every number of the table: how many prompts and samples, how long, how warm, and which draw."""
    _, samples, found = measured("--n_samples", "3")
    assert len(samples) == 5 and len(found.answers) == 5 and {len(a) for a in found.answers} == {3}
    assert max(len(a) for several in found.answers for a in several) == 6
    assert measured("--n_samples", "3")[2].answers == found.answers != measured("--n_samples", "3", "--seed", "1")[2].answers
    _, samples, short = measured("--n_prompts", "2", "--n_samples", "1", "--max_new_tokens", "2", "--seed", "1")
    assert len(samples) == 2 and {len(a) for a in short.answers} == {1} and max(len(a) for several in short.answers for a in several) == 2

def test_the_temperature_of_eval_is_that_of_samples_and_entropy(measured):
    """At 0 all samples of a prompt are one and the entropy is 0; at 1 they differ."""
    cold, _, found = measured("--temperature", "0", "--n_samples", "2")
    assert all(a == b for a, b in found.answers) and cold["entropy"][0] == pytest.approx(0, abs=1e-3)
    warm, _, found = measured("--n_samples", "2")
    assert any(a != b for a, b in found.answers) and warm["entropy"][0] > 1

# ---------------------------------------------------------------------------------------------------------------------
# digits

def bfloat16_holds(values):
    """The share of numbers that 8 bits of mantissa can say: of float32 sums nearly none."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return (values.bfloat16().double() == values).double().mean().item()

def test_measures_are_float32_under_bfloat16():
    """A log-softmax in bfloat16 says the KL of a token to two digits; added up over hundreds of tokens it is negative as often as not."""
    torch.manual_seed(0)
    p, q = (GPT(GPTConfig(block_size=256, vocab_size=300, n_layer=1, n_head=2, n_embd=16)).eval() for _ in range(2))
    for m in (p, q):
        m.lm_head.weight.data *= 20
    rows = [{"prompt": [1, 2], "chosen": torch.randint(300, (250,)).tolist()} for _ in range(3)]
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    held = types.SimpleNamespace(prompts=[r["prompt"] for r in rows], max_new_tokens=250)
    batch, of = data.collate(rows), nullcontext
    with autocast:
        found, same = (measures.token_measures(p, of(other), batch, torch.device("cpu")) for other in (q, p))
    exact = measures.token_measures(p, of(q), batch, torch.device("cpu"))
    mask = batch["completion_mask"][:, 1:].numpy()
    for key, values in found.items():
        assert str(values.dtype) == "float32" and bfloat16_holds(values[mask]) < 0.1, key
        assert values[mask].mean() == pytest.approx(exact[key][mask].mean(), rel=0.03), key
    assert not same["kl"].any() and not same["logratio"].any()
    sums, curves = measures.model_measures(p, lambda: of(q), [[r["chosen"]] for r in rows], held, 1.0, 3, autocast)
    assert all(bfloat16_holds(values) == 0 for values in (*sums.values(), *curves.values()))
    assert sums["kl"] == pytest.approx((exact["kl"] * mask).sum(1), rel=0.03)
    accuracy = measures.pair_measures(p, lambda: of(q), [{**r, "rejected": r["chosen"][::-1]} for r in rows], 3, autocast)
    assert bfloat16_holds(accuracy["margin"]) == 0

@pytest.mark.parametrize("name", ["orpo", "simpo", "cpo", "unlikelihood", "sft", "slic"])
@pytest.mark.parametrize("chosen, rejected", itertools.product([-1e-8, 0.0, -1e-3, -50.0], repeat=2))
def test_losses_without_a_reference_are_finite_where_the_policy_is_certain(name, chosen, rejected):
    """log(1 - e^c) is -inf at c = 0, and in float32 from c = -6e-8 on; one learned answer of one token would end the run."""
    c, r = (torch.tensor([x], requires_grad=True) for x in (chosen, rejected))
    one = torch.ones(1)
    losses, *rewards = LOSSES[name].fn(Pairs(c, r, None, None, one, one))
    grads = torch.autograd.grad(losses.sum(), (c, r), allow_unused=True)
    assert losses.isfinite().all() and all(x.isfinite().all() for x in rewards) and all(g is None or g.isfinite().all() for g in grads)
    assert grads[0].item() < 0    # the chosen is still pushed up
