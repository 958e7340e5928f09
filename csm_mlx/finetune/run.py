"""What both fine-tuning commands do: load, encode, tell what will happen, train."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from backends import get
from backends.base import Sample
from backends.data import audio
from backends.data.manifest import Clip, Conversation, read_manifest
from backends.errors import InputError
from backends.seeds import rng
from backends.training.loop import Result, train
from backends.training.state import check_early, frozen_identity
from csm_mlx.companions import codec_of
from csm_mlx.finetune import dataset
from csm_mlx.finetune.estimate import describe
from csm_mlx.finetune.options import CSMOptions
from csm_mlx.generation import generate, prompt_rows
from csm_mlx.load import from_pretrained
from csm_mlx.model import CSM
from csm_mlx.task import CSMTask, Example, Plan

Exporter = Callable[[CSM, Path, str], Path | None]


def load_model(options: CSMOptions, *, trains_whole: bool) -> CSM:
    """The base model of the options, with what trains in float32: bfloat16 would round small updates away."""
    dtype = options.dtype or ("float32" if trains_whole else None)
    model = from_pretrained(
        options.model,
        weights=options.pretrained_path,
        codec=options.codec,
        tokenizer=options.tokenizer,
        dtype=dtype,
    )
    model.backbone.recompute = model.decoder.recompute = options.gradient_checkpointing
    return model


def finetune(options: CSMOptions, model: CSM, export: Exporter, title: str) -> Result:
    """Train what is trainable in `model` on the options' dataset, as `backends.training.loop.train` does."""
    backend = get("mlx")
    check_early(backend, options)
    conversations = read_manifest(options.data_path)[: options.max_samples]
    training, held_out = _split(conversations, options)
    dataset.check_speakers([*training, *held_out], options.mask_speakers)
    if shared := _shared(training, held_out, options.mask_speakers):
        print(f"note: {shared}")
    sampler = _sampler(options, model, training)
    dataset.check_audio([*training, *held_out], model.config.mimi.sample_rate_hz)
    cache = dataset.code_cache(model, backend)
    limits = dataset.Limits(options.max_audio_length_ms, options.mask_speakers)
    train_on = dataset.examples(training, model, cache, limits)
    option = "--val-split" if options.val_path is None else "--val-path"
    validate_on = dataset.examples(held_out, model, cache, limits, option=option) if held_out else []
    task = CSMTask(train_on, _plan(options, model), backend.world, validate_on, sampler, export)
    print(describe(model, task, options, backend))
    identity = {
        "dataset": dataset.fingerprint([*train_on, *validate_on]),
        "base model": frozen_identity(backend, model),
    }
    result = train(backend, model, task, options, title=title, identity=identity)
    print(_closing(result))
    return result


def _plan(options: CSMOptions, model: CSM) -> Plan:
    return Plan(
        batch_size=options.batch_size,
        accumulation=options.gradient_accumulation,
        depth_fraction=options.depth_fraction,
        first_codebook_weight=options.first_codebook_weight,
        seed=options.seed,
        frame_s=model.config.frame_ms / 1000,
    )


def _split(conversations: list[Conversation], options: CSMOptions) -> tuple[list[Conversation], list[Conversation]]:
    if options.val_path is not None:
        return conversations, read_manifest(options.val_path)
    if not options.val_split:
        return conversations, []
    count = round(options.val_split * len(conversations))
    if not 0 < count < len(conversations):
        raise InputError(
            f"--val-split {options.val_split} of {len(conversations)} rows leaves one side empty: give another share"
        )
    chosen = set(rng(options.seed, 0).permutation(len(conversations))[:count].tolist())
    training = [row for index, row in enumerate(conversations) if index not in chosen]
    return training, [conversations[index] for index in sorted(chosen)]


def _shared(training: list[Conversation], held_out: list[Conversation], masked: tuple[int, ...]) -> str:
    """What to say of recordings on both sides. Not an error: rows may share what was said before."""
    trained, validated = (
        {clip.audio_path.resolve() for row in rows for clip in row if clip.speaker not in masked}
        for rows in (training, held_out)
    )
    if not (both := trained & validated):
        return ""
    return (
        f"{len(both)} of {len(validated)} recordings to validate on are trained on too, such as {min(both).name}: the "
        "validation loss says less about new speech"
    )


@dataclass(frozen=True)
class _Speech:
    """What is said at each evaluation."""

    clip: Clip
    text: str
    speaker: int
    longest_ms: float
    seed: int

    def __call__(self, model: CSM, step: int) -> list[Sample]:
        sound = generate(model, self.text, self.speaker, (), self.longest_ms, seed=self.seed)
        rate_hz = model.config.mimi.sample_rate_hz
        name = "before" if step == 0 else "generated"
        made = [
            Sample(
                name, self._caption(), np.array(sound) if sound.size else np.zeros(rate_hz // 10, np.float32), rate_hz
            )
        ]
        return self._recording(model, rate_hz) + made if step == 0 else made

    def _recording(self, model: CSM, rate_hz: int) -> list[Sample]:
        """The first clip of the data, and what the codec makes of it: no sample can be better than that."""
        caption = f'[{self.clip.speaker}] "{self.clip.text}"'
        original = audio.read(self.clip.audio_path, rate_hz)
        codec = codec_of(model)
        coded = codec.decode(codec.encode(mx.array(original)[None]))[0, : original.size].astype(mx.float32)
        return [Sample("recording", caption, original, rate_hz), Sample("codec", caption, np.array(coded), rate_hz)]

    def _caption(self) -> str:
        return f'[{self.speaker}] "{self.text}"'


def _sampler(options: CSMOptions, model: CSM, conversations: list[Conversation]) -> Callable[[CSM, int], list[Sample]]:
    if options.sample_text == "":
        return lambda _model, _step: []
    clip = conversations[0][0]
    speaker = clip.speaker if options.sample_speaker is None else options.sample_speaker
    text = options.sample_text or clip.text
    _check_room(model, text, speaker, options.sample_ms)
    return _Speech(clip, text, speaker, options.sample_ms, options.seed)


def _check_room(model: CSM, text: str, speaker: int, longest_ms: float) -> None:
    """Refuse before anything is encoded a sample that `generate` would refuse after."""
    rows, _ = prompt_rows(model, text, speaker, ())
    room = max(0, model.config.max_positions - len(rows) - 1)
    if int(longest_ms / model.config.frame_ms) > room:
        raise InputError(
            f"--sample-ms {longest_ms}: the model's positions hold {room * model.config.frame_ms:.0f} ms after the "
            f"{len(rows)} tokens of the sample's text: give less"
        )


def _closing(result: Result) -> str:
    parts = [f"{result.step} steps"]
    if result.loss is not None:
        parts.append(f"loss {result.loss:.4f}")
    if result.val_loss is not None:
        parts.append(f"best validation loss {result.val_loss:.4f}")
    lines = [f"done: {', '.join(parts)}"]
    if result.exported:
        lines.append(f"weights: {result.exported}")
    if result.val_loss is not None:
        lines += [f"best: {path}" for path in result.report.parent.glob("*ckpt_best.safetensors")]
    return "\n".join([*lines, f"report: {result.report}"])


__all__ = ["Example", "finetune", "load_model"]
