"""
The usual mistakes, planted one at a time in a copy of the project: each must make some test fail. A fault that no test sees means a
missing test. A plant whose line is no longer in the code fails too, so that this list keeps up with it.
"""
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FAULTS = {
    # the log-prob of a completion
    "mean for sum": ("logps.py", "return per_position.sum(1), mask.sum(1)", "return per_position.sum(1) / mask.sum(1), mask.sum(1)",
                     "test_logps.py"),
    "unshifted mask": ("logps.py", "mask = completion_mask[:, 1:]  ", "mask = completion_mask[:, :-1]  ", "test_logps.py"),
    "unshifted targets": ("logps.py", "idx[rows, at + 1]", "idx[rows, at]", "test_logps.py"),
    "softmax gradient without the one-hot": ("logps.py", ".scatter_add_(1, targets[part, None], g)", "", "test_logps.py"),
    "the weight's gradient of the last piece alone": ("logps.py", "grad_weight = more if grad_weight is None else grad_weight.add_(more)",
                                                      "grad_weight = more", "test_logps.py"),
    "largest logit not subtracted": ("logps.py", "top = logits.amax(1, keepdim=True)", "top = 0 * logits.amax(1, keepdim=True)",
                                     "test_logps.py"),
    "all pieces at once in backward": ("logps.py", "for at in range(0, len(s), ctx.rows):\n            part = slice(at, at + ctx.rows)",
                                       "for at in [0]:\n            part = slice(None)", "test_logps.py"),
    "float32 products in a bf16 backward": ("logps.py", "s, w = states.to(ctx.dtype), weight.to(ctx.dtype)", "s, w = states, weight",
                                            "test_logps.py"),
    "logps in bf16": ("logps.py", "logits if logits.dtype == torch.float64 else logits.float()", "logits", "test_logps.py"),
    # a pair behind one prompt
    "positions of the rejected not restarted": ("logps.py", "positions = (column - n_chosen * rejected)",
                                                "positions = (column - 0 * n_chosen * rejected)", "test_logps.py"),
    "rejected restarted at 0": ("logps.py", "positions = (column - n_chosen * rejected)",
                                "positions = (column - (n_prompt + n_chosen) * rejected)", "test_logps.py"),
    "rejected sees chosen": ("logps.py", " & ~(rejected[:, :, None] & chosen[:, None])", ".expand(B, T, T)", "test_logps.py"),
    "a pair's mask is not causal": ("logps.py", "(column <= column[:, None]) &", "(segments != 3)[:, None] &", "test_logps.py"),
    "first rejected token predicted at the chosen's end": ("logps.py", "before = column - 1 - n_chosen",
                                                           "before = column - 1 - 0 * n_chosen", "test_logps.py"),
    "chosen and rejected sums swapped": ("logps.py", "for side in (chosen, rejected)]", "for side in (rejected, chosen)]", "test_logps.py"),
    # batches
    "prompt counted": ("data.py", "mask = segments == 1", "mask = segments <= 1", "test_data.py"),
    "pad counted": ("data.py", "mask = segments == 1", "mask = segments >= 1", "test_data.py"),
    "EOS lost": ("data.py", "(a + [tokenizer.eot_token])[:max(room, 0)]", "a[:max(room, 0)]", "test_data.py"),
    "chosen and rejected swapped in the batch": ("data.py", 's for s in ("chosen", "rejected") if s in rows[0]',
                                                 's for s in ("rejected", "chosen") if s in rows[0]', "test_data.py"),
    "share_prefix not passed on": ("data.py", "functools.partial(collate, share_prefix=share_prefix)", "collate", "test_data.py"),
    "share_prefix without an effect": ("train_pref.py", "args.batch_size, args.seed, args.share_prefix)", "args.batch_size, args.seed)",
                                       "test_runs.py::test_share_prefix_gives_every_batch_in_one_row_a_pair"),
    # losses
    "sign flipped": ("losses.py", "with_rewards(smoothed(h, 0.0), beta, w, l)", "with_rewards(smoothed(-h, 0.0), beta, w, l)",
                     "test_losses.py"),
    "beta in the wrong place": ("losses.py", "return with_rewards(smoothed(h, label_smoothing), beta, w, l)",
                                "return with_rewards(beta * smoothed(w - l, label_smoothing), beta, w, l)", "test_losses.py"),
    "robust with cdpo's sign": ("losses.py", "F.logsigmoid(h) + label_smoothing * F", "F.logsigmoid(h) - label_smoothing * F",
                                "test_losses.py"),
    "IPO's target without the 2": ("losses.py", "with_rewards((w - l - 1 / (2 * beta)) ** 2", "with_rewards((w - l - 1 / beta) ** 2",
                                   "test_bandit.py"),
    "KTO's KL with gradient": ("losses.py", ".clamp(min=0).detach()", ".clamp(min=0)", "test_losses.py"),
    "wrong jsd": ("losses.py", "math.log(2) + F.logsigmoid(x)", "math.log(2) + F.logsigmoid(-x)", "test_losses.py"),
    "TRL's alpha": ("losses.py", '"alpha": lambda x: (1 - exp_line(-alpha * x)) / alpha,',
                    '"alpha": lambda x: (1 - exp_line(-(1 - alpha) * x)) / (1 - alpha + 1e-9),', "test_losses.py"),
    # training
    "chosen and rejected swapped in training": ("train_pref.py", "(chosen, rejected), (chosen_lens", "(rejected, chosen), (chosen_lens",
                                                "test_runs.py"),
    "reference = policy": ("train_pref.py", 'Pairs(chosen, rejected, batch.get("ref_chosen_logps"), batch.get("ref_rejected_logps")',
                           "Pairs(chosen, rejected, chosen.detach(), rejected.detach()",
                           "test_runs.py::test_the_reference_is_fixed_and_without_gradient"),
    "reference with gradient": ("train_pref.py", 'Pairs(chosen, rejected, batch.get("ref_chosen_logps"), batch.get("ref_rejected_logps")',
                                "Pairs(chosen, rejected, chosen * 1.0, rejected * 1.0",
                                "test_runs.py::test_the_reference_is_fixed_and_without_gradient"),
    "reference with adapters on": ("train_pref.py", "adapters.adapters_off if adapters.adapted(model) else nullcontext",
                                   "nullcontext", "test_runs.py::test_adapter_runs_train_save_the_adapter_alone_and_load_again"),
    "loss dispatched to another": ("train_pref.py", "loss, hparams = LOSSES[args.loss]", 'loss, hparams = LOSSES["dpo"]', "test_runs.py"),
    "hyperparameters not passed on": ("train_pref.py", "loss.fn(pairs, **hparams)", "loss.fn(pairs)", "test_runs.py"),
    "beta annealed backwards": ("loop.py", "return start + (end - start) *", "return end + (start - end) *", "test_loop.py"),
    "dropout left on in evaluation": ("loop.py", "    model.eval()\n", "", "test_loop.py"),
    "mean of the batches' means": ("loop.py", 'loss * (batch["weight"] / total)', "loss / len(batches)", "test_loop.py"),
    "last weights kept as the best": ("loop.py", "[out_dir] * better + ", "[out_dir] + ", "test_loop.py"),
    "loss scale not undone before clipping": ("loop.py", "    scaler.unscale_(optimizer)\n", "", "test_loop.py"),
    "loss scale lost on resuming": ("checkpoint.py", '        scaler.load_state_dict(state["scaler"])\n', "", "test_loop.py"),
    "loss scale never halved": ("loop.py", "    scaler.update()\n", "", "test_loop.py"),
    "a spike taken": ("loop.py", 'if not (metrics["loss"] <= limit and ', "if not (", "test_checkpoint.py"),
    "what is usual forgotten on resuming": ("checkpoint.py", 'return state["counters"]', 'return state["counters"] | {"losses": []}',
                                            "test_checkpoint.py"),
    # files
    "weights' checksum not looked at": ("checkpoint.py", "if checksum and checksum != digest(state):", "if False:", "test_checkpoint.py"),
    "state's checksums not looked at": ("checkpoint.py", "if bad := zipfile.ZipFile(path).testzip():", "if bad := None:",
                                        "test_checkpoint.py"),
    "written in place": ("checkpoint.py", 'part = Path(f"{path}.{os.getpid()}.tmp")', "part = path", "test_checkpoint.py"),
    "log not cut back": ("checkpoint.py", "        os.truncate(path, size)\n", "        pass\n", "test_checkpoint.py"),
    "random state forgotten": ("checkpoint.py", 'torch.set_rng_state(state["rng"])', "pass", "test_loop.py"),
    "no state before the last": ("checkpoint.py", 'os.replace(out_dir / "state.pt", out_dir / "state.old.pt")', "pass",
                                 "test_checkpoint.py"),
    # many processes
    "metrics of one process alone": ("parallel.py", "    dist.all_reduce(x)\n", "", "test_parallel.py"),
    "gradients N times too small": ("loop.py", "/ parallel.world(), []", "/ 1, []", "test_parallel.py"),
    "every process the whole batch": ("data.py", "rows[parallel.rank()::parallel.world()]", "rows", "test_parallel.py"),
    "the KL of a part of the batch": ("parallel.py", "return torch.full_like(x[0], total / n)", "return x",
                                      "test_parallel.py::test_the_log_does_not_depend_on_the_number_of_processes[kto]"),
    "gradients talked about at every batch": ("loop.py", "if batch is not batches[-1] else nullcontext()", "if True else nullcontext()",
                                              "test_parallel.py"),
    # the model
    "dropout left on in attention": ("model.py", "dropout_p=self.dropout if self.training else 0.0", "dropout_p=self.dropout",
                                     "test_model.py"),
    "tokens written into the wrong rows": ("model.py", "new[rows, n] = token", "new[:len(rows), n] = token", "test_model.py"),
    "tokens read from the wrong rows": ("model.py", "self.features(new[rows, n - 1, None], cache)",
                                        "self.features(new[:len(rows), n - 1, None], cache)", "test_model.py"),
    "cache not cut when rows are dropped": ("model.py", "                    cache.keep(keep)\n", "", "test_model.py"),
    "lengths not cut when rows are dropped": ("model.py", "rows[keep], lens[keep], done[keep]", "rows[keep], lens[:len(keep)], done[keep]",
                                              "test_model.py"),
    "draws of the wrong rows": ("model.py", "draws[n, rows])", "draws[n, :len(rows)])", "test_model.py"),
    "finished rows draw on": ("model.py", "token = torch.where(done, eos, token)", "pass", "test_model.py"),
    "rows never dropped": ("model.py", "if 4 * going_on <= 3 * len(rows):", "if False:", "test_model.py"),
    "a boundary belongs to the token before it": ("model.py", "right=True)", "right=False)", "test_model.py"),
    "sum of probabilities taken for 1": ("model.py", "draws[:, None] * ends[:, -1:]", "draws[:, None] * 1.0", "test_model.py"),
    "bias gradient missing": ("cpu.py", "rows.sum(0) if ctx.needs_input_grad[2] else None", "None", "test_cpu.py"),
    "bias gradient a mean": ("cpu.py", "rows.sum(0)", "rows.mean(0)", "test_cpu.py"),
    "autocast passed by": ("cpu.py", ' and not torch.is_autocast_enabled("cpu")', "", "test_cpu.py"),
    # evaluation
    "KL at another temperature than the samples": ("measures.py", ".float() / max(temperature, 1e-6)).log_softmax(-1)",
                                                   ".float()).log_softmax(-1)", "test_measures.py"),
    "ties count as losses": ("measures.py", "(gap > 0) + 0.5 * (gap == 0)", "(gap > 0) + 0.0 * gap", "test_measures.py"),
    "samples meet those of other prompts": ("measures.py", "rewards[:, :, None] - others[:, None, :]",
                                            "rewards[:, :, None] - others[::-1, None, :]", "test_measures.py"),
    "best of n a power": ("measures.py", "math.comb(i, n - 1) / math.comb(total, n)", "((i + 1) / total) ** n - (i / total) ** n",
                          "test_measures.py"),
    "EOS counts as a word": ("measures.py", "[t for t in a if t != eot]", "[t for t in a]", "test_measures.py"),
    "budget of distinct not kept": ("measures.py", "tokens = tokens[:room]", "room = max(room, len(tokens))", "test_measures.py"),
    "labels swapped in all pairs": ("data.py", "round(share * len(rows))", "len(rows)", "test_data.py"),
    "label noise without an effect": ("train_pref.py", "data.flip_labels(part, args.label_noise, args.seed)",
                                      "data.flip_labels(part, 0, args.seed)", "test_runs.py::test_labels_are_really_flipped"),
    "intervals of 1.96 for three seeds": ("study/claims.py", "T95[n] * float", "1.96 * float", "test_sweep.py"),
    "value and policy losses swapped": ("rlhf/train_ppo.py", "loss = policy_loss + args.vf_coef * value_loss",
                                        "loss = value_loss + args.vf_coef * policy_loss", "test_ppo.py"),
    "log-ratio sign of the KL's share": ("rlhf/train_ppo.py", "-beta * (logps - ref_logps) * mask", "-beta * (ref_logps - logps) * mask",
                                         "test_ppo.py"),
    "prompt tokens in the advantage": ("rlhf/train_ppo.py", "(delta + gamma * lam * following) * mask[:, t]",
                                       "(delta + gamma * lam * following)", "test_ppo.py"),
    "rewards after EOS": ("rlhf/train_ppo.py", "train_reward.last_place(mask), scores",
                          "train_reward.last_place(mask).clamp(min=mask.shape[1] - 1), scores", "test_ppo.py"),
    "stale log-probs": ("rlhf/train_ppo.py", '"old_logps": logps,', '"old_logps": ref_logps,', "test_ppo.py"),
    "samples of one policy for ever": ("rlhf/train_ppo.py", "if number != self.number:", "if self.number is None:", "test_ppo.py"),
    "own reward in the baseline": ("rlhf/train_ppo.py", "(grouped.sum(1, keepdim=True) - grouped) / (k - 1)",
                                   "grouped.mean(1, keepdim=True)", "test_ppo.py"),
    "gamma and lambda swapped": ("rlhf/train_ppo.py", 'part["mask"], args.gamma, args.lam)', 'part["mask"], args.lam, args.gamma)',
                                 "test_ppo.py"),
    "the value loss left out": ("rlhf/train_ppo.py", "loss = policy_loss + args.vf_coef * value_loss", "loss = policy_loss", "test_ppo.py"),
    "a mean for RLOO's sum": ("rlhf/train_ppo.py", "ratio = logratio.sum(1).exp()", "ratio = logratio.mean(1).exp()", "test_ppo.py"),
    "the baseline of other prompts": ("rlhf/train_ppo.py", "args.rollout // args.k) for _ in range(args.k)]",
                                      "args.rollout // args.k)] * args.k", "test_ppo.py"),
    "the KL praised": ("rlhf/train_ppo.py", "judged.mean().item() - beta * kl", "judged.mean().item() + beta * kl", "test_ppo.py"),
    "beta forgotten": ("checkpoint.py", " | dict(model.named_buffers())", "", "test_ppo.py"),
    "test prompts in training": ("data.py", "% 10 == 0) == (split == \"test\")", "% 10 >= 0)", "test_data.py"),
    "padding in the whitening": ("rlhf/train_ppo.py", "mean = masked_mean(x, mask)\n", "mean = x.mean()\n", "test_ppo.py"),
    "no other gold": ("eval.py", 'else {"reward": ranked, "gold": args.gold}', 'else {"reward": ranked, "gold": ranked}', "test_reward.py"),
    "the test's reviews are training's": ("data.py", 'if split != "train" else ()', 'if split == "train" else ()', "test_data.py"),
    "KL the wrong way round": ("measures.py", "(log_p.exp() * difference).sum(-1)", "((log_p - difference).exp() * difference).sum(-1)",
                               "test_measures.py"),
}

@pytest.mark.parametrize("name", FAULTS)
def test_the_line_that_is_to_be_broken_is_still_there(name):
    """A fault that can no longer be planted is seen by no test, and only the slow ones would say so."""
    file, right, wrong, tests = FAULTS[name]
    assert right in (ROOT / file).read_text() and right != wrong and (ROOT / "tests" / tests.split("::")[0]).is_file()

def tried(name, copy):
    """Plants a fault in a copy of the project, and runs the tests that are to see it."""
    file, right, wrong, tests = FAULTS[name]
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "out", "__pycache__", ".*_cache", "venv", ".venv"))
    text = (copy / file).read_text()
    assert right in text, f"{file} no longer has the line that is to be broken: {right}"
    (copy / file).write_text(text.replace(right, wrong))
    return subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{tests}"], cwd=copy,
                          capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})

@pytest.fixture(scope="module")
def trials(request, tmp_path_factory):
    """{fault: its trial}, as many at a time as there are cores: each is a process with one thread."""
    root = tmp_path_factory.mktemp("faults")
    names = [n for item in request.session.items if (n := getattr(item, "callspec", None) and item.callspec.params.get("name")) in FAULTS
             and item.originalname == "test_a_planted_fault_is_seen"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(tried, name, root / str(i)) for i, name in enumerate(names)}

@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name, trials):
    """The suite is worth what it catches: these are the mistakes that implementations of these losses were found with."""
    done = trials[name].result()
    assert done.returncode == 1 and " failed" in done.stdout, f"no test has seen it: {done.stdout[-300:]}{done.stderr[-300:]}"
