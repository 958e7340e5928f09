"""Train a MusicGen from scratch, or fine-tune one.

python -m musicgen_mlx.train --data loops --scale micro --conditioner none --output-dir runs/micro
python -m musicgen_mlx.train --data loops --model small --lora-rank 16 --output-dir runs/lora
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from backends import cli, get
from backends.adapters import files
from backends.adapters.matching import match
from backends.base import Backend, LoRASpec, Sample
from backends.data import segments
from backends.data.codes import CodeCache, default_cache
from backends.errors import InputError
from backends.training.loop import Result, train
from musicgen_mlx import dataset, initial
from musicgen_mlx.config import MusicGenConfig, of_scale
from musicgen_mlx.task import MusicGenTask, Plan
from musicgen_mlx.train_options import MusicGenOptions

GROUPS = {"attn": ("_attn.",), "mlp": ("linear1", "linear2"), "heads": ("linears.",)}


def main(options: MusicGenOptions) -> None:
    """Train as the options say, or continue the run in their output_dir."""
    backend = get(options.backend, options.device)
    side = importlib.import_module(f"musicgen_mlx.{backend.name}_side")
    model = load(options, backend, side)
    config = model.config
    if config.condition == "prepend":
        raise InputError(f"--model {options.model}: melody models need chroma, which training does not have")
    train_on, held_out = clips(options, side, model)
    task = MusicGenTask(
        config, backend.name, train_on, _plan(options, config), backend.world, held_out,
        rows_of=None if config.condition == "none" else _rows(side, model),
        sampler=_sampler(options, side, train_on), exporter=_exporter(options, backend, side),
    )  # fmt: skip
    print(_describe(options, backend, model, task))
    identity = {"training data": dataset.fingerprint(train_on), "validation data": dataset.fingerprint(held_out)}
    result = train(backend, model, task, options, title=f"MusicGen on {options.data.name}", identity=identity)
    print(_closing(result))


def load(options: MusicGenOptions, backend: Backend, side: Any) -> Any:
    """The model to train, in float32 where it trains, with its codec and text encoder."""
    if options.model is None:
        model = side.from_scratch(fresh_config(options, side), lambda config: initial.tensors(config, options.seed))
        side.bring(model, options.codec, options.text_encoder)
    else:
        model = side.from_pretrained(options.model, options.codec, options.text_encoder, float32=not options.lora_rank)
    if options.gradient_checkpointing:
        side.recompute(model)
    if not options.lora_rank:
        backend.train_only(model, lambda _name: True)
        return model
    names = match(backend.linears(model), options.target_modules, None, GROUPS)
    spec = LoRASpec(options.lora_rank, options.lora_alpha, options.dropout)
    backend.adapt(model, names, spec, options.seed)
    return model


def fresh_config(options: MusicGenOptions, side: Any) -> MusicGenConfig:
    """The scale with the options' own sizes, for the codec and text encoder in use."""
    config = of_scale(options.scale, "cross" if options.conditioner == "text" else "none")
    width, heads = options.dim or config.width, options.heads or config.heads
    if width % heads or width % 2:
        raise InputError(f"--dim {width} --heads {heads}: expected an even width that the heads divide")
    config = replace(
        config, width=width, heads=heads, layers=options.layers or config.layers, mlp_width=4 * width, name=""
    )
    return side.for_companions(config, options.codec, options.text_encoder)


def clips(options: MusicGenOptions, side: Any, model: Any) -> tuple[list[dataset.Clip], list[dataset.Clip]]:
    """Training and validation clips, encoded now if they never were."""
    config = model.config
    paths = segments.find(options.data, "--data")
    if options.val_data is not None:
        held = segments.find(options.val_data, "--val-data")
    else:
        paths, held = dataset.split(paths, options.val_split)
    length = max(1, round(options.segment_duration * config.encodec.frame_hz)) * config.encodec.frame_samples
    cache = CodeCache(lambda path: side.encode_file(model, path, length), side.codec_identity(model), default_cache())
    texts = config.condition != "none"
    return (
        dataset.clips(paths, cache, texts=texts),
        dataset.clips(held, cache, texts=texts) if held else [],
    )


def _plan(options: MusicGenOptions, config: MusicGenConfig) -> Plan:
    return Plan(
        batch_size=options.batch_size,
        accumulation=options.gradient_accumulation,
        segment_frames=max(1, round(options.segment_duration * config.encodec.frame_hz)),
        condition_dropout=options.condition_dropout,
        seed=options.seed,
    )


def _rows(side: Any, model: Any) -> Callable[[str], np.ndarray]:
    """Descriptions are encoded once."""
    known: dict[str, np.ndarray] = {}

    def rows(text: str) -> np.ndarray:
        if text not in known:
            known[text] = side.text_rows(model, text)
        return known[text]

    return rows


@dataclass(frozen=True)
class _Music:
    """What is played at each evaluation."""

    side: Any
    prompt: str
    seconds: float
    seed: int

    def __call__(self, model: Any, step: int) -> list[Sample]:
        codec = model.config.encodec
        frames = max(1, round(self.seconds * codec.frame_hz))
        sound = self.side.sound(model, frames, self.prompt, self.seed)
        caption = f'"{self.prompt}"' if self.prompt else "without a prompt"
        return [Sample("before" if step == 0 else "generated", caption, sound, codec.sample_rate_hz)]


def _sampler(options: MusicGenOptions, side: Any, found: list[dataset.Clip]) -> Callable[[Any, int], list[Sample]]:
    if not options.sample_duration:
        return lambda _model, _step: []
    described = next((clip.text for clip in found if clip.text), "")
    prompt = described if options.sample_prompt is None else options.sample_prompt
    return _Music(side, prompt, options.sample_duration, options.seed)


def _exporter(options: MusicGenOptions, backend: Backend, side: Any) -> Callable[[Any, Path, str], Path | None]:
    def whole(model: Any, directory: Path, label: str) -> Path | None:
        if label.startswith("step_"):
            return None
        return side.save(model, directory / ("best_model" if label == "best" else "last_model"))

    def adapter(model: Any, directory: Path, label: str) -> Path:
        path = directory / f"lora_ckpt_{label}.safetensors"
        files.save_adapter(backend, model, path, files.adapter_info(backend, model, base=str(options.model)))
        return path

    return adapter if options.lora_rank else whole


def _describe(options: MusicGenOptions, backend: Backend, model: Any, task: MusicGenTask) -> str:
    config, trained = model.config, backend.trainable(model).values()
    count = sum(value.size if backend.name == "mlx" else value.numel() for value in trained)
    seconds = sum(len(clip) for clip in task.train) / config.encodec.frame_hz
    return (
        f"MusicGen of {config.layers} layers of width {config.width} with {config.heads} heads, "
        f"{'described' if task.rows_of else 'unconditional'}: trains {count:,} parameters on {backend.name}\n"
        f"{len(task.train)} recordings of {seconds:.0f} s to train on, {len(task.held_out)} to validate on, "
        f"segments of at most {options.segment_duration:g} s"
    )


def _closing(result: Result) -> str:
    loss = "" if result.loss is None else f", loss {result.loss:.4f}"
    value = "" if result.val_loss is None else f", best validation loss {result.val_loss:.4f}"
    lines = [f"done: {result.step} steps{loss}{value}"]
    return "\n".join(
        [*lines, *([f"weights: {result.exported}"] if result.exported else []), f"report: {result.report}"]
    )


if __name__ == "__main__":
    cli.run(main, MusicGenOptions)
