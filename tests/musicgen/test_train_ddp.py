"""python -m musicgen_mlx.train --ddp: two processes take the steps that one takes with twice the accumulation."""

import os
import subprocess
import sys
from pathlib import Path

import music_training as training
import numpy as np
import pytest
from safetensors.numpy import load_file

from backends import cli
from backends.layouts import musicgen
from backends.layouts.checkpoint import find, open_checkpoint
from backends.training import log
from musicgen_mlx import train
from musicgen_mlx.train_options import MusicGenOptions

ROOT = Path(__file__).parents[2]
PLAIN = ("--scale", "xsmall", "--dim", 32, "--heads", 2, "--layers", 1, "--batch-size", 1)
AVERAGED = (*PLAIN, "--ema-decay", 0.5)
LORA = ("--model", "tiny", "--batch-size", 1, "--lora-rank", 2, "--ema-decay", 0.5)


@pytest.mark.parametrize("arguments", [PLAIN, AVERAGED, LORA], ids=["plain", "averaged", "lora"])
@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_two_processes_equal_one_that_accumulates(backend, arguments, tmp_path):
    # 5 to train on: one process gets none in the end.
    loops = training.loops(tmp_path / "loops", 7, described=arguments is LORA)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "AUDIOSMITH_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    flags = training.flags(loops, tmp_path / "two", backend, *arguments, "--ddp", "--nproc", 2)
    done = subprocess.run(
        [sys.executable, "-m", "musicgen_mlx.train", *flags], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 processes") == done.stdout.count("weights: ") == 1  # one process speaks
    one = training.run(loops, tmp_path / "one", backend, *arguments, "--gradient-accumulation", 2)
    rows = [log.read(folder / "metrics.csv") for folder in (tmp_path / "two", one)]
    found = [[(row["step"], row.get("loss", row.get("val_loss"))) for row in each] for each in rows]
    assert len(found[0]) == len(found[1]) > 4
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    two, one = (trained(folder) for folder in (tmp_path / "two", one))
    assert set(two) == set(one)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("backend", "processes"), [("mlx", 1), ("mlx", 2), ("torch", 2)])
def test_what_the_processes_refuse_is_bad_input_of_the_command(backend, processes, tmp_path):
    (tmp_path / "empty").mkdir()
    flags = training.flags(tmp_path / "empty", tmp_path / "run", backend, *PLAIN, "--ddp", "--nproc", processes)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "musicgen_mlx.train", *flags], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert f"error: --data {tmp_path / 'empty'}: holds no recordings" in done.stdout + done.stderr
    assert "run the same command again" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ddp", "--device", "cuda:0"], "--device cuda:0: with --ddp"),
        (["--nproc", "2"], "--nproc 2: only with --ddp"),
    ],
)
def test_flags_that_do_not_go_together_are_named(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main, MusicGenOptions, ["--data", str(tmp_path), *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def trained(run: Path) -> dict[str, np.ndarray]:
    """The last model of a run, or the last epoch's adapter."""
    if (adapter := run / "lora_ckpt_epoch_2.safetensors").exists():
        return load_file(adapter)
    folder = run / "last_model"
    return dict(open_checkpoint(find(folder, musicgen.FAMILY, "--model"), musicgen.FAMILY).ours)
