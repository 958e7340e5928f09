"""A run that trains a codec of any kind: from the baselines of the untouched model to the last line it prints."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Backend, Hooks, Section, TrainStep
from backends.errors import InputError
from backends.training import baselines, usage
from backends.training.adversary import against
from backends.training.baselines import Baselines
from backends.training.codec import CodecTask, Family
from backends.training.codec_options import CodecRunOptions
from backends.training.loop import Result, train
from backends.training.rvq_codec import unquantised_first


@dataclass(frozen=True)
class CodecTraining:
    """What is trained, on what, and how."""

    title: str
    model: Any
    task: CodecTask
    options: CodecRunOptions
    backend: Backend
    loss: object  # baselines measured with another are not used
    identity: dict[str, str]  # what must stay the same for a run to continue
    best: Path  # where the best weights are written

    def run(self, learner: Callable[[Baselines], Family]) -> Result:
        """Measure the baselines, then train the family that `learner` makes of them, or continue the run."""
        options, stages = self.options.training(), self.task.plan.stages
        key = str([sorted(self.identity.items()), self.loss, options.seed])
        measured = baselines.measure(self.backend, self.model, self.task, stages, options.output_dir, key)
        for stage in stages:
            self.say(f"baseline at {stage.name}: validation loss {measured.values[stage.name]['val_loss']:.4f}")
        result = train(
            self.backend, self.model, replace(self.task, family=learner(measured)), options, title=self.title,
            identity=self.identity, settings=self.options.settings(),
        )  # fmt: skip
        for name, share in measured.improvements(options.output_dir):
            self.say(f"{name}: best validation loss {100 * share:.1f} % under its baseline")
        self.say(f"weights: {self.best}\nreport: {result.report}")
        return result

    def check_start(self, unquantised: int) -> None:
        """Raise InputError where all updates leave the quantiser out, so that codebooks stay random."""
        epochs = self.options.training().epochs
        total = sum(self.task.updates(epoch) for epoch in range(1, epochs + 1))
        if unquantised >= max(1, total):
            raise InputError(
                f"--quantize-after {unquantised}: the run has {total} updates, none of which would learn with its "
                "codebooks: give a smaller number, or more epochs"
            )

    def learner(
        self, measured: Baselines, hooks: Hooks, count: Callable[[Any], np.ndarray], *,
        unquantised: int = 0, silent: Sequence[str] = (),
    ) -> Family:  # fmt: skip
        """The family with everything that only training needs: an update, the report's parts, an adversary.

        `count` counts the codes of a model for the report; the first `unquantised` updates leave the quantiser out, and
        its terms `silent` with it.
        """
        backend, options = self.backend, self.options.training()
        # torch.compile is off: Mimi's and EnCodec's convolutions compute their padding from tensors, which breaks the
        # graph at each, and SNAC's was never tried on CUDA by this project. On MLX compiled updates are tested.
        same: Any = {
            "seed": options.seed,
            "compile": backend.has_gpu and backend.name == "mlx",
            "precision": self.options.precision,
        }

        def sections(model: Any) -> list[Section]:
            return [measured.section(options.output_dir), usage.section(count(model), "recordings to validate on")]

        def make_step() -> TrainStep:
            return backend.train_step(self.model, self.task.family.terms, options.optim(), **same)

        aside = self.task.hooks.aside
        hooks = replace(hooks, aside=aside, judged=measured.judged, sections=sections, make_step=make_step)
        found: Any = replace(self.task.family, hooks=hooks)  # type: ignore[type-var]
        if plan := self.options.adversary():
            rates: Any = {"optim": options.optim(), "learning_rate": options.learning_rate}
            found = against(found, backend, self.model, plan, **rates, **same)
        return unquantised_first(found, unquantised, backend, silent) if unquantised else found

    def describe(self) -> list[str]:
        """Lines about what trains, on what recordings, and in which stages."""
        trained = sum(math.prod(value.shape) for value in self.backend.trainable(self.model).values())
        task, processes = self.task, self.backend.world.size
        held_out = task.held_out or task.train
        return [
            f"trains {trained:,} parameters on {self.backend.name} in {processes} process(es)",
            f"{len(task.train.recordings)} recordings to train on, {len(held_out.recordings)} to validate on",
            *(
                f"epochs {stage.first}-{stage.last}: {stage.length_s} s, batches of {stage.batch_size}"
                for stage in task.plan.stages
            ),
        ]

    def say(self, line: str) -> None:
        """Print it, once for all processes."""
        if self.backend.world.rank == 0:
            print(line)
