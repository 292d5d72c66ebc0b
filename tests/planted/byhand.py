"""
Planted faults where parts are put together: which rows, which model, which direction, which unit is resampled. They are
in eval.py, measures.py, train_pref.py, reward.py and loop.py.
"""
IMDB, FILE, TOY = (f"test_by_hand.py::test_every_number_of_eval_json[{run}-" for run in ("imdb", "file", "toy"))
SHOWN = "test_by_hand.py::test_the_samples_and_their_rewards_are_those_measured"
COUNTS = "test_by_hand.py::test_the_counts_are_those_of_the_rows"
PRINTED = "test_by_hand.py::test_the_printed_table_has_the_right_number_beside_the_right_label"
VALIDATION = "test_by_hand.py::test_every_validation_of_log_csv"
UPDATE = "test_by_hand.py::test_every_update_of_log_csv_and_its_weights"
END = "test_by_hand.py::test_the_table_at_the_end_of_training_is_that_of_the_best_weights"
SPLIT = "test_by_hand.py::test_toy_prompts_are_of_the_test_split"
REVIEWS = "test_by_hand.py::test_review_prompts_are_of_test_reviews_that_training_does_not_hold"
ONCE = "test_by_hand.py::test_prompts_of_a_file_are_its_validation_rows_once_each"
RANKED = "test_by_hand.py::test_pairs_are_ranked_by_the_reward_of_prompt_and_completion[reviews-first-True]"
BEST = "test_by_hand.py::test_the_saved_weights_are_those_of_the_lowest_validation_loss"

FAULTS = {
    # which rows
    "accuracy on pairs of training": ("eval.py", 'facts["pairs"], tokenizer.n_vocab)["val"]',
        'facts["pairs"], tokenizer.n_vocab)["train"]', f"{COUNTS}[imdb]"),
    "a file's held-out rows are those of training": ("eval.py", 'say, labeled=True)["val"]',
        'say, labeled=True)["train"]', ONCE),
    "prompts of the validation split": ("eval.py", 'toy.examples("test", ', 'toy.examples("val", ', SPLIT),
    "prompts of another seed": ("eval.py", 'toy.examples("test", n_prompts, seed)',
        'toy.examples("test", n_prompts, seed + 1)', SPLIT),
    "prompts of reviews of training": ("eval.py", 'beginnings(folder, "test", ',
        'beginnings(folder, "train", ', REVIEWS),
    "a prompt as often as it has pairs": ("eval.py", 'rows = {tuple(r["prompt"]): r for r in rows}.values()',
        "rows = list(rows)", ONCE),
    "n_prompts without an effect": ("eval.py", "fit = fit[:n_prompts]", "fit = fit[:]", f"{COUNTS}[file]"),
    "room for half of the prompts": ("eval.py", 'for p in prompts], 75, method', 'for p in prompts], 50, method',
        f"{END}[file]"),
    "validation on training rows": ("train_pref.py", "data.Batches(part, ", 'data.Batches(rows["train"], ',
        f"{VALIDATION}[file]"),
    "validation labels left right": ("preferences.py", "label_noise, seed) for part in rows.values())",
        'label_noise, seed) for part in [rows["train"]])', f"{VALIDATION}[file]"),
    # which model
    "the reference is the run itself": ("eval.py",
        'reference = start_model(source, want, device, f" of {run}") if source else None',
        "reference = start_model(run, None, device)",
        FILE + "measures]"),
    "the last weights measured": ("eval.py", "policy, about = adapters.load_model(run)",
        'policy, about = adapters.load_model(max(Path(run).glob("step-*"), default=run))', TOY + "measures]"),
    "the last step reported as the best": ("loop.py", '"best_step": stopper.best_step, "best',
        '"best_step": state.step, "best', f"{BEST}[toy]"),
    "best of n from the policy": ("eval.py", "with models[base]() as model:\n            rewards = sample",
        'with models["after"]() as model:\n            rewards = sample', TOY + "best_of]"),
    "the other run's reference": ("eval.py", "sample(runs[args.against][1], ", "sample(runs[args.against][2], ",
        TOY + "measures]"),
    "the gold model's rewards as the learned one's": ("eval.py", "load_rewards(name, ranked, args.gold,",
        "load_rewards(name, args.gold, ranked,", TOY + "measures]"),
    "wins of the reference in place of the run's": ("measures.py", 'wins(found[name].rewards["reward"], others)',
        'wins(found["before"].rewards["reward"], others)', TOY + "measures]"),
    # which direction
    "win rate turned round": ("measures.py", "wins(r, other.rewards[key])", "wins(other.rewards[key], r)",
        IMDB + "measures]"),
    "win rate against the other run turned round": ("measures.py", 'wins(found[name].rewards["reward"], others)',
        'wins(others, found[name].rewards["reward"])', TOY + "measures]"),
    "margin of the rejected": ("measures.py", "margins += (chosen - rejected)", "margins += (rejected - chosen)",
        FILE + "measures]"),
    "labels of the prompts turned round": ("measures.py", '(("positive", True), ("negative", False))',
        '(("positive", False), ("negative", True))', IMDB + "measures]"),
    "the reference loses by definition": ("measures.py", "np.full(n, 0.5)", "np.zeros(n)", FILE + "measures]"),
    "P(negative)": ("reward.py", "np.exp(-x)", "np.exp(x)", IMDB + "measures]"),
    "rewards of chosen and rejected swapped in the log": ("objective.py",
        '"rewards/chosen": chosen_rewards.mean(), "rewards/rejected": rejected_',
        '"rewards/rejected": chosen_rewards.mean(), "rewards/chosen": rejected_', f"{VALIDATION}[file]"),
    "log-probs of chosen and rejected swapped in the log": ("objective.py",
        '"logps/chosen": chosen.detach().mean(), "logps/rejected": rejected.',
        '"logps/rejected": chosen.detach().mean(), "logps/chosen": rejected.', f"{VALIDATION}[file]"),
    "the reference's log-probs of the other side": ("reference.py",
        'names = ["ref_chosen_logps", "ref_rejected_logps"]', 'names = ["ref_rejected_logps", "ref_chosen_logps"]',
        f"{VALIDATION}[file]"),
    "ties count as losses in the log": ("objective.py", "measures.ties_half(margins).mean()", "(margins > 0).float().mean()", f"{VALIDATION}[file]"),
    # which unit, and which mean
    "90% intervals": ("measures.py", "[2.5, 97.5]", "[5, 95]", FILE + "measures]"),
    "samples resampled, not prompts": ("measures.py", "{key: v.reshape(-1, k).mean(1) for key, v in sums.items()}",
        "dict(sums)", FILE + "measures]"),
    "a mean over all tokens": ("measures.py", 'sums["entropy"] / lengths}', 'sums["entropy"] / lengths.mean()}',
        f"{END}[file]"),
    "log-ratio of the token before": ("measures.py", "targets = idx[:, 1:][mask]",
        "targets = idx[:, :-1][mask]", FILE + "measures]"),
    "a completion's last token left out": ("measures.py", 'first, length = len(row["prompt"]) - 1',
        'first, length = len(row["prompt"]) - 2', FILE + "measures]"),
    "EOS not counted in the length": ("measures.py", "for a in several] for several in answers]).mean(1), ",
        "for a in several] for several in plain]).mean(1), ", FILE + "measures]"),
    "all samples pooled as 4": ("measures.py", "pooled_entropy(several[:j])", "pooled_entropy(several)",
        TOY + "measures]"),
    "distinct over samples of one prompt": ("measures.py", "[several[j] for j in range(k) for several in plain]",
        "[a for several in plain for a in several]", TOY + "measures]"),
    "rewards without the prompt": ("measures.py", "reward([p + a for p, a in zip(prompts, flat)])", "reward(flat)",
        IMDB + "measures]"),
    "a reward model's log-odds": ("reward.py", "return sigmoid(values) if self.labels else values",
        "return values", IMDB + "measures]"),
    "the scalar at the padding": ("reward.py", "ends = (lens - 1)",
        "ends = torch.full_like(lens, idx.shape[1] - 1)", IMDB + "measures]"),
    "rewards in the order of lengths": ("reward.py", "out[numbers] = ", "out[sorted(numbers)] = ", RANKED),
    "whole sentences with those of the prompt": ("measures.py", 'begun = prompt.rpartition(".")[2]', "begun = prompt",
        TOY + "measures]"),
    # which temperature
    "temperature without an effect": ("eval.py", "there = look(name, temperature, k)",
        "there = look(name, 0.7, k)", IMDB + "temperatures]"),
    "the reference at the policy's temperature": ("measures.py", "head(others[part]).float().log_softmax(-1)",
        "(head(others[part]).float() / max(temperature, 1e-6)).log_softmax(-1)", IMDB + "temperatures]"),
    "four greedy samples": ("eval.py", "min(4, n_samples) if temperature else 1", "min(4, n_samples)",
        TOY + "temperatures]"),
    "wins against the reference at the same temperature": ("eval.py", "won(there, base)",
        'won(there, look("before", temperature, k))', IMDB + "temperatures]"),
    "samples of the first temperature": ("eval.py", 'row["samples"] = first_texts(there, held)',
        'row["samples"] = first_texts(base, held)', IMDB + "temperatures]"),
    "validation at the beta of its step": ("train_pref.py", 'batch["step"] if model.training else args.max_steps',
        'batch["step"]', f"{VALIDATION}[toy]"),
    # what is shown
    "samples shown are others than the first": ("eval.py", "several[0]) for several in measured.answers",
        "several[-1]) for several in measured.answers", f"{SHOWN}[file]"),
    "samples of the reference in both columns": ("eval.py", "{name: first_texts(measured, held) for name, measured in found.items()}",
        '{name: first_texts(found["before"], held) for name in found}', f"{SHOWN}[file]"),
    "a prompt's mean reward beside its first sample": ("eval.py", "round(float(r[i, 0]), 3)",
        "round(float(r[i].mean()), 3)", f"{SHOWN}[imdb]"),
    "the first run in all columns": ("support/tables.py", 'named[run] = columns["after"]',
        'named[run] = next(iter(by_run.values()))["after"]', f"{PRINTED}[toy]"),
    "rows of the table swapped": ("support/tables.py", '("reward_negative", "  of negative', '("win", "  of negative',
        f"{PRINTED}[imdb]"),
    "ends of the interval swapped": ("support/tables.py", '[{value[1]:{form}}, {value[2]:{form}}]"',
        '[{value[2]:{form}}, {value[1]:{form}}]"', f"{PRINTED}[file]"),
    "learning rate of the step before": ("loop.py", 'group["lr"] = cosine_lr(state.step, ',
        'group["lr"] = cosine_lr(max(0, state.step - 1), ', f"{UPDATE}[file]"),
}
