"""The adversarial stage of codec training: discriminators that learn in turns with the codec. Framework-free.

The discriminators, their loss and its weights are DAC's (descriptinc/descript-audio-codec): least squares for the
scores, and the mean absolute difference of all feature maps but the scores,

    discriminators   sum over discriminators of mean fake^2 + mean (1 - real)^2
    codec            ... + adversarial_weight * sum of mean (1 - fake)^2 + feature_weight * sum of mean |fake - real|

A command gives its family, hooks included, to `against` and trains with what that returns.
"""

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from backends.base import Arrays, Backend, Batch, Hooks, Metrics, OptimSpec, Precision, TrainStep
from backends.drawing import Shape, drawn, fan_in, with_gains
from backends.errors import InputError
from backends.training.codec import Family

GENERATOR, DISCRIMINATOR = "codec.", "discriminators."  # begin names in a step's state
BUFFERS = "adversary."  # begins the discriminators' names in a checkpoint's buffers
SCORE, FEATURES, OWN = "adversarial", "feature", "discriminator"  # the terms' names


@dataclass(frozen=True)
class DiscriminatorSpec:
    """Sizes of the discriminators; those of DAC by default."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_widths: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    windows: tuple[int, ...] = (2048, 1024, 512)
    width: int = 32  # channels on spectra
    bands: tuple[tuple[float, float], ...] = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))

    @property
    def least_samples(self) -> int:
        """The shortest segment that can be reflected at its ends as far as the discriminators do."""
        return max([*self.periods, *((window - window // 4) // 2 + window // 4 for window in self.windows)]) + 1


@dataclass(frozen=True)
class AdversaryPlan:
    """How the discriminators learn, and what they count for; DAC's values."""

    learning_rate: float = 1e-4
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0
    max_norm: float = 10.0
    weight_decay: float = 0.01
    spec: DiscriminatorSpec = DiscriminatorSpec()

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"--adversarial-learning-rate {self.learning_rate}: expected a positive number")

    def optim(self) -> OptimSpec:
        return OptimSpec("adamw", self.weight_decay, betas=(0.8, 0.99), max_norm=self.max_norm or None)


class Rebuilding(Family, Protocol):
    """A family that can say what the codec makes of a batch before it is compared."""

    def rebuilt(self, model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Native (audio (B, samples), what the codec makes of it, whatever else `distances` needs)."""
        ...

    def distances(self, audio: Any, made: Any, rest: Any) -> Mapping[str, Any]:
        """The terms: `terms(model, batch)` is `distances(*rebuilt(model, batch))`."""
        ...


@dataclass(frozen=True)
class AdversarialFamily:
    """Satisfies `backends.training.codec.Family`. Validation is without the adversary."""

    family: Rebuilding
    plan: AdversaryPlan
    hooks: Hooks

    @property
    def coefficients(self) -> Mapping[str, float]:
        mine = {SCORE: self.plan.adversarial_weight, FEATURES: self.plan.feature_weight, OWN: 1.0}
        return {**self.family.coefficients, **mine}

    def codes(self, path: Path) -> np.ndarray | None:
        return self.family.codes(path)

    def batch(self, audio: np.ndarray, codes: np.ndarray | None, keys: Sequence[int], *, training: bool) -> Batch:
        return self.family.batch(audio, codes, keys, training=training)

    def terms(self, model: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.family.terms(model, batch)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {**self.family.counts(batch), **dict.fromkeys((SCORE, FEATURES, OWN), float(len(batch["audio"])))}

    def reconstruct(self, model: Any, audio: np.ndarray, seed: int) -> np.ndarray:
        return self.family.reconstruct(model, audio, seed)


def against(
    family: Rebuilding,
    backend: Backend,
    model: Any,
    plan: AdversaryPlan,
    *,
    optim: OptimSpec,
    learning_rate: float,
    seed: int,
    compile: bool = False,
    precision: Precision = "float32",
) -> AdversarialFamily:
    """`family` with an adversary: its hooks also make the alternating step and keep the discriminators.

    `optim` and `learning_rate` are the codec's; the discriminators' rate keeps its proportion to it all along.
    `compile` and `precision` are those of `Backend.train_step`.
    """
    native = importlib.import_module(f"backends.{backend.name}_backend.discriminators")
    judges = discriminators(backend, plan.spec, seed)

    def make_step() -> TrainStep:
        def codec_terms(codec: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
            audio, made, rest = family.rebuilt(codec, batch)
            return {**family.distances(audio, made, rest), **native.generator_terms(judges, audio, made)}

        def own_terms(judging: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
            audio, made, _ = family.rebuilt(model, batch)
            return native.discriminator_terms(judging, audio, made)

        first = backend.train_step(
            judges, own_terms, plan.optim(), also=[model], seed=seed, compile=compile, precision=precision
        )
        then = backend.train_step(
            model, codec_terms, optim, also=[judges], seed=seed, compile=compile, precision=precision
        )
        return Alternating(then, first, plan.learning_rate / learning_rate)

    return AdversarialFamily(family, plan, _with_buffers(family.hooks, backend, judges, make_step))


def discriminators(backend: Backend, spec: DiscriminatorSpec, seed: int) -> Any:
    """The native discriminators with random weights, which are the same on both backends."""
    made = importlib.import_module(f"backends.{backend.name}_backend.discriminators").Discriminators(spec)
    shapes = {name: tuple(value.shape) for name, value in backend.parameters(made).items()}
    backend.load(made, backend.from_host(_drawn(shapes, seed)))
    return made.to(backend.device) if backend.name == "torch" else made  # type: ignore[attr-defined]


class Alternating:
    """A TrainStep: the discriminators' update on a batch, then the codec's against them as they are now."""

    def __init__(self, codec: TrainStep, discriminators: TrainStep, rate_ratio: float):
        self.codec, self.discriminators, self.rate_ratio = codec, discriminators, rate_ratio

    def __call__(self, micro_batches: Sequence[Batch], weights: Mapping[str, float], lr: float) -> Metrics:
        own = self.discriminators(micro_batches, {OWN: weights[OWN]}, self.rate_ratio * lr)
        rest = {name: value for name, value in weights.items() if name != OWN}
        return {**self.codec(micro_batches, rest, lr), OWN: own[OWN]}

    def state(self) -> Arrays:
        codec = {f"{GENERATOR}{name}": value for name, value in self.codec.state().items()}
        return {**codec, **{f"{DISCRIMINATOR}{name}": value for name, value in self.discriminators.state().items()}}

    def load_state(self, arrays: Arrays) -> None:
        self.codec.load_state(_under(GENERATOR, arrays))
        self.discriminators.load_state(_under(DISCRIMINATOR, arrays))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        with self.codec.averaged():
            yield


def _with_buffers(hooks: Hooks, backend: Backend, judges: Any, make_step: Callable[[], TrainStep]) -> Hooks:
    """The hooks, with the discriminators among the buffers."""

    def buffers(model: Any) -> Arrays:
        return {**hooks.buffers(model), **{f"{BUFFERS}{n}": v for n, v in backend.parameters(judges).items()}}

    def load_buffers(model: Any, arrays: Arrays) -> None:
        backend.load(judges, _under(BUFFERS, arrays))
        hooks.load_buffers(model, {name: value for name, value in arrays.items() if not name.startswith(BUFFERS)})

    return replace(hooks, make_step=make_step, buffers=buffers, load_buffers=load_buffers)


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _drawn(shapes: Mapping[str, Shape], seed: int) -> dict[str, np.ndarray]:
    """PyTorch's usual start, of weights and biases: uniform to 1 / sqrt(fan-in); gains are the filters' norms."""

    def start(name: str, shape: Shape, draw: np.random.Generator) -> np.ndarray:
        bound = fan_in(shapes[name.rpartition(".")[0] + ".weight_v"]) ** -0.5
        return draw.uniform(-bound, bound, shape)

    return with_gains(drawn(shapes, start, seed))
