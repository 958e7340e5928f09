"""A layer over a signal that grows, when an output needs some of what follows. Of neither framework."""

from collections.abc import Callable
from typing import Any


class Growing:
    """A growing signal (B, T, C), of which only what is still needed is kept; `join` puts two parts together."""

    def __init__(self, join: Callable[[list[Any]], Any]) -> None:
        self.join = join
        self.kept: Any = None
        self.start = 0  # of what is kept
        self.done = 0  # frames whose output was returned

    def append(self, x: Any) -> None:
        self.kept = x if self.kept is None else self.join([self.kept, x])

    def certain(self, layer: Callable[[Any], Any], halo: int, *, last: bool, rate: int = 1) -> Any:
        """`layer`'s output, `rate` per frame, for the frames that became certain: those with `halo` after them.

        None if there are none.
        """
        if self.kept is None:
            return None
        stop = self.start + self.kept.shape[1]
        known = stop if last else max(self.done, stop - halo)
        if known == self.done:
            return None
        y = layer(self.kept)[:, (self.done - self.start) * rate : (known - self.start) * rate]
        drop = max(0, known - halo - self.start)
        self.kept, self.start, self.done = self.kept[:, drop:], self.start + drop, known
        return y
