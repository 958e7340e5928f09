"""How a step on the CPU holds its activations: as rows (rows, D) or as columns (D, rows), whichever the BLAS reads
weights faster for.

A step is bound by reading weights. For a row or two MKL reads them at the memory's rate in `rows @ weight^T` and at
half of it in `weight @ columns`; for more rows columns are ahead there, as they are with OpenBLAS for any number.
"""

from typing import Protocol

import mlx.core as mx

from backends import blas
from backends.mlx_backend import activations
from backends.mlx_backend.activations import Activations

NORM_EPS = 1e-5
Norm = tuple[mx.array, mx.array]


class Forms(Activations, Protocol):
    """What differs between the two."""

    def norm(self, x: mx.array, norm: Norm) -> mx.array: ...


class Columns(activations.Columns):
    """Activations (D, rows)."""

    def __init__(self, width: int):
        self.mean, self.eps = mx.full((1, width), 1 / width), mx.full((1, 1), NORM_EPS)

    def norm(self, x: mx.array, norm: Norm) -> mx.array:
        centred = x - self.mean @ x
        return centred * mx.rsqrt(mx.addmm(self.eps, self.mean, centred.square())) * norm[0] + norm[1]


class Rows(activations.Rows):
    """Activations (rows, D)."""

    def __init__(self, width: int):
        self.mean, self.eps = mx.full((width, 1), 1 / width), mx.full((1, 1), NORM_EPS)

    def norm(self, x: mx.array, norm: Norm) -> mx.array:
        centred = x - x @ self.mean
        return centred * mx.rsqrt(mx.addmm(self.eps, centred.square(), self.mean)) * norm[0] + norm[1]


Form = type[Columns] | type[Rows]


def heads_of(rows: mx.array, width: int) -> mx.array:
    """Rows (rows, heads width) -> (rows, heads, 1, width)."""
    return rows.reshape(len(rows), -1, 1, width)


def attended(forms: Forms, q: mx.array, keys: mx.array, values: mx.array, mask: mx.array) -> mx.array:
    """Queries (rows, heads, 1, d) over keys and values (rows, heads, T, d), `mask` added to scores -> activations."""
    scores = mx.addmm(mask, q, keys.swapaxes(2, 3), alpha=keys.shape[-1] ** -0.5)
    return forms.enter((mx.softmax(scores, axis=-1) @ values).reshape(len(keys), -1))


def form_for(rows: int) -> Form:
    """The faster one for so many rows with the BLAS that MLX has here."""
    return Columns if blas.loaded == "openblas" or rows > blas.FEW_ROWS else Rows
