"""What training needs of MusicGen on MLX besides its terms; `musicgen_mlx.torch_side` is its mirror."""

from typing import Any

import mlx.core as mx
import numpy as np

from backends import get
from backends.base import Backend
from backends.mlx_backend import parameters
from musicgen_mlx import companions, load
from musicgen_mlx.mlx_engine import Engine
from musicgen_mlx.model import MusicGen
from musicgen_mlx.sources import Found


def engine(found: Found, backend: Backend, *, float32: bool) -> Engine:
    """The model with its codec and text encoder. float16, whose gradients vanish, becomes float32 in any case."""
    model = load.of_checkpoint(found.model)
    model._companions["found_codec"], model._companions["found_text"] = found.codec_or_fetched(), found.text
    if float32 or model.dtype == mx.float16:
        model.set_dtype(mx.float32)
    return Engine(model)


def recompute(model: MusicGen) -> None:
    """Trade time for memory in the backward pass."""
    model.recompute = True


def names(model: MusicGen) -> dict[str, str]:
    """The modules that can carry an adapter: {name in our layout: name here}."""
    return {name: name for name in get("mlx").linears(model)}


def tensors(model: MusicGen) -> dict[str, np.ndarray]:
    """The weights in our layout."""
    return get("mlx").to_host(parameters.parameters(model))


def text_rows(engine: Any, text: str) -> np.ndarray:
    """The text encoder's rows (L, W) of a description."""
    states, mask = companions.text_encoder_of(engine.model).encode([text])
    return np.array(states.astype(mx.float32))[0][np.asarray(mask)[0]]
