"""What the untouched model scores at each stage, measured before training and kept beside the run."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.atomic import write_text
from backends.base import Backend, Section, Task
from backends.errors import InputError
from backends.training import log
from backends.training.curriculum import Stage, stage_of
from backends.training.evaluation import total, validate_terms

FILE = "baseline_metrics.json"


@dataclass(frozen=True)
class Baselines:
    """The validation losses of the untouched model, by stage name ("1.0s")."""

    stages: Sequence[Stage]
    values: Mapping[str, Mapping[str, float]]

    def judged(self, epoch: int, value: float) -> float:
        """A validation loss as a share of its stage's baseline, so that stages of different length compare."""
        return value / self._of(stage_of(self.stages, epoch))

    def section(self, run: Path) -> Section:
        """A table of each stage's baseline, best and last loss, from the run's metrics.csv."""
        rows = self._rows(run)
        lines = ["<tr><th>stage</th><th>epochs</th><th>baseline</th><th>best</th><th>last</th><th>change</th></tr>"]
        for stage in self.stages:
            found = _losses(rows, stage)
            base = self._of(stage)
            cells = [stage.name, f"{stage.first}-{stage.last}", f"{base:.4f}"]
            if found:
                cells += [f"{min(found):.4f}", f"{found[-1]:.4f}", f"{100 * (min(found) / base - 1):+.1f} %"]
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        return Section("Stages against the untouched model", f"<table>{''.join(lines)}</table>")

    def improvements(self, run: Path) -> list[tuple[str, float]]:
        """Of each stage that was validated, how far its best loss is under the baseline (0.25: a quarter).

        A stage is named by its length, and by its epochs too where others have that length.
        """
        rows, lengths = self._rows(run), [stage.name for stage in self.stages]
        found = []
        for stage in self.stages:
            name = stage.name if lengths.count(stage.name) == 1 else f"{stage.name}, epochs {stage.first}-{stage.last}"
            if losses := _losses(rows, stage):
                found.append((name, 1 - min(losses) / self._of(stage)))
        return found

    def _rows(self, run: Path) -> list[dict[str, float]]:
        return [row for row in log.read(run / "metrics.csv") if "val_loss" in row]

    def _of(self, stage: Stage) -> float:
        return self.values[stage.name]["val_loss"]


def measure(backend: Backend, model: Any, task: Task, stages: Sequence[Stage], run: Path, key: str) -> Baselines:
    """Validate the untouched `model` at each stage's length, or read what an earlier start of this run measured.

    `key` identifies model, data, loss and seed: a file that was measured on others is not used.
    """
    path = run / FILE
    kept = _kept(path, key)
    if all(stage.name in kept for stage in stages):
        return Baselines(stages, kept)
    evaluate = backend.eval_step(model, task.terms)
    values = {}
    for stage in stages:
        terms = validate_terms(evaluate, task, stage.first, backend.world)
        if terms is None:
            raise InputError("--val-data: holds no segment to measure the baseline on")
        loss = total(terms, task)
        if not 0 < loss < math.inf:
            raise InputError(
                f"the untouched model's validation loss at {stage.name} is {loss:g}, nothing to improve on: check the "
                "weights of the loss and --val-data"
            )
        values[stage.name] = {"val_loss": loss, **{f"val_{name}": v for name, v in terms.items()}}
    if backend.world.rank == 0:
        write_text(path, json.dumps({**values, "of": key}, indent=1))
    backend.world.barrier()
    return Baselines(stages, values)


def _losses(rows: Sequence[Mapping[str, float]], stage: Stage) -> list[float]:
    """The validation losses of a stage's epochs."""
    return [row["val_loss"] for row in rows if stage.first <= row["epoch"] <= stage.last]


def _kept(path: Path, key: str) -> dict[str, Mapping[str, float]]:
    """What the file says by stage, nothing where it was measured on something else or is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: values for name, values in content.items() if name != "of"} if content["of"] == key else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
