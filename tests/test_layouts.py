"""
Layouts of local files: which text becomes the prompt and which the answer, which rows are refused, dropped or
reported, and the form in which questions are put to a run.
"""
import csv
import json
import math
import shutil

import pytest

import chat
import data
import sampling
import eval
from support import messages, sources
import toy
import train_pref
import train_sft
from conftest import TINY
from test_data import assistant, user, write_jsonl

def system(text):
    return {"role": "system", "content": text}

def read(record, pairs=True):
    return sources.example_of(record, "f.jsonl, row 7", pairs)

def prompt_of(record, pairs=True):
    return read(record, pairs)["prompt"]

def sides(before=(), chosen="Yes", rejected="No"):
    return {"chosen": [*before, assistant(chosen)], "rejected": [*before, assistant(rejected)]}

def loaded(path, pairs=True):
    """(examples, dropped, the printed lines)."""
    said = []
    splits, dropped = sources.load_examples(str(path), pairs=pairs, say=said.append)
    return [e for part in splits.values() for e in part], dict(dropped), said

def refused(path, *words, pairs=True):
    with pytest.raises(ValueError) as e:
        sources.load_examples(str(path), pairs=pairs)
    assert "\n" not in str(e.value) and all(word in str(e.value) for word in words), str(e.value)

SYS, HI, HELLO, AND = system("Be brief."), user("Hi"), assistant("Hello"), user("And?")
TALK = "Be brief.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:"

# ---------------------------------------------------------------------------------------------------------------------
# messages in the prompt and in the answers

@pytest.mark.parametrize("prompt, before", [
    ([SYS, HI, HELLO, AND], []), ([SYS, HI, HELLO, AND], [SYS, HI, HELLO, AND]),
    ([SYS, HI, HELLO, AND], [HI, HELLO, AND]),
    ([SYS, HI, HELLO, AND], [AND]), ([SYS, HI, HELLO], [AND]), ([SYS], [HI, HELLO, AND]), ([SYS, HI], [HELLO, AND]),
    ([HI, HELLO, AND], [SYS, HI, HELLO, AND]), ([SYS, HI, HELLO], [HELLO, AND]), ([AND], [SYS, HI, HELLO, AND]),
    ("And?", [SYS, HI, HELLO, AND]), ("Hi", [SYS, HI, HELLO, AND]), ("\n\nHuman: Hi\n\nAssistant: Hello", [SYS, AND]),
    (TALK, []), (TALK, [AND]), (None, [SYS, HI, HELLO, AND])],
    ids=["none", "all", "without system", "the end", "the turn added", "system in the prompt", "more added",
         "system in the answers", "overlap", "the last turn in the prompt", "text: last", "text: first",
         "text: dialogue", "text: whole", "text: whole and end", "no prompt"])
def test_the_prompt_is_all_that_prompt_and_answers_say_and_each_message_once(prompt, before):
    """Keeping only the longer of the two loses the system message or the question, and the pair becomes meaningless."""
    record = sides(before) | ({} if prompt is None else {"prompt": prompt})
    assert read(record) == {"prompt": TALK, "chosen": " Yes", "rejected": " No"}

def test_spaces_alone_do_not_make_two_messages_of_one():
    """Some exporters strip one column and not the other."""
    assert prompt_of({"prompt": " Hi\n"} | sides([SYS, HI])) == "Be brief.\n\nHuman: Hi\n\nAssistant:"

@pytest.mark.parametrize("prompt, before", [
    ([HI], [user("Ho")]), ("Hi", [user("Ho")]), ([system("Be long."), HI], [SYS, HI]),
    ([HI, HELLO], [HI, assistant("Hey"), AND]),
    ([HI, HELLO, AND], [HI]), ([HI, HELLO], [assistant("Hey"), AND]), ([HI, HELLO, HI, assistant("Hey")], [HI])],
    ids=["two questions", "two questions, text", "two systems", "another answer", "cut short", "two answers",
         "ambiguous"])
def test_parts_that_contradict_each_other_are_refused_with_file_and_row(tmp_path, prompt, before):
    """One of the two parts must be wrong. Choosing one would train on answers to another question."""
    rows = [{"prompt": [HI]} | sides([HI]), {"prompt": prompt} | sides(before)]
    refused(write_jsonl(tmp_path / "m.jsonl", rows), "m.jsonl, row 2", "prompt (", "chosen (", "contradict")

def test_answers_that_go_on_from_different_prompts_are_dropped_and_those_that_repeat_more_or_less_are_not():
    """The rejected side may leave out a part that the chosen side repeats, since the question is the same."""
    record = {"prompt": [SYS, HI], "chosen": [HI, assistant("Yes")], "rejected": [assistant("No")]}
    assert read(record) == {"prompt": "Be brief.\n\nHuman: Hi\n\nAssistant:", "chosen": " Yes", "rejected": " No"}
    for other in ([user("Ho")], [HI, HELLO, AND], [HI, user("Ho")]):
        assert read(record | {"rejected": [*other, assistant("No")]}) == messages.DIFFERENT
    assert read({"prompt": [HI, HELLO]} | {"chosen": [AND, assistant("Yes")], "rejected": "No"}) == messages.DIFFERENT

@pytest.mark.parametrize("answers", [("lly", "d"), ("Sure, really", "Sure, read")], ids=["goes on", "repeats it"])
@pytest.mark.parametrize("as_messages", [True, False])
def test_an_answer_continues_the_beginning_that_the_prompt_ends_with(answers, as_messages):
    """A second "Assistant:" or a space would appear in the middle of a sentence or a word."""
    answers = dict(zip(("chosen", "rejected"), ([assistant(a)] if as_messages else a for a in answers)))
    got = read({"prompt": [HI, assistant("Sure, rea")]} | answers)
    assert got == {"prompt": "\n\nHuman: Hi\n\nAssistant: Sure, rea", "chosen": "lly", "rejected": "d"}

def test_an_empty_turn_of_the_assistants_only_asks_for_the_answer():
    """Chat templates add such a turn. Rendered as text, the prompt would end in a space, which changes its tokens."""
    assert prompt_of({"prompt": [HI, assistant("")]} | sides()) == "\n\nHuman: Hi\n\nAssistant:"

@pytest.mark.slow
def test_where_the_system_message_decides_dpo_learns(tmp_path, own_tokenizer, monkeypatch):
    """Without the system message, the same pair appears in both directions, and the loss stays at log 2."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for i in range(24):
        for word, pair in (("superb", ("superb .", "dull .")), ("dull", ("dull .", "superb ."))):
            rows.append({"prompt": [system(word)], **sides([user(f"the plot {i} was")], *pair)})
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    sizes = ["--max_len", "64", "--batch_size", "16", "--lr", "1e-2"]
    train_sft.main(["--data", path, "--out_dir", "sft", *TINY[:6], *sizes, "--max_steps", "30", "--eval_every", "30"])
    monkeypatch.setattr(eval, "main", lambda *a, **k: {})
    got = train_pref.main(["--data", path, "--init_from", "sft", "--out_dir", "dpo", *sizes, "--max_steps", "30",
                           "--eval_every", "30", "--warmup_steps", "2"])
    assert got["best_val_loss"] < 0.9 * math.log(2), got
    facts = json.loads((tmp_path / "dpo" / "args.json").read_text())
    assert facts["prompt_format"] == chat.DIALOGUE    # the form leaves out the two system messages

# ---------------------------------------------------------------------------------------------------------------------
# columns system and history

HISTORY = [["Hi", "Hello"]]

@pytest.mark.parametrize("record, prompt", [
    ({"system": "Be brief.", "history": HISTORY, "prompt": "And?", "chosen": "Yes", "rejected": "No"}, TALK),
    ({"system": "Be brief.", "history": [HI, HELLO], "prompt": "And?", "chosen": "Yes", "rejected": "No"}, TALK),
    ({"system": "Be brief.", "history": [HI, HELLO], "prompt": [AND], "chosen": "Yes", "rejected": "No"}, TALK),
    ({"system": "Be brief.", "history": json.dumps(HISTORY)} | sides([AND]), TALK),
    ({"system": "Be brief.", "history": HISTORY} | sides([HI, HELLO, AND]), TALK),
    ({"system": "Be brief.", "history": HISTORY, "instruction": "And?"} | sides(), TALK),
    ({"system": "Be brief."} | sides([SYS, HI, HELLO, AND]), TALK),
    ({"history": [SYS, HI, HELLO, AND], "chosen": "Yes", "rejected": "No"}, TALK),
    ({"system": "Be brief.", "prompt": "And?", "chosen": "Yes", "rejected": "No"}, "Be brief.\n\nAnd?"),
    ({"system": "Be brief.", "prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Yes", "rejected": "No"},
     "Be brief.\n\nHuman: Hi\n\nAssistant:"),
    ({"system": None, "history": None, "prompt": "And?", "chosen": "Yes", "rejected": "No"}, "And?"),
    ({"system": "", "history": "", "prompt": "And?", "chosen": "Yes", "rejected": "No"}, "And?"),
    ({"history": [["go on", "so"]], "prompt": "go on", "chosen": "Yes", "rejected": "No"},
     "\n\nHuman: go on\n\nAssistant: so\n\nHuman: go on\n\nAssistant:")])
def test_system_and_history_stand_in_the_prompt_of_every_layout(record, prompt):
    """Without them the answer is to a question that the model does not see."""
    assert prompt_of(record) == prompt

def test_an_instruction_keeps_its_template_with_system_and_history():
    """Rows with and without a history in one file must have the same form."""
    record = {"instruction": "And?", "input": "1", "chosen": "Yes", "rejected": "No"}
    plain = prompt_of(record)
    for empty in ([], None, ""):
        assert prompt_of(record | {"history": empty}) == plain
    got = prompt_of(record | {"system": "Be brief.", "history": HISTORY})
    earlier = "### Instruction:\nHi\n\n### Response:Hello\n\n"
    assert got == "Be brief.\n\n" + plain.replace("### Instruction:", earlier + "### Instruction:")

def test_system_stands_before_a_text_that_is_learned_as_a_whole():
    """In this layout, too, the system message must not be lost."""
    assert read({"system": "Be brief.", "text": "a film"}, False) == {"prompt": "Be brief.\n\n", "chosen": "a film"}

@pytest.mark.parametrize("change, words", [
    ({"system": 7}, ("'system'", "text")), ({"system": "Be long."}, ("system", "contradict")),
    ({"history": "Hi"}, ("'history'", "JSON")),
    ({"history": ["Hi", "Hello"]}, ("'history'", "pairs")), ({"history": [["Hi"]]}, ("'history'", "pairs")),
    ({"history": [["Hi", None]]}, ("'history'", "pairs")), ({"history": [HI]}, ("history", "contradict"))])
def test_a_system_or_history_that_cannot_be_read_is_refused(tmp_path, change, words):
    """The message has file, row and field."""
    path = write_jsonl(tmp_path / "s.jsonl", [sides([SYS, AND]), sides([SYS, AND]) | change])
    refused(path, "s.jsonl, row 2", *words)

# ---------------------------------------------------------------------------------------------------------------------
# text that is not used

def test_text_in_other_columns_is_named_once(tmp_path):
    """A context or a persona may decide the answers, so it is reported. Ids, numbers and copies are no loss."""
    rows = [{"prompt": f"q {i}", "chosen": "a", "rejected": "b", "context": "c", "notes": ["d"], "id": "x",
             "prompt_id": "y", "score": "0.5", "n": 3, "source": "web", "question": f"q {i}", "price": "1,200.5"}
            for i in range(3)]
    rows[2] |= {"Persona": "pirate", "empty": " "}
    _, _, said = loaded(write_jsonl(tmp_path / "r.jsonl", rows))
    assert len(said) == 1 and said[0].endswith("not used: context, notes, Persona") and "r.jsonl" in said[0]

@pytest.mark.parametrize("record, pairs", [
    ({"prompt": "p", "chosen": "a", "rejected": "b", "id": "x"}, True),
    ({"prompt": "p", "chosen": "a", "rejected": "b"}, False),
    ({"instruction": "p", "input": "i", "output": "a", "chosen": "a", "rejected": "b"}, True),
    ({"text": "a", "label": "pos"}, False),
    ({"system": "s", "history": HISTORY, "prompt": "p", "completion": "a"}, False)])
def test_nothing_is_said_where_all_text_is_used(tmp_path, record, pairs):
    """Nobody reads a line that is printed for every file."""
    assert loaded(write_jsonl(tmp_path / "r.jsonl", [record]), pairs)[2] == []

def test_an_instruction_beside_a_prompt_is_named(tmp_path):
    """Only one of the two becomes the prompt."""
    row = {"prompt": "p", "instruction": "do it", "input": "with this", "completion": "a"}
    assert loaded(write_jsonl(tmp_path / "r.jsonl", [row]), False)[2][0].endswith("not used: instruction, input")

# ---------------------------------------------------------------------------------------------------------------------
# messages in cells of text

def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as f:
        out = csv.DictWriter(f, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    return path

def test_messages_in_cells_are_read_where_they_are_json(tmp_path):
    """Read as text, they would teach the model to write brackets and roles."""
    row = {side: json.dumps(part) for side, part in sides([SYS, HI]).items()} | {"prompt": json.dumps([SYS])}
    (got,), _, _ = loaded(write_csv(tmp_path / "r.csv", [row]))
    assert got == {"prompt": "Be brief.\n\nHuman: Hi\n\nAssistant:", "chosen": " Yes", "rejected": " No"}
    (got,), _, _ = loaded(write_csv(tmp_path / "r.csv", [{"conversations": row["chosen"]}]), False)
    assert got["chosen"] == " Yes"

@pytest.mark.parametrize("cell", [
    str([HI, assistant("Yes")]), str([{"content": "Hi", "role": "user"}]), json.dumps([HI, assistant("Yes")])[:-9],
    json.dumps([{"content": "Hi"}])[:-3], "[{'from': 'human', 'value': 'Hi'}\n {'from': 'gpt', 'value': 'Yes'}]",
    "array([{'role': 'user'}])"])
@pytest.mark.parametrize("field", ["chosen", "prompt"])
def test_what_looks_like_messages_and_is_not_json_is_refused(tmp_path, cell, field):
    """pandas writes a column of lists as Python or numpy prints it."""
    row = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
    refused(write_csv(tmp_path / "r.csv", [row, row | {field: cell}]), "r.csv, row 2", repr(field), "json.dumps")

@pytest.mark.parametrize("answer", [
    "[1, 2", '[{"value": 3}]', "[{'value': 3}]", '{"content": 1}', "[Hi] there", '{"a": {"role": "x"}}'])
def test_an_answer_that_is_code_stays_text(answer):
    """Structured answers begin with brackets too."""
    assert read({"prompt": "p", "chosen": answer, "rejected": "b"})["chosen"] == answer

# ---------------------------------------------------------------------------------------------------------------------
# supervised data

GPT = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
       {"from": "human", "value": "And?"}, {"from": "gpt", "value": "Yes"}]

@pytest.mark.parametrize("record", [
    {"messages": [SYS, HI, HELLO, AND, assistant("Yes")]}, {"conversations": GPT},
    {"conversations": [SYS, HI, HELLO, AND, assistant("Yes")]},
    {"messages": [SYS, HI, HELLO, AND, assistant("Yes")], "prompt": "Hi", "text": "all of it"},
    {"prompt": GPT[:4], "response": "Yes"},
    {"messages": None, "prompt": GPT[:4], "completion": GPT[4:]}, {"chosen": GPT, "rejected": GPT},
    {"messages": json.dumps(GPT)}, {"conversations": GPT[1:], "system": "Be brief."},
    {"messages": [SYS, HI, HELLO, AND, assistant("Yes"), user("Thanks")]}])
def test_the_last_message_of_the_assistant_is_the_answer(record):
    """These are the usual layouts of chat data for SFT."""
    assert read(record, False) == {"prompt": TALK, "chosen": " Yes"}

def test_prompt_and_response_are_prompt_and_answer():
    """`response` is another name for `completion`."""
    assert read({"prompt": "p", "response": "a"}, False) == {"prompt": "p", "chosen": "a"}

def test_rows_labelled_false_are_dropped_and_counted(tmp_path):
    """KTO's files contain unwanted answers, and SFT would learn them."""
    for false, true in ((False, True), ("false", "True"), (0, 1), ("0", "1"), (0.0, 1.0)):
        rows = [{"prompt": f"p{i}", "completion": f"a{i}", "label": false if i == 1 else true} for i in range(4)]
        for path in (write_jsonl(tmp_path / "k.jsonl", rows), write_csv(tmp_path / "k.csv", rows)):
            examples, dropped, _ = loaded(path, False)
            assert [e["chosen"] for e in examples] == ["a0", "a2", "a3"] and dropped == {"labelled false": 1}

@pytest.mark.parametrize("rows", [
    [{"text": f"a{i}", "label": i % 2} for i in range(4)],
    [{"prompt": "p", "completion": f"a{i}", "label": i} for i in range(4)],
    [{"prompt": "p", "completion": f"a{i}", "label": "ham"} for i in range(4)]], ids=["reviews", "classes", "names"])
def test_a_label_that_is_a_class_drops_nothing(tmp_path, rows):
    """A review labelled 0 is a negative review, and its text is valid."""
    examples, dropped, _ = loaded(write_jsonl(tmp_path / "k.jsonl", rows), False)
    assert len(examples) == 4 and not dropped

def test_supervised_rows_without_an_answer_are_told_the_names(tmp_path):
    """A message about `chosen` only would make users build pairs."""
    path = write_jsonl(tmp_path / "r.jsonl", [{"question": "q", "answer": "a"}])
    refused(path, "row 1", "completion", "messages", "conversations", "response", "question, answer", pairs=False)

@pytest.mark.parametrize("turns, words", [
    ([HI, {"role": "tool", "content": "7"}, assistant("7")], ("'tool'", "user, human")),
    ([{"from": "function", "value": "7"}], ("'function'",)), ([HI], ("assistant's",)), ([], ("assistant's",)),
    ([HI, {"role": "assistant", "content": None}], ("content",)), ([assistant("a")], ("prompt",))])
def test_a_conversation_that_cannot_be_learned_is_refused(tmp_path, turns, words):
    """A tool's output must not be rendered as the words of a person."""
    path = write_jsonl(tmp_path / "r.jsonl", [{"messages": [HI, HELLO]}, {"messages": turns}])
    refused(path, "r.jsonl, row 2", *words, pairs=False)

def test_texts_given_as_pairs_are_told_where_they_belong(tmp_path):
    """This is the most likely mistake with a file of chats."""
    path = write_jsonl(tmp_path / "r.jsonl", [{"messages": [HI, HELLO]}])
    refused(path, "row 1", "'chosen'", "'rejected'", "train_sft.py", "messages")

def test_ultrafeedbacks_prompt_is_that_of_its_messages(tmp_path):
    """Its prompt column repeats the first message. One exception in 60,000 rows must not stop the run."""
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "H", "messages": [HI, HELLO]} | sides([HI])])
    splits, dropped = sources.load_examples("ultrafeedback", str(tmp_path))
    assert splits["train"][0]["prompt"] == "\n\nHuman: Hi\n\nAssistant:" and not dropped

def test_what_is_said_after_the_last_answer_is_counted(tmp_path):
    """A person's thanks are no answer. They are left out, so the user is told about the lost text."""
    rows = [{"messages": [HI, HELLO, AND]}, {"messages": [HI, HELLO]}]
    _, _, said = loaded(write_jsonl(tmp_path / "r.jsonl", rows), False)
    assert len(said) == 1 and "1 conversations go on" in said[0]

@pytest.mark.parametrize("end", ["<|endoftext|>", "</s>", "<|endoftext|>\n"])
def test_a_written_end_of_text_is_counted_and_said(tmp_path, end):
    """It is trained on as text, so samples end in it too."""
    rows = [{"prompt": f"p{i}", "chosen": f"a{end if i < 2 else ''}", "rejected": f"b {end.strip()} c"}
            for i in range(4)]
    examples, _, said = loaded(write_jsonl(tmp_path / "r.jsonl", rows))
    assert len(said) == 1 and f"2 answers end in a written {end.strip()}" in said[0]
    assert examples[0]["chosen"] == "a" + end

# ---------------------------------------------------------------------------------------------------------------------
# asking a run in the form of its prompts

def form_of(records, tokenizer, pairs=True, max_prompt_len=None):
    examples = [read(r, pairs) for r in records]
    return chat.prompt_format(data.make_rows(examples, tokenizer, 10_000, max_prompt_len)[0], tokenizer)

@pytest.mark.parametrize("name, make, wrapped", [
    ("dialogue", lambda i: sides([user(f"Q{i}")]), "\n\nHuman: X\n\nAssistant:"),
    ("dialogue", lambda i: sides([SYS, user(f"Q{i}")]), "Be brief.\n\nHuman: X\n\nAssistant:"),
    ("dialogue", lambda i: sides([system(str(i)), user(f"Q{i}")]), "\n\nHuman: X\n\nAssistant:"),
    ("dialogue", lambda i: sides([HI, HELLO, user(f"Q{i}")]), "\n\nHuman: X\n\nAssistant:"),
    ("dialogue", lambda i: {"prompt": [user(f"Q{i}"), assistant("So")]} | sides(), "\n\nHuman: X\n\nAssistant:"),
    ("plain", lambda i: {"prompt": f"Q{i}?", "chosen": "a", "rejected": "b"}, "X"),
    ("plain", lambda i: {"system": "Be brief.", "prompt": f"{i} Q", "chosen": "a", "rejected": "b"}, "Be brief.\n\nX"),
    ("plain", lambda i: {"prompt": f"Q: {i}\nA:", "chosen": "a", "rejected": "b"}, "X\nA:"),
    ("plain", lambda i: {"prompt": "Tell me\nmore", "chosen": f"a{i}", "rejected": "b"}, "X")])
def test_a_question_is_put_into_the_form_of_the_training_prompts(tokenizer, name, make, wrapped):
    """A question in another form looks new to the run, which then seems to have learned nothing."""
    form = form_of(map(make, range(12)), tokenizer)
    assert form["kind"] == name and chat.wrap("X", form) == wrapped and chat.wrap(wrapped, form) == wrapped

def test_a_question_to_a_run_on_instructions_stands_in_alpacas_template(tokenizer):
    """The question has no input, even if the rows have one. Its prompt equals that of a row without input."""
    row = lambda i, **more: {"instruction": f"Q{i}", "input": "1" * (i % 3), "chosen": "a", "rejected": "b"} | more
    want = prompt_of({"instruction": "X", "chosen": "a", "rejected": "b"})
    assert chat.wrap("X", form_of(map(row, range(12)), tokenizer)) == want
    with_system = form_of([row(i, system="Be brief.", history=HISTORY) for i in range(12)], tokenizer)
    assert chat.wrap("X", with_system) == "Be brief.\n\n" + want

def test_prompts_that_lost_their_beginning_have_the_same_form(tokenizer):
    """--max_prompt_len cuts the beginning. The end still has its form."""
    form = form_of([sides([SYS, user(f"{i} " + "so " * 30)]) for i in range(12)], tokenizer, max_prompt_len=20)
    assert chat.wrap("X", form) == "\n\nHuman: X\n\nAssistant:"

def test_a_run_on_texts_is_asked_behind_an_eos(tokenizer):
    """In training, every text begins after an EOS."""
    form = form_of([{"text": f"the plot {i}"} for i in range(12)], tokenizer, pairs=False)
    the = tokenizer.encode_ordinary("the")
    assert form["kind"] == "text" and chat.encode("the", form, tokenizer) == [tokenizer.eot_token, *the]
    assert chat.encode("the", chat.PLAIN, tokenizer) == the

@pytest.mark.parametrize("name, wrapped", [
    ("hh", "\n\nHuman: X\n\nAssistant:"), ("ultrafeedback", "\n\nHuman: X\n\nAssistant:"), ("a.jsonl", "X")])
def test_a_run_from_before_the_form_was_recorded_is_asked_as_before(name, wrapped):
    """The args.json of such a run names the data set only."""
    assert chat.wrap("X", chat.form_of({"args": {"data": name}})) == wrapped

@pytest.mark.parametrize("form", [None, "dialogue", {"kind": "plain"}, {"kind": "plain", "before": 1, "after": ""}])
def test_a_damaged_form_is_refused_in_one_line(form):
    """Users edit args.json by hand."""
    with pytest.raises(ValueError, match="prompt_format is damaged"):
        chat.form_of({"args": {"data": "x"}, "prompt_format": form})

@pytest.fixture(scope="module")
def dialogue_run(tmp_path_factory, tokenizer):
    """A finished SFT run on dialogues with a system message, with the toy world's tokenizer."""
    root = tmp_path_factory.mktemp("dialogues")
    rows = [{"messages": [SYS, user(f"the plot {i}"), assistant(f"was fine {i} .")]} for i in range(20)]
    path = write_jsonl(root / "talk.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
        train_sft.main(["--data", path, "--out_dir", str(root / "run"), *TINY, "--max_len", "120"])
    return root / "run"

def test_eval_asks_in_the_form_that_args_json_records(dialogue_run, own_tokenizer, capsys):
    """The form includes the system message that all training prompts had."""
    facts = json.loads((dialogue_run / "args.json").read_text())
    assert facts["prompt_format"] == {"kind": "dialogue", "before": "Be brief.\n\nHuman: ", "after": "\n\nAssistant:"}
    eval.main(["--run", str(dialogue_run), "--prompt", "And?", "--show", "1", "--max_new_tokens", "4"])
    assert "prompt   Be brief.\n\nHuman: And?\n\nAssistant:\n" in capsys.readouterr().out

def test_a_run_without_the_record_can_be_resumed(dialogue_run, own_tokenizer, tmp_path):
    """Older runs have no record of the form. Its absence does not mean other data."""
    run = shutil.copytree(dialogue_run, tmp_path / "run")
    facts = json.loads((run / "args.json").read_text())
    del facts["prompt_format"]
    (run / "args.json").write_text(json.dumps(facts))
    train_sft.main(["--resume", "--out_dir", str(run), "--max_steps", "3", "--device", "cpu"])
    assert "prompt_format" in json.loads((run / "args.json").read_text())

# ---------------------------------------------------------------------------------------------------------------------
# chat

@pytest.fixture
def talk(monkeypatch, tokenizer, capsys):
    """talk(form, room, lines, answer) returns (the prompts that the policy was given, the printed text)."""
    def start(form, room, lines, answer=" fine .", **flags):
        given, left = [], list(lines)
        def read_line(_):
            line = left.pop(0)
            if isinstance(line, type):
                raise line
            return line
        def sample(policy, tokenizer, prompts, n, **how):
            given.append(tokenizer.decode(prompts[0]))
            return [tokenizer.encode_ordinary(answer)[:n]]
        monkeypatch.setattr("builtins.input", read_line)
        monkeypatch.setattr(sampling, "sample_completions", sample)
        chat.chat(None, tokenizer, {"args": {"data": "x", "max_len": room}, "prompt_format": form}, **flags)
        assert not left
        return given, capsys.readouterr().out
    return start

def test_a_chat_keeps_the_conversation_of_a_run_on_dialogues(talk):
    """The prompt is that of training with earlier turns. Text that the policy writes for the person is cut off."""
    given, out = talk(chat.DIALOGUE, 400, ["Hi", "And?", ""], " fine .\n\nHuman: me")
    first = "\n\nHuman: Hi\n\nAssistant:"
    assert given == [first, f"{first} fine .\n\nHuman: And?\n\nAssistant:"] and "me" not in out

def test_a_chat_with_another_run_asks_each_question_alone(talk):
    """The training prompts of such a run have no turns."""
    given, _ = talk({"kind": "plain", "before": "Q\n", "after": "\nA"}, 400, ["Hi", "And?", EOFError])
    assert given == ["Q\nHi\nA", "Q\nAnd?\nA"]

def test_the_oldest_turns_are_dropped_when_the_room_is_used_up_and_that_is_said(talk, tokenizer):
    """A prompt without room for an answer would end the chat, or be cut in the middle of a turn."""
    given, out = talk(chat.DIALOGUE, 100, ["one", "two", "three", "four", ""], " fine", max_new_tokens=10)
    assert "one" in given[1] and "one" not in given[-1]
    assert given[-1].startswith("\n\nHuman: ") and given[-1].endswith("four\n\nAssistant:")
    assert all(len(tokenizer.encode_ordinary(g)) <= 90 for g in given) and "oldest turns left out: 1)" in out

def test_a_question_that_is_too_long_is_refused_and_the_chat_goes_on(talk):
    """An error would lose the conversation."""
    given, out = talk(chat.DIALOGUE, 60, ["x" * 100, "Hi", ""])
    assert len(given) == 1 and "tokens" in out and given[0].endswith("Hi\n\nAssistant:")

@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt, "", "  "])
def test_a_chat_ends_without_a_traceback(talk, end):
    """A chat may end with Ctrl-D, Ctrl-C or an empty line."""
    assert talk(chat.PLAIN, 60, [end])[0] == []

def test_eval_chats_with_one_run(dialogue_run, own_tokenizer, monkeypatch, capsys):
    """The flag starts a chat with the policy. Nothing is measured or written."""
    lines = iter(["the plot", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    eval.main(["--run", str(dialogue_run), "--chat", "--max_new_tokens", "4"])
    assert "earlier turns are kept" in capsys.readouterr().out and not (dialogue_run / "eval.json").exists()
    for more in (["--prompt", "a"], []):
        with pytest.raises(SystemExit):
            eval.main(["--run", str(dialogue_run), *([] if more else [str(dialogue_run)]), "--chat", *more])
        assert "--chat has no effect" in capsys.readouterr().err

def test_a_look_at_a_file_shows_all_of_it(tmp_path, own_tokenizer, capsys):
    """Users look at a new file with data.py first."""
    rows = [{"prompt": f"p{i}", "completion": "a </s>", "label": i > 0, "context": "c"} for i in range(3)]
    path = write_jsonl(tmp_path / "k.jsonl", rows)
    data.main(["--data", path, "--texts", "--show", "1"])
    out = capsys.readouterr().out
    assert "1 labelled false" in out and "2 of 2 rows" in out
    assert "not used: context" in out and "answers end in a written </s>" in out
    assert toy.encoding().n_vocab == own_tokenizer.n_vocab
