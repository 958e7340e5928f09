"""EnCodec's layouts: transformers' in three spellings of weight norm, audiocraft's, mlx-examples', and ours.

Ours has transformers' places and weight norm's g and v, so nothing is folded. v is PyTorch's (out, in, k) with the last
two axes exchanged; of a transposed convolution it is (in, out, k), and g is per *input* channel. Two things are not in
every layout, and then results stay the same although tensors do not:

- Folded weights (encodec-folded, mlx-examples-encodec) come back as g = |w|, v = w.
- mlx-examples adds the two biases of an LSTM; they come back as the first, with zeros as the second.

A codebook is kept as running sums, entry = embed_sum / cluster_usage. The others' `embed` is read as the sums of
entries that were used once; their own statistics, which only the training that made them needs, are dropped.
"""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from backends.errors import InputError
from backends.layouts import encodec_settings
from backends.layouts.families import Family, Settings
from backends.layouts.rules import ANY, CONV, CONV_TRANSPOSE, SAME, Absent, AnyRule, Op, Rule, Several

LAYOUTS = (
    "encodec",
    "encodec-legacy",
    "encodec-folded",
    "audiocraft-encodec",
    "mlx-examples-encodec",
    "mlx-encodec",
)
# A MusicGen's directory may hold its codec as a file of its own, beside weights that do not include it; the file that
# names where the codec is spares the shards of a large one.
WEIGHTS = (
    "codec.safetensors",
    "model.safetensors",
    "compression_state_dict.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin",
)
INSIDE_MUSICGEN = "audio_encoder."
EPSILON = 1e-5  # least usage, as in backends.mlx_backend.rvq

_G_AND_V = {
    "encodec": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    "encodec-legacy": ("weight_g", "weight_v"),
    "audiocraft-encodec": ("weight_g", "weight_v"),
}
Convolution = tuple[str, tuple[int, int, int], bool]  # our name, shape of v, whether transposed


def write_settings(settings: Settings, layout: str) -> dict[str, Any]:
    """The config.json that goes with any of the layouts: transformers' form."""
    return encodec_settings.to_transformers(settings)


def choose_files(files: Sequence[str], source: object) -> list[str]:
    """Of a repository's files, the weights (or their index), the configuration, and the shards."""
    weights = next((name for name in WEIGHTS if name in files), None)
    if weights is None:
        raise InputError(f"{source}: holds none of {', '.join(WEIGHTS)}")
    shards = fnmatch.filter(files, "model-*-of-*.safetensors") if weights.endswith(".json") else []
    return [weights, *(name for name in ["config.json"] if name in files), *shards]


def detect(names: Iterable[str]) -> str | None:
    """Which of EnCodec's layouts these tensor names are, perhaps inside a MusicGen; None if none."""
    names = {name.removeprefix(INSIDE_MUSICGEN) for name in names}
    first = {
        "encoder.layers.0.conv.parametrizations.weight.original0": "encodec",
        "encoder.layers.0.conv.weight_g": "encodec-legacy",
        "encoder.model.0.conv.conv.weight_g": "audiocraft-encodec",
        "encoder.layers.0.weight_g": "mlx-encodec",
    }
    if layout := next((layout for name, layout in first.items() if name in names), None):
        return layout
    if "encoder.layers.0.conv.weight" not in names or "quantizer.layers.0.codebook.embed" not in names:
        return None
    return "mlx-examples-encodec" if any(name.endswith(".lstm.0.Wx") for name in names) else "encodec-folded"


def own(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """{name that the rules know: name in the file}, the part under `audio_encoder.` where the file is a MusicGen's."""
    inside = {name.removeprefix(INSIDE_MUSICGEN): name for name in tensors if name.startswith(INSIDE_MUSICGEN)}
    return inside or {name: name for name in tensors}


def shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Every tensor of ours."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape, transposed in convolutions(settings):
        found[f"{name}.weight_g"], found[f"{name}.weight_v"] = (shape[0], 1, 1), shape
        found[f"{name}.bias"] = (shape[2] if transposed else shape[0],)
    width = settings["filters"] * 2 ** len(settings["ratios"])
    for name in _lstms(settings):
        found |= {f"{name}.weight_ih": (4 * width, width), f"{name}.weight_hh": (4 * width, width)}
        found |= {f"{name}.bias_ih": (4 * width,), f"{name}.bias_hh": (4 * width,)}
    K, V, D = settings["codebooks"], settings["entries"], settings["width"]
    return {**found, "quantizer.embed_sum": (K, V, D), "quantizer.cluster_usage": (K, V)}


def rules(layout: str, settings: Settings) -> list[AnyRule]:
    """The table between ours (mlx-encodec) and `layout`."""
    if layout == "mlx-encodec":
        return [Rule(ANY, ANY)]
    if layout not in LAYOUTS:
        raise InputError(f"unknown EnCodec layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    weights = [rule for place in convolutions(settings) for rule in _convolution_rules(place, layout)]
    recurrent = [rule for name in _lstms(settings) for rule in _lstm_rules(name, layout)]
    return [*weights, *recurrent, *_codebook_rules(settings["codebooks"], layout)]


def convolutions(settings: Settings) -> Iterator[Convolution]:
    """Every convolution; gaps in the numbers are activations and LSTMs."""
    yield from _encoder(settings)
    yield from _decoder(settings)


def _encoder(settings: Settings) -> Iterator[Convolution]:
    filters, index = settings["filters"], 0
    yield f"encoder.layers.{index}", (filters, settings["kernel"], settings["channels"]), False
    for ratio in reversed(settings["ratios"]):
        yield from _blocks("encoder", index + 1, filters, settings)
        index += settings["residual_layers"] + 2
        yield f"encoder.layers.{index}", (2 * filters, 2 * ratio, filters), False
        filters *= 2
    index += 2 + bool(settings["lstm_layers"])
    yield f"encoder.layers.{index}", (settings["width"], settings["last_kernel"], filters), False


def _decoder(settings: Settings) -> Iterator[Convolution]:
    filters, index = settings["filters"] * 2 ** len(settings["ratios"]), 0
    yield f"decoder.layers.{index}", (filters, settings["kernel"], settings["width"]), False
    index += bool(settings["lstm_layers"])
    for ratio in settings["ratios"]:
        yield f"decoder.layers.{index + 2}", (filters, 2 * ratio, filters // 2), True
        filters //= 2
        yield from _blocks("decoder", index + 3, filters, settings)
        index += settings["residual_layers"] + 2
    yield f"decoder.layers.{index + 2}", (settings["channels"], settings["last_kernel"], filters), False


def _blocks(half: str, first: int, width: int, settings: Settings) -> Iterator[Convolution]:
    hidden = width // settings["compress"]
    for index in range(first, first + settings["residual_layers"]):
        yield f"{half}.layers.{index}.block.1", (hidden, settings["residual_kernel"], width), False
        yield f"{half}.layers.{index}.block.3", (width, 1, hidden), False


def _lstms(settings: Settings) -> list[str]:
    encoder = 1 + len(settings["ratios"]) * (settings["residual_layers"] + 2)
    places = (f"encoder.layers.{encoder}", "decoder.layers.1")
    return [f"{place}.lstm.{layer}" for place in places for layer in range(settings["lstm_layers"])]


def _convolution_rules(place: Convolution, layout: str) -> Iterator[AnyRule]:
    ours, _, transposed = place
    theirs = f"{ours}.conv"
    if layout == "audiocraft-encodec":
        inner = "convtr.convtr" if transposed else "conv.conv"
        theirs = f"{ours.replace('.layers.', '.model.')}.{inner}"
    yield Rule(f"{ours}.bias", f"{theirs}.bias")
    if layout in _G_AND_V:
        g, v = _G_AND_V[layout]
        yield Rule(f"{ours}.weight_g", f"{theirs}.{g}")
        yield Rule(f"{ours}.weight_v", f"{theirs}.{v}", CONV)
    else:
        turned = CONV
        if layout == "mlx-examples-encodec":
            turned = _TURNED if transposed else SAME
        yield _folded(ours, theirs, turned)


# mlx-examples' transposed convolution (out, k, in) and our v (in, k, out).
_TURNED = Op(lambda x: CONV.to_ours(CONV_TRANSPOSE.to_theirs(x)), lambda x: CONV_TRANSPOSE.to_ours(CONV.to_theirs(x)))


def _folded(ours: str, theirs: str, turned: Op) -> Several:
    def apart(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        v = turned.to_ours(weight)
        return _norm(v), v

    def together(g: np.ndarray, v: np.ndarray) -> tuple[np.ndarray]:
        scale = g.astype(np.float32) / np.maximum(_norm(v), np.finfo(np.float32).tiny)
        return (turned.to_theirs(scale * v.astype(np.float32)),)

    return Several((f"{ours}.weight_g", f"{ours}.weight_v"), (f"{theirs}.weight",), apart, together)


def _norm(v: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(v.astype(np.float32)).sum(axis=(1, 2), keepdims=True))


def _lstm_rules(ours: str, layout: str) -> Iterator[AnyRule]:
    module, _, layer = ours.rpartition(".")
    if layout == "mlx-examples-encodec":
        yield Rule(f"{ours}.weight_ih", f"{ours}.Wx")
        yield Rule(f"{ours}.weight_hh", f"{ours}.Wh")
        biases = (f"{ours}.bias_ih", f"{ours}.bias_hh")
        yield Several(biases, (f"{ours}.bias",), lambda b: (b, np.zeros_like(b)), lambda ih, hh: (ih + hh,))
        return
    theirs = module.replace(".layers.", ".model.") if layout == "audiocraft-encodec" else module
    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        yield Rule(f"{ours}.{part}", f"{theirs}.{part}_l{layer}")


def _codebook_rules(count: int, layout: str) -> Iterator[AnyRule]:
    place = "quantizer.vq.layers.{k}._codebook" if layout == "audiocraft-encodec" else "quantizer.layers.{k}.codebook"
    embeds = tuple(f"{place}.embed".replace("{k}", str(k)) for k in range(count))
    ours = ("quantizer.embed_sum", "quantizer.cluster_usage")
    yield Several(ours, embeds, _as_used_once, _tables)
    if layout != "mlx-examples-encodec":
        yield Absent(f"{place}.embed_avg", lambda sums, usage, k: _tables(sums, usage)[k], count, of=ours)
        yield Absent(f"{place}.cluster_size", lambda usage, k: np.ones_like(usage[k]), count, of=ours[1:])
        yield Absent(f"{place}.inited", np.ones(1, np.float32), count)


def _as_used_once(*embeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sums = np.stack(embeds)
    return sums, np.ones(sums.shape[:2], sums.dtype)


def _tables(sums: np.ndarray, usage: np.ndarray) -> Sequence[np.ndarray]:
    return [*(sums / np.maximum(usage, np.asarray(EPSILON, usage.dtype))[..., None])]


FAMILY = Family(
    title="EnCodec",
    layouts=LAYOUTS,
    written=LAYOUTS,
    ours="mlx-encodec",
    published=encodec_settings.PUBLISHED,
    detect=detect,
    own=own,
    shapes=shapes,
    rules=rules,
    read_settings=encodec_settings.read,
    write_settings=write_settings,
    choose_files=choose_files,
    read_inside=encodec_settings.read_inside,
)
