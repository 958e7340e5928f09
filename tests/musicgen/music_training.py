"""What the tests of MusicGen's training share: a folder of loops, a task without a codec, and runs of the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from backends import cli, get
from musicgen_mlx import train
from musicgen_mlx.config import MusicGenConfig, musicgen_tiny
from musicgen_mlx.dataset import Clip
from musicgen_mlx.task import MusicGenTask, Plan
from musicgen_mlx.train_options import MusicGenOptions

RATE_HZ = 32_000


def loops(folder: Path, count: int = 6, seconds: float = 2.0, *, described: bool = True) -> Path:
    """Loops of a few tones at several rates, one of them stereo."""
    folder.mkdir(parents=True)
    for number in range(count):
        rate = (RATE_HZ, 44_100)[number % 2]
        time = np.arange(round(seconds * rate)) / rate
        beat = np.sin(2 * np.pi * (110 * 2 ** (number / 6)) * time) * np.exp(-8 * (time % 0.25))
        sound = np.stack([beat, 0.5 * beat], axis=1) if number == 3 else beat
        soundfile.write(folder / f"loop{number}.wav", 0.5 * sound, rate)
        if described and number:
            text = json.dumps({"description": f"loop at {110 + 10 * number} Hz"})
            (folder / f"loop{number}.json").write_text(text, encoding="utf-8")
    return folder


def task(backend: str = "mlx", *, texts: bool = True, frames=(30, 22, 9), **plan) -> MusicGenTask:
    """Random codes for `musicgen_tiny`, with descriptions of different lengths, each of which is rows of its own."""
    rng, config = np.random.default_rng(0), tiny_config(texts)
    clips = [
        Clip(Path(f"{n}.wav"), rng.integers(0, config.entries, (config.codebooks, length), dtype=np.int32), "x" * n)
        for n, length in enumerate(frames, start=1)
    ]

    def rows(text: str) -> np.ndarray:
        draw = np.random.default_rng(len(text))
        return draw.standard_normal((3 * len(text), config.text_width)).astype(np.float32)

    plan = Plan(**{"batch_size": 3, "segment_frames": 24, **plan})
    return MusicGenTask(config, backend, clips, plan, get(backend).world, clips, rows if texts else None)


def tiny_config(texts: bool = True) -> MusicGenConfig:
    return musicgen_tiny("cross" if texts else "none")


def flags(data: Path, output: Path, backend: str, *extra: object) -> list[str]:
    base = [
        "--data", data, "--output-dir", output, "--backend", backend, "--codec", "tiny", "--segment-duration", 0.5,
        "--sample-duration", 0, "--epochs", 2, "--batch-size", 2, "--learning-rate", 3e-3, "--log-every", 1,
        "--val-split", 0.3,
    ]  # fmt: skip
    return [str(flag) for flag in [*base, *extra]]


def run(data: Path, output: Path, backend: str, *extra: object) -> Path:
    cli.run(train.main, MusicGenOptions, flags(data, output, backend, *extra))
    return output


def fails(capsys, *arguments) -> str:
    """The one line with which a run of the command ends."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error
