"""Planted faults of layouts: what a prompt is made of, what is refused or dropped, the form in which a run is asked."""

WHOLE = "test_layouts.py::test_the_prompt_is_all_that_prompt_and_answers_say_and_each_message_once"
COLUMNS = "test_layouts.py::test_system_and_history_stand_in_the_prompt_of_every_layout"

FAULTS = {
    "the longer of two lists kept": ("support/messages.py", "return (other or system) + turns[:len(turns) - repeated] + more",
                                     "return max(first, second, key=len)", WHOLE),
    "overlap of two lists stands twice": ("support/messages.py", "turns[:len(turns) - repeated] + more", "turns + more", WHOLE),
    "prompts that contradict each other joined": (
        "support/messages.py", "if fits and more and not repeated:", "if False:",
        "test_layouts.py::test_parts_that_contradict_each_other_are_refused_with_file_and_row"),
    "two system messages, one taken": (
        "support/messages.py", "fits = not (system and other) or same(system, other)", "fits = True",
        "test_layouts.py::test_parts_that_contradict_each_other_are_refused_with_file_and_row"),
    "column system ignored": ("support/messages.py", 'if record.get("system") in (None, ""):', "if True:", COLUMNS),
    "column history ignored": ("support/messages.py", 'value = record.get("history")', "value = None", COLUMNS),
    "a second Assistant behind a beginning": (
        "support/messages.py", 'if role != "assistant" or not begun:', "if True:",
        "test_layouts.py::test_an_answer_continues_the_beginning_that_the_prompt_ends_with"),
    "Python's lists trained on as text": ("support/messages.py", "if DAMAGED.search(value):", "if False:",
                                          "test_layouts.py::test_what_looks_like_messages_and_is_not_json_is_refused"),
    "answers labelled false trained on": ("support/messages.py", "zip(splits[split], labels) if label is not False",
                                          "zip(splits[split], labels)",
                                          "test_layouts.py::test_rows_labelled_false_are_dropped_and_counted"),
    "class 0 dropped as not wanted": ("support/messages.py", "any(isinstance(label, float) for label in", "any(False for label in",
                                      "test_layouts.py::test_a_label_that_is_a_class_drops_nothing"),
    "columns that are not used left unsaid": ("support/messages.py", "if self.columns:", "if False:",
                                              "test_layouts.py::test_text_in_other_columns_is_named_once"),
    "a run asked in a form that it never saw": (
        "chat.py", 'return text if is_wrapped else form["before"] + text + form["after"]', "return text",
        "test_layouts.py::test_a_question_is_put_into_the_form_of_the_training_prompts"),
    "the form of prompts not recorded": (
        "train_sft.py", """,
                     "prompt_format": chat.prompt_format(rows["train"], tokenizer)""", "",
        "test_layouts.py::test_eval_asks_in_the_form_that_args_json_records"),
    "a text without its EOS in front": ("chat.py", 'if form["kind"] == "text" or not tokens:', "if not tokens:",
                                        "test_layouts.py::test_a_run_on_texts_is_asked_behind_an_eos"),
    "a chat without the earlier turns": ("chat.py", 'form["before"] + earlier + question', 'form["before"] + question',
                                         "test_layouts.py::test_a_chat_keeps_the_conversation_of_a_run_on_dialogues"),
    "a chat that outgrows its room": (
        "chat.py", "if max_len - len(tokens) >= least:", "if True:",
        "test_layouts.py::test_the_oldest_turns_are_dropped_when_the_room_is_used_up_and_that_is_said"),
}
