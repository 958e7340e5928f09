"""Audio samples made during a run: WAV files and an index that the report reads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.atomic import write_text
from backends.base import Sample
from backends.data import audio
from backends.errors import InputError


@dataclass(frozen=True)
class Kept:
    """A sample on disk: `file` is a name in the run's samples/ directory."""

    step: int
    name: str
    caption: str
    file: str


def keep(run: Path, step: int, samples: Sequence[Sample]) -> None:
    """Write the samples of `step` and add them to the index, replacing an earlier attempt at the same step."""
    before = kept(run)
    entries = [entry for entry in before if entry.step < step]
    for sample in samples:
        file = f"step_{step:06d}_{sample.name}.wav"
        audio.write(run / "samples" / file, sample.audio, sample.rate_hz)
        entries.append(Kept(step, sample.name, sample.caption, file))
    if entries != before:
        text = json.dumps([entry.__dict__ for entry in entries], indent=1)
        write_text(run / "samples" / "index.json", text)


def kept(run: Path) -> list[Kept]:
    """The samples of a run, oldest first."""
    index = run / "samples" / "index.json"
    if not index.exists():
        return []
    try:
        return [Kept(**entry) for entry in json.loads(index.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise InputError(f"{index}: not the index of a run's samples ({error}): remove it and run again") from error
