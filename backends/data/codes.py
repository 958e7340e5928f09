"""Codec codes of audio files, computed once and kept on disk by content and codec."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backends.atomic import sha256, write_atomically
from backends.errors import InputError

# Raise it with every change of a codec's encoder, or of how recordings are read or cut for it, after which some audio
# has other codes: those kept from before are then made anew.
ENCODING = 2


class CacheError(InputError):
    """Codes cannot be kept, of this recording or of any other."""


def default_cache() -> Path:
    """$AUDIOSMITH_CACHE, else audiosmith in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("AUDIOSMITH_CACHE") or Path(base) / "audiosmith")


def identity(fingerprint: str, settings: Mapping[str, Any]) -> str:
    """Of a codec, by its weights' fingerprint and its configuration, not all of which a tensor's shape shows."""
    return hashlib.sha256(f"{fingerprint} {json.dumps(settings, sort_keys=True)}".encode()).hexdigest()


@dataclass(frozen=True)
class CodeCache:
    """Codes (K, T) of audio files for one codec: `directory`/codes/<codec identity>_<ENCODING>/<content hash>.npy."""

    encode: Callable[[Path], np.ndarray]
    identity: str
    directory: Path
    _contents: dict[tuple[Path, int, int], str] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, path: Path) -> np.ndarray:
        """The codes of an audio file, int32 (K, T); encodes it only if its content is new to this codec.

        Raises CacheError, before it encodes if that is known by then, where they cannot be kept.
        """
        file = self.folder / f"{self._content(path)}.npy"
        codes = _read(file)
        if codes is None:
            with self._told():
                file.parent.mkdir(parents=True, exist_ok=True)
            codes = np.ascontiguousarray(self.encode(path), dtype=np.int32)
            with self._told():
                write_atomically(file, lambda staging: np.save(staging, codes, allow_pickle=False), shared=True)
        return codes

    @property
    def folder(self) -> Path:
        """Where the codes are kept."""
        return self.directory / "codes" / f"{self.identity[:16]}_{ENCODING}"

    def _content(self, path: Path) -> str:
        """The hash of a file's content; one whose size and time are as before is not read again."""
        about = path.stat()
        key = path, about.st_size, about.st_mtime_ns
        if key not in self._contents:
            self._contents[key] = sha256(path)
        return self._contents[key]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What cannot be written inside is an error of the cache folder."""
        try:
            yield
        except (OSError, InputError) as error:
            reason = getattr(error.__cause__ or error, "strerror", None) or error
            raise CacheError(
                f"{self.directory}: codes cannot be kept in this cache folder ({reason}): check it and its free space, "
                "or name another folder in $AUDIOSMITH_CACHE"
            ) from error


def _read(file: Path) -> np.ndarray | None:
    """The cached array, or None where there is none or it is damaged."""
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
