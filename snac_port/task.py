"""What SNAC adds to codec training (`backends.training.codec`): its batches, terms and checkpoints.

With encoder and quantiser frozen a segment is a slice of its files' codes, computed once and cached, beside the audio;
otherwise it is audio alone. The decoder's noise is drawn on the host, keyed by the segment, and is the same on both
backends.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Batch, Hooks
from backends.data import audio as audio_files
from backends.data.codes import CodeCache
from backends.training import usage
from snac_port import codes as layout
from snac_port.codec import Codec
from snac_port.config import SNACConfig
from snac_port.loss import LossSpec
from snac_port.noise import keyed


@dataclass(frozen=True)
class SNACFamily:
    """Satisfies `backends.training.codec.Family`; `backend` is "mlx" or "torch"."""

    config: SNACConfig
    loss: LossSpec
    backend: str
    cache: CodeCache | None = None  # None where encoder or quantiser train
    hooks: Hooks = field(default_factory=Hooks)

    @property
    def coefficients(self) -> Mapping[str, float]:
        return self.loss.coefficients

    def codes(self, path: Path) -> np.ndarray | None:
        return None if self.cache is None else self.cache(path)

    def batch(self, audio: np.ndarray, codes: np.ndarray | None, keys: Sequence[int], *, training: bool) -> Batch:
        """audio (B, samples); codes_i (B, T) per level, or bypass (B,); noise_i (B, T) per decoder block."""
        batch = {"audio": audio.astype(np.float32)}
        if codes is None:
            batch["bypass"] = np.zeros(len(audio), bool)
        else:
            levels = layout.to_levels(codes.swapaxes(1, 2), self.config)
            batch |= {f"codes_{level}": np.ascontiguousarray(codes) for level, codes in enumerate(levels)}
        frames = self.config.frames(audio.shape[1])
        for block in range(self.loss.noise_blocks):
            frames *= self.config.decoder_rates[block]
            batch[f"noise_{block}"] = np.stack([keyed(key, block, 0, frames) for key in keys])
        return batch

    def terms(self, model: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.distances(*self.rebuilt(model, batch))

    def rebuilt(self, model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """For `backends.training.adversary`: native audio, what the codec makes of it, and the quantiser's terms."""
        return self._native.rebuilt(model, batch, self.loss)

    def distances(self, audio: Any, made: Any, rest: Any) -> Mapping[str, Any]:
        return self._native.distances(audio, made, rest, self.loss)

    def counts(self, batch: Batch) -> dict[str, float]:
        B, samples = batch["audio"].shape
        return self.loss.counts(B, samples)

    @property
    def _native(self) -> Any:
        return importlib.import_module(f"snac_port.{self.backend}_terms")

    def reconstruct(self, model: Codec, audio: np.ndarray, seed: int) -> np.ndarray:
        return model.decode(model.encode(audio), seed=seed)


def count_codes(model: Codec, recordings: Sequence[Path], cache: CodeCache | None, most: int = 64) -> np.ndarray:
    """How often each entry occurs, (levels, entries), in at most so many of the recordings, evenly chosen."""
    config, counts = model.config, 0
    for path in recordings[:: -(-len(recordings) // most)]:
        rows = (file_codes(model, path) if cache is None else cache(path)).T
        counts = counts + usage.count(layout.to_levels(rows, config), config.codebook_size)
    return np.asarray(counts)


def file_codes(model: Codec, path: Path) -> np.ndarray:
    """A file's codes as the cache keeps them: (codes of a unit, units)."""
    encoded = model.encode(audio_files.read(path, model.config.sampling_rate))
    return layout.to_rows(encoded.levels, model.config).T


def trains(name: str, *, encoder: bool, quantiser: bool) -> bool:
    """Whether a parameter of this dotted name trains; the decoder always does."""
    if name.startswith("encoder."):
        return encoder
    return quantiser if name.startswith("quantizer.") else True
