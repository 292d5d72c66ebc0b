"""
Tests of data.py, support/sources.py and sampling.py: rows, file types, record shapes, splits, batches, sampled pairs.

Files are small and made here. The last section reads real data and is skipped without it.
"""
import csv
import gzip
import functools
import json
import math
import random
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import sampling
from support import sources
import toy
from conftest import REAL
from model import GPT, GPTConfig
from reward import Reward

def write_jsonl(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8", newline="\n")
    return str(path)

def load(path, pairs=True):
    """(the examples of all splits of a file, the counts of dropped rows)."""
    splits, dropped = sources.load_examples(str(path), pairs=pairs)
    return sum(map(list, splits.values()), []), dropped

def divided(source, data_dir=None, pairs=True):
    """{"train": examples, "val": examples} as load_rows divides them, read back from the tokens."""
    tokenizer = toy.encoding()
    rows = data.load_rows(source, data_dir, tokenizer, 10_000, pairs=pairs)
    text = lambda row: {side: data.decode(tokenizer, tokens) for side, tokens in row.items()}
    return {split: [text(row) for row in part] for split, part in rows.items()}

def only(dropped):
    """(reason, count) of rows dropped for one reason."""
    [(why, n)] = dropped.items()
    return why, n

def text_key(example):
    return sorted(example.items())

def pair(i=0, **other):
    return {"prompt": f"prompt {i}", "chosen": f" good {i}", "rejected": f" bad {i}"} | other

# ---------------------------------------------------------------------------------------------------------------------
# examples -> rows

def test_prompt_and_completion_are_tokenized_apart(tokenizer):
    """" act" + "ing" is one token when tokenized together. Then the mask begins inside a word, unlike any sample."""
    rows, _ = data.make_rows([{"prompt": "the act", "chosen": "ing was fine"}], tokenizer, 64)
    assert rows[0]["prompt"] == tokenizer.encode_ordinary("the act")
    assert rows[0]["chosen"][:-1] == tokenizer.encode_ordinary("ing was fine")
    assert rows[0]["prompt"] + rows[0]["chosen"][:-1] != tokenizer.encode_ordinary("the acting was fine")

def test_a_completion_ends_in_one_eos_and_the_prompt_has_none(tokenizer):
    """Without it the model never learns to stop, and samples run to the limit."""
    rows, _ = data.make_rows([pair(), pair(1)], tokenizer, 64)
    for row in rows:
        assert tokenizer.eot_token not in row["prompt"]
        for side in ("chosen", "rejected"):
            assert row[side][-1] == tokenizer.eot_token and row[side].count(tokenizer.eot_token) == 1
    assert data.decode(tokenizer, rows[1]["rejected"]) == " bad 1"

def test_a_prompt_is_cut_at_its_beginning(tokenizer):
    """The question is at the end of a dialogue, so the end must stay."""
    example = {"prompt": "i saw this film at home .", "chosen": " fine"}
    rows, dropped = data.make_rows([example], tokenizer, 64, max_prompt_len=3)
    assert tokenizer.decode(rows[0]["prompt"]) == " at home ." and not dropped

@pytest.mark.parametrize("max_len,words,eos", [(7, 4, True), (6, 4, False), (5, 3, False), (3, 1, False)])
def test_a_completion_is_cut_at_its_end_and_then_has_no_eos(tokenizer, max_len, words, eos):
    """An EOS after a cut teaches the model to stop within a sentence. At 6 the words fit but the EOS does not."""
    rows, _ = data.make_rows([{"prompt": "i saw", "chosen": " the plot was fine"}], tokenizer, max_len)
    want = tokenizer.encode_ordinary(" the plot was fine")[:words] + [tokenizer.eot_token] * eos
    assert rows[0]["chosen"] == want

def test_both_completions_of_a_pair_are_cut_by_the_same_limit(tokenizer):
    """A limit for both together, or one that depends on the other side, makes the shorter one look better."""
    e = {"prompt": "i saw", "chosen": " a" * 20, "rejected": " the" * 30}
    (row,), _ = data.make_rows([e], tokenizer, 12)
    assert (len(row["prompt"]), len(row["chosen"]), len(row["rejected"])) == (2, 10, 10)
    (row,), _ = data.make_rows([e | {"rejected": " the"}], tokenizer, 12)
    assert (len(row["chosen"]), row["rejected"]) == (10, tokenizer.encode_ordinary(" the") + [tokenizer.eot_token])

def test_by_default_prompts_stay_whole_and_those_without_room_are_dropped_and_counted(tokenizer):
    """Half a prompt is another question. A completion without tokens has a log-prob of 0, the highest possible."""
    prompts = [" the" * n for n in (5, 9, 10, 30)]
    rows, dropped = data.make_rows([pair(prompt=p) for p in prompts], tokenizer, 10)
    assert sum(dropped.values()) == 3 and len(dropped) == 2    # at 9 both keep one token, and it is the same one
    assert [len(r["prompt"]) for r in rows] == [5]
    rows, dropped = data.make_rows([pair(prompt=p, rejected="x") for p in prompts], tokenizer, 10)
    assert [len(r["prompt"]) for r in rows] == [5, 9] and [len(r["chosen"]) for r in rows] == [5, 1]
    why, n = only(dropped)
    assert n == 2 and "prompt" in why and "10" in why

def test_rows_are_dropped_for_a_reason_and_counted_by_it(tokenizer):
    """An empty completion may be the chosen one. A pair that the cut makes equal has no preference."""
    examples = [
        pair(0),
        pair(1, chosen=" "),
        pair(2, rejected=""),
        pair(3, chosen="\n\n"),
        pair(4, rejected=" good 4"),
        pair(5, chosen=" a" * 99 + " fine", rejected=" a" * 99 + " dull"),
    ]
    rows, dropped = data.make_rows(examples, tokenizer, 40)
    assert len(rows) == 1 and sorted(dropped.values()) == [2, 3]
    assert next(n for why, n in dropped.items() if "empty" in why) == 3
    assert data.make_rows(examples[5:], tokenizer, 140)[1].total() == 0

def test_what_was_dropped_is_printed_once(tmp_path, tokenizer, capsys):
    """If each split printed its own counts, nobody would add them. If nothing were printed, nobody would know."""
    path = write_jsonl(tmp_path / "p.jsonl", [pair(i, chosen=" " if i < 10 else " yes") for i in range(40)])
    rows = data.load_rows(path, None, tokenizer, 64)
    out = capsys.readouterr().out
    assert len(rows["train"]) + len(rows["val"]) == 30
    assert out.count("\n") == out.count("dropped:") == 1 and "10 empty" in out
    assert str(len(rows["train"])) in out and path in out

def test_a_literal_end_of_text_in_a_text_stays_text(tokenizer):
    """Real rows contain it. As the special token it would end the document early, so data could contain such a trap."""
    text = " say <|endoftext|> now"
    (row,), _ = data.make_rows([{"prompt": "<|endoftext|>", "chosen": text}], tokenizer, 64)
    assert tokenizer.eot_token not in row["prompt"] + row["chosen"][:-1]
    assert tokenizer.decode(row["prompt"]) == "<|endoftext|>" and data.decode(tokenizer, row["chosen"]) == text

def test_a_text_without_a_prompt_starts_behind_eos(tokenizer):
    """logits[:, t] predicts idx[:, t + 1]. Without a token before it, the first word would never be trained on."""
    (row,), _ = data.make_rows([{"prompt": "", "chosen": "the plot"}], tokenizer, 64)
    assert row["prompt"] == [tokenizer.eot_token]
    assert row["chosen"] == tokenizer.encode_ordinary("the plot") + [tokenizer.eot_token]

def test_rows_for_supervised_training_have_no_rejected_side(tmp_path, tokenizer):
    """SFT reads the chosen side of a file of pairs. With a rejected key, Batches would collate pairs."""
    path = write_jsonl(tmp_path / "p.jsonl", [pair(i) for i in range(5)])
    rows = data.load_rows(path, None, tokenizer, 64, pairs=False)
    assert all(set(r) == {"prompt", "chosen"} for part in rows.values() for r in part)

def sides(prompt, chosen, rejected=None):
    """The tokens of a row."""
    row = {"prompt": prompt, "chosen": chosen}
    return row if rejected is None else row | {"rejected": rejected}

@pytest.mark.parametrize("tokens, max_len, max_prompt_len, want", [
    pytest.param(sides([1, 2], [3], [4, 5]), 9, None, sides([1, 2], [3, 0], [4, 5, 0]), id="whole"),
    pytest.param(sides([1, 2], [3], [4, 5]), 4, None, sides([1, 2], [3, 0], [4, 5]), id="rejected cut"),
    pytest.param(sides([1, 2], [3]), 9, 1, sides([2], [3, 0]), id="prompt cut"),
    pytest.param(sides([], [3]), 9, None, sides([0], [3, 0]), id="no prompt"),
    pytest.param(sides([1, 2], [3]), 2, None, "prompt leaves no room in max_len = 2 tokens", id="no room"),
    pytest.param(sides([1], [3, 4], [3, 5]), 2, None, "chosen == rejected", id="equal after the cut"),
])
def test_encode_row_by_hand(tokens, max_len, max_prompt_len, want):
    """A row, or the reason why there is none. EOS is 0."""
    assert data.encode_row(dict.fromkeys(tokens, "x"), tokens, 0, max_len, max_prompt_len) == want

def test_an_empty_completion_is_a_reason_whatever_its_tokens_are():
    """White space has tokens too, so the text decides."""
    example = {"prompt": "p", "chosen": " \n", "rejected": "x"}
    assert data.encode_row(example, {"prompt": [1], "chosen": [2], "rejected": [3]}, 0, 9) == "empty completion"

def test_a_prompt_is_held_out_with_all_its_rows_and_each_side_gets_one():
    """If rows were split, a prompt with several pairs would be in both splits."""
    for n in range(2, 30):
        rows = [{"prompt": [i % n], "chosen": [i, 9]} for i in range(3 * n)]
        train, val = data.hold_out(rows, 99)
        train_prompts, val_prompts = ({row["prompt"][0] for row in part} for part in (train, val))
        assert train_prompts and val_prompts and not train_prompts & val_prompts
        assert len(train) + len(val) == 3 * n

# ---------------------------------------------------------------------------------------------------------------------
# files -> records

NASTY = [
    'he said "yes", then\nleft',
    "a\x85b\u2028c\u2029d",
    "\u4f60\u597d \U0001f600",
    "line\r\nbreak",
    "tab\t, comma",
    "back\\slash \\n",
]

def in_every_format(folder, records):
    import pyarrow
    import pyarrow.parquet
    (folder / "r.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8", newline="\n")
    with open(folder / "r.csv", "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "r.parquet")
    return [folder / "r.json", write_jsonl(folder / "r.jsonl", records), write_jsonl(folder / "r.jsonl.gz", records),
            folder / "r.csv", folder / "r.parquet"]

def test_every_file_type_gives_the_same_examples(tmp_path):
    """Quoted line breaks in .csv, U+0085 in .jsonl, and newline translation each corrupt one type only."""
    records = []
    for i, text in enumerate(NASTY):
        records.append({"prompt": f"{i} {text}", "chosen": NASTY[i - 1], "rejected": text + "!"})
    for path in in_every_format(tmp_path, records):
        assert [r for _, r in sources.read_records(path)] == records, path
        assert sorted(load(path)[0], key=text_key) == sorted(records, key=text_key), path

@pytest.mark.parametrize("char", ["\x85", "\u2028", "\u2029", "\x1c", "\x0b", "\x0c"])
@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_only_a_newline_ends_a_row(tmp_path, name, char):
    """str.splitlines() also cuts at U+0085, which occurs in 350 reviews of IMDB."""
    records = [{"text": f"one{char}two"}, {"text": char}]
    assert [r for _, r in sources.read_records(write_jsonl(tmp_path / name, records))] == records

def test_rows_are_numbered_as_lines_whatever_is_blank(tmp_path):
    """With the number of a message, an editor must find the line."""
    (tmp_path / "r.jsonl").write_text('\n{"a": 1}\n\n  \n{"a": 2}\n\n')
    got = list(sources.read_records(tmp_path / "r.jsonl"))
    assert [r for _, r in got] == [{"a": 1}, {"a": 2}]
    assert got[0][0].endswith("row 2") and got[1][0].endswith("row 5") and str(tmp_path / "r.jsonl") in got[0][0]

def test_windows_line_ends_and_a_missing_last_one_do_no_harm(tmp_path):
    """Editors on Windows end lines with CR LF, and the last line of a file often has no end."""
    (tmp_path / "r.jsonl").write_bytes(b'{"a": 1}\r\n\r\n{"a": 2}')
    assert [(w[-1], r) for w, r in sources.read_records(tmp_path / "r.jsonl")] == [("1", {"a": 1}), ("3", {"a": 2})]

@pytest.mark.parametrize("name", ["r.json", "r.jsonl", "r.csv", "r.jsonl.gz"])
def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path, name):
    """Excel writes one. Then the column is called U+FEFF + "prompt", and json refuses the file."""
    texts = {
        "r.json": '[{"prompt": "a"}]',
        "r.jsonl": '{"prompt": "a"}\n',
        "r.jsonl.gz": '{"prompt": "a"}\n',
        "r.csv": "prompt\na\n",
    }
    raw = b"\xef\xbb\xbf" + texts[name].encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert [r for _, r in sources.read_records(tmp_path / name)] == [{"prompt": "a"}]

def test_a_csv_field_may_be_longer_than_pythons_limit(tmp_path):
    """Python's csv module refuses fields of more than 131,072 characters by default, and articles are longer."""
    (tmp_path / "r.csv").write_text("text\n" + "a" * 200_000 + "\n")
    assert [len(r["text"]) for _, r in sources.read_records(tmp_path / "r.csv")] == [200_000]

def test_a_csv_row_with_a_field_too_many_is_refused(tmp_path):
    """An unquoted comma shifts the columns. The second half of the prompt silently becomes the chosen completion."""
    (tmp_path / "r.csv").write_text("prompt,chosen,rejected\nhello,fine,bad\nwell, hello,good,bad\n")
    with pytest.raises(ValueError, match="r.csv, row 2"):
        load(tmp_path / "r.csv")

@pytest.mark.parametrize("name", ["r.jsonl", "r.json"])
def test_half_of_a_surrogate_pair_does_not_stop_the_run(tmp_path, tokenizer, name):
    """JSON can contain one (a cut emoji). It has no UTF-8, so hashing, tokenizing or printing it may raise later."""
    records = [{"prompt": f"{i} \ud83d", "chosen": " a\ud83d", "rejected": "b"} for i in range(3)]
    text = json.dumps(records) if name == "r.json" else "".join(json.dumps(r) + "\n" for r in records)
    (tmp_path / name).write_text(text)
    rows = data.load_rows(str(tmp_path / name), None, tokenizer, 64)
    assert len(rows["train"]) + len(rows["val"]) == 3

# ---------------------------------------------------------------------------------------------------------------------
# records -> examples

def user(text):
    return {"role": "user", "content": text}

def assistant(text):
    return {"role": "assistant", "content": text}

DIALOGUE = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Yes", "rejected": " No"}

YES, NO = [assistant("Yes")], [assistant("No")]
HI_YES, HI_NO = [user("Hi"), *YES], [user("Hi"), *NO]

@pytest.mark.parametrize("record", [
    pytest.param({"chosen": HI_YES, "rejected": HI_NO}, id="shared turn"),
    pytest.param({"prompt": "Hi", "chosen": HI_YES, "rejected": HI_NO}, id="shared turn and prompt"),
    pytest.param({"prompt": [user("Hi")], "chosen": YES, "rejected": NO}, id="prompt as messages"),
    pytest.param({"prompt": "Hi", "chosen": YES, "rejected": NO}, id="prompt as text"),
    pytest.param({"prompt": [user("Hi")], "chosen": "Yes", "rejected": "No"}, id="answers as text"),
])
def test_messages_in_every_shape_become_one_dialogue(record):
    """Sets of the hub have the shared turn in the prompt, in both sides, or in all three. It must come once."""
    assert sources.example_of(record, "here", True) == DIALOGUE
    assert sources.example_of(record, "here", False) == {k: DIALOGUE[k] for k in ("prompt", "chosen")}

def test_earlier_turns_and_the_system_message_stand_in_the_prompt():
    """Only the last message is the completion. Earlier ones would be trained on in both sides."""
    before = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello"), user("And?")]
    got = sources.example_of({"chosen": [*before, *YES], "rejected": [*before, *NO]}, "here", True)
    prompt = "Be brief.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:"
    assert got == {"prompt": prompt, "chosen": " Yes", "rejected": " No"}
    assert sources.example_of({"prompt": before, "chosen": YES, "rejected": NO}, "here", True) == got

def test_message_pairs_with_different_prompts_are_dropped_and_counted(tmp_path):
    """The pair compares answers to different questions. Nobody would notice if both got the prompt of chosen."""
    same = [{"chosen": [user(f"Hi {i}"), *YES], "rejected": [user(f"Hi {i}"), *NO]} for i in range(3)]
    other = {"chosen": [user("Hi"), *YES], "rejected": [user("Ho"), *NO]}
    examples, dropped = load(write_jsonl(tmp_path / "m.jsonl", [*same, other]))
    why, n = only(dropped)
    assert len(examples) == 3 and n == 1 and "different prompts" in why

def test_alpacas_template_has_an_input_section_only_if_there_is_an_input():
    """775 of 1,100 real rows have input "". Models were not tuned on an empty section or on "None"."""
    record = {"instruction": "Add.", "output": "3", "chosen": "3!", "rejected": "4"}
    with_input = sources.example_of(record | {"input": "1 + 2"}, "here", True)
    assert "### Instruction:\nAdd.\n\n### Input:\n1 + 2\n\n### Response:" in with_input["prompt"]
    assert "paired with an input" in with_input["prompt"]
    assert (with_input["chosen"], with_input["rejected"]) == ("3!", "4")
    for without in (record, record | {"input": ""}, record | {"input": None}):
        prompt = sources.example_of(without, "here", True)["prompt"]
        assert "### Instruction:\nAdd.\n\n### Response:" in prompt and "put" not in prompt and "None" not in prompt

@pytest.mark.parametrize("field", ["chosen", "completion", "output", "text"])
def test_supervised_data_may_call_its_answer_by_any_usual_name(field):
    """SFT data has completion (OpenAI), output (Alpaca) or text. Of pairs, the chosen side is used."""
    example = sources.example_of({"prompt": "p", field: "c", "rejected": "r"}, "here", False)
    assert example == {"prompt": "p", "chosen": "c"}

def test_a_text_alone_is_trained_on_as_a_whole_and_does_for_supervised_data_only():
    """IMDB has no prompt, which is fine for SFT. Both sides of a pair must answer one prompt."""
    assert sources.example_of({"text": "a film", "label": 1}, "here", False) == {"prompt": "", "chosen": "a film"}
    with pytest.raises(ValueError, match="here.*chosen"):
        sources.example_of({"text": "a film"}, "here", True)

def hh(question, answer, more=""):
    return f"\n\nHuman: {question}\n\nAssistant:{answer}{more}"

def test_hh_keeps_the_leading_space_of_the_answer_and_ends_the_prompt_before_it():
    """" Yes" is one token. The model has never seen a prompt that ends in a space, or an answer without its space."""
    got = sources.hh_example({"chosen": hh("Hi", " Yes"), "rejected": hh("Hi", " No")}, "here", True)
    assert got == {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Yes", "rejected": " No"}

@pytest.mark.parametrize("dialogue", [
    pytest.param(hh("Hi", " Yes", hh("And?", " So")), id="two rounds"),
    pytest.param(hh("Hi", " Yes", "\n\nHuman: And?"), id="ends on a Human turn"),
    pytest.param(hh("Hi", " Yes", "\n\nAssistant: So"), id="two answers"),
    pytest.param("\n\nHuman: Hi", id="no answer"),
    pytest.param("\n\nHuman: Hi\n\nHuman: Ho\n\nAssistant: Yes", id="two questions"),
    pytest.param("Hi there" + hh("Hi", " Yes"), id="text before"),
    pytest.param("\n\nAssistant: Yes\n\nHuman: Hi", id="answer first"),
    pytest.param("Yes", id="no turns"),
])
def test_hh_takes_single_turn_dialogues_only(dialogue):
    """Some real rows have two answers, or end with a human turn. A loose parser would train on the human's words."""
    for chosen, rejected in ((dialogue, hh("Hi", " No")), (hh("Hi", " No"), dialogue)):
        why = sources.hh_example({"chosen": chosen, "rejected": rejected}, "here", True)
        assert isinstance(why, str)
    assert isinstance(sources.hh_example({"chosen": dialogue}, "here", False), str)

@pytest.mark.parametrize("answer", [
    " Human: is a word",
    " so\nHuman: x\nAssistant: y",
    " the\n\nHuman race",
    " \n\nAssistants: many",
])
def test_hh_splits_at_whole_markers_only(answer):
    """87 real answers contain the bare words. If they were split there, they would be cut or count as multi-turn."""
    got = sources.hh_example({"chosen": hh("Hi", answer), "rejected": hh("Hi", " No")}, "here", True)
    assert got["chosen"] == answer

@pytest.mark.parametrize("other", ["Ho", "Hi there", "H"])
def test_hh_drops_pairs_whose_prompts_differ_and_never_slices(other):
    """rejected[len(prompt):] is right on 8,545 of 8,552 real rows."""
    why = sources.hh_example({"chosen": hh("Hi", " Yes"), "rejected": hh(other, " No")}, "here", True)
    assert isinstance(why, str) and "different prompts" in why

def test_hh_counts_every_kind_of_dropped_row_once(tmp_path, tokenizer, capsys):
    """Each kind occurs in the real files. The counts must add up to the rows read."""
    good = [{"chosen": hh(f"Q{i}", " yes"), "rejected": hh(f"Q{i}", " no")} for i in range(10)]
    bad = [
        {"chosen": hh("E", " "), "rejected": hh("E", " no")},
        {"chosen": hh("I", " same"), "rejected": hh("I", " same")},
        {"chosen": hh("D", " yes"), "rejected": hh("d", " no")},
        {"chosen": hh("M", " a", hh("N", " b")), "rejected": hh("M", " c")},
    ]
    write_jsonl(tmp_path / "hh" / "all.jsonl.gz", good + bad)
    rows = data.load_rows("hh", str(tmp_path / "hh"), tokenizer, 200)
    assert len(rows["train"]) + len(rows["val"]) == 10
    out = capsys.readouterr().out
    assert "1 empty completion" in out
    assert "1 chosen == rejected" in out
    assert "1 chosen and rejected have different prompts" in out
    assert "1 not single-turn" in out

# ---------------------------------------------------------------------------------------------------------------------
# splits

def hh_file(folder, name, tag, n=4):
    rows = [{"chosen": hh(f"{tag}{i}", " yes"), "rejected": hh(f"{tag}{i}", " no")} for i in range(n)]
    write_jsonl(folder / name, rows)

def tags(examples):
    return Counter(e["prompt"].removeprefix("\n\nHuman: ")[0] for e in examples)

@pytest.mark.parametrize("names", [    # files of training, validation and test
    ("train.jsonl", "validation.jsonl", "test.jsonl.gz"),
    ("hh.train.jsonl", "hh_dev.jsonl", "hh-eval.jsonl"),
    ("train/0.jsonl", "val/0.jsonl", "test/0.jsonl"),
    ("a/part.jsonl", "a/valid-0.jsonl", "test/a/b.jsonl"),
    ("latest.jsonl", "train/val_prefs.jsonl", "Test_prefs.jsonl"),
])
def test_a_files_split_is_read_off_its_name_or_its_folders(tmp_path, names):
    """Only whole words count: "latest" is not a test file. The name of data_dir itself ("test") does not count."""
    for name, tag in zip(names, "tve", strict=True):
        hh_file(tmp_path / "test" / "val", name, tag)
    splits = divided("hh", str(tmp_path / "test" / "val"))
    assert (tags(splits["train"]), tags(splits["val"])) == ({"t": 4}, {"v": 4})

def test_without_validation_files_some_training_prompts_are_held_out_and_test_stays_out(tmp_path):
    """A result whose early stopping used the test set will not repeat on new data."""
    hh_file(tmp_path / "d", "helpful/train.jsonl.gz", "t", 30)
    hh_file(tmp_path / "d", "helpful/test.jsonl.gz", "e", 30)
    splits = divided("hh", str(tmp_path / "d"))
    assert tags(splits["train"] + splits["val"]) == {"t": 30} and 1 <= len(splits["val"]) <= 9

def test_test_files_alone_are_split_into_training_and_validation(tmp_path):
    """A sample of a data set may contain only test files. The error "no training rows" would help nobody."""
    hh_file(tmp_path / "d", "helpful-base.test.jsonl.gz", "e", 30)
    splits = divided("hh", str(tmp_path / "d"))
    assert len(splits["train"]) > len(splits["val"]) > 0 and len(splits["train"]) + len(splits["val"]) == 30

def test_training_and_validation_share_no_prompt_and_lose_no_row(tmp_path):
    """Sets like UltraFeedback have several pairs per prompt. If rows were split, validation would measure memory."""
    records = [pair(i % 20, chosen=f" {i}") for i in range(100)]
    splits = divided(write_jsonl(tmp_path / "p.jsonl", records))
    prompts = {s: {e["prompt"] for e in part} for s, part in splits.items()}
    assert not prompts["train"] & prompts["val"] and len(prompts["val"]) == 2
    assert sorted(splits["train"] + splits["val"], key=text_key) == sorted(records, key=text_key)

def test_who_is_held_out_does_not_depend_on_the_order_of_the_rows(tmp_path):
    """Files may be sorted (IMDB: all negative, then all positive). Validation must not get the last label only."""
    records = [pair(i) for i in range(50)]
    held = []
    for rows in (records, records[::-1]):
        splits = divided(write_jsonl(tmp_path / "p.jsonl", rows))
        held.append({e["prompt"] for e in splits["val"]})
    assert held[0] == held[1]
    assert held[0] != {r["prompt"] for r in records[-5:]} and held[0] != {r["prompt"] for r in records[:5]}

def test_pairs_of_a_prompt_of_one_token_stay_together(tmp_path, tokenizer):
    """A text without a prompt also has a prompt of one token, but it is split by its text. Pairs must not be."""
    records = [{"prompt": chr(97 + i % 20), "chosen": f"was fine {i}", "rejected": "no"} for i in range(80)]
    assert all(len(tokenizer.encode_ordinary(r["prompt"])) == 1 for r in records)
    splits = divided(write_jsonl(tmp_path / "p.jsonl", records))
    prompts = {s: {e["prompt"] for e in part} for s, part in splits.items()}
    assert prompts["val"] and not prompts["train"] & prompts["val"]

def test_texts_without_prompts_are_split_by_the_text(tmp_path):
    """All their prompts are "", so by prompt they would all be in one split. Duplicates (96 in IMDB) stay together."""
    records = [{"text": f"film {i % 30}"} for i in range(60)]
    splits = divided(write_jsonl(tmp_path / "t.jsonl", records), pairs=False)
    texts = {s: {e["chosen"] for e in part} for s, part in splits.items()}
    assert 1 <= len(texts["val"]) <= 6
    assert len(texts["train"] | texts["val"]) == 30 and not texts["train"] & texts["val"]

def test_own_validation_files_share_no_prompt_with_training(tmp_path):
    """Validation on training rows measures memory, and 123 texts of IMDB are in two of its files."""
    hh_file(tmp_path / "d", "train.jsonl", "a", 8)
    hh_file(tmp_path / "d", "val.jsonl", "a", 2)
    hh_file(tmp_path / "d", "val-2.jsonl", "v", 2)
    splits = divided("hh", str(tmp_path / "d"))
    assert not {e["prompt"] for e in splits["train"]} & {e["prompt"] for e in splits["val"]}

def test_one_unusable_row_never_stops_a_small_file(tmp_path, tokenizer):
    """If rows are held out before unusable ones are dropped, the only row held out may be unusable."""
    for unusable in range(10):
        records = [pair(i, chosen=" " if i == unusable else " yes") for i in range(10)]
        path = write_jsonl(tmp_path / f"{unusable}.jsonl", records)
        rows = data.load_rows(path, None, tokenizer, 64)
        assert len(rows["train"]) + len(rows["val"]) == 9 and rows["val"]

@pytest.mark.parametrize("records", [[], [pair()], [pair(), pair(chosen=" other")]])
def test_fewer_than_two_prompts_are_an_error(tmp_path, records):
    """Training and validation need one each. An empty validation set would stop the run later, by a division by 0."""
    with pytest.raises(ValueError, match="prompt"):
        divided(write_jsonl(tmp_path / "p.jsonl", records))

def test_two_prompts_are_enough(tmp_path):
    """10% of two rows is rounded to 0, but validation needs one."""
    splits = divided(write_jsonl(tmp_path / "p.jsonl", [pair(1), pair(2)]))
    assert len(splits["train"]) == len(splits["val"]) == 1

# ---------------------------------------------------------------------------------------------------------------------
# rows -> batches

def test_pad_by_hand():
    """The padding value is a token too, so only the lengths tell where each list ends."""
    idx, lens = data.pad([[5, 0], [7], [1, 2, 3]])
    assert idx.tolist() == [[5, 0, 0], [7, 0, 0], [1, 2, 3]] and lens.tolist() == [2, 1, 3]
    assert idx.dtype == lens.dtype == torch.long
    assert data.pad([[5], []], value=3)[0].tolist() == [[5], [3]]

def test_pieces_leave_nothing_out():
    """A batch size that does not divide the rows gives one smaller batch."""
    assert data.pieces([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]] and data.pieces([], 2) == []

def test_collate_by_hand():
    """Chosen rows come first, so that chunk(2) splits the sides. The mask covers the completion and its EOS (9)."""
    batch = data.collate([sides([1, 2], [3, 4, 9], [5, 9]), sides([6], [7, 9], [8, 8, 8, 9])])
    rows, mask = batch["idx"].tolist(), batch["completion_mask"].int().tolist()
    texts = [r[:n] for r, n in zip(rows, (5, 3, 4, 5), strict=True)]
    assert texts == [[1, 2, 3, 4, 9], [6, 7, 9], [1, 2, 5, 9], [6, 8, 8, 8, 9]]
    assert mask == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert batch["completion_mask"].dtype == torch.bool and batch["idx"].dtype == torch.long
    assert batch["weight"] == 2

def test_collate_of_pairs_that_share_their_prompt_by_hand():
    """One row per pair. Segments: 0 for the prompt, 1 for chosen, 2 for rejected, each with EOS (9), 3 for padding."""
    batch = data.collate([sides([1, 2], [3, 4, 9], [9]), sides([6], [9], [8, 9])], share_prefix=True)
    assert batch["idx"].shape == (2, 6)
    assert batch["idx"][0].tolist() == [1, 2, 3, 4, 9, 9] and batch["idx"][1, :4].tolist() == [6, 9, 8, 9]
    assert batch["segments"].tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 3, 3]]
    assert batch["idx"].dtype == batch["segments"].dtype == torch.long
    assert batch["weight"] == 2
    assert batch.keys() == {"idx", "segments", "weight"}    # with a mask it would be read as the other layout

def test_a_padding_token_in_a_text_is_no_padding():
    """Padding is 0, and 0 is also a token of GPT-2 ("!"). A mask made from idx == 0 would cut texts short."""
    row = {"prompt": [0, 0], "chosen": [0, 5, 0], "rejected": [0]}
    assert data.collate([row], share_prefix=True)["segments"].tolist() == [[0, 0, 1, 1, 1, 2]]
    assert data.collate([row])["completion_mask"].int().tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 0, 0]]

def test_the_completions_for_the_kl_keep_their_own_layout():
    """KTO's mismatched completions are not a side of the pair. In both layouts each has its own row and prompt."""
    rows = [sides([1, 2], [3, 9], [9]) | {"mismatched": {"prompt": [1, 2], "chosen": [7, 8, 9]}},
            sides([6], [9], [8, 9]) | {"mismatched": {"prompt": [6], "chosen": [3, 9]}}]
    plain, shared = data.collate(rows), data.collate(rows, share_prefix=True)
    assert shared["kl_idx"].tolist() == [[1, 2, 7, 8, 9], [6, 3, 9, 0, 0]]
    assert shared["kl_mask"].int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert all(torch.equal(plain[key], shared[key]) for key in ("kl_idx", "kl_mask"))

def test_weight_of_a_supervised_batch_is_its_tokens():
    """A mean over rows would give the words of short texts more weight. Accumulated gradients use this number."""
    batch = data.collate([{"prompt": [1, 2], "chosen": [3, 4, 9]}, {"prompt": [6], "chosen": [7, 9]}])
    assert batch["weight"] == 5 == int(batch["completion_mask"].sum()) and batch["idx"].shape == (2, 5)
    assert not {"ref_chosen_logps", "ref_rejected_logps"} & batch.keys()

def make(n, seed=0, longest=30, pairs=True):
    """n rows of random lengths; the first token of the prompt is the row's number."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        rows.append({"prompt": [i] + [1] * rng.randrange(longest), "chosen": [2] * rng.randrange(longest) + [9]})
        if pairs:
            rows[-1]["rejected"] = [3] * rng.randrange(longest) + [9]
    return rows

def numbers(batch):
    """The numbers of a batch's rows, in order."""
    return batch["idx"][:batch["weight"], 0].tolist()

def test_reference_log_probs_travel_with_their_rows():
    """From a separate list they would meet the wrong pair after the first shuffle, without any error."""
    rows = make(23)
    for i, row in enumerate(rows):
        row["ref_chosen_logps"], row["ref_rejected_logps"] = -float(i), -1000.0 - i
    for batches in ([data.Batches(rows, 4, seed=5)[i] for i in range(12)], data.Batches(rows, 4)):
        for batch in batches:
            top, bottom = (half[:, 0].float() for half in batch["idx"].chunk(2))    # (B,) row numbers
            assert torch.equal(top, bottom)
            assert torch.equal(batch["ref_chosen_logps"], -top)
            assert torch.equal(batch["ref_rejected_logps"], -1000 - bottom)

def test_a_batch_is_a_function_of_seed_and_position():
    """A resumed run makes a new object and starts in the middle. An earlier epoch must keep its own order."""
    rows = make(23)
    straight = [data.Batches(rows, 4, seed=3)[i]["idx"] for i in range(18)]
    jumping = data.Batches(make(23), 4, seed=3)
    for i in random.Random(0).choices(range(18), k=60):
        assert torch.equal(jumping[i]["idx"], straight[i]), i

def test_every_epoch_holds_every_row_once_and_the_last_batch_may_be_smaller():
    """If the last batch were dropped, some rows would be missing, with a fixed order the same ones in every epoch."""
    batches = data.Batches(make(23), 4, seed=1)
    assert len(batches) == 6
    for epoch in range(3):
        parts = [numbers(batches[i]) for i in range(6 * epoch, 6 * epoch + 6)]
        assert sorted(n for part in parts for n in part) == list(range(23))
        assert sorted(map(len, parts)) == [3, 4, 4, 4, 4, 4]

def test_epochs_and_seeds_differ():
    """If every epoch made a new generator from the same seed, all epochs would have one order."""
    order = lambda seed, epoch: [numbers(data.Batches(rows, 4, seed)[i]) for i in range(10 * epoch, 10 * epoch + 10)]
    rows = make(40)
    assert order(0, 0) != order(0, 1) != order(0, 2) and order(0, 0) != order(1, 0)

layouts = pytest.mark.parametrize("share_prefix", [False, True], ids=["two rows a pair", "one row a pair"])

@layouts
def test_both_layouts_hold_the_same_pairs(share_prefix):
    """In every epoch a row must be a whole pair as it was given, with its own reference log-probs."""
    rows = make(23)
    for i, row in enumerate(rows):
        row["ref_chosen_logps"], row["ref_rejected_logps"] = -float(i), -1000.0 - i
    batches = data.Batches(rows, 4, seed=5, share_prefix=share_prefix)
    for epoch in range(2):
        seen = []
        for i in range(6 * epoch, 6 * epoch + 6):
            batch = batches[i]
            for b, n in enumerate(numbers(batch)):
                texts = [rows[n]["prompt"] + rows[n]["chosen"], rows[n]["prompt"] + rows[n]["rejected"]]
                if share_prefix:
                    segments, idx = batch["segments"][b], batch["idx"][b]
                    got = [idx[(segments == 0) | (segments == side)].tolist() for side in (1, 2)]
                else:
                    idx = batch["idx"][[b, b + batch["weight"]]]
                    got = [row[:len(text)].tolist() for row, text in zip(idx, texts, strict=True)]
                assert got == texts
                assert batch["ref_chosen_logps"][b] == -n and batch["ref_rejected_logps"][b] == -1000 - n
            seen += numbers(batch)
        assert sorted(seen) == list(range(23))

def test_rows_of_one_length_come_in_the_same_order_in_both_layouts():
    """Only the seed and the lengths decide the order, so a run with one layout can repeat a run with the other."""
    rows = [{"prompt": [i, 1], "chosen": [2, 9], "rejected": [3, 3, 9]} for i in range(23)]
    one, two = (data.Batches(rows, 4, seed=3, share_prefix=shared) for shared in (True, False))
    assert [numbers(one[i]) for i in range(18)] == [numbers(two[i]) for i in range(18)]
    assert [numbers(b) for b in one] == [numbers(b) for b in two]
    assert [numbers(one[i]) for i in range(6)] != [numbers(data.Batches(rows, 4, 4, True)[i]) for i in range(6)]

def test_rows_are_grouped_by_the_length_that_they_will_have():
    """The layouts have different lengths: a prompt of 1 with completions of 5 and 1 takes 6 tokens alone, 7 shared."""
    uneven, even = sides([1], [2] * 5, [3]), sides([1], [2] * 4, [3] * 4)
    assert data.Batches([uneven, even], 1).lengths == [6, 5]
    assert data.Batches([uneven, even], 1, share_prefix=True).lengths == [7, 9]
    width = lambda row, **layout: data.collate([row], **layout)["idx"].shape[1]
    rows, texts = make(64), make(64, pairs=False)
    shared = [width(row, share_prefix=True) for row in rows]
    assert data.Batches(rows, 8, share_prefix=True).lengths == shared
    assert data.Batches(rows, 8).lengths == [width(row) for row in rows]
    assert data.Batches(texts, 8).lengths == [width(row) for row in texts]

def padding(batches):
    return sum(int(b["idx"].numel()) for b in batches)

@layouts
@pytest.mark.parametrize("one_pass", [False, True])
def test_rows_of_like_length_go_together(one_pass, share_prefix):
    """In random batches of such rows nearly half of the tokens are padding, which costs as much as text."""
    rows = make(640, longest=60)
    prompts = 1 if share_prefix else 2
    tokens = sum(prompts * len(r["prompt"]) + len(r["chosen"]) + len(r["rejected"]) for r in rows)
    random_waste = padding(data.collate(rows[at:at + 8], share_prefix) for at in range(0, 640, 8)) - tokens
    batches = data.Batches(rows, 8, share_prefix=share_prefix)
    waste = padding(batches if one_pass else (batches[i] for i in range(80))) - tokens
    assert 0 <= waste < (0.3 if share_prefix else 0.6) * random_waste

def test_an_epoch_does_not_run_from_short_to_long():
    """A full sort by length would save the most padding, but train on short rows first and long rows last."""
    rows = make(640, longest=60)
    batches = data.Batches(rows, 8)
    widths = torch.tensor([batches[i]["idx"].shape[1] for i in range(80)], dtype=torch.float)
    assert abs(torch.corrcoef(torch.stack([widths, torch.arange(80.0)]))[0, 1]) < 0.4
    assert numbers(batches[0]) != numbers(batches[80])

def test_iterating_is_one_pass_in_a_fixed_order_whatever_was_drawn_before():
    """Validation losses can be compared only on the same rows. Validation must not change the order of training."""
    rows, batches = make(23), data.Batches(make(23), 4, seed=2)
    first = [b["idx"] for b in batches]
    batches[9]
    again = [b["idx"] for b in batches]
    other_seed = [b["idx"] for b in data.Batches(rows, 4, seed=7)]
    assert len(first) == len(again) == len(other_seed) == 6
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, other_seed, strict=True))
    assert sorted(n for b in batches for n in numbers(b)) == list(range(23))
    assert torch.equal(batches[10]["idx"], data.Batches(rows, 4, seed=2)[10]["idx"])

def test_one_pass_keeps_the_pairs_of_a_prompt_together():
    """They share completions, which are computed once in a batch. Sorted by length alone, they would be apart."""
    pair = lambda prompt, n, m: {"prompt": [prompt], "chosen": [1] * n, "rejected": [2] * m}
    rows = [pair(8, 1, 9), pair(7, 1, 2), pair(8, 1, 2), pair(6, 5, 1), pair(7, 3, 2), pair(8, 2, 2)]
    groups = [[row["prompt"][0] for row in group] for group in data.Batches(rows, 2).groups()]
    assert groups == [[7, 7], [6, 8], [8, 8]]    # the prompt with the shortest rows first
    texts = [{"prompt": [8], "chosen": [1] * n} for n in (3, 1, 2)]
    assert [[len(row["chosen"]) for row in group] for group in data.Batches(texts, 2).groups()] == [[1, 2], [3]]

# ---------------------------------------------------------------------------------------------------------------------
# pairs by sampling and ranking

@pytest.fixture(scope="module")
def stopping_model(tokenizer):
    """A small model that draws EOS about once in eight tokens, so that some samples end and some are cut."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=tokenizer.n_vocab, n_layer=1, n_head=2, n_embd=16)).eval()
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1.0)
        # a logit of 16 * 0.25 = 4, against ~0 for 370 others
        model.transformer.wte.weight[tokenizer.eot_token].fill_(0.25)
    return model

PROMPTS = {"train": [f"the plot was {i:02d}" for i in range(12)], "val": [f"the cast was {i:02d}" for i in range(4)]}

def fifths(text):
    """A reward with many ties."""
    return float(len(text) % 5)

def make_pairs(model, tokenizer, folder, *, prompts=PROMPTS, reward=fifths, weights="a", **how):
    how = {"k": 4, "max_new_tokens": 6, "seed": 0} | how
    prompts = {split: tokenizer.encode_ordinary_batch(texts) for split, texts in prompts.items()}
    rewards = lambda texts: [reward(data.decode(tokenizer, tokens)) for tokens in texts]
    return sampling.make_pairs(model, tokenizer, prompts, rewards, folder, {"weights": weights}, **how)

def test_all_pairs_by_hand():
    """Rewards 1, 2, 1: the second sample is chosen over both others, which are tied."""
    a, b, c = samples = [{"text": name, "reward": r} for name, r in (("a", 1.0), ("b", 2.0), ("c", 1.0))]
    assert list(sampling.all_pairs(samples)) == [(b, a), (b, c)] and not list(sampling.all_pairs([a, c]))

@pytest.mark.parametrize("draw, chosen", [(0.24, "a"), (0.26, "b")])
def test_drawn_labels_by_hand(draw, chosen):
    """Odds of 1 : 3. A draw below P(a over b) = 1/4 chooses a, although b has the higher reward."""
    b, a = samples = [{"tokens": name, "reward": r} for name, r in (("b", 0.75), ("a", 0.5))]
    rng = type("Fixed", (), {"random": lambda self: draw})()
    nats = lambda p: math.log(p / (1 - p))
    assert list(sampling.drawn_pairs(samples, nats, rng)) == ([(a, b)] if chosen == "a" else [(b, a)])

def test_drawn_labels_have_bradley_and_terrys_shares():
    """Each two samples make one pair, ties too. Equal completions make none. No gap is too large."""
    samples = [{"tokens": name, "reward": r} for name, r in zip("abcc", (0.0, 1.0, 1.0, 1.0))]
    rng, counts = random.Random(0), Counter()
    for _ in range(4000):
        pairs = list(sampling.drawn_pairs(samples, lambda r: r, rng))
        counts.update((w["tokens"], l["tokens"]) for w, l in pairs)
        assert len(pairs) == 5
    share = lambda x, y: counts[x, y] / (counts[x, y] + counts[y, x])
    assert share("b", "a") == pytest.approx(0.7311, abs=0.02)    # the sigmoid of 1 nat
    assert share("c", "a") == pytest.approx(0.7311, abs=0.02) and share("b", "c") == pytest.approx(0.5, abs=0.02)
    far = [{"tokens": "x", "reward": -1e6}, {"tokens": "y", "reward": 1e6}]
    assert [chosen["reward"] for chosen, _ in sampling.drawn_pairs(far, lambda r: r, rng)] == [1e6]

def test_drawn_labels_have_a_file_of_their_own(tmp_path, tokenizer, stopping_model):
    """Read back for a run with the other labels, they would be label noise, or its absence."""
    reward = lambda texts: np.array([fifths(data.decode(tokenizer, tokens)) for tokens in texts])
    reward.name, reward.nats = "fifths", lambda r: 50 * r
    sampled = {}
    for labels in (None, "best", "bradley_terry", "bradley_terry"):
        path, rows = sampling.sampled_pairs(stopping_model, tokenizer, "weights", reward, data="toy", folder=tmp_path,
                                            n_prompts=4, max_len=toy.PROMPT_LEN + 6, labels=labels)
        assert sampled.setdefault(path, rows) == rows
    assert len(sampled) == 2
    best, drawn = ([json.loads(line) for line in open(path, encoding="utf-8")] for path in sampled)
    gaps = [row["chosen"]["reward"] - row["rejected"]["reward"] for row in drawn]
    assert len(drawn) >= len(best) and min(r["chosen"]["reward"] - r["rejected"]["reward"] for r in best) > 0
    # 50 nats for a gap of 1: only ties can be drawn the other way round
    assert min(gaps) > -0.1 and sum(gap > 0 for gap in gaps) == len(best)

def test_pairs_are_all_those_that_differ_in_reward_and_no_ties(tmp_path, tokenizer, stopping_model):
    """With >= for >, ties would be pairs too, half of them backwards. Each unordered pair must come once."""
    samples = []
    path = make_pairs(stopping_model, tokenizer, tmp_path, reward=lambda text: samples.append(text) or fifths(text))
    rows = [json.loads(line) for line in open(path, encoding="utf-8")]
    assert len(samples) == 4 * 16
    for row in rows:
        assert row["chosen"]["reward"] > row["rejected"]["reward"]
        for side in ("chosen", "rejected"):
            assert row[side]["reward"] == fifths(row["prompt"]["text"] + row[side]["text"])
            assert row["prompt"]["text"] + row[side]["text"] in samples
    for split, texts in PROMPTS.items():
        for text in texts:
            drawn = [fifths(s) for s in samples if s.startswith(text)]
            assert len(drawn) == 4
            mine = [r for r in rows if r["prompt"]["text"] == text]
            assert len(mine) == sum(a > b for a in drawn for b in drawn) and all(r["split"] == split for r in mine)

def test_reading_pairs_gives_the_sampled_tokens_in_their_splits(tmp_path, tokenizer, stopping_model):
    """The text does not give the sampled tokens back: the tokenizer may split it otherwise, and EOS is not text."""
    path = make_pairs(stopping_model, tokenizer, tmp_path)
    written = [json.loads(line) for line in open(path, encoding="utf-8")]
    rows = sampling.read_pairs(path)
    for split in ("train", "val"):
        mine = [r for r in written if r["split"] == split]
        want = [{side: r[side]["tokens"] for side in ("prompt", "chosen", "rejected")} for r in mine]
        assert rows[split] == want != []
        assert {tuple(r["prompt"]) for r in want} <= {tuple(tokenizer.encode_ordinary(t)) for t in PROMPTS[split]}
    assert any(tokenizer.encode_ordinary(tokenizer.decode(r["chosen"])) != r["chosen"] for r in rows["train"])

def test_a_sample_ends_in_eos_unless_it_was_cut(tmp_path, tokenizer, stopping_model):
    """An EOS added to a cut sample would teach the policy to stop there. Without any EOS it would never stop."""
    rows = sampling.read_pairs(make_pairs(stopping_model, tokenizer, tmp_path))
    answers = [r[side] for part in rows.values() for r in part for side in ("chosen", "rejected")]
    cut = [a for a in answers if tokenizer.eot_token not in a]
    whole = [a for a in answers if tokenizer.eot_token in a]
    assert cut and all(len(a) == 6 for a in cut)
    assert whole and all(a.index(tokenizer.eot_token) == len(a) - 1 for a in whole)

def test_toy_pairs_share_no_prompt_between_training_and_validation(tmp_path, tokenizer, stopping_model, monkeypatch):
    """Both are drawn with one seed. Only the split keeps them apart."""
    monkeypatch.setattr(toy, "reward", fifths)    # the exact one is 1/2 for all samples of this model
    reward = Reward(None, tokenizer, 32, "cpu", 8, nullcontext())
    _, rows = sampling.sampled_pairs(stopping_model, tokenizer, "weights", reward, data="toy", folder=tmp_path,
                                     n_prompts=40, max_len=toy.PROMPT_LEN + 6)
    prompts = {split: {tuple(r["prompt"]) for r in part} for split, part in rows.items()}
    assert len(prompts["train"]) > 30 and len(prompts["val"]) > 50 and not prompts["train"] & prompts["val"]

def reviews(folder, n=90, test=90):
    """Small files like IMDB's: negative reviews first. One test review is in training too."""
    def make(n, tag):
        return [{"text": f"{i:02d} {tag} " + "was dull . " * 4, "label": int(i >= n // 2)} for i in range(n)]
    train = make(n, "the plot")
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "test.jsonl", [*make(test, "the cast"), train[0], {"text": "a plot", "label": 0}])
    return str(folder)

def test_validation_rows_can_be_few(tmp_path, tokenizer, capsys):
    """They must be the same every time and come from the whole file, which may be sorted. Training keeps its rows."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"the plot {i} ."} for i in range(600)])
    whole, few, again = (data.load_rows(path, None, tokenizer, 64, pairs=False, n_val=n) for n in (None, 12, 12))
    assert few == again and few["train"] == whole["train"] and len(few["val"]) == 12 < len(whole["val"])
    assert all(r in whole["val"] for r in few["val"]) and few["val"] != whole["val"][:12]
    assert f"12 of {len(whole['val'])} to validate" in capsys.readouterr().out
    assert data.load_rows(path, None, tokenizer, 64, pairs=False, n_val=999) == whole

def test_prompts_of_reviews_are_their_beginnings(tmp_path, tokenizer):
    """After an EOS, as in SFT, they have the given length, and both labels. None is a whole review or from training."""
    folder = reviews(tmp_path)
    prompts, labels = sources.beginnings(folder, "train", tokenizer, "4", 99)
    assert 70 < len(prompts) < 90
    assert {len(p) for p in prompts} == {5} and {p[0] for p in prompts} == {tokenizer.eot_token}
    assert all(data.decode(tokenizer, p)[2:] == " the plot" for p in prompts) and 30 < sum(labels) < 50
    # the file has the negative ones first
    assert 2 < sum(sources.beginnings(folder, "train", tokenizer, "4", 20)[1]) < 18
    assert {len(p) for p in sources.beginnings(folder, "train", tokenizer, "5-8", 99)[0]} == {6, 7, 8, 9}
    first = lambda seed: sources.beginnings(folder, "train", tokenizer, "4", 9, seed)[0]
    assert first(1) != prompts[:9] == first(0)
    tests, _ = sources.beginnings(folder, "test", tokenizer, "4", 99)
    assert 1 < len(tests) < 30 and all(data.decode(tokenizer, p)[2:] == " the cast" for p in tests)
    with pytest.raises(ValueError, match="no test review has more than 99 tokens"):
        sources.beginnings(folder, "test", tokenizer, "99", 5)

def test_a_beginning_that_repeats_is_a_prompt_of_one_split_only(tmp_path, tokenizer):
    """Beginnings of two words, like "this film", are in both files. The test prompts would be trained on."""
    for split in ("train", "test"):
        rows = [{"text": f"{i % 60:02d} was {split} {i} .", "label": 1} for i in range(200)]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    train, test = (sources.beginnings(str(tmp_path), split, tokenizer, "3", 999)[0] for split in ("train", "test"))
    assert len(train) > 40 and len(test) > 1 and not {*map(tuple, train)} & {*map(tuple, test)}

def test_pairs_of_reviews_share_no_prompt_between_training_and_validation(tmp_path, tokenizer, stopping_model):
    """Both must be beginnings of training reviews, as test reviews are for evaluation."""
    by_length = lambda texts: np.array([float(len(t)) for t in texts])
    by_length.name = "length"
    pairs = functools.partial(
        sampling.sampled_pairs, stopping_model, tokenizer, "weights", by_length, data="imdb", folder=tmp_path,
        data_dir=reviews(tmp_path / "imdb"), n_prompts=30, prompt_tokens="4")
    path, rows = pairs(max_len=12)
    prompts = {split: {tuple(r["prompt"]) for r in part} for split, part in rows.items()}
    assert 0 < len(prompts["train"]) <= 30 and prompts["val"] and not prompts["train"] & prompts["val"]
    assert all(data.decode(tokenizer, p)[2:] == " the plot" for part in prompts.values() for p in part)
    assert all(len(r["chosen"]) > len(r["rejected"]) and len(r["chosen"]) <= 7 for part in rows.values() for r in part)
    with pytest.raises(ValueError, match="--max_len 5"):
        pairs(max_len=5)

def test_pairs_are_reused_while_the_recipe_is_unchanged(tmp_path, tokenizer, stopping_model):
    """Sampling takes longer than training, and losses can be compared only on the same pairs."""
    path = make_pairs(stopping_model, tokenizer, tmp_path)
    before = Path(path).read_bytes()
    assert make_pairs(None, tokenizer, tmp_path) == path    # no model: nothing can be sampled
    assert Path(path).read_bytes() == before and len(list(tmp_path.iterdir())) == 1

FEWER = PROMPTS | {"train": PROMPTS["train"][:-1]}
OTHERS = PROMPTS | {"train": [p.replace("plot", "story") for p in PROMPTS["train"]]}

@pytest.mark.parametrize("change", [
    pytest.param({"k": 3}, id="k"),
    pytest.param({"weights": "b"}, id="weights"),
    pytest.param({"seed": 1}, id="seed"),
    pytest.param({"max_new_tokens": 5}, id="length"),
    pytest.param({"prompts": FEWER}, id="fewer prompts"),
    pytest.param({"prompts": OTHERS}, id="other prompts"),
])
def test_pairs_are_made_anew_when_the_recipe_changes(tmp_path, tokenizer, stopping_model, change):
    """Nobody would notice pairs of another policy, seed or prompts under the same name."""
    path = make_pairs(stopping_model, tokenizer, tmp_path)
    before = Path(path).read_bytes()
    other = make_pairs(stopping_model, tokenizer, tmp_path, **change)
    assert other != path and Path(other).is_file() and Path(path).read_bytes() == before

def test_an_interrupted_write_leaves_no_usable_file(tmp_path, tokenizer, stopping_model):
    """Half a file under the final name would be reused by every later run."""
    calls = []
    def fails(text):
        calls.append(text)
        if len(calls) == 60:    # of 48 for training and 16 for validation
            raise KeyboardInterrupt
        return fifths(text)
    with pytest.raises(KeyboardInterrupt):
        make_pairs(stopping_model, tokenizer, tmp_path, reward=fails)
    assert all(f.suffix == ".tmp" for f in tmp_path.iterdir())
    whole = make_pairs(stopping_model, tokenizer, tmp_path)
    assert Path(whole).read_bytes() == Path(make_pairs(stopping_model, tokenizer, tmp_path.parent)).read_bytes()
    assert [f.name for f in tmp_path.iterdir()] == [Path(whole).name]

def test_sampled_completions_come_in_the_order_of_their_prompts_and_equal_those_one_by_one(tokenizer):
    """Prompts are sorted by length for speed. In that order, every completion would belong to another prompt."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=tokenizer.n_vocab, n_layer=1, n_head=2, n_embd=16)).eval()
    for name, p in model.named_parameters():
        if p.dim() == 2 and "wte" not in name:
            p.data *= 30    # so that a token depends on its position
    lens = (12, 3, 7, 12, 5, 9, 1, 7)
    examples = toy.examples("train", len(lens))
    prompts = [tokenizer.encode_ordinary(e["prompt"])[:n] for e, n in zip(examples, lens, strict=True)]
    alone = [model.generate(torch.tensor([p]), 12, temperature=0)[0, len(p):].tolist() for p in prompts]
    # EOS is one of the model's own tokens: some completions have it, but not first, and some do not have it
    eos = next(t for t in alone[0][1:] if 2 <= sum(t in a for a in alone) <= 6 and all(a[0] != t for a in alone))
    want = [a[:a.index(eos) + 1] if eos in a else a for a in alone]
    own = SimpleNamespace(eot_token=eos)
    for batch_size in (1, 3, 256):
        got = sampling.sample_completions(model, own, prompts, 12, temperature=0, batch_size=batch_size)
        assert got == want, batch_size

def test_sampled_completions_are_fixed_by_the_seed(tokenizer, stopping_model):
    """With the global generator, sampling would depend on what ran before and change what comes after."""
    prompts = [tokenizer.encode_ordinary(t) for t in PROMPTS["train"]]
    draw = lambda seed: sampling.sample_completions(stopping_model, tokenizer, prompts, 6, seed=seed)
    first, state = draw(1), torch.get_rng_state()
    torch.rand(3)
    assert draw(1) == first != draw(2)
    torch.set_rng_state(state)
    draw(1)
    assert torch.equal(torch.get_rng_state(), state)

def test_decoding_leaves_out_the_eos_alone(tokenizer):
    """A judge would read "<|endoftext|>" in a sample, which changes the reward. In a text it must stay."""
    text = " the plot <|endoftext|> was"
    assert data.decode(tokenizer, tokenizer.encode_ordinary(text) + [tokenizer.eot_token]) == text

def test_a_share_of_the_labels_is_swapped():
    """The share is exact, another seed takes other rows, and the order of the rows does not change."""
    rows = lambda: [{"prompt": [i], "chosen": [i, 1], "rejected": [i, 2]} for i in range(40)]
    def swapped(share, seed):
        part = rows()
        assert data.flip_labels(part, share, seed) == round(40 * share)
        assert [r["prompt"] for r in part] == [[i] for i in range(40)]
        return [r["chosen"][1] == 2 and r["rejected"][1] == 1 for r in part]
    assert sum(swapped(0.25, 0)) == 10 and swapped(0.25, 0) == swapped(0.25, 0) != swapped(0.25, 1)
    assert not any(swapped(0, 0)) and all(swapped(1, 0))
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="--label_noise"):
            data.flip_labels(rows(), share, 0)

# ---------------------------------------------------------------------------------------------------------------------
# real data, where there is some

real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets are not here")

@real
@pytest.mark.parametrize("name,usable,dropped", [("helpful", 694, 2354 - 694), ("harmless", 658, 2312 - 658)])
def test_real_hh_has_so_many_usable_rows(tmp_path, tokenizer, capsys, name, usable, dropped):
    """Another program has counted them. One row more or less means that a dialogue is parsed wrongly."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / f"{name}-base.test.jsonl.gz").symlink_to(REAL / "hh-rlhf" / f"{name}-base.test.jsonl.gz")
    rows = data.load_rows("hh", str(tmp_path / "d"), tokenizer, 10_000)
    assert len(rows["train"]) + len(rows["val"]) == usable
    reasons = capsys.readouterr().out.split("dropped:")[1].split(", ")
    assert sum(int(r.split()[0].replace(",", "")) for r in reasons) == dropped
    for row in rows["train"]:
        assert tokenizer.decode(row["prompt"]).endswith("\n\nAssistant:")
        assert data.decode(tokenizer, row["chosen"]).startswith(" ")

@real
def test_real_instruction_pairs_lose_their_six_identical_ones(gpt2, capsys):
    """Identical sides give no gradient, and each such pair counts as half correct."""
    rows = data.load_rows(str(REAL / "instruction" / "instruction-data-with-preference.json"), None, gpt2, 1024)
    assert len(rows["train"]) + len(rows["val"]) == 1100 - 6
    assert "dropped: 6 chosen == rejected\n" in capsys.readouterr().out

@real
@pytest.mark.parametrize("split", ["train", "test"])
def test_real_ultrafeedback_loads_as_a_local_file(gpt2, capsys, split):
    """It has lists of messages, preferred answers that are empty, literal </s>, and answers longer than the context."""
    rows = data.load_rows(str(REAL / "ultrafeedback" / f"{split}_prefs.jsonl"), None, gpt2, 1024)
    rows = rows["train"] + rows["val"]
    reasons = capsys.readouterr().out.strip().split("dropped: ")[1].split(", ")
    assert len(rows) + sum(int(r.split()[0]) for r in reasons) == 500 and len(rows) > 450
    for row in rows:
        assert gpt2.eot_token not in row["prompt"] + row["chosen"][:-1] + row["rejected"][:-1]
        for side in ("chosen", "rejected"):
            assert (row[side][-1] == gpt2.eot_token) or len(row["prompt"] + row[side]) == 1024

@real
def test_gpt2s_tokenizer_leaves_a_literal_end_of_text_as_text(gpt2):
    """encode() refuses such a text. With allowed_special it gives token 50256, which ends the document."""
    text = " a <|endoftext|> b </s>"
    (row,), _ = data.make_rows([{"prompt": text, "chosen": text}], gpt2, 64)
    assert 50256 not in row["prompt"] and row["chosen"].count(50256) == 1 and gpt2.decode(row["prompt"]) == text

@real
def test_gpt2s_own_merges_do_not_cross_from_prompt_to_completion(gpt2):
    """"Ass" + "istant" is one token when tokenized together."""
    (row,), _ = data.make_rows([{"prompt": "Ass", "chosen": "istant"}], gpt2, 64)
    assert row["prompt"] + row["chosen"][:-1] != gpt2.encode_ordinary("Assistant")
    assert gpt2.decode(row["prompt"]) == "Ass"

@real
def test_real_imdb_has_25000_rows_though_350_hold_u0085():
    """splitlines() finds more lines and breaks the JSON of 350 rows."""
    texts = [r["text"] for _, r in sources.read_records(REAL / "imdb" / "train.jsonl.gz")]
    assert len(texts) == 25_000 and sum("\x85" in t for t in texts) == 350
