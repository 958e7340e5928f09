"""EnCodec for codec training on either backend: opened or made anew, and written in transformers' layout."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from backends.drawing import Shape, drawn
from backends.errors import InputError
from backends.layouts import encodec as layouts
from backends.layouts import encodec_settings
from backends.layouts.checkpoint import Checkpoint, read
from backends.training.codec_weights import CodecKind
from musicgen_mlx import sources
from musicgen_mlx.config import EncodecConfig, encodec_of_settings, musicgen_tiny

_TINY = musicgen_tiny().encodec
SCALES = {  # parameters: 0.2 M, 4 M, 58 M
    "tiny": _TINY,
    "small": replace(_TINY, filters=16, width=64, entries=256),
    "32khz": EncodecConfig(),
}


def opened(source: str) -> Checkpoint:
    """EnCodec's weights of a weights file, directory or Hub id. Raises InputError, also where it is stereo."""
    checkpoint = sources.codec(source)
    if encodec_of_settings(checkpoint.settings).channels != 1:
        raise InputError(f"--codec {source}: a stereo codec; only codecs of one channel are trained")
    return checkpoint


def fresh(settings: Mapping[str, Any], seed: int) -> Checkpoint:
    """Random weights, the same on every machine and backend.

    Filters keep the size of what they see, LSTMs are as PyTorch starts them, biases zeros.
    """
    transposed = {f"{name}.weight_g" for name, _, turned in layouts.convolutions(dict(settings)) if turned}
    shapes = layouts.shapes(dict(settings))
    strides = {name: shapes[name.replace("weight_g", "weight_v")][1] // 2 for name in transposed}

    def start(name: str, shape: Shape, draw: np.random.Generator) -> np.ndarray:
        if name.endswith("weight_g"):  # a transposed kernel of two strides, per input channel, meets each output twice
            return np.full(shape, (strides.get(name, 2) / 2) ** 0.5)
        if name.endswith("cluster_usage"):
            return np.ones(shape)
        if len(shape) == 1:
            return np.zeros(shape)
        if ".lstm." in name:
            return draw.uniform(-1, 1, shape) * shape[1] ** -0.5
        return draw.standard_normal(shape, np.float32)

    return read(layouts.FAMILY, drawn(shapes, start, seed), dict(settings), "random weights")


def _on_mlx(checkpoint: Checkpoint) -> Any:
    from musicgen_mlx.companions import codec_from

    return codec_from(checkpoint)


def _on_torch(checkpoint: Checkpoint) -> Any:
    from musicgen_mlx.torch_encodec import Encodec

    return Encodec.of_checkpoint(checkpoint)


def _wrong(found: Mapping[str, Any]) -> dict[str, object]:
    restored = encodec_settings.from_transformers(encodec_settings.to_transformers(found))
    return {
        f"lstm_layers {found['lstm_layers']}: expected at least 1": found["lstm_layers"] < 1,
        f"channels {found['channels']}: only codecs of one channel are trained": found["channels"] != 1,
        f"{[k for k in found if found[k] != restored[k]]}: not what transformers' form can hold": found != restored,
    }


KIND = CodecKind(
    family=layouts.FAMILY,
    layout="encodec",
    scales={name: config.settings() for name, config in SCALES.items()},
    checked=encodec_settings.checked,
    wrong=_wrong,
    sizes=encodec_of_settings,
    decoder=("decoder.",),
    opened=opened,
    fresh=fresh,
    mlx=_on_mlx,
    torch=_on_torch,
)
