"""Music from prompts, on either backend: batches, continuation, longer than a window, whole or as a stream.

What is native is an engine (`musicgen_mlx.mlx_engine`, `musicgen_mlx.torch_engine`); here are only NumPy arrays.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import audiofile
import numpy as np

from backends import sampling
from backends.base import Memory
from backends.data import audio as audio_files
from backends.errors import InputError
from backends.seeds import mix
from backends.values import check_number
from musicgen_mlx import pattern
from musicgen_mlx.config import MusicGenConfig
from musicgen_mlx.known import first_unknown, known_steps, windows

STRIDE = 3 / 5  # of a window: audiocraft's extend_stride is 18 s of 30


@dataclass(frozen=True)
class Sampling(sampling.Sampling):
    """How codes are drawn, by audiocraft's defaults."""

    temperature: float = 1.0
    top_k: int = 250


class Stream(Protocol):
    """Codes to audio as they come."""

    def push(self, codes: np.ndarray) -> np.ndarray | None: ...
    def finish(self) -> np.ndarray | None: ...


class Engine(Protocol):
    """A model with its codec and text encoder on one backend. Codes are (B, K, T), audio (B, samples[, 2])."""

    name: str
    config: MusicGenConfig

    def said(self, prompts: Sequence[str | None]) -> Any: ...
    def steps(
        self, laid: np.ndarray, said: Any, seeds: Sequence[int], sampling: Sampling, guidance: float
    ) -> Iterator[np.ndarray]: ...
    def encode(self, audio: np.ndarray) -> np.ndarray: ...
    def decode(self, codes: np.ndarray) -> np.ndarray: ...
    def stream(self) -> Stream: ...
    def memory(self) -> Memory: ...


@dataclass(frozen=True)
class Request:
    """What to make. An item's codes depend on its own prompt and seed only, not on its batch.

    `prompts` holds a description per item, None for none; `seeds` a seed per item. `duration_s` is the length of all,
    with `continue_from`, the beginning of every item: (samples,) or (samples, 2) at the codec's rate, floats from -1 to
    1, int16 or int32. What is longer than `window_s`, by default the segments that the model was trained on, is made by
    windows that move on by `stride_s`, by default 3/5 of one (audiocraft's max_duration and extend_stride).
    """

    prompts: Sequence[str | None]
    seeds: Sequence[int]
    duration_s: float = 10.0
    guidance: float = 3.0
    sampling: Sampling = Sampling()
    continue_from: np.ndarray | None = None
    window_s: float | None = None
    stride_s: float | None = None

    def __post_init__(self) -> None:
        for name, given in (("prompts", self.prompts), ("seeds", self.seeds)):
            if isinstance(given, str) or not hasattr(given, "__len__"):
                raise InputError(f"{name} {given!r}: expected a list, an entry for each item")
        for prompt, seed in zip(self.prompts, self.seeds, strict=False):
            if not (prompt is None or isinstance(prompt, str)) or not isinstance(seed, int | np.integer):
                raise InputError(f"prompt {prompt!r}, seed {seed!r}: expected a text or None, and a whole number")
        if len(self.prompts) != len(self.seeds) or not len(self.prompts):
            raise InputError(f"{len(self.prompts)} prompts and {len(self.seeds)} seeds: expected one seed for each")
        if not isinstance(self.sampling, sampling.Sampling):
            raise InputError(f"sampling {self.sampling!r}: expected a Sampling")
        check_number("guidance", self.guidance)
        for name in ("duration_s", "window_s", "stride_s"):
            if getattr(self, name) is not None or name == "duration_s":
                check_number(name, getattr(self, name), what="seconds", above=True)

    def window_frames(self, config: MusicGenConfig) -> tuple[int, int]:
        """A window and how far it moves on. Raises InputError where no frame is between them."""
        hz = config.encodec.frame_hz
        window_s = config.segment_s if self.window_s is None else self.window_s
        stride_s = STRIDE * window_s if self.stride_s is None else self.stride_s
        if stride_s >= window_s:
            raise InputError(f"stride_s {stride_s:g}: expected less than the window, {window_s:g} s")
        longest, stride = round(window_s * hz), round(stride_s * hz)
        if self.window_s is None and self.stride_s is None:
            longest = max(2, longest)  # a model that was trained on single frames makes music too
            stride = min(max(1, stride), longest - 1)
        if not 0 < stride < longest:
            raise InputError(f"window_s {window_s:g}, stride_s {stride_s:g}: at {hz:g} frames a second no frame is "
                             "between them")  # fmt: skip
        return longest, stride


def generate(engine: Engine, request: Request, progress: Callable[[int], object] | None = None) -> np.ndarray:
    """Audio (B, samples), or (B, samples, 2) of a stereo model; `progress` gets the number of new frames so far."""
    engine.stream()  # brings the codec: that there is none is known before the work, not after it
    parts, made = [], 0
    for part in frames(engine, request):
        parts.append(part)
        made += part.shape[2] if len(parts) > 1 or request.continue_from is None else 0
        if progress:
            progress(made)
    return engine.decode(np.concatenate(parts, axis=2))


def stream_generate(engine: Engine, request: Request, chunk_s: float = 0.5) -> Iterator[np.ndarray]:
    """As `generate`, but yield the audio in chunks of about `chunk_s` as soon as they are certain.

    The chunks, joined, are what `generate` returns, to within 1e-4. They are behind the codes by a few frames (0.1 s).
    """
    check_number("chunk_s", chunk_s, what="seconds")
    stream, waiting = engine.stream(), []
    size = max(1, round(chunk_s * engine.config.encodec.frame_hz))
    for part in frames(engine, request):
        waiting.append(part)
        if sum(codes.shape[2] for codes in waiting) >= size:
            yield from _some(stream.push(np.concatenate(waiting, axis=2)))
            waiting.clear()
    if waiting:
        yield from _some(stream.push(np.concatenate(waiting, axis=2)))
    yield from _some(stream.finish())


def frames(engine: Engine, request: Request) -> Iterator[np.ndarray]:
    """The codes (B, K, n) of a request as they become whole, those of `continue_from` first."""
    config, hz = engine.config, engine.config.encodec.frame_hz
    given = _given(engine, request)
    total, (longest, stride) = round(request.duration_s * hz), request.window_frames(config)
    if not total:
        raise InputError(f"duration_s {request.duration_s:g}: expected at least {1 / hz:g}, one frame")
    if total <= given.shape[2]:
        raise InputError(
            f"duration_s {request.duration_s:g}: continue_from alone lasts {given.shape[2] / hz:g} s; ask for more"
        )
    said = engine.said(request.prompts)
    if given.shape[2]:
        yield given
    done = given
    for index, window in enumerate(windows(total, given.shape[2], longest, stride)):
        context = done[:, :, done.shape[2] - window.context :]
        laid = known_steps(config, len(request.seeds), window.frames, context)
        seeds = [mix(int(seed), index) if index else int(seed) for seed in request.seeds]
        parts = []
        for part in _whole(config, laid, engine.steps(laid, said, seeds, request.sampling, request.guidance)):
            parts.append(part)
            yield part
        done = np.concatenate([context, *parts], axis=2)


def read_prompt(path: Path | str, config: MusicGenConfig) -> np.ndarray:
    """A recording for `continue_from`: (samples,), or (samples, 2) of a stereo model, at the codec's rate."""
    rate = config.encodec.sample_rate_hz
    mono = audio_files.read(path, rate)  # also checks the file
    if config.channels == 1:
        return mono
    signal, file_rate = audiofile.read(str(path), always_2d=True, dtype="float32")
    both = signal if len(signal) == 2 else np.stack([signal.mean(axis=0)] * 2)
    return np.stack([audio_files.prepare(side, int(file_rate), rate, source=str(path)) for side in both], axis=1)


def _given(engine: Engine, request: Request) -> np.ndarray:
    """The codes (B, K, P) that every item begins with."""
    if request.continue_from is None:
        return np.zeros((len(request.seeds), engine.config.codebooks, 0), np.int32)
    audio = _recording(request.continue_from, engine.config.channels)
    return np.repeat(engine.encode(audio[None]), len(request.seeds), axis=0)


def _recording(audio: np.ndarray, channels: int) -> np.ndarray:
    """What to continue as float32 (samples,), or as it is (samples, 2) for a model of two channels."""
    given = audio_files.floats(audio, "continue_from")
    if given.ndim not in (1, 2) or (given.ndim == 2 and given.shape[1] not in (1, 2)):
        raise InputError(f"continue_from: expected (samples,) or (samples, 2), found shape {given.shape}")
    return given if given.ndim == 1 or given.shape[1] == channels == 2 else given.mean(axis=1)


def _whole(config: MusicGenConfig, laid: np.ndarray, steps: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Steps as they come -> the new frames (B, K, 1) that each of them completes."""
    first, late = first_unknown(laid), max(config.delays)
    columns = [laid[:, :, step] for step in range(first)]
    for step in steps:
        columns.append(step)
        if len(columns) > first + late:
            yield pattern.reverted(np.stack(columns[-late - 2 :], axis=2), config.delays)


def _some(audio: np.ndarray | None) -> Iterator[np.ndarray]:
    if audio is not None:
        yield audio
