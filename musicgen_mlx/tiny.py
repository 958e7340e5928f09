"""`musicgen_tiny`, its codec and its text encoder with fixed random weights, the same on every machine.

Drawn by NumPy, keyed by name.
"""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.layouts import encodec, musicgen, t5
from backends.layouts.checkpoint import Checkpoint, read
from backends.layouts.families import Family
from musicgen_mlx.config import Condition, EncodecConfig, T5Config, musicgen_tiny

if TYPE_CHECKING:
    from musicgen_mlx.encodec import Encodec
    from musicgen_mlx.model import MusicGen
    from musicgen_mlx.t5 import TextEncoder

TOKENIZER = Path(__file__).parent / "assets" / "tiny_tokenizer.json"


def checkpoints(condition: Condition = "cross", channels: int = 1) -> dict[str, Checkpoint]:
    """The model and what comes with it, by family."""
    config = musicgen_tiny(condition, channels)
    settings = config.settings()
    found = {"musicgen": _drawn(musicgen.FAMILY, settings), "encodec": _drawn(encodec.FAMILY, settings["encodec"])}
    return found if condition == "none" else {**found, "t5": _drawn(t5.FAMILY, settings["t5"])}


def model(condition: Condition = "cross", channels: int = 1) -> "MusicGen":
    """A `MusicGen(musicgen_tiny())` on MLX with its fixed weights, codec and text encoder."""
    from musicgen_mlx.load import of_checkpoint

    made = of_checkpoint(checkpoints(condition, channels)["musicgen"])
    made._companions["codec"] = codec(made.config.encodec)
    if condition != "none":
        made._companions["text_encoder"] = text_encoder(made.config.t5)
    return made


def codec(config: EncodecConfig) -> "Encodec":
    """The codec of `musicgen_tiny` on MLX with its fixed weights, frozen."""
    from musicgen_mlx.companions import codec_from

    return codec_from(_drawn(encodec.FAMILY, config.settings()))


def text_encoder(config: T5Config) -> "TextEncoder":
    """The text encoder of `musicgen_tiny` on MLX with its fixed weights, frozen."""
    from dataclasses import asdict

    from musicgen_mlx.companions import text_encoder_from

    return text_encoder_from(_drawn(t5.FAMILY, asdict(config)), TOKENIZER)


def _drawn(family: Family, settings: dict[str, Any]) -> Checkpoint:
    tensors = {name: _draw(name, shape) for name, shape in family.shapes(settings).items()}
    return read(family, tensors, settings, "tiny")


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Norms and usages one, biases zero, other weights normal with variance 1 / fan-in.

    Weight norm's g makes each output channel's filter one long.
    """
    if name.endswith(("weight_g", "cluster_usage")) or (len(shape) == 1 and name.endswith("weight")):
        return np.ones(shape, np.float32)
    if len(shape) == 1:
        return np.zeros(shape, np.float32)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    scale = 1.0 if "emb" in name else int(np.prod(shape[1:])) ** -0.5
    return (scale * rng.standard_normal(shape)).astype(np.float32)
