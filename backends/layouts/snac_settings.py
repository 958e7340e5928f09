"""SNAC's config.json: the arguments of upstream's constructor, checked for what the codec can be."""

import math
from collections.abc import Mapping
from typing import Any

from backends.errors import InputError

_MUSIC: dict[str, Any] = {
    "encoder_dim": 64,
    "encoder_rates": [2, 3, 8, 8],
    "decoder_dim": 1536,
    "decoder_rates": [8, 8, 3, 2],
    "attn_window_size": 32,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [8, 4, 2, 1],
    "noise": True,
    "depthwise": True,
}
# The config.json of the published checkpoints (huggingface.co/hubertsiuzdak).
PUBLISHED: dict[str, dict[str, Any]] = {
    "snac_24khz": {
        "sampling_rate": 24_000,
        "encoder_dim": 48,
        "encoder_rates": [2, 4, 8, 8],
        "decoder_dim": 1024,
        "decoder_rates": [8, 8, 4, 2],
        "attn_window_size": None,
        "codebook_size": 4096,
        "codebook_dim": 8,
        "vq_strides": [4, 2, 1],
        "noise": True,
        "depthwise": True,
    },
    "snac_32khz": {"sampling_rate": 32_000, **_MUSIC},
    "snac_44khz": {"sampling_rate": 44_100, **_MUSIC},
}
# What upstream's constructor takes where the file says nothing. No published checkpoint has these rates.
_DEFAULTS = {
    **_MUSIC,
    "sampling_rate": 44_100,
    "encoder_rates": [3, 3, 7, 7],
    "decoder_rates": [7, 7, 3, 3],
}
_SAID_BY_OTHERS = ("model_type", "architectures", "torch_dtype", "dtype", "_name_or_path", "transformers_version")
_LISTS = ("encoder_rates", "decoder_rates", "vq_strides")
_SWITCHES = ("noise", "depthwise")


def read(content: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """Settings from a config.json; None where it is about something else. Raises InputError that names the key."""
    if not {"encoder_rates", "vq_strides"} <= set(content):
        return None
    try:
        return checked(content)
    except ValueError as error:
        raise InputError(f"{source}: not a SNAC configuration ({error})") from error


def checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with what is absent filled in. Raises ValueError for unknown keys and for what cannot be a codec."""
    settings = {**_DEFAULTS, **{key: value for key, value in content.items() if key not in _SAID_BY_OTHERS}}
    latent = settings.pop("latent_dim", None)
    unknown = set(settings) - set(_DEFAULTS)
    if unknown:
        raise ValueError(f"unknown key {min(unknown)!r}")
    _check_types(settings)
    width = settings["encoder_dim"] * 2 ** len(settings["encoder_rates"])
    if latent not in (None, width):
        raise ValueError(f"latent_dim {latent!r} does not fit the encoder, whose last width is {width}")
    _check_rates(settings)
    _check_attention(settings, width)
    return settings


def _check_types(settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if key in _SWITCHES:
            fits = isinstance(value, bool)
        elif key in _LISTS:
            fits = isinstance(value, list) and len(value) > 0 and all(_is_count(item) for item in value)
        else:
            fits = _is_count(value) or (key == "attn_window_size" and value is None)
        if not fits:
            raise ValueError(f"{key} is {value!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_rates(settings: Mapping[str, Any]) -> None:
    hops = math.prod(settings["encoder_rates"]), math.prod(settings["decoder_rates"])
    if hops[0] != hops[1]:
        raise ValueError(f"encoder_rates make frames of {hops[0]} samples, decoder_rates of {hops[1]}")
    for key in ("encoder_rates", "decoder_rates"):
        if min(settings[key]) < 2:
            raise ValueError(f"{key} holds 1, which upstream's padding makes a sample too long")
    strides = settings["vq_strides"]
    if any(first % second for first, second in zip(strides, strides[1:], strict=False)):
        raise ValueError(f"vq_strides {strides}: each must be a multiple of the next")
    if settings["decoder_dim"] < 2 ** len(settings["decoder_rates"]):
        raise ValueError(f"decoder_dim {settings['decoder_dim']} cannot be halved at every rate")


def _check_attention(settings: Mapping[str, Any], width: int) -> None:
    if settings["attn_window_size"] is None:
        return
    for key, value in (("encoder's last width", width), ("decoder_dim", settings["decoder_dim"])):
        if value % 64:
            raise ValueError(f"{key} is {value}, but local attention has heads of 64 channels")
