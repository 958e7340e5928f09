"""EnCodec on PyTorch for training, with the functions of `musicgen_mlx.encodec`: upstream's layers and our quantiser.

transformers' EncodecModel hands out codes, through which no gradient comes back to its encoder, and its codebooks do
not learn. Latents are (B, T, D). Names are those of transformers' files, but for the quantiser, whose names are ours.
"""

import torch

from backends.errors import InputError, missing_extra
from backends.layouts.encodec import FAMILY
from backends.layouts.encodec_settings import to_transformers
from backends.torch_backend.codec import CodecTwin
from backends.torch_backend.rvq import ResidualQuantizer
from musicgen_mlx.config import EncodecConfig, encodec_of_settings

try:
    from transformers import EncodecConfig as UpstreamConfig
    from transformers.models.encodec import modeling_encodec as upstream
except ImportError as error:
    raise missing_extra("transformers", "torch") from error


class Encodec(CodecTwin):
    """Encoder, residual quantiser and decoder of a mono codec; random weights until some are loaded."""

    family, layout, config_of = FAMILY, "encodec", staticmethod(encodec_of_settings)

    def __init__(self, config: EncodecConfig):
        super().__init__()
        if not config.lstm_layers:
            raise InputError("lstm_layers 0: transformers' EnCodec has an LSTM; train this codec with --backend mlx")
        theirs = UpstreamConfig.from_dict(to_transformers(config.settings()))
        self.config = config
        self.encoder = upstream.EncodecEncoder(theirs)
        self.quantizer = ResidualQuantizer(config.codebooks, config.entries, config.width)
        self.decoder = upstream.EncodecDecoder(theirs)

    def latents(self, audio: torch.Tensor) -> torch.Tensor:
        return self.encoder(audio[:, None]).transpose(1, 2)

    def synthesise(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(latents.transpose(1, 2))[:, 0]

    def quantised(self, latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """What each residual quantiser gets of latents (B, T, D), by its dotted name."""
        return {"quantizer": latents}
