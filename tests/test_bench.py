"""Tests of study/bench.py and study/jobs.py: counted operations, comparisons, disturbed machines, written rows."""
import csv
import platform

import numpy as np
import pytest
import torch

import train_pref
from model import GPT, GPTConfig
from study import bench, jobs, places, table

CONFIG = dict(block_size=64, vocab_size=50, n_layer=3, n_head=2, n_embd=16)
JOB = {"config": CONFIG, "lengths": (6, 3, 9), "batch_size": 4, "updates": 2, "dtype": "float32"}

@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    """Two large matrices take seconds, and no test here is about the rate."""
    monkeypatch.setattr(jobs, "product_rate", lambda device, dtype: 1e9)

def by_hand(batches, layers=3, C=16, V=50):
    """The operations of a DPO update by the formula of docs/speed.md, in the mean over batches."""
    weights = layers * 12 * C * C
    total = 0
    for batch in batches:
        B, T = batch["idx"].shape
        if "segments" in batch:
            M = int(((batch["segments"] == 1) | (batch["segments"] == 2)).sum())
        else:
            M = int(batch["completion_mask"].sum())
        total += 6 * weights * B * T + 8 * M * C * V + 14 * layers * B * T * T * C
    return total / len(batches)

@pytest.mark.parametrize("share", [False, True])
def test_the_operations_counted_are_those_of_the_formula(share):
    """The counter may miss a kind of product. Then the share of the peak rate would look too low."""
    got = jobs.ours(JOB | {"what": "dpo", "share_prefix": share})
    batches = jobs.data.Batches(jobs.rows_of(JOB), 4, share_prefix=share)
    assert got["operations"] == pytest.approx(by_hand([batches[i] for i in range(2)]), rel=1e-9)

@pytest.mark.parametrize("what, more", [
    ("sft", {}),
    ("reference", {}),
    ("dpo", {"adapter": "sequential"}),
    ("dpo", {"adapter": "replace"}),
    ("generate", {"prompt": 5, "new": 7}),
])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_part_can_be_measured(what, more, dtype):
    """Otherwise a part may fail after an hour of measuring the others."""
    got = jobs.ours(JOB | {"what": what, "dtype": dtype, **more})
    assert all(s > 0 for s in got["seconds"]) and got["tokens"] > 0 and got["peak"] > 0.05
    assert what == "generate" or got["operations"] > 0

def test_an_adapter_and_a_shared_prompt_cost_fewer_operations():
    """Frozen weights have no gradient, and a shared prompt is computed once."""
    # at width 16 an adapter of rank 64 is larger than the model
    wide = JOB | {"what": "dpo", "config": CONFIG | {"n_embd": 128}}
    operations = lambda **more: jobs.ours(wide | more)["operations"]
    full, shared = operations(), operations(share_prefix=True)
    assert operations(share_prefix=True, adapter="sequential") < shared < full

def test_the_tokens_counted_do_not_depend_on_the_layout():
    """If shared prompts counted once, sharing would look slower: fewer tokens in the same time."""
    counts = {jobs.ours(JOB | {"what": "dpo", "share_prefix": share})["tokens"] for share in (False, True)}
    assert len(counts) == 1

def test_the_machine_is_described_and_not_named():
    """Results are published, and the machine's name is private."""
    assert platform.node() not in bench.machine() and f"torch {torch.__version__}" in bench.machine()

def test_rows_are_written_as_they_come(tmp_path, monkeypatch, capsys):
    """If the last measurement fails, an hour of the others must not be lost."""
    def work(new_job, models, dtypes):
        yield {"a": 1.23456, "b": "x"}
        with open(tmp_path / "bench_parts.csv", newline="") as f:
            assert [r["a"] for r in csv.DictReader(f)] == ["1.235"]
        yield {"a": 2.0, "b": "y"}
    monkeypatch.setattr(bench, "parts", work)
    bench.main(["--out", str(tmp_path)])
    with open(tmp_path / "bench_parts.csv", newline="") as f:
        assert [(r["a"], r["b"]) for r in csv.DictReader(f)] == [("1.235", "x"), ("2", "y")]

def test_results_of_the_project_are_overwritten_only_with_update(tmp_path, monkeypatch):
    """A measurement on somebody's laptop must not change the tables of the documents by accident."""
    monkeypatch.setattr(bench, "parts", lambda *rest: [{"a": 1.0}])
    monkeypatch.setattr(places, "RESULTS", tmp_path / "study" / "results")
    monkeypatch.setattr(places, "FIGURES", tmp_path / "study" / "figures")
    monkeypatch.chdir(tmp_path)
    bench.main([])
    assert (tmp_path / "out/study/bench_parts.csv").exists() and not (tmp_path / "study").exists()
    bench.main(["--update"])
    assert (tmp_path / "study/results/bench_parts.csv").exists()
    with pytest.raises(SystemExit):
        bench.get_args(["--update", "--out", "x"])

# ---------------------------------------------------------------------------------------------------------------------
# a disturbed machine

@pytest.mark.parametrize("before, after, want", [
    (100, 100, True),
    (100, 90, True),
    (90, 100, True),
    (100, 89, False),
    (89, 100, False),
])
def test_two_rates_agree_within_a_tenth_of_the_larger(before, after, want):
    """Another process that ends during the job makes the second rate larger; one that begins, the first."""
    assert bench.agree(before * 1e9, after * 1e9) is want

@pytest.mark.parametrize("rates, rounds, rate, rest", [
    ([100, 95], 1, 100, "yes"),                     # at rest at once
    ([95, 100], 1, 100, "yes"),                     # the larger one counts
    ([100, 50, 98, 100], 2, 100, "yes"),            # one round with another process
    ([100, 50, 60, 100, 97, 96], 3, 97, "yes"),
    ([100, 50, 80, 100, 100, 60], 3, 100, "no"),    # never: the second round is the closest
])
def test_a_round_is_repeated_until_its_two_rates_agree(rates, rounds, rate, rest, capsys):
    """A share of 123% of the peak rate was once reported: another process ran while the peak was measured."""
    clock, works = iter(rates), iter(range(1, 9))
    got = bench.undisturbed(lambda: {"round": next(works)}, lambda: next(clock) * 1e9)
    assert got["product_rate"] == rate * 1e9 and got["at_rest"] == rest and next(clock, None) is None
    assert got["round"] == (rounds if rest == "yes" else 2) and next(works) == rounds + 1
    said = capsys.readouterr().out
    assert said.count("disturbed: the matrix rate was") == rounds - (rest == "yes")
    assert ("never came to rest in 3 rounds" in said) == (rest == "no")

def test_a_result_says_whether_the_machine_was_at_rest(monkeypatch):
    """Readers of the file have not seen the printed warning. A row of two jobs is disturbed if one of them is."""
    told = {"ours": "yes", "transformers": "yes"}
    def measured(kind, job):
        return {"seconds": [1.0], "tokens": 8, "peak": 1.0, "product_rate": 1e9, "operations": 1e9,
                "at_rest": told[kind]}
    monkeypatch.setattr(bench, "measured", measured)
    monkeypatch.setattr(bench, "gpt2_folders", lambda scratch: {})
    new_job = lambda name, **more: more
    def first(rows):
        return next(rows)["at_rest"]
    assert first(bench.growth()) == first(bench.parts(new_job, ["toy"], ["float32"])) == "yes"
    assert first(bench.against_transformers(new_job, ["float32"], 1, "")) == "yes"
    told["transformers"] = "no"
    assert first(bench.against_transformers(new_job, ["float32"], 1, "")) == "no"
    one, two = measured("ours", {}), measured("transformers", {})
    beside = lambda a, b: bench.beside_trl(a, b, "precomputed")["at_rest"]
    assert beside(one, two) == beside(two, one) == "no"

def test_theory_is_near_what_was_measured():
    """A figure draws both. A theory that is wrong by half explains nothing."""
    rows, theory = table.growth_model()
    assert len(rows) >= 15
    for key, values in theory.items():
        off = np.abs(values / np.array([r[key] for r in rows]) - 1)
        assert np.median(off) < 0.15 and off.max() < 0.6, (key, off.round(2))

@pytest.mark.slow
def test_both_losses_were_the_same_before_anything_was_compared(tmp_path):
    """A ratio of times means nothing if one of the two computes less."""
    pytest.importorskip("trl")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        GPT(GPTConfig(**CONFIG)).save_pretrained(tmp_path / name)
    job = JOB | {"folder": str(tmp_path / "a"), "other": str(tmp_path / "b"), "scratch": str(tmp_path / "run")}
    got = jobs.one_loss(job)
    assert got["ours"] == pytest.approx(got["trl"], abs=1e-5) and abs(got["ours"] - 0.6931) > 1e-4

@pytest.mark.slow
def test_a_job_runs_in_a_process_of_its_own():
    """In one process, its peak memory would be that of all jobs before it. An error names the job."""
    got = bench.in_process("ours", JOB | {"what": "sft"})
    assert len(got["seconds"]) == 2 and got["operations"] > 0
    with pytest.raises(SystemExit, match="ours no_such_part failed"):
        bench.in_process("ours", JOB | {"what": "no_such_part", "config": {"no": 1}})

@pytest.mark.slow
@pytest.mark.parametrize("reference", ["online", "precomputed"])
def test_trl_gets_the_same_batches(reference, tmp_path):
    """If TRL shuffled or sorted the pairs, it would have other padding and so other times."""
    pytest.importorskip("trl")
    torch.manual_seed(0)
    GPT(GPTConfig(**CONFIG)).save_pretrained(tmp_path / "a")
    job = JOB | {"folder": str(tmp_path / "a"), "scratch": str(tmp_path / "run"), "reference": reference}
    got = jobs.trl(job)
    assert len(got["seconds"]) == 2 and got["pairs"] == 4
    batches = jobs.data.Batches(jobs.rows_of(job), 4)
    first = batches[0]
    trainer = jobs.trl_trainer(job, [batches.rows[i] for part in batches.order for i in part])
    theirs = next(iter(trainer.get_train_dataloader()))
    assert torch.equal(theirs["input_ids"] * theirs["attention_mask"], first["idx"])
    assert torch.equal(theirs["completion_mask"].bool(), first["completion_mask"])
    assert train_pref.LOSSES["dpo"].hparams["beta"] == 0.1    # as both are given

# ---------------------------------------------------------------------------------------------------------------------
# beside TRL: rounds, variants, and what a stopped measurement keeps

@pytest.fixture
def beside_trl(monkeypatch, tmp_path):
    """bench.main --vs trl without any model. Returns (a call with more flags, the jobs it has measured)."""
    jobs_done = []
    def measured(kind, job):
        jobs_done.append((kind, job.get("reference") or job["share_prefix"], job["checkpointing"]))
        gb = 2.0 + len(jobs_done) % 3
        return {"seconds": [1.0], "reference_seconds": 0.5, "peak": gb, "product_rate": 1e9, "operations": 1e8,
                "at_rest": "yes"}
    monkeypatch.setattr(bench, "measured", measured)
    monkeypatch.setattr(bench, "gpt2_folders", lambda scratch: {})
    monkeypatch.setattr(bench, "in_process", lambda kind, job: {"ours": 0.7, "trl": 0.7})
    def call(*flags):
        jobs_done.clear()
        bench.main(["--vs", "trl", "--dtypes", "float32", "--out", str(tmp_path), *flags])
        return places.read_csv(tmp_path / "bench_trl_made.csv")
    return call, jobs_done

def test_recomputing_is_compared_with_recomputing(beside_trl):
    """TRL with gradient checkpointing beside our run without it: their memory would differ by the wrong thing."""
    call, done = beside_trl
    rows = call("--rounds", "2")
    assert {(r["trl_checkpointing"], r["checkpointing"]) for r in rows} == {("True", "True"), ("False", "False")}
    assert len(rows) == 16 and len({tuple(r[k] for k in bench.TRL_KEY) for r in rows}) == 16
    assert [job for job in done if job[2]] == 2 * [("ours", False, True), ("ours", True, True),
                                                   ("trl", "online", True), ("trl", "precomputed", True)]
    assert [r["reference"] for r in call("--rounds", "1", "--references", "precomputed")] == 4 * ["precomputed"]

def test_a_stopped_measurement_measures_only_what_is_missing(beside_trl, tmp_path, monkeypatch):
    """An update of TRL takes minutes on a slow processor. A second call must not take all of them again."""
    call, done = beside_trl
    whole = call("--rounds", "1")
    path = tmp_path / "bench_trl_made.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:6]))    # the head, 4 rows without checkpointing, 1 row with it
    again = call("--rounds", "1", "--resume")
    keys = lambda rows: {tuple(r[k] for k in bench.TRL_KEY) for r in rows}
    assert again[:5] == whole[:5] and keys(again) == keys(whole) and len(again) == len(whole)
    assert {job[2] for job in done} == {True} and len(done) == 4
    assert call("--rounds", "1", "--resume") == again and done == []
    monkeypatch.setattr(bench, "machine", lambda: "another one")
    with pytest.raises(SystemExit, match="rows of another machine"):
        call("--resume")

@pytest.mark.parametrize("flags", [["--resume"], ["--references", "online"], ["--resume", "--vs", "transformers"]])
def test_flags_of_the_comparison_with_trl_are_refused_elsewhere(flags, capsys):
    """A flag without effect is a mistake of the user."""
    with pytest.raises(SystemExit):
        bench.get_args(flags)
    assert f"{flags[0]} has no effect without --vs trl" in capsys.readouterr().err

def test_a_round_that_was_disturbed_does_not_move_the_table(monkeypatch):
    """The mean of 1, 1 and 10 seconds says more about the other process than about the work."""
    rows = [{"seconds": s} for s in (1.0, 1.2, 10.0)]
    assert table.median(rows, "seconds", ".1f", spread=True) == "1.2 (1.0 to 10.0)"
    assert table.mean(rows, "seconds", ".2f") == "4.07"

def test_a_job_with_checkpointing_counts_the_second_forward_pass():
    """A flag that does not reach the model would be measured as the same time and memory."""
    counts = [jobs.ours(JOB | {"what": "dpo", "checkpointing": on})["operations"] for on in (False, True)]
    assert counts[0] * 1.1 < counts[1] < counts[0] * 1.4    # the blocks again: a third of their part
