"""Batching, prefetching, the code cache, seeds and atomic files."""

import os
import shutil
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from backends.atomic import write_atomically, write_text
from backends.data.batching import epoch_batches, epoch_updates, in_order, pad_length, pad_stack
from backends.data.codes import ENCODING, CodeCache, default_cache
from backends.data.prefetch import prefetch
from backends.data.segments import each
from backends.errors import InputError
from backends.seeds import gumbel, mix, rng

LENGTHS = np.random.default_rng(0).lognormal(4, 0.6, 1000).astype(int).tolist()


def test_every_clip_once_per_epoch():
    batches = epoch_batches(LENGTHS, 8, seed=1, epoch=1)
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    assert [len(batch) for batch in batches].count(8) == 125


def test_order_is_a_function_of_seed_and_epoch():
    first = epoch_batches(LENGTHS, 8, seed=1, epoch=1)
    assert first == epoch_batches(LENGTHS, 8, seed=1, epoch=1)
    assert first != epoch_batches(LENGTHS, 8, seed=1, epoch=2)
    assert first != epoch_batches(LENGTHS, 8, seed=2, epoch=1)
    assert epoch_batches([5, 3, 9, 4, 7], 2, seed=0, epoch=1) == [[0, 4], [2], [1, 3]]
    assert epoch_updates([5, 3, 9, 4, 7], 2, 2, seed=0, epoch=1) == [[[0, 4], [2]], [[1, 3]]]


def filled(batches):
    return sum(LENGTHS) / sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)


def test_pooling_leaves_little_padding():
    """Random batches of such lengths hold about 55 % padding-free cells; pools of 50 batches more than 95 %."""
    order = rng(0).permutation(1000).tolist()
    assert filled([order[i : i + 8] for i in range(0, 1000, 8)]) < 0.6
    assert filled(epoch_batches(LENGTHS, 8, seed=1, epoch=1)) > 0.95


def test_batch_order_is_not_by_length():
    longest = [max(LENGTHS[index] for index in batch) for batch in epoch_batches(LENGTHS, 8, seed=1, epoch=1)]
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.3


def test_validation_batches_are_by_length():
    assert in_order([5, 3, 9, 3], 3) == [[1, 3, 0], [2]]


def test_padding():
    assert [pad_length(n) for n in (1, 8, 9)] == [8, 8, 16]
    stacked = pad_stack([np.array([[1, 2], [3, 4]], np.int32), np.array([[5, 6]], np.int32)], 3)
    assert stacked.tolist() == [[[1, 2], [3, 4], [0, 0]], [[5, 6], [0, 0], [0, 0]]]
    assert stacked.dtype == np.int32


def test_seeds_are_pinned():
    """A run that is resumed with another version must see the same draws."""
    assert (mix(0), mix(1, 2)) == (7896617691693857887, 7764949442709860949)
    assert mix(2, 1) != mix(1, 2)
    assert 0 <= mix(2**31, -1) < 2**63
    assert rng(1, 2).integers(0, 1000, 3).tolist() == [643, 448, 938]
    assert mix(np.uint8(1), np.int32(2)) == mix(1, 2)


def test_gumbel_noise_is_pinned():
    """Music made from a seed is the same in every version; and the noise has Gumbel's mean and variance."""
    np.testing.assert_allclose(gumbel((4,), 1, 2), [0.8182451, 0.2206019, 2.7556286, 0.1720690], rtol=1e-5)
    drawn = gumbel((1000, 1000), 17)  # the first seed that draws a 0, which has no logarithm
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    assert drawn.mean(dtype=np.float64) == pytest.approx(np.euler_gamma, abs=5e-3)
    assert drawn.var(dtype=np.float64) == pytest.approx(np.pi**2 / 6, abs=1e-2)


def test_prefetch_keeps_the_order_and_stays_ahead():
    made = []

    def items():
        for index in range(6):
            made.append(index)
            yield index

    ahead = prefetch(items(), ahead=2)
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert made == [0, 1, 2, 3]  # one taken, two ready, one in the worker's hand
    assert list(ahead) == [1, 2, 3, 4, 5]


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_raises_what_the_worker_raised():
    def items():
        yield 1
        raise InputError("clip 7 is damaged")

    ahead = prefetch(items())
    assert next(ahead) == 1
    with pytest.raises(InputError, match="clip 7 is damaged"):
        next(ahead)
    assert not workers()


def test_prefetch_stops_its_worker_when_left_early():
    ahead = prefetch(iter(range(1000)))
    assert next(ahead) == 0
    assert workers()
    ahead.close()
    assert not workers()


def test_codes_are_encoded_once_per_content_and_codec(tmp_path):
    calls = []

    def encode(path):
        calls.append(path.name)
        return np.arange(6).reshape(2, 3) + len(path.read_bytes())

    a, b, c = (tmp_path / name for name in ("a.wav", "b.wav", "c.wav"))
    a.write_bytes(b"one")
    b.write_bytes(b"one")
    c.write_bytes(b"three")
    cache = CodeCache(encode, "codec-1", tmp_path / "cache")
    first = cache(a)
    assert first.dtype == np.int32
    assert np.array_equal(cache(b), first)  # another name, the same content
    assert not np.array_equal(cache(c), first)
    assert calls == ["a.wav", "c.wav"]
    CodeCache(encode, "codec-2", tmp_path / "cache")(a)
    assert calls == ["a.wav", "c.wav", "a.wav"]
    assert CodeCache(encode, "codec-1", tmp_path / "cache")(a).tolist() == first.tolist()
    assert len(calls) == 3


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr("backends.data.codes.sha256", lambda path: hashed.append(path) or path.read_text())
    clip = tmp_path / "a.wav"
    cache = CodeCache(lambda path: np.full((1, 2), len(path.read_bytes())), "codec", tmp_path / "cache")
    clip.write_text("one")
    assert [cache(clip)[0, 0] for _ in range(3)] == [3, 3, 3]
    assert len(hashed) == 1
    clip.write_text("three")
    assert cache(clip)[0, 0] == 5
    assert len(hashed) == 2


def test_codes_of_an_encoding_that_changed_are_made_anew(tmp_path, monkeypatch):
    """Neither the codec's weights nor its configuration tell."""
    clip, made = tmp_path / "a.wav", iter(range(9))
    clip.write_bytes(b"sound")
    cache = CodeCache(lambda path: np.full((2, 3), next(made), np.int32), "codec", tmp_path / "cache")
    assert [cache(clip)[0, 0] for _ in range(2)] == [0, 0]
    monkeypatch.setattr("backends.data.codes.ENCODING", ENCODING + 1)
    assert [cache(clip)[0, 0] for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("damage", [lambda data: data[:40], lambda data: b"", lambda data: b"x" + data[1:]])
def test_damaged_codes_are_encoded_again(tmp_path, damage):
    clip = tmp_path / "a.wav"
    clip.write_bytes(b"sound")
    cache = CodeCache(lambda path: np.ones((2, 50), np.int32), "codec", tmp_path / "cache")
    codes = cache(clip)
    (file,) = (tmp_path / "cache").rglob("*.npy")
    file.write_bytes(damage(file.read_bytes()))
    assert np.array_equal(cache(clip), codes)
    assert np.array_equal(np.load(file), codes)


def test_processes_that_encode_the_same_clip_do_not_disturb_each_other(tmp_path):
    """Each writes under a name of its own, so neither puts the other's unfinished file in place."""
    clip = tmp_path / "a.wav"
    clip.write_bytes(b"sound")
    seen = []
    cache = CodeCache(lambda path: np.ones((2, 5), np.int32), "codec", tmp_path / "cache")

    def write(staging):
        seen.append(staging.name)
        staging.write_bytes(b"whole")

    write_atomically(tmp_path / "shared.npy", write, shared=True)
    write_atomically(tmp_path / "own.npy", write)
    assert seen == [f".shared.{os.getpid()}.tmp.npy", ".own.tmp.npy"]
    cache(clip)


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(tmp_path):
    clip = tmp_path / "a.wav"
    clip.write_bytes(b"sound")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "codes").write_text("in the way")
    cache = CodeCache(lambda path: np.ones((2, 5), np.int32), "codec", tmp_path / "cache")
    with pytest.raises(InputError) as refused:
        cache(clip)
    line = str(refused.value)
    assert line.startswith(f"{tmp_path / 'cache'}: codes cannot be kept in this cache folder (")
    assert line.endswith("or name another folder in $AUDIOSMITH_CACHE")


@pytest.mark.parametrize("known_before", [True, False])
def test_a_cache_that_cannot_be_written_is_told_once_and_not_of_recordings(tmp_path, known_before):
    paths = [tmp_path / f"{name}.wav" for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    (tmp_path / "file").write_text("in the way")
    encoded = []

    def encode(path: Path) -> np.ndarray:
        encoded.append(path)
        if not known_before:
            shutil.rmtree(tmp_path / "cache" / "codes")
            (tmp_path / "cache" / "codes").write_text("in the way")
        return np.ones((2, 5), np.int32)

    folder = tmp_path / ("file" if known_before else "cache")
    with pytest.raises(InputError) as refused:
        each(paths, CodeCache(encode, "codec", folder))
    assert str(refused.value).startswith(f"{folder}: codes cannot be kept in this cache folder (")
    assert ".wav" not in str(refused.value)
    assert encoded == ([] if known_before else paths[:1])


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIOSMITH_CACHE", str(tmp_path / "x"))
    assert default_cache() == tmp_path / "x"
    monkeypatch.delenv("AUDIOSMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "y"))
    assert default_cache() == tmp_path / "y" / "audiosmith"


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = write_text(tmp_path / "new" / "a.txt", "first")

    def half(staging):
        staging.write_text("sec")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"a.txt: cannot be written \(No space left on device\)"):
        write_atomically(path, half)
    assert path.read_text() == "first"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path, there):
    (tmp_path / "data").mkdir()
    target, link, further = tmp_path / "data" / "real.json", tmp_path / "link.json", tmp_path / "further.txt"
    if there:
        target.write_text("old")
    link.symlink_to("data/real.json")
    further.symlink_to(link)
    assert write_text(further, "new") == further
    assert (link.is_symlink(), further.is_symlink(), target.is_symlink()) == (True, True, False)
    assert target.read_text() == "new"
    assert [entry.name for entry in target.parent.iterdir()] == ["real.json"]


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    for name, kind in (("pipe", "a device or pipe"), ("link", "a device or pipe"), ("folder", "a directory")):
        with pytest.raises(InputError, match=f"{name}: cannot be written, it is {kind}; give the name of a file"):
            write_text(tmp_path / name, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "link", "pipe"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_not_replaced(tmp_path):
    """One of our own, like /dev/full."""
    device = tmp_path / "full"
    try:
        os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 7))
    except PermissionError:
        pytest.skip("no devices may be made here")
    with pytest.raises(InputError, match="it is a device or pipe"):
        write_text(device, "text")
    assert stat.S_ISCHR(device.stat().st_mode)
