"""Train a MusicGen from scratch, or fine-tune one.

python -m musicgen_mlx.train --data loops --scale micro --conditioner none --output-dir runs/micro
python -m musicgen_mlx.train --data loops --model small --lora-rank 16 --output-dir runs/lora
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from backends import cli, get
from backends.adapters.matching import match
from backends.base import Backend, Hooks, LoRASpec, Sample, World
from backends.data import segments
from backends.data.codes import CodeCache, default_cache
from backends.data.wav import check_whole
from backends.errors import InputError
from backends.training import launch
from backends.training.loop import Result, train
from backends.training.options import check_precision
from backends.training.settings import Settings
from backends.training.state import check_early, frozen_identity
from musicgen_mlx import dataset
from musicgen_mlx.config import MusicGenConfig, of_scale
from musicgen_mlx.studio import Studio, from_pretrained, from_scratch
from musicgen_mlx.task import MusicGenTask, Plan
from musicgen_mlx.train_options import WIDEST, MusicGenOptions

SCALE = "micro"
GROUPS = {"attn": ("_attn.",), "mlp": ("linear1", "linear2"), "heads": ("linears.",), "embeddings": ("emb.",)}


def main(options: MusicGenOptions) -> None:
    """Start the ranks of --ddp, or train in this process."""
    launch.start("musicgen_mlx.train", options, train_model)


def train_model(options: MusicGenOptions) -> Result:
    """Train as the options say, or continue the run in their output_dir."""
    backend = get(options.backend, options.device)
    chief = backend.world.rank == 0
    settings = _settings(options)
    check_precision(options.precision, backend)
    segments.check_outside(options.output_dir, options.folders())
    train_on, held_out = recordings(options)
    check_early(backend, options, settings)
    studio = load(options, backend)
    config = studio.config
    prompt = _sample_prompt(options, studio, train_on)
    train_clips, held_clips = clips(studio, backend.world, train_on, held_out)
    if options.model is None:
        studio.hears_at_most(_longest_s(train_clips, config))
    task = MusicGenTask(
        config, backend.name, train_clips, _plan(options, config), backend.world, held_clips,
        rows_of=None if config.condition == "none" else _rows(studio, [*train_clips, *held_clips]),
        sampler=_Music(studio, prompt, options.sample_duration, options.seed), exporter=_exporter(options, studio),
        hooks=Hooks(precision=options.precision),
    )  # fmt: skip
    if chief:
        print(_describe(options, backend, studio, task))
    result = train(
        backend, studio.model, task, options,
        title=f"MusicGen on {options.data.name}", identity=_identity(backend, studio, task), settings=settings,
    )  # fmt: skip
    if chief:
        print(_closing(options, result))
    return result


def _settings(options: MusicGenOptions) -> Settings:
    """What the run is asked for; a default counts as if it was given."""
    if options.model is not None:
        return Settings.of(options)
    config = fresh_config(options)
    sizes = {"dim": config.width, "heads": config.heads, "layers": config.layers}
    return Settings.of(options, scale=options.scale or SCALE, conditioner=options.conditioner or "none", **sizes)


def _longest_s(clips: Sequence[dataset.Clip], config: MusicGenConfig) -> float:
    return max(map(len, clips)) / config.encodec.frame_hz


def recordings(options: MusicGenOptions) -> tuple[list[Path], list[Path]]:
    """The files to train and to validate on."""
    found = _whole(segments.find(options.data, "--data"))
    if options.val_data is None:
        return dataset.split(found, options.val_split)
    held_out = _whole(segments.find(options.val_data, "--val-data"))
    remedy = "folders below it count: give folders that are apart, or --val-split"
    segments.check_held_out(found, held_out, options.folders(), remedy)
    return found, held_out


def _whole(paths: list[Path]) -> list[Path]:
    segments.each(paths, check_whole)
    return paths


def load(options: MusicGenOptions, backend: Backend) -> Studio:
    """The model to train with its codec and text encoder."""
    brought = (options.codec, options.text_encoder)
    if options.model is None:
        made = from_scratch(fresh_config(options), options.seed, backend, *brought)
    else:
        made = from_pretrained(options.model, backend, *brought, float32=not options.lora_rank)
    if made.config.condition == "prepend":
        raise InputError(f"--model {options.model}: melody models need chroma, which training does not have")
    if made.config.condition == "none" and options.given("condition_dropout"):
        raise InputError("--condition-dropout: this model takes no condition that could be dropped: leave it out")
    if options.gradient_checkpointing:
        made.recompute()
    if options.lora_rank:
        _adapt(options, made)
    else:
        backend.train_only(made.model, lambda _name: True)
    return made


def _adapt(options: MusicGenOptions, studio: Studio) -> None:
    spec = LoRASpec(
        options.lora_rank, options.lora_alpha, options.dropout, use_rslora=options.use_rslora,
        use_dora=options.use_dora,
    )  # fmt: skip
    studio.adapters.put(match(studio.adapters.linears(), options.target_modules, None, GROUPS), spec, options.seed)
    if options.resume_from is not None and options.resume_from.is_file():
        studio.adapters.load(options.resume_from)


def fresh_config(options: MusicGenOptions) -> MusicGenConfig:
    """The scale with the options' own sizes."""
    config = of_scale(options.scale or SCALE, "cross" if options.conditioner == "text" else "none")
    width, heads = options.dim or config.width, options.heads or config.heads
    if width % heads or width % 2 or not 4 <= width <= WIDEST:
        raise InputError(
            f"--dim {width} --heads {heads}: expected an even width of 4 to {WIDEST} that the heads divide"
        )
    return replace(
        config, width=width, heads=heads, layers=options.layers or config.layers, mlp_width=4 * width, name="",
        segment_s=options.segment_duration,
    )  # fmt: skip


def clips(studio: Studio, world: World, *sides: list[Path]) -> list[list[dataset.Clip]]:
    """Training and validation clips, encoded now if they never were: by each process a part of them."""
    texts = studio.config.condition != "none"
    if texts:
        dataset.any_description(sides[0])
        tokens = studio.tokenizer().ids
        segments.each((path for paths in sides for path in paths), lambda path: dataset.description(path, tokens))
    cache = CodeCache(studio.encode, studio.codec_identity(), default_cache())
    if world.size > 1:
        dataset.clips([path for paths in sides for path in paths][world.rank :: world.size], cache, texts=texts)
        world.barrier()
    quiet = world.rank > 0
    return [dataset.clips(paths, cache, texts=texts, quiet=quiet) if paths else [] for paths in sides]


def _plan(options: MusicGenOptions, config: MusicGenConfig) -> Plan:
    return Plan(
        batch_size=options.batch_size,
        accumulation=options.gradient_accumulation,
        segment_frames=max(1, round(options.segment_duration * config.encodec.frame_hz)),
        condition_dropout=options.condition_dropout,
        visits=options.segments_per_recording,
        seed=options.seed,
    )


def _rows(studio: Studio, clips: list[dataset.Clip]) -> Callable[[str], np.ndarray]:
    """What the text encoder makes of every description, now: batches are made in a thread beside the training's."""
    known = {text: studio.text_rows(text) for text in sorted({clip.text for clip in clips} - {""})}
    return known.__getitem__


def _identity(backend: Backend, studio: Studio, task: MusicGenTask) -> dict[str, str]:
    """What must stay the same for a run to continue, and is in no checkpoint."""
    return {
        "training data": dataset.fingerprint(task.train),
        "validation data": dataset.fingerprint(task.held_out),
        "base model": frozen_identity(backend, studio.model),
        "text encoder": studio.text_identity(),
    }


def _sample_prompt(options: MusicGenOptions, studio: Studio, paths: list[Path]) -> str:
    if studio.config.condition != "none":
        try:
            studio.tokenizer().ids(options.sample_prompt or "")
        except InputError as error:
            raise InputError(f"--sample-prompt: {error}") from error
        return dataset.any_description(paths) if options.sample_prompt is None else options.sample_prompt
    if options.sample_prompt:
        raise InputError("--sample-prompt: this model takes no prompt; leave it out, or train with --conditioner text")
    return ""


@dataclass(frozen=True)
class _Music:
    """What is played at each evaluation."""

    studio: Studio
    prompt: str
    seconds: float
    seed: int

    def __call__(self, _model: Any, step: int) -> list[Sample]:
        if not self.seconds:
            return []
        sound = self.studio.sound(self.seconds, self.prompt, self.seed)
        caption = f'"{self.prompt}"' if self.prompt else "without a prompt"
        rate_hz = self.studio.config.encodec.sample_rate_hz
        return [Sample("before" if step == 0 else "generated", caption, sound, rate_hz)]


def _exporter(options: MusicGenOptions, studio: Studio) -> Callable[[Any, Path, str], Path | None]:
    def whole(_model: Any, directory: Path, label: str) -> Path | None:
        if label.startswith("step_"):
            return None
        return studio.save(directory / ("best_model" if label == "best" else "last_model"))

    def adapter(_model: Any, directory: Path, label: str) -> Path:
        path = directory / f"lora_ckpt_{label}.safetensors"
        studio.adapters.save(path, base=str(options.model))
        return path

    return adapter if options.lora_rank else whole


def _describe(options: MusicGenOptions, backend: Backend, studio: Studio, task: MusicGenTask) -> str:
    config = studio.config
    count = sum(math.prod(value.shape) for value in backend.trainable(studio.model).values())
    seconds = sum(len(clip) for clip in task.train) / config.encodec.frame_hz
    return (
        f"MusicGen of {config.layers} layers of width {config.width} with {config.heads} heads, "
        f"{'described' if task.rows_of else 'unconditional'}: trains {count:,} parameters on {backend.name}\n"
        f"{len(task.train)} recordings of {seconds:.0f} s to train on, {len(task.held_out)} to validate on, "
        f"segments of at most {min(options.segment_duration, _longest_s(task.train, config)):g} s"
        f"{f', {backend.world.size} processes' if backend.world.size > 1 else ''}"
    )


def _closing(options: MusicGenOptions, result: Result) -> str:
    loss = "" if result.loss is None else f", loss {result.loss:.4f}"
    value = "" if result.val_loss is None else f", best validation loss {result.val_loss:.4f}"
    best = "lora_ckpt_best.safetensors" if options.lora_rank else "best_model"
    lines = [
        f"done: {result.step} steps{loss}{value}",
        *([f"weights: {result.exported}"] if result.exported else []),
        *([f"best: {options.output_dir / best}"] if result.val_loss is not None else []),
        f"report: {result.report}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, MusicGenOptions)
