"""Planted faults of what saves memory."""

HERE = "test_memory.py::test_checkpointing_changes_no_bit_of_loss_and_gradients"

BENCH = "test_bench.py::test_recomputing_is_compared_with_recomputing"

FAULTS = {
    # the benchmark beside TRL
    "TRL's checkpointing beside our run without it": ("study/bench.py", "                                                 checkpointing=checkpointing))\n        for reference, rows", "                                                 checkpointing=False))\n        for reference, rows", BENCH),
    "checkpointing does not reach the measured model": ("study/jobs.py", 'job.get("checkpointing", False)\n    if mode', 'False\n    if mode', "test_bench.py::test_a_job_with_checkpointing_counts_the_second_forward_pass"),
    "a stopped measurement begins again": ("study/bench.py", "if tuple(map(str, where.values())) not in there:", "if True:", "test_bench.py::test_a_stopped_measurement_measures_only_what_is_missing"),
    "resumed rows overwritten": ("study/bench.py", "write(path, chosen(args, scratch, done), done)", "write(path, chosen(args, scratch, done))", "test_bench.py::test_a_stopped_measurement_measures_only_what_is_missing"),
    "means for medians": ("study/table.py", "form, spread, statistics.median)", "form, spread)", "test_bench.py::test_a_round_that_was_disturbed_does_not_move_the_table"),
    # the formula of what fits
    "no scales in nf4's bytes": ("study/fits.py", '"nf4": 0.5 + 4 / 64', '"nf4": 0.5', "test_memory.py::test_bytes_of_a_weight_are_those_of_quantize"),
    "as many numbers for a frozen block": ("study/fits.py", '"adapters": 11', '"adapters": 16', "test_memory.py::test_numbers_a_block_keeps_for_backward"),
    "parameters without the biases": ("study/fits.py", "vectors = 9 * C + inner", "vectors = 4 * C", "test_memory.py::test_parameters_of_the_formula_are_those_of_the_model"),
    "a matrix of the random model not transposed": ("study/fits.py", "shapes[name][::-1] if name", "shapes[name] if name", "test_memory.py::test_the_random_model_can_be_loaded_and_has_gpt2s_statistics"),
    "a new row instead of a replaced one": ("study/fits.py", "[r for r in old if key(r) != key(row)] + [row]", "old + [row]", "test_memory.py::test_a_row_replaces_the_one_of_the_same_measurement"),
    "a whole file in memory when it is loaded": ("model.py", "from_hf(InTurn(state))", "from_hf(dict(InTurn(state).items()))", "test_memory.py::test_loading_holds_one_tensor_of_the_file_at_a_time"),
    "gradients kept while weights are saved": ("loop.py", "    state.optimizer.zero_grad()  ", "    pass  ", "test_memory.py::test_gradients_are_gone_when_weights_are_saved"),
    # loading
    "random numbers for a model without memory": ("model.py", 'torch.device("meta"), weights.no_init():', 'torch.device("meta"):',
                                                  "test_memory.py::test_loading_draws_no_random_numbers"),
    "no initialization anywhere": ("support/weights.py", 'None) == "normal_":', 'None) != "normal_":',
                                   "test_memory.py::test_loading_draws_no_random_numbers"),
    # activation checkpointing
    "other dropout when a block is computed again": ("model.py", "mask, use_reentrant=False)", "mask, use_reentrant=False, preserve_rng_state=False)", HERE),
    "the first block of a frozen base without gradient": ("model.py", "use_reentrant=False)", "use_reentrant=True)", HERE),
    "a shared prompt's mask forgotten in a checkpointed block": ("model.py", "x = checkpoint(block, x, layer, cache, mask, ", "x = checkpoint(block, x, layer, cache, ", HERE),
    "checkpointing of models in evaluation mode alone": ("model.py", "again = self.activation_checkpointing and torch", "again = self.activation_checkpointing and not self.training and torch",
                                                         "test_memory.py::test_checkpointing_keeps_one_input_a_block"),
    "checkpointing without a gradient": ("model.py", "self.activation_checkpointing and torch.is_grad_enabled()", "self.activation_checkpointing",
                                         "test_memory.py::test_nothing_is_checkpointed_without_a_gradient"),
    "checkpointing always": ("model.py", "self.activation_checkpointing = config, False", "self.activation_checkpointing = config, True",
                             "test_memory.py::test_checkpointing_keeps_one_input_a_block"),
    "compiling what is checkpointed": ("train_pref.py", '"compile", not args.activation_checkpointing,', '"compile", True,',
                                       "test_memory.py::test_a_checkpointed_block_is_not_compiled_so_both_flags_are_refused"),
    "the flag forgotten in preference training": ("train_pref.py", "    model.activation_checkpointing = args.activation_checkpointing\n", "",
                                                  "test_memory.py::test_a_run_resumed_with_or_without_checkpointing_has_the_same_weights"),
    "the flag forgotten in SFT": ("train_sft.py", "    model.activation_checkpointing = args.activation_checkpointing\n", "",
                                  "test_memory.py::test_every_script_that_trains_sets_it"),
    "the flag forgotten in the reward model": ("rlhf/train_reward.py", "        model.activation_checkpointing = args.activation_checkpointing\n", "",
                                               "test_memory.py::test_every_script_that_trains_sets_it"),
    "the flag forgotten in PPO": ("rlhf/train_ppo.py", "    policy.activation_checkpointing = args.activation_checkpointing\n", "",
                                  "test_memory.py::test_every_script_that_trains_sets_it"),
}
