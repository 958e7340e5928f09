"""What the tests of the SNAC codec share."""

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """On arrays this small PyTorch's threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
