"""Upstream's small models are quickest on one thread; loops and a model that tests of training share."""

import music_training as training
import pytest
import torch

from musicgen_mlx import tiny
from musicgen_mlx.load import save_pretrained


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    return training.loops(tmp_path_factory.mktemp("loops") / "data")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """musicgen_tiny on disk."""
    folder = tmp_path_factory.mktemp("base")
    save_pretrained(tiny.model(), folder)
    return folder
