"""Shapes of CSM and Mimi, and where they are read from."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from backends.errors import InputError


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

    def to_json(self) -> dict[str, Any]:
        """Our own config.json."""
        return {"model_type": "audiosmith-csm", **asdict(self)}


def csm_1b() -> CSMConfig:
    """Sesame's CSM-1B."""
    return CSMConfig(_FLAVOURS["llama-1B"], _FLAVOURS["llama-100M"], name="csm_1b")


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


_FLAVOURS = {
    "llama-1B": LlamaConfig(layers=16, width=2048, heads=32, kv_heads=8, head_dim=64, mlp_width=8192),
    "llama-100M": LlamaConfig(layers=4, width=1024, heads=8, kv_heads=2, head_dim=128, mlp_width=8192),
}


def read_config(content: dict[str, Any], source: str) -> CSMConfig:
    """The configuration in a config.json: ours, transformers' or Sesame's flavours; `source` is its name in errors."""
    try:
        if content.get("model_type") == "audiosmith-csm":
            return _own(content)
        if "depth_decoder_config" in content:
            return _transformers(content)
        if "backbone_flavor" in content:
            return _sesame(content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source}: not a complete CSM configuration ({type(error).__name__}: {error})") from error
    raise InputError(f"{source}: not a CSM configuration; expected audiosmith's, transformers' or Sesame's")


def _own(content: dict[str, Any]) -> CSMConfig:
    values = {name: value for name, value in content.items() if name != "model_type"}
    stacks = {name: _own_stack(values.pop(name)) for name in ("backbone", "decoder")}
    mimi = _known(MimiConfig, values.pop("mimi"))
    mimi["ratios"] = tuple(mimi["ratios"])
    return CSMConfig(**stacks, mimi=MimiConfig(**mimi), **_known(CSMConfig, values))


def _own_stack(content: dict[str, Any]) -> LlamaConfig:
    scaling = content["rope_scaling"]
    return replace(
        LlamaConfig(**_known(LlamaConfig, content)),
        rope_scaling=RopeScaling(**_known(RopeScaling, scaling)) if scaling else None,
    )


def _known(kind: type, content: dict[str, Any]) -> dict[str, Any]:
    unknown = set(content) - {item.name for item in fields(kind)}
    if unknown:
        raise ValueError(f"unknown key {min(unknown)!r}")
    return dict(content)


def _sesame(content: dict[str, Any]) -> CSMConfig:
    for key in ("backbone_flavor", "decoder_flavor"):
        if content[key] not in _FLAVOURS:
            raise ValueError(f"{key} {content[key]!r} is not one of {', '.join(_FLAVOURS)}")
    return CSMConfig(
        _FLAVOURS[content["backbone_flavor"]],
        _FLAVOURS[content["decoder_flavor"]],
        text_vocab=content["text_vocab_size"],
        audio_vocab=content["audio_vocab_size"],
        codebooks=content["audio_num_codebooks"],
    )


def _transformers(content: dict[str, Any]) -> CSMConfig:
    return CSMConfig(
        _transformers_stack(content),
        _transformers_stack(content["depth_decoder_config"]),
        text_vocab=content["text_vocab_size"],
        audio_vocab=content.get("vocab_size") or content["audio_vocab_size"],
        codebooks=content.get("num_codebooks") or content["audio_num_codebooks"],
        max_positions=content["max_position_embeddings"],
        mimi=read_mimi_config(content.get("codec_config") or {}),
    )


def _transformers_stack(content: dict[str, Any]) -> LlamaConfig:
    if content.get("attention_bias") or content.get("mlp_bias"):
        raise ValueError("attention_bias and mlp_bias are not part of CSM")
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or content.get("rope_theta") or 500_000.0
    heads = content["num_attention_heads"]
    return LlamaConfig(
        layers=content["num_hidden_layers"],
        width=content["hidden_size"],
        heads=heads,
        kv_heads=content.get("num_key_value_heads") or heads,
        head_dim=content.get("head_dim") or content["hidden_size"] // heads,
        mlp_width=content["intermediate_size"],
        norm_eps=content.get("rms_norm_eps", 1e-5),
        rope_theta=theta,
        rope_scaling=_transformers_scaling(rope),
    )


def _transformers_scaling(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type {kind!r} is not one of default, llama3")
    return RopeScaling(**{item.name: rope[item.name] for item in fields(RopeScaling)})


def read_mimi_config(content: dict[str, Any]) -> MimiConfig:
    """Mimi's configuration from transformers' JSON; what is absent is the published model's."""
    for key, expected in {"use_causal_conv": True, "pad_mode": "constant", "use_conv_shortcut": False}.items():
        if content.get(key, expected) != expected:
            raise ValueError(f"codec {key} {content[key]!r} is not supported, only {expected!r}")
    for key in ("trim_right_ratio", "audio_channels"):
        if content.get(key, 1) != 1:
            raise ValueError(f"codec {key} {content[key]!r} is not supported, only 1")
    _check_mimi_widths(content)
    given = {ours: content[theirs] for ours, theirs in _MIMI_NAMES.items() if content.get(theirs) is not None}
    rope = content.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or content.get("rope_theta")
    if theta:
        given["rope_theta"] = theta
    given["ratios"] = tuple(given.get("ratios", MimiConfig.ratios))
    return MimiConfig(**given)


def _check_mimi_widths(content: dict[str, Any]) -> None:
    """Refuse the freedoms that the published model does not use and this one does not have."""
    width, heads = content.get("hidden_size", 512), content.get("num_attention_heads", 8)
    same = {
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "upsample_groups": width,
        "vector_quantization_hidden_dimension": content.get("codebook_dim", 256),
    }
    for key, expected in same.items():
        if content.get(key) not in (None, expected):
            raise ValueError(f"codec {key} {content[key]!r} is not supported, only {expected!r}")


_MIMI_NAMES = {
    "sample_rate_hz": "sampling_rate",
    "ratios": "upsampling_ratios",
    "filters": "num_filters",
    "width": "hidden_size",
    "kernel": "kernel_size",
    "last_kernel": "last_kernel_size",
    "residual_kernel": "residual_kernel_size",
    "residual_layers": "num_residual_layers",
    "dilation_growth": "dilation_growth_rate",
    "compress": "compress",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "norm_eps": "norm_eps",
    "window": "sliding_window",
    "layer_scale": "layer_scale_initial_scale",
    "codebooks": "num_quantizers",
    "semantic_codebooks": "num_semantic_quantizers",
    "entries": "codebook_size",
    "code_width": "codebook_dim",
}
