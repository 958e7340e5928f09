"""Parameters of an MLX model by dotted name: reading, setting, choosing what trains."""

from collections.abc import Callable

import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from backends.adapters.strict import check_names, check_shapes
from backends.base import Arrays
from backends.errors import InputError


def parameters(model: nn.Module) -> Arrays:
    """Every parameter by dotted name."""
    return dict(tree_flatten(model.parameters()))


def trainable(model: nn.Module) -> Arrays:
    """The parameters that train, by dotted name."""
    return dict(tree_flatten(model.trainable_parameters()))


def train_only(model: nn.Module, keep: Callable[[str], bool]) -> None:
    """Make exactly the parameters trainable whose dotted name satisfies `keep`; InputError if quantised."""
    model.freeze()
    modules = dict(model.named_modules())
    for name in filter(keep, parameters(model)):
        owner, _, leaf = name.rpartition(".")
        if "scales" in modules[owner]:
            raise InputError(f"{name} is quantised and cannot be trained: adapt it, or take full-precision weights")
        modules[owner].unfreeze(recurse=False, keys=leaf, strict=True)


def load(model: nn.Module, arrays: Arrays, *, strict: bool = True) -> None:
    """Set parameters by name; raises InputError that names what is missing, unexpected or of the wrong shape."""
    current = parameters(model)
    check_names(current, arrays, strict=strict)
    check_shapes({name: current[name].shape for name in arrays}, {name: value.shape for name, value in arrays.items()})
    model.update(tree_unflatten(list(arrays.items())))
