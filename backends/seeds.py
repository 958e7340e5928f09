"""Independent random streams from small integers."""

import numpy as np

from backends.errors import InputError

LARGEST = 2**32 - 1  # of a key; only the lower 32 bits of larger ones, and of negative ones, count

# Keys that tell streams of one run apart.
TRAINING, VALIDATION, CROPS_FOR_KMEANS = 0, 1, 2  # whose crops and noise a codec's are
KMEANS, REVIVAL, QUANTIZER, KMEANS_OF_SNAC, MUSIC_SEGMENTS, DEPTH_FRAMES = range(901, 907)

_LEAST = np.float32(2**-25)  # half of the least number that is drawn besides 0, which has no logarithm


def check(seed: int, option: str) -> None:
    """Raise InputError where this is no seed that a command takes."""
    if not 0 <= seed <= LARGEST:
        raise InputError(f"{option} {seed}: expected 0 to {LARGEST}")


def mix(*keys: int) -> int:
    """A 63-bit seed that depends on every key, e.g. mix(seed, step, rank), but not on zeros at their end."""
    return int(_sequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def rng(*keys: int) -> np.random.Generator:
    """A NumPy generator for the stream named by `keys`."""
    return np.random.default_rng(_sequence(keys))


def gumbel(shape: tuple[int, ...], *keys: int) -> np.ndarray:
    """Gumbel noise, float32, from the stream named by `keys`: -log(-log u). Of no more than 16.6."""
    drawn = rng(*keys).random(shape, dtype=np.float32)
    return -np.log(-np.log(np.maximum(drawn, _LEAST)))


def _sequence(keys: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([int(key) & LARGEST for key in keys])
