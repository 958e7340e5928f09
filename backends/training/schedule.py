"""Learning-rate schedules, counted in optimizer steps."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(
    step: int, *, peak: float, total: int, warmup: int = 0, schedule: Schedule = "constant", floor: float = 0.0
) -> float:
    """The rate of optimizer step `step` (from 0) of `total`.

    Rises linearly over `warmup` steps and reaches `peak` at the last of them; then stays, or falls to `floor` times the
    peak at step `total` along a line or half a cosine.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    share = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (floor + (1.0 - floor) * share)
