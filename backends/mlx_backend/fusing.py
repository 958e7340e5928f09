"""Weights of several modules as one array that they share, for generation: fewer and larger products."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from backends.mlx_backend.lora import adapters


def is_plain(model: nn.Module) -> bool:
    """Whether weights may be taken out of the modules: no adapters, nothing quantised."""
    return not adapters(model) and not any("scales" in module for module in model.modules())


def join(owners: Sequence[Any]) -> mx.array:
    """The owners' weights (out, in) as one (sum of outs, in); theirs become views of it."""
    joined = mx.concatenate([owner.weight for owner in owners])
    ends = list(accumulate(owner.weight.shape[0] for owner in owners))
    views = mx.split(joined, ends[:-1])
    mx.eval(joined, views)  # before another thread that generates can see them
    for owner, view in zip(owners, views, strict=True):
        owner.weight = view
    return joined


def parts(owners: Sequence[Any], *, joined: bool) -> list[mx.array]:
    """The owners' weights: one array that they share, or each its own."""
    return [join(owners)] if joined else [owner.weight for owner in owners]


def arrays(model: nn.Module) -> list[mx.array]:
    """The model's parameters as they are now, for `is_current`."""
    return [cast(mx.array, value) for _, value in tree_flatten(model.parameters())]


def is_current(model: nn.Module, source: Sequence[mx.array]) -> bool:
    """Whether the model still has these very arrays, none replaced."""
    now = arrays(model)
    return len(now) == len(source) and all(a is b for a, b in zip(now, source, strict=True))
