"""Codes in packed files and as one stream of tokens."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import snac_oracle as oracle

from backends.data.bits import Packer, pack, packed_bytes, unpack
from backends.errors import InputError
from snac_port import SNAC, Codes, flatten, read_codes, snac_24khz, snac_44khz, unflatten, write_codes
from snac_port.codefile import CodeFile, write_code_stream
from snac_port.generation import draw_codes
from snac_port.tiny import checkpoint
from snac_port.tokens import ORPHEUS_FIRST, positions

SPEECH = replace(oracle.NARROW["24khz"], codebook_size=4096)


@pytest.fixture(scope="module")
def codec():
    return SNAC.of_checkpoint(checkpoint(SPEECH))


@pytest.fixture(scope="module")
def codes():
    return draw_codes(SPEECH, 10.0, 1)


def same(first: Codes, second: Codes) -> bool:
    return (first.length, first.sample_rate_hz) == (second.length, second.sample_rate_hz) and all(
        np.array_equal(a, b) and a.dtype == b.dtype == np.int32
        for a, b in zip(first.levels, second.levels, strict=True)
    )


@pytest.mark.parametrize("bits", [1, 5, 8, 12, 13])
def test_bits_are_packed_without_gaps(bits):
    values = np.random.default_rng(bits).integers(0, 2**bits, 1003)
    packed = pack(values, bits)
    assert len(packed) == packed_bytes(1003, bits) == -(-1003 * bits // 8)
    np.testing.assert_array_equal(unpack(packed, bits, 1003), values)
    packer = Packer(bits)
    pieces = [packer.add(part) for part in np.split(values, [1, 7, 8, 500, 500, 1000])]
    assert b"".join([*pieces, packer.finish()]) == packed


def test_bits_come_highest_first():
    assert pack(np.array([0xABC, 0x123]), 12) == bytes.fromhex("abc123")


def test_a_file_gives_back_what_was_written(tmp_path, codec, codes):
    path = write_codes(tmp_path / "codes.snac", codes, codec)
    assert same(read_codes(path, codec), codes)
    assert path.stat().st_size == 8 + 2 + 4 + 1024 + 118 * 7 * 12 // 8
    assert [entry.name for entry in tmp_path.iterdir()] == ["codes.snac"]


def test_a_second_is_123_bytes(codes):
    assert packed_bytes(7 * codes.levels[0].size, 12) / (codes.levels[0].size * 2048 / 24_000) == pytest.approx(
        123, abs=0.1
    )


def test_a_file_says_what_made_it(tmp_path, codec, codes):
    data = write_codes(tmp_path / "codes.snac", codes, codec).read_bytes()
    magic, version, size = struct.unpack("<8sHI", data[:14])
    assert (magic, version) == (b"SNACODES", 1)
    header = json.loads(data[14 : 14 + size])
    assert header.pop("crc32") > 0
    assert header == {
        "model": "",
        "quantizer": codec.identity(),
        "sampling_rate": 24_000,
        "hop": 512,
        "vq_strides": [4, 2, 1],
        "unit_frames": 4,
        "codebook_size": 4096,
        "length": 240_000,
    }


def test_a_stream_is_written_as_a_whole_is(tmp_path, codec, codes):
    write_codes(tmp_path / "whole.snac", codes, codec)
    pieces = [[level[first * k : last * k] for level, k in zip(codes.levels, (1, 2, 4), strict=True)]
              for first, last in ((0, 1), (1, 1), (1, 50), (50, 118))]  # fmt: skip
    write_code_stream(tmp_path / "stream.snac", pieces, codec, lambda: codes.length)
    assert (tmp_path / "stream.snac").read_bytes() == (tmp_path / "whole.snac").read_bytes()


def test_a_long_file_is_read_in_pieces(tmp_path, codec):
    long = draw_codes(SPEECH, 400.0, 0)
    file = CodeFile(write_codes(tmp_path / "long.snac", long, codec))
    pieces = list(file.pieces(SPEECH))
    assert [len(piece[0]) for piece in pieces] == [4096, 592]
    for index, level in enumerate(long.levels):
        np.testing.assert_array_equal(np.concatenate([piece[index] for piece in pieces]), level)


def test_nothing_is_left_of_a_stream_that_fails(tmp_path, codec, codes):
    def failing():
        yield codes.levels
        raise InputError("the file ends here")

    with pytest.raises(InputError, match="the file ends here"):
        write_code_stream(tmp_path / "codes.snac", failing(), codec, lambda: codes.length)
    assert list(tmp_path.iterdir()) == []


def damaged(data: bytes, how: str) -> bytes:
    start = 14 + 1024
    return {
        "empty": b"",
        "short": data[:9],
        "other": b"RIFF" + data[4:],
        "header": data[:500],
        "no json": data[:14] + b"?" * 1024 + data[start:],
        "key": data[:14] + data[14:start].replace(b'"hop"', b'"hip"') + data[start:],
        "numbers": data[:14] + data[14:start].replace(b"240000", b"-40000") + data[start:],
        "list": data[:14] + data[14:start].replace(b"[4, 2, 1]", b"7        ") + data[start:],
        "ratios": data[:14] + data[14:start].replace(b"[4, 2, 1]", b"[0, 2, 1]") + data[start:],
        "truncated": data[:-5],
        "longer": data + b"abc",
        "flipped": data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        "version": data[:8] + b"\x07\x00" + data[10:],
        "array": data[:14] + b"[]".ljust(1024) + data[start:],
    }[how]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("empty", "not a file of SNAC codes"),
        ("short", "truncated inside its header"),
        ("other", "not a file of SNAC codes; expected one written by snac_port.encode"),
        ("header", "truncated inside its header"),
        ("no json", "its header is damaged"),
        ("key", "its header is damaged ('hop')"),
        ("numbers", "its header is damaged"),
        ("list", "its header is damaged"),
        ("ratios", "its header is damaged"),
        ("array", "its header is damaged"),
        ("truncated", "truncated, holds 1234 of 1239 bytes of codes; copy or encode it again"),
        ("longer", "too long, holds 1242 of 1239 bytes"),
        ("flipped", "damaged, its checksum does not fit"),
        ("version", "written in version 7 of the format, this program reads 1"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path, codec, codes, how, said):
    path = write_codes(tmp_path / "codes.snac", codes, codec)
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(InputError) as caught:
        read_codes(path, codec)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_flipped_bit_of_the_body_is_noticed(tmp_path, codec, codes):
    data = write_codes(tmp_path / "codes.snac", codes, codec).read_bytes()
    for place in np.random.default_rng(0).integers(14 + 1024, len(data), 20):
        (tmp_path / "bad.snac").write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(InputError, match="damaged"):
            read_codes(tmp_path / "bad.snac", codec)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampling_rate": 16_000}, "made with sampling_rate 24000, this checkpoint has 16000"),
        ({"encoder_rates": (2, 2, 8, 8), "decoder_rates": (8, 8, 2, 2)}, "hop 512, this checkpoint has 256"),
        ({"vq_strides": (4, 1, 1)}, "vq_strides [4, 2, 1], this checkpoint has [4, 1, 1]"),
        ({"codebook_size": 256}, "codebook_size 4096, this checkpoint has 256"),
    ],
)  # fmt: skip
def test_another_models_codes_are_refused(tmp_path, codec, codes, change, said):
    path = write_codes(tmp_path / "codes.snac", codes, codec)
    other = SNAC.of_checkpoint(checkpoint(replace(SPEECH, **change)))
    with pytest.raises(InputError) as caught:
        read_codes(path, other)
    assert str(caught.value).startswith(f"{path}: made with ")
    assert said in str(caught.value)


def test_codes_of_other_weights_are_refused(tmp_path, codec, codes):
    """Shapes alone do not say what codes mean; a fine-tuned decoder with the same quantiser may read them."""
    path = write_codes(tmp_path / "codes.snac", codes, codec)
    with pytest.raises(InputError, match="made with another quantiser's weights, this checkpoint has [0-9a-f]{16}"):
        read_codes(path, SNAC.of_checkpoint(checkpoint(SPEECH, seed=1)))


def test_four_levels_in_a_file(tmp_path):
    music = SNAC.of_checkpoint(checkpoint(oracle.NARROW["44khz"]))
    codes = draw_codes(music.config, 3.0, 0)
    path = write_codes(tmp_path / "codes.snac", codes, music)
    assert path.stat().st_size == 14 + 1024 + packed_bytes(11 * 60, 7)
    assert same(read_codes(path, music), codes)


def test_codes_that_are_none_are_not_written(tmp_path, codec, codes):
    with pytest.raises(InputError, match="10241 samples do not fit 118 units"):
        write_codes(tmp_path / "codes.snac", replace(codes, length=10_241), codec)
    assert list(tmp_path.iterdir()) == []


# The order in which Orpheus sends a frame's seven codes: its decoder takes snac_layers[0] from position 0, layer 1 from
# 1 and 4, layer 2 from 2, 3, 5 and 6, each less position * 4096.
def orpheus(codes: Codes) -> list[int]:
    coarse, middle, fine = codes.levels
    tokens = []
    for frame in range(coarse.size):
        row = [coarse[frame], middle[2 * frame], fine[4 * frame], fine[4 * frame + 1],
               middle[2 * frame + 1], fine[4 * frame + 2], fine[4 * frame + 3]]  # fmt: skip
        tokens += [int(code) + 4096 * place for place, code in enumerate(row)]
    return tokens


def test_flattening_is_orpheus(codes):
    tokens = flatten(codes, snac_24khz())
    assert tokens.shape == (118, 7)
    assert tokens.dtype == np.int32
    assert tokens.reshape(-1).tolist() == orpheus(codes)
    named = flatten(codes, snac_24khz(), first=ORPHEUS_FIRST)
    assert named.min() >= 128_266
    assert named.max() < 128_266 + 7 * 4096
    np.testing.assert_array_equal(named - 128_266, tokens)


@pytest.mark.parametrize(
    "config", [snac_24khz(), snac_44khz(), SPEECH, oracle.ODD["no noise blocks"], oracle.ODD["odd strides"]], ids=str
)
@pytest.mark.parametrize("first", [0, 128_266])
def test_the_inverse_is_exact(config, first):
    codes = draw_codes(config, 3.1, 2)
    tokens = flatten(codes, config, first=first)
    assert tokens.shape[1] == positions(config)
    for given in (tokens, tokens.reshape(-1), tokens.reshape(-1).tolist()):
        assert same(unflatten(given, config, first=first, length=codes.length), codes)
    padded = unflatten(tokens, config, first=first)
    assert padded.length == codes.levels[0].size * config.vq_strides[0] * config.hop_samples
    with pytest.raises(InputError, match="codes: 1000000000 samples do not fit"):
        unflatten(tokens, config, first=first, length=10**9)


@pytest.mark.parametrize("first", [-1, 2**31 - 1, 10**30])
def test_tokens_that_int32_does_not_hold_are_refused(codes, first):
    with pytest.raises(InputError, match=f"first {first}: expected 0 to 1073741824"):
        flatten(codes, snac_24khz(), first=first)
    with pytest.raises(InputError, match=f"first {first}: expected"):
        unflatten([0] * 7, snac_24khz(), first=first)


def test_four_levels_are_fifteen_positions():
    config = snac_44khz()
    assert (positions(snac_24khz()), positions(config)) == (7, 15)
    levels = tuple(np.arange(4 * 2**level, dtype=np.int32) for level in range(4))
    row = flatten(Codes(levels, 12_288, 44_100), config)[1] - 4096 * np.arange(15)
    assert row.tolist() == [1, 2, 4, 8, 9, 5, 10, 11, 3, 6, 12, 13, 7, 14, 15]


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([], "no tokens: expected whole frames of 7"),
        ([0, 4096, 8192], "3 tokens are not whole frames of 7: leave out the last 3"),
        ([0, 4096, 8192, 12288, 16384, 20480, 24576, 5], "8 tokens are not whole frames of 7: leave out the last 1"),
        ([4096, 4096, 8192, 12288, 16384, 20480, 24576], "token 0 is 4096, expected 0 to 4095 at position 0 of frame 0"),
        ([0, 4096, 8192, 12288, 16384, 20480, 24576, 0, 4096, 8192, 12288, 20480, 20480, 24576],
         "token 11 is 20480, expected 16384 to 20479 at position 4 of frame 1"),
        ([0, -1, 8192, 12288, 16384, 20480, 24576], "token 1 is -1, expected 4096 to 8191"),
        ([0.0] * 7, "tokens are float64, expected whole numbers"),
    ],
)  # fmt: skip
def test_bad_streams_of_tokens_are_named(tokens, said):
    with pytest.raises(InputError) as caught:
        unflatten(tokens, snac_24khz())
    assert said in str(caught.value)


def test_orpheus_ids_read_without_their_offset_are_named(codes):
    with pytest.raises(InputError, match="token 0 is 1[0-9]{5}, expected 0 to 4095"):
        unflatten(flatten(codes, snac_24khz(), first=ORPHEUS_FIRST), snac_24khz())
