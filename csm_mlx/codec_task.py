"""Mimi for codec training on either backend: opened or made anew, and written in transformers' layout."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from backends.drawing import Shape, drawn, fan_in
from backends.layouts import mimi as layouts
from backends.layouts import mimi_settings
from backends.layouts.checkpoint import Checkpoint, find, open_checkpoint, read
from backends.training.codec_weights import CodecKind
from csm_mlx.config import csm_tiny, mimi_of_settings

DECODER = ("upsample.", "decoder_transformer.", "decoder.")


def opened(source: str) -> Checkpoint:
    """Mimi's weights of a weights file, directory or Hub id. Raises InputError."""
    return open_checkpoint(find(source, layouts.FAMILY, "--codec"), layouts.FAMILY)


def fresh(settings: Mapping[str, Any], seed: int) -> Checkpoint:
    """Random weights, the same on every machine and backend.

    Filters keep the size of what they see, LayerScale is as configured, norms are ones, biases zeros.
    """

    def start(name: str, shape: Shape, draw: np.random.Generator) -> np.ndarray:
        if name.endswith("layer_scale.scale"):
            return np.full(shape, settings["layer_scale"])
        if name.endswith(("norm.weight", "cluster_usage")):
            return np.ones(shape)
        if name.endswith("bias"):
            return np.zeros(shape)
        transposed = len(shape) == 3 and shape[1] % 2 == 0 and name.startswith(("decoder", "upsample"))
        inputs = 2 * shape[2] if transposed else fan_in(shape)  # a transposed kernel of 2 strides overlaps twice
        return (1.0 if "embed_sum" in name else inputs**-0.5) * draw.standard_normal(shape)

    return read(layouts.FAMILY, drawn(layouts.shapes(dict(settings)), start, seed), dict(settings), "random weights")


def _on_mlx(checkpoint: Checkpoint) -> Any:
    from csm_mlx.companions import codec_from

    return codec_from(checkpoint)


def _on_torch(checkpoint: Checkpoint) -> Any:
    from csm_mlx.torch_mimi import Mimi

    return Mimi.of_checkpoint(checkpoint)


def _wrong(found: Mapping[str, Any]) -> dict[str, object]:
    mimi_settings.to_transformers(found)
    width = found["width"]
    return {
        f"code_width {width}: expected another than width, so that there are projections": found["code_width"] == width,
    }


KIND = CodecKind(
    family=layouts.FAMILY,
    layout="mimi",
    scales={"tiny": csm_tiny().mimi.settings()},
    checked=mimi_settings.checked,
    wrong=_wrong,
    sizes=mimi_of_settings,
    decoder=DECODER,
    opened=opened,
    fresh=fresh,
    mlx=_on_mlx,
    torch=_on_torch,
)
