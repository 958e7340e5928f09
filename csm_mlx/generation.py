"""Speech from text and context: `generate` and `stream_generate`."""

import numbers
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

from backends.errors import InputError
from backends.mlx_backend.device import on_gpu
from backends.mlx_backend.kv_cache import Recorder, grown
from backends.mlx_backend.lora import adapters
from backends.mlx_backend.sampling import Sampler
from backends.seeds import mix
from backends.values import check_number
from csm_mlx import tokens
from csm_mlx.companions import codec_of, tokenizer_of
from csm_mlx.decode import Caches, FramePath, Pick, frame_path
from csm_mlx.model import CSM
from csm_mlx.tokens import Segment

SLOTS = 256  # the backbone's cache grows by this many positions, so that shapes change rarely

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]


def generate(
    model: CSM,
    text: str,
    speaker: int,
    context: Sequence[Segment] = (),
    max_audio_length_ms: float = 90_000,
    *,
    sampler: Any = None,
    logits_processors: Sequence[LogitsProcessor] | None = None,
    stream: Any = None,
    seed: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> mx.array:
    """Say `text` as `speaker` after the `context`; returns audio (samples,), float32, at 24 kHz, the codec's rate.

    `sampler` is a `Sampler` (default: temperature 0.9, top-k 50) or any function from log-probabilities (B, V) to
    tokens (B,), such as mlx-lm's; `logits_processors` (tokens so far, logits) apply to codebook 0. `stream` is an MLX
    stream or device. With a `seed` the result repeats. `progress` is called with the number of frames so far. Stops at
    the all-zero frame or after `max_audio_length_ms`. Raises InputError where the prompt leaves no room for it, for a
    text without words, and for a speaker that is no whole number from 0.
    """
    with _on(stream):
        frames = list(
            _frames(model, text, speaker, context, max_audio_length_ms, sampler, logits_processors, seed, progress)
        )
        if not frames:
            return mx.zeros((0,))
        return codec_of(model).decode(mx.stack(frames, axis=-1))[0].astype(mx.float32)  # NumPy has no bfloat16


def stream_generate(
    model: CSM,
    text: str,
    speaker: int,
    context: Sequence[Segment] = (),
    max_audio_length_ms: float = 90_000,
    *,
    sampler: Any = None,
    logits_processors: Sequence[LogitsProcessor] | None = None,
    stream: Any = None,
    seed: int | None = None,
    chunk_frames: int = 1,
) -> Iterator[mx.array]:
    """As `generate`, but yield the audio in chunks of `chunk_frames` frames (80 ms each) as soon as they are there.

    The chunks, concatenated, are what `generate` returns with the same seed.
    """
    if chunk_frames < 1:
        raise InputError(f"chunk_frames is {chunk_frames}: expected at least 1")
    state: dict[str, mx.array] = {}
    waiting: list[mx.array] = []
    codec = codec_of(model)

    def decoded() -> mx.array:
        audio = codec.decode_step(mx.stack(waiting, axis=-1), state)[0].astype(mx.float32)
        mx.async_eval(audio, state)
        waiting.clear()
        return audio

    frames = _frames(model, text, speaker, context, max_audio_length_ms, sampler, logits_processors, seed, None, stream)
    with closing(frames):  # also when decoding fails
        for frame in frames:
            waiting.append(frame)
            if len(waiting) == chunk_frames:
                with _on(stream):
                    chunk = decoded()
                yield chunk
    if waiting:
        with _on(stream):
            chunk = decoded()
        yield chunk


def prompt_rows(model: CSM, text: str, speaker: int, context: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """The rows (T, K + 1) and is_audio (T,) of a prompt: the context's segments, then the text to say."""
    K, tokenizer = model.config.codebooks, tokenizer_of(model)
    parts = []
    for segment in context:
        codes = tokens.encode_audio(codec_of(model), segment.samples(model.config.mimi.sample_rate_hz))
        parts.append((tokens.text_rows(tokenizer.encode(segment.text, segment.speaker), K), False))
        parts.append((tokens.audio_rows(codes[:K]), True))
    parts.append((tokens.text_rows(tokenizer.encode(text, speaker), K), False))
    return tokens.join(parts)


def _frames(
    model: CSM, text: str, speaker: int, context: Sequence[Segment], max_audio_length_ms: float, sampler: Any,
    logits_processors: Sequence[LogitsProcessor] | None, seed: int | None, progress: Callable[[int], object] | None,
    stream: Any = None,
) -> Generator[mx.array, None, None]:  # fmt: skip
    """Yield frames (1, K). The next frame is queued on the device before the host looks at this one."""
    check_number("max_audio_length_ms", max_audio_length_ms, what="milliseconds")
    _check_words(text, speaker, context)
    limit = int(max_audio_length_ms / model.config.frame_ms)
    rows, is_audio = prompt_rows(model, text, speaker, context)
    _check_room(model, len(rows), max_audio_length_ms, "context" if context else "text")
    seed = mix(np.random.SeedSequence().entropy) if seed is None else seed  # type: ignore[arg-type]
    if not isinstance(sampler, Sampler | None):
        mx.random.seed(mix(seed))  # such samplers draw from MLX's global generator
    with model.generating():
        with _on(stream):
            run = FrameRun(model, sampler or Sampler(), logits_processors or (), seed)
            current = run.start(rows, is_audio)
        for count in range(1, limit + 1):
            with _on(stream):
                following = run.advance(current) if count < limit else current
                ended = not current.any().item()
            if ended:
                return
            if progress:
                progress(count)
            yield current
            current = following


class FrameRun:
    """One generation's state: the backbone's caches and how many of their slots are taken."""

    def __init__(
        self, model: CSM, sampler: Any, processors: Sequence[LogitsProcessor], seed: int, *, compile: bool | None = None
    ):
        self.model, self.sampler, self.processors, self.seed = model, sampler, processors, seed
        self.history: list[mx.array] = []
        self.caches: Caches = []
        self.taken = 0
        self.count = 0
        if compile is None:
            compile = on_gpu()
        self.path = frame_path(model)
        self.compiled = compiled_step(model, self.path, sampler) if compile and not processors else None

    def start(self, rows: np.ndarray, is_audio: np.ndarray) -> mx.array:
        """Read the prompt and return the first frame (1, K)."""
        T = len(rows)
        slots = -(-(T + 1) // SLOTS) * SLOTS
        inputs = self.model.embed(mx.array(rows)[None], mx.array(is_audio)[None])
        hidden, self.caches = _read_prompt(self.model, inputs, slots)
        self.taken = T
        return self._queued(self.path.frame(hidden, self._picker(self._noise())))

    def advance(self, frame: mx.array) -> mx.array:
        """Feed a frame (1, K) back and return the next one."""
        if self.taken == self.caches[0].shape[2]:
            self.caches = [grown(cache, SLOTS) for cache in self.caches]
        noise = self._noise()
        if self.compiled is not None:
            frame, self.caches = self.compiled(frame, self.caches, mx.array(self.taken), noise)
        else:
            frame, self.caches = self.path.step(frame, self.caches, self.taken, self._picker(noise))
        self.taken += 1
        return self._queued(frame)

    def _queued(self, frame: mx.array) -> mx.array:
        mx.async_eval(frame, self.caches)
        if self.processors:
            self.history.append(frame[:, :1])
        return frame

    def _noise(self) -> mx.array:
        """The next frame's (K, entries); of no columns where none is taken."""
        self.count += 1
        drawing, config = self.sampler if isinstance(self.sampler, Sampler) else Sampler(0), self.model.config
        return drawing.noise((config.codebooks, config.mimi.entries), [self.seed], self.count)[0]

    def _picker(self, noise: mx.array) -> Pick:
        pick = picker(self.sampler, noise)

        def processed(logits: mx.array, codebook: int) -> mx.array:
            if codebook == 0:
                past = mx.concatenate(self.history, axis=0)[:, 0] if self.history else mx.zeros((0,), mx.int32)
                for processor in self.processors:
                    logits = processor(past, logits)
            return pick(logits, codebook)

        return processed if self.processors else pick


def compiled_step(model: CSM, path: FramePath, sampler: Any) -> Callable[..., tuple[mx.array, Caches]]:
    """A compiled frame step, kept on the model so that later generations with the same sampler reuse it."""
    bare = path.without_weights()

    def step(inputs: Any, frame: mx.array, caches: Caches, taken: mx.array, noise: mx.array) -> tuple[mx.array, Caches]:
        return bare.step(frame, caches, taken, picker(sampler, noise), inputs)

    key = (type(path), sampler, tuple(adapters(model).items()))
    compiled = model.kept_step(key, step, inputs=mx.random.state, outputs=mx.random.state)
    return lambda *arguments: compiled(path.inputs(), *arguments)


def picker(sampler: Any, noise: mx.array) -> Pick:
    """`pick(logits (B, V), codebook)` for a frame with this noise (K, entries)."""
    if not isinstance(sampler, Sampler):
        return lambda logits, _codebook: sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    if sampler.greedy:
        return lambda logits, _codebook: mx.argmax(logits, axis=-1)
    rows = mx.split(noise, len(noise))
    return lambda logits, codebook: sampler(logits, rows[codebook])


def _read_prompt(model: CSM, inputs: mx.array, slots: int) -> tuple[mx.array, Caches]:
    """Run the backbone over a prompt (B, T, D) -> its last hidden state (B, D), and caches of `slots` positions."""
    caches = [Recorder() for _ in model.backbone.layers]
    hidden, room = model.backbone(inputs, caches)[:, -1], slots - inputs.shape[1]
    return hidden, [grown(mx.concatenate([cache.keys, cache.values], axis=1), room) for cache in caches]


def _check_words(text: str, speaker: int, context: Sequence[Segment]) -> None:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"text is {text!r}: expected something to say")
    if not isinstance(context, Sequence) or not all(isinstance(segment, Segment) for segment in context):
        raise InputError("context: expected a list of Segments")
    for name, given in [("speaker", speaker), *(("Segment speaker", segment.speaker) for segment in context)]:
        if isinstance(given, bool) or not isinstance(given, numbers.Integral) or int(given) < 0:
            raise InputError(f"{name} is {given!r}: expected a whole number from 0")


def _check_room(model: CSM, rows: int, length_ms: float, shorten: str) -> None:
    frame_ms, positions = model.config.frame_ms, model.config.max_positions
    frames = int(length_ms / frame_ms)
    if frames < 1:
        raise InputError(f"max_audio_length_ms {length_ms:g}: expected at least {frame_ms:g}, one frame")
    most = positions - frames
    if most < 2:
        longest = (positions - 2) * frame_ms
        raise InputError(
            f"max_audio_length_ms {length_ms:g}: expected less than {longest:g}, which the model's positions hold"
        )
    if rows >= most:
        raise InputError(
            f"the prompt has {rows} rows (text tokens and 80 ms frames of context), but {frames} frames of new audio "
            f"leave room for {most - 1}: shorten the {shorten} or lower max_audio_length_ms"
        )


@contextmanager
def _on(stream: Any) -> Iterator[None]:
    if stream is None:
        yield
        return
    with mx.stream(stream):
        yield
