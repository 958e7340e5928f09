"""A run that trains a codec with averaged codebooks, as the commands for Mimi and EnCodec start it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backends import get
from backends.base import Backend, Hooks
from backends.data import segments
from backends.training import codec, rvq_codec
from backends.training.baselines import Baselines
from backends.training.codec import Family
from backends.training.codec_loss import COMMITMENT
from backends.training.codec_options import CodecOptions
from backends.training.codec_training import CodecTraining
from backends.training.codec_weights import Codec, CodecKind
from backends.training.curriculum import stages
from backends.training.loop import Result
from backends.training.rvq_codec import RVQFamily
from backends.training.state import check_early


def run(kind: CodecKind, options: CodecOptions) -> Result:
    """Train a codec as the options say, or continue the run in their output_dir."""
    backend = get(options.backend, options.device)
    options.check_precision(backend)
    recordings = options.recordings()
    check_early(backend, options.training(), options.settings())
    found = kind.codec(backend, options.codec, options.scale, options.seed)
    task, family, identity = _task(found, options, backend, recordings)
    codebooks = rvq_codec.buffers(family, found.model)
    backend.train_only(found.model, found.decodes if options.decoder_only else lambda name: name not in codebooks)
    training = CodecTraining(
        title=f"{found.name}: codec training",
        model=found.model,
        task=task,
        options=options,
        backend=backend,
        loss=family.loss,
        identity=identity,
        best=options.output_dir / "best",
    )
    training.check_start(family.quantising.start)
    training.say(_describe(found, options, training))

    def learner(measured: Baselines) -> Family:
        source, hooks = task.held_out or task.train, Hooks()
        if not options.decoder_only:
            rvq_codec.collect(family, found.model)
            hooks = rvq_codec.codebook_hooks(family, task.train, options.seed)

        def count(model: Any) -> np.ndarray:
            return rvq_codec.code_counts(family, model, source, found.sizes.entries)

        return training.learner(measured, hooks, count, unquantised=family.quantising.start, silent=(COMMITMENT,))

    return training.run(learner)


def _task(
    found: Codec, options: CodecOptions, backend: Backend, recordings: Iterable[Sequence[Path]]
) -> tuple[codec.CodecTask, RVQFamily, dict[str, str]]:
    """The task, its family, and what must stay the same for a run to continue."""
    rate_hz, frame_samples = found.sizes.sample_rate_hz, found.sizes.frame_samples
    training, held_out = (segments.source(paths, rate_hz, frame_samples) for paths in recordings)
    loss = options.loss(rate_hz=rate_hz, frame_samples=frame_samples, code_width=found.sizes.code_width)
    quantising = options.quantising(from_scratch=found.from_scratch)
    family = RVQFamily(loss, found.sizes.codebooks, quantising, backend.name, Hooks(aside=frozenset([COMMITMENT])))
    plan = codec.CodecPlan(
        stages=stages(options.curriculum, options.epochs, options.batch_size, options.segment_length),
        seed=options.seed,
        micro_batch_s=options.micro_batch_seconds,
        workers=options.num_workers,
        samples=options.samples,
    )
    options.check_lengths(plan.stages, rate_hz)
    weights = {**backend.parameters(found.model), **rvq_codec.buffers(family, found.model)}
    identity = {
        "training data": segments.fingerprint(training),
        "validation data": segments.fingerprint(held_out),
        "codec to start from": backend.fingerprint(weights),
    }

    def export(_model: Any, directory: Path, label: str) -> Path:
        return found.write(directory / ("best" if label == "best" else "last"))

    return codec.CodecTask(family, training, held_out, plan, backend.world, export), family, identity


def _describe(found: Codec, options: CodecOptions, training: CodecTraining) -> str:
    first, *rest = training.describe()
    lines = [f"{found.name}: {first}", *rest]
    start = options.quantising(from_scratch=found.from_scratch).start
    if start:
        lines.append(f"{start} updates without quantisation, then k-means starts the codebooks")
    if not options.decoder_only and not found.from_scratch:
        lines.append("encoder and codebooks train: codes will change, and models of the old ones no longer fit")
    return "\n".join(lines)
