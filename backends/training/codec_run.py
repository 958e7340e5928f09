"""A run that trains a codec with averaged codebooks, as the commands for Mimi and EnCodec start it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from backends.base import Backend, Hooks, Section, TrainStep
from backends.data import segments
from backends.training import baselines, codec, rvq_codec, usage
from backends.training.adversary import against
from backends.training.codec import Family
from backends.training.codec_options import MAY_DIFFER, CodecOptions
from backends.training.curriculum import Stage, check_lengths, stages
from backends.training.loop import Result, train
from backends.training.rvq_codec import RVQFamily, unquantised_first


@dataclass(frozen=True)
class Codec:
    """What a command says of its codec."""

    name: str
    model: Any  # see `backends.training.rvq_codec`
    from_scratch: bool  # whether its weights are random
    rate_hz: int
    frame_samples: int
    codebooks: int
    entries: int
    code_width: int
    decodes: Callable[[str], bool]  # whether a parameter of this name is the decoder's
    write: Callable[[Path], Path]  # into this folder; returns the weights file


def run(found: Codec, options: CodecOptions, backend: Backend) -> Result:
    """Train the codec as the options say, or continue the run in their output_dir."""
    say = print if backend.world.rank == 0 else (lambda _line: None)
    model = found.model
    task, family, identity = _task(found, options, backend)
    codebooks = rvq_codec.buffers(family, model)
    backend.train_only(model, found.decodes if options.decoder_only else lambda name: name not in codebooks)
    say(_describe(found, options, backend, task))
    key = str([sorted(identity.items()), family.loss, options.seed])
    measured = baselines.measure(backend, model, task, task.plan.stages, options.output_dir, key)
    for stage in task.plan.stages:
        say(f"baseline at {stage.name}: validation loss {measured.values[stage.name]['val_loss']:.4f}")
    if not options.decoder_only:
        rvq_codec.collect(family, model)
    learner = _learner(found, options, backend, family, task, measured)
    settings = {name: value for name, value in asdict(options).items() if name not in MAY_DIFFER}
    result = train(
        backend, model, replace(task, family=learner), options.training(), title=f"{found.name}: codec training",
        identity=identity, settings=settings,
    )  # fmt: skip
    for name, share in measured.improvements(options.output_dir).items():
        say(f"{name}: best validation loss {100 * share:.1f} % under its baseline")
    say(f"weights: {options.output_dir / 'best'}\nreport: {result.report}")
    return result


def _task(found: Codec, options: CodecOptions, backend: Backend) -> tuple[codec.CodecTask, RVQFamily, dict[str, str]]:
    """The task, its family, and what must stay the same for a run to continue."""
    training, held_out = (
        segments.source(segments.find(folder, option), found.rate_hz, found.frame_samples)
        for folder, option in ((options.train_data, "--train-data"), (options.val_data, "--val-data"))
    )
    loss = options.loss(rate_hz=found.rate_hz, frame_samples=found.frame_samples, code_width=found.code_width)
    quantising = options.quantising(from_scratch=found.from_scratch)
    family = RVQFamily(loss, found.codebooks, quantising, backend.name)
    plan = codec.CodecPlan(
        stages=stages(options.curriculum, options.epochs, options.batch_size, options.segment_length),
        seed=options.seed,
        micro_batch_s=options.micro_batch_seconds,
        workers=options.num_workers,
        samples=options.samples,
    )
    _check_lengths(plan.stages, options, found.rate_hz)
    weights = {**backend.parameters(found.model), **rvq_codec.buffers(family, found.model)}
    identity = {
        "training data": segments.fingerprint(training),
        "validation data": segments.fingerprint(held_out),
        "codec to start from": backend.fingerprint(weights),
    }

    def export(_model: Any, directory: Path, label: str) -> Path:
        return found.write(directory / ("best" if label == "best" else "last"))

    return codec.CodecTask(family, training, held_out, plan, backend.world, export), family, identity


def _learner(
    found: Codec, options: CodecOptions, backend: Backend, family: RVQFamily, task: codec.CodecTask,
    measured: baselines.Baselines,
) -> Family:  # fmt: skip
    """The family with everything that only training needs: codebooks that learn, an adversary, the report's parts."""
    source, optim = task.held_out or task.train, options.training().optim()
    # Not torch.compile: upstream's convolutions compute their padding from tensors, which breaks the graph at each.
    compiled = backend.has_gpu and backend.name == "mlx"

    def sections(model: Any) -> list[Section]:
        counts = rvq_codec.code_counts(family, model, source, found.entries)
        return [measured.section(options.output_dir), usage.section(counts, "recordings to validate on")]

    def make_step() -> TrainStep:
        return backend.train_step(
            found.model, family.terms, optim, seed=options.seed, compile=compiled, precision=options.precision
        )

    learning = Hooks() if options.decoder_only else rvq_codec.codebook_hooks(family, task.train, options.seed)
    hooks = replace(learning, judged=measured.judged, sections=sections, make_step=make_step)
    learner: Family = replace(family, hooks=hooks)
    if plan := options.adversary():
        learner = against(
            replace(family, hooks=hooks), backend, found.model, plan, optim=optim,
            learning_rate=options.learning_rate, seed=options.seed, compile=compiled, precision=options.precision,
        )  # fmt: skip
    start = family.quantising.start
    return unquantised_first(learner, start, backend) if start else learner


def _check_lengths(made: Sequence[Stage], options: CodecOptions, rate_hz: int) -> None:
    windows = {f"--n-ffts {max(options.n_ffts)}": max(options.n_ffts)}
    if options.mel_weight:
        windows["--mel-weight, whose largest window is 2048,"] = 2048
    plan = options.adversary()
    check_lengths(made, rate_hz, windows, adversary=plan.spec.least_samples if plan else 0)


def _describe(found: Codec, options: CodecOptions, backend: Backend, task: codec.CodecTask) -> str:
    trained = sum(
        value.size if backend.name == "mlx" else value.numel() for value in backend.trainable(found.model).values()
    )
    held_out = task.held_out or task.train
    lines = [
        f"{found.name}: trains {trained:,} parameters on {backend.name} in {backend.world.size} process(es)",
        f"{len(task.train.recordings)} recordings to train on, {len(held_out.recordings)} to validate on",
    ]
    for stage in task.plan.stages:
        lines.append(f"epochs {stage.first}-{stage.last}: {stage.length_s} s, batches of {stage.batch_size}")
    start = options.quantising(from_scratch=found.from_scratch).start
    if start:
        lines.append(f"{start} updates without quantisation, then k-means starts the codebooks")
    if not options.decoder_only and not found.from_scratch:
        lines.append("encoder and codebooks train: codes will change, and models of the old ones no longer fit")
    return "\n".join(lines)
