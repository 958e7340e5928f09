"""The one training loop: every model family and both backends."""

import json
import math
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from backends.atomic import write_text
from backends.base import Backend, Batch, Metrics, Task, TrainStep
from backends.data.prefetch import prefetch
from backends.errors import InputError
from backends.training import lock, samples, state
from backends.training.checkpoints import Checkpoints, step_of
from backends.training.evaluation import term_weights, validate
from backends.training.log import MetricsLog, Window
from backends.training.options import TrainOptions
from backends.training.report import write_report
from backends.training.schedule import learning_rate
from backends.training.settings import Settings
from backends.training.signals import interruptible
from backends.training.state import RunState


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    step: int
    epoch: int
    loss: float | None  # of the last logged window
    val_loss: float | None  # the best
    report: Path
    exported: Path | None


def train(
    backend: Backend,
    model: Any,
    task: Task,
    options: TrainOptions,
    *,
    title: str,
    identity: dict[str, str] | None = None,
    settings: Settings | None = None,
) -> Result:
    """Train `model` on `task`, or continue the run that `options.output_dir` holds.

    `identity` names what else must be the same to continue a run, such as {"dataset": its hash}. `settings` are the
    command's options where they are others than `options`: they stand in config.json and are compared on continuing.

    Writes config.json, metrics.csv, samples/, checkpoints/step_N/, report.html and the task's exports. After kill -9 at
    any moment the same call continues from the newest checkpoint that verifies and ends bit-identical on one backend.
    Raises InputError where the loss stops being finite, the options differ from the run being continued, another
    process is at it, or all its checkpoints are damaged.
    """
    same = {**(identity or {}), "number of processes": str(backend.world.size)}  # of which an update takes a batch each
    with lock.held(options.output_dir) if backend.world.rank == 0 else nullcontext():
        asked = (settings or Settings.of(options)).of_run(backend.name, same)
        return _Run(backend, model, task, options, title, asked).to_the_end()


class _Run:
    def __init__(self, backend: Backend, model: Any, task: Task, options: TrainOptions, title: str, settings: Settings):
        self.backend, self.model, self.task, self.options, self.title = backend, model, task, options, title
        self.chief = backend.world.rank == 0
        self.directory = options.output_dir
        self.settings = settings
        self.checkpoints = Checkpoints(self.directory / "checkpoints", options.keep_last)
        self.step = task.hooks.make_step() if task.hooks.make_step else self._plain_step()
        self.evaluate = backend.eval_step(model, task.terms)
        self.state = self._restored()
        self.window = Window(self.state.window, self.state.window_steps)
        self.total = sum(task.updates(epoch) for epoch in range(1, options.epochs + 1))
        self.last_save = self.last_log = time.monotonic()
        self.seconds = 0.0  # of audio since the last row of the log

    def _plain_step(self) -> TrainStep:
        # Not on CUDA by itself: no machine was at hand to see what torch.compile makes of batches of all lengths.
        itself = self.options.compile == "auto" and self.backend.has_gpu and self.backend.name == "mlx"
        compiled = self.options.compile == "on" or itself
        same: Any = {"seed": self.options.seed, "compile": compiled, "precision": self.task.hooks.precision}
        return self.backend.train_step(self.model, self.task.terms, self.options.optim(), **same)

    def to_the_end(self) -> Result:
        self._start()
        with interruptible() as interrupted, self._progress() as self.bar:
            while self.state.epoch <= self.options.epochs and not self.state.stopped:
                updates = self.task.updates(self.state.epoch)
                for micro_batches in prefetch(self.task.batches(self.state.epoch, self.state.position)):
                    self._update(micro_batches)
                    if self._due(self.options.eval_every):
                        self._evaluate()
                    if self._due(self.options.save_every):
                        self._owe(f"step_{self.state.step}")
                    if self.state.stopped:
                        self._owe(f"epoch_{self.state.epoch}")  # as far as it came
                    late, signum = self._agree(self._overdue(), interrupted())
                    epoch_done = self.state.position == updates
                    if signum or not epoch_done and (late or self._due(self.options.save_every)):
                        self._save()
                    elif not epoch_done and not self.state.stopped:
                        self._export()
                    if signum:
                        self._stop_here(signum)
                    if self.state.stopped:
                        break
                else:
                    self._end_epoch()
            self._save()
            self._log()
            if self.options.eval_every and not self._due(self.options.eval_every):
                self._sample()  # the report ends with the model as it is in the end
        return self._result()

    def _start(self) -> None:
        self.log = None
        if self.chief:
            self.log = MetricsLog(self.directory / "metrics.csv", tuple(self.task.coefficients), self.state.rows)
            write_text(self.directory / "config.json", json.dumps(self.settings.config(), indent=1))
        if self.state.step == 0:
            self._sample()
        self._export()  # again what the checkpoint owes: the process that saved it may not have come to it
        self.backend.reset_peak_memory()

    def _update(self, micro_batches: list[Batch]) -> None:
        weights = term_weights(self.task, self.task.counts(micro_batches), self.backend.world)
        metrics = self.step(micro_batches, weights, self._rate(self.state.step))
        self._finite(metrics)
        self.state = replace(self.state, step=self.state.step + 1, position=self.state.position + 1)
        self.task.hooks.after_step(self.model, self.state.step)
        self.seconds += self.task.seconds(micro_batches)
        self.window.add(metrics)
        self.bar.update()
        if self._due(self.options.log_every):
            self._log()

    def _rate(self, step: int) -> float:
        return learning_rate(
            step,
            peak=self.options.learning_rate,
            total=self.total,
            warmup=self.options.warmup_steps,
            schedule=self.options.schedule,
            floor=self.options.lr_min_ratio,
        )

    def _log(self) -> None:
        """A row for the steps since the last one, if there are any."""
        if not self.window.steps:
            return
        now = time.monotonic()
        means = self.window.mean()
        self.state = replace(self.state, loss=means["loss"])
        speed = self.seconds / max(now - self.last_log, 1e-9)
        peak = self.backend.memory().peak / 1e9
        rate = self._rate(self.state.step - 1)
        self._row({**means, "learning_rate": rate, "audio_s_per_s": speed, "peak_memory_gb": peak})
        self.bar.set_postfix_str(f"loss {means['loss']:.4f}, {speed:.1f} audio-s/s, peak {peak:.2f} GB")
        self.last_log, self.seconds = now, 0.0

    def _row(self, values: Metrics) -> None:
        if self.log:
            between = self.state.position == 0 and self.state.step > 0  # the epoch counts on before its last rows
            self.log.row({"step": self.state.step, "epoch": self.state.epoch - between, **values})

    def _end_epoch(self) -> None:
        if not self.options.eval_every:
            self._evaluate()
        self._owe(f"epoch_{self.state.epoch}")
        self.state = replace(self.state, epoch=self.state.epoch + 1, position=0)
        self._save()

    def _evaluate(self) -> None:
        started = time.monotonic()
        with self.step.averaged():
            value = validate(self.evaluate, self.task, self.state.epoch, self.backend.world)
        if value is not None:
            if not math.isfinite(value):
                raise self._diverged(f"the validation loss became {value} at step {self.state.step}")
            self._row({"val_loss": value})
            self._judge(self.task.hooks.judged(self.state.epoch, value))
        self._sample()
        self._report()
        self.last_log += time.monotonic() - started  # the log's speed is that of training

    def _judge(self, value: float) -> None:
        if self.state.best is None or value < self.state.best:
            self.state = replace(self.state, best=value, stale=0)
            self._owe("best")
            return
        self.state = replace(self.state, stale=self.state.stale + 1)
        if self.options.patience and self.state.stale >= self.options.patience:
            self.state = replace(self.state, stopped=f"no better validation loss in {self.state.stale} evaluations")

    def _save(self) -> None:
        if self.log:
            self.log.sync()
            window = dict(self.window.sums)
            self.state = replace(self.state, rows=self.log.rows, window=window, window_steps=self.window.steps)
            state.save(
                self.checkpoints, self.backend, self.model, self.task.hooks, self.step, self.state, self.settings
            )
        self.last_save = time.monotonic()
        self.backend.world.barrier()
        self._export()

    def _owe(self, label: str) -> None:
        self.state = replace(self.state, owed=[*self.state.owed, label])

    def _export(self) -> None:
        """Write the owed exports; after the checkpoint of their step, which a disk that they fill must not prevent."""
        for label in self.state.owed if self.chief else ():
            with self.step.averaged():
                path = self.task.export(self.model, self.directory, label)
            self.state = replace(self.state, exported=path.relative_to(self.directory).as_posix() if path else "")
        self.state = replace(self.state, owed=[])

    def _sample(self) -> None:
        if self.chief:
            with self.step.averaged():
                samples.keep(self.directory, self.state.step, self.task.sample(self.model, self.state.step))

    def _report(self) -> None:
        if self.chief:
            with self.step.averaged():
                sections = self.task.hooks.sections(self.model)
            write_report(self.directory, self.title, sections)

    def _restored(self) -> RunState:
        report = print if self.chief else (lambda _line: None)
        newest = self.checkpoints.newest(report) if self.options.resume else None
        newest = newest or state.given_checkpoint(self.options)
        restored = RunState()
        if newest is not None:
            restored = state.restore(
                newest, self.backend, self.model, self.task.hooks, self.step, self.settings, report
            )
        state.check_same_start(self.backend.world, self.directory, restored)
        if not self.options.resume and self.chief:
            self.checkpoints.clear()  # only now that nothing is refused any more
        if restored.stopped and (not self.options.patience or restored.stale < self.options.patience):
            return replace(restored, stopped="")
        return restored

    def _due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0

    def _overdue(self) -> bool:
        minutes = self.options.save_minutes
        return minutes > 0 and time.monotonic() - self.last_save >= 60 * minutes

    def _agree(self, late: bool, signum: int) -> tuple[bool, int]:
        """What all ranks do together: save when the chief's clock says so, stop when any rank was told to."""
        if self.backend.world.size == 1:
            return late, signum
        late_sum, signum_sum = self.backend.world.sum([float(late and self.chief), float(signum)])
        return late_sum > 0, signum or int(signal.SIGTERM if signum_sum else 0)

    def _finite(self, metrics: Metrics) -> None:
        if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
            return
        became = f"{metrics['loss']} (gradient norm {metrics['grad_norm']})"
        raise self._diverged(f"the loss became {became} at step {self.state.step + 1}")

    def _diverged(self, said: str) -> InputError:
        kept = self.checkpoints.all()
        good = f"the newest checkpoint is step {step_of(kept[-1])}" if kept else "no checkpoint was saved yet"
        return InputError(
            f"{said}: lower the learning rate or the largest gradient norm, or look for damaged audio; {good}"
        )

    def _stop_here(self, signum: int) -> None:
        self._report()
        raise SystemExit(128 + signum)

    def _progress(self) -> tqdm:
        return tqdm(total=self.total, initial=self.state.step, desc="training", unit="step", disable=not self.chief)

    def _result(self) -> Result:
        self._report()
        exported = self.directory / self.state.exported
        return Result(
            step=self.state.step,
            epoch=min(self.state.epoch, self.options.epochs),
            loss=self.state.loss,
            val_loss=self.state.best,
            report=self.directory / "report.html",
            exported=exported if self.state.exported and exported.exists() else None,
        )
