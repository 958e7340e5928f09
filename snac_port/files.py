"""SNAC on files: encode, decode and reconstruct as streams, so that memory does not grow with the file."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.atomic import behind_link, check_apart, check_folder
from backends.data.audio import FORMATS
from backends.data.metrics import Comparison
from backends.data.segments import NAMED, tried
from backends.data.stream import AudioFile, checked_target, open_audio, write_stream
from backends.errors import InputError
from snac_port.codec import Codec
from snac_port.codefile import SUFFIX, CodeFile, write_code_stream
from snac_port.noise import Noise


@dataclass(frozen=True)
class Report:
    """What was done to a file: its duration, the seconds it took, and how close the result is where that is known."""

    source: Path
    target: Path
    duration_s: float
    elapsed_s: float
    changes: str = ""
    comparison: Comparison | None = None

    @property
    def real_time_factor(self) -> float:
        return self.elapsed_s / self.duration_s


def encode_file(codec: Codec, source: Path | str, target: Path | str, *, chunk_s: float | None = None) -> Report:
    """Encode an audio file of any rate and channels into a file of codes (.snac)."""
    started, audio, counter = time.perf_counter(), open_audio(source), _Counter()
    target = new_target(target, audio.path)
    pieces = codec.encode_stream(counter.count(audio.blocks(codec.config.sampling_rate)), chunk_s=chunk_s)
    write_code_stream(target, pieces, codec, lambda: counter.samples)
    return _report(codec, audio, target, started, counter)


def decode_file(
    codec: Codec,
    source: Path | str,
    target: Path | str,
    *,
    noise: Noise = None,
    seed: int = 0,
    chunk_s: float | None = None,
) -> Report:
    """Decode a file of codes (.snac) into an audio file."""
    started, file, counter = time.perf_counter(), CodeFile(source), _Counter()
    file.check(codec)
    target = new_target(checked_target(target), file.path)
    length = file.header.length
    audio = codec.decode_stream(file.pieces(codec.config), length=length, noise=noise, seed=seed, chunk_s=chunk_s)
    write_stream(target, counter.count(audio), codec.config.sampling_rate)
    duration_s = counter.samples / codec.config.sampling_rate
    return Report(file.path, target, duration_s, time.perf_counter() - started)


def reconstruct_file(
    codec: Codec,
    source: Path | str,
    target: Path | str,
    *,
    noise: Noise = None,
    seed: int = 0,
    chunk_s: float | None = None,
) -> Report:
    """Encode an audio file, decode it again, and compare what comes out with what went in."""
    started, audio, counter = time.perf_counter(), open_audio(source), _Counter()
    target = new_target(checked_target(target), audio.path)
    rate_hz = codec.config.sampling_rate
    comparison = Comparison(rate_hz)
    heard = _seen(counter.count(audio.blocks(rate_hz)), lambda block: comparison.add(reference=block))
    codes = codec.encode_stream(heard, chunk_s=chunk_s)
    made = _trimmed(codec.decode_stream(codes, noise=noise, seed=seed, chunk_s=chunk_s), counter)
    write_stream(target, _seen(made, lambda block: comparison.add(estimate=block)), rate_hz)
    return _report(codec, audio, target, started, counter, comparison)


def pairs(source: Path, target: Path, suffixes: Sequence[str], new_suffix: str | None) -> list[tuple[Path, Path]]:
    """Files to read and to write: `source` and `target`, or the trees below them.

    In a tree, names stay and suffixes become `new_suffix`; without one `target` is a file for all. Raises InputError
    where there is nothing to read, nothing can be written, or two files would be written under one name.
    """
    one_file = new_suffix is None or not source.is_dir()
    check_folder(behind_link(target.expanduser()).parent if one_file else target.expanduser(), f"--output {target}")
    if not source.is_dir():
        if not source.is_file():
            raise InputError(f"--input {source}: no such file or folder")
        return [(source, target)]
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise InputError(f"--input {source}: holds no {', '.join(suffixes)} files")
    made = [(path, target / path.relative_to(source).with_suffix(new_suffix or path.suffix)) for path in found]
    names = Counter(goal for _, goal in made)
    twice = next((path for path, goal in made if names[goal] > 1), None)
    if twice is not None:
        raise InputError(f"--input {source}: {twice.name} and another file of that name would be written to one file")
    return made


def do_all(
    work: list[tuple[Path, Path]], do: Callable[[Path, Path], object], then: Callable[[], object] = lambda: None
) -> None:
    """Do all pairs, and `then`. A file of a folder that is bad does not stop the others: some are named at the end."""
    done, bad = tried(work, lambda pair: do(*pair))
    if done:
        then()
    errors = [error for _, error in bad]
    if errors and len(work) == 1:
        raise errors[0]
    if errors:
        more = f" and {len(errors) - NAMED} more" if len(errors) > NAMED else ""
        raise InputError(f"{len(errors)} of {len(work)} files failed: {'; '.join(map(str, errors[:NAMED]))}{more}")


AUDIO_SUFFIXES, CODE_SUFFIXES = FORMATS, (SUFFIX,)


class _Counter:
    """Counts the samples of blocks that pass."""

    samples = 0

    def count(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self.samples += len(block)
            yield block


def _seen(blocks: Iterable[np.ndarray], look: Callable[[np.ndarray], object]) -> Iterator[np.ndarray]:
    for block in blocks:
        look(block)
        yield block


def _trimmed(blocks: Iterable[np.ndarray], counter: _Counter) -> Iterator[np.ndarray]:
    """The decoder's audio without the padding of the last unit: as many samples as have been counted."""
    made = 0
    for block in blocks:
        yield block[: counter.samples - made]
        made += len(block)


def new_target(target: Path | str, source: Path) -> Path:
    """`target`, if it is another file than `source`. Raises InputError."""
    target = Path(target).expanduser()
    check_apart(target, [source], "the input")
    return target


def _report(
    codec: Codec, audio: AudioFile, target: Path, started: float, counter: _Counter, found: Comparison | None = None
) -> Report:
    rate_hz = codec.config.sampling_rate
    elapsed = time.perf_counter() - started
    return Report(audio.path, target, counter.samples / rate_hz, elapsed, audio.changes(rate_hz), found)
