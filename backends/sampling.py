"""How tokens are chosen from logits, and the noise for it: of no framework, so that one seed draws the same on each.

`Sampler` in `backends.mlx_backend.sampling` and `backends.torch_backend.sampling` chooses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backends.seeds import gumbel
from backends.values import check_number

_LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; temperature 0 is greedy, and 0 turns the others off.

    top_k: of so many likeliest tokens, and of those as likely as the last of them.
    top_p: of the likeliest with this total probability, after the temperature.
    min_p: of those with at least this share of the likeliest's probability, after the temperature.

    Drawing from a softmax is taking the largest of logits / temperature plus Gumbel noise, so one draw of noise serves
    a whole frame.
    """

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature)
        check_number("top_k", self.top_k, whole=True)
        check_number("top_p", self.top_p, most=1)
        check_number("min_p", self.min_p, most=1)

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
