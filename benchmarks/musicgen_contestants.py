"""What `benchmarks.musicgen_steps` times: a step of ours, of mlx-examples and of transformers, and linear layers alone.

Each function makes a contestant ready and returns a run of it, which takes so many steps and returns seconds per step.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from musicgen_mlx.config import MusicGenConfig
from musicgen_mlx.known import known_steps

ROWS, GUIDANCE = 12, 3.0  # of the prompt
JOINING = 500  # steps, ten seconds of music: weights are joined, which fewer are not worth

Run = Callable[[], float]  # seconds per step


def states(config: MusicGenConfig) -> np.ndarray:
    """Text encoder states of a made-up prompt (1, ROWS, text width)."""
    return np.random.default_rng(0).standard_normal((1, ROWS, config.text_width)).astype(np.float32)


def per_step(run: Callable[[Callable[[], None]], object], steps: int) -> float:
    """Seconds per step of a run that calls back at each step, without what comes before the second."""
    times: list[float] = []
    run(lambda: times.append(time.perf_counter()))
    return (times[-1] - times[-1 - steps]) / steps


def our_steps(config: MusicGenConfig, weights: dict[str, np.ndarray], steps: int, *, compile: bool) -> Run:
    """`generate_codes` of our MLX model, guided, over joined weights; compiled, as it is on the CPU for ten seconds."""
    import mlx.core as mx

    from backends.mlx_backend import parameters
    from musicgen_mlx import condition, fused, generation
    from musicgen_mlx.model import MusicGen

    model = MusicGen(config)
    parameters.load(model, {name: mx.array(value) for name, value in weights.items()})
    model.eval()
    fused.fused_path(model, JOINING)
    said = condition.from_states(model, mx.array(states(config)), np.ones((1, ROWS), bool))
    frames = steps + 2

    def run(tick: Callable[[], None]) -> None:
        generation.generate_codes(
            model, frames, said, guidance=GUIDANCE, progress=lambda _count: tick(), compile=compile
        )

    return lambda: per_step(run, steps)


def linear_layers(config: MusicGenConfig, weights: dict[str, np.ndarray], steps: int) -> Run:
    """The step's products with weights, in the form in which it does them."""
    import mlx.core as mx

    from musicgen_mlx.forms import form_for

    form = form_for(2)(config.width)
    names = [name for name in weights if name.endswith("weight") and "emb" not in name and weights[name].ndim == 2]
    # Keys and values of the condition are computed once, the projection of the text too.
    once = ("cross_attn.k_proj", "cross_attn.v_proj", "conditioner")
    matrices = [mx.array(weights[name]) for name in names if not any(part in name for part in once)]
    inputs = {width: form.enter(mx.random.normal((2, width))) for width in {matrix.shape[1] for matrix in matrices}}
    products = [(inputs[matrix.shape[1]], form.kept(matrix)) for matrix in matrices]
    mx.eval(products)

    def run() -> float:
        started = time.perf_counter()
        for _ in range(steps):
            mx.eval([form.linear(x, weight) for x, weight in products])
        return (time.perf_counter() - started) / steps

    return run


def examples_steps(config: MusicGenConfig, weights: dict[str, np.ndarray], steps: int, folder: Path) -> Run:
    """mlx-examples' LM with our weights, in the loop of its `generate`; text encoder and codec stay out."""
    import mlx.core as mx
    import mlx.nn as nn

    sys.path.insert(0, str(folder))
    import musicgen as peer  # pyright: ignore[reportMissingImports]

    setattr(peer, "TextConditioner", lambda *_: nn.Identity())  # noqa: B010
    setattr(peer, "EncodecModel", SimpleNamespace(from_pretrained=lambda _: (None, None)))  # noqa: B010
    decoder = SimpleNamespace(
        num_codebooks=config.codebooks, bos_token_id=config.special, hidden_size=config.width,
        num_attention_heads=config.heads, num_hidden_layers=config.layers, ffn_dim=config.mlp_width,
    )  # fmt: skip
    audio = SimpleNamespace(codebook_size=config.entries, sampling_rate=32_000, _name_or_path="encodec")
    text = SimpleNamespace(_name_or_path="t5", d_model=config.text_width)
    model = peer.MusicGen(SimpleNamespace(decoder=decoder, audio_encoder=audio, text_encoder=text))
    mine = {name: mx.array(value) for name, value in weights.items()}
    model.load_weights([pair for pair in mine.items() if "text_conditioner" not in pair[0]])
    weight, bias = (mine[f"text_conditioner.output_proj.{part}"] for part in ("weight", "bias"))
    said = mx.array(states(config)) @ weight.T + bias
    said = mx.concatenate([said, mx.zeros_like(said)])
    mx.eval(model.parameters(), said)

    def run() -> float:
        frames = steps + 2
        cache = [peer.KVCache(config.width // config.heads, config.heads) for _ in model.layers]
        laid = mx.full((1, frames + 1, config.codebooks), config.special)
        started = 0.0
        for offset in range(frames):
            if offset == 2:
                started = time.perf_counter()
            logits = model(mx.tile(laid[:, offset : offset + 1], [2, 1, 1]), said, cache)
            logits = logits[1:2] + (logits[:1] - logits[1:2]) * GUIDANCE
            codes = peer.top_k_sampling(logits, 250, 1.0, axis=-2)
            codes[..., offset + 1 :] = config.special
            codes[..., : -frames + offset] = config.special
            laid[:, offset + 1 : offset + 2] = codes
            mx.eval(laid)
        return (time.perf_counter() - started) / steps

    return run


def torch_model_of(config: MusicGenConfig, weights: dict[str, np.ndarray]) -> Any:
    """Our PyTorch model with these weights."""
    from backends.layouts import musicgen as layouts
    from backends.layouts.checkpoint import read
    from musicgen_mlx import torch_model

    return torch_model.of_checkpoint(read(layouts.FAMILY, weights, config.settings(), "random weights"))


def torch_condition(model: Any) -> Any:
    """What the PyTorch model attends to."""
    import torch

    with torch.inference_mode():
        said = torch.from_numpy(states(model.shapes))
        return model.condition(said, torch.ones(1, ROWS, dtype=torch.bool), [False])


def torch_steps(model: Any, steps: int) -> Run:
    """The steps of our PyTorch generation, guided, over joined weights."""
    from musicgen_mlx import torch_fused, torch_generation

    torch_fused.fused_path(model, JOINING)
    said, laid = torch_condition(model), known_steps(model.shapes, 1, steps + 2)

    def run(tick: Callable[[], None]) -> None:
        for step in torch_generation.predicted_steps(model, laid, said, [0], guidance=GUIDANCE):
            step.sum().item()
            tick()

    return lambda: per_step(run, steps)


def torch_linear_layers(model: Any, steps: int) -> Run:
    """The step's products with weights, of two rows."""
    import torch
    import torch.nn.functional as F

    layers = [layer for layer in model.decoder.modules() if isinstance(layer, torch.nn.Linear)]
    once = {id(getattr(layer.encoder_attn, name)) for layer in model.decoder.model.decoder.layers
            for name in ("k_proj", "v_proj")}  # fmt: skip
    weights = [layer.weight for layer in layers if id(layer) not in once]
    rows = {width: torch.randn(2, width) for width in {weight.shape[1] for weight in weights}}

    @torch.inference_mode()
    def run() -> float:
        started = time.perf_counter()
        for _ in range(steps):
            for weight in weights:
                F.linear(rows[weight.shape[1]], weight)
        return (time.perf_counter() - started) / steps

    return run


def their_steps(model: Any, steps: int) -> Run:
    """`generate` of the same transformers module for two items: its bare decoder fails with guidance, and this is as
    many rows."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    config, said = model.shapes, torch_condition(model)

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
            max_new_tokens=steps + 2, logits_processor=LogitsProcessorList([Ticks(tick)]),
        )  # fmt: skip

    return lambda: per_step(run, steps)
