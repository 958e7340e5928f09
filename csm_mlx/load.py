"""CSM from files: every published layout, and our own directories."""

import fnmatch
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from backends import hub
from backends.atomic import write_text
from backends.errors import InputError
from backends.layouts import csm as layouts
from backends.layouts.files import open_tensors, read_json
from backends.layouts.rules import to_ours
from backends.mlx_backend import parameters
from csm_mlx import companions, tiny
from csm_mlx.config import CSMConfig, csm_1b, read_config
from csm_mlx.model import CSM

DEFAULT = "senstella/csm-1b-mlx"

# One layout's weights, best first; sesame/csm-1b holds three copies of itself.
_WEIGHTS = (
    "transformers.safetensors.index.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "ckpt.safetensors",
    "ckpt.pt",
)
_BESIDE = ("config.json", "tokenizer.json", "codec.safetensors", companions.CODEC_FILE)


def from_pretrained(
    source: str | Path = "1b",
    *,
    codec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
) -> CSM:
    """A CSM from a directory or Hub id, with the codec and tokenizer that lie beside the weights.

    `source` may also be "1b" (fetches csm-mlx's copy) or "tiny" (made on the spot, random). `codec` and `tokenizer`
    override; `dtype` ("float32", "bfloat16", "float16") converts the weights, which otherwise keep the file's.
    Raises InputError that names the file and tensor that does not fit.
    """
    if str(source) == "tiny":
        model = tiny.model()
    else:
        folder = hub.directory(DEFAULT if str(source) == "1b" else source, choose_files, "--model")
        model = _from_directory(folder)
    if codec is not None:
        model._companions["codec"] = companions.load_codec(codec)
    if tokenizer is not None:
        model._companions["tokenizer"] = companions.load_tokenizer(tokenizer)
    if dtype is not None:
        model.set_dtype(getattr(mx, dtype))
    return model


def load_file(model: CSM, path: Path, *, strict: bool = True) -> None:
    """Load a weights file of any of CSM's layouts into `model`, which gives the configuration."""
    if path.is_dir():
        path = path / companions.first_of([file.name for file in path.iterdir()], _WEIGHTS, path)[0]
    _load_tensors(model, open_tensors(path), str(path), strict=strict)


def save_pretrained(model: CSM, folder: Path) -> None:
    """Write our layout: config.json, model.safetensors (csm-mlx names), and the codec and tokenizer in use."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(model.config.to_json(), indent=1))
    mx.save_safetensors(str(folder / "model.safetensors"), parameters.parameters(model), {"format": "mlx"})
    codec = companions.codec_of(model)
    mx.save_safetensors(str(folder / "codec.safetensors"), parameters.parameters(codec), {"format": "mlx"})
    shutil.copyfile(companions.tokenizer_of(model).path, folder / "tokenizer.json")


def choose_files(files: Sequence[str]) -> list[str]:
    """Of a repository's files, those of one layout and what lies beside it."""
    weights = companions.first_of(files, _WEIGHTS, "the repository")[0]
    chosen = [weights, *(name for name in _BESIDE if name in files)]
    if weights.endswith(".index.json"):
        chosen += fnmatch.filter(files, weights.replace(".safetensors.index.json", "-*-of-*.safetensors"))
    return chosen


def _from_directory(folder: Path) -> CSM:
    names = [path.name for path in folder.iterdir()]
    weights = folder / companions.first_of(names, _WEIGHTS, f"--model {folder}")[0]
    tensors = open_tensors(weights)
    config = _config(folder, tensors)
    model = CSM(config)
    _load_tensors(model, tensors, str(weights))
    embedded = {
        name.removeprefix(layouts.CODEC_PREFIX): name for name in tensors if name.startswith(layouts.CODEC_PREFIX)
    }
    if embedded:
        model._companions["codec"] = companions.read_codec(_Renamed(tensors, embedded), config.mimi, str(weights))
    for name in ("codec.safetensors", companions.CODEC_FILE):
        if name in names and "codec" not in model._companions:
            codec = companions.read_codec(open_tensors(folder / name), config.mimi, str(folder / name))
            model._companions["codec"] = codec
    if "tokenizer.json" in names:
        model._companions["tokenizer"] = companions.load_tokenizer(folder / "tokenizer.json")
    return model


def _config(folder: Path, tensors: Mapping[str, np.ndarray]) -> CSMConfig:
    path = folder / "config.json"
    if path.is_file():
        content = read_json(path)
        if any(key in content for key in ("depth_decoder_config", "backbone_flavor", "model_type")):
            return read_config(content, str(path))
    if len(tensors) >= 187:  # csm-mlx's repository has no configuration and is the 1B
        return csm_1b()
    raise InputError(f"--model {folder}: holds no config.json, and the weights are not CSM-1B's")


def _load_tensors(model: CSM, tensors: Mapping[str, np.ndarray], source: str, *, strict: bool = True) -> None:
    layout = layouts.detect(tensors)
    if layout is None:
        raise InputError(f"{source}: these are not CSM's tensors; expected {', '.join(layouts.LAYOUTS)}")
    head_dims = {"backbone": model.config.backbone.head_dim, "decoder": model.config.decoder.head_dim}
    own = _Renamed(tensors, {name: name for name in layouts.without_codec(tensors)})
    named = to_ours(own, layouts.rules(layout, head_dims), source)
    parameters.load(model, {name: mx.array(value) for name, value in named}, strict=strict)
    mx.eval(model.parameters())


class _Renamed(Mapping[str, np.ndarray]):
    """Some of the tensors of a file under other names, still read when looked up."""

    def __init__(self, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]):
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._names[name]]

    def __iter__(self):  # noqa: ANN204
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
