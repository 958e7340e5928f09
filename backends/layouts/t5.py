"""T5 encoders' layouts: transformers' names, in a file of a whole T5, of an encoder or of a MusicGen, and ours."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from backends.errors import InputError
from backends.layouts import t5_settings
from backends.layouts.families import Family, Settings
from backends.layouts.rules import ANY, AnyRule, Rule

LAYOUTS = ("t5", "mlx-t5")
# Beside a MusicGen's weights lies its text encoder as a file of its own.
WEIGHTS = ("text_encoder.safetensors", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
INSIDE_MUSICGEN = "text_encoder."
BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")
_SHARED, _TIED = "shared.weight", "encoder.embed_tokens.weight"


def write_settings(settings: Settings, layout: str) -> dict[str, Any]:
    """The config.json that goes with any of the layouts: transformers' form."""
    return t5_settings.to_transformers(settings)


def choose_files(files: Sequence[str], source: object) -> list[str]:
    """Of a repository's files, the weights (or their index), what lies beside them, and the shards."""
    weights = next((name for name in WEIGHTS if name in files), None)
    if weights is None:
        raise InputError(f"{source}: holds none of {', '.join(WEIGHTS)}")
    shards = fnmatch.filter(files, "model-*-of-*.safetensors") if weights.endswith(".json") else []
    return [weights, *(name for name in ("config.json", *BESIDE) if name in files), *shards]


def detect(names: Iterable[str]) -> str | None:
    """Which of T5's layouts these tensor names are, perhaps inside a MusicGen; None if none."""
    names = {name.removeprefix(INSIDE_MUSICGEN) for name in names}
    if "encoder.final_layer_norm.weight" in names:
        return "t5"
    return "mlx-t5" if "relative_bias.weight" in names else None


def own(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """{name that the rules know: name in the file}: the encoder's, and the tied table once, under either name."""
    inside = {name.removeprefix(INSIDE_MUSICGEN): name for name in tensors if name.startswith(INSIDE_MUSICGEN)}
    names = inside or {name: name for name in tensors}
    names = {ours: name for ours, name in names.items() if not ours.startswith("decoder.") and ours != "lm_head.weight"}
    if _TIED in names:
        names.setdefault(_SHARED, names.pop(_TIED))
        names.pop(_TIED, None)
    return names


def shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Every tensor of ours."""
    width, mlp, inner = settings["width"], settings["mlp_width"], settings["heads"] * settings["head_dim"]
    layer = {
        **{f"self_attn.{part}_proj.weight": (inner, width) for part in "qkv"},
        "self_attn.o_proj.weight": (width, inner),
        **{f"mlp.{part}_proj.weight": (mlp, width) for part in (("gate", "up") if settings["gated"] else ("up",))},
        "mlp.down_proj.weight": (width, mlp),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    layers = {f"layers.{n}.{name}": shape for n in range(settings["layers"]) for name, shape in layer.items()}
    return {
        "embedding.weight": (settings["vocab"], width),
        "relative_bias.weight": (settings["buckets"], settings["heads"]),
        **layers,
        "norm.weight": (width,),
    }


def rules(layout: str, settings: Settings) -> list[AnyRule]:
    """The table between ours (mlx-t5) and `layout`."""
    if layout == "mlx-t5":
        return [Rule(ANY, ANY)]
    if layout != "t5":
        raise InputError(f"unknown T5 layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    mlp = {"gate": "wi_0", "up": "wi_1"} if settings["gated"] else {"up": "wi"}
    parts = {
        **{f"self_attn.{part}_proj.weight": f"layer.0.SelfAttention.{part}.weight" for part in "qkvo"},
        **{f"mlp.{ours}_proj.weight": f"layer.1.DenseReluDense.{theirs}.weight" for ours, theirs in mlp.items()},
        "mlp.down_proj.weight": "layer.1.DenseReluDense.wo.weight",
        "input_layernorm.weight": "layer.0.layer_norm.weight",
        "post_attention_layernorm.weight": "layer.1.layer_norm.weight",
    }
    return [
        Rule("embedding.weight", _SHARED),
        Rule("relative_bias.weight", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        Rule("norm.weight", "encoder.final_layer_norm.weight"),
        *(Rule(f"layers.{{n}}.{ours}", f"encoder.block.{{n}}.{theirs}") for ours, theirs in parts.items()),
    ]


FAMILY = Family(
    title="T5",
    layouts=LAYOUTS,
    written=LAYOUTS,
    ours="mlx-t5",
    published=t5_settings.PUBLISHED,
    detect=detect,
    own=own,
    shapes=shapes,
    rules=rules,
    read_settings=t5_settings.read,
    write_settings=write_settings,
    choose_files=choose_files,
    beside=BESIDE,
)
