"""EnCodec on PyTorch for training, with the functions of `musicgen_mlx.encodec`: upstream's layers and our quantiser.

transformers' EncodecModel hands out codes, through which no gradient comes back to its encoder, and its codebooks do
not learn. Latents are (B, T, D). Names are those of transformers' files, but for the quantiser, whose names are ours.
"""

import numpy as np
import torch
from torch import nn

from backends.errors import InputError, missing_extra
from backends.layouts.checkpoint import Checkpoint
from backends.layouts.encodec import rules
from backends.layouts.encodec_settings import to_transformers
from backends.layouts.rules import to_ours
from backends.torch_backend import files
from backends.torch_backend.rvq import ResidualQuantizer
from musicgen_mlx.config import EncodecConfig, encodec_of_settings

try:
    from transformers import EncodecConfig as UpstreamConfig
    from transformers.models.encodec import modeling_encodec as upstream
except ImportError as error:
    raise missing_extra("transformers", "torch") from error

Draw = torch.Tensor | None


class Encodec(nn.Module):
    """Encoder, residual quantiser and decoder of a mono codec; random weights until some are loaded."""

    def __init__(self, config: EncodecConfig):
        super().__init__()
        if not config.lstm_layers:
            raise InputError("lstm_layers 0: transformers' EnCodec has an LSTM; train this codec with --backend mlx")
        theirs = UpstreamConfig.from_dict(to_transformers(config.settings()))
        self.config = config
        self.encoder = upstream.EncodecEncoder(theirs)
        self.quantizer = ResidualQuantizer(config.codebooks, config.entries, config.width)
        self.decoder = upstream.EncodecDecoder(theirs)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> "Encodec":
        """The codec with these weights in float32."""
        model = cls(encodec_of_settings(checkpoint.settings))
        theirs, _ = checkpoint.as_layout("encodec")
        named = {name: theirs[name] for name in theirs if not name.startswith("quantizer.")}
        named |= {name: checkpoint.ours[name] for name in checkpoint.ours if name.startswith("quantizer.")}
        model.load_state_dict({name: torch.from_numpy(_float32(value)) for name, value in named.items()})
        return model.eval()

    def tensors(self) -> dict[str, np.ndarray]:
        """All weights in our layout."""
        state = files.to_host(self.state_dict())
        quantizer = {name: value for name, value in state.items() if name.startswith("quantizer.")}
        rest = {name: value for name, value in state.items() if name not in quantizer}
        return {**to_ours(rest, rules("encodec", self.config.settings()), "EnCodec"), **quantizer}

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio (B, T frame_samples) -> codes (B, K, T)."""
        return self.quantizer.encode(self.latents(audio))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, K, T) -> audio (B, T frame_samples)."""
        return self.synthesise(self.quantizer.decode(codes))

    def latents(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio (B, T frame_samples) -> latents (B, T, D)."""
        return self.encoder(audio[:, None]).transpose(1, 2)

    def synthesise(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, T, D) -> audio (B, T frame_samples)."""
        return self.decoder(latents.transpose(1, 2))[:, 0]

    def quantize(
        self, latents: torch.Tensor, active: torch.Tensor, bypass: torch.Tensor, offered: Draw = None,
        priority: Draw = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """`ResidualQuantizer.quantize` for latents (B, T, D) with the first `active` (B,) of all K codebooks."""
        return self.quantizer.quantize(latents, active, bypass, offered, priority)

    def quantised(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """What each residual quantiser gets of latents (B, T, D), by its dotted name."""
        return {"quantizer": latents}


def _float32(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.astype(np.float32))
