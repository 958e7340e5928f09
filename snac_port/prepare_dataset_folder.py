"""Split a folder of recordings into train/ and val/.

    python -m snac_port.prepare_dataset_folder --input_dir recordings --train_ratio 0.95 --output_dir dataset

A recording's side depends on the hash of its own path below the input folder (or of its speaker's folder), so adding
files moves none of the others. Where that would leave a side empty the nearest goes there; `split.json` beside train/
and val/ keeps it there in later splits of the same ratio, and tells what an earlier split made from what it did not.
"""

import hashlib
import json
import shutil
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from backends import cli
from backends.atomic import check_folder, write_text
from backends.data import audio
from backends.data.segments import find, recordings_in
from backends.errors import InputError

TOLERANCE_S = 0.1  # of what a header says; decoders add or drop a frame
SIDES = ("train", "val")
RECORD = "split.json"
UNREAD = (".m4a", ".aac", ".opus", ".wma", ".aif", ".aiff", ".caf", ".mp4", ".webm")  # audio that is not read here


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
    _apart(options)
    check_folder(options.output_dir, f"--output_dir {options.output_dir}")
    earlier = Split.read(options.output_dir)
    _check_own(options.output_dir, {*earlier.sides, *(_relative(path, options) for path in paths)})
    problems = {path: _problem(path) for path in tqdm(paths, desc="checking", unit="file")}
    for line in _report([problem for problem in problems.values() if problem] + _unread(options.input_dir)):
        print(line)
    for path in paths:
        if not problems[path] and (said := _shorter(path)):
            print(said)
    split = earlier.renewed([_relative(path, options) for path in paths if not problems[path]], options)
    split.place(options, earlier)
    counts = [list(split.sides.values()).count(side) for side in SIDES]
    print(f"{options.output_dir}: {counts[0]} recordings in train/, {counts[1]} in val/")


@dataclass(frozen=True)
class Split:
    """The side of each recording, by its path below the input folder, and what the split was made with."""

    sides: dict[str, str]
    train_ratio: float = 0.0
    by_speaker: bool = False

    @classmethod
    def read(cls, folder: Path) -> "Split":
        """What an earlier split of this output folder made; nothing where there was none."""
        try:
            return cls(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls({})
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{folder / RECORD}: not readable as an earlier split's list ({error})") from error

    def renewed(self, names: list[str], options: PrepareOptions) -> "Split":
        """The split of these recordings. Those that this one has stay where they are, if the options are the same."""
        keys = {name: name.partition("/")[0] if options.by_speaker else name for name in names}
        ordered = sorted(set(keys.values()), key=_share)
        if len(ordered) < 2:
            what = "speaker" if options.by_speaker else "recording"
            found = f"{len(ordered)} usable {what}(s), two sides need at least 2"
            raise InputError(f"--input_dir {options.input_dir}: {found}")
        sides = {key: side_of(key, options.train_ratio) for key in ordered}
        if (self.train_ratio, self.by_speaker) == (options.train_ratio, options.by_speaker):
            sides |= {keys[name]: side for name, side in self.sides.items() if name in keys}
        for key, side in ((ordered[0], "train"), (ordered[-1], "val")):
            if side not in sides.values():
                print(f"{side}/ would be empty: {key}, the nearest to it, goes there")
                sides[key] = side
        return Split({name: sides[key] for name, key in keys.items()}, options.train_ratio, options.by_speaker)

    def place(self, options: PrepareOptions, earlier: "Split") -> None:
        """Make the links or copies, and take away those of the earlier split that are none of this one.

        Raises InputError, before anything is touched, where something else is in the way.
        """
        source, target = options.input_dir, options.output_dir
        for name in self.sides.keys() - earlier.sides.keys():
            for side in SIDES:
                _check_free(target / side / name, source / name)
        _check_own(target, earlier.sides | self.sides)
        target.mkdir(parents=True, exist_ok=True)
        both = earlier.sides | self.sides
        _write(target, replace(self, sides=both))  # so that what is cut short can be taken up
        for name in both:
            for side in SIDES:
                if self.sides.get(name) != side:
                    (target / side / name).unlink(missing_ok=True)
        for name, side in self.sides.items():
            _place(source / name, target / side / name, options.mode)
        _write(target, self)


def side_of(key: str, train_ratio: float) -> str:
    """ "train" or "val", by the hash of `key`."""
    return "train" if _share(key) < train_ratio else "val"


def _share(key: str) -> float:
    """A number from 0 to 1 that depends on `key` alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _relative(path: Path, options: PrepareOptions) -> str:
    return path.relative_to(options.input_dir).as_posix()


def _write(folder: Path, split: Split) -> None:
    write_text(folder / RECORD, json.dumps(asdict(split), indent=1, ensure_ascii=False) + "\n")


def _check_free(target: Path, source: Path) -> None:
    """Nothing may be at `target` but a link to the recording, which a split from before there was a list had made."""
    if target.is_symlink():
        if target.readlink() == source.resolve():
            return
    elif not target.exists():
        return
    raise InputError(f"{target}: is in the way, and no earlier split made it: move it, or give another --output_dir")


def _check_own(folder: Path, known: Container[str]) -> None:
    """Nothing but what splits have put there may be found in train/ and val/, as training will look there."""
    for side in SIDES:
        for path in recordings_in(folder / side):
            if path.relative_to(folder / side).as_posix() not in known:
                raise InputError(
                    f"{folder / side}: holds recordings that no earlier split put there, such as {path.name}: "
                    "move them, or give another --output_dir"
                )


def _problem(path: Path) -> str:
    try:
        audio.audible_s(path)
    except InputError as error:
        return str(error)
    return ""


def _shorter(path: Path) -> str:
    """What to say of a file (MP3) that holds less than its header estimates; it is kept, as long as it is."""
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


def _apart(options: PrepareOptions) -> None:
    """The recordings must be safe from what is written."""
    given = options.input_dir.resolve()
    if options.output_dir.resolve().is_relative_to(given):
        raise InputError(f"--output_dir {options.output_dir}: is inside --input_dir; give another folder")
    for made in ((options.output_dir / side).resolve() for side in SIDES):
        if made.is_relative_to(given) or given.is_relative_to(made):
            raise InputError(
                f"--output_dir {options.output_dir}: its {made.name}/ would hold --input_dir {options.input_dir} or be "
                "in it; give another folder"
            )


def _unread(folder: Path) -> list[str]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in UNREAD)
    return [f"{path}: {path.suffix} is not read here; convert it to WAV or FLAC" for path in found]


def _report(bad: list[str]) -> Iterator[str]:
    if bad:
        yield f"left out {len(bad)}:"
        yield from (f"  {line}" for line in bad)


if __name__ == "__main__":
    cli.run(main, PrepareOptions)
