"""
Thumbs up and down: files of completions with a label, how they become the rows of kto and bco, their weights, and
the mismatched completions from which KTO estimates the KL.
"""
import json
import math
import random
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import data
import eval as evaluation
import judge
import objective
import toy
import train_pref
import train_sft
import unpaired
from losses import LOSSES, Pairs
from model import GPT, GPTConfig
from reference import add_reference, kl_logratios
from rlhf import train_reward
from support import sources
from test_data import assistant, user, write_jsonl
from test_layouts import write_csv
from test_loop import log_rows
from test_sources import hub    # noqa: F401 - a fixture

def thumb(i, label, **more):
    return {"prompt": f"the plot {i}", "completion": f" was {'fine' if label else 'dull'} {i} .", "label": label} | more

MANY = [thumb(i % 30, i % 3 > 0) for i in range(60)]    # 40 up, 20 down; each prompt twice
PREF = ("--max_steps", "2", "--eval_every", "1", "--batch_size", "8", "--warmup_steps", "0", "--n_show", "1")

def read(records, path, write=write_jsonl):
    """(examples, dropped) of a file with labels."""
    splits, dropped = sources.load_examples(str(write(path, records)), labeled=True, say=lambda line: None)
    return splits["train"], dict(dropped)

def labeled(n, m, seed=0, prompts=1000):
    """n desirable and m undesirable rows of random tokens, shuffled. The last token of a completion is its number."""
    rng = random.Random(seed)
    tokens = lambda most: [rng.randrange(1, 60) for _ in range(rng.randrange(1, most))]
    rows = [{"prompt": [60 + rng.randrange(prompts)] + tokens(5), "chosen": tokens(6) + [2000 + i], "label": int(i < n)}
            for i in range(n + m)]
    rng.shuffle(rows)
    return rows

# ---------------------------------------------------------------------------------------------------------------------
# files

@pytest.mark.parametrize("false, true", [(False, True), (0, 1), ("false", "True"), ("0", "1"), (0.0, 1.0)])
def test_labels_as_files_write_them(tmp_path, false, true):
    """TRL's files have booleans, those of HALOs 0 and 1, and a .csv has text: bool("False") is True in Python."""
    records = [thumb(i, true if i % 2 else false) for i in range(4)]
    for write, name in ((write_jsonl, "t.jsonl"), (write_csv, "t.csv")):
        examples, dropped = read(records, tmp_path / name, write)
        assert [e["desirable"] for e in examples] == [False, True] * 2 and not dropped
        assert examples[1] == {"prompt": "the plot 1", "chosen": thumb(1, true)["completion"], "desirable": True}

@pytest.mark.parametrize("record", [
    {"prompt": [user("Hi")], "completion": [assistant("Yo")]}, {"prompt": [user("Hi")], "output": [assistant("Yo")]},
    {"prompt": [user("Hi")], "response": "Yo"}, {"messages": [user("Hi"), assistant("Yo")]},
    {"prompt": [user("Hi")], "completion": "Yo", "type": "binary_feedback", "reward": 0.2, "prompt_id": "x"}])
def test_messages_are_read_as_for_pairs(tmp_path, record):
    """Conversational files of TRL and HALOs hold lists of messages on both sides."""
    (example,), _ = read([record | {"label": False}], tmp_path / "t.jsonl")
    assert example == {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Yo", "desirable": False}

@pytest.mark.parametrize("rows, words", [
    ([thumb(0, True), {"prompt": "p", "completion": "a"}], ["row 2", "'label'", "missing"]),
    ([thumb(0, True), {"prompt": "p", "label": True}], ["row 2", "'completion'", "missing"]),
    ([thumb(0, True), thumb(1, None)], ["row 2", "'label'", "true", "false", "null"]),
    ([thumb(0, 2)], ["row 1", "'label'", "true", "false", "2"]),
    ([thumb(0, "ham")], ["row 1", "'label'", '"ham"']),
    ([thumb(0, True), {"prompt": "p", "chosen": "a", "rejected": "b"}], ["row 2", "'chosen'", "a label", "two files"]),
    ([{"prompt": "p", "chosen": "a", "rejected": "b"}, thumb(0, True)], ["row 2", "'label'", "rejected", "two files"]),
    ([thumb(0, True, completion=None)], ["row 1", "'completion'", "null"]),
    ([thumb(0, True, prompt=7)], ["row 1", "'prompt'", "7"])])
def test_a_bad_row_is_named(tmp_path, rows, words):
    """A row without a label would count as undesirable, and one of another kind as whatever it resembles."""
    with pytest.raises(ValueError) as e:
        read(rows, tmp_path / "t.jsonl")
    assert not [word for word in ["t.jsonl", *words] if word not in str(e.value)] and "\n" not in str(e.value), e.value

def test_labels_of_the_hub_and_of_a_folder(hub, tmp_path, tokenizer):    # noqa: F811
    """They are read as pairs of the hub are: by split, from the hub or from files with the same rows."""
    row = lambda i, label: {"prompt": [user(f"Q{i}")], "completion": [assistant(f"A{i}")], "label": label}
    splits = {"train": [row(i, i % 2 > 0) for i in range(12)], "test": [row(50, True)]}
    asked = hub(splits)
    write_jsonl(tmp_path / "test.jsonl", splits["test"])
    write_jsonl(tmp_path / "train-00000-of-00001.jsonl", splits["train"])
    want = {"prompt": "\n\nHuman: Q1\n\nAssistant:", "chosen": " A1", "desirable": True}
    for folder in (None, str(tmp_path)):
        found, dropped = sources.load_examples("kto_mix", folder, labeled=True)
        assert found["train"][1] == want and len(found["train"]) == 12 and len(found["test"]) == 1 and not dropped
        texts, dropped = sources.load_examples("kto_mix", folder, pairs=False)
        assert texts["train"][0] == {"prompt": want["prompt"], "chosen": " A1"} and dropped == {"labelled false": 6}
        rows = data.load_rows("kto_mix", folder, tokenizer, 64, say=lambda line: None, labeled=True)
        assert sum(map(len, rows.values())) == 12 and min(min(unpaired.counts(part)) for part in rows.values()) > 0
    assert asked == {"path": "trl-lib/kto-mix-14k"}
    with pytest.raises(ValueError, match="--loss kto"):
        sources.load_examples("kto_mix", str(tmp_path))

def test_pairs_with_a_label_are_pairs(tmp_path):
    """A file of pairs may have a column of this name, as for a category. It says nothing about one completion."""
    examples, _ = read([{"prompt": "p", "chosen": "a", "rejected": "b", "label": 1}], tmp_path / "t.jsonl")
    assert examples == [{"prompt": "p", "chosen": "a", "rejected": "b"}]

def test_empty_completions_are_dropped_and_counted(tmp_path, tokenizer):
    """There is nothing to learn from them, whatever their label."""
    said, rows = [], [*MANY, thumb(91, True, completion=" "), thumb(92, False, completion="")]
    found = data.load_rows(write_jsonl(tmp_path / "t.jsonl", rows), None, tokenizer, 64, say=said.append, labeled=True)
    assert len(found["train"] + found["val"]) == 60 and "2 empty completion" in said[0]

def test_rows_keep_their_labels_and_prompts_stay_in_one_split(tmp_path, tokenizer):
    """An inverted label trains the opposite. A prompt with a thumb up in training and one down in validation leaks."""
    path = write_jsonl(tmp_path / "t.jsonl", MANY)
    rows = data.load_rows(path, None, tokenizer, 64, say=lambda line: None, labeled=True)
    for row in rows["train"] + rows["val"]:
        assert row["label"] == ("fine" in data.decode(tokenizer, row["chosen"]))
    train, val = ({tuple(row["prompt"]) for row in rows[split]} for split in ("train", "val"))
    assert not train & val and len(train | val) == 30

def test_both_labels_of_a_small_file_are_in_both_splits():
    """One prompt in ten of a small file can easily hold one label only, and kto could not be validated."""
    for seed in range(40):
        rows = [{"prompt": [seed, i], "chosen": [i], "label": int(i > 3)} for i in range(20)]
        train, val = data.hold_out(rows, eot=99)
        assert len(train) + len(val) == 20 and len(train) >= 4
        assert {row["label"] for row in train} == {row["label"] for row in val} == {0, 1}

def test_label_noise_turns_labels():
    """Swapping chosen and rejected needs pairs."""
    rows = labeled(30, 10)
    before = [dict(row) for row in rows]
    assert data.flip_labels(rows, 0.25, seed=3) == 10
    turned = [row for row, old in zip(rows, before) if row != old]
    assert len(turned) == 10
    assert all(row == old | {"label": 1 - old["label"]} for row, old in zip(rows, before) if row != old)

# ---------------------------------------------------------------------------------------------------------------------
# labeled rows -> unpaired rows -> batches

@pytest.mark.parametrize("n, m", [(7, 3), (3, 7), (5, 5), (1, 6)])
def test_the_larger_group_occurs_once_and_the_smaller_is_repeated(n, m):
    """If rows were lost, or drawn with replacement, some completions would never be trained on."""
    rows = labeled(n, m)
    made = unpaired.paired(rows, seed=0)
    assert len(made) == max(n, m)
    for side, label in (("chosen", 1), ("rejected", 0)):
        whole = Counter((tuple(r["prompt"]), tuple(r["chosen"])) for r in rows if r["label"] == label)
        used = Counter((tuple(unpaired.prompt_of(r, side)), tuple(r[side])) for r in made)
        size, least = sum(whole.values()), len(made) // sum(whole.values())
        assert used.keys() == whole.keys() and set(used.values()) <= {least, least + 1} and size == len(whole)
    assert made == unpaired.paired(rows, seed=0) and (n, m) == (1, 6) or made != unpaired.paired(rows, seed=1)

def test_a_batch_by_hand():
    """Behind the other one's prompt, a completion has another log-prob."""
    rows = [{"prompt": [1, 2], "chosen": [3], "rejected_prompt": [4], "rejected": [5, 9]},
            {"prompt": [6], "chosen": [7, 9], "rejected_prompt": [1, 2, 8], "rejected": [9]}]
    batch = data.collate(rows)
    assert batch["idx"].tolist() == [[1, 2, 3, 0], [6, 7, 9, 0], [4, 5, 9, 0], [1, 2, 8, 9]]
    assert batch["completion_mask"].int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert batch["weight"] == 2 and [data.width_of(row) for row in rows] == [3, 4]

def test_half_of_the_mismatched_completions_are_rejected_ones_and_none_is_of_its_prompt():
    """
    The KL of completions that the policy has learned to write more often is not that of its samples. A completion of
    the same prompt would be what the loss itself moves.
    """
    pairs = [{"prompt": [i // 3], "chosen": [100 + i], "rejected": [200 + i]} for i in range(24)]
    halves = [row | {"prompt": [i % 2]} for i, row in enumerate(pairs)]
    for rows in (pairs, halves, unpaired.paired(labeled(20, 13, prompts=4), seed=0)):
        origin = defaultdict(set)
        for row in rows:
            for side in ("chosen", "rejected"):
                origin[side, tuple(row[side])].add(tuple(unpaired.prompt_of(row, side)))
        unpaired.mismatch(rows, max_len=64)
        kinds = Counter()
        for i, row in enumerate(rows):
            found = row["mismatched"]
            kind, = (side for side in ("chosen", "rejected") if (side, tuple(found["chosen"])) in origin)
            kinds[kind] += 1
            assert found["prompt"] == unpaired.prompt_of(row, ("chosen", "rejected")[i // 2 % 2])
            assert tuple(found["prompt"]) not in origin[kind, tuple(found["chosen"])]
        assert abs(kinds["chosen"] - kinds["rejected"]) <= 1

def test_mismatched_completions_by_hand():
    """They are cut to max_len. If all rows have one prompt, there is no other to take a completion from."""
    rows = [{"prompt": [1, 2], "chosen": [3], "rejected": [4]}, {"prompt": [1, 2], "chosen": [4, 5], "rejected": [6]},
            {"prompt": [7], "chosen": [7, 8, 9], "rejected": [5, 5, 5]}]
    unpaired.mismatch(rows, 4)
    assert [row["mismatched"] for row in rows] == [
        {"prompt": [1, 2], "chosen": [7, 8]}, {"prompt": [1, 2], "chosen": [5, 5]}, {"prompt": [7], "chosen": [3]}]
    unpaired.mismatch(rows[:2], 4)
    assert [row["mismatched"]["chosen"] for row in rows[:2]] == [[4, 5], [4]]

# ---------------------------------------------------------------------------------------------------------------------
# losses and weights

@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.unpaired])
def test_a_loss_for_unpaired_completions_does_not_depend_on_who_is_beside_whom(name):
    """Partners are chosen by chance, so a loss that compares them would train on chance."""
    torch.manual_seed(0)
    chosen, rejected, ref_chosen, ref_rejected = -20 + 3 * torch.randn(4, 6)
    lens, other = torch.full((6,), 5.0), torch.randperm(6)
    kl = torch.full((6,), 0.7) if LOSSES[name].needs_kl else None
    one = LOSSES[name].fn(Pairs(chosen, rejected, ref_chosen, ref_rejected, lens, lens, kl))[0].sum()
    two = LOSSES[name].fn(Pairs(chosen, rejected[other], ref_chosen, ref_rejected[other], lens, lens, kl))[0].sum()
    assert one.item() == pytest.approx(two.item(), rel=1e-5)

def test_weights_by_hand():
    """3 up and 1 down: with the weights of completions, the group up counts 3 of 4 parts, in pairs 1.5 of 2."""
    for weighting, want in (("groups", (2.0, 4.0)), ("completions", (3.0, 2.0))):
        hparams = {"beta": 0.1, "desirable_weight": 2.0, "undesirable_weight": 4.0}
        unpaired.weigh(hparams, labeled(3, 1), weighting)
        assert (hparams["desirable_weight"], hparams["undesirable_weight"]) == want and hparams["beta"] == 0.1

def of_all(rows, beta, d, u, policy, ref, kl):
    """By a slow loop: KTO's mean over all completions of their weighted losses. policy, ref: log-probs by number."""
    total = 0.0
    for row in rows:
        ratio = policy[row["chosen"][-1] - 2000] - ref[row["chosen"][-1] - 2000]
        sign, weight = (1, d) if row["label"] else (-1, u)
        total += weight * (1 - torch.sigmoid(sign * beta * (ratio - kl)))
    return total / len(rows)

def of_pairs(rows, beta, d, u, policy, ref, kl):
    """The same by unpaired rows and `kto`."""
    hparams = {"beta": beta, "desirable_weight": d, "undesirable_weight": u}
    unpaired.weigh(hparams, rows, "completions")
    made = unpaired.paired(rows, seed=0)
    w, l = ([row[side][-1] - 2000 for row in made] for side in ("chosen", "rejected"))
    ones = torch.ones(len(made))
    pairs = Pairs(policy[w], policy[l], ref[w], ref[l], ones, ones, kl * ones)
    return LOSSES["kto"].fn(pairs, **hparams)[0].mean()

@pytest.mark.parametrize("n, m", [(6, 2), (2, 6), (4, 4)])
def test_weights_of_completions_give_the_mean_over_all_of_them(n, m):
    """With a weight on the wrong group, or without the counts, the larger group would count too little."""
    torch.manual_seed(0)
    policy, ref = (-20 + 4 * torch.randn(2, n + m)).unbind()
    policy.requires_grad_()
    rows = labeled(n, m)
    one, two = (of(rows, 0.3, 1.5, 0.7, policy, ref, torch.tensor(0.4)) for of in (of_all, of_pairs))
    gradients = [torch.autograd.grad(loss, policy, retain_graph=True)[0] for loss in (one, two)]
    assert one.item() == pytest.approx(two.item(), rel=1e-5) and torch.allclose(*gradients, atol=1e-7)

def trl_loss(rows, beta, d, u, policy, ref, kl_logratios):
    """KTOTrainer._compute_loss of the same completions. A stub stands in for the model."""
    trl = pytest.importorskip("trl")
    order = [row["chosen"][-1] - 2000 for row in rows]
    as_logps = lambda sums: torch.stack([sums, torch.zeros(len(rows))], 1)    # one token each, then padding
    kl = torch.stack([kl_logratios, torch.zeros(len(rows))], 1)
    zeros, ones = torch.zeros(len(rows), 3, dtype=torch.long), torch.ones(len(rows), 3, dtype=torch.long)
    def model(input_ids, **more):
        logps = kl if input_ids is kl_ids else as_logps(policy[order])
        return SimpleNamespace(log_probs=logps, entropy=0 * logps, mean_logits=0 * logps)
    kl_ids = zeros.clone()
    accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, calculate_KL=True, aux_loss_enabled=False,
        precompute_ref_logps=True, loss_type="kto", beta=beta, desirable_weight=d, undesirable_weight=u, _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0)
    trainer._compute_kl_logps = lambda model, batch: trl.KTOTrainer._compute_kl_logps(trainer, model, batch)
    inputs = {"input_ids": zeros, "attention_mask": ones, "completion_mask": ones, "KL_input_ids": kl_ids,
              "KL_attention_mask": ones, "KL_completion_mask": ones, "label": torch.tensor([r["label"] for r in rows]),
              "ref_logps": ref[order], "ref_KL_logps": torch.zeros(len(rows))}
    return trl.KTOTrainer._compute_loss(trainer, model, inputs, False)

@pytest.mark.parametrize("n, m, d, u", [(6, 2, 1.0, 1.0), (2, 6, 1.5, 0.7), (3, 3, 0.5, 2.0)])
def test_weights_of_completions_are_trls(n, m, d, u):
    """A setting that was found with TRL must mean the same here, on data with more of one kind than of the other."""
    torch.manual_seed(1)
    policy, ref = (-20 + 4 * torch.randn(2, n + m)).unbind()
    policy.requires_grad_()
    rows, kl = labeled(n, m), torch.rand(n + m)
    one, two = trl_loss(rows, 0.2, d, u, policy, ref, kl), of_pairs(rows, 0.2, d, u, policy, ref, kl.mean())
    gradients = [torch.autograd.grad(loss, policy, retain_graph=True)[0] for loss in (one, two)]
    assert one.item() == pytest.approx(two.item(), rel=1e-5) and torch.allclose(*gradients, atol=1e-7)

@pytest.mark.parametrize("name", ["kto", "bco"])
def test_the_loss_of_a_batch_by_a_slow_loop(name):
    """Each completion by itself behind its own prompt, through the model, for policy, reference and the KL."""
    torch.manual_seed(0)
    config = GPTConfig(block_size=32, vocab_size=2100, n_layer=1, n_head=2, n_embd=16)
    policy, reference = GPT(config).eval(), GPT(config).eval()
    for parameter in policy.parameters():    # away from the start, where all log-ratios are small
        parameter.data += 0.2 * torch.randn(parameter.shape)
    rows = unpaired.paired(labeled(4, 3), seed=0)
    unpaired.mismatch(rows, 32)
    batches = data.Batches(rows, 4)
    add_reference(reference, batches, torch.autocast("cpu", enabled=False))
    batch = data.collate(rows)
    def logp(model, prompt, completion):
        log_p = model(torch.tensor([prompt + completion]))[0].log_softmax(-1)
        return sum(log_p[len(prompt) - 1 + t, token] for t, token in enumerate(completion))
    ratio = lambda prompt, completion: logp(policy, prompt, completion) - logp(reference, prompt, completion).detach()
    kl = torch.stack([ratio(**dict(zip(("prompt", "completion"), r["mismatched"].values()))) for r in rows]).detach()
    total, softplus = 0.0, torch.nn.functional.softplus
    for row in rows:
        w, l = ratio(row["prompt"], row["chosen"]), ratio(row["rejected_prompt"], row["rejected"])
        if name == "bco":
            total += softplus(-0.5 * w) + softplus(0.5 * l)
        else:
            z = max(0.0, kl.mean().item())
            total += (1 - torch.sigmoid(0.5 * (w - z)) + 1 - torch.sigmoid(0.5 * (z - l))) / 2
    loss, metrics = objective.preference_loss(policy, batch, LOSSES[name], LOSSES[name].hparams | {"beta": 0.5})
    assert loss.item() == pytest.approx((total / len(rows)).item(), rel=1e-4)
    found = kl_logratios(policy, batch, False)
    assert not found.requires_grad and found.tolist() == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-3)
    weight = policy.transformer.h[0].attn.c_attn.weight
    gradients = [torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (loss, total / len(rows))]
    assert torch.allclose(*gradients, atol=1e-5) and gradients[0].abs().max() > 1e-4

# ---------------------------------------------------------------------------------------------------------------------
# the scripts

@pytest.fixture
def here(in_tmp, own_tokenizer, sft_run):
    """A folder with an SFT run, `sft`, and a file with labels, `thumbs.jsonl`."""
    shutil.copytree(sft_run, "sft")
    write_jsonl(in_tmp / "thumbs.jsonl", MANY)
    return in_tmp

def argv(*more, data="thumbs.jsonl"):
    return ["--data", data, "--init_from", "sft", *PREF, *more]

@pytest.fixture
def refused(here, capsys):
    """refused(main, argv, *words): main ends with status 2 and one line with all the words, and writes nothing."""
    def check(main, argv, *words):
        before = sorted(here.rglob("*"))
        with pytest.raises(SystemExit) as end:
            main(argv)
        err = capsys.readouterr().err
        assert end.value.code == 2 and err.count("\n") == 1 and not [word for word in words if word not in err], err
        assert sorted(here.rglob("*")) == before
    return check

def test_what_cannot_be_trained_is_refused_in_one_line(refused, here):
    """None of these may train on something else than the flags say."""
    for name, loss in LOSSES.items():
        if not loss.unpaired and not loss.needs_gap:    # scores are missed first
            refused(train_pref.main, argv("--loss", name), "thumbs.jsonl", f"--loss {name}", "--loss bco or --loss kto")
    refused(train_pref.main, argv("--loss", "kto", "--share_prefix"), "--share_prefix has no effect")
    refused(train_pref.main, argv("--loss", "bco", "--desirable_weight", "2"), "--desirable_weight has no effect")
    refused(train_pref.main, argv("--loss", "bco", "--weighting", "groups"), "--weighting has no effect")
    refused(train_reward.main, ["--data", "thumbs.jsonl", "--init_from", "sft"], "row 1", "--loss kto")
    for label, word in ((True, "no undesirable"), (False, "no desirable")):
        write_jsonl(here / "one.jsonl", [thumb(i, label) for i in range(30)])
        refused(train_pref.main, argv("--loss", "kto", data="one.jsonl"), "one.jsonl", word, "train_sft.py")
    refused(train_pref.main, argv("--loss", "kto", "--label_noise", "2"), "--label_noise")
    refused(train_pref.main, argv("--loss", "kto", "--n_val", "1"), "desirable completion in the val split")

@pytest.mark.parametrize("flags, weighting, weights", [
    ([], "groups", (1.0, 1.0)), (["--desirable_weight", "1"], "completions", "counts"),
    (["--undesirable_weight", "1"], "completions", "counts"),
    (["--weighting", "completions"], "completions", "counts"),
    (["--desirable_weight", "2", "--weighting", "groups"], "groups", (2.0, 1.0))])
def test_the_opening_line_has_counts_and_weights(here, capsys, flags, weighting, weights, monkeypatch):
    """Without them nobody sees which group counts more."""
    monkeypatch.setattr(evaluation, "main", lambda *args, **more: {})
    train_pref.main(argv("--loss", "kto", "--out_dir", "run", *flags))
    facts = json.loads(Path("run/args.json").read_text())
    quiet = lambda line: None
    rows = data.load_rows("thumbs.jsonl", None, data.get_tokenizer("thumbs.jsonl"), 64, say=quiet, labeled=True)
    (n, m), (n_val, m_val) = unpaired.counts(rows["train"]), unpaired.counts(rows["val"])
    d, u = (2 * n / (n + m), 2 * m / (n + m)) if weights == "counts" else weights
    assert n > 1.5 * m and facts["args"]["weighting"] == weighting
    assert facts["hparams"] == {"beta": 0.1, "desirable_weight": d, "undesirable_weight": u}
    line, = (line for line in capsys.readouterr().out.splitlines() if line.startswith("kto "))
    assert f" desirable_weight={d:.6g}" in line and f" undesirable_weight={u:.6g}" in line
    assert f": {n} desirable and {m} undesirable training completions, {n_val} desirable and {m_val} undes" in line

@pytest.mark.parametrize("flags", [
    ["kto"], ["bco"], ["kto", "--mean_logps", "--sft_weight", "0.5", "--label_noise", "0.2"],
    ["bco", "--adapter", "parallel", "--adapter_rank", "4"]], ids=" ".join)
def test_a_run_from_end_to_end(here, capsys, flags, pageless):
    """Training, evaluation, page and judge were written for pairs. None may stop at rows that are none."""
    result = train_pref.main(argv("--loss", *flags, "--out_dir", "run", "--lr", "1e-2"))
    out = capsys.readouterr().out
    log = {(split, metric): value for step, split, metric, value in log_rows("run") if step == 2}
    for metric in ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected"):
        assert math.isfinite(log["val", metric])
    assert "accuracy" not in out.split("entropy")[-1] and "KL to the reference" in out
    assert result["measures"]["after"].keys().isdisjoint({"accuracy", "margin"}) and result["pairs"] == 0
    samples = json.loads(Path("run/eval.json").read_text())["samples"]
    assert any("chosen" in s for s in samples) and all("fine" in s["chosen"] for s in samples if "chosen" in s)
    evaluation.main(["--run", "run", "--n_prompts", "4", "--n_samples", "1"])
    page = Path(pageless(["--run", "run"])).read_text()
    assert "held-out pairs" not in page and "held-out prompts" in page and "rewards" in page
    with pytest.raises(SystemExit):
        judge.main("--run run --against chosen --judge_url http://localhost:9/v1 --judge_model m".split())
    assert capsys.readouterr().err.count("\n") == 1

def test_a_first_loss_and_accuracy_are_those_of_the_reference(here, monkeypatch):
    """While policy and reference are equal, kto is 1/2 and bco 2 log 2, whatever the counts of the labels."""
    monkeypatch.setattr(evaluation, "main", lambda *args, **more: {})
    for name, start in (("kto", 0.5), ("bco", 2 * math.log(2))):
        train_pref.main(argv("--loss", name, "--out_dir", name))
        first = {metric: value for step, split, metric, value in log_rows(name) if (step, split) == (0, "val")}
        assert first["loss"] == pytest.approx(start, abs=1e-5) and first["rewards/accuracies"] == pytest.approx(0.5)

def test_training_moves_both_groups_to_their_sides(here, monkeypatch):
    """With inverted labels the loss would fall too, and the policy would learn the undesirable completions."""
    monkeypatch.setattr(evaluation, "main", lambda *args, **more: {})
    train_pref.main([*argv("--loss", "kto", "--out_dir", "run", "--lr", "1e-2"), "--max_steps", "12"])
    model, start = GPT.from_pretrained("run"), GPT.from_pretrained("sft")
    tokenizer = data.get_tokenizer("thumbs.jsonl")
    gap = {}
    for word in ("fine", "dull"):
        prompt, completion = (tokenizer.encode_ordinary(text) for text in ("the plot 3", f" was {word}"))
        idx = torch.tensor([prompt + completion])
        after, before = (m(idx)[0, -2].log_softmax(-1)[completion[-1]].item() for m in (model, start))
        gap[word] = after - before
    assert gap["fine"] > gap["dull"] + 0.1

def test_an_interrupted_run_ends_with_the_same_bytes(here, monkeypatch):
    """Partners, repeats and mismatched completions are drawn by chance: from the seed, so that they are drawn again."""
    monkeypatch.setattr(evaluation, "main", lambda *args, **more: {})
    flags = argv("--loss", "kto", "--desirable_weight", "1.3", "--lr", "1e-2", "--patience", "0")
    long = [*flags, "--max_steps", "4"]
    train_pref.main([*long, "--out_dir", "whole"])
    taken, batch_of = [], data.Batches.__getitem__
    def interrupted(batches, i):
        taken.append(i)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return batch_of(batches, i)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(data.Batches, "__getitem__", interrupted)
        train_pref.main([*long, "--out_dir", "parts"])
    assert end.value.code == 130
    train_pref.main(["--data", "thumbs.jsonl", "--loss", "kto", "--out_dir", "parts", "--resume"])
    assert log_rows("parts") == log_rows("whole")
    assert Path("parts/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()

def test_the_pages_snippet_makes_a_file_with_both_labels(in_tmp, monkeypatch, tokenizer):
    """It is the quickest way to try the two losses, and a reader copies it as it is."""
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    many = toy.examples
    monkeypatch.setattr(toy, "examples", lambda split, n: many(split, 60))
    exec(page.split("```python\n")[1].split("```")[0], {})
    rows = data.load_rows("thumbs.jsonl", None, tokenizer, 64, say=lambda line: None, labeled=True)
    assert all(min(unpaired.counts(part)) > 0 for part in rows.values())
    rewards = defaultdict(list)
    for row in rows["train"]:
        rewards[row["label"]].append(toy.reward(data.decode(tokenizer, row["prompt"] + row["chosen"])))
    assert max(rewards[0]) <= 0.25 < min(rewards[1])
    assert len(data.load_rows("texts.jsonl", None, tokenizer, 64, pairs=False, say=lambda line: None)["train"]) > 40

def test_a_file_can_be_looked_at(here, capsys):
    """The label is not a list of tokens."""
    data.main(["--data", "thumbs.jsonl", "--show", "2"])
    out = capsys.readouterr().out
    assert "(40 desirable and 20 undesirable)" in out and "label    undesirable" in out and "label    desirable" in out

def test_sft_trains_on_desirable_completions_alone(here, capsys):
    """This is what the refusal of a file with one label says."""
    train_sft.main("--data thumbs.jsonl --n_layer 1 --n_head 2 --n_embd 16 --max_steps 1 --eval_every 1".split())
    assert "20 labelled false" in capsys.readouterr().out
