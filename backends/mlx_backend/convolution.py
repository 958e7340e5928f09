"""1-D convolutions in the form that suits the device. Inputs are (B, T, C), weights MLX's (out, k, in / groups).

On the CPU everything becomes matrix products, or shifted products and sums where there is one filter per channel: MLX
has no fast transposed convolution there (140 times slower than the product below for Mimi's first one), and its im2col
and its grouped convolution lose. On a GPU the native kernels are used where they exist for the shape.
"""

from collections.abc import Callable
from functools import cache
from typing import cast

import mlx.core as mx

from backends.mlx_backend.device import on_gpu

_FEW = 16  # channels; with fewer, taps are gathered beside each other so that one product sees them all


def conv1d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> mx.array:
    """Valid convolution: (B, T, C) -> (B, (T - (k - 1) dilation - 1) // stride + 1, out)."""
    out, k, _ = weight.shape
    if groups == 1 and stride == k == 1:
        return _product(x, weight[:, 0].T, bias)
    if on_gpu() or stride > 1 and (dilation > 1 or k % stride) or groups not in (1, x.shape[2]):
        y = mx.conv1d(x, weight, stride=stride, dilation=dilation, groups=groups)
        return y if bias is None else y + bias
    if groups > 1:
        assert (groups, stride) == (out, 1), (groups, out, stride)
        y = _depthwise(dilation)(x, weight[..., 0].T)
        return y if bias is None else y + bias
    if stride > 1:
        return _block_products(x, weight, bias, stride)
    if x.shape[2] < _FEW:
        return _gathered_product(x, weight, bias, dilation)
    return (_products_of_shifted if out >= _FEW else _shifted_products)(x, weight, bias, dilation)


def conv_transpose1d(x: mx.array, weight: mx.array, *, stride: int, groups: int = 1) -> mx.array:
    """Full transposed convolution: (B, T, C) -> (B, (T - 1) stride + k, out).

    One matrix product gives each input frame's k output samples; overlapping ones are added. Needs k to be a multiple
    of the stride, and groups 1 or C (depthwise).
    """
    B, T, C = x.shape
    out, k, _ = weight.shape
    assert k % stride == 0, (k, stride)
    if groups == 1:
        frames = (x @ weight.reshape(out * k, C).T).reshape(B, T, out, k)
    else:
        assert groups == C == out, (groups, C, out)
        frames = x[..., None] * weight[:, :, 0]
    return _overlap_add(frames, stride)


def upsample1d(x: mx.array, weight: mx.array, bias: mx.array, *, stride: int) -> mx.array:
    """The transposed convolution of DAC and SNAC: kernel 2 stride, padding ceil(stride / 2), every whole output.

    (B, T + 2, C) with a frame of context on either side -> (B, T stride, out). `weight` is (C, 2 stride, out), the
    order in which it is stored and in which both halves of the kernel are matrices as they lie.
    """
    B, frames, C = x.shape
    _, k, out = weight.shape
    assert k == 2 * stride, (k, stride)
    crop, length = -(-stride // 2), (frames - 2) * stride
    if on_gpu():
        kernel, padding = weight.transpose(2, 1, 0), stride + crop
        return mx.conv_transpose1d(x, kernel, stride=stride, padding=padding, output_padding=stride % 2) + bias
    # Samples t stride .. (t + 1) stride come from frame t by the kernel's first half and frame t - 1 by its second.
    first, second = (half.reshape(C, stride * out) for half in (weight[:, :stride], weight[:, stride:]))
    y = mx.addmm(mx.addmm(mx.tile(bias, stride), x[:, 1:], first), x[:, :-1], second)
    return y.reshape(B, (frames - 1) * stride, out)[:, crop : crop + length]


def _overlap_add(frames: mx.array, stride: int) -> mx.array:
    """Add (B, T, C, k) blocks placed `stride` apart: block t covers samples t stride .. t stride + k."""
    B, T, C, k = frames.shape
    parts = k // stride
    total = sum(
        mx.pad(frames[..., i * stride : (i + 1) * stride], [(0, 0), (i, parts - 1 - i), (0, 0), (0, 0)])
        for i in range(parts)
    )
    return total.transpose(0, 1, 3, 2).reshape(B, (T + parts - 1) * stride, C)  # type: ignore[union-attr]


def _product(x: mx.array, matrix: mx.array, bias: mx.array | None) -> mx.array:
    return x @ matrix if bias is None else mx.addmm(bias, x, matrix)


def _products_of_shifted(x: mx.array, weight: mx.array, bias: mx.array | None, dilation: int) -> mx.array:
    """Sum over taps of (shifted input) @ (tap's weight)."""
    k = weight.shape[1]
    length = x.shape[1] - (k - 1) * dilation
    y = _product(x[:, :length], weight[:, 0].T, bias)
    for tap in range(1, k):
        y = mx.addmm(y, x[:, tap * dilation : tap * dilation + length], weight[:, tap].T)
    return y


def _shifted_products(x: mx.array, weight: mx.array, bias: mx.array | None, dilation: int) -> mx.array:
    """The same for few output channels: one product for all taps, whose columns are shifted and added."""
    out, k, C = weight.shape
    length = x.shape[1] - (k - 1) * dilation
    taps = (x @ weight.reshape(out * k, C).T).reshape(*x.shape[:2], out, k)
    y = sum(taps[:, tap * dilation : tap * dilation + length, :, tap] for tap in range(k))
    return y if bias is None else y + bias  # type: ignore[return-value]


def _gathered_product(x: mx.array, weight: mx.array, bias: mx.array | None, dilation: int) -> mx.array:
    """The same for few input channels: all taps beside each other, then one product."""
    out, k, C = weight.shape
    length = x.shape[1] - (k - 1) * dilation
    taps = mx.concatenate([x[:, tap * dilation : tap * dilation + length] for tap in range(k)], axis=2)
    return _product(taps, weight.reshape(out, k * C).T, bias)


def _block_products(x: mx.array, weight: mx.array, bias: mx.array | None, stride: int) -> mx.array:
    """A kernel of n strides is n matrices on the input's blocks of `stride` samples, each a block further on."""
    B, T, C = x.shape
    out, k, _ = weight.shape
    parts, blocks = k // stride, T // stride
    length = blocks - parts + 1
    x = x[:, : blocks * stride].reshape(B, blocks, stride * C)
    y = None if bias is None else bias
    for part in range(parts):
        matrix = weight[:, part * stride : (part + 1) * stride].reshape(out, stride * C).T
        y = _product(x[:, part : part + length], matrix, y)
    return y  # type: ignore[return-value]


@cache
def _depthwise(dilation: int) -> Callable[[mx.array, mx.array], mx.array]:
    """One filter per channel: x (B, T, C), taps (k, C) -> (B, T - (k - 1) dilation, C), with gradients of this form."""

    def shifted_sum(x: mx.array, taps: mx.array) -> mx.array:
        k = taps.shape[0]
        length = x.shape[1] - (k - 1) * dilation
        y = x[:, :length] * taps[0]
        for tap in range(1, k):
            y = y + x[:, tap * dilation : tap * dilation + length] * taps[tap]
        return y

    function = mx.custom_function(shifted_sum)

    @function.vjp
    def gradients(primals, cotangent, _output):  # noqa: ANN001, ANN202 (MLX's calling convention)
        x, taps = primals
        k, length, reach = taps.shape[0], cotangent.shape[1], (taps.shape[0] - 1) * dilation
        to_x = shifted_sum(mx.pad(cotangent, [(0, 0), (reach, reach), (0, 0)]), taps[::-1])
        places = (x[:, tap * dilation : tap * dilation + length] for tap in range(k))
        return to_x, mx.stack([(cotangent * place).sum(axis=(0, 1)) for place in places])

    return cast(Callable[[mx.array, mx.array], mx.array], function)
