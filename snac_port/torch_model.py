"""SNAC on PyTorch: upstream's module (the `snac` package) with the functions of `snac_port.model`.

Upstream's own forward has no injected noise, no quantiser losses, and runs every layer over the whole clip at once.
Here its layers are called one by one. Latents are (B, D, T), as upstream has them.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from backends.errors import missing_extra
from backends.layouts.checkpoint import Checkpoint
from backends.layouts.rules import to_ours
from backends.layouts.snac import rules
from backends.seeds import mix
from backends.torch_backend import files
from backends.torch_backend.blank import loaded
from backends.torch_backend.convolution import conv1d, upsample1d
from backends.torch_backend.snake import snake
from backends.torch_backend.tiling import Tensors, over_time
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
        return loaded(lambda: cls(of_settings(checkpoint.settings)), checkpoint.as_layout("snac")[0])

    def tensors(self) -> dict[str, np.ndarray]:
        state = files.to_host(self.state_dict())
        return dict(to_ours(state, rules("snac", self.config.settings()), "SNAC"))

    def forward(self, audio: torch.Tensor, noise: Noise = None) -> tuple[torch.Tensor, Quantized]:
        """Audio (B, T), T a multiple of `config.unit_samples` -> audio (B, T) and what the quantiser made of it."""
        quantized = self.quantize(self.encode_latents(audio))
        return self.decode_latents(quantized.latents, noise), quantized

    def encode_latents(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio (B, T) -> latents (B, D, T / hop)."""
        first, *body, last = self.encoder.block
        x = _in_pieces([first], audio[:, None], 3)
        for layer in body:
            x = _encoder_block(layer, x) if isinstance(layer, layers.EncoderBlock) else layer(x)
        return _in_pieces([last], x, 3)

    def quantize(self, latents: torch.Tensor, bypass: torch.Tensor | None = None) -> Quantized:
        """Upstream's quantiser, with the terms it had before version 1.2; `bypass` (B,) as in `snac_port.quantizer`.

        In its weights' type, float32, also under autocast: in bfloat16 other entries are the nearest.
        """
        with torch.autocast(latents.device.type, enabled=False):
            return self._quantize(latents.to(next(self.quantizer.parameters()).dtype), bypass)

    def _quantize(self, latents: torch.Tensor, bypass: torch.Tensor | None) -> Quantized:
        residual, total = latents, torch.zeros_like(latents)
        commitment = codebook = latents.new_zeros(())
        codes = []
        for level in cast(Iterable[Any], self.quantizer.quantizers):
            x = _projected(level, residual)
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
    def start_codebooks(self, crops: Iterable[np.ndarray], seed: int) -> None:
        """Start the codebooks of the first rank from crops (B, samples) of whole units, and give them to all.

        They are taken one by one: the first layer's output for all of them can be tens of gigabytes.
        """
        residuals = [self.encode_latents(self._native(audio)) for audio in crops]
        for index, level in enumerate(cast(Iterable[Any], self.quantizer.quantizers)):
            projected = [_projected(level, residual) for residual in residuals]
            table = np.zeros(tuple(level.codebook.weight.shape), np.float32)
            if world().rank == 0:
                channels = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in projected]).float().cpu().numpy()
                table = start_codebook(channels, len(table), mix(seed, index))
            level.codebook.weight.copy_(sum_arrays({"table": self._native(table)})["table"])
            for place, (residual, x) in enumerate(zip(residuals, projected, strict=True)):
                entry, _ = level.decode_latents(x)
                residuals[place] = residual - level.out_proj(entry).repeat_interleave(level.stride, dim=-1)

    def decode_latents(self, latents: torch.Tensor, noise: Noise = None) -> torch.Tensor:
        """Latents (B, D, T) -> audio (B, samples). `noise` holds a tensor (B or 1, 1, T) per block; None is silence."""
        x, given = latents, iter(noise or ())
        *body, activation, last, tanh = self.decoder.model
        for layer in body:
            x = _decoder_block(layer, x, next(given, None)) if isinstance(layer, layers.DecoderBlock) else layer(x)
        return _in_pieces([activation, last, tanh], x, 3)[:, 0]

    @torch.inference_mode()
    def encode_window(self, audio: np.ndarray) -> list[np.ndarray]:
        _, codes = self.quantizer(self.encode_latents(self._native(audio)))
        return [level.cpu().numpy().astype(np.int32) for level in codes]

    @torch.inference_mode()
    def decode_window(self, codes: Sequence[np.ndarray], noise: Sequence[np.ndarray] | None) -> np.ndarray:
        latents = self.quantizer.from_codes([self._native(level.astype(np.int64)) for level in codes])
        arrays = None if noise is None else [self._native(array)[:, None] for array in noise]
        return self.decode_latents(latents, arrays).float().cpu().numpy()

    def _native(self, array: np.ndarray) -> torch.Tensor:
        parameter = next(self.parameters())
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(parameter.device)
        return tensor.to(parameter.dtype) if tensor.is_floating_point() else tensor


def _encoder_block(block: Any, x: torch.Tensor) -> torch.Tensor:
    *units, activation, down = block.block
    for unit in units:
        x = _residual_unit(unit, x)
    stride = down.stride[0]
    return _in_pieces([activation, down], x, stride, stride)


def _projected(level: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, D, T) -> a level's channels (B, 8, T / stride)."""
    return level.in_proj(F.avg_pool1d(latents, level.stride, level.stride) if level.stride > 1 else latents)


def _decoder_block(block: Any, x: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """With the noise given to it."""
    activation, up, *rest = block.block
    units = rest[isinstance(rest[0], layers.NoiseBlock) :]
    gain = None if noise is None or len(units) == len(rest) else rest[0].linear
    stride = up.stride[0]

    def raise_rate(piece: torch.Tensor, weights: Tensors, rows: slice, frames: slice) -> torch.Tensor:
        y = _through([activation, up], piece, weights)
        if gain is None or noise is None:
            return y
        drawn = noise.expand(len(x), -1, -1)[rows, :, frames.start * stride : frames.stop * stride]
        return torch.addcmul(y, drawn, _through([gain], y, weights[3:]))

    weights = _weights([activation, up] if gain is None else [activation, up, gain])
    y = over_time(raise_rate, x, weights, 1, up=stride)
    for unit in units:
        y = _residual_unit(unit, y)
    return y


def _residual_unit(unit: Any, x: torch.Tensor) -> torch.Tensor:
    def added(piece: torch.Tensor, weights: Tensors, *_: slice) -> torch.Tensor:
        made = _through(unit.block, piece, weights)
        return made.add_(piece) if made.dtype == piece.dtype else made + piece  # autocast's sums stay float32

    return over_time(added, x, _weights(unit.block), 3 * unit.block[1].dilation[0])


def _in_pieces(modules: Sequence[nn.Module], x: torch.Tensor, halo: int, down: int = 1) -> torch.Tensor:
    return over_time(
        lambda piece, weights, *_: _through(modules, piece, weights), x, _weights(modules), halo, down=down
    )


def _weights(modules: Iterable[Any]) -> Tensors:
    """What `_through` takes of these layers, weight norm applied."""
    found: list[torch.Tensor | None] = []
    for module in modules:
        if isinstance(module, layers.Snake1d):
            found.append(module.alpha)
        elif not isinstance(module, nn.Tanh):
            found += [_weight(module), module.bias]
    return found


def _weight(module: Any) -> torch.Tensor:
    """With weight norm applied; for inference once for each value that its parameters have had."""
    parameters = module.parametrizations.weight
    parts = parameters.original0, parameters.original1
    if not torch.is_inference_mode_enabled() or any(part.is_inference() for part in parts):
        return module.weight  # a model made in inference mode does not count its changes
    state = [(part.data_ptr(), part._version) for part in parts]
    known, weight, _ = getattr(module, "folded", (None, None, None))
    if weight is None or known != state:
        weight = module.weight
        module.folded = state, weight, [part.detach() for part in parts]  # kept, so that their places stay theirs
    return weight


def _through(modules: Iterable[Any], x: torch.Tensor, weights: Tensors) -> torch.Tensor:
    """Upstream's layers one after the other, with these weights, in the forms of `backends.torch_backend`."""
    given: Iterator[Any] = iter(weights)
    for module in modules:
        if isinstance(module, layers.Snake1d):
            x = snake(x, next(given))
        elif isinstance(module, nn.Tanh):
            x = torch.tanh(x)
        elif isinstance(module, nn.ConvTranspose1d):
            x = upsample1d(x, next(given), next(given), stride=module.stride[0])
        else:
            sizes = {name: getattr(module, name)[0] for name in ("stride", "padding", "dilation")}
            x = conv1d(x, next(given), next(given), groups=module.groups, **sizes)
    return x
