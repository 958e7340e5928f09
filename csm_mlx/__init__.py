"""CSM (Sesame's conversational speech model) and its Mimi codec on MLX.

    from csm_mlx import CSM, csm_1b, generate
    model = CSM.from_pretrained("sesame/csm-1b")
    audio = generate(model, text="Hello.", speaker=0, context=[])

Names load when they are first used, so that importing the package is quick and imports no framework.
"""

import importlib
from typing import TYPE_CHECKING

import backends  # noqa: F401  (loads a fast BLAS before mlx.core)

if TYPE_CHECKING:
    from csm_mlx.config import CSMConfig, MimiConfig, csm_1b, csm_tiny
    from csm_mlx.generation import generate, stream_generate
    from csm_mlx.mimi import Mimi
    from csm_mlx.model import CSM
    from csm_mlx.tokens import Segment

_HOMES = {
    "CSM": "model",
    "CSMConfig": "config",
    "Mimi": "mimi",
    "MimiConfig": "config",
    "Segment": "tokens",
    "csm_1b": "config",
    "csm_tiny": "config",
    "generate": "generation",
    "stream_generate": "generation",
}

__all__ = [
    "CSM",
    "CSMConfig",
    "Mimi",
    "MimiConfig",
    "Segment",
    "csm_1b",
    "csm_tiny",
    "generate",
    "stream_generate",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'csm_mlx' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"csm_mlx.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
