"""1-D convolutions in the form that suits the device. Inputs are (B, C, T), weights PyTorch's; all pad by themselves.

The twin of `backends.mlx_backend.convolution`. On the CPU PyTorch's kernels lose to matrix products and to shifted
products and sums for depthwise convolutions that are dilated (2 times slower) or want gradients (3 times), and with
several threads for kernels of 1. Everything else, and GPUs, get PyTorch's own.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

SMALL = 1 << 15  # elements, up to which the time to prepare oneDNN's kernel (80 microseconds) counts


def conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> torch.Tensor:
    """(B, C, T) -> (B, out, (T + 2 padding - (k - 1) dilation - 1) // stride + 1)."""
    out, _, k = weight.shape
    if _native(x) or stride > 1:
        return F.conv1d(x, weight, bias, stride, padding, dilation, groups)
    if groups == k == 1 and padding == 0:
        return _product(x, weight[..., 0], bias)
    if groups == out == x.shape[1] and k % 2 and 2 * padding == (k - 1) * dilation:
        return cast(torch.Tensor, _Depthwise.apply(x, weight, bias, dilation))
    return F.conv1d(x, weight, bias, stride, padding, dilation, groups)


def upsample1d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, stride: int) -> torch.Tensor:
    """The transposed convolution of DAC and SNAC, kernel 2 stride and padding ceil(stride / 2).

    (B, C, T) -> (B, out, T stride). One product gives the 2 stride samples that each frame makes; the second half of
    one frame's lies on the first half of the next one's.
    """
    B, C, T = x.shape
    _, out, k = weight.shape
    assert k == 2 * stride, (k, stride)
    crop = -(-stride // 2)
    if _native(x):
        return F.conv_transpose1d(x, weight, bias, stride, crop, stride % 2)
    made = _product(x, weight.reshape(C, out * k).T).view(B, out, 2, stride, T)
    frames = F.pad(made[:, :, 0], (0, 1)) + F.pad(made[:, :, 1], (1, 0))
    return frames.transpose(2, 3).reshape(B, out, -1)[..., crop : crop + T * stride] + bias[:, None]


def _product(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(out, C) by (B, C, T)."""
    B, C, T = x.shape
    columns = x.transpose(0, 1).reshape(C, B * T)
    made = matrix @ columns if bias is None else torch.addmm(bias[:, None], matrix, columns)
    return made.view(-1, B, T).transpose(0, 1)


class _Depthwise(torch.autograd.Function):
    """One filter (C, 1, k) per channel; as many frames as there were."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _shifted_sum(x, weight, bias, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x = _shifted_sum(cotangent, weight.flip(-1), None, ctx.dilation) if ctx.needs_input_grad[0] else None
        to_weight = _taps(x, cotangent, weight.shape[-1], ctx.dilation) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, cotangent.sum((0, 2)) if ctx.needs_input_grad[2] else None, None


def _shifted_sum(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int) -> torch.Tensor:
    (C, _, k), T = weight.shape, x.shape[2]
    if dilation == 1 and x.numel() > SMALL:
        return F.conv1d(x, weight, bias, padding=k // 2, groups=C)
    padded = F.pad(x, (k // 2 * dilation, k // 2 * dilation))
    y = padded[..., :T] * weight[..., 0]
    for tap in range(1, k):
        y.addcmul_(padded[..., tap * dilation : tap * dilation + T], weight[..., tap])
    return y if bias is None else y.add_(bias[:, None])


def _taps(x: torch.Tensor, cotangent: torch.Tensor, k: int, dilation: int) -> torch.Tensor:
    """The gradient of the filters (C, 1, k)."""
    T = x.shape[2]
    padded, product = F.pad(x, (k // 2 * dilation, k // 2 * dilation)), torch.empty_like(cotangent)
    places = (padded[..., tap * dilation : tap * dilation + T] for tap in range(k))
    sums = [torch.mul(place, cotangent, out=product).sum((0, 2)) for place in places]
    return torch.stack(sums, dim=-1)[:, None]


def _native(x: torch.Tensor) -> bool:
    return x.device.type != "cpu" or torch.is_autocast_enabled("cpu")
