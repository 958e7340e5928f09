"""Shapes of CSM and Mimi, and where they are read from."""

from dataclasses import asdict, dataclass, field
from typing import Any

from backends.errors import InputError
from backends.layouts import csm_settings


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of low rotary frequencies beyond the context it was first trained with."""

    factor: float = 32.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama-style stack: pre-norm, GQA attention without biases, SwiGLU."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = field(default_factory=RopeScaling)


@dataclass(frozen=True)
class MimiConfig:
    """The Mimi codec (arXiv:2410.00037). The defaults are the published model: 24 kHz, 12.5 frames per second."""

    sample_rate_hz: int = 24_000
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    filters: int = 64
    width: int = 512
    kernel: int = 7
    last_kernel: int = 3
    residual_kernel: int = 3
    residual_layers: int = 1
    dilation_growth: int = 2
    compress: int = 2
    downsample: int = 2
    layers: int = 8
    heads: int = 8
    mlp_width: int = 2048
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    window: int = 250
    layer_scale: float = 0.01
    codebooks: int = 32
    semantic_codebooks: int = 1
    entries: int = 2048
    code_width: int = 256

    @property
    def frame_samples(self) -> int:
        """Samples per frame of codes (1920: 80 ms)."""
        samples = self.downsample
        for ratio in self.ratios:
            samples *= ratio
        return samples

    def settings(self) -> dict[str, Any]:
        """The same as a plain dictionary, which is what `backends.layouts` knows of a codec."""
        return {**asdict(self), "ratios": list(self.ratios)}


@dataclass(frozen=True)
class CSMConfig:
    """CSM: a backbone that predicts codebook 0 of the next frame, a depth decoder that predicts the other codebooks."""

    backbone: LlamaConfig
    decoder: LlamaConfig
    text_vocab: int = 128_256
    audio_vocab: int = 2051
    codebooks: int = 32
    max_positions: int = 2048
    mimi: MimiConfig = field(default_factory=MimiConfig)
    name: str = ""

    @property
    def frame_ms(self) -> float:
        return 1000.0 * self.mimi.frame_samples / self.mimi.sample_rate_hz

    def settings(self) -> dict[str, Any]:
        """The same as a plain dictionary, which is what `backends.layouts` knows of a model."""
        return {**asdict(self), "mimi": self.mimi.settings()}

    def to_json(self) -> dict[str, Any]:
        """Our own config.json."""
        return {"model_type": csm_settings.OURS, **self.settings()}


def csm_1b() -> CSMConfig:
    """Sesame's CSM-1B."""
    return of_settings({**csm_settings.PUBLISHED, "name": "csm_1b"})


def csm_tiny() -> CSMConfig:
    """A CSM of 0.9 M parameters with a codec of 0.2 M, for tests, demos and trying things out on any machine."""
    return CSMConfig(
        backbone=LlamaConfig(layers=4, width=128, heads=4, kv_heads=2, head_dim=32, mlp_width=256),
        decoder=LlamaConfig(layers=2, width=64, heads=2, kv_heads=1, head_dim=32, mlp_width=128),
        text_vocab=512,
        audio_vocab=259,
        codebooks=8,
        mimi=MimiConfig(
            filters=4,
            width=64,
            layers=1,
            heads=2,
            mlp_width=128,
            layer_scale=0.3,
            codebooks=8,
            entries=256,
            code_width=32,
        ),
        name="csm_tiny",
    )


def read_config(content: dict[str, Any], source: str) -> CSMConfig:
    """The configuration in a config.json: ours, transformers' or Sesame's flavours; `source` is its name in errors."""
    settings = csm_settings.read(content, source)
    if settings is None:
        raise InputError(f"{source}: not a CSM configuration; expected audiosmith's, transformers' or Sesame's")
    return of_settings(settings)


def of_settings(settings: dict[str, Any]) -> CSMConfig:
    """The configuration that our own config.json describes."""
    stacks = {name: _stack(settings[name]) for name in ("backbone", "decoder")}
    return CSMConfig(**{**settings, **stacks, "mimi": mimi_of_settings(settings["mimi"])})


def mimi_of_settings(settings: dict[str, Any]) -> MimiConfig:
    """The codec's part of it."""
    return MimiConfig(**{**settings, "ratios": tuple(settings["ratios"])})


def _stack(settings: dict[str, Any]) -> LlamaConfig:
    scaling = settings["rope_scaling"]
    return LlamaConfig(**{**settings, "rope_scaling": RopeScaling(**scaling) if scaling else None})
