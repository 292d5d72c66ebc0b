"""
GPT-2 by hand: config, blocks, generation with a KV cache, weights in and out, a scalar head.

    model = GPT.from_pretrained("gpt2")                 # the hub's name, a folder in Hugging Face's layout, or a run of ours
    logits = model(idx)                                 # (B, T) -> (B, T, V)
    out = model.generate(idx, 32, temperature=0)        # (B, T) -> (B, T + 32)
    model.save_pretrained("out/mine")                   # transformers.AutoModelForCausalLM.from_pretrained opens it

Parameter names are Hugging Face's, so a checkpoint needs no table of names. Sizes: B rows, T tokens, C = n_embd, V = vocab_size,
nh heads of hs = C / nh. Read next: toy.py, data.py
"""
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from support.checkpoint import digest, read_json, save_tensors, write_json
from support.cpu import Linear    # nn.Linear, faster in float32 on a CPU
from support.weights import WTE, check_tied, cut_vocabulary, plain_names, read_weights

HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")   # stored (in, out) by Hugging Face

@dataclass
class GPTConfig:
    block_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int | None = None    # None: 4 * n_embd
    dropout: float = 0.0

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} is not a multiple of n_head = {self.n_head}")
        size = self.n_embd * (self.n_layer * (4 * self.n_embd + 2 * (self.n_inner or 4 * self.n_embd)) + self.vocab_size + self.block_size)
        if size > 2e10:    # ten times gpt2-xl
            raise ValueError(f"a GPT of {size:.2g} parameters is asked for; more than 2e10 would not fit, nor would --batch_size help")

# ---------------------------------------------------------------------------------------------------------------------
# the blocks, leaves first

class KVCache:
    """
    The keys and values of every layer, (B, nh, S, hs) each, allocated once for S columns.

    Prompts stand at the left, so a row's next token goes into column lens[row], over whatever padding stood there, and sees only
    the columns up to its own. So a ragged batch needs no left padding and no shifted positions: column = position.
    """
    def __init__(self, S):
        self.S, self.k, self.v = S, {}, {}
        self.lens, self.width, self.mask = None, 0, None       # lens is None while the prompts are read

    def seek(self, lens, width, ragged):
        """The next token of each row goes to column lens (B,); width = max(lens) + 1 columns take part."""
        self.lens, self.width, self.rows = lens, width, torch.arange(len(lens), device=lens.device)
        columns = torch.arange(width, device=lens.device)
        self.mask = (columns <= lens[:, None])[:, None, None] if ragged else None    # (B, 1, 1, width)

    def keep(self, rows):
        """Forgets all rows but these (n,)."""
        for part in (self.k, self.v):
            part.update({layer: x[rows] for layer, x in part.items()})

    def update(self, layer, k, v):
        """Stores k, v (B, nh, T, hs) of the new tokens; gives the keys and values that they may look at."""
        if self.lens is None:
            B, nh, T, hs = k.shape
            self.k[layer], self.v[layer] = k.new_zeros(B, nh, self.S, hs), v.new_zeros(B, nh, self.S, hs)
            self.k[layer][:, :, :T], self.v[layer][:, :, :T] = k, v
            return k, v
        self.k[layer][self.rows, :, self.lens], self.v[layer][self.rows, :, self.lens] = k[:, :, 0], v[:, :, 0]
        return self.k[layer][:, :, :self.width], self.v[layer][:, :, :self.width]

class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, layer, cache=None, mask=None):
        B, T, C = x.shape
        q, k, v = (z.view(B, T, self.n_head, -1).transpose(1, 2) for z in self.c_attn(x).split(C, dim=2))    # (B, nh, T, hs)
        if cache is not None:
            k, v, mask = *cache.update(layer, k, v), cache.mask
        # scaled_dot_product_attention drops out whenever dropout_p > 0: it does not know of model.eval()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0,
                                           is_causal=mask is None and (cache is None or cache.lens is None))    # (B, nh, T, hs)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)))

class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        n_inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Linear(config.n_embd, n_inner)
        self.c_proj = Linear(n_inner, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        # GPT-2's GELU is the tanh form; the exact one differs by up to 5e-4 per unit
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, layer, cache=None, mask=None):
        x = x + self.attn(self.ln_1(x), layer, cache, mask)
        return x + self.mlp(self.ln_2(x))

# ---------------------------------------------------------------------------------------------------------------------
# the trunk

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd), wpe=nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout), h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd)))
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight      # tied
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # the residual stream adds up 2 * n_layer outputs, so each starts smaller by the root of that (GPT-2's paper)
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def features(self, idx, cache=None, positions=None, mask=None):
        """
        The states before lm_head: idx (B, T) -> (B, T, C). A loss then pays for the vocabulary only where it needs it.

        positions (B, T), below block_size, and mask (B, 1, T, T) bool, true where a query may see a key: for rows that are not one text.
        """
        T = idx.shape[1]
        if T > self.config.block_size and positions is None:
            raise ValueError(f"{T} tokens are more than block_size = {self.config.block_size}: cut the text or take a longer model")
        if cache is not None and cache.lens is not None:
            positions = cache.lens[:, None]                    # (B, 1)
        elif positions is None:
            positions = torch.arange(T, device=idx.device)     # (T,)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(positions))    # (B, T, C)
        for layer, block in enumerate(self.transformer.h):
            x = block(x, layer, cache, mask)
        return self.transformer.ln_f(x)

    def forward(self, idx):
        """idx (B, T) -> logits (B, T, V). logits[:, t] predicts idx[:, t + 1]."""
        return self.lm_head(self.features(idx))

    # -----------------------------------------------------------------------------------------------------------------
    # generation

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, eos=None, lens=None, generator=None):
        """
        Continues prompts: idx (B, T) -> (B, T + n), the new tokens of every row in columns T and on.

        lens        (B,) lengths of prompts that stand at the left of idx; what is behind them is not read. None: all are T long.
        temperature 0 takes the likeliest token; top_k and top_p (nucleus) cut the distribution before sampling.
        eos         a row that has drawn it is filled up with it, and generation ends once all have (n < max_new_tokens then).
        generator   a torch.Generator on the model's device; without one, torch's global random state is used.

        Dropout is off whatever the model's mode. A batch gives the same greedy tokens as its rows one by one, and a row that is drawn
        the same whether the others go on or not. Raises ValueError before the first token if the longest prompt and max_new_tokens do
        not fit into block_size together: nothing is cut.
        """
        B, T = idx.shape
        lens = torch.full((B,), T, device=idx.device) if lens is None else torch.as_tensor(lens, device=idx.device)
        shortest, longest = lens.min().item(), lens.max().item()
        if shortest < 1 or longest > T or lens.shape != (B,):
            raise ValueError(f"lens must be {B} numbers from 1 to {T}, not {lens.tolist()}")
        if longest + max_new_tokens > self.config.block_size:
            raise ValueError(f"a prompt of {longest} tokens and {max_new_tokens} new ones are more than block_size = "
                             f"{self.config.block_size}")
        if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(f"need temperature >= 0, top_k >= 1, 0 < top_p <= 1, not {temperature}, {top_k}, {top_p}")
        was_training, ragged, cache = self.training, shortest < longest, KVCache(longest + max_new_tokens)
        new, rows, n = idx.new_full((B, max_new_tokens), eos or 0), torch.arange(B, device=idx.device), -1    # rows that go on
        done, draws = torch.zeros_like(rows, dtype=torch.bool), None
        if temperature > 0:    # all at once: what a row draws does not depend on which others go on
            draws = torch.rand(max_new_tokens, B, device=idx.device, generator=generator)
        self.eval()
        try:
            for n in range(max_new_tokens):
                if n == 0:
                    x = self.features(idx[:, :longest], cache)[rows, lens - 1]        # (B, C)
                else:
                    cache.seek(lens + n - 1, longest + n, ragged)
                    x = self.features(new[rows, n - 1, None], cache)[:, 0]
                token = sample(self.lm_head(x).float(), temperature, top_k, top_p, draws if draws is None else draws[n, rows])
                if eos is not None:
                    token = torch.where(done, eos, token)
                    done |= token == eos
                new[rows, n] = token
                going_on = len(rows) if eos is None else (~done).sum().item()
                if not going_on:
                    break
                if 4 * going_on <= 3 * len(rows):    # not at every EOS: to drop a row is to copy all the others
                    keep = (~done).nonzero().squeeze(1)
                    rows, lens, done = rows[keep], lens[keep], done[keep]
                    cache.keep(keep)
        finally:
            self.train(was_training)
        return torch.cat([idx, new[:, :n + 1]], dim=1)

    # -----------------------------------------------------------------------------------------------------------------
    # weights in and out

    @classmethod
    def from_pretrained(cls, name_or_dir, dropout=0.0):
        """
        A model in fp32 from the hub's gpt2 ... gpt2-xl, a folder in Hugging Face's layout, or a run of ours.

        dropout is the caller's, not the file's: the hub's GPT-2 says 0.1, which would put noise into every log-ratio.
        Raises ValueError or OSError with one line: what is wrong with which file, and what to do.
        """
        folder = find_folder(name_or_dir)
        config, (path, state) = read_config(folder / "config.json"), read_weights(folder)
        config.dropout = dropout
        state = plain_names(path, state)
        config.vocab_size = cut_vocabulary(folder, config.vocab_size, state)
        check_tied(path, state)
        layers = len({k.split(".")[2] for k in state if k.startswith("transformer.h.")})
        if layers != config.n_layer:
            raise ValueError(f"{path}: holds {layers} layers, but config.json says n_layer = {config.n_layer}")
        with torch.device("meta"):        # no memory is taken until names and shapes are known to be right
            model = cls(config)
        want = {k: tuple(v.shape[::-1] if k.endswith(CONV1D) else v.shape) for k, v in model.state_dict().items() if k != "lm_head.weight"}
        for key in sorted((want.keys() ^ state.keys()) - {"score.weight"}):
            raise ValueError(f"{path}: {key} is {'missing' if key in want else 'not part of a GPT-2'}: is it another architecture's file?")
        for key in want.keys() & state.keys():
            if tuple(state[key].shape) != want[key]:
                raise ValueError(f"{path}: {key} has shape {tuple(state[key].shape)}, but config.json asks for {want[key]}")
        if "score.weight" in want:        # a fresh scalar head says 0 everywhere
            state.setdefault("score.weight", torch.zeros(want["score.weight"]))
        # a copy of each, or one tensor that is left as it is keeps the whole file mapped
        state = {k: (v.t() if k.endswith(CONV1D) else v).to(torch.float32, copy=True).contiguous() for k, v in state.items() if k in want}
        model.load_state_dict(state | {"lm_head.weight": state[WTE]}, assign=True)
        model.lm_head.weight = model.transformer.wte.weight      # assigning has cut the tie
        return model.requires_grad_()

    def save_pretrained(self, folder):
        """Writes config.json and model.safetensors in Hugging Face's layout; each file is renamed into place when it is whole."""
        c, folder = self.config, Path(folder)
        state = {k: v.detach().t() if k.endswith(CONV1D) else v.detach() for k, v in self.state_dict().items() if k != "lm_head.weight"}
        if len(state) != 4 + 12 * c.n_layer + ("score.weight" in state):
            raise ValueError("only a plain GPT-2 can be saved so; of a model with adapters save adapter_state_dict(model)")
        architecture = "GPT2ForSequenceClassification" if "score.weight" in state else "GPT2LMHeadModel"
        config = dict(model_type="gpt2", architectures=[architecture], activation_function="gelu_new", layer_norm_epsilon=1e-5,
                      n_positions=c.block_size, vocab_size=c.vocab_size, n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd,
                      n_inner=c.n_inner, attn_pdrop=c.dropout, embd_pdrop=c.dropout, resid_pdrop=c.dropout, tie_word_embeddings=True,
                      bos_token_id=c.vocab_size - 1, eos_token_id=c.vocab_size - 1)    # <|endoftext|> is the last id, here and in GPT-2
        if "score.weight" in state:
            config.update(num_labels=1, pad_token_id=c.vocab_size - 1)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config)
        save_tensors(state, folder / "model.safetensors")

class ScalarGPT(GPT):
    """GPT-2 with a number instead of a token at its end: a reward or a value. The head starts at zero and is saved with the rest."""
    def __init__(self, config):
        super().__init__(config)
        self.score = Linear(config.n_embd, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, idx):
        """idx (B, T) -> (B, T): the scalar at every position; a reward model's verdict is the one at the last token."""
        return self.score(self.features(idx)).squeeze(-1)

# ---------------------------------------------------------------------------------------------------------------------
# helpers

def sample(logits, temperature, top_k, top_p, draws):
    """One token a row: logits (B, V), draws (B,) from [0, 1) -> (B,). The token whose share of the unit interval holds the draw."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]    # (B, 1)
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p is not None and top_p < 1:
        probs, order = logits.softmax(-1).sort(descending=True)
        outside = probs.cumsum(-1) - probs >= top_p                        # the token that crosses top_p still belongs
        logits = logits.masked_fill(outside.scatter(1, order, outside), -math.inf)
    ends = logits.softmax(-1).cumsum(-1)    # (B, V). torch.multinomial draws V numbers a row, which takes longer than the softmax
    # right: a token without probability ends where the one before it does, and is never taken
    return torch.searchsorted(ends, draws[:, None] * ends[:, -1:], right=True).squeeze(1)

def fingerprint(model):
    """16 hex digits of the SHA-256 of the weights: which model a pair, an adapter or a run came from."""
    return digest(model.state_dict())[:16]

def find_folder(name_or_dir):
    if Path(name_or_dir).is_dir():
        return Path(name_or_dir)
    if str(name_or_dir) not in HUB:
        raise ValueError(f"{name_or_dir}: no such folder, and not one of the hub's {', '.join(HUB)}")
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(f"openai-community/{name_or_dir}", allow_patterns=["config.json", "model.safetensors"]))
    except Exception as e:    # the client raises a dozen kinds; for the user they are one
        raise ValueError(f"{name_or_dir}: could not be had from the hub ({type(e).__name__}); offline, give a folder with its "
                         f"config.json and model.safetensors, or set HF_HOME to a cache that holds it") from None

def read_config(path):
    """Hugging Face's config.json -> GPTConfig; refuses, by name, whatever this model would compute differently."""
    if not path.is_file():
        if (path.parent / "adapter.json").is_file():
            raise ValueError(f"{path.parent}: is an adapter run, from which only train_sft.py and train_pref.py can "
                             "start; give the base that its adapter.json names")
        raise ValueError(f"{path}: no such file: {path.parent} is not a model's folder")
    c = read_json(path)
    if not isinstance(c, dict) or c.get("model_type") != "gpt2":
        raise ValueError(f"{path}: model_type is {c.get('model_type') if isinstance(c, dict) else None!r}, but only 'gpt2' can be loaded")
    fixed = dict(activation_function=("gelu_new", "gelu_pytorch_tanh"), layer_norm_epsilon=(1e-5,), scale_attn_weights=(True,),
                 scale_attn_by_inverse_layer_idx=(False,), add_cross_attention=(False,), tie_word_embeddings=(True,))
    for key, values in fixed.items():
        if c.get(key, values[0]) not in values:
            raise ValueError(f"{path}: {key} is {c[key]!r}; this GPT-2 knows only {values[0]!r}")
    sizes = {key: c.get(key) for key in ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")}
    for key, value in (sizes | {"n_inner": c.get("n_inner") or 1}).items():
        if type(value) is not int or not 1 <= value <= 10**6:
            raise ValueError(f"{path}: {key} is {value!r}, but must be an integer from 1 to a million")
    sizes["block_size"] = sizes.pop("n_positions")
    try:
        return GPTConfig(**sizes, n_inner=c.get("n_inner"))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
