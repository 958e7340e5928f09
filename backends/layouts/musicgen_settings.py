"""MusicGen's settings: a plain dictionary, into which transformers' config.json and audiocraft's xp.cfg are read."""

from collections.abc import Collection, Mapping
from typing import Any

from backends.errors import InputError
from backends.layouts import encodec_settings, t5_settings
from backends.layouts.kinds import check_kinds, part, reading
from backends.layouts.xp_cfg import parsed

OURS = "audiosmith-musicgen"  # the model_type of our own config.json

# audiocraft's names for widths, layers and heads (config/model/lm/model_scale); micro is micro-musicgen's.
SCALES: dict[str, tuple[int, int, int]] = {
    "xsmall": (64, 2, 2),
    "micro": (2048, 2, 2),
    "base": (512, 8, 8),
    "small": (1024, 24, 16),
    "medium": (1536, 48, 24),
    "large": (2048, 48, 32),
}
# How a condition gets in: by cross-attention to text, as rows before the codes (chroma, then text), or not at all.
CONDITIONS = ("cross", "prepend", "none")

PUBLISHED: dict[str, Any] = {  # facebook/musicgen-small
    "width": 1024,
    "layers": 24,
    "heads": 16,
    "mlp_width": 4096,
    "codebooks": 4,
    "channels": 1,
    "entries": 2048,
    "condition": "cross",
    "text_width": 768,
    "chroma": 0,
    "chroma_frames": 0,
    "segment_s": 30.0,
    "encodec": encodec_settings.PUBLISHED,
    "t5": t5_settings.PUBLISHED,
    "name": "",
}
_MELODY = {"chroma": 12, "chroma_frames": 235}

_DECODER = {  # ours: transformers'
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "ffn_dim",
    "codebooks": "num_codebooks",
    "channels": "audio_channels",
    "entries": "vocab_size",
}
_DECODER_DEFAULTS = {**{key: PUBLISHED[key] for key in _DECODER}}
_FIXED = {"activation_function": "gelu", "scale_embedding": False}
_TRANSFORMER_LM_FIXED = {  # audiocraft's choices that every MusicGen shares
    "norm_first": True,
    "bias_proj": False,
    "bias_ff": False,
    "bias_attn": False,
    "positional_embedding": "sin",
    "layer_scale": None,
    "qk_layer_norm": False,
    "qk_layer_norm_cross": False,
    "past_context": None,
    "positional_scale": 1,
    "kv_repeat": 1,
    "activation": "gelu",
    "norm": "layer_norm",
    "causal": True,
}


def of_scale(scale: str, condition: str = "cross", channels: int = 1) -> dict[str, Any]:
    """Settings of a named scale with the published codec and text encoder."""
    if scale not in SCALES:
        raise InputError(f"--scale {scale}: no such scale; expected one of {', '.join(SCALES)}")
    width, layers, heads = SCALES[scale]
    return checked(
        {
            "width": width,
            "layers": layers,
            "heads": heads,
            "mlp_width": 4 * width,
            "codebooks": PUBLISHED["codebooks"] * channels,
            "channels": channels,
            "condition": condition,
            **(_MELODY if condition == "prepend" else {}),
            "name": scale,
        }
    )


def read(content: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """Our settings from a config.json of ours or of transformers; None where it is about something else.

    Raises InputError, which begins with `source`, for one that is incomplete or of a model that is not supported.
    """
    with reading(source, "a complete MusicGen configuration"):
        if content.get("model_type") == OURS:
            return _own(content)
        if content.get("model_type") in ("musicgen", "musicgen_melody"):
            return _from_composite(content)
        if content.get("model_type") in ("musicgen_decoder", "musicgen_melody_decoder"):
            return checked({**_from_decoder(content), "condition": "none"})
    return None


def read_inside(metadata: Mapping[str, str], source: str) -> dict[str, Any] | None:
    """The settings that audiocraft's state_dict.bin carries."""
    if "xp.cfg" not in metadata:
        return None
    with reading(f"{source}: its xp.cfg", "one of a MusicGen"):
        return _from_audiocraft(parsed(metadata["xp.cfg"]))


def write(settings: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """The config.json that goes with a layout: transformers' form or ours."""
    if layout != "musicgen":
        return {"model_type": OURS, **settings}
    kind = {"cross": "musicgen", "prepend": "musicgen_melody", "none": "musicgen_melody"}[settings["condition"]]
    decoder = {
        "model_type": f"{kind}_decoder",
        **{theirs: settings[ours] for ours, theirs in _DECODER.items()},
        **_FIXED,
        "dropout": 0.0,  # audiocraft trains without; transformers' own default is 0.1
        "pad_token_id": settings["entries"],
        "bos_token_id": settings["entries"],
        "decoder_start_token_id": settings["entries"],
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    if settings["condition"] == "none":
        return {**decoder, "architectures": ["MusicgenMelodyForCausalLM"]}
    chroma = {"num_chroma": settings["chroma"], "chroma_length": settings["chroma_frames"]}
    name = "MusicgenForConditionalGeneration" if kind == "musicgen" else "MusicgenMelodyForConditionalGeneration"
    return {
        "model_type": kind,
        "architectures": [name],
        "is_encoder_decoder": True,
        "decoder": decoder,
        "audio_encoder": encodec_settings.to_transformers(settings["encodec"]),
        "text_encoder": t5_settings.to_transformers(settings["t5"]),
        **(chroma if kind == "musicgen_melody" else {}),
    }


def processors(settings: Mapping[str, Any], layout: str, files: Collection[str]) -> dict[str, Any]:
    """What transformers' AutoTokenizer and AutoProcessor need besides tokenizer.json, by file name.

    Without the first, the tokenizer would be taken for a unigram one, as published T5s have it. Those of melody models
    need more than the second.
    """
    if layout != "musicgen" or settings["condition"] == "none" or "tokenizer.json" not in files:
        return {}
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    found = {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **special}}
    if settings["condition"] == "cross":
        found["preprocessor_config.json"] = {
            "feature_extractor_type": "EncodecFeatureExtractor",
            "processor_class": "MusicgenProcessor",
            "feature_size": settings["channels"],
            "sampling_rate": settings["encodec"]["sample_rate_hz"],
            "padding_side": "left",
        }
    return found


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Ours with what is absent filled in. Raises ValueError for unknown keys and for what cannot be a model."""
    if unknown := set(settings) - set(PUBLISHED):
        raise ValueError(f"unknown key {min(unknown)!r}")
    settings = {**PUBLISHED, **settings}
    settings["encodec"] = encodec_settings.checked(part(settings, "encodec"))
    settings["t5"] = t5_settings.checked(part(settings, "t5"))
    check_kinds(settings, PUBLISHED, zero=("chroma", "chroma_frames"))
    if settings["condition"] not in CONDITIONS:
        raise ValueError(f"condition {settings['condition']!r} is not one of {', '.join(CONDITIONS)}")
    if settings["channels"] not in (1, 2) or settings["codebooks"] % settings["channels"]:
        raise ValueError(f"{settings['codebooks']} codebooks for {settings['channels']} channels")
    if settings["width"] % settings["heads"] or settings["width"] % 2 or settings["width"] < 4:
        raise ValueError(
            f"width {settings['width']} must be even, at least 4 and a multiple of the {settings['heads']} heads"
        )
    return settings


def _own(content: Mapping[str, Any]) -> dict[str, Any]:
    return checked({name: value for name, value in content.items() if name != "model_type"})


def _from_decoder(content: Mapping[str, Any]) -> dict[str, Any]:
    for key, expected in _FIXED.items():
        if content.get(key, expected) != expected:
            raise ValueError(f"{key} {content[key]!r} is not supported, only {expected!r}")
    given = {ours: content[theirs] for ours, theirs in _DECODER.items() if content.get(theirs) is not None}
    return {**_DECODER_DEFAULTS, **given}


def _from_composite(content: Mapping[str, Any]) -> dict[str, Any]:
    melody = content["model_type"] == "musicgen_melody"
    chroma = {"chroma": content.get("num_chroma", 12), "chroma_frames": content.get("chroma_length", 235)}
    t5 = t5_settings.from_transformers(part(content, "text_encoder"))
    return checked(
        {
            **_from_decoder(part(content, "decoder")),
            "condition": "prepend" if melody else "cross",
            **(chroma if melody else {}),
            "text_width": t5["width"],
            "encodec": encodec_settings.from_transformers(part(content, "audio_encoder")),
            "t5": t5,
        }
    )


def _from_audiocraft(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """`conditioners` may be a mapping, empty, null or absent: the last three are a model without a condition."""
    lm, conditioners = part(cfg, "transformer_lm"), dict(cfg.get("conditioners") or {})
    for key, expected in _TRANSFORMER_LM_FIXED.items():
        if lm.get(key, expected) != expected:
            raise ValueError(f"transformer_lm.{key} {lm[key]!r} is not supported, only {expected!r}")
    conditioners.pop("args", None)
    sides: Mapping[str, Any] = cfg.get("interleave_stereo_codebooks") or {}
    stereo = bool(sides.get("use"))
    if stereo and sides.get("per_timestep"):
        raise ValueError("interleave_stereo_codebooks.per_timestep True is not supported, only False")
    _check_pattern(cfg, lm["n_q"], 2 if stereo else 1)
    seconds = (cfg.get("dataset") or {}).get("segment_duration")
    return checked(
        {
            "width": lm["dim"],
            "layers": lm["num_layers"],
            "heads": lm["num_heads"],
            "mlp_width": lm["dim"] * lm.get("hidden_scale", 4),
            "codebooks": lm["n_q"],
            "channels": 2 if stereo else 1,
            "entries": lm["card"],
            **({} if seconds is None else {"segment_s": seconds}),
            **_condition_of(conditioners),
        }
    )


def _condition_of(conditioners: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {name: conditioner["model"] for name, conditioner in conditioners.items()}
    if not kinds:
        return {"condition": "none"}
    if kinds == {"description": "t5"}:
        return {"condition": "cross", **_text(conditioners)}
    if kinds == {"self_wav": "chroma_stem", "description": "t5"}:
        chroma = {**_MELODY, "chroma": conditioners["self_wav"]["chroma_stem"]["n_chroma"]}
        return {"condition": "prepend", **_text(conditioners), **chroma}
    raise ValueError(f"conditioners {kinds} are not supported, only T5 text, chroma with T5 text, or none")


def _text(conditioners: Mapping[str, Any]) -> dict[str, Any]:
    name = conditioners["description"]["t5"]["name"]
    known = t5_settings.NAMED.get(str(name).rpartition("/")[2])
    if known is None:
        raise ValueError(f"text encoder {name!r} is not known, only {', '.join(t5_settings.NAMED)}")
    t5 = t5_settings.checked(known)
    return {"text_width": t5["width"], "t5": t5}


def _check_pattern(cfg: Mapping[str, Any], codebooks: int, channels: int) -> None:
    pattern: Mapping[str, Any] = cfg.get("codebooks_pattern") or {}
    modeling, expected = pattern.get("modeling", "delay"), [k // channels for k in range(codebooks)]
    found = (pattern.get("delay") or {}).get("delays", expected)
    if modeling != "delay" or found != expected:
        raise ValueError(f"codebooks_pattern {modeling} {found} is not supported, only delays {expected}")
