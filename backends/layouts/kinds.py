"""What kinds of values a configuration holds: those of its published one."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from backends.errors import InputError

_NAMES = {str: "a string", dict: "an object"}


@contextmanager
def reading(source: str, kind: str) -> Iterator[None]:
    """Make of what goes wrong inside, with a configuration from `source`, the InputError that it is not `kind`."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"{source}: not {kind} (no {error})") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{source}: not {kind} ({error})") from error


def part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A configuration inside another one. Raises KeyError where it is not there, ValueError where it is no object."""
    if not isinstance(content[name], Mapping):
        raise ValueError(f"{name} {content[name]!r}: expected an object")
    return content[name]


def check_kinds(settings: Mapping[str, Any], like: Mapping[str, Any], zero: Collection[str] = ()) -> None:
    """Raise ValueError for a value of another kind than in `like`, which has every key.

    Whole numbers are counts, from 1, or from 0 those in `zero`; lists hold counts; other numbers are above 0. What is
    a mapping in `like` is not looked into.
    """
    for key, value in settings.items():
        model = like[key]
        if isinstance(model, bool):
            fits, wanted = isinstance(value, bool), "true or false"
        elif isinstance(model, int):
            fits, wanted = _is_count(value, key in zero), f"a whole number from {int(key not in zero)}"
        elif isinstance(model, float):
            fits, wanted = isinstance(value, float | int) and 0 < value < float("inf"), "a number above 0"
        elif isinstance(model, list):
            fits, wanted = (
                isinstance(value, list) and bool(value) and all(map(_is_count, value)),
                "whole numbers from 1",
            )
        else:
            fits, wanted = isinstance(value, type(model)), _NAMES[type(model)]
        if not fits:
            raise ValueError(f"{key} {value!r}: expected {wanted}")


def _is_count(value: object, zero: bool = False) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= (0 if zero else 1)
