"""Codes as one stream of tokens, as language models over SNAC use them (Orpheus: 7 tokens per frame at 24 kHz).

A frame is a code of the coarsest level with all the finer ones under it, walked depth first:

    level 0    0                          position   0     1     2     3     4     5     6
    level 1    1           4              level      0     1     2     2     1     2     2
    level 2    2     3     5     6        token      code + position * 4096

so every position has a range of its own (28,672 tokens at 24 kHz; four levels make 15 positions). Source:
github.com/canopyai/Orpheus-TTS, whose ids begin at 128266.
"""

from collections.abc import Sequence

import numpy as np

from backends.errors import InputError
from snac_port.codes import Codes, check, whole
from snac_port.config import SNACConfig

ORPHEUS_FIRST = 128_266  # the id of token 0 in Orpheus' vocabulary
LARGEST_FIRST = 2**30  # whatever the codec, all tokens after it are int32


def check_first(first: int, option: str = "first") -> None:
    """Raise InputError where tokens would be negative, or too large for int32."""
    if not 0 <= first <= LARGEST_FIRST:
        raise InputError(f"{option} {first}: expected 0 to {LARGEST_FIRST}")


def flatten(codes: Codes, config: SNACConfig, *, first: int = 0) -> np.ndarray:
    """Codes -> tokens int32 (frames, positions); `first` is added to all."""
    columns = [
        np.asarray(codes.levels[level]).reshape(len(codes.levels[0]), -1)[:, place] for level, place in _walk(config)
    ]
    return (np.stack(columns, axis=1) + _offsets(config, first)).astype(np.int32)


def unflatten(
    tokens: Sequence[int] | np.ndarray, config: SNACConfig, *, first: int = 0, length: int | None = None
) -> Codes:
    """Tokens, in frames or in one row -> codes, of `length` samples if that is known.

    Raises InputError for a row that ends inside a frame, for a token outside its position's range, and for a length
    that is not that of so many frames.
    """
    row = np.asarray(tokens)
    row = row.reshape(-1) if row.size == 0 or row.dtype.kind in "iu" else _refuse_type(row)
    positions = len(_walk(config))
    if row.size == 0 or row.size % positions:
        raise InputError(
            f"{row.size} tokens are not whole frames of {positions}: leave out the last {row.size % positions}"
            if row.size
            else f"no tokens: expected whole frames of {positions}"
        )
    frames = row.reshape(-1, positions).astype(np.int64)
    values = frames - _offsets(config, first)
    _check_ranges(frames, values, config, first)
    levels = [np.zeros((len(frames), _children(config, level)), np.int32) for level in range(len(config.vq_strides))]
    for position, (level, place) in enumerate(_walk(config)):
        levels[level][:, place] = values[:, position]
    codes = whole(levels, config, length)
    if length is not None:
        check(codes, config)
    return codes


def positions(config: SNACConfig) -> int:
    """Tokens per frame: 7 for three levels, 15 for four."""
    return len(_walk(config))


def _walk(config: SNACConfig) -> list[tuple[int, int]]:
    """(level, place among the frame's codes of that level) of each position, depth first."""
    found: list[tuple[int, int]] = []

    def visit(level: int, place: int) -> None:
        found.append((level, place))
        if level + 1 < len(config.vq_strides):
            ratio = config.vq_strides[level] // config.vq_strides[level + 1]
            for child in range(ratio):
                visit(level + 1, place * ratio + child)

    visit(0, 0)
    return found


def _children(config: SNACConfig, level: int) -> int:
    return config.vq_strides[0] // config.vq_strides[level]


def _offsets(config: SNACConfig, first: int) -> np.ndarray:
    check_first(first)
    return first + config.codebook_size * np.arange(len(_walk(config)))


def _refuse_type(row: np.ndarray) -> np.ndarray:
    raise InputError(f"tokens are {row.dtype}, expected whole numbers")


def _check_ranges(frames: np.ndarray, values: np.ndarray, config: SNACConfig, first: int) -> None:
    wrong = np.argwhere((values < 0) | (values >= config.codebook_size))
    if len(wrong):
        frame, position = (int(index) for index in wrong[0])
        low = first + position * config.codebook_size
        raise InputError(
            f"token {frame * frames.shape[1] + position} is {frames[frame, position]}, expected {low} to "
            f"{low + config.codebook_size - 1} at position {position} of frame {frame}"
        )
