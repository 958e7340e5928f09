"""EnCodec's settings: a plain dictionary, into which transformers' config.json and audiocraft's xp.cfg are read."""

import math
from collections.abc import Mapping
from typing import Any

from backends.layouts.kinds import check_kinds, part, reading
from backends.layouts.xp_cfg import parsed

# facebook/encodec_32khz, MusicGen's codec.
PUBLISHED: dict[str, Any] = {
    "sample_rate_hz": 32_000,
    "channels": 1,
    "ratios": [8, 5, 4, 4],
    "filters": 64,
    "width": 128,
    "kernel": 7,
    "last_kernel": 7,
    "residual_kernel": 3,
    "residual_layers": 1,
    "dilation_growth": 2,
    "compress": 2,
    "lstm_layers": 2,
    "pad": "reflect",
    "codebooks": 4,
    "entries": 2048,
}
PADS = ("reflect", "constant")

_THEIRS = {  # ours: transformers'
    "sample_rate_hz": "sampling_rate",
    "channels": "audio_channels",
    "ratios": "upsampling_ratios",
    "filters": "num_filters",
    "width": "hidden_size",
    "kernel": "kernel_size",
    "last_kernel": "last_kernel_size",
    "residual_kernel": "residual_kernel_size",
    "residual_layers": "num_residual_layers",
    "dilation_growth": "dilation_growth_rate",
    "compress": "compress",
    "lstm_layers": "num_lstm_layers",
    "pad": "pad_mode",
    "entries": "codebook_size",
}
_FIXED = {  # freedoms of transformers' form that this codec does not have; its defaults are the 24 kHz codec's
    "norm_type": ("weight_norm", "weight_norm"),
    "use_causal_conv": (True, False),
    "use_conv_shortcut": (True, False),
    "normalize": (False, False),
    "chunk_length_s": (None, None),
}
_DEFAULTS = {  # what transformers takes where its form says nothing and the 32 kHz codec differs
    "sample_rate_hz": 24_000,
    "ratios": [8, 5, 4, 2],
    "filters": 32,
    "entries": 1024,
}
_SEANET = {  # ours: audiocraft's
    "channels": "channels",
    "ratios": "ratios",
    "filters": "n_filters",
    "width": "dimension",
    "kernel": "kernel_size",
    "last_kernel": "last_kernel_size",
    "residual_kernel": "residual_kernel_size",
    "residual_layers": "n_residual_layers",
    "dilation_growth": "dilation_base",
    "compress": "compress",
    "lstm_layers": "lstm",
    "pad": "pad_mode",
}
_SEANET_FIXED = {
    "causal": False,
    "norm": "weight_norm",
    "activation": "ELU",
    "true_skip": True,
    "disable_norm_outer_blocks": 0,
    "encoder": {},
}


def from_transformers(content: Mapping[str, Any]) -> dict[str, Any]:
    """Ours from transformers' form. Raises ValueError for a codec of another kind."""
    given = {ours: content[theirs] for ours, theirs in _THEIRS.items() if content.get(theirs) is not None}
    settings = checked({**PUBLISHED, **_DEFAULTS, **given, "codebooks": 1})
    for key, (default, expected) in _FIXED.items():
        if content.get(key, default) != expected:
            raise ValueError(f"codec {key} {content.get(key, default)!r} is not supported, only {expected!r}")
    if content.get("codebook_dim") not in (None, settings["width"]):
        raise ValueError(f"codebook_dim {content['codebook_dim']!r} is not supported, only hidden_size")
    bandwidths = content.get("target_bandwidths") or [1.5, 3.0, 6.0, 12.0, 24.0]
    codebooks = int(1000 * bandwidths[-1] // _bits_per_second(settings))
    if codebooks < 1:
        raise ValueError(f"target_bandwidths {list(bandwidths)} leave room for no codebook")
    return {**settings, "codebooks": codebooks}


def to_transformers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' form of ours."""
    return {
        "model_type": "encodec",
        "architectures": ["EncodecModel"],
        **{theirs: settings[ours] for ours, theirs in _THEIRS.items()},
        **{key: expected for key, (_, expected) in _FIXED.items()},
        "codebook_dim": settings["width"],
        "target_bandwidths": [_bandwidth(settings)],
        "trim_right_ratio": 1.0,
    }


def read(content: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """The codec's settings in its own config.json or in a MusicGen's; None where the file does not say."""
    with reading(source, "a configuration of EnCodec 32 kHz's kind"):
        if content.get("model_type") == "encodec":
            return from_transformers(content)
        if content.get("model_type") == "audiosmith-musicgen":
            return checked(part(content, "encodec"))
        if isinstance(content.get("audio_encoder"), Mapping):
            return from_transformers(content["audio_encoder"])
    return None


def read_inside(metadata: Mapping[str, str], source: str) -> dict[str, Any] | None:
    """The settings that audiocraft's compression_state_dict.bin carries."""
    if "xp.cfg" not in metadata:
        return None
    with reading(f"{source}: its xp.cfg", "one of EnCodec 32 kHz's kind"):
        return _from_audiocraft(parsed(metadata["xp.cfg"]))


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Ours with what is absent filled in. Raises ValueError for an unknown key and for what cannot be a codec."""
    if unknown := set(settings) - set(PUBLISHED):
        raise ValueError(f"unknown key {min(unknown)!r}")
    settings = {**PUBLISHED, **settings, "ratios": list(settings.get("ratios", PUBLISHED["ratios"]))}
    check_kinds(settings, PUBLISHED, zero=("lstm_layers", "residual_layers"))
    if settings["pad"] not in PADS:
        raise ValueError(f"padding {settings['pad']!r} is not supported, only {' and '.join(PADS)}")
    if settings["channels"] not in (1, 2):
        raise ValueError(f"{settings['channels']} channels are not supported, only 1 and 2")
    return settings


def _from_audiocraft(cfg: Mapping[str, Any]) -> dict[str, Any]:
    if cfg.get("compression_model") != "encodec":
        raise ValueError(f"compression_model is {cfg.get('compression_model')!r}, expected 'encodec'")
    seanet, rvq = part(cfg, "seanet"), part(cfg, "rvq")
    for key, expected in _SEANET_FIXED.items():
        if seanet.get(key, expected) != expected:
            raise ValueError(f"seanet.{key} {seanet[key]!r} is not supported, only {expected!r}")
    if part(cfg, "encodec").get("renormalize"):
        raise ValueError("encodec.renormalize is not supported")
    if (seanet.get("decoder") or {}).get("final_activation"):
        raise ValueError("seanet.decoder.final_activation is not supported")
    return checked(
        {
            "sample_rate_hz": cfg["sample_rate"],
            **{ours: seanet[theirs] for ours, theirs in _SEANET.items() if theirs in seanet},
            "codebooks": rvq["n_q"],
            "entries": rvq["bins"],
        }
    )


def _bits_per_second(settings: Mapping[str, Any]) -> int:
    """Of one codebook, as transformers counts: whole frames per second, whole bits per code."""
    frames = math.ceil(settings["sample_rate_hz"] / math.prod(settings["ratios"]))
    return frames * max(1, math.ceil(math.log2(settings["entries"])))


def _bandwidth(settings: Mapping[str, Any]) -> float:
    """The kbit/s from which transformers works out the number of codebooks, which rounding must not make one less."""
    kbps = settings["codebooks"] * _bits_per_second(settings) / 1000
    while int(1000 * kbps // _bits_per_second(settings)) < settings["codebooks"]:
        kbps = math.nextafter(kbps, math.inf)
    return kbps
