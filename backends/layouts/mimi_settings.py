"""Mimi's config.json: ours is a plain dictionary, with transformers' form translated to and from it."""

from collections.abc import Mapping
from typing import Any

from backends.errors import InputError
from backends.layouts.kinds import check_kinds, part, reading

# kyutai's published codec (arXiv:2410.00037), which comes without a configuration.
PUBLISHED: dict[str, Any] = {
    "sample_rate_hz": 24_000,
    "ratios": [8, 6, 5, 4],
    "filters": 64,
    "width": 512,
    "kernel": 7,
    "last_kernel": 3,
    "residual_kernel": 3,
    "residual_layers": 1,
    "dilation_growth": 2,
    "compress": 2,
    "downsample": 2,
    "layers": 8,
    "heads": 8,
    "mlp_width": 2048,
    "norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "window": 250,
    "layer_scale": 0.01,
    "codebooks": 32,
    "semantic_codebooks": 1,
    "entries": 2048,
    "code_width": 256,
}

_THEIRS = {  # ours: transformers'
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
_FIXED = {  # freedoms of transformers' form that this codec does not have
    "audio_channels": 1,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "attention_bias": False,
    "hidden_act": "gelu",
}


def from_transformers(content: Mapping[str, Any]) -> dict[str, Any]:
    """Ours from transformers' form; what is absent is the published codec's. Raises ValueError."""
    given = {ours: content[theirs] for ours, theirs in _THEIRS.items() if content.get(theirs) is not None}
    rope = content.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or content.get("rope_theta")
    settings = checked({**given, **({"rope_theta": theta} if theta else {})})
    for key, expected in {**_FIXED, **_derived(settings)}.items():
        if content.get(key) not in (None, expected):
            raise ValueError(f"codec {key} {content[key]!r} is not supported, only {expected!r}")
    return settings


def to_transformers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' form of ours."""
    if settings["downsample"] != PUBLISHED["downsample"]:
        raise InputError(f"Mimi with downsample {settings['downsample']} has no form in transformers, only 2")
    return {
        "model_type": "mimi",
        "architectures": ["MimiModel"],
        **{theirs: settings[ours] for ours, theirs in _THEIRS.items()},
        **_FIXED,
        **_derived(settings),
        "rope_parameters": {"rope_type": "default", "rope_theta": settings["rope_theta"]},
    }


def read(content: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """The codec's settings in its own or in a CSM's config.json; None where the file does not say."""
    with reading(source, "a Mimi configuration"):
        if content.get("model_type") == "mimi":
            return from_transformers(content)
        if content.get("codec_config"):
            return from_transformers(part(content, "codec_config"))
        if content.get("model_type") == "audiosmith-csm":
            return checked(part(content, "mimi"))
    return None


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Ours with what is absent filled in. Raises ValueError for an unknown key and for what cannot be a codec."""
    if unknown := set(settings) - set(PUBLISHED):
        raise ValueError(f"unknown key {min(unknown)!r}")
    settings = {**PUBLISHED, **settings}
    check_kinds(settings, PUBLISHED, zero=["residual_layers"])
    codebooks, semantic, width, heads = (settings[k] for k in ("codebooks", "semantic_codebooks", "width", "heads"))
    if semantic >= codebooks:
        raise ValueError(f"codebooks {codebooks}: expected more than semantic_codebooks {semantic}")
    if width % (2 * heads):
        raise ValueError(f"width {width}: expected an even multiple of heads {heads}")
    return settings


def _derived(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers' form can say otherwise, and this codec cannot."""
    return {
        "num_key_value_heads": settings["heads"],
        "head_dim": settings["width"] // settings["heads"],
        "upsample_groups": settings["width"],
        "vector_quantization_hidden_dimension": settings["code_width"],
    }
