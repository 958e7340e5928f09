"""Say a text.

    python -m csm_mlx.generate --text "Hello." --speaker 0 --output out.wav

The importable function is `csm_mlx.generate`; its home is `csm_mlx.generation`. Importing this module puts the module
in the function's place in the package, so the module can be called like the function.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from backends import cli, seeds
from backends.atomic import check_apart
from backends.data import audio
from backends.data.stream import checked_target
from backends.errors import InputError
from backends.mlx_backend.memory import memory, reset_peak_memory
from backends.mlx_backend.sampling import Sampler
from backends.values import as_options, check_number
from csm_mlx.generation import generate
from csm_mlx.load import from_pretrained
from csm_mlx.model import CSM
from csm_mlx.tokens import Segment

NAMES = {
    name: f"--{name.replace('_', '-')}" for name in ("max_audio_length_ms", "temperature", "top_k", "top_p", "min_p")
}


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Say a text, in the voice of a context if one is given."""

    text: str
    """What to say."""
    speaker: int = 0
    """Who says it: the speaker id used in training and in the context."""
    output: Path = Path("output.wav")
    """The file to write (.wav, .flac, .ogg or .mp3)."""
    model: str = "1b"
    """1b, tiny (random, for trying things out), a directory or a Hub id."""
    pretrained_path: Path | None = None
    """A weights file for that model, e.g. a ckpt_epoch_5.safetensors, in any of CSM's layouts."""
    lora: Path | None = None
    """A lora_ckpt_*.safetensors to merge into the model."""
    codec: str | None = None
    """Mimi: a file, a directory or a Hub id; default: the one beside the model, else kyutai's."""
    tokenizer: str | None = None
    """Text tokenizer: a tokenizer.json, a directory or a Hub id; default: the one beside the model, or Llama 3.2's."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; default: the file's."""
    context_audio: tuple[Path, ...] = ()
    """Recordings of what was said before, oldest first."""
    context_text: tuple[str, ...] = ()
    """What is said in each of them."""
    context_speaker: tuple[int, ...] = ()
    """Who says it; one id may stand for all. Default: --speaker."""
    max_audio_length_ms: float = 90_000
    """Longest audio; the model usually stops earlier by itself."""
    temperature: float = 0.9
    """0 always takes the likeliest code."""
    top_k: int = 50
    """Draw among so many likeliest codes; 0: all."""
    top_p: float = 0.0
    """Draw among the likeliest codes with this total probability; 0: off."""
    min_p: float = 0.0
    """Leave out codes less likely than this share of the likeliest; 0: off."""
    seed: int | None = None
    """Makes the result repeatable."""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError("--text is empty: say something")
        checked_target(self.output)
        check_apart(self.output, self.context_audio, "a recording of --context-audio")
        self._check_numbers()
        counts = len(self.context_audio), len(self.context_text), len(self.context_speaker)
        if counts[0] != counts[1] or counts[2] not in {0, min(1, counts[0]), counts[0]}:
            raise InputError(
                f"--context-audio, --context-text and --context-speaker belong together, found {counts[0]}, {counts[1]}"
                f" and {counts[2]}: give one text (and one speaker, or one for all) for each recording"
            )

    def _check_numbers(self) -> None:
        self.sampler()
        check_number("--speaker", self.speaker, whole=True)
        check_number("--max-audio-length-ms", self.max_audio_length_ms, what="milliseconds")
        if self.seed is not None:
            seeds.check(self.seed, "--seed")
        if any(speaker < 0 for speaker in self.context_speaker):
            raise InputError(f"--context-speaker {min(self.context_speaker)}: expected whole numbers from 0")

    def sampler(self) -> Sampler:
        """How codes are drawn."""
        with as_options(NAMES):
            return Sampler(self.temperature, self.top_k, self.top_p, self.min_p)


def main(options: GenerateOptions) -> None:
    """Generate, write the file and say how long it took."""
    model = _model(options)
    limit = int(options.max_audio_length_ms / model.config.frame_ms)
    reset_peak_memory()
    started = time.perf_counter()
    with as_options(NAMES), tqdm(total=limit, desc="frames", unit="frame", delay=0.5) as bar:
        sound = generate(
            model,
            options.text,
            options.speaker,
            _context(options),
            options.max_audio_length_ms,
            sampler=options.sampler(),
            seed=options.seed,
            progress=lambda _count: bar.update(),
        )
        samples = np.array(sound)
        frames = bar.n
    elapsed = time.perf_counter() - started
    if not samples.size:
        raise InputError("the model ended at once without a sound: try another --seed, --temperature or text")
    audio.write(options.output, samples, model.config.mimi.sample_rate_hz)
    print(_closing(options, samples.size / model.config.mimi.sample_rate_hz, elapsed, full=frames >= limit))


def _model(options: GenerateOptions) -> CSM:
    model = from_pretrained(
        options.model,
        weights=options.pretrained_path,
        codec=options.codec,
        tokenizer=options.tokenizer,
        dtype=options.dtype,
    )
    if options.lora is not None:
        from csm_mlx.finetune.lora import load_adapter, merge_lora_weights

        merge_lora_weights(load_adapter(model, options.lora))
    return model


def _context(options: GenerateOptions) -> list[Segment]:
    speakers = options.context_speaker or (options.speaker,)
    speakers *= 1 if len(speakers) > 1 else max(1, len(options.context_audio))
    turns = zip(speakers, options.context_text, options.context_audio, strict=False)
    return [Segment(speaker, text, audio_path=path) for speaker, text, path in turns]


def _closing(options: GenerateOptions, seconds: float, elapsed: float, *, full: bool) -> str:
    ended = ", stopped at --max-audio-length-ms" if full else ""
    peak = memory().peak / 1e9
    return (
        f"{options.output}: {seconds:.2f} s of audio in {elapsed:.2f} s "
        f"(real-time factor {elapsed / seconds:.2f}), peak memory {peak:.2f} GB{ended}"
    )


cli.callable_module(__name__, generate)

if __name__ == "__main__":
    cli.run(main, GenerateOptions)
