"""A decoder-only training step of the published 24 kHz SNAC: ours on MLX and on PyTorch, and the package plainly.

    python -m benchmarks.snac_training
    OMP_NUM_THREADS=1 python -m benchmarks.snac_training --contestants torch plain

Random weights and audio, the seed's loss, AdamW, float32. Plainly means: codes to latents to audio by the package's own
modules, torch.stft for the loss, torch.optim for the update. Each contestant runs in a process of its own at two sizes
of batch; memory per audio-second is the difference of their peaks over the difference of their audio.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backends import blas, cli, get
from backends.base import Batch
from backends.seeds import rng
from snac_port import loss, snac_24khz
from snac_port.finetune_options import FinetuneOptions
from snac_port.load import from_pretrained, save
from snac_port.task import SNACFamily, trains
from snac_port.tiny import draw

CONTESTANTS = ("mlx", "torch", "plain")
N_FFTS = (1024, 2048, 4096)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time training steps, and measure the memory that a second of audio takes."""

    rounds: int = 3
    """Paired rounds."""
    seconds: tuple[int, int] = (2, 6)
    """Segments of one second in the smaller and the larger batch."""
    steps: int = 2
    """Timed steps per process, after one that is not timed."""
    contestants: tuple[str, ...] = CONTESTANTS
    """mlx, torch, plain; with plain, ratios to it are printed."""
    only: Literal["mlx", "torch", "plain"] | None = None
    """Only this contestant at the first size, in this process; used by the benchmark itself."""
    weights: Path | None = None
    """Checkpoint directory; used by the benchmark itself."""


def main(options: Options) -> None:
    """Print medians."""
    if options.only is not None:
        print(json.dumps(measure(options)))
        return
    small, large = options.seconds
    folder = Path(tempfile.mkdtemp(prefix="audiosmith-"))
    save(folder / "model.safetensors", draw(snac_24khz()), snac_24khz())
    found: dict[str, list[tuple[dict, dict]]] = {name: [] for name in options.contestants}
    for _ in range(options.rounds):
        for name in options.contestants:
            found[name].append((_child(name, small, folder, options), _child(name, large, folder, options)))
    print(f"MLX's BLAS: {blas.preload() or 'reference'}; {large} segments of 1 s, medians of {options.rounds} rounds")
    for name, pairs in found.items():
        wall, cpu = (statistics.median(pair[1][key] / large for pair in pairs) for key in ("wall_s", "cpu_s"))
        memory = statistics.median((b["peak_bytes"] - a["peak_bytes"]) / (large - small) for a, b in pairs)
        print(
            f"  {name:<6} {wall:6.3f} s per audio-second ({cpu:.3f} s of CPU time), "
            f"{memory / 1e9:.3f} GB per audio-second{_against(found.get('plain'), pairs)}"
        )


def _against(plain: list[tuple[dict, dict]] | None, pairs: list[tuple[dict, dict]]) -> str:
    """How much faster than plain, round by round."""
    if plain is None:
        return ""
    wall, cpu = (
        statistics.median(b[1][key] / a[1][key] for a, b in zip(pairs, plain, strict=True))
        for key in ("wall_s", "cpu_s")
    )
    return f", {wall:.2f} x as fast as plain ({cpu:.2f} x in CPU time)"


def measure(options: Options) -> dict[str, float]:
    """Seconds per step, and the process's peak memory."""
    segments = options.seconds[0]
    step = plain_step(options, segments) if options.only == "plain" else our_step(options, segments)
    step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(options.steps):
        step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"wall_s": wall / options.steps, "cpu_s": cpu / options.steps, "peak_bytes": peak}


def our_step(options: Options, segments: int) -> Callable[[], object]:
    """A decoder-only training step of ours on the backend of --only."""
    backend = get(options.only or "mlx", "cpu" if options.only == "torch" else None)
    config = snac_24khz()
    model: Any = from_pretrained(str(options.weights), backend.name, "cpu" if backend.name == "torch" else None)
    backend.train_only(model, lambda name: trains(name, encoder=False, quantiser=False))
    asked = FinetuneOptions(train_data=Path(), val_data=Path(), n_ffts=N_FFTS)
    family = SNACFamily(config, loss.spec(asked, config), backend.name)
    step = backend.train_step(model, family.terms, asked.training().optim())
    batch = batch_of(family, segments)
    weights = {name: family.coefficients[name] / max(count, 1.0) for name, count in family.counts(batch).items()}
    return lambda: step([batch], weights, 1e-5)


def batch_of(family: SNACFamily, segments: int) -> Batch:
    """Segments of one second of noise, with codes drawn at random."""
    config, draws = family.config, rng(0)
    audio = (0.1 * draws.standard_normal((segments, config.sampling_rate))).astype(np.float32)
    units = -(-config.sampling_rate // config.unit_samples)
    per_unit = sum(config.vq_strides[0] // stride for stride in config.vq_strides)
    codes = draws.integers(0, config.codebook_size, (segments, per_unit, units)).astype(np.int32)
    return family.batch(audio, codes, list(range(segments)), training=True)


def plain_step(options: Options, segments: int) -> Callable[[], object]:
    """The package as anybody would call it."""
    import torch

    from snac_port.torch_model import SNAC, snac

    ours = from_pretrained(str(options.weights), "torch", "cpu")
    assert isinstance(ours, SNAC)
    settings = {name: value for name, value in ours.config.settings().items() if name != "name"}
    model = snac.SNAC(**settings)
    model.load_state_dict(ours.state_dict())
    for part in (model.encoder, model.quantizer):
        part.requires_grad_(False)
    asked = FinetuneOptions(train_data=Path(), val_data=Path(), n_ffts=N_FFTS)
    batch = batch_of(SNACFamily(ours.config, loss.spec(asked, ours.config), "torch"), segments)
    del ours
    audio = torch.from_numpy(batch["audio"])[:, None]
    codes = [torch.from_numpy(batch[f"codes_{level}"]).long() for level in range(3)]
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=1e-5, weight_decay=1e-4)

    def step() -> None:
        made = model.decoder(model.quantizer.from_codes(codes))[..., : audio.shape[-1]]
        total = (audio - made).abs().mean()
        for n_fft in N_FFTS:
            window = torch.ones(n_fft)
            x, y = (torch.stft(part[:, 0], n_fft, window=window, return_complex=True).abs() for part in (audio, made))
            total = total + (x - y).abs().mean() / len(N_FFTS)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()

    return step


def _child(name: str, segments: int, weights: Path, options: Options) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.snac_training", "--only", name, "--weights", str(weights)]
    command += ["--seconds", str(segments), str(segments), "--steps", str(options.steps)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    cli.run(main, Options)
