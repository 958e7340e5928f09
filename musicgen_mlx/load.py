"""MusicGen on MLX from files: every published layout, and our own directories."""

import json
import shutil
from pathlib import Path

import mlx.core as mx

from backends.atomic import write_text
from backends.layouts.checkpoint import Checkpoint
from backends.mlx_backend import parameters
from backends.mlx_backend.reading import loaded
from backends.mlx_backend.saving import save
from musicgen_mlx import companions, sources
from musicgen_mlx.config import of_settings
from musicgen_mlx.model import MusicGen


def from_pretrained(
    source: str | Path = "small",
    *,
    codec: str | Path | None = None,
    text_encoder: str | Path | None = None,
    dtype: str | None = None,
) -> MusicGen:
    """A MusicGen from a directory, weights file, Hub id or key, with the codec and text encoder that come with it.

    `source` may also be a key such as "small" or "stereo-melody" (`names.KEYS`), or "tiny" (made on the spot, random).
    `codec` and `text_encoder` override; `dtype` ("float32", "bfloat16", "float16") converts the model's weights, which
    otherwise keep the file's; codec and text encoder are float32. Raises InputError that names the file and tensor
    that does not fit. Codec and text encoder are read when they are first needed.
    """
    sources.check_dtype(dtype)
    found = sources.found(source, codec, text_encoder)
    model = of_checkpoint(found.model)
    model._companions["codec_at"] = found.codec_at
    model._companions["found_codec"], model._companions["found_text"] = found.codec, found.text
    if dtype is not None:
        model.set_dtype(getattr(mx, dtype))
    return model


def of_checkpoint(checkpoint: Checkpoint) -> MusicGen:
    """The model with these weights, in evaluation."""
    model = MusicGen(of_settings(checkpoint.settings))
    parameters.load(model, loaded(checkpoint.ours))
    model.eval()
    return model


def save_pretrained(model: MusicGen, folder: Path) -> None:
    """Write our layout: config.json, model.safetensors, and the codec, text encoder and tokenizer in use."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(model.config.to_json(), indent=1))
    save(folder / "model.safetensors", model)
    save(folder / "codec.safetensors", companions.codec_of(model))
    if model.config.condition == "none":
        return
    encoder = companions.text_encoder_of(model)
    save(folder / "text_encoder.safetensors", encoder.model)
    if encoder.path.resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(encoder.path, folder / "tokenizer.json")
