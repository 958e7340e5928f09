"""--ddp: two ranks on this machine equal one process with the double batch; a rank that dies ends the run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from finetuning import flags, narrow, run, weights

from backends.training import log

ROOT = Path(__file__).parents[2]
BACKENDS = ("mlx", "torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return narrow(tmp_path_factory.mktemp("narrow"))


def start(model: Path, output: Path, backend: str, *extra: object, nproc: int = 2) -> subprocess.Popen:
    """The command as a user types it."""
    argv = flags(model, output, backend, "--ddp", "--nproc", nproc, *extra)
    return opened([sys.executable, "-m", "snac_port.finetune", *argv])


def opened(argv: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        argv, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def rows(folder: Path) -> list[dict]:
    return log.read(folder / "metrics.csv")


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_equal_one_process_with_the_double_batch(backend, model, tmp_path):
    code, output = finished(start(model, tmp_path / "two", backend, "--batch_size", 2))
    assert code == 0, output
    assert output.count("weights:") == 1  # one rank speaks
    run(model, tmp_path / "one", backend, "--batch_size", 4)
    two, one = weights(tmp_path / "two" / "best_model"), weights(tmp_path / "one" / "best_model")
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=0, atol=1e-5, err_msg=name)
    losses = [
        [(row["step"], row.get("loss", row.get("val_loss"))) for row in rows(tmp_path / f)] for f in ("two", "one")
    ]
    assert len(losses[0]) == len(losses[1]) > 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    baselines = [json.loads((tmp_path / f / "baseline_metrics.json").read_text()) for f in ("two", "one")]
    assert baselines[0]["0.25s"]["val_loss"] == pytest.approx(baselines[1]["0.25s"]["val_loss"], rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_device_is_one_process(backend, model, tmp_path):
    code, output = finished(start(model, tmp_path / "one", backend, "--num_epochs", 1, nproc=1))
    assert code == 0, output
    assert f"on {backend} in 1 process(es)" in output
    assert output.count("weights:") == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_launcher_may_start_one_process(backend, model, tmp_path):
    """The user's own: mlx.launch gives a single process an empty list of hosts."""
    launchers = {
        "mlx": [str(Path(sys.executable).with_name("mlx.launch")), "-n", "1", "--", sys.executable, "-m"],
        "torch": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "-m", "--"],
    }
    argv = flags(model, tmp_path, backend, "--num_epochs", 1)
    code, output = finished(opened([*launchers[backend], "snac_port.finetune", *argv]))
    assert code == 0, output
    assert f"on {backend} in 1 process(es)" in output
    assert (tmp_path / "best_model" / "model.safetensors").is_file(), output


@pytest.mark.slow  # launchers, signals and timing: not for a loaded machine
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rank_that_is_killed_ends_the_run_which_then_resumes(backend, model, tmp_path):
    folder = tmp_path / "run"
    process = start(model, folder, backend, "--batch_size", 1, "--save_every_batches", 1)
    ranks = children_with(process.pid, "snac_port.finetune", folder / "checkpoints")
    os.kill(ranks[-1], signal.SIGKILL)
    code, output = finished(process)
    assert code != 0, output
    assert "processes failed" in output
    code, output = finished(start(model, folder, backend, "--batch_size", 1, "--save_every_batches", 1))
    assert code == 0, output
    assert output.count("resuming from") == 1
    run(model, tmp_path / "one", backend, "--batch_size", 2)
    two, one = weights(folder / "checkpoint_epoch2"), weights(tmp_path / "one" / "checkpoint_epoch2")
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.slow  # launchers, signals and timing: not for a loaded machine
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_command_that_is_told_to_stop_leaves_no_rank_behind(backend, model, tmp_path):
    more = ("--batch_size", 1, "--curriculum", "[]", "--segment_length", 0.25, "--num_epochs", 40)
    process = start(model, tmp_path, backend, *more, "--save_every_batches", 1)
    ranks = children_with(process.pid, "snac_port.finetune", tmp_path / "checkpoints")
    process.terminate()
    code, output = finished(process)
    assert code == 143, output
    assert output.count("stopping after this step") == 2
    assert [command(pid) for pid in ranks] == ["", ""]


def children_with(parent: int, word: str, until: Path) -> list[int]:
    """The ranks' process numbers, once a checkpoint is there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list(until.glob("step_*")):
            found = [pid for pid in descendants(parent) if word in command(pid) and "launch" not in command(pid)]
            found = [pid for pid in found if "torch.distributed.run" not in command(pid)]
            if len(found) >= 2:
                return found
        time.sleep(0.05)
    raise AssertionError("no checkpoint in two minutes")


def descendants(parent: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{parent}/task").glob("*"):
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return sorted(found)


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
