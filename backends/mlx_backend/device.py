"""What the forms of layers depend on: whether MLX works on a GPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx


def on_gpu() -> bool:
    """Whether new work goes to a GPU."""
    return mx.default_device() == mx.Device(mx.gpu)


@cache
def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel on a GPU; on the CPU compiling would call g++."""
    return mx.compile(function) if on_gpu() else function
