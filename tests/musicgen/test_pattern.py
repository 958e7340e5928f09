"""The delay pattern against written-out tables."""

import mlx.core as mx
import numpy as np
import pytest

from musicgen_mlx import pattern
from musicgen_mlx.config import of_scale

MONO, STEREO = (0, 1, 2, 3), (0, 0, 1, 1, 2, 2, 3, 3)
B = 99
# Codes of 5 frames: 10 k + frame.
TABLE = [
    [B, 0, 1, 2, 3, 4, B, B, B],
    [B, B, 10, 11, 12, 13, 14, B, B],
    [B, B, B, 20, 21, 22, 23, 24, B],
    [B, B, B, B, 30, 31, 32, 33, 34],
]


def codes(codebooks: int, frames: int) -> np.ndarray:
    return 10 * np.arange(codebooks)[:, None] + np.arange(frames)


def test_mono_is_the_table():
    np.testing.assert_array_equal(pattern.delayed(codes(4, 5), MONO, B), TABLE)
    np.testing.assert_array_equal(pattern.valid(5, MONO), np.array(TABLE) != B)


def test_stereo_delays_left_and_right_together():
    laid = pattern.delayed(codes(8, 5), STEREO, B)
    expected = np.repeat(TABLE, 2, axis=0)
    expected = np.where(expected == B, B, expected % 10 + 10 * np.arange(8)[:, None])
    np.testing.assert_array_equal(laid, expected)
    assert of_scale("small", channels=2).delays == STEREO
    assert of_scale("small").delays == MONO


@pytest.mark.parametrize("frames", [1, 2, 5, 50])
@pytest.mark.parametrize("delays", [MONO, STEREO, (0,), (0, 2, 1)], ids=str)
def test_reverting_gives_every_frame_back(frames, delays):
    given = np.random.default_rng(0).integers(0, 64, (2, len(delays), frames))
    laid = pattern.delayed(given, delays, 64)
    assert laid.shape[-1] == pattern.steps(frames, delays)
    np.testing.assert_array_equal(laid != 64, np.broadcast_to(pattern.valid(frames, delays), laid.shape))
    np.testing.assert_array_equal(pattern.reverted(laid, delays), given)
    native = pattern.reverted(mx.array(laid), delays, mx.stack)
    np.testing.assert_array_equal(np.array(native), given)


def test_30_seconds_are_1504_steps():
    assert pattern.steps(1500, MONO) == 1504
    assert pattern.frames_in(1504, MONO) == 1500
    assert pattern.frames_in(3, MONO) == 0
