"""What all tests share. `import backends` comes first: it gives MLX a fast BLAS on Linux."""

import os

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")  # on Linux CPU mx.compile calls g++; a few tests turn it on
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As many processes as processors run tests: threads of a BLAS that wait for each other made them three times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import backends  # noqa: F401, I001
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep the codec-code cache out of the user's."""
    monkeypatch.setenv("AUDIOSMITH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
