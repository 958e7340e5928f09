"""Before a run: what will train, and about how much memory it will take."""

from itertools import chain

from backends.base import Backend, Batch
from csm_mlx.companions import codec_of
from csm_mlx.config import LlamaConfig
from csm_mlx.finetune.options import CSMOptions
from csm_mlx.model import CSM
from csm_mlx.task import CSMTask

MOMENTS = {"adamw": 2, "adam": 2, "sgd": 0}  # arrays per trained parameter that the optimizer keeps


def describe(model: CSM, task: CSMTask, options: CSMOptions, backend: Backend) -> str:
    """A table of what trains, the data, and the estimated peak memory against what the machine has."""
    every, trained = backend.parameters(model), backend.trainable(model)
    total, active = (sum(value.size for value in arrays.values()) for arrays in (every, trained))
    seconds = task.plan.frame_s * sum(int(example.is_audio.sum()) for example in task.train)
    limit = backend.memory().limit
    needed = peak_bytes(model, task, options, backend)
    rows = [
        ("trains", f"{active:,} of {total:,} parameters ({100 * active / total:.2f} %)"),
        *((f"  {name}", f"{size:,}") for name, size in _by_module(trained).items()),
        (
            "data",
            f"{len(task.train)} rows, {seconds / 60:.1f} minutes of audio, {len(task.held_out)} rows for validation",
        ),
        ("steps", f"{task.updates(1) * options.epochs} in {options.epochs} epochs"),
        (
            "memory",
            f"about {needed / 1e9:.2f} GB at the peak" + (f", this machine has {limit / 1e9:.1f} GB" if limit else ""),
        ),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    if limit and needed > limit:
        lines.append(
            "warning: that may not fit; lower --batch-size, or use --gradient-checkpointing or --dtype bfloat16"
        )
    return "\n".join(lines)


def peak_bytes(model: CSM, task: CSMTask, options: CSMOptions, backend: Backend) -> int:
    """Estimated peak of a training step: weights, gradients, moments and the largest batch's activations."""
    trained = sum(value.nbytes for value in backend.trainable(model).values())
    weights = sum(value.nbytes for value in backend.parameters(model).values())
    codec = sum(value.nbytes for value in backend.parameters(codec_of(model)).values())
    largest = max(_activations(model, batch) for batch in chain.from_iterable(task.batches(1, 0)))  # one at a time
    # Besides the moments: gradients, the new values beside the old ones, and a second set of gradients to add to.
    copies = 2 + MOMENTS[options.optimizer] + (options.gradient_accumulation > 1)
    return int(weights + codec + copies * trained + largest)


def _activations(model: CSM, batch: Batch) -> int:
    """Bytes kept for the backward pass of one batch."""
    B, T, _ = batch["rows"].shape
    N, K = len(batch["depth_rows"]), model.config.codebooks
    size, V = model.dtype.size, model.config.audio_vocab
    kept = model.backbone.recompute
    embeddings = B * T * K * model.config.backbone.width * size
    backbone = _stack(model.config.backbone, B, T, recompute=kept)
    decoder = _stack(model.config.decoder, N, K, recompute=kept)
    logits = 4 * 4 * (B * T + N * (K - 1)) * V
    return embeddings + size * (backbone + decoder) + logits


def _stack(config: LlamaConfig, sequences: int, length: int, *, recompute: bool) -> int:
    """Numbers that a stack keeps: per layer its inputs, q, k, v, attention weights and the MLP's products."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    per_row = 5 * config.width + 4 * q + 6 * kv + 5 * config.mlp_width + 3 * config.heads * length
    rows = sequences * length
    if recompute:
        return rows * (config.layers * config.width + per_row)
    return rows * config.layers * per_row


def _by_module(trained: dict) -> dict[str, int]:
    """Parameters by kind of module: the last part of the name before the parameter's own."""
    sizes: dict[str, int] = {}
    for name, value in trained.items():
        parts = [part for part in name.split(".") if not part.isdigit()]
        kind = ".".join(parts[:1] + parts[-2:-1]) if len(parts) > 2 else parts[0]
        sizes[kind] = sizes.get(kind, 0) + value.size
    return sizes
