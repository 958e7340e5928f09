"""Random weights, the same on every machine and backend: drawn by NumPy, each tensor from the stream of its name."""

import math
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from backends.seeds import rng

Shape = tuple[int, ...]
Start = Callable[[str, Shape, np.random.Generator], np.ndarray]  # a tensor's name, shape and stream -> its values


def stream(name: str, *keys: int) -> np.random.Generator:
    """The random numbers of the tensor of this name."""
    return rng(*keys, zlib.crc32(name.encode()))


def drawn(shapes: Mapping[str, Shape], start: Start, *keys: int) -> dict[str, np.ndarray]:
    """What `start` makes of each name, float32."""
    return {name: start(name, shape, stream(name, *keys)).astype(np.float32) for name, shape in shapes.items()}


def fan_in(shape: Shape) -> int:
    """The inputs of an output: `shape` is (outputs, ...), as of linear layers and convolutions."""
    return math.prod(shape[1:])


def with_gains(
    tensors: Mapping[str, np.ndarray], factor: Callable[[str], float] = lambda _name: 1.0
) -> dict[str, np.ndarray]:
    """The tensors, where weight norm's `weight_g` are the norms of their filters `weight_v` (out, ...) times a factor.

    `factor` is of the name of the gain.
    """
    gains = {name: _norms(tensors[_filters(name)], factor(name)) for name in tensors if name.endswith("weight_g")}
    return {**tensors, **gains}


def _filters(gain: str) -> str:
    return gain.removesuffix("weight_g") + "weight_v"


def _norms(filters: np.ndarray, factor: float) -> np.ndarray:
    squares = filters.astype(np.float64) ** 2
    return (factor * np.sqrt(squares.sum(axis=tuple(range(1, filters.ndim)), keepdims=True))).astype(np.float32)
