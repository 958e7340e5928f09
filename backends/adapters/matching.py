"""From `--target-modules` to dotted module names."""

from collections.abc import Iterable, Mapping, Sequence

from backends.base import Leaf
from backends.errors import InputError


def match(
    leaves: Mapping[str, Leaf],
    targets: Sequence[str] | None,
    exclude: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Return the names in `leaves` that contain any of `targets`, without those that contain any of `exclude`.

    A target that is a key of `groups` stands for the substrings listed there. None means every linear module.
    Raises InputError for a target that matches nothing.
    """
    groups = groups or {}
    if targets is None:
        chosen = {name for name, leaf in leaves.items() if leaf.kind == "linear"}
    else:
        chosen = set().union(*(_matches(leaves, target, groups) for target in targets))
    dropped = set().union(*(_matches(leaves, target, groups) for target in exclude or ()))
    names = [name for name in leaves if name in chosen - dropped]
    if not names:
        raise InputError(f"--target-modules: nothing to adapt; expected some of {_choices(leaves, groups)}")
    return names


def _matches(leaves: Mapping[str, Leaf], target: str, groups: Mapping[str, Sequence[str]]) -> set[str]:
    parts = groups.get(target, (target,))
    found = {name for name in leaves if any(part in name for part in parts)}
    if not found:
        raise InputError(f"--target-modules {target}: no such module; expected some of {_choices(leaves, groups)}")
    return found


def _choices(leaves: Iterable[str], groups: Iterable[str]) -> str:
    last = {name.rsplit(".", 1)[-1] for name in leaves}
    return " ".join([*groups, *sorted(last - set(groups))])
