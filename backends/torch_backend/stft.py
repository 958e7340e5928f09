"""Spectra of waveforms, and the distances between them that codecs train on. Waveforms are (B, samples).

Terms are sums over everything; `backends.training.counts` has what to divide them by. All is float32, also under
autocast.
"""

from functools import cache

import torch

from backends.base import Window
from backends.data.mel import mel_filters
from backends.errors import InputError


def spectra(
    x: torch.Tensor,
    n_fft: int,
    *,
    hop: int | None = None,
    window: Window = "none",
    padding: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Complex spectra (B, frames, n_fft // 2 + 1) of frames `hop` samples apart, by default n_fft // 4.

    `window` is "none" (rectangular) or "hann" (periodic). `padding` samples are reflected at the start and the end, by
    default n_fft // 2, so that the first frame is centred on the first sample, as torch.stft does. Raises InputError
    where x is too short to be reflected so far.
    """
    x = _reflected(x.float(), *(padding or (n_fft // 2, n_fft // 2)))
    make = torch.hann_window if window == "hann" else torch.ones
    shape = make(n_fft, device=x.device)
    return torch.stft(x, n_fft, hop or n_fft // 4, window=shape, center=False, return_complex=True).transpose(1, 2)


def magnitudes(x: torch.Tensor, n_fft: int, *, hop: int | None = None, window: Window = "none") -> torch.Tensor:
    """Linear magnitudes (B, frames, n_fft // 2 + 1); by default of torch.stft's defaults. The gradient at 0 is 0."""
    return spectra(x, n_fft, hop=hop, window=window).abs()


def stft_term(
    x: torch.Tensor, y: torch.Tensor, n_fft: int, *, hop: int | None = None, window: Window = "none"
) -> torch.Tensor:
    """Sum of | |STFT x| - |STFT y| |."""
    x, y = (magnitudes(signal, n_fft, hop=hop, window=window) for signal in (x, y))
    return (x - y).abs().sum()


def log_stft_term(
    x: torch.Tensor,
    y: torch.Tensor,
    n_fft: int,
    *,
    hop: int | None = None,
    window: Window = "hann",
    clamp: float = 1e-5,
) -> torch.Tensor:
    """Sum of the distances between log10 of powers, of magnitudes of at least `clamp`.

    With `stft_term` of the same Hann window, over windows of 2048 and 512, this is DAC's MultiScaleSTFTLoss.
    """
    x, y = (magnitudes(signal, n_fft, hop=hop, window=window) for signal in (x, y))
    return 2.0 * _log_distance(x, y, clamp)


def mel_term(
    x: torch.Tensor,
    y: torch.Tensor,
    n_fft: int,
    bands: int,
    rate_hz: int,
    *,
    hop: int | None = None,
    clamp: float = 1e-2,
) -> torch.Tensor:
    """Sum of the distances between log10 of mel bands of Hann-windowed magnitudes, of at least `clamp`.

    Over `backends.data.mel.DAC_SCALES`, with a clamp of 1e-5, this is DAC's MelSpectrogramLoss. The larger default
    keeps digital silence, of which any codec makes something, from ruling the loss.
    """
    filters = _mel_filters(rate_hz, n_fft, bands, x.device)
    with torch.autocast(x.device.type, enabled=False):
        x, y = (magnitudes(signal, n_fft, hop=hop, window="hann") @ filters for signal in (x, y))
        return _log_distance(x, y, clamp)


@cache
def _mel_filters(rate_hz: int, n_fft: int, bands: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(mode=False):  # what is first needed for validation is kept for training
        return torch.tensor(mel_filters(rate_hz, n_fft, bands), device=device)


def l1_term(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sum of |x - y|."""
    return (x.float() - y).abs().sum()


def _log_distance(x: torch.Tensor, y: torch.Tensor, clamp: float) -> torch.Tensor:
    return (x.clamp(min=clamp).log10() - y.clamp(min=clamp).log10()).abs().sum()


def _reflected(x: torch.Tensor, left: int, right: int) -> torch.Tensor:
    samples = x.shape[1]
    if max(left, right) >= samples:
        raise InputError(
            f"a segment of {samples} samples is too short for its spectrum: give segments of more than "
            f"{max(left, right)} samples, or smaller n_ffts"
        )
    # Not F.pad, whose gradient CUDA adds up in any order.
    return torch.cat([x[:, 1 : left + 1].flip(1), x, x[:, samples - 1 - right : samples - 1].flip(1)], dim=1)
