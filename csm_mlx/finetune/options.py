"""The options of CSM's fine-tuning commands."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends.base import LoRASpec
from backends.errors import InputError
from backends.training.options import TrainOptions

FRAME_MS = 80  # Mimi's
TARGETS = ("attn", "codebook0_head", "projection")
EMBEDDINGS = ("text_embeddings", "audio_embeddings")


@dataclass(frozen=True, kw_only=True)
class CSMOptions(TrainOptions):
    """What LoRA and full fine-tuning share."""

    may_change = TrainOptions.may_change | {"data_path", "val_path", "sample_text", "sample_speaker", "sample_ms"}

    data_path: Path
    """Dataset JSON: a list of {"text", "audio_path", "speaker_id"}, or of lists of them (conversations)."""
    model: str = "1b"
    """The base model: 1b, tiny (random, for trying things out), a directory or a Hub id."""
    pretrained_path: Path | None = None
    """A weights file for that model, in any of CSM's layouts, instead of the published ones."""
    codec: str | None = None
    """Mimi: a file, a directory or a Hub id; default: the one beside the model, else kyutai's."""
    tokenizer: str | None = None
    """Text tokenizer: a tokenizer.json, a directory or a Hub id; default: the one beside the model, or Llama 3.2's."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; default: the file's where they stay frozen, float32 where they train."""
    max_samples: int | None = None
    """Use only so many rows of the dataset."""
    max_audio_length_ms: float | None = None
    """Drop the oldest turns of a conversation until its audio is at most so long; a longer single clip is left out."""
    val_path: Path | None = None
    """A dataset JSON to validate on."""
    val_split: float = 0.0
    """Or: validate on this share of the dataset's rows, drawn with the seed."""
    sample_text: str | None = None
    """What to say at each evaluation; default: the dataset's first text; "" makes no samples."""
    sample_speaker: int | None = None
    """Who says it; default: the dataset's first speaker."""
    sample_ms: float = 5000.0
    """Longest sample."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    first_codebook_weight: float = 1.0
    """Weight of the backbone's loss (codebook 0) against the depth decoder's."""
    mask_speakers: tuple[int, ...] = ()
    """Speakers whose audio is context only, not a target."""
    depth_fraction: float = 1 / 16
    """Share of an update's frames that train the depth decoder, but at least 32; 1.0: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.depth_fraction <= 1:
            raise InputError(f"--depth-fraction {self.depth_fraction}: expected 0 < fraction <= 1")
        if not 0 <= self.val_split < 1:
            raise InputError(f"--val-split {self.val_split}: expected 0 <= share < 1")
        if self.val_path is not None and self.val_split:
            raise InputError("--val-path and --val-split exclude each other: give one of them")
        if self.patience and self.val_path is None and not self.val_split:
            raise InputError("--patience needs a validation set: give --val-path or --val-split")
        if not 0 <= self.first_codebook_weight < math.inf:
            raise InputError(f"--first-codebook-weight {self.first_codebook_weight}: expected 0 or more")
        if self.max_samples is not None and self.max_samples < 1:
            raise InputError(f"--max-samples {self.max_samples}: expected at least 1")
        if self.max_audio_length_ms is not None and not 0 < self.max_audio_length_ms < math.inf:
            raise InputError(f"--max-audio-length-ms {self.max_audio_length_ms}: expected a positive number")
        if not FRAME_MS <= self.sample_ms < math.inf:
            raise InputError(f"--sample-ms {self.sample_ms}: expected at least {FRAME_MS}, one frame")
        if self.sample_speaker is not None and self.sample_speaker < 0:
            raise InputError(f"--sample-speaker {self.sample_speaker}: expected a whole number from 0")
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Options that would do nothing are an error: who gives them expects something."""
        if self.sample_speaker is not None and self.sample_text == "":
            raise InputError(
                f"--sample-speaker {self.sample_speaker}: does nothing, because --sample-text is empty: leave one out"
            )


@dataclass(frozen=True, kw_only=True)
class LoRAOptions(CSMOptions):
    """Fine-tune CSM with low-rank adapters."""

    output_dir: Path = Path("lora_finetune_output")
    """The run directory: lora_ckpt_*.safetensors, checkpoints, metrics.csv, samples and report.html."""
    learning_rate: float = 5e-4
    """Peak learning rate."""
    lora_rank: int = 8
    """Rank of the adapters."""
    lora_alpha: float = 16.0
    """The adapters' output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the adapters' input."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead."""
    use_dora: bool = False
    """Also learn the magnitude of each output row (DoRA)."""
    target_modules: tuple[str, ...] = TARGETS
    """Modules to adapt: attn, mlp, or any part of a module's name."""
    train_embeddings: bool = False
    """Train the text and audio embeddings whole, not through adapters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        LoRASpec(self.lora_rank, self.lora_alpha, self.dropout)  # checks them before a model is loaded
        clash = [part for part in self.target_modules if any(part in name for name in EMBEDDINGS)]
        if self.train_embeddings and clash:
            raise InputError(
                f"--train-embeddings trains the embeddings whole, --target-modules {clash[0]} puts LoRA on them: "
                "the two exclude each other, leave one out"
            )


@dataclass(frozen=True, kw_only=True)
class FullOptions(CSMOptions):
    """Fine-tune all of CSM's weights."""

    output_dir: Path = Path("finetune_output")
    """The run directory: ckpt_*.safetensors, checkpoints, metrics.csv, samples and report.html."""
    learning_rate: float = 1e-5
    """Peak learning rate."""
    freeze_backbone: bool = False
    """Do not train the backbone. With both frozen, the embeddings, the projection and the heads still train."""
    freeze_decoder: bool = False
    """Do not train the depth decoder. With both frozen, the embeddings, the projection and the heads still train."""
