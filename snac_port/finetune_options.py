"""The options of SNAC's fine-tuning: the seed's configuration keys, and ours."""

from dataclasses import dataclass
from pathlib import Path

from backends import seeds
from backends.base import Window
from backends.errors import InputError
from backends.training.codec_options import CodecRunOptions
from backends.training.options import TrainOptions
from backends.training.settings import Settings


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(CodecRunOptions):
    """Fine-tune SNAC on a folder of recordings."""

    may_change = CodecRunOptions.may_change | {
        "experiment_name", "description", "eval_batch_size", "save_every", "save_every_batches", "save_every_minutes",
        "export_pt",
    }  # fmt: skip

    experiment_name: str = "snac"
    """Name of the run, for the report."""
    description: str = ""
    """A line about the run, for the report."""
    pretrained_model: str = "hubertsiuzdak/snac_24khz"
    """Where to start: a directory, weights file or Hub id, or tiny (random weights, 8 kHz)."""
    output_dir: Path = Path("checkpoints/snac")
    """The run directory."""
    num_epochs: int = 10
    """Passes over the recordings."""
    batch_size: int = 48
    """Segments per batch and process; a stage of the curriculum multiplies it."""
    eval_batch_size: int = 64
    """Segments per batch of validation."""
    segment_length: float = 1.0
    """Seconds of a segment where there is no curriculum."""
    learning_rate: float = 15e-6
    """Peak learning rate; it falls along half a cosine."""
    lr_min_ratio: float = 0.1
    """The share of the peak that it falls to."""
    grad_clip: float = 1.0
    """Clip gradients to this global norm; 0 turns clipping off."""
    ema_decay: float = 0.0
    """Average the weights with this decay for validation, samples and exports; 0: off."""
    n_ffts: tuple[int, ...] = (1024, 2048, 4096)
    """Sizes of the STFT."""
    stft_window: Window = "none"
    """none is the seed's rectangular window."""
    mel_weight: float = 0.0
    """Weight of the multi-scale log-mel difference; 0: off."""
    codebook_weight: float = 1.0
    """Weight of the codebook term, where the quantiser trains."""
    freeze_encoder: bool = True
    """Keep the encoder."""
    freeze_vq: bool = True
    """Keep the quantiser. With both kept, tokens stay what they are and are computed once."""
    quantize_after: int = 0
    """Updates without quantisation, then k-means starts the codebooks: for training from random weights."""
    num_workers: int = 8
    """Threads that read recordings."""
    save_every: int = 1
    """Write checkpoint_epochN every so many epochs."""
    save_every_batches: int = 5000
    """Save every so many updates; 0: off."""
    save_every_minutes: float = 30.0
    """Also save after so many minutes; 0: off."""
    random_seed: int = 42
    """Seed of everything random."""
    export_pt: bool = False
    """Also write upstream's layout (.pt) beside each export; needs PyTorch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        named_otherwise = ("grad_clip", "save_every_batches", "save_every_minutes")  # in the loop's own options
        self.expect_0_or_more("codebook_weight", "quantize_after", *named_otherwise)
        self.expect_more_than_0("eval_batch_size", "save_every", "num_epochs")
        seeds.check(self.random_seed, "--random-seed")
        if self.quantize_after and (self.freeze_encoder or self.freeze_vq or self.ema_decay):
            raise InputError(
                f"--quantize-after {self.quantize_after} is for training everything from random weights: it needs "
                "--no-freeze-encoder and --no-freeze-vq, and no --ema-decay"
            )
        if self.decoder_only:
            reason = "without --no-freeze-encoder or --no-freeze-vq the quantiser has no terms"
            self.expect_unused(reason, "commitment_weight")
        if self.freeze_vq:
            self.expect_unused("the codebooks do not train without --no-freeze-vq", "codebook_weight")
        self.training()  # which refuses what the loop cannot do

    @property
    def decoder_only(self) -> bool:
        return self.freeze_encoder and self.freeze_vq

    def settings(self) -> Settings:
        return Settings.of(self, schedule="cosine")

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
