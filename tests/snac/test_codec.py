"""Long audio on the chunk grid, streams, batches and exact lengths, on both backends."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import snac_oracle as oracle
import torch

from backends.errors import InputError
from snac_port import Codes, grid
from snac_port.codec import Codec
from snac_port.generation import draw_codes
from snac_port.noise import source

CONFIGS = {
    "24khz": oracle.NARROW["24khz"],
    "44khz": oracle.NARROW["44khz"],
    "odd strides": oracle.ODD["odd strides"],
    "window beside the codes": oracle.ODD["window beside the codes"],
}
LONG = {"24khz": 12, "44khz": 6, "odd strides": 20, "window beside the codes": 30}  # units


@cache
def twins(name: str) -> dict[str, Codec]:
    config = CONFIGS[name]
    return oracle.twins(oracle.upstream(config), config)


@pytest.fixture(params=["mlx", "torch"])
def backend(request):
    return request.param


@pytest.fixture(params=[name for name in CONFIGS if name != "44khz"])  # where a unit is long
def codec(request, backend) -> Codec:
    return twins(request.param)[backend]


@pytest.fixture
def speech(backend) -> Codec:
    return twins("24khz")[backend]


def sound_of(codec: Codec, name: str | None = None, less: int = 100) -> np.ndarray:
    name = name or next(key for key, config in CONFIGS.items() if config == codec.config)
    return oracle.sound(codec.config, LONG[name] * codec.config.unit_samples - less)


def unit_s(codec: Codec, units: int) -> float:
    return units * codec.config.unit_samples / codec.config.sampling_rate


def joined(pieces) -> list[np.ndarray]:
    return [np.concatenate(level) for level in zip(*pieces, strict=True)]


def cut(audio: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    """Pieces of uneven lengths, some empty."""
    edges = np.sort(np.random.default_rng(seed).integers(0, audio.size, 9))
    return np.split(audio, [0, *edges, edges[4]][:-1])


def test_contexts_are_those_measured():
    """Research 1.3: at 24 kHz 3 units of 4 frames, at 32 and 44 kHz 2 windows of 32 frames, either side."""
    for name, context in (("24khz", 3), ("32khz", 2), ("44khz", 2)):
        config = oracle.FULL[name]
        assert (grid.encoder_context(config), grid.decoder_context(config)) == (context, context)
    assert [
        round(unit_s(twins(name)["mlx"], grid.chunk_units(twins(name)["mlx"].config, None)), 1)
        for name in ("24khz", "44khz")
    ] == [4.1, 8.9]


@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_of_one_unit_equal_one_pass(name, backend):
    codec = twins(name)[backend]
    audio = sound_of(codec)
    whole = codec.encode(audio, chunk_s=1e3)
    small = codec.encode(audio, chunk_s=0)
    same = np.mean(np.concatenate(small.levels) == np.concatenate(whole.levels))
    assert same >= 0.999
    sound = codec.decode(whole, chunk_s=1e3)
    assert np.abs(codec.decode(whole, chunk_s=0) - sound).max() <= 1e-5


@pytest.mark.parametrize("name", ["24khz", "44khz"])
def test_less_context_is_too_little(name, monkeypatch):
    """So the comparison above can fail. Of the third unit at 24 kHz only the last bits depend."""
    codec = twins(name)["torch"]
    codes = draw_codes(codec.config, unit_s(codec, 8), 0)
    sound = codec.decode(codes, chunk_s=1e3)
    monkeypatch.setattr(grid, "decoder_context", lambda _: 1)
    assert np.abs(codec.decode(codes, chunk_s=0) - sound).max() > 1e-5


@pytest.mark.parametrize("chunk_s", [None, 0.2])
def test_streams_equal_the_whole_to_the_bit(codec, chunk_s):
    audio = sound_of(codec)
    codes = codec.encode(audio, chunk_s=chunk_s)
    streamed = joined(codec.encode_stream(cut(audio), chunk_s=chunk_s))
    for level, expected in zip(streamed, codes.levels, strict=True):
        np.testing.assert_array_equal(level, expected)
    decoded = codec.decode(codes, seed=3, chunk_s=chunk_s)
    pieces = _pieces(codes, codec)
    heard = list(codec.decode_stream(pieces, length=codes.length, seed=3, chunk_s=chunk_s))
    np.testing.assert_array_equal(np.concatenate(heard), decoded)


def _pieces(codes: Codes, codec: Codec, seed: int = 1) -> list[list[np.ndarray]]:
    """Codes as they may arrive: some coarse frames at a time, sometimes none."""
    coarse = codes.levels[0].size
    edges = sorted({0, coarse, *np.random.default_rng(seed).integers(0, coarse, 5).tolist()})
    ratios = [codec.config.vq_strides[0] // stride for stride in codec.config.vq_strides]
    cuts = [
        [level[first * ratio : last * ratio] for level, ratio in zip(codes.levels, ratios, strict=True)]
        for first, last in zip(edges, edges[1:], strict=False)
    ]
    return [*cuts, [level[:0] for level in codes.levels]]


def test_the_defaults_grid_equals_one_pass(speech):
    """Ten seconds in the chunks that long audio is cut into by default."""
    audio = oracle.sound(speech.config, 24_000 * 10)
    codes, once = speech.encode(audio), speech.encode(audio, chunk_s=1e3)
    assert np.mean(np.concatenate(codes.levels) == np.concatenate(once.levels)) >= 0.999
    assert np.abs(speech.decode(once) - speech.decode(once, chunk_s=1e3)).max() <= 1e-5


def test_latency_is_bounded(codec):
    """A unit of audio comes when the codes of the units of context after it are there, not later."""
    config, context = codec.config, grid.decoder_context(codec.config)
    codes = draw_codes(config, unit_s(codec, context + 6), 0)
    ratio = config.unit_frames // config.vq_strides[0]
    sizes = [config.unit_frames // stride for stride in config.vq_strides]
    given = 0

    def one_by_one():
        nonlocal given
        for unit in range(codes.levels[0].size // ratio):
            given += 1
            yield [level[unit * size : (unit + 1) * size] for level, size in zip(codes.levels, sizes, strict=True)]

    seen = [(given, piece.size) for piece in codec.decode_stream(one_by_one(), chunk_s=0)]
    assert [size for _, size in seen] == [config.unit_samples] * (context + 6)
    assert [when for when, _ in seen][:6] == [number + 1 + context for number in range(6)]


def test_a_stream_holds_a_chunk_and_its_context(speech):
    """However long the audio."""
    config = speech.config
    pieces = (np.zeros((3, config.unit_samples), np.float32) for _ in range(400))
    widest = max(rows.shape[0] for _, rows in grid.sliding(pieces, 8, 3))
    assert widest == 8 + 2 * 3


def test_batches_of_different_lengths_equal_single_runs(codec):
    unit = codec.config.unit_samples
    lengths = [1, unit, 2 * unit + 5, 2 * unit, 5 * unit - 1, 5 * unit]
    items = [oracle.sound(codec.config, length, seed=length) for length in lengths]
    together = codec.encode(items, chunk_s=unit_s(codec, 2))
    decoded = codec.decode(together, seed=2, chunk_s=unit_s(codec, 2))
    for item, codes, sound in zip(items, together, decoded, strict=True):
        alone = codec.encode(item, chunk_s=unit_s(codec, 2))
        assert np.mean(np.concatenate(codes.levels) == np.concatenate(alone.levels)) >= 0.999
        assert codes.length == alone.length == sound.size == item.size
        assert np.abs(sound - codec.decode(codes, seed=2, chunk_s=unit_s(codec, 2))).max() <= 1e-5


def test_batches_stay_within_a_chunk(speech, monkeypatch):
    """Many clips at once do not take more memory than a long one."""
    seen = []
    native = speech.encode_window
    monkeypatch.setattr(speech, "encode_window", lambda audio: seen.append(audio.size) or native(audio), raising=False)
    unit = speech.config.unit_samples
    speech.encode([np.zeros(5 * unit, np.float32)] * 12, chunk_s=unit_s(speech, 8))
    context = grid.encoder_context(speech.config)
    assert max(seen) <= (8 + 2 * context) * unit
    assert sum(seen) >= 12 * 5 * unit


def test_what_can_be_given_as_audio(speech):
    audio = oracle.sound(speech.config, 5000)
    codes = speech.encode(audio)
    for other in (audio.astype(np.float64), mx.array(audio), audio[::-1].copy()[::-1], torch.from_numpy(audio)):
        again = speech.encode(other)
        assert again.length == 5000
        for level, expected in zip(again.levels, codes.levels, strict=True):
            np.testing.assert_array_equal(level, expected)
    integers = (audio * 2**15).astype(np.int16)
    scaled = speech.encode(integers.astype(np.float32) / 2**15)
    for given in (integers, mx.array(integers), integers.astype(np.int32) << 16):
        for level, expected in zip(speech.encode(given).levels, scaled.levels, strict=True):
            np.testing.assert_array_equal(level, expected)
    assert speech.encode([]) == []
    assert speech.decode([]) == []


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (np.zeros(0, np.float32), "holds no"),
        (np.zeros((2, 100), np.float32), "expected mono"),
        (np.zeros((1, 100), np.float32), "expected mono"),
        (np.array([0.0, np.nan], np.float32), "NaN"),
        (np.array([0.0, np.inf], np.float32), "infin"),
        (np.array([0.0, 20000.0]), "reaches 20000, expected floats from -1 to 1"),
        (np.zeros(100, np.bool_), "found ndarray of bool"),
        (np.zeros(100, np.complex64), "found ndarray of complex64"),
        (np.array([None]), "found ndarray of object"),
        (torch.zeros(100, requires_grad=True), "found Tensor that NumPy does not take"),
        (mx.zeros(100, mx.bfloat16), "found array that NumPy does not take"),
        (Path("sound.wav"), "found .*Path of object"),
    ],
)  # fmt: skip
def test_audio_that_cannot_be_encoded_is_refused(speech, audio, said):
    with pytest.raises(InputError, match=said):
        speech.encode(audio)
    if np.shape(audio) != (0,):
        with pytest.raises(InputError, match=said):
            list(speech.encode_stream([audio]))
    else:
        assert list(speech.encode_stream([audio])) == [], "pieces may be empty"


def test_chunks_of_no_length_are_refused(speech):
    for chunk_s in (float("nan"), float("inf"), -1):
        with pytest.raises(InputError, match=f"chunk_s {chunk_s}: expected seconds from 0"):
            speech.encode(np.zeros(100), chunk_s=chunk_s)


def change(codes: Codes, level: int, how) -> Codes:
    levels = list(codes.levels)
    levels[level] = how(levels[level])
    return replace(codes, levels=tuple(levels))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda c: replace(c, levels=c.levels[:2]), "codes: 2 levels, this codec has 3 (strides [4, 2, 1])"),
        (lambda c: change(c, 1, lambda x: x[:-1]), "codes: level 1 has 9 codes, 10 belong to 5 of level 0"),
        (lambda c: change(c, 2, lambda x: x + 256), "level 2 holds something else than whole numbers 0 to 255"),
        (lambda c: change(c, 2, lambda x: x - 256), "level 2 holds something else than whole numbers 0 to 255"),
        (lambda c: change(c, 2, lambda x: x.astype(np.float32)), "level 2 holds something else than whole numbers"),
        (lambda c: replace(c, length=5 * 2048 + 1), "10241 samples do not fit 5 units of 2048 samples of codes"),
        (lambda c: replace(c, length=4 * 2048), "8192 samples do not fit 5 units"),
        (lambda c: replace(c, sample_rate_hz=44_100), "made at 44100 Hz, this codec has 24000 Hz"),
    ],
)  # fmt: skip
def test_codes_of_another_codec_are_refused(speech, bad, said):
    codes = draw_codes(speech.config, 10_000 / 24_000, 0)
    speech.decode(codes)
    with pytest.raises(InputError) as caught:
        speech.decode(bad(codes))
    assert said in str(caught.value)


def test_streams_of_codes_that_cannot_be_are_refused(backend):
    music = twins("44khz")[backend]
    codes = draw_codes(music.config, unit_s(music, 1), 0)
    half = [level[: level.size // 2] for level in codes.levels]
    with pytest.raises(InputError, match="the stream ends after 2 of the 4 coarse frames that are decoded together"):
        list(music.decode_stream([half]))
    ragged = [codes.levels[0], *codes.levels[:3]]
    with pytest.raises(InputError, match="level 1 has 4 codes, 8 belong to 4 of level 0"):
        list(music.decode_stream([ragged]))
    assert list(music.decode_stream([])) == []


def test_both_backends_make_the_same_sound():
    for name in CONFIGS:
        codecs = twins(name)
        ours, door = codecs["mlx"], codecs["torch"]
        codes = draw_codes(ours.config, unit_s(ours, 4), 1)
        assert np.abs(ours.decode(codes, seed=9) - door.decode(codes, seed=9)).max() <= 1e-5


def test_noise_of_chunks_is_that_of_the_whole(speech):
    """Without it in the way: the arrays that a chunk takes are slices of those that one pass takes."""
    whole, part = source(speech.config, None, 0)(0, 40), source(speech.config, None, 0)(8, 16)
    assert whole is not None
    assert part is not None
    for everything, some, rate in zip(whole, part, (8, 64, 256, 512), strict=True):
        np.testing.assert_array_equal(some, everything[8 * rate : 16 * rate])
