"""k-means, from which codebooks start: entries where the vectors are, so that none is dead from the beginning."""

import numpy as np

from backends.seeds import KMEANS, rng

_AT_ONCE = 1 << 24  # distances held at a time


def kmeans_start(vectors: np.ndarray, entries: int, seed: int, rounds: int = 20) -> np.ndarray:
    """Centres (entries, D) of `vectors` (N, D), by Lloyd's algorithm from random vectors.

    A centre that loses all its vectors moves to the vector that is farthest from its own. With fewer distinct vectors
    than entries, each of them is one, and the rest are copies a little beside.
    """
    draw = rng(seed, KMEANS)
    distinct = np.unique(vectors, axis=0)
    if len(distinct) <= entries:
        return _beside(distinct, entries, draw)
    centres = distinct[draw.permutation(len(distinct))[:entries]]
    before = None
    for _ in range(rounds):
        codes, distances = nearest(vectors, centres)
        if before is not None and (codes == before).all():
            break
        before = codes
        centres = _means(vectors, codes, distances, entries)
    return centres


def kmeans_levels(vectors: np.ndarray, codebooks: int, entries: int, seed: int) -> np.ndarray:
    """Residual codebooks (K, entries, D): each level's centres are those of what the ones before leave of (N, D)."""
    residual, tables = vectors.astype(np.float32), []
    for level in range(codebooks):
        tables.append(kmeans_start(residual, entries, seed + level))
        residual = residual - tables[-1][nearest(residual, tables[-1])[0]]
    return np.stack(tables)


def nearest(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centre of each vector: numbers (N,) and squared distances (N,)."""
    codes, distances = [], []
    half_norms = 0.5 * (centres**2).sum(axis=1)
    step = max(1, _AT_ONCE // len(centres))
    for first in range(0, len(vectors), step):
        part = vectors[first : first + step]
        scores = half_norms - part @ centres.T
        codes.append(scores.argmin(axis=1))
        distances.append(np.maximum(0.0, 2 * scores.min(axis=1) + (part**2).sum(axis=1)))
    return np.concatenate(codes), np.concatenate(distances)


def _means(vectors: np.ndarray, codes: np.ndarray, distances: np.ndarray, entries: int) -> np.ndarray:
    counts = np.bincount(codes, minlength=entries)
    sums = np.zeros((entries, vectors.shape[1]), np.float64)
    np.add.at(sums, codes, vectors)
    means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    empty = np.flatnonzero(counts == 0)
    means[empty] = vectors[np.argsort(-distances, kind="stable")[: len(empty)]]
    return means


def _beside(distinct: np.ndarray, entries: int, draw: np.random.Generator) -> np.ndarray:
    copies = distinct[draw.integers(0, len(distinct), entries - len(distinct))]
    spread = 1e-2 * (distinct.std() + 1e-2)
    noise = spread * draw.standard_normal(copies.shape)
    return np.concatenate([distinct, copies + noise]).astype(np.float32)
