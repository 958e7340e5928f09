"""The terms and codebooks of codecs with a residual quantiser (`backends.training.rvq_codec`), on MLX."""

from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from backends.data.mel import DAC_SCALES
from backends.mlx_backend import rvq, stft
from backends.seeds import mix
from backends.training.codec_loss import COMMITMENT, CodecLoss


def terms(model: Any, batch: Mapping[str, mx.array], loss: CodecLoss) -> dict[str, mx.array]:
    """The terms of `CodecLoss` as sums, for a batch of `RVQFamily`."""
    return distances(*rebuilt(model, batch, loss), loss)


def distances(audio: mx.array, made: mx.array, commitment: mx.array, loss: CodecLoss) -> dict[str, mx.array]:
    """The terms, from what `rebuilt` gives."""
    found: dict[str, mx.array] = {"l1": stft.l1_term(audio, made)}
    for n_fft in loss.n_ffts:
        found[f"stft_{n_fft}"] = stft.stft_term(audio, made, n_fft, window="hann")
    if loss.mel_weight:
        for n_fft, bands in DAC_SCALES:
            found[f"mel_{n_fft}"] = stft.mel_term(audio, made, n_fft, bands, loss.rate_hz, clamp=loss.mel_clamp)
    if not loss.decoder_only:
        found[COMMITMENT] = commitment
    return found


def rebuilt(model: Any, batch: Mapping[str, mx.array], loss: CodecLoss) -> tuple[mx.array, mx.array, mx.array]:
    """The batch's audio (B, samples), what the codec makes of it, and the commitment."""
    audio = batch["audio"]
    samples = audio.shape[1]
    latents = model.latents(mx.pad(audio, [(0, 0), (0, -samples % loss.frame_samples)]))
    draws = (batch.get(name) for name in ("offered", "priority"))
    quantized, _, commitment = model.quantize(latents, batch["active"], batch["bypass"], *draws)
    if loss.decoder_only:
        quantized = mx.stop_gradient(quantized)
    return audio, model.synthesise(quantized)[:, :samples], commitment


def reconstruct(model: Any, audio: np.ndarray, frame_samples: int) -> np.ndarray:
    """Audio (samples,) through the codes and back."""
    padded = np.pad(audio, (0, -audio.size % frame_samples))
    return np.array(model.decode(model.encode(mx.array(padded)[None]))[0, : audio.size])


def codes(model: Any, audio: np.ndarray, frame_samples: int) -> np.ndarray:
    """The codes (K, T) of audio (samples,)."""
    padded = np.pad(audio, (0, -audio.size % frame_samples))
    return np.array(model.encode(mx.array(padded)[None])[0])


def start_codebooks(model: Any, audio: Iterable[np.ndarray], seed: int) -> None:
    """Start all codebooks by k-means on the latents of pieces of audio (1, samples) of whole frames."""
    found = [model.quantised(model.latents(mx.array(piece))) for piece in audio]
    for index, (name, quantizer) in enumerate(rvq.quantizers(model).items()):
        quantizer.kmeans(mx.concatenate([part[name] for part in found], axis=1), mix(seed, index))
