"""Choosing tokens from logits with noise that is a function of (seed, step), not of hidden generator state."""

from dataclasses import dataclass

import mlx.core as mx

from backends.errors import InputError
from backends.seeds import mix


@dataclass(frozen=True)
class Sampler:
    """Temperature and exact top-k: logits below the k-th largest are out, ties with it stay.

    Drawing from a softmax is taking the largest of logits / temperature plus Gumbel noise, so one draw of noise serves
    a whole frame. Temperature 0 is greedy; top_k 0 keeps everything.
    """

    temperature: float = 0.9
    top_k: int = 50

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0:
            raise InputError(f"temperature {self.temperature}, top-k {self.top_k}: expected numbers from 0")

    def __call__(self, logits: mx.array, noise: mx.array) -> mx.array:
        """Logits (B, V) and Gumbel noise (B, V) -> tokens (B,)."""
        logits = logits.astype(mx.float32)
        if self.temperature == 0:
            return mx.argmax(logits, axis=-1)
        scores = logits * (1 / self.temperature) + noise
        V = logits.shape[-1]
        if 0 < self.top_k < V:
            smallest_kept = mx.partition(logits, V - self.top_k, axis=-1)[:, V - self.top_k, None]
            scores = mx.where(logits < smallest_kept, -mx.inf, scores)
        return mx.argmax(scores, axis=-1)


def gumbel(shape: tuple[int, ...], key: mx.array) -> mx.array:
    """Gumbel noise, float32."""
    return mx.random.gumbel(shape, key=key)


def step_key(seed: int, step: int) -> mx.array:
    """The random key of one step of a generation."""
    return mx.random.key(mix(seed, step))
