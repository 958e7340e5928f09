"""Batches of similar length in a seeded order."""

from collections.abc import Sequence

import numpy as np

from backends.seeds import rng

POOL = 50  # batches sorted by length together: nearly no padding, still a random order


def epoch_batches(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Return this epoch's batches as lists of indices into `lengths`.

    A seeded shuffle is cut into pools of `POOL` batches; each pool is sorted by length and cut into batches, whose
    order is shuffled again. Every index appears once; only the last batch of a pool may be smaller.
    """
    draw = rng(seed, epoch)
    order = draw.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), POOL * batch_size):
        pool = sorted(order[start : start + POOL * batch_size].tolist(), key=lambda index: (lengths[index], index))
        cut = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        batches += [cut[i] for i in draw.permutation(len(cut))]
    return batches


def epoch_updates(
    lengths: Sequence[int], batch_size: int, batches: int, *, seed: int, epoch: int
) -> list[list[list[int]]]:
    """The batches of `epoch_batches` by update: so many each, those of all ranks; the last update may have fewer."""
    cut = epoch_batches(lengths, batch_size, seed=seed, epoch=epoch)
    return [cut[i : i + batches] for i in range(0, len(cut), batches)]


def in_order(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches by length without shuffling, for validation."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def pad_length(length: int, multiple: int = 8) -> int:
    """`length` rounded up, so that only few shapes occur."""
    return -(-length // multiple) * multiple


def pad_stack(arrays: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Stack arrays (T, ...) to (B, length, ...), with zeros after each one's end."""
    stacked = np.zeros((len(arrays), length, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked
