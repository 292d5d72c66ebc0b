"""
The weights of a GPT-2 from its folder, as tensors under Hugging Face's names: one file or shards, prefixes, padding, a tied head.

    path, state = read_weights(folder)    # model.safetensors or pytorch_model.bin, or the index of either and its shards

docs/models.md says what can be loaded and what is refused. Read next: model.py
"""
import re

import torch

from support.checkpoint import load_tensors, read_json

VOCAB, WTE = 50257, "transformer.wte.weight"
SAID = set()    # folders whose cut vocabulary has been reported

# ---------------------------------------------------------------------------------------------------------------------
# files

def read_weights(folder):
    """(path, name -> tensor) from a file of weights, or from shards and their index; code in a file is never run."""
    for name, read in (("model.safetensors", load_tensors), ("pytorch_model.bin", load_bin)):
        path, index = folder / name, folder / f"{name}.index.json"
        if path.is_file():
            return path, read(path)
        if index.is_file():
            return index, read_shards(index, read)
    raise ValueError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin, nor the index of either in shards")

def load_bin(path):
    """name -> tensor of a pytorch_model.bin. Raises ValueError if it is damaged or holds anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
            raise ValueError("not a dict of tensors")
        return state
    except Exception as e:    # a damaged file can raise nearly anything
        raise ValueError(f"{path}: damaged or cut short ({type(e).__name__}): fetch or copy it again") from None

def read_shards(index, read):
    """name -> tensor from the shards that an index names. Every shard must be a file in the folder of the index."""
    content = read_json(index)
    shard_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise ValueError(f"{index}: damaged: weight_map is not a table of names and files; fetch or copy it again")
    state = {}
    for shard in sorted(set(shard_of.values())):
        path = index.parent / shard
        if re.search(r"[/\\\0]", shard) or shard in ("", ".", ".."):    # an index from elsewhere may name any file of this machine
            raise ValueError(f"{index}: names the shard {shard!r}, but a shard must be a file in the same folder")
        if not path.is_file():
            raise ValueError(f"{path}: no such file, but {index.name} names it as a shard: fetch or copy it")
        held = read(path)
        for name in (name for name in shard_of if shard_of[name] == shard):
            if name not in held:
                raise ValueError(f"{path}: {name} is missing, but {index.name} says that it is there")
            state[name] = held[name]
    return state

# ---------------------------------------------------------------------------------------------------------------------
# names and shapes

def plain_names(path, state):
    """The weights under GPT2LMHeadModel's names: without the prefixes of torch.compile and DataParallel, and without causal masks."""
    plain = {}
    for name, x in state.items():
        key = re.sub(r"^((_orig_mod|module)\.)+", "", name)
        key = key if key.startswith(("transformer.", "lm_head.", "score.")) else f"transformer.{key}"
        if key in plain:
            raise ValueError(f"{path}: {name} is there twice, with and without a prefix: keep one of the two")
        if not key.endswith((".attn.bias", ".attn.masked_bias")):    # old files store the causal masks as buffers
            plain[key] = x
    return plain

def cut_vocabulary(folder, n, state):
    """
    Cuts the rows after GPT-2's 50,257 tokens from the embedding and the head: they are padding, or tokens that its BPE never gives.
    n is the vocabulary that config.json names; returns the one that is left.
    """
    if n <= VOCAB or WTE not in state or state[WTE].shape[:1] != (n,):    # a shape that does not fit is refused later
        return n
    if folder.resolve() not in SAID:
        SAID.add(folder.resolve())
        print(f"{folder}: the last {n - VOCAB:,} of {n:,} rows of the vocabulary are padding or added tokens, and are cut")
    state |= {name: state[name][:VOCAB] for name in (WTE, "lm_head.weight") if name in state}
    return VOCAB

def check_tied(path, state):
    """Takes lm_head.weight out of the weights. Raises ValueError if it is not the embedding again."""
    head, wte = state.pop("lm_head.weight", None), state.get(WTE)
    if head is not None and wte is not None and not torch.equal(head.float(), wte.float()):
        raise ValueError(f"{path}: lm_head.weight differs from {WTE}, but in this GPT-2 they are one matrix: such a model cannot be loaded")
