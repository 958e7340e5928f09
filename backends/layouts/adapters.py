"""Adapters between our single file and PEFT's directory, without the model: its modules' shapes are enough."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from backends import hub
from backends.adapters.files import load_adapter, read_info, save_adapter
from backends.adapters.initial import initial
from backends.adapters.peft import CONFIG, TENSORS, read_peft, write_peft
from backends.adapters.strict import check_names
from backends.base import AdapterInfo, Arrays, Backend, Leaf, LoRASpec
from backends.errors import InputError
from backends.layouts.families import Adaptable, Family, Settings, everything
from backends.layouts.files import (
    CONFIG_KEY,
    TensorFile,
    blank,
    metadata,
    open_tensors,
    parse_json,
    read_json,
    write,
)
from backends.layouts.rules import to_ours

PEFT = "peft"


def targets(kind: Family) -> tuple[str, ...]:
    """What a family's adapters can be converted to."""
    return (PEFT, f"{kind.ours}-lora") if kind.adaptable else ()


def to_peft(source: str, folder: Path) -> str:
    """Fill `folder` with the adapter file `source` in PEFT's form; returns a line that says what it was."""
    path = Path(source).expanduser()
    info = read_info(path)
    kind, how = _family_of(info, path)
    settings, known = _settings(kind, info.settings, path, info.base)
    model = _outline(kind, how, settings)
    try:
        check_names(model.leaves, info.targets, strict=False, source=str(path))
        _host.adapt(model, info.targets, info.spec)
        _host.train_only(model, lambda name: ".lora_" in name or name in info.trained)
        load_adapter(_backend, model, path)
    except InputError as error:
        raise error if known else _needs_configuration(path, kind, error) from error
    if known:
        info = replace(info, settings=kind.write_settings(settings, kind.ours))
    write_peft(_backend, model, folder, info, rules=kind.rules(how.layout, settings), tied=how.tied)
    return _described(str(path), info)


def from_peft(source: str, file: Path, kind: Family) -> str:
    """Write PEFT's directory (or Hub id) `source` as our adapter `file`; returns a line that says what it was."""
    folder = hub.directory(source, lambda files: _peft_files(files, source), "SRC")
    _peft_files([file.name for file in folder.iterdir()], source)
    how = cast(Adaptable, kind.adaptable)
    base = read_json(folder / CONFIG).get("base_model_name_or_path") or ""
    stored = open_tensors(folder / TENSORS)
    said = metadata(stored).get(CONFIG_KEY)
    inside = parse_json(said, f"{folder / TENSORS}: its metadata") if said else None
    settings, known = _settings(kind, inside, folder / TENSORS, base)
    rules = kind.rules(how.layout, settings)
    model = _outline(kind, how, settings)
    # PEFT adds the base weights of some adapted modules. They cannot be compared without the model, so they count as
    # the outline's own, and are said to be left out.
    bases = {name.removeprefix("base_model.model.").replace(".base_layer.", "."): name for name in stored}
    bases = {name: stored[old] for name, old in bases.items() if ".base_layer." in old}
    for name, value in to_ours(bases, rules, str(folder)).items():
        model.arrays[".base.".join(name.rsplit(".", 1))] = value
    try:
        info = read_peft(_backend, model, folder, rules=rules, tied=how.tied)
    except InputError as error:
        raise error if known else _needs_configuration(folder, kind, error) from error
    if known:
        info = replace(info, settings=kind.write_settings(settings, kind.ours))
    save_adapter(_backend, model, file, info)
    left = f", without {len(bases)} base weight(s), which must be those of the model it goes on" if bases else ""
    return _described(str(folder), info) + left


def _described(source: str, info: AdapterInfo) -> str:
    kind = ("rank-stabilised " if info.spec.use_rslora else "") + ("DoRA" if info.spec.use_dora else "LoRA")
    whole = f" and {len(info.trained)} parameter(s) whole" if info.trained else ""
    return f"{source}: {kind}, rank {info.spec.rank}, on {len(info.targets)} modules{whole}"


def _peft_files(files: Iterable[str], source: str) -> list[str]:
    missing = {CONFIG, TENSORS} - set(files)
    if missing:
        raise InputError(f"SRC {source}: holds no {min(missing)}; expected what PEFT's save_pretrained writes")
    return [CONFIG, TENSORS]


def _family_of(info: AdapterInfo, path: Path) -> tuple[Family, Adaptable]:
    for kind in everything():
        if kind.adaptable and any(f"{target}.weight" in kind.shapes(kind.published) for target in info.targets):
            return kind, kind.adaptable
    raise InputError(f"{path}: adapts {info.targets[0]}, which is in no model that PEFT's form is known for")


def _settings(kind: Family, inside: Mapping[str, Any] | None, path: Path, base: str) -> tuple[Settings, bool]:
    """The base model's settings, and whether a configuration said so: the adapter's own, beside it, or the base's."""
    if inside and (settings := kind.read_settings(inside, f"{path}: its metadata")):
        return settings, True
    for place in (path.parent, *([Path(base).expanduser()] if base else [])):
        config = (place if place.is_dir() else place.parent) / "config.json"
        if config.is_file() and (settings := kind.read_settings(read_json(config), str(config))):
            return settings, True
    return kind.published, False


def _needs_configuration(path: Path, kind: Family, error: InputError) -> InputError:
    return InputError(
        f"{path}: its base model's configuration is needed, because this does not fit the published {kind.title}: put "
        f"that model's config.json beside it ({error})"
    )


@dataclass
class _Outline:
    """A model that is its modules' shapes, an adapter, and which parameters train."""

    leaves: dict[str, Leaf]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # that are known; other weights are blank
    adapted: dict[str, LoRASpec] = field(default_factory=dict)
    trains: Callable[[str], bool] = lambda name: False


def _outline(kind: Family, how: Adaptable, settings: Settings) -> _Outline:
    modules = {name.removesuffix(".weight"): shape for name, shape in kind.shapes(settings).items()}
    tables = set(how.embeddings)
    leaves = {
        name: Leaf("embedding" if name in tables else "linear", (shape[0], shape[1]))
        for name, shape in modules.items()
        if len(shape) == 2
    }
    return _Outline(leaves)


class _Host:
    """The part of a backend that reading and writing adapters needs, on outlines."""

    def linears(self, model: _Outline) -> dict[str, Leaf]:
        return {name: leaf for name, leaf in model.leaves.items() if name not in model.adapted}

    def adapters(self, model: _Outline) -> dict[str, tuple[Leaf, LoRASpec]]:
        return {name: (model.leaves[name], spec) for name, spec in model.adapted.items()}

    def adapt(self, model: _Outline, names: Iterable[str], spec: LoRASpec, seed: int = 0) -> None:
        for name in names:
            leaf = model.leaves[name]
            start = initial(name, leaf, spec, seed)
            if spec.use_dora:
                start["lora_magnitude_vector"] = np.ones(leaf.shape[leaf.kind == "embedding"], np.float32)
            model.arrays |= {f"{name}.{part}": value for part, value in start.items()}
            model.adapted[name] = spec

    def parameters(self, model: _Outline) -> dict[str, np.ndarray]:
        weights = {
            f"{n}.base.weight" if n in model.adapted else f"{n}.weight": leaf for n, leaf in model.leaves.items()
        }
        return {**{name: blank(leaf.shape) for name, leaf in weights.items()}, **model.arrays}

    def train_only(self, model: _Outline, keep: Callable[[str], bool]) -> None:
        model.trains = keep

    def trainable(self, model: _Outline) -> dict[str, np.ndarray]:
        return {name: value for name, value in self.parameters(model).items() if model.trains(name)}

    def load(self, model: _Outline, arrays: Arrays, *, strict: bool = True) -> None:
        model.arrays |= arrays

    def read(self, path: Path) -> tuple[Arrays, dict[str, str]]:
        file = TensorFile(path)
        return dict(file), file.metadata

    def write(self, path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
        write(path, arrays, metadata)

    def to_host(self, arrays: Arrays) -> dict[str, Any]:
        return dict(arrays)

    from_host = to_host


_host = _Host()
_backend = cast(Backend, _host)
