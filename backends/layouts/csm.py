"""CSM's layouts: Sesame's (torchtune names), transformers', csm-mlx's (ours) and mlx-audio's."""

from collections.abc import Iterable, Mapping

import numpy as np

from backends.errors import InputError
from backends.layouts.rules import ANY, AnyRule, Op, Rule, rope_rows

LAYOUTS = ("torchtune", "transformers", "csm-mlx", "mlx-audio")
STACKS = ("backbone", "decoder")
TIED = (
    "depth_decoder.model.embed_tokens.weight",  # what transformers 5 writes
    "backbone_model.embed_tokens.embed_audio_tokens.weight",  # the same table; published files hold both
)
CODEC_PREFIX = "codec_model."


def detect(names: Iterable[str]) -> str | None:
    """Which of CSM's layouts these tensor names are; None if none."""
    names = set(names)
    if any(".scales" in name for name in names):
        raise InputError("these weights are quantised; convert the full-precision checkpoint instead")
    if "backbone.norm.scale" in names:
        return "torchtune"
    if "backbone_model.norm.weight" in names:
        return "transformers"
    if "model.backbone.norm.weight" in names:
        return "mlx-audio"
    return "csm-mlx" if "backbone.norm.weight" in names else None


def rules(layout: str, head_dims: Mapping[str, int]) -> list[AnyRule]:
    """The table between ours (csm-mlx) and `layout`; `head_dims` gives the head width of backbone and decoder."""
    if layout == "csm-mlx":
        return [Rule(ANY, ANY)]
    if layout == "mlx-audio":
        return [Rule(ANY, f"model.{ANY}")]
    if layout == "torchtune":
        return [*(rule for stack in STACKS for rule in _torchtune(stack)), *(Rule(name, name) for name in _GLUE)]
    if layout == "transformers":
        stacks = [rule for stack in STACKS for rule in _transformers(stack, rope_rows(head_dims[stack]))]
        return [*stacks, *(Rule(ours, theirs) for ours, theirs in _GLUE.items())]
    raise InputError(f"unknown CSM layout {layout!r}; expected one of {', '.join(LAYOUTS)}")


def without_codec(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The names that are CSM's own in a transformers checkpoint, which also holds the codec and may hold a table twice.

    Raises InputError where the two copies of the tied table differ: ours has one.
    """
    names = [name for name in tensors if not name.startswith(CODEC_PREFIX)]
    if all(name in tensors for name in TIED):
        if not np.array_equal(tensors[TIED[0]], tensors[TIED[1]]):
            raise InputError(f"{TIED[0]} and {TIED[1]} differ, but CSM ties them (tie_codebooks_embeddings)")
        names.remove(TIED[1])
    return names


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
