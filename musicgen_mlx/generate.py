"""Make music from descriptions, or from nothing.

    python -m musicgen_mlx.generate --model small --prompt "liquid drum and bass" --duration 10 --output out.wav

The importable function is `musicgen_mlx.generate`; its home is `musicgen_mlx.music`. Importing this module puts the
module in the function's place in the package, so the module can be called like the function.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tqdm import tqdm
from tyro.conf import UseAppendAction

from backends import cli, seeds
from backends.atomic import check_apart
from backends.data import audio
from backends.data.stream import checked_target
from backends.errors import InputError
from backends.values import as_options, check_number
from musicgen_mlx.adapters import put_on
from musicgen_mlx.engines import load_engine
from musicgen_mlx.music import Engine, Request, Sampling, generate, read_prompt

NAMES = {
    "text": "--prompt",
    "duration_s": "--duration",
    "window_s": "--window",
    "stride_s": "--stride",
    **{name: f"--{name.replace('_', '-')}" for name in ("continue_from", "guidance", "temperature", "top_k", "top_p")},
}  # of a request's values


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Make music from descriptions, or from nothing."""

    model: str = "small"
    """A directory, a weights file, a Hub id, a key (small, medium, large, melody, melody-large, each also as stereo-*,
    micro-jungle, micro-acid), or tiny (random, for trying things out)."""
    lora: Path | None = None
    """An adapter that musicgen_mlx.train made of this model, lora_ckpt_*.safetensors."""
    prompt: Annotated[tuple[str, ...], UseAppendAction] = ()
    """What it should sound like; given several times it makes a batch. Without one the model makes what it likes."""
    samples: int = 1
    """How many to make of each prompt."""
    output: Path = Path("output.wav")
    """The file to write (.wav, .flac, .ogg or .mp3); several are numbered: output_0.wav, output_1.wav."""
    duration: float = 10.0
    """Seconds, those of --continue-from included."""
    continue_from: Path | None = None
    """A recording that the music begins with and goes on from."""
    window: float | None = None
    """Seconds that are made at once; default: as many as the model was trained on, 30 for the published ones."""
    stride: float | None = None
    """Seconds by which longer music moves on with each window, the rest is heard again; default: 3/5 of --window."""
    guidance: float = 3.0
    """How strongly the prompt pulls; 1 is not at all, and twice as fast."""
    temperature: float = 1.0
    """0 always takes the likeliest code."""
    top_k: int = 250
    """Draw among so many likeliest codes; 0: all."""
    top_p: float = 0.0
    """Draw among the likeliest codes with this total probability; 0: off. Where --top-k is on, both hold."""
    seed: int | None = None
    """Makes the result repeatable: item i is made from seed + i, whatever else is in its batch."""
    codec: str | None = None
    """EnCodec: a file, a directory or a Hub id; default: the one with the model, else facebook/encodec_32khz."""
    text_encoder: str | None = None
    """A T5's directory, with tokenizer.json, or Hub id; default: the one with the model, else google-t5/t5-base."""
    backend: Literal["auto", "mlx", "torch"] = "auto"
    """auto: MLX where it has a GPU, else PyTorch with CUDA, else MLX."""
    device: str | None = None
    """PyTorch's device, e.g. cuda:0 or cpu."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the model's weights; default: float32 on CPUs and PyTorch, the file's on a GPU with MLX."""
    bits: Literal[4, 8] | None = None
    """Quantise the model's weights to so many bits (MLX)."""

    def __post_init__(self) -> None:
        check_number("--samples", self.samples, 1, whole=True)
        if self.seed is not None:
            seeds.check(self.seed, "--seed")
        for path in self.paths():
            checked_target(path)
            if self.continue_from is not None:
                check_apart(path, [self.continue_from], "the recording of --continue-from")
        self.request()  # its numbers are checked before a model is looked for

    def paths(self) -> list[Path]:
        """The files to write, one for each prompt and sample."""
        count, output = self.samples * max(1, len(self.prompt)), self.output
        if count == 1:
            return [output]
        return [output.with_name(f"{output.stem}_{index}{output.suffix}") for index in range(count)]

    def engine(self) -> Engine:
        """Load the model, for which all else must be there."""
        if self.continue_from is not None and not self.continue_from.exists():
            raise InputError(f"--continue-from {self.continue_from}: no such audio file")
        found = load_engine(
            self.model, self.backend, self.device, codec=self.codec, text_encoder=self.text_encoder, dtype=self.dtype,
            bits=self.bits,
        )  # fmt: skip
        if self.lora is not None:
            put_on(found, self.lora)
        return found

    def as_options(self) -> AbstractContextManager:
        """Errors name this command's options inside."""
        return as_options({**NAMES, "prompts": f"--prompt with --model {self.model}"})

    def request(self, engine: Engine | None = None) -> Request:
        """What to make; --continue-from is read at the rate of the engine's codec, and left out without one."""
        prompts = [prompt or None for prompt in self.prompt or ("",) for _ in range(self.samples)]
        first = int(np.random.SeedSequence().generate_state(1)[0]) if self.seed is None else self.seed
        path = None if engine is None else self.continue_from
        with self.as_options():
            return Request(
                prompts=prompts,
                seeds=[first + index for index in range(len(prompts))],
                duration_s=self.duration,
                guidance=self.guidance,
                sampling=Sampling(self.temperature, self.top_k, self.top_p),
                continue_from=None if path is None or engine is None else read_prompt(path, engine.config),
                window_s=self.window,
                stride_s=self.stride,
            )


def main(options: GenerateOptions) -> None:
    """Generate, write the files and say how long it took."""
    engine = options.engine()
    request = options.request(engine)
    started = time.perf_counter()
    codec = engine.config.encodec
    given = 0 if request.continue_from is None else -(-len(request.continue_from) // codec.frame_samples)
    total = round(options.duration * codec.frame_hz) - given
    with options.as_options(), tqdm(total=total, desc="frames", unit="frame", delay=0.5) as bar:
        sound = generate(engine, request, progress=lambda made: bar.update(made - bar.n))
    elapsed = time.perf_counter() - started
    rate, paths = codec.sample_rate_hz, options.paths()
    for path, one in zip(paths, sound, strict=True):
        audio.write(path, one.T if one.ndim == 2 else one, rate)
    seconds = sound.shape[1] / rate
    names = ", ".join(map(str, paths))
    each = f"{len(paths)} x " if len(paths) > 1 else ""
    print(
        f"{names}: {each}{seconds:.2f} s of audio in {elapsed:.2f} s "
        f"(real-time factor {elapsed / (seconds * len(paths)):.2f}), peak memory {engine.memory().peak / 1e9:.2f} GB"
    )


cli.callable_module(__name__, generate)

if __name__ == "__main__":
    cli.run(main, GenerateOptions)
