"""Weights are joined where there are steps enough; either way they choose the codes that the modules choose."""

import numpy as np
import pytest
import torch

from backends.mlx_backend.parameters import parameters
from backends.mlx_backend.sampling import Sampler
from backends.torch_backend.sampling import Sampler as TorchSampler
from musicgen_mlx import condition, decode, fused, torch_decode, torch_fused, torch_generation, torch_model
from musicgen_mlx.forms import Columns, Rows
from musicgen_mlx.generation import generate_codes
from musicgen_mlx.thresholds import joining_pays
from musicgen_mlx.tiny import checkpoints, musicgen_tiny
from musicgen_mlx.tiny import model as tiny

MANY = 10**6
ROWS = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, musicgen_tiny().text_width), np.float32))


@pytest.mark.parametrize(("width", "steps"), [(64, 2), (512, 66), (1024, 263), (2048, 1049)])
def test_wide_layers_want_more_steps(width, steps):
    assert joining_pays(width, steps)
    assert not joining_pays(width, steps - 1)


@pytest.mark.parametrize("form", [Columns, Rows])
@pytest.mark.parametrize("kind", ["cross", "prepend", "none"])
def test_mlx(kind, form, monkeypatch):
    monkeypatch.setattr(fused, "form_for", lambda _rows: form)
    model = tiny(kind)
    said = None if kind == "none" else condition.from_texts(model, ["jungle", "slow piano"])
    found = []
    for joined in (False, True):
        monkeypatch.setattr(fused, "joining_pays", lambda *_, joined=joined: joined)
        found.append(np.array(generate_codes(model, 10, said, seeds=[0, 1], sampler=Sampler(0))))
        path = model._companions["fused"]
        assert path.joined == joined
        assert len(path.emb) == (1 if joined else 4)
    monkeypatch.setattr(decode, "fused_path", lambda *_: None)
    expected = np.array(generate_codes(model, 10, said, seeds=[0, 1], sampler=Sampler(0)))
    for codes in found:
        np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("kind", ["cross", "none"])
def test_torch(kind, monkeypatch):
    model = torch_model.of_checkpoint(checkpoints(kind)["musicgen"])
    said = model.condition(ROWS, torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()) if kind == "cross" else None
    options = {"seeds": [0, 1], "sampler": TorchSampler(0)}
    found = []
    for joined in (False, True):
        monkeypatch.setattr(torch_fused, "joining_pays", lambda *_, joined=joined: joined)
        found.append(torch_generation.generate_codes(model, 10, said, **options))
        assert model.__dict__["_fused"].joined == joined
    monkeypatch.setattr(torch_decode, "fused_path", lambda *_: None)
    expected = torch_generation.generate_codes(model, 10, said, **options)
    assert all(torch.equal(codes, expected) for codes in found)


def test_joined_weights_stay_joined():
    model = tiny()
    before = {name: np.array(value) for name, value in parameters(model).items()}
    few = fused.fused_path(model, 0)
    assert few is not None
    assert not few.joined
    assert fused.fused_path(model, 1) is few
    many = fused.fused_path(model, MANY)
    assert many is not None
    assert many.joined
    assert fused.fused_path(model, 0) is many
    assert all((np.array(value) == before[name]).all() for name, value in parameters(model).items())
    model.layers[0].linear1.weight = model.layers[0].linear1.weight + 0
    assert fused.fused_path(model, 0) is not many
