"""What is known of a music before it is generated, and which of it a window sees. NumPy only."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from musicgen_mlx import pattern
from musicgen_mlx.config import MusicGenConfig

UNKNOWN = -1  # a cell to be predicted


def known_steps(config: MusicGenConfig, batch: int, frames: int, prompt: np.ndarray | None = None) -> np.ndarray:
    """The steps (B, K, S) of `frames` frames as far as they are known: special cells and the codes of a prompt."""
    codes = np.full((batch, config.codebooks, frames), UNKNOWN, np.int32)
    if prompt is not None:
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
