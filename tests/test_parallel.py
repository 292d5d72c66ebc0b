"""
Several processes are one run: log and weights are the same for any number of them. Here they are forked, once by
torchrun.
"""
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import data
import sampling
import eval
import loop
import reference
from support import parallel
import toy
import train_pref
import train_sft
from losses import LOSSES
from model import GPT
from tests.processes import child, ended
from test_loop import log_rows
from test_runs import here, world    # noqa: F401 (fixtures)

ROOT = Path(__file__).resolve().parent.parent
ALL_EXAMPLES = toy.examples
FLAGS = "--batch_size 7 --max_steps 5 --eval_every 2 --n_prompts 6 --n_show 0 --lr 1e-3 --patience 9".split()

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

def start(n, argv, main=train_pref.main, before=lambda rank: None, folder="."):
    """
    Starts n processes with torchrun's environment and returns their process ids. Their output goes to
    `folder`/rank-N.
    """
    port = free_port()
    def prepare(rank):
        os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n),
                           MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        eval.main = lambda *args, **more: {}
        loop.plot_curves = lambda folder: None
        before(rank)
    return [child(main, argv, Path(folder) / f"rank-{rank}", lambda rank=rank: prepare(rank)) for rank in range(n)]

def run(n, out, *flags, main=train_pref.main, **more):
    argv = ["--out_dir", str(out), *(FLAGS if main is train_pref.main else []), *flags]
    codes = ended(start(n, argv, main, folder=out.parent, **more))
    assert codes == [0] * n, [(out.parent / f"rank-{r}").read_text()[-800:] for r in range(n)]
    return log_rows(out)

def same(a, b, tol=1e-5):
    """
    Two logs are equal, except for the accuracy of update 1: policy and reference are equal there, and rounding
    decides.
    """
    assert [row[:3] for row in a] == [row[:3] for row in b]
    for x, y in zip(a, b):
        if y[:3] == (1, "train", "rewards/accuracies"):
            assert 0 <= x[3] <= 1
            continue
        assert x[3] == pytest.approx(y[3], abs=tol * max(1, abs(y[3]))), (x, y)

FAST = [["--loss", "dpo", "--grad_accum", "3"], ["--loss", "kto"]]
MORE = [
    ["--loss", "dpo"],
    ["--loss", "ipo", "--share_prefix"],
    ["--loss", "dpo", "--adapter", "sequential", "--adapter_rank", "4"],
    ["--loss", "orpo"],
    ["--loss", "slic"],
    ["--loss", "cpo", "--batch_size", "2"],
]

@pytest.mark.parametrize("flags", [*FAST, *(pytest.param(f, marks=pytest.mark.slow) for f in MORE)],
                         ids=lambda f: " ".join(f[1:]))
def test_the_log_does_not_depend_on_the_number_of_processes(here, tmp_path, flags):    # noqa: F811
    """
    Ragged batches, an epoch's last batch, fewer rows than processes: a mean of the processes' means would be wrong.
    """
    runs = {n: run(n, tmp_path / str(n), *flags) for n in (1, 2, 3)}
    for n in (2, 3):
        same(runs[n], runs[1])
    if "--adapter" not in flags:
        models = {n: GPT.from_pretrained(tmp_path / str(n)) for n in runs}
        for n in (2, 3):
            for (name, p), q in zip(models[1].named_parameters(), models[n].parameters()):
                # a key's bias moves all scores alike: its gradient is noise around 0, which AdamW scales up
                assert "c_attn.bias" in name or torch.allclose(p, q, atol=2e-5), name

@pytest.mark.slow
def test_sft_too_and_its_tokens_are_counted_over_all(here, tmp_path):    # noqa: F811
    """A process whose rows have more tokens must count for more."""
    flags = "--n_layer 1 --n_head 2 --n_embd 16 --batch_size 9 --max_steps 4 --eval_every 2 --lr 1e-2".split()
    runs = {n: run(n, tmp_path / str(n), *flags, main=train_sft.main) for n in (1, 2, 3)}
    for n in (2, 3):
        same(runs[n], runs[1])

def test_a_batch_is_shared_out_whole():
    """Every row is used once. A process without a row gets one with weight 0."""
    rows = [{"prompt": [1] * (1 + i % 3), "chosen": [10 + i] * (1 + i % 4), "rejected": [50 + i]} for i in range(11)]
    with pytest.MonkeyPatch.context() as patch:
        whole = data.Batches(rows, 4)
        for n in (2, 3, 6):
            patch.setattr(parallel, "world", lambda n=n: n)
            for i in range(3):
                seen = []
                for rank in range(n):
                    patch.setattr(parallel, "rank", lambda rank=rank: rank)
                    part = data.Batches(rows, 4)[i]
                    assert part["total"] == len(whole.numbers(i))
                    seen += sorted(part["idx"][:part["weight"]].max(1).values.tolist())
                assert sorted(seen) == sorted(10 + j for j in whole.numbers(i))

@pytest.mark.parametrize("n", [1, 2, 3])
def test_items_are_shared_out_and_their_numbers_come_back_in_order(monkeypatch, n):
    """Each process computes its own items only. The sum over processes completes the table."""
    groups, computed, tables = [[1, 2, 3, 4], [5], [6, 7]], [], []
    def compute(items):
        computed.extend(items)
        return torch.tensor([[x, 10.0 * x] for x in items])
    monkeypatch.setattr(parallel, "world", lambda: n)
    monkeypatch.setattr(parallel, "totals", lambda numbers: tables.append(numbers) or numbers)
    for rank in range(n):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        parallel.shared_out(groups, 2, compute)
    assert sorted(computed) == [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.setattr(parallel, "totals", lambda numbers: [sum(column) for column in zip(*tables)])
    assert parallel.shared_out(groups, 2, compute) == [(x, [x, 10 * x]) for x in range(1, 8)]

def test_gradients_are_exchanged_at_the_last_batch_only():
    """Without a wrapper all batches pass. The divisor is the weight of the whole batch over the number of processes."""
    batches = [{"weight": 2, "total": 5}, {"weight": 3, "total": 6}]
    assert list(parallel.sync_at_last(lambda batch: None, batches)) == batches
    assert parallel.total_weight(batches) == 11 and parallel.total_weight([{"weight": 4}]) == 4

def test_only_the_first_process_writes_and_speaks(here, tmp_path):    # noqa: F811
    """Otherwise two processes would write the same file, or every line would be printed twice."""
    def deny(rank):
        if rank:
            def refuse(*args):
                raise AssertionError("a second writer")
            os.replace = refuse
    run(2, tmp_path / "run", "--loss", "dpo", before=deny)
    first, second = ((tmp_path / f"rank-{r}").read_text() for r in (0, 1))
    assert "2 processes" in first and "5 updates in" in first
    assert not [line for line in second.splitlines() if "Gloo" not in line and line.strip()]

def test_the_pairs_are_sampled_once_and_the_reference_shared_out(here, tmp_path):    # noqa: F811
    """If each of N processes did all of it, it would be N times the work."""
    for path in Path("out/toy/sft").glob("pairs-*"):
        path.unlink()
    def count(rank):
        real = reference.batch_logps
        def counted(model, batch):
            with open(tmp_path / f"seen-{rank}", "a") as f:
                f.write(f"{len(batch['idx']) // 2}\n")
            return real(model, batch)
        reference.batch_logps = counted
        sample = sampling.sample_completions
        def sampled(*args, **more):
            assert rank == 0
            return sample(*args, **more)
        sampling.sample_completions = sampled
    run(2, tmp_path / "run", "--loss", "dpo", "--max_steps", "1", "--eval_every", "1", "--seed", "31", before=count)
    seen = [list(map(int, (tmp_path / f"seen-{rank}").read_text().split())) for rank in (0, 1)]
    assert abs(sum(seen[0]) - sum(seen[1])) < 0.2 * sum(map(sum, seen))

def test_early_stopping_and_an_interruption_are_agreed_on(here, tmp_path):    # noqa: F811
    """If one process leaves the loop a step before the others, the others wait for ever."""
    flags = "--loss dpo --patience 1 --lr 0 --max_steps 50 --eval_every 3".split()
    rows = run(3, tmp_path / "early", *flags)
    assert max(row[0] for row in rows) == 3
    def interrupt(rank):
        if rank == 1:    # only one of the three gets the signal
            real = loop.train_step
            def step(*args):
                os.kill(os.getpid(), signal.SIGTERM)
                return real(*args)
            loop.train_step = step
    assert ended(start(3, ["--out_dir", str(tmp_path / "cut"), *FLAGS], before=interrupt, folder=tmp_path)) == [130] * 3
    assert "To resume: python train_pref.py --resume" in (tmp_path / "rank-0").read_text()
    assert "interrupted" not in (tmp_path / "rank-1").read_text()

@pytest.mark.parametrize("first, then", [(2, 1), *(pytest.param(*n, marks=pytest.mark.slow) for n in ((1, 3), (3, 2)))])
def test_a_run_goes_on_with_another_number_of_processes(here, tmp_path, first, then):    # noqa: F811
    """The saved state is that of one model, for any number of processes."""
    whole = run(1, tmp_path / "whole", "--loss", "dpo")
    run(first, tmp_path / "run", "--loss", "dpo", "--max_steps", "2")
    shutil.rmtree(tmp_path / "run2", ignore_errors=True)
    def cut(rank):
        real, seen = loop.train_step, []
        def step(*args):
            seen.append(1)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return real(*args)
        loop.train_step = step
    pids = start(first, ["--out_dir", str(tmp_path / "cut"), *FLAGS], before=cut, folder=tmp_path)
    assert ended(pids) == [130] * first
    same(run(then, tmp_path / "cut", "--resume"), whole)
    assert "processes was" in (tmp_path / "rank-0").read_text()

def test_a_loss_that_needs_the_whole_batch_is_refused(here, tmp_path):    # noqa: F811
    """Sorting within each process's part would be another loss."""
    codes = ended(start(2, ["--out_dir", str(tmp_path / "run"), *FLAGS, "--loss", "aot"], folder=tmp_path))
    assert codes == [2, 2] and "--loss aot sorts" in (tmp_path / "rank-0").read_text()

@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if not loss.whole_batch])
def test_no_other_loss_looks_across_the_batch(name):
    """A pair's loss is the same alone and in a batch, so a batch may be divided among processes."""
    from losses import Pairs
    torch.manual_seed(0)
    values = [-5 * torch.rand(6) - 1 for _ in range(4)] + [torch.randint(3, 9, (6,)) for _ in range(2)]
    kl = {"kl_logratios": torch.tensor(0.3)} if LOSSES[name].needs_kl else {}
    gaps = torch.rand(6)
    whole = LOSSES[name].fn(Pairs(*values, **kl, reward_gaps=gaps))[0]
    parts = []
    for i in (0, 2, 4):
        pairs = Pairs(*(v[i:i + 2] for v in values), **kl, reward_gaps=gaps[i:i + 2])
        parts.append(LOSSES[name].fn(pairs)[0])
    assert torch.allclose(whole, torch.cat(parts))

@pytest.mark.parametrize("weight, want", [(2, 3.0), (0, 4.0)])
def test_kto_estimates_the_kl_from_the_parts_of_all_processes(weight, want, monkeypatch):
    """
    This process has log-ratios 1 and 3, another one 5 and 3. One whose rows are placeholders, of weight 0, does not
    count. The log of a short run cannot show it: there the estimate may be below 0, which kto takes as 0.
    """
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "totals", lambda mine: [mine[0] + 8.0, mine[1] + 2])
    assert parallel.mean(torch.tensor([1.0, 3.0]), weight).item() == want

def test_a_failing_process_stops_all(here, tmp_path):    # noqa: F811
    """The failing process prints its own message, and the others do not hang."""
    def fail(rank):
        if rank == 1:
            def full(*args):
                raise OSError("No space left on this node")
            loop.train_step = full
    pids = start(2, ["--out_dir", str(tmp_path / "run"), *FLAGS], before=fail, folder=tmp_path)
    codes = ended(pids)
    assert codes[1] == 1 and "No space left on this node" in (tmp_path / "rank-1").read_text()
    assert codes[0] not in (0, "hung") and "another process" in (tmp_path / "rank-0").read_text()

@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_itself(here, tmp_path, nodes, monkeypatch):    # noqa: F811
    """The README's command and not only its environment: two processes on one node, and one on each of two nodes."""
    monkeypatch.setattr(toy, "examples", ALL_EXAMPLES)    # the commands run without patches
    one = run(1, tmp_path / "one", "--loss", "dpo")
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={2 // nodes}", f"--nnodes={nodes}",
                "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    script = [str(ROOT / "train_pref.py"), "--out_dir", str(tmp_path / "two"), "--loss", "dpo", *FLAGS]
    with ExitStack() as files:
        logs = [files.enter_context(open(tmp_path / f"node-{i}", "w+")) for i in range(nodes)]
        def node(i):
            return subprocess.Popen([*torchrun, f"--node_rank={i}", *script], stdout=logs[i], stderr=subprocess.STDOUT)
        codes = [p.wait(timeout=300) for p in [node(i) for i in range(nodes)]]
    printed = [(tmp_path / f"node-{i}").read_text() for i in range(nodes)]
    assert codes == [0] * nodes, printed
    same(log_rows(tmp_path / "two"), one)
    assert [text.count("5 updates in") for text in printed] == [1, 0][:nodes]
