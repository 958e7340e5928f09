"""What CSM needs besides its weights: the Mimi codec and the text tokenizer.

Those that lie beside the weights are used; otherwise the pinned ones below are fetched when first needed.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backends import hub
from backends.errors import InputError
from backends.layouts import mimi as layouts
from backends.layouts.checkpoint import Checkpoint, find, open_checkpoint
from backends.mlx_backend import parameters
from backends.mlx_backend.reading import loaded
from csm_mlx import tiny
from csm_mlx.config import mimi_of_settings
from csm_mlx.mimi import Mimi
from csm_mlx.tokens import TextTokenizer

CODEC = "kyutai/moshiko-pytorch-bf16"  # where Sesame's own code takes Mimi from
TOKENIZER = "unsloth/Llama-3.2-1B"  # the ungated copy that the CSM ports use
_READING = threading.Lock()  # of several threads that need a companion, one reads it
TINY_TOKENIZER = Path(__file__).parent / "assets" / "tiny_tokenizer.json"


def codec_of(model: Any) -> Mimi:
    """The model's codec, fetched at first use."""
    kept = model._companions
    with _READING:
        if "codec" not in kept:
            kept["codec"] = tiny.codec(model.config.mimi) if model.config.name == "csm_tiny" else load_codec(CODEC)
        return kept["codec"]


def tokenizer_of(model: Any) -> TextTokenizer:
    """The model's text tokenizer, fetched at first use."""
    kept = model._companions
    with _READING:
        if "tokenizer" not in kept:
            kept["tokenizer"] = load_tokenizer(TINY_TOKENIZER if model.config.name == "csm_tiny" else TOKENIZER)
        return kept["tokenizer"]


def load_tokenizer(source: str | Path) -> TextTokenizer:
    """A tokenizer from a tokenizer.json, a directory that holds one, or a Hub id."""
    path = Path(source).expanduser()
    if path.is_file():
        return TextTokenizer(path)
    path = hub.directory(source, lambda files: _tokenizer_file(files, source), "--tokenizer") / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"--tokenizer {source}: holds no tokenizer.json")
    return TextTokenizer(path)


def load_codec(source: str | Path) -> Mimi:
    """A Mimi from a weights file, a directory (kyutai's, transformers', ours, a CSM's) or a Hub id."""
    return codec_from(open_checkpoint(find(source, layouts.FAMILY, "--codec"), layouts.FAMILY))


def codec_from(checkpoint: Checkpoint) -> Mimi:
    """A frozen Mimi from the tensors of any of its layouts."""
    model = Mimi(mimi_of_settings(checkpoint.settings))
    parameters.load(model, loaded(checkpoint.ours))
    model.freeze()
    model.eval()
    return model


def _tokenizer_file(files: Sequence[str], source: object) -> list[str]:
    if "tokenizer.json" not in files:
        raise InputError(f"--tokenizer {source}: holds no tokenizer.json")
    return ["tokenizer.json"]
