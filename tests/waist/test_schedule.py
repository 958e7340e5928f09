"""Learning rates, pinned."""

import math

import pytest

from backends.training.schedule import learning_rate


def rates(schedule, warmup=0, total=8, peak=1.0, steps=None):
    return [
        learning_rate(step, peak=peak, total=total, warmup=warmup, schedule=schedule) for step in range(steps or total)
    ]


def test_constant():
    assert rates("constant") == [1.0] * 8
    assert rates("constant", warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_linear_falls_to_zero_at_the_end():
    assert rates("linear", total=4) == [1.0, 0.75, 0.5, 0.25]
    assert rates("linear", warmup=2, total=6, peak=2.0) == [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]


def test_cosine_is_half_a_cosine():
    assert rates("cosine", total=4) == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert rates("cosine", warmup=2, total=6) == pytest.approx([0.5, 1.0, 1.0, 0.85355339, 0.5, 0.14644661])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_stays_at_zero_beyond_the_end(schedule):
    assert rates(schedule, total=4, steps=7)[4:] == [0.0, 0.0, 0.0]
    assert rates(schedule, warmup=5, total=3, steps=5) == [0.2, 0.4, 0.6, 0.8, 1.0]
