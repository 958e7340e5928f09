"""From a dataset JSON to training examples: text tokenised, audio encoded once and cached."""

import hashlib
import math
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


@dataclass(frozen=True)
class _Turn:
    """A clip as rows (T, K + 1) of its text and of its frames, the end frame included."""

    text: np.ndarray
    sound: np.ndarray
    wanted: bool

    def __len__(self) -> int:
        return len(self.text) + len(self.sound)

    @property
    def frames(self) -> int:
        return len(self.sound) - 1


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
    paths = dict.fromkeys(clip.audio_path for row in conversations for clip in row)
    each(tqdm(paths, desc="reading"), lambda path: audio.read(path, rate_hz))


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
    """Encode the conversations.

    No example is longer than the model has positions: a conversation loses its oldest turns until it fits, and where
    the last one alone does not the row is left out. Says which rows lack turns or are left out. Raises InputError if
    none of them, which `option` gave, is left, and where a clip cannot be read.
    """
    made, too_long, shortened, others = [], [], [], []
    for conversation in tqdm(conversations, desc="encoding", unit="row"):
        last = conversation[-1].audio_path
        heard = _within_audio([_turn(clip, model, cache, limits) for clip in conversation], model, limits)
        turns = _within_positions(heard, model)
        if any(turn.wanted for turn in turns):
            made.append(_example(turns))
            if len(turns) < len(heard):
                shortened.append(last)
        elif heard and not turns:
            too_long.append((last, len(heard[-1])))
        else:
            others.append(last)
    positions = f"the model has {model.config.max_positions} positions"
    for path, rows in too_long:
        report(f"left out {path}: {rows} text tokens and frames, {positions}: cut it where the text can be cut")
    if shortened:
        report(f"left out the oldest turns of {len(shortened)} conversations, {positions}: e.g. before {shortened[0]}")
    if others:
        report(f"left out {len(others)} rows that are too long or have no target speaker, e.g. {others[0]}")
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


def _turn(clip: Clip, model: CSM, cache: CodeCache, limits: Limits) -> _Turn:
    K = model.config.codebooks
    text = tokens.text_rows(tokenizer_of(model).encode(clip.text, clip.speaker), K)
    sound = tokens.audio_rows(cache(clip.audio_path)[:K])
    return _Turn(text, sound, clip.speaker not in limits.mask_speakers)


def _within_audio(turns: list[_Turn], model: CSM, limits: Limits) -> list[_Turn]:
    """Drop the oldest turns until the audio fits; nothing is cut in the middle."""
    most = math.inf if limits.max_audio_ms is None else limits.max_audio_ms / model.config.frame_ms
    while turns and sum(turn.frames for turn in turns) > most:
        turns = turns[1:]
    return turns


def _within_positions(turns: list[_Turn], model: CSM) -> list[_Turn]:
    """Drop the oldest turns until the model has a position for each row."""
    while turns and sum(len(turn) for turn in turns) > model.config.max_positions:
        turns = turns[1:]
    return turns


def _example(turns: Sequence[_Turn]) -> Example:
    rows, is_audio = tokens.join([part for turn in turns for part in ((turn.text, False), (turn.sound, True))])
    targets = [
        part for turn in turns for part in (np.zeros(len(turn.text), bool), np.full(len(turn.sound), turn.wanted))
    ]
    return Example(rows, is_audio, np.concatenate(targets))
