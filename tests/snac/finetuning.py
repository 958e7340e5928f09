"""What the tests of SNAC's fine-tuning share: a narrow codec on disk, and runs of the command on real recordings."""

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from backends import cli
from snac_port import finetune, load
from snac_port.config import SNACConfig
from snac_port.finetune_options import FinetuneOptions
from snac_port.tiny import draw

RECORDINGS = Path(__file__).parents[2] / "examples" / "fsdd_george"
CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = [{"epochs": [1, 1], "length": 0.25, "batch_multiplier": 2}, {"epochs": [2, 2], "length": 0.5}]
NARROW = SNACConfig(
    sampling_rate=8000, encoder_dim=4, encoder_rates=(2, 4, 8), decoder_dim=32, decoder_rates=(8, 4, 2),
    codebook_size=16,
)  # fmt: skip


def narrow(directory: Path) -> Path:
    """A checkpoint of random weights."""
    load.save(directory / "model.safetensors", draw(NARROW), NARROW)
    return directory


@cache
def recordings() -> Path:
    """Some of the recordings: 18 to train on, 6 to validate on."""
    folder = Path(tempfile.mkdtemp(prefix="audiosmith-"))
    for part, takes in (("train", (5, 6)), ("val", (0,))):
        (folder / part).mkdir()
        found = [path for take in takes for path in sorted((RECORDINGS / part).glob(f"*_{take}.wav"))]
        for path in found[: 18 if part == "train" else 6]:
            (folder / part / path.name).symlink_to(path)
    return folder


def flags(model: Path, output: Path, backend: str, *extra: object) -> list[str]:
    base = [
        "--pretrained_model", model, "--train_data", recordings() / "train", "--val_data", recordings() / "val",
        "--output_dir", output, "--backend", backend, "--curriculum", json.dumps(STAGES), "--num_epochs", 2,
        "--batch_size", 4, "--learning_rate", 3e-3, "--log_every", 1, "--num_workers", 2,
        "--save_every_batches", 0, "--samples", 1,
    ]  # fmt: skip
    windows = () if "--n_ffts" in extra else ("--n_ffts", 64, 128)
    return [str(flag) for flag in [*base, *windows, *extra]]


def run(model: Path, output: Path, backend: str, *extra: object) -> Path:
    cli.run(finetune.main, FinetuneOptions, flags(model, output, backend, *extra))
    return output


def weights(directory: Path) -> dict[str, np.ndarray]:
    """Tensors of an export, in our layout."""
    return dict(load.checkpoint(directory).ours)
