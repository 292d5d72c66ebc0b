"""Planted faults of the judge: what is asked of whom, how verdicts are read and counted, and what counts as an answer."""

MODES = "test_judge_modes.py"
HAND = f"{MODES}::test_a_fair_judge_by_hand"
KNOWN = f"{MODES}::test_what_is_known_is_counted_and_only_the_rest_is_asked_and_paid"
FAILURE = f"{MODES}::test_an_empty_or_cut_answer_is_a_failure_that_is_asked_again"
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
}
