"""What CSM adds to training: its loss and its batches.

Loss. Rows of a sequence are text tokens and frames (`csm_mlx.tokens`). A frame at row t, the EOS frame included, is
predicted from the backbone's output at row t - 1: codebook 0 by `codebook0_head`, codebooks 1..K-1 by the depth decoder
run along the codebooks with the frame's own codes as input. With n frames in the update, and m of them drawn for the
depth decoder,

    loss = first_codebook_weight / n * sum CE(codebook 0) + 1 / (m (K - 1)) * sum CE(codebooks 1..K-1)

Text rows, padding and masked speakers are no targets. With first_codebook_weight 1 it is the loss of transformers'
CsmForConditionalGeneration for the same labels, where a frame that is not drawn has label -101.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.base import Batch, Hooks, Sample, World
from backends.data.batching import epoch_updates, in_order, pad_length, pad_stack
from backends.seeds import DEPTH_FRAMES, rng
from csm_mlx.model import CSM

MIN_DEPTH_FRAMES = 32  # an update trains the depth decoder on at least so many frames, if it has them


@dataclass(frozen=True)
class Example:
    """A sequence: rows (T, K + 1), which rows are audio (T,), and which of them are targets (T,)."""

    rows: np.ndarray
    is_audio: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Plan:
    """How examples become updates."""

    batch_size: int
    accumulation: int = 1
    depth_fraction: float = 1.0
    first_codebook_weight: float = 1.0
    seed: int = 0
    frame_s: float = 0.08


def no_samples(_model: CSM, _step: int) -> list[Sample]:
    """The sampler of a task that makes no audio."""
    return []


def no_export(_model: CSM, _directory: Path, _label: str) -> Path | None:
    """The exporter of a task that writes no files."""
    return None


@dataclass(frozen=True)
class CSMTask:
    """Satisfies `backends.base.Task` for CSM on MLX. Sampling and export are given by the command."""

    train: Sequence[Example]
    plan: Plan
    world: World
    held_out: Sequence[Example] = ()
    sampler: Callable[[CSM, int], list[Sample]] = no_samples
    exporter: Callable[[CSM, Path, str], Path | None] = no_export

    hooks = Hooks()

    @property
    def coefficients(self) -> dict[str, float]:
        return {"codebook0": self.plan.first_codebook_weight, "depth": 1.0}

    def updates(self, epoch: int) -> int:
        return len(self._updates(epoch))

    def batches(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        for update, cuts in enumerate(self._updates(epoch)[start:], start):
            examples = [[self.train[index] for index in cut] for cut in cuts]
            drawn = draw_depth_frames(
                examples, self.plan.depth_fraction, rng(self.plan.seed, epoch, update, DEPTH_FRAMES)
            )
            pairs = list(zip(examples, drawn, strict=True))[self.world.rank :: self.world.size]
            yield [collate(batch, frames) for batch, frames in pairs]

    def terms(self, model: CSM, batch: Mapping[str, mx.array]) -> dict[str, mx.array]:
        return terms(model, batch)

    def counts(self, micro_batches: Sequence[Batch]) -> dict[str, float]:
        frames = float(sum(batch["targets"].sum() for batch in micro_batches))
        depth = float(sum(batch["depth_mask"].sum() * (batch["rows"].shape[2] - 2) for batch in micro_batches))
        return {"codebook0": frames, "depth": depth}

    def seconds(self, micro_batches: Sequence[Batch]) -> float:
        return self.plan.frame_s * float(sum(batch["is_audio"].sum() for batch in micro_batches))

    def validation(self, epoch: int) -> list[Batch]:
        cuts = in_order([len(example) for example in self.held_out], self.plan.batch_size)
        mine = cuts[self.world.rank :: self.world.size]
        groups = [[self.held_out[index] for index in cut] for cut in mine]
        return [collate(group, [np.flatnonzero(example.targets) for example in group]) for group in groups]

    def sample(self, model: CSM, step: int) -> list[Sample]:
        return self.sampler(model, step)

    def export(self, model: CSM, directory: Path, label: str) -> Path | None:
        return self.exporter(model, directory, label)

    def _updates(self, epoch: int) -> list[list[list[int]]]:
        lengths = [len(example) for example in self.train]
        batches = self.plan.accumulation * self.world.size
        return epoch_updates(lengths, self.plan.batch_size, batches, seed=self.plan.seed, epoch=epoch)


def draw_depth_frames(
    batches: Sequence[Sequence[Example]], fraction: float, draw: np.random.Generator
) -> list[list[np.ndarray]]:
    """Choose the frames of one update that train the depth decoder: target rows of each example of each batch.

    max(ceil(fraction * frames), 32) of them, at most those there are, without replacement.
    """
    flat = [
        (b, e, row) for b, batch in enumerate(batches) for e, x in enumerate(batch) for row in np.flatnonzero(x.targets)
    ]
    count = min(len(flat), max(math.ceil(fraction * len(flat)), MIN_DEPTH_FRAMES))
    chosen: list[list[list[int]]] = [[[] for _ in batch] for batch in batches]
    for index in np.sort(draw.permutation(len(flat))[:count]):
        b, e, row = flat[index]
        chosen[b][e].append(int(row))
    return [[np.array(rows, np.int64) for rows in batch] for batch in chosen]


def collate(examples: Sequence[Example], depth_frames: Sequence[np.ndarray]) -> Batch:
    """Pad examples to one length and mark the frames drawn for the depth decoder.

    rows (B, T, K + 1), is_audio and targets (B, T); `depth_rows` (N,) are positions b T + t of drawn frames, padded to
    a multiple of 8 with zeros where `depth_mask` (N,) is zero.
    """
    length = pad_length(max(len(example) for example in examples))
    positions = np.concatenate([index * length + frames for index, frames in enumerate(depth_frames)])
    padded = np.zeros(pad_length(max(1, len(positions))), np.int32)
    padded[: len(positions)] = positions
    return {
        "rows": pad_stack([example.rows for example in examples], length),
        "is_audio": pad_stack([example.is_audio for example in examples], length),
        "targets": pad_stack([example.targets for example in examples], length),
        "depth_rows": padded,
        "depth_mask": (np.arange(len(padded)) < len(positions)).astype(np.float32),
    }


def terms(model: CSM, batch: Mapping[str, mx.array]) -> dict[str, Any]:
    """The loss's two sums for a batch of `collate`."""
    rows, targets = batch["rows"], batch["targets"]
    B, T, columns = rows.shape
    hidden = model.backbone(model.embed(rows, batch["is_audio"]))
    first = cross_entropy(model.codebook0_head(hidden[:, :-1]), rows[:, 1:, 0]) * targets[:, 1:]

    frames = batch["depth_rows"]
    codes = rows.reshape(B * T, columns)[frames, :-1]
    before = hidden.reshape(B * T, -1)[mx.maximum(frames - 1, 0)]
    rest = cross_entropy(model.depth_logits(before, codes), codes[:, 1:]) * batch["depth_mask"][:, None]
    return {"codebook0": first.sum(), "depth": rest.sum()}


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Per-position cross-entropy in float32: logits (..., V), targets (...)."""
    return nn.losses.cross_entropy(logits.astype(mx.float32), targets)
