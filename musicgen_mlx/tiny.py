"""`musicgen_tiny`, its codec and its text encoder with fixed random weights, the same on every machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.drawing import Shape, drawn, fan_in
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
    found = {
        "musicgen": _checkpoint(musicgen.FAMILY, settings),
        "encodec": _checkpoint(encodec.FAMILY, settings["encodec"]),
    }
    return found if condition == "none" else {**found, "t5": _checkpoint(t5.FAMILY, settings["t5"])}


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

    return codec_from(_checkpoint(encodec.FAMILY, config.settings()))


def text_encoder(config: T5Config) -> "TextEncoder":
    """The text encoder of `musicgen_tiny` on MLX with its fixed weights, frozen."""
    from dataclasses import asdict

    from musicgen_mlx.companions import text_encoder_from

    return text_encoder_from(_checkpoint(t5.FAMILY, asdict(config)), TOKENIZER)


def _checkpoint(family: Family, settings: dict[str, Any]) -> Checkpoint:
    return read(family, drawn(family.shapes(settings), _start), settings, "tiny")


def _start(name: str, shape: Shape, draw: np.random.Generator) -> np.ndarray:
    """Norms and usages one, biases zero, other weights normal with variance 1 / fan-in.

    Weight norm's g makes each output channel's filter one long.
    """
    if name.endswith(("weight_g", "cluster_usage")) or (len(shape) == 1 and name.endswith("weight")):
        return np.ones(shape)
    if len(shape) == 1:
        return np.zeros(shape)
    return (1.0 if "emb" in name else fan_in(shape) ** -0.5) * draw.standard_normal(shape)
