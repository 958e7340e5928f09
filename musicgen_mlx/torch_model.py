"""MusicGen on PyTorch: transformers' decoders, EnCodec and T5 with the functions of `musicgen_mlx.model`.

Names are those of transformers' files, so adapters and weights go there and back. `MusicGen` holds what its
MusicgenForConditionalGeneration or MusicgenMelodyForConditionalGeneration holds besides codec and text encoder, which
stay outside: they do not train with it. A model without a condition is a MusicgenMelodyForCausalLM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    EncodecConfig,
    EncodecModel,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForCausalLM,
    T5Config,
    T5EncoderModel,
)

from backends.errors import InputError
from backends.layouts import encodec_settings, musicgen, musicgen_settings, t5_settings
from backends.layouts.checkpoint import Checkpoint, find, find_companions, open_checkpoint
from backends.layouts.rules import to_ours
from backends.torch_backend import files
from backends.torch_backend.blank import loaded
from musicgen_mlx.config import MusicGenConfig, of_settings
from musicgen_mlx.names import KEYS


@dataclass(frozen=True)
class Condition:
    """As `musicgen_mlx.condition.Condition`."""

    states: torch.Tensor
    mask: torch.Tensor
    empty: tuple[bool, ...]


class Door:
    """What the two kinds have in common."""

    config: Any  # transformers' own, of a bare model
    shapes: MusicGenConfig

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights in our names and forms."""
        state = files.to_host(self.state_dict())  # type: ignore[attr-defined]
        return dict(to_ours(state, musicgen.rules("musicgen", self.shapes.settings()), "MusicGen"))


class MusicGen(Door, nn.Module):
    """A model that takes a condition, with random weights until some are loaded."""

    def __init__(self, shapes: MusicGenConfig):
        nn.Module.__init__(self)
        self.shapes = shapes
        content = musicgen_settings.write(shapes.settings(), "musicgen")["decoder"]
        if shapes.condition == "cross":
            self.decoder = MusicgenForCausalLM(MusicgenDecoderConfig(**content))
        else:
            self.decoder = MusicgenMelodyForCausalLM(MusicgenMelodyDecoderConfig(**content))
        self.enc_to_dec_proj = nn.Linear(shapes.text_width, shapes.width)
        if shapes.chroma:
            self.audio_enc_to_dec_proj = nn.Linear(shapes.chroma, shapes.width)

    def forward(self, codes: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        """Codes (B, K, T) laid out by the pattern, and a condition -> logits of the next step (B, K, T, V)."""
        given = {}
        if condition is not None:
            given["encoder_hidden_states"] = condition.states
            given["encoder_attention_mask"] = condition.mask
        return _logits(self.decoder, codes, **given)

    def condition(
        self, states: torch.Tensor, mask: torch.Tensor, empty: Sequence[bool] = (), chroma: torch.Tensor | None = None
    ) -> Condition:
        """As `musicgen_mlx.condition.from_states`. Melody models need prompts of one length, since transformers'
        positions do not skip padding; raises InputError otherwise."""
        said = tuple(empty) or (False,) * len(mask)
        keep = mask & ~torch.tensor(said, device=mask.device)[:, None]
        projected = self.projected(states) * keep[..., None]
        condition = Condition(projected, mask, said)
        return self._after_chroma(condition, chroma) if self.shapes.chroma else condition

    def projected(self, states: torch.Tensor) -> torch.Tensor:
        """Rows of a text encoder (B, L, W) -> (B, L, D), by a projection that may carry an adapter."""
        return self.enc_to_dec_proj(states.to(self.decoder.model.decoder.layer_norm.weight.dtype))

    def null(self, condition: Condition) -> Condition:
        """As `musicgen_mlx.condition.null`."""
        frames, said = self.shapes.chroma_frames, (True,) * len(condition.empty)
        text = Condition(torch.zeros_like(condition.states[:, frames:]), condition.mask[:, frames:], said)
        return self._after_chroma(text, None) if frames else text

    def _after_chroma(self, text: Condition, chroma: torch.Tensor | None) -> Condition:
        if not text.mask.all():
            raise InputError("melody models on PyTorch take prompts of one length: give them one at a time")
        B, frames = len(text.mask), self.shapes.chroma_frames
        said = text.empty if chroma is None else (False,) * B
        if chroma is None:
            chroma = F.one_hot(torch.zeros(B, 1, dtype=torch.long, device=text.mask.device), self.shapes.chroma)
        chroma = chroma.repeat(1, -(-frames // chroma.shape[1]), 1)[:, :frames]
        rows = self.audio_enc_to_dec_proj(chroma.to(text.states.dtype))
        seen = text.mask.new_ones(B, frames)
        return Condition(torch.cat([rows, text.states], dim=1), torch.cat([seen, text.mask], dim=1), said)


class BareMusicGen(Door, MusicgenMelodyForCausalLM):
    """A model without a condition, such as micro-musicgen."""

    def __init__(self, shapes: MusicGenConfig):
        content = musicgen_settings.write(shapes.settings(), "musicgen")
        MusicgenMelodyForCausalLM.__init__(self, MusicgenMelodyDecoderConfig(**content))
        self.shapes = shapes

    @property
    def decoder(self) -> MusicgenMelodyForCausalLM:
        """The decoder, by the name that it has where there is more."""
        return self


AnyMusicGen = MusicGen | BareMusicGen


def predicted(model: AnyMusicGen, codes: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
    """Codes (B, K, T) -> logits of the next step (B, K, T, V), of either kind."""
    return model(codes, condition) if isinstance(model, MusicGen) else _logits(model, codes)


def from_pretrained(
    source: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[AnyMusicGen, dict[str, Checkpoint]]:
    """The model of a directory, weights file, Hub id or key, of any layout, and the companions that come with it."""
    path = find(KEYS.get(str(source), source), musicgen.FAMILY, "--model")
    checkpoint = open_checkpoint(path, musicgen.FAMILY)
    model: Any = of_checkpoint(checkpoint)
    return model.to(device=device, dtype=dtype), find_companions(checkpoint, path)


def of_checkpoint(checkpoint: Checkpoint) -> AnyMusicGen:
    """The model with these weights in float32, in evaluation."""
    shapes = of_settings(checkpoint.settings)
    kind = MusicGen if shapes.condition != "none" else BareMusicGen
    return loaded(lambda: kind(shapes), checkpoint.as_layout("musicgen")[0])


def codec_of_checkpoint(checkpoint: Checkpoint) -> EncodecModel:
    """transformers' EnCodec with these weights, frozen. Raises InputError for one that transformers cannot express."""
    if not checkpoint.settings["lstm_layers"]:
        raise InputError(f"{checkpoint.source}: transformers' EnCodec has an LSTM, this codec none; take --backend mlx")
    content = encodec_settings.to_transformers(checkpoint.settings)
    model = loaded(lambda: EncodecModel(EncodecConfig(**content)), checkpoint.as_layout("encodec")[0])
    return model.requires_grad_(False)


def text_encoder_of_checkpoint(checkpoint: Checkpoint) -> T5EncoderModel:
    """transformers' T5 encoder with these weights, frozen."""
    content = t5_settings.to_transformers(checkpoint.settings)
    state = dict(checkpoint.as_layout("t5")[0])
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    return loaded(lambda: T5EncoderModel(T5Config(**content)), state).requires_grad_(False)


def _logits(decoder: Any, codes: torch.Tensor, **condition: torch.Tensor) -> torch.Tensor:
    B, K, T = codes.shape
    found = decoder(input_ids=codes.reshape(B * K, T), use_cache=False, **condition).logits
    return found.reshape(B, K, -1, found.shape[-1])[:, :, -T:]
