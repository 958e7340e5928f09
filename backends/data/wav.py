"""WAV files that were cut: libsndfile takes what is there of them in silence."""

import os
import struct
from pathlib import Path

from backends.errors import InputError

LARGEST_DATA = 0x7FFF0000  # bytes: what streams a WAV file writes more than this, not knowing its length


def check_whole(path: Path) -> None:
    """Raise InputError where a WAV file holds less sound than its header announces. Other formats pass."""
    try:
        held, announced = _data_bytes(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if held < announced:
        raise InputError(
            f"{path}: is cut: holds {held} of the {announced} bytes of sound that its header announces; copy it again"
        )


def _data_bytes(path: Path) -> tuple[int, int]:
    """Bytes of sound that the file holds and that its header announces; zeros where none does or it does not know."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF" or file.read(8)[4:] != b"WAVE":
            return 0, 0
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data":
                held = path.stat().st_size - file.tell()
                return (min(held, size), size) if size <= LARGEST_DATA else (0, 0)
            file.seek(size + size % 2, os.SEEK_CUR)
    return 0, 0
