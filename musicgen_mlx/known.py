"""What is known of a music before it is generated, and which of it a window sees. NumPy only."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from backends.errors import InputError
from musicgen_mlx import pattern
from musicgen_mlx.config import MusicGenConfig

UNKNOWN = -1  # a cell to be predicted


def known_steps(config: MusicGenConfig, batch: int, frames: int, prompt: np.ndarray | None = None) -> np.ndarray:
    """The steps (B, K, S) of `frames` frames as far as they are known: special cells and the codes of a prompt.

    A prompt (B, K, P) or (1, K, P) has P < frames. Raises InputError where it has not, or is of other codes.
    """
    codes = np.full((batch, config.codebooks, frames), UNKNOWN, np.int32)
    P = 0 if prompt is None else prompt.shape[-1]
    if frames <= P:
        raise InputError(f"{frames} frames, of which {P} are given: expected at least one more")
    if prompt is not None:
        if prompt.shape not in ((batch, config.codebooks, P), (1, config.codebooks, P)):
            raise InputError(f"a prompt of shape {prompt.shape}: expected {(batch, config.codebooks, P)}")
        if P and not 0 <= prompt.min() <= prompt.max() < config.entries:
            raise InputError(
                f"a prompt with codes {prompt.min()} to {prompt.max()}: expected 0 to {config.entries - 1}"
            )
        codes[:, :, : prompt.shape[2]] = prompt
    return pattern.delayed(codes, config.delays, config.special)


def first_unknown(laid: np.ndarray) -> int:
    """The first step with a cell to predict; codebook 0 is never late, so all before it are known."""
    return int(np.argmax((laid == UNKNOWN).any(axis=(0, 1))))


@dataclass(frozen=True)
class Window:
    """A stretch that is generated at once: `context` frames that are there already, of `frames` in all."""

    context: int
    frames: int


def windows(frames: int, given: int, longest: int, stride: int) -> Iterator[Window]:
    """The windows that make `frames` frames of which `given` are there, none longer than `longest`.

    Each but the first goes on after the last `longest` - `stride` frames, as audiocraft's extend_stride does.
    """
    done = given
    while done < frames:
        context = done if frames <= longest else min(done, longest - stride)
        window = Window(context, min(longest, context + frames - done))
        yield window
        done += window.frames - window.context
