"""Activations of a generation step as rows or as columns, and the products with them."""

from typing import Protocol

import mlx.core as mx


class Activations(Protocol):
    """What differs between the two."""

    def kept(self, weight: mx.array) -> mx.array:
        """A linear's weight (out, in), or a norm's (D,), as the functions below take it; shares its memory."""
        ...

    def enter(self, rows: mx.array) -> mx.array:
        """Rows (rows, D) -> activations; `leave` is back."""
        ...

    def leave(self, x: mx.array) -> mx.array: ...
    def linear(self, x: mx.array, weight: mx.array) -> mx.array: ...
    def plus_linear(self, residual: mx.array, x: mx.array, weight: mx.array) -> mx.array: ...


class Columns:
    """Activations (D, rows)."""

    def kept(self, weight: mx.array) -> mx.array:
        return weight[:, None] if weight.ndim == 1 else weight

    def enter(self, rows: mx.array) -> mx.array:
        return rows.T

    def leave(self, x: mx.array) -> mx.array:
        return x.T

    def linear(self, x: mx.array, weight: mx.array) -> mx.array:
        return weight @ x

    def plus_linear(self, residual: mx.array, x: mx.array, weight: mx.array) -> mx.array:
        return mx.addmm(residual, weight, x)


class Rows:
    """Activations (rows, D)."""

    def kept(self, weight: mx.array) -> mx.array:
        return weight.T  # which a vector is itself

    def enter(self, rows: mx.array) -> mx.array:
        return rows

    def leave(self, x: mx.array) -> mx.array:
        return x

    def linear(self, x: mx.array, weight: mx.array) -> mx.array:
        return x @ weight

    def plus_linear(self, residual: mx.array, x: mx.array, weight: mx.array) -> mx.array:
        return mx.addmm(residual, x, weight)
