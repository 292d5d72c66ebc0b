"""
What a user can get wrong: each mistake ends in exit status 2 and one line that names the file, row, field or remedy, before anything
is written. A traceback sends people to the wrong place; a default that goes on in silence, to a wrong result.
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
SFT = ("--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--batch_size", "8", "--max_steps", "2", "--eval_every", "2")
PREF = ("--max_steps", "2", "--eval_every", "2", "--batch_size", "8", "--warmup_steps", "0")

def write_jsonl(path, records):
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)

@pytest.fixture(autouse=True)
def here(in_tmp, own_tokenizer, sft_run):
    """An empty folder with a run (`sft`) and a file of pairs (`good.jsonl`); local files are tokenized without GPT-2's files."""
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
    """That run as `mine`, trained from `sft` on `good.jsonl`."""
    shutil.copytree(pref_run, "mine")

def everything(folder):
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(Path(folder).rglob("*"))}

@pytest.fixture
def refused(here, capsys):
    """refused(main, argv, *words): main ends with status 2 and one line that holds the words, and the folder is as it was."""
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
    """Otherwise every refusal below might have another cause."""
    assert (here / "sft" / "result.json").is_file() and (here / "mine" / "result.json").is_file()
    train_sft.main(["--data", "good.jsonl", *SFT])
    assert (here / "out" / "good" / "sft" / "result.json").is_file() and capsys.readouterr().err == ""

def test_a_file_that_is_not_there_is_named(refused):
    """open()'s message alone does not say that --data also takes names."""
    for main, argv in ((train_sft.main, ["--data", "gone.jsonl"]), (train_pref.main, pref(data="gone.jsonl"))):
        refused(main, argv, "gone.jsonl", "no such file")

@pytest.mark.parametrize("name", ["imbd", "Toy", "good.txt", "good", "."])
def test_an_unknown_data_set_gets_the_names_and_the_file_types(refused, name):
    """A typo in a name must not be looked for on the hub, nor end in "no such file" alone."""
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
    """A download cut short, an Excel export, the wrong suffix. The decoder's message knows neither the file nor the row."""
    content, words = DAMAGED[name]
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(train_pref.main, pref(data=name), name, *words)

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

@pytest.mark.parametrize("record,field", [
    ({"prompt": "a", "chosen": "b"}, "rejected"), ({"prompt": "a", "chosen": 7, "rejected": "c"}, "chosen"),
    ({"prompt": "a", "chosen": None, "rejected": "c"}, "chosen"), ({"prompt": 7, "chosen": "b", "rejected": "c"}, "prompt"),
    ({"chosen": "b", "rejected": "c"}, "prompt"), ({"instruction": "a", "input": 7, "chosen": "b", "rejected": "c"}, "input"),
    ({"prompt": "a", "chosen": {"text": "b"}, "rejected": "c"}, "chosen"), ({"chosen": MESSAGES[:1], "rejected": MESSAGES}, "chosen"),
    ({"chosen": MESSAGES, "rejected": []}, "rejected"), ({"chosen": MESSAGES, "rejected": ["c"]}, "rejected"),
    ({"chosen": MESSAGES, "rejected": [{"role": "tool", "content": "c"}]}, "rejected"),
    ({"prompt": [], "chosen": "b", "rejected": "c"}, "prompt"), ({}, "chosen"),
], ids=["no rejected", "number", "null", "prompt a number", "no prompt", "input a number", "object", "no answer", "no messages",
        "not messages", "unknown role", "empty prompt", "empty row"])
def test_a_wrong_field_is_named_with_file_and_row(refused, record, field):
    """str(value) would train on "None" and "7"; a KeyError does not say where."""
    write_jsonl("rows.jsonl", [*GOOD, record])
    refused(train_pref.main, pref(data="rows.jsonl"), "rows.jsonl", "row 21", repr(field))

def test_supervised_data_without_an_answer_is_refused(refused):
    """The field may have four names; none of them is there."""
    write_jsonl("rows.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "answer": "b"}])
    refused(train_sft.main, ["--data", "rows.jsonl", *SFT], "rows.jsonl", "row 2", "answer")

HH_ROUNDS = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"

@pytest.mark.parametrize("change,words,flags", [
    ({"chosen": " "}, ("empty", "20"), ()), ({"rejected": ""}, ("empty", "20"), ()), ({"chosen": "x", "rejected": "x"}, ("20",), ()),
    ({"prompt": "x" * 100}, ("room", "20"), ()), ({"prompt": "x" * 10}, ("room", "20"), ("--max_len", "10")),
], ids=["empty chosen", "empty rejected", "identical", "prompt too long", "prompt as long as max_len"])
def test_when_no_row_is_left_the_reason_is_said(refused, change, words, flags):
    """Training on nothing would divide by 0 somewhere in the loop; the reason is known only here."""
    write_jsonl("rows.jsonl", [{**r, **change, "prompt": f"{i:02d}" + change.get("prompt", r["prompt"])} for i, r in enumerate(GOOD)])
    refused(train_pref.main, pref(*flags, data="rows.jsonl"), "rows.jsonl", *words)

def test_when_no_prompt_is_left_the_reason_is_said(refused):
    """Whole files of HH are multi-turn: "0 different prompts" alone would look like an empty file."""
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
    """The client's own answer is a chain of five tracebacks."""
    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", boom)
    refused(train_sft.main, ["--data", "hh", *SFT], "hh", "--data_dir", "HF_HOME")

def test_the_hub_out_of_reach_for_weights_says_what_to_do(refused, monkeypatch):
    """Compute nodes often have no network."""
    monkeypatch.setattr(pytest.importorskip("huggingface_hub"), "snapshot_download", boom)
    refused(train_sft.main, ["--data", "good.jsonl", "--init_from", "gpt2"], "gpt2", "folder", "HF_HOME")

def test_the_tokenizers_files_out_of_reach_say_what_to_do(refused, monkeypatch):
    """On a hash mismatch tiktoken even deletes the cached file and goes to the network."""
    monkeypatch.setattr(data, "get_tokenizer", OWN_GET_TOKENIZER)
    monkeypatch.setattr(tokenizers.tiktoken, "get_encoding", boom)
    refused(train_sft.main, ["--data", "good.jsonl", *SFT], "TIKTOKEN_CACHE_DIR")

def test_a_typo_in_data_is_answered_before_the_tokenizer_is_fetched(refused, monkeypatch):
    """Offline, "toyy" would be answered with advice about GPT-2's files; online, they would be downloaded first."""
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

@pytest.mark.parametrize("damage,words", [
    (lambda: os.remove("sft/model.safetensors"), ("sft", "model.safetensors")),
    (lambda: os.remove("sft/config.json"), ("config.json",)),
    (lambda: cut("sft/config.json", 40), ("config.json", "JSON")),
    (lambda: change_config(model_type="llama"), ("config.json", "llama", "gpt2")),
    (lambda: change_config(layer_norm_epsilon=1e-6), ("config.json", "layer_norm_epsilon")),
    (lambda: change_config(activation_function="relu"), ("config.json", "relu")),
    (lambda: change_config(n_layer=2), ("model.safetensors", "n_layer")),
    (lambda: change_config(n_embd=32), ("model.safetensors", "shape")),
    (lambda: cut("sft/model.safetensors", 20_000), ("model.safetensors",)),
    (lambda: cut("sft/model.safetensors", 4), ("model.safetensors",)),
    (lambda: cut("sft/model.safetensors", 0), ("model.safetensors",)),
], ids=["no weights", "no config", "half a config", "llama", "epsilon", "relu", "layers", "width", "half", "4 bytes", "0 bytes"])
def test_a_model_that_cannot_be_loaded_is_named(refused, damage, words):
    """Loaded with strict=False, or half, it would train from noise and only look bad."""
    damage()
    for main in (train_sft.main, train_pref.main):
        refused(main, pref(), *words)

def test_a_model_that_is_not_there_gets_the_names(refused):
    """A typo must not be asked of the hub, where somebody else may have taken that name."""
    refused(train_pref.main, pref(init_from="gpt3"), "gpt3", "gpt2-xl", "folder")

def test_a_model_with_another_vocabulary_than_the_data_is_refused(refused):
    """Ids beyond the embedding crash on a GPU far from here; a larger vocabulary trains in silence on tokens that mean others."""
    for main in (train_sft.main, train_pref.main):
        refused(main, pref(init_from=str(OTHER_MODEL)), "160", "vocabulary")

def test_a_model_shorter_than_max_len_is_refused(refused):
    """Positions beyond block_size have no embedding; the first long batch would stop the run, perhaps after an hour."""
    for main in (train_sft.main, train_pref.main):
        refused(main, pref("--max_len", "65"), "--max_len", "65", "64")

def test_heads_that_do_not_divide_the_width_are_refused(refused):
    """Attention cuts n_embd into n_head parts; a view in the first batch is a late place to find out."""
    refused(train_sft.main, ["--data", "good.jsonl", *SFT, "--n_head", "3"], "n_embd", "n_head", "3")

def test_own_data_without_an_sft_run_says_how_to_make_one(refused):
    """On the toy world the SFT policy is made unasked; on real data this would take hours that nobody asked for."""
    refused(train_pref.main, ["--data", "good.jsonl", *PREF], "train_sft.py", "good.jsonl", "--init_from")

# ---------------------------------------------------------------------------------------------------------------------
# flags

@pytest.mark.parametrize("out_dir", ["sft", "papers", "note.txt"])
def test_nothing_is_written_over(refused, out_dir):
    """Also a folder that holds no run, and a file."""
    Path("papers").mkdir()
    Path("papers/a.txt").write_text("mine")
    Path("note.txt").write_text("mine")
    for main, argv in ((train_sft.main, ["--data", "good.jsonl", *SFT]), (train_pref.main, pref())):
        refused(main, [*argv, "--out_dir", out_dir], "--out_dir", out_dir)

def test_an_unknown_loss_gets_the_names(refused):
    """Papers and libraries call the same loss by several names."""
    refused(train_pref.main, pref("--loss", "orpheus"), "orpheus", "dpo", "ipo", "slic")

@pytest.mark.parametrize("loss,flag,value,takes", [("dpo", "label_smoothing", "0.1", "--beta"), ("ipo", "divergence", "jsd", "--beta"),
                                                   ("slic", "beta", "0.1", "--delta"), ("sft", "beta", "0.1", "no hyperparameter")])
def test_a_flag_that_the_loss_does_not_take_is_refused_with_those_it_takes(refused, loss, flag, value, takes):
    """Taken and ignored, a sweep over it gives the same run five times."""
    refused(train_pref.main, pref("--loss", loss, f"--{flag}", value), f"--{flag}", loss, takes)

@pytest.mark.parametrize("argv,words", [
    (("dpo", "--beta", "0"), ("beta", "0")), (("dpo", "--beta", "-1"), ("beta", "-1")), (("dpo", "--beta", "nan"), ("beta", "nan")),
    (("cdpo", "--label_smoothing", "0.5"), ("label_smoothing", "0.5")), (("cdpo", "--label_smoothing", "-0.1"), ("label_smoothing",)),
    (("fdpo", "--divergence", "renyi"), ("renyi", "jsd", "forward_kl")), (("fdpo", "--alpha", "0"), ("alpha",)),
    (("slic", "--delta", "0"), ("delta",)), (("dpo", "--beta", "big"), ("--beta", "big"))], ids=" ".join)
def test_a_hyperparameter_out_of_its_range_is_refused_at_once(refused, argv, words):
    """label_smoothing 0.5 has no gradient and above it all pairs turn round: both would run to the end."""
    refused(train_pref.main, pref("--loss", *argv), *words)

@pytest.mark.parametrize("main,argv,words", [
    (train_pref.main, pref("--adapter_rank", "8"), ("--adapter_rank", "--adapter")),
    (train_pref.main, pref("--adapter", "parallel", "--adapter_init", "neurons"), ("--adapter_init", "replace")),
    (train_pref.main, pref("--n_prompts", "8"), ("--n_prompts", "toy")),
    (train_pref.main, pref("--data_dir", "."), ("--data_dir", "hh")),
    (train_pref.main, pref("--data_dir", ".", "--n_prompts", "2", data="toy"), ("--data_dir", "toy")),
    (train_pref.main, pref("--max_prompt_len", "5", "--n_prompts", "2", data="toy"), ("--max_prompt_len", "toy")),
    (train_sft.main, ["--data", "toy", "--data_dir", ".", *SFT], ("--data_dir", "toy")),
    (train_sft.main, ["--data", "good.jsonl", "--data_dir", ".", *SFT], ("--data_dir", "good.jsonl")),
    (train_sft.main, ["--data", "good.jsonl", "--init_from", "sft", "--n_layer", "2"], ("--n_layer", "--init_from")),
], ids=["adapter_rank", "adapter_init", "n_prompts", "pref data_dir", "pref toy data_dir", "pref toy max_prompt_len", "sft toy data_dir",
        "sft data_dir", "n_layer"])
def test_a_flag_without_effect_is_refused(refused, main, argv, words):
    """Nothing is ignored silently: whoever sets a flag believes that it did something."""
    refused(main, argv, *words)

@pytest.mark.parametrize("flag,value", [("--batch_size", "0"), ("--grad_accum", "0"), ("--max_steps", "0"), ("--eval_every", "-1"),
                                        ("--max_len", "0"), ("--lr", "-1"), ("--dropout", "1.5"), ("--max_steps", "many")])
def test_a_number_out_of_its_range_is_refused(refused, flag, value):
    """A modulo by 0, or an optimizer that refuses lr after the run's folder was made."""
    refused(train_sft.main, ["--data", "good.jsonl", *SFT, flag, value], flag.strip("-"), value)

def test_a_toy_run_without_room_for_a_completion_is_refused(refused):
    """The prompt is 12 tokens: samples of none all have the same reward, so no pair differs."""
    refused(train_pref.main, pref("--max_len", "12", "--n_prompts", "2", data="toy"), "--max_len", "12")

def test_no_pair_that_differs_is_an_error_that_says_so(here, capsys, monkeypatch):
    """A policy that says nothing gets 1/2 for everything; the loop would divide by 0. The pairs may stay with the SFT run."""
    monkeypatch.setattr(toy, "reward", lambda text: 0.5)
    with pytest.raises(SystemExit) as end:
        train_pref.main(pref("--n_prompts", "2", "--max_len", "16", data="toy"))
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and "error: " in err and "pairs" in err
    assert not (here / "out").exists()

@pytest.mark.parametrize("device", ["cuda:99", "nonsense", ""])
def test_a_device_that_is_not_there_is_refused(refused, device):
    """torch's own words depend on how it was built; the flag's name does not."""
    for main, argv in ((train_sft.main, ["--data", "good.jsonl", *SFT]), (train_pref.main, pref()), (evaluation.main, ["--run", "sft"])):
        refused(main, [*argv, "--device", device], "--device", device)

@pytest.mark.parametrize("main,argv", [
    (train_sft.main, ["--data", "good.jsonl", *SFT, "--max_step", "2"]), (train_pref.main, pref("--loss", "cdpo", "--label_smooth", "0.1")),
    (train_pref.main, pref("--eval", "2")), (evaluation.main, ["--run", "sft", "--n_prompt", "2"])], ids=["sft", "loss", "pref", "eval"])
def test_flags_are_never_guessed_from_a_beginning(refused, main, argv):
    """A new flag would change the meaning of old commands; and --max_len is a beginning of nothing only today."""
    refused(main, argv, argv[-2])

# ---------------------------------------------------------------------------------------------------------------------
# going on

@pytest.mark.parametrize("more", [(), ("--out_dir", "gone"), ("--out_dir", "papers")])
def test_resuming_without_a_run_is_refused(refused, more):
    """Starting anew instead would be a run of another length under the old name."""
    Path("papers").mkdir()
    for main in (train_sft.main, train_pref.main):
        refused(main, ["--data", "good.jsonl", "--resume", *more], "--resume", "state.pt")

@pytest.mark.parametrize("flag,value", [("--lr", "0.5"), ("--seed", "1"), ("--batch_size", "9"), ("--max_len", "32"), ("--n_embd", "32"),
                                        ("--data", "good.jsonl")])
def test_resuming_with_another_flag_is_refused_by_its_name(refused, flag, value):
    """The second half would be another run's."""
    err = refused(train_sft.main, ["--resume", "--out_dir", "sft", flag, value], flag)
    assert flag == "--data" or value not in err.split(flag)[1].split(" in ")[0]    # it says what it was

def test_resuming_with_another_loss_is_refused(refused, mine):
    """Both losses have beta and the same state, so nothing else would notice."""
    refused(train_pref.main, ["--resume", "--out_dir", "mine", "--loss", "ipo"], "--loss", "dpo")

def test_going_on_with_a_preference_run_as_supervised_training_is_refused(refused, mine):
    """The weights have the same names and shapes: training would go on with the other loss, and write over the run."""
    refused(train_sft.main, ["--resume", "--max_steps", "4", "--out_dir", "mine"], "mine")

def test_going_on_with_a_supervised_run_as_preference_training_is_refused(refused):
    """The run that preference training starts from would be written over by what was to start from it."""
    train_sft.main(["--data", "good.jsonl", *SFT])
    refused(train_pref.main, ["--resume", "--max_steps", "4", "--out_dir", "out/good/sft"], "out/good/sft")

def test_resuming_a_run_with_damaged_arguments_is_refused(refused):
    """It happens before the flags are known, so outside the usual net."""
    cut("sft/args.json", 30)
    refused(train_sft.main, ["--resume", "--out_dir", "sft"], "args.json")

@pytest.mark.parametrize("flags, words", [
    (["--bpe_vocab", "8192"], ["--bpe_vocab", "toy"]), (["--bpe_vocab", "100", "--data", "good.jsonl"], ["256"]),
    (["--bpe_vocab", "8192", "--data", "good.jsonl", "--init_from", "gpt2"], ["--bpe_vocab", "--init_from"])])
def test_a_part_of_the_vocabulary_that_makes_no_sense_is_refused(refused, flags, words):
    """The toy world has its own words, a model that is there its own vocabulary, and bytes are needed."""
    refused(train_sft.main, flags, *words)

@pytest.mark.parametrize("folder", ["gone", "papers"])
def test_evaluating_what_is_no_run_is_refused(refused, folder):
    """A model's folder has weights but does not say which data and which reference."""
    Path("papers").mkdir()
    refused(evaluation.main, ["--run", folder], folder, "args.json")

def test_evaluating_against_a_reference_that_has_changed_is_refused(refused, mine):
    """KL and rewards would be measured from another model than the one that training started from."""
    model = GPT.from_pretrained("sft")
    model.transformer.ln_f.bias.data += 0.1
    model.save_pretrained("sft")
    refused(evaluation.main, ["--run", "mine"], "sft", "reference", "fingerprint")

def test_evaluating_with_no_room_for_an_answer_is_refused(refused, mine):
    """Nothing is cut silently to make it fit."""
    refused(evaluation.main, ["--run", "mine", "--max_new_tokens", "64"], "--max_new_tokens", "64")

@pytest.mark.parametrize("name", ["../../evil", "..", "a; touch evil", "$(touch evil)", "-rf"])
def test_a_data_sets_name_makes_no_path_outside_the_run_directory(here, name):
    """A run's folder is named after its data: nothing but the folder `out` may come to be, whatever the name."""
    Path("deep/er").mkdir(parents=True)
    file, others = Path(f"{name}.jsonl"), lambda: {p for p in here.rglob("*") if "out" not in p.relative_to(here).parts}
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
    """In-process a SystemExit looks right even if an import, or what runs at exit, prints more."""
    commands = [("train_sft.py", "--data_dir", "."), ("train_pref.py", "--loss", "none"), ("eval.py", "--run", "papers")]
    pipes = dict(cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = [subprocess.Popen([sys.executable, str(ROOT / script), *argv], **pipes) for script, *argv in commands]
    for command, process in zip(commands, running, strict=True):
        _, err = process.communicate()
        assert process.returncode == 2 and "Traceback" not in err, (command, err)
        assert err.count("\n") == 1 and "error: " in err, (command, err)
    assert not (here / "out").exists()
