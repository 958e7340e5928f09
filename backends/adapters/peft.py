"""Adapters as PEFT directories, both ways: `adapter_model.safetensors` and `adapter_config.json`.

Where the other side names modules differently, or orders the rows of a weight differently (q and k under another RoPE),
the layout rules of the weights say how: the rows move in `lora_B` (out, r) and in DoRA's magnitudes (out,).
Source: peft/utils/save_and_load.py for the names of tensors.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends.adapters.files import adapter_info, check_same, is_adapter, load_trained
from backends.adapters.peft_config import to_config, to_spec
from backends.adapters.strict import check_names
from backends.atomic import write_text
from backends.base import AdapterInfo, Backend
from backends.errors import InputError
from backends.layouts import files
from backends.layouts.rules import ANY, AnyRule, Rule, to_ours, to_theirs

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
SAME_NAMES = (Rule(ANY, ANY),)
NOT_TIED: Mapping[str, str] = {}

_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<part>A|B|magnitude_vector)(\.weight)?")

Tensors = dict[str, np.ndarray]
Convert = Callable[[str, np.ndarray], tuple[str, np.ndarray]]


def write_peft(
    backend: Backend,
    model: Any,
    directory: Path,
    info: AdapterInfo,
    *,
    rules: Sequence[AnyRule] = SAME_NAMES,
    tied: Mapping[str, str] = NOT_TIED,
) -> Path:
    """Write the adapter on `model`, with the parameters in `info.trained`, as `peft.PeftModel` reads it.

    `rules` take our weights to theirs. `tied` names modules of theirs that share the weight of another, both being one
    module of ours: {copy: original}. Returns `directory`. Raises InputError for what PEFT cannot hold.
    """
    source = str(directory)
    tensors = _tied(_their_tensors(backend, model, info, _converter(to_theirs, rules, source)), tied)
    targets = sorted({found["module"] for name in tensors if (found := _KEY.fullmatch(name))})
    whole = sorted({name.rpartition(".")[0] for name in tensors if not _KEY.fullmatch(name)})
    weights = {f"{name}.weight": np.empty(0) for name in [*backend.linears(model), *backend.adapters(model)]}
    others = {name.removesuffix(".weight") for name in to_theirs(weights, rules, source)} | set(tied)
    config = to_config(info, targets, whole, others)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)  # a directory with a config is whole
    said = {} if info.settings is None else {files.CONFIG_KEY: json.dumps(info.settings)}  # peft does not look at it
    files.write(directory / TENSORS, {f"{_PREFIX}{name}": value for name, value in tensors.items()}, said)
    write_text(directory / CONFIG, json.dumps(config, indent=2, sort_keys=True))
    return directory


def read_peft(
    backend: Backend,
    model: Any,
    directory: Path,
    *,
    rules: Sequence[AnyRule] = SAME_NAMES,
    tied: Mapping[str, str] = NOT_TIED,
) -> AdapterInfo:
    """Put the adapter of a PEFT directory on `model`, which is bare or carries the same adapter; returns what it is.

    What the directory trained, modules_to_save included, is what trains in `model` afterwards. `rules` and `tied` as in
    `write_peft`. Raises InputError for options that would have to be ignored and for tensors that do not fit.
    """
    config = files.read_json(directory / CONFIG)
    spec, source = to_spec(config, str(directory / CONFIG)), str(directory)
    file = directory / TENSORS
    stored = files.open_tensors(file if file.exists() else file.with_suffix(".bin"))
    theirs = {name.removeprefix(_PREFIX): stored[name] for name in stored}
    bases = {name: value for name, value in theirs.items() if ".base_layer." in name}
    theirs = _untied({name: value for name, value in theirs.items() if name not in bases}, tied, source)
    convert = _converter(to_ours, rules, source)
    adapters, whole = _our_tensors(theirs, convert, source)
    targets = tuple(sorted({name.rpartition(".")[0] for name in adapters}))
    if backend.adapters(model):
        check_same(AdapterInfo(spec, targets), adapter_info(backend, model), source)
    else:
        check_names(backend.linears(model), targets, strict=False, source=source)
        backend.adapt(model, targets, spec)
    _check_bases(backend, model, bases, convert, source)
    backend.train_only(model, lambda name: is_adapter(name, targets) or name in whole)
    load_trained(backend, model, backend.from_host({**adapters, **whole}), source)
    return adapter_info(backend, model, config.get("base_model_name_or_path") or "")


def _converter(change: Callable, rules: Sequence[AnyRule], what: str) -> Convert:
    """One tensor at a time through the layout rules; an adapter fits only a weight that is one tensor on both sides."""
    singles = [rule for rule in rules if isinstance(rule, Rule)]

    def convert(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
        ((other, changed),) = change({name: value}, singles, what).items()
        return other, changed

    return convert


def _moved(module: str, kind: str, parts: Tensors, convert: Convert) -> tuple[str, Tensors]:
    """A module's adapter under the other layout's name, with the rows of its weight in that layout's order.

    The rows of a linear map are those of lora_B (out, r); those of an embedding are the columns of lora_A (r, entries).
    """
    moved = dict(parts)
    if kind == "embedding":
        weight, rows = convert(f"{module}.weight", parts["lora_A"].T)
        moved["lora_A"] = rows.T
    else:
        weight, moved["lora_B"] = convert(f"{module}.weight", parts["lora_B"])
        if "lora_magnitude_vector" in parts:
            _, moved["lora_magnitude_vector"] = convert(f"{module}.weight", parts["lora_magnitude_vector"])
    return weight.removesuffix(".weight"), moved


def _their_tensors(backend: Backend, model: Any, info: AdapterInfo, convert: Convert) -> Tensors:
    live, adapters = backend.parameters(model), backend.adapters(model)
    tensors: Tensors = {}
    for name in info.targets:
        kind = adapters[name][0].kind
        parts = backend.to_host({key.rpartition(".")[2]: live[key] for key in live if is_adapter(key, [name])})
        module, moved = _moved(name, kind, parts, convert)
        tensors |= {f"{module}.{_spelled(kind, part)}": value for part, value in moved.items()}
    for name, value in backend.to_host({name: live[name] for name in info.trained}).items():
        theirs, changed = convert(name, value)
        if "." not in theirs or ".base." in name:
            raise InputError(f"{name}: PEFT stores whole modules, and this is not one's parameter: do not train it")
        tensors[theirs] = changed
    return tensors


def _spelled(kind: str, part: str) -> str:
    if part == "lora_magnitude_vector":
        return part
    return part.replace("lora_", "lora_embedding_") if kind == "embedding" else f"{part}.weight"


def _our_tensors(theirs: Tensors, convert: Convert, source: str) -> tuple[Tensors, Tensors]:
    """Under our names: the adapters' tensors, in float32, and the others."""
    kinds: dict[str, str] = {}
    modules: dict[str, Tensors] = {}
    whole: Tensors = {}
    for name, value in theirs.items():
        if found := _KEY.fullmatch(name):
            modules.setdefault(found["module"], {})[f"lora_{found['part']}"] = np.asarray(value, np.float32)
            if found["kind"]:
                kinds[found["module"]] = "embedding"
        else:
            ours, changed = convert(name, value)
            whole[ours] = changed
    adapters: Tensors = {}
    for module, parts in modules.items():
        check_names({"lora_A", "lora_B", *parts}, parts, source=f"{source}: {module}")
        name, moved = _moved(module, kinds.get(module, "linear"), parts, convert)
        adapters |= {f"{name}.{part}": value for part, value in moved.items()}
    return adapters, whole


def _tied(tensors: Tensors, tied: Mapping[str, str]) -> Tensors:
    """With each original's tensors once more under its copy's name."""
    return tensors | {
        copy + name.removeprefix(original): value
        for copy, original in tied.items()
        for name, value in tensors.items()
        if name.startswith(f"{original}.")
    }


def _untied(tensors: Tensors, tied: Mapping[str, str], source: str) -> Tensors:
    """Without the copies, which must be equal to their originals."""
    for copy, original in tied.items():
        copies, originals = (
            {name.removeprefix(owner): value for name, value in tensors.items() if name.startswith(f"{owner}.")}
            for owner in (copy, original)
        )
        if copies.keys() != originals.keys() or any(not np.array_equal(copies[key], originals[key]) for key in copies):
            raise InputError(
                f"{source}: trains {copy} and {original} differently, but they share one table in this model: "
                "it cannot be read here"
            )
    return {name: value for name, value in tensors.items() if not name.startswith(tuple(f"{copy}." for copy in tied))}


def _check_bases(backend: Backend, model: Any, bases: Tensors, convert: Convert, source: str) -> None:
    """PEFT adds the base weights of some adapted embeddings: they must be this model's."""
    live = backend.parameters(model)
    for name, value in bases.items():
        ours, value = convert(name.replace(".base_layer.", "."), value)
        own = ".base.".join(ours.rsplit(".", 1))
        if own not in live or not np.array_equal(backend.to_host({own: live[own]})[own], value):
            raise InputError(f"{source}: holds another {name} than this model's: the adapter is for another base model")
