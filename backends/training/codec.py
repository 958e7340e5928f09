"""Training a codec: what SNAC, Mimi and EnCodec share of a task, on the host.

A family brings its native side (`Family`); here recordings become segments of the stage's length, segments become
batches, batches are cut into micro-batches of at most so many seconds, and validation is always the same crops with the
same noise.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from backends.base import Batch, Hooks, Sample, World
from backends.data.segments import Segment, Source, batches_of
from backends.seeds import TRAINING, VALIDATION, mix
from backends.training.curriculum import Stage, stage_of


class Family(Protocol):
    """The native side of a codec's training."""

    @property
    def coefficients(self) -> Mapping[str, float]: ...
    @property
    def hooks(self) -> Hooks: ...
    def codes(self, path: Path) -> np.ndarray | None:
        """The cached codes of a file, (codes of a unit, units); None where training encodes the audio itself."""
        ...

    def batch(self, audio: np.ndarray, codes: np.ndarray | None, keys: Sequence[int], *, training: bool) -> Batch:
        """Audio (B, samples) and codes (B, codes of a unit, units) -> a batch; `keys` seed each segment's draws."""
        ...

    def terms(self, model: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]: ...
    def counts(self, batch: Batch) -> dict[str, float]: ...
    def reconstruct(self, model: Any, audio: np.ndarray, seed: int) -> np.ndarray:
        """What the codec makes of audio (samples,)."""
        ...


@dataclass(frozen=True)
class CodecPlan:
    """How recordings become updates."""

    stages: Sequence[Stage]
    seed: int = 0
    micro_batch_s: float = 0.0  # at most so many seconds of audio at once; 0: the whole batch
    workers: int = 4
    samples: int = 2  # reconstructions in the report
    validation_batch: int = 64
    validation_segments: int = 512  # at most so many


@dataclass(frozen=True)
class CodecTask:
    """Satisfies `backends.base.Task`."""

    family: Family
    train: Source
    held_out: Source | None
    plan: CodecPlan
    world: World
    exporter: Callable[[Any, Path, str], Path | None]

    @property
    def coefficients(self) -> Mapping[str, float]:
        return self.family.coefficients

    @property
    def hooks(self) -> Hooks:
        return self.family.hooks

    def updates(self, epoch: int) -> int:
        segments = self.train.count(self._units(epoch), seed=self.plan.seed, epoch=epoch)
        return math.ceil(segments / (self._stage(epoch).batch_size * self.world.size))

    def batches(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        segments = self.train.plan(self._units(epoch), seed=self.plan.seed, epoch=epoch)
        numbered = list(enumerate(segments))
        groups = list(batches_of(numbered, self._stage(epoch).batch_size * self.world.size))
        with ThreadPoolExecutor(self.plan.workers) as pool:
            for group in groups[start:]:
                mine = group[self.world.rank :: self.world.size]
                loaded = list(pool.map(lambda item: self._load(self.train, item, TRAINING, epoch), mine))
                yield [self._batch(part, epoch, training=True) for part in self._micro(loaded, epoch)]

    def terms(self, model: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.family.terms(model, batch)

    def counts(self, micro_batches: Sequence[Batch]) -> dict[str, float]:
        totals = dict.fromkeys(self.coefficients, 0.0)
        for batch in micro_batches:
            for name, value in self.family.counts(batch).items():
                totals[name] += value
        return totals

    def seconds(self, micro_batches: Sequence[Batch]) -> float:
        return sum(batch["audio"].size for batch in micro_batches) / self.train.rate_hz

    def validation(self, epoch: int) -> Iterator[Batch]:
        """The same crops and noise for a stage, whatever the epoch; this rank's share of the batches."""
        source = self.held_out
        if source is None:
            return
        segments = source.plan(self._units(epoch), seed=self.plan.seed, epoch=0)
        numbered = list(enumerate(segments))[: self.plan.validation_segments]
        groups = list(batches_of(numbered, min(self.plan.validation_batch, self._micro_size(epoch))))
        with ThreadPoolExecutor(self.plan.workers) as pool:
            for group in groups[self.world.rank :: self.world.size]:
                loaded = list(pool.map(lambda item: self._load(source, item, VALIDATION, 0), group))
                yield self._batch(loaded, epoch, training=False)

    def sample(self, model: Any, step: int) -> list[Sample]:
        """Originals (once) and reconstructions of a few validation segments of the longest stage."""
        source = self.held_out or self.train
        units = max(self._units(stage.first) for stage in self.plan.stages)
        segments = source.plan(units, seed=self.plan.seed, epoch=0)[: self.plan.samples]
        made = []
        for item in enumerate(segments):
            audio, _, key = self._load(source, item, VALIDATION, 0)
            if step == 0:
                made.append(Sample(f"original_{item[0]}", _caption(source, item[1]), audio, source.rate_hz))
            rebuilt = self.family.reconstruct(model, audio, key)
            made.append(Sample(f"reconstructed_{item[0]}", _caption(source, item[1]), rebuilt, source.rate_hz))
        return made

    def export(self, model: Any, directory: Path, label: str) -> Path | None:
        return self.exporter(model, directory, label)

    def _stage(self, epoch: int) -> Stage:
        return stage_of(self.plan.stages, epoch)

    def _samples(self, epoch: int) -> int:
        return round(self._stage(epoch).length_s * self.train.rate_hz)

    def _units(self, epoch: int) -> int:
        return math.ceil(self._samples(epoch) / self.train.unit_samples)

    def _micro_size(self, epoch: int) -> int:
        stage = self._stage(epoch)
        budget = int(self.plan.micro_batch_s / stage.length_s) if self.plan.micro_batch_s else stage.batch_size
        return max(1, min(stage.batch_size, budget))

    def _micro(self, loaded: list, epoch: int) -> Iterator[list]:
        return batches_of(loaded, self._micro_size(epoch))

    def _load(self, source: Source, item: tuple[int, Segment], stream: int, epoch: int) -> tuple[Any, Any, int]:
        """A segment's audio (samples,), its codes or None, and the key of its other draws."""
        number, segment = item
        key = mix(self.plan.seed, stream, epoch, number)
        audio, pieces = source.read(segment, self.plan.seed, stream, epoch, number)
        parts = []
        for piece in pieces:
            codes = self.family.codes(source.recordings[piece.file].path)
            if codes is not None:
                assert piece.start is not None
                parts.append(codes[:, piece.start : piece.start + piece.units])
        return audio, np.concatenate(parts, axis=1) if parts else None, key

    def _batch(self, loaded: list, epoch: int, *, training: bool) -> Batch:
        samples = self._samples(epoch)
        audio = np.stack([part[:samples] for part, _, _ in loaded])
        codes = None if loaded[0][1] is None else np.stack([part for _, part, _ in loaded])
        return self.family.batch(audio, codes, [key for *_, key in loaded], training=training)


def _caption(source: Source, segment: Segment) -> str:
    return ", ".join(source.recordings[piece.file].path.name for piece in segment[:3])
