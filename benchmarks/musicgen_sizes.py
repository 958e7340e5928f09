"""micro-musicgen against musicgen-small: parameters, and the time from a cold start to music.

    python -m benchmarks.musicgen_sizes --picture docs/musicgen_sizes.png

Random weights of the published sizes, unconditional music, several samples at once, float32. A cold start is a process
from its beginning to its WAV files: for ours `python -m musicgen_mlx.generate`, on MLX and on PyTorch; for transformers
a script that loads the same weights in its own layout and calls `generate`. The files are in the machine's cache, and
so is memory (`--touch`): MLX reads weights into new pages, where PyTorch maps the cached file.
"""

import json
import shutil
import statistics
import sys
import tempfile
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backends import blas, cli
from backends.atomic import write_text
from backends.data import audio
from backends.layouts import convert, files, t5
from backends.layouts.checkpoint import Checkpoint
from backends.layouts.files import blank
from backends.layouts.rules import Lazy
from backends.seeds import rng
from benchmarks.one_process import Cost, cost, touch_memory
from musicgen_mlx import codec_task, studio
from musicgen_mlx.config import MusicGenConfig, of_scale
from musicgen_mlx.tiny import TOKENIZER

SIZES = {"micro": "none", "small": "cross"}
CONTESTANTS = ("mlx", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare micro-musicgen with musicgen-small."""

    samples: int = 10
    """Pieces of music made at once."""
    duration: float = 1.0
    """Seconds of each."""
    rounds: int = 3
    """Rounds, of which medians are taken."""
    touch: float = 4.0
    """GB of memory that another process writes to and gives back before each start; 0: none."""
    picture: Path | None = None
    """A PNG to draw both comparisons into."""
    only: Literal["micro", "small"] | None = None
    """Load this size from `weights` in transformers and generate, in this process; used by the benchmark itself."""
    weights: Path | None = None
    """Where its weights are; used by the benchmark itself."""


def main(options: Options) -> None:
    """Print both comparisons, and draw them."""
    if options.only is not None and options.weights is not None:
        in_transformers(options, options.weights)
        return
    folder = Path(tempfile.mkdtemp(prefix="audiosmith-"))
    try:
        counts = {size: write(folder / size, of_scale(size, condition)) for size, condition in SIZES.items()}  # type: ignore[arg-type]
        print_parameters(counts)
        costs = {size: cold_starts(options, folder / size, size) for size in SIZES}
    finally:
        shutil.rmtree(folder)
    print_costs(options, costs)
    if options.picture is not None:
        draw(options, counts, costs)


def write(folder: Path, config: MusicGenConfig) -> dict[str, int]:
    """Weights in our layout and in transformers' (folder/theirs); returns parameters by part."""
    parts = {"model": studio.drawn(config, 0), "codec": codec_task.fresh(config.encodec.settings(), 0)}
    if config.condition != "none":
        parts["text_encoder"] = text_encoder(config)
        folder.mkdir(parents=True)
        shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", json.dumps(config.to_json()))
    for name, part in parts.items():
        files.write(folder / f"{name}.safetensors", part.ours, like=part.like)
    theirs = folder / "theirs"
    convert.main(convert.Options(src=str(folder), dst=theirs, to="musicgen"))
    if config.condition == "none":
        codec_task.KIND.save(theirs / "codec", dict(parts["codec"].ours), config.encodec.settings())
    return {name: sum(value.size for value in part.like.values()) for name, part in parts.items()}


def text_encoder(config: MusicGenConfig) -> Checkpoint:
    """A T5 of random weights."""
    settings = asdict(config.t5)
    shapes = t5.FAMILY.shapes(settings)
    made = Lazy({name: partial(_small, shape) for name, shape in shapes.items()})
    like = {name: blank(shape) for name, shape in shapes.items()}
    return Checkpoint(t5.FAMILY, t5.FAMILY.ours, settings, made, like, "random weights")


def _small(shape: tuple[int, ...]) -> np.ndarray:
    return 0.02 * rng(len(shape)).standard_normal(shape, np.float32)


def cold_starts(options: Options, folder: Path, size: str) -> dict[str, list[Cost]]:
    """From process start to WAV files, of each contestant in each round."""
    found: dict[str, list[Cost]] = {name: [] for name in CONTESTANTS}
    common = ["--samples", str(options.samples), "--duration", str(options.duration)]
    for _ in range(options.rounds):
        for name in CONTESTANTS:
            ours = ["musicgen_mlx.generate", "--model", str(folder), "--backend", name, "--guidance", "1",
                    "--output", str(folder / f"{name}.wav"), *common]  # fmt: skip
            theirs = ["benchmarks.musicgen_sizes", "--only", size, "--weights", str(folder / "theirs"), *common]
            touch_memory(round(1e9 * options.touch))
            found[name].append(cost(sys.executable, "-m", *(theirs if name == "transformers" else ours)))
    return found


def in_transformers(options: Options, folder: Path) -> None:
    """Load, generate and write as anybody would."""
    import torch
    from transformers import EncodecModel, MusicgenForConditionalGeneration, MusicgenMelodyForCausalLM

    model: Any
    codec: Any

    hz, delays = 50, 3
    sampled = {"do_sample": True, "top_k": 250, "max_new_tokens": round(options.duration * hz) + delays}
    if options.only == "micro":
        model, codec = (kind.from_pretrained(path).eval() for kind, path in
                        ((MusicgenMelodyForCausalLM, folder), (EncodecModel, folder / "codec")))  # fmt: skip
        start = torch.full((4 * options.samples, 1), model.config.vocab_size)
        mask = torch.ones(options.samples, 1, dtype=torch.long)
        codes = model.generate(start, attention_mask=mask, **sampled).reshape(1, options.samples, 4, -1)
        with torch.inference_mode():
            sounds = codec.decode(codes, [None]).audio_values[:, 0]
    else:
        model = MusicgenForConditionalGeneration.from_pretrained(folder).eval()
        sounds = model.generate(**model.get_unconditional_inputs(num_samples=options.samples), **sampled)[:, 0]
    for number, sound in enumerate(sounds):
        audio.write(folder / f"theirs_{number}.wav", sound.numpy(), 32_000)


def print_parameters(counts: dict[str, dict[str, int]]) -> None:
    """A line per size, and the ratio of the two."""
    totals = {size: sum(parts.values()) for size, parts in counts.items()}
    for size, parts in counts.items():
        listed = ", ".join(f"{name.replace('_', ' ')} {count / 1e6:.1f} M" for name, count in parts.items())
        print(f"{size}: {totals[size] / 1e6:.1f} M parameters ({listed})")
    text = counts["small"]["text_encoder"]
    print(
        f"micro has {100 * totals['micro'] / totals['small']:.0f} % of small's, "
        f"{100 * totals['micro'] / (totals['small'] - text):.0f} % of those without the text encoder"
    )


def print_costs(options: Options, costs: dict[str, dict[str, list[Cost]]]) -> None:
    """Medians of the contestants' times and memory by size, and the ratios to transformers."""
    print(
        f"MLX's BLAS: {blas.preload() or 'reference'}; from process start to {options.samples} WAV files of "
        f"{options.duration:g} s, medians of {options.rounds} rounds"
    )
    for size, found in costs.items():
        for name, runs in found.items():
            wall, cpu, peak = (statistics.median(one) for one in zip(*map(astuple, runs), strict=True))
            ratio = statistics.median(a.wall_s / b.wall_s for a, b in zip(found["transformers"], runs, strict=True))
            print(
                f"  {size:<5} {name:<12} {wall:7.2f} s ({cpu:.1f} s of CPU time), peak {peak / 1e9:.2f} GB, "
                f"{ratio:.2f} x transformers' speed"
            )


def draw(options: Options, counts: dict[str, dict[str, int]], costs: dict[str, dict[str, list[Cost]]]) -> None:
    """Bars of both comparisons."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    below = dict.fromkeys(SIZES, 0.0)
    for part in ("model", "codec", "text_encoder"):
        heights = [counts[size].get(part, 0) / 1e6 for size in SIZES]
        left.bar(list(SIZES), heights, bottom=list(below.values()), label=part.replace("_", " "))
        below = {size: below[size] + height for size, height in zip(SIZES, heights, strict=True)}
    left.set_ylabel("million parameters")
    for place, name in enumerate(CONTESTANTS):
        heights = [statistics.median(run.wall_s for run in costs[size][name]) for size in SIZES]
        right.bar([index + 0.27 * (place - 1) for index in range(len(SIZES))], heights, 0.25, label=name)
    right.set_xticks(range(len(SIZES)), list(SIZES))
    right.set_ylabel(f"s from cold start to {options.samples} x {options.duration:g} s")
    for axes in (left, right):
        axes.legend(frameon=False)
    figure.savefig(str(options.picture), dpi=120)


if __name__ == "__main__":
    cli.run(main, Options)
