"""A step of MusicGen: ours on MLX against its own linear layers and mlx-examples' LM, ours on PyTorch against
transformers' `generate`. Each framework has a process of its own, so that each has its own BLAS.

    python -m benchmarks.musicgen_steps
    python -m benchmarks.musicgen_steps --mlx-examples DIR   # a checkout's folder `musicgen`, to time its LM too

Random weights, one prompt of 12 rows with guidance 3.0 (so two rows a step), exact top-k 250, float32. Every round
times the contestants in turn; medians over the rounds and of the paired ratios are printed. The linear layers are all
that the model has; ours takes the condition's rows into two of them, see `musicgen_mlx.crossing`. Peak memory is that
of a process with one contestant, with what it imports and the weights as they were drawn. MLX's threads are its BLAS's:
OMP_NUM_THREADS, or OPENBLAS_NUM_THREADS with OpenBLAS.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from backends import blas, cli
from backends.errors import InputError
from benchmarks import musicgen_contestants as contestant
from benchmarks.musicgen_contestants import Run
from benchmarks.one_process import cost
from musicgen_mlx import initial
from musicgen_mlx.config import MusicGenConfig, of_scale

PAIRS = {
    "mlx": (("ours", "linear layers"), ("ours compiled", "linear layers"), ("mlx-examples", "ours")),
    "torch": (("transformers", "ours"), ("ours", "linear layers")),
}

Make = Callable[[], Run]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time steps of width 1024 with 24 layers, and of width 512 with 8."""

    rounds: int = 5
    """Paired rounds."""
    steps: int = 50
    """Steps per round, after the first ones: 50 make a second of music."""
    sizes: tuple[str, ...] = ("1024/24", "512/8")
    """Width and layers; heads are of width 64."""
    threads: int = 2
    """PyTorch's threads."""
    only: str | None = None
    """mlx or torch, in this process."""
    contestant: str | None = None
    """Run this one only, once, in this process; used by the benchmark itself."""
    mlx_examples: Path | None = None
    """The folder `musicgen` of a checkout of mlx-examples."""

    def __post_init__(self) -> None:
        if self.mlx_examples is not None and not (self.mlx_examples / "musicgen.py").is_file():
            raise InputError(f"--mlx-examples {self.mlx_examples}: expected the folder that holds musicgen.py")


def main(options: Options) -> None:
    """Print one table per framework and size."""
    if options.only is None:
        for framework in PAIRS:
            subprocess.run([sys.executable, "-m", __spec__.name, *sys.argv[1:], "--only", framework], check=True)
        return
    if options.contestant is None:
        print(blas_of(options))
    for size in options.sizes:
        width, layers = (int(number) for number in size.split("/"))
        config = replace(of_scale("small"), width=width, layers=layers, heads=width // 64, mlp_width=4 * width, name="")
        contestants = {"mlx": mlx_contestants, "torch": torch_contestants}[options.only](config, options)
        if options.contestant is not None:
            contestants[options.contestant]()()
        else:
            report(options.only, size, contestants, options)


def blas_of(options: Options) -> str:
    """What the products run on."""
    return {
        "mlx": f"MLX's BLAS: {blas.preload() or 'reference'}",
        "torch": f"PyTorch's threads: {options.threads}",
    }[options.only or ""]


def mlx_contestants(config: MusicGenConfig, options: Options) -> dict[str, Make]:
    """The runs in MLX of one size: ours, its linear layers, and mlx-examples where its folder is given."""
    weights, folder = initial.tensors(config, 0), options.mlx_examples
    found: dict[str, Make] = {
        "ours": lambda: contestant.our_steps(config, weights, options.steps, compile=False),
        "ours compiled": lambda: contestant.our_steps(config, weights, options.steps, compile=True),
        "linear layers": lambda: contestant.linear_layers(config, weights, options.steps),
    }
    if folder is not None:
        found["mlx-examples"] = lambda: contestant.examples_steps(config, weights, options.steps, folder)
    return found


def torch_contestants(config: MusicGenConfig, options: Options) -> dict[str, Make]:
    """The runs in PyTorch of one size: ours, its linear layers, and transformers."""
    import torch

    torch.set_num_threads(options.threads)
    model = contestant.torch_model_of(config, initial.tensors(config, 0))
    return {
        "ours": lambda: contestant.torch_steps(model, options.steps),
        "transformers": lambda: contestant.their_steps(model, options.steps),
        "linear layers": lambda: contestant.torch_linear_layers(model, options.steps),
    }


def report(framework: str, size: str, contestants: dict[str, Make], options: Options) -> None:
    """Run the contestants in turn and print medians, and medians of the ratios of each round."""
    runs = {name: make() for name, make in contestants.items()}
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            seconds[name].append(run())
    print(f"{framework}, {size}: medians of {options.rounds} rounds of {options.steps} steps")
    for name, values in seconds.items():
        milliseconds, peak = 1e3 * statistics.median(values), peak_bytes(framework, size, name, options) / 1e9
        print(f"  {name:<14} {milliseconds:8.1f} ms per step, peak {peak:.2f} GB")
    for one, other in PAIRS[framework]:
        if one in seconds and other in seconds:
            ratio = statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))
            print(f"  {one} takes {ratio:.2f} x the time of {other}")


def peak_bytes(framework: str, size: str, contestant: str, options: Options) -> int:
    """Resident memory of a process that makes and runs one contestant."""
    flags = ["--only", framework, "--sizes", size, "--contestant", contestant, "--steps", str(options.steps)]
    flags += [] if options.mlx_examples is None else ["--mlx-examples", str(options.mlx_examples)]
    return cost(sys.executable, "-m", __spec__.name, *flags).peak_bytes


if __name__ == "__main__":
    cli.run(main, Options)
