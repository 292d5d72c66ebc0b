"""Every data set: the hub's own columns, local files of the same rows, what is left out, and a look at what it becomes."""
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
    """hub(splits) makes datasets.load_dataset give them, and returns what it was asked for."""
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
    """text and label; the reviews without a label are for the language model."""
    asked = hub({"train": [{"text": "Fine.<br /><br />Really fine.", "label": 1}, {"text": "Dull.", "label": 0}],
                 "test": [{"text": "Poor.", "label": 0}], "unsupervised": [{"text": "So so. ", "label": -1}]})
    splits, dropped = examples("imdb", pairs=False)
    assert asked == {"path": "stanfordnlp/imdb"} and not dropped
    assert splits["train"] == [{"prompt": "", "chosen": "Fine.\nReally fine.", "positive": True},
                               {"prompt": "", "chosen": "Dull.", "positive": False}, {"prompt": "", "chosen": "So so.", "positive": None}]
    assert [e["positive"] for e in splits["test"]] == [False]

@pytest.mark.parametrize("given, want", [("a<br />b", "a\nb"), ("a <br/> <br /> b", "a\nb"), ("<br />a<br /><br />", "a"), ("a<b", "a<b"),
                                         ("a\x85b", "a\x85b")])
def test_line_breaks_of_imdb_are_cleaned(given, want):
    """In 59% of the reviews: a model that learned the tag writes it, and a reward model counts it. U+0085 stays."""
    assert sources.imdb_example({"text": given, "label": 1}, "here", False)["chosen"] == want

def test_imdb_reviews_that_stand_there_twice_are_dropped_once(tmp_path):
    """After cleaning; in another split they are that split's own affair."""
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

@pytest.mark.parametrize("row, words", [({"text": "a", "label": 2}, ["label", "1, 0 or -1", "2"]), ({"text": "a"}, ["label"]),
                                        ({"label": 1}, ["text"]), ({"text": None, "label": 1}, ["text", "null"])])
def test_a_wrong_row_of_imdb_is_named(tmp_path, row, words):
    """File, row, field."""
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": 1}, row])
    says(["train.jsonl, row 2", *words], "imdb", False, str(tmp_path))

def test_the_test_split_is_not_for_training(tmp_path, tokenizer, capsys):
    """Nor tokenized for nothing."""
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
    """The splits for preferences alone: those for SFT and generation repeat their rows. Score columns are left alone."""
    row = lambda i: {"prompt": f"Q{i}", "prompt_id": "x", "chosen": chat(f"Q{i}", "yes"), "rejected": chat(f"Q{i}", "no"),
                     "messages": chat(f"Q{i}", "yes"), "score_chosen": 9.0, "score_rejected": 2.5}
    splits = {f"{part}_{use}": [row(i)] for part, i in (("train", 1), ("test", 2)) for use in ("prefs", "sft", "gen")}
    asked = hub(splits)
    found, dropped = examples("ultrafeedback")
    assert asked == {"path": "HuggingFaceH4/ultrafeedback_binarized"} and not dropped
    assert found == {split: [{"prompt": f"\n\nHuman: Q{i}\n\nAssistant:", "chosen": " yes", "rejected": " no"}]
                     for split, i in (("train", 1), ("test", 2))}

# ---------------------------------------------------------------------------------------------------------------------
# TL;DR

def comparison(choice=1, **info):
    return {"info": {"id": "t3_x", "post": "I fell.", "title": "Ouch", "subreddit": "tifu", "site": None, "article": None} | info,
            "summaries": [{"text": " I fell", "policy": "sup", "note": None}, {"text": " OP fell.", "policy": "ref", "note": "ok"}],
            "choice": choice, "worker": "w", "batch": "b", "split": "train", "extra": {"confidence": 8}}

def test_tldr_from_the_hub(hub):
    """choice is an index; the summaries begin with their space; the prompt is laid out as its authors did (arXiv:2009.01325)."""
    asked = hub({"train": [comparison(1), comparison(0)], "validation": [comparison(0, post="Other.")]})
    splits, dropped = examples("tldr")
    assert asked == {"path": "openai/summarize_from_feedback", "name": "comparisons", "revision": "refs/convert/parquet"} and not dropped
    prompt = "SUBREDDIT: r/tifu\n\nTITLE: Ouch\n\nPOST: I fell.\n\nTL;DR:"
    assert splits["train"] == [{"prompt": prompt, "chosen": " OP fell.", "rejected": " I fell"},
                               {"prompt": prompt, "chosen": " I fell", "rejected": " OP fell."}]
    assert len(splits["val"]) == 1 and examples("tldr", pairs=False)[0]["train"][0] == {"prompt": prompt, "chosen": " OP fell."}

def test_tldr_leaves_out_what_is_not_a_comparison_of_two_summaries_of_a_post(tmp_path):
    """The same files hold news articles, and ratings of single summaries; both are counted."""
    rating = {k: v for k, v in comparison().items() if k not in ("summaries", "choice")} | {"summary": {"text": " a"}}
    write_jsonl(tmp_path / "train.jsonl", [comparison(), comparison(post=None, article="News."), rating])
    splits, dropped = examples("tldr", str(tmp_path))
    assert len(splits["train"]) == 1 and dropped == {"not a Reddit post": 1, "not a comparison": 1}

@pytest.mark.parametrize("change, words", [
    ({"choice": 2}, ["choice", "2"]), ({"choice": None}, ["choice", "null"]), ({"info": None}, ["info"]),
    ({"summaries": [{"text": " a"}]}, ["1"]),
    ({"summaries": [{"text": " a"}, {}]}, ["summary 2", "text"]), ({"summaries": ["a", "b"]}, ["summary 1"])])
def test_a_wrong_row_of_tldr_is_named(tmp_path, change, words):
    """File, row, field."""
    write_jsonl(tmp_path / "train.jsonl", [comparison(), comparison() | change])
    says(["train.jsonl, row 2", *words], "tldr", True, str(tmp_path))

# ---------------------------------------------------------------------------------------------------------------------
# CNN/DailyMail

def test_cnn_dailymail_is_for_evaluation_only(hub):
    """Asked for a summary as TL;DR asks, of texts it has not seen; it has no pairs to train on."""
    asked = hub({"test": [{"article": "News.\nMore. ", "highlights": "A .\nB .", "id": "1"}]})
    splits, _ = examples("cnn_dailymail", pairs=False)
    assert asked == {"path": "abisee/cnn_dailymail", "name": "3.0.0"}
    assert splits == {"test": [{"prompt": "News.\nMore.\n\nTL;DR:", "chosen": " A . B ."}]}
    says(["evaluation only"], "cnn_dailymail")
    with pytest.raises(ValueError, match="evaluation only; train on tldr"):
        sources.check_source("cnn_dailymail", None, training=True)

def test_a_csv_with_line_breaks_in_quoted_fields(tmp_path):
    """As CNN/DailyMail's is: reading line by line cuts its rows."""
    (tmp_path / "test.csv").write_text('article,highlights,id\n"News,\nwith ""quotes"".","A .\nB .",1\n"More.","C .",2\n')
    splits, _ = examples("cnn_dailymail", str(tmp_path), pairs=False)
    assert [e["prompt"] for e in splits["test"]] == ['News,\nwith "quotes".\n\nTL;DR:', "More.\n\nTL;DR:"]

def test_a_run_is_measured_on_other_data(in_tmp, own_tokenizer, sft_run, capsys):
    """Summaries of news from a run on posts: the prompts are the other data's, and so are the answers that a judge sees."""
    rows = [{"id": str(i), "article": f"much happened on day {i} .", "highlights": f"day {i}\nwas long ."} for i in range(12)]
    write_jsonl(in_tmp / "cnn" / "test.jsonl", rows)
    found = eval.main(["--run", str(shutil.copytree(sft_run, "run")), "--data", "cnn_dailymail", "--data_dir", "cnn", "--n_prompts", "5",
                       "--max_new_tokens", "4", "--show", "1"])
    samples = json.loads((in_tmp / "run" / "eval.json").read_text())["samples"]
    assert found["prompts"] == 5 and all("happened" in s["prompt"] and s["prompt"].endswith("TL;DR:") for s in samples)
    assert all(s["chosen"].endswith("was long .") for s in samples) and "prompt   much happened" in capsys.readouterr().out

# ---------------------------------------------------------------------------------------------------------------------
# a part of GPT-2's vocabulary

@real
@pytest.mark.parametrize("n_vocab", [300, 8193])
def test_the_first_ranks_of_gpt2s_bpe_are_a_bpe(gpt2, n_vocab):
    """Merges are ordered: every text can be said, with more tokens; ids stay below n_vocab; the last one is EOS, and never text."""
    small = data.get_tokenizer("gpt2", n_vocab)
    assert small.n_vocab == n_vocab and small.eot_token == n_vocab - 1 and data.get_tokenizer("gpt2", 50_304).n_vocab == 50_257
    for text in ("Ein Café — naïve \x85 <|endoftext|> 你好", "the film was fine . " * 20):
        tokens = small.encode_ordinary(text)
        assert small.decode(tokens) == text and max(tokens) < n_vocab - 1 and len(tokens) >= len(gpt2.encode_ordinary(text))

# ---------------------------------------------------------------------------------------------------------------------
# a look

def test_a_look_at_a_data_set(tmp_path, own_tokenizer, capsys):
    """Counts kept and dropped by reason, lengths, and rows with prompt and completion set apart."""
    turn = lambda q, a: f"\n\nHuman: {q}\n\nAssistant: {a}"
    rows = [{"chosen": turn(f"Q{i}", "yes"), "rejected": turn(f"Q{i}", "no" * (i + 1))} for i in range(5)]
    rows += [{"chosen": turn("a", "b") + turn("c", "d"), "rejected": turn("a", "b")}, dict.fromkeys(("chosen", "rejected"), turn("e", "f"))]
    write_jsonl(tmp_path / "d" / "test.jsonl", rows)
    data.main(["--data", "hh", "--data_dir", str(tmp_path / "d"), "--show", "2", "--max_len", "40"])
    out = capsys.readouterr().out
    assert "1 not single-turn" in out and "test: 5 of 6 rows kept" in out and "1 chosen == rejected" in out
    assert out.count("prompt  ") == 2 and "' yes'" in out and sum(int(n) for n in re.findall(r"<= +\d+ +(\d+)", out)) == 5

def test_a_look_at_what_is_not_there(capsys):
    """One line."""
    with pytest.raises(SystemExit) as end:
        data.main(["--data", "nothing"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: nothing: no such file") and err.count("\n") == 1

def test_histogram_by_hand():
    """Each length in one bin: at most 16, more than 16 and at most 32, ..."""
    lines = [line.split() for line in data.histogram([1, 16, 17, 32, 33], width=2)]
    assert lines == [["<=", "16", "2", "##"], ["<=", "32", "2", "##"], ["<=", "64", "1", "#"]]
    assert data.histogram([]) == []

# ---------------------------------------------------------------------------------------------------------------------
# the real files

@real
@pytest.mark.parametrize("name, folder, kept, reasons", [
    ("ultrafeedback", "ultrafeedback", {"train", "test"}, {}), ("tldr", "tldr", {"train"}, {"not a Reddit post": 1}),
    ("cnn_dailymail", "cnn_dailymail", {"test"}, {})])
def test_the_real_files_load(name, folder, kept, reasons):
    """As they came."""
    splits, dropped = examples(name, str(REAL / folder), pairs=name not in sources.PAIRLESS)
    assert set(splits) == kept and dropped == reasons
    assert sum(map(len, splits.values())) == {"ultrafeedback": 1000, "tldr": 1, "cnn_dailymail": 500}[name]

@real
@pytest.mark.slow
def test_real_imdb_loads_whole_and_fast(gpt2):
    """
    Reading, tokenizing and batching 25,000 reviews costs some five times the CPU time of tokenizing alone. Seconds on the wall depend on
    what else the machine does; the ratio of two CPU times does not. 96 reviews occur twice, and 2 more differ only in line breaks.
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
