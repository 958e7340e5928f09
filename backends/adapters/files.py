"""Adapters as one safetensors file: what trains, under the live names, with everything needed to apply it again."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from backends.adapters.strict import check_names, check_shapes
from backends.atomic import write_atomically
from backends.base import AdapterInfo, Backend, LoRASpec
from backends.errors import InputError
from backends.layouts.files import CONFIG_KEY

FORMAT = "audiosmith-lora"


def save_adapter(backend: Backend, model: Any, path: Path, info: AdapterInfo) -> None:
    """Write exactly what trains in `model`, and `info` as metadata; atomic.

    Tensors are `<module>.lora_A` (r, in), `<module>.lora_B` (out, r), `<module>.lora_magnitude_vector` (out,), and the
    parameters trained whole. Raises InputError where the disk refuses.
    """
    write_atomically(path, lambda staging: backend.write(staging, backend.trainable(model), metadata(info)))


def read_info(path: Path) -> AdapterInfo:
    """What an adapter file says of itself; reads only its header. Raises InputError where it is no such file."""
    info = stored_info(path)
    if info is None:
        raise InputError(f"{_file(path)}: {_without_info(_file(path))}")
    return info


def load_adapter(backend: Backend, model: Any, path: Path) -> None:
    """Load a file into a model that carries the same adapter, with the parameters that were trained whole.

    `path` may also be a directory that holds model.safetensors, as csm-mlx's trainer wrote; that has no metadata, so
    only names and shapes are checked. Raises InputError that names both values where rank, alpha, use_dora,
    use_rslora or targets differ, and where a tensor is missing or unexpected.
    """
    path, live = _file(path), adapter_info(backend, model)
    info = stored_info(path)
    if info is not None:
        check_same(info, live, str(path))
    arrays, _ = backend.read(path)
    load_trained(backend, model, arrays, str(path))


def adapter_info(
    backend: Backend, model: Any, base: str = "", settings: Mapping[str, Any] | None = None
) -> AdapterInfo:
    """The adapter that `model` carries, `base` and `settings` being its name and config.json.

    Raises InputError where there is none.
    """
    adapters = backend.adapters(model)
    if not adapters:
        raise InputError("this model carries no adapter: apply one first (apply_lora_to_model)")
    _, spec = next(iter(adapters.values()))
    whole = [name for name in backend.trainable(model) if not is_adapter(name, adapters)]
    return AdapterInfo(spec, tuple(adapters), base, tuple(whole), settings)


def load_trained(backend: Backend, model: Any, arrays: Mapping[str, Any], source: str) -> None:
    """Set what trains, and perhaps more; raises InputError where a name or shape does not fit, naming `source`."""
    live = backend.parameters(model)
    check_names(live, arrays, strict=False, source=source)
    check_names({*backend.trainable(model), *arrays}, arrays, source=source)
    check_shapes({n: v.shape for n, v in live.items()}, {n: v.shape for n, v in arrays.items()}, source=source)
    backend.load(model, dict(arrays), strict=False)


def is_adapter(name: str, targets: Iterable[str]) -> bool:
    """Whether a parameter's name is one of an adapter on `targets`."""
    module, _, leaf = name.rpartition(".")
    return leaf.startswith("lora_") and module in targets


def check_same(given: AdapterInfo, live: AdapterInfo, source: str) -> None:
    """Raise InputError that names both values where two adapters are not the same kind."""
    for name in ("rank", "alpha", "use_rslora", "use_dora"):
        theirs, ours = getattr(given.spec, name), getattr(live.spec, name)
        if theirs != ours:
            raise InputError(
                f"{source}: {name} is {theirs} in the file, but {ours} on the model: apply the adapter with {theirs}"
            )
    if set(given.targets) != set(live.targets):
        raise InputError(
            f"{source}: targets are {_listed(given.targets, live.targets)} in the file, but "
            f"{_listed(live.targets, given.targets)} on the model: apply the adapter to the file's"
        )


def _listed(targets: tuple[str, ...], others: tuple[str, ...]) -> str:
    """So many modules, with those first that the other side lacks."""
    alone = sorted(set(targets) - set(others))
    return f"{len(targets)} modules" + (
        f" with {', '.join(alone[:3])}{', ...' if len(alone) > 3 else ''}" if alone else ""
    )


def metadata(info: AdapterInfo) -> dict[str, str]:
    """What an adapter file says of itself, as `read_info` reads it."""
    spec, settings = info.spec, info.settings
    return {
        "format": FORMAT,
        "rank": str(spec.rank),
        "alpha": str(spec.alpha),
        "dropout": str(spec.dropout),
        "use_rslora": json.dumps(spec.use_rslora),
        "use_dora": json.dumps(spec.use_dora),
        "targets": json.dumps(info.targets),
        "base": info.base,
        "trained": json.dumps(info.trained),
        **({} if settings is None else {CONFIG_KEY: json.dumps(settings)}),
    }


def stored_info(path: Path) -> AdapterInfo | None:
    """As `read_info`, but None where the file has no metadata of ours, as those of csm-mlx's trainer."""
    path = _file(path)
    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        return None
    try:
        numbers = {"rank": int(metadata["rank"]), "alpha": float(metadata["alpha"])}
        switches = {name: json.loads(metadata[name]) for name in ("use_rslora", "use_dora")}
        spec = LoRASpec(**numbers, dropout=float(metadata["dropout"]), **switches)
        targets, trained = (tuple(json.loads(metadata[name])) for name in ("targets", "trained"))
        settings = json.loads(metadata[CONFIG_KEY]) if CONFIG_KEY in metadata else None
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: its adapter metadata is damaged ({error}): save or download it again") from error
    return AdapterInfo(spec, targets, metadata.get("base", ""), trained, settings)


def _without_info(path: Path) -> str:
    with safe_open(str(path), framework="np") as file:
        adapts = any(".lora_" in name for name in file.keys())  # noqa: SIM118
    if not adapts:
        return "holds no adapter; weights of a whole model are for --model or --pretrained-path"
    return (
        "an adapter without rank, alpha and targets in its metadata: apply an adapter with the values it was trained "
        "with, then load it"
    )


def _file(path: Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path}: no such adapter file")
        return path
    if not (path / "model.safetensors").is_file():
        inside = sorted(path.glob("lora_ckpt_*.safetensors"), key=lambda file: file.stat().st_mtime)
        raise InputError(f"{path}: is a directory; give the adapter file" + (f" {inside[-1]}" if inside else ""))
    return path / "model.safetensors"
