"""What a MusicGen is conditioned on: rows of text, and of chroma for melody models, at the model's width.

The null condition of guidance is exact: zeros after the projection, not the encoding of an empty text. Attention has no
biases, so that text of zeros adds exactly nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.errors import InputError

if TYPE_CHECKING:
    from musicgen_mlx.model import MusicGen


@dataclass(frozen=True)
class Condition:
    """Rows (B, L, D) and which of them belong to the item (B, L); the rest is padding, which nothing sees.

    `empty` (B,), on the host, tells the items that say nothing: they are their own null condition.
    """

    states: mx.array
    mask: mx.array
    empty: tuple[bool, ...]

    @property
    def is_null(self) -> bool:
        """Whether guidance would change nothing."""
        return all(self.empty)


class Conditioner(nn.Module):
    """The learned projection of a conditioner's rows to the model's width."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.output_proj = nn.Linear(width, out)

    def __call__(self, states: mx.array) -> mx.array:
        return self.output_proj(states)


def from_texts(model: "MusicGen", texts: Sequence[str | None]) -> Condition | None:
    """The condition that these descriptions make; None and "" say nothing. None for a model that takes none."""
    if model.config.condition == "none":
        if any(texts):
            raise InputError("prompts: this model was trained without a condition: leave the prompt out")
        return None
    if any(texts):
        from musicgen_mlx.companions import text_encoder_of

        states, mask = text_encoder_of(model).encode([text or "" for text in texts])
    else:
        states, mask = mx.zeros((len(texts), 1, model.config.text_width)), np.ones((len(texts), 1), np.bool_)
    return from_states(model, states, mask, [not text for text in texts])


def from_states(
    model: "MusicGen", states: mx.array, mask: np.ndarray, empty: Sequence[bool] = (), chroma: mx.array | None = None
) -> Condition:
    """The condition that a text encoder's output (B, L, W) makes, with its padding in `mask` (B, L).

    `empty` items become null. Melody models get chroma (B, frames, 12) before the text, or silence, if None.
    """
    empty = list(empty) or [False] * len(mask)
    keep = mx.array(mask) & ~mx.array(empty)[:, None]
    projected = mx.where(keep[..., None], model.text_conditioner(states.astype(model.dtype)), 0)
    condition = Condition(projected, mx.array(mask), tuple(empty))
    return _after_chroma(model, condition, chroma) if model.config.chroma else condition


def null(model: "MusicGen", condition: Condition) -> Condition:
    """The null condition with as many rows as `condition` has."""
    frames = model.config.chroma_frames
    silence = Condition(
        mx.zeros_like(condition.states[:, frames:]), condition.mask[:, frames:], (True,) * len(condition.empty)
    )
    return _after_chroma(model, silence, None) if frames else silence


def both(model: "MusicGen", condition: Condition) -> Condition:
    """`condition` and its null as one batch, (2 B, L, D)."""
    other = null(model, condition)
    states = mx.concatenate([condition.states, other.states])
    return Condition(states, mx.concatenate([condition.mask, other.mask]), condition.empty + other.empty)


def _after_chroma(model: "MusicGen", text: Condition, chroma: mx.array | None) -> Condition:
    """Chroma is repeated or cut to the length that the model was trained with; silence is the first class."""
    B, frames = text.states.shape[0], model.config.chroma_frames
    said: Any = text.empty
    if chroma is None:
        chroma = mx.broadcast_to(mx.arange(model.config.chroma) == 0, (B, 1, model.config.chroma))
    else:
        said = (False,) * B
    chroma = mx.tile(chroma, (1, -(-frames // chroma.shape[1]), 1))[:, :frames]
    rows = model.chroma_conditioner(chroma.astype(model.dtype))
    seen = mx.ones((B, frames), mx.bool_)
    return Condition(mx.concatenate([rows, text.states], axis=1), mx.concatenate([seen, text.mask], axis=1), said)
