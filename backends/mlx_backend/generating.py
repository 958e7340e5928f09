"""What models that generate have in common: evaluation while they do, and what later generations can use again."""

import threading
from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# Of several threads that generate, one makes what they share; others, also with other models, wait for a moment.
_LOCK = threading.Lock()


class GenerativeModel(nn.Module):
    """A model that generates, several times at once too, in several threads.

    `_companions` holds what belongs to it without being part of it: its codec, the last compiled step ("step"), and
    fused weights ("fused"), which go when the model's own change.
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

    def kept(self, name: str, serves: Callable[[Any], bool], make: Callable[[], Any]) -> Any:
        """What generations keep of each other in `_companions`: made where there is none yet, or none that `serves`."""
        with _LOCK:
            found = self._companions.get(name)
            if found is None or not serves(found):
                found = self._companions[name] = make()
            return found

    def kept_step(self, key: Any, step: Callable[..., Any], **state: Any) -> Callable[..., Any]:
        """The step compiled, or the one that an earlier generation compiled for this `key`, if that was the last."""
        return self.kept("step", lambda kept: kept[0] == key, lambda: (key, mx.compile(step, **state)))[1]

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Evaluation while a generation is under way; when the last one ends, the mode from before the first is back.

        Unlike `train` this keeps what the next generation needs of the weights.
        """
        with _LOCK:
            if not self._generations:
                self._mode_before = self.training
            self._generations += 1
            super().train(False)
        try:
            yield
        finally:
            with _LOCK:
                self._generations -= 1
                if not self._generations:
                    super().train(self._mode_before)


def with_weights(module: Any, weights: Any) -> Any:
    """A twin of the module with other weights, a tree as of its `parameters()`, that shares everything else with it.

    For tracing, where weights are arguments and no constants: other threads go on with the module as it is.
    """
    if isinstance(weights, mx.array):
        return weights
    if isinstance(weights, list):
        return [with_weights(*pair) for pair in zip(module, weights, strict=True)]
    twin = copy(module)
    for name, part in weights.items():
        twin[name] = with_weights(module[name], part)
    return twin
