"""Choosing tokens from logits with noise that is a function of (seed, step), not of hidden generator state."""

from dataclasses import dataclass

import mlx.core as mx

from backends.errors import InputError
from backends.seeds import mix

_NEVER = mx.array([[-mx.inf]])


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

    def __call__(self, logits: mx.array, noise: mx.array) -> mx.array:
        """Logits (B, V) and `noise` of the same shape, from the method of that name -> tokens (B,)."""
        logits = logits.astype(mx.float32)
        if self.temperature == 0:
            return mx.argmax(logits, axis=-1)
        scores = logits + noise
        if self.top_p:
            scores = mx.where(nucleus(logits / self.temperature, self.top_p), scores, _NEVER)
        V = logits.shape[-1]
        if 0 < self.top_k < V:
            smallest_kept = mx.partition(logits, V - self.top_k, axis=-1)[:, V - self.top_k : V - self.top_k + 1]
            scores = mx.where(logits < smallest_kept, _NEVER, scores)
        return mx.argmax(scores, axis=-1)

    def noise(self, shape: tuple[int, ...], key: mx.array) -> mx.array:
        """Gumbel noise, float32, times the temperature: scaling the noise up is scaling the logits down."""
        return self.temperature * mx.random.gumbel(shape, key=key)


def nucleus(logits: mx.array, top_p: float) -> mx.array:
    """Which entries (B, V) are among the likeliest with a total probability of `top_p`; the likeliest always is."""
    probabilities = mx.softmax(logits, axis=-1)
    places = mx.argsort(-probabilities, axis=-1)
    ordered = mx.take_along_axis(probabilities, places, axis=-1)
    kept = mx.cumsum(ordered, axis=-1) - ordered < top_p
    return mx.put_along_axis(mx.zeros_like(kept), places, kept, axis=-1)


def step_key(seed: int, step: int) -> mx.array:
    """The random key of one step of a generation."""
    return mx.random.key(mix(seed, step))
