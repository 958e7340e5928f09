"""Where a run stands, and how a checkpoint holds it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backends.adapters.files import load_trained
from backends.base import Backend, Hooks, Metrics, TrainStep, World
from backends.errors import InputError
from backends.training import lock
from backends.training.checkpoints import MANIFEST, Checkpoints, damage
from backends.training.options import TrainOptions
from backends.training.settings import Settings


@dataclass
class RunState:
    """The position in the run. Epochs count from 1; `position` is the number of updates done in the current epoch."""

    step: int = 0
    epoch: int = 1
    position: int = 0
    best: float | None = None
    stale: int = 0  # evaluations since the best
    loss: float | None = None  # of the newest row of the log
    rows: int = 0  # of the log
    window: Metrics = field(default_factory=dict)
    window_steps: int = 0
    exported: str = ""  # the newest file that the task exported, by its name in the run directory
    owed: list[str] = field(default_factory=list)  # labels of exports of this step, which follow its checkpoint
    stopped: str = ""  # why the run ended before its last epoch


def save(
    checkpoints: Checkpoints,
    backend: Backend,
    model: Any,
    hooks: Hooks,
    step: TrainStep,
    state: RunState,
    settings: Settings,
) -> Path:
    """Commit a checkpoint of everything that continues the run."""

    def write(directory: Path) -> None:
        backend.write(directory / "weights.safetensors", backend.trainable(model), {})
        backend.write(directory / "optimizer.safetensors", step.state(), {})
        if buffers := hooks.buffers(model):
            backend.write(directory / "buffers.safetensors", buffers, {})
        payload = {"state": asdict(state), "config": settings.config(), "backend": backend.name}
        (directory / "trainer.json").write_text(json.dumps(payload, indent=1), encoding="utf-8")

    return checkpoints.save(state.step, write)


def restore(
    path: Path,
    backend: Backend,
    model: Any,
    hooks: Hooks,
    step: TrainStep,
    settings: Settings,
    report: Callable[[str], None] = print,
) -> RunState:
    """Load a verified checkpoint into the model and the step.

    Raises InputError where the run's options differ, or what its identity names has changed.
    """
    payload = json.loads((path / "trainer.json").read_text(encoding="utf-8"))
    _same_options(path, payload, settings)
    _same_identity(path, payload["config"]["identity"], settings.identity)  # after the options, which may be the cause
    weights, _ = backend.read(path / "weights.safetensors")
    moments, _ = backend.read(path / "optimizer.safetensors")
    load_trained(backend, model, weights, str(path))
    step.load_state(moments)
    if (path / "buffers.safetensors").exists():
        hooks.load_buffers(model, backend.read(path / "buffers.safetensors")[0])
    state = RunState(**payload["state"])
    report(f"resuming from {path}: step {state.step}, epoch {state.epoch}")
    return state


def check_same_start(world: World, directory: Path, state: RunState) -> None:
    """Raise InputError where the ranks do not continue from the same step."""
    if world.sum([float(state.step)]) != [float(world.size * state.step)]:
        raise InputError(
            f"--output-dir {directory}: the {world.size} processes find different checkpoints there: "
            "give a folder that all of them share"
        )


def given_checkpoint(options: TrainOptions) -> Path | None:
    """The checkpoint directory of --resume-from, if it is one; a weights file is for the command to load.

    Raises InputError where there is none such, where it is damaged, and where --no-resume would remove it.
    """
    given, own = options.resume_from, options.output_dir / "checkpoints"
    if given is None:
        return None
    if not given.exists():
        raise InputError(f"--resume-from {given}: no such checkpoint directory or weights file")
    if not options.resume and given.resolve().is_relative_to(own.resolve()):
        raise InputError(
            f"--resume-from {given}: --no-resume removes the checkpoints in --output-dir {options.output_dir}, "
            "this one too: name another --output-dir"
        )
    if given.is_file():
        return None
    if not (given / MANIFEST).exists():
        raise InputError(
            f"--resume-from {given}: is no checkpoint, {_checkpoint_near(given)}; to continue a run, repeat its command"
        )
    if problem := damage(given):
        raise InputError(f"--resume-from {given}: {problem}; give another checkpoint, such as RUN/checkpoints/step_100")
    return given


def _checkpoint_near(folder: Path) -> str:
    """What to give instead of a run's directory, or of its checkpoints."""
    found = [path for inner in (folder, folder / "checkpoints") for path in Checkpoints(inner).all()]
    return f"give {found[-1]}" if found else "expected one such as RUN/checkpoints/step_100"


def frozen_identity(backend: Backend, model: Any) -> str:
    """A hash of what does not train: about a thousand numbers of each array tell it from another, and are quick."""
    trained, every = backend.trainable(model), backend.parameters(model)
    frozen = {name: value.reshape(-1) for name, value in every.items() if name not in trained}
    return backend.fingerprint({name: flat[:: len(flat) // 1000 + 1] for name, flat in frozen.items()})


def check_early(backend: Backend, options: TrainOptions, settings: Settings | None = None) -> None:
    """Refuse before any recording is read what `backends.training.loop.train` would refuse after all are encoded.

    Raises InputError where the run directory cannot be written or is in use, and where the checkpoint to continue from,
    its newest or else that of --resume-from, is not there or was trained with other options; `settings` as for `train`.
    """
    if backend.world.rank > 0:
        return
    with lock.held(options.output_dir):
        found = Checkpoints(options.output_dir / "checkpoints", options.keep_last).all() if options.resume else []
    newest = found[-1] if found else given_checkpoint(options)
    if newest is None:
        return
    try:
        payload = json.loads((newest / "trainer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # damaged: the one before may do
    _same_options(newest, payload, (settings or Settings.of(options)).of_run(backend.name))


def _same_identity(path: Path, saved: Mapping[str, str], asked: Mapping[str, str]) -> None:
    if changed := _differing(saved, asked):
        raise InputError(
            f"the {' and the '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed since {path} was saved: "
            "use another --output-dir, or --no-resume to start over"
        )


def _same_options(path: Path, payload: dict, settings: Settings) -> None:
    """An option that is younger than the checkpoint had its default."""
    if unknown := set(payload["config"]) - {*settings.values, "identity"}:
        raise InputError(
            f"{path}: belongs to a run of another command or version, which has --{min(unknown).replace('_', '-')}: "
            "give another directory"
        )
    saved = {**settings.defaults, **payload["config"], "backend": payload["backend"]}
    asked, may_change = settings.values, {*settings.may_change, "identity"}
    if asked.get("schedule") != "constant":
        may_change.discard("epochs")  # the schedule's end moves with it
    if asked.get("resume_from") == str(path):
        may_change.add("resume_from")  # the other run did not start from itself
    if changed := [name for name in _differing(saved, asked) if name not in may_change]:
        raise InputError(_other_options(path, {name: (saved.get(name), asked.get(name)) for name in changed}))


def _differing(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """The names of what is not the same in both."""
    return [name for name in sorted(set(saved) | set(asked)) if not _same(saved.get(name), asked.get(name))]


def _same(saved: object, asked: object) -> bool:
    """Whether two values are equal, or two spellings of the path of a file or folder."""
    if saved == asked or not isinstance(saved, str) or not isinstance(asked, str):
        return saved == asked
    return Path(asked).exists() and Path(saved).resolve() == Path(asked).resolve()


def _other_options(path: Path, changed: dict[str, tuple[Any, Any]]) -> str:
    """The error for options that differ: {name: (saved, asked)}."""
    values = {f"--{name.replace('_', '-')}": pair for name, pair in changed.items()}
    ours = ", ".join(f"{flag} is {asked!r}" for flag, (_, asked) in values.items())
    theirs = ", ".join(f"{saved!r}" if len(values) == 1 else f"{flag} {saved!r}" for flag, (saved, _) in values.items())
    use = "that value" if len(values) == 1 else "those values"
    remedy = f"{use}, another --output-dir, or --no-resume to start over"
    if changed.keys() == {"resume_from"}:
        remedy = f"{use} or another --output-dir"  # starting over may remove what is to be continued
    return f"{ours}, but {path} was trained with {theirs}: use {remedy}"
