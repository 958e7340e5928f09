"""Running a layer over time in pieces that stay in the processor's cache. Tensors are (B, C, T).

The twin of `backends.mlx_backend.tiling`, for layers that pad by themselves, as PyTorch's convolutions do.
"""

from collections.abc import Callable
from fractions import Fraction

import torch

PIECE = 1 << 17  # elements of a piece; see the twin

Layer = Callable[[torch.Tensor, int, int], torch.Tensor]


def over_time(
    layer: Layer, x: torch.Tensor, halo: int, *, rate: Fraction = Fraction(1), whole: bool = False
) -> torch.Tensor:
    """`layer` over x (B, C, T), as if in one call, without a gradient.

    `layer(piece, start, stop)` gets frames start..stop, which reach up to `halo` frames beyond what is kept of its
    output, and makes `rate` times as many. Pieces and `halo` are multiples of the denominator of `rate`. `whole`: a
    single piece, which is what GPUs want.
    """
    B, C, T = x.shape
    multiple = rate.denominator
    step = max(multiple, PIECE // (B * C) // multiple * multiple)
    if whole or x.device.type != "cpu" or step >= T:
        return layer(x, 0, T)
    parts = []
    for start in range(0, T, step):
        stop = min(start + step, T)
        low, high = max(0, start - halo), min(T, stop + halo)
        made = layer(x[..., low:high], low, high)
        parts.append(made[..., int((start - low) * rate) : int((stop - low) * rate)])
    return torch.cat(parts, dim=-1)
