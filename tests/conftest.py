"""What all tests share. `import backends` comes first: it gives MLX a fast BLAS on Linux."""

import os

os.environ.setdefault("MLX_DISABLE_COMPILE", "1")  # on Linux CPU mx.compile calls g++; a few tests turn it on
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # as many processes as processors run tests, and threads
    os.environ.setdefault(threads, "1")  # of a BLAS that wait for each other's processor make them three times slower

import backends  # noqa: F401, I001
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep the codec-code cache out of the user's."""
    monkeypatch.setenv("AUDIOSMITH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
