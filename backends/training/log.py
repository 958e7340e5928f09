"""The run's log: metrics.csv, one row per `log_every` steps and per evaluation, continued when a run resumes."""

import csv
from collections.abc import Sequence
from pathlib import Path

from backends.atomic import sync, write_atomically
from backends.base import Metrics
from backends.errors import InputError

FIRST = ("step", "epoch", "loss", "val_loss", "learning_rate", "grad_norm", "audio_s_per_s", "peak_memory_gb")


class MetricsLog:
    """Appends rows to a CSV file. A resumed run keeps the `rows` that were there when its checkpoint was saved."""

    def __init__(self, path: Path, terms: Sequence[str], rows: int):
        self.path = path
        self.columns = [*FIRST, *terms]
        kept = read(path)[:rows]
        self.rows = len(kept)
        write_atomically(path, lambda staging: self._write_all(staging, kept))

    def row(self, values: Metrics) -> None:
        """Append one row; columns without a value stay empty."""
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, extrasaction="ignore").writerow(_cells(values))
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); the checkpoints are intact: "
                "free some disk space and run the same command again"
            ) from error
        self.rows += 1

    def sync(self) -> None:
        """Bring the rows to the disk, so that a checkpoint that counts them is not newer than they are."""
        sync(self.path)

    def _write_all(self, path: Path, rows: list[Metrics]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(_cells(row) for row in rows)


def read(path: Path) -> list[Metrics]:
    """The rows of a metrics.csv as numbers, without empty cells; no rows where there is no file.

    Ends before a row that a crash cut short or damaged.
    """
    if not path.exists():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if None in row.values():
                break
            try:
                rows.append({name: float(cell) for name, cell in row.items() if cell})
            except (TypeError, ValueError):  # more cells than columns, or no number
                break
    return rows


def _cells(row: Metrics) -> dict[str, str]:
    return {name: f"{value:.8g}" for name, value in row.items()}


class Window:
    """Running sums between two rows of the log, saved in checkpoints so that a resumed row is whole."""

    def __init__(self, sums: Metrics | None = None, steps: int = 0):
        self.sums = dict(sums or {})
        self.steps = steps

    def add(self, metrics: Metrics) -> None:
        self.steps += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def mean(self) -> Metrics:
        """The mean of each metric since the last call, which empties the window."""
        means = {name: value / self.steps for name, value in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means
