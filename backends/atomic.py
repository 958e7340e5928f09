"""Files that are either whole or not there."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from backends.errors import InputError


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Bring a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> Path:
    """Put a UTF-8 text file in place atomically; returns `path`."""
    return write_atomically(path, lambda staging: staging.write_text(text, encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[Path], object], *, shared: bool = False) -> Path:
    """Let `write` make a file under a temporary name beside `path`, then put it in place; returns `path`.

    `shared`: several processes may write this path at once, so each uses a name of its own.
    """
    staging = path.with_name(f".{path.stem}{f'.{os.getpid()}' if shared else ''}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(staging)
        sync(staging)
        os.replace(staging, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}): check the folder and its free space"
        ) from error
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)
    sync(path.parent)
    return path
