"""What training needs of MusicGen on MLX besides its terms; `musicgen_mlx.torch_side` is its mirror. NumPy in, out."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
import numpy as np

from backends import get
from backends.adapters import files
from backends.base import Arrays, Backend, Leaf, LoRASpec
from backends.data import audio
from backends.mlx_backend import parameters
from musicgen_mlx import companions, condition, generation, initial, load, tiny
from musicgen_mlx.config import MusicGenConfig, musicgen_tiny
from musicgen_mlx.dataset import pieces
from musicgen_mlx.encodec import Encodec
from musicgen_mlx.model import MusicGen
from musicgen_mlx.t5 import TextEncoder

TINY = "tiny"


class Studio:
    """A model with its codec and text encoder, which do not train."""

    def __init__(self, model: MusicGen, backend: Backend):
        self.model, self.backend, self.config = model, backend, model.config

    def recompute(self) -> None:
        """Trade time for memory in the backward pass."""
        self.model.recompute = True

    def linears(self) -> dict[str, Leaf]:
        """Modules that can carry an adapter, by their names in our layout."""
        return self.backend.linears(self.model)

    def adapt(self, names: Iterable[str], spec: LoRASpec, seed: int) -> None:
        """Freeze the model and put a fresh adapter on each named module."""
        self.backend.adapt(self.model, names, spec, seed)

    def save_adapter(self, path: Path, base: str) -> None:
        """Write the adapter, under our names."""
        files.save_adapter(self.backend, self.model, path, files.adapter_info(self.backend, self.model, base))

    def load_adapter(self, path: Path) -> None:
        """Load a file into the adapter that the model carries."""
        files.load_adapter(self.backend, self.model, path)

    def text_encoder_weights(self) -> Arrays:
        """The text encoder's parameters, to know it by; none where there is none."""
        if self.config.condition == "none":
            return {}
        return parameters.parameters(companions.text_encoder_of(self.model).model)

    def codec_identity(self) -> str:
        """What the codes of the codec are known by."""
        codec = companions.codec_of(self.model)
        weights = self.backend.fingerprint(parameters.parameters(codec))
        return hashlib.sha256(f"{weights} {codec.config} {self.config.channels}".encode()).hexdigest()

    def encode(self, path: Path) -> np.ndarray:
        """A recording's codes (K, T)."""
        read = audio.read if self.config.channels == 1 else audio.read_stereo
        samples = read(path, self.config.encodec.sample_rate_hz)
        parts = [samples[start:stop] for start, stop in pieces(len(samples), self.config.encodec)]
        codes = [np.array(generation.encode_audio(self.model, mx.array(part)[None])[0]) for part in parts]
        return np.concatenate(codes, axis=1).astype(np.int32)

    def text_rows(self, text: str) -> np.ndarray:
        """The text encoder's rows (L, W) of a description."""
        states, mask = companions.text_encoder_of(self.model).encode([text])
        return np.array(states.astype(mx.float32))[0][np.asarray(mask)[0]]

    def sound(self, frames: int, prompt: str, seed: int) -> np.ndarray:
        """Music of so many frames, (samples,) or (2, samples)."""
        said = condition.from_texts(self.model, [prompt])
        codes = generation.generate_codes(self.model, frames, said, seeds=[seed])
        made = np.array(generation.decode_audio(self.model, codes)[0].astype(mx.float32))
        return made.T if made.ndim == 2 else made

    def save(self, folder: Path) -> Path:
        """Write the model with its codec and text encoder; returns the weights file."""
        load.save_pretrained(self.model, folder)
        return folder / "model.safetensors"


def from_scratch(config: MusicGenConfig, seed: int, codec: str | None, text_encoder: str | None) -> Studio:
    """A model of random weights that fits this codec and text encoder."""
    kept = {"codec": _codec(codec)}
    if config.condition != "none":
        kept["text_encoder"] = _text_encoder(text_encoder)
    t5 = kept["text_encoder"].model.config if "text_encoder" in kept else None
    model = MusicGen(initial.fitted(config, kept["codec"].config, t5))
    parameters.load(model, {name: mx.array(value) for name, value in initial.tensors(model.config, seed).items()})
    mx.eval(model.parameters())
    model._companions.update(kept)
    return Studio(model, get("mlx"))


def from_pretrained(source: str, codec: str | None, text_encoder: str | None, *, float32: bool) -> Studio:
    """A model to fine-tune, in `float32` if all of it trains; float16, whose gradients vanish, becomes that too."""
    model = load.from_pretrained(source, codec=codec, text_encoder=text_encoder)
    if float32 or model.dtype == mx.float16:
        model.set_dtype(mx.float32)
    return Studio(model, get("mlx"))


def _codec(source: str | None) -> Encodec:
    if source == TINY:
        return tiny.codec(musicgen_tiny().encodec)
    return companions.load_codec(source or companions.CODEC)


def _text_encoder(source: str | None) -> TextEncoder:
    if source == TINY:
        return tiny.text_encoder(musicgen_tiny().t5)
    return companions.load_text_encoder(source or companions.TEXT_ENCODER)
