"""Generation on PyTorch with NumPy at its borders; `musicgen_mlx.mlx_engine` is its mirror."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends.base import Memory
from backends.errors import InputError
from backends.torch_backend import memory
from backends.torch_backend.sampling import Sampler
from musicgen_mlx import sources, torch_generation
from musicgen_mlx import torch_model as door
from musicgen_mlx.config import encodec_of_settings
from musicgen_mlx.growing import Growing
from musicgen_mlx.music import Sampling
from musicgen_mlx.text import TextTokenizer


class Engine:
    """A MusicGen with its codec and text encoder, which load when they are first needed."""

    name = "torch"

    def __init__(self, model: door.AnyMusicGen, found: sources.Found):
        self.model, self.config, self.found = model, model.shapes, found
        self.device = next(model.parameters()).device
        self._made: dict[str, Any] = {}

    @classmethod
    def load(
        cls, source: str | Path, *, codec: str | None = None, text_encoder: str | None = None,
        dtype: str | None = None, bits: int | None = None, device: str | None = None,
    ) -> "Engine":  # fmt: skip
        """As `mlx_engine.Engine.load`, without `bits`."""
        if bits:
            raise InputError("--bits: quantised weights are MLX's; leave it out, or take --backend mlx")
        sources.check_dtype(dtype)
        found = sources.found(source, codec, text_encoder)
        where = torch.device(device or "cpu")
        model: Any = door.of_checkpoint(found.model)
        memory.reset_peak_memory(where)
        return cls(model.to(device=where, dtype=getattr(torch, dtype or "float32")), found)

    @property
    def codec(self) -> Any:
        """transformers' EnCodec."""
        if "codec" not in self._made:
            made: Any = door.codec_of_checkpoint(self.found.codec_or_fetched())
            self._made["codec"] = made.to(self.device)
        return self._made["codec"]

    def said(self, prompts: Sequence[str | None]) -> Any:
        if self.config.condition == "none":
            if any(prompts):
                raise InputError("prompts: this model was trained without a condition: leave the prompt out")
            return None
        states, mask = self._rows([prompt or "" for prompt in prompts]) if any(prompts) else self._silence(prompts)
        with torch.inference_mode(), torch_generation.generating(self.model):
            return self.model.condition(states, mask, [not prompt for prompt in prompts])  # type: ignore[union-attr]

    def steps(
        self, laid: np.ndarray, said: Any, seeds: Sequence[int], sampling: Sampling, guidance: float
    ) -> Iterator[np.ndarray]:
        sampler = Sampler(**asdict(sampling))
        for step in torch_generation.predicted_steps(self.model, laid, said, seeds, sampler, guidance):
            yield step.numpy().astype(np.int32)

    def encode(self, audio: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(audio).to(self.device)
        return torch_generation.encode_audio(self.codec, given, self.config.channels).cpu().numpy().astype(np.int32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(codes.astype(np.int64)).to(self.device)
        return torch_generation.decode_audio(self.codec, given, self.config.channels).cpu().numpy()

    def stream(self) -> "AudioStream":
        return AudioStream(self)

    def memory(self) -> Memory:
        return memory.memory(self.device)

    def _rows(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The text encoder's states (B, L, W) and which are text."""
        if "text" not in self._made:
            found = self.found.text_or_fetched()
            made: Any = door.text_encoder_of_checkpoint(found.checkpoint)
            self._made["text"] = (
                made.to(self.device),
                TextTokenizer(found.tokenizer, found.checkpoint.settings["vocab"]),
            )
        encoder, tokenizer = self._made["text"]
        ids, mask = (torch.from_numpy(array).to(self.device) for array in tokenizer.encode(texts))
        with torch.inference_mode():
            return encoder(input_ids=ids.long(), attention_mask=mask.long()).last_hidden_state, mask

    def _silence(self, prompts: Sequence[str | None]) -> tuple[torch.Tensor, torch.Tensor]:
        states = torch.zeros(len(prompts), 1, self.config.text_width, device=self.device)
        return states, torch.ones(len(prompts), 1, dtype=torch.bool, device=self.device)


class AudioStream:
    """The codes of a stream to audio, as `musicgen_mlx.encodec.DecodeStream` does it, through upstream's layers."""

    def __init__(self, engine: Engine):
        self.codec, self.channels, self.device = engine.codec, engine.config.channels, engine.device
        config = encodec_of_settings(engine.found.codec_or_fetched().settings)
        self.first, self.halo, self.hop = config.kernel // 2, config.decoder_halo, config.frame_samples
        self.latents, self.rows = (Growing(partial(torch.cat, dim=1)) for _ in range(2))
        self.state: Any = None

    def push(self, codes: np.ndarray) -> np.ndarray | None:
        with torch.inference_mode():
            given = torch.from_numpy(codes.astype(np.int64)).to(self.device)
            sides = torch_generation.sides(given, self.channels)
            self.latents.append(self.codec.quantizer.decode(sides.transpose(0, 1)).transpose(1, 2))
            return self._certain(last=False)

    def finish(self) -> np.ndarray | None:
        with torch.inference_mode():
            return self._certain(last=True)

    def _certain(self, *, last: bool) -> np.ndarray | None:
        front, recurrent, *back = self.codec.decoder.layers
        x = self.latents.certain(lambda piece: _through([front], piece), self.first, last=last)
        if x is not None:
            y, self.state = recurrent.lstm(x.transpose(0, 1), self.state)
            self.rows.append(x + y.transpose(0, 1))
        audio = self.rows.certain(lambda piece: _through(back, piece), self.halo, rate=self.hop, last=last)
        return None if audio is None else torch_generation.joined(audio[..., 0], self.channels).cpu().numpy()


def _through(layers: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    """Upstream's layers, which have time last, over (B, T, C)."""
    y = x.transpose(1, 2)
    for layer in layers:
        y = layer(y)
    return y.transpose(1, 2)
