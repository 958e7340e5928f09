"""Independent random streams from small integers."""

import numpy as np


def mix(*keys: int) -> int:
    """A 63-bit seed that depends on every key, e.g. mix(seed, step, rank)."""
    return int(
        np.random.SeedSequence([key & 0xFFFFFFFF for key in keys]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def rng(*keys: int) -> np.random.Generator:
    """A NumPy generator for the stream named by `keys`."""
    return np.random.default_rng(np.random.SeedSequence([key & 0xFFFFFFFF for key in keys]))
