"""Where long audio is cut, and how much of what lies around a piece is needed to compute it exactly.

Everything is counted in units: `config.unit_frames` latent frames, which hold one code of the coarsest level and whole
attention windows (85 ms at 24 kHz). Chunks start at fixed multiples, so a stream and a file are cut at the same places.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from backends.values import check_number
from snac_port.config import SNACConfig

CHUNK_CONTEXTS = 16  # a chunk is so many times its context, so that computing the context twice costs an eighth
_UNITS_REACH = 3 * (1 + 3 + 9)  # samples that three residual units see to either side
_KERNEL_REACH = 3  # and a convolution with a kernel of 7
_FAR = 1 << 20  # units; any place far from both ends


@dataclass(frozen=True)
class Window:
    """Units start..stop, computed from units low..high."""

    start: int
    stop: int
    low: int
    high: int


def chunk_units(config: SNACConfig, chunk_s: float | None) -> int:
    """Units of a chunk of about `chunk_s` seconds, at least one; by default 4.1 s at 24 kHz, 8.9 s at 44.1 kHz."""
    if chunk_s is None:
        return CHUNK_CONTEXTS * max(encoder_context(config), decoder_context(config))
    check_number("chunk_s", chunk_s, what="seconds")
    return max(1, round(chunk_s * config.sampling_rate / config.unit_samples))


def windows(units: int, chunk: int, context: int) -> Iterator[Window]:
    """The windows of `units` units."""
    for start in range(0, units, chunk):
        stop = min(start + chunk, units)
        yield Window(start, stop, max(0, start - context), min(units, stop + context))


def sliding(pieces: Iterable[np.ndarray], chunk: int, context: int) -> Iterator[tuple[Window, np.ndarray]]:
    """The windows of a stream of rows, one per unit, each as soon as its context is there; with their rows."""
    kept, low, start = None, 0, 0  # rows from unit `low` on; the next window's start
    for piece in pieces:
        kept = piece if kept is None else np.concatenate([kept, piece])
        while low + len(kept) >= start + chunk + context:
            window = Window(start, start + chunk, max(0, start - context), start + chunk + context)
            yield window, kept[window.low - low : window.high - low]
            start += chunk
            kept, low = kept[max(0, start - context) - low :], max(0, start - context)
    if kept is None:
        return
    for window in windows(low + len(kept), chunk, context):
        if window.start >= start:
            yield window, kept[window.low - low : window.high - low]


def encoder_context(config: SNACConfig) -> int:
    """Units on either side of a window that its codes depend on (3 at 24 kHz, 2 at 32 and 44 kHz)."""
    frames = config.unit_frames * _FAR
    low, high = _attention(config, 0 - _KERNEL_REACH, frames + _KERNEL_REACH)
    for stride in reversed(config.encoder_rates):
        padding = math.ceil(stride / 2)
        low, high = low * stride - padding, (high + 1) * stride - padding
        low, high = low - _UNITS_REACH, high + _UNITS_REACH
    low, high = low - _KERNEL_REACH, high + _KERNEL_REACH
    return math.ceil(max(-low, high - frames * config.hop_samples) / config.unit_samples)


def decoder_context(config: SNACConfig) -> int:
    """Units on either side of a window that its audio depends on (3 at 24 kHz, 2 at 32 and 44 kHz)."""
    frames = config.unit_frames * _FAR
    low, high = 0 - _KERNEL_REACH, frames * config.hop_samples + _KERNEL_REACH
    for stride in reversed(config.decoder_rates):
        padding = math.ceil(stride / 2)
        low, high = low - _UNITS_REACH, high + _UNITS_REACH
        low, high = (low + padding) // stride - 1, (high - 1 + padding) // stride + 1
    low, high = _attention(config, low, high)
    low, high = low - _KERNEL_REACH, high + _KERNEL_REACH
    return math.ceil(max(-low, high - frames) / config.unit_frames)


def _attention(config: SNACConfig, low: int, high: int) -> tuple[int, int]:
    """Whole attention windows around low..high."""
    size = config.attn_window_size or 1
    return low // size * size, -(-high // size) * size
