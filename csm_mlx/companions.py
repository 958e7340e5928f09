"""What CSM needs besides its weights: the Mimi codec and the text tokenizer.

Those that lie beside the weights are used; otherwise the pinned ones below are fetched when first needed.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from backends import hub
from backends.errors import InputError
from backends.layouts import mimi as layouts
from backends.layouts.files import open_tensors, read_json
from backends.layouts.rules import to_ours
from backends.mlx_backend import parameters
from csm_mlx import tiny
from csm_mlx.config import MimiConfig, read_config, read_mimi_config
from csm_mlx.mimi import Mimi
from csm_mlx.tokens import TextTokenizer

CODEC = "kyutai/moshiko-pytorch-bf16"  # where Sesame's own code takes Mimi from
CODEC_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER = "unsloth/Llama-3.2-1B"  # the ungated copy that the CSM ports use
TINY_TOKENIZER = Path(__file__).parent / "assets" / "tiny_tokenizer.json"


def codec_of(model: Any) -> Mimi:
    """The model's codec, fetched at first use."""
    kept = model._companions
    if "codec" not in kept:
        kept["codec"] = tiny.codec(model.config.mimi) if model.config.name == "csm_tiny" else load_codec(CODEC)
    return kept["codec"]


def tokenizer_of(model: Any) -> TextTokenizer:
    """The model's text tokenizer, fetched at first use."""
    kept = model._companions
    if "tokenizer" not in kept:
        kept["tokenizer"] = load_tokenizer(TINY_TOKENIZER if model.config.name == "csm_tiny" else TOKENIZER)
    return kept["tokenizer"]


def load_tokenizer(source: str | Path) -> TextTokenizer:
    """A tokenizer from a tokenizer.json, a directory that holds one, or a Hub id."""
    path = Path(source).expanduser()
    if path.is_file():
        return TextTokenizer(path)
    path = hub.directory(source, lambda files: first_of(files, ["tokenizer.json"], source), "--tokenizer")
    path = path / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"--tokenizer {source}: holds no tokenizer.json")
    return TextTokenizer(path)


def load_codec(source: str | Path) -> Mimi:
    """A Mimi from a weights file, a directory (kyutai's, transformers' or ours) or a Hub id."""
    path = Path(source).expanduser()
    if path.is_file():
        return read_codec(open_tensors(path), _config_beside(path.parent), str(path))
    folder = hub.directory(source, lambda files: [*first_of(files, _WEIGHTS, source), "config.json"], "--codec")
    file = folder / first_of([path.name for path in folder.iterdir()], _WEIGHTS, source)[0]
    return read_codec(open_tensors(file), _config_beside(folder), str(file))


def read_codec(tensors: Mapping[str, np.ndarray], config: MimiConfig, source: str) -> Mimi:
    """A Mimi from the tensors of any of its layouts; `source` names them in errors."""
    layout = layouts.detect(tensors)
    if layout is None:
        raise InputError(f"{source}: these are not Mimi's tensors; expected {', '.join(layouts.LAYOUTS)}")
    model = Mimi(config)
    named = to_ours(tensors, layouts.rules(layout, layout_shape(config)), source)
    parameters.load(model, {name: mx.array(value) for name, value in named})
    mx.eval(model.parameters())
    model.freeze()
    model.eval()
    return model


def layout_shape(config: MimiConfig) -> layouts.Shape:
    """What the layout rules need to know of a configuration."""
    return layouts.Shape(
        ratios=len(config.ratios),
        residual_layers=config.residual_layers,
        head_dim=config.width // config.heads,
        semantic=config.semantic_codebooks,
        acoustic=config.codebooks - config.semantic_codebooks,
    )


_WEIGHTS = (CODEC_FILE, "codec.safetensors", "model.safetensors")


def _config_beside(folder: Path) -> MimiConfig:
    """The codec configuration in a folder; kyutai's files have none and are the published model."""
    path = folder / "config.json"
    content = read_json(path) if path.is_file() else {}
    if content.get("model_type") != "mimi":
        return read_config(content, str(path)).mimi if "model_type" in content else MimiConfig()
    try:
        return read_mimi_config(content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a Mimi configuration ({error})") from error


def first_of(files: Iterable[str], wanted: Sequence[str], source: object) -> list[str]:
    """The first of `wanted` that is among `files`, as a list of one."""
    present = set(files)
    for name in wanted:
        if name in present:
            return [name]
    raise InputError(f"{source}: holds none of {', '.join(wanted)}")
