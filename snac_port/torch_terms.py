"""SNAC's training terms on PyTorch; `snac_port.mlx_terms` is its mirror."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from backends.data.mel import DAC_SCALES
from backends.torch_backend import stft
from snac_port.loss import LossSpec


def terms(model: Any, batch: Mapping[str, torch.Tensor], spec: LossSpec) -> dict[str, torch.Tensor]:
    """The terms of `LossSpec` as sums, for a batch of `snac_port.task.SNACFamily`."""
    return distances(*rebuilt(model, batch, spec), spec)


def distances(
    audio: torch.Tensor, made: torch.Tensor, extra: Mapping[str, torch.Tensor], spec: LossSpec
) -> dict[str, torch.Tensor]:
    """The terms for what `rebuilt` returns."""
    found: dict[str, torch.Tensor] = {"l1": stft.l1_term(audio, made)}
    for n_fft in spec.n_ffts:
        found[f"stft_{n_fft}"] = stft.stft_term(audio, made, n_fft, window=spec.stft_window)
    if spec.mel_weight:
        for n_fft, bands in DAC_SCALES:
            found[f"mel_{n_fft}"] = stft.mel_term(audio, made, n_fft, bands, spec.rate_hz)
    return {**found, **extra}


def rebuilt(
    model: Any, batch: Mapping[str, torch.Tensor], spec: LossSpec
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The batch's audio (B, samples), what the codec makes of it, and the quantiser's terms where it takes part."""
    audio = batch["audio"]
    B, samples = audio.shape
    noise = [batch[f"noise_{block}"][:, None] for block in range(spec.noise_blocks)] or None
    if "codes_0" in batch:
        codes = [batch[f"codes_{level}"] for level in range(spec.levels)]
        latents, extra = model.quantizer.from_codes(codes).detach(), {}
    else:
        latents = model.encode_latents(F.pad(audio, (0, -samples % spec.unit_samples)))
        quantized = model.quantize(latents, batch["bypass"])
        latents, extra = quantized.latents, _quantiser_terms(quantized, B, spec)
    return audio, model.decode_latents(latents, noise)[:, :samples], extra


def _quantiser_terms(quantized: Any, B: int, spec: LossSpec) -> dict[str, torch.Tensor]:
    """Means over items of one length, times their number: sums whose count is the number of items."""
    found = {"commitment": quantized.commitment * B, "codebook": quantized.codebook * B}
    return {name: found[name] for name in spec.quantiser_terms}
