"""SNAC's encode and decode time and memory: ours on MLX and PyTorch, mlx-audio's on MLX, the `snac` package in PyTorch.

    pip install mlx-audio snac
    python -m benchmarks.snac_codec                                              # 24 kHz, 10 s, 1 thread
    python -m benchmarks.snac_codec --models 24khz 44khz --seconds 10 60 --threads 1 2 --rounds 5

In pieces: --models, --seconds, --threads, --tasks and --contestants choose parts of the table. Every contestant has a
process of its own, with the same random weights at full shape in float32, the same audio and,
on MLX, the same BLAS. In every round they run in turn; medians over the rounds and of the paired ratios are printed.
CPU time is that of all threads; memory is the resident peak of a run above what is resident before it. Contestants
that take more than --patience seconds run once; of one that fails the error is printed, and the others go on
(mlx-audio's 44 kHz: its attention normalises the wrong axis, "layer_norm weight must have the same size ...").
"""

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends import blas, cli
from snac_port import SNACConfig, load, snac_24khz, snac_32khz, snac_44khz, snac_tiny
from snac_port.config import of_settings
from snac_port.generation import draw_codes
from snac_port.tiny import draw

CONFIGS = {"24khz": snac_24khz, "32khz": snac_32khz, "44khz": snac_44khz, "tiny": snac_tiny}
CONTESTANTS = ("ours mlx", "mlx-audio", "ours torch", "snac torch")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare SNAC's speed and memory with mlx-audio and the snac package on the same random weights."""

    models: tuple[str, ...] = ("24khz",)
    """24khz, 32khz, 44khz or tiny."""
    seconds: tuple[float, ...] = (10.0,)
    """Lengths of audio."""
    threads: tuple[int, ...] = (1,)
    """Threads of the BLAS and of PyTorch."""
    tasks: tuple[str, ...] = ("encode", "decode")
    """encode, decode, or both."""
    contestants: tuple[str, ...] = CONTESTANTS
    """Who takes part; ratios are to the first."""
    rounds: int = 5
    """Paired rounds, after one to warm up."""
    patience: float = 60.0
    """Seconds; who takes longer to warm up runs that once."""


def main(options: Options) -> None:
    """Print a table for each model, length, number of threads and direction."""
    print(
        f"BLAS of MLX: {blas.preload() or 'reference'}; {os.cpu_count()} processors; medians of {options.rounds} rounds"
    )
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            config = CONFIGS[model]()
            load.save(Path(folder) / "model.safetensors", draw(config), config)
            for seconds in options.seconds:
                for threads in options.threads:
                    for task in options.tasks:
                        jobs = {
                            name: Worker(name, Path(folder), task, seconds, threads) for name in options.contestants
                        }
                        report(f"{model}, {seconds:g} s, {threads} thread(s), {task}", seconds, jobs, options)


@dataclass(frozen=True)
class Run:
    """One run: seconds of wall clock and of processors, bytes of memory, and a digest of codes or the length."""

    wall_s: float
    cpu_s: float
    peak: int
    found: str


class ContestantError(Exception):
    """A contestant cannot do this."""


class Worker:
    """A contestant in its own process, which runs whenever it is asked to."""

    def __init__(self, name: str, folder: Path, task: str, seconds: float, threads: int):
        words = [sys.executable, "-m", "benchmarks.snac_codec", "worker", name, str(folder), task, str(seconds)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in `close`)
        environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads))}
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
            bufsize=1,
        )

    def run(self) -> Run:
        """Raises ContestantError with the last line of the contestant's error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("run\n")
        answer = self.process.stdout.readline()
        if not answer:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ["nothing said"]
            raise ContestantError(f"fails with code {self.process.returncode}: {said[-1]}")
        return Run(**json.loads(answer))

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def report(title: str, seconds: float, jobs: dict[str, Worker], options: Options) -> None:
    """Run all contestants in turn and print medians."""
    print(f"\n{title}")
    warm: dict[str, Run] = {}
    for name, worker in jobs.items():
        try:
            warm[name] = worker.run()
        except ContestantError as error:
            print(f"  {name:<11} {error}", flush=True)
            worker.close()
    jobs = {name: worker for name, worker in jobs.items() if name in warm}
    if not jobs:
        return
    runs: dict[str, list[Run]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, worker in jobs.items():
            if warm[name].wall_s <= options.patience:
                runs[name].append(worker.run())
    for worker in jobs.values():
        worker.close()
    first, what = next(iter(jobs)), "codes" if title.endswith("encode") else "length"
    for name in jobs:
        taken = runs[name] or [warm[name]]
        wall_s, cpu_s = (statistics.median(getattr(run, key) for run in taken) for key in ("wall_s", "cpu_s"))
        pairs = list(zip(runs[first] or [warm[first]], taken, strict=False))
        walls, cpus = (statistics.median(getattr(b, k) / getattr(a, k) for a, b in pairs) for k in ("wall_s", "cpu_s"))
        alike = "same" if warm[name].found == warm[first].found else "other"
        once = "" if runs[name] else ", one run"
        print(
            f"  {name:<11} wall {wall_s:7.2f} s (x {walls:5.2f}, real time / {seconds / wall_s:6.2f}), "
            f"cpu {cpu_s:7.2f} s (x {cpus:5.2f}), + {warm[name].peak / 1e6:6.0f} MB, {alike} {what}{once}",
            flush=True,
        )


def worker(name: str, folder: Path, task: str, seconds: float) -> None:
    """Load the contestant and run it for every line that comes in; each answer is a line of JSON."""
    config = load.checkpoint(folder / "model.safetensors").settings
    work = MAKERS[name](folder, of_settings(config), task, seconds)
    for _ in sys.stdin:
        before = _forget_peak()
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        found = work()
        run = Run(time.perf_counter() - wall_s, time.process_time() - cpu_s, _peak() - before, found)
        print(json.dumps(run.__dict__), flush=True)


def sound(config: SNACConfig, seconds: float) -> np.ndarray:
    """Noise that swells, (samples,)."""
    samples = round(seconds * config.sampling_rate)
    swell = 0.05 + 0.1 * np.sin(np.arange(samples) / config.sampling_rate) ** 2
    return (swell * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


Work = Callable[[], str]  # runs once and says what came out


def ours(backend: str) -> Callable[[Path, SNACConfig, str, float], Work]:
    """Our codec on a backend."""

    def make(folder: Path, config: SNACConfig, task: str, seconds: float) -> Work:
        codec = load.from_pretrained(folder, backend)
        if task == "decode":
            codes = draw_codes(config, seconds, 0)
            return lambda: str(codec.decode(codes).size)
        audio = sound(config, seconds)
        return lambda: digest(codec.encode(audio).levels)

    return make


def mlx_audio(folder: Path, config: SNACConfig, task: str, seconds: float) -> Work:
    """mlx-audio's port with the same weights."""
    import mlx.core as mx
    from mlx_audio.codec.models.snac import SNAC  # pyright: ignore[reportMissingImports]

    model = SNAC(**config.settings())
    tensors, _ = load.checkpoint(folder).as_layout("mlx-snac")
    model.load_weights([(name, mx.array(value)) for name, value in tensors.items()])
    mx.eval(model.parameters())
    if task == "decode":
        codes = draw_codes(config, seconds, 0)
        given = [mx.array(level)[None] for level in codes.levels]
        return lambda: str(np.array(model.decode(given)).reshape(-1)[: codes.length].size)
    audio = mx.array(sound(config, seconds))[None, None]
    return lambda: digest([np.array(level)[0] for level in model.encode(audio)])


def snac_torch(folder: Path, config: SNACConfig, task: str, seconds: float) -> Work:
    """The `snac` package, called plainly."""
    import torch

    from snac_port.torch_model import snac  # imported there without its warning

    model = snac.SNAC(**config.settings()).eval()
    tensors, _ = load.checkpoint(folder).as_layout("snac")
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()})
    if task == "decode":
        codes = draw_codes(config, seconds, 0)
        given = [torch.from_numpy(level.astype(np.int64))[None] for level in codes.levels]
        run = torch.inference_mode()(lambda: str(model.decode(given).numpy().reshape(-1)[: codes.length].size))
    else:
        audio = torch.from_numpy(sound(config, seconds))[None, None]
        run = torch.inference_mode()(lambda: digest([level[0].numpy() for level in model.encode(audio)]))
    return run


MAKERS = {"ours mlx": ours("mlx"), "ours torch": ours("torch"), "mlx-audio": mlx_audio, "snac torch": snac_torch}


def digest(levels: "list[np.ndarray] | tuple[np.ndarray, ...]") -> str:
    """What codes are compared by."""
    return hashlib.sha256(b"".join(level.astype(np.int32).tobytes() for level in levels)).hexdigest()


def _forget_peak() -> int:
    """Start a new resident peak where Linux lets us; bytes resident now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or _peak()


def _peak() -> int:
    """Bytes of the resident peak."""
    import resource

    known = _status("VmHWM")
    return known or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], Path(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
    else:
        cli.run(main, Options)
