"""The decoder's noise, made on the host: the same arrays for both frameworks.

Each decoder block adds noise, one value per sample at the block's rate for all channels. Upstream draws it anew at
every call: the same codes never sound the same twice, and differently in a batch or in chunks. Here a value depends on
(seed, block, absolute position) alone: chunked equals whole, batched equals single, a seed means one sound.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from backends.errors import InputError
from snac_port.config import SNACConfig

Noise = Literal[0] | Sequence[np.ndarray] | None
Source = Callable[[int, int], list[np.ndarray] | None]  # latent frames start..stop -> (T,) for each block

_PER_COUNTER = 8  # values from one step of the generator: four words of 64 bits, two values of 32 bits each


def source(config: SNACConfig, noise: Noise, seed: int) -> Source:
    """Where a decoder takes its noise from.

    `noise` None: from (seed, block, position); 0: none at all; or an array (samples at the block's rate,) for each
    block, coarsest rate first. Raises InputError for arrays that are not as many as the blocks, or too short.
    """
    if not config.noise or (isinstance(noise, (int, float)) and noise == 0):
        return lambda start, stop: None
    rates = [math.prod(config.decoder_rates[: index + 1]) for index in range(len(config.decoder_rates))]
    if noise is None:
        return lambda start, stop: [keyed(seed, block, start * rate, stop * rate) for block, rate in enumerate(rates)]
    given = _given(noise, len(rates))
    return lambda start, stop: [
        _slice(given[block], block, start * rate, stop * rate) for block, rate in enumerate(rates)
    ]


def _given(noise: Sequence[np.ndarray] | float, blocks: int) -> list[np.ndarray]:
    arrays = (
        [] if isinstance(noise, (int, float)) else [np.atleast_1d(np.asarray(array, np.float32)) for array in noise]
    )
    if len(arrays) != blocks or any(array.size != array.shape[-1] for array in arrays):
        shapes = noise if isinstance(noise, (int, float)) else ", ".join(str(array.shape) for array in arrays)
        raise InputError(
            f"noise: expected None, 0 or an array (samples,) for each of the {blocks} decoder blocks, found {shapes}"
        )
    return [array.reshape(-1) for array in arrays]


def keyed(seed: int, block: int, start: int, stop: int) -> np.ndarray:
    """Standard normal values (stop - start,) float32 of positions start..stop: Philox, then Box-Muller on pairs."""
    first, last = start // _PER_COUNTER, -(-stop // _PER_COUNTER)
    words = np.random.Philox(key=_words(seed % 2**64, block), counter=_words(first, 0, 0, 0)).random_raw(
        4 * (last - first)
    )
    halves = np.frombuffer(words.astype("<u8"), "<u4").astype(np.float32).reshape(-1, 2)
    radius = np.sqrt(-2.0 * np.log((halves[:, 0] + 0.5) * np.float32(2.0**-32)))
    angle = halves[:, 1] * np.float32(2 * math.pi * 2.0**-32)
    values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return values[start - first * _PER_COUNTER : stop - first * _PER_COUNTER]


def _words(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def _slice(array: np.ndarray, block: int, start: int, stop: int) -> np.ndarray:
    if array.size < stop:
        raise InputError(f"noise: the array of block {block} has {array.size} values, this audio needs {stop}")
    return array[start:stop]
