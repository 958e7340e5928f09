"""Modules whose weights are loaded right after they are made: drawing them first would take longer than the loading."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)
# By name: while transformers makes a model, its own functions have the place of PyTorch's.
_DRAWS = {f"{scheme}{law}_" for scheme in ("", "kaiming_", "xavier_") for law in ("uniform", "normal")}


def loaded(make: Callable[[], Module], tensors: Mapping[str, np.ndarray]) -> Module:
    """The module that `make` makes, with these tensors for all of its parameters, in float32 and in evaluation.

    Arrays that a file is mapped to are taken as they are; others are copied, so that training does not change them.
    Raises RuntimeError, PyTorch's own, where names or shapes do not fit.
    """
    with _Undrawn():
        model = make()
    model.load_state_dict({name: _native(value) for name, value in tensors.items()}, assign=True)
    return model.eval()


class _Undrawn(TorchFunctionMode):
    """Random numbers that are asked for in place are not drawn."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _native(value: np.ndarray) -> torch.Tensor:
    made = np.ascontiguousarray(value, np.float32)
    given = made is value and not isinstance(value.base, np.memmap)
    return torch.from_numpy(made.copy() if given or not made.flags.writeable else made)
