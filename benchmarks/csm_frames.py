"""Frames per second of CSM on MLX: ours, mlx-audio's and the frame's matrix products alone, paired in one process.

    pip install mlx-audio
    AUDIOSMITH_BLAS=openblas python -m benchmarks.csm_frames   # csm_tiny and about 60 M parameters, float32
    python -m benchmarks.csm_frames --compile                  # with mx.compile (on Linux CPU this calls g++ first)

Every round times the contestants in turn; the medians over the rounds and of the paired ratios are printed.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from backends import blas, cli
from backends.mlx_backend.parameters import parameters
from backends.mlx_backend.sampling import Sampler
from csm_mlx import CSM, csm_tiny
from csm_mlx.config import CSMConfig, LlamaConfig
from csm_mlx.decode import frame_path
from csm_mlx.generation import FrameRun

PROMPT_ROWS = 40


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare frames per second with mlx-audio's SesameModel on the same random weights."""

    rounds: int = 7
    """Paired rounds."""
    frames: int = 20
    """Frames per round."""
    compile: bool = False
    """Compile our frame step."""


def main(options: Options) -> None:
    """Print one table per model size."""
    print(f"BLAS: {blas.loaded or 'reference'}; device: {mx.default_device()}")
    for name, config in {"csm_tiny": csm_tiny(), "60M": about_60m()}.items():
        mx.random.seed(0)
        model = CSM(config)
        mx.eval(model.parameters())
        size = sum(value.size for value in parameters(model).values())
        contestants = {
            "ours": our_frames(model, options),
            "mlx-audio": their_frames(model, options.frames),
            "matrix products": matrix_products(model, options.frames),
        }
        counts = {"ours": our_primitives(model), "mlx-audio": their_primitives(model)}
        report(f"{name} ({size / 1e6:.1f} M parameters)", contestants, counts, options)


def about_60m() -> CSMConfig:
    """CSM-1B's proportions at half of its layers and codebooks and a quarter of its width."""
    backbone = LlamaConfig(layers=8, width=512, heads=8, kv_heads=2, head_dim=64, mlp_width=2048)
    decoder = LlamaConfig(layers=2, width=256, heads=4, kv_heads=1, head_dim=64, mlp_width=2048)
    return replace(csm_tiny(), backbone=backbone, decoder=decoder, audio_vocab=2051, codebooks=16, name="")


def report(title: str, contestants: dict[str, Callable[[], float]], counts: dict[str, int], options: Options) -> None:
    """Time the contestants in turn and print medians, paired ratios and primitive counts."""
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            seconds[name].append(run() / options.frames)
    print(f"\n{title}: medians of {options.rounds} rounds of {options.frames} frames")
    for name, values in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(seconds["ours"], values, strict=True))
        primitives = f", {counts[name]} primitives per frame" if name in counts else ""
        print(f"  {name:<16} {1e3 * statistics.median(values):8.2f} ms per frame, {ratio:5.2f} x ours{primitives}")


def prompt(config: CSMConfig) -> tuple[np.ndarray, np.ndarray]:
    """A text prompt of PROMPT_ROWS rows."""
    rows = np.zeros((PROMPT_ROWS, config.codebooks + 1), np.int32)
    rows[:, -1] = np.arange(PROMPT_ROWS) % config.text_vocab
    return rows, np.zeros(PROMPT_ROWS, bool)


def our_frames(model: CSM, options: Options) -> Callable[[], float]:
    """Seconds for the frames after the prompt, with one look at each frame on the host, as `generate` does."""

    def run() -> float:
        state = FrameRun(model, Sampler(), (), seed=0, compile=options.compile)
        frame = state.start(*prompt(model.config))
        mx.eval(frame)
        started = time.perf_counter()
        for _ in range(options.frames):
            following = state.advance(frame)
            frame.any().item()
            frame = following
        mx.eval(frame)
        return time.perf_counter() - started

    return run


def their_frames(model: CSM, frames: int) -> Callable[[], float]:
    """The loop of mlx-audio's generate around its generate_frame, with the same weights and sampling."""
    from mlx_audio.lm.sample_utils import make_sampler  # pyright: ignore[reportMissingImports]

    peer, sampler = their_model(model), make_sampler(temp=0.9, top_k=50)

    def run() -> float:
        tokens, mask = (mx.array(part)[None] for part in their_prompt(model.config))
        peer.reset_caches()
        sample = peer.generate_frame(tokens, mask, mx.arange(PROMPT_ROWS)[None], sampler)
        mx.eval(sample)
        started = time.perf_counter()
        for index in range(frames):
            tokens = mx.expand_dims(mx.concat([sample, mx.zeros((1, 1)).astype(mx.int64)], axis=1), axis=1)
            mask = mx.expand_dims(mx.concat([mx.ones_like(sample), mx.zeros((1, 1))], axis=1), axis=1)
            sample = peer.generate_frame(tokens, mask, mx.array([[PROMPT_ROWS + index]]), sampler)
            mx.all(sample == 0).item()
        return time.perf_counter() - started

    return run


def their_prompt(config: CSMConfig) -> tuple[np.ndarray, np.ndarray]:
    """`prompt` with mlx-audio's mask."""
    rows, _ = prompt(config)
    mask = np.zeros(rows.shape, np.float32)
    mask[:, -1] = 1
    return rows, mask


def their_model(model: CSM):
    """mlx-audio's SesameModel with our weights; its tensors have our names."""
    from mlx_audio.tts.models.sesame.sesame import SesameModel  # pyright: ignore[reportMissingImports]

    config = model.config
    depth = {
        **_their_stack(config.decoder), "backbone_hidden_size": config.backbone.width, "hidden_act": "silu",
        "initializer_range": 0.02, "model_type": "llama", "num_codebooks": config.codebooks, "use_cache": True,
        "vocab_size": config.audio_vocab, "attention_dropout": 0.0,
    }  # fmt: skip
    peer = SesameModel(
        {
            **_their_stack(config.backbone),
            "depth_decoder_config": depth,
            "text_vocab_size": config.text_vocab,
            "audio_vocab_size": config.audio_vocab,
            "audio_num_codebooks": config.codebooks,
        }  # fmt: skip
    )
    peer.load_weights(list(parameters(model).items()))
    peer.setup_caches(1)
    mx.eval(peer.parameters())
    return peer


def _their_stack(config: LlamaConfig) -> dict:
    assert config.rope_scaling is not None
    return {
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": int(config.rope_theta),
        "rope_scaling": {**asdict(config.rope_scaling), "rope_type": "llama3"},
    }


def matrix_products(model: CSM, frames: int) -> Callable[[], float]:
    """Seconds for nothing but a frame's matrix products, with weights and of attention, in the form in which it does
    them."""
    config = model.config
    products = [(1, layer) for layer in _linears(model.backbone)] + [(1, model.codebook0_head.weight)]
    for codebook in range(1, config.codebooks):
        rows = 2 if codebook == 1 else 1
        products += [(rows, model.projection.weight)] + [(rows, layer) for layer in _linears(model.decoder)]
    heads = [model.audio_head[index] for index in range(config.codebooks - 1)]
    mx.eval(heads)
    forms: Any = getattr(frame_path(model), "decoder")  # noqa: B009 (only the fused path has it)
    inputs = {
        (rows, weight.shape[1]): forms.enter(mx.random.normal((rows, weight.shape[1]))) for rows, weight in products
    }
    products = [(inputs[rows, weight.shape[1]], forms.kept(weight)) for rows, weight in products]
    last, attended = mx.random.normal((1, config.decoder.width)), _attended(config, frames)
    mx.eval(products, last, attended)

    def run() -> float:
        started = time.perf_counter()
        for _ in range(frames):
            with_weights = [forms.linear(x, weight) for x, weight in products] + [last @ head for head in heads]
            mx.eval(with_weights, [(q @ keys.swapaxes(2, 3), scores @ keys) for q, keys, scores in attended])
        return time.perf_counter() - started

    return run


def _linears(stack) -> list[mx.array]:
    return [value for name, value in parameters(stack).items() if name.endswith("proj.weight")]


def _attended(config: CSMConfig, frames: int) -> list[tuple[mx.array, mx.array, mx.array]]:
    """Queries, keys (as many values) and scores of each layer's attention in the middle one of so many frames."""
    first = [(config.backbone, 1, PROMPT_ROWS + frames // 2)] * config.backbone.layers
    depth = [(config.decoder, 2 if codebook == 1 else 1, codebook + 1) for codebook in range(1, config.codebooks)]
    found = []
    for stack, rows, seen in first + depth * config.decoder.layers:
        H, queries, d = stack.kv_heads, rows * stack.heads // stack.kv_heads, stack.head_dim
        shapes = (1, H, queries, d), (1, H, seen, d), (1, H, queries, seen)
        found.append(tuple(mx.random.normal(shape) for shape in shapes))
    return found


def our_primitives(model: CSM) -> int:
    """Primitives of one frame step on this device, sampling included."""
    run = FrameRun(model, Sampler(), (), seed=0, compile=False)
    frame = run.start(*prompt(model.config))

    def step(frame: mx.array, noise: mx.array, *caches: mx.array) -> list[mx.array]:
        following, new = run.path.step(frame, list(caches), run.taken, run._picker(noise))
        return [following, following.any(), *new]

    return count(step, frame, run._noise(), *run.caches)


def their_primitives(model: CSM) -> int:
    """The same for mlx-audio's."""
    from mlx_audio.lm.sample_utils import make_sampler  # pyright: ignore[reportMissingImports]

    peer, sampler = their_model(model), make_sampler(temp=0.9, top_k=50)
    tokens, mask = (mx.array(part)[None] for part in their_prompt(model.config))
    sample = peer.generate_frame(tokens, mask, mx.arange(PROMPT_ROWS)[None], sampler)
    mx.eval(sample)
    kept = [(cache.keys, cache.values) for cache in peer.backbone_cache]

    def step(sample: mx.array) -> list[mx.array]:
        tokens = mx.expand_dims(mx.concat([sample, mx.zeros((1, 1)).astype(mx.int64)], axis=1), axis=1)
        mask = mx.expand_dims(mx.concat([mx.ones_like(sample), mx.zeros((1, 1))], axis=1), axis=1)
        following = peer.generate_frame(tokens, mask, mx.array([[PROMPT_ROWS]]), sampler)
        caches = [array for cache in peer.backbone_cache for array in (cache.keys, cache.values)]
        return [following, mx.all(following == 0), *caches]

    counted = count(step, sample)
    for cache, (keys, values) in zip(peer.backbone_cache, kept, strict=True):
        cache.keys, cache.values = keys, values
    return counted


def count(function: Callable[..., list[mx.array]], *inputs: mx.array) -> int:
    """Primitives in the graph of a function."""
    found = 0

    def see(entry: dict) -> None:
        nonlocal found
        found += entry.get("type") == "primitive"

    mx.export_function(see, function, *inputs)
    return found


if __name__ == "__main__":
    cli.run(main, Options)
