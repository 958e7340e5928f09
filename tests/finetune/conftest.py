"""A small dataset of real recordings and short runs on the tiny model."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from backends import cli
from csm_mlx.finetune import finetune, finetune_lora
from csm_mlx.finetune.options import FullOptions, LoRAOptions

RECORDINGS = Path(__file__).parents[2] / "examples" / "fsdd_george" / "train"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Eight clips, two speaker ids."""
    return _manifest(tmp_path_factory.mktemp("data") / "dataset.json", range(8))


@pytest.fixture(scope="session")
def held_out(tmp_path_factory) -> Path:
    """Two others."""
    return _manifest(tmp_path_factory.mktemp("data") / "val.json", (8, 9))


def _manifest(path: Path, digits: Iterable[int]) -> Path:
    rows = [
        {"text": WORDS[digit], "audio_path": str(RECORDINGS / f"{digit}_george_5.wav"), "speaker_id": digit % 2}
        for digit in digits
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def flags(dataset: Path, output: Path, *extra: object) -> list[str]:
    base = ["--model", "tiny", "--data-path", dataset, "--output-dir", output, "--sample-text", "", "--epochs", 1]
    return [str(flag) for flag in [*base, *extra]]


@pytest.fixture
def lora(dataset, tmp_path):
    """Run finetune_lora with extra flags; returns the run directory."""

    def run(*extra: object, output: Path | None = None, data: Path | None = None) -> Path:
        output = output or tmp_path / "run"
        cli.run(finetune_lora.main, LoRAOptions, flags(data or dataset, output, *extra))
        return output

    return run


@pytest.fixture
def full(dataset, tmp_path):
    """Run finetune with extra flags; returns the run directory."""

    def run(*extra: object, output: Path | None = None) -> Path:
        output = output or tmp_path / "run"
        cli.run(finetune.main, FullOptions, flags(dataset, output, *extra))
        return output

    return run
