"""Faults that mutants of the measures and the reward showed to be unseen."""

FAULTS = {
    "diversity of the end tokens instead of the words": (
        "measures.py", "[t for t in a if t != eot]", "[t for t in a if t == eot]",
        "test_measures.py::test_diversity_is_that_of_the_words_without_the_end_token"),
    "a mean over the prompts of a label that none has": (
        "measures.py", "if held.labels and label in held.labels:", "if held.labels:",
        "test_measures.py::test_diversity_is_that_of_the_words_without_the_end_token"),
    "a curve divided by all completions that end at the position before": (
        "measures.py", "(lengths > t).sum()", "(lengths >= t).sum()",
        "test_measures.py::test_a_curve_is_the_mean_over_completions_that_have_a_token_there"),
    "a curve goes on where one completion of many has a token": (
        "measures.py", "max(1, len(rows) // 20)", "min(1, len(rows) // 20)",
        "test_measures.py::test_a_curve_is_the_mean_over_completions_that_have_a_token_there"),
    "the scalar of a model of pairs as a probability": (
        "reward.py", "if self.labels else values", "if not self.labels else values",
        "test_reward.py::test_a_models_reward_is_a_probability_only_if_it_has_learned_labels"),
    "a range of prompt lengths that falls": (
        "support/cli.py", "int(span[1]) > int(span[2] or span[1])", "int(span[1]) < int(span[2] or span[1])",
        "test_reward.py::test_prompt_tokens_are_a_number_or_a_range_that_rises"),
}
