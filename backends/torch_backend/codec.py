"""What the PyTorch twins of Mimi and EnCodec share: weights under two sets of names, and codes of our quantiser."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import nn

from backends.layouts.checkpoint import Checkpoint
from backends.layouts.families import Family, Settings
from backends.layouts.rules import to_ours
from backends.torch_backend import files
from backends.torch_backend.blank import loaded

Draw = torch.Tensor | None
Quantised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # latents (B, T, D), codes (B, K, T), commitment
Twin = TypeVar("Twin", bound="CodecTwin")

QUANTIZER = "quantizer."


class CodecTwin(nn.Module):
    """A codec of transformers' layers around our quantiser.

    Names are those of transformers' files (`layout` of `family`), but for the quantiser, whose names are ours. A codec
    is made of its configuration, and that of a checkpoint's settings by `config_of`.
    """

    family: ClassVar[Family]
    layout: ClassVar[str]
    config_of: ClassVar[Callable[[Settings], Any]]
    config: Any
    quantizer: Any

    @classmethod
    def of_checkpoint(cls: type[Twin], checkpoint: Checkpoint) -> Twin:
        """The codec with these weights in float32."""
        theirs, _ = checkpoint.as_layout(cls.layout)
        named = {name: theirs[name] for name in theirs if not name.startswith(QUANTIZER)}
        named |= {name: checkpoint.ours[name] for name in checkpoint.ours if name.startswith(QUANTIZER)}
        return loaded(lambda: cls(cls.config_of(checkpoint.settings)), named)  # type: ignore[call-arg]

    def tensors(self) -> dict[str, np.ndarray]:
        """All weights in our layout."""
        state = files.to_host(self.state_dict())
        quantizer = {name: value for name, value in state.items() if name.startswith(QUANTIZER)}
        rest = {name: value for name, value in state.items() if name not in quantizer}
        rules = self.family.rules(self.layout, self.config.settings())
        return {**to_ours(rest, rules, self.family.title), **quantizer}

    def latents(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio (B, T frame_samples) -> latents (B, T, D)."""
        raise NotImplementedError

    def synthesise(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, T, D) -> audio (B, T frame_samples)."""
        raise NotImplementedError

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio (B, T frame_samples) -> codes (B, K, T)."""
        return self.quantizer.encode(self.latents(audio))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, K, T) -> audio (B, T frame_samples)."""
        return self.synthesise(self.quantizer.decode(codes))

    def quantize(
        self, latents: torch.Tensor, active: torch.Tensor, bypass: torch.Tensor, offered: Draw = None,
        priority: Draw = None,
    ) -> Quantised:  # fmt: skip
        """`ResidualQuantizer.quantize` for latents (B, T, D) with the first `active` (B,) of all K codebooks."""
        return self.quantizer.quantize(latents, active, bypass, offered, priority)
