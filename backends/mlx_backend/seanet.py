"""The SEANet encoder and decoder of Mimi (arXiv:2410.00037) and EnCodec (arXiv:2210.13438). Arrays are (B, T, C).

Mimi's convolutions are causal and stream: state is a plain dict of arrays, keyed by layer, that each call reads and
replaces; a new dict is a new stream. With state None a call sees the start and the end of its signal, as upstream's
offline forward does. EnCodec's are centred, weight-normed, and see whole signals only.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from backends.mlx_backend.convolution import conv1d, conv_transpose1d, upsample1d
from backends.mlx_backend.elu import elu
from backends.mlx_backend.lstm import SkipLSTM, State
from backends.mlx_backend.weight_norm import WeightNormed

Make = Callable[..., Any]  # makes a convolution: (in, out, k, stride=, dilation=)


class CausalConv1d(nn.Module):
    """Convolution that sees the past only: the left is padded by (k - 1) dilation + 1 - stride frames.

    `pad` is "constant" (zeros) or "replicate" (the first frame). Each chunk's length must be a multiple of the stride.
    """

    def __init__(
        self,
        in_: int,
        out: int,
        k: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        pad: str = "constant",
    ):
        super().__init__()
        scale = (in_ * k) ** -0.5
        self.weight = mx.random.uniform(-scale, scale, (out, k, in_))
        if bias:
            self.bias = mx.zeros((out,))
        self.stride, self.dilation, self.pad = stride, dilation, pad
        self.past = (k - 1) * dilation + 1 - stride

    def __call__(self, x: mx.array, state: State | None = None, key: str = "") -> mx.array:
        if self.past:
            x = self._with_past(x, state, key)
        y = conv1d(x, self.weight, stride=self.stride, dilation=self.dilation)
        return y + self.bias if "bias" in self else y

    def _with_past(self, x: mx.array, state: State | None, key: str) -> mx.array:
        B, _, C = x.shape
        if state is not None and key in state:
            past = state[key]
        elif self.pad == "replicate":
            past = mx.broadcast_to(x[:, :1], (B, self.past, C))
        else:
            past = mx.zeros((B, self.past, C), x.dtype)
        x = mx.concatenate([past, x], axis=1)
        if state is not None:
            state[key] = x[:, -self.past :]
        return x


class CausalConvTranspose1d(nn.Module):
    """Transposed convolution without the k - stride samples on the right that later input would change.

    Streamed, those samples wait in the state and are added to the next chunk.
    """

    def __init__(self, in_: int, out: int, k: int, *, stride: int, groups: int = 1, bias: bool = True):
        super().__init__()
        scale = (in_ // groups * k) ** -0.5
        self.weight = mx.random.uniform(-scale, scale, (out, k, in_ // groups))
        if bias:
            self.bias = mx.zeros((out,))
        self.stride, self.groups, self.tail = stride, groups, k - stride

    def __call__(self, x: mx.array, state: State | None = None, key: str = "") -> mx.array:
        y = conv_transpose1d(x, self.weight, stride=self.stride, groups=self.groups)
        if self.tail:
            y = self._without_tail(y, state, key)
        return y + self.bias if "bias" in self else y

    def _without_tail(self, y: mx.array, state: State | None, key: str) -> mx.array:
        if state is None:
            return y[:, : -self.tail]
        if key in state:
            waiting = mx.pad(state[key], [(0, 0), (0, y.shape[1] - self.tail), (0, 0)])
            y = y + waiting
        state[key] = y[:, -self.tail :]
        return y[:, : -self.tail]


class CentredConv1d(WeightNormed):
    """Convolution with (k - 1) dilation + 1 - stride frames of padding around its input, the odd one on the left.

    The end is padded further to a whole stride. `pad` is "constant" (zeros) or "reflect", where a signal no longer than
    its padding is first extended with zeros, as upstream does.
    """

    def __init__(self, in_: int, out: int, k: int, *, stride: int = 1, dilation: int = 1, pad: str = "reflect"):
        super().__init__((out, k, in_), in_ * k, out)
        self.stride, self.dilation, self.pad = stride, dilation, pad
        self.total = (k - 1) * dilation + 1 - stride

    def __call__(self, x: mx.array, state: State | None = None, key: str = "") -> mx.array:
        assert state is None, "a centred convolution sees whole signals"
        right = self.total // 2
        x = _padded(x, self.total - right, right + -x.shape[1] % self.stride, self.pad)
        return conv1d(x, self.weight, self.bias, stride=self.stride, dilation=self.dilation)


class CentredConvTranspose1d(WeightNormed):
    """Transposed convolution with a kernel of two strides, cut to the strides of its input, the odd sample on the left.

    Its weight norm is over each *input* channel.
    """

    def __init__(self, in_: int, out: int, k: int, *, stride: int):
        super().__init__((in_, k, out), in_ * 2, out)
        self.stride = stride

    def __call__(self, x: mx.array, state: State | None = None, key: str = "") -> mx.array:
        assert state is None, "a centred convolution sees whole signals"
        scaled = mx.pad(x * self.scale, [(0, 0), (1, 1), (0, 0)])
        return upsample1d(scaled, self.weight_v, self.bias, stride=self.stride)


def _padded(x: mx.array, left: int, right: int, mode: str) -> mx.array:
    """Put `left` and `right` frames around x (B, T, C)."""
    if mode == "constant" or not left + right:
        return mx.pad(x, [(0, 0), (left, right), (0, 0)])
    short = max(0, max(left, right) + 1 - x.shape[1])
    if short:
        x = mx.pad(x, [(0, 0), (0, short), (0, 0)])
    T = x.shape[1]
    places = mx.abs(mx.arange(-left, T + right - short))
    return mx.take(x, mx.where(places < T, places, 2 * (T - 1) - places), axis=1)


class ResidualBlock(nn.Module):
    """`x + conv1(ELU(conv_k(ELU(x))))` through half the channels."""

    def __init__(self, width: int, k: int, dilation: int, compress: int, convolution: Make):
        super().__init__()
        hidden = width // compress
        self.block = [
            nn.ELU(),
            convolution(width, hidden, k, dilation=dilation),
            nn.ELU(),
            convolution(hidden, width, 1),
        ]

    def __call__(self, x: mx.array, state: State | None = None, key: str = "") -> mx.array:
        return x + _through(self.block, x, state, f"{key}.block")


class SEANetEncoder(nn.Module):
    """Waveform (B, samples, 1) -> latents (B, samples / prod(ratios), width)."""

    def __init__(
        self, *, ratios: tuple[int, ...], filters: int, width: int, kernel: int, last_kernel: int, residual_kernel: int,
        residual_layers: int, dilation_growth: int, compress: int, channels: int = 1, lstm_layers: int = 0,
        convolution: Make = CausalConv1d,
    ):  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = [convolution(channels, filters, kernel)]
        for ratio in reversed(ratios):
            for i in range(residual_layers):
                layers.append(ResidualBlock(filters, residual_kernel, dilation_growth**i, compress, convolution))
            layers += [nn.ELU(), convolution(filters, 2 * filters, 2 * ratio, stride=ratio)]
            filters *= 2
        if lstm_layers:
            layers.append(SkipLSTM(filters, lstm_layers))
        self.layers = [*layers, nn.ELU(), convolution(filters, width, last_kernel)]

    def __call__(self, x: mx.array, state: State | None = None) -> mx.array:
        return _through(self.layers, x, state, "encoder")


class SEANetDecoder(nn.Module):
    """Latents (B, T, width) -> waveform (B, T prod(ratios), 1)."""

    def __init__(
        self, *, ratios: tuple[int, ...], filters: int, width: int, kernel: int, last_kernel: int, residual_kernel: int,
        residual_layers: int, dilation_growth: int, compress: int, channels: int = 1, lstm_layers: int = 0,
        convolution: Make = CausalConv1d, transposed: Make = CausalConvTranspose1d,
    ):  # fmt: skip
        super().__init__()
        filters *= 2 ** len(ratios)
        layers: list[nn.Module] = [convolution(width, filters, kernel)]
        if lstm_layers:
            layers.append(SkipLSTM(filters, lstm_layers))
        for ratio in ratios:
            layers += [nn.ELU(), transposed(filters, filters // 2, 2 * ratio, stride=ratio)]
            filters //= 2
            for i in range(residual_layers):
                layers.append(ResidualBlock(filters, residual_kernel, dilation_growth**i, compress, convolution))
        self.layers = [*layers, nn.ELU(), convolution(filters, channels, last_kernel)]

    def __call__(self, x: mx.array, state: State | None = None) -> mx.array:
        return _through(self.layers, x, state, "decoder")


def through(layers: list[nn.Module], x: mx.array) -> mx.array:
    """Some consecutive layers of an encoder or decoder over a whole signal."""
    return _through(layers, x, None, "")


def _through(layers: list[nn.Module], x: mx.array, state: State | None, key: str) -> mx.array:
    for index, layer in enumerate(layers):
        x = elu(x) if isinstance(layer, nn.ELU) else layer(x, state, f"{key}.{index}")
    return x
