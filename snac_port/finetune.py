"""Fine-tune SNAC.

python -m snac_port.finetune --config configs/phase10_revolab_all.json --device 0
python -m snac_port.finetune --config configs/phase10_revolab_all.json --ddp
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from backends import cli, get
from backends.base import Backend, Hooks
from backends.data import audio, segments
from backends.data.codes import CodeCache, default_cache, identity
from backends.training import codec, launch
from backends.training.baselines import Baselines
from backends.training.codec_training import CodecTraining
from backends.training.curriculum import stages
from backends.training.loop import Result
from backends.training.state import check_early
from snac_port import loss
from snac_port.finetune_options import FinetuneOptions
from snac_port.load import from_pretrained, save
from snac_port.start import starter
from snac_port.task import SNACFamily, count_codes, file_codes, trains


def main(options: FinetuneOptions) -> None:
    """Start the ranks of --ddp, or train in this process."""
    launch.start("snac_port.finetune", options, finetune)


def finetune(options: FinetuneOptions) -> Result:
    """Train as the options say, or continue the run in their output_dir."""
    backend = get(options.backend, options.device)
    options.check_precision(backend)
    recordings = options.recordings()
    check_early(backend, options.training(), options.settings())
    model: Any = from_pretrained(options.pretrained_model, backend.name, options.device, option="--pretrained-model")
    family, task, same = _task(options, backend, model, *recordings)
    backend.train_only(
        model, lambda name: trains(name, encoder=not options.freeze_encoder, quantiser=not options.freeze_vq)
    )
    training = CodecTraining(
        title=f"SNAC: {options.experiment_name}",
        model=model,
        task=task,
        options=options,
        backend=backend,
        loss=family.loss,
        identity=same,
        best=options.output_dir / "best_model",
    )
    training.check_start(options.quantize_after)
    training.say(_describe(options, training))
    return training.run(lambda measured: _learner(training, family, options, measured))


def _task(
    options: FinetuneOptions, backend: Backend, model: Any, train_files: list[Path], val_files: list[Path]
) -> tuple[SNACFamily, codec.CodecTask, dict[str, str]]:
    """The family, the task, and what must stay the same for a run to continue."""
    config = model.config
    made = stages(options.curriculum, options.num_epochs, options.batch_size, options.segment_length)
    options.check_lengths(made, config.sampling_rate)
    cache = _cache(backend, model, [*train_files, *val_files]) if options.decoder_only else None
    units = None if cache is None else (lambda path: cache(path).shape[1])
    training, held_out = (
        segments.source(paths, config.sampling_rate, config.unit_samples, units) for paths in (train_files, val_files)
    )
    spec = loss.spec(options, config)
    family = SNACFamily(config, spec, backend.name, cache, Hooks(aside=frozenset(spec.quantiser_weights)))
    plan = codec.CodecPlan(
        stages=made,
        seed=options.random_seed,
        micro_batch_s=options.micro_batch_seconds,
        workers=options.num_workers,
        samples=options.samples,
        validation_batch=options.eval_batch_size,
    )
    same = {
        "training data": segments.fingerprint(training),
        "validation data": segments.fingerprint(held_out),
        "pretrained model": identity(backend.fingerprint(backend.parameters(model)), config.settings()),
    }
    return family, codec.CodecTask(family, training, held_out, plan, backend.world, _exporter(options)), same


def _cache(backend: Backend, model: Any, paths: Sequence[Path]) -> CodeCache:
    """The codes of all files, computed now if they are not there yet. Raises InputError that names the bad ones."""
    segments.each(paths, audio.duration_s)  # what is no audio at all is told before hours of encoding
    frozen = {n: v for n, v in backend.parameters(model).items() if n.startswith(("encoder.", "quantizer."))}
    known_by = identity(backend.fingerprint(frozen), model.config.settings())
    cache = CodeCache(lambda path: file_codes(model, path), known_by, default_cache())
    mine = paths[backend.world.rank :: backend.world.size]
    shown = tqdm(mine, desc="encoding", unit="file", disable=backend.world.rank != 0)
    segments.each(shown, lambda path: cache(path).shape[1])
    backend.world.barrier()
    return cache


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
    training: CodecTraining, family: SNACFamily, options: FinetuneOptions, measured: Baselines
) -> codec.Family:
    task, after, hooks = training.task, options.quantize_after, Hooks()
    held_out = [recording.path for recording in (task.held_out or task.train).recordings]
    if after:
        start = starter(task.train, family.config.codebook_size, after, options.random_seed)
        hooks = replace(hooks, after_step=start)

    def count(model: Any) -> np.ndarray:
        return count_codes(model, held_out, family.cache)

    return training.learner(measured, hooks, count, unquantised=after, silent=family.loss.quantiser_terms)


def _describe(options: FinetuneOptions, training: CodecTraining) -> str:
    lines = [f"{options.experiment_name}: {options.description}".rstrip(": "), *training.describe()]
    if not options.decoder_only:
        lines.append("encoder or quantiser train: tokens will change, and models of the old tokens no longer fit")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, FinetuneOptions)
