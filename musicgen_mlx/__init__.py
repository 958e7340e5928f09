"""MusicGen, its EnCodec codec and its T5 text encoder on MLX.

    from musicgen_mlx import Request, generate, load_engine
    engine = load_engine("small")
    audio = generate(engine, Request(prompts=["liquid drum and bass"], seeds=[0], duration_s=10))

Names load when they are first used, so that importing the package is quick and imports no framework.
"""

import importlib
from typing import TYPE_CHECKING

import backends  # noqa: F401  (loads a fast BLAS before mlx.core)

if TYPE_CHECKING:
    from musicgen_mlx.config import EncodecConfig, MusicGenConfig, T5Config, musicgen_tiny, of_scale
    from musicgen_mlx.encodec import Encodec
    from musicgen_mlx.engines import load_engine
    from musicgen_mlx.model import MusicGen
    from musicgen_mlx.music import Request, Sampling, generate, stream_generate
    from musicgen_mlx.t5 import T5Encoder

_HOMES = {
    "Encodec": "encodec",
    "EncodecConfig": "config",
    "MusicGen": "model",
    "MusicGenConfig": "config",
    "Request": "music",
    "Sampling": "music",
    "T5Config": "config",
    "T5Encoder": "t5",
    "generate": "music",
    "load_engine": "engines",
    "musicgen_tiny": "config",
    "of_scale": "config",
    "stream_generate": "music",
}

__all__ = [
    "Encodec",
    "EncodecConfig",
    "MusicGen",
    "MusicGenConfig",
    "Request",
    "Sampling",
    "T5Config",
    "T5Encoder",
    "generate",
    "load_engine",
    "musicgen_tiny",
    "of_scale",
    "stream_generate",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'musicgen_mlx' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"musicgen_mlx.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
