"""Split a folder of recordings into train/ and val/.

    python -m snac_port.prepare_dataset_folder --input_dir recordings --train_ratio 0.95 --output_dir dataset

A recording's side depends on the hash of its own path below the input folder (or of its speaker's folder) alone, so
adding files moves none of the others.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from backends import cli
from backends.data import audio
from backends.data.segments import find
from backends.data.wav import check_whole
from backends.errors import InputError

TOLERANCE_S = 0.1  # of what a header says; decoders add or drop a frame


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Split a folder of recordings into train/ and val/."""

    input_dir: Path
    """Folder of recordings; folders below it count too."""
    output_dir: Path
    """Where train/ and val/ are made."""
    train_ratio: float = 0.95
    """Share of the recordings (or speakers) that goes to train/."""
    by_speaker: bool = False
    """Split by the first folder below input_dir, so that nobody is on both sides."""
    mode: Literal["link", "copy"] = "link"
    """Make links to the recordings, or copies."""

    def __post_init__(self) -> None:
        if not 0 < self.train_ratio < 1:
            raise InputError(f"--train_ratio {self.train_ratio}: expected a share between 0 and 1")


def main(options: PrepareOptions) -> None:
    """Check every recording, split, and say what was left out."""
    paths = find(options.input_dir, "--input_dir")
    _not_inside(options)
    problems = {path: _problem(path) for path in tqdm(paths, desc="checking", unit="file")}
    for line in _report([problem for problem in problems.values() if problem]):
        print(line)
    for path in paths:
        if not problems[path] and (said := _shorter(path)):
            print(said)
    sides = _sides([path for path in paths if not problems[path]], options)
    for path, side in sides.items():
        relative = path.relative_to(options.input_dir)
        other = "val" if side == "train" else "train"
        (options.output_dir / other / relative).unlink(missing_ok=True)  # where an earlier split had put it
        _place(path, options.output_dir / side / relative, options.mode)
    counts = [list(sides.values()).count(side) for side in ("train", "val")]
    print(f"{options.output_dir}: {counts[0]} recordings in train/, {counts[1]} in val/")


def side_of(key: str, train_ratio: float) -> str:
    """ "train" or "val", by the hash of `key`."""
    return "train" if _share(key) < train_ratio else "val"


def _share(key: str) -> float:
    """A number from 0 to 1 that depends on `key` alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _sides(paths: list[Path], options: PrepareOptions) -> dict[Path, str]:
    """The side of each recording. Where one side would be empty, the key nearest to it goes there."""
    keys = {path: _key(path, options) for path in paths}
    ordered = sorted(set(keys.values()), key=_share)
    if len(ordered) < 2:
        what = "speaker" if options.by_speaker else "recording"
        raise InputError(f"--input_dir {options.input_dir}: {len(ordered)} usable {what}(s), two sides need at least 2")
    sides = {key: side_of(key, options.train_ratio) for key in ordered}
    sides[ordered[0]], sides[ordered[-1]] = "train", "val"
    return {path: sides[key] for path, key in keys.items()}


def _key(path: Path, options: PrepareOptions) -> str:
    relative = path.relative_to(options.input_dir)
    return relative.parts[0] if options.by_speaker else relative.as_posix()


def _problem(path: Path) -> str:
    try:
        audio.audible_s(path)
    except InputError as error:
        return str(error)
    return ""


def _shorter(path: Path) -> str:
    """What to say of a file that holds less than its header promises; it is kept, as long as it is."""
    try:
        check_whole(path)
    except InputError as error:
        return f"{error}. It is kept"
    promised_s, length_s = audio.duration_s(path), audio.length_s(path)
    if length_s >= promised_s - TOLERANCE_S:
        return ""
    return f"{path}: its header says {promised_s:.2f} s, {length_s:.2f} s can be decoded: was it cut? It is kept"


def _place(path: Path, target: Path, mode: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if mode == "copy":
        shutil.copyfile(path, target)
    else:
        target.symlink_to(path.resolve())


def _not_inside(options: PrepareOptions) -> None:
    if options.output_dir.resolve().is_relative_to(options.input_dir.resolve()):
        raise InputError(f"--output_dir {options.output_dir}: is inside --input_dir; give another folder")


def _report(bad: list[str]) -> Iterator[str]:
    if bad:
        yield f"left out {len(bad)}:"
        yield from (f"  {line}" for line in bad)


if __name__ == "__main__":
    cli.run(main, PrepareOptions)
