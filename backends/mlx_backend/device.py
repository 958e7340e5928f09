"""What the forms of layers depend on: whether MLX works on a GPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx


def on_gpu() -> bool:
    """Whether new work goes to a GPU."""
    return mx.default_device() == mx.Device(mx.gpu)


@cache
def compiles_on_cpu() -> bool:
    """Whether what MLX compiles runs on the CPU here: it calls g++, where there is one, and loads what that wrote.

    The first kernel of its kind takes half a second; they are kept with the temporary files.
    """
    try:
        mx.eval(mx.compile(lambda x: mx.abs(x) + 1, shapeless=True)(mx.zeros((2, 2))))
    except RuntimeError:
        return False
    return True


@cache
def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel on a GPU; on the CPU compiling would call g++."""
    return mx.compile(function) if on_gpu() else function
