"""A fast BLAS for MLX on Linux CPU.

The Linux wheel of MLX links the reference BLAS (about 6 GFLOP/s). Symbols loaded globally *before* `mlx.core` is first
imported take precedence, which brings float32 matrix products to 150-400 GFLOP/s. On macOS MLX has Accelerate or Metal.

Globally is for the whole process: PyTorch, imported after OpenBLAS, would take its products from there too and be half
as fast. So nothing is loaded until MLX is imported, and where PyTorch is there already MLX shares its library.
The environment's AUDIOSMITH_BLAS says openblas, mkl or torch (PyTorch's own) for that one and no other.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HINT = (
    "note: MLX runs on its slow reference BLAS here; for about 30 times faster matrix products install OpenBLAS"
    " (Debian: apt-get install libopenblas0-pthread) or PyTorch (pip install torch)"
)
ASKED = "AUDIOSMITH_BLAS"
FEW_ROWS = 2  # up to so many, MKL reads weights at the memory's rate in rows @ weight^T; for more, columns are ahead
CUDA_WHEELS = ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")

loaded: str | None = None  # which library serves MLX, for `hint` and the benchmarks
_say: Callable[[str], object] | None = None


def install() -> None:
    """Have `preload` called at the moment `mlx.core` is first imported."""
    if sys.platform.startswith("linux") and "mlx.core" not in sys.modules:
        sys.meta_path.insert(0, _BeforeMLX())


class _BeforeMLX(MetaPathFinder):
    """Finds nothing: it is told that `mlx.core` is looked for."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "mlx.core":
            # A list of its own: the import system is walking along the old one, and would miss who comes next.
            sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
            preload()
            if _say and (note := hint()):
                _say(note)


def preload() -> str | None:
    """Load the first BLAS found so that MLX uses it; returns its name, None where there is none or it is too late."""
    global loaded
    if not sys.platform.startswith("linux") or "mlx.core" in sys.modules or loaded:
        return loaded
    _prefer_avx512()
    for name, libraries in _candidates():
        if os.environ.get(ASKED, name) == name and all(_load(library) for library in libraries):
            loaded = name
            break
    return loaded


def advise(say: Callable[[str], object]) -> None:
    """Call `say` with `hint`, where there is one: now if MLX is there, else when it is imported."""
    global _say
    _say = say
    if "mlx.core" in sys.modules and (note := hint()):
        say(note)


def hint() -> str | None:
    """One line that says how to get a fast BLAS, where MLX would need one and has none."""
    if not sys.platform.startswith("linux") or loaded or any(_is_installed(wheel) for wheel in CUDA_WHEELS):
        return None
    if asked := os.environ.get(ASKED):
        return f"note: MLX runs on its slow reference BLAS: {ASKED}={asked} is no openblas, mkl or torch, or not here"
    return HINT


def _candidates() -> Iterator[tuple[str, list[str]]]:
    """Names and libraries, the best first.

    On Intel's processors MKL multiplies a matrix with a few columns, which is what generation does, twice as fast as
    OpenBLAS; elsewhere OpenBLAS with AVX-512 is ahead.
    """
    openblas = [("openblas", ["libopenblas.so.0"])]
    mkl = [("mkl", ["libmkl_rt.so.2"]), ("mkl", [str(Path(sys.prefix) / "lib" / "libmkl_rt.so.2")]), *_torchs()]
    if "torch" in sys.modules:
        yield from _torchs()
    yield from (mkl + openblas if "GenuineIntel" in _cpu() else openblas + mkl)


def _torchs() -> list[tuple[str, list[str]]]:
    torch = find_spec("torch")
    if torch is None or not torch.origin:
        return []
    lib = Path(torch.origin).parent / "lib"
    return [("torch", [str(lib / "libc10.so"), str(lib / "libtorch_cpu.so")])]


def _load(library: str) -> bool:
    try:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _prefer_avx512() -> None:
    """OpenBLAS picks AVX2 kernels on AMD even where AVX-512 is there; its SkylakeX kernels need just these flags."""
    flags = set(_cpu().partition("flags")[2].partition("\n")[0].split())
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"} <= flags:
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def _cpu() -> str:
    """What Linux says about the first processor."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return ""


def _is_installed(distribution: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
