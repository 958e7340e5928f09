"""safetensors files of PyTorch tensors."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from backends.base import Arrays
from backends.errors import InputError


def write(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write the arrays. Not atomic: the caller stages and renames. Raises OSError where the disk refuses."""
    try:
        save_file({name: value.detach().contiguous() for name, value in arrays.items()}, str(path), dict(metadata))
    except SafetensorError as error:
        raise OSError(f"{error}") from error


def to_host(arrays: Arrays) -> dict[str, np.ndarray]:
    """Copies as NumPy arrays; bfloat16, which PyTorch does not hand to NumPy, goes by its bits."""
    bits = {n: v.detach().cpu().view(torch.uint16) if v.dtype == torch.bfloat16 else v for n, v in arrays.items()}
    host = {name: value.detach().cpu().numpy().copy() for name, value in bits.items()}
    return {n: v.view(ml_dtypes.bfloat16) if arrays[n].dtype == torch.bfloat16 else v for n, v in host.items()}


def from_host(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """NumPy arrays as tensors on the CPU."""
    bits = {n: v.view(np.uint16) if v.dtype == ml_dtypes.bfloat16 else v for n, v in arrays.items()}
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in bits.items()}
    return {n: v.view(torch.bfloat16) if arrays[n].dtype == ml_dtypes.bfloat16 else v for n, v in tensors.items()}


def fingerprint(arrays: Arrays) -> str:
    """SHA-256 over names, shapes, types and bytes: the identity of a set of weights."""
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Read a file fully into memory, on the CPU."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
