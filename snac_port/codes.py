"""What SNAC makes of audio: codes at several rates, with the length and the rate they stand for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from backends.errors import InputError
from snac_port.config import SNACConfig


@dataclass(frozen=True)
class Codes:
    """`levels` holds int32 codes (T,) of each level, coarsest first; they stand for `length` samples."""

    levels: tuple[np.ndarray, ...]
    length: int
    sample_rate_hz: int

    @property
    def duration_s(self) -> float:
        return self.length / self.sample_rate_hz


def whole(levels: Sequence[np.ndarray], config: SNACConfig, length: int | None = None) -> Codes:
    """Codes of these levels, for all the samples they stand for unless `length` says less."""
    arrays = tuple(np.asarray(level).astype(np.int32).reshape(-1) for level in levels)
    samples = arrays[0].size * config.vq_strides[0] * config.hop_samples if arrays else 0
    return Codes(arrays, samples if length is None else length, config.sampling_rate)


def check(codes: Codes, config: SNACConfig, source: str = "codes") -> None:
    """Raise InputError, which begins with `source`, where these cannot be the codes of a codec of this shape."""
    if codes.sample_rate_hz != config.sampling_rate:
        raise InputError(
            f"{source}: made at {codes.sample_rate_hz} Hz, this codec has {config.sampling_rate} Hz: give its own"
        )
    _check_levels(codes.levels, config, source)
    units = _units(codes.levels, config)
    if not 0 < codes.length <= units * config.unit_samples or config.frames(codes.length) != units * config.unit_frames:
        raise InputError(
            f"{source}: {codes.length} samples do not fit {units} units of {config.unit_samples} samples of codes"
        )


def to_rows(levels: Sequence[np.ndarray], config: SNACConfig) -> np.ndarray:
    """Codes per level -> (units, codes of a unit), a unit's codes level by level."""
    units = _units(levels, config)
    return np.concatenate([np.asarray(level, np.int32).reshape(units, -1) for level in levels], axis=1)


def to_levels(rows: np.ndarray, config: SNACConfig) -> list[np.ndarray]:
    """(..., units, codes of a unit) -> codes per level (..., T)."""
    sizes = unit_sizes(config)
    edges = np.cumsum([0, *sizes])
    return [rows[..., first:last].reshape(*rows.shape[:-2], -1) for first, last in zip(edges, edges[1:], strict=False)]


def unit_sizes(config: SNACConfig) -> list[int]:
    """Codes of a unit at each level ([1, 2, 4] at 24 kHz)."""
    return [config.unit_frames // stride for stride in config.vq_strides]


def stream_rows(pieces: Iterable[Sequence[np.ndarray]], config: SNACConfig) -> Iterator[np.ndarray]:
    """Rows of whole units from a stream of codes per level, each piece of as many coarse frames as it likes.

    Raises InputError for ragged pieces, for codes that are none, and where the end is not that of a unit.
    """
    sizes = unit_sizes(config)
    kept = [np.zeros(0, np.int32) for _ in sizes]
    for piece in pieces:
        _check_levels(piece, config, "codes", coarse=True)
        fresh = [np.asarray(level, np.int32).reshape(-1) for level in piece]
        kept = [np.concatenate(pair) for pair in zip(kept, fresh, strict=True)]
        units = kept[0].size // sizes[0]
        if units:
            yield to_rows([level[: units * size] for level, size in zip(kept, sizes, strict=True)], config)
            kept = [level[units * size :] for level, size in zip(kept, sizes, strict=True)]
    if kept[0].size:
        raise InputError(
            f"codes: the stream ends after {kept[0].size} of the {sizes[0]} coarse frames that are decoded together"
        )


def _units(levels: Sequence[np.ndarray], config: SNACConfig) -> int:
    return np.size(levels[0]) // unit_sizes(config)[0]


def _check_levels(levels: Sequence[np.ndarray], config: SNACConfig, source: str, *, coarse: bool = False) -> None:
    """Every level is there, as long as the first one asks for, and holds numbers of entries."""
    strides = config.vq_strides
    if len(levels) != len(strides):
        raise InputError(f"{source}: {len(levels)} levels, this codec has {len(strides)} (strides {list(strides)})")
    first = np.size(levels[0])
    step = 1 if coarse else unit_sizes(config)[0]
    if first % step or (first == 0 and not coarse):
        raise InputError(f"{source}: {first} codes of level 0, expected a multiple of {step}")
    for index, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        expected, values = first * strides[0] // stride, np.asarray(level)
        if values.size != expected:
            raise InputError(
                f"{source}: level {index} has {values.size} codes, {expected} belong to {first} of level 0"
            )
        last = config.codebook_size - 1
        if values.size and not (values.dtype.kind in "iu" and 0 <= values.min() <= values.max() <= last):
            raise InputError(f"{source}: level {index} holds something else than whole numbers 0 to {last}")
