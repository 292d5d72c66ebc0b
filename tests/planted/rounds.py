"""Planted faults of training in rounds: pairs, prompts, reference, and the files that a resumed run reads."""

T = "test_rounds.py::"
PAIRS = T + "test_the_pairs_of_a_round_come_from_the_policy_at_its_start"
PROMPTS = T + "test_each_round_has_other_prompts_and_other_noise"
REFERENCE = T + "test_the_reference_of_a_round_is_the_start_model_or_with_sync_ref_the_policy_at_its_start"
FILES = T + "test_files_that_are_not_those_of_the_round_are_never_used"
STOPPED = T + "test_a_run_in_rounds_that_was_stopped_resumes_to_the_same_bytes"
LABELS = T + "test_label_noise_and_drawn_labels_reach_later_rounds"

FAULTS = {
    # pairs
    "round 2 trains on round 1's pairs": ("rounds.py", "self.batches, self.number = self.begin(", "_, self.number = self.begin(",
                                          T + "test_each_round_trains_on_its_own_pairs_alone"),
    "all rounds sampled from the start model": ("rounds.py", "= model, tokenizer, ranked_by,", '= __import__("copy").deepcopy(model), tokenizer, ranked_by,',
                                                PAIRS),
    "the same prompts in all rounds": ("rounds.py", "self.prompts[(number - 1) * self.size:number * self.size]", "self.prompts[:self.size]", PROMPTS),
    "all prompts in round 1": ("sampling.py", '[:len(prompts["train"]) // rounds]', "", PROMPTS),
    "the same noise in all rounds": ("rounds.py", 'random.Random(f"round {self.seed} {number}").randrange(2**31)', "self.seed", PROMPTS),
    "dropout while sampling": ("rounds.py", "        self.model.eval()\n", "", PAIRS),
    "labels without noise after round 1": ("rounds.py", "        data.flip_labels(rows, self.label_noise, seed)\n", "", LABELS),
    "labels drawn in round 1 alone": ("rounds.py", 'ranked_by.nats if labels == "bradley_terry" else None', "None", LABELS),
    "rounds counted in updates, not in batches": ("rounds.py", "max_steps // rounds * grad_accum", "max_steps // rounds",
                                                  T + "test_each_round_trains_on_its_own_pairs_alone"),
    "every process samples": ("rounds.py", "if at_start and parallel.rank() == 0:", "if at_start:", T + "test_two_processes_are_one_run_in_rounds"),
    # reference
    "the reference moves without --sync_ref": ("train_pref.py", "add_reference(start_model(args.init_from, base, device), part, autocast)",
                                               "add_reference(model, part, autocast)", REFERENCE),
    "the reference does not move with --sync_ref": ("train_pref.py", "if args.sync_ref or new_adapter:", "if new_adapter:", REFERENCE),
    "the adapter is off in the reference with --sync_ref": ("train_pref.py", "nullcontext if args.sync_ref else adapters.adapters_off", "adapters.adapters_off",
                                                            REFERENCE),
    "the adapter is on in the reference": ("train_pref.py", "nullcontext if args.sync_ref else adapters.adapters_off", "nullcontext", REFERENCE),
    "a changed start model taken": ("reference.py", "if want and (found := fingerprint(model)) != want:", "if False:",
                                    T + "test_a_start_model_that_has_changed_is_not_the_reference"),
    # files
    "files of another run taken": ("support/round_files.py", "if intact and content.items() >= about.items() else", "if intact else", FILES),
    "damaged pairs taken": ("support/round_files.py", "hashlib.sha256(pairs.read_bytes() + ", "hashlib.sha256(", FILES),
    "a damaged mark taken": ("support/round_files.py", "return content[\"reference\"] if intact and", "return content[\"reference\"] if", FILES),
    "pairs of other weights taken": ("rounds.py", 'about["policy"] = fingerprint(self.model)', "pass", T + "test_pairs_of_other_weights_are_sampled_again"),
    "sampled again from a policy that has moved": ("rounds.py", "if known is None and not at_start:", "if False:", FILES),
    "sampling moves the random state": ("rounds.py", "with torch.random.fork_rng(devices=[]):", "if True:",
                                        STOPPED + "[before the first update of round 2, adapter]"),
    "the length of a run in rounds may change": ("support/cli.py", ' or (key == "max_steps" and saved.get("rounds", 1) > 1)', "",
                                                 T + "test_the_length_of_a_run_in_rounds_may_not_change"),
}
