"""Audio files read, resampled and written in blocks, so that memory does not grow with their length."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends.atomic import behind_link, check_folder, check_target, write_atomically
from backends.data.audio import FORMATS, first_line, unreadable, whole
from backends.errors import InputError

BLOCK_S = 1.0


@dataclass(frozen=True)
class AudioFile:
    """A file that can be read as audio, and what its header says."""

    path: Path
    rate_hz: int
    channels: int
    samples: int  # per channel

    @property
    def duration_s(self) -> float:
        return self.samples / self.rate_hz

    def changes(self, to_hz: int) -> str:
        """What `blocks` does to the sound, for people to read; empty if nothing."""
        said = [f"{self.rate_hz} Hz resampled to {to_hz} Hz"] if self.rate_hz != to_hz else []
        return ", ".join([*said, *([f"{self.channels} channels averaged"] if self.channels > 1 else [])])

    def blocks(self, to_hz: int, block_s: float = BLOCK_S) -> Iterator[np.ndarray]:
        """The audio as float32 (samples,), channels averaged, resampled to `to_hz`: what `audio.read` gives, in pieces.

        Raises InputError where the file cannot be read to its end, or holds NaN or infinity.
        """
        resampler = _resampler(self.rate_hz, to_hz)
        read = made = 0
        for block, last in _with_last(self._decoded(max(1, round(block_s * self.rate_hz)))):
            if not np.isfinite(block).all():
                raise InputError(
                    f"{self.path}: holds NaN or infinite samples after {read / self.rate_hz:.1f} s; export it again"
                )
            read += len(block)
            mono = block.mean(axis=1)
            piece = mono if resampler is None else resampler.resample_chunk(mono, last=last)
            made += len(piece)
            yield piece
        if read == 0:
            raise InputError(f"{self.path}: holds no audio samples")
        if made == 0:
            raise InputError(f"{self.path}: too short, holds no sample at {to_hz} Hz")

    def _decoded(self, samples: int) -> Iterator[np.ndarray]:
        import soundfile

        class Onward(soundfile.SoundFile):
            """soundfile seeks to where it is after every read, and in MP3 that is somewhere else."""

            def seekable(self) -> bool:
                return False

        try:
            with Onward(str(self.path)) as file:
                while (block := file.read(samples, dtype="float32", always_2d=True)).size:
                    yield block
        except (RuntimeError, OSError) as error:
            raise unreadable(self.path, error) from error


def open_audio(path: Path | str) -> AudioFile:
    """Read a file's header. Raises InputError if it is missing, empty, cut or not audio."""
    import soundfile

    path = whole(path)
    try:
        info = soundfile.info(str(path))
    except (RuntimeError, OSError) as error:
        raise unreadable(path, error) from error
    if info.frames == 0:
        raise InputError(f"{path}: holds no audio samples")
    return AudioFile(path, int(info.samplerate), int(info.channels), int(info.frames))


def write_stream(path: Path | str, blocks: Iterable[np.ndarray], rate_hz: int) -> Path:
    """Write mono blocks (samples,), limited to [-1, 1], as they come; whole or not at all. Returns `path`.

    The suffix names the format: 16-bit PCM in .wav and .flac, .ogg and .mp3 in their usual quality.
    """
    path = checked_target(path)
    return write_atomically(path, lambda staging: _save(staging, path, blocks, rate_hz))


def checked_target(path: Path | str) -> Path:
    """`path` if audio can be written there, to know before the work is done. Raises InputError."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in {', '.join(FORMATS)}")
    check_target(path)
    check_folder(behind_link(path).parent, str(path))
    return path


def _save(staging: Path, path: Path, blocks: Iterable[np.ndarray], rate_hz: int) -> None:
    import soundfile

    try:
        with soundfile.SoundFile(str(staging), "w", rate_hz, 1) as file:
            for block in blocks:
                file.write(np.clip(block, -1.0, 1.0))
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{path}: cannot be written ({first_line(error)}): check the folder and its free space"
        ) from error


def _resampler(from_hz: int, to_hz: int) -> Any:
    import soxr

    return None if from_hz == to_hz else soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")


def _with_last(blocks: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Each block, and whether it is the last."""
    waiting = next(blocks, None)
    while waiting is not None:
        following = next(blocks, None)
        yield waiting, following is None
        waiting = following
