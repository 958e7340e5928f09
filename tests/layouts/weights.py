"""Small checkpoints for tests of layouts, and running the converter as its command does."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from backends.cli import run
from backends.layouts import convert

HEADS = {"backbone": (4, 1), "decoder": (2, 1)}  # of oracles.csm: query and key heads
MIMI_HEADS = 4


def load(path: Path) -> dict[str, np.ndarray]:
    """Every tensor, read by the reference library."""
    with safe_open(str(path), framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def save(path: Path, tensors: dict[str, np.ndarray], config: dict | Path | None = None) -> Path:
    """Write by the reference library, with a configuration beside it (a dict, or a folder to take it from)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, {"format": "pt"})
    if isinstance(config, Path):
        shutil.copyfile(config / "config.json", path.parent / "config.json")
    elif config is not None:
        (path.parent / "config.json").write_text(json.dumps(config))
    return path


def in_bfloat16(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal names, dtypes, shapes and bytes."""
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        assert got[name].shape == value.shape, name
        assert got[name].tobytes() == value.tobytes(), name


def converted(source: Path | str, to: Path, name: str, *more: str) -> Path:
    """Convert as the command line does; returns the weights file."""
    run(convert.main, convert.Options, [str(source), str(to), "--to", name, *more])
    return to if to.suffix else to / "model.safetensors"


def refused(capsys: pytest.CaptureFixture, *argv: object) -> str:
    """Run the command, which must end with exit code 2 and one line; returns the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(convert.main, convert.Options, [str(part) for part in argv])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]
