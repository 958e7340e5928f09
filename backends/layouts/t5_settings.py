"""T5 encoders' settings: ours is a plain dictionary, with transformers' config.json translated to and from it."""

from collections.abc import Mapping
from typing import Any

from backends.layouts.kinds import check_kinds, part, reading

# google-t5/t5-base, MusicGen's text encoder.
PUBLISHED: dict[str, Any] = {
    "vocab": 32_128,
    "width": 768,
    "layers": 12,
    "heads": 12,
    "head_dim": 64,
    "mlp_width": 3072,
    "gated": False,
    "buckets": 32,
    "max_distance": 128,
    "norm_eps": 1e-6,
}

# Those that audiocraft's configurations name: T5's, and Flan-T5's, which are of T5 1.1's form.
NAMED: dict[str, dict[str, Any]] = {
    "t5-small": {"width": 512, "layers": 6, "heads": 8, "mlp_width": 2048},
    "t5-base": {},
    "t5-large": {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096},
    "flan-t5-small": {"width": 512, "layers": 8, "heads": 6, "mlp_width": 1024, "gated": True},
    "flan-t5-base": {"mlp_width": 2048, "gated": True},
    "flan-t5-large": {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 2816, "gated": True},
}

_THEIRS = {  # ours: transformers'
    "vocab": "vocab_size",
    "width": "d_model",
    "layers": "num_layers",
    "heads": "num_heads",
    "head_dim": "d_kv",
    "mlp_width": "d_ff",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "norm_eps": "layer_norm_epsilon",
}
_DEFAULTS = {"width": 512, "layers": 6, "heads": 8, "mlp_width": 2048}  # transformers': t5-small
_MLPS = {"relu": False, "gated-gelu": True}  # T5's, and that of T5 1.1


def from_transformers(content: Mapping[str, Any]) -> dict[str, Any]:
    """Ours from transformers' form. Raises ValueError as `checked` does, and for another kind of MLP."""
    mlp = content.get("feed_forward_proj") or "relu"
    if mlp not in _MLPS:
        raise ValueError(f"feed_forward_proj {mlp!r} is not supported, only {' and '.join(_MLPS)}")
    given = {ours: content[theirs] for ours, theirs in _THEIRS.items() if content.get(theirs) is not None}
    return checked({**_DEFAULTS, **given, "gated": _MLPS[mlp]})


def to_transformers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' form of ours: of a T5EncoderModel, which reads `shared` and `encoder` of any T5."""
    return {
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        **{theirs: settings[ours] for ours, theirs in _THEIRS.items()},
        "feed_forward_proj": "gated-gelu" if settings["gated"] else "relu",
        "is_encoder_decoder": False,
        "use_cache": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def read(content: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """The encoder's settings in its own config.json or in a MusicGen's; None where the file does not say."""
    with reading(source, "a T5 configuration"):
        if content.get("model_type") == "t5":
            return from_transformers(content)
        if content.get("model_type") == "audiosmith-musicgen":
            return checked(part(content, "t5"))
        if isinstance(content.get("text_encoder"), Mapping):
            return from_transformers(content["text_encoder"])
    return None


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Ours with what is absent filled in. Raises ValueError for an unknown key and for what cannot be an encoder."""
    if unknown := set(settings) - set(PUBLISHED):
        raise ValueError(f"unknown key {min(unknown)!r}")
    settings = {**PUBLISHED, **settings}
    check_kinds(settings, PUBLISHED)
    return settings
