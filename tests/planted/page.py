"""Planted faults of a run's page: its numbers, its text as text, its marks, and its script in a browser."""

T, B = "test_page.py::", "test_browser.py::"
ENDS = T + "test_each_completion_ends_at_the_log_ratio_that_the_loss_saw"
NOTES = T + "test_a_tokens_note_and_color_are_those_of_a_slow_double_loop"

FAULTS = {
    # numbers
    "the log-ratio with the wrong sign": ("page.py", "else self.logps - self.ref_logps", "else self.ref_logps - self.logps", ENDS + "[dpo]"),
    "the log-probs of the token before": ("page.py", '[:, 1:][mask]                            # (M,)', '[:, :-1][mask]', ENDS + "[dpo]"),
    "the note of the token before": ("support/layout.py", "{share(seen.logps[at])}", "{share(seen.logps[at - 1])}", NOTES + "[dpo-None]"),
    "the likeliest tokens of the token before": ("support/layout.py", "{seen.likeliest[at]}", "{seen.likeliest[at - 1]}", NOTES + "[dpo-None]"),
    "reference and policy swapped in the note": ("support/layout.py", "share(seen.ref_logps[at])", "share(seen.logps[at])", NOTES + "[dpo-None]"),
    "the reference's likeliest tokens are the policy's": ("support/layout.py", "{seen.ref_likeliest[at]}", "{seen.likeliest[at]}", NOTES + "[dpo-None]"),
    "a running sum without the first token": ("support/layout.py", "accumulate(seen.logratios.tolist())", "accumulate([0.0, *seen.logratios.tolist()[1:]])", ENDS + "[dpo]"),
    "the reference with its adapter on": ("page.py", "before = lambda: as_reference(policy, reference)", "before = lambda: __import__('contextlib').nullcontext(reference)", ENDS + "[adapter]"),
    "every step has the weights of the best one": ("page.py", "        if not best: ", "        if False: ", ENDS + "[kept]"),
    "chosen and rejected swapped": ("page.py", "for side in (pair.chosen, pair.rejected)]\n    views", "for side in (pair.rejected, pair.chosen)]\n    views", ENDS + "[dpo]"),
    "true credit of the text without its prompt": ("page.py", "decode(tokenizer, prompt + completion[:n])", "decode(tokenizer, completion[:n])", T + "test_true_credit_by_hand"),
    "a scale of color for each completion": ("support/layout.py", 'html.color(beta * seen.logratios[at], scale, "p", "n")', 'html.color(beta * seen.logratios[at], np.abs(beta * seen.logratios).max() or 1.0, "p", "n")', NOTES + "[dpo-None]"),
    "colors of log-ratios without beta": ("support/layout.py", 'html.color(beta * seen.logratios[at], scale, "p", "n")', 'html.color(seen.logratios[at], scale, "p", "n")', NOTES + "[dpo-None]"),
    "a scale to the largest token": ("support/layout.py", "np.percentile(sizes, 97)", "sizes.max()", T + "test_one_scale_of_color_for_the_whole_page[dpo]"),
    "blue and orange swapped": ("support/html.py", "up if step > 0 else down", "down if step > 0 else up", NOTES + "[dpo-None]"),
    "the sparkline upside down": ("support/html.py", "20 * (high - value) / ((high", "20 * (value - low) / ((high", T + "test_the_line_below_a_completion_is_its_running_sum"),
    "the first beta of a schedule": ("page.py", 'anneal(args["max_steps"], args["beta"]', 'anneal(1, args["beta"]', T + "test_the_beta_of_implicit_rewards_is_the_last_one"),
    "a loss without a reference in units of its beta": ("page.py", "not LOSSES[loss].needs_ref", "False", T + "test_the_beta_of_implicit_rewards_is_the_last_one"),
    # the top
    "any change of the mean is a rise or a fall": ("page.py", "after[1] > before[2]", "after[0] > before[0]", T + "test_the_verdict_compares_intervals"),
    "the command of a resumed run resumes": ("support/rundir.py", 'if flag == "resume":', "if False:", T + "test_a_command_with_awkward_values_can_be_pasted"),
    "words of a command unquoted": ("support/rundir.py", "shlex.join(words)", '" ".join(words)', T + "test_a_command_with_awkward_values_can_be_pasted"),
    "a thinned curve without its end": ("support/html.py", "points[::-1][::stride][::-1]", "points[::stride]", T + "test_a_long_curve_is_thinned_and_keeps_its_ends_value"),
    "validation drawn as training": ("support/layout.py", ".get(split, ())", '.get("train", ())', T + "test_curves_have_the_values_of_the_log"),
    # marks
    "flipped labels not marked": ("page.py", 'row["chosen"] is not chosen', "False", T + "test_flipped_pairs_are_marked"),
    "agree and disagree swapped": ("support/layout.py", '"disagree": margin * gap < 0', '"disagree": margin * gap > 0', T + "test_marks_and_keys_of_a_pair_follow_from_its_numbers[dpo]"),
    "filters of another run": ("support/layout.py", "    last = last_view(views)\n    there", "    last = views[-1]\n    there", T + "test_marks_and_filters_of_several_runs_are_those_of_the_first"),
    # text
    "an unescaped prompt": ("support/layout.py", 'escape(text.strip("\\n"))', 'text', T + "test_all_text_of_the_data_is_text"),
    "an unescaped token": ("support/html.py", 'tag("b", escape(seen)', 'tag("b", seen', T + "test_all_text_of_the_data_is_text"),
    "an unescaped attribute": ("support/html.py", '="{escape(str(value))}"', '="{value}"', T + "test_all_text_of_the_data_is_text"),
    "text that reorders the page": ("support/html.py", r"\u202a-\u202e\u2066-\u2069", "", T + "test_all_text_of_the_data_is_text"),
    "control characters as they are": ("support/html.py", r"\0-\x09\x0b-\x1f\x7f-\x9f", "", T + "test_all_text_of_the_data_is_text"),
    "the hash of another script": ("support/html.py", "hashlib.sha256(script.encode())", "hashlib.sha256(style.encode())", T + "test_a_page_requests_nothing_and_runs_only_its_own_script[dpo]"),
    "any script is allowed": ("support/html.py", "script-src 'sha256-{allowed}'", "script-src 'unsafe-inline'", T + "test_a_page_requests_nothing_and_runs_only_its_own_script[dpo]"),
    # kinds of runs, wrong input
    "samples under another run's prompts": ("support/rundir.py", "if prompts[run] != prompts[runs[0]]:", "if False:", T + "test_runs_that_were_evaluated_on_different_prompts_are_refused"),
    "runs on different data": ("page.py", "    eval.check_same_texts(facts, first)\n", "", T + "test_runs_on_different_data_are_refused"),
    "texts longer than the model": ("page.py", 'tokens[:room if name != "prompt" else None]', "tokens", T + "test_a_text_that_is_longer_in_tokens_when_encoded_again_is_cut"),
    "the best step left out": ("page.py", " | ({best_step} & set(steps))", "", T + "test_many_kept_steps_are_thinned_to_the_first_the_last_and_the_best"),
    "views of the slider overlap": ("support/layout.py", "steps.index(later[0]) - 1 if later", "steps.index(later[0]) if later", T + "test_the_views_of_several_runs_share_the_slider"),
    # the script, in a browser
    "a sort that ignores the sign": ("support/page.js", 'key.startsWith("-") ? -1 : 1', "1", B + "test_sorting[dpo]"),
    "numbers sorted as text": ("support/page.js", "Number(card.dataset[key])", "card.dataset[key].charCodeAt(0)", B + "test_sorting[dpo]"),
    "a filter turned round": ("support/page.js", "!card.dataset.marks.split", "card.dataset.marks.split", B + "test_filters[dpo]"),
    "a slider that shows all views": ("support/page.js", "view.hidden = at", "view.hidden = false && at", B + "test_the_slider_shows_one_step_of_each_run[kept]"),
    "a curve's value of the next step": ("support/page.js", "point[0] <= step", "point[0] <= step + 1", B + "test_the_mouse_over_a_curve_reads_all_curves[dpo]"),
    "a control that does nothing": ("support/layout.py", """'<div class="controls" hidden>{chooser""", """'<div class="controls">{chooser""", B + "test_without_javascript_everything_is_there[dpo]"),
    "a note that is not shown": ("support/page.css", "content: attr(data-t)", 'content: ""', B + "test_a_token_shows_its_note_when_it_has_the_focus"),
    "dark text in dark mode": ("support/page.css", "--ink: #e8e8e6", "--ink: #1b1b1b", B + "test_text_can_be_read_in_light_and_dark_mode[dark]"),
    "the slider under the menus": ("support/page.css", ".part .controls { top: 2.4rem; }", ".part .controls { top: 0; }", B + "test_all_controls_can_be_reached_beside_the_pairs[1000]"),
    "the focus under the note": ("support/page.css", "scroll-margin: 11rem 0 9.5rem", "scroll-margin: 0", B + "test_nothing_covers_the_token_that_has_the_focus[400]"),
    "more and less in one hue": ("support/page.css", 'b[class^="n"] { --hue: var(--down); }', 'b[class^="n"] { --hue: var(--up); }', B + "test_blue_is_more_and_orange_is_less[light]"),
    "columns wider than a telephone": ("support/page.css", "minmax(min(100%, 20rem), 1fr)", "minmax(30rem, 1fr)", B + "test_a_narrow_window_needs_no_scrolling_sideways[dpo]"),
}
