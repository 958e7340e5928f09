"""Names and shapes of the published models: the rules, our modules, transformers' classes and audiocraft's files agree."""

import math

import musicgen_published as published
import pytest
import torch
from transformers import (
    EncodecConfig,
    EncodecModel,
    MusicgenConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForCausalLM,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)
from transformers.core_model_loading import revert_weight_conversion

from backends.errors import InputError
from backends.layouts import encodec, encodec_settings, musicgen, musicgen_settings, t5, t5_settings
from backends.layouts.checkpoint import expected_tensors, read
from backends.layouts.files import blank
from backends.layouts.rules import to_ours, to_theirs
from backends.mlx_backend.parameters import parameters
from musicgen_mlx import Encodec, MusicGen, T5Encoder, of_scale
from musicgen_mlx import EncodecConfig as OurEncodecConfig
from musicgen_mlx import T5Config as OurT5Config

# Scale, condition, channels: parameters in millions, of the language model with its projections.
MODELS = {
    "small": ("small", "cross", 1, 420.37),
    "medium": ("medium", "cross", 1, 1838.74),
    "large": ("large", "cross", 1, 3256.96),
    "melody": ("medium", "prepend", 1, 1385.63),
    "stereo-small": ("small", "cross", 2, 437.15),
    "micro": ("micro", "none", 1, 134.25),
}
FAMILIES = (musicgen, encodec, t5)


def shapes(tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def on_disk(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """What transformers would write."""
    return shapes(revert_weight_conversion(model, model.state_dict()))


def settings_of(name: str) -> dict:
    return musicgen_settings.of_scale(*MODELS[name][:3])


def upstream(settings: dict) -> torch.nn.Module:
    """transformers' model of the configuration that we write, without memory for its weights."""
    content = musicgen_settings.write(settings, "musicgen")
    made = {
        "cross": (MusicgenForConditionalGeneration, MusicgenConfig),
        "prepend": (MusicgenMelodyForConditionalGeneration, MusicgenMelodyConfig),
        "none": (MusicgenMelodyForCausalLM, MusicgenMelodyDecoderConfig),
    }
    model, config = made[settings["condition"]]
    with torch.device("meta"):
        return model(config.from_dict(content))


@pytest.mark.parametrize("name", MODELS)
def test_our_modules_are_what_the_rules_expect(name):
    scale, condition, channels, millions = MODELS[name]
    config = of_scale(scale, condition, channels)
    assert config.settings() == settings_of(name)
    ours = shapes(parameters(MusicGen(config)))
    assert ours == musicgen.shapes(config.settings())
    assert round(sum(map(math.prod, ours.values())) / 1e6, 2) == millions


@pytest.mark.parametrize("name", MODELS)
def test_transformers_names_and_shapes(name):
    settings = settings_of(name)
    listed = on_disk(upstream(settings))
    own = musicgen.own({name: blank(shape) for name, shape in listed.items()})
    expected = shapes(expected_tensors(musicgen.FAMILY, "musicgen", settings))
    assert expected == {name: listed[name] for name in own}
    if settings["condition"] == "none":
        return
    rest = {name: shape for name, shape in listed.items() if name not in own}
    codec = {
        f"audio_encoder.{n}": s
        for n, s in shapes(expected_tensors(encodec.FAMILY, "encodec", settings["encodec"])).items()
    }
    text = {f"text_encoder.{n}": s for n, s in shapes(expected_tensors(t5.FAMILY, "t5", settings["t5"])).items()}
    rest.pop("text_encoder.encoder.embed_tokens.weight", None)
    assert rest == {**codec, **text}


@pytest.mark.parametrize("name", MODELS)
def test_audiocrafts_names_and_shapes(name):
    settings = settings_of(name)
    crossing, bare = settings["condition"] == "cross", settings["condition"] == "none"
    listed = published.audiocraft_lm(
        settings["width"], settings["layers"], settings["codebooks"], crossing=crossing, text=not bare,
        chroma=settings["chroma"],
    )  # fmt: skip
    assert shapes(expected_tensors(musicgen.FAMILY, "audiocraft-musicgen", settings)) == listed
    conditioners = {
        "cross": published.T5_CONDITIONER,
        "none": "conditioners: null",
        "prepend": published.MELODY_CONDITIONERS,
    }
    cfg = published.xp_cfg(
        settings["width"], settings["layers"], settings["heads"], channels=settings["channels"],
        conditioners=conditioners[settings["condition"]],
    )  # fmt: skip
    assert musicgen_settings.read_inside({"xp.cfg": cfg}, "test") == {**settings, "name": ""}
    got = read(musicgen.FAMILY, {name: blank(shape) for name, shape in listed.items()}, settings, "published")
    assert shapes(got.like) == musicgen.shapes(settings)


def test_the_codec_and_the_text_encoder():
    codec = shapes(parameters(Encodec(OurEncodecConfig())))
    assert codec == encodec.shapes(encodec_settings.PUBLISHED)
    learned = sum(math.prod(shape) for name, shape in codec.items() if not name.startswith("quantizer."))
    assert (round(learned / 1e6, 2), OurEncodecConfig().frame_hz) == (56.88, 50)
    with torch.device("meta"):
        theirs = on_disk(EncodecModel(EncodecConfig(**encodec_settings.to_transformers(encodec_settings.PUBLISHED))))
        their_t5 = on_disk(T5EncoderModel(T5Config(**t5_settings.to_transformers(t5_settings.PUBLISHED))))
    assert shapes(expected_tensors(encodec.FAMILY, "encodec", encodec_settings.PUBLISHED)) == theirs
    listed = published.audiocraft_codec()
    assert shapes(expected_tensors(encodec.FAMILY, "audiocraft-encodec", encodec_settings.PUBLISHED)) == listed
    text = shapes(parameters(T5Encoder(OurT5Config())))
    assert text == t5.shapes(t5_settings.PUBLISHED)
    their_t5.pop("encoder.embed_tokens.weight", None)
    assert shapes(expected_tensors(t5.FAMILY, "t5", t5_settings.PUBLISHED)) == their_t5
    assert round(sum(map(math.prod, text.values())) / 1e6, 2) == 109.63


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.FAMILY.title)
def test_the_rules_are_a_bijection_of_names(family):
    kind = family.FAMILY
    every = [kind.published]
    if family is musicgen:
        every = [musicgen_settings.of_scale("xsmall", condition) for condition in musicgen_settings.CONDITIONS]
    for settings in every:
        for layout in kind.layouts:
            rules = kind.rules(layout, settings)
            ours = {name: blank(shape) for name, shape in kind.shapes(settings).items()}
            theirs = dict(to_theirs(ours, rules, "test"))
            assert shapes(to_ours(theirs, rules, "test")) == shapes(ours)
            assert len(theirs) == len(set(theirs))


@pytest.mark.parametrize("name", MODELS)
def test_configurations_round_trip(name):
    settings = {**settings_of(name), "name": ""}
    ours = musicgen_settings.write(settings, "mlx-musicgen")
    assert musicgen_settings.read(ours, "test") == settings
    theirs = musicgen_settings.read(musicgen_settings.write(settings, "musicgen"), "test")
    assert theirs == settings


def test_codecs_of_every_number_of_codebooks_round_trip():
    for codebooks in range(1, 33):
        for entries in (64, 1000, 2048):
            for rate in (16_000, 32_000, 44_100):
                given = {"codebooks": codebooks, "entries": entries, "sample_rate_hz": rate}
                settings = {**encodec_settings.PUBLISHED, **given}
                assert encodec_settings.from_transformers(encodec_settings.to_transformers(settings)) == settings


def test_the_published_configurations_are_read():
    """facebook/encodec_32khz's config.json, and what transformers' converter wrote for facebook/musicgen-small."""
    codec = {
        "architectures": ["EncodecModel"], "audio_channels": 1, "chunk_length_s": None, "codebook_dim": 128,
        "codebook_size": 2048, "compress": 2, "dilation_growth_rate": 2, "hidden_size": 128, "kernel_size": 7,
        "last_kernel_size": 7, "model_type": "encodec", "norm_type": "weight_norm", "normalize": False,
        "num_filters": 64, "num_lstm_layers": 2, "num_residual_layers": 1, "overlap": None, "pad_mode": "reflect",
        "residual_kernel_size": 3, "sampling_rate": 32000, "target_bandwidths": [2.2], "torch_dtype": "float32",
        "trim_right_ratio": 1.0, "upsampling_ratios": [8, 5, 4, 4], "use_causal_conv": False,
        "use_conv_shortcut": False,
    }  # fmt: skip
    assert encodec_settings.read(codec, "test") == encodec_settings.PUBLISHED
    t5_base = {
        "model_type": "t5", "d_ff": 3072, "d_kv": 64, "d_model": 768, "num_layers": 12, "num_heads": 12,
        "vocab_size": 32128, "relative_attention_num_buckets": 32, "feed_forward_proj": "relu",
    }  # fmt: skip
    assert t5_settings.read(t5_base, "test") == t5_settings.PUBLISHED
    decoder = {
        "model_type": "musicgen_decoder", "activation_function": "gelu", "ffn_dim": 4096, "hidden_size": 1024,
        "num_attention_heads": 16, "num_codebooks": 4, "num_hidden_layers": 24, "vocab_size": 2048, "dropout": 0.1,
    }  # fmt: skip
    content = {"model_type": "musicgen", "audio_encoder": codec, "text_encoder": t5_base, "decoder": decoder}
    assert musicgen_settings.read(content, "test") == musicgen_settings.PUBLISHED
    assert encodec_settings.read(content, "test") == encodec_settings.PUBLISHED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_causal_conv": True}, "use_causal_conv True is not supported"),
        ({"pad_mode": "replicate"}, "padding 'replicate' is not supported"),
        ({"norm_type": "time_group_norm"}, "norm_type 'time_group_norm'"),
        ({"target_bandwidths": [0.1]}, "no codebook"),
        ({"sampling_rate": 0}, "sample_rate_hz 0: expected a whole number from 1"),
        ({"upsampling_ratios": [8, 5.0]}, "ratios \\[8, 5.0\\]: expected whole numbers from 1"),
        ({"upsampling_ratios": []}, "ratios \\[\\]: expected whole numbers from 1"),
        ({"pad_mode": 3}, "pad 3: expected a string"),
    ],
)
def test_codecs_of_another_kind_are_refused(change, said):
    content = {**encodec_settings.to_transformers(encodec_settings.PUBLISHED), **change}
    with pytest.raises(InputError, match=said):
        encodec_settings.read(content, "test")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_attention_heads": 0}, "heads 0: expected a whole number from 1"),
        ({"num_attention_heads": True}, "heads True: expected a whole number from 1"),
        ({"num_hidden_layers": "24"}, "layers '24': expected a whole number from 1"),
        ({"hidden_size": 1024.0}, "width 1024.0: expected a whole number from 1"),
        ({"hidden_size": 2, "num_attention_heads": 1}, "width 2 must be even, at least 4"),
    ],
)
def test_configurations_of_no_model_are_refused(change, said):
    content = musicgen_settings.write(musicgen_settings.PUBLISHED, "musicgen")
    content["decoder"].update(change)
    with pytest.raises(InputError, match=f"test: not a complete MusicGen configuration .{said}"):
        musicgen_settings.read(content, "test")
    for broken in ({"num_heads": 0}, {"layer_norm_epsilon": "1e-6"}):
        with pytest.raises(InputError, match="test: not a T5 configuration .* expected a"):
            t5_settings.read({**t5_settings.to_transformers(t5_settings.PUBLISHED), **broken}, "test")


@pytest.mark.parametrize("part", ["decoder", "audio_encoder", "text_encoder"])
def test_configurations_without_one_of_their_parts_are_refused(part):
    content = musicgen_settings.write(musicgen_settings.PUBLISHED, "musicgen")
    for change, said in (({part: None}, f"{part} None: expected an object"), ({}, f"no '{part}'")):
        with pytest.raises(InputError, match=f"^test: not a complete MusicGen configuration .{said}.$"):
            musicgen_settings.read({**{k: v for k, v in content.items() if k != part}, **change}, "test")
    for ours, reader in (("encodec", encodec_settings), ("t5", t5_settings)):
        with pytest.raises(InputError, match=f"{ours} None: expected an object"):
            reader.read({**musicgen_settings.write(musicgen_settings.PUBLISHED, "mlx-musicgen"), ours: None}, "test")


@pytest.mark.parametrize("name", t5_settings.NAMED)
def test_named_text_encoders_are_upstreams(name):
    """Parameters of the encoders as they are published, in millions."""
    millions = {"t5-small": 35.33, "t5-base": 109.63, "t5-large": 334.94, "flan-t5-small": 35.33,
                "flan-t5-base": 109.63, "flan-t5-large": 341.23}  # fmt: skip
    shapes = t5.shapes(t5_settings.checked(t5_settings.NAMED[name]))
    assert round(sum(math.prod(shape) for shape in shapes.values()) / 1e6, 2) == millions[name]


def test_a_model_as_wide_as_its_text_encoder_has_no_form_in_transformers():
    settings = musicgen_settings.checked({"width": 768, "heads": 12, "mlp_width": 3072})
    with pytest.raises(InputError, match="has no form in transformers"):
        musicgen.rules("musicgen", settings)
