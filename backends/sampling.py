"""How tokens are chosen from logits, and the noise for it: of no framework, so that one seed draws the same on each.

`Sampler` in `backends.mlx_backend.sampling` and `backends.torch_backend.sampling` chooses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backends.errors import InputError
from backends.seeds import gumbel

_LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Settings:
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

    def drawn(self, shape: tuple[int, ...], seeds: Sequence[int], step: int) -> np.ndarray:
        """The noise of a step for items with these seeds, float32 (B, *shape), which has no columns where it is greedy.

        It is Gumbel noise times the temperature: scaling the noise up is scaling the logits down.
        """
        if self.greedy:
            return np.zeros((len(seeds), *shape[:-1], 0), np.float32)
        return float(self.temperature) * np.stack([gumbel(shape, seed, step) for seed in seeds])
