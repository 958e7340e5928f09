"""How CSM lays out text and audio: rows of K codes and one text id.

    column   0 .. K-1          K            is_audio
    text     0 .. 0            token id     no          <bos> [speaker]text <eos>, one row per token
    audio    c0 .. c_{K-1}     0            yes         one row per 80 ms frame
    EOS      0 .. 0            0            yes         one row after a segment's audio

Segments follow each other without anything between them (github.com/SesameAILabs/csm, generator.py).
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from backends.data import audio as audio_files
from backends.data.text import check_text
from backends.errors import InputError

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"


class Segment:
    """An utterance of a conversation: who says what, and its sound as `audio` (samples,) at 24 kHz or as a file.

    `audio` is in floats from -1 to 1, or in int16 or int32, which are scaled by their range.
    """

    def __init__(self, speaker: int, text: str, audio: Any = None, audio_path: str | Path | None = None):
        if audio is None and audio_path is None:
            raise InputError("Segment: give audio (samples,) at 24 kHz, or audio_path")
        if not isinstance(text, str):
            raise InputError(f"Segment text is {text!r}: expected what is said")
        self.speaker, self.text, self.audio_path = speaker, text, audio_path
        self._audio = audio

    def samples(self, rate_hz: int) -> np.ndarray:
        """The audio as float32 (samples,); a file is resampled, an array is taken to be at `rate_hz`.

        Raises InputError for an array of another shape or type, and for NaN or infinite samples.
        """
        if self._audio is not None:
            return _floats(self._audio, rate_hz)
        return audio_files.read(Path(str(self.audio_path)), rate_hz)


def _floats(audio: Any, rate_hz: int) -> np.ndarray:
    """Samples of an array of any library as float32 (samples,)."""
    if isinstance(audio, mx.array) and mx.issubdtype(audio.dtype, mx.floating):
        audio = audio.astype(mx.float32)  # NumPy has no bfloat16
    samples = audio_files.floats(audio, "Segment audio")
    if samples.ndim != 1:
        raise InputError(f"Segment audio: expected (samples,) at {rate_hz} Hz, found shape {samples.shape}")
    return samples


class TextTokenizer:
    """A tokenizer.json with Llama 3's begin and end tokens."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{path}: not a readable tokenizer.json ({error})") from error
        bos, eos = self.tokenizer.token_to_id(BOS), self.tokenizer.token_to_id(EOS)
        if bos is None or eos is None:
            raise InputError(f"{path}: lacks {BOS} or {EOS}; expected Llama 3's tokenizer.json")
        self.bos, self.eos = bos, eos

    def encode(self, text: str, speaker: int) -> list[int]:
        """Ids of `<bos>[speaker]text<eos>`; no space follows the bracket.

        Raises InputError for a text with halves of characters.
        """
        check_text(text)
        ids = self.tokenizer.encode(f"[{speaker}]{text}", add_special_tokens=False).ids
        return [self.bos, *ids, self.eos]


def text_rows(ids: list[int], codebooks: int) -> np.ndarray:
    """Text ids -> rows (T, K + 1)."""
    rows = np.zeros((len(ids), codebooks + 1), np.int32)
    rows[:, -1] = ids
    return rows


def audio_rows(codes: np.ndarray) -> np.ndarray:
    """Codes (K, T) -> rows (T + 1, K + 1), the EOS row last."""
    K, T = codes.shape
    rows = np.zeros((T + 1, K + 1), np.int32)
    rows[:T, :K] = codes.T
    return rows


def join(parts: list[tuple[np.ndarray, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate (rows, is_audio) parts -> rows (T, K + 1), is_audio (T,)."""
    rows = np.concatenate([rows for rows, _ in parts])
    return rows, np.concatenate([np.full(len(rows), is_audio) for rows, is_audio in parts])


def encode_audio(codec: Any, samples: np.ndarray) -> np.ndarray:
    """Audio (samples,) -> codes (K, T), int32 on the host."""
    return np.array(codec.encode(mx.array(samples)[None])[0]).astype(np.int32)
