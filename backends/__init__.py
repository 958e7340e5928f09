"""What the model packages share: backends, adapters, training, data and checkpoint layouts.

`get` returns a backend (MLX or PyTorch). Neither framework is imported before it is asked for.
"""

import ctypes
import sys
from pathlib import Path

from backends import blas
from backends.base import Backend
from backends.errors import InputError, missing_extra
from backends.importing import imported

__all__ = ["Backend", "InputError", "get"]

blas.install()


def get(name: str = "auto", device: str | None = None) -> Backend:
    """Return the backend `name`: "mlx", "torch" or "auto".

    "auto" is MLX where MLX has a GPU, else PyTorch where that has CUDA, else MLX (PyTorch where only that is there).
    `device` is a PyTorch device such as "cuda:0" or "cpu"; MLX follows `mx.set_default_device`.
    Raises InputError for an unknown name or a framework that is not installed.
    """
    if name == "auto":
        name = _automatic()
    if name == "mlx":
        return _mlx(device)
    if name == "torch":
        return _torch(device)
    raise InputError(f"--backend {name}: expected one of mlx, torch, auto")


def _mlx(device: str | None) -> Backend:
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        raise missing_extra("mlx", "cpu") from error
    from backends.mlx_backend import MLXBackend

    return MLXBackend.on(device)


def _torch(device: str | None) -> Backend:
    try:
        imported("torch")
    except ImportError as error:
        raise missing_extra("torch", "torch") from error
    from backends.torch_backend import TorchBackend

    return TorchBackend.on(device)


def _automatic() -> str:
    try:
        import mlx.core as mx
    except ImportError:
        return "torch"
    if mx.default_device() == mx.Device(mx.gpu):
        return "mlx"
    return "torch" if _cuda_is_there() else "mlx"


def _cuda_is_there() -> bool:
    """Whether PyTorch has a GPU. Importing it takes a second or more, which a Linux without any driver is spared."""
    if sys.platform == "linux" and not _driver_is_there():
        return False
    try:
        return imported("torch").cuda.is_available()
    except ImportError:
        return False


def _driver_is_there() -> bool:
    """The library that NVIDIA's driver brings, or the device of AMD's."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True
