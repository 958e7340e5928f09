"""Strict loading: one-line errors for tensors that are missing, unexpected or of the wrong shape."""

from collections.abc import Iterable, Mapping

from backends.errors import InputError


def check_names(expected: Iterable[str], given: Iterable[str], *, strict: bool = True, source: str = "weights") -> None:
    """Raise InputError where `given` holds unknown names, or, if strict, lacks some."""
    expected, given = set(expected), set(given)
    problems = []
    if strict and expected - given:
        problems.append(f"missing {_some(expected - given)}")
    if given - expected:
        problems.append(f"unexpected {_some(given - expected)}")
    if problems:
        raise InputError(f"{source}: {'; '.join(problems)}: is this file for another model or configuration?")


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], *, source: str = "weights"
) -> None:
    """Raise InputError for the first tensor whose shape differs."""
    for name, shape in given.items():
        if tuple(shape) != tuple(expected[name]):
            raise InputError(f"{source}: {name} has shape {tuple(shape)}, this model expects {tuple(expected[name])}")


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
