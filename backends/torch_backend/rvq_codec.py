"""The terms and codebooks of codecs with a residual quantiser (`backends.training.rvq_codec`), on PyTorch."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from backends.data.mel import DAC_SCALES
from backends.seeds import mix
from backends.torch_backend import rvq, stft
from backends.training.codec_loss import COMMITMENT, CodecLoss


def terms(model: Any, batch: Mapping[str, torch.Tensor], loss: CodecLoss) -> dict[str, torch.Tensor]:
    """The terms of `CodecLoss` as sums, for a batch of `RVQFamily`."""
    return distances(*rebuilt(model, batch, loss), loss)


def distances(
    audio: torch.Tensor, made: torch.Tensor, commitment: torch.Tensor, loss: CodecLoss
) -> dict[str, torch.Tensor]:
    """The terms, from what `rebuilt` gives."""
    found: dict[str, torch.Tensor] = {"l1": stft.l1_term(audio, made)}
    for n_fft in loss.n_ffts:
        found[f"stft_{n_fft}"] = stft.stft_term(audio, made, n_fft, window="hann")
    if loss.mel_weight:
        for n_fft, bands in DAC_SCALES:
            found[f"mel_{n_fft}"] = stft.mel_term(audio, made, n_fft, bands, loss.rate_hz, clamp=loss.mel_clamp)
    if not loss.decoder_only:
        found[COMMITMENT] = commitment
    return found


def rebuilt(
    model: Any, batch: Mapping[str, torch.Tensor], loss: CodecLoss
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The batch's audio (B, samples), what the codec makes of it, and the commitment."""
    audio = batch["audio"]
    samples = audio.shape[1]
    with torch.set_grad_enabled(torch.is_grad_enabled() and not loss.decoder_only):
        latents = model.latents(F.pad(audio, (0, -samples % loss.frame_samples)))
        draws = (batch.get(name) for name in ("offered", "priority"))
        quantized, _, commitment = model.quantize(latents, batch["active"], batch["bypass"], *draws)
    return audio, model.synthesise(quantized)[:, :samples], commitment


@torch.no_grad()
def reconstruct(model: Any, audio: np.ndarray, frame_samples: int) -> np.ndarray:
    """Audio (samples,) through the codes and back."""
    padded = torch.from_numpy(np.pad(audio, (0, -audio.size % frame_samples))).to(_device(model))
    return model.decode(model.encode(padded[None]))[0, : audio.size].cpu().numpy()


@torch.no_grad()
def codes(model: Any, audio: np.ndarray, frame_samples: int) -> np.ndarray:
    """The codes (K, T) of audio (samples,)."""
    padded = torch.from_numpy(np.pad(audio, (0, -audio.size % frame_samples))).to(_device(model))
    return model.encode(padded[None])[0].cpu().numpy()


@torch.no_grad()
def start_codebooks(model: Any, audio: Iterable[np.ndarray], seed: int) -> None:
    """Start all codebooks by k-means on the latents of pieces of audio (1, samples) of whole frames."""
    found = [model.quantised(model.latents(torch.from_numpy(piece).to(_device(model)))) for piece in audio]
    for index, (name, quantizer) in enumerate(rvq.quantizers(model).items()):
        quantizer.kmeans(torch.cat([part[name] for part in found], dim=1), mix(seed, index))


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
