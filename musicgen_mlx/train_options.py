"""The options of MusicGen's training command."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from backends.base import OptimSpec
from backends.data.text import check_text
from backends.errors import InputError
from backends.training import launch
from backends.training.options import TrainOptions

BETAS = (0.9, 0.95)  # audiocraft's
LONGEST_SAMPLE_S = 600
WIDEST = 1 << 16
Scale = Literal["micro", "xsmall", "base", "small", "medium", "large"]


@dataclass(frozen=True, kw_only=True)
class MusicGenOptions(TrainOptions):
    """Train a MusicGen from random weights, or fine-tune one, on a folder of music."""

    may_change = TrainOptions.may_change | {  # of the recordings their codes are compared
        "data", "val_data", "device", "ddp", "nproc", "sample_duration", "sample_prompt",
    }  # fmt: skip

    data: Path
    """Folder of recordings, any rate; folders below it count too. name.json beside name.wav may describe it."""
    val_data: Path | None = None
    """Folder of recordings to validate on."""
    val_split: float = 0.0
    """Or: validate on this share of the recordings, chosen by their names."""
    output_dir: Path = Path("musicgen_output")
    """The run directory: best_model/ and last_model/, or lora_ckpt_*.safetensors; metrics.csv, samples, report.html."""
    model: str | None = None
    """Fine-tune this model: a directory, a Hub id, a key such as small, or tiny (random). Without it: from scratch."""
    scale: Scale | None = None
    """The size of a model from scratch; default: micro."""
    dim: int | None = None
    """Width of the layers, instead of the scale's."""
    heads: int | None = None
    """Attention heads, instead of the scale's."""
    layers: int | None = None
    """Layers, instead of the scale's."""
    conditioner: Literal["none", "text"] | None = None
    """What a model from scratch listens to, by default nothing; a model that is fine-tuned keeps what it has."""
    codec: str | None = None
    """EnCodec: a directory, a file or a Hub id; tiny is a random one. Default: the model's, else Meta's 32 kHz."""
    text_encoder: str | None = None
    """T5 with tokenizer.json: a directory or a Hub id; tiny is a random one. Default: the model's, else t5-base."""
    backend: Literal["mlx", "torch", "auto"] = "auto"
    """The framework; auto: MLX where it has a GPU, else PyTorch where that has CUDA, else MLX."""
    device: str | None = None
    """PyTorch device: 0 or cuda:0, cpu."""
    ddp: bool = False
    """Train on several devices: starts a process for each, or joins those a launcher started."""
    nproc: int = 0
    """Processes of --ddp; 0: one per device."""
    batch_size: int = 3
    """Segments per batch; an update takes a batch of each process."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    segment_duration: float = 30.0
    """Longest segment in seconds; it is taken from a random place of a recording."""
    segments_per_recording: int = 1
    """Segments that each recording gives in an epoch: more where recordings are long or few."""
    condition_dropout: float = 0.3
    """Probability that a segment's conditions are dropped, so that guidance works."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast, PyTorch only."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora_rank: int = 0
    """Train adapters of this rank on --target-modules instead of all weights; 0: all weights."""
    lora_alpha: float = 16.0
    """The adapters' output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the adapters' input."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead."""
    use_dora: bool = False
    """Weight-decomposed adapters (DoRA)."""
    target_modules: tuple[str, ...] = ("attn",)
    """Modules to adapt: attn, mlp, heads, embeddings, or any part of a module's name, such as q_proj."""
    sample_duration: float = 5.0
    """Seconds of the audio sample at each evaluation; 0 makes none."""
    sample_prompt: str | None = None
    """What the sample is to be; default: the first description."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self, "val_split", 0, 1)
        _check_range(self, "condition_dropout", 0, 1, closed=True)
        for name in ("segment_duration", "lora_alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a positive number")
        for name in ("dim", "heads", "layers", "segments_per_recording"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")
        if self.lora_rank < 0:
            raise InputError(f"--lora-rank {self.lora_rank}: expected 0 or more")
        _check_range(self, "sample_duration", 0, LONGEST_SAMPLE_S, closed=True)
        _check_prompt(self.sample_prompt or "")
        self._exclude()

    def _exclude(self) -> None:
        """Options that do not go together are an error, not a choice of ours."""
        launch.check(self)
        if self.val_data is not None and self.val_split:
            raise InputError("--val-data and --val-split exclude each other: give one of them")
        if self.patience and self.val_data is None and not self.val_split:
            raise InputError("--patience needs a validation set: give --val-data or --val-split")
        for name in ("scale", "dim", "heads", "layers", "conditioner"):
            if self.model is not None and self.given(name):
                raise InputError(f"--{name} is for a model from scratch: it excludes --model")
        for name in ("lora_alpha", "dropout", "use_rslora", "use_dora", "target_modules"):
            if not self.lora_rank and self.given(name):
                raise InputError(f"--{name.replace('_', '-')} is for adapters: give --lora-rank too")
        if self.model is None and self.text_encoder is not None and self.conditioner != "text":
            raise InputError("--text-encoder needs --conditioner text")
        if self.model is None and self.given("condition_dropout") and self.conditioner != "text":
            raise InputError("--condition-dropout needs --conditioner text")
        if self.model is None and self.lora_rank:
            raise InputError("--lora-rank needs --model: adapters on random weights learn nothing")
        if self.sample_prompt is not None and not self.sample_duration:
            raise InputError("--sample-prompt: --sample-duration 0 makes no samples: leave one of them out")
        if self.resume_from is not None and self.resume_from.is_file() and not self.lora_rank:
            raise InputError(f"--resume-from {self.resume_from}: to start from a model's weights, give it as --model")

    def folders(self) -> dict[str, Path]:
        """The folders of recordings by option."""
        return {"--data": self.data} | ({} if self.val_data is None else {"--val-data": self.val_data})

    def given(self, name: str) -> bool:
        """Whether an option is another than its default."""
        return getattr(self, name) != getattr(type(self), name)

    def optim(self) -> OptimSpec:
        return replace(super().optim(), betas=BETAS)


def _check_prompt(prompt: str) -> None:
    try:
        check_text(prompt)
    except InputError as error:
        raise InputError(f"--sample-prompt: {error}") from error


def _check_range(options: MusicGenOptions, name: str, low: float, high: float, *, closed: bool = False) -> None:
    value = getattr(options, name)
    if not low <= value or value > high or (value == high and not closed):
        below = "" if closed else "less than "
        raise InputError(f"--{name.replace('_', '-')} {value}: expected {low} to {below}{high}")
