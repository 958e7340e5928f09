"""Codebooks start where the latents are."""

import numpy as np
import pytest
from quantizing import D, K, V, host, items, learned, native, quantizer, tables

from backends.seeds import rng
from backends.training.kmeans import kmeans_levels, kmeans_start, nearest


def clustered(clusters, count, seed=0, spread=0.05):
    draw = rng(seed, 701)
    centres = 3 * draw.standard_normal((clusters, D))
    vectors = centres[draw.integers(0, clusters, count)] + spread * draw.standard_normal((count, D))
    return centres.astype(np.float32), vectors.astype(np.float32)


def test_centres_of_clusters_are_found():
    centres, vectors = clustered(12, 600)
    found = kmeans_start(vectors, 12, seed=1)
    assert found.shape == (12, D)
    assert found.dtype == np.float32
    codes, distances = nearest(centres, found)
    assert len(set(codes)) >= 10  # Lloyd's algorithm may leave two clusters to one centre
    assert np.median(distances) < 1e-2
    assert (found == kmeans_start(vectors, 12, seed=1)).all()


def test_nearest_is_by_euclidean_distance():
    centres, vectors = clustered(12, 50)
    codes, distances = nearest(vectors, centres)
    expected = ((vectors[:, None] - centres) ** 2).sum(-1)
    assert (codes == expected.argmin(1)).all()
    np.testing.assert_allclose(distances, expected.min(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("vectors", [np.zeros((40, D), np.float32), np.ones((1, D), np.float32), clustered(3, 5)[1]])
def test_fewer_distinct_vectors_than_entries(vectors):
    """Silence, one vector, a few: all entries are finite and differ, and every vector is one of them."""
    found = kmeans_start(vectors, 16, seed=0)
    assert found.shape == (16, D)
    assert np.isfinite(found).all()
    assert len(np.unique(found, axis=0)) == 16
    assert nearest(vectors, found)[1].max() <= 1e-4


def test_no_centre_is_left_without_vectors():
    """Most vectors in one place: centres that lost theirs move to vectors far from their own."""
    vectors = np.concatenate([clustered(1, 500, spread=1e-3)[1], clustered(20, 40, seed=2)[1]])
    found = kmeans_start(vectors, 24, seed=0)
    assert len(set(nearest(vectors, found)[0])) >= 20


def test_each_level_takes_what_is_left():
    _, vectors = clustered(30, 800, spread=0.3)
    residual, errors = vectors, []
    for table in kmeans_levels(vectors, 3, 16, seed=0):
        residual = residual - table[nearest(residual, table)[0]]
        errors.append(float((residual**2).mean()))
    assert (vectors**2).mean() > 3 * errors[0] > 9 * errors[1] > 3 * errors[2]


def test_codebooks_start_the_same_on_both_backends(sides):
    """From one batch: all levels, an equal usage, and fewer errors than random codebooks have."""
    found = []
    for side in sides:
        made = quantizer(side)
        inputs = native(side, {"x": items(0, 12)["x"]})["x"]
        before = host(side, x=made.decode(made.encode(inputs)))["x"]
        made.kmeans(inputs, seed=3)
        after = host(side, x=made.decode(made.encode(inputs)))["x"]
        errors = [((value - items(0, 12)["x"]) ** 2).mean() for value in (before, after)]
        assert errors[1] < 1e-2 * errors[0]
        assert (learned(side, made)["cluster_usage"] == 12 * 7 / V).all()
        found.append(tables(side, made))
    assert found[0].shape == (K, V, D)
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)
