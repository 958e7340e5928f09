"""Tensors of files are mapped, whatever their type, and belong to who looked them up."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from backends.errors import InputError
from backends.layouts.files import TensorFile, blanks, open_tensors, write

ARRAYS = {
    "wide": np.arange(6, dtype=np.float64).reshape(2, 3),
    "single": np.float32([1.5, -2]),
    "half": np.float16([[0.5]]),
    "brain": np.array([1, 2, 3], ml_dtypes.bfloat16),
    "flags": np.array([True, False, True]),
    "number": np.array(7, np.int64),
    "none": np.zeros((0, 4), np.float32),
}


def test_every_type_comes_back(tmp_path):
    found = open_tensors(write(tmp_path / "model.safetensors", ARRAYS))
    assert found.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    assert {name: (like.shape, like.dtype) for name, like in blanks(found).items()} == {
        name: (value.shape, value.dtype) for name, value in ARRAYS.items()
    }


def test_tensors_that_do_not_lie_on_their_words(tmp_path):
    """The library writes them where a file's names put them: here after a single byte."""
    path = tmp_path / "model.safetensors"
    header = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    )
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x07" + np.float32([3, 4]).tobytes())
    found = TensorFile(path)
    assert found["a"].tolist() == [7]
    assert found["b"].tolist() == [3, 4]


def test_writing_to_a_tensor_leaves_the_file(tmp_path):
    path = write(tmp_path / "model.safetensors", ARRAYS)
    value = TensorFile(path)["single"]
    value[:] = 0
    assert TensorFile(path)["single"].tolist() == [1.5, -2]


def test_a_replaced_file_leaves_what_was_looked_up(tmp_path):
    path = write(tmp_path / "model.safetensors", ARRAYS)
    value = TensorFile(path)["single"]
    write(path, {"single": np.float32([9, 9])})
    assert value.tolist() == [1.5, -2]


def test_a_file_that_is_replaced_meanwhile_is_read_as_it_was(tmp_path):
    """By a run that saves again, or moved away: tensors of two states must not be mixed."""
    path = write(tmp_path / "model.safetensors", ARRAYS)
    found = TensorFile(path)
    write(path, {name: np.zeros_like(value) for name, value in ARRAYS.items()})
    assert found["single"].tolist() == [1.5, -2]
    assert found["brain"].tolist() == [1, 2, 3]
    path.unlink()
    assert found["wide"].tolist() == ARRAYS["wide"].tolist()


def test_other_types_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"odd": np.zeros(2, np.uint16)}, path)
    with pytest.raises(InputError, match="odd is U16, which is not supported"):
        TensorFile(path)
