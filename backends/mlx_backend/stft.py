"""Spectra of waveforms, and the distances between them that codecs train on. Waveforms are (B, samples).

Terms are sums over everything; `backends.training.counts` has what to divide them by.
"""

import mlx.core as mx
import numpy as np

from backends.base import Window
from backends.data.mel import mel_filters
from backends.errors import InputError


def spectra(
    x: mx.array, n_fft: int, *, hop: int | None = None, window: Window = "none", padding: tuple[int, int] | None = None
) -> mx.array:
    """Complex spectra (B, frames, n_fft // 2 + 1) of frames `hop` samples apart, by default n_fft // 4.

    `window` is "none" (rectangular) or "hann" (periodic). `padding` samples are reflected at the start and the end, by
    default n_fft // 2, so that the first frame is centred on the first sample, as torch.stft does. Raises InputError
    where x is too short to be reflected so far.
    """
    hop = hop or n_fft // 4
    x = _reflected(x.astype(mx.float32), *(padding or (n_fft // 2, n_fft // 2)))
    frames = _framed(x, n_fft, hop)
    if window == "hann":
        frames = frames * mx.array(np.sin(np.pi * np.arange(n_fft) / n_fft).astype(np.float32) ** 2)
    return mx.fft.rfft(frames)


def magnitudes(x: mx.array, n_fft: int, *, hop: int | None = None, window: Window = "none") -> mx.array:
    """Linear magnitudes (B, frames, n_fft // 2 + 1); by default of torch.stft's defaults. The gradient at 0 is 0."""
    return mx.abs(spectra(x, n_fft, hop=hop, window=window))


def stft_term(x: mx.array, y: mx.array, n_fft: int, *, hop: int | None = None, window: Window = "none") -> mx.array:
    """Sum of | |STFT x| - |STFT y| |."""
    x, y = (magnitudes(signal, n_fft, hop=hop, window=window) for signal in (x, y))
    return mx.abs(x - y).sum()


def log_stft_term(
    x: mx.array, y: mx.array, n_fft: int, *, hop: int | None = None, window: Window = "hann", clamp: float = 1e-5
) -> mx.array:
    """Sum of the distances between log10 of powers, of magnitudes of at least `clamp`.

    With `stft_term` of the same Hann window, over windows of 2048 and 512, this is DAC's MultiScaleSTFTLoss.
    """
    x, y = (magnitudes(signal, n_fft, hop=hop, window=window) for signal in (x, y))
    return 2.0 * _log_distance(x, y, clamp)


def mel_term(
    x: mx.array, y: mx.array, n_fft: int, bands: int, rate_hz: int, *, hop: int | None = None, clamp: float = 1e-2
) -> mx.array:
    """Sum of the distances between log10 of mel bands of Hann-windowed magnitudes, of at least `clamp`.

    Over `backends.data.mel.DAC_SCALES`, with a clamp of 1e-5, this is DAC's MelSpectrogramLoss. The larger default
    keeps digital silence, of which any codec makes something, from ruling the loss.
    """
    filters = mx.array(mel_filters(rate_hz, n_fft, bands))
    x, y = (magnitudes(signal, n_fft, hop=hop, window="hann") @ filters for signal in (x, y))
    return _log_distance(x, y, clamp)


def l1_term(x: mx.array, y: mx.array) -> mx.array:
    """Sum of |x - y|."""
    return mx.abs(x.astype(mx.float32) - y).sum()


def _log_distance(x: mx.array, y: mx.array, clamp: float) -> mx.array:
    return mx.abs(mx.log10(mx.maximum(x, clamp)) - mx.log10(mx.maximum(y, clamp))).sum()


def _reflected(x: mx.array, left: int, right: int) -> mx.array:
    samples = x.shape[1]
    if max(left, right) >= samples:
        raise InputError(
            f"a segment of {samples} samples is too short for its spectrum: give segments of more than "
            f"{max(left, right)} samples, or smaller n_ffts"
        )
    start, end = x[:, 1 : left + 1], x[:, samples - 1 - right : samples - 1]
    return mx.concatenate([start[:, ::-1], x, end[:, ::-1]], axis=1)


def _framed(x: mx.array, n_fft: int, hop: int) -> mx.array:
    """(B, samples) -> (B, frames, n_fft). Frames are made of blocks of `hop`, whose gradient is a few sums."""
    B, samples = x.shape
    frames, parts = 1 + (samples - n_fft) // hop, -(-n_fft // hop)
    blocks = frames + parts - 1
    x = mx.pad(x, [(0, 0), (0, max(0, blocks * hop - samples))])[:, : blocks * hop].reshape(B, blocks, hop)
    return mx.concatenate([x[:, part : part + frames] for part in range(parts)], axis=2)[..., :n_fft]
