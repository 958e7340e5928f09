"""Independent random streams from small integers."""

import numpy as np

LARGEST = 2**32 - 1  # of a key; only the lower 32 bits of larger ones, and of negative ones, count


def mix(*keys: int) -> int:
    """A 63-bit seed that depends on every key, e.g. mix(seed, step, rank)."""
    return int(np.random.SeedSequence([key & LARGEST for key in keys]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def rng(*keys: int) -> np.random.Generator:
    """A NumPy generator for the stream named by `keys`."""
    return np.random.default_rng(np.random.SeedSequence([key & LARGEST for key in keys]))
