"""Planted faults of models and tokenizers from elsewhere, of bytes, and of adapter runs as a start."""

FAULTS = {
    # shards
    "a shard is read as a pickle with code": ("support/weights.py", "weights_only=True", "weights_only=False",
                                              "test_elsewhere.py::test_code_in_a_shard_is_not_run"),
    "an index may name any file": ("support/weights.py", r're.search(r"[/\\\0]", shard) or shard in ("", ".", "..")', "False",
                                   "test_elsewhere.py::test_a_shard_outside_the_folder_is_refused_before_it_is_opened"),
    "the last shard that holds a weight counts": (
        "support/weights.py", "names = [name for name in shard_of if shard_of[name] == shard]", "names = shard_of.keys() & held.keys()",
        "test_elsewhere.py::test_of_a_weight_in_two_shards_the_one_that_the_index_names_counts"),
    "tensors go back to the GPU that a file names": (
        "support/weights.py", 'torch.load(path, map_location="cpu", weights_only=True)', "torch.load(path, weights_only=True)",
        "test_model.py::test_a_bin_file_that_was_saved_on_a_gpu_is_loaded_on_the_cpu"),
    # names, heads, padding
    "only one prefix is taken off": ("support/weights.py", r"^((_orig_mod|module)\.)+", r"^((_orig_mod|module)\.)",
                                     "test_elsewhere.py::test_prefixes_of_compile_and_data_parallel_are_taken_off"),
    "a head of its own is left out": ("support/weights.py", "and not torch.equal(head.float(), wte.float())", "and False",
                                      "test_elsewhere.py::test_a_head_of_its_own_is_refused_by_name"),
    "the first rows of a padded vocabulary are cut": ("support/weights.py", "state[name][:VOCAB]", "state[name][-VOCAB:]",
                                                      "test_elsewhere.py::test_rows_after_gpt2s_vocabulary_are_cut"),
    "the cut is said at every load": ("support/weights.py", "SAID.add(folder.resolve())", "pass",
                                      "test_elsewhere.py::test_the_cut_is_said_once_a_folder"),
    # tokenizers
    "a small model from elsewhere is read with GPT-2's first ranks": (
        "support/cli.py", "if not is_run(name) and", "if False and", "test_elsewhere.py::test_a_small_vocabulary_from_elsewhere_is_refused"),
    "a step's folder is no run": ("support/rundir.py", 'run.name.startswith("step-")', "False",
                                  "test_elsewhere.py::test_a_small_vocabulary_of_a_run_of_ours_is_taken"),
    "tokenizers are compared by their size": ("support/tokenizers.py", "ids_of(folder / name) != gpt2_ids(tokenizer)",
                                              "len(ids_of(folder / name) or ()) != len(gpt2_ids(tokenizer))",
                                              "test_elsewhere.py::test_a_tokenizer_beside_the_model_must_be_gpt2s"),
    "tokens added at the end make another tokenizer": ("support/tokenizers.py", "for token, i in content.items() if i < VOCAB",
                                                       "for token, i in content.items()",
                                                       "test_elsewhere.py::test_a_tokenizer_beside_the_model_must_be_gpt2s"),
    "bytes in the order of their numbers": ("support/tokenizers.py", "return printable + [b for b in range(256) if b not in printable]",
                                            "return [*range(256)]",
                                            "test_elsewhere.py::test_bytes_have_the_ids_of_gpt2s_first_tokens"),
    "bytes need GPT-2's files": ("support/tokenizers.py", "if n_vocab == BYTES:", "if False:",
                                 "test_elsewhere.py::test_own_pairs_train_and_are_measured_without_any_file"),
    "more blanks than the pattern can take": ("support/tokenizers.py", "LONGEST_BLANK = 500_000", "LONGEST_BLANK = 2_000_000",
                                              "test_elsewhere.py::test_as_many_blanks_as_are_let_through_can_be_encoded"),
    "Ctrl-C is taken for a panic": ("support/tokenizers.py", 'if type(e).__name__ != "PanicException":', "if False:",
                                    "test_elsewhere.py::test_a_panic_of_the_tokenizer_is_an_error_in_one_line_and_ctrl_c_is_not"),
    # an adapter run as a start
    "the reference of a start with an adapter is its bare base": (
        "train_pref.py", "new_adapter = bool(adapters.adapter_modules(model)) and not about",
        "new_adapter = bool(adapters.adapter_modules(model))",
        "test_elsewhere.py::test_a_run_from_an_adapter_run_starts_as_its_own_reference"),
    "evaluation compares with the bare base": ("eval.py", 'if about and want in (None, about["base_fingerprint"]):', "if about:",
                                               "test_elsewhere.py::test_evaluation_compares_with_the_start_and_not_with_the_bare_base"),
    "the start's fingerprint is taken for the base's": (
        "train_pref.py", '(about["base"], about["base_fingerprint"]) if about else', '(about["base"], base) if about else',
        "test_elsewhere.py::test_the_adapter_goes_on_and_stands_on_the_first_base"),
    "a new rank for the start's adapter is ignored": ("support/pref_flags.py", "if getattr(args, flag) not in (None, own):", "if False:",
                                                      "test_elsewhere.py::test_flags_that_contradict_the_adapter_of_the_start_are_refused"),
}
