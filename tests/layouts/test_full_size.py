"""Names and shapes of the published models: the rules, our modules, the upstream classes and the files' lists agree."""

import math

import published
import pytest
import torch
from transformers import CsmConfig, CsmForConditionalGeneration, MimiModel
from transformers import MimiConfig as TheirMimiConfig
from transformers.core_model_loading import revert_weight_conversion

from backends.layouts import csm, csm_settings, mimi, mimi_settings
from backends.layouts.checkpoint import expected_tensors, read
from backends.layouts.files import blank
from backends.layouts.rules import to_ours, to_theirs
from backends.mlx_backend.parameters import parameters
from csm_mlx import CSM, Mimi, MimiConfig, csm_1b

FAMILIES = {"csm": csm.FAMILY, "mimi": mimi.FAMILY}
EVERY_LAYOUT = [(name, layout) for name, family in FAMILIES.items() for layout in family.layouts]


def shapes(tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def on_disk(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """What transformers would write: flat names, which differ from those of its modules."""
    return shapes(revert_weight_conversion(model, model.state_dict()))


@pytest.fixture(scope="module")
def their_csm():
    """CSM-1B made from the configuration that we write for it, without memory for its weights."""
    content = csm_settings.write(csm_settings.PUBLISHED, "transformers")
    with torch.device("meta"):
        return CsmForConditionalGeneration(CsmConfig.from_dict(content))


def test_our_modules_are_what_the_rules_expect():
    ours = shapes(parameters(CSM(csm_1b())))
    assert ours == csm.shapes(csm_settings.PUBLISHED)
    assert len(ours) == 187
    assert sum(map(math.prod, ours.values())) == 1_552_791_552
    codec = shapes(parameters(Mimi(MimiConfig())))
    assert codec == mimi.shapes(mimi_settings.PUBLISHED)
    assert sum(map(math.prod, codec.values())) == 79_308_609 + 32 * (2048 * 256 + 2048)


def test_sesames_names_and_shapes():
    listed = published.torchtune()
    assert len(listed) == 187
    assert shapes(expected_tensors(csm.FAMILY, "torchtune", csm_settings.PUBLISHED)) == listed


def test_transformers_names_and_shapes(their_csm):
    listed = on_disk(their_csm)
    own = {name: shape for name, shape in listed.items() if not name.startswith("codec_model.")}
    codec = {name.removeprefix("codec_model."): shape for name, shape in listed.items() if name not in own}
    assert (len(own), len(codec)) == (188, 350)
    assert own.pop(csm.TIED[1]) == own[csm.TIED[0]]
    assert shapes(expected_tensors(csm.FAMILY, "transformers", csm_settings.PUBLISHED)) == own
    assert shapes(expected_tensors(mimi.FAMILY, "mimi", mimi_settings.PUBLISHED)) == codec


def test_a_file_as_published_is_read_whole(their_csm):
    tensors = {name: blank(shape) for name, shape in on_disk(their_csm).items()}
    assert len(tensors) == 538
    got = read(csm.FAMILY, tensors, csm_settings.PUBLISHED, "published")
    assert shapes(got.ours) == csm.shapes(csm_settings.PUBLISHED)
    got = read(mimi.FAMILY, tensors, mimi_settings.PUBLISHED, "published")
    assert shapes(got.like) == mimi.shapes(mimi_settings.PUBLISHED)


def test_transformers_reads_our_configuration_as_the_published_one(their_csm):
    config = their_csm.config
    assert config.rope_parameters == {  # as in sesame/csm-1b; the frequencies of factor 32, low 1, high 4, 8192
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 0.125,
        "high_freq_factor": 0.5, "original_max_position_embeddings": 1024,
    }  # fmt: skip
    defaults = CsmConfig()
    for name in ("hidden_size", "num_hidden_layers", "head_dim", "vocab_size", "text_vocab_size", "num_codebooks",
                 "audio_token_id", "audio_eos_token_id", "codebook_pad_token_id", "codebook_eos_token_id",
                 "bos_token_id", "pad_token_id", "max_position_embeddings", "tie_codebooks_embeddings"):  # fmt: skip
        assert getattr(config, name) == getattr(defaults, name), name
    assert config.depth_decoder_config.head_dim == 128
    theirs, ours = TheirMimiConfig().to_dict(), config.codec_config.to_dict()
    assert {name for name in theirs if theirs[name] != ours[name]} <= {"architectures", "rope_parameters", "dtype"}


def test_configurations_round_trip():
    settings = {**csm_settings.PUBLISHED, "name": "csm_1b"}
    assert csm_1b().settings() == settings
    assert MimiConfig() == csm_1b().mimi
    for layout in ("csm-mlx", "transformers", "torchtune"):
        content = csm_settings.write(csm_settings.PUBLISHED, layout)
        assert csm_settings.read(content, "test") == csm_settings.PUBLISHED
    assert csm_settings.write(csm_settings.PUBLISHED, "torchtune")["decoder_flavor"] == "llama-100M"


def test_the_published_configuration_is_read():
    """sesame/csm-1b's config.json (transformers 4.52): other numbers for the same frequencies, both sets of keys."""
    stack = {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000,
    }
    rope = {"rope_type": "llama3", "factor": 32.0}
    depth = {
        **stack, "model_type": "csm_depth_decoder_model", "num_hidden_layers": 4, "hidden_size": 1024, "head_dim": 128,
        "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 8192, "num_codebooks": 32,
        "max_position_embeddings": 33, "vocab_size": 2051, "backbone_hidden_size": 2048,
        "rope_scaling": {**rope, "low_freq_factor": 0.001953125, "high_freq_factor": 0.0078125,
                         "original_max_position_embeddings": 16},
    }  # fmt: skip
    content = {
        **stack, "model_type": "csm", "architectures": ["CsmForConditionalGeneration"], "num_hidden_layers": 16,
        "hidden_size": 2048, "head_dim": 64, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 8192, "num_codebooks": 32, "max_position_embeddings": 2048, "vocab_size": 2051,
        "text_vocab_size": 128256, "audio_vocab_size": 2051, "audio_num_codebooks": 32, "depth_decoder_config": depth,
        "backbone_flavor": "llama-1B", "decoder_flavor": "llama-100M", "tie_codebooks_embeddings": True,
        "rope_scaling": {**rope, "low_freq_factor": 0.125, "high_freq_factor": 0.5,
                         "original_max_position_embeddings": 1024},
        "codec_config": TheirMimiConfig().to_dict(), "transformers_weights": "transformers.safetensors.index.json",
    }  # fmt: skip
    assert csm_settings.read(content, "test") == csm_settings.PUBLISHED


def test_a_configuration_of_something_else_says_nothing():
    """kyutai's codec lies beside a language model's config.json; a run directory has its own."""
    for content in ({"dim": 4096, "num_heads": 32, "depformer_dim": 1024}, {"model_type": "moshi"}, {}):
        assert mimi_settings.read(content, "test") is None
        assert csm_settings.read(content, "test") is None


def test_kyutais_names_and_shapes():
    listed = published.kyutai()
    assert len(listed) == 318
    assert shapes(expected_tensors(mimi.FAMILY, "kyutai-mimi", mimi_settings.PUBLISHED)) == listed


def test_transformers_mimi_names_and_shapes():
    with torch.device("meta"):
        listed = on_disk(MimiModel(TheirMimiConfig()))
    assert len(listed) == 350
    assert shapes(expected_tensors(mimi.FAMILY, "mimi", mimi_settings.PUBLISHED)) == listed


@pytest.mark.parametrize(("family", "layout"), EVERY_LAYOUT)
def test_the_rules_are_a_bijection_of_names(family, layout):
    kind = FAMILIES[family]
    rules = kind.rules(layout, kind.published)
    ours = {name: blank(shape) for name, shape in kind.shapes(kind.published).items()}
    theirs = to_theirs(ours, rules, "test")
    assert shapes(to_ours(dict(theirs), rules, "test")) == shapes(ours)
    if layout != kind.ours:
        one_by_one = [name for rule in rules for name in _matched(rule, theirs)]
        assert sorted(one_by_one) == sorted(theirs), "each name belongs to exactly one rule"


def _matched(rule, theirs) -> list[str]:
    from backends.errors import InputError

    matched = []
    for name in theirs:
        try:
            to_ours({name: theirs[name]}, [rule], "test")
        except InputError:
            continue
        matched.append(name)
    return matched
