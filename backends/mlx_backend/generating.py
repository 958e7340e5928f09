"""What models that generate have in common: evaluation while they do, and what later generations can use again."""

from collections import UserDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class GenerativeModel(nn.Module):
    """A model that generates, several times at once too.

    `_companions` holds what belongs to it without being part of it: its codec, compiled steps ("steps"), and fused
    weights ("fused"), which go when the model's own change.
    """

    def __init__(self) -> None:
        super().__init__()
        # Not a dict: MLX would count a dict's modules as the model's own, and adapters would go on the codec.
        self._companions: UserDict[str, Any] = UserDict()
        self._generations = 0  # under way, see `generating`
        self._mode_before = self.training

    def train(self, mode: bool = True) -> "GenerativeModel":
        """Switch between training and evaluation; training drops what generation keeps of the weights."""
        if mode:
            self._companions.pop("fused", None)
        super().train(mode)
        return self

    def update(self, parameters: dict[str, Any], strict: bool = True) -> "GenerativeModel":
        """Replace weights; drops what generation keeps of the old ones, which would take their memory in training."""
        self._companions.pop("fused", None)
        super().update(parameters, strict=strict)
        return self

    def load_weights(self, *file_or_weights: Any, **options: Any) -> "GenerativeModel":
        """Load weights as MLX's own method does, but at once: left to a first use, they are that thread's alone."""
        super().load_weights(*file_or_weights, **options)
        mx.eval(self.parameters())
        return self

    def set_dtype(self, *dtype: Any, **options: Any) -> None:
        """Convert weights as MLX's own method does, at once for the same reason."""
        super().set_dtype(*dtype, **options)
        mx.eval(self.parameters())

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Evaluation while a generation is under way; when the last one ends, the mode from before the first is back.

        Unlike `train` this keeps what the next generation needs of the weights.
        """
        if not self._generations:
            self._mode_before = self.training
        self._generations += 1
        super().train(False)
        try:
            yield
        finally:
            self._generations -= 1
            if not self._generations:
                super().train(self._mode_before)
