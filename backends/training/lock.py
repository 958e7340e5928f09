"""One process at a time in a run directory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from backends.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

FILE = ".run.lock"


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold the run directory, which is made if need be. Raises InputError where another process holds it.

    The system lets go when the process ends, however it ends; the file stays, since one that is removed could be
    locked by two. Systems and file systems without such locks go without.
    """
    path = run / FILE
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(
            f"--output-dir {run}: cannot be written ({error.strerror or error}): check the folder and its free space"
        ) from error
    try:
        _take(descriptor, run)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, run: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        raise InputError(
            f"--output-dir {run}: in use by another process{f' (pid {holder})' if holder else ''}: "
            "wait for it to end, or give another --output-dir"
        ) from error
    except OSError:  # a file system without locks
        return
    with suppress(OSError):  # a full disk: the number is only for people to read
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
