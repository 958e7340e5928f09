"""MusicGen's training terms on MLX; `musicgen_mlx.torch_terms` is its mirror."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from musicgen_mlx import loss
from musicgen_mlx.condition import Condition


def codebook_sums(model: Any, batch: Mapping[str, mx.array]) -> mx.array:
    """Cross-entropy summed over the targets of a batch of `musicgen_mlx.task`, for each codebook (K,)."""
    return loss.codebook_sums(model, batch["steps"], batch["targets"], _condition(model, batch))


def _condition(model: Any, batch: Mapping[str, mx.array]) -> Condition | None:
    if "rows" not in batch:
        return None
    rows = model.text_conditioner(batch["rows"].astype(model.dtype))
    return Condition(mx.where(batch["said"][..., None], rows, 0), batch["rows_seen"], ())
