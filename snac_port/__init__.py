"""The SNAC codec (multi-scale neural audio codec) on MLX and PyTorch.

    from snac_port import SNAC
    model = SNAC.from_pretrained("hubertsiuzdak/snac_24khz")
    codes = model.encode(audio)
    audio = model.decode(codes)

`from_pretrained(checkpoint, backend)` chooses the framework. Names load when they are first used, so that importing the
package is quick and imports no framework.
"""

import importlib
from typing import TYPE_CHECKING

import backends  # noqa: F401  (loads a fast BLAS before mlx.core)

if TYPE_CHECKING:
    from snac_port.codec import Codec
    from snac_port.codefile import read_codes, write_codes
    from snac_port.codes import Codes
    from snac_port.config import SNACConfig, snac_24khz, snac_32khz, snac_44khz, snac_tiny
    from snac_port.generation import generate
    from snac_port.load import from_pretrained
    from snac_port.model import SNAC
    from snac_port.tokens import flatten, unflatten

_HOMES = {
    "Codec": "codec",
    "Codes": "codes",
    "SNAC": "model",
    "SNACConfig": "config",
    "flatten": "tokens",
    "from_pretrained": "load",
    "generate": "generation",
    "read_codes": "codefile",
    "snac_24khz": "config",
    "snac_32khz": "config",
    "snac_44khz": "config",
    "snac_tiny": "config",
    "unflatten": "tokens",
    "write_codes": "codefile",
}

__all__ = [
    "SNAC",
    "Codec",
    "Codes",
    "SNACConfig",
    "flatten",
    "from_pretrained",
    "generate",
    "read_codes",
    "snac_24khz",
    "snac_32khz",
    "snac_44khz",
    "snac_tiny",
    "unflatten",
    "write_codes",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'snac_port' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"snac_port.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
