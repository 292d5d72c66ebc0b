"""
GPT-2 written by hand: config, blocks, generation with a KV cache, weights in and out, a scalar head.

    model = GPT.from_pretrained("gpt2")                 # a name on the hub, a folder in Hugging Face's layout, or a run
    logits = model(idx)                                 # (B, T) -> (B, T, V)
    out = model.generate(idx, 32, temperature=0)        # (B, T) -> (B, T + 32)
    model.save_pretrained("out/mine")                   # transformers.AutoModelForCausalLM.from_pretrained opens it

Parameter names are those of Hugging Face's GPT2LMHeadModel, so no table of names is needed. docs/models.md lists what
can be loaded. Sizes: B rows, T tokens, V = vocab_size, C = n_embd, nh heads of size hs = C / nh. Read next: adapters.py
"""
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from support import weights
from support.checkpoint import InTurn, digest, save_tensors, write_json
from support.cpu import Linear    # nn.Linear, faster in float32 on a CPU
from support.kv_cache import KVCache

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
        per_layer = 4 * self.n_embd + 2 * (self.n_inner or 4 * self.n_embd)
        size = self.n_embd * (self.n_layer * per_layer + self.vocab_size + self.block_size)
        if size > 2e10:    # ten times gpt2-xl
            raise ValueError(f"these sizes give a GPT of {size:.2g} parameters; the limit is 2e10: choose smaller ones")

# ---------------------------------------------------------------------------------------------------------------------
# attention

def causal_attention(q, k, v, mask=None, dropout=0.0):
    """
    The definition of attention: softmax(q @ k.T / sqrt(hs)) @ v, where a query sees only the keys under the mask.

    q        (B, nh, T, hs) one query for each new token; the result has the same shape
    k, v     (B, nh, S, hs) keys and values. S = T, or T = 1 and k, v also hold the tokens before the new one
    mask     (B or 1, 1, T, S) bool, true where the query may see the key. None: a token sees itself and all before it
    dropout  probability that an attention weight is set to 0
    """
    T, S = q.shape[2], k.shape[2]
    if mask is None:
        # the queries are the last T of the S tokens, so query t stands in column S - T + t
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])        # (B, nh, T, S)
    scores = scores.masked_fill(~mask, -math.inf)                    # softmax gives these a weight of 0
    return F.dropout(scores.softmax(-1), dropout) @ v                # (B, nh, T, hs)

def fast_attention(q, k, v, mask=None, dropout=0.0):
    """causal_attention by PyTorch's fused kernel, which does not store the (T, S) scores."""
    is_causal = mask is None and q.shape[2] == k.shape[2]    # if T = 1 < S, the query is the last token: it sees all
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)

attention = fast_attention    # this line chooses; causal_attention works too, but takes more time and memory

# ---------------------------------------------------------------------------------------------------------------------
# blocks

class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x, layer, cache=None, mask=None):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)                                            # (B, T, C)
        q, k, v = (z.view(B, T, self.n_head, -1).transpose(1, 2) for z in (q, k, v))        # (B, nh, T, hs)
        if cache is not None:
            k, v = cache.update(layer, k, v)                                                # (B, nh, S, hs)
            mask = cache.mask
        dropout = self.dropout if self.training else 0.0     # attention is a function: model.eval() does not reach it
        y = attention(q, k, v, mask, dropout)                                               # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, C)                                              # the heads side by side
        return self.resid_dropout(self.c_proj(y))

class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        n_inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Linear(config.n_embd, n_inner)
        self.c_proj = Linear(n_inner, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        # GPT-2 uses the tanh form of GELU. The exact form differs by up to 5e-4 for each unit.
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
# sampling

def truncate(logits, top_k=None, top_p=None):
    """
    Sets the logits of unlikely tokens to -inf: (B, V) -> (B, V).

    top_k  keep the k largest logits (all that equal the k-th)
    top_p  keep the smallest set of tokens whose probabilities reach top_p in sum (nucleus sampling). If top_k is given
           too, the probabilities are those after top_k.
    """
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]     # (B, 1)
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p is not None and top_p < 1:
        probs, order = logits.softmax(-1).sort(descending=True)            # (B, V), the likeliest token first
        mass_before = probs.cumsum(-1) - probs                             # (B, V), the sum over all likelier tokens
        outside = mass_before >= top_p                                     # so the token that crosses top_p is kept
        outside = outside.scatter(1, order, outside)                       # back to the order of the vocabulary
        logits = logits.masked_fill(outside, -math.inf)
    return logits

def sample(logits, temperature, top_k, top_p, draws):
    """
    One token for each row: logits (B, V), draws (B,) uniform in [0, 1) -> (B,). Temperature 0 takes the largest logit.

    The probabilities divide the unit interval into V parts. The token is the one whose part contains the row's draw.
    torch.multinomial gives the same distribution, but draws V random numbers a row, which is slower.
    """
    if temperature == 0:
        return logits.argmax(-1)
    # a temperature below 1 makes the distribution sharper, one above 1 makes it flatter
    logits = truncate(logits / temperature, top_k, top_p)
    ends = logits.softmax(-1).cumsum(-1)                                   # (B, V), the right end of each token's part
    # The last end is 1 only up to rounding. Scaled by it, no draw lies beyond the last token.
    draws = draws[:, None] * ends[:, -1:]                                  # (B, 1)
    # right=True: a draw on a boundary belongs to the next token. So a token of probability 0 is never taken.
    return torch.searchsorted(ends, draws, right=True).squeeze(1)          # (B,)

def uniform_draws(n, B, temperature, device, generator):
    """n uniform random numbers in [0, 1) for each of B rows: (n, B). Temperature 0 needs none and draws none."""
    if temperature == 0:
        return torch.zeros(n, B, device=device)
    return torch.rand(n, B, device=device, generator=generator)

@torch.no_grad()
def plain_generate(model, idx, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, generator=None):
    """
    The definition of generation: idx (B, T) -> (B, T + max_new_tokens). Prompts have one length, and EOS does not stop.

    GPT.generate gives the same tokens. It computes each token once, where this function computes the whole text again
    for each new token. The model must be in eval mode.
    """
    draws = uniform_draws(max_new_tokens, len(idx), temperature, idx.device, generator)
    for n in range(max_new_tokens):
        logits = model(idx)[:, -1].float()                                 # (B, V), the prediction of the next token
        token = sample(logits, temperature, top_k, top_p, draws[n])        # (B,)
        idx = torch.cat([idx, token[:, None]], dim=1)                      # (B, T + n + 1)
    return idx

# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face's layout of the weights

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

def to_hf(state):
    """
    The model's state_dict -> the tensors of Hugging Face's file, name -> tensor. Nothing is copied.

    The names are the same. Two things differ. Hugging Face's Conv1D stores the four matrices of a block as (in, out),
    nn.Linear as (out, in). And the tied head is not stored, since it is the embedding.
    """
    return {name: x.t() if name.endswith(CONV1D) else x for name, x in state.items() if name != "lm_head.weight"}

def from_hf(state):
    """The inverse of to_hf: tensors of any dtype -> a state_dict in float32 with lm_head.weight. Copies the tensors."""
    ours = {}
    for name, x in state.items():
        if name.endswith(CONV1D):
            x = x.t()
        # a tensor that is not copied would keep the whole file mapped
        ours[name] = x.to(torch.float32, copy=True).contiguous()
    ours["lm_head.weight"] = ours["transformer.wte.weight"]
    return ours

def fingerprint(model):
    """16 hex digits of the SHA-256 of the weights. It tells which model a pair, an adapter or a run came from."""
    return digest(model.state_dict())[:16]

# ---------------------------------------------------------------------------------------------------------------------
# the model

def init_weights(model):
    """
    GPT-2's initialization: matrices from a normal distribution with std 0.02, biases zero, LayerNorm weights one.

    Every block adds two outputs (c_proj) to the residual stream. Their std is divided by sqrt(2 * n_layer), so that the
    sum does not grow with depth.
    """
    for name, p in model.named_parameters():
        if name.endswith("c_proj.weight"):
            nn.init.normal_(p, std=0.02 / math.sqrt(2 * model.config.n_layer))
        elif p.dim() == 2:
            nn.init.normal_(p, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(p)

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.activation_checkpointing = config, False    # scripts set it; it changes memory, no number
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd)))
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight      # tied: the head and the embedding are one matrix
        init_weights(self)

    def features(self, idx, cache=None, positions=None, mask=None):
        """
        The states before lm_head: idx (B, T) -> (B, T, C). A loss multiplies only those that it needs by the head.

        By default a row is one text. Rows of several texts need positions (B, T), below block_size, and a mask
        (B, 1, T, T) bool, true where a query may see a key.
        """
        T = idx.shape[1]
        if T > self.config.block_size and positions is None:
            raise ValueError(f"{T} tokens are more than block_size = {self.config.block_size}: shorten the text")
        if cache is not None and cache.lens is not None:
            positions = cache.lens[:, None]                    # (B, 1)
        elif positions is None:
            positions = torch.arange(T, device=idx.device)     # (T,)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(positions))    # (B, T, C)
        # A checkpoint keeps a block's input only. Backward runs the block again, with the same dropout, for the rest.
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for layer, block in enumerate(self.transformer.h):
            x = checkpoint(block, x, layer, cache, mask, use_reentrant=False) if again else block(x, layer, cache, mask)
        return self.transformer.ln_f(x)

    def forward(self, idx):
        """idx (B, T) -> logits (B, T, V). logits[:, t] predicts idx[:, t + 1]."""
        return self.lm_head(self.features(idx))

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, eos=None, lens=None,
                 generator=None):
        """
        Continues prompts: idx (B, T) -> (B, T + n), with the new tokens of every row from column T on.

        temperature  0 takes the likeliest token
        top_k, top_p cut the distribution before sampling; see truncate
        eos          a row that has drawn this token is filled with it; generation ends when all rows have drawn it
        lens         (B,) lengths of prompts that start in column 0 of idx; the columns after them are not read. None: T
        generator    a torch.Generator on the model's device; None: torch's global random state

        Dropout is off in training mode too. At temperature 0 a row gets the same tokens in any batch. At other
        temperatures, its tokens do not depend on when other rows end. Raises ValueError before the first token if the
        longest prompt and max_new_tokens do not fit into block_size together.
        """
        B, T = idx.shape
        lens = torch.full((B,), T, device=idx.device) if lens is None else torch.as_tensor(lens, device=idx.device)
        shortest, longest = lens.min().item(), lens.max().item()
        if shortest < 1 or longest > T or lens.shape != (B,):
            raise ValueError(f"lens must be {B} numbers from 1 to {T}, not {lens.tolist()}")
        if longest + max_new_tokens > self.config.block_size:
            raise ValueError(f"a prompt of {longest} tokens and {max_new_tokens} new tokens are more than block_size = "
                             f"{self.config.block_size}")
        if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(f"need temperature >= 0, top_k >= 1, 0 < top_p <= 1, not {temperature}, {top_k}, {top_p}")
        # All random numbers are drawn at once. So a row's draws do not depend on which other rows have ended.
        draws = uniform_draws(max_new_tokens, B, temperature, idx.device, generator)    # (max_new_tokens, B)
        def choose(states, n, rows):
            return sample(self.lm_head(states).float(), temperature, top_k, top_p, draws[n, rows])
        was_training = self.training
        self.eval()
        try:
            new = self.new_tokens(idx[:, :longest], lens, max_new_tokens, shortest < longest, eos, choose)
        finally:
            self.train(was_training)
        return torch.cat([idx, new], dim=1)

    def new_tokens(self, idx, lens, max_new_tokens, ragged, eos, choose):
        """
        The loop of generate: idx (B, longest prompt) -> new tokens (B, n), n <= max_new_tokens.

        ragged  whether the prompts have different lengths
        choose  (states (R, C), step n, rows (R,)) -> the tokens (R,) that these rows draw in this step
        """
        B, longest = idx.shape
        cache = KVCache(longest + max_new_tokens)
        new = idx.new_full((B, max_new_tokens), 0 if eos is None else eos)     # already EOS where a row ends early
        rows = torch.arange(B, device=idx.device)                              # (R,) the rows still in the batch
        done = torch.zeros_like(rows, dtype=torch.bool)                        # (R,) which of them have drawn EOS
        for n in range(max_new_tokens):
            if n == 0:    # read the prompts; the state of a prompt's last token predicts the first new one
                states = self.features(idx, cache)[rows, lens - 1]             # (R, C)
            else:         # read the token drawn last; the cache holds everything before it
                cache.seek(lens + n - 1, longest + n, ragged)
                states = self.features(new[rows, n - 1, None], cache)[:, 0]    # (R, C)
            token = choose(states, n, rows)                                    # (R,)
            if eos is not None:
                token = torch.where(done, eos, token)
                done |= token == eos
            new[rows, n] = token
            n_left = len(rows) if eos is None else (~done).sum().item()
            if n_left == 0:
                return new[:, :n + 1]
            # Dropping rows copies the cache of all others. So it waits until a quarter of the rows has ended.
            if 4 * n_left <= 3 * len(rows):
                left = (~done).nonzero().squeeze(1)
                rows, lens, done = rows[left], lens[left], done[left]
                cache.keep(left)
        return new

    @classmethod
    def on_meta(cls, name_or_dir, dropout):
        """(a model without memory, the tensors of its file), checked against each other: see weights.read_folder."""
        config, path, state = weights.read_folder(name_or_dir, GPTConfig)
        with torch.device("meta"), weights.no_init():
            model = cls(replace(config, dropout=dropout))
        shapes = {name: tuple(x.shape) for name, x in to_hf(model.state_dict()).items()}
        weights.check_shapes(path, state, shapes)
        # Only a scalar head can be missing, and a new one gives 0 for every text. A language model leaves it out.
        return model, {name: state[name] if name in state else torch.zeros(shape) for name, shape in shapes.items()}

    @classmethod
    def from_pretrained(cls, name_or_dir, dropout=0.0):
        """
        A model in float32 from the hub (gpt2, gpt2-medium, gpt2-large, gpt2-xl), a folder in Hugging Face's layout, or
        a run of this project.

        The dropout of the file is ignored: the hub's GPT-2 has 0.1, which would add noise to every log-ratio.
        Raises ValueError or OSError in one line that names the file and the remedy.
        """
        model, state = cls.on_meta(name_or_dir, dropout)
        model.load_state_dict(from_hf(InTurn(state)), assign=True)
        model.lm_head.weight = model.transformer.wte.weight                 # assign=True has made two parameters of one
        return model.requires_grad_()

    def save_pretrained(self, folder):
        """Writes config.json and model.safetensors in Hugging Face's layout. Each file is replaced atomically."""
        state, folder = to_hf(self.state_dict()), Path(folder)
        # a plain GPT-2 has 12 tensors in a block, 2 embeddings, and weight and bias of the last LayerNorm
        if len(state) != 12 * self.config.n_layer + 4 + ("score.weight" in state):
            raise ValueError("this model has adapters, and only a plain GPT-2 can be saved in this layout; "
                             "save adapter_state_dict(model) instead")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", weights.hf_config(self.config, scalar="score.weight" in state))
        save_tensors(state, folder / "model.safetensors")

class ScalarGPT(GPT):
    """GPT-2 with one number for each token instead of logits: a reward or a value. The head starts at zero."""
    def __init__(self, config):
        super().__init__(config)
        self.score = Linear(config.n_embd, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, idx):
        """idx (B, T) -> (B, T). A reward model's score of a text is the number at its last token."""
        return self.score(self.features(idx)).squeeze(-1)
