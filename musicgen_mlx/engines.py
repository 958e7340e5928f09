"""A model with its codec and text encoder on the backend that was asked for."""

from pathlib import Path
from typing import Any

from backends import get
from backends.importing import imported
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
    if chosen.name == "torch":
        options["device"] = str(chosen.device)
    return imported(f"musicgen_mlx.{chosen.name}_engine").Engine.load(source, **options)
