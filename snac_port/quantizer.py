"""Residual vector quantisation at several rates (github.com/hubertsiuzdak/snac, vq.py) on MLX. Latents are (B, T, D).

A level averages `stride` frames, projects them to 8 channels, takes the entry nearest by cosine, projects the entry as
it is stored back, and repeats it. Each level quantises what the ones before it left over.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.mlx_backend.world import sum_arrays, world
from backends.seeds import mix
from snac_port.config import SNACConfig
from snac_port.layers import Conv1d
from snac_port.start import start_codebook

_SMALLEST = 1e-12  # upstream's guard of a norm


@dataclass(frozen=True)
class Quantized:
    """What training needs of the quantiser.

    `latents` (B, T, D) carry gradients straight through to the encoder. `commitment` and `codebook` are the terms that
    upstream had before version 1.2: the mean squared distance between a level's 8 channels and its entry, once with the
    gradient to the encoder and once to the entry, summed over levels. DAC weighs them 0.25 and 1.
    """

    latents: mx.array
    codes: list[mx.array]  # per level (B, T / stride)
    commitment: mx.array
    codebook: mx.array


class VectorQuantize(nn.Module):
    """One level."""

    def __init__(self, config: SNACConfig, stride: int):
        super().__init__()
        self.in_proj = Conv1d(config.latent_dim, config.codebook_dim, 1)
        self.out_proj = Conv1d(config.codebook_dim, config.latent_dim, 1)
        self.codebook = nn.Embedding(config.codebook_size, config.codebook_dim)
        self.stride = stride

    def project(self, latents: mx.array) -> mx.array:
        """Latents (B, T, D) -> the level's channels (B, T / stride, 8)."""
        B, T, D = latents.shape
        return self.in_proj(latents.reshape(B, T // self.stride, self.stride, D).mean(axis=2))

    def nearest(self, x: mx.array) -> mx.array:
        """The entries' numbers (B, T) for channels (B, T, 8), in float32 as upstream computes the distance."""
        x, entries = _normalised(x.astype(mx.float32)), _normalised(self.codebook.weight.astype(mx.float32))
        distance = x.square().sum(-1, keepdims=True) - 2 * x @ entries.T + entries.square().sum(-1)
        return mx.stop_gradient(mx.argmin(distance, axis=-1))

    def restore(self, entries: mx.array) -> mx.array:
        """Entries (B, T / stride, 8) -> latents (B, T, D)."""
        return mx.repeat(self.out_proj(entries), self.stride, axis=1)


class ResidualVectorQuantize(nn.Module):
    """The levels, coarsest first."""

    def __init__(self, config: SNACConfig):
        super().__init__()
        self.quantizers = [VectorQuantize(config, stride) for stride in config.vq_strides]

    def __call__(self, latents: mx.array, bypass: mx.array | None = None) -> Quantized:
        """Latents (B, T, D), T whole units. Where `bypass` (B,) says so, entries do not replace what they are near."""
        residual, total = latents, mx.zeros_like(latents)
        commitment = codebook = mx.array(0.0)
        codes = []
        for level in self.quantizers:
            x = level.project(residual)
            code = level.nearest(x)
            entry = level.codebook(code)
            commitment = commitment + (x - mx.stop_gradient(entry)).square().mean()
            codebook = codebook + (mx.stop_gradient(x) - entry).square().mean()
            chosen = x + mx.stop_gradient(entry - x)
            restored = level.restore(chosen if bypass is None else mx.where(bypass[:, None, None], x, chosen))
            residual, total = residual - restored, total + restored
            codes.append(code)
        return Quantized(total, codes, commitment, codebook)

    def start(self, latents: Sequence[mx.array], seed: int) -> None:
        """Start the codebooks of the first rank from the latents (B, T, D) of crops and give them to all.

        Crop by crop: distances to all entries take more memory than the latents.
        """
        residuals = latents
        for index, level in enumerate(self.quantizers):
            projected = one_by_one(level.project(residual) for residual in residuals)
            table = np.zeros(level.codebook.weight.shape, np.float32)
            if world().rank == 0:
                channels = np.concatenate([np.array(x.astype(mx.float32)).reshape(-1, x.shape[-1]) for x in projected])
                table = start_codebook(channels, len(table), mix(seed, index))
            level.codebook.weight = sum_arrays({"table": mx.array(table)})["table"]
            pairs = zip(residuals, projected, strict=True)
            residuals = one_by_one(residual - level.restore(level.codebook(level.nearest(x))) for residual, x in pairs)
        mx.eval(self.parameters())

    def encode(self, latents: mx.array) -> list[mx.array]:
        """Latents (B, T, D) -> codes per level (B, T / stride)."""
        return self(latents).codes

    def from_codes(self, codes: Sequence[mx.array]) -> mx.array:
        """Codes per level -> latents (B, T, D)."""
        return sum(  # type: ignore[return-value]
            level.restore(level.codebook(code)) for level, code in zip(self.quantizers, codes, strict=True)
        )


def one_by_one(arrays: Iterable[mx.array]) -> list[mx.array]:
    """The arrays, each computed before the next is asked for."""
    made = []
    for array in arrays:
        mx.eval(array)
        made.append(array)
    return made


def _normalised(x: mx.array) -> mx.array:
    return x / mx.maximum(mx.linalg.norm(x, axis=-1, keepdims=True), _SMALLEST)
