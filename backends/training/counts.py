"""How many values the native terms of codec losses sum over: what the host divides them by.

Terms whose parts differ in size (discriminators, quantisers of several rates) are sums over items of each part's mean:
their count is the number of items.
"""

import numpy as np


def stft_count(samples: int, n_fft: int, hop: int | None = None) -> int:
    """Frames times bins of `stft_term` and `log_stft_term`, for each item."""
    return _frames(samples, n_fft, hop) * (n_fft // 2 + 1)


def mel_count(samples: int, n_fft: int, bands: int, hop: int | None = None) -> int:
    """Frames times bands of `mel_term`, for each item."""
    return _frames(samples, n_fft, hop) * bands


def commitment_count(active: np.ndarray, frames: int, width: int) -> int:
    """Values in the commitment term of `ResidualQuantizer.quantize`; `active` (B,) counts each item's codebooks."""
    return int(active.sum()) * frames * width


def _frames(samples: int, n_fft: int, hop: int | None) -> int:
    """Frames whose centres are `hop` apart, the first on the first sample."""
    return 1 + (samples + 2 * (n_fft // 2) - n_fft) // (hop or n_fft // 4)
