"""Planted faults of what saves memory."""

HERE = "test_memory.py::test_checkpointing_changes_no_bit_of_loss_and_gradients"

FAULTS = {
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
