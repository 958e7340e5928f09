"""The options of commands that train a codec: those of all of them (`CodecRunOptions`), and Mimi's and EnCodec's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from backends.base import Backend, Precision
from backends.data import segments
from backends.errors import InputError
from backends.training import launch
from backends.training.adversary import AdversaryPlan
from backends.training.codec_loss import CodecLoss
from backends.training.curriculum import Stage, check_lengths
from backends.training.options import TrainOptions, check_precision
from backends.training.rvq_codec import Quantising
from backends.training.schedule import Schedule
from backends.training.settings import Settings

FROM_SCRATCH = 500  # updates without quantisation, by default, where a codec starts from random weights


@dataclass(frozen=True, kw_only=True)
class CodecRunOptions:
    """What every command that trains a codec on a folder of recordings has.

    `may_change` are those that may be changed between a run and its continuation.
    """

    may_change: ClassVar[frozenset[str]] = frozenset([
        "output_dir", "config", "backend", "device", "ddp", "nproc", "resume", "num_workers", "keep_last", "log_every",
        "samples", "train_data", "val_data",
    ])  # fmt: skip

    train_data: Path
    """Folder of recordings to train on; folders below it count too."""
    val_data: Path
    """Folder of recordings to validate on: at most 512 segments of it, always the same."""
    config: Path | None = None
    """A JSON file of options under these names; flags override it."""
    backend: Literal["mlx", "torch", "auto"] = "auto"
    """The framework; auto: MLX where it has a GPU, else PyTorch where that has CUDA, else MLX."""
    device: str | None = None
    """PyTorch device: 0 or cuda:0, cpu."""
    ddp: bool = False
    """Train on several devices: starts a process for each, or joins those a launcher started."""
    nproc: int = 0
    """Processes of --ddp; 0: one per device."""
    resume: bool = True
    """Continue from the newest checkpoint in the run directory; --no-resume starts over."""
    micro_batch_seconds: float = 0.0
    """Compute at most so many seconds of audio at once and accumulate; the update stays the same. 0: whole batches."""
    segment_length: float = 2.0
    """Seconds of a segment where there is no curriculum."""
    curriculum: str = ""
    """JSON list of stages {"epochs": [first, last], "length": seconds, "batch_multiplier": m}, epochs from 1."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    precision: Precision = "float32"
    """bfloat16: autocast, for PyTorch on a GPU only."""
    l1_weight: float = 1.0
    """Weight of the mean absolute difference of the samples."""
    stft_weight: float = 1.0
    """Weight of the mean absolute difference of STFT magnitudes, averaged over n_ffts."""
    n_ffts: tuple[int, ...] = (512, 1024, 2048)
    """Sizes of the STFT, with a Hann window."""
    mel_weight: float = 1.0
    """Weight of the log-mel difference, summed over seven windows from 32 to 2048 samples; 0: off."""
    commitment_weight: float = 0.25
    """Weight of the latents' mean squared distance to their entries, where encoder or quantiser train."""
    adversarial: bool = False
    """Train against DAC's discriminators too; about nine times the work, more with a small codec."""
    adversarial_learning_rate: float = 1e-4
    """The discriminators' peak learning rate; it follows the codec's schedule."""
    log_every: int = 10
    """Updates per row of metrics.csv, which holds their mean."""
    keep_last: int = 2
    """Resume checkpoints to keep."""
    samples: int = 2
    """Reconstructions in the report."""
    num_workers: int = 4
    """Threads that read recordings."""

    def __post_init__(self) -> None:
        self.expect_more_than_0("segment_length", "num_workers")
        terms = ("l1_weight", "stft_weight", "mel_weight", "commitment_weight")
        self.expect_0_or_more(*terms, "micro_batch_seconds", "samples")
        if not self.n_ffts or min(self.n_ffts) < 16 or len(set(self.n_ffts)) < len(self.n_ffts):
            raise InputError(f"--n-ffts {self.n_ffts}: expected sizes of at least 16, each once")
        if not self.l1_weight + self.stft_weight + self.mel_weight:
            raise InputError("--l1-weight, --stft-weight, --mel-weight: all are 0; expected a weight for one of them")
        launch.check(self)
        if self.curriculum.replace(" ", "") not in ("", "[]"):
            self.expect_unused("--curriculum has the lengths of its stages", "segment_length")
        if not self.adversarial:
            self.expect_unused("there is no adversary without --adversarial", "adversarial_learning_rate")
        AdversaryPlan(learning_rate=self.adversarial_learning_rate)

    def expect_more_than_0(self, *names: str) -> None:
        """Raise InputError where one of these options is not."""
        self._expect(names, lambda value: value > 0, "more than 0")

    def expect_0_or_more(self, *names: str) -> None:
        """Raise InputError where one of these options is not."""
        self._expect(names, lambda value: value >= 0, "0 or more")

    def expect_share(self, *names: str) -> None:
        """Raise InputError where one of these options is not from 0 to 1."""
        self._expect(names, lambda value: 0 <= value <= 1, "a number from 0 to 1")

    def expect_unused(self, reason: str, *names: str) -> None:
        """Raise InputError where one of these options, which would do nothing, is another than its default."""
        for name in names:
            if getattr(self, name) != getattr(type(self), name):
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: {reason}; leave it out")

    def _expect(self, names: Sequence[str], holds: Callable[[float], bool], expected: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not (math.isfinite(value) and holds(value)):
                raise InputError(f"--{name.replace('_', '-')} {value}: expected {expected}")

    def settings(self) -> Settings:
        """For `backends.training.loop`."""
        return Settings.of(self)

    def training(self) -> TrainOptions:
        """The same for `backends.training.loop`."""
        raise NotImplementedError

    def folders(self) -> dict[str, Path]:
        """The folders of recordings by option."""
        return {"--train-data": self.train_data, "--val-data": self.val_data}

    def recordings(self) -> tuple[list[Path], list[Path]]:
        """The files to train and to validate on.

        Raises InputError where the run would be trained on its own samples, or on what it validates on.
        """
        folders = self.folders()
        segments.check_outside(self.training().output_dir, folders)
        trained, held_out = (segments.find(folder, option) for option, folder in folders.items())
        segments.check_held_out(trained, held_out, folders, "folders below it count: give folders that are apart")
        return trained, held_out

    def adversary(self) -> AdversaryPlan | None:
        """The adversarial stage, if there is one."""
        return AdversaryPlan(learning_rate=self.adversarial_learning_rate) if self.adversarial else None

    def check_lengths(self, made: Sequence[Stage], rate_hz: int) -> None:
        """Raise InputError where a stage is too short for the spectra of the loss."""
        windows = {f"--n-ffts {max(self.n_ffts)}": max(self.n_ffts)}
        if self.mel_weight:
            windows["--mel-weight, whose largest window is 2048,"] = 2048
        plan = self.adversary()
        check_lengths(made, rate_hz, windows, adversary=plan.spec.least_samples if plan else 0)

    def check_precision(self, backend: Backend) -> None:
        """Raise InputError where there is none such, or its gradients would be wrong.

        oneDNN's bfloat16 gradient of a transposed convolution to its input is wrong for some shapes on CPUs with AMX.
        """
        check_precision(self.precision, backend)
        if self.precision != "float32" and not backend.has_gpu:
            raise InputError(
                "--precision bfloat16: PyTorch's CPU kernels for transposed convolutions give wrong gradients in "
                "bfloat16; use float32, or a GPU"
            )


@dataclass(frozen=True, kw_only=True)
class CodecOptions(CodecRunOptions):
    """How to train a codec with averaged codebooks (Mimi, EnCodec) on a folder of recordings."""

    may_change = CodecRunOptions.may_change | {"epochs", "save_every", "save_minutes", "eval_every", "patience"}

    output_dir: Path
    """The run directory: checkpoints, metrics.csv, samples, report.html and best/."""
    epochs: int = 100
    """Passes over the recordings."""
    batch_size: int = 16
    """Segments per batch and process; a stage of the curriculum multiplies it."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    schedule: Schedule = "constant"
    """The learning rate after warm-up; linear and cosine fall until the last update."""
    lr_min_ratio: float = 0.0
    """The share of the peak that linear and cosine fall to."""
    max_norm: float = 1.0
    """Clip gradients to this global norm; 0 turns clipping off."""
    decoder_only: bool = False
    """Train the decoder alone: codes stay what they are, and models of them stay valid."""
    mel_clamp: float = 1e-2
    """Least mel magnitude; much lower, and silence rules the loss."""
    quantize_after: int | None = None
    """Updates without quantisation, then k-means starts the codebooks; by default 500 from random weights, else 0."""
    quantizer_dropout: float = 0.5
    """Probability that a segment uses only some of the codebooks."""
    bypass: float = 0.5
    """Probability that a segment is not quantised."""
    codebook_decay: float = 0.99
    """Decay of the codebooks' averages, per update."""
    revive_below: float = 0.1
    """Replace entries used less than this share of their codebook's mean; 0: never."""
    save_every: int = 500
    """Save a checkpoint every so many updates; 0 turns it off."""
    save_minutes: float = 10.0
    """Also save when so many minutes have passed since the last checkpoint; 0 turns it off."""
    eval_every: int = 0
    """Validate and make audio samples every so many updates; 0: after each epoch."""
    patience: int = 0
    """Stop after so many evaluations without a better validation loss; 0 turns it off."""
    seed: int = 0
    """Seed of everything random."""
    codec: str | None = None
    """Where to start: a weights file, a directory or a Hub id."""
    scale: str | None = None
    """Or start from random weights at this size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_more_than_0("mel_clamp")
        self.expect_share("quantizer_dropout", "bypass", "codebook_decay", "revive_below")
        if self.quantize_after is not None:
            self.expect_0_or_more("quantize_after")
        if self.decoder_only and self.quantize_after:
            raise InputError(
                f"--quantize-after {self.quantize_after} restarts the codebooks, which --decoder-only keeps: drop one"
            )
        self.training()
        if (self.codec is None) == (self.scale is None):
            raise InputError("--codec or --scale: expected one of them, weights to start from or a size to start at")
        if not self.mel_weight:
            self.expect_unused("there is no mel term with --mel-weight 0", "mel_clamp")
        if self.decoder_only:
            reason = "with --decoder-only the quantiser stays as it is"
            self.expect_unused(reason, "commitment_weight", "bypass", "codebook_decay", "revive_below")
        if self.decoder_only and self.codec is None:
            raise InputError("--decoder-only: the codes of random weights are not worth keeping; give --codec")

    def training(self) -> TrainOptions:
        """The same for `backends.training.loop`."""
        same = (
            "output_dir", "batch_size", "epochs", "learning_rate", "schedule", "lr_min_ratio", "warmup_steps",
            "weight_decay", "max_norm", "save_every", "save_minutes", "keep_last", "eval_every", "patience",
            "log_every", "seed", "resume",
        )  # fmt: skip
        return TrainOptions(**{name: getattr(self, name) for name in same})

    def quantising(self, *, from_scratch: bool) -> Quantising:
        """How the quantiser takes part."""
        default = FROM_SCRATCH if from_scratch and not self.decoder_only else 0
        return Quantising(
            start=default if self.quantize_after is None else self.quantize_after,
            dropout=self.quantizer_dropout,
            bypass=self.bypass,
            decay=self.codebook_decay,
            revive_below=self.revive_below,
        )

    def loss(self, *, rate_hz: int, frame_samples: int, code_width: int) -> CodecLoss:
        """The loss for a codec of these sizes."""
        same = ("l1_weight", "stft_weight", "mel_weight", "mel_clamp", "commitment_weight", "decoder_only")
        return CodecLoss(
            **{name: getattr(self, name) for name in same},
            n_ffts=tuple(self.n_ffts),
            rate_hz=rate_hz,
            frame_samples=frame_samples,
            code_width=code_width,
        )
