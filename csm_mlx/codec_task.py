"""Mimi for codec training on either backend: opened or made anew, and written in transformers' layout."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from backends.atomic import write_text
from backends.base import Backend
from backends.errors import InputError
from backends.layouts import mimi as layouts
from backends.layouts import mimi_settings
from backends.layouts.checkpoint import Checkpoint, find, open_checkpoint, read
from backends.layouts.files import read_json, write
from backends.layouts.rules import to_theirs
from backends.training.codec_run import Codec
from csm_mlx.config import csm_tiny, mimi_of_settings

DECODER = ("upsample.", "decoder_transformer.", "decoder.")


def codec(backend: Backend, source: str | None, scale: str | None, seed: int) -> Codec:
    """Mimi from `source` (a weights file, directory or Hub id), or with random weights at a `scale`.

    A scale is "tiny" or a JSON file with the configuration, transformers' or ours. Raises InputError.
    """
    if source is not None:
        checkpoint = open_checkpoint(find(source, layouts.FAMILY, "--codec"), layouts.FAMILY)
    else:
        checkpoint = fresh(settings(str(scale)), seed)
    config = mimi_of_settings(checkpoint.settings)
    model = _model(backend, checkpoint)
    return Codec(
        name="Mimi",
        model=model,
        from_scratch=source is None,
        rate_hz=config.sample_rate_hz,
        frame_samples=config.frame_samples,
        codebooks=config.codebooks,
        entries=config.entries,
        code_width=config.code_width,
        decodes=lambda name: name.startswith(DECODER),
        write=lambda folder: save(folder, tensors(backend, model), checkpoint.settings),
    )


def settings(scale: str) -> dict[str, Any]:
    """The configuration of a scale. Raises InputError where it is none that transformers' layout can hold."""
    if scale == "tiny":
        return csm_tiny().mimi.settings()
    path = Path(scale)
    if not path.is_file():
        raise InputError(f"--scale {scale}: expected tiny or a JSON file with Mimi's configuration")
    content = read_json(path)
    try:
        found = mimi_settings.read(content, str(path)) or mimi_settings.checked(content)
    except ValueError as error:
        raise InputError(f"{path}: {error}; known: {', '.join(mimi_settings.PUBLISHED)}") from error
    _check(found, path)
    return found


def fresh(settings: Mapping[str, Any], seed: int) -> Checkpoint:
    """Random weights, the same on every machine and backend: drawn by NumPy, keyed by seed and name."""
    drawn = {name: _draw(name, shape, settings, seed) for name, shape in layouts.shapes(dict(settings)).items()}
    return read(layouts.FAMILY, drawn, dict(settings), "random weights")


def tensors(backend: Backend, model: Any) -> dict[str, np.ndarray]:
    """All weights in our layout."""
    return backend.to_host(backend.parameters(model)) if backend.name == "mlx" else model.tensors()


def save(folder: Path, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Path:
    """Write transformers' layout, which MimiModel.from_pretrained and our --codec read; returns the weights file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = layouts.FAMILY.write_settings(dict(settings), "mimi")
    write_text(folder / "config.json", json.dumps(config, indent=1))
    named = to_theirs(tensors, layouts.rules("mimi", dict(settings)), "Mimi")
    return write(folder / "model.safetensors", dict(named))


def _model(backend: Backend, checkpoint: Checkpoint) -> Any:
    """The native codec in float32."""
    if backend.name == "mlx":
        import mlx.core as mx

        from csm_mlx.companions import codec_from

        model = codec_from(checkpoint)
        model.set_dtype(mx.float32)
        return model
    from csm_mlx.torch_mimi import Mimi

    return Mimi.of_checkpoint(checkpoint).to(backend.device)  # type: ignore[attr-defined]


def _draw(name: str, shape: tuple[int, ...], settings: Mapping[str, Any], seed: int) -> np.ndarray:
    """Filters that keep the size of what they see, LayerScale as configured, norms one, biases zero."""
    if name.endswith("layer_scale.scale"):
        return np.full(shape, settings["layer_scale"], np.float32)
    if name.endswith(("norm.weight", "cluster_usage")):
        return np.ones(shape, np.float32)
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    transposed = len(shape) == 3 and shape[1] % 2 == 0 and name.startswith(("decoder", "upsample"))
    fan_in = 2 * shape[2] if transposed else int(np.prod(shape[1:]))  # a transposed kernel of 2 strides overlaps twice
    scale = 1.0 if "embed_sum" in name else fan_in**-0.5
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def _check(found: Mapping[str, Any], path: Path) -> None:
    mimi_settings.to_transformers(found)
    entries, width, heads = found["entries"], found["width"], found["heads"]
    wrong = {
        f"entries {entries}: expected a power of 2": entries < 2 or entries & (entries - 1),
        f"code_width {width}: expected another than width, so that there are projections": found["code_width"] == width,
        f"codebooks {found['codebooks']}: expected more than semantic_codebooks {found['semantic_codebooks']}": (
            not 0 < found["semantic_codebooks"] < found["codebooks"]
        ),
        f"width {width}: expected an even multiple of heads {heads}": width % (2 * heads),
        f"even kernel among {[found[k] for k in _KERNELS]}: expected odd ones": any(
            found[kernel] % 2 == 0 for kernel in _KERNELS
        ),
    }
    for problem, is_so in wrong.items():
        if is_so:
            raise InputError(f"{path}: {problem}")


_KERNELS = ("kernel", "last_kernel", "residual_kernel")
