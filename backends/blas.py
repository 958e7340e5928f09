"""A fast BLAS for MLX on Linux CPU.

The Linux wheel of MLX links the reference BLAS (about 6 GFLOP/s). Symbols loaded globally *before* `mlx.core` is first
imported take precedence, which brings float32 matrix products to 150-400 GFLOP/s. On macOS MLX has Accelerate or Metal.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

HINT = (
    "note: MLX runs on its slow reference BLAS here; for about 30 times faster matrix products install OpenBLAS"
    " (Debian: apt-get install libopenblas0-pthread) or PyTorch (pip install torch)"
)

loaded: str | None = None  # which library serves MLX, for `hint` and the benchmarks


def preload() -> str | None:
    """Load the first BLAS found so that MLX uses it; returns its name, None where there is none or it is too late."""
    global loaded
    if not sys.platform.startswith("linux") or "mlx.core" in sys.modules or loaded:
        return loaded
    _prefer_avx512()
    for name, libraries in _candidates():
        if all(_load(library) for library in libraries):
            loaded = name
            break
    return loaded


def hint() -> str | None:
    """One line that says how to get a fast BLAS, where MLX would need one and has none."""
    if not sys.platform.startswith("linux") or loaded or _has_mlx_gpu():
        return None
    return HINT


def _candidates() -> Iterator[tuple[str, list[str]]]:
    yield "openblas", ["libopenblas.so.0"]
    yield "mkl", ["libmkl_rt.so.2"]
    yield "mkl", [str(Path(sys.prefix) / "lib" / "libmkl_rt.so.2")]
    torch = find_spec("torch")
    if torch and torch.origin:
        lib = Path(torch.origin).parent / "lib"
        yield "torch", [str(lib / "libc10.so"), str(lib / "libtorch_cpu.so")]


def _load(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _prefer_avx512() -> None:
    """OpenBLAS picks AVX2 kernels on AMD even where AVX-512 is there; its SkylakeX kernels need just these flags."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 1)[1].split("\n", 1)[0].split())
    except (OSError, IndexError):
        return
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"} <= flags:
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def _has_mlx_gpu() -> bool:
    if "mlx.core" not in sys.modules:
        return False
    import mlx.core as mx

    return mx.default_device() == mx.Device(mx.gpu)
