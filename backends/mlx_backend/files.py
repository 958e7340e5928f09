"""safetensors files of MLX arrays."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import ml_dtypes
import mlx.core as mx
import numpy as np

from backends.base import Arrays
from backends.errors import InputError


def write(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write the arrays. Not atomic: the caller stages and renames. Raises OSError where the disk refuses."""
    try:
        mx.save_safetensors(str(path), arrays, dict(metadata))
    except RuntimeError as error:
        raise OSError(f"{error}") from error


def to_host(arrays: Arrays) -> dict[str, np.ndarray]:
    """Copies as NumPy arrays; bfloat16, which MLX does not hand to NumPy, goes by its bits."""
    bits = {name: value.view(mx.uint16) if value.dtype == mx.bfloat16 else value for name, value in arrays.items()}
    host = {name: np.array(value) for name, value in bits.items()}
    return {n: v.view(ml_dtypes.bfloat16) if arrays[n].dtype == mx.bfloat16 else v for n, v in host.items()}


def from_host(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """NumPy arrays as MLX arrays, which have no negative strides."""
    return {name: mx.array(np.asarray(value, order="C")) for name, value in arrays.items()}


def fingerprint(arrays: Arrays) -> str:
    """SHA-256 over names, shapes, types and bytes: the identity of a set of weights."""
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name}{value.shape}{value.dtype}".encode())
        digest.update(np.array(value.reshape(-1).view(mx.uint8), copy=False).data)
    return digest.hexdigest()


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Read a file fully into memory: what `mx.load` leaves to the first use is that thread's alone."""
    try:
        arrays, metadata = cast(tuple[Arrays, dict[str, str]], mx.load(str(path), return_metadata=True))
        mx.eval(arrays)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    return arrays, metadata
