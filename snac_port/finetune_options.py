"""The options of SNAC's fine-tuning: the seed's configuration keys, and ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends.base import Precision, Window
from backends.errors import InputError
from backends.training.adversary import AdversaryPlan
from backends.training.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Fine-tune SNAC on a folder of recordings."""

    train_data: Path
    """Folder of recordings to train on; folders below it count too."""
    val_data: Path
    """Folder of recordings to validate on."""
    config: Path | None = None
    """A JSON file of options under these names; flags override it."""
    experiment_name: str = "snac"
    """Name of the run, for the report."""
    description: str = ""
    """A line about the run, for the report."""
    pretrained_model: str = "hubertsiuzdak/snac_24khz"
    """Where to start: a directory, weights file or Hub id, or tiny (random weights, 8 kHz)."""
    output_dir: Path = Path("checkpoints/snac")
    """The run directory."""
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
    num_epochs: int = 10
    """Passes over the recordings."""
    batch_size: int = 48
    """Segments per batch and process; a stage of the curriculum multiplies it."""
    eval_batch_size: int = 64
    """Segments per batch of validation."""
    micro_batch_seconds: float = 0.0
    """Compute at most so many seconds of audio at once and accumulate; the update stays the same. 0: whole batches."""
    segment_length: float = 1.0
    """Seconds of a segment where there is no curriculum."""
    curriculum: str = ""
    """JSON list of stages {"epochs": [first, last], "length": seconds, "batch_multiplier": m}, epochs from 1."""
    learning_rate: float = 15e-6
    """Peak learning rate; it falls along half a cosine."""
    lr_min_ratio: float = 0.1
    """The share of the peak that it falls to."""
    warmup_steps: int = 0
    """Updates over which it rises."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    grad_clip: float = 1.0
    """Clip gradients to this global norm; 0 turns clipping off."""
    ema_decay: float = 0.0
    """Average the weights with this decay for validation, samples and exports; 0: off."""
    precision: Precision = "float32"
    """bfloat16: autocast, PyTorch only."""
    l1_weight: float = 1.0
    """Weight of the mean absolute difference of the samples."""
    stft_weight: float = 1.0
    """Weight of the mean absolute difference of STFT magnitudes, averaged over n_ffts."""
    n_ffts: tuple[int, ...] = (1024, 2048, 4096)
    """Sizes of the STFT."""
    stft_window: Window = "none"
    """none is the seed's rectangular window."""
    mel_weight: float = 0.0
    """Weight of the multi-scale log-mel difference; 0: off."""
    commitment_weight: float = 0.25
    """Weight of the commitment term, where encoder or quantiser train."""
    codebook_weight: float = 1.0
    """Weight of the codebook term, where the quantiser trains."""
    freeze_encoder: bool = True
    """Keep the encoder."""
    freeze_vq: bool = True
    """Keep the quantiser. With both kept, tokens stay what they are and are computed once."""
    quantize_after: int = 0
    """Updates without quantisation, then k-means starts the codebooks: for training from random weights."""
    adversarial: bool = False
    """Train against DAC's discriminators too; many times the work of a small codec."""
    adversarial_learning_rate: float = 1e-4
    """The discriminators' learning rate."""
    num_workers: int = 8
    """Threads that read recordings."""
    save_every: int = 1
    """Write checkpoint_epochN every so many epochs."""
    save_every_batches: int = 5000
    """Save every so many updates; 0: off."""
    save_every_minutes: float = 30.0
    """Also save after so many minutes; 0: off."""
    keep_last: int = 2
    """Resume checkpoints to keep."""
    log_every: int = 10
    """Updates per row of metrics.csv."""
    random_seed: int = 42
    """Seed of everything random."""
    samples: int = 2
    """Reconstructions in the report."""
    export_pt: bool = False
    """Also write upstream's layout (.pt) beside each export; needs PyTorch."""

    def __post_init__(self) -> None:
        if not self.n_ffts or min(self.n_ffts) < 16:
            raise InputError(f"--n-ffts {self.n_ffts}: expected sizes of at least 16")
        for name in ("l1_weight", "stft_weight", "mel_weight", "commitment_weight", "codebook_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 0 or more")
        for name in ("segment_length", "num_workers", "eval_batch_size", "save_every"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected more than 0")

        if self.quantize_after < 0:
            raise InputError(f"--quantize-after {self.quantize_after}: expected 0 or more")
        if self.quantize_after and (self.freeze_encoder or self.freeze_vq or self.ema_decay):
            raise InputError(
                f"--quantize-after {self.quantize_after} is for training everything from random weights: it needs "
                "--no-freeze-encoder and --no-freeze-vq, and no --ema-decay"
            )
        if self.ddp and self.device not in (None, "cpu"):
            raise InputError(f"--device {self.device}: with --ddp each process takes a device of its own: leave it out")
        self.training().optim()
        self.adversary()

    @property
    def decoder_only(self) -> bool:
        return self.freeze_encoder and self.freeze_vq

    def adversary(self) -> AdversaryPlan | None:
        """The adversarial stage, if there is one."""
        return AdversaryPlan(learning_rate=self.adversarial_learning_rate) if self.adversarial else None

    def training(self) -> TrainOptions:
        """The same for `backends.training.loop`."""
        return TrainOptions(
            output_dir=self.output_dir,
            batch_size=self.batch_size,
            epochs=self.num_epochs,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            max_norm=self.grad_clip,
            ema_decay=self.ema_decay,
            warmup_steps=self.warmup_steps,
            schedule="cosine",
            lr_min_ratio=self.lr_min_ratio,
            save_every=self.save_every_batches,
            save_minutes=self.save_every_minutes,
            keep_last=self.keep_last,
            log_every=self.log_every,
            seed=self.random_seed,
            resume=self.resume,
        )
