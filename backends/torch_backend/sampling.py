"""Choosing tokens from logits with noise that is a function of (seed, step), the same on every backend."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backends.errors import InputError
from backends.seeds import gumbel

_LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Sampler:
    """As `backends.mlx_backend.sampling.Sampler`."""

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

    def __call__(self, logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) and as much of `noise` -> tokens (B,)."""
        logits = logits.float()
        if self.greedy:
            return logits.argmax(dim=-1)
        scores = logits + noise
        if self.top_p:
            under = logits - logits.amax(dim=-1, keepdim=True)  # over a small temperature nothing but -inf overflows
            scores = scores.masked_fill(~nucleus(under / self.temperature, self.top_p), -torch.inf)
        if 0 < self.top_k < logits.shape[-1]:
            smallest_kept = logits.kthvalue(logits.shape[-1] - self.top_k + 1, dim=-1, keepdim=True).values
            scores = scores.masked_fill(logits < smallest_kept, -torch.inf)
        return scores.argmax(dim=-1)

    def noise(self, shape: tuple[int, ...], seeds: Sequence[int], step: int) -> torch.Tensor:
        """The noise of a step for items with these seeds, (B, *shape), on the host; no columns where greedy."""
        if self.greedy:
            return torch.zeros(len(seeds), *shape[:-1], 0)
        return torch.from_numpy(float(self.temperature) * np.stack([gumbel(shape, seed, step) for seed in seeds]))


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Which entries (B, V) are among the likeliest with a total probability of `top_p`; the likeliest always is."""
    ordered, places = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)
    kept = ordered.cumsum(dim=-1) - ordered < top_p
    return torch.zeros_like(kept).scatter(-1, places, kept)
