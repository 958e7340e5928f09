"""Audio files as mono float32 at a given rate, and back."""

from pathlib import Path
from typing import Any

import audiofile
import numpy as np
import soundfile
import soxr

from backends.atomic import write_atomically
from backends.data.wav import check_whole
from backends.errors import InputError

FORMATS = (".wav", ".flac", ".ogg", ".mp3")
COUNTED = ("WAV", "WAVEX", "FLAC")  # formats whose header says how many samples there are
SILENT = 1e-3  # peaks below this (-60 dB of full scale) are no recording of anything
LOUDEST = 10.0  # peaks above this are integers that were made floats and not scaled
FULL_SCALE = {"int16": 2.0**15, "int32": 2.0**31}  # of integer PCM; what other integers mean is anyone's guess


def read(path: Path | str, rate_hz: int) -> np.ndarray:
    """Return the file's audio as float32 (samples,), channels averaged, resampled to `rate_hz`.

    Raises InputError that names the file if it is missing, empty, cut, not readable as audio, or holds NaN or infinity.
    """
    signal, file_rate_hz = _signal(path)
    return prepare(signal, file_rate_hz, rate_hz, source=str(path))


def audible_s(path: Path | str) -> float:
    """Length in seconds of a recording to train on. Raises InputError as `read` does, and where nothing is heard."""
    signal, rate_hz = _signal(path)
    mono = prepare(signal, rate_hz, rate_hz, source=str(path))
    if np.abs(mono).max() < SILENT:
        raise InputError(f"{path}: is silent: no sample reaches {SILENT:g} of full scale")
    return mono.size / rate_hz


def _signal(path: Path | str) -> tuple[np.ndarray, int]:
    """A file's samples (channels, samples) and rate."""
    path = whole(path)
    try:
        signal, file_rate_hz = audiofile.read(str(path), always_2d=True, dtype="float32")
    except (RuntimeError, OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return signal, int(file_rate_hz)


def whole(path: Path | str) -> Path:
    """`path`, if a file is there that holds all the sound it announces (`check_whole`). Raises InputError."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: no such audio file")
    check_whole(path)
    return path


def prepare(signal: np.ndarray, rate_hz: int, to_hz: int, source: str = "audio") -> np.ndarray:
    """Check a signal (samples,) or (channels, samples), average its channels and resample it to `to_hz`."""
    mono = np.asarray(signal, dtype=np.float32)
    mono = mono.mean(axis=0) if mono.ndim == 2 else mono
    if mono.ndim != 1:
        raise InputError(f"{source}: expected (samples,) or (channels, samples), found shape {mono.shape}")
    if mono.size == 0:
        raise InputError(f"{source}: holds no audio samples")
    if not np.isfinite(mono).all():
        raise InputError(f"{source}: holds NaN or infinite samples; export it again")
    if rate_hz != to_hz:
        mono = soxr.resample(mono, rate_hz, to_hz, quality="HQ").astype(np.float32)
        if mono.size == 0:
            raise InputError(f"{source}: too short, holds no sample at {to_hz} Hz")
    return mono


def floats(audio: Any, source: str) -> np.ndarray:
    """Samples in an array of any library and shape as float32; int16 and int32 are scaled by their range.

    Raises InputError, which begins with `source`, for other types, for no samples, and for NaN or infinite ones or
    those far beyond full scale.
    """
    expected = f"expected an array of floats from -1 to 1, int16 or int32, found {type(audio).__name__}"
    try:
        samples = np.asarray(audio)
    except (RuntimeError, TypeError, ValueError) as error:  # such as bfloat16, or lists of different lengths
        raise InputError(f"{source}: {expected} that NumPy does not take ({first_line(error)})") from error
    if samples.dtype.kind != "f" and samples.dtype.name not in FULL_SCALE:
        raise InputError(f"{source}: {expected} of {samples.dtype}")
    if not samples.size:
        raise InputError(f"{source}: holds no samples")
    samples = samples.astype(np.float32) / np.float32(FULL_SCALE.get(samples.dtype.name, 1.0))
    if not np.isfinite(samples).all():
        raise InputError(f"{source}: holds NaN or infinite samples")
    if np.abs(samples).max() > LOUDEST:
        raise InputError(f"{source}: reaches {np.abs(samples).max():g}, expected floats from -1 to 1: scale it")
    return samples


def length_s(path: Path | str) -> float:
    """Length in seconds of what `read` gives. Raises InputError where the file cannot be read.

    An MP3's header only estimates: one that was cut, or of variable rate without a table, may hold much less. So all
    but WAV and FLAC are decoded.
    """
    header_s = duration_s(path)
    if soundfile.info(str(Path(path).expanduser())).format in COUNTED:
        return header_s
    signal, rate_hz = _signal(path)
    return signal.shape[1] / rate_hz


def duration_s(path: Path | str) -> float:
    """Length of an audio file in seconds, by its header. Raises InputError where it cannot be read, or was cut."""
    path = whole(path)
    try:
        return float(audiofile.duration(str(path)))
    except (RuntimeError, OSError, ValueError) as error:
        raise unreadable(path, error) from error


def write(path: Path | str, samples: np.ndarray, rate_hz: int) -> Path:
    """Write (samples,) or (channels, samples), limited to [-1, 1], as 16-bit PCM; the suffix names the format."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    limited = np.clip(np.asarray(samples, dtype=np.float32), -1.0, 1.0)
    try:
        return write_atomically(path, lambda staging: audiofile.write(str(staging), limited, rate_hz))
    except RuntimeError as error:
        raise InputError(
            f"{path}: cannot be written ({first_line(error)}): check the folder and its free space"
        ) from error


def unreadable(path: Path, error: Exception) -> InputError:
    """What is said where a library cannot read `path`."""
    return InputError(f"{path}: not readable as audio ({first_line(error)}); expected WAV, FLAC, OGG or MP3")


def first_line(error: Exception) -> str:
    """What a library's error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
