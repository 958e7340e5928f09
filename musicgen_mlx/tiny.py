"""`musicgen_tiny`, its codec and its text encoder with fixed random weights, the same on every machine.

Drawn by NumPy, keyed by name.
"""

import zlib
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.mlx_backend.parameters import load, parameters
from musicgen_mlx.config import Condition, EncodecConfig, T5Config, musicgen_tiny
from musicgen_mlx.encodec import Encodec
from musicgen_mlx.model import MusicGen
from musicgen_mlx.t5 import T5Encoder, TextEncoder

TOKENIZER = Path(__file__).parent / "assets" / "tiny_tokenizer.json"
M = TypeVar("M", bound=nn.Module)


def model(condition: Condition = "cross", channels: int = 1) -> MusicGen:
    """A `MusicGen(musicgen_tiny())` with its fixed weights, codec and text encoder."""
    config = musicgen_tiny(condition, channels)
    made = _filled(MusicGen(config))
    made._companions["codec"] = codec(config.encodec)
    if condition != "none":
        made._companions["text_encoder"] = text_encoder(config.t5)
    return made


def codec(config: EncodecConfig) -> Encodec:
    """The codec of `musicgen_tiny` with its fixed weights, frozen."""
    made = _filled(Encodec(config))
    made.freeze()
    return made


def text_encoder(config: T5Config) -> TextEncoder:
    """The text encoder of `musicgen_tiny` with its fixed weights, frozen."""
    made = _filled(T5Encoder(config))
    made.freeze()
    return TextEncoder(made, TOKENIZER)


def _filled(module: M) -> M:
    drawn = {name: mx.array(_draw(name, value)) for name, value in parameters(module).items()}
    load(module, drawn)
    mx.eval(module.parameters())
    module.eval()
    return module


def _draw(name: str, like: mx.array) -> np.ndarray:
    """Norms and usages as they are made, biases zero, other weights normal with variance 1 / fan-in.

    Weight norm's g makes each output channel's filter one long.
    """
    if name.endswith("weight_g"):
        return np.ones(like.shape, np.float32)
    if name.endswith("cluster_usage") or (like.ndim == 1 and "norm" in name):
        return np.array(like)
    if like.ndim == 1:
        return np.zeros(like.shape, np.float32)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    scale = 1.0 if "emb" in name else int(np.prod(like.shape[1:])) ** -0.5
    return (scale * rng.standard_normal(like.shape)).astype(np.float32)
