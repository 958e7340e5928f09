"""How far a codec's output is from what went in: SI-SDR, STFT and mel distance, over streams of any length.

Definitions are those behind the tables of DAC and SNAC: the defaults of audiotools' SISDRLoss, MultiScaleSTFTLoss and
MelSpectrogramLoss (github.com/descriptinc/audiotools, metrics/), here at the codec's own rate.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from backends.data.mel import mel_filters

SCALES = ((2048, 150), (512, 80))  # window in samples and number of mel bands; the hop is a quarter of the window
SMALLEST = 1e-5  # magnitude below which logarithms are cut
_EPSILON = 1e-8


class Comparison:
    """Distances between a reference and an estimate that come in pieces, of any length each."""

    def __init__(self, rate_hz: int):
        self._moments = np.zeros(6)  # samples, sums of x, y, x x, y y, x y
        self._scales = [_Scale(rate_hz, window, bands) for window, bands in SCALES]
        self._waiting = [np.zeros(0, np.float32), np.zeros(0, np.float32)]
        self._done = False

    def add(self, reference: np.ndarray | None = None, estimate: np.ndarray | None = None) -> None:
        """Take the next samples of either signal."""
        for index, piece in enumerate((reference, estimate)):
            if piece is not None:
                self._waiting[index] = np.concatenate([self._waiting[index], np.asarray(piece, np.float32)])
        common = min(map(len, self._waiting))
        if common:
            x, y = (part[:common] for part in self._waiting)
            self._waiting = [part[common:] for part in self._waiting]
            self._moments += _moments(x.astype(np.float64), y.astype(np.float64))
            for scale in self._scales:
                scale.add(x, y)

    @property
    def si_sdr_db(self) -> float:
        """Scale-invariant signal-to-distortion ratio in dB, of the signals without their means."""
        n, x, y, xx, yy, xy = self._moments
        xx, yy, xy = xx - x * x / n, yy - y * y / n, xy - x * y / n
        scale = (xy + _EPSILON) / (xx + _EPSILON)
        signal, noise = scale**2 * xx, max(0.0, yy - 2 * scale * xy + scale**2 * xx)
        return float(10 * np.log10(signal / max(noise, 1e-30) + _EPSILON))

    @property
    def stft_distance(self) -> float:
        """L1 of magnitudes plus L1 of the log10 of powers, summed over windows."""
        return self._total("stft")

    @property
    def mel_distance(self) -> float:
        """The same of mel bands."""
        return self._total("mel")

    def _total(self, name: str) -> float:
        if not self._done:
            self._done = True
            for scale in self._scales:
                scale.finish()
        return float(sum(scale.mean(name) for scale in self._scales))


def compare(reference: np.ndarray, estimate: np.ndarray, rate_hz: int) -> Comparison:
    """The distances between two signals (samples,)."""
    comparison = Comparison(rate_hz)
    comparison.add(reference, estimate)
    return comparison


class _Scale:
    """Sums of the distances in one window size, over centred frames with reflected ends."""

    def __init__(self, rate_hz: int, window: int, bands: int):
        self.window, self.hop = window, window // 4
        self.filters = mel_filters(rate_hz, window, bands)
        self.sums = {"stft": 0.0, "mel": 0.0}
        self.counts = {"stft": 0, "mel": 0}
        self.kept = np.zeros((2, 0), np.float32)  # what later frames still need
        self.started = False

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        self.kept = np.concatenate([self.kept, np.stack([x, y])], axis=1)
        half = self.window // 2
        if not self.started and self.kept.shape[1] > half:
            self.kept = np.concatenate([self.kept[:, half:0:-1], self.kept], axis=1)
            self.started = True
        # The last samples wait: the end is a reflection of them.
        if self.started and self.kept.shape[1] - half - 1 >= self.window:
            self._take((self.kept.shape[1] - half - 1 - self.window) // self.hop + 1)

    def finish(self) -> None:
        half = self.window // 2
        before = 0 if self.started else half
        padded = np.pad(self.kept, [(0, 0), (before, half)], mode="reflect")
        self.kept = padded
        self._take((padded.shape[1] - self.window) // self.hop + 1)

    def mean(self, name: str) -> float:
        return self.sums[name] / self.counts[name]

    def _take(self, frames: int) -> None:
        for first, last in _spans(frames, 256):
            part = self.kept[:, first * self.hop : (last - 1) * self.hop + self.window]
            cut = np.lib.stride_tricks.sliding_window_view(part, self.window, axis=1)[:, :: self.hop]
            magnitudes = np.abs(np.fft.rfft(cut * _hann(self.window)))
            for name, values in (("stft", magnitudes), ("mel", magnitudes @ self.filters)):
                logs = 2 * np.log10(np.maximum(values, SMALLEST))
                self.sums[name] += float(np.abs(values[0] - values[1]).sum() + np.abs(logs[0] - logs[1]).sum())
                self.counts[name] += values[0].size
        self.kept = self.kept[:, frames * self.hop :]


def _moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([x.size, x.sum(), y.sum(), x @ x, y @ y, x @ y])


def _spans(count: int, step: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + step, count)) for first in range(0, count, step))


@cache
def _hann(window: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
