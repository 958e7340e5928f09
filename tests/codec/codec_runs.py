"""What the tests of codec training's commands share: options of short runs, and runs that are cut or refused."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from backends import cli
from backends.training import loop

DATA = Path(__file__).parents[2] / "examples" / "fsdd_george"


def swelling(batch: int, samples: int) -> np.ndarray:
    """Noise whose loudness swells. Never silent: a magnitude near 0 has no direction, so its gradient is noise."""
    noise = np.random.default_rng(1).standard_normal((batch, samples)) * (0.2 + np.sin(np.arange(samples) / 2000) ** 2)
    return (0.3 * noise).astype(np.float32)


def short(folder: Path, backend: str, scale: dict) -> dict:
    """Options of a run in folder/run from random weights at this scale."""
    folder.mkdir(exist_ok=True)
    (folder / "small.json").write_text(json.dumps(scale))
    return {
        "train_data": DATA / "train", "val_data": DATA / "val", "output_dir": folder / "run", "backend": backend,
        "device": None if backend == "mlx" else "cpu", "scale": str(folder / "small.json"), "batch_size": 8,
        "n_ffts": (256,), "quantize_after": 10, "samples": 0, "log_every": 4, "save_every": 0, "num_workers": 1,
    }  # fmt: skip


def few(folder: Path) -> dict:
    """Options for runs of two updates an epoch on a few short recordings."""
    for name, count in (("train", 8), ("val", 4)):
        (folder / name).mkdir()
        for path in sorted((DATA / name).glob("*.wav"))[:count]:
            shutil.copy(path, folder / name)
    data = {"train_data": folder / "train", "val_data": folder / "val"}
    return {**data, "batch_size": 4, "segment_length": 0.2, "mel_weight": 0.0, "eval_every": 100}


class Killed(BaseException):
    """Stands for whatever ends a process."""


@contextmanager
def killed_at(step: int):
    """What runs inside trains to this step and is ended there."""
    update = loop._Run._update

    def dying(run, batches):
        if run.state.step == step:
            raise Killed
        update(run, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_update", dying)
        with pytest.raises(Killed):
            yield


def refusal(command, options: type, argv: list, capsys) -> str:
    """The one line with which a command refuses these flags."""
    with pytest.raises(SystemExit) as stop:
        cli.run(command, options, [str(flag) for flag in argv])
    assert stop.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed
    return printed
