"""Planted faults of the judge: what is asked of whom, how verdicts are read and counted, and what counts as an answer."""

MODES = "test_judge_modes.py"
HAND = f"{MODES}::test_a_fair_judge_by_hand"
KNOWN = f"{MODES}::test_what_is_known_is_counted_and_only_the_rest_is_asked_and_paid"
FAILURE = f"{MODES}::test_an_empty_or_cut_answer_is_a_failure_that_is_asked_again"
CHOICE, CHECK = "test_judge_choice.py", "test_judge_check.py"
SOFT, FIRST = f"{CHOICE}::test_a_soft_vote_by_hand", f"{CHOICE}::test_the_first_token_is_read_and_of_it_all_forms_of_a_letter"
BOTH = f"{CHOICE}::test_votes_are_asked_for_and_combined_over_both_orders"
REFUSED = f"{CHOICE}::test_refused_log_probs_are_fewer_and_then_none"
MEASURED, BIASES = f"{CHECK}::test_measures_by_hand", f"{CHECK}::test_a_bias_has_its_number_and_its_words"
TOY, OTHERS = f"{CHECK}::test_pairs_of_the_toy_world", f"{CHECK}::test_a_check_of_another_judge_is_never_shown"
INVALID = f"{MODES}::test_a_flip_is_a_tie_and_an_invalid_pair_leaves_the_others"

FAULTS = {
    # what is asked
    "run and reference swapped in both orders": ("questions.py", "if swapped else (mine, other)",
                                               "if not swapped else (mine, other)", HAND),
    "one order asked twice": ("questions.py", "(other, mine) if swapped else (mine, other)", "(mine, other)", HAND),
    "against chosen reads before": ("questions.py", 's["after"].strip(), s[against].strip()', 's["after"].strip(), s["before"].strip()',
                                    f"{MODES}::test_the_texts_that_are_asked"),
    "dialogue's words for every task": ("questions.py", "QUESTIONS[task].format", 'QUESTIONS["dialogue"].format',
                                        f"{MODES}::test_the_texts_that_are_asked"),
    "samples of another temperature": ("judge.py", "zip(found[\"samples\"], texts[temperature])",
                                       "zip(found[\"samples\"], texts[found[\"temperature\"]])", HAND),
    "limit ignored": ("judge.py", "[:limit]", "", f"{MODES}::test_the_limit_takes_the_first_pairs_at_every_temperature"),
    "two judges share answers": ("questions.py", 'f"{model}\\n{text}".encode()', "text.encode()", KNOWN),
    "answers are kept by the prompt alone": ("questions.py", '{model}\\n{text}"', "{model}{swapped}{s['prompt']}\"",
                                             KNOWN),
    "price in and out swapped": ("questions.py", "(tokens_in * price[0] + out * price[1])",
                                 "(tokens_in * price[1] + out * price[0])", KNOWN),
    "what is known is paid again": ("questions.py", "{estimate(todo, ", "{estimate(asked, ", KNOWN),
    # verdicts
    "the first verdict line counts": ("support/verdict.py", "if line == found[-1][0]", "if line == found[0][0]",
                                      f"{MODES}::test_the_last_verdict_line_counts"),
    "a lower-case a counts": ("support/verdict.py", "(A|B|(?i:neither|tie))", "((?i:A|B|neither|tie))", f"{MODES}::test_an_article_is_no_vote"),
    "an article with a capital counts": ("support/verdict.py", "(?:(?<![AB])|{ENDS})", "", f"{MODES}::test_an_article_is_no_vote"),
    "thinking is read": ("support/verdict.py", "    text = after_thinking(answer)\n", "    text = answer\n", f"{MODES}::test_thinking_is_left_out"),
    # counting
    "win and lose swapped": ("support/verdict.py", '{2: "win", -2: "lose"}', '{2: "lose", -2: "win"}', HAND),
    "the other order's verdict is not turned": ("support/verdict.py", '{"A": -1, "B": 1, "neither": 0}[second]',
                                                '{"A": 1, "B": -1, "neither": 0}[second]', HAND),
    "a flip is no tie": ("judge.py", '    counts["tie"] += counts["flip"]\n', "", INVALID),
    "one vote is enough": ("support/verdict.py", '{2: "win", -2: "lose"}', '{2: "win", 1: "win", -1: "lose", -2: "lose"}',
                           f"{MODES}::test_a_vote_for_one_and_neither_is_a_tie_without_a_flip"),
    "invalid pairs in the denominator": ("judge.py", 'len(pairs) - counts["invalid"]', "len(pairs)", INVALID),
    "winners' and losers' words swapped": ("judge.py", 'words["winners"].append(mine if result == "win" else other)',
                                            'words["winners"].append(other if result == "win" else mine)', HAND),
    "Wilson's interval for 90%": ("measures.py", "def wilson(k, n, z=1.96)", "def wilson(k, n, z=1.645)", HAND),
    "Wald's interval": ("measures.py", "half = z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5",
                        "half = z * (p * (1 - p) / n) ** 0.5", HAND),
    "NaN in the file": ("support/checkpoint.py", "None if isinstance(content, float) and not math.isfinite(content) else content", "content",
                        f"{MODES}::test_files_hold_null_for_what_is_not_finite"),
    # answers
    "an empty answer is kept": ("support/endpoint.py", 'if not after_thinking(choice.message.content or ""):', "if False:", FAILURE),
    "a cut answer is kept": ("support/endpoint.py", 'choice.finish_reason == "length"', 'choice.finish_reason == "cut"', FAILURE),
    "an empty answer that was kept is not asked again": ("support/endpoint.py", "for key, answer in known.items() if after_thinking(answer)}",
                                                         "for key, answer in known.items()}",
                                                         f"{MODES}::test_an_answer_that_was_kept_empty_or_cut_is_asked_again"),
    "failures are not told by the exit status": ("questions.py", "    if failures:\n", "    if False:\n", FAILURE),
    "a refused option is sent with every question": ("support/endpoint.py", "    if options == sent:", "    if options := dict(sent):",
                                                     f"{MODES}::test_an_option_that_is_refused_is_not_sent_again"),
    "the timeout is of each retry": ("support/endpoint.py", "await asyncio.wait_for(reply_to(text, client, model, options), timeout)",
                                     "await reply_to(text, client, model, options)", f"{MODES}::test_retries_are_within_the_timeout"),
    "asks on without an end": ("support/endpoint.py", "in_a_row >= GIVE_UP", "False", f"{MODES}::test_without_one_answer_the_file_holds_null"),
    # one letter
    "P(A) is not renormalized": ("support/verdict.py", "return a / (a + b)", "return a * math.exp(most)", SOFT),
    "the soft vote reads the last token": ("support/endpoint.py", "[positions[0], *(positions[0].top_logprobs", "[positions[-1], *(positions[-1].top_logprobs", FIRST),
    "one form of a letter counts alone": ("support/verdict.py", 'rf"\\s*{MARKS}([AB]){MARKS}\\s*"', 'r"([AB])"', SOFT),
    "tiny probabilities divide 0 by 0": ("support/verdict.py", "math.exp(logp - most)", "math.exp(logp)", f"{CHOICE}::test_a_soft_vote_of_tiny_probabilities"),
    "an article is a first word": ("support/verdict.py", "[ \\t]+(?!{REASON})[a-z])", "[ \\t]+[!])", f"{CHOICE}::test_the_first_word_is_the_vote_without_log_probs"),
    "the soft vote of the swapped order is not turned round": ("judge.py", "(first + 1 - second) / 2", "(first + second) / 2", BOTH),
    "one letter is not asked for": ("questions.py", "VERDICT[verdict].replace", 'VERDICT["text"].replace', BOTH),
    "all tokens of one letter are asked for": ("judge.py", '{"text": 2048, "choice": 1}', '{"text": 2048, "choice": 2048}', BOTH),
    "fewer log-probs are never tried": ("support/endpoint.py", 'if options.get("top_logprobs", 0) > FEWER:', "if False:", REFUSED),
    "log-probs that are refused end the questions": ("support/endpoint.py", "        options.pop(\"logprobs\", None)\n", "", REFUSED),
    "a row of nan": ("judge.py", 'if any(row["rates"]["win"][0] is not None for row in rows):', "if rows:",
                     f"{CHOICE}::test_no_readable_verdict_at_all_is_one_sentence_and_no_row"),
    "no readable pair is a success": ("questions.py", "len(unread) > len(asked) / 2 or not pairs", "len(unread) > len(asked) / 2",
                                      f"{CHOICE}::test_half_readable_verdicts_without_one_whole_pair_are_an_error"),
    "a probability above 1 is read": ("support/endpoint.py", 'if not 0 <= record.get("p", 0.5) <= 1:', 'if not record.get("p", 0.5) >= 0:',
                                      f"{CHOICE}::test_a_soft_vote_that_is_no_probability_is_a_damaged_line"),
    # the check of a judge
    "a position bias is not seen": ("judge_check.py", "value[first] + value[second] - 1", "value[first] - value[second]", BIASES),
    "the other order is not turned round in the accuracy": ("judge_check.py", "(value[first] + 1 - value[second]) / 2", "(value[first] + value[second]) / 2", BIASES),
    "the length bias has the wrong sign": ("judge_check.py", "difference(mean_share(longer), mean_share(shorter))", "difference(mean_share(shorter), mean_share(longer))", MEASURED),
    "longer and shorter are swapped": ("judge_check.py", "(longer if gap > 0 else shorter)", "(longer if gap < 0 else shorter)", MEASURED),
    "a length bias has the wrong words": ("judge_check.py", 'kind = "longer" if found["length"][1] > 0', 'kind = "longer" if found["length"][1] < 0', BIASES),
    "a position bias has the wrong words": ("judge_check.py", '("first", share) if low > 0.5', '("first", share) if low < 0.5', BIASES),
    "unreadable answers are dropped in silence": ("judge_check.py", "wilson(unread, 2 * len(verdicts))", "wilson(0, 2 * len(verdicts))",
                                                  f"{CHECK}::test_unreadable_answers_are_counted_and_their_pairs_left_out"),
    "each question is a trial of its own": ("judge_check.py", "wilson(sum(scores), len(scores))", "wilson(2 * sum(scores), 2 * len(scores))", MEASURED),
    "a few pairs are enough": ("judge_check.py", 'if found["pairs"] < ENOUGH:', "if False:", f"{CHECK}::test_few_pairs_allow_no_conclusion"),
    "equal values have no interval": ("judge_check.py", "sum(v * v for v in values) + 1", "sum(v * v for v in values)", f"{CHECK}::test_the_interval_of_a_lean_by_hand"),
    "a soft vote of the check is not turned round": ("judge_check.py", "(p + 1 - q) / 2", "(p + q) / 2", f"{CHECK}::test_soft_votes_by_hand"),
    "the better review is the worse one": ("judge_check.py", "    return balanced(better, worse, n)", "    return balanced(worse, better, n)", TOY),
    "the better review is always the longer one": ("judge_check.py", "(kind for kind in rarer_first if", "(kind for kind in (True, True) if", TOY),
    "the training split of IMDB": ("judge_check.py", 'splits.get("test") or sum', "sum", f"{CHECK}::test_pairs_of_imdb"),
    "a check of another judge is shown": ("judge_check.py", '(c["judge"], c["verdict"]) == (model, verdict)', 'c["verdict"] == verdict', OTHERS),
    "a check in another form is shown": ("judge_check.py", '(c["judge"], c["verdict"]) == (model, verdict)', 'c["judge"] == model',
                                         f"{CHECK}::test_a_later_win_rate_says_what_the_check_said"),
    "two judges share a folder": ("judge_check.py", "    if safe != model:", "    if False:", OTHERS),
    "a check with open questions is stored": ("judge_check.py", "    if failures or not any(verdicts):", "    if not any(verdicts):",
                                              f"{CHECK}::test_a_check_with_open_questions_is_not_stored"),
    "a check replaces all others": ("judge_check.py", "[found, *others]", "[found]", f"{CHECK}::test_checks_of_several_kinds_are_kept_side_by_side"),
}
