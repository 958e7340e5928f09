"""The MLX side of the waist; `backends.torch_backend` is its mirror."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Arrays, Batch, Leaf, LoRASpec, Memory, Metrics, OptimSpec, Precision, Terms, World
from backends.errors import InputError
from backends.mlx_backend import files, lora, memory, parameters, step
from backends.mlx_backend.device import on_gpu
from backends.mlx_backend.world import world


class MLXBackend:
    """Satisfies `backends.base.Backend` for `mlx.nn` modules."""

    name = "mlx"

    @classmethod
    def on(cls, device: str | None) -> "MLXBackend":
        """The backend; MLX follows `mx.set_default_device`, so `device` must be None or "0", the only one it has."""
        if device not in (None, "0"):
            raise InputError(f"--device {device}: only for --backend torch; MLX uses its default device")
        return cls()

    @property
    def world(self) -> World:
        return world()

    @property
    def has_gpu(self) -> bool:
        return on_gpu()

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
        if precision != "float32":
            raise InputError(
                f"--precision {precision}: only for --backend torch; on MLX use float32, or a model in that type"
            )
        return step.Step(model, terms, optim, self.world, seed=seed, compile=compile, also=also)

    def eval_step(self, model: Any, terms: Terms) -> Callable[[Batch], Metrics]:
        return step.eval_step(model, terms)

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
        return memory.memory()

    def reset_peak_memory(self) -> None:
        memory.reset_peak_memory()
