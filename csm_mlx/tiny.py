"""`csm_tiny` and its codec with fixed random weights, the same on every machine: drawn by NumPy, keyed by name."""

import zlib
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

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
    drawn = {name: mx.array(_draw(name, value)) for name, value in parameters(module).items()}
    load(module, drawn)
    mx.eval(module.parameters())
    return module


def _draw(name: str, like: mx.array) -> np.ndarray:
    """Norms, usages and layer scales as they are made, biases zero, other weights normal with variance 1 / fan-in."""
    if like.ndim == 1 or name.endswith("cluster_usage"):
        return np.array(like)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    fan_in = like.shape[1] if name == "audio_head" else int(np.prod(like.shape[1:]))
    scale = 1.0 if "embed" in name else fan_in**-0.5
    if name == "decoder.layers.14.weight":
        scale /= 500  # brings the codec's output, which random weights make loud, to a moderate level
    return (scale * rng.standard_normal(like.shape)).astype(np.float32)
