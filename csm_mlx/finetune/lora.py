"""LoRA on CSM: `apply_lora_to_model`, `load_lora_weights`, `merge_lora_weights`, `load_adapter`."""

from collections.abc import Sequence
from pathlib import Path

from backends import get
from backends.adapters import files
from backends.adapters.base_model import check_base
from backends.adapters.matching import match
from backends.base import Backend, LoRASpec
from backends.errors import InputError
from csm_mlx.finetune.options import EMBEDDINGS, TARGETS
from csm_mlx.model import CSM

GROUPS = {"attn": ("self_attn",), "mlp": (".mlp.",)}
NOT_ADAPTED = ("name", "max_positions", "mimi")  # settings in which the base may differ


def apply_lora_to_model(
    model: CSM,
    rank: int = 8,
    alpha: float = 16.0,
    target_modules: Sequence[str] | None = TARGETS,
    exclude_modules: Sequence[str] | None = None,
    *,
    dropout: float = 0.0,
    use_rslora: bool = False,
    use_dora: bool = False,
    seed: int = 0,
) -> CSM:
    """Freeze the model and put an adapter that changes nothing yet on its target modules; returns the model.

    A target is `attn` (q, k, v, o of both stacks), `mlp` (gate, up, down) or any part of a module's dotted name, such
    as `codebook0_head`, `projection`, `q_proj`, `text_embeddings`; the default is that of `finetune_lora`, None means
    every linear module. Raises InputError for numbers out of range, a target that matches nothing, a rank above every
    dimension of what is adapted, and where the model already carries an adapter.
    """
    backend, spec = get("mlx"), LoRASpec(rank, alpha, dropout, use_rslora, use_dora)
    _refuse_adapted(backend, model)
    leaves = backend.linears(model)
    names = match(leaves, target_modules, exclude_modules, GROUPS)
    largest = max(max(leaves[name].shape) for name in names)
    if rank > largest:
        raise InputError(
            f"--lora-rank {rank}: larger than any dimension of the adapted modules: expected at most {largest}, "
            "and 4 to 64 are usual"
        )
    backend.adapt(model, names, spec, seed)
    return model


def load_lora_weights(model: CSM, path: str | Path) -> CSM:
    """Load a lora_ckpt_*.safetensors into a model on which the same adapter was applied; returns the model.

    Embeddings that were trained whole are in the file and are set too. Raises InputError that names both values where
    rank, alpha, targets or the base model's shape differ from the file's.
    """
    path = Path(path)
    if (info := files.stored_info(path)) is not None:
        check_base(info, model.config.to_json(), str(path), NOT_ADAPTED)
    files.load_adapter(get("mlx"), model, path)
    return model


def load_adapter(model: CSM, path: str | Path) -> CSM:
    """Apply and load in one: rank, alpha and targets are taken from the file; returns the model.

    Raises InputError that names both where the file is for a model of another shape, and where the model already
    carries an adapter.
    """
    backend, info = get("mlx"), files.read_info(Path(path))
    _refuse_adapted(backend, model)
    check_base(info, model.config.to_json(), str(path), NOT_ADAPTED)
    unknown = set(info.targets) - set(backend.linears(model))
    if unknown:
        raise InputError(f"{path}: adapts {min(unknown)}, which this model does not have: it is for another model")
    backend.adapt(model, info.targets, info.spec)
    files.load_adapter(backend, model, Path(path))
    return model


def merge_lora_weights(model: CSM) -> CSM:
    """Fold the adapters into the weights and remove them, so that it runs at the base's speed; returns the model.

    Raises InputError where the model carries none, or a forgotten `load_adapter` would go unnoticed.
    """
    backend = get("mlx")
    if not backend.adapters(model):
        raise InputError("this model carries no adapter to merge: load one first (load_adapter)")
    backend.fuse(model)
    return model


def _refuse_adapted(backend: Backend, model: CSM) -> None:
    if backend.adapters(model):
        raise InputError("this model already carries an adapter: merge it first (merge_lora_weights)")


def trains_with_lora(name: str, *, train_embeddings: bool) -> bool:
    """Whether the parameter of this dotted name trains in a LoRA run."""
    whole = tuple(f"{module}.weight" for module in EMBEDDINGS)
    return ".lora_" in name or (train_embeddings and name in whole)
