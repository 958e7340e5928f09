"""A MusicGen that trains, with the codec and text encoder that it is trained with, on either backend.

What is native is in `musicgen_mlx.mlx_side` and `musicgen_mlx.torch_side`, and in their engines.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from backends.atomic import write_text
from backends.base import Backend
from backends.data.codes import identity
from backends.errors import InputError
from backends.importing import imported
from backends.layouts import files, musicgen
from backends.layouts.checkpoint import Checkpoint
from backends.layouts.files import blank
from backends.layouts.rules import Lazy
from musicgen_mlx import initial as weights
from musicgen_mlx import music, sources, tiny
from musicgen_mlx.adapters import Adapters
from musicgen_mlx.config import MusicGenConfig, T5Config, encodec_of_settings
from musicgen_mlx.dataset import pieces
from musicgen_mlx.names import CODEC, TEXT_ENCODER
from musicgen_mlx.text import TextTokenizer


class Studio:
    """A model, its codec and text encoder. `float32`: the model is made that, else it keeps its file's type."""

    def __init__(self, found: sources.Found, backend: Backend, *, float32: bool = True):
        self.backend = backend
        self.side: Any = imported(f"musicgen_mlx.{backend.name}_side")
        self.engine: Any = self.side.engine(found, backend, float32=float32)
        self.model, self.config = self.engine.model, self.engine.config
        self.codec, self.text = found.codec_or_fetched(), found.text
        self.adapters = Adapters(backend, self.model, self.config)
        self._written: set[Path] = set()

    def recompute(self) -> None:
        """Trade time for memory in the backward pass."""
        self.side.recompute(self.model)

    def hears_at_most(self, seconds: float) -> None:
        """Training sees no more than this at once, and the configuration says so."""
        self.config = replace(self.config, segment_s=min(self.config.segment_s, seconds))
        self.engine.config = self.config

    def codec_identity(self) -> str:
        """What the codes of the codec are known by."""
        made_with = {**self.codec.settings, "backend": self.backend.name, "model channels": self.config.channels}
        return identity(_fingerprint(self.codec.ours), made_with)

    def text_identity(self) -> str:
        """The same for the rows of its text encoder; "" where there is none."""
        return "" if self.text is None else _fingerprint(self.text.checkpoint.ours)

    def encode(self, path: Path) -> np.ndarray:
        """A recording's codes (K, T)."""
        samples = music.read_prompt(path, self.config)
        parts = [samples[start:stop] for start, stop in pieces(len(samples), self.config.encodec)]
        return np.concatenate([self.engine.encode(part[None])[0] for part in parts], axis=1).astype(np.int32)

    def tokenizer(self) -> TextTokenizer:
        """Of its text encoder, which it must have."""
        assert self.text is not None
        return TextTokenizer(self.text.tokenizer, self.text.checkpoint.settings["vocab"])

    def text_rows(self, text: str) -> np.ndarray:
        """The text encoder's rows (L, W) of a description."""
        return self.side.text_rows(self.engine, text)

    def sound(self, seconds: float, prompt: str, seed: int) -> np.ndarray:
        """Music, (samples,) or (2, samples)."""
        hz = self.config.encodec.frame_hz
        wanted = music.Request([prompt or None], [seed], max(1, round(seconds * hz)) / hz)
        made = music.generate(self.engine, wanted)[0]
        return made.T if made.ndim == 2 else made

    def save(self, folder: Path) -> Path:
        """Write our layout: config.json, model.safetensors, and the codec, text encoder and tokenizer in use."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.json", json.dumps(self.config.to_json(), indent=1))
        if folder not in self._written:
            self._write_companions(folder)
            self._written.add(folder)
        files.write(folder / "model.safetensors", self.side.tensors(self.model))
        return folder

    def _write_companions(self, folder: Path) -> None:
        """They stay the same, so that each folder gets them once."""
        files.write(folder / "codec.safetensors", dict(self.codec.ours))
        if self.text is None:
            return
        files.write(folder / "text_encoder.safetensors", dict(self.text.checkpoint.ours))
        if self.text.tokenizer.resolve() != (folder / "tokenizer.json").resolve():
            shutil.copyfile(self.text.tokenizer, folder / "tokenizer.json")


def from_scratch(
    config: MusicGenConfig, seed: int, backend: Backend, codec: str | None = None, text_encoder: str | None = None
) -> Studio:
    """A model of random weights that fits this codec and text encoder; by default MusicGen's own.

    Raises InputError where transformers, and so PyTorch, would have no such model.
    """
    codec_found = _codec(codec or CODEC)
    text = None if config.condition == "none" else _text(text_encoder or TEXT_ENCODER)
    t5 = None if text is None else T5Config(**text.checkpoint.settings)
    config = weights.fitted(config, encodec_of_settings(codec_found.settings), t5)
    sources.check_codec(config.settings(), codec_found.settings, codec_found.source)
    if t5 is not None and t5.width == config.width:
        raise InputError(
            f"--dim {config.width}: the text encoder is as wide, and transformers then leaves out the projection "
            "between them: give another width"
        )
    return Studio(sources.Found(drawn(config, seed), codec_found, CODEC, text), backend)


def from_pretrained(
    source: str, backend: Backend, codec: str | None = None, text_encoder: str | None = None, *, float32: bool
) -> Studio:
    """A model to fine-tune, with its codec and text encoder or the ones given.

    Its settings are those of the ones in use. Raises InputError where they do not fit the model.
    """
    found = sources.found(source)
    one, text = _codec(codec) if codec else found.codec_or_fetched(), None
    if found.model.settings["condition"] != "none":
        text = _text(text_encoder) if text_encoder else found.text_or_fetched()
    elif text_encoder:
        raise InputError(f"--text-encoder {text_encoder}: --model {source} takes no text: leave it out")
    return Studio(sources.fitted(found, one, text), backend, float32=float32)


def _codec(source: str) -> Checkpoint:
    return tiny.checkpoints()["encodec"] if source == "tiny" else sources.codec(source)


def _text(source: str) -> sources.Text:
    return sources.Text(tiny.checkpoints()["t5"], tiny.TOKENIZER) if source == "tiny" else sources.text(source)


def drawn(config: MusicGenConfig, seed: int) -> Checkpoint:
    """Random weights, each drawn when it is looked up."""
    settings = config.settings()
    shapes = musicgen.shapes(settings)
    made = Lazy({name: partial(weights.draw, name, shape, seed) for name, shape in shapes.items()})
    like = {name: blank(shape) for name, shape in shapes.items()}
    return Checkpoint(musicgen.FAMILY, musicgen.FAMILY.ours, settings, made, like, "random weights")


def _fingerprint(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
