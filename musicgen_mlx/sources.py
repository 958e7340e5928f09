"""Where a model, its codec and its text encoder come from: checkpoints of any layout, of neither framework yet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backends import hub
from backends.errors import InputError
from backends.layouts import encodec, musicgen, t5
from backends.layouts.checkpoint import Checkpoint, find, find_companions, open_checkpoint
from backends.layouts.files import metadata, open_tensors
from musicgen_mlx import tiny
from musicgen_mlx.names import CODEC, KEYS, TEXT_ENCODER


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
        return self.codec or codec(self.codec_at)

    def text_or_fetched(self) -> Text:
        return self.text or text(TEXT_ENCODER)


def found(source: str | Path, codec_source: str | Path | None = None, text_source: str | Path | None = None) -> Found:
    """The model of a directory, weights file, Hub id, key (`names.KEYS`) or "tiny", and its codec and text encoder."""
    given_codec = codec(codec_source) if codec_source is not None else None
    given_text = text(text_source) if text_source is not None else None
    if str(source) == "tiny":
        every = tiny.checkpoints()
        return Found(every["musicgen"], given_codec or every["encodec"], CODEC,
                     given_text or Text(every["t5"], tiny.TOKENIZER))  # fmt: skip
    path = find(KEYS.get(str(source), source), musicgen.FAMILY, "--model", (*KEYS, "tiny"))
    model = open_checkpoint(path, musicgen.FAMILY)
    along, tokenizer = find_companions(model, path), path.parent / "tokenizer.json"
    own_codec = given_codec or along.get("encodec")
    if own_codec is not None:
        model = replace(model, settings={**model.settings, "encodec": own_codec.settings})
    beside = Text(along["t5"], tokenizer) if "t5" in along and tokenizer.is_file() else None
    compressed = path.parent / "compression_state_dict.bin"
    elsewhere = pointer(compressed) if own_codec is None and compressed.is_file() else None
    return Found(model, own_codec, elsewhere or CODEC, given_text or beside)


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
    """The encoder's own file first, where one lies beside a MusicGen's weights."""
    if "tokenizer.json" not in files:
        raise InputError(f"--text-encoder {source}: holds no tokenizer.json")
    own = [name for name in files if name != "model.safetensors"] if "text_encoder.safetensors" in files else files
    return t5.choose_files(own, f"--text-encoder {source}")
