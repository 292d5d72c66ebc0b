"""
The tokenizers: the toy world's own, GPT-2's BPE, the first of its merges, and bytes alone. All are tiktoken.Encoding.

    tokenizer = text_tokenizer(n_vocab=257)    # bytes, without any file
    check_own(folder, tokenizer)                             # a model from elsewhere may have been made with another one

Read next: sources.py
"""
import re
from pathlib import Path

import tiktoken

from support.checkpoint import read_json
from support.weights import VOCAB

BYTES = 257    # the vocabulary of bytes alone: 256 and EOS
# GPT-2's pattern tries again at every character of a run of white space, and gives up, in a panic, after a million of them
LONGEST_BLANK = 500_000

# ---------------------------------------------------------------------------------------------------------------------
# which one

def byte_order():
    """The 256 bytes in GPT-2's order: those that can be printed, then the others. Its first 256 tokens are these."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [b for b in range(256) if b not in printable]

def byte_encoding():
    """A token a byte, with the ids of GPT-2's first 256 tokens, and <|endoftext|>."""
    return tiktoken.Encoding("bytes", pat_str=r"\S+|\s+", mergeable_ranks={bytes([b]): rank for rank, b in enumerate(byte_order())},
                             special_tokens={"<|endoftext|>": BYTES - 1})

def text_tokenizer(n_vocab=None):
    """
    The tokenizer of text for a model with n_vocab tokens: GPT-2's BPE (also for n_vocab None), or the first of its tokens.

    A smaller vocabulary is the first n_vocab - 1 of GPT-2's tokens and EOS. Merges are ordered, so these are a BPE of their own. The
    smallest of them, 257, is bytes alone and needs no files. Raises ValueError in one line if GPT-2's files are missing.
    """
    if n_vocab == BYTES:
        return byte_encoding()
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as e:    # requests' errors, a hash that does not fit, a folder that cannot be written
        raise ValueError(f"GPT-2's BPE files are missing and could not be downloaded ({type(e).__name__}): connect once, or "
                         "set TIKTOKEN_CACHE_DIR to a folder where tiktoken has left them; without them, train_sft.py --bpe bytes "
                         "trains a small model from scratch") from None
    # a model of fewer tokens than bytes has another tokenizer: check_fits then says so
    if n_vocab is None or n_vocab >= gpt2.n_vocab or n_vocab < BYTES:
        return gpt2
    first = {token: rank for token, rank in gpt2._mergeable_ranks.items() if rank < n_vocab - 1}
    return tiktoken.Encoding(f"gpt2-{n_vocab}", pat_str=gpt2._pat_str, mergeable_ranks=first,
                             special_tokens={"<|endoftext|>": n_vocab - 1})

# ---------------------------------------------------------------------------------------------------------------------
# a model from elsewhere

def check_own(folder, tokenizer):
    """
    Raises ValueError if a model from elsewhere was made with a tokenizer of its own: its vocabulary is smaller than GPT-2's,
    or its folder holds a tokenizer with other ids. A folder without a tokenizer, and a name of the hub, are taken as GPT-2's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    if tokenizer.name != "gpt2":
        raise ValueError(f"{folder}: has {tokenizer.n_vocab:,} tokens, so it was made with a tokenizer of its own, and only GPT-2's "
                         f"can be used; take a model with GPT-2's {VOCAB:,} tokens, or, of a run, its whole folder with args.json")
    for name in ("spiece.model", "tokenizer.model", "vocab.txt"):
        if (folder / name).is_file():
            raise ValueError(f"{folder / name}: is the tokenizer of another kind of model, and only GPT-2's BPE can be used")
    for name in ("tokenizer.json", "vocab.json"):
        if (folder / name).is_file() and ids_of(folder / name) != gpt2_ids(tokenizer):
            raise ValueError(f"{folder / name}: gives other ids than GPT-2's BPE, so the model has a tokenizer of its own, and only "
                             "GPT-2's can be used; take a model with GPT-2's, or delete the file if it is not this model's")

def ids_of(path):
    """{token: id} of a tokenizer.json or vocab.json in Hugging Face's layout, below 50,257; None if it holds no such table."""
    content = read_json(path)
    if path.name == "tokenizer.json":
        content = content.get("model") if isinstance(content, dict) else None
        content = content.get("vocab") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(isinstance(i, int) for i in content.values()):
        return None
    return {token: i for token, i in content.items() if i < VOCAB}

def gpt2_ids(tokenizer):
    """{token: id} as Hugging Face's files write GPT-2's tokens: a letter a byte, the bytes that cannot be printed from U+0100 on."""
    letters = {b: b if rank < 188 else 256 + rank - 188 for rank, b in enumerate(byte_order())}
    ids = {token.decode("latin-1").translate(letters): rank for token, rank in tokenizer._mergeable_ranks.items()}
    return ids | {"<|endoftext|>": tokenizer.eot_token}

# ---------------------------------------------------------------------------------------------------------------------
# text -> tokens

def encode(tokenizer, texts, where):
    """
    Texts -> lists of tokens. where: what a message calls them. A literal "<|endoftext|>" in a text stays text.

    Raises ValueError, in one line, for a text that the tokenizer's pattern cannot take.
    """
    for text in texts:
        check_text(text, where)
    try:
        return tokenizer.encode_ordinary_batch(texts)
    except BaseException as e:    # what Rust raises in a panic is no Exception
        if type(e).__name__ != "PanicException":
            raise
        raise ValueError(f"{where}: a text cannot be divided into tokens by {tokenizer.name} ({e})") from None

def check_text(text, where):
    """Raises ValueError for a text with more white space in a row than GPT-2's pattern can take."""
    if len(text) > LONGEST_BLANK and any(m.end() - m.start() > LONGEST_BLANK for m in re.finditer(r"\s+", text)):
        raise ValueError(f"{where}: more than {LONGEST_BLANK:,} characters of white space one after the other, which GPT-2's BPE "
                         "cannot take; shorten the text")
