"""The processes that train together on MLX (`mlx.launch`); alone, every operation is the identity."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from backends.base import Arrays


@dataclass(frozen=True)
class MLXWorld:
    """Ranks joined by `mx.distributed`."""

    rank: int
    size: int

    def sum(self, values: Sequence[float]) -> list[float]:
        if self.size == 1:
            return list(values)
        total = mx.distributed.all_sum(mx.array(list(values), dtype=mx.float32), stream=mx.cpu)
        return np.array(total).tolist()

    def barrier(self) -> None:
        self.sum([0.0])


@cache
def world() -> MLXWorld:
    """Join the group that a launcher made, or stand alone."""
    if _alone():
        return MLXWorld(0, 1)
    group = mx.distributed.init()
    return MLXWorld(group.rank(), group.size())


def sum_arrays(arrays: Arrays) -> Arrays:
    """Each array summed over the ranks; all ranks must call this with the same names and shapes."""
    if world().size == 1:
        return dict(arrays)
    totals = {}
    for name in sorted(arrays):
        totals[name] = mx.distributed.all_sum(arrays[name], stream=mx.cpu)
        mx.eval(totals[name])  # left to one graph, each rank may have its own order, and different arrays meet
    return totals


def _alone() -> bool:
    """Whether mlx.launch started one process: its list of hosts is empty then, which MLX takes for damaged JSON."""
    hosts = Path(os.environ.get("MLX_HOSTFILE", ""))
    return hosts.is_file() and not hosts.read_text(encoding="utf-8").strip()
