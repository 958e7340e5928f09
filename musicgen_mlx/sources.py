"""Where a model, its codec and its text encoder come from: checkpoints of any layout, of neither framework yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from backends import hub
from backends.errors import InputError
from backends.layouts import encodec, musicgen, t5
from backends.layouts.checkpoint import Checkpoint, find, find_companions, open_checkpoint
from backends.layouts.files import metadata, open_tensors
from musicgen_mlx import tiny
from musicgen_mlx.names import CODEC, KEYS, TEXT_ENCODER

DTYPES = ("float32", "bfloat16", "float16")  # which a model's weights can be given


@dataclass(frozen=True)
class Text:
    """A text encoder and its tokenizer.json."""

    checkpoint: Checkpoint
    tokenizer: Path


@dataclass(frozen=True)
class Found:
    """A model with what was asked for or came along; what is None is fetched from the place beside it when needed."""

    model: Checkpoint
    codec: Checkpoint | None
    codec_at: str
    text: Text | None

    def codec_or_fetched(self) -> Checkpoint:
        return self.codec or self._fetched_codec

    def text_or_fetched(self) -> Text:
        return self.text or self._fetched_text

    @cached_property
    def _fetched_codec(self) -> Checkpoint:
        return fetched_codec(self.codec_at, self.model.settings)

    @cached_property
    def _fetched_text(self) -> Text:
        return fetched_text(self.model.settings)


def found(source: str | Path, codec_source: str | Path | None = None, text_source: str | Path | None = None) -> Found:
    """The model of a directory, weights file, Hub id, key (`names.KEYS`) or "tiny", and its codec and text encoder.

    Its settings have those of the codec and text encoder. Raises InputError where they do not fit the model.
    """
    one = _tiny() if str(source) == "tiny" else _opened(source)
    own_codec = one.codec if codec_source is None else codec(codec_source)
    own_text = one.text if text_source is None else text(text_source)
    return fitted(one, own_codec, own_text)


def fitted(one: Found, codec: Checkpoint | None, text: Text | None) -> Found:
    """The model with this codec and text encoder, whose settings its own then have.

    Raises InputError where they do not fit it.
    """
    settings = dict(one.model.settings)
    if codec is not None:
        check_codec(settings, codec.settings, codec.source)
        settings["encodec"] = codec.settings
    if text is not None:
        check_text(settings, text.checkpoint.settings, text.checkpoint.source)
        settings["t5"] = text.checkpoint.settings
    return replace(one, model=replace(one.model, settings=settings), codec=codec, text=text)


def _tiny() -> Found:
    every = tiny.checkpoints()
    return Found(every["musicgen"], every["encodec"], CODEC, Text(every["t5"], tiny.TOKENIZER))


def _opened(source: str | Path) -> Found:
    """A model with the codec and the text encoder that lie with it."""
    path = find(KEYS.get(str(source), source), musicgen.FAMILY, "--model", (*KEYS, "tiny"))
    model = open_checkpoint(path, musicgen.FAMILY)
    along, tokenizer = find_companions(model, path), path.parent / "tokenizer.json"
    told = model.settings["condition"] != "none"
    beside = Text(along["t5"], tokenizer) if told and "t5" in along and tokenizer.is_file() else None
    compressed = path.parent / "compression_state_dict.bin"
    elsewhere = pointer(compressed) if "encodec" not in along and compressed.is_file() else None
    return Found(model, along.get("encodec"), elsewhere or CODEC, beside)


def fetched_codec(source: str | Path, model: Mapping[str, Any]) -> Checkpoint:
    """The codec of a model, of these settings, with which none came. Raises InputError where they do not fit."""
    one = codec(source)
    check_codec(model, one.settings, one.source)
    for key in ("sample_rate_hz", "ratios"):  # what the model's settings were read to say before it was fetched
        if one.settings[key] != model["encodec"][key]:
            raise InputError(
                f"{one.source}: {key} {one.settings[key]}, where the model's configuration has "
                f"{model['encodec'][key]}; if it is the model's, name it: --codec"
            )
    return one


def fetched_text(model: Mapping[str, Any]) -> Text:
    """The text encoder of a model, of these settings, with which none came, likewise."""
    one = text(TEXT_ENCODER)
    for key in ("width", "layers", "gated"):
        if one.checkpoint.settings[key] != model["t5"][key]:
            raise InputError(
                f"{TEXT_ENCODER}: {key} {one.checkpoint.settings[key]}, where this model's text encoder has "
                f"{model['t5'][key]}; name that one: --text-encoder"
            )
    return one


def check_dtype(dtype: str | None) -> None:
    """Raise InputError for a type that is none of `DTYPES`."""
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")


def check_codec(model: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> None:
    """Raise InputError, which begins with `source`, where a codec's codes are not those of a model."""
    if settings["channels"] != 1:
        raise InputError(
            f"{source}: a codec of {settings['channels']} channels; a MusicGen's, a stereo one's too, has 1"
        )
    needed = model["codebooks"] // model["channels"], model["entries"]
    if (settings["codebooks"], settings["entries"]) != needed:
        raise InputError(
            f"{source}: {settings['codebooks']} codebooks of {settings['entries']} entries; "
            f"this model's codec has {needed[0]} of {needed[1]}: give that one with --codec"
        )


def check_text(model: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> None:
    """Raise InputError, which begins with `source`, where a model does not take a text encoder's rows."""
    if model["condition"] == "none":
        raise InputError(f"{source}: this model was trained without a condition: leave --text-encoder out")
    if settings["width"] != model["text_width"]:
        raise InputError(
            f"{source}: a text encoder {settings['width']} wide; this model takes {model['text_width']}: "
            "give its own with --text-encoder"
        )


def codec(source: str | Path) -> Checkpoint:
    """An EnCodec from a weights file, a directory (any layout, a MusicGen's too) or a Hub id.

    A compression_state_dict.bin that only names where the codec is, as Meta's do, is followed.
    """
    path = find(source, encodec.FAMILY, "--codec")
    elsewhere = pointer(path)
    return codec(elsewhere) if elsewhere else open_checkpoint(path, encodec.FAMILY)


def pointer(path: Path) -> str | None:
    """Where audiocraft's file says that the codec is; None if it is in the file."""
    if path.suffix != ".bin":
        return None
    named = metadata(open_tensors(path)).get("pretrained")
    return named.removeprefix("//pretrained/") if named else None


def text(source: str | Path) -> Text:
    """A T5 encoder with its tokenizer.json, from a directory (a T5's or a MusicGen's) or a Hub id."""
    if Path(source).expanduser().is_file():
        raise InputError(f"--text-encoder {source}: expected a directory with a T5's weights and tokenizer.json")
    folder = hub.directory(source, lambda files: _text_files(files, source), "--text-encoder")
    weights = folder / _text_files([file.name for file in folder.iterdir()], source)[0]
    return Text(open_checkpoint(weights, t5.FAMILY), folder / "tokenizer.json")


def _text_files(files: Sequence[str], source: object) -> list[str]:
    if "tokenizer.json" not in files:
        raise InputError(f"--text-encoder {source}: holds no tokenizer.json")
    return t5.choose_files(files, f"--text-encoder {source}")
