"""The two sides of the waist are mirrors, both are whole, and neither is imported before it is asked for."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
import torch

import backends
from backends.base import Backend, TrainStep, World
from backends.errors import InputError

ROOT = Path(backends.__file__).parent
CORE = {"__init__.py", "files.py", "lora.py", "memory.py", "parameters.py", "step.py", "world.py"}
SHARED = {"rvq.py", "stft.py"}  # native parts of which both sides have their own
# Around upstream's modules, on MLX models are whole, in their packages; and into a GPU's memory, which MLX shares.
TORCHS = {"blank.py", "codec.py", "sending.py"}
FRAMEWORKS_OWN = {"forward", "unfreeze"}  # methods that a framework's modules have


def files(side):
    return {path.name for path in (ROOT / f"{side}_backend").glob("*.py")}


def public(path):
    """Public functions, and classes with their public methods, in their order; MLX and Torch in names are the same."""
    names = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            names.append(node.name.replace("MLX", "").replace("Torch", ""))
        if isinstance(node, ast.ClassDef):
            methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
            names += [
                f"{names[-1]}.{name}" for name in methods if not name.startswith("_") and name not in FRAMEWORKS_OWN
            ]
    return names


def test_the_same_files():
    assert files("mlx") >= CORE | SHARED
    assert files("torch") >= CORE | SHARED
    assert files("torch") - TORCHS <= files(
        "mlx"
    )  # MLX has native parts that upstream's PyTorch models bring themselves


@pytest.mark.parametrize("name", sorted(CORE | SHARED))
def test_the_same_names_in_the_same_order(name):
    ours, theirs = (public(ROOT / f"{side}_backend" / name) for side in ("mlx", "torch"))
    assert ours == theirs


def signatures(path):
    """Of public functions and methods, and of constructors: parameters in their order, kinds and defaults."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            for part in node.body if isinstance(node, ast.ClassDef) else [node]:
                if isinstance(part, ast.FunctionDef) and (part.name == "__init__" or not part.name.startswith("_")):
                    for annotated in ast.walk(part.args):
                        if isinstance(annotated, ast.arg):
                            annotated.annotation = None
                    found[node.name, part.name] = ast.unparse(part.args)
    return {key: value for key, value in found.items() if key[1] not in FRAMEWORKS_OWN}


@pytest.mark.parametrize("name", sorted(SHARED))
def test_the_same_signatures(name):
    ours, theirs = (signatures(ROOT / f"{side}_backend" / name) for side in ("mlx", "torch"))
    assert ours == theirs
    assert ours


def members(protocol):
    return [name for name in vars(protocol) if not name.startswith("_") or name == "__call__"]


def test_both_satisfy_the_protocols(side):
    """Every member is there, and takes the protocol's parameters by the same names."""
    step = side.backend.train_step(side.net(), side.module.terms, backends.base.OptimSpec())
    for protocol, implementation in ((Backend, side.backend), (World, side.backend.world), (TrainStep, step)):
        for name in members(protocol):
            declared = getattr(protocol, name)
            found = getattr(implementation, name)
            if inspect.isfunction(declared):
                expected = list(inspect.signature(declared).parameters)[1:]
                assert list(inspect.signature(found).parameters) == expected, name


def test_get(side):
    assert backends.get(side.name).name == side.name
    assert not backends.get("torch", "cpu").has_gpu


@pytest.mark.parametrize(
    ("gpu", "cuda", "missing", "expected"),
    [
        (True, True, None, "mlx"),
        (True, False, None, "mlx"),
        (False, True, None, "torch"),
        (False, False, None, "mlx"),
        (False, False, "mlx.core", "torch"),
        (False, True, "mlx.core", "torch"),
        (True, False, "torch", "mlx"),
        (False, False, "torch", "mlx"),
    ],
)
def test_auto_is_mlx_with_a_gpu_then_torch_with_cuda_then_mlx(monkeypatch, gpu, cuda, missing, expected):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu if gpu else mx.cpu))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(backends, "_driver_is_there", lambda: True)
    for name in ("mlx", "torch"):  # this machine has no CUDA device to put the backend on
        monkeypatch.setattr(backends, f"_{name}", lambda _device, name=name: name)
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)  # importing it is an ImportError
    assert backends.get("auto") == expected
    assert backends.get() == expected


@pytest.mark.parametrize("driver", [False, True])
def test_pytorch_is_asked_for_its_gpu_only_where_a_driver_is(monkeypatch, driver):
    asked = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(backends, "_driver_is_there", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(True) or True)
    assert backends._cuda_is_there() == bool(asked) == driver


def test_wrong_names_are_one_line_errors():
    with pytest.raises(InputError, match="--backend jax: expected one of mlx, torch, auto"):
        backends.get("jax")
    with pytest.raises(InputError, match="--device cpu: only for --backend torch"):
        backends.get("mlx", "cpu")
    with pytest.raises(InputError, match="--device tpu9x: expected cpu, cuda, cuda:N or N"):
        backends.get("torch", "tpu9x")


IMPORTS = """
import sys
import {module}
for name in ("torch", "transformers", "matplotlib", "mlx_lm", {more}):
    assert name not in sys.modules, name
"""


@pytest.mark.parametrize(
    ("module", "more"),
    [
        (
            "backends, backends.base, backends.adapters.files, backends.adapters.peft, backends.training.loop",
            '"mlx.core"',
        ),
        ("backends.mlx_backend", '"peft"'),
        ("csm_mlx, csm_mlx.finetune.lora", '"peft"'),
    ],
)
def test_importing_does_not_import_what_is_not_needed(module, more):
    program = IMPORTS.format(module=module, more=more)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_training_on_mlx_does_not_import_torch(tmp_path):
    program = (
        "import sys, child, pathlib; from toy import Side; child.without_pictures();"
        f"child.run(Side('mlx'), pathlib.Path({str(tmp_path)!r})); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
