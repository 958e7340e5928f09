"""`snac_tiny` with fixed random weights, the same on every machine: drawn by NumPy, keyed by name."""

import re
import zlib

import numpy as np

from backends.layouts import snac as layouts
from backends.layouts.checkpoint import Checkpoint, read
from snac_port.config import SNACConfig, snac_tiny


def checkpoint(config: SNACConfig | None = None, seed: int = 0) -> Checkpoint:
    """The weights of `snac_tiny`, or of any other shape."""
    config = config or snac_tiny()
    tensors = draw(config, seed)
    return read(layouts.FAMILY, tensors, config.settings(), config.name or "tiny")


def draw(config: SNACConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of our layout at which the signal neither dies nor explodes, whatever the shape."""
    shapes = layouts.shapes(config.settings())
    tensors = {name: _draw(name, shape, seed) for name, shape in shapes.items()}
    for name in shapes:
        if name.endswith("weight_g"):
            v = tensors[name.replace("weight_g", "weight_v")].astype(np.float64)
            tensors[name] = (_gain(name) * np.sqrt((v**2).sum((1, 2), keepdims=True))).astype(np.float32)
    return tensors


def _gain(name: str) -> float:
    """Residual branches and noise add little; filters keep the size of what they see."""
    if ".linear." in name:
        return 0.1
    return 0.3 if re.search(r"block\.layers\.\d+\.block\.layers\.\d+\.block\.layers\.3\.", name) else 0.7


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith(("alpha", "norm.weight")):
        return np.ones(shape, np.float32)
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    scale = 1.0 if "codebook" in name else int(np.prod(shape[1:])) ** -0.5
    return (scale * rng.standard_normal(shape)).astype(np.float32)
