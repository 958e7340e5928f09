"""Adapters of a MusicGen on either backend, under the names that modules have in our layout."""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from backends import get
from backends.adapters import files
from backends.adapters.base_model import check_base
from backends.adapters.initial import initial
from backends.adapters.strict import check_names
from backends.atomic import write_atomically
from backends.base import AdapterInfo, Arrays, Backend, Leaf, LoRASpec
from backends.errors import InputError
from musicgen_mlx.config import MusicGenConfig

NOT_ADAPTED = ("name", "segment_s", "encodec", "t5")  # settings in which the base may differ


class Adapters:
    """The adapters that a native model carries or may carry."""

    def __init__(self, backend: Backend, model: Any, config: MusicGenConfig):
        self.backend, self.model, self.config = backend, model, config
        side = importlib.import_module(f"musicgen_mlx.{backend.name}_side")
        self.native: dict[str, str] = side.names(model)  # {our name of a module: its name here}
        self.ours = {native: ours for ours, native in self.native.items()}

    def linears(self) -> dict[str, Leaf]:
        """Modules that can carry an adapter."""
        leaves = self.backend.linears(self.model)
        return {ours: leaves[native] for ours, native in self.native.items()}

    def put(self, names: Iterable[str], spec: LoRASpec, seed: int = 0) -> None:
        """Freeze the model and put a fresh adapter on each named module, the same on both backends."""
        names, leaves = list(names), self.linears()
        self.backend.adapt(self.model, [self.native[name] for name in names], spec, seed)
        start = {f"{self.native[name]}.{part}": value for name in names
                 for part, value in initial(name, leaves[name], spec, seed).items()}  # fmt: skip
        self.backend.load(self.model, self.backend.from_host(start), strict=False)

    def save(self, path: Path, base: str) -> None:
        """Write what trains; `base` says what it was trained on."""
        info, arrays = self._info(base), _renamed(self.backend.trainable(self.model), self.ours)
        write_atomically(path, lambda staging: self.backend.write(staging, arrays, files.metadata(info)))

    def load(self, path: Path) -> None:
        """Load a file, as float32, into the adapter on the model. Raises InputError where they or the models differ."""
        info = files.read_info(path)
        self.check_base(info, str(path))
        files.check_same(info, self._info(""), str(path))
        arrays, _ = self.backend.read(path)
        check_names(self._live(), arrays, strict=False, source=str(path))
        host = self.backend.to_host(arrays)  # in float32 whatever the file's type: that would round updates away
        full = self.backend.from_host({name: value.astype(np.float32) for name, value in host.items()})
        files.load_trained(self.backend, self.model, _renamed(full, self.native), str(path))

    def check_base(self, info: AdapterInfo, source: str) -> None:
        """Raise InputError, which begins with `source`, where the adapter is for a model of another shape."""
        check_base(info, self.config.to_json(), source, NOT_ADAPTED)

    def _live(self) -> set[str]:
        return set(_renamed(self.backend.trainable(self.model), self.ours))

    def _info(self, base: str) -> AdapterInfo:
        info = files.adapter_info(self.backend, self.model, base, self.config.to_json())
        return replace(info, targets=tuple(self.ours[name] for name in info.targets))


def put_on(engine: Any, path: Path) -> None:
    """Put the adapter of a file on an engine's model, to generate with. Raises InputError where it does not fit."""
    info, adapters = files.read_info(path), Adapters(get(engine.name), engine.model, engine.config)
    adapters.check_base(info, f"--lora {path}")
    if missing := sorted(set(info.targets) - set(adapters.native)):
        raise InputError(f"--lora {path}: adapts {missing[0]}, which this model does not have")
    adapters.put(info.targets, info.spec)
    adapters.load(path)


def _renamed(arrays: Arrays, names: Mapping[str, str]) -> Arrays:
    """An adapter's arrays with their modules under other names; modules that have none stay as they are."""
    parts = {name: name.rpartition(".") for name in arrays}
    return {f"{names.get(module, module)}.{leaf}": arrays[name] for name, (module, _, leaf) in parts.items()}
