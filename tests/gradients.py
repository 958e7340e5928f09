"""The rule for gradients: per tensor, L2 of the difference <= 1e-4 * max(its norm, 1e-3 * norm of all)."""

import numpy as np
from mlx.utils import tree_flatten


def assert_gradients_equal(ours, theirs: dict[str, np.ndarray]) -> None:
    own = {name: np.array(value) for name, value in tree_flatten(ours)}
    assert own.keys() == theirs.keys()
    everything = np.sqrt(sum((value**2).sum() for value in theirs.values()))
    assert everything > 0
    for name, value in theirs.items():
        difference = np.linalg.norm(own[name] - value)
        allowed = 1e-4 * max(np.linalg.norm(value), 1e-3 * everything)
        assert difference <= allowed, f"{name}: {difference} > {allowed}"
