"""Weights come to MLX as their file has them, whichever way they are read."""

import threading

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from backends.layouts.files import TensorFile, write
from backends.mlx_backend import files, reading

RNG = np.random.default_rng(0)
ARRAYS = {
    "single": RNG.standard_normal((3, 4, 5)).astype(np.float32),
    "half": RNG.standard_normal((4, 3)).astype(np.float16),
    "brain": RNG.standard_normal((2, 6)).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def file(tmp_path):
    return TensorFile(write(tmp_path / "model.safetensors", ARRAYS))


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, value in files.to_host(found).items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name])


def test_what_lies_as_it_is_wanted_is_read_by_mlx(file, monkeypatch):
    copied = []
    monkeypatch.setattr(reading.mx, "array", lambda value: copied.append(value.shape))
    found = reading.loaded(file)
    assert copied == [(0, 4)]
    check({name: value for name, value in found.items() if name != "empty"},
          {name: value for name, value in ARRAYS.items() if name != "empty"})  # fmt: skip


def test_what_is_turned_or_cut_is_copied(file):
    given = {"turned": file["single"].swapaxes(0, 2), "cut": file["single"][1:], "row": file["brain"][1],
             "flat": file["half"].reshape(-1), "plain": ARRAYS["single"], "same": file["single"]}  # fmt: skip
    check(reading.loaded(given), given)


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_is_replaced_meanwhile_is_read_as_it_was(file, gone):
    path = file.paths[0]
    if gone:
        path.unlink()
    else:
        write(path, {name: np.zeros_like(value) for name, value in ARRAYS.items()})
    check(reading.loaded(file), ARRAYS)


def test_another_thread_may_use_them(file):
    """MLX evaluates nothing of another thread's: what was read only when it is used would fail."""
    found, sums = reading.loaded(file), []
    thread = threading.Thread(target=lambda: sums.append(mx.sum(found["single"]).item()))
    thread.start()
    thread.join()
    np.testing.assert_allclose(sums, ARRAYS["single"].sum(), rtol=1e-5)


def test_a_file_that_was_closed_is_copied(tmp_path):
    given = dict(TensorFile(write(tmp_path / "model.safetensors", ARRAYS)))
    check(reading.loaded(given), ARRAYS)
