"""Choosing tokens from logits; `backends.sampling` has the settings and the noise."""

import math
from collections.abc import Sequence

import torch

from backends.sampling import Sampling


class Sampler(Sampling):
    """Chooses as its settings say."""

    def __call__(self, logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) and as much of `noise` -> tokens (B,)."""
        logits = logits.float()
        if self.greedy:
            return logits.argmax(dim=-1)
        scores = logits + noise
        if self.top_p:
            under = logits - logits.amax(dim=-1, keepdim=True)  # over a small temperature nothing but -inf overflows
            scores = scores.masked_fill(~nucleus(under / self.temperature, self.top_p), -torch.inf)
        if self.min_p:
            least = logits.amax(dim=-1, keepdim=True) + self.temperature * math.log(self.min_p)
            scores = scores.masked_fill(logits < least, -torch.inf)
        if 0 < self.top_k < logits.shape[-1]:
            smallest_kept = logits.kthvalue(logits.shape[-1] - self.top_k + 1, dim=-1, keepdim=True).values
            scores = scores.masked_fill(logits < smallest_kept, -torch.inf)
        return scores.argmax(dim=-1)

    def noise(self, shape: tuple[int, ...], seeds: Sequence[int], step: int) -> torch.Tensor:
        """`drawn`, as PyTorch's, on the host."""
        return torch.from_numpy(self.drawn(shape, seeds, step))


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Which entries (B, V) are among the likeliest with a total probability of `top_p`; the likeliest always is."""
    ordered, places = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)
    kept = ordered.cumsum(dim=-1) - ordered < top_p
    return torch.zeros_like(kept).scatter(-1, places, kept)
