"""Convolutions whose weight is g v / |v|: weight normalisation (arXiv:1602.07868), stored as upstream's files do."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

Make = Callable[[mx.array, mx.array], mx.array]  # of g and v


class WeightNormed(nn.Module):
    """A convolution's parameters; the norm is over all axes of `weight_v` but the first.

    `weight` is the folded weight. Where the first axis is the input's, `scale` on the input does the same with
    `weight_v` as it is. In evaluation either is made once and kept for as long as g and v stay the same arrays.
    """

    def __init__(self, shape: tuple[int, int, int], fan_in: int, biases: int):
        super().__init__()
        bound = fan_in**-0.5
        self.weight_v = mx.random.uniform(-bound, bound, shape)
        self.weight_g = _norm(self.weight_v)
        if biases:
            self.bias = mx.random.uniform(-bound, bound, (biases,))
        self._kept = _Kept()

    @property
    def weight(self) -> mx.array:
        return self._made(_folded)

    @property
    def scale(self) -> mx.array:
        """(n,), n the length of the first axis."""
        return self._made(_scale)

    def _made(self, make: Make) -> mx.array:
        if self.training:
            return make(self.weight_g, self.weight_v)
        return self._kept.of(make, self.weight_g, self.weight_v)


class _Kept:
    """What was made and of what. Not an array attribute of the module: those would be parameters."""

    def __init__(self) -> None:
        self.made: tuple[mx.array, Make, mx.array, mx.array] | None = None

    def of(self, make: Make, g: mx.array, v: mx.array) -> mx.array:
        kept = self.made  # another thread may replace it
        if kept is not None and all(a is b for a, b in zip(kept[1:], (make, g, v), strict=True)):
            return kept[0]
        made = make(g, v)
        try:
            mx.eval(made)  # left to a first use, it would be that thread's alone
        except ValueError:  # a function is being traced, and this is the trace's
            return made
        self.made = (made, make, g, v)
        return made


def _norm(v: mx.array) -> mx.array:
    """(n, 1, 1) of (n, ...). As products: no array of squares is made, and on the CPU it is 7 times as fast."""
    rows = v.astype(mx.float32).reshape(len(v), 1, -1)
    return mx.sqrt(rows @ rows.swapaxes(1, 2))


def _folded(g: mx.array, v: mx.array) -> mx.array:
    return (v * (g / _norm(v))).astype(v.dtype)


def _scale(g: mx.array, v: mx.array) -> mx.array:
    return (g / _norm(v)).reshape(-1).astype(v.dtype)
