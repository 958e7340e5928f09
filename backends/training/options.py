"""The options every training command shares. Flags, config files and --help derive from these dataclasses."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from backends import seeds
from backends.base import Backend, OptimSpec, Precision
from backends.errors import InputError
from backends.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train. A model family's options extend this with its own.

    `may_change` are those that may be changed between a run and its continuation: they do not alter what has been
    computed so far.
    """

    may_change: ClassVar[frozenset[str]] = frozenset([
        "output_dir", "config", "epochs", "save_every", "save_minutes", "keep_last", "log_every", "eval_every",
        "patience", "resume", "compile",
    ])  # fmt: skip

    output_dir: Path
    """The run directory: checkpoints, metrics.csv, samples and report.html."""
    config: Path | None = None
    """A JSON file of options under these names; flags override it."""
    batch_size: int = 4
    """Clips per batch."""
    epochs: int = 5
    """Passes over the data."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Update rule."""
    weight_decay: float = 1e-4
    """Decoupled weight decay; only AdamW uses it."""
    gradient_accumulation: int = 1
    """Batches per optimizer step; equals one batch that many times larger."""
    max_norm: float = 1.0
    """Clip gradients to this global norm; 0 turns clipping off."""
    ema_decay: float = 0.0
    """Average the weights with this decay, such as 0.999, for validation, samples and exports; 0 turns it off."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises."""
    schedule: Schedule = "constant"
    """The learning rate after warm-up; linear and cosine fall until the last step."""
    lr_min_ratio: float = 0.0
    """The share of the peak that linear and cosine fall to."""
    save_every: int = 100
    """Save a checkpoint every so many optimizer steps, and a file of that step if the command exports such; 0: off."""
    save_minutes: float = 10.0
    """Also save when so many minutes have passed since the last checkpoint; 0 turns it off."""
    keep_last: int = 2
    """Checkpoints to continue from that are kept; exported adapters and weights do not count and are not deleted."""
    log_every: int = 10
    """Optimizer steps per row of metrics.csv, which holds their mean."""
    eval_every: int = 0
    """Validate and make audio samples every so many optimizer steps; 0: after each epoch."""
    patience: int = 0
    """Stop after so many evaluations without a better validation loss; 0 turns it off."""
    seed: int = 0
    """Seed of everything random, from 0 to 4294967295."""
    resume: bool = True
    """Continue from the newest checkpoint in the run directory; --no-resume starts over."""
    resume_from: Path | None = None
    """A checkpoint directory to continue from, or a single exported file to start from with a new optimizer."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step; auto: on MLX's GPUs."""

    def __post_init__(self) -> None:
        at_least = {"batch_size": 1, "epochs": 1, "gradient_accumulation": 1, "keep_last": 1, "log_every": 1}
        zero_or_more = (
            "weight_decay",
            "max_norm",
            "warmup_steps",
            "save_every",
            "save_minutes",
            "eval_every",
            "patience",
        )
        for name, least in {**at_least, **dict.fromkeys(zero_or_more, 0)}.items():
            if not least <= getattr(self, name) < math.inf:  # NaN is not
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least {least}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"--learning-rate {self.learning_rate}: expected a positive number")
        if not 0 <= self.lr_min_ratio <= 1:
            raise InputError(f"--lr-min-ratio {self.lr_min_ratio}: expected a share of the peak, 0 to 1")
        if self.lr_min_ratio and self.schedule == "constant":
            raise InputError(
                f"--lr-min-ratio {self.lr_min_ratio}: does nothing with --schedule constant: give linear or cosine"
            )
        if self.optimizer != "adamw" and self.weight_decay not in (0, type(self).weight_decay):
            raise InputError(
                f"--weight-decay {self.weight_decay}: does nothing with --optimizer {self.optimizer}: give adamw"
            )
        seeds.check(self.seed, "--seed")
        self.optim()  # which refuses what it cannot do

    def optim(self) -> OptimSpec:
        return OptimSpec(
            self.optimizer,
            weight_decay=self.weight_decay,
            max_norm=self.max_norm or None,
            ema_decay=self.ema_decay or None,
        )


def check_precision(precision: Precision, backend: Backend) -> None:
    """Raise InputError, before anything is read, where the backend's steps compute in none such."""
    if precision != "float32" and backend.name == "mlx":
        raise InputError(f"--precision {precision}: only for --backend torch; on MLX use float32")
