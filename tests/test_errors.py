"""
Tests of the errors of users: each ends with status 2 and one line that names the file, row, field or remedy.

Nothing is written before. A traceback sends people to the wrong place, and a silent default to a wrong result.
"""
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import tokenizers
import data
import eval as evaluation
import toy
import train_pref
import train_sft
from model import GPT

ROOT = Path(__file__).resolve().parents[1]
OTHER_MODEL = ROOT / "tests" / "oracle" / "gpt2_tiny"    # 160 tokens of vocabulary
OWN_GET_TOKENIZER = data.get_tokenizer

GOOD = [{"prompt": f"the plot {i}", "chosen": f" was fine {i}", "rejected": " was dull"} for i in range(20)]
SFT = "--n_layer 1 --n_head 2 --n_embd 16 --batch_size 8 --max_steps 2 --eval_every 2".split()
PREF = ("--max_steps", "2", "--eval_every", "2", "--batch_size", "8", "--warmup_steps", "0")

def write_jsonl(path, records):
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)

@pytest.fixture(autouse=True)
def here(in_tmp, own_tokenizer, sft_run):
    """A folder with a run, `sft`, and a file of pairs, `good.jsonl`. No test needs the files of GPT-2's tokenizer."""
    shutil.copytree(sft_run, "sft")
    write_jsonl("good.jsonl", GOOD)
    return in_tmp

def pref(*more, data="good.jsonl", init_from="sft"):
    return ["--data", data, "--init_from", init_from, *PREF, *more]

@pytest.fixture(scope="module")
def pref_run(tmp_path_factory, sft_run, tokenizer):
    """A finished preference run, made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("pref"))
        patch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
        shutil.copytree(sft_run, "sft")
        write_jsonl("good.jsonl", GOOD)
        train_pref.main(pref("--out_dir", "mine", "--n_show", "0"))
        return Path("mine").resolve()

@pytest.fixture
def mine(here, pref_run):
    """A copy of that run as `mine`, trained from `sft` on `good.jsonl`."""
    shutil.copytree(pref_run, "mine")

def everything(folder):
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(Path(folder).rglob("*"))}

@pytest.fixture
def refused(here, capsys):
    """refused(main, argv, *words): main ends with status 2 and one line with all the words. No file has changed."""
    def check(main, argv, *words):
        before = everything(here)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in argv])
        err = capsys.readouterr().err
        assert end.value.code == 2, err
        assert err.count("\n") == 1 and err.endswith("\n") and (err.startswith("error: ") or ": error: " in err), err
        assert not [w for w in words if str(w) not in err], err
        assert everything(here) == before
        return err
    return check

# ---------------------------------------------------------------------------------------------------------------------
# files

def test_the_good_files_of_these_tests_are_good(here, mine, capsys):
    """If they were not, every refusal below might have another cause."""
    assert (here / "sft" / "result.json").is_file() and (here / "mine" / "result.json").is_file()
    train_sft.main(["--data", "good.jsonl", *SFT])
    assert (here / "out" / "good" / "sft" / "result.json").is_file() and capsys.readouterr().err == ""

def test_a_file_that_is_not_there_is_named(refused):
    """The message of open() does not say that --data also takes names."""
    for main, argv in ((train_sft.main, ["--data", "gone.jsonl"]), (train_pref.main, pref(data="gone.jsonl"))):
        refused(main, argv, "gone.jsonl", "no such file")

@pytest.mark.parametrize("name", ["imbd", "Toy", "good.txt", "good", "."])
def test_an_unknown_data_set_gets_the_names_and_the_file_types(refused, name):
    """A name with a typo must not be looked up on the hub. "no such file" alone does not help."""
    Path("good.txt").write_text("text")
    refused(train_sft.main, ["--data", name], name, "toy", "hh", ".jsonl", ".parquet")

PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
LATIN1 = '{"prompt": "a", "chosen": "caf\xe9", "rejected": "c"}\n'.encode("latin-1")

DAMAGED = {
    "half.jsonl": (PAIR + PAIR[:20], ("row 2", "JSON")),
    "half.json": ('[{"prompt": "a", "chosen"', ("JSON",)),
    "object.json": ('{"prompt": "a"}', ("array", ".jsonl")),
    "array.jsonl": (PAIR + "\n" + '["a"]', ("row 3", "object")),
    "latin1.jsonl": (PAIR.encode() * 2 + LATIN1, ("row", "UTF-8")),
    "latin1.csv": ("prompt,chosen,rejected\na,caf\xe9,c\n".encode("latin-1"), ("row 1", "UTF-8")),
    "utf16.jsonl": (PAIR.encode("utf-16"), ("row 1", "UTF-8")),
    "quote.csv": ('prompt,chosen,rejected\na,b,c\na,"b,c\n', ("row 2",)),
    "short.csv": ("prompt,chosen,rejected\na,b,c\na,b\n", ("row 2", "rejected")),
    "long.csv": ("prompt,chosen,rejected\na,b,c\nwell, a,b,c\n", ("row 2",)),
    "not.jsonl.gz": (PAIR, ("gzip",)),
    "half.jsonl.gz": (gzip.compress(json.dumps(list(range(9999))).encode())[:5000], ("gzip", "row 1")),
    "not.parquet": (PAIR, ("arquet",)),
    "empty.jsonl": ("", ("0",)),
}

@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_with_its_row(refused, name):
    """Downloads are cut short and files have a wrong suffix. The decoder's message names neither file nor row."""
    content, words = DAMAGED[name]
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(train_pref.main, pref(data=name), name, *words)

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
BC = {"chosen": "b", "rejected": "c"}

@pytest.mark.parametrize("record, field", [
    pytest.param({"prompt": "a", "chosen": "b"}, "rejected", id="no rejected"),
    pytest.param(BC | {"prompt": "a", "chosen": 7}, "chosen", id="number"),
    pytest.param(BC | {"prompt": "a", "chosen": None}, "chosen", id="null"),
    pytest.param(BC | {"prompt": 7}, "prompt", id="prompt a number"),
    pytest.param(BC, "prompt", id="no prompt"),
    pytest.param(BC | {"instruction": "a", "input": 7}, "input", id="input a number"),
    pytest.param(BC | {"prompt": "a", "chosen": {"text": "b"}}, "chosen", id="object"),
    pytest.param({"chosen": MESSAGES[:1], "rejected": MESSAGES}, "chosen", id="no answer"),
    pytest.param({"chosen": MESSAGES, "rejected": []}, "rejected", id="no messages"),
    pytest.param({"chosen": MESSAGES, "rejected": ["c"]}, "rejected", id="not messages"),
    pytest.param({"chosen": MESSAGES, "rejected": [{"role": "tool", "content": "c"}]}, "rejected", id="unknown role"),
    pytest.param(BC | {"prompt": []}, "prompt", id="empty prompt"),
    pytest.param({}, "chosen", id="empty row"),
])
def test_a_wrong_field_is_named_with_file_and_row(refused, record, field):
    """str(value) would train on "None" and "7". A KeyError does not name file and row."""
    write_jsonl("rows.jsonl", [*GOOD, record])
    refused(train_pref.main, pref(data="rows.jsonl"), "rows.jsonl", "row 21", repr(field))

def test_supervised_data_without_an_answer_is_refused(refused):
    """The field may have four names. If none is there, the message must say which fields the row has."""
    write_jsonl("rows.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "answer": "b"}])
    refused(train_sft.main, ["--data", "rows.jsonl", *SFT], "rows.jsonl", "row 2", "answer")

HH_ROUNDS = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"

@pytest.mark.parametrize("change, words, flags", [
    pytest.param({"chosen": " "}, ("empty", "20"), (), id="empty chosen"),
    pytest.param({"rejected": ""}, ("empty", "20"), (), id="empty rejected"),
    pytest.param({"chosen": "x", "rejected": "x"}, ("20",), (), id="identical"),
    pytest.param({"prompt": "x" * 100}, ("room", "20"), (), id="prompt too long"),
    pytest.param({"prompt": "x" * 10}, ("room", "20"), ("--max_len", "10"), id="prompt as long as max_len"),
])
def test_when_no_row_is_left_the_reason_is_said(refused, change, words, flags):
    """Without rows the loop would divide by 0, where the reason is no longer known."""
    rows = [row | change for row in GOOD]
    write_jsonl("rows.jsonl", [row | {"prompt": f"{i:02d}{row['prompt']}"} for i, row in enumerate(rows)])
    refused(train_pref.main, pref(*flags, data="rows.jsonl"), "rows.jsonl", *words)

def test_when_no_prompt_is_left_the_reason_is_said(refused):
    """Whole files of HH are multi-turn. "0 different prompts" alone would look like an empty file."""
    Path("hh").mkdir()
    write_jsonl("hh/train.jsonl", [{"chosen": HH_ROUNDS, "rejected": HH_ROUNDS} for _ in range(3)])
    refused(train_pref.main, pref("--data_dir", "hh", data="hh"), "hh", "single-turn")

def test_a_data_dir_without_files_is_named(refused):
    """A typo in the folder must not fall back to the hub."""
    Path("empty").mkdir()
    for folder in ("empty", "gone"):
        refused(train_sft.main, ["--data", "hh", "--data_dir", folder, *SFT], folder, ".jsonl")

# ---------------------------------------------------------------------------------------------------------------------
# what is not in reach

def boom(*args, **kwargs):
    raise ConnectionError("Max retries exceeded\nwith url: /api")

def test_the_hub_out_of_reach_for_data_says_what_to_do(refused, monkeypatch):
    """The client's own message is a chain of five tracebacks."""
    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", boom)
    refused(train_sft.main, ["--data", "hh", *SFT], "hh", "--data_dir", "HF_HOME")

def test_the_hub_out_of_reach_for_weights_says_what_to_do(refused, monkeypatch):
    """Compute nodes often have no network."""
    monkeypatch.setattr(pytest.importorskip("huggingface_hub"), "snapshot_download", boom)
    refused(train_sft.main, ["--data", "good.jsonl", "--init_from", "gpt2"], "gpt2", "folder", "HF_HOME")

def test_the_tokenizers_files_out_of_reach_say_what_to_do(refused, monkeypatch):
    """If a hash does not match, tiktoken deletes the cached file and asks the network."""
    monkeypatch.setattr(data, "get_tokenizer", OWN_GET_TOKENIZER)
    monkeypatch.setattr(tokenizers.tiktoken, "get_encoding", boom)
    refused(train_sft.main, ["--data", "good.jsonl", *SFT], "TIKTOKEN_CACHE_DIR")

def test_a_typo_in_data_is_answered_before_the_tokenizer_is_fetched(refused, monkeypatch):
    """Offline, "toyy" would lead to advice about GPT-2's files. Online, they would be downloaded first."""
    monkeypatch.setattr(data, "get_tokenizer", OWN_GET_TOKENIZER)
    monkeypatch.setattr(tokenizers.tiktoken, "get_encoding", boom)
    for main, argv in ((train_sft.main, ["--data", "toyy", *SFT]), (train_pref.main, pref(data="toyy"))):
        refused(main, argv, "toyy", "hh")

# ---------------------------------------------------------------------------------------------------------------------
# models

def change_config(**change):
    path = Path("sft/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

def cut(name, keep):
    Path(name).write_bytes(Path(name).read_bytes()[:keep])

WEIGHTS, CONFIG = "sft/model.safetensors", "sft/config.json"

@pytest.mark.parametrize("damage, words", [
    pytest.param(lambda: os.remove(WEIGHTS), ("sft", "model.safetensors"), id="no weights"),
    pytest.param(lambda: os.remove(CONFIG), ("config.json",), id="no config"),
    pytest.param(lambda: cut(CONFIG, 40), ("config.json", "JSON"), id="half a config"),
    pytest.param(lambda: change_config(model_type="llama"), ("config.json", "llama", "gpt2"), id="llama"),
    pytest.param(lambda: change_config(layer_norm_epsilon=1e-6), ("config.json", "layer_norm_epsilon"), id="epsilon"),
    pytest.param(lambda: change_config(activation_function="relu"), ("config.json", "relu"), id="relu"),
    pytest.param(lambda: change_config(n_layer=2), ("model.safetensors", "n_layer"), id="layers"),
    pytest.param(lambda: change_config(n_embd=32), ("model.safetensors", "shape"), id="width"),
    pytest.param(lambda: cut(WEIGHTS, 20_000), ("model.safetensors",), id="half"),
    pytest.param(lambda: cut(WEIGHTS, 4), ("model.safetensors",), id="4 bytes"),
    pytest.param(lambda: cut(WEIGHTS, 0), ("model.safetensors",), id="0 bytes"),
])
def test_a_model_that_cannot_be_loaded_is_named(refused, damage, words):
    """Loaded in part, it would train from random weights, and its results would only look bad."""
    damage()
    for main in (train_sft.main, train_pref.main):
        refused(main, pref(), *words)

def test_a_model_that_is_not_there_gets_the_names(refused):
    """A name with a typo must not be looked up on the hub, where somebody else may have taken it."""
    refused(train_pref.main, pref(init_from="gpt3"), "gpt3", "gpt2-xl", "folder")

def test_a_model_with_another_vocabulary_than_the_data_is_refused(refused):
    """Ids beyond the embedding crash much later on a GPU. A larger vocabulary silently trains on the wrong tokens."""
    for main in (train_sft.main, train_pref.main):
        refused(main, pref(init_from=str(OTHER_MODEL)), "160", "vocabulary")

def test_a_model_shorter_than_max_len_is_refused(refused):
    """Positions beyond block_size have no embedding. The first long batch would stop the run, perhaps after an hour."""
    for main in (train_sft.main, train_pref.main):
        refused(main, pref("--max_len", "65"), "--max_len", "65", "64")

def test_heads_that_do_not_divide_the_width_are_refused(refused):
    """Attention splits n_embd into n_head parts. Without the check, a view would fail in the first batch."""
    refused(train_sft.main, ["--data", "good.jsonl", *SFT, "--n_head", "3"], "n_embd", "n_head", "3")

def test_own_data_without_an_sft_run_says_how_to_make_one(refused):
    """On the toy world the SFT policy is trained automatically. On real data this would take hours."""
    refused(train_pref.main, ["--data", "good.jsonl", *PREF], "train_sft.py", "good.jsonl", "--init_from")

# ---------------------------------------------------------------------------------------------------------------------
# flags

@pytest.mark.parametrize("out_dir", ["sft", "papers", "note.txt"])
def test_nothing_is_written_over(refused, out_dir):
    """--out_dir may also be a folder without a run, or a file, and both are somebody's work."""
    Path("papers").mkdir()
    Path("papers/a.txt").write_text("mine")
    Path("note.txt").write_text("mine")
    for main, argv in ((train_sft.main, ["--data", "good.jsonl", *SFT]), (train_pref.main, pref())):
        refused(main, [*argv, "--out_dir", out_dir], "--out_dir", out_dir)

def test_an_unknown_loss_gets_the_names(refused):
    """Papers and libraries call the same loss by several names."""
    refused(train_pref.main, pref("--loss", "orpheus"), "orpheus", "dpo", "ipo", "slic")

@pytest.mark.parametrize("loss, flag, value, takes", [
    ("dpo", "label_smoothing", "0.1", "--beta"),
    ("ipo", "divergence", "jsd", "--beta"),
    ("slic", "beta", "0.1", "--delta"),
    ("sft", "beta", "0.1", "no hyperparameter"),
])
def test_a_flag_that_the_loss_does_not_take_is_refused_with_those_it_takes(refused, loss, flag, value, takes):
    """If it were ignored, a sweep over it would give the same run five times."""
    refused(train_pref.main, pref("--loss", loss, f"--{flag}", value), f"--{flag}", loss, takes)

@pytest.mark.parametrize("argv, words", [
    (("dpo", "--beta", "0"), ("beta", "0")),
    (("dpo", "--beta", "-1"), ("beta", "-1")),
    (("dpo", "--beta", "nan"), ("beta", "nan")),
    (("cdpo", "--label_smoothing", "0.5"), ("label_smoothing", "0.5")),
    (("cdpo", "--label_smoothing", "-0.1"), ("label_smoothing",)),
    (("fdpo", "--divergence", "renyi"), ("renyi", "jsd", "forward_kl")),
    (("fdpo", "--alpha", "0"), ("alpha",)),
    (("slic", "--delta", "0"), ("delta",)),
    (("dpo", "--beta", "big"), ("--beta", "big")),
], ids=" ".join)
def test_a_hyperparameter_out_of_its_range_is_refused_at_once(refused, argv, words):
    """With label_smoothing 0.5 there is no gradient, and above it every pair is reversed. Both would run to the end."""
    refused(train_pref.main, pref("--loss", *argv), *words)

FROM_TOY = ("--n_prompts", "2")    # for runs with data="toy"
FROM_GOOD = ("--data", "good.jsonl")

@pytest.mark.parametrize("main, argv, words", [
    pytest.param(train_pref.main, pref("--adapter_rank", "8"), ("--adapter_rank", "--adapter"), id="adapter_rank"),
    pytest.param(train_pref.main, pref("--adapter", "parallel", "--adapter_init", "neurons"),
                 ("--adapter_init", "replace"), id="adapter_init"),
    pytest.param(train_pref.main, pref("--n_prompts", "8"), ("--n_prompts", "toy"), id="n_prompts"),
    pytest.param(train_pref.main, pref("--data_dir", "."), ("--data_dir", "hh"), id="pref data_dir"),
    pytest.param(train_pref.main, pref("--data_dir", ".", *FROM_TOY, data="toy"),
                 ("--data_dir", "toy"), id="pref toy data_dir"),
    pytest.param(train_pref.main, pref("--max_prompt_len", "5", *FROM_TOY, data="toy"),
                 ("--max_prompt_len", "toy"), id="pref toy max_prompt_len"),
    pytest.param(train_sft.main, ["--data", "toy", "--data_dir", ".", *SFT],
                 ("--data_dir", "toy"), id="sft toy data_dir"),
    pytest.param(train_sft.main, [*FROM_GOOD, "--data_dir", ".", *SFT],
                 ("--data_dir", "good.jsonl"), id="sft data_dir"),
    pytest.param(train_sft.main, [*FROM_GOOD, "--init_from", "sft", "--n_layer", "2"],
                 ("--n_layer", "--init_from"), id="n_layer"),
])
def test_a_flag_without_effect_is_refused(refused, main, argv, words):
    """If it were ignored, the user would believe that it had an effect."""
    refused(main, argv, *words)

@pytest.mark.parametrize("flag, value", [
    ("--batch_size", "0"),
    ("--grad_accum", "0"),
    ("--max_steps", "0"),
    ("--eval_every", "-1"),
    ("--max_len", "0"),
    ("--lr", "-1"),
    ("--dropout", "1.5"),
    ("--max_steps", "many"),
])
def test_a_number_out_of_its_range_is_refused(refused, flag, value):
    """Some would divide by 0 in the loop. The optimizer refuses lr only after the run's folder is made."""
    refused(train_sft.main, ["--data", "good.jsonl", *SFT, flag, value], flag.strip("-"), value)

def test_a_toy_run_without_room_for_a_completion_is_refused(refused):
    """The prompt has 12 tokens. Empty samples would all have the same reward, so no pair would differ."""
    refused(train_pref.main, pref("--max_len", "12", "--n_prompts", "2", data="toy"), "--max_len", "12")

def test_no_pair_that_differs_is_an_error_that_says_so(here, capsys, monkeypatch):
    """A policy may get the reward 1/2 for every sample. Without pairs the loop would divide by 0."""
    monkeypatch.setattr(toy, "reward", lambda text: 0.5)
    with pytest.raises(SystemExit) as end:
        train_pref.main(pref("--n_prompts", "2", "--max_len", "16", data="toy"))
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and "error: " in err and "pairs" in err
    assert not (here / "out").exists()

@pytest.mark.parametrize("device", ["cuda:99", "nonsense", ""])
def test_a_device_that_is_not_there_is_refused(refused, device):
    """PyTorch's message depends on how it was built and does not name the flag."""
    for main, argv in (
        (train_sft.main, [*FROM_GOOD, *SFT]),
        (train_pref.main, pref()),
        (evaluation.main, ["--run", "sft"]),
    ):
        refused(main, [*argv, "--device", device], "--device", device)

@pytest.mark.parametrize("main, argv", [
    pytest.param(train_sft.main, [*FROM_GOOD, *SFT, "--max_step", "2"], id="sft"),
    pytest.param(train_pref.main, pref("--loss", "cdpo", "--label_smooth", "0.1"), id="loss"),
    pytest.param(train_pref.main, pref("--eval", "2"), id="pref"),
    pytest.param(evaluation.main, ["--run", "sft", "--n_prompt", "2"], id="eval"),
])
def test_flags_are_never_guessed_from_a_beginning(refused, main, argv):
    """argparse accepts a beginning by default. Then a new flag could change the meaning of old commands."""
    refused(main, argv, argv[-2])

# ---------------------------------------------------------------------------------------------------------------------
# resuming, evaluating

@pytest.mark.parametrize("more", [(), ("--out_dir", "gone"), ("--out_dir", "papers")])
def test_resuming_without_a_run_is_refused(refused, more):
    """A new run in its place would have another length and the old name."""
    Path("papers").mkdir()
    for main in (train_sft.main, train_pref.main):
        refused(main, ["--data", "good.jsonl", "--resume", *more], "--resume", "state.pt")

@pytest.mark.parametrize("flag, value", [
    ("--lr", "0.5"),
    ("--seed", "1"),
    ("--batch_size", "9"),
    ("--max_len", "32"),
    ("--n_embd", "32"),
    ("--data", "good.jsonl"),
])
def test_resuming_with_another_flag_is_refused_by_its_name(refused, flag, value):
    """The result would be half of one run and half of another."""
    err = refused(train_sft.main, ["--resume", "--out_dir", "sft", flag, value], flag)
    assert flag == "--data" or value not in err.split(flag)[1].split(" in ")[0]    # it names the run's value

def test_resuming_with_another_loss_is_refused(refused, mine):
    """Both losses have beta and the same state, so nothing else would notice."""
    refused(train_pref.main, ["--resume", "--out_dir", "mine", "--loss", "ipo"], "--loss", "dpo")

def test_going_on_with_a_preference_run_as_supervised_training_is_refused(refused, mine):
    """The weights have the same names and shapes. Training would continue with another loss and overwrite the run."""
    refused(train_sft.main, ["--resume", "--max_steps", "4", "--out_dir", "mine"], "mine")

def test_going_on_with_a_supervised_run_as_preference_training_is_refused(refused):
    """Preference training would overwrite the run that it starts from."""
    train_sft.main(["--data", "good.jsonl", *SFT])
    refused(train_pref.main, ["--resume", "--max_steps", "4", "--out_dir", "out/good/sft"], "out/good/sft")

def test_resuming_a_run_with_damaged_arguments_is_refused(refused):
    """They are read before the flags are known, so the usual handling of errors does not cover it."""
    cut("sft/args.json", 30)
    refused(train_sft.main, ["--resume", "--out_dir", "sft"], "args.json")

@pytest.mark.parametrize("flags, words", [
    (["--bpe_vocab", "8192"], ["--bpe_vocab", "toy"]),
    (["--bpe_vocab", "100", "--data", "good.jsonl"], ["256"]),
    (["--bpe_vocab", "8192", "--data", "good.jsonl", "--init_from", "gpt2"], ["--bpe_vocab", "--init_from"]),
])
def test_a_part_of_the_vocabulary_that_makes_no_sense_is_refused(refused, flags, words):
    """The toy world and a loaded model have their own vocabulary. Fewer than 256 tokens cannot encode all bytes."""
    refused(train_sft.main, flags, *words)

@pytest.mark.parametrize("folder", ["gone", "papers"])
def test_evaluating_what_is_no_run_is_refused(refused, folder):
    """A model's folder has weights but does not name the data and the reference."""
    Path("papers").mkdir()
    refused(evaluation.main, ["--run", folder], folder, "args.json")

def test_evaluating_against_a_reference_that_has_changed_is_refused(refused, mine):
    """KL and rewards would be relative to another model than the one that training started from."""
    model = GPT.from_pretrained("sft")
    model.transformer.ln_f.bias.data += 0.1
    model.save_pretrained("sft")
    refused(evaluation.main, ["--run", "mine"], "sft", "reference", "fingerprint")

def test_evaluating_with_no_room_for_an_answer_is_refused(refused, mine):
    """Prompts must not be cut silently to make room."""
    refused(evaluation.main, ["--run", "mine", "--max_new_tokens", "64"], "--max_new_tokens", "64")

@pytest.mark.parametrize("name", ["../../evil", "..", "a; touch evil", "$(touch evil)", "-rf"])
def test_a_data_sets_name_makes_no_path_outside_the_run_directory(here, name):
    """A run's folder is named after its data. No name may create anything outside the folder `out`."""
    Path("deep/er").mkdir(parents=True)
    file = Path(f"{name}.jsonl")
    others = lambda: {p for p in here.rglob("*") if "out" not in p.relative_to(here).parts}
    os.chdir("deep/er")
    shutil.copy(here / "good.jsonl", file)
    before = others()
    train_sft.main([f"--data={file}", *SFT])
    assert others() == before and len(list(Path("out").rglob("result.json"))) == 1
    assert len(list(here.rglob("result.json"))) == 1 + len(list((here / "sft").glob("result.json")))

# ---------------------------------------------------------------------------------------------------------------------
# from the shell

@pytest.mark.slow
def test_the_shell_sees_status_2_and_no_traceback(here):
    """Within pytest a SystemExit looks right, even if an import or an exit handler prints more."""
    commands = [
        ("train_sft.py", "--data_dir", "."),
        ("train_pref.py", "--loss", "none"),
        ("eval.py", "--run", "papers"),
    ]
    pipes = dict(cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = [subprocess.Popen([sys.executable, str(ROOT / script), *argv], **pipes) for script, *argv in commands]
    for command, process in zip(commands, running, strict=True):
        _, err = process.communicate()
        assert process.returncode == 2 and "Traceback" not in err, (command, err)
        assert err.count("\n") == 1 and "error: " in err, (command, err)
    assert not (here / "out").exists()
