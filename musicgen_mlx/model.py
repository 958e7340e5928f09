"""MusicGen's language model (github.com/facebookresearch/audiocraft, models/lm.py). Module names are mlx-examples'.

Letters: B batch, K codebooks, T steps, D width, V codes, L rows of a condition. Codes here are laid out by
`musicgen_mlx.pattern`: step s of codebook k belongs to frame s - 1 - delay_k.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from backends.mlx_backend.generating import GenerativeModel
from backends.mlx_backend.kv_cache import Cache
from backends.mlx_backend.recompute import recomputed
from musicgen_mlx.attention import Attention, KeysValues
from musicgen_mlx.condition import Condition, Conditioner
from musicgen_mlx.config import MusicGenConfig

MAX_PERIOD = 10_000


class MusicGen(GenerativeModel):
    """The model of `config`, e.g. `MusicGen(of_scale("small"))`, with random weights until some are loaded.

    `codec`, `text_encoder` and its tokenizer are what generation and training on audio need besides; `from_pretrained`
    brings those that lie beside the weights, otherwise first use fetches the pinned ones (`musicgen_mlx.companions`).
    With `recompute` set, training keeps only each layer's input and recomputes the rest in the backward pass.
    """

    def __init__(self, config: MusicGenConfig):
        super().__init__()
        self.config = config
        self.emb = [nn.Embedding(config.entries + 1, config.width) for _ in range(config.codebooks)]
        self.layers = [Layer(config) for _ in range(config.layers)]
        self.out_norm = nn.LayerNorm(config.width)
        self.linears = [nn.Linear(config.width, config.entries, bias=False) for _ in range(config.codebooks)]
        if config.condition != "none":
            self.text_conditioner = Conditioner(config.text_width, config.width)
        if config.chroma:
            self.chroma_conditioner = Conditioner(config.chroma, config.width)
        self.recompute = False

    @classmethod
    def from_pretrained(cls, source: str | Path, **companions: Any) -> "MusicGen":
        """Load from a directory, a Hub id or a key; see `musicgen_mlx.load.from_pretrained`."""
        from musicgen_mlx.load import from_pretrained

        return from_pretrained(source, **companions)

    def bring(self, *, codec: str | Path | None = None, text_encoder: str | Path | None = None) -> "MusicGen":
        """Use this codec and text encoder (a directory or a Hub id each) instead of the ones found or pinned.

        Raises InputError where they do not fit the model.
        """
        from musicgen_mlx import companions, sources

        if codec is not None:
            heard = companions.load_codec(codec)
            sources.check_codec(self.config.settings(), heard.config.settings(), str(codec))
            self._companions.pop("unread", None)
            self._companions["codec"], self.config = heard, replace(self.config, encodec=heard.config)
        if text_encoder is not None:
            read = companions.load_text_encoder(text_encoder)
            sources.check_text(self.config.settings(), asdict(read.model.config), str(text_encoder))
            self._companions["text_encoder"], self.config = read, replace(self.config, t5=read.model.config)
        return self

    def __call__(self, codes: mx.array, condition: Condition | None = None) -> mx.array:
        """Codes (B, K, T) and what they are conditioned on -> logits of the next step (B, K, T, V)."""
        x, mask = self.rows(codes, condition)
        memory = self.memory(condition)
        return self.logits(self.hidden(x, memory, mask=mask)[:, -codes.shape[2] :])

    def embed(self, codes: mx.array) -> mx.array:
        """Codes (B, K, T) -> the sum of their K embeddings (B, T, D)."""
        total = self.emb[0](codes[:, 0])
        for k in range(1, self.config.codebooks):
            total = total + self.emb[k](codes[:, k])
        return total

    def rows(self, codes: mx.array, condition: Condition | None) -> tuple[mx.array, mx.array | str]:
        """What the layers read, (B, rows, D) with positions, and what each row may see.

        Where conditions are prepended, their rows come first. Rows of padding are seen by none, and positions go on
        after a condition's own rows, so that padding changes nothing.
        """
        x, T = self.embed(codes), codes.shape[2]
        if self.config.condition != "prepend" or condition is None:
            return self.placed(x, mx.arange(T)), "causal"
        L = condition.states.shape[1]
        own = condition.mask.sum(axis=1, keepdims=True)
        places = mx.concatenate([mx.broadcast_to(mx.arange(L), condition.mask.shape), own + mx.arange(T)], axis=1)
        seen = mx.concatenate([condition.mask, mx.ones((x.shape[0], T), mx.bool_)], axis=1)
        causal = mx.arange(L + T) <= mx.arange(L + T)[:, None]
        # A row of padding sees itself, since a softmax over nothing is not a number.
        mask = (causal & seen[:, None]) | mx.eye(L + T, dtype=mx.bool_)
        return self.placed(mx.concatenate([condition.states.astype(x.dtype), x], axis=1), places), mask[:, None]

    def placed(self, x: mx.array, positions: mx.array) -> mx.array:
        """x (B, T, D) plus the sinusoids of `positions` (T,) or (B, T)."""
        return (x.astype(mx.float32) + sinusoids(positions, x.shape[-1])).astype(x.dtype)

    def memory(self, condition: Condition | None) -> "Memory | None":
        """Each layer's keys and values of a condition, which every step attends to; None if there is none to."""
        if self.config.condition != "cross" or condition is None:
            return None
        states = condition.states.astype(self.dtype)
        return [layer.cross_attn.keys_values(states) for layer in self.layers], condition.mask[:, None, None]

    def hidden(
        self, x: mx.array, memory: "Memory | None" = None, *, mask: mx.array | str = "causal",
        caches: Sequence[Cache] | None = None,
    ) -> mx.array:  # fmt: skip
        """Layers and final norm over rows (B, T, D)."""
        crossed, cross_mask = memory if memory is not None else ([None] * len(self.layers), None)
        for index, layer in enumerate(self.layers):
            cache = None if caches is None else caches[index]
            run = recomputed(layer) if self.recompute and self.training else layer
            x = run(x, mask, crossed[index], cross_mask, cache)
        return self.out_norm(x)

    def logits(self, hidden: mx.array) -> mx.array:
        """(B, T, D) -> (B, K, T, V)."""
        return mx.stack([head(hidden) for head in self.linears], axis=1)

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype activations have."""
        return self.out_norm.weight.dtype


Memory = tuple[list[KeysValues], mx.array]


class Layer(nn.Module):
    """Self-attention, attention to the condition and MLP, each after a norm and added to its input."""

    def __init__(self, config: MusicGenConfig):
        super().__init__()
        self.self_attn = Attention(config.width, config.heads)
        self.norm1 = nn.LayerNorm(config.width)
        if config.condition == "cross":
            self.cross_attn = Attention(config.width, config.heads)
            self.norm_cross = nn.LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.mlp_width, bias=False)
        self.linear2 = nn.Linear(config.mlp_width, config.width, bias=False)
        self.norm2 = nn.LayerNorm(config.width)

    def __call__(
        self, x: mx.array, mask: mx.array | str = "causal", crossed: KeysValues | None = None,
        cross_mask: mx.array | None = None, cache: Cache | None = None,
    ) -> mx.array:  # fmt: skip
        x = x + self.self_attn(self.norm1(x), mask, cache)
        if crossed is not None:
            x = x + self.cross_attn.to(self.norm_cross(x), *crossed, cross_mask)
        return x + self.linear2(nn.gelu(self.linear1(self.norm2(x))))


def sinusoids(positions: mx.array, width: int) -> mx.array:
    """(..., T) -> (..., T, width): cosines, then sines, of positions at falling frequencies.

    In float32 whatever the model's type: bfloat16 has no whole numbers past 256. Source: audiocraft's
    create_sin_embedding, which divides by half - 1.
    """
    half = width // 2
    frequencies = MAX_PERIOD ** (-mx.arange(half, dtype=mx.float32) / (half - 1))
    phases = positions.astype(mx.float32)[..., None] * frequencies
    return mx.concatenate([mx.cos(phases), mx.sin(phases)], axis=-1)
