"""A step of MusicGen: ours on MLX against its own linear layers, ours on PyTorch against transformers' `generate`.

    python -m benchmarks.musicgen_steps

Random weights, one prompt of 12 rows with guidance 3.0 (so two rows a step), exact top-k 250, float32. Every round
times the contestants in turn; medians over the rounds and of the paired ratios are printed.
"""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from backends import blas, cli
from backends.mlx_backend import parameters
from musicgen_mlx import condition, generation, initial, torch_generation, torch_model
from musicgen_mlx.config import MusicGenConfig, of_scale
from musicgen_mlx.model import MusicGen

ROWS, GUIDANCE = 12, 3.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time steps of width 1024 with 24 layers, and of width 512 with 8."""

    rounds: int = 5
    """Paired rounds."""
    steps: int = 12
    """Steps per round, after the first ones."""
    sizes: tuple[str, ...] = ("1024/24", "512/8")
    """Width and layers; heads are of width 64."""
    threads: int = 2
    """PyTorch's threads."""


def main(options: Options) -> None:
    """Print one table per size."""
    import torch

    torch.set_num_threads(options.threads)
    print(f"BLAS: {blas.loaded or 'reference'}; device: {mx.default_device()}; PyTorch's threads: {options.threads}")
    for size in options.sizes:
        width, layers = (int(number) for number in size.split("/"))
        config = replace(of_scale("small"), width=width, layers=layers, heads=width // 64, mlp_width=4 * width, name="")
        weights = initial.tensors(config, 0)
        contestants = {
            "ours, MLX": our_steps(config, weights, options),
            "linear layers": linear_layers(config, weights, options),
            "ours, PyTorch": torch_steps(config, weights, options),
            "transformers": their_steps(config, weights, options),
        }
        report(f"{width}/{layers}", contestants, options)


def report(title: str, contestants: dict[str, Callable[[], float]], options: Options) -> None:
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            seconds[name].append(run())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\n{title}: medians of {options.rounds} rounds of {options.steps} steps (all contestants: {peak:.1f} GB)")
    for name, values in seconds.items():
        print(f"  {name:<14} {1e3 * statistics.median(values):8.1f} ms per step")
    for one, other in (("ours, MLX", "linear layers"), ("transformers", "ours, PyTorch")):
        ratio = statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))
        print(f"  {one} takes {ratio:.2f} x the time of {other}")


def states(config: MusicGenConfig) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, ROWS, config.text_width)).astype(np.float32)


def per_step(run: Callable[[Callable[[], None]], object], steps: int) -> float:
    """Seconds per step of a run that calls back at each step, without what comes before the second."""
    times: list[float] = []
    run(lambda: times.append(time.perf_counter()))
    return (times[-1] - times[-1 - steps]) / steps


def our_steps(config: MusicGenConfig, weights: dict[str, np.ndarray], options: Options) -> Callable[[], float]:
    model = MusicGen(config)
    parameters.load(model, {name: mx.array(value) for name, value in weights.items()})
    model.eval()
    said = condition.from_states(model, mx.array(states(config)), np.ones((1, ROWS), bool))
    frames = options.steps + 2

    def run(tick: Callable[[], None]) -> None:
        generation.generate_codes(model, frames, said, guidance=GUIDANCE, progress=lambda _count: tick(), compile=False)

    return lambda: per_step(run, options.steps)


def linear_layers(config: MusicGenConfig, weights: dict[str, np.ndarray], options: Options) -> Callable[[], float]:
    """The step's products with weights, in the form in which it does them: weights @ two columns."""
    names = [name for name in weights if name.endswith("weight") and "emb" not in name and weights[name].ndim == 2]
    # Keys and values of the condition are computed once, the projection of the text too.
    once = ("cross_attn.k_proj", "cross_attn.v_proj", "conditioner")
    matrices = [mx.array(weights[name]) for name in names if not any(part in name for part in once)]
    columns = {width: mx.random.normal((width, 2)) for width in {matrix.shape[1] for matrix in matrices}}
    mx.eval(matrices, columns)

    def run() -> float:
        started = time.perf_counter()
        for _ in range(options.steps):
            mx.eval([matrix @ columns[matrix.shape[1]] for matrix in matrices])
        return (time.perf_counter() - started) / options.steps

    return run


def torch_model_of(config: MusicGenConfig, weights: dict[str, np.ndarray]) -> Any:
    from backends.layouts import musicgen as layouts
    from backends.layouts.checkpoint import read

    return torch_model.of_checkpoint(read(layouts.FAMILY, weights, config.settings(), "random weights"))


def torch_steps(config: MusicGenConfig, weights: dict[str, np.ndarray], options: Options) -> Callable[[], float]:
    import torch

    model = torch_model_of(config, weights)
    with torch.inference_mode():
        said = model.condition(torch.from_numpy(states(config)), torch.ones(1, ROWS, dtype=torch.bool), [False])
    laid = generation.known_steps(config, 1, options.steps + 2)

    def run(tick: Callable[[], None]) -> None:
        for step in torch_generation.predicted_steps(model, laid, said, [0], guidance=GUIDANCE):
            step.sum().item()
            tick()

    return lambda: per_step(run, options.steps)


def their_steps(config: MusicGenConfig, weights: dict[str, np.ndarray], options: Options) -> Callable[[], float]:
    """`generate` of the same transformers module for two items: its bare decoder fails with guidance, and this is as
    many rows."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    model = torch_model_of(config, weights)
    with torch.inference_mode():
        said = model.condition(torch.from_numpy(states(config)), torch.ones(1, ROWS, dtype=torch.bool), [False])

    class Ticks(LogitsProcessor):
        def __init__(self, tick: Callable[[], None]):
            self.tick = tick

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.tick()
            return scores

    both, seen = torch.cat([said.states, torch.zeros_like(said.states)]), torch.cat([said.mask, said.mask]).long()

    def run(tick: Callable[[], None]) -> None:
        first = torch.full((2 * config.codebooks, 1), config.special)
        model.decoder.generate(
            first, attention_mask=torch.ones(2, 1, dtype=torch.long), encoder_hidden_states=both,
            encoder_attention_mask=seen, guidance_scale=1.0, do_sample=True, top_k=250, num_return_sequences=1,
            max_new_tokens=options.steps + 2, logits_processor=LogitsProcessorList([Ticks(tick)]),
        )  # fmt: skip

    return lambda: per_step(run, options.steps)


if __name__ == "__main__":
    cli.run(main, Options)
