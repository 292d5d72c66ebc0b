"""
The KV cache of generation. It stores keys and values, so that each token passes through the model only once.

    cache = KVCache(S)                           # before the prompts are read
    k, v = cache.update(layer, k, v)             # in each layer, while prompts or tokens are read
    cache.seek(lens, width, ragged)              # before each new token
    cache.keep(rows)                             # when some rows have ended

plain_generate in model.py is generation without it. Read next: model.py
"""
import torch

class KVCache:
    """
    The keys and values of all layers, (B, nh, S, hs) each, allocated once for S columns.

    Prompts start in column 0. A prompt of lens[row] tokens is followed by padding, and the row's next token goes into
    column lens[row], where it overwrites the padding. It sees the columns up to its own. So a batch of prompts of
    different lengths needs no padding on the left and no shifted positions: a token's column is its position.
    """
    def __init__(self, S):
        self.S = S
        self.k, self.v = {}, {}     # layer -> (B, nh, S, hs)
        self.lens = None            # (B,) column of each row's new token; None while the prompts are read
        self.mask = None            # (B, 1, 1, width) what the new token sees; None: all columns

    def seek(self, lens, width, ragged):
        """Prepares for the next token: row b writes to column lens[b]. width = max(lens) + 1 columns are in use."""
        self.lens, self.width = lens, width
        self.rows = torch.arange(len(lens), device=lens.device)
        if ragged:
            columns = torch.arange(width, device=lens.device)
            self.mask = (columns <= lens[:, None])[:, None, None]    # (B, 1, 1, width)

    def keep(self, rows):
        """Drops all rows except these (n,)."""
        for part in (self.k, self.v):
            for layer in part:
                part[layer] = part[layer][rows]

    def update(self, layer, k, v):
        """Stores k, v (B, nh, T, hs) of the new tokens. Returns the keys and values that the new tokens attend to."""
        if self.lens is None:
            B, nh, T, hs = k.shape
            self.k[layer], self.v[layer] = k.new_zeros(B, nh, self.S, hs), v.new_zeros(B, nh, self.S, hs)
            self.k[layer][:, :, :T], self.v[layer][:, :, :T] = k, v
            return k, v
        self.k[layer][self.rows, :, self.lens] = k[:, :, 0]
        self.v[layer][self.rows, :, self.lens] = v[:, :, 0]
        return self.k[layer][:, :, :self.width], self.v[layer][:, :, :self.width]
