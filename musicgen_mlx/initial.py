"""Random weights to train from, as audiocraft starts: drawn by NumPy, keyed by name, the same on both backends."""

import re
import zlib

import numpy as np

from backends.layouts import musicgen as layouts
from musicgen_mlx.config import MusicGenConfig

CUT = 3.0  # standard deviations


def tensors(config: MusicGenConfig, seed: int) -> dict[str, np.ndarray]:
    """All of the language model's weights in our layout, float32.

    Normal, cut at three standard deviations, of variance 1 / fan-in, in layer i divided by 2 (i + 1); norms are ones,
    biases zeros.
    """
    shapes = layouts.shapes(config.settings())
    return {name: _draw(name, shape, seed) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
    layer = re.match(r"layers\.(\d+)\.", name)
    depth = 2 * (int(layer[1]) + 1) if layer else 1
    return (_cut_normal(shape, draw) * (shape[1] * depth) ** -0.5).astype(np.float32)


def _cut_normal(shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    values = draw.standard_normal(shape, np.float32)
    while (beyond := np.abs(values) > CUT).any():
        values[beyond] = draw.standard_normal(int(beyond.sum()), np.float32)
    return values
