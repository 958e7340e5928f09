"""Mimi on PyTorch, with the functions of `csm_mlx.mimi`: upstream's layers, called one by one, and our quantiser.

transformers' MimiModel hands out codes, through which no gradient comes back to its encoder, and its codebooks do not
learn. Latents are (B, T, D). Names are those of transformers' files, but for the quantiser, whose names are ours.
"""

import torch
from torch import nn

from backends.errors import missing_extra
from backends.layouts.mimi import FAMILY
from backends.layouts.mimi_settings import to_transformers
from backends.torch_backend.codec import CodecTwin, Draw, Quantised
from backends.torch_backend.rvq import ResidualQuantizer
from csm_mlx.config import MimiConfig, mimi_of_settings

try:
    from transformers import MimiConfig as UpstreamConfig
    from transformers.models.mimi import modeling_mimi as upstream
except ImportError as error:
    raise missing_extra("transformers", "torch") from error


class Mimi(CodecTwin):
    """Encoder, split residual quantiser and decoder; random weights until some are loaded."""

    family, layout, config_of = FAMILY, "mimi", staticmethod(mimi_of_settings)

    def __init__(self, config: MimiConfig):
        super().__init__()
        theirs = UpstreamConfig.from_dict(to_transformers(config.settings()), attn_implementation="sdpa")
        self.config = config
        step, width = config.downsample, config.width
        self.encoder = upstream.MimiEncoder(theirs)
        self.encoder_transformer = upstream.MimiTransformerModel(theirs)
        self.downsample = upstream.MimiConv1d(
            theirs, width, width, 2 * step, stride=step, bias=False, pad_mode="replicate"
        )
        self.quantizer = SplitQuantizer(config)
        self.upsample = upstream.MimiConvTranspose1d(
            theirs, width, width, 2 * step, stride=step, groups=width, bias=False
        )
        self.decoder_transformer = upstream.MimiTransformerModel(theirs)
        self.decoder = upstream.MimiDecoder(theirs)

    def latents(self, audio: torch.Tensor) -> torch.Tensor:
        x = self.encoder(audio[:, None]).transpose(1, 2)
        x = self.encoder_transformer(x, use_cache=False).last_hidden_state
        return self.downsample(x.transpose(1, 2)).transpose(1, 2)

    def synthesise(self, latents: torch.Tensor) -> torch.Tensor:
        x = self.upsample(latents.transpose(1, 2)).transpose(1, 2)
        x = self.decoder_transformer(x, use_cache=False).last_hidden_state
        return self.decoder(x.transpose(1, 2))[:, 0]

    def quantised(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """What each residual quantiser gets of latents (B, T, D), by its dotted name."""
        halves = {"semantic": self.quantizer.semantic, "acoustic": self.quantizer.acoustic}
        return {f"quantizer.{name}.rvq": half.input_proj(latents) for name, half in halves.items()}


class SplitQuantizer(nn.Module):
    """One semantic codebook and K - 1 acoustic ones, which quantise the same latent side by side and are added."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        semantic = config.semantic_codebooks
        self.semantic_codebooks = semantic
        self.semantic = ProjectedQuantizer(config, semantic)
        self.acoustic = ProjectedQuantizer(config, config.codebooks - semantic)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.semantic.encode(x), self.acoustic.encode(x)], dim=1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        split = self.semantic_codebooks
        x = self.semantic.decode(codes[:, :split])
        return x + self.acoustic.decode(codes[:, split:]) if codes.shape[1] > split else x

    def quantize(
        self, x: torch.Tensor, active: torch.Tensor, bypass: torch.Tensor, offered: Draw, priority: Draw
    ) -> Quantised:
        """Both halves on the same draws; the semantic codebooks are the first of the active ones."""
        split, draws = self.semantic_codebooks, (bypass, offered, priority)
        first, first_codes, first_commitment = self.semantic.quantize(x, active.clamp(max=split), *draws)
        rest, rest_codes, rest_commitment = self.acoustic.quantize(x, (active - split).clamp(min=0), *draws)
        codes = torch.cat([first_codes, rest_codes], dim=1)
        return first + rest, codes, first_commitment + rest_commitment


class ProjectedQuantizer(nn.Module):
    """A residual quantiser between two linear maps."""

    def __init__(self, config: MimiConfig, codebooks: int):
        super().__init__()
        self.input_proj = nn.Linear(config.width, config.code_width, bias=False)
        self.output_proj = nn.Linear(config.code_width, config.width, bias=False)
        self.rvq = ResidualQuantizer(codebooks, config.entries, config.code_width)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.rvq.encode(self.input_proj(x))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.output_proj(self.rvq.decode(codes))

    def quantize(self, x: torch.Tensor, active: torch.Tensor, *draws: Draw) -> Quantised:
        latents, codes, commitment = self.rvq.quantize(self.input_proj(x), active, *draws)  # type: ignore[arg-type]
        return self.output_proj(latents), codes, commitment
