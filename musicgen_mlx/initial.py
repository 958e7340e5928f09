"""Random weights to train from: the same on both backends.

They are drawn as audiocraft draws them (models/lm.py, modules/transformer.py), except that heads start at a tenth, so
that a model that knows nothing says so: its loss starts at ln(entries), where audiocraft's is half a nat above.
"""

import re
from dataclasses import replace

import numpy as np

from backends.drawing import stream
from backends.layouts import musicgen as layouts
from musicgen_mlx.config import EncodecConfig, MusicGenConfig, T5Config

CUT = 3.0  # standard deviations
UNIFORM = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "output_proj.weight")  # PyTorch's own start of a linear
HEADS = 0.1


def fitted(config: MusicGenConfig, encodec: EncodecConfig, t5: T5Config | None) -> MusicGenConfig:
    """The configuration with the sizes that a codec and, where there is one, a text encoder ask for."""
    config = replace(config, encodec=encodec, codebooks=encodec.codebooks * config.channels, entries=encodec.entries)
    return config if t5 is None else replace(config, t5=t5, text_width=t5.width)


def tensors(config: MusicGenConfig, seed: int) -> dict[str, np.ndarray]:
    """All of the language model's weights in our layout."""
    return {name: draw(name, shape, seed) for name, shape in layouts.shapes(config.settings()).items()}


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The start of a tensor of ours, float32.

    What projects to queries, keys, values and from conditions is uniform within 1 / sqrt(fan-in). The rest is normal,
    cut at three standard deviations, of variance 1 / fan-in, in layer i divided by 2 (i + 1). Norms are ones, biases
    zeros.
    """
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    values = stream(name, seed)
    if name.endswith(UNIFORM):
        return (values.uniform(-1, 1, shape) * shape[1] ** -0.5).astype(np.float32)
    layer = re.match(r"layers\.(\d+)\.", name)
    depth = 2 * (int(layer[1]) + 1) if layer else 1
    scale = (shape[1] * depth) ** -0.5 * (HEADS if name.startswith("linears.") else 1.0)
    return (_cut_normal(shape, values) * scale).astype(np.float32)


def _cut_normal(shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    values = draw.standard_normal(shape, np.float32)
    while (beyond := np.abs(values) > CUT).any():
        values[beyond] = draw.standard_normal(int(beyond.sum()), np.float32)
    return values
