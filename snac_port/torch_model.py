"""SNAC on PyTorch: upstream's module (the `snac` package) with the functions of `snac_port.model`.

Upstream's own forward has no injected noise and no quantiser losses; both are here, made of its layers. Latents are
(B, D, T), as upstream has them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.parametrize import cached

from backends.errors import missing_extra
from backends.layouts.checkpoint import Checkpoint
from backends.layouts.rules import to_ours
from backends.layouts.snac import rules
from backends.torch_backend import files
from snac_port import load
from snac_port.codec import Codec
from snac_port.config import SNACConfig, of_settings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning)
    try:
        import snac
        from snac.layers import DecoderBlock, NoiseBlock
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
    def from_pretrained(cls, source: str | Path, *, device: torch.device | str = "cpu") -> "SNAC":
        """Load from a directory, weights file or Hub id, of any layout; see `snac_port.load.from_pretrained`."""
        return cls.of_checkpoint(load.checkpoint(source)).to(device)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> "SNAC":
        """The codec with these weights, ready to encode and decode."""
        model = cls(of_settings(checkpoint.settings))
        tensors, _ = checkpoint.as_layout("snac")
        model.load_state_dict({name: torch.from_numpy(_float32(value)) for name, value in tensors.items()})
        return model.eval()

    def tensors(self) -> dict[str, np.ndarray]:
        state = files.to_host(self.state_dict())
        return dict(to_ours(state, rules("snac", self.config.settings()), "SNAC"))

    def forward(self, audio: torch.Tensor, noise: Noise = None) -> tuple[torch.Tensor, Quantized]:
        """Audio (B, T), T a multiple of `config.unit_samples` -> audio (B, T) and what the quantiser made of it."""
        quantized = self.quantize(self.encoder(audio[:, None]))
        return self.decode_latents(quantized.latents, noise), quantized

    def quantize(self, latents: torch.Tensor) -> Quantized:
        """Upstream's quantiser, with the terms it had before version 1.2."""
        residual, total = latents, torch.zeros_like(latents)
        commitment = codebook = latents.new_zeros(())
        codes = []
        for level in self.quantizer.quantizers:
            pooled = F.avg_pool1d(residual, level.stride, level.stride) if level.stride > 1 else residual
            x = level.in_proj(pooled)
            entry, code = level.decode_latents(x)
            commitment = commitment + F.mse_loss(x, entry.detach())
            codebook = codebook + F.mse_loss(x.detach(), entry)
            restored = level.out_proj(x + (entry - x).detach()).repeat_interleave(level.stride, dim=-1)
            residual, total = residual - restored, total + restored
            codes.append(code)
        return Quantized(total, codes, commitment, codebook)

    def decode_latents(self, latents: torch.Tensor, noise: Noise = None) -> torch.Tensor:
        """Latents (B, D, T) -> audio (B, samples). `noise` holds a tensor (B or 1, 1, T) per block; None is silence."""
        x, given = latents, iter(noise or ())
        for layer in self.decoder.model:
            x = _block(layer, x, next(given, None)) if isinstance(layer, DecoderBlock) else layer(x)
        return x[:, 0]

    @torch.inference_mode()
    def encode_window(self, audio: np.ndarray) -> list[np.ndarray]:
        with cached():
            _, codes = self.quantizer(self.encoder(self._native(audio)[:, None]))
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


def _block(block: Any, x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """One of upstream's decoder blocks with the noise given to it."""
    for layer in block.block:
        if not isinstance(layer, NoiseBlock):
            x = layer(x)
        elif noise is not None:
            x = x + noise * layer.linear(x)
    return x


def _float32(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.astype(np.float32))
