"""What MusicGen needs on MLX besides its weights: the EnCodec codec, and a T5 encoder with its tokenizer.

Those that lie beside the weights are used; otherwise the pinned ones (`musicgen_mlx.names`) are fetched when needed.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from backends.base import Arrays
from backends.layouts.checkpoint import Checkpoint
from backends.mlx_backend import parameters
from backends.mlx_backend.reading import loaded
from musicgen_mlx import sources
from musicgen_mlx.config import T5Config, encodec_of_settings
from musicgen_mlx.encodec import Encodec
from musicgen_mlx.names import CODEC
from musicgen_mlx.t5 import T5Encoder, TextEncoder

_READING = threading.Lock()  # of several threads that need a companion, one reads it


def codec_of(model: Any, *, encoding: bool = True) -> Encodec:
    """The model's codec, read or fetched at first use; its encoder, half of it, only where something needs that."""
    kept = model._companions
    with _READING:
        if "codec" not in kept:
            at = kept.get("codec_at", CODEC)
            found = kept.get("found_codec") or sources.fetched_codec(at, model.config.settings())
            half = Encodec(encodec_of_settings(found.settings))
            kept["codec"], kept["unread"] = _frozen(half, _float32(found, _decodes), strict=False), found
            kept.pop("found_codec", None)
        if encoding and "unread" in kept:
            rest = _float32(kept["unread"], lambda name: not _decodes(name))
            parameters.load(kept["codec"], rest, strict=False)
            kept.pop("unread")
        return kept["codec"]


def text_encoder_of(model: Any) -> TextEncoder:
    """The model's text encoder with its tokenizer, read or fetched at first use."""
    kept = model._companions
    with _READING:
        if "text_encoder" not in kept:
            found = kept.get("found_text") or sources.fetched_text(model.config.settings())
            kept["text_encoder"] = text_encoder_from(found.checkpoint, found.tokenizer)
            kept.pop("found_text", None)
        return kept["text_encoder"]


def load_codec(source: str | Path) -> Encodec:
    """A frozen EnCodec; see `musicgen_mlx.sources.codec`."""
    return codec_from(sources.codec(source))


def codec_from(checkpoint: Checkpoint) -> Encodec:
    """A frozen EnCodec from the tensors of any of its layouts."""
    return _frozen(Encodec(encodec_of_settings(checkpoint.settings)), _float32(checkpoint))


def load_text_encoder(source: str | Path) -> TextEncoder:
    """A frozen text encoder; see `musicgen_mlx.sources.text`."""
    found = sources.text(source)
    return text_encoder_from(found.checkpoint, found.tokenizer)


def text_encoder_from(checkpoint: Checkpoint, tokenizer: Path) -> TextEncoder:
    """A frozen text encoder from the tensors of any of its layouts."""
    return TextEncoder(_frozen(T5Encoder(T5Config(**checkpoint.settings)), _float32(checkpoint)), tokenizer)


def _decodes(name: str) -> bool:
    """Whether decoding takes this tensor of a codec."""
    return not name.startswith("encoder.")


def _float32(checkpoint: Checkpoint, wanted: Callable[[str], bool] = lambda _name: True) -> Arrays:
    """The wanted tensors in float32 whatever the file's type, as on PyTorch and in audiocraft: T5 leaves the range of
    float16."""
    return loaded({name: checkpoint.ours[name] for name in checkpoint.ours if wanted(name)}, mx.float32)


def _frozen(model: Any, weights: Arrays, *, strict: bool = True) -> Any:
    parameters.load(model, weights, strict=strict)
    model.freeze()
    model.eval()
    return model
