"""What the host draws for codebooks that learn, and what it reads off them. Framework-free.

A segment's draws depend on its own key only, so that micro-batches and ranks may divide an update as they like.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from backends.base import Batch
from backends.data.segments import Source
from backends.seeds import CROPS_FOR_KMEANS, QUANTIZER, REVIVAL, rng

VECTORS_PER_ENTRY = 16  # that k-means wants


def quantizer_draws(
    keys: Sequence[int], *, codebooks: int, frames: int, dropout: float = 0.0, bypass: float = 0.0, slots: int = 0
) -> Batch:
    """The draws of `ResidualQuantizer.quantize` for segments of `frames` latent frames, one key each.

    "active" (B,): with probability `dropout` a number of codebooks from 1 to all, else all. "bypass" (B,): true with
    probability `bypass`. With `slots`, "offered" (B, slots) is the frame that an item offers for each slot of vectors
    that revive dead entries, and "priority" (B, slots) decides between the items of an update.
    """
    rows = [_of_segment(key, codebooks, frames, dropout, bypass, slots) for key in keys]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def revival_draw(seed: int, step: int, *, codebooks: int, entries: int, slots: int) -> np.ndarray:
    """Which slot (K, V) revives an entry, should it be dead: no slot twice before all were used once."""
    draw = rng(seed, step, REVIVAL)
    rounds = -(-entries // slots)
    order = [np.concatenate([draw.permutation(slots) for _ in range(rounds)])[:entries] for _ in range(codebooks)]
    return np.stack(order).astype(np.int32)


def perplexity(usage: np.ndarray) -> np.ndarray:
    """How many entries are in use, (K,): the exponential of the entropy of counts or averages (K, V)."""
    share = usage / np.maximum(usage.sum(axis=1, keepdims=True), 1e-12)
    return np.exp(-(share * np.log(np.maximum(share, 1e-12))).sum(axis=1))


def _of_segment(
    key: int, codebooks: int, frames: int, dropout: float, bypass: float, slots: int
) -> dict[str, np.ndarray]:
    draw = rng(key, key >> 32, QUANTIZER)
    dropped, bypassed = draw.random(2)
    some = draw.integers(1, codebooks + 1)
    row = {
        "active": np.int32(some if dropped < dropout else codebooks),
        "bypass": np.bool_(bypassed < bypass),
    }
    if slots:
        row["offered"] = draw.integers(0, frames, slots).astype(np.int32)
        row["priority"] = draw.random(slots, dtype=np.float32)
    return row  # type: ignore[return-value]


def kmeans_crops(source: Source, entries: int, units: int, seed: int) -> Iterator[np.ndarray]:
    """Audio (1, samples), float32, of at most so many units each: vectors enough to start so many entries from."""
    for audio in source.excerpts(VECTORS_PER_ENTRY * entries, units, seed, CROPS_FOR_KMEANS):
        yield audio[None].astype(np.float32)
