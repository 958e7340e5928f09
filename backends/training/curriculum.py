"""Curriculum: longer segments in smaller batches as the epochs go on."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from backends.errors import InputError

KEYS = {"epochs", "length", "batch_multiplier", "comment"}
LONGEST_S = 3600.0  # of a segment; short recordings would be joined until one is full


@dataclass(frozen=True)
class Stage:
    """The epochs `first` to `last` (counted from 1) on segments of `length_s` seconds, `batch_size` of them a batch."""

    first: int
    last: int
    length_s: float
    batch_size: int

    @property
    def name(self) -> str:
        """The stage's key in baseline_metrics.json, e.g. "1.0s" or "0.25s": stages of one length share it."""
        return f"{self.length_s}s"


def stages(text: str, epochs: int, batch_size: int, length_s: float) -> list[Stage]:
    """The stages of a JSON list of `{"epochs": [first, last], "length": seconds, "batch_multiplier": m}`.

    A batch is int(batch_size * m). An empty list is one stage of `length_s`. What lies after the last epoch is left
    out. Raises InputError where a key is unknown or the epochs 1 to `epochs` are not covered in order.
    """
    rows = _rows(text)
    if not rows:
        return [Stage(1, epochs, length_s, batch_size)]
    made = [_stage(row, batch_size) for row in rows]
    expected = 1
    for stage in made:
        if stage.first != expected or stage.last < stage.first:
            raise InputError(
                f"--curriculum: a stage covers epochs {stage.first} to {stage.last}, expected one from {expected} on"
            )
        expected = stage.last + 1
    if expected <= epochs:
        raise InputError(f"--curriculum: ends with epoch {expected - 1}, but the run has {epochs} epochs: add a stage")
    return [replace(stage, last=min(stage.last, epochs)) for stage in made if stage.first <= epochs]


def stage_of(made: Sequence[Stage], epoch: int) -> Stage:
    """The stage that an epoch belongs to."""
    return next(stage for stage in made if stage.first <= epoch <= stage.last)


def check_lengths(made: Sequence[Stage], rate_hz: int, windows: Mapping[str, int], adversary: int = 0) -> None:
    """Raise InputError where a stage is longer than an hour, or too short for the spectra of its loss.

    They are centred on a segment's first sample, so that half a window is reflected there. `windows` says which option
    asks for a window of how many samples; `adversary` is the shortest segment that discriminators take.
    """
    longest = max(stage.length_s for stage in made)
    if longest > LONGEST_S:
        raise InputError(f"--segment-length, --curriculum: segments of {longest:g} s; expected at most {LONGEST_S:g} s")
    reach = {option: window // 2 for option, window in windows.items()}
    if adversary:
        reach["--adversarial, whose largest window is 2048,"] = adversary - 1
    for (option, samples), stage in product(reach.items(), made):
        if round(stage.length_s * rate_hz) <= samples:
            raise InputError(
                f"{option} needs segments longer than {samples / rate_hz:.2f} s, a stage has {stage.length_s} s: "
                "give longer segments, smaller n_ffts, no mel term or no adversary"
            )


def _rows(text: str) -> list[dict]:
    try:
        rows = json.loads(text or "[]")
    except ValueError as error:
        raise InputError(f"--curriculum: not valid JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError("--curriculum: expected a list of stages")
    return rows


def _stage(row: dict, batch_size: int) -> Stage:
    for key in row:
        if key not in KEYS:
            raise InputError(f"--curriculum: unknown key {key!r}; known: {', '.join(sorted(KEYS))}")
    try:
        first, last = row["epochs"]
        length_s, items = float(row["length"]), batch_size * float(row.get("batch_multiplier", 1.0))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"--curriculum: {row} lacks epochs [first, last] or length ({error})") from error
    if type(first) is not int or type(last) is not int:
        raise InputError(f"--curriculum: epochs {row['epochs']}: expected two whole numbers, the first and the last")
    if not (math.isfinite(length_s) and math.isfinite(items) and length_s > 0 and items >= 1):
        raise InputError(
            f"--curriculum: {row} gives batches of {items:g} segments of {length_s:g} s; expected more than none, "
            "and finite numbers"
        )
    return Stage(first, last, length_s, int(items))
