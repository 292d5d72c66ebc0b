"""
Every data set: the hub's columns, local files of the same rows, dropped rows, and the summary that data.py prints.
"""
import json
import re
import shutil
import time
from pathlib import Path

import pytest

import data
import eval
from support import sources
from conftest import REAL
from test_data import real, write_jsonl

@pytest.fixture
def hub(monkeypatch):
    """hub(splits) makes datasets.load_dataset return them, and returns the arguments of that call."""
    import datasets
    def start(splits):
        asked = {}
        monkeypatch.setattr(datasets, "load_dataset", lambda **kwargs: asked.update(kwargs) or splits)
        return asked
    return start

def examples(name, data_dir=None, pairs=True):
    splits, dropped = sources.load_examples(name, data_dir, pairs)
    return splits, dict(dropped)

def says(message, name, pairs=True, data_dir=None):
    with pytest.raises(ValueError) as e:
        sources.load_examples(name, data_dir, pairs)
    assert all(part in str(e.value) for part in message) and "\n" not in str(e.value), str(e.value)

# ---------------------------------------------------------------------------------------------------------------------
# IMDB

def test_imdb_from_the_hub(hub):
    """The columns are text and label. Reviews without a label are for the language model only."""
    asked = hub({
        "train": [{"text": "Fine.<br /><br />Really fine.", "label": 1}, {"text": "Dull.", "label": 0}],
        "test": [{"text": "Poor.", "label": 0}],
        "unsupervised": [{"text": "So so. ", "label": -1}],
    })
    splits, dropped = examples("imdb", pairs=False)
    assert asked == {"path": "stanfordnlp/imdb"} and not dropped
    assert splits["train"] == [
        {"prompt": "", "chosen": "Fine.\nReally fine.", "positive": True},
        {"prompt": "", "chosen": "Dull.", "positive": False},
        {"prompt": "", "chosen": "So so.", "positive": None},
    ]
    assert [e["positive"] for e in splits["test"]] == [False]

@pytest.mark.parametrize("given, want", [
    ("a<br />b", "a\nb"), ("a <br/> <br /> b", "a\nb"), ("<br />a<br /><br />", "a"), ("a<b", "a<b"),
    ("a\x85b", "a\x85b")])
def test_line_breaks_of_imdb_are_cleaned(given, want):
    """
    59% of the reviews have the tag. A model would learn to write it, and a reward model to count it. U+0085 is
    kept.
    """
    assert sources.imdb_example({"text": given, "label": 1}, "here", False)["chosen"] == want

def test_imdb_reviews_that_stand_there_twice_are_dropped_once(tmp_path):
    """Texts are compared after cleaning, and within one split only."""
    rows = [{"text": "a<br />b", "label": 1}, {"text": "a<br /><br />b", "label": 1}, {"text": "c", "label": 0}]
    write_jsonl(tmp_path / "train.jsonl.gz", rows)
    write_jsonl(tmp_path / "unsup.jsonl.gz", [{"text": "c", "label": -1}, {"text": "d", "label": -1}])
    write_jsonl(tmp_path / "test.jsonl.gz", rows[2:])
    splits, dropped = examples("imdb", str(tmp_path), pairs=False)
    assert [e["chosen"] for e in splits["train"]] == ["a\nb", "c", "d"] and len(splits["test"]) == 1
    assert dropped == {"the same text again": 2}

def test_imdb_has_no_pairs_and_says_so():
    """Its pairs are sampled."""
    with pytest.raises(ValueError, match="no pairs"):
        sources.imdb_example({"text": "a", "label": 1}, "here", True)

@pytest.mark.parametrize("row, words", [
    ({"text": "a", "label": 2}, ["label", "1, 0 or -1", "2"]),
    ({"text": "a"}, ["label"]),
    ({"label": 1}, ["text"]),
    ({"text": None, "label": 1}, ["text", "null"])])
def test_a_wrong_row_of_imdb_is_named(tmp_path, row, words):
    """The message has file, row and field."""
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": 1}, row])
    says(["train.jsonl, row 2", *words], "imdb", False, str(tmp_path))

def test_the_test_split_is_not_for_training(tmp_path, tokenizer, capsys):
    """Training on it would spoil the evaluation. It is not even tokenized."""
    for split, tag in (("train", "a"), ("test", "b")):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"text": f"{tag} {i}", "label": 1} for i in range(50)])
    rows = data.load_rows("imdb", str(tmp_path), tokenizer, 64, pairs=False)
    assert len(rows["train"] + rows["val"]) == 50
    assert all(data.decode(tokenizer, r["chosen"]).startswith("a ") for part in rows.values() for r in part)

# ---------------------------------------------------------------------------------------------------------------------
# UltraFeedback

def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

def test_ultrafeedback_from_the_hub(hub):
    """
    Only the splits for preferences are used. Those for SFT and generation repeat their rows, and scores are
    ignored.
    """
    def row(i):
        yes, no = chat(f"Q{i}", "yes"), chat(f"Q{i}", "no")
        return {"prompt": f"Q{i}", "prompt_id": "x", "chosen": yes, "rejected": no, "messages": yes,
                "score_chosen": 9.0, "score_rejected": 2.5}
    splits = {}
    for part, i in (("train", 1), ("test", 2)):
        splits |= {f"{part}_{use}": [row(i)] for use in ("prefs", "sft", "gen")}
    asked = hub(splits)
    found, dropped = examples("ultrafeedback")
    assert asked == {"path": "HuggingFaceH4/ultrafeedback_binarized"} and not dropped
    assert found == {split: [{"prompt": f"\n\nHuman: Q{i}\n\nAssistant:", "chosen": " yes", "rejected": " no"}]
                     for split, i in (("train", 1), ("test", 2))}

# ---------------------------------------------------------------------------------------------------------------------
# TL;DR

def comparison(choice=1, **info):
    post = {"id": "t3_x", "post": "I fell.", "title": "Ouch", "subreddit": "tifu", "site": None, "article": None}
    return {
        "info": post | info,
        "summaries": [{"text": " I fell", "policy": "sup", "note": None},
                      {"text": " OP fell.", "policy": "ref", "note": "ok"}],
        "choice": choice,
        "worker": "w",
        "batch": "b",
        "split": "train",
        "extra": {"confidence": 8},
    }

def test_tldr_from_the_hub(hub):
    """
    choice is an index, summaries begin with their space, and the prompt has its authors' layout (arXiv:2009.01325).
    """
    asked = hub({"train": [comparison(1), comparison(0)], "validation": [comparison(0, post="Other.")]})
    splits, dropped = examples("tldr")
    path = {"path": "openai/summarize_from_feedback", "name": "comparisons", "revision": "refs/convert/parquet"}
    assert asked == path and not dropped
    prompt = "SUBREDDIT: r/tifu\n\nTITLE: Ouch\n\nPOST: I fell.\n\nTL;DR:"
    assert splits["train"] == [{"prompt": prompt, "chosen": " OP fell.", "rejected": " I fell"},
                               {"prompt": prompt, "chosen": " I fell", "rejected": " OP fell."}]
    assert len(splits["val"]) == 1
    assert examples("tldr", pairs=False)[0]["train"][0] == {"prompt": prompt, "chosen": " OP fell."}

def test_tldr_leaves_out_what_is_not_a_comparison_of_two_summaries_of_a_post(tmp_path):
    """The same files hold news articles and ratings of single summaries. Both are dropped and counted."""
    rating = comparison() | {"summary": {"text": " a"}}
    del rating["summaries"], rating["choice"]
    write_jsonl(tmp_path / "train.jsonl", [comparison(), comparison(post=None, article="News."), rating])
    splits, dropped = examples("tldr", str(tmp_path))
    assert len(splits["train"]) == 1 and dropped == {"not a Reddit post": 1, "not a comparison": 1}

@pytest.mark.parametrize("change, words", [
    ({"choice": 2}, ["choice", "2"]),
    ({"choice": None}, ["choice", "null"]),
    ({"info": None}, ["info"]),
    ({"summaries": [{"text": " a"}]}, ["1"]),
    ({"summaries": [{"text": " a"}, {}]}, ["summary 2", "text"]),
    ({"summaries": ["a", "b"]}, ["summary 1"])])
def test_a_wrong_row_of_tldr_is_named(tmp_path, change, words):
    """The message has file, row and field."""
    write_jsonl(tmp_path / "train.jsonl", [comparison(), comparison() | change])
    says(["train.jsonl, row 2", *words], "tldr", True, str(tmp_path))

# ---------------------------------------------------------------------------------------------------------------------
# CNN/DailyMail

def test_cnn_dailymail_is_for_evaluation_only(hub):
    """Its articles are evaluated with TL;DR's prompt, as texts that training has not seen. It has no pairs."""
    asked = hub({"test": [{"article": "News.\nMore. ", "highlights": "A .\nB .", "id": "1"}]})
    splits, _ = examples("cnn_dailymail", pairs=False)
    assert asked == {"path": "abisee/cnn_dailymail", "name": "3.0.0"}
    assert splits == {"test": [{"prompt": "News.\nMore.\n\nTL;DR:", "chosen": " A . B ."}]}
    says(["evaluation only"], "cnn_dailymail")
    with pytest.raises(ValueError, match="evaluation only; train on tldr"):
        sources.check_source("cnn_dailymail", None, training=True)

def test_a_csv_with_line_breaks_in_quoted_fields(tmp_path):
    """CNN/DailyMail's file is like this. Reading it line by line would cut its rows."""
    (tmp_path / "test.csv").write_text(
        'article,highlights,id\n'
        '"News,\nwith ""quotes"".","A .\nB .",1\n'
        '"More.","C .",2\n')
    splits, _ = examples("cnn_dailymail", str(tmp_path), pairs=False)
    assert [e["prompt"] for e in splits["test"]] == ['News,\nwith "quotes".\n\nTL;DR:', "More.\n\nTL;DR:"]

def test_a_run_is_measured_on_other_data(in_tmp, own_tokenizer, sft_run, capsys):
    """News summaries from a run on posts: prompts, and the answers that a judge sees, come from the other data."""
    rows = [{"id": str(i), "article": f"much happened on day {i} .", "highlights": f"day {i}\nwas long ."}
            for i in range(12)]
    write_jsonl(in_tmp / "cnn" / "test.jsonl", rows)
    run = str(shutil.copytree(sft_run, "run"))
    found = eval.main(["--run", run, "--data", "cnn_dailymail", "--data_dir", "cnn", "--n_prompts", "5",
                       "--max_new_tokens", "4", "--show", "1"])
    samples = json.loads((in_tmp / "run" / "eval.json").read_text())["samples"]
    assert found["prompts"] == 5
    assert all("happened" in s["prompt"] and s["prompt"].endswith("TL;DR:") for s in samples)
    assert all(s["chosen"].endswith("was long .") for s in samples)
    assert "prompt   much happened" in capsys.readouterr().out

# ---------------------------------------------------------------------------------------------------------------------
# a part of GPT-2's vocabulary

@real
@pytest.mark.parametrize("n_vocab", [300, 8193])
def test_the_first_ranks_of_gpt2s_bpe_are_a_bpe(gpt2, n_vocab):
    """
    Merges are ordered, so any text can be encoded, with more tokens. Ids stay below n_vocab. The last id is EOS,
    never text.
    """
    small = data.get_tokenizer("gpt2", n_vocab)
    assert small.n_vocab == n_vocab and small.eot_token == n_vocab - 1
    assert data.get_tokenizer("gpt2", 50_304).n_vocab == 50_257
    for text in ("Ein Café — naïve \x85 <|endoftext|> 你好", "the film was fine . " * 20):
        tokens = small.encode_ordinary(text)
        assert small.decode(tokens) == text and max(tokens) < n_vocab - 1
        assert len(tokens) >= len(gpt2.encode_ordinary(text))

# ---------------------------------------------------------------------------------------------------------------------
# the summary of a data set

def test_a_look_at_a_data_set(tmp_path, own_tokenizer, capsys):
    """It prints kept and dropped rows by reason, lengths, and rows with prompt and completion separate."""
    turn = lambda q, a: f"\n\nHuman: {q}\n\nAssistant: {a}"
    rows = [{"chosen": turn(f"Q{i}", "yes"), "rejected": turn(f"Q{i}", "no" * (i + 1))} for i in range(5)]
    rows.append({"chosen": turn("a", "b") + turn("c", "d"), "rejected": turn("a", "b")})
    rows.append({"chosen": turn("e", "f"), "rejected": turn("e", "f")})
    write_jsonl(tmp_path / "d" / "test.jsonl", rows)
    data.main(["--data", "hh", "--data_dir", str(tmp_path / "d"), "--show", "2", "--max_len", "40"])
    out = capsys.readouterr().out
    assert "1 not single-turn" in out and "test: 5 of 6 rows kept" in out and "1 chosen == rejected" in out
    assert out.count("prompt  ") == 2 and "' yes'" in out
    assert sum(int(n) for n in re.findall(r"<= +\d+ +(\d+)", out)) == 5

def test_a_look_at_what_is_not_there(capsys):
    """The error is one line."""
    with pytest.raises(SystemExit) as end:
        data.main(["--data", "nothing"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: nothing: no such file") and err.count("\n") == 1

def test_histogram_by_hand():
    """Each length is in one bin: at most 16, more than 16 and at most 32, and so on."""
    lines = [line.split() for line in data.histogram([1, 16, 17, 32, 33], width=2)]
    assert lines == [["<=", "16", "2", "##"], ["<=", "32", "2", "##"], ["<=", "64", "1", "#"]]
    assert data.histogram([]) == []

# ---------------------------------------------------------------------------------------------------------------------
# the real files

@real
@pytest.mark.parametrize("name, folder, kept, reasons", [
    ("ultrafeedback", "ultrafeedback", {"train", "test"}, {}),
    ("tldr", "tldr", {"train"}, {"not a Reddit post": 1}),
    ("cnn_dailymail", "cnn_dailymail", {"test"}, {})])
def test_the_real_files_load(name, folder, kept, reasons):
    """The files are read as their publishers made them."""
    splits, dropped = examples(name, str(REAL / folder), pairs=name not in sources.PAIRLESS)
    assert set(splits) == kept and dropped == reasons
    assert sum(map(len, splits.values())) == {"ultrafeedback": 1000, "tldr": 1, "cnn_dailymail": 500}[name]

@real
@pytest.mark.slow
def test_real_imdb_loads_whole_and_fast(gpt2):
    """
    Reading, tokenizing and batching 25,000 reviews takes about five times the CPU time of tokenizing alone. Elapsed
    time depends on what else the machine does, but the ratio of two CPU times does not. 96 reviews occur twice, and
    2 more differ only in line breaks.
    """
    folder = Path(REAL / "imdb")
    start = time.process_time()
    found = [sources.imdb_example(r, where, False) for where, r in sources.read_records(folder / "train.jsonl.gz")]
    rows, dropped = data.make_rows(found, gpt2, 1024)
    n = sum(batch["idx"].shape[0] for batch in data.Batches(rows, 32))
    seconds, start = time.process_time() - start, time.process_time()
    for example in found:
        gpt2.encode_ordinary(example["chosen"])
    tokenizing = time.process_time() - start
    assert n == 25_000 and not dropped and seconds < 9 * tokenizing, (seconds, tokenizing)
    assert not any("<br" in e["chosen"] for e in found) and sum(e["positive"] for e in found) == 12_500
    assert len({e["chosen"] for e in found}) == 25_000 - 98 and json.dumps(found[0])
