"""Crops of long recordings: what reading whole files gives, without reading them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from backends.data import audio, segments
from backends.data.segments import QUIET, TRIES, Piece
from backends.errors import InputError
from backends.seeds import rng

RATES = [(8000, 8000), (44_100, 24_000), (16_000, 24_000), (11_025, 32_000), (96_000, 8000), (44_101, 24_000)]


@pytest.fixture
def stereo(tmp_path):
    """A function that writes 40 s of full-scale noise in two channels, but for silence from 10 to 25 s."""

    def written(name: str, rate_hz: int, **how: str) -> Path:
        sound = np.random.default_rng(3).uniform(-1, 1, (40 * rate_hz + 77, 2)).astype(np.float32)
        sound[10 * rate_hz : 25 * rate_hz] = 0
        soundfile.write(tmp_path / name, sound, rate_hz, **how)
        return tmp_path / name

    return written


@pytest.mark.parametrize(("rate_hz", "to_hz"), RATES)
def test_crops_are_those_of_the_whole_file(stereo, rate_hz, to_hz):
    path = stereo("a.wav", rate_hz)
    whole, unit = audio.read(path, to_hz), to_hz // 100
    source = segments.source([path], to_hz, unit)
    units = source.recordings[0].units
    whole = np.pad(whole, (0, units * unit - whole.size))
    for start in (0, 1, 499, 1234, 2490, units - 50):
        crop, _ = source.read((Piece(0, start, 50),), 0)
        expected = whole[start * unit : (start + 50) * unit]
        np.testing.assert_allclose(crop, expected, rtol=0, atol=0 if rate_hz == to_hz or rate_hz == 44_101 else 1e-6)
        assert crop.dtype == np.float32
        np.testing.assert_array_equal(crop, source.read((Piece(0, start, 50),), 0)[0])


def test_crops_are_drawn_where_they_were(stereo):
    """The tries for a crop with sound, on the whole file's signal."""
    path = stereo("a.wav", 44_100)
    whole, source = audio.read(path, 24_000), segments.source([path], 24_000, 240)
    for key in range(30):
        starts = rng(0, key).integers(0, source.recordings[0].units - 99, TRIES).tolist()
        crops = {start: whole[start * 240 : (start + 100) * 240] for start in starts}
        loud = [start for start in starts if np.sqrt(np.mean(crops[start] ** 2)) >= QUIET]
        crop, (piece,) = source.read((Piece(0, None, 100),), 0, key)
        assert piece.start == (loud or starts)[0]
        np.testing.assert_allclose(crop, crops[piece.start], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "how", "all_of_it"),
    [("a.wav", {}, False), ("a.wav", {"subtype": "FLOAT"}, False), ("a.flac", {"subtype": "PCM_24"}, False),
     ("a.wav", {"subtype": "IMA_ADPCM"}, True), ("a.ogg", {}, True), ("a.mp3", {}, True)],
)  # fmt: skip
def test_a_crop_reads_no_more_than_it_needs(stereo, monkeypatch, name, how, all_of_it):
    source = segments.source([stereo(name, 44_100, **how)], 24_000, 240)
    whole, decoded, original = audio.read(source.recordings[0].path, 24_000), [], soundfile.SoundFile.read

    def spy(self, *args, **settings):
        decoded.append(len(found := original(self, *args, **settings)))
        return found

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    crop, (piece,) = source.read((Piece(0, None, 100),), 0, 0)
    np.testing.assert_allclose(crop, whole[piece.start * 240 :][:24_000], rtol=0, atol=1e-6)
    assert (sum(decoded) > 39 * 44_100) == all_of_it
    assert max(decoded) < 46_000 or len(decoded) == 1, "one second and the filter's reach, or the whole file once"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_crop_that_cannot_be_used_names_its_file(stereo, bad):
    path = stereo("a.wav", 8000, subtype="FLOAT")
    sound, _ = soundfile.read(path)
    sound[100_000] = bad
    soundfile.write(path, sound, 8000, subtype="FLOAT")
    source = segments.source([path], 8000, 100)
    assert source.read((Piece(0, 0, 100),), 0)[0].any()
    with pytest.raises(InputError, match=r"a\.wav: holds NaN or infinite samples; export it again"):
        source.read((Piece(0, 990, 100),), 0)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.wav: no such audio file"):
        source.read((Piece(0, 0, 100),), 0)


def test_a_crop_of_a_cut_file_names_it(stereo):
    path = stereo("a.flac", 8000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    source = segments.source([path], 8000, 100)
    for start in (2600, 3100):
        with pytest.raises(InputError, match=r"a\.flac: not readable as audio \([^\n]*$"):
            source.read((Piece(0, start, 100),), 0)


def test_a_recording_that_is_cut_during_the_run_is_named(stereo):
    path = stereo("a.wav", 8000)
    source = segments.source([path], 8000, 100)
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(InputError, match=r"a\.wav: is cut: holds "):
        source.read((Piece(0, 0, 100),), 0)
