"""Choosing tokens from logits with noise that is a function of (seed, step), not of hidden generator state."""

from dataclasses import dataclass

import torch

from backends.errors import InputError
from backends.seeds import mix


@dataclass(frozen=True)
class Sampler:
    """As `backends.mlx_backend.sampling.Sampler`; the noise itself is PyTorch's."""

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise InputError(
                f"temperature {self.temperature}, top-k {self.top_k}, top-p {self.top_p}: expected numbers from 0, "
                "top-p up to 1"
            )

    def __call__(self, logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) and `noise` of the same shape, from the method of that name -> tokens (B,)."""
        logits = logits.float()
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        scores = logits + noise
        if self.top_p:
            scores = scores.masked_fill(~nucleus(logits / self.temperature, self.top_p), -torch.inf)
        if 0 < self.top_k < logits.shape[-1]:
            smallest_kept = logits.kthvalue(logits.shape[-1] - self.top_k + 1, dim=-1, keepdim=True).values
            scores = scores.masked_fill(logits < smallest_kept, -torch.inf)
        return scores.argmax(dim=-1)

    def noise(self, shape: tuple[int, ...], key: torch.Generator) -> torch.Tensor:
        """Gumbel noise, float32, times the temperature: scaling the noise up is scaling the logits down."""
        return -self.temperature * torch.empty(shape, device=key.device).exponential_(generator=key).log()


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Which entries (B, V) are among the likeliest with a total probability of `top_p`; the likeliest always is."""
    ordered, places = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)
    kept = ordered.cumsum(dim=-1) - ordered < top_p
    return torch.zeros_like(kept).scatter(-1, places, kept)


def step_key(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random key of one step of a generation."""
    return torch.Generator(device).manual_seed(mix(seed, step))
