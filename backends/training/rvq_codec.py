"""Codecs with a residual quantiser whose codebooks learn by averages (Mimi, EnCodec): their side of codec training.

A codec's native model gives, with the same names on both backends:

    latents(audio (B, samples)) -> latents              synthesise(latents) -> audio (B, samples)
    quantize(latents, active, bypass, offered, priority) -> (latents, codes (B, K, T), commitment)
    quantised(latents) -> {name of a ResidualQuantizer: what it quantises (B, T, D)}
    encode(audio) -> codes (B, K, T)                     decode(codes) -> audio

samples being whole frames. The loss is `CodecLoss`; its native terms are in `backends.{mlx,torch}_backend.rvq_codec`.

A codec that starts from random weights learns without quantisation first: codebooks that quantise an encoder which has
learned nothing collapse to a few entries. Then k-means puts the codebooks where the latents are.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Arrays, Backend, Batch, Hooks, Metrics, TrainStep
from backends.data.audio import read
from backends.data.segments import Source
from backends.seeds import mix
from backends.training import usage
from backends.training.codebooks import kmeans_crops, quantizer_draws, revival_draw
from backends.training.codec_loss import COMMITMENT, CodecLoss

KMEANS_BATCH_S = 20.0  # seconds of audio encoded at once for k-means
COUNTED, COUNTED_S = 64, 20.0  # recordings whose codes are counted for the report, and how much of each


@dataclass(frozen=True)
class Quantising:
    """How the quantiser takes part in training."""

    start: int = 0  # updates without quantisation, after which k-means starts the codebooks; 0: they are as they are
    dropout: float = 0.5  # probability that an item uses only some of the codebooks
    bypass: float = 0.5  # probability that an item is not quantised
    decay: float = 0.99  # of the codebooks' averages, per update
    revive_below: float = 0.1  # an entry with less than this share of its level's mean usage is replaced
    slots: int = 256  # latents of an update that are kept to replace entries with


@dataclass(frozen=True)
class RVQFamily:
    """Satisfies `backends.training.codec.Family`; `backend` is "mlx" or "torch"."""

    loss: CodecLoss
    codebooks: int
    quantising: Quantising
    backend: str
    hooks: Hooks = field(default_factory=Hooks)

    @property
    def coefficients(self) -> Mapping[str, float]:
        return self.loss.coefficients

    def codes(self, path: Path) -> np.ndarray | None:
        return None

    def batch(self, audio: np.ndarray, codes: np.ndarray | None, keys: Sequence[int], *, training: bool) -> Batch:
        """audio (B, samples), and the draws of `quantizer_draws`: none of chance in validation."""
        plan, learns = self.quantising, training and not self.loss.decoder_only
        draws = quantizer_draws(
            keys,
            codebooks=self.codebooks,
            frames=self.loss.frames(audio.shape[1]),
            dropout=plan.dropout if training else 0.0,
            bypass=plan.bypass if learns else 0.0,
            slots=plan.slots if learns else 0,
        )
        return {"audio": audio.astype(np.float32), **draws}

    def terms(self, model: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return _native(self.backend).terms(model, batch, self.loss)

    def rebuilt(self, model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        return _native(self.backend).rebuilt(model, batch, self.loss)

    def distances(self, audio: Any, made: Any, rest: Any) -> Mapping[str, Any]:
        return _native(self.backend).distances(audio, made, rest, self.loss)

    def counts(self, batch: Batch) -> dict[str, float]:
        return self.loss.counts(batch["audio"], batch["active"])

    def reconstruct(self, model: Any, audio: np.ndarray, seed: int) -> np.ndarray:
        return _native(self.backend).reconstruct(model, audio, self.loss.frame_samples)


def codebook_hooks(family: RVQFamily, source: Source, seed: int) -> Hooks:
    """What makes the codebooks of `family` learn: averages after each update, k-means at the end of the start."""
    plan, native, rvq = family.quantising, _native(family.backend), _rvq(family.backend)

    def after_step(model: Any, step: int) -> None:
        for index, quantizer in enumerate(rvq.quantizers(model).values()):
            K, V, _ = quantizer.embed_sum.shape
            draw = revival_draw(mix(seed, index), step, codebooks=K, entries=V, slots=plan.slots)
            rvq.apply_statistics(quantizer, decay=plan.decay, revive_below=plan.revive_below, draw=draw)
        if step == plan.start:
            entries = max(quantizer.embed_sum.shape[1] for quantizer in rvq.quantizers(model).values())
            at_once = max(1, int(KMEANS_BATCH_S * family.loss.rate_hz) // family.loss.frame_samples)
            native.start_codebooks(model, kmeans_crops(source, entries, at_once, seed), seed)

    return Hooks(
        after_step=after_step,
        buffers=rvq.buffers,
        load_buffers=rvq.load_buffers,
    )


def collect(family: RVQFamily, model: Any) -> None:
    """Make the model's quantisers gather what their codebooks learn from."""
    for quantizer in _rvq(family.backend).quantizers(model).values():
        quantizer.collect(family.quantising.slots)


def buffers(family: RVQFamily, model: Any) -> Arrays:
    """The model's codebooks, by dotted name."""
    return _rvq(family.backend).buffers(model)


def code_counts(family: RVQFamily, model: Any, source: Source, entries: int) -> np.ndarray:
    """How often each entry occurs in each level's codes (K, V) of the beginnings of the first recordings."""
    native, longest, counts = _native(family.backend), round(COUNTED_S * source.rate_hz), 0
    training = model.training
    model.eval()
    try:
        for recording in source.recordings[:COUNTED]:
            samples = read(recording.path, source.rate_hz)[:longest]
            codes = native.codes(model, samples, family.loss.frame_samples)
            counts = counts + usage.count(list(codes), entries)
    finally:
        model.train(training)
    return np.asarray(counts)


def unquantised_first(family: Any, updates: int, backend: Backend, silent: Sequence[str] = (COMMITMENT,)) -> Any:
    """The family, whose hooks make a step, with first updates that leave the quantiser out; see `Unquantised`."""
    make_step = family.hooks.make_step

    def make() -> TrainStep:
        return Unquantised(make_step(), updates, backend, silent)

    return replace(family, hooks=replace(family.hooks, make_step=make))


class Unquantised:
    """A TrainStep whose first `updates` updates pass latents on as they are, without pulling them to any entry.

    Batches have "bypass"; `silent` names the terms that pull.
    """

    def __init__(self, step: TrainStep, updates: int, backend: Backend, silent: Sequence[str]):
        self.step, self.updates, self.backend, self.silent, self.done = step, updates, backend, silent, 0

    def __call__(self, micro_batches: Sequence[Batch], weights: Mapping[str, float], lr: float) -> Metrics:
        if self.done < self.updates:
            micro_batches = [{**batch, "bypass": np.ones_like(batch["bypass"])} for batch in micro_batches]
            weights = {**weights, **dict.fromkeys(self.silent, 0.0)}
        self.done += 1
        return self.step(micro_batches, weights, lr)

    def state(self) -> Arrays:
        return {**self.step.state(), **self.backend.from_host({"updates": np.array(self.done)})}

    def load_state(self, arrays: Arrays) -> None:
        arrays = dict(arrays)
        self.done = int(arrays.pop("updates").item())
        self.step.load_state(arrays)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        with self.step.averaged():
            yield


def _native(backend: str) -> Any:
    return importlib.import_module(f"backends.{backend}_backend.rvq_codec")


def _rvq(backend: str) -> Any:
    return importlib.import_module(f"backends.{backend}_backend.rvq")
