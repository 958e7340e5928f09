"""MusicGen's layouts: transformers' (musicgen), audiocraft's, and ours, whose names are mlx-examples' too.

Models without a condition, such as micro-musicgen, are MusicgenMelodyForCausalLM in transformers: its layers are the
same without cross-attention. Their codec stays a file of its own, since that class holds none.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from backends.errors import InputError
from backends.layouts import musicgen_settings
from backends.layouts.families import Adaptable, Companion, Family, Settings
from backends.layouts.rules import ANY, SAME, Absent, AnyRule, Joined, Rule

LAYOUTS = ("musicgen", "audiocraft-musicgen", "mlx-musicgen")
CODEC = Companion(
    family="encodec",
    prefix="audio_encoder.",
    layout="encodec",
    files=("codec.safetensors", "compression_state_dict.bin"),
    settings="encodec",
)
TEXT_ENCODER = Companion(
    family="t5", prefix="text_encoder.", layout="t5", files=("text_encoder.safetensors",), settings="t5"
)
# Best first: facebook's repositories hold transformers' files, with codec and text encoder, beside audiocraft's.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "state_dict.bin", "pytorch_model.bin")
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
_POSITIONS = "model.decoder.embed_positions.weights"  # computed; files of old transformers hold it


def choose_files(files: Sequence[str], source: object) -> list[str]:
    """Of a repository's files, one copy's weights or their index, what lies beside them, and the shards."""
    weights = next((name for name in WEIGHTS if name in files), None)
    if weights is None:
        raise InputError(f"{source}: holds none of {', '.join(WEIGHTS)}")
    beside = ("config.json", *BESIDE, *CODEC.files, *TEXT_ENCODER.files)
    shards = fnmatch.filter(files, "model-*-of-*.safetensors") if weights.endswith(".json") else []
    return [weights, *(name for name in beside if name in files), *shards]


def detect(names: Iterable[str]) -> str | None:
    """Which of MusicGen's layouts these tensor names are; None if none."""
    names = set(names)
    if {"decoder.model.decoder.layer_norm.weight", "model.decoder.embed_tokens.0.weight"} & names:
        return "musicgen"
    if "transformer.layers.0.self_attn.in_proj_weight" in names:
        return "audiocraft-musicgen"
    return "mlx-musicgen" if {"emb.0.weight", "layers.0.norm1.weight"} <= names else None


def own(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """{name that the rules know: name in the file}: without codec, text encoder and the computed positions."""
    others = (CODEC.prefix, TEXT_ENCODER.prefix)
    return {name: name for name in tensors if not name.startswith(others) and not name.endswith(_POSITIONS)}


def shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Every tensor of ours."""
    width, K, V = settings["width"], settings["codebooks"], settings["entries"]
    crossing = settings["condition"] == "cross"
    projections = [f"{attention}.{part}_proj.weight" for attention in _attentions(crossing) for part in _PARTS]
    norms = ["norm1", "norm2", *(["norm_cross"] if crossing else [])]
    layer: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(projections, (width, width)),
        "linear1.weight": (settings["mlp_width"], width),
        "linear2.weight": (width, settings["mlp_width"]),
        **{f"{norm}.{w}": (width,) for norm in norms for w in ("weight", "bias")},
    }
    return {
        **{f"emb.{k}.weight": (V + 1, width) for k in range(K)},
        **{f"layers.{n}.{name}": shape for n in range(settings["layers"]) for name, shape in layer.items()},
        "out_norm.weight": (width,),
        "out_norm.bias": (width,),
        **{f"linears.{k}.weight": (V, width) for k in range(K)},
        **{f"{name}.{w}": shape for name, into in _projections(settings).items() for w, shape in
           (("weight", (width, into)), ("bias", (width,)))},
    }  # fmt: skip


def rules(layout: str, settings: Settings) -> list[AnyRule]:
    """The table between ours (mlx-musicgen) and `layout`."""
    if layout == "mlx-musicgen":
        return [Rule(ANY, ANY)]
    if layout == "audiocraft-musicgen":
        return _audiocraft(settings)
    if layout == "musicgen":
        return _transformers(settings)
    raise InputError(f"unknown MusicGen layout {layout!r}; expected one of {', '.join(LAYOUTS)}")


_PARTS = ("q", "k", "v", "out")
# Of the spectrogram that chroma is read from, 2^radix2_exp samples: audiocraft's files of melody models hold it.
_CHROMA_WINDOW = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2**14) / 2**14)).astype(np.float32)


def _attentions(crossing: bool) -> dict[str, str]:
    """Ours: transformers' (audiocraft calls them self_attn and cross_attention)."""
    return {"self_attn": "self_attn", **({"cross_attn": "encoder_attn"} if crossing else {})}


def _projections(settings: Settings) -> dict[str, int]:
    """What maps conditions to the model's width, and from which."""
    if settings["condition"] == "none":
        return {}
    text = {"text_conditioner.output_proj": settings["text_width"]}
    return {**text, "chroma_conditioner.output_proj": settings["chroma"]} if settings["chroma"] else text


def _audiocraft(settings: Settings) -> list[AnyRule]:
    found: list[AnyRule] = []
    for ours in _attentions(settings["condition"] == "cross"):
        theirs = f"transformer.layers.{{n}}.{'cross_attention' if ours == 'cross_attn' else ours}"
        parts = tuple(f"layers.{{n}}.{ours}.{part}_proj.weight" for part in "qkv")
        found.append(Joined(parts, f"{theirs}.in_proj_weight", (SAME, SAME, SAME)))
        found.append(Rule(f"layers.{{n}}.{ours}.out_proj.weight", f"{theirs}.out_proj.weight"))
    names = {"text_conditioner": "description", "chroma_conditioner": "self_wav"}
    for ours, theirs in names.items():
        if f"{ours}.output_proj" in _projections(settings):
            conditioner = f"condition_provider.conditioners.{theirs}"
            found.append(Rule(f"{ours}.output_proj.{{w}}", f"{conditioner}.output_proj.{{w}}"))
    if "chroma_conditioner.output_proj" in _projections(settings):
        found.append(Absent("condition_provider.conditioners.self_wav.chroma.spec.window", _CHROMA_WINDOW))
    alike = ("norm1.{w}", "norm2.{w}", "norm_cross.{w}", "linear1.weight", "linear2.weight")
    found += [Rule(f"layers.{{n}}.{part}", f"transformer.layers.{{n}}.{part}") for part in alike]
    return [*found, *(Rule(name, name) for name in ("out_norm.{w}", "emb.{n}.weight", "linears.{n}.weight"))]


def _transformers(settings: Settings) -> list[AnyRule]:
    crossing, bare = settings["condition"] == "cross", settings["condition"] == "none"
    if not bare and settings["text_width"] == settings["width"]:
        raise InputError(
            f"a MusicGen as wide as its text encoder ({settings['width']}) has no form in transformers, which then "
            "leaves out the projection between them"
        )
    top = "" if bare else "decoder."
    base = f"{top}model.decoder"
    parts = {f"{a}.{part}_proj.weight": f"{b}.{part}_proj.weight" for a, b in _attentions(crossing).items()
             for part in _PARTS}  # fmt: skip
    parts |= {"linear1.weight": "fc1.weight", "linear2.weight": "fc2.weight"}
    parts |= {"norm1.{w}": "self_attn_layer_norm.{w}", "norm2.{w}": "final_layer_norm.{w}"}
    parts |= {"norm_cross.{w}": "encoder_attn_layer_norm.{w}"} if crossing else {}
    projections = {"text_conditioner": "enc_to_dec_proj", "chroma_conditioner": "audio_enc_to_dec_proj"}
    return [
        *(Rule(f"layers.{{n}}.{ours}", f"{base}.layers.{{n}}.{theirs}") for ours, theirs in parts.items()),
        Rule("emb.{n}.weight", f"{base}.embed_tokens.{{n}}.weight"),
        Rule("out_norm.{w}", f"{base}.layer_norm.{{w}}"),
        Rule("linears.{n}.weight", f"{top}lm_heads.{{n}}.weight"),
        *(Rule(f"{ours}.output_proj.{{w}}", f"{theirs}.{{w}}") for ours, theirs in projections.items()
          if f"{ours}.output_proj" in _projections(settings)),
    ]  # fmt: skip


FAMILY = Family(
    title="MusicGen",
    layouts=LAYOUTS,
    written=LAYOUTS,
    ours="mlx-musicgen",
    published=musicgen_settings.PUBLISHED,
    detect=detect,
    own=own,
    shapes=shapes,
    rules=rules,
    read_settings=musicgen_settings.read,
    write_settings=musicgen_settings.write,
    choose_files=choose_files,
    read_inside=musicgen_settings.read_inside,
    companions=(CODEC, TEXT_ENCODER),
    embeds=lambda layout, settings: layout == "musicgen" and settings["condition"] != "none",
    beside=BESIDE,
    added=musicgen_settings.processors,
    adaptable=Adaptable(layout="musicgen", embeddings=tuple(f"emb.{k}" for k in range(8)), tied={}),
)
