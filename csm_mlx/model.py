"""CSM: a backbone over frames and a depth decoder over a frame's codebooks (github.com/SesameAILabs/csm, models.py).

Letters: B batch, T rows (text tokens and audio frames in one sequence), K codebooks, D width, V audio vocabulary.
Module names are csm-mlx's.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from backends.mlx_backend.generating import GenerativeModel
from csm_mlx.config import CSMConfig
from csm_mlx.llama import GrowingCache, Llama


class CSM(GenerativeModel):
    """The model of `config`, e.g. `CSM(csm_1b())`, with random weights until some are loaded.

    `codec` and `tokenizer` are what generation and training on audio need besides; `from_pretrained` brings those that
    lie beside the weights, otherwise first use fetches the pinned ones (`csm_mlx.companions`).
    """

    def __init__(self, config: CSMConfig):
        super().__init__()
        self.config = config
        width, depth_width = config.backbone.width, config.decoder.width
        self.backbone = Llama(config.backbone)
        self.decoder = Llama(config.decoder)
        self.text_embeddings = nn.Embedding(config.text_vocab, width)
        self.audio_embeddings = nn.Embedding(config.audio_vocab * config.codebooks, width)
        self.projection = nn.Linear(width, depth_width, bias=False)
        self.codebook0_head = nn.Linear(width, config.audio_vocab, bias=False)
        self.audio_head = mx.random.normal(
            (config.codebooks - 1, depth_width, config.audio_vocab), scale=depth_width**-0.5
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, **companions: Any) -> "CSM":
        """Load from a directory or Hub id; see `csm_mlx.load.from_pretrained`."""
        from csm_mlx.load import from_pretrained

        return from_pretrained(source, **companions)

    def bring(self, *, codec: str | Path | None = None, tokenizer: str | Path | None = None) -> "CSM":
        """Use this codec and tokenizer (a file, a directory or a Hub id each) instead of the ones found or pinned."""
        from csm_mlx.companions import load_codec, load_tokenizer

        if codec is not None:
            self._companions["codec"] = load_codec(codec)
        if tokenizer is not None:
            self._companions["tokenizer"] = load_tokenizer(tokenizer)
        return self

    def load_weights(self, file_or_weights: Any, strict: bool = True) -> "CSM":
        """Load a csm-mlx file (a path), or (name, array) pairs, naming what does not fit."""
        from csm_mlx.load import load_file

        if isinstance(file_or_weights, (str, Path)):
            load_file(self, Path(file_or_weights), strict=strict)
            return self
        super().load_weights(file_or_weights, strict=strict)
        return self

    def embed(self, tokens: mx.array, is_audio: mx.array) -> mx.array:
        """Rows (B, T, K + 1) -> backbone inputs (B, T, D).

        Columns 0..K-1 hold a frame's codes, column K a text id; `is_audio` (B, T) says which of the two a row is. A
        frame's K embeddings are summed.
        """
        text = self.text_embeddings(tokens[..., -1]).astype(self.dtype)
        return mx.where(is_audio[..., None], self.embed_frames(tokens[..., :-1]), text)

    def embed_frames(self, codes: mx.array) -> mx.array:
        """Codes (..., K) -> sums of their embeddings (..., D)."""
        first_rows = self.config.audio_vocab * mx.arange(self.config.codebooks)
        return self.audio_embeddings(codes + first_rows).sum(axis=-2).astype(self.dtype)

    def embed_code(self, codebook: int, codes: mx.array) -> mx.array:
        """Codes of one codebook (...) -> embeddings (..., D)."""
        return self.audio_embeddings(codes + codebook * self.config.audio_vocab).astype(self.dtype)

    def depth_logits(self, hidden: mx.array, codes: mx.array) -> mx.array:
        """Teacher-forced logits of codebooks 1..K-1 for N frames, (N, K - 1, V).

        `hidden` (N, D) is the backbone's output at the row before each frame, `codes` (N, K) the frame's own codes.
        The decoder reads hidden, c0, c1, ... c_{K-2}; what it says at c_{k-1} predicts codebook k.
        """
        K = self.config.codebooks
        first_rows = self.config.audio_vocab * mx.arange(K - 1)
        embedded = self.audio_embeddings(codes[:, : K - 1] + first_rows).astype(self.dtype)
        inputs = mx.concatenate([hidden[:, None], embedded], axis=1)
        outputs = self.decoder(self.projection(inputs))[:, 1:]
        return (outputs.swapaxes(0, 1) @ self.audio_head).swapaxes(0, 1)

    def frame(self, hidden: mx.array, pick: Any) -> mx.array:
        """One frame (B, K) after the backbone's output `hidden` (B, D).

        `pick(logits, codebook)` chooses codes (B,) from logits over the codec's entries: the special codes after them
        are never drawn. Shapes are static, so the whole frame can be compiled.
        """
        entries = self.config.mimi.entries
        codes = [pick(self.codebook0_head(hidden)[:, :entries], 0)]
        caches = [GrowingCache() for _ in self.decoder.layers]
        inputs = mx.stack([hidden, self.embed_code(0, codes[0])], axis=1)
        for codebook in range(1, self.config.codebooks):
            output = self.decoder(self.projection(inputs), caches)[:, -1]
            codes.append(pick((output @ self.audio_head[codebook - 1])[:, :entries], codebook))
            inputs = self.embed_code(codebook, codes[-1])[:, None]
        return mx.stack(codes, axis=1)

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype activations have."""
        return self.backbone.norm.weight.dtype
