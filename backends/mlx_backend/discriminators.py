"""DAC's discriminators of waveforms (descriptinc/descript-audio-codec, dac/model/discriminator.py), and their losses.

Audio is (B, samples). Convolutions are weight-normalised: w = g v / |v|, the norm per output channel. Parameters have
the same names and shapes on both backends, filters (out, height, width, in).

Terms are sums over items of each part's mean over a map, since maps differ in size.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from backends.mlx_backend.convolution import conv1d
from backends.mlx_backend.device import on_gpu
from backends.mlx_backend.stft import spectra
from backends.training.adversary import FEATURES, OWN, SCORE, DiscriminatorSpec

Maps = list[mx.array]  # a discriminator's feature maps (B, height, width, channels); the last are its scores
SLOPE = 0.1  # of the activation below 0


class Discriminators(nn.Module):
    """One for each period and one for each window."""

    def __init__(self, spec: DiscriminatorSpec):
        super().__init__()
        self.periods = [PeriodDiscriminator(period, spec.period_widths) for period in spec.periods]
        self.resolutions = [ResolutionDiscriminator(window, spec.width, spec.bands) for window in spec.windows]

    def __call__(self, audio: mx.array) -> list[Maps]:
        """The maps of every discriminator, for audio without its mean and with peaks of 0.8."""
        audio = audio - audio.mean(axis=1, keepdims=True)
        audio = 0.8 * audio / (mx.abs(audio).max(axis=1, keepdims=True) + 1e-9)
        return [judge(audio) for judge in (*self.periods, *self.resolutions)]


class PeriodDiscriminator(nn.Module):
    """Sees every `period`-th sample: the waveform as (samples / period, period), with filters along the first axis."""

    def __init__(self, period: int, widths: Sequence[int]):
        super().__init__()
        self.period = period
        before = [1, *widths[:-1]]
        strides = [3] * (len(widths) - 1) + [1]
        self.convs = [
            Conv2d(in_, out, (5, 1), (stride, 1)) for in_, out, stride in zip(before, widths, strides, strict=True)
        ]
        self.score = Conv2d(widths[-1], 1, (3, 1))

    def __call__(self, audio: mx.array) -> Maps:
        B, samples = audio.shape
        more = self.period - samples % self.period
        ends = audio[:, samples - 1 - more : samples - 1][:, ::-1]
        x = mx.concatenate([audio, ends], axis=1).reshape(B, -1, self.period, 1)
        maps = []
        for conv in self.convs:
            x = nn.leaky_relu(conv(x), SLOPE)
            maps.append(x)
        return [*maps, self.score(x)]


class ResolutionDiscriminator(nn.Module):
    """Sees the complex spectra of one window, (frames, bins) with two channels; each band has filters of its own."""

    def __init__(self, window: int, width: int, bands: Sequence[tuple[float, float]]):
        super().__init__()
        bins = window // 2 + 1
        self.window = window
        self.edges = [(int(low * bins), int(high * bins)) for low, high in bands]
        self.bands = [
            [
                Conv2d(2, width, (3, 9)),
                *(Conv2d(width, width, (3, 9), (1, 2)) for _ in range(3)),
                Conv2d(width, width, (3, 3)),
            ]
            for _ in bands
        ]
        self.score = Conv2d(width, 1, (3, 3))

    def __call__(self, audio: mx.array) -> Maps:
        hop = self.window // 4
        around = (self.window - hop) // 2  # so that there is a frame for every hop of the waveform
        padding = (around, around + -audio.shape[1] % hop)
        found = spectra(audio, self.window, hop=hop, window="hann", padding=padding)
        parts = mx.stack([mx.real(found), mx.imag(found)], axis=-1)
        maps, ends = [], []
        for (low, high), convs in zip(self.edges, self.bands, strict=True):
            x = parts[:, :, low:high]
            for conv in convs:
                x = nn.leaky_relu(conv(x), SLOPE)
                maps.append(x)
            ends.append(x)
        return [*maps, self.score(mx.concatenate(ends, axis=2))]


class Conv2d(nn.Module):
    """A weight-normalised convolution over (B, height, width, channels), padded to keep odd kernels centred."""

    def __init__(self, in_: int, out: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)):
        super().__init__()
        self.weight_v = mx.random.normal((out, *kernel, in_))
        self.weight_g = mx.ones((out, 1, 1, 1))
        self.bias = mx.zeros((out,))
        self.stride, self.padding = stride, (kernel[0] // 2, kernel[1] // 2)

    def __call__(self, x: mx.array) -> mx.array:
        norm = mx.sqrt(self.weight_v.square().sum(axis=(1, 2, 3), keepdims=True))
        weight = self.weight_v * (self.weight_g / norm)
        if on_gpu():
            return mx.conv2d(x, weight, self.stride, self.padding) + self.bias
        return (_along_height if weight.shape[2] == 1 else _along_width)(self, x, weight)


def _along_height(conv: Conv2d, x: mx.array, weight: mx.array) -> mx.array:
    """A kernel (k, 1) as `conv1d` on every column: on the CPU MLX's conv2d takes three times as long to train."""
    B, H, W, C = x.shape
    columns = _whole(x.swapaxes(1, 2).reshape(B * W, H, C), weight[:, :, 0], conv.bias, conv.stride[0], conv.padding[0])
    return columns.reshape(B, W, *columns.shape[1:]).swapaxes(1, 2)


def _along_width(conv: Conv2d, x: mx.array, weight: mx.array) -> mx.array:
    """A kernel (k, n) of stride (1, s) as `conv1d` on every row, of which the k rows of the kernel are the channels."""
    B, H, W, C = x.shape
    out, k, n, _ = weight.shape
    around = conv.padding[0]
    x = mx.pad(x, [(0, 0), (around, around), (0, 0), (0, 0)])
    rows = mx.concatenate([x[:, row : row + H] for row in range(k)], axis=3).reshape(B * H, W, k * C)
    filters = weight.transpose(0, 2, 1, 3).reshape(out, n, k * C)
    return _whole(rows, filters, conv.bias, conv.stride[1], conv.padding[1]).reshape(B, H, -1, out)


def _whole(x: mx.array, weight: mx.array, bias: mx.array, stride: int, padding: int) -> mx.array:
    """`conv1d` of padded input, whose fast form for strides needs kernels of whole strides: zeros make them so."""
    k = weight.shape[1]
    length, more = (x.shape[1] + 2 * padding - k) // stride + 1, -k % stride
    x = mx.pad(x, [(0, 0), (padding, padding + more), (0, 0)])
    weight = mx.pad(weight, [(0, 0), (0, more), (0, 0)])
    return conv1d(x, weight, bias, stride=stride)[:, :length]


def discriminator_terms(judges: Discriminators, audio: mx.array, made: mx.array) -> dict[str, mx.array]:
    """How far the scores of `made` are from 0, and those of `audio` from 1; without a gradient to `made`."""
    of_made, of_audio = judges(mx.stop_gradient(made)), judges(audio)
    pairs = zip(of_made, of_audio, strict=True)
    total = mx.array(0.0)
    return {OWN: sum((_mean(fake[-1].square()) + _mean((1 - real[-1]).square()) for fake, real in pairs), total)}


def generator_terms(judges: Discriminators, audio: mx.array, made: mx.array) -> dict[str, mx.array]:
    """How far the scores of `made` are from 1, and its other maps from those of `audio`."""
    of_made, of_audio = judges(made), judges(audio)
    total = mx.array(0.0)
    features = (
        _mean(mx.abs(fake - mx.stop_gradient(real)))
        for fakes, reals in zip(of_made, of_audio, strict=True)
        for fake, real in zip(fakes[:-1], reals[:-1], strict=True)
    )
    scores = (_mean((1 - maps[-1]).square()) for maps in of_made)
    return {SCORE: sum(scores, total), FEATURES: sum(features, total)}


def _mean(x: mx.array) -> mx.array:
    """The mean over each item's map, summed over items."""
    return x.astype(mx.float32).mean(axis=(1, 2, 3)).sum()
