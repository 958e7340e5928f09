"""Imports of large packages."""

import gc
import importlib
from typing import Any


def imported(module: str) -> Any:
    """A module, with all that it imports, without looking for garbage meanwhile.

    Nothing of it is any, and looking takes a fifth of the time that PyTorch and transformers need. Raises ImportError.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        if enabled:
            gc.enable()
