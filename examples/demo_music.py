"""make demo-music: a music model from nothing. Loops are synthesised, a codec learns them, then a MusicGen its codes.

Everything is offline and goes through the real commands. Codec and model are tiny and learn for minutes, so that the
loops are rough; what the demo shows is the whole way, and two losses that fall.
"""

import shutil
import time
from pathlib import Path

import numpy as np

from backends.data import audio
from backends.seeds import rng
from backends.training.log import read
from examples.demo import ROOT, command

OUTPUT = ROOT / "demo_output" / "music"
LOOPS, HELD_OUT = 48, 4
RATE_HZ = 32_000
BPM = 174
STEPS = 32  # sixteenths: two bars, 2.8 s
KICKS = ("x---------x-----", "x-----x---x-----", "x---------x--x--")
SNARES = ("----x-------x---", "----x--x-x--x---", "----x-------x--x")
ROOTS_HZ = (41.2, 43.7, 49.0, 55.0)


def main() -> None:
    """Loops, a codec and a model trained on them, music and a report."""
    started = time.monotonic()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    write_loops()
    data = ("--train-data", OUTPUT / "loops" / "train", "--val-data", OUTPUT / "loops" / "val")
    command(
        "musicgen_mlx.train_codec",
        "--scale", "tiny",
        *data,
        "--output-dir", OUTPUT / "codec",
        "--epochs", 20,
        "--batch-size", 4,
        "--segment-length", 0.5,
        "--learning-rate", 3e-3,
        "--schedule", "cosine",
        "--quantize-after", 80,
        "--bypass", 0.2,
        "--eval-every", 60,
        "--save-every", 0,
    )  # fmt: skip
    command(
        "musicgen_mlx.train",
        "--data", OUTPUT / "loops" / "train",
        "--val-data", OUTPUT / "loops" / "val",
        "--scale", "xsmall",
        "--conditioner", "none",
        "--codec", OUTPUT / "codec" / "best",
        "--output-dir", OUTPUT / "model",
        "--epochs", 10,
        "--segments-per-recording", 4,
        "--segment-duration", 2.5,
        "--batch-size", 8,
        "--learning-rate", 3e-3,
        "--schedule", "cosine",
        "--ema-decay", 0.95,
        "--sample-duration", 2.7,
        "--eval-every", 48,
        "--save-every", 0,
    )  # fmt: skip
    sound = OUTPUT / "drum_and_bass.wav"
    command("musicgen_mlx.generate", "--model", OUTPUT / "model" / "best_model", "--duration", 5.5, "--seed", 0,
            "--output", sound)  # fmt: skip
    print_curve("codec, validation loss", OUTPUT / "codec")
    print_curve("model, validation loss (knowing nothing: ln 64 = 4.16)", OUTPUT / "model")
    draw_curves(OUTPUT / "curves.png")
    reports = ", ".join(str(OUTPUT / part / "report.html") for part in ("codec", "model"))
    print(f"\ndone in {time.monotonic() - started:.0f} s\nsound:   {sound}\nreports: {reports}")


def write_loops() -> None:
    """Loops to train on and to validate on."""
    for number in range(LOOPS + HELD_OUT):
        part = "train" if number < LOOPS else "val"
        audio.write(OUTPUT / "loops" / part / f"loop{number:02d}.wav", loop(number), RATE_HZ)
    print(f"{LOOPS + HELD_OUT} loops of two bars at {BPM} bpm: {OUTPUT / 'loops'}")


def print_curve(title: str, run: Path) -> None:
    """The validation loss, as text."""
    rows = [row for row in read(run / "metrics.csv") if "val_loss" in row]
    highest = max(row["val_loss"] for row in rows)
    print(f"\n{title}")
    for row in rows:
        print(f"  step {int(row['step']):4d}  {row['val_loss']:7.3f}  {'#' * round(50 * row['val_loss'] / highest)}")


def draw_curves(path: Path) -> None:
    """Both runs' losses as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, part in zip(figure.subplots(1, 2), ("codec", "model"), strict=True):
        rows = read(OUTPUT / part / "metrics.csv")
        for name, label in (("loss", "training"), ("val_loss", "validation")):
            points = [(row["step"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if name == "val_loss" else None)
        axes.set(title=part, xlabel="update", ylabel="loss")
        axes.legend(frameon=False)
    figure.savefig(str(path), dpi=120)


def loop(number: int) -> np.ndarray:
    """Two bars of drums and bass, (samples,), drawn by their number."""
    draw = rng(174, number)
    step = round(RATE_HZ * 60 / BPM / 4)
    sound = np.zeros(STEPS * step + RATE_HZ, np.float32)
    kick, snare = draw.choice(KICKS), draw.choice(SNARES)
    for index in range(STEPS):
        start = index * step
        if kick[index % 16] == "x":
            _add(sound, start, 0.9 * _kick())
        if snare[index % 16] == "x":
            _add(sound, start, 0.6 * _noise(0.12, 24) + 0.3 * _tone(190.0, 0.12, 30))
        if index % 2 == 0 or draw.random() < 0.2:
            _add(sound, start, 0.18 * np.diff(_noise(0.04, 90), prepend=0))
        if index % 8 == 0:
            note = ROOTS_HZ[number % 4] * draw.choice([1.0, 1.0, 1.5])
            _add(sound, start, 0.35 * np.tanh(2.5 * _tone(note, 8 * step / RATE_HZ, 2)))
    sound = sound[: STEPS * step]
    return 0.8 * sound / np.abs(sound).max()


def _add(sound: np.ndarray, start: int, hit: np.ndarray) -> None:
    stop = min(sound.size, start + hit.size)
    sound[start:stop] += hit[: stop - start]


def _time(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * RATE_HZ), dtype=np.float32) / RATE_HZ


def _kick() -> np.ndarray:
    """A sine that falls from 150 Hz to 45 Hz."""
    time_s = _time(0.25)
    phase = 45 * time_s + (150 - 45) / 30 * (1 - np.exp(-30 * time_s))
    return np.sin(2 * np.pi * phase) * np.exp(-12 * time_s)


def _tone(hz: float, seconds: float, decay: float) -> np.ndarray:
    time_s = _time(seconds)
    return np.sin(2 * np.pi * hz * time_s) * np.exp(-decay * time_s)


def _noise(seconds: float, decay: float) -> np.ndarray:
    """The same at every hit, as a drum machine's."""
    time_s = _time(seconds)
    return rng(174).standard_normal(time_s.size, np.float32) * np.exp(-decay * time_s)


if __name__ == "__main__":
    main()
