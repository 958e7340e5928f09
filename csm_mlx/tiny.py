"""`csm_tiny` and its codec with fixed random weights, the same on every machine."""

from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.drawing import Shape, drawn, fan_in
from backends.mlx_backend.parameters import load, parameters
from csm_mlx.config import MimiConfig, csm_tiny
from csm_mlx.mimi import Mimi
from csm_mlx.model import CSM

M = TypeVar("M", bound=nn.Module)


def model() -> CSM:
    """A `CSM(csm_tiny())` with its fixed weights."""
    return _filled(CSM(csm_tiny()))


def codec(config: MimiConfig) -> Mimi:
    """The codec of `csm_tiny` with its fixed weights, frozen."""
    mimi = _filled(Mimi(config))
    mimi.freeze()
    mimi.eval()
    return mimi


def _filled(module: M) -> M:
    """Norms, usages and layer scales as they are made, biases zero, other weights normal with variance 1 / fan-in."""
    made = parameters(module)
    shapes = {name: value.shape for name, value in made.items() if value.ndim > 1 and "cluster_usage" not in name}
    load(module, {**made, **{name: mx.array(value) for name, value in drawn(shapes, _start).items()}})
    mx.eval(module.parameters())
    return module


def _start(name: str, shape: Shape, draw: np.random.Generator) -> np.ndarray:
    inputs = shape[1] if name == "audio_head" else fan_in(shape)
    scale = 1.0 if "embed" in name else inputs**-0.5
    if name == "decoder.layers.14.weight":
        scale /= 500  # brings the codec's output, which random weights make loud, to a moderate level
    return scale * draw.standard_normal(shape)
