"""Codes in a file of their own (.snac), which says what made them.

    8 bytes   SNACODES
    2 bytes   version, 4 bytes length of the header (both little-endian)
    header    JSON, filled up with spaces
    body      the codes of each unit, level by level, in 12 bits each (as many as the codebook needs), without gaps

A second of 24 kHz speech is 123 bytes. Reading and writing hold a few units at a time.
"""

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from backends.atomic import write_atomically
from backends.data.bits import Packer, packed_bytes, unpack
from backends.errors import InputError
from snac_port import codes as layout
from snac_port.codec import Codec
from snac_port.codes import Codes
from snac_port.config import SNACConfig

SUFFIX = ".snac"
MAGIC, VERSION = b"SNACODES", 1
_START = struct.Struct("<8sHI")
_HEADER_BYTES = 1024  # the header is written again once the length is known, so it has a fixed place
_UNITS = 4096  # read at a time; a multiple of 8, so that pieces end on whole bytes


@dataclass(frozen=True)
class Header:
    """What a file says of its codes."""

    model: str  # for people to read
    sampling_rate: int
    hop: int
    vq_strides: list[int]
    unit_frames: int
    codebook_size: int
    quantizer: str  # identity of the quantiser's weights: only the same ones give these codes a meaning
    length: int
    crc32: int

    @property
    def units(self) -> int:
        return -(-self.length // (self.unit_frames * self.hop))

    @property
    def row(self) -> int:
        """Codes of a unit."""
        return sum(self.unit_frames // stride for stride in self.vq_strides)

    @property
    def bits(self) -> int:
        return max(1, (self.codebook_size - 1).bit_length())


def write_codes(path: Path | str, codes: Codes, codec: Codec) -> Path:
    """Write codes of `codec` to a file; returns its path."""
    layout.check(codes, codec.config)
    return write_code_stream(path, [codes.levels], codec, lambda: codes.length)


def write_code_stream(
    path: Path | str, pieces: Iterable[Sequence[np.ndarray]], codec: Codec, length: Callable[[], int]
) -> Path:
    """Write codes per level as they come; `length` is asked at the end for how many samples they stand."""
    path = Path(path).expanduser()
    blank = _header(codec, length=0, crc32=0)

    def save(staging: Path) -> None:
        with staging.open("wb") as file:
            file.write(_start(blank))
            crc = _write_body(file, pieces, codec.config)
            file.seek(0)
            file.write(_start(_header(codec, length=length(), crc32=crc)))

    return write_atomically(path, save)


def read_codes(path: Path | str, codec: Codec) -> Codes:
    """The codes of a file, checked against `codec`. Raises InputError where they are damaged or not this codec's."""
    file = CodeFile(path)
    file.check(codec)
    pieces = list(file.pieces(codec.config))
    levels = tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return Codes(levels, file.header.length, file.header.sampling_rate)


class CodeFile:
    """A file of codes, opened: its header is read and its size is right."""

    def __init__(self, path: Path | str):
        self.path = Path(path).expanduser()
        self.header, self._body = _read_header(self.path)
        wanted = packed_bytes(self.header.units * self.header.row, self.header.bits)
        found = self.path.stat().st_size - self._body
        if found != wanted:
            what = "truncated" if found < wanted else "too long"
            raise InputError(f"{self.path}: {what}, holds {found} of {wanted} bytes of codes; copy or encode it again")

    def check(self, codec: Codec) -> None:
        """Raise InputError where these are not `codec`'s codes."""
        expected = asdict(_header(codec, length=self.header.length, crc32=self.header.crc32))
        for key, value in asdict(self.header).items():
            if key != "model" and value != expected[key]:
                said = f"{key} {value}" if key != "quantizer" else "another quantiser's weights"
                made = f" by {self.header.model}" if self.header.model else ""
                raise InputError(
                    f"{self.path}: made{made} with {said}, this checkpoint has {expected[key]}: give the other one"
                )

    def pieces(self, config: SNACConfig) -> Iterator[list[np.ndarray]]:
        """Codes per level, some thousand units at a time. Raises InputError at the end of a damaged body."""
        crc, units = 0, self.header.units
        with self.path.open("rb") as file:
            file.seek(self._body)
            for first in range(0, units, _UNITS):
                count = min(_UNITS, units - first) * self.header.row
                data = file.read(packed_bytes(count, self.header.bits))
                crc = zlib.crc32(data, crc)
                rows = unpack(data, self.header.bits, count).reshape(-1, self.header.row)
                if rows.max(initial=0) >= self.header.codebook_size:
                    raise InputError(f"{self.path}: holds codes beyond {self.header.codebook_size - 1}; it is damaged")
                yield layout.to_levels(rows, config)
        if crc != self.header.crc32:
            raise InputError(f"{self.path}: damaged, its checksum does not fit; copy or encode it again")


def _header(codec: Codec, *, length: int, crc32: int) -> Header:
    config = codec.config
    return Header(
        model=config.name,
        sampling_rate=config.sampling_rate,
        hop=config.hop_samples,
        vq_strides=list(config.vq_strides),
        unit_frames=config.unit_frames,
        codebook_size=config.codebook_size,
        quantizer=codec.identity(),
        length=length,
        crc32=crc32,
    )


def _start(header: Header) -> bytes:
    text = json.dumps(asdict(header)).encode()
    return _START.pack(MAGIC, VERSION, _HEADER_BYTES) + text.ljust(_HEADER_BYTES)


def _write_body(file: BinaryIO, pieces: Iterable[Sequence[np.ndarray]], config: SNACConfig) -> int:
    packer, crc = Packer(config.code_bits), 0
    for rows in layout.stream_rows(pieces, config):
        data = packer.add(rows)
        crc = zlib.crc32(data, crc)
        file.write(data)
    data = packer.finish()
    file.write(data)
    return zlib.crc32(data, crc)


def _read_header(path: Path) -> tuple[Header, int]:
    """The header, and where the body begins."""
    try:
        with path.open("rb") as file:
            start = file.read(_START.size)
            magic, version, size = _START.unpack(start.ljust(_START.size, b"\0"))
            if magic != MAGIC:
                raise InputError(f"{path}: not a file of SNAC codes; expected one written by snac_port.encode")
            if version != VERSION:
                raise InputError(f"{path}: written in version {version} of the format, this program reads {VERSION}")
            text = file.read(min(size, 1 << 20))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({os.strerror(error.errno or 0)})") from error
    if len(start) < _START.size or len(text) < size:
        raise InputError(f"{path}: truncated inside its header; copy or encode it again")
    return _parsed(text, path), _START.size + size


def _parsed(text: bytes, path: Path) -> Header:
    try:
        content: dict[str, Any] = json.loads(text)
        header = Header(**{field.name: content[field.name] for field in fields(Header)})
        numbers = [getattr(header, name) for name in ("sampling_rate", "hop", "unit_frames", "codebook_size", "length")]
        if any(not isinstance(number, int) or number < 1 for number in [*numbers, *header.vq_strides]):
            raise ValueError("its numbers are not positive")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its header is damaged ({error}); copy or encode it again") from error
    return header
