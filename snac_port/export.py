"""Weights in the upstream package's own form."""

from pathlib import Path
from typing import Any

import numpy as np

from backends.atomic import write_atomically
from backends.errors import missing_extra
from backends.layouts.rules import to_theirs
from backends.layouts.snac import rules


def write_upstream(path: Path, model: Any) -> Path:
    """Write a .pt file whose state_dict `snac.SNAC` loads; returns `path`. Needs PyTorch."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch, which --export-pt needs,", "torch") from error
    named = to_theirs(model.tensors(), rules("snac", model.config.settings()), "SNAC")
    state = {name: torch.from_numpy(np.ascontiguousarray(named[name])) for name in named}
    return write_atomically(path, lambda staging: torch.save(state, staging))
