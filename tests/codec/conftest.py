"""The suite of codec training runs over both backends."""

import pytest
import torch
from toy import Side


@pytest.fixture(params=["mlx", "torch"])
def side(request):
    return Side(request.param)


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """On arrays this small PyTorch's threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def sides():
    return Side("mlx"), Side("torch")
