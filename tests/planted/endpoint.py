"""Planted faults of the endpoint's client: what a server's error says, which errors end the run, and how a rate is shown."""

TEST = "test_endpoint.py"

FAULTS = {
    "the reason of a refusal is not shown": ("support/endpoint.py", "{words_of(error)[:160]}", "{str(error)[:160]}",
                                             f"{TEST}::test_what_the_endpoint_says_is_in_the_error"),
    "the reason of a refusal is shown twice": ("support/endpoint.py", 'None if body.get("message") else body.get("detail") or body', "body",
                                               f"{TEST}::test_what_the_endpoint_says_is_in_the_error"),
    "a refused option is looked for in error.message alone": ("support/endpoint.py", "name in words_of(e) and", "name in str(e) and",
                                                              f"{TEST}::test_an_option_that_is_refused_in_the_detail_is_found"),
    "an option in the request that comes back counts as refused": ("support/endpoint.py", "if isinstance(body, list):", "if False:",
                                                                   f"{TEST}::test_an_option_in_the_request_that_is_sent_back_is_not_refused"),
    "a wrong model is asked every question": ("support/endpoint.py", 'only_this = bar.n and getattr', 'only_this = getattr',
                                              f"{TEST}::test_a_wrong_model_is_not_asked_every_question"),
    "long pairs end the run": ("support/endpoint.py", "in_a_row += not only_this", "in_a_row += 1",
                               f"{TEST}::test_questions_that_are_refused_one_by_one_do_not_end_the_run"),
    "a share of 0 has a sign": ("judge_check.py", "round(x, 3) + 0.0 for", "x for", "test_judge_check.py::test_a_rate_in_words"),
}
