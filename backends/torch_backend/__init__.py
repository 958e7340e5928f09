"""The PyTorch side of the waist; `backends.mlx_backend` is its mirror."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends.base import Arrays, Batch, Leaf, LoRASpec, Memory, Metrics, OptimSpec, Precision, Terms, World
from backends.errors import InputError
from backends.torch_backend import files, lora, memory, parameters, step
from backends.torch_backend.world import world


@dataclass(frozen=True)
class TorchBackend:
    """Satisfies `backends.base.Backend` for `torch.nn` modules on one device."""

    device: torch.device
    name = "torch"

    @classmethod
    def on(cls, device: str | None) -> "TorchBackend":
        """The backend on `device` ("cuda:0", "0", "cpu"); by default this rank's CUDA device, else the CPU."""
        if device is None:
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        chosen = _device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
            torch.backends.cudnn.deterministic = True  # a run that goes on must end as one that was not cut
        return cls(chosen)

    @property
    def world(self) -> World:
        return world()

    @property
    def has_gpu(self) -> bool:
        return self.device.type == "cuda"

    def linears(self, model: Any) -> dict[str, Leaf]:
        return lora.linears(model)

    def adapt(self, model: Any, names: Iterable[str], spec: LoRASpec, seed: int = 0) -> None:
        lora.adapt(model, names, spec, seed)

    def adapters(self, model: Any) -> dict[str, tuple[Leaf, LoRASpec]]:
        return lora.adapters(model)

    def fuse(self, model: Any) -> None:
        lora.fuse(model)

    def train_only(self, model: Any, keep: Callable[[str], bool]) -> None:
        parameters.train_only(model, keep)

    def parameters(self, model: Any) -> Arrays:
        return parameters.parameters(model)

    def trainable(self, model: Any) -> Arrays:
        return parameters.trainable(model)

    def load(self, model: Any, arrays: Arrays, *, strict: bool = True) -> None:
        parameters.load(model, arrays, strict=strict)

    def train_step(
        self,
        model: Any,
        terms: Terms,
        optim: OptimSpec,
        *,
        seed: int = 0,
        compile: bool = False,
        also: Sequence[Any] = (),
        precision: Precision = "float32",
    ) -> step.Step:
        return step.Step(
            model, terms, optim, self.world, self.device, seed=seed, compile=compile, also=also, precision=precision
        )

    def eval_step(self, model: Any, terms: Terms) -> Callable[[Batch], Metrics]:
        return step.eval_step(model, terms, self.device)

    def write(self, path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
        files.write(path, arrays, metadata)

    def read(self, path: Path) -> tuple[Arrays, dict[str, str]]:
        return files.read(path)

    def to_host(self, arrays: Arrays) -> dict[str, np.ndarray]:
        return files.to_host(arrays)

    def from_host(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        return files.from_host(arrays)

    def fingerprint(self, arrays: Arrays) -> str:
        return files.fingerprint(arrays)

    def memory(self) -> Memory:
        return memory.memory(self.device)

    def reset_peak_memory(self) -> None:
        memory.reset_peak_memory(self.device)


def _device(name: str) -> torch.device:
    try:
        chosen = torch.device(f"cuda:{name}" if name.isdigit() else name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: expected cpu, cuda, cuda:N or N") from error
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: expected cpu, cuda, cuda:N or N; for Apple's GPUs there is --backend mlx")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: PyTorch sees no CUDA device here; use --device cpu")
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise InputError(f"--device {name}: PyTorch sees {count} CUDA device(s) here, counted from 0")
    return chosen
