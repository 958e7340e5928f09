"""CSM's config.json: ours is a plain dictionary, with transformers' and Sesame's forms translated to and from it."""

import math
from collections.abc import Mapping
from typing import Any

from backends.layouts import mimi_settings
from backends.layouts.kinds import check_kinds, part, reading

OURS = "audiosmith-csm"  # the model_type of our own config.json

_LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_COMMON = {"norm_eps": 1e-5, "rope_theta": 500_000.0, "rope_scaling": _LLAMA3}

FLAVOURS: dict[str, dict[str, Any]] = {  # Sesame's names for stacks (github.com/SesameAILabs/csm, models.py)
    "llama-1B": {
        "layers": 16, "width": 2048, "heads": 32, "kv_heads": 8, "head_dim": 64, "mlp_width": 8192, **_COMMON,
    },
    "llama-100M": {
        "layers": 4, "width": 1024, "heads": 8, "kv_heads": 2, "head_dim": 128, "mlp_width": 8192, **_COMMON,
    },
}  # fmt: skip

PUBLISHED: dict[str, Any] = {  # Sesame's CSM-1B
    "backbone": FLAVOURS["llama-1B"],
    "decoder": FLAVOURS["llama-100M"],
    "text_vocab": 128_256,
    "audio_vocab": 2051,
    "codebooks": 32,
    "max_positions": 2048,
    "mimi": mimi_settings.PUBLISHED,
    "name": "",
}

_STACK = {  # ours: transformers'
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_width": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
# Ids that stand for audio in transformers' text input; the tokenizer keeps them free.
_AUDIO_ID, _AUDIO_EOS_ID, _BOS_ID = 128_002, 128_003, 128_000


def read(content: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """Our settings from a config.json of any of the three forms; None where it is about something else.

    Raises InputError, which begins with `source`, for one that is incomplete or of a model that is not supported.
    """
    with reading(source, "a complete CSM configuration"):
        if content.get("model_type") == OURS:
            return _sound(_own(content))
        if "depth_decoder_config" in content:
            return _sound(_from_transformers(content))
        if "backbone_flavor" in content:
            return _sound(_from_sesame(content))
    return None


def write(settings: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """The config.json that goes with a layout: transformers' form, Sesame's where it can say this model, else ours."""
    if layout == "transformers":
        return _to_transformers(settings)
    if layout == "torchtune" and (content := _to_sesame(settings)):
        return content
    return {"model_type": OURS, **settings}


def _own(content: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in content.items() if name != "model_type"}
    stacks = {
        name: _checked({**_COMMON, **part(given, name)}, FLAVOURS["llama-1B"]) for name in ("backbone", "decoder")
    }
    for stack in stacks.values():
        if stack["rope_scaling"]:
            _checked(part(stack, "rope_scaling"), _LLAMA3)
    mimi = mimi_settings.checked(part({"mimi": {}, **given}, "mimi"))
    return _checked({**PUBLISHED, **given, **stacks, "mimi": mimi}, PUBLISHED)


def _sound(settings: dict[str, Any]) -> dict[str, Any]:
    """The same. Raises ValueError for what cannot be a model."""
    check_kinds(settings, PUBLISHED)
    for stack in (settings["backbone"], settings["decoder"]):
        scaling = stack["rope_scaling"]
        check_kinds({**stack, "rope_scaling": scaling or {}}, FLAVOURS["llama-1B"])
        check_kinds(scaling or {}, _LLAMA3)
        if stack["heads"] % stack["kv_heads"]:
            raise ValueError(f"{stack['heads']} heads cannot share {stack['kv_heads']} kv_heads")
    return settings


def _checked(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := set(given) - set(known):
        raise ValueError(f"unknown key {min(unknown)!r}")
    if missing := set(known) - set(given):
        raise ValueError(f"missing key {min(missing)!r}")
    return dict(given)


def _from_sesame(content: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("backbone_flavor", "decoder_flavor"):
        if content[key] not in FLAVOURS:
            raise ValueError(f"{key} {content[key]!r} is not one of {', '.join(FLAVOURS)}")
    return {
        **PUBLISHED,
        "backbone": FLAVOURS[content["backbone_flavor"]],
        "decoder": FLAVOURS[content["decoder_flavor"]],
        "text_vocab": content["text_vocab_size"],
        "audio_vocab": content["audio_vocab_size"],
        "codebooks": content["audio_num_codebooks"],
    }


def _to_sesame(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Flavours by name, if that says all there is to say."""
    names = {}
    for stack in ("backbone", "decoder"):
        same = [name for name, flavour in FLAVOURS.items() if flavour == settings[stack]]
        if not same:
            return None
        names[f"{stack}_flavor"] = same[0]
    content = {
        **names,
        "text_vocab_size": settings["text_vocab"],
        "audio_vocab_size": settings["audio_vocab"],
        "audio_num_codebooks": settings["codebooks"],
    }
    return content if {**_from_sesame(content), "name": settings["name"]} == settings else None


def _from_transformers(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "backbone": _stack_from_transformers(content),
        "decoder": _stack_from_transformers(part(content, "depth_decoder_config")),
        "text_vocab": content["text_vocab_size"],
        "audio_vocab": content.get("vocab_size") or content["audio_vocab_size"],
        "codebooks": content.get("num_codebooks") or content["audio_num_codebooks"],
        "max_positions": content["max_position_embeddings"],
        "mimi": mimi_settings.from_transformers(content.get("codec_config") or {}),
        "name": "",
    }


def _stack_from_transformers(content: Mapping[str, Any]) -> dict[str, Any]:
    if content.get("attention_bias") or content.get("mlp_bias"):
        raise ValueError("attention_bias and mlp_bias are not part of CSM")
    if content.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {content['hidden_act']!r} is not supported, only 'silu'")
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    stack = {**_COMMON, **{ours: content[theirs] for ours, theirs in _STACK.items() if content.get(theirs) is not None}}
    stack.setdefault("kv_heads", stack["heads"])
    stack.setdefault("head_dim", stack["width"] // stack["heads"])
    stack["rope_theta"] = rope.get("rope_theta") or content.get("rope_theta") or _COMMON["rope_theta"]
    stack["rope_scaling"] = _scaling_from_transformers(rope)
    return _checked(stack, FLAVOURS["llama-1B"])


def _scaling_from_transformers(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """Llama 3's scaling with low_freq_factor 1 where that is exact.

    Sesame's file gives the same frequencies by smaller numbers (scaling all three alike changes nothing), because
    transformers wants the original context to be shorter than the model's.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ValueError(f"rope_type {kind!r} is not one of default, llama3")
    scaling = {name: rope[name] for name in _LLAMA3}
    low = scaling["low_freq_factor"]
    if math.frexp(low)[0] != 0.5 or scaling["original_max_position_embeddings"] % low:  # not a power of two
        return scaling
    return {
        "factor": float(scaling["factor"]),
        "low_freq_factor": 1.0,
        "high_freq_factor": scaling["high_freq_factor"] / low,
        "original_max_position_embeddings": int(scaling["original_max_position_embeddings"] / low),
    }


def _to_transformers(settings: Mapping[str, Any]) -> dict[str, Any]:
    text, audio, codebooks = settings["text_vocab"], settings["audio_vocab"], settings["codebooks"]
    fits = text > _AUDIO_EOS_ID  # else the last two rows of the text table stand for audio
    audio_id, audio_eos_id = (_AUDIO_ID, _AUDIO_EOS_ID) if fits else (text - 2, text - 1)
    depth = {
        "model_type": "csm_depth_decoder_model",
        **_stack_to_transformers(settings["decoder"], codebooks + 1),
        "backbone_hidden_size": settings["backbone"]["width"],
        "num_codebooks": codebooks,
        "vocab_size": audio,
    }
    return {
        "model_type": "csm",
        "architectures": ["CsmForConditionalGeneration"],
        **_stack_to_transformers(settings["backbone"], settings["max_positions"]),
        "num_codebooks": codebooks,
        "vocab_size": audio,
        "text_vocab_size": text,
        "tie_codebooks_embeddings": True,
        "audio_token_id": audio_id,
        "audio_eos_token_id": audio_eos_id,
        "pad_token_id": audio_id,
        "bos_token_id": _BOS_ID if fits else None,
        "codebook_pad_token_id": audio - 1,
        "codebook_eos_token_id": 0,
        "depth_decoder_config": depth,
        "codec_config": mimi_settings.to_transformers(settings["mimi"]),
    }


def _stack_to_transformers(stack: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": stack["rope_theta"]}
    if scaling := stack["rope_scaling"]:
        rope = {**rope, "rope_type": "llama3", **_within(scaling, max_positions)}
    return {
        **{theirs: stack[ours] for ours, theirs in _STACK.items()},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": max_positions,
        "rope_parameters": rope,
    }


def _within(scaling: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    """The same frequencies with an original context below `max_positions`, which transformers wants."""
    scaling = dict(scaling)
    while scaling["original_max_position_embeddings"] >= max_positions:
        if scaling["original_max_position_embeddings"] % 2:
            return scaling
        scaling["original_max_position_embeddings"] //= 2
        scaling["low_freq_factor"] /= 2
        scaling["high_freq_factor"] /= 2
    return scaling
