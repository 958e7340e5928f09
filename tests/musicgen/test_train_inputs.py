"""What python -m musicgen_mlx.train is given besides recordings: other codecs, text encoders, halves, wrong folders."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import music_training as training
import musicgen_oracle as oracle
import numpy as np
import pytest
import soundfile

from backends import get
from musicgen_mlx import codec_task, dataset, music, tiny
from musicgen_mlx.engines import load_engine
from musicgen_mlx.load import save_pretrained

BACKENDS = ("mlx", "torch")
PLAIN = ("--scale", "xsmall", "--epochs", 1)
TEXT = (*PLAIN, "--conditioner", "text", "--text-encoder", "tiny")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The same without a condition."""
    folder = tmp_path_factory.mktemp("bare")
    save_pretrained(tiny.model("none"), folder)
    return folder


def codec(folder: Path, **changes) -> Path:
    """An EnCodec of random weights."""
    settings = {**codec_task.SCALES["tiny"].settings(), **changes}
    codec_task.KIND.save(folder, dict(codec_task.fresh(settings, 3).ours), settings)
    return folder


def text_encoder(folder: Path, **changes) -> Path:
    """A T5 of random weights, from transformers, with a tokenizer."""
    oracle.t5(folder, **changes)
    shutil.copy(tiny.TOKENIZER, folder / "tokenizer.json")
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_goes_on_with_another_codec_and_text_encoder(base, loops, tmp_path, backend):
    """What is exported has them, and generates on both backends."""
    brought = ("--codec", codec(tmp_path / "codec", sample_rate_hz=8000, ratios=[8, 5, 2]),
               "--text-encoder", text_encoder(tmp_path / "text", d_model=32, num_heads=2))  # fmt: skip
    run = training.run(loops, tmp_path / "run", backend, "--model", base, *brought, "--epochs", 1)
    for name in BACKENDS:
        engine = load_engine(run / "last_model", name)
        assert (engine.config.encodec.sample_rate_hz, engine.config.t5.mlp_width) == (8000, 96)
        sound = music.generate(engine, music.Request(["a loop"], [0], 0.2))
        assert sound.shape == (1, 1600)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"entries": 128}, "4 codebooks of 128 entries"), ({"codebooks": 2}, "2 codebooks of 64 entries")],
)
def test_codecs_of_other_codes_are_refused(base, loops, tmp_path, capsys, changes, message):
    """MLX would look past the end of the tables without a word."""
    other = codec(tmp_path / "codec", **changes)
    assert message in training.fails(capsys, loops, tmp_path / "run", "mlx", "--model", base, "--codec", other)


def test_text_encoders_that_a_model_does_not_hear_are_refused(base, bare, loops, tmp_path, capsys):
    given = (loops, tmp_path / "run", "mlx", "--text-encoder", text_encoder(tmp_path / "text"))
    assert "a text encoder 48 wide; this model takes 32" in training.fails(capsys, *given, "--model", base)
    assert "takes no text: leave it out" in training.fails(capsys, *given, "--model", bare)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_as_wide_as_its_text_encoder_is_refused(loops, tmp_path, capsys, backend):
    """transformers has no such model: one trained on MLX could go nowhere else."""
    error = training.fails(capsys, loops, tmp_path, backend, *TEXT, "--dim", 32, "--heads", 2)
    assert "--dim 32: the text encoder is as wide" in error


def test_a_model_without_a_condition_drops_none(bare, loops, tmp_path, capsys):
    arguments = ("--model", bare, "--condition-dropout", 0.5)
    assert "--condition-dropout: this model takes no" in training.fails(capsys, loops, tmp_path, "mlx", *arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_in_bfloat16_is_trained_in_float32(base, loops, tmp_path, backend):
    """Half of a small update would be rounded away."""
    adapter = ("--model", base, "--lora-rank", 2, "--epochs", 1)
    arrays, said = get("mlx").read(
        training.run(loops, tmp_path / "a", backend, *adapter) / "lora_ckpt_best.safetensors"
    )
    half = tmp_path / "half.safetensors"
    get("mlx").write(half, {name: value.astype(mx.bfloat16) for name, value in arrays.items()}, said)
    run = training.run(loops, tmp_path / "b", backend, *adapter, "--resume-from", half, "--learning-rate", 1e-7)
    after, _ = get("mlx").read(run / "lora_ckpt_best.safetensors")
    for name, value in arrays.items():
        start = value.astype(mx.bfloat16).astype(mx.float32)
        assert after[name].dtype == mx.float32
        assert 0 < float(mx.abs(after[name] - start).max()) < 1e-5, name


def test_the_folders_are_apart(loops, tmp_path, capsys):
    """A run would be trained on its own samples, or on what it validates on."""
    data = tmp_path / "data"
    shutil.copytree(loops, data / "val")
    soundfile.write(data / "more.wav", np.random.default_rng(0).standard_normal(9000) / 9, 32_000)
    inside = training.fails(capsys, data, data / "runs" / "a", "mlx", *PLAIN)
    assert "is inside --data" in inside
    assert not (data / "runs").exists()
    both = training.fails(capsys, data, tmp_path / "run", "mlx", *PLAIN, "--val-split", 0, "--val-data", data / "val")
    assert "loop0.wav is one of the recordings in --data" in both


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"description": "half \\ud800"}', "loop0.json: text 'half \\ud800': holds what is no character"),
        (b"[" * 100_000, "loop0.json: not readable as JSON"),
        ('{"description": "caf\u00e9"}'.encode("latin-1"), "loop0.json: not readable as JSON"),
        (b'{"description": 3}', 'loop0.json: expected {"description"'),
        (b"[]", 'loop0.json: expected {"description"'),
        (json.dumps({"description": 600 * "long words "}).encode(), "loop0.json: text 'long words long words"),
    ],
)
def test_descriptions_that_are_no_text_are_named(loops, tmp_path, capsys, content, message):
    data = tmp_path / "data"
    shutil.copytree(loops, data)
    (data / "loop0.json").write_bytes(content)
    error = training.fails(capsys, data, tmp_path / "run", "mlx", *TEXT)
    assert message in error
    assert not list(tmp_path.rglob("*.npy"))


def test_a_mark_before_a_description_is_none_of_it(tmp_path):
    (tmp_path / "loop.json").write_bytes(b'\xef\xbb\xbf{"description": " bass "}')
    assert dataset.description(tmp_path / "loop.wav") == "bass"


def test_every_recording_that_cannot_be_read_is_named(loops, tmp_path, capsys):
    shutil.copytree(loops, tmp_path / "data")
    for name in ("loop1.wav", "loop4.wav"):
        (tmp_path / "data" / name).write_bytes(b"RIFF")
    error = training.fails(capsys, tmp_path / "data", tmp_path / "run", "mlx", *PLAIN, "--val-split", 0)
    assert "loop1.wav: not readable as audio" in error
    assert "2 files are bad, also" in error
    assert "loop4.wav" in error


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("half \ud800", "text 'half \\ud800': holds what is no character"),
        (600 * "long ", "tokens, expected at most 511"),
    ],
    ids=["half", "long"],
)
def test_a_prompt_that_is_refused_is_so_before_the_work(loops, tmp_path, capsys, monkeypatch, prompt, said):
    monkeypatch.setattr(dataset, "clips", pytest.fail)
    arguments = (*TEXT, "--sample-duration", 0.3, "--sample-prompt", prompt)
    error = training.fails(capsys, loops, tmp_path, "mlx", *arguments)
    assert "--sample-prompt: text '" in error
    assert said in error


def test_a_prompt_for_no_sample_is_refused(loops, tmp_path, capsys):
    assert "makes no samples" in training.fails(capsys, loops, tmp_path, "mlx", *TEXT, "--sample-prompt", "bass")


def test_a_recording_that_was_cut_is_named(tmp_path, capsys):
    loops = training.loops(tmp_path / "loops", 2, described=False)
    content = (loops / "loop0.wav").read_bytes()
    (loops / "cut.wav").write_bytes(content[:1000])
    error = training.fails(capsys, loops, tmp_path / "run", "mlx", *PLAIN)
    assert f"cut.wav: is cut: holds 956 of the {len(content) - 44} bytes" in error
