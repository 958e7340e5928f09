"""The processes that train together on PyTorch (`torchrun`); alone, every operation is the identity."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist

from backends.base import Arrays


@dataclass(frozen=True)
class TorchWorld:
    """Ranks joined by `torch.distributed`."""

    rank: int
    size: int

    def sum(self, values: Sequence[float]) -> list[float]:
        if self.size == 1:
            return list(values)
        # A group that the caller made may have nccl alone.
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        total = torch.tensor(list(values), dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()

    def barrier(self) -> None:
        self.sum([0.0])


@cache
def world() -> TorchWorld:
    """Join the group that a launcher made, or stand alone."""
    if not dist.is_available():
        return TorchWorld(0, 1)
    if not dist.is_initialized() and _launched():
        dist.init_process_group(_transports())
        atexit.register(_leave)
    return TorchWorld(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else TorchWorld(0, 1)


def sum_arrays(arrays: Arrays) -> Arrays:
    """Each array summed over the ranks; all ranks must call this with the same names and shapes."""
    if world().size == 1:
        return dict(arrays)
    totals = {}
    for name in sorted(arrays):
        totals[name] = arrays[name].clone()
        dist.all_reduce(totals[name])
    return totals


def _launched() -> bool:
    """Whether torchrun, or something like it, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)


def _transports() -> str:
    """By device: PyTorch's default serves its accelerator alone, and sums of losses are taken on the host."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "cpu:gloo"


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
