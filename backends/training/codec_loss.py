"""The loss of codecs with a residual quantiser whose codebooks learn by averages (Mimi, EnCodec).

    loss = l1_weight * mean |x - y|
         + stft_weight * mean over n_ffts of mean | |STFT x| - |STFT y| |
         + mel_weight * sum over DAC's seven windows of mean |log10 mel x - log10 mel y|
         + commitment_weight * mean (latent - entry)^2

The windows are Hann's. Mel magnitudes are clamped at `mel_clamp`: near 1e-2, since below it digital silence, of which
any codec makes something, rules the loss. The last line is there where the encoder trains.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from backends.data.mel import DAC_SCALES
from backends.training.counts import commitment_count, mel_count, stft_count

COMMITMENT = "commitment"


class Distances(Protocol):
    """How much the distances between two sounds count: samples, magnitudes averaged over n_ffts, log-mel (0: off)."""

    @property
    def l1_weight(self) -> float: ...
    @property
    def stft_weight(self) -> float: ...
    @property
    def n_ffts(self) -> tuple[int, ...]: ...
    @property
    def mel_weight(self) -> float: ...


def distance_coefficients(loss: Distances) -> dict[str, float]:
    """What the mean of each distance counts for, by term."""
    found = {"l1": loss.l1_weight}
    found |= {f"stft_{n_fft}": loss.stft_weight / len(loss.n_ffts) for n_fft in loss.n_ffts}
    if loss.mel_weight:
        found |= {f"mel_{n_fft}": loss.mel_weight for n_fft, _ in DAC_SCALES}
    return found


def distance_counts(loss: Distances, B: int, samples: int) -> dict[str, float]:
    """How many values each distance sums over, for B segments of so many samples."""
    found: dict[str, float] = {"l1": B * samples}
    found |= {f"stft_{n_fft}": B * stft_count(samples, n_fft) for n_fft in loss.n_ffts}
    if loss.mel_weight:
        found |= {f"mel_{n_fft}": B * mel_count(samples, n_fft, bands) for n_fft, bands in DAC_SCALES}
    return found


@dataclass(frozen=True)
class CodecLoss:
    """The loss's weights, and what its native side needs to know of the codec."""

    l1_weight: float
    stft_weight: float
    n_ffts: tuple[int, ...]
    mel_weight: float
    mel_clamp: float
    commitment_weight: float
    rate_hz: int
    frame_samples: int
    code_width: int  # of what the codebooks quantise
    decoder_only: bool = False  # neither encoder nor codebooks learn: codes stay what they are

    @property
    def coefficients(self) -> dict[str, float]:
        """What each term's mean counts for."""
        found = distance_coefficients(self)
        if not self.decoder_only:
            found[COMMITMENT] = self.commitment_weight
        return found

    def counts(self, audio: np.ndarray, active: np.ndarray) -> dict[str, float]:
        """How many values each term sums over: `audio` (B, samples), `active` (B,) codebooks of each item."""
        B, samples = audio.shape
        found = distance_counts(self, B, samples)
        if not self.decoder_only:
            found[COMMITMENT] = commitment_count(active, self.frames(samples), self.code_width)
        return found

    def frames(self, samples: int) -> int:
        """Frames of codes that cover so many samples."""
        return -(-samples // self.frame_samples)
