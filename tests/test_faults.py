"""
The usual mistakes, planted one at a time in a copy of the project: each must make some test fail. A fault that no test sees means a
missing test. A plant whose line is no longer in the code fails too, so that this list keeps up with it.
"""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FAULTS = {
    "mean for sum": ("losses.py", "return per_position.sum(1), mask.sum(1)", "return per_position.sum(1) / mask.sum(1), mask.sum(1)",
                     "test_losses.py"),
    "unshifted mask": ("losses.py", "mask = completion_mask[:, 1:]  ", "mask = completion_mask[:, :-1]  ", "test_losses.py"),
    "unshifted targets": ("losses.py", "targets = idx[:, 1:][mask]", "targets = idx[:, :-1][mask]", "test_losses.py"),
    "prompt counted": ("data.py", "mask[i, len(p):len(p) + len(c)] = True", "mask[i, :len(p) + len(c)] = True", "test_data.py"),
    "pad counted": ("data.py", "mask[i, len(p):len(p) + len(c)] = True", "mask[i, len(p):] = True", "test_data.py"),
    "EOS lost": ("data.py", "(a + [tokenizer.eot_token])[:max(room, 0)]", "a[:max(room, 0)]", "test_data.py"),
    "sign flipped": ("losses.py", "with_rewards(smoothed(h, 0.0), beta, w, l)", "with_rewards(smoothed(-h, 0.0), beta, w, l)",
                     "test_losses.py"),
    "chosen and rejected swapped in the batch": ("data.py", 's for s in ("chosen", "rejected") if s in rows[0]',
                                                 's for s in ("rejected", "chosen") if s in rows[0]', "test_data.py"),
    "chosen and rejected swapped in training": ("train_pref.py", "(chosen, rejected), (chosen_lens", "(rejected, chosen), (chosen_lens",
                                                "test_runs.py"),
    "reference = policy": ("train_pref.py", 'Pairs(chosen, rejected, batch.get("ref_chosen_logps"), batch.get("ref_rejected_logps")',
                           "Pairs(chosen, rejected, chosen.detach(), rejected.detach()", "test_runs.py"),
    "reference with gradient": ("train_pref.py", 'Pairs(chosen, rejected, batch.get("ref_chosen_logps"), batch.get("ref_rejected_logps")',
                                "Pairs(chosen, rejected, chosen * 1.0, rejected * 1.0", "test_runs.py"),
    "reference with adapters on": ("train_pref.py", "with adapters.adapters_off(model) if args.adapter else nullcontext():",
                                   "with nullcontext():", "test_runs.py"),
    "beta in the wrong place": ("losses.py", "return with_rewards(smoothed(h, label_smoothing), beta, w, l)",
                                "return with_rewards(beta * smoothed(w - l, label_smoothing), beta, w, l)", "test_losses.py"),
    "robust with cdpo's sign": ("losses.py", "F.logsigmoid(h) + label_smoothing * F", "F.logsigmoid(h) - label_smoothing * F",
                                "test_losses.py"),
    "IPO's target without the 2": ("losses.py", "with_rewards((w - l - 1 / (2 * beta)) ** 2", "with_rewards((w - l - 1 / beta) ** 2",
                                   "test_bandit.py"),
    "KTO's KL with gradient": ("losses.py", ".clamp(min=0).detach()", ".clamp(min=0)", "test_losses.py"),
    "beta annealed backwards": ("loop.py", "return start + (end - start) *", "return end + (start - end) *", "test_loop.py"),
    "dropout left on in evaluation": ("loop.py", "    model.eval()\n", "", "test_loop.py"),
    "dropout left on in attention": ("model.py", "dropout_p=self.dropout if self.training else 0.0", "dropout_p=self.dropout",
                                     "test_model.py"),
    "loss dispatched to another": ("train_pref.py", "loss, hparams = LOSSES[args.loss]", 'loss, hparams = LOSSES["dpo"]', "test_runs.py"),
    "hyperparameters not passed on": ("train_pref.py", "loss.fn(pairs, **values)", "loss.fn(pairs)", "test_runs.py"),
    "mean of the batches' means": ("loop.py", '(loss * (batch["weight"] / total)).backward()', "(loss / len(batches)).backward()",
                                   "test_loop.py"),
    "KL the wrong way round": ("eval.py", "(log_p.exp() * difference).sum(-1)", "((log_p - difference).exp() * difference).sum(-1)",
                               "test_runs.py"),
    "last weights kept as the best": ("loop.py", "                    if better:\n", "                    if True:\n", "test_loop.py"),
    "wrong jsd": ("losses.py", "math.log(2) + F.logsigmoid(x)", "math.log(2) + F.logsigmoid(-x)", "test_losses.py"),
    "TRL's alpha": ("losses.py", '"alpha": lambda x: (1 - exp_line(-alpha * x)) / alpha,',
                    '"alpha": lambda x: (1 - exp_line(-(1 - alpha) * x)) / (1 - alpha + 1e-9),', "test_losses.py"),
}

@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name, tmp_path):
    """The suite is worth what it catches: these are the mistakes that implementations of these losses were found with."""
    file, right, wrong, tests = FAULTS[name]
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "out", "__pycache__", ".*_cache", "venv", ".venv"))
    text = (copy / file).read_text()
    assert right in text, f"{file} no longer has the line that is to be broken: {right}"
    (copy / file).write_text(text.replace(right, wrong))
    done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{tests}"], cwd=copy,
                          capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 1 and " failed" in done.stdout, f"no test of {tests} has seen it: {done.stdout[-300:]}{done.stderr[-300:]}"
