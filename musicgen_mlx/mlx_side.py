"""What training needs of MusicGen on MLX besides its terms; `musicgen_mlx.torch_side` is its mirror. NumPy in, out."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from backends import get
from backends.data import audio
from backends.mlx_backend import parameters
from musicgen_mlx import companions, condition, generation, load, tiny
from musicgen_mlx.config import MusicGenConfig, musicgen_tiny
from musicgen_mlx.dataset import pieces
from musicgen_mlx.encodec import Encodec
from musicgen_mlx.model import MusicGen
from musicgen_mlx.t5 import TextEncoder

TINY = "tiny"


def for_companions(config: MusicGenConfig, codec: str | None, text_encoder: str | None) -> MusicGenConfig:
    """The configuration with the sizes that this codec and text encoder ask for."""
    found = _codec(codec).config
    config = replace(config, encodec=found, codebooks=found.codebooks * config.channels, entries=found.entries)
    if config.condition == "none":
        return config
    t5 = _text_encoder(text_encoder).model.config
    return replace(config, t5=t5, text_width=t5.width)


def from_scratch(config: MusicGenConfig, draw: Callable[[MusicGenConfig], Mapping[str, np.ndarray]]) -> MusicGen:
    """A model with the weights that `draw` makes."""
    model = MusicGen(config)
    parameters.load(model, {name: mx.array(value) for name, value in draw(config).items()})
    mx.eval(model.parameters())
    return model


def bring(model: MusicGen, codec: str | None, text_encoder: str | None) -> None:
    """Give a model from scratch its codec and text encoder."""
    model._companions["codec"] = _codec(codec)
    if model.config.condition != "none":
        model._companions["text_encoder"] = _text_encoder(text_encoder)


def from_pretrained(source: str, codec: str | None, text_encoder: str | None, *, float32: bool) -> MusicGen:
    """A model to fine-tune; all of it trains in `float32`."""
    dtype = "float32" if float32 else None
    return load.from_pretrained(source, codec=codec, text_encoder=text_encoder, dtype=dtype)


def recompute(model: MusicGen) -> None:
    """Trade time for memory in the backward pass."""
    model.recompute = True


def codec_identity(model: MusicGen) -> str:
    """What the codes of this model's codec are known by."""
    backend, codec = get("mlx"), companions.codec_of(model)
    weights = backend.fingerprint(parameters.parameters(codec))
    return hashlib.sha256(f"{weights} {codec.config} {model.config.channels}".encode()).hexdigest()


def encode_file(model: MusicGen, path: Path, length: int) -> np.ndarray:
    """A recording's codes (K, T), encoded in pieces of `length` samples."""
    samples = audio.read(path, model.config.encodec.sample_rate_hz)
    parts = [samples[start:stop] for start, stop in pieces(samples.size, length)]
    codes = [np.array(generation.encode_audio(model, mx.array(part)[None])[0]) for part in parts]
    return np.concatenate(codes, axis=1).astype(np.int32)


def text_rows(model: MusicGen, text: str) -> np.ndarray:
    """The text encoder's rows (L, W) of a description."""
    states, mask = companions.text_encoder_of(model).encode([text])
    return np.array(states.astype(mx.float32))[0][np.asarray(mask)[0]]


def sound(model: MusicGen, frames: int, prompt: str, seed: int) -> np.ndarray:
    """Music of so many frames, (samples,) or (2, samples)."""
    said = condition.from_texts(model, [prompt])
    codes = generation.generate_codes(model, frames, said, seeds=[seed])
    made = np.array(generation.decode_audio(model, codes)[0].astype(mx.float32))
    return made.T if made.ndim == 2 else made


def save(model: MusicGen, folder: Path) -> Path:
    """Write the model with its codec and text encoder; returns the weights file."""
    load.save_pretrained(model, folder)
    return folder / "model.safetensors"


def _codec(source: str | None) -> Encodec:
    if source == TINY:
        return tiny.codec(musicgen_tiny().encodec)
    return companions.load_codec(source or companions.CODEC)


def _text_encoder(source: str | None) -> TextEncoder:
    if source == TINY:
        return tiny.text_encoder(musicgen_tiny().t5)
    return companions.load_text_encoder(source or companions.TEXT_ENCODER)
