"""Sound from codes: given ones, or drawn ones."""

import math

import numpy as np

from backends.errors import InputError
from backends.seeds import rng
from snac_port.codec import Codec
from snac_port.codes import Codes
from snac_port.config import SNACConfig
from snac_port.noise import Noise

LONGEST_S = 86_400  # codes are drawn at once


def generate(
    model: Codec, codes: Codes | None = None, *, seconds: float = 5.0, seed: int = 0, noise: Noise = None
) -> np.ndarray:
    """Audio (samples,) float32 of `codes`, or of `seconds` of codes drawn at random, a function of the seed.

    `noise` is the decoder's, by default a function of the seed too; 0 for none.
    """
    if codes is None:
        codes = draw_codes(model.config, seconds, seed)
    return model.decode(codes, noise=noise, seed=seed)


def draw_codes(config: SNACConfig, seconds: float, seed: int) -> Codes:
    """Codes for `seconds`, every entry equally likely: what the codec's own sounds are like, not speech or music."""
    if not math.isfinite(seconds):
        raise InputError(f"--seconds {seconds}: expected a finite number")
    if seconds > LONGEST_S:
        raise InputError(f"--seconds {seconds:g}: expected at most {LONGEST_S}, a day")
    length = round(seconds * config.sampling_rate)
    if length < 1:
        raise InputError(f"--seconds {seconds}: expected at least one sample")
    draw, frames = rng(seed), config.frames(length)
    levels = [draw.integers(0, config.codebook_size, frames // stride, np.int32) for stride in config.vq_strides]
    return Codes(tuple(levels), length, config.sampling_rate)
