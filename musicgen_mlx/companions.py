"""What MusicGen needs besides its weights: the EnCodec codec, and a T5 encoder with its tokenizer.

Those that lie beside the weights are used; otherwise the pinned ones below are fetched when first needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from backends import hub
from backends.errors import InputError
from backends.layouts import encodec as codec_layouts
from backends.layouts import t5 as t5_layouts
from backends.layouts.checkpoint import Checkpoint, find, open_checkpoint
from backends.layouts.files import metadata, open_tensors
from backends.mlx_backend import parameters
from musicgen_mlx.config import T5Config, encodec_of_settings
from musicgen_mlx.encodec import Encodec
from musicgen_mlx.names import CODEC, TEXT_ENCODER
from musicgen_mlx.t5 import T5Encoder, TextEncoder


def codec_of(model: Any) -> Encodec:
    """The model's codec, fetched at first use."""
    kept = model._companions
    if "codec" not in kept:
        kept["codec"] = load_codec(kept.get("codec_source", CODEC))
    return kept["codec"]


def text_encoder_of(model: Any) -> TextEncoder:
    """The model's text encoder with its tokenizer, fetched at first use."""
    kept = model._companions
    if "text_encoder" not in kept:
        kept["text_encoder"] = load_text_encoder(TEXT_ENCODER)
    return kept["text_encoder"]


def load_codec(source: str | Path) -> Encodec:
    """An EnCodec from a weights file, a directory (any layout, a MusicGen's too) or a Hub id.

    A compression_state_dict.bin that only names where the codec is, as Meta's do, is followed.
    """
    path = find(source, codec_layouts.FAMILY, "--codec")
    if elsewhere := pointer(path):
        return load_codec(elsewhere)
    return codec_from(open_checkpoint(path, codec_layouts.FAMILY))


def pointer(path: Path) -> str | None:
    """Where audiocraft's file says that the codec is; None if it is in the file."""
    if path.name.endswith(".index.json") or path.suffix == ".safetensors":
        return None
    named = metadata(open_tensors(path)).get("pretrained")
    return named.removeprefix("//pretrained/") if named else None


def codec_from(checkpoint: Checkpoint) -> Encodec:
    """A frozen EnCodec from the tensors of any of its layouts."""
    return _frozen(Encodec(encodec_of_settings(checkpoint.settings)), checkpoint)


def load_text_encoder(source: str | Path) -> TextEncoder:
    """A T5 encoder and its tokenizer.json from a directory (a T5's or a MusicGen's) or a Hub id."""
    path = Path(source).expanduser()
    if path.is_file():
        raise InputError(f"--text-encoder {source}: expected a directory with a T5's weights and tokenizer.json")
    folder = hub.directory(source, lambda files: _files(files, source), "--text-encoder")
    weights = folder / _files([file.name for file in folder.iterdir()], source)[0]
    return text_encoder_from(open_checkpoint(weights, t5_layouts.FAMILY), folder / "tokenizer.json")


def text_encoder_from(checkpoint: Checkpoint, tokenizer: Path) -> TextEncoder:
    """A frozen text encoder from the tensors of any of its layouts."""
    return TextEncoder(_frozen(T5Encoder(T5Config(**checkpoint.settings)), checkpoint), tokenizer)


def _frozen(model: Any, checkpoint: Checkpoint) -> Any:
    parameters.load(model, {name: mx.array(value) for name, value in checkpoint.ours.items()})
    mx.eval(model.parameters())
    model.freeze()
    model.eval()
    return model


def _files(files: Sequence[str], source: object) -> list[str]:
    """The encoder's own file first, where one lies beside a MusicGen's weights."""
    if "tokenizer.json" not in files:
        raise InputError(f"--text-encoder {source}: holds no tokenizer.json")
    own = [name for name in files if name != "model.safetensors"] if "text_encoder.safetensors" in files else files
    return t5_layouts.choose_files(own, f"--text-encoder {source}")
