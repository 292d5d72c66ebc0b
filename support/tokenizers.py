"""
Tokenizers for text: GPT-2's BPE, smaller vocabularies from its first merges, and bytes. All are tiktoken.Encoding.

    tokenizer = text_tokenizer(n_vocab=257)    # bytes, without any file
    check_own(folder, tokenizer)               # an error if the model in the folder has a tokenizer of its own
    tokens = encode(tokenizer, texts, where)   # lists of tokens

The toy world's tokenizer is in toy.py. docs/models.md says which tokenizers a model may have. Read next: sources.py
"""
import codecs
import re
from pathlib import Path

import tiktoken

from support.checkpoint import read_json
from support.weights import VOCAB

PRINTABLE = 188    # bytes that GPT-2's files write as themselves
BYTES = 257        # the vocabulary of the byte tokenizer: 256 bytes and EOS
# GPT-2's pattern backtracks at every character of a run of white space, and tiktoken panics after a million steps
LONGEST_BLANK = 500_000    # characters

# ---------------------------------------------------------------------------------------------------------------------
# the tokenizers

def byte_order():
    """The 256 bytes in the order of GPT-2's first 256 tokens: printable bytes, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [b for b in range(256) if b not in printable]

def byte_encoding():
    """One token for each byte, with the ids of GPT-2's first 256 tokens, and <|endoftext|>."""
    ranks = {bytes([b]): rank for rank, b in enumerate(byte_order())}
    return tiktoken.Encoding("bytes", pat_str=r"\S+|\s+", mergeable_ranks=ranks,
                             special_tokens={"<|endoftext|>": BYTES - 1})

def text_tokenizer(n_vocab=None):
    """
    The tokenizer for a model with n_vocab tokens. None, and 50,257 or more: GPT-2's BPE.

    A smaller vocabulary holds the first n_vocab - 1 tokens of GPT-2, and EOS. GPT-2's merges are ordered, so the first
    ones are a BPE too. The smallest vocabulary, 257, holds only bytes and needs no files.
    Raises ValueError in one line if GPT-2's files are missing.
    """
    if n_vocab == BYTES:
        return byte_encoding()
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as e:    # an error of requests, a wrong hash, a folder that cannot be written
        raise ValueError(f"GPT-2's BPE files are missing and could not be downloaded ({type(e).__name__}): connect "
                         "once to the internet, or set TIKTOKEN_CACHE_DIR to a folder where tiktoken has stored them; "
                         "without them, train_sft.py --bpe bytes trains a small model from scratch") from None
    # a model with fewer tokens than bytes has a tokenizer of its own, and check_fits refuses it
    if n_vocab is None or n_vocab >= gpt2.n_vocab or n_vocab < BYTES:
        return gpt2
    first = {token: rank for token, rank in gpt2._mergeable_ranks.items() if rank < n_vocab - 1}
    return tiktoken.Encoding(f"gpt2-{n_vocab}", pat_str=gpt2._pat_str, mergeable_ranks=first,
                             special_tokens={"<|endoftext|>": n_vocab - 1})

# ---------------------------------------------------------------------------------------------------------------------
# models with a tokenizer of their own

def check_own(folder, tokenizer):
    """
    Raises ValueError if the model in a folder has a tokenizer of its own: its vocabulary is smaller than GPT-2's, or
    its folder holds a tokenizer with other ids. A folder without a tokenizer, and a name on the hub, are accepted.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    if tokenizer.name != "gpt2":
        raise ValueError(f"{folder}: has {tokenizer.n_vocab:,} tokens, so it has a tokenizer of its own, and only "
                         f"GPT-2's can be used; use a model with GPT-2's {VOCAB:,} tokens, or the whole folder of a "
                         "run, with args.json")
    for name in ("spiece.model", "tokenizer.model", "vocab.txt"):
        if (folder / name).is_file():
            raise ValueError(f"{folder / name}: belongs to another type of tokenizer, and only GPT-2's BPE can be used")
    for name in ("tokenizer.json", "vocab.json"):
        if (folder / name).is_file() and ids_of(folder / name) != gpt2_ids(tokenizer):
            raise ValueError(f"{folder / name}: has other ids than GPT-2's BPE, so the model has a tokenizer of its "
                             "own, and only GPT-2's can be used; use a model with GPT-2's, or delete the file if it "
                             "does not belong to this model")

def ids_of(path):
    """{token: id} of a tokenizer.json or vocab.json, for ids below 50,257. None if the file holds no such table."""
    content = read_json(path)
    for key in ("model", "vocab") if path.name == "tokenizer.json" else ():
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(isinstance(i, int) for i in content.values()):
        return None
    return {token: i for token, i in content.items() if i < VOCAB}

def gpt2_ids(tokenizer):
    """
    {token: id} of GPT-2 as Hugging Face's files write it: each byte is one letter. Printable bytes stand for
    themselves, the others have the letters from U+0100 on.
    """
    letters = {}
    for rank, b in enumerate(byte_order()):
        letters[b] = b if rank < PRINTABLE else 256 + rank - PRINTABLE
    ids = {token.decode("latin-1").translate(letters): rank for token, rank in tokenizer._mergeable_ranks.items()}
    return ids | {"<|endoftext|>": tokenizer.eot_token}

# ---------------------------------------------------------------------------------------------------------------------
# text to tokens

def encode(tokenizer, texts, where):
    """
    Texts -> lists of tokens. The characters "<|endoftext|>" in a text do not become EOS. where: the texts' name, for
    messages. Raises ValueError in one line for a text that the tokenizer cannot handle.
    """
    for text in texts:
        check_text(text, where)
    try:
        # Threads help with long texts. For a short one, starting its task takes longer than the text.
        if sum(map(len, texts)) < 500 * len(texts):
            return [tokenizer.encode_ordinary(text) for text in texts]
        return tokenizer.encode_ordinary_batch(texts)
    except BaseException as e:    # a panic in Rust raises PanicException, which is not an Exception
        if type(e).__name__ != "PanicException":
            raise
        raise ValueError(f"{where}: {tokenizer.name} cannot tokenize a text ({e})") from None

def check_text(text, where):
    """Raises ValueError for a text with more white space in a row than GPT-2's pattern can handle."""
    if len(text) > LONGEST_BLANK and max(map(len, re.findall(r"\s+", text)), default=0) > LONGEST_BLANK:
        raise ValueError(f"{where}: more than {LONGEST_BLANK:,} characters of white space in a row, which GPT-2's BPE "
                         "cannot handle; shorten the text")

# ---------------------------------------------------------------------------------------------------------------------
# tokens to text

def pieces_of(tokenizer, tokens):
    """
    The text of each token, which together are the text. A character of several tokens is the text of the last of them;
    the tokens before it have "\u25ab". EOS is "<EOS>".
    """
    decoder, pieces = codecs.getincrementaldecoder("utf-8")(errors="replace"), []
    for token in tokens:
        if token == tokenizer.eot_token:
            pieces.append("<EOS>")
        else:
            pieces.append(decoder.decode(tokenizer.decode_single_token_bytes(token)) or "\u25ab")
    return pieces
