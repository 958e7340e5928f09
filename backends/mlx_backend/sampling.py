"""Choosing tokens from logits; `backends.sampling` has the settings and the noise."""

import math
from collections.abc import Sequence

import mlx.core as mx

from backends.sampling import Sampling

_NEVER = mx.array([[-mx.inf]])


class Sampler(Sampling):
    """Chooses as its settings say."""

    def __call__(self, logits: mx.array, noise: mx.array) -> mx.array:
        """Logits (B, V) and as much of `noise` -> tokens (B,)."""
        logits = logits.astype(mx.float32)
        if self.greedy:
            return mx.argmax(logits, axis=-1)
        scores = logits + noise
        if self.top_p:
            under = logits - logits.max(axis=-1, keepdims=True)  # over a small temperature nothing but -inf overflows
            scores = mx.where(nucleus(under / self.temperature, self.top_p), scores, _NEVER)
        if self.min_p:
            least = logits.max(axis=-1, keepdims=True) + self.temperature * math.log(self.min_p)
            scores = mx.where(logits < least, _NEVER, scores)
        V = logits.shape[-1]
        if 0 < self.top_k < V:
            smallest_kept = mx.partition(logits, V - self.top_k, axis=-1)[:, V - self.top_k : V - self.top_k + 1]
            scores = mx.where(logits < smallest_kept, _NEVER, scores)
        return mx.argmax(scores, axis=-1)

    def noise(self, shape: tuple[int, ...], seeds: Sequence[int], step: int) -> mx.array:
        """`drawn`, as MLX's."""
        return mx.array(self.drawn(shape, seeds, step))


def nucleus(logits: mx.array, top_p: float) -> mx.array:
    """Which entries (B, V) are among the likeliest with a total probability of `top_p`; the likeliest always is."""
    probabilities = mx.softmax(logits, axis=-1)
    places = mx.argsort(-probabilities, axis=-1)
    ordered = mx.take_along_axis(probabilities, places, axis=-1)
    kept = mx.cumsum(ordered, axis=-1) - ordered < top_p
    return mx.put_along_axis(mx.zeros_like(kept), places, kept, axis=-1)
