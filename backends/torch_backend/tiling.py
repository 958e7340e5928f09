"""Running a layer in pieces that stay in the processor's cache. Tensors are (B, C, T).

The twin of `backends.mlx_backend.tiling`, for layers that pad by themselves, as PyTorch's convolutions do. Here pieces
are for training too: what is kept for the gradient is a layer's input, and each piece is computed once more when its
gradient is wanted. In the cache that takes less time than reading what would have been kept.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable

PIECE = 1 << 17  # elements of a piece; see the twin
FEWEST = 256  # frames, so that wide layers read their weights seldom

Rate = tuple[int, int]
Tensors = Sequence[torch.Tensor | None]
Layer = Callable[[torch.Tensor, Tensors, slice, slice], torch.Tensor]
Piece = tuple[slice, slice, slice, slice]


def over_time(
    layer: Layer, x: torch.Tensor, weights: Tensors, halo: int, *, up: int = 1, down: int = 1
) -> torch.Tensor:
    """`layer` over x (B, C, T), as if in one call.

    `layer(piece, weights, rows, frames)` gets these frames of these rows of the batch, which reach `halo` frames beyond
    what is kept of its output, and makes `up` / `down` times as many. It is a function of the piece and of `weights`:
    nothing else gets a gradient. Pieces and `halo` are multiples of `down`. GPUs get a single piece.
    """
    if x.device.type != "cpu":
        return layer(x, weights, slice(0, x.shape[0]), slice(0, x.shape[2]))
    rate = up, down
    pieces = list(_pieces(x.shape, halo, rate))
    if torch.is_grad_enabled():
        return cast(torch.Tensor, _InPieces.apply(layer, pieces, rate, x, *weights))
    return _forward(layer, pieces, rate, x, weights)


def _pieces(shape: torch.Size, halo: int, rate: Rate) -> Iterator[Piece]:
    """Rows; frames that a piece sees; where those it makes lie in what comes out of it, and in the whole."""
    B, C, T = shape
    up, down = rate
    longest = max(PIECE // C, FEWEST, 16 * halo) // down * down
    count = -(-T // longest)
    step = -(-T // (count * down)) * down
    rows = max(1, longest // T)
    for row in range(0, B, rows):
        for start in range(0, T, step):
            stop = min(start + step, T)
            low, high = max(0, start - halo), min(T, stop + halo)
            inner = slice((start - low) * up // down, (stop - low) * up // down)
            outer = slice(start * up // down, stop * up // down)
            yield slice(row, row + rows), slice(low, high), inner, outer


def _forward(layer: Layer, pieces: list[Piece], rate: Rate, x: torch.Tensor, weights: Tensors) -> torch.Tensor:
    if len(pieces) == 1:
        return layer(x, weights, slice(0, x.shape[0]), slice(0, x.shape[2]))
    whole = None
    for rows, seen, inner, outer in pieces:
        made = layer(x[rows, :, seen], weights, rows, seen)
        if whole is None:
            whole = made.new_empty(x.shape[0], made.shape[1], x.shape[2] * rate[0] // rate[1])
        whole[rows, :, outer] = made[..., inner]
    return cast(torch.Tensor, whole)


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layer: Layer, pieces: list[Piece], rate: Rate, x: torch.Tensor, *weights: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.layer, ctx.pieces = layer, pieces
        ctx.autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        return _forward(layer, pieces, rate, x, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        wants_x, *wanted = ctx.needs_input_grad[3:]
        leaves = [None if weight is None else weight.detach() for weight in weights]
        learned = [
            leaf.requires_grad_() for leaf, wants in zip(leaves, wanted, strict=True) if wants and leaf is not None
        ]
        to_x, sums = torch.zeros_like(x) if wants_x else None, [torch.zeros_like(leaf) for leaf in learned]
        dtype, enabled = ctx.autocast
        for rows, seen, inner, outer in ctx.pieces:
            piece = x[rows, :, seen].detach().requires_grad_(wants_x)
            with torch.enable_grad(), torch.autocast("cpu", dtype=dtype, enabled=enabled):
                made = ctx.layer(piece, leaves, rows, seen)[..., inner]
            inputs = learned if to_x is None else [*learned, piece]
            found = torch.autograd.grad(made, inputs, cotangent[rows, :, outer])
            for total, gradient in zip(sums, found, strict=False):
                total += gradient
            if to_x is not None:
                to_x[rows, :, seen] += found[-1]
        to_weights = iter(sums)
        return None, None, None, to_x, *(next(to_weights) if wants else None for wants in wanted)
