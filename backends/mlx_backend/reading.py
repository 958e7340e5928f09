"""Weights of a checkpoint as MLX's arrays."""

import os
from collections.abc import Mapping
from typing import BinaryIO, cast

import mlx.core as mx
import numpy as np

from backends.base import Arrays
from backends.layouts.files import unchanged


def loaded(tensors: Mapping[str, np.ndarray], dtype: mx.Dtype | None = None) -> Arrays:
    """The tensors in memory, as MLX's, converted where a `dtype` is given.

    Those that are as they lie in their file MLX reads, with several threads: in half of the time that copies take. An
    array of a file that was written to since it was looked up counts as the file's.
    """
    found: Arrays = {}
    opened: dict[BinaryIO, Arrays] = {}
    for name, value in tensors.items():
        mapped = unchanged(value)
        if mapped is None:
            found[name] = mx.array(value)
            continue
        if mapped.file not in opened:
            opened[mapped.file] = _opened(mapped.file)
        read = opened[mapped.file].get(mapped.name)
        found[name] = mx.array(value) if read is None else read
    if dtype is not None:
        found = {name: value.astype(dtype) for name, value in found.items()}
    mx.eval(found)  # until then only the thread that opened the file could read it
    return found


def _opened(file: BinaryIO) -> Arrays:
    """The tensors of an open file, which MLX opens by its name; none where that is another file's by now."""
    try:
        arrays = cast(Arrays, mx.load(file.name, format="safetensors"))
        return arrays if os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)) else {}
    except (OSError, RuntimeError, ValueError):  # a closed file is a ValueError
        return {}
