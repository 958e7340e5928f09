"""From a folder of music to clips of codes. Framework-free.

A recording is encoded once, in pieces of half a minute, and kept on disk by content and codec. `name.json` beside
`name.wav` may hold its description.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from backends.data.codes import CodeCache
from backends.data.segments import each
from backends.data.text import check_text
from backends.errors import InputError
from musicgen_mlx.config import EncodecConfig

KEY = "description"
PIECE_S = 30.0


@dataclass(frozen=True)
class Clip:
    """Codes (K, T) of a recording and what it is described as."""

    path: Path
    codes: np.ndarray
    text: str = ""

    def __len__(self) -> int:
        return self.codes.shape[1]


def clips(paths: Sequence[Path], cache: CodeCache, *, texts: bool, quiet: bool = False) -> list[Clip]:
    """The recordings as clips, with their descriptions if `texts`."""
    described = each(paths, description) if texts else [""] * len(paths)
    with tqdm(paths, desc="encoding", unit="file", disable=quiet) as bar:
        return [Clip(*found) for found in zip(paths, each(bar, cache), described, strict=True)]


def description(path: Path, check: Callable[[str], object] = check_text) -> str:
    """What `name.json` beside a recording says of it; "" where there is none.

    Raises InputError, which names the file, for what is no text, and for what `check` refuses.
    """
    file = path.with_suffix(".json")
    if not file.is_file():
        return ""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))  # some editors begin files with a mark
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f'{file}: not readable as JSON ({error}); expected {{"{KEY}": "..."}}') from error
    text = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(text, str):
        raise InputError(f'{file}: expected {{"{KEY}": "..."}}')
    try:
        check(text)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return text.strip()


def any_description(paths: Sequence[Path]) -> str:
    """The first description that there is. Raises InputError where there is none."""
    for path in paths:
        if text := description(path):
            return text
    raise InputError(
        f"{paths[0].parent}: no recording has a description: write {paths[0].stem}.json with "
        f'{{"{KEY}": "..."}}, or train with --conditioner none'
    )


def pieces(samples: int, codec: EncodecConfig) -> list[tuple[int, int]]:
    """Where recordings of so many samples are cut to be encoded: starts and stops, `PIECE_S` seconds apart.

    A rest shorter than half a piece stays with the one before it, since a codec needs some surroundings.
    """
    length = round(PIECE_S * codec.frame_hz) * codec.frame_samples
    edges = [index * length for index in range(max(1, round(samples / length)))] + [samples]
    return list(zip(edges, edges[1:], strict=False))


def split(paths: Sequence[Path], share: float) -> tuple[list[Path], list[Path]]:
    """Training and validation recordings. The choice hangs on names alone, so that it is the same wherever they lie."""
    if not share:
        return list(paths), []
    place = {path: hashlib.sha256(path.name.encode()).hexdigest() for path in paths}
    held = set(sorted(paths, key=place.__getitem__)[: max(1, round(share * len(paths)))])
    if len(held) == len(paths):
        raise InputError(f"--val-split {share} of {len(paths)} recordings leaves none to train on: add recordings")
    return [path for path in paths if path not in held], [path for path in paths if path in held]


def fingerprint(found: Sequence[Clip]) -> str:
    """A hash of the clips' codes and descriptions, to tell whether a run may continue on them."""
    digest = hashlib.sha256()
    for clip in found:
        digest.update(clip.codes.tobytes() + clip.text.encode())
    return digest.hexdigest()
