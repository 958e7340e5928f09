"""Audio files in blocks: what comes out is what reading at once gives, and bad files are named."""

import os

import numpy as np
import pytest
import soundfile

from backends.data import audio
from backends.data.stream import checked_target, open_audio, write_stream
from backends.errors import InputError


def tone(rate_hz: int, seconds: float, channels: int = 1) -> np.ndarray:
    """(samples, channels), the channels different."""
    t = np.arange(round(rate_hz * seconds)) / rate_hz
    return np.stack([0.4 * np.sin(2 * np.pi * 220 * (1 + c) * t) for c in range(channels)], axis=1).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize(
    ("rate_hz", "channels", "to_hz"), [(24_000, 1, 24_000), (44_100, 2, 24_000), (16_000, 1, 44_100)]
)
def test_blocks_are_what_reading_at_once_gives(tmp_path, suffix, rate_hz, channels, to_hz):
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, tone(rate_hz, 2.3, channels), rate_hz)
    source = open_audio(path)
    assert (source.rate_hz, source.channels) == (rate_hz, channels)
    assert source.duration_s == pytest.approx(2.3, abs=0.1)
    whole = audio.read(path, to_hz)
    for block_s in (0.1, 1.0, 10.0):
        blocks = list(source.blocks(to_hz, block_s))
        assert all(block.dtype == np.float32 and block.ndim == 1 for block in blocks)
        got = np.concatenate(blocks)
        assert got.shape == whole.shape
        np.testing.assert_allclose(got, whole, atol=2e-6)


@pytest.mark.parametrize(("rate_hz", "to_hz"), [(44_100, 24_000), (8000, 24_000), (48_000, 44_100)])
def test_the_length_is_that_of_the_other_rate(tmp_path, rate_hz, to_hz):
    for samples in (1, 7, 1000, rate_hz + 1):
        path = tmp_path / "a.wav"
        soundfile.write(path, tone(rate_hz, samples / rate_hz), rate_hz)
        got = sum(len(block) for block in open_audio(path).blocks(to_hz, 0.25))
        assert abs(got - samples * to_hz / rate_hz) <= 1


def test_what_is_done_to_the_sound_is_said(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(44_100, 0.1, 2), 44_100)
    assert open_audio(path).changes(24_000) == "44100 Hz resampled to 24000 Hz, 2 channels averaged"
    assert open_audio(path).changes(44_100) == "2 channels averaged"
    soundfile.write(path, tone(24_000, 0.1), 24_000)
    assert open_audio(path).changes(24_000) == ""


def test_a_block_is_read_at_a_time(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(24_000, 5), 24_000)
    read = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, frames, **kw: read.append(frames) or original(self, frames, **kw)
    )
    blocks = open_audio(path).blocks(24_000, 0.5)
    next(blocks)
    assert read == [12_000, 12_000], "one ahead, to know the last"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_named_with_its_place(tmp_path, bad):
    signal = tone(24_000, 3)
    signal[50_000] = bad
    soundfile.write(tmp_path / "a.wav", signal, 24_000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"a.wav: holds NaN or infinite samples after 2.0 s; export it again"):
        list(open_audio(tmp_path / "a.wav").blocks(24_000))


def test_files_that_are_no_audio_are_named(tmp_path):
    for name, content, said in (
        ("empty.wav", b"", "not readable as audio"),
        ("text.wav", b"no sound at all", "not readable as audio"),
        ("cut.flac", b"fLaC\0\0", "not readable as audio"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: {said}"):
            open_audio(tmp_path / name)
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), 24_000)
    with pytest.raises(InputError, match="none.wav: holds no audio samples"):
        open_audio(tmp_path / "none.wav")
    with pytest.raises(InputError, match="missing.wav: no such audio file"):
        open_audio(tmp_path / "missing.wav")
    with pytest.raises(InputError, match="no such audio file"):
        open_audio(tmp_path)


def test_a_damaged_end_is_an_error(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(24_000, 5) * np.random.default_rng(0).random((120_000, 1)), 24_000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"a.flac: "):
        list(open_audio(path).blocks(24_000))


@pytest.mark.parametrize(("suffix", "atol"), [(".wav", 4e-5), (".flac", 4e-5), (".ogg", 0.1)])
def test_what_is_written_is_read(tmp_path, suffix, atol):
    signal = tone(24_000, 2)[:, 0]
    path = write_stream(tmp_path / "deep" / f"a{suffix}", np.array_split(signal, 7), 24_000)
    assert [entry.name for entry in path.parent.iterdir()] == [f"a{suffix}"]
    np.testing.assert_allclose(audio.read(path, 24_000), signal, atol=atol)


def test_what_is_too_loud_is_limited(tmp_path):
    path = write_stream(tmp_path / "a.wav", [np.array([-3.0, 0.5, 3.0], np.float32)], 24_000)
    np.testing.assert_allclose(audio.read(path, 24_000), [-1, 0.5, 1], atol=4e-5)


def test_nothing_is_left_where_writing_ends_early(tmp_path):
    def failing():
        yield np.zeros(100, np.float32)
        raise InputError("the source is damaged")

    (tmp_path / "old.wav").write_bytes(b"kept")
    for name in ("new.wav", "old.wav"):
        with pytest.raises(InputError, match="the source is damaged"):
            write_stream(tmp_path / name, failing(), 24_000)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.wav"]
    assert (tmp_path / "old.wav").read_bytes() == b"kept"


def test_names_that_are_no_audio_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a.txt: expected a name that ends in .wav, .flac, .ogg, .mp3"):
        write_stream(tmp_path / "a.txt", [], 24_000)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_stream(tmp_path / "file" / "a.wav", [np.zeros(3, np.float32)], 24_000)


def test_a_full_disk_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    def refuse(_self, _block):
        raise soundfile.LibsndfileError(2)

    monkeypatch.setattr(soundfile.SoundFile, "write", refuse)
    with pytest.raises(InputError, match=r"a.wav: cannot be written \(System error\.\): check the folder and its free"):
        write_stream(tmp_path / "a.wav", [np.zeros(3, np.float32)], 24_000)
    assert list(tmp_path.iterdir()) == []


def test_pipes_are_refused_before_the_work(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(InputError, match=r"a.wav: cannot be written, it is a device or pipe"):
        checked_target(tmp_path / "a.wav")
