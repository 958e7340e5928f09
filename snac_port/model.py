"""SNAC on MLX: encoder, residual quantiser over several rates, decoder (github.com/hubertsiuzdak/snac, snac.py).

Letters: B batch, T time (samples, or latent frames), D latent width. `SNAC` is the codec with everything around it
(`snac_port.codec`); what is native to MLX and differentiable is `encoder`, `quantizer` and `decoder`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.layouts.checkpoint import Checkpoint
from backends.mlx_backend import files, parameters
from backends.mlx_backend.reading import loaded
from backends.mlx_backend.tiling import over_time
from snac_port import load
from snac_port.codec import Codec
from snac_port.config import SNACConfig, of_settings
from snac_port.layers import Conv1d, DecoderBlock, EncoderBlock, LocalMHA, Snake1d
from snac_port.quantizer import Quantized, ResidualVectorQuantize, one_by_one

Noise = Sequence[mx.array] | None  # one array (B or 1, T, 1) for each decoder block, at that block's rate


class SNAC(nn.Module, Codec):
    """The codec of `config`, with random weights until some are loaded."""

    def __init__(self, config: SNACConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = ResidualVectorQuantize(config)
        self.decoder = Decoder(config)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, option: str = load.OPTION) -> "SNAC":
        """Load from a directory, weights file or Hub id, of any layout; see `snac_port.load.from_pretrained`."""
        return cls.of_checkpoint(load.checkpoint(source, option))

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> "SNAC":
        """The codec with these weights in float32, ready to encode and decode."""
        model = cls(of_settings(checkpoint.settings))
        parameters.load(model, loaded(checkpoint.ours, mx.float32))
        model.eval()
        return model

    def tensors(self) -> dict[str, np.ndarray]:
        return files.to_host(parameters.parameters(self))

    def __call__(self, audio: mx.array, noise: Noise = None) -> tuple[mx.array, Quantized]:
        """Audio (B, T), T a multiple of `config.unit_samples` -> audio (B, T) and what the quantiser made of it."""
        quantized = self.quantizer(self.encoder(audio))
        return self.decoder(quantized.latents, noise), quantized

    def start_codebooks(self, crops: Iterable[np.ndarray], seed: int) -> None:
        """Start the codebooks of the first rank from crops (B, samples) of whole units, and give them to all.

        They are encoded one by one: the first layer's output for all of them can be tens of gigabytes.
        """
        self.quantizer.start(one_by_one(self.encoder(mx.array(audio)) for audio in crops), seed)

    def encode_window(self, audio: np.ndarray) -> list[np.ndarray]:
        codes = self.quantizer.encode(self.encoder(mx.array(audio)))
        mx.eval(codes)
        return [np.array(level).astype(np.int32) for level in codes]

    def decode_window(self, codes: Sequence[np.ndarray], noise: Sequence[np.ndarray] | None) -> np.ndarray:
        latents = self.quantizer.from_codes([mx.array(level) for level in codes])
        arrays = None if noise is None else [mx.array(array)[..., None] for array in noise]
        return np.array(self.decoder(latents, arrays).astype(mx.float32))


class Encoder(nn.Module):
    """Audio (B, T) -> latents (B, T / hop, D)."""

    def __init__(self, config: SNACConfig):
        super().__init__()
        width = config.encoder_dim
        layers: list[nn.Module] = [Conv1d(1, width, 7)]
        for stride in config.encoder_rates:
            layers.append(EncoderBlock(width, stride, width if config.depthwise else 1))
            width *= 2
        if config.attn_window_size is not None:
            layers.append(LocalMHA(width, config.attn_window_size))
        layers.append(Conv1d(width, width, 7, groups=width if config.depthwise else 1))
        self.block = nn.Sequential(*layers)

    def __call__(self, audio: mx.array) -> mx.array:
        first, *blocks, last = self.block.layers
        x = _padded(first, audio[..., None].astype(first.weight_v.dtype), whole=self.training)
        for block in blocks:
            x = block(x)
        return _padded(last, x, whole=self.training)


class Decoder(nn.Module):
    """Latents (B, T, D) -> audio (B, T hop)."""

    def __init__(self, config: SNACConfig):
        super().__init__()
        width, latent = config.decoder_dim, config.latent_dim
        layers: list[Any] = [Conv1d(latent, width, 7)]
        if config.depthwise:
            layers = [Conv1d(latent, latent, 7, groups=latent), Conv1d(latent, width, 1)]
        self.before = len(layers)
        if config.attn_window_size is not None:
            layers.append(LocalMHA(width, config.attn_window_size))
        self.first_block = len(layers)
        for index, stride in enumerate(config.decoder_rates):
            wide, out = width // 2**index, width // 2 ** (index + 1)
            layers.append(DecoderBlock(wide, out, stride, out if config.depthwise else 1, config.noise))
        self.model = nn.Sequential(*layers, Snake1d(out), Conv1d(out, 1, 7), nn.Tanh())

    def __call__(self, latents: mx.array, noise: Noise = None) -> mx.array:
        """`noise` holds one array (B or 1, samples at the block's rate, 1) per block; None is silence."""
        *layers, activation, last, tanh = self.model.layers
        x = _padded(nn.Sequential(*layers[: self.before]), latents, whole=self.training)
        for layer in layers[self.before : self.first_block]:
            x = layer(x)
        for index, block in enumerate(layers[self.first_block :]):
            x = block(x, None if noise is None else noise[index])
        return _padded(nn.Sequential(activation, last, tanh), x, whole=self.training)[..., 0]


def _padded(layer: Any, x: mx.array, *, whole: bool) -> mx.array:
    """A layer with a kernel of 7 over zero-padded x."""
    return over_time(lambda piece, *_: layer(piece), x, 3, whole=whole)
