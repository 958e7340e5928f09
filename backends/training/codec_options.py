"""The options that commands which train a codec with averaged codebooks share (Mimi, EnCodec)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends.errors import InputError
from backends.training.adversary import AdversaryPlan
from backends.training.codec_loss import CodecLoss
from backends.training.options import TrainOptions
from backends.training.rvq_codec import Quantising
from backends.training.schedule import Schedule

FROM_SCRATCH = 500  # updates without quantisation, by default, where a codec starts from random weights


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """How to train a codec on a folder of recordings."""

    train_data: Path
    """Folder of recordings to train on; folders below it count too."""
    val_data: Path
    """Folder of recordings to validate on."""
    output_dir: Path
    """The run directory: checkpoints, metrics.csv, samples, report.html and best/."""
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
    epochs: int = 100
    """Passes over the recordings."""
    batch_size: int = 16
    """Segments per batch and process; a stage of the curriculum multiplies it."""
    segment_length: float = 2.0
    """Seconds of a segment where there is no curriculum."""
    curriculum: str = ""
    """JSON list of stages {"epochs": [first, last], "length": seconds, "batch_multiplier": m}, epochs from 1."""
    micro_batch_seconds: float = 0.0
    """Compute at most so many seconds of audio at once and accumulate; the update stays the same. 0: whole batches."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    schedule: Schedule = "constant"
    """The learning rate after warm-up; linear and cosine fall until the last update."""
    lr_min_ratio: float = 0.0
    """The share of the peak that linear and cosine fall to."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    max_norm: float = 1.0
    """Clip gradients to this global norm; 0 turns clipping off."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast, PyTorch only."""
    decoder_only: bool = False
    """Train the decoder alone: codes stay what they are, and models of them stay valid."""
    l1_weight: float = 1.0
    """Weight of the mean absolute difference of the samples."""
    stft_weight: float = 1.0
    """Weight of the mean absolute difference of STFT magnitudes, averaged over n_ffts."""
    n_ffts: tuple[int, ...] = (512, 1024, 2048)
    """Sizes of the STFT, with a Hann window."""
    mel_weight: float = 1.0
    """Weight of the log-mel difference, summed over seven windows from 32 to 2048 samples; 0: off."""
    mel_clamp: float = 1e-2
    """Least mel magnitude; much lower, and silence rules the loss."""
    commitment_weight: float = 0.25
    """Weight of the latents' mean squared distance to their entries."""
    adversarial: bool = False
    """Train against DAC's discriminators too; about nine times the work."""
    adversarial_learning_rate: float = 1e-4
    """The discriminators' peak learning rate; it follows the codec's schedule."""
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
    keep_last: int = 2
    """Resume checkpoints to keep."""
    eval_every: int = 0
    """Validate and make audio samples every so many updates; 0: after each epoch."""
    patience: int = 0
    """Stop after so many evaluations without a better validation loss; 0 turns it off."""
    log_every: int = 10
    """Updates per row of metrics.csv, which holds their mean."""
    samples: int = 2
    """Reconstructions in the report."""
    num_workers: int = 4
    """Threads that read recordings."""
    seed: int = 0
    """Seed of everything random."""
    resume: bool = True
    """Continue from the newest checkpoint in the run directory; --no-resume starts over."""

    def __post_init__(self) -> None:
        for name in ("segment_length", "num_workers", "mel_clamp"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected more than 0")
        for name in ("l1_weight", "stft_weight", "mel_weight", "commitment_weight", "micro_batch_seconds", "samples"):
            if not getattr(self, name) >= 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 0 or more")
        for name in ("quantizer_dropout", "bypass", "codebook_decay", "revive_below"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number from 0 to 1")
        if not self.n_ffts or min(self.n_ffts) < 16:
            raise InputError(f"--n-ffts {self.n_ffts}: expected sizes of at least 16")
        if self.quantize_after is not None and self.quantize_after < 0:
            raise InputError(f"--quantize-after {self.quantize_after}: expected 0 or more")
        if self.decoder_only and self.quantize_after:
            raise InputError(
                f"--quantize-after {self.quantize_after} restarts the codebooks, which --decoder-only keeps: drop one"
            )
        self.training()
        AdversaryPlan(learning_rate=self.adversarial_learning_rate)

    def training(self) -> TrainOptions:
        """The same for `backends.training.loop`."""
        same = (
            "output_dir", "batch_size", "epochs", "learning_rate", "schedule", "lr_min_ratio", "warmup_steps",
            "weight_decay", "max_norm", "save_every", "save_minutes", "keep_last", "eval_every", "patience",
            "log_every", "seed", "resume",
        )  # fmt: skip
        return TrainOptions(**{name: getattr(self, name) for name in same})

    def adversary(self) -> AdversaryPlan | None:
        """The adversarial stage, if there is one."""
        return AdversaryPlan(learning_rate=self.adversarial_learning_rate) if self.adversarial else None

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
        return CodecLoss(
            l1_weight=self.l1_weight,
            stft_weight=self.stft_weight,
            n_ffts=tuple(self.n_ffts),
            mel_weight=self.mel_weight,
            mel_clamp=self.mel_clamp,
            commitment_weight=self.commitment_weight,
            rate_hz=rate_hz,
            frame_samples=frame_samples,
            code_width=code_width,
            decoder_only=self.decoder_only,
        )


# What may be changed between a run and its continuation.
MAY_DIFFER = frozenset([
    "output_dir", "config", "backend", "device", "ddp", "nproc", "resume", "num_workers", "save_every", "save_minutes",
    "keep_last", "eval_every", "patience", "log_every", "samples",
])  # fmt: skip
