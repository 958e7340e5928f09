"""Checkpoint files as NumPy arrays, read one tensor at a time."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from backends.atomic import write_atomically
from backends.errors import InputError, missing_extra


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of one or more safetensors files by name; each is read when it is looked up."""

    def __init__(self, *paths: Path):
        self._files = [_open(path) for path in paths]
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        self.metadata: dict[str, str] = {
            key: value for file in self._files for key, value in (file.metadata() or {}).items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return self._where[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def open_tensors(path: Path) -> Mapping[str, np.ndarray]:
    """The tensors of a .safetensors file, of an index.json's shards, or of a .pt/.bin/.pth file (needs PyTorch)."""
    if path.name.endswith(".index.json"):
        return TensorFile(*_shards(path))
    if path.suffix == ".safetensors":
        return TensorFile(path)
    return _pickled(path)


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file atomically; returns `path`."""
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    metadata = {"format": "pt", **(metadata or {})}

    def save(staging: Path) -> None:
        try:
            save_file(whole, staging, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    return write_atomically(path, save)


def read_json(path: Path) -> dict:
    """A JSON object from a file, with one-line errors."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object")
    return content


def _open(path: Path):  # noqa: ANN202 (a handle of the Rust library)
    try:
        return safe_open(str(path), framework="np")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); download it again") from error


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: expected an object weight_map from tensor to file")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def _pickled(path: Path) -> dict[str, np.ndarray]:
    """A PyTorch file, read without running any code it may hold (weights_only)."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra(f"torch, which reading {path.name} needs,", "torch") from error
    import pickle

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a plain PyTorch weights file ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"{path}: expected a flat dictionary of tensors")
    return {name: _numpy(value) for name, value in content.items()}


def _numpy(value) -> np.ndarray:  # noqa: ANN001 (torch is imported when needed)
    import torch

    if value.dtype == torch.bfloat16:
        return value.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return value.contiguous().numpy()
