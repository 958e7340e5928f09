"""`snac_tiny` with fixed random weights, the same on every machine."""

import re

import numpy as np

from backends.drawing import Shape, drawn, fan_in, with_gains
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
    return with_gains(drawn(layouts.shapes(config.settings()), _start, seed), _gain)


def _gain(name: str) -> float:
    """Residual branches and noise add little; filters keep the size of what they see."""
    if ".linear." in name:
        return 0.1
    return 0.3 if re.search(r"block\.layers\.\d+\.block\.layers\.\d+\.block\.layers\.3\.", name) else 0.7


def _start(name: str, shape: Shape, draw: np.random.Generator) -> np.ndarray:
    if name.endswith(("alpha", "norm.weight")):
        return np.ones(shape)
    if name.endswith("bias"):
        return np.zeros(shape)
    return (1.0 if "codebook" in name else fan_in(shape) ** -0.5) * draw.standard_normal(shape)
