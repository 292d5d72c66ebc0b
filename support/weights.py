"""
A GPT-2 from its folder: config.json and the weights as tensors under Hugging Face's names, and the checks of both.

    config, path, state = read_folder(name_or_dir, GPTConfig)    # the config, the file of the weights, name -> tensor
    check_shapes(path, state, shapes)                            # every weight is there and fits

docs/models.md says what can be loaded and what is refused. Read next: model.py
"""
import re
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from support.checkpoint import read_json, stored_tensors

HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
VOCAB, WTE = 50257, "transformer.wte.weight"
SAID = set()    # folders whose cut vocabulary has been reported

def read_folder(name_or_dir, make_config):
    """
    (config, path of the weights, name -> tensor) of a model on the hub or in a folder. make_config is GPTConfig. The
    tensors of a safetensors file are StoredTensors. The names are those of GPT2LMHeadModel without the tied head.
    Raises ValueError in one line that names the file.
    """
    folder = find_folder(name_or_dir)
    config = read_config(folder / "config.json", make_config)
    path, state = read_weights(folder)
    state = plain_names(path, state)
    config.vocab_size = cut_vocabulary(folder, config.vocab_size, state)
    check_tied(path, state)
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.h.")})
    if layers != config.n_layer:
        raise ValueError(f"{path}: holds {layers} layers, but config.json says n_layer = {config.n_layer}")
    return config, path, state

# ---------------------------------------------------------------------------------------------------------------------
# folder and config

def find_folder(name_or_dir):
    """The folder of a model: the argument itself, or where a model of the hub has been downloaded to."""
    if Path(name_or_dir).is_dir():
        return Path(name_or_dir)
    if str(name_or_dir) not in HUB:
        raise ValueError(f"{name_or_dir}: no such folder, and not one of the hub's {', '.join(HUB)}")
    from huggingface_hub import snapshot_download
    files = ["config.json", "model.safetensors"]
    try:
        return Path(snapshot_download(f"openai-community/{name_or_dir}", allow_patterns=files))
    except Exception as e:    # the client raises many types of errors; the remedy is the same for all
        raise ValueError(f"{name_or_dir}: could not be downloaded from the hub ({type(e).__name__}); offline, give a "
                         "folder with its config.json and model.safetensors, or set HF_HOME to a cache that has them"
                         ) from None

# what this GPT-2 can compute: entry of config.json -> accepted values, the first of which is the default
FIXED = dict(activation_function=("gelu_new", "gelu_pytorch_tanh"), layer_norm_epsilon=(1e-5,),
             scale_attn_weights=(True,), scale_attn_by_inverse_layer_idx=(False,), add_cross_attention=(False,),
             tie_word_embeddings=(True,))

def read_config(path, make_config):
    """Hugging Face's config.json -> make_config(sizes). Raises ValueError if this GPT-2 would compute other logits."""
    if not path.is_file():
        if (path.parent / "adapter.json").is_file():
            raise ValueError(f"{path.parent}: is an adapter run, from which only train_sft.py and train_pref.py can "
                             "start; give the base that its adapter.json names")
        raise ValueError(f"{path}: no such file, so {path.parent} is not the folder of a model")
    content = read_json(path)
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type != "gpt2":
        raise ValueError(f"{path}: model_type is {model_type!r}, but only 'gpt2' can be loaded")
    for key, values in FIXED.items():
        if content.get(key, values[0]) not in values:
            raise ValueError(f"{path}: {key} is {content[key]!r}, but this GPT-2 supports only {values[0]!r}")
    sizes = {key: content.get(key) for key in ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")}
    n_inner = content.get("n_inner")    # null or missing: 4 * n_embd
    for key, value in (sizes | {"n_inner": n_inner or 1}).items():
        if type(value) is not int or not 1 <= value <= 10**6:
            raise ValueError(f"{path}: {key} is {value!r}, but must be an integer from 1 to a million")
    sizes["block_size"] = sizes.pop("n_positions")
    try:
        return make_config(**sizes, n_inner=n_inner)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None

def hf_config(config, scalar):
    """GPTConfig -> the content of Hugging Face's config.json. scalar: whether the model has a scalar head."""
    eos = config.vocab_size - 1    # <|endoftext|> is the last id, as in GPT-2
    content = dict(
        model_type="gpt2", architectures=["GPT2ForSequenceClassification" if scalar else "GPT2LMHeadModel"],
        activation_function="gelu_new", layer_norm_epsilon=1e-5, n_positions=config.block_size,
        vocab_size=config.vocab_size, n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd,
        n_inner=config.n_inner, attn_pdrop=config.dropout, embd_pdrop=config.dropout, resid_pdrop=config.dropout,
        tie_word_embeddings=True, bos_token_id=eos, eos_token_id=eos)
    if scalar:
        content.update(num_labels=1, pad_token_id=eos)
    return content

class no_init(TorchFunctionMode):    # in lower case, as other context managers
    """
    Inside it, x.normal_() does nothing. A model on the meta device has no numbers to initialize, and PyTorch would
    import 800 modules for its first normal_ there: a second, and 80 MB that the process keeps.
    """
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", None) == "normal_":    # torch.nn.init's, which is given its tensor by name
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))

# ---------------------------------------------------------------------------------------------------------------------
# files of weights

def read_weights(folder):
    """(path, name -> tensor) of a file of weights, or of shards and their index. Code in a file is never run."""
    for name, read in (("model.safetensors", stored_tensors), ("pytorch_model.bin", load_bin)):
        path, index = folder / name, folder / f"{name}.index.json"
        if path.is_file():
            return path, read(path)
        if index.is_file():
            return index, read_shards(index, read)
    raise ValueError(f"{folder}: holds no model.safetensors and no pytorch_model.bin, and no index of their shards")

def load_bin(path):
    """name -> tensor of a pytorch_model.bin. Raises ValueError if it is damaged or holds anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError("not a dict")
        if not all(isinstance(name, str) and isinstance(x, torch.Tensor) for name, x in state.items()):
            raise ValueError("not a dict of tensors")
        return state
    except Exception as e:    # a damaged file can raise errors of almost any type
        raise ValueError(f"{path}: damaged or cut short ({type(e).__name__}): download or copy it again") from None

def read_shards(index, read):
    """name -> tensor of the shards that an index names. read loads one shard, a file in the folder of the index."""
    content = read_json(index)
    shard_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise ValueError(f"{index}: damaged: weight_map is not a table of names and files; download or copy it again")
    state = {}
    for shard in sorted(set(shard_of.values())):
        path = index.parent / shard
        # an index from the internet could name any file on this machine
        if re.search(r"[/\\\0]", shard) or shard in ("", ".", ".."):
            raise ValueError(f"{index}: names the shard {shard!r}, but a shard must be a file in the same folder")
        if not path.is_file():
            raise ValueError(f"{path}: no such file, but {index.name} names it as a shard: download or copy it")
        held = read(path)
        names = [name for name in shard_of if shard_of[name] == shard]
        for name in names:
            if name not in held:
                raise ValueError(f"{path}: {name} is missing, but {index.name} says that it is in this file")
            state[name] = held[name]
    return state

# ---------------------------------------------------------------------------------------------------------------------
# names and shapes

def plain_names(path, state):
    """The weights under GPT2LMHeadModel's names, without prefixes of torch.compile or DataParallel and causal masks."""
    plain = {}
    for name, x in state.items():
        key = re.sub(r"^((_orig_mod|module)\.)+", "", name)
        if not key.startswith(("transformer.", "lm_head.", "score.")):
            key = f"transformer.{key}"
        if key in plain:
            raise ValueError(f"{path}: {name} appears twice, with and without a prefix: keep one of the two")
        if not key.endswith((".attn.bias", ".attn.masked_bias")):    # old files store the causal masks as buffers
            plain[key] = x
    return plain

def cut_vocabulary(folder, n, state):
    """
    Cuts the rows after GPT-2's 50,257 tokens from the embedding and the head: they are padding, or tokens that GPT-2's
    BPE never produces. n is the vocab_size of config.json. Returns the new one.
    """
    if n <= VOCAB or WTE not in state or state[WTE].shape[:1] != (n,):    # check_shapes refuses a wrong shape
        return n
    if folder.resolve() not in SAID:
        SAID.add(folder.resolve())
        print(f"{folder}: the last {n - VOCAB:,} of {n:,} rows of the vocabulary are padding or added tokens, and are "
              "cut")
    for name in (WTE, "lm_head.weight"):
        if name in state:
            state[name] = state[name][:VOCAB]
    return VOCAB

def check_tied(path, state):
    """Removes lm_head.weight from the weights. Raises ValueError if it differs from the embedding."""
    head, wte = state.pop("lm_head.weight", None), state.get(WTE)
    if head is not None and wte is not None and not torch.equal(head.float(), wte.float()):
        raise ValueError(f"{path}: lm_head.weight differs from {WTE}, but this GPT-2 has one matrix for both, so this "
                         "model cannot be loaded")

def check_shapes(path, state, shapes):
    """Raises ValueError unless the weights are those in shapes, name -> tuple. score.weight may be missing or extra."""
    wrong = sorted((shapes.keys() ^ state.keys()) - {"score.weight"})    # in one of the two only
    if wrong:
        problem = "missing" if wrong[0] in shapes else "not part of a GPT-2"
        raise ValueError(f"{path}: {wrong[0]} is {problem}: is this the file of another architecture?")
    for name in shapes.keys() & state.keys():
        if tuple(state[name].shape) != shapes[name]:
            raise ValueError(f"{path}: {name} has shape {tuple(state[name].shape)}, but config.json asks for "
                             f"{shapes[name]}")
