"""Configurations and weights of the codecs that `codec_run` trains: those of a scale, and files that hold them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from backends.atomic import write_text
from backends.base import Backend
from backends.errors import InputError
from backends.layouts.checkpoint import Checkpoint
from backends.layouts.families import Family, Settings
from backends.layouts.files import read_json, write
from backends.layouts.rules import to_theirs

KERNELS = ("kernel", "last_kernel", "residual_kernel")


def of_scale(
    scale: str, named: Mapping[str, Settings], family: Family, checked: Callable[[Mapping[str, Any]], Settings],
    wrong: Callable[[Settings], Mapping[str, object]],
) -> Settings:  # fmt: skip
    """The configuration that --scale asks for: one of `named`, or a JSON file in transformers' form or ours.

    `checked` fills in what ours leaves out. `wrong` says of problems whether a codec of this configuration has them,
    besides those of all (`_wrong`). Raises InputError where it has one, so that the codec could not train, or not be
    written in transformers' layout.
    """
    if scale in named:
        return named[scale]
    path = Path(scale)
    if not path.is_file():
        expected = f"{', '.join(named)} or a JSON file with {family.title}'s configuration"
        raise InputError(f"--scale {scale}: expected {expected}")
    content = read_json(path)
    try:
        found = family.read_settings(content, str(path)) or checked(content)
        problems = {**_wrong(found), **wrong(found)}
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}; known: {', '.join(family.published)}") from error
    for problem, is_so in problems.items():
        if is_so:
            raise InputError(f"{path}: {problem}")
    return found


def _wrong(found: Settings) -> dict[str, object]:
    entries, kernels = found["entries"], [found[kernel] for kernel in KERNELS]
    return {
        f"entries {entries}: expected a power of 2": entries < 2 or entries & (entries - 1),
        f"even kernel among {kernels}: expected odd ones": any(kernel % 2 == 0 for kernel in kernels),
    }


def native(
    backend: Backend, checkpoint: Checkpoint, mlx: Callable[[Checkpoint], Any], torch: Callable[[Checkpoint], Any]
) -> Any:
    """The codec as `mlx` or `torch` opens it, in float32 and on the backend's device."""
    if backend.name == "mlx":
        import mlx.core as mx

        model = mlx(checkpoint)
        model.set_dtype(mx.float32)
        return model
    return torch(checkpoint).to(backend.device)  # type: ignore[attr-defined]


def tensors(backend: Backend, model: Any) -> dict[str, np.ndarray]:
    """All weights in our layout."""
    return backend.to_host(backend.parameters(model)) if backend.name == "mlx" else model.tensors()


def save(
    folder: Path, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any], family: Family, layout: str
) -> Path:
    """Write a layout of the family, weights and config.json; returns the weights file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(family.write_settings(dict(settings), layout), indent=1))
    named = to_theirs(tensors, family.rules(layout, dict(settings)), family.title)
    return write(folder / "model.safetensors", dict(named))
