"""Segments of equal length from a folder of recordings: seeded, silence-aware crops, read by worker threads.

Lengths are counted in units, the codec's coarsest frames, so that a segment's codes are a slice of its files' codes. A
file is padded with silence to whole units. One shorter than the segment is followed by others, so nothing in a segment
is padding but the ends of files.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, cycle
from pathlib import Path
from typing import TypeVar

import numpy as np

from backends.data import audio
from backends.data.codes import CacheError
from backends.data.parts import parts
from backends.errors import InputError
from backends.seeds import rng

QUIET = 10 ** (-50 / 20)  # a crop whose RMS is below this is drawn again
TRIES = 4
END = 1 << 16  # bytes
NAMED = 5  # bad files, by one error

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Recording:
    """A file and how many units it has."""

    path: Path
    units: int


@dataclass(frozen=True)
class Piece:
    """A part of a segment: `units` of a file from `start`, or from a place yet to be drawn (None)."""

    file: int
    start: int | None
    units: int


Segment = tuple[Piece, ...]


@dataclass(frozen=True)
class Source:
    """The recordings of a folder at one rate; `unit_samples` is the length of a unit."""

    recordings: Sequence[Recording]
    rate_hz: int
    unit_samples: int
    counts: dict[tuple[int, int, int], int] = field(default_factory=dict, repr=False, compare=False)  # kept by `count`

    def plan(self, length: int, *, seed: int, epoch: int) -> list[Segment]:
        """The segments of `length` units of an epoch: every file is visited once, in a seeded order.

        A file long enough gives one segment; shorter ones are joined until a segment is full, and what is left of the
        last is left out, as is an unfilled segment at the end (unless it is the only one: then files repeat).
        """
        order = rng(seed, epoch).permutation(len(self.recordings)).tolist()
        planned, pieces, missing = [], [], length
        for visit, file in enumerate(chain(order, cycle(range(len(order))))):
            if planned and visit >= len(order):
                break
            units = self.recordings[file].units
            if not pieces and units >= length:
                planned.append((Piece(file, None, length),))
                continue
            taken = min(units, missing)
            pieces.append(Piece(file, 0, taken))
            missing -= taken
            if not missing:
                planned.append(tuple(pieces))
                pieces, missing = [], length
        return planned

    def count(self, length: int, *, seed: int, epoch: int) -> int:
        """How many segments `plan` gives; what it found is kept, since a run asks for all its epochs more than once."""
        key = length, seed, epoch
        if key not in self.counts:
            self.counts[key] = len(self.plan(length, seed=seed, epoch=epoch))
        return self.counts[key]

    def read(self, segment: Segment, *keys: int) -> tuple[np.ndarray, Segment]:
        """A segment's samples (length unit_samples,) and its pieces with their starts; `keys` seed the crop."""
        draw = rng(*keys)
        read = [self._piece(piece, draw) for piece in segment]
        return np.concatenate([samples for samples, _ in read]), tuple(piece for _, piece in read)

    def excerpts(self, wanted: int, length: int, *keys: int) -> Iterator[np.ndarray]:
        """Segments of at most `length` units in a seeded order, (samples,) each, until there are `wanted` units."""
        length = min(length, sum(recording.units for recording in self.recordings))
        for number, segment in enumerate(self.plan(length, seed=keys[0], epoch=0)):
            if number * length >= wanted:
                return
            yield self.read(segment, *keys, number)[0]

    def _piece(self, piece: Piece, draw: np.random.Generator) -> tuple[np.ndarray, Piece]:
        recording = self.recordings[piece.file]
        part = parts(recording.path, self.rate_hz)

        def cut(start: int) -> np.ndarray:
            return part(start * self.unit_samples, piece.units * self.unit_samples)

        if piece.start is not None:
            return cut(piece.start), piece
        loudest, best = -1.0, None
        for start in draw.integers(0, recording.units - piece.units + 1, TRIES).tolist():
            crop = cut(start)
            loudness = float(np.sqrt(np.mean(crop**2)))
            if loudness > loudest:
                loudest, best = loudness, (crop, Piece(piece.file, start, piece.units))
            if loudness >= QUIET:
                break
        assert best is not None
        return best


def find(folder: Path, option: str) -> list[Path]:
    """The recordings in a folder and those below it, in order. Raises InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"{option} {folder}: no such folder")
    found = recordings_in(folder)
    if not found:
        raise InputError(f"{option} {folder}: holds no recordings ({', '.join(audio.FORMATS)})")
    each(found, _check_link)
    return found


def recordings_in(folder: Path) -> list[Path]:
    """The recordings in a folder and those below it, in order, and links to none that are named like them."""
    return sorted(path for path in folder.rglob("*") if _is_recording(path))


def _is_recording(path: Path) -> bool:
    """By its name; hidden files, such as those that macOS puts beside others on foreign disks, are none."""
    named = path.suffix.lower() in audio.FORMATS and not path.name.startswith(".")
    return named and (path.is_file() or (path.is_symlink() and not path.exists()))


def _check_link(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path}: is a link to no file; remove it or bring back what it points to")


def check_outside(
    made: Path, folders: Mapping[str, Path], option: str = "--output-dir", what: str = "its samples"
) -> None:
    """Raise InputError where `what` is made in `made`, by `option`, would be found in one of these {option: folder}."""
    for searched, folder in folders.items():
        if made.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{option} {made}: is inside {searched} {folder}, and {what} would be taken for recordings: "
                "give another folder"
            )


def check_held_out(trained: Sequence[Path], held_out: Sequence[Path], named: Mapping[str, Path], remedy: str) -> None:
    """Raise InputError where a recording is trained on and validated on; `named` is {option: what names them}."""
    (train_option, train_folder), (val_option, val_folder) = named.items()
    if both := {path.resolve() for path in trained} & {path.resolve() for path in held_out}:
        raise InputError(
            f"{val_option} {val_folder}: {min(both).name} is one of the recordings in {train_option} {train_folder} "
            f"too: {remedy}"
        )


def source(
    paths: Sequence[Path], rate_hz: int, unit_samples: int, units: Callable[[Path], int] | None = None
) -> Source:
    """Look at every file's length; those that cannot be read or hold nothing are an InputError that names them.

    Where codes are there already, `units` says how many a file has; otherwise it is what can be decoded of it.
    """

    def decoded(path: Path) -> int:
        return -(-round(audio.length_s(path) * rate_hz) // unit_samples)

    def recording(path: Path) -> Recording:
        if count := (units or decoded)(path):
            return Recording(path, count)
        raise InputError(f"{path}: holds no audio samples at {rate_hz} Hz")

    return Source(each(paths, recording), rate_hz, unit_samples)


def each(paths: Iterable[Path], look: Callable[[Path], T]) -> list[T]:
    """What `look` finds in each file. Those that it refuses are one InputError that names them."""
    found, bad = tried(paths, look)
    if bad:
        raise _refused(bad)
    return found


def tried(items: Iterable[Item], look: Callable[[Item], T]) -> tuple[list[T], list[tuple[Item, InputError]]]:
    """What `look` finds in each item, and the items that it refuses.

    A cache that cannot be written is no item's fault, and ends the search.
    """
    found, bad = [], []
    for item in items:
        try:
            found.append(look(item))
        except CacheError:
            raise
        except InputError as error:
            bad.append((item, error))
    return found, bad


def _refused(bad: Sequence[tuple[Path, InputError]]) -> InputError:
    """One error for these files: the first one's, and the names of some others."""
    (_, first), others = bad[0], bad[1:]
    if not others:
        return first
    names = ", ".join(str(path) for path, _ in others[: NAMED - 1])
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return InputError(f"{first}; {len(bad)} files are bad, also {names}{more}")


def fingerprint(found: Source) -> str:
    """A hash of the recordings' names, lengths and ends, to tell whether a run may continue on them."""
    digest = hashlib.sha256()
    for recording in found.recordings:
        digest.update(f"{recording.path.name} {recording.units}\n".encode())
        digest.update(_ends(recording.path))
    return digest.hexdigest()


def _ends(path: Path) -> bytes:
    """A file's size and first and last bytes: what is recorded anew, or processed, has others."""
    with path.open("rb") as file:
        first = file.read(END)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - END))
        return size.to_bytes(8, "big") + first + file.read()


def batches_of(items: Sequence, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one maybe shorter."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
