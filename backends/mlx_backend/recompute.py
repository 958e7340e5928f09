"""Gradient checkpointing: training keeps a layer's inputs and computes the rest again in the backward pass."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.utils import checkpoint


def recomputed(layer: nn.Module) -> Callable[..., mx.array]:
    """`layer` as a function of the same arguments that keeps nothing else for its backward pass.

    The state of MLX's generator goes in and comes out as an array. `mx.checkpoint` alone calls the layer again when
    the generator has moved on: dropout would draw other masks for the gradient than it drew for the output.
    """

    def seeded(state: mx.array, *arguments: Any) -> tuple[mx.array, mx.array]:
        outside = _state()
        _set_state(state)
        try:
            return layer(*arguments), _state()
        finally:
            _set_state(outside)

    def run(*arguments: Any) -> mx.array:
        y, state = checkpoint(layer, seeded)(_state(), *arguments)
        _set_state(state)
        return y

    return run


def _state() -> mx.array:
    return mx.stop_gradient(_generator()[0])  # also a copy: the generator changes its own in place


def _set_state(state: mx.array) -> None:
    _generator()[0][:] = mx.stop_gradient(state)  # random bits have no gradient, not even zero


def _generator() -> Any:
    return mx.random.state  # whose type MLX does not declare
