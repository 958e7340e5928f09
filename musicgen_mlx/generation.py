"""Codes and audio from a MusicGen."""

from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import numpy as np

from backends.mlx_backend.sampling import Sampler
from musicgen_mlx import pattern
from musicgen_mlx.companions import codec_of
from musicgen_mlx.condition import Condition
from musicgen_mlx.decode import Decoder
from musicgen_mlx.known import first_unknown, known_steps
from musicgen_mlx.model import MusicGen

SAMPLER = Sampler(temperature=1.0, top_k=250)
GUIDANCE = 3.0


def generate_codes(
    model: MusicGen,
    frames: int,
    condition: Condition | None = None,
    *,
    seeds: Sequence[int] = (0,),
    prompt: np.ndarray | None = None,
    sampler: Sampler = SAMPLER,
    guidance: float = GUIDANCE,
    progress: Callable[[int], object] | None = None,
    compile: bool | None = None,
) -> mx.array:
    """Codes (B, K, frames), of which `prompt` (B, K, P) are the first frames. One item for each of `seeds`.

    `progress` is called with the number of steps so far.
    """
    laid, made = known_steps(model.config, len(seeds), frames, prompt), []
    for step in predicted_steps(model, laid, condition, seeds, sampler, guidance, compile=compile):
        made.append(step)
        if progress:
            progress(len(made))
    first = first_unknown(laid)
    steps = mx.concatenate([mx.array(laid[:, :, :first]), *(step[:, :, None] for step in made)], axis=2)
    return pattern.reverted(steps, model.config.delays, mx.stack)


def predicted_steps(
    model: MusicGen, laid: np.ndarray, condition: Condition | None, seeds: Sequence[int], sampler: Sampler = SAMPLER,
    guidance: float = GUIDANCE, *, compile: bool | None = None,
) -> Iterator[mx.array]:  # fmt: skip
    """Yield the steps (B, K) from the first one that is not wholly known. The next is queued before one is yielded."""
    first, S = first_unknown(laid), laid.shape[2]
    with model.generating():
        run = Decoder(model, sampler, seeds, condition, guidance, compile=compile, steps=S - first)
        current = run.start(laid[:, :, :first], laid[:, :, first])
        for step in range(first + 1, S + 1):
            following = run.advance(current, laid[:, :, step]) if step < S else current
            mx.eval(current)
            yield current
            current = following


def decode_audio(model: MusicGen, codes: mx.array) -> mx.array:
    """Codes (B, K, T) -> audio (B, samples), or (B, samples, 2) for stereo, whose channels the codec takes apart."""
    channels = model.config.channels
    return joined(codec_of(model, encoding=False).decode(sides(codes, channels)), channels)


def sides(codes: mx.array, channels: int) -> mx.array:
    """Codes (B, K, T) as the codec's own, (B channels, K / channels, T)."""
    B, K, T = codes.shape
    return codes.reshape(B, K // channels, channels, T).swapaxes(1, 2).reshape(B * channels, K // channels, T)


def joined(audio: mx.array, channels: int) -> mx.array:
    """Audio (B channels, samples) -> (B, samples), or (B, samples, 2)."""
    return audio if channels == 1 else audio.reshape(-1, channels, audio.shape[1]).swapaxes(1, 2)


def encode_audio(model: MusicGen, audio: mx.array) -> mx.array:
    """Audio (B, samples) or (B, samples, 2) -> codes (B, K, T); stereo models take mono for both sides."""
    codec, channels = codec_of(model), model.config.channels
    if channels == 1:
        return codec.encode(audio)
    both = mx.stack([audio, audio], axis=1) if audio.ndim == 2 else audio.swapaxes(1, 2)
    codes = codec.encode(both.reshape(-1, both.shape[2]))
    return codes.reshape(-1, channels, *codes.shape[1:]).swapaxes(1, 2).reshape(len(audio), -1, codes.shape[2])
