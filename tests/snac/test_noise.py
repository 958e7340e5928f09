"""The decoder's noise is a function of (seed, block, position), the same for both backends."""

import numpy as np
import pytest
import snac_oracle as oracle

from backends.errors import InputError
from snac_port import torch_model
from snac_port.model import SNAC
from snac_port.noise import keyed, source
from snac_port.tiny import checkpoint

CONFIG = oracle.NARROW["24khz"]
GOLDEN = ([2.585403, 0.187902, 0.052599, 0.989668], [0.712191, 1.583481, -0.162964, -0.624190])


@pytest.fixture(scope="module", params=["mlx", "torch"])
def ours(request):
    weights = checkpoint(CONFIG)
    return (SNAC if request.param == "mlx" else torch_model.SNAC).of_checkpoint(weights)


def test_it_is_normal():
    values = keyed(3, 1, 0, 400_000).astype(np.float64)
    assert abs(values.mean()) < 5e-3
    assert abs(values.std() - 1) < 5e-3
    assert abs((values**4).mean() - 3) < 0.05
    assert np.abs(values).max() > 4
    for lag in (1, 2, 4, 8):
        assert abs((values[:-lag] * values[lag:]).mean()) < 6e-3


def test_seeds_and_blocks_are_strangers():
    draws = [keyed(seed, block, 0, 100_000) for seed, block in ((0, 0), (0, 1), (1, 0), (-1, 0))]
    correlations = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlations).max() < 0.02


def test_a_part_is_the_same_bits_as_in_the_whole():
    whole = keyed(7, 2, 0, 50_000)
    rng = np.random.default_rng(0)
    for _ in range(300):
        start = int(rng.integers(0, 49_000))
        stop = start + int(rng.integers(1, 1000))
        np.testing.assert_array_equal(keyed(7, 2, start, stop), whole[start:stop])


def test_far_positions_work():
    """A day of audio at 44.1 kHz."""
    far = 86_400 * 44_100
    np.testing.assert_array_equal(keyed(0, 0, far - 5, far + 5)[5:], keyed(0, 0, far, far + 5))


def test_values_stay_what_they_are():
    """A seed is a sound: pinned."""
    np.testing.assert_allclose(keyed(0, 0, 0, 4), GOLDEN[0], atol=1e-6)
    np.testing.assert_allclose(keyed(12, 3, 1001, 1005), GOLDEN[1], atol=1e-6)


def test_blocks_have_their_own_rates():
    drawn = source(CONFIG, None, 0)(2, 5)
    assert drawn is not None
    assert [array.size for array in drawn] == [3 * 8, 3 * 64, 3 * 256, 3 * 512]
    np.testing.assert_array_equal(drawn[1], keyed(0, 1, 2 * 64, 5 * 64))


def test_a_seed_is_one_sound(ours):
    codes = ours.encode(oracle.sound(CONFIG, 9000))
    first = ours.decode(codes, seed=1)
    np.testing.assert_array_equal(first, ours.decode(codes, seed=1))
    assert np.abs(first - ours.decode(codes, seed=2)).max() > 1e-3
    assert np.abs(first - ours.decode(codes, noise=0)).max() > 1e-3


def test_given_arrays_are_taken(ours):
    codes = ours.encode(oracle.sound(CONFIG, 9000))
    frames = CONFIG.frames(9000)
    drawn = source(CONFIG, None, 4)(0, frames)
    assert drawn is not None
    np.testing.assert_array_equal(ours.decode(codes, noise=drawn), ours.decode(codes, seed=4))
    shaped = [array[None, None] for array in drawn]
    np.testing.assert_array_equal(ours.decode(codes, noise=shaped), ours.decode(codes, seed=4))
    zeros = [np.zeros_like(array) for array in drawn]
    np.testing.assert_array_equal(ours.decode(codes, noise=zeros), ours.decode(codes, noise=0))


def test_what_is_no_noise_is_refused(ours):
    codes = ours.encode(oracle.sound(CONFIG, 9000))
    drawn = source(CONFIG, None, 0)(0, CONFIG.frames(9000))
    assert drawn is not None
    for noise in (drawn[:3], 1, [np.stack([array, array]) for array in drawn], []):
        with pytest.raises(InputError, match="^noise: expected None, 0 or an array .* each of the 4 decoder blocks"):
            ours.decode(codes, noise=noise)
    with pytest.raises(InputError, match=r"noise: the array of block 2 has 5119 values, this audio needs 5120"):
        ours.decode(codes, noise=[*drawn[:2], drawn[2][:-1], drawn[3]])
