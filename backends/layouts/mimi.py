"""Mimi's layouts: transformers' on-disk names, kyutai's, and ours (transformers' names, MLX's convolution axes)."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from backends.errors import InputError
from backends.layouts import mimi_settings
from backends.layouts.families import Family, Settings
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
KYUTAI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
# Best first: a codec's own files, then those of a CSM that holds one inside.
WEIGHTS = (KYUTAI_FILE, "codec.safetensors", "transformers.safetensors.index.json", "model.safetensors")
INSIDE_CSM = "codec_model."


def write_settings(settings: Settings, layout: str) -> dict[str, Any]:
    """The config.json that goes with any of the layouts: transformers' form, since kyutai and we have none of it."""
    return mimi_settings.to_transformers(settings)


def choose_files(files: Sequence[str], source: object) -> list[str]:
    """Of a repository's files, one codec's weights or their index, the configuration, and the shards."""
    weights = next((name for name in WEIGHTS if name in files), None)
    if weights is None:
        raise InputError(f"{source}: holds none of {', '.join(WEIGHTS)}")
    shards = fnmatch.filter(files, "transformers-*-of-*.safetensors") if weights.endswith(".json") else []
    return [weights, *(name for name in ["config.json"] if name in files), *shards]


def detect(names: Iterable[str]) -> str | None:
    """Which of Mimi's layouts these tensor names are, perhaps inside a CSM; None if none."""
    names = {name.removeprefix(INSIDE_CSM) for name in names}
    if "downsample.conv.conv.conv.weight" in names:
        return "kyutai-mimi"
    if "downsample.conv.weight" in names:
        return "mimi"
    return "mlx-mimi" if "downsample.weight" in names else None


def own(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """{name that the rules know: name in the file}, the part under `codec_model.` where the file is a CSM's."""
    inside = {name.removeprefix(INSIDE_CSM): name for name in tensors if name.startswith(INSIDE_CSM)}
    return inside or {name: name for name in tensors}


def shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Every tensor of ours."""
    width, semantic = settings["width"], settings["semantic_codebooks"]
    transformer = _transformer_shapes(settings)
    return {
        **_seanet_shapes(settings),
        **{f"{half}_transformer.{name}": shape for half in ("encoder", "decoder") for name, shape in transformer},
        "downsample.weight": (width, 2 * settings["downsample"], width),
        "upsample.weight": (width, 2 * settings["downsample"], 1),
        **_quantizer_shapes("quantizer.semantic", semantic, settings),
        **_quantizer_shapes("quantizer.acoustic", settings["codebooks"] - semantic, settings),
    }


def rules(layout: str, settings: Settings) -> list[AnyRule]:
    """The table between ours (mlx-mimi) and `layout`."""
    if layout == "mlx-mimi":
        return [Rule(ANY, ANY)]
    if layout == "mimi":
        return [*_convolutions(settings, kyutai=False), *_attention(), *_quantizers(settings, *_TRANSFORMERS)]
    if layout == "kyutai-mimi":
        convolutions = _convolutions(settings, kyutai=True)
        return [*convolutions, *_kyutai_attention(settings), *_quantizers(settings, *_KYUTAI)]
    raise InputError(f"unknown Mimi layout {layout!r}; expected one of {', '.join(LAYOUTS)}")


def _seanet_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Convolutions as (out, k, in), in the order of `_places`."""
    shapes: dict[str, tuple[int, ...]] = {}
    places = [name for name, _ in _places(settings) if name.startswith(("encoder", "decoder"))]
    for name, shape in zip(places, [*_encoder_convolutions(settings), *_decoder_convolutions(settings)], strict=True):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return shapes


def _encoder_convolutions(settings: Settings) -> Iterator[tuple[int, int, int]]:
    filters = settings["filters"]
    yield filters, settings["kernel"], 1
    for ratio in reversed(settings["ratios"]):
        yield from _residual_convolutions(filters, settings)
        yield 2 * filters, 2 * ratio, filters
        filters *= 2
    yield settings["width"], settings["last_kernel"], filters


def _decoder_convolutions(settings: Settings) -> Iterator[tuple[int, int, int]]:
    filters = settings["filters"] * 2 ** len(settings["ratios"])
    yield filters, settings["kernel"], settings["width"]
    for ratio in settings["ratios"]:
        yield filters // 2, 2 * ratio, filters
        filters //= 2
        yield from _residual_convolutions(filters, settings)
    yield 1, settings["last_kernel"], filters


def _residual_convolutions(width: int, settings: Settings) -> Iterator[tuple[int, int, int]]:
    hidden = width // settings["compress"]
    for _ in range(settings["residual_layers"]):
        yield hidden, settings["residual_kernel"], width
        yield width, 1, hidden


def _transformer_shapes(settings: Settings) -> list[tuple[str, tuple[int, ...]]]:
    width, mlp = settings["width"], settings["mlp_width"]
    layer = {
        **{f"self_attn.{part}_proj.weight": (width, width) for part in "qkvo"},
        "mlp.fc1.weight": (mlp, width),
        "mlp.fc2.weight": (width, mlp),
        **{f"{part}_layernorm.{w}": (width,) for part in ("input", "post_attention") for w in ("weight", "bias")},
        **{f"{part}_layer_scale.scale": (width,) for part in ("self_attn", "mlp")},
    }
    return [(f"layers.{n}.{name}", shape) for n in range(settings["layers"]) for name, shape in layer.items()]


def _quantizer_shapes(name: str, codebooks: int, settings: Settings) -> dict[str, tuple[int, ...]]:
    width, code_width, entries = settings["width"], settings["code_width"], settings["entries"]
    return {
        f"{name}.input_proj.weight": (code_width, width),
        f"{name}.output_proj.weight": (width, code_width),
        f"{name}.rvq.embed_sum": (codebooks, entries, code_width),
        f"{name}.rvq.cluster_usage": (codebooks, entries),
    }


def _convolutions(settings: Settings, *, kyutai: bool) -> Iterator[Rule]:
    for ours, op in _places(settings):
        theirs = _kyutai_name(ours, op) if kyutai else f"{ours}.conv"
        yield Rule(f"{ours}.weight", f"{theirs}.weight", op)
        if ours not in ("downsample", "upsample"):
            yield Rule(f"{ours}.bias", f"{theirs}.bias")


def _places(settings: Settings) -> Iterator[tuple[str, Op]]:
    """Every convolution by our name, and what its weight needs. Gaps in the numbers are activations."""
    blocks, ratios = ["block"] * settings["residual_layers"], len(settings["ratios"])
    encoder = ["conv", *[*blocks, "", "conv"] * ratios, "", "conv"]
    decoder = ["conv", *["", "transpose", *blocks] * ratios, "", "conv"]
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


def _kyutai_attention(settings: Settings) -> Iterator[AnyRule]:
    halves = flipped(rope_rows(settings["width"] // settings["heads"]))  # ours are halves here, kyutai's are pairs
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


def _quantizers(settings: Settings, names: dict[str, str], codebook: str, sums: str, mark: str) -> Iterator[AnyRule]:
    semantic = settings["semantic_codebooks"]
    counts = {"semantic": semantic, "acoustic": settings["codebooks"] - semantic}
    for ours, theirs in names.items():
        mine, base, count = f"quantizer.{ours}", f"quantizer.{theirs}", counts[ours]
        for projection in ("input_proj", "output_proj"):
            yield Rule(f"{mine}.{projection}.weight", f"{base}.{projection}.weight", POINTWISE)
        yield Stacked(f"{mine}.rvq.embed_sum", f"{base}.{codebook}.{sums}", count)
        yield Stacked(f"{mine}.rvq.cluster_usage", f"{base}.{codebook}.cluster_usage", count)
        yield Absent(f"{base}.{codebook}.{mark}", np.ones((1,), np.float32), count)


FAMILY = Family(
    title="Mimi",
    layouts=LAYOUTS,
    written=LAYOUTS,
    ours="mlx-mimi",
    published=mimi_settings.PUBLISHED,
    detect=detect,
    own=own,
    shapes=shapes,
    rules=rules,
    read_settings=mimi_settings.read,
    write_settings=write_settings,
    choose_files=choose_files,
)
