"""CSM from files: every published layout, and our own directories."""

import json
import shutil
from pathlib import Path

import mlx.core as mx

from backends.atomic import write_text
from backends.layouts import csm as layouts
from backends.layouts.checkpoint import Checkpoint, find, find_companions, open_checkpoint, read
from backends.layouts.files import open_tensors
from backends.mlx_backend import parameters
from backends.mlx_backend.reading import loaded
from backends.mlx_backend.saving import save
from csm_mlx import companions, tiny
from csm_mlx.config import csm_1b, of_settings
from csm_mlx.model import CSM

DEFAULT = "senstella/csm-1b-mlx"


def from_pretrained(
    source: str | Path = "1b",
    *,
    weights: str | Path | None = None,
    codec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
) -> CSM:
    """A CSM from a directory, weights file or Hub id, with the codec and tokenizer that lie beside the weights.

    `source` may also be "1b" (fetches csm-mlx's copy) or "tiny" (made on the spot, random). `weights`, a file in any of
    CSM's layouts, goes over the source's own; beside it "1b" is a shape and nothing is fetched. `codec` and `tokenizer`
    override; `dtype` ("float32", "bfloat16", "float16") converts the weights, which otherwise keep the file's.
    Raises InputError that names the file and tensor that does not fit.
    """
    model = CSM(csm_1b()) if weights is not None and str(source) == "1b" else _of_source(source)
    if weights is not None:
        load_file(model, Path(weights))
    model.bring(codec=codec, tokenizer=tokenizer)
    if dtype is not None:
        model.set_dtype(getattr(mx, dtype))
    return model


def load_file(model: CSM, path: Path, *, strict: bool = True) -> None:
    """Load a weights file of any of CSM's layouts into `model`, which gives the configuration."""
    if path.is_dir():
        path = path / layouts.choose_files([file.name for file in path.iterdir()], path)[0]
    checkpoint = read(layouts.FAMILY, open_tensors(path), model.config.settings(), str(path), strict=strict)
    _fill(model, checkpoint, strict=strict)


def save_pretrained(model: CSM, folder: Path) -> None:
    """Write our layout: config.json, model.safetensors (csm-mlx names), and the codec and tokenizer in use."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(model.config.to_json(), indent=1))
    save(folder / "model.safetensors", model)
    save(folder / "codec.safetensors", companions.codec_of(model))
    tokenizer = companions.tokenizer_of(model).path
    if tokenizer.resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer, folder / "tokenizer.json")


def _of_source(source: str | Path) -> CSM:
    if str(source) == "tiny":
        return tiny.model()
    where = DEFAULT if str(source) == "1b" else source
    return _from_weights(find(where, layouts.FAMILY, "--model", ("1b", "tiny")))


def _from_weights(path: Path) -> CSM:
    """The model, with the codec that is inside the weights or beside them and the tokenizer beside them."""
    checkpoint = open_checkpoint(path, layouts.FAMILY)
    model = CSM(of_settings(checkpoint.settings))
    _fill(model, checkpoint)
    if codec := find_companions(checkpoint, path).get("mimi"):
        model._companions["codec"] = companions.codec_from(codec)
    if (path.parent / "tokenizer.json").is_file():
        model._companions["tokenizer"] = companions.load_tokenizer(path.parent / "tokenizer.json")
    return model


def _fill(model: CSM, checkpoint: Checkpoint, *, strict: bool = True) -> None:
    parameters.load(model, loaded(checkpoint.ours), strict=strict)
    mx.eval(model.parameters())
