"""
Tests of models and tokenizers from elsewhere: shards, prefixes, padded vocabularies, untied heads, other tokenizers.

Also: bytes as tokens, texts that no tokenizer takes, and an adapter run as the start of another run.
"""
import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import tiktoken
import torch
from safetensors.torch import load_file, save_file

import adapters
from support import checkpoint, cli, sources, tokenizers
import data
import eval as evaluation
import loop
import train_pref
import train_sft
from model import GPT, GPTConfig, ScalarGPT, fingerprint
from rlhf import train_ppo, train_reward
from test_loop import log_rows

# ---------------------------------------------------------------------------------------------------------------------
# helpers

def tiny(vocab_size=50, cls=GPT, seed=0):
    torch.manual_seed(seed)
    return cls(GPTConfig(block_size=32, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=8)).eval()

def logits_of(model, vocab_size=50):
    with torch.no_grad():
        return model.eval()(torch.randint(vocab_size, (2, 9), generator=torch.Generator().manual_seed(1)))

def refused(call, *words):
    """call() raises a ValueError or OSError of one line with all the words."""
    with pytest.raises((ValueError, OSError)) as e:
        call()
    assert "\n" not in str(e.value)
    assert not [w for w in words if str(w) not in str(e.value)], str(e.value)

def stopped(capsys, main, argv, *words):
    """main(argv) ends with status 2 and one line on stderr with all the words."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in argv])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and "error: " in err, err
    assert not [w for w in words if str(w) not in err], err

def rewritten(folder, change, vocab_size=50, cls=GPT):
    """Our tiny model in `folder`, after change(state) on the weights of its model.safetensors."""
    tiny(vocab_size, cls).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder

def configured(folder, **change):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

def write_jsonl(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)

PAIRS = [{"prompt": f"the plot {i}", "chosen": f" was fine {i}", "rejected": " was dull"} for i in range(20)]
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

@pytest.fixture(scope="module")
def gpt2_like():
    """A tokenizer of GPT-2's size and pattern without its files: its bytes, and 50,000 merges of two bytes."""
    tokens = [bytes([b]) for b in tokenizers.byte_order()]
    tokens += [a + b for a, b in itertools.product(tokens, tokens)][:50_000]
    ranks = {token: i for i, token in enumerate(tokens)}
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": 50_256})

@pytest.fixture
def online(monkeypatch, gpt2_like):
    """GPT-2's tokenizer can be loaded."""
    monkeypatch.setattr(tokenizers.tiktoken, "get_encoding", lambda name: gpt2_like)
    return gpt2_like

@pytest.fixture
def offline(monkeypatch):
    """GPT-2's tokenizer cannot be loaded: no files, no network."""
    def no_route(name):
        raise OSError("no route\nto host")
    monkeypatch.setattr(tokenizers.tiktoken, "get_encoding", no_route)

# ---------------------------------------------------------------------------------------------------------------------
# shards

def sharded(folder, kind):
    """Our tiny model in `folder` as three shards and their index, in Hugging Face's layout; returns the index."""
    tiny().save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, end = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}[kind]
    shard_of = {name: f"{stem}-{i % 3 + 1:05}-of-00003.{end}" for i, name in enumerate(sorted(state))}
    for shard in set(shard_of.values()):
        part = {name: state[name] for name in state if shard_of[name] == shard}
        save = save_file if kind == "safetensors" else torch.save
        save(part, folder / shard)
    index = folder / f"{stem}.{end}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shard_of}))
    return index

KINDS = pytest.mark.parametrize("kind", ["safetensors", "bin"])

def reindexed(index, change):
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))

@KINDS
def test_a_model_in_shards_equals_the_same_model_in_one_file(kind, tmp_path):
    """Fine-tuned gpt2-xl models come in shards. Without one of them, its layers would have random weights."""
    sharded(tmp_path, kind)
    assert fingerprint(GPT.from_pretrained(tmp_path)) == fingerprint(tiny())

@pytest.mark.slow
def test_shards_that_transformers_wrote_give_its_logits(tmp_path):
    """transformers defines the layout: names of files and index, and tied weights that are in no shard."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=60, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").is_file() and not (tmp_path / "model.safetensors").exists()
    idx = torch.randint(60, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(GPT.from_pretrained(tmp_path).eval()(idx), theirs(idx).logits, atol=2e-6, rtol=0)

@KINDS
def test_a_shard_that_is_missing_is_named(kind, tmp_path):
    """One of several downloads may fail."""
    sharded(tmp_path, kind)
    shard = next(tmp_path.glob("*-00002-*"))
    shard.unlink()
    refused(lambda: GPT.from_pretrained(tmp_path), shard, "no such file", "index.json")

@KINDS
def test_a_shard_that_was_cut_short_is_named(kind, tmp_path):
    """The other shards are whole, so only the file's own check can find it."""
    sharded(tmp_path, kind)
    shard = next(tmp_path.glob("*-00002-*"))
    shard.write_bytes(shard.read_bytes()[:-40])
    refused(lambda: GPT.from_pretrained(tmp_path), shard, "cut short")

OUTSIDE = ("../x.safetensors", "/x.safetensors", "..", "", ".", "a/x.safetensors", "..\\x.safetensors", "x\0")

@pytest.mark.parametrize("name", OUTSIDE)
def test_a_shard_outside_the_folder_is_refused_before_it_is_opened(name, tmp_path, monkeypatch):
    """The index comes from elsewhere. It must not choose which files of this machine are read."""
    folder = tmp_path / "m"
    index = sharded(folder, "safetensors")
    save_file(load_file(next(folder.glob("*-00001-*"))), tmp_path / "x.safetensors")
    reindexed(index, lambda shard_of: shard_of.update({k: name for k, v in shard_of.items() if "-00001-" in v}))
    real = checkpoint.safe_open
    def opened(path, kind):
        return real(path, kind) if path.parent == folder else pytest.fail("opened")
    monkeypatch.setattr(checkpoint, "safe_open", opened)
    refused(lambda: GPT.from_pretrained(folder), index, "same folder")

@pytest.mark.parametrize("text", [
    '{"weight_map": {',
    "",
    "null",
    "[]",
    "{}",
    '{"weight_map": []}',
    '{"weight_map": {}}',
    '{"weight_map": {"wte.weight": 3}}',
    '{"weight_map": {"wte.weight": null}}',
])
def test_a_damaged_index_is_refused(text, tmp_path):
    """With an empty table a model without weights could be loaded."""
    index = sharded(tmp_path, "safetensors")
    index.write_text(text)
    refused(lambda: GPT.from_pretrained(tmp_path), index)

def test_a_weight_that_its_shard_does_not_hold_is_named(tmp_path):
    """The index may belong to another sharding of the same model."""
    index = sharded(tmp_path, "safetensors")
    key = "transformer.h.1.mlp.c_fc.bias"
    def misplace(shard_of):
        shard_of[key] = next(shard for shard in shard_of.values() if shard != shard_of[key])
    reindexed(index, misplace)
    refused(lambda: GPT.from_pretrained(tmp_path), key, "missing", "index.json")

def test_of_a_weight_in_two_shards_the_one_that_the_index_names_counts(tmp_path):
    """A weight may remain in a shard of an earlier sharding. Without the index, the last file would win."""
    index = sharded(tmp_path, "safetensors")
    key, last = "transformer.h.1.mlp.c_fc.bias", next(tmp_path.glob("*-00003-*"))
    first = next(tmp_path.glob("*-00001-*"))
    moved = load_file(tmp_path / json.loads(index.read_text())["weight_map"][key])[key]
    save_file(load_file(first) | {key: moved}, first)
    save_file(load_file(last) | {key: moved + 1}, last)
    reindexed(index, lambda shard_of: shard_of.update({key: first.name}))
    assert fingerprint(GPT.from_pretrained(tmp_path)) == fingerprint(tiny())

class Touch:
    """An object that creates a file when it is unpickled."""
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")

def test_code_in_a_shard_is_not_run(tmp_path):
    """Each shard is a pickle and needs weights_only=True, as a single file does."""
    sharded(tmp_path, "bin")
    shard = next(tmp_path.glob("*-00002-*"))
    torch.save(torch.load(shard, weights_only=True) | {"extra": Touch(tmp_path / "was here")}, shard)
    refused(lambda: GPT.from_pretrained(tmp_path), shard)
    assert not (tmp_path / "was here").exists()

# ---------------------------------------------------------------------------------------------------------------------
# names and heads

PREFIXES = ("_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod.", "module.module.")

@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("trunk", ["transformer.", ""])
def test_prefixes_of_compile_and_data_parallel_are_taken_off(prefix, trunk, tmp_path):
    """state_dict() of a wrapped model has these prefixes, in the order of the wrapping."""
    def wrap(state):
        for name in list(state):
            state[prefix + name.replace("transformer.", trunk)] = state.pop(name)
    assert fingerprint(GPT.from_pretrained(rewritten(tmp_path, wrap))) == fingerprint(tiny())

def test_a_weight_with_and_without_a_prefix_is_refused(tmp_path):
    """Nobody knows which of the two is the model's. The last in the file would win."""
    key = "transformer.ln_f.bias"
    folder = rewritten(tmp_path, lambda state: state.update({f"module.{key}": state[key] + 1}))
    refused(lambda: GPT.from_pretrained(folder), folder / "model.safetensors", key, "twice")

def test_a_head_that_is_the_embedding_again_is_no_error(tmp_path):
    """Every pytorch_model.bin of the hub has both."""
    def add_head(state):
        state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    folder = rewritten(tmp_path, add_head)
    assert fingerprint(GPT.from_pretrained(folder)) == fingerprint(tiny())

def test_a_head_of_its_own_is_refused_by_name(tmp_path):
    """Without its own head the model would use the embedding instead, and train from there."""
    def untie(state):
        state["lm_head.weight"] = state["transformer.wte.weight"].clone()
        state["lm_head.weight"][3, 5] += 1e-3
    folder = rewritten(tmp_path, untie)
    words = (folder / "model.safetensors", "lm_head.weight", "transformer.wte.weight")
    refused(lambda: GPT.from_pretrained(folder), *words)
    refused(lambda: ScalarGPT.from_pretrained(folder), "lm_head.weight")

# ---------------------------------------------------------------------------------------------------------------------
# a padded vocabulary

def padded(folder, n, cls=GPT, head=False):
    """A model in `folder` with GPT-2's vocabulary and random rows up to n. head: also lm_head, with other such rows."""
    def pad(state):
        rows = torch.randn(n - 50_257, 8, generator=torch.Generator().manual_seed(2))
        state["lm_head.weight"] = torch.cat([state["transformer.wte.weight"], rows + 1])
        state["transformer.wte.weight"] = torch.cat([state["transformer.wte.weight"], rows])
        if not head:
            del state["lm_head.weight"]
    rewritten(folder, pad, 50_257, cls)
    configured(folder, vocab_size=n)
    return folder

@pytest.mark.parametrize("n", [50_258, 50_304])
@pytest.mark.parametrize("head", [False, True])
def test_rows_after_gpt2s_vocabulary_are_cut(n, head, tmp_path):
    """Padding rows give probability to tokens that do not exist. Then a reference and a run may differ."""
    m = GPT.from_pretrained(padded(tmp_path, n, head=head))
    assert m.config.vocab_size == 50_257 and fingerprint(m) == fingerprint(tiny(50_257))
    assert torch.equal(logits_of(m, 50_257), logits_of(tiny(50_257), 50_257))
    m.save_pretrained(tmp_path / "mine")
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["vocab_size"] == 50_257 and config["eos_token_id"] == 50_256

def test_a_padded_scalar_model_is_cut_too(tmp_path):
    """A reward model starts from the same folder as the policy."""
    m = ScalarGPT.from_pretrained(padded(tmp_path, 50_304, ScalarGPT))
    assert m.config.vocab_size == 50_257 and fingerprint(m) == fingerprint(tiny(50_257, ScalarGPT))

def test_the_cut_is_said_once_a_folder(tmp_path, capsys):
    """Policy, reference and evaluation load one folder several times. Another folder needs its own message."""
    for name in ("a", "b"):
        padded(tmp_path / name, 50_304)
        for _ in range(2):
            GPT.from_pretrained(tmp_path / name)
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and "47 of 50,304" in out and str(tmp_path / name) in out

def test_weights_that_do_not_fit_a_padded_config_are_refused(tmp_path):
    """If any matrix with enough rows were cut, nobody would notice that config.json is another model's."""
    tiny(50_257).save_pretrained(tmp_path)
    configured(tmp_path, vocab_size=50_304)
    refused(lambda: GPT.from_pretrained(tmp_path), tmp_path / "model.safetensors", "50257", "50304")

# ---------------------------------------------------------------------------------------------------------------------
# a tokenizer of its own

# OpenAI's bytes_to_unicode: these bytes are written as themselves, the others as the characters from 256 on
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [b for b in range(256) if b not in PRINTABLE]
LETTERS = {b: chr(b) for b in PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(OTHERS)}

def vocab_json(tokenizer):
    """The table of GPT-2's vocab.json."""
    letters = lambda token: "".join(LETTERS[b] for b in token)
    table = {letters(token): i for token, i in tokenizer._mergeable_ranks.items()}
    return table | {"<|endoftext|>": 50_256}

def check(folder, tokenizer):
    """The check of every script for a model to start from."""
    model = GPT.from_pretrained(folder)
    cli.check_fits(model, tokenizer(model) if callable(tokenizer) else tokenizer, 8, folder)

def own(model):
    return data.get_tokenizer("mine.jsonl", model.config.vocab_size)

@pytest.mark.parametrize("n_vocab", [257, 300, 8193, 50_000])
def test_a_small_vocabulary_from_elsewhere_is_refused(n_vocab, online, tmp_path):
    """Its ids mean other tokens than GPT-2's first ranks. Every text would be another one, and the loss still falls."""
    tiny(n_vocab).save_pretrained(tmp_path)
    refused(lambda: check(tmp_path, own), tmp_path, f"{n_vocab:,} tokens", "tokenizer of its own", "args.json")

@pytest.mark.parametrize("at", [".", "step-20"])
def test_a_small_vocabulary_of_a_run_of_ours_is_taken(at, online, tmp_path):
    """--bpe_vocab makes such models. With --keep_all, args.json is in the folder above the weights."""
    tiny(300).save_pretrained(tmp_path / at)
    (tmp_path / "args.json").write_text(json.dumps({"script": "train_sft.py", "args": {}}))
    check(tmp_path / at, own)
    (tmp_path / "args.json").write_text("[]")    # somebody else's file of that name
    refused(lambda: check(tmp_path / at, own), "tokenizer of its own")

def test_a_vocabulary_smaller_than_the_bytes_is_refused_by_its_size(online, tmp_path):
    """No part of GPT-2's BPE is so small. tiktoken's own error would look like missing files."""
    tiny(160).save_pretrained(tmp_path)
    refused(lambda: check(tmp_path, own), "160", "50,257")

def test_a_model_of_the_toy_worlds_vocabulary_needs_no_args_json(tmp_path, tokenizer):
    """Its tokens are known, even if the weights were trained elsewhere."""
    tiny(tokenizer.n_vocab).save_pretrained(tmp_path)
    check(tmp_path, tokenizer)

def german(table):
    """A table of GPT-2's size whose ids belong to other tokens, like one trained on other text."""
    tokens = list(table)
    return dict(zip(tokens[::-1], table.values()))

LAYOUTS = {    # file -> its content for a table of tokens
    "vocab.json": lambda table: table,
    "tokenizer.json": lambda table: {"model": {"type": "BPE", "vocab": table, "merges": []}},
}

@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tokenizer_beside_the_model_must_be_gpt2s(name, online, tmp_path):
    """German GPT-2 has 50,265 tokens, none with GPT-2's id. Cut to GPT-2's size, training would still run."""
    tiny(50_257).save_pretrained(tmp_path)
    check(tmp_path, own)    # no tokenizer beside it
    table = vocab_json(online)
    for good in (table, table | {"<pad>": 50_257, "<user>": 50_258}):    # added at the end
        (tmp_path / name).write_text(json.dumps(LAYOUTS[name](good)))
        check(tmp_path, own)
    tokens = list(table)
    swapped = table | {tokens[300]: table[tokens[301]], tokens[301]: table[tokens[300]]}
    for bad in (german(table), swapped, {t: i for t, i in table.items() if i != 700}, ["a", "b"]):
        (tmp_path / name).write_text(json.dumps(LAYOUTS[name](bad)))
        refused(lambda: check(tmp_path, own), tmp_path / name, "GPT-2's")

@pytest.mark.parametrize("text", ["", "{", "3", "null", '{"model": 3}'])
def test_a_damaged_tokenizer_file_is_refused(text, online, tmp_path):
    """If it were skipped, the model would pass as one without a tokenizer."""
    tiny(50_257).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    refused(lambda: check(tmp_path, own), tmp_path / "tokenizer.json")

@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "vocab.txt"])
def test_another_kind_of_tokenizer_is_refused(name, online, tmp_path):
    """SentencePiece and WordPiece have no table that can be compared with GPT-2's."""
    tiny(50_257).save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"\x0a")
    refused(lambda: check(tmp_path, own), tmp_path / name)

def test_the_first_letters_of_gpt2s_table_are_its_bytes():
    """Anyone can check these ids in the hub's vocab.json. There a space is a G with a dot, a newline a C with a dot."""
    ids = tokenizers.gpt2_ids(tokenizers.byte_encoding())
    known = {"!": 0, "A": 32, "a": 64, "~": 93}
    known |= {"\u00a1": 94, "\u00ff": 187, "\u0100": 188, "\u010a": 198, "\u0120": 220, "\u0143": 255}
    assert {letter: ids[letter] for letter in known} == known and len(ids) == 257

@pytest.mark.parametrize("script", [train_sft, train_pref, train_reward])
def test_every_script_refuses_a_tokenizer_of_its_own(script, online, tmp_path, capsys, monkeypatch):
    """Each script loads models on its own, so one of them could lack the check."""
    monkeypatch.chdir(tmp_path)
    tiny(300).save_pretrained(tmp_path / "papers")
    argv = ["--data", write_jsonl(tmp_path / "mine.jsonl", PAIRS), "--init_from", "papers", "--max_len", 16]
    stopped(capsys, script.main, argv, "papers", "tokenizer of its own")
    assert not Path("out").exists()

# ---------------------------------------------------------------------------------------------------------------------
# bytes

@pytest.mark.parametrize("text", ["", "a b\n", "Ein Café — naïve \x85 <|endoftext|> 你好", "\0\x7f\xff", "  " * 300])
def test_bytes_say_every_text(text):
    """A pattern that does not match a character would lose it silently. EOS is the last id and never text."""
    tokenizer = data.get_tokenizer("mine.jsonl", 257)
    tokens = tokenizer.encode_ordinary(text)
    assert tokenizer.decode(tokens) == text and len(tokens) == len(text.encode())
    assert tokenizer.eot_token == 256 == tokenizer.n_vocab - 1
    assert max(tokens, default=0) < 256

def test_bytes_have_the_ids_of_gpt2s_first_tokens(gpt2_like):
    """--bpe_vocab 256 makes models of the same size. With other ids, each would read the other's texts as noise."""
    first = {t: i for t, i in gpt2_like._mergeable_ranks.items() if i < 256}
    assert data.get_tokenizer("x.jsonl", 257)._mergeable_ranks == first
    assert [b[0] for b in sorted(first, key=first.get)][:3] == [33, 34, 35]
    assert first[b"\n"] == 198 and first[b"\xad"] == 255

BLANKS = " " * (tokenizers.LONGEST_BLANK + 1) + "x"
SMALL = ("--batch_size", "8", "--max_steps", "4", "--eval_every", "2", "--max_len", "48")

def test_own_pairs_train_and_are_measured_without_any_file(offline, tmp_path, monkeypatch, capsys):
    """On a laptop without a network, one flag of SFT must be enough for training and evaluation afterwards."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Is {i} café?", "chosen": f" yes, {i}", "rejected": " no ☹"} for i in range(60)]
    file = write_jsonl(tmp_path / "mine.jsonl", rows)
    stopped(capsys, train_sft.main, ["--data", file, *SMALL], "GPT-2's BPE", "TIKTOKEN_CACHE_DIR", "--bpe bytes")
    stopped(capsys, data.main, ["--data", file], "--bpe bytes")
    data.main(["--data", file, "--bpe", "bytes", "--show", "1"])
    assert "60 of 60 rows kept" in capsys.readouterr().out
    train_sft.main(["--data", file, "--bpe", "bytes", "--n_layer", "1", "--n_embd", "16", *SMALL])
    assert json.loads(Path("out/mine/sft/config.json").read_text())["vocab_size"] == 257
    train_pref.main(["--data", file, "--loss", "dpo", "--lr", "1e-2", "--n_show", "0", *SMALL])
    result = evaluation.main(["--run", "out/mine/dpo", "--n_samples", "2", "--show", "1"])
    assert result["measures"]["after"]["accuracy"][0] > 0.5 and "café" in capsys.readouterr().out
    evaluation.main(["--run", "out/mine/dpo", "--prompt", "Is 3 café?", "--show", "1"])
    assert "Is 3 café?" in capsys.readouterr().out
    stopped(capsys, evaluation.main, ["--run", "out/mine/dpo", "--prompt", BLANKS], "--prompt", "white space")

@pytest.mark.parametrize("flags", [
    ["--data", "toy"],
    ["--data", "x.jsonl", "--bpe_vocab", "300"],
    ["--data", "x.jsonl", "--init_from", "y"],
])
def test_bytes_where_they_have_no_effect_are_refused(flags, capsys):
    """If a flag is ignored, its user believes that it had an effect."""
    stopped(capsys, train_sft.get_args, ["--bpe", "bytes", *flags], "has no effect")

# ---------------------------------------------------------------------------------------------------------------------
# texts that no tokenizer takes

@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_a_row_of_blanks_is_refused_with_its_place(field, online, tmp_path, capsys, monkeypatch):
    """On a million blanks GPT-2's pattern panics in Rust. `except Exception` does not catch that."""
    monkeypatch.chdir(tmp_path)
    rows = [dict(r) for r in PAIRS]
    rows[2][field] += BLANKS
    file = write_jsonl(tmp_path / "mine.jsonl", rows)
    tiny(50_257).save_pretrained(tmp_path / "base")
    argv = ["--data", file, "--init_from", "base", "--max_len", 32]
    stopped(capsys, train_pref.main, argv, "mine.jsonl, row 3", f"'{field}'", "500,000")

def test_as_many_blanks_as_are_let_through_can_be_encoded(gpt2_like):
    """Our limit must be below tiktoken's. Otherwise a text could pass the check and still panic."""
    for blank in (" ", "\n", "\u3000"):
        text = "x" + blank * tokenizers.LONGEST_BLANK + "x"
        assert tokenizers.encode(gpt2_like, [text], "here")[0][0] == gpt2_like.encode_ordinary("x")[0]
        texts = [text, blank + text[1:]]    # the second has one blank more
        refused(lambda texts=texts: tokenizers.encode(gpt2_like, texts, "there"), "there", "white space")

def test_a_long_text_with_a_break_here_and_there_is_taken(gpt2_like):
    """Only the longest run of blanks counts, not the length of the text or the number of all blanks."""
    text = (" " * 300_000 + "x") * 3
    sources.check_text(text, "here")
    assert gpt2_like.decode(tokenizers.encode(gpt2_like, [text], "here")[0]) == text

def test_a_panic_of_the_tokenizer_is_an_error_in_one_line_and_ctrl_c_is_not(gpt2_like):
    """Rust's PanicException is only a BaseException, but so is KeyboardInterrupt, which must pass."""
    class Broken:
        name = "gpt2"
        def encode_ordinary_batch(self, texts):
            raise self.error
        encode_ordinary = encode_ordinary_batch
    broken = Broken()
    for text in ("a", "a " * 1000):    # short and long texts take different ways
        broken.error = type("PanicException", (BaseException,), {})("StackOverflow")
        refused(lambda text=text: tokenizers.encode(broken, [text], "here"), "here", "StackOverflow")
        broken.error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            tokenizers.encode(broken, [text], "here")

# ---------------------------------------------------------------------------------------------------------------------
# an adapter run as a start

PREF = ("--max_steps", "4", "--eval_every", "2", "--batch_size", "8", "--warmup_steps", "0", "--lr", "1e-2",
        "--patience", "0", "--n_show", "0")

def pref(out_dir, start, *flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "main", lambda *args, **more: {})
        patch.setattr(loop, "plot_curves", lambda folder: None)
        train_pref.main(["--data", "mine.jsonl", "--init_from", str(start), "--out_dir", str(out_dir), *PREF, *flags])

@pytest.fixture(scope="module")
def finished_chain(tmp_path_factory, sft_run, tokenizer):
    """Runs in a folder: `sft`; `one`, an adapter on it; `two`, started from `one`."""
    root = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(data, "get_tokenizer", lambda *args: tokenizer)
        shutil.copytree(sft_run, "sft")
        write_jsonl(root / "mine.jsonl", PAIRS)
        pref("one", "sft", "--adapter", "sequential", "--adapter_rank", "3")
        pref("two", "one")
    return root

@pytest.fixture
def chain(finished_chain, tmp_path, monkeypatch, own_tokenizer):
    """A copy of that chain, which a test may change. It is the current folder."""
    shutil.copytree(finished_chain, tmp_path / "chain")
    monkeypatch.chdir(tmp_path / "chain")

def first_loss(run):
    return next(value for _, split, metric, value in log_rows(Path(run)) if (split, metric) == ("val", "loss"))

def loaded(run):
    return logits_of(adapters.load_model(run)[0])

def both(run):
    """(the logits of a run, those of its reference), as eval.py loads them."""
    _, policy, reference = evaluation.load_policy(run, torch.device("cpu"))
    after = logits_of(policy)
    with evaluation.as_reference(policy, reference) as other:
        return after, logits_of(other)

def test_a_run_from_an_adapter_run_starts_as_its_own_reference(chain):
    """With the bare base as reference, KL and rewards would include the first run, and the first loss not be log 2."""
    for run in ("one", "two"):
        assert first_loss(run) == pytest.approx(math.log(2), abs=1e-5), run
        assert json.loads(Path(run, "result.json").read_text())["best_step"] > 0, run    # it did move

def test_the_adapter_goes_on_and_stands_on_the_first_base(chain):
    """An adapter run cannot be loaded as a base. Another rank would be another adapter."""
    pref("three", "two", "--adapter", "sequential", "--adapter_rank", "3")    # flags that say the same
    base = fingerprint(GPT.from_pretrained("sft"))
    for run in ("one", "two", "three"):
        assert adapters.read_about(run) == dict(mode="sequential", rank=3, base="sft", base_fingerprint=base)
        args = json.loads(Path(run, "args.json").read_text())["args"]
        assert (args["adapter"], args["adapter_rank"]) == ("sequential", 3)
    texts = [loaded(run) for run in ("sft", "one", "two", "three")]
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(texts) for b in texts[:i])

def test_evaluation_compares_with_the_start_and_not_with_the_bare_base(chain):
    """With its adapters off, the policy is the first base. The KL would then be that of all runs together."""
    for run, start in (("one", "sft"), ("two", "one")):
        policy, reference = both(run)
        assert torch.equal(policy, loaded(run)) and torch.equal(reference, loaded(start)), run

def test_at_step_0_policy_and_reference_are_the_same_to_the_bit(chain):
    """If the KL starts above 0, the reference is wrong."""
    pref("still", "two", "--lr", "0")
    policy, reference = both("still")
    assert torch.equal(policy, reference) and torch.equal(policy, loaded("two"))

@pytest.mark.parametrize("mode", ["parallel", "replace"])
def test_other_adapters_go_on_too(mode, chain, capsys):
    """A replaced MLP differs from its base at step 0, but not from the run that it starts from."""
    pref("first", "sft", "--adapter", mode, "--adapter_rank", "4")
    capsys.readouterr()
    pref("second", "first")
    assert first_loss("second") == pytest.approx(math.log(2), abs=1e-5)
    assert "differ from the start" not in capsys.readouterr().out
    assert torch.equal(both("second")[1], loaded("first")) and adapters.read_about("second")["rank"] == 4

@pytest.mark.parametrize("flags, word", [
    (["--adapter", "parallel"], "--adapter parallel"),
    (["--adapter_rank", "4"], "--adapter_rank 4"),
    (["--adapter", "sequential", "--adapter_rank", "16"], "--adapter_rank 16"),
    (["--adapter", "replace", "--adapter_init", "neurons"], "--adapter replace"),
    (["--adapter_init", "random"], "--adapter_init"),
])
def test_flags_that_contradict_the_adapter_of_the_start_are_refused(flags, word, chain, capsys):
    """If they were ignored, args.json would describe another adapter than the run has."""
    stopped(capsys, train_pref.main, ["--data", "mine.jsonl", "--init_from", "one", "--out_dir", "x", *flags], word)
    assert not Path("x").exists()

def test_a_start_that_has_changed_or_gone_is_refused(chain):
    """The start's adapter is part of the reference. With another one, every KL is wrong but looks right."""
    pref("three", "two")
    path = Path("one/adapter.safetensors")
    state = load_file(path)
    save_file({k: v + 0.01 for k, v in state.items()}, path)
    refused(lambda: evaluation.load_policy("two", "cpu"), "one", "reference", "fingerprint")
    shutil.rmtree("one")
    refused(lambda: evaluation.load_policy("two", "cpu"), "one")
    evaluation.load_policy("three", "cpu")    # its base is sft and its start is two

def test_a_run_from_an_adapter_run_resumes_to_the_same_weights(chain, monkeypatch):
    """A resumed run has a later state, but its reference must still be the start."""
    pref("whole", "one")
    real, calls = train_pref.preference_loss, []
    def killed(*args):
        calls.append(1)
        if len(calls) > 5:    # after the evaluation at step 2
            raise RuntimeError("killed")
        return real(*args)
    monkeypatch.setattr(train_pref, "preference_loss", killed)
    with pytest.raises(RuntimeError, match="killed"):
        pref("parts", "one")
    monkeypatch.setattr(train_pref, "preference_loss", real)
    assert 2 <= max(int(step) for step, *_ in log_rows(Path("parts"))) < 4
    pref("parts", "one", "--resume")
    assert list(log_rows(Path("parts"))) == list(log_rows(Path("whole")))
    assert torch.equal(loaded("parts"), loaded("whole"))

def test_sft_from_an_adapter_run_trains_the_adapter_alone(chain):
    """A whole model as the result would be large and would not name its base."""
    argv = ["--max_steps", "4", "--eval_every", "2", "--batch_size", "8", "--lr", "1e-2"]
    train_sft.main(["--data", "mine.jsonl", "--init_from", "one", "--out_dir", "more", *argv])
    assert not Path("more/model.safetensors").exists()
    assert adapters.read_about("more") == adapters.read_about("one")
    policy, reference = both("more")
    assert torch.equal(reference, loaded("one")) and (policy - reference).abs().max() > 1e-4

@pytest.mark.parametrize("main, flags", [
    (train_reward.main, ["--data", "mine.jsonl"]),
    (train_ppo.main, ["--data", "toy", "--true_reward"]),
])
def test_reward_model_and_ppo_refuse_an_adapter_run_as_a_start(main, flags, chain, capsys):
    """They train all weights and would save a model without the adapter."""
    stopped(capsys, main, [*flags, "--init_from", "one", "--out_dir", "x"], "one", "adapter run", "base")
    assert not Path("x").exists()

def test_a_padded_base_with_an_adapter_is_its_own_reference(online, tmp_path, monkeypatch):
    """adapter.json has the fingerprint of the cut model. The next load cuts again and must get the same."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "mine.jsonl", PAIRS)
    padded(tmp_path / "base", 50_304)
    pref("run", "base", "--adapter", "parallel", "--adapter_rank", "2", "--max_len", "24", "--max_steps", "2")
    pref("full", "base", "--max_len", "24", "--max_steps", "2")
    for run in ("run", "full"):
        facts, policy, reference = evaluation.load_policy(run, torch.device("cpu"))
        assert policy.config.vocab_size == 50_257 and facts["reference_fingerprint"] == fingerprint(tiny(50_257))
        assert first_loss(run) == pytest.approx(math.log(2), abs=1e-5)
