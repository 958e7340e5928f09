"""The JSON file that --config names, as flags."""

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from backends.errors import InputError


def flags(options: type, argv: Sequence[str]) -> list[str]:
    """The flags that stand for the options in the file given with --config, if any. Raises InputError."""
    path = None
    for index, flag in enumerate(argv):
        if flag == "--config" and index + 1 < len(argv):
            path = Path(argv[index + 1])
        elif flag.startswith("--config="):
            path = Path(flag.removeprefix("--config="))
    return [] if path is None else [flag for name, value in _read(options, path).items() for flag in _flag(name, value)]


def _read(options: type, path: Path) -> dict[str, Any]:
    """The file's options by their names in `options`, each of a type that its flag takes."""
    content = _content(path)
    hints = get_type_hints(options)
    known = {field.name for field in fields(options)}
    for name, value in content.items():
        if name == "config":
            raise InputError(f"--config {path}: 'config' is no option of a file: give one file, with --config")
        if name not in known:
            close = get_close_matches(name, known, 1)
            raise InputError(
                f"--config {path}: unknown option {name!r}" + (f", did you mean {close[0]!r}?" if close else "")
            )
        if not _fits(hints[name], value):
            raise InputError(f"--config {path}: {name!r} is {json.dumps(value)}, expected {_expected(hints[name])}")
    return content


def _content(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name.replace("-", "_") for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"--config {path}: {twice!r} is given {names.count(twice)} times: give it once")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read ({error.strerror})") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--config {path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: expected a JSON object of options")
    return {name.replace("-", "_"): value for name, value in content.items()}


def _fits(hint: Any, value: Any) -> bool:
    """Whether a JSON value can stand for an option of that type. Numbers may be quoted, one item needs no list."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(one, value) for one in inside)
    if kind is Literal:
        return value in inside
    if kind is tuple:
        items = value if isinstance(value, list) else [value]
        return all(_fits(inside[0], item) for item in items)
    if hint in (int, float):
        return not isinstance(value, bool) and isinstance(value, (int, float, str)) and _number(hint, value)
    if hint is str:
        structure = isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value)
        return structure or isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return isinstance(value, {bool: bool, type(None): type(None)}.get(hint, str))  # the rest are paths


def _number(kind: type, value: float | str) -> bool:
    try:
        return not math.isnan(kind(str(value)))
    except ValueError:
        return False


def _expected(hint: Any) -> str:
    kind, inside = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(map(_expected, inside))
    if kind is Literal:
        return "one of " + ", ".join(map(json.dumps, inside))
    if kind is tuple:
        return f"a list, each item {_expected(inside[0])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    return names.get(hint, "a path")


def _flag(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"  # with "=", so that a value may begin with a hyphen
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return [f"{flag}={json.dumps(value)}"]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]
