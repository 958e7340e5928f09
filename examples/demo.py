"""make demo: fine-tune the tiny CSM on real recordings through the real commands, and say a word before and after.

Everything is offline. The tiny model's weights and its codec's are random, so the sound is not speech: what the demo
shows is the whole way from recordings to a report, and a loss that falls.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from backends.training.log import read

ROOT = Path(__file__).resolve().parent.parent
RECORDINGS = ROOT / "examples" / "fsdd_george"
OUTPUT = ROOT / "demo_output"


def main() -> None:
    """Recordings, a dataset, a fine-tuned adapter, sound before and after, and a report."""
    started = time.monotonic()
    shutil.rmtree(OUTPUT / "run", ignore_errors=True)
    for part in ("train", "val"):
        command(
            "csm_mlx.finetune.create_dataset",
            "--audio-dir",
            RECORDINGS / part,
            "--output-json",
            OUTPUT / f"{part}.json",
        )
    generate("before.wav")
    command(
        "csm_mlx.finetune.finetune_lora",
        "--model", "tiny",
        "--data-path", OUTPUT / "train.json",
        "--val-path", OUTPUT / "val.json",
        "--output-dir", OUTPUT / "run",
        "--epochs", 8,
        "--learning-rate", 2e-3,
        "--dropout", 0.1,
        "--schedule", "cosine",
        "--target-modules", "attn", "mlp", "codebook0_head", "projection",
        "--train-embeddings",
        "--sample-text", "seven",
        "--sample-ms", 1000,
    )  # fmt: skip
    generate("after.wav", "--lora", OUTPUT / "run" / "lora_ckpt_best.safetensors")
    print_curve()
    print(f"\ndone in {time.monotonic() - started:.0f} s")
    print(
        f"before:  {OUTPUT / 'before.wav'}\nafter:   {OUTPUT / 'after.wav'}\nreport:  {OUTPUT / 'run' / 'report.html'}"
    )


def generate(name: str, *extra: object) -> None:
    """Say one word with the tiny model."""
    command("csm_mlx.generate", "--model", "tiny", "--text", "seven", "--speaker", 0, "--output", OUTPUT / name,
            "--max-audio-length-ms", 1000, "--seed", 0, *extra)  # fmt: skip


def command(module: str, *arguments: object) -> None:
    """Run a command as a user would, and show it."""
    words = [str(argument) for argument in arguments]
    print(
        f"\n$ python -m {module} {' '.join(word if word and ' ' not in word else repr(word) for word in words)}",
        flush=True,
    )
    subprocess.run([sys.executable, "-m", module, *words], check=True, cwd=ROOT)


def print_curve() -> None:
    """The validation loss, as text."""
    rows = [row for row in read(OUTPUT / "run" / "metrics.csv") if "val_loss" in row]
    highest = max(row["val_loss"] for row in rows)
    print("\nvalidation loss")
    for row in rows:
        print(f"  step {int(row['step']):4d}  {row['val_loss']:7.3f}  {'#' * round(50 * row['val_loss'] / highest)}")


if __name__ == "__main__":
    main()
