"""Weights of an MLX model in a file that is either whole or not there."""

from collections.abc import Mapping
from pathlib import Path

import mlx.nn as nn

from backends.atomic import write_atomically
from backends.mlx_backend import files, parameters


def save(path: Path, model: nn.Module, about: Mapping[str, str] | None = None) -> Path:
    """Write every parameter of `model` under its dotted name, and `about` as the file's metadata; returns `path`.

    Raises InputError where the disk refuses.
    """
    metadata = {"format": "mlx", **(about or {})}
    return write_atomically(path, lambda staging: files.write(staging, parameters.parameters(model), metadata))
