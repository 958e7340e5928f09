"""CSM's layouts: Sesame's (torchtune names), transformers', csm-mlx's (ours) and mlx-audio's."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from backends.errors import InputError
from backends.layouts import csm_settings
from backends.layouts.families import Adaptable, Companion, Family, Settings
from backends.layouts.rules import ANY, AnyRule, Op, Rule, rope_rows

LAYOUTS = ("torchtune", "transformers", "csm-mlx", "mlx-audio")
STACKS = ("backbone", "decoder")
TIED = (
    "depth_decoder.model.embed_tokens.weight",  # what transformers 5 writes
    "backbone_model.embed_tokens.embed_audio_tokens.weight",  # the same table; published files hold both
)
CODEC = Companion(
    family="mimi",
    prefix="codec_model.",
    layout="mimi",
    files=("codec.safetensors", "tokenizer-e351c8d8-checkpoint125.safetensors"),
    settings="mimi",
)
# One layout's weights, best first; sesame/csm-1b holds three copies of itself.
WEIGHTS = (
    "transformers.safetensors.index.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "ckpt.safetensors",
    "ckpt.pt",
)
# What transformers' processor and generation read; carried along, so that converting there and back loses nothing.
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


def choose_files(files: Sequence[str], source: object) -> list[str]:
    """Of a repository's files, one copy's weights or their index, what lies beside them, and the shards."""
    weights = next((name for name in WEIGHTS if name in files), None)
    if weights is None:
        raise InputError(f"{source}: holds none of {', '.join(WEIGHTS)}")
    beside = ("config.json", *BESIDE, *CODEC.files)
    chosen = [weights, *(name for name in beside if name in files)]
    if weights.endswith(".index.json"):
        chosen += fnmatch.filter(files, weights.replace(".safetensors.index.json", "-*-of-*.safetensors"))
    return chosen


def detect(names: Iterable[str]) -> str | None:
    """Which of CSM's layouts these tensor names are; None if none."""
    names = set(names)
    if "backbone.norm.scale" in names:
        return "torchtune"
    if "backbone_model.norm.weight" in names:
        return "transformers"
    if "model.backbone.norm.weight" in names:
        return "mlx-audio"
    return "csm-mlx" if "backbone.norm.weight" in names else None


def own(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """{name that the rules know: name in the file}: without the codec, and the tied table once, under either name.

    Raises InputError where the two copies of the tied table differ: ours has one.
    """
    names = {name: name for name in tensors if not name.startswith(CODEC.prefix)}
    if TIED[1] in names:
        if TIED[0] in names and not np.array_equal(tensors[TIED[0]], tensors[TIED[1]]):
            raise InputError(f"{TIED[0]} and {TIED[1]} differ, but CSM ties them (tie_codebooks_embeddings)")
        names.setdefault(TIED[0], names.pop(TIED[1]))
    return names


def shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Every tensor of ours: 187 for the published model."""
    width, depth_width, audio = settings["backbone"]["width"], settings["decoder"]["width"], settings["audio_vocab"]
    glue = {
        "text_embeddings.weight": (settings["text_vocab"], width),
        "audio_embeddings.weight": (audio * settings["codebooks"], width),
        "projection.weight": (depth_width, width),
        "codebook0_head.weight": (audio, width),
        "audio_head": (settings["codebooks"] - 1, depth_width, audio),
    }
    stacks = {f"{stack}.{name}": shape for stack in STACKS for name, shape in _stack_shapes(settings[stack]).items()}
    return {**stacks, **glue}


def rules(layout: str, settings: Settings) -> list[AnyRule]:
    """The table between ours (csm-mlx) and `layout`; of the settings, each stack's head_dim is used."""
    if layout == "csm-mlx":
        return [Rule(ANY, ANY)]
    if layout == "mlx-audio":
        return [Rule(ANY, f"model.{ANY}")]
    if layout == "torchtune":
        return [*(rule for stack in STACKS for rule in _torchtune(stack)), *(Rule(name, name) for name in _GLUE)]
    if layout == "transformers":
        stacks = [rule for stack in STACKS for rule in _transformers(stack, rope_rows(settings[stack]["head_dim"]))]
        return [*stacks, *(Rule(ours, theirs) for ours, theirs in _GLUE.items())]
    raise InputError(f"unknown CSM layout {layout!r}; expected one of {', '.join(LAYOUTS)}")


def _stack_shapes(stack: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width, mlp = stack["width"], stack["mlp_width"]
    q, kv = stack["heads"] * stack["head_dim"], stack["kv_heads"] * stack["head_dim"]
    layer = {
        "self_attn.q_proj.weight": (q, width),
        "self_attn.k_proj.weight": (kv, width),
        "self_attn.v_proj.weight": (kv, width),
        "self_attn.o_proj.weight": (width, q),
        "mlp.gate_proj.weight": (mlp, width),
        "mlp.up_proj.weight": (mlp, width),
        "mlp.down_proj.weight": (width, mlp),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    layers = {f"layers.{n}.{name}": shape for n in range(stack["layers"]) for name, shape in layer.items()}
    return {**layers, "norm.weight": (width,)}


_GLUE = {
    "text_embeddings.weight": "embed_text_tokens.weight",
    "audio_embeddings.weight": TIED[0],
    "projection.weight": "depth_decoder.model.inputs_embeds_projector.weight",
    "codebook0_head.weight": "lm_head.weight",
    "audio_head": "depth_decoder.codebooks_head.weight",
}

_PARTS = {  # ours: torchtune's
    "self_attn.q_proj.weight": "attn.q_proj.weight",
    "self_attn.k_proj.weight": "attn.k_proj.weight",
    "self_attn.v_proj.weight": "attn.v_proj.weight",
    "self_attn.o_proj.weight": "attn.output_proj.weight",
    "mlp.gate_proj.weight": "mlp.w1.weight",
    "mlp.up_proj.weight": "mlp.w3.weight",
    "mlp.down_proj.weight": "mlp.w2.weight",
    "input_layernorm.weight": "sa_norm.scale",
    "post_attention_layernorm.weight": "mlp_norm.scale",
}


def _torchtune(stack: str) -> list[Rule]:
    layers = [Rule(f"{stack}.layers.{{n}}.{ours}", f"{stack}.layers.{{n}}.{theirs}") for ours, theirs in _PARTS.items()]
    return [*layers, Rule(f"{stack}.norm.weight", f"{stack}.norm.scale")]


def _transformers(stack: str, halves: Op) -> list[Rule]:
    theirs = {"backbone": "backbone_model", "decoder": "depth_decoder.model"}[stack]
    rotated = ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
    layers = [
        Rule(f"{stack}.layers.{{n}}.{part}", f"{theirs}.layers.{{n}}.{part}", halves)
        if part in rotated
        else Rule(f"{stack}.layers.{{n}}.{part}", f"{theirs}.layers.{{n}}.{part}")
        for part in _PARTS
    ]
    return [*layers, Rule(f"{stack}.norm.weight", f"{theirs}.norm.weight")]


FAMILY = Family(
    title="CSM",
    layouts=LAYOUTS,
    written=("torchtune", "transformers", "csm-mlx"),
    ours="csm-mlx",
    published=csm_settings.PUBLISHED,
    detect=detect,
    own=own,
    shapes=shapes,
    rules=rules,
    read_settings=csm_settings.read,
    write_settings=csm_settings.write,
    choose_files=choose_files,
    companions=(CODEC,),
    embeds=lambda layout, _settings: layout == "transformers",
    beside=BESIDE,
    adaptable=Adaptable(
        layout="transformers",
        embeddings=("text_embeddings", "audio_embeddings"),
        tied={TIED[1].removesuffix(".weight"): TIED[0].removesuffix(".weight")},
    ),
)
