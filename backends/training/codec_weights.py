"""The codecs that `codec_run` trains: opened or made anew at a scale, and written to files."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from backends.atomic import write_text
from backends.base import Backend
from backends.errors import InputError
from backends.layouts.checkpoint import Checkpoint
from backends.layouts.families import Family, Settings
from backends.layouts.files import read_json, write
from backends.layouts.rules import to_theirs

KERNELS = ("kernel", "last_kernel", "residual_kernel")


class Sizes(Protocol):
    """What training asks of a codec's configuration."""

    @property
    def sample_rate_hz(self) -> int: ...
    @property
    def frame_samples(self) -> int: ...
    @property
    def codebooks(self) -> int: ...
    @property
    def entries(self) -> int: ...
    @property
    def code_width(self) -> int: ...


@dataclass(frozen=True)
class Codec:
    """A codec to train."""

    name: str
    model: Any  # see `backends.training.rvq_codec`
    from_scratch: bool  # whether its weights are random
    sizes: Sizes
    decodes: Callable[[str], bool]  # whether a parameter of this name is the decoder's
    write: Callable[[Path], Path]  # into this folder; returns the weights file


@dataclass(frozen=True)
class CodecKind:
    """A family of codecs that training makes, opens and writes.

    layout      the one that is written, transformers'
    scales      configurations by name
    checked     fills in what a configuration of ours leaves out; raises ValueError
    wrong       of a configuration: problems, and whether it has them, besides those of all codecs (`_wrong`)
    sizes       of a configuration
    decoder     what the names of the decoder's parameters begin with
    opened      the checkpoint of a weights file, directory or Hub id
    fresh       a checkpoint of random weights, by configuration and seed
    mlx, torch  open a checkpoint as the native codec
    """

    family: Family
    layout: str
    scales: Mapping[str, Settings]
    checked: Callable[[Mapping[str, Any]], Settings]
    wrong: Callable[[Settings], Mapping[str, object]]
    sizes: Callable[[Settings], Sizes]
    decoder: tuple[str, ...]
    opened: Callable[[str], Checkpoint]
    fresh: Callable[[Settings, int], Checkpoint]
    mlx: Callable[[Checkpoint], Any]
    torch: Callable[[Checkpoint], Any]

    def codec(self, backend: Backend, source: str | None, scale: str | None, seed: int) -> Codec:
        """The codec of --codec `source`, or else with random weights at --scale `scale`. Raises InputError."""
        checkpoint = self.fresh(self.settings(str(scale)), seed) if source is None else self.opened(source)
        settings, model = checkpoint.settings, self.native(backend, checkpoint)
        return Codec(
            name=self.family.title,
            model=model,
            from_scratch=source is None,
            sizes=self.sizes(settings),
            decodes=lambda name: name.startswith(self.decoder),
            write=lambda folder: self.save(folder, tensors(backend, model), settings),
        )

    def settings(self, scale: str) -> Settings:
        """The configuration that --scale asks for: a name, or a JSON file in transformers' form or ours.

        Raises InputError where such a codec could not train, or not be written in transformers' layout.
        """
        if scale in self.scales:
            return self.scales[scale]
        path = Path(scale)
        if not path.is_file():
            expected = f"{', '.join(self.scales)} or a JSON file with {self.family.title}'s configuration"
            raise InputError(f"--scale {scale}: expected {expected}")
        content = read_json(path)
        try:
            found = self.family.read_settings(content, str(path)) or self.checked(content)
            problems = {**_wrong(found), **self.wrong(found)}
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: {error}; known: {', '.join(self.family.published)}") from error
        for problem, is_so in problems.items():
            if is_so:
                raise InputError(f"{path}: {problem}")
        return found

    def native(self, backend: Backend, checkpoint: Checkpoint) -> Any:
        """The codec in float32, on the backend's device."""
        if backend.name == "mlx":
            import mlx.core as mx

            model = self.mlx(checkpoint)
            model.set_dtype(mx.float32)
            return model
        return self.torch(checkpoint).to(backend.device)  # type: ignore[attr-defined]

    def save(self, folder: Path, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Path:
        """Write weights and config.json, which transformers and our --codec read; returns the weights file."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self.family.write_settings(dict(settings), self.layout)
        write_text(folder / "config.json", json.dumps(config, indent=1))
        named = to_theirs(tensors, self.family.rules(self.layout, dict(settings)), self.family.title)
        return write(folder / "model.safetensors", dict(named))


def tensors(backend: Backend, model: Any) -> dict[str, np.ndarray]:
    """All weights in our layout."""
    return backend.to_host(backend.parameters(model)) if backend.name == "mlx" else model.tensors()


def _wrong(found: Settings) -> dict[str, object]:
    entries, kernels = found["entries"], [found[kernel] for kernel in KERNELS]
    return {
        f"entries {entries}: expected a power of 2": entries < 2 or entries & (entries - 1),
        f"even kernel among {kernels}: expected odd ones": any(kernel % 2 == 0 for kernel in kernels),
    }
