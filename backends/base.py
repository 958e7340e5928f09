"""The waist between shared code and the two frameworks: Protocols and plain dataclasses, no framework import.

Shared code hands NumPy batches in and gets Python floats out; native arrays pass through it only as opaque values of
`Arrays`, keyed by dotted parameter names that are the same on both backends.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from backends.errors import InputError
from backends.values import check_number

Batch = Mapping[str, np.ndarray]  # int32, bool and float32 host arrays
Arrays = dict[str, Any]  # dotted name -> native array
Metrics = dict[str, float]
Precision = Literal["float32", "bfloat16"]
Window = Literal["none", "hann"]  # of an STFT; "none" is the rectangle
Terms = Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]  # (model, native batch) -> {term: native scalar sum}


@dataclass(frozen=True)
class LoRASpec:
    """A low-rank adapter: `y = base(x) + scale * dropout(x) A^T B^T`; A (r, in), B (out, r) as in PEFT.

    `scale` is alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv:2312.03732). DoRA (arXiv:2402.09353) also learns
    each output row's magnitude.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self) -> None:
        check_number("--lora-rank", self.rank, 1, whole=True)
        check_number("--lora-alpha", self.alpha, above=True)
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"--dropout {self.dropout}: expected 0 <= dropout < 1")

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


@dataclass(frozen=True)
class OptimSpec:
    """An optimizer. The learning rate comes with each step; `max_norm` clips by global norm (None: no clipping)."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_norm: float | None = None
    ema_decay: float | None = None
    """Also keep an exponential moving average of what trains, for `TrainStep.averaged`; None: no average."""

    def __post_init__(self) -> None:
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise InputError(f"--ema-decay {self.ema_decay}: expected 0 <= decay < 1, such as 0.999")


@dataclass(frozen=True)
class Memory:
    """Bytes: the peak since the last reset, what is held now, and what the device offers (None: not known)."""

    peak: int
    active: int
    limit: int | None


@dataclass(frozen=True)
class Leaf:
    """A module that can carry an adapter: its kind and its weight's shape, (out, in) or (entries, width)."""

    kind: Literal["linear", "embedding"]
    shape: tuple[int, int]


@dataclass(frozen=True)
class Sample:
    """A piece of audio for the report: `audio` (samples,) float32."""

    name: str
    caption: str
    audio: np.ndarray
    rate_hz: int


class World(Protocol):
    """The processes that train together."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def sum(self, values: Sequence[float]) -> list[float]: ...
    def barrier(self) -> None: ...


class TrainStep(Protocol):
    """One optimizer update. Owns gradients, moments and whatever else changes while training."""

    def __call__(self, micro_batches: Sequence[Batch], weights: Mapping[str, float], lr: float) -> Metrics:
        """Minimise `sum_t weights[t] * sum over micro-batches and ranks of terms[t]`.

        Returns "loss", "grad_norm" (before clipping) and each weighted term by its name.
        """
        ...

    def state(self) -> Arrays: ...
    def load_state(self, arrays: Arrays) -> None: ...
    def averaged(self) -> AbstractContextManager[None]:
        """The model has its averaged weights inside this context, and its own again after; no-op without averages."""
        ...


@dataclass(frozen=True)
class Section:
    """A part of the report: a title and HTML."""

    title: str
    html: str


def _nothing(*_arguments: Any) -> None:
    return None


@dataclass(frozen=True)
class Hooks:
    """What only some families add to the loop."""

    after_step: Callable[[Any, int], None] = _nothing
    """(model, step done): update buffers that learn, such as EMA codebooks."""
    buffers: Callable[[Any], Arrays] = lambda _model: {}
    """Arrays besides the trainable ones that a checkpoint must hold."""
    load_buffers: Callable[[Any, Arrays], None] = _nothing
    judged: Callable[[int, float], float] = lambda _epoch, value: value
    """(epoch, validation loss) -> the number of which the smallest is the best."""
    aside: frozenset[str] = frozenset()
    """Terms that are trained on and are no part of the validation loss, such as a quantiser's."""
    sections: Callable[[Any], Sequence[Section]] = lambda _model: ()
    """Parts that the family adds to the report."""
    precision: "Precision" = "float32"
    """What the ordinary training step computes in."""
    make_step: Callable[[], "TrainStep"] | None = None
    """A training step other than the ordinary one."""


class Task(Protocol):
    """What a model family adds to training; everything else is `backends.training.loop`.

    Anything random is drawn on the host, keyed by seed, epoch and position, so that resuming repeats it.
    """

    @property
    def coefficients(self) -> Mapping[str, float]:
        """What each term's mean counts for in the loss; its names are the terms', in the order of the log."""
        ...

    @property
    def hooks(self) -> "Hooks": ...

    def updates(self, epoch: int) -> int:
        """Optimizer updates in `epoch` (counted from 1)."""
        ...

    def batches(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        """The micro-batches of each update of `epoch` from update `start` on, this rank's share."""
        ...

    def terms(self, model: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The loss as native sums, one per term."""
        ...

    def counts(self, micro_batches: Sequence[Batch]) -> dict[str, float]:
        """How many values each term's sum is over, by the batches' NumPy masks and shapes."""
        ...

    def seconds(self, micro_batches: Sequence[Batch]) -> float:
        """Seconds of audio in the micro-batches."""
        ...

    def validation(self, epoch: int) -> Iterable[Batch]:
        """This rank's share of the validation batches of an epoch's stage, each batch on one rank only.

        They are always the same ones; none where there is no validation set.
        """
        ...

    def sample(self, model: Any, step: int) -> list[Sample]: ...
    def export(self, model: Any, directory: Path, label: str) -> Path | None:
        """Write the family's own file for `label` ("step_100", "epoch_2", "best")."""
        ...


class Backend(Protocol):
    """One framework. `get` in `backends` returns an implementation."""

    @property
    def name(self) -> str: ...
    @property
    def world(self) -> World: ...
    @property
    def has_gpu(self) -> bool: ...

    def linears(self, model: Any) -> dict[str, Leaf]:
        """Modules that can carry an adapter, by dotted name."""
        ...

    def adapt(self, model: Any, names: Iterable[str], spec: LoRASpec, seed: int = 0) -> None:
        """Freeze the model and put a fresh adapter (which changes nothing yet) on each named module."""
        ...

    def adapters(self, model: Any) -> dict[str, tuple[Leaf, LoRASpec]]:
        """The adapted modules by dotted name: what each was, and its adapter."""
        ...

    def fuse(self, model: Any) -> None:
        """Fold every adapter into its base weight and remove it; quantised bases become full precision."""
        ...

    def train_only(self, model: Any, keep: Callable[[str], bool]) -> None:
        """Make exactly the parameters trainable whose dotted name satisfies `keep`."""
        ...

    def parameters(self, model: Any) -> Arrays: ...
    def trainable(self, model: Any) -> Arrays: ...
    def load(self, model: Any, arrays: Arrays, *, strict: bool = True) -> None:
        """Set parameters by name; names must exist and shapes match. Strict: every parameter must be given."""
        ...

    def train_step(
        self,
        model: Any,
        terms: Terms,
        optim: OptimSpec,
        *,
        seed: int = 0,
        compile: bool = False,
        also: Sequence[Any] = (),
        precision: Precision = "float32",
    ) -> TrainStep:
        """`also` are other models that the terms read, such as an adversary: still, in evaluation mode, untrained.

        With "bfloat16" products inside the terms are computed in that type (PyTorch's autocast); weights, moments and
        sums stay float32.
        """
        ...

    def eval_step(self, model: Any, terms: Terms) -> Callable[[Batch], Metrics]:
        """A function from a batch to each term's sum, with dropout off and no gradient."""
        ...

    def write(self, path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
        """Write safetensors. Not atomic: `backends.training.checkpoints` stages and renames."""
        ...

    def read(self, path: Path) -> tuple[Arrays, dict[str, str]]:
        """Read safetensors fully into memory: (arrays, metadata)."""
        ...

    def to_host(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Copies as NumPy arrays; bfloat16 stays bfloat16 (ml_dtypes)."""
        ...

    def from_host(self, arrays: Mapping[str, np.ndarray]) -> Arrays: ...
    def fingerprint(self, arrays: Arrays) -> str:
        """SHA-256 over names, shapes, types and bytes: the identity of a set of weights."""
        ...

    def memory(self) -> Memory: ...
    def reset_peak_memory(self) -> None: ...


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter file says of itself."""

    spec: LoRASpec
    targets: tuple[str, ...]  # dotted names of the adapted modules
    base: str = ""  # the model it was trained on, for people to read
    trained: tuple[str, ...] = field(default=())  # parameters trained whole and stored beside the adapter
    settings: Mapping[str, Any] | None = None  # the base model's own config.json, where known
