"""Modules are made without drawing, and what they load stays the owner's."""

import numpy as np
import pytest
import torch
from transformers import MusicgenMelodyDecoderConfig, MusicgenMelodyForCausalLM

from backends.layouts.files import TensorFile, write
from backends.torch_backend.blank import loaded

ARRAYS = {"weight": np.float32([[1, 2], [3, 4]]), "bias": np.float32([5, 6])}


def linear():
    return torch.nn.Linear(2, 2)


def test_the_model_has_its_own_weights_and_nothing_was_drawn():
    before = torch.get_rng_state()
    model = loaded(linear, ARRAYS)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    with torch.no_grad():
        model.weight.zero_()
    assert ARRAYS["weight"].tolist() == [[1, 2], [3, 4]]
    assert loaded(linear, ARRAYS).weight.tolist() == [[1, 2], [3, 4]]


def test_a_model_of_transformers_is_not_drawn_either():
    """It calls functions of its own, which transformers puts in the place of PyTorch's meanwhile."""
    config = MusicgenMelodyDecoderConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, ffn_dim=8)
    tensors = {name: value.numpy() for name, value in MusicgenMelodyForCausalLM(config).state_dict().items()}
    before = torch.get_rng_state()
    model = loaded(lambda: MusicgenMelodyForCausalLM(config), tensors)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, torch.from_numpy(tensors[name])) for name, value in model.state_dict().items())


def test_mapped_arrays_are_taken_without_a_copy(tmp_path):
    mapped = dict(TensorFile(write(tmp_path / "model.safetensors", ARRAYS)))
    model = loaded(linear, mapped)
    assert model.weight.data_ptr() == mapped["weight"].ctypes.data
    assert model.weight.requires_grad


def test_other_types_become_float32():
    half = {name: value.astype(np.float16) for name, value in ARRAYS.items()}
    model = loaded(linear, half)
    assert model.weight.dtype == torch.float32
    assert model.bias.tolist() == [5, 6]


def test_missing_tensors_are_an_error():
    with pytest.raises(RuntimeError, match="bias"):
        loaded(linear, {"weight": ARRAYS["weight"]})
