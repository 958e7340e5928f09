"""SNAC on PyTorch: upstream's module (the `snac` package) with the functions of `snac_port.model`.

Upstream's own forward has no injected noise, no quantiser losses, and runs every layer over the whole clip at once.
Here its layers are called one by one. Latents are (B, D, T), as upstream has them.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import cached

from backends.errors import missing_extra
from backends.layouts.checkpoint import Checkpoint
from backends.layouts.rules import to_ours
from backends.layouts.snac import rules
from backends.seeds import mix
from backends.torch_backend import files
from backends.torch_backend.tiling import over_time
from backends.torch_backend.world import sum_arrays, world
from snac_port import load
from snac_port.codec import Codec
from snac_port.config import SNACConfig, of_settings
from snac_port.start import start_codebook

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning)
    try:
        import snac
        from snac import layers
    except ImportError as error:
        raise missing_extra("snac", "torch") from error

Noise = Sequence[torch.Tensor] | None  # one tensor (B or 1, 1, T) for each decoder block, at that block's rate


@dataclass(frozen=True)
class Quantized:
    """As `snac_port.quantizer.Quantized`; `latents` (B, D, T) carry gradients straight through to the encoder."""

    latents: torch.Tensor
    codes: list[torch.Tensor]
    commitment: torch.Tensor
    codebook: torch.Tensor


class SNAC(Codec, snac.SNAC):
    """The codec of `config`, with random weights until some are loaded."""

    def __init__(self, config: SNACConfig):
        snac.SNAC.__init__(self, **config.settings())
        self.config = config

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: torch.device | str = "cpu", option: str = load.OPTION
    ) -> "SNAC":
        """Load from a directory, weights file or Hub id, of any layout; see `snac_port.load.from_pretrained`."""
        return cls.of_checkpoint(load.checkpoint(source, option)).to(device)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> "SNAC":
        """The codec with these weights in float32, ready to encode and decode."""
        model = cls(of_settings(checkpoint.settings))
        tensors, _ = checkpoint.as_layout("snac")
        model.load_state_dict({name: torch.from_numpy(_float32(value)) for name, value in tensors.items()})
        return model.eval()

    def tensors(self) -> dict[str, np.ndarray]:
        state = files.to_host(self.state_dict())
        return dict(to_ours(state, rules("snac", self.config.settings()), "SNAC"))

    def forward(self, audio: torch.Tensor, noise: Noise = None) -> tuple[torch.Tensor, Quantized]:
        """Audio (B, T), T a multiple of `config.unit_samples` -> audio (B, T) and what the quantiser made of it."""
        quantized = self.quantize(self.encode_latents(audio))
        return self.decode_latents(quantized.latents, noise), quantized

    def encode_latents(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio (B, T) -> latents (B, D, T / hop)."""
        x, whole = audio[:, None], torch.is_grad_enabled()
        for layer in self.encoder.block:
            x = _encoder_block(layer, x, whole) if isinstance(layer, layers.EncoderBlock) else layer(x)
        return x

    def quantize(self, latents: torch.Tensor, bypass: torch.Tensor | None = None) -> Quantized:
        """Upstream's quantiser, with the terms it had before version 1.2; `bypass` (B,) as in `snac_port.quantizer`."""
        residual, total = latents, torch.zeros_like(latents)
        commitment = codebook = latents.new_zeros(())
        codes = []
        for level in cast(Iterable[Any], self.quantizer.quantizers):
            pooled = F.avg_pool1d(residual, level.stride, level.stride) if level.stride > 1 else residual
            x = level.in_proj(pooled)
            entry, code = level.decode_latents(x)
            commitment = commitment + F.mse_loss(x, entry.detach())
            codebook = codebook + F.mse_loss(x.detach(), entry)
            chosen = x + (entry - x).detach()
            chosen = chosen if bypass is None else torch.where(bypass[:, None, None], x, chosen)
            restored = level.out_proj(chosen).repeat_interleave(level.stride, dim=-1)
            residual, total = residual - restored, total + restored
            codes.append(code)
        return Quantized(total, codes, commitment, codebook)

    @torch.no_grad()
    def start_codebooks(self, audio: np.ndarray, seed: int) -> None:
        """Start the codebooks of the first rank from audio (B, samples) of whole units, and give them to all."""
        residual = self.encode_latents(self._native(audio))
        for index, level in enumerate(cast(Iterable[Any], self.quantizer.quantizers)):
            x = level.in_proj(F.avg_pool1d(residual, level.stride, level.stride) if level.stride > 1 else residual)
            channels = x.transpose(1, 2).float().cpu().numpy()
            table = start_codebook(channels, level.codebook.weight.shape[0], mix(seed, index))
            mine = self._native(table if world().rank == 0 else np.zeros_like(table))
            level.codebook.weight.copy_(sum_arrays({"table": mine})["table"])
            entry, _ = level.decode_latents(x)
            residual = residual - level.out_proj(entry).repeat_interleave(level.stride, dim=-1)

    def decode_latents(self, latents: torch.Tensor, noise: Noise = None) -> torch.Tensor:
        """Latents (B, D, T) -> audio (B, samples). `noise` holds a tensor (B or 1, 1, T) per block; None is silence."""
        x, given, whole = latents, iter(noise or ()), torch.is_grad_enabled()
        *body, activation, last, tanh = self.decoder.model
        for layer in body:
            is_block = isinstance(layer, layers.DecoderBlock)
            x = _decoder_block(layer, x, next(given, None), whole) if is_block else layer(x)
        end = nn.Sequential(activation, last, tanh)
        return over_time(lambda piece, *_: end(piece), x, 3, whole=whole)[:, 0]

    @torch.inference_mode()
    def encode_window(self, audio: np.ndarray) -> list[np.ndarray]:
        with cached():
            _, codes = self.quantizer(self.encode_latents(self._native(audio)))
        return [level.cpu().numpy().astype(np.int32) for level in codes]

    @torch.inference_mode()
    def decode_window(self, codes: Sequence[np.ndarray], noise: Sequence[np.ndarray] | None) -> np.ndarray:
        with cached():
            latents = self.quantizer.from_codes([self._native(level.astype(np.int64)) for level in codes])
            arrays = None if noise is None else [self._native(array)[:, None] for array in noise]
            return self.decode_latents(latents, arrays).float().cpu().numpy()

    def _native(self, array: np.ndarray) -> torch.Tensor:
        parameter = next(self.parameters())
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(parameter.device)
        return tensor.to(parameter.dtype) if tensor.is_floating_point() else tensor


def _encoder_block(block: Any, x: torch.Tensor, whole: bool) -> torch.Tensor:
    """One of upstream's encoder blocks, piece by piece."""
    *units, activation, down = block.block
    for unit in units:
        x = _residual_unit(unit, x, whole)
    end, stride = nn.Sequential(activation, down), down.stride[0]
    return over_time(lambda piece, *_: end(piece), x, stride, rate=Fraction(1, stride), whole=whole)


def _decoder_block(block: Any, x: torch.Tensor, noise: torch.Tensor | None, whole: bool) -> torch.Tensor:
    """One of upstream's decoder blocks, piece by piece, with the noise given to it."""
    activation, up, *rest = block.block
    stride = up.stride[0]

    def raise_rate(piece: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        y = up(activation(piece))
        if noise is None or not isinstance(rest[0], layers.NoiseBlock):
            return y
        return y + noise[..., start * stride : stop * stride] * rest[0].linear(y)

    x = over_time(raise_rate, x, 1, rate=Fraction(stride), whole=whole)
    for unit in rest[isinstance(rest[0], layers.NoiseBlock) :]:
        x = _residual_unit(unit, x, whole)
    return x


def _residual_unit(unit: Any, x: torch.Tensor, whole: bool) -> torch.Tensor:
    return over_time(lambda piece, *_: unit(piece), x, 3 * unit.block[1].dilation[0], whole=whole)


def _float32(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.astype(np.float32))
