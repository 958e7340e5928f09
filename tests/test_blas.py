"""A fast BLAS is loaded before MLX, and nobody has to ask for it."""

import os
import subprocess
import sys

import pytest

from backends import blas

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux's wheel has the reference BLAS")


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.stdout.strip()


@linux
def test_a_library_is_found_where_torch_is_installed():
    code = "import csm_mlx.model; from backends import blas; print(blas.loaded)"
    assert run(code) in {"openblas", "mkl", "torch"}


@linux
def test_without_mlx_nothing_is_loaded():
    """PyTorch's own products would come from there."""
    code = (
        "import musicgen_mlx.torch_model, sys; from backends import blas; print(blas.loaded, 'mlx.core' in sys.modules)"
    )
    assert run(code) == "None False"


@linux
def test_where_torch_is_there_already_mlx_shares_its_library():
    code = "import torch; from csm_mlx import model; from backends import blas; print(blas.loaded)"
    assert run(code) == "torch"


@linux
def test_one_library_can_be_asked_for():
    assert run("from backends import blas; print(blas.preload())", AUDIOSMITH_BLAS="torch") == "torch"
    assert run("from backends import blas; print(blas.preload())", AUDIOSMITH_BLAS="none of them") == "None"


@linux
def test_a_library_that_is_not_there_is_named():
    code = "import mlx.core, backends; from backends import blas; print(blas.hint())"
    assert "AUDIOSMITH_BLAS=mlk is no openblas, mkl or torch" in run(code, AUDIOSMITH_BLAS="mlk")


@linux
def test_other_finders_are_still_asked_for_mlx():
    code = """
import sys
class Other:
    @staticmethod
    def find_spec(name, path, target=None):
        asked.append(name)
asked = []
sys.meta_path.insert(0, Other)
import backends, mlx.core
print("mlx.core" in asked, any(type(finder).__name__ == "_BeforeMLX" for finder in sys.meta_path))
"""
    assert run(code) == "True False"


@linux
def test_torchs_own_library_serves_where_nothing_else_does():
    code = """
import ctypes
real = ctypes.CDLL
def only_torch(name, *args, **kwargs):
    if name and ("openblas" in str(name) or "mkl_rt" in str(name)):
        raise OSError(name)
    return real(name, *args, **kwargs)
ctypes.CDLL = only_torch
import backends
from backends import blas
import mlx.core as mx
a = mx.ones((64, 64))
assert (a @ a == 64).all().item()
print(blas.loaded)
"""
    assert run(code) == "torch"


@linux
def test_the_hint_is_said_when_mlx_is_imported():
    code = """
import ctypes
def none(name, *args, **kwargs):
    raise OSError(name)
from backends import blas
ctypes.CDLL = none
blas.CUDA_WHEELS = ()
blas.advise(print)
print("before")
import mlx.core
"""
    first, second = run(code).splitlines()
    assert first == "before"
    assert "libopenblas0-pthread" in second


@linux
def test_after_mlx_it_is_too_late_and_the_hint_says_how(monkeypatch):
    code = "import mlx.core, backends; from backends import blas; print(blas.loaded, '|', blas.hint())"
    loaded, _, hint = run(code).partition(" | ")
    assert loaded == "None"
    assert "libopenblas0-pthread" in hint
    monkeypatch.setattr(blas, "loaded", "openblas")
    assert blas.hint() is None


def test_importing_packages_imports_no_torch():
    code = "import backends, csm_mlx, csm_mlx.generation, csm_mlx.finetune.finetune_lora, sys; print('torch' in sys.modules)"
    assert run(code) == "False"


def test_importing_a_package_imports_no_framework():
    code = "import csm_mlx, musicgen_mlx, snac_port, sys; print({'torch', 'mlx.core'} & set(sys.modules))"
    assert run(code) == "set()"
