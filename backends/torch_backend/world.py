"""The processes that train together on PyTorch (`torchrun`); alone, every operation is the identity."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class TorchWorld:
    """Ranks joined by `torch.distributed`."""

    rank: int
    size: int

    def sum(self, values: Sequence[float]) -> list[float]:
        if self.size == 1:
            return list(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(list(values), dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()

    def barrier(self) -> None:
        self.sum([0.0])


def world() -> TorchWorld:
    """The process group that is already there, or one process alone."""
    if dist.is_available() and dist.is_initialized():
        return TorchWorld(dist.get_rank(), dist.get_world_size())
    return TorchWorld(0, 1)
