"""The PyTorch backend on an NVIDIA GPU: make test-cuda."""

import numpy as np
import pytest
from toy import Side, collate, examples, weights

from backends import get
from backends.base import OptimSpec

pytestmark = pytest.mark.cuda


def test_updates_on_cuda_equal_updates_on_the_cpu():
    side = Side("torch")
    batch = [collate(examples(4))]
    trained = {}
    for device in ("cpu", "cuda"):
        backend = get("torch", device)
        model = side.net().to(device)
        step = backend.train_step(model, side.module.terms, OptimSpec("adamw", max_norm=1.0))
        for _ in range(5):
            step(batch, weights(batch, backend.world), 1e-3)
        trained[device] = {name: value.detach().cpu().numpy() for name, value in backend.trainable(model).items()}
    for name, value in trained["cpu"].items():
        assert np.abs(trained["cuda"][name] - value).max() <= 1e-4, name


def test_memory_and_automatic_choice():
    chosen = get("auto")
    assert chosen.name == ("mlx" if get("mlx").has_gpu else "torch")
    assert chosen.has_gpu
    memory = get("torch", "cuda").memory()
    assert memory.limit is not None
    assert memory.limit > 1e9
