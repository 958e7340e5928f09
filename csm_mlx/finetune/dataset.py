"""From a dataset JSON to training examples: text tokenised, audio encoded once and cached."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from backends.base import Backend
from backends.data import audio
from backends.data.codes import CodeCache, default_cache, identity
from backends.data.manifest import Clip, Conversation
from backends.data.segments import each
from backends.data.wav import check_whole
from backends.errors import InputError
from backends.mlx_backend import parameters
from csm_mlx import tokens
from csm_mlx.companions import codec_of, tokenizer_of
from csm_mlx.model import CSM
from csm_mlx.task import Example


@dataclass(frozen=True)
class Limits:
    """What of a conversation becomes an example."""

    max_audio_ms: float | None = None
    mask_speakers: tuple[int, ...] = ()


def code_cache(model: CSM, backend: Backend) -> CodeCache:
    """The cache of this model's codec."""
    codec = codec_of(model)
    rate_hz = codec.config.sample_rate_hz

    def encode(path: Path) -> np.ndarray:
        return tokens.encode_audio(codec, audio.read(path, rate_hz))

    known_by = identity(backend.fingerprint(parameters.parameters(codec)), asdict(codec.config))
    return CodeCache(encode, known_by, default_cache())


def check_audio(conversations: Sequence[Conversation], rate_hz: int) -> None:
    """Read every recording, which is cheap beside encoding it. Raises one InputError that names the bad ones."""

    def look(path: Path) -> None:
        audio.read(path, rate_hz)
        check_whole(path)

    each(tqdm(dict.fromkeys(clip.audio_path for row in conversations for clip in row), desc="reading"), look)


def check_speakers(conversations: Sequence[Conversation], masked: Sequence[int]) -> None:
    """Raise InputError that names the speakers of the data where one of the `masked` is not among them."""
    speakers = {clip.speaker for row in conversations for clip in row}
    unknown = sorted(set(masked) - speakers)
    if unknown:
        there = " ".join(map(str, sorted(speakers)))
        raise InputError(f"--mask-speakers {unknown[0]}: no row has this speaker; those of the data are {there}")


def examples(
    conversations: Sequence[Conversation],
    model: CSM,
    cache: CodeCache,
    limits: Limits,
    report: Callable[[str], None] = print,
    *,
    option: str = "--data-path",
) -> list[Example]:
    """Encode the conversations; says which are left out.

    Raises InputError if none of them, which `option` gave, is left, and where a clip cannot be read.
    """
    made, left_out = [], []
    for conversation in tqdm(conversations, desc="encoding", unit="row"):
        codes = [cache(clip.audio_path)[: model.config.codebooks] for clip in conversation]
        turns = _within(list(zip(conversation, codes, strict=True)), model, limits)
        example = _example(turns, model, limits) if turns else None
        if example is not None and example.targets.any():
            made.append(example)
        else:
            left_out.append(conversation[-1].audio_path)
    if left_out:
        report(f"left out {len(left_out)} rows that are too long or have no target speaker, e.g. {left_out[0]}")
    if not made:
        raise InputError(f"{option}: no row is left; see --max-audio-length-ms and --mask-speakers")
    return made


def fingerprint(made: Sequence[Example]) -> str:
    """A hash of what the examples hold, to tell whether a run may continue on them."""
    digest = hashlib.sha256()
    for example in made:
        for array in (example.rows, example.is_audio, example.targets):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _within(turns: list[tuple[Clip, np.ndarray]], model: CSM, limits: Limits) -> list[tuple[Clip, np.ndarray]]:
    """Drop the oldest turns until the audio fits; nothing is cut in the middle."""
    if limits.max_audio_ms is None:
        return turns
    most = limits.max_audio_ms / model.config.frame_ms
    while turns and sum(codes.shape[1] for _, codes in turns) > most:
        turns = turns[1:]
    return turns


def _example(turns: Sequence[tuple[Clip, np.ndarray]], model: CSM, limits: Limits) -> Example:
    K, tokenizer = model.config.codebooks, tokenizer_of(model)
    parts, targets = [], []
    for clip, codes in turns:
        text = tokens.text_rows(tokenizer.encode(clip.text, clip.speaker), K)
        sound = tokens.audio_rows(codes)
        parts += [(text, False), (sound, True)]
        wanted = clip.speaker not in limits.mask_speakers
        targets += [np.zeros(len(text), bool), np.full(len(sound), wanted)]
    rows, is_audio = tokens.join(parts)
    return Example(rows, is_audio, np.concatenate(targets))
