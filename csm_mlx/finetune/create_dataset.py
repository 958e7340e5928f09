"""Make a dataset JSON from a folder of recordings and transcripts.

    python -m csm_mlx.finetune.create_dataset --audio-dir recordings --output-json dataset.json

A recording `a.wav` goes with `a.normalized.txt`, else `a.original.txt`, else `a.txt`. A folder with LJSpeech's
`metadata.csv` (id|text|normalised text) is read from that.
"""

import csv
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from backends import cli
from backends.atomic import check_apart, write_text
from backends.data.audio import audible_s, duration_s
from backends.data.manifest import Clip, write_manifest
from backends.errors import InputError

SUFFIXES = ("normalized.txt", "original.txt", "txt")
NAMED = 5  # recordings left out, where none is left


@dataclass(frozen=True, kw_only=True)
class CreateDatasetOptions:
    """Make a dataset JSON from a folder of recordings with transcripts beside them."""

    audio_dir: Path
    """Folder of recordings."""
    output_json: Path = Path("dataset.json")
    """The JSON file to write."""
    default_speaker: int = 0
    """Speaker id of every clip."""
    speaker_per_folder: bool = False
    """Number the speakers by the folders their recordings are in, instead of the default speaker."""
    recursive: bool = False
    """Also look in the folders below."""
    transcript_suffix: str | None = None
    """Only transcripts that end in this, e.g. normalized.txt; default: normalized.txt, original.txt, then txt."""
    audio_ext: str = "wav"
    """Extension of the recordings."""
    metadata: Path | None = None
    """LJSpeech's metadata.csv; default: the one in the folder, if there is one."""
    max_samples: int | None = None
    """Stop after so many clips."""
    max_audio_length_ms: float = 160_000
    """Leave out longer recordings. CSM's 2048 positions of 80 ms hold no more; a text takes some of them too."""

    def __post_init__(self) -> None:
        if self.output_json.suffix.lower() != ".json":
            raise InputError(f"--output-json {self.output_json}: expected a name that ends in .json")
        if not 0 < self.max_audio_length_ms < math.inf:
            raise InputError(f"--max-audio-length-ms {self.max_audio_length_ms}: expected a positive number")
        if self.max_samples is not None and self.max_samples < 1:
            raise InputError(f"--max-samples {self.max_samples}: expected at least 1")
        if self.speaker_per_folder and self.default_speaker:
            raise InputError("--speaker-per-folder and --default-speaker exclude each other: give one of them")
        if self.default_speaker < 0:
            raise InputError(f"--default-speaker {self.default_speaker}: expected a whole number from 0")


@dataclass(frozen=True)
class Skipped:
    """A recording left out, and why."""

    path: Path
    reason: str


def main(options: CreateDatasetOptions) -> None:
    """Write the dataset and say what is in it and what was left out."""
    clips, skipped = create_dataset(options)
    for line in _report_skipped(skipped, len(skipped) if clips else NAMED):
        print(line)
    if not clips:
        raise InputError(
            f"--audio-dir {options.audio_dir}: no .{options.audio_ext} recording with a transcript; "
            f"expected e.g. a.{options.audio_ext} beside a.txt"
        )
    path = write_text(options.output_json, write_manifest(_relative(clips, options.output_json.parent)))
    minutes = sum(duration_s(clip.audio_path) for clip in clips) / 60
    speakers = sorted({clip.speaker for clip in clips})
    print(f"wrote {path}: {len(clips)} clips, {minutes:.1f} minutes, speakers {', '.join(map(str, speakers))}")
    print(f"next: python -m csm_mlx.finetune.finetune_lora --data-path {path}")


def create_dataset(options: CreateDatasetOptions) -> tuple[list[Clip], list[Skipped]]:
    """The clips found, in the order of their paths, and the recordings left out."""
    if not options.audio_dir.is_dir():
        raise InputError(f"--audio-dir {options.audio_dir}: no such folder")
    clips, skipped = [], []
    for candidate in tqdm(_candidates(options), desc="reading", unit="clip"):
        checked = _checked(candidate, options.max_audio_length_ms)
        (skipped if isinstance(checked, Skipped) else clips).append(checked)
        if options.max_samples is not None and len(clips) >= options.max_samples:
            break
    return (_by_folder(clips) if options.speaker_per_folder else clips), skipped


def _candidates(options: CreateDatasetOptions) -> Iterator[Clip | Skipped]:
    metadata = options.metadata or options.audio_dir / "metadata.csv"
    if options.metadata is not None or metadata.is_file():
        if options.recursive or options.transcript_suffix is not None:
            raise InputError(
                f"{metadata} names the recordings and their texts: leave out --recursive and --transcript-suffix, "
                "or move it away"
            )
        return _from_metadata(metadata, options)
    return _from_folder(options)


def _from_folder(options: CreateDatasetOptions) -> Iterator[Clip | Skipped]:
    extension = options.audio_ext.lstrip(".")
    every = options.audio_dir.glob("**/*" if options.recursive else "*")
    found = (path for path in every if path.suffix.lower() == f".{extension.lower()}")
    suffixes = SUFFIXES if options.transcript_suffix is None else (options.transcript_suffix.lstrip("."),)
    for path in sorted(found):
        transcript = next((p for p in (path.with_suffix(f".{suffix}") for suffix in suffixes) if p.is_file()), None)
        if transcript is None:
            yield Skipped(path, f"no transcript ({', '.join(f'.{suffix}' for suffix in suffixes)})")
        else:
            check_apart(options.output_json, [transcript], "the transcript of a recording", "--output-json")
            yield _read(path, transcript, options.default_speaker)


def _read(path: Path, transcript: Path, speaker: int) -> Clip | Skipped:
    try:
        text = transcript.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        return Skipped(path, f"{transcript.name} is not UTF-8 text")
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    return Clip(" ".join(text.split()), path, speaker)


def _from_metadata(metadata: Path, options: CreateDatasetOptions) -> Iterator[Clip | Skipped]:
    """LJSpeech: a row id|text|normalised text; the sound is wavs/id.wav or id.wav."""
    check_apart(options.output_json, [metadata], "the list of recordings", "--output-json")
    try:
        lines = metadata.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--metadata {metadata}: cannot be read ({error})") from error
    if not any("|" in line for line in lines):
        raise InputError(f"{metadata}: expected LJSpeech's rows id|text; move it away if it is something else")
    for row in csv.reader(lines, delimiter="|", quoting=csv.QUOTE_NONE):
        if not row:
            continue
        name = f"{row[0]}.{options.audio_ext.lstrip('.')}"
        places = [metadata.parent / "wavs" / name, options.audio_dir / name]
        path = next((place for place in places if place.is_file()), places[0])
        text = next((cell.strip() for cell in reversed(row[1:]) if cell.strip()), "")
        yield Clip(text, path, options.default_speaker)


def _checked(clip: Clip | Skipped, longest_ms: float) -> Clip | Skipped:
    """Whether a clip can be trained on: everything that training would refuse is found now."""
    if isinstance(clip, Skipped):
        return clip
    if not clip.text:
        return Skipped(clip.audio_path, "its transcript is empty")
    try:
        seconds = audible_s(clip.audio_path)
    except InputError as error:
        return Skipped(clip.audio_path, str(error).removeprefix(f"{clip.audio_path}: "))
    if seconds > longest_ms / 1000:
        limit = f"--max-audio-length-ms {longest_ms:g}"
        return Skipped(clip.audio_path, f"lasts {seconds:.2f} s, longer than {limit}: cut it where the text can be cut")
    return clip


def _by_folder(clips: list[Clip]) -> list[Clip]:
    """Number folders from 0 in their order; folders whose names are all numbers keep them.

    Raises InputError where two of these name one number: whether that is one speaker or two, no numbering can know.
    """
    folders = sorted({clip.audio_path.parent for clip in clips})
    if all(folder.name.isdecimal() for folder in folders):
        ids = {folder: int(folder.name) for folder in folders}
        first = {speaker: folder for folder, speaker in reversed(ids.items())}
        again = next((folder for folder, speaker in ids.items() if first[speaker] != folder), None)
        if again is not None:
            raise InputError(
                f"--speaker-per-folder: {first[ids[again]]} and {again} would both be speaker {ids[again]}: rename "
                "one, or put what one speaker says into one folder"
            )
    else:
        ids = {folder: index for index, folder in enumerate(folders)}
    for folder, speaker in ids.items():
        print(f"speaker {speaker}: {folder}")
    return [replace(clip, speaker=ids[clip.audio_path.parent]) for clip in clips]


def _relative(clips: list[Clip], folder: Path) -> list[Clip]:
    """Paths below the JSON's folder are written relative to it, so that the two can be moved together."""
    folder, written = folder.resolve(), []
    for clip in clips:
        path = clip.audio_path.resolve()
        inside = path.is_relative_to(folder)
        written.append(replace(clip, audio_path=Path(os.path.relpath(path, folder)) if inside else path))
    return written


def _report_skipped(skipped: list[Skipped], most: int) -> list[str]:
    """How many were left out, and lines for `most` of them."""
    if not skipped:
        return []
    more = [f"  and {len(skipped) - most} more"] if len(skipped) > most else []
    return [f"left out {len(skipped)}:", *(f"  {item.path}: {item.reason}" for item in skipped[:most]), *more]


if __name__ == "__main__":
    cli.run(main, CreateDatasetOptions)
