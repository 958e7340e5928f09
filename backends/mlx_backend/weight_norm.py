"""Convolutions whose weight is g v / |v|: weight normalisation (arXiv:1602.07868), stored as upstream's files do."""

import mlx.core as mx
import mlx.nn as nn


class WeightNormed(nn.Module):
    """A convolution's parameters; the norm is over all axes of `weight_v` but the first.

    In evaluation the weight is made once and kept for as long as g and v stay the same arrays.
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
        if self.training:
            return _folded(self.weight_g, self.weight_v)
        return self._kept.weight(self.weight_g, self.weight_v)


class _Kept:
    """A weight and what it was made of. Not an array attribute of the module: those would be parameters."""

    def __init__(self) -> None:
        self.made: tuple[mx.array, mx.array, mx.array] | None = None

    def weight(self, g: mx.array, v: mx.array) -> mx.array:
        if self.made is not None and self.made[0] is g and self.made[1] is v:
            return self.made[2]
        folded = _folded(g, v)
        try:
            mx.eval(folded)  # left to a first use, it would be that thread's alone
        except ValueError:  # a function is being traced, and this weight is the trace's
            return folded
        self.made = (g, v, folded)
        return folded


def _norm(v: mx.array) -> mx.array:
    """(n, 1, 1) of (n, ...). As products: no array of squares is made, and on the CPU it is 7 times as fast."""
    rows = v.astype(mx.float32).reshape(len(v), 1, -1)
    return mx.sqrt(rows @ rows.swapaxes(1, 2))


def _folded(g: mx.array, v: mx.array) -> mx.array:
    return (v * (g / _norm(v))).astype(v.dtype)
