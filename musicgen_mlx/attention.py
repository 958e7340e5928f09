"""MusicGen's attentions and a step's caches. Arrays are (B, T, D), keys and values (B, heads, T, d); no biases."""

import mlx.core as mx
import mlx.nn as nn

from backends.mlx_backend.kv_cache import Cache

KeysValues = tuple[mx.array, mx.array]


class FixedCache:
    """A static number of slots, of which `taken` (0-d) are full, so that every step has the same shapes."""

    def __init__(self, keys: mx.array, values: mx.array, taken: mx.array, mask: mx.array):
        self.keys, self.values, self.taken, self.mask = keys, values, taken, mask

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, mx.array | str | None]:
        self.keys = mx.slice_update(self.keys, keys, self.taken, axes=(2,))
        self.values = mx.slice_update(self.values, values, self.taken, axes=(2,))
        return self.keys, self.values, self.mask


class Attention(nn.Module):
    """Multi-head attention, to itself or to a condition."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def keys_values(self, x: mx.array) -> KeysValues:
        """Keys and values of what is attended to."""
        return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))

    def __call__(self, x: mx.array, mask: mx.array | str | None = "causal", cache: Cache | None = None) -> mx.array:
        """Attend to x itself, and to what a cache holds of it."""
        keys, values = self.keys_values(x)
        if cache is not None:
            keys, values, mask = cache.update(keys, values)
        return self.to(x, keys, values, mask)

    def to(self, x: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None) -> mx.array:
        """Attend from x to given keys and values."""
        B, T, D = x.shape
        q = self._heads(self.q_proj(x))
        y = mx.fast.scaled_dot_product_attention(q, keys, values, scale=q.shape[-1] ** -0.5, mask=mask)
        return self.out_proj(y.swapaxes(1, 2).reshape(B, T, D))

    def _heads(self, x: mx.array) -> mx.array:
        B, T, _ = x.shape
        return x.reshape(B, T, self.heads, -1).swapaxes(1, 2)
