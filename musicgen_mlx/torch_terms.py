"""MusicGen's training terms on PyTorch; `musicgen_mlx.mlx_terms` is its mirror."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from musicgen_mlx.torch_model import Condition, predicted


def codebook_sums(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy summed over the targets of a batch of `musicgen_mlx.task`, for each codebook (K,)."""
    logits = predicted(model, batch["steps"][:, :, :-1], _condition(model, batch)).float()
    wanted = batch["targets"][:, :, 1:]
    codes = torch.where(wanted, batch["steps"][:, :, 1:], 0)
    surprise = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view_as(codes)
    return (surprise * wanted).sum(dim=(0, 2))


def _condition(model: Any, batch: Mapping[str, torch.Tensor]) -> Condition | None:
    if "rows" not in batch:
        return None
    rows = model.projected(batch["rows"])
    return Condition(torch.where(batch["said"][..., None], rows, 0), batch["rows_seen"], ())
