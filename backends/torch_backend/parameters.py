"""Parameters of a PyTorch model by dotted name: reading, setting, choosing what trains."""

from collections.abc import Callable

import torch
from torch import nn

from backends.adapters.strict import check_names, check_shapes
from backends.base import Arrays


def parameters(model: nn.Module) -> Arrays:
    """Every parameter by dotted name."""
    return dict(model.named_parameters())


def trainable(model: nn.Module) -> Arrays:
    """The parameters that train, by dotted name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def train_only(model: nn.Module, keep: Callable[[str], bool]) -> None:
    """Make exactly the parameters trainable whose dotted name satisfies `keep`."""
    for name, value in model.named_parameters():
        value.requires_grad_(keep(name))


@torch.no_grad()
def load(model: nn.Module, arrays: Arrays, *, strict: bool = True) -> None:
    """Set parameters by name; raises InputError that names what is missing, unexpected or of the wrong shape."""
    current = parameters(model)
    check_names(current, arrays, strict=strict)
    check_shapes({name: current[name].shape for name in arrays}, {name: value.shape for name, value in arrays.items()})
    for name, value in arrays.items():
        current[name].copy_(value)
