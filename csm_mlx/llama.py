"""The Llama-style stack that is both of CSM's transformers. Arrays are (B, T, D); K/V are (B, heads, T, head_dim).

RoPE rotates interleaved pairs, as in Sesame's and csm-mlx's files; `backends.layouts` permutes the rows of q and k for
transformers' halves.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from backends.mlx_backend import kv_cache
from backends.mlx_backend.recompute import recomputed
from csm_mlx.config import LlamaConfig, RopeScaling


class Cache(kv_cache.Cache, Protocol):
    """Keys and values of one layer. `offset` is the position of the next ones."""

    @property
    def offset(self) -> int | mx.array: ...


class GrowingCache:
    """Keeps exactly what it was given. For short sequences of known length, such as a frame's codebooks."""

    def __init__(self) -> None:
        self.offset = 0
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, mx.array | str | None]:
        if self.keys is not None and self.values is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        mask = "causal" if keys.shape[2] > 1 and self.offset == 0 else None
        assert self.offset == 0 or keys.shape[2] == self.offset + 1, "one position at a time after the first call"
        self.keys, self.values, self.offset = keys, values, keys.shape[2]
        return keys, values, mask


class FixedCache:
    """A static number of slots, of which `offset` (an array) are taken, so that every step has the same shapes.

    Keys and values are one array (B, 2 kv heads, slots, d), which a step writes once.
    """

    def __init__(self, keys_values: mx.array, offset: mx.array, mask: mx.array):
        self.keys_values, self.offset, self.mask = keys_values, offset, mask

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, mx.array | str | None]:
        new = mx.concatenate([keys, values], axis=1)
        self.keys_values = mx.slice_update(self.keys_values, new, self.offset, axes=(2,))
        keys, values = mx.split(self.keys_values, 2, axis=1)
        return keys, values, self.mask


class Attention(nn.Module):
    """Causal self-attention with grouped queries and rotary positions."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)
        self._wavelengths = rope_wavelengths(config.head_dim, config.rope_theta, config.rope_scaling)

    def __call__(self, x: mx.array, cache: Cache | None = None) -> mx.array:
        B, T, _ = x.shape
        q = self.q_proj(x).reshape(B, T, self.heads, self.head_dim).swapaxes(1, 2)
        k = self.k_proj(x).reshape(B, T, self.kv_heads, self.head_dim).swapaxes(1, 2)
        v = self.v_proj(x).reshape(B, T, self.kv_heads, self.head_dim).swapaxes(1, 2)
        offset = 0 if cache is None else cache.offset
        q, k = self._rotate(q, offset), self._rotate(k, offset)
        mask: mx.array | str | None = "causal"
        if cache is not None:
            k, v, mask = cache.update(k, v)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5, mask=mask)
        return self.o_proj(y.swapaxes(1, 2).reshape(B, T, -1))

    def _rotate(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x, self.head_dim, traditional=True, base=None, scale=1.0, offset=offset, freqs=self._wavelengths
        )


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each after a norm and added to its input."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.width, config.norm_eps)

    def __call__(self, x: mx.array, cache: Cache | None = None) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Layers and a final norm over embeddings (B, T, D); no table and no head of its own.

    With `recompute` set, training keeps only each layer's input and recomputes the rest in the backward pass.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.layers = [Layer(config) for _ in range(config.layers)]
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        self.recompute = False

    def __call__(self, x: mx.array, caches: Sequence[Cache] | None = None) -> mx.array:
        if caches is not None:
            for layer, cache in zip(self.layers, caches, strict=True):
                x = layer(x, cache)
        else:
            for layer in self.layers:
                x = recomputed(layer)(x) if self.recompute and self.training else layer(x)
        return self.norm(x)


def rope_wavelengths(head_dim: int, theta: float, scaling: RopeScaling | None) -> mx.array:
    """What `mx.fast.rope` calls freqs: radians^-1 per position, (head_dim / 2,), with Llama 3's scaling.

    Source: torchtune's Llama3ScaledRoPE and transformers' _compute_llama3_parameters.
    """
    found = theta ** (mx.arange(0, head_dim, 2, dtype=mx.float32) / head_dim)
    if scaling is not None:
        found = _scaled(found, scaling)
    mx.eval(found)  # left to a first use, it would be that thread's alone
    return found


def _scaled(plain: mx.array, scaling: RopeScaling) -> mx.array:
    frequency, length = 1.0 / plain, scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = mx.clip((length * frequency / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
    return 1.0 / (blend * frequency + (1 - blend) * frequency / scaling.factor)
