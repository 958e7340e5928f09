"""Starting SNAC's codebooks, for a codec that is trained from random weights. Framework-free.

Codebooks that quantise an encoder which has learned nothing collapse to one entry. So such a codec first learns with
its levels' channels passing through unquantised; then k-means puts the entries where the channels are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from backends.data.segments import Source
from backends.seeds import KMEANS_OF_SNAC, mix
from backends.training.codebooks import kmeans_crops
from backends.training.kmeans import kmeans_start, nearest

CROP_S = 4.0


def start_codebook(channels: np.ndarray, entries: int, seed: int) -> np.ndarray:
    """Channels (..., d) of a level -> entries (entries, d): as entries are found by cosine, k-means of directions.

    An entry is the mean of the channels whose direction is nearest to a centre.
    """
    vectors = channels.reshape(-1, channels.shape[-1])
    directions = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centres = kmeans_start(directions, entries, seed)
    chosen, _ = nearest(directions, centres)
    counts = np.bincount(chosen, minlength=entries)
    sums = np.zeros((entries, vectors.shape[1]), np.float64)
    np.add.at(sums, chosen, vectors)
    means = sums / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means, centres).astype(np.float32)


def starter(source: Source, entries: int, after: int, seed: int) -> Callable[[Any, int], None]:
    """An `after_step` hook that starts the model's codebooks when update number `after` is done."""
    units = max(1, round(CROP_S * source.rate_hz / source.unit_samples))  # of the coarsest level

    def after_step(model: Any, step: int) -> None:
        if step == after:
            model.start_codebooks(kmeans_crops(source, entries, units, mix(seed, KMEANS_OF_SNAC)), seed)

    return after_step
