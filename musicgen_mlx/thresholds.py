"""From when on a way of generating is worth what it costs at its start, for both backends."""

from collections.abc import Sequence

WEIGHTS_PER_STEP = 4000  # a step over joined weights spares what 4000 of a layer's copied weights cost


def joining_pays(width: int, steps: int) -> bool:
    """Whether so many steps on a CPU are worth joining weights first, which a model of this width copies for it."""
    return WEIGHTS_PER_STEP * steps >= width**2


def is_short(empty: Sequence[bool], rows: int, head_width: int) -> bool:
    """Whether conditions of so many rows, but for those that are empty, are read faster as weights.

    They then have as many rows per head as all of them together, and one where any is empty.
    """
    return (len(empty) - sum(empty)) * rows + any(empty) <= head_width
