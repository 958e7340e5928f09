"""SNAC's layouts: upstream's names in PyTorch's two spellings of weight norm, and ours, which are mlx-audio's too.

A convolution is stored as weight norm's g and v, never folded. v is (out, in / groups, k) upstream and (out, k,
in / groups) in ours; a transposed one is (in, out, k) and (in, k, out), and its g is per *input* channel, because the
norm is over all axes but the first.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from backends.errors import InputError
from backends.layouts import snac_settings
from backends.layouts.families import Family, Settings
from backends.layouts.rules import ANY, CONV, SAME, Absent, AnyRule, Rule

LAYOUTS = ("snac", "snac-legacy", "mlx-snac")
# Best first. A training run writes best_model; upstream reads only pytorch_model.bin.
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "best_model.safetensors")
HEAD_WIDTH = 64
Shapes = Iterator[tuple[str, tuple[int, ...]]]

_SPELLINGS = {
    "snac": {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"},
    "snac-legacy": {"weight_g": "weight_g", "weight_v": "weight_v"},
}


def write_settings(settings: Settings, layout: str) -> dict[str, Any]:
    """The config.json that goes with any of the layouts: upstream's."""
    return dict(settings)


def choose_files(files: Sequence[str], source: object) -> list[str]:
    """Of a repository's files, the weights and the configuration."""
    weights = next((name for name in WEIGHTS if name in files), None)
    if weights is None:
        raise InputError(f"{source}: holds none of {', '.join(WEIGHTS)}")
    return [weights, *(name for name in ["config.json"] if name in files)]


def detect(names: Iterable[str]) -> str | None:
    """Which of SNAC's layouts these tensor names are; None if none."""
    names = set(names)
    if "encoder.block.0.parametrizations.weight.original0" in names:
        return "snac"
    if "encoder.block.0.weight_g" in names:
        return "snac-legacy"
    return "mlx-snac" if "encoder.block.layers.0.weight_g" in names else None


def own(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """{name that the rules know: name in the file}: a file holds nothing but the codec."""
    return {name: name for name in tensors}


def shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Every tensor of ours."""
    return dict([*_encoder(settings), *_quantizer(settings), *_decoder(settings)])


def rules(layout: str, settings: Settings) -> list[AnyRule]:
    """The table between ours (mlx-snac) and `layout`."""
    if layout == "mlx-snac":
        return [*_frequencies(settings, layout), Rule(ANY, ANY)]
    if layout not in _SPELLINGS:
        raise InputError(f"unknown SNAC layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    return [*_frequencies(settings, layout), *(_rule(name, layout) for name in shapes(settings))]


def _rule(ours: str, layout: str) -> Rule:
    module, _, leaf = ours.replace(".layers.", ".").rpartition(".")
    theirs = _SPELLINGS[layout].get(leaf, leaf)
    return Rule(ours, f"{module}.{theirs}", CONV if leaf == "weight_v" else SAME)


def _frequencies(settings: Settings, layout: str) -> Iterator[Absent]:
    """Rotary frequencies, which upstream stores with each attention layer. They are constants, so ours has none.

    The power is rounded to float32 before it is inverted: these are upstream's, bit for bit.
    """
    inverse = np.float32(1) / (10_000 ** (np.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)).astype(np.float32)
    for name in shapes(settings):
        if name.endswith("to_qkv.weight"):
            theirs = name if layout == "mlx-snac" else name.replace(".layers.", ".")
            yield Absent(theirs.replace("to_qkv.weight", "rel_pos.inv_freq"), inverse)


def _encoder(settings: Settings) -> Shapes:
    width, start = settings["encoder_dim"], "encoder.block.layers"
    yield from _convolution(f"{start}.0", (width, 7, 1))
    index = 1
    for stride in settings["encoder_rates"]:
        block = f"{start}.{index}.block.layers"
        yield from _residual_units(block, 0, width, settings)
        yield from _snake(f"{block}.3", width)
        yield from _convolution(f"{block}.4", (2 * width, 2 * stride, width))
        width, index = 2 * width, index + 1
    if settings["attn_window_size"] is not None:
        yield from _attention(f"{start}.{index}", width)
        index += 1
    yield from _convolution(f"{start}.{index}", (width, 7, 1 if settings["depthwise"] else width))


def _quantizer(settings: Settings) -> Shapes:
    latent, entries, width = _latent(settings), settings["codebook_size"], settings["codebook_dim"]
    for level in range(len(settings["vq_strides"])):
        name = f"quantizer.quantizers.{level}"
        yield from _convolution(f"{name}.in_proj", (width, 1, latent))
        yield from _convolution(f"{name}.out_proj", (latent, 1, width))
        yield f"{name}.codebook.weight", (entries, width)


def _decoder(settings: Settings) -> Shapes:
    latent, width, start = _latent(settings), settings["decoder_dim"], "decoder.model.layers"
    first = [(latent, 7, 1), (width, 1, latent)] if settings["depthwise"] else [(width, 7, latent)]
    for index, shape in enumerate(first):
        yield from _convolution(f"{start}.{index}", shape)
    index = len(first)
    if settings["attn_window_size"] is not None:
        yield from _attention(f"{start}.{index}", width)
        index += 1
    for stage, stride in enumerate(settings["decoder_rates"]):
        wide, out = width // 2**stage, width // 2 ** (stage + 1)
        block = f"{start}.{index + stage}.block.layers"
        yield from _snake(f"{block}.0", wide)
        yield from _convolution(f"{block}.1", (wide, 2 * stride, out), biases=out)
        if settings["noise"]:
            yield from _convolution(f"{block}.2.linear", (out, 1, out), biases=0)
        yield from _residual_units(block, 3 if settings["noise"] else 2, out, settings)
    index += len(settings["decoder_rates"])
    yield from _snake(f"{start}.{index}", out)
    yield from _convolution(f"{start}.{index + 1}", (1, 7, out))


def _residual_units(block: str, first: int, width: int, settings: Settings) -> Shapes:
    for unit in range(first, first + 3):
        name = f"{block}.{unit}.block.layers"
        yield from _snake(f"{name}.0", width)
        yield from _convolution(f"{name}.1", (width, 7, 1 if settings["depthwise"] else width))
        yield from _snake(f"{name}.2", width)
        yield from _convolution(f"{name}.3", (width, 1, width))


def _convolution(name: str, shape: tuple[int, int, int], biases: int | None = None) -> Shapes:
    """`biases` is their number if not that of the first axis."""
    yield f"{name}.weight_g", (shape[0], 1, 1)
    yield f"{name}.weight_v", shape
    if biases != 0:
        yield f"{name}.bias", (biases or shape[0],)


def _snake(name: str, width: int) -> Shapes:
    yield f"{name}.alpha", (1, width, 1)


def _attention(name: str, width: int) -> Shapes:
    yield f"{name}.norm.weight", (width,)
    yield f"{name}.norm.bias", (width,)
    yield f"{name}.to_qkv.weight", (3 * width, width)
    yield f"{name}.to_out.weight", (width, width)


def _latent(settings: Settings) -> int:
    return settings["encoder_dim"] * 2 ** len(settings["encoder_rates"])


FAMILY = Family(
    title="SNAC",
    layouts=LAYOUTS,
    written=LAYOUTS,
    ours="mlx-snac",
    published=snac_settings.PUBLISHED["snac_24khz"],
    detect=detect,
    own=own,
    shapes=shapes,
    rules=rules,
    read_settings=snac_settings.read,
    write_settings=write_settings,
    choose_files=choose_files,
)
