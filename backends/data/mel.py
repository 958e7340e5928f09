"""Mel filters, in NumPy: what the mel losses of both backends and the metrics share."""

from functools import cache

import numpy as np

# Window in samples and number of bands of DAC's loss (descriptinc/descript-audio-codec, conf/base.yml).
DAC_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))

# Slaney's scale: linear to 1 kHz in steps of 66.7 Hz, then 27 steps to 6.4 times that.
_LINEAR_HZ, _KNEE_HZ, _LOG_STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27


@cache
def mel_filters(rate_hz: int, window: int, bands: int) -> np.ndarray:
    """Triangles of equal area on Slaney's scale from 0 to half the rate, (window // 2 + 1, bands) float32.

    As librosa.filters.mel makes them by default, transposed. Where bands are narrower than bins some are all zeros.
    """
    edges_hz = _mel_to_hz(np.linspace(0.0, _hz_to_mel(rate_hz / 2), bands + 2))
    bins_hz = np.arange(window // 2 + 1)[:, None] * (rate_hz / window)
    rising = (bins_hz - edges_hz[:-2]) / np.diff(edges_hz)[:-1]
    falling = (edges_hz[2:] - bins_hz) / np.diff(edges_hz)[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges_hz[2:] - edges_hz[:-2]))
    filters = filters.astype(np.float32)
    filters.setflags(write=False)
    return filters


def _hz_to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < _KNEE_HZ else _KNEE_HZ / _LINEAR_HZ + np.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    knee = _KNEE_HZ / _LINEAR_HZ
    return np.where(mel < knee, mel * _LINEAR_HZ, _KNEE_HZ * np.exp(_LOG_STEP * (mel - knee)))
