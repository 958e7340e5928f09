"""The delay pattern: codebook k of frame t is at step t + 1 + delay_k. NumPy, and MLX where a `stack` is given.

With four codebooks of delays 0 1 2 3 and T frames, where B is the special code and a0 codebook 0 of frame a:

    step         0   1   2   3   4  ...  T   T+1  T+2  T+3
    codebook 0   B   a0  b0  c0  d0 ...  z0  B    B    B
    codebook 1   B   B   a1  b1  c1 ...  y1  z1   B    B
    codebook 2   B   B   B   a2  b2 ...  x2  y2   z2   B
    codebook 3   B   B   B   B   a3 ...  w3  x3   y3   z3

A model reads step s and predicts step s + 1. Source: audiocraft's DelayedPatternProvider.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def steps(frames: int, delays: Sequence[int]) -> int:
    """Steps that hold `frames` frames, the first, special one included."""
    return frames + max(delays) + 1


def frames_in(length: int, delays: Sequence[int]) -> int:
    """Frames that are whole in `length` steps."""
    return max(0, length - max(delays) - 1)


def valid(frames: int, delays: Sequence[int]) -> np.ndarray:
    """(K, steps): which cells hold a code."""
    at = np.arange(steps(frames, delays)) - 1 - np.asarray(delays)[:, None]
    return (at >= 0) & (at < frames)


def delayed(codes: np.ndarray, delays: Sequence[int], special: int) -> np.ndarray:
    """Codes (..., K, T) -> steps (..., K, T + max delay + 1)."""
    *lead, K, T = codes.shape
    laid = np.full((*lead, K, steps(T, delays)), special, codes.dtype)
    for k, delay in enumerate(delays):
        laid[..., k, 1 + delay : 1 + delay + T] = codes[..., k, :]
    return laid


def reverted(laid: Any, delays: Sequence[int], stack: Callable[..., Any] = np.stack) -> Any:
    """Steps (..., K, S) -> codes (..., K, T) of the frames that are whole in them."""
    T = frames_in(laid.shape[-1], delays)
    return stack([laid[..., k, 1 + delay : 1 + delay + T] for k, delay in enumerate(delays)], axis=-2)
