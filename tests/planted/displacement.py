"""Planted faults of the measures of likelihood displacement: CHES, what moved, and where the probability went."""

T = "test_displacement.py::"
SLOW, RUN = T + "test_ches_of_a_model_equals_a_slow_double_loop", T + "test_a_runs_measures_equal_slow_ones"
GAINS, MOVED = T + "test_gains_are_sorted_by_probability_and_not_by_ratio", T + "test_log_ratios_and_what_fell_by_hand"

FAULTS = {
    "CHES with chosen and rejected swapped": ("displacement.py", "ches(*s.chunk(2))", "ches(*s.chunk(2)[::-1])", SLOW),
    "CHES with the square of the rejected": ("displacement.py", "(chosen * chosen).sum(-1)", "(rejected * rejected).sum(-1)", T + "test_ches_of_two_tokens_by_hand"),
    "CHES of the policy's states": ("displacement.py", "pair_ches(reference, held.pairs", "pair_ches(policy, held.pairs", RUN + "[False]"),
    "CHES with the adapter on": ("displacement.py", "    with before() as reference:\n        scores =", "    with nullcontext(policy) as reference:\n        scores =", RUN + "[True]"),
    "CHES of the states at a completion's tokens, not of those that predict them": ("displacement.py", "(states[:, :-1] * predicts", "(states[:, 1:] * predicts", SLOW),
    "CHES with the states of the prompt": ("displacement.py", "(states[:, :-1] * predicts[..., None]).sum(1)", "states[:, :-1].sum(1)", SLOW),
    "CHES by the length of the other side": ("displacement.py", "sums / lens[:, None]", "sums / lens.roll(len(lens) // 2)[:, None]", SLOW),
    "results in the order of the batches": ("displacement.py", 'found[[row["at"] for row in group]] = logps', 'found[range(sum(found != 0), sum(found != 0) + len(group))] = logps', T + "test_log_probs_of_texts_equal_a_slow_loop_in_the_order_that_was_asked"),
    "log-ratios of the reference to the policy": ("displacement.py", "chosen, rejected = after - before", "chosen, rejected = before - after", MOVED),
    "pairs of which either fell": ("displacement.py", "(chosen < 0) & (rejected < 0)", "(chosen < 0) | (rejected < 0)", MOVED),
    "gains by ratio": ("displacement.py", "gain = np.exp(after) - np.exp(before)", "gain = np.exp(after - before) - 1", GAINS),
    "gains by log-ratio": ("displacement.py", "gain = np.exp(after) - np.exp(before)", "gain = after - before", GAINS),
    "what fell among the gains": ("displacement.py", "[:n] if gain[i] > 0]", "[:n]]", GAINS),
    "the chosen among the gains": ("displacement.py", " - {tuple(pair[side]) for side in data.SIDES})", ")", RUN + "[False]"),
    "better than the rejected alone": ("displacement.py", "samples > pairs.max(0)", "samples > pairs.min(0)", RUN + "[False]"),
    "rewards in float equality": ("displacement.py", "[:, None] + 1e-9)", "[:, None])", T + "test_samples_are_compared_with_the_better_and_the_worse_of_a_pair"),
    "samples of another prompt": ("displacement.py", 'drawn["reward"][at]', 'drawn["reward"][(at + 1) % len(numbers)]', RUN + "[False]"),
    "the reference's samples as the policy's": ("displacement.py", '("after", lambda: nullcontext(policy))', '("after", before)', RUN + "[False]"),
    "pairs resampled, not prompts": ("displacement.py", "members = [np.flatnonzero(prompts == number) for number in range(prompts.max() + 1)]", "members = [np.array([number]) for number in range(len(prompts))]", T + "test_an_interval_resamples_prompts_with_all_of_their_pairs"),
    "prompts without room for a sample": ("displacement.py", 'if len(pair["prompt"]) + room <= max_len]', "]", T + "test_only_prompts_with_room_are_measured_at_most_as_many_as_asked_for"),
    "refused after the evaluation": ("eval.py", "displacement.paired(held, shown, args.n_prompts) if args.displacement else None", "held if args.displacement else None", T + "test_what_has_no_pairs_is_refused_in_one_line_before_anything_is_measured"),
}
