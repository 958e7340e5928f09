"""Running layers in pieces, of time or of a batch, that stay in the processor's cache. Arrays are (B, T, C)."""

from collections.abc import Callable

import mlx.core as mx

from backends.mlx_backend.device import on_gpu

# Elements of a piece. On two cores with 1 MB of cache each, 64 k to 256 k were equally fast, whole arrays 2.5 times
# slower: a large array's pages are new to the process at every operation.
PIECE = 1 << 17

Layer = Callable[[mx.array, int, int], mx.array]


def over_time(layer: Layer, x: mx.array, halo: int, *, multiple: int = 1, whole: bool = False) -> mx.array:
    """`layer` over x (B, T, C) with zeros around it, as if in one call.

    `layer(piece, start, stop)` sees frames start - halo .. stop + halo and makes what belongs to start .. stop. Pieces
    are whole multiples of `multiple` frames. `whole`: a single piece, which is what GPUs and gradients want.
    """
    B, T, C = x.shape
    step = max(multiple, PIECE // (B * C) // multiple * multiple)
    if whole or on_gpu():
        step = T
    parts = [layer(_piece(x, start, min(start + step, T), halo), start, min(start + step, T))
             for start in range(0, T, step)]  # fmt: skip
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


def by_item(function: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """`function` over a batch x (B, ...), on the CPU one item at a time, whose arrays fit the cache better."""
    if len(x) == 1 or on_gpu():
        return function(x)
    return mx.concatenate([function(x[item : item + 1]) for item in range(len(x))])


def _piece(x: mx.array, start: int, stop: int, halo: int) -> mx.array:
    """Frames start - halo .. stop + halo, zeros where there are none."""
    T = x.shape[1]
    before, after = max(0, halo - start), max(0, stop + halo - T)
    piece = x[:, max(0, start - halo) : stop + halo]
    return mx.pad(piece, [(0, 0), (before, after), (0, 0)]) if before or after else piece
