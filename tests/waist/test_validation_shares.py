"""Validation is shared between ranks: each makes its own batches only, and together they make what one alone makes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from backends.base import Hooks
from backends.data import segments
from backends.training.codec import CodecPlan, CodecTask
from backends.training.curriculum import stages
from csm_mlx.task import CSMTask, Example
from csm_mlx.task import Plan as CSMPlan
from musicgen_mlx.config import musicgen_tiny
from musicgen_mlx.dataset import Clip
from musicgen_mlx.task import MusicGenTask
from musicgen_mlx.task import Plan as MusicGenPlan


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    size: int = 1

    def sum(self, values):
        return list(values)

    def barrier(self):
        pass


class Plain:
    """A codec's family whose batches are the audio and each segment's key."""

    coefficients = {"distance": 1.0}
    hooks = Hooks()

    def codes(self, _path):
        return None

    def batch(self, audio, _codes, keys, *, training):
        assert not training
        return {"audio": audio, "keys": np.array(keys, np.uint64)}


def codec(folder: Path) -> Any:
    draw = np.random.default_rng(0)
    for number in range(7):
        soundfile.write(folder / f"{number}.wav", draw.uniform(-1, 1, 12_000), 8000)
    source = segments.source(segments.find(folder, "--x"), 8000, 100)
    plan = CodecPlan(stages("", 1, 2, 0.5), validation_batch=2)
    return CodecTask(Plain(), source, source, plan, Ranks(), lambda *_: None)  # type: ignore[arg-type]


def csm(_folder: Path) -> Any:
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 9, (length, 9), dtype=np.int32) for length in (9, 30, 12, 40, 17, 25, 33)]
    examples = [Example(row, np.arange(len(row)) >= 4, np.arange(len(row)) >= 5) for row in rows]
    return CSMTask([], CSMPlan(2), Ranks(), examples)


def musicgen(_folder: Path) -> Any:
    config, draw = musicgen_tiny("none"), np.random.default_rng(0)
    codes = [draw.integers(0, 9, (config.codebooks, length), dtype=np.int32) for length in (9, 30, 12, 40, 17, 25, 33)]
    clips = [Clip(Path("a.wav"), row, "") for row in codes]
    return MusicGenTask(config, "mlx", [], MusicGenPlan(2), Ranks(), clips)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("family", [codec, csm, musicgen])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_make_together_what_one_makes(family, size, tmp_path):
    task = family(tmp_path)
    whole = list(task.validation(1))
    assert len(whole) == 4
    for rank in range(size):
        mine = list(replace(task, world=Ranks(rank, size)).validation(1))
        expected = whole[rank::size]
        assert len(mine) == len(expected), "with five ranks one has none"
        assert all(same(*pair) for pair in zip(mine, expected, strict=True))


def test_a_rank_reads_no_others_recordings(tmp_path, monkeypatch):
    task, read = codec(tmp_path), []
    monkeypatch.setattr(segments, "parts", lambda path, rate_hz: read.append(path) or (lambda _start, n: np.ones(n)))
    for rank in (0, 1):
        list(replace(task, world=Ranks(rank, 2)).validation(1))
        assert len(read) == (4, 7)[rank]
    assert len(set(read)) == 7
