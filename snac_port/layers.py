"""The layers of SNAC (github.com/hubertsiuzdak/snac, layers.py and attention.py) on MLX. Arrays are (B, T, C).

Names and shapes of parameters are those of mlx-audio's files. Where no gradient is wanted (`eval`), weight norm is
folded once and layers run over time in pieces that fit the processor's cache.
"""

import mlx.core as mx
import mlx.nn as nn

from backends.mlx_backend.convolution import conv1d, upsample1d
from backends.mlx_backend.snake import snake
from backends.mlx_backend.tiling import over_time
from backends.mlx_backend.weight_norm import WeightNormed

HEAD_WIDTH = 64


class Conv1d(WeightNormed):
    """A valid convolution: the caller pads."""

    def __init__(
        self, in_: int, out: int, k: int, *, stride: int = 1, dilation: int = 1, groups: int = 1, bias: bool = True
    ):
        super().__init__((out, k, in_ // groups), in_ // groups * k, out if bias else 0)
        self.stride, self.dilation, self.groups = stride, dilation, groups

    def __call__(self, x: mx.array) -> mx.array:
        bias = self.bias if "bias" in self else None
        return conv1d(x, self.weight, bias, stride=self.stride, dilation=self.dilation, groups=self.groups)


class Upsample1d(WeightNormed):
    """A transposed convolution with a kernel of two strides; its weight norm is over each *input* channel."""

    def __init__(self, in_: int, out: int, stride: int):
        super().__init__((in_, 2 * stride, out), in_ * 2, out)
        self.stride = stride

    def __call__(self, x: mx.array) -> mx.array:
        return upsample1d(x, self.weight, self.bias, stride=self.stride)


class Snake1d(nn.Module):
    """x + sin(alpha x)^2 / alpha, with an alpha for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.alpha = mx.ones((1, width, 1))

    def __call__(self, x: mx.array) -> mx.array:
        return snake(x, self.alpha.reshape(-1))


class ResidualUnit(nn.Module):
    """x + conv1(snake(conv7(snake(x)))), the wide convolution dilated."""

    def __init__(self, width: int, dilation: int, groups: int):
        super().__init__()
        self.block = nn.Sequential(
            Snake1d(width),
            Conv1d(width, width, 7, dilation=dilation, groups=groups),
            Snake1d(width),
            Conv1d(width, width, 1),
        )
        self.halo = 3 * dilation

    def __call__(self, x: mx.array) -> mx.array:
        def unit(piece: mx.array, start: int, stop: int) -> mx.array:
            return piece[:, self.halo : self.halo + stop - start] + self.block(piece)

        return over_time(unit, x, self.halo, whole=self.training)


class EncoderBlock(nn.Module):
    """Three residual units, then a convolution that doubles the channels and divides the rate by `stride`."""

    def __init__(self, width: int, stride: int, groups: int):
        super().__init__()
        self.block = nn.Sequential(
            *(ResidualUnit(width, dilation, groups) for dilation in (1, 3, 9)),
            Snake1d(width),
            Conv1d(width, 2 * width, 2 * stride, stride=stride),
        )
        self.stride, self.padding = stride, -(-stride // 2)

    def __call__(self, x: mx.array) -> mx.array:
        *units, activation, down = self.block.layers
        for unit in units:
            x = unit(x)
        layer = nn.Sequential(activation, down)
        return over_time(lambda piece, *_: layer(piece), x, self.padding, multiple=self.stride, whole=self.training)


class NoiseBlock(nn.Module):
    """x + noise * linear(x), one value of noise per sample for all channels."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = Conv1d(width, width, 1, bias=False)

    def __call__(self, x: mx.array, noise: mx.array) -> mx.array:
        return x + noise * self.linear(x)


class DecoderBlock(nn.Module):
    """A transposed convolution to `stride` times the rate, noise, and three residual units."""

    def __init__(self, width: int, out: int, stride: int, groups: int, noise: bool):
        super().__init__()
        self.block = nn.Sequential(
            Snake1d(width),
            Upsample1d(width, out, stride),
            *([NoiseBlock(out)] if noise else []),
            *(ResidualUnit(out, dilation, groups) for dilation in (1, 3, 9)),
        )
        self.stride, self.has_noise = stride, noise

    def __call__(self, x: mx.array, noise: mx.array | None = None) -> mx.array:
        """x (B, T, width), noise (B or 1, T stride, 1) or None for none -> (B, T stride, out)."""
        layers = self.block.layers
        units = layers[3:] if self.has_noise else layers[2:]

        def up(piece: mx.array, start: int, stop: int) -> mx.array:
            y = layers[1](layers[0](piece))
            if noise is None or not self.has_noise:
                return y
            return layers[2](y, noise[:, start * self.stride : stop * self.stride])

        x = over_time(up, x, 1, whole=self.training)
        for unit in units:
            x = unit(x)
        return x


class LocalMHA(nn.Module):
    """Attention inside each window of `window` frames, with rotary positions that start anew in each; residual."""

    def __init__(self, width: int, window: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.heads, self.window = width // HEAD_WIDTH, window

    def __call__(self, x: mx.array) -> mx.array:
        B, T, C = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(B * T // self.window, self.window, 3, self.heads, HEAD_WIDTH)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        y = mx.fast.scaled_dot_product_attention(_rotated(q), _rotated(k), v, scale=HEAD_WIDTH**-0.5)
        return x + self.to_out(y.swapaxes(1, 2).reshape(B, T, C))


def _rotated(x: mx.array) -> mx.array:
    return mx.fast.rope(x, HEAD_WIDTH, traditional=False, base=10_000.0, scale=1.0, offset=0)
