"""MusicGen, its EnCodec codec and its T5 text encoder on MLX.

    from musicgen_mlx import MusicGen
    model = MusicGen.from_pretrained("small")

Names load when they are first used, so that importing the package is quick and imports no framework.
"""

import importlib
from typing import TYPE_CHECKING

import backends  # noqa: F401  (loads a fast BLAS before mlx.core)

if TYPE_CHECKING:
    from musicgen_mlx.config import EncodecConfig, MusicGenConfig, T5Config, musicgen_tiny, of_scale
    from musicgen_mlx.encodec import Encodec
    from musicgen_mlx.model import MusicGen
    from musicgen_mlx.t5 import T5Encoder

_HOMES = {
    "Encodec": "encodec",
    "EncodecConfig": "config",
    "MusicGen": "model",
    "MusicGenConfig": "config",
    "T5Config": "config",
    "T5Encoder": "t5",
    "musicgen_tiny": "config",
    "of_scale": "config",
}

__all__ = [
    "Encodec",
    "EncodecConfig",
    "MusicGen",
    "MusicGenConfig",
    "T5Config",
    "T5Encoder",
    "musicgen_tiny",
    "of_scale",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'musicgen_mlx' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"musicgen_mlx.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
