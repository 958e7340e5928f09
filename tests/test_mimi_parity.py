"""Mimi on MLX against transformers' MimiModel with shared random weights."""

import mlx.core as mx
import numpy as np
import oracles
import pytest
import torch

from backends.mlx_backend.elu import elu
from csm_mlx.companions import load_codec


def noise(batch: int, samples: int, seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).standard_normal((batch, samples)).astype(np.float32)


def snr_db(reference: np.ndarray, value: np.ndarray) -> float:
    error = ((reference - value) ** 2).sum()
    return 10 * np.log10((reference**2).sum() / max(error, 1e-30))


@pytest.fixture(scope="module", params=[(8, 250), (32, 20), (3, 7)], ids=str)
def pair(request, tmp_path_factory):
    codebooks, window = request.param
    folder = tmp_path_factory.mktemp("mimi")
    theirs = oracles.mimi(folder, codebooks=codebooks, window=window)
    return theirs, load_codec(folder)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_elu_is_its_definition(dtype):
    """Values and gradients, at 0 and far from it too."""
    x = np.float32([-1e4, -100, -3, -1, -1e-3, 0, 1e-3, 1, 100, 1e4])
    theirs = torch.from_numpy(x).requires_grad_()
    value = torch.nn.functional.elu(theirs)
    value.sum().backward()
    own, gradient = elu(mx.array(x).astype(dtype)), mx.grad(lambda y: elu(y).sum())(mx.array(x).astype(dtype))
    assert own.dtype == gradient.dtype == dtype
    precision = {mx.float32: 1e-6, mx.bfloat16: 1e-2, mx.float16: 2e-3}[dtype]
    for found, expected in ((own, value.detach()), (gradient, theirs.grad)):
        np.testing.assert_allclose(np.array(found.astype(mx.float32)), expected, rtol=precision, atol=precision)


@pytest.mark.parametrize(("batch", "frames"), [(1, 5), (3, 16)])
def test_codes_and_audio_equal_transformers(pair, batch, frames):
    theirs, ours = pair
    audio = noise(batch, frames * 1920)
    with torch.inference_mode():
        codes = theirs.encode(torch.from_numpy(audio)[:, None]).audio_codes
        decoded = theirs.decode(codes).audio_values[:, 0].numpy()
    own = ours.encode(mx.array(audio))
    assert own.shape == (batch, ours.config.codebooks, frames)
    np.testing.assert_array_equal(np.array(own), codes.numpy())
    assert snr_db(decoded, np.array(ours.decode(mx.array(codes.numpy())))) >= 90


def test_audio_is_padded_to_whole_frames(pair):
    _, ours = pair
    audio = noise(1, 1920 * 3 + 100)
    padded = np.pad(audio, [(0, 0), (0, 1820)])
    assert ours.encode(mx.array(audio)).shape[2] == 4
    assert mx.array_equal(ours.encode(mx.array(audio)), ours.encode(mx.array(padded)))


def test_streaming_equals_offline_both_ways(pair):
    _, ours = pair
    audio = mx.array(noise(2, 1920 * 24))
    codes = ours.encode(audio)
    state: dict = {}
    pieces = [ours.encode_step(audio[:, i : i + 1920 * n], state) for i, n in _cuts(24, 1920)]
    assert mx.array_equal(mx.concatenate(pieces, axis=2), codes)
    state = {}
    chunks = [ours.decode_step(codes[:, :, i : i + n], state) for i, n in _cuts(24, 1)]
    assert snr_db(np.array(ours.decode(codes)), np.array(mx.concatenate(chunks, axis=1))) >= 90


def test_long_audio_in_chunks_equals_one_pass(pair, monkeypatch):
    _, ours = pair
    audio = mx.array(noise(1, 1920 * 40))
    codes, sound = ours.encode(audio), ours.decode(ours.encode(audio))
    monkeypatch.setattr("csm_mlx.mimi.CHUNK_S", 1)
    assert mx.array_equal(ours.encode(audio), codes)
    assert snr_db(np.array(sound), np.array(ours.decode(codes))) >= 90


def test_a_new_stream_starts_clean(pair):
    _, ours = pair
    codes = ours.encode(mx.array(noise(1, 1920 * 6)))
    first = np.array(ours.decode(codes))
    ours.decode(ours.encode(mx.array(noise(1, 1920 * 9, seed=1))))
    np.testing.assert_array_equal(first, np.array(ours.decode(codes)))


def test_fewer_codebooks_decode(pair):
    theirs, ours = pair
    codes = np.array(ours.encode(mx.array(noise(1, 1920 * 4))))[:, :2]
    with torch.inference_mode():
        expected = theirs.decode(torch.from_numpy(codes.astype(np.int64))).audio_values[:, 0].numpy()
    assert snr_db(expected, np.array(ours.decode(mx.array(codes)))) >= 90


def _cuts(frames: int, samples: int):
    """Uneven chunks that together cover `frames`."""
    position = 0
    for length in (1, 3, 2, 8, 1, 9):
        yield position * samples, length
        position += length
    assert position == frames
