"""Snake, the periodic activation of DAC and SNAC: x + sin(alpha x)^2 / alpha (arXiv:2006.08195). Arrays are (B, T, C).

MLX's sine costs 16 ns per element on a Linux CPU, fifty times a product, so there the square of the sine is a
polynomial: everything is products and sums, which run in vector registers. Gradients are written out, so that training
keeps x alone instead of every step in between.
"""

from functools import cache
from typing import cast

import mlx.core as mx
import numpy as np

from backends.mlx_backend.device import fused, on_gpu

EPSILON = 1e-9  # upstream's guard of 1 / alpha
_PI = float(np.pi)
_ROUND = 1.5 * 2**23  # adding it to a float32 and taking it off again leaves the nearest whole number


def snake(x: mx.array, alpha: mx.array) -> mx.array:
    """x (B, T, C), alpha (C,) -> x + sin(alpha x)^2 / (alpha + 1e-9)."""
    if x.dtype != mx.float32 or on_gpu():
        return cast(mx.array, _by_sine(x, alpha))
    return cast(mx.array, _by_polynomial(x, alpha))


@mx.custom_function
def _by_sine(x: mx.array, alpha: mx.array) -> mx.array:
    return fused(_sine_snake)(x, alpha)


@_by_sine.vjp
def _by_sine_vjp(primals, cotangent, _output):  # noqa: ANN001, ANN202 (MLX's calling convention)
    x, alpha = primals
    return fused(_sine_gradients)(x, alpha, cotangent)


@mx.custom_function
def _by_polynomial(x: mx.array, alpha: mx.array) -> mx.array:
    """sin(pi f)^2 = 4 q (1 - q) with q = sin(pi f / 2)^2, f in [-1/2, 1/2] the part of alpha x / pi after rounding."""
    scale, (lead, *rest) = 1 / (alpha + EPSILON), _coefficients("square")
    f, z = _fraction(x, alpha)
    q = z * _monic(z, rest)  # lead q is sin(pi f / 2)^2
    return x + q * (4 * lead * scale - q * (4 * lead**2 * scale))


@_by_polynomial.vjp
def _by_polynomial_vjp(primals, cotangent, _output):  # noqa: ANN001, ANN202
    x, alpha = primals
    f, z = _fraction(x, alpha)
    lead, *rest = _coefficients("double")
    double = f * (1 - 4 * z) * (lead * _monic(z, rest))
    lead, *rest = _coefficients("square")
    q = lead * z * _monic(z, rest)
    return _gradients(x, alpha, cotangent, 4 * q * (1 - q), double)


def _sine_snake(x: mx.array, alpha: mx.array) -> mx.array:
    return x + mx.square(mx.sin(alpha * x)) / (alpha + EPSILON)


def _sine_gradients(x: mx.array, alpha: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    return _gradients(x, alpha, cotangent, mx.square(mx.sin(alpha * x)), mx.sin(2 * alpha * x))


def _gradients(
    x: mx.array, alpha: mx.array, cotangent: mx.array, square: mx.array, double: mx.array
) -> tuple[mx.array, mx.array]:
    """Cotangents of x and alpha from sin(alpha x)^2 and sin(2 alpha x)."""
    scale = 1 / (alpha + EPSILON)
    to_x = cotangent + cotangent * double * (alpha * scale)
    to_alpha = cotangent * (x * double - square * scale)
    return to_x, (to_alpha.sum(axis=(0, 1)) * scale).astype(alpha.dtype)


def _fraction(x: mx.array, alpha: mx.array) -> tuple[mx.array, mx.array]:
    """alpha x / pi less its nearest whole number, and the square of that."""
    turns = x * (alpha * (1 / _PI))
    f = turns - ((turns + _ROUND) - _ROUND)
    return f, f * f


def _monic(z: mx.array, coefficients: list[float]) -> mx.array:
    """z^n + c1 z^(n - 1) + ... + cn, one product and one sum per coefficient after the first."""
    value = z + coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * z + coefficient
    return value


@cache
def _coefficients(name: str) -> list[float]:
    """The leading coefficient of a polynomial in z = f^2 in [0, 1/4], then the others divided by it, highest first.

    "square": sin(pi f / 2)^2 / z, within 2e-8. "double": sin(2 pi f) / (f (1 - 4 z)), within 4e-9.
    """
    terms = {"square": 4, "double": 6}[name]
    z = 0.125 + 0.125 * np.cos(np.linspace(1e-3, np.pi - 1e-3, 4001))
    f = np.sqrt(z)
    values = np.sin(np.pi * f / 2) ** 2 / z if name == "square" else np.sin(2 * np.pi * f) / (f * (1 - 4 * z))
    fitted = np.polynomial.Chebyshev.fit(z, values, terms - 1, domain=[0, 0.25])
    lead, *rest = fitted.convert(kind=np.polynomial.Polynomial).coef[::-1]
    return [float(lead), *(float(value / lead) for value in rest)]
