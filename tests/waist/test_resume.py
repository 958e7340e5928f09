"""Killed, terminated, out of disk: the same command again ends bit-identical to a run that was never disturbed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from child import run
from kill import Kill, Killed

from backends.training import loop
from backends.training.checkpoints import Checkpoints, damage
from backends.training.log import read

CHILD = Path(__file__).with_name("child.py")
EXACT = ("step", "epoch", "loss", "val_loss", "learning_rate", "grad_norm", "next", "size")  # not speed and memory


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(loop, "write_report", lambda directory, _title, _more=(): directory / "report.html")


def start(side, directory, *flags):
    root = str(CHILD.parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, str(CHILD.parent)])}
    return subprocess.Popen(
        [sys.executable, str(CHILD), side.name, str(directory), *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def disturb(side, directory, number, delay_s=None):
    """Send a signal so long after the first update, or as soon as a save has begun; returns exit code and errors."""
    child = start(side, directory, "--slow-disk")
    for line in child.stdout:
        if line == "training\n":
            break
    if delay_s is not None:
        time.sleep(delay_s)
    while delay_s is None and not unfinished(directory) and child.poll() is None:
        time.sleep(0.001)
    child.send_signal(number)
    _, errors = child.communicate()
    return child.returncode, errors


def unfinished(directory):
    return list((directory / "checkpoints").glob("step_*.tmp"))


def assert_same_run(directory, expected):
    """Final parameters and moments bit by bit, the exported files, and the log row by row."""
    newest, reference = (Checkpoints(path / "checkpoints").all()[-1] for path in (directory, expected))
    assert newest.name == reference.name == "step_24"
    files = [f"checkpoints/step_24/{name}.safetensors" for name in ("weights", "optimizer")]
    for name in [*files, "net_epoch_6.safetensors", "net_best.safetensors"]:
        assert (directory / name).read_bytes() == (expected / name).read_bytes(), name
    rows = [
        [{name: row.get(name) for name in EXACT} for row in read(path / "metrics.csv")]
        for path in (directory, expected)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 18  # twelve of training, six of validation


def test_the_same_command_beside_a_live_run_is_refused(side, tmp_path):
    """In another process; once the first is killed, however rudely, the directory is free."""
    directory = tmp_path / "run"
    first = start(side, directory, "--slow-disk")
    for line in first.stdout:
        if line == "training\n":
            break
    first.send_signal(signal.SIGSTOP)
    second = start(side, directory)
    _, errors = second.communicate()
    assert second.returncode == 1  # of child.py
    assert f"error: --output-dir {directory}: in use by another process (pid {first.pid}): wait" in errors
    first.kill()
    first.communicate()
    run(side, directory)
    assert Checkpoints(directory / "checkpoints").all()[-1].name == "step_24"


@pytest.fixture
def undisturbed(side, tmp_path):
    run(side, tmp_path / "undisturbed")
    return tmp_path / "undisturbed"


def test_killed_at_random_moments(side, tmp_path, undisturbed):
    """kill -9 four times, once within a save, and a SIGTERM; every time the same command."""
    directory, draw = tmp_path / "run", np.random.default_rng(11)
    for delay_s in (*draw.uniform(0.0, 0.15, 3), None):
        code, errors = disturb(side, directory, signal.SIGKILL, delay_s)
        assert code == -signal.SIGKILL, errors
        assert sum(damage(path) is not None for path in Checkpoints(directory / "checkpoints").all()) <= 1
    assert unfinished(directory)
    code, errors = disturb(side, directory, signal.SIGTERM, 0.05)
    assert code == 128 + signal.SIGTERM, errors
    assert "run the same command to continue" in errors
    assert not unfinished(directory)
    last = start(side, directory)
    output, errors = last.communicate()
    assert last.returncode == 0, errors
    assert "resuming from" in output
    assert_same_run(directory, undisturbed)


def test_killed_at_every_point_of_a_save(side, tmp_path, undisturbed, monkeypatch):
    """Each start is killed one operation further into its first save, and the next one continues."""
    directory, save, at, done = tmp_path / "run", Checkpoints.save, 0, False
    writers = [(type(side.backend), "write")]
    while not done:
        at += 1

        def killed(self, step, write, at=at):
            with monkeypatch.context() as patch:
                Kill(patch, at, writers)
                return save(self, step, write)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", killed)
            try:
                run(side, directory)
                done = True
            except Killed:
                newest = Checkpoints(directory / "checkpoints").newest(pytest.fail)
                assert (newest is not None) or at < 20
    assert at > 20
    assert_same_run(directory, undisturbed)


def test_full_disk(side, tmp_path, undisturbed):
    """The third checkpoint does not fit: one line, exit, and the second is there to continue from."""
    directory = tmp_path / "run"
    child = start(side, directory, "--full-disk-after", "2")
    _, errors = child.communicate()
    assert child.returncode == 1
    message = errors.strip().splitlines()[-1]
    assert message.startswith(f"error: {directory / 'checkpoints' / 'step_3'}: cannot save a checkpoint (")
    assert message.endswith("free some disk space and run the same command again")
    assert [path.name for path in sorted((directory / "checkpoints").iterdir())] == ["step_1", "step_2"]
    assert Checkpoints(directory / "checkpoints").newest() == directory / "checkpoints" / "step_2"
    run(side, directory)
    assert_same_run(directory, undisturbed)
