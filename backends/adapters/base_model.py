"""Which base model an adapter is for: its settings travel in the file, and must be those of the model it goes on."""

from collections.abc import Collection, Mapping
from typing import Any

from backends.base import AdapterInfo
from backends.errors import InputError


def check_base(info: AdapterInfo, live: Mapping[str, Any], source: str, apart: Collection[str] = ()) -> None:
    """Raise InputError, which begins with `source` and names both models, where the adapter is for another one.

    `live` are the model's settings. Settings called one of `apart`, at any depth, are not compared: names, and what
    comes along without being adapted. Nothing is where the file has no settings, or some that only one side knows.
    """
    stored = info.settings or {}
    theirs, ours = _flat(stored, apart), _flat(live, apart)
    other = [name for name in theirs if name in ours and theirs[name] != ours[name]]
    if other:
        base, own = stored.get("name") or info.base or "another model", live.get("name") or "which is another one"
        raise InputError(
            f"{source}: is for {base} ({_listed(theirs, other)}), not for this model, {own} ({_listed(ours, other)}): "
            "give the model that it was trained on"
        )


def _listed(settings: Mapping[str, Any], names: list[str], most: int = 3) -> str:
    more = ", ..." if len(names) > most else ""
    return ", ".join(f"{name} {settings[name]}" for name in names[:most]) + more


def _flat(settings: Mapping[str, Any], apart: Collection[str], prefix: str = "") -> dict[str, Any]:
    """{"backbone.layers": 16, ...}, model_type among them."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name in apart:
            continue
        deeper = isinstance(value, Mapping)
        found |= _flat(value, apart, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": value}
    return found
