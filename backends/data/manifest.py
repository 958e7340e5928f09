"""Speech manifests: JSON lists of clips, or of conversations, checked row by row."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from backends.data.text import check_text
from backends.errors import InputError

NAMED = 5  # bad rows, by one error
KEYS = ("text", "audio_path", "speaker_id", "speaker")


@dataclass(frozen=True)
class Clip:
    """One utterance: what is said, the file it is in, and who says it."""

    text: str
    audio_path: Path
    speaker: int = 0


Conversation = tuple[Clip, ...]


def read_manifest(path: Path) -> list[Conversation]:
    """Read a JSON list of clips `{"text", "audio_path", "speaker_id"}`, or of lists of them (conversations).

    `speaker` is another name for `speaker_id`; both default to 0. A relative audio path is looked up beside the JSON
    file, then in the working directory. Raises InputError that names the first bad rows and counts the others.
    """
    rows = _rows(path)
    conversations, problems = [], []
    for number, row in enumerate(rows, 1):
        try:
            turns = row if isinstance(row, list) else [row]
            if not turns:
                raise InputError("an empty conversation")
            conversations.append(tuple(_clip(turn, path.parent) for turn in turns))
        except InputError as error:
            problems.append(f"row {number}: {error}")
    if problems:
        more = f" (and {len(problems) - NAMED} more bad rows)" if len(problems) > NAMED else ""
        raise InputError(f"{path}: {'; '.join(problems[:NAMED])}{more}")
    return conversations


def write_manifest(clips: Sequence[Clip]) -> str:
    """The JSON text of a flat manifest."""
    rows = [{"text": clip.text, "audio_path": str(clip.audio_path), "speaker_id": clip.speaker} for clip in clips]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _rows(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such dataset file; make one with python -m csm_mlx.finetune.create_dataset"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON, line {error.lineno} column {error.colno}: {error.msg}") from error
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: expected a non-empty JSON list of clips or conversations")
    return rows


def _clip(row: Any, folder: Path) -> Clip:
    if not isinstance(row, dict):
        raise InputError(f"expected an object with {', '.join(KEYS[:3])}, found {type(row).__name__}")
    for key in row:
        if key not in KEYS:
            close = get_close_matches(key, KEYS, 1, cutoff=0.75)  # "extra" is as like "text" as 0.67
            known = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(KEYS)}"
            raise InputError(f"unknown key {key!r}, {known}")
    text, audio_path = row.get("text"), row.get("audio_path")
    if not isinstance(text, str) or not text.strip():
        raise InputError("'text' must be a non-empty string")
    check_text(text)
    if not isinstance(audio_path, str) or not audio_path:
        raise InputError("'audio_path' must be a non-empty string")
    path = _locate(Path(audio_path).expanduser(), folder)
    if not path.is_file():
        raise InputError(f"{path}: no such audio file")
    return Clip(text.strip(), path, _speaker(row))


def _speaker(row: dict) -> int:
    given = [row[key] for key in ("speaker_id", "speaker") if key in row]
    if len(given) == 2 and given[0] != given[1]:
        raise InputError(f"'speaker_id' is {given[0]!r} and 'speaker' is {given[1]!r}: give one of them")
    speaker = given[0] if given else 0
    if isinstance(speaker, bool) or not isinstance(speaker, int) or speaker < 0:
        raise InputError(f"'speaker_id' must be a whole number from 0, found {speaker!r}")
    return speaker


def _locate(path: Path, folder: Path) -> Path:
    if path.is_absolute():
        return path
    beside = folder / path
    return beside if beside.exists() or not path.exists() else path
