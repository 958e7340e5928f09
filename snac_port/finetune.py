"""Fine-tune SNAC.

python -m snac_port.finetune --config configs/phase10_revolab_all.json --device 0
python -m snac_port.finetune --config configs/phase10_revolab_all.json --ddp
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from backends import cli, get
from backends.base import Backend, Hooks, Section, TrainStep
from backends.data import segments
from backends.data.codes import CodeCache, default_cache
from backends.training import baselines, codec, launch, usage
from backends.training.adversary import against
from backends.training.curriculum import Stage, check_lengths, stages
from backends.training.loop import Result, train
from backends.training.rvq_codec import unquantised_first
from snac_port import loss
from snac_port.finetune_options import FinetuneOptions
from snac_port.load import from_pretrained, save
from snac_port.start import starter
from snac_port.task import SNACFamily, count_codes, file_codes, trains


def main(options: FinetuneOptions) -> None:
    """Start the ranks of --ddp, or train in this process."""
    if options.ddp and not launch.is_rank():
        name = get(options.backend, options.device).name
        nproc = options.nproc or launch.devices(name)
        launch.launch("snac_port.finetune", sys.argv[1:], name, nproc)
        return
    with launch.noted():
        finetune(options)


def finetune(options: FinetuneOptions) -> Result:
    """Train as the options say, or continue the run in their output_dir."""
    backend = get(options.backend, options.device)
    say = print if backend.world.rank == 0 else (lambda _line: None)
    model: Any = from_pretrained(options.pretrained_model, backend.name, options.device, option="--pretrained-model")
    family, task, identity = _task(options, backend, model)
    backend.train_only(
        model, lambda name: trains(name, encoder=not options.freeze_encoder, quantiser=not options.freeze_vq)
    )
    say(_describe(options, backend, model, task))
    key = str([sorted(identity.items()), family.loss, options.random_seed])
    measured = baselines.measure(backend, model, task, task.plan.stages, options.output_dir, key)
    for stage in task.plan.stages:
        say(f"baseline at {stage.name}: validation loss {measured.values[stage.name]['val_loss']:.4f}")
    task = replace(task, family=_learner(options, backend, model, family, task, measured))
    settings = {name: value for name, value in asdict(options).items() if name not in _MAY_DIFFER}
    result = train(
        backend, model, task, options.training(), title=f"SNAC: {options.experiment_name}", identity=identity,
        settings={**settings, "schedule": "cosine"},
    )  # fmt: skip
    for name, share in measured.improvements(options.output_dir).items():
        say(f"{name}: best validation loss {100 * share:.1f} % under its baseline")
    say(f"weights: {options.output_dir / 'best_model'}\nreport: {result.report}")
    return result


# What may be changed between a run and its continuation.
_MAY_DIFFER = {
    "output_dir", "config", "experiment_name", "description", "backend", "device", "ddp", "nproc", "resume",
    "num_workers", "eval_batch_size", "save_every", "save_every_batches", "save_every_minutes", "keep_last",
    "log_every", "samples", "export_pt",
}  # fmt: skip


def _task(options: FinetuneOptions, backend: Backend, model: Any) -> tuple[SNACFamily, codec.CodecTask, dict[str, str]]:
    """The family, the task, and what must stay the same for a run to continue."""
    config = model.config
    train_files, val_files = (
        segments.find(folder, option)
        for folder, option in ((options.train_data, "--train-data"), (options.val_data, "--val-data"))
    )
    made = stages(options.curriculum, options.num_epochs, options.batch_size, options.segment_length)
    _check_lengths(made, options, config.sampling_rate)
    cache = _cache(backend, model, [*train_files, *val_files]) if options.decoder_only else None
    training, held_out = (
        segments.source(paths, config.sampling_rate, config.unit_samples) for paths in (train_files, val_files)
    )
    family = SNACFamily(config, loss.spec(options, config), backend.name, cache)
    plan = codec.CodecPlan(
        stages=made,
        seed=options.random_seed,
        micro_batch_s=options.micro_batch_seconds,
        workers=options.num_workers,
        samples=options.samples,
        validation_batch=options.eval_batch_size,
    )
    identity = {
        "training data": segments.fingerprint(training),
        "validation data": segments.fingerprint(held_out),
        "pretrained model": backend.fingerprint(backend.parameters(model)),
    }
    return family, codec.CodecTask(family, training, held_out, plan, backend.world, _exporter(options)), identity


def _cache(backend: Backend, model: Any, paths: Sequence[Path]) -> CodeCache:
    """The codes of all files, computed now if they are not there yet."""
    frozen = {n: v for n, v in backend.parameters(model).items() if n.startswith(("encoder.", "quantizer."))}
    cache = CodeCache(lambda path: file_codes(model, path), backend.fingerprint(frozen), default_cache())
    mine = paths[backend.world.rank :: backend.world.size]
    for path in tqdm(mine, desc="encoding", unit="file", disable=backend.world.rank != 0):
        cache(path)
    backend.world.barrier()
    return cache


def _check_lengths(made: Sequence[Stage], options: FinetuneOptions, rate_hz: int) -> None:
    windows = {f"--n-ffts {max(options.n_ffts)}": max(options.n_ffts)}
    if options.mel_weight:
        windows["--mel-weight, whose largest window is 2048,"] = 2048
    plan = options.adversary()
    check_lengths(made, rate_hz, windows, adversary=plan.spec.least_samples if plan else 0)


def _exporter(options: FinetuneOptions) -> Any:
    def export(model: Any, directory: Path, label: str) -> Path | None:
        kind, _, number = label.partition("_")
        if kind == "epoch" and int(number) % options.save_every and int(number) != options.num_epochs:
            return None
        stem = {"best": "best_model", "epoch": f"checkpoint_epoch{number}", "step": f"checkpoint_batch{number}"}[kind]
        path = save(directory / stem / "model.safetensors", model.tensors(), model.config)
        if options.export_pt:
            from snac_port.export import write_upstream

            write_upstream(directory / f"{stem}.pt", model)
        return path

    return export


def _learner(
    options: FinetuneOptions, backend: Backend, model: Any, family: SNACFamily, task: codec.CodecTask,
    measured: baselines.Baselines,
) -> codec.Family:  # fmt: skip
    """The family with everything that only training needs: a start of the codebooks, an adversary, the report."""
    held_out, training = [recording.path for recording in (task.held_out or task.train).recordings], options.training()

    def sections(model: Any) -> list[Section]:
        counts = count_codes(model, held_out, family.cache)
        return [measured.section(options.output_dir), usage.section(counts, "recordings to validate on")]

    # torch.compile was never tried on CUDA by this project; on MLX compiled updates are tested.
    same: Any = {
        "seed": training.seed,
        "compile": backend.has_gpu and backend.name == "mlx",
        "precision": options.precision,
    }

    def make_step() -> TrainStep:
        return backend.train_step(model, family.terms, training.optim(), **same)

    hooks = Hooks(judged=measured.judged, sections=sections, make_step=make_step)
    if after := options.quantize_after:
        start = starter(task.train, model.config.codebook_size, after, training.seed)
        hooks = replace(hooks, after_step=start)
    learner: codec.Family = replace(family, hooks=hooks)
    if plan := options.adversary():
        learner = against(
            replace(family, hooks=hooks),
            backend,
            model,
            plan,
            optim=training.optim(),
            learning_rate=options.learning_rate,
            **same,
        )
    return unquantised_first(learner, after, backend, family.loss.quantiser_terms) if after else learner


def _describe(options: FinetuneOptions, backend: Backend, model: Any, task: codec.CodecTask) -> str:
    trained = sum(value.size if backend.name == "mlx" else value.numel() for value in backend.trainable(model).values())
    lines = [
        f"{options.experiment_name}: {options.description}".rstrip(": "),
        f"trains {trained:,} parameters on {backend.name} in {backend.world.size} process(es)",
        f"{len(task.train.recordings)} recordings to train on, {len(task.held_out.recordings)} to validate on",  # type: ignore[union-attr]
    ]
    for stage in task.plan.stages:
        lines.append(f"epochs {stage.first}-{stage.last}: {stage.length_s} s, batches of {stage.batch_size}")
    if not options.decoder_only:
        lines.append("encoder or quantiser train: tokens will change, and models of the old tokens no longer fit")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, FinetuneOptions)
