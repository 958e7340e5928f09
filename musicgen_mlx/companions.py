"""What MusicGen needs on MLX besides its weights: the EnCodec codec, and a T5 encoder with its tokenizer.

Those that lie beside the weights are used; otherwise the pinned ones (`musicgen_mlx.names`) are fetched when needed.
"""

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


def codec_of(model: Any, *, encoding: bool = True) -> Encodec:
    """The model's codec, read or fetched at first use; its encoder, half of it, only where something needs that."""
    kept = model._companions
    if "codec" not in kept:
        found = kept.pop("found_codec", None)
        found = found or sources.fetched_codec(kept.get("codec_at", CODEC), model.config.settings())
        half = Encodec(encodec_of_settings(found.settings))
        kept["codec"], kept["unread"] = _frozen(half, _float32(found, _decodes), strict=False), found
    if encoding and "unread" in kept:
        rest = _float32(kept.pop("unread"), lambda name: not _decodes(name))
        parameters.load(kept["codec"], rest, strict=False)
    return kept["codec"]


def text_encoder_of(model: Any) -> TextEncoder:
    """The model's text encoder with its tokenizer, read or fetched at first use."""
    kept = model._companions
    if "text_encoder" not in kept:
        found = kept.pop("found_text", None) or sources.fetched_text(model.config.settings())
        kept["text_encoder"] = text_encoder_from(found.checkpoint, found.tokenizer)
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
    given = loaded({name: checkpoint.ours[name] for name in checkpoint.ours if wanted(name)})
    found = {name: value.astype(mx.float32) for name, value in given.items()}
    mx.eval(found)
    return found


def _frozen(model: Any, weights: Arrays, *, strict: bool = True) -> Any:
    parameters.load(model, weights, strict=strict)
    model.freeze()
    model.eval()
    return model
