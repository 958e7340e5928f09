"""MusicGen, EnCodec and T5 in every layout, read and written."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import musicgen_oracle as oracle
import musicgen_published as published
import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    EncodecModel,
    MusicgenForConditionalGeneration,
    MusicgenMelodyForCausalLM,
    T5EncoderModel,
)
from transformers import MusicgenMelodyForConditionalGeneration as Melody
from weights import assert_same, converted, in_bfloat16, load, refused, save

from backends.errors import InputError
from backends.layouts import encodec, encodec_settings, musicgen, t5_settings
from backends.layouts.checkpoint import open_checkpoint
from backends.mlx_backend.parameters import parameters
from backends.mlx_backend.sampling import Sampler
from musicgen_mlx import MusicGen, Request, generate, load_engine, musicgen_tiny, pattern, sources, tiny
from musicgen_mlx import condition as conditions
from musicgen_mlx.companions import codec_of, load_codec, load_text_encoder, text_encoder_of
from musicgen_mlx.generation import generate_codes
from musicgen_mlx.load import save_pretrained
from musicgen_mlx.text import TextTokenizer
from musicgen_mlx.tiny import TOKENIZER, model

WIDE = {"d_model": 768}  # as xp.cfg's t5-base
KINDS = {
    "text": (oracle.text, {"t5": WIDE}, published.T5_CONDITIONER),
    "stereo": (oracle.text, {"t5": WIDE, "codebooks": 8, "channels": 2}, published.T5_CONDITIONER),
    "bare": (oracle.bare, {}, ""),
    "melody": (oracle.melody, {"t5": WIDE}, published.MELODY_CONDITIONERS),
}
EXACT = ("encodec", "encodec-legacy", "audiocraft-encodec", "mlx-encodec")
PARTS = {"encodec": EncodecModel, "t5": T5EncoderModel}


@pytest.fixture(scope="module", params=KINDS)
def upstream(request, tmp_path_factory):
    """(kind, folder in transformers' layout, its tensors)."""
    folder = tmp_path_factory.mktemp(request.param)
    make, settings, _ = KINDS[request.param]
    make(folder, **settings)
    if request.param != "bare":
        shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    return request.param, folder, load(folder / "model.safetensors")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A model without a condition: (transformers' model, its folder, its tensors)."""
    folder = tmp_path_factory.mktemp("bare")
    return oracle.bare(folder), folder, load(folder / "model.safetensors")


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """(transformers' EnCodec, its folder, its tensors)."""
    folder = tmp_path_factory.mktemp("codec")
    return oracle.encodec(folder), folder, load(folder / "model.safetensors")


def kept(tensors):
    """All but what the training of the codebooks left behind, which ours does not keep."""
    return {name: value for name, value in tensors.items() if not name.endswith(("embed_avg", "cluster_size"))}


def logits(ours: MusicGen) -> np.ndarray:
    codes = np.random.default_rng(0).integers(0, oracle.ENTRIES, (1, ours.config.codebooks, 6))
    states = mx.array(np.random.default_rng(1).standard_normal((1, 3, 768)).astype(np.float32))
    bare = ours.config.condition == "none"
    condition = None if bare else conditions.from_states(ours, states, np.ones((1, 3), bool))
    return np.array(ours(mx.array(codes), condition))


def audiocraft(folder, tensors, xp_cfg: str, codec: dict | None = None) -> None:
    """Write state_dict.bin as audiocraft exports it, with compression_state_dict.bin if `codec` is its content."""
    named = {name: torch.from_numpy(value.copy()) for name, value in published.audiocraft_of(tensors).items()}
    content = {"best_state": named, "xp.cfg": xp_cfg, "version": "1.4.0a1", "exported": True}
    torch.save(content, folder / "state_dict.bin")
    if codec is not None:
        torch.save(codec, folder / "compression_state_dict.bin")


def codec_bin(theirs, pad: str) -> dict:
    named = {name: torch.from_numpy(value.copy()) for name, value in published.audiocraft_codec_of(theirs).items()}
    return {"best_state": named, "xp.cfg": published.codec_xp_cfg(16, 4, oracle.ENTRIES, pad)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trips_are_exact(tmp_path, upstream, dtype):
    """Language model, codec and text encoder come back whole through ours and through audiocraft's names."""
    _, folder, tensors = upstream
    given = tensors if dtype == "float32" else in_bfloat16(tensors)
    at = save(tmp_path / "start" / "model.safetensors", given, folder)
    for index, step in enumerate(("mlx-musicgen", "audiocraft-musicgen", "mlx-musicgen", "musicgen")):
        at = converted(at, tmp_path / f"{index}-{step}", step)
    assert_same(kept(load(at)), kept(given))


def test_audiocrafts_names_are_read_and_written(tmp_path, upstream):
    kind, folder, tensors = upstream
    expected = published.audiocraft_of(tensors)
    assert_same(load(converted(folder, tmp_path / "audiocraft.safetensors", "audiocraft-musicgen")), expected)
    cfg = published.xp_cfg(64, 2, 4, oracle.ENTRIES, 2 if kind == "stereo" else 1, KINDS[kind][2])
    audiocraft(tmp_path, tensors, cfg)
    assert open_checkpoint(tmp_path / "state_dict.bin", musicgen.FAMILY).layout == "audiocraft-musicgen"
    read = MusicGen.from_pretrained(tmp_path)
    assert read.config.condition == {"bare": "none", "melody": "prepend"}.get(kind, "cross")
    theirs = MusicGen.from_pretrained(folder)
    if kind == "melody":  # audiocraft's chroma is 30 s long, that of this tiny model is not
        assert read.config.chroma_frames == 235
    else:
        np.testing.assert_array_equal(logits(read), logits(theirs))


def test_mlx_examples_names_are_ours(upstream):
    kind, _, tensors = upstream
    if kind != "melody":  # which mlx-examples lacks
        settings = MusicGen.from_pretrained(upstream[1]).config.settings()
        shapes = {name: value.shape for name, value in published.mlx_examples_of(tensors).items()}
        assert shapes == musicgen.shapes(settings)


@pytest.mark.parametrize("conditioners", published.NO_CONDITIONERS.values(), ids=published.NO_CONDITIONERS)
def test_audiocraft_models_without_conditioners_load(tmp_path, bare, codec, conditioners):
    """audiocraft's own loader stops at `conditioners: null`. Their codec is a file of audiocraft's, zero-padded."""
    cfg = published.xp_cfg(64, 2, 4, oracle.ENTRIES, conditioners=conditioners)
    audiocraft(tmp_path, bare[2], cfg, codec_bin(codec[2], "constant"))
    read = MusicGen.from_pretrained(tmp_path)
    assert read.config.condition == "none"
    assert (read.config.encodec.pad, read.config.encodec.filters) == ("constant", 4)
    np.testing.assert_array_equal(logits(read), logits(MusicGen.from_pretrained(bare[1])))
    codes = mx.array(np.random.default_rng(0).integers(0, oracle.ENTRIES, (1, 4, 5)))
    codec[0].config.pad_mode = "constant"
    codec[0].save_pretrained(tmp_path / "padded")
    codec[0].config.pad_mode = "reflect"
    assert mx.array_equal(codec_of(read).decode(codes), load_codec(tmp_path / "padded").decode(codes))


def test_a_codec_that_is_elsewhere_is_fetched_when_needed(tmp_path, bare):
    """Meta's compression_state_dict.bin holds the name of a repository and no tensors."""
    cfg = published.xp_cfg(64, 2, 4, oracle.ENTRIES, conditioners="conditioners: null")
    audiocraft(tmp_path, bare[2], cfg, {"pretrained": "facebook/encodec_32khz"})
    read = MusicGen.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="--codec facebook/encodec_32khz"):
        codec_of(read)
    with pytest.raises(InputError, match="--codec facebook/encodec_32khz"):
        load_codec(tmp_path / "compression_state_dict.bin")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"best_state": {"model": {}}, "xp.cfg": ""}, "export it with audiocraft's export.py"),
        ({"best_state": {}, "xp.cfg": "a: [1"}, "not valid YAML"),
        ({"best_state": {}, "xp.cfg": "lm_model: transformer_lm"}, "xp.cfg: not one of a MusicGen (no 'transformer_lm')"),
        ({"best_state": {}, "xp.cfg": published.xp_cfg(64, 2, 4).replace("norm_first: true", "norm_first: false")},
         "transformer_lm.norm_first False is not supported"),
        ({"best_state": {}, "xp.cfg": published.xp_cfg(64, 2, 4).replace("[0, 1, 2, 3]", "[0, 0, 0, 0]")},
         "only delays [0, 1, 2, 3]"),
        ({"best_state": {}, "xp.cfg": published.xp_cfg(64, 2, 4, conditioners="conditioners: {a: {model: clap}}")},
         "{'a': 'clap'} are not supported"),
        ({"best_state": {}, "xp.cfg": published.xp_cfg(64, 2, 4).replace("kv_repeat: 1", "past_context: 250")},
         "transformer_lm.past_context 250 is not supported"),
        ({"best_state": {}, "xp.cfg": published.xp_cfg(64, 2, 4, channels=2).replace("timestep: false", "timestep: true")},
         "interleave_stereo_codebooks.per_timestep True is not supported"),
        ({"best_state": {}, "xp.cfg": published.xp_cfg(64, 2, 4).replace("num_layers: 2", "num_layers: two")},
         "layers 'two': expected a whole number from 1"),
    ],
    ids=["raw", "yaml", "incomplete", "post-norm", "pattern", "clap", "context", "per-timestep", "layers"],
)  # fmt: skip
def test_other_files_of_audiocraft_are_refused(tmp_path, capsys, content, said):
    torch.save(content, tmp_path / "state_dict.bin")
    line = refused(capsys, tmp_path / "state_dict.bin", tmp_path / "out", "--to", "musicgen")
    assert line.startswith(f"error: {tmp_path / 'state_dict.bin'}: ")
    assert said in line


def test_old_files_of_transformers_are_read(tmp_path, upstream):
    """Computed positions stored, weight norm in its old spelling, the text encoder's table twice."""
    kind, folder, tensors = upstream
    top = "" if kind == "bare" else "decoder."
    old = {**tensors, f"{top}model.decoder.embed_positions.weights": np.zeros((2048, 64), np.float32)}
    for new, legacy in (("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1",
                        "weight_v")):  # fmt: skip
        old = {name.replace(new, legacy): value for name, value in old.items()}
    if kind != "bare":
        old["text_encoder.encoder.embed_tokens.weight"] = old["text_encoder.shared.weight"]
    path = save(tmp_path / "model.safetensors", old, folder)
    assert_same(kept(load(converted(path, tmp_path / "out", "musicgen"))), kept(tensors))


@pytest.mark.parametrize("source", encodec.LAYOUTS)
@pytest.mark.parametrize("target", encodec.LAYOUTS)
def test_any_codec_layout_to_any_other_gives_the_same_codes(tmp_path, codec, source, target):
    theirs, folder, tensors = codec
    converted(folder, tmp_path / "from", source)
    again = converted(tmp_path / "from", tmp_path / "to", target)
    audio = 0.3 * np.random.default_rng(0).standard_normal((1, 640 * 4)).astype(np.float32)
    with torch.inference_mode():
        codes = theirs.encode(torch.from_numpy(audio)[:, None]).audio_codes[0].numpy()
    np.testing.assert_array_equal(np.array(load_codec(tmp_path / "to").encode(mx.array(audio))), codes)
    if {source, target} <= set(EXACT):
        back = load(converted(again, tmp_path / "back", "encodec"))
        assert_same(kept(back), kept(tensors))


def test_codecs_of_others_are_as_their_writers_make_them(tmp_path, codec):
    _, folder, tensors = codec
    written = kept(load(converted(folder, tmp_path / "audiocraft.safetensors", "audiocraft-encodec")))
    assert_same(written, kept(published.audiocraft_codec_of(tensors)))
    got = load(converted(folder, tmp_path / "mlx.safetensors", "mlx-examples-encodec"))
    expected = published.mlx_examples_codec_of(tensors)
    assert {name: value.shape for name, value in got.items()} == {name: v.shape for name, v in expected.items()}
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


def test_transformers_loads_what_is_written(tmp_path, upstream):
    """The model, and codec and text encoder taken out of it."""
    kind, folder, _ = upstream
    ours = converted(folder, tmp_path / "ours", "mlx-musicgen").parent
    parts = {"bare": {"musicgen": MusicgenMelodyForCausalLM}, "melody": {"musicgen": Melody, **PARTS}}
    for layout, loader in parts.get(kind, {"musicgen": MusicgenForConditionalGeneration, **PARTS}).items():
        source = ours if layout == "musicgen" else folder
        _, info = loader.from_pretrained(converted(source, tmp_path / layout, layout).parent, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info


@pytest.mark.parametrize("channels", [1, 2])
def test_a_processor_of_transformers_goes_along(tmp_path, channels):
    save_pretrained(model("cross", channels), tmp_path / "ours")
    at = converted(tmp_path / "ours", tmp_path / "hf", "musicgen").parent
    processor, texts = AutoProcessor.from_pretrained(at), ["lo-fi drums", "a"]
    given = processor(
        text=texts, audio=np.zeros(320 if channels == 1 else (2, 320)), sampling_rate=32_000, padding=True
    )
    ids, mask = TextTokenizer(TOKENIZER, 10**9).encode(texts)
    np.testing.assert_array_equal(given["input_ids"], ids)
    np.testing.assert_array_equal(given["attention_mask"], mask)
    assert np.shape(given["input_values"])[:2] == (1, channels)
    (at / "tokenizer_config.json").write_text('{"mine": 1}')
    again = converted(at, tmp_path / "again", "musicgen").parent
    assert (again / "tokenizer_config.json").read_text() == '{"mine": 1}'


def test_a_micro_model_in_transformers_generates_the_same_codes(tmp_path):
    """Ours, saved, converted, read by transformers: nobody else brings a conditioner-free MusicGen there."""
    ours = model("none")
    save_pretrained(ours, tmp_path / "ours")
    at = converted(tmp_path / "ours", tmp_path / "hf", "musicgen").parent
    assert sorted(entry.name for entry in at.iterdir()) == ["codec.safetensors", "config.json", "model.safetensors"]
    theirs, info = MusicgenMelodyForCausalLM.from_pretrained(at, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    own = generate_codes(ours, 47, sampler=Sampler(temperature=0), seeds=[0, 1])
    start, mask = torch.full((8, 1), 64), torch.ones((2, 1), dtype=torch.long)
    steps = pattern.steps(47, ours.config.delays)
    got = theirs.generate(start, attention_mask=mask, do_sample=False, max_new_tokens=steps - 1)
    np.testing.assert_array_equal(np.array(own), got.reshape(2, 4, -1).numpy())
    codec = EncodecModel.from_pretrained(
        converted(tmp_path / "ours" / "codec.safetensors", tmp_path / "ec", "encodec").parent
    )
    with torch.inference_mode():
        sound = codec.decode(got.reshape(1, 2, 4, -1), [None]).audio_values[:, 0].numpy()
    np.testing.assert_allclose(np.array(codec_of(ours).decode(own)), sound, atol=1e-4)
    again = MusicGen.from_pretrained(at)  # the codec's file says what it is: config.json has no place for it
    assert codec_of(again).config == codec_of(ours).config
    assert mx.array_equal(codec_of(again).decode(own), codec_of(ours).decode(own))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("t5-base", None),
        ("google/flan-t5-base", "gated False, where this model's text encoder has True; name that one: --text-enc"),
        ("t5-small", "width 768, where this model's text encoder has 512"),
    ],
)
def test_the_text_encoder_that_is_fetched_is_the_models(monkeypatch, name, said):
    """audiocraft's files name it and do not hold it."""
    found = musicgen.FAMILY.read_inside({"xp.cfg": published.xp_cfg(64, 2, 4, 64, 1, published.T5_CONDITIONER.replace(
        "t5-base", name))}, "test")  # fmt: skip
    fetched = SimpleNamespace(checkpoint=SimpleNamespace(settings=t5_settings.PUBLISHED))
    monkeypatch.setattr(sources, "text", lambda source: fetched)
    if said is None:
        assert sources.fetched_text(found) is fetched
        return
    with pytest.raises(InputError, match=f"google-t5/t5-base: {said}"):
        sources.fetched_text(found)


def test_a_codec_is_fetched_once_and_must_be_the_configurations(monkeypatch):
    asked, one = [], tiny.checkpoints()["encodec"]
    monkeypatch.setattr(sources, "codec", lambda source: asked.append(source) or one)
    found = replace(sources.found("tiny"), codec=None)
    assert found.codec_or_fetched() is found.codec_or_fetched() is one
    assert asked == ["facebook/encodec_32khz"]
    one = replace(one, settings={**one.settings, "sample_rate_hz": 16_000})
    with pytest.raises(
        InputError, match=r"sample_rate_hz 16000, where the model's configuration has 32000; .* --codec"
    ):
        replace(found, codec=None).codec_or_fetched()


FITS = {"sample_rate_hz": 16_000, "ratios": (8, 5, 4, 2)}


@pytest.mark.parametrize("backend", ["mlx", "torch"])
@pytest.mark.parametrize("source", ["tiny", "folder"])
def test_a_codec_of_ones_own_says_what_the_audio_is(tmp_path, backend, source):
    """Its rate is that of what is generated and of the model's configuration, whatever lay with the model."""
    codec_dir(tmp_path / "codec", **FITS)
    save_pretrained(model(), tmp_path / "folder")
    at = tmp_path / "folder" if source == "folder" else "tiny"
    engine = load_engine(at, backend, "cpu" if backend == "torch" else None, codec=str(tmp_path / "codec"))
    assert engine.config.encodec.sample_rate_hz == 16_000
    assert generate(engine, Request([None], [0], 0.1)).shape == (1, 1600)


def test_a_codec_that_is_brought_goes_into_the_configuration(tmp_path):
    codec_dir(tmp_path / "codec", **FITS)
    ours = model().bring(codec=tmp_path / "codec")
    save_pretrained(ours, tmp_path / "saved")
    again = MusicGen.from_pretrained(tmp_path / "saved")
    assert again.config == ours.config
    assert again.config.encodec == codec_of(again).config
    assert again.config.encodec.ratios == (8, 5, 4, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codebooks": 2}, "2 codebooks of 64 entries; this model's codec has 4 of 64"),
        ({"codebooks": 8}, "8 codebooks of 64 entries; this model's codec has 4 of 64"),
        ({"entries": 32}, "4 codebooks of 32 entries"),
        ({"channels": 2}, "a codec of 2 channels"),
    ],
)
def test_codecs_of_other_codes_are_refused(tmp_path, change, said):
    at = codec_dir(tmp_path / "codec", **change)
    for make in (lambda: sources.found("tiny", at), lambda: model().bring(codec=at)):
        with pytest.raises(InputError, match=said) as refusal:
            make()
        assert str(refusal.value).startswith(str(at))


def test_text_encoders_that_do_not_fit_are_refused(tmp_path):
    oracle.t5(tmp_path)
    shutil.copyfile(TOKENIZER, tmp_path / "tokenizer.json")
    save_pretrained(model("none"), tmp_path / "bare")
    for make in (lambda: sources.found("tiny", None, tmp_path), lambda: model().bring(text_encoder=tmp_path)):
        with pytest.raises(InputError, match=r"a text encoder 48 wide; this model takes 32"):
            make()
    with pytest.raises(InputError, match="trained without a condition: leave --text-encoder out"):
        sources.found(tmp_path / "bare", None, tmp_path)


def test_a_codec_without_lstm_is_mlxs(tmp_path):
    at = codec_dir(tmp_path / "codec", lstm_layers=0)
    assert generate(load_engine("tiny", "mlx", codec=str(at)), Request([None], [0], 0.1)).shape == (1, 3200)
    with pytest.raises(InputError, match="transformers' EnCodec has an LSTM, this codec none; take --backend mlx"):
        generate(load_engine("tiny", "torch", "cpu", codec=str(at)), Request([None], [0], 0.1))


def codec_dir(folder, **changes):
    """A directory of the tiny codec with some settings changed."""
    config = replace(musicgen_tiny().encodec, **changes)
    weights = {name: np.array(value) for name, value in parameters(tiny.codec(config)).items()}
    return save(folder / "model.safetensors", weights, encodec_settings.to_transformers(config.settings())).parent


def test_a_musicgens_directory_is_its_codecs_and_text_encoders_too(tmp_path, upstream):
    """Ours, with files of their own, and transformers' in one file or in shards."""
    kind, folder, tensors = upstream
    if kind == "bare":
        return
    theirs = Melody if kind == "melody" else MusicgenForConditionalGeneration
    theirs.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    shutil.copyfile(TOKENIZER, tmp_path / "shards" / "tokenizer.json")
    save_pretrained(MusicGen.from_pretrained(folder), tmp_path / "ours")
    expected = kept({name.removeprefix("audio_encoder."): value for name, value in tensors.items()
                     if name.startswith("audio_encoder.")})  # fmt: skip
    for name in ("shards", "ours"):
        assert_same(kept(load(converted(tmp_path / name, tmp_path / f"{name}-codec", "encodec"))), expected)
        assert load_codec(tmp_path / name).config == load_codec(folder).config
        text = load_text_encoder(tmp_path / name).model
        assert text.config == load_text_encoder(folder).model.config
        assert converted(tmp_path / name, tmp_path / f"{name}-t5", "t5").is_file()


def test_our_directories_come_back(tmp_path):
    for kind in ("cross", "prepend", "none"):
        ours = model(kind)
        save_pretrained(ours, tmp_path / kind)
        again = MusicGen.from_pretrained(tmp_path / kind)
        assert again.config == ours.config
        codes = mx.array(np.random.default_rng(0).integers(0, 64, (2, 4, 7)))
        told = ["jungle", None] if kind != "none" else [None, None]
        before, after = (each(codes, conditions.from_texts(each, told)) for each in (ours, again))
        assert mx.array_equal(before, after)
        assert mx.array_equal(codec_of(ours).decode(codes), codec_of(again).decode(codes))
    assert json.loads((tmp_path / "none" / "config.json").read_text())["model_type"] == "audiosmith-musicgen"
    assert load_text_encoder(tmp_path / "cross").model.config == text_encoder_of(model()).model.config
    with pytest.raises(InputError, match="leave the prompt out"):
        conditions.from_texts(again, ["jungle"])
