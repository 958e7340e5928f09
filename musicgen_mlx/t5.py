"""T5's encoder (arXiv:1910.10683) and its tokenizer: texts to rows of states. Arrays are (B, L, D).

No scaling in attention, root-mean-square norms, and one table of biases by relative position for all layers.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from musicgen_mlx.config import T5Config
from musicgen_mlx.text import TextTokenizer


class T5Encoder(nn.Module):
    """The encoder of `config`; random weights until some are loaded."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.relative_bias = nn.Embedding(config.buckets, config.heads)
        self.layers = [Layer(config) for _ in range(config.layers)]
        self.norm = nn.RMSNorm(config.width, config.norm_eps)

    def __call__(self, ids: mx.array, mask: mx.array) -> mx.array:
        """Token ids (B, L) and which of them are text (B, L) -> states (B, L, D)."""
        x = self.embedding(ids)
        bias = self.relative_bias(mx.array(buckets(ids.shape[1], self.config))).transpose(2, 0, 1)
        bias = mx.where(mask[:, None, None], bias, -mx.inf).astype(x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        return self.norm(x)


class Layer(nn.Module):
    """Attention and MLP, each after a norm and added to its input."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config) if config.gated else MLP(config)
        self.input_layernorm = nn.RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.width, config.norm_eps)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    """Unscaled attention with a bias for each head and pair of positions (B, H, L, L)."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.head_dim
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(config.width, inner, bias=False)
        self.v_proj = nn.Linear(config.width, inner, bias=False)
        self.o_proj = nn.Linear(inner, config.width, bias=False)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        B, L, _ = x.shape
        q, k, v = (
            project(x).reshape(B, L, self.heads, -1).swapaxes(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=bias)
        return self.o_proj(y.swapaxes(1, 2).reshape(B, L, -1))


class MLP(nn.Module):
    """T5's: two linear maps around a ReLU."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.relu(self.up_proj(x)))


class GatedMLP(MLP):
    """That of T5 1.1: `down(gelu(gate(x)) * up(x))`, with the tanh form of GELU."""

    def __init__(self, config: T5Config):
        super().__init__(config)
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.gelu_approx(self.gate_proj(x)) * self.up_proj(x))


def buckets(length: int, config: T5Config) -> np.ndarray:
    """Which bucket the distance from query i to key j is in, (length, length).

    Half of them for keys after the query, half for those before; in each, one per distance up to a quarter of all
    buckets, then ever wider ones up to `max_distance`. Source: T5Attention._relative_position_bucket.
    """
    half = config.buckets // 2
    exact = half // 2
    distance = np.arange(length) - np.arange(length)[:, None]
    far = np.maximum(np.abs(distance), 1).astype(np.float32)
    octaves = np.log(far / np.float32(exact)) / np.float32(math.log(config.max_distance / exact))
    wide = np.minimum(exact + (octaves * np.float32(half - exact)).astype(np.int64), half - 1)
    return np.where(np.abs(distance) < exact, np.abs(distance), wide) + half * (distance > 0)


class TextEncoder:
    """A T5 encoder with its tokenizer, frozen."""

    def __init__(self, model: T5Encoder, tokenizer: Path):
        self.model, self.path = model, tokenizer
        self.tokenizer = TextTokenizer(tokenizer, model.config.vocab)

    def encode(self, texts: Sequence[str]) -> tuple[mx.array, np.ndarray]:
        """Texts -> states (B, L, D) and which of them are text (B, L)."""
        ids, mask = self.tokenizer.encode(texts)
        return self.model(mx.array(ids), mx.array(mask)), mask
