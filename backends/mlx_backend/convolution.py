"""1-D convolutions in the form that suits the device. Inputs are (B, T, C), weights MLX's (out, k, in / groups).

MLX has no fast transposed convolution on the CPU (140 times slower than the product below for Mimi's first one), and
its im2col loses to shifted products at stride 1. On a GPU the native kernels are used where they exist for the shape.
"""

import mlx.core as mx


def conv1d(x: mx.array, weight: mx.array, *, stride: int = 1, dilation: int = 1, groups: int = 1) -> mx.array:
    """Valid convolution: (B, T, C) -> (B, (T - (k - 1) dilation - 1) // stride + 1, out)."""
    _, k, _ = weight.shape
    if groups == 1 and stride == 1:
        if k == 1:
            return x @ weight[:, 0].T
        if weight.shape[2] >= 16 and not _on_gpu():
            return _shifted_products(x, weight, dilation)
    return mx.conv1d(x, weight, stride=stride, dilation=dilation, groups=groups)


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


def _overlap_add(frames: mx.array, stride: int) -> mx.array:
    """Add (B, T, C, k) blocks placed `stride` apart: block t covers samples t stride .. t stride + k."""
    B, T, C, k = frames.shape
    parts = k // stride
    total = sum(
        mx.pad(frames[..., i * stride : (i + 1) * stride], [(0, 0), (i, parts - 1 - i), (0, 0), (0, 0)])
        for i in range(parts)
    )
    return total.transpose(0, 1, 3, 2).reshape(B, (T + parts - 1) * stride, C)  # type: ignore[union-attr]


def _shifted_products(x: mx.array, weight: mx.array, dilation: int) -> mx.array:
    """Sum over taps of (shifted input) @ (tap's weight)."""
    k = weight.shape[1]
    length = x.shape[1] - (k - 1) * dilation
    return sum(  # type: ignore[return-value]
        x[:, tap * dilation : tap * dilation + length] @ weight[:, tap].T for tap in range(k)
    )


def _on_gpu() -> bool:
    return mx.default_device() == mx.Device(mx.gpu)
