"""Choosing tokens from logits with noise that is a function of (seed, step), the same on every backend."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from backends.errors import InputError
from backends.seeds import gumbel

_NEVER = mx.array([[-mx.inf]])
_LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Sampler:
    """Temperature, exact top-k (logits below the k-th largest are out, ties with it stay) and top-p (0: off).

    Drawing from a softmax is taking the largest of logits / temperature plus Gumbel noise, so one draw of noise serves
    a whole frame. Temperature 0 is greedy; top_k 0 keeps everything.
    """

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise InputError(
                f"temperature {self.temperature}, top-k {self.top_k}, top-p {self.top_p}: expected numbers from 0, "
                "top-p up to 1"
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken: at temperature 0, and at those that float32 has no reciprocal of."""
        return self.temperature < _LEAST_TEMPERATURE

    def __call__(self, logits: mx.array, noise: mx.array) -> mx.array:
        """Logits (B, V) and as much of `noise` -> tokens (B,)."""
        logits = logits.astype(mx.float32)
        if self.greedy:
            return mx.argmax(logits, axis=-1)
        scores = logits + noise
        if self.top_p:
            under = logits - logits.max(axis=-1, keepdims=True)  # over a small temperature nothing but -inf overflows
            scores = mx.where(nucleus(under / self.temperature, self.top_p), scores, _NEVER)
        V = logits.shape[-1]
        if 0 < self.top_k < V:
            smallest_kept = mx.partition(logits, V - self.top_k, axis=-1)[:, V - self.top_k : V - self.top_k + 1]
            scores = mx.where(logits < smallest_kept, _NEVER, scores)
        return mx.argmax(scores, axis=-1)

    def noise(self, shape: tuple[int, ...], seeds: Sequence[int], step: int) -> mx.array:
        """The noise of a step for items with these seeds, (B, *shape), which has no columns where it is greedy.

        It is Gumbel noise times the temperature: scaling the noise up is scaling the logits down.
        """
        if self.greedy:
            return mx.zeros((len(seeds), *shape[:-1], 0))
        return mx.array(float(self.temperature) * np.stack([gumbel(shape, seed, step) for seed in seeds]))


def nucleus(logits: mx.array, top_p: float) -> mx.array:
    """Which entries (B, V) are among the likeliest with a total probability of `top_p`; the likeliest always is."""
    probabilities = mx.softmax(logits, axis=-1)
    places = mx.argsort(-probabilities, axis=-1)
    ordered = mx.take_along_axis(probabilities, places, axis=-1)
    kept = mx.cumsum(ordered, axis=-1) - ordered < top_p
    return mx.put_along_axis(mx.zeros_like(kept), places, kept, axis=-1)
