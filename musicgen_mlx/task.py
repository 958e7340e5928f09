"""What MusicGen adds to training: its loss and its batches. Framework-free; `mlx_terms` and `torch_terms` are native.

Loss. A clip's codes are delayed (`musicgen_mlx.pattern`), and every cell that holds a code is predicted from the steps
before it:

    loss = mean over codebooks of the mean cross-entropy over the codebook's cells

as in audiocraft; ln(2048) = 7.62 where nothing is known. Each visit of a clip takes a random segment of it. So that
guidance works, all conditions of a segment are dropped with a probability of 0.3; audiocraft drops those of a whole
batch together.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Batch, Hooks, Sample, World
from backends.data.batching import epoch_updates, in_order, pad_length, pad_stack
from backends.seeds import MUSIC_SEGMENTS, rng
from musicgen_mlx import pattern
from musicgen_mlx.config import MusicGenConfig
from musicgen_mlx.dataset import Clip

Rows = Callable[[str], np.ndarray]  # a description -> the text encoder's rows (L, W)


@dataclass(frozen=True)
class Plan:
    """How clips become updates."""

    batch_size: int
    accumulation: int = 1
    segment_frames: int = 1500
    condition_dropout: float = 0.3
    visits: int = 1  # segments that each recording gives per epoch
    seed: int = 0


@dataclass(frozen=True)
class Segment:
    """Codes (K, T) and the rows (L, W) of their description; no rows are the null condition."""

    codes: np.ndarray
    rows: np.ndarray


def _nothing(*_arguments: Any) -> Any:
    return None


@dataclass(frozen=True)
class MusicGenTask:
    """Satisfies `backends.base.Task` on both backends. Sampling and export are given by the command."""

    config: MusicGenConfig
    backend: str
    train: Sequence[Clip]
    plan: Plan
    world: World
    held_out: Sequence[Clip] = ()
    rows_of: Rows | None = None  # None for a model without a condition
    sampler: Callable[[Any, int], list[Sample]] = lambda _model, _step: []
    exporter: Callable[[Any, Path, str], Path | None] = _nothing
    hooks: Hooks = field(default_factory=Hooks)

    @property
    def coefficients(self) -> dict[str, float]:
        K = self.config.codebooks
        return {f"codebook{k}": 1 / K for k in range(K)}

    def updates(self, epoch: int) -> int:
        return len(self._updates(epoch))

    def batches(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        for cuts in self._updates(epoch)[start:]:
            mine = cuts[self.world.rank :: self.world.size]
            yield [self._collate([self._segment(visit, epoch) for visit in cut]) for cut in mine]

    def terms(self, model: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        sums = importlib.import_module(f"musicgen_mlx.{self.backend}_terms").codebook_sums(model, batch)
        return {f"codebook{k}": sums[k] for k in range(self.config.codebooks)}

    def counts(self, micro_batches: Sequence[Batch]) -> dict[str, float]:
        totals = np.zeros(self.config.codebooks)
        for batch in micro_batches:
            totals += batch["targets"][:, :, 1:].sum(axis=(0, 2))
        return {f"codebook{k}": float(total) for k, total in enumerate(totals)}

    def seconds(self, micro_batches: Sequence[Batch]) -> float:
        frames = sum(float(batch["targets"][:, 0].sum()) for batch in micro_batches)
        return frames / self.config.encodec.frame_hz

    def validation(self, epoch: int) -> Iterator[Batch]:
        """The beginnings of the clips held out, with their descriptions; this rank's share of the batches."""
        cuts = in_order([len(clip) for clip in self.held_out], self.plan.batch_size)
        for cut in cuts[self.world.rank :: self.world.size]:
            found = [self.held_out[index] for index in cut]
            yield self._collate(
                [Segment(clip.codes[:, : self.plan.segment_frames], self._rows(clip.text)) for clip in found]
            )

    def sample(self, model: Any, step: int) -> list[Sample]:
        return self.sampler(model, step)

    def export(self, model: Any, directory: Path, label: str) -> Path | None:
        return self.exporter(model, directory, label)

    def _updates(self, epoch: int) -> list[list[list[int]]]:
        lengths = [min(len(clip), self.plan.segment_frames) for clip in self.train] * self.plan.visits
        batches = self.plan.accumulation * self.world.size
        return epoch_updates(lengths, self.plan.batch_size, batches, seed=self.plan.seed, epoch=epoch)

    def _segment(self, visit: int, epoch: int) -> Segment:
        """The segment of a visit: its number counts through the clips, once for each of the plan's visits."""
        clip, draw = self.train[visit % len(self.train)], rng(self.plan.seed, epoch, visit, MUSIC_SEGMENTS)
        start = int(draw.integers(0, max(1, len(clip) - self.plan.segment_frames + 1)))
        dropped = draw.random() < self.plan.condition_dropout
        codes = clip.codes[:, start : start + self.plan.segment_frames]
        return Segment(codes, self._rows("" if dropped else clip.text))

    def _rows(self, text: str) -> np.ndarray:
        if self.rows_of is None or not text:
            return np.zeros((0, self.config.text_width), np.float32)
        return self.rows_of(text)

    def _collate(self, segments: Sequence[Segment]) -> Batch:
        """steps and targets (B, K, S); with a condition rows (B, L, W), rows_seen (B, L) and said (B, L).

        A null condition is one row that is seen and says nothing, and attends to zeros.
        """
        delays, special = self.config.delays, self.config.special
        S = pad_length(pattern.steps(max(segment.codes.shape[1] for segment in segments), delays))
        steps = np.full((len(segments), self.config.codebooks, S), special, np.int32)
        targets = np.zeros(steps.shape, bool)
        for row, segment in enumerate(segments):
            length = pattern.steps(segment.codes.shape[1], delays)
            steps[row, :, :length] = pattern.delayed(segment.codes, delays, special)
            targets[row, :, :length] = pattern.valid(segment.codes.shape[1], delays)
        batch = {"steps": steps, "targets": targets}
        return batch if self.rows_of is None else {**batch, **_conditions([segment.rows for segment in segments])}


def _conditions(rows: Sequence[np.ndarray]) -> Batch:
    L = pad_length(max(1, *(len(row) for row in rows)))
    places, lengths = np.arange(L), np.array([len(row) for row in rows])[:, None]
    return {
        "rows": pad_stack(list(rows), L).astype(np.float32),
        "rows_seen": places < np.maximum(lengths, 1),
        "said": places < lengths,
    }
