"""Two ranks train as one process with twice the batches does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rank
from toy import Side

import backends
from backends.errors import InputError
from backends.training import loop
from backends.training.log import read

SCRIPT = Path(rank.__file__)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launched(side, directory):
    """Both ranks' output. mlx.launch exits with 0 whatever happens, so the files they leave decide."""
    root = str(SCRIPT.parents[2])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, str(SCRIPT.parent)])}
    command = [sys.executable, str(SCRIPT), side.name, str(directory)]
    if side.name == "mlx":
        launcher = str(Path(sys.executable).with_name("mlx.launch"))
        ranks = [([launcher, "-n", "2", "--starting-port", str(free_port()), *command], shared)]
    else:  # what torchrun sets
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [(command, {**shared, **group, "RANK": str(number)}) for number in range(2)]
    children = [
        subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for arguments, environment in ranks
    ]
    return "".join(child.communicate(timeout=120)[0] for child in children)


def test_two_ranks_equal_one_process_with_twice_the_batches(side, tmp_path, monkeypatch):
    """Seven batches: in the last update of an epoch the second rank has none."""
    output = launched(side, tmp_path)
    files = [tmp_path / f"rank_{number}.npz" for number in range(2)]
    assert all(file.exists() for file in files), output
    first, second = (dict(np.load(file)) for file in files)
    assert {name: value.tobytes() for name, value in first.items()} == {n: v.tobytes() for n, v in second.items()}

    monkeypatch.setattr(loop, "write_report", lambda run, _title, _more=(): run / "report.html")
    alone = side.trained(rank.train(side, tmp_path / "alone", epochs=2, accumulation=2))
    for name, value in alone.items():
        np.testing.assert_allclose(first[name], value, rtol=0, atol=1e-5, err_msg=name)
    rows, expected = read(tmp_path / "metrics.csv"), read(tmp_path / "alone" / "metrics.csv")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        numbers = {"loss", "val_loss", "grad_norm", "next", "size"} & other.keys()
        assert {name: row[name] for name in numbers} == pytest.approx({name: other[name] for name in numbers}, rel=1e-5)
    assert output.count("resuming from") == 1  # one rank speaks
    with pytest.raises(InputError, match="the number of processes has changed"):
        rank.train(side, tmp_path, epochs=3, accumulation=2)


@pytest.mark.parametrize("device", ["mps", "meta", "cuda:99", "99", "gpu"])
def test_devices_that_are_not_there_are_named(device):
    with pytest.raises(InputError, match=f"--device {device}: "):
        backends.get("torch", device)


def test_one_process_alone(side):
    world = side.backend.world
    assert (world.rank, world.size) == (0, 1)
    assert world.sum([0.1, 2.0]) == [0.1, 2.0]
    world.barrier()


def test_ranks_that_find_different_checkpoints_refuse(tmp_path, monkeypatch):
    """As on two machines without a shared folder: one would continue and the other start over."""
    side = Side("mlx")

    class Pair:
        rank, size = 0, 2

        def sum(self, values):
            return [value + 4.0 for value in values]  # the other rank is at step 4

        def barrier(self):
            pass

    monkeypatch.setattr(type(side.backend), "world", Pair())
    with pytest.raises(InputError, match="find different checkpoints there"):
        rank.train(side, tmp_path, epochs=1, accumulation=1)
