"""Planted faults of thumbs up and down (unpaired.py): labels, groups, weights, prompts, and KTO's estimate of the KL."""
T = "test_thumbs.py::"
GROUPS = T + "test_the_larger_group_occurs_once_and_the_smaller_is_repeated"
WEIGHTS = T + "test_weights_of_completions_give_the_mean_over_all_of_them"
MISMATCHED = T + "test_half_of_the_mismatched_completions_are_rejected_ones_and_none_is_of_its_prompt"
BAD_ROW = T + "test_a_bad_row_is_named"

FAULTS = {
    # labels
    "labels inverted": ("data.py", 'int(example["positive" if labels else "desirable"])', 'int(not example["positive" if labels else "desirable"])',
                        T + "test_rows_keep_their_labels_and_prompts_stay_in_one_split"),
    "undesirable completions on top": ("unpaired.py", 'row["label"] == label] for label in (1, 0)', 'row["label"] == label] for label in (0, 1)',
                                       T + "test_training_moves_both_groups_to_their_sides"),
    "a label as Python's truth": ("support/messages.py", "found, label = example_of(record, where, pairs=False), label_of(record, RATED)",
                                  'found, label = example_of(record, where, pairs=False), bool(record["label"])', T + "test_labels_as_files_write_them"),
    "a missing label is false": ("support/messages.py", "    if not is_labeled(record):\n        field", "    if False:\n        field", BAD_ROW),
    "a pair among completions with a label": ("support/messages.py", "if pair if kinds[0] else is_labeled(record):", "if False:", BAD_ROW),
    "label noise without an effect on labels": ("data.py", 'row["label"] = 1 - row["label"]', "pass", T + "test_label_noise_turns_labels"),
    "one label alone in validation": ("data.py", "limit = max([100, *(min(group) + 1 for group in groups.values())])", "limit = 100",
                                      T + "test_both_labels_of_a_small_file_are_in_both_splits"),
    # groups
    "the smaller group not repeated": ("unpaired.py", "max(counts(rows))", "min(counts(rows))", GROUPS),
    "completions drawn with replacement": ("unpaired.py", "found += rng.sample(rows, len(rows))", "found += rng.choices(rows, k=len(rows))", GROUPS),
    "the first rows repeated, not all of them": ("unpaired.py", "found += rng.sample(rows, len(rows))", "found += rng.sample(rows, len(rows)) if not found else found[:1]", GROUPS),
    "other partners after an interruption": ("unpaired.py", 'random.Random(f"unpaired {seed}")', "random.Random()", T + "test_an_interrupted_run_ends_with_the_same_bytes"),
    # weights
    "weights swapped": ("unpaired.py", 'zip(counts(rows), ("desirable", "undesirable"))', 'zip(counts(rows), ("undesirable", "desirable"))', WEIGHTS),
    "weights without the counts": ("unpaired.py", '*= 2 * n / len(rows)', "*= 1", WEIGHTS),
    "weights of completions are those of groups": ("support/pref_flags.py", 'is args.undesirable_weight else "completions"', 'is args.undesirable_weight else "groups"', T + "test_the_opening_line_has_counts_and_weights"),
    "a loss that compares is trained on chance": ("unpaired.py", "if not losses[name].unpaired:", "if False:", T + "test_what_cannot_be_trained_is_refused_in_one_line"),
    # prompts
    "both completions behind the desirable one's prompt": ("unpaired.py", 'row.get("rejected_prompt", row["prompt"]) if side == "rejected" else row["prompt"]',
                                                           'row["prompt"]', T + "test_a_batch_by_hand"),
    "undesirable completions shown as the data's answers": ("eval.py", 'if r.get("label", 1)}', "}", T + "test_a_run_from_end_to_end"),
    # the KL
    "mismatched completions from chosen ones alone": ("unpaired.py", 'side = ("chosen", "rejected")[i % 2]', 'side = "chosen"', MISMATCHED),
    "mismatched completions of the same prompt": ("unpaired.py", "if prompt_of(rows[j], side) != prompt:", "if True:", T + "test_mismatched_completions_by_hand"),
    "mismatched behind the desirable prompts alone": ("unpaired.py", 'prompt_of(row, ("chosen", "rejected")[i // 2 % 2])', 'row["prompt"]', MISMATCHED),
    "KL with gradient": ("reference.py", "@torch.no_grad()\ndef kl_logratios", "def kl_logratios", T + "test_the_loss_of_a_batch_by_a_slow_loop"),
}
