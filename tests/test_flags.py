"""Tests of the flags of all scripts: the effect of each flag and each default on a tiny run, with numbers by hand."""
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
    """A folder with 60 different pairs and 60 texts in the toy world's words, of different lengths."""
    root = tmp_path_factory.mktemp("flags")
    words = ["the plot was superb", "the cast was dull", "i saw this film", "the music was fine", "a waste of time"]
    line = lambda i, n: " ".join(words[(i + j) % 5] for j in range(n))
    pairs, texts = [], []
    for i in range(60):
        prompt, chosen = f"{i} {line(i, 1 + i % 3)}", f" {line(i, 1 + i % 2)} ."
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": f" {line(i + 2, 1)} {i} ."})
        texts.append({"prompt": prompt, "completion": chosen})
    write_jsonl(root / "pairs.jsonl", pairs)
    write_jsonl(root / "texts.jsonl", texts)
    return root

def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

@pytest.fixture
def run(world, sft_run, tokenizer, tmp_path, monkeypatch):
    """Runs a script's main for two updates; returns its folder, result, rows and log, {(split, metric): values}."""
    count = itertools.count()
    monkeypatch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
    monkeypatch.setattr(loop, "plot_curves", lambda folder: None)
    monkeypatch.setattr(eval, "main", lambda *args, **more: {})
    def go(*flags, main=train_pref.main):
        out, seen = tmp_path / f"run{next(count)}", []
        def batches(rows, *args, **more):
            seen.append(rows)
            return BATCHES(rows, *args, **more)
        monkeypatch.setattr(data, "Batches", batches)
        if main is train_sft.main:    # from scratch
            start = ["--data", str(world / "texts.jsonl")]
        else:
            start = ["--data", str(world / "pairs.jsonl"), "--init_from", str(sft_run)]
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
    """Registers losses for the time of the test."""
    before = dict(LOSSES)
    yield register(needs_ref=False)
    LOSSES.clear()
    LOSSES.update(before)

# ---------------------------------------------------------------------------------------------------------------------
# --dropout

def test_dropout_reaches_every_dropout_and_the_attention(sft_run):
    """Attention has no dropout module. A fused kernel takes the number, which is easily left at 0."""
    idx = torch.arange(12)[None] + 300
    def drops_out(module):
        return isinstance(module, nn.Dropout) or isinstance(getattr(module, "dropout", None), float)
    def effect(part):
        """Whether two passes of a model in training differ if only this part has dropout."""
        model = GPT.from_pretrained(sft_run, 0.5).train()
        parts = [module for module in model.modules() if drops_out(module)]
        for i, module in enumerate(parts):
            if i != part:
                setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.0)
        return not torch.equal(model(idx), model(idx))
    with torch.no_grad():
        # the embedding, in attention, after attention, after the MLP, no part at all
        assert [effect(part) for part in range(5)] == [True, True, True, True, False]
        model, plain = GPT.from_pretrained(sft_run, 0.5).eval(), GPT.from_pretrained(sft_run).eval()
        assert torch.equal(model(idx), model(idx)) and torch.equal(model(idx), plain(idx))

def test_dropout_of_a_run_is_on_in_updates_and_off_in_reference_and_evaluation(run):
    """Noise in the reference would stay in all log-ratios. Noise in evaluation would select weights at random."""
    plain, noisy = (run("--lr", "0", "--beta", "1", "--dropout", p) for p in ("0", "0.5"))
    for split in ("train", "val"):
        for key in ("ref_chosen_logps", "ref_rejected_logps"):
            assert [r[key] for r in plain.rows[split]] == [r[key] for r in noisy.rows[split]]
    assert noisy.log["val", "loss"] == plain.log["val", "loss"] == pytest.approx([math.log(2)] * 3, abs=1e-5)
    assert plain.log["train", "loss"] == pytest.approx([math.log(2)] * 2, abs=1e-5)
    assert all(abs(x - math.log(2)) > 1e-3 for x in noisy.log["train", "loss"])

def test_dropout_of_supervised_training_from_scratch(run):
    """There the model is new, not loaded, so the number reaches it by another way."""
    plain, noisy = (run(*SMALL, "--lr", "0", "--dropout", p, **SFT) for p in ("0", "0.5"))
    assert plain.log["val", "loss"] == noisy.log["val", "loss"]
    assert plain.log["train", "loss"] != noisy.log["train", "loss"]

# ---------------------------------------------------------------------------------------------------------------------
# the optimizer

def test_weight_decay_shrinks_matrices_by_lr_times_it_and_nothing_else(run, sft_run, new_loss):
    """With a gradient of 0 an update is decay only: matrices times 1 - lr * weight_decay. Biases and norms stay."""
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
    """The norm of the change of all weights."""
    changes = [(p.double() - before[name].double()).pow(2).sum().item() for name, p in state(made).items()]
    return math.sqrt(sum(changes))

def test_lr_adam_epsilon_and_grad_clip_by_hand(run, sft_run):
    """
    The first update of AdamW is lr * g / (|g| + epsilon) in every weight.

    With an epsilon far above every gradient it is lr / epsilon * g. Its norm is lr / epsilon * min(clip, logged norm).
    """
    before = GPT.from_pretrained(sft_run).state_dict()
    flags = ("--loss", "sft", "--max_steps", "1", "--eval_every", "1")
    free = run(*flags, "--lr", "100", "--adam_epsilon", "1000", "--grad_clip", "0")
    [norm] = free.log["train", "grad_norm"]
    assert norm > 0.2 and moved(free, before) == pytest.approx(0.1 * norm, rel=0.01)
    for lr, epsilon, clip, want in (
        ("200", "1000", ("--grad_clip", "0.1"), 0.02),
        ("100", "2000", ("--grad_clip", "0.1"), 0.005),
        ("100", "1000", (), 0.1 * min(norm, 1.0)),    # by default clipped at 1
    ):
        made = run(*flags, "--lr", lr, "--adam_epsilon", epsilon, *clip)
        assert made.log["train", "grad_norm"] == [norm] and moved(made, before) == pytest.approx(want, rel=0.01)

@pytest.mark.parametrize("main", [train_pref.main, train_sft.main], ids=["pref", "sft"])
def test_lr_min_lr_and_warmup_steps_by_hand(run, main):
    """A line over warmup_steps that does not begin at 0, then half a cosine that would reach min_lr at max_steps."""
    flags = ("--lr", "1e-3", "--min_lr", "2e-4", "--warmup_steps", "2", "--max_steps", "6", "--eval_every", "6")
    made = run(*flags, *(SMALL if main is train_sft.main else ()), main=main)
    half = 4e-4    # (lr - min_lr) / 2
    cosine = [2e-4 + half * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert made.log["train", "lr"] == pytest.approx([5e-4, 1e-3, *cosine], rel=1e-6)

def test_grad_accum_takes_so_many_batches_for_one_update(run):
    """An update of two batches logs the mean over both. With lr 0, another run logs the same batches one by one."""
    flags = ("--loss", "slic", "--lr", "0", "--batch_size", "3")
    one, two = run(*flags, "--max_steps", "4"), run(*flags, "--grad_accum", "2")
    losses = one.log["train", "loss"]
    assert len(set(losses)) == 4
    assert two.log["train", "loss"] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-5)

@pytest.mark.parametrize("get_args, argv, epsilon", [
    (train_pref.get_args, [], 1e-3),
    (train_pref.get_args, ["--adapter", "parallel"], 1e-8),
    (train_pref.get_args, ["--data", "hh"], 1e-8),
    (train_pref.get_args, ["--adam_epsilon", "1e-5"], 1e-5),
    (train_pref.get_args, ["--data", "hh", "--adam_epsilon", "1e-5"], 1e-5),
    (train_sft.get_args, [], 1e-8),
    (train_sft.get_args, ["--data", "hh"], 1e-8),
    (train_reward.get_args, [], 1e-8),
    (train_ppo.get_args, [], 1e-3),
    (train_ppo.get_args, ["--data", "imdb"], 1e-8),
    (train_ppo.get_args, ["--adam_epsilon", "1e-5"], 1e-5),
], ids=lambda x: " ".join(x) if isinstance(x, list) else getattr(x, "__module__", ""))
def test_the_default_of_adam_epsilon(get_args, argv, epsilon):
    """It decides how far DPO moves from the reference. It is 1e-3 for preferences and PPO on the toy world only."""
    assert get_args(argv).adam_epsilon == epsilon

def test_patience_counts_evaluations_and_0_never_stops(run):
    """It might count updates. With lr 0 no evaluation is better than the first."""
    flags = ("--lr", "0", "--max_steps", "5")
    assert run(*flags, "--patience", "2").result["step"] == 2
    assert run(*flags, "--patience", "0").result["step"] == 5
    assert train_pref.get_args([]).patience == 3

def test_on_nonfinite_stops_or_skips(run, new_loss, capsys):
    """One bad batch must end a run by default, but not a run of hours that was told to skip it."""
    @new_loss
    def broken(pairs):
        # not in evaluation, nor when the loss is tried before training
        in_update = torch.is_grad_enabled() and len(pairs.chosen_lens) == 4
        update = next(updates) if in_update else 0
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
    """If a prompt lost its end, the question would be lost, and no metric shows it."""
    whole, cut = run(), run("--max_prompt_len", "4", "--max_len", "8")
    tokens = {tuple(r["prompt"]): r for r in whole.rows["train"] + whole.rows["val"]}
    assert max(len(p) for p in tokens) > 6
    def same(cut_row, row):
        """Whether a row was cut from another one."""
        n = len(cut_row["chosen"])
        return row["prompt"][-4:] == cut_row["prompt"] and row["chosen"][:n] == cut_row["chosen"]
    for row in cut.rows["train"] + cut.rows["val"]:
        full = next(r for r in tokens.values() if same(row, r))
        assert len(row["prompt"]) == 4
        assert row["rejected"] == full["rejected"][:4] and row["chosen"] == full["chosen"][:4]
    assert any(row["chosen"][-1] != tokenizer.eot_token for row in cut.rows["train"])

@pytest.mark.parametrize("main", [train_pref.main, train_sft.main, train_reward.main], ids=["pref", "sft", "reward"])
def test_n_val_keeps_so_many_validation_rows_always_the_same(run, main):
    """With other rows each time, no two runs could be compared. Training rows must not depend on the flag."""
    more = SMALL if main is train_sft.main else ()
    whole = run(*more, main=main)
    some = run(*more, "--n_val", "2", main=main)
    again = run(*more, "--n_val", "2", "--seed", "1", main=main)
    prompts = lambda made, split: [r["prompt"] for r in made.rows[split]]
    assert len(whole.rows["val"]) > 2 == len(some.rows["val"]) and prompts(some, "val") == prompts(again, "val")
    assert all(p in prompts(whole, "val") for p in prompts(some, "val"))
    assert prompts(some, "train") == prompts(whole, "train")

def test_label_noise_swaps_its_share_of_training_and_validation(run):
    """If only training labels were flipped, clean labels would select the weights, and nobody has those."""
    clean, noisy = run(), run("--label_noise", "0.25")
    for split in ("train", "val"):
        sides = [[(r["chosen"], r["rejected"]) for r in made.rows[split]] for made in (clean, noisy)]
        assert sum(a != b for a, b in zip(*sides)) == round(0.25 * len(sides[0])) > 0
        assert all(b in (a, a[::-1]) for a, b in zip(*sides))

def test_batch_size_pairs_stand_in_a_batch(run, new_loss):
    """Evaluation must use it too: a larger batch would need more memory than training."""
    sizes = {True: set(), False: set()}
    @new_loss
    def counted(pairs):
        sizes[torch.is_grad_enabled()].add(len(pairs.chosen_lens))
        losses = -pairs.policy_chosen_logps
        return losses, losses.detach(), losses.detach()
    rows = run("--loss", "counted", "--batch_size", "5").rows
    last = {split: len(rows[split]) % 5 for split in rows}    # the last batch of an epoch
    assert {5} <= sizes[True] <= {5, last["train"], 2}    # 2: a loss is tried with two pairs first
    assert sizes[False] == {5, last["val"]}

def test_seed_is_that_of_weights_and_order(run):
    """The same seed gives the same bits. Another seed gives another order and, from scratch, other weights."""
    a, b, c = (run("--seed", seed, "--loss", "slic").log for seed in ("0", "0", "1"))
    assert a == b and a["val", "loss"][0] == c["val", "loss"][0] and a["train", "loss"] != c["train", "loss"]
    a, b, c = (run(*SMALL, "--seed", seed, **SFT).log["val", "loss"][0] for seed in ("0", "0", "1"))
    assert a == b != c

def test_share_prefix_puts_a_pair_in_one_row(run, monkeypatch):
    """The numbers are the same with and without the flag. Only the rows of a batch show its effect."""
    rows = []
    real = GPT.features
    def features(self, idx, *args, **more):
        rows.append(len(idx))
        return real(self, idx, *args, **more)
    monkeypatch.setattr(GPT, "features", features)
    apart = run("--loss", "slic", "--lr", "0").log
    n = sorted(set(rows))
    rows.clear()
    shared = run("--loss", "slic", "--lr", "0", "--share_prefix").log
    assert n[-1] == 8 and sorted(set(rows)) == [k // 2 for k in n]
    assert shared["val", "loss"] == pytest.approx(apart["val", "loss"], rel=1e-5)

def test_n_prompts_are_sampled_for(run, capsys):
    """The default is 1,200 prompts of four samples each, which takes most of a run's time on a large model."""
    run("--data", "toy", "--n_prompts", "9", "--max_len", "16", "--label_noise", "0")
    assert "pairs: 9 train prompts x 4 samples" in capsys.readouterr().out

def test_n_show_samples_are_shown(run, monkeypatch):
    """It is passed on to eval.py, where it has another name."""
    seen = []
    monkeypatch.setattr(eval, "main", lambda argv, **more: seen.append(eval.get_args(argv).show) or {})
    run("--n_show", "7")
    run()
    assert seen == [7, 3]

# ---------------------------------------------------------------------------------------------------------------------
# what goes with every loss

def first_by_hand(made, model, formula):
    """The mean over validation pairs of a formula of c, r (summed log-probs) and n, m (lengths), pair by pair."""
    values = []
    for row in made.rows["val"]:
        batch = data.collate([row])
        with torch.no_grad():
            (c, r), (n, m) = (x.tolist() for x in sequence_logps(model, batch["idx"], batch["completion_mask"]))
        values.append(formula(c, r, n, m))
    return sum(values) / len(values)

def test_mean_logps_and_sft_weight_by_hand(run, sft_run):
    """It weights the chosen completion's NLL per token. With the wrong sign a run unlearns it, with good margins."""
    model = GPT.from_pretrained(sft_run).eval()
    flags = ("--loss", "slic", "--delta", "2", "--reg", "0", "--lr", "0", "--max_steps", "1")
    for more, formula in (
        ((), lambda c, r, n, m: max(0, 2 - c + r)),
        (("--mean_logps",), lambda c, r, n, m: max(0, 2 - c / n + r / m)),
        (("--sft_weight", "3"), lambda c, r, n, m: max(0, 2 - c + r) - 3 * c / n),
    ):
        made = run(*flags, *more)
        assert made.log["val", "loss"][0] == pytest.approx(first_by_hand(made, model, formula), rel=1e-4), more

LINEAR = [0.85, 0.7, 0.55, 0.4]
COSINE = [1 - 0.6 * (0.5 - 0.5 * math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)]

@pytest.mark.parametrize("schedule, betas", [
    ((), LINEAR),
    (("--beta_schedule", "linear"), LINEAR),
    (("--beta_schedule", "constant"), [1.0] * 4),
    (("--beta_schedule", "cosine"), COSINE),
], ids=str)
def test_beta_end_and_beta_schedule_by_hand(run, schedule, betas):
    """The last update must have beta_end. All evaluations use that last beta, so that they can be compared."""
    flags = ("--loss", "ipo", "--beta", "1", "--beta_end", "0.4", "--max_steps", "4", "--eval_every", "4", "--lr", "0")
    log = run(*flags, *schedule).log
    assert log["train", "beta"] == pytest.approx(betas) and log["val", "beta"] == pytest.approx([betas[-1]] * 2)
    assert log["train", "loss"] == pytest.approx([1 / (4 * b * b) for b in betas], rel=1e-4)    # the loss had it too

def test_keep_all_keeps_the_weights_of_every_evaluation(run):
    """Without the flag only the best weights are kept."""
    flags = ("--max_steps", "4", "--eval_every", "2")
    assert sorted(p.name for p in run(*flags, "--keep_all").out.glob("step-*")) == ["step-0", "step-2", "step-4"]
    assert not list(run(*flags).out.glob("step-*"))

# ---------------------------------------------------------------------------------------------------------------------
# adapters

def test_the_defaults_of_adapter_rank_and_adapter_init(run, sft_run):
    """The default rank is 16. replace begins with the MLP's best neurons: a random start destroys the language."""
    flags = ("--adapter", "replace", "--lr", "0", "--max_steps", "1", "--keep_all")
    base = GPT.from_pretrained(sft_run)
    def start(*more):
        folder = run(*flags, *more).out / "step-0"
        about = json.loads((folder / "adapter.json").read_text())
        return about["rank"], adapters.load_tensors(folder / "adapter.safetensors")
    rank, found = start()
    model = adapters.add_adapters(GPT.from_pretrained(sft_run), "replace", 16, "neurons")
    best = adapters.adapter_state_dict(model)
    assert rank == 16 and all(torch.equal(found[k], best[k]) for k in best) and found.keys() == best.keys()
    rank, found = start("--adapter_init", "random", "--adapter_rank", "3")
    key = "transformer.h.0.mlp.down.weight"
    rows = base.transformer.h[0].mlp.c_fc.weight
    assert rank == 3 and found[key].shape == (3, 16) and not (found[key][:, None] == rows).all(-1).any()

@pytest.mark.parametrize("mode", adapters.MODES)
def test_the_state_of_an_adapter_run_holds_no_frozen_weights(run, mode):
    """GPT-2 would write 500 MB at every evaluation, and twice that for moments of weights that are never trained."""
    made = run("--adapter", mode, "--adapter_rank", "2")
    found = torch.load(made.out / "state.pt", weights_only=True)
    names = [f"transformer.h.0.mlp.{part}" for part in ("down.weight", "down.bias", "up.weight", "up.bias")]
    size = 16 * 2 * 2 + 2 + 16
    assert sorted(found["model"]) == sorted(names) and sum(p.numel() for p in found["model"].values()) == size
    moments = []
    for stored in found["optimizer"]["state"].values():
        moments += [value for name, value in stored.items() if name.startswith("exp_avg")]
    assert sum(p.numel() for p in moments) == 2 * size
    assert (made.out / "state.pt").stat().st_size < 40_000 < (run().out / "state.pt").stat().st_size

@pytest.mark.parametrize("mode, calls", [("replace", 0), ("parallel", 1), ("sequential", 1)])
def test_replace_does_not_compute_the_old_mlp(sft_run, mode, calls):
    """It is meant to save time, which it does not if the old MLP is computed as well."""
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
    """If heads and layers were swapped, the model would still train."""
    made = run("--n_layer", "3", "--n_head", "2", "--n_embd", "24", "--max_len", "48", **SFT)
    config = GPT.from_pretrained(made.out).config
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (3, 2, 24, 48)
    assert GPT.from_pretrained(made.out).transformer.wpe.weight.shape == (48, 24)

def test_bpe_vocab_counts_byte_pairs_without_eos(monkeypatch):
    """The matrix has one more row for EOS. Without it EOS would take the place of the last byte pair."""
    asked = []
    def get_tokenizer(*args):
        asked.append(args)
        return types.SimpleNamespace(n_vocab=args[1] or 50257)
    monkeypatch.setattr(data, "get_tokenizer", get_tokenizer)
    def made(*flags):
        args = train_sft.get_args(["--data", "my.jsonl", *SMALL, *flags])
        return train_sft.make_model(args.data, **cli.flags_of(args, train_sft.make_model))[0]
    model = made("--bpe_vocab", "300")
    assert asked == [("my.jsonl", 301)] and model.lm_head.weight.shape == (301, 16)
    assert made().lm_head.weight.shape == (50257, 16)

def test_the_halves_of_a_reward_models_reviews(run, tmp_path):
    """The gold model checks the reward model, so it must have learned from other reviews."""
    (tmp_path / "imdb").mkdir()
    for split, n in (("train", 60), ("test", 6)):
        rows = [{"text": f"{split} {i} was {'superb' if i % 2 else 'dull'} .", "label": i % 2} for i in range(n)]
        write_jsonl(tmp_path / "imdb" / f"{split}.jsonl", rows)
    flags = ("--data", "imdb", "--data_dir", str(tmp_path / "imdb"), "--max_steps", "1")
    def trained_on(*more):
        return {tuple(r["chosen"]) for r in run(*flags, *more, main=train_reward.main).rows["train"]}
    whole, first, second = trained_on(), trained_on("--half", "first"), trained_on("--half", "second")
    assert not first & second and first | second == whole and abs(len(first) - len(second)) <= 1

@pytest.fixture(scope="module")
def measured(sft_run, tokenizer, tmp_path_factory):
    """eval.py of the SFT run on the toy world's prompts: flags -> (measures, samples, Measured)."""
    folder, examples = tmp_path_factory.mktemp("eval") / "run", toy.examples
    same = ["--run", str(folder), "--data", "toy", "--show", "0", "--n_prompts", "5", "--max_new_tokens", "6"]
    def go(*flags):
        folder.mkdir(exist_ok=True)
        for path in sft_run.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
            patch.setattr(eval, "draw", lambda paths, columns, grey: seen.append(columns))
            # the same prompts for every --seed
            patch.setattr(toy, "examples", lambda split, n, seed=0: examples(split, n))
            eval.main([*same, *flags])
        stored = json.loads((folder / "eval.json").read_text())
        return stored["measures"]["after"], stored["samples"], seen[0]["after"]
    return go

def test_the_flags_of_eval(measured):
    """The numbers of prompts and samples, their length, and the seed change every number of the table."""
    longest = lambda answers: max(len(a) for several in answers for a in several)
    _, samples, found = measured("--n_samples", "3")
    assert len(samples) == 5 and len(found.answers) == 5 and {len(a) for a in found.answers} == {3}
    assert longest(found.answers) == 6
    again, other = measured("--n_samples", "3")[2], measured("--n_samples", "3", "--seed", "1")[2]
    assert again.answers == found.answers != other.answers
    _, samples, short = measured("--n_prompts", "2", "--n_samples", "1", "--max_new_tokens", "2", "--seed", "1")
    assert len(samples) == 2 and {len(a) for a in short.answers} == {1} and longest(short.answers) == 2

def test_the_temperature_of_eval_is_that_of_samples_and_entropy(measured):
    """At 0 all samples of a prompt are equal and the entropy is 0. At 1 they differ."""
    cold, _, found = measured("--temperature", "0", "--n_samples", "2")
    assert all(a == b for a, b in found.answers) and cold["entropy"][0] == pytest.approx(0, abs=1e-3)
    warm, _, found = measured("--n_samples", "2")
    assert any(a != b for a, b in found.answers) and warm["entropy"][0] > 1

# ---------------------------------------------------------------------------------------------------------------------
# digits

def bfloat16_holds(values):
    """The share of numbers that bfloat16 represents exactly, with its 8 bits. Of float32 sums it is nearly 0."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return (values.bfloat16().double() == values).double().mean().item()

def test_measures_are_float32_under_bfloat16():
    """In bfloat16 the KL of a token has two digits. Summed over hundreds of tokens it would often be negative."""
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
    pairs = [row | {"rejected": row["chosen"][::-1]} for row in rows]
    accuracy = measures.pair_measures(p, lambda: of(q), pairs, 3, autocast)
    assert bfloat16_holds(accuracy["margin"]) == 0

@pytest.mark.parametrize("name", ["orpo", "simpo", "alphapo", "cpo", "unlikelihood", "sft", "slic"])
@pytest.mark.parametrize("chosen, rejected", itertools.product([-1e-8, 0.0, -1e-3, -50.0], repeat=2))
def test_losses_without_a_reference_are_finite_where_the_policy_is_certain(name, chosen, rejected):
    """log(1 - e^c) is -inf at c = 0, in float32 even at c = -6e-8. One learned one-token completion would end a run."""
    c, r = (torch.tensor([x], requires_grad=True) for x in (chosen, rejected))
    one = torch.ones(1)
    losses, *rewards = LOSSES[name].fn(Pairs(c, r, None, None, one, one))
    grads = torch.autograd.grad(losses.sum(), (c, r), allow_unused=True)
    assert losses.isfinite().all() and all(x.isfinite().all() for x in rewards)
    assert all(g is None or g.isfinite().all() for g in grads)
    # The chosen is still pushed up. For alphapo a rejected one at -50 nats is e^12.5 away: nothing is left to push
    assert grads[0].item() < 0 or (name, rejected) == ("alphapo", -50.0)
