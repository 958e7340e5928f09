"""Benchmarks: each prints its numbers and says in its docstring how to run it."""

import backends  # noqa: F401  (loads a fast BLAS before mlx.core)
