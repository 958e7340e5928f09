"""Files that are either whole or not there."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
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


def behind_link(path: Path) -> Path:
    """What a symbolic link leads to in the end, whether or not it is there yet; any other path as it is."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def check_target(path: Path) -> None:
    """Raise InputError where `path`, or what it links to, exists and is no regular file: it would be replaced."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing is there, or writing says why it cannot be reached
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a device or pipe"
        raise InputError(f"{path}: cannot be written, it is {kind}; give the name of a file")


def check_folder(folder: Path, what: str) -> None:
    """Raise InputError, which begins with `what`, where `folder`, there or yet to be made, can take no files."""
    existing = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{what}: cannot be written, {existing} is not a folder that you may write to")


def check_apart(output: Path, given: Iterable[Path], what: str, option: str = "--output") -> None:
    """Raise InputError where writing `output`, which `option` names, would replace one of `given`, which is `what`."""
    if any(_same(output, one) for one in given):
        raise InputError(f"{option} {output}: is {what}; give another name")


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one.expanduser(), other.expanduser())
    except OSError:
        return False  # what is not there cannot be replaced


def write_atomically(path: Path, write: Callable[[Path], object], *, shared: bool = False) -> Path:
    """Let `write` make a file under a temporary name beside `path`, then put it in place; returns `path`.

    A symbolic link stays, and what it leads to is replaced. Raises InputError where that is a directory, device or
    pipe. `shared`: several processes may write this path at once, so each uses a name of its own.
    """
    check_target(path)
    final = behind_link(path)  # the temporary name keeps the suffix of `path`, which may name a format
    staging = final.with_name(f".{path.stem}{f'.{os.getpid()}' if shared else ''}.tmp{path.suffix}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        write(staging)
        sync(staging)
        os.replace(staging, final)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}): check the folder and its free space"
        ) from error
    finally:
        with suppress(OSError):
            staging.unlink(missing_ok=True)
    sync(final.parent)
    return path
