"""Descriptions as T5's token ids. NumPy only."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from backends.data.text import check_text
from backends.errors import InputError

EOS = "</s>"
LONGEST = 512  # tokens that T5 was trained on; its attention takes memory by their square
SHOWN = 40  # characters of a text in errors


class TextTokenizer:
    """A T5's tokenizer.json; `vocab` is the number of rows of the encoder's table."""

    def __init__(self, path: Path, vocab: int):
        self.path, self.vocab = path, vocab
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{path}: not a readable tokenizer.json ({error})") from error
        eos = self.tokenizer.token_to_id(EOS)
        if eos is None:
            raise InputError(f"{path}: lacks {EOS}; expected a T5's tokenizer.json")
        self.eos = eos
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> token ids (B, L) and which of them are text (B, L); each text ends with one end token."""
        rows = [self.ids(text) for text in texts]
        length = max(map(len, rows))
        ids: np.ndarray = np.zeros((len(rows), length), np.int32)
        mask: np.ndarray = np.zeros((len(rows), length), np.bool_)
        for row, given in enumerate(rows):
            ids[row, : len(given)], mask[row, : len(given)] = given, True
        return ids, mask

    def ids(self, text: str) -> list[int]:
        """The token ids of one text. Raises InputError for one with halves of characters or longer than `LONGEST`."""
        check_text(text)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if ids and max(ids) >= self.vocab:
            raise InputError(f"{self.path}: has tokens past the text encoder's vocabulary of {self.vocab}")
        if len(ids) >= LONGEST:
            start = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            raise InputError(f"text {start!r}: has {len(ids)} tokens, expected at most {LONGEST - 1}: shorten it")
        return [*ids, self.eos]
