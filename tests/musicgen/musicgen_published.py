"""Names and shapes of the published files, and audiocraft's and mlx-examples' forms of a model, written out by hand.

Sources: github.com/facebookresearch/audiocraft (models/lm.py, modules/seanet.py, config/) and
github.com/ml-explore/mlx-examples (musicgen/musicgen.py, encodec/convert.py).
"""

import numpy as np
import torch

Shapes = dict[str, tuple[int, ...]]


def audiocraft_lm(
    width: int, layers: int, codebooks: int = 4, *, crossing: bool, text: bool, chroma: int = 0
) -> Shapes:
    """state_dict.bin's best_state: codebooks of 2048 entries, MLPs of four widths."""
    shapes: Shapes = {}
    for k in range(codebooks):
        shapes |= {f"emb.{k}.weight": (2049, width), f"linears.{k}.weight": (2048, width)}
    for n in range(layers):
        layer = f"transformer.layers.{n}"
        for attention in ("self_attn", *(("cross_attention",) if crossing else ())):
            shapes[f"{layer}.{attention}.in_proj_weight"] = (3 * width, width)
            shapes[f"{layer}.{attention}.out_proj.weight"] = (width, width)
        for norm in ("norm1", "norm2", *(("norm_cross",) if crossing else ())):
            shapes |= {f"{layer}.{norm}.weight": (width,), f"{layer}.{norm}.bias": (width,)}
        shapes |= {f"{layer}.linear1.weight": (4 * width, width), f"{layer}.linear2.weight": (width, 4 * width)}
    shapes |= {"out_norm.weight": (width,), "out_norm.bias": (width,)}
    for name, into in (("description", 768 if text else 0), ("self_wav", chroma)):
        if into:
            projection = f"condition_provider.conditioners.{name}.output_proj"
            shapes |= {f"{projection}.weight": (width, into), f"{projection}.bias": (width,)}
    return shapes | ({"condition_provider.conditioners.self_wav.chroma.spec.window": (16384,)} if chroma else {})


def audiocraft_codec() -> Shapes:
    """best_state of an EnCodec 32 kHz trained with audiocraft."""
    shapes: Shapes = {}

    def add(name: str, out: int, into: int, kernel: int, transposed: bool = False) -> None:
        place = f"{name}.convtr.convtr" if transposed else f"{name}.conv.conv"
        first, second = (into, out) if transposed else (out, into)
        shapes[f"{place}.weight_g"] = (first, 1, 1)
        shapes[f"{place}.weight_v"] = (first, second, kernel)
        shapes[f"{place}.bias"] = (out,)

    add("encoder.model.0", 64, 1, 7)
    for n, width, ratio in ((1, 64, 4), (4, 128, 4), (7, 256, 5), (10, 512, 8)):
        add(f"encoder.model.{n}.block.1", width // 2, width, 3)
        add(f"encoder.model.{n}.block.3", width, width // 2, 1)
        add(f"encoder.model.{n + 2}", 2 * width, width, 2 * ratio)
    add("encoder.model.15", 128, 1024, 7)
    add("decoder.model.0", 1024, 128, 7)
    for n, width, ratio in ((3, 1024, 8), (6, 512, 5), (9, 256, 4), (12, 128, 4)):
        add(f"decoder.model.{n}", width // 2, width, 2 * ratio, transposed=True)
        add(f"decoder.model.{n + 1}.block.1", width // 4, width // 2, 3)
        add(f"decoder.model.{n + 1}.block.3", width // 2, width // 4, 1)
    add("decoder.model.15", 1, 64, 7)
    for half, n in (("encoder", 13), ("decoder", 1)):
        for layer in (0, 1):
            for part, shape in (("weight_ih", (4096, 1024)), ("weight_hh", (4096, 1024)), ("bias_ih", (4096,)),
                                ("bias_hh", (4096,))):  # fmt: skip
                shapes[f"{half}.model.{n}.lstm.{part}_l{layer}"] = shape
    for q in range(4):
        codebook = f"quantizer.vq.layers.{q}._codebook"
        shapes |= {f"{codebook}.embed": (2048, 128), f"{codebook}.embed_avg": (2048, 128)}
        shapes |= {f"{codebook}.cluster_size": (2048,), f"{codebook}.inited": (1,)}
    return shapes


LM_NAMES = (  # transformers', without its prefix: audiocraft's
    ("model.decoder.embed_tokens.", "emb."),
    ("model.decoder.layers.", "transformer.layers."),
    ("model.decoder.layer_norm.", "out_norm."),
    ("lm_heads.", "linears."),
    (".self_attn_layer_norm.", ".norm1."),
    (".encoder_attn_layer_norm.", ".norm_cross."),
    (".final_layer_norm.", ".norm2."),
    (".encoder_attn.", ".cross_attention."),
    (".fc1.", ".linear1."),
    (".fc2.", ".linear2."),
    ("audio_enc_to_dec_proj.", "condition_provider.conditioners.self_wav.output_proj."),
    ("enc_to_dec_proj.", "condition_provider.conditioners.description.output_proj."),
)


def audiocraft_of(theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """transformers' language model in audiocraft's form: q, k and v are one tensor.

    Files of melody models also hold the window of the spectrogram that chroma is read from (the additional key that
    transformers' convert_musicgen_melody_transformers.py expects).
    """
    named, parts = {}, {}
    if "audio_enc_to_dec_proj.weight" in theirs:
        window = torch.hann_window(2**14, dtype=torch.float64).numpy().astype(np.float32)
        named["condition_provider.conditioners.self_wav.chroma.spec.window"] = window
    for name, value in theirs.items():
        if name.startswith(("text_encoder.", "audio_encoder.")):
            continue
        name = name.removeprefix("decoder.")
        for old, new in LM_NAMES:
            name = name.replace(old, new)
        attention, _, leaf = name.rpartition(".")
        owner, _, projection = attention.rpartition(".")
        if projection in ("q_proj", "k_proj", "v_proj"):
            parts.setdefault(f"{owner}.in_proj_{leaf}", {})[projection[0]] = value
        else:
            named[name] = value
    return named | {name: np.concatenate([some[part] for part in "qkv"]) for name, some in parts.items()}


def mlx_examples_of(theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """transformers' language model in mlx-examples' form."""
    named = {}
    for name, value in theirs.items():
        if name.startswith(("text_encoder.", "audio_encoder.")):
            continue
        name = name.removeprefix("decoder.")
        for old, new in LM_NAMES:
            name = name.replace(old, new)
        for old, new in (("transformer.layers.", "layers."), (".cross_attention.", ".cross_attn."),
                         ("condition_provider.conditioners.description", "text_conditioner")):  # fmt: skip
            name = name.replace(old, new)
        named[name] = value
    return named


def audiocraft_codec_of(theirs: dict[str, np.ndarray], decoder_ratios: int = 4) -> dict[str, np.ndarray]:
    """transformers' EnCodec in audiocraft's form."""
    transposed = {f"decoder.layers.{3 * i + 3}." for i in range(decoder_ratios)}
    named = {}
    for name, value in theirs.items():
        inner = "convtr.convtr" if any(name.startswith(place) for place in transposed) else "conv.conv"
        name = name.replace(".parametrizations.weight.original0", ".weight_g")
        name = name.replace(".parametrizations.weight.original1", ".weight_v")
        name = name.replace(".conv.", f".{inner}.").replace(".layers.", ".model.", 1)
        name = name.replace("quantizer.model.", "quantizer.vq.layers.").replace(".codebook.", "._codebook.")
        named[name] = value
    return named


def mlx_examples_codec_of(theirs: dict[str, np.ndarray], decoder_ratios: int = 4) -> dict[str, np.ndarray]:
    """transformers' EnCodec as mlx-examples' encodec/convert.py writes it: folded, LSTM biases added."""
    transposed = {f"decoder.layers.{3 * i + 3}.conv" for i in range(decoder_ratios)}
    named = {}
    for name, value in theirs.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "original1":
            place = module.removesuffix(".parametrizations.weight")
            g = theirs[f"{module}.original0"]
            weight = g * value / np.sqrt((value**2).sum(axis=(1, 2), keepdims=True))
            named[f"{place}.weight"] = weight.transpose(1, 2, 0) if place in transposed else weight.swapaxes(1, 2)
        elif ".lstm." in name:
            part, _, layer = leaf.rpartition("_l")
            if part == "bias_ih":
                named[f"{module}.{layer}.bias"] = value + theirs[f"{module}.bias_hh_l{layer}"]
            elif part != "bias_hh":
                named[f"{module}.{layer}.{'Wx' if part == 'weight_ih' else 'Wh'}"] = value
        elif leaf not in ("original0", "embed_avg", "cluster_size", "inited"):
            named[name] = value
    return named


XP_CFG = """
solver: musicgen
sample_rate: 32000
channels: {channels}
lm_model: transformer_lm
dataset:
  segment_duration: 30
interleave_stereo_codebooks:
  use: {stereo}
  per_timestep: false
codebooks_pattern:
  modeling: delay
  delay:
    delays: {delays}
    flatten_first: 0
    empty_initial: 0
transformer_lm:
  dim: {width}
  num_heads: {heads}
  num_layers: {layers}
  hidden_scale: 4
  n_q: {codebooks}
  card: {entries}
  activation: gelu
  norm_first: true
  bias_ff: false
  bias_attn: false
  bias_proj: false
  causal: true
  layer_scale: null
  positional_embedding: sin
  norm: layer_norm
  cross_attention: false
  qk_layer_norm: false
  kv_repeat: 1
{conditioners}
"""
T5_CONDITIONER = """
conditioners:
  description:
    model: t5
    t5: {name: t5-base, finetune: false, word_dropout: 0.3, normalize_text: false}
"""
MELODY_CONDITIONERS = """
conditioners:
  args: {merge_text_conditions_p: 0.25, drop_desc_p: 0.5}
  self_wav:
    model: chroma_stem
    chroma_stem: {sample_rate: "${sample_rate}", n_chroma: 12, radix2_exp: 14, argmax: true}
  description:
    model: t5
    t5: {name: t5-base}
"""
NO_CONDITIONERS = {"null": "conditioners: null", "empty": "conditioners: {}", "absent": ""}


def xp_cfg(width: int, layers: int, heads: int, entries: int = 2048, channels: int = 1, conditioners: str = "") -> str:
    codebooks = 4 * channels
    return XP_CFG.format(
        width=width, layers=layers, heads=heads, entries=entries, channels=channels, codebooks=codebooks,
        stereo=str(channels == 2).lower(), delays=[k // channels for k in range(codebooks)], conditioners=conditioners,
    )  # fmt: skip


CODEC_XP_CFG = """
sample_rate: 32000
channels: 1
compression_model: encodec
encodec: {{autoencoder: seanet, quantizer: rvq, sample_rate: "${{sample_rate}}", channels: "${{channels}}", causal: false,
  renormalize: false}}
seanet:
  dimension: {width}
  channels: ${{channels}}
  causal: ${{encodec.causal}}
  n_filters: {filters}
  n_residual_layers: 1
  ratios: [8, 5, 4, 4]
  activation: ELU
  activation_params: {{alpha: 1.0}}
  norm: weight_norm
  norm_params: {{}}
  kernel_size: 7
  residual_kernel_size: 3
  last_kernel_size: 7
  dilation_base: 2
  pad_mode: {pad}
  true_skip: true
  compress: 2
  lstm: 2
  disable_norm_outer_blocks: 0
  decoder: {{trim_right_ratio: 1.0, final_activation: null, final_activation_params: null}}
  encoder: {{}}
rvq: {{n_q: 4, q_dropout: false, bins: {entries}, decay: 0.99}}
"""


def codec_xp_cfg(width: int, filters: int, entries: int, pad: str) -> str:
    return CODEC_XP_CFG.format(width=width, filters=filters, entries=entries, pad=pad)
