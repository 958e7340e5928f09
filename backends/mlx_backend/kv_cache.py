"""Keys and values that layers keep while they generate: at first those of a prompt, then with room for more.

Arrays are (B, heads, T, d). How a step writes its own is the models': one array of both, or two.
"""

from typing import Protocol

import mlx.core as mx


class Cache(Protocol):
    """Takes a layer's keys and values and returns those to attend to, with a mask of what may be seen."""

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, mx.array | str | None]: ...


class Recorder:
    """Remembers what a layer computed over a prompt; `mask` is what the prompt's rows may see."""

    offset = 0  # the position of its first row
    keys: mx.array
    values: mx.array

    def __init__(self, mask: mx.array | str = "causal"):
        self.mask = mask

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array, mx.array | str | None]:
        self.keys, self.values = keys, values
        return keys, values, self.mask


def grown(x: mx.array, slots: int) -> mx.array:
    """Keys or values with room for so many more."""
    return mx.pad(x, [(0, 0), (0, 0), (0, slots), (0, 0)])
