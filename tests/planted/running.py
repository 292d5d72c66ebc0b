"""Planted faults of running a script: threads, Ctrl-C, flags, notes, processes."""

T = "test_running.py::"
CTRL_C = T + "test_ctrl_c_at_any_moment_is_one_line_with_the_command_that_goes_on"

FAULTS = {
    # threads
    "the toy world takes all threads": ("support/cli.py", '(1 if data == "toy" else None)', "None",
                                        T + "test_the_toy_world_takes_one_thread_unless_told_otherwise"),
    "--threads not passed on to SFT": ("train_sft.py", "cli.words(device=device, threads=threads)", "cli.words(device=device)",
                                       T + "test_the_threads_are_those_of_all_scripts_that_a_script_calls"),
    "--threads not passed on to the evaluation": ("train_pref.py", 'cli.pass_on(args, "device", "dtype", "threads")',
                                                  'cli.pass_on(args, "device", "dtype")',
                                                  T + "test_the_threads_are_those_of_all_scripts_that_a_script_calls"),
    "the bandit takes all threads": ("study/bandit.py", "    torch.set_num_threads(args.threads)\n", "",
                                     T + "test_the_bandit_takes_one_thread"),
    # Ctrl-C
    "Ctrl-C is a traceback": ("support/cli.py", "except KeyboardInterrupt:", "except ZeroDivisionError:", CTRL_C + "[bandit]"),
    "the command is that of the script called": ("support/cli.py", "RUNNING[0]", "RUNNING[-1]", CTRL_C + "[dpo, sft's data are read]"),
    "a run without a state begins again": ("support/cli.py", '(Path(out_dir) / "args.json").is_file()', '(Path(out_dir) / "state.pt").is_file()',
                                           CTRL_C + "[dpo, the reference's log-probs]"),
    "a bug in training is one line": ("support/cli.py", "except KeyboardInterrupt:", "except (KeyboardInterrupt, ValueError):",
                                      T + "test_only_ctrl_c_is_made_a_line"),
    "a worker goes on after Ctrl-C": ("study/sweep.py", '== 130:', "== 131:",
                                      T + "test_a_sweeps_worker_takes_no_other_run_after_an_interruption"),
    # flags
    "infinity is a number": ("support/cli.py", "isinstance(one, float) and not math.isfinite(one)", "one != one",
                             T + "test_no_flag_takes_nonsense_in_silence_nor_with_a_traceback[judge]"),
    "half an update of warm-up": ("support/cli.py", '"--warmup_steps", type=count', '"--warmup_steps", type=not_negative',
                                  T + "test_no_flag_takes_nonsense_in_silence_nor_with_a_traceback[train_reward]"),
    "the weights of step None": ("loop.py", '"No weights are" if best_step is None else ', '',
                                 T + "test_weights_that_were_never_kept_are_not_spoken_of"),
    # notes
    "the note on few pairs inverted": ("measures.py", "pairs < 32", "pairs > 32",
                                       T + "test_a_note_is_made_when_it_is_due_and_not_otherwise"),
    "all losses are said to be guesses": ("measures.py", "0.98 * math.log", "0.1 * math.log",
                                          T + "test_a_note_is_made_when_it_is_due_and_not_otherwise"),
    "the prompt's opening counted as the policy's": ("measures.py", 'begun = prompt.rpartition(".")[2]', "begun = prompt",
                                                     T + "test_the_notes_on_samples_see_what_the_policy_wrote"),
    "a sentence that was cut left out": ("toy.py", "len(ended) + bool(rest)", "len(ended)", T + "test_whole_sentences_by_hand"),
    # processes
    "a traceback of who waits": ("support/parallel.py", "with together():\n            dist.barrier()", "if True:\n            dist.barrier()",
                                 T + "test_who_waits_for_a_process_that_has_gone_says_so_in_one_line"),
}
