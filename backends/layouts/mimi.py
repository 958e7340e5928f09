"""Mimi's layouts: transformers' on-disk names, kyutai's, and ours (transformers' names, MLX's convolution axes)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from backends.errors import InputError
from backends.layouts.rules import (
    ANY,
    CONV,
    CONV_TRANSPOSE,
    DEPTHWISE_TRANSPOSE,
    POINTWISE,
    SAME,
    Absent,
    AnyRule,
    Joined,
    Op,
    Rule,
    Stacked,
    flipped,
    rope_rows,
)

LAYOUTS = ("mimi", "kyutai-mimi", "mlx-mimi")


@dataclass(frozen=True)
class Shape:
    """What the rules need to know of a Mimi."""

    ratios: int  # strides in each half
    residual_layers: int
    head_dim: int
    semantic: int  # codebooks
    acoustic: int


def detect(names: Iterable[str]) -> str | None:
    """Which of Mimi's layouts these tensor names are; None if none."""
    names = set(names)
    if "downsample.conv.conv.conv.weight" in names:
        return "kyutai-mimi"
    if "downsample.conv.weight" in names:
        return "mimi"
    return "mlx-mimi" if "downsample.weight" in names else None


def rules(layout: str, shape: Shape) -> list[AnyRule]:
    """The table between ours (mlx-mimi) and `layout`."""
    if layout == "mlx-mimi":
        return [Rule(ANY, ANY)]
    if layout == "mimi":
        return [*_convolutions(shape, kyutai=False), *_attention(), *_quantizers(shape, *_TRANSFORMERS)]
    if layout == "kyutai-mimi":
        return [*_convolutions(shape, kyutai=True), *_kyutai_attention(shape), *_quantizers(shape, *_KYUTAI)]
    raise InputError(f"unknown Mimi layout {layout!r}; expected one of {', '.join(LAYOUTS)}")


def _convolutions(shape: Shape, *, kyutai: bool) -> Iterator[Rule]:
    for ours, op in _places(shape):
        theirs = _kyutai_name(ours, op) if kyutai else f"{ours}.conv"
        yield Rule(f"{ours}.weight", f"{theirs}.weight", op)
        if ours not in ("downsample", "upsample"):
            yield Rule(f"{ours}.bias", f"{theirs}.bias")


def _places(shape: Shape) -> Iterator[tuple[str, Op]]:
    """Every convolution by our name, and what its weight needs. Gaps in the numbers are activations."""
    encoder = ["conv", *[*["block"] * shape.residual_layers, "", "conv"] * shape.ratios, "", "conv"]
    decoder = ["conv", *["", "transpose", *["block"] * shape.residual_layers] * shape.ratios, "", "conv"]
    for half, kinds in (("encoder", encoder), ("decoder", decoder)):
        for index, kind in enumerate(kinds):
            name = f"{half}.layers.{index}"
            if kind == "block":
                yield from ((f"{name}.block.{inner}", CONV) for inner in (1, 3))
            elif kind:
                yield name, CONV_TRANSPOSE if kind == "transpose" else CONV
    yield "downsample", CONV
    yield "upsample", DEPTHWISE_TRANSPOSE


def _kyutai_name(ours: str, op: Op) -> str:
    inner = "conv.conv" if op is CONV else "convtr.convtr"
    if ours in ("downsample", "upsample"):
        return f"{ours}.{inner}.{inner.split('.')[0]}"
    return f"{ours.replace('.layers.', '.model.')}.{inner}"


def _attention() -> Iterator[Rule]:
    for half in ("encoder_transformer", "decoder_transformer"):
        yield Rule(f"{half}.{ANY}", f"{half}.{ANY}")


def _kyutai_attention(shape: Shape) -> Iterator[AnyRule]:
    halves = flipped(rope_rows(shape.head_dim))  # ours are halves here, kyutai's are pairs
    for half in ("encoder_transformer", "decoder_transformer"):
        ours, theirs = f"{half}.layers.{{n}}", f"{half}.transformer.layers.{{n}}"
        parts = tuple(f"{ours}.self_attn.{part}_proj.weight" for part in "qkv")
        yield Joined(parts, f"{theirs}.self_attn.in_proj_weight", (halves, halves, SAME))
        for mine, kyutai in _KYUTAI_PARTS.items():
            yield Rule(f"{ours}.{mine}", f"{theirs}.{kyutai}")


_KYUTAI_PARTS = {
    "self_attn.o_proj.weight": "self_attn.out_proj.weight",
    "mlp.fc1.weight": "linear1.weight",
    "mlp.fc2.weight": "linear2.weight",
    "input_layernorm.{w}": "norm1.{w}",
    "post_attention_layernorm.{w}": "norm2.{w}",
    "self_attn_layer_scale.scale": "layer_scale_1.scale",
    "mlp_layer_scale.scale": "layer_scale_2.scale",
}

# (names of the two quantisers, path to a codebook, its sums, its mark)
_TRANSFORMERS = (
    {"semantic": "semantic_residual_vector_quantizer", "acoustic": "acoustic_residual_vector_quantizer"},
    "layers.{k}.codebook", "embed_sum", "initialized",
)  # fmt: skip
_KYUTAI = (
    {"semantic": "rvq_first", "acoustic": "rvq_rest"},
    "vq.layers.{k}._codebook",
    "embedding_sum",
    "_initialized",
)


def _quantizers(shape: Shape, names: dict[str, str], codebook: str, sums: str, mark: str) -> Iterator[AnyRule]:
    for ours, theirs in names.items():
        mine, base = f"quantizer.{ours}", f"quantizer.{theirs}"
        for projection in ("input_proj", "output_proj"):
            yield Rule(f"{mine}.{projection}.weight", f"{base}.{projection}.weight", POINTWISE)
        yield Stacked(f"{mine}.rvq.embed_sum", f"{base}.{codebook}.{sums}")
        yield Stacked(f"{mine}.rvq.cluster_usage", f"{base}.{codebook}.cluster_usage")
        yield Absent(f"{base}.{codebook}.{mark}", np.ones((1,), np.float32), getattr(shape, ours))
