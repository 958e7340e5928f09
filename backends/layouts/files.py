"""Checkpoint files as NumPy arrays, read and written one tensor at a time."""

import json
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from backends.atomic import write_atomically
from backends.errors import InputError, missing_extra

CONFIG_KEY = "config"  # the metadata of a weights or adapter file that holds its model's config.json
PICKLED = (".pt", ".pth", ".bin", ".th", ".ckpt")
_DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "BOOL": np.dtype(np.bool_),
}
_AUDIOCRAFT = {"best_state", "pretrained"}  # tensors with their configuration, or the name of where they are
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


class Mapped(np.memmap):
    """A tensor of a file where it lies: arrays of it have this as their `base`."""

    file: BinaryIO
    name: str


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of one or more safetensors files by name.

    Each is mapped when it is looked up and read when it is used: the library's own NumPy arrays are copies of copies,
    which took as long as everything else about loading a model. They may be written to; the file stays as it is.
    """

    def __init__(self, *paths: Path):
        self.paths = paths
        self._files = [_open(path) for path in paths]
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        self._places = {name: place for path in paths for name, place in self._places_in(path).items()}
        self.metadata: dict[str, str] = {
            key: value for file in self._files for key, value in (file.metadata() or {}).items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        file, offset, like = self._places[name]
        if not like.size or offset % like.itemsize:
            return self._where[name].get_tensor(name)
        mapped: Any = Mapped(file, like.dtype, "c", offset, like.shape)
        mapped.file, mapped.name = file, name
        return np.asarray(mapped)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def like(self, name: str) -> np.ndarray:
        """An array of the tensor's shape and dtype whose content was not read."""
        return self._places[name][2]

    def _places_in(self, path: Path) -> dict[str, tuple[BinaryIO, int, np.ndarray]]:
        """Where each tensor of a file that the library has checked lies: the file, its first byte there, its like.

        The file stays open, so that it is read as it was where it is replaced or removed meanwhile.
        """
        file = path.open("rb")
        weakref.finalize(self, file.close)
        size = int.from_bytes(file.read(8), "little")
        found = {}
        for name, entry in json.loads(file.read(size)).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _DTYPES:
                raise InputError(f"{path}: {name} is {entry['dtype']}, which is not supported")
            like = blank(tuple(entry["shape"]), _DTYPES[entry["dtype"]])
            found[name] = file, 8 + size + entry["data_offsets"][0], like
        return found


def unchanged(value: np.ndarray) -> Mapped | None:
    """The tensor of a file that this array is as a whole, in its order; None where it is another or made of it."""
    base = value.base
    if not isinstance(base, Mapped):
        return None
    same = value.shape == base.shape and value.strides == base.strides and value.dtype == base.dtype
    return base if same else None


def blank(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """An array that takes no memory: one element, seen everywhere. For working with shapes."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def blanks(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same names, shapes and dtypes without the content, which a `TensorFile` is not asked to read."""
    if isinstance(tensors, TensorFile):
        return {name: tensors.like(name) for name in tensors}
    return {name: blank(value.shape, value.dtype) for name, value in tensors.items()}


class Pickled(dict[str, np.ndarray]):
    """The tensors of a PyTorch file; `metadata` is what audiocraft's say about themselves."""

    metadata: Mapping[str, str] = {}


def metadata(tensors: Mapping[str, np.ndarray]) -> Mapping[str, str]:
    """What a file says about itself, as names and texts."""
    return tensors.metadata if isinstance(tensors, TensorFile | Pickled) else {}


def open_tensors(path: Path) -> Mapping[str, np.ndarray]:
    """The tensors of a .safetensors file, of an index.json's shards, or of a .pt/.bin/.pth file (needs PyTorch)."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.name.endswith(".index.json"):
        return _sharded(path)
    if path.suffix == ".safetensors":
        return TensorFile(path)
    if path.suffix in PICKLED:
        return _pickled(path)
    raise InputError(f"{path}: not a weights file; expected .safetensors, .index.json or {', '.join(PICKLED)}")


def write(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    like: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a safetensors file atomically, looking tensors up one at a time; returns `path`.

    `like`, if given, has their shapes and dtypes without the content, so that each is looked up only once.
    """
    like = like or tensors
    # Wide elements first keeps every tensor aligned; the format allows no gaps.
    names = sorted(like, key=lambda name: (-like[name].dtype.itemsize, name))

    def save(staging: Path) -> None:
        with staging.open("wb") as file:
            file.write(_header({name: like[name] for name in names}, {"format": "pt", **(metadata or {})}))
            for name in names:
                value = tensors[name]
                assert (value.shape, value.dtype) == (like[name].shape, like[name].dtype), name
                file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)

    return write_atomically(path, save)


def _header(like: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The length of the JSON that follows, as 8 bytes, and the JSON, which spaces extend to a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, value in like.items():
        end = start + value.size * value.dtype.itemsize
        entries[name] = {"dtype": _CODES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_json(path: Path) -> dict:
    """A JSON object from a file, with one-line errors."""
    try:
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def parse_json(text: str, source: str) -> dict:
    """A JSON object from text, with one-line errors that begin with `source`."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{source}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{source}: expected a JSON object")
    return content


def _open(path: Path):  # noqa: ANN202 (a handle of the Rust library)
    try:
        return safe_open(str(path), framework="np")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); download it again") from error


def _sharded(index: Path) -> TensorFile:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f"{index}: expected an object weight_map from tensor to file")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise InputError(f"{index}: weight_map names {shard}, expected a file of the same folder")
    tensors = TensorFile(*(index.parent / shard for shard in shards))
    for name, shard in weight_map.items():
        if name not in tensors:
            raise InputError(f"{index}: {name} is not in {shard}, where weight_map has it; download both again")
    return tensors


def _pickled(path: Path) -> Pickled:
    """A PyTorch file, read without running any code it may hold (weights_only)."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra(f"torch, which reading {path.name} needs,", "torch") from error
    import zipfile

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # noqa: BLE001 (from damaged pickles the reader raises a dozen kinds)
        why = f"{error}".partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not a plain PyTorch weights file ({why})") from error
    said = {}
    if isinstance(content, dict) and content.keys() & _AUDIOCRAFT:
        said = {name: value for name, value in content.items() if isinstance(value, str)}
        content = content.get("best_state", {})
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        remedy = "; export it with audiocraft's export.py" if said else ""
        raise InputError(f"{path}: expected a flat dictionary of tensors{remedy}")
    tensors = Pickled({name: _numpy(value) for name, value in content.items()})
    tensors.metadata = said
    return tensors


def _numpy(value) -> np.ndarray:  # noqa: ANN001 (torch is imported when needed)
    import torch

    if value.dtype == torch.bfloat16:
        return value.detach().contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return value.detach().contiguous().numpy()
