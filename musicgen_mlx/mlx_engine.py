"""Generation on MLX with NumPy at its borders; `musicgen_mlx.torch_engine` is its mirror."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from backends.base import Memory
from backends.errors import InputError
from backends.mlx_backend import memory
from backends.mlx_backend.device import on_gpu
from backends.mlx_backend.sampling import Sampler
from musicgen_mlx import condition, generation, load
from musicgen_mlx.companions import codec_of
from musicgen_mlx.encodec import DecodeStream
from musicgen_mlx.model import MusicGen
from musicgen_mlx.music import Sampling

GROUP = 64  # weights that share a scale when quantised


class Engine:
    """A MusicGen with its codec and text encoder."""

    name = "mlx"

    def __init__(self, model: MusicGen):
        self.model, self.config = model, model.config

    @classmethod
    def load(
        cls, source: str | Path, *, codec: str | None = None, text_encoder: str | None = None,
        dtype: str | None = None, bits: int | None = None,
    ) -> "Engine":  # fmt: skip
        """From a directory, weights file, Hub id or key; `bits` 4 or 8 quantises the model's matrices.

        Without a `dtype` the weights keep the file's, except that the CPU, which is slow at others, gets float32.
        """
        model = load.from_pretrained(source, codec=codec, text_encoder=text_encoder, dtype=dtype)
        if dtype is None and not on_gpu():
            # Lazily: of what is quantised not all need be there in float32 at once.
            nn.Module.set_dtype(model, mx.float32)
        if bits is not None:
            _quantise(model, bits)
        mx.eval(model.parameters())
        memory.reset_peak_memory()
        return cls(model)

    def said(self, prompts: Sequence[str | None]) -> Any:
        """What these descriptions condition on."""
        with self.model.generating():  # the projection may carry an adapter
            return condition.from_texts(self.model, prompts)

    def steps(
        self, laid: np.ndarray, said: Any, seeds: Sequence[int], sampling: Sampling, guidance: float
    ) -> Iterator[np.ndarray]:
        """The steps (B, K) that are not known in `laid` (B, K, S)."""
        sampler = Sampler(**asdict(sampling))
        for step in generation.predicted_steps(self.model, laid, said, seeds, sampler, guidance):
            yield np.array(step)

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """Audio (B, samples) or (B, samples, 2) -> codes (B, K, T)."""
        return np.array(generation.encode_audio(self.model, mx.array(audio)))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (B, K, T) -> audio (B, samples) or (B, samples, 2)."""
        return np.array(generation.decode_audio(self.model, mx.array(codes)).astype(mx.float32))

    def stream(self) -> "AudioStream":
        """Decoding as the codes come."""
        return AudioStream(self.model)

    def memory(self) -> Memory:
        return memory.memory()


class AudioStream:
    """`musicgen_mlx.encodec.DecodeStream` for a model's codes, stereo ones too."""

    def __init__(self, model: MusicGen):
        self.stream, self.channels = DecodeStream(codec_of(model, encoding=False)), model.config.channels

    def push(self, codes: np.ndarray) -> np.ndarray | None:
        """The next codes (B, K, n) -> the audio that is certain now, (B, samples) or (B, samples, 2)."""
        return self._joined(self.stream.push(generation.sides(mx.array(codes), self.channels)))

    def finish(self) -> np.ndarray | None:
        """The rest."""
        return self._joined(self.stream.finish())

    def _joined(self, audio: mx.array | None) -> np.ndarray | None:
        return None if audio is None else np.array(generation.joined(audio, self.channels).astype(mx.float32))


def _quantise(model: MusicGen, bits: int) -> None:
    if bits not in (4, 8):
        raise InputError(f"--bits {bits}: expected 4 or 8")
    nn.quantize(model, GROUP, bits, class_predicate=_fits)
    if not any("scales" in module for module in model.modules()):
        raise InputError(
            f"--bits {bits}: no matrix of this model has rows of whole groups of {GROUP} weights; leave it out"
        )


def _fits(_name: str, module: Any) -> bool:
    """Matrices whose rows are whole groups."""
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % GROUP == 0
