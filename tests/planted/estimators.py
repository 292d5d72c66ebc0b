"""Faults in study/estimators.py, in the gradients of study/online.py, and in what they take from measures.py."""
EXACT = "test_estimators.py::test_the_exact_numbers_against_a_slow_loop"
TOKENS = "test_estimators.py::test_sampled_tokens_against_a_slow_loop"
UNITS, RUNS = "test_estimators.py::test_units_by_hand", "test_estimators.py::test_runs_are_measured_and_drawn"
PICTURE = "test_estimators.py::test_the_picture_shows_the_files_numbers"

FAULTS = {
    "log-ratio from the reference": ("study/estimators.py", "estimate(policy - ref)", "estimate(ref - policy)", f"{EXACT}[k1]"),
    "log-ratio of samples from the reference": (
        "measures.py", "log_p.gather(1, drawn) - log_q.gather(1, drawn)", "log_q.gather(1, drawn) - log_p.gather(1, drawn)", TOKENS),
    "k3 with the ratio inverted": ("measures.py", "torch.expm1(-logratios) + logratios", "torch.expm1(logratios) - logratios",
                                   f"{EXACT}[k3]"),
    "a mistake that is none": ("study/estimators.py", "k3(-logratios)", "k3(logratios)", f"{EXACT}[k3 inverted]"),
    "the gradient of the other direction": ("study/online.py", "(logps.exp() * (logps - ref))", "(ref.exp() * (ref - logps))",
                                            f"{EXACT}[k1]"),
    "the gradient through the probabilities alone": (
        "study/online.py", "(logps.exp() * (logps - ref))", "(logps.detach().exp() * (logps - ref))", f"{EXACT}[k1]"),
    "samples with a gradient": ("study/online.py", "(logps.detach().exp() * estimate(logps - ref))", "(logps.exp() * estimate(logps - ref))",
                                f"{EXACT}[k2]"),
    "reward and loss swapped": ("study/estimators.py", "*compared(in_reward, exact), *compared(in_loss, exact)",
                                "*compared(in_loss, exact), *compared(in_reward, exact)", f"{EXACT}[k2]"),
    "the mean of the prompts' deviations": ("study/estimators.py", ".sum(1).mean().sqrt()", ".sum(1).sqrt().mean()", f"{EXACT}[k1]"),
    "tokens for completions": ("study/estimators.py", 'yield "completion", name, np.bincount(numbers, tokens), kl',
                               'yield "completion", name, tokens, kls', UNITS),
    "k of a sum for a sum of k": ("study/estimators.py", 'yield "completion", name, np.bincount(numbers, tokens), kl',
                                  'yield "completion", name, whole, kl', UNITS),
    "tokens of one place for those of one completion": ("study/estimators.py", "mask.nonzero()[0]", "mask.nonzero()[1]", TOKENS),
    "numbers that begin again in each batch": ("study/estimators.py", "        n += len(group)\n", "", TOKENS),
    "the mask is not shifted": ("study/estimators.py", 'batch["completion_mask"][:, 1:]', 'batch["completion_mask"][:, :-1]', TOKENS),
    "the error of the mean alone": ("study/estimators.py", "np.std(values - kl)", "np.std(values)", RUNS),
    "loss and reward swapped in the picture": ("study/pictures.py", 'zip(axes[:, 2], ("reward", "loss"))',
                                               'zip(axes[:, 2], ("loss", "reward"))', PICTURE),
    "tokens in the picture": ("study/pictures.py", 'row["unit"] in ("answer", "completion")', 'row["unit"] in ("answer", "token")', PICTURE),
}
