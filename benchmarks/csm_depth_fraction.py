"""One training step of CSM with the depth decoder on 1/16 of the frames against all of them: clips/s and peak memory.

    python -m benchmarks.csm_depth_fraction

Clips of 10 s (125 frames and 30 text rows), LoRA on attention, in CSM-1B's proportions at a quarter of its width. Each
fraction has a process of its own, so that peaks are apart; rounds are paired.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from backends import blas, cli, get
from backends.base import OptimSpec
from backends.training.evaluation import term_weights
from csm_mlx import CSM, csm_1b
from csm_mlx.finetune.lora import apply_lora_to_model
from csm_mlx.task import CSMTask, Example, Plan

FRAMES, TEXT_ROWS = 125, 30


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time training steps with --depth-fraction 1/16 and 1.0."""

    rounds: int = 3
    """Pairs of processes."""
    clips: int = 4
    """Clips per step."""
    steps: int = 2
    """Timed steps per process, after one that is not timed."""
    fraction: float | None = None
    """Only this fraction, in this process; used by the benchmark itself."""


def main(options: Options) -> None:
    """Print medians of both fractions and of the paired ratios."""
    if options.fraction is not None:
        print(json.dumps(measure(options.fraction, options)))
        return
    pairs = [(_child(1 / 16, options), _child(1.0, options)) for _ in range(options.rounds)]
    print(f"BLAS: {blas.loaded or 'reference'}; {options.clips} clips of 10 s per step, {options.rounds} pairs")
    for index, name in enumerate(("1/16", "1.0")):
        speed = statistics.median(pair[index]["clips_per_s"] for pair in pairs)
        memory = statistics.median(pair[index]["peak_bytes"] for pair in pairs)
        print(f"  --depth-fraction {name:<5} {speed:6.2f} clips/s, peak {memory / 1e9:.2f} GB")
    speed = statistics.median(a["clips_per_s"] / b["clips_per_s"] for a, b in pairs)
    memory = statistics.median(a["peak_bytes"] / b["peak_bytes"] for a, b in pairs)
    print(f"  1/16 is {speed:.2f} times as fast in {memory:.2f} of the memory")


def measure(fraction: float, options: Options) -> dict[str, float]:
    """Clips per second and peak bytes of training steps."""
    full = csm_1b()
    config = replace(
        full,
        backbone=replace(full.backbone, width=512, head_dim=16, mlp_width=2048),
        decoder=replace(full.decoder, width=256, head_dim=32, mlp_width=2048),
        text_vocab=1000,
    )
    mx.random.seed(0)
    model = apply_lora_to_model(CSM(config), target_modules=["attn", "codebook0_head", "projection"])
    backend = get("mlx")
    plan = Plan(batch_size=options.clips, depth_fraction=fraction)
    task = CSMTask([_example(config.codebooks, index) for index in range(options.clips)], plan, backend.world)
    step = backend.train_step(model, task.terms, OptimSpec("adamw", weight_decay=1e-4, max_norm=1.0))
    update = next(task.batches(1, 0))
    weights = term_weights(task, task.counts(update), backend.world)
    step(update, weights, 1e-4)
    backend.reset_peak_memory()
    started = time.perf_counter()
    for _ in range(options.steps):
        step(update, weights, 1e-4)
    elapsed = time.perf_counter() - started
    return {"clips_per_s": options.steps * options.clips / elapsed, "peak_bytes": backend.memory().peak}


def _example(codebooks: int, seed: int) -> Example:
    rng = np.random.default_rng(seed)
    rows = np.zeros((TEXT_ROWS + FRAMES + 1, codebooks + 1), np.int32)
    rows[:TEXT_ROWS, -1] = rng.integers(0, 1000, TEXT_ROWS)
    rows[TEXT_ROWS:-1, :-1] = rng.integers(0, 2048, (FRAMES, codebooks))
    is_audio = np.arange(len(rows)) >= TEXT_ROWS
    return Example(rows, is_audio, is_audio)


def _child(fraction: float, options: Options) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.csm_depth_fraction", "--fraction", str(fraction)]
    command += ["--clips", str(options.clips), "--steps", str(options.steps)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    cli.run(main, Options)
