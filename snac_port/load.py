"""SNAC from files and to them: every layout, and the names that training gives its checkpoints. Framework-free."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from backends import get
from backends.atomic import write_text
from backends.errors import InputError
from backends.layouts import snac as layouts
from backends.layouts.checkpoint import Checkpoint, find, open_checkpoint
from backends.layouts.files import PICKLED, write
from snac_port.codec import Codec
from snac_port.config import SNACConfig

OPTION = "--checkpoint"
EXPORTS = ("best_model", "checkpoint_")  # names of what fine-tuning writes


def from_pretrained(
    source: str | Path, backend: str = "auto", device: str | None = None, *, option: str = OPTION
) -> Codec:
    """A SNAC on `backend` (mlx, torch or auto) from a directory, weights file or Hub id, or "tiny".

    "tiny" is made on the spot, with random weights. A best_model.pt or checkpoint_epochN.pt means the .safetensors or
    the directory of that name where it is not there or older than they are. `device` is for PyTorch. Raises InputError
    that names the file, or `option` where there is none.
    """
    chosen = get(backend, device)
    if chosen.name == "mlx":
        from snac_port.model import SNAC

        return SNAC.from_pretrained(source, option=option)
    from snac_port import torch_model

    return torch_model.SNAC.from_pretrained(source, device=chosen.device, option=option)  # type: ignore[attr-defined]


def checkpoint(source: str | Path, option: str = OPTION) -> Checkpoint:
    """The tensors of a checkpoint, checked against its configuration."""
    if str(source) == "tiny":
        from snac_port.tiny import checkpoint as tiny

        return tiny()
    return open_checkpoint(find(_existing(source, option), layouts.FAMILY, option), layouts.FAMILY)


def save(path: Path, tensors: Mapping[str, np.ndarray], config: SNACConfig) -> Path:
    """Write tensors of our layout to `path` (.safetensors) and config.json beside it; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.parent / "config.json", json.dumps(config.settings(), indent=1))
    return write(path, tensors, {"format": "mlx"})


def _existing(source: str | Path, option: str) -> str | Path:
    """The .safetensors or directory that is read for a .pt of the same name.

    It is where the .pt is not there, and where the .pt is what --export-pt once wrote beside it and is older.
    """
    path = Path(source).expanduser()
    if path.suffix not in PICKLED or path.exists() and not path.stem.startswith(EXPORTS):
        return source
    stand_ins = [found for found in (path.with_suffix(".safetensors"), path.with_suffix("")) if found.exists()]
    if path.exists():
        return max([path, *stand_ins], key=_written_ns)
    if stand_ins:
        return stand_ins[0]
    raise InputError(f"{option} {source}: no such file, and no {path.stem}.safetensors or directory {path.stem} either")


def _written_ns(path: Path) -> int:
    """When these weights were written; a directory that holds none, but maybe a .pt's config.json, is of no age."""
    file = path / "model.safetensors" if path.is_dir() else path
    return file.stat().st_mtime_ns if file.is_file() else 0
