"""Shapes of MusicGen, its codec and its text encoder, and where they are read from."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from backends.errors import InputError
from backends.layouts import musicgen_settings

Condition = Literal["cross", "prepend", "none"]


@dataclass(frozen=True)
class EncodecConfig:
    """The EnCodec codec (arXiv:2210.13438). The defaults are MusicGen's: 32 kHz, 50 frames per second."""

    sample_rate_hz: int = 32_000
    channels: int = 1
    ratios: tuple[int, ...] = (8, 5, 4, 4)
    filters: int = 64
    width: int = 128
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    residual_layers: int = 1
    dilation_growth: int = 2
    compress: int = 2
    lstm_layers: int = 2
    pad: str = "reflect"
    codebooks: int = 4
    entries: int = 2048

    @property
    def frame_samples(self) -> int:
        """Samples per frame of codes (640: 20 ms)."""
        return math.prod(self.ratios)

    @property
    def code_width(self) -> int:
        """Of what the codebooks quantise: the latents themselves."""
        return self.width

    @property
    def frame_hz(self) -> float:
        """Frames per second (50)."""
        return self.sample_rate_hz / self.frame_samples

    @property
    def encoder_halo(self) -> int:
        """Frames of audio on either side that a frame before the encoder's LSTM depends on (1)."""
        samples, unit = self.kernel // 2, 1
        for ratio in reversed(self.ratios):
            samples += unit * (self._residual_reach + -(-ratio // 2))
            unit *= ratio
        return -(-samples // self.frame_samples)

    @property
    def decoder_halo(self) -> int:
        """Frames after the decoder's LSTM on either side that a frame of audio depends on (2)."""
        samples, unit = self.last_kernel // 2, 1
        for ratio in reversed(self.ratios):
            samples += unit * (self._residual_reach + ratio)
            unit *= ratio
        return -(-samples // self.frame_samples)

    @property
    def _residual_reach(self) -> int:
        return sum(self.residual_kernel // 2 * self.dilation_growth**i for i in range(self.residual_layers))

    def settings(self) -> dict[str, Any]:
        """The same as a plain dictionary, which is what `backends.layouts` knows of a codec."""
        return {**asdict(self), "ratios": list(self.ratios)}


@dataclass(frozen=True)
class T5Config:
    """A T5 encoder (arXiv:1910.10683). The defaults are t5-base; `gated` is the MLP of T5 1.1."""

    vocab: int = 32_128
    width: int = 768
    layers: int = 12
    heads: int = 12
    head_dim: int = 64
    mlp_width: int = 3072
    gated: bool = False
    buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6


@dataclass(frozen=True)
class MusicGenConfig:
    """MusicGen's language model (arXiv:2306.05284): pre-norm transformer layers over delayed codebooks.

    `condition` says how a condition gets in: "cross" (attention to text), "prepend" (rows of chroma and text before the
    codes, as in melody models) or "none". `channels` is 2 for stereo, whose codebooks alternate between left and right.
    `segment_s` is how much it was trained on at once (audiocraft's dataset.segment_duration): it knows no later step.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    codebooks: int = 4
    channels: int = 1
    entries: int = 2048
    condition: Condition = "cross"
    text_width: int = 768
    chroma: int = 0
    chroma_frames: int = 0
    segment_s: float = 30.0
    encodec: EncodecConfig = field(default_factory=EncodecConfig)
    t5: T5Config = field(default_factory=T5Config)
    name: str = ""

    @property
    def special(self) -> int:
        """The code of cells that hold none: the first input, and what the delays leave open."""
        return self.entries

    @property
    def delays(self) -> tuple[int, ...]:
        """Steps by which each codebook is late: 0 1 2 3; stereo 0 0 1 1 2 2 3 3."""
        return tuple(k // self.channels for k in range(self.codebooks))

    def settings(self) -> dict[str, Any]:
        """The same as a plain dictionary, which is what `backends.layouts` knows of a model."""
        return {**asdict(self), "encodec": self.encodec.settings()}

    def to_json(self) -> dict[str, Any]:
        """Our own config.json."""
        return {"model_type": musicgen_settings.OURS, **self.settings()}


def of_scale(scale: str, condition: Condition = "cross", channels: int = 1) -> MusicGenConfig:
    """A model of a named scale: xsmall, micro, base, small, medium or large; `channels` 2 is stereo.

    The published models are small, medium and large with "cross", melody (medium) and melody-large (large) with
    "prepend", each also in stereo, and micro-musicgen's micro with "none".
    """
    return of_settings(musicgen_settings.of_scale(scale, condition, channels))


def musicgen_tiny(condition: Condition = "cross", channels: int = 1) -> MusicGenConfig:
    """A MusicGen of 0.3 M parameters with a codec of 0.1 M, for tests, demos and trying things out on any machine."""
    codec = EncodecConfig(ratios=(8, 5, 4, 4), filters=4, width=16, entries=64)
    t5 = T5Config(vocab=260, width=32, layers=2, heads=2, head_dim=16, mlp_width=64)
    return MusicGenConfig(
        width=64,
        layers=2,
        heads=4,
        mlp_width=256,
        codebooks=4 * channels,
        channels=channels,
        entries=64,
        condition=condition,
        text_width=32,
        chroma=12 if condition == "prepend" else 0,
        chroma_frames=6 if condition == "prepend" else 0,
        encodec=codec,
        t5=t5,
        name="musicgen_tiny",
    )


def read_config(content: dict[str, Any], source: str) -> MusicGenConfig:
    """The configuration in a config.json: ours or transformers'; `source` is its name in errors."""
    settings = musicgen_settings.read(content, source)
    if settings is None:
        raise InputError(f"{source}: not a MusicGen configuration; expected audiosmith's or transformers'")
    return of_settings(settings)


def of_settings(settings: dict[str, Any]) -> MusicGenConfig:
    """The configuration that our own config.json describes."""
    encodec, t5 = encodec_of_settings(settings["encodec"]), T5Config(**settings["t5"])
    return MusicGenConfig(**{**settings, "encodec": encodec, "t5": t5})


def encodec_of_settings(settings: dict[str, Any]) -> EncodecConfig:
    """The codec's part of it."""
    return EncodecConfig(**{**settings, "ratios": tuple(settings["ratios"])})
