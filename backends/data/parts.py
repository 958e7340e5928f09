"""Parts of a recording, without decoding the rest of it where its format allows that."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from backends.data import audio

EXACT = ("PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # no state
MARGIN = 256  # samples of the lower rate; what the resampling filter hears is 100 to either side
TERMS = 1280  # ratios of larger whole numbers (no usual pair of rates has any) soxr rounds, and drifts along a file


def parts(path: Path, rate_hz: int) -> Callable[[int, int], np.ndarray]:
    """A function (start, count) -> float32 (count,): what `audio.read` has there at `rate_hz`, and zeros after its end.

    WAV and FLAC are decoded only there. At the file's own rate the samples are the whole file's, bit by bit. At another
    they are within 1e-6 of full scale of them: the filter has all that it hears, but sums it in other blocks. The same
    arguments always give the same bits. Other files are decoded whole, once.

    Raises InputError, as the function does, where the file cannot be read or was cut, and where the part (of other
    formats the file) holds NaN or infinity.
    """
    found = _header(path)
    if _can_seek(found, rate_hz):
        return lambda start, count: _filled(_part(path, found, rate_hz, start, count), count)
    whole = audio.read(path, rate_hz)
    return lambda start, count: _filled(whole[start : start + count], count)


def _header(path: Path) -> Any:
    try:
        return soundfile.info(str(audio.whole(path)))
    except (RuntimeError, OSError) as error:
        raise audio.unreadable(path, error) from error


def _can_seek(found: Any, rate_hz: int) -> bool:
    terms = _ratio(found.samplerate, rate_hz)
    return found.format in audio.COUNTED and found.subtype in EXACT and max(terms) <= TERMS


def _ratio(from_hz: int, to_hz: int) -> tuple[int, int]:
    """So many samples become so many, in lowest terms."""
    common = math.gcd(from_hz, to_hz)
    return from_hz // common, to_hz // common


def _part(path: Path, found: Any, rate_hz: int, start: int, count: int) -> np.ndarray:
    """Decoded from a sample on that becomes a whole sample, so that the filter's phases are those of the whole file."""
    before, after = _ratio(found.samplerate, rate_hz)
    margin = math.ceil(MARGIN * max(1, before / after)) if before != after else 0
    first = max(0, min(start * before // after, found.frames - 1) - margin) // before * before
    last = min(found.frames, -(-(start + count) * before // after) + margin)
    try:
        signal, _ = soundfile.read(str(path), last - first, first, dtype="float32", always_2d=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise audio.unreadable(path, error) from error
    made = audio.prepare(signal.T, found.samplerate, rate_hz, source=str(path))
    skipped = start - first // before * after
    return made[skipped : skipped + count]


def _filled(samples: np.ndarray, count: int) -> np.ndarray:
    return np.pad(samples, (0, count - samples.size))
