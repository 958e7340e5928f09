"""Mimi in every layout, read and written."""

import mlx.core as mx
import numpy as np
import oracles
import published
import pytest
import torch
from transformers import MimiModel
from weights import MIMI_HEADS, assert_same, converted, in_bfloat16, load, save

from csm_mlx.companions import load_codec

LAYOUTS = ("mimi", "kyutai-mimi", "mlx-mimi")


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """(transformers' model, its folder)."""
    folder = tmp_path_factory.mktemp("mimi")
    return oracles.mimi(folder, codebooks=6), folder


@pytest.fixture(scope="module")
def theirs(upstream):
    return load(upstream[1] / "model.safetensors")


def codes_of(model: MimiModel, audio: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model.encode(torch.from_numpy(audio)[:, None]).audio_codes.numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("route", [("kyutai-mimi", "mlx-mimi"), ("mlx-mimi", "kyutai-mimi")], ids="-".join)
def test_round_trips_are_exact(tmp_path, upstream, theirs, dtype, route):
    tensors = theirs if dtype == "float32" else in_bfloat16(theirs)
    at = save(tmp_path / "start" / "model.safetensors", tensors, upstream[1])
    for step in (*route, "mimi", *reversed(route), "mimi"):
        at = converted(at, tmp_path / f"{step}-{len(list(tmp_path.iterdir()))}", step)
        if step == "mimi":
            assert_same(load(at), tensors)


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_any_layout_to_any_other_gives_the_same_codes(tmp_path, upstream, source, target):
    converted(upstream[1], tmp_path / "from", source)
    converted(tmp_path / "from", tmp_path / "to", target)
    audio = 0.3 * np.random.default_rng(0).standard_normal((1, 1920 * 4)).astype(np.float32)
    codes = load_codec(tmp_path / "to").encode(mx.array(audio))
    np.testing.assert_array_equal(np.array(codes), codes_of(upstream[0], audio))


def test_kyutais_names_are_read_and_written(tmp_path, upstream, theirs):
    named = published.kyutai_of(theirs, MIMI_HEADS)
    assert len(named) == len(theirs) - 2 * 2 * 2, "q, k and v of two layers in two halves are one tensor"
    path = save(tmp_path / "tokenizer-e351c8d8-checkpoint125.safetensors", named, upstream[1])
    assert_same(load(converted(path, tmp_path / "hf.safetensors", "mimi")), theirs)
    assert_same(load(converted(upstream[1], tmp_path / "kyutai.safetensors", "kyutai-mimi")), named)
    audio = 0.3 * np.random.default_rng(1).standard_normal((1, 1920 * 4)).astype(np.float32)
    codes = load_codec(tmp_path).encode(mx.array(audio))
    np.testing.assert_array_equal(np.array(codes), codes_of(upstream[0], audio))


def test_transformers_loads_what_is_written(tmp_path, upstream):
    converted(upstream[1], tmp_path / "kyutai", "kyutai-mimi")
    converted(tmp_path / "kyutai", tmp_path / "hf", "mimi")
    again, info = MimiModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    audio = 0.3 * np.random.default_rng(2).standard_normal((1, 1920 * 4)).astype(np.float32)
    np.testing.assert_array_equal(codes_of(again, audio), codes_of(upstream[0], audio))


def test_the_marks_of_codebooks_may_be_missing(tmp_path, upstream, theirs):
    bare = {name: value for name, value in theirs.items() if not name.endswith(".initialized")}
    assert len(bare) == len(theirs) - 6
    path = save(tmp_path / "model.safetensors", bare, upstream[1])
    assert_same(load(converted(path, tmp_path / "out.safetensors", "mimi")), theirs)


def test_the_codec_inside_a_csm_is_taken_out(tmp_path):
    model = oracles.csm(tmp_path / "csm")
    converted(tmp_path / "csm", tmp_path / "codec", "kyutai-mimi")
    assert all("codec_model" not in name for name in load(tmp_path / "codec" / "model.safetensors"))
    audio = 0.3 * np.random.default_rng(3).standard_normal((1, 1920 * 3)).astype(np.float32)
    for source in ("csm", "codec"):
        codes = load_codec(tmp_path / source).encode(mx.array(audio))
        np.testing.assert_array_equal(np.array(codes), codes_of(model.codec_model, audio))
