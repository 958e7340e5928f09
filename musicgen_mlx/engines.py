"""A model with its codec and text encoder on the backend that was asked for."""

from pathlib import Path
from typing import Any

from backends import get
from musicgen_mlx.music import Engine


def load_engine(
    source: str | Path, backend: str = "auto", device: str | None = None, *, codec: str | None = None,
    text_encoder: str | None = None, dtype: str | None = None, bits: int | None = None,
) -> Engine:  # fmt: skip
    """An engine from a directory, weights file, Hub id, key or "tiny"; see `musicgen_mlx.load.from_pretrained`.

    `backend` is mlx, torch or auto; `device` is PyTorch's; `bits` 4 or 8 quantises the model's matrices on MLX.
    """
    chosen: Any = get(backend, device)
    options: Any = {"codec": codec, "text_encoder": text_encoder, "dtype": dtype, "bits": bits}
    if chosen.name == "mlx":
        from musicgen_mlx import mlx_engine

        return mlx_engine.Engine.load(source, **options)
    from musicgen_mlx import torch_engine

    return torch_engine.Engine.load(source, **options, device=str(chosen.device))
